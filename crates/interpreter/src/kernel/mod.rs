//! Language kernels: a kernel is a running process of one language that runs code and sends events.
//! All events pass through one bounded channel, so that a slow client slows its kernel down.
//! The module `run` queues, interrupts and abandons runs.

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
use crate::kernel_env::EnvChange;
use crate::language::Language;
use crate::reaper::{KernelExit, Process};

pub(crate) use start::Starter;

/// Maximum number of events that wait for a client.
const MAX_WAITING_EVENTS: usize = 256;

/// How long code may take to end after an interrupt request, and after each signal. Then the kernel is killed.
const AFTER_REQUEST: Duration = Duration::from_millis(200);
const AFTER_INTERRUPT: [Duration; 3] =
    [Duration::from_secs(2), Duration::from_secs(2), Duration::from_secs(3)];

/// How long to wait for the last output of an ended kernel.
const LAST_OUTPUT_TIMEOUT: Duration = Duration::from_millis(300);

/// An event of a kernel that runs code.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum KernelEvent {
    Count(u64),
    Stdout(String),
    Stderr(String),
    Result { main: bool, data: Bundle },
    Error { name: String, value: String, traceback: String },
    Done(Outcome),
}

/// How a run ended; errors of the code count as ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// It was not run, because an interrupt came before.
    Aborted,
}

impl KernelEvent {
    /// Returns the event for the client, or the outcome if the run has ended.
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

/// A running kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    language: Language,
    process: Process,
    link: Link,
    events: mpsc::Receiver<KernelEvent>,
    /// Environment that its process was started with.
    base: Env,
}

#[derive(Debug)]
enum Link {
    Jupyter(jupyter::JupyterClient),
    Driver(driver::DriverClient),
}

impl Kernel {
    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    pub(crate) fn base(&self) -> &Env {
        &self.base
    }

    /// Begins to run `code`. `next` returns its events.
    pub(crate) async fn begin(&mut self, code: &str) -> Result<(), Error> {
        // Drop events of an earlier run.
        while self.events.try_recv().is_ok() {}
        match &mut self.link {
            Link::Jupyter(client) => client.execute(code, false).await,
            Link::Driver(client) => client.run(code).await.map_err(Error::Link),
        }
    }

    /// Returns the next event, or how the kernel ended.
    pub(crate) async fn next(&mut self) -> Result<KernelEvent, KernelExit> {
        tokio::select! {
            biased;
            events = self.events.recv() => match events {
                Some(events) => return Ok(events),
                // Without a connection the kernel is of no use.
                None => self.process.kill(),
            },
            _ = self.process.ended() => {
                // Read its last output. Its children may keep the pipes open.
                if let Ok(Some(events)) = timeout(LAST_OUTPUT_TIMEOUT, self.events.recv()).await {
                    return Ok(events);
                }
            }
        }
        Err(self.process.ended().await)
    }

    /// Interrupts the code and waits until the kernel is idle. Returns false if it does not become idle.
    pub(crate) async fn interrupt_until_idle(&mut self) -> bool {
        if matches!(self.language, Language::JavaScript | Language::TypeScript)
            && let Link::Driver(client) = &mut self.link
        {
            // A request ends code that awaits; a signal is for code that computes, and would hit the driver otherwise.
            let _ = client.interrupt().await;
            if let Ok(idle) = timeout(AFTER_REQUEST, self.idle()).await {
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
                Ok(KernelEvent::Done(_)) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }

    /// Changes the kernel's environment, without a trace in the user's history and count.
    pub(crate) async fn prepare(&mut self, change: &EnvChange) -> Result<(), Error> {
        if change.is_empty() {
            return Ok(());
        }
        let client = match &mut self.link {
            Link::Driver(client) => return client.prepare(change).await.map_err(Error::Link),
            Link::Jupyter(client) => client,
        };
        let code = if self.language == Language::R { change.r() } else { change.python() };
        while self.events.try_recv().is_ok() {}
        client.execute(&code, true).await?;
        loop {
            match self.next().await {
                Ok(KernelEvent::Done(_)) | Err(_) => return Ok(()),
                Ok(KernelEvent::Error { name, value, .. }) => {
                    tracing::warn!(language = %self.language, "{name}: {value}");
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
