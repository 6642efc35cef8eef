//! A limit on how many run at once: a semaphore whose permits are held by the work itself.
//!
//! ```text
//!   spawn, thread, cpu ──▶ prepared, with its permit inside ──▶ one is free ──▶ started
//!                                     └──▶ none is ──▶ waits ──▶ started by whoever releases one
//! ```
//!
//! A permit is released when the future, the closure or the call is gone, however it ended. It goes straight
//! to the work that has waited longest. The queue has no limit, as for every way to start work.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::{Future, poll_fn};
use std::mem;
use std::panic::Location;
use std::ptr;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use crate::ambient::try_spawn;
use crate::error::{Error, Origin, discard, lock, next_number};
use crate::processes::registry::assert_captures_nothing;
use crate::processes::{self, CallHandle, Entrypoint, Wire, is_worker};
use crate::slot::trampoline;
use crate::stop::Reason;
use crate::sync::{Mutex, MutexGuard};
use crate::threads::{self, Queued};
use crate::unfuture::Unfuture;

/// Bounds how many tasks, jobs and calls started through it run at once; the others wait in order. Called
/// `Semaphore` in tokio.
///
/// Each method returns an ordinary [`Unfuture`]. Cancelling work that waits takes it out of the queue. Once
/// the work runs, it is cancelled like any work of its kind, and [`run_timeout`](Unfuture::run_timeout)
/// counts from there. A place is free again when the work has really ended: a thread job that runs on after
/// its deadline keeps its place.
///
/// Clones share the limit. Work that waits for other work under the same limit keeps its place while it
/// waits, so nesting can deadlock: give the inner work a limit of its own.
///
/// # Examples
///
/// ```
/// let limit = unsync::Limit::new(2); // be polite to the server
/// let pages = (1..=10).map(|n| limit.thread(move || format!("page {n}")));
/// assert_eq!(unsync::join_all(pages).result().unwrap()[9], "page 10");
/// ```
#[derive(Clone)]
pub struct Limit(Arc<Semaphore>);

impl Limit {
    /// Creates a limit that lets `at_once` tasks, jobs and calls run at the same time.
    ///
    /// # Panics
    ///
    /// Panics if `at_once` is 0: nothing would ever run.
    ///
    /// # Examples
    ///
    /// ```
    /// let limit = unsync::Limit::new(4);
    /// assert_eq!(limit.thread(|| 1).result().unwrap(), 1);
    /// ```
    #[track_caller]
    pub fn new(at_once: usize) -> Limit {
        assert!(at_once > 0, "under a limit of 0 nothing would ever run");
        let semaphore = Arc::new(Semaphore {
            at_once,
            last_place: Mutex::new(0),
            state: Mutex::new(State {
                free: at_once,
                ..State::default()
            }),
        });
        threads::also_refuse(take_waiting);
        let address = Arc::as_ptr(&semaphore).addr();
        lock(&SEMAPHORES).insert(address, Arc::downgrade(&semaphore));
        Limit(semaphore)
    }

    /// Starts a future as [`spawn`](crate::spawn) does, once a place is free.
    ///
    /// # Examples
    ///
    /// ```
    /// let limit = unsync::Limit::new(2);
    /// let each = (0..5).map(|n| limit.spawn(async move { n * n }));
    /// assert_eq!(unsync::join_all(each).result().unwrap(), [0, 1, 4, 9, 16]);
    /// ```
    #[track_caller]
    pub fn spawn<F>(&self, future: F) -> Unfuture<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let held = (future, self.0.permit(|permit| (permit, Start::Unasked)));
        try_spawn(Location::caller(), false, |itself| async move {
            // Dropped in this order: the place is free once the future is gone.
            let held = held;
            poll_fn(|cx| held.1.poll(cx)).await;
            if let Some(itself) = itself.upgrade() {
                itself.slot().begin();
            }
            let (future, _permit) = held;
            Ok(future.await)
        })
    }

    /// Runs a closure as [`thread`](crate::thread()) does, once a place is free.
    ///
    /// # Examples
    ///
    /// ```
    /// let limit = unsync::Limit::new(2);
    /// let first = limit.thread(|| "a job");
    /// assert_eq!(first.result().unwrap(), "a job");
    /// ```
    #[track_caller]
    pub fn thread<F, T>(&self, closure: F) -> Unfuture<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.job(Location::caller(), || Ok(closure()))
    }

    /// Calls a function as [`cpu`](crate::cpu()) does, once a place is free. The arguments are encoded
    /// immediately, before a place is free.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), unsync::Error> {
    /// # unsync::init();
    /// let limit = unsync::Limit::new(1); // large arguments, one call at a time
    /// let cubes = (1..4).map(|n| limit.cpu(u32::pow, (n, 3)));
    /// assert_eq!(unsync::join_all(cubes).result()?, [1, 8, 27]);
    /// # Ok(())
    /// # }
    /// # unsync::register!(u32::pow);
    /// ```
    #[track_caller]
    pub fn cpu<F, A>(&self, entrypoint: F, args: A) -> Unfuture<F::Output>
    where
        F: Entrypoint<A>,
        A: Wire,
        F::Output: Wire + Send + 'static,
    {
        const { assert_captures_nothing::<F>() }
        let origin = Location::caller();
        let limited = if is_worker() {
            processes::nested(origin, entrypoint, args).map(|call| self.job(origin, call))
        } else {
            processes::prepare(origin, entrypoint, args).map(|(unfuture, call)| {
                self.0.permit(|permit| {
                    call.request().hold(Box::new(permit));
                    (unfuture, Start::Call(call, processes::submit))
                })
            })
        };
        limited.unwrap_or_else(|error| Unfuture::failed(error.started_at(origin)))
    }

    fn job<F, T>(&self, origin: Origin, closure: F) -> Unfuture<T>
    where
        F: FnOnce() -> Result<T, Error> + Send + 'static,
        T: Send + 'static,
    {
        self.0.permit(|permit| {
            // In this order, so that a job that never runs releases its permit last.
            let held = (closure, permit);
            let (unfuture, job) = threads::prepare(origin, move || {
                let (closure, _permit) = held;
                closure()
            });
            (unfuture, Start::Job(job))
        })
    }
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at_once = self.0.at_once;
        let state = self.0.lock();
        let (running, waiting) = (at_once - state.free, state.waiting.len() - state.empty);
        drop(state);
        write!(
            f,
            "Limit({running} of {at_once} running, {waiting} waiting)"
        )
    }
}

/// All limits, by their addresses.
static SEMAPHORES: Mutex<BTreeMap<usize, Weak<Semaphore>>> = Mutex::new(BTreeMap::new());

/// Called in a shutdown, once the pool of threads takes no more jobs. Refuses the calls that wait, and returns the
/// jobs: whoever ought to start them may never end. Tasks end with the ambient thread.
fn take_waiting() -> Vec<Queued> {
    let semaphores: Vec<_> = lock(&SEMAPHORES).values().cloned().collect();
    let mut jobs = Vec::new();
    for semaphore in semaphores.iter().filter_map(Weak::upgrade) {
        let mut state = semaphore.lock();
        let waiting = state.waiting.iter_mut().flat_map(|(_, start)| start);
        let starts: Vec<_> = waiting
            .map(|start| mem::replace(start, Start::Unasked))
            .collect();
        drop(state);
        for start in starts {
            match start {
                Start::Job(job) => jobs.push(job),
                start => start.run(),
            }
        }
    }
    jobs
}

struct Semaphore {
    at_once: usize,
    /// The last place that was given out.
    last_place: Mutex<u64>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Above zero only while nobody waits.
    free: usize,
    /// The places in the queue, in order, and how to start each when it is its turn; `None` for work that is
    /// gone.
    waiting: VecDeque<(u64, Option<Start>)>,
    /// How many are `None`.
    empty: usize,
}

/// How to start work that has its permit.
enum Start {
    Job(Queued),
    /// With the function that submits it, so that a limit on jobs links no process pool.
    Call(CallHandle, fn(CallHandle)),
    Task(Waker),
    /// There is nothing to do: a task that has not been polled yet will see the permit, and a shutdown refuses
    /// what it has taken out.
    Unasked,
}

impl Start {
    fn run(self) {
        match self {
            Start::Job(job) => threads::submit(job),
            Start::Call(call, _) if threads::is_closed() => _ = call.stop(Reason::ShutDown),
            Start::Call(call, submit) => submit(call),
            Start::Task(waker) => waker.wake(),
            Start::Unasked => {}
        }
    }
}

impl Drop for Semaphore {
    fn drop(&mut self) {
        lock(&SEMAPHORES).remove(&ptr::from_ref(self).addr());
    }
}

impl Semaphore {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Gives a permit to `hold`, which puts it into the work and must not drop it. Starts the work now or when
    /// it is its turn.
    fn permit<T>(self: &Arc<Semaphore>, hold: impl FnOnce(Permit) -> (T, Start)) -> T {
        let place = next_number(&self.last_place);
        let semaphore = Arc::clone(self);
        // The work is allocated before the lock: the threads that release permits want the lock too, and
        // sleep if it is held for long.
        let (held, start) = hold(Permit { semaphore, place });
        let mut state = self.lock();
        // In a shutdown nothing is to wait: those whose turn it is may never end.
        let start = if threads::is_closed() {
            state.enqueue(place, Start::Unasked);
            Some(start)
        } else {
            state.enqueue(place, start)
        };
        drop(state);
        start.into_iter().for_each(Start::run);
        held
    }
}

/// Places that the queue keeps when it is empty; the memory of a longer queue is freed.
const KEPT: usize = 4096;

impl State {
    /// Returns `start` if a permit is free, and otherwise puts it into the queue.
    fn enqueue(&mut self, place: u64, start: Start) -> Option<Start> {
        if self.free > 0 {
            self.free -= 1;
            return Some(start);
        }
        let at = match self.waiting.back() {
            // Threads that got their places later have come first.
            Some((last, _)) if place < *last => self.waiting.partition_point(|(at, _)| *at < place),
            _ => self.waiting.len(),
        };
        self.waiting.insert(at, (place, Some(start)));
        None
    }

    /// Says how to start what waits in this place; returns what was said before. Fails with `start` for work
    /// that has its permit.
    fn set(&mut self, place: u64, start: Start) -> Result<Start, Start> {
        match self.place(place).and_then(Option::as_mut) {
            Some(waiting) => Ok(mem::replace(waiting, start)),
            None => Err(start),
        }
    }

    fn place(&mut self, place: u64) -> Option<&mut Option<Start>> {
        // What comes before the first in the queue has its permit. Most who ask have theirs.
        if place < self.waiting.front()?.0 {
            return None;
        }
        let at = self
            .waiting
            .binary_search_by_key(&place, |(place, _)| *place);
        self.waiting.get_mut(at.ok()?).map(|(_, start)| start)
    }

    /// Passes a permit on to the first in the queue.
    fn release(&mut self) -> Option<Start> {
        while let Some((_, first)) = self.waiting.pop_front() {
            if first.is_some() {
                return first;
            }
            self.empty -= 1;
        }
        self.waiting.shrink_to(KEPT);
        self.free += 1;
        None
    }

    /// Takes work out of the queue; `None` if it has its permit. Its place stays, until more than half of the
    /// places are empty.
    fn leave(&mut self, place: u64) -> Option<Start> {
        let left = self.place(place)?.take()?;
        self.empty += 1;
        if self.empty * 2 > self.waiting.len() {
            self.empty = 0;
            self.waiting.retain(|(_, start)| start.is_some());
        }
        Some(left)
    }
}

/// The right to run, or a place in the queue for it. Dropping it releases the right, or leaves the queue.
struct Permit {
    semaphore: Arc<Semaphore>,
    place: u64,
}

impl Permit {
    /// Ready when it is this permit's turn.
    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        // Cloning and dropping a waker is foreign code: it happens outside the lock.
        let start = Start::Task(cx.waker().clone());
        let set = self.semaphore.lock().set(self.place, start);
        match set {
            Ok(_) => Poll::Pending,
            Err(_) => Poll::Ready(()),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.semaphore.lock();
        let left = state.leave(self.place);
        let next = match left {
            None => state.release(),
            Some(_) => None,
        };
        drop(state);
        discard(left);
        // The next may be refused, and then it releases its permit too.
        next.into_iter()
            .for_each(|start| trampoline(|| start.run()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_overtaken_still_gets_its_place() {
        let mut state = State::default();
        for place in [1, 4, 2, 3] {
            assert!(state.enqueue(place, Start::Unasked).is_none());
        }
        let places = state.waiting.iter().map(|(place, _)| *place);
        assert!(places.eq(1..=4));
        for _ in 0..4 {
            assert!(state.release().is_some());
        }
        // The fourth has its permit, and now comes behind the first in the queue.
        assert!(state.enqueue(0, Start::Unasked).is_none());
        assert!(state.leave(4).is_none());
        assert!(state.leave(0).is_some());
    }

    #[test]
    fn the_places_of_what_is_gone_take_little_memory() {
        let mut state = State::default();
        for place in 0..1_000 {
            assert!(state.enqueue(place, Start::Unasked).is_none());
            // The first keeps waiting.
            if place > 0 {
                assert!(state.leave(place).is_some());
            }
            assert!(state.waiting.len() <= 2, "{}", state.waiting.len());
        }
        assert!(state.release().is_some());
        assert!(state.release().is_none());
        assert_eq!((state.free, state.waiting.len(), state.empty), (1, 0, 0));

        state.free = 0;
        (0..100_000).for_each(|place| _ = state.enqueue(place, Start::Unasked));
        while state.release().is_some() {}
        assert!(state.waiting.capacity() <= 2 * KEPT);
    }
}
