//! Forbidding user namespaces inside a user namespace that CRIU has made.
//! The kernel chooses the namespace of this setting by the process that opens the file, so a short-lived child enters the namespace
//! to write it. The child shares the server's memory and only makes raw system calls.

use std::cell::UnsafeCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

use rustix::fs::{Mode, OFlags, open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sys::{ChildStack, Namespace, spawn_child};

use super::plan::exit;
use super::reap;

/// What the child is to do, and its result.
struct Request {
    namespace: i32,
    /// The kernel's error number; -1 until the child has written something.
    result: UnsafeCell<i32>,
}

/// Sets `user.max_user_namespaces` to 0 in `namespace`.
///
/// # Errors
/// The kernel refused.
pub(crate) fn forbid_user_namespaces(namespace: &Namespace) -> io::Result<()> {
    let request = Request { namespace: namespace.as_fd().as_raw_fd(), result: UnsafeCell::new(-1) };
    let stack = ChildStack::new()?;
    let flags = (libc::CLONE_VM | libc::CLONE_VFORK) as u64;
    // SAFETY: stack and request outlive the call, which returns after the child has ended (CLONE_VFORK); `write_setting` makes raw
    // calls only and touches nothing but the request.
    let child = unsafe { spawn_child(flags, &stack, None, write_setting, ptr::from_ref(&request) as usize) }?;
    reap(child.pid);
    match request.result.into_inner() {
        0 => Ok(()),
        -1 => Err(io::Error::other("the child ended early")),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

extern "C" fn write_setting(request: usize) -> ! {
    // SAFETY: the parent keeps the request alive and untouched until this process has ended.
    let request = unsafe { &*(request as *const Request) };
    // SAFETY: the parent's descriptor; this process has a copy of the table.
    let namespace = unsafe { BorrowedFd::borrow_raw(request.namespace) };
    let work = || {
        move_into_link_name_space(namespace, Some(LinkNameSpaceType::User))?;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = open(c"/proc/sys/user/max_user_namespaces", flags, Mode::empty())?;
        rustix::io::write(file, b"0")
    };
    let result = work().map_or_else(rustix::io::Errno::raw_os_error, |_| 0);
    // SAFETY: the parent reads it only after this process has ended.
    unsafe { *request.result.get() = result };
    exit()
}
