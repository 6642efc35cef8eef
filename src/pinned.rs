//! A thread for a value that must stay on one thread.
//!
//! ```text
//!   call(f) ──▶ queue ──▶ the thread: make the value; run one call after the other; drop the value
//! ```
//!
//! The thread belongs to the value alone, so calls may block for any length of time and count against no
//! limit. The queue has no limit either, as for every way to start work.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use crate::config::{on_thread_start, settings, start_thread};
use crate::current;
use crate::error::{Error, ErrorKind, Origin, discard, wall};
use crate::spin::Spin;
use crate::threads::{Closure, Culprit};
use crate::unfuture::Unfuture;

/// A value that lives on a thread of its own and never leaves it, so it need not be `Send`.
///
/// For values that must stay where they were made: a connection, a window handle, the context of a foreign
/// library, anything that contains an [`Rc`](std::rc::Rc). The closure that makes the value runs on its
/// thread, and so do all calls, one after the other. Dropping the `Pinned` drops the value and ends the thread
/// once the queued calls have run.
///
/// [`drain`](crate::drain) and [`shutdown`](crate::shutdown) do not affect it, because it has an owner: they do
/// not wait for its calls, and later calls still run. Work that a call starts elsewhere after a shutdown is
/// refused. Like any thread that nobody joins, its thread ends silently with the process.
///
/// # Examples
///
/// ```
/// use std::cell::RefCell;
/// use std::rc::Rc;
///
/// let names = unsync::Pinned::new(|| Rc::new(RefCell::new(Vec::new())));
/// names.call(|names| names.borrow_mut().push("Ada"));
/// let count = names.call(|names| names.borrow().len());
/// assert_eq!(count.result().unwrap(), 1);
/// ```
pub struct Pinned<V> {
    queue: Sender<Job<V>>,
    /// What calls get if there is no thread.
    gone: Error,
    origin: Origin,
}

/// A call on its way. It gets the value, or the error that stands in its place.
type Job<V> = Box<dyn FnOnce(Result<&mut V, Error>) + Send>;

impl<V: 'static> Pinned<V> {
    /// Starts a thread and makes the value on it. Does not wait for either.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{cell::Cell, rc::Rc};
    ///
    /// let counter = unsync::Pinned::new(|| Rc::new(Cell::new(40))); // not `Send`
    /// assert_eq!(counter.call(|count| count.get() + 2).result().unwrap(), 42);
    /// ```
    #[track_caller]
    pub fn new<M>(make: M) -> Pinned<V>
    where
        M: FnOnce() -> V + Send + 'static,
    {
        let origin = Location::caller();
        let (queue, jobs) = mpsc::channel();
        let started = settings().and_then(|_| {
            let body = move || serve(origin, make, jobs);
            start_thread("pinned", Box::new(body))
                .map_err(|error| Error::os("no thread could be started for a pinned value", error))
        });
        let gone = started.err().unwrap_or_else(|| {
            Error::new(ErrorKind::Abandoned, "the thread of a pinned value is gone")
        });
        Pinned {
            queue,
            gone: gone.started_at(origin),
            origin,
        }
    }

    /// Runs a closure on the value, after the calls that were queued before.
    ///
    /// [`cancel`](Unfuture::cancel) skips a queued call, and drops its closure. A running call cannot be
    /// stopped; [`is_cancelled`](crate::is_cancelled) returns `true` in it, and its value is still delivered. A
    /// call may wait for any other work.
    ///
    /// # Errors
    ///
    /// The `Unfuture` resolves as [`ErrorKind::Panicked`](crate::ErrorKind) if the closure panics or making the
    /// value did, as [`ErrorKind::Os`](crate::ErrorKind) if the operating system refused the thread, as
    /// [`ErrorKind::NotInitialised`](crate::ErrorKind) if the settings are invalid, and as
    /// [`ErrorKind::Cancelled`](crate::ErrorKind) or [`ErrorKind::TimedOut`](crate::ErrorKind) if it was
    /// stopped in time.
    ///
    /// When a closure panics, the value stays as the panic left it, and later calls get it like that, as with a
    /// `Mutex` whose poison is ignored.
    ///
    /// # Examples
    ///
    /// ```
    /// let counter = unsync::Pinned::new(|| std::rc::Rc::new(std::cell::Cell::new(0)));
    /// let counts = [1, 2].map(|n| counter.call(move |count| count.replace(count.get() + n)));
    /// assert_eq!(unsync::join_all(counts).result().unwrap(), [0, 1]);
    /// ```
    #[track_caller]
    pub fn call<F, R>(&self, f: F) -> Unfuture<R>
    where
        F: FnOnce(&mut V) -> R + Send + 'static,
        R: Send + 'static,
    {
        let call = Arc::new(Closure::new(f, Culprit::PinnedCall, Location::caller()));
        let work = Arc::clone(&call);
        let job: Job<V> = Box::new(move |value| {
            let job = Arc::clone(&work);
            current::run(job, move || work.run_with(|f| value.map(f)));
        });
        if let Err(unsent) = self.queue.send(job) {
            (unsent.0)(Err(self.gone.clone()));
        }
        Unfuture::of(call)
    }
}

impl<V> fmt::Debug for Pinned<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pinned(started at {})", self.origin)
    }
}

/// The life of the thread.
fn serve<V>(origin: Origin, make: impl FnOnce() -> V, jobs: Receiver<Job<V>>) {
    static SPIN: Spin = Spin::new();
    on_thread_start();
    let mut value = wall(make)
        .map_err(|payload| Error::panicked("making a pinned value", payload).started_at(origin));
    let next = || {
        SPIN.attempt(|| jobs.try_recv().ok())
            .or_else(|| jobs.recv().ok())
    };
    while let Some(job) = next() {
        job(value.as_mut().map_err(|error| error.clone()));
    }
    discard(value);
}
