//! The slot: the place of one outcome, filled once.
//!
//! Floor 1: imports the error, the role and the spin.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::current::blocking;
use crate::error::{Error, ErrorKind, Origin, discard, lock, unobserved, wall};
use crate::spin::Spin;

/// The place of one outcome.
///
/// Finishing it: store, unlock, then notify and wake; setting is the last thing that its owner does.
/// Whoever waits looks under the same lock, so no wake-up is lost.
pub(crate) struct Slot<T> {
    /// `PENDING`, or how it ended. Set under the lock, read without it by those who spin. Never unset.
    ended: AtomicU8,
    /// Whether the work is to be stopped when the `Unfuture` is dropped.
    pub(crate) tied: AtomicBool,
    /// Whether a waker was ever left here.
    asked: AtomicBool,
    /// One of `QUEUED`, `WATCHED`, `BEGUN`, in this order.
    phase: AtomicU8,
    pub(crate) origin: Origin,
    state: Mutex<State<T>>,
    finished: Condvar,
}

enum State<T> {
    /// Set by `new`. Left by the first `finish`.
    Pending {
        next: Next,
        /// Threads in `finished.wait`. Counted because notifying a `Condvar` of std is a system call
        /// even when nobody waits.
        waiting: u32,
        /// What the outcome goes into, if that is not seen by whoever waits for it.
        observed: Option<Weak<dyn Observed>>,
        /// Set in the phase `WATCHED`. A slice, because a `Vec` would be 8 bytes too many for the task around
        /// it: glibc has a fast path for allocations of up to 120 bytes.
        on_begin: Box<[Waker]>,
    },
    /// Set by `finish` while somebody may still want the outcome. Left by `take` and `detach`.
    Done(Result<T, Error>, Option<Shell>),
    /// Set when the outcome was handed on or dropped. Never left.
    Taken,
}

/// Who gets the outcome. The last one to ask, since an `Unfuture` has one owner.
enum Next {
    Nobody,
    Wake(Waker),
    /// The `Unfuture` was dropped: so will be the outcome.
    Drop,
}

const PENDING: u8 = 0;
const CANCELLED: u8 = 1;
const OTHERWISE: u8 = 2;

const QUEUED: u8 = 0;
const WATCHED: u8 = 1;
const BEGUN: u8 = 2;

/// Who can see an outcome that is to come.
pub(crate) enum Observer {
    Nobody,
    Somebody,
    /// Whoever can see this.
    Of(Arc<dyn Observed>),
}

/// What an outcome goes to that somebody may be looking at.
pub(crate) trait Observed: Send + Sync {
    fn observer(&self) -> Observer;
}

impl Observer {
    /// A loop, because a chain may be longer than a stack is deep.
    pub(crate) fn exists(mut self) -> bool {
        loop {
            self = match self {
                Observer::Nobody => return false,
                Observer::Somebody => return true,
                Observer::Of(next) => {
                    let observer = next.observer();
                    // It may be the last to hold a value.
                    discard(next);
                    observer
                }
            };
        }
    }
}

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
                observed: None,
                on_begin: Box::default(),
            },
        )
    }

    pub(crate) fn settled(origin: Origin, outcome: Result<T, Error>) -> Slot<T> {
        Slot::with(origin, State::Done(outcome, None))
    }

    fn with(origin: Origin, state: State<T>) -> Slot<T> {
        let ended = match &state {
            State::Done(outcome, _) => ending(outcome),
            State::Pending { .. } | State::Taken => PENDING,
        };
        Slot {
            ended: AtomicU8::new(ended),
            tied: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            phase: AtomicU8::new(QUEUED),
            origin,
            state: Mutex::new(state),
            finished: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        lock(&self.state)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.ended.load(Ordering::Acquire) != PENDING
    }

    /// Whether the work has ended as cancelled, also when the outcome was taken since.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.ended.load(Ordering::Acquire) == CANCELLED
    }

    /// Whether the outcome is no longer here.
    pub(crate) fn is_taken(&self) -> bool {
        matches!(*self.lock(), State::Taken)
    }

    pub(crate) fn is_tied(&self) -> bool {
        self.tied.load(Ordering::Relaxed)
    }

    /// Ties the work to its scope while it is under way; says whether that scope is still there.
    pub(crate) fn tie(&self) -> bool {
        self.tied.store(true, Ordering::Relaxed);
        !self.is_detached()
    }

    pub(crate) fn observed_by(&self, by: Weak<dyn Observed>) {
        if let State::Pending { observed, .. } = &mut *self.lock() {
            *observed = Some(by);
        }
    }

    /// Who can still see an outcome. One that is there has been seen, or will be, and another does not come.
    pub(crate) fn observer(&self) -> Observer {
        match &*self.lock() {
            State::Pending {
                next: Next::Drop, ..
            }
            | State::Done(..)
            | State::Taken => Observer::Nobody,
            State::Pending { observed: None, .. } => Observer::Somebody,
            State::Pending {
                observed: Some(observed),
                ..
            } => observed.upgrade().map_or(Observer::Nobody, Observer::Of),
        }
    }

    /// The work begins to run.
    pub(crate) fn begin(&self) {
        if self.phase.swap(BEGUN, Ordering::AcqRel) == WATCHED {
            let wakers = match &mut *self.lock() {
                State::Pending { on_begin, .. } => mem::take(on_begin),
                State::Done(..) | State::Taken => return,
            };
            for waker in wakers {
                discard(wall(|| waker.wake()));
            }
        }
    }

    /// Ready when the work has begun to run, or has ended.
    pub(crate) fn poll_begun(&self, cx: &mut Context<'_>) -> Poll<()> {
        // Cloning and dropping a waker is foreign code: it happens outside the lock.
        let waker = cx.waker().clone();
        let mut state = self.lock();
        let State::Pending { on_begin, .. } = &mut *state else {
            return Poll::Ready(());
        };
        let queued =
            self.phase
                .compare_exchange(QUEUED, WATCHED, Ordering::AcqRel, Ordering::Acquire);
        if queued == Err(BEGUN) {
            return Poll::Ready(());
        }
        // `begin` takes it from here, and waits for this lock.
        if !on_begin.iter().any(|known| known.will_wake(&waker)) {
            let mut wakers = mem::take(on_begin).into_vec();
            wakers.push(waker);
            *on_begin = wakers.into();
        }
        Poll::Pending
    }

    /// Resolves the slot; says whether this was the first time. A later outcome is dropped.
    pub(crate) fn finish(&self, outcome: Result<T, Error>) -> bool {
        self.finish_with(outcome, None).map_err(discard).is_ok()
    }

    /// The same; a later outcome is given back.
    pub(crate) fn finish_with(
        &self,
        outcome: Result<T, Error>,
        shell: Option<Shell>,
    ) -> Result<(), Result<T, Error>> {
        let mut state = self.lock();
        let State::Pending {
            next,
            waiting,
            on_begin,
            observed,
        } = &mut *state
        else {
            drop(state);
            discard(shell);
            return Err(outcome);
        };
        let (next, waiting) = (mem::replace(next, Next::Nobody), *waiting);
        let ended = ending(&outcome);
        // Of work that never began. To be dropped without the lock.
        let _unneeded = (mem::take(on_begin), observed.take());
        let unwanted = match next {
            Next::Drop => {
                *state = State::Taken;
                Some(outcome)
            }
            Next::Nobody | Next::Wake(_) => {
                *state = State::Done(outcome, shell);
                None
            }
        };
        self.ended.store(ended, Ordering::Release);
        drop(state);
        if waiting > 0 {
            self.finished.notify_all();
        }
        if let Next::Wake(waker) = next {
            discard(wall(|| waker.wake()));
        }
        if let Some(outcome) = unwanted {
            unobserved(outcome);
        }
        Ok(())
    }

    /// Takes the outcome of a slot that is done; `None` if it was taken before.
    pub(crate) fn take(&self) -> Option<Result<T, Error>> {
        let mut state = self.lock();
        match mem::replace(&mut *state, State::Taken) {
            State::Done(outcome, shell) => {
                drop(state);
                drop(shell);
                Some(outcome)
            }
            State::Taken => None,
            pending @ State::Pending { .. } => {
                *state = pending;
                Some(Err(Error::new(
                    ErrorKind::WouldBlock,
                    "the work has not ended",
                )))
            }
        }
    }

    /// Whether nobody will ever take the outcome.
    pub(crate) fn is_detached(&self) -> bool {
        match &*self.lock() {
            State::Pending { next, .. } => matches!(next, Next::Drop),
            State::Done(..) => false,
            State::Taken => true,
        }
    }

    /// The `Unfuture` is gone.
    pub(crate) fn detach(&self) {
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

    /// The `Unfuture` is passed on: whoever polled it is not woken.
    pub(crate) fn forget_waker(&self) {
        if !self.asked.load(Ordering::Relaxed) {
            return;
        }
        let mut waker = Next::Nobody;
        if let State::Pending { next, .. } = &mut *self.lock() {
            mem::swap(next, &mut waker);
        }
        discard(waker);
    }

    pub(crate) fn poll_done(&self, cx: &mut Context<'_>) -> Poll<()> {
        let known = |state: &State<T>| match state {
            State::Pending {
                next: Next::Wake(old),
                ..
            } => old.will_wake(cx.waker()),
            State::Pending { .. } => false,
            State::Done(..) | State::Taken => true,
        };
        // Only the `Unfuture` polls, so nobody else writes this.
        let first = !self.asked.load(Ordering::Relaxed);
        if !self.is_done() && (first || !known(&self.lock())) {
            self.asked.store(true, Ordering::Relaxed);
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
    pub(crate) fn wait_until(&self, deadline: Option<Instant>) -> bool {
        static SPIN: Spin = Spin::new();
        run_behind();
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

/// How work ended that has this outcome.
fn ending<T>(outcome: &Result<T, Error>) -> u8 {
    match outcome {
        Err(error) if error.kind() == ErrorKind::Cancelled => CANCELLED,
        _ => OTHERWISE,
    }
}

thread_local! {
    /// How many steps of [`nest`] this thread is in.
    static NESTED: Cell<u32> = const { Cell::new(0) };
    /// Steps that stand behind the deepest; `None` while there is none so deep.
    static BEHIND: RefCell<Option<Steps>> = const { RefCell::new(None) };
}

type Steps = VecDeque<Box<dyn FnOnce()>>;

/// Steps that are one inside the other at most.
const NESTED_MAX: u32 = 8;

/// Runs a step that drops foreign values, whose destructors may come to the next such step. One of them
/// may then wait, by means that are none of ours, for what that step does: so it is done at once, as it is
/// written. Only deeper than that, in a long chain, they come one after the other, or the chain would
/// overflow the stack.
pub(crate) fn nest(step: impl FnOnce() + 'static) {
    let depth = NESTED.get();
    if depth < NESTED_MAX {
        NESTED.set(depth + 1);
        discard(wall(step));
        return NESTED.set(depth);
    }
    let mut step = Some(step);
    let first = BEHIND.try_with(|behind| {
        let mut behind = behind.borrow_mut();
        let first = behind.is_none();
        let steps = behind.get_or_insert_default();
        steps.extend(step.take().map(|step| Box::new(step) as Box<dyn FnOnce()>));
        first
    });
    // A thread that is about to end has lost its thread-locals.
    if let Some(step) = step {
        discard(wall(step));
    }
    if first == Ok(true) {
        run_behind();
        BEHIND.set(None);
    }
}

/// Runs what stands behind the step that this thread is in. To be called before the thread waits: a
/// destructor may do so inside a step, for that very thing.
pub(crate) fn run_behind() {
    let next = || BEHIND.try_with(|behind| behind.borrow_mut().as_mut()?.pop_front());
    while let Ok(Some(step)) = next() {
        discard(wall(step));
    }
}

/// The answer to `result()` of unfinished work on this thread, which must not block.
pub(crate) fn would_block(thread: &str, origin: Origin) -> Error {
    let text =
        format!("result() of unfinished work would block {thread}; `.await` it in a task instead");
    Error::new(ErrorKind::WouldBlock, text).started_at(origin)
}

pub(crate) fn already_taken() -> Error {
    Error::new(ErrorKind::Abandoned, "the value was taken before")
}
