//! Forwarded connections (`ssh -L`, `-D` and `-R`): to a port inside the sandbox as the edge makes them, to other hosts by `envd connect`
//! inside, so that the sandbox's own rules apply, and from a port inside by `envd listen` and `envd take`.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use cofferdam_client::{ProcessEvent, RunOptions, RunningProcess};
use russh::server::{ChannelOpenHandle, Handle, Msg};
use russh::{Channel, ChannelMsg, ChannelOpenFailure};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use crate::target::Target;

/// Makes the connection, tells the client whether it stands, and copies until both sides have ended.
pub(crate) async fn run(
    target: Target,
    channel: Channel<Msg>,
    reply: ChannelOpenHandle,
    host: &str,
    port: u16,
) {
    if is_inside(host) {
        let dialled = match target.running().await {
            Ok(running) => running.dial(port).await.map_err(|error| error.to_string()),
            Err(reason) => Err(reason),
        };
        match dialled {
            Ok(mut stream) => {
                reply.accept().await;
                let _ = tokio::io::copy_bidirectional(&mut channel.into_stream(), &mut stream).await;
            }
            Err(reason) => refuse(reply, &reason).await,
        }
        return;
    }
    match connect_outside(&target, host, port).await {
        Ok((process, first)) => {
            reply.accept().await;
            copy(channel, process, first).await;
        }
        Err(reason) => refuse(reply, &reason).await,
    }
}

async fn refuse(reply: ChannelOpenHandle, reason: &str) {
    debug!(reason, "a connection could not be forwarded");
    reply.reject(ChannelOpenFailure::ConnectFailed).await;
}

fn is_inside(host: &str) -> bool {
    host == "localhost"
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback() || address.is_unspecified())
}

async fn start(target: &Target, words: &str) -> Result<RunningProcess, String> {
    let options = RunOptions { timeout: None, stdin: true, ..RunOptions::default() };
    let sandbox = target.processes().await?;
    let started = sandbox.commands().start(&format!("exec /usr/bin/envd {words}"), options).await;
    started.map_err(|error| error.to_string())
}

/// Connects to another host than the sandbox.
async fn connect_outside(
    target: &Target,
    host: &str,
    port: u16,
) -> Result<(RunningProcess, Vec<u8>), String> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    if host.is_empty() || host.len() > 253 || host.starts_with('-') || !host.bytes().all(is_name) {
        return Err("that is no host name".to_owned());
    }
    connected(target, &format!("connect {host} {port}")).await
}

/// Starts envd with these words; returns it once it is connected, with what came after its first byte.
async fn connected(target: &Target, words: &str) -> Result<(RunningProcess, Vec<u8>), String> {
    let mut process = start(target, words).await?;
    let failed = |error: cofferdam_client::Error| error.to_string();
    loop {
        match process.next().await.map_err(failed)? {
            Some(ProcessEvent::Stdout(bytes)) if bytes.first() == Some(&0) => {
                return Ok((process, bytes[1..].to_vec()));
            }
            Some(ProcessEvent::Stderr(bytes)) => {
                debug!(text = %String::from_utf8_lossy(&bytes), "envd connect");
            }
            Some(_) | None => return Err("the host cannot be reached".to_owned()),
        }
    }
}

/// Copies between a channel and a process's standard streams.
async fn copy(channel: Channel<Msg>, mut process: RunningProcess, first: Vec<u8>) {
    let (mut from_client, to_client) = channel.split();
    let input = process.process();
    let sending = async {
        while let Some(message) = from_client.wait().await {
            let taken = match message {
                ChannelMsg::Data { data } => input.send_stdin(data).await,
                ChannelMsg::Eof => input.close_stdin().await,
                ChannelMsg::Close => break,
                _ => Ok(()),
            };
            if taken.is_err() {
                break;
            }
        }
    };
    let receiving = async {
        let mut received = first.len() as u64;
        if !first.is_empty() && to_client.data_bytes(first).await.is_err() {
            return;
        }
        // How much the other end has sent when it ended; it may still receive.
        let mut total = None;
        while let Ok(Some(event)) = process.next().await {
            let sent = match event {
                ProcessEvent::Stdout(bytes) => {
                    received += bytes.len() as u64;
                    to_client.data_bytes(bytes).await
                }
                ProcessEvent::Stderr(bytes) => {
                    total = String::from_utf8_lossy(&bytes).trim().parse::<u64>().ok();
                    Ok(())
                }
                ProcessEvent::Exited(_) => break,
                ProcessEvent::Pty(_) => Ok(()),
            };
            if sent.is_err() {
                break;
            }
            if total.take_if(|total| received >= *total).is_some() && to_client.eof().await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = sending => {}
        () = receiving => {}
    }
    let _ = to_client.eof().await;
    let _ = to_client.close().await;
    let _ = input.kill().await;
}

/// A port inside that connections come from (`ssh -R`). Dropping it ends the listening; connections that stand stay.
pub(crate) struct Listening {
    pub(crate) port: u16,
    _end: DropGuard,
}

/// Listens inside the sandbox, on an address of it or else its loopback. Each connection becomes a channel to the client, for which
/// `channels` has places.
///
/// # Errors
/// A sentence: the port is not free, or the sandbox cannot be reached.
pub(crate) async fn listen(
    target: Target,
    handle: Handle,
    channels: Arc<Semaphore>,
    address: &str,
    port: u16,
) -> Result<Listening, String> {
    let inside: IpAddr = address.parse().unwrap_or(Ipv4Addr::LOCALHOST.into());
    let mut process = start(&target, &format!("listen {inside} {port}")).await?;
    let mut lines = Lines::default();
    let first = lines.next(&mut process).await.ok_or("the port is not free in the sandbox")?;
    let port = first.parse().map_err(|_| "envd did not name its port")?;
    let end = CancellationToken::new();
    let listening = Listening { port, _end: end.clone().drop_guard() };
    let address = address.to_owned();
    tokio::spawn(async move {
        let forwarded = async {
            while let Some(line) = lines.next(&mut process).await {
                let Some((number, from)) = line.split_once(' ') else { return };
                let Ok(permit) = Arc::clone(&channels).try_acquire_owned() else { continue };
                let (target, handle, address) = (target.clone(), handle.clone(), address.clone());
                let words = format!("take {} {number}", process.pid());
                let from = from.parse().unwrap_or(0);
                tokio::spawn(async move {
                    hand_to_client(&target, &handle, &words, (address, port), from).await;
                    drop(permit);
                });
            }
        };
        tokio::select! {
            () = forwarded => {}
            () = end.cancelled() => {}
        }
        let _ = process.kill().await;
    });
    Ok(listening)
}

/// Makes one connection of a port inside a channel to the client.
async fn hand_to_client(target: &Target, handle: &Handle, words: &str, at: (String, u16), from: u32) {
    let taken = connected(target, words).await;
    let Ok((process, first)) = taken.inspect_err(|reason| debug!(reason, "a connection was not taken"))
    else {
        return;
    };
    let opened = handle.channel_open_forwarded_tcpip(at.0, at.1.into(), "127.0.0.1".to_owned(), from).await;
    match opened {
        Ok(channel) => copy(channel, process, first).await,
        Err(error) => {
            debug!(%error, "the client takes no connection");
            let _ = process.kill().await;
        }
    }
}

/// The lines of a process's output.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    /// Maximum length of a line: those of `envd listen` are short.
    const MAX: usize = 64;

    /// Returns the next line, or `None` if the process has ended or writes what is no short line.
    async fn next(&mut self, process: &mut RunningProcess) -> Option<String> {
        loop {
            if let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.0.drain(..=end).collect();
                return Some(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            if self.0.len() > Self::MAX {
                return None;
            }
            match process.next().await.ok()?? {
                ProcessEvent::Stdout(bytes) => self.0.extend_from_slice(&bytes),
                ProcessEvent::Exited(_) => return None,
                _ => {}
            }
        }
    }
}
