//! A tree of directories that is watched with inotify, completely even while it changes.
//! A new directory is watched first and then read; the entries in it are reported as created, and the
//! kernel's own events of them are dropped. So no event is lost and none is reported twice.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use connectrpc::ConnectError;
use envd_api::filesystem::{EventType, FilesystemEvent};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::filesystem::entry;
use crate::filesystem::ops::error_text;
use crate::filesystem::watch::Options;
use crate::users::Names;

/// Maximum number of events that are kept for a client.
const MAX_EVENTS: usize = 1 << 17;

/// Types of network filesystems: NFS, SMB, CIFS, SMB2, FUSE.
const NETWORK: [i64; 5] = [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x6573_5546];

/// Why events were lost.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum LostEvents {
    /// The kernel's queue was full.
    #[error("inotify queue overflow")]
    Queue,
    /// The client did not read its events.
    #[error("too many events waiting to be fetched")]
    Buffer,
    /// The rights of the user could not be taken on.
    #[error("cannot act as the user of the watcher")]
    Rights,
    /// A new directory could not be watched.
    #[error("cannot watch a new directory: {0}")]
    Watch(Errno),
}

#[derive(Debug)]
struct WatchedDir {
    /// Path relative to the root; empty for the root itself.
    relative: PathBuf,
    /// Names that were reported as created already, before the kernel's events of them have arrived.
    reported: HashSet<OsString>,
}

/// How the entries of a new directory got there.
#[derive(Debug, Clone, Copy)]
enum EntryOrigin {
    /// They were created after the directory.
    Created,
    /// They were moved together with the directory.
    Moved,
}

impl EntryOrigin {
    /// Returns the events that the kernel would have reported, had the directory been watched in time.
    fn flags(self, child: &std::fs::DirEntry) -> ReadFlags {
        let written = || child.metadata().is_ok_and(|meta| meta.is_file() && meta.len() > 0);
        match self {
            Self::Created if written() => ReadFlags::CREATE | ReadFlags::MODIFY,
            Self::Created | Self::Moved => ReadFlags::CREATE,
        }
    }
}

/// An owned copy of an inotify event.
#[derive(Debug)]
struct KernelEvent {
    wd: i32,
    flags: ReadFlags,
    cookie: u32,
    name: Option<OsString>,
}

/// A watched tree of directories.
#[derive(Debug)]
pub struct WatchedTree {
    root: PathBuf,
    options: Options,
    queue: OwnedFd,
    dirs: HashMap<i32, WatchedDir>,
    names: Names,
}

impl WatchedTree {
    /// Begins to watch `root`, and all directories below it if the options say so.
    pub fn new(root: PathBuf, options: Options) -> Result<Self, ConnectError> {
        let shown = root.display().to_string();
        let meta = std::fs::metadata(&root).map_err(|error| {
            if error.kind() == std::io::ErrorKind::PermissionDenied {
                return ConnectError::permission_denied(format!(
                    "cannot watch path {shown}: permission denied"
                ));
            }
            ConnectError::not_found(format!("path {shown} not found: {}", error_text(&error)))
        })?;
        if !meta.is_dir() {
            return Err(ConnectError::invalid_argument(format!("path {shown} not a directory")));
        }
        if !options.allow_network_mounts && is_network(&root) {
            return Err(ConnectError::invalid_argument(format!(
                "cannot watch path on network filesystem: {shown}"
            )));
        }
        let failed = |error: Errno| match error {
            Errno::NOSPC | Errno::MFILE | Errno::NFILE | Errno::NOMEM => {
                ConnectError::resource_exhausted(format!("error adding path to watcher: {error}"))
            }
            Errno::ACCESS => {
                ConnectError::permission_denied(format!("cannot watch path {shown}: permission denied"))
            }
            error => ConnectError::internal(format!("error adding path to watcher: {error}")),
        };
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(failed)?;
        let names = if options.include_entry { Names::load() } else { Names::default() };
        let mut tree = Self { root, options, queue, dirs: HashMap::new(), names };
        tree.add(PathBuf::new(), None).map_err(failed)?;
        Ok(tree)
    }

    /// The inotify descriptor, which is readable when there are events.
    pub fn queue(&self) -> &OwnedFd {
        &self.queue
    }

    /// Reads the queue and adds its events to `events`.
    pub fn read(&mut self, events: &mut Vec<FilesystemEvent>) -> Result<(), LostEvents> {
        let mut leaving: Option<(u32, PathBuf)> = None;
        loop {
            let batch = self.batch();
            if batch.is_empty() {
                break;
            }
            for raw in batch {
                // If a directory was moved within the tree, the very next event reports its new name.
                if let Some((cookie, from)) = leaving.take()
                    && !(raw.flags.contains(ReadFlags::MOVED_TO) && raw.cookie == cookie)
                {
                    self.forget(&from);
                }
                self.handle(raw, events, &mut leaving)?;
                if events.len() > MAX_EVENTS {
                    return Err(LostEvents::Buffer);
                }
            }
        }
        if let Some((_, from)) = leaving {
            self.forget(&from);
        }
        Ok(())
    }

    fn batch(&self) -> Vec<KernelEvent> {
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let mut reader = Reader::new(&self.queue, &mut buffer);
        let mut batch = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => batch.push(KernelEvent {
                    wd: event.wd(),
                    flags: event.events(),
                    cookie: event.cookie(),
                    name: event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).to_owned()),
                }),
                Err(Errno::INTR) => continue,
                Err(_empty) => return batch,
            }
            if reader.is_buffer_empty() {
                return batch;
            }
        }
    }

    fn handle(
        &mut self,
        raw: KernelEvent,
        events: &mut Vec<FilesystemEvent>,
        leaving: &mut Option<(u32, PathBuf)>,
    ) -> Result<(), LostEvents> {
        let flags = raw.flags;
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return Err(LostEvents::Queue);
        }
        if flags.contains(ReadFlags::IGNORED) {
            self.dirs.remove(&raw.wd);
            return Ok(());
        }
        let Some(dir) = self.dirs.get_mut(&raw.wd) else { return Ok(()) };
        let Some(name) = raw.name else {
            // An event of the watched directory itself; events of directories below the root come from their parents.
            if dir.relative.as_os_str().is_empty() {
                self.report_event(Path::new(""), flags, events);
            }
            return Ok(());
        };
        let path = dir.relative.join(&name);
        let reported = dir.reported.contains(&name);
        if flags.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
            dir.reported.remove(&name);
        }
        if flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) && reported {
            dir.reported.remove(&name);
            return Ok(());
        }
        self.report_event(&path, flags, events);
        if !self.options.recursive || !flags.contains(ReadFlags::ISDIR) {
            return Ok(());
        }
        if flags.contains(ReadFlags::MOVED_FROM) {
            *leaving = Some((raw.cookie, path));
        } else if flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            let found =
                if flags.contains(ReadFlags::CREATE) { EntryOrigin::Created } else { EntryOrigin::Moved };
            self.add(path, Some((events, found))).map_err(LostEvents::Watch)?;
        }
        Ok(())
    }

    /// Watches a directory and those below it. With `report` given, the entries found are reported.
    fn add(
        &mut self,
        relative: PathBuf,
        mut report: Option<(&mut Vec<FilesystemEvent>, EntryOrigin)>,
    ) -> Result<(), Errno> {
        let mut todo = vec![relative];
        while let Some(relative) = todo.pop() {
            let path = self.root.join(&relative);
            let is_root = relative.as_os_str().is_empty();
            let wd = match inotify::add_watch(&self.queue, &path, watch_flags(is_root)) {
                Ok(wd) => wd,
                // It has vanished or was replaced: its parent reports that. Or the user may not read it, or it is so deep that it has no
                // path, and so its events neither.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS | Errno::NAMETOOLONG)
                    if !is_root =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            };
            // A directory that is watched already was only moved: its entries are not new.
            let known = self.dirs.contains_key(&wd);
            let mut reported = HashSet::new();
            if self.options.recursive {
                for child in std::fs::read_dir(&path).into_iter().flatten().flatten() {
                    let child_path = relative.join(child.file_name());
                    if let Some((events, found)) = &mut report
                        && !known
                    {
                        reported.insert(child.file_name());
                        self.report_event(&child_path, found.flags(&child), events);
                    }
                    if child.file_type().is_ok_and(|kind| kind.is_dir()) {
                        todo.push(child_path);
                    }
                }
            }
            let dir = self
                .dirs
                .entry(wd)
                .or_insert_with(|| WatchedDir { relative: PathBuf::new(), reported: HashSet::new() });
            dir.relative = relative;
            dir.reported.extend(reported);
        }
        Ok(())
    }

    /// Stops watching a directory that was moved out of the tree, and those below it.
    fn forget(&mut self, relative: &Path) {
        let queue = &self.queue;
        self.dirs.retain(|&wd, dir| {
            let stays = !dir.relative.starts_with(relative);
            if !stays {
                // Fails if the kernel has removed it already.
                let _ = inotify::remove_watch(queue, wd);
            }
            stays
        });
    }

    fn report_event(&self, path: &Path, flags: ReadFlags, events: &mut Vec<FilesystemEvent>) {
        let kinds = [
            (ReadFlags::CREATE | ReadFlags::MOVED_TO, EventType::EVENT_TYPE_CREATE),
            (ReadFlags::MOVED_FROM | ReadFlags::MOVE_SELF, EventType::EVENT_TYPE_RENAME),
            (ReadFlags::ATTRIB, EventType::EVENT_TYPE_CHMOD),
            (ReadFlags::MODIFY, EventType::EVENT_TYPE_WRITE),
            (ReadFlags::DELETE | ReadFlags::DELETE_SELF, EventType::EVENT_TYPE_REMOVE),
        ];
        for (_, kind) in kinds.into_iter().filter(|(mask, _)| flags.intersects(*mask)) {
            let leaves_entry = !matches!(kind, EventType::EVENT_TYPE_RENAME | EventType::EVENT_TYPE_REMOVE);
            let entry = (self.options.include_entry && leaves_entry)
                .then(|| entry::describe(&self.root.join(path), &self.names).ok())
                .flatten();
            let name = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            events.push(FilesystemEvent {
                name: name.to_string_lossy().into_owned(),
                r#type: kind.into(),
                entry: entry.into(),
                ..Default::default()
            });
        }
    }
}

fn watch_flags(is_root: bool) -> WatchFlags {
    let flags = WatchFlags::CREATE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::ATTRIB
        | WatchFlags::MODIFY
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR;
    // The root may be named by a link; links below are not followed.
    if is_root { flags } else { flags | WatchFlags::DONT_FOLLOW }
}

fn is_network(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| NETWORK.contains(&fs.f_type))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(events: &[FilesystemEvent], kind: EventType) -> Vec<&str> {
        let mut names: Vec<_> = events.iter().filter(|e| e.r#type == kind).map(|e| e.name.as_str()).collect();
        names.sort_unstable();
        names
    }

    fn watch() -> (tempfile::TempDir, WatchedTree) {
        let dir = tempfile::tempdir().expect("a directory");
        let options = Options { recursive: true, ..Default::default() };
        let tree = WatchedTree::new(dir.path().to_owned(), options).expect("watched");
        (dir, tree)
    }

    #[test]
    fn reports_every_event_of_a_burst_once() {
        let (dir, mut tree) = watch();
        let mut expected = Vec::new();
        for a in 0..10 {
            for b in 0..10 {
                let sub = format!("{a}/{b}");
                std::fs::create_dir_all(dir.path().join(&sub)).expect("made");
                for c in 0..20 {
                    std::fs::write(dir.path().join(format!("{sub}/{c}")), "x").expect("written");
                    expected.push(format!("{sub}/{c}"));
                }
                expected.push(sub);
            }
            expected.push(a.to_string());
        }
        let mut events = Vec::new();
        tree.read(&mut events).expect("nothing lost");
        expected.sort_unstable();
        assert_eq!(names(&events, EventType::EVENT_TYPE_CREATE), expected);

        // From now on the new directories are watched too.
        events.clear();
        std::fs::write(dir.path().join("3/3/late"), "x").expect("written");
        tree.read(&mut events).expect("nothing lost");
        assert_eq!(names(&events, EventType::EVENT_TYPE_CREATE), ["3/3/late"]);
    }

    #[test]
    fn follows_moves_within_and_forgets_moves_out() {
        let (dir, mut tree) = watch();
        let outside = tempfile::tempdir().expect("a directory");
        let mut events = Vec::new();
        std::fs::create_dir_all(dir.path().join("a/b")).expect("made");
        tree.read(&mut events).expect("nothing lost");

        events.clear();
        std::fs::rename(dir.path().join("a"), dir.path().join("c")).expect("moved");
        tree.read(&mut events).expect("nothing lost");
        assert_eq!(names(&events, EventType::EVENT_TYPE_RENAME), ["a"]);
        assert_eq!(names(&events, EventType::EVENT_TYPE_CREATE), ["c"]);

        events.clear();
        std::fs::write(dir.path().join("c/b/f"), "x").expect("written");
        tree.read(&mut events).expect("nothing lost");
        assert_eq!(names(&events, EventType::EVENT_TYPE_CREATE), ["c/b/f"]);

        events.clear();
        std::fs::rename(dir.path().join("c"), outside.path().join("c")).expect("moved");
        tree.read(&mut events).expect("nothing lost");
        std::fs::write(outside.path().join("c/b/g"), "x").expect("written");
        tree.read(&mut events).expect("nothing lost");
        assert_eq!(names(&events, EventType::EVENT_TYPE_RENAME), ["c"]);
        assert_eq!(names(&events, EventType::EVENT_TYPE_CREATE), [""; 0]);
    }

    #[test]
    fn a_full_queue_is_reported() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut tree = WatchedTree::new(dir.path().to_owned(), Options::default()).expect("watched");
        let most = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("a limit");
        let most: usize = most.trim().parse().expect("a number");
        let files = ["a", "b"].map(|name| dir.path().join(name));
        files.iter().for_each(|file| std::fs::write(file, "").expect("written"));
        // The queue is not read meanwhile. The kernel merges consecutive events of one file, so two files take turns.
        for file in files.iter().cycle().take(most + 1) {
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).expect("changed");
        }
        let mut events = Vec::new();
        assert_eq!(tree.read(&mut events), Err(LostEvents::Queue));
        assert!(events.len() >= most - 1, "events before the gap are present");
    }
}
