//! The part of the behaviour suite about users, memberships, tokens and the standing of teams. Each case gets a store of its own.

use ids::{TeamId, TokenId, UserId};
use time::OffsetDateTime;

use crate::{AccessToken, Mask, Standing, Store, StoreError, Team, TeamLimits, User, truncate_to_micros};

fn now() -> OffsetDateTime {
    truncate_to_micros(OffsetDateTime::now_utc())
}

pub(crate) fn team(slug: &str) -> Team {
    Team {
        id: TeamId::generate(),
        name: slug.to_owned(),
        slug: slug.to_owned(),
        limits: TeamLimits { max_vcpu: 4, ..TeamLimits::default() },
        egress: Default::default(),
        standing: Standing::Good,
        created_at: now(),
    }
}

pub(crate) async fn standings_are_kept(store: &impl Store) -> Result<(), StoreError> {
    let mut record = team("one");
    for standing in [
        Standing::Good,
        Standing::Blocked("unpaid".to_owned()),
        Standing::Blocked(String::new()),
        Standing::Banned,
        Standing::Good,
    ] {
        record.standing = standing;
        store.put_team(&record).await?;
        assert_eq!(store.teams().await?, std::slice::from_ref(&record));
    }
    Ok(())
}

pub(crate) async fn users_join_teams_and_have_tokens(store: &impl Store) -> Result<(), StoreError> {
    let (first, second) = (team("first"), team("second"));
    store.put_team(&first).await?;
    store.put_team(&second).await?;
    let user = User { id: UserId::generate(), email: "a@example.com".to_owned(), created_at: now() };
    store.insert_user(&user).await?;
    let twin = User { id: UserId::generate(), ..user.clone() };
    assert!(matches!(store.insert_user(&twin).await, Err(StoreError::Conflict(_))));
    assert_eq!(store.users().await?, std::slice::from_ref(&user));
    assert_eq!(store.user(user.id).await?.as_ref(), Some(&user));
    assert_eq!(store.user(twin.id).await?, None);

    store.put_member(second.id, user.id, now()).await?;
    store.put_member(first.id, user.id, now()).await?;
    store.put_member(second.id, user.id, now()).await?;
    assert_eq!(store.teams_of(user.id).await?, [second.id, first.id]);
    assert!(store.delete_member(second.id, user.id).await?);
    assert!(!store.delete_member(second.id, user.id).await?);
    assert_eq!(store.teams_of(user.id).await?, [first.id]);

    let token = AccessToken {
        id: TokenId::generate(),
        user: user.id,
        name: "laptop".to_owned(),
        hash: "$sha256$x".to_owned(),
        mask: Mask { prefix: "sk_e2b_".into(), value_length: 40, first: "ab".into(), last: "wxyz".into() },
        created_at: now(),
    };
    store.insert_token(&token).await?;
    assert_eq!(store.user_by_token("$sha256$x").await?, Some(user.clone()));
    assert_eq!(store.user_by_token("$sha256$y").await?, None);
    assert!(!store.delete_token(Some(UserId::generate()), token.id).await?, "another's");
    assert!(store.delete_token(Some(user.id), token.id).await?);
    assert_eq!(store.user_by_token("$sha256$x").await?, None);
    store.insert_token(&token).await?;
    assert!(store.delete_token(None, token.id).await?);
    Ok(())
}
