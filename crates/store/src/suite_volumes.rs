//! The part of the behaviour suite about volumes.

use ids::{TeamId, VolumeId};
use time::OffsetDateTime;

use crate::{Standing, Store, StoreError, Team, TeamLimits, Volume, truncate_to_micros};

fn now() -> OffsetDateTime {
    truncate_to_micros(OffsetDateTime::now_utc())
}

fn team(slug: &str) -> Team {
    Team {
        id: TeamId::generate(),
        name: slug.to_owned(),
        slug: slug.to_owned(),
        limits: TeamLimits::default(),
        egress: Default::default(),
        standing: Standing::Good,
        created_at: now(),
    }
}

pub(crate) async fn volumes_have_names_of_their_own_in_a_team(store: &impl Store) -> Result<(), StoreError> {
    let (first, second) = (team("first"), team("second"));
    store.put_team(&first).await?;
    store.put_team(&second).await?;
    let volume = |team: &Team, name: &str, created_at| Volume {
        id: VolumeId::generate(),
        team: team.id,
        name: name.into(),
        size_limit_mib: None,
        created_at,
    };
    let at = now();
    let mut one = volume(&first, "data", at);
    store.insert_volume(&one).await?;
    assert!(matches!(store.insert_volume(&volume(&first, "data", at)).await, Err(StoreError::Conflict(_))));
    let other = volume(&second, "data", at + time::Duration::seconds(1));
    store.insert_volume(&other).await?;
    // Names are compared as they are.
    let upper = volume(&first, "Data", at + time::Duration::seconds(2));
    store.insert_volume(&upper).await?;
    assert_eq!(store.volumes().await?, [one.clone(), other.clone(), upper.clone()]);

    assert!(store.set_volume_limit(one.id, Some(u32::MAX)).await?);
    one.size_limit_mib = Some(u32::MAX);
    assert_eq!(store.volumes().await?[0], one);
    assert!(!store.set_volume_limit(VolumeId::generate(), None).await?);
    assert!(store.delete_volume(one.id).await?);
    assert!(!store.delete_volume(one.id).await?);
    assert_eq!(store.volumes().await?, [other, upper]);
    Ok(())
}
