//! `cofferdam setup`: brings programs that the server runs into directories of their own; the host's `/usr` is not touched.
//! What is there and fit is kept, so running it again costs nothing.
//! `quickstart` does the same by itself.

use std::process::ExitCode;
use std::time::Instant;

use clap::Subcommand;
use engine_container::Criu;
use guest::Tools;

use crate::failure::Failure;
use crate::paths::{CriuDirectory, DataDir, MicrovmDirectory};
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
        criu: CriuDirectory,
    },
    /// QEMU with its libraries and a guest kernel, from Debian packages: for the microVM engine.
    Microvm {
        #[command(flatten)]
        data: DataDir,
        #[command(flatten)]
        microvm: MicrovmDirectory,
    },
}

pub(crate) fn run(command: &SetupCommand) -> Result<ExitCode, Failure> {
    match command {
        SetupCommand::Criu { data, criu } => {
            let found = bring_criu(data, criu)?;
            show::line(&format!("CRIU {} in {}", found.version(), criu.path(data).display()))?;
            Ok(ExitCode::SUCCESS)
        }
        SetupCommand::Microvm { data, microvm } => {
            let found = bring_microvm(data, microvm)?;
            let (qemu, kernel) = (found.qemu_version(), found.kernel_version());
            show::line(&format!("QEMU {qemu} and Linux {kernel} in {}", microvm.path(data).display()))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The CRIU that is there, or a fresh one with a progress bar.
pub(crate) fn bring_criu(data: &DataDir, criu: &CriuDirectory) -> Result<Criu, Failure> {
    let dir = criu.path(data);
    if let Ok(found) = Criu::find(&dir) {
        return Ok(found);
    }
    let mut bar = BuildBar::new("criu");
    let begun = Instant::now();
    host_tools::install_criu(&dir, &mut |progress| bar.show(&progress))?;
    bar.finish();
    let found = Criu::find(&dir).map_err(Failure::new)?;
    eprintln!("CRIU {} set up in {:.0} s", found.version(), begun.elapsed().as_secs_f64());
    Ok(found)
}

/// The QEMU and kernel that are there, or fresh ones with a progress bar.
pub(crate) fn bring_microvm(data: &DataDir, microvm: &MicrovmDirectory) -> Result<Tools, Failure> {
    let dir = microvm.path(data);
    if let Ok(found) = Tools::find(&dir) {
        return Ok(found);
    }
    let mut bar = BuildBar::new("microvm");
    let begun = Instant::now();
    host_tools::install_microvm(&dir, &mut |progress| bar.show(&progress))?;
    bar.finish();
    let found = Tools::find(&dir).map_err(Failure::new)?;
    eprintln!("QEMU {} set up in {:.0} s", found.qemu_version(), begun.elapsed().as_secs_f64());
    Ok(found)
}
