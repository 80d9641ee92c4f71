//! The part of the behaviour suite about public keys for SSH.

use ids::SshKeyId;
use time::OffsetDateTime;

use crate::suite_identity::team;
use crate::{SshKey, Store, StoreError, truncate_to_micros};

pub(crate) async fn a_team_has_a_public_key_once(store: &impl Store) -> Result<(), StoreError> {
    let (first, second) = (team("first"), team("second"));
    store.put_team(&first).await?;
    store.put_team(&second).await?;
    let key = |team: &crate::Team, seconds| SshKey {
        id: SshKeyId::generate(),
        team: team.id,
        name: "laptop".into(),
        fingerprint: "SHA256:abc".into(),
        public_key: "ssh-ed25519 AAAA".into(),
        created_at: truncate_to_micros(OffsetDateTime::now_utc()) + time::Duration::seconds(seconds),
    };
    let (one, other) = (key(&first, 0), key(&second, 1));
    store.insert_ssh_key(&one).await?;
    store.insert_ssh_key(&other).await?;
    assert!(matches!(store.insert_ssh_key(&key(&first, 2)).await, Err(StoreError::Conflict(_))));
    assert_eq!(store.ssh_keys().await?, [one.clone(), other.clone()]);
    assert!(store.delete_ssh_key(one.id).await?);
    assert!(!store.delete_ssh_key(one.id).await?);
    assert_eq!(store.ssh_keys().await?, [other]);
    Ok(())
}
