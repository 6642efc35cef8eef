//! One run, many waiters.
//!
//! The outcome is kept for all; whoever asks gets a clone, made on the spot and outside of every
//! lock. The ending itself is an `Unfuture` as any other: it cancels, and threads wait for it. Only
//! tasks are kept here, because a slot wakes one and these are many.
//!
//! Floor 4: imports the future.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::error::{Error, ErrorKind, discard, lock, unobserved, wall};
use crate::role::role;
use crate::slot::{Observed, Observer, Slot, would_block};
use crate::unfuture::{Canceller, Reason, Stop, Stopping, Unfuture, Work, unobserved_late};

impl<T: Clone + Send + Sync + 'static> Unfuture<T> {
    /// Lets many wait for the same work: each clone of the [`Shared`] gives a clone of the outcome.
    ///
    /// # Examples
    ///
    /// ```
    /// let config = unsync::thread(|| String::from("read once")).shared();
    /// let copies = [config.clone(), config.clone()].map(|config| unsync::spawn(config).flatten());
    /// assert_eq!(config.result().unwrap(), "read once");
    /// for copy in copies {
    ///     assert_eq!(copy.result().unwrap(), "read once");
    /// }
    /// ```
    pub fn shared(self) -> Shared<T> {
        let kept = Arc::new(Kept::default());
        let ending = Arc::new(Ending {
            slot: Slot::new(self.origin()),
            source: Mutex::new(self.stopper()),
            kept: Arc::downgrade(&kept),
        });
        let keeper = Arc::clone(&kept);
        let ended = Unfuture::of(ending.clone()).tied(self.is_tied());
        let observed: Weak<Ending<T>> = Arc::downgrade(&ending);
        self.hand_on(Some(observed), move |outcome| {
            drop(lock(&ending.source).take());
            if let Err(late) = ending.end(&keeper, outcome) {
                unobserved_late(late);
            }
        });
        Shared {
            kept,
            ended: Arc::new(ended),
            place: None,
        }
    }
}

/// Resolves all clones at once, when the source has ended or is to be stopped.
struct Ending<T> {
    slot: Slot<()>,
    /// `None` once it has ended.
    source: Mutex<Option<Arc<dyn Stop>>>,
    /// Kept alive by the clones and by the source.
    kept: Weak<Kept<T>>,
}

impl<T: Send + Sync> Ending<T> {
    /// Gives the outcome back if it comes too late.
    fn end(&self, kept: &Kept<T>, outcome: Result<T, Error>) -> Result<(), Result<T, Error>> {
        kept.outcome.set(outcome)?;
        self.slot.finish(Ok(()));
        kept.wake_all();
        Ok(())
    }
}

impl<T: Send + Sync + 'static> Stop for Ending<T> {
    fn beneath(&self, _reason: Option<Reason>) -> Option<Arc<dyn Stop>> {
        lock(&self.source).clone()
    }

    fn stop_here(self: Arc<Self>, reason: Reason) -> Stopping {
        self.end_here(reason)
    }

    fn end_here(&self, reason: Reason) -> Stopping {
        let Some(kept) = self.kept.upgrade() else {
            return Stopping::No;
        };
        let error = reason.error("work").started_at(self.slot.origin);
        let ended_so = || match kept.outcome.get() {
            Some(Err(error)) => error.kind() == reason.kind(),
            _ => false,
        };
        match self.end(&kept, Err(error)).is_ok() || ended_so() {
            true => Stopping::Yes,
            false => Stopping::No,
        }
    }
}

impl<T: Send + Sync> Observed for Ending<T> {
    fn observer(&self) -> Observer {
        self.slot.observer()
    }
}

impl<T: Send + Sync + 'static> Work<()> for Ending<T> {
    fn slot(&self) -> &Slot<()> {
        &self.slot
    }
    fn stopper(self: Arc<Self>) -> Arc<dyn Stop> {
        self
    }
}

/// An [`Unfuture`] with many owners, made by [`Unfuture::shared`]: many waiters, one run.
///
/// Each clone waits for itself and gives a clone of the outcome, as often as it is asked. Put what
/// is costly to clone into an [`Arc`], or look at it with [`peek`](Shared::peek).
///
/// [`cancel`](Shared::cancel) on any clone stops the one work, and all clones give
/// [`ErrorKind::Cancelled`](crate::ErrorKind); dropping a clone, or cancelling a task that awaits one,
/// stops nothing. The last clone to be dropped lets the work go on, or cancels it if it is tied by
/// [`cancel_on_drop`](Unfuture::cancel_on_drop). At a [`shutdown`](crate::shutdown) all clones give
/// [`ErrorKind::ShutDown`](crate::ErrorKind) if the work ends so; an outcome that is there stays.
pub struct Shared<T> {
    kept: Arc<Kept<T>>,
    /// The ending, without the outcome. Only of the clones, so it is dropped with the last of them.
    ended: Arc<Unfuture<()>>,
    /// Under which the waker of this clone is kept.
    place: Option<u64>,
}

struct Kept<T> {
    outcome: OnceLock<Result<T, Error>>,
    /// Whether anybody saw it.
    observed: AtomicBool,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// By the place of the clone that waits. Places are never given twice.
    wakers: BTreeMap<u64, Waker>,
    places: u64,
}

impl<T> Default for Kept<T> {
    fn default() -> Kept<T> {
        Kept {
            outcome: OnceLock::new(),
            observed: AtomicBool::new(false),
            waiting: Mutex::default(),
        }
    }
}

impl<T> Kept<T> {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        lock(&self.waiting)
    }

    fn wake_all(&self) {
        let wakers = mem::take(&mut self.waiting().wakers);
        for waker in wakers.into_values() {
            discard(wall(|| waker.wake()));
        }
    }

    fn outcome(&self) -> Option<&Result<T, Error>> {
        let outcome = self.outcome.get()?;
        self.observed.store(true, Ordering::Relaxed);
        Some(outcome)
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        match self.outcome.take() {
            Some(outcome) if !*self.observed.get_mut() => unobserved(outcome),
            outcome => discard(outcome),
        }
    }
}

impl<T: Clone> Shared<T> {
    /// Waits for the outcome and gives a clone of it. See [`Unfuture::result`].
    ///
    /// # Errors
    ///
    /// What became of the work if it gave no value, and
    /// [`ErrorKind::WouldBlock`](crate::ErrorKind::WouldBlock) for a pending one where
    /// [`Unfuture::result`] does not block.
    ///
    /// # Examples
    ///
    /// ```
    /// let shared = unsync::thread(|| String::from("one")).shared();
    /// assert_eq!(shared.result().unwrap(), "one");
    /// assert_eq!(shared.result().unwrap(), "one"); // as often as it is asked
    /// ```
    pub fn result(&self) -> Result<T, Error> {
        if !self.is_done() {
            if let Some(thread) = role().must_not_block() {
                return Err(would_block(thread, self.ended.origin()));
            }
            self.ended.wait();
        }
        self.copy()
    }

    /// A clone of the outcome that is there.
    fn copy(&self) -> Result<T, Error> {
        let outcome = self.kept.outcome().cloned();
        outcome.unwrap_or_else(|| {
            let unfinished = Error::new(ErrorKind::WouldBlock, "the work has not ended");
            Err(unfinished.started_at(self.ended.origin()))
        })
    }
}

impl<T> Shared<T> {
    /// The outcome itself, if it is there.
    ///
    /// # Examples
    ///
    /// ```
    /// let shared = unsync::thread(|| vec![0; 1 << 20]).shared();
    /// shared.wait();
    /// let zeros = shared.peek().unwrap().as_ref().unwrap(); // not copied
    /// assert_eq!(zeros.len(), 1 << 20);
    /// ```
    pub fn peek(&self) -> Option<&Result<T, Error>> {
        self.kept.outcome()
    }

    /// Blocks until the work has ended.
    ///
    /// # Panics
    ///
    /// On the ambient thread if the work has not ended, since that would stop every async task.
    ///
    /// # Examples
    ///
    /// ```
    /// let shared = unsync::thread(|| 1).shared();
    /// shared.wait();
    /// assert!(shared.is_done());
    /// ```
    #[track_caller]
    pub fn wait(&self) {
        self.ended.wait();
    }

    /// Blocks until the work has ended or `limit` has passed; says whether it has ended.
    ///
    /// # Panics
    ///
    /// On the ambient thread if the work has not ended, since that would stop every async task.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let (promise, unfuture) = unsync::promise();
    /// let shared = unfuture.shared();
    /// assert!(!shared.wait_timeout(Duration::from_millis(1)));
    /// promise.set(1);
    /// assert!(shared.wait_timeout(Duration::MAX));
    /// ```
    #[track_caller]
    pub fn wait_timeout(&self, limit: Duration) -> bool {
        self.ended.wait_timeout(limit)
    }

    /// Whether the work has ended, so that [`result`](Shared::result) gives its outcome at once.
    ///
    /// # Examples
    ///
    /// ```
    /// let (promise, unfuture) = unsync::promise();
    /// let shared = unfuture.shared();
    /// assert!(!shared.is_done());
    /// promise.set(1);
    /// assert!(shared.is_done());
    /// ```
    pub fn is_done(&self) -> bool {
        self.ended.is_done()
    }

    /// Stops the work, for all. See [`Unfuture::cancel`].
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let sleeper = unsync::spawn(unsync::sleep(Duration::MAX)).shared();
    /// let other = sleeper.clone();
    /// assert!(sleeper.cancel());
    /// assert_eq!(other.result().unwrap_err().kind(), unsync::ErrorKind::Cancelled);
    /// ```
    pub fn cancel(&self) -> bool {
        self.ended.cancel()
    }

    /// A handle that can do nothing but cancel this work.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let sleeper = unsync::spawn(unsync::sleep(Duration::MAX)).shared();
    /// let canceller = sleeper.canceller();
    /// std::thread::spawn(move || canceller.cancel());
    /// assert_eq!(sleeper.result().unwrap_err().kind(), unsync::ErrorKind::Cancelled);
    /// ```
    pub fn canceller(&self) -> Canceller {
        self.ended.canceller()
    }

    /// Gives the place back, and the waker in it.
    fn leave(&mut self) {
        let Some(place) = self.place.take() else {
            return;
        };
        let waker = self.kept.waiting().wakers.remove(&place);
        discard(waker);
    }
}

impl<T: Clone> Future for Shared<T> {
    type Output = Result<T, Error>;

    /// May be polled again after it was ready, and is ready again.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T, Error>> {
        if !self.is_done() {
            // Cloning and dropping a waker is foreign code: it happens outside the lock.
            let waker = cx.waker().clone();
            let mut waiting = self.kept.waiting();
            waiting.places += 1;
            let place = self.place.unwrap_or(waiting.places);
            let replaced = waiting.wakers.insert(place, waker);
            drop(waiting);
            drop(replaced);
            self.place = Some(place);
        }
        // Looked at again: who ends the work may have taken the wakers just before.
        if !self.is_done() {
            return Poll::Pending;
        }
        self.leave();
        Poll::Ready(self.copy())
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Shared<T> {
        Shared {
            kept: Arc::clone(&self.kept),
            ended: Arc::clone(&self.ended),
            place: None,
        }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl<T> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.is_done() { "done" } else { "pending" };
        write!(f, "Shared({state}, started at {})", self.ended.origin())
    }
}
