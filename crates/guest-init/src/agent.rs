//! The agent's life: start the sandbox, say that it is ready, answer until envd ends.
//! One thread waits for the host and for envd; relayed connections have threads of their own.
//! It cannot be frozen with user code, and when memory runs out it is the last to go.

use std::cell::RefCell;
use std::fs;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::thread;

use guest_api::{Decoded, GuestMessage};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::system::{RebootCommand, reboot};
use rustix::thread::UnshareFlags;
use sys::Namespace;

use crate::boot::{self, BootedGuest};
use crate::calls::CallHandler;
use crate::channel::Channel;
use crate::error::InitError;
use crate::{EXEC_ENVD, exec_envd, relay};

const HOST: u64 = 0;
const ENVD: u64 = 1;

/// Does everything; answers why it is over.
pub(crate) fn run() -> InitError {
    let mut events = None;
    let mut channel = match boot::mount_and_open_channel(&mut events) {
        Ok(channel) => channel,
        Err(error) => return error,
    };
    // Until here it is the console's to tell.
    let failure =
        boot::prepare_sandbox(&events.expect("made in the first steps")).and_then(start).map_or_else(
            |error| error,
            |sandbox| match serve(&mut channel, &sandbox) {
                Ok(()) => InitError::Ended,
                Err(error) => error,
            },
        );
    channel.send(&GuestMessage::Broken { reason: failure.to_string() });
    failure
}

/// Switches the machine off; QEMU ends.
pub(crate) fn power_off() -> ! {
    let _ = reboot(RebootCommand::PowerOff);
    // A first process that ends is a kernel that panics, which ends QEMU too.
    std::process::exit(1)
}

/// envd, and what calls need.
struct StartedEnvd {
    envd: OwnedFd,
    calls: CallHandler,
}

fn start(guest: BootedGuest) -> Result<StartedEnvd, InitError> {
    fs::write("/proc/self/oom_score_adj", "-1000").map_err(InitError::kernel("spare the agent"))?;
    let mut child = spawn(guest.options.shm_mib)?;
    let said = std::io::read_to_string(child.stdout.take().expect("piped in spawn"));
    // It says nothing and lets go of its end when it becomes envd.
    match said.map_err(InitError::kernel("hear of envd"))? {
        said if said.is_empty() => {}
        said => return Err(InitError::Envd(said)),
    }
    let id = child.id().cast_signed();
    let pid = Pid::from_raw(id).expect("a started process has an id");
    let envd = pidfd_open(pid, PidfdFlags::empty()).map_err(InitError::kernel("watch envd"))?;
    let hostname = Namespace::of_process(id, "uts").map_err(InitError::kernel("open envd's host name"))?;
    let randomness = fs::File::options().write(true).open("/dev/urandom");
    let randomness = randomness.map_err(InitError::kernel("open the kernel's randomness"))?;
    relay::start()?;
    let BootedGuest { cgroup, boot_id, private, .. } = guest;
    let name = RefCell::new(exec_envd::HOSTNAME.to_owned());
    Ok(StartedEnvd { envd, calls: CallHandler { randomness, hostname, name, boot_id, cgroup, private } })
}

/// In a thread of its own, because whoever has a pid namespace for its children can start no more threads.
fn spawn(shm_mib: u32) -> Result<Child, InitError> {
    let start = move || {
        sys::enter_new_namespaces(UnshareFlags::NEWPID)?;
        Command::new("/proc/self/exe")
            .args([EXEC_ENVD, &shm_mib.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
    };
    let started = thread::spawn(start).join().expect("the closure does not panic");
    started.map_err(InitError::kernel("start what becomes envd"))
}

/// Returns the host until envd ends.
fn serve(channel: &mut Channel, started: &StartedEnvd) -> Result<(), InitError> {
    let kernel = |error: rustix::io::Errno| InitError::kernel("wait for the host")(error);
    let queue = epoll::create(CreateFlags::CLOEXEC).map_err(kernel)?;
    let changes = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
    epoll::add(&queue, &*channel, EventData::new_u64(HOST), changes).map_err(kernel)?;
    epoll::add(&queue, &started.envd, EventData::new_u64(ENVD), EventFlags::IN).map_err(kernel)?;
    channel.send(&GuestMessage::Ready {});
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
        answer(channel, &started.calls);
    }
}

fn answer(channel: &mut Channel, calls: &CallHandler) {
    channel.flush();
    for item in channel.read() {
        match item {
            Decoded::Sync => {
                channel.synchronise();
                channel.send(&GuestMessage::Ready {});
            }
            Decoded::Message(request) => {
                let outcome = calls.handle(&request.call);
                channel.send(&GuestMessage::Answer { id: request.id, outcome });
            }
        }
    }
}
