//! The agent's life: start the sandbox, say that it is ready, answer until envd ends.
//! One thread waits for the host and for envd; relayed connections have threads of their own.
//! It cannot be frozen with user code, and when memory runs out it is the last to go.

use std::cell::RefCell;
use std::fs;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::thread;

use guest_api::{Item, Message};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::system::{RebootCommand, reboot};
use rustix::thread::UnshareFlags;
use sys::Namespace;

use crate::boot::{self, Machine};
use crate::calls::Sandbox;
use crate::channel::Channel;
use crate::error::GuestError;
use crate::{STAGE, relay, stage};

const HOST: u64 = 0;
const ENVD: u64 = 1;

/// Does everything; answers why it is over.
pub(crate) fn run() -> GuestError {
    let mut events = None;
    let mut channel = match boot::first_steps(&mut events) {
        Ok(channel) => channel,
        Err(error) => return error,
    };
    // Until here it is the console's to tell.
    let failure = boot::rest(&events.expect("made in the first steps")).and_then(start).map_or_else(
        |error| error,
        |sandbox| match serve(&mut channel, &sandbox) {
            Ok(()) => GuestError::Ended,
            Err(error) => error,
        },
    );
    channel.send(&Message::Broken { reason: failure.to_string() });
    failure
}

/// Switches the machine off; QEMU ends.
pub(crate) fn power_off() -> ! {
    let _ = reboot(RebootCommand::PowerOff);
    // A first process that ends is a kernel that panics, which ends QEMU too.
    std::process::exit(1)
}

/// envd, and what calls need.
struct Started {
    envd: OwnedFd,
    sandbox: Sandbox,
}

fn start(machine: Machine) -> Result<Started, GuestError> {
    fs::write("/proc/self/oom_score_adj", "-1000").map_err(GuestError::kernel("spare the agent"))?;
    let mut child = spawn(machine.options.shm_mib)?;
    let said = std::io::read_to_string(child.stdout.take().expect("piped in spawn"));
    // It says nothing and lets go of its end when it becomes envd.
    match said.map_err(GuestError::kernel("hear of envd"))? {
        said if said.is_empty() => {}
        said => return Err(GuestError::Stage(said)),
    }
    let id = child.id().cast_signed();
    let pid = Pid::from_raw(id).expect("a started process has an id");
    let envd = pidfd_open(pid, PidfdFlags::empty()).map_err(GuestError::kernel("watch envd"))?;
    let hostname = Namespace::of_process(id, "uts").map_err(GuestError::kernel("open envd's host name"))?;
    let randomness = fs::File::options().write(true).open("/dev/urandom");
    let randomness = randomness.map_err(GuestError::kernel("open the kernel's randomness"))?;
    relay::start()?;
    let Machine { group, boot_id, private, .. } = machine;
    let name = RefCell::new(stage::HOSTNAME.to_owned());
    Ok(Started { envd, sandbox: Sandbox { randomness, hostname, name, boot_id, group, private } })
}

/// In a thread of its own, because whoever has a pid namespace for its children can start no more threads.
fn spawn(shm_mib: u32) -> Result<Child, GuestError> {
    let start = move || {
        sys::enter_new_namespaces(UnshareFlags::NEWPID)?;
        Command::new("/proc/self/exe")
            .args([STAGE, &shm_mib.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
    };
    let started = thread::spawn(start).join().expect("the closure does not panic");
    started.map_err(GuestError::kernel("start what becomes envd"))
}

/// Returns the host until envd ends.
fn serve(channel: &mut Channel, started: &Started) -> Result<(), GuestError> {
    let kernel = |error: rustix::io::Errno| GuestError::kernel("wait for the host")(error);
    let queue = epoll::create(CreateFlags::CLOEXEC).map_err(kernel)?;
    let changes = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
    epoll::add(&queue, &*channel, EventData::new_u64(HOST), changes).map_err(kernel)?;
    epoll::add(&queue, &started.envd, EventData::new_u64(ENVD), EventFlags::IN).map_err(kernel)?;
    channel.send(&Message::Ready {});
    let mut events = Vec::with_capacity(2);
    loop {
        events.clear();
        match epoll::wait(&queue, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(kernel(error)),
        }
        if events.iter().any(|event| event.data.u64() == ENVD) {
            return Ok(());
        }
        answer(channel, &started.sandbox);
    }
}

fn answer(channel: &mut Channel, sandbox: &Sandbox) {
    channel.flush();
    for item in channel.read() {
        match item {
            Item::Sync => {
                channel.synchronise();
                channel.send(&Message::Ready {});
            }
            Item::Message(request) => {
                let outcome = sandbox.carry_out(&request.call);
                channel.send(&Message::Answer { id: request.id, outcome });
            }
        }
    }
}
