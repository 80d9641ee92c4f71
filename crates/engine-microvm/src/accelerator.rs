//! What executes the guest's instructions: the processor through KVM, or QEMU's emulation (TCG).
//! Emulation isolates as well but is slow, so it is only taken when asked for by name.
//! A saved state belongs to one accelerator and one kind of processor.

use std::fs;
use std::time::{Duration, Instant};

use engine::Isolation;

use crate::vm::command_line::MachineType;

/// The accelerator in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accelerator {
    /// Hardware virtualisation.
    Kvm,
    /// Software emulation.
    Tcg {
        /// What the guest's time stamp counter runs at, kHz: the host's own.
        tsc_khz: u64,
    },
}

impl Accelerator {
    /// Emulation on this machine.
    #[must_use]
    pub fn tcg() -> Self {
        Self::Tcg { tsc_khz: measure_tsc_khz() }
    }

    pub(crate) fn isolation(&self) -> Isolation {
        match self {
            Self::Kvm => Isolation::HardwareVm,
            Self::Tcg { .. } => Isolation::EmulatedVm,
        }
    }

    pub(crate) fn summary(&self, qemu: &str, machine: MachineType) -> String {
        let machine = machine.name();
        match self {
            Self::Kvm => format!(
                "every sandbox its own kernel in a virtual machine (QEMU {qemu}, {machine}, KVM); a break-out needs a bug in QEMU or KVM \
                 and then meets an unprivileged user, an empty file system and seccomp"
            ),
            Self::Tcg { .. } => format!(
                "every sandbox its own kernel in an emulated machine (QEMU {qemu}, {machine}, no KVM: several times slower); a break-out \
                 needs a bug in QEMU and then meets an unprivileged user, an empty file system and seccomp"
            ),
        }
    }

    /// What a saved state depends on besides QEMU: two hosts with equal answers can exchange states.
    pub(crate) fn fingerprint(&self) -> String {
        match self {
            Self::Kvm => format!("kvm {}", processor()),
            Self::Tcg { .. } => "tcg".into(),
        }
    }
}

/// The features that `-cpu host` gives to guests, as the kernel lists them.
fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let wanted = ["vendor_id", "cpu family", "model", "stepping", "microcode", "flags"];
    let first = text.split("\n\n").next().unwrap_or_default();
    let lines: Vec<&str> = first
        .lines()
        .filter(|line| line.split(':').next().is_some_and(|name| wanted.contains(&name.trim())))
        .collect();
    lines.join("\n")
}

/// Counts the time stamp counter against the clock: QEMU's emulation shows the guest the host's.
fn measure_tsc_khz() -> u64 {
    const WINDOW: Duration = Duration::from_millis(20);
    let (begun, first) = (Instant::now(), time_stamp());
    while begun.elapsed() < WINDOW {
        std::hint::spin_loop();
    }
    let (ticks, time) = (time_stamp().wrapping_sub(first), begun.elapsed());
    u64::try_from(u128::from(ticks) * 1_000_000 / time.as_nanos().max(1)).unwrap_or(0)
}

#[cfg(target_arch = "x86_64")]
fn time_stamp() -> u64 {
    // SAFETY: reads a register that every x86-64 processor has.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn time_stamp() -> u64 {
    0
}
