//! The future: one slot that is filled once, and the two ends of it.
//!
//! Whoever does the work holds a [`Slot`] inside something that is [`Work`], and finishes it; whoever
//! wants the value holds an [`Unfuture`]. This file knows no engine: how work is stopped is the
//! business of the [`Work`], and how a thread may wait is told by its [`Role`].
//!
//! Floor 1: imports only the error and the spin.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::mem;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Origin, discard, wall};
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
            upstream: None,
        }))
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

    pub(crate) fn finish(mut self, outcome: Result<T, Error>) {
        if let Some(work) = self.work.take() {
            work.slot.finish(outcome);
        }
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
        let (promise, flat) = derived(self.origin(), self.stopper());
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
        let stages = Arc::new(Stages(Mutex::new((self.stopper(), None))));
        let (promise, flat) = derived(self.origin(), Some(stages.clone()));
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
struct Stages(Mutex<(Option<Arc<dyn Stop>>, Option<Error>)>);

impl Stages {
    fn advance(&self, inner: Option<Arc<dyn Stop>>) {
        let mut stages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let outer = mem::replace(&mut stages.0, inner.clone());
        let reason = stages.1.clone();
        drop(stages);
        drop(outer);
        if let (Some(inner), Some(reason)) = (inner, reason) {
            inner.stop(reason);
        }
    }
}

impl Stop for Stages {
    fn stop(self: Arc<Self>, reason: Error) -> bool {
        let mut stages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stages.1.get_or_insert_with(|| reason.clone());
        let current = stages.0.clone();
        drop(stages);
        current.is_some_and(|stage| stage.stop(reason))
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
        if let Some(work) = self.work.take() {
            work.slot().detach();
        }
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

/// Something that can be asked to end early.
pub(crate) trait Stop: Send + Sync {
    /// Stops the work and resolves it as `reason`, if it has not ended yet; says whether it was in
    /// time. Callable from any thread, any number of times.
    fn stop(self: Arc<Self>, reason: Error) -> bool;
}

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

    /// Runs `next` with the outcome on the thread that finishes the work, or at once if it has ended.
    /// For the crate's own steps only: they are short and run no foreign code.
    pub(crate) fn when_done(mut self, next: impl FnOnce(Result<T, Error>) + Send + 'static) {
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
        upstream,
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
    upstream: Option<Arc<dyn Stop>>,
}

impl<T: Send + 'static> Stop for Promised<T> {
    fn stop(self: Arc<Self>, reason: Error) -> bool {
        match &self.upstream {
            Some(upstream) => Arc::clone(upstream).stop(reason),
            None => self.slot.finish(Err(reason)),
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
            },
        )
    }

    fn settled(origin: Origin, outcome: Result<T, Error>) -> Slot<T> {
        Slot::with(origin, State::Done(outcome, None))
    }

    fn with(origin: Origin, state: State<T>) -> Slot<T> {
        Slot {
            done: AtomicBool::new(!matches!(state, State::Pending { .. })),
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

    /// Resolves the slot; says whether this was the first time. A later outcome is dropped.
    pub(crate) fn finish(&self, outcome: Result<T, Error>) -> bool {
        self.finish_with(outcome, None)
    }

    pub(crate) fn finish_with(&self, outcome: Result<T, Error>, shell: Option<Shell>) -> bool {
        let mut state = self.lock();
        let State::Pending { next, waiting } = &mut *state else {
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
            (Next::Call(next), Some((outcome, _))) => discard(wall(|| next(outcome))),
            (_, handed) => discard(handed),
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
                let outcome = mem::replace(&mut *state, State::Taken);
                drop(state);
                // Here a panic is the caller's own: it drops its own value on its own thread.
                drop(outcome);
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
    /// Tells its pool before it blocks and after, so that it does not count against the limit.
    Pool {
        blocks: fn(),
        resumes: fn(),
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

/// Runs something that parks the thread.
pub(crate) fn blocking<R>(park: impl FnOnce() -> R) -> R {
    struct Resume(fn());
    impl Drop for Resume {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    let Role::Pool { blocks, resumes } = role() else {
        return park();
    };
    blocks();
    let _resume = Resume(resumes);
    park()
}
