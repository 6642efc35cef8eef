//! The future: one slot that is filled once, and the two ends of it.
//!
//! Whoever does the work holds a [`Slot`] inside something that is [`Work`], and finishes it; whoever
//! wants the value holds an [`Unfuture`]. This file knows no engine: how work is stopped is the
//! business of the [`Work`], and how a thread may wait is told by its [`Role`].
//!
//! Floor 1: imports only the error and the spin.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::mem;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Origin, discard, unobserved, wall};
use crate::spin::Spin;

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
    /// `None` once the outcome was taken.
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
    /// [`wait_timeout`](Unfuture::wait_timeout) for a limit. On the ambient thread it never blocks:
    /// there a finished `Unfuture` gives its outcome and a pending one is an error.
    ///
    /// # Errors
    ///
    /// What became of the work if it gave no value, and [`ErrorKind::WouldBlock`] for a pending
    /// `Unfuture` on the ambient thread. The work goes on in that case.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(unsync::thread(|| 1 + 1).result().unwrap(), 2);
    /// ```
    pub fn result(mut self) -> Result<T, Error> {
        let work = self.work.take().ok_or_else(already_taken)?;
        let slot = work.slot();
        if !slot.is_done() && role().is_ambient() {
            let origin = slot.origin;
            self.work = Some(work);
            return Err(Error::new(
                ErrorKind::WouldBlock,
                "result() of unfinished work would block the ambient thread; `.await` it there",
            )
            .started_at(origin));
        }
        slot.wait_until(None);
        slot.take()
    }

    /// Blocks until the work has ended, without taking its outcome.
    ///
    /// # Panics
    ///
    /// On the ambient thread if the work has not ended, since that would stop every async task.
    pub fn wait(&self) {
        self.wait_until(None);
    }

    /// Blocks until the work has ended or `limit` has passed; says whether it has ended.
    ///
    /// The work goes on in either case.
    ///
    /// # Panics
    ///
    /// On the ambient thread if the work has not ended, since that would stop every async task.
    pub fn wait_timeout(&self, limit: Duration) -> bool {
        // A deadline too far to be told is no deadline.
        self.wait_until(Instant::now().checked_add(limit))
    }

    fn wait_until(&self, deadline: Option<Instant>) -> bool {
        let Some(work) = &self.work else { return true };
        let slot = work.slot();
        if slot.is_done() {
            return true;
        }
        assert!(
            !role().is_ambient(),
            "waiting for work would block the ambient thread; `.await` it there (work started at {})",
            slot.origin
        );
        slot.wait_until(deadline)
    }

    /// Stops the work, if it has not ended; says whether it will end as
    /// [`ErrorKind::Cancelled`].
    ///
    /// - An async task: its future is dropped on the ambient thread.
    /// - A thread job: it is taken out of the queue. One that runs cannot be stopped; it sees
    ///   [`is_cancelled`] and gives its value.
    /// - A call in a worker process: it is taken out of the queue, or its worker is killed.
    /// - A continuation: that continuation, not its source.
    ///
    /// May be called from any thread and any number of times.
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
    pub fn canceller(&self) -> Canceller {
        Canceller(self.stopper().as_ref().map(Arc::downgrade))
    }

    /// Cancels the work when this `Unfuture` is dropped: ties it to a scope.
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
    pub fn is_done(&self) -> bool {
        self.work.as_ref().is_none_or(|work| work.slot().is_done())
    }

    /// An `Unfuture` that has its value already.
    #[track_caller]
    pub fn ready(value: T) -> Unfuture<T>
    where
        T: Send + 'static,
    {
        Unfuture::settled(Ok(value))
    }

    /// An `Unfuture` that has failed already.
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
            upstream: Mutex::new(None),
        }))
    }
}

/// Cancels one piece of work, from anywhere. Made by [`Unfuture::canceller`].
///
/// It does not keep the work or its value alive.
#[derive(Clone)]
pub struct Canceller(Option<Weak<dyn Stop>>);

impl Canceller {
    /// See [`Unfuture::cancel`].
    pub fn cancel(&self) -> bool {
        let work = self.0.as_ref().and_then(Weak::upgrade);
        work.is_some_and(|work| work.stop(Reason::Cancelled))
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
    /// Keeps the promise.
    pub fn set(self, value: T) {
        self.finish(Ok(value));
    }

    /// Breaks the promise with an error of the caller's choice, normally one that came from elsewhere.
    pub fn fail(self, error: Error) {
        self.finish(Err(error));
    }

    /// Whether nobody waits for the value any more: the `Unfuture` was cancelled, or its time is up.
    pub fn is_cancelled(&self) -> bool {
        self.work.as_ref().is_some_and(|work| work.slot.is_done())
    }

    pub(crate) fn finish(mut self, outcome: Result<T, Error>) {
        if let Some(work) = self.work.take() {
            work.finish(outcome);
        }
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
        self.when_done(move |outcome| promise.finish(outcome.and_then(|inner| inner)));
        flat
    }
}

impl<T: Send + 'static> Unfuture<Unfuture<T>> {
    /// Waits for the inner work too.
    ///
    /// It stays the same work: cancelling the flat `Unfuture` cancels the outer work while that
    /// runs, and the inner afterwards.
    ///
    /// # Examples
    ///
    /// ```
    /// let outer = unsync::spawn(async { unsync::thread(|| 1) });
    /// assert_eq!(outer.flatten().result().unwrap(), 1);
    /// ```
    pub fn flatten(self) -> Unfuture<T> {
        let stage = Stage {
            current: self.stopper(),
            reason: None,
        };
        let stages = Arc::new(Stages(Mutex::new(stage)));
        let (promise, flat) = self.derive(Some(stages.clone()));
        self.when_done(move |outcome| match outcome {
            Ok(inner) => {
                stages.advance(inner.stopper());
                inner.when_done(move |outcome| promise.finish(outcome));
            }
            Err(error) => promise.fail(error),
        });
        flat
    }
}

/// What a flattened `Unfuture` stops: the work that is under way, and the reason to stop, if there
/// was one. It is kept, because a stop may come when the outer work has just ended and the inner is
/// not known yet.
struct Stages(Mutex<Stage>);

struct Stage {
    current: Option<Arc<dyn Stop>>,
    reason: Option<Reason>,
}

impl Stages {
    fn lock(&self) -> MutexGuard<'_, Stage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

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
    fn stop(self: Arc<Self>, reason: Reason) -> bool {
        let mut stage = self.lock();
        stage.reason.get_or_insert(reason);
        let current = stage.current.clone();
        drop(stage);
        current.is_some_and(|stage| stage.stop(reason))
    }

    fn when_begun(self: Arc<Self>, call: OnBegin) {
        let current = self.lock().current.clone();
        match current {
            Some(stage) => stage.when_begun(call),
            None => call(),
        }
    }

    fn when_progress(self: Arc<Self>, watcher: Box<OnProgress>) {
        let current = self.lock().current.clone();
        if let Some(stage) = current {
            stage.when_progress(watcher);
        }
    }
}

impl<T> Future for Unfuture<T> {
    type Output = Result<T, Error>;

    /// # Panics
    ///
    /// If polled again after it gave its outcome.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T, Error>> {
        let work = self
            .work
            .as_ref()
            .expect("`Unfuture` polled after completion");
        match work.slot().poll_done(cx) {
            Poll::Ready(()) => {
                let outcome = work.slot().take();
                self.work = None;
                Poll::Ready(outcome)
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<T> Drop for Unfuture<T> {
    fn drop(&mut self) {
        let Some(work) = self.work.take() else { return };
        if work.slot().is_tied() && !work.slot().is_done() {
            Arc::clone(&work).stopper().stop(Reason::Cancelled);
        }
        work.slot().detach();
    }
}

impl<T> fmt::Debug for Unfuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.work {
            None => f.write_str("Unfuture(taken)"),
            Some(work) => {
                let state = if self.is_done() { "done" } else { "pending" };
                write!(f, "Unfuture({state}, started at {})", work.slot().origin)
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
    pub(crate) fn error(self, culprit: &str) -> Error {
        match self {
            Reason::Cancelled => {
                Error::new(ErrorKind::Cancelled, format!("{culprit} was cancelled"))
            }
            Reason::TimedOut(limit) => Error::new(
                ErrorKind::TimedOut,
                format!("{culprit} took longer than its limit of {limit:?}"),
            ),
            Reason::ShutDown => Error::new(
                ErrorKind::ShutDown,
                format!("{culprit} was not run: unsync was shut down"),
            ),
        }
    }
}

/// Work without the type of its value, to be ended early or watched.
pub(crate) trait Stop: Send + Sync {
    /// Stops the work and resolves it for this reason, if it has not ended yet; says whether it will
    /// end so. Callable from any thread, any number of times.
    fn stop(self: Arc<Self>, reason: Reason) -> bool;

    /// Calls once the work has begun to run: at once if it has.
    fn when_begun(self: Arc<Self>, call: OnBegin);

    /// Calls with what the work says of its progress, until it ends. Most works say nothing.
    fn when_progress(self: Arc<Self>, watcher: Box<OnProgress>) {
        drop(watcher);
    }
}

/// A step of the crate's own: short, and no foreign code.
pub(crate) type OnBegin = Box<dyn FnOnce() + Send>;
/// The same for an engine with nothing to do: it says how many works it ever began.
pub(crate) type OnQuiet = Box<dyn FnOnce(u64) + Send>;
/// The same for the encoded values of a progress.
pub(crate) type OnProgress = dyn Fn(&[u8]) + Send + Sync;

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

    /// An `Unfuture` that takes the place of this one: tied to its scope if this one is.
    pub(crate) fn derive<U>(&self, upstream: Option<Arc<dyn Stop>>) -> (Promise<U>, Unfuture<U>)
    where
        U: Send + 'static,
    {
        let (promise, unfuture) = derived(self.origin(), upstream);
        match self.work.as_ref().is_some_and(|work| work.slot().is_tied()) {
            true => (promise, unfuture.cancel_on_drop()),
            false => (promise, unfuture),
        }
    }

    /// Runs `next` with the outcome on the thread that finishes the work, or at once if it has ended.
    /// For the crate's own steps only: they are short and run no foreign code.
    pub(crate) fn when_done(mut self, next: impl FnOnce(Result<T, Error>) + Send + 'static)
    where
        T: 'static,
    {
        let next = move |outcome| relay(move || next(outcome));
        match self.work.take() {
            Some(work) => work.slot().when_done(Box::new(next)),
            None => next(Err(already_taken())),
        }
    }

    /// Ready when the work has ended; leaves the outcome in place.
    pub(crate) fn poll_done(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.work
            .as_ref()
            .map_or(Poll::Ready(()), |work| work.slot().poll_done(cx))
    }
}

/// An [`Unfuture`] that is resolved by the crate itself when `upstream` has ended, and that stops
/// `upstream` when it is stopped.
pub(crate) fn derived<T: Send + 'static>(
    origin: Origin,
    upstream: Option<Arc<dyn Stop>>,
) -> (Promise<T>, Unfuture<T>) {
    let work = Arc::new(Promised {
        slot: Slot::new(origin),
        upstream: Mutex::new(upstream),
    });
    (
        Promise {
            work: Some(work.clone()),
        },
        Unfuture::of(work),
    )
}

struct Promised<T> {
    slot: Slot<T>,
    /// What is stopped in its place. `None` once the promise was kept: so a chain of such promises is
    /// taken apart link by link as it resolves, and not by one deep recursion at its end.
    upstream: Mutex<Option<Arc<dyn Stop>>>,
}

impl<T> Promised<T> {
    fn upstream(&self) -> MutexGuard<'_, Option<Arc<dyn Stop>>> {
        self.upstream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, outcome: Result<T, Error>) {
        let upstream = self.upstream().take();
        drop(upstream);
        self.slot.finish(outcome);
    }
}

impl<T: Send + 'static> Stop for Promised<T> {
    fn stop(self: Arc<Self>, reason: Reason) -> bool {
        let upstream = self.upstream().clone();
        match upstream {
            Some(upstream) => upstream.stop(reason),
            None => {
                let error = reason.error("a promise").started_at(self.slot.origin);
                self.slot.finish(Err(error))
            }
        }
    }

    fn when_begun(self: Arc<Self>, call: OnBegin) {
        let upstream = self.upstream().clone();
        match upstream {
            Some(upstream) => upstream.when_begun(call),
            None => call(),
        }
    }

    fn when_progress(self: Arc<Self>, watcher: Box<OnProgress>) {
        let upstream = self.upstream().clone();
        if let Some(upstream) = upstream {
            upstream.when_progress(watcher);
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

// ---------------------------------------------------------------------------------------- the slot

/// The place of one outcome.
///
/// Finishing it: store, unlock, then notify and wake; setting is the last thing that its owner does.
/// Whoever waits looks under the same lock, so no wake-up is lost.
pub(crate) struct Slot<T> {
    /// Set under the lock, read without it by those who spin. Never unset.
    done: AtomicBool,
    /// Whether the work is to be stopped when the `Unfuture` is dropped.
    tied: AtomicBool,
    /// One of `QUEUED`, `WATCHED`, `BEGUN`, in this order.
    phase: AtomicU8,
    pub(crate) origin: Origin,
    state: Mutex<State<T>>,
    finished: Condvar,
}

enum State<T> {
    /// Set by `new`. Left by the first `finish`.
    Pending {
        next: Next<T>,
        /// Threads in `finished.wait`. Counted because notifying a `Condvar` of std is a system call
        /// even when nobody waits.
        waiting: u32,
        /// Set in the phase `WATCHED`.
        on_begin: Vec<OnBegin>,
    },
    /// Set by `finish` while somebody may still want the outcome. Left by `take` and `detach`.
    Done(Result<T, Error>, Option<Shell>),
    /// Set when the outcome was handed on or dropped. Never left.
    Taken,
}

/// Who gets the outcome. The last one to ask, since an `Unfuture` has one owner.
enum Next<T> {
    Nobody,
    Wake(Waker),
    Call(Callback<T>),
    /// The `Unfuture` was dropped: so will be the outcome.
    Drop,
}

const QUEUED: u8 = 0;
const WATCHED: u8 = 1;
const BEGUN: u8 = 2;

type Callback<T> = Box<dyn FnOnce(Result<T, Error>) + Send>;

/// An emptied allocation that travels back with the outcome to the thread that made it: freeing
/// memory where it was allocated is much cheaper than freeing it elsewhere.
pub(crate) type Shell = Pin<Box<dyn Remains>>;
pub(crate) trait Remains: Send {}
impl<T: Send> Remains for T {}

impl<T> Slot<T> {
    pub(crate) fn new(origin: Origin) -> Slot<T> {
        Slot::with(
            origin,
            State::Pending {
                next: Next::Nobody,
                waiting: 0,
                on_begin: Vec::new(),
            },
        )
    }

    fn settled(origin: Origin, outcome: Result<T, Error>) -> Slot<T> {
        Slot::with(origin, State::Done(outcome, None))
    }

    fn with(origin: Origin, state: State<T>) -> Slot<T> {
        Slot {
            done: AtomicBool::new(!matches!(state, State::Pending { .. })),
            tied: AtomicBool::new(false),
            phase: AtomicU8::new(QUEUED),
            origin,
            state: Mutex::new(state),
            finished: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    pub(crate) fn is_tied(&self) -> bool {
        self.tied.load(Ordering::Relaxed)
    }

    /// The work begins to run.
    pub(crate) fn begin(&self) {
        if self.phase.swap(BEGUN, Ordering::AcqRel) == WATCHED {
            let calls = match &mut *self.lock() {
                State::Pending { on_begin, .. } => mem::take(on_begin),
                State::Done(..) | State::Taken => return,
            };
            calls.into_iter().for_each(|call| call());
        }
    }

    /// Calls when the work begins to run, or at once if it has begun or ended.
    pub(crate) fn when_begun(&self, call: OnBegin) {
        let mut state = self.lock();
        if let State::Pending { on_begin, .. } = &mut *state {
            let queued =
                self.phase
                    .compare_exchange(QUEUED, WATCHED, Ordering::AcqRel, Ordering::Acquire);
            if queued.unwrap_or_else(|phase| phase) != BEGUN {
                // `begin` takes it from here, and waits for this lock.
                on_begin.push(call);
                return;
            }
        }
        drop(state);
        call();
    }

    /// Resolves the slot; says whether this was the first time. A later outcome is dropped.
    pub(crate) fn finish(&self, outcome: Result<T, Error>) -> bool {
        self.finish_with(outcome, None)
    }

    pub(crate) fn finish_with(&self, outcome: Result<T, Error>, shell: Option<Shell>) -> bool {
        let mut state = self.lock();
        let State::Pending { next, waiting, .. } = &mut *state else {
            drop(state);
            discard((outcome, shell));
            return false;
        };
        let (next, waiting) = (mem::replace(next, Next::Nobody), *waiting);
        let handed = match next {
            Next::Call(_) | Next::Drop => {
                *state = State::Taken;
                Some((outcome, shell))
            }
            Next::Nobody | Next::Wake(_) => {
                *state = State::Done(outcome, shell);
                None
            }
        };
        self.done.store(true, Ordering::Release);
        drop(state);
        if waiting > 0 {
            self.finished.notify_all();
        }
        match (next, handed) {
            (Next::Wake(waker), _) => discard(wall(|| waker.wake())),
            (Next::Call(next), Some((outcome, _))) => next(outcome),
            (_, Some((outcome, shell))) => {
                unobserved(outcome);
                drop(shell);
            }
            (_, None) => {}
        }
        true
    }

    /// Takes the outcome of a slot that is done.
    fn take(&self) -> Result<T, Error> {
        let mut state = self.lock();
        match mem::replace(&mut *state, State::Taken) {
            State::Done(outcome, shell) => {
                drop(state);
                drop(shell);
                outcome
            }
            State::Taken => Err(already_taken()),
            pending @ State::Pending { .. } => {
                *state = pending;
                Err(Error::new(ErrorKind::WouldBlock, "the work has not ended"))
            }
        }
    }

    /// The `Unfuture` is gone.
    fn detach(&self) {
        let mut state = self.lock();
        match &mut *state {
            State::Pending { next, .. } => {
                let waker = mem::replace(next, Next::Drop);
                drop(state);
                discard(waker);
            }
            State::Done(..) => {
                let ended = mem::replace(&mut *state, State::Taken);
                drop(state);
                if let State::Done(outcome, _) = ended {
                    unobserved(outcome);
                }
            }
            State::Taken => {}
        }
    }

    fn when_done(&self, call: Callback<T>) {
        let mut state = self.lock();
        if let State::Pending { next, .. } = &mut *state {
            let waker = mem::replace(next, Next::Call(call));
            drop(state);
            discard(waker);
            return;
        }
        drop(state);
        call(self.take());
    }

    fn poll_done(&self, cx: &mut Context<'_>) -> Poll<()> {
        let known = |state: &State<T>| match state {
            State::Pending {
                next: Next::Wake(old),
                ..
            } => old.will_wake(cx.waker()),
            State::Pending { .. } => false,
            State::Done(..) | State::Taken => true,
        };
        if !self.is_done() && !known(&self.lock()) {
            // Cloning and dropping a waker is foreign code: it happens outside the lock.
            let mut waker = Next::Wake(cx.waker().clone());
            if let State::Pending { next, .. } = &mut *self.lock() {
                mem::swap(next, &mut waker);
            }
            drop(waker);
        }
        if self.is_done() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Blocks until the slot is done or the deadline has passed; says whether it is done.
    fn wait_until(&self, deadline: Option<Instant>) -> bool {
        static SPIN: Spin = Spin::new();
        if SPIN.attempt(|| self.is_done().then_some(())).is_some() {
            return true;
        }
        blocking(|| {
            let mut state = self.lock();
            loop {
                let State::Pending { waiting, .. } = &mut *state else {
                    return true;
                };
                let left = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                    Some(Duration::ZERO) => return false,
                    left => left,
                };
                *waiting += 1;
                state = match left {
                    None => self
                        .finished
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner),
                    Some(left) => {
                        let woken = self.finished.wait_timeout(state, left);
                        woken.unwrap_or_else(PoisonError::into_inner).0
                    }
                };
                if let State::Pending { waiting, .. } = &mut *state {
                    *waiting -= 1;
                }
            }
        })
    }
}

thread_local! {
    /// Outcomes on their way, while this thread is handing one on.
    static RELAYED: RefCell<Option<Steps>> = const { RefCell::new(None) };
}

type Steps = VecDeque<Box<dyn FnOnce()>>;

/// Runs a step that hands an outcome on. It may resolve another slot, whose step resolves the next:
/// one after the other and not one inside the other, or a long chain would overflow the stack.
fn relay(step: impl FnOnce() + 'static) {
    let mut step = Some(step);
    let first = RELAYED.try_with(|relayed| {
        let mut relayed = relayed.borrow_mut();
        let queue = relayed.take();
        let first = queue.is_none();
        let mut queue = queue.unwrap_or_default();
        if !first {
            queue.extend(step.take().map(|step| Box::new(step) as Box<dyn FnOnce()>));
        }
        *relayed = Some(queue);
        first
    });
    if let Some(step) = step {
        discard(wall(step));
    }
    if first == Ok(true) {
        let following = || RELAYED.with_borrow_mut(|relayed| relayed.as_mut()?.pop_front());
        while let Some(step) = following() {
            discard(wall(step));
        }
        RELAYED.set(None);
    }
}

fn already_taken() -> Error {
    Error::new(ErrorKind::Abandoned, "the value was taken before")
}

// ------------------------------------------------------------------------------ how a thread waits

/// What blocking means on this thread.
#[derive(Clone, Copy)]
pub(crate) enum Role {
    Ordinary,
    /// Must never block.
    Ambient,
    /// Tells its pool before it blocks and after, so that it does not count against the limit; knows
    /// whether its job was cancelled.
    Pool {
        blocks: fn(),
        resumes: fn(),
        is_cancelled: fn() -> bool,
    },
    /// Runs a call in a worker process, and knows whether that was cancelled.
    Call {
        is_cancelled: fn() -> bool,
    },
}

impl Role {
    pub(crate) fn is_ambient(self) -> bool {
        matches!(self, Role::Ambient)
    }
}

thread_local! {
    static ROLE: Cell<Role> = const { Cell::new(Role::Ordinary) };
}

pub(crate) fn role() -> Role {
    ROLE.get()
}

pub(crate) fn set_role(role: Role) {
    ROLE.set(role);
}

/// Whether the work that runs on this thread was cancelled, so that it can end by itself.
///
/// For the closure of a [`thread`](crate::thread()) job and the function of a
/// [`cpu`](crate::cpu()) call, on the thread that runs them. Elsewhere it is `false`: an async task
/// that is cancelled is not polled again.
///
/// # Examples
///
/// ```
/// let (started, running) = std::sync::mpsc::channel();
/// let job = unsync::thread(move || {
///     started.send(()).unwrap();
///     while !unsync::is_cancelled() {
///         std::thread::yield_now();
///     }
///     "tidied up"
/// });
/// running.recv().unwrap();
/// job.cancel();
/// assert_eq!(job.result().unwrap(), "tidied up");
/// ```
pub fn is_cancelled() -> bool {
    match role() {
        Role::Pool { is_cancelled, .. } | Role::Call { is_cancelled } => is_cancelled(),
        Role::Ordinary | Role::Ambient => false,
    }
}

/// Runs something that parks the thread.
pub(crate) fn blocking<R>(park: impl FnOnce() -> R) -> R {
    struct Resume(fn());
    impl Drop for Resume {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    let Role::Pool {
        blocks, resumes, ..
    } = role()
    else {
        return park();
    };
    blocks();
    let _resume = Resume(resumes);
    park()
}
