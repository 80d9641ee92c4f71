//! Finds QEMU and the guest kernel, and their versions, in a directory that
//! `host_tools::install_microvm` has filled.
//!
//! The manifest in the directory is trusted; each file that is used later is checked for existence
//! once, here. No program is executed.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The version of the directory layout that this code supports.
const FORMAT: u32 = 1;

/// A directory with QEMU and a guest kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    dir: PathBuf,
    qemu_version: String,
    kernel_version: String,
    modules: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Manifest {
    format: u32,
    qemu: String,
    kernel: String,
}

impl Tools {
    /// Checks the directory.
    ///
    /// # Errors
    /// Something is missing or of another version; the text is for the operator.
    pub fn find(dir: &Path) -> Result<Self, String> {
        let shown = dir.display();
        let remedy = "`cofferdam setup microvm` installs it";
        let manifest = fs::read(dir.join("manifest.json"))
            .map_err(|_| format!("no QEMU and guest kernel in {shown}; {remedy}"))?;
        let manifest: Manifest = serde_json::from_slice(&manifest)
            .map_err(|error| format!("cannot parse the manifest in {shown} ({error}); {remedy}"))?;
        if manifest.format != FORMAT {
            return Err(format!("{shown} was set up by another version; {remedy}"));
        }
        let order = fs::read_to_string(dir.join("modules/order")).unwrap_or_default();
        let modules = order.lines().map(|name| dir.join("modules").join(name)).collect();
        let tools = Self {
            dir: fs::canonicalize(dir).map_err(|error| format!("{shown}: {error}"))?,
            qemu_version: manifest.qemu,
            kernel_version: manifest.kernel,
            modules,
        };
        let programs = [tools.root().join(Self::QEMU), tools.root().join(Self::QEMU_KVM)];
        let wanted = programs.into_iter().chain([tools.kernel()]).chain(tools.modules.iter().cloned());
        match wanted.into_iter().find(|file| !file.is_file()) {
            Some(missing) => Err(format!("{} is missing; {remedy}", missing.display())),
            None => Ok(tools),
        }
    }

    /// Path of the complete QEMU inside [`Tools::root`].
    pub const QEMU: &'static str = "usr/bin/qemu-system-x86_64";
    /// Path of a smaller QEMU inside [`Tools::root`], with the `microvm` machine type and KVM only.
    pub const QEMU_KVM: &'static str = "usr/bin/qemu-system-x86_64-microvm";
    /// Path of the dynamic loader inside [`Tools::root`]; it starts either QEMU without a change of
    /// root.
    pub const LOADER: &'static str = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
    /// Directory of the libraries inside [`Tools::root`].
    pub const LIBRARIES: &'static str = "usr/lib/x86_64-linux-gnu";
    /// Directories of firmware inside [`Tools::root`]: for QEMU's `-L` option, without a change of
    /// root.
    pub const FIRMWARE: [&'static str; 2] = ["usr/share/qemu", "usr/share/seabios"];

    /// Returns the directory tree with QEMU and everything that it needs, and empty directories
    /// `dev`, `proc`, `template`, `tmp` and `vm` to mount on.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Returns the path of the guest kernel, an ELF file.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// Returns the paths of the kernel modules, in the order in which they must be loaded.
    #[must_use]
    pub fn modules(&self) -> &[PathBuf] {
        &self.modules
    }

    /// Returns QEMU's version, such as `10.0.2`.
    #[must_use]
    pub fn qemu_version(&self) -> &str {
        &self.qemu_version
    }

    /// Returns the release of the guest kernel.
    #[must_use]
    pub fn kernel_version(&self) -> &str {
        &self.kernel_version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incomplete_directories_are_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, content: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        let refused = |what: &str| {
            let error = Tools::find(dir.path()).unwrap_err();
            assert!(error.contains(what) && error.contains("cofferdam setup microvm"), "{error}");
        };
        refused("no QEMU");
        put("manifest.json", "{}");
        refused("cannot parse");
        put("manifest.json", r#"{"format": 2, "qemu": "10.0.2", "kernel": "6.12"}"#);
        refused("another version");
        put("manifest.json", r#"{"format": 1, "qemu": "10.0.2", "kernel": "6.12"}"#);
        put("modules/order", "overlay.ko\n");
        let files = [
            format!("root/{}", Tools::QEMU),
            format!("root/{}", Tools::QEMU_KVM),
            "vmlinux".to_owned(),
            "modules/overlay.ko".to_owned(),
        ];
        for file in &files {
            refused("is missing");
            put(file, "");
        }
        let tools = Tools::find(dir.path()).unwrap();
        assert_eq!((tools.qemu_version(), tools.kernel_version()), ("10.0.2", "6.12"));
        assert_eq!(tools.modules().len(), 1);
    }
}
