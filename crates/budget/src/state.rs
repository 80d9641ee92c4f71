//! [`State`]: who has which shares of a budget, and whose share is revoked next.

use std::collections::{BTreeMap, HashMap};

use tokio_util::sync::CancellationToken;

use crate::{Account, Holder, Use};

/// Order in which a member's shares are revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    usage: Use,
    order: u64,
}

/// The taken shares.
#[derive(Debug, Default)]
pub(crate) struct State {
    taken: usize,
    groups: HashMap<Holder, Group>,
    /// Number of the last position.
    last: u64,
}

#[derive(Debug, Default)]
struct Group {
    taken: usize,
    members: HashMap<Holder, BTreeMap<Position, CancellationToken>>,
}

impl State {
    pub(crate) fn taken(&self) -> usize {
        self.taken
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Returns how many shares the account's member has.
    pub(crate) fn count(&self, account: Account) -> usize {
        let group = self.groups.get(&account.group);
        group.and_then(|group| group.members.get(&account.member)).map_or(0, BTreeMap::len)
    }

    pub(crate) fn insert(&mut self, account: Account, usage: Use, revoked: CancellationToken) -> Position {
        self.last += 1;
        // The longest idle first, but the newest busy one.
        let order = if usage == Use::Busy { u64::MAX - self.last } else { self.last };
        let position = Position { usage, order };
        let group = self.groups.entry(account.group).or_default();
        group.members.entry(account.member).or_default().insert(position, revoked);
        group.taken += 1;
        self.taken += 1;
        position
    }

    /// Removes a share. Returns false if it is not there, because it was revoked.
    pub(crate) fn remove(&mut self, account: Account, position: Position) -> bool {
        let Some(group) = self.groups.get_mut(&account.group) else { return false };
        let Some(shares) = group.members.get_mut(&account.member) else { return false };
        if shares.remove(&position).is_none() {
            return false;
        }
        if shares.is_empty() {
            group.members.remove(&account.member);
        }
        group.taken -= 1;
        if group.taken == 0 {
            self.groups.remove(&account.group);
        }
        self.taken -= 1;
        true
    }

    /// Removes a share in favour of `account`, and returns it. Returns `None` if nobody has clearly more.
    pub(crate) fn displace(&mut self, account: Account) -> Option<CancellationToken> {
        let (victim, position) = self.victim(account)?;
        let token = self.groups.get(&victim.group)?.members.get(&victim.member)?.get(&position)?.clone();
        self.remove(victim, position);
        Some(token)
    }

    fn victim(&self, account: Account) -> Option<(Account, Position)> {
        let own_taken = self.groups.get(&account.group).map_or(0, |group| group.taken);
        let (&largest, group) = self.groups.iter().max_by_key(|(_, group)| group.taken)?;
        // With a difference of one, taking would only turn the inequality round.
        let (of, group) = if largest != account.group && group.taken > own_taken + 1 {
            (largest, group)
        } else {
            (account.group, self.groups.get(&account.group)?)
        };
        let (&member, shares) = group.members.iter().max_by_key(|(_, shares)| shares.len())?;
        let (&position, _) = shares.first_key_value()?;
        let may_be_displaced = of != account.group
            || (member != account.member && shares.len() > self.count(account) + 1)
            || position.usage != Use::Busy;
        may_be_displaced.then_some((Account { group: of, member }, position))
    }
}
