//! [`MeasuredStore`]: a store that records how long each operation of another one takes.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use ids::{
    BuildId, DeliveryId, KeyId, SandboxId, SecretId, SshKeyId, TeamId, TemplateId, TokenId, UserId, VolumeId,
    WebhookId,
};
use telemetry::Outcome;
use time::OffsetDateTime;

use crate::{
    AccessToken, ApiKey, Build, Delivery, Event, EventQuery, EventStore, Idempotency, IdentityStore, Sandbox,
    SandboxDetails, SecretStore, SshKey, SshKeyStore, Store, StoreError, StoredSecret, TagAssignment, Team,
    Template, User, Volume, VolumeStore, Webhook,
};

/// A store that passes every operation on to another one and records the time and the outcome.
pub struct MeasuredStore(Arc<dyn Store>);

impl MeasuredStore {
    /// Measures the operations of `store`.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self(store)
    }
}

async fn measure<T>(
    operation: &'static str,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let began = Instant::now();
    let result = work.await;
    telemetry::store_operation_finished(operation, Outcome::of(&result), began.elapsed());
    result
}

/// Implements a trait of the store by calling the same method of the inner store within [`measure`].
macro_rules! measured {
    ($trait:ident { $(fn $name:ident($($arg:ident: $type:ty),*) -> $output:ty;)* } $($rest:tt)*) => {
        #[async_trait]
        impl $trait for MeasuredStore {
            $(async fn $name(&self, $($arg: $type),*) -> Result<$output, StoreError> {
                measure(stringify!($name), self.0.$name($($arg),*)).await
            })*
            $($rest)*
        }
    };
}

measured! { Store {
    fn secret(name: &str, fresh: &[u8]) -> Vec<u8>;
    fn put_team(team: &Team) -> ();
    fn teams() -> Vec<Team>;
    fn insert_key(key: &ApiKey) -> ();
    fn keys() -> Vec<ApiKey>;
    fn key_by_hash(hash: &str) -> Option<ApiKey>;
    fn rename_key(team: TeamId, id: KeyId, name: &str) -> bool;
    fn delete_key(team: TeamId, id: KeyId) -> bool;
    fn touch_keys(uses: &[(KeyId, OffsetDateTime)]) -> ();
    fn templates() -> Vec<Template>;
    fn builds() -> Vec<Build>;
    fn tag_assignments() -> Vec<TagAssignment>;
    fn put_template(template: &Template, build: Option<&Build>, tags: &[TagAssignment]) -> ();
    fn delete_template(id: &TemplateId) -> bool;
    fn delete_builds(builds: &[BuildId]) -> ();
    fn put_build(build: &Build) -> bool;
    fn assign_tags(tags: &[TagAssignment]) -> ();
    fn remove_tags(template: &TemplateId, tags: &[String]) -> u64;
    fn count_spawns(spawns: &[(TemplateId, u64, OffsetDateTime)]) -> ();
    fn insert_sandbox(sandbox: &Sandbox, idempotency: Option<&Idempotency>) -> ();
    fn sandbox(id: &SandboxId) -> Option<Sandbox>;
    fn open_sandboxes() -> Vec<Sandbox>;
    fn set_sandbox_end(id: &SandboxId, end_at: OffsetDateTime) -> ();
    fn set_sandbox_details(id: &SandboxId, details: &SandboxDetails) -> ();
    fn put_sandbox(sandbox: &Sandbox) -> bool;
    fn put_sandbox_quickly(sandbox: &Sandbox) -> bool;
    fn flush() -> ();
    fn finish_sandbox(id: &SandboxId, ended_at: OffsetDateTime, reason: &str) -> ();
    fn idempotency(team: TeamId, key: &str) -> Option<Idempotency>;
    fn prune(before: OffsetDateTime) -> u64;
}
    async fn close(&self) {
        self.0.close().await;
    }
}

measured! { EventStore {
    fn insert_event(event: &Event, deliveries: &[Delivery]) -> bool;
    fn events(query: &EventQuery) -> Vec<Event>;
    fn prune_events(before: OffsetDateTime) -> u64;
    fn put_webhook(webhook: &Webhook) -> ();
    fn webhooks() -> Vec<Webhook>;
    fn delete_webhook(team: TeamId, id: WebhookId) -> bool;
    fn waiting_deliveries(webhook: WebhookId) -> u64;
    fn next_deliveries(webhook: WebhookId, limit: u32) -> Vec<(Delivery, Event)>;
    fn postpone_delivery(delivery: &Delivery) -> ();
    fn delete_deliveries(ids: &[DeliveryId]) -> ();
}}

measured! { SecretStore {
    fn insert_secret(secret: &StoredSecret, max: u32) -> ();
    fn secrets(team: TeamId, after: Option<&SecretId>, limit: u32) -> Vec<StoredSecret>;
    fn all_secrets() -> Vec<StoredSecret>;
    fn secret_by_name(team: TeamId, name: &str) -> Option<StoredSecret>;
    fn secret_by_id(team: TeamId, id: &SecretId) -> Option<StoredSecret>;
    fn update_secret(secret: &StoredSecret, before: u64) -> bool;
    fn delete_secret(team: TeamId, id: &SecretId) -> bool;
}}

measured! { IdentityStore {
    fn insert_user(user: &User) -> ();
    fn users() -> Vec<User>;
    fn user(id: UserId) -> Option<User>;
    fn put_member(team: TeamId, user: UserId, at: OffsetDateTime) -> ();
    fn delete_member(team: TeamId, user: UserId) -> bool;
    fn teams_of(user: UserId) -> Vec<TeamId>;
    fn insert_token(token: &AccessToken) -> ();
    fn user_by_token(hash: &str) -> Option<User>;
    fn delete_token(user: Option<UserId>, id: TokenId) -> bool;
}}

measured! { SshKeyStore {
    fn insert_ssh_key(key: &SshKey) -> ();
    fn ssh_keys() -> Vec<SshKey>;
    fn delete_ssh_key(id: SshKeyId) -> bool;
} }

measured! { VolumeStore {
    fn insert_volume(volume: &Volume) -> ();
    fn volumes() -> Vec<Volume>;
    fn set_volume_limit(id: VolumeId, size_limit_mib: Option<u32>) -> bool;
    fn delete_volume(id: VolumeId) -> bool;
}}
