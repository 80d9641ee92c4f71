//! The two disk images of a guest: the merged layers of a template as a read-only file system, and
//! an empty file system for what the sandbox writes.
//!
//! Both are made by mkfs.ext4 without mounting the result, and use as much of the host's disk as
//! they have content. Several tasks may create the same file at once: all results are equal, and
//! the last one is kept.

mod merge;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use confinement::{Access, Root, confine};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::thread::CapabilitySet;
use tempfile::{NamedTempFile, TempDir};

use crate::GuestError;

const MIB: u64 = 1 << 20;
/// Space that the file system itself needs, besides its content, bytes.
const MARGIN: u64 = 32 * MIB;
/// Space that a file needs besides its content, bytes: inode, name, the rest of its last block.
const BYTES_PER_ENTRY: u64 = 4096;
/// Maximum length of a path in a base image, bytes. At 2,040 mkfs.ext4 writes a byte beyond its buffer, and it runs on the host.
const MAX_PATH: usize = 2000;
/// The directory that mkfs.ext4 always creates.
const LOST_AND_FOUND: &str = "lost+found";
/// Where mkfs.ext4 sees the image, the tree and its own defaults.
const IMAGE: &str = "/image";
const TREE: &str = "/tree";
const DEFAULTS: &str = "/etc/mke2fs.conf";
/// The user and group that it runs as.
const NOBODY: u32 = 65_534;
/// Fixed UUID, so that equal layers give equal images.
const UUID: &str = "c0fe0000-0000-4000-8000-000000000000";

/// Builds the base image of a template: what overlayfs shows of `layers`, uppermost first, without
/// overlayfs' own marks. Blocks for about two seconds for a template of some hundred MiB.
///
/// # Errors
/// A layer is missing or has too long a path, layers cannot be stacked, mkfs.ext4 (1.47 or newer) is missing or fails, or
/// there is no room on the disk.
pub fn build_base(layers: &[PathBuf], target: &Path) -> Result<(), GuestError> {
    if let Some(missing) = layers.iter().find(|layer| !layer.is_dir()) {
        return Err(GuestError::NoLayer { path: missing.clone() });
    }
    let dir = target.parent().unwrap_or(Path::new("/"));
    // overlayfs needs at least two layers.
    let empty = TempDir::new_in(dir).map_err(GuestError::at(dir))?;
    let merged = merge::mount(layers, empty.path()).map_err(GuestError::Merge)?;
    let size = layers::tree_size(&merged.path())?;
    if size.longest_path > MAX_PATH {
        return Err(GuestError::TooDeep(size.longest_path));
    }
    let bytes = size.bytes + size.entries * BYTES_PER_ENTRY;
    let bytes = (bytes + bytes / 8 + MARGIN).next_multiple_of(MIB);
    let inodes = (size.entries + size.entries / 16 + 64).to_string();
    // mkfs.ext4 creates the directory, and e2fsck never runs here.
    let has_lost_and_found = fs::symlink_metadata(merged.path().join(LOST_AND_FOUND)).is_ok();
    let file = new_file(dir, bytes)?;
    let mut mkfs = mkfs();
    mkfs.args(["-O", "^has_journal,^resize_inode,ea_inode", "-I", "256", "-N", &inodes])
        .args(["-U", UUID, "-E"])
        .arg(format!("hash_seed={UUID},assume_storage_prezeroed=1"))
        .args(["-d", TREE]);
    run("mkfs.ext4", mkfs, &file, Some(merged.as_fd()))?;
    if !has_lost_and_found {
        let mut remove = program("debugfs");
        remove.args(["-w", "-R", &format!("rmdir {LOST_AND_FOUND}")]);
        run("debugfs", remove, &file, None)?;
    }
    // Readable by QEMU as any user; access is controlled by the directory.
    finish(file, target, 0o444)
}

/// Creates an empty, formatted disk image, to be copied for each sandbox.
///
/// # Errors
/// mkfs.ext4 (1.47 or newer) is missing or fails, or there is no room on the disk.
pub fn format_empty(size_mib: u32, target: &Path) -> Result<(), GuestError> {
    let dir = target.parent().unwrap_or(Path::new("/"));
    let file = new_file(dir, u64::from(size_mib) * MIB)?;
    let mut mkfs = mkfs();
    // The guest kernel has nothing to initialize in the background. The journal is small because it
    // is copied for each sandbox.
    mkfs.args(["-O", "ea_inode", "-J", "size=8", "-E", "assume_storage_prezeroed=1"]);
    run("mkfs.ext4", mkfs, &file, None)?;
    finish(file, target, 0o600)
}

fn new_file(dir: &Path, bytes: u64) -> Result<NamedTempFile, GuestError> {
    let file = NamedTempFile::new_in(dir).map_err(GuestError::at(dir))?;
    file.as_file().set_len(bytes).map_err(GuestError::at(file.path()))?;
    Ok(file)
}

fn finish(file: NamedTempFile, target: &Path, mode: u32) -> Result<(), GuestError> {
    fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).map_err(GuestError::at(target))?;
    file.persist(target).map_err(|error| GuestError::at(target)(error.error))?;
    Ok(())
}

/// Returns the common part of mkfs.ext4 commands. No blocks are reserved for root: the guest's root
/// is user code.
fn mkfs() -> Command {
    let mut command = program("mkfs.ext4");
    command.args(["-q", "-F", "-m", "0", "-b", "4096"]);
    command
}

/// Returns a command of e2fsprogs with a fixed clock, so that equal content gives an equal file.
fn program(name: &'static str) -> Command {
    let mut command = Command::new(name);
    command
        .env("E2FSPROGS_FAKE_TIME", "1735689600")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null());
    command
}

/// Runs a program of e2fsprogs on the image `file`. A template's files may be made to exploit errors in it, so it sees the image and
/// the tree `source`, and may read what is in the tree, whoever owns it; nothing else.
fn run(
    name: &'static str,
    mut command: Command,
    file: &NamedTempFile,
    source: Option<BorrowedFd<'_>>,
) -> Result<(), GuestError> {
    let path = file.path();
    let scratch = TempDir::with_prefix("cofferdam-mkfs-").map_err(GuestError::at(path))?;
    // It may be in a tree whose mount is not attached, so it cannot be shown by its path.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let image = open_tree(CWD, path, flags).map_err(GuestError::at(path))?;
    let mut prepare = || -> io::Result<Root> {
        let mut root = Root::new(scratch.path())?;
        root.show_programs()?;
        if Path::new(DEFAULTS).exists() {
            root.show(Path::new(DEFAULTS), DEFAULTS, Access::ReadOnly)?;
        }
        root.show_detached(image.as_fd(), IMAGE)?;
        if let Some(source) = source {
            root.show_detached(source, TREE)?;
        }
        chown(path, Some(NOBODY), Some(NOBODY))?;
        confine(&mut command, root.entrance(&[])?, NOBODY, CapabilitySet::DAC_READ_SEARCH);
        command.arg(IMAGE);
        Ok(root)
    };
    // Its network namespace is needed until the program runs.
    let root = prepare().map_err(GuestError::at(path))?;
    let output = command.output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => GuestError::NoProgram(name),
        _ => GuestError::at(Path::new(name))(error),
    })?;
    drop(root);
    chown(path, Some(0), Some(0)).map_err(GuestError::at(path))?;
    if output.status.success() {
        return Ok(());
    }
    let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(GuestError::Program { name, path: path.to_owned(), output })
}
