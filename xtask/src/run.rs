//! Running programs: prints the command, names it in errors, and counts test results in its output.
//! Every program runs in the root of the repository.
//! Errors are sentences for a person at a terminal.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::tally::Tally;

/// Success, or a sentence that says what failed and what to do.
pub(crate) type Outcome<T = ()> = Result<T, String>;

/// Variables that `cargo run` sets for us. Build scripts of dependencies (ring's, for one) are run again when they change, so cargo
/// processes that we start must see the same environment as those that a person starts.
const SET_BY_CARGO: [&str; 8] = [
    "CARGO",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_PATH",
    "CARGO_MANIFEST_LINKS",
    "CARGO_PRIMARY_PACKAGE",
    "CARGO_BIN_NAME",
    "CARGO_CRATE_NAME",
    "OUT_DIR",
];

thread_local! {
    /// Where the output of this thread's programs goes instead of the terminal.
    static LOG: RefCell<Option<File>> = const { RefCell::new(None) };
}

/// A command to be run.
pub(crate) struct Run(Command);

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a directory of the repository")
        .to_owned()
}

/// Where cargo builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A command.
pub(crate) fn new(program: impl AsRef<OsStr>) -> Run {
    let mut command = Command::new(program);
    command.current_dir(root());
    Run(command)
}

/// A cargo command with the toolchain that runs us, in the environment that a person's shell has.
pub(crate) fn cargo<const N: usize>(words: [&str; N]) -> Run {
    let mut run = new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if SET_BY_CARGO.contains(&&*name_text) || name_text.starts_with("CARGO_PKG_") {
            run.0.env_remove(&name);
        }
    }
    run.args(words);
    run
}

/// Runs `work` with the output of its programs written to `target/logs/<name>.log`.
///
/// # Errors
///
/// What `work` returns, with the end of the log.
pub(crate) fn logged<T>(name: &str, work: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    let path = target().join("logs").join(format!("{name}.log"));
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    fs::create_dir_all(target().join("logs")).map_err(failed)?;
    let file = File::create(&path).map_err(failed)?;
    LOG.with(|log| log.replace(Some(file)));
    let outcome = work();
    LOG.with(|log| log.replace(None));
    outcome.map_err(|message| format!("{message}\n{}", tail(&path)))
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    const LINES: usize = 40;
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    format!("the end of {}:\n{}", path.display(), lines[lines.len().saturating_sub(LINES)..].join("\n"))
}

/// A copy of this thread's log, if it has one.
fn log() -> Option<File> {
    LOG.with(|log| log.borrow().as_ref().and_then(|file| file.try_clone().ok()))
}

impl Run {
    pub(crate) fn arg(&mut self, word: impl AsRef<OsStr>) -> &mut Self {
        self.0.arg(word);
        self
    }

    pub(crate) fn args(&mut self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Self {
        self.0.args(words);
        self
    }

    pub(crate) fn env(&mut self, name: &str, value: impl AsRef<OsStr>) -> &mut Self {
        self.0.env(name, value);
        self
    }

    /// Clears the environment but for these variables.
    pub(crate) fn only_env(&mut self, names: &[&str]) -> &mut Self {
        self.0.env_clear();
        for (name, value) in names.iter().filter_map(|name| Some((name, std::env::var_os(name)?))) {
            self.0.env(name, value);
        }
        self
    }

    /// The command as it is printed.
    fn words(&self) -> String {
        let program = self.0.get_program().to_string_lossy();
        let program = program.rsplit('/').next().unwrap_or_default().to_owned();
        self.0.get_args().fold(program, |line, word| format!("{line} {}", word.to_string_lossy()))
    }

    /// Prints the command, to the thread's log if it has one.
    fn announce(&self) -> String {
        let words = self.words();
        match log() {
            Some(mut log) => drop(writeln!(log, "$ {words}")),
            None => eprintln!("$ {words}"),
        }
        words
    }

    /// Runs it on our terminal, or into the thread's log.
    pub(crate) fn run(&mut self) -> Outcome {
        let words = self.announce();
        if let (Some(out), Some(err)) = (log(), log()) {
            self.0.stdin(Stdio::null()).stdout(out).stderr(err);
        }
        let status = self.0.status().map_err(|error| format!("{words}: {error}"))?;
        if status.success() { Ok(()) } else { Err(format!("{words}: {status}")) }
    }

    /// Runs it silently; returns whether it succeeded.
    pub(crate) fn succeeds(&mut self) -> bool {
        self.0.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    /// Runs it and returns its standard output if it succeeds; its standard error is dropped.
    pub(crate) fn output_quiet(&mut self) -> Option<String> {
        let output = self.0.stderr(Stdio::null()).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs it and returns its standard output.
    pub(crate) fn output(&mut self) -> Outcome<String> {
        let words = self.words();
        let output = self.0.stderr(Stdio::inherit()).output().map_err(|error| format!("{words}: {error}"))?;
        if !output.status.success() {
            return Err(format!("{words}: {}", output.status));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs a test tool, passes its output on and counts the results that it prints.
    pub(crate) fn tally(&mut self) -> Outcome<Tally> {
        let words = self.announce();
        let (reader, writer) = std::io::pipe().map_err(|error| error.to_string())?;
        let copy = writer.try_clone().map_err(|error| error.to_string())?;
        self.0.stdout(copy).stderr(writer);
        let mut child = self.0.spawn().map_err(|error| format!("{words}: {error}"))?;
        // Our copies of the pipe's write end would keep it open for ever.
        self.0.stdout(Stdio::null()).stderr(Stdio::null());
        let mut tally = Tally::default();
        for line in BufReader::new(reader).split(b'\n') {
            let line = line.map_err(|error| format!("{words}: {error}"))?;
            let mut out = std::io::stdout().lock();
            let _ = out.write_all(&line).and_then(|()| out.write_all(b"\n"));
            tally.read(&String::from_utf8_lossy(&line));
        }
        let status = child.wait().map_err(|error| format!("{words}: {error}"))?;
        if !status.success() && tally.failed == 0 {
            tally.failed = 1;
        }
        if status.success() && tally.passed == 0 {
            return Err(format!("{words}: no test ran"));
        }
        Ok(tally)
    }
}
