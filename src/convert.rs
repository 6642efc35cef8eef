//! Conversions: a thread or a channel of std becomes an [`Unfuture`].
//!
//! Each costs a pool thread that waits, since std has no other way to learn of the end. Like every waiting
//! thread, it does not count against the limit of the pool.

use std::panic::Location;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;

use crate::current::blocking;
use crate::error::{Error, ErrorKind};
use crate::threads::try_thread;
use crate::unfuture::Unfuture;

/// Resolves to the value of a thread, or as [`ErrorKind::Panicked`].
///
/// A thread cannot be stopped, so cancelling the `Unfuture` does nothing once a pool thread waits.
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

/// Resolves to the first value of a channel, or as [`ErrorKind::Abandoned`] if the channel is closed without
/// one.
///
/// Later values are dropped with the channel; to get all of them, keep the receiver in a
/// [`Pinned`](crate::Pinned). Cancelling the `Unfuture` does nothing once a pool thread waits: drop the
/// senders.
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
/// One value after another:
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
