//! `cofferdam template build-base`: builds the layer of template `base` on this host, without a server.
//! A server registers the template when it starts. A layer that is there is not built again.

use std::path::PathBuf;
use std::time::Instant;

use layers::LayerStore;
use template::{Built, Recipe};

use crate::failure::Failure;
use crate::paths::DataDir;
use crate::progress::BuildBar;
use crate::show;

pub(super) fn run(data: &DataDir, layers_dir: Option<PathBuf>) -> Result<(), Failure> {
    let store = LayerStore::open(&layers_dir.unwrap_or_else(|| data.layers()))?;
    let built = build_base(&store)?;
    show::line(&store.path(&built.layer).display().to_string())
}

/// Builds the layer of template `base` with a progress bar, unless it is there.
pub(crate) fn build_base(store: &LayerStore) -> Result<Built, Failure> {
    let recipe = Recipe::base()?;
    let mut bar = BuildBar::new(recipe.name());
    let begun = Instant::now();
    let built = template::build(&recipe, store, &mut |progress| bar.show(&progress))?;
    bar.finish();
    if !built.cached {
        eprintln!("template {} built in {:.0} s", recipe.name(), begun.elapsed().as_secs_f64());
    }
    Ok(built)
}
