//! [`Processors`]: which of the host's processors a sandbox with fewer than all of them runs on. Programs count the processors that they may run
//! on (`nproc`, `sched_getaffinity`), so a sandbox starts on as many as its template says, those with the fewest sandboxes. Code
//! inside may choose others: what limits it is its control group.

use std::sync::Arc;

use parking_lot::Mutex;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity};

/// The processors of the host and how many sandboxes were put on each.
#[derive(Debug)]
pub(crate) struct Processors {
    /// Number of the processor, and of its sandboxes.
    sandboxes: Mutex<Vec<(usize, u32)>>,
}

/// The processors of one sandbox. They are given back when it is dropped.
#[derive(Debug)]
pub(crate) struct ProcessorShare {
    all: Arc<Processors>,
    numbers: Vec<usize>,
}

impl Processors {
    /// Those that this server may run on.
    pub(crate) fn of_this_server() -> Arc<Self> {
        let allowed = sched_getaffinity(None).map(|set| numbers_in(&set)).unwrap_or_default();
        Self::with(allowed)
    }

    fn with(numbers: Vec<usize>) -> Arc<Self> {
        Arc::new(Self { sandboxes: Mutex::new(numbers.into_iter().map(|number| (number, 0)).collect()) })
    }

    /// Takes `count` processors; `None` if these are all.
    pub(crate) fn take(self: &Arc<Self>, count: u32) -> Option<ProcessorShare> {
        let mut sandboxes = self.sandboxes.lock();
        let count = usize::try_from(count.max(1)).ok().filter(|count| *count < sandboxes.len())?;
        // Stable, so among equals the order of the last time stays.
        sandboxes.sort_by_key(|(_, sandboxes)| *sandboxes);
        let taken = &mut sandboxes[..count];
        taken.iter_mut().for_each(|(_, sandboxes)| *sandboxes += 1);
        Some(ProcessorShare { all: self.clone(), numbers: taken.iter().map(|(number, _)| *number).collect() })
    }

    /// Counts the processors of a sandbox that an earlier server started, whose PID 1 is `pid`.
    pub(crate) fn adopt(self: &Arc<Self>, pid: i32) -> Option<ProcessorShare> {
        let numbers = numbers_in(&sched_getaffinity(Some(Pid::from_raw(pid)?)).ok()?);
        let mut sandboxes = self.sandboxes.lock();
        if numbers.len() >= sandboxes.len() {
            return None;
        }
        let theirs = sandboxes.iter_mut().filter(|(number, _)| numbers.contains(number));
        theirs.for_each(|(_, sandboxes)| *sandboxes += 1);
        Some(ProcessorShare { all: self.clone(), numbers })
    }
}

impl ProcessorShare {
    /// Returns them as the kernel takes them.
    pub(crate) fn set(&self) -> CpuSet {
        let mut set = CpuSet::new();
        self.numbers.iter().for_each(|number| set.set(*number));
        set
    }
}

impl Drop for ProcessorShare {
    fn drop(&mut self) {
        let mut sandboxes = self.all.sandboxes.lock();
        let theirs = sandboxes.iter_mut().filter(|(number, _)| self.numbers.contains(number));
        theirs.for_each(|(_, sandboxes)| *sandboxes = sandboxes.saturating_sub(1));
    }
}

fn numbers_in(set: &CpuSet) -> Vec<usize> {
    (0..CpuSet::MAX_CPU).filter(|number| set.is_set(*number)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sandboxes_are_spread_and_give_back() {
        let all = Processors::with(vec![0, 1, 4, 5]);
        let first = all.take(2).unwrap();
        let second = all.take(2).unwrap();
        assert!(first.numbers.iter().all(|number| !second.numbers.contains(number)));
        let third = all.take(1).unwrap();
        drop(second);
        let fourth = all.take(2).unwrap();
        assert!(
            fourth
                .numbers
                .iter()
                .all(|number| !first.numbers.contains(number) || third.numbers.contains(number))
        );
        assert!(fourth.set().is_set(fourth.numbers[0]) && fourth.set().count() == 2);
        drop((first, third, fourth));
        assert!(all.sandboxes.lock().iter().all(|(_, sandboxes)| *sandboxes == 0));
    }

    #[test]
    fn a_sandbox_with_all_processors_is_not_bound() {
        assert!(Processors::with(vec![0, 1]).take(2).is_none());
        assert!(Processors::with(vec![0]).take(1).is_none());
        assert!(Processors::with(Vec::new()).take(1).is_none());
    }
}
