//! The program as a whole: waiting for its work, shutting it down, and looking at it.

use std::time::{Duration, Instant};

use crate::current::{assert_may_block, must_not_block};
use crate::engine::{self, Engine, OnIdle, Stats, TaskInfo};
use crate::error::{Error, ErrorKind};
use crate::unfuture::promise;

/// Waits until all work has ended, or until the limit; returns whether all work has ended.
///
/// Work that is started in the meantime counts too; calls on a [`Pinned`](crate::Pinned) value do not. Without
/// this call, unfinished work ends silently with the process, as with a daemon thread.
///
/// A thread job that calls this waits for itself too, so it waits until the limit, and so does the destructor of
/// one that is cancelled. Every engine is asked, so with a limit below some milliseconds the answer may be
/// `false` although nothing runs.
///
/// # Panics
///
/// Panics on a thread where [`result`](crate::Unfuture::result) never blocks, such as the ambient thread, which
/// would wait for itself.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// let task = unsync::spawn(async { println!("done") });
/// drop(task); // the work continues
/// assert!(unsync::drain(Duration::from_secs(5)));
/// ```
#[track_caller]
pub fn drain(limit: Duration) -> bool {
    assert_may_block(|thread| format!("drain would block {thread}"));
    let deadline = Instant::now().checked_add(limit);
    let mut before = None;
    loop {
        let Ok(begun) = ask(|engine| engine.when_idle, deadline) else {
            return false;
        };
        // Work of one engine may have started work of another that had already been asked. If nothing has
        // begun since the last round, all engines were idle at once.
        if before.as_ref() == Some(&begun) {
            return true;
        }
        before = Some(begun);
    }
}

/// Waits for all work, stops what is left at the limit, and ends all threads and worker processes.
///
/// Of what is left, futures are dropped, on the ambient thread; queued jobs and calls are not run; worker
/// processes are killed. All of that work resolves as [`ErrorKind::ShutDown`], and so does all work that is
/// started later. A running thread job cannot be stopped, but sees [`is_cancelled`](crate::is_cancelled). A
/// thread job that calls this waits for itself until the limit, as in [`drain`]. The shutdown is final; a second
/// call does no harm.
///
/// # Errors
///
/// [`ErrorKind::TimedOut`] if something still runs at the limit, which the error names, and
/// [`ErrorKind::WouldBlock`] on a thread where [`result`](crate::Unfuture::result) never blocks, such as the
/// ambient thread.
///
/// # Examples
///
/// ```standalone_crate
/// use std::time::Duration;
///
/// # fn main() -> Result<(), unsync::Error> {
/// unsync::thread(|| 1).result()?;
/// unsync::shutdown(Duration::from_secs(5))?;
/// assert_eq!(unsync::thread(|| 1).result().unwrap_err().kind(), unsync::ErrorKind::ShutDown);
/// # Ok(())
/// # }
/// ```
pub fn shutdown(limit: Duration) -> Result<(), Error> {
    if let Some(thread) = must_not_block() {
        let text = format!("shutdown would block {thread}");
        return Err(Error::new(ErrorKind::WouldBlock, text));
    }
    let deadline = Instant::now().checked_add(limit);
    // Part of the time is reserved for the end itself.
    let reserve = (limit / 10).max(RESERVE).min(limit / 2);
    drain(limit - reserve);
    engine::close();
    ask(|engine| engine.close, deadline)
        .map(drop)
        .map_err(|running| {
            let text = format!("the shutdown took longer than {limit:?}: {running} still run");
            Error::new(ErrorKind::TimedOut, text)
        })
}

/// How long threads and processes should have to end, if the limit leaves that much.
const RESERVE: Duration = Duration::from_millis(200);

/// Asks every engine, and waits for the answers: how many jobs, tasks or calls each has ever begun. Fails
/// with the name of an engine that has not answered by the deadline.
fn ask(
    question: fn(&Engine) -> fn(OnIdle),
    deadline: Option<Instant>,
) -> Result<Vec<u64>, &'static str> {
    let ask_one = |engine: &'static Engine| {
        let (promise, answer) = promise();
        question(engine)(Box::new(move |begun| _ = promise.set(begun)));
        (engine.name, answer)
    };
    let asked: Vec<_> = engine::entered().into_iter().map(ask_one).collect();
    let mut all = Vec::new();
    for (name, answer) in asked {
        if !answer.wait_until(deadline) {
            return Err(name);
        }
        // If an answer was dropped because its thread ended, that engine is idle.
        all.push(answer.result().unwrap_or(0));
    }
    Ok(all)
}

/// Returns the current counts of tasks, jobs, calls, threads and workers.
///
/// It is cheap enough to call every second. The counts of different engines are not taken at exactly the same
/// moment.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// let sleeper = unsync::spawn(unsync::sleep(Duration::MAX)).cancel_on_drop();
/// while unsync::stats().async_tasks == 0 {
///     std::thread::yield_now();
/// }
/// ```
pub fn stats() -> Stats {
    let mut stats = Stats::default();
    for engine in engine::entered() {
        (engine.count)(&mut stats);
    }
    stats
}

/// How long the ambient thread has to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Lists all live work, with the line that started it: to find out what a program waits for.
///
/// Not listed are jobs and calls that wait for a place in a [`Limit`](crate::Limit), calls on a
/// [`Pinned`](crate::Pinned) value, and promises.
///
/// The ambient thread lists its own tasks. If a poll blocks it for a second, its tasks are left out. They are
/// also left out if this is called on a thread where [`result`](crate::Unfuture::result) never blocks, such as
/// the ambient thread.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// let sleeper = unsync::spawn(unsync::sleep(Duration::MAX)).cancel_on_drop();
/// let line = line!() - 1;
/// assert!(unsync::tasks().iter().any(|task| task.started_at.line() == line));
/// ```
pub fn tasks() -> Vec<TaskInfo> {
    let may_block = must_not_block().is_none();
    let mut all = Vec::new();
    for engine in engine::entered() {
        let (promise, answer) = promise();
        (engine.list)(Box::new(move |tasks| _ = promise.set(tasks)));
        let is_given = answer.is_done() || (may_block && answer.wait_timeout(PATIENCE));
        if !is_given {
            answer.cancel();
        }
        all.extend(answer.result().unwrap_or_default());
    }
    all
}
