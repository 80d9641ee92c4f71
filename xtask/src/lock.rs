//! One test or benchmark run at a time in a checkout: runs share its target directory and what tests keep there.

use std::fs::{File, TryLockError};

use crate::run::{self, Outcome};

/// Takes the checkout's lock, which is held until the returned file is closed. Blocks while another run holds it, and says so.
///
/// # Errors
///
/// When the lock file cannot be created or locked.
pub(crate) fn take() -> Outcome<File> {
    let path = run::target().join("xtask.lock");
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    std::fs::create_dir_all(run::target()).map_err(failed)?;
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!(
                "waiting for another `cargo xtask` run in this checkout, which holds {}",
                path.display()
            );
            file.lock().map_err(failed)?;
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    Ok(file)
}
