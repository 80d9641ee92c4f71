//! The behaviour suite: tests that every engine must pass.
//! An engine's tests provide a function that opens it on a data directory; nothing here depends on the engine.
//! Each test panics at the first failure; it ends the sandboxes that it started.
#![expect(clippy::missing_panics_doc, reason = "panicking is how a test reports")]

mod envd;
mod exports;
mod snapshots;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    EgressPolicy, Engine, EngineError, ExitReason, Resources, Sandbox, SandboxId, StartSpec, TemplateImage,
};

pub use envd::{CommandResult, RunningCommand, health, run, spawn};

/// Time limit for everything that should happen, long enough for a busy host and for emulation.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A Python program that forks until the limit is reached, prints how many children it has, and kills them.
const BOMB: &str = "
import os, signal
children = []
try:
    while len(children) < 400:
        child = os.fork()
        if child == 0:
            signal.pause()
        children.append(child)
except OSError:
    pass
print(len(children))
for child in children:
    os.kill(child, 9)
    os.waitpid(child, 0)
";

/// Defines a test for every behaviour. `$bench` returns a [`Bench`](crate::suite::Bench); `$after` is called with the data directory when
/// a test is over.
#[macro_export]
macro_rules! behaviours {
    ($bench:expr, $after:expr) => {
        $crate::behaviours!(@each $bench, $after;
            isolates_sandboxes
            reaches_ports
            freezes_and_thaws
            keeps_limits
            ends_cleanly
            adopts_after_a_restart
            starts_many_at_once
            refuses_a_broken_template
            restores_memory
            keeps_socket_files
            restores_isolation
            restores_files
            keeps_snapshots_across_servers
            exports_layers
        );
    };
    (@each $bench:expr, $after:expr; $($name:ident)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let data = tempfile::tempdir().expect("a directory");
            $bench().$name(data.path()).await;
            $after(data.path());
        }
    )*};
}

/// Checks that no mount, run directory or control group with this server's name is left.
pub fn assert_nothing_left(instance: &str) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains(instance), "a mount of {instance} is left");
    assert!(!Path::new("/run/cofferdam").join(instance).exists(), "the run directory is left");
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").expect("control groups").flatten() {
        let group = hierarchy.path().join(instance);
        assert!(!group.exists(), "{} is left", group.display());
    }
}

/// What the suite needs of an engine.
#[derive(Debug, Clone)]
pub struct Bench<F> {
    /// Opens the engine on a data directory; called again for a restarted server.
    pub open: F,
    /// Layers of a template with a Debian userland.
    pub layers: Vec<PathBuf>,
}

impl<F, Fut> Bench<F>
where
    F: Fn(PathBuf) -> Fut,
    Fut: Future<Output = Arc<dyn Engine>>,
{
    /// Opens the engine on a fresh directory, sweeps it and prepares the template.
    pub async fn engine(&self, data: &Path) -> Arc<dyn Engine> {
        let engine = (self.open)(data.to_owned()).await;
        engine.sweep(&[], &[]).await.expect("a fresh directory sweeps");
        engine.prepare(&self.image(), true).await.expect("the template prepares");
        engine
    }

    fn image(&self) -> TemplateImage {
        TemplateImage { layers: self.layers.clone(), engine: None }
    }

    /// Returns a specification with small limits.
    #[must_use]
    pub fn spec(&self) -> StartSpec {
        StartSpec {
            id: SandboxId::generate(),
            template: self.image(),
            resources: Resources { cpu_count: 1, memory_mib: 256, disk_mib: 1024, pids: 200 },
            hostname: "sandbox".into(),
            egress: EgressPolicy::default(),
            volumes: Vec::new(),
            recurring: true,
        }
    }

    /// Starts a sandbox and waits for envd to answer.
    pub async fn start(&self, engine: &Arc<dyn Engine>) -> Arc<dyn Sandbox> {
        let sandbox = engine.start(self.spec()).await.expect("the sandbox starts");
        tokio::time::timeout(TIMEOUT, health(&*sandbox)).await.expect("envd answers");
        sandbox
    }

    /// Each sandbox has its own processes, files and host name, and is root in it.
    pub async fn isolates_sandboxes(&self, data: &Path) {
        let engine = self.engine(data).await;
        let (one, two) = (self.start(&engine).await, self.start(&engine).await);
        let done = run(&*one, "hostname; id -u; echo $$; cat /proc/1/comm; echo oops >&2; exit 3").await;
        assert_eq!(done.exit_code, 3);
        assert_eq!(done.stderr, "oops\n");
        let lines: Vec<&str> = done.stdout.lines().collect();
        assert_eq!(lines[0], "sandbox");
        assert_eq!(lines[1], "0");
        assert_eq!(lines[3], "envd");
        run(&*one, "echo mine > /etc/mine && rm /etc/debian_version && mv /opt /opt2").await;
        let other = run(&*two, "cat /etc/debian_version; ls -d /etc/mine /opt").await;
        assert!(other.stdout.contains("/opt\n") && !other.stdout.contains("mine"), "{other:?}");
        assert!(
            self.layers.iter().any(|layer| layer.join("etc/debian_version").exists()),
            "the template was changed"
        );
        for sandbox in [one, two] {
            sandbox.kill().await.expect("the sandbox ends");
        }
        engine.shutdown().await;
    }

    /// Ports are reached on every loopback address that a server may listen on; connections to closed ports are refused.
    pub async fn reaches_ports(&self, data: &Path) {
        let engine = self.engine(data).await;
        let sandbox = self.start(&engine).await;
        let closed = sandbox.dial(8080).await.expect_err("nothing listens");
        assert_eq!(closed.kind(), std::io::ErrorKind::ConnectionRefused);
        for (port, address) in [(8081, "127.0.0.1"), (8082, "::1"), (8083, "0.0.0.0")] {
            let code = format!(
                "import socket; f = socket.AF_INET6 if ':' in '{address}' else socket.AF_INET\n\
                 s = socket.create_server(('{address}', {port}), family=f); print('up', flush=True)\n\
                 c, _ = s.accept(); c.sendall(c.recv(100).upper())"
            );
            let mut server = spawn(&*sandbox, "python3", &["-c", &code]).await;
            assert_eq!(server.next_line().await, "up");
            let mut stream = sandbox.dial(port).await.expect("connects");
            stream.write_all(b"hello").await.expect("sends");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("answers");
            assert_eq!(answer, "HELLO");
        }
        sandbox.kill().await.expect("the sandbox ends");
        engine.shutdown().await;
    }

    /// A frozen sandbox does not run; a thawed one continues.
    pub async fn freezes_and_thaws(&self, data: &Path) {
        let engine = self.engine(data).await;
        let sandbox = self.start(&engine).await;
        let mut counter =
            spawn(&*sandbox, "bash", &["-c", "i=0; while read; do echo $((i+=1)); done < <(yes)"]).await;
        counter.next_line().await;
        sandbox.freeze().await.expect("the sandbox freezes");
        let before = sandbox.stats().await.expect("has statistics").cpu_usec;
        let silent = tokio::time::timeout(Duration::from_millis(200), health(&*sandbox)).await;
        assert!(silent.is_err(), "a frozen sandbox answered");
        let after = sandbox.stats().await.expect("has statistics").cpu_usec;
        // A process that wakes up to be frozen is counted too: some hundred microseconds on a busy host. Running would be 200,000.
        assert!(after - before < 5_000, "a frozen sandbox used the processor: {} µs", after - before);
        sandbox.thaw().await.expect("the sandbox thaws");
        tokio::time::timeout(TIMEOUT, health(&*sandbox)).await.expect("envd answers again");
        sandbox.freeze().await.expect("the sandbox freezes");
        sandbox.kill().await.expect("a frozen sandbox can be killed");
        engine.shutdown().await;
    }

    /// Limits are enforced, and a sandbox that reaches them continues to run.
    pub async fn keeps_limits(&self, data: &Path) {
        let engine = self.engine(data).await;
        assert!(engine.descriptor().capabilities.resource_limits, "this host cannot limit sandboxes");
        let sandbox = self.start(&engine).await;
        let hog = run(&*sandbox, "python3 -c 'x = bytearray(600 << 20)'; echo $?").await;
        assert!(hog.stdout.trim() == "137" || hog.stderr.contains("MemoryError"), "{hog:?}");
        let bomb = run(&*sandbox, &format!("python3 -c '{BOMB}'")).await;
        let alive: u32 = bomb.stdout.lines().next().and_then(|n| n.trim().parse().ok()).unwrap_or(0);
        assert!(alive < 200, "{alive} processes with a limit of 200");
        assert_eq!(run(&*sandbox, "echo alive").await.stdout, "alive\n");
        let stats = sandbox.stats().await.expect("has statistics");
        assert_eq!(stats.memory_limit_bytes, 256 << 20);
        assert!(stats.cpu_usec > 0 && stats.pids >= 1 && stats.memory_bytes > 0, "{stats:?}");
        sandbox.kill().await.expect("the sandbox ends");
        engine.shutdown().await;
    }

    /// A kill ends the sandbox, removes its files, and can be repeated.
    pub async fn ends_cleanly(&self, data: &Path) {
        let engine = self.engine(data).await;
        let sandbox = self.start(&engine).await;
        let private = sandbox.private_dir();
        assert!(private.is_dir());
        let mut exit = sandbox.exit();
        assert!(exit.borrow().is_none());
        spawn(&*sandbox, "bash", &["-c", "trap '' TERM; sleep 1000"]).await;
        sandbox.kill().await.expect("the sandbox ends");
        assert_eq!(
            *exit.wait_for(Option::is_some).await.expect("the exit is announced"),
            Some(ExitReason::Signalled(9))
        );
        assert!(!private.exists(), "private files are left");
        assert!(sandbox.dial(envd_api::PORT).await.is_err());
        assert!(matches!(sandbox.stats().await, Err(EngineError::NotFound)));
        sandbox.kill().await.expect("a second kill succeeds");
        let same_name = self.start(&engine).await;
        same_name.kill().await.expect("the sandbox ends");
        engine.shutdown().await;
    }

    /// After a restart the server adopts a running sandbox and sweeps another one.
    pub async fn adopts_after_a_restart(&self, data: &Path) {
        let first = self.engine(data).await;
        let (kept, stray) = (self.start(&first).await, self.start(&first).await);
        let (kept_id, stray_private) = (kept.id().clone(), stray.private_dir());
        run(
            &*kept,
            "(while true; do echo >> /tmp/beats; sleep 0.01; done) >/dev/null 2>&1 & echo $! > /tmp/pid",
        )
        .await;
        first.shutdown().await;
        let second = (self.open)(data.to_owned()).await;
        let adopted = second.adopt(&kept_id).await.expect("the sandbox is adopted");
        assert_eq!(
            second.sweep(std::slice::from_ref(&kept_id), &[]).await.expect("the sweep succeeds"),
            2,
            "one group, one tree"
        );
        assert!(!stray_private.exists());
        assert!(stray.dial(envd_api::PORT).await.is_err(), "the stray sandbox still runs");
        health(&*adopted).await;
        let beating = "kill -0 $(cat /tmp/pid) && n=$(wc -l < /tmp/beats); until [ $(wc -l < /tmp/beats) -gt $n ]; do :; done; echo beats";
        let alive = run(&*adopted, beating).await;
        assert_eq!(alive.stdout, "beats\n", "the command did not survive");
        let missing = second.adopt(&SandboxId::generate()).await;
        assert!(matches!(missing, Err(EngineError::NotFound)));
        adopted.kill().await.expect("an adopted sandbox can be killed");
        let mut exit = adopted.exit();
        exit.wait_for(Option::is_some).await.expect("the exit is announced");
        second.shutdown().await;
    }

    /// Many sandboxes can be started at once.
    pub async fn starts_many_at_once(&self, data: &Path) {
        let engine = self.engine(data).await;
        let starts = (0..20).map(|_| {
            let (engine, spec) = (engine.clone(), self.spec());
            tokio::spawn(async move {
                let sandbox = engine.start(spec).await.expect("the sandbox starts");
                health(&*sandbox).await;
                sandbox
            })
        });
        let starts: Vec<_> = starts.collect();
        for start in starts {
            start.await.expect("no panic").kill().await.expect("the sandbox ends");
        }
        engine.shutdown().await;
    }

    /// A template that cannot be used is refused, and nothing of it is left.
    pub async fn refuses_a_broken_template(&self, data: &Path) {
        let engine = self.engine(data).await;
        let missing = TemplateImage { layers: vec!["/nonexistent/layer".into()], engine: None };
        assert!(matches!(engine.prepare(&missing, true).await, Err(EngineError::Template(_))));
        let spec = StartSpec { template: missing, ..self.spec() };
        let id = spec.id.clone();
        assert!(engine.start(spec).await.is_err());
        assert!(matches!(engine.adopt(&id).await, Err(EngineError::NotFound)));
        assert_eq!(engine.sweep(&[], &[]).await.expect("the sweep succeeds"), 0, "something is left");
        engine.shutdown().await;
    }
}
