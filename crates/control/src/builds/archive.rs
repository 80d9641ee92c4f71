//! Templates that travel: one archive with every layer, its configuration and their hashes, written by one server and read by another.
//! What comes in is as little trusted as an image; what was running is started anew here, so no memory travels.
//! Archives of container images are taken at the same door.

use std::io::{self, Write};

use engine::Resources;
use layers::LayerDigest;
use oci::{ImportOptions, OciError};
use serde::{Deserialize, Serialize};
use store::{Build, BuildConfig, Team};

use super::base::Pulled;
use super::failure::Failure;
use super::machine::Size;
use super::start::ArchiveFile;
use super::worker::Work;
use crate::{Control, ControlError, LogLevel, TemplateRef, check_template_size};

/// What an archive says besides its layers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Portable {
    pub(super) config: BuildConfig,
    pub(super) size: Size,
}

/// What was in an archive.
pub(super) enum Imported {
    /// With its layers, uppermost first.
    Template(Box<Portable>, Vec<String>),
    Image(Pulled),
}

/// A template to be written out.
#[derive(Debug, Clone)]
pub struct TemplateArchive {
    store: layers::LayerStore,
    layers: Vec<LayerDigest>,
    config: Vec<u8>,
}

impl TemplateArchive {
    /// Writes it. Blocks.
    ///
    /// # Errors
    /// A layer is gone, or the writer fails.
    pub fn write(&self, to: impl Write) -> io::Result<()> {
        let written = oci::export_template(&self.store, &self.layers, &self.config, to);
        written.map(drop).map_err(io::Error::other)
    }
}

impl Control {
    /// A template that the team may use, to be written out.
    ///
    /// # Errors
    /// There is none, or it is a snapshot: its files are in no layer yet.
    pub async fn template_archive(&self, team: &Team, text: &str) -> Result<TemplateArchive, ControlError> {
        self.build_dirs()?;
        let store = self.config.layers.clone().expect("builds have directories only where there are layers");
        let build = self.resolve(team, &TemplateRef::parse(text)?).await?.build;
        if build.is_snapshot() {
            return Err(ControlError::Invalid(format!(
                "'{text}' is a snapshot: build a template from it first (fromTemplate) and export that"
            )));
        }
        let Build { cpu_count, memory_mib, disk_mib, .. } = *build;
        let size = Size { cpu_count, memory_mib, disk_mib };
        let portable = Portable { config: build.config.clone(), size };
        let layers = build.layers.iter().map(|digest| digest.parse());
        let layers = layers.collect::<Result<_, _>>().map_err(|_| ControlError::SnapshotGone)?;
        let config = serde_json::to_vec(&portable).expect("plain data serialises");
        Ok(TemplateArchive { store, layers, config })
    }
}

/// Reads an archive into the layer store.
pub(super) async fn import(work: &Work, archive: &ArchiveFile) -> Result<Imported, Failure> {
    let (store, path) = (work.layers.clone(), archive.path().to_owned());
    let options = ImportOptions { scope: work.team.id.to_string(), ..ImportOptions::default() };
    let read =
        tokio::task::spawn_blocking(move || match oci::import_template(&store, &path, &options, &|_| {}) {
            Err(OciError::NoTemplate(_)) => {
                oci::import_image(&store, &path, None, &options, &|_| {}).map(Err)
            }
            template => template.map(Ok),
        });
    let read = read.await.map_err(|_| Failure::new("the import's task ended abnormally"))?;
    match read.map_err(|error| Failure::new(error.to_string()))? {
        Ok(template) => {
            let portable: Portable = serde_json::from_slice(&template.config).map_err(|error| {
                Failure::new(format!("the template's configuration is not valid: {error}"))
            })?;
            let Size { cpu_count, memory_mib, disk_mib } = portable.size;
            check_template_size(&work.team, cpu_count, memory_mib)?;
            let disk_mib = disk_mib.clamp(1, Resources::default().disk_mib.max(work.build.disk_mib));
            let size = Size { cpu_count, memory_mib, disk_mib };
            let layers = template.layers.iter().map(ToString::to_string).collect();
            Ok(Imported::Template(Box::new(Portable { size, ..portable }), layers))
        }
        Err(image) => {
            image.warnings.iter().for_each(|warning| {
                work.say(LogLevel::Warn, "base", format!("[base] {warning}"));
            });
            let layers = image.layers.iter().map(ToString::to_string).collect();
            Ok(Imported::Image(Pulled { layers, env: image.env.into_iter().collect() }))
        }
    }
}
