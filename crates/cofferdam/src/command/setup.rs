//! `cofferdam setup`: brings programs that the server runs into folders of their own; the host's `/usr` is not touched.
//! What is there and fit is kept, so running it again costs nothing.
//! `quickstart` does the same by itself.

use std::process::ExitCode;
use std::time::Instant;

use clap::Subcommand;
use engine_container::Criu;

use crate::failure::Failure;
use crate::paths::{CriuFolder, DataDir};
use crate::progress::BuildBar;
use crate::show;

/// What to bring.
#[derive(Debug, Subcommand)]
pub(crate) enum SetupCommand {
    /// CRIU 4.2 or newer with its libraries, from Debian packages: for memory in pause, snapshots and forks.
    Criu {
        #[command(flatten)]
        data: DataDir,
        #[command(flatten)]
        criu: CriuFolder,
    },
}

pub(crate) fn run(command: &SetupCommand) -> Result<ExitCode, Failure> {
    match command {
        SetupCommand::Criu { data, criu } => {
            let found = bring_criu(data, criu)?;
            show::line(&format!("CRIU {} in {}", found.version(), criu.path(data).display()))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The CRIU that is there, or a fresh one with a progress bar.
pub(crate) fn bring_criu(data: &DataDir, criu: &CriuFolder) -> Result<Criu, Failure> {
    let folder = criu.path(data);
    if let Ok(found) = Criu::find(&folder) {
        return Ok(found);
    }
    let mut bar = BuildBar::new("criu");
    let begun = Instant::now();
    template::install_criu(&folder, &mut |progress| bar.show(&progress))?;
    bar.finish();
    let found = Criu::find(&folder).map_err(Failure::new)?;
    eprintln!("CRIU {} set up in {:.0} s", found.version(), begun.elapsed().as_secs_f64());
    Ok(found)
}
