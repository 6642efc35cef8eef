//! The thread pool: blocking work, on as many threads as it blocks.
//!
//! ```text
//!   thread(f) ──▶ queue ──▶ pool thread: take a job, run it, take the next; spin; park; retire
//!                   ▲
//!                   └ monitor: looks whether the queue moves; where it does not, the jobs block, and it adds
//!                              threads, twice as many each time
//! ```
//!
//! - **Threads** start at once while fewer are active than there are cores. Beyond that, more threads help
//!   only jobs that block, and trivial jobs finish sooner than a thread starts.
//! - **The monitor** tells the two apart. It is the first thread beyond the cores, and runs jobs like the
//!   others once there is nothing to watch.
//! - **The policy** says when to wake a thread and when to start one. It is pure: see `policy.rs`.
//! - **Limit**: 512 threads, not counting those that block in `result()`: what they wait for may
//!   be in the queue. Idle threads retire.
//! - **Queue**: no limit, as for `spawn`. If the system refuses a thread, the jobs wait for the threads that
//!   live; if there are none that can take a job, the jobs fail.

mod job;
mod policy;

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{cores, on_thread_start, settings, start_thread};
use crate::current::Current;
use crate::engine::{self, Engine, OnIdle, OnList, Stats, TaskInfo, WorkKind, WorkState};
use crate::error::{Error, Origin, discard, lock};
use crate::spin::Spin;
use crate::stop::Reason;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::thread::sleep;
use crate::sync::{Condvar, Instant, Mutex, MutexGuard, OnceLock, PoisonError};
use crate::unfuture::Unfuture;

use job::Job;
use policy::{Action, Counts, LONG, Monitor, Pace};

pub(crate) use job::{Closure, Culprit};

/// Runs a closure that may block on a thread of the pool. Called `spawn_blocking` in tokio.
///
/// The pool grows on demand, far past the number of cores, and shrinks again. A closure may wait for other
/// work of the pool: threads that block in [`result`](Unfuture::result) do not count against the limit. A
/// job costs an allocation and less than a microsecond; starting a thread for it costs more.
///
/// # Errors
///
/// The `Unfuture` resolves as [`ErrorKind::Panicked`](crate::ErrorKind) if the closure panics, as
/// [`ErrorKind::Os`](crate::ErrorKind) if the operating system refuses a thread and none is left to run the
/// closure, as [`ErrorKind::NotInitialised`](crate::ErrorKind) if the settings are invalid, and as
/// [`ErrorKind::Cancelled`](crate::ErrorKind), [`ErrorKind::TimedOut`](crate::ErrorKind) or
/// [`ErrorKind::ShutDown`](crate::ErrorKind) if it was stopped in time.
///
/// # Examples
///
/// ```
/// let text = unsync::thread(|| std::fs::read_to_string("Cargo.toml"));
/// assert!(text.result().unwrap().unwrap().contains("unsync"));
/// ```
///
/// Waiting for a child process:
///
/// ```
/// use std::process::{Command, Stdio};
///
/// let mut child = Command::new("whoami").stdout(Stdio::null()).spawn().unwrap();
/// let status = unsync::thread(move || child.wait());
/// assert!(status.result().unwrap().unwrap().success());
/// ```
#[track_caller]
pub fn thread<F, T>(closure: F) -> Unfuture<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    try_thread(Location::caller(), || Ok(closure()))
}

/// The same for a closure that gives a `Result`, whose error becomes the job's.
pub(crate) fn try_thread<F, T>(origin: Origin, closure: F) -> Unfuture<T>
where
    F: FnOnce() -> Result<T, Error> + Send + 'static,
    T: Send + 'static,
{
    let (unfuture, job) = prepare(origin, closure);
    submit(job);
    unfuture
}

/// A job that is not in the queue yet.
pub(crate) fn prepare<F, T>(origin: Origin, closure: F) -> (Unfuture<T>, Queued)
where
    F: FnOnce() -> Result<T, Error> + Send + 'static,
    T: Send + 'static,
{
    let job = Arc::new(Closure::new(closure, Culprit::Job, origin));
    (Unfuture::of(job.clone()), Queued { job, origin })
}

// -------------------------------------------------------------------------------------- the pool

static STATE: Mutex<State> = Mutex::new(State {
    queue: VecDeque::new(),
    cancelled: 0,
    stopping: 0,
    counts: Counts::new(),
    finished: 0,
    running: Vec::new(),
    free: Vec::new(),
    when_idle: Vec::new(),
});
/// Notified once for each idle thread that was claimed.
static CLAIMED: Condvar = Condvar::new();
/// Set under the lock by a shutdown, for good: all jobs count as cancelled then.
static CLOSED: AtomicBool = AtomicBool::new(false);
/// Whether a job is queued, to be read without the lock. Written when that changes and not for each job, which
/// would take its cache line from the thread that spins.
static QUEUED: AtomicBool = AtomicBool::new(false);

struct State {
    queue: VecDeque<Queued>,
    /// Jobs cancelled since the queue was last cleared of them. Some may have left the queue meanwhile, or were
    /// never in it.
    cancelled: usize,
    /// Threads that stop jobs. The jobs may have left the queue, and their closures are being dropped.
    stopping: usize,
    counts: Counts,
    /// Jobs done; from this the monitor sees whether the queue moves.
    finished: u64,
    /// Where the running jobs were started, and when they began; each in the place of its thread.
    running: Vec<Option<(Origin, Instant)>>,
    /// Places of threads that have ended.
    free: Vec<usize>,
    /// Called when the pool is idle. Until then, the callbacks of `drain`s that gave up stay here.
    when_idle: Vec<OnIdle>,
}

/// The origin is stored beside the job, so that no holder of the lock looks into the job: its memory is in
/// the cache of the core that made it, and fetching it takes longer than all the rest.
pub(crate) struct Queued {
    job: Arc<dyn Job>,
    origin: Origin,
}

type Guard = MutexGuard<'static, State>;

/// Capacity that the queue keeps; the memory of a larger burst is freed after it.
const QUEUE_KEPT: usize = 4096;

impl State {
    /// Whether no job is queued, running or being stopped; after a shutdown, whether no thread is left either.
    fn is_idle(&self) -> bool {
        let none_runs = match is_closed() {
            true => self.counts.threads == 0,
            false => self.running.iter().all(Option::is_none),
        };
        none_runs && self.queue.is_empty() && self.stopping == 0
    }

    /// Decides who takes the front of the queue.
    fn assign(&mut self) -> Action {
        self.counts.decide(self.queue.len())
    }
}

/// Queues a job. The job fails if the settings are invalid or the pool is closed.
pub(crate) fn submit(queued: Queued) {
    let mut state = lock(&STATE);
    if state.counts.limit == 0 {
        drop(state);
        if let Err(error) = enter() {
            return queued.job.refuse(error);
        }
        state = lock(&STATE);
    }
    if is_closed() {
        drop(state);
        return queued.job.refuse(shut_down());
    }
    state.queue.push_back(queued);
    if state.queue.len() == 1 {
        QUEUED.store(true, Ordering::Relaxed);
    }
    let action = state.assign();
    drop(state);
    carry_out(action);
}

/// Prepares the pool for its first job.
#[cold]
fn enter() -> Result<(), Error> {
    let (limit, cores) = (settings()?.threads(), cores());
    enter_engine();
    let mut state = lock(&STATE);
    (state.counts.limit, state.counts.cores) = (limit, cores);
    Ok(())
}

/// After a shutdown nobody would close the pool, so it is closed from the start.
fn enter_engine() {
    if !engine::enter(&ENGINE) {
        take_no_more();
    }
}

fn take_no_more() {
    let state = lock(&STATE);
    CLOSED.store(true, Ordering::Relaxed);
    drop(state);
}

pub(crate) fn is_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

fn shut_down() -> Error {
    Reason::ShutDown.error(Culprit::Job.name())
}

/// Called before a job is stopped, which drops its closure.
fn begin_stop() {
    lock(&STATE).stopping += 1;
}

/// Called after that. A job that was stopped before it ran is now empty. Once more than half of the queue may be
/// such jobs, they are removed. So they take no more memory than the others, and each costs no more than a look.
fn end_stop(is_empty: bool) {
    let mut state = lock(&STATE);
    state.stopping -= 1;
    state.cancelled += usize::from(is_empty);
    // A shutdown takes the whole queue and resolves its jobs, which all count as cancelled by then.
    if is_closed() || state.cancelled * 2 <= state.queue.len() {
        return drop(report_idle(state));
    }
    state.cancelled = 0;
    let mut cancelled = Vec::new();
    for _ in 0..state.queue.len() {
        match state.queue.pop_front() {
            Some(queued) if queued.job.is_cancelled() => cancelled.push(queued),
            Some(queued) => state.queue.push_back(queued),
            None => {}
        }
    }
    state.queue.shrink_to(QUEUE_KEPT);
    state.finished += cancelled.len() as u64;
    QUEUED.store(!state.queue.is_empty(), Ordering::Relaxed);
    drop(report_idle(state));
    // Each may be the last owner of what its job left.
    cancelled.into_iter().for_each(discard);
}

/// Does what was decided, without the lock; returns whether there is one more thread for the queue.
fn carry_out(action: Action) -> bool {
    match action {
        Action::Nothing => return false,
        Action::Wake => CLAIMED.notify_one(),
        Action::Start => return start(),
    }
    true
}

/// Starts a thread that is already counted; returns whether the operating system allowed it.
fn start() -> bool {
    static NUMBER: AtomicUsize = AtomicUsize::new(1);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed).to_string();
    let body = || {
        // The hook may wait for a job; meanwhile this thread does not count.
        Current::Pool { blocks, resumes }.set();
        on_thread_start();
        work();
        // Destructors of thread-locals may still ask for it.
        Current::Ordinary.set();
    };
    let started = start_thread(&number, Box::new(body));
    started.map_err(|error| refused(&error)).is_ok()
}

/// The operating system refused a thread. The jobs wait for those that live; if none of them can
/// ever take a job, they fail.
fn refused(error: &io::Error) {
    let mut state = lock(&STATE);
    state.counts.refused();
    if state.counts.threads <= state.counts.blocked {
        refuse_all(state, &|| {
            let code = error.raw_os_error();
            let source = code.map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
            Error::os("no thread could be started for a thread job", source)
        });
    } else if state.counts.idle > 0 {
        // One may have parked because this thread would have been one too many.
        let action = state.assign();
        drop(state);
        carry_out(action);
    }
}

/// Fails all queued jobs.
fn refuse_all(mut state: Guard, error: &dyn Fn() -> Error) {
    let queue = mem::take(&mut state.queue);
    QUEUED.store(false, Ordering::Relaxed);
    state.stopping += 1;
    drop(state);
    for Queued { job, .. } in queue {
        job.refuse(error());
        discard(job);
    }
    let mut state = lock(&STATE);
    state.stopping -= 1;
    // There may be no thread left to report it.
    drop(report_idle(state));
}

fn blocks() {
    let mut state = lock(&STATE);
    state.counts.blocked += 1;
    let action = state.assign();
    drop(state);
    carry_out(action);
}

fn resumes() {
    lock(&STATE).counts.blocked -= 1;
}

/// The life of a thread.
fn work() {
    let mut state = lock(&STATE);
    let place = state.free.pop().unwrap_or_else(|| {
        state.running.push(None);
        state.running.len() - 1
    });
    let mut state = serve(state, place);
    state.free.push(place);
    state.counts.threads -= 1;
    drop(report_idle(state));
}

/// Runs jobs until the thread is to end.
fn serve(mut state: Guard, place: usize) -> Guard {
    loop {
        let was_monitor = state.counts.monitor == Monitor::Wanted;
        if was_monitor {
            state = watch(state);
        }
        state = run_jobs(state, place);
        if is_closed() {
            return state;
        }
        // The monitor does not spin: it would be one thread too many again.
        if state.queue.is_empty() && !was_monitor && !state.counts.spinning {
            state.counts.spinning = true;
            drop(state);
            static SPIN: Spin = Spin::new();
            SPIN.attempt(|| QUEUED.load(Ordering::Relaxed).then_some(()));
            state = lock(&STATE);
            state.counts.spinning = false;
        }
        if state.queue.is_empty() || state.counts.is_exceeded() {
            state.counts.idle += 1;
            let keep_alive = settings().map_or(Duration::ZERO, |settings| settings.keep_alive);
            let unclaimed = |state: &mut State| state.counts.claimed == 0 && !is_closed();
            let woken = CLAIMED.wait_timeout_while(state, keep_alive, unclaimed);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
            if state.counts.claimed == 0 {
                state.counts.idle -= 1;
                return state;
            }
            state.counts.claimed -= 1;
        }
    }
}

/// Runs jobs until the queue is empty, the pool is closed, or enough other threads run its jobs.
fn run_jobs(mut state: Guard, place: usize) -> Guard {
    let mut now = Instant::now();
    while !is_closed() && !state.counts.is_exceeded() {
        let Some(Queued { job, origin }) = state.queue.pop_front() else {
            break;
        };
        if state.queue.is_empty() {
            QUEUED.store(false, Ordering::Relaxed);
        }
        let action = state.assign();
        state.running[place] = Some((origin, now));
        drop(state);
        carry_out(action);
        job.run();
        let took = now.elapsed();
        now += took;
        state = lock(&STATE);
        state.running[place] = None;
        state.finished += 1;
        // Not written for each job either.
        if state.counts.long && took < LONG {
            state.counts.long = false;
        }
    }
    if state.queue.is_empty() && state.queue.capacity() > QUEUE_KEPT {
        state.queue = VecDeque::new();
    }
    report_idle(state)
}

/// Calls everything in `when_idle` if the pool is idle.
fn report_idle(mut state: Guard) -> Guard {
    if state.when_idle.is_empty() || !state.is_idle() {
        return state;
    }
    let (waiting, finished) = (mem::take(&mut state.when_idle), state.finished);
    drop(state);
    engine::answer(waiting, finished);
    lock(&STATE)
}

/// The monitor adds threads while jobs wait and take long. It ends when the queue is empty, the pool is full,
/// or the operating system refuses a thread.
fn watch(mut state: Guard) -> Guard {
    state.counts.monitor = Monitor::Watching;
    let (mut pace, mut is_allowed) = (Pace::new(), true);
    while is_allowed && !is_closed() && !state.queue.is_empty() && state.counts.room() > 0 {
        let (finished, active, looked) = (state.finished, state.counts.active(), Instant::now());
        drop(state);
        sleep(pace.pause);
        state = lock(&STATE);
        let done = state.finished - finished;
        let mut batch = pace.learn(looked.elapsed(), active, done);
        state.counts.long = batch > 0;
        batch = batch.min(state.queue.len());
        while is_allowed && batch > 0 {
            let action = state.counts.reinforce();
            drop(state);
            is_allowed = carry_out(action);
            state = lock(&STATE);
            batch -= 1;
        }
    }
    state.counts.monitor = Monitor::Absent;
    state
}

const ENGINE: Engine = Engine {
    name: "thread jobs",
    count,
    list,
    when_idle,
    close,
};

/// Lists the jobs that are queued or running.
fn list(call: OnList) {
    let info = |origin, since: Option<Instant>| TaskInfo {
        kind: WorkKind::Thread,
        state: since.map_or(WorkState::Queued, |_| WorkState::Running),
        age: since.map(|since| since.elapsed()),
        started_at: origin,
        name: None,
    };
    let state = lock(&STATE);
    let running = state.running.iter().flatten();
    let running = running.map(|(origin, since)| info(origin, Some(*since)));
    let queued = state.queue.iter();
    let queued = queued.filter(|queued| !queued.job.is_cancelled());
    let mut jobs = Vec::new();
    running.for_each(|job| jobs.push(job));
    queued.for_each(|queued| jobs.push(info(queued.origin, None)));
    drop(state);
    call(jobs);
}

fn count(stats: &mut Stats) {
    let state = lock(&STATE);
    stats.jobs_queued = state.queue.len();
    stats.jobs_running = state.running.iter().flatten().count();
    stats.threads = state.counts.threads;
}

fn when_idle(call: OnIdle) {
    let mut state = lock(&STATE);
    state.when_idle.push(call);
    drop(report_idle(state));
}

/// Takes the jobs that wait elsewhere to be submitted.
static ELSEWHERE: OnceLock<fn() -> Vec<Queued>> = OnceLock::new();

/// A shutdown also refuses the jobs that `take` returns then.
pub(crate) fn also_refuse(take: fn() -> Vec<Queued>) {
    discard(ELSEWHERE.set(take));
    enter_engine();
}

/// Refuses queued jobs and later ones; calls `call` once the last thread has ended.
fn close(call: OnIdle) {
    take_no_more();
    let elsewhere = ELSEWHERE.get().map_or_else(Vec::new, |take| take());
    let mut state = lock(&STATE);
    state.queue.extend(elsewhere);
    state.when_idle.push(call);
    CLAIMED.notify_all();
    if state.queue.is_empty() {
        return drop(report_idle(state));
    }
    drop(state);
    // The destructors of the jobs may wait for what is closed next, or forever.
    let refuse = || refuse_all(lock(&STATE), &shut_down);
    if start_thread("end", Box::new(refuse)).is_err() {
        refuse();
    }
}
