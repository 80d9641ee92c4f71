//! The part of the FUSE protocol (7.31) that a read-only tree of generated files needs: parsing of requests and the layout of replies.
//! Numbers and layouts are the kernel's (`linux/fuse.h`). Replies are built as bytes, so there is nothing unsafe here.

/// Size of the header of a request.
const REQUEST_HEADER: usize = 40;
/// Size of the header of a reply.
const REPLY_HEADER: usize = 16;
const VERSION: (u32, u32) = (7, 31);
/// `FUSE_INIT_EXT`: there is a second word of flags.
const INIT_EXT: u32 = 1 << 30;
/// `FUSE_ALLOW_IDMAP`, in the second word: sandboxes have idmapped mounts, in which their root owns the files.
const ALLOW_IDMAP: u32 = 1 << 8;
/// `FOPEN_DIRECT_IO`: reads are not cached, and the size of the file does not limit them.
const DIRECT_IO: u32 = 1;
/// How long the kernel may keep names and attributes, seconds. They never change.
const VALID_FOR: u64 = 1 << 20;
/// `FUSE_NOTIFY_RESEND`: the kernel sends again what an earlier process received and did not answer.
const RESEND: i32 = 7;

/// What the kernel asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Operation<'a> {
    Init,
    Lookup(&'a [u8]),
    GetAttributes,
    Open,
    OpenDirectory,
    Read {
        offset: u64,
        size: u32,
    },
    ReadDirectory {
        offset: u64,
        size: u32,
    },
    Statistics,
    Release,
    /// Has no reply.
    Forget,
    Other,
}

/// A request of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request<'a> {
    pub(crate) unique: u64,
    pub(crate) node: u64,
    /// The calling thread, as seen in this process's pid namespace; 0 if it is not in it.
    pub(crate) pid: u32,
    pub(crate) operation: Operation<'a>,
}

impl<'a> Request<'a> {
    /// Parses one request; `None` if it is not as the protocol says.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, body) = bytes.split_at_checked(REQUEST_HEADER)?;
        let operation = match u32_at(header, 4)? {
            1 => Operation::Lookup(body.split(|byte| *byte == 0).next()?),
            2 | 42 => Operation::Forget,
            3 => Operation::GetAttributes,
            14 => Operation::Open,
            15 => Operation::Read { offset: u64_at(body, 8)?, size: u32_at(body, 16)? },
            17 => Operation::Statistics,
            18 | 29 => Operation::Release,
            26 => Operation::Init,
            27 => Operation::OpenDirectory,
            28 => Operation::ReadDirectory { offset: u64_at(body, 8)?, size: u32_at(body, 16)? },
            _ => Operation::Other,
        };
        Some(Self {
            unique: u64_at(header, 8)?,
            node: u64_at(header, 16)?,
            pid: u32_at(header, 32)?,
            operation,
        })
    }
}

impl Request<'_> {
    /// Whether a thread of a sandbox waits for the reply.
    pub(crate) fn is_awaited(&self) -> bool {
        !matches!(self.operation, Operation::Init | Operation::Release | Operation::Forget)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The attributes of a node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes {
    pub(crate) node: u64,
    pub(crate) is_directory: bool,
}

/// A message to the kernel, under construction.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn words(mut self, words: &[u32]) -> Self {
        words.iter().for_each(|word| self.0.extend(word.to_ne_bytes()));
        self
    }

    fn longs(mut self, longs: &[u64]) -> Self {
        longs.iter().for_each(|long| self.0.extend(long.to_ne_bytes()));
        self
    }

    fn attributes(self, attributes: Attributes) -> Self {
        const DIRECTORY: u32 = 0o040_555;
        const FILE: u32 = 0o100_444;
        let (mode, links) = if attributes.is_directory { (DIRECTORY, 2) } else { (FILE, 1) };
        // Number, size, blocks and three times; then nanoseconds, mode, links, owners, device, block size and flags. The size is 0, as
        // in /proc: CRIU compares sizes at a restore.
        self.longs(&[attributes.node, 0, 0, 0, 0, 0]).words(&[0, 0, 0, mode, links, 0, 0, 0, 4096, 0])
    }
}

/// Returns a whole reply: a header, and the body or an error number.
fn reply(unique: u64, error: i32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(REPLY_HEADER + body.len()).unwrap_or(u32::MAX);
    let mut bytes = Message::default().words(&[length, error.cast_unsigned()]).longs(&[unique]).0;
    bytes.extend_from_slice(body);
    bytes
}

/// Returns the reply that an operation failed with an error number.
pub(crate) fn failure(unique: u64, errno: rustix::io::Errno) -> Vec<u8> {
    reply(unique, -errno.raw_os_error(), &[])
}

/// Returns a reply with nothing but success, or with the bytes read.
pub(crate) fn data(unique: u64, bytes: &[u8]) -> Vec<u8> {
    reply(unique, 0, bytes)
}

/// Returns the reply to the first request of a connection.
pub(crate) fn init(unique: u64) -> Vec<u8> {
    let (major, minor) = VERSION;
    // Read-ahead and flags; background requests; the largest write and the resolution of times; pages for each request.
    let body =
        Message::default().words(&[major, minor, 0, INIT_EXT, 0, 4096, 1, 0, ALLOW_IDMAP]).words(&[0; 7]);
    reply(unique, 0, &body.0)
}

/// Returns the reply to a look-up.
pub(crate) fn entry(unique: u64, attributes: Attributes) -> Vec<u8> {
    let body = Message::default()
        .longs(&[attributes.node, 0, VALID_FOR, VALID_FOR])
        .words(&[0, 0])
        .attributes(attributes);
    reply(unique, 0, &body.0)
}

/// Returns the reply to a request for attributes.
pub(crate) fn attributes(unique: u64, attributes: Attributes) -> Vec<u8> {
    let body = Message::default().longs(&[VALID_FOR]).words(&[0, 0]).attributes(attributes);
    reply(unique, 0, &body.0)
}

/// Returns the reply to an open. There are no handles: a guest could keep any number of them open.
pub(crate) fn opened(unique: u64, is_directory: bool) -> Vec<u8> {
    let flags = if is_directory { 0 } else { DIRECT_IO };
    reply(unique, 0, &Message::default().longs(&[0]).words(&[flags, 0]).0)
}

/// Returns the reply about the file system as a whole: it has no blocks.
pub(crate) fn statistics(unique: u64) -> Vec<u8> {
    const NAME_LENGTH: u32 = 255;
    let body = Message::default().longs(&[0; 5]).words(&[4096, NAME_LENGTH, 4096, 0]).words(&[0; 6]);
    reply(unique, 0, &body.0)
}

/// Returns the reply to a read of a directory from entry number `offset`: as many entries as `size` bytes hold.
pub(crate) fn entries(unique: u64, entries: &[(Attributes, &str)], offset: u64, size: u32) -> Vec<u8> {
    const DIRECTORY: u32 = 4;
    const FILE: u32 = 8;
    let mut body = Vec::new();
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    for (index, (attributes, name)) in entries.iter().enumerate().skip(skip) {
        let kind = if attributes.is_directory { DIRECTORY } else { FILE };
        let length = u32::try_from(name.len()).unwrap_or(0);
        let mut one = Message::default().longs(&[attributes.node, index as u64 + 1]).words(&[length, kind]).0;
        one.extend_from_slice(name.as_bytes());
        one.resize(one.len().next_multiple_of(8), 0);
        if body.len() + one.len() > size as usize {
            break;
        }
        body.extend(one);
    }
    reply(unique, 0, &body)
}

/// Returns the notification that makes the kernel send unanswered requests again.
pub(crate) fn resend() -> Vec<u8> {
    reply(0, RESEND, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        let header = Message::default().words(&[0, opcode]).longs(&[7, node]).words(&[0, 0, 42, 0]);
        [&header.0, body].concat()
    }

    #[test]
    fn requests_are_parsed_and_broken_ones_are_not() {
        let lookup = request(1, 1, b"meminfo\0");
        let parsed = Request::parse(&lookup).unwrap();
        assert_eq!((parsed.unique, parsed.node, parsed.pid), (7, 1, 42));
        assert_eq!(parsed.operation, Operation::Lookup(b"meminfo"));
        let read = Message::default().longs(&[0, 100]).words(&[4096, 0]).0;
        let whole = request(15, 9, &read);
        assert_eq!(Request::parse(&whole).unwrap().operation, Operation::Read { offset: 100, size: 4096 });
        assert!((0..whole.len() - 4).all(|cut| Request::parse(&whole[..cut]).is_none()));
        assert_eq!(Request::parse(&request(9999, 1, b"")).unwrap().operation, Operation::Other);
    }

    #[test]
    fn replies_have_the_sizes_of_the_protocol() {
        let node = Attributes { node: 5, is_directory: false };
        let sizes = [
            (init(1), 64),
            (entry(1, node), 128),
            (attributes(1, node), 104),
            (opened(1, false), 16),
            (statistics(1), 80),
        ];
        for (reply, body) in sizes {
            assert_eq!(reply.len(), REPLY_HEADER + body);
            assert_eq!(u32_at(&reply, 0), Some(u32::try_from(reply.len()).unwrap()));
        }
    }

    #[test]
    fn a_directory_is_read_in_parts() {
        let all: Vec<_> =
            ["a", "bb", "ccccccccc"].map(|name| (Attributes { node: 1, is_directory: false }, name)).into();
        let whole = entries(1, &all, 0, 4096).len();
        let first = entries(1, &all, 0, 64).len();
        assert_eq!(first, REPLY_HEADER + 2 * 32);
        assert_eq!(first + entries(1, &all, 2, 4096).len() - REPLY_HEADER, whole);
        assert_eq!(entries(1, &all, 3, 4096).len(), REPLY_HEADER);
    }
}
