//! The PROXY protocol, version 2: what a proxy that passes bytes on writes before the first of them, to name the client.
//! <https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::io::{AsyncRead, AsyncReadExt};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Maximum size of what follows the fixed part. Proxies send some hundred bytes, with a client's certificate a few thousand.
const MAX_REST: usize = 8 << 10;
const TYPE_SSL: u8 = 0x20;
/// The client spoke TLS with the proxy.
const CLIENT_SSL: u8 = 0x01;

/// What the header says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The client's address. `None` for connections of the proxy itself, and from sockets that are not of IP.
    pub(crate) client: Option<IpAddr>,
    /// The client spoke TLS with the proxy.
    pub(crate) is_tls: bool,
}

/// Reads a header, and nothing after it.
///
/// # Errors
/// There is none, or it is malformed.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Header> {
    let mut fixed = [0; 16];
    stream.read_exact(&mut fixed).await?;
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if fixed[..12] != SIGNATURE || fixed[12] >> 4 != 2 || length > MAX_REST {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    parse(fixed[12] & 0xf, fixed[13], &rest).ok_or_else(|| ErrorKind::InvalidData.into())
}

fn parse(command: u8, family: u8, rest: &[u8]) -> Option<Header> {
    const LOCAL: u8 = 0;
    const PROXY: u8 = 1;
    match command {
        LOCAL => return Some(Header { client: None, is_tls: false }),
        PROXY => {}
        _ => return None,
    }
    let (client, extensions) = match family >> 4 {
        1 => {
            let (addresses, extensions) = rest.split_at_checked(12)?;
            let client: [u8; 4] = addresses[..4].try_into().ok()?;
            (Some(IpAddr::from(Ipv4Addr::from(client))), extensions)
        }
        2 => {
            let (addresses, extensions) = rest.split_at_checked(36)?;
            let client: [u8; 16] = addresses[..16].try_into().ok()?;
            (Some(Ipv6Addr::from(client).to_canonical()), extensions)
        }
        _ => return Some(Header { client: None, is_tls: false }),
    };
    Some(Header { client, is_tls: is_tls(extensions) })
}

/// Whether the extensions, which are type, length and value each, say that the client spoke TLS.
fn is_tls(mut extensions: &[u8]) -> bool {
    while let [kind, high, low, rest @ ..] = extensions {
        let Some((value, next)) = rest.split_at_checked(usize::from(u16::from_be_bytes([*high, *low])))
        else {
            return false;
        };
        if *kind == TYPE_SSL {
            return value.first().is_some_and(|bits| bits & CLIENT_SSL != 0);
        }
        extensions = next;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[0x20 | command, family], &length, rest].concat()
    }

    #[tokio::test]
    async fn headers_name_clients_and_end_where_the_request_begins() {
        let v4 = [192, 0, 2, 7, 127, 0, 0, 1, 0x30, 0x39, 0, 80];
        let tls = [&v4[..], &[0x04, 0, 1, 0, TYPE_SSL, 0, 5, CLIENT_SSL, 0, 0, 0, 0]].concat();
        let mut v6 = [0; 36];
        v6[..16].copy_from_slice(&"2001:db8::7".parse::<Ipv6Addr>().unwrap().octets());
        let client = |text: &str| Some(text.parse().unwrap());
        for (bytes, expected) in [
            (header(1, 0x11, &v4), Header { client: client("192.0.2.7"), is_tls: false }),
            (header(1, 0x11, &tls), Header { client: client("192.0.2.7"), is_tls: true }),
            (header(1, 0x21, &v6), Header { client: client("2001:db8::7"), is_tls: false }),
            (header(1, 0x31, &[0; 216]), Header { client: None, is_tls: false }),
            (header(0, 0, &[]), Header { client: None, is_tls: false }),
        ] {
            let stream = [&bytes[..], b"GET /"].concat();
            let mut stream = &stream[..];
            assert_eq!(read(&mut stream).await.unwrap(), expected);
            assert_eq!(stream, b"GET /");
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let mut version_1 = header(1, 0x11, &[0; 12]);
        version_1[12] = 0x11;
        let mut long = header(1, 0x11, &[0; 12]);
        long[14] = 0xff;
        for bytes in [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 127.0.0.1 1 2\r\n".to_vec(),
            version_1,
            long,
            header(1, 0x11, &[0; 11]),
            header(7, 0x11, &[0; 12]),
            SIGNATURE.to_vec(),
        ] {
            assert!(read(&mut &bytes[..]).await.is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn damaged_extensions_say_nothing() {
        for bytes in [&[TYPE_SSL][..], &[TYPE_SSL, 0, 9, 1], &[1, 0xff, 0xff], &[TYPE_SSL, 0, 0]] {
            assert!(!is_tls(bytes), "{bytes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(command: u8, family: u8, rest in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let whole = header(command, family, &rest);
            let _ = runtime.block_on(read(&mut whole.as_slice()));
            let _ = runtime.block_on(read(&mut rest.as_slice()));
        }
    }
}
