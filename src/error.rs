//! The error of work that gave no value, and how panics are caught.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::process::ExitStatus;
use std::sync::{Arc, OnceLock};

use crate::sync::{Mutex, MutexGuard, PoisonError};

/// A panic's payload, as [`std::panic::catch_unwind`] hands it over.
pub(crate) type Payload = Box<dyn Any + Send>;

/// Where work was started: the caller's file and line.
pub(crate) type Origin = &'static Location<'static>;

/// Why work gave no value.
///
/// The error is opaque: [`kind`](Error::kind) says what happened, and the text names the culprit and the line
/// that started the work. It is cheap to clone; all clones are the same error.
///
/// `?` turns it into an [`io::Error`], and an `io::Error` into an `Error`.
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
///
/// A library with its own error type adds a variant for work that was not done. Its functions return that
/// type inside the work too, so one `?` handles the work and one the function. The function of a
/// [`cpu`](crate::cpu()) call needs a type without that variant, since an `Error` cannot cross to a worker;
/// give the library's type a `From` impl for it.
///
/// ```
/// use std::fmt;
///
/// #[derive(Debug)]
/// pub enum ConfigError {
///     /// The file has no such line.
///     Missing(&'static str),
///     Io(std::io::Error),
///     /// It was not read at all: the work panicked, was cancelled, took too long.
///     Work(unsync::Error),
/// }
///
/// impl fmt::Display for ConfigError {
///     fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
///         match self {
///             ConfigError::Missing(name) => write!(f, "no line for {name}"),
///             ConfigError::Io(error) => error.fmt(f),
///             ConfigError::Work(error) => error.fmt(f),
///         }
///     }
/// }
///
/// impl std::error::Error for ConfigError {
///     fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
///         match self {
///             ConfigError::Missing(_) => None,
///             ConfigError::Io(error) => error.source(),
///             ConfigError::Work(error) => error.source(),
///         }
///     }
/// }
///
/// impl From<std::io::Error> for ConfigError {
///     fn from(error: std::io::Error) -> ConfigError {
///         ConfigError::Io(error)
///     }
/// }
///
/// impl From<unsync::Error> for ConfigError {
///     fn from(error: unsync::Error) -> ConfigError {
///         ConfigError::Work(error)
///     }
/// }
///
/// fn package_name(path: &str) -> Result<String, ConfigError> {
///     let text = std::fs::read_to_string(path)?;
///     let name = text.lines().find_map(|line| line.strip_prefix("name = "));
///     name.map(str::to_owned).ok_or(ConfigError::Missing("name"))
/// }
///
/// /// The longer of the names in two files, which are read at the same time.
/// pub fn longer_name(paths: [&'static str; 2]) -> Result<String, ConfigError> {
///     let [first, second] = paths.map(|path| unsync::thread(move || package_name(path)));
///     let (first, second) = (first.result()??, second.result()??);
///     Ok(if first.len() < second.len() { second } else { first })
/// }
/// # assert_eq!(longer_name(["Cargo.toml"; 2]).unwrap(), "\"unsync\"");
/// # assert!(matches!(longer_name(["Cargo.toml", "LICENSE"]), Err(ConfigError::Missing(_))));
/// # assert!(matches!(longer_name(["Cargo.toml", "missing"]), Err(ConfigError::Io(_))));
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    /// What happened, the culprit first, without the origin.
    message: String,
    origin: Option<Origin>,
    cause: Option<Cause>,
    exit: Option<ExitStatus>,
    /// The payload of a panic, until somebody takes it. A mutex because payloads need not be `Sync`.
    payload: Mutex<Option<Payload>>,
}

/// What an error was made from.
#[derive(Clone)]
enum Cause {
    /// The operating system's error, or another `io::Error` that was converted.
    Io(Arc<io::Error>),
    /// The error that gave the message. Its source becomes the source.
    Message(Arc<dyn StdError + Send + Sync>),
    /// The backtrace of a panic in a worker process.
    Backtrace(Arc<dyn StdError + Send + Sync>),
}

/// The kinds of [`Error`].
///
/// # Examples
///
/// ```
/// use unsync::ErrorKind;
///
/// let (promise, unfuture) = unsync::promise::<u8>();
/// drop(promise);
/// match unfuture.result() {
///     Ok(value) => println!("{value}"),
///     Err(error) if error.kind() == ErrorKind::Abandoned => println!("nobody will set it"),
///     Err(error) => println!("{error}"),
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The work panicked, or one of its destructors did. [`Error::into_panic`] gives the payload.
    Panicked,
    /// The work was cancelled before it gave a value.
    Cancelled,
    /// The work did not end by its deadline.
    TimedOut,
    /// The [`Promise`](crate::Promise) was dropped unset, or the value was already taken.
    Abandoned,
    /// The wait would have blocked the ambient thread, or a thread that reads from a worker process, and
    /// everything with it.
    WouldBlock,
    /// The worker process died while it ran the call, or several died before they could run it.
    /// [`Error::worker_exit`] says how.
    WorkerLost,
    /// The function was not named in a [`register!`](crate::register).
    NotRegistered,
    /// The set-up is missing or wrong: no [`init`](crate::init), an invalid setting, or one that comes after
    /// the first use.
    NotInitialised,
    /// Arguments or a result could not be decoded.
    Codec,
    /// Arguments or a result exceed [`frame_bytes_max`](crate::Config::frame_bytes_max).
    TooLarge,
    /// The operating system refused a thread, a process or a connection, or an [`io::Error`] was converted.
    /// [`source`](std::error::Error::source) is that error.
    Os,
    /// The library was shut down.
    ShutDown,
}

impl Error {
    /// Makes an error, for [`Wire::decode`](crate::Wire::decode) and
    /// [`Promise::fail`](crate::Promise::fail).
    ///
    /// As for [`io::Error::new`], the message is a string or another error, whose text becomes the message and
    /// whose source becomes the [`source`](std::error::Error::source).
    ///
    /// # Examples
    ///
    /// ```
    /// use unsync::{Error, ErrorKind, Wire};
    ///
    /// #[derive(Debug, PartialEq)]
    /// struct Even(u64);
    ///
    /// impl Wire for Even {
    ///     fn encode(&self, out: &mut Vec<u8>) {
    ///         self.0.encode(out);
    ///     }
    ///     fn decode(input: &mut &[u8]) -> Result<Even, Error> {
    ///         match u64::decode(input)? {
    ///             n if n % 2 == 0 => Ok(Even(n)),
    ///             n => Err(Error::new(ErrorKind::Codec, format!("{n} is odd"))),
    ///         }
    ///     }
    /// }
    ///
    /// let mut bytes = Vec::new();
    /// Even(3).encode(&mut bytes); // nothing keeps it from being odd
    /// assert_eq!(Even::decode(&mut &bytes[..]).unwrap_err().to_string(), "3 is odd");
    /// ```
    pub fn new(kind: ErrorKind, message: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        let message = message.into();
        // Formatting is foreign code: it runs here, on the caller's thread, and never again.
        let text = message.to_string();
        let has_source = message.source().is_some();
        Error::from_parts(
            kind,
            text,
            has_source.then(|| Cause::Message(message.into())),
        )
    }

    fn from_parts(kind: ErrorKind, message: String, cause: Option<Cause>) -> Error {
        Error(Arc::new(Inner {
            kind,
            message,
            origin: None,
            cause,
            exit: None,
            payload: Mutex::new(None),
        }))
    }

    /// `culprit` panicked with `payload`.
    pub(crate) fn panicked(culprit: &str, payload: Payload) -> Error {
        let message = match panic_message(&*payload) {
            Some(text) => format!("{culprit} panicked: {text}"),
            None => format!("{culprit} panicked"),
        };
        Error::from_parts(ErrorKind::Panicked, message, None)
            .with(|inner| inner.payload = Mutex::new(Some(payload)))
    }

    /// The operating system refused what `attempt` names.
    pub(crate) fn os(attempt: impl Into<String>, source: io::Error) -> Error {
        let source = Cause::Io(Arc::new(source));
        Error::from_parts(ErrorKind::Os, attempt.into(), Some(source))
    }

    /// A panic in another process: its message is the payload, its backtrace the source.
    pub(crate) fn with_remote_panic(self, message: String, backtrace: Option<String>) -> Error {
        self.with(|inner| {
            inner.payload = Mutex::new(Some(Box::new(message)));
            inner.cause = backtrace.map(|text| {
                let text = format!("backtrace in the worker process:\n{text}");
                Cause::Backtrace(Box::<dyn StdError + Send + Sync>::from(text).into())
            });
        })
    }

    /// The same error with this culprit.
    pub(crate) fn about(&self, culprit: &str) -> Error {
        let message = match &*self.0.message {
            "" => culprit.to_owned(),
            message => format!("{culprit}: {message}"),
        };
        Error::from_parts(self.0.kind, message, self.0.cause.clone()).exited(self.0.exit)
    }

    /// The `io::Error` that this was converted from, if nothing was added to it.
    fn take_io(&mut self) -> Option<io::Error> {
        let Some(Cause::Io(source)) = &self.0.cause else {
            return None;
        };
        if !self.0.message.is_empty() || self.0.origin.is_some() {
            return None;
        }
        if let Some(code) = source.raw_os_error() {
            // As good as the original, which may have other owners.
            return Some(io::Error::from_raw_os_error(code));
        }
        let cause = &mut Arc::get_mut(&mut self.0)?.cause;
        match cause.take()? {
            Cause::Io(source) => Arc::try_unwrap(source)
                .map_err(|shared| *cause = Some(Cause::Io(shared)))
                .ok(),
            _ => None,
        }
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

    /// Returns what happened.
    ///
    /// # Examples
    ///
    /// ```
    /// let nap = unsync::spawn(unsync::sleep(std::time::Duration::MAX));
    /// nap.cancel();
    /// assert_eq!(nap.result().unwrap_err().kind(), unsync::ErrorKind::Cancelled);
    /// ```
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns the payload of the panic, to pass on with [`std::panic::resume_unwind`].
    ///
    /// A panic in a worker process arrives as a `String` with its message. Clones of an error share one payload:
    /// the first call gets it, later ones get the message.
    ///
    /// # Errors
    ///
    /// Returns the error itself if its [`kind`](Error::kind) is not [`ErrorKind::Panicked`].
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
        Ok(payload.unwrap_or_else(|| Box::new(self.0.message.clone())))
    }

    /// Returns how the worker process ended, if its end ended the call: for [`ErrorKind::WorkerLost`], and for
    /// a panic, a deadline, a cancellation or a shutdown that ended the process.
    ///
    /// # Examples
    ///
    /// ```
    /// fn gives_up() {
    ///     std::process::exit(3);
    /// }
    /// unsync::register!(gives_up);
    ///
    /// # fn main() {
    /// # unsync::init();
    /// let error = unsync::cpu(gives_up, ()).result().unwrap_err();
    /// assert_eq!(error.worker_exit().and_then(|exit| exit.code()), Some(3));
    /// # }
    /// ```
    pub fn worker_exit(&self) -> Option<ExitStatus> {
        self.0.exit
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        if let (ErrorKind::Os, Some(Cause::Io(source))) = (self.0.kind, &self.0.cause) {
            let colon = if self.0.message.is_empty() { "" } else { ": " };
            write!(f, "{colon}{source}")?;
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
        match self.0.cause.as_ref()? {
            Cause::Io(error) => Some(&**error),
            Cause::Message(error) => error.source(),
            Cause::Backtrace(text) => Some(&**text),
        }
    }
}

/// Converts into [`ErrorKind::Os`], with the error as its source. One that was converted from an [`Error`]
/// converts back into it.
///
/// # Examples
///
/// ```
/// fn lines(path: &'static str) -> Result<usize, unsync::Error> {
///     let text = unsync::thread(move || std::fs::read_to_string(path)).result()??;
///     Ok(text.lines().count())
/// }
/// assert_eq!(lines("/no/such/file").unwrap_err().kind(), unsync::ErrorKind::Os);
/// ```
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        error
            .downcast()
            .unwrap_or_else(|error| Error::os("", error))
    }
}

/// An [`Error`] that was converted from an [`io::Error`] converts back into it. Any other becomes the inner
/// error of an [`io::Error`] of this kind:
///
/// | [`ErrorKind`] | [`io::ErrorKind`] |
/// | --- | --- |
/// | [`Os`](ErrorKind::Os) | that of the operating system's error |
/// | [`TimedOut`](ErrorKind::TimedOut) | [`TimedOut`](io::ErrorKind::TimedOut) |
/// | [`WouldBlock`](ErrorKind::WouldBlock) | [`WouldBlock`](io::ErrorKind::WouldBlock) |
/// | [`Codec`](ErrorKind::Codec) | [`InvalidData`](io::ErrorKind::InvalidData) |
/// | all others | [`Other`](io::ErrorKind::Other) |
///
/// # Examples
///
/// ```
/// use std::io;
///
/// fn first_line(path: &'static str) -> io::Result<String> {
///     let text = unsync::thread(move || std::fs::read_to_string(path)).result()??;
///     Ok(text.lines().next().unwrap_or_default().to_owned())
/// }
/// assert_eq!(first_line("/no/such/file").unwrap_err().kind(), io::ErrorKind::NotFound);
/// ```
impl From<Error> for io::Error {
    fn from(mut error: Error) -> io::Error {
        if let Some(original) = error.take_io() {
            return original;
        }
        let kind = match (error.0.kind, &error.0.cause) {
            (ErrorKind::Os, Some(Cause::Io(source))) => source.kind(),
            (ErrorKind::TimedOut, _) => io::ErrorKind::TimedOut,
            (ErrorKind::WouldBlock, _) => io::ErrorKind::WouldBlock,
            (ErrorKind::Codec, _) => io::ErrorKind::InvalidData,
            // Callers act on the other kinds: they retry what was `Interrupted`, create what is `NotFound`,
            // and exit quietly on `BrokenPipe`.
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

// A panic payload and a foreign error cannot be seen half-written: both are set once, before anybody else has
// the error.
impl std::panic::UnwindSafe for Inner {}
impl std::panic::RefUnwindSafe for Inner {}

pub(crate) type OnUnobserved = Box<dyn Fn(&Error) + Send + Sync>;

static UNOBSERVED: OnceLock<OnUnobserved> = OnceLock::new();

/// Sets the hook for failures that nobody looked at. The first hook stays.
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
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> Option<&str> {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&'static str>().copied())
}

/// Runs foreign code and turns its panic into a value, so that no panic ends an engine's thread.
pub(crate) fn wall<R>(step: impl FnOnce() -> R) -> Result<R, Payload> {
    catch_unwind(AssertUnwindSafe(step))
}

/// Locks, and ignores poison: no foreign code runs while a lock is held, so no panic leaves anything
/// half-written.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns a number that is never returned twice. Under a lock, because not every target has 64-bit atomics,
/// and 32 bits run out.
pub(crate) fn next_number(last: &Mutex<u64>) -> u64 {
    let mut last = lock(last);
    *last += 1;
    *last
}

/// Drops a foreign value and catches its panic. The destructor of the payload may panic too; that second
/// payload is leaked, since this could go on forever.
pub(crate) fn discard<T>(value: T) {
    if let Err(payload) = wall(|| drop(value)) {
        if let Err(again) = wall(|| drop(payload)) {
            std::mem::forget(again);
        }
    }
}
