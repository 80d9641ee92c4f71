//! `.dockerignore`: the files of a build's context that are not uploaded, as Docker's reference describes it.
//! The last matching pattern decides; `!` includes again; a pattern that matches a directory matches everything in it.

use std::fs;
use std::io;
use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};

use crate::failure::Failure;

/// The patterns of one file in order, each with `false` if it starts with `!`.
#[derive(Debug, Default)]
pub(super) struct IgnorePatterns(Vec<(GlobMatcher, bool)>);

impl IgnorePatterns {
    /// Reads `.dockerignore` of a directory; without one nothing is ignored.
    ///
    /// # Errors
    /// It cannot be read, or a pattern is invalid.
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

    /// Whether a path, relative to the context, is ignored.
    pub(super) fn ignores(&self, path: &Path) -> bool {
        let matches =
            |glob: &GlobMatcher| path.ancestors().any(|part| part != Path::new("") && glob.is_match(part));
        self.0.iter().rev().find(|(glob, _)| matches(glob)).is_some_and(|(_, ignores)| *ignores)
    }

    /// Whether a path in an ignored directory may be included again.
    pub(super) fn has_exceptions(&self) -> bool {
        self.0.iter().any(|(_, ignores)| !ignores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_matching_pattern_decides() {
        let ignored =
            IgnorePatterns::parse("# c\nnode_modules\n*.log\n!keep.log\n**/cache\n/dist/\n").unwrap();
        let ignores = |path: &str| ignored.ignores(Path::new(path));
        for yes in ["node_modules", "node_modules/a/b", "x.log", "a/b/cache/c", "dist/x"] {
            assert!(ignores(yes), "{yes}");
        }
        for no in ["keep.log", "sub/x.log", "src/main.rs", "distant"] {
            assert!(!ignores(no), "{no}");
        }
        assert!(IgnorePatterns::parse("[").is_err());
    }
}
