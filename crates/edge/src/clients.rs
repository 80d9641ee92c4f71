//! [`Clients`]: the accepted connections of clients, within a total that nobody can use up.
//!
//! Until a connection has shown credentials it counts for its address, afterwards for its team ([`Budget`] says who gives way when all are taken). One
//! that has reached a sandbox without counts for the sandbox's team, there for its address: visitors of one team do not keep others out who come from
//! the same address, as behind a proxy. One that has shown nothing and makes no request is closed after [`MAX_ANONYMOUS_IDLE`].

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use budget::{Account, Budget, Holder, Share, Use};
use parking_lot::Mutex;
use tokio::time::Instant;

/// How long a connection may be idle that has neither shown credentials nor reached a sandbox. Also the time for its first request's head.
const MAX_ANONYMOUS_IDLE: Duration = Duration::from_secs(20);
/// The group of all addresses. Teams are random UUIDs, which are never this small.
const ANONYMOUS: Holder = Holder(0);

/// All connections.
#[derive(Debug, Clone)]
pub(crate) struct Clients(Arc<Budget>);

/// An accepted connection. Dropping it gives its place back.
#[derive(Debug)]
pub(crate) struct Client {
    share: Share,
    address: Holder,
    authenticated: AtomicBool,
    activity: Mutex<Activity>,
}

#[derive(Debug)]
struct Activity {
    requests: usize,
    /// Since when there is no request.
    idle_since: Instant,
    /// It has reached a public port of a sandbox, whose id it knows.
    is_visitor: bool,
}

/// A request that is being served. While one exists, the connection is not idle.
#[derive(Debug)]
pub(crate) struct ActiveRequest(Arc<Client>);

impl Clients {
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self(budget)
    }

    /// Counts a new connection. Returns `None` if there is no place for it: it must be closed.
    pub(crate) fn admit(&self, peer: IpAddr) -> Option<Arc<Client>> {
        let address = network_of(peer);
        let account = Account { group: ANONYMOUS, member: address };
        let share = self.0.take(account, Use::Idle, usize::MAX).ok()?;
        let activity = Activity { requests: 0, idle_since: Instant::now(), is_visitor: false };
        let (authenticated, activity) = (AtomicBool::new(false), Mutex::new(activity));
        Some(Arc::new(Client { share, address, authenticated, activity }))
    }
}

impl Client {
    /// Resolves when the connection must be closed: it has been anonymous and idle for too long, or its place is needed.
    pub(crate) async fn must_close(&self) {
        tokio::select! {
            () = self.share.revoked() => {}
            () = self.idle_for_too_long() => {}
        }
    }

    /// Looks again after each time limit, so that requests need not reset a timer.
    async fn idle_for_too_long(&self) {
        let mut deadline = Instant::now() + MAX_ANONYMOUS_IDLE;
        loop {
            tokio::time::sleep_until(deadline).await;
            if self.is_authenticated() {
                return std::future::pending().await;
            }
            let activity = self.activity.lock();
            let is_idle = activity.requests == 0 && !activity.is_visitor;
            if is_idle && activity.idle_since.elapsed() >= MAX_ANONYMOUS_IDLE {
                return;
            }
            deadline = if is_idle { activity.idle_since } else { Instant::now() } + MAX_ANONYMOUS_IDLE;
        }
    }

    /// Whether valid credentials were shown.
    pub(crate) fn is_authenticated(&self) -> bool {
        self.authenticated.load(Ordering::Relaxed)
    }

    /// Notes the beginning of a request. Requests of authenticated connections are not followed.
    pub(crate) fn begin_request(self: &Arc<Self>) -> Option<ActiveRequest> {
        if self.is_authenticated() {
            return None;
        }
        let mut activity = self.activity.lock();
        activity.requests += 1;
        if activity.requests == 1 {
            self.share.set_use(Use::Busy);
        }
        Some(ActiveRequest(Arc::clone(self)))
    }

    /// Notes that a request reached a port of a sandbox of `team` that needs no credentials.
    pub(crate) fn visit(&self, team: u128) {
        self.activity.lock().is_visitor = true;
        self.share.reassign(Account { group: Holder(team), member: self.address }, Use::Busy);
    }

    /// Notes valid credentials of a team, user or operator, for whose account the connection counts from now on.
    pub(crate) fn authenticate(&self, account: u128) {
        if !self.authenticated.swap(true, Ordering::Relaxed) {
            let holder = Holder(account);
            self.share.reassign(Account { group: holder, member: holder }, Use::Busy);
        }
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        let client = &self.0;
        let mut activity = client.activity.lock();
        activity.requests -= 1;
        if activity.requests > 0 || client.is_authenticated() {
            return;
        }
        activity.idle_since = Instant::now();
        client.share.set_use(if activity.is_visitor { Use::Kept } else { Use::Idle });
    }
}

/// Returns what addresses are counted by: an IPv4 address, or the first 64 bits of an IPv6 address, which are one customer's.
pub(crate) fn network_of(peer: IpAddr) -> Holder {
    match peer.to_canonical() {
        IpAddr::V4(v4) => Holder(v4.to_ipv6_mapped().to_bits()),
        IpAddr::V6(v6) => Holder(v6.to_bits() >> 64 << 64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOTAL: usize = 100;

    fn clients() -> Clients {
        Clients::new(Budget::new("client connections", TOTAL))
    }

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn open(clients: &[Arc<Client>]) -> usize {
        clients.iter().filter(|client| !client.share.is_revoked()).count()
    }

    #[test]
    fn an_address_that_takes_all_loses_its_oldest_idle_connections() {
        let clients = clients();
        let other = clients.admit(address(2)).unwrap();
        let greedy: Vec<_> = (0..500).map(|_| clients.admit(address(1)).unwrap()).collect();
        assert_eq!(open(&greedy), TOTAL - 1);
        assert!(greedy[0].share.is_revoked() && !greedy[499].share.is_revoked());
        assert!(!other.share.is_revoked());
    }

    #[test]
    fn busy_connections_of_one_address_give_way_to_other_addresses() {
        let clients = clients();
        let mut requests = Vec::new();
        let greedy: Vec<_> = std::iter::from_fn(|| {
            let client = clients.admit(address(1))?;
            requests.push(client.begin_request());
            Some(client)
        })
        .collect();
        assert_eq!(open(&greedy), TOTAL, "its own busy ones are not closed");
        let others: Vec<_> = (2..12).map(|last| clients.admit(address(last)).unwrap()).collect();
        assert_eq!((open(&greedy), open(&others)), (TOTAL - 10, 10));
    }

    #[test]
    fn visitors_of_one_team_leave_places_to_others_from_their_address() {
        let clients = clients();
        let mut requests = Vec::new();
        let visitors: Vec<_> = std::iter::from_fn(|| {
            let client = clients.admit(address(1))?;
            requests.push(client.begin_request());
            client.visit(77);
            Some(client)
        })
        .take(2 * TOTAL)
        .collect();
        let team = clients.admit(address(1)).unwrap();
        team.authenticate(77);
        let others: Vec<_> = (0..10).filter_map(|_| clients.admit(address(1))).collect();
        assert_eq!((open(&others), open(&[team])), (10, 1));
        assert_eq!(open(&visitors), TOTAL - 11);
    }

    #[test]
    fn teams_keep_their_connections_while_strangers_come() {
        let clients = clients();
        let team: Vec<_> = (0..20).map(|_| clients.admit(address(1)).unwrap()).collect();
        team.iter().for_each(|client| client.authenticate(77));
        let strangers: Vec<_> =
            (0..500u16).filter_map(|at| clients.admit(address(u8::try_from(at % 250).unwrap()))).collect();
        assert_eq!((open(&team), open(&strangers)), (20, TOTAL - 20));
    }

    #[test]
    fn requests_end_where_they_began_also_when_credentials_come_between() {
        let clients = clients();
        let client = clients.admit(address(1)).unwrap();
        let request = client.begin_request();
        client.authenticate(77);
        drop(request);
        assert!(client.begin_request().is_none());
        drop(client);
        assert_eq!(clients.0.taken(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_anonymous_connections_end_in_seconds() {
        let clients = clients();
        let [idle, busy, visitor, known] = [1, 2, 3, 4].map(|last| clients.admit(address(last)).unwrap());
        let request = busy.begin_request();
        visitor.visit(77);
        known.authenticate(77);
        let closes = async |client: &Client| {
            tokio::time::timeout(3 * MAX_ANONYMOUS_IDLE, client.must_close()).await.is_ok()
        };
        assert!(closes(&idle).await);
        for client in [&busy, &visitor, &known] {
            assert!(!closes(client).await);
        }
        drop(request);
        assert!(closes(&busy).await);
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_as_one() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
    }
}
