//! [`Failure`]: the error of every command, one sentence for a person at a terminal. Scripts use the exit code.
//! Errors of other crates are converted with their texts and those of their sources.

use std::fmt;

/// What failed, and the remedy.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    /// Returns a failure with this sentence.
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut sentence = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !sentence.contains(&cause_text) {
                sentence = format!("{sentence}: {cause_text}");
            }
            source = cause.source();
        }
        Self(sentence)
    }
}
