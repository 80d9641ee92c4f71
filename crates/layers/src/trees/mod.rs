//! Writable trees: directory trees with the files that sandboxes write. Copies are instant and sizes are limited where the file system
//! supports it. There are four backends, chosen at [`Trees::open`] and never changed while trees exist: subvolumes of a btrfs data
//! directory, subvolumes of a btrfs image of our own, and plain directories copied by reflink or byte by byte.
//!
//! The image (`volumes.btrfs`, a sparse file) is served by a loop device and mounted *detached*: the mount is in no
//! mount table, only a descriptor of this process refers to it, and paths lead through `/proc/<pid>/fd/<n>`. So nothing is left over
//! when the server is killed: the descriptor closes, the mount disappears, and the loop device detaches itself. Sandboxes
//! that still run keep the file system alive by the clones of the mount in their overlays; the next server finds the loop
//! device by its backing file and gets the same file system. An image is never attached twice: attaching is done
//! under a lock on the file, after looking for a device that serves it.
//!
//! An image can be larger than the free space of the disk below it. When that disk is full, the kernel makes the whole image read-only:
//! no data is lost, but every sandbox fails. So the size of all trees together is limited to what the disk can still take
//! (`free_space`), so that writes fail with "Disk quota exceeded" first. If other programs fill the disk in spite of that, free some space
//! and start the server again, with no sandbox left running.
//!
//! Paths of trees ([`Trees::path`]) are valid for this process and its children as long as the [`Trees`] exists. They can be opened,
//! cloned (`open_tree`) and renamed; they cannot be canonicalised, stored, or passed to a process in another pid namespace.
//!
//! A copy shows its source at one moment: freeze the sandbox first for consistent files. On btrfs the copy includes writes that
//! are not on the disk yet. A copy of a plain directory fails if the directory changes meanwhile. A finished `copy` survives a power
//! failure; the effect of `create` and `rename` may be lost, since sandboxes do not survive a power failure either.

mod charges;
mod dirs;
mod free_space;
mod image;
mod name;
mod subvolumes;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub use name::TreeName;

use crate::LayerError;
use crate::copy_tree::Sharing;
use dirs::Directories;
use free_space::FreeSpaceLimit;
pub use free_space::room_beside;
use image::Image;
use subvolumes::Subvolumes;
pub(crate) use subvolumes::is_btrfs;

const MIB: u64 = 1 << 20;

/// Where and how trees are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TreesBackend {
    /// The best backend that works on this host, or the one of the existing trees.
    #[default]
    Auto,
    /// Subvolumes of the data directory's own btrfs.
    Btrfs,
    /// Subvolumes of a btrfs image on a loop device.
    Loop,
    /// Directories whose copies share blocks with the original (XFS).
    Reflink,
    /// Directories, copied byte by byte.
    Copy,
}

impl TreesBackend {
    fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Btrfs => "btrfs",
            Self::Loop => "loop",
            Self::Reflink => "reflink",
            Self::Copy => "copy",
        }
    }
}

impl std::fmt::Display for TreesBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for TreesBackend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Auto, Self::Btrfs, Self::Loop, Self::Reflink, Self::Copy];
        let found = all.into_iter().find(|backend| backend.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is not one of auto, btrfs, loop, reflink, copy"))
    }
}

/// Settings of [`Trees::open`].
#[derive(Debug, Clone, Copy, Default)]
pub struct TreesConfig {
    /// Where and how trees are stored.
    pub backend: TreesBackend,
    /// Maximum size of the image, bytes; by default the size of the disk that it is on. An image never shrinks.
    pub image_size: Option<u64>,
}

/// The size of a tree and its limit, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeUsage {
    /// Size of the tree's content. Accurate within a few percent on btrfs: shared parts that were replaced since the last copy
    /// may still count.
    pub used: u64,
    /// Size at which writes fail with "Disk quota exceeded". `None` if there is no limit or it cannot be enforced.
    pub limit: Option<u64>,
}

/// All writable trees of a data directory. Only one process at a time may have them open.
#[derive(Debug)]
pub struct Trees {
    kind: TreesBackend,
    store: Store,
    description: String,
    _limit: Option<FreeSpaceLimit>,
    /// Dropped after the other fields, which have the mount's root open.
    _image: Option<Image>,
}

#[derive(Debug)]
enum Store {
    Subvolumes(Subvolumes),
    Directories(Directories),
}

impl Trees {
    /// Opens the trees below `data_dir`, creating the directory or image if necessary, and removes what a crash left incomplete. May
    /// take some seconds when an image is created or a journal replayed.
    ///
    /// # Errors
    /// The requested backend, or the backend of the existing trees, does not work on this host.
    pub fn open(data_dir: &Path, config: TreesConfig) -> Result<Self, LayerError> {
        fs::create_dir_all(data_dir).map_err(LayerError::at(data_dir))?;
        let image_path = data_dir.join("volumes.btrfs");
        let dir = data_dir.join("volumes");
        let in_image = image_path.exists();
        let in_dir = has_trees(&dir);
        let asked = config.backend;
        if in_image && !matches!(asked, TreesBackend::Auto | TreesBackend::Loop) {
            return Err(LayerError::Backend {
                what: format!("{} holds trees, so {asked} cannot be used", image_path.display()),
                remedy: "choose loop, or remove the file with all files of sandboxes in it".into(),
            });
        }
        if in_dir && asked == TreesBackend::Loop {
            return Err(LayerError::Backend {
                what: format!("{} holds trees, so loop cannot be used", dir.display()),
                remedy: "choose auto, or remove the directory with all files of sandboxes in it".into(),
            });
        }
        match asked {
            TreesBackend::Btrfs => Self::in_btrfs(&dir),
            TreesBackend::Loop => Self::in_image(&image_path, config.image_size),
            TreesBackend::Reflink if !can_reflink(&make_private(&dir)?)? => Err(LayerError::Backend {
                what: format!("the file system of {} cannot share blocks between files", dir.display()),
                remedy: "choose auto, or put the data directory on XFS or btrfs".into(),
            }),
            TreesBackend::Reflink => Self::in_dirs(&dir, Sharing::Reflink, "as configured"),
            TreesBackend::Copy => Self::in_dirs(&dir, Sharing::Copy, "as configured"),
            TreesBackend::Auto if in_image => Self::in_image(&image_path, config.image_size),
            TreesBackend::Auto => Self::best(&dir, in_dir, &image_path, config.image_size),
        }
    }

    /// Opens the best backend that works on this host.
    fn best(
        dir: &Path,
        in_dir: bool,
        image_path: &Path,
        image_size: Option<u64>,
    ) -> Result<Self, LayerError> {
        if is_dir_on_btrfs(&make_private(dir)?)? {
            return Self::in_btrfs(dir);
        }
        if can_reflink(dir)? {
            let why = "the data directory's file system shares blocks; for limits choose loop before the first sandbox";
            return Self::in_dirs(dir, Sharing::Reflink, why);
        }
        if in_dir {
            let why = format!(
                "{} holds trees from before; once it is empty, the next start can choose a better backend",
                dir.display()
            );
            return Self::in_dirs(dir, Sharing::Copy, &why);
        }
        match Self::in_image(image_path, image_size) {
            Err(LayerError::Backend { what, remedy }) => Self::in_dirs(
                dir,
                Sharing::Copy,
                &format!("a btrfs image would be better, but {what}: {remedy}"),
            ),
            answer => answer,
        }
    }

    fn in_btrfs(dir: &Path) -> Result<Self, LayerError> {
        let root = make_private(dir)?;
        if !is_dir_on_btrfs(&root)? {
            return Err(LayerError::Backend {
                what: format!("{} is not on btrfs", dir.display()),
                remedy: "choose loop for a btrfs image of our own".into(),
            });
        }
        let store = Subvolumes::open(root.clone(), None)?;
        let limits = if store.enforces_limits() {
            "limits are enforced by the file system's quotas".to_owned()
        } else {
            format!(
                "no disk limits, because the file system's quotas are off; `btrfs quota enable --simple {}` turns them on (Linux 6.7)",
                root.display()
            )
        };
        let description = format!("subvolumes of the btrfs under {}; {limits}", root.display());
        Ok(Self {
            kind: TreesBackend::Btrfs,
            store: Store::Subvolumes(store),
            description,
            _limit: None,
            _image: None,
        })
    }

    fn in_image(path: &Path, size: Option<u64>) -> Result<Self, LayerError> {
        let image = Image::open(path, size)?;
        let root = image.root();
        let limit = subvolumes::turn_quotas_on(&root).and_then(|()| FreeSpaceLimit::start(&root, path));
        let store = Subvolumes::open(root, limit.is_ok().then_some(free_space::GROUP))?;
        let limits = match &limit {
            Ok(_) => "limits are enforced".to_owned(),
            Err(error) => format!("no disk limits, as quotas cannot be turned on ({error}); Linux 6.7 can"),
        };
        let direct =
            if image.direct_io() { "direct I/O" } else { "buffered I/O, as the disk cannot do direct" };
        let description =
            format!("subvolumes of the btrfs image {} on a loop device ({direct}); {limits}", path.display());
        Ok(Self {
            kind: TreesBackend::Loop,
            store: Store::Subvolumes(store),
            description,
            _limit: limit.ok(),
            _image: Some(image),
        })
    }

    fn in_dirs(dir: &Path, sharing: Sharing, why: &str) -> Result<Self, LayerError> {
        let store = Directories::open(make_private(dir)?, sharing)?;
        let (kind, how) = match sharing {
            Sharing::Reflink => (TreesBackend::Reflink, "copied by reflink, file by file"),
            Sharing::Copy => (TreesBackend::Copy, "copied byte by byte"),
        };
        let description =
            format!("plain directories in {}, {how}, without disk limits: {why}", dir.display());
        Ok(Self { kind, store: Store::Directories(store), description, _limit: None, _image: None })
    }

    /// Returns the backend in use; never `Auto`.
    #[must_use]
    pub fn kind(&self) -> TreesBackend {
        self.kind
    }

    /// Returns a description for people: the backend, whether limits are enforced, and what would improve it.
    #[must_use]
    pub fn describe(&self) -> &str {
        &self.description
    }

    /// Returns whether limits are enforced. If not, they are accepted and have no effect.
    #[must_use]
    pub fn enforces_limits(&self) -> bool {
        match &self.store {
            Store::Subvolumes(store) => store.enforces_limits(),
            Store::Directories(_) => false,
        }
    }

    /// Returns the path of a tree, whether it exists or not. It is valid for this process and its children as long as `self`
    /// exists, cannot be canonicalised, and must not be stored.
    #[must_use]
    pub fn path(&self, name: &TreeName) -> PathBuf {
        match &self.store {
            Store::Subvolumes(store) => store.path(name),
            Store::Directories(store) => store.path(name),
        }
    }

    /// Creates an empty tree.
    ///
    /// # Errors
    /// The name is taken, or the disk is full.
    pub fn create(&self, name: &TreeName, limit_mib: Option<u32>) -> Result<(), LayerError> {
        match &self.store {
            Store::Subvolumes(store) => store.create(name, bytes(limit_mib)),
            Store::Directories(store) => store.create(name),
        }
    }

    /// Renames a tree. Processes that have it open keep their access.
    ///
    /// # Errors
    /// There is no tree `from`, or the name `to` is taken.
    pub fn rename(&self, from: &TreeName, to: &TreeName) -> Result<(), LayerError> {
        match &self.store {
            Store::Subvolumes(store) => store.rename(from, to),
            Store::Directories(store) => store.rename(from, to),
        }
    }

    /// Copies the tree `from`, as it is at one moment during the call, to the new tree `to`. The copy survives a power failure once
    /// this returns.
    ///
    /// The limit applies to the whole content of `to`, including blocks that it shares with `from`. The usage of `from` is counted again.
    /// From then on, content that is replaced in `from` takes additional space, because the copy keeps the old content.
    ///
    /// # Errors
    /// There is no `from`, `to` is taken, the disk is full, or the tree changed meanwhile (plain directories only).
    pub fn copy(
        &self,
        from: &TreeName,
        to: &TreeName,
        read_only: bool,
        limit_mib: Option<u32>,
    ) -> Result<(), LayerError> {
        match &self.store {
            Store::Subvolumes(store) => store.copy(from, to, read_only, bytes(limit_mib)),
            Store::Directories(store) => store.copy(from, to),
        }
    }

    /// Removes a tree. Its name is free at once; its space is freed in the background. Succeeds if there is no such tree.
    ///
    /// # Errors
    /// The file system cannot be written.
    pub fn discard(&self, name: &TreeName) -> Result<(), LayerError> {
        match &self.store {
            Store::Subvolumes(store) => store.discard(name),
            Store::Directories(store) => store.discard(name),
        }
    }

    /// Sets the limit of a tree; `None` removes it.
    ///
    /// # Errors
    /// There is no such tree.
    pub fn set_limit(&self, name: &TreeName, limit_mib: Option<u32>) -> Result<(), LayerError> {
        match &self.store {
            Store::Subvolumes(store) => store.set_limit(name, bytes(limit_mib)),
            Store::Directories(store) => store.require(name),
        }
    }

    /// Returns the size of a tree. Instant if limits are enforced; otherwise reads the metadata of every file.
    ///
    /// # Errors
    /// There is no such tree.
    pub fn usage(&self, name: &TreeName) -> Result<TreeUsage, LayerError> {
        match &self.store {
            Store::Subvolumes(store) => store.usage(name),
            Store::Directories(store) => store.usage(name),
        }
    }

    /// Returns the names of all trees, in no particular order.
    ///
    /// # Errors
    /// The file system cannot be read.
    pub fn list(&self) -> Result<Vec<TreeName>, LayerError> {
        let root = match &self.store {
            Store::Subvolumes(store) => store.root(),
            Store::Directories(store) => store.root(),
        };
        names_in(root).map_err(LayerError::at(root))
    }
}

fn is_dir_on_btrfs(dir: &Path) -> Result<bool, LayerError> {
    File::open(dir).and_then(is_btrfs).map_err(LayerError::at(dir))
}

fn bytes(mib: Option<u32>) -> Option<u64> {
    mib.map(|mib| u64::from(mib) * MIB)
}

fn names_in(dir: &Path) -> io::Result<Vec<TreeName>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.extend(entry?.file_name().to_str().and_then(|name| name.parse().ok()));
    }
    Ok(names)
}

fn has_trees(dir: &Path) -> bool {
    names_in(dir).is_ok_and(|names| !names.is_empty())
}

/// Creates a directory that only root can enter, since set-user-id files in trees work on the host; returns its canonical path.
fn make_private(dir: &Path) -> Result<PathBuf, LayerError> {
    let make = || {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        fs::canonicalize(dir)
    };
    make().map_err(LayerError::at(dir))
}

/// Returns whether files in a directory can share blocks, by trying it.
fn can_reflink(dir: &Path) -> Result<bool, LayerError> {
    let probe = || -> io::Result<bool> {
        let [one, two] = [".probe-1", ".probe-2"].map(|name| dir.join(name));
        fs::write(&one, [1u8; 4096])?;
        let cloned =
            fs::File::create(&two).and_then(|to| Ok(rustix::fs::ioctl_ficlone(to, fs::File::open(&one)?)?));
        fs::remove_file(&one)?;
        fs::remove_file(&two)?;
        Ok(cloned.is_ok())
    };
    probe().map_err(LayerError::at(dir))
}
