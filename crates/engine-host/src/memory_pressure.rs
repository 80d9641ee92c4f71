//! The kernel's notice that processes wait for memory (pressure stall information, `Documentation/accounting/psi.rst`).
//! A trigger is registered by writing to the file; the kernel then signals an exceptional condition on it.

use std::fs::{File, OpenOptions};
use std::future::pending;
use std::io::{self, Write};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process waited for memory for 100 ms within a second.
const TRIGGER: &[u8] = b"some 100000 1000000\0";

/// Resolves once processes of this host have to wait for memory. Never resolves on a kernel without pressure stall information.
pub async fn memory_pressure() {
    match open_trigger() {
        Ok(trigger) => match trigger.ready(Interest::PRIORITY).await {
            Ok(_) => {}
            Err(_) => pending().await,
        },
        Err(error) => {
            tracing::debug!(%error, "this kernel does not report memory pressure");
            pending::<()>().await;
        }
    }
}

fn open_trigger() -> io::Result<AsyncFd<File>> {
    let mut file = OpenOptions::new().read(true).write(true).open("/proc/pressure/memory")?;
    file.write_all(TRIGGER)?;
    // SAFETY: a `File` keeps its descriptor open and the same for as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }?)
}
