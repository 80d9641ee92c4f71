//! The PostgreSQL store against the suite of all stores, and what only it has.
//! One server for all cases, a database for each.
//! Needs root and Debian's `postgresql`.

#![cfg(feature = "postgres")]
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicU32, Ordering};

use common::Server;
use store::{PostgresStore, Store, StoreError};

#[tokio::test]
async fn passes_the_store_suite() {
    let server = Server::start();
    let count = AtomicU32::new(0);
    store::suite::run(|| async {
        let url = server.create(&format!("case{}", count.fetch_add(1, Ordering::Relaxed)));
        (PostgresStore::open(&url).await.unwrap(), ())
    })
    .await;
}

#[tokio::test]
async fn records_survive_reopening() {
    let server = Server::start();
    let url = server.create("state");
    let first = PostgresStore::open(&url).await.unwrap();
    let seed = first.secret("seed", &[7; 32]).await.unwrap();
    first.close().await;
    let second = PostgresStore::open(&url).await.unwrap();
    assert_eq!(second.secret("seed", &[8; 32]).await.unwrap(), seed);
    second.close().await;
}

#[tokio::test]
async fn one_server_at_a_time() {
    let server = Server::start();
    let url = server.create("state");
    let first = PostgresStore::open(&url).await.unwrap();
    let refused = PostgresStore::open(&url).await.unwrap_err();
    assert!(matches!(refused, StoreError::InUse), "{refused}");
    // Not closed, only dropped, as by a crash.
    drop(first);
    PostgresStore::open(&url).await.unwrap().close().await;
}

#[tokio::test]
async fn a_wrong_address_is_said_so() {
    let server = Server::start();
    let error = PostgresStore::open(&server.url("none")).await.unwrap_err().to_string();
    assert!(error.contains("\"none\" does not exist"), "{error}");
    let error = PostgresStore::open("postgres://u:secret@127.0.0.1:1/x").await.unwrap_err().to_string();
    assert!(error.contains("refused") && !error.contains("secret"), "{error}");
    assert!(PostgresStore::open("mysql://x").await.is_err());
}
