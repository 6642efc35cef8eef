//! The slot: the place of one outcome, filled once.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::mem::{self, ManuallyDrop};
use std::ops::Deref;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::current::{blocking, must_not_block};
use crate::error::{Error, ErrorKind, Origin, discard, lock, unobserved, wall};
use crate::progress::Progress;
use crate::spin::Spin;
use crate::stop::{Fate, Reason, Stopping};
use crate::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use crate::sync::{Condvar, Instant, Mutex};

/// The place of one outcome.
///
/// Only the value needs a type, so all other code is compiled once, for a `Slot` whose `V` is unknown.
///
/// Finishing stores the outcome, unlocks, then notifies and wakes. It is the last thing that the owner of the
/// slot does. Waiters look under the same lock, so no wake-up is lost.
pub(crate) struct Slot<V: ?Sized = dyn Value> {
    header: Header,
    state: Mutex<State<V>>,
}

/// What can be seen of a slot without its lock.
pub(crate) struct Header {
    /// `PENDING`, or how it ended, and whether the outcome was `TAKEN`. Set under the lock, read without it
    /// by spinning threads. Never unset.
    ended: AtomicU8,
    /// Whether the work is to be stopped when the `Unfuture` is dropped.
    pub(crate) tied: AtomicBool,
    /// One of `QUEUED`, `WATCHED`, `BEGUN`, in this order.
    phase: AtomicU8,
    pub(crate) origin: Origin,
    /// For threads that wait, because std's `Condvar` takes no lock of an unsized type.
    gate: Mutex<()>,
    finished: Condvar,
}

struct State<V: ?Sized> {
    stage: Stage,
    /// Boxed, because most slots have none.
    links: Option<Box<Links>>,
    /// Present in the stage `Done`.
    value: V,
}

enum Stage {
    /// Set by `new`. Left by the first `finish`.
    Pending {
        /// The waker of the last poll, since an `Unfuture` has one owner.
        waker: Option<Waker>,
        /// Whether a thread waits. Notifying std's `Condvar` is a system call even when none does.
        waiting: bool,
    },
    /// The `Unfuture` was dropped before the end; the outcome will be too. Set by `detach`, left by `finish`.
    Detached,
    /// There is a value. Set by `finish`, left by `take`.
    Done(Option<Spent>),
    /// Set by `finish`, left by `take`.
    Failed(Error),
    /// Set when the outcome was handed on or dropped. Never left.
    Taken,
}

/// What a slot knows about other work.
#[derive(Default)]
pub(crate) struct Links {
    /// The work to watch in place of this work.
    pub(crate) source: Option<Weak<dyn Work>>,
    /// Called in place of stopping the work.
    pub(crate) on_stop: Option<Arc<dyn Fn(Reason) + Send + Sync>>,
    /// The progress that the underlying work reports.
    pub(crate) progress: Option<Arc<Progress>>,
    /// The work that the outcome goes into, if whoever waits does not see the outcome itself.
    observed_by: Option<Weak<dyn Work>>,
    /// The wakers of tasks that wait for the work to begin. Set in the phase `WATCHED`.
    on_begin: Vec<Waker>,
}

/// Work without the type of its value: what an engine hands out behind an [`Unfuture`](crate::Unfuture).
pub(crate) trait Work: Send + Sync {
    fn slot(&self) -> &Slot;

    /// Stops the work and resolves it for this reason, if it has not ended yet. Callable from any
    /// thread, any number of times.
    fn stop(self: Arc<Self>, reason: Reason) -> Stopping;

    /// What this is and where it was started, if a stop has left it running.
    fn running(&self) -> Option<(&'static str, Origin)> {
        None
    }

    /// The progress that this work itself reports. Only calls report any.
    fn progress(&self) -> Option<Arc<Progress>> {
        None
    }
}

impl dyn Work {
    /// The work to watch. A loop, because a chain may be too long for recursion.
    pub(crate) fn last_source(mut self: Arc<Self>) -> Arc<dyn Work> {
        while let Some(source) = self.slot().linked(|links| links.source.as_ref()?.upgrade()) {
            self = source;
        }
        self
    }

    /// The error of work that took too long and still runs although it was stopped.
    pub(crate) fn still_running(self: Arc<Self>, reason: Reason) -> Option<Error> {
        let Reason::TimedOut(_) = reason else {
            return None;
        };
        let (culprit, origin) = self.last_source().running()?;
        let text = format!("{} and still runs", reason.text(culprit));
        Some(Error::new(reason.kind(), text).started_at(origin))
    }
}

/// The same work with its type.
pub(crate) trait Output<T>: Work {
    /// Takes the outcome of work that has ended; `None` if it was taken before.
    fn take(&self) -> Option<Result<T, Error>>;
    fn untyped(self: Arc<Self>) -> Arc<dyn Work>;
}

const PENDING: u8 = 0;
const CANCELLED: u8 = 1;
const OTHERWISE: u8 = 2;
const TAKEN: u8 = 4;

const QUEUED: u8 = 0;
const WATCHED: u8 = 1;
const BEGUN: u8 = 2;

/// The place of a value, seen without its type.
pub(crate) trait Value: Send {
    /// Takes the output of a future out of its `Option`, if it is wanted. The output is the value, or a
    /// `Result` whose error is returned.
    fn put(&mut self, output: &mut dyn Any, wanted: bool) -> Option<Error>;
}

impl<T: Send + 'static> Value for Option<T> {
    fn put(&mut self, output: &mut dyn Any, wanted: bool) -> Option<Error> {
        if let Some(value) = output.downcast_mut::<Option<T>>() {
            if wanted {
                *self = value.take();
            }
            return None;
        }
        let output = output.downcast_mut::<Option<Result<T, Error>>>()?;
        match output.take()? {
            Ok(value) if wanted => *self = Some(value),
            Ok(value) => *output = Some(Ok(value)),
            Err(error) => return Some(error),
        }
        None
    }
}

/// The emptied allocation of a future. It travels back with the outcome to the thread that made it: freeing
/// memory where it was allocated is much cheaper than freeing it elsewhere.
pub(crate) type Spent = Pin<Box<dyn Send>>;

impl Stage {
    /// Whether an outcome is still wanted; `None` if there is one, or was.
    fn is_wanted(&self) -> Option<bool> {
        match self {
            Stage::Pending { .. } => Some(true),
            Stage::Detached => Some(false),
            Stage::Done(_) | Stage::Failed(_) | Stage::Taken => None,
        }
    }

    /// Returns what is left to [announce](Header::announce): the waiters, or an outcome that nobody wants.
    fn end(&mut self, header: &Header, error: Option<Error>, spent: Option<Spent>) -> Stage {
        let ended = match &error {
            Some(error) if error.kind() == ErrorKind::Cancelled => CANCELLED,
            _ => OTHERWISE,
        };
        header.ended.store(ended, Ordering::Release);
        let mut left = mem::replace(self, Stage::Taken);
        let outcome = match left {
            Stage::Detached => &mut left,
            _ => self,
        };
        match error {
            None => *outcome = Stage::Done(spent),
            Some(error) => *outcome = Stage::Failed(error),
        }
        left
    }

    /// Whether there is a value, or the error; `None` if the outcome is not there or was taken before.
    fn take(&mut self, header: &Header) -> Option<Result<(), Error>> {
        if self.is_wanted().is_some() {
            return None;
        }
        let ended = header.ended.load(Ordering::Relaxed);
        // Whoever sees that it was taken sees what came before it.
        header.ended.store(ended | TAKEN, Ordering::Release);
        match mem::replace(self, Stage::Taken) {
            Stage::Done(spent) => {
                // It is empty, so nothing foreign runs.
                drop(spent);
                Some(Ok(()))
            }
            Stage::Failed(error) => Some(Err(error)),
            _ => None,
        }
    }
}

impl<T> Slot<Option<T>> {
    pub(crate) fn new(origin: Origin) -> Slot<Option<T>> {
        let stage = Stage::Pending {
            waker: None,
            waiting: false,
        };
        Slot {
            header: Header {
                ended: AtomicU8::new(PENDING),
                tied: AtomicBool::new(false),
                phase: AtomicU8::new(QUEUED),
                origin,
                gate: Mutex::new(()),
                finished: Condvar::new(),
            },
            state: Mutex::new(State {
                stage,
                links: None,
                value: None,
            }),
        }
    }

    /// A slot for work that is in no queue.
    pub(crate) fn begun(origin: Origin) -> Slot<Option<T>> {
        let mut slot = Slot::new(origin);
        slot.header.phase = AtomicU8::new(BEGUN);
        slot
    }

    /// Resolves the slot; returns whether this was the first time. A later outcome is dropped.
    pub(crate) fn finish(&self, outcome: Result<T, Error>) -> bool {
        let mut error = None;
        let mut value = outcome.map_err(|failed| error = Some(failed)).ok();
        let first = self.resolve(None, None, |place, wanted| {
            if wanted {
                *place = value.take();
            }
            error.take()
        });
        discard((value, error));
        first
    }

    /// Takes the outcome; `None` if it is not there or was taken before.
    pub(crate) fn take(&self) -> Option<Result<T, Error>> {
        let mut state = lock(&self.state);
        match state.stage.take(&self.header)? {
            Ok(()) => state.value.take().map(Ok),
            Err(error) => Some(Err(error)),
        }
    }
}

impl<V: ?Sized> Deref for Slot<V> {
    type Target = Header;

    fn deref(&self) -> &Header {
        &self.header
    }
}

impl Header {
    fn announce(&self, left: Stage) {
        match left {
            Stage::Pending { waker, waiting } => {
                if waiting {
                    // A thread that saw it pending is waiting by now.
                    drop(lock(&self.gate));
                    self.finished.notify_all();
                }
                if let Some(waker) = waker {
                    discard(wall(|| waker.wake()));
                }
            }
            Stage::Failed(error) => unobserved::<()>(Err(error)),
            Stage::Done(_) | Stage::Detached | Stage::Taken => {}
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.ended.load(Ordering::Acquire) != PENDING
    }

    /// Whether the outcome was taken.
    pub(crate) fn is_taken(&self) -> bool {
        self.ended.load(Ordering::Acquire) & TAKEN != 0
    }

    pub(crate) fn is_tied(&self) -> bool {
        self.tied.load(Ordering::Relaxed)
    }
}

impl<V: ?Sized> Slot<V> {
    /// Resolves the slot with what `put` stores if it is wanted, or with the error that `put` returns, unless
    /// the work was stopped; then only an error is reported. Returns whether this was the end.
    pub(crate) fn resolve(
        &self,
        fate: Option<&Fate>,
        spent: Option<Spent>,
        put: impl FnOnce(&mut V, bool) -> Option<Error>,
    ) -> bool {
        let mut state = lock(&self.state);
        // Decided under the lock, so that whoever learns that the work has ended can see how.
        let ends = fate.is_none_or(Fate::end);
        let Some(wanted) = state.stage.is_wanted() else {
            // What `put` owns is foreign, and is dropped after the lock, as every argument is.
            return false;
        };
        let error = put(&mut state.value, wanted && ends);
        let left = match ends {
            true => state.stage.end(&self.header, error, spent),
            false => error.map_or(Stage::Taken, Stage::Failed),
        };
        drop(state);
        self.header.announce(left);
        ends
    }

    /// Whether somebody can still see an outcome that is to come. An outcome that is there has been seen, or
    /// will be, and no other follows. A loop, because a chain may be too long for recursion.
    pub(crate) fn is_observed(&self) -> bool {
        let mut observed = self.observed();
        while let Some(Some(by)) = observed {
            observed = by.upgrade().and_then(|work| work.slot().observed());
        }
        observed.is_some()
    }

    /// What the outcome goes into, if an outcome is still wanted.
    fn observed(&self) -> Option<Option<Weak<dyn Work>>> {
        let state = lock(&self.state);
        if state.stage.is_wanted() != Some(true) {
            return None;
        }
        let links = state.links.as_ref();
        Some(links.and_then(|links| links.observed_by.clone()))
    }
}

impl Slot {
    /// Resolves the slot with an error; returns whether this was the first time.
    pub(crate) fn fail(&self, error: Error) -> bool {
        let mut error = Some(error);
        let first = self.resolve(None, None, |_, _| error.take());
        discard(error);
        first
    }

    /// Resolves the slot of work that was stopped, with this error unless something else was decided.
    pub(crate) fn abort(&self, fate: &Fate, error: Error, culprit: &str) {
        let failed = Err::<(), _>(error.started_at(self.origin));
        if let Err(error) = fate.outcome(failed, culprit) {
            self.fail(error.started_at(self.origin));
        }
    }

    /// Called when the `Unfuture` is gone; returns whether the work is to be stopped, or `None` if it has an
    /// outcome, or had one.
    pub(crate) fn detach(&self) -> Option<bool> {
        let mut state = lock(&self.state);
        state.stage.is_wanted()?;
        let before = mem::replace(&mut state.stage, Stage::Detached);
        drop(state);
        discard(before);
        // The tie is read after that: whoever ties the work from now on sees that the `Unfuture` is gone.
        Some(self.is_tied() && !self.is_done())
    }

    /// Whether the work has ended as cancelled, even if the outcome was taken since.
    pub(crate) fn is_cancelled(&self) -> bool {
        // The work may just be [resolving](Slot::resolve).
        drop(lock(&self.state));
        self.ended.load(Ordering::Acquire) & !TAKEN == CANCELLED
    }

    /// Ties the work to its scope while the work is under way; returns whether that scope is still there.
    pub(crate) fn tie(&self) -> bool {
        self.tied.store(true, Ordering::Relaxed);
        !matches!(lock(&self.state).stage, Stage::Detached | Stage::Taken)
    }

    /// Changes what the slot knows about other work.
    pub(crate) fn link(&self, change: impl FnOnce(&mut Links)) {
        change(lock(&self.state).links.get_or_insert_default());
    }

    pub(crate) fn linked<R>(&self, get: impl FnOnce(&Links) -> Option<R>) -> Option<R> {
        lock(&self.state).links.as_deref().and_then(get)
    }

    /// Says where this outcome goes: whoever can see the outcome of `by` sees this one.
    pub(crate) fn observed_by(&self, by: Weak<dyn Work>) {
        if !self.is_done() {
            self.link(|links| links.observed_by = Some(by));
        }
    }

    /// Called when the work begins to run.
    pub(crate) fn begin(&self) {
        if self.phase.swap(BEGUN, Ordering::AcqRel) == WATCHED {
            let mut state = lock(&self.state);
            let links = state.links.get_or_insert_default();
            let wakers = mem::take(&mut links.on_begin);
            drop(state);
            for waker in wakers {
                discard(wall(|| waker.wake()));
            }
        }
    }

    /// Ready when the work has begun to run, or has ended.
    pub(crate) fn poll_begun(&self, cx: &mut Context<'_>) -> Poll<()> {
        // Cloning and dropping a waker is foreign code: it happens outside the lock.
        let waker = cx.waker().clone();
        let mut state = lock(&self.state);
        if state.stage.is_wanted().is_none() {
            return Poll::Ready(());
        }
        let queued =
            self.phase
                .compare_exchange(QUEUED, WATCHED, Ordering::AcqRel, Ordering::Acquire);
        if queued == Err(BEGUN) {
            return Poll::Ready(());
        }
        // `begin` takes the waker from here, and waits for this lock.
        let on_begin = &mut state.links.get_or_insert_default().on_begin;
        if !on_begin.iter().any(|known| known.will_wake(&waker)) {
            on_begin.push(waker);
        }
        Poll::Pending
    }

    /// Stores a waker if an outcome is still to come; returns the one that is of no more use.
    pub(crate) fn replace_waker(&self, new: Option<Waker>) -> Option<Waker> {
        match &mut lock(&self.state).stage {
            Stage::Pending { waker, .. } => mem::replace(waker, new),
            _ => new,
        }
    }

    /// Ready when there is an outcome.
    pub(crate) fn poll_done(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_done() {
            // Cloning and dropping a waker is foreign code: it happens outside the lock.
            drop(self.replace_waker(Some(cx.waker().clone())));
        }
        match self.is_done() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Blocks until the slot is done or the deadline has passed; returns whether it is done. Fails if it would
    /// block a thread that must not block.
    pub(crate) fn wait_until(&self, deadline: Option<Instant>) -> Result<bool, Error> {
        if self.is_done() {
            return Ok(true);
        }
        if let Some(thread) = must_not_block() {
            let text = format!(
                "waiting for unfinished work would block {thread}; `.await` it in a task instead"
            );
            return Err(Error::new(ErrorKind::WouldBlock, text).started_at(self.origin));
        }
        static SPIN: Spin = Spin::new();
        run_deferred();
        if SPIN.attempt(|| self.is_done().then_some(())).is_some() {
            return Ok(true);
        }
        let is_done = blocking(|| {
            match &mut lock(&self.state).stage {
                Stage::Pending { waiting, .. } => *waiting = true,
                _ => return true,
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let left = left.unwrap_or(Duration::MAX);
            let gate = lock(&self.gate);
            let is_pending = |_: &mut ()| !self.is_done();
            drop(self.finished.wait_timeout_while(gate, left, is_pending));
            self.is_done()
        });
        Ok(is_done)
    }
}

thread_local! {
    // Neither needs a drop, so both can be used until the thread has ended.
    /// How many steps of [`trampoline`] this thread is in.
    static NESTED: Cell<u32> = const { Cell::new(0) };
    /// Steps too deep to run at once.
    static DEFERRED: RefCell<ManuallyDrop<Steps>> =
        const { RefCell::new(ManuallyDrop::new(Steps::new())) };
}

type Steps = VecDeque<Box<dyn FnOnce()>>;

/// The most steps that may be nested.
const NESTED_MAX: u32 = 8;

/// Runs a step that drops foreign values, whose destructors may reach the next such step. A destructor may
/// wait for what that step does, in ways that this library does not see, so nested steps run at once. Only
/// the steps of a long chain are deferred, because they would overflow the stack.
pub(crate) fn trampoline(step: impl FnOnce() + 'static) {
    let depth = NESTED.get();
    if depth == NESTED_MAX {
        return DEFERRED.with_borrow_mut(|steps| steps.push_back(Box::new(step)));
    }
    NESTED.set(depth + 1);
    discard(wall(step));
    if depth + 1 == NESTED_MAX {
        run_deferred();
        // No step is left, only the memory.
        drop(DEFERRED.with_borrow_mut(|steps| mem::take(&mut **steps)));
    }
    NESTED.set(depth);
}

/// Runs the steps that this thread has deferred. Call it before the thread waits: a destructor inside a step
/// may wait for a deferred step.
pub(crate) fn run_deferred() {
    let next = || DEFERRED.with_borrow_mut(|steps| steps.pop_front());
    while let Some(step) = next() {
        discard(wall(step));
    }
}

pub(crate) fn already_taken() -> Error {
    Error::new(ErrorKind::Abandoned, "the value was taken before")
}
