//! A running interpreter of one language, whatever it is made of: it is told code and says what comes of it.
//! Everything it says comes through one bounded channel, so a client that reads slowly slows its kernel.
//! How runs queue, are interrupted and are given up is `run`'s matter.

mod driver;
mod jupyter;
mod start;
mod zmtp;
mod zygote;

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::envd::Env;
use crate::error::Error;
use crate::event::{Bundle, Event};
use crate::language::Language;
use crate::prepare::Prepare;
use crate::reaper::{Ended, Process};

pub(crate) use start::Starter;

/// Messages that may wait for a client.
const WAITING: usize = 256;

/// How long code may take to end after it was asked to, and after each signal. Then it is given up.
const AFTER_ASKING: Duration = Duration::from_millis(200);
const AFTER_INTERRUPT: [Duration; 3] =
    [Duration::from_secs(2), Duration::from_secs(2), Duration::from_secs(3)];

/// How long an ended kernel's output is waited for.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// What a kernel says of the code it was told.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Said {
    Count(u64),
    Stdout(String),
    Stderr(String),
    Result { main: bool, data: Bundle },
    Error { name: String, value: String, traceback: String },
    Done(Outcome),
}

/// How a run ended, errors of the code included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// It was not run, for an interrupt came before.
    Aborted,
}

impl Said {
    /// The event for a client, or how the run ended.
    pub(crate) fn event(self) -> Result<Event, Outcome> {
        Ok(match self {
            Self::Count(count) => Event::Count(count),
            Self::Stdout(text) => Event::Stdout(text),
            Self::Stderr(text) => Event::Stderr(text),
            Self::Result { main, data } => Event::Result { main, data },
            Self::Error { name, value, traceback } => Event::Error { name, value, traceback },
            Self::Done(outcome) => return Err(outcome),
        })
    }
}

/// A kernel that runs.
#[derive(Debug)]
pub(crate) struct Kernel {
    language: Language,
    process: Process,
    link: Link,
    said: mpsc::Receiver<Said>,
    /// What its process had for an environment from the start.
    base: Env,
}

#[derive(Debug)]
enum Link {
    Jupyter(jupyter::Client),
    Driver(driver::Client),
}

impl Kernel {
    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    pub(crate) fn base(&self) -> &Env {
        &self.base
    }

    /// Begins to run `code`; what it says of it comes by `next`.
    pub(crate) async fn begin(&mut self, code: &str) -> Result<(), Error> {
        // Words of what an earlier run left behind belong to nobody.
        while self.said.try_recv().is_ok() {}
        match &mut self.link {
            Link::Jupyter(client) => client.execute(code, false).await,
            Link::Driver(client) => client.run(code).await.map_err(Error::Link),
        }
    }

    /// The next word, or nothing more as the kernel has ended.
    pub(crate) async fn next(&mut self) -> Result<Said, Ended> {
        tokio::select! {
            biased;
            said = self.said.recv() => match said {
                Some(said) => return Ok(said),
                // Without a link it is of no use.
                None => self.process.kill(),
            },
            _ = self.process.ended() => {
                // Its last words; children of it may keep the pipes open.
                if let Ok(Some(said)) = timeout(LAST_WORDS, self.said.recv()).await {
                    return Ok(said);
                }
            }
        }
        Err(self.process.ended().await)
    }

    /// Asks the code to end, and waits until the kernel is idle. False when it will not be.
    pub(crate) async fn calm(&mut self) -> bool {
        if matches!(self.language, Language::JavaScript | Language::TypeScript)
            && let Link::Driver(client) = &mut self.link
        {
            // What awaits is asked; a signal is for what computes, and would hit the driver otherwise.
            let _ = client.interrupt().await;
            if let Ok(idle) = timeout(AFTER_ASKING, self.idle()).await {
                return idle;
            }
        }
        for patience in AFTER_INTERRUPT {
            self.process.interrupt();
            if let Ok(idle) = timeout(patience, self.idle()).await {
                return idle;
            }
        }
        false
    }

    async fn idle(&mut self) -> bool {
        loop {
            match self.next().await {
                Ok(Said::Done(_)) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }

    /// Changes its surroundings; the user's history and count see nothing of it.
    pub(crate) async fn prepare(&mut self, change: &Prepare) -> Result<(), Error> {
        if change.is_empty() {
            return Ok(());
        }
        let client = match &mut self.link {
            Link::Driver(client) => return client.prepare(change).await.map_err(Error::Link),
            Link::Jupyter(client) => client,
        };
        let code = if self.language == Language::R { change.r() } else { change.python() };
        while self.said.try_recv().is_ok() {}
        client.execute(&code, true).await?;
        loop {
            match self.next().await {
                Ok(Said::Done(_)) | Err(_) => return Ok(()),
                Ok(Said::Error { name, value, .. }) => {
                    tracing::warn!("{}: {name}: {value}", self.language);
                }
                Ok(_) => {}
            }
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.process.kill();
    }
}
