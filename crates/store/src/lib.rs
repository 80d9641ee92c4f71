//! The database of records, behind the traits [`Store`], [`EventStore`], [`IdentityStore`], [`SecretStore`], [`SshKeyStore`] and [`VolumeStore`]: SQLite
//! in a local file, or PostgreSQL (feature `postgres`) on another host. Records are plain data; `control` has the rules for them.
//! Both implementations pass the same behaviour suite ([`suite`]).
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
mod secrets;
mod sqlite;
mod ssh_keys;
#[doc(hidden)]
pub mod suite;
mod suite_events;
mod suite_identity;
mod suite_secrets;
mod suite_ssh_keys;
mod suite_volumes;
mod volumes;

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
    NetworkConfig, Pause, PauseFallback, RunContext, Sandbox, SandboxDetails, SandboxState, Standing,
    TagAssignment, Team, TeamEgress, TeamLimits, Template, TemplateName, VolumeMount, truncate_to_micros,
};
pub use secrets::{SecretStore, StoredSecret};
pub use sqlite::SqliteStore;
pub use ssh_keys::{SshKey, SshKeyStore};
pub use volumes::{Volume, VolumeStore};

/// The records that survive restarts. Every call is atomic: a failed one changes nothing.
///
/// Times have microsecond precision: finer digits are cut off. Every call fails if the database does, or if a record is damaged.
#[async_trait]
pub trait Store:
    EventStore + IdentityStore + SecretStore + SshKeyStore + VolumeStore + Send + Sync + 'static
{
    /// Returns the server secret of this name; stores and returns `fresh` if there is none yet.
    async fn secret(&self, name: &str, fresh: &[u8]) -> Result<Vec<u8>, StoreError>;

    /// Adds a team, or replaces the one with its id.
    async fn put_team(&self, team: &Team) -> Result<(), StoreError>;
    /// Returns all teams, oldest first.
    async fn teams(&self) -> Result<Vec<Team>, StoreError>;

    /// Adds an API key.
    async fn insert_key(&self, key: &ApiKey) -> Result<(), StoreError>;
    /// Returns all API keys, oldest first.
    async fn keys(&self) -> Result<Vec<ApiKey>, StoreError>;
    /// Returns the API key with this hash.
    async fn key_by_hash(&self, hash: &str) -> Result<Option<ApiKey>, StoreError>;
    /// Renames a team's key; returns false if there is no such key.
    async fn rename_key(&self, team: TeamId, id: KeyId, name: &str) -> Result<bool, StoreError>;
    /// Removes a team's key; returns false if there is no such key.
    async fn delete_key(&self, team: TeamId, id: KeyId) -> Result<bool, StoreError>;
    /// Records when keys were last used.
    async fn touch_keys(&self, uses: &[(KeyId, OffsetDateTime)]) -> Result<(), StoreError>;

    /// Returns all templates with their names, oldest first.
    async fn templates(&self) -> Result<Vec<Template>, StoreError>;
    /// Returns all builds, oldest first.
    async fn builds(&self) -> Result<Vec<Build>, StoreError>;
    /// Returns all tag assignments, oldest first: the last one of a tag is in effect.
    async fn tag_assignments(&self) -> Result<Vec<TagAssignment>, StoreError>;
    /// Adds or replaces a template with its names (spawn figures are kept), and adds a build and tags to it.
    /// Fails with `Conflict` if a name belongs to another template.
    async fn put_template(
        &self,
        template: &Template,
        build: Option<&Build>,
        tags: &[TagAssignment],
    ) -> Result<(), StoreError>;
    /// Removes a template with its names, builds and tags; returns false if there is none.
    async fn delete_template(&self, id: &TemplateId) -> Result<bool, StoreError>;
    /// Removes builds of a template with their tags.
    async fn delete_builds(&self, builds: &[BuildId]) -> Result<(), StoreError>;
    /// Replaces all fields of a build except its template and creation time; survives a power failure. Returns false if there is no
    /// such build.
    async fn put_build(&self, build: &Build) -> Result<bool, StoreError>;
    /// Adds tags to builds.
    async fn assign_tags(&self, tags: &[TagAssignment]) -> Result<(), StoreError>;
    /// Removes tags from a template; returns how many existed.
    async fn remove_tags(&self, template: &TemplateId, tags: &[String]) -> Result<u64, StoreError>;
    /// Adds to templates' spawn counts.
    async fn count_spawns(&self, spawns: &[(TemplateId, u64, OffsetDateTime)]) -> Result<(), StoreError>;

    /// Adds a sandbox, with the idempotency key of its create request.
    async fn insert_sandbox(
        &self,
        sandbox: &Sandbox,
        idempotency: Option<&Idempotency>,
    ) -> Result<(), StoreError>;
    /// Returns a sandbox, in any state.
    async fn sandbox(&self, id: &SandboxId) -> Result<Option<Sandbox>, StoreError>;
    /// Returns all sandboxes that have not ended, oldest first.
    async fn open_sandboxes(&self) -> Result<Vec<Sandbox>, StoreError>;
    /// Sets the time at which a sandbox ends.
    async fn set_sandbox_end(&self, id: &SandboxId, end_at: OffsetDateTime) -> Result<(), StoreError>;
    /// Replaces a sandbox's details.
    async fn set_sandbox_details(&self, id: &SandboxId, details: &SandboxDetails) -> Result<(), StoreError>;
    /// Replaces state, execution, times, pause and details of a sandbox that has not ended; survives a power failure.
    /// Returns false if it has ended or does not exist.
    async fn put_sandbox(&self, sandbox: &Sandbox) -> Result<bool, StoreError>;
    /// As [`Store::put_sandbox`], but a power failure may undo it until [`Store::flush`] has returned.
    async fn put_sandbox_quickly(&self, sandbox: &Sandbox) -> Result<bool, StoreError>;
    /// Flushes all writes to the disk: once this returns, they survive a power failure.
    async fn flush(&self) -> Result<(), StoreError>;
    /// Marks a sandbox as ended; an ended one stays as it is.
    async fn finish_sandbox(
        &self,
        id: &SandboxId,
        ended_at: OffsetDateTime,
        reason: &str,
    ) -> Result<(), StoreError>;
    /// Returns the result of the create with a team's idempotency key.
    async fn idempotency(&self, team: TeamId, key: &str) -> Result<Option<Idempotency>, StoreError>;
    /// Removes ended sandboxes and idempotency keys older than this; returns the number of removed sandboxes.
    async fn prune(&self, before: OffsetDateTime) -> Result<u64, StoreError>;

    /// Waits for running calls and closes the database.
    async fn close(&self);
}
