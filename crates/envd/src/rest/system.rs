//! Changes of `/init` to the sandbox's system files: marker files, trusted certificates, hosts and host name.
//! All paths are below one root directory, so that tests do not change the system they run on.
//! Most files are written whole and renamed into place, so that readers see either the old or the new contents.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::java_store;

/// Certificate authorities that programs trust.
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";
/// The platform's own authorities, where `update-ca-certificates` finds them.
const PLATFORM_CA: &str = "usr/local/share/ca-certificates/e2b-ca.crt";
/// The store of authorities that Java reads.
const JAVA_STORE: &str = "etc/ssl/certs/java/cacerts";
/// Maximum size of a bundle, bytes.
const MAX_BUNDLE: u64 = 8 << 20;
/// Variables that name authorities besides a program's own ones.
const ADDING: [&str; 2] = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];
/// Variables that name all authorities of a program.
const REPLACING: [&str; 7] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
    "PIP_CERT",
    "CARGO_HTTP_CAINFO",
];

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

/// Makes programs trust these authorities, in place of those of an earlier call. Returns the environment variables by which programs find
/// them that do not read the system's bundle.
///
/// The bundle is a regular file of some hundred KiB everywhere; anything else in its place is left alone.
pub fn install_ca(root: &Path, pem: &str) -> io::Result<BTreeMap<String, String>> {
    let (bundle, ours) = (root.join(BUNDLE), root.join(PLATFORM_CA));
    let before = read_regular(&ours)?.unwrap_or_default();
    let pem = format!("{}\n", pem.trim());
    let mut all = read_regular(&bundle)?.unwrap_or_default();
    let is_installed = before == pem.as_bytes() && find(&all, &before).is_some();
    if !is_installed {
        if let Some(at) = find(&all, &before) {
            all.drain(at..at + before.len());
        }
        if !all.is_empty() && !all.ends_with(b"\n") {
            all.push(b'\n');
        }
        all.extend_from_slice(pem.as_bytes());
        for path in [&bundle, &ours] {
            std::fs::create_dir_all(path.parent().unwrap_or(root))?;
        }
        // Some distributions have a link here to where all their programs read.
        write(&bundle.canonicalize().unwrap_or(bundle), &all)?;
        write(&ours, pem.as_bytes())?;
    }
    let java = root.join(JAVA_STORE);
    if let Ok(Some(store)) = read_regular(&java)
        && let Some(new) = java_store::with_authorities(&store, &pem)
    {
        write(&java.canonicalize().unwrap_or(java), &new)?;
    }
    let path = |relative: &str| format!("/{relative}");
    let mut variables = BTreeMap::new();
    for name in ADDING {
        variables.insert(name.to_owned(), path(PLATFORM_CA));
    }
    // Without other authorities in it, the bundle would take those away that programs bring along.
    if all.len() > pem.len() {
        for name in REPLACING {
            variables.insert(name.to_owned(), path(BUNDLE));
        }
    }
    Ok(variables)
}

/// Reads a regular file of the size that bundles have; `None` if there is none.
fn read_regular(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() <= MAX_BUNDLE => std::fs::read(path).map(Some),
        Ok(_) => Err(io::Error::other(format!("{} is not a bundle of certificates", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns where these lines are in a text.
fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    if needle.is_empty() {
        return None;
    }
    // It is at the start of a line.
    let ends = haystack.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    let mut starts = std::iter::once(0).chain(ends.map(|(at, _)| at + 1));
    starts.find(|at| haystack[*at..].starts_with(needle))
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
        std::fs::write(&bundle, b"SYSTEM \xff").expect("written");
        install_ca(dir.path(), "ONE\n").expect("installed");
        assert_eq!(std::fs::read(&bundle).expect("read"), b"SYSTEM \xff\nONE\n");
        let variables = install_ca(dir.path(), "TWO").expect("installed");
        assert_eq!(std::fs::read(&bundle).expect("read"), b"SYSTEM \xff\nTWO\n");
        assert_eq!(variables["SSL_CERT_FILE"], "/etc/ssl/certs/ca-certificates.crt");
        assert_eq!(variables["NODE_EXTRA_CA_CERTS"], "/usr/local/share/ca-certificates/e2b-ca.crt");
        let written = std::fs::metadata(&bundle).expect("there").modified().expect("has a time");
        assert_eq!(install_ca(dir.path(), "TWO").expect("installed"), variables);
        assert_eq!(std::fs::metadata(&bundle).expect("there").modified().expect("has a time"), written);
        // A program of the sandbox has made the bundle anew, without ours.
        std::fs::write(&bundle, b"SYSTEM\n").expect("written");
        install_ca(dir.path(), "TWO").expect("installed");
        assert_eq!(std::fs::read(&bundle).expect("read"), b"SYSTEM\nTWO\n");
    }

    #[test]
    fn without_a_bundle_programs_keep_their_own_authorities() {
        let dir = tempfile::tempdir().expect("a directory");
        let variables = install_ca(dir.path(), "ONE\n").expect("installed");
        assert!(!variables.contains_key("SSL_CERT_FILE"));
        assert!(variables.contains_key("NODE_EXTRA_CA_CERTS"));
        let other = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(other.path().join(BUNDLE)).expect("made");
        assert!(install_ca(other.path(), "ONE\n").is_err());
    }

    #[test]
    fn a_bundle_behind_a_link_is_changed_where_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let target = dir.path().join("bundle.pem");
        std::fs::write(&target, "SYSTEM\n").expect("written");
        let bundle = dir.path().join(BUNDLE);
        std::fs::create_dir_all(bundle.parent().expect("a parent")).expect("made");
        std::os::unix::fs::symlink(&target, &bundle).expect("linked");
        install_ca(dir.path(), "ONE").expect("installed");
        assert_eq!(std::fs::read_to_string(&target).expect("read"), "SYSTEM\nONE\n");
        assert!(bundle.is_symlink());
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
