//! The thread pool: blocking work, on as many threads as it blocks.
//!
//! ```text
//!   thread(f) ──▶ queue ──▶ worker thread: take a job, run it, take the next; look; park; retire
//!                   ▲
//!                   └ foreman: looks whether the queue moves; where it does not, the jobs block,
//!                              and it adds workers, twice as many each time
//! ```
//!
//! - **Worker threads** start at once while fewer are active than there are cores. Beyond that more
//!   hands only help jobs that block, and trivial jobs are finished sooner than a thread is started.
//! - **The foreman** is the one thread that tells the two apart. It is there only while jobs wait.
//! - **Limit**: 512 threads, not counting those that block in `result()`: what they wait for may
//!   stand in the queue. Idle threads retire.
//! - **Queue**: no limit, as for `spawn`. A job that no thread can be had for fails; one that merely
//!   waits for a thread stays.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::config::{Settings, cores, on_thread_start, settings, start_thread};
use crate::current::{self, Current};
use crate::engine::{self, Engine, OnIdle, OnList, Stats, TaskInfo, WorkKind, WorkState};
use crate::error::{Error, ErrorKind, Origin, discard, lock, wall};
use crate::slot::Slot;
use crate::spin::Spin;
use crate::unfuture::{Reason, Stop, Stopping, Unfuture, Work, cancelled};

/// Runs a closure that may block on a thread of the pool. Called `spawn_blocking` in tokio.
///
/// The pool grows on demand, far past the number of cores, and shrinks again. A closure that waits
/// for other work of the pool gets it: threads that block in [`result`](Unfuture::result) do not
/// count against the limit. A job costs an allocation and less than a microsecond, a thread that has to
/// be started for it some more.
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

// --------------------------------------------------------------------------------------- the job

/// A closure and the slot of its value, in one allocation.
pub(crate) struct Closure<F, T> {
    slot: Slot<Option<T>>,
    /// Whoever takes the closure out of it resolves the slot.
    stage: Mutex<Stage<F>>,
    /// Set when it was to be stopped and ran already.
    cancelled: AtomicBool,
    culprit: Culprit,
}

enum Stage<F> {
    Queued(F),
    /// It runs, or has run.
    Running,
    /// It will never run. It ends as this.
    Refused(ErrorKind),
}

/// What an error calls a job.
#[derive(Clone, Copy)]
pub(crate) enum Culprit {
    Job,
    PinnedCall,
}

impl Culprit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Culprit::Job => "thread job",
            Culprit::PinnedCall => "call of a pinned value",
        }
    }
}

impl<F, T> Closure<F, T> {
    pub(crate) fn new(closure: F, culprit: Culprit, origin: Origin) -> Closure<F, T> {
        Closure {
            slot: Slot::new(origin),
            stage: Mutex::new(Stage::Queued(closure)),
            cancelled: AtomicBool::new(false),
            culprit,
        }
    }

    /// Goes on to the next stage if the job is queued, and gives the closure; else the kind of error
    /// that it was refused with, if it was.
    fn take(&self, next: Stage<F>) -> Result<F, Option<ErrorKind>> {
        let mut stage = lock(&self.stage);
        match &*stage {
            Stage::Running => return Err(None),
            Stage::Refused(kind) => return Err(Some(*kind)),
            Stage::Queued(_) => {}
        }
        match mem::replace(&mut *stage, next) {
            Stage::Queued(closure) => Ok(closure),
            Stage::Running | Stage::Refused(_) => Err(None),
        }
    }

    /// Calls the closure, unless the job was refused.
    pub(crate) fn run_with(&self, call: impl FnOnce(F) -> Result<T, Error>) {
        if let Ok(closure) = self.take(Stage::Running) {
            self.slot.begin();
            let outcome = wall(|| call(closure)).unwrap_or_else(|payload| {
                Err(Error::panicked(self.culprit.name(), payload).started_at(self.slot.origin))
            });
            self.slot.finish(outcome);
        }
    }

    /// Resolves the job without running it. Fails if it runs or has run, or was refused before: then
    /// with the kind of that error.
    fn refuse_with(&self, error: Error) -> Result<(), Option<ErrorKind>> {
        let (kind, culprit) = (error.kind(), self.culprit.name());
        let closure = self.take(Stage::Refused(kind))?;
        let started_at = |error: Error| error.started_at(self.slot.origin);
        let outcome = match wall(|| drop(closure)) {
            Ok(()) => Err(error),
            Err(payload) => Err(started_at(Error::panicked(culprit, payload))),
        };
        let outcome = match kind {
            ErrorKind::Cancelled => cancelled(outcome, culprit),
            _ => outcome,
        };
        self.slot.finish(outcome.map_err(started_at));
        Ok(())
    }
}

impl<F, T> current::Job for Closure<F, T>
where
    F: Send,
    T: Send,
{
    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

trait Job: current::Job {
    fn run(self: Arc<Self>);
    /// Resolves the job without running it, if it is still queued.
    fn refuse(&self, error: Error);
    fn origin(&self) -> Origin;
}

impl<F, T> Job for Closure<F, T>
where
    F: FnOnce() -> Result<T, Error> + Send + 'static,
    T: Send + 'static,
{
    fn run(self: Arc<Self>) {
        let job = Arc::clone(&self);
        current::run(job, move || self.run_with(|closure| closure()));
    }

    fn refuse(&self, error: Error) {
        let _ = self.refuse_with(error);
    }

    fn origin(&self) -> Origin {
        self.slot.origin
    }
}

impl<F, T> Stop for Closure<F, T>
where
    F: Send + 'static,
    T: Send + 'static,
{
    /// Only a queued job can be stopped: a running thread cannot be killed.
    fn stop(self: Arc<Self>, reason: Reason) -> Stopping {
        self.cancelled.store(true, Ordering::Relaxed);
        match self.refuse_with(reason.error(self.culprit.name())) {
            Ok(()) => {
                POOL.clear_away();
                Stopping::Yes
            }
            Err(None) => Stopping::No,
            Err(Some(before)) if before == reason.kind() => Stopping::Yes,
            Err(Some(_)) => Stopping::Otherwise,
        }
    }

    fn running(&self) -> Option<(&'static str, Origin)> {
        (!self.slot.is_done()).then_some((self.culprit.name(), self.slot.origin))
    }

    fn poll_begun(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.slot.poll_begun(cx)
    }
}

impl<F, T> Work<T> for Closure<F, T>
where
    F: Send + 'static,
    T: Send + 'static,
{
    fn slot(&self) -> &Slot {
        &self.slot
    }
    fn take(&self) -> Option<Result<T, Error>> {
        self.slot.take()
    }
    fn stopper(self: Arc<Self>) -> Arc<dyn Stop> {
        self
    }
}

// -------------------------------------------------------------------------------------- the pool

static POOL: Pool = Pool::new();

struct Pool {
    state: Mutex<State>,
    /// Rung for idle workers, once for each that was claimed.
    work: Condvar,
    /// Rung for a resting foreman.
    watch: Condvar,
    /// The length of the queue, for those who look without the lock.
    queued: AtomicUsize,
}

struct State {
    queue: VecDeque<Queued>,
    /// Jobs that were stopped since the queue was last cleared of them; some may have had their turn.
    stopped: usize,
    /// Threads that live or are being started, the foreman among them.
    threads: usize,
    /// Parked and not claimed. Who claims one takes it off this count, under the same lock: so two
    /// jobs never count on the same thread.
    idle: usize,
    /// Claimed, and not awake yet.
    claimed: usize,
    /// Blocked in a wait of ours.
    blocked: usize,
    /// Whether a worker looks at the queue before it parks. One is enough.
    looking: bool,
    foreman: Foreman,
    /// Whether jobs took long of late: set by the foreman, unset by the first short job. While it is
    /// set an idle thread is woken for every job; else a flood of trivial jobs would wake them all,
    /// for each job anew.
    long: bool,
    /// Jobs done, for the foreman to see the queue move.
    finished: u64,
    /// Where the jobs that run were started, and when they began; each in the place of its thread.
    running: Vec<Option<(Origin, Instant)>>,
    /// Places of threads that have ended.
    free: Vec<usize>,
    /// Whether the other parts of the crate know of the pool.
    entered: bool,
    /// Set by a shutdown, for good.
    closed: bool,
    /// To be called when no job is queued or runs. Until then each `drain` that gave up is here.
    when_quiet: Vec<OnIdle>,
    /// To be called when no thread is left.
    when_empty: Vec<OnIdle>,
}

/// With the origin beside it, so that nobody who holds the lock looks into the job: its memory is
/// with the core that made it, and fetching it takes longer than all the rest.
struct Queued {
    job: Arc<dyn Job>,
    origin: Origin,
}

#[derive(Clone, Copy, PartialEq)]
enum Foreman {
    Absent,
    Resting,
    /// Set before it is started or woken.
    Watching,
}

/// What a thread of the pool is for.
#[derive(Clone, Copy, PartialEq)]
enum Duty {
    Work,
    Watch,
}

/// What is to be done when the lock is free again.
enum Order {
    Nothing,
    Wake,
    WakeForeman,
    Start(Duty),
}

/// A job that takes longer than this is worth another thread: starting one costs about as much.
const LONG: Duration = Duration::from_micros(100);
/// Room for jobs that is kept; the memory of a larger burst is given back after it.
const QUEUE_KEPT: usize = 4096;
/// A wait without an end, as std can do it.
const FAR: Duration = Duration::from_secs(1 << 30);
/// The longest time between two looks of the foreman.
const PACE_MAX: Duration = Duration::from_millis(2);

impl State {
    fn is_quiet(&self) -> bool {
        self.queue.is_empty() && self.running.iter().all(Option::is_none)
    }

    /// Threads that run jobs. The foreman runs none.
    fn workers(&self) -> usize {
        let foreman = usize::from(self.foreman != Foreman::Absent);
        self.threads.saturating_sub(foreman)
    }

    fn active(&self) -> usize {
        let looking = usize::from(self.looking);
        self.workers()
            .saturating_sub(self.blocked + self.idle + looking)
    }

    /// How many more may work at once: idle threads, and new ones up to the limit.
    fn room(&self) -> usize {
        let limit = settings().map_or(1, Settings::threads);
        self.idle + limit.saturating_sub(self.workers().saturating_sub(self.blocked))
    }

    /// Decides who takes care of the front of the queue, and books it.
    fn staff(&mut self) -> Order {
        if self.queue.len() <= usize::from(self.looking) {
            Order::Nothing
        } else if self.idle > 0 && (self.long || self.active() < cores()) {
            self.idle -= 1;
            self.claimed += 1;
            Order::Wake
        } else if self.active() < cores() && self.room() > 0 {
            self.threads += 1;
            Order::Start(Duty::Work)
        } else if self.foreman == Foreman::Resting && self.room() > 0 {
            self.foreman = Foreman::Watching;
            Order::WakeForeman
        } else if self.foreman == Foreman::Absent && self.room() > 0 {
            self.foreman = Foreman::Watching;
            self.threads += 1;
            Order::Start(Duty::Watch)
        } else {
            Order::Nothing
        }
    }
}

impl Pool {
    const fn new() -> Pool {
        Pool {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                stopped: 0,
                threads: 0,
                idle: 0,
                claimed: 0,
                blocked: 0,
                looking: false,
                foreman: Foreman::Absent,
                long: false,
                finished: 0,
                running: Vec::new(),
                free: Vec::new(),
                entered: false,
                closed: false,
                when_quiet: Vec::new(),
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
            let open = engine::enter(&ENGINE);
            state = self.lock();
            state.entered = true;
            state.closed |= !open;
        }
        if state.closed {
            drop(state);
            return job.refuse(Reason::ShutDown.error(Culprit::Job.name()));
        }
        state.queue.push_back(Queued { job, origin });
        self.queued.store(state.queue.len(), Ordering::Relaxed);
        let order = state.staff();
        drop(state);
        self.carry_out(order);
    }

    /// A queued job was stopped, and is but a husk. Once half of the queue may be husks they are thrown
    /// out, so that they take no more memory than the others, and each costs no more than a look.
    fn clear_away(&self) {
        let mut state = self.lock();
        state.stopped += 1;
        if state.stopped * 2 <= state.queue.len() {
            return;
        }
        state.stopped = 0;
        let all = mem::take(&mut state.queue).into_iter();
        let (husks, left): (VecDeque<_>, _) = all.partition(|queued| queued.job.is_cancelled());
        state.queue = left;
        state.finished += husks.len() as u64;
        self.queued.store(state.queue.len(), Ordering::Relaxed);
        drop(self.tell(state));
        // Each may be the last to hold what its job left.
        husks.into_iter().for_each(discard);
    }

    fn carry_out(&'static self, order: Order) {
        match order {
            Order::Nothing => {}
            Order::Wake => self.work.notify_one(),
            Order::WakeForeman => self.watch.notify_one(),
            Order::Start(duty) => {
                self.start(duty);
            }
        }
    }

    /// Starts a thread that is already counted; says whether there is one.
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
                Duty::Watch => self.watch(),
            }
            // Thread-locals may ask for it that outlive this one's.
            Current::Ordinary.set();
        };
        match start_thread(&number, Box::new(body)) {
            Ok(()) => true,
            Err(error) => {
                self.refused(duty, &error);
                false
            }
        }
    }

    /// The operating system refused a thread. The jobs wait for those that live; if none of them can
    /// ever take a job, they fail.
    fn refused(&self, duty: Duty, error: &io::Error) {
        let mut state = self.lock();
        state.threads -= 1;
        if duty == Duty::Watch {
            state.foreman = Foreman::Absent;
        }
        if state.foreman == Foreman::Resting {
            // It will find that there are no others to be had, and step down.
            state.foreman = Foreman::Watching;
            self.watch.notify_one();
        }
        let somebody = state.threads > state.blocked;
        let stranded = if somebody {
            VecDeque::new()
        } else {
            mem::take(&mut state.queue)
        };
        self.queued.store(state.queue.len(), Ordering::Relaxed);
        drop(state);
        for Queued { job, .. } in stranded {
            let source = io::Error::new(error.kind(), error.to_string());
            job.refuse(Error::os(
                "no thread could be started for a thread job",
                source,
            ));
            discard(job);
        }
        // Nobody else may be left to tell.
        drop(self.tell(self.lock()));
    }

    fn blocks(&'static self) {
        let mut state = self.lock();
        state.blocked += 1;
        let order = state.staff();
        drop(state);
        self.carry_out(order);
    }

    fn resumes(&self) {
        self.lock().blocked -= 1;
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
        state.threads -= 1;
        drop(self.tell(state));
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
                let order = state.staff();
                state.running[place] = Some((origin, now));
                drop(state);
                self.carry_out(order);
                job.run();
                let took = now.elapsed();
                now += took;
                state = self.lock();
                state.running[place] = None;
                state.finished += 1;
                state.long &= took >= LONG;
                continue;
            }
            if state.queue.capacity() > QUEUE_KEPT {
                state.queue = VecDeque::new();
            }
            state = self.tell(state);
            if state.closed {
                return state;
            }
            if !state.looking {
                state.looking = true;
                drop(state);
                static SPIN: Spin = Spin::new();
                SPIN.attempt(|| (self.queued.load(Ordering::Relaxed) > 0).then_some(()));
                state = self.lock();
                state.looking = false;
            }
            if state.queue.is_empty() {
                match self.idle(state) {
                    Ok(claimed) => state = claimed,
                    Err(retiring) => return retiring,
                }
            }
            now = Instant::now();
        }
    }

    /// Parks until claimed; an error when the thread is to retire.
    fn idle<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
    ) -> Result<MutexGuard<'a, State>, MutexGuard<'a, State>> {
        let retires = Instant::now().checked_add(keep_alive());
        state.idle += 1;
        loop {
            let now = Instant::now();
            let left = retires.map_or(FAR, |at| at.saturating_duration_since(now));
            if state.claimed > 0 {
                state.claimed -= 1;
                return Ok(state);
            }
            if state.closed || left.is_zero() {
                state.idle -= 1;
                return Err(state);
            }
            let woken = self.work.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Tells those who wait for a state that is reached.
    fn tell<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let mut told = Vec::new();
        if !state.when_quiet.is_empty() && state.is_quiet() {
            told.append(&mut state.when_quiet);
        }
        if state.threads == 0 {
            told.append(&mut state.when_empty);
        }
        if told.is_empty() {
            return state;
        }
        let works = state.finished;
        drop(state);
        told.into_iter().for_each(|call| call(works));
        self.lock()
    }

    /// The life of the foreman.
    fn watch(&'static self) {
        let mut state = self.lock();
        loop {
            let alone;
            (state, alone) = self.oversee(state);
            if alone {
                // The operating system gives no other thread: this one lends a hand.
                state.foreman = Foreman::Absent;
                drop(state);
                return self.work();
            }
            state.foreman = Foreman::Resting;
            let rest = self
                .watch
                .wait_timeout_while(state, keep_alive().min(FAR), |state| {
                    state.foreman == Foreman::Resting && !state.closed
                });
            state = rest.unwrap_or_else(PoisonError::into_inner).0;
            if state.foreman == Foreman::Resting {
                state.foreman = Foreman::Absent;
                state.threads -= 1;
                drop(self.tell(state));
                return;
            }
        }
    }

    /// Adds workers while jobs wait and take long. Ends when the queue is empty or the pool is full,
    /// and, which it says, when the operating system refused a thread.
    fn oversee(
        &'static self,
        mut state: MutexGuard<'static, State>,
    ) -> (MutexGuard<'static, State>, bool) {
        let (mut pace, mut crew) = (LONG, 1);
        while !state.queue.is_empty() && state.room() > 0 {
            let (finished, active, looked) = (state.finished, state.active(), Instant::now());
            let woken = self.watch.wait_timeout(state, pace);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
            let done = u32::try_from(state.finished - finished).unwrap_or(u32::MAX);
            let spent = looked.elapsed() * u32::try_from(active).unwrap_or(u32::MAX);
            state.long = spent >= LONG.saturating_mul(done);
            if !state.long {
                // More threads would only be in each other's way.
                (pace, crew) = ((pace * 2).min(PACE_MAX), 1);
                continue;
            }
            pace = LONG;
            for _ in 0..crew.min(state.queue.len()) {
                if state.room() == 0 {
                    break;
                }
                if state.idle > 0 {
                    state.idle -= 1;
                    state.claimed += 1;
                    self.work.notify_one();
                    continue;
                }
                state.threads += 1;
                drop(state);
                let started = self.start(Duty::Work);
                state = self.lock();
                if !started {
                    return (state, true);
                }
            }
            crew = crew.saturating_mul(2);
        }
        (state, false)
    }
}

const ENGINE: Engine = Engine {
    name: "thread jobs",
    count,
    list,
    when_idle: when_quiet,
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
    stats.threads = state.workers();
}

/// Calls once no job is queued or runs.
fn when_quiet(call: OnIdle) {
    let mut state = POOL.lock();
    state.when_quiet.push(call);
    drop(POOL.tell(state));
}

/// Refuses what is queued and what comes; calls once the last thread has ended.
fn close(call: OnIdle) {
    let mut state = POOL.lock();
    state.closed = true;
    state.when_empty.push(call);
    let queue = mem::take(&mut state.queue);
    POOL.queued.store(0, Ordering::Relaxed);
    drop(POOL.tell(state));
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
