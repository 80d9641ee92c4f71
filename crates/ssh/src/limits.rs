//! What clients may cost that have not proved who they are: connections in all and of one address, and refused proofs of one address.
//! An IPv6 address stands for its network of 64 bits, which belongs to one subscriber.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Connections in all, and before login of all and of one address. Clients that are logged in keep the rest of the first.
const MAX_CONNECTIONS: usize = 2048;
const MAX_STRANGERS: usize = 256;
const MAX_STRANGERS_OF_ADDRESS: usize = 16;
/// Refused proofs of an address in this time, after which its connections are closed for the rest of it.
const MAX_REFUSED: u32 = 30;
const REFUSED_TIME: Duration = Duration::from_secs(300);
/// Addresses whose refused proofs are counted.
const MAX_ADDRESSES: usize = 10_000;

/// The counts.
#[derive(Debug, Default)]
pub(crate) struct Limits(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    connections: usize,
    /// Connections before login, by address.
    strangers: HashMap<IpAddr, usize>,
    refused: HashMap<IpAddr, (u32, Instant)>,
}

/// The place of one connection; it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    limits: Arc<Limits>,
    address: IpAddr,
    is_stranger: Mutex<bool>,
}

impl Limits {
    /// Takes a place for a connection from an address; `None` if there is none for it.
    pub(crate) fn enter(this: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let address = network(address);
        let mut counts = this.0.lock();
        let now = Instant::now();
        if counts
            .refused
            .get(&address)
            .is_some_and(|(count, since)| *count >= MAX_REFUSED && now.duration_since(*since) < REFUSED_TIME)
        {
            return None;
        }
        let of_address = counts.strangers.get(&address).copied().unwrap_or(0);
        let strangers: usize = counts.strangers.values().sum();
        if counts.connections >= MAX_CONNECTIONS
            || strangers >= MAX_STRANGERS
            || of_address >= MAX_STRANGERS_OF_ADDRESS
        {
            return None;
        }
        counts.connections += 1;
        *counts.strangers.entry(address).or_default() += 1;
        Some(Place { limits: Arc::clone(this), address, is_stranger: Mutex::new(true) })
    }
}

impl Counts {
    fn leave_strangers(&mut self, address: IpAddr) {
        if let Some(count) = self.strangers.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.strangers.remove(&address);
            }
        }
    }
}

impl Place {
    /// Notes that the client has logged in.
    pub(crate) fn log_in(&self) {
        let mut is_stranger = self.is_stranger.lock();
        if *is_stranger {
            *is_stranger = false;
            self.limits.0.lock().leave_strangers(self.address);
        }
    }

    /// Counts a refused proof.
    pub(crate) fn refuse(&self) {
        let mut counts = self.limits.0.lock();
        let now = Instant::now();
        if counts.refused.len() >= MAX_ADDRESSES && !counts.refused.contains_key(&self.address) {
            counts.refused.retain(|_, (_, since)| now.duration_since(*since) < REFUSED_TIME);
            if counts.refused.len() >= MAX_ADDRESSES {
                return;
            }
        }
        let (count, since) = counts.refused.entry(self.address).or_insert((0, now));
        if now.duration_since(*since) >= REFUSED_TIME {
            (*count, *since) = (0, now);
        }
        *count += 1;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.limits.0.lock();
        counts.connections -= 1;
        if *self.is_stranger.lock() {
            counts.leave_strangers(self.address);
        }
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn one_address_does_not_take_the_places_of_others() {
        let limits = Arc::new(Limits::default());
        let mut places: Vec<_> = (0..100).filter_map(|_| Limits::enter(&limits, address(1))).collect();
        assert_eq!(places.len(), MAX_STRANGERS_OF_ADDRESS);
        assert!(Limits::enter(&limits, address(2)).is_some());
        places[0].log_in();
        places.push(Limits::enter(&limits, address(1)).unwrap());
        drop(places);
        assert!(limits.0.lock().strangers.is_empty() && limits.0.lock().connections == 0);
    }

    #[test]
    fn all_strangers_together_are_limited() {
        let limits = Arc::new(Limits::default());
        let places: Vec<_> = (0..=255)
            .flat_map(|last| (0..3).filter_map(|_| Limits::enter(&limits, address(last))).collect::<Vec<_>>())
            .collect();
        assert_eq!(places.len(), MAX_STRANGERS);
    }

    #[test]
    fn who_is_refused_often_is_closed_out_for_a_while() {
        let limits = Arc::new(Limits::default());
        let place = Limits::enter(&limits, "2001:db8::1".parse().unwrap()).unwrap();
        for _ in 0..MAX_REFUSED {
            place.refuse();
        }
        assert!(Limits::enter(&limits, "2001:db8::2".parse().unwrap()).is_none());
        assert!(Limits::enter(&limits, "2001:db8:0:1::1".parse().unwrap()).is_some());
    }
}
