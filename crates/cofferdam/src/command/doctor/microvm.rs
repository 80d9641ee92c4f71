//! Checks whether sandboxes can be virtual machines: QEMU and a guest kernel are set up, and KVM boots a guest.
//! Containers work without, so a fault is a warning.
//! The guest is booted once per uptime of the host; the server uses the same outcome.

use super::{DoctorArguments, Finding};
use crate::engines::{MACHINE_TYPES, kvm_works, microvm_config};

const CHECK: &str = "microvm";

pub(super) async fn check(arguments: &DoctorArguments) -> Finding {
    let (run_dir, tools) = (&arguments.run_dir, arguments.microvm.path(&arguments.data));
    let config =
        match microvm_config(run_dir, arguments.envd.as_deref(), arguments.guest_init.as_deref(), &tools) {
            Ok(config) => config,
            Err(failure) => {
                let detail = format!("{failure}: no sandbox can have a kernel of its own");
                return Finding::warning(CHECK, detail, "cofferdam setup microvm");
            }
        };
    let (qemu, kernel) = (config.tools.qemu_version().to_owned(), config.tools.kernel_version().to_owned());
    if !rustix::process::geteuid().is_root() {
        let detail =
            format!("QEMU {qemu}, guest kernel {kernel}; whether KVM runs guests was not tried: needs root");
        return Finding::warning(CHECK, detail, "run doctor as root");
    }
    match kvm_works(&config, &MACHINE_TYPES, &std::env::temp_dir()).await {
        Ok(machine_type) => {
            let machine_type = machine_type.name();
            Finding::ok(
                CHECK,
                format!(
                    "QEMU {qemu}, guest kernel {kernel}; KVM boots a guest with machine type {machine_type}"
                ),
            )
        }
        Err(reason) => Finding::warning(
            CHECK,
            format!(
                "QEMU {qemu}, guest kernel {kernel}; KVM runs no guests here, so `--engine microvm` emulates them, several times \
                 slower: {reason}"
            ),
            "turn virtualisation on in the firmware, or nested virtualisation in the hypervisor, and load kvm_intel or kvm_amd",
        ),
    }
}
