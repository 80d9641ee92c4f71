//! A guest under QEMU's emulation (TCG), started as the engine starts it but with QEMU's user
//! network and without confinement.
//!
//! Tests wait for output of the guest or for QEMU's end, never for a fixed time; every wait has a
//! limit. QEMU is killed when the test ends, even if it fails.

#![allow(dead_code, reason = "each test file uses a part")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use guest::{Tools, disk_images, initramfs};
use guest_api::network::GUEST_MAC;
use guest_api::relay::{RELAY_PORT, RelayRequest};
use guest_api::{
    BootOptions, Call, CallOutcome, Decoded, Decoder, GuestIdentity, GuestMessage, HostRequest, PORT_NAME,
    SYNC_MARK, Seed, encode,
};

use serde_json::{Value, json};

/// Time limit for all waits. A boot takes three seconds on an idle host.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Port on the guest's loopback where tests listen.
const LOOPBACK_PORT: u16 = 8081;

pub(crate) fn variable(name: &str) -> PathBuf {
    std::env::var_os(name)
        .map(PathBuf::from)
        .unwrap_or_else(|| panic!("{name} is not set; use cargo xtask unit"))
}

pub(crate) fn tools() -> Tools {
    Tools::find(&variable("COFFERDAM_MICROVM")).expect("QEMU is set up: cargo xtask unit")
}

/// Returns the layer of the base template.
pub(crate) fn base_layer() -> PathBuf {
    let store = layers::LayerStore::open(&variable("COFFERDAM_LAYERS")).expect("a layer store");
    let recipe = template::Recipe::base().expect("the base recipe");
    store.path(&store.by_recipe(recipe.fingerprint()).expect("the base layer is built: cargo xtask unit"))
}

/// The files of a guest.
pub(crate) struct Files {
    pub(crate) dir: tempfile::TempDir,
    tools: Tools,
}

impl Files {
    pub(crate) fn make(layers: &[PathBuf]) -> Self {
        Self::with(layers, &variable("COFFERDAM_ENVD"))
    }

    /// Creates the files with other content in place of envd.
    pub(crate) fn with_envd(layers: &[PathBuf], envd: &[u8]) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), envd).unwrap();
        Self::with(layers, file.path())
    }

    fn with(layers: &[PathBuf], envd: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tools = tools();
        let at = |name: &str| dir.path().join(name);
        initramfs::write(&tools, &variable("COFFERDAM_GUEST_INIT"), envd, &at("initramfs")).unwrap();
        disk_images::build_base(layers, &at("base.ext4")).unwrap();
        disk_images::format_empty(1024, &at("private.ext4")).unwrap();
        Self { dir, tools }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts a guest; `more` are additional arguments of QEMU.
    pub(crate) fn start(&self, more: &[&str]) -> Guest {
        let bind = |name: &str| {
            let socket = self.path(name);
            let _ = fs::remove_file(&socket);
            UnixListener::bind(&socket).unwrap()
        };
        let (listener, monitor) = (bind("agent.sock"), bind("qmp.sock"));
        let [envd, relay, loopback] = [(); 3].map(|()| free_port());
        let root = self.tools.root();
        let mut command = Command::new(root.join(Tools::LOADER));
        command.arg("--library-path").arg(root.join(Tools::LIBRARIES)).arg(root.join(Tools::QEMU));
        for dir in Tools::FIRMWARE {
            command.arg("-L").arg(root.join(dir));
        }
        let drive = |name: &str, read_only: bool| {
            let file = self.path(&format!("{name}.ext4"));
            let (file, read) = (file.display(), if read_only { "on" } else { "off" });
            format!(
                "driver=raw,node-name={name},read-only={read},discard=unmap,file.driver=file,file.filename={file}"
            )
        };
        let mac = GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
        command
            .args(["-machine", "microvm", "-accel", "tcg", "-cpu", "max", "-m", "512", "-smp", "1"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-bios", "qboot.rom"])
            .arg("-kernel")
            .arg(self.tools.kernel())
            .arg("-initrd")
            .arg(self.path("initramfs"))
            .args(["-append", &cmdline()])
            .args(["-blockdev", &drive("base", true), "-device", "virtio-blk-device,drive=base"])
            .args(["-blockdev", &drive("private", false), "-device", "virtio-blk-device,drive=private"])
            .arg("-netdev")
            .arg(format!(
                "user,id=n0,net=169.254.0.0/24,host=169.254.0.22,restrict=on,ipv6=off,\
                 hostfwd=tcp:127.0.0.1:{envd}-169.254.0.21:{},hostfwd=tcp:127.0.0.1:{relay}-169.254.0.21:{RELAY_PORT},\
                 hostfwd=tcp:127.0.0.1:{loopback}-127.0.0.1:{LOOPBACK_PORT}",
                envd_api::PORT
            ))
            .args(["-device", &format!("virtio-net-device,netdev=n0,mac={mac}")])
            .arg("-chardev")
            .arg(format!("socket,id=agent,path={},reconnect-ms=50", self.path("agent.sock").display()))
            .args(["-device", "virtio-serial-device"])
            .args(["-device", &format!("virtserialport,chardev=agent,name={PORT_NAME}")])
            .args(["-device", "virtio-rng-device"])
            .arg("-serial")
            .arg(format!("file:{}", self.path("console").display()))
            .arg("-qmp")
            .arg(format!("unix:{}", self.path("qmp.sock").display()))
            .args(more)
            .stdin(Stdio::null());
        let qemu = Qemu(command.spawn().expect("QEMU starts"));
        let monitor = Monitor::accept(&monitor);
        let host = Host::accept(&listener);
        Guest { qemu, host, monitor, listener, envd, relay, loopback, console: self.path("console") }
    }
}

fn cmdline() -> String {
    let options = BootOptions { pids: 200, shm_mib: 256 };
    // Without `tsc_early_khz` boots hang now and then: the guest has no other clock to compare the
    // counter with.
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap();
    let mhz = cpu.lines().find_map(|line| line.strip_prefix("cpu MHz")?.split(": ").nth(1)?.parse().ok());
    let khz = mhz.map_or(0.0, |mhz: f64| mhz * 1000.0);
    format!("console=ttyS0 quiet reboot=t panic=-1 tsc_early_khz={khz:.0} {}", options.to_cmdline())
}

/// Returns a port that is free now; QEMU cannot report a port that it chose itself.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) struct Guest {
    qemu: Qemu,
    pub(crate) host: Host,
    pub(crate) monitor: Monitor,
    listener: UnixListener,
    envd: u16,
    relay: u16,
    loopback: u16,
    console: PathBuf,
}

impl Guest {
    /// Closes the control channel and connects again, as a new server does.
    pub(crate) fn reconnect(&mut self) {
        // Before QEMU reconnects, so that the listener is there.
        self.host.stream.shutdown(std::net::Shutdown::Both).unwrap();
        self.host = Host::accept(&self.listener);
        self.host.stream.write_all(&SYNC_MARK).unwrap();
    }

    /// Writes memory and devices of the guest to a file and ends it.
    pub(crate) fn capture(mut self, state: &Path) {
        self.monitor.execute("stop", &json!({}));
        self.monitor.migrate("migrate", state);
        self.monitor.execute("quit", &json!({}));
        self.qemu.0.wait().unwrap();
    }

    /// Loads a file of [`Self::capture`] and resumes; QEMU was started with `-incoming defer`.
    pub(crate) fn restore(&mut self, state: &Path) {
        self.monitor.migrate("migrate-incoming", state);
        self.monitor.execute("cont", &json!({}));
    }

    /// Waits until QEMU ends by itself.
    pub(crate) fn end(mut self) -> ExitStatus {
        // QEMU closes both ends of the channel when it ends.
        let mut rest = Vec::new();
        let _ = self.host.stream.read_to_end(&mut rest);
        drop(self.host);
        self.qemu.0.wait().unwrap()
    }

    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    pub(crate) fn dial_envd(&self) -> TcpStream {
        dial(self.envd)
    }

    /// Connects to port 8081 on the guest's own `127.0.0.1`.
    pub(crate) fn dial_loopback(&self) -> TcpStream {
        dial(self.loopback)
    }

    /// Connects to the relay and sends a request.
    pub(crate) fn ask_relay(&self, request: RelayRequest) -> TcpStream {
        let mut stream = dial(self.relay);
        stream.write_all(request.to_line().as_bytes()).unwrap();
        stream
    }

    /// Whether envd does not answer for a while, because it is frozen.
    pub(crate) fn is_silent(&self) -> bool {
        let mut stream = self.dial_envd();
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").unwrap();
        stream.read(&mut [0]).is_err()
    }

    /// Runs a shell command in the guest as root and returns its output.
    pub(crate) fn run(&self, command: &str) -> String {
        envd::run(self.dial_envd(), command)
    }
}

fn dial(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

/// QEMU's monitor.
pub(crate) struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn accept(listener: &UnixListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut monitor = Self(BufReader::new(stream));
        monitor.wait_for(|message| message.get("QMP").is_some());
        monitor.execute("qmp_capabilities", &json!({}));
        monitor
    }

    fn wait_for(&mut self, is_it: impl Fn(&Value) -> bool) {
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).expect("QEMU answers in time");
            let message: Value = serde_json::from_str(&line).expect("JSON");
            assert!(message.get("error").is_none() && message["data"]["status"] != "failed", "{message}");
            if is_it(&message) {
                return;
            }
        }
    }

    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        self.0.get_mut().write_all(line.as_bytes()).unwrap();
        self.wait_for(|message| message.get("return").is_some());
    }

    /// Migrates to or from a file and waits until that is complete.
    fn migrate(&mut self, command: &str, state: &Path) {
        let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
        self.execute("migrate-set-capabilities", &events);
        let line = json!({ "execute": command, "arguments": { "uri": format!("file:{}", state.display()) } });
        self.0.get_mut().write_all(line.to_string().as_bytes()).unwrap();
        self.wait_for(|message| message["event"] == "MIGRATION" && message["data"]["status"] == "completed");
    }
}

/// The host's end of the control channel.
pub(crate) struct Host {
    stream: UnixStream,
    decoder: Decoder,
    last: u64,
}

impl Host {
    fn accept(listener: &UnixListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self { stream, decoder: Decoder::default(), last: 0 }
    }

    pub(crate) fn next(&mut self) -> Decoded<GuestMessage> {
        loop {
            if let Some(item) = self.decoder.pop().unwrap() {
                return item;
            }
            let mut buffer = [0; 4096];
            let count = self.stream.read(&mut buffer).expect("the guest says something in time");
            assert!(count > 0, "QEMU has ended");
            self.decoder.push(&buffer[..count]);
        }
    }

    /// Sends bytes that are not a request.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn send(&mut self, call: Call) -> u64 {
        self.last += 1;
        let request = HostRequest { id: self.last, call };
        self.stream.write_all(&encode(&request).unwrap()).unwrap();
        self.last
    }

    pub(crate) fn call(&mut self, call: Call) -> CallOutcome {
        let asked = self.send(call);
        match self.next() {
            Decoded::Message(GuestMessage::Answer { id, outcome }) if id == asked => outcome,
            other => panic!("{other:?} instead of an answer"),
        }
    }
}

pub(crate) fn identity(seed: u8) -> GuestIdentity {
    let seed = Seed::new(vec![seed; 32]).unwrap();
    GuestIdentity {
        realtime_ns: 4_000_000_000_000_000_000,
        seed,
        hostname: "revived".into(),
        boot_id: None,
        pids: None,
    }
}

pub(crate) mod envd {
    //! The part of envd's protocol that running a command needs.

    use std::io::{Read, Write};
    use std::net::TcpStream;

    /// Returns the status line of envd's health check.
    pub(crate) fn health(mut stream: TcpStream) -> std::io::Result<String> {
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.lines().next().unwrap_or_default().to_owned())
    }

    /// Runs a shell command and returns its standard output.
    pub(crate) fn run(mut stream: TcpStream, command: &str) -> String {
        let command = serde_json::json!({ "cmd": "/bin/bash", "args": ["-c", command], "cwd": "/" });
        let body = serde_json::json!({ "process": command, "stdin": false }).to_string();
        let length = u32::try_from(body.len()).unwrap();
        let head = format!(
            "POST /process.Process/Start HTTP/1.0\r\nContent-Type: application/connect+json\r\n\
             Connect-Protocol-Version: 1\r\nAuthorization: Basic cm9vdDo=\r\nContent-Length: {}\r\n\r\n",
            body.len() + 5
        );
        let request = [head.as_bytes(), &[0], &length.to_be_bytes(), body.as_bytes()].concat();
        stream.write_all(&request).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let start = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a response") + 4;
        let (mut rest, mut printed) = (&answer[start..], Vec::new());
        while let Some((head, body)) = rest.split_first_chunk::<5>() {
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let message: serde_json::Value = serde_json::from_slice(&body[..length]).unwrap();
            let text = message["event"]["data"]["stdout"].as_str().unwrap_or_default();
            printed.extend(decode(text));
            rest = &body[length..];
        }
        String::from_utf8(printed).unwrap()
    }

    fn decode(text: &str) -> Vec<u8> {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.decode(text).unwrap()
    }
}
