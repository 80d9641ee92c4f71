//! Which engines a server runs, and which of them is taken where a template names none.
//! `auto` is honest: hardware isolation only where a guest has really been booted, and emulation only for whoever asks for it.
//! What an engine has left in the data directory is looked after whatever is chosen.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use engine::{Engine, Engines};
use engine_container::{ContainerConfig, ContainerEngine, Criu};
use engine_microvm::{Accelerator, MachineType, MicrovmConfig, MicrovmEngine, Tools};
use layers::{VolumesBackend, VolumesConfig};
use net::GatewayConfig;
use tracing::{info, warn};

use crate::failure::Failure;
use crate::paths::{self, CriuDirectory, DataDir, MicrovmDirectory};

/// Time for a guest to boot.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the memory of a paused microVM, or of a snapshot of one, lies before it is compressed.
const COMPRESS_AFTER: Duration = Duration::from_secs(60);
/// Time for the guest that proves that KVM works.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// All machines, the better one first.
pub(crate) const MACHINES: [MachineType; 2] = [MachineType::Microvm, MachineType::Q35];

/// What engines need to know.
#[derive(Debug, Clone, Args)]
pub(crate) struct EngineArguments {
    /// What keeps sandboxes from the host, where a template does not say.
    #[arg(long, env = "COFFERDAM_ENGINE", value_enum, default_value_t = EngineChoice::Auto)]
    engine: EngineChoice,
    /// What executes the guests of microVMs. Without it KVM where it works; emulation, which is several times slower, only
    /// with `--engine microvm`.
    #[arg(long, env = "COFFERDAM_ACCELERATOR", value_enum)]
    accelerator: Option<AcceleratorChoice>,
    /// The machine that QEMU plays for them. Without it `microvm`, and `q35` where KVM boots guests on that only.
    #[arg(long, env = "COFFERDAM_MACHINE", value_enum)]
    machine: Option<MachineChoice>,
    /// Directory for locks, sockets and mounts that do not outlive the machine's uptime.
    #[arg(long, default_value = "/run/cofferdam", value_name = "DIR")]
    run_dir: PathBuf,
    /// The envd binary, if not beside this one.
    #[arg(long, env = "COFFERDAM_ENVD", value_name = "FILE")]
    envd: Option<PathBuf>,
    /// The first program of microVMs' guests, if not beside this one.
    #[arg(long, env = "COFFERDAM_GUEST_INIT", value_name = "FILE")]
    guest_init: Option<PathBuf>,
    #[command(flatten)]
    criu: CriuDirectory,
    /// Seconds that CRIU may be silent, besides what the size of the memory explains (20 ms a MiB). Then it hangs, and is ended.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    criu_patience: u64,
    #[command(flatten)]
    microvm: MicrovmDirectory,
    /// How what sandboxes write is kept: `auto`, or `btrfs` (the data directory is on one), `loop` (a btrfs image),
    /// `reflink` (XFS), `copy`. Copies are instant and disk limits enforced on btrfs only.
    #[arg(long, default_value_t, value_name = "WAY")]
    volumes: VolumesBackend,
    /// Most GiB that all volumes may take together in a btrfs image. Without it, what the disk holds.
    #[arg(long, value_name = "GIB")]
    volumes_size: Option<u64>,
    /// Container slots (namespaces, control groups) kept ready.
    #[arg(long, default_value_t = 16, value_name = "COUNT")]
    pool: usize,
}

/// Engines by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineChoice {
    /// microVMs where KVM really boots a guest, else containers.
    Auto,
    /// Namespaces on the host's kernel.
    Container,
    /// A virtual machine with its own kernel for every sandbox.
    Microvm,
}

/// What executes a guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AcceleratorChoice {
    /// The processor.
    Kvm,
    /// QEMU's emulation.
    Tcg,
}

/// Machines that QEMU can play.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MachineChoice {
    /// Small and fast, without PCI.
    Microvm,
    /// A PC with PCI.
    Q35,
}

impl From<MachineChoice> for MachineType {
    fn from(choice: MachineChoice) -> Self {
        match choice {
            MachineChoice::Microvm => Self::Microvm,
            MachineChoice::Q35 => Self::Q35,
        }
    }
}

impl EngineArguments {
    /// Those that may be taken, the better one first.
    fn machines(&self) -> &'static [MachineType] {
        match self.machine {
            None => &MACHINES,
            Some(MachineChoice::Microvm) => &[MachineType::Microvm],
            Some(MachineChoice::Q35) => &[MachineType::Q35],
        }
    }

    fn volumes(&self) -> VolumesConfig {
        VolumesConfig { backend: self.volumes, image_size: self.volumes_size.map(|gib| gib << 30) }
    }

    fn container(&self, data: &DataDir, gateway: &GatewayConfig) -> Result<Arc<dyn Engine>, Failure> {
        let criu = Criu::find(&self.criu.path(data))
            .map(|criu| criu.with_patience(Duration::from_secs(self.criu_patience)))
            .inspect_err(|reason| {
                warn!(reason, "containers' memory cannot be captured: pause and snapshots keep files only");
            })
            .ok();
        let engine = ContainerEngine::open(&ContainerConfig {
            data_dir: data.data_dir.clone(),
            run_dir: self.run_dir.clone(),
            agent: paths::envd(self.envd.as_deref())?,
            criu,
            volumes: self.volumes(),
            pool: self.pool,
            gateway: gateway.clone(),
        })?;
        info!(storage = engine.storage(), "volumes of containers");
        Ok(Arc::new(engine))
    }

    fn microvm(&self, data: &DataDir, gateway: &GatewayConfig) -> Result<MicrovmConfig, Failure> {
        let mut config =
            parts(&self.run_dir, self.envd.as_deref(), self.guest_init.as_deref(), &self.microvm.path(data))?;
        config.data_dir.clone_from(&data.data_dir);
        config.volumes = self.volumes();
        config.gateway = gateway.clone();
        config.machine = self.machine.map(MachineType::from).unwrap_or_default();
        Ok(config)
    }
}

/// The parts of a microVM engine on this machine, with defaults for everything that is not a file.
///
/// # Errors
/// One is missing; the remedy is named.
pub(crate) fn parts(
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
        machine: MachineType::default(),
        agent: paths::envd(envd)?,
        init: paths::guest_init(guest_init)?,
        volumes: VolumesConfig::default(),
        gateway: GatewayConfig::default(),
        boot_timeout: BOOT_TIMEOUT,
        streams_memory: false,
        compress_after: COMPRESS_AFTER,
    })
}

/// Opens the engines of a server.
///
/// # Errors
/// The one that was asked for cannot run here; the remedy is named.
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
    let machines_first = match arguments.engine {
        EngineChoice::Microvm => true,
        EngineChoice::Container => false,
        EngineChoice::Auto => microvm
            .as_ref()
            .is_some_and(|engine| engine.descriptor().isolation == engine::Isolation::HardwareVm),
    };
    let (first, second) = if machines_first { (microvm, container) } else { (container, microvm) };
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

/// The microVM engine if it was asked for, if KVM works, or if it has left something in the data directory.
async fn open_microvm(
    arguments: &EngineArguments,
    data: &DataDir,
    gateway: &GatewayConfig,
) -> Result<Option<Arc<dyn Engine>>, Failure> {
    let is_wanted = arguments.engine == EngineChoice::Microvm;
    let is_known = data.data_dir.join("microvm").is_dir();
    let config = match arguments.microvm(data, gateway) {
        Err(failure) if is_wanted || is_known => return Err(failure),
        // Never set up here: containers it is.
        Err(_) => return Ok(None),
        Ok(config) => config,
    };
    let emulation = (Accelerator::tcg(), config.machine);
    let (accelerator, machine) = match arguments.accelerator {
        Some(AcceleratorChoice::Tcg) => emulation,
        asked => match kvm_works(&config, arguments.machines(), &data.data_dir).await {
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
    let engine = MicrovmEngine::open(&MicrovmConfig { accelerator, machine, ..config })?;
    info!(storage = engine.storage(), "volumes of microVMs");
    Ok(Some(Arc::new(engine)))
}

/// The first of these machines on which KVM has really booted a guest, once in an uptime of the host for each QEMU and kernel.
///
/// # Errors
/// Why none, for people.
pub(crate) async fn kvm_works(
    config: &MicrovmConfig,
    machines: &[MachineType],
    scratch: &Path,
) -> Result<MachineType, String> {
    if !Path::new("/dev/kvm").exists() {
        return Err("there is no /dev/kvm".into());
    }
    let mut reasons = Vec::new();
    for machine in machines {
        let config = MicrovmConfig {
            accelerator: Accelerator::Kvm,
            machine: *machine,
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

/// Whether a guest boots on the machine of `config`; found out once.
async fn kvm_boots(config: &MicrovmConfig, scratch: &Path) -> Result<(), String> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let (qemu, kernel) = (config.tools.qemu_version(), config.tools.kernel_version());
    let machine = config.machine.name();
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
    let new = config.run_dir.join(format!("kvm-{print}.{}", std::process::id()));
    let kept = fs::create_dir_all(&config.run_dir)
        .and_then(|()| fs::write(&new, text))
        .and_then(|()| fs::rename(&new, &note));
    if let Err(error) = kept {
        warn!(%error, "what is known about KVM could not be kept; the next start tries again");
    }
    outcome.map(drop)
}
