//! Checks that start nothing: kernel features, limits, disk space, programs, name servers, the port.
//! Each check reads what it needs and returns a finding, also if it cannot read it.

use std::fs;
use std::path::{Path, PathBuf};

use engine_container::Criu;
use engine_host::{HostTotals, Reserve};
use layers::LayerStore;
use rustix::process::{Resource, getrlimit};
use template::Recipe;

use super::{DoctorArguments, Finding};
use crate::background;
use crate::budgets::Budgets;
use crate::paths;

/// Oldest kernel that the container engine runs on.
const MIN_KERNEL: (u32, u32) = (6, 15);
const GIB: u64 = 1 << 30;

/// Returns the findings of all checks of the host.
pub(super) fn host(arguments: &DoctorArguments) -> Vec<Finding> {
    let base = base_layer(arguments);
    vec![
        root(),
        kernel(),
        user_namespaces(),
        overlay(),
        fuse(),
        nf_tables(),
        control_groups(),
        seccomp(),
        open_files(),
        reserve(),
        memory(),
        disk(&arguments.data.data_dir, base.is_some()),
        envd(arguments),
        mmdebstrap(base.is_some()),
        base_template(base),
        criu(arguments),
        resolvers(),
    ]
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn root() -> Finding {
    if rustix::process::geteuid().is_root() {
        return Finding::ok("root", "running as root");
    }
    Finding::failure(
        "root",
        "not root: namespaces with other user ids cannot be created",
        "run the server and this command as root; sandboxes never run as the host's root",
    )
}

fn kernel() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= MIN_KERNEL {
        return Finding::ok("kernel", format!("Linux {release}"));
    }
    let (major, minor) = MIN_KERNEL;
    Finding::failure(
        "kernel",
        format!("Linux {release} is older than {major}.{minor}"),
        "boot a newer kernel (Debian: linux-image-amd64 from backports)",
    )
}

fn user_namespaces() -> Finding {
    let max: u64 = read("/proc/sys/user/max_user_namespaces").trim().parse().unwrap_or(0);
    if max >= 1024 {
        return Finding::ok("user namespaces", format!("up to {max}"));
    }
    let remedy = "sysctl -w user.max_user_namespaces=65536 (and a file in /etc/sysctl.d to keep it)";
    if max > 0 {
        return Finding::warning("user namespaces", format!("only {max}, one for each sandbox"), remedy);
    }
    Finding::failure("user namespaces", "disabled in the kernel", remedy)
}

fn overlay() -> Finding {
    let known = read("/proc/filesystems").lines().any(|line| line.trim() == "nodev\toverlay");
    if known || module_exists("overlay") {
        return Finding::ok("overlay", "available; the probe mounts one with idmapped layers");
    }
    Finding::failure("overlay", "not in this kernel", "modprobe overlay, or a kernel with CONFIG_OVERLAY_FS")
}

fn fuse() -> Finding {
    if Path::new("/dev/fuse").exists() {
        return Finding::ok("fuse", "available; containers see their own memory and processors");
    }
    let remedy = "modprobe fuse, or a kernel with CONFIG_FUSE_FS";
    Finding::warning(
        "fuse",
        "no /dev/fuse: programs in containers see the host's memory and processors",
        remedy,
    )
}

/// Whether a kernel module is loaded, built in, or can be loaded.
fn module_exists(name: &str) -> bool {
    if Path::new("/sys/module").join(name).is_dir() {
        return true;
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let lists = ["modules.dep", "modules.builtin"];
    lists.iter().any(|list| read(&format!("/lib/modules/{release}/{list}")).contains(&format!("/{name}.ko")))
}

fn nf_tables() -> Finding {
    let modules =
        module_exists("nf_tables") && (module_exists("nft_chain_nat") || module_exists("nft_redir"));
    // If it is built into a kernel whose module lists are not installed, only the symbols show it.
    if modules || read("/proc/kallsyms").contains(" nft_redir_eval") {
        return Finding::ok("nf_tables", "NAT for redirects inside each sandbox");
    }
    Finding::warning(
        "nf_tables",
        "this kernel shows no NAT; the probe below finds out",
        "modprobe nft_chain_nat nft_redir, or a kernel with CONFIG_NFT_NAT and CONFIG_NFT_REDIR",
    )
}

fn control_groups() -> Finding {
    let mounts = read("/proc/self/mountinfo");
    let mut found: Vec<(&str, &str)> = Vec::new();
    for wanted in ["cpu", "memory", "pids"] {
        let second = mounts.lines().filter(|line| line.contains(" - cgroup2 ")).any(|line| {
            let point = line.split(' ').nth(4).unwrap_or_default();
            read(&format!("{point}/cgroup.controllers")).split_whitespace().any(|name| name == wanted)
        });
        let first = mounts.lines().filter(|line| line.contains(" - cgroup ")).any(|line| {
            let options = line.rsplit(' ').next().unwrap_or_default();
            options.split(',').any(|name| name == wanted)
        });
        match (second, first) {
            (true, _) => found.push((wanted, "v2")),
            (_, true) => found.push((wanted, "v1")),
            _ => {}
        }
    }
    let list: Vec<String> = found.iter().map(|(name, version)| format!("{name} ({version})")).collect();
    if found.len() == 3 {
        return Finding::ok("control groups", list.join(", "));
    }
    let have = if list.is_empty() { "none".to_owned() } else { list.join(", ") };
    Finding::warning(
        "control groups",
        format!(
            "cpu, memory and pids are needed, found {have}: the other limits of sandboxes are not enforced"
        ),
        "mount cgroup v2 with all controllers (boot without cgroup_disable=…)",
    )
}

fn seccomp() -> Finding {
    if read("/proc/sys/kernel/seccomp/actions_avail").contains("errno") {
        return Finding::ok("seccomp", "filters work");
    }
    Finding::failure("seccomp", "the kernel has no filters", "a kernel with CONFIG_SECCOMP_FILTER")
}

fn open_files() -> Finding {
    // The server raises its limit to this, as root may.
    let max = read("/proc/sys/fs/nr_open").trim().parse().ok().max(getrlimit(Resource::Nofile).maximum);
    let shown = max.map_or_else(|| "no limit".to_owned(), |max| format!("up to {max}"));
    if max.is_none_or(|max| max >= 20_000) {
        let budgets = Budgets::of(max.unwrap_or(u64::MAX), None);
        let list = budgets.all().map(|budget| format!("{} {}", budget.total(), budget.resource()));
        return Finding::ok("open files", format!("{shown}: {}", list.join(", ")));
    }
    Finding::warning(
        "open files",
        format!("{shown}; a sandbox takes about ten"),
        "sysctl fs.nr_open=1048576, or LimitNOFILE=1048576 in the service's unit",
    )
}

/// Shows what sandboxes together leave to the host.
fn reserve() -> Finding {
    let Ok(host) = HostTotals::read() else {
        return Finding::warning("reserve", "the host's memory cannot be read", "mount /proc");
    };
    let reserve = Reserve::of(&host);
    let (memory, of) = (reserve.memory >> 20, host.memory >> 20);
    let (milli, all) = (reserve.cpu_milli as f64 / 1000.0, host.cpu_milli as f64 / 1000.0);
    let (tasks, of_tasks) = (reserve.tasks, host.tasks);
    let kept =
        format!("{memory} of {of} MiB memory, {milli} of {all} processors, {tasks} of {of_tasks} processes");
    Finding::ok("reserve", format!("sandboxes leave to the host {kept}"))
}

fn memory() -> Finding {
    let line = read("/proc/meminfo");
    let available = line.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = available.and_then(|text| text.trim().split(' ').next()?.parse().ok()).unwrap_or(0);
    let detail = format!("{} MiB available", kib / 1024);
    if kib * 1024 >= GIB {
        return Finding::ok("memory", detail);
    }
    Finding::warning(
        "memory",
        detail,
        "a sandbox of template base may use 512 MiB and more: free or add memory",
    )
}

/// Checks the free space of the file system that the directory is or will be on.
fn disk(dir: &Path, base_is_built: bool) -> Finding {
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let free = match rustix::fs::statvfs(existing) {
        Ok(stat) => stat.f_bavail * stat.f_frsize,
        Err(error) => {
            return Finding::failure(
                "disk",
                format!("{}: {error}", dir.display()),
                "choose another --data-dir",
            );
        }
    };
    let detail = format!("{:.1} GiB free in {}", (free / (1 << 20)) as f64 / 1024.0, existing.display());
    let remedy = "free disk space, or choose another directory with --data-dir";
    match free {
        free if free >= 10 * GIB => Finding::ok("disk", detail),
        free if free < 3 * GIB && !base_is_built => {
            Finding::failure("disk", format!("{detail}; building template base takes about 3 GiB"), remedy)
        }
        _ => Finding::warning("disk", format!("{detail}; files of sandboxes are there"), remedy),
    }
}

fn envd(arguments: &DoctorArguments) -> Finding {
    match paths::envd(arguments.envd.as_deref()) {
        Ok(path) if path.is_file() => Finding::ok("envd", path.display().to_string()),
        Ok(path) => {
            Finding::failure("envd", format!("not at {}", path.display()), "build it: cargo xtask build")
        }
        Err(failure) => Finding::failure("envd", "not found", failure.to_string()),
    }
}

/// Returns the directory of the base template's layer, if it is built.
pub(super) fn base_layer(arguments: &DoctorArguments) -> Option<PathBuf> {
    let dir = arguments.layers_dir.clone().unwrap_or_else(|| arguments.data.layers());
    if !dir.is_dir() {
        // Opening the store would create it.
        return None;
    }
    let store = LayerStore::open(&dir).ok()?;
    let layer = store.by_recipe(Recipe::base().ok()?.fingerprint())?;
    Some(store.path(&layer))
}

fn mmdebstrap(base_is_built: bool) -> Finding {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&paths).any(|dir| dir.join("mmdebstrap").is_file()) {
        return Finding::ok("mmdebstrap", "installed");
    }
    let remedy = "apt-get install mmdebstrap debian-archive-keyring";
    if base_is_built {
        return Finding::warning("mmdebstrap", "not installed; needed to build template base again", remedy);
    }
    Finding::failure("mmdebstrap", "not installed; template base cannot be built", remedy)
}

fn base_template(layer: Option<PathBuf>) -> Finding {
    match layer {
        Some(path) => Finding::ok("template base", path.display().to_string()),
        None => Finding::warning(
            "template base",
            "not built yet",
            "cofferdam quickstart, or cofferdam template build-base",
        ),
    }
}

fn criu(arguments: &DoctorArguments) -> Finding {
    let dir = arguments.criu.path(&arguments.data);
    match Criu::find(&dir) {
        Ok(found) => Finding::ok("criu", format!("{} in {}", found.version(), dir.display())),
        Err(reason) => Finding::warning(
            "criu",
            format!("{reason}: pauses and snapshots of containers keep files only, not memory"),
            "cofferdam setup criu",
        ),
    }
}

fn resolvers() -> Finding {
    let text = read("/etc/resolv.conf");
    let names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver"))
        .filter_map(|rest| rest.split_whitespace().next())
        .collect();
    if names.is_empty() {
        return Finding::warning(
            "name servers",
            "none in /etc/resolv.conf: sandboxes cannot resolve names",
            "add a nameserver line, or start the server with --dns ADDRESS:PORT",
        );
    }
    Finding::ok("name servers", names.join(", "))
}

/// Checks that a server answers, or that the address is free for one.
pub(super) async fn server(arguments: &DoctorArguments) -> Finding {
    if let Some(note) = background::running(&arguments.data).await {
        return Finding::ok("server", format!("answers at {}, process {}", note.url, note.pid));
    }
    match background::check_free(arguments.listen) {
        Ok(()) => Finding::ok("server", format!("none runs; {} is free for one", arguments.listen)),
        Err(failure) => Finding::failure(
            "server",
            failure.to_string(),
            "stop that program, or give doctor and serve another address with --listen",
        ),
    }
}
