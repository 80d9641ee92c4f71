//! The behaviour suite that every store must pass. A store's tests call [`run`] with a function that creates an empty one.
//! Each case gets a store of its own.

use std::future::Future;

use ids::{BuildId, ExecutionId, KeyId, SandboxId, SnapshotId, TeamId, TemplateId};
use time::{Duration, OffsetDateTime};

use crate::suite_events::{
    deliveries_wait_are_postponed_and_go, events_are_found_filtered_paged_and_pruned,
    webhooks_are_replaced_and_deleted,
};
use crate::suite_identity::{standings_are_kept, users_join_teams_and_have_tokens};
use crate::suite_secrets::secrets_belong_to_one_team;
use crate::suite_ssh_keys::a_team_has_a_public_key_once;
use crate::suite_volumes::volumes_have_names_of_their_own_in_a_team;
use crate::{
    ApiKey, Build, BuildConfig, BuildFailure, BuildSnapshot, BuildStatus, Idempotency, Mask, NetworkConfig,
    Pause, Sandbox, SandboxDetails, SandboxState, Standing, Store, StoreError, TagAssignment, Team,
    TeamEgress, TeamLimits, Template, TemplateName, truncate_to_micros,
};

/// Runs all cases. `fresh` returns an empty store and a value that is dropped after it.
///
/// # Panics
/// The store fails a case.
pub async fn run<S, G, F, Fut>(fresh: F)
where
    S: Store,
    F: Fn() -> Fut,
    Fut: Future<Output = (S, G)>,
{
    macro_rules! cases {
        ($($case:ident),* $(,)?) => {$({
            let (store, guard) = fresh().await;
            $case(&store).await.unwrap_or_else(|error| panic!("{}: {error}", stringify!($case)));
            store.close().await;
            drop(guard);
        })*};
    }
    cases!(
        secrets_are_made_once,
        teams_are_replaced_by_id_and_unique_by_slug,
        keys_are_found_renamed_touched_and_deleted,
        templates_keep_names_builds_and_tags,
        names_belong_to_one_template,
        sandboxes_live_and_end,
        sandboxes_are_paused_and_resumed,
        snapshots_are_builds,
        idempotency_keys_are_unique,
        old_records_are_pruned,
        events_are_found_filtered_paged_and_pruned,
        webhooks_are_replaced_and_deleted,
        deliveries_wait_are_postponed_and_go,
        standings_are_kept,
        users_join_teams_and_have_tokens,
        secrets_belong_to_one_team,
        volumes_have_names_of_their_own_in_a_team,
        a_team_has_a_public_key_once,
    );
}

fn now() -> OffsetDateTime {
    truncate_to_micros(OffsetDateTime::now_utc())
}

fn team(slug: &str) -> Team {
    Team {
        id: TeamId::generate(),
        name: format!("Team {slug}"),
        slug: slug.to_owned(),
        limits: TeamLimits { concurrent_sandboxes: 7, max_length_hours: 3, ..TeamLimits::default() },
        egress: TeamEgress::default(),
        standing: Standing::Good,
        created_at: now(),
    }
}

fn template(team: Option<TeamId>, alias: &str) -> Template {
    Template {
        id: TemplateId::generate(),
        team,
        names: vec![TemplateName { namespace: None, alias: alias.to_owned() }],
        public: true,
        created_at: now(),
        updated_at: now(),
        spawn_count: 0,
        last_spawned: None,
    }
}

fn sandbox() -> Sandbox {
    Sandbox {
        id: SandboxId::generate(),
        team: TeamId::generate(),
        template: TemplateId::generate(),
        build: BuildId::generate(),
        execution: ExecutionId::generate(),
        state: SandboxState::Running,
        started_at: now(),
        end_at: now() + Duration::seconds(300),
        ended_at: None,
        end_reason: None,
        pause: None,
        details: SandboxDetails {
            metadata: [("a key".to_owned(), "ä=&%".to_owned())].into(),
            network: Some(NetworkConfig { deny_out: Some(vec!["0.0.0.0/0".into()]), ..Default::default() }),
            allow_internet_access: Some(false),
            cpu_count: 2,
            memory_mib: 512,
            disk_mib: 1024,
            envd_version: "0.6.13".to_owned(),
            ..Default::default()
        },
    }
}

async fn secrets_are_made_once(store: &impl Store) -> Result<(), StoreError> {
    assert_eq!(store.secret("seed", &[1, 2]).await?, [1, 2]);
    assert_eq!(store.secret("seed", &[3, 4]).await?, [1, 2]);
    assert_eq!(store.secret("other", &[3, 4]).await?, [3, 4]);
    Ok(())
}

async fn teams_are_replaced_by_id_and_unique_by_slug(store: &impl Store) -> Result<(), StoreError> {
    let mut first = team("first");
    store.put_team(&first).await?;
    first.limits.concurrent_sandboxes = 1;
    first.egress = TeamEgress { deny: vec!["10.0.0.0/8".to_owned()], allow_only: Some(Vec::new()) };
    store.put_team(&first).await?;
    assert_eq!(store.teams().await?, [first]);
    let clash = store.put_team(&team("first")).await;
    assert!(matches!(clash, Err(StoreError::Conflict(_))), "{clash:?}");
    Ok(())
}

async fn keys_are_found_renamed_touched_and_deleted(store: &impl Store) -> Result<(), StoreError> {
    let owner = team("owner");
    store.put_team(&owner).await?;
    let mut key = ApiKey {
        id: KeyId::generate(),
        team: owner.id,
        name: "one".to_owned(),
        hash: "$sha256$abc".to_owned(),
        mask: Mask { prefix: "e2b_".into(), value_length: 40, first: "ab".into(), last: "wxyz".into() },
        created_at: now(),
        last_used: None,
    };
    store.insert_key(&key).await?;
    let twice = ApiKey { id: KeyId::generate(), ..key.clone() };
    assert!(matches!(store.insert_key(&twice).await, Err(StoreError::Conflict(_))));
    assert_eq!(store.keys().await?, [key.clone()]);
    assert_eq!(store.key_by_hash("$sha256$none").await?, None);

    key.name = "two".to_owned();
    key.last_used = Some(now());
    assert!(store.rename_key(owner.id, key.id, "two").await?);
    store.touch_keys(&[(key.id, key.last_used.expect("just set"))]).await?;
    store.touch_keys(&[(key.id, now() - Duration::hours(1))]).await?;
    assert_eq!(store.key_by_hash(&key.hash).await?, Some(key.clone()), "a late note does not turn time back");

    assert!(!store.rename_key(TeamId::generate(), key.id, "x").await?, "another team's key");
    assert!(!store.delete_key(TeamId::generate(), key.id).await?, "another team's key");
    assert!(store.delete_key(owner.id, key.id).await?);
    assert!(!store.delete_key(owner.id, key.id).await?);
    Ok(())
}

async fn templates_keep_names_builds_and_tags(store: &impl Store) -> Result<(), StoreError> {
    let owner = team("owner");
    store.put_team(&owner).await?;
    let mut record = template(Some(owner.id), "base");
    let mut build = Build {
        id: BuildId::generate(),
        template: record.id.clone(),
        status: BuildStatus::Building,
        cpu_count: 2,
        memory_mib: 1024,
        disk_mib: 10_240,
        envd_version: "0.6.13".to_owned(),
        layers: vec!["top".into(), "bottom".into()],
        config: BuildConfig { default_user: Some("user".into()), ..Default::default() },
        snapshot: None,
        failure: None,
        created_at: now(),
        finished_at: None,
    };
    let tag = TagAssignment {
        template: record.id.clone(),
        tag: "default".to_owned(),
        build: build.id,
        created_at: now(),
    };
    store.put_template(&record, Some(&build), std::slice::from_ref(&tag)).await?;
    assert_eq!(store.templates().await?, [record.clone()]);
    assert_eq!(store.builds().await?, [build.clone()]);

    build.status = BuildStatus::Ready;
    build.finished_at = Some(now());
    build.layers.insert(0, "more".into());
    build.failure = Some(BuildFailure { message: "no".into(), step: Some("1".into()) });
    assert!(store.put_build(&build).await?);
    assert!(!store.put_build(&Build { id: BuildId::generate(), ..build.clone() }).await?);
    assert_eq!(store.builds().await?, [build.clone()]);

    let more = TagAssignment { tag: "v1".into(), ..tag.clone() };
    store.assign_tags(std::slice::from_ref(&more)).await?;
    assert_eq!(store.tag_assignments().await?, [tag.clone(), more]);
    assert_eq!(store.remove_tags(&record.id, &["v1".into(), "v2".into()]).await?, 1);

    let spawned = now();
    store.count_spawns(&[(record.id.clone(), 3, spawned)]).await?;
    record.names.push(TemplateName { namespace: Some("owner".into()), alias: "base".into() });
    record.public = false;
    store.put_template(&record, None, &[]).await?;
    record.spawn_count = 3;
    record.last_spawned = Some(spawned);
    assert_eq!(store.templates().await?, [record.clone()], "names in order, spawns kept");
    assert_eq!(store.tag_assignments().await?, [tag]);

    assert!(store.delete_template(&record.id).await?);
    assert!(!store.delete_template(&record.id).await?);
    assert!(store.templates().await?.is_empty());
    assert!(store.builds().await?.is_empty());
    assert!(store.tag_assignments().await?.is_empty());
    Ok(())
}

async fn names_belong_to_one_template(store: &impl Store) -> Result<(), StoreError> {
    let first = template(None, "base");
    store.put_template(&first, None, &[]).await?;
    let clash = store.put_template(&template(None, "base"), None, &[]).await;
    assert!(matches!(clash, Err(StoreError::Conflict(_))), "{clash:?}");
    assert_eq!(store.templates().await?, [first], "the refused one left nothing behind");
    Ok(())
}

async fn sandboxes_live_and_end(store: &impl Store) -> Result<(), StoreError> {
    let mut record = sandbox();
    store.insert_sandbox(&record, None).await?;
    assert!(matches!(store.insert_sandbox(&record, None).await, Err(StoreError::Conflict(_))));
    assert_eq!(store.sandbox(&record.id).await?, Some(record.clone()));

    record.end_at += Duration::microseconds(1);
    record.details.network = None;
    store.set_sandbox_end(&record.id, record.end_at).await?;
    store.set_sandbox_details(&record.id, &record.details).await?;
    assert_eq!(store.open_sandboxes().await?, [record.clone()]);

    record.state = SandboxState::Ended;
    record.ended_at = Some(now());
    record.end_reason = Some("request".to_owned());
    store.finish_sandbox(&record.id, record.ended_at.expect("just set"), "request").await?;
    store.finish_sandbox(&record.id, now() + Duration::hours(1), "timeout").await?;
    store.set_sandbox_end(&record.id, now() + Duration::hours(1)).await?;
    assert_eq!(store.sandbox(&record.id).await?, Some(record.clone()), "ended for good");
    assert!(store.open_sandboxes().await?.is_empty());
    assert_eq!(store.sandbox(&SandboxId::generate()).await?, None);
    Ok(())
}

async fn sandboxes_are_paused_and_resumed(store: &impl Store) -> Result<(), StoreError> {
    let mut record = sandbox();
    store.insert_sandbox(&record, None).await?;
    record.state = SandboxState::Paused;
    record.pause = Some(Pause {
        snapshot: SnapshotId::generate(),
        owned: true,
        memory: true,
        captured_from: record.id.clone(),
        at: now(),
        unresponsive: false,
    });
    assert!(store.put_sandbox(&record).await?);
    assert_eq!(store.open_sandboxes().await?, [record.clone()]);

    record.state = SandboxState::Running;
    record.pause = None;
    record.execution = ExecutionId::generate();
    record.started_at += Duration::seconds(9);
    record.end_at += Duration::seconds(9);
    assert!(store.put_sandbox_quickly(&record).await?);
    store.flush().await?;
    assert_eq!(store.sandbox(&record.id).await?, Some(record.clone()));

    store.finish_sandbox(&record.id, now(), "request").await?;
    assert!(!store.put_sandbox(&record).await?, "an ended one stays ended");
    assert!(!store.put_sandbox_quickly(&record).await?, "also for who is in a hurry");
    assert!(!store.put_sandbox(&sandbox()).await?, "there is none");
    Ok(())
}

async fn snapshots_are_builds(store: &impl Store) -> Result<(), StoreError> {
    let record = Template { names: Vec::new(), ..template(None, "unused") };
    let build = Build {
        id: BuildId::generate(),
        template: record.id.clone(),
        status: BuildStatus::Ready,
        cpu_count: 2,
        memory_mib: 1024,
        disk_mib: 10_240,
        envd_version: "0.6.13".to_owned(),
        layers: vec!["top".into()],
        config: BuildConfig::default(),
        snapshot: Some(BuildSnapshot {
            id: SnapshotId::generate(),
            memory: true,
            sandbox: SandboxId::generate(),
            base: TemplateId::generate(),
            warm_start: false,
        }),
        failure: None,
        created_at: now(),
        finished_at: Some(now()),
    };
    let tag = |build: BuildId| TagAssignment {
        template: record.id.clone(),
        tag: "default".to_owned(),
        build,
        created_at: now(),
    };
    store.put_template(&record, Some(&build), &[tag(build.id)]).await?;
    let second = Build { id: BuildId::generate(), ..build.clone() };
    store.put_template(&record, Some(&second), &[tag(second.id)]).await?;
    store.delete_builds(&[build.id, BuildId::generate()]).await?;
    assert_eq!(store.builds().await?, std::slice::from_ref(&second));
    let tags = store.tag_assignments().await?;
    assert_eq!(
        tags.iter().map(|tag| tag.build).collect::<Vec<_>>(),
        [second.id],
        "a tag goes with its build"
    );
    Ok(())
}

async fn idempotency_keys_are_unique(store: &impl Store) -> Result<(), StoreError> {
    let first = sandbox();
    let key = Idempotency {
        team: first.team,
        key: "k-1".to_owned(),
        body_hash: [9; 32],
        sandbox: first.id.clone(),
        created_at: now(),
    };
    store.insert_sandbox(&first, Some(&key)).await?;
    assert_eq!(store.idempotency(first.team, "k-1").await?, Some(key.clone()));
    assert_eq!(store.idempotency(TeamId::generate(), "k-1").await?, None);

    let second = sandbox();
    let clash = store.insert_sandbox(&second, Some(&key)).await;
    assert!(matches!(clash, Err(StoreError::Conflict(_))), "{clash:?}");
    assert_eq!(store.sandbox(&second.id).await?, None, "both or neither");
    Ok(())
}

async fn old_records_are_pruned(store: &impl Store) -> Result<(), StoreError> {
    let (old, fresh, running) = (sandbox(), sandbox(), sandbox());
    for record in [&old, &fresh, &running] {
        store.insert_sandbox(record, None).await?;
    }
    store.finish_sandbox(&old.id, now() - Duration::days(8), "timeout").await?;
    store.finish_sandbox(&fresh.id, now(), "timeout").await?;
    assert_eq!(store.prune(now() - Duration::days(7)).await?, 1);
    assert!(store.sandbox(&old.id).await?.is_none());
    assert!(store.sandbox(&fresh.id).await?.is_some());
    assert!(store.sandbox(&running.id).await?.is_some());
    Ok(())
}
