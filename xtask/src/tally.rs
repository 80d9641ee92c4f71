//! Adds up what nextest, pytest and node's runner report, and keeps what they say of failures, to be told again at the end.
//! A step that cannot run counts as a failure: it is never left out of the sum.
//! The closing line is the plain `N passed, N failed`.

use std::fmt;

use crate::run::Outcome;

/// Most lines of one failure that are told again.
const MAX_LINES: u32 = 12;

/// Tests run so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// What was said of failures, line by line.
    told: Vec<String>,
    /// So many of the lines that come next tell of a failure too.
    listening: u32,
}

impl Tally {
    /// Reads one line of a test tool's output.
    pub(crate) fn read(&mut self, line: &str) {
        let line = strip_colours(line);
        self.listen(&line);
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

    /// Keeps a line that tells of a failure.
    fn listen(&mut self, line: &str) {
        let line = line.trim_start();
        let words = [
            ("FAIL [", 1),
            ("not ok ", 1),
            ("FAILED ", MAX_LINES),
            ("ERROR ", MAX_LINES),
            ("error: ", MAX_LINES),
            ("thread '", MAX_LINES),
        ];
        if let Some((_, lines)) = words.iter().find(|(word, _)| line.starts_with(word)) {
            self.listening = *lines;
        } else if line.starts_with("stack backtrace:") || line.starts_with("===") {
            self.listening = 0;
        }
        if self.listening > 0 {
            self.listening -= 1;
            self.told.push(line.to_owned());
        }
    }

    /// What was said of failures.
    pub(crate) fn failures(&self) -> String {
        self.told.iter().map(|line| format!("{line}\n")).collect()
    }

    /// Adds a test run; one that could not start is a failure.
    pub(crate) fn add(&mut self, name: &str, outcome: Outcome<Self>) {
        match outcome {
            Ok(other) => {
                self.passed += other.passed;
                self.failed += other.failed;
                self.told.extend(other.told);
            }
            Err(message) => {
                eprintln!("{name}: {message}");
                self.told.push(format!("{name}: {message}"));
                self.failed += 1;
            }
        }
    }

    /// Adds a step that is right or wrong as a whole.
    pub(crate) fn step(&mut self, name: &str, outcome: Outcome) {
        self.add(name, outcome.map(|()| Self { passed: 1, ..Self::default() }));
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

    #[test]
    fn failures_are_told_again() {
        let mut tally = Tally::default();
        let lines = "test_a.py ..F.\n    FAIL [ 1.2s] (1/2) a::b c\nPASS [1s] a::b d\n    thread 'c' (1) panicked at src/a.rs:1:1:\n    \
                     2 is not 3\n    stack backtrace:\n  0: main\nFAILED test_a.py::b - AssertionError: that\nassert 1 == 2\n\
                     === 1 failed, 3 passed in 1s ===\nok 1 - e\nnot ok 2 - f\nok 3 - g";
        lines.lines().for_each(|line| tally.read(line));
        let told = "FAIL [ 1.2s] (1/2) a::b c\nthread 'c' (1) panicked at src/a.rs:1:1:\n2 is not 3\n\
                    FAILED test_a.py::b - AssertionError: that\nassert 1 == 2\nnot ok 2 - f\n";
        assert_eq!(tally.failures(), told);
    }
}
