//! Boot: from a bare kernel to the sandbox's root file system. Loads modules, mounts disks, mounts
//! the overlay.
//!
//! The template's disk is the read-only one; the other is the sandbox's own. envd is in the
//! initramfs, as the uppermost lower layer of the overlay, so a new envd needs no new disks.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use guest_api::BootOptions;
use rustix::mount::{MountFlags, mount};

use crate::cgroup::SandboxCgroup;
use crate::channel::Channel;
use crate::devices::BootId;
use crate::error::InitError;
use crate::uevents::UeventSocket;
use crate::{cgroup, devices, network};

/// Mount point of the template's disk.
const BASE: &str = "/base";
/// Mount point of the sandbox's own disk.
const PRIVATE: &str = "/private";
/// Upper directory of the overlay, in [`PRIVATE`]: what the sandbox has written.
pub(crate) const UPPER: &str = "/private/upper";
const WORK: &str = "/private/work";
/// The layer with envd, in the initramfs.
const ENVD_LAYER: &str = "/envd-layer";
/// Mount point of the sandbox's root file system.
pub(crate) const ROOT: &str = "/root";
/// Directories to create; the initramfs may have some of them.
const DIRS: [&str; 10] = [
    "/dev",
    "/proc",
    "/sys",
    "/cgroup",
    "/sandbox-dev",
    "/sandbox-dev-view",
    BASE,
    PRIVATE,
    ROOT,
    ENVD_LAYER,
];

/// What the guest agent needs of a booted guest.
pub(crate) struct BootedGuest {
    pub(crate) options: BootOptions,
    pub(crate) cgroup: SandboxCgroup,
    pub(crate) boot_id: BootId,
    /// The mount of the sandbox's own disk, for syncing it.
    pub(crate) private: File,
}

/// Mounts the kernel's file systems, loads modules, and opens the control channel, on which later
/// errors can be reported.
///
/// # Errors
/// The kernel refuses a mount or module, or there is no control channel.
pub(crate) fn mount_and_open_channel(events: &mut Option<UeventSocket>) -> Result<Channel, InitError> {
    let kernel = |what: &'static str| InitError::kernel::<io::Error>(what);
    DIRS.iter().try_for_each(fs::create_dir_all).map_err(kernel("make directories"))?;
    let nothing = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for (kind, path, flags) in
        [("proc", "/proc", nothing), ("sysfs", "/sys", nothing), ("devtmpfs", "/dev", MountFlags::NOSUID)]
    {
        mount(kind, path, kind, flags, None).map_err(InitError::kernel(format!("mount {path}")))?;
    }
    let events = events.insert(UeventSocket::listen()?);
    load_modules()?;
    let port = events.wait_for("there is no control channel", Channel::find)?;
    Channel::open(&port)
}

/// Prepares the sandbox up to the start of envd.
///
/// # Errors
/// A device is missing, or the kernel refuses a step.
pub(crate) fn prepare_sandbox(events: &UeventSocket) -> Result<BootedGuest, InitError> {
    let cmdline = fs::read_to_string("/proc/cmdline").map_err(InitError::kernel("read the command line"))?;
    let options = BootOptions::parse(&cmdline)?;
    let cgroup = cgroup::make(options.pids)?;
    let boot_id = devices::make()?;
    let private = mount_disks(events)?;
    mount_root()?;
    network::set_up(events)?;
    Ok(BootedGuest { options, cgroup, boot_id, private })
}

fn load_modules() -> Result<(), InitError> {
    let dir = Path::new("/modules");
    let order = match fs::read_to_string(dir.join("order")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        order => order.map_err(InitError::kernel("read the order of modules"))?,
    };
    for name in order.lines() {
        let load = || -> io::Result<()> {
            let file = File::open(dir.join(name))?;
            match rustix::system::finit_module(&file, c"", 0) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
                Err(error) => Err(error.into()),
            }
        };
        load().map_err(InitError::kernel(format!("load the module {name}")))?;
    }
    // The files are not needed any more and would take memory from user code.
    fs::remove_dir_all(dir).map_err(InitError::kernel("remove loaded modules"))
}

fn mount_disks(events: &UeventSocket) -> Result<File, InitError> {
    let (base, own) = events
        .wait_for("there are not two disks, one of them read-only", || Some((disk(true)?, disk(false)?)))?;
    mount(base.as_str(), BASE, "ext4", MountFlags::RDONLY | MountFlags::NODEV, None)
        .map_err(InitError::kernel("mount the template's disk"))?;
    // Captures sync the disk when that is needed, so renames need not wait for it
    // (`noauto_da_alloc`). Unused inode tables need not be initialized.
    let (flags, options) =
        (MountFlags::NODEV | MountFlags::NOATIME, c"discard,noauto_da_alloc,noinit_itable");
    let mounted = mount(own.as_str(), PRIVATE, "ext4", flags, Some(options));
    mounted.map_err(InitError::kernel("mount the sandbox's disk"))?;
    File::open(PRIVATE).map_err(InitError::kernel("open the sandbox's disk"))
}

/// Returns the device of the disk that is read-only, or of the one that is not.
fn disk(read_only: bool) -> Option<String> {
    let wanted = if read_only { "1" } else { "0" };
    let mut disks: Vec<String> = fs::read_dir("/sys/block")
        .ok()?
        .flatten()
        .map(|disk| disk.file_name().to_string_lossy().into_owned())
        .collect();
    disks.sort_unstable();
    let is_wanted = |disk: &&String| {
        let state = fs::read_to_string(format!("/sys/block/{disk}/ro"));
        disk.starts_with("vd") && state.is_ok_and(|state| state.trim() == wanted)
    };
    let node = disks.iter().find(is_wanted).map(|disk| format!("/dev/{disk}"))?;
    Path::new(&node).exists().then_some(node)
}

fn mount_root() -> Result<(), InitError> {
    let prepare = || -> io::Result<()> {
        fs::create_dir_all(UPPER)?;
        fs::create_dir_all(WORK)
    };
    prepare().map_err(InitError::kernel("make the directories of the overlay"))?;
    layers::renew_overlay_work(Path::new(WORK), false)
        .map_err(|error| InitError::kernel("renew the overlay's work directory")(io::Error::other(error)))?;
    // `volatile`: data becomes durable by explicit captures, which sync the disk below. `index`
    // off: a base image that was built again has other inode numbers and would be refused with it.
    let options =
        c"lowerdir=/envd-layer:/base,upperdir=/private/upper,workdir=/private/work,redirect_dir=on,index=off,metacopy=off,volatile";
    // Without `nosuid`: set-user-id programs such as sudo must work.
    mount("cofferdam", ROOT, "overlay", MountFlags::NODEV, Some(options))
        .map_err(InitError::kernel("mount the sandbox's root"))
}
