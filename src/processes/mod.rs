//! The process pool: CPU-bound work in processes that can crash, hang and be killed.
//!
//! The walk of a call, from `cpu(f, args)` to its result:
//!
//! ```text
//!   cpu ──▶ queue ──assign──▶ in flight at a worker ──link──▶ worker process
//!             ▲                      │                            │
//!             └── returned, or the ──┘◀── Start, Done, Returned ──┘
//!                 worker died before        read by the worker's reader thread
//!                 `Start`
//! ```
//!
//! 1. [`call`] encodes the arguments into a frame and submits the call to the scheduler.
//! 2. The scheduler assigns it to a worker with room, or asks for one more worker. It decides and does
//!    nothing: [`apply`] locks it, feeds it an event, unlocks, and carries out the effects. Every event takes
//!    this way, whichever thread it happens on.
//! 3. The frame is written to the link by the thread on which the event happened. That never blocks for long:
//!    small frames are limited to what a link holds, and a large one is written by the reader thread, to a
//!    worker that is idle and does nothing but read.
//! 4. The worker acknowledges the start of the call and runs it. If another call takes long there, it returns
//!    the call, and the scheduler assigns it again.
//! 5. The reader thread of the worker reads `Done`, feeds it to the scheduler, and resolves the call. If the
//!    link ends instead, it reaps the worker: a call that had not started goes back to its place in the
//!    queue, one that ran fails and never runs again.
//! 6. The supervisor, one thread for all workers, feeds the scheduler the time: it kills for calls that were
//!    stopped, looks after frozen workers, and retires idle ones.

mod beside;
mod buffers;
mod frame;
mod handshake;
mod procfs;
pub(crate) mod registry;
mod report;
mod scheduler;
mod supervisor;
mod transport;
pub(crate) mod wire;
pub(crate) mod worker;

use std::any::type_name;
use std::mem;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::config::{Settings, settings};
use crate::engine::{self, Engine, OnIdle, OnList, Stats, TaskInfo, WorkKind, WorkState};
use crate::error::{Error, ErrorKind, Origin, discard, lock, wall};
use crate::progress::{Progress, Speaker};
use crate::slot::Slot;
use crate::unfuture::{Fate, Reason, Stop, Stopping, Unfuture, Work, cancelled};

use beside::beside;
use frame::Kind;
use scheduler::{FRAME_OVERHEAD, Limits, Outcome, State};
use supervisor::Process;
use wire::encode_within;
use worker::{Ending, PanicReport};

pub use registry::Entrypoint;
pub(crate) use transport::log;
pub use wire::Wire;
pub use worker::{init, is_worker, progress};

// --------------------------------------------------------------------------------------- the pool

struct Pool {
    state: State<QueuedCall, Arc<Process>>,
    /// To be called when no call is queued or in flight. Until then each `drain` that gave up is here.
    when_quiet: Vec<OnIdle>,
    /// To be called when no worker is left.
    when_empty: Vec<OnIdle>,
    /// Whether there is a supervisor thread. Left by it when there is nothing to look after.
    supervised: bool,
    /// Reader threads. The last one stands in for the supervisor if the system refuses that thread.
    readers: usize,
}

static POOL: OnceLock<Mutex<Pool>> = OnceLock::new();

/// The pool, which knows the settings from its first use on.
fn pool() -> &'static Mutex<Pool> {
    POOL.get_or_init(|| {
        // Without settings no call can be made.
        let settings = settings().ok();
        let mut state = State::new(Limits {
            processes: settings.map_or(1, Settings::processes),
            calls_per_worker: settings.and_then(|settings| settings.calls_per_worker),
            keep_alive: settings.map_or(Duration::ZERO, |settings| settings.keep_alive),
            cancel_grace: settings.map_or(Duration::ZERO, |settings| settings.cancel_grace),
        });
        if !engine::enter(&ENGINE) {
            state.close(Instant::now());
        }
        Mutex::new(Pool {
            state,
            when_quiet: Vec::new(),
            when_empty: Vec::new(),
            supervised: false,
            readers: 0,
        })
    })
}

/// Feeds an event to the scheduler, and carries out what follows from it: the only way in. `resolve` resolves
/// the calls. Gives how many there were, for [`settle`].
fn apply(
    event: &mut dyn FnMut(&mut Pool, Instant),
    resolve: &mut dyn FnMut(&QueuedCall, Outcome),
) -> usize {
    let mut pool = lock(pool());
    let now = Instant::now();
    event(&mut pool, now);
    let effects = pool.state.schedule(now);
    let mut waiting = Vec::new();
    if effects.quiet {
        waiting.append(&mut pool.when_quiet);
    }
    if effects.empty {
        waiting.append(&mut pool.when_empty);
    }
    let accepted = pool.state.accepted();
    let wakes = pool.supervised && (effects.wake_supervisor || effects.empty);
    let starts = !pool.supervised && pool.state.next_deadline().is_some();
    pool.supervised |= starts;
    drop(pool);
    if wakes {
        supervisor::wake();
    } else if starts {
        supervisor::start();
    }
    for (process, outbox) in effects.sends {
        process.send(outbox);
    }
    effects.kills.iter().for_each(|process| process.kill());
    effects
        .retirements
        .iter()
        .for_each(|process| process.retire());
    effects.probes.iter().for_each(|process| process.probe());
    effects.spawns.into_iter().for_each(supervisor::spawn);
    for call in effects.begun {
        // Its frame is of no more use.
        buffers::recycle(&mut call.take_frame());
        call.begin();
    }
    let resolutions = effects.resolutions.len();
    for (call, outcome) in effects.resolutions {
        resolve(&call, outcome);
    }
    waiting.into_iter().for_each(|call| call(accepted));
    resolutions
}

/// Tells the scheduler that so many calls are resolved.
fn settle(mut resolved: usize) {
    while resolved > 0 {
        resolved = apply(&mut |pool, _| pool.state.resolved(resolved), &mut stop);
    }
}

/// Feeds an event that makes no call succeed or fail, but may stop some.
fn update(mut event: impl FnMut(&mut Pool, Instant)) {
    settle(apply(&mut event, &mut stop));
}

/// Resolves a call that was stopped.
fn stop(call: &QueuedCall, outcome: Outcome) {
    let (reason, ran) = match outcome {
        Outcome::Stopped { reason, ran } => (reason, ran),
        // Only a worker's own thread hears of these.
        Outcome::Done | Outcome::Lost { .. } | Outcome::Unstartable => (Reason::Cancelled, None),
    };
    call.fail(report::stopped(call.name(), reason, ran, ""));
}

/// Starts worker processes up to the limit, so that the first calls need not wait for them.
///
/// Returns at once. Nothing happens in a worker, or in a program that cannot have any.
pub fn warm() {
    if worker::setup().is_some() && !is_worker() && settings().is_ok() {
        update(|pool, now| pool.state.warm(now));
    }
}

const ENGINE: Engine = Engine {
    name: "worker processes",
    count,
    list,
    when_idle: when_quiet,
    close,
};

/// Lists the calls that are queued or in flight.
fn list(on_list: OnList) {
    let info = |(call, started): (&QueuedCall, Option<Instant>)| TaskInfo {
        kind: WorkKind::Cpu,
        state: match started {
            Some(_) => WorkState::Running,
            None => WorkState::Queued,
        },
        age: Some(started.unwrap_or(call.queued).elapsed()),
        started_at: call.origin(),
        name: Some(call.name()),
    };
    let calls = lock(pool()).state.calls().map(info).collect();
    on_list(calls);
}

fn count(stats: &mut Stats) {
    let counts = lock(pool()).state.counts();
    (stats.calls_queued, stats.calls_running, stats.workers) = counts;
}

/// Calls once no call is queued or in flight.
fn when_quiet(call: OnIdle) {
    let mut call = Some(call);
    update(|pool, _| pool.when_quiet.extend(call.take()));
}

/// Stops all calls and takes no more; calls once the last worker process has ended.
fn close(call: OnIdle) {
    let mut call = Some(call);
    update(|pool, now| {
        pool.when_empty.extend(call.take());
        pool.state.close(now);
    });
}

// --------------------------------------------------------------------------------------- the calls

/// A call without the type of its result.
trait CallHandle: Send + Sync {
    fn name(&self) -> &'static str;
    fn origin(&self) -> Origin;
    fn parcel(&self) -> &Mutex<Parcel>;
    fn begin(&self);
    fn progress(&self, payload: &[u8]);
    /// Resolves the call from the payload of its `Done`.
    fn done(&self, payload: &[u8]);
    fn fail(&self, error: Error);
}

/// What a call consists of while it is under way.
#[derive(Default)]
struct Parcel {
    /// The whole frame, until the start is acknowledged.
    frame: Vec<u8>,
    /// The first that was reported, and the last.
    panics: Vec<PanicReport>,
}

/// A call as the scheduler has it.
#[derive(Clone)]
struct QueuedCall {
    id: u64,
    bytes: usize,
    queued: Instant,
    handle: Arc<dyn CallHandle>,
}

impl scheduler::Call for QueuedCall {
    fn id(&self) -> u64 {
        self.id
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn is_large(&self) -> bool {
        self.bytes + FRAME_OVERHEAD > transport::EAGER
    }
}

impl Deref for QueuedCall {
    type Target = dyn CallHandle;

    fn deref(&self) -> &Self::Target {
        &*self.handle
    }
}

impl dyn CallHandle {
    fn copy_frame(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&lock(self.parcel()).frame);
    }

    fn take_frame(&self) -> Vec<u8> {
        mem::take(&mut lock(self.parcel()).frame)
    }

    fn put_frame(&self, frame: Vec<u8>) {
        lock(self.parcel()).frame = frame;
    }

    fn panicked(&self, report: PanicReport) {
        let panics = &mut lock(self.parcel()).panics;
        panics.truncate(1);
        panics.push(report);
    }

    fn take_panics(&self) -> Vec<PanicReport> {
        mem::take(&mut lock(self.parcel()).panics)
    }
}

/// What an `Unfuture` of a call holds.
struct Call<T> {
    slot: Slot<Option<T>>,
    id: u64,
    name: &'static str,
    parcel: Mutex<Parcel>,
    fate: Fate,
    held: Mutex<Option<Held>>,
    progress: Arc<Progress>,
    /// `None` once the call is over.
    speaker: Mutex<Option<Speaker>>,
}

/// Queues a call to a worker process.
pub(crate) fn call<F, A>(origin: Origin, entrypoint: F, arguments: A) -> Unfuture<F::Output>
where
    F: Entrypoint<A>,
    A: Wire,
    F::Output: Wire + Send + 'static,
{
    match prepare(origin, entrypoint, arguments) {
        Ok(prepared) => {
            let call = prepared.unfuture();
            prepared.submit();
            call
        }
        Err(error) => Unfuture::failed(error),
    }
}

/// What a call holds until just before its outcome is seen.
pub(crate) type Held = Box<dyn Send>;

/// Encodes a call.
pub(crate) fn prepare<F, A>(
    origin: Origin,
    _: F,
    arguments: A,
) -> Result<Prepared<F::Output>, Error>
where
    F: Entrypoint<A>,
    A: Wire,
    F::Output: Wire + Send + 'static,
{
    let encoded = encode::<F, A>(&arguments);
    let (id, name, frame) = encoded.map_err(|error| error.started_at(origin))?;
    let bytes = frame.len();
    let speaker = Speaker::new();
    let call = Arc::new(Call {
        slot: Slot::new(origin),
        id,
        name,
        parcel: Mutex::new(Parcel {
            frame,
            panics: Vec::new(),
        }),
        fate: Fate::default(),
        held: Mutex::new(None),
        progress: Arc::clone(&speaker.0),
        speaker: Mutex::new(Some(speaker)),
    });
    let queued = QueuedCall {
        id,
        bytes,
        queued: Instant::now(),
        handle: call.clone(),
    };
    Ok(Prepared { call, queued })
}

/// A call that is not in the queue yet.
pub(crate) struct Prepared<T> {
    call: Arc<Call<T>>,
    queued: QueuedCall,
}

impl<T: Wire + Send + 'static> Prepared<T> {
    pub(crate) fn unfuture(&self) -> Unfuture<T> {
        Unfuture::of(self.call.clone())
    }

    /// Keeps this for the call until just before its outcome is seen.
    pub(crate) fn hold(&self, held: Held) {
        *lock(&self.call.held) = Some(held);
    }

    pub(crate) fn submit(self) {
        let Prepared { call, queued } = self;
        let mut queued = Some(queued);
        update(|pool, _| {
            // Whoever has stopped it resolves it, unless it is found here.
            if !call.fate.is_stopped() {
                let queued = queued.take().into_iter();
                queued.for_each(|queued| pool.state.submit(queued));
            }
        });
    }
}

/// Stops a call; says whether the pool has it.
fn stop_call(id: u64, reason: Reason) -> bool {
    let mut found = false;
    update(|pool, now| found = pool.state.stop(id, reason, now));
    found
}

/// A call in the very process, for one made in a worker: the work to be done on some thread.
pub(crate) fn nested<F, A>(_: F, arguments: A) -> Result<Nested<F::Output>, Error>
where
    F: Entrypoint<A, Output: Wire>,
    A: Wire,
{
    let limit = settings()?.frame_bytes_max;
    let (_, name, mut payload) = encode::<F, A>(&arguments)?;
    payload.drain(..frame::HEADER);
    Ok(Box::new(move || {
        let mut output = Vec::new();
        worker::perform(payload, limit, &mut output).map_err(|error| match error.kind() {
            ErrorKind::TooLarge => error.about(&format!("the result of `{name}`")),
            _ => error,
        })?;
        F::Output::decode(&mut output.as_slice())
    }))
}

type Nested<T> = Box<dyn FnOnce() -> Result<T, Error> + Send>;

/// Checks that a call can be made, and writes its frame.
fn encode<F, A>(arguments: &A) -> Result<(u64, &'static str, Vec<u8>), Error>
where
    F: Entrypoint<A>,
    A: Wire,
{
    let settings = settings()?;
    let path = type_name::<F>();
    if worker::setup().is_none() && !is_worker() {
        return Err(Error::new(
            ErrorKind::NotInitialised,
            format!(
                "`{path}` has no worker process to run in: add `unsync::init();` as the first line \
                 of `main`, or `unsync::test_worker!();` to the test binary"
            ),
        ));
    }
    let entrypoint = registry::id_of::<F>();
    let Some(entry) = registry::find(entrypoint) else {
        let text = match beside(path) {
            Some(name) => {
                format!("`{path}` is not registered: add `unsync::register!({name});` beside it")
            }
            None => format!(
                "the closure `{path}` is not registered: call it with \
                 `unsync::cpu!(|n: u64| -> u64 {{ n * 2 }}, 21)`, which registers it"
            ),
        };
        return Err(Error::new(ErrorKind::NotRegistered, text));
    };
    // Never reused; the queue is in their order.
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut frame = Vec::with_capacity(64);
    buffers::enlarge(&mut frame);
    let start = frame::begin(&mut frame, Kind::Call, id);
    entrypoint.encode(&mut frame);
    let encoded = wall(|| {
        let before = frame.len();
        let fits = encode_within(settings.frame_bytes_max, arguments, &mut frame);
        frame::assert_begun(&frame, before, Kind::Call, id);
        fits
    });
    let fits = encoded.map_err(|payload| {
        let culprit = format!("encoding the arguments of `{}`", entry.name);
        Error::panicked(&culprit, payload)
    })?;
    fits.map_err(|size| {
        let text = format!("the arguments of `{}` are {size}", entry.name);
        Error::new(ErrorKind::TooLarge, text)
    })?;
    frame::end(&mut frame, start);
    if frame.len() <= buffers::LARGE && frame.capacity() > buffers::LARGE {
        let small = frame.clone();
        buffers::recycle(&mut frame);
        frame = small;
    }
    Ok((id, entry.name, frame))
}

impl<T: Wire + Send + 'static> CallHandle for Call<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn origin(&self) -> Origin {
        self.slot.origin
    }

    fn parcel(&self) -> &Mutex<Parcel> {
        &self.parcel
    }

    fn begin(&self) {
        self.slot.begin();
    }

    fn progress(&self, mut payload: &[u8]) {
        if let Ok(kind) = u64::decode(&mut payload) {
            self.progress.say(kind, payload);
        }
    }

    fn done(&self, mut payload: &[u8]) {
        let culprit = || format!("decoding the result of `{}`", self.name);
        let outcome = match u8::decode(&mut payload) {
            Ok(ending) if ending == Ending::Value as u8 => match wall(|| T::decode(&mut payload)) {
                Ok(decoded) => decoded.map_err(|error| error.about(&culprit())),
                Err(payload) => Err(Error::panicked(&culprit(), payload)),
            },
            Ok(ending) => {
                let message = String::decode(&mut payload).unwrap_or_default();
                let call: &dyn CallHandle = self;
                Err(report::failed(
                    self.name,
                    ending,
                    message,
                    call.take_panics(),
                ))
            }
            Err(error) => Err(error),
        };
        self.resolve(outcome);
    }

    fn fail(&self, error: Error) {
        self.resolve(Err(error));
    }
}

impl<T> Call<T> {
    fn resolve(&self, outcome: Result<T, Error>) {
        // Listeners end before the call does: they have been given its last value.
        let speaker = lock(&self.speaker).take();
        drop(speaker);
        // The `Unfuture` may be kept for long.
        let parcel = mem::take(&mut *lock(&self.parcel));
        drop(parcel);
        self.fate.end();
        let outcome = match self.fate.is_cancelled() {
            true => cancelled(outcome, &format!("`{}`", self.name)),
            false => outcome,
        };
        let held = lock(&self.held).take();
        discard(held);
        self.slot
            .finish(outcome.map_err(|error| error.started_at(self.slot.origin)));
    }
}

impl<T: Wire + Send + 'static> Stop for Call<T> {
    fn stop(self: Arc<Self>, reason: Reason) -> Stopping {
        if let Err(decided) = self.fate.stop(reason) {
            return decided;
        }
        if !stop_call(self.id, reason) {
            // It waits for its turn, or is over.
            self.resolve(Err(reason.error(&format!("`{}`", self.name))));
        }
        Stopping::Yes
    }

    fn poll_begun(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.slot.poll_begun(cx)
    }

    fn progress(&self) -> Option<Arc<Progress>> {
        Some(Arc::clone(&self.progress))
    }
}

impl<T: Wire + Send + 'static> Work<T> for Call<T> {
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
