//! [`Namespace`]: open namespaces, and running a closure inside a network or UTS namespace.
//! The closure has no await points, so the thread is back in its own namespace before anything else runs on it.
//! If a thread cannot return, the process aborts: otherwise the server would use a sandbox's network for its own work.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// An open namespace. The kernel keeps it as long as this exists.
#[derive(Debug)]
pub struct Namespace(OwnedFd);

impl Namespace {
    /// Opens a namespace (`net`, `user`, …) of the process `pid`.
    ///
    /// # Errors
    /// The process has ended.
    pub fn of_process(pid: i32, kind: &str) -> io::Result<Self> {
        let path = format!("/proc/{pid}/ns/{kind}");
        Ok(Self(open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?))
    }

    /// Creates an empty network namespace. The kernel removes it with the last handle, process and socket in it.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn new_network() -> io::Result<Self> {
        // On a thread that ends right away, so it does not have to return to its own namespace.
        let make = || -> io::Result<Self> {
            // SAFETY: changes this thread only, and nothing else runs on it.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            Ok(Self(open("/proc/thread-self/ns/net", flags, Mode::empty())?))
        };
        let thread = std::thread::Builder::new().name("netns".into()).stack_size(64 * 1024).spawn(make)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that makes a namespace panicked")))
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Runs `action` with this thread inside a network namespace. Sockets that it creates stay in that namespace.
///
/// # Errors
/// The namespace cannot be entered, or `action` fails.
pub fn in_network_namespace<T>(
    namespace: &Namespace,
    action: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    run_in_namespace(namespace, "net", LinkNameSpaceType::Network, action)
}

/// Runs `action` on a thread inside a mount namespace, whose root is the thread's root.
///
/// # Errors
/// The namespace cannot be entered, or `action` fails.
pub fn in_mount_namespace<T: Send>(
    namespace: &Namespace,
    action: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let run = || {
        // A thread that shares its root with others cannot enter. SAFETY: nothing relies on that sharing, and the thread ends here.
        unsafe { unshare_unsafe(UnshareFlags::FS) }?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
        action()
    };
    // On a thread that ends, so it does not have to return to its own namespace.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("mounts".into())
            .stack_size(256 * 1024)
            .spawn_scoped(scope, run)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in a mount namespace panicked")))
    })
}

/// Moves the calling thread into new namespaces of these kinds. A new pid namespace is for the processes that it starts from now on.
///
/// # Errors
/// The kernel refused, or a flag is not a namespace.
pub fn enter_new_namespaces(kinds: UnshareFlags) -> io::Result<()> {
    let namespaces = UnshareFlags::NEWCGROUP
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWUTS;
    if !namespaces.contains(kinds) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: namespaces are not part of the memory and the descriptor table that the process's threads share.
    Ok(unsafe { unshare_unsafe(kinds) }?)
}

/// Sets the host name seen in a UTS namespace.
///
/// # Errors
/// The namespace cannot be entered, or the name is too long.
pub fn set_hostname_in(namespace: &Namespace, name: &str) -> io::Result<()> {
    let set = || Ok(rustix::system::sethostname(name.as_bytes())?);
    run_in_namespace(namespace, "uts", LinkNameSpaceType::HostNameAndNISDomainName, set)
}

fn run_in_namespace<T>(
    namespace: &Namespace,
    kind: &str,
    link: LinkNameSpaceType,
    action: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let own = format!("/proc/thread-self/ns/{kind}");
    let _guard = ReturnGuard(open(own, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?, link);
    move_into_link_name_space(namespace.as_fd(), Some(link))?;
    action()
}

/// Returns the thread to its own namespace when dropped, also after a panic.
struct ReturnGuard(OwnedFd, LinkNameSpaceType);

impl Drop for ReturnGuard {
    fn drop(&mut self) {
        if move_into_link_name_space(self.0.as_fd(), Some(self.1)).is_err() {
            std::process::abort();
        }
    }
}
