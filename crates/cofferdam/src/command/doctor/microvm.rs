//! Whether sandboxes can be virtual machines here: the parts, and a guest that is really booted with KVM.
//! Without them everything else works, so what is missing is a warning.
//! The boot is done once in an uptime of the machine; the server asks the same question.

use super::{DoctorArguments, Finding};
use crate::engines::{MACHINES, kvm_works, parts};

const CHECK: &str = "microvm";

pub(super) async fn check(arguments: &DoctorArguments) -> Finding {
    let (run_dir, tools) = (&arguments.run_dir, arguments.microvm.path(&arguments.data));
    let config = match parts(run_dir, arguments.envd.as_deref(), arguments.guest_init.as_deref(), &tools) {
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
    match kvm_works(&config, &MACHINES, &std::env::temp_dir()).await {
        Ok(machine) => {
            let machine = machine.name();
            Finding::ok(
                CHECK,
                format!(
                    "QEMU {qemu}, guest kernel {kernel}; KVM has booted a guest on the machine {machine}"
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
