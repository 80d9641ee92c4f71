//! Brings what the microVM engine runs: QEMU as a small file system tree of its own, and the kernel of its guests.
//! The tree is all that a QEMU process ever sees of the host's files, so nothing is in it that it does not need.
//! Whether what is there is fit is for the `guest` crate to say.

mod binaries;
mod emulator;
mod kernel;

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::TemplateError;
use crate::mmdebstrap::Progress;
use crate::packages::{self, Packages};

/// Debian 13: QEMU 10, which can map a template's memory read-only, and Linux 6.12.
const PACKAGES: Packages = Packages {
    name: "microvm",
    suite: "trixie",
    packages: &["qemu-system-x86", "qemu-system-data", "seabios", "linux-image-cloud-amd64"],
};

/// What the directory's files are, for whoever uses them: `manifest.json`.
#[derive(Debug, Serialize)]
struct Manifest {
    /// Changes when the directory's arrangement does.
    format: u32,
    /// QEMU's version, such as `10.0.2`.
    qemu: String,
    /// The kernel's release.
    kernel: String,
}

/// Counts changes of the directory's arrangement.
const FORMAT: u32 = 1;

/// Unpacks QEMU and a guest kernel into `directory`, instead of what may be there. Blocks for about half a minute.
///
/// # Errors
/// mmdebstrap is missing or fails (its last words are in the error), a package is not as expected, or the machine is
/// not x86-64.
pub fn install_microvm(dir: &Path, report: &mut dyn FnMut(Progress)) -> Result<(), TemplateError> {
    if cfg!(not(target_arch = "x86_64")) {
        return Err(TemplateError::Unsupported(
            "the microVM engine is x86-64 only for now; use the container engine",
        ));
    }
    packages::install(&PACKAGES, dir, report, pick)
}

fn pick(from: &Path, to: &Path) -> Result<(), TemplateError> {
    let root = to.join("root");
    fs::create_dir_all(&root).map_err(TemplateError::at(&root))?;
    let qemu = emulator::pick(from, &root)?;
    let kernel = kernel::pick(from, to)?;
    let manifest = to.join("manifest.json");
    let text = serde_json::to_vec_pretty(&Manifest { format: FORMAT, qemu, kernel })
        .expect("three plain fields are JSON");
    fs::write(&manifest, text).map_err(TemplateError::at(&manifest))
}
