//! The part of the behaviour suite about secrets of teams.

use std::collections::BTreeMap;

use ids::{SecretId, TeamId};
use time::OffsetDateTime;

use crate::suite_identity::team;
use crate::{Store, StoreError, StoredSecret, truncate_to_micros};

fn secret(team: TeamId, name: &str) -> StoredSecret {
    let now = truncate_to_micros(OffsetDateTime::now_utc());
    StoredSecret {
        id: SecretId::in_order(),
        team,
        name: name.to_owned(),
        version: 1,
        metadata: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        sealed: vec![0, 255, 1],
        created_at: now,
        updated_at: now,
    }
}

pub(crate) async fn secrets_belong_to_one_team(store: &impl Store) -> Result<(), StoreError> {
    let (own, other) = (team("own"), team("other"));
    store.put_team(&own).await?;
    store.put_team(&other).await?;
    let (first, second, foreign) = (secret(own.id, "a"), secret(own.id, "b"), secret(other.id, "a"));
    for secret in [&first, &second, &foreign] {
        store.insert_secret(secret, 2).await?;
    }
    for refused in [secret(own.id, "c"), secret(other.id, "a")] {
        assert!(matches!(store.insert_secret(&refused, 2).await, Err(StoreError::Conflict(_))));
    }
    assert_eq!(store.secrets(own.id, None, 10).await?, [first.clone(), second.clone()]);
    assert_eq!(store.secrets(own.id, Some(&first.id), 10).await?, std::slice::from_ref(&second));
    assert_eq!(store.secrets(own.id, None, 1).await?, std::slice::from_ref(&first));
    assert_eq!(store.all_secrets().await?.len(), 3);
    assert_eq!(store.secret_by_name(other.id, "a").await?.as_ref(), Some(&foreign));
    assert_eq!(store.secret_by_id(own.id, &foreign.id).await?, None);
    let changed = StoredSecret { version: 2, sealed: vec![7], ..first.clone() };
    assert!(store.update_secret(&changed, 1).await?);
    assert!(!store.update_secret(&changed, 1).await?, "somebody else was first");
    assert_eq!(store.secret_by_id(own.id, &first.id).await?.as_ref(), Some(&changed));
    assert!(!store.delete_secret(other.id, &first.id).await?);
    assert!(store.delete_secret(own.id, &first.id).await?);
    store.insert_secret(&secret(own.id, "a"), 2).await
}
