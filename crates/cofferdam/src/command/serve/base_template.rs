//! Registers the template `base`, whose recipe is part of this program, when the server starts.

use control::{Control, Registration};
use layers::LayerStore;
use store::BuildConfig;
use template::Recipe;
use tracing::warn;

use crate::failure::Failure;

/// Registers `base` if its layer has been built, and logs the remedy if it has not.
///
/// # Errors
/// The template cannot be written to the store.
pub(super) async fn register(control: &Control, layers: &LayerStore) -> Result<(), Failure> {
    let recipe = Recipe::base()?;
    let Some(layer) = layers.by_recipe(recipe.fingerprint()) else {
        warn!("template base is not built yet: run `cofferdam template build-base` and start again");
        return Ok(());
    };
    let (defaults, resources) = (recipe.config(), recipe.resources());
    let registration = Registration {
        team: None,
        alias: recipe.name().to_owned(),
        public: true,
        layers: vec![layer.to_string()],
        config: BuildConfig {
            default_user: Some(defaults.user.clone()),
            default_workdir: Some(defaults.workdir.clone()),
            ..BuildConfig::default()
        },
        cpu_count: resources.cpu_count,
        memory_mib: resources.memory_mib,
        disk_mib: resources.disk_mib,
    };
    control.register_template(registration).await?;
    Ok(())
}
