//! [`Budget`]: the total of a resource of the server, such as connections out of sandboxes, shared fairly among those who use it.
//!
//! Whoever needs some takes it, as long as there is any. When all is taken, a share of the one who has most is revoked for one who has less ("max-min
//! fairness"): first among groups, such as teams, then among a group's members, such as sandboxes. So one member can use an idle server well, and
//! however many take all that they can get, nobody is locked out.
#![forbid(unsafe_code)]

mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::state::{Position, State};

/// The number of a group, or of a member within its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Holder(pub u128);

/// On whose account a share is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// Such as a team.
    pub group: Holder,
    /// Such as a sandbox of the team.
    pub member: Holder,
}

/// How a share is used. Of a holder's shares the idle ones are revoked first, those of the lowest kind and the longest idle before others; busy ones
/// last, the newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// Nobody would miss it.
    Idle,
    /// It is idle, but is likely to be used again.
    Kept,
    /// It is in use. A holder's own new shares never displace it.
    Busy,
}

/// There is no share for this account: others have no more than it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server has too many {0}")]
pub struct Exhausted(&'static str);

/// The total of one resource.
#[derive(Debug)]
pub struct Budget {
    resource: &'static str,
    total: usize,
    state: Mutex<State>,
    returned: Notify,
    waiting: AtomicUsize,
}

/// A taken part of a budget, given back when dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    /// Locked after the budget's state.
    position: Mutex<(Account, Position)>,
    revoked: CancellationToken,
}

impl Budget {
    /// A budget of `total` items. `resource` names them in errors and metrics, in the plural.
    #[must_use]
    pub fn new(resource: &'static str, total: usize) -> Arc<Self> {
        Arc::new(Self {
            resource,
            total,
            state: Mutex::default(),
            returned: Notify::new(),
            waiting: AtomicUsize::new(0),
        })
    }

    /// Returns the name of the resource.
    #[must_use]
    pub fn resource(&self) -> &'static str {
        self.resource
    }

    /// Returns how many items there are, taken or not.
    #[must_use]
    pub fn total(&self) -> usize {
        self.total
    }

    /// Returns how many items are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.state.lock().taken()
    }

    /// Takes one item. `max` is the most that the member may have, whatever is free. If nothing is free, another share may be revoked.
    ///
    /// # Errors
    /// The member has `max` items, or nothing is free and nobody has clearly more than this account.
    pub fn take(self: &Arc<Self>, account: Account, usage: Use, max: usize) -> Result<Share, Exhausted> {
        let revoked = CancellationToken::new();
        let mut state = self.state.lock();
        if state.count(account) >= max {
            return Err(Exhausted(self.resource));
        }
        let displaced = if state.taken() < self.total {
            None
        } else {
            Some(state.displace(account).ok_or(Exhausted(self.resource))?)
        };
        let position = state.insert(account, usage, revoked.clone());
        drop(state);
        if let Some(displaced) = displaced {
            displaced.cancel();
        }
        Ok(Share { budget: Arc::clone(self), position: Mutex::new((account, position)), revoked })
    }

    /// Takes one item as [`Budget::take`] does, and waits until that is possible. `account` is asked before each attempt, because a sandbox may get
    /// its team meanwhile.
    pub async fn wait(self: &Arc<Self>, account: impl Fn() -> Account, usage: Use, max: usize) -> Share {
        if let Ok(share) = self.take(account(), usage, max) {
            return share;
        }
        let _waiting = Waiting::new(&self.waiting);
        loop {
            // Listens before the attempt, so that no return between the two is missed.
            let returned = self.returned.notified();
            if let Ok(share) = self.take(account(), usage, max) {
                return share;
            }
            returned.await;
        }
    }
}

impl Share {
    /// Resolves when the share was revoked: what it stands for must be given up.
    pub async fn revoked(&self) {
        self.revoked.cancelled().await;
    }

    /// Whether the share was revoked.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.revoked.is_cancelled()
    }

    /// Changes how the share is used.
    pub fn set_use(&self, usage: Use) {
        self.change(None, usage);
    }

    /// Changes the account of the share. This needs no room, because it is taken already.
    pub fn reassign(&self, account: Account, usage: Use) {
        self.change(Some(account), usage);
    }

    fn change(&self, to: Option<Account>, usage: Use) {
        let mut state = self.budget.state.lock();
        let mut position = self.position.lock();
        let account = to.unwrap_or(position.0);
        // A revoked share is not there any more.
        if state.remove(position.0, position.1) {
            *position = (account, state.insert(account, usage, self.revoked.clone()));
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let (account, position) = *self.position.lock();
        self.budget.state.lock().remove(account, position);
        if self.budget.waiting.load(Ordering::SeqCst) > 0 {
            self.budget.returned.notify_waiters();
        }
    }
}

/// Counts a waiting task, also when it is cancelled.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NO_MAX: usize = usize::MAX;

    fn account(group: u128, member: u128) -> Account {
        Account { group: Holder(group), member: Holder(member) }
    }

    fn take_all(budget: &Arc<Budget>, account: Account) -> Vec<Share> {
        std::iter::from_fn(|| budget.take(account, Use::Busy, NO_MAX).ok()).take(2 * budget.total()).collect()
    }

    fn held(shares: &[Share]) -> usize {
        shares.iter().filter(|share| !share.is_revoked()).count()
    }

    #[test]
    fn greedy_holders_end_with_equal_shares() {
        let budget = Budget::new("things", 1000);
        let groups: Vec<Vec<Share>> = (0..20).map(|group| take_all(&budget, account(group, 0))).collect();
        let counts: Vec<usize> = groups.iter().map(|shares| held(shares)).collect();
        assert_eq!(counts.iter().sum::<usize>(), 1000);
        assert!(counts.iter().all(|count| (49..=51).contains(count)), "{counts:?}");
        assert!(budget.take(account(99, 0), Use::Busy, NO_MAX).is_ok(), "a newcomer");
    }

    #[test]
    fn many_sandboxes_of_a_team_do_not_get_more_than_the_team() {
        let budget = Budget::new("things", 1000);
        let greedy: Vec<Vec<Share>> = (0..100).map(|member| take_all(&budget, account(1, member))).collect();
        let other = take_all(&budget, account(2, 0));
        assert!((499..=501).contains(&held(&other)), "{}", held(&other));
        let counts: Vec<usize> = greedy.iter().map(|shares| held(shares)).collect();
        assert!(counts.iter().all(|count| (4..=6).contains(count)), "{counts:?}");
        drop((greedy, other));
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn a_maximum_holds_on_an_idle_server() {
        let budget = Budget::new("things", 1000);
        let _held: Vec<Share> = (0..3).map(|_| budget.take(account(1, 1), Use::Busy, 3).unwrap()).collect();
        let refused = budget.take(account(1, 1), Use::Busy, 3).unwrap_err();
        assert_eq!(refused.to_string(), "the server has too many things");
    }

    #[test]
    fn a_holder_displaces_its_own_idle_shares_but_no_busy_ones() {
        let budget = Budget::new("things", 3);
        let take = |usage| budget.take(account(1, 1), usage, NO_MAX);
        let shares = [take(Use::Kept).unwrap(), take(Use::Idle).unwrap(), take(Use::Idle).unwrap()];
        shares[1].set_use(Use::Busy);
        shares[1].set_use(Use::Idle);
        let revoked = || shares.iter().map(Share::is_revoked).collect::<Vec<_>>();
        let _new = take(Use::Busy).unwrap();
        assert_eq!(revoked(), [false, false, true], "the longest idle one first");
        let _new = take(Use::Busy).unwrap();
        assert_eq!(revoked(), [false, true, true], "before what is kept");
        let _new = take(Use::Busy).unwrap();
        assert!(take(Use::Busy).is_err());
    }

    #[test]
    fn a_share_can_change_its_account() {
        let budget = Budget::new("things", 2);
        let share = budget.take(account(0, 1), Use::Idle, NO_MAX).unwrap();
        share.reassign(account(7, 7), Use::Busy);
        let _other = budget.take(account(0, 1), Use::Busy, NO_MAX).unwrap();
        assert!(budget.take(account(0, 1), Use::Busy, NO_MAX).is_err(), "the other account has no more");
        assert!(!share.is_revoked());
    }

    #[tokio::test]
    async fn a_waiting_holder_gets_what_is_returned() {
        let budget = Budget::new("things", 1);
        let share = budget.take(account(1, 1), Use::Busy, NO_MAX).unwrap();
        let mut waiting = Box::pin(budget.wait(|| account(1, 1), Use::Busy, NO_MAX));
        let before = tokio::time::timeout(std::time::Duration::from_millis(20), &mut waiting).await;
        assert!(before.is_err());
        drop(share);
        let _share = waiting.await;
        assert_eq!(budget.taken(), 1);
    }

    proptest! {
        #[test]
        fn counts_are_exact(steps in proptest::collection::vec((0..3u128, 0..3u128, 0..4u8), 0..300)) {
            let budget = Budget::new("things", 10);
            let mut shares: Vec<Share> = Vec::new();
            for (group, member, step) in steps {
                match (step, shares.len()) {
                    (0, count) if count > 0 => {
                        shares.swap_remove(usize::try_from(group * 3 + member).unwrap() % count);
                    }
                    (1, count) if count > 0 => {
                        shares[usize::try_from(member).unwrap() % count].reassign(account(group, member), Use::Idle);
                    }
                    _ => shares.extend(budget.take(account(group, member), Use::Busy, NO_MAX)),
                }
                prop_assert_eq!(budget.taken(), held(&shares));
                prop_assert!(budget.taken() <= 10);
            }
            drop(shares);
            prop_assert_eq!(budget.taken(), 0);
            prop_assert!(budget.state.lock().is_empty());
        }
    }
}
