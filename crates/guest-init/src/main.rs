//! The first process of a microVM's guest. It makes the machine a sandbox (`boot`, `network`), starts envd in namespaces of its own
//! (`stage`), and returns the host (`agent`) for as long as envd lives; then the machine is switched off.
//! User code is root of this kernel and could take the agent over, so the host believes nothing that comes from here.
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

/// The word with which the agent starts itself again, as what becomes envd.
const EXEC_ENVD: &str = "become-envd";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some(EXEC_ENVD) {
        let failure = exec_envd::run();
        // The agent waits for what is said here.
        let _ = write!(io::stdout(), "{failure}");
        return ExitCode::FAILURE;
    }
    if std::process::id() != 1 {
        let _ =
            writeln!(io::stderr(), "guest-init is the first process of a microVM; it does nothing elsewhere");
        return ExitCode::FAILURE;
    }
    let failure = agent::run();
    let _ = writeln!(io::stderr(), "guest-init: {failure}");
    agent::power_off()
}
