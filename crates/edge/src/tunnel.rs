//! After a protocol switch: bytes both ways, whatever they mean, until one side ends or the sandbox does.
//! A side that stops sending may still receive.
//! The end of the sandbox is a reset for the client, like everywhere else.

use std::sync::Arc;

use control::Live;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional_with_sizes;
use tokio_util::sync::CancellationToken;

use crate::connection::Resetter;

const BUFFER: usize = 64 << 10;

/// Joins the two connections once both have switched.
pub(crate) async fn run(
    client: OnUpgrade,
    server: OnUpgrade,
    live: Arc<Live>,
    resetter: Resetter,
    cut: CancellationToken,
) {
    let (client, server) = match tokio::try_join!(client, server) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(sandbox_id = %live.id, %error, "a protocol switch failed");
            return;
        }
    };
    let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
    tokio::select! {
        biased;
        () = live.wait_ended() => resetter.reset(),
        () = cut.cancelled() => {}
        copied = copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER) => {
            if copied.is_err() || live.has_ended() {
                resetter.reset();
            }
        }
    }
}
