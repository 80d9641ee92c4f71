//! The relay: a port of the guest agent that accepts connections from the host's end of the link
//! only.
//!
//! A connection begins with one line that says what it is for. `connect` reaches services that
//! listen on `::1` only (`127.0.0.1` is reached directly); `export` is answered with what user code
//! changed in the template's files, in the format of `layers::write_layer`.

/// Port of the relay, on the guest's IPv4 address. It is above the range from which Linux chooses
/// ports of clients.
pub const RELAY_PORT: u16 = 61_983;
/// Maximum length of a line including its end, bytes.
pub const MAX_LINE: usize = 64;
/// Answer to a `connect` that was accepted; from then on bytes are forwarded.
pub const OK: &str = "ok\n";
/// Answer to a `connect` to a port where nothing listens; the connection is then closed.
pub const REFUSED: &str = "refused\n";
/// The request at the start of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayRequest {
    /// Forward to `[::1]:port`.
    Connect(u16),
    /// Send the upper directory of the overlay as a layer.
    Export,
}

impl RelayRequest {
    /// Returns the line that begins a connection.
    #[must_use]
    pub fn to_line(self) -> String {
        match self {
            Self::Connect(port) => format!("connect {port}\n"),
            Self::Export => "export\n".to_owned(),
        }
    }

    /// Parses a line, with or without its end; `None` if it is not a request.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        match line.strip_suffix('\n').unwrap_or(line) {
            "export" => Some(Self::Export),
            line => {
                let port = line.strip_prefix("connect ")?.parse().ok()?;
                (port != 0).then_some(Self::Connect(port))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed_as_written() {
        for request in [RelayRequest::Export, RelayRequest::Connect(1), RelayRequest::Connect(65_535)] {
            assert_eq!(RelayRequest::parse(&request.to_line()), Some(request));
            assert!(request.to_line().len() <= MAX_LINE);
        }
        for line in ["", "connect", "connect x", "connect 0", "connect 65536", "exports", " export"] {
            assert_eq!(RelayRequest::parse(line), None, "{line}");
        }
    }
}
