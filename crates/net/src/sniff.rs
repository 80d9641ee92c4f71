//! Reads the host name that a client asks for from the first bytes that it sends: TLS server name
//! or HTTP Host.
//!
//! The bytes are untrusted: every length is checked, and the name is only matched against rules.
//! Functions return [`SniffedName::NeedMore`] until enough bytes have arrived.

/// The host name in the first bytes of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SniffedName {
    /// The client asks for this host.
    Found(String),
    /// There is no name, or the protocol is another one.
    Absent,
    /// More bytes are needed.
    NeedMore,
}

/// Maximum number of bytes to wait for.
pub(crate) const MAX_SNIFFED: usize = 16 * 1024;

/// End of the head of a request.
const HEAD_END: &[u8] = b"\r\n\r\n";

/// Returns the `Host` of an HTTP/1.x request. An earlier call has looked at the first `searched` bytes, and needed more.
pub(crate) fn http_host(bytes: &[u8], searched: usize) -> SniffedName {
    let start = searched.saturating_sub(HEAD_END.len() - 1);
    let Some(end) = bytes.get(start..).and_then(|new| find(new, HEAD_END)) else {
        return if bytes.len() >= MAX_SNIFFED { SniffedName::Absent } else { SniffedName::NeedMore };
    };
    let end = start + end;
    let Ok(head) = std::str::from_utf8(&bytes[..end]) else { return SniffedName::Absent };
    let mut hosts = head.split("\r\n").skip(1).filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("host").then(|| value.trim())
    });
    // Two Host headers are an attempt to be understood differently by two readers.
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => SniffedName::Found(without_port(host).to_ascii_lowercase()),
        _ => SniffedName::Absent,
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// Type of TLS records with handshake messages.
const HANDSHAKE: u8 = 22;

/// Whether the connection begins as TLS does.
pub(crate) fn is_tls(bytes: &[u8]) -> bool {
    bytes.first() == Some(&HANDSHAKE)
}

/// Returns the server name of a TLS ClientHello, which may be in several records.
pub(crate) fn tls_server_name(bytes: &[u8]) -> SniffedName {
    let need_more =
        || if bytes.len() >= MAX_SNIFFED + 5 { SniffedName::Absent } else { SniffedName::NeedMore };
    let mut rest = bytes;
    let mut hello: Vec<u8> = Vec::new();
    loop {
        if rest.first().is_some_and(|kind| *kind != HANDSHAKE) {
            return SniffedName::Absent;
        }
        let Some(&[_, _, _, high, low]) = rest.get(..5) else { return need_more() };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let Some((record, after)) = rest[5..].split_at_checked(length) else { return need_more() };
        hello.extend_from_slice(record);
        rest = after;
        // An empty record is not allowed here, and would make this endless work.
        if record.is_empty() {
            return SniffedName::Absent;
        }
        if let &[_, high, middle, low, ..] = hello.as_slice()
            && hello.len() >= 4 + (usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low))
        {
            break;
        }
    }
    client_hello_name(&hello)
        .map_or(SniffedName::Absent, |name| SniffedName::Found(name.to_ascii_lowercase()))
}

fn client_hello_name(record: &[u8]) -> Option<&str> {
    const CLIENT_HELLO: u8 = 1;
    const SERVER_NAME: u16 = 0;
    let mut hello = ByteReader(record);
    if hello.u8()? != CLIENT_HELLO {
        return None;
    }
    hello.take(3 + 2 + 32)?;
    let session = usize::from(hello.u8()?);
    hello.take(session)?;
    let ciphers = usize::from(hello.u16()?);
    hello.take(ciphers)?;
    let compressions = usize::from(hello.u8()?);
    hello.take(compressions)?;
    let length = usize::from(hello.u16()?);
    let mut extensions = ByteReader(hello.take(length)?);
    loop {
        let kind = extensions.u16()?;
        let length = usize::from(extensions.u16()?);
        let mut body = ByteReader(extensions.take(length)?);
        if kind != SERVER_NAME {
            continue;
        }
        body.u16()?;
        if body.u8()? != 0 {
            return None;
        }
        let length = usize::from(body.u16()?);
        return std::str::from_utf8(body.take(length)?).ok();
    }
}

struct ByteReader<'a>(&'a [u8]);

impl<'a> ByteReader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client_hello(name: &str) -> Vec<u8> {
        let name = name.as_bytes();
        let len = |n: usize| u16::try_from(n).unwrap().to_be_bytes();
        let mut extension = vec![0, 0];
        extension.extend(len(name.len() + 5));
        extension.extend(len(name.len() + 3));
        extension.push(0);
        extension.extend(len(name.len()));
        extension.extend(name);
        let mut extensions = vec![0, 23, 0, 0];
        extensions.extend(extension);
        let mut hello = vec![3, 3];
        hello.extend([7; 32]);
        hello.extend([0, 0, 2, 0x13, 1, 1, 0]);
        hello.extend(len(extensions.len()));
        hello.extend(extensions);
        let mut record = vec![1, 0];
        record.extend(len(hello.len()));
        record.extend(hello);
        in_records(&record, record.len())
    }

    /// Splits a message into records of at most `size` bytes.
    fn in_records(message: &[u8], size: usize) -> Vec<u8> {
        let records = message.chunks(size).flat_map(|part| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[22, 3, 1][..], &length, part].concat()
        });
        records.collect()
    }

    #[test]
    fn finds_the_server_name_in_several_records() {
        let hello = client_hello("example.com");
        for size in 1..hello.len() {
            let split = in_records(&hello[5..], size);
            assert_eq!(tls_server_name(&split), SniffedName::Found("example.com".into()), "{size}");
            assert_eq!(tls_server_name(&split[..split.len() - 1]), SniffedName::NeedMore, "{size}");
        }
        let empty = [&[22, 3, 1, 0, 0][..], &hello].concat();
        assert_eq!(tls_server_name(&empty), SniffedName::Absent);
    }

    #[test]
    fn finds_the_server_name_once_the_record_is_complete() {
        let hello = client_hello("Example.com");
        for cut in 1..hello.len() {
            assert_eq!(tls_server_name(&hello[..cut]), SniffedName::NeedMore, "{cut}");
        }
        assert_eq!(tls_server_name(&hello), SniffedName::Found("example.com".into()));
        assert_eq!(tls_server_name(b"GET / HTTP/1.1\r\n"), SniffedName::Absent);
    }

    #[test]
    fn finds_one_host_header_and_no_second() {
        assert_eq!(http_host(b"GET / HTTP/1.1\r\nhOst: A.b:80\r\n\r\n", 0), SniffedName::Found("a.b".into()));
        assert_eq!(http_host(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 0), SniffedName::Absent);
        assert_eq!(http_host(b"GET / HTTP/1.1\r\nHost: a\r\n", 0), SniffedName::NeedMore);
        assert_eq!(
            http_host(b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", 0),
            SniffedName::Found("[::1]".into())
        );
    }

    #[test]
    fn finds_the_host_however_the_request_arrives() {
        let request = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\nbody";
        let head = request.len() - 4;
        for step in 1..head {
            let mut lengths = (0..head).step_by(step).skip(1).chain([head]);
            let mut searched = 0;
            let found = lengths.find_map(|length| {
                let host = http_host(&request[..length], searched);
                searched = length;
                (host != SniffedName::NeedMore).then_some((length, host))
            });
            assert_eq!(found, Some((head, SniffedName::Found("a.example".into()))), "{step}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = tls_server_name(&bytes);
            let _ = http_host(&bytes, bytes.len() / 2);
            let mut hello = client_hello("a.example");
            let at = bytes.len() % hello.len();
            hello[at] = bytes.first().copied().unwrap_or(255);
            let _ = tls_server_name(&hello);
        }
    }
}
