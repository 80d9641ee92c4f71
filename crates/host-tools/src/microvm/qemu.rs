//! QEMU as a self-contained file system tree: the programs, the libraries they depend on, and firmware.
//! The tree can be the root of a process's mount namespace: `lib64` leads to the loader, and mount points have their directories.
//! Debian builds TCG and everything we use into the programs; loadable modules (sound, displays) are left out.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::elf::needed_libraries;
use crate::HostToolError;

/// The full emulator, and a smaller one that needs KVM.
const PROGRAMS: [&str; 2] = ["usr/bin/qemu-system-x86_64", "usr/bin/qemu-system-x86_64-microvm"];
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "ld-linux-x86-64.so.2";
/// Directory and file name of firmware for `microvm` and `q35`, and the option ROMs that load a kernel.
const FIRMWARE: [(&str, &str); 8] = [
    ("usr/share/qemu", "qboot.rom"),
    ("usr/share/qemu", "pvh.bin"),
    ("usr/share/qemu", "linuxboot.bin"),
    ("usr/share/qemu", "linuxboot_dma.bin"),
    ("usr/share/qemu", "kvmvapic.bin"),
    ("usr/share/seabios", "bios.bin"),
    ("usr/share/seabios", "bios-256k.bin"),
    ("usr/share/seabios", "bios-microvm.bin"),
];
/// Directories that the engine mounts things on when it starts QEMU.
const MOUNT_POINTS: [&str; 5] = ["dev", "proc", "template", "tmp", "vm"];

/// Builds the tree `root` out of the unpacked packages `from`; returns QEMU's version.
pub(super) fn pick(from: &Path, root: &Path) -> Result<String, HostToolError> {
    for dir in MOUNT_POINTS.into_iter().chain(["usr/bin", "usr/lib64", LIBRARIES]) {
        let path = root.join(dir);
        fs::create_dir_all(&path).map_err(HostToolError::at(&path))?;
    }
    let available = libraries(from)?;
    let mut wanted = BTreeSet::from([LOADER.to_owned()]);
    for program in PROGRAMS {
        let target = root.join(program);
        take(&from.join(program), &target)?;
        wanted.extend(needs(&target)?);
    }
    take_libraries(&available, wanted, &root.join(LIBRARIES))?;
    for (dir, file) in FIRMWARE {
        let target = root.join(dir);
        fs::create_dir_all(&target).map_err(HostToolError::at(&target))?;
        take(&from.join(dir).join(file), &target.join(file))?;
    }
    let links = [
        ("usr/bin", "bin"),
        ("usr/lib", "lib"),
        ("usr/lib64", "lib64"),
        ("../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2"),
    ];
    for (target, link) in links {
        let link = root.join(link);
        symlink(target, &link).map_err(HostToolError::at(&link))?;
    }
    version(root)
}

/// Finds all libraries in the packages; returns the real file for each name, as names are symbolic links.
fn libraries(from: &Path) -> Result<HashMap<String, PathBuf>, HostToolError> {
    let mut found = HashMap::new();
    let mut dirs = vec![from.join(LIBRARIES)];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).map_err(HostToolError::at(&dir))? {
            let path = entry.map_err(HostToolError::at(&dir))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !path.is_symlink() {
                dirs.push(path);
            } else if name.contains(".so")
                && let Ok(real) = fs::canonicalize(&path)
                && real.starts_with(fs::canonicalize(from).map_err(HostToolError::at(from))?)
            {
                // Upper directories take precedence, as for the loader.
                found.entry(name).or_insert(real);
            }
        }
    }
    Ok(found)
}

/// Copies the `wanted` libraries, and those that they depend on, into `target`.
fn take_libraries(
    available: &HashMap<String, PathBuf>,
    mut wanted: BTreeSet<String>,
    target: &Path,
) -> Result<(), HostToolError> {
    let mut taken = BTreeSet::new();
    while let Some(name) = wanted.pop_first() {
        if !taken.insert(name.clone()) {
            continue;
        }
        let file = available.get(&name).ok_or_else(|| {
            let missing = format!("{name} is in none of the packages");
            HostToolError::at(target)(io::Error::new(io::ErrorKind::NotFound, missing))
        })?;
        let copy = target.join(&name);
        fs::copy(file, &copy).map_err(HostToolError::at(file))?;
        wanted.extend(needs(&copy)?);
    }
    Ok(())
}

fn needs(file: &Path) -> Result<Vec<String>, HostToolError> {
    let content = fs::read(file).map_err(HostToolError::at(file))?;
    needed_libraries(&content).map_err(|error| HostToolError::at(file)(io::Error::other(error)))
}

fn take(from: &Path, to: &Path) -> Result<(), HostToolError> {
    fs::rename(from, to).map_err(HostToolError::at(from))
}

/// Returns QEMU's version by running it, which also proves that no library is missing.
fn version(root: &Path) -> Result<String, HostToolError> {
    let (libraries, program) = (root.join(LIBRARIES), root.join(PROGRAMS[0]));
    let output = Command::new(libraries.join(LOADER))
        .arg("--library-path")
        .arg(&libraries)
        .arg(&program)
        .arg("--version")
        .output()
        .map_err(HostToolError::at(&program))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_whitespace().skip_while(|word| *word != "version").nth(1);
    version.map(str::to_owned).ok_or_else(|| {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        HostToolError::at(&program)(io::Error::other(format!("does not run: {said}")))
    })
}
