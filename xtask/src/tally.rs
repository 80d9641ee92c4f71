//! Adds up what nextest, pytest and node's runner report.
//! A step that cannot run counts as a failure: it is never left out of the sum.
//! The closing line is the plain `N passed, N failed`.

use std::fmt;

use crate::run::Outcome;

/// Tests run so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Tally {
    /// Reads one line of a test tool's output.
    pub(crate) fn read(&mut self, line: &str) {
        let line = strip_colours(line);
        let words: Vec<&str> = line.split([' ', ',', '=']).filter(|word| !word.is_empty()).collect();
        let is_nextest = words.first() == Some(&"Summary");
        let is_pytest = line.starts_with('=') && words.contains(&"in");
        if is_nextest || is_pytest {
            self.passed += before(&words, "passed");
            self.failed += before(&words, "failed") + before(&words, "error") + before(&words, "errors");
        } else if let ["#" | "ℹ", count @ ("pass" | "fail"), number] = words[..] {
            let number: u64 = number.parse().unwrap_or(0);
            *(if count == "pass" { &mut self.passed } else { &mut self.failed }) += number;
        }
    }

    /// Adds a test run; one that could not start is a failure.
    pub(crate) fn add(&mut self, name: &str, outcome: Outcome<Self>) {
        match outcome {
            Ok(other) => {
                self.passed += other.passed;
                self.failed += other.failed;
            }
            Err(message) => {
                eprintln!("{name}: {message}");
                self.failed += 1;
            }
        }
    }

    /// Adds a step that is right or wrong as a whole.
    pub(crate) fn step(&mut self, name: &str, outcome: Outcome) {
        self.add(name, outcome.map(|()| Self { passed: 1, failed: 0 }));
    }
}

fn before(words: &[&str], word: &str) -> u64 {
    let number = words.windows(2).find(|pair| pair[1] == word).and_then(|pair| pair[0].parse().ok());
    number.unwrap_or(0)
}

fn strip_colours(line: &str) -> String {
    let mut plain = String::new();
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            characters.by_ref().find(char::is_ascii_alphabetic);
        } else {
            plain.push(character);
        }
    }
    plain
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_up_three_tools() {
        let mut tally = Tally::default();
        tally.read("     Summary [   0.1s] 12 tests run: 11 passed, 1 failed, 2 skipped");
        tally.read("\u{1b}[32m=== 5 passed, 2 errors in 3.01s ===\u{1b}[0m");
        tally.read("# pass 7");
        tally.read("ℹ fail 1");
        tally.read("3 passed something");
        assert_eq!(tally.to_string(), "23 passed, 4 failed");
    }
}
