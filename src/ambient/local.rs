//! Futures that are not `Send`.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::marker::PhantomData;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use super::task::spawn;
use crate::error::wall;
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
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    spawn(Proxy {
        number: NUMBER.fetch_add(1, Ordering::Relaxed),
        make: Some(make),
        future: PhantomData,
    })
}

/// Stands in the slab for a future that is not `Send`. It can be sent itself, because it holds only the
/// closure and the number under which the future lies in a thread-local of the ambient thread.
struct Proxy<M, F> {
    number: u64,
    make: Option<M>,
    future: PhantomData<fn() -> F>,
}

thread_local! {
    /// Each a `Pin<Box<F>>`. A future is out of it while it is polled.
    static FUTURES: RefCell<BTreeMap<u64, Box<dyn Any>>> = RefCell::default();
}

// Nothing is ever pinned in a proxy: the future is in a box of its own.
impl<M, F> Unpin for Proxy<M, F> {}

impl<M, F> Future for Proxy<M, F>
where
    M: FnOnce() -> F,
    F: Future + 'static,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut future: Box<dyn Any> = match self.make.take() {
            Some(make) => Box::new(Box::pin(make())),
            None => FUTURES
                .with_borrow_mut(|futures| futures.remove(&self.number))
                .expect("a local future stays where it was put"),
        };
        let pinned = future
            .downcast_mut::<Pin<Box<F>>>()
            .expect("the number is this future's");
        let polled = wall(|| pinned.as_mut().poll(cx));
        // It goes back in any case, to be dropped with the proxy, where a panic is caught.
        FUTURES.with_borrow_mut(|futures| futures.insert(self.number, future));
        polled.unwrap_or_else(|payload| resume_unwind(payload))
    }
}

impl<M, F> Drop for Proxy<M, F> {
    fn drop(&mut self) {
        // Out of the map first: the destructor is foreign code.
        let future = FUTURES.try_with(|futures| futures.borrow_mut().remove(&self.number));
        drop(future);
    }
}
