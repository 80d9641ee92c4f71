//! The guest's kernel as an uncompressed ELF file, which QEMU boots directly, and the modules that it needs for its devices.
//! Modules stay as they are signed and are listed in an order in which each comes after its dependencies.
//! Modules that are built into the kernel are left out; one that is neither built in nor in the package is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use lzma_rust2::XzReader;

use super::elf::needed_modules;
use crate::HostToolError;

/// Drivers for disks, network, control channel and randomness on both QEMU machine types, and the root file system.
const WANTED: [&str; 7] =
    ["virtio_mmio", "virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "overlay"];
/// Maximum size of an unpacked kernel or module, bytes.
const MAX_KERNEL: u64 = 512 << 20;

/// Writes `vmlinux` and `modules/` to `to` out of the unpacked packages `from`; returns the kernel's release.
pub(super) fn pick(from: &Path, to: &Path) -> Result<String, HostToolError> {
    let all = from.join("usr/lib/modules");
    let mut releases = fs::read_dir(&all).map_err(HostToolError::at(&all))?;
    let release = releases.next().transpose().map_err(HostToolError::at(&all))?;
    let release = release.map(|entry| entry.file_name().to_string_lossy().into_owned()).unwrap_or_default();
    let image = from.join("boot").join(format!("vmlinuz-{release}"));
    let content = fs::read(&image).map_err(HostToolError::at(&image))?;
    let kernel = vmlinux(&content).map_err(HostToolError::at(&image))?;
    let target = to.join("vmlinux");
    fs::write(&target, kernel).map_err(HostToolError::at(&target))?;
    let target = to.join("modules");
    fs::create_dir(&target).map_err(HostToolError::at(&target))?;
    let order = Modules::of(&all.join(&release))?.write(&target)?;
    let path = target.join("order");
    fs::write(&path, order.join("\n") + "\n").map_err(HostToolError::at(&path))?;
    Ok(release)
}

/// Extracts the ELF kernel from a boot image (bzImage), whose header says where it is (Linux boot protocol 2.08).
fn vmlinux(image: &[u8]) -> io::Result<Vec<u8>> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let number = |at: usize| {
        let bytes = image.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err(wrong("not a Linux boot image"));
    }
    let sectors = match image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let (offset, length) = (number(0x248).unwrap_or(0), number(0x24c).unwrap_or(0));
    let start = (sectors + 1) * 512 + offset;
    let payload =
        image.get(start..start.saturating_add(length)).ok_or_else(|| wrong("the boot image is truncated"))?;
    if !payload.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Err(wrong("the kernel in the boot image is not compressed with zstd"));
    }
    let mut kernel = Vec::new();
    // A single frame: the length of the kernel follows it.
    let frame = zstd::stream::read::Decoder::with_buffer(payload)?.single_frame();
    frame.take(MAX_KERNEL).read_to_end(&mut kernel)?;
    if !kernel.starts_with(b"\x7fELF") {
        return Err(wrong("the kernel in the boot image is not an ELF file"));
    }
    Ok(kernel)
}

/// The modules in a kernel package.
struct Modules {
    /// By module name.
    files: BTreeMap<String, PathBuf>,
    /// Names of modules that are part of the kernel itself.
    built_in: BTreeSet<String>,
}

impl Modules {
    fn of(dir: &Path) -> Result<Self, HostToolError> {
        let list = dir.join("modules.builtin");
        let list = fs::read_to_string(&list).map_err(HostToolError::at(&list))?;
        let built_in = list.lines().map(|line| module_name(Path::new(line))).collect();
        let mut files = BTreeMap::new();
        let mut dirs = vec![dir.join("kernel")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir).map_err(HostToolError::at(&dir))? {
                let path = entry.map_err(HostToolError::at(&dir))?.path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    files.insert(module_name(&path), path);
                }
            }
        }
        Ok(Self { files, built_in })
    }

    /// Unpacks [`WANTED`] modules and their dependencies into `target`; returns the file names in the order of loading.
    fn write(&self, target: &Path) -> Result<Vec<String>, HostToolError> {
        let mut order = Vec::new();
        let mut done = BTreeSet::new();
        let mut open: Vec<String> = WANTED.iter().rev().map(|name| (*name).to_owned()).collect();
        while let Some(name) = open.pop() {
            if done.contains(&name) || self.built_in.contains(&name) {
                continue;
            }
            let content = self.content(&name, target)?;
            let needs =
                needed_modules(&content).map_err(|e| HostToolError::at(target)(io::Error::other(e)))?;
            let is_missing = |need: &String| !done.contains(need) && !self.built_in.contains(need);
            let missing: Vec<String> = needs.into_iter().filter(is_missing).collect();
            if !missing.is_empty() {
                // Dependencies have no cycles: depmod would have refused the package.
                open.push(name);
                open.extend(missing);
                continue;
            }
            let file = format!("{name}.ko");
            fs::write(target.join(&file), content).map_err(HostToolError::at(target))?;
            order.push(file);
            done.insert(name);
        }
        Ok(order)
    }

    /// Returns the content of a module, uncompressed.
    fn content(&self, name: &str, target: &Path) -> Result<Vec<u8>, HostToolError> {
        let path = self.files.get(name).ok_or_else(|| {
            let missing = format!("the kernel package has no module {name}");
            HostToolError::at(target)(io::Error::new(io::ErrorKind::NotFound, missing))
        })?;
        let packed = fs::read(path).map_err(HostToolError::at(path))?;
        if path.extension().is_none_or(|extension| extension != "xz") {
            return Ok(packed);
        }
        let mut content = Vec::new();
        let mut reader = XzReader::new(&*packed, false).take(MAX_KERNEL);
        reader.read_to_end(&mut content).map_err(HostToolError::at(path))?;
        Ok(content)
    }
}

/// Returns a module's name by its path: `virtio_rng` for `kernel/drivers/char/hw_random/virtio-rng.ko.xz`.
fn module_name(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot_image(kernel: &[u8]) -> Vec<u8> {
        let mut payload = zstd::encode_all(kernel, 1).unwrap();
        payload.extend(u32::try_from(kernel.len()).unwrap().to_le_bytes());
        let mut image = vec![0; 0x600];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&0x200u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend(payload);
        image
    }

    #[test]
    fn vmlinux_extracts_the_kernel() {
        let kernel = [b"\x7fELF".as_slice(), &[7; 100_000]].concat();
        let image = boot_image(&kernel);
        assert_eq!(vmlinux(&image).unwrap(), kernel);
        assert!(vmlinux(&image[..image.len() - 10]).is_err(), "cut short");
        assert!(vmlinux(&boot_image(b"no ELF")).is_err());
        assert!(vmlinux(&[]).is_err());
        assert!(vmlinux(&[0; 4096]).is_err());
    }

    #[test]
    fn module_names_come_from_file_names() {
        assert_eq!(module_name(Path::new("kernel/drivers/char/hw_random/virtio-rng.ko.xz")), "virtio_rng");
        assert_eq!(module_name(Path::new("kernel/fs/ext4/ext4.ko")), "ext4");
    }
}
