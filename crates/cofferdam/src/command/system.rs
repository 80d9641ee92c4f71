//! `cofferdam system`: what the server's files take, and what of it can go.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;

use super::key::OperatorAccess;
use crate::access::block_on;
use crate::failure::Failure;
use crate::paths::DataDir;
use crate::show;

/// What is in the data directory, by the first part of a path.
const KINDS: [(&str, &str); 16] = [
    ("layers", "templates: layers of file systems"),
    ("builds", "results of build steps and uploads, kept for later builds; build logs"),
    ("volumes.btrfs", "sandboxes and snapshots"),
    ("volumes", "sandboxes and snapshots"),
    ("snapshots", "memory of paused sandboxes and of snapshots"),
    ("sandboxes", "records of running sandboxes"),
    ("agent", "envd, by version"),
    ("microvm", "microVMs: disks, memory, warm starts"),
    ("team-volumes", "volumes of teams"),
    ("logs", "logs of sandboxes"),
    ("metrics", "metrics of sandboxes"),
    ("egress-logs", "logs of connections"),
    ("tools", "CRIU, QEMU, guest kernel"),
    ("cofferdam.db", "records"),
    ("cofferdam.db-wal", "records"),
    ("server.log", "log of a server that quickstart started"),
];
const OTHER: &str = "keys, certificates and other small files";

/// Commands about the server's own files.
#[derive(Debug, Subcommand)]
pub(crate) enum SystemCommand {
    /// Shows how much disk the server's files take, by kind, and what is free.
    Df {
        #[command(flatten)]
        data: DataDir,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Removes what builds keep for later ones, and template layers that nothing refers to. What is younger than an hour stays.
    Prune {
        #[command(flatten)]
        server: OperatorAccess,
    },
}

pub(crate) fn run(command: SystemCommand) -> Result<ExitCode, Failure> {
    match command {
        SystemCommand::Df { data, json } => df(&data.data_dir, json)?,
        SystemCommand::Prune { server } => {
            let pruned = block_on(async { Ok(server.client()?.prune().await?) })?;
            show::line(&format!("{} layers removed", pruned.removed_layers))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What one kind of files takes.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Usage {
    path: String,
    bytes: u64,
    what: &'static str,
}

fn df(dir: &Path, json: bool) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::new(format!("{}: {error}", dir.display()));
    let usages = usages(dir).map_err(failed)?;
    let disk = rustix::fs::statvfs(dir).map_err(|error| failed(error.into()))?;
    let (free, size) = (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize);
    if json {
        return show::json(&serde_json::json!({ "usage": usages, "freeBytes": free, "sizeBytes": size }));
    }
    let rows: Vec<Vec<String>> = usages
        .iter()
        .map(|usage| vec![mib(usage.bytes), usage.path.clone(), usage.what.to_owned()])
        .collect();
    show::table(&["MIB", "PATH", "WHAT"], &rows, "the data directory is empty")?;
    let all = usages.iter().map(|usage| usage.bytes).sum();
    show::line(&format!("{} MiB in all; {} of {} MiB of the disk are free", mib(all), mib(free), mib(size)))
}

fn mib(bytes: u64) -> String {
    bytes.div_ceil(1 << 20).to_string()
}

/// Returns what the entries of a data directory take, the largest first. Small files are one entry.
fn usages(dir: &Path) -> io::Result<Vec<Usage>> {
    let mut usages: Vec<Usage> = Vec::new();
    let mut other = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let bytes = taken(&entry.path(), entry.metadata()?.dev());
        match KINDS.iter().find(|(known, _)| *known == name) {
            Some((_, what)) => usages.push(Usage { path: name, bytes, what }),
            None => other += bytes,
        }
    }
    usages.push(Usage { path: "…".to_owned(), bytes: other, what: OTHER });
    usages.sort_by_key(|usage| std::cmp::Reverse(usage.bytes));
    Ok(usages)
}

/// Allocated bytes of a file or tree on one file system. What cannot be read, or is gone meanwhile, counts nothing.
fn taken(path: &Path, device: u64) -> u64 {
    const BLOCK: u64 = 512;
    let Ok(data) = fs::symlink_metadata(path) else { return 0 };
    if data.dev() != device {
        return 0;
    }
    let mut bytes = data.blocks() * BLOCK;
    let mut left = if data.is_dir() { vec![path.to_owned()] } else { Vec::new() };
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(data) = entry.metadata() else { continue };
            if data.dev() != device {
                continue;
            }
            // A file with several names counts with its share.
            bytes += data.blocks() * BLOCK / if data.is_dir() { 1 } else { data.nlink().max(1) };
            if data.is_dir() {
                left.push(entry.path());
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_added_up_by_kind() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("layers/a/b")).unwrap();
        fs::write(dir.path().join("layers/a/b/file"), vec![1; 3 << 20]).unwrap();
        fs::hard_link(dir.path().join("layers/a/b/file"), dir.path().join("layers/again")).unwrap();
        fs::File::create(dir.path().join("volumes.btrfs")).unwrap().set_len(1 << 40).unwrap();
        fs::write(dir.path().join("admin-token"), "x").unwrap();
        let usages = usages(dir.path()).unwrap();
        assert_eq!(
            usages.iter().map(|usage| usage.path.as_str()).collect::<Vec<_>>(),
            ["layers", "…", "volumes.btrfs"]
        );
        assert!((3 << 20..4 << 20).contains(&usages[0].bytes), "{usages:?}");
        assert!(usages[2].bytes < 1 << 20, "holes take nothing");
    }
}
