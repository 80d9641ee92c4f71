//! Opens the engines of a server and decides which of them runs templates that name none.
//! `--engine auto` takes microVMs only where KVM has really booted a guest; emulation must be asked for.
//! An engine whose directory is in the data directory is opened whatever is chosen, so that its sandboxes are adopted.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use engine::{Engine, Engines};
use engine_container::{ContainerConfig, ContainerEngine, Criu};
use engine_microvm::{Accelerator, MachineType, MicrovmConfig, MicrovmEngine, Tools};
use layers::{TreesBackend, TreesConfig};
use net::GatewayConfig;
use tracing::{info, warn};

use crate::failure::Failure;
use crate::paths::{self, CriuDirectory, DataDir, MicrovmDirectory};

/// Maximum time for a guest to boot.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
/// Age at which the unused memory snapshot of a microVM is compressed.
const COMPRESS_AFTER: Duration = Duration::from_secs(60);
/// Maximum time for the guest that is booted to find out whether KVM works.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// This program, which also serves the files that show containers their size, as a new process finds it before it executes another one.
/// So it is the same version, also after the file was replaced.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// All QEMU machine types, in order of preference.
pub(crate) const MACHINE_TYPES: [MachineType; 2] = [MachineType::Microvm, MachineType::Q35];

/// Settings of the engines.
#[derive(Debug, Clone, Args)]
pub(crate) struct EngineArguments {
    /// Engine that runs sandboxes of templates that name none.
    #[arg(long, env = "COFFERDAM_ENGINE", value_enum, default_value_t = EngineChoice::Auto)]
    engine: EngineChoice,
    /// How microVMs execute: `kvm`, or `tcg`, QEMU's emulation, several times slower. [default: kvm where it works; tcg only with
    /// `--engine microvm`]
    #[arg(long, env = "COFFERDAM_ACCELERATOR", value_enum)]
    accelerator: Option<AcceleratorChoice>,
    /// QEMU's machine type for microVMs. [default: microvm; q35 where KVM boots guests on that only]
    #[arg(long, env = "COFFERDAM_MACHINE_TYPE", value_enum)]
    machine_type: Option<MachineTypeChoice>,
    /// Directory for locks, sockets and mounts, which a reboot may remove.
    #[arg(long, default_value = "/run/cofferdam", value_name = "DIR")]
    run_dir: PathBuf,
    /// The envd binary. [default: beside this program]
    #[arg(long, env = "COFFERDAM_ENVD", value_name = "FILE")]
    envd: Option<PathBuf>,
    /// The guest-init binary, the first process of microVMs' guests. [default: beside this program]
    #[arg(long, env = "COFFERDAM_GUEST_INIT", value_name = "FILE")]
    guest_init: Option<PathBuf>,
    #[command(flatten)]
    criu: CriuDirectory,
    /// Seconds without output after which CRIU is killed. 20 ms for each MiB of the sandbox's memory are added.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    criu_timeout: u64,
    #[command(flatten)]
    microvm: MicrovmDirectory,
    /// How files that sandboxes write are stored: `btrfs` (subvolumes; needs the data directory on btrfs), `reflink` (directories that
    /// share blocks; needs it on XFS), `loop` (subvolumes of a btrfs image in the data directory), `copy` (directories, copied byte by
    /// byte), or `auto`: what the data directory uses already, else the first of these that works. Copies are instant and disk limits
    /// are enforced with `btrfs` and `loop` only.
    #[arg(long, default_value_t, value_name = "BACKEND")]
    storage: TreesBackend,
    /// Maximum size of the btrfs image, GiB. [default: what the disk holds]
    #[arg(long, value_name = "GIB")]
    storage_size: Option<u64>,
    /// Number of container slots (namespaces, control groups, user ids) prepared ahead of creates. Named `--pool` before.
    #[arg(long, default_value_t = 16, value_name = "COUNT")]
    slots: usize,
}

/// Values of `--engine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineChoice {
    /// MicroVMs where KVM boots a guest, else containers.
    Auto,
    /// Linux namespaces; sandboxes share the host's kernel.
    Container,
    /// A virtual machine with a kernel of its own for each sandbox.
    Microvm,
}

/// Values of `--accelerator`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AcceleratorChoice {
    /// The processor's virtualisation.
    Kvm,
    /// QEMU's emulation.
    Tcg,
}

/// Values of `--machine-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MachineTypeChoice {
    /// QEMU's `microvm`: small and fast, without PCI.
    Microvm,
    /// QEMU's `q35`: a PC with PCI.
    Q35,
}

impl From<MachineTypeChoice> for MachineType {
    fn from(choice: MachineTypeChoice) -> Self {
        match choice {
            MachineTypeChoice::Microvm => Self::Microvm,
            MachineTypeChoice::Q35 => Self::Q35,
        }
    }
}

impl EngineArguments {
    /// The machine types that may be used, in order of preference.
    fn machine_types(&self) -> &'static [MachineType] {
        match self.machine_type {
            None => &MACHINE_TYPES,
            Some(MachineTypeChoice::Microvm) => &[MachineType::Microvm],
            Some(MachineTypeChoice::Q35) => &[MachineType::Q35],
        }
    }

    /// How writable trees are stored.
    pub(crate) fn storage(&self) -> TreesConfig {
        TreesConfig { backend: self.storage, image_size: self.storage_size.map(|gib| gib << 30) }
    }

    fn container(&self, data: &DataDir, gateway: &GatewayConfig) -> Result<Arc<dyn Engine>, Failure> {
        let criu = Criu::find(&self.criu.path(data))
            .map(|criu| criu.with_timeout(Duration::from_secs(self.criu_timeout)))
            .inspect_err(|reason| {
                warn!(reason, "CRIU cannot be used: pauses and snapshots of containers keep files only");
            })
            .ok();
        let engine = ContainerEngine::open(&ContainerConfig {
            data_dir: data.data_dir.clone(),
            run_dir: self.run_dir.clone(),
            resource_server: Some(OWN_PROGRAM.into()),
            envd: paths::envd(self.envd.as_deref())?,
            criu,
            trees: self.storage(),
            slots: self.slots,
            gateway: gateway.clone(),
        })?;
        info!(storage = engine.storage(), "storage of containers");
        Ok(Arc::new(engine))
    }

    fn microvm(&self, data: &DataDir, gateway: &GatewayConfig) -> Result<MicrovmConfig, Failure> {
        let mut config = microvm_config(
            &self.run_dir,
            self.envd.as_deref(),
            self.guest_init.as_deref(),
            &self.microvm.path(data),
        )?;
        config.data_dir.clone_from(&data.data_dir);
        config.trees = self.storage();
        config.gateway = gateway.clone();
        config.machine_type = self.machine_type.map(MachineType::from).unwrap_or_default();
        Ok(config)
    }
}

/// Finds the files that the microVM engine needs and returns its configuration, with defaults for everything else.
///
/// # Errors
/// A file is missing; the message names the remedy.
pub(crate) fn microvm_config(
    run_dir: &Path,
    envd: Option<&Path>,
    guest_init: Option<&Path>,
    tools: &Path,
) -> Result<MicrovmConfig, Failure> {
    Ok(MicrovmConfig {
        data_dir: PathBuf::new(),
        run_dir: run_dir.to_owned(),
        tools: Tools::find(tools).map_err(Failure::new)?,
        accelerator: Accelerator::Kvm,
        machine_type: MachineType::default(),
        envd: paths::envd(envd)?,
        guest_init: paths::guest_init(guest_init)?,
        trees: TreesConfig::default(),
        gateway: GatewayConfig::default(),
        boot_timeout: BOOT_TIMEOUT,
        stream_memory: false,
        compress_after: COMPRESS_AFTER,
    })
}

/// Opens the engines of a server, as one: the first is used by templates that name none.
///
/// # Errors
/// The engine that was asked for cannot run on this host; the message names the remedy.
pub(crate) async fn open(
    arguments: &EngineArguments,
    data: &DataDir,
    gateway: &GatewayConfig,
) -> Result<Arc<dyn Engine>, Failure> {
    let microvm = open_microvm(arguments, data, gateway).await?;
    let container = match arguments.container(data, gateway) {
        Ok(engine) => Some(engine),
        Err(failure) if arguments.engine == EngineChoice::Microvm => {
            warn!(%failure, "templates that name the container engine cannot be used");
            None
        }
        Err(failure) => return Err(failure),
    };
    let microvm_first = match arguments.engine {
        EngineChoice::Microvm => true,
        EngineChoice::Container => false,
        EngineChoice::Auto => microvm
            .as_ref()
            .is_some_and(|engine| engine.descriptor().isolation == engine::Isolation::HardwareVm),
    };
    let (first, second) = if microvm_first { (microvm, container) } else { (container, microvm) };
    let first = first.ok_or_else(|| Failure::new("no engine can run here; see `cofferdam doctor`"))?;
    let engines = Engines::new(first, second.into_iter().collect());
    for (rank, descriptor) in engines.descriptors().into_iter().enumerate() {
        let role = if rank == 0 { "engine" } else { "engine for templates that name it" };
        info!(engine = descriptor.name, isolation = descriptor.summary, "{role}");
        if !descriptor.capabilities.resource_limits {
            warn!(
                "this host lacks a cgroup controller: cpu, memory or process limits of sandboxes are not enforced"
            );
        }
    }
    Ok(Arc::new(engines))
}

/// Opens the microVM engine if it was asked for, if KVM works, or if its directory is in the data directory; returns `None`
/// otherwise.
async fn open_microvm(
    arguments: &EngineArguments,
    data: &DataDir,
    gateway: &GatewayConfig,
) -> Result<Option<Arc<dyn Engine>>, Failure> {
    let is_wanted = arguments.engine == EngineChoice::Microvm;
    let is_known = data.data_dir.join("microvm").is_dir();
    let config = match arguments.microvm(data, gateway) {
        Err(failure) if is_wanted || is_known => return Err(failure),
        // Never set up on this host.
        Err(_) => return Ok(None),
        Ok(config) => config,
    };
    let emulation = (Accelerator::tcg(), config.machine_type);
    let (accelerator, machine) = match arguments.accelerator {
        Some(AcceleratorChoice::Tcg) => emulation,
        asked => match kvm_works(&config, arguments.machine_types(), &data.data_dir).await {
            Ok(machine) => (Accelerator::Kvm, machine),
            Err(reason) if asked == Some(AcceleratorChoice::Kvm) => {
                return Err(Failure::new(format!(
                    "KVM does not run guests here: {reason}; `--accelerator tcg` emulates them"
                )));
            }
            Err(reason) if is_wanted || is_known => {
                warn!(
                    reason,
                    "KVM does not run guests here: they are emulated, which is several times slower"
                );
                emulation
            }
            Err(reason) => {
                info!(reason, "no microVMs: KVM does not run guests here");
                return Ok(None);
            }
        },
    };
    let engine = MicrovmEngine::open(&MicrovmConfig { accelerator, machine_type: machine, ..config })?;
    info!(storage = engine.storage(), "storage of microVMs");
    Ok(Some(Arc::new(engine)))
}

/// Returns the first of these machine types on which KVM boots a guest. A guest is booted once per uptime of the host, QEMU and kernel;
/// the outcome is kept in the run directory.
///
/// # Errors
/// No machine type works; the text has the reasons.
pub(crate) async fn kvm_works(
    config: &MicrovmConfig,
    machine_types: &[MachineType],
    scratch: &Path,
) -> Result<MachineType, String> {
    if !Path::new("/dev/kvm").exists() {
        return Err("there is no /dev/kvm".into());
    }
    let mut reasons = Vec::new();
    for machine in machine_types {
        let config = MicrovmConfig {
            accelerator: Accelerator::Kvm,
            machine_type: *machine,
            boot_timeout: PROBE_TIMEOUT,
            ..config.clone()
        };
        match kvm_boots(&config, scratch).await {
            Ok(()) => return Ok(*machine),
            Err(reason) => reasons.push(format!("{}: {reason}", machine.name())),
        }
    }
    Err(reasons.join("; "))
}

/// Whether a guest boots with the machine type of `config`, from the kept outcome if there is one.
async fn kvm_boots(config: &MicrovmConfig, scratch: &Path) -> Result<(), String> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let (qemu, kernel) = (config.tools.qemu_version(), config.tools.kernel_version());
    let machine = config.machine_type.name();
    let print = engine_host::fingerprint(format!("{boot_id} {qemu} {kernel} {machine}").as_bytes());
    let note = config.run_dir.join(format!("kvm-{print}"));
    let known = fs::read_to_string(&note).ok();
    let outcome = match known.as_deref() {
        Some("works") => return Ok(()),
        Some(reason) => return Err(reason.to_owned()),
        None => {
            let dir = scratch.join(format!("kvm-probe-{}", std::process::id()));
            engine_microvm::probe(config, &dir).await.map_err(|error| error.to_string())
        }
    };
    let text = outcome.as_ref().err().map_or("works", String::as_str);
    let kept = fs::create_dir_all(&config.run_dir)
        .and_then(|()| fs_atomic::write(&note, text, fs_atomic::Options::DEFAULT));
    if let Err(error) = kept {
        warn!(%error, "failed to write the outcome of the KVM check; the next start checks again");
    }
    outcome.map(drop)
}
