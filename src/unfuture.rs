//! The future and the promise: the two ends of a slot.
//!
//! The side that does the work holds a [`Slot`] inside something that is [`Work`], and finishes the slot; the
//! side that wants the value holds an [`Unfuture`]. This file knows no engine: the [`Work`] knows how to
//! stop, and the thread says whether it may wait.

use std::fmt;
use std::future::Future;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Origin, unobserved};
use crate::progress::Progress;
use crate::slot::{Output, Slot, Work, already_taken, trampoline};
use crate::stop::{Reason, Stopping};
use crate::sync::Instant;
use crate::sync::atomic::Ordering;

/// The future value of an async task, a thread job, a call in a worker process, or a [`Promise`].
///
/// The work starts without being awaited. Await the value on any executor, or block for it with
/// [`result`](Unfuture::result): both give the same `Result`. Dropping an `Unfuture` does not stop the work.
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
    work: Arc<dyn Output<T>>,
}

/// Sets the value of an [`Unfuture`] by hand, from any thread. Made by [`promise`]. Called `oneshot::Sender`
/// in tokio and futures.
///
/// Dropping it unset resolves the `Unfuture` as [`ErrorKind::Abandoned`], so nobody waits forever.
///
/// # Examples
///
/// ```
/// let (promise, unfuture) = unsync::promise();
/// std::thread::spawn(move || promise.set(42));
/// assert_eq!(unfuture.result().unwrap(), 42);
/// ```
pub struct Promise<T> {
    slot: Arc<Slot<Option<T>>>,
}

// ---------------------------------------------------------------------------------- public face

impl<T> Unfuture<T> {
    /// Waits for the outcome.
    ///
    /// Blocks the calling thread until the work has ended, or forever if it never ends; see
    /// [`wait_timeout`](Unfuture::wait_timeout) for a limit. On two kinds of threads, neither this nor any
    /// other wait of this library blocks: on the ambient thread, and on the threads that read from worker
    /// processes, where results are [decoded](crate::Wire::decode) and the hooks
    /// [`on_unobserved`](crate::Config::on_unobserved) and [`worker_command`](crate::Config::worker_command)
    /// may be called. There, a finished `Unfuture` gives its outcome and a pending one gives an error.
    ///
    /// # Errors
    ///
    /// The error of the work if it gave no value, and [`ErrorKind::WouldBlock`] for a pending `Unfuture` on a
    /// thread that must not block. In the latter case the `Unfuture` is gone, and the work continues unless
    /// it is tied by [`cancel_on_drop`](Unfuture::cancel_on_drop).
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(unsync::thread(|| 1 + 1).result().unwrap(), 2);
    /// ```
    pub fn result(self) -> Result<T, Error> {
        self.slot().wait_until(None)?;
        self.take()
    }

    /// Blocks until the work has ended, without taking its outcome.
    ///
    /// # Panics
    ///
    /// Panics if the work has not ended, on a thread where [`result`](Unfuture::result) never blocks, such as
    /// the ambient thread.
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

    /// Blocks until the work has ended or `limit` has passed; returns whether the work has ended.
    ///
    /// The work continues in either case.
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
    /// assert!(!unfuture.wait_timeout(Duration::from_millis(1)));
    /// promise.set(1);
    /// assert!(unfuture.wait_timeout(Duration::MAX));
    /// assert_eq!(unfuture.result().unwrap(), 1);
    /// ```
    #[track_caller]
    pub fn wait_timeout(&self, limit: Duration) -> bool {
        // A deadline too far away to be represented is no deadline.
        self.wait_until(Instant::now().checked_add(limit))
    }

    #[track_caller]
    pub(crate) fn wait_until(&self, deadline: Option<Instant>) -> bool {
        match self.slot().wait_until(deadline) {
            Ok(is_done) => is_done,
            Err(error) => panic!("{error}"),
        }
    }

    /// Stops the work; returns whether it ends, or has ended, as [`ErrorKind::Cancelled`]. Called `abort` in
    /// tokio.
    ///
    /// - An async task: its future is dropped on the ambient thread. A poll in progress finishes first,
    ///   and what it returns is discarded.
    /// - A thread job: it is taken out of the queue. A running job cannot be stopped;
    ///   [`is_cancelled`](crate::is_cancelled) returns `true` in it, and its value is still delivered.
    /// - A call in a worker process: it is taken out of the queue, or its worker is killed, after
    ///   [`cancel_grace`](crate::Config::cancel_grace) if that is set.
    /// - A continuation: the continuation stops, but not its source.
    /// - [`join_all`](crate::join_all), [`race`](crate::race), [`timeout`](Unfuture::timeout),
    ///   [`flatten`](Unfuture::flatten): everything it waits for stops. If none of that can be stopped, such
    ///   as a running job, the `Unfuture` itself ends anyway and the job's value is discarded.
    /// - [`settle_all`](crate::settle_all) gives the outcomes it has, so it does not end as cancelled.
    ///
    /// May be called from any thread and any number of times, before and after the end; the answer does not
    /// change. A panic in cancelled work, for example in a destructor, is reported to
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

    /// Returns a cloneable handle that can only cancel this work.
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
        Canceller(self.untyped())
    }

    /// Ties the work to a scope: dropping this `Unfuture` cancels the work.
    ///
    /// The tie holds through everything that takes the `Unfuture`: a continuation or combinator of tied work
    /// is tied itself, and cancels the work when it is dropped. Only [`on_done`](Unfuture::on_done) undoes
    /// the tie.
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
        self.slot().tied.store(true, Ordering::Relaxed);
        self
    }

    /// Returns whether the work has ended, so that [`result`](Unfuture::result) gives its outcome at once.
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
        self.slot().is_done()
    }

    /// Creates an `Unfuture` that already has its value.
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
        Unfuture::settled_at(Location::caller(), Ok(value))
    }

    /// Creates an `Unfuture` that has already failed.
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
        Unfuture::settled_at(Location::caller(), Err(error))
    }

    pub(crate) fn settled_at(origin: Origin, outcome: Result<T, Error>) -> Unfuture<T>
    where
        T: Send + 'static,
    {
        let slot = Slot::begun(origin);
        slot.finish(outcome);
        Unfuture::of(Arc::new(slot))
    }
}

/// Cancels one piece of work, from any thread. Made by [`Unfuture::canceller`]. Called `AbortHandle` in tokio and
/// futures.
///
/// It keeps neither the work nor its value alive, only a little memory that records how the work ended.
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
pub struct Canceller(Arc<dyn Work>);

impl Canceller {
    /// Stops the work. See [`Unfuture::cancel`].
    pub fn cancel(&self) -> bool {
        let stopping = Arc::clone(&self.0).stop(Reason::Cancelled);
        // It may have ended as cancelled by itself, because its source did.
        stopping == Stopping::Yes || self.0.slot().is_cancelled()
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
    let slot = Arc::new(Slot::begun(Location::caller()));
    let unfuture = Unfuture::of(slot.clone());
    (Promise { slot }, unfuture)
}

impl<T> Promise<T> {
    /// Sets the value; returns whether it arrived. The value is dropped if nobody can see it any more, see
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
        self.slot.finish(Ok(value)) && observed
    }

    /// Resolves the `Unfuture` with an error: one from elsewhere, or a [new one](Error::new).
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
        self.slot.finish(Err(error));
    }

    /// Returns whether nobody can see the value any more: the `Unfuture` was cancelled, ran out of time, or
    /// was dropped.
    ///
    /// Whatever consumed the `Unfuture` can see the value too: a continuation and
    /// [`on_done`](Unfuture::on_done) always, since they run in any case; a [`Shared`](crate::Shared), a
    /// [`timeout`](Unfuture::timeout) or a [`join_all`](crate::join_all) until they are dropped themselves.
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
        !self.slot.is_observed()
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        if !self.slot.is_done() {
            let error = Error::new(ErrorKind::Abandoned, "the promise was dropped unfulfilled");
            self.slot.finish(Err(error.started_at(self.slot.origin)));
        }
    }
}

impl<T> Future for Unfuture<T> {
    type Output = Result<T, Error>;

    /// # Panics
    ///
    /// Panics if polled again after it gave its outcome.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T, Error>> {
        let done = self.slot().poll_done(cx);
        done.map(|()| {
            self.work
                .take()
                .expect("`Unfuture` polled after completion")
        })
    }
}

impl<T> Drop for Unfuture<T> {
    fn drop(&mut self) {
        if self.slot().is_taken() {
            return;
        }
        match self.slot().detach() {
            Some(true) => stop_tied(self.untyped()),
            Some(false) => {}
            None => drop(self.work.take().map(unobserved)),
        }
    }
}

/// Stops tied work. What that drops may own the next tied work, and so on.
fn stop_tied(work: Arc<dyn Work>) {
    trampoline(move || {
        work.stop(Reason::Cancelled);
    });
}

impl<T> fmt::Debug for Unfuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slot = self.slot();
        if slot.is_taken() {
            return f.write_str("Unfuture(taken)");
        }
        let state = if slot.is_done() { "done" } else { "pending" };
        write!(f, "Unfuture({state}, started at {})", slot.origin)
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

impl<T> Unfuture<T> {
    pub(crate) fn of(work: Arc<dyn Output<T>>) -> Unfuture<T> {
        Unfuture { work }
    }

    pub(crate) fn slot(&self) -> &Slot {
        self.work.slot()
    }

    /// The work without the type of its value.
    pub(crate) fn untyped(&self) -> Arc<dyn Work> {
        Arc::clone(&self.work).untyped()
    }

    /// Ties the work to its scope, if the work that it is made of is tied.
    pub(crate) fn tied(self, is_tied: bool) -> Unfuture<T> {
        match is_tied {
            true => self.cancel_on_drop(),
            false => self,
        }
    }

    pub(crate) fn progress(&self) -> Option<Arc<Progress>> {
        let progress = self.slot().linked(|links| links.progress.clone());
        progress.or_else(|| self.work.progress())
    }

    /// Takes the outcome of work that has ended.
    pub(crate) fn take(&self) -> Result<T, Error> {
        self.work.take().unwrap_or_else(|| Err(already_taken()))
    }
}

/// What a promise resolves.
impl<T: Send + 'static> Work for Slot<Option<T>> {
    fn slot(&self) -> &Slot {
        self
    }

    fn stop(self: Arc<Self>, reason: Reason) -> Stopping {
        let error = reason.error("a promise").started_at(self.origin);
        match self.finish(Err(error)) {
            true => Stopping::Yes,
            false => Stopping::No,
        }
    }
}

impl<T: Send + 'static> Output<T> for Slot<Option<T>> {
    fn take(&self) -> Option<Result<T, Error>> {
        Slot::take(self)
    }

    fn untyped(self: Arc<Self>) -> Arc<dyn Work> {
        self
    }
}
