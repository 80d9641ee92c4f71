//! Changes of `/init` to the sandbox's system files: marker files, trusted certificates, hosts and host name.
//! All paths are below one root directory, so that tests do not change the system they run on.
//! Most files are written whole and renamed into place, so that readers see either the old or the new contents.

use std::io;
use std::path::{Path, PathBuf};

/// Certificate authorities that programs trust.
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";
/// The platform's own authorities, where `update-ca-certificates` finds them.
const PLATFORM_CA: &str = "usr/local/share/ca-certificates/e2b-ca.crt";

/// Writes the marker files by which programs detect that they run in a sandbox, and its ids.
pub fn write_markers(root: &Path, sandbox_id: Option<&str>, template_id: Option<&str>) -> io::Result<()> {
    let dir = root.join("run/e2b");
    std::fs::create_dir_all(&dir)?;
    write(&dir.join(".E2B_SANDBOX"), b"true")?;
    for (name, value) in [(".E2B_SANDBOX_ID", sandbox_id), (".E2B_TEMPLATE_ID", template_id)] {
        if let Some(value) = value {
            write(&dir.join(name), value.as_bytes())?;
        }
    }
    Ok(())
}

/// Makes programs trust these authorities, in place of those of an earlier call.
pub fn install_ca(root: &Path, pem: &str) -> io::Result<()> {
    let (bundle, ours) = (root.join(BUNDLE), root.join(PLATFORM_CA));
    let before = std::fs::read_to_string(&ours).unwrap_or_default();
    let pem = format!("{}\n", pem.trim());
    let mut all = std::fs::read_to_string(&bundle).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(String::new()),
        _ => Err(error),
    })?;
    if !before.is_empty() {
        all = all.replace(&before, "");
    }
    if !all.is_empty() && !all.ends_with('\n') {
        all.push('\n');
    }
    all.push_str(&pem);
    for path in [&bundle, &ours] {
        std::fs::create_dir_all(path.parent().unwrap_or(root))?;
    }
    write(&bundle, all.as_bytes())?;
    write(&ours, pem.as_bytes())
}

/// Mixes randomness into the kernel's pool: a restored guest must not draw the same numbers as its original.
pub fn mix_seed(root: &Path, seed: &str) -> io::Result<()> {
    let digits = seed.as_bytes().chunks(2).map(|pair| {
        let text = std::str::from_utf8(pair).ok().filter(|text| text.len() == 2)?;
        u8::from_str_radix(text, 16).ok()
    });
    let bytes: Option<Vec<u8>> = digits.collect();
    let bytes =
        bytes.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the seed is not hexadecimal"))?;
    let mut pool = std::fs::OpenOptions::new().write(true).open(root.join("dev/urandom"))?;
    io::Write::write_all(&mut pool, &bytes)
}

/// Makes `name` resolve to `address` only.
pub fn set_host(root: &Path, address: &str, name: &str) -> io::Result<()> {
    let path = root.join("etc/hosts");
    let hosts = std::fs::read_to_string(&path).unwrap_or_default();
    let mut lines: Vec<&str> =
        hosts.lines().filter(|line| !line.split_whitespace().skip(1).any(|n| n == name)).collect();
    let line = format!("{address} {name}");
    lines.push(&line);
    std::fs::create_dir_all(path.parent().unwrap_or(root))?;
    // Written in place: /etc/hosts is a mount point in some sandboxes.
    std::fs::write(&path, lines.join("\n") + "\n")
}

/// Sets the host name.
pub fn set_hostname(root: &Path, name: &str) -> io::Result<()> {
    if root == Path::new("/") {
        rustix::system::sethostname(name.as_bytes())?;
    }
    std::fs::create_dir_all(root.join("etc"))?;
    std::fs::write(root.join("etc/hostname"), format!("{name}\n"))?;
    set_host(root, "127.0.1.1", name)
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new: PathBuf = path.with_file_name(name);
    std::fs::write(&new, bytes)?;
    std::fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_replaced_not_accumulated() {
        let dir = tempfile::tempdir().expect("a directory");
        let bundle = dir.path().join(BUNDLE);
        std::fs::create_dir_all(bundle.parent().expect("a parent")).expect("made");
        std::fs::write(&bundle, "SYSTEM").expect("written");
        install_ca(dir.path(), "ONE\n").expect("installed");
        assert_eq!(std::fs::read_to_string(&bundle).expect("read"), "SYSTEM\nONE\n");
        install_ca(dir.path(), "TWO").expect("installed");
        assert_eq!(std::fs::read_to_string(&bundle).expect("read"), "SYSTEM\nTWO\n");
    }

    #[test]
    fn hosts_have_one_line_per_name() {
        let dir = tempfile::tempdir().expect("a directory");
        set_host(dir.path(), "10.0.0.1", "events.e2b.local").expect("set");
        set_host(dir.path(), "10.0.0.2", "events.e2b.local").expect("set");
        let hosts = std::fs::read_to_string(dir.path().join("etc/hosts")).expect("read");
        assert_eq!(hosts, "10.0.0.2 events.e2b.local\n");
    }
}
