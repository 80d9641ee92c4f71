//! The audit of secrets: who used which secret where, never its value. A sandbox may make thousands of requests a second, so only the
//! first use is a line of the log at once; further ones are counted and logged together.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tracing::info;

/// How long uses are counted before they are logged.
const PERIOD: Duration = Duration::from_secs(60);
/// Maximum number of combinations of secret, host and outcome that are counted for one sandbox; a wildcard rule covers any number of hosts.
const MAX_USES: usize = 32;
/// Stands for the secrets and hosts of all further combinations.
const OTHERS: &str = "(others)";

/// What was done with a secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct SecretUse {
    secret: String,
    host: String,
    outcome: &'static str,
}

/// Uses of secrets that are not logged yet, by sandbox.
#[derive(Debug, Default)]
pub(super) struct SecretUses(Mutex<HashMap<String, HashMap<SecretUse, u64>>>);

impl SecretUses {
    /// Starts to log what is counted, on the current runtime, for as long as the value is in use.
    pub(super) fn start() -> Arc<Self> {
        let uses = Arc::new(Self::default());
        tokio::spawn(log_regularly(Arc::downgrade(&uses)));
        uses
    }

    /// Notes a use: logs it if it is the first of its kind, or counts it.
    pub(super) fn note(&self, sandbox: &str, secret: &str, host: &str, outcome: &'static str) {
        if let Some(first) = self.count(sandbox, secret, host, outcome) {
            log(sandbox, &first, 1);
        }
    }

    /// Counts a use; returns it if it is to be logged at once instead.
    fn count(&self, sandbox: &str, secret: &str, host: &str, outcome: &'static str) -> Option<SecretUse> {
        let mut all = self.0.lock();
        let own = all.entry(sandbox.to_owned()).or_default();
        let mut one = SecretUse { secret: secret.to_owned(), host: host.to_owned(), outcome };
        if !own.contains_key(&one) && own.len() >= MAX_USES {
            OTHERS.clone_into(&mut one.host);
            OTHERS.clone_into(&mut one.secret);
        }
        if let Some(count) = own.get_mut(&one) {
            *count += 1;
            return None;
        }
        own.insert(one.clone(), 0);
        Some(one)
    }

    /// Returns what was counted since the last call, and forgets what was not used since.
    fn take(&self) -> Vec<(String, SecretUse, u64)> {
        let mut taken = Vec::new();
        self.0.lock().retain(|sandbox, own| {
            own.retain(|one, count| match std::mem::take(count) {
                0 => false,
                uses => {
                    taken.push((sandbox.clone(), one.clone(), uses));
                    true
                }
            });
            !own.is_empty()
        });
        taken
    }

    fn log_counted(&self) {
        for (sandbox, one, uses) in self.take() {
            log(&sandbox, &one, uses);
        }
    }
}

impl Drop for SecretUses {
    fn drop(&mut self) {
        self.log_counted();
    }
}

async fn log_regularly(uses: Weak<SecretUses>) {
    loop {
        tokio::time::sleep(PERIOD).await;
        let Some(uses) = uses.upgrade() else { return };
        uses.log_counted();
    }
}

fn log(sandbox: &str, one: &SecretUse, uses: u64) {
    let SecretUse { secret, host, outcome } = one;
    info!(target: "audit", sandbox_id = sandbox, secret, host, outcome, uses, "secret");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_use_is_logged_at_once_and_further_ones_together() {
        let uses = SecretUses::default();
        let first = uses.count("i1", "key", "a.example", "sent").unwrap();
        for _ in 0..1000 {
            assert_eq!(uses.count("i1", "key", "a.example", "sent"), None);
        }
        assert!(uses.count("i1", "key", "b.example", "sent").is_some());
        assert!(uses.count("i2", "key", "a.example", "sent").is_some());
        assert!(uses.count("i1", "key", "a.example", "not found").is_some());
        assert_eq!(uses.take(), [("i1".to_owned(), first.clone(), 1000)]);
        assert_eq!(uses.count("i1", "key", "a.example", "sent"), None, "one line a minute while it is used");
        assert_eq!(uses.take(), [("i1".to_owned(), first, 1)]);
        assert_eq!(uses.take(), []);
        assert!(uses.0.lock().is_empty(), "nothing is kept of sandboxes that use none");
    }

    #[test]
    fn hosts_that_a_sandbox_invents_are_counted_together() {
        let uses = SecretUses::default();
        let lines =
            (0..5000).filter_map(|n| uses.count("i1", "key", &format!("h{n}.example"), "sent")).count();
        assert_eq!(lines, MAX_USES + 1);
        assert!(uses.0.lock()["i1"].len() <= MAX_USES + 1);
        let counted: u64 = uses.take().iter().map(|(_, _, count)| count).sum();
        assert_eq!(counted + lines as u64, 5000);
    }
}
