//! Large buffers between two uses.
//!
//! The pages of a fresh buffer cost about three times as much as the copy into it. So the buffers of
//! large frames are used again, for frames of either direction. When nothing has filled one for a second
//! they go back to the system, however many small frames there are.
//!
//! Pure: knows neither frame nor process.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::error::lock;

/// From here on a buffer is large.
pub(super) const LARGE: usize = 64 << 10;
/// How many are kept, each as large as the largest frame that it held.
const KEPT: usize = 4;
/// How long they are kept without being needed.
pub(super) const REST: Duration = Duration::from_secs(1);

struct Shelf {
    buffers: Vec<Vec<u8>>,
    /// When one was last given that had been needed.
    needed: Option<Instant>,
}

impl Shelf {
    /// Takes out all of them, if none was needed for so long.
    fn outdated(&mut self, rest: Duration) -> Vec<Vec<u8>> {
        if self.needed.is_some_and(|needed| needed.elapsed() < rest) {
            return Vec::new();
        }
        mem::take(&mut self.buffers)
    }
}

static SHELF: Mutex<Shelf> = Mutex::new(Shelf {
    buffers: Vec::new(),
    needed: None,
});
/// Whether the shelf may hold something, for the many calls that need nothing of it.
static FILLED: AtomicBool = AtomicBool::new(false);

fn shelf() -> MutexGuard<'static, Shelf> {
    lock(&SHELF)
}

/// Makes a buffer that may have to hold much a large one, if there is one to spare.
pub(super) fn lend(buffer: &mut Vec<u8>) {
    if is_empty() || buffer.capacity() > LARGE {
        return;
    }
    clear(REST);
    let mut shelf = shelf();
    let spare = shelf.buffers.pop();
    FILLED.store(!shelf.buffers.is_empty(), Ordering::Relaxed);
    drop(shelf);
    if let Some(mut spare) = spare {
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
    // What was lent in case that much would come, and held little, does not count.
    let needed = buffer.len() > LARGE && buffer.len() >= buffer.capacity() / 4;
    buffer.clear();
    let mut shelf = shelf();
    if needed {
        shelf.needed = Some(Instant::now());
    }
    if shelf.buffers.len() < KEPT {
        shelf.buffers.push(buffer);
        FILLED.store(true, Ordering::Relaxed);
    }
}

/// Gives back to the system what was not needed for some time.
pub(super) fn clear(rest: Duration) {
    if is_empty() {
        return;
    }
    let mut shelf = shelf();
    let outdated = shelf.outdated(rest);
    FILLED.store(!shelf.buffers.is_empty(), Ordering::Relaxed);
    drop(shelf);
    drop(outdated);
}

pub(super) fn is_empty() -> bool {
    !FILLED.load(Ordering::Relaxed)
}
