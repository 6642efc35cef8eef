//! The process pool: CPU-bound work in processes that can crash, hang and be killed.
//!
//! ```text
//!   cpu(f, args) ──▶ queue ──deal──▶ in flight of a worker ──link──▶ worker process
//!                      ▲                    │                            │
//!                      └── death before ────┘◀── Start, Done, Returned ──┘
//!                          Start, recall      read by the worker's attendant
//! ```
//!
//! - **A call** is its slot and its encoded arguments. It is in the queue, or in flight at one worker.
//! - **Whoever changes something deals**: the caller of `cpu`, an attendant. Dealing moves calls from
//!   the queue to workers with room, under the lock, and writes them to the links after it.
//! - **The attendant** is the one thread that each worker costs: it starts the process, reads its
//!   link, and buries it. It needs its own thread because std cannot wait for many children or links.
//! - **Start** decides what a death means: before it the call goes back to the front of the queue,
//!   after it that call fails and is never run again.
//! - **A kill** for a call that runs waits until nothing else can begin at that worker: what lies there is
//!   recalled first. So only the culprit fails.
//! - **Batches**: calls that are quick travel many to a write. Behind one that turns out slow they are
//!   recalled as soon as another worker could have them.
//!
//! A write to a worker never blocks for long: small frames are limited to what the socket holds, and
//! a large one is written by the attendant, to a worker that is idle and does nothing but read.
//!
//! Floor 3: imports the future, the error, the settings and the spin, no other engine.

mod attendant;
mod beside;
mod buffers;
mod frame;
mod handshake;
mod pool;
mod procfs;
pub(crate) mod registry;
// Not used by the pool yet.
#[cfg(test)]
mod scheduler;
mod transport;
pub(crate) mod wire;
pub(crate) mod worker;

use std::any::type_name;
use std::sync::{Arc, Mutex};

use crate::config::settings;
use crate::error::{Error, ErrorKind, Origin, lock, wall};
use crate::progress::{Progress, Speaker};
use crate::slot::{OnBegin, Slot};
use crate::unfuture::{Fate, OnQuiet, Reason, Stop, Stopping, Unfuture, Work, cancelled};

use crate::watch::{Stats, TaskInfo};

use beside::beside;
use frame::Kind;
use pool::{Item, POOL, Remote};
use wire::encode_within;
use worker::{Ending, PanicReport};

pub use registry::Entrypoint;
pub(crate) use transport::log;
pub use wire::Wire;
pub use worker::{init, is_worker, progress};

/// What an `Unfuture` of a call holds.
struct Call<T> {
    slot: Slot<T>,
    id: u64,
    name: &'static str,
    fate: Fate,
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
        Ok((call, submit)) => {
            submit();
            call
        }
        Err(error) => Unfuture::failed(error),
    }
}

/// A call that is encoded, and what queues it.
pub(crate) fn prepare<F, A>(
    origin: Origin,
    _: F,
    arguments: A,
) -> Result<(Unfuture<F::Output>, impl FnOnce() + Send + 'static), Error>
where
    F: Entrypoint<A>,
    A: Wire,
    F::Output: Wire + Send + 'static,
{
    let encoded = encode::<F, A>(&arguments);
    let (id, name, frame) = encoded.map_err(|error| error.started_at(origin))?;
    let speaker = Speaker::new();
    let call = Arc::new(Call {
        slot: Slot::new(origin),
        id,
        name,
        fate: Fate::default(),
        progress: Arc::clone(&speaker.0),
        speaker: Mutex::new(Some(speaker)),
    });
    let item = Item::new(id, call.clone(), frame);
    Ok((Unfuture::of(call), move || POOL.submit(item)))
}

/// Starts worker processes up to the limit, so that the first calls need not wait for them.
///
/// Returns at once. Nothing happens in a worker, or in a program that cannot have any.
pub fn warm() {
    if worker::setup().is_some() && !is_worker() && settings().is_ok() {
        POOL.warm();
    }
}

/// The calls that are queued or in flight.
pub(crate) fn list() -> Vec<TaskInfo> {
    POOL.list()
}

pub(crate) fn count(stats: &mut Stats) {
    POOL.count(stats);
}

/// Calls once no call is queued or in flight.
pub(crate) fn when_quiet(call: OnQuiet) {
    POOL.when_quiet(call);
}

/// Stops all calls and takes no more; calls once the last worker process has ended.
pub(crate) fn close(call: OnQuiet) {
    POOL.close(call);
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
    let id = pool::next_id();
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

impl<T: Wire + Send + 'static> Remote for Call<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn origin(&self) -> Origin {
        self.slot.origin
    }

    fn begin(&self) {
        self.slot.begin();
    }

    fn progress(&self, mut payload: &[u8]) {
        if let Ok(kind) = u64::decode(&mut payload) {
            self.progress.say(kind, payload);
        }
    }

    fn done(&self, mut payload: &[u8], panics: Vec<PanicReport>) {
        let culprit = || format!("decoding the result of `{}`", self.name);
        let outcome = match u8::decode(&mut payload) {
            Ok(ending) if ending == Ending::Value as u8 => match wall(|| T::decode(&mut payload)) {
                Ok(decoded) => decoded.map_err(|error| error.about(&culprit())),
                Err(payload) => Err(Error::panicked(&culprit(), payload)),
            },
            Ok(ending) => {
                let message = String::decode(&mut payload).unwrap_or_default();
                Err(self.failure(ending, message, panics))
            }
            Err(error) => Err(error),
        };
        self.settle(outcome);
    }

    fn fail(&self, error: Error) -> bool {
        self.settle(Err(error))
    }
}

impl<T> Call<T> {
    fn settle(&self, outcome: Result<T, Error>) -> bool {
        // Listeners end before the call does: they have been given its last value.
        let speaker = lock(&self.speaker).take();
        drop(speaker);
        self.fate.end();
        let outcome = match self.fate.is_cancelled() {
            true => cancelled(outcome, &format!("`{}`", self.name)),
            false => outcome,
        };
        self.slot
            .finish(outcome.map_err(|error| error.started_at(self.slot.origin)))
    }

    fn failure(&self, ending: u8, message: String, panics: Vec<PanicReport>) -> Error {
        let name = self.name;
        let is = |other: Ending| ending == other as u8;
        if is(Ending::Panicked) {
            // One that the function has caught is not the one that ended it.
            let is_this = |report: &PanicReport| report.text.as_deref().unwrap_or("") == message;
            let report = panics.into_iter().rfind(is_this).unwrap_or_default();
            return report.error(name, Some(message), "");
        }
        let (kind, text) = if is(Ending::Unknown) {
            (ErrorKind::NotRegistered, format!("`{name}`: {message}"))
        } else if is(Ending::TooLarge) {
            (
                ErrorKind::TooLarge,
                format!("the result of `{name}` is {message}"),
            )
        } else {
            (
                ErrorKind::Codec,
                format!("the arguments of `{name}`: {message}"),
            )
        };
        Error::new(kind, text)
    }
}

impl PanicReport {
    /// The error of a call that panicked; `message` is what was caught, if anything was.
    fn error(&self, name: &str, message: Option<String>, suffix: &str) -> Error {
        let text = message
            .filter(|text| !text.is_empty())
            .or_else(|| self.text.clone());
        let place = self
            .place
            .as_ref()
            .map_or_else(String::new, |place| format!(" at {place}"));
        let said = text
            .as_ref()
            .map_or_else(String::new, |text| format!(": {text}"));
        let error = Error::new(
            ErrorKind::Panicked,
            format!("`{name}` panicked{place}{said}{suffix}"),
        );
        error.with_remote_panic(text.unwrap_or_default(), self.backtrace.clone())
    }
}

impl<T: Wire + Send + 'static> Stop for Call<T> {
    fn stop_here(self: Arc<Self>, reason: Reason) -> Stopping {
        if let Err(decided) = self.fate.stop(reason) {
            return decided;
        }
        POOL.stop(self.id, reason);
        Stopping::Yes
    }

    fn when_begun_here(self: Arc<Self>, call: OnBegin) {
        self.slot.when_begun(call);
    }

    fn progress(&self) -> Option<Arc<Progress>> {
        Some(Arc::clone(&self.progress))
    }
}

impl<T: Wire + Send + 'static> Work<T> for Call<T> {
    fn slot(&self) -> &Slot<T> {
        &self.slot
    }
    fn stopper(self: Arc<Self>) -> Arc<dyn Stop> {
        self
    }
}
