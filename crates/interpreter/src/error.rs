//! The error of this crate, with texts that name the remedy.
//! Errors of user code are not errors here: they are events of a run.
//! The HTTP layer decides which of them a client sees.

use std::io;
use std::path::PathBuf;

use crate::language::Language;
use crate::reaper::KernelExit;

/// Why an operation of the interpreter failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the runtime cannot start: {0}; are there file descriptors and threads left?")]
    Runtime(#[source] io::Error),
    #[error("cannot listen on {address}: {source}; end what listens there, or choose another with --listen")]
    Listen { address: std::net::SocketAddr, source: io::Error },
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("cannot start {program}: {source}; install it in the template")]
    Start { program: String, source: io::Error },
    #[error("javac failed: {0}; is openjdk-21-jdk-headless installed?")]
    Compile(String),
    #[error("the {language} kernel ended while starting ({ended}); its output is in the interpreter's log")]
    EndedEarly { language: Language, ended: KernelExit },
    #[error(
        "the {language} kernel did not start within {seconds} s; has the sandbox enough processor and memory?"
    )]
    Slow { language: Language, seconds: u64 },
    #[error("the connection to the kernel broke: {0}; restart the context")]
    Link(#[source] io::Error),
    #[error("No such kernel: {0}; use python, javascript, typescript, r, java or bash")]
    UnknownLanguage(String),
}

impl Error {
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
