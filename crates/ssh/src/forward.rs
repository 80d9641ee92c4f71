//! Forwarded connections (`ssh -L` and `-D`): to a port inside the sandbox as the edge makes them, to other hosts by `envd connect` inside, so
//! that the sandbox's own rules apply.

use std::net::IpAddr;

use cofferdam_client::{ProcessEvent, RunOptions, RunningProcess};
use russh::server::{ChannelOpenHandle, Msg};
use russh::{Channel, ChannelMsg, ChannelOpenFailure};
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

/// Starts `envd connect`; returns it once it is connected, with what came after its first byte.
async fn connect_outside(
    target: &Target,
    host: &str,
    port: u16,
) -> Result<(RunningProcess, Vec<u8>), String> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    if host.is_empty() || host.len() > 253 || host.starts_with('-') || !host.bytes().all(is_name) {
        return Err("that is no host name".to_owned());
    }
    let sandbox = target.processes().await?;
    let options = RunOptions { timeout: None, stdin: true, ..RunOptions::default() };
    let command = format!("exec /usr/bin/envd connect {host} {port}");
    let failed = |error: cofferdam_client::Error| error.to_string();
    let mut process = sandbox.commands().start(&command, options).await.map_err(failed)?;
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
        if !first.is_empty() && to_client.data_bytes(first).await.is_err() {
            return;
        }
        while let Ok(Some(event)) = process.next().await {
            let sent = match event {
                ProcessEvent::Stdout(bytes) => to_client.data_bytes(bytes).await,
                ProcessEvent::Exited(_) => break,
                _ => Ok(()),
            };
            if sent.is_err() {
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
