//! Watches the disk of the data directory: its metrics, and a warning in the log before it is full.

use std::path::PathBuf;
use std::time::Duration;

use tracing::warn;

/// How often it is looked at.
const INTERVAL: Duration = Duration::from_secs(60);
/// Free space below which the log warns: a part of the disk, or this many bytes, whatever is less.
const LOW_PART: u64 = 10;
const LOW: u64 = 20 << 30;

/// Looks at the disk for as long as the server runs. Warns when space gets low, and again each time that what is left has halved.
pub(super) async fn watch(data_dir: PathBuf) {
    let mut warned = u64::MAX;
    loop {
        let dir = data_dir.clone();
        if let Ok(Ok(disk)) = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&dir)).await {
            let (free, size) = (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize);
            telemetry::set_disk(free, size);
            if let Some(level) = level(free, size, warned) {
                if level < warned {
                    warn!(
                        free_mib = free >> 20,
                        "the disk of the data directory is getting full: `cofferdam system df` shows what takes room, `system prune` removes what nothing uses"
                    );
                }
                warned = level;
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// What to remember as warned of, if that changes: the free space at the warning, or nothing once there is room again.
fn level(free: u64, size: u64, warned: u64) -> Option<u64> {
    let low = (size / LOW_PART).min(LOW);
    if free >= low {
        return (warned != u64::MAX).then_some(u64::MAX);
    }
    (warned == u64::MAX || free <= warned / 2).then_some(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_warns_once_for_each_halving() {
        const GIB: u64 = 1 << 30;
        let never = u64::MAX;
        assert_eq!(level(30 * GIB, 1000 * GIB, never), None);
        assert_eq!(level(19 * GIB, 1000 * GIB, never), Some(19 * GIB));
        assert_eq!(level(18 * GIB, 1000 * GIB, 19 * GIB), None);
        assert_eq!(level(9 * GIB, 1000 * GIB, 19 * GIB), Some(9 * GIB));
        assert_eq!(level(30 * GIB, 1000 * GIB, 9 * GIB), Some(never));
        assert_eq!(level(4 * GIB, 50 * GIB, never), Some(4 * GIB));
        assert_eq!(level(6 * GIB, 50 * GIB, never), None);
    }
}
