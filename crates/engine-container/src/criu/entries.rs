//! The records of a memory image that the engine reads or changes: CRIU's message types, with only the fields that are used.
//! A file of an image is two magic words, then for each record its length and its content, a protobuf message.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use prost::Message;

/// Size of the two magic words.
pub(super) const HEADER: usize = 8;
/// Size of a record's length.
const LENGTH: usize = 4;

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

/// `reg_file_entry`.
#[derive(Clone, PartialEq, Message)]
struct RegularFile {
    /// Any bytes: programs choose names.
    #[prost(bytes = "vec", required, tag = "6")]
    name: Vec<u8>,
}

/// Returns the paths in the sandbox of the names that CRIU has given to deleted files for the image in the directory `images`.
///
/// # Errors
/// The image cannot be read.
pub(crate) fn given_names(images: &Path) -> io::Result<Vec<OsString>> {
    let deleted = match fs::read(images.join("remap-fpath.img")) {
        Ok(image) => image,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut linked = HashSet::new();
    for record in records(&deleted)? {
        let file = DeletedFile::decode(record)?;
        if file.kind.unwrap_or(LINKED) == LINKED {
            linked.insert(file.remap_id);
        }
    }
    let mut names = Vec::new();
    if linked.is_empty() {
        return Ok(names);
    }
    for record in records(&fs::read(images.join("files.img"))?)? {
        let file = OpenFile::decode(record)?;
        names.extend(
            file.regular
                .filter(|_| linked.contains(&file.id))
                .map(|regular| OsString::from_vec(regular.name)),
        );
    }
    Ok(names)
}

/// Gives periodic timers (`timerfd`) a next tick that have one which was due and not read at the capture: the kernel shows them with
/// no time left, and CRIU takes that for a timer that is not set.
///
/// # Errors
/// The image cannot be read or written.
pub(crate) fn rearm_timers(images: &Path) -> io::Result<()> {
    let path = images.join("files.img");
    let image = match fs::read(&path) {
        Ok(image) => image,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let Some(rearmed) = rearmed(&image)? else { return Ok(()) };
    fs::write(path, rearmed)
}

/// Returns the image of open files with timers set, if there are any to set.
fn rearmed(image: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut changed = image[..HEADER.min(image.len())].to_vec();
    let mut is_changed = false;
    for record in records(image)? {
        match rearmed_timer(record)? {
            Some(timer) => {
                push_record(&mut changed, &timer);
                is_changed = true;
            }
            None => push_record(&mut changed, record),
        }
    }
    Ok(is_changed.then_some(changed))
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

/// Returns the records of a file of an image.
///
/// # Errors
/// The file is damaged.
pub(super) fn records(image: &[u8]) -> io::Result<Vec<&[u8]>> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the memory image is damaged");
    let mut rest = image.get(HEADER..).ok_or_else(damaged)?;
    let mut records = Vec::new();
    while !rest.is_empty() {
        let (length, after) = rest.split_at_checked(LENGTH).ok_or_else(damaged)?;
        let length = u32::from_le_bytes(length.try_into().map_err(|_| damaged())?);
        let (record, after) = after.split_at_checked(length as usize).ok_or_else(damaged)?;
        records.push(record);
        rest = after;
    }
    Ok(records)
}

/// Adds a record to a file of an image.
pub(super) fn push_record(image: &mut Vec<u8>, record: &[u8]) {
    let length = u32::try_from(record.len()).expect("records are short");
    image.extend_from_slice(&length.to_le_bytes());
    image.extend_from_slice(record);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(records: &[Vec<u8>]) -> Vec<u8> {
        let mut image = vec![7; HEADER];
        records.iter().for_each(|record| push_record(&mut image, record));
        image
    }

    #[test]
    fn names_are_those_of_linked_files_only() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(given_names(dir.path()).unwrap(), Vec::<OsString>::new());
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
        assert_eq!(given_names(dir.path()).unwrap(), ["/tmp/link_remap.5", "/link_remap.7"]);
        rearm_timers(dir.path()).unwrap();
        let whole = fs::read(dir.path().join("files.img")).unwrap();
        assert_eq!(whole, image(&files.iter().map(Message::encode_to_vec).collect::<Vec<_>>()));
        fs::write(dir.path().join("files.img"), &whole[..whole.len() - 1]).unwrap();
        assert!(given_names(dir.path()).is_err());
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
        let before = image(&[timer(3, 0), other.clone(), timer(0, 0), timer(3, 5)]);
        let after = image(&[timer(3, 10), other.clone(), timer(0, 0), timer(3, 5)]);
        assert_eq!(rearmed(&before).unwrap(), Some(after.clone()));
        assert_eq!(rearmed(&after).unwrap(), None);
        // With a field that is not known.
        let newer = [timer(3, 0), vec![0x98, 0x06, 1]].concat();
        assert_eq!(rearmed(&image(&[newer])).unwrap(), None);
    }
}
