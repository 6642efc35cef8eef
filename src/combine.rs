//! Many at once.
//!
//! Nobody polls here: each piece of work reports when it ends, so that n pieces cost n steps,
//! whatever their order.
//!
//! Floor 4: imports the future.

use std::collections::VecDeque;
use std::fmt;
use std::iter::FusedIterator;
use std::mem;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Origin, discard, lock, unobserved};
use crate::role::assert_may_block;
use crate::slot::{Observed, Observer, nest};
use crate::unfuture::{Promise, Reason, Stop, Stopping, Unfuture, derived};

// -------------------------------------------------------------------------------------- all of them

/// Waits for all: the values in the order of the input, or the first error.
///
/// The first error resolves it at once; the other works go on, unless they are tied by
/// [`cancel_on_drop`](Unfuture::cancel_on_drop). Cancelling it cancels them all. If any of them is tied, it
/// is tied too. Of nothing it is ready.
///
/// # Errors
///
/// Resolves as the work that failed first.
///
/// # Examples
///
/// ```
/// let squares = unsync::join_all((1..=3u32).map(|n| unsync::spawn(async move { n * n })));
/// assert_eq!(squares.result().unwrap(), [1, 4, 9]);
/// ```
#[track_caller]
pub fn join_all<T, I>(works: I) -> Unfuture<Vec<T>>
where
    T: Send + 'static,
    I: IntoIterator<Item = Unfuture<T>>,
{
    let works: Vec<_> = works.into_iter().collect();
    let all = Arc::new(All::of(&works));
    gather(Location::caller(), works, all, Open::default(), |outcome| {
        outcome
    })
}

/// Waits for all: what became of each, in the order of the input.
///
/// It does not fail. Cancelling it, and a deadline, ends it at once with the outcomes that are there:
/// works that have not ended are cancelled and appear as such among them, and
/// [`cancel`](Unfuture::cancel) returns `false`. If any work is tied by
/// [`cancel_on_drop`](Unfuture::cancel_on_drop), it is tied too. Of nothing it is ready.
///
/// # Examples
///
/// ```
/// let outcomes = unsync::settle_all([unsync::thread(|| 1), unsync::thread(|| panic!("no"))]);
/// let outcomes = outcomes.result().unwrap();
/// assert!(outcomes[0].is_ok() && outcomes[1].is_err());
/// ```
#[track_caller]
pub fn settle_all<T, I>(works: I) -> Unfuture<Vec<Result<T, Error>>>
where
    T: Send + 'static,
    I: IntoIterator<Item = Unfuture<T>>,
{
    let works: Vec<_> = works.into_iter().collect();
    let open = Open::default();
    let settling = Settling {
        all: All::of(&works),
        origins: works.iter().map(Unfuture::origin).collect(),
        open: Arc::clone(&open),
    };
    gather(Location::caller(), works, Arc::new(settling), open, Ok)
}

/// Waits for a part from each work; `part` makes it from the outcome, or ends the whole.
fn gather<T, P>(
    origin: Origin,
    works: Vec<Unfuture<T>>,
    stop: Arc<dyn Stop>,
    open: Open<P>,
    part: fn(Result<T, Error>) -> Result<P, Error>,
) -> Unfuture<Vec<P>>
where
    T: Send + 'static,
    P: Send + 'static,
{
    let (promise, gathered) = derived(origin, Some(stop));
    if works.is_empty() {
        promise.set(Vec::new());
        return gathered;
    }
    let tied = tied(&works);
    let gathered = gathered.tied(!tied.is_empty());
    let observed = promise.observed();
    *lock(&open) = Some(Gathering {
        promise,
        tied,
        parts: works.iter().map(|_| None).collect(),
        missing: works.len(),
    });
    for (index, work) in works.into_iter().enumerate() {
        let open = Arc::clone(&open);
        work.hand_on(observed.clone(), move |outcome| {
            arrive(&open, index, part(outcome));
        });
    }
    gathered
}

/// `None` once it was resolved.
type Open<P> = Arc<Mutex<Option<Gathering<P>>>>;

struct Gathering<P> {
    promise: Promise<Vec<P>>,
    /// What ends with the whole.
    tied: Vec<Arc<dyn Stop>>,
    parts: Vec<Option<P>>,
    missing: usize,
}

/// One more part.
fn arrive<P>(open: &Open<P>, index: usize, part: Result<P, Error>) {
    let mut guard = lock(open);
    let Some(gathering) = guard.as_mut() else {
        drop(guard);
        return unobserved(part);
    };
    let failure = match part {
        Ok(part) => {
            gathering.parts[index] = Some(part);
            gathering.missing -= 1;
            if gathering.missing > 0 {
                return;
            }
            None
        }
        Err(error) => Some(error),
    };
    let resolved = guard.take();
    drop(guard);
    if let Some(gathering) = resolved {
        let Gathering {
            promise,
            tied,
            parts,
            ..
        } = gathering;
        promise.finish(match failure {
            None => Ok(parts.into_iter().flatten().collect()),
            Some(error) => {
                for work in tied {
                    work.stop(Reason::Cancelled);
                }
                discard(parts);
                Err(error)
            }
        });
    }
}

/// Ends a [`settle_all`].
struct Settling<T> {
    all: All,
    origins: Vec<Origin>,
    open: Open<Result<T, Error>>,
}

impl<T: Send + 'static> Stop for Settling<T> {
    fn stop_here(self: Arc<Self>, reason: Reason) -> Stopping {
        // Before any is stopped: a job may give its value all the same, and the rest takes time.
        let resolved = lock(&self.open).take();
        self.all.stop_each(reason);
        if let Some(Gathering { promise, parts, .. }) = resolved {
            let parts = parts.into_iter().zip(&self.all.0).zip(&self.origins);
            let parts = parts.map(|((part, work), origin)| {
                part.unwrap_or_else(|| Err(reason.error_of(work.clone(), "one of many", origin)))
            });
            promise.set(parts.collect());
        }
        // It gives the outcomes that are there.
        Stopping::Otherwise
    }
}

// ------------------------------------------------------------------------------------ one of them

/// The first to finish wins, with a value or an error; the others are cancelled.
///
/// A losing call in a worker process is killed. A losing thread job that runs goes on unheard,
/// since a thread cannot be stopped. Cancelling the race cancels them all. If any of them is tied by
/// [`cancel_on_drop`](Unfuture::cancel_on_drop), the race is tied too.
///
/// # Errors
///
/// Resolves as the winner if that failed, and as [`ErrorKind::Abandoned`] if there is nobody to
/// win.
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
pub fn race<T, I>(works: I) -> Unfuture<T>
where
    T: Send + 'static,
    I: IntoIterator<Item = Unfuture<T>>,
{
    let origin = Location::caller();
    let works: Vec<_> = works.into_iter().collect();
    let all = Arc::new(All::of(&works));
    let (promise, first) = derived(origin, Some(all.clone()));
    let first = first.tied(works.iter().any(Unfuture::is_tied));
    if works.is_empty() {
        let error = Error::new(ErrorKind::Abandoned, "a race of nothing");
        promise.fail(error.started_at(origin));
        return first;
    }
    let observed = promise.observed();
    let open = Arc::new(Mutex::new(Some(promise)));
    for work in works {
        let (open, all) = (Arc::clone(&open), Arc::clone(&all));
        work.hand_on(observed.clone(), move |outcome| {
            let promise = lock(&open).take();
            match promise {
                Some(promise) => {
                    // The losers first: who sees the winner sees that it is over.
                    all.stop_each(Reason::Cancelled);
                    promise.finish(outcome);
                }
                None => unobserved(outcome),
            }
        });
    }
    first
}

// --------------------------------------------------------------------------- one after the other

/// Gives the outcomes as they come, each with its place in the input.
///
/// In the sync world it is an [`Iterator`], and [`next_timeout`](AsCompleted::next_timeout) bounds the wait;
/// in the async one there is [`next_done`](AsCompleted::next_done), under any executor.
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
pub fn as_completed<T, I>(works: I) -> AsCompleted<T>
where
    T: Send + 'static,
    I: IntoIterator<Item = Unfuture<T>>,
{
    let works: Vec<_> = works.into_iter().collect();
    let completed = AsCompleted {
        arrivals: Arc::default(),
        left: works.len(),
        tied: works.iter().map(Unfuture::is_tied).collect(),
        all: All::of(&works),
        origin: Location::caller(),
    };
    for (index, work) in works.into_iter().enumerate() {
        let arrivals = Arc::clone(&completed.arrivals);
        let observed: Weak<Mutex<Arrivals<T>>> = Arc::downgrade(&arrivals);
        work.hand_on(Some(observed), move |outcome| {
            Arrivals::add(&arrivals, (index, outcome));
        });
    }
    completed
}

/// Outcomes as they come. Made by [`as_completed`].
///
/// It keeps nothing that it has given away; `len()` says how many outcomes are still to come. Dropping it
/// lets the works go on, but for those that are tied by [`cancel_on_drop`](Unfuture::cancel_on_drop); see
/// [`cancel`](AsCompleted::cancel).
pub struct AsCompleted<T> {
    arrivals: Arc<Mutex<Arrivals<T>>>,
    /// Not given away yet.
    left: usize,
    all: All,
    /// Which of them end with this.
    tied: Vec<bool>,
    origin: Origin,
}

/// An outcome, and the place of its work in the input.
type Arrival<T> = (usize, Result<T, Error>);

struct Arrivals<T> {
    waiting: VecDeque<Arrival<T>>,
    /// Kept by the next to arrive.
    bell: Option<Promise<()>>,
    /// Nobody will ask any more.
    closed: bool,
}

impl<T> Default for Arrivals<T> {
    fn default() -> Arrivals<T> {
        Arrivals {
            waiting: VecDeque::new(),
            bell: None,
            closed: false,
        }
    }
}

impl<T: Send> Observed for Mutex<Arrivals<T>> {
    fn observer(&self) -> Observer {
        match lock(self).closed {
            true => Observer::Nobody,
            false => Observer::Somebody,
        }
    }
}

impl<T> Arrivals<T> {
    fn add(arrivals: &Mutex<Arrivals<T>>, arrival: Arrival<T>) {
        let mut guard = lock(arrivals);
        if guard.closed {
            drop(guard);
            return unobserved(arrival.1);
        }
        guard.waiting.push_back(arrival);
        let bell = guard.bell.take();
        drop(guard);
        if let Some(bell) = bell {
            bell.set(());
        }
    }
}

impl<T> AsCompleted<T> {
    /// Waits for the next outcome; `None` when all were given away.
    ///
    /// The future may be dropped before it is ready: no outcome is lost.
    ///
    /// # Examples
    ///
    /// ```
    /// # unsync::block_on(async {
    /// let mut works = unsync::as_completed([unsync::thread(|| 1), unsync::thread(|| 2)]);
    /// let mut sum = 0;
    /// while let Some((_, outcome)) = works.next_done().await {
    ///     sum += outcome.unwrap();
    /// }
    /// assert_eq!(sum, 3);
    /// # });
    /// ```
    pub async fn next_done(&mut self) -> Option<(usize, Result<T, Error>)> {
        loop {
            match self.look() {
                Ok(next) => return next,
                // It says nothing but that there is something to look at.
                Err(bell) => discard(bell.await),
            }
        }
    }

    /// Blocks until the next work has ended, for `limit` at most, and keeps the rest.
    ///
    /// `None` when none ended in time, and at once when all outcomes were given away. `len()` tells the two
    /// apart: it counts the outcomes that are still to come.
    ///
    /// # Panics
    ///
    /// If none has ended, whatever the limit, on the ambient thread and wherever else
    /// [`result`](Unfuture::result) does not block.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let slow = unsync::spawn(unsync::sleep(Duration::from_secs(60)));
    /// let mut works = unsync::as_completed([slow, unsync::spawn(async {})]);
    /// while let Some((index, _)) = works.next_timeout(Duration::from_millis(500)) {
    ///     println!("{index} has ended");
    /// }
    /// println!("{} took too long", works.len());
    /// # assert_eq!(works.len(), 1);
    /// works.cancel();
    /// ```
    #[track_caller]
    pub fn next_timeout(&mut self, limit: Duration) -> Option<(usize, Result<T, Error>)> {
        // A deadline too far to be told is no deadline.
        self.next_until(Instant::now().checked_add(limit))
    }

    #[track_caller]
    fn next_until(&mut self, deadline: Option<Instant>) -> Option<Arrival<T>> {
        loop {
            match self.look() {
                Ok(next) => return next,
                Err(bell) => {
                    assert_may_block(|thread| {
                        let origin = self.origin;
                        format!(
                            "the next of as_completed would block {thread}; use `next_done().await` in a \
                             task instead (started at {origin})"
                        )
                    });
                    if !bell.wait_until(deadline) {
                        return None;
                    }
                }
            }
        }
    }

    /// Cancels all works that have not ended. Their outcomes come as those of all others.
    pub fn cancel(&self) {
        self.all.stop_each(Reason::Cancelled);
    }

    /// What comes next if it is there, or else what tells that something is.
    fn look(&mut self) -> Result<Option<Arrival<T>>, Unfuture<()>> {
        if self.left == 0 {
            return Ok(None);
        }
        let mut arrivals = lock(&self.arrivals);
        if let Some(arrival) = arrivals.waiting.pop_front() {
            self.left -= 1;
            let ended = self.all.0[arrival.0].take();
            drop((arrivals, ended));
            return Ok(Some(arrival));
        }
        let (bell, rung) = derived(self.origin, None);
        let stale = arrivals.bell.replace(bell);
        drop(arrivals);
        if let Some(stale) = stale {
            // Of a `next_done` that was dropped.
            stale.set(());
        }
        Err(rung)
    }
}

impl<T> Iterator for AsCompleted<T> {
    type Item = (usize, Result<T, Error>);

    /// Blocks until the next work has ended.
    ///
    /// # Panics
    ///
    /// If none has, on the ambient thread and wherever else [`result`](Unfuture::result) does not
    /// block.
    #[track_caller]
    fn next(&mut self) -> Option<(usize, Result<T, Error>)> {
        self.next_until(None)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<T> ExactSizeIterator for AsCompleted<T> {}
impl<T> FusedIterator for AsCompleted<T> {}

impl<T> Drop for AsCompleted<T> {
    fn drop(&mut self) {
        let mut arrivals = lock(&self.arrivals);
        arrivals.closed = true;
        let waiting = mem::take(&mut arrivals.waiting);
        let bell = arrivals.bell.take();
        drop(arrivals);
        if let Some(bell) = bell {
            bell.set(());
        }
        for (work, is_tied) in self.all.0.drain(..).zip(&self.tied) {
            if let (Some(work), true) = (work, is_tied) {
                nest(move || {
                    work.stop(Reason::Cancelled);
                });
            }
        }
        waiting
            .into_iter()
            .for_each(|(_, outcome)| unobserved(outcome));
    }
}

// As for `Unfuture`: outcomes are written in one step.
impl<T> UnwindSafe for AsCompleted<T> {}
impl<T> RefUnwindSafe for AsCompleted<T> {}

impl<T> fmt::Debug for AsCompleted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "AsCompleted({} left, started at {})",
            self.left, self.origin
        )
    }
}

// ---------------------------------------------------------------------------------------- the parts

/// Those of the works that are tied to a scope.
fn tied<T>(works: &[Unfuture<T>]) -> Vec<Arc<dyn Stop>> {
    let tied = works.iter().filter(|work| work.is_tied());
    tied.filter_map(Unfuture::stopper).collect()
}

/// Stops everything in it.
struct All(Vec<Option<Arc<dyn Stop>>>);

impl All {
    fn of<T>(works: &[Unfuture<T>]) -> All {
        All(works.iter().map(Unfuture::stopper).collect())
    }

    fn stop_each(&self, reason: Reason) {
        for work in self.parts() {
            work.stop(reason);
        }
    }
}

impl Stop for All {
    fn parts(&self) -> Vec<Arc<dyn Stop>> {
        self.0.iter().flatten().cloned().collect()
    }

    /// What is made of nothing cannot be stopped.
    fn stop_here(self: Arc<Self>, _reason: Reason) -> Stopping {
        Stopping::No
    }
}
