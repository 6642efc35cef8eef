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
//! Floor 3: imports the future, the error and the spin, no other engine. The injector has no limit,
//! like every `spawn`: who spawns faster than the thread works fills the memory.

mod local;
mod task;
mod timer;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Waker;
use std::thread;
use std::time::Instant;

use crate::error::{discard, wall};
use crate::spin::Spin;
use crate::unfuture::{Reason, Role, set_role};

use task::{Body, Key, Tasks, Ticket};
use timer::{TimerKey, Timers};

pub use local::spawn_local;
pub use task::spawn;
pub use timer::{Sleep, YieldNow, sleep, sleep_until, yield_now};

/// What one can ask of the ambient thread.
enum Message {
    /// Poll this future for the first time.
    Start(Body, Arc<dyn Ticket>),
    /// Poll the task with this key, if it still lives.
    Wake(Key),
    /// Drop the future of this task and resolve it for this reason.
    Stop(Arc<dyn Ticket>, Reason),
    /// Wake this waker at this time; a waker that stood there is replaced.
    Arm(TimerKey, Waker),
    /// Forget this timer.
    Disarm(TimerKey),
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
/// Gives the message back with the operating system's error if it refuses the thread.
fn post(message: Message) -> Result<(), (Message, io::Error)> {
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
fn inject(message: Message) -> Result<(), (Message, io::Error)> {
    match injector() {
        Ok(injector) => {
            // The receiver lives as long as the process.
            discard(injector.send(message));
            Ok(())
        }
        Err(error) => Err((message, error)),
    }
}

fn injector() -> io::Result<&'static Sender<Message>> {
    static INJECTOR: OnceLock<Sender<Message>> = OnceLock::new();
    static STARTING: Mutex<()> = Mutex::new(());
    if let Some(injector) = INJECTOR.get() {
        return Ok(injector);
    }
    // Racing first calls: one starts the thread, the others wait for it. A refusal is not kept: the
    // next call tries again.
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if INJECTOR.get().is_none() {
        let (sender, receiver) = mpsc::channel();
        thread::Builder::new()
            .name("unsync-ambient".into())
            .spawn(move || run(&receiver))?;
        discard(INJECTOR.set(sender));
    }
    INJECTOR.get().ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn run(injector: &Receiver<Message>) {
    set_role(Role::Ambient);
    LOCAL.with(|local| {
        local.is_ambient.set(true);
        let mut tasks = Tasks::new();
        loop {
            tick(local, injector, &mut tasks);
            if local.queue.borrow().is_empty() {
                if let Some(message) = idle(local, injector) {
                    step(local, &mut tasks, message);
                }
            }
        }
    })
}

fn tick(local: &Local, injector: &Receiver<Message>, tasks: &mut Tasks) {
    let queued = local.queue.borrow().len();
    for _ in 0..queued {
        let Some(message) = local.queue.borrow_mut().pop_front() else {
            break;
        };
        step(local, tasks, message);
    }
    for message in injector.try_iter().take(BATCH) {
        step(local, tasks, message);
    }
    if !local.timers.borrow().is_empty() {
        let now = Instant::now();
        loop {
            let due = local.timers.borrow_mut().due(now);
            let Some(waker) = due else { break };
            discard(wall(|| waker.wake()));
        }
    }
}

/// One message, behind the wall.
fn step(local: &Local, tasks: &mut Tasks, message: Message) {
    match message {
        Message::Start(body, ticket) => tasks.start(body, ticket),
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
        Message::Arm(key, waker) => {
            let replaced = local.timers.borrow_mut().arm(key, waker);
            discard(replaced);
        }
        Message::Disarm(key) => {
            let removed = local.timers.borrow_mut().disarm(key);
            discard(removed);
        }
    }
}

/// Waits for a message or the next deadline.
fn idle(local: &Local, injector: &Receiver<Message>) -> Option<Message> {
    static SPIN: Spin = Spin::new();
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
    match deadline {
        None => injector.recv().ok(),
        Some(at) => match injector.recv_timeout(at.saturating_duration_since(Instant::now())) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => None,
        },
    }
}
