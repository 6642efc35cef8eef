//! What threads synchronise with, from std. `tests/models` compiles the files that use this module with its
//! own in its place, and runs them under every schedule.

pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError, atomic, mpsc};
pub(crate) use std::thread;
pub(crate) use std::time::Instant;
