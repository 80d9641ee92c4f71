//! Gives memory of past bursts back to the host: thousands of connections leave a heap full of holes, which the allocator would keep.

use std::time::Duration;

/// How often the heap is looked at.
const INTERVAL: Duration = Duration::from_secs(10);
/// Unused memory that is kept for the next requests, bytes.
const KEPT: u64 = 32 << 20;

/// Trims the heap when much of it is unused, for as long as the server runs.
pub(super) async fn keep_trimmed() {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let trim = || {
            let unused = sys::unused_heap();
            if unused > KEPT {
                sys::trim_heap();
                tracing::debug!(unused, "trimmed the heap");
            }
        };
        // The task only fails if the runtime is shutting down.
        let _ = tokio::task::spawn_blocking(trim).await;
    }
}
