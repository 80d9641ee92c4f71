//! [`VolumePath`]: a cleaned path within a volume.

use std::ffi::{CStr, CString};

use crate::error::VolumeError;

/// A path within a volume: its parts, none of which is empty, `.` or `..`. No parts are the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePath(Vec<CString>);

impl VolumePath {
    /// Cleans a path as a client sent it: a relative one begins at the root, and `..` does not lead out of it.
    ///
    /// # Errors
    /// [`VolumeError::Invalid`] if it is empty or contains a zero byte.
    pub fn parse(text: &str) -> Result<Self, VolumeError> {
        if text.is_empty() {
            return Err(VolumeError::Invalid("path must not be empty".into()));
        }
        let mut parts = Vec::new();
        for part in text.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    parts.pop();
                }
                part => parts.push(
                    CString::new(part)
                        .map_err(|_| VolumeError::Invalid("path must not contain a zero byte".into()))?,
                ),
            }
        }
        Ok(Self(parts))
    }

    /// The path of an entry of this directory.
    pub(crate) fn join(&self, name: &CStr) -> Self {
        let mut parts = self.0.clone();
        parts.push(name.to_owned());
        Self(parts)
    }

    /// The last part; `None` of the root.
    pub(crate) fn name(&self) -> Option<&CStr> {
        self.0.last().map(CString::as_c_str)
    }

    /// The directory that contains it. The root contains itself.
    pub(crate) fn parent(&self) -> Self {
        Self(self.0[..self.0.len().saturating_sub(1)].to_vec())
    }

    /// This path and those that lead to it, from the root on.
    pub(crate) fn ancestors(&self) -> impl Iterator<Item = Self> {
        (0..=self.0.len()).map(|len| Self(self.0[..len].to_vec()))
    }

    /// As the kernel resolves it from the root's descriptor.
    pub(crate) fn relative(&self) -> Vec<u8> {
        if self.0.is_empty() {
            return b".".to_vec();
        }
        self.0.iter().map(|part| part.to_bytes()).collect::<Vec<_>>().join(&b'/')
    }

    /// As clients see it: absolute. What is not UTF-8 is replaced.
    #[must_use]
    pub fn display(&self) -> String {
        let mut text = String::new();
        for part in &self.0 {
            text.push('/');
            text.push_str(&part.to_string_lossy());
        }
        if text.is_empty() { "/".into() } else { text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_and_stay_below_the_root() {
        for (given, clean) in [
            ("/", "/"),
            (".", "/"),
            ("a.txt", "/a.txt"),
            ("//a/./b//c/", "/a/b/c"),
            ("/a/../../../b", "/b"),
            ("../../etc/passwd", "/etc/passwd"),
            ("/with space/and+plus/\u{fc}\n", "/with space/and+plus/\u{fc}\n"),
        ] {
            assert_eq!(VolumePath::parse(given).unwrap().display(), clean, "{given}");
        }
        for bad in ["", "a\0b"] {
            assert!(VolumePath::parse(bad).is_err(), "{bad:?}");
        }
        let path = VolumePath::parse("/a/b").unwrap();
        let all: Vec<String> = path.ancestors().map(|path| path.display()).collect();
        assert_eq!(all, ["/", "/a", "/a/b"]);
        assert_eq!(path.parent().display(), "/a");
        assert_eq!(VolumePath::parse("/").unwrap().relative(), b".");
    }

    proptest::proptest! {
        #[test]
        fn no_path_leads_above_the_root(text in "(\\.\\.|\\.|/|[ -~é\n]){0,40}") {
            if let Ok(path) = VolumePath::parse(&text) {
                let shown = path.display();
                proptest::prop_assert!(shown.starts_with('/') && !shown.split('/').any(|part| part == ".."));
                proptest::prop_assert!(!path.relative().starts_with(b"/"));
            }
        }
    }
}
