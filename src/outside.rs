//! Ways in: what was started without this library becomes an [`Unfuture`].
//!
//! Each costs a pool thread that waits, since std has no other way to learn of the end. It does not
//! count against the limit of the pool, as no thread does that waits.
//!
//! Floor 4: imports the thread pool and the future.

use std::panic::Location;
use std::process::{Child, ExitStatus};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::current::blocking;
use crate::error::{Error, ErrorKind, discard, lock};
use crate::slot::already_taken;
use crate::threads::{self, Culprit, thread, try_thread};
use crate::unfuture::{Reason, Stop, Stopping, Unfuture};

/// The value of a thread, or [`ErrorKind::Panicked`].
///
/// A thread cannot be stopped, so cancelling it does nothing once a pool thread waits for it.
///
/// # Examples
///
/// ```
/// let seven = unsync::Unfuture::from(std::thread::spawn(|| 7));
/// assert_eq!(seven.result().unwrap(), 7);
/// ```
impl<T: Send + 'static> From<JoinHandle<T>> for Unfuture<T> {
    #[track_caller]
    fn from(handle: JoinHandle<T>) -> Unfuture<T> {
        let origin = Location::caller();
        let join = move || blocking(|| handle.join());
        try_thread(origin, move || {
            join().map_err(|payload| Error::panicked("std thread", payload).started_at(origin))
        })
    }
}

/// The first value of a channel, or [`ErrorKind::Abandoned`] if it is closed without one.
///
/// Later values are dropped with the channel; for all of them, keep the receiver in a
/// [`Pinned`](crate::Pinned). Cancelling it does nothing once a pool thread waits: drop the senders.
///
/// # Examples
///
/// ```
/// let (sender, receiver) = std::sync::mpsc::channel();
/// let first = unsync::Unfuture::from(receiver);
/// sender.send(8).unwrap();
/// assert_eq!(first.result().unwrap(), 8);
/// ```
///
/// One value after the other:
///
/// ```
/// let (sender, receiver) = std::sync::mpsc::channel();
/// let values = unsync::Pinned::new(move || receiver);
/// let next = || values.call(|receiver| receiver.recv().ok());
/// let (first, second, none) = (next(), next(), next());
/// sender.send(8).unwrap();
/// sender.send(9).unwrap();
/// drop(sender);
/// assert_eq!(first.result().unwrap(), Some(8));
/// assert_eq!(second.result().unwrap(), Some(9));
/// assert_eq!(none.result().unwrap(), None);
/// ```
impl<T: Send + 'static> From<Receiver<T>> for Unfuture<T> {
    #[track_caller]
    fn from(receiver: Receiver<T>) -> Unfuture<T> {
        let origin = Location::caller();
        try_thread(origin, move || {
            blocking(|| receiver.recv()).map_err(|_| {
                let text = "the channel was closed without a value";
                Error::new(ErrorKind::Abandoned, text).started_at(origin)
            })
        })
    }
}

/// The exit status of a child process. Cancelling it, or a deadline, kills the process.
///
/// The child is reaped, however it ends; only if there is no thread to wait for it, it is left
/// alone, as std does it. A pool thread waits for it, which looks every 10 ms at the latest. Its
/// standard input is closed, as by [`Child::wait`]; take piped output out before, and read it, or the
/// child may wait for ever with a full pipe.
///
/// # Errors
///
/// Resolves as [`ErrorKind::Os`] if the operating system cannot tell how the child ended.
///
/// # Examples
///
/// ```
/// use std::process::{Command, Stdio};
///
/// let child = Command::new("whoami").stdout(Stdio::null()).spawn().unwrap();
/// assert!(unsync::Unfuture::from(child).result().unwrap().success());
/// ```
impl From<Child> for Unfuture<ExitStatus> {
    #[track_caller]
    fn from(child: Child) -> Unfuture<ExitStatus> {
        let origin = Location::caller();
        let leash = Arc::new(Leash::default());
        let mut held = Held {
            child: Some(child),
            leash: Arc::clone(&leash),
        };
        let mut wait = move || blocking(|| held.wait());
        let (status, prepared) = threads::prepare(origin, Culprit::Child, move || {
            wait().map_err(|error| error.started_at(origin))
        });
        if let Some(job) = status.pass_on() {
            leash.job.get_or_init(|| job);
        }
        prepared.submit();
        // The child runs already.
        let source: Weak<Leash> = Arc::downgrade(&leash);
        status.with(Some(leash), Some(source), None)
    }
}

/// Waits for a child and kills it on demand. In std both need the `Child`, which waits in one go or
/// not at all; so the wait is a look from time to time, and only the demand is an event.
#[derive(Default)]
struct Leash {
    fate: Mutex<Fate>,
    pulled: Condvar,
    /// The wait, which may still stand in the queue of the pool.
    job: OnceLock<Weak<dyn Stop>>,
}

/// A child, to be waited for.
struct Held {
    child: Option<Child>,
    leash: Arc<Leash>,
}

impl Held {
    fn wait(&mut self) -> Result<ExitStatus, Error> {
        match self.child.take() {
            Some(mut child) => self.leash.hold(&mut child),
            None => Err(already_taken()),
        }
    }
}

/// It was stopped before a thread came to wait for it.
impl Drop for Held {
    fn drop(&mut self) {
        let doom = self.leash.doom();
        if let (Some(mut child), Some(_)) = (self.child.take(), doom) {
            discard(child.kill());
            // To reap it may take a moment, which is not that of the one who stops it.
            drop(thread(move || child.wait()));
        }
    }
}

#[derive(Clone, Copy, Default)]
enum Fate {
    #[default]
    Lives,
    /// To be killed, for this reason. Set by `stop`, never left.
    Doomed(Reason),
    /// It ended by itself. Set when that was seen, never left.
    Ended,
}

/// The pause between two looks: short at first, for a child that ends soon.
const PAUSE_MIN: Duration = Duration::from_micros(100);
const PAUSE_MAX: Duration = Duration::from_millis(10);

impl Leash {
    fn fate(&self) -> MutexGuard<'_, Fate> {
        lock(&self.fate)
    }

    /// What is said of a child that is to be killed.
    fn doom(&self) -> Option<Error> {
        match *self.fate() {
            Fate::Doomed(reason) => Some(reason.error(Culprit::Child.name())),
            Fate::Lives | Fate::Ended => None,
        }
    }

    /// Waits for the end of the child, whatever it is.
    fn hold(&self, child: &mut Child) -> Result<ExitStatus, Error> {
        drop(child.stdin.take());
        let mut pause = PAUSE_MIN;
        loop {
            let text = "the end of a child process could not be seen";
            let ended = child.try_wait().map_err(|error| Error::os(text, error));
            let mut fate = self.fate();
            if let Fate::Doomed(reason) = *fate {
                drop(fate);
                end(child);
                return Err(reason.error(Culprit::Child.name()));
            }
            if let Some(ended) = ended.transpose() {
                *fate = Fate::Ended;
                return ended;
            }
            drop(self.pulled.wait_timeout(fate, pause));
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// Kills the child and reaps it.
fn end(child: &mut Child) {
    // It may have ended just now; then there is nothing to kill and all the same something to reap.
    discard(child.kill());
    discard(child.wait());
}

impl Stop for Leash {
    fn stop(self: Arc<Self>, reason: Reason) -> Stopping {
        let mut fate = self.fate();
        match *fate {
            Fate::Lives => *fate = Fate::Doomed(reason),
            Fate::Doomed(before) if before.kind() == reason.kind() => return Stopping::Yes,
            Fate::Doomed(_) => return Stopping::Otherwise,
            Fate::Ended => return Stopping::No,
        }
        drop(fate);
        self.pulled.notify_one();
        if let Some(job) = self.job.get().and_then(Weak::upgrade) {
            // If it still waits for a thread, it is over now.
            job.stop(reason);
        }
        Stopping::Yes
    }
}
