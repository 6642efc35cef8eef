//! The engines that are in use.
//!
//! An engine enters itself when it is first used. So [`drain`](crate::drain), [`shutdown`](crate::shutdown),
//! [`stats`](crate::stats) and [`tasks`](crate::tasks) name no engine, and a program that never uses an
//! engine does not contain its code.

use std::time::Duration;

use crate::error::{Origin, lock};
use crate::sync::Mutex;

/// What can be asked of an engine.
pub(crate) struct Engine {
    /// What a shutdown calls the engine's work that still runs.
    pub(crate) name: &'static str,
    /// Fills in the engine's part.
    pub(crate) count: fn(&mut Stats),
    /// Lists its live work. An engine that is closed may drop the callback instead.
    pub(crate) list: fn(OnList),
    /// Makes the call once the engine has no work left.
    pub(crate) when_idle: fn(OnIdle),
    /// Refuses new work, stops what is left, and makes the call once the last thread or process has ended.
    pub(crate) close: fn(OnIdle),
}

/// Called with the number of jobs, tasks or calls that the engine has ever had.
pub(crate) type OnIdle = Box<dyn FnOnce(u64) + Send>;
/// Called with live work.
pub(crate) type OnList = Box<dyn FnOnce(Vec<TaskInfo>) + Send>;

/// Makes the calls of those who waited for an engine that has had this many jobs, tasks or calls.
pub(crate) fn answer(waiting: Vec<OnIdle>, begun: u64) {
    for call in waiting {
        call(begun);
    }
}

struct Entered {
    engines: Vec<&'static Engine>,
    /// Set by a shutdown, for good.
    closed: bool,
}

static ENTERED: Mutex<Entered> = Mutex::new(Entered {
    engines: Vec::new(),
    closed: false,
});

/// Enters an engine that is about to be used. Returns `false` after a shutdown: then nobody will close the
/// engine, so it has to be closed from the start.
pub(crate) fn enter(engine: &'static Engine) -> bool {
    let mut entered = lock(&ENTERED);
    let is_known = |known: &&Engine| known.name == engine.name;
    if !entered.closed && !entered.engines.iter().any(is_known) {
        entered.engines.push(engine);
    }
    !entered.closed
}

/// The engines that have been used.
pub(crate) fn entered() -> Vec<&'static Engine> {
    lock(&ENTERED).engines.clone()
}

/// Lets no engine enter from now on.
pub(crate) fn close() {
    lock(&ENTERED).closed = true;
}

/// Which engine runs a piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WorkKind {
    /// A future on the ambient thread.
    Async,
    /// A job of the thread pool.
    Thread,
    /// A call to a worker process.
    Cpu,
}

/// The state of a piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WorkState {
    /// Waiting for a thread, or for a worker process to start it.
    Queued,
    /// Running; an async task may be waiting for something.
    Running,
}

/// One piece of live work, as [`tasks`](crate::tasks) lists it.
///
/// # Examples
///
/// ```
/// use unsync::{WorkKind, WorkState};
///
/// let (promise, unfuture) = unsync::promise::<()>();
/// let waiting = unsync::spawn(unfuture);
/// let tasks = unsync::tasks();
/// assert!(tasks.iter().any(|task| task.kind == WorkKind::Async && task.started_at.line() > 0));
/// # let _ = WorkState::Running;
/// promise.set(());
/// assert!(waiting.result().is_ok());
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TaskInfo {
    /// Where it runs.
    pub kind: WorkKind,
    /// Whether it runs.
    pub state: WorkState,
    /// How long it has been running, or for a queued call how long it has been queued. `None` for a
    /// queued thread job. The age of an async task may be overstated by the time that some rounds of
    /// the run queue take.
    pub age: Option<Duration>,
    /// Where it was started.
    pub started_at: Origin,
    /// The function, for a call to a worker process.
    pub name: Option<&'static str>,
}

/// Counts of tasks, jobs, calls, threads and workers, as [`stats`](crate::stats) returns them.
///
/// # Examples
///
/// ```
/// let waiting = unsync::spawn(unsync::sleep(std::time::Duration::MAX));
/// unsync::spawn(async {}).result().unwrap(); // by now the first has started
/// assert!(unsync::stats().async_tasks >= 1);
/// waiting.cancel();
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Async tasks that have started and not ended.
    pub async_tasks: usize,
    /// Thread jobs waiting for a thread, including some that were cancelled meanwhile.
    pub jobs_queued: usize,
    /// Running thread jobs.
    pub jobs_running: usize,
    /// Pool threads, busy or idle.
    pub threads: usize,
    /// Calls waiting for a worker process.
    pub calls_queued: usize,
    /// Calls sent to a worker process, including those that it has not started, which
    /// [`tasks`](crate::tasks) lists as queued.
    pub calls_running: usize,
    /// Worker processes.
    pub workers: usize,
}
