//! The ambient thread: a single-threaded executor that is simply there.
//!
//! ```text
//!   any thread                         the ambient thread
//!   ──────────                         ───────────────────────────────────────────────
//!   spawn ──Start──▶ injector ──▶ tick: 1. the local queue, as long as it was at the start
//!   waker ──Wake───▶ (mpsc)             2. the injector, one batch
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
//! Floor 3: imports the future, the error, the settings, the watch and the spin, no other engine. The injector has no limit,
//! like every `spawn`: who spawns faster than the thread works fills the memory.

mod local;
mod task;
mod timer;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Instant;

use crate::config::{Settings, settings};
use crate::error::{discard, wall};
use crate::role::{Role, set_role};
use crate::spin::Spin;
use crate::unfuture::{OnQuiet, Reason};
use crate::watch::{OnList, Stalls, Stats};

use task::{Key, Newborn, Tasks, Ticket};
use timer::{Alarm, TimerKey, Timers};

pub use local::spawn_local;
pub(crate) use task::{prepare, spawn_at};
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
    WhenQuiet(OnQuiet),
    /// Call this with a list of all tasks.
    List(OnList),
    /// Drop every future, end the thread, and call this.
    Close(OnQuiet),
}

/// Why the ambient thread takes no message.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The operating system refused the thread.
    Os(io::Error),
    /// It was shut down.
    Closed,
}

/// Messages of the injector that one tick takes at most, so that timers are looked at in between.
const BATCH: usize = 256;

thread_local! {
    static LOCAL: Local = const {
        Local {
            is_ambient: Cell::new(false),
            queue: RefCell::new(VecDeque::new()),
            timers: RefCell::new(Timers::new()),
        }
    };
}

/// What the ambient thread keeps for itself. Elsewhere it stays empty.
///
/// No borrow of it lasts while foreign code runs.
struct Local {
    is_ambient: Cell<bool>,
    queue: RefCell<VecDeque<Message>>,
    timers: RefCell<Timers>,
}

/// Sends a message to the ambient thread and starts that thread if it is the first.
///
/// Gives the message back if there is no such thread and none can be had.
fn post(message: Message) -> Result<(), (Message, Refused)> {
    let mut message = Some(message);
    // A thread whose locals are gone is on its way out, so it is not the ambient one.
    let _ = LOCAL.try_with(|local| {
        if local.is_ambient.get() {
            local.queue.borrow_mut().extend(message.take());
        }
    });
    match message {
        None => Ok(()),
        Some(message) => inject(message),
    }
}

/// Sends a message through the injector, even from the ambient thread itself.
fn inject(message: Message) -> Result<(), (Message, Refused)> {
    match injector() {
        Ok(injector) => injector
            .send(message)
            .map_err(|error| (error.0, Refused::Closed)),
        Err(refused) => Err((message, refused)),
    }
}

static INJECTOR: OnceLock<Sender<Message>> = OnceLock::new();
/// Held while the thread is started or closed; whether it was closed before it was ever started.
static STARTING: Mutex<bool> = Mutex::new(false);

fn injector() -> Result<&'static Sender<Message>, Refused> {
    if let Some(injector) = INJECTOR.get() {
        return Ok(injector);
    }
    // Racing first calls: one starts the thread, the others wait for it. A refusal is not kept: the
    // next call tries again.
    let closed = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if *closed {
        return Err(Refused::Closed);
    }
    if INJECTOR.get().is_none() {
        let settings = settings().ok();
        let prefix = settings.map_or("unsync", |settings| &settings.thread_name);
        let mut thread = thread::Builder::new().name(format!("{prefix}-ambient"));
        if let Some(bytes) = settings.and_then(|settings| settings.stack_size) {
            thread = thread.stack_size(bytes);
        }
        let (sender, receiver) = mpsc::channel();
        thread
            .spawn(move || run(receiver, settings))
            .map_err(Refused::Os)?;
        discard(INJECTOR.set(sender));
    }
    INJECTOR.get().ok_or(Refused::Closed)
}

/// Calls once no async task is left; at once if there was never one.
pub(crate) fn when_quiet(call: OnQuiet) {
    match INJECTOR.get() {
        Some(injector) => {
            if let Err(closed) = injector.send(Message::WhenQuiet(call)) {
                closed.0.call();
            }
        }
        None => call(0),
    }
}

/// Gives a list of the async tasks to `call`, which is dropped if there is no ambient thread.
pub(crate) fn list(call: OnList) {
    if let Some(injector) = INJECTOR.get() {
        discard(injector.send(Message::List(call)));
    }
}

pub(crate) fn count(stats: &mut Stats) {
    stats.async_tasks = task::LIVE.load(Ordering::Relaxed);
}

/// Ends the ambient thread; calls when it has ended.
pub(crate) fn close(call: OnQuiet) {
    let mut closed = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    *closed = true;
    drop(closed);
    match INJECTOR.get() {
        Some(injector) => {
            if let Err(closed) = injector.send(Message::Close(call)) {
                closed.0.call();
            }
        }
        None => call(0),
    }
}

impl Message {
    /// The answer to one of the last two messages, from nobody.
    fn call(self) {
        if let Message::WhenQuiet(call) | Message::Close(call) = self {
            call(0);
        }
    }
}

/// The life of the ambient thread.
fn run(injector: Receiver<Message>, settings: Option<&'static Settings>) {
    set_role(Role::Ambient);
    let hooks = settings.and_then(|settings| settings.on_thread_start.as_ref());
    discard(wall(|| hooks.iter().for_each(|hook| hook())));
    let around_poll = settings.and_then(|settings| settings.around_poll.as_ref());
    let stalls = settings
        .and_then(|settings| settings.stall)
        .and_then(Stalls::watch);
    let mut tasks = Tasks::new(around_poll, stalls);
    let closing = LOCAL.with(|local| {
        local.is_ambient.set(true);
        let closing = serve(local, &injector, &mut tasks);
        end(local, &injector, &mut tasks);
        local.is_ambient.set(false);
        closing
    });
    // What comes from now on finds nobody: it is given back to its sender, or resolves itself.
    drop(injector);
    closing(0);
}

/// Runs ticks until it is told to close; gives whom to tell that it has.
fn serve(local: &Local, injector: &Receiver<Message>, tasks: &mut Tasks) -> OnQuiet {
    loop {
        tasks.tick();
        let mut closing = tick(local, injector, tasks);
        if closing.is_none() && local.queue.borrow().is_empty() {
            closing = idle(local, injector, tasks).and_then(|message| step(local, tasks, message));
        }
        if let Some(closing) = closing {
            return closing;
        }
    }
}

/// Drops everything that is left. Destructors may ask for more, which is refused.
fn end(local: &Local, injector: &Receiver<Message>, tasks: &mut Tasks) {
    tasks.close();
    let timers = local.timers.borrow_mut().drain();
    drop(timers);
    let queued = || local.queue.borrow_mut().pop_front();
    while let Some(message) = queued().or_else(|| injector.try_recv().ok()) {
        discard(wall(|| message.call()));
    }
}

/// Gives whom to tell when it met the message to close.
fn tick(local: &Local, injector: &Receiver<Message>, tasks: &mut Tasks) -> Option<OnQuiet> {
    let queued = local.queue.borrow().len();
    for _ in 0..queued {
        let message = local.queue.borrow_mut().pop_front();
        let closing = message.and_then(|message| step(local, tasks, message));
        if closing.is_some() {
            return closing;
        }
    }
    for message in injector.try_iter().take(BATCH) {
        let closing = step(local, tasks, message);
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
    }
    None
}

/// One message. Gives whom to tell if it was the one to close.
fn step(local: &Local, tasks: &mut Tasks, message: Message) -> Option<OnQuiet> {
    match message {
        Message::Start(newborn) => tasks.start(newborn),
        Message::Wake(key) => tasks.poll(key),
        Message::Stop(ticket, reason) => {
            if let Err(reason) = tasks.stop(&*ticket, reason) {
                // Spawned on this very thread and stopped from another before its turn came.
                local
                    .queue
                    .borrow_mut()
                    .push_back(Message::Stop(ticket, reason));
            }
        }
        Message::Arm(key, alarm) => local.timers.borrow_mut().arm(key, alarm),
        Message::Disarm(key) => {
            let removed = local.timers.borrow_mut().disarm(key);
            discard(removed);
        }
        Message::WhenQuiet(call) => tasks.when_quiet(call),
        Message::List(call) => call(tasks.list()),
        Message::Close(call) => return Some(call),
    }
    None
}

/// Waits for a message or the next deadline.
fn idle(local: &Local, injector: &Receiver<Message>, tasks: &mut Tasks) -> Option<Message> {
    static SPIN: Spin = Spin::new();
    tasks.tell_if_quiet();
    let deadline = local.timers.borrow().next();
    let awaited = || {
        let message = injector.try_recv().ok();
        let due = || deadline.is_some_and(|at| at <= Instant::now());
        if message.is_some() || due() {
            Some(message)
        } else {
            None
        }
    };
    if let Some(message) = SPIN.attempt(awaited) {
        return message;
    }
    let message = match deadline {
        None => injector.recv().ok(),
        Some(at) => {
            let left = at.saturating_duration_since(Instant::now());
            injector.recv_timeout(left).ok()
        }
    };
    tasks.look_at_clock();
    message
}
