//! The thread pool: blocking work, on as many threads as it blocks.
//!
//! ```text
//!   thread(f) ──▶ queue ──▶ worker thread: take a job, run it, take the next; spin; park; retire
//!                   ▲
//!                   └ monitor: looks whether the queue moves; where it does not, the jobs block,
//!                              and it adds workers, twice as many each time
//! ```
//!
//! - **Worker threads** start at once while fewer are active than there are cores. Beyond that more
//!   threads only help jobs that block, and trivial jobs are finished sooner than a thread is started.
//! - **The monitor** is the one thread that tells the two apart. It is there only while jobs wait.
//! - **The policy** says when to wake a thread and when to start one. It is pure: see `policy.rs`.
//! - **Limit**: 512 threads, not counting those that block in `result()`: what they wait for may
//!   be in the queue. Idle threads retire.
//! - **Queue**: no limit, as for `spawn`. If no thread can be started for a job, it fails; if it only has to
//!   wait for one, it stays.

mod job;
mod policy;

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{THREADS, cores, on_thread_start, settings, start_thread};
use crate::current::Current;
use crate::engine::{self, Engine, OnIdle, OnList, Stats, TaskInfo, WorkKind, WorkState};
use crate::error::{Error, Origin, discard, lock};
use crate::spin::Spin;
use crate::stop::Reason;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Condvar, Instant, Mutex, MutexGuard, PoisonError};
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
/// [`ErrorKind::Os`](crate::ErrorKind) if the operating system refuses a thread and none is left to
/// run the closure, as [`ErrorKind::NotInitialised`](crate::ErrorKind) if the settings make no sense, and
/// as [`ErrorKind::Cancelled`](crate::ErrorKind), [`ErrorKind::TimedOut`](crate::ErrorKind) or
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
    thread_at(Location::caller(), closure)
}

pub(crate) fn thread_at<F, T>(origin: Origin, closure: F) -> Unfuture<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    try_thread(origin, || Ok(closure()))
}

/// The same for a closure that gives a `Result`: its error is the job's.
pub(crate) fn try_thread<F, T>(origin: Origin, closure: F) -> Unfuture<T>
where
    F: FnOnce() -> Result<T, Error> + Send + 'static,
    T: Send + 'static,
{
    let (job, prepared) = prepare(origin, closure);
    prepared.submit();
    job
}

/// A job, and what queues it.
pub(crate) fn prepare<F, T>(origin: Origin, closure: F) -> (Unfuture<T>, Prepared)
where
    F: FnOnce() -> Result<T, Error> + Send + 'static,
    T: Send + 'static,
{
    let job = Arc::new(Closure::new(closure, Culprit::Job, origin));
    (Unfuture::of(job.clone()), Prepared(job))
}

/// A job that is not in the queue yet.
pub(crate) struct Prepared(Arc<dyn Job>);

impl Prepared {
    pub(crate) fn submit(self) {
        match settings() {
            Ok(_) => POOL.submit(self.0),
            Err(error) => self.0.refuse(error),
        }
    }
}

// -------------------------------------------------------------------------------------- the pool

static POOL: Pool = Pool::new();

struct Pool {
    state: Mutex<State>,
    /// Notified for idle workers, once for each that was claimed.
    work: Condvar,
    /// Notified for a resting monitor.
    watch: Condvar,
    /// The length of the queue, to be read without the lock.
    queued: AtomicUsize,
}

struct State {
    queue: VecDeque<Queued>,
    /// Jobs cancelled since the queue was last cleared of them; some may have left it meanwhile.
    cancelled: usize,
    counts: Counts,
    /// Jobs done, by which the monitor sees the queue move.
    finished: u64,
    /// Where the running jobs were started, and when they began; each in the place of its thread.
    running: Vec<Option<(Origin, Instant)>>,
    /// Places of threads that have ended.
    free: Vec<usize>,
    /// Set at the first use.
    entered: bool,
    /// Set by a shutdown, for good.
    closed: bool,
    /// Called when no job is queued or runs. Until then each `drain` that gave up is here.
    when_idle: Vec<OnIdle>,
    /// Called when no thread is left.
    when_empty: Vec<OnIdle>,
}

/// The origin lies beside the job, so that nobody who holds the lock looks into the job: its memory is
/// in the cache of the core that made it, and fetching it takes longer than all the rest.
struct Queued {
    job: Arc<dyn Job>,
    origin: Origin,
}

/// What a thread of the pool is for.
#[derive(Clone, Copy, PartialEq)]
enum Duty {
    Work,
    Monitor,
}

/// Room for jobs that is kept; the memory of a larger burst is freed after it.
const QUEUE_KEPT: usize = 4096;
/// The longest wait that std can do on every platform.
const FAR: Duration = Duration::from_secs(1 << 30);

impl State {
    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.running.iter().all(Option::is_none)
    }

    /// Decides who takes the front of the queue.
    fn assign(&mut self) -> Action {
        let action = policy::decide(&self.counts, self.queue.len());
        self.counts.book(action);
        action
    }
}

impl Pool {
    const fn new() -> Pool {
        Pool {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                cancelled: 0,
                counts: Counts::new(),
                finished: 0,
                running: Vec::new(),
                free: Vec::new(),
                entered: false,
                closed: false,
                when_idle: Vec::new(),
                when_empty: Vec::new(),
            }),
            work: Condvar::new(),
            watch: Condvar::new(),
            queued: AtomicUsize::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn submit(&'static self, job: Arc<dyn Job>) {
        let origin = job.origin();
        let mut state = self.lock();
        if !state.entered {
            drop(state);
            self.enter();
            state = self.lock();
        }
        if state.closed {
            drop(state);
            return job.refuse(Reason::ShutDown.error(Culprit::Job.name()));
        }
        state.queue.push_back(Queued { job, origin });
        self.queued.store(state.queue.len(), Ordering::Relaxed);
        let action = state.assign();
        drop(state);
        self.carry_out(action);
    }

    #[cold]
    fn enter(&self) {
        let open = engine::enter(&ENGINE);
        let limit = settings().map_or(1, |settings| settings.threads.unwrap_or(THREADS));
        let cores = cores();
        let mut state = self.lock();
        state.entered = true;
        state.closed |= !open;
        (state.counts.limit, state.counts.cores) = (limit, cores);
    }

    /// A queued job was cancelled, and is empty now. Once half of the queue may be such jobs they are thrown
    /// out: so they take no more memory than the others, and each costs no more than a look.
    fn clear_cancelled(&self) {
        let mut state = self.lock();
        state.cancelled += 1;
        if state.cancelled * 2 <= state.queue.len() {
            return;
        }
        state.cancelled = 0;
        let all = mem::take(&mut state.queue).into_iter();
        let (cancelled, left): (VecDeque<_>, _) = all.partition(|queued| queued.job.is_cancelled());
        state.queue = left;
        state.finished += cancelled.len() as u64;
        self.queued.store(state.queue.len(), Ordering::Relaxed);
        drop(self.report_idle(state));
        // Each may be the last to hold what its job left.
        cancelled.into_iter().for_each(discard);
    }

    /// Does what was decided, without the lock; says whether the operating system allowed it.
    fn carry_out(&'static self, action: Action) -> bool {
        match action {
            Action::Nothing => {}
            Action::Wake => self.work.notify_one(),
            Action::WakeMonitor => self.watch.notify_one(),
            Action::Start => return self.start(Duty::Work),
            Action::StartMonitor => return self.start(Duty::Monitor),
        }
        true
    }

    /// Starts a thread that is already counted.
    fn start(&'static self, duty: Duty) -> bool {
        static NUMBER: AtomicUsize = AtomicUsize::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed).to_string();
        let body = move || {
            // The hook may wait for a job: this thread does not count meanwhile.
            let pool = Current::Pool {
                blocks: || POOL.blocks(),
                resumes: || POOL.resumes(),
            };
            pool.set();
            on_thread_start();
            match duty {
                Duty::Work => self.work(),
                Duty::Monitor => self.monitor(),
            }
            // Thread-locals may ask for it that outlive this one's.
            Current::Ordinary.set();
        };
        let started = start_thread(&number, Box::new(body));
        if let Err(error) = &started {
            self.refused(duty, error);
        }
        started.is_ok()
    }

    /// The operating system refused a thread. The jobs wait for those that live; if none of them can
    /// ever take a job, they fail.
    fn refused(&self, duty: Duty, error: &io::Error) {
        let mut state = self.lock();
        let counts = &mut state.counts;
        counts.threads -= 1;
        if duty == Duty::Monitor {
            counts.monitor = Monitor::Absent;
        }
        if counts.monitor == Monitor::Resting {
            // It will find that no other thread can be started, and run jobs itself.
            counts.monitor = Monitor::Watching;
            self.watch.notify_one();
        }
        let stranded = match counts.threads > counts.blocked {
            true => VecDeque::new(),
            false => mem::take(&mut state.queue),
        };
        self.queued.store(state.queue.len(), Ordering::Relaxed);
        drop(state);
        for Queued { job, .. } in stranded {
            let source = io::Error::new(error.kind(), error.to_string());
            let text = "no thread could be started for a thread job";
            job.refuse(Error::os(text, source));
            discard(job);
        }
        // There may be no other thread left to do it.
        drop(self.report_idle(self.lock()));
    }

    fn blocks(&'static self) {
        let mut state = self.lock();
        state.counts.blocked += 1;
        let action = state.assign();
        drop(state);
        self.carry_out(action);
    }

    fn resumes(&self) {
        self.lock().counts.blocked -= 1;
    }

    /// The life of a worker thread.
    fn work(&'static self) {
        let mut state = self.lock();
        let place = state.free.pop().unwrap_or_else(|| {
            state.running.push(None);
            state.running.len() - 1
        });
        let mut state = self.serve(state, place);
        state.free.push(place);
        state.counts.threads -= 1;
        drop(self.report_idle(state));
    }

    /// Runs jobs until the thread is to end.
    fn serve(
        &'static self,
        mut state: MutexGuard<'static, State>,
        place: usize,
    ) -> MutexGuard<'static, State> {
        let mut now = Instant::now();
        loop {
            if let Some(Queued { job, origin }) = state.queue.pop_front() {
                self.queued.store(state.queue.len(), Ordering::Relaxed);
                let action = state.assign();
                state.running[place] = Some((origin, now));
                drop(state);
                self.carry_out(action);
                job.run();
                let took = now.elapsed();
                now += took;
                state = self.lock();
                state.running[place] = None;
                state.finished += 1;
                state.counts.long &= took >= LONG;
                continue;
            }
            if state.queue.capacity() > QUEUE_KEPT {
                state.queue = VecDeque::new();
            }
            state = self.report_idle(state);
            if state.closed {
                return state;
            }
            if !state.counts.spinning {
                state.counts.spinning = true;
                drop(state);
                static SPIN: Spin = Spin::new();
                SPIN.attempt(|| (self.queued.load(Ordering::Relaxed) > 0).then_some(()));
                state = self.lock();
                state.counts.spinning = false;
            }
            if state.queue.is_empty() {
                match self.park(state) {
                    Ok(claimed) => state = claimed,
                    Err(retiring) => return retiring,
                }
            }
            now = Instant::now();
        }
    }

    /// Parks until claimed; an error when the thread is to retire.
    fn park<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
    ) -> Result<MutexGuard<'a, State>, MutexGuard<'a, State>> {
        let retires = Instant::now().checked_add(keep_alive());
        state.counts.idle += 1;
        loop {
            let now = Instant::now();
            let left = retires.map_or(FAR, |at| at.saturating_duration_since(now));
            if state.counts.claimed > 0 {
                state.counts.claimed -= 1;
                return Ok(state);
            }
            if state.closed || left.is_zero() {
                state.counts.idle -= 1;
                return Err(state);
            }
            let woken = self.work.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Calls those who wait for the pool to be idle or empty, if it is.
    fn report_idle<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let mut waiting = Vec::new();
        if !state.when_idle.is_empty() && state.is_idle() {
            waiting.append(&mut state.when_idle);
        }
        if state.counts.threads == 0 {
            waiting.append(&mut state.when_empty);
        }
        if waiting.is_empty() {
            return state;
        }
        let finished = state.finished;
        drop(state);
        waiting.into_iter().for_each(|call| call(finished));
        self.lock()
    }

    /// The life of the monitor.
    fn monitor(&'static self) {
        let mut state = self.lock();
        loop {
            let is_alone;
            (state, is_alone) = self.add_workers(state);
            if is_alone {
                // The operating system refuses another thread: this one runs jobs itself.
                state.counts.monitor = Monitor::Absent;
                drop(state);
                return self.work();
            }
            state.counts.monitor = Monitor::Resting;
            let rest = keep_alive().min(FAR);
            let rested = self.watch.wait_timeout_while(state, rest, |state| {
                state.counts.monitor == Monitor::Resting && !state.closed
            });
            state = rested.unwrap_or_else(PoisonError::into_inner).0;
            if state.counts.monitor == Monitor::Resting {
                state.counts.monitor = Monitor::Absent;
                state.counts.threads -= 1;
                drop(self.report_idle(state));
                return;
            }
        }
    }

    /// Adds workers while jobs wait and take long. Ends when the queue is empty or the pool is full,
    /// and, which it says, when the operating system refused a thread.
    fn add_workers(
        &'static self,
        mut state: MutexGuard<'static, State>,
    ) -> (MutexGuard<'static, State>, bool) {
        let mut pace = Pace::new();
        while !state.queue.is_empty() && state.counts.room() > 0 {
            let (finished, active, looked) =
                (state.finished, state.counts.active(), Instant::now());
            let woken = self.watch.wait_timeout(state, pace.pause);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
            let done = state.finished - finished;
            let batch = pace.learn(looked.elapsed(), active, done);
            state.counts.long = batch > 0;
            for _ in 0..batch.min(state.queue.len()) {
                let action = policy::reinforce(&state.counts);
                if action == Action::Nothing {
                    break;
                }
                state.counts.book(action);
                drop(state);
                let is_done = self.carry_out(action);
                state = self.lock();
                if !is_done {
                    return (state, true);
                }
            }
        }
        (state, false)
    }
}

const ENGINE: Engine = Engine {
    name: "thread jobs",
    count,
    list,
    when_idle,
    close,
};

/// Lists the jobs that are queued or run.
fn list(call: OnList) {
    let info = |origin: Origin, since: Option<Instant>| TaskInfo {
        kind: WorkKind::Thread,
        state: if since.is_some() {
            WorkState::Running
        } else {
            WorkState::Queued
        },
        age: since.map(|since| since.elapsed()),
        started_at: origin,
        name: None,
    };
    let state = POOL.lock();
    let running = state.running.iter().flatten();
    let queued = state.queue.iter();
    let queued = queued.filter(|queued| !queued.job.is_cancelled());
    let jobs = running
        .map(|(origin, since)| info(origin, Some(*since)))
        .chain(queued.map(|queued| info(queued.origin, None)))
        .collect();
    drop(state);
    call(jobs);
}

fn count(stats: &mut Stats) {
    let state = POOL.lock();
    stats.jobs_queued = state.queue.len();
    stats.jobs_running = state.running.iter().flatten().count();
    stats.threads = state.counts.workers();
}

/// Calls once no job is queued or runs.
fn when_idle(call: OnIdle) {
    let mut state = POOL.lock();
    state.when_idle.push(call);
    drop(POOL.report_idle(state));
}

/// Refuses what is queued and what comes; calls once the last thread has ended.
fn close(call: OnIdle) {
    let mut state = POOL.lock();
    state.closed = true;
    state.when_empty.push(call);
    let queue = mem::take(&mut state.queue);
    POOL.queued.store(0, Ordering::Relaxed);
    drop(POOL.report_idle(state));
    POOL.work.notify_all();
    POOL.watch.notify_all();
    for Queued { job, .. } in queue {
        job.refuse(Reason::ShutDown.error(Culprit::Job.name()));
        discard(job);
    }
}

fn keep_alive() -> Duration {
    settings().map_or(Duration::ZERO, |settings| settings.keep_alive)
}
