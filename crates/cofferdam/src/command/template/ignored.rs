//! `.dockerignore`: which files of a build's context are not there.
//! The last pattern that fits decides; `!` takes one back; a pattern that fits a directory fits all in it.
//! Source: Docker's reference for the file.

use std::fs;
use std::io;
use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};

use crate::failure::Failure;

/// The patterns of one file, in order, each with whether it ignores.
#[derive(Debug, Default)]
pub(super) struct Ignored(Vec<(GlobMatcher, bool)>);

impl Ignored {
    /// Reads `.dockerignore` in a directory, if there is one.
    pub(super) fn load(dir: &Path) -> Result<Self, Failure> {
        let path = dir.join(".dockerignore");
        match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Failure::new(format!("{}: {error}", path.display()))),
        }
    }

    fn parse(text: &str) -> Result<Self, Failure> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let patterns = lines.map(|line| {
            let (pattern, ignores) = line.strip_prefix('!').map_or((line, true), |rest| (rest, false));
            let pattern = pattern.trim().trim_start_matches("./").trim_matches('/');
            let glob = GlobBuilder::new(pattern).literal_separator(true).build();
            let glob = glob.map_err(|error| Failure::new(format!(".dockerignore: {error}")))?;
            Ok((glob.compile_matcher(), ignores))
        });
        patterns.collect::<Result<_, _>>().map(Self)
    }

    /// Whether a path of the context, relative to it, is left out.
    pub(super) fn includes(&self, path: &Path) -> bool {
        let fits =
            |glob: &GlobMatcher| path.ancestors().any(|part| part != Path::new("") && glob.is_match(part));
        self.0.iter().rev().find(|(glob, _)| fits(glob)).is_some_and(|(_, ignores)| *ignores)
    }

    /// Whether something in an ignored directory may be taken back.
    pub(super) fn has_exceptions(&self) -> bool {
        self.0.iter().any(|(_, ignores)| !ignores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_pattern_that_fits_decides() {
        let ignored = Ignored::parse("# c\nnode_modules\n*.log\n!keep.log\n**/cache\n/dist/\n").unwrap();
        let includes = |path: &str| ignored.includes(Path::new(path));
        for yes in ["node_modules", "node_modules/a/b", "x.log", "a/b/cache/c", "dist/x"] {
            assert!(includes(yes), "{yes}");
        }
        for no in ["keep.log", "sub/x.log", "src/main.rs", "distant"] {
            assert!(!includes(no), "{no}");
        }
        assert!(Ignored::parse("[").is_err());
    }
}
