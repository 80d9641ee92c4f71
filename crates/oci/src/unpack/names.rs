//! Parses names of entries as parts of a path below the layer's root.
//! A name that could lead outside is refused, not repaired. Symlinks on the way are resolved in `place`.

use crate::OciError;
use crate::tarball::refused;

/// Maximum depth of directories. Other code walks trees with a descriptor or stack frame for each level.
pub(crate) const MAX_DEPTH: usize = 200;
/// The kernel's maximum length of a name and of a path, bytes.
pub(crate) const MAX_PART: usize = 255;
pub(super) const MAX_PATH: usize = 4095;

/// Splits a name to parts; returns none for the root. A leading `/` and `.` are ignored.
pub(super) fn parts(name: &[u8]) -> Result<Vec<&[u8]>, OciError> {
    if name.len() > MAX_PATH {
        return Err(refused(name, "has a name longer than 4095 bytes"));
    }
    if name.contains(&0) {
        return Err(refused(name, "has a zero byte in its name"));
    }
    let parts: Vec<&[u8]> =
        name.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&&b".."[..]) {
        return Err(refused(name, "has .. in its name"));
    }
    if parts.iter().any(|part| part.len() > MAX_PART) {
        return Err(refused(name, "has a part longer than 255 bytes in its name"));
    }
    if parts.len() > MAX_DEPTH {
        return Err(refused(name, "is more than 200 directories deep"));
    }
    Ok(parts)
}

/// The meaning of a name's last part.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning<'a> {
    /// A file of this name.
    Plain,
    /// A whiteout: the file of this name in the layers below is removed.
    Whiteout(&'a [u8]),
    /// An opaque directory: all its entries in the layers below are removed.
    Opaque,
    /// Metadata that the old AUFS driver left in images.
    Nothing,
}

pub(super) fn meaning<'a>(name: &[u8], parts: &[&'a [u8]]) -> Result<Meaning<'a>, OciError> {
    const MARK: &[u8] = b".wh.";
    let Some((last, above)) = parts.split_last() else { return Ok(Meaning::Plain) };
    if parts.iter().any(|part| part.starts_with(b".wh..wh.") && *part != b".wh..wh..opq") {
        return Ok(Meaning::Nothing);
    }
    if above.iter().any(|part| part.starts_with(MARK)) {
        return Err(refused(name, "is inside a whiteout"));
    }
    match last.strip_prefix(MARK) {
        None => Ok(Meaning::Plain),
        Some(b".wh..opq") => Ok(Meaning::Opaque),
        Some(b"" | b"." | b"..") => Err(refused(name, "is a whiteout of nothing")),
        Some(gone) => Ok(Meaning::Whiteout(gone)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        assert_eq!(parts(b"/a/./b//c/").unwrap(), [b"a", b"b", b"c"]);
        assert!(parts(b"./").unwrap().is_empty());
        for bad in [&b"../a"[..], b"a/../b", b"a\0b", b"..", &[b'x'; 256], &b"a/".repeat(201)] {
            assert!(parts(bad).is_err());
        }
        assert!(parts(b"..a/b..").is_ok());
    }

    #[test]
    fn whiteouts_are_recognised() {
        let of = |name: &'static str| meaning(name.as_bytes(), &parts(name.as_bytes()).unwrap());
        assert_eq!(of("a/.wh.b").unwrap(), Meaning::Whiteout(b"b"));
        assert_eq!(of("a/.wh..wh..opq").unwrap(), Meaning::Opaque);
        assert_eq!(of(".wh..wh.plnk/1.2").unwrap(), Meaning::Nothing);
        assert_eq!(of("a/.who").unwrap(), Meaning::Plain);
        for bad in [".wh.", ".wh..", ".wh...", ".wh.a/b", ".wh..wh..opq/a"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_part_leads_outside(name in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            if let Ok(parts) = parts(&name) {
                for part in parts {
                    proptest::prop_assert!(!part.is_empty() && part != b"." && part != b"..");
                    proptest::prop_assert!(!part.contains(&b'/') && !part.contains(&0));
                }
            }
        }
    }
}
