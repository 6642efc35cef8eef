//! The future and the promise: the two ends of a slot.
//!
//! Whoever does the work holds a [`Slot`] inside something that is [`Work`], and finishes it; whoever
//! wants the value holds an [`Unfuture`]. This file knows no engine: how work is stopped is the
//! business of the [`Work`], and how a thread may wait is told by its role.
//!
//! Floor 1: imports the slot, the role, the progress and the error.

use std::fmt;
use std::future::Future;
use std::mem;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Origin, discard, lock, unobserved};
use crate::progress::{Progress, Speaker};
use crate::role::{assert_may_block, role};
use crate::slot::{
    Observed, Observer, OnBegin, Receive, Slot, already_taken, nest, relay, would_block,
};

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

/// The end of an [`Unfuture`] that is set by hand, from any thread. Made by [`promise`].
///
/// Dropping it unfulfilled resolves the `Unfuture` as [`ErrorKind::Abandoned`], so nobody waits for
/// ever.
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
    pub fn result(mut self) -> Result<T, Error> {
        let work = self.work.take().ok_or_else(already_taken)?;
        let slot = work.slot();
        if !slot.is_done() {
            if let Some(thread) = role().must_not_block() {
                let origin = slot.origin;
                self.work = Some(work);
                return Err(would_block(thread, origin));
            }
            slot.wait_until(None);
        }
        slot.take().unwrap_or_else(|| Err(already_taken()))
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

    /// Stops the work; returns whether it ends, or has ended, as [`ErrorKind::Cancelled`].
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
        let slot = Slot::settled(Location::caller(), outcome);
        Unfuture::of(Arc::new(Promised {
            slot,
            upstream: Mutex::new(Upstream::Nobody),
            progress: None,
        }))
    }
}

/// Cancels one piece of work, from anywhere. Made by [`Unfuture::canceller`].
///
/// It keeps neither the work nor its value alive, only a little memory that remembers how it ended.
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
    derived(Location::caller(), None)
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
        work.is_some_and(|work| work.finish(outcome))
    }

    /// For what hands an outcome on to this promise.
    pub(crate) fn observed(&self) -> Option<Weak<dyn Observed>>
    where
        T: Send + 'static,
    {
        let work = self.work.as_ref()?;
        Some(Arc::downgrade(work) as _)
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            let error = Error::new(ErrorKind::Abandoned, "the promise was dropped unfulfilled");
            let error = error.started_at(work.slot.origin);
            work.finish(Err(error));
        }
    }
}

impl<T: Send + 'static> Unfuture<Result<T, Error>> {
    /// Turns an error inside the value into an error of the `Unfuture`.
    ///
    /// It stays the same work: cancelling the flat `Unfuture` cancels it.
    ///
    /// # Examples
    ///
    /// ```
    /// let outer = unsync::spawn(async { unsync::thread(|| 1).await });
    /// assert_eq!(outer.flatten().result().unwrap(), 1);
    /// ```
    pub fn flatten(self) -> Unfuture<T> {
        let (promise, flat) = self.derive(self.stopper());
        self.hand_on(promise.observed(), move |outcome| {
            promise.finish(outcome.and_then(|inner| inner));
        });
        flat
    }
}

impl<T: Send + 'static> Unfuture<Unfuture<T>> {
    /// Waits for the inner work too.
    ///
    /// It stays the same work: cancelling the flat `Unfuture` cancels the outer work while that
    /// runs, and the inner afterwards. Outer work that cannot be stopped, a job that runs, says
    /// `false` to that and gives its value; then the inner work is cancelled as soon as it is known.
    ///
    /// # Examples
    ///
    /// ```
    /// let outer = unsync::spawn(async { unsync::thread(|| 1) });
    /// assert_eq!(outer.flatten().result().unwrap(), 1);
    /// ```
    pub fn flatten(self) -> Unfuture<T> {
        let speaker = Speaker::new();
        let progress = Arc::clone(&speaker.0);
        if let Some(outer) = self.progress() {
            outer.join(&progress);
        }
        self.proceed(None, Some(progress), move |inner| {
            if let Some(inner) = inner.progress() {
                inner.join(&speaker.0);
            }
            inner
        })
    }
}

/// What an `Unfuture` of two works, one after the other, stops: the one that is under way, and the
/// reason to stop, if there was one. It is kept, because a stop may come when the outer work has just
/// ended and the inner has not been started yet.
struct Stages {
    stage: Mutex<Stage>,
    /// The inner work, where it is known from the start. Not kept alive: what waits to start it owns it,
    /// and drops it, and what it holds, before it ends.
    known: Option<Weak<dyn Stop>>,
}

struct Stage {
    current: Option<Arc<dyn Stop>>,
    reason: Option<Reason>,
}

impl Stages {
    fn lock(&self) -> MutexGuard<'_, Stage> {
        lock(&self.stage)
    }

    /// The inner work is known.
    fn advance(&self, inner: Option<Arc<dyn Stop>>) {
        let mut stage = self.lock();
        let outer = mem::replace(&mut stage.current, inner.clone());
        let reason = stage.reason;
        drop(stage);
        drop(outer);
        if let (Some(inner), Some(reason)) = (inner, reason) {
            inner.stop(reason);
        }
    }
}

impl Stop for Stages {
    /// What begins is the inner work, where that is known; what is stopped is what is under way.
    fn beneath(&self, reason: Option<Reason>) -> Option<Arc<dyn Stop>> {
        let known = self.known.as_ref().filter(|_| reason.is_none());
        known.and_then(Weak::upgrade).or_else(|| {
            let mut stage = self.lock();
            stage.reason = stage.reason.or(reason);
            stage.current.clone()
        })
    }

    fn stop_here(self: Arc<Self>, _reason: Reason) -> Stopping {
        Stopping::No
    }
}

impl<T> Future for Unfuture<T> {
    type Output = Result<T, Error>;

    /// # Panics
    ///
    /// If polled again after it gave its outcome.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T, Error>> {
        self.poll_done(cx).map(|()| {
            let outcome = self.work.as_ref().and_then(|work| work.slot().take());
            outcome.expect("`Unfuture` polled after completion")
        })
    }
}

impl<T> Drop for Unfuture<T> {
    fn drop(&mut self) {
        let Some(work) = self.work.take() else { return };
        // Before the tie is looked at: who ties it after that sees that it is gone.
        work.slot().detach();
        if work.slot().is_tied() && !work.slot().is_done() {
            // What it drops may own the next that is tied, and so on.
            let tied = work.stopper();
            nest(move || {
                tied.stop(Reason::Cancelled);
            });
        }
    }
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

    /// The error of `work` that was stopped for this reason, and may run on all the same.
    pub(crate) fn error_of(
        self,
        work: Option<Arc<dyn Stop>>,
        culprit: &str,
        origin: Origin,
    ) -> Error {
        match (self, work.and_then(|work| work.running())) {
            (Reason::TimedOut(limit), Some((culprit, origin))) => Error::new(
                ErrorKind::TimedOut,
                format!("{culprit} took longer than its limit of {limit:?} and still runs"),
            )
            .started_at(origin),
            _ => self.error(culprit).started_at(origin),
        }
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
///
/// What is asked of a chain of works is asked of the one at its bottom, and the way there is a loop, as
/// is that to the parts of many: a chain may be longer than a stack is deep.
pub(crate) trait Stop: Send + Sync {
    /// What to ask in place of this; `None` if it is this itself. A reason to stop is kept by a link
    /// that has something else beneath it later.
    fn beneath(&self, _reason: Option<Reason>) -> Option<Arc<dyn Stop>> {
        None
    }

    /// What the bottom is made of, where that is to be stopped in its place.
    fn parts(&self) -> Vec<Arc<dyn Stop>> {
        Vec::new()
    }

    /// `stop` for the bottom; it leaves its parts alone.
    fn stop_here(self: Arc<Self>, reason: Reason) -> Stopping;

    /// Ends the work in its own place, whatever goes on beneath it. Only what stands on other work can.
    fn end_here(&self, _reason: Reason) -> Stopping {
        Stopping::No
    }

    /// What this is and where it was started, if a stop has left it running.
    fn running_here(&self) -> Option<(&'static str, Origin)> {
        None
    }

    /// `when_begun` for the bottom: at once for what stands in no queue, and for many, of which nobody can
    /// mean the last.
    fn when_begun_here(self: Arc<Self>, call: OnBegin) {
        call();
    }

    /// What it says of its progress, or what the work says that it stands on. Most works say nothing.
    fn progress(&self) -> Option<Arc<Progress>> {
        None
    }
}

impl dyn Stop {
    /// Stops the work and resolves it for this reason, if it has not ended yet. Callable from any
    /// thread, any number of times.
    pub(crate) fn stop(self: Arc<Self>, reason: Reason) -> Stopping {
        let (mut next, mut rest) = (Some(Arc::clone(&self)), Vec::new());
        let (mut answer, mut of_many) = (Stopping::No, false);
        while let Some(work) = next.take().or_else(|| rest.pop()) {
            let bottom = work.bottom(Some(reason));
            let parts = bottom.parts();
            of_many |= !parts.is_empty();
            rest.extend(parts.into_iter().rev());
            answer = bottom.stop_here(reason);
        }
        // Of many parts another one may decide how the whole ends; and what cannot be stopped must not
        // keep the whole.
        if of_many || answer == Stopping::No {
            answer = self.end_here(reason);
        }
        if answer == Stopping::No && !of_many {
            // What was beneath it may have given way just now to what it waited to start.
            answer = self.bottom(Some(reason)).stop_here(reason);
        }
        answer
    }

    /// What a stop has left running: the first of it.
    fn running(self: Arc<Self>) -> Option<(&'static str, Origin)> {
        let (mut next, mut rest) = (Some(self), Vec::new());
        while let Some(work) = next.take().or_else(|| rest.pop()) {
            let bottom = work.bottom(None);
            rest.extend(bottom.parts().into_iter().rev());
            let running = bottom.running_here();
            if running.is_some() {
                return running;
            }
        }
        None
    }

    /// Calls once the work has begun to run: at once if it has.
    pub(crate) fn when_begun(self: Arc<Self>, call: OnBegin) {
        self.bottom(None).when_begun_here(call);
    }

    fn bottom(mut self: Arc<Self>, reason: Option<Reason>) -> Arc<dyn Stop> {
        while let Some(next) = self.beneath(reason) {
            self = next;
        }
        self
    }
}

/// A step of the crate's own for an engine with nothing to do: it says how many works it ever began.
pub(crate) type OnQuiet = Box<dyn FnOnce(u64) + Send>;

/// Something that fills a slot: what an engine hands out behind an [`Unfuture`].
pub(crate) trait Work<T>: Stop {
    fn slot(&self) -> &Slot<T>;
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
        T: Send + 'static,
    {
        if progress.is_none() {
            return self;
        }
        let (promise, heard) = self.derive_hearing(self.stopper(), progress);
        self.hand_on(promise.observed(), move |outcome| promise.finish(outcome));
        heard
    }

    /// An `Unfuture` that takes the place of this one: tied to its scope if this one is.
    pub(crate) fn derive<U>(&self, upstream: Option<Arc<dyn Stop>>) -> (Promise<U>, Unfuture<U>)
    where
        U: Send + 'static,
    {
        self.derive_hearing(upstream, self.progress())
    }

    fn derive_hearing<U>(
        &self,
        upstream: Option<Arc<dyn Stop>>,
        progress: Option<Arc<Progress>>,
    ) -> (Promise<U>, Unfuture<U>)
    where
        U: Send + 'static,
    {
        let (promise, unfuture) = derived_hearing(self.origin(), upstream, progress);
        (promise, unfuture.tied(self.is_tied()))
    }

    /// Runs `next` with the outcome on the thread that finishes the work, or at once if it has ended.
    /// For the crate's own steps only: they are short and hold no lock, since resolving what comes next may
    /// wake or drop what is foreign.
    pub(crate) fn when_done(self, next: impl FnOnce(Result<T, Error>) + Send + 'static)
    where
        T: 'static,
    {
        self.hand_on(None, next);
    }

    /// The same for a step that passes the outcome on, for whoever looks at what is `observed`.
    pub(crate) fn hand_on<F>(mut self, observed: Option<Weak<dyn Observed>>, next: F)
    where
        T: 'static,
        F: FnOnce(Result<T, Error>) + Send + 'static,
    {
        let next = Box::new(HandOn { next, observed });
        match self.work.take() {
            Some(work) => work.slot().when_done(next),
            None => next.receive(Err(already_taken())),
        }
    }

    /// Goes on with the work that `start` starts from the value, as one piece of work. Where that
    /// `inner` work is known before, it is the one that begins: the outer does nothing but wait until it
    /// may be started.
    pub(crate) fn proceed<U, F>(
        self,
        inner: Option<Weak<dyn Stop>>,
        progress: Option<Arc<Progress>>,
        start: F,
    ) -> Unfuture<U>
    where
        T: 'static,
        U: Send + 'static,
        F: FnOnce(T) -> Unfuture<U> + Send + 'static,
    {
        let is_same = inner.is_some();
        let stages = Arc::new(Stages {
            stage: Mutex::new(Stage {
                current: self.stopper(),
                reason: None,
            }),
            known: inner,
        });
        let (promise, whole) = self.derive_hearing(Some(stages.clone()), progress);
        self.hand_on(promise.observed(), move |outcome| match outcome {
            Ok(value) => {
                let inner = start(value);
                stages.advance(inner.stopper());
                if is_same {
                    promise.is_same();
                }
                if inner.is_tied() {
                    promise.tie();
                }
                inner.hand_on(promise.observed(), move |outcome| promise.finish(outcome));
            }
            Err(error) => promise.fail(error),
        });
        whole
    }

    /// Ready when the work has ended; leaves the outcome in place.
    pub(crate) fn poll_done(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.work
            .as_ref()
            .map_or(Poll::Ready(()), |work| work.slot().poll_done(cx))
    }
}

/// Drops the outcome of work that went on after its `Unfuture` had ended. That its time was up is known
/// by then, a failure of its own is not.
pub(crate) fn unobserved_late<T>(late: Result<T, Error>) {
    match late {
        Err(error) if error.kind() == ErrorKind::TimedOut => {}
        late => unobserved(late),
    }
}

/// An [`Unfuture`] that is resolved by the crate itself when `upstream` has ended, and that stops
/// `upstream` when it is stopped.
pub(crate) fn derived<T: Send + 'static>(
    origin: Origin,
    upstream: Option<Arc<dyn Stop>>,
) -> (Promise<T>, Unfuture<T>) {
    derived_hearing(origin, upstream, None)
}

fn derived_hearing<T: Send + 'static>(
    origin: Origin,
    upstream: Option<Arc<dyn Stop>>,
    progress: Option<Arc<Progress>>,
) -> (Promise<T>, Unfuture<T>) {
    let work = Arc::new(Promised {
        slot: Slot::new(origin),
        upstream: Mutex::new(upstream.map_or(Upstream::Nobody, Upstream::Work)),
        progress,
    });
    (
        Promise {
            work: Some(work.clone()),
        },
        Unfuture::of(work),
    )
}

/// A step of [`Unfuture::hand_on`].
struct HandOn<F> {
    next: F,
    /// `None` if the step itself makes use of the outcome.
    observed: Option<Weak<dyn Observed>>,
}

impl<T, F> Receive<T> for HandOn<F>
where
    T: 'static,
    F: FnOnce(Result<T, Error>) + Send + 'static,
{
    fn receive(self: Box<Self>, outcome: Result<T, Error>) {
        relay(move || (self.next)(outcome));
    }

    fn observer(&self) -> Observer {
        self.observed
            .as_ref()
            .map_or(Observer::Somebody, |observed| {
                observed.upgrade().map_or(Observer::Nobody, Observer::Of)
            })
    }
}

struct Promised<T> {
    slot: Slot<T>,
    upstream: Mutex<Upstream>,
    progress: Option<Arc<Progress>>,
}

impl<T: Send> Observed for Promised<T> {
    fn observer(&self) -> Observer {
        self.slot.observer()
    }
}

enum Upstream {
    /// It is kept by hand.
    Nobody,
    /// What is stopped in its place. If that cannot be stopped, this ends before it.
    Work(Arc<dyn Stop>),
    /// What this is, but for its type: it ends as that does.
    Same(Arc<dyn Stop>),
    /// It was kept, and resolves just now if it has not: it cannot be stopped any more. Set before,
    /// so that a chain of such promises is taken apart link by link as it resolves, and not by one
    /// deep recursion at its end.
    Kept,
}

impl<T> Promised<T> {
    fn upstream(&self) -> MutexGuard<'_, Upstream> {
        lock(&self.upstream)
    }

    fn finish(&self, outcome: Result<T, Error>) -> bool {
        let upstream = mem::replace(&mut *self.upstream(), Upstream::Kept);
        let stands_on_work = matches!(upstream, Upstream::Work(_) | Upstream::Same(_));
        drop(upstream);
        match self.slot.finish_with(outcome, None) {
            Ok(()) => return true,
            // It was ended before its time, and what went on beneath it has news.
            Err(late) if stands_on_work => unobserved_late(late),
            Err(late) => discard(late),
        }
        false
    }
}

impl<T: Send + 'static> Promise<T> {
    /// What is beneath is the work itself from now on.
    pub(crate) fn is_same(&self) {
        let Some(work) = &self.work else { return };
        let mut upstream = work.upstream();
        if let Upstream::Work(same) = mem::replace(&mut *upstream, Upstream::Kept) {
            *upstream = Upstream::Same(same);
        }
    }

    /// Ties the `Unfuture` to its scope, or stops it if that is gone.
    fn tie(&self) {
        let Some(work) = &self.work else { return };
        work.slot.tied.store(true, Ordering::Relaxed);
        if work.slot.is_detached() {
            Arc::clone(work).stopper().stop(Reason::Cancelled);
        }
    }
}

impl<T: Send + 'static> Stop for Promised<T> {
    fn beneath(&self, _reason: Option<Reason>) -> Option<Arc<dyn Stop>> {
        match &*self.upstream() {
            Upstream::Work(upstream) | Upstream::Same(upstream) => Some(Arc::clone(upstream)),
            Upstream::Nobody | Upstream::Kept => None,
        }
    }

    fn progress(&self) -> Option<Arc<Progress>> {
        self.progress.clone()
    }

    fn stop_here(self: Arc<Self>, reason: Reason) -> Stopping {
        self.end_here(reason)
    }

    fn end_here(&self, reason: Reason) -> Stopping {
        let (work, culprit) = match &*self.upstream() {
            Upstream::Nobody => (None, "a promise"),
            Upstream::Work(work) => (Some(Arc::clone(work)), "work"),
            Upstream::Kept => (None, "work"),
            Upstream::Same(_) => return Stopping::No,
        };
        let error = reason.error_of(work, culprit, self.slot.origin);
        let cancelled = || matches!(reason, Reason::Cancelled) && self.slot.is_cancelled();
        match self.slot.finish(Err(error)) || cancelled() {
            true => Stopping::Yes,
            false => Stopping::No,
        }
    }
}

impl<T: Send + 'static> Work<T> for Promised<T> {
    fn slot(&self) -> &Slot<T> {
        &self.slot
    }
    fn stopper(self: Arc<Self>) -> Arc<dyn Stop> {
        self
    }
}
