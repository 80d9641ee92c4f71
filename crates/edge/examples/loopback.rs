//! A server with loopback sandboxes, to try official clients on: `cargo run -p edge --example loopback 3000`.
#![allow(missing_docs)]

use control::testing::Fixture;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok()).unwrap_or(0u16);
    let fixture = Fixture::new().await;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("export E2B_API_KEY={}", fixture.key);
    println!("export E2B_API_URL=http://{}", listener.local_addr()?);
    println!("export E2B_SANDBOX_URL=http://{}", listener.local_addr()?);
    let api = api::router(fixture.control.clone(), api::ApiConfig::default());
    let closed = std::future::pending();
    edge::serve(
        vec![edge::Listener { socket: listener, protocol: edge::Protocol::Plain, has_proxy_header: false }],
        api,
        fixture.control.clone(),
        edge::EdgeConfig::default(),
        closed,
    )
    .await
}
