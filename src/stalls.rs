//! The watchdog of the ambient thread: reports polls that block it.
//!
//! Its thread exists only if stalls are to be reported, and sleeps while nothing is polled.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use crate::config::start_thread;
use crate::error::{Origin, lock};
use crate::log;
use crate::sync::{Condvar, Instant, Mutex, PoisonError};

/// Where the ambient thread says what it polls.
pub(crate) struct Stalls {
    state: Mutex<State>,
    /// Notified when a poll begins while the watchdog waits for one, and at the end.
    began: Condvar,
    longest: Duration,
}

#[derive(Default)]
struct State {
    /// What is polled, and since when.
    polling: Option<(Origin, Instant)>,
    /// Whether the watchdog waits for a poll to begin.
    waiting: bool,
    /// Whether there will be no more polls.
    over: bool,
}

impl Stalls {
    /// Starts the watchdog. If the operating system refuses the thread, there are no reports.
    pub(crate) fn watch(longest: Duration) -> Option<Arc<Stalls>> {
        let stalls = Arc::new(Stalls {
            state: Mutex::default(),
            began: Condvar::new(),
            longest,
        });
        let watchdog = Arc::clone(&stalls);
        start_thread("stalls", Box::new(move || watchdog.report())).ok()?;
        Some(stalls)
    }

    /// Called when a poll begins; the poll ends when the guard is dropped.
    pub(crate) fn polling(&self, origin: Origin) -> Polling<'_> {
        let mut state = lock(&self.state);
        state.polling = Some((origin, Instant::now()));
        let waiting = mem::take(&mut state.waiting);
        drop(state);
        if waiting {
            self.began.notify_one();
        }
        Polling(self)
    }

    /// Ends the watchdog: there are no more polls.
    pub(crate) fn end(&self) {
        lock(&self.state).over = true;
        self.began.notify_one();
    }

    /// The life of the watchdog. Each poll that is too long is reported once.
    fn report(&self) {
        let mut reported = None;
        let mut state = lock(&self.state);
        while !state.over {
            let unreported = state.polling.filter(|(_, since)| reported != Some(*since));
            let Some((origin, since)) = unreported else {
                state.waiting = true;
                let woken = self.began.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let held_up = since.elapsed();
            if held_up < self.longest {
                let woken = self.began.wait_timeout(state, self.longest - held_up);
                state = woken.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            reported = Some(since);
            drop(state);
            log(&format!(
                "the async task started at {origin} has been blocking the ambient thread for {} ms; \
                 blocking work belongs on unsync::thread",
                held_up.as_millis() as u64
            ));
            state = lock(&self.state);
        }
    }
}

pub(crate) struct Polling<'a>(&'a Stalls);

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).polling = None;
    }
}
