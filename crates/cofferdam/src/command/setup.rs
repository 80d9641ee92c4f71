//! `cofferdam setup`: downloads programs that the server runs into directories of their own; the host's `/usr` is not changed.
//! A program that is there and new enough is kept. `quickstart` sets up CRIU by itself.

use std::process::ExitCode;
use std::time::Instant;

use clap::Subcommand;
use engine_container::Criu;
use guest::Tools;

use crate::failure::Failure;
use crate::paths::{CriuDirectory, DataDir, MicrovmDirectory};
use crate::progress::BuildBar;
use crate::show;

/// Programs to set up.
#[derive(Debug, Subcommand)]
pub(crate) enum SetupCommand {
    /// Downloads CRIU 4.2 or newer with its libraries from Debian packages, for memory snapshots of containers.
    Criu {
        #[command(flatten)]
        data: DataDir,
        #[command(flatten)]
        criu: CriuDirectory,
    },
    /// Downloads QEMU with its libraries and a guest kernel from Debian packages, for microVMs.
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
            let found = set_up_criu(data, criu)?;
            show::line(&format!("CRIU {} in {}", found.version(), criu.path(data).display()))?;
            Ok(ExitCode::SUCCESS)
        }
        SetupCommand::Microvm { data, microvm } => {
            let found = set_up_microvm(data, microvm)?;
            let (qemu, kernel) = (found.qemu_version(), found.kernel_version());
            show::line(&format!("QEMU {qemu} and Linux {kernel} in {}", microvm.path(data).display()))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Returns the CRIU that is there, or downloads one with a progress bar.
pub(crate) fn set_up_criu(data: &DataDir, criu: &CriuDirectory) -> Result<Criu, Failure> {
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

/// Returns the QEMU and kernel that are there, or downloads them with a progress bar.
pub(crate) fn set_up_microvm(data: &DataDir, microvm: &MicrovmDirectory) -> Result<Tools, Failure> {
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
