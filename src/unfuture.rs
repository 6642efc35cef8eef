//! The future and the promise: the two ends of a slot.
//!
//! Whoever does the work holds a [`Slot`] inside something that is [`Work`], and finishes it; whoever
//! wants the value holds an [`Unfuture`]. This file knows no engine: how work is stopped is the
//! business of the [`Work`], and how a thread may wait is told by its role.

use std::fmt;
use std::future::Future;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::current::assert_may_block;
use crate::error::{Error, ErrorKind, Origin, unobserved};
use crate::progress::Progress;
use crate::slot::{Observed, Observer, Slot, already_taken, nest};

/// A value that is being made: by an async task, a pool thread, a worker process, or a [`Promise`].
///
/// The work starts without being awaited. One may `.await` the value from any executor or block for
/// it with [`result`](Unfuture::result): the same `Result` in both worlds. Dropping an `Unfuture`
/// does not stop the work.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), unsync::Error> {
/// let six = unsync::spawn(async { 6 });
/// let seven = unsync::thread(|| 7);
/// let product = unsync::spawn(async move { Ok(six.await? * seven.await?) });
/// assert_eq!(product.flatten().result()?, 42);
/// # Ok(())
/// # }
/// ```
pub struct Unfuture<T> {
    /// `None` only within a function that consumes it.
    work: Option<Arc<dyn Work<T>>>,
}

/// The end of an [`Unfuture`] that is set by hand, from any thread. Made by [`promise`]. Called
/// `oneshot::Sender` in tokio and futures.
///
/// Dropping it unfulfilled resolves the `Unfuture` as [`ErrorKind::Abandoned`], so nobody waits for
/// ever.
///
/// # Examples
///
/// ```
/// let (promise, unfuture) = unsync::promise();
/// std::thread::spawn(move || promise.set(42));
/// assert_eq!(unfuture.result().unwrap(), 42);
/// ```
pub struct Promise<T> {
    /// `None` once it was kept.
    work: Option<Arc<Promised<T>>>,
}

// ---------------------------------------------------------------------------------- public face

impl<T> Unfuture<T> {
    /// Waits for the outcome.
    ///
    /// Blocks the calling thread until the work has ended, for ever if it never ends; see
    /// [`wait_timeout`](Unfuture::wait_timeout) for a limit. On two kinds of threads it never blocks, and
    /// neither does any other wait of this library: on the ambient thread, and on the threads that read
    /// from worker processes, where results are [decoded](crate::Wire::decode) and the hooks
    /// [`on_unobserved`](crate::Config::on_unobserved) and
    /// [`worker_command`](crate::Config::worker_command) may be called. There a finished `Unfuture` gives
    /// its outcome and a pending one is an error.
    ///
    /// # Errors
    ///
    /// What became of the work if it gave no value, and [`ErrorKind::WouldBlock`] for a pending
    /// `Unfuture` on a thread that must not block. The work goes on in that case, unless it is tied by
    /// [`cancel_on_drop`](Unfuture::cancel_on_drop): the `Unfuture` is gone.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(unsync::thread(|| 1 + 1).result().unwrap(), 2);
    /// ```
    pub fn result(self) -> Result<T, Error> {
        if let Some(work) = &self.work {
            let slot = work.slot();
            if !slot.is_done() {
                slot.wait()?;
            }
        }
        self.take()
    }

    /// Blocks until the work has ended, without taking its outcome.
    ///
    /// # Panics
    ///
    /// If the work has not ended, on the ambient thread and wherever else
    /// [`result`](Unfuture::result) does not block.
    ///
    /// # Examples
    ///
    /// ```
    /// let job = unsync::thread(|| 1);
    /// job.wait();
    /// assert!(job.is_done());
    /// assert_eq!(job.result().unwrap(), 1);
    /// ```
    #[track_caller]
    pub fn wait(&self) {
        self.wait_until(None);
    }

    /// Blocks until the work has ended or `limit` has passed; says whether it has ended.
    ///
    /// The work goes on in either case.
    ///
    /// # Panics
    ///
    /// If the work has not ended, on the ambient thread and wherever else
    /// [`result`](Unfuture::result) does not block.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let (promise, unfuture) = unsync::promise();
    /// assert!(!unfuture.wait_timeout(Duration::from_millis(1)));
    /// promise.set(1);
    /// assert!(unfuture.wait_timeout(Duration::MAX));
    /// assert_eq!(unfuture.result().unwrap(), 1);
    /// ```
    #[track_caller]
    pub fn wait_timeout(&self, limit: Duration) -> bool {
        // A deadline too far to be told is no deadline.
        self.wait_until(Instant::now().checked_add(limit))
    }

    #[track_caller]
    pub(crate) fn wait_until(&self, deadline: Option<Instant>) -> bool {
        let Some(work) = &self.work else { return true };
        let slot = work.slot();
        if slot.is_done() {
            return true;
        }
        assert_may_block(|thread| {
            let origin = slot.origin;
            format!(
                "waiting for work would block {thread}; `.await` it in a task instead (work started at \
                 {origin})"
            )
        });
        slot.wait_until(deadline)
    }

    /// Stops the work; returns whether it ends, or has ended, as [`ErrorKind::Cancelled`]. Called `abort` in
    /// tokio.
    ///
    /// - An async task: its future is dropped on the ambient thread. A poll in progress finishes first,
    ///   and what it returns is discarded.
    /// - A thread job: it is taken out of the queue. A running job cannot be stopped: it sees
    ///   [`is_cancelled`](crate::is_cancelled) and gives its value.
    /// - A call in a worker process: it is taken out of the queue, or its worker is killed.
    /// - A continuation: that continuation, not its source.
    /// - [`join_all`](crate::join_all), [`race`](crate::race), [`timeout`](Unfuture::timeout),
    ///   [`flatten`](Unfuture::flatten): everything beneath. If nothing beneath can be stopped, such as
    ///   a running job, the `Unfuture` itself ends all the same and the job's value is discarded.
    /// - [`settle_all`](crate::settle_all) gives the outcomes it has, so it does not end as cancelled.
    ///
    /// May be called from any thread and any number of times, before and after the end; the answer
    /// does not change. A panic in cancelled work, such as that of a destructor, is reported to
    /// [`on_unobserved`](crate::Config::on_unobserved).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let sleeper = unsync::spawn(unsync::sleep(Duration::MAX));
    /// assert!(sleeper.cancel());
    /// assert_eq!(sleeper.result().unwrap_err().kind(), unsync::ErrorKind::Cancelled);
    /// ```
    pub fn cancel(&self) -> bool {
        self.canceller().cancel()
    }

    /// A handle that can do nothing but cancel this work.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let sleeper = unsync::spawn(unsync::sleep(Duration::MAX));
    /// let canceller = sleeper.canceller();
    /// std::thread::spawn(move || canceller.cancel());
    /// assert_eq!(sleeper.result().unwrap_err().kind(), unsync::ErrorKind::Cancelled);
    /// ```
    pub fn canceller(&self) -> Canceller {
        Canceller(self.stopper())
    }

    /// Cancels the work when this `Unfuture` is dropped: ties it to a scope.
    ///
    /// The tie holds through everything that takes the `Unfuture`: a continuation or combinator of tied
    /// work is tied itself, and cancels the work when it is dropped. Only
    /// [`on_done`](Unfuture::on_done) lets go of it.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let sleeper = unsync::spawn(unsync::sleep(Duration::MAX)).cancel_on_drop();
    /// drop(sleeper); // the sleep is over
    /// ```
    #[must_use = "dropping it cancels the work at once"]
    pub fn cancel_on_drop(self) -> Unfuture<T> {
        if let Some(work) = &self.work {
            work.slot().tied.store(true, Ordering::Relaxed);
        }
        self
    }

    /// Whether the work has ended, so that [`result`](Unfuture::result) gives its outcome at once.
    ///
    /// # Examples
    ///
    /// ```
    /// let (promise, unfuture) = unsync::promise();
    /// assert!(!unfuture.is_done());
    /// promise.set(1);
    /// assert!(unfuture.is_done());
    /// ```
    pub fn is_done(&self) -> bool {
        self.work.as_ref().is_none_or(|work| work.slot().is_done())
    }

    /// An `Unfuture` that has its value already.
    ///
    /// # Examples
    ///
    /// ```
    /// use unsync::Unfuture;
    ///
    /// fn size(path: &'static str) -> Unfuture<usize> {
    ///     match path {
    ///         "" => Unfuture::ready(0),
    ///         _ => unsync::thread(move || path.len()),
    ///     }
    /// }
    /// assert_eq!(size("").result().unwrap(), 0);
    /// ```
    #[track_caller]
    pub fn ready(value: T) -> Unfuture<T>
    where
        T: Send + 'static,
    {
        Unfuture::settled(Ok(value))
    }

    /// An `Unfuture` that has failed already.
    ///
    /// # Examples
    ///
    /// ```
    /// use unsync::{Error, Unfuture};
    ///
    /// fn next(before: Result<u8, Error>) -> Unfuture<u8> {
    ///     match before {
    ///         Ok(n) => unsync::thread(move || n + 1),
    ///         Err(error) => Unfuture::failed(error),
    ///     }
    /// }
    /// assert_eq!(next(Ok(1)).result().unwrap(), 2);
    /// let before = unsync::thread(|| panic!("no")).result();
    /// assert_eq!(next(before).result().unwrap_err().kind(), unsync::ErrorKind::Panicked);
    /// ```
    #[track_caller]
    pub fn failed(error: Error) -> Unfuture<T>
    where
        T: Send + 'static,
    {
        Unfuture::settled(Err(error))
    }

    #[track_caller]
    fn settled(outcome: Result<T, Error>) -> Unfuture<T>
    where
        T: Send + 'static,
    {
        Unfuture::settled_at(Location::caller(), outcome)
    }

    pub(crate) fn settled_at(origin: Origin, outcome: Result<T, Error>) -> Unfuture<T>
    where
        T: Send + 'static,
    {
        let slot = Slot::settled(origin, outcome);
        Unfuture::of(Arc::new(Promised { slot }))
    }
}

/// Cancels one piece of work, from anywhere. Made by [`Unfuture::canceller`]. Called `AbortHandle` in tokio and
/// futures.
///
/// It keeps neither the work nor its value alive, only a little memory that remembers how it ended.
///
/// # Examples
///
/// ```
/// let nap = unsync::spawn(unsync::sleep(std::time::Duration::MAX));
/// let canceller = nap.canceller();
/// std::thread::spawn(move || canceller.cancel());
/// assert_eq!(nap.result().unwrap_err().kind(), unsync::ErrorKind::Cancelled);
/// ```
#[derive(Clone)]
pub struct Canceller(Option<Arc<dyn Stop>>);

impl Canceller {
    /// See [`Unfuture::cancel`].
    pub fn cancel(&self) -> bool {
        let work = self.0.as_ref().map(Arc::clone);
        work.is_some_and(|work| work.stop(Reason::Cancelled) == Stopping::Yes)
    }
}

impl fmt::Debug for Canceller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Canceller")
    }
}

/// Makes a [`Promise`] and the [`Unfuture`] that it resolves.
///
/// # Examples
///
/// ```
/// let (promise, unfuture) = unsync::promise();
/// std::thread::spawn(move || promise.set("done"));
/// assert_eq!(unfuture.result().unwrap(), "done");
/// ```
#[track_caller]
pub fn promise<T: Send + 'static>() -> (Promise<T>, Unfuture<T>) {
    let work = Arc::new(Promised {
        slot: Slot::new(Location::caller()),
    });
    let promise = Promise {
        work: Some(Arc::clone(&work)),
    };
    (promise, Unfuture::of(work))
}

impl<T> Promise<T> {
    /// Keeps the promise; says whether the value arrived. It is dropped if nobody can see it any more, see
    /// [`is_cancelled`](Promise::is_cancelled).
    ///
    /// # Examples
    ///
    /// ```
    /// let (promise, unfuture) = unsync::promise();
    /// assert!(promise.set(1));
    /// assert_eq!(unfuture.result().unwrap(), 1);
    ///
    /// let (promise, unfuture) = unsync::promise();
    /// drop(unfuture);
    /// assert!(!promise.set(1));
    /// ```
    pub fn set(self, value: T) -> bool {
        let observed = !self.is_cancelled();
        self.resolve(Ok(value)) && observed
    }

    /// Breaks the promise with an error: one that came from elsewhere, or one of the caller's
    /// [own](Error::new).
    ///
    /// # Examples
    ///
    /// ```
    /// use unsync::{Error, ErrorKind};
    ///
    /// let (promise, unfuture) = unsync::promise::<u8>();
    /// promise.fail(Error::new(ErrorKind::Abandoned, "the sensor was unplugged"));
    /// assert_eq!(unfuture.result().unwrap_err().to_string(), "the sensor was unplugged");
    /// ```
    pub fn fail(self, error: Error) {
        self.finish(Err(error));
    }

    /// Whether nobody can see the value any more: the `Unfuture` was cancelled, its time is up, or it was
    /// dropped.
    ///
    /// Whatever was made of it sees the value too. A continuation does, and [`on_done`](Unfuture::on_done),
    /// which run whoever looks; a [`Shared`](crate::Shared), a [`timeout`](Unfuture::timeout) or a
    /// [`join_all`](crate::join_all) do until they are dropped themselves.
    ///
    /// # Examples
    ///
    /// ```
    /// let (promise, unfuture) = unsync::promise::<u8>();
    /// let worker = std::thread::spawn(move || {
    ///     while !promise.is_cancelled() {
    ///         std::thread::yield_now(); // a part of the work
    ///     }
    /// });
    /// unfuture.cancel();
    /// worker.join().unwrap();
    /// ```
    pub fn is_cancelled(&self) -> bool {
        let observer = self.work.as_ref().map(|work| work.slot.observer());
        !observer.is_some_and(Observer::exists)
    }

    pub(crate) fn finish(self, outcome: Result<T, Error>) {
        self.resolve(outcome);
    }

    fn resolve(mut self, outcome: Result<T, Error>) -> bool {
        let work = self.work.take();
        work.is_some_and(|work| work.slot.finish(outcome))
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            let error = Error::new(ErrorKind::Abandoned, "the promise was dropped unfulfilled");
            let error = error.started_at(work.slot.origin);
            work.slot.finish(Err(error));
        }
    }
}

impl<T> Future for Unfuture<T> {
    type Output = Result<T, Error>;

    /// # Panics
    ///
    /// If polled again after it gave its outcome.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T, Error>> {
        self.poll_done(cx).map(|()| {
            let outcome = self.work.as_ref().and_then(|work| work.take());
            outcome.expect("`Unfuture` polled after completion")
        })
    }
}

impl<T> Drop for Unfuture<T> {
    fn drop(&mut self) {
        let Some(work) = self.work.take() else { return };
        if !work.slot().is_taken() && work.slot().detach() {
            stop_tied(work.stopper());
        }
    }
}

/// What it drops may own the next that is tied, and so on.
fn stop_tied(work: Arc<dyn Stop>) {
    nest(move || {
        work.stop(Reason::Cancelled);
    });
}

impl<T> fmt::Debug for Unfuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.work {
            None => f.write_str("Unfuture(taken)"),
            Some(work) => {
                let slot = work.slot();
                let state = match slot.is_done() {
                    true if slot.is_taken() => return f.write_str("Unfuture(taken)"),
                    true => "done",
                    false => "pending",
                };
                write!(f, "Unfuture({state}, started at {})", slot.origin)
            }
        }
    }
}

impl<T> fmt::Debug for Promise<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Promise")
    }
}

// A panic cannot leave a half-written outcome behind: a slot is written in one step, by its one owner.
impl<T> UnwindSafe for Unfuture<T> {}
impl<T> RefUnwindSafe for Unfuture<T> {}
impl<T> UnwindSafe for Promise<T> {}
impl<T> RefUnwindSafe for Promise<T> {}
impl UnwindSafe for Canceller {}
impl RefUnwindSafe for Canceller {}

// ------------------------------------------------------------------------------ the engines' face

/// Why work is ended early.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reason {
    Cancelled,
    /// It took longer than this.
    TimedOut(Duration),
    ShutDown,
}

impl Reason {
    pub(crate) fn kind(self) -> ErrorKind {
        match self {
            Reason::Cancelled => ErrorKind::Cancelled,
            Reason::TimedOut(_) => ErrorKind::TimedOut,
            Reason::ShutDown => ErrorKind::ShutDown,
        }
    }

    pub(crate) fn error(self, culprit: &str) -> Error {
        let text = match self {
            Reason::Cancelled => format!("{culprit} was cancelled"),
            Reason::TimedOut(limit) => {
                format!("{culprit} took longer than its limit of {limit:?}")
            }
            Reason::ShutDown => format!("{culprit} ended without a value: unsync was shut down"),
        };
        Error::new(self.kind(), text)
    }

    /// The error of work that took too long and runs on though it was stopped.
    pub(crate) fn still_running(self, work: Arc<dyn Stop>) -> Option<Error> {
        let Reason::TimedOut(limit) = self else {
            return None;
        };
        let (culprit, origin) = work.last_source().running()?;
        let text = format!("{culprit} took longer than its limit of {limit:?} and still runs");
        Some(Error::new(ErrorKind::TimedOut, text).started_at(origin))
    }
}

/// The outcome of work that somebody was told ends as cancelled. Anything else that came of it is
/// reported as unobserved.
pub(crate) fn cancelled<T>(outcome: Result<T, Error>, culprit: &str) -> Result<T, Error> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::Cancelled => Err(error),
        other => {
            unobserved(other);
            Err(Reason::Cancelled.error(culprit))
        }
    }
}

/// The answer to a request to stop work for some reason.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stopping {
    /// The work ends, or has ended, for that reason.
    Yes,
    /// The work ends soon, for another reason or in a way of its own.
    Otherwise,
    /// The work goes on, or has ended by itself.
    No,
}

/// What decides how a piece of work ends: its own end or the first request to stop it, whichever
/// comes first. So who is told that the work ends as cancelled sees it end so.
#[derive(Default)]
pub(crate) struct Fate(AtomicU8);

impl Fate {
    const OPEN: u8 = 0;
    const ENDED: u8 = 1;
    const CANCELLED: u8 = 2;
    const STOPPED: u8 = 3;

    fn decide(&self, fate: u8) -> Result<u8, u8> {
        self.0
            .compare_exchange(Fate::OPEN, fate, Ordering::AcqRel, Ordering::Acquire)
    }

    /// The work ends by itself; `false` if it was stopped before that.
    pub(crate) fn end(&self) -> bool {
        matches!(self.decide(Fate::ENDED), Ok(_) | Err(Fate::ENDED))
    }

    /// The work is to be stopped; the answer if that was decided before.
    pub(crate) fn stop(&self, reason: Reason) -> Result<(), Stopping> {
        let fate = match reason {
            Reason::Cancelled => Fate::CANCELLED,
            Reason::TimedOut(_) | Reason::ShutDown => Fate::STOPPED,
        };
        self.decide(fate)
            .map(drop)
            .map_err(|decided| match decided {
                Fate::ENDED => Stopping::No,
                decided if decided == fate => Stopping::Yes,
                _ => Stopping::Otherwise,
            })
    }

    pub(crate) fn is_stopped(&self) -> bool {
        matches!(
            self.0.load(Ordering::Acquire),
            Fate::CANCELLED | Fate::STOPPED
        )
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire) == Fate::CANCELLED
    }
}

/// Work without the type of its value, to be ended early or watched.
pub(crate) trait Stop: Send + Sync {
    /// Stops the work and resolves it for this reason, if it has not ended yet. Callable from any
    /// thread, any number of times.
    fn stop(self: Arc<Self>, reason: Reason) -> Stopping;

    /// What is to be watched in place of this.
    fn source(&self) -> Option<Arc<dyn Stop>> {
        None
    }

    /// Ready when the work has begun to run: at once for what stands in no queue.
    fn poll_begun(&self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    /// What this is and where it was started, if a stop has left it running.
    fn running(&self) -> Option<(&'static str, Origin)> {
        None
    }

    /// What it says of its progress, or what the work says that it stands on. Most works say nothing.
    fn progress(&self) -> Option<Arc<Progress>> {
        None
    }
}

impl dyn Stop {
    /// What is to be watched. A loop, because a chain of works may be longer than a stack is deep.
    pub(crate) fn last_source(mut self: Arc<Self>) -> Arc<dyn Stop> {
        while let Some(source) = self.source() {
            self = source;
        }
        self
    }
}

/// Something that fills a slot: what an engine hands out behind an [`Unfuture`].
pub(crate) trait Work<T>: Stop {
    fn slot(&self) -> &Slot;
    /// Takes the outcome of work that has ended; `None` if it was taken before.
    fn take(&self) -> Option<Result<T, Error>>;
    /// The same work without its type.
    fn stopper(self: Arc<Self>) -> Arc<dyn Stop>;
}

impl<T> Unfuture<T> {
    pub(crate) fn of(work: Arc<dyn Work<T>>) -> Unfuture<T> {
        Unfuture { work: Some(work) }
    }

    /// Where the work was started; the caller's own line for an `Unfuture` whose value was taken.
    #[track_caller]
    pub(crate) fn origin(&self) -> Origin {
        self.work
            .as_ref()
            .map_or(Location::caller(), |work| work.slot().origin)
    }

    pub(crate) fn stopper(&self) -> Option<Arc<dyn Stop>> {
        self.work.as_ref().map(|work| Arc::clone(work).stopper())
    }

    pub(crate) fn is_tied(&self) -> bool {
        self.work.as_ref().is_some_and(|work| work.slot().is_tied())
    }

    /// Ties the work to its scope, if what it is made of is.
    pub(crate) fn tied(self, is_tied: bool) -> Unfuture<T> {
        match is_tied {
            true => self.cancel_on_drop(),
            false => self,
        }
    }

    pub(crate) fn progress(&self) -> Option<Arc<Progress>> {
        self.work.as_ref().and_then(|work| work.progress())
    }

    /// The same work. Who listens to its progress hears this one.
    pub(crate) fn hearing(self, progress: Option<Arc<Progress>>) -> Unfuture<T>
    where
        T: 'static,
    {
        match progress {
            None => self,
            progress => self.with(None, None, progress),
        }
    }

    /// The same work, stopped, watched and listened to as this says.
    pub(crate) fn with(
        mut self,
        stopper: Option<Arc<dyn Stop>>,
        source: Option<Weak<dyn Stop>>,
        progress: Option<Arc<Progress>>,
    ) -> Unfuture<T>
    where
        T: 'static,
    {
        if let Some(work) = self.work.take() {
            self.work = Some(Arc::new(Facade {
                work,
                stopper,
                source,
                progress,
            }));
        }
        self
    }

    /// Passes the work on to what stands on it; gives what is to be watched from there.
    pub(crate) fn pass_on(&self) -> Option<Weak<dyn Stop>> {
        let work = self.work.as_ref()?;
        work.slot().forget_waker();
        Some(Arc::downgrade(&Arc::clone(work).stopper().last_source()))
    }

    /// Whoever can see what comes of that sees what comes of this.
    pub(crate) fn observed_by(&self, observed: Weak<dyn Observed>) {
        if let Some(work) = &self.work {
            work.slot().observed_by(observed);
        }
    }

    /// Takes the outcome of work that has ended.
    pub(crate) fn take(mut self) -> Result<T, Error> {
        let outcome = self.work.take().and_then(|work| work.take());
        outcome.unwrap_or_else(|| Err(already_taken()))
    }

    /// The same for one of many owners.
    pub(crate) fn take_outcome(&self) -> Result<T, Error> {
        let outcome = self.work.as_ref().and_then(|work| work.take());
        outcome.unwrap_or_else(|| Err(already_taken()))
    }

    /// Ready when the work has ended; leaves the outcome in place.
    pub(crate) fn poll_done(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.work
            .as_ref()
            .map_or(Poll::Ready(()), |work| work.slot().poll_done(cx))
    }
}

struct Promised<T> {
    slot: Slot<Option<T>>,
}

impl<T: Send + 'static> Stop for Promised<T> {
    fn stop(self: Arc<Self>, reason: Reason) -> Stopping {
        let error = reason.error("a promise").started_at(self.slot.origin);
        let cancelled = || matches!(reason, Reason::Cancelled) && self.slot.is_cancelled();
        match self.slot.finish(Err(error)) || cancelled() {
            true => Stopping::Yes,
            false => Stopping::No,
        }
    }
}

impl<T: Send + 'static> Work<T> for Promised<T> {
    fn slot(&self) -> &Slot {
        &self.slot
    }
    fn take(&self) -> Option<Result<T, Error>> {
        self.slot.take()
    }
    fn stopper(self: Arc<Self>) -> Arc<dyn Stop> {
        self
    }
}

/// Work whose slot another piece of work fills.
pub(crate) struct Facade<T> {
    work: Arc<dyn Work<T>>,
    /// What is stopped, if not the work.
    stopper: Option<Arc<dyn Stop>>,
    /// What is watched, if not the work. Whoever waits for it keeps it alive.
    source: Option<Weak<dyn Stop>>,
    /// What is listened to, if not the work.
    progress: Option<Arc<Progress>>,
}

impl<T: 'static> Stop for Facade<T> {
    fn stop(self: Arc<Self>, reason: Reason) -> Stopping {
        match &self.stopper {
            Some(stopper) => Arc::clone(stopper).stop(reason),
            None => Arc::clone(&self.work).stopper().stop(reason),
        }
    }

    fn source(&self) -> Option<Arc<dyn Stop>> {
        match &self.source {
            Some(source) => source.upgrade(),
            None => Some(Arc::clone(&self.work).stopper()),
        }
    }

    fn progress(&self) -> Option<Arc<Progress>> {
        self.progress.clone().or_else(|| self.work.progress())
    }
}

impl<T: 'static> Work<T> for Facade<T> {
    fn slot(&self) -> &Slot {
        self.work.slot()
    }
    fn take(&self) -> Option<Result<T, Error>> {
        self.work.take()
    }
    fn stopper(self: Arc<Self>) -> Arc<dyn Stop> {
        self
    }
}
