//! The pool of spare buffers for large frames.
//!
//! Touching the pages of a new buffer for the first time costs about three times as much as the copy
//! into it, so the buffers of large frames are reused, for frames in either direction. Once none has been
//! filled for a second, however many small frames there are, a thread frees them and ends: without large
//! frames the pool costs nothing. The end of a worker frees them too, so that a shutdown does not leave the
//! thread behind.

use std::mem;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::start_thread;
use crate::error::lock;

/// A buffer is large if its capacity is above this.
pub(super) const LARGE: usize = 64 << 10;
/// How many buffers are kept, each as large as the largest frame that it held.
const KEPT: usize = 4;
/// How long buffers are kept after the last one was filled.
const REST: Duration = Duration::from_secs(1);

struct BufferPool {
    spare: Vec<Vec<u8>>,
    /// When a filled buffer last came back; `None` if there is no thread to free buffers, and thus no spare
    /// buffer.
    filled: Option<Instant>,
}

const EMPTY: BufferPool = BufferPool {
    spare: Vec::new(),
    filled: None,
};

static POOL: Mutex<BufferPool> = Mutex::new(EMPTY);
static FREED: Condvar = Condvar::new();

/// Moves the content of a buffer that may have to hold much more into a spare large one, if there is one.
pub(super) fn enlarge(buffer: &mut Vec<u8>) {
    if buffer.capacity() <= LARGE {
        // A statement of its own, so that the copy is made without the lock.
        let spare = lock(&POOL).spare.pop();
        if let Some(mut spare) = spare {
            spare.extend_from_slice(buffer);
            *buffer = spare;
        }
    }
}

/// Empties a buffer whose content is no longer needed; a large one goes into the pool.
pub(super) fn recycle(buffer: &mut Vec<u8>) {
    // A buffer that was enlarged and then held little is no sign that a large one will be needed.
    let is_filled = buffer.len() >= buffer.capacity() / 4;
    buffer.clear();
    if buffer.capacity() <= LARGE {
        return;
    }
    // Declared before the guard, so that a buffer that is not kept is freed after the unlock.
    let buffer = mem::take(buffer);
    let mut pool = lock(&POOL);
    let is_watched = pool.filled.is_some();
    if is_filled {
        pool.filled = Some(Instant::now());
    }
    if pool.filled.is_none() || pool.spare.len() == KEPT {
        return;
    }
    pool.spare.push(buffer);
    drop(pool);
    if !is_watched && start_thread("buffers", Box::new(watch)).is_err() {
        free();
    }
}

/// The body of the thread that frees the buffers.
fn watch() {
    let rest = |pool: &BufferPool| REST.checked_sub(pool.filled?.elapsed());
    let mut pool = lock(&POOL);
    while let Some(rest) = rest(&pool) {
        let waited = FREED.wait_timeout(pool, rest);
        pool = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
    drop(pool);
    free();
}

/// Frees the spare buffers, and ends the thread.
pub(super) fn free() {
    // A statement of its own, so that the buffers are freed without the lock.
    let old = mem::replace(&mut *lock(&POOL), EMPTY);
    drop(old);
    FREED.notify_all();
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::MutexGuard;

    use super::*;

    /// For tests that look at the memory of buffers, since spare buffers are shared. Starts with none.
    pub(in super::super) fn turn() -> MutexGuard<'static, ()> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = lock(&TURN);
        free();
        turn
    }

    #[test]
    fn the_memory_of_a_large_buffer_is_used_again() {
        let _turn = turn();
        let mut large = vec![7; 2 * LARGE];
        let memory = large.as_ptr();
        recycle(&mut large);
        assert_eq!(large.capacity(), 0);
        let mut another = vec![1, 2, 3];
        enlarge(&mut another);
        assert_eq!((another.as_ptr(), &another[..]), (memory, &[1, 2, 3][..]));
        // As it is large itself, it needs no other.
        recycle(&mut vec![7; 2 * LARGE]);
        enlarge(&mut another);
        assert_eq!(another.as_ptr(), memory);
    }

    #[test]
    fn a_few_large_buffers_are_kept_and_no_small_one() {
        let _turn = turn();
        recycle(&mut vec![7; LARGE]);
        for _ in 0..2 * KEPT {
            recycle(&mut vec![7; 2 * LARGE]);
        }
        let kept = || {
            let mut buffer = Vec::new();
            enlarge(&mut buffer);
            (buffer.capacity() > 0).then_some(buffer)
        };
        let kept: Vec<_> = std::iter::from_fn(kept).collect();
        assert_eq!(kept.len(), KEPT);
        assert!(kept.iter().all(|buffer| buffer.capacity() == 2 * LARGE));
    }
}
