//! At most so many works at once.
//!
//! ```text
//!   spawn, thread, cpu ──▶ a place is free ──▶ start it, with a permit
//!                     └──▶ none is ──▶ a task that waits for its turn ──▶ start it, with a permit
//! ```
//!
//! The permit goes back when the work has ended, whatever it ended as. It is handed to the one that
//! has waited longest before anybody else can have it.
//!
//! Floor 4: imports the engines and the future. The queue has no limit, as for every way to start
//! work.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use crate::ambient::{self, spawn_at};
use crate::error::{Origin, discard, lock};
use crate::processes::registry::assert_captures_nothing;
use crate::processes::{self, Entrypoint, Wire, is_worker};
use crate::threads;
use crate::unfuture::Unfuture;

/// At most so many of its works run at once, of all three kinds together; the others wait in order.
///
/// What it gives is an [`Unfuture`] as any other. Cancelling one that waits takes it out of the
/// line; once it runs, cancelling it does what it does to work of its kind, and
/// [`run_timeout`](Unfuture::run_timeout) counts from there. A place is free again when the work
/// has really ended: a thread job that runs on after its deadline keeps it.
///
/// Clones are the same limit. Work that waits for other work of the same limit keeps its place
/// meanwhile, so enough of it waits for ever: give the inner work a limit of its own.
///
/// # Examples
///
/// ```
/// let limit = unsync::Limit::new(2); // be polite to the server
/// let pages = (1..=10).map(|n| limit.thread(move || format!("page {n}")));
/// assert_eq!(unsync::join_all(pages).result().unwrap()[9], "page 10");
/// ```
#[derive(Clone)]
pub struct Limit(Arc<Gate>);

impl Limit {
    /// At most `at_once` works.
    ///
    /// # Panics
    ///
    /// If that is 0: nothing would ever run.
    #[track_caller]
    pub fn new(at_once: usize) -> Limit {
        assert!(at_once > 0, "under a limit of 0 nothing would ever run");
        Limit(Arc::new(Gate {
            at_once,
            line: Mutex::new(Line {
                free: at_once,
                waiting: BTreeMap::new(),
                tickets: 0,
            }),
        }))
    }

    /// [`spawn`](crate::spawn), when its turn has come.
    #[track_caller]
    pub fn spawn<F>(&self, future: F) -> Unfuture<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let origin = Location::caller();
        let (task, start) = ambient::prepare(origin, future);
        self.run(origin, task, start)
    }

    /// [`thread`](crate::thread()), when its turn has come.
    #[track_caller]
    pub fn thread<F, T>(&self, closure: F) -> Unfuture<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let origin = Location::caller();
        let (job, start) = threads::prepare(origin, closure);
        self.run(origin, job, start)
    }

    /// [`cpu`](crate::cpu()), when its turn has come. The arguments are encoded at once.
    #[track_caller]
    pub fn cpu<F, A>(&self, entrypoint: F, args: A) -> Unfuture<F::Output>
    where
        F: Entrypoint<A>,
        A: Wire,
        F::Output: Wire + Send + 'static,
    {
        const { assert_captures_nothing::<F>() }
        let origin = Location::caller();
        let limited = match is_worker() {
            false => processes::prepare(origin, entrypoint, args)
                .map(|(call, start)| self.run(origin, call, start)),
            true => processes::nested(entrypoint, args).map(|call| {
                let (job, start) = threads::prepare(origin, call);
                self.run(origin, job.flatten(), start)
            }),
        };
        limited.unwrap_or_else(|error| Unfuture::failed(error.started_at(origin)))
    }

    /// Has work started in its turn.
    fn run<T, S>(&self, origin: Origin, work: Unfuture<T>, start: S) -> Unfuture<T>
    where
        T: Send + 'static,
        S: FnOnce() + Send + 'static,
    {
        let begin = |(permit, work, start): (Permit, Unfuture<T>, S)| {
            let held = permit.hold(work);
            start();
            held
        };
        match Gate::enter(&self.0) {
            Ok(permit) => begin((permit, work, start)),
            Err(turn) => {
                let known = work.stopper().as_ref().map(Arc::downgrade);
                let progress = work.progress();
                // Started after the task has ended, so that there is always one thing to stop.
                let queued = spawn_at(origin, async move { (turn.await, work, start) });
                queued.proceed(known, progress, begin)
            }
        }
    }
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (free, waiting) = {
            let line = self.0.line();
            (line.free, line.waiting.len())
        };
        let at_once = self.0.at_once;
        let running = at_once - free;
        write!(
            f,
            "Limit({running} of {at_once} running, {waiting} waiting)"
        )
    }
}

struct Gate {
    at_once: usize,
    line: Mutex<Line>,
}

struct Line {
    /// Above zero only while nobody waits.
    free: usize,
    /// By ticket, which is the order of coming. One that is not in here any more has its permit.
    waiting: BTreeMap<u64, Option<Waker>>,
    /// Given out so far. None is given twice.
    tickets: u64,
}

impl Gate {
    fn line(&self) -> MutexGuard<'_, Line> {
        lock(&self.line)
    }

    fn enter(gate: &Arc<Gate>) -> Result<Permit, Turn> {
        let mut line = gate.line();
        if line.free > 0 {
            line.free -= 1;
            return Ok(Permit(Arc::clone(gate)));
        }
        let ticket = line.tickets;
        line.tickets += 1;
        line.waiting.insert(ticket, None);
        Err(Turn {
            gate: Some(Arc::clone(gate)),
            ticket,
        })
    }
}

/// The right to run. Dropping it passes it on.
struct Permit(Arc<Gate>);

impl Permit {
    /// Keeps it until the work has ended, and not only whoever waits for it has stopped waiting.
    fn hold<T: Send + 'static>(self, work: Unfuture<T>) -> Unfuture<T> {
        let (promise, held) = work.derive(work.stopper());
        promise.is_same();
        work.hand_on(promise.observed(), move |outcome| {
            // Before the outcome is seen: who sees it finds the place free.
            drop(self);
            promise.finish(outcome);
        });
        held
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut line = self.0.line();
        let next = line.waiting.pop_first();
        line.free += usize::from(next.is_none());
        drop(line);
        // Without a waker it was not polled yet, and will see at its first poll.
        if let Some((_, Some(waker))) = next {
            waker.wake();
        }
    }
}

/// A place in the line. Ready with a permit when its turn has come; dropping it leaves the line.
struct Turn {
    /// `None` once it was ready.
    gate: Option<Arc<Gate>>,
    ticket: u64,
}

impl Future for Turn {
    type Output = Permit;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Permit> {
        let gate = self.gate.take().expect("a turn comes once");
        let waker = cx.waker().clone();
        let mut line = gate.line();
        let Some(place) = line.waiting.get_mut(&self.ticket) else {
            drop(line);
            return Poll::Ready(Permit(gate));
        };
        let replaced = place.replace(waker);
        drop(line);
        drop(replaced);
        self.gate = Some(gate);
        Poll::Pending
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(gate) = self.gate.take() else { return };
        let waiting = gate.line().waiting.remove(&self.ticket);
        match waiting {
            Some(waker) => discard(waker),
            // It had its permit already, and makes no use of it.
            None => drop(Permit(gate)),
        }
    }
}
