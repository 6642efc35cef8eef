//! Async tasks: the future, its ticket, and the slab that the ambient thread keeps them in.

use std::any::Any;
use std::future::Future;
use std::mem;
use std::panic::Location;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use super::{Message, Refused, post, stop, wake};
use crate::config::AroundPoll;
use crate::engine::{OnIdle, TaskInfo, WorkKind, WorkState};
use crate::error::{Error, Origin, Payload, discard, unobserved, wall};
use crate::slot::{Observed, Observer, Shell, Slot, already_taken};
use crate::unfuture::{Fate, Reason, Stop, Stopping, Unfuture, Work, cancelled};
use crate::watch::Stalls;

/// Starts a future on the ambient thread.
///
/// It runs without being awaited, and its destructor runs there too. A future that blocks holds up
/// every other one: blocking work belongs on [`thread`](crate::thread), CPU-bound work in
/// [`cpu`](crate::cpu()). At the end of the process unfinished tasks end unheard, like those of a
/// daemon thread.
///
/// If a poll panics, the future is dropped after the unwinding. The locals of an `async` block are dropped
/// during it, as anywhere; but the fields of a hand-written future are not, so their destructors do not see
/// [`std::thread::panicking`], and a `MutexGuard` among them does not poison its mutex.
///
/// Costs two allocations and less than a microsecond.
///
/// # Errors
///
/// The `Unfuture` resolves as [`ErrorKind::Panicked`](crate::ErrorKind) if the future or its
/// destructor panics, as [`ErrorKind::Os`](crate::ErrorKind) if this is the first use and the operating
/// system refuses the ambient thread, and as [`ErrorKind::Cancelled`](crate::ErrorKind),
/// [`ErrorKind::TimedOut`](crate::ErrorKind) or [`ErrorKind::ShutDown`](crate::ErrorKind) if it was
/// stopped.
///
/// # Examples
///
/// ```
/// let task = unsync::spawn(async { 6 * 7 });
/// assert_eq!(task.result().unwrap(), 42);
/// ```
#[track_caller]
pub fn spawn<F>(future: F) -> Unfuture<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let task = Arc::new(Task::<F::Output>::new(Location::caller(), true));
    launch(Box::pin(Some(future)), task.clone());
    Unfuture::of(task)
}

/// The same for a future that gives a `Result`: its error is the task's.
pub(crate) fn try_spawn<F, T>(origin: Origin, future: F) -> Unfuture<T>
where
    F: Future<Output = Result<T, Error>> + Send + 'static,
    T: Send + 'static,
{
    try_spawn_with(origin, true, |_| future)
}

/// The same for a future that has to do with its own work, and may say itself when that begins.
pub(crate) fn try_spawn_with<M, F, T>(origin: Origin, begins: bool, make: M) -> Unfuture<T>
where
    M: FnOnce(Weak<Task<T>>) -> F,
    F: Future<Output = Result<T, Error>> + Send + 'static,
    T: Send + 'static,
{
    let task = Arc::new(Task::<T>::new(origin, begins));
    let itself = Arc::downgrade(&task);
    launch(Box::pin(Some(make(itself))), task.clone());
    Unfuture::of(task)
}

/// Starts a future on the calling thread and moves it to the ambient thread if it is not ready.
///
/// It is polled once before this call returns: a future that is ready at once never pays for a
/// hand-over. What it does before its first `.await` that waits is done by the caller, so it must not
/// depend on the thread that it runs on.
///
/// # Errors
///
/// As [`spawn`], if it is not ready at once: such a future needs no thread, not even after a shutdown.
///
/// # Examples
///
/// ```
/// let task = unsync::spawn_now(async { 6 });
/// assert!(task.is_done());
/// assert_eq!(task.result().unwrap(), 6);
/// ```
#[track_caller]
pub fn spawn_now<F>(future: F) -> Unfuture<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let task = Arc::new(Task::<F::Output>::new(Location::caller(), true));
    let body: Body = Box::pin(Some(future));
    // It counts as queued, so wakes are not lost: the ambient thread polls it again in any case.
    let waker = Waker::from(Arc::clone(&task));
    if let Some(body) = body.step(&*task, &mut Context::from_waker(&waker)) {
        launch(body, task.clone());
    }
    Unfuture::of(task)
}

/// Sends a future to the ambient thread.
fn launch(body: Body, ticket: Arc<dyn Ticket>) {
    let newborn = Newborn(Some((body, ticket)));
    // Refused for another reason, it resolves as shut down.
    if let Err((Message::Start(mut newborn), Refused::Os(error))) = post(Message::Start(newborn)) {
        if let Some((body, ticket)) = newborn.0.take() {
            discard(wall(|| drop(body)));
            ticket.fail(Error::os("the ambient thread could not be started", error));
        }
    }
}

/// A future on its way to the ambient thread. One that does not arrive resolves as shut down, so that
/// nobody waits for it.
pub(super) struct Newborn(Option<(Body, Arc<dyn Ticket>)>);

impl Drop for Newborn {
    fn drop(&mut self) {
        if let Some((body, ticket)) = self.0.take() {
            ticket.fail(body.stop(Reason::ShutDown));
        }
    }
}

/// A future in its box, full until it was polled to its end.
pub(super) type Body = Pin<Box<dyn Step>>;

/// The name of a task in the slab: its place, and above that how often the place was given away. So
/// a late wake finds nothing.
pub(super) type Key = u64;
const PLACE_BITS: u32 = 32;

/// What is shared of a task: its slot, and whether it is queued. It is the waker as well.
///
/// The future is not in here: the ambient thread owns it, so polling takes no lock.
pub(crate) struct Task<T> {
    /// Set once, by the ambient thread, before the first poll; no waker exists before that.
    key: AtomicU64,
    /// Set from the wake that queues the task until just before the poll that follows, and for ever
    /// once the task has ended. So any number of wakes in between are one poll.
    queued: AtomicBool,
    /// Whether its work begins with its first poll; otherwise the future says when.
    begins: bool,
    /// Decided when the future is ready, or when the task is stopped, before the message is sent: from
    /// then on it is not polled, though a wake may stand in the queue before the message.
    fate: Fate,
    slot: Slot<T>,
}

/// A key that no task ever has.
const UNPLACED: Key = Key::MAX;

impl<T> Task<T> {
    fn new(origin: Origin, begins: bool) -> Task<T> {
        Task {
            key: AtomicU64::new(UNPLACED),
            queued: AtomicBool::new(true),
            begins,
            fate: Fate::default(),
            slot: Slot::new(origin),
        }
    }
}

/// A task without the type of its value.
pub(super) trait Ticket: Any + Send + Sync {
    fn begin(&self);
    fn key(&self) -> &AtomicU64;
    fn queued(&self) -> &AtomicBool;
    fn waker(self: Arc<Self>) -> Waker;
    fn as_any(&self) -> &dyn Any;
    fn is_done(&self) -> bool;
    fn is_stopped(&self) -> bool;
    fn origin(&self) -> Origin;
    /// The future has given its output; `false` if the task was stopped before that.
    fn end(&self) -> bool;
    /// Resolves the task. The outcome is an `Option` of that of a future which gives a `Result`. Without
    /// the emptied box of that future nobody will look at it.
    fn finish(&self, outcome: &mut dyn Any, shell: Option<Shell>);
    fn fail(&self, error: Error);
}

impl dyn Ticket {
    /// Whether it has its place; otherwise its start is still queued.
    pub(super) fn is_placed(&self) -> bool {
        self.key().load(Ordering::Relaxed) != UNPLACED
    }
}

impl<T: Send + 'static> Ticket for Task<T> {
    fn begin(&self) {
        if self.begins {
            self.slot.begin();
        }
    }
    fn key(&self) -> &AtomicU64 {
        &self.key
    }
    fn queued(&self) -> &AtomicBool {
        &self.queued
    }
    fn waker(self: Arc<Self>) -> Waker {
        Waker::from(self)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn is_done(&self) -> bool {
        self.slot.is_done()
    }
    fn is_stopped(&self) -> bool {
        self.fate.is_stopped()
    }
    fn origin(&self) -> Origin {
        self.slot.origin
    }
    fn end(&self) -> bool {
        self.fate.end()
    }
    fn finish(&self, outcome: &mut dyn Any, shell: Option<Shell>) {
        let outcome = outcome.downcast_mut::<Option<Result<Result<T, Error>, Error>>>();
        let outcome = outcome
            .and_then(Option::take)
            .unwrap_or_else(|| Err(already_taken()));
        let outcome = outcome.and_then(|outcome| outcome);
        match shell {
            Some(_) => discard(self.slot.finish_with(outcome, shell)),
            None => unobserved(outcome),
        }
    }
    fn fail(&self, error: Error) {
        self.fate.end();
        let outcome = match Err(error.started_at(self.slot.origin)) {
            failed if self.fate.is_cancelled() => cancelled(failed, CULPRIT),
            failed => failed,
        };
        let outcome = outcome.map_err(|error| error.started_at(self.slot.origin));
        self.slot.finish(outcome);
    }
}

impl<T: Send + 'static> Wake for Task<T> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            wake(self.key.load(Ordering::Relaxed));
        }
    }
}

impl<T: Send + 'static> Stop for Task<T> {
    fn stop(self: Arc<Self>, reason: Reason) -> Stopping {
        if let Err(decided) = self.fate.stop(reason) {
            return decided;
        }
        // The future is dropped where it lives, never on the thread of the one who stops it.
        stop(self, reason);
        Stopping::Yes
    }

    fn poll_begun(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.slot.poll_begun(cx)
    }
}

impl<T: Send> Observed for Task<T> {
    fn observer(&self) -> Observer {
        self.slot.observer()
    }
}

impl<T: Send + 'static> Work<T> for Task<T> {
    fn slot(&self) -> &Slot<T> {
        &self.slot
    }
    fn stopper(self: Arc<Self>) -> Arc<dyn Stop> {
        self
    }
}

/// A future that may be polled, or dropped in place.
///
/// It is kept as `Pin<Box<Option<F>>>`: so it can be dropped where it lies, without unsafe code, while
/// the allocation goes back with the value to the thread that made it.
pub(super) trait Step: Send {
    /// Polls once. A future that is not ready comes back; of one that is, the value goes to the
    /// task's slot.
    fn step(self: Pin<Box<Self>>, ticket: &dyn Ticket, cx: &mut Context<'_>) -> Option<Body>;
    /// Drops the future in place; gives what its task ends as: `reason`, or the panic of a destructor.
    fn stop(self: Pin<Box<Self>>, reason: Reason) -> Error;
}

const CULPRIT: &str = "async task";

impl<F> Step for Option<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn step(mut self: Pin<Box<Self>>, ticket: &dyn Ticket, cx: &mut Context<'_>) -> Option<Body> {
        let polled = wall(|| match self.as_mut().as_pin_mut() {
            Some(future) => future.poll(cx),
            None => Poll::Pending,
        });
        let outcome = match polled {
            Ok(Poll::Pending) => return Some(self),
            Ok(Poll::Ready(value)) => Ok(value),
            Err(payload) => Err(panicked(payload, ticket)),
        };
        // The future is gone before anybody sees its value. Of two panics the first is the cause.
        let outcome = match (wall(|| self.set(None)), outcome) {
            (Err(payload), Ok(value)) => {
                discard(value);
                Err(panicked(payload, ticket))
            }
            (dropped, outcome) => {
                discard(dropped);
                outcome
            }
        };
        let Some(task) = ticket.as_any().downcast_ref::<Task<F::Output>>() else {
            let ended = ticket.end();
            let (shell, body): (Option<Shell>, Option<Body>) = match ended {
                true => (Some(self), None),
                false => (None, Some(self)),
            };
            ticket.finish(&mut Some(outcome), shell);
            return body;
        };
        if !task.fate.end() {
            // It was stopped meanwhile. The message that does so is on its way, and finds an empty box.
            unobserved(outcome);
            return Some(self);
        }
        discard(task.slot.finish_with(outcome, Some(self)));
        None
    }

    fn stop(mut self: Pin<Box<Self>>, reason: Reason) -> Error {
        match wall(|| self.set(None)) {
            Ok(()) => reason.error(CULPRIT),
            Err(payload) => Error::panicked(CULPRIT, payload),
        }
    }
}

fn panicked(payload: Payload, ticket: &dyn Ticket) -> Error {
    Error::panicked(CULPRIT, payload).started_at(ticket.origin())
}

/// The tasks that have not ended, in a slab. Owned by the loop of the ambient thread.
pub(super) struct Tasks {
    places: Vec<Place>,
    free: Vec<u32>,
    around_poll: Option<&'static AroundPoll>,
    stalls: Option<Stalls>,
    /// To be called when no task is left. Until then each `drain` that gave up is here.
    when_idle: Vec<OnIdle>,
    /// Tasks that ever were.
    started: u64,
    /// The time at one of the last ticks: what a task's age is counted from. Looking at the clock for
    /// each task would cost a tenth of what a task costs.
    now: Instant,
}

struct Place {
    /// How often this place was given away.
    generation: u32,
    task: Option<Live>,
}

struct Live {
    /// `None` while it is being polled.
    body: Option<Body>,
    ticket: Arc<dyn Ticket>,
    since: Instant,
    /// Made once, so that it stays `will_wake`-equal across polls and polling counts no references.
    waker: Waker,
}

impl Tasks {
    pub(super) fn new(around_poll: Option<&'static AroundPoll>, stalls: Option<Stalls>) -> Tasks {
        Tasks {
            places: Vec::new(),
            free: Vec::new(),
            around_poll,
            stalls,
            when_idle: Vec::new(),
            started: 0,
            now: Instant::now(),
        }
    }

    pub(super) fn look_at_clock(&mut self) {
        self.now = Instant::now();
    }

    pub(super) fn list(&self) -> Vec<TaskInfo> {
        let live = self.places.iter().filter_map(|place| place.task.as_ref());
        let info = |live: &Live| TaskInfo {
            kind: WorkKind::Async,
            state: WorkState::Running,
            age: Some(live.since.elapsed()),
            started_at: live.ticket.origin(),
            name: None,
        };
        live.map(info).collect()
    }

    /// Gives a future its place and polls it for the first time.
    pub(super) fn start(&mut self, mut newborn: Newborn) {
        let Some((body, ticket)) = newborn.0.take() else {
            return;
        };
        let index = self
            .free
            .pop()
            .map_or(self.places.len(), |index| index as usize);
        if index == self.places.len() {
            self.places.push(Place {
                generation: 0,
                task: None,
            });
        }
        self.started += 1;
        let place = &mut self.places[index];
        let key = Key::from(place.generation) << PLACE_BITS | index as Key;
        ticket.key().store(key, Ordering::Relaxed);
        ticket.begin();
        let waker = Arc::clone(&ticket).waker();
        place.task = Some(Live {
            body: Some(body),
            ticket,
            since: self.now,
            waker,
        });
        self.update_live();
        self.poll(key);
    }

    /// Polls a task once; nothing happens if it has ended.
    pub(super) fn poll(&mut self, key: Key) {
        let around = self.around_poll;
        // Only while stalls are watched for.
        let watched = self.stalls.clone();
        let Some(live) = self.find(key) else { return };
        if live.ticket.is_stopped() {
            return;
        }
        let Some(body) = live.body.take() else { return };
        // Before the poll, so that a wake during it is one more poll. A swap and not a store: it
        // must see what was written before a wake that found the flag set.
        live.ticket.queued().swap(false, Ordering::AcqRel);
        let _polling = watched
            .as_ref()
            .map(|stalls| stalls.polling(live.ticket.origin()));
        let cx = &mut Context::from_waker(&live.waker);
        live.body = match around {
            None => body.step(&*live.ticket, cx),
            Some(around) => step_within(around, body, &*live.ticket, cx),
        };
        if live.body.is_none() {
            self.remove(key);
        }
    }

    /// Drops the future of a task; gives what the task ends as, unless it has ended.
    pub(super) fn stop(&mut self, ticket: &dyn Ticket, reason: Reason) -> Option<Error> {
        let key = ticket.key().load(Ordering::Relaxed);
        let body = self.find(key)?.body.take()?;
        let error = body.stop(reason);
        self.remove(key);
        Some(error)
    }

    /// Drops all futures, for ever.
    pub(super) fn close(&mut self) {
        self.free = Vec::new();
        for place in mem::take(&mut self.places) {
            let Some(live) = place.task else { continue };
            if let Some(body) = live.body {
                live.ticket.fail(body.stop(Reason::ShutDown));
            }
        }
        self.stalls.iter().for_each(Stalls::end);
        self.update_live();
        self.tell_if_idle();
    }

    pub(super) fn when_idle(&mut self, call: OnIdle) {
        self.when_idle.push(call);
    }

    /// For the loop when it has nothing to do: there may be nothing left at all.
    pub(super) fn tell_if_idle(&mut self) {
        if self.free.len() == self.places.len() {
            for call in self.when_idle.drain(..) {
                call(self.started);
            }
        }
    }

    fn update_live(&self) {
        let live = self.places.len() - self.free.len();
        LIVE.0.store(live, Ordering::Relaxed);
    }

    fn find(&mut self, key: Key) -> Option<&mut Live> {
        let place = self.places.get_mut(key as u32 as usize)?;
        // Generations wrap around after 2^32 tasks in one place. A stale wake that meets its number
        // again costs a spurious poll, which every future allows.
        let same = Key::from(place.generation) == key >> PLACE_BITS;
        if same { place.task.as_mut() } else { None }
    }

    fn remove(&mut self, key: Key) {
        let index = key as u32;
        let Some(place) = self.places.get_mut(index as usize) else {
            return;
        };
        let ended = place.task.take();
        place.generation = place.generation.wrapping_add(1);
        self.free.push(index);
        self.update_live();
        if self.free.len() == self.places.len() && self.places.len() > PLACES_KEPT {
            (self.places, self.free) = (Vec::new(), Vec::new());
        }
        if let Some(ended) = &ended {
            ended.ticket.queued().store(true, Ordering::Release);
        }
        discard(ended);
    }
}

/// One poll inside a hook, which calls it once; after it, if the hook has not called, or has panicked
/// before it did.
fn step_within(
    around: &AroundPoll,
    body: Body,
    ticket: &dyn Ticket,
    cx: &mut Context<'_>,
) -> Option<Body> {
    let (mut body, mut polled) = (Some(body), false);
    let entered = wall(|| {
        around(&mut || {
            if !mem::replace(&mut polled, true) {
                body = body.take().and_then(|body| body.step(ticket, cx));
            }
        });
    });
    discard(entered);
    if polled {
        return body;
    }
    // Without this poll nobody might ever ask for another.
    body.and_then(|body| body.step(ticket, cx))
}

/// Async tasks that have begun and not ended, for those who ask on another thread.
pub(super) static LIVE: Apart<AtomicUsize> = Apart(AtomicUsize::new(0));

/// Alone in its cache line: the ambient thread writes it for every task, and would otherwise slow down
/// the threads that read the flag of the injector.
#[repr(align(64))]
pub(super) struct Apart<T>(pub(super) T);

/// Empty places that are kept for the next tasks; the memory of a larger burst is given back when its
/// last task has ended.
const PLACES_KEPT: usize = 4096;
