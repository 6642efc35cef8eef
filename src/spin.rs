//! The brief wait before parking.
//!
//! Waking a parked thread costs a system call here and a scheduler's round trip there: 20 to 70 µs on
//! a virtual machine. Looking again until the work has finished takes about 1 µs. So a wait for
//! work looks for a while before it parks, yields its core between two looks, and stops spinning where that
//! does not pay.

use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// How long a wait spins before it parks, in nanoseconds.
static BUDGET_NS: AtomicU32 = AtomicU32::new(50_000);

pub(crate) fn set_budget(budget: Duration) {
    // The settings allow no more than a millisecond.
    BUDGET_NS.store(budget.as_nanos() as u32, Relaxed);
}

/// How long a wait spins at most.
pub(crate) fn budget() -> Duration {
    Duration::from_nanos(BUDGET_NS.load(Relaxed).into())
}

/// A place in the code that waits, with what it has learned about its waits.
pub(crate) struct Spin {
    /// What spinning has saved here, less what it has cost, in microseconds. While no credit is left, waits
    /// park at once.
    credit: AtomicI32,
}

/// What a place may lose before it has saved anything.
const CREDIT_INITIAL: i32 = 400;
/// Credit stops growing here, so that a place soon learns that things have changed.
const CREDIT_MAX: i32 = 4_000;
/// About what a successful spin saves: the wake-up of a parked thread.
const SAVED: i32 = 40;
/// What a wait that parks at once adds: a fraction of its own cost, so that the trials after it cost no more
/// than that.
const REFILL: i32 = 2;

impl Spin {
    pub(crate) const fn new() -> Spin {
        Spin {
            credit: AtomicI32::new(CREDIT_INITIAL),
        }
    }

    /// Tries until `attempt` gives something or the budget is used up.
    pub(crate) fn attempt<T>(&self, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
        let found = attempt();
        if found.is_some() || !self.pays() {
            return found;
        }
        self.look(attempt)
    }

    /// The same for a place that has to prepare for spinning, and has already asked whether it pays.
    pub(crate) fn look<T>(&self, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
        let found = attempt();
        if found.is_some() {
            // Nothing was waited for, so there is nothing to learn.
            return found;
        }
        let (budget, started) = (budget(), Instant::now());
        loop {
            thread::yield_now();
            let found = attempt();
            let took = started.elapsed();
            if took > budget {
                // A success this late counts as a miss: the thread lost its core to another one, so the
                // machine is busy and parking would have been as quick.
                let lost = took.as_micros().min(CREDIT_MAX as u128);
                self.learn(-(lost as i32));
                return found;
            }
            if found.is_some() {
                self.learn(SAVED);
                return found;
            }
        }
    }

    /// Whether the next wait should spin before it parks.
    pub(crate) fn pays(&self) -> bool {
        if budget().is_zero() {
            return false;
        }
        let pays = self.credit.load(Relaxed) > 0;
        if !pays {
            self.learn(REFILL);
        }
        pays
    }

    fn learn(&self, gain: i32) {
        // Lost updates between threads only shift the next trial by a wait or two.
        let credit = self.credit.load(Relaxed);
        let next = (credit + gain).min(CREDIT_MAX);
        if next != credit {
            self.credit.store(next, Relaxed);
        }
    }
}
