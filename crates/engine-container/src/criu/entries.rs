//! The records of a memory image that the engine reads or changes: CRIU's message types, with only the fields that are used.
//! A file of an image is two magic words, then for each record its length and its content, a protobuf message.

use std::collections::HashSet;
use std::fs;
use std::io;
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

/// `file_entry`.
#[derive(Clone, PartialEq, Message)]
struct OpenFile {
    #[prost(uint32, required, tag = "2")]
    id: u32,
    #[prost(message, optional, tag = "3")]
    regular: Option<RegularFile>,
}

/// `reg_file_entry`.
#[derive(Clone, PartialEq, Message)]
struct RegularFile {
    #[prost(string, required, tag = "6")]
    name: String,
}

/// Returns the paths in the sandbox of the names that CRIU has given to deleted files for the image in the directory `images`.
///
/// # Errors
/// The image cannot be read.
pub(crate) fn given_names(images: &Path) -> io::Result<Vec<String>> {
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
        names.extend(file.regular.filter(|_| linked.contains(&file.id)).map(|regular| regular.name));
    }
    Ok(names)
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
        assert_eq!(given_names(dir.path()).unwrap(), Vec::<String>::new());
        let deleted =
            [(5, Some(0)), (6, Some(1)), (7, None)].map(|(remap_id, kind)| DeletedFile { remap_id, kind });
        let file = |id, name: &str| OpenFile { id, regular: Some(RegularFile { name: name.to_owned() }) };
        let files =
            [file(5, "/tmp/link_remap.5"), file(6, "/tmp/x"), file(7, "/link_remap.7"), file(8, "/tmp/y")];
        let encode = |dir: &Path, name: &str, records: Vec<Vec<u8>>| {
            fs::write(dir.join(name), image(&records)).unwrap();
        };
        encode(dir.path(), "remap-fpath.img", deleted.iter().map(Message::encode_to_vec).collect());
        encode(dir.path(), "files.img", files.iter().map(Message::encode_to_vec).collect());
        assert_eq!(given_names(dir.path()).unwrap(), ["/tmp/link_remap.5", "/link_remap.7"]);
        let whole = fs::read(dir.path().join("files.img")).unwrap();
        fs::write(dir.path().join("files.img"), &whole[..whole.len() - 1]).unwrap();
        assert!(given_names(dir.path()).is_err());
    }
}
