//! Who works, and who holds up the ambient thread.
//!
//! The engines describe their work in the terms of this file. The watchdog in it is a thread that is
//! there only if stalls are to be reported, and that sleeps while nothing is polled.
//!
//! Floor 2: imports only the error, and how to write a line to standard error.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Origin, lock};
use crate::processes::log;

/// The engine that a piece of work belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WorkKind {
    /// A future on the ambient thread.
    Async,
    /// A job of the thread pool.
    Thread,
    /// A call to a worker process.
    Cpu,
}

/// How far a piece of work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WorkState {
    /// It waits for a thread or a worker process.
    Queued,
    /// It runs; an async task may be waiting for something.
    Running,
}

/// One piece of live work, as [`tasks`](crate::tasks) lists it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TaskInfo {
    /// Where it runs.
    pub kind: WorkKind,
    /// How far it is.
    pub state: WorkState,
    /// How long it has been running; for a call that waits in the queue, how long it has been
    /// waiting; `None` for a thread job that waits. For an async task as of a few polls ago.
    pub age: Option<Duration>,
    /// The line that started it.
    pub started_at: Origin,
    /// The function, for a call to a worker process.
    pub name: Option<&'static str>,
}

/// How much there is of what, as [`stats`](crate::stats) tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Async tasks that have begun and not ended.
    pub async_tasks: usize,
    /// Thread jobs that wait for a thread, and some that waited and were cancelled.
    pub jobs_queued: usize,
    /// Thread jobs that run.
    pub jobs_running: usize,
    /// Threads of the pool that run jobs, or wait for some.
    pub threads: usize,
    /// Calls that wait for a worker process.
    pub calls_queued: usize,
    /// Calls that a worker process has.
    pub calls_running: usize,
    /// Worker processes.
    pub workers: usize,
}

/// A step of the crate's own that takes a list of work.
pub(crate) type OnList = Box<dyn FnOnce(Vec<TaskInfo>) + Send>;

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
    pub(crate) fn watch(longest: Duration, thread: thread::Builder) -> Option<Stalls> {
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
        thread.spawn(move || watchdog.report()).ok()?;
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
                    "the async task started at {origin} holds up the ambient thread for {:?} now; \
                     blocking work belongs on unsync::thread",
                    since.elapsed()
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
