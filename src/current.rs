//! What this thread is: whether it may block, and the job that it runs.
//!
//! Engines set it for their threads and futures read it, so a future need not know any engine.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use crate::error::discard;

/// What a thread is.
#[derive(Clone, Copy)]
pub(crate) enum Current {
    Ordinary,
    /// Must never block.
    Ambient,
    /// Reads from a worker process. Every call depends on it, so it must never block either, although it runs
    /// code of the program: it decodes results.
    Reader,
    /// Tells its pool before and after it blocks, so that it does not count against the limit.
    Pool {
        blocks: fn(),
        resumes: fn(),
    },
    /// Runs the calls in a worker process.
    Worker,
}

thread_local! {
    /// Needs no drop, so it can be read until the thread has ended.
    static CURRENT: Cell<Current> = const { Cell::new(Current::Ordinary) };
    /// May be gone when the destructor of another thread-local asks for it.
    static JOB: RefCell<Option<Arc<dyn Job>>> = const { RefCell::new(None) };
}

impl Current {
    pub(crate) fn get() -> Current {
        CURRENT.get()
    }

    /// Says what this thread is from now on.
    pub(crate) fn set(self) {
        CURRENT.set(self);
    }
}

/// What this thread is, if it must never block.
pub(crate) fn must_not_block() -> Option<&'static str> {
    match Current::get() {
        Current::Ambient => Some("the ambient thread"),
        Current::Reader => Some("a thread that reads from a worker process"),
        Current::Ordinary | Current::Pool { .. } | Current::Worker => None,
    }
}

/// Panics on a thread that must never block. `complain` is given what that thread is.
#[track_caller]
pub(crate) fn assert_may_block(complain: impl FnOnce(&str) -> String) {
    if let Some(thread) = must_not_block() {
        panic!("{}", complain(thread));
    }
}

/// Runs code that parks the thread and calls nothing foreign.
pub(crate) fn blocking<R>(park: impl FnOnce() -> R) -> R {
    let pool = Current::get();
    let Current::Pool { blocks, resumes } = pool else {
        return park();
    };
    // It counts once: what the pool does in here may drop jobs, whose destructors may wait.
    Current::Ordinary.set();
    blocks();
    let parked = park();
    resumes();
    pool.set();
    parked
}

/// Work that runs on a thread and can be cancelled.
pub(crate) trait Job: Send + Sync {
    fn is_cancelled(&self) -> bool;
}

/// Runs a step of a job, which drops the job last of all if the thread-locals are there. The step may be part of
/// another job.
pub(crate) fn run(job: Arc<dyn Job>, step: impl FnOnce()) {
    let outer = JOB.try_with(|current| current.replace(Some(job)));
    step();
    if let Ok(outer) = outer {
        discard(JOB.replace(outer));
    }
}

/// Returns whether the work that runs on this thread was cancelled, or is a job that a
/// [`shutdown`](crate::shutdown) waits for, so that it can end by itself.
///
/// Call it in the closure of a [`thread`](crate::thread()) job or of a call of a [`Pinned`](crate::Pinned)
/// value, or in the function of a [`cpu`](crate::cpu()) call, on the thread that runs them. Elsewhere it
/// returns `false`: an async task that is cancelled is not polled again. A `cpu` function sees a
/// cancellation only with [`cancel_grace`](crate::Config::cancel_grace); by default its worker is killed
/// immediately.
///
/// # Examples
///
/// ```
/// let (started, running) = std::sync::mpsc::channel();
/// let job = unsync::thread(move || {
///     started.send(()).unwrap();
///     while !unsync::is_cancelled() {
///         std::thread::yield_now();
///     }
///     "tidied up"
/// });
/// running.recv().unwrap();
/// job.cancel();
/// assert_eq!(job.result().unwrap(), "tidied up");
/// ```
pub fn is_cancelled() -> bool {
    let is_cancelled = |job: &Arc<dyn Job>| job.is_cancelled();
    let asked = JOB.try_with(|job| job.borrow().as_ref().is_some_and(is_cancelled));
    asked.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    struct Known(bool);

    impl Job for Known {
        fn is_cancelled(&self) -> bool {
            self.0
        }
    }

    #[test]
    fn a_step_may_be_part_of_another_job() {
        run(Arc::new(Known(true)), || {
            run(Arc::new(Known(false)), || assert!(!is_cancelled()));
            assert!(is_cancelled());
        });
        assert!(!is_cancelled());
    }

    #[test]
    fn a_step_may_run_in_the_destructor_of_a_thread_local() {
        struct Last(mpsc::Sender<()>);

        impl Drop for Last {
            fn drop(&mut self) {
                run(Arc::new(Known(true)), || self.0.send(()).unwrap());
            }
        }

        thread_local! {
            static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
        }

        let (sender, receiver) = mpsc::channel();
        for comes_first in [true, false] {
            let last = Last(sender.clone());
            let body = move || {
                if comes_first {
                    LAST.set(Some(last));
                    assert!(!is_cancelled());
                } else {
                    assert!(!is_cancelled());
                    LAST.set(Some(last));
                }
            };
            thread::spawn(body).join().unwrap();
            receiver.recv_timeout(Duration::from_secs(30)).unwrap();
        }
    }
}
