//! Captured states: what must come back, what must stay apart, and what a failure must leave.
//! Processes are looked at from inside, through envd.
//! Memory is only asked of engines that say they can.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{Durability, Engine, EngineError, RestoreMode, Sandbox, SandboxId, SnapshotId, StartSpec};

use super::{Bench, PATIENCE, health, run};

/// Serves a counter on a port of its own loopback; every connection gets the next number.
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

const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";

const ASK: &str =
    "python3 -c \"import socket; print(socket.create_connection(('127.0.0.1', 8090)).recv(9).decode())\"";

impl<F, Fut> Bench<F>
where
    F: Fn(PathBuf) -> Fut,
    Fut: Future<Output = Arc<dyn Engine>>,
{
    async fn revive(
        &self,
        engine: &Arc<dyn Engine>,
        snapshot: SnapshotId,
        restore_mode: RestoreMode,
    ) -> Arc<dyn Sandbox> {
        let spec = StartSpec { id: SandboxId::generate(), ..self.spec() };
        let sandbox = engine.restore(snapshot, restore_mode, spec).await.expect("is restored");
        tokio::time::timeout(PATIENCE, health(&*sandbox)).await.expect("envd answers");
        sandbox
    }

    async fn with_counter(&self, engine: &Arc<dyn Engine>) -> Arc<dyn Sandbox> {
        let sandbox = self.start(engine).await;
        let command = format!(
            "setsid setpriv --reuid 1000 --regid 1000 --groups 4,1000 python3 -c \"{COUNTER}\" >/dev/null 2>&1 </dev/null & echo $! > /tmp/pid; \
             until {ASK} 2>/dev/null; do :; done"
        );
        assert_eq!(run(&*sandbox, &command).await.stdout, "1\n");
        sandbox
    }

    /// A socket that is a file stays one, over generations of captures.
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
            let state = SnapshotId::generate();
            let durability = if generation == 0 { Durability::Ephemeral } else { Durability::Durable };
            sandbox.capture(state, true, durability).await.expect("is captured");
            sandbox.kill().await.expect("ends");
            sandbox = self.revive(&engine, state, RestoreMode::Memory).await;
            let seen = run(&*sandbox, ASK_IT).await;
            assert_eq!(seen.stdout, "socket 755\nhere\n", "{seen:?}");
        }
        sandbox.kill().await.expect("ends");
        engine.shutdown().await;
    }

    /// Processes, pids, sockets and files come back as they were, any number of times, and go separate ways.
    pub async fn brings_memory_back(&self, data: &Path) {
        let engine = self.engine(data).await;
        assert!(engine.descriptor().capabilities.memory_snapshots, "this host cannot capture memory");
        let source = self.with_counter(&engine).await;
        run(&*source, "echo before > /root/file; echo shared > /dev/shm/shared; rm /etc/debian_version")
            .await;
        let snapshot = SnapshotId::generate();
        let captured = source.capture(snapshot, true, Durability::Durable).await.expect("is captured");
        assert!(captured.memory && captured.memory_bytes > 0);
        assert_eq!(run(&*source, ASK).await.stdout, "2\n", "the source goes on");
        run(&*source, "echo after > /root/file").await;
        for _ in 0..2 {
            let copy = self.revive(&engine, snapshot, RestoreMode::Memory).await;
            assert_eq!(run(&*copy, ASK).await.stdout, "2\n");
            assert_eq!(run(&*copy, ASK).await.stdout, "3\n");
            let look = "cat /root/file /dev/shm/shared; kill -0 $(cat /tmp/pid) && echo alive; \
                        stat -c '%u %g' /proc/$(cat /tmp/pid); \
                        ls /etc/debian_version 2>/dev/null; hostname; id -u";
            assert_eq!(run(&*copy, look).await.stdout, "before\nshared\nalive\n1000 1000\nsandbox\n0\n");
            run(&*copy, "echo copy > /root/file").await;
            copy.kill().await.expect("ends");
        }
        assert_eq!(run(&*source, "cat /root/file").await.stdout, "after\n");
        source.kill().await.expect("ends");
        let orphan = self.revive(&engine, snapshot, RestoreMode::Memory).await;
        assert_eq!(run(&*orphan, ASK).await.stdout, "2\n", "a state outlives its source");
        orphan.kill().await.expect("ends");
        engine.discard(snapshot).await.expect("goes");
        engine.discard(snapshot).await.expect("going twice is fine");
        let gone = engine.restore(snapshot, RestoreMode::Memory, self.spec()).await;
        assert!(matches!(gone, Err(EngineError::NotFound)));
        engine.shutdown().await;
    }

    /// What a restored sandbox may do is what a fresh one may: limits, filter, ids, network.
    pub async fn restores_the_walls(&self, data: &Path) {
        const LOOK: &str = "grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/self/status; \
            unshare -U true 2>&1; cat /proc/sys/user/max_user_namespaces; \
            mount -t tmpfs none /mnt 2>&1; echo > /proc/sys/kernel/panic; stat -c '%n %a %u %g %F' /root /dev/shm /dev/null; \
            cat /proc/sys/kernel/random/boot_id; cat /proc/self/cgroup | cut -d: -f3 | sort -u; cat /proc/sys/user/max_inotify_instances; ulimit -a; \
            cut -d' ' -f5,6 /proc/self/mountinfo | sort; cat /proc/self/uid_map | wc -l; readlink /proc/1/exe; \
            cut -d' ' -f19 /proc/1/stat; ip a 2>/dev/null; ls /sys/class/net";
        let engine = self.engine(data).await;
        let source = self.start(&engine).await;
        let snapshot = SnapshotId::generate();
        source.capture(snapshot, true, Durability::Durable).await.expect("is captured");
        let copy = self.revive(&engine, snapshot, RestoreMode::Memory).await;
        assert_eq!(run(&*copy, LOOK).await, run(&*source, LOOK).await);
        let hog = run(&*copy, "python3 -c 'x = bytearray(600 << 20)'; echo $?").await;
        assert!(hog.stdout.trim() == "137" || hog.stderr.contains("MemoryError"), "{hog:?}");
        assert_eq!(copy.stats().await.expect("has statistics").memory_limit_bytes, 256 << 20);
        let again = SnapshotId::generate();
        copy.capture(again, true, Durability::Durable).await.expect("a restored sandbox can be captured");
        let grandchild = self.revive(&engine, again, RestoreMode::Memory).await;
        assert_eq!(run(&*grandchild, LOOK).await, run(&*source, LOOK).await);
        for sandbox in [grandchild, copy, source] {
            sandbox.kill().await.expect("ends");
        }
        engine.shutdown().await;
    }

    /// Without memory only files come back; a frozen sandbox can be captured and stays frozen.
    pub async fn brings_files_back(&self, data: &Path) {
        let engine = self.engine(data).await;
        let source = self.start(&engine).await;
        run(&*source, "echo kept > /root/file; (sleep 1000 &) >/dev/null 2>&1; rm -r /opt; mkdir /opt").await;
        let boot = run(&*source, BOOT).await.stdout;
        source.freeze().await.expect("freezes");
        let snapshot = SnapshotId::generate();
        assert!(!source.capture(snapshot, false, Durability::Durable).await.expect("is captured").memory);
        let silent = tokio::time::timeout(std::time::Duration::from_millis(200), health(&*source)).await;
        assert!(silent.is_err(), "a frozen sandbox was thawed by its capture");
        source.thaw().await.expect("thaws");
        tokio::time::timeout(PATIENCE, health(&*source)).await.expect("envd answers");
        source.kill().await.expect("ends");
        let copy = self.revive(&engine, snapshot, RestoreMode::Disk).await;
        assert_ne!(run(&*copy, BOOT).await.stdout, boot, "a cold start is a boot");
        assert_eq!(run(&*copy, "cat /root/file; pgrep sleep; ls -A /opt").await.stdout, "kept\n");
        let none = engine.restore(snapshot, RestoreMode::Memory, self.spec()).await;
        assert!(matches!(none, Err(EngineError::NotFound)), "there is no memory in it");
        copy.kill().await.expect("ends");
        engine.shutdown().await;
    }

    /// A later server keeps the states it is told of and sweeps the others.
    pub async fn keeps_states_across_servers(&self, data: &Path) {
        let first = self.engine(data).await;
        let source = self.start(&first).await;
        run(&*source, "echo kept > /root/file").await;
        let (kept, stray) = (SnapshotId::generate(), SnapshotId::generate());
        for snapshot in [kept, stray] {
            source.capture(snapshot, true, Durability::Durable).await.expect("is captured");
        }
        source.kill().await.expect("ends");
        first.shutdown().await;
        let second = (self.open)(data.to_owned()).await;
        assert_eq!(second.sweep(&[], &[kept]).await.expect("sweeps"), 1, "one state");
        let copy = self.revive(&second, kept, RestoreMode::Memory).await;
        assert_eq!(run(&*copy, "cat /root/file").await.stdout, "kept\n");
        let gone = second.restore(stray, RestoreMode::Memory, self.spec()).await;
        assert!(matches!(gone, Err(EngineError::NotFound)));
        copy.kill().await.expect("ends");
        second.shutdown().await;
    }
}
