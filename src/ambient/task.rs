//! Async tasks: the future, the part that is shared, and the slab in which the ambient thread keeps them.

use std::any::Any;
use std::future::Future;
use std::mem;
use std::panic::Location;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use super::{LOCAL, Message, Refused, inject, is_ambient, stop, wake};
use crate::config::{AroundPoll, settings};
use crate::engine::{self, OnIdle, TaskInfo, WorkKind, WorkState};
use crate::error::{Error, Origin, Payload, discard, wall};
use crate::slot::{Output, Slot, Spent, Value, Work};
use crate::stalls::Stalls;
use crate::stop::{Fate, Reason, Stopping};
use crate::sync::Instant;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use crate::unfuture::Unfuture;

/// Starts a future on the ambient thread.
///
/// The future runs without being awaited, and its destructor runs there too; if there is no such thread, the
/// destructor runs in this call. A future that blocks holds up every other one: blocking work belongs on
/// [`thread`](crate::thread), CPU-bound work in [`cpu`](crate::cpu()). Unfinished tasks end with the process, as
/// daemon threads do.
///
/// If a poll panics, the future is dropped after the unwinding. The locals of an `async` block are dropped
/// during the unwinding, as usual; the fields of a hand-written future are not, so their destructors do not
/// see [`std::thread::panicking`], and a `MutexGuard` among them does not poison its mutex.
///
/// A spawn costs two allocations and less than a microsecond.
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
    let task = Arc::new(Task::<Option<F::Output>>::new(Location::caller(), true));
    launch(Box::pin(Some(future)), task.clone());
    Unfuture::of(task)
}

/// The same for a future that gives a `Result`, whose error becomes the task's. The future is made from its own
/// [`Work`], and may say itself when that work begins.
pub(crate) fn try_spawn<M, F, T>(origin: Origin, begins: bool, make: M) -> Unfuture<T>
where
    M: FnOnce(Weak<dyn Work>) -> F,
    F: Future<Output = Result<T, Error>> + Send + 'static,
    T: Send + 'static,
{
    let task = Arc::new(Task::new(origin, begins));
    let itself: Weak<Task<Option<T>>> = Arc::downgrade(&task);
    launch(Box::pin(Some(make(itself))), task.clone());
    Unfuture::of(task)
}

/// Starts a future on the calling thread and moves it to the ambient thread if it is not ready.
///
/// The future is polled once before this call returns, so one that is ready at once never pays for a
/// hand-over. The calling thread runs everything before the first `.await` that waits, so the future must not
/// depend on the thread that it runs on.
///
/// # Errors
///
/// As [`spawn`], unless the future is ready at once: then it needs no thread, not even after a shutdown.
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
    let task = Arc::new(Task::<Option<F::Output>>::new(Location::caller(), true));
    let body: Body = Box::pin(Some(future));
    // The task counts as queued, so no wake is lost: the ambient thread polls it again in any case.
    let waker = Waker::from(Arc::clone(&task));
    if let Some(body) = body.step(&*task, &mut Context::from_waker(&waker)) {
        launch(body, task.clone());
    }
    Unfuture::of(task)
}

/// Sends a future to the ambient thread.
fn launch(body: Body, raw: Arc<dyn RawTask>) {
    let spawned = Spawned(Some((body, raw)));
    if is_ambient() {
        return LOCAL.with(|local| {
            local.starts.borrow_mut().push_back(spawned);
            local.queue.borrow_mut().push_back(Key::START);
        });
    }
    // If refused for another reason, the task resolves as shut down.
    if let Err((Message::Start(mut spawned), Refused::Os(error))) = inject(Message::Start(spawned))
    {
        if let Some((body, raw)) = spawned.0.take() {
            let refused = Error::os("the ambient thread could not be started", error);
            raw.task().fail(drop_body(Some(body), refused));
        }
    }
}

/// A future on its way to the ambient thread. One that does not arrive resolves as shut down, so that
/// nobody waits for it.
pub(super) struct Spawned(Option<(Body, Arc<dyn RawTask>)>);

impl Drop for Spawned {
    fn drop(&mut self) {
        if let Some((body, raw)) = self.0.take() {
            let ended = Reason::ShutDown.error(CULPRIT);
            raw.task().fail(drop_body(Some(body), ended));
        }
    }
}

impl Spawned {
    /// Ends the task without running the destructor of its future.
    pub(super) fn forget(mut self) {
        if let Some((body, raw)) = self.0.take() {
            mem::forget(body);
            raw.task().fail(Reason::ShutDown.error(CULPRIT));
        }
    }
}

/// A future in its box. The box is full until the future has been polled to its end.
pub(super) type Body = Pin<Box<dyn Step>>;

/// The name of a task in the slab: its place, and its number in the order of starts. So a late wake finds
/// nothing once the place is another task's.
///
/// One integer, whose upper half is the number: a processor that reads two halves at once, right after each was
/// written, waits for longer than the rest of a wake takes.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Key(u64);

impl Key {
    /// In the local queue: the first of the tasks that this thread has spawned.
    pub(super) const START: Key = Key(u64::MAX);

    fn new(index: u32, number: u32) -> Key {
        Key(u64::from(number) << 32 | u64::from(index))
    }

    fn index(self) -> usize {
        self.0 as u32 as usize
    }
}

/// The shared part of a task: its slot, and whether it is queued. It is also the waker.
///
/// The future is not in here: the ambient thread owns it, so polling takes no lock.
pub(super) struct Task<V: ?Sized = dyn Value> {
    /// Its key. Set once, by the ambient thread, before the first poll; no wake looks at it before
    /// that. In halves, because not every target has 64-bit atomics.
    index: AtomicU32,
    number: AtomicU32,
    /// Set from the wake that queues the task until just before the poll that follows, and forever once the
    /// task has ended. So any number of wakes in between cause one poll.
    queued: AtomicBool,
    /// Whether the work begins with the first poll; otherwise the future says when.
    begins: bool,
    /// Decided when the future is ready, or when the task is stopped, before the message is sent. From then
    /// on the future is not polled, even if a wake is queued ahead of the message.
    fate: Fate,
    slot: Slot<V>,
}

/// An index that no task ever has.
const UNPLACED: u32 = u32::MAX;

impl<T> Task<Option<T>> {
    fn new(origin: Origin, begins: bool) -> Task<Option<T>> {
        Task {
            index: AtomicU32::new(UNPLACED),
            number: AtomicU32::new(0),
            queued: AtomicBool::new(true),
            begins,
            fate: Fate::default(),
            slot: Slot::new(origin),
        }
    }
}

impl Task {
    /// Whether it has its key; otherwise its start is still on the way.
    pub(super) fn has_started(&self) -> bool {
        self.index.load(Ordering::Relaxed) != UNPLACED
    }

    fn key(&self) -> Key {
        Key::new(
            self.index.load(Ordering::Relaxed),
            self.number.load(Ordering::Relaxed),
        )
    }

    pub(super) fn is_done(&self) -> bool {
        self.slot.is_done()
    }

    fn wake(&self) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            wake(self.key());
        }
    }

    /// Resolves the task with the output of its future, or with the panic, unless the task was stopped before
    /// that.
    fn finish(&self, panic: Option<Payload>, output: &mut dyn Any, spent: Spent) {
        let (mut spent, mut error) = (Some(spent), None);
        if let Some(payload) = panic {
            // If this drop panics too, the first panic is still the cause.
            discard(spent.take());
            error = Some(Error::panicked(CULPRIT, payload).started_at(self.slot.origin));
        }
        self.slot.resolve(Some(&self.fate), spent, |value, wanted| {
            error.or_else(|| value.put(output, wanted))
        });
    }

    fn abort(task: Arc<Task>, reason: Reason) -> Stopping {
        if let Some(on_stop) = task.slot.linked(|links| links.on_stop.clone()) {
            on_stop(reason);
            return Stopping::Otherwise;
        }
        if let Err(decided) = task.fate.stop(reason) {
            return decided;
        }
        // The future is dropped where it lives, never on the thread that stops the task.
        stop(task, reason);
        Stopping::Yes
    }

    pub(super) fn fail(&self, error: Error) {
        self.fate.end();
        self.slot.abort(&self.fate, error, CULPRIT);
    }
}

/// A task on its way to the ambient thread: one reference in place of two keeps messages small.
pub(super) trait RawTask: Send + Sync {
    fn task(&self) -> &Task;
    fn split(self: Arc<Self>) -> (Arc<Task>, Waker);
}

impl<T: Send + 'static> RawTask for Task<Option<T>> {
    fn task(&self) -> &Task {
        self
    }

    fn split(self: Arc<Self>) -> (Arc<Task>, Waker) {
        (self.clone(), Waker::from(self))
    }
}

impl<T: Send + 'static> Wake for Task<Option<T>> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        Task::wake(&**self);
    }
}

impl<T: Send + 'static> Work for Task<Option<T>> {
    fn slot(&self) -> &Slot {
        &self.slot
    }

    fn stop(self: Arc<Self>, reason: Reason) -> Stopping {
        Task::abort(self, reason)
    }
}

impl<T: Send + 'static> Output<T> for Task<Option<T>> {
    fn take(&self) -> Option<Result<T, Error>> {
        self.slot.take()
    }

    fn untyped(self: Arc<Self>) -> Arc<dyn Work> {
        self
    }
}

/// A future that may be polled, or dropped in place.
///
/// It is kept as `Pin<Box<Option<F>>>`, so that it can be dropped in place without unsafe code, while the
/// allocation goes back with the value to the thread that made it.
pub(super) trait Step: Send {
    /// Polls once; returns the future if it is not ready. Otherwise its value goes to the task's slot.
    fn step(self: Pin<Box<Self>>, task: &Task, cx: &mut Context<'_>) -> Option<Body>;
}

const CULPRIT: &str = "async task";

impl<F> Step for Option<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn step(mut self: Pin<Box<Self>>, task: &Task, cx: &mut Context<'_>) -> Option<Body> {
        let mut output = None;
        let polled = wall(|| {
            let future = self.as_mut().as_pin_mut();
            if let Some(Poll::Ready(value)) = future.map(|future| future.poll(cx)) {
                output = Some(value);
                // The future is gone before anybody sees its value.
                self.set(None);
            }
        });
        if polled.is_ok() && output.is_none() {
            return Some(self);
        }
        if polled.is_err() {
            discard(output.take());
        }
        task.finish(polled.err(), &mut output, self);
        discard(output);
        None
    }
}

/// Drops a future; returns what its task ends as: `error`, or the panic of a destructor.
fn drop_body(body: Option<Body>, error: Error) -> Error {
    match wall(|| drop(body)) {
        Ok(()) => error,
        Err(payload) => Error::panicked(CULPRIT, payload),
    }
}

/// The tasks that have not ended, in a slab. Owned by the loop of the ambient thread.
pub(super) struct Tasks {
    places: Vec<Option<Live>>,
    free: Vec<usize>,
    hooks: Hooks,
    /// Called when no task is left. Until then, the callbacks of `drain`s that gave up stay here.
    when_idle: Vec<OnIdle>,
    /// How many tasks were ever started.
    started: u64,
    epoch: Instant,
    /// The nanoseconds since `epoch` at one of the last ticks, from which a task's age is counted. Looking at
    /// the clock for each task would cost a tenth of what a task costs.
    now: u64,
}

struct Live {
    /// `None` while it is being polled, and after that if it was stopped meanwhile.
    body: Option<Body>,
    task: Arc<Task>,
    /// As `now` in [`Tasks`]: an `Instant` takes twice the memory.
    since: u64,
    /// Made once, so that `will_wake` holds across polls and polling counts no references.
    waker: Waker,
}

impl Tasks {
    pub(super) fn new() -> Tasks {
        let settings = settings().ok();
        Tasks {
            places: Vec::new(),
            free: Vec::new(),
            hooks: Hooks {
                around_poll: settings.and_then(|settings| settings.around_poll.as_ref()),
                stalls: settings.and_then(|settings| Stalls::watch(settings.stall?)),
            },
            when_idle: Vec::new(),
            started: 0,
            epoch: Instant::now(),
            now: 0,
        }
    }

    pub(super) fn look_at_clock(&mut self) {
        self.now = self.epoch.elapsed().as_nanos() as u64;
    }

    pub(super) fn list(&self) -> Vec<TaskInfo> {
        let live = self.places.iter().flatten();
        let now = self.epoch.elapsed();
        let info = |live: &Live| TaskInfo {
            kind: WorkKind::Async,
            state: WorkState::Running,
            age: Some(now.saturating_sub(Duration::from_nanos(live.since))),
            started_at: live.task.slot.origin,
            name: None,
        };
        live.map(info).collect()
    }

    /// Polls a future for the first time; gives it a place if it is not ready.
    pub(super) fn start(&mut self, mut spawned: Spawned) {
        let Some((body, raw)) = spawned.0.take() else {
            return;
        };
        let (task, waker) = raw.split();
        self.started += 1;
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.update_live();
        task.index.store(index as u32, Ordering::Relaxed);
        task.number.store(self.started as u32, Ordering::Relaxed);
        if task.begins {
            task.slot.begin();
        }
        let body = match task.fate.is_stopped() {
            false => self.hooks.poll(body, &task, &waker),
            true => Some(body),
        };
        // A task that was stopped needs a place, for the message that resolves it.
        if body.is_none() && !task.fate.is_stopped() {
            task.queued.store(true, Ordering::Release);
            self.release(index);
            return discard((task, waker));
        }
        self.places[index] = Some(Live {
            body,
            task,
            since: self.now,
            waker,
        });
    }

    /// Polls a task once; nothing happens if it has ended.
    pub(super) fn poll(&mut self, key: Key) {
        let Some(live) = find(&mut self.places, key) else {
            return;
        };
        if live.task.fate.is_stopped() {
            return;
        }
        let Some(body) = live.body.take() else { return };
        match self.hooks.poll(body, &live.task, &live.waker) {
            Some(body) => live.body = Some(body),
            // It was stopped during the poll. The message that resolves it is on its way.
            None if live.task.fate.is_stopped() => {}
            None => self.remove(key),
        }
    }

    /// Drops the future of a task; returns what the task ends as, unless it has already ended.
    pub(super) fn stop(&mut self, task: &Task, reason: Reason) -> Option<Error> {
        let key = task.key();
        let body = find(&mut self.places, key)?.body.take();
        let error = drop_body(body, reason.error(CULPRIT));
        self.remove(key);
        Some(error)
    }

    /// Drops all futures, for good.
    pub(super) fn close(&mut self) {
        self.free = Vec::new();
        let mut places = mem::take(&mut self.places);
        for live in places.iter_mut().filter_map(Option::take) {
            let ended = Reason::ShutDown.error(CULPRIT);
            live.task.fail(drop_body(live.body, ended));
        }
        self.hooks.stalls.iter().for_each(|stalls| stalls.end());
        self.update_live();
        self.tell_if_idle();
    }

    pub(super) fn when_idle(&mut self, call: OnIdle) {
        self.when_idle.push(call);
    }

    /// For the loop when it has nothing to do, because there may be no task left at all.
    pub(super) fn tell_if_idle(&mut self) {
        if self.free.len() == self.places.len() {
            engine::answer(mem::take(&mut self.when_idle), self.started);
        }
    }

    fn update_live(&self) {
        let live = self.places.len() - self.free.len();
        LIVE.0.store(live, Ordering::Relaxed);
    }

    fn remove(&mut self, key: Key) {
        let place = self.places.get_mut(key.index());
        if let Some(ended) = place.and_then(Option::take) {
            ended.task.queued.store(true, Ordering::Release);
            self.release(key.index());
            discard(ended);
        }
    }

    fn release(&mut self, index: usize) {
        self.free.push(index);
        self.update_live();
        if self.free.len() == self.places.len() && self.places.len() > PLACES_KEPT {
            (self.places, self.free) = (Vec::new(), Vec::new());
        }
    }
}

fn find(places: &mut [Option<Live>], key: Key) -> Option<&mut Live> {
    let live = places.get_mut(key.index())?.as_mut()?;
    // Numbers wrap around after 2^32 tasks. A stale wake that meets its own number again costs a spurious
    // poll, which every future allows.
    (live.task.key() == key).then_some(live)
}

/// What is called around a poll.
struct Hooks {
    around_poll: Option<&'static AroundPoll>,
    stalls: Option<Arc<Stalls>>,
}

impl Hooks {
    /// Polls once; returns the future if it is not ready.
    fn poll(&self, body: Body, task: &Task, waker: &Waker) -> Option<Body> {
        // Unset before the poll, so that a wake during the poll causes one more. A swap and not a store,
        // because it must see what was written before a wake that found the flag set.
        task.queued.swap(false, Ordering::AcqRel);
        let stalls = self.stalls.as_ref();
        let _polling = stalls.map(|stalls| stalls.polling(task.slot.origin));
        let cx = &mut Context::from_waker(waker);
        match self.around_poll {
            None => body.step(task, cx),
            Some(around) => step_within(around, body, task, cx),
        }
    }
}

/// Polls once inside a hook, which should call its argument once; or after the hook, if it did not call, or
/// panicked before it did.
fn step_within(around: &AroundPoll, body: Body, task: &Task, cx: &mut Context<'_>) -> Option<Body> {
    let (mut body, mut pending) = (Some(body), None);
    let entered = wall(|| {
        around(&mut || {
            if let Some(body) = body.take() {
                pending = body.step(task, cx);
            }
        });
    });
    discard(entered);
    match body {
        // Without this poll, the task might never be woken again.
        Some(body) => body.step(task, cx),
        None => pending,
    }
}

/// How many async tasks have begun and not ended, for other threads to read.
pub(super) static LIVE: Apart<AtomicUsize> = Apart(AtomicUsize::new(0));

/// Alone in its cache line: the ambient thread writes it for every task, and would otherwise slow down
/// the threads that read the flag of the injector.
#[repr(align(64))]
pub(super) struct Apart<T>(pub(super) T);

/// Empty places that are kept for the next tasks; the memory of a larger burst is freed when its last task
/// has ended.
const PLACES_KEPT: usize = 4096;
