//! The rights with which envd touches files: those of the user that a request names.
//! envd is root, and a path may lead anywhere: user code can replace any part of it that it may write by a link. With the
//! user's own rights the kernel decides at every step.

use std::io;

use rustix::io::Errno;

use crate::sys;
use crate::users::User;

/// Ids of a user, as the kernel checks them.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Name, for messages.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups.
    groups: Vec<u32>,
}

impl Identity {
    /// Reads the groups of a user. Blocking.
    pub fn of(user: &User) -> Self {
        let groups = if user.uid == 0 { Vec::new() } else { user.groups() };
        Self { name: user.name.clone(), uid: user.uid, gid: user.gid, groups }
    }

    /// Whether the user may do everything.
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// Runs `action`, which must not wait for other threads, with the rights of the user. Calls must not be nested.
    ///
    /// # Errors
    /// The rights cannot be taken on, and `action` did not run.
    pub fn run<T>(&self, action: impl FnOnce() -> T) -> io::Result<T> {
        if self.uid == rustix::process::geteuid().as_raw() {
            return Ok(action());
        }
        sys::with_rights_of(self.uid, self.gid, &self.groups, action)
    }
}

/// Whether an error says that the user lacks a right.
pub fn is_denial(error: Errno) -> bool {
    matches!(error, Errno::ACCESS | Errno::PERM)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn nobody() -> Identity {
        Identity { name: "nobody".into(), uid: 54_321, gid: 54_321, groups: vec![54_321, 54_322] }
    }

    #[test]
    fn rights_are_taken_on_and_given_back() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).expect("changed");
        let [secret, of_group, new] = ["secret", "of_group", "new"].map(|name| dir.path().join(name));
        for file in [&secret, &of_group] {
            std::fs::write(file, "x").expect("written");
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o640)).expect("changed");
        }
        std::os::unix::fs::chown(&of_group, None, Some(54_322)).expect("changed");
        let before = rustix::thread::capabilities(None).expect("read");
        let groups = rustix::process::getgroups().expect("read");

        let (denied, allowed, created, effective) = nobody()
            .run(|| {
                let effective = rustix::thread::capabilities(None).expect("read").effective;
                (std::fs::read(&secret), std::fs::read(&of_group), std::fs::write(&new, "x"), effective)
            })
            .expect("root may act for others");
        assert_eq!(denied.expect_err("not readable").kind(), io::ErrorKind::PermissionDenied);
        assert!(allowed.is_ok() && created.is_ok() && effective.is_empty());
        let meta = std::fs::metadata(&new).expect("created");
        assert_eq!((meta.uid(), meta.gid()), (54_321, 54_321));

        assert!(std::fs::read(&secret).is_ok(), "root again");
        assert_eq!(rustix::thread::capabilities(None).expect("read"), before);
        assert_eq!(rustix::process::getgroups().expect("read"), groups);
        let panicked = std::panic::catch_unwind(|| nobody().run(|| panic!("within")));
        assert!(panicked.is_err() && std::fs::read(&secret).is_ok(), "root again after a panic");
    }

    #[test]
    fn an_impossible_id_is_an_error() {
        if rustix::process::geteuid().is_root() {
            let identity = Identity { uid: u32::MAX, ..nobody() };
            let mut has_run = false;
            assert!(identity.run(|| has_run = true).is_err() && !has_run);
        }
    }
}
