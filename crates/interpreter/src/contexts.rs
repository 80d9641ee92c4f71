//! The contexts of this sandbox: made at the start, on demand, or by a client; listed in the order they were made.
//! Each has one kernel and one session, which whoever runs code holds; the lock gives turns in the order of asking.
//! A context outlives its kernel: a new one gets the same directory and variables.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex as Lock, PoisonError};

use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::args::Serve;
use crate::envd::Env;
use crate::error::Error;
use crate::identity::Watch;
use crate::kernel::{Kernel, Starter};
use crate::language::Language;
use crate::reaper::Reaper;

type DefaultId = Arc<Mutex<Option<String>>>;

/// Another name for the context that runs code without a context.
const DEFAULT: &str = "default";

/// One context.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) id: String,
    pub(crate) language: Language,
    /// As the client gave it, whether there is such a directory or not.
    pub(crate) cwd: String,
    pub(crate) session: Mutex<Session>,
    /// Cancelled when the context is restarted or removed: whatever was asked of it before ends.
    life: Lock<CancellationToken>,
}

/// What only one run at a time may use.
#[derive(Debug, Default)]
pub(crate) struct Session {
    pub(crate) kernel: Option<Kernel>,
    /// Variables that the kernel has been given after its start.
    pub(crate) applied: Env,
    /// How many copies of the sandbox ago it was seeded.
    pub(crate) seeded: u64,
    /// Told to the next client: why its variables are gone.
    pub(crate) lost: Option<String>,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Contexts {
    all: Lock<Vec<Arc<Context>>>,
    /// Ids of the contexts for code that names none. A language's lock is held while its context is made.
    defaults: Lock<HashMap<Language, DefaultId>>,
    starter: Starter,
    copies: Lock<Watch>,
    /// The sandbox's variables as envd last told them.
    global: Lock<Env>,
    default_cwd: String,
}

impl Context {
    pub(crate) fn to_json(&self) -> Value {
        json!({"id": self.id, "language": self.language.name(), "cwd": self.cwd})
    }

    pub(crate) fn life(&self) -> CancellationToken {
        lock(&self.life).clone()
    }

    /// Ends whatever was asked until now.
    fn end_life(&self) {
        std::mem::take(&mut *lock(&self.life)).cancel();
    }
}

impl Contexts {
    pub(crate) fn new(args: &Serve, reaper: Reaper) -> Self {
        Self {
            all: Lock::default(),
            defaults: Lock::default(),
            starter: Starter::new(args, reaper),
            copies: Lock::new(Watch::new(args.identity.clone())),
            global: Lock::default(),
            default_cwd: args.cwd.to_string_lossy().into_owned(),
        }
    }

    /// Makes the two that every sandbox has.
    pub(crate) async fn warm(&self) -> Result<(), Error> {
        let (python, javascript) =
            tokio::try_join!(self.make(Language::Python, None), self.make(Language::JavaScript, None))?;
        for context in [python, javascript] {
            *self.default(context.language).lock().await = Some(context.id.clone());
            lock(&self.all).push(context);
        }
        Ok(())
    }

    pub(crate) fn list(&self) -> Vec<Arc<Context>> {
        lock(&self.all).clone()
    }

    pub(crate) async fn get(&self, id: &str) -> Option<Arc<Context>> {
        let default = match id {
            DEFAULT => self.default(Language::Python).lock().await.clone(),
            _ => None,
        };
        let id = default.as_deref().unwrap_or(id);
        lock(&self.all).iter().find(|context| context.id == id).cloned()
    }

    /// The context for code that names none.
    pub(crate) async fn default_for(&self, language: Language) -> Result<Arc<Context>, Error> {
        let default = self.default(language);
        let mut default = default.lock().await;
        if let Some(id) = &*default
            && let Some(context) = lock(&self.all).iter().find(|context| context.id == *id)
        {
            return Ok(Arc::clone(context));
        }
        let context = self.create(language, None).await?;
        *default = Some(context.id.clone());
        Ok(context)
    }

    fn default(&self, language: Language) -> DefaultId {
        Arc::clone(lock(&self.defaults).entry(language).or_default())
    }

    pub(crate) async fn create(&self, language: Language, cwd: Option<&str>) -> Result<Arc<Context>, Error> {
        let context = self.make(language, cwd).await?;
        lock(&self.all).push(Arc::clone(&context));
        Ok(context)
    }

    async fn make(&self, language: Language, cwd: Option<&str>) -> Result<Arc<Context>, Error> {
        let context = Context {
            id: uuid::Uuid::new_v4().to_string(),
            language,
            cwd: cwd.filter(|cwd| !cwd.is_empty()).unwrap_or(&self.default_cwd).to_owned(),
            session: Mutex::default(),
            life: Lock::default(),
        };
        self.fresh(&context, &mut *context.session.lock().await).await?;
        Ok(Arc::new(context))
    }

    /// Gives the session a new kernel.
    pub(crate) async fn fresh(&self, context: &Context, session: &mut Session) -> Result<(), Error> {
        // First of all: the old one's memory may be needed.
        session.kernel = None;
        session.applied = Env::new();
        session.seeded = self.copies();
        let global = self.global();
        let kernel = self.starter.start(context.language, Path::new(&context.cwd), &global).await?;
        session.kernel = Some(kernel);
        Ok(())
    }

    pub(crate) async fn restart(&self, context: &Context) -> Result<(), Error> {
        context.end_life();
        let mut session = context.session.lock().await;
        session.lost = None;
        self.fresh(context, &mut session).await
    }

    pub(crate) async fn remove(&self, context: &Context) {
        lock(&self.all).retain(|kept| kept.id != context.id);
        context.end_life();
        context.session.lock().await.kernel = None;
    }

    /// Ends all kernels.
    pub(crate) async fn close(&self) {
        for context in self.list() {
            self.remove(&context).await;
        }
    }

    pub(crate) fn copies(&self) -> u64 {
        lock(&self.copies).copies()
    }

    pub(crate) fn global(&self) -> Env {
        lock(&self.global).clone()
    }

    pub(crate) fn set_global(&self, env: Env) {
        *lock(&self.global) = env;
    }
}

fn lock<T>(lock: &Lock<T>) -> std::sync::MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
