//! The ambient thread: a single-threaded executor that is simply there.
//!
//! ```text
//!   any thread                         the ambient thread
//!   ──────────                         ───────────────────────────────────────────────
//!   spawn ──Start──▶ injector ──▶ tick: 1. the local queue, as long as it was at the start
//!   waker ──Wake───▶ (a lock)           2. the injector, one batch
//!   sleep ──Arm────▶                    3. the timers that are due
//!                                       nothing left: spin, then park until a message or a deadline
//!   own wakers, spawns and sleeps ──▶ local queue and timers, without a lock
//! ```
//!
//! - **Message**: everything that asks something of the thread. From the thread itself it goes to the
//!   local queue, from elsewhere through the injector. Both are FIFO.
//! - **Tick**: nothing in it can starve the rest, because what is queued meanwhile waits for the next.
//! - **Wall**: one around every step. The thread outlives every panic.
//!
//! The injector has no limit, like every `spawn`: who spawns faster than the thread works fills the
//! memory.
//!
//! Floor 3: imports the future, the error, the settings, the watch and the spin, no other engine.

mod injector;
mod local;
mod task;
mod timer;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::config::{new_deep_thread, new_thread, on_thread_start, settings};
use crate::current::Current;
use crate::engine::{self, Engine, OnIdle, OnList, Stats};
use crate::error::{discard, lock, wall};
use crate::spin::{self, Spin};
use crate::unfuture::Reason;
use crate::watch::Stalls;

use injector::{Injector, KEPT};
use task::{Key, Newborn, Tasks, Ticket};
use timer::{Alarm, TimerKey, Timers};

pub use local::spawn_local;
pub(crate) use task::{Task, try_spawn, try_spawn_with};
pub use task::{spawn, spawn_now};
pub use timer::{
    Interval, MissedTicks, Sleep, Timeout, YieldNow, interval, sleep, sleep_until, timeout,
    yield_now,
};

/// What one can ask of the ambient thread.
enum Message {
    /// Poll this future for the first time.
    Start(Newborn),
    /// Poll the task with this key, if it still lives.
    Wake(Key),
    /// Drop the future of this task and resolve it for this reason.
    Stop(Arc<dyn Ticket>, Reason),
    /// Set off this alarm at this time.
    Arm(TimerKey, Alarm),
    /// Forget this timer.
    Disarm(TimerKey),
    /// Call this when no task is left.
    WhenQuiet(OnIdle),
    /// Call this with a list of all tasks.
    List(OnList),
    /// Drop every future, end the thread, and call this.
    Close(OnIdle),
}

/// Why the ambient thread takes no message.
pub(crate) enum Refused {
    /// The operating system refused the thread.
    Os(io::Error),
    /// It was shut down.
    Closed,
}

/// Messages of the injector that one tick takes at most, so that timers are looked at in between.
const BATCH: usize = 256;

thread_local! {
    /// Set while this thread is the ambient one and serves. It needs no drop, so it can be asked to
    /// the last and costs one look; where it is set, `LOCAL` is there.
    static IS_AMBIENT: Cell<bool> = const { Cell::new(false) };
    static LOCAL: Local = const {
        Local {
            queue: RefCell::new(VecDeque::new()),
            timers: RefCell::new(Timers::new()),
            stops: RefCell::new(VecDeque::new()),
        }
    };
}

/// What the ambient thread keeps for itself. Elsewhere it stays empty.
///
/// No borrow of it lasts while foreign code runs.
struct Local {
    queue: RefCell<VecDeque<Message>>,
    timers: RefCell<Timers>,
    /// Tasks that this thread itself is to stop after the step that it is in.
    stops: RefCell<VecDeque<(Arc<dyn Ticket>, Reason)>>,
}

/// Sends a message to the ambient thread and starts that thread if it is the first.
///
/// Gives the message back if there is no such thread and none can be had.
// Inlined, so that a message is written where it is to lie: moving one that was just written costs
// more than all the rest.
#[inline]
fn post(message: Message) -> Result<(), (Message, Refused)> {
    if IS_AMBIENT.get() {
        LOCAL.with(|local| local.queue.borrow_mut().push_back(message));
        Ok(())
    } else {
        inject(message)
    }
}

/// Queues one more poll of a task that exists.
fn wake(key: Key) {
    if IS_AMBIENT.get() {
        LOCAL.with(|local| local.queue.borrow_mut().push_back(Message::Wake(key)));
    } else {
        // Refused only after the end, when there is nothing left to poll.
        discard(inject(Message::Wake(key)));
    }
}

/// Has the future of a task dropped, and the task resolved for this reason.
fn stop(ticket: Arc<dyn Ticket>, reason: Reason) {
    if IS_AMBIENT.get() {
        LOCAL.with(|local| local.stops.borrow_mut().push_back((ticket, reason)));
    } else {
        discard(inject(Message::Stop(ticket, reason)));
    }
}

/// Sends a message through the injector, even from the ambient thread itself.
fn inject(message: Message) -> Result<(), (Message, Refused)> {
    match injector() {
        Ok(injector) => injector
            .send(message)
            .map_err(|message| (message, Refused::Closed)),
        Err(refused) => Err((message, refused)),
    }
}

static INJECTOR: Injector = Injector::new();
/// Set when the thread was started.
static STARTED: AtomicBool = AtomicBool::new(false);
/// Who asked for its end when it took no message any more; `None` once it has ended.
static LATE: Mutex<Option<Vec<Message>>> = Mutex::new(Some(Vec::new()));
/// Held while the thread is started or closed; whether it was closed before it was ever started.
static STARTING: Mutex<bool> = Mutex::new(false);

fn injector() -> Result<&'static Injector, Refused> {
    if STARTED.load(Ordering::Acquire) {
        return Ok(&INJECTOR);
    }
    // Racing first calls: one starts the thread, the others wait for it. A refusal is not kept: the
    // next call tries again.
    let open = engine::enter(&ENGINE);
    let closed = lock(&STARTING);
    if !open || *closed {
        return Err(Refused::Closed);
    }
    if !STARTED.load(Ordering::Acquire) {
        new_deep_thread("ambient").spawn(run).map_err(Refused::Os)?;
        STARTED.store(true, Ordering::Release);
    }
    Ok(&INJECTOR)
}

const ENGINE: Engine = Engine {
    name: "async tasks",
    count,
    list,
    when_idle: when_quiet,
    close,
};

/// Sends a message if there was ever an ambient thread.
fn ask(message: Message) {
    if !STARTED.load(Ordering::Acquire) {
        return message.call();
    }
    let Err(message) = INJECTOR.send(message) else {
        return;
    };
    if let Message::WhenQuiet(_) | Message::Close(_) = message {
        // It is closed, and may be dropping what is left: then the answer comes after that.
        let mut late = lock(&LATE);
        if let Some(late) = &mut *late {
            return late.push(message);
        }
    }
    message.call();
}

/// Calls once no async task is left; at once if there was never one.
fn when_quiet(call: OnIdle) {
    ask(Message::WhenQuiet(call));
}

/// Gives a list of the async tasks to `call`, which is dropped if there is no ambient thread.
fn list(call: OnList) {
    ask(Message::List(call));
}

fn count(stats: &mut Stats) {
    stats.async_tasks = task::LIVE.load(Ordering::Relaxed);
}

/// Ends the ambient thread; calls when it has ended.
fn close(call: OnIdle) {
    let mut closed = lock(&STARTING);
    *closed = true;
    drop(closed);
    ask(Message::Close(call));
}

impl Message {
    /// The answer to who waits for the thread to be quiet or to end, where there is no thread. Other
    /// messages are dropped.
    fn call(self) {
        if let Message::WhenQuiet(call) | Message::Close(call) = self {
            call(0);
        }
    }
}

/// The life of the ambient thread.
fn run() {
    Current::Ambient.set();
    on_thread_start();
    let settings = settings().ok();
    let around_poll = settings.and_then(|settings| settings.around_poll.as_ref());
    let stalls = settings
        .and_then(|settings| settings.stall)
        .and_then(|longest| Stalls::watch(longest, new_thread("stalls")));
    let mut tasks = Tasks::new(around_poll, stalls);
    let closing = LOCAL.with(|local| {
        IS_AMBIENT.set(true);
        let mut arrived = VecDeque::new();
        let closing = serve(local, &mut arrived, &mut tasks);
        end(local, arrived, &mut tasks);
        IS_AMBIENT.set(false);
        closing
    });
    closing(0);
    let late = lock(&LATE).take();
    late.into_iter().flatten().for_each(Message::call);
}

/// Runs ticks until it is told to close; gives whom to tell that it has.
fn serve(local: &Local, arrived: &mut VecDeque<Message>, tasks: &mut Tasks) -> OnIdle {
    loop {
        tasks.tick();
        if let Some(closing) = tick(local, arrived, tasks) {
            return closing;
        }
        if arrived.is_empty() && local.queue.borrow().is_empty() {
            for queue in [&mut *arrived, &mut local.queue.borrow_mut()] {
                if queue.capacity() > KEPT {
                    *queue = VecDeque::new();
                }
            }
            idle(local, tasks);
        }
    }
}

/// Drops everything that is left. Destructors may ask for more, which is refused.
fn end(local: &Local, mut arrived: VecDeque<Message>, tasks: &mut Tasks) {
    // What comes from now on finds nobody: it is given back to its sender.
    arrived.extend(INJECTOR.close());
    tasks.close();
    let timers = local.timers.borrow_mut().drain();
    drop(timers);
    // All of them have ended by now.
    discard(local.stops.take());
    let queued = || local.queue.borrow_mut().pop_front();
    while let Some(message) = queued().or_else(|| arrived.pop_front()) {
        discard(wall(|| message.call()));
    }
}

/// Gives whom to tell when it met the message to close.
fn tick(local: &Local, arrived: &mut VecDeque<Message>, tasks: &mut Tasks) -> Option<OnIdle> {
    let queued = local.queue.borrow().len();
    for _ in 0..queued {
        let message = local.queue.borrow_mut().pop_front();
        let closing = message.and_then(|message| step(local, tasks, message));
        if closing.is_some() {
            return closing;
        }
    }
    if arrived.is_empty() {
        INJECTOR.take(arrived);
    }
    for _ in 0..BATCH.min(arrived.len()) {
        let message = arrived.pop_front();
        let closing = message.and_then(|message| step(local, tasks, message));
        if closing.is_some() {
            return closing;
        }
    }
    if !local.timers.borrow().is_empty() {
        let now = Instant::now();
        loop {
            let due = local.timers.borrow_mut().due(now);
            let Some(alarm) = due else { break };
            drop(alarm);
        }
        stop_all(local, tasks);
    }
    None
}

/// One message. Gives whom to tell if it was the one to close.
fn step(local: &Local, tasks: &mut Tasks, message: Message) -> Option<OnIdle> {
    match message {
        Message::Start(newborn) => tasks.start(newborn),
        Message::Wake(key) => tasks.poll(key),
        Message::Stop(ticket, reason) => local.stops.borrow_mut().push_back((ticket, reason)),
        Message::Arm(key, alarm) => local.timers.borrow_mut().arm(key, alarm),
        Message::Disarm(key) => {
            let removed = local.timers.borrow_mut().disarm(key);
            discard(removed);
        }
        Message::WhenQuiet(call) => tasks.when_quiet(call),
        Message::List(call) => call(tasks.list()),
        Message::Close(call) => return Some(call),
    }
    stop_all(local, tasks);
    None
}

/// Stops the tasks that are to be stopped. Dropping the future of one may stop others that it owned: they
/// lose their futures one after the other, and only then all of them resolve, so whoever sees that the first
/// has ended sees nothing left of the others.
fn stop_all(local: &Local, tasks: &mut Tasks) {
    while !local.stops.borrow().is_empty() {
        let roots = mem::take(&mut *local.stops.borrow_mut());
        for root in roots {
            let (mut next, mut ended) = (Some(root), Vec::new());
            while let Some((ticket, reason)) = next {
                if !ticket.is_placed() && !ticket.is_done() {
                    // It was spawned on this very thread and stopped by another before its turn, or the
                    // other way round.
                    let later = Message::Stop(ticket, reason);
                    local.queue.borrow_mut().push_back(later);
                } else if let Some(error) = tasks.stop(&*ticket, reason) {
                    ended.push((ticket, error));
                }
                next = local.stops.borrow_mut().pop_front();
            }
            for (ticket, error) in ended.into_iter().rev() {
                ticket.fail(error);
            }
        }
    }
}

/// Waits for a message or the next deadline.
fn idle(local: &Local, tasks: &mut Tasks) {
    static SPIN: Spin = Spin::new();
    tasks.tell_if_quiet();
    let deadline = local.timers.borrow().next();
    // Of a deadline it is known when it comes, so looking for it would only burn the time until then;
    // and parking takes several that are close to each other together.
    let is_near = deadline.is_some_and(|at| at <= Instant::now() + spin::budget());
    let arrived = || (!INJECTOR.is_empty()).then_some(());
    if is_near || SPIN.attempt(arrived).is_none() {
        INJECTOR.wait(deadline);
        tasks.look_at_clock();
    }
}
