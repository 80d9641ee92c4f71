//! A program of the operator's that publishes records.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// Maximum time of one call.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Runs the program for each value.
///
/// # Errors
/// It cannot be started, takes too long, or exits with another code than 0. The error has the end of what it said.
pub(crate) async fn run(program: &Path, action: &str, record: &str, values: &[String]) -> Result<(), String> {
    for value in values {
        let mut command = Command::new(program);
        command.args([action, record, value]).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(TIMEOUT, command.output())
            .await
            .map_err(|_| format!("{} took longer than {} s", program.display(), TIMEOUT.as_secs()))?
            .map_err(|error| format!("{}: {error}", program.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.trim().lines().last().unwrap_or_default();
            return Err(format!("{} {action}: {}: {last}", program.display(), output.status));
        }
    }
    Ok(())
}
