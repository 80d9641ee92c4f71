//! DNS of sandboxes: queries arrive at our listener, are checked against the egress policy, and are asked of the host's
//! resolvers in our own words.
//!
//! Where the policy restricts names, a query for any other name is refused, so that DNS is no way out. The policy comes
//! before the stored responses. Each sandbox has its own of these, and its own limits.

mod cache;
mod limits;
mod message;
mod upstream;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use domain::base::iana::Rcode;
use domain::base::{Message, Rtype};
use parking_lot::Mutex;
use tokio::net::{TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::policies::Policies;
use cache::{Aged, Cache};
use limits::{CONNECTION_QUERIES, CONNECTION_TIMEOUT, IDLE_TIMEOUT, Limits};
use message::{Query, Question, Rejection};

pub use limits::DnsTotal;

/// Maximum size of a query. A name has 255 bytes at most.
const MAX_QUERY: usize = 1024;

/// DNS resolvers of the host, in order of preference.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolvers(Vec<SocketAddr>);

impl Resolvers {
    /// Creates a list of these servers.
    #[must_use]
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self(servers)
    }

    /// Parses the `nameserver` lines of `/etc/resolv.conf`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let servers = text.lines().filter_map(|line| {
            let address = line.trim().strip_prefix("nameserver")?.trim();
            Some(SocketAddr::new(address.parse().ok()?, 53))
        });
        Self(servers.collect())
    }
}

/// DNS of one sandbox.
#[derive(Debug)]
pub(crate) struct Dns {
    resolvers: Resolvers,
    limits: Limits,
    cache: Mutex<Cache>,
}

impl Dns {
    pub(crate) fn new(resolvers: Resolvers, total: DnsTotal) -> Self {
        Self { resolvers, limits: Limits::new(total), cache: Mutex::default() }
    }

    /// Serves DNS over UDP until cancelled. Queries beyond the limits are dropped, as by a busy resolver.
    pub(crate) async fn serve_udp(
        self: &Arc<Self>,
        socket: Arc<UdpSocket>,
        policies: impl Fn() -> Policies,
        stop: CancellationToken,
    ) {
        let mut packet = vec![0u8; MAX_QUERY];
        loop {
            let Ok((length, client)) = socket.recv_from(&mut packet).await else { continue };
            let Some(place) = self.limits.admit() else { continue };
            let query = match read(&packet[..length], &policies()) {
                Ok(query) => query,
                Err(Rejection::Ignore) => continue,
                Err(Rejection::Respond(response)) => {
                    let _ = socket.send_to(&response, client).await;
                    continue;
                }
            };
            let (dns, socket) = (Arc::clone(self), Arc::clone(&socket));
            let answer = async move {
                if let Some(response) = dns.respond(&query, query.datagram_size()).await {
                    let _ = socket.send_to(&response, client).await;
                }
                drop(place);
            };
            tokio::spawn(stop.clone().run_until_cancelled_owned(answer));
        }
    }

    /// Serves DNS over TCP: queries are answered in turn, each with its length before it. Returns after a message that is no
    /// query, or one beyond the limits.
    ///
    /// # Errors
    /// The client closes the connection, or takes too long.
    pub(crate) async fn serve_tcp(
        &self,
        client: TcpStream,
        policies: impl Fn() -> Policies,
    ) -> io::Result<()> {
        tokio::time::timeout(CONNECTION_TIMEOUT, self.serve_connection(client, policies)).await?
    }

    async fn serve_connection(
        &self,
        mut client: TcpStream,
        policies: impl Fn() -> Policies,
    ) -> io::Result<()> {
        for _ in 0..CONNECTION_QUERIES {
            let message = upstream::read_message(&mut client, MAX_QUERY);
            let message = tokio::time::timeout(IDLE_TIMEOUT, message).await??;
            let Some(_place) = self.limits.admit() else { return Ok(()) };
            let response = match read(&message, &policies()) {
                Ok(query) => self.respond(&query, usize::from(u16::MAX)).await,
                Err(Rejection::Respond(response)) => Some(response),
                Err(Rejection::Ignore) => None,
            };
            let Some(response) = response else { return Ok(()) };
            let written = upstream::write_message(&mut client, &response);
            tokio::time::timeout(IDLE_TIMEOUT, written).await??;
        }
        Ok(())
    }

    /// Returns the response to a query; `None` beyond the limits.
    async fn respond(&self, query: &Query, limit: usize) -> Option<Vec<u8>> {
        let failed = || query.error(Rcode::SERVFAIL);
        let Some((answer, age)) = self.resolve(&query.question).await? else { return Some(failed()) };
        let response = Message::from_slice(&answer).ok().map(|answer| query.respond(answer, age, limit));
        Some(response.and_then(Result::ok).unwrap_or_else(failed))
    }

    /// Returns the resolvers' response to a question: `None` beyond the limits, `Some(None)` if there is none.
    async fn resolve(&self, question: &Question) -> Option<Option<Aged>> {
        if let Some(stored) = self.cache.lock().get(question) {
            return Some(Some(stored));
        }
        let _permit = self.limits.forward()?;
        let answer = upstream::ask(&self.resolvers, question).await;
        if let Some(answer) = &answer {
            self.cache.lock().insert(question.clone(), answer);
        }
        Some(answer.map(|answer| (answer, 0)))
    }

    /// Returns the addresses of a name, IPv4 first, from the resolvers that the sandbox uses.
    pub(crate) async fn lookup(&self, name: &str) -> Vec<IpAddr> {
        if let Ok(address) = name.trim_matches(['[', ']']).parse() {
            return vec![address];
        }
        let (v4, v6) = tokio::join!(self.lookup_type(name, Rtype::A), self.lookup_type(name, Rtype::AAAA));
        v4.into_iter().chain(v6).collect()
    }

    async fn lookup_type(&self, name: &str, rtype: Rtype) -> Vec<IpAddr> {
        let Some(question) = Question::for_addresses(name, rtype) else { return Vec::new() };
        let Some(_place) = self.limits.admit() else { return Vec::new() };
        let Some(Some((answer, _))) = self.resolve(&question).await else { return Vec::new() };
        Message::from_slice(&answer)
            .map_or_else(|_| Vec::new(), |answer| message::addresses(answer, &question))
    }
}

/// Reads a query and checks it against the policies.
fn read(packet: &[u8], policies: &Policies) -> Result<Query, Rejection> {
    let query = Query::parse(packet)?;
    let name = query.question.host_name();
    if hides_names(&query.question)
        && let (Some(own), Some(name)) = (&policies.rules, &name)
        && own.rules.concern_host(name)
    {
        return Err(Rejection::Respond(query.error(Rcode::NOERROR)));
    }
    if policies.permit_query(name.as_deref()) {
        return Ok(query);
    }
    debug!(name, "DNS query refused");
    Err(Rejection::Respond(query.error(Rcode::REFUSED)))
}

/// Whether the question is for records by which clients encrypt the name that they ask a server for (ECH), or use QUIC. For hosts with
/// header rules there are none: clients then connect by TLS, with the name in clear.
fn hides_names(question: &Question) -> bool {
    [Rtype::HTTPS, Rtype::SVCB].contains(&question.rtype())
}

#[cfg(test)]
mod tests;
