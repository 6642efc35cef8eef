//! Many at once.
//!
//! Nobody polls here: each piece of work reports when it ends, so that n pieces cost n steps, whatever
//! their order.
//!
//! Floor 4: imports the future.

use std::panic::Location;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, discard};
use crate::slot::OnBegin;
use crate::unfuture::{Promise, Reason, Stop, Unfuture, derived};

/// Waits for all: the values in the order of the input, or the first error.
///
/// The first error resolves it at once; the other works go on. Cancelling it cancels them all.
///
/// # Examples
///
/// ```
/// let squares = unsync::join_all((1..=3u32).map(|n| unsync::spawn(async move { n * n })));
/// assert_eq!(squares.result().unwrap(), [1, 4, 9]);
/// ```
#[track_caller]
pub fn join_all<T, I>(works: I) -> Unfuture<Vec<T>>
where
    T: Send + 'static,
    I: IntoIterator<Item = Unfuture<T>>,
{
    let origin = Location::caller();
    let works: Vec<Unfuture<T>> = works.into_iter().collect();
    let all = All(works.iter().filter_map(Unfuture::stopper).collect());
    let (promise, joined) = derived(origin, Some(Arc::new(all)));
    if works.is_empty() {
        promise.set(Vec::new());
        return joined;
    }
    let missing = works.len();
    let values = works.iter().map(|_| None).collect();
    let join = Arc::new(Mutex::new(Some(Join {
        promise,
        values,
        missing,
    })));
    for (index, work) in works.into_iter().enumerate() {
        let join = Arc::clone(&join);
        work.when_done(move |outcome| Join::arrive(&join, index, outcome));
    }
    joined
}

struct Join<T> {
    promise: Promise<Vec<T>>,
    values: Vec<Option<T>>,
    missing: usize,
}

impl<T> Join<T> {
    /// `join` is `None` once it was resolved.
    fn arrive(join: &Mutex<Option<Join<T>>>, index: usize, outcome: Result<T, Error>) {
        let mut guard = join.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = guard.as_mut() else {
            drop(guard);
            return discard(outcome);
        };
        let failure = match outcome {
            Ok(value) => {
                open.values[index] = Some(value);
                open.missing -= 1;
                if open.missing > 0 {
                    return;
                }
                None
            }
            Err(error) => Some(error),
        };
        let resolved = guard.take();
        drop(guard);
        if let Some(Join {
            promise, values, ..
        }) = resolved
        {
            promise.finish(match failure {
                None => Ok(values.into_iter().flatten().collect()),
                Some(error) => {
                    discard(values);
                    Err(error)
                }
            });
        }
    }
}

/// Stops everything in it.
struct All(Vec<Arc<dyn Stop>>);

impl Stop for All {
    fn stop(self: Arc<Self>, reason: Reason) -> bool {
        let stopped = self.0.iter().map(|work| Arc::clone(work).stop(reason));
        stopped.fold(false, |any, one| any | one)
    }

    /// Begun is the whole of it from the start: nobody can mean the last of many.
    fn when_begun(self: Arc<Self>, call: OnBegin) {
        call();
    }
}
