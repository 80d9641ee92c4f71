//! The first process of a microVM's guest. It prepares the sandbox (`boot`, `network`), starts envd
//! in namespaces of its own (`exec_envd`), and then serves the host as the guest agent (`agent`)
//! until envd ends; then it powers off.
//!
//! User code is root of this kernel and can take over the guest agent, so the host trusts nothing
//! that it sends.
#![forbid(unsafe_code)]

mod agent;
mod boot;
mod calls;
mod cgroup;
mod channel;
mod devices;
mod error;
mod exec_envd;
mod network;
mod relay;
mod uevents;

use std::io::{self, Write};
use std::process::ExitCode;

/// Argument with which the guest agent starts itself again to execute envd.
const EXEC_ENVD: &str = "become-envd";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some(EXEC_ENVD) {
        let failure = exec_envd::run();
        // The guest agent reads this output.
        let _ = write!(io::stdout(), "{failure}");
        return ExitCode::FAILURE;
    }
    if std::process::id() != 1 {
        let _ = writeln!(io::stderr(), "guest-init must be the first process of a microVM");
        return ExitCode::FAILURE;
    }
    let failure = agent::run();
    let _ = writeln!(io::stderr(), "guest-init: {failure}");
    agent::power_off()
}
