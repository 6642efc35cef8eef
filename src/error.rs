//! The error: what became of work that did not give a value; and the wall that keeps panics in.
//!
//! Floor 0: imports nothing of the crate.

use std::any::Any;
use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// A panic's payload, as [`std::panic::catch_unwind`] hands it over.
pub(crate) type Payload = Box<dyn Any + Send>;

/// Where work was started: the caller's file and line.
pub(crate) type Origin = &'static Location<'static>;

/// Why a piece of work gave no value.
///
/// The error is opaque: [`kind`](Error::kind) tells what happened, `Display` tells it to a person, with the culprit and the line
/// that started the work. It is cheap to clone; all clones are the same error.
///
/// # Examples
///
/// ```
/// use unsync::ErrorKind;
///
/// let error = unsync::thread(|| panic!("out of cheese")).map(|(): ()| ()).result().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Panicked);
/// assert!(error.to_string().contains("out of cheese"));
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    /// What happened, the culprit first, without the origin.
    message: Cow<'static, str>,
    origin: Option<Origin>,
    source: Option<Box<dyn StdError + Send + Sync>>,
    exit: Option<ExitStatus>,
    /// The payload of a panic, until somebody takes it. A mutex because payloads need not be `Sync`.
    payload: Mutex<Option<Payload>>,
}

/// The kinds of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The work panicked, or a destructor of it did. [`Error::into_panic`] gives the payload.
    Panicked,
    /// The work was cancelled before it gave a value.
    Cancelled,
    /// The work did not end within its deadline.
    TimedOut,
    /// The [`Promise`](crate::Promise) was dropped unfulfilled, or the value was already taken.
    Abandoned,
    /// Blocking was asked for on the ambient thread, where it would stop everything.
    WouldBlock,
    /// The worker process died while it ran the call, or one after the other before they could.
    /// [`Error::worker_exit`] tells how.
    WorkerLost,
    /// The function was not named in a [`register!`](crate::register).
    NotRegistered,
    /// The set-up is missing or wrong: no [`init`](crate::init), a setting that makes no sense, or one
    /// that comes after the first use.
    NotInitialised,
    /// Arguments or a result could not be decoded.
    Codec,
    /// Arguments or a result exceed the limit of one frame.
    TooLarge,
    /// The operating system refused a thread, a process or a connection. [`source`](std::error::Error::source) has its error.
    Os,
    /// The library was shut down.
    ShutDown,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Error {
        Error(Arc::new(Inner {
            kind,
            message: message.into(),
            origin: None,
            source: None,
            exit: None,
            payload: Mutex::new(None),
        }))
    }

    /// `culprit` panicked with `payload`.
    pub(crate) fn panicked(culprit: &str, payload: Payload) -> Error {
        let message = match panic_message(&payload) {
            Some(text) => format!("{culprit} panicked: {text}"),
            None => format!("{culprit} panicked"),
        };
        Error::new(ErrorKind::Panicked, message)
            .with(|inner| inner.payload = Mutex::new(Some(payload)))
    }

    /// The operating system refused what `attempt` names.
    pub(crate) fn os(attempt: impl Into<Cow<'static, str>>, source: io::Error) -> Error {
        Error::new(ErrorKind::Os, attempt).with(|inner| inner.source = Some(Box::new(source)))
    }

    /// A panic in another process: its message is the payload, its backtrace the source.
    pub(crate) fn with_remote_panic(self, message: String, backtrace: Option<String>) -> Error {
        self.with(|inner| {
            inner.payload = Mutex::new(Some(Box::new(message)));
            inner.source = backtrace.map(|text| Box::new(RemoteBacktrace(text)) as _);
        })
    }

    /// The same trouble, told of this culprit.
    pub(crate) fn about(&self, culprit: &str) -> Error {
        let error = Error::new(self.0.kind, format!("{culprit}: {}", self.0.message));
        let os = self
            .0
            .source
            .as_ref()
            .and_then(|source| source.downcast_ref::<io::Error>());
        let copy = os.map(|os| match os.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(os.kind(), os.to_string()),
        });
        error
            .exited(self.0.exit)
            .with(|inner| inner.source = copy.map(|os| Box::new(os) as _))
    }

    pub(crate) fn started_at(self, origin: Origin) -> Error {
        self.with(|inner| inner.origin = Some(origin))
    }

    pub(crate) fn exited(self, status: Option<ExitStatus>) -> Error {
        self.with(|inner| inner.exit = status)
    }

    /// Changes an error that nobody else holds yet; one that is shared stays as it is.
    fn with(mut self, change: impl FnOnce(&mut Inner)) -> Error {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            change(inner);
        }
        self
    }

    /// What happened.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The payload of the panic, to pass it on with [`std::panic::resume_unwind`].
    ///
    /// A panic in a worker process arrives as a `String` with its message. Clones of one error share one payload: the first to ask gets
    /// it, later ones get the message.
    ///
    /// # Errors
    ///
    /// Gives the error back if its [`kind`](Error::kind) is not [`ErrorKind::Panicked`].
    ///
    /// # Examples
    ///
    /// ```
    /// let error = unsync::spawn(async { std::panic::panic_any(42) }).map(|(): ()| ()).result().unwrap_err();
    /// assert_eq!(error.into_panic().unwrap().downcast_ref(), Some(&42));
    /// ```
    pub fn into_panic(self) -> Result<Box<dyn Any + Send + 'static>, Error> {
        if self.0.kind != ErrorKind::Panicked {
            return Err(self);
        }
        let payload = lock(&self.0.payload).take();
        Ok(payload.unwrap_or_else(|| Box::new(self.0.message.to_string())))
    }

    /// How the worker process ended, for [`ErrorKind::WorkerLost`] and for a panic or a deadline that cost the worker its life.
    pub fn worker_exit(&self) -> Option<ExitStatus> {
        self.0.exit
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        if let (ErrorKind::Os, Some(source)) = (self.0.kind, &self.0.source) {
            write!(f, ": {source}")?;
        }
        match self.0.origin {
            Some(origin) => write!(f, " (started at {origin})"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}: {self})", self.0.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0
            .source
            .as_ref()
            .map(|source| &**source as &(dyn StdError + 'static))
    }
}

/// The backtrace of a panic in a worker process, as the source of the error.
#[derive(Debug)]
struct RemoteBacktrace(String);

impl fmt::Display for RemoteBacktrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "backtrace in the worker process:\n{}", self.0)
    }
}

impl StdError for RemoteBacktrace {}

const _: () = {
    const fn sound<
        T: Send + Sync + Unpin + std::panic::UnwindSafe + std::panic::RefUnwindSafe + 'static,
    >() {
    }
    sound::<Error>();
};

impl std::panic::UnwindSafe for Inner {}
impl std::panic::RefUnwindSafe for Inner {}

pub(crate) type OnUnobserved = Box<dyn Fn(&Error) + Send + Sync>;

static UNOBSERVED: OnceLock<OnUnobserved> = OnceLock::new();

/// Sets who is told of failures that nobody looked at. The first one stays.
pub(crate) fn on_unobserved(hook: OnUnobserved) {
    discard(UNOBSERVED.set(hook));
}

/// Drops an outcome that nobody will look at.
pub(crate) fn unobserved<T>(outcome: Result<T, Error>) {
    if let (Err(error), Some(hook)) = (&outcome, UNOBSERVED.get()) {
        if !matches!(error.kind(), ErrorKind::Cancelled | ErrorKind::ShutDown) {
            discard(wall(|| hook(error)));
        }
    }
    discard(outcome);
}

/// The text of a panic, if it has one.
pub(crate) fn panic_message(payload: &Payload) -> Option<&str> {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&'static str>().copied())
}

/// The wall: runs foreign code and turns its panic into a value, so that no panic ends a thread of ours.
pub(crate) fn wall<R>(step: impl FnOnce() -> R) -> Result<R, Payload> {
    catch_unwind(AssertUnwindSafe(step))
}

/// Locks what no panic leaves half-written: nothing foreign runs while a lock is held, so poison says
/// nothing.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Drops foreign values behind the wall. A payload's own destructor may panic too; the one after that is leaked, since there is no end
/// to it.
pub(crate) fn discard<T>(value: T) {
    if let Err(payload) = wall(|| drop(value)) {
        if let Err(again) = wall(|| drop(payload)) {
            std::mem::forget(again);
        }
    }
}
