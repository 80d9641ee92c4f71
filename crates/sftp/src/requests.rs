//! Requests and their responses.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::attributes::{self, Wanted};
use crate::handles::{Handles, Open};
use crate::packet::{Reader, Truncated, Writer};
use crate::{MAX_DATA, MAX_HANDLES};

const VERSION: u32 = 3;
/// Entries in one response to a listing.
const ENTRIES: usize = 64;
const EXTENSIONS: [(&str, &str); 5] = [
    ("posix-rename@openssh.com", "1"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("limits@openssh.com", "1"),
    ("expand-path@openssh.com", "1"),
];

const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRIBUTES: u8 = 105;

/// Why a request fails.
#[derive(Debug)]
enum Failure {
    End,
    Io(io::Error),
    BadHandle,
    TooManyHandles,
    Malformed,
    Unsupported,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Truncated> for Failure {
    fn from(Truncated: Truncated) -> Self {
        Self::Malformed
    }
}

impl Failure {
    fn response(&self, id: u32) -> Writer {
        let (code, text) = match self {
            Self::End => (1, "end of file".to_owned()),
            Self::Io(error) => match error.kind() {
                io::ErrorKind::NotFound => (2, "no such file".to_owned()),
                io::ErrorKind::PermissionDenied => (3, "permission denied".to_owned()),
                _ => (4, error.to_string()),
            },
            Self::BadHandle => (4, "no such handle".to_owned()),
            Self::TooManyHandles => (4, format!("at most {MAX_HANDLES} files can be open")),
            Self::Malformed => (5, "malformed request".to_owned()),
            Self::Unsupported => (8, "unsupported request".to_owned()),
        };
        status(id, code, &text)
    }
}

fn status(id: u32, code: u32, text: &str) -> Writer {
    Writer::new(STATUS).u32(id).u32(code).string(text.as_bytes()).string(b"en")
}

fn done(id: u32) -> Writer {
    status(id, 0, "success")
}

/// Answers one packet.
pub(crate) fn answer(reader: &mut Reader<'_>, handles: &mut Handles) -> Writer {
    let (Ok(kind), Ok(id)) = (reader.byte(), reader.u32()) else { return Failure::Malformed.response(0) };
    // The first packet has the client's version where others have their number.
    if kind == 1 {
        return EXTENSIONS.iter().fold(Writer::new(2).u32(VERSION), |writer, (name, version)| {
            writer.string(name.as_bytes()).string(version.as_bytes())
        });
    }
    let answered = match kind {
        3..=6 | 8 | 10..=12 => with_handles(kind, id, reader, handles),
        200 => extended(id, reader, handles),
        _ => with_paths(kind, id, reader),
    };
    answered.unwrap_or_else(|failure| failure.response(id))
}

/// Requests that open files or use open ones.
fn with_handles(
    kind: u8,
    id: u32,
    reader: &mut Reader<'_>,
    handles: &mut Handles,
) -> Result<Writer, Failure> {
    if kind == 3 || kind == 11 {
        let path = reader.path()?;
        let open = if kind == 3 {
            Open::File(open_file(&path, reader.u32()?, Wanted::read(reader)?)?)
        } else {
            Open::Directory(fs::read_dir(path)?)
        };
        let handle = handles.insert(open).ok_or(Failure::TooManyHandles)?;
        return Ok(Writer::new(HANDLE).u32(id).string(&handle.to_be_bytes()));
    }
    let handle = reader.string()?;
    if kind == 4 {
        return if handles.remove(handle) { Ok(done(id)) } else { Err(Failure::BadHandle) };
    }
    if kind == 12 {
        let Some(Open::Directory(entries)) = handles.get(handle) else { return Err(Failure::BadHandle) };
        return list(id, entries);
    }
    let file = handles.file(handle).ok_or(Failure::BadHandle)?;
    match kind {
        5 => read(id, file, reader.u64()?, reader.u32()?),
        6 => {
            let offset = reader.u64()?;
            file.write_all_at(reader.string()?, offset)?;
            Ok(done(id))
        }
        8 => Ok(attributes::write(Writer::new(ATTRIBUTES).u32(id), &file.metadata()?)),
        _ => {
            Wanted::read(reader)?.apply(file)?;
            Ok(done(id))
        }
    }
}

fn open_file(path: &Path, flags: u32, wanted: Wanted) -> Result<File, Failure> {
    let has = |flag: u32| flags & flag != 0;
    let (read, write, append, create, truncate, new) =
        (has(1), has(2), has(4), has(8), has(16), has(8) && has(32));
    let mut options = File::options();
    options.read(read).write(write || append).create(create && write).create_new(new && write);
    options.truncate(truncate && write).mode(wanted.mode.unwrap_or(0o666));
    // A pipe would wait for its other end.
    options.custom_flags(0o4000);
    let file = options.open(path)?;
    if file.metadata()?.is_dir() {
        return Err(Failure::Io(io::ErrorKind::IsADirectory.into()));
    }
    Ok(file)
}

fn read(id: u32, file: &File, offset: u64, length: u32) -> Result<Writer, Failure> {
    let mut data = vec![0; (length as usize).min(MAX_DATA)];
    let mut filled = 0;
    while filled < data.len() {
        match file.read_at(&mut data[filled..], offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    if filled == 0 && !data.is_empty() {
        return Err(Failure::End);
    }
    Ok(Writer::new(DATA).u32(id).string(&data[..filled]))
}

fn list(id: u32, entries: &mut fs::ReadDir) -> Result<Writer, Failure> {
    let mut found = Vec::new();
    for entry in entries.by_ref().take(ENTRIES) {
        let entry = entry?;
        // One that is gone meanwhile is left out.
        if let Ok(data) = entry.metadata() {
            found.push((entry.file_name(), data));
        }
    }
    if found.is_empty() {
        return Err(Failure::End);
    }
    let writer = Writer::new(NAME).u32(id).u32(u32::try_from(found.len()).unwrap_or(0));
    Ok(found.iter().fold(writer, |writer, (name, data)| {
        let name = name.as_bytes();
        attributes::write(writer.string(name).string(&attributes::line(name, data)), data)
    }))
}

/// Requests about paths.
fn with_paths(kind: u8, id: u32, reader: &mut Reader<'_>) -> Result<Writer, Failure> {
    let path = match kind {
        7 | 9 | 13..=20 => reader.path()?,
        _ => return Err(Failure::Unsupported),
    };
    match kind {
        7 => return Ok(attributes::write(Writer::new(ATTRIBUTES).u32(id), &fs::symlink_metadata(path)?)),
        17 => return Ok(attributes::write(Writer::new(ATTRIBUTES).u32(id), &fs::metadata(path)?)),
        16 => return Ok(name(id, &real_path(&path)?)),
        19 => return Ok(name(id, &fs::read_link(path)?)),
        9 => Wanted::read(reader)?.apply_to(&path)?,
        13 => fs::remove_file(path)?,
        14 => {
            let wanted = Wanted::read(reader)?;
            DirBuilder::new().mode(wanted.mode.unwrap_or(0o777)).create(path)?;
        }
        15 => fs::remove_dir(path)?,
        18 => {
            let to = reader.path()?;
            // This version's rename replaces nothing.
            if fs::symlink_metadata(&to).is_ok() {
                return Err(Failure::Io(io::ErrorKind::AlreadyExists.into()));
            }
            fs::rename(path, to)?;
        }
        // OpenSSH sends the target first, other than the draft says.
        _ => symlink(path, reader.path()?)?,
    }
    Ok(done(id))
}

/// The absolute form of a path whose last part need not exist.
fn real_path(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent =
                path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let name = path.file_name().ok_or(error)?;
            Ok(fs::canonicalize(parent)?.join(name))
        }
        real => real,
    }
}

fn name(id: u32, path: &Path) -> Writer {
    let bytes = path.as_os_str().as_bytes();
    Writer::new(NAME).u32(id).u32(1).string(bytes).string(bytes).u32(0)
}

fn extended(id: u32, reader: &mut Reader<'_>, handles: &mut Handles) -> Result<Writer, Failure> {
    match reader.string()? {
        b"posix-rename@openssh.com" => fs::rename(reader.path()?, reader.path()?)?,
        b"hardlink@openssh.com" => fs::hard_link(reader.path()?, reader.path()?)?,
        b"fsync@openssh.com" => handles.file(reader.string()?).ok_or(Failure::BadHandle)?.sync_all()?,
        b"limits@openssh.com" => {
            let data = MAX_DATA as u64;
            return Ok(Writer::new(201).u32(id).u64(data + 1024).u64(data).u64(data).u64(MAX_HANDLES as u64));
        }
        b"expand-path@openssh.com" => {
            let path = reader.path()?;
            let home = std::env::var_os("HOME").unwrap_or_else(|| OsStr::new("/").to_owned());
            let expanded = match path.strip_prefix("~") {
                Ok(rest) => Path::new(&home).join(rest),
                Err(_) => path,
            };
            return Ok(name(id, &real_path(&expanded)?));
        }
        _ => return Err(Failure::Unsupported),
    }
    Ok(done(id))
}
