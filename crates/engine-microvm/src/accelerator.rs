//! The accelerator that executes guests: KVM, or QEMU's emulation (TCG).
//!
//! Emulation isolates as well as KVM but is slow, so it is used only when the operator asks for it.
//! A memory snapshot can be restored only with the accelerator and kind of processor that it was
//! captured with.

use std::fs;
use std::time::{Duration, Instant};

use engine::Isolation;

use crate::vm::command_line::MachineType;

/// The accelerator in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accelerator {
    /// Hardware virtualization.
    Kvm,
    /// Software emulation.
    Tcg {
        /// Frequency of the guest's time stamp counter, kHz: QEMU shows the host's own.
        tsc_khz: u64,
    },
}

impl Accelerator {
    /// Emulation on this host; measures the time stamp counter's frequency for 20 ms.
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
                "every sandbox has its own kernel in a virtual machine (QEMU {qemu}, {machine}, KVM); a break-out needs a bug in QEMU or KVM \
                 and then meets an unprivileged user, an empty file system and seccomp"
            ),
            Self::Tcg { .. } => format!(
                "every sandbox has its own kernel in an emulated machine (QEMU {qemu}, {machine}, no KVM: several times slower); a break-out \
                 needs a bug in QEMU and then meets an unprivileged user, an empty file system and seccomp"
            ),
        }
    }

    /// Identifies what memory snapshots depend on besides QEMU: hosts with equal fingerprints can
    /// restore each other's.
    pub(crate) fn fingerprint(&self) -> String {
        match self {
            Self::Kvm => format!("kvm {}", processor()),
            Self::Tcg { .. } => "tcg".into(),
        }
    }
}

/// Returns the lines of `/proc/cpuinfo` that determine what `-cpu host` gives to guests.
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

/// Measures the frequency of the time stamp counter against the monotonic clock, in kHz.
fn measure_tsc_khz() -> u64 {
    const WINDOW: Duration = Duration::from_millis(20);
    let (started, first) = (Instant::now(), time_stamp());
    while started.elapsed() < WINDOW {
        std::hint::spin_loop();
    }
    let (ticks, time) = (time_stamp().wrapping_sub(first), started.elapsed());
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
