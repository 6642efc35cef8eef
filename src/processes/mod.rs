//! The process pool: CPU-bound work in processes that can crash, hang and be killed.
//!
//! The path of a call, from `cpu(f, args)` to its result:
//!
//! ```text
//!   cpu ──▶ queue ──assign──▶ in flight at a worker ──link──▶ worker process
//!             ▲                      │                            │
//!             └── returned, or the ──┘◀── Start, Done, Returned ──┘
//!                 worker died before        read by the worker's reader thread
//!                 `Start`
//! ```
//!
//! 1. [`prepare`] encodes the arguments into a frame. The call is submitted to the scheduler.
//! 2. The scheduler assigns the call to a worker with room, or asks for one more worker. It only decides:
//!    [`apply`] locks it, feeds it an event, unlocks, and carries out the effects. Every event goes this way,
//!    whichever thread it happens on.
//! 3. The thread on which the event happened writes the frame to the link. That never blocks for long: small
//!    frames are limited to what a link holds, and the reader thread writes a large one, to a worker that is
//!    idle and does nothing but read.
//! 4. The worker acknowledges the start of the call and runs it. If another call takes long there, the worker
//!    returns this one, and the scheduler assigns it again.
//! 5. The reader thread of the worker reads `Done`, feeds it to the scheduler, and resolves the call. If the
//!    link ends instead, the thread reaps the worker: a call that had not started goes back to its place in
//!    the queue; one that ran fails and never runs again.
//! 6. The supervisor, one thread for all workers, feeds the scheduler the time: it kills workers for stopped
//!    calls, checks for frozen workers, and retires idle ones.
//!
//! A worker on another host is reached through a launcher and a relay, see `relay`. The rest is the same.

mod beside;
mod buffers;
mod frame;
mod handshake;
mod latch;
mod procfs;
pub(crate) mod registry;
mod relay;
mod report;
mod scheduler;
mod supervisor;
mod transport;
pub(crate) mod wire;
pub(crate) mod worker;

use std::any::type_name;
use std::cell::Cell;
use std::mem;
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use crate::config::{Settings, settings};
use crate::engine::{self, Engine, OnIdle, OnList, Stats, TaskInfo, WorkKind, WorkState};
use crate::error::{Error, ErrorKind, Origin, discard, lock, next_number, wall};
use crate::progress::{Progress, Speaker};
use crate::slot::{Output, Slot, Work};
use crate::stop::{Fate, Reason, Stopping};
use crate::unfuture::Unfuture;

use beside::beside;
use frame::Kind;
use scheduler::{Action, Effects, Limits, Outcome, State};
use supervisor::Process;
use wire::encode_within;
use worker::PanicReport;

pub use registry::Entrypoint;
pub(crate) use transport::log;
pub use wire::Wire;
pub use worker::{init, is_worker, progress};

// --------------------------------------------------------------------------------------- the pool

struct Pool {
    state: State<CallHandle, Arc<Process>>,
    /// Called when no worker is left.
    when_empty: Vec<OnIdle>,
    /// Whether there is a supervisor thread, which resets this when it ends because no worker is left.
    supervised: bool,
}

static POOL: OnceLock<Mutex<Pool>> = OnceLock::new();

/// The settings of a pool that is in use.
fn checked_settings() -> &'static Settings {
    settings().expect("no call is made with settings that are wrong")
}

/// The pool, which takes the settings at its first use.
fn pool() -> &'static Mutex<Pool> {
    POOL.get_or_init(|| {
        let settings = checked_settings();
        let mut places = vec![settings.processes()];
        places.extend(settings.hosts.iter().map(|host| host.slots));
        let mut state = State::new(Limits {
            places,
            calls_per_worker: settings.calls_per_worker,
            keep_alive: settings.keep_alive,
            cancel_grace: settings.cancel_grace,
            eager: transport::EAGER,
            host_timeout: settings.host_timeout,
        });
        if !engine::enter(&ENGINE) {
            state.close(Instant::now());
        }
        Mutex::new(Pool {
            state,
            when_empty: Vec::new(),
            supervised: false,
        })
    })
}

/// Returns how a call that was not stopped ended: the payload of its `Done`, or an error.
type Resolve<'a, 'p> = &'a mut dyn FnMut(&Request, Outcome) -> Result<&'p [u8], Error>;

/// Feeds an event to the scheduler and carries out its effects: the only way in.
fn apply(event: impl FnOnce(&mut Pool, Instant), resolve: Resolve<'_, '_>) {
    let mut pool = lock(pool());
    let now = Instant::now();
    event(&mut pool, now);
    pool.state.schedule(now);
    carry_out(pool, resolve);
}

/// Feeds an event that makes no call succeed or fail, but may stop some.
fn update(event: impl FnOnce(&mut Pool, Instant)) {
    apply(event, &mut |_, _| {
        unreachable!("no worker has ended or done anything")
    });
}

type PoolEffects = Effects<CallHandle, Arc<Process>>;

thread_local! {
    /// Spare effects and frames, which keep the capacity of their last use.
    static SCRATCH: Cell<(PoolEffects, Vec<u8>)> = Cell::default();
}

/// More than an event resolves, unless it resolves all calls that wait.
const RESOLUTIONS_KEPT: usize = 4096;

fn carry_out(mut pool: MutexGuard<'static, Pool>, resolve: Resolve<'_, '_>) {
    // An event that this one causes on the same thread gets new ones, and so does a thread that is ending.
    let (mut effects, mut frames) = SCRATCH.try_with(Cell::take).unwrap_or_default();
    mem::swap(&mut effects, &mut pool.state.fx);
    let is_empty = pool.state.is_empty();
    let when_empty = match is_empty {
        true => mem::take(&mut pool.when_empty),
        false => Vec::new(),
    };
    let wakes = mem::take(&mut effects.wake_supervisor) || is_empty;
    let supervised = pool.supervised;
    pool.supervised |= pool.state.next_deadline().is_some();
    let starts = pool.supervised && !supervised;
    drop(pool);
    if starts {
        supervisor::start();
    } else if wakes && supervised {
        supervisor::wake();
    }
    // Its worker reads it at its own pace, which must not delay anything else.
    let is_large = |(_, action): &(_, Action<_>)| matches!(action, Action::LargeCall(_));
    let large = effects.actions.iter().position(is_large);
    let large = large.map(|at| effects.actions.remove(at));
    let of_workers = effects
        .actions
        .chunk_by(|one, next| Arc::ptr_eq(&one.0, &next.0));
    of_workers.for_each(|actions| actions[0].0.act(actions, &mut frames));
    effects.actions.clear();
    effects.spawns.drain(..).for_each(supervisor::spawn);
    for call in effects.begun.drain(..) {
        // Its frame is no longer needed.
        buffers::recycle(&mut call.request().take_frame());
        call.slot().begin();
    }
    let resolutions = effects.resolutions.len();
    for (call, outcome) in effects.resolutions.drain(..) {
        let request = call.request();
        call.resolve(match outcome {
            Outcome::Stopped { reason, ran } => Err(report::stopped(request.name, reason, ran, "")),
            outcome => resolve(request, outcome),
        });
    }
    effects.resolutions.shrink_to(RESOLUTIONS_KEPT);
    if resolutions > 0 {
        RESOLVED.fetch_add(resolutions, Ordering::SeqCst);
        tell_idle();
    }
    let submitted = SUBMITTED.load(Ordering::SeqCst);
    engine::answer(when_empty, submitted as u64);
    if let Some(action) = &large {
        action.0.act(slice::from_ref(action), &mut frames);
    }
    let _ = SCRATCH.try_with(|spare| spare.set((effects, frames)));
}

/// How many calls the scheduler was ever given, and how many of them are resolved.
static SUBMITTED: AtomicUsize = AtomicUsize::new(0);
static RESOLVED: AtomicUsize = AtomicUsize::new(0);
/// Called when all calls are resolved. A `drain` that gave up stays here until then.
static WHEN_IDLE: Mutex<Vec<OnIdle>> = Mutex::new(Vec::new());

/// Runs the callback once no call is queued or in flight.
fn when_idle(call: OnIdle) {
    lock(&WHEN_IDLE).push(call);
    tell_idle();
}

/// Must run after each change to one of these three statics, so that the last change is noticed.
fn tell_idle() {
    let resolved = RESOLVED.load(Ordering::SeqCst);
    if resolved == SUBMITTED.load(Ordering::SeqCst) {
        let waiting = mem::take(&mut *lock(&WHEN_IDLE));
        engine::answer(waiting, resolved as u64);
    }
}

/// Starts worker processes up to the limit, and at most eight at each host, so that the first calls need not
/// wait for them.
///
/// Returns at once. Does nothing in a worker, or in a program that cannot have workers.
///
/// # Examples
///
/// ```
/// # fn main() {
/// unsync::init();
/// unsync::warm(); // the workers start while the program reads its input
/// # }
/// ```
pub fn warm() {
    if worker::setup().is_some() && !is_worker() && settings().is_ok() {
        update(|pool, now| pool.state.warm(now));
    }
}

const ENGINE: Engine = Engine {
    name: "worker processes",
    count,
    list,
    when_idle,
    close,
};

/// Lists the calls that are queued or in flight.
fn list(on_list: OnList) {
    let info = |(call, started): (&CallHandle, Option<Instant>)| TaskInfo {
        kind: WorkKind::Cpu,
        state: match started {
            Some(_) => WorkState::Running,
            None => WorkState::Queued,
        },
        age: Some(started.unwrap_or(call.request().made).elapsed()),
        started_at: call.slot().origin,
        name: Some(call.request().name),
    };
    let calls = lock(pool()).state.calls().map(info).collect();
    on_list(calls);
}

fn count(stats: &mut Stats) {
    let counts = lock(pool()).state.counts();
    (stats.calls_queued, stats.calls_running, stats.workers) = counts;
}

/// Stops all calls and takes no more; runs the callback once the last worker process has ended.
fn close(call: OnIdle) {
    update(|pool, now| {
        pool.when_empty.push(call);
        pool.state.close(now);
    });
}

// --------------------------------------------------------------------------------------- the calls

/// What the `Unfuture` of a call holds.
struct Call<T> {
    slot: Slot<Option<T>>,
    request: Request,
}

impl<T> Call<T> {
    fn new(origin: Origin, id: u64, name: &'static str, frame: Vec<u8>) -> Call<T> {
        Call {
            slot: Slot::new(origin),
            request: Request {
                id,
                name,
                made: Instant::now(),
                fate: Fate::default(),
                parts: Mutex::new(Parts {
                    frame,
                    ..Parts::default()
                }),
            },
        }
    }
}

/// The part of a call that does not depend on the type of its result.
pub(crate) struct Request {
    id: u64,
    name: &'static str,
    made: Instant,
    fate: Fate,
    parts: Mutex<Parts>,
}

/// What a call consists of while it is under way.
#[derive(Default)]
struct Parts {
    /// The whole frame, until the start is acknowledged.
    frame: Vec<u8>,
    /// The first panic that was reported, and the last.
    panics: Vec<PanicReport>,
    /// What the call has reported. Created when something is reported or somebody listens.
    progress: Option<Arc<Progress>>,
    /// Keeps the listeners waiting until the call is over.
    speaker: Option<Speaker>,
    held: Option<Held>,
    is_over: bool,
}

/// What a call holds until just before its outcome is seen.
type Held = Box<dyn Send>;

/// A call without the type of its result.
pub(crate) type CallHandle = Arc<dyn AnyCall>;

pub(crate) trait AnyCall: Work {
    fn request(&self) -> &Request;
    /// Resolves the call from the payload of its `Done`, or with an error.
    fn resolve(&self, payload: Result<&[u8], Error>);
}

impl Request {
    /// Keeps `held` until just before the outcome of the call is seen.
    pub(crate) fn hold(&self, held: Held) {
        self.parts().held = Some(held);
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        lock(&self.parts)
    }

    fn take_frame(&self) -> Vec<u8> {
        mem::take(&mut self.parts().frame)
    }

    fn take_panics(&self) -> Vec<PanicReport> {
        mem::take(&mut self.parts().panics)
    }

    fn progress(&self) -> Option<Arc<Progress>> {
        let mut parts = self.parts();
        if parts.progress.is_none() {
            let speaker = Speaker::new();
            parts.progress = Some(Arc::clone(&speaker.0));
            parts.speaker = Some(speaker);
        }
        let is_over = parts.is_over;
        let ended = parts.speaker.take_if(|_| is_over);
        let progress = parts.progress.clone();
        drop(parts);
        drop(ended);
        progress
    }

    /// The call is about to be resolved. Its `Unfuture` may be kept long after that.
    fn end(&self) {
        let mut parts = self.parts();
        let over = Parts {
            progress: parts.progress.clone(),
            is_over: true,
            ..Parts::default()
        };
        let ended = mem::replace(&mut *parts, over);
        drop(parts);
        self.fate.end();
        discard(ended.held);
    }

    /// The value in the payload of `Done`.
    fn value<T: Wire>(&self, mut payload: &[u8]) -> Result<T, Error> {
        let name = self.name;
        if let Some(kind) = Option::decode(&mut payload)? {
            let message = String::decode(&mut payload).unwrap_or_default();
            return Err(report::failed(name, kind, message, self.take_panics()));
        }
        let culprit = || format!("decoding the result of `{name}`");
        match wall(|| T::decode(&mut payload)) {
            Ok(decoded) => decoded.map_err(|error| error.about(&culprit())),
            Err(payload) => Err(Error::panicked(&culprit(), payload)),
        }
    }
}

/// Makes a call to a worker process, which is to be [submitted](submit).
pub(crate) fn prepare<F, A>(
    origin: Origin,
    _: F,
    arguments: A,
) -> Result<(Unfuture<F::Output>, CallHandle), Error>
where
    F: Entrypoint<A>,
    A: Wire,
    F::Output: Wire + Send + 'static,
{
    let (id, name, frame) = encode::<F, A>(&arguments)?;
    let call = Arc::new(Call::new(origin, id, name, frame));
    Ok((Unfuture::of(call.clone()), call))
}

pub(crate) fn submit(call: CallHandle) {
    let (id, bytes) = (call.request().id, call.request().parts().frame.len());
    update(|pool, _| {
        // If the call is already stopped, `stop` does not find it in the pool and resolves it.
        if !call.request().fate.is_stopped() {
            SUBMITTED.fetch_add(1, Ordering::SeqCst);
            pool.state.submit(id, bytes, call);
        }
    });
}

fn stop(call: &dyn AnyCall, reason: Reason) -> Stopping {
    let Request { fate, id, name, .. } = call.request();
    if let Err(decided) = fate.stop(reason) {
        return decided;
    }
    let mut is_found = false;
    update(|pool, now| is_found = pool.state.stop(*id, reason, now));
    if !is_found {
        // The call is still waiting to be submitted, or is over.
        call.resolve(Err(reason.error(&format!("`{name}`"))));
    }
    Stopping::Yes
}

/// The work of a call made in a worker: it runs in the same process, on some thread.
pub(crate) fn nested<F, A>(origin: Origin, _: F, arguments: A) -> Result<Nested<F::Output>, Error>
where
    F: Entrypoint<A, Output: Wire>,
    A: Wire,
{
    let limit = settings()?.frame_bytes_max;
    let (_, name, mut payload) = encode::<F, A>(&arguments)?;
    payload.drain(..frame::HEADER);
    Ok(Box::new(move || {
        let mut output = Vec::new();
        let value = match worker::perform(payload, limit, &mut output) {
            Ok(()) => F::Output::decode(&mut output.as_slice())
                .map_err(|error| error.about(&format!("decoding the result of `{name}`"))),
            Err(error) => {
                let (kind, message) = (error.kind() as u8, error.to_string());
                Err(report::failed(name, kind, message, Vec::new()))
            }
        };
        value.map_err(|error| error.started_at(origin))
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
    // Ids are never reused, and the queue is ordered by them.
    static LAST: Mutex<u64> = Mutex::new(0);
    let id = next_number(&LAST);
    let mut frame = Vec::with_capacity(64);
    buffers::enlarge(&mut frame);
    let start = frame::begin(&mut frame, Kind::Call, id);
    entrypoint.encode(&mut frame);
    let encoded = wall(|| encode_within(settings.frame_bytes_max, arguments, &mut frame));
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

impl<T: Wire + Send + 'static> AnyCall for Call<T> {
    fn request(&self) -> &Request {
        &self.request
    }

    fn resolve(&self, payload: Result<&[u8], Error>) {
        let outcome = payload.and_then(|payload| self.request.value(payload));
        self.request.end();
        let Request { fate, name, .. } = &self.request;
        let outcome = fate.outcome(outcome, format_args!("`{name}`"));
        self.slot
            .finish(outcome.map_err(|error| error.started_at(self.slot.origin)));
    }
}

impl<T: Wire + Send + 'static> Work for Call<T> {
    fn slot(&self) -> &Slot {
        &self.slot
    }

    fn stop(self: Arc<Self>, reason: Reason) -> Stopping {
        stop(&*self, reason)
    }

    fn progress(&self) -> Option<Arc<Progress>> {
        self.request.progress()
    }
}

impl<T: Wire + Send + 'static> Output<T> for Call<T> {
    fn take(&self) -> Option<Result<T, Error>> {
        self.slot.take()
    }

    fn untyped(self: Arc<Self>) -> Arc<dyn Work> {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::panic::Location;
    use std::sync::atomic::AtomicBool;

    use super::*;

    /// What it holds may be a permit, which starts the next call when dropped.
    #[test]
    fn a_call_drops_what_it_holds_without_its_lock() {
        struct Watch(Arc<Call<u64>>, &'static AtomicBool);

        impl Drop for Watch {
            fn drop(&mut self) {
                let is_free = self.0.request.parts.try_lock().is_ok();
                self.1.store(is_free, Ordering::SeqCst);
            }
        }

        static WAS_FREE: AtomicBool = AtomicBool::new(false);
        let call = Arc::new(Call::new(Location::caller(), 0, "none", Vec::new()));
        call.request
            .hold(Box::new(Watch(Arc::clone(&call), &WAS_FREE)));
        call.resolve(Err(Reason::Cancelled.error("it")));
        assert!(WAS_FREE.load(Ordering::SeqCst));
    }

    #[test]
    fn a_thread_that_ends_the_pool_keeps_little_of_its_queue() {
        update(|pool, _| pool.state.fx.resolutions.reserve(100_000));
        let (effects, _) = SCRATCH.take();
        assert!(effects.resolutions.capacity() <= 2 * RESOLUTIONS_KEPT);
    }
}
