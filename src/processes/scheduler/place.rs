//! A place where workers run: this machine, or a host.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Place {
    pub(super) is_host: bool,
    /// Workers that may live here at once.
    pub(super) slots: usize,
    /// Workers that are being started.
    pub(super) starting: usize,
    /// At a host: when these are overdue, a while after the first was started or one connected. From then on,
    /// nobody counts on them and no more are tried meanwhile.
    overdue_at: Option<Instant>,
    /// Failures in a row: starts that failed, and workers that died before they started a call. Failures
    /// within one backoff count once. Reset when a worker starts its first call.
    pub(super) failures: u32,
    /// When the next worker may be started. Set and reset with `failures`.
    pub(super) not_before: Option<Instant>,
    /// There were so many failures that calls need not wait for this place.
    pub(super) is_hopeless: bool,
}

/// The pause after the first failure. Each failure after that quadruples it, up to 2.56 s, or 64 s at a host.
/// Once no worker lives or starts anywhere, the pause at a host is at most a second.
const BACKOFF: Duration = Duration::from_millis(10);
const HOST_BACKOFF: Duration = Duration::from_millis(250);
const BACKOFF_STEPS: u32 = 4;
const PAUSE_ALONE: Duration = Duration::from_secs(1);
/// How many workers may be starting at a host at once. An ssh server drops connections at random if more than
/// ten are about to log in.
const STARTS: usize = 8;
/// A host that is up starts a worker within this time, most likely.
const OVERDUE: Duration = Duration::from_secs(1);

impl Place {
    pub(super) fn new(slots: usize, is_host: bool) -> Place {
        Place {
            is_host,
            slots,
            starting: 0,
            overdue_at: None,
            failures: 0,
            not_before: None,
            is_hopeless: slots == 0,
        }
    }

    /// Whether a worker may be started now. After a failure, one is tried at a time.
    pub(super) fn may_start(&self, now: Instant) -> bool {
        match self.not_before {
            Some(at) => at <= now && self.starting == 0,
            None => self.starting < STARTS && self.expected(now) == self.starting || !self.is_host,
        }
    }

    pub(super) fn start(&mut self, now: Instant) {
        if self.is_host && self.starting == 0 {
            self.overdue_at = Some(now + OVERDUE);
        }
        self.starting += 1;
    }

    /// A worker has connected. Where one does, the others are on their way.
    pub(super) fn connected(&mut self, now: Instant) {
        self.starting -= 1;
        self.overdue_at = self.is_host.then(|| now + OVERDUE);
    }

    /// How many workers are expected soon.
    pub(super) fn expected(&self, now: Instant) -> usize {
        match self.overdue_at {
            Some(at) if at <= now => 0,
            _ => self.starting,
        }
    }

    /// When the answer to a request for one more worker may change.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Instant> {
        let overdue_at = self.overdue_at.filter(|_| self.starting > 0);
        self.not_before.into_iter().chain(overdue_at)
    }

    /// Counts a failure.
    pub(super) fn fail(&mut self, tries: u32, now: Instant) {
        if self.not_before.is_none_or(|at| at <= now) {
            self.failures += 1;
            let base = if self.is_host { HOST_BACKOFF } else { BACKOFF };
            let steps = (self.failures - 1).min(BACKOFF_STEPS);
            self.not_before = Some(now + base * 4u32.pow(steps));
        }
        self.is_hopeless = self.failures >= tries;
    }

    /// There is no worker anywhere.
    pub(super) fn hurry(&mut self, now: Instant) {
        if self.is_host {
            let soon = now + PAUSE_ALONE;
            self.not_before = self.not_before.map(|at| at.min(soon));
        }
    }

    /// Calls that wait from now on have seen none of the failures. The pauses at a host stay: the last worker
    /// elsewhere may be replaced again and again.
    pub(super) fn forgive(&mut self) {
        self.is_hopeless = self.slots == 0;
        if !self.is_host {
            self.failures = 0;
        }
    }

    pub(super) fn succeed(&mut self) {
        self.forgive();
        (self.failures, self.not_before) = (0, None);
    }
}
