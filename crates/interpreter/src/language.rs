//! The languages, and their names in requests.
//! TypeScript runs in JavaScript's kernel with its types stripped, but is a separate language to clients.
//! The module `kernel` runs them.

use std::fmt;

/// A language of contexts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Language {
    Python,
    JavaScript,
    TypeScript,
    R,
    Java,
    Bash,
}

impl Language {
    /// Parses the name in a request; `None` means Python.
    pub(crate) fn parse(word: Option<&str>) -> Option<Self> {
        Some(match word.unwrap_or_default().trim().to_lowercase().as_str() {
            "" | "python" => Self::Python,
            "javascript" | "js" => Self::JavaScript,
            "typescript" | "ts" => Self::TypeScript,
            "r" => Self::R,
            "java" => Self::Java,
            "bash" => Self::Bash,
            _ => return None,
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::JavaScript => "javascript",
            Self::TypeScript => "typescript",
            Self::R => "r",
            Self::Java => "java",
            Self::Bash => "bash",
        }
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Language;

    #[test]
    fn only_the_two_short_forms_are_known() {
        assert_eq!(Language::parse(None), Some(Language::Python));
        assert_eq!(Language::parse(Some(" JS ")), Some(Language::JavaScript));
        assert_eq!(Language::parse(Some("ts")), Some(Language::TypeScript));
        for unknown in ["py", "sh", "deno", "python3"] {
            assert_eq!(Language::parse(Some(unknown)), None, "{unknown}");
        }
    }
}
