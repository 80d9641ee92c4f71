//! QEMU's command line, which describes the VM.
//!
//! A boot and a restore have the same devices in the same order, because saved devices are matched
//! by order and name. There is no balloon device: its pages would come out of memory that other
//! guests share. Paths are those in QEMU's root directory.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};

use guest::Tools;
use guest_api::{BootOptions, PORT_NAME, network};

use crate::accelerator::Accelerator;

/// Directory of the base image in QEMU's root.
pub(crate) const BASE_DIR: &str = "base";
/// Directory with the sandbox's own disk.
pub(crate) const VM_DIR: &str = "vm";
/// Directory of the file that the memory starts from.
pub(crate) const MEMORY_DIR: &str = "memory";
/// Directory of the snapshot that is restored.
pub(crate) const SNAPSHOT_DIR: &str = "state";
/// Directory of kernel and initramfs.
pub(crate) const BOOT_DIR: &str = "boot";

/// Names of the files in those directories.
pub(crate) const BASE_IMAGE_FILE: &str = "base.ext4";
pub(crate) const DISK_FILE: &str = "disk.raw";
/// The guest's memory; it is found by this name among the mappings of QEMU.
pub(crate) const MEMORY_FILE: &str = "guest-memory";
pub(crate) const DEVICES_FILE: &str = "devices";
pub(crate) const KERNEL_FILE: &str = "vmlinux";
pub(crate) const INITRAMFS_FILE: &str = "initramfs";

/// Processors and memory of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct VmSize {
    /// Number of virtual processors.
    pub(crate) cpus: u32,
    /// Memory, MiB.
    pub(crate) memory_mib: u32,
}

/// QEMU's machine type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MachineType {
    /// `microvm`: no PCI, no legacy devices. Has the least code to attack and boots the fastest.
    #[default]
    Microvm,
    /// `q35`: a PC with PCI, without the devices that are not needed. For hosts where guests do not
    /// boot on `microvm`.
    Q35,
}

impl MachineType {
    /// QEMU's name of the machine type.
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

    /// Suffix of the names of virtio devices.
    fn bus(self) -> &'static str {
        match self {
            Self::Microvm => "device",
            Self::Q35 => "pci",
        }
    }
}

/// How a VM starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StartMode {
    /// Boots its kernel.
    Boot(BootOptions),
    /// Waits for the command to load a snapshot.
    Load,
}

/// Numbers of the descriptors that QEMU inherits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InheritedFds {
    pub(crate) tap: i32,
    pub(crate) monitor: i32,
    pub(crate) agent: i32,
    /// `/dev/kvm`, if KVM is the accelerator.
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

/// Returns the path of QEMU's program, without the leading slash, and its arguments.
pub(crate) fn command_line(
    accelerator: &Accelerator,
    machine_type: MachineType,
    size: VmSize,
    start_mode: &StartMode,
    fds: InheritedFds,
) -> (&'static str, Vec<OsString>) {
    let mut line = Arguments::default();
    add_machine(&mut line, accelerator, machine_type, size);
    add_memory_and_disks(&mut line, machine_type, size);
    add_devices(&mut line, machine_type, fds);
    add_migration_settings(&mut line);
    if let Some(kvm) = fds.kvm {
        line.add("-add-fd", format!("fd={kvm},set=1"));
    }
    match start_mode {
        StartMode::Boot(options) => {
            line.add("-kernel", format!("/{BOOT_DIR}/{KERNEL_FILE}"));
            line.add("-initrd", format!("/{BOOT_DIR}/{INITRAMFS_FILE}"));
            line.add("-append", kernel_parameters(accelerator, options));
        }
        StartMode::Load => line.add("-incoming", "defer"),
    }
    let program = match (accelerator, machine_type) {
        (Accelerator::Kvm, MachineType::Microvm) => Tools::QEMU_KVM,
        _ => Tools::QEMU,
    };
    (program, line.0)
}

/// The arguments of a command line so far.
#[derive(Debug, Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    /// Adds an option without a value.
    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }

    /// Adds an option with a value.
    fn add(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.extend([name.into(), value.into()]);
    }
}

fn add_machine(line: &mut Arguments, accelerator: &Accelerator, machine_type: MachineType, size: VmSize) {
    let (accel, cpu) = match accelerator {
        Accelerator::Kvm => ("kvm,device=/dev/fdset/1", "host,migratable=on"),
        Accelerator::Tcg { .. } => ("tcg,tb-size=64", "max"),
    };
    line.add("-machine", machine_type.options());
    line.add("-accel", accel);
    line.add("-cpu", cpu);
    line.add("-m", format!("{}M", size.memory_mib));
    line.add("-smp", size.cpus.to_string());
    line.flag("-nodefaults");
    line.flag("-no-user-config");
    line.flag("-no-reboot");
    line.add("-display", "none");
    line.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    line.add("-L", "/usr/share/qemu");
    line.add("-L", "/usr/share/seabios");
    line.add("-bios", machine_type.firmware());
}

fn add_memory_and_disks(line: &mut Arguments, machine_type: MachineType, size: VmSize) {
    let (bus, memory_mib) = (machine_type.bus(), size.memory_mib);
    // Mapped privately and read-only: what QEMU writes goes to its own copy of a page, and it cannot change the file.
    let memory = format!(
        "memory-backend-file,id=ram0,size={memory_mib}M,mem-path=/{MEMORY_DIR}/{MEMORY_FILE},share=off,readonly=on,rom=off"
    );
    line.add("-object", memory);
    let base = format!(
        "driver=raw,node-name=base,read-only=on,file.driver=file,file.locking=off,file.filename=/{BASE_DIR}/{BASE_IMAGE_FILE}"
    );
    line.add("-blockdev", base);
    line.add("-device", format!("virtio-blk-{bus},drive=base,serial=base"));
    // A running sandbox does not outlive a power failure, so its own flushes need not reach the disk; captures are synced.
    let own = format!(
        "driver=raw,node-name=own,discard=unmap,cache.no-flush=on,file.driver=file,file.locking=off,\
         file.filename=/{VM_DIR}/{DISK_FILE},file.discard=unmap,file.cache.no-flush=on"
    );
    line.add("-blockdev", own);
    line.add("-device", format!("virtio-blk-{bus},drive=own,serial=own,werror=report,rerror=report"));
}

fn add_devices(line: &mut Arguments, machine_type: MachineType, fds: InheritedFds) {
    let InheritedFds { tap, monitor, agent, .. } = fds;
    let bus = machine_type.bus();
    let mac = network::GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
    // No boot from the network.
    let rom = if machine_type == MachineType::Q35 { ",romfile=" } else { "" };
    line.add("-netdev", format!("tap,id=net0,fd={tap}"));
    // The guest does not announce itself after a restore: nothing in this network has to learn where it is.
    line.add("-device", format!("virtio-net-{bus},netdev=net0,mac={mac},guest_announce=off{rom}"));
    line.add("-chardev", format!("socket,id=agent,fd={agent},server=on,wait=off"));
    line.add("-device", format!("virtio-serial-{bus}"));
    line.add("-device", format!("virtserialport,chardev=agent,name={PORT_NAME}"));
    line.add("-object", "rng-builtin,id=rng0");
    line.add("-device", format!("virtio-rng-{bus},rng=rng0"));
    line.add("-chardev", "ringbuf,id=console,size=16384");
    line.add("-serial", "chardev:console");
    line.add("-chardev", format!("socket,id=monitor,fd={monitor},server=on,wait=off"));
    line.add("-mon", "chardev=monitor,mode=control");
}

/// Leaves two sections out of snapshots. A snapshot does not contain whether the VM ran: it is
/// resumed when it is loaded. Devices that are saved without memory have neither section anyway.
/// (`suppress-vmdesc` leaves out the description of the format, too: with that but without the
/// configuration section QEMU 10.0 aborts.)
fn add_migration_settings(line: &mut Arguments) {
    line.add("-global", "migration.store-global-state=off");
    line.add("-global", "migration.send-configuration=off");
}

/// Returns the kernel's command line. With `init_on_free`, pages that the guest frees are zero and
/// take no room in snapshots.
fn kernel_parameters(accelerator: &Accelerator, options: &BootOptions) -> String {
    let clock = match accelerator {
        Accelerator::Kvm => String::new(),
        // A boot that has to measure the clock hangs now and then. And the kernel would not trust
        // the clock, as it cannot know that both processors have the same one: without it 250
        // interrupts a second keep an idle guest at work.
        Accelerator::Tcg { tsc_khz } => format!(" tsc_early_khz={tsc_khz} tsc=reliable"),
    };
    format!("console=ttyS0 quiet reboot=t panic=-1 init_on_free=1{clock} {}", options.to_cmdline())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The `-device` options, in order.
    fn devices(
        accelerator: &Accelerator,
        machine_type: MachineType,
        start_mode: &StartMode,
    ) -> Vec<OsString> {
        let size = VmSize { cpus: 2, memory_mib: 512 };
        let fds = InheritedFds { tap: 3, monitor: 4, agent: 5, kvm: None };
        let (_, line) = command_line(accelerator, machine_type, size, start_mode, fds);
        line.windows(2).filter(|pair| pair[0] == "-device").map(|pair| pair[1].clone()).collect()
    }

    #[test]
    fn a_restored_vm_has_the_devices_of_a_booted_one() {
        let accelerator = Accelerator::Tcg { tsc_khz: 2_000_000 };
        let boot = StartMode::Boot(BootOptions { pids: 100, shm_mib: 256 });
        for machine_type in [MachineType::Microvm, MachineType::Q35] {
            let booted = devices(&accelerator, machine_type, &boot);
            assert_eq!(booted.len(), 6, "{booted:?}");
            assert_eq!(booted, devices(&accelerator, machine_type, &StartMode::Load));
        }
    }
}
