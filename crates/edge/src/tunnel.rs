//! Copies bytes in both directions after a protocol switch, until one side closes or the sandbox ends.
//! A side that has stopped sending may still receive.
//! The client's connection is reset when the sandbox ends.

use std::sync::Arc;

use budget::Share;
use control::RunningSandbox;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

use crate::closing::Resetter;

/// Copies between the two connections once both have switched. Returns when the tunnel has ended.
pub(crate) async fn run(
    client: OnUpgrade,
    server: OnUpgrade,
    live: Arc<RunningSandbox>,
    resetter: Resetter,
    share: Option<Arc<Share>>,
    cut: CancellationToken,
) {
    let (client, server) = match tokio::try_join!(client, server) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(sandbox_id = %live.id, %error, "failed to switch protocols");
            return;
        }
    };
    let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
    tokio::select! {
        biased;
        () = live.wait_ended() => resetter.reset(),
        () = cut.cancelled() => {}
        () = revoked(share.as_deref()) => resetter.reset(),
        copied = stream_copy::copy_bidirectional(&mut client, &mut server) => {
            if copied.is_err() || live.has_ended() {
                resetter.reset();
            }
        }
    }
}

/// Resolves when the connection to the sandbox must be given up for others.
async fn revoked(share: Option<&Share>) {
    match share {
        Some(share) => share.revoked().await,
        None => std::future::pending().await,
    }
}
