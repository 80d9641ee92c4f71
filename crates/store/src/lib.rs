//! Durable state behind one interface: SQLite on one machine, PostgreSQL (feature `postgres`) for state kept elsewhere.
//! Records are plain data; what they mean is decided in `control`.
//! Every implementation passes the one suite in [`suite`].
#![forbid(unsafe_code)]
#![allow(clippy::duplicate_mod, reason = "`sql` is compiled for each database")]

mod error;
mod events;
mod identity;
mod measured;
mod migrations;
#[cfg(feature = "postgres")]
mod postgres;
mod records;
mod sqlite;
#[doc(hidden)]
pub mod suite;
mod suite_events;
mod suite_identity;

use async_trait::async_trait;
use ids::{BuildId, KeyId, SandboxId, TeamId, TemplateId};
use time::OffsetDateTime;

pub use error::StoreError;
pub use events::{Delivery, Event, EventBody, EventKind, EventQuery, EventStore, Webhook};
pub use identity::{AccessToken, IdentityStore, User};
pub use measured::MeasuredStore;
#[cfg(feature = "postgres")]
pub use postgres::PostgresStore;
pub use records::{
    ApiKey, Build, BuildConfig, BuildFailure, BuildSnapshot, BuildStatus, Idempotency, Lifecycle, Mask,
    NetworkConfig, Pause, RunContext, Sandbox, SandboxDetails, SandboxState, Standing, TagAssignment, Team,
    TeamLimits, Template, TemplateName, truncate_to_micros,
};
pub use sqlite::SqliteStore;

/// What the control plane remembers across restarts. Every call is atomic; a failed one changed nothing.
///
/// Times have microsecond precision: finer ones are cut off.
#[async_trait]
pub trait Store: EventStore + IdentityStore + Send + Sync + 'static {
    /// The server secret of this name; `fresh` is stored and answered if there is none yet.
    async fn secret(&self, name: &str, fresh: &[u8]) -> Result<Vec<u8>, StoreError>;

    /// Adds a team, or replaces the one with its id.
    async fn put_team(&self, team: &Team) -> Result<(), StoreError>;
    /// All teams, oldest first.
    async fn teams(&self) -> Result<Vec<Team>, StoreError>;

    /// Adds a key.
    async fn insert_key(&self, key: &ApiKey) -> Result<(), StoreError>;
    /// All keys, oldest first.
    async fn keys(&self) -> Result<Vec<ApiKey>, StoreError>;
    /// The key with this hash.
    async fn key_by_hash(&self, hash: &str) -> Result<Option<ApiKey>, StoreError>;
    /// Gives a team's key another name; false when there is no such key.
    async fn rename_key(&self, team: TeamId, id: KeyId, name: &str) -> Result<bool, StoreError>;
    /// Removes a team's key; false when there is no such key.
    async fn delete_key(&self, team: TeamId, id: KeyId) -> Result<bool, StoreError>;
    /// Notes when keys were last used.
    async fn touch_keys(&self, uses: &[(KeyId, OffsetDateTime)]) -> Result<(), StoreError>;

    /// All templates with their names, oldest first.
    async fn templates(&self) -> Result<Vec<Template>, StoreError>;
    /// All builds, oldest first.
    async fn builds(&self) -> Result<Vec<Build>, StoreError>;
    /// All tag assignments, oldest first: the last one of a tag counts.
    async fn tag_assignments(&self) -> Result<Vec<TagAssignment>, StoreError>;
    /// Adds or replaces a template with its names (spawn figures are kept), and adds a build and tags to it.
    /// `Conflict` when a name belongs to another template.
    async fn put_template(
        &self,
        template: &Template,
        build: Option<&Build>,
        tags: &[TagAssignment],
    ) -> Result<(), StoreError>;
    /// Removes a template with its names, builds and tags; false when there is none.
    async fn delete_template(&self, id: &TemplateId) -> Result<bool, StoreError>;
    /// Removes builds of a template with their tags.
    async fn delete_builds(&self, builds: &[BuildId]) -> Result<(), StoreError>;
    /// Replaces all of a build but its template and when it was asked for; this survives a power cut. False when there
    /// is none.
    async fn put_build(&self, build: &Build) -> Result<bool, StoreError>;
    /// Adds tags to builds.
    async fn assign_tags(&self, tags: &[TagAssignment]) -> Result<(), StoreError>;
    /// Takes tags away from a template; returns how many there were.
    async fn remove_tags(&self, template: &TemplateId, tags: &[String]) -> Result<u64, StoreError>;
    /// Adds to templates' spawn counts.
    async fn count_spawns(&self, spawns: &[(TemplateId, u64, OffsetDateTime)]) -> Result<(), StoreError>;

    /// Adds a sandbox, with the idempotency key it was asked for under.
    async fn insert_sandbox(
        &self,
        sandbox: &Sandbox,
        idempotency: Option<&Idempotency>,
    ) -> Result<(), StoreError>;
    /// One sandbox, in whatever state.
    async fn sandbox(&self, id: &SandboxId) -> Result<Option<Sandbox>, StoreError>;
    /// All sandboxes that have not ended, oldest first.
    async fn open_sandboxes(&self) -> Result<Vec<Sandbox>, StoreError>;
    /// Moves a sandbox's end of life.
    async fn set_sandbox_end(&self, id: &SandboxId, end_at: OffsetDateTime) -> Result<(), StoreError>;
    /// Replaces what is kept as details.
    async fn set_sandbox_details(&self, id: &SandboxId, details: &SandboxDetails) -> Result<(), StoreError>;
    /// Replaces state, run, times, pause and details of a sandbox that has not ended; this survives a power cut.
    /// False when it has ended or never was.
    async fn put_sandbox(&self, sandbox: &Sandbox) -> Result<bool, StoreError>;
    /// As [`Store::put_sandbox`], but a power cut may take it back until [`Store::settle`] has returned.
    async fn put_sandbox_quickly(&self, sandbox: &Sandbox) -> Result<bool, StoreError>;
    /// Once this returns, everything that was written before survives a power cut.
    async fn settle(&self) -> Result<(), StoreError>;
    /// Marks a sandbox as ended; an ended one stays as it is.
    async fn finish_sandbox(
        &self,
        id: &SandboxId,
        ended_at: OffsetDateTime,
        reason: &str,
    ) -> Result<(), StoreError>;
    /// What was created under a team's idempotency key.
    async fn idempotency(&self, team: TeamId, key: &str) -> Result<Option<Idempotency>, StoreError>;
    /// Forgets ended sandboxes and idempotency keys older than this; returns how many sandboxes.
    async fn prune(&self, before: OffsetDateTime) -> Result<u64, StoreError>;

    /// Waits for running calls and closes the files.
    async fn close(&self);
}
