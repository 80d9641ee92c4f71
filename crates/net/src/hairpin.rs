//! Public hosts of sandboxes (`<port>-<id>.<domain>`), as sandboxes themselves reach them: without leaving the machine.
//!
//! The names lead to the server's own address, which sandboxes may not connect to. The gateway reads the name, and connects to a socket
//! of the server that serves public hosts of sandboxes alone, with the same checks as from outside.

use std::net::SocketAddr;

/// How public hosts of sandboxes are reached from inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hairpin {
    /// The server's domain, in lower case.
    pub domain: String,
    /// The socket of the server that serves them, without TLS.
    pub address: SocketAddr,
    /// The ports that clients reach them at by TLS.
    pub tls_ports: Vec<u16>,
}

impl Hairpin {
    /// Whether the host, in lower case, is a public one of a sandbox.
    pub(crate) fn is_sandbox(&self, host: &str) -> bool {
        let label = host.strip_suffix(self.domain.as_str()).and_then(|head| head.strip_suffix('.'));
        let parts = label.and_then(|label| label.split_once('-'));
        parts.is_some_and(|(port, id)| {
            port.bytes().all(|byte| byte.is_ascii_digit())
                && port.parse::<u16>().is_ok_and(|port| port != 0)
                && !id.is_empty()
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        })
    }

    /// Whether clients reach public hosts at this port.
    pub(crate) fn has_port(&self, port: u16) -> bool {
        port == HTTP || self.tls_ports.contains(&port)
    }
}

/// The port on which they are reached without TLS.
const HTTP: u16 = 80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_of_sandboxes_are_meant() {
        let address = ([127, 0, 0, 1], 1).into();
        let hairpin = Hairpin { domain: "box.test".to_owned(), address, tls_ports: vec![443, 8443] };
        for host in ["8080-iabc.box.test", "49983-iabc-6532622b.box.test", "1-i.box.test"] {
            assert!(hairpin.is_sandbox(host), "{host}");
        }
        for host in [
            "box.test",
            "api.box.test",
            "sandbox.box.test",
            "0-i.box.test",
            "70000-i.box.test",
            "8080-.box.test",
            "8080-i.x.box.test",
            "8080-i.abox.test",
            "-i.box.test",
            "8080-i.box.test.evil.test",
            "+1-i.box.test",
        ] {
            assert!(!hairpin.is_sandbox(host), "{host}");
        }
        assert!([80, 443, 8443].iter().all(|port| hairpin.has_port(*port)) && !hairpin.has_port(3000));
    }
}
