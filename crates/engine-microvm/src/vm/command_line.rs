//! QEMU's command line: one machine, the same devices in the same order for a boot and for a clone, since a saved state is matched to
//! them by their order and names.
//! No balloon: its pages would come out of memory that other guests share. Files are named as QEMU sees them.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};

use guest::Tools;
use guest_api::{BootOptions, PORT_NAME, network};

use crate::accelerator::Accelerator;

/// Where QEMU sees what it uses.
pub(crate) const BASE_DIR: &str = "base";
/// The sandbox's own directory.
pub(crate) const VM_DIR: &str = "vm";
/// What its memory begins with.
pub(crate) const MEMORY_DIR: &str = "memory";
/// The state it is loaded from.
pub(crate) const SNAPSHOT_DIR: &str = "state";
/// Kernel and initramfs.
pub(crate) const BOOT_DIR: &str = "boot";

/// Names of files in those directories.
pub(crate) const BASE_IMAGE_FILE: &str = "base.ext4";
pub(crate) const DISK_FILE: &str = "disk.raw";
/// Found again by this name among a process's mappings.
pub(crate) const MEMORY_FILE: &str = "guest-memory";
pub(crate) const DEVICES_FILE: &str = "devices";
pub(crate) const KERNEL_FILE: &str = "vmlinux";
pub(crate) const INITRAMFS_FILE: &str = "initramfs";

/// What a guest has of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct VmSize {
    /// Virtual processors.
    pub(crate) cpus: u32,
    /// Memory, MiB.
    pub(crate) memory_mib: u32,
}

/// The machine that QEMU plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MachineType {
    /// `microvm`: no PCI, no legacy devices. The least to attack, the fastest to boot.
    #[default]
    Microvm,
    /// `q35`: a PC with PCI, without the devices that nobody needs here. For hosts where guests do not boot on the other.
    Q35,
}

impl MachineType {
    /// QEMU's name for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Microvm => "microvm",
            Self::Q35 => "q35",
        }
    }

    fn options(self) -> &'static str {
        match self {
            Self::Microvm => "microvm,memory-backend=ram0,suppress-vmdesc=on",
            Self::Q35 => {
                "q35,memory-backend=ram0,suppress-vmdesc=on,vmport=off,smm=off,hpet=off,sata=off,smbus=off,usb=off,i8042=off"
            }
        }
    }

    fn firmware(self) -> &'static str {
        match self {
            Self::Microvm => "qboot.rom",
            Self::Q35 => "bios-256k.bin",
        }
    }

    /// What the names of virtio devices end with.
    fn bus(self) -> &'static str {
        match self {
            Self::Microvm => "device",
            Self::Q35 => "pci",
        }
    }
}

/// How a machine begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StartMode {
    /// By starting its kernel.
    Boot(BootOptions),
    /// By loading a saved state, once told to.
    Load,
}

/// InheritedFds that QEMU inherits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InheritedFds {
    pub(crate) tap: i32,
    pub(crate) monitor: i32,
    pub(crate) agent: i32,
    /// KVM's device, if that is the accelerator.
    pub(crate) kvm: Option<i32>,
}

impl InheritedFds {
    /// The numbers of these descriptors: QEMU inherits them unchanged.
    pub(crate) fn new(tap: &OwnedFd, monitor: &OwnedFd, agent: &OwnedFd, kvm: Option<&OwnedFd>) -> Self {
        Self {
            tap: tap.as_raw_fd(),
            monitor: monitor.as_raw_fd(),
            agent: agent.as_raw_fd(),
            kvm: kvm.map(AsRawFd::as_raw_fd),
        }
    }
}

/// The program, and its arguments.
pub(crate) fn command_line(
    accelerator: &Accelerator,
    machine: MachineType,
    size: VmSize,
    start_mode: &StartMode,
    fds: InheritedFds,
) -> (&'static str, Vec<OsString>) {
    let InheritedFds { tap, monitor, agent, kvm } = fds;
    let VmSize { cpus, memory_mib } = size;
    let bus = machine.bus();
    // No boot from the network.
    let rom = if machine == MachineType::Q35 { ",romfile=" } else { "" };
    let mac = network::GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
    let (accel, cpu) = match accelerator {
        Accelerator::Kvm => ("kvm,device=/dev/fdset/1".to_owned(), "host,migratable=on"),
        Accelerator::Tcg { .. } => ("tcg,tb-size=64".to_owned(), "max"),
    };
    let mut line = vec![
        "-machine".to_owned(),
        machine.options().into(),
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
        "-L".into(),
        "/usr/share/seabios".into(),
        "-bios".into(),
        machine.firmware().into(),
        "-object".into(),
        // Private and read-only: whatever QEMU writes there is its own copy, and it could not change the file if it tried.
        format!(
            "memory-backend-file,id=ram0,size={memory_mib}M,mem-path=/{MEMORY_DIR}/{MEMORY_FILE},share=off,readonly=on,rom=off"
        ),
        "-blockdev".into(),
        format!(
            "driver=raw,node-name=base,read-only=on,file.driver=file,file.locking=off,file.filename=/{BASE_DIR}/{BASE_IMAGE_FILE}"
        ),
        "-device".into(),
        format!("virtio-blk-{bus},drive=base,serial=base"),
        // A running sandbox does not outlive a loss of power, so its own flushes need not reach the disk; captures are synced.
        "-blockdev".into(),
        format!(
            "driver=raw,node-name=own,discard=unmap,cache.no-flush=on,file.driver=file,file.locking=off,file.filename=/{VM_DIR}/{DISK_FILE},\
             file.discard=unmap,file.cache.no-flush=on"
        ),
        "-device".into(),
        format!("virtio-blk-{bus},drive=own,serial=own,werror=report,rerror=report"),
        "-netdev".into(),
        format!("tap,id=net0,fd={tap}"),
        "-device".into(),
        // No announcement of itself after a load: nobody in this network has to learn where it is.
        format!("virtio-net-{bus},netdev=net0,mac={mac},guest_announce=off{rom}"),
        "-chardev".into(),
        format!("socket,id=agent,fd={agent},server=on,wait=off"),
        "-device".into(),
        format!("virtio-serial-{bus}"),
        "-device".into(),
        format!("virtserialport,chardev=agent,name={PORT_NAME}"),
        "-object".into(),
        "rng-builtin,id=rng0".into(),
        "-device".into(),
        format!("virtio-rng-{bus},rng=rng0"),
        "-chardev".into(),
        "ringbuf,id=console,size=16384".into(),
        "-serial".into(),
        "chardev:console".into(),
        "-chardev".into(),
        format!("socket,id=monitor,fd={monitor},server=on,wait=off"),
        "-mon".into(),
        "chardev=monitor,mode=control".into(),
        // A saved state says nothing about whether the machine ran: it goes on when it is loaded. The state of the devices alone
        // has neither section anyway. (Without the description of its format, too: with it and without the configuration QEMU
        // 10.0 aborts.)
        "-global".into(),
        "migration.store-global-state=off".into(),
        "-global".into(),
        "migration.send-configuration=off".into(),
    ];
    if let Some(kvm) = kvm {
        line.extend(["-add-fd".into(), format!("fd={kvm},set=1")]);
    }
    match start_mode {
        StartMode::Boot(options) => line.extend([
            "-kernel".into(),
            format!("/{BOOT_DIR}/{KERNEL_FILE}"),
            "-initrd".into(),
            format!("/{BOOT_DIR}/{INITRAMFS_FILE}"),
            "-append".into(),
            kernel_parameters(accelerator, options),
        ]),
        StartMode::Load => line.extend(["-incoming", "defer"].map(String::from)),
    }
    let program = match (accelerator, machine) {
        (Accelerator::Kvm, MachineType::Microvm) => Tools::QEMU_KVM,
        _ => Tools::QEMU,
    };
    (program, line.into_iter().map(OsString::from).collect())
}

/// Freed pages are zeroed, so that they cost nothing in a captured state.
fn kernel_parameters(accelerator: &Accelerator, options: &BootOptions) -> String {
    let clock = match accelerator {
        Accelerator::Kvm => String::new(),
        // A boot that has to measure the clock hangs now and then. And the kernel would not trust it, as it cannot know that both processors
        // have the same: without it there is nothing but 250 interrupts a second, which keep an idle guest at work.
        Accelerator::Tcg { tsc_khz } => format!(" tsc_early_khz={tsc_khz} tsc=reliable"),
    };
    format!("console=ttyS0 quiet reboot=t panic=-1 init_on_free=1{clock} {}", options.to_cmdline())
}
