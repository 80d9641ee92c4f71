//! Paths inside a build, as text: they are resolved by the sandbox, never by the host.
//! They are joined as in Docker: an absolute path replaces the directory, a relative one is appended. A slash at the end means a
//! directory and is kept.

/// Returns `path` relative to `dir`, which is absolute. `.` and `..` are resolved in the text.
#[must_use]
pub fn join(dir: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{dir}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let joined = format!("/{}", parts.join("/"));
    if keeps_slash(path) && joined != "/" { format!("{joined}/") } else { joined }
}

/// Returns whether a destination must be a directory.
#[must_use]
pub fn keeps_slash(path: &str) -> bool {
    path.ends_with('/') || path == "." || path == ".." || path.ends_with("/.") || path.ends_with("/..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_as_docker_does() {
        for (dir, path, wanted) in [
            ("/home/user", "app", "/home/user/app"),
            ("/home/user", "app/", "/home/user/app/"),
            ("/home/user", ".", "/home/user/"),
            ("/home/user", "./a/../b", "/home/user/b"),
            ("/home/user", "/etc//x", "/etc/x"),
            ("/", "../..", "/"),
            ("/", "a", "/a"),
        ] {
            assert_eq!(join(dir, path), wanted, "{dir} {path}");
        }
    }
}
