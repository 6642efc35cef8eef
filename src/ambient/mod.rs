//! The ambient thread: a single-threaded executor that starts with its first use.
//!
//! ```text
//!   any thread                         the ambient thread
//!   ──────────                         ───────────────────────────────────────────────
//!   spawn ──Start──▶ injector ──▶ tick: 1. the local queue, as long as it was at the start
//!   waker ──Wake───▶ (a channel)        2. one burst of the injector
//!   sleep ──Timer──▶                    3. the timers that are due
//!                                       nothing left: spin, then park until a message or a deadline
//!   own wakers, spawns and sleeps ──▶ local queue and timers, without the channel
//! ```
//!
//! - **Message**: a request to the thread from elsewhere, through the injector.
//! - **Local queue**: a key for each task that the thread has woken, and a mark for each that it has spawned,
//!   because moving a whole message from place to place costs more than a poll. Both queues are FIFO.
//! - **Injector**: a std channel. A flag beside it says whether it may hold something, so the thread's own
//!   work never touches the channel.
//! - **Tick**: what is queued during a tick waits for the next one, so nothing can starve the rest.
//! - **Wall**: catches panics around every step, so the thread outlives every panic.
//!
//! The injector has no limit: spawning faster than the thread polls fills the memory.

mod local;
mod task;
mod timer;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::config::{on_thread_start, start_deep_thread};
use crate::current::Current;
use crate::engine::{self, Engine, OnIdle, OnList, Stats};
use crate::error::{discard, lock, wall};
use crate::spin::{self, Spin};
use crate::stop::Reason;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::mpsc::{self, Receiver, Sender};
use crate::sync::{Instant, Mutex, OnceLock};

use task::{Key, Spawned, Task, Tasks};
use timer::{Timer, Timers};

pub use local::spawn_local;
pub(crate) use task::try_spawn;
pub use task::{spawn, spawn_now};
pub use timer::{
    Interval, MissedTicks, Sleep, Timeout, YieldNow, interval, sleep, sleep_until, timeout,
    yield_now,
};

/// A request to the ambient thread.
enum Message {
    /// Poll this future for the first time.
    Start(Spawned),
    /// Poll the task with this key, if it still lives.
    Wake(Key),
    /// Drop the future of this task and resolve it for this reason.
    Stop(Arc<Task>, Reason),
    /// Set this timer.
    SetTimer(Instant, Timer),
    /// Count a timer whose entry has no waker any more.
    TimerCancelled,
    /// Call this when no task is left.
    WhenIdle(OnIdle),
    /// Call this with a list of all tasks.
    List(OnList),
    /// Drop every future and end the thread.
    Close,
}

/// Why the ambient thread takes no message.
pub(crate) enum Refused {
    /// The operating system refused the thread.
    Os(io::Error),
    /// It was shut down.
    Closed,
}

// ------------------------------------------------------------------------------------- the senders

/// Made with the thread, and never dropped.
static INJECTOR: OnceLock<Sender<Message>> = OnceLock::new();
/// Whether something was sent since the thread last looked. Only a hint: an exact flag would cost an atomic
/// step for every message, and looking into the channel instead would cost a fence in every tick.
static SENT: AtomicBool = AtomicBool::new(false);
/// Locked while the thread is started.
static LIFE: Mutex<Life> = Mutex::new(Life::Open);

enum Life {
    /// The thread serves, or starts with the first message. Left by the first `close`.
    Open,
    /// The thread was asked to end, and calls these when it has ended. Left by the thread.
    Closing(Vec<OnIdle>),
    /// The thread has ended, or was closed before it was ever started. Never left.
    Ended,
}

/// Queues one more poll of a task that exists.
fn wake(key: Key) {
    if is_ambient() {
        LOCAL.with(|local| local.queue.borrow_mut().push_back(key));
    } else {
        // Refused only after the end, when there is nothing left to poll.
        discard(inject(Message::Wake(key)));
    }
}

/// Drops the future of a task, and resolves the task for this reason.
fn stop(task: Arc<Task>, reason: Reason) {
    if is_ambient() {
        LOCAL.with(|local| local.stops.borrow_mut().push_back((task, reason)));
    } else {
        discard(inject(Message::Stop(task, reason)));
    }
}

/// Sends a message to the ambient thread and starts that thread if it is the first.
///
/// Returns the message if there is no such thread and none can be started.
fn inject(message: Message) -> Result<(), (Message, Refused)> {
    let injector = match injector() {
        Ok(injector) => injector,
        Err(refused) => return Err((message, refused)),
    };
    let sent = injector.send(message);
    sent.map_err(|refused| (refused.0, Refused::Closed))?;
    // Set after the send, so a thread that sees the flag finds the message. Nothing orders this load after
    // the channel's stores, so the load may still see a flag that the thread has just unset. Such a message
    // waits for the next regular look, or until the thread is idle and waits on the channel itself.
    if !SENT.load(Ordering::Relaxed) {
        SENT.store(true, Ordering::Release);
    }
    Ok(())
}

fn injector() -> Result<&'static Sender<Message>, Refused> {
    if let Some(injector) = INJECTOR.get() {
        return Ok(injector);
    }
    // If first calls race, one starts the thread and the others wait for it. A refusal is not kept: the next
    // call tries again.
    let open = engine::enter(&ENGINE);
    let life = lock(&LIFE);
    if !open || !matches!(*life, Life::Open) {
        return Err(Refused::Closed);
    }
    if INJECTOR.get().is_none() {
        let (sender, receiver) = mpsc::channel();
        start_deep_thread("ambient", Box::new(|| run(receiver))).map_err(Refused::Os)?;
        discard(INJECTOR.set(sender));
    }
    INJECTOR.get().ok_or(Refused::Closed)
}

const ENGINE: Engine = Engine {
    name: "async tasks",
    count,
    list,
    when_idle,
    close,
};

/// Calls `call` once no async task is left.
fn when_idle(call: OnIdle) {
    if let Err((Message::WhenIdle(call), _)) = inject(Message::WhenIdle(call)) {
        at_end(call);
    }
}

/// Gives a list of the async tasks to `call`, which is dropped if there is no ambient thread.
fn list(call: OnList) {
    discard(inject(Message::List(call)));
}

fn count(stats: &mut Stats) {
    stats.async_tasks = task::LIVE.0.load(Ordering::Relaxed);
}

/// Ends the ambient thread; calls `call` when the thread has ended.
fn close(call: OnIdle) {
    let mut life = lock(&LIFE);
    if let Life::Open = *life {
        *life = match INJECTOR.get() {
            Some(_) => Life::Closing(Vec::new()),
            None => Life::Ended,
        };
    }
    drop(life);
    discard(inject(Message::Close));
    at_end(call);
}

/// Calls `call` when the thread has ended; at once if it already has, or never started.
fn at_end(call: OnIdle) {
    if let Life::Closing(calls) = &mut *lock(&LIFE) {
        return calls.push(call);
    }
    call(0);
}

// ------------------------------------------------------------------------------ the ambient thread

thread_local! {
    static LOCAL: Local = const {
        Local {
            queue: RefCell::new(VecDeque::new()),
            starts: RefCell::new(VecDeque::new()),
            timers: RefCell::new(Timers::new()),
            stops: RefCell::new(VecDeque::new()),
        }
    };
}

/// The ambient thread's own state. On other threads it stays empty.
///
/// No borrow of it lasts while foreign code runs.
struct Local {
    /// The tasks that this thread has woken, and a [`START`](Key::START) for each that it has spawned.
    queue: RefCell<VecDeque<Key>>,
    /// The tasks that this thread has spawned.
    starts: RefCell<VecDeque<Spawned>>,
    timers: RefCell<Timers>,
    /// Tasks that this thread is to stop after its current step.
    stops: RefCell<VecDeque<(Arc<Task>, Reason)>>,
}

/// Whether this is the ambient thread while it serves. Then its locals exist.
fn is_ambient() -> bool {
    matches!(Current::get(), Current::Ambient)
}

/// The life of the ambient thread.
fn run(injector: Receiver<Message>) {
    Current::Ambient.set();
    on_thread_start();
    LOCAL.with(|local| {
        let mut executor = Executor {
            local,
            injector,
            burst: VecDeque::new(),
            later: VecDeque::new(),
            tasks: Tasks::new(),
            ticks: 0,
        };
        // A panic in here is a bug in the executor. It ends the thread as a shutdown does, which resolves the
        // other tasks.
        discard(wall(|| executor.serve()));
        executor.end();
        Current::Ordinary.set();
    });
    let life = mem::replace(&mut *lock(&LIFE), Life::Ended);
    if let Life::Closing(calls) = life {
        engine::answer(calls, 0);
    }
}

struct Executor<'a> {
    local: &'a Local,
    injector: Receiver<Message>,
    /// What was taken out of the injector.
    burst: VecDeque<Message>,
    /// Tasks that are to be stopped once they have started. Their starts are on their way: by the local queue
    /// or the injector, while the stop came another way.
    later: VecDeque<(Arc<Task>, Reason)>,
    tasks: Tasks,
    ticks: u32,
}

/// The most messages that a tick takes out of the channel. Taking many in a row reduces contention for the
/// channel's memory, which the senders allocate and this thread frees; taking more would delay timers.
const BURST: usize = 256;
/// Ticks between two looks at the clock, and between two looks into the channel whatever the flag says.
const LOOK: u32 = 64;
/// Capacity that the local queues keep when they are empty; the memory of a larger burst is freed.
const KEPT: usize = 4096;
/// The most messages that are looked through at the end: a thread that keeps sending must not hold it up.
const LEFT_MAX: usize = 1 << 20;
/// How many generations of tasks are dropped at the end, each spawned by the destructors of the one before: a
/// task that starts its like again when it is dropped must not hold the end up either.
const GENERATIONS_MAX: u32 = 100;

impl Executor<'_> {
    /// Runs ticks until `Close` arrives.
    fn serve(&mut self) -> ControlFlow<()> {
        loop {
            self.tick()?;
            let mut queue = self.local.queue.borrow_mut();
            if queue.is_empty() {
                queue.shrink_to(KEPT);
                drop(queue);
                self.local.starts.borrow_mut().shrink_to(KEPT);
                if let Some(message) = self.idle() {
                    self.step(message)?;
                }
            }
        }
    }

    fn tick(&mut self) -> ControlFlow<()> {
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks % LOOK == 0 {
            self.tasks.look_at_clock();
        }
        let queued = self.local.queue.borrow().len();
        for _ in 0..queued {
            self.run_next();
        }
        if self.ticks % LOOK == 0 || SENT.load(Ordering::Acquire) {
            self.take_burst();
            while let Some(message) = self.burst.pop_front() {
                self.step(message)?;
            }
        }
        if !self.local.timers.borrow().is_empty() {
            let now = Instant::now();
            loop {
                let due = self.local.timers.borrow_mut().due(now);
                let Some(fires) = due else { break };
                drop(fires);
            }
        }
        if !self.later.is_empty() {
            self.local.stops.borrow_mut().append(&mut self.later);
        }
        self.stop_all();
        ControlFlow::Continue(())
    }

    fn take_burst(&mut self) {
        // Unset before the channel is emptied, so that a later message sets it again.
        SENT.store(false, Ordering::Relaxed);
        self.burst.extend(self.injector.try_iter().take(BURST));
        if self.burst.len() == BURST {
            SENT.store(true, Ordering::Relaxed);
        }
    }

    /// Polls the first task in the local queue.
    fn run_next(&mut self) {
        let next = self.local.queue.borrow_mut().pop_front();
        match next {
            Some(Key::START) => {
                let spawned = self.local.starts.borrow_mut().pop_front();
                if let Some(spawned) = spawned {
                    self.tasks.start(spawned);
                }
            }
            Some(key) => self.tasks.poll(key),
            None => {}
        }
        self.stop_all();
    }

    /// Handles one message; `Close` breaks.
    fn step(&mut self, message: Message) -> ControlFlow<()> {
        match message {
            Message::Start(spawned) => self.tasks.start(spawned),
            Message::Wake(key) => self.tasks.poll(key),
            Message::Stop(task, reason) => {
                self.local.stops.borrow_mut().push_back((task, reason));
            }
            Message::SetTimer(deadline, timer) => {
                self.local.timers.borrow_mut().insert(deadline, timer);
            }
            Message::TimerCancelled => self.local.timers.borrow_mut().cancelled(),
            Message::WhenIdle(call) => self.tasks.when_idle(call),
            Message::List(call) => call(self.tasks.list()),
            Message::Close => return ControlFlow::Break(()),
        }
        self.stop_all();
        ControlFlow::Continue(())
    }

    /// Stops the tasks that are to be stopped. Dropping the future of one may stop others that it owned.
    fn stop_all(&mut self) {
        while !self.local.stops.borrow().is_empty() {
            self.stop_together();
        }
    }

    /// Drops all of their futures before the first task resolves, so whoever sees that one has ended sees
    /// nothing left of the others.
    // Cold, so that each step only looks whether there is anything to do.
    #[cold]
    fn stop_together(&mut self) {
        let mut ended = Vec::new();
        let next = || self.local.stops.borrow_mut().pop_front();
        while let Some((task, reason)) = next() {
            if !task.has_started() && !task.is_done() {
                self.later.push_back((task, reason));
            } else if let Some(error) = self.tasks.stop(&*task, reason) {
                ended.push((task, error));
            }
        }
        for (task, error) in ended.into_iter().rev() {
            task.fail(error);
        }
    }

    /// Waits for a message, which it returns, or for the next deadline.
    fn idle(&mut self) -> Option<Message> {
        static SPIN: Spin = Spin::new();
        self.tasks.tell_if_idle();
        let deadline = self.local.timers.borrow_mut().next();
        // A deadline comes at a known time, so spinning for it would only burn CPU; and parking handles
        // several deadlines that are close to each other together.
        let is_near = deadline.is_some_and(|at| at <= Instant::now() + spin::budget());
        if !is_near {
            let message = SPIN.attempt(|| self.injector.try_recv().ok());
            if message.is_some() {
                return message;
            }
        }
        let message = match deadline {
            None => self.injector.recv().ok(),
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                self.injector.recv_timeout(left).ok()
            }
        };
        self.tasks.look_at_clock();
        message
    }

    /// Drops everything that is left. Destructors may ask for more, which is refused.
    fn end(mut self) {
        let mut left = self.burst;
        left.extend(self.injector.try_iter().take(LEFT_MAX));
        // From now on messages go back to their senders. This comes before the first destructor, which may
        // wait for one of them.
        drop(self.injector);
        self.tasks.close();
        drop(self.local.timers.replace(Timers::new()));
        // All of these tasks have ended by now, or end with their starts.
        discard((self.local.stops.take(), self.later));
        for message in left {
            match message {
                Message::WhenIdle(call) => at_end(call),
                message => discard(message),
            }
        }
        // Their destructors may spawn once more, and so on.
        for _ in 0..GENERATIONS_MAX {
            self.local.starts.take().into_iter().for_each(discard);
        }
        let others = self.local.starts.take().into_iter();
        others.for_each(Spawned::forget);
        drop(self.local.queue.take());
    }
}
