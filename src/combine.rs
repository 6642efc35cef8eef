//! Many at once: `join_all`, `settle_all`, `race` and `as_completed` on one ready-set.
//!
//! In a [`ReadySet`] each member has its own waker, which reports that the member has ended. So n members
//! cost n steps, in whatever order they end.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::iter::FusedIterator;
use std::mem;
use std::panic::Location;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::ambient::{try_spawn, yield_now};
use crate::block_on::block_on_until;
use crate::current::assert_may_block;
use crate::error::{Error, ErrorKind, Origin, discard, lock};
use crate::slot::{Work, already_taken};
use crate::stop::Reason;
use crate::sync::{Instant, Mutex, MutexGuard};
use crate::unfuture::Unfuture;

// -------------------------------------------------------------------------------------- all of them

/// Waits for all and resolves to the values in the order of the input, or to the first error. Called
/// `try_join_all` in futures.
///
/// The first error resolves the returned `Unfuture` at once. The others run on, unless they are tied by
/// [`cancel_on_drop`](Unfuture::cancel_on_drop). Cancelling it cancels all of them. If any of them is tied,
/// it is tied too. With an empty input it is ready at once.
///
/// # Errors
///
/// Resolves as the first to fail. If some have not ended and there is no ambient thread to wait for them,
/// they are cancelled, and it resolves as [`ErrorKind::ShutDown`] after a shutdown and as [`ErrorKind::Os`]
/// if the operating system refuses the thread.
///
/// # Examples
///
/// ```
/// let squares = unsync::join_all((1..=3u32).map(|n| unsync::spawn(async move { n * n })));
/// assert_eq!(squares.result().unwrap(), [1, 4, 9]);
/// ```
#[track_caller]
pub fn join_all<T, I>(unfutures: I) -> Unfuture<Vec<T>>
where
    T: Send + 'static,
    I: IntoIterator<Item = Unfuture<T>>,
{
    let (origin, unfutures) = (Location::caller(), Vec::from_iter(unfutures));
    if unfutures.iter().all(Unfuture::is_done) {
        let mut values = Vec::with_capacity(unfutures.len());
        let mut works = unfutures.into_iter();
        let failed = works.find_map(|work| work.take().map(|value| values.push(value)).err());
        let Some(error) = failed else {
            return Unfuture::settled_at(origin, Ok(values));
        };
        values.into_iter().for_each(discard);
        return Unfuture::settled_at(origin, Err(error));
    }
    combine(origin, unfutures, |mut set, _| async move {
        let mut values = Vec::from_iter(set.members.iter().map(|_| None));
        while let Some((index, outcome)) = set.next().await {
            match outcome {
                Ok(value) => values[index] = Some(value),
                Err(error) => {
                    // The others run on.
                    set.cancels = false;
                    drop(set);
                    values.into_iter().for_each(discard);
                    return Err(error);
                }
            }
        }
        Ok(values.into_iter().flatten().collect())
    })
}

/// Waits for all and resolves to the outcome of each, in the order of the input. Called `join_all` in futures.
///
/// The returned `Unfuture` never fails. A cancellation, a deadline or a shutdown ends it at once with the
/// outcomes so far: work that has not ended is stopped and appears as such among them, and
/// [`cancel`](Unfuture::cancel) returns `false`. Where there is no ambient thread to wait for work that has not
/// ended, that work is stopped as in a shutdown. If any of the work is tied by
/// [`cancel_on_drop`](Unfuture::cancel_on_drop), it is tied too. With an empty input it is ready at once.
///
/// A step chained to it, such as [`timeout`](Unfuture::timeout), is work of its own: cancelling that step
/// loses the outcomes, so take the [`canceller`](Unfuture::canceller) first.
///
/// # Examples
///
/// ```
/// let outcomes = unsync::settle_all([unsync::thread(|| 1), unsync::thread(|| panic!("no"))]);
/// let outcomes = outcomes.result().unwrap();
/// assert!(outcomes[0].is_ok() && outcomes[1].is_err());
/// ```
#[track_caller]
pub fn settle_all<T, I>(unfutures: I) -> Unfuture<Vec<Result<T, Error>>>
where
    T: Send + 'static,
    I: IntoIterator<Item = Unfuture<T>>,
{
    let (origin, unfutures) = (Location::caller(), Vec::from_iter(unfutures));
    if unfutures.iter().all(Unfuture::is_done) {
        let outcomes = unfutures.into_iter().map(|work| work.take()).collect();
        return Unfuture::settled_at(origin, Ok(outcomes));
    }
    combine(origin, unfutures, |set, itself| {
        let signal = Arc::clone(&set.signal);
        // A stop only ends the wait: the outcomes so far are still wanted.
        let stop = move |reason| signal.change(|ended| _ = ended.stopped.get_or_insert(reason));
        if let Some(itself) = itself.upgrade() {
            itself
                .slot()
                .link(|links| links.on_stop = Some(Arc::new(stop)));
        }
        let mut settling = Settling {
            outcomes: set.members.iter().map(|_| None).collect(),
            set,
            itself,
        };
        async move {
            while let Some((index, outcome)) = settling.set.next().await {
                settling.outcomes[index] = Some(outcome);
            }
            if settling.set.left > 0 {
                // What is stopped here is gone before anybody sees the outcomes.
                settling.stop();
                yield_now().await;
            }
            Ok(settling.settle())
        }
    })
}

/// The outcomes so far, and the work that is still to end. [`settle_all`] gives them however it ends.
struct Settling<T: Send + 'static> {
    outcomes: Vec<Option<Result<T, Error>>>,
    set: ReadySet<T>,
    itself: Weak<dyn Work>,
}

impl<T: Send + 'static> Settling<T> {
    /// Stops the work that has not ended. Each member has its outcome after that.
    fn stop(&mut self) {
        let reason = self.set.signal.lock().stopped.unwrap_or(Reason::ShutDown);
        let stopped = |work: &Unfuture<T>| {
            if work.is_done() {
                return work.take();
            }
            work.cancel();
            let ended = || {
                reason
                    .error("part of `settle_all`")
                    .started_at(work.slot().origin)
            };
            Err(work.untyped().still_running(reason).unwrap_or_else(ended))
        };
        // Each member has either its outcome or its work.
        for (outcome, work) in self.outcomes.iter_mut().zip(&self.set.members) {
            if outcome.is_none() {
                *outcome = work.as_ref().map(stopped);
            }
        }
    }

    fn settle(&mut self) -> Vec<Result<T, Error>> {
        self.stop();
        mem::take(&mut self.outcomes)
            .into_iter()
            .flatten()
            .collect()
    }
}

/// It is dropped before it is done if the ambient thread ends, or cannot be had.
impl<T: Send + 'static> Drop for Settling<T> {
    fn drop(&mut self) {
        if self.outcomes.is_empty() {
            return;
        }
        let mut outcomes = Some(self.settle());
        if let Some(itself) = self.itself.upgrade() {
            itself
                .slot()
                .resolve(None, None, |value, wanted| value.put(&mut outcomes, wanted));
        }
    }
}

// ------------------------------------------------------------------------------------ one of them

/// Resolves to the outcome of the first to finish, a value or an error, and cancels the others. Like
/// `select_all` in futures, which leaves the others to the caller.
///
/// A losing call in a worker process is killed. A losing thread job that already runs cannot be stopped: it
/// keeps running, and its value is discarded. Cancelling the race cancels all of them. If any of them is tied
/// by [`cancel_on_drop`](Unfuture::cancel_on_drop), the race is tied too.
///
/// # Errors
///
/// Resolves as the first to finish if that failed, and as [`ErrorKind::Abandoned`] for an empty input. If
/// none has ended and there is no ambient thread to wait for them, resolves as [`join_all`] does.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// let work = unsync::thread(|| "value");
/// let limit = unsync::spawn(async {
///     unsync::sleep(Duration::from_secs(60)).await;
///     "default"
/// });
/// assert_eq!(unsync::race([work, limit]).result().unwrap(), "value");
/// ```
#[track_caller]
pub fn race<T, I>(unfutures: I) -> Unfuture<T>
where
    T: Send + 'static,
    I: IntoIterator<Item = Unfuture<T>>,
{
    let (origin, mut unfutures) = (Location::caller(), Vec::from_iter(unfutures));
    if unfutures.is_empty() {
        let error = Error::new(ErrorKind::Abandoned, "a race of nothing");
        return Unfuture::settled_at(origin, Err(error.started_at(origin)));
    }
    if let Some(first) = unfutures.iter().position(Unfuture::is_done) {
        let first = unfutures.swap_remove(first);
        unfutures
            .into_iter()
            .for_each(|work| drop(work.cancel_on_drop()));
        return first;
    }
    combine(origin, unfutures, |mut set, _| async move {
        let first = set.next().await;
        // The losers stop first, so whoever sees the winner sees that the race is over. Work that the losers
        // stop in turn is stopped after this step.
        drop(set);
        yield_now().await;
        first.map_or_else(|| Err(already_taken()), |(_, outcome)| outcome)
    })
}

// --------------------------------------------------------------------------- one after the other

/// Returns an iterator over the outcomes in order of completion, each with its index in the input. Called
/// `FuturesUnordered` in futures.
///
/// Synchronous code uses it as an [`Iterator`], and [`next_timeout`](AsCompleted::next_timeout) bounds the wait.
/// Async code awaits [`next_done`](AsCompleted::next_done), under any executor.
///
/// # Examples
///
/// ```
/// let ((first, slow), (second, quick)) = (unsync::promise(), unsync::promise());
/// let mut ended = unsync::as_completed([slow, quick]);
/// second.set("b");
/// assert!(matches!(ended.next(), Some((1, Ok("b")))));
/// first.set("a");
/// assert!(matches!(ended.next(), Some((0, Ok("a")))));
/// assert!(ended.next().is_none());
/// ```
#[track_caller]
pub fn as_completed<T, I>(unfutures: I) -> AsCompleted<T>
where
    T: Send + 'static,
    I: IntoIterator<Item = Unfuture<T>>,
{
    AsCompleted {
        set: ReadySet::new(Vec::from_iter(unfutures)),
        origin: Location::caller(),
    }
}

/// An iterator over outcomes as they come, made by [`as_completed`].
///
/// `len()` says how many outcomes are still to come. After a drop the remaining work runs on, unless it is
/// tied by [`cancel_on_drop`](Unfuture::cancel_on_drop); see [`cancel`](AsCompleted::cancel).
///
/// # Examples
///
/// ```
/// let jobs = unsync::as_completed((0..3).map(|n| unsync::thread(move || n)));
/// assert_eq!(jobs.len(), 3);
/// let sum: u32 = jobs.map(|(_, outcome)| outcome.unwrap()).sum();
/// assert_eq!(sum, 3);
/// ```
pub struct AsCompleted<T> {
    set: ReadySet<T>,
    origin: Origin,
}

impl<T> AsCompleted<T> {
    /// Waits for the next outcome; `None` after the last. Called `next` in futures.
    ///
    /// Dropping the future before it is ready loses no outcome.
    ///
    /// # Examples
    ///
    /// ```
    /// # unsync::block_on(async {
    /// let mut completed = unsync::as_completed([unsync::thread(|| 1), unsync::thread(|| 2)]);
    /// let mut sum = 0;
    /// while let Some((_, outcome)) = completed.next_done().await {
    ///     sum += outcome.unwrap();
    /// }
    /// assert_eq!(sum, 3);
    /// # });
    /// ```
    pub async fn next_done(&mut self) -> Option<(usize, Result<T, Error>)> {
        let _forgotten = ForgetWaker(Arc::clone(&self.set.signal));
        self.set.next().await
    }

    /// Blocks until the next outcome is there, for at most `limit`.
    ///
    /// Returns `None` if no outcome came in time, and at once after the last. `len()` tells the two apart: it
    /// counts the outcomes that are still to come.
    ///
    /// # Panics
    ///
    /// Panics if no outcome is there, whatever the limit, on a thread where [`result`](Unfuture::result) never
    /// blocks, such as the ambient thread.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let slow = unsync::spawn(unsync::sleep(Duration::from_secs(60)));
    /// let mut completed = unsync::as_completed([slow, unsync::spawn(async {})]);
    /// while let Some((index, _)) = completed.next_timeout(Duration::from_millis(500)) {
    ///     println!("{index} has ended");
    /// }
    /// println!("{} took too long", completed.len());
    /// # assert_eq!(completed.len(), 1);
    /// completed.cancel();
    /// ```
    #[track_caller]
    pub fn next_timeout(&mut self, limit: Duration) -> Option<(usize, Result<T, Error>)> {
        // A deadline that overflows is no deadline.
        self.next_until(Instant::now().checked_add(limit))
    }

    #[track_caller]
    fn next_until(&mut self, deadline: Option<Instant>) -> Option<(usize, Result<T, Error>)> {
        let poll = self.set.poll_next(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(next) = poll {
            return next;
        }
        assert_may_block(|thread| {
            let origin = self.origin;
            format!(
                "the next of as_completed would block {thread}; use `next_done().await` in a task \
                 instead (started at {origin})"
            )
        });
        block_on_until(self.set.next(), deadline).flatten()
    }

    /// Cancels everything that has not ended. Those outcomes come like all the others.
    ///
    /// # Examples
    ///
    /// ```
    /// let forever = std::time::Duration::MAX;
    /// let mut naps = unsync::as_completed([(), ()].map(|()| unsync::spawn(unsync::sleep(forever))));
    /// naps.cancel();
    /// assert!(naps.all(|(_, outcome)| outcome.is_err()));
    /// ```
    pub fn cancel(&self) {
        for work in self.set.members.iter().flatten() {
            work.cancel();
        }
    }
}

impl<T> Iterator for AsCompleted<T> {
    type Item = (usize, Result<T, Error>);

    /// Blocks until the next outcome is there.
    ///
    /// # Panics
    ///
    /// Panics if none is there, on a thread where [`result`](Unfuture::result) never blocks, such as the
    /// ambient thread.
    #[track_caller]
    fn next(&mut self) -> Option<(usize, Result<T, Error>)> {
        self.next_until(None)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.set.left, Some(self.set.left))
    }
}

impl<T> ExactSizeIterator for AsCompleted<T> {}
impl<T> FusedIterator for AsCompleted<T> {}

impl<T> fmt::Debug for AsCompleted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "AsCompleted({} left, started at {})",
            self.set.left, self.origin
        )
    }
}

// ------------------------------------------------------------------------------------ the ready-set

/// Starts a task that waits for all of these and, when it is dropped, cancels those that are left.
fn combine<T, U, M, F>(origin: Origin, unfutures: Vec<Unfuture<T>>, make: M) -> Unfuture<U>
where
    T: Send + 'static,
    U: Send + 'static,
    M: FnOnce(ReadySet<T>, Weak<dyn Work>) -> F,
    F: Future<Output = Result<U, Error>> + Send + 'static,
{
    let is_tied = unfutures.iter().any(|work| work.slot().is_tied());
    let mut set = ReadySet::new(unfutures);
    set.cancels = true;
    let whole = try_spawn(origin, true, |itself| {
        for work in set.members.iter().flatten() {
            work.slot().observed_by(itself.clone());
        }
        make(set, itself)
    });
    whole.tied(is_tied)
}

/// The members that are waited for, and which of them have ended.
struct ReadySet<T> {
    /// `None` once its outcome was given away.
    members: Vec<Option<Unfuture<T>>>,
    left: usize,
    /// Members that have ended, taken from the signal all at once.
    ended: VecDeque<usize>,
    signal: Arc<Signal>,
    /// Whether dropping this cancels the members that are left.
    cancels: bool,
}

#[derive(Default)]
struct Signal(Mutex<Ended>);

#[derive(Default)]
struct Ended {
    /// Members that have ended. One that ends while it is polled appears twice.
    members: VecDeque<usize>,
    waiting: Option<Waker>,
    /// Set when the wait is stopped.
    stopped: Option<Reason>,
}

/// The waker of one member.
struct Member {
    index: usize,
    signal: Arc<Signal>,
}

impl Signal {
    fn lock(&self) -> MutexGuard<'_, Ended> {
        lock(&self.0)
    }

    fn change(&self, change: impl FnOnce(&mut Ended)) {
        let mut ended = self.lock();
        change(&mut ended);
        let waiting = ended.waiting.take();
        drop(ended);
        if let Some(waker) = waiting {
            waker.wake();
        }
    }
}

/// Drops the waker of the task that waited.
struct ForgetWaker(Arc<Signal>);

impl Drop for ForgetWaker {
    fn drop(&mut self) {
        let waker = self.0.lock().waiting.take();
        discard(waker);
    }
}

impl Wake for Member {
    fn wake(self: Arc<Self>) {
        let index = self.index;
        self.signal.change(|ended| ended.members.push_back(index));
    }
}

impl<T> ReadySet<T> {
    fn new(unfutures: Vec<Unfuture<T>>) -> ReadySet<T> {
        let signal = Arc::new(Signal::default());
        for (index, work) in unfutures.iter().enumerate() {
            let is_done = work.is_done() || {
                let signal = Arc::clone(&signal);
                let waker = Waker::from(Arc::new(Member { index, signal }));
                work.slot()
                    .poll_done(&mut Context::from_waker(&waker))
                    .is_ready()
            };
            if is_done {
                signal.lock().members.push_back(index);
            }
        }
        ReadySet {
            left: unfutures.len(),
            members: unfutures.into_iter().map(Some).collect(),
            ended: VecDeque::new(),
            signal,
            cancels: false,
        }
    }

    /// The next member that has ended; `None` when all were given away, or when the wait was stopped.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<(usize, Result<T, Error>)>> {
        while self.left > 0 {
            if let Some(index) = self.ended.pop_front() {
                if let Some(work) = self.members[index].take() {
                    self.left -= 1;
                    return Poll::Ready(Some((index, work.take())));
                }
                continue;
            }
            // Cloning and dropping a waker is foreign code: it happens outside the lock.
            let waker = cx.waker().clone();
            let mut ended = self.signal.lock();
            if !ended.members.is_empty() {
                mem::swap(&mut self.ended, &mut ended.members);
            } else if ended.stopped.is_some() {
                break;
            } else {
                let replaced = ended.waiting.replace(waker);
                drop(ended);
                drop(replaced);
                return Poll::Pending;
            }
        }
        Poll::Ready(None)
    }

    /// Dropping the future loses no outcome.
    fn next(&mut self) -> impl Future<Output = Option<(usize, Result<T, Error>)>> + use<'_, T> {
        poll_fn(|cx| self.poll_next(cx))
    }
}

impl<T> Drop for ReadySet<T> {
    fn drop(&mut self) {
        // The task of that waker may own the signal.
        drop(ForgetWaker(Arc::clone(&self.signal)));
        if self.cancels {
            let members = mem::take(&mut self.members).into_iter().flatten();
            members.for_each(|work| drop(work.cancel_on_drop()));
        }
    }
}
