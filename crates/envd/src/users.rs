//! Users and groups of /etc/passwd and /etc/group.
//! The files are read on every use: user code may change them at any time, and they are small.
//! The C library is not used: a static binary has no NSS.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags};

/// Maximum number of bytes that are read of a file.
const MAX_SIZE: u64 = 4 << 20;

/// One line of /etc/passwd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Home directory.
    pub home: PathBuf,
}

impl User {
    /// Returns the ids of all groups of the user, the primary group first.
    pub fn groups(&self) -> Vec<u32> {
        parse_memberships(&read("/etc/group"), self)
    }
}

/// Finds a user by name. `root` exists even without /etc/passwd.
pub fn find(name: &str) -> Option<User> {
    let found = parse_passwd(&read("/etc/passwd")).find(|user| user.name == name);
    if found.is_none() && name == "root" {
        return Some(User { name: name.to_owned(), uid: 0, gid: 0, home: PathBuf::from("/root") });
    }
    found
}

/// Names of user and group ids, for listings: each file is read once for any number of entries.
#[derive(Debug, Default)]
pub struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    /// Reads /etc/passwd and /etc/group.
    pub fn load() -> Self {
        let mut names = Self::default();
        for user in parse_passwd(&read("/etc/passwd")) {
            names.users.entry(user.uid).or_insert(user.name);
        }
        for line in read("/etc/group").lines() {
            let mut fields = line.split(':');
            if let (Some(name), Some(Ok(gid))) = (fields.next(), fields.nth(1).map(str::parse)) {
                names.groups.entry(gid).or_insert_with(|| name.to_owned());
            }
        }
        names
    }

    /// Returns the user's name, or the number if there is no such user.
    pub fn user(&self, uid: u32) -> String {
        self.users.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }

    /// Returns the group's name, or the number if there is no such group.
    pub fn group(&self, gid: u32) -> String {
        self.groups.get(&gid).cloned().unwrap_or_else(|| gid.to_string())
    }
}

/// Reads a file. A pipe, a device or a missing file counts as empty.
fn read(path: &str) -> String {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let Ok(fd) = rustix::fs::openat(CWD, path, flags, Mode::empty()) else { return String::new() };
    let file = std::fs::File::from(fd);
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return String::new();
    }
    let mut bytes = Vec::new();
    // Keep what was read before an error.
    let _ = file.take(MAX_SIZE).read_to_end(&mut bytes);
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

fn parse_passwd(text: &str) -> impl Iterator<Item = User> + '_ {
    text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields[..] else { return None };
        let home = if home.is_empty() { "/" } else { home };
        Some(User {
            name: name.to_owned(),
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home: PathBuf::from(OsString::from_vec(home.as_bytes().to_vec())),
        })
    })
}

fn parse_memberships(groups: &str, user: &User) -> Vec<u32> {
    let mut ids = vec![user.gid];
    for line in groups.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let [_, _, gid, members] = fields[..] else { continue };
        let Ok(gid) = gid.parse() else { continue };
        if members.split(',').any(|member| member == user.name) && !ids.contains(&gid) {
            ids.push(gid);
        }
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lines_and_skips_broken_ones() {
        let text = "root:x:0:0:root:/root:/bin/bash\nbroken\nuser:x:1000:1001:,,,:/home/user:/bin/bash\n";
        let users: Vec<User> = parse_passwd(text).collect();
        assert_eq!(users.len(), 2);
        assert_eq!((users[1].uid, users[1].gid), (1000, 1001));
        assert_eq!(users[1].home, PathBuf::from("/home/user"));
    }

    #[test]
    fn finds_supplementary_groups() {
        let user = User { name: "user".into(), uid: 1000, gid: 1000, home: "/home/user".into() };
        let groups = "sudo:x:27:other,user\nuser:x:1000:\ndocker:x:999:user\nnone:x:5:users\n";
        assert_eq!(parse_memberships(groups, &user), [1000, 27, 999]);
    }
}
