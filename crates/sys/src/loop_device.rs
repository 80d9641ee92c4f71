//! [`LoopDevice`]: a file as a block device.
//! Always with autoclear: the kernel removes the device with its last user, also when that was killed.
//! A device is found again by the file behind it, not by its name.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::raw::syscall;

const GET_FREE: usize = 0x4c82;
const CONFIGURE: usize = 0x4c0a;
const GET_STATUS: usize = 0x4c05;
const SET_CAPACITY: usize = 0x4c07;

const AUTOCLEAR: u32 = 4;
const DIRECT_IO: u32 = 16;

/// How often a free device is tried that another process takes first.
const ATTEMPTS: usize = 64;

/// The kernel's `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    real_device: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    unused: [u32; 2],
    flags: u32,
    file_name: [u8; 64],
    unused_too: [u8; 64 + 32 + 16],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    file: u32,
    block_size: u32,
    info: Info,
    unused: [u64; 8],
}

const NOTHING: Info = Info {
    device: 0,
    inode: 0,
    real_device: 0,
    offset: 0,
    size_limit: 0,
    number: 0,
    unused: [0; 2],
    flags: 0,
    file_name: [0; 64],
    unused_too: [0; 112],
};

/// An attached loop device. It is not cleared while this, or a mount of it, lives.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    device: File,
    /// Whether it uses direct I/O, so that the page cache does not hold the data twice.
    pub direct_io: bool,
}

impl LoopDevice {
    /// Returns the device that `image` is attached to, if there is one.
    ///
    /// # Errors
    /// `/sys/block` cannot be read.
    pub fn find(image: &File) -> io::Result<Option<Self>> {
        let wanted = image.metadata()?;
        for entry in fs::read_dir("/sys/block")? {
            let entry = entry?;
            if !entry.path().join("loop/backing_file").exists() {
                continue;
            }
            let path = Path::new("/dev").join(entry.file_name());
            // While it is open it cannot be cleared, so the status that is read stays true.
            let Ok(device) = OpenOptions::new().read(true).write(true).open(&path) else { continue };
            let Ok(info) = status(&device) else { continue };
            if info.inode == wanted.ino() && same_device(info.device, wanted.dev()) {
                return Ok(Some(Self { path, device, direct_io: info.flags & DIRECT_IO != 0 }));
            }
        }
        Ok(None)
    }

    /// Attaches `image`, which is open for reading and writing, to a free device; with direct I/O where its file system supports that.
    ///
    /// # Errors
    /// The host has no loop devices, or none is free.
    pub fn attach(image: &File) -> io::Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        let mut direct_io = true;
        for _ in 0..ATTEMPTS {
            // SAFETY: the request takes no argument.
            let number =
                unsafe { syscall(libc::SYS_ioctl, [control.as_raw_fd() as usize, GET_FREE, 0, 0, 0, 0]) }?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).write(true).open(&path)?;
            let flags = AUTOCLEAR | if direct_io { DIRECT_IO } else { 0 };
            let mut config = Config {
                file: image.as_raw_fd() as u32,
                block_size: 0,
                info: Info { flags, ..NOTHING },
                unused: [0; 8],
            };
            match request(&device, CONFIGURE, &raw mut config) {
                Ok(()) => {
                    let direct_io = status(&device)?.flags & DIRECT_IO != 0;
                    return Ok(Self { path, device, direct_io });
                }
                // Another process has taken it.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) && direct_io => direct_io = false,
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "no loop device stays free long enough"))
    }

    /// Returns the path of the device, such as `/dev/loop0`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the device as large as its file, which has grown.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn update_size(&self) -> io::Result<()> {
        // SAFETY: the request takes no argument.
        unsafe { syscall(libc::SYS_ioctl, [self.device.as_raw_fd() as usize, SET_CAPACITY, 0, 0, 0, 0]) }?;
        Ok(())
    }
}

fn status(device: &File) -> io::Result<Info> {
    let mut info = NOTHING;
    request(device, GET_STATUS, &raw mut info)?;
    Ok(info)
}

/// Compares a device number in the kernel's encoding with one in libc's.
fn same_device(kernel: u64, dev: u64) -> bool {
    let (major, minor) = (u64::from(libc::major(dev)), u64::from(libc::minor(dev)));
    kernel == (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// Makes an ioctl with an argument.
fn request<T>(device: &File, request: usize, argument: *mut T) -> io::Result<()> {
    // SAFETY: private to this file, and both callers pass the structure that the request is defined with.
    unsafe { syscall(libc::SYS_ioctl, [device.as_raw_fd() as usize, request, argument as usize, 0, 0, 0]) }?;
    Ok(())
}
