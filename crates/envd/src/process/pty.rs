//! Pseudo-terminals: envd has the master side; the slave side becomes the process's controlling terminal.
//! The user owns the slave, so that programs may open it again by name.

use std::os::fd::{AsFd, OwnedFd};

use envd_api::process::PTY;
use rustix::fs::{Gid, Uid};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::users::User;

/// Opens a terminal of a size and returns its master and slave.
pub fn open(size: Winsize, user: &User) -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    rustix::termios::tcsetwinsize(&slave, size)?;
    // Some kernels' devpts forbids it; then only opening by name fails.
    let _ = rustix::fs::fchown(&slave, Some(Uid::from_raw(user.uid)), None::<Gid>);
    rustix::io::ioctl_fionbio(&master, true)?;
    Ok((master, slave))
}

/// Changes the size; the kernel notifies the foreground processes.
pub fn resize(master: impl AsFd, size: Winsize) -> rustix::io::Result<()> {
    rustix::termios::tcsetwinsize(master, size)
}

/// Returns the size that a request asks for, 80 by 24 by default.
pub fn size(pty: &PTY) -> Winsize {
    let or = |value: u32, default: u16| match value {
        0 => default,
        value => u16::try_from(value).unwrap_or(u16::MAX),
    };
    let size = pty.size.as_option();
    Winsize {
        ws_col: or(size.map_or(0, |s| s.cols), 80),
        ws_row: or(size.map_or(0, |s| s.rows), 24),
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
