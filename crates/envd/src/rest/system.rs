//! What `/init` changes in the sandbox' own system: its marker files, trust store, hosts and name.
//! All paths are below one root, so that a test does not touch its machine.
//! Files are written whole and moved into place: whoever reads them sees the old or the new.

use std::io;
use std::path::{Path, PathBuf};

/// Where programs look for certificate authorities.
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";
/// Where the platform's own lie, to be found again by `update-ca-certificates`.
const OURS: &str = "usr/local/share/ca-certificates/e2b-ca.crt";

/// Writes the files by which programs know that they are in a sandbox, and in which.
pub fn write_markers(root: &Path, sandbox: Option<&str>, template: Option<&str>) -> io::Result<()> {
    let dir = root.join("run/e2b");
    std::fs::create_dir_all(&dir)?;
    write(&dir.join(".E2B_SANDBOX"), b"true")?;
    for (name, value) in [(".E2B_SANDBOX_ID", sandbox), (".E2B_TEMPLATE_ID", template)] {
        if let Some(value) = value {
            write(&dir.join(name), value.as_bytes())?;
        }
    }
    Ok(())
}

/// Makes programs trust these authorities, and no longer the ones given before.
pub fn install_ca(root: &Path, pem: &str) -> io::Result<()> {
    let (bundle, ours) = (root.join(BUNDLE), root.join(OURS));
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

/// Mixes randomness into the kernel's pool: a copied machine must not repeat what its origin draws.
pub fn mix_seed(root: &Path, seed: &str) -> io::Result<()> {
    let digits = seed.as_bytes().chunks(2).map(|pair| {
        let text = std::str::from_utf8(pair).ok().filter(|text| text.len() == 2)?;
        u8::from_str_radix(text, 16).ok()
    });
    let bytes: Option<Vec<u8>> = digits.collect();
    let bytes = bytes.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it is not hexadecimal"))?;
    let mut pool = std::fs::OpenOptions::new().write(true).open(root.join("dev/urandom"))?;
    io::Write::write_all(&mut pool, &bytes)
}

/// Lets `name` stand for `address`, and for nothing else.
pub fn set_host(root: &Path, address: &str, name: &str) -> io::Result<()> {
    let path = root.join("etc/hosts");
    let hosts = std::fs::read_to_string(&path).unwrap_or_default();
    let mut lines: Vec<&str> =
        hosts.lines().filter(|line| !line.split_whitespace().skip(1).any(|n| n == name)).collect();
    let line = format!("{address} {name}");
    lines.push(&line);
    std::fs::create_dir_all(path.parent().unwrap_or(root))?;
    // In place: /etc/hosts is a mount of its own in some sandboxes.
    std::fs::write(&path, lines.join("\n") + "\n")
}

/// Names the sandbox.
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
    fn authorities_are_replaced_not_gathered() {
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
