//! A complete guest under QEMU: kernel, initramfs, disks, guest agent, envd. Tests what the guest
//! agent promises.
//!
//! Needs root and what `cargo xtask unit` sets up: `COFFERDAM_MICROVM`, `COFFERDAM_GUEST_INIT`,
//! `COFFERDAM_ENVD`, `COFFERDAM_LAYERS`. A boot takes three seconds on an idle host, so each test
//! checks many things.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;

use crate::common::{Files, Guest, envd, identity};
use guest_api::relay::{OK, REFUSED, RelayRequest};
use guest_api::{Call, CallOutcome, Decoded, GuestIdentity, GuestMessage, encode};

fn ready(guest: &mut Guest) {
    let first = guest.host.next();
    assert_eq!(first, Decoded::Message(GuestMessage::Ready {}), "{}", guest.console());
}

fn failure(outcome: CallOutcome) -> String {
    match outcome {
        CallOutcome::Failed { reason } => reason,
        CallOutcome::Done => panic!("it was done"),
    }
}

/// Forks until the limit, prints the number of children, and kills them.
const BOMB: &str = "python3 -c '
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
'";

/// Gets an inotify event of a file that is created in a directory of the template.
const WATCH: &str = "python3 -c '
import ctypes, os
libc = ctypes.CDLL(None)
fd = libc.inotify_init1(0)
libc.inotify_add_watch(fd, b\"/srv\", 0x100)
open(\"/srv/made\", \"w\")
print(os.read(fd, 4096)[16:20])
'";

/// Commands in a fresh guest, and their output.
const EXPECTED: &[(&str, &str)] = &[
    ("cat /proc/1/comm; hostname; id -u", "envd\nsandbox\n0\n"),
    ("cat /proc/self/cgroup", "0::/\n"),
    // Names of all processes: only envd and this shell.
    (
        "for p in /proc/[0-9]*; do read name < $p/comm; echo $name; done > /tmp/names; sort -u /tmp/names",
        "bash\nenvd\n",
    ),
    ("cut -d' ' -f19 /proc/1/stat; cat /proc/1/oom_score_adj; cut -d' ' -f19 /proc/$$/stat", "-10\n0\n0\n"),
    ("ulimit -n; ulimit -c; ulimit -i; ulimit -u", "1048576\n0\n4096\n168\n"),
    ("cd /dev; echo *", "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero\n"),
    ("df --output=size -m /dev/shm /dev | tail -n 2 | tr -d ' '", "256\n1\n"),
    ("ls -d /lost+found /envd-layer /base /private /init 2>/dev/null; echo none", "none\n"),
    ("touch /dev/x /sys/x 2>/dev/null || echo read-only", "read-only\n"),
    (
        "cut -d' ' -f5 /proc/self/mountinfo | sort | tr '\\n' ' '",
        "/ /dev /dev/mqueue /dev/pts /dev/shm /proc /proc/sys/kernel/random/boot_id /sys /sys/fs/cgroup ",
    ),
    ("mv /opt /opt2 && ls -d /opt2; echo 1 > /etc/debian_version; cat /etc/debian_version", "/opt2\n1\n"),
    ("mknod /root/disk b 254 0; cat /root/disk 2>&1 | grep -o 'denied'", "denied\n"),
    ("cat /proc/sys/net/ipv4/conf/eth0/route_localnet; grep -c 169.254.0.22 /proc/net/arp", "1\n1\n"),
    ("grep -c '^fd0000cf000000000000000000000002 .* eth0' /proc/net/if_inet6", "1\n"),
    (
        "grep -c '^00000000000000000000000000000000 00 .* fd0000cf000000000000000000000001 .* eth0' /proc/net/ipv6_route",
        "1\n",
    ),
    ("su user -c 'sudo id -u'", "0\n"),
    (WATCH, "b'made'\n"),
];

#[test]
fn a_guest_becomes_a_sandbox() {
    let files = Files::make(&[crate::common::base_layer()]);
    let mut guest = files.start(&[]);
    ready(&mut guest);
    assert_eq!(envd::health(guest.dial_envd()).unwrap(), "HTTP/1.0 204 No Content");
    for (command, wanted) in EXPECTED {
        assert_eq!(guest.run(command), *wanted, "{command}");
    }
    let alive: u32 = guest.run(BOMB).trim().parse().unwrap();
    assert!((100..200).contains(&alive), "{alive} processes with a limit of 200");
    let hog = guest.run("python3 -c 'x = bytearray(700 << 20)' 2>&1; echo $?");
    assert!(hog.contains("137") || hog.contains("MemoryError"), "{hog}");
    assert_eq!(
        guest.run(
            "python3 -c 'import os; x = [os.urandom(1 << 20) for _ in range(700)]' 2>/dev/null; echo $?"
        ),
        "137\n"
    );
    assert_eq!(guest.run("echo alive > /srv/alive; rm -r /opt2; cat /srv/alive"), "alive\n");
    assert_eq!(guest.host.call(Call::Quiesce {}), CallOutcome::Done);
    // Killed, as by a power failure: the disk was synced by the freeze.
    drop(guest);
    let mut again = files.start(&[]);
    ready(&mut again);
    assert_eq!(
        again.run("cat /srv/alive /etc/debian_version; ls -d /opt2"),
        "alive\n1\n",
        "after a cold start"
    );
    again.host.send(Call::PowerOff {});
    assert!(again.end().success());
}

#[test]
fn restored_guests_get_identities_of_their_own() {
    let files = Files::make(&[crate::common::base_layer()]);
    let mut guest = files.start(&[]);
    ready(&mut guest);
    let boot =
        guest.run("cat /proc/sys/kernel/random/boot_id; (sleep 1000 & echo $! > /tmp/pid) >/dev/null 2>&1");
    assert_eq!(boot.len(), 37);

    // A server dies in the middle of a frame, and the next one connects.
    let half = encode(&"x".repeat(1000)).unwrap();
    guest.host.send_raw(&half[..100]);
    guest.reconnect();
    assert_eq!(guest.host.next(), Decoded::Sync);
    ready(&mut guest);
    assert_eq!(guest.host.call(Call::Resume { realtime_ns: 3_000_000_000_000_000_000 }), CallOutcome::Done);
    assert!(guest.run("date +%s").starts_with("30000000"));

    assert_eq!(guest.host.call(Call::Quiesce {}), CallOutcome::Done);
    assert!(guest.is_silent(), "envd answered while it was frozen");
    assert_eq!(guest.host.call(Call::Resume { realtime_ns: 3_000_000_000_000_000_000 }), CallOutcome::Done);
    assert_eq!(guest.run("echo goes on"), "goes on\n");
    assert_eq!(guest.host.call(Call::Quiesce {}), CallOutcome::Done);
    let state = files.path("state");
    guest.capture(&state);
    fs::copy(files.path("private.ext4"), files.path("captured.ext4")).unwrap();

    let mut numbers = Vec::new();
    for seed in [1, 2] {
        fs::copy(files.path("captured.ext4"), files.path("private.ext4")).unwrap();
        let mut copy = files.start(&["-incoming", "defer"]);
        copy.restore(&state);
        copy.host.send_raw(&guest_api::SYNC_MARK);
        assert_eq!(copy.host.next(), Decoded::Sync);
        ready(&mut copy);
        let wrong = GuestIdentity { boot_id: Some("../../etc/passwd".into()), ..identity(seed) };
        let reason = failure(copy.host.call(Call::Personalize(wrong)));
        assert!(reason.contains("not a boot id"), "{reason}");
        let long = GuestIdentity { hostname: "x".repeat(65), ..identity(seed) };
        let reason = failure(copy.host.call(Call::Personalize(long)));
        assert!(reason.contains("set the host name"), "{reason}");
        assert!(copy.is_silent(), "user code was resumed after a failure");
        let id = format!("0000000{seed}-0000-4000-8000-000000000000");
        let own = GuestIdentity { boot_id: Some(id.clone()), pids: Some(100), ..identity(seed) };
        assert_eq!(copy.host.call(Call::Personalize(own)), CallOutcome::Done);
        let seen = copy.run("head -c 16 /dev/urandom | od -An -tx1; hostname; cat /proc/sys/kernel/random/boot_id; date +%Y; kill -0 $(cat /tmp/pid) && echo there");
        let (number, rest) = seen.split_once('\n').unwrap();
        assert_eq!(rest, format!("revived\n{id}\n2096\nthere\n"));
        numbers.push(number.to_owned());
        let alive: u32 = copy.run(BOMB).trim().parse().unwrap();
        assert!(alive < 100, "{alive} processes with a limit of 100");
        copy.host.send(Call::PowerOff {});
        assert!(copy.end().success());
    }
    assert_ne!(numbers[0], numbers[1], "two clones have the same randomness");
}

/// Changes that overlayfs represents in a special form.
const CHANGES: &str = "set -e
    echo new > /srv/new; chown 1000:1000 /srv/new; chmod 4750 /srv/new
    ln /srv/new /srv/same; ln -s new /srv/link; mkfifo /srv/pipe
    rm /etc/debian_version
    rm -r /opt && mkdir /opt && touch /opt/only
    mv /usr/share/zoneinfo /usr/share/zones
    python3 -c 'import os; os.setxattr(\"/srv/new\", \"user.note\", b\"kept\")'
    python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/srv/socket\")'
    setcap cap_net_raw+ep /srv/new 2>/dev/null || true
    mkdir -p /srv/deep/$(printf 'd/%.0s' $(seq 300)); touch /srv/deep/$(printf 'd/%.0s' $(seq 300))bottom
    touch /srv/$(printf 'x%.0s' $(seq 250)); truncate -s 100M /srv/sparse; sync; echo done";

/// Shows what must be equal on top of the exported layer.
const LOOK: &str = "stat -c '%n %u %g %a %h %s' /srv/new /srv/same; readlink /srv/link; cat /srv/new
    test -p /srv/pipe && echo pipe; ls -d /srv/x*
    ls /etc/debian_version 2>/dev/null; ls -A /opt; ls -d /usr/share/zoneinfo 2>/dev/null
    ls /usr/share/zones | md5sum; md5sum < /usr/share/zones/UTC
    python3 -c 'import os; print([os.getxattr(\"/srv/new\", name) for name in sorted(os.listxattr(\"/srv/new\"))])'
    find /srv/deep -name bottom | wc -l; stat -c %s /srv/sparse";

#[test]
fn changes_are_exported_as_a_layer() {
    let files = Files::make(&[crate::common::base_layer()]);
    let mut guest = files.start(&[]);
    ready(&mut guest);

    // Services on the guest's IPv6 loopback, through the relay.
    let mut refused = String::new();
    guest.ask_relay(RelayRequest::Connect(8082)).read_to_string(&mut refused).unwrap();
    assert_eq!(refused, REFUSED);
    let server = "setsid python3 -c 'import socket
s = socket.create_server((\"::1\", 8082), family=socket.AF_INET6)
open(\"/tmp/up\", \"w\")
c, _ = s.accept()
while data := c.recv(1 << 16): c.sendall(data.upper())' >/dev/null 2>&1 </dev/null & until [ -e /tmp/up ]; do :; done; echo up";
    assert_eq!(guest.run(server), "up\n");
    let mut stream = guest.ask_relay(RelayRequest::Connect(8082));
    let mut answer = [0; 3];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, OK.as_bytes());
    let sent = "hello ".repeat(50_000);
    let mut back = stream.try_clone().unwrap();
    let echo = std::thread::spawn(move || {
        let mut all = String::new();
        back.read_to_string(&mut all).unwrap();
        all
    });
    stream.write_all(sent.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(echo.join().unwrap(), sent.to_uppercase());
    // Services on the IPv4 loopback need no relay.
    let server = "setsid python3 -c 'import socket
s = socket.create_server((\"127.0.0.1\", 8081)); open(\"/tmp/up4\", \"w\"); s.accept()[0].sendall(b\"here\")' \
>/dev/null 2>&1 </dev/null & until [ -e /tmp/up4 ]; do :; done; echo up";
    assert_eq!(guest.run(server), "up\n");
    let mut answer = String::new();
    guest.dial_loopback().read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "here");
    // The relay does not serve user code.
    let ask = "python3 -c 'import socket
s = socket.create_connection((\"169.254.0.21\", 61983)); s.sendall(b\"export\\n\")
try: print(s.recv(9))
except ConnectionError: print(b\"\")'";
    assert_eq!(guest.run(ask), "b''\n");

    guest.run("mkdir -p /opt /usr/share/zoneinfo; touch /opt/old");
    assert_eq!(guest.run(CHANGES), "done\n");
    let seen = guest.run(LOOK);
    assert_eq!(guest.host.call(Call::Quiesce {}), CallOutcome::Done);
    let layer = files.path("layer");
    guest::unpack_layer(guest.ask_relay(RelayRequest::Export), &layer, 1024).unwrap();
    assert!(!layer.join("srv/socket").exists());
    drop(guest);

    let on_layer = Files::make(&[layer, crate::common::base_layer()]);
    let mut other = on_layer.start(&[]);
    ready(&mut other);
    assert_eq!(other.run(LOOK), seen, "on top of the exported layer");
}

#[test]
fn a_guest_without_envd_reports_why_and_powers_off() {
    // The template has one program, which prints its version and exits when it is started in this
    // way.
    let layer = tempfile::tempdir().unwrap();
    fs::create_dir(layer.path().join("bin")).unwrap();
    fs::copy(crate::common::variable("COFFERDAM_ENVD"), layer.path().join("bin/short")).unwrap();
    for (envd, why) in [("no program", "execute envd"), ("#!/bin/short --version\n", "envd has ended")] {
        let files = Files::with_envd(&[layer.path().to_owned()], envd.as_bytes());
        let mut guest = files.start(&[]);
        let reason = loop {
            match guest.host.next() {
                Decoded::Message(GuestMessage::Broken { reason }) => break reason,
                Decoded::Message(GuestMessage::Ready {}) => {}
                other => panic!("{other:?}"),
            }
        };
        assert!(reason.contains(why), "{reason}");
        assert!(guest.end().success());
    }
}
