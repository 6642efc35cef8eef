//! The injector: how messages of other threads reach the ambient thread.
//!
//! A queue under a lock, which the ambient thread takes whole: so it takes the lock once for as many
//! messages as have come meanwhile, and its own queue, emptied, goes back to be filled. A channel of
//! std costs it an atomic step or two for every message and memory that it frees for another thread.

use std::collections::VecDeque;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Message;
use crate::error::lock;

pub(super) struct Injector {
    inbox: Mutex<Inbox>,
    arrived: Condvar,
    /// Whether the inbox holds something. Written under its lock, read without it.
    filled: AtomicBool,
}

struct Inbox {
    messages: VecDeque<Message>,
    /// Whether the ambient thread waits. Who unsets it wakes it: notifying a `Condvar` of std is a
    /// system call even when nobody waits.
    parked: bool,
    /// Set when the ambient thread has ended, for good.
    closed: bool,
}

/// Room for messages that a queue keeps; the memory of a larger burst is given back after it.
pub(super) const KEPT: usize = 4096;

impl Injector {
    pub(super) const fn new() -> Injector {
        Injector {
            inbox: Mutex::new(Inbox {
                messages: VecDeque::new(),
                parked: false,
                closed: false,
            }),
            arrived: Condvar::new(),
            filled: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        lock(&self.inbox)
    }

    /// Gives the message back if nobody takes it any more.
    pub(super) fn send(&self, message: Message) -> Result<(), Message> {
        let mut inbox = self.lock();
        if inbox.closed {
            return Err(message);
        }
        inbox.messages.push_back(message);
        if inbox.messages.len() == 1 {
            self.filled.store(true, Ordering::Release);
        }
        let parked = mem::take(&mut inbox.parked);
        drop(inbox);
        if parked {
            self.arrived.notify_one();
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.filled.load(Ordering::Acquire)
    }

    /// Puts all that has come into a queue that is empty.
    pub(super) fn take(&self, taken: &mut VecDeque<Message>) {
        if self.is_empty() {
            return;
        }
        let mut inbox = self.lock();
        mem::swap(&mut inbox.messages, taken);
        self.filled.store(false, Ordering::Relaxed);
    }

    /// Waits until something has come or the deadline has passed.
    pub(super) fn wait(&self, deadline: Option<Instant>) {
        let mut inbox = self.lock();
        while inbox.messages.is_empty() {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                break;
            }
            inbox.parked = true;
            inbox = match left {
                None => self
                    .arrived
                    .wait(inbox)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    let woken = self.arrived.wait_timeout(inbox, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        inbox.parked = false;
    }

    /// Takes no more; gives what has come.
    pub(super) fn close(&self) -> VecDeque<Message> {
        let mut inbox = self.lock();
        inbox.closed = true;
        mem::take(&mut inbox.messages)
    }
}
