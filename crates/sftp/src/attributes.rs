//! Attributes of files: as they are told, and as a client wants them; lines of listings.

use std::fs::{File, FileTimes, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown, lchown};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use crate::packet::{Reader, Truncated, Writer};

const SIZE: u32 = 1;
const OWNER: u32 = 2;
const PERMISSIONS: u32 = 4;
const TIMES: u32 = 8;
const EXTENDED: u32 = 0x8000_0000;

/// What a client wants to set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    size: Option<u64>,
    owner: Option<(u32, u32)>,
    pub(crate) mode: Option<u32>,
    /// Last access and change, seconds since 1970.
    times: Option<(u32, u32)>,
}

impl Wanted {
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Truncated> {
        let flags = reader.u32()?;
        let mut wanted = Self::default();
        if flags & SIZE != 0 {
            wanted.size = Some(reader.u64()?);
        }
        if flags & OWNER != 0 {
            wanted.owner = Some((reader.u32()?, reader.u32()?));
        }
        if flags & PERMISSIONS != 0 {
            wanted.mode = Some(reader.u32()? & 0o7777);
        }
        if flags & TIMES != 0 {
            wanted.times = Some((reader.u32()?, reader.u32()?));
        }
        if flags & EXTENDED != 0 {
            for _ in 0..reader.u32()? {
                reader.string()?;
                reader.string()?;
            }
        }
        Ok(wanted)
    }

    /// Sets them at an open file. The owner first, because changing it clears the set-user-id bit.
    pub(crate) fn apply(&self, file: &File) -> io::Result<()> {
        if let Some(size) = self.size {
            file.set_len(size)?;
        }
        if let Some((user, group)) = self.owner {
            fchown(file, Some(user), Some(group))?;
        }
        if let Some(mode) = self.mode {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        if let Some((accessed, modified)) = self.times {
            let at = |seconds: u32| UNIX_EPOCH + Duration::from_secs(seconds.into());
            file.set_times(FileTimes::new().set_accessed(at(accessed)).set_modified(at(modified)))?;
        }
        Ok(())
    }

    /// Sets them at a path. What needs an open file is set at one, which is opened for writing only if its size changes.
    pub(crate) fn apply_to(&self, path: &Path) -> io::Result<()> {
        if let Some((user, group)) = self.owner {
            let target = std::fs::canonicalize(path)?;
            lchown(target, Some(user), Some(group))?;
        }
        if let Some(mode) = self.mode {
            std::fs::set_permissions(path, Permissions::from_mode(mode))?;
        }
        if self.size.is_none() && self.times.is_none() {
            return Ok(());
        }
        let file = File::options().read(self.size.is_none()).write(self.size.is_some()).open(path)?;
        Self { owner: None, mode: None, ..*self }.apply(&file)
    }
}

/// Adds a file's attributes to a response.
pub(crate) fn write(writer: Writer, data: &Metadata) -> Writer {
    let seconds = |time: i64| u32::try_from(time).unwrap_or(0);
    let writer =
        writer.u32(SIZE | OWNER | PERMISSIONS | TIMES).u64(data.len()).u32(data.uid()).u32(data.gid());
    writer.u32(data.mode()).u32(seconds(data.atime())).u32(seconds(data.mtime()))
}

/// A line of a listing as `ls -l` has it, which clients show as it is.
pub(crate) fn line(name: &[u8], data: &Metadata) -> Vec<u8> {
    let kind = match data.mode() & 0o170_000 {
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o020_000 => 'c',
        0o060_000 => 'b',
        0o010_000 => 'p',
        0o140_000 => 's',
        _ => '-',
    };
    let bits: String = "rwxrwxrwx"
        .char_indices()
        .map(|(at, letter)| if data.mode() & (0o400 >> at) == 0 { '-' } else { letter })
        .collect();
    let (year, month, day) = date(data.mtime());
    let head = format!(
        "{kind}{bits} {:>4} {:<8} {:<8} {:>8} {month} {day:>2}  {year} ",
        data.nlink(),
        data.uid(),
        data.gid(),
        data.len()
    );
    [head.as_bytes(), name].concat()
}

/// The date of a time in seconds since 1970: days are counted from 1 March of a year that begins a cycle of 400.
fn date(seconds: i64) -> (i64, &'static str, i64) {
    const MONTHS: [&str; 12] =
        ["Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "Jan", "Feb"];
    let days = seconds.div_euclid(86_400) + 719_468;
    let (cycle, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let year = cycle * 400 + year + i64::from(month >= 10);
    (year, MONTHS[usize::try_from(month).unwrap_or(0).min(11)], day - (153 * month + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, (1970, "Jan", 1)),
            (951_782_400, (2000, "Feb", 29)),
            (951_868_800, (2000, "Mar", 1)),
            (1_798_675_199, (2026, "Dec", 30)),
            (-86_400, (1969, "Dec", 31)),
            (4_107_542_400, (2100, "Mar", 1)),
        ] {
            assert_eq!(date(seconds), expected, "{seconds}");
        }
    }
}
