//! The brief wait before parking.
//!
//! Waking a parked thread costs a system call here and a scheduler's round trip there: 20 to 70 µs on
//! a virtual machine. Work that is about to finish is cheaper to wait for by looking again: about
//! 1 µs. So every wait of the crate looks for a while before it parks, gives its core away between
//! two looks, and stops doing so where it does not pay.
//!
//! Floor 0: imports nothing of the crate.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// How long a wait looks before it parks, in nanoseconds.
static BUDGET_NS: AtomicU64 = AtomicU64::new(50_000);

pub(crate) fn set_budget(budget: Duration) {
    BUDGET_NS.store(
        u64::try_from(budget.as_nanos()).unwrap_or(u64::MAX),
        Relaxed,
    );
}

fn budget() -> Duration {
    Duration::from_nanos(BUDGET_NS.load(Relaxed))
}

/// A place that waits, with what it learned about its waits.
pub(crate) struct Spin {
    /// Above zero: so many misses are left before this place gives up spinning. Below: so many
    /// waits park at once before the next trial.
    credit: AtomicI32,
}

/// Misses in a row that a place may have before it parks at once.
const PATIENCE: i32 = 8;
/// Waits that then park at once before one of them tries again.
const PAUSE: i32 = 64;

impl Spin {
    pub(crate) const fn new() -> Spin {
        Spin {
            credit: AtomicI32::new(PATIENCE),
        }
    }

    /// Tries until `attempt` gives something or the budget is used up.
    ///
    /// A success that comes after the budget counts as a miss: the thread lost its core to somebody
    /// else, so the machine is busy and parking would have been as quick.
    pub(crate) fn attempt<T>(&self, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
        let found = attempt();
        if found.is_some() || !self.pays() {
            return found;
        }
        thread::yield_now();
        self.look(attempt)
    }

    /// The same for a place that has to prepare for it, and has asked before whether it pays.
    pub(crate) fn look<T>(&self, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
        let (budget, started) = (budget(), Instant::now());
        loop {
            let found = attempt();
            let in_time = started.elapsed() <= budget;
            if found.is_some() || !in_time {
                self.learn(found.is_some() && in_time);
                return found;
            }
            thread::yield_now();
        }
    }

    /// Whether the next wait should look before it parks.
    pub(crate) fn pays(&self) -> bool {
        if budget().is_zero() {
            return false;
        }
        let credit = self.credit.load(Relaxed);
        if credit < 0 {
            // Lost updates between threads only shift the next trial by a wait or two.
            self.credit
                .store(if credit == -1 { 1 } else { credit + 1 }, Relaxed);
        }
        credit > 0
    }

    fn learn(&self, hit: bool) {
        let credit = self.credit.load(Relaxed);
        let next = match hit {
            true => PATIENCE,
            false if credit <= 1 => -PAUSE,
            false => credit - 1,
        };
        if next != credit {
            self.credit.store(next, Relaxed);
        }
    }
}
