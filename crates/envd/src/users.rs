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

/// Highest id of users and groups in a sandbox.
const MAX_ID: u32 = 65_534;

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

/// Finds a user by name or number, with another group's name or number after a colon if there is one, as `USER` of a Dockerfile names
/// users. `root` exists even without /etc/passwd, and so do users with numbers: their group is root's, as in Docker.
pub fn find(text: &str) -> Option<User> {
    find_in(&read("/etc/passwd"), || read("/etc/group"), text)
}

fn find_in(passwd: &str, groups: impl Fn() -> String, text: &str) -> Option<User> {
    let (name, group) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
    let found = parse_passwd(passwd).find(|user| user.name == name).or_else(|| {
        let uid = number(name)?;
        let named = parse_passwd(passwd).find(|user| user.uid == uid);
        Some(named.unwrap_or_else(|| User { name: name.to_owned(), uid, gid: 0, home: PathBuf::from("/") }))
    });
    let is_root = name == "root";
    let root = || User { name: name.to_owned(), uid: 0, gid: 0, home: PathBuf::from("/root") };
    let user = found.or_else(|| is_root.then(root))?;
    let Some(group) = group else { return Some(user) };
    let gid = group_id(&groups(), group).or_else(|| number(group))?;
    Some(User { gid, ..user })
}

/// Returns an id that a sandbox can have.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id <= MAX_ID && text.bytes().all(|byte| byte.is_ascii_digit()))
}

fn group_id(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [found, _, gid, ..] = fields[..] else { return None };
        (found == name).then(|| gid.parse().ok()).flatten()
    })
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
    fn users_have_names_or_numbers_and_may_have_another_group() {
        let passwd = "user:x:1000:1001:,,,:/home/user:/bin/bash\n77:x:1077:1077::/home/77:/bin/sh\n";
        let find = |text| {
            let found = find_in(passwd, || "staff:x:50:\n".to_owned(), text);
            found.map(|user| (user.name, user.uid, user.gid, user.home.to_string_lossy().into_owned()))
        };
        let user = |name: &str, uid, gid, home: &str| Some((name.to_owned(), uid, gid, home.to_owned()));
        assert_eq!(find("1000"), user("user", 1000, 1001, "/home/user"));
        assert_eq!(find("77"), user("77", 1077, 1077, "/home/77"));
        assert_eq!(find("4242"), user("4242", 4242, 0, "/"));
        assert_eq!(find("4242:4243"), user("4242", 4242, 4243, "/"));
        assert_eq!(find("user:staff"), user("user", 1000, 50, "/home/user"));
        assert_eq!(find("root:1"), user("root", 0, 1, "/root"));
        for missing in ["bob", "", "user:", "user:nothing", "-1", "+5", "65535", "4294967296", "1000:70000"] {
            assert_eq!(find(missing), None, "{missing}");
        }
    }

    #[test]
    fn finds_supplementary_groups() {
        let user = User { name: "user".into(), uid: 1000, gid: 1000, home: "/home/user".into() };
        let groups = "sudo:x:27:other,user\nuser:x:1000:\ndocker:x:999:user\nnone:x:5:users\n";
        assert_eq!(parse_memberships(groups, &user), [1000, 27, 999]);
    }
}
