//! The initramfs of guests: guest-init as `/init`, envd as the layer above every template, and
//! kernel modules.
//!
//! A cpio archive in the kernel's `newc` format, not compressed: decompressing would cost every
//! boot more than reading does. The same content always gives the same file.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::NamedTempFile;

use crate::{GuestError, Tools};

/// Some firmware does not boot with an initramfs whose length is not a multiple of a page.
const PAGE: usize = 4096;
const DIR: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const NODE: u32 = 0o020_600;

/// Writes the initramfs to `target`, replacing an existing file.
///
/// # Errors
/// One of the files cannot be read, or there is no room on the disk.
pub fn write(tools: &Tools, init: &Path, envd: &Path, target: &Path) -> Result<(), GuestError> {
    let dir = target.parent().unwrap_or(Path::new("/"));
    let new = NamedTempFile::new_in(dir).map_err(GuestError::at(dir))?;
    let read = |path: &Path| fs::read(path).map_err(GuestError::at(path));
    let mut entries = vec![
        CpioEntry::new("dev", DIR),
        // For the guest agent's own output, also where there is no console.
        CpioEntry { device: (5, 1), ..CpioEntry::new("dev/console", NODE) },
        CpioEntry { device: (1, 3), ..CpioEntry::new("dev/null", NODE) },
        CpioEntry { content: read(init)?, ..CpioEntry::new("init", EXECUTABLE) },
        CpioEntry::new("envd-layer", DIR),
        CpioEntry::new("envd-layer/usr", DIR),
        CpioEntry::new("envd-layer/usr/bin", DIR),
        CpioEntry { content: read(envd)?, ..CpioEntry::new("envd-layer/usr/bin/envd", EXECUTABLE) },
        CpioEntry::new("modules", DIR),
    ];
    let mut order = String::new();
    for module in tools.modules() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        entries.push(CpioEntry { content: read(module)?, ..CpioEntry::new(format!("modules/{name}"), FILE) });
        order = order + &name + "\n";
    }
    entries.push(CpioEntry { content: order.into_bytes(), ..CpioEntry::new("modules/order", FILE) });
    archive(&entries, new.as_file()).map_err(GuestError::at(target))?;
    // It contains no secrets, and QEMU may run as any user.
    fs::set_permissions(new.path(), fs::Permissions::from_mode(0o444)).map_err(GuestError::at(target))?;
    new.persist(target).map_err(|error| GuestError::at(target)(error.error))?;
    Ok(())
}

/// An entry of the archive.
struct CpioEntry {
    name: String,
    mode: u32,
    device: (u32, u32),
    content: Vec<u8>,
}

impl CpioEntry {
    fn new(name: impl Into<String>, mode: u32) -> Self {
        Self { name: name.into(), mode, device: (0, 0), content: Vec::new() }
    }
}

fn archive(entries: &[CpioEntry], to: impl Write) -> io::Result<()> {
    let mut to = CountingWriter { to: BufWriter::new(to), count: 0 };
    let end = CpioEntry::new("TRAILER!!!", 0);
    for (number, entry) in entries.iter().chain([&end]).enumerate() {
        let size = u32::try_from(entry.content.len()).map_err(io::Error::other)?;
        let links = if entry.mode == DIR { 2 } else { 1 };
        let (major, minor) = entry.device;
        let number = u32::try_from(number + 1).map_err(io::Error::other)?;
        let name_size = u32::try_from(entry.name.len() + 1).map_err(io::Error::other)?;
        // inode, mode, owner, group, links, time, size, device (2), node (2), length of the name, checksum
        let fields = [number, entry.mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
        write!(to, "070701")?;
        fields.iter().try_for_each(|field| write!(to, "{field:08x}"))?;
        write!(to, "{}\0", entry.name)?;
        to.pad(4)?;
        to.write_all(&entry.content)?;
        to.pad(4)?;
    }
    to.pad(PAGE)?;
    to.flush()
}

struct CountingWriter<W> {
    to: W,
    count: usize,
}

impl<W: Write> CountingWriter<W> {
    fn pad(&mut self, unit: usize) -> io::Result<()> {
        let missing = self.count.next_multiple_of(unit) - self.count;
        self.write_all(&[0; PAGE][..missing])
    }
}

impl<W: Write> Write for CountingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.count += count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// The cpio program extracts what was written.
    #[test]
    fn cpio_extracts_the_archive() {
        let dir = tempfile::tempdir().unwrap();
        let entries = [
            CpioEntry::new("dev", DIR),
            CpioEntry { device: (5, 1), ..CpioEntry::new("dev/console", NODE) },
            CpioEntry { content: vec![7; 5001], ..CpioEntry::new("dev/odd", EXECUTABLE) },
            CpioEntry { content: b"x".to_vec(), ..CpioEntry::new("small", FILE) },
        ];
        let mut bytes = Vec::new();
        archive(&entries, &mut bytes).unwrap();
        assert_eq!(bytes.len() % 4096, 0);
        let file = dir.path().join("archive");
        fs::write(&file, &bytes).unwrap();
        let cpio = Command::new("cpio")
            .args(["--extract", "--quiet"])
            .current_dir(dir.path())
            .stdin(fs::File::open(&file).unwrap())
            .stderr(Stdio::inherit())
            .status()
            .expect("cpio is installed: cargo xtask unit");
        assert!(cpio.success());
        assert_eq!(fs::read(dir.path().join("dev/odd")).unwrap(), [7; 5001]);
        assert_eq!(fs::read(dir.path().join("small")).unwrap(), b"x");
        let stat = rustix::fs::stat(dir.path().join("dev/console")).unwrap();
        assert_eq!((stat.st_rdev, stat.st_mode), (rustix::fs::makedev(5, 1), NODE));
        assert_eq!(fs::metadata(dir.path().join("dev/odd")).unwrap().permissions().mode(), EXECUTABLE);
    }
}
