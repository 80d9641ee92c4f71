//! Tests of snapshots: captures and restores of memory and files, checked from inside through envd.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{Durability, Engine, EngineError, RestoreMode, Sandbox, SandboxId, SnapshotId, StartSpec};

use super::{Bench, TIMEOUT, health, run};

/// A Python program that serves a counter on a loopback port; every connection gets the next number.
const COUNTER: &str = "
import socket
server = socket.create_server(('127.0.0.1', 8090))
number = 0
while True:
    connection, _ = server.accept()
    number += 1
    connection.sendall(str(number).encode())
    connection.close()
";

/// Prints the boot id.
const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";

/// Prints the next number of the counter.
const ASK: &str =
    "python3 -c \"import socket; print(socket.create_connection(('127.0.0.1', 8090)).recv(9).decode())\"";

impl<F, Fut> Bench<F>
where
    F: Fn(PathBuf) -> Fut,
    Fut: Future<Output = Arc<dyn Engine>>,
{
    /// Restores a snapshot as a new sandbox and waits for envd to answer.
    async fn restore(
        &self,
        engine: &Arc<dyn Engine>,
        snapshot: SnapshotId,
        restore_mode: RestoreMode,
    ) -> Arc<dyn Sandbox> {
        let spec = StartSpec { id: SandboxId::generate(), ..self.spec() };
        let sandbox = engine.restore(snapshot, restore_mode, spec).await.expect("the restore succeeds");
        tokio::time::timeout(TIMEOUT, health(&*sandbox)).await.expect("envd answers");
        sandbox
    }

    /// Starts a sandbox with a running counter.
    async fn with_counter(&self, engine: &Arc<dyn Engine>) -> Arc<dyn Sandbox> {
        let sandbox = self.start(engine).await;
        let command = format!(
            "setsid setpriv --reuid 1000 --regid 1000 --groups 4,1000 python3 -c \"{COUNTER}\" >/dev/null 2>&1 </dev/null & echo $! > /tmp/pid; \
             until {ASK} 2>/dev/null; do :; done"
        );
        assert_eq!(run(&*sandbox, &command).await.stdout, "1\n");
        sandbox
    }

    /// A Unix socket that is bound to a file survives several generations of snapshots.
    pub async fn keeps_socket_files(&self, data: &Path) {
        const SERVER: &str = "import socket; s = socket.socket(socket.AF_UNIX); s.bind('/tmp/socket'); s.listen()\n\
             while True: s.accept()[0].sendall(b'here')";
        const ASK_IT: &str = "stat -c '%F %a' /tmp/socket; python3 -c \"import socket; s = socket.socket(socket.AF_UNIX); \
             s.connect('/tmp/socket'); print(s.recv(9).decode())\"";
        let engine = self.engine(data).await;
        assert!(engine.descriptor().capabilities.memory_snapshots, "this host cannot capture memory");
        let mut sandbox = self.start(&engine).await;
        let command = format!(
            "umask 022; setsid python3 -c \"{SERVER}\" >/dev/null 2>&1 </dev/null & until [ -S /tmp/socket ]; do :; done"
        );
        run(&*sandbox, &command).await;
        for generation in 0..3 {
            let snapshot = SnapshotId::generate();
            let durability = if generation == 0 { Durability::Ephemeral } else { Durability::Durable };
            sandbox.capture(snapshot, true, durability).await.expect("the capture succeeds");
            sandbox.kill().await.expect("the sandbox ends");
            sandbox = self.restore(&engine, snapshot, RestoreMode::Memory).await;
            let seen = run(&*sandbox, ASK_IT).await;
            assert_eq!(seen.stdout, "socket 755\nhere\n", "{seen:?}");
        }
        sandbox.kill().await.expect("the sandbox ends");
        engine.shutdown().await;
    }

    /// Processes, pids, sockets and files are restored as they were, any number of times, and the copies are independent.
    pub async fn restores_memory(&self, data: &Path) {
        let engine = self.engine(data).await;
        assert!(engine.descriptor().capabilities.memory_snapshots, "this host cannot capture memory");
        let source = self.with_counter(&engine).await;
        run(&*source, "echo before > /root/file; echo shared > /dev/shm/shared; rm /etc/debian_version")
            .await;
        let snapshot = SnapshotId::generate();
        let captured =
            source.capture(snapshot, true, Durability::Durable).await.expect("the capture succeeds");
        assert!(captured.memory && captured.memory_bytes > 0);
        assert_eq!(run(&*source, ASK).await.stdout, "2\n", "the source continues");
        run(&*source, "echo after > /root/file").await;
        for _ in 0..2 {
            let copy = self.restore(&engine, snapshot, RestoreMode::Memory).await;
            assert_eq!(run(&*copy, ASK).await.stdout, "2\n");
            assert_eq!(run(&*copy, ASK).await.stdout, "3\n");
            let look = "cat /root/file /dev/shm/shared; kill -0 $(cat /tmp/pid) && echo alive; \
                        stat -c '%u %g' /proc/$(cat /tmp/pid); \
                        ls /etc/debian_version 2>/dev/null; hostname; id -u";
            assert_eq!(run(&*copy, look).await.stdout, "before\nshared\nalive\n1000 1000\nsandbox\n0\n");
            run(&*copy, "echo copy > /root/file").await;
            copy.kill().await.expect("the sandbox ends");
        }
        assert_eq!(run(&*source, "cat /root/file").await.stdout, "after\n");
        source.kill().await.expect("the sandbox ends");
        let orphan = self.restore(&engine, snapshot, RestoreMode::Memory).await;
        assert_eq!(run(&*orphan, ASK).await.stdout, "2\n", "a snapshot outlives its source");
        orphan.kill().await.expect("the sandbox ends");
        engine.discard(snapshot).await.expect("the snapshot is removed");
        engine.discard(snapshot).await.expect("a second removal succeeds");
        let gone = engine.restore(snapshot, RestoreMode::Memory, self.spec()).await;
        assert!(matches!(gone, Err(EngineError::NotFound)));
        engine.shutdown().await;
    }

    /// A restored sandbox has the same limits, filter, ids and network as a fresh one.
    pub async fn restores_isolation(&self, data: &Path) {
        const LOOK: &str = "grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/self/status; \
            unshare -U true 2>&1; cat /proc/sys/user/max_user_namespaces; \
            mount -t tmpfs none /mnt 2>&1; echo > /proc/sys/kernel/panic; stat -c '%n %a %u %g %F' /root /dev/shm /dev/null; \
            cat /proc/sys/kernel/random/boot_id; cat /proc/self/cgroup | cut -d: -f3 | sort -u; cat /proc/sys/user/max_inotify_instances; ulimit -a; \
            cut -d' ' -f5,6 /proc/self/mountinfo | sort; cat /proc/self/uid_map | wc -l; readlink /proc/1/exe; \
            cut -d' ' -f19 /proc/1/stat; ip a 2>/dev/null; ls /sys/class/net";
        let engine = self.engine(data).await;
        let source = self.start(&engine).await;
        let snapshot = SnapshotId::generate();
        source.capture(snapshot, true, Durability::Durable).await.expect("the capture succeeds");
        let copy = self.restore(&engine, snapshot, RestoreMode::Memory).await;
        assert_eq!(run(&*copy, LOOK).await, run(&*source, LOOK).await);
        let hog = run(&*copy, "python3 -c 'x = bytearray(600 << 20)'; echo $?").await;
        assert!(hog.stdout.trim() == "137" || hog.stderr.contains("MemoryError"), "{hog:?}");
        assert_eq!(copy.stats().await.expect("has statistics").memory_limit_bytes, 256 << 20);
        let again = SnapshotId::generate();
        copy.capture(again, true, Durability::Durable).await.expect("a restored sandbox can be captured");
        let grandchild = self.restore(&engine, again, RestoreMode::Memory).await;
        assert_eq!(run(&*grandchild, LOOK).await, run(&*source, LOOK).await);
        for sandbox in [grandchild, copy, source] {
            sandbox.kill().await.expect("the sandbox ends");
        }
        engine.shutdown().await;
    }

    /// A disk snapshot restores files only; a frozen sandbox can be captured and stays frozen.
    pub async fn restores_files(&self, data: &Path) {
        let engine = self.engine(data).await;
        let source = self.start(&engine).await;
        run(&*source, "echo kept > /root/file; (sleep 1000 &) >/dev/null 2>&1; rm -r /opt; mkdir /opt").await;
        let boot = run(&*source, BOOT).await.stdout;
        source.freeze().await.expect("the sandbox freezes");
        let snapshot = SnapshotId::generate();
        assert!(
            !source.capture(snapshot, false, Durability::Durable).await.expect("the capture succeeds").memory
        );
        let silent = tokio::time::timeout(std::time::Duration::from_millis(200), health(&*source)).await;
        assert!(silent.is_err(), "a frozen sandbox was thawed by its capture");
        source.thaw().await.expect("the sandbox thaws");
        tokio::time::timeout(TIMEOUT, health(&*source)).await.expect("envd answers");
        source.kill().await.expect("the sandbox ends");
        let copy = self.restore(&engine, snapshot, RestoreMode::Disk).await;
        assert_ne!(run(&*copy, BOOT).await.stdout, boot, "a cold start is a boot");
        assert_eq!(run(&*copy, "cat /root/file; pgrep sleep; ls -A /opt").await.stdout, "kept\n");
        let none = engine.restore(snapshot, RestoreMode::Memory, self.spec()).await;
        assert!(matches!(none, Err(EngineError::NotFound)), "the snapshot has no memory");
        copy.kill().await.expect("the sandbox ends");
        engine.shutdown().await;
    }

    /// After a restart the sweep keeps the named snapshots and removes the others.
    pub async fn keeps_snapshots_across_servers(&self, data: &Path) {
        let first = self.engine(data).await;
        let source = self.start(&first).await;
        run(&*source, "echo kept > /root/file").await;
        let (kept, stray) = (SnapshotId::generate(), SnapshotId::generate());
        for snapshot in [kept, stray] {
            source.capture(snapshot, true, Durability::Durable).await.expect("the capture succeeds");
        }
        source.kill().await.expect("the sandbox ends");
        first.shutdown().await;
        let second = (self.open)(data.to_owned()).await;
        assert_eq!(second.sweep(&[], &[kept]).await.expect("the sweep succeeds"), 1, "one snapshot");
        let copy = self.restore(&second, kept, RestoreMode::Memory).await;
        assert_eq!(run(&*copy, "cat /root/file").await.stdout, "kept\n");
        let gone = second.restore(stray, RestoreMode::Memory, self.spec()).await;
        assert!(matches!(gone, Err(EngineError::NotFound)));
        copy.kill().await.expect("the sandbox ends");
        second.shutdown().await;
    }
}
