//! The records of a memory image that the engine reads or changes: CRIU's message types, with only the fields that are used.
//! A file of an image is two magic words, then for each record its length and its content, a protobuf message. A guest decides how many
//! records there are and how long their paths, so files are read record by record.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use prost::Message;
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
};

/// Size of the two magic words.
pub(super) const HEADER: usize = 8;
/// Size of a record's length.
const LENGTH: usize = 4;
/// Maximum size of a record that is decoded: files with a path, and timers, are smaller. Longer ones are those of watches and polls, with a
/// list of what is waited for.
const MAX_DECODED: u32 = 64 << 10;

/// `remap_file_path_entry`: an open file that was deleted, and what stands for it.
#[derive(Clone, PartialEq, Message)]
struct DeletedFile {
    #[prost(uint32, required, tag = "2")]
    remap_id: u32,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

/// `LINKED`: the file has another name, and CRIU has given it one more.
const LINKED: i32 = 0;

/// `TIMERFD`, of `fd_types`.
const TIMER: i32 = 17;

/// `file_entry`.
#[derive(Clone, PartialEq, Message)]
struct OpenFile {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(uint32, required, tag = "2")]
    id: u32,
    #[prost(message, optional, tag = "3")]
    regular: Option<RegularFile>,
}

/// `file_entry` of a timer.
#[derive(Clone, PartialEq, Message)]
struct TimerFile {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(uint32, required, tag = "2")]
    id: u32,
    #[prost(message, optional, tag = "12")]
    timer: Option<Timer>,
}

/// `timerfd_entry`.
#[derive(Clone, PartialEq, Message)]
struct Timer {
    #[prost(uint32, required, tag = "1")]
    id: u32,
    #[prost(uint32, required, tag = "2")]
    flags: u32,
    /// Who gets signals of it; a message that is left as it is.
    #[prost(bytes = "vec", required, tag = "3")]
    owner: Vec<u8>,
    #[prost(uint32, required, tag = "4")]
    clock: u32,
    #[prost(uint64, required, tag = "5")]
    ticks: u64,
    #[prost(uint32, required, tag = "6")]
    settime_flags: u32,
    #[prost(uint64, required, tag = "7")]
    seconds: u64,
    #[prost(uint64, required, tag = "8")]
    nanoseconds: u64,
    #[prost(uint64, required, tag = "9")]
    interval_seconds: u64,
    #[prost(uint64, required, tag = "10")]
    interval_nanoseconds: u64,
}

/// The fields of `file_entry` and `reg_file_entry` that are taken away from a shared file.
const REGULAR: u32 = 3;
const SIZE: u32 = 8;
const MODE: u32 = 10;

/// `reg_file_entry`.
#[derive(Clone, PartialEq, Message)]
struct RegularFile {
    /// Any bytes: programs choose names.
    #[prost(bytes = "vec", required, tag = "6")]
    name: Vec<u8>,
}

/// Calls `each` with the paths in the sandbox of the names that CRIU has given to deleted files for the image in the directory `images`.
///
/// # Errors
/// The image cannot be read, or `each` failed.
pub(crate) fn given_names(images: &Path, mut each: impl FnMut(&OsStr) -> io::Result<()>) -> io::Result<()> {
    let Some(deleted) = open_if_exists(&images.join("remap-fpath.img"))? else { return Ok(()) };
    let mut linked = HashSet::new();
    visit_records(deleted, |record| {
        let Record::Short(record) = record else { return Ok(()) };
        let file = DeletedFile::decode(record)?;
        if file.kind.unwrap_or(LINKED) == LINKED {
            linked.insert(file.remap_id);
        }
        Ok(())
    })?;
    if linked.is_empty() {
        return Ok(());
    }
    visit_records(BufReader::new(File::open(images.join("files.img"))?), |record| {
        let Record::Short(record) = record else { return Ok(()) };
        let file = OpenFile::decode(record)?;
        match file.regular.filter(|_| linked.contains(&file.id)) {
            Some(regular) => each(OsStr::from_bytes(&regular.name)),
            None => Ok(()),
        }
    })
}

/// Changes what a dump has written of open files, where CRIU could not restore it as it is.
///
/// Periodic timers (`timerfd`) get a next tick that have one which was due and not read at the capture: the kernel shows them with no
/// time left, and CRIU takes that for a timer that is not set. Files below the mount points `shared` lose their size and mode, which
/// others may change meanwhile: CRIU would refuse the file.
///
/// # Errors
/// The image cannot be read or written.
pub(crate) fn adjust_open_files(images: &Path, shared: &[&str]) -> io::Result<()> {
    let adjusted = |record: &[u8]| match rearmed_timer(record)? {
        None => without_size(record, shared),
        rearmed => Ok(rearmed),
    };
    let path = images.join("files.img");
    let Some(image) = open_if_exists(&path)? else { return Ok(()) };
    let mut is_any_changed = false;
    visit_records(image, |record| {
        let Record::Short(record) = record else { return Ok(()) };
        is_any_changed = is_any_changed || adjusted(record)?.is_some();
        Ok(())
    })?;
    if !is_any_changed {
        return Ok(());
    }
    let new = images.join("files.new");
    let mut file = BufWriter::new(File::create(&new)?);
    write_adjusted(BufReader::new(File::open(&path)?), &mut file, adjusted)?;
    file.flush()?;
    fs::rename(new, path)
}

/// Writes the image of open files with those records changed for which `adjusted` returns one.
fn write_adjusted(
    mut image: impl BufRead,
    mut new: impl Write,
    adjusted: impl Fn(&[u8]) -> io::Result<Option<Vec<u8>>>,
) -> io::Result<()> {
    let mut header = [0; HEADER];
    image.read_exact(&mut header)?;
    new.write_all(&header)?;
    visit_records(header.chain(image), |record| match record {
        Record::Short(record) => write_record(&mut new, adjusted(record)?.as_deref().unwrap_or(record)),
        Record::Long(length, content) => {
            new.write_all(&length.to_le_bytes())?;
            io::copy(content, &mut new).map(drop)
        }
    })
}

/// Returns the record of a regular file below one of the mount points `shared` without its size and mode.
fn without_size(record: &[u8], shared: &[&str]) -> io::Result<Option<Vec<u8>>> {
    if shared.is_empty() {
        return Ok(None);
    }
    let Some(regular) = OpenFile::decode(record)?.regular else { return Ok(None) };
    let is_below =
        |dir: &&str| regular.name.strip_prefix(dir.as_bytes()).is_some_and(|rest| rest.starts_with(b"/"));
    if !shared.iter().any(is_below) {
        return Ok(None);
    }
    let mut whole = Vec::new();
    for_each_field(record, |tag, field, content| {
        if tag != REGULAR {
            whole.extend_from_slice(field);
            return Ok(());
        }
        let mut kept = Vec::new();
        for_each_field(content, |tag, field, _| {
            if ![SIZE, MODE].contains(&tag) {
                kept.extend_from_slice(field);
            }
            Ok(())
        })?;
        encode_key(REGULAR, WireType::LengthDelimited, &mut whole);
        encode_varint(kept.len() as u64, &mut whole);
        whole.extend_from_slice(&kept);
        Ok(())
    })?;
    Ok(Some(whole))
}

/// Calls `each` with tag, whole encoding and content of each field of a message. The content is empty unless the field has a length.
fn for_each_field(
    mut message: &[u8],
    mut each: impl FnMut(u32, &[u8], &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    while !message.is_empty() {
        let begin = message;
        let (tag, wire_type) = decode_key(&mut message)?;
        let mut content: &[u8] = &[];
        if wire_type == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut message)?).map_err(|_| damaged())?;
            (content, message) = message.split_at_checked(length).ok_or_else(damaged)?;
        } else {
            skip_field(wire_type, tag, &mut message, DecodeContext::default())?;
        }
        each(tag, &begin[..begin.len() - message.len()], content)?;
    }
    Ok(())
}

fn open_if_exists(path: &Path) -> io::Result<Option<BufReader<File>>> {
    match File::open(path) {
        Ok(file) => Ok(Some(BufReader::new(file))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the record of a timer whose tick is due, with the next one set.
fn rearmed_timer(record: &[u8]) -> io::Result<Option<Vec<u8>>> {
    if OpenFile::decode(record)?.kind != TIMER {
        return Ok(None);
    }
    let mut file = TimerFile::decode(record)?;
    // A field that a later CRIU has must not get lost.
    if file.encode_to_vec() != record {
        return Ok(None);
    }
    let Some(timer) = &mut file.timer else { return Ok(None) };
    let is_due = timer.ticks > 0 && (timer.seconds, timer.nanoseconds) == (0, 0);
    let has_interval = (timer.interval_seconds, timer.interval_nanoseconds) != (0, 0);
    if !is_due || !has_interval {
        return Ok(None);
    }
    (timer.seconds, timer.nanoseconds) = (timer.interval_seconds, timer.interval_nanoseconds);
    Ok(Some(file.encode_to_vec()))
}

/// Whether the image in the directory `images` has connections of TCP.
///
/// # Errors
/// The directory cannot be read.
pub(crate) fn has_connections(images: &Path) -> io::Result<bool> {
    let mut names = fs::read_dir(images)?.map(|entry| entry.map(|entry| entry.file_name()));
    names
        .find_map(|name| match name {
            Ok(name) => name.as_encoded_bytes().starts_with(b"tcp-stream-").then_some(Ok(true)),
            Err(error) => Some(Err(error)),
        })
        .unwrap_or(Ok(false))
}

/// A record of a file of an image.
pub(super) enum Record<'a> {
    Short(&'a [u8]),
    /// One that is longer than [`MAX_DECODED`]: its length and its content, which need not be read.
    Long(u32, &'a mut dyn Read),
}

/// Calls `visit` with each record of a file of an image. Keeps one record in memory.
///
/// # Errors
/// The file cannot be read or is damaged, or `visit` failed.
pub(super) fn visit_records(
    mut image: impl BufRead,
    mut visit: impl FnMut(Record<'_>) -> io::Result<()>,
) -> io::Result<()> {
    read_whole(&mut image, &mut [0; HEADER])?;
    let mut record = Vec::new();
    while !image.fill_buf()?.is_empty() {
        let mut length = [0; LENGTH];
        read_whole(&mut image, &mut length)?;
        let length = u32::from_le_bytes(length);
        if length <= MAX_DECODED {
            record.resize(length as usize, 0);
            read_whole(&mut image, &mut record)?;
            visit(Record::Short(&record))?;
            continue;
        }
        let mut content = image.by_ref().take(length.into());
        visit(Record::Long(length, &mut content))?;
        io::copy(&mut content, &mut io::sink())?;
        if content.limit() > 0 {
            return Err(damaged());
        }
    }
    Ok(())
}

fn read_whole(image: &mut impl Read, bytes: &mut [u8]) -> io::Result<()> {
    image.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged(),
        _ => error,
    })
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the memory image is damaged")
}

/// Adds a record to a file of an image.
pub(super) fn write_record(image: &mut impl Write, record: &[u8]) -> io::Result<()> {
    let length = u32::try_from(record.len()).map_err(io::Error::other)?;
    image.write_all(&length.to_le_bytes())?;
    image.write_all(record)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn image(records: &[Vec<u8>]) -> Vec<u8> {
        let mut image = vec![7; HEADER];
        records.iter().for_each(|record| write_record(&mut image, record).unwrap());
        image
    }

    fn names(images: &Path) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        given_names(images, |name| {
            names.push(name.to_owned());
            Ok(())
        })?;
        Ok(names)
    }

    fn rearmed(image: &[u8]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("files.img"), image).unwrap();
        adjust_open_files(dir.path(), &[]).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::read(dir.path().join("files.img")).unwrap()
    }

    #[test]
    fn names_are_those_of_linked_files_only() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(names(dir.path()).unwrap(), Vec::<OsString>::new());
        let deleted =
            [(5, Some(0)), (6, Some(1)), (7, None)].map(|(remap_id, kind)| DeletedFile { remap_id, kind });
        let file =
            |id, name: &[u8]| OpenFile { kind: 1, id, regular: Some(RegularFile { name: name.to_vec() }) };
        let files = [
            file(5, b"/tmp/link_remap.5"),
            file(6, b"/tmp/x"),
            file(7, b"/link_remap.7"),
            file(8, b"/tmp/\xff"),
        ];
        let encode = |dir: &Path, name: &str, records: Vec<Vec<u8>>| {
            fs::write(dir.join(name), image(&records)).unwrap();
        };
        encode(dir.path(), "remap-fpath.img", deleted.iter().map(Message::encode_to_vec).collect());
        encode(dir.path(), "files.img", files.iter().map(Message::encode_to_vec).collect());
        assert_eq!(names(dir.path()).unwrap(), ["/tmp/link_remap.5", "/link_remap.7"]);
        adjust_open_files(dir.path(), &[]).unwrap();
        let whole = fs::read(dir.path().join("files.img")).unwrap();
        assert_eq!(whole, image(&files.iter().map(Message::encode_to_vec).collect::<Vec<_>>()));
        fs::write(dir.path().join("files.img"), &whole[..whole.len() - 1]).unwrap();
        assert!(names(dir.path()).is_err());
    }

    #[test]
    fn files_of_volumes_lose_their_size_and_mode() {
        #[derive(Clone, PartialEq, Message)]
        struct Whole {
            #[prost(uint64, required, tag = "3")]
            pos: u64,
            #[prost(bytes = "vec", required, tag = "6")]
            name: Vec<u8>,
            #[prost(sint32, optional, tag = "7")]
            mount: Option<i32>,
            #[prost(uint64, optional, tag = "8")]
            size: Option<u64>,
            #[prost(uint32, optional, tag = "10")]
            mode: Option<u32>,
            #[prost(fixed32, optional, tag = "99")]
            newer: Option<u32>,
        }
        #[derive(Clone, PartialEq, Message)]
        struct File {
            #[prost(int32, required, tag = "1")]
            kind: i32,
            #[prost(uint32, required, tag = "2")]
            id: u32,
            #[prost(message, optional, tag = "3")]
            regular: Option<Whole>,
        }
        let file = |name: &str, size, mode| {
            let (name, newer) = (name.into(), Some(7));
            File {
                kind: 1,
                id: 3,
                regular: Some(Whole { pos: 300, name, mount: Some(-5), size, mode, newer }),
            }
            .encode_to_vec()
        };
        let (size, mode) = (Some(1 << 40), Some(0o10_0644));
        let without = |record: &[u8]| without_size(record, &["/data", "/srv/x"]).unwrap();
        for name in ["/data/log", "/srv/x/a/b"] {
            assert_eq!(without(&file(name, size, mode)), Some(file(name, None, None)), "{name}");
        }
        for name in ["/data", "/database/log", "/srv/log"] {
            assert_eq!(without(&file(name, size, mode)), None, "{name}");
        }
        let record = file("/data/log", size, mode);
        assert!(without_size(&record[..record.len() - 1], &["/data"]).is_err());
    }

    #[test]
    fn timers_that_are_due_get_their_next_tick() {
        let timer = |ticks, nanoseconds| {
            let timer = Timer {
                id: 9,
                flags: 2,
                owner: vec![8, 1],
                clock: 1,
                ticks,
                settime_flags: 0,
                seconds: 0,
                nanoseconds,
                interval_seconds: 0,
                interval_nanoseconds: 10,
            };
            TimerFile { kind: TIMER, id: 9, timer: Some(timer) }.encode_to_vec()
        };
        let other = OpenFile { kind: 1, id: 9, regular: None }.encode_to_vec();
        // As of a program that waits for thousands of events: not a message, so it is not decoded.
        let long = vec![0xff; MAX_DECODED as usize + 1];
        let before = image(&[timer(3, 0), long.clone(), other.clone(), timer(0, 0), timer(3, 5)]);
        let after = image(&[timer(3, 10), long, other, timer(0, 0), timer(3, 5)]);
        assert_eq!(rearmed(&before), after);
        assert_eq!(rearmed(&after), after);
        // With a field that is not known.
        let newer = image(&[[timer(3, 0), vec![0x98, 0x06, 1]].concat()]);
        assert_eq!(rearmed(&newer), newer);
    }
}
