//! Several engines behind one: a template may name who runs its sandboxes, and whatever names nobody goes to the first.
//! What exists already is looked for everywhere, so that another order after a restart loses nothing.
//! Engines share nothing on the host: each sweeps its own.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    Descriptor, Engine, EngineError, Revival, Sandbox, SandboxId, SnapshotId, StartSpec, TemplateImage,
};

/// See the module's text.
pub struct Engines {
    first: Arc<dyn Engine>,
    others: Vec<Arc<dyn Engine>>,
}

impl Engines {
    /// The first is taken where nothing else is asked for.
    #[must_use]
    pub fn new(first: Arc<dyn Engine>, others: Vec<Arc<dyn Engine>>) -> Self {
        Self { first, others }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<dyn Engine>> {
        std::iter::once(&self.first).chain(&self.others)
    }

    fn named(&self, name: Option<&str>) -> Result<&Arc<dyn Engine>, EngineError> {
        let Some(name) = name else { return Ok(&self.first) };
        let found = self.all().find(|engine| engine.descriptor().name == name);
        found.ok_or_else(|| {
            let names: Vec<&str> = self.all().map(|engine| engine.descriptor().name).collect();
            EngineError::Template(format!(
                "it wants the engine {name:?}, which this server does not run (it runs {}); see `cofferdam doctor`",
                names.join(", ")
            ))
        })
    }
}

#[async_trait]
impl Engine for Engines {
    fn descriptor(&self) -> &Descriptor {
        self.first.descriptor()
    }

    fn descriptors(&self) -> Vec<&Descriptor> {
        self.all().map(|engine| engine.descriptor()).collect()
    }

    async fn prepare(&self, template: &TemplateImage, recurring: bool) -> Result<(), EngineError> {
        self.named(template.engine.as_deref())?.prepare(template, recurring).await
    }

    async fn start(&self, spec: StartSpec) -> Result<Arc<dyn Sandbox>, EngineError> {
        self.named(spec.template.engine.as_deref())?.start(spec).await
    }

    async fn restore(
        &self,
        snapshot: SnapshotId,
        revival: Revival,
        spec: StartSpec,
    ) -> Result<Arc<dyn Sandbox>, EngineError> {
        for engine in self.all() {
            match engine.restore(snapshot, revival, spec.clone()).await {
                Err(EngineError::NotFound) => {}
                answer => return answer,
            }
        }
        Err(EngineError::NotFound)
    }

    async fn discard(&self, snapshot: SnapshotId) -> Result<(), EngineError> {
        for engine in self.all() {
            engine.discard(snapshot).await?;
        }
        Ok(())
    }

    async fn memory_scarce(&self) {
        self.first.memory_scarce().await;
    }

    async fn adopt(&self, id: &SandboxId) -> Result<Arc<dyn Sandbox>, EngineError> {
        for engine in self.all() {
            match engine.adopt(id).await {
                Err(EngineError::NotFound) => {}
                answer => return answer,
            }
        }
        Err(EngineError::NotFound)
    }

    async fn adopt_late(&self, id: &SandboxId) -> Result<Arc<dyn Sandbox>, EngineError> {
        for engine in self.all() {
            match engine.adopt_late(id).await {
                Err(EngineError::NotFound) => {}
                answer => return answer,
            }
        }
        Err(EngineError::NotFound)
    }

    async fn sweep(&self, keep: &[SandboxId], snapshots: &[SnapshotId]) -> Result<usize, EngineError> {
        let mut removed = 0;
        for engine in self.all() {
            removed += engine.sweep(keep, snapshots).await?;
        }
        Ok(removed)
    }

    async fn shutdown(&self) {
        for engine in self.all() {
            engine.shutdown().await;
        }
    }
}
