//! Running a future on the calling thread.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::current::{assert_may_block, blocking};
use crate::slot::run_deferred;
use crate::spin::Spin;
use crate::sync::Instant;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::thread::{self, Thread};

/// Runs a future to completion on the calling thread.
///
/// The future may borrow and need not be `Send`. Calls may be nested. Inside another runtime, it blocks
/// a thread of that runtime, like any blocking call.
///
/// # Panics
///
/// Panics if the future panics, and on a thread where [`result`](crate::Unfuture::result) never blocks, such as
/// the ambient thread.
///
/// # Examples
///
/// ```
/// let name = String::from("world");
/// let greeting = unsync::block_on(async { format!("hello {name}") });
/// assert_eq!(greeting, "hello world");
/// ```
#[track_caller]
pub fn block_on<F: Future>(future: F) -> F::Output {
    assert_may_block(|thread| format!("block_on would block {thread}; `.await` in a task instead"));
    block_on_until(future, None).expect("without a deadline it waits to the end")
}

/// The same on a thread that may block; `None` when the deadline has passed.
pub(crate) fn block_on_until<F: Future>(future: F, deadline: Option<Instant>) -> Option<F::Output> {
    let mut future = pin!(future);
    let signal = Arc::new(Signal {
        is_set: AtomicBool::new(false),
        thread: thread::current(),
    });
    let waker = Waker::from(Arc::clone(&signal));
    let mut cx = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return Some(output);
        }
        run_deferred();
        if !signal.wait_until(deadline) {
            return None;
        }
    }
}

/// The waker. The flag is what counts, and the park token is only a hint: code inside `poll` may block
/// through std and consume the token (a plain `mpsc::Receiver::recv` is enough), and then a wake-up that was
/// only the token would be lost.
struct Signal {
    is_set: AtomicBool,
    thread: Thread,
}

impl Signal {
    /// Waits until it is set, and unsets it; `false` when the deadline has passed.
    fn wait_until(&self, deadline: Option<Instant>) -> bool {
        static SPIN: Spin = Spin::new();
        let take = || self.is_set.swap(false, Ordering::Acquire).then_some(());
        if SPIN.attempt(take).is_some() {
            return true;
        }
        blocking(|| {
            while take().is_none() {
                match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                    None => thread::park(),
                    Some(Duration::ZERO) => return false,
                    Some(left) => thread::park_timeout(left),
                }
            }
            true
        })
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_set.swap(true, Ordering::Release) {
            self.thread.unpark();
        }
    }
}
