//! [`Engines`]: several engines behind one [`Engine`]. A template may name the engine of its sandboxes; templates that name none
//! go to the first engine. Sandboxes and snapshots that exist already are looked for in every engine, so the order of the engines
//! can change with a restart. Engines share nothing on the host: each sweeps its own objects.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    Descriptor, Engine, EngineError, RestoreMode, Sandbox, SandboxId, SnapshotId, StartSpec, TemplateImage,
};

/// Several engines behind one: the default engine and further ones.
pub struct Engines {
    first: Arc<dyn Engine>,
    others: Vec<Arc<dyn Engine>>,
}

impl Engines {
    /// Combines engines; `first` runs the sandboxes of templates that name no engine.
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
                "it needs the engine {name:?}, which this server does not run (it runs {}); see `cofferdam doctor`",
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
        restore_mode: RestoreMode,
        spec: StartSpec,
    ) -> Result<Arc<dyn Sandbox>, EngineError> {
        for engine in self.all() {
            match engine.restore(snapshot, restore_mode, spec.clone()).await {
                Err(EngineError::NotFound) => {}
                result => return result,
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

    async fn memory_pressure(&self) {
        self.first.memory_pressure().await;
    }

    async fn adopt(&self, id: &SandboxId) -> Result<Arc<dyn Sandbox>, EngineError> {
        for engine in self.all() {
            match engine.adopt(id).await {
                Err(EngineError::NotFound) => {}
                result => return result,
            }
        }
        Err(EngineError::NotFound)
    }

    async fn adopt_late(&self, id: &SandboxId) -> Result<Arc<dyn Sandbox>, EngineError> {
        for engine in self.all() {
            match engine.adopt_late(id).await {
                Err(EngineError::NotFound) => {}
                result => return result,
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
