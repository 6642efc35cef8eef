//! The policy of the pool: when to wake a thread, and when to start one. It knows no thread and no clock.

use std::time::Duration;

/// What the pool knows about its threads.
pub(super) struct Counts {
    /// Threads that may run jobs at once; 0 until the pool is used.
    pub(super) limit: usize,
    pub(super) cores: usize,
    /// Threads that live or are being started.
    pub(super) threads: usize,
    /// Parked and not claimed. Claiming a thread takes it off this count, under the same lock: so two
    /// jobs never count on the same thread.
    pub(super) idle: usize,
    /// Claimed, and not awake yet.
    pub(super) claimed: usize,
    /// Blocked in a wait of this library.
    pub(super) blocked: usize,
    /// Whether a thread spins before it parks. One at a time is enough.
    pub(super) spinning: bool,
    pub(super) monitor: Monitor,
    /// Whether recent jobs took long: set by the monitor, unset by the first short job. Only while it is set
    /// does every job wake an idle thread; otherwise each trivial job of a flood would wake one.
    pub(super) long: bool,
}

/// Whether a thread watches the queue instead of running jobs.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Monitor {
    Absent,
    /// The next thread that starts or wakes is the monitor.
    Wanted,
    Watching,
}

/// What to do once the lock is free. `Counts` already includes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Action {
    Nothing,
    Wake,
    Start,
}

impl Counts {
    pub(super) const fn new() -> Counts {
        Counts {
            limit: 0,
            cores: 0,
            threads: 0,
            idle: 0,
            claimed: 0,
            blocked: 0,
            spinning: false,
            monitor: Monitor::Absent,
            long: false,
        }
    }

    /// Threads that neither block nor park.
    fn working(&self) -> usize {
        self.threads.saturating_sub(self.blocked + self.idle)
    }

    /// Threads that run jobs.
    pub(super) fn active(&self) -> usize {
        let monitor = usize::from(self.monitor != Monitor::Absent);
        // A monitor that blocks in its thread-start hook is counted twice.
        let others = usize::from(self.spinning) + monitor;
        self.working().saturating_sub(others)
    }

    /// How many more may work at once.
    pub(super) fn room(&self) -> usize {
        self.limit.saturating_sub(self.working())
    }

    /// Whether threads that have stopped blocking are too many beside those that stood in for them.
    pub(super) fn is_exceeded(&self) -> bool {
        self.working() > self.limit
    }

    /// Who takes the front of a queue of this length.
    pub(super) fn decide(&mut self, queued: usize) -> Action {
        let is_taken = queued <= usize::from(self.spinning);
        let has_core = self.active() < self.cores;
        let wakes = self.long && self.idle > 0;
        if is_taken {
            return Action::Nothing;
        }
        if !has_core && !wakes {
            if self.monitor != Monitor::Absent || self.room() == 0 {
                return Action::Nothing;
            }
            self.monitor = Monitor::Wanted;
        }
        self.reinforce()
    }

    /// Adds a thread, however many cores are busy.
    pub(super) fn reinforce(&mut self) -> Action {
        if self.room() == 0 {
            Action::Nothing
        } else if self.idle > 0 {
            self.idle -= 1;
            self.claimed += 1;
            Action::Wake
        } else {
            self.threads += 1;
            Action::Start
        }
    }

    /// The operating system refused a thread that was to start.
    pub(super) fn refused(&mut self) {
        self.threads -= 1;
        if self.monitor == Monitor::Wanted {
            self.monitor = Monitor::Absent;
        }
    }
}

/// A job that takes longer than this is worth another thread: starting one costs about as much.
pub(super) const LONG: Duration = Duration::from_micros(100);
/// The longest pause of the monitor.
const PAUSE_MAX: Duration = Duration::from_millis(2);

/// How often the monitor looks, and how many threads it adds then.
pub(super) struct Pace {
    pub(super) pause: Duration,
    batch: usize,
}

impl Pace {
    pub(super) fn new() -> Pace {
        Pace {
            pause: LONG,
            batch: 1,
        }
    }

    /// Learns how many jobs the active threads finished in `time`; returns how many threads to add. Twice as
    /// many each time while jobs take long, none while they are short: more threads would only get in each
    /// other's way.
    pub(super) fn learn(&mut self, time: Duration, active: usize, finished: u64) -> usize {
        let spent = time.as_nanos() * active as u128;
        if spent < LONG.as_nanos() * u128::from(finished) {
            self.pause = PAUSE_MAX.min(self.pause * 2);
            self.batch = 1;
            return 0;
        }
        let batch = self.batch;
        self.pause = LONG;
        self.batch = batch.saturating_mul(2);
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pool of up to 8 threads on 2 cores, with this many threads.
    fn pool(threads: usize) -> Counts {
        Counts {
            limit: 8,
            cores: 2,
            threads,
            ..Counts::new()
        }
    }

    /// Decides for one queued job after another.
    fn decisions(counts: &mut Counts, jobs: usize) -> Vec<Action> {
        (1..=jobs).map(|queued| counts.decide(queued)).collect()
    }

    #[test]
    fn threads_start_at_once_up_to_the_cores_and_then_the_monitor() {
        use Action::{Nothing, Start};
        let mut counts = pool(0);
        let all = decisions(&mut counts, 5);
        assert_eq!(all, [Start, Start, Start, Nothing, Nothing]);
        assert!(counts.monitor == Monitor::Wanted);
        assert_eq!((counts.threads, counts.active()), (3, 2));
    }

    #[test]
    fn nobody_is_needed_for_an_empty_queue_or_for_what_a_spinning_thread_sees() {
        let mut spinning = Counts {
            spinning: true,
            ..pool(1)
        };
        assert_eq!(pool(0).decide(0), Action::Nothing);
        assert_eq!(spinning.decide(1), Action::Nothing);
        assert_eq!(spinning.decide(2), Action::Start);
    }

    #[test]
    fn an_idle_thread_is_claimed_once() {
        use Action::{Start, Wake};
        let mut counts = Counts { idle: 1, ..pool(1) };
        assert_eq!(decisions(&mut counts, 2), [Wake, Start]);
        assert_eq!((counts.idle, counts.claimed), (0, 1));
    }

    #[test]
    fn beyond_the_cores_an_idle_thread_is_woken_for_each_long_job_and_else_as_the_monitor() {
        let busy = |long| Counts {
            idle: 2,
            long,
            ..pool(5)
        };
        let (mut long, mut short) = (busy(true), busy(false));
        assert_eq!(decisions(&mut long, 2), [Action::Wake; 2]);
        assert!(long.monitor == Monitor::Absent);
        assert_eq!(decisions(&mut short, 2), [Action::Wake, Action::Nothing]);
        assert!(short.monitor == Monitor::Wanted);
    }

    #[test]
    fn blocked_threads_count_neither_as_active_nor_against_the_limit() {
        let mut blocked = Counts {
            blocked: 8,
            ..pool(8)
        };
        assert_eq!((blocked.active(), blocked.room()), (0, 8));
        assert_eq!(blocked.decide(1), Action::Start);
    }

    #[test]
    fn a_full_pool_waits_for_its_threads() {
        assert_eq!(pool(8).decide(100), Action::Nothing);
        assert_eq!(pool(8).reinforce(), Action::Nothing);
        let mut one_core = Counts {
            limit: 1,
            ..pool(1)
        };
        assert_eq!(one_core.decide(1), Action::Nothing);
    }

    #[test]
    fn reinforcements_are_idle_threads_first_and_the_monitor_is_within_the_limit() {
        let mut counts = Counts {
            idle: 1,
            monitor: Monitor::Watching,
            ..pool(7)
        };
        let all = [(); 3].map(|()| counts.reinforce());
        assert_eq!(all, [Action::Wake, Action::Start, Action::Nothing]);
        assert_eq!(counts.threads, 8);
    }

    #[test]
    fn a_monitor_that_the_system_refuses_is_wanted_again() {
        let mut counts = pool(2);
        for _ in 0..2 {
            assert_eq!(counts.decide(1), Action::Start);
            counts.refused();
            assert_eq!((counts.threads, counts.active()), (2, 2));
        }
    }

    #[test]
    fn the_monitor_adds_twice_as_many_while_jobs_block_and_none_while_they_are_short() {
        let mut pace = Pace::new();
        let blocked = [(); 4].map(|()| pace.learn(LONG, 2, 0));
        assert_eq!(blocked, [1, 2, 4, 8]);
        assert_eq!(pace.learn(LONG, 2, 1000), 0);
        assert_eq!(pace.pause, LONG * 2);
        let short = [(); 9].map(|()| pace.learn(LONG, 2, 1000));
        assert_eq!((short, pace.pause), ([0; 9], PAUSE_MAX));
        assert_eq!((pace.learn(LONG, 2, 0), pace.pause), (1, LONG));
    }

    /// No thread is active while all of them wait: time alone says nothing about the jobs.
    #[test]
    fn jobs_that_wait_without_an_active_thread_are_taken_for_long() {
        assert_eq!(Pace::new().learn(LONG, 0, 0), 1);
    }
}
