//! An `Unfuture` with many waiters.
//!
//! The outcome is kept for all; each clone returns a copy of it, made outside of every lock. The clones share
//! the `Unfuture`: it cancels the work, and threads wait for it. Only the wakers of tasks are kept here,
//! because a slot has room for only one.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::error::{Error, discard, lock, next_number, wall};
use crate::sync::{Mutex, OnceLock};
use crate::unfuture::{Canceller, Unfuture};

impl<T: Clone + Send + Sync + 'static> Unfuture<T> {
    /// Lets many wait for the same work: each clone of the [`Shared`] returns a clone of the outcome.
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
        Shared {
            inner: Arc::new(Inner {
                source: self,
                outcome: OnceLock::new(),
                waiting: Arc::default(),
                last_id: Mutex::new(0),
            }),
            id: 0,
        }
    }
}

/// An [`Unfuture`] with many owners, made by [`Unfuture::shared`]. Called `Shared` in futures too.
///
/// Each clone waits on its own and returns a clone of the outcome, as often as it is asked. Put an outcome that
/// is costly to clone into an [`Arc`], or look at it with [`peek`](Shared::peek).
///
/// [`cancel`](Shared::cancel) on any clone stops the work, and all clones give
/// [`ErrorKind::Cancelled`](crate::ErrorKind). Dropping a clone, or cancelling a task that awaits one, stops
/// nothing. When the last clone is dropped the work runs on, or is cancelled if it is tied by
/// [`cancel_on_drop`](Unfuture::cancel_on_drop). A [`shutdown`](crate::shutdown) ends pending work as
/// [`ErrorKind::ShutDown`](crate::ErrorKind) for all clones; an outcome that is there stays.
///
/// # Examples
///
/// ```
/// let shared = unsync::thread(|| String::from("read once")).shared();
/// let other = shared.clone();
/// assert_eq!(shared.result().unwrap(), other.result().unwrap());
/// ```
pub struct Shared<T> {
    inner: Arc<Inner<T>>,
    /// The key of this clone's waker.
    id: u64,
}

/// What the clones have in common, dropped with the last of them.
struct Inner<T> {
    source: Unfuture<T>,
    /// Taken from the source by the first clone that looks at it.
    outcome: OnceLock<Result<T, Error>>,
    waiting: Arc<Waiting>,
    last_id: Mutex<u64>,
}

/// The wakers of the clones that wait, by their ids. Waking this wakes them all.
#[derive(Default)]
struct Waiting(Mutex<BTreeMap<u64, Waker>>);

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        let wakers = mem::take(&mut *lock(&self.0));
        for waker in wakers.into_values() {
            discard(wall(|| waker.wake()));
        }
    }
}

impl<T: Clone> Shared<T> {
    /// Waits for the outcome and returns a clone of it. See [`Unfuture::result`].
    ///
    /// # Errors
    ///
    /// The error of the work if it gave no value, and
    /// [`ErrorKind::WouldBlock`](crate::ErrorKind::WouldBlock) for pending work where [`Unfuture::result`] does
    /// not block.
    ///
    /// # Examples
    ///
    /// ```
    /// let shared = unsync::thread(|| String::from("one")).shared();
    /// assert_eq!(shared.result().unwrap(), "one");
    /// assert_eq!(shared.result().unwrap(), "one"); // as often as it is asked
    /// ```
    pub fn result(&self) -> Result<T, Error> {
        self.inner.source.slot().wait_until(None)?;
        self.outcome().clone()
    }
}

impl<T> Shared<T> {
    /// Returns the outcome itself, if it is there.
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
        self.is_done().then(|| self.outcome())
    }

    /// Blocks until the work has ended.
    ///
    /// # Panics
    ///
    /// Panics if the work has not ended, on a thread where [`result`](Unfuture::result) never blocks, such as
    /// the ambient thread.
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
        self.inner.source.wait();
    }

    /// Blocks until the work has ended or `limit` has passed; returns whether the work has ended.
    ///
    /// # Panics
    ///
    /// Panics if the work has not ended, on a thread where [`result`](Unfuture::result) never blocks, such as
    /// the ambient thread.
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
        self.inner.source.wait_timeout(limit)
    }

    /// Returns whether the work has ended, so that [`result`](Shared::result) returns its outcome at once.
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
        self.inner.source.is_done()
    }

    /// Stops the work for all clones. See [`Unfuture::cancel`].
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
        self.inner.source.cancel()
    }

    /// Returns a handle that can only cancel this work.
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
        self.inner.source.canceller()
    }

    /// The outcome of work that has ended.
    fn outcome(&self) -> &Result<T, Error> {
        let inner = &self.inner;
        inner.outcome.get_or_init(|| inner.source.take())
    }

    fn forget_waker(&self) {
        let waker = lock(&self.inner.waiting.0).remove(&self.id);
        discard(waker);
    }
}

impl<T: Clone> Future for Shared<T> {
    type Output = Result<T, Error>;

    /// May be polled again after it was ready; it is ready again.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T, Error>> {
        if !self.is_done() {
            // Cloning and dropping a waker is foreign code: it happens outside the lock.
            let waker = cx.waker().clone();
            let replaced = lock(&self.inner.waiting.0).insert(self.id, waker);
            drop(replaced);
        }
        // Polled after the waker is stored: whoever ends the work may have taken the wakers just before.
        let waker = Waker::from(Arc::clone(&self.inner.waiting));
        let done = self
            .inner
            .source
            .slot()
            .poll_done(&mut Context::from_waker(&waker));
        done.map(|()| {
            self.forget_waker();
            self.outcome().clone()
        })
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Shared<T> {
        Shared {
            inner: Arc::clone(&self.inner),
            id: next_number(&self.inner.last_id),
        }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        self.forget_waker();
    }
}

impl<T> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.is_done() { "done" } else { "pending" };
        write!(
            f,
            "Shared({state}, started at {})",
            self.inner.source.slot().origin
        )
    }
}
