//! A run of code: its turn, its environment, its events, and its end.
//! The turn lasts until the kernel is idle again, so that an interrupt cannot hit the next run.
//! If code ignores interrupts, its kernel is killed, and the next client gets a message.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::contexts::{Context, Contexts, Session};
use crate::envd::Env;
use crate::error::Error;
use crate::event::Event;
use crate::kernel::{Kernel, Outcome};
use crate::kernel_env::EnvChange;
use crate::reaper::KernelExit;

/// Interval of keepalive lines, for clients and proxies.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// When to send a request again: IRkernel discards requests for a while after an interrupt, without notice.
const SEND_AGAIN: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(2),
];

/// A request to run code.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: String,
    /// Variables of this run only.
    pub(crate) env: Env,
    /// Time limit, counted from the beginning of its turn. Not in E2B's interface.
    pub(crate) limit: Option<Duration>,
}

/// Why a run ended.
#[derive(Debug)]
enum RunEnd {
    Complete(Outcome),
    /// The client has gone.
    Gone,
    /// The context was restarted or removed.
    Restarted,
    /// The run's own time limit has passed.
    Late,
    /// The kernel has ended.
    Died(KernelExit),
}

/// The client of a run.
#[derive(Debug)]
struct RunClient {
    lines: mpsc::Sender<Bytes>,
    /// When the next keepalive line is due.
    due: Instant,
}

impl RunClient {
    /// Sends to the client. Returns false if it has gone.
    async fn send_both(&mut self, event: Event, note: Option<Event>) -> bool {
        self.send(&event).await
            && match note {
                Some(note) => self.send(&note).await,
                None => true,
            }
    }

    /// Sends to the client. Returns false if it has gone.
    async fn send(&mut self, event: &Event) -> bool {
        self.due = Instant::now() + KEEPALIVE;
        self.lines.send(event.line()).await.is_ok()
    }
}

/// Waits for the run's turn, runs it, and sends its lines to `lines` until its end.
pub(crate) async fn run(
    contexts: Arc<Contexts>,
    context: Arc<Context>,
    run: Run,
    lines: mpsc::Sender<Bytes>,
) {
    let life = context.life();
    let mut client = RunClient { lines, due: Instant::now() + KEEPALIVE };
    let turn = tokio::select! {
        biased;
        session = context.session.lock() => Ok(session),
        end = wait(&mut client, &life) => Err(end),
    };
    match turn {
        Ok(mut session) => in_turn(&contexts, &context, &mut session, &run, &mut client, &life).await,
        Err(RunEnd::Restarted) => send_restarted(&mut client).await,
        Err(_) => {}
    }
}

/// Sends keepalives until something ends the wait.
async fn wait(client: &mut RunClient, life: &CancellationToken) -> RunEnd {
    loop {
        let due = client.due;
        tokio::select! {
            () = life.cancelled() => return RunEnd::Restarted,
            () = client.lines.closed() => return RunEnd::Gone,
            () = sleep_until(due) => if !client.send(&Event::Keepalive).await { return RunEnd::Gone },
        }
    }
}

async fn in_turn(
    contexts: &Contexts,
    context: &Context,
    session: &mut Session,
    run: &Run,
    client: &mut RunClient,
    life: &CancellationToken,
) {
    // A client that has gone while it waited leaves no trace.
    if client.lines.is_closed() {
        return;
    }
    let end = match cell(contexts, context, session, run, client, life).await {
        Ok(end) => end,
        Err(error) => {
            tracing::warn!(context_id = %context.id, %error, "failed to begin a run");
            session.kernel = None;
            client.send(&Event::error("ContextRestarting", error.to_string())).await;
            client.send(&Event::End).await;
            return;
        }
    };
    match end {
        RunEnd::Complete(Outcome::Aborted) => {
            client.send(&Event::error("ExecutionAborted", "Execution was aborted")).await;
        }
        RunEnd::Complete(Outcome::Done) => {}
        RunEnd::Gone => interrupt(session).await,
        RunEnd::Late => {
            interrupt(session).await;
            client.send(&Event::error("ExecutionTimeout", "The run took longer than it was given")).await;
        }
        RunEnd::Restarted => {
            session.kernel = None;
            send_restarted(client).await;
            return;
        }
        RunEnd::Died(ended) => {
            tracing::info!(context_id = %context.id, %ended, "a kernel ended during a run");
            session.kernel = None;
            client.send(&Event::error("ContextRestarting", "Context was restarted")).await;
        }
    }
    client.send(&Event::End).await;
    // The stream ends here: the client does not wait for the rest.
    let (closed, _) = mpsc::channel(1);
    client.lines = closed;
    if let Err(error) = prepare_next(contexts, context, session).await {
        tracing::warn!(context_id = %context.id, %error, "failed to prepare the kernel for the next run");
        session.kernel = None;
    }
}

/// Runs the code and sends its events, until the run ends.
async fn cell(
    contexts: &Contexts,
    context: &Context,
    session: &mut Session,
    run: &Run,
    client: &mut RunClient,
    life: &CancellationToken,
) -> Result<RunEnd, Error> {
    let ready = async {
        ready(contexts, context, session).await?;
        set_environment(contexts, session, &run.env).await
    };
    tokio::select! {
        biased;
        done = ready => done?,
        end = wait(client, life) => return Ok(end),
    }
    let mut lost = session.lost.take();
    let kernel = running(session)?;
    kernel.begin(&run.code).await?;
    let limit = run.limit.map(|limit| Instant::now() + limit);
    let mut again = SEND_AGAIN.iter();
    loop {
        let next = tokio::select! {
            biased;
            () = life.cancelled() => return Ok(RunEnd::Restarted),
            () = client.lines.closed() => return Ok(RunEnd::Gone),
            next = kernel.next() => next,
            () = sleep_until(client.due) => {
                if !client.send(&Event::Keepalive).await {
                    return Ok(RunEnd::Gone);
                }
                continue;
            }
            () = passed(limit) => return Ok(RunEnd::Late),
        };
        let event = match next {
            Err(ended) => return Ok(RunEnd::Died(ended)),
            Ok(said) => said.event(),
        };
        match event {
            // Discarded because of an earlier run's interrupt: nothing of it was run.
            Err(Outcome::Aborted) => {
                let Some(pause) = again.next() else { return Ok(RunEnd::Complete(Outcome::Aborted)) };
                tokio::select! {
                    () = tokio::time::sleep(*pause) => kernel.begin(&run.code).await?,
                    end = wait(client, life) => return Ok(end),
                }
            }
            Err(outcome) => return Ok(RunEnd::Complete(outcome)),
            Ok(event) => {
                // The count is always first.
                let note = lost.take_if(|_| matches!(event, Event::Count(_)));
                let told = tokio::select! {
                    told = client.send_both(event, note.map(Event::Stderr)) => told,
                    () = life.cancelled() => return Ok(RunEnd::Restarted),
                };
                if !told {
                    return Ok(RunEnd::Gone);
                }
            }
        }
    }
}

async fn passed(limit: Option<Instant>) {
    match limit {
        Some(limit) => sleep_until(limit).await,
        None => std::future::pending().await,
    }
}

/// Starts a kernel if the session has none that runs.
async fn ready(contexts: &Contexts, context: &Context, session: &mut Session) -> Result<(), Error> {
    let ended = match &session.kernel {
        Some(kernel) => kernel.process().status(),
        None => return contexts.fresh(context, session).await,
    };
    let Some(ended) = ended else { return Ok(()) };
    session.lost = Some(format!(
        "The kernel of this context had ended ({ended}); it was started anew, without its variables.\n"
    ));
    contexts.fresh(context, session).await
}

/// Sets the sandbox's variables and the run's in the kernel, and a new seed if the sandbox is a copy.
async fn set_environment(contexts: &Contexts, session: &mut Session, own: &Env) -> Result<(), Error> {
    let mut env = contexts.global();
    env.extend(own.iter().map(|(name, value)| (name.clone(), value.clone())));
    let copies = contexts.copies();
    let applied = std::mem::replace(&mut session.applied, env.clone());
    let seeded = std::mem::replace(&mut session.seeded, copies);
    let kernel = running(session)?;
    let mut change = EnvChange::change(&applied, &env, kernel.base());
    change.seed = (seeded != copies).then(crate::copy_detector::seed);
    kernel.prepare(&change).await
}

fn running(session: &mut Session) -> Result<&mut Kernel, Error> {
    session.kernel.as_mut().ok_or_else(|| Error::Link(std::io::ErrorKind::NotConnected.into()))
}

/// Interrupts the kernel until it is idle; kills it if that fails.
async fn interrupt(session: &mut Session) {
    let Some(kernel) = session.kernel.as_mut() else { return };
    if kernel.interrupt_until_idle().await {
        return;
    }
    session.kernel = None;
    session.lost = Some(
        "An earlier run of this context did not end when it was interrupted; the context was started anew, without its variables.\n".to_owned(),
    );
}

/// After a run: ensures a kernel for the next run and removes this run's variables.
async fn prepare_next(contexts: &Contexts, context: &Context, session: &mut Session) -> Result<(), Error> {
    let lost = session.lost.take();
    ready(contexts, context, session).await?;
    session.lost = lost.or(session.lost.take());
    set_environment(contexts, session, &Env::new()).await
}

async fn send_restarted(client: &mut RunClient) {
    let lost = "The connections was lost, rerun the code to get the results";
    let cut = "Connection to the execution was closed before the execution was finished";
    client.send(&Event::error("WebSocketError", lost)).await;
    client.send(&Event::error("UnexpectedEndOfExecution", cut)).await;
    client.send(&Event::End).await;
}
