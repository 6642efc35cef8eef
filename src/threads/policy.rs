//! The policy of the pool: when to wake a thread, and when to start one. It knows no thread and no clock.

use std::time::Duration;

/// What is known of the threads.
pub(super) struct Counts {
    /// Workers that may run jobs at once.
    pub(super) limit: usize,
    pub(super) cores: usize,
    /// Threads that live or are being started, the monitor among them.
    pub(super) threads: usize,
    /// Parked and not claimed. Claiming a thread takes it off this count, under the same lock: so two
    /// jobs never count on the same thread.
    pub(super) idle: usize,
    /// Claimed, and not awake yet.
    pub(super) claimed: usize,
    /// Blocked in a wait of this library.
    pub(super) blocked: usize,
    /// Whether a worker spins before it parks. One at a time is enough.
    pub(super) spinning: bool,
    pub(super) monitor: Monitor,
    /// Whether jobs took long lately: set by the monitor, unset by the first short job. While it is
    /// set, every job wakes an idle thread. Otherwise each trivial job of a flood would wake one.
    pub(super) long: bool,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Monitor {
    Absent,
    Resting,
    /// Set before it is started or woken.
    Watching,
}

/// What is to be done once the lock is free.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Action {
    Nothing,
    Wake,
    Start,
    WakeMonitor,
    StartMonitor,
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

    /// Threads that run jobs. The monitor runs none.
    pub(super) fn workers(&self) -> usize {
        let monitor = usize::from(self.monitor != Monitor::Absent);
        self.threads.saturating_sub(monitor)
    }

    pub(super) fn active(&self) -> usize {
        let spinning = usize::from(self.spinning);
        self.workers()
            .saturating_sub(self.blocked + self.idle + spinning)
    }

    /// How many more may work at once: idle threads, and new ones up to the limit.
    pub(super) fn room(&self) -> usize {
        let counted = self.workers().saturating_sub(self.blocked);
        self.idle + self.limit.saturating_sub(counted)
    }

    /// Counts an action before it is carried out.
    pub(super) fn book(&mut self, action: Action) {
        match action {
            Action::Nothing => {}
            Action::Wake => {
                self.idle -= 1;
                self.claimed += 1;
            }
            Action::Start => self.threads += 1,
            Action::WakeMonitor => self.monitor = Monitor::Watching,
            Action::StartMonitor => {
                self.monitor = Monitor::Watching;
                self.threads += 1;
            }
        }
    }
}

/// Who takes the front of a queue of this length.
pub(super) fn decide(counts: &Counts, queued: usize) -> Action {
    let is_taken = queued <= usize::from(counts.spinning);
    let has_core = counts.active() < counts.cores;
    if is_taken {
        Action::Nothing
    } else if counts.idle > 0 && (counts.long || has_core) {
        Action::Wake
    } else if counts.room() == 0 {
        Action::Nothing
    } else if has_core {
        Action::Start
    } else {
        match counts.monitor {
            Monitor::Resting => Action::WakeMonitor,
            Monitor::Absent => Action::StartMonitor,
            Monitor::Watching => Action::Nothing,
        }
    }
}

/// Who takes one more job, where jobs are known to block.
pub(super) fn reinforce(counts: &Counts) -> Action {
    if counts.idle > 0 {
        Action::Wake
    } else if counts.room() > 0 {
        Action::Start
    } else {
        Action::Nothing
    }
}

/// A job that takes longer than this is worth another thread: starting one costs about as much.
pub(super) const LONG: Duration = Duration::from_micros(100);
/// The longest pause of the monitor.
const PAUSE_MAX: Duration = Duration::from_millis(2);

/// How often the monitor looks, and how many workers it adds then.
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

    /// Learns how many jobs the active threads have finished in a time; gives how many workers to add. Twice
    /// as many each time while jobs take long, none while they are short: more threads would only be in
    /// each other's way.
    pub(super) fn learn(&mut self, time: Duration, active: usize, finished: u64) -> usize {
        let count = |number| u32::try_from(number).unwrap_or(u32::MAX);
        let spent = time.saturating_mul(count(active as u64));
        if spent < LONG.saturating_mul(count(finished)) {
            *self = Pace {
                pause: PAUSE_MAX.min(self.pause * 2),
                batch: 1,
            };
            return 0;
        }
        let batch = self.batch;
        *self = Pace {
            pause: LONG,
            batch: batch.saturating_mul(2),
        };
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pool of up to 8 threads on 2 cores, with so many threads.
    fn pool(threads: usize) -> Counts {
        Counts {
            limit: 8,
            cores: 2,
            threads,
            ..Counts::new()
        }
    }

    /// Carries out decisions for one queued job after the other, and gives them.
    fn decisions(counts: &mut Counts, jobs: usize) -> Vec<Action> {
        let decide = |queued| {
            let action = decide(counts, queued);
            counts.book(action);
            action
        };
        (1..=jobs).map(decide).collect()
    }

    #[test]
    fn threads_start_at_once_up_to_the_cores_and_then_the_monitor() {
        use Action::{Nothing, Start, StartMonitor};
        let mut counts = pool(0);
        let all = decisions(&mut counts, 5);
        assert_eq!(all, [Start, Start, StartMonitor, Nothing, Nothing]);
        assert_eq!((counts.workers(), counts.active()), (2, 2));
    }

    #[test]
    fn nobody_is_needed_for_an_empty_queue_or_for_what_a_spinning_worker_sees() {
        let spinning = Counts {
            spinning: true,
            ..pool(1)
        };
        assert_eq!(decide(&pool(0), 0), Action::Nothing);
        assert_eq!(decide(&spinning, 1), Action::Nothing);
        assert_eq!(decide(&spinning, 2), Action::Start);
    }

    #[test]
    fn an_idle_thread_is_claimed_once() {
        use Action::{Start, Wake};
        let mut counts = Counts { idle: 1, ..pool(1) };
        assert_eq!(decisions(&mut counts, 2), [Wake, Start]);
        assert_eq!((counts.idle, counts.claimed), (0, 1));
    }

    #[test]
    fn idle_threads_beyond_the_cores_are_woken_only_for_long_jobs() {
        let busy = |long| Counts {
            idle: 2,
            long,
            monitor: Monitor::Resting,
            ..pool(5)
        };
        assert_eq!(decide(&busy(true), 1), Action::Wake);
        assert_eq!(decide(&busy(false), 1), Action::WakeMonitor);
    }

    #[test]
    fn blocked_threads_count_neither_as_active_nor_against_the_limit() {
        let blocked = Counts {
            blocked: 8,
            ..pool(8)
        };
        assert_eq!((blocked.active(), blocked.room()), (0, 8));
        assert_eq!(decide(&blocked, 1), Action::Start);
    }

    #[test]
    fn a_full_pool_waits_for_its_threads() {
        assert_eq!(decide(&pool(8), 100), Action::Nothing);
        assert_eq!(reinforce(&pool(8)), Action::Nothing);
        let one_core = Counts {
            limit: 1,
            ..pool(1)
        };
        assert_eq!(decide(&one_core, 1), Action::Nothing);
    }

    #[test]
    fn reinforcements_are_idle_threads_first() {
        let mut counts = Counts {
            idle: 1,
            monitor: Monitor::Watching,
            ..pool(8)
        };
        let mut all = Vec::new();
        for _ in 0..3 {
            all.push(reinforce(&counts));
            counts.book(all[all.len() - 1]);
        }
        assert_eq!(all, [Action::Wake, Action::Start, Action::Nothing]);
        assert_eq!(counts.workers(), 8);
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
