//! Handles on namespaces, and short visits to a network or UTS namespace.
//! A visit is a closure without await points, so the thread is back home before anything else runs on it.
//! A thread that cannot come home ends the process: it would do the host's business in a sandbox's network.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// An open namespace; lives at least as long as this.
#[derive(Debug)]
pub struct Namespace(OwnedFd);

impl Namespace {
    /// Opens a namespace (`net`, `user`, …) of the process `pid`.
    ///
    /// # Errors
    /// The process is gone.
    pub fn of_process(pid: i32, kind: &str) -> io::Result<Self> {
        let path = format!("/proc/{pid}/ns/{kind}");
        Ok(Self(open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?))
    }

    /// Makes a network namespace with nothing in it. It goes with the last handle, process and socket in it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new_network() -> io::Result<Self> {
        // On a thread that ends right away: it never has to find its way home.
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

/// Runs `visit` with this thread inside a network namespace. Sockets made there stay there.
///
/// # Errors
/// The namespace cannot be entered, or `visit` fails.
pub fn in_network_namespace<T>(
    namespace: &Namespace,
    visit: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    visit_namespace(namespace, "net", LinkNameSpaceType::Network, visit)
}

/// Leaves the namespaces of these kinds for new ones: the calling thread, except that a new pid namespace is for the
/// processes it starts from now on.
///
/// # Errors
/// The kernel refuses, or the flags are not all namespaces.
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
    // SAFETY: namespaces are no part of what the process's threads share in its memory or descriptor table.
    Ok(unsafe { unshare_unsafe(kinds) }?)
}

/// Sets the host name seen in a UTS namespace.
///
/// # Errors
/// The namespace cannot be entered, or the name is too long.
pub fn set_hostname_in(namespace: &Namespace, name: &str) -> io::Result<()> {
    let set = || Ok(rustix::system::sethostname(name.as_bytes())?);
    visit_namespace(namespace, "uts", LinkNameSpaceType::HostNameAndNISDomainName, set)
}

fn visit_namespace<T>(
    namespace: &Namespace,
    kind: &str,
    link: LinkNameSpaceType,
    visit: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let own = format!("/proc/thread-self/ns/{kind}");
    let _return = WayHome(open(own, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?, link);
    move_into_link_name_space(namespace.as_fd(), Some(link))?;
    visit()
}

/// Brings the thread back, also when the visit panics.
struct WayHome(OwnedFd, LinkNameSpaceType);

impl Drop for WayHome {
    fn drop(&mut self) {
        if move_into_link_name_space(self.0.as_fd(), Some(self.1)).is_err() {
            std::process::abort();
        }
    }
}
