//! QEMU's command line: one machine, the same devices in the same order for a boot and for a clone, since a saved state is matched to
//! them by their order and names.
//! No balloon: its pages would come out of memory that other guests share. Files are named as QEMU sees them.

use std::ffi::OsString;

use guest::Tools;
use guest_api::{BootOptions, PORT_NAME, network};

use crate::accelerator::Accelerator;

/// Where QEMU sees what it uses.
pub(crate) const BASE: &str = "base";
/// The sandbox's own folder.
pub(crate) const OWN: &str = "vm";
/// What its memory begins with, and the devices' state.
pub(crate) const MEMORY: &str = "memory";
/// Kernel and initramfs.
pub(crate) const BOOT: &str = "boot";

/// Names of files in those folders.
pub(crate) const BASE_IMAGE: &str = "base.ext4";
pub(crate) const DISK: &str = "disk.raw";
/// Found again by this name among a process's mappings.
pub(crate) const GUEST_MEMORY: &str = "guest-memory";
pub(crate) const DEVICES: &str = "devices";
pub(crate) const KERNEL: &str = "vmlinux";
pub(crate) const INITRAMFS: &str = "initramfs";

/// What a guest has of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Shape {
    /// Virtual processors.
    pub(crate) cpus: u32,
    /// Memory, MiB.
    pub(crate) memory_mib: u32,
}

/// How a machine begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// By starting its kernel.
    Boot(BootOptions),
    /// By loading a saved state, once told to.
    Load,
}

/// Descriptors that QEMU inherits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptors {
    pub(crate) tap: i32,
    pub(crate) monitor: i32,
    pub(crate) agent: i32,
    /// KVM's device, if that is the accelerator.
    pub(crate) kvm: Option<i32>,
}

/// The program, and its arguments.
pub(crate) fn command_line(
    accelerator: &Accelerator,
    shape: Shape,
    beginning: &Beginning,
    fds: Descriptors,
) -> (&'static str, Vec<OsString>) {
    let Descriptors { tap, monitor, agent, kvm } = fds;
    let Shape { cpus, memory_mib } = shape;
    let mac = network::GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
    let (accel, cpu) = match accelerator {
        Accelerator::Kvm => ("kvm,device=/dev/fdset/1".to_owned(), "host,migratable=on"),
        Accelerator::Tcg { .. } => ("tcg,tb-size=64".to_owned(), "max"),
    };
    let mut line = vec![
        "-machine".to_owned(),
        "microvm,memory-backend=ram0".into(),
        "-accel".into(),
        accel,
        "-cpu".into(),
        cpu.into(),
        "-m".into(),
        format!("{memory_mib}M"),
        "-smp".into(),
        cpus.to_string(),
        "-nodefaults".into(),
        "-no-user-config".into(),
        "-no-reboot".into(),
        "-display".into(),
        "none".into(),
        "-sandbox".into(),
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into(),
        "-L".into(),
        "/usr/share/qemu".into(),
        "-bios".into(),
        "qboot.rom".into(),
        "-object".into(),
        // Private and read-only: whatever QEMU writes there is its own copy, and it could not change the file if it tried.
        format!(
            "memory-backend-file,id=ram0,size={memory_mib}M,mem-path=/{MEMORY}/{GUEST_MEMORY},share=off,readonly=on,rom=off"
        ),
        "-blockdev".into(),
        format!(
            "driver=raw,node-name=base,read-only=on,file.driver=file,file.locking=off,file.filename=/{BASE}/{BASE_IMAGE}"
        ),
        "-device".into(),
        "virtio-blk-device,drive=base,serial=base".into(),
        // A running sandbox does not outlive a loss of power, so its own flushes need not reach the disk; captures are synced.
        "-blockdev".into(),
        format!(
            "driver=raw,node-name=own,discard=unmap,cache.no-flush=on,file.driver=file,file.locking=off,file.filename=/{OWN}/{DISK},\
             file.discard=unmap,file.cache.no-flush=on"
        ),
        "-device".into(),
        "virtio-blk-device,drive=own,serial=own,werror=report,rerror=report".into(),
        "-netdev".into(),
        format!("tap,id=net0,fd={tap}"),
        "-device".into(),
        format!("virtio-net-device,netdev=net0,mac={mac}"),
        "-chardev".into(),
        format!("socket,id=agent,fd={agent},server=on,wait=off"),
        "-device".into(),
        "virtio-serial-device".into(),
        "-device".into(),
        format!("virtserialport,chardev=agent,name={PORT_NAME}"),
        "-object".into(),
        "rng-builtin,id=rng0".into(),
        "-device".into(),
        "virtio-rng-device,rng=rng0".into(),
        "-chardev".into(),
        "ringbuf,id=console,size=16384".into(),
        "-serial".into(),
        "chardev:console".into(),
        "-chardev".into(),
        format!("socket,id=monitor,fd={monitor},server=on,wait=off"),
        "-mon".into(),
        "chardev=monitor,mode=control".into(),
    ];
    if let Some(kvm) = kvm {
        line.extend(["-add-fd".into(), format!("fd={kvm},set=1")]);
    }
    match beginning {
        Beginning::Boot(options) => line.extend([
            "-kernel".into(),
            format!("/{BOOT}/{KERNEL}"),
            "-initrd".into(),
            format!("/{BOOT}/{INITRAMFS}"),
            "-append".into(),
            kernel_parameters(accelerator, options),
        ]),
        Beginning::Load => {
            line.extend(
                ["-incoming", "defer", "-global", "migration.send-configuration=off"].map(String::from),
            );
        }
    }
    let program = match accelerator {
        Accelerator::Kvm => Tools::QEMU_KVM,
        Accelerator::Tcg { .. } => Tools::QEMU,
    };
    (program, line.into_iter().map(OsString::from).collect())
}

/// Freed pages are zeroed, so that they cost nothing in a captured state.
fn kernel_parameters(accelerator: &Accelerator, options: &BootOptions) -> String {
    let clock = match accelerator {
        Accelerator::Kvm => String::new(),
        // Without it a boot in emulation hangs now and then while it measures the clock.
        Accelerator::Tcg { tsc_khz } => format!(" tsc_early_khz={tsc_khz}"),
    };
    format!("console=ttyS0 quiet reboot=t panic=-1 init_on_free=1{clock} {}", options.to_cmdline())
}
