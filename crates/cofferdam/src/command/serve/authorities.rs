//! Certificate authorities that sandboxes trust besides those of their template (`--sandbox-ca`): by default those that the administrator
//! of this host added to its own. Behind a proxy that terminates TLS, package managers in sandboxes fail without them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Maximum size, bytes. They are passed to build steps in an environment variable, which the kernel limits to 128 KiB.
const MAX_SIZE: usize = 120 << 10;
/// All authorities that a Debian host trusts, and those among them that its distribution ships.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
const SHIPPED: &str = "/usr/share/ca-certificates";
/// Where administrators add authorities, on Debian and its kin and on Fedora and its kin.
const ADDED: [&str; 2] = ["/usr/local/share/ca-certificates", "/etc/pki/ca-trust/source/anchors"];
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// The value of `--sandbox-ca`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SandboxCa {
    /// None but those of the template.
    None,
    /// Those of a PEM file.
    File(PathBuf),
}

/// Parses a value of `--sandbox-ca`.
///
/// # Errors
/// Never.
pub(super) fn sandbox_ca(text: &str) -> Result<SandboxCa, std::convert::Infallible> {
    Ok(if text == "none" { SandboxCa::None } else { SandboxCa::File(text.into()) })
}

/// Returns the authorities for sandboxes and builds as PEM, or `None` if there are none to add.
///
/// # Errors
/// The file that is named cannot be read or has no certificates, or there are too many.
pub(super) fn for_sandboxes(option: Option<&SandboxCa>) -> Result<Option<String>, Failure> {
    match option {
        Some(SandboxCa::None) => Ok(None),
        Some(SandboxCa::File(path)) => of_file("--sandbox-ca", path),
        None => {
            let added =
                added_by_the_administrator(Path::new(BUNDLE), Path::new(SHIPPED), &ADDED.map(Path::new));
            if added.is_empty() {
                return Ok(None);
            }
            let count = added.len();
            let joined = joined(added);
            if joined.len() > MAX_SIZE {
                tracing::warn!(
                    count,
                    "the authorities that this host's administrator added are too large for sandboxes; name the ones to add with --sandbox-ca"
                );
                return Ok(None);
            }
            tracing::info!(
                count,
                "sandboxes and builds trust the certificate authorities that this host's administrator added (--sandbox-ca none: they do not)"
            );
            Ok(Some(joined))
        }
    }
}

/// Reads the authorities of a PEM file, without those that this host's distribution ships: templates have them.
///
/// # Errors
/// It cannot be read, has no certificates, or has too many.
pub(super) fn of_file(option: &str, path: &Path) -> Result<Option<String>, Failure> {
    let refused = |why: String| Failure::new(format!("{option}: {}: {why}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
    let all: Vec<String> = certificates(&text).collect();
    if all.is_empty() {
        return Err(refused("has no certificates in PEM form".to_owned()));
    }
    let shipped = shipped(Path::new(SHIPPED));
    let own: Vec<String> = all.into_iter().filter(|one| !shipped.contains(one)).collect();
    let count = own.len();
    let joined = joined(own);
    if joined.len() > MAX_SIZE {
        return Err(refused(format!(
            "{count} certificates that the distribution does not ship are {} bytes, and {MAX_SIZE} is the limit; name a file with fewer",
            joined.len()
        )));
    }
    Ok(Some(joined).filter(|joined| !joined.is_empty()))
}

/// Returns what is trusted in `bundle` and is not `shipped`, and what lies in the directories `added`.
fn added_by_the_administrator(bundle: &Path, shipped_in: &Path, added: &[&Path]) -> Vec<String> {
    let shipped = shipped(shipped_in);
    let mut known = BTreeSet::new();
    for dir in added {
        known.extend(below(dir));
    }
    // Without the distribution's own to compare with, all of it would be taken for the administrator's.
    if !shipped.is_empty() {
        known.extend(certificates(&fs::read_to_string(bundle).unwrap_or_default()));
    }
    known.into_iter().filter(|one| !shipped.contains(one)).collect()
}

fn shipped(dir: &Path) -> BTreeSet<String> {
    below(dir).into_iter().collect()
}

/// Returns the certificates in the files of a directory and of those in it.
fn below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for path in fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() && !path.is_symlink() {
            found.extend(below(&path));
        } else {
            found.extend(certificates(&fs::read_to_string(&path).unwrap_or_default()));
        }
    }
    found
}

/// Returns the certificates in a text, each with its lines trimmed.
fn certificates(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split_inclusive(END).filter_map(|part| {
        let block = part.get(part.find(BEGIN)?..)?;
        let lines: Vec<&str> = block.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        block.ends_with(END).then(|| lines.join("\n"))
    })
}

fn joined(certificates: Vec<String>) -> String {
    certificates.into_iter().map(|one| one + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(name: &str) -> String {
        format!("{BEGIN}\n{name}\n{END}")
    }

    #[test]
    fn what_the_administrator_added_is_found_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let [shipped, added, bundle] = ["shipped", "added", "bundle.crt"].map(|name| dir.path().join(name));
        fs::create_dir_all(shipped.join("mozilla")).unwrap();
        fs::create_dir(&added).unwrap();
        fs::write(shipped.join("mozilla/a.crt"), certificate("A") + "\n").unwrap();
        fs::write(
            added.join("b.crt"),
            format!("# company\r\n{}\r\n", certificate("B").replace('\n', "\r\n")),
        )
        .unwrap();
        let all = ["A", "B", "C"].map(certificate).join("\n");
        fs::write(&bundle, all).unwrap();
        let found = added_by_the_administrator(&bundle, &shipped, &[&added]);
        assert_eq!(found, [certificate("B"), certificate("C")]);
        let unknown = added_by_the_administrator(&bundle, Path::new("/nonexistent"), &[&added]);
        assert_eq!(unknown, [certificate("B")], "everything was taken for the administrator's");
    }

    #[test]
    fn a_file_is_a_bundle_or_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        fs::write(&path, "text\n").unwrap();
        let refused = of_file("--sandbox-ca", &path).unwrap_err().to_string();
        assert!(refused.ends_with("ca.pem: has no certificates in PEM form"), "{refused}");
        fs::write(&path, ["X", "Y"].map(certificate).join("\ncomment\n")).unwrap();
        let both = of_file("--sandbox-ca", &path).unwrap().unwrap();
        assert_eq!(both, certificate("X") + "\n" + &certificate("Y") + "\n");
        fs::write(&path, certificate(&"z".repeat(MAX_SIZE))).unwrap();
        assert!(of_file("--sandbox-ca", &path).unwrap_err().to_string().contains("the limit"));
    }
}
