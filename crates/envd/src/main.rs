//! Starts envd: opens its socket, reaps the sandbox's orphans if it is PID 1, and serves.
//! One thread runs everything but filesystem calls, which run on a few blocking threads.
//! The only environment variable it reads is `PATH`.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use envd::args::{self, Args, Command, Listen};
use envd::process::{reaper, start};
use envd::rest::system;
use envd::state::Envd;
use envd::{connect, listen, pack, server, sys};

#[global_allocator]
static ALLOCATOR: envd::alloc::BlockCache = envd::alloc::BlockCache;

/// Maximum number of threads for filesystem calls.
const BLOCKING_THREADS: usize = 32;

/// Idle threads are kept: when the sandbox has reached its process limit, no new one can be started.
const KEEP_THREADS: Duration = Duration::from_secs(365 * 24 * 3600);

fn main() -> ExitCode {
    let args = match args::parse(std::env::args_os().skip(1)) {
        Ok(Command::Version) => {
            let _ = writeln!(io::stdout(), "{}", envd_api::VERSION);
            return ExitCode::SUCCESS;
        }
        Ok(Command::Pack(pattern)) => {
            return outcome(pack::pack(&pattern, io::stdout().lock()));
        }
        Ok(Command::Sftp) => return outcome(sftp::serve(io::stdin().lock(), io::stdout().lock())),
        Ok(Command::Connect(host, port)) => return outcome(connect::connect(&host, port)),
        Ok(Command::Listen(address, port)) => return outcome(listen::listen(address, port)),
        Ok(Command::Take(listening, number)) => return outcome(listen::take(listening, number)),
        Ok(Command::Serve(args)) => args,
        Err(error) => return fail(&error.to_string()),
    };
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

fn outcome(outcome: io::Result<()>) -> ExitCode {
    outcome.map_or_else(|error| fail(&error.to_string()), |()| ExitCode::SUCCESS)
}

fn fail(message: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "envd: {message}");
    ExitCode::FAILURE
}

fn run(args: Args) -> io::Result<()> {
    let listener = match args.listen {
        Listen::Fd(fd) => {
            sys::close_inherited(Some(fd));
            sys::inherited_listener(fd)?
        }
        Listen::Port(port) => {
            sys::close_inherited(None);
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
            writeln!(io::stdout(), "{}", listener.local_addr()?)?;
            listener
        }
    };
    listener.set_nonblocking(true)?;
    if std::process::id() == 1 {
        // Leave the session of the program that started the sandbox. Fails only if envd leads a session already.
        let _ = rustix::process::setsid();
        let _ = std::env::set_current_dir("/");
        let _ = system::write_markers(&args.system_root, None, None);
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    start::raise_open_files();

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(KEEP_THREADS)
        .thread_stack_size(256 * 1024)
        .build()?;
    runtime.block_on(async {
        let envd = Arc::new(Envd::new(args.system_root));
        tokio::spawn(reaper::run(Arc::clone(&envd), reaper::listen()?));
        // Start the first blocking thread before user code can use up the process limit.
        tokio::task::spawn_blocking(|| {});
        server::run(envd, tokio::net::TcpListener::from_std(listener)?, args.server).await;
        Ok(())
    })
}
