//! One run of code: its turn, its surroundings, its events, and whatever cuts it short.
//! The turn is kept until the kernel is idle again, so an interrupt never hits the next run.
//! Code that swallows interrupts is given up: its kernel is killed, and the next client is told.

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
use crate::prepare::Prepare;
use crate::reaper::Ended;

/// Clients and proxies in between hear something at least this often.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// IRkernel throws away what comes for a while after an interrupt, and tells nobody when it listens again.
const SEND_AGAIN: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(2),
];

/// What is to be run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: String,
    /// Variables for this run alone.
    pub(crate) env: Env,
    /// Ours: the run is interrupted after this, counted from its turn.
    pub(crate) limit: Option<Duration>,
}

/// Why a run is over.
#[derive(Debug)]
enum End {
    Complete(Outcome),
    /// Nobody listens any more.
    Gone,
    /// The context was restarted or removed.
    Restarted,
    /// The run's own time limit has passed.
    Late,
    /// The kernel ended, which needs no help of ours.
    Died(Ended),
}

/// The one that listens.
#[derive(Debug)]
struct Client {
    lines: mpsc::Sender<Bytes>,
    /// When a keepalive is due.
    due: Instant,
}

impl Client {
    /// False when nobody listens any more.
    async fn tell_both(&mut self, event: Event, note: Option<Event>) -> bool {
        self.tell(&event).await
            && match note {
                Some(note) => self.tell(&note).await,
                None => true,
            }
    }

    /// False when nobody listens any more.
    async fn tell(&mut self, event: &Event) -> bool {
        self.due = Instant::now() + KEEPALIVE;
        self.lines.send(event.line()).await.is_ok()
    }
}

/// Runs code in its turn, and tells `lines` of it until the end.
pub(crate) async fn run(
    contexts: Arc<Contexts>,
    context: Arc<Context>,
    run: Run,
    lines: mpsc::Sender<Bytes>,
) {
    let life = context.life();
    let mut client = Client { lines, due: Instant::now() + KEEPALIVE };
    let turn = tokio::select! {
        biased;
        session = context.session.lock() => Ok(session),
        end = wait(&mut client, &life) => Err(end),
    };
    match turn {
        Ok(mut session) => in_turn(&contexts, &context, &mut session, &run, &mut client, &life).await,
        Err(End::Restarted) => tell_restarted(&mut client).await,
        Err(_) => {}
    }
}

/// Keeps the client company until something ends the wait.
async fn wait(client: &mut Client, life: &CancellationToken) -> End {
    loop {
        let due = client.due;
        tokio::select! {
            () = life.cancelled() => return End::Restarted,
            () = client.lines.closed() => return End::Gone,
            () = sleep_until(due) => if !client.tell(&Event::Keepalive).await { return End::Gone },
        }
    }
}

async fn in_turn(
    contexts: &Contexts,
    context: &Context,
    session: &mut Session,
    run: &Run,
    client: &mut Client,
    life: &CancellationToken,
) {
    // Whoever waited for its turn in vain leaves no trace.
    if client.lines.is_closed() {
        return;
    }
    let end = match cell(contexts, context, session, run, client, life).await {
        Ok(end) => end,
        Err(error) => {
            tracing::warn!("context {}: {error}", context.id);
            session.kernel = None;
            client.tell(&Event::error("ContextRestarting", error.to_string())).await;
            client.tell(&Event::End).await;
            return;
        }
    };
    match end {
        End::Complete(Outcome::Aborted) => {
            client.tell(&Event::error("ExecutionAborted", "Execution was aborted")).await;
        }
        End::Complete(Outcome::Done) => {}
        End::Gone => calm(session).await,
        End::Late => {
            calm(session).await;
            client.tell(&Event::error("ExecutionTimeout", "The run took longer than it was given")).await;
        }
        End::Restarted => {
            session.kernel = None;
            tell_restarted(client).await;
            return;
        }
        End::Died(ended) => {
            tracing::info!("context {}: its kernel ended ({ended})", context.id);
            session.kernel = None;
            client.tell(&Event::error("ContextRestarting", "Context was restarted")).await;
        }
    }
    client.tell(&Event::End).await;
    // The stream ends here; what follows is no longer the client's time.
    let (closed, _) = mpsc::channel(1);
    client.lines = closed;
    if let Err(error) = settle(contexts, context, session).await {
        tracing::warn!("context {}: {error}", context.id);
        session.kernel = None;
    }
}

/// Runs the code and passes on what comes of it, until it ends or something else does.
async fn cell(
    contexts: &Contexts,
    context: &Context,
    session: &mut Session,
    run: &Run,
    client: &mut Client,
    life: &CancellationToken,
) -> Result<End, Error> {
    let ready = async {
        ready(contexts, context, session).await?;
        surround(contexts, session, &run.env).await
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
            () = life.cancelled() => return Ok(End::Restarted),
            () = client.lines.closed() => return Ok(End::Gone),
            next = kernel.next() => next,
            () = sleep_until(client.due) => {
                if !client.tell(&Event::Keepalive).await {
                    return Ok(End::Gone);
                }
                continue;
            }
            () = passed(limit) => return Ok(End::Late),
        };
        let event = match next {
            Err(ended) => return Ok(End::Died(ended)),
            Ok(said) => said.event(),
        };
        match event {
            // Swept away with an earlier run's interrupt: nothing of it was run.
            Err(Outcome::Aborted) => {
                let Some(pause) = again.next() else { return Ok(End::Complete(Outcome::Aborted)) };
                tokio::select! {
                    () = tokio::time::sleep(*pause) => kernel.begin(&run.code).await?,
                    end = wait(client, life) => return Ok(end),
                }
            }
            Err(outcome) => return Ok(End::Complete(outcome)),
            Ok(event) => {
                // The count comes first, always.
                let note = lost.take_if(|_| matches!(event, Event::Count(_)));
                let told = tokio::select! {
                    told = client.tell_both(event, note.map(Event::Stderr)) => told,
                    () = life.cancelled() => return Ok(End::Restarted),
                };
                if !told {
                    return Ok(End::Gone);
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

/// Makes sure that there is a kernel.
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

/// Gives the kernel the sandbox's variables and the run's, and a seed of its own if the sandbox is a copy.
async fn surround(contexts: &Contexts, session: &mut Session, own: &Env) -> Result<(), Error> {
    let mut env = contexts.global();
    env.extend(own.iter().map(|(name, value)| (name.clone(), value.clone())));
    let copies = contexts.copies();
    let applied = std::mem::replace(&mut session.applied, env.clone());
    let seeded = std::mem::replace(&mut session.seeded, copies);
    let kernel = running(session)?;
    let mut change = Prepare::change(&applied, &env, kernel.base());
    change.seed = (seeded != copies).then(crate::identity::seed);
    kernel.prepare(&change).await
}

fn running(session: &mut Session) -> Result<&mut Kernel, Error> {
    session.kernel.as_mut().ok_or_else(|| Error::Link(std::io::ErrorKind::NotConnected.into()))
}

/// Interrupts the kernel until it is idle; one that will not be is killed.
async fn calm(session: &mut Session) {
    let Some(kernel) = session.kernel.as_mut() else { return };
    if kernel.calm().await {
        return;
    }
    session.kernel = None;
    session.lost = Some(
        "An earlier run of this context did not end when it was interrupted; the context was started anew, without its variables.\n".to_owned(),
    );
}

/// After a run: a kernel for the next one, without the variables of this one.
async fn settle(contexts: &Contexts, context: &Context, session: &mut Session) -> Result<(), Error> {
    let lost = session.lost.take();
    ready(contexts, context, session).await?;
    session.lost = lost.or(session.lost.take());
    surround(contexts, session, &Env::new()).await
}

async fn tell_restarted(client: &mut Client) {
    let lost = "The connections was lost, rerun the code to get the results";
    let cut = "Connection to the execution was closed before the execution was finished";
    client.tell(&Event::error("WebSocketError", lost)).await;
    client.tell(&Event::error("UnexpectedEndOfExecution", cut)).await;
    client.tell(&Event::End).await;
}
