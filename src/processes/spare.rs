//! Large buffers between two uses.
//!
//! The pages of a fresh buffer cost about three times as much as the copy into it. So the buffers of
//! large frames are used again, for frames of either direction; what has lain here for a second goes
//! back to the system.
//!
//! Pure: knows neither frame nor process.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// From here on a buffer is large.
pub(super) const LARGE: usize = 64 << 10;
/// How many are kept, each as large as the largest frame that it held.
const KEPT: usize = 4;
/// How long they are kept without being used.
pub(super) const REST: Duration = Duration::from_secs(1);

static SHELF: Mutex<Vec<(Vec<u8>, Instant)>> = Mutex::new(Vec::new());
/// Whether the shelf may hold something, for the many calls that need nothing of it.
static FILLED: AtomicBool = AtomicBool::new(false);

fn shelf() -> MutexGuard<'static, Vec<(Vec<u8>, Instant)>> {
    SHELF.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a buffer that may have to hold much a large one, if there is one to spare.
pub(super) fn lend(buffer: &mut Vec<u8>) {
    if is_empty() || buffer.capacity() > LARGE {
        return;
    }
    let mut shelf = shelf();
    let spare = shelf.pop();
    FILLED.store(!shelf.is_empty(), Ordering::Relaxed);
    drop(shelf);
    if let Some((mut spare, _)) = spare {
        spare.extend_from_slice(buffer);
        *buffer = spare;
    }
}

/// Takes the memory of a buffer whose content is not needed any more, if it is worth keeping.
pub(super) fn give(buffer: &mut Vec<u8>) {
    if buffer.capacity() <= LARGE {
        return;
    }
    let mut buffer = mem::take(buffer);
    buffer.clear();
    let mut shelf = shelf();
    if shelf.len() < KEPT {
        shelf.push((buffer, Instant::now()));
        FILLED.store(true, Ordering::Relaxed);
    }
}

/// Gives back to the system what was not used for some time.
pub(super) fn clear(rest: Duration) {
    if is_empty() {
        return;
    }
    let mut shelf = shelf();
    shelf.retain(|(_, since)| since.elapsed() < rest);
    FILLED.store(!shelf.is_empty(), Ordering::Relaxed);
}

pub(super) fn is_empty() -> bool {
    !FILLED.load(Ordering::Relaxed)
}
