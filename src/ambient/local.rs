//! Futures that are not `Send`.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::panic::resume_unwind;
use std::pin::Pin;

use super::task::spawn;
use crate::error::{next_number, wall};
use crate::sync::Mutex;
use crate::unfuture::Unfuture;

/// Starts a future that need not be `Send`. The closure makes it on the ambient thread, where it stays until
/// it is dropped.
///
/// # Errors
///
/// As [`spawn`]; a panic of the closure is a panic of the task.
///
/// # Examples
///
/// ```
/// use std::rc::Rc;
///
/// let task = unsync::spawn_local(|| async {
///     let shared = Rc::new(20);
///     unsync::yield_now().await;
///     *shared + 1
/// });
/// assert_eq!(task.result().unwrap(), 21);
/// ```
#[track_caller]
pub fn spawn_local<M, F>(make: M) -> Unfuture<F::Output>
where
    M: FnOnce() -> F + Send + 'static,
    F: Future + 'static,
    F::Output: Send + 'static,
{
    static LAST: Mutex<u64> = Mutex::new(0);
    let place = Place(next_number(&LAST));
    let mut make = Some(make);
    spawn(poll_fn(move |cx| {
        let mut future: Box<dyn Any> = match make.take() {
            Some(make) => Box::new(Box::pin(make())),
            None => place.take().expect("a local future stays in its place"),
        };
        let pinned = future
            .downcast_mut::<Pin<Box<F>>>()
            .expect("the place is this future's");
        let polled = wall(|| pinned.as_mut().poll(cx));
        // The future goes back in any case, to be dropped with the task, where a panic is caught.
        FUTURES.with_borrow_mut(|futures| futures.insert(place.0, future));
        polled.unwrap_or_else(|payload| resume_unwind(payload))
    }))
}

thread_local! {
    /// Filled only on the ambient thread; each entry is a `Pin<Box<F>>`. A future is out of the map while it
    /// is polled.
    static FUTURES: RefCell<BTreeMap<u64, Box<dyn Any>>> = RefCell::default();
}

/// The place of a future that is not `Send`. The task holds this instead of the future, so the task can be
/// sent.
struct Place(u64);

impl Place {
    fn take(&self) -> Option<Box<dyn Any>> {
        let future = FUTURES.try_with(|futures| futures.borrow_mut().remove(&self.0));
        future.ok().flatten()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Out of the map first, because the destructor is foreign code.
        drop(self.take());
    }
}
