//! Forbids user namespaces inside a user namespace that was made by somebody else (CRIU).
//! The setting belongs to whoever opens it, so a short-lived child enters the namespace to write it.
//! The child shares the server's memory: raw system calls only.

use std::cell::UnsafeCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

use rustix::fs::{Mode, OFlags, open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sys::{ChildStack, Namespace, spawn_child};

use super::plan::exit;
use super::reap;

struct Order {
    namespace: i32,
    /// The kernel's error number; -1 until the child has written something.
    answer: UnsafeCell<i32>,
}

/// Sets `user.max_user_namespaces` to 0 in `namespace`.
///
/// # Errors
/// The kernel refused.
pub(crate) fn forbid_user_namespaces(namespace: &Namespace) -> io::Result<()> {
    let order = Order { namespace: namespace.as_fd().as_raw_fd(), answer: UnsafeCell::new(-1) };
    let stack = ChildStack::new()?;
    let flags = (libc::CLONE_VM | libc::CLONE_VFORK) as u64;
    // SAFETY: stack and order outlive the call, which returns after the child has ended (CLONE_VFORK); `write` makes raw
    // calls only and touches nothing but the order.
    let child = unsafe { spawn_child(flags, &stack, None, write, ptr::from_ref(&order) as usize) }?;
    reap(child.pid);
    match order.answer.into_inner() {
        0 => Ok(()),
        -1 => Err(io::Error::other("the child ended early")),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

extern "C" fn write(order: usize) -> ! {
    // SAFETY: the parent keeps the order alive and untouched until this process has ended.
    let order = unsafe { &*(order as *const Order) };
    // SAFETY: the parent's descriptor; this process has a copy of the table.
    let namespace = unsafe { BorrowedFd::borrow_raw(order.namespace) };
    let work = || {
        move_into_link_name_space(namespace, Some(LinkNameSpaceType::User))?;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = open(c"/proc/sys/user/max_user_namespaces", flags, Mode::empty())?;
        rustix::io::write(file, b"0")
    };
    let answer = work().map_or_else(rustix::io::Errno::raw_os_error, |_| 0);
    // SAFETY: the parent reads it only after this process has ended.
    unsafe { *order.answer.get() = answer };
    exit()
}
