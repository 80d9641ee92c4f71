//! Installs what the microVM engine runs: QEMU as a small file system tree of its own, and the kernel of its guests.
//! The tree is all that a QEMU process ever sees of the host's files, so it holds only what QEMU needs.
//! The `guest` crate checks what is installed (`guest::Tools`).

mod elf;
mod kernel;
mod qemu;

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::HostToolError;
use crate::mmdebstrap::Progress;
use crate::packages::{self, Packages};

/// Debian 13: QEMU 10, which can map a template's memory read-only, and Linux 6.12.
const PACKAGES: Packages = Packages {
    name: "microvm",
    suite: "trixie",
    packages: &["qemu-system-x86", "qemu-system-data", "seabios", "linux-image-cloud-amd64"],
};

/// Content of `manifest.json`, which `guest::Tools` reads.
#[derive(Debug, Serialize)]
struct Manifest {
    /// Version of the directory's layout, see [`FORMAT`].
    format: u32,
    /// QEMU's version, such as `10.0.2`.
    qemu: String,
    /// The kernel's release.
    kernel: String,
}

/// Version of the directory's layout; to be increased when that changes.
const FORMAT: u32 = 1;

/// Installs QEMU and a guest kernel in `dir`, replacing its content. Blocks for about half a minute.
///
/// # Errors
/// mmdebstrap is missing or fails (its last lines of output are in the error), a package lacks an expected file, or the host is
/// not x86-64.
pub fn install_microvm(dir: &Path, report: &mut dyn FnMut(Progress)) -> Result<(), HostToolError> {
    if cfg!(not(target_arch = "x86_64")) {
        return Err(HostToolError::Unsupported(
            "the microVM engine is x86-64 only for now; use the container engine",
        ));
    }
    packages::install(&PACKAGES, dir, report, pick)
}

/// Builds the directory `to` out of the unpacked packages `from`.
fn pick(from: &Path, to: &Path) -> Result<(), HostToolError> {
    let root = to.join("root");
    fs::create_dir_all(&root).map_err(HostToolError::at(&root))?;
    let qemu = qemu::pick(from, &root)?;
    let kernel = kernel::pick(from, to)?;
    let manifest = to.join("manifest.json");
    let text = serde_json::to_vec_pretty(&Manifest { format: FORMAT, qemu, kernel })
        .expect("three plain fields are JSON");
    fs::write(&manifest, text).map_err(HostToolError::at(&manifest))
}
