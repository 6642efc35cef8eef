//! The watchdog: reports polls that hold up the ambient thread.
//!
//! It is a thread that is there only if stalls are to be reported, and that sleeps while nothing is polled.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::start_thread;
use crate::error::{Origin, lock};
use crate::log;

/// Where the ambient thread says what it polls.
#[derive(Clone)]
pub(crate) struct Stalls(Arc<Watched>);

struct Watched {
    poll: Mutex<Poll>,
    began: Condvar,
    longest: Duration,
}

struct Poll {
    /// What is polled, and since when.
    current: Option<(Origin, Instant)>,
    /// Tells one poll from the next.
    number: u64,
    /// Whether the watchdog waits for a poll to begin.
    waiting: bool,
    /// Whether there will be no more polls.
    over: bool,
}

impl Stalls {
    /// Starts the watchdog. Without a thread to be had there are no reports.
    pub(crate) fn watch(longest: Duration) -> Option<Stalls> {
        let poll = Mutex::new(Poll {
            current: None,
            number: 0,
            waiting: false,
            over: false,
        });
        let watched = Arc::new(Watched {
            poll,
            began: Condvar::new(),
            longest,
        });
        let watchdog = Arc::clone(&watched);
        start_thread("stalls", Box::new(move || watchdog.report())).ok()?;
        Some(Stalls(watched))
    }

    /// A poll begins; it ends when what this returns is dropped.
    pub(crate) fn polling(&self, origin: Origin) -> Polling<'_> {
        let mut poll = self.0.lock();
        poll.current = Some((origin, Instant::now()));
        poll.number += 1;
        let waiting = poll.waiting;
        drop(poll);
        if waiting {
            self.0.began.notify_one();
        }
        Polling(&self.0)
    }

    /// The last poll was; the watchdog goes.
    pub(crate) fn end(&self) {
        self.0.lock().over = true;
        self.0.began.notify_one();
    }
}

pub(crate) struct Polling<'a>(&'a Watched);

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        self.0.lock().current = None;
    }
}

impl Watched {
    fn lock(&self) -> MutexGuard<'_, Poll> {
        lock(&self.poll)
    }

    /// The life of the watchdog. Each poll that is too long is reported once.
    fn report(&self) {
        let mut reported = 0;
        let mut poll = self.lock();
        while !poll.over {
            let watched = poll.current.filter(|_| poll.number != reported);
            let Some((origin, since)) = watched else {
                poll.waiting = true;
                poll = self
                    .began
                    .wait(poll)
                    .unwrap_or_else(PoisonError::into_inner);
                poll.waiting = false;
                continue;
            };
            let left = self.longest.saturating_sub(since.elapsed());
            if left.is_zero() {
                reported = poll.number;
                drop(poll);
                log(&format!(
                    "the async task started at {origin} has been blocking the ambient thread for {} ms; \
                     blocking work belongs on unsync::thread",
                    since.elapsed().as_millis()
                ));
                poll = self.lock();
                continue;
            }
            let number = poll.number;
            let waited = self
                .began
                .wait_timeout_while(poll, left, |poll| poll.number == number && !poll.over);
            poll = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
