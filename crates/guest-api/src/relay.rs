//! The relay: a port of the agent that only the host's end of the link may use.
//! A connection begins with one line that says what it is for. `connect` reaches services that listen on `::1` only (`127.0.0.1`
//! is reached directly); `export` answers with what user code changed of the template, as `layers::write_layer` writes it.

/// Where the agent listens, on the guest's IPv4 address. Above the ports that Linux gives to clients by itself.
pub const RELAY_PORT: u16 = 61_983;
/// Most bytes of a line with its end.
pub const MAX_LINE: usize = 64;
/// Answer to a `connect` that was accepted; from here on bytes are passed on.
pub const OK: &str = "ok\n";
/// Answer to a `connect` to a port where nothing listens; the connection is then closed.
pub const REFUSED: &str = "refused\n";
/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayRequest {
    /// Pass on to `[::1]:port`.
    Connect(u16),
    /// Send the upper layer.
    Export,
}

impl RelayRequest {
    /// The first line of a connection.
    #[must_use]
    pub fn to_line(self) -> String {
        match self {
            Self::Connect(port) => format!("connect {port}\n"),
            Self::Export => "export\n".to_owned(),
        }
    }

    /// Reads a line, with or without its end.
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
    fn lines_come_back() {
        for request in [RelayRequest::Export, RelayRequest::Connect(1), RelayRequest::Connect(65_535)] {
            assert_eq!(RelayRequest::parse(&request.to_line()), Some(request));
            assert!(request.to_line().len() <= MAX_LINE);
        }
        for line in ["", "connect", "connect x", "connect 0", "connect 65536", "exports", " export"] {
            assert_eq!(RelayRequest::parse(line), None, "{line}");
        }
    }
}
