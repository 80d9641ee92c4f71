//! Running programs: the command is shown, a failure names it, output can be counted on the way through.
//! Everything runs from the root of the repository.
//! Errors are plain sentences for a person at a terminal.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::tally::Tally;

/// Success, or a sentence that says what to do.
pub(crate) type Outcome<T = ()> = Result<T, String>;

/// A command to be run.
pub(crate) struct Run(Command);

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository").to_owned()
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

/// A cargo command with the toolchain that runs us.
pub(crate) fn cargo<const N: usize>(words: [&str; N]) -> Run {
    let mut run = new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    run.args(words);
    run
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

    fn shown(&self) -> String {
        let program = self.0.get_program().to_string_lossy();
        let program = program.rsplit('/').next().unwrap_or_default().to_owned();
        self.0.get_args().fold(program, |line, word| format!("{line} {}", word.to_string_lossy()))
    }

    /// Runs it with our own terminal.
    pub(crate) fn run(&mut self) -> Outcome {
        let shown = self.shown();
        eprintln!("$ {shown}");
        let status = self.0.status().map_err(|error| format!("{shown}: {error}"))?;
        if status.success() { Ok(()) } else { Err(format!("{shown}: {status}")) }
    }

    /// Runs it silently; only whether it succeeded matters.
    pub(crate) fn succeeds(&mut self) -> bool {
        self.0.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    /// What it prints, if it succeeds; its complaints are dropped.
    pub(crate) fn output_quiet(&mut self) -> Option<String> {
        let output = self.0.stderr(Stdio::null()).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs it and returns what it prints.
    pub(crate) fn output(&mut self) -> Outcome<String> {
        let shown = self.shown();
        let output = self.0.stderr(Stdio::inherit()).output().map_err(|error| format!("{shown}: {error}"))?;
        if !output.status.success() {
            return Err(format!("{shown}: {}", output.status));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs a test tool, passing its output on and counting what it reports.
    pub(crate) fn tally(&mut self) -> Outcome<Tally> {
        let shown = self.shown();
        eprintln!("$ {shown}");
        let (reader, writer) = std::io::pipe().map_err(|error| error.to_string())?;
        let copy = writer.try_clone().map_err(|error| error.to_string())?;
        self.0.stdout(copy).stderr(writer);
        let mut child = self.0.spawn().map_err(|error| format!("{shown}: {error}"))?;
        // Our copies of the pipe's end would keep it open for ever.
        self.0.stdout(Stdio::null()).stderr(Stdio::null());
        let mut tally = Tally::default();
        for line in BufReader::new(reader).split(b'\n') {
            let line = line.map_err(|error| format!("{shown}: {error}"))?;
            let mut out = std::io::stdout().lock();
            let _ = out.write_all(&line).and_then(|()| out.write_all(b"\n"));
            tally.read(&String::from_utf8_lossy(&line));
        }
        let status = child.wait().map_err(|error| format!("{shown}: {error}"))?;
        if !status.success() && tally.failed == 0 {
            tally.failed = 1;
        }
        if status.success() && tally.passed == 0 {
            return Err(format!("{shown}: no test ran"));
        }
        Ok(tally)
    }
}
