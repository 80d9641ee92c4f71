//! A whole guest: kernel, initramfs, disks, agent, envd, under QEMU. What the agent promises is asked of the real thing.
//! Needs root and what `cargo xtask unit` sets up: `COFFERDAM_MICROVM`, `COFFERDAM_GUEST_INIT`, `COFFERDAM_ENVD`, `COFFERDAM_LAYERS`.

#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use common::Files;
use guest_api::{Call, Item, Message, Outcome};

#[test]
fn a_guest_becomes_a_sandbox() {
    let files = Files::make(&[common::base_layer()]);
    let mut guest = files.start(&[]);
    let first = guest.host.next();
    assert_eq!(first, Item::Message(Message::Ready {}), "{}", guest.console());
    assert_eq!(common::envd::health(guest.dial_envd()).unwrap(), "HTTP/1.0 204 No Content");
    assert_eq!(guest.host.call(Call::Revive(common::revive())), Outcome::Done);
    assert_eq!(guest.run("hostname; cat /proc/1/comm"), "revived\nenvd\n");
    guest.host.send(Call::PowerOff {});
    assert!(guest.end().success());
}
