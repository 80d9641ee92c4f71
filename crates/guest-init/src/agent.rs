//! The guest agent: prepares the sandbox, reports that it is ready, and handles requests until envd
//! ends.
//!
//! One thread waits for the host and for envd; relayed connections have threads of their own. The
//! guest agent is not frozen with user code, and the kernel's OOM killer spares it.

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

/// Runs the guest agent; returns why it ended.
pub(crate) fn run() -> InitError {
    let mut events = None;
    let mut channel = match boot::mount_and_open_channel(&mut events) {
        Ok(channel) => channel,
        Err(error) => return error,
    };
    // Errors up to here can be reported on the console only.
    let failure = boot::prepare_sandbox(&events.expect("set with the channel")).and_then(start).map_or_else(
        |error| error,
        |sandbox| match serve(&mut channel, &sandbox) {
            Ok(()) => InitError::Ended,
            Err(error) => error,
        },
    );
    channel.send(&GuestMessage::Broken { reason: failure.to_string() });
    failure
}

/// Powers off; QEMU ends.
pub(crate) fn power_off() -> ! {
    let _ = reboot(RebootCommand::PowerOff);
    // If the first process exits, the kernel panics, which ends QEMU too.
    std::process::exit(1)
}

/// envd, and what the handling of requests needs.
struct StartedEnvd {
    envd: OwnedFd,
    calls: CallHandler,
}

fn start(guest: BootedGuest) -> Result<StartedEnvd, InitError> {
    fs::write("/proc/self/oom_score_adj", "-1000")
        .map_err(InitError::kernel("protect the guest agent from the OOM killer"))?;
    let mut child = spawn(guest.options.shm_mib)?;
    let output = std::io::read_to_string(child.stdout.take().expect("piped in spawn"));
    // Successful children write nothing, and their output is closed when they execute envd.
    match output.map_err(InitError::kernel("read the output of envd's start"))? {
        output if output.is_empty() => {}
        output => return Err(InitError::Envd(output)),
    }
    let id = child.id().cast_signed();
    let pid = Pid::from_raw(id).expect("a started process has an id");
    let envd = pidfd_open(pid, PidfdFlags::empty()).map_err(InitError::kernel("watch envd"))?;
    let hostname =
        Namespace::of_process(id, "uts").map_err(InitError::kernel("open envd's UTS namespace"))?;
    let randomness = fs::File::options().write(true).open("/dev/urandom");
    let randomness = randomness.map_err(InitError::kernel("open /dev/urandom"))?;
    relay::start()?;
    let BootedGuest { cgroup, boot_id, private, .. } = guest;
    let name = RefCell::new(exec_envd::HOSTNAME.to_owned());
    Ok(StartedEnvd { envd, calls: CallHandler { randomness, hostname, name, boot_id, cgroup, private } })
}

/// Starts the child that executes envd in a new PID namespace. On a thread of its own, because a
/// thread whose children get a new PID namespace can start no more threads.
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
    started.map_err(InitError::kernel("start the child for envd"))
}

/// Handles requests of the host until envd ends.
///
/// # Errors
/// The kernel refuses to wait for events.
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
        handle_requests(channel, &started.calls);
    }
}

fn handle_requests(channel: &mut Channel, calls: &CallHandler) {
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
