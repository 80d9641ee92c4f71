//! Input to a process: writes bytes to its standard input or its terminal, completely and in order.
//! A writer waits while the process does not read; other writers wait for the first.

use std::os::fd::OwnedFd;

use connectrpc::ConnectError;
use envd_api::process::process_input::Input as Bytes;
use tokio::io::unix::AsyncFd;

use crate::process::registry::{InputTarget, Process};

/// Writes input. Fails if the process does not take this type of input.
pub async fn send(process: &Process, bytes: Option<&Bytes>) -> Result<(), ConnectError> {
    let input = process.input.lock().await;
    match (&*input, bytes) {
        (_, None) => Err(ConnectError::unimplemented("invalid input type: neither stdin nor pty")),
        (InputTarget::Pipe(Some(pipe)), Some(Bytes::Stdin(bytes))) => write_all(pipe, bytes, "stdin").await,
        (InputTarget::Pipe(None), Some(Bytes::Stdin(_))) => {
            Err(ConnectError::internal("error writing to stdin: stdin not enabled or closed"))
        }
        (InputTarget::Pipe(_), Some(Bytes::Pty(_))) => {
            Err(ConnectError::internal("error writing to tty: tty not assigned to process"))
        }
        (InputTarget::Terminal, Some(Bytes::Stdin(_))) => Err(ConnectError::internal(
            "error writing to stdin: tty assigned to process — input should be written to the pty, not the stdin",
        )),
        (InputTarget::Terminal, Some(Bytes::Pty(bytes))) => match &process.terminal {
            Some(terminal) => write_all(terminal, bytes, "tty").await,
            None => Err(ConnectError::internal("error writing to tty: tty not assigned to process")),
        },
    }
}

/// Closes standard input, after earlier writers.
pub async fn close(process: &Process) -> Result<(), ConnectError> {
    match &mut *process.input.lock().await {
        InputTarget::Pipe(pipe) => {
            pipe.take();
            Ok(())
        }
        InputTarget::Terminal => Err(ConnectError::unknown(
            "error closing stdin: cannot close stdin for PTY process — send Ctrl+D (0x04) instead",
        )),
    }
}

async fn write_all(fd: &AsyncFd<OwnedFd>, mut bytes: &[u8], what: &str) -> Result<(), ConnectError> {
    let failed = |error: std::io::Error| ConnectError::internal(format!("error writing to {what}: {error}"));
    while !bytes.is_empty() {
        let mut ready = fd.writable().await.map_err(failed)?;
        match ready.try_io(|fd| rustix::io::write(fd, bytes).map_err(Into::into)) {
            Ok(Ok(written)) => bytes = &bytes[written..],
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(failed(error)),
            Err(_not_ready) => {}
        }
    }
    Ok(())
}
