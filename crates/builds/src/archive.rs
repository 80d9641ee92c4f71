//! Templates as archives, to be carried from one server to another: all layers, the configuration, and their hashes. An imported
//! archive is as untrusted as an image. Memory is not exported: the importing server runs the start command again.
//! Archives of container images are imported by the same call.

use std::io::{self, Write};

use engine::Resources;
use layers::LayerDigest;
use limits::check_template_size;
use logs::LogLevel;
use oci::{ImportOptions, OciError};
use serde::{Deserialize, Serialize};
use store::{Build, BuildConfig, Team};

use catalog::TemplateRef;

use super::context::Size;
use super::image::UnpackedImage;
use super::spec::ArchiveFile;
use super::task::BuildTask;
use super::{BuildError, Builds, StepFailure};

/// What an archive contains besides the layers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ExportedConfig {
    pub(crate) config: BuildConfig,
    pub(crate) size: Size,
}

/// Content of an imported archive.
pub(crate) enum Imported {
    /// A template with its layers, uppermost first.
    Template(Box<ExportedConfig>, Vec<String>),
    /// A container image.
    Image(UnpackedImage),
}

/// A template that can be written as an archive.
#[derive(Debug, Clone)]
pub struct TemplateArchive {
    store: layers::LayerStore,
    layers: Vec<LayerDigest>,
    config: Vec<u8>,
}

impl TemplateArchive {
    /// Writes the archive. Blocks.
    ///
    /// # Errors
    /// A layer does not exist any more, or the writer fails.
    pub fn write(&self, to: impl Write) -> io::Result<()> {
        let written = oci::export_template(&self.store, &self.layers, &self.config, to);
        written.map(drop).map_err(io::Error::other)
    }
}

impl Builds {
    /// Returns a template that the team may use, to be written as an archive.
    ///
    /// # Errors
    /// There is no such template, or it is a snapshot: its files are not in layers.
    pub async fn template_archive(&self, team: &Team, text: &str) -> Result<TemplateArchive, BuildError> {
        let (_, store) = self.workspace()?;
        let build = self.catalog.resolve(team, &TemplateRef::parse(text)?).await?.build;
        if build.is_snapshot() {
            return Err(BuildError::Invalid(format!(
                "'{text}' is a snapshot: build a template from it first (fromTemplate) and export that"
            )));
        }
        let Build { cpu_count, memory_mib, disk_mib, .. } = *build;
        let size = Size { cpu_count, memory_mib, disk_mib };
        let exported = ExportedConfig { config: build.config.clone(), size };
        let layers = build.layers.iter().map(|digest| digest.parse());
        let layers = layers.collect::<Result<_, _>>().map_err(|_| BuildError::LayersGone)?;
        let config = serde_json::to_vec(&exported).expect("plain data serialises");
        Ok(TemplateArchive { store, layers, config })
    }
}

/// Imports the layers of an archive into the layer store.
pub(crate) async fn import(task: &BuildTask, archive: &ArchiveFile) -> Result<Imported, StepFailure> {
    let (store, path) = (task.layers.clone(), archive.path().to_owned());
    let shown = path.display().to_string();
    let options = ImportOptions { scope: task.team.id.to_string(), ..ImportOptions::default() };
    let read =
        tokio::task::spawn_blocking(move || match oci::import_template(&store, &path, &options, &|_| {}) {
            Err(OciError::NoTemplate(_)) => {
                oci::import_image(&store, &path, None, &options, &|_| {}).map(Err)
            }
            template => template.map(Ok),
        });
    let read = read.await.map_err(|_| StepFailure::new("the import's task ended abnormally"))?;
    // Users know nothing of the file that their archive is in.
    let nameless = |StepFailure(text)| StepFailure(text.replace(&shown, "the archive"));
    match read.map_err(StepFailure::from).map_err(nameless)? {
        Ok(template) => {
            let exported: ExportedConfig = serde_json::from_slice(&template.config).map_err(|error| {
                StepFailure::new(format!("the template's configuration is not valid: {error}"))
            })?;
            let Size { cpu_count, memory_mib, disk_mib } = exported.size;
            check_template_size(&task.team, cpu_count, memory_mib)?;
            let disk_mib = disk_mib.clamp(1, Resources::default().disk_mib.max(task.record.disk_mib));
            let size = Size { cpu_count, memory_mib, disk_mib };
            let layers = template.layers.iter().map(ToString::to_string).collect();
            Ok(Imported::Template(Box::new(ExportedConfig { size, ..exported }), layers))
        }
        Err(image) => {
            image.warnings.iter().for_each(|warning| {
                task.log(LogLevel::Warn, "base", format!("[base] {warning}"));
            });
            let layers = image.layers.iter().map(ToString::to_string).collect();
            Ok(Imported::Image(UnpackedImage { layers, env: image.env.into_iter().collect() }))
        }
    }
}
