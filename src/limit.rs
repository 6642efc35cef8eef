//! At most so many works at once.
//!
//! ```text
//!   spawn, thread, cpu ──▶ prepared, with a permit inside ──▶ one is free ──▶ started
//!                                     └──▶ none is ──▶ the line ──▶ started by whoever gives one back
//! ```
//!
//! The permit lies in the work itself, and goes back when the future, the closure or the call is gone,
//! whatever it ended as. It is handed to the one that has waited longest before anybody else can have it.
//!
//! Floor 4: imports the engines and the future. The queue has no limit, as for every way to start
//! work.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use crate::ambient::try_spawn_with;
use crate::error::{Error, Origin, discard, lock};
use crate::processes::registry::assert_captures_nothing;
use crate::processes::{self, Entrypoint, Wire, is_worker};
use crate::slot::nest;
use crate::threads::{self, Culprit, Prepared};
use crate::unfuture::{Unfuture, Work};

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
            tickets: AtomicU64::new(0),
            line: Mutex::new(Line {
                free: at_once,
                waiting: VecDeque::new(),
                left: 0,
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
        let permit = self.0.permit();
        self.0.admit(permit.ticket, Start::Task(None));
        let held = (future, permit);
        try_spawn_with(Location::caller(), false, |itself| async move {
            let (future, permit) = held;
            poll_fn(|cx| permit.poll(cx)).await;
            if let Some(itself) = itself.upgrade() {
                itself.slot().begin();
            }
            Ok(future.await)
        })
    }

    /// [`thread`](crate::thread()), when its turn has come.
    #[track_caller]
    pub fn thread<F, T>(&self, closure: F) -> Unfuture<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.job(Location::caller(), || Ok(closure()))
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
            true => processes::nested(entrypoint, args).map(|call| self.job(origin, call)),
            false => processes::prepare(origin, entrypoint, args).map(|prepared| {
                let call = prepared.unfuture();
                let permit = self.0.permit();
                let ticket = permit.ticket;
                prepared.hold(Box::new(permit));
                self.0
                    .admit(ticket, Start::Call(Box::new(|| prepared.submit())));
                call
            }),
        };
        limited.unwrap_or_else(|error| Unfuture::failed(error.started_at(origin)))
    }

    fn job<F, T>(&self, origin: Origin, closure: F) -> Unfuture<T>
    where
        F: FnOnce() -> Result<T, Error> + Send + 'static,
        T: Send + 'static,
    {
        let permit = self.0.permit();
        let ticket = permit.ticket;
        let held = Held { closure, permit };
        let (job, prepared) = threads::prepare(origin, Culprit::Job, move || held.run());
        self.0.admit(ticket, Start::Job(prepared));
        job
    }
}

/// A closure, and the permit that is given back after it: it ran, panicked, or was dropped.
struct Held<F> {
    closure: F,
    permit: Permit,
}

impl<F> Held<F> {
    fn run<T>(self) -> T
    where
        F: FnOnce() -> T,
    {
        let _permit = self.permit;
        (self.closure)()
    }
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (free, waiting) = {
            let line = self.0.line();
            (line.free, line.waiting.len() - line.left)
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
    /// Given out so far. None is given twice.
    tickets: AtomicU64,
    line: Mutex<Line>,
}

struct Line {
    /// Above zero only while nobody waits.
    free: usize,
    /// By ticket. One that is not in here any more has its permit; without a start it has left the line.
    waiting: VecDeque<(u64, Option<Start>)>,
    /// How many in there have left.
    left: usize,
}

/// What waits for a permit: prepared, and not begun.
enum Start {
    /// To be woken; without a waker it was not polled yet, and sees at its first poll.
    Task(Option<Waker>),
    Job(Prepared),
    Call(Box<dyn FnOnce() + Send>),
}

impl Start {
    fn start(self) {
        match self {
            Start::Task(waker) => discard(waker.map(Waker::wake)),
            Start::Job(job) => job.submit(),
            Start::Call(submit) => submit(),
        }
    }
}

impl Gate {
    fn line(&self) -> MutexGuard<'_, Line> {
        lock(&self.line)
    }

    /// A permit for what is to be [admitted](Gate::admit) at once.
    fn permit(self: &Arc<Gate>) -> Permit {
        Permit {
            gate: Arc::clone(self),
            ticket: self.tickets.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn admit(&self, ticket: u64, start: Start) {
        let mut line = self.line();
        if line.free > 0 {
            line.free -= 1;
            drop(line);
            return start.start();
        }
        // Of several that come at once, one with a later ticket may be first.
        let place = line.waiting.partition_point(|(before, _)| *before < ticket);
        line.waiting.insert(place, (ticket, Some(start)));
    }
}

impl Line {
    fn find(&mut self, ticket: u64) -> Option<&mut Option<Start>> {
        let found = self
            .waiting
            .binary_search_by_key(&ticket, |(ticket, _)| *ticket);
        found.ok().map(|place| &mut self.waiting[place].1)
    }

    /// The first in the line, which has a permit from now on.
    fn next(&mut self) -> Option<Start> {
        while let Some((_, start)) = self.waiting.pop_front() {
            if start.is_some() {
                return start;
            }
            self.left -= 1;
        }
        self.free += 1;
        None
    }

    /// Takes one out of the line, if it is in there.
    fn leave(&mut self, ticket: u64) -> Option<Start> {
        let start = self.find(ticket)?.take();
        self.left += 1;
        // So that they take no more memory than the others, and each costs no more than a look.
        if self.left * 2 > self.waiting.len() {
            self.waiting.retain(|(_, start)| start.is_some());
            self.left = 0;
        }
        start
    }
}

/// The right to run, or a place in the line for it. Dropping it passes it on, or leaves the line.
struct Permit {
    gate: Arc<Gate>,
    ticket: u64,
}

impl Permit {
    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let waker = cx.waker().clone();
        let mut line = self.gate.line();
        let Some(Some(Start::Task(place))) = line.find(self.ticket) else {
            return Poll::Ready(());
        };
        let replaced = place.replace(waker);
        drop(line);
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut line = self.gate.line();
        let left = line.leave(self.ticket);
        let next = match left {
            Some(_) => None,
            None => line.next(),
        };
        drop(line);
        discard(left);
        if let Some(next) = next {
            // It may be refused, and drop the next permit.
            nest(move || next.start());
        }
    }
}
