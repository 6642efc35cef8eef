//! A latch: tells the threads that wait for it that something is over.
//!
//! A channel to which nothing is sent would do the same, but std's channels bring three implementations for each
//! type, 23 KiB of a program.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::error::lock;

/// Opens when its [`Opener`] is dropped, and stays open.
#[derive(Default)]
pub(super) struct Latch {
    is_open: Mutex<bool>,
    opened: Condvar,
}

pub(super) struct Opener(pub(super) Arc<Latch>);

impl Latch {
    /// Waits until the latch is open, or for the time of `limit`; returns whether it is open.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        let is_closed = |is_open: &mut bool| !*is_open;
        let waited = self
            .opened
            .wait_timeout_while(lock(&self.is_open), limit, is_closed);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        *lock(&self.0.is_open) = true;
        self.0.opened.notify_all();
    }
}
