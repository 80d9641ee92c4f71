//! Parses PAX records: `<length> <key>=<value>\n`, where the value may contain any bytes.
//! Only records that a file system can store are used; unknown ones are ignored. A later record replaces an earlier one.

use super::broken;
use super::sparse::PaxSparse;
use crate::OciError;

/// Our own record: the name is literal, although it looks like a whiteout.
pub(crate) const LITERAL: &str = "COFFERDAM.literal";
/// Our own record: the entry is a socket, written as a pipe because tar has no sockets.
pub(crate) const SOCKET: &str = "COFFERDAM.socket";
/// Prefix of the keys of extended attributes.
pub(crate) const XATTR: &str = "SCHILY.xattr.";

/// The values of an entry's extension records.
#[derive(Debug, Default)]
pub(super) struct Extended {
    pub(super) name: Option<Vec<u8>>,
    pub(super) target: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) user: Option<u64>,
    pub(super) group: Option<u64>,
    pub(super) modified: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: PaxSparse,
    pub(super) is_literal: bool,
    pub(super) is_socket: bool,
}

impl Extended {
    pub(super) fn add_records(&mut self, mut content: &[u8]) -> Result<(), OciError> {
        while !content.is_empty() {
            let (key, value, rest) = record(content).ok_or_else(|| broken("a PAX record is malformed"))?;
            self.add(key, value)?;
            content = rest;
        }
        Ok(())
    }

    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), OciError> {
        match key {
            b"path" => self.name = Some(value.to_owned()),
            b"linkpath" => self.target = Some(value.to_owned()),
            b"size" => self.size = Some(number(value)?),
            b"uid" => self.user = Some(number(value)?),
            b"gid" => self.group = Some(number(value)?),
            b"mtime" => {
                self.modified =
                    Some(time(value).ok_or_else(|| broken("a time in a PAX record is no number"))?);
            }
            _ if key == LITERAL.as_bytes() => self.is_literal = true,
            _ if key == SOCKET.as_bytes() => self.is_socket = true,
            _ => match key.strip_prefix(XATTR.as_bytes()) {
                Some(name) => {
                    self.xattrs.retain(|(known, _)| known != name);
                    self.xattrs.push((name.to_owned(), value.to_owned()));
                }
                None => self.sparse.add(key, value)?,
            },
        }
        Ok(())
    }
}

/// Returns the first record's key and value, and the rest.
fn record(content: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = content.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&content[..space]).ok()?.parse().ok()?;
    let body = content.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((&body[..equals], &body[equals + 1..], &content[length..]))
}

pub(super) fn number(text: &[u8]) -> Result<u64, OciError> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| broken("a number in a PAX record is none"))
}

/// Parses seconds with a fraction, possibly negative, to whole seconds and nanoseconds after them.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    let seconds: i64 = whole.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_hold_any_bytes() {
        let mut extended = Extended::default();
        extended.add_records(b"12 path=a/b\n14 mtime=1.25\n28 SCHILY.xattr.user.x=\n\x00=\n\n").unwrap();
        assert_eq!(extended.name.unwrap(), b"a/b");
        assert_eq!(extended.modified, Some((1, 250_000_000)));
        assert_eq!(extended.xattrs, [(b"user.x".to_vec(), b"\n\0=\n".to_vec())]);
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in
            [&b"x path=a\n"[..], b"99 path=a\n", b"0 path=a\n", b"5 a\n=\n", b"9 path=ab", b"12 size=abc\n"]
        {
            assert!(Extended::default().add_records(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn times_before_1970_are_kept() {
        assert_eq!(time(b"-1.5"), Some((-2, 500_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        assert_eq!(time(b"7.1234567899"), Some((7, 123_456_789)));
        assert_eq!(time(b"x"), None);
    }
}
