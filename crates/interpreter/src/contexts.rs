//! The contexts of this sandbox: created at the start, on demand, or by a client; listed in the order of creation.
//! Each has one kernel and one session, which a run locks; runs take turns in the order of their requests.
//! A context outlives its kernel: a new kernel gets the same directory and variables.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Mutex as AsyncMutex;
use tokio_util::sync::CancellationToken;

use crate::args::Serve;
use crate::copy_detector::CopyDetector;
use crate::envd::Env;
use crate::error::Error;
use crate::kernel::{Kernel, Starter};
use crate::language::Language;
use crate::reaper::Reaper;

type DefaultId = Arc<AsyncMutex<Option<String>>>;

/// Id that stands for the default context, in which code without a context runs.
const DEFAULT: &str = "default";

/// A context.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) id: String,
    pub(crate) language: Language,
    /// The directory as the client named it; it need not exist.
    pub(crate) cwd: String,
    pub(crate) session: AsyncMutex<Session>,
    /// Cancelled when the context is restarted or removed: this ends all runs that were requested before.
    life: Mutex<CancellationToken>,
}

/// The part of a context that one run at a time may use.
#[derive(Debug, Default)]
pub(crate) struct Session {
    pub(crate) kernel: Option<Kernel>,
    /// Variables that were set in the kernel after its start.
    pub(crate) applied: Env,
    /// Number of detected copies of the sandbox when the kernel was seeded.
    pub(crate) seeded: u64,
    /// Message for the next client: why its variables are lost.
    pub(crate) lost: Option<String>,
}

/// All contexts.
#[derive(Debug)]
pub(crate) struct Contexts {
    all: Mutex<Vec<Arc<Context>>>,
    /// Ids of the default contexts by language. A language's lock is held while its context is created.
    defaults: Mutex<HashMap<Language, DefaultId>>,
    starter: Starter,
    copies: Mutex<CopyDetector>,
    /// The sandbox's variables, as envd reported them last.
    global: Mutex<Env>,
    default_cwd: String,
}

impl Context {
    pub(crate) fn to_json(&self) -> Value {
        json!({"id": self.id, "language": self.language.name(), "cwd": self.cwd})
    }

    pub(crate) fn life(&self) -> CancellationToken {
        self.life.lock().clone()
    }

    /// Ends all runs that were requested until now.
    fn end_life(&self) {
        std::mem::take(&mut *self.life.lock()).cancel();
    }
}

impl Contexts {
    pub(crate) fn new(args: &Serve, reaper: Reaper) -> Self {
        Self {
            all: Mutex::default(),
            defaults: Mutex::default(),
            starter: Starter::new(args, reaper),
            copies: Mutex::new(CopyDetector::new(args.identity.clone())),
            global: Mutex::default(),
            default_cwd: args.cwd.to_string_lossy().into_owned(),
        }
    }

    /// Creates the two contexts that every sandbox has.
    pub(crate) async fn warm(&self) -> Result<(), Error> {
        let (python, javascript) =
            tokio::try_join!(self.make(Language::Python, None), self.make(Language::JavaScript, None))?;
        for context in [python, javascript] {
            *self.default(context.language).lock().await = Some(context.id.clone());
            self.all.lock().push(context);
        }
        Ok(())
    }

    pub(crate) fn list(&self) -> Vec<Arc<Context>> {
        self.all.lock().clone()
    }

    pub(crate) async fn get(&self, id: &str) -> Option<Arc<Context>> {
        let default = match id {
            DEFAULT => self.default(Language::Python).lock().await.clone(),
            _ => None,
        };
        let id = default.as_deref().unwrap_or(id);
        self.all.lock().iter().find(|context| context.id == id).cloned()
    }

    /// Returns the default context of a language.
    pub(crate) async fn default_for(&self, language: Language) -> Result<Arc<Context>, Error> {
        let default = self.default(language);
        let mut default = default.lock().await;
        if let Some(id) = &*default
            && let Some(context) = self.all.lock().iter().find(|context| context.id == *id)
        {
            return Ok(Arc::clone(context));
        }
        let context = self.create(language, None).await?;
        *default = Some(context.id.clone());
        Ok(context)
    }

    fn default(&self, language: Language) -> DefaultId {
        Arc::clone(self.defaults.lock().entry(language).or_default())
    }

    pub(crate) async fn create(&self, language: Language, cwd: Option<&str>) -> Result<Arc<Context>, Error> {
        let context = self.make(language, cwd).await?;
        self.all.lock().push(Arc::clone(&context));
        Ok(context)
    }

    async fn make(&self, language: Language, cwd: Option<&str>) -> Result<Arc<Context>, Error> {
        let context = Context {
            id: uuid::Uuid::new_v4().to_string(),
            language,
            cwd: cwd.filter(|cwd| !cwd.is_empty()).unwrap_or(&self.default_cwd).to_owned(),
            session: AsyncMutex::default(),
            life: Mutex::default(),
        };
        self.fresh(&context, &mut *context.session.lock().await).await?;
        Ok(Arc::new(context))
    }

    /// Starts a new kernel for the session.
    pub(crate) async fn fresh(&self, context: &Context, session: &mut Session) -> Result<(), Error> {
        // First: the new kernel may need the memory of the old one.
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
        self.all.lock().retain(|kept| kept.id != context.id);
        context.end_life();
        context.session.lock().await.kernel = None;
    }

    /// Kills all kernels.
    pub(crate) async fn close(&self) {
        for context in self.list() {
            self.remove(&context).await;
        }
    }

    pub(crate) fn copies(&self) -> u64 {
        self.copies.lock().copies()
    }

    pub(crate) fn global(&self) -> Env {
        self.global.lock().clone()
    }

    pub(crate) fn set_global(&self, env: Env) {
        *self.global.lock() = env;
    }
}
