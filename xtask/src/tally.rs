//! Adds up what nextest, pytest and node's runner print: counts, the text of failures, and the seconds that tests took.
//! A step that cannot run counts as a failure: it is never left out of the sum.
//! The closing line is the plain `N passed, N failed`.

use std::fmt;

use crate::run::Outcome;

/// Most lines of one failure that are printed again at the end.
const MAX_LINES: u32 = 12;
/// Tests in the list of the slowest.
const SLOWEST: usize = 20;

/// Results of the tests run so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// What tools printed about failures, line by line.
    failures: Vec<String>,
    /// How many of the next lines belong to the failure that is being read.
    lines_expected: u32,
    /// Tests and the seconds they took.
    durations: Vec<(f64, String)>,
    /// Name of the last test in TAP output, whose duration is on a line of its own.
    tap_test: String,
}

impl Tally {
    /// Reads one line of a test tool's output.
    pub(crate) fn read(&mut self, line: &str) {
        let line = strip_colours(line);
        self.read_failure(&line);
        self.read_duration(&line);
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

    /// Keeps a line that belongs to a failure.
    fn read_failure(&mut self, line: &str) {
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
            self.lines_expected = *lines;
        } else if line.starts_with("stack backtrace:") || line.starts_with("===") {
            self.lines_expected = 0;
        }
        if self.lines_expected > 0 {
            self.lines_expected -= 1;
            self.failures.push(line.to_owned());
        }
    }

    /// Keeps the duration of a test: nextest's `PASS [ 1.2s] …`, pytest's `1.20s call …`, TAP's `duration_ms`.
    fn read_duration(&mut self, line: &str) {
        let line = line.trim();
        if let Some((_, test)) = line.split_once("ok ").and_then(|(_, rest)| rest.split_once(" - ")) {
            test.clone_into(&mut self.tap_test);
        } else if let Some(millis) = line.strip_prefix("duration_ms: ") {
            let test = std::mem::take(&mut self.tap_test);
            if let (Ok(millis), false) = (millis.parse::<f64>(), test.is_empty()) {
                self.durations.push((millis / 1000.0, test));
            }
        } else if let Some(rest) = line.strip_prefix("PASS [").or_else(|| line.strip_prefix("FAIL [")) {
            if let Some((seconds, test)) = rest.split_once("s] ") {
                self.add_duration(seconds, test);
            }
        } else if let Some((seconds, rest)) = line.split_once("s ")
            && let Some((phase @ ("call" | "setup" | "teardown"), test)) = rest.split_once(' ')
        {
            self.add_duration(seconds, &format!("{} ({phase})", test.trim()));
        }
    }

    fn add_duration(&mut self, seconds: &str, test: &str) {
        if let Ok(seconds) = seconds.trim().parse() {
            self.durations.push((seconds, test.to_owned()));
        }
    }

    /// What tools printed about failures.
    pub(crate) fn failures(&self) -> String {
        self.failures.iter().map(|line| format!("{line}\n")).collect()
    }

    /// The slowest tests of all tools, one a line.
    pub(crate) fn slowest(&self) -> String {
        let mut durations = self.durations.clone();
        durations.sort_by(|a, b| b.0.total_cmp(&a.0));
        durations.iter().take(SLOWEST).map(|(seconds, test)| format!("{seconds:7.1} s  {test}\n")).collect()
    }

    /// Adds a test run; one that could not start is a failure.
    pub(crate) fn add(&mut self, name: &str, outcome: Outcome<Self>) {
        match outcome {
            Ok(other) => {
                self.passed += other.passed;
                self.failed += other.failed;
                self.failures.extend(other.failures);
                self.durations.extend(other.durations);
            }
            Err(message) => {
                eprintln!("{name}: {message}");
                self.failures.push(format!("{name}: {message}"));
                self.failed += 1;
            }
        }
    }

    /// Adds a step that passes or fails as a whole.
    pub(crate) fn step(&mut self, name: &str, outcome: Outcome) {
        self.add(name, outcome.map(|()| Self { passed: 1, ..Self::default() }));
    }
}

/// The number before a word; 0 where there is none.
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
    fn failures_are_repeated() {
        let mut tally = Tally::default();
        let lines = "test_a.py ..F.\n    FAIL [ 1.2s] (1/2) a::b c\nPASS [1s] a::b d\n    thread 'c' (1) panicked at src/a.rs:1:1:\n    \
                     2 is not 3\n    stack backtrace:\n  0: main\nFAILED test_a.py::b - AssertionError: that\nassert 1 == 2\n\
                     === 1 failed, 3 passed in 1s ===\nok 1 - e\nnot ok 2 - f\nok 3 - g";
        lines.lines().for_each(|line| tally.read(line));
        let expected = "FAIL [ 1.2s] (1/2) a::b c\nthread 'c' (1) panicked at src/a.rs:1:1:\n2 is not 3\n\
                        FAILED test_a.py::b - AssertionError: that\nassert 1 == 2\nnot ok 2 - f\n";
        assert_eq!(tally.failures(), expected);
    }

    #[test]
    fn slowest_tests_come_first() {
        let mut tally = Tally::default();
        let lines = "        PASS [   1.500s] (1/2) a::b c\n12.34s call     test_a.py::b\n0.10s setup    test_a.py::c\n\
                     ok 3 - from node\n  ---\n  duration_ms: 2500.5\n  ...\n1..3\n# duration_ms 9000";
        lines.lines().for_each(|line| tally.read(line));
        let expected = "   12.3 s  test_a.py::b (call)\n    2.5 s  from node\n    1.5 s  (1/2) a::b c\n    0.1 s  test_a.py::c (setup)\n";
        assert_eq!(tally.slowest(), expected);
    }
}
