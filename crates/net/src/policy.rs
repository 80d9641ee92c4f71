//! The egress policy: which outgoing connections a sandbox may make. Decisions only, no sockets.
//!
//! Allow rules take precedence over deny rules. Addresses of the host and of private networks are
//! refused whatever the rules permit. Domains are matched by the name that the client sends (SNI or
//! Host), never by reverse lookup.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use egress_rules::Rules;
use serde::{Deserialize, Serialize};

use crate::proxy::SandboxProxy;

/// Errors in the rules of a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Neither an address nor a network in CIDR notation.
    #[error("invalid CIDR {0}")]
    Cidr(String),
    /// Neither a network nor a host name.
    #[error("{0:?} is no network (10.0.0.0/8), address or host name (example.com, *.example.com)")]
    Destination(String),
}

/// A network in CIDR notation; a bare address is a network with one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    base: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// Whether the address is in the network. An IPv4 network contains no IPv6 address and vice
    /// versa.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                base.to_bits() & mask == address.to_bits() & mask
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                base.to_bits() & mask == address.to_bits() & mask
            }
            _ => false,
        }
    }

    /// Whether the network contains every address of its family (`0.0.0.0/0`, `::/0`).
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.prefix == 0
    }

    /// Whether rules with this network mean the address: `0.0.0.0/0` is how the SDKs say "all traffic", and that includes IPv6.
    pub(crate) fn covers(&self, address: IpAddr) -> bool {
        self.contains(address) || (self.is_everything() && self.base.is_ipv4())
    }

    /// Returns the address as written.
    #[must_use]
    pub fn base(&self) -> IpAddr {
        self.base
    }
}

impl FromStr for Cidr {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let bad = || PolicyError::Cidr(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let base: IpAddr = address.parse().map_err(|_| bad())?;
        let widest = if base.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(digits) => digits.parse().map_err(|_| bad())?,
            None => widest,
        };
        if prefix > widest {
            return Err(bad());
        }
        Ok(Self { base, prefix })
    }
}

impl TryFrom<String> for Cidr {
    type Error = PolicyError;

    fn try_from(text: String) -> Result<Self, PolicyError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        format!("{}/{}", cidr.base, cidr.prefix)
    }
}

/// The egress rules of one sandbox. The default permits all public addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EgressPolicy {
    /// Networks that are permitted although `deny` contains them.
    pub allow: Vec<Cidr>,
    /// Domains that are permitted although `deny` contains their addresses: exact, or `*.suffix`
    /// (any depth, not the apex). In lower case.
    pub allow_domains: Vec<String>,
    /// Networks that are denied.
    pub deny: Vec<Cidr>,
    /// Headers to set on requests, if there are rules.
    pub rules: Option<Arc<SandboxRules>>,
    /// The proxy that connections go through, if there is one.
    pub proxy: Option<Arc<SandboxProxy>>,
}

/// The header rules of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxRules {
    /// The team whose secrets the rules refer to.
    pub team: u128,
    /// The rules.
    pub rules: Rules,
}

impl EgressPolicy {
    /// Returns the policy of `allow_internet_access: false`.
    #[must_use]
    pub fn deny_all() -> Self {
        let everything = ["0.0.0.0/0", "::/0"].map(|cidr| cidr.parse().expect("a literal network"));
        Self { deny: everything.to_vec(), ..Self::default() }
    }

    /// Whether the rules permit a connection to this public address by its address alone.
    #[must_use]
    pub fn permits_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.allow.iter().any(|cidr| cidr.contains(address))
            || !self.deny.iter().any(|cidr| cidr.covers(address))
    }

    /// Whether the proxy may be given names that are permitted by address alone: it resolves them itself, so a name that leads elsewhere
    /// would get past rules that deny addresses.
    pub(crate) fn leaves_names_to_proxy(&self) -> bool {
        self.proxy.is_some() && self.deny.is_empty()
    }

    /// Whether only the listed domains may be resolved, which is so when all traffic is denied.
    #[must_use]
    pub fn restricts_names(&self) -> bool {
        self.deny.iter().any(Cidr::is_everything)
    }

    /// Whether the rules permit a connection whose client sends this host name (SNI or Host).
    #[must_use]
    pub fn permits_domain(&self, name: &str) -> bool {
        matches_domain(&self.allow_domains, name)
    }
}

/// Whether a list of domains, in lower case, has this host name.
pub(crate) fn matches_domain(domains: &[String], name: &str) -> bool {
    if domains.is_empty() {
        return false;
    }
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    domains.iter().any(|rule| match rule.strip_prefix("*.") {
        Some(suffix) => name.strip_suffix(suffix).is_some_and(|head| head.ends_with('.')),
        None => rule == "*" || *rule == name,
    })
}

/// Whether no rule can permit the address: loopback, private, link-local (cloud metadata),
/// carrier-grade NAT, multicast, unspecified and reserved addresses, and IPv6 forms that contain
/// such an IPv4 address.
#[must_use]
pub fn is_never_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || a == 0
                || a >= 240
                || (a == 100 && (64..128).contains(&b))
                || (a == 192 && b == 0 && c == 0)
                || (a == 198 && (18..20).contains(&b))
        }
        IpAddr::V6(v6) => {
            let segments = v6.segments();
            let embedded = match segments {
                // Teredo contains an obfuscated IPv4 address; local-use NAT64 one of the host's own
                // network.
                [0x2001, 0, ..] | [0x64, 0xff9b, 1, ..] => return true,
                // NAT64, 6to4: the IPv4 address inside is the one that would be reached.
                [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => Some((high, low)),
                [0, 0, 0, 0, 0, 0, high, low] if high != 0 => Some((high, low)),
                _ => None,
            };
            if let Some((high, low)) = embedded {
                let [a, b] = high.to_be_bytes();
                let [c, d] = low.to_be_bytes();
                return is_never_public(IpAddr::from([a, b, c, d]));
            }
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
                || segments[0] & 0xffc0 == 0xfec0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn private_and_host_addresses_are_never_public_in_any_spelling() {
        for inside in [
            "127.0.0.1",
            "127.9.9.9",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "198.18.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "::7f00:1",
            "fec0::1",
            "2001:0:7f00:1::",
            "64:ff9b:1::a00:1",
        ] {
            assert!(is_never_public(ip(inside)), "{inside}");
        }
        for outside in
            ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "64:ff9b::808:808"]
        {
            assert!(!is_never_public(ip(outside)), "{outside}");
        }
    }

    #[test]
    fn allow_beats_deny_and_all_traffic_means_both_families() {
        let mut policy = EgressPolicy { deny: vec!["0.0.0.0/0".parse().unwrap()], ..EgressPolicy::default() };
        assert!(!policy.permits_address(ip("1.1.1.1")));
        assert!(!policy.permits_address(ip("2606:4700::1111")));
        policy.allow.push("1.1.1.0/24".parse().unwrap());
        assert!(policy.permits_address(ip("1.1.1.1")));
        assert!(policy.permits_address(ip("::ffff:1.1.1.1")));
        assert!(!policy.permits_address(ip("1.1.2.1")));
        assert!(EgressPolicy::default().permits_address(ip("1.1.2.1")));
        assert!(!EgressPolicy::deny_all().permits_address(ip("2606:4700::1111")));
    }

    #[test]
    fn wildcards_match_any_depth_but_not_the_apex() {
        let policy = EgressPolicy {
            allow_domains: vec!["*.example.com".into(), "pypi.org".into()],
            ..Default::default()
        };
        assert!(policy.permits_domain("a.example.com"));
        assert!(policy.permits_domain("A.B.Example.Com."));
        assert!(!policy.permits_domain("example.com"));
        assert!(!policy.permits_domain("badexample.com"));
        assert!(policy.permits_domain("PyPI.org"));
        assert!(!policy.permits_domain("x.pypi.org"));
    }

    #[test]
    fn networks_parse_strictly() {
        for bad in ["", "1.2.3", "1.2.3.4/33", "::/129", "1.2.3.4/-1", "1.2.3.4/", "example.com"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad:?}");
        }
        assert!("1.2.3.4".parse::<Cidr>().unwrap().contains(ip("1.2.3.4")));
        assert!(!"1.2.3.4".parse::<Cidr>().unwrap().contains(ip("1.2.3.5")));
    }
}
