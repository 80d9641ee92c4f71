//! Writable trees: the directory trees that hold what sandboxes write, with instant copies and limits where the disk can.
//! Four ways to keep them, chosen at [`Trees::open`] and never changed while trees exist:
//! subvolumes of a btrfs data directory, of a btrfs image of our own, or plain directories copied by reflink or byte by byte.
//!
//! The image (`volumes.btrfs`, a sparse file) is served by a loop device and mounted *detached*: the mount is in nobody's
//! mount table, only a descriptor of this process, and paths lead through `/proc/<pid>/fd/<n>`. So nothing is left when the
//! server is killed: the descriptor closes, the mount goes, and the loop device, set to clear itself, goes with it. Sandboxes
//! that still run keep the file system alive by their overlays' own clones of the mount; the next server finds the loop
//! device by the file behind it and gets the very same file system. An image is never attached twice: attaching is done
//! under a lock on the file, after looking for a device that serves it.
//!
//! An image can promise more than the disk below it has. Where that disk is full, the kernel makes all of the image read-only to
//! save what is in it: no loss, but the end of every sandbox. So all trees together are held to what the disk can still take
//! (`free_space`), and writing ends in "Disk quota exceeded" before. If other programs fill the disk in spite of that, free some space
//! and start the server again, with no sandbox left running.
//!
//! Such a path is good for this process and its children while [`Trees`] lives. It can be opened, cloned (`open_tree`) and
//! renamed below; it cannot be canonicalised, stored, or handed to a process in another pid namespace.
//!
//! A copy is a moment of its source: freeze the sandbox first if the moment should be one of peace. On btrfs what was written
//! but not yet on disk is in it; the plain ways need the tree to be left alone and fail where it is not. What `copy` returned
//! from survives a loss of power; what `create` and `rename` did may not, as nothing runs on in a tree then.

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

/// How trees are to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TreesBackend {
    /// The best that works here, or what the trees that are here already need.
    #[default]
    Auto,
    /// Subvolumes of the data directory's own btrfs.
    Btrfs,
    /// A btrfs image on a loop device.
    Loop,
    /// Directories whose copies share blocks (XFS).
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

/// Choices for [`Trees::open`].
#[derive(Debug, Clone, Copy, Default)]
pub struct TreesConfig {
    /// How trees are kept.
    pub backend: TreesBackend,
    /// Most bytes the image may grow to. Without it, the size of the disk it lies on. An image never shrinks.
    pub image_size: Option<u64>,
}

/// What a tree takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeUsage {
    /// What it refers to. Within a few percent on btrfs: parts that a copy shared and that were replaced since may still
    /// count.
    pub used: u64,
    /// Where writing ends with "Disk quota exceeded". None where there is no limit or none can be enforced.
    pub limit: Option<u64>,
}

/// The trees below one data directory. One process at a time may have them open.
#[derive(Debug)]
pub struct Trees {
    kind: TreesBackend,
    store: Store,
    description: String,
    _limit: Option<FreeSpaceLimit>,
    /// After the others, which have the mount's root open.
    _image: Option<Image>,
}

#[derive(Debug)]
enum Store {
    Subvolumes(Subvolumes),
    Directories(Directories),
}

impl Trees {
    /// Opens the trees below `data_dir`, making what is missing. May take some seconds where an image is made or a
    /// journal replayed. What a crash left half-made is removed.
    ///
    /// # Errors
    /// The way asked for, or the one that existing trees need, does not work here.
    pub fn open(data_dir: &Path, config: TreesConfig) -> Result<Self, LayerError> {
        fs::create_dir_all(data_dir).map_err(LayerError::at(data_dir))?;
        let image_path = data_dir.join("volumes.btrfs");
        let dir = data_dir.join("volumes");
        let in_image = image_path.exists();
        let in_dir = holds_trees(&dir);
        let asked = config.backend;
        if in_image && !matches!(asked, TreesBackend::Auto | TreesBackend::Loop) {
            return Err(LayerError::Backend {
                what: format!("{} holds trees, so {asked} cannot be used", image_path.display()),
                remedy: "choose loop, or remove the file and all it holds".into(),
            });
        }
        if in_dir && asked == TreesBackend::Loop {
            return Err(LayerError::Backend {
                what: format!("{} holds trees, so loop cannot be used", dir.display()),
                remedy: "choose auto, or remove the directory and all it holds".into(),
            });
        }
        match asked {
            TreesBackend::Btrfs => Self::in_btrfs(&dir),
            TreesBackend::Loop => Self::in_image(&image_path, config.image_size),
            TreesBackend::Reflink if !can_reflink(&make_private(&dir)?)? => Err(LayerError::Backend {
                what: format!("the file system of {} cannot share blocks between files", dir.display()),
                remedy: "choose auto, or put the data directory on XFS or btrfs".into(),
            }),
            TreesBackend::Reflink => Self::in_dirs(&dir, Sharing::Reflink, "as asked for"),
            TreesBackend::Copy => Self::in_dirs(&dir, Sharing::Copy, "as asked for"),
            TreesBackend::Auto if in_image => Self::in_image(&image_path, config.image_size),
            TreesBackend::Auto => Self::best(&dir, in_dir, &image_path, config.image_size),
        }
    }

    fn best(
        dir: &Path,
        in_dir: bool,
        image_path: &Path,
        image_size: Option<u64>,
    ) -> Result<Self, LayerError> {
        if lies_on_btrfs(&make_private(dir)?)? {
            return Self::in_btrfs(dir);
        }
        if can_reflink(dir)? {
            let why = "the data directory's file system shares blocks; for limits choose loop before the first sandbox";
            return Self::in_dirs(dir, Sharing::Reflink, why);
        }
        if in_dir {
            let why = format!(
                "{} holds trees from before; with none left in it, the next start may do better",
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
        if !lies_on_btrfs(&root)? {
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

    /// How trees are kept; never `Auto`.
    #[must_use]
    pub fn kind(&self) -> TreesBackend {
        self.kind
    }

    /// A sentence for people: how, with which limits, and what would make it better.
    #[must_use]
    pub fn describe(&self) -> &str {
        &self.description
    }

    /// Whether writing ends at a tree's limit. Where not, limits are accepted and mean nothing.
    #[must_use]
    pub fn enforces_limits(&self) -> bool {
        match &self.store {
            Store::Subvolumes(store) => store.enforces_limits(),
            Store::Directories(_) => false,
        }
    }

    /// Where a tree is, present or not. See the module's text for what such a path is good for.
    #[must_use]
    pub fn path(&self, name: &TreeName) -> PathBuf {
        match &self.store {
            Store::Subvolumes(store) => store.path(name),
            Store::Directories(store) => store.path(name),
        }
    }

    /// Makes an empty tree.
    ///
    /// # Errors
    /// The name is taken, or the disk is full.
    pub fn create(&self, name: &TreeName, limit_mib: Option<u32>) -> Result<(), LayerError> {
        match &self.store {
            Store::Subvolumes(store) => store.create(name, bytes(limit_mib)),
            Store::Directories(store) => store.create(name),
        }
    }

    /// Gives a tree another name, at once. It stays where it is for whoever has it open.
    ///
    /// # Errors
    /// There is none, or the new name is taken.
    pub fn rename(&self, from: &TreeName, to: &TreeName) -> Result<(), LayerError> {
        match &self.store {
            Store::Subvolumes(store) => store.rename(from, to),
            Store::Directories(store) => store.rename(from, to),
        }
    }

    /// Makes `to` what `from` is at a moment during the call. It survives a loss of power once this returns.
    ///
    /// The limit counts all that `to` refers to, whether `from` wrote it or not. Taking a copy also counts `from` anew: what it
    /// replaces from then on is new data to it, as the copy keeps the old.
    ///
    /// # Errors
    /// There is no `from`, `to` is taken, the disk is full, or the tree changed where copies are not instant.
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

    /// Removes a tree: it is gone from here at once, its space comes back in the background. None there is a success.
    ///
    /// # Errors
    /// The file system cannot be written.
    pub fn discard(&self, name: &TreeName) -> Result<(), LayerError> {
        match &self.store {
            Store::Subvolumes(store) => store.discard(name),
            Store::Directories(store) => store.discard(name),
        }
    }

    /// Changes the limit; `None` takes it away.
    ///
    /// # Errors
    /// There is no such tree.
    pub fn set_limit(&self, name: &TreeName, limit_mib: Option<u32>) -> Result<(), LayerError> {
        match &self.store {
            Store::Subvolumes(store) => store.set_limit(name, bytes(limit_mib)),
            Store::Directories(store) => store.require(name),
        }
    }

    /// What a tree takes. Instant with limits; else every file is looked at.
    ///
    /// # Errors
    /// There is no such tree.
    pub fn usage(&self, name: &TreeName) -> Result<TreeUsage, LayerError> {
        match &self.store {
            Store::Subvolumes(store) => store.usage(name),
            Store::Directories(store) => store.usage(name),
        }
    }

    /// All trees, in no order.
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

fn lies_on_btrfs(dir: &Path) -> Result<bool, LayerError> {
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

fn holds_trees(dir: &Path) -> bool {
    names_in(dir).is_ok_and(|names| !names.is_empty())
}

/// A directory that only root can enter: set-user-id files in trees are real.
fn make_private(dir: &Path) -> Result<PathBuf, LayerError> {
    let make = || {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        fs::canonicalize(dir)
    };
    make().map_err(LayerError::at(dir))
}

/// Tries it.
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
