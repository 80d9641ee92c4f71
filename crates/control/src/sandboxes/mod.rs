//! The life of a sandbox: `create` starts a sandbox ([`launch`] has the spec, [`launcher`] starts it), `go_live` adds it to the
//! `registry` and follows it, `connect`, `settings` and `lookup` serve its owner, `expiry` and `end` end it. `pause`, `resume`,
//! `snapshot`, `fork` and `rollback` are combinations of the engine's capture and restore (`capture`). `recovery` adopts the sandboxes
//! of an earlier server process.
//! Every change of a sandbox's state runs in its own task under the sandbox's [`TransitionLock`]. A change that has begun is finished,
//! even if the caller disconnects.

mod capture;
mod connect;
mod create;
mod discard;
mod egress;
mod egress_proxy;
mod end;
mod expiry;
mod fork;
mod frozen;
mod go_live;
mod idempotency;
mod identity_tokens;
mod launch;
mod launcher;
mod list;
mod logs;
mod lookup;
mod memory_kills;
mod pause;
mod paused;
mod recovery;
mod registry;
mod resume;
mod rollback;
mod running;
mod settings;
mod snapshot;
mod snapshot_list;
pub(crate) mod start_command;
mod time_limit;

pub use connect::WakeableSandbox;
pub use create::CreateRequest;
pub use egress::egress_policy;
pub use fork::ForkRequest;
pub use idempotency::IdempotencyKey;
pub use list::{ListQuery, Page};
pub use lookup::Access;
pub use pause::PauseRequest;
pub use running::{EndReason, RunningSandbox, SandboxInfo};
pub use settings::NetworkUpdate;
pub use snapshot_list::{SnapshotPage, SnapshotQuery, SnapshotSummary};

pub(crate) use discard::SnapshotCleaner;
pub(crate) use idempotency::InFlightCreates;
pub(crate) use launch::{LaunchSource, LaunchSpec};
pub(crate) use launcher::{KillOnDrop, Launcher, kill_unregistered};
pub(crate) use paused::PausedSandbox;
pub(crate) use registry::{AnySandbox, Registry};
pub(crate) use time_limit::{TimeLimit, check_max_timeout, check_timeout, max_timeout};

use std::sync::Arc;

use tokio::sync::OwnedMutexGuard;

/// Held across every change of a sandbox's state. A sandbox has the same lock from its start to its end, through every pause.
pub(crate) type TransitionLock = Arc<tokio::sync::Mutex<()>>;

/// Waits until no other task changes the sandbox's state. The caller must then check again in which state it is.
async fn begin_transition(lock: &TransitionLock) -> OwnedMutexGuard<()> {
    Arc::clone(lock).lock_owned().await
}
