//! Holding back TCP in a sandbox's namespace while CRIU creates its sockets, one after the other: what a socket sends to one that does
//! not exist yet would be refused, and end the connection. Packets are dropped; the sockets send them again.

use std::io;

use rustix::net::netlink;
use sys::netlink::{Batch, REQUEST_ACK};
use sys::{Namespace, in_network_namespace};

use crate::redirect::{
    BATCH, BATCH_BEGIN, BATCH_END, BEFORE_ALL, DELETE_CHAIN, DELETE_RULE, DROP, Hook, INET, META_L4PROTO,
    META_MARK, NOT_EQUAL, REQUEST, TABLE, TCP, chain, meta, meta_is, register, rule, verdict,
};

const CHAIN: &str = "restore";
/// `SOCCR_MARK`: packets that CRIU sends itself, in the name of a connection's other end, to bring a socket into its state.
const CRIU_MARK: u32 = 0xC114;

/// Drops all TCP packets in a namespace that [`configure`](crate::configure) has configured, except CRIU's own.
///
/// # Errors
/// The kernel refused.
pub fn hold_tcp(namespace: &Namespace) -> io::Result<()> {
    change(namespace, |batch| {
        chain(batch, CHAIN, "filter", Hook::LocalOut, BEFORE_ALL);
        rule(batch, CHAIN, |rule| {
            meta_is(rule, META_L4PROTO, TCP);
            meta(rule, META_MARK);
            register(rule, NOT_EQUAL, &CRIU_MARK.to_ne_bytes());
            verdict(rule, DROP);
        });
    })
}

/// Lets TCP pass again after [`hold_tcp`].
///
/// # Errors
/// The kernel refused.
pub fn release_tcp(namespace: &Namespace) -> io::Result<()> {
    change(namespace, |batch| {
        batch.begin(DELETE_RULE, REQUEST_ACK, &INET).text(1, TABLE).text(2, CHAIN).finish();
        batch.begin(DELETE_CHAIN, REQUEST_ACK, &INET).text(1, TABLE).text(3, CHAIN).finish();
    })
}

fn change(namespace: &Namespace, changes: impl FnOnce(&mut Batch) + Send) -> io::Result<()> {
    in_network_namespace(namespace, || {
        let mut batch = Batch::default();
        batch.begin(BATCH_BEGIN, REQUEST, &BATCH).finish();
        changes(&mut batch);
        batch.begin(BATCH_END, REQUEST, &BATCH).finish();
        batch.exchange(Some(netlink::NETFILTER))?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;
    use crate::configure;

    #[test]
    fn a_connection_waits_while_tcp_is_held_and_loses_nothing() {
        let namespace = Namespace::new_network().unwrap();
        configure(&namespace).unwrap();
        let (mut client, mut server) = in_network_namespace(&namespace, || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let client = TcpStream::connect(listener.local_addr()?)?;
            Ok((client, listener.accept()?.0))
        })
        .unwrap();
        hold_tcp(&namespace).unwrap();
        client.write_all(b"late").unwrap();
        server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut received = [0; 4];
        assert!(server.read_exact(&mut received).is_err());
        release_tcp(&namespace).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        server.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"late");
        // It can be done again.
        hold_tcp(&namespace).unwrap();
        release_tcp(&namespace).unwrap();
    }
}
