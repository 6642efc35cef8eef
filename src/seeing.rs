//! Seeing in: what the engines are doing.
//!
//! Floor 4: imports the future, the engines and the watch.

use std::time::Duration;

use crate::unfuture::promise;
use crate::watch::{Stats, TaskInfo};
use crate::{ambient, processes, role, threads};

/// How much there is of what, at this moment.
///
/// Cheap enough to be asked every second. The figures of different engines are not of the very same
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
    ambient::count(&mut stats);
    threads::count(&mut stats);
    processes::count(&mut stats);
    stats
}

/// How long the ambient thread has to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// All live work, with the line that started it: to find out what a program waits for.
///
/// The ambient thread is asked for its tasks; while a poll holds it up it cannot answer, and its tasks
/// are left out after a second. They are left out too if this is called on the ambient thread, or wherever
/// else [`result`](crate::Unfuture::result) does not block.
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
    let mut all = threads::list();
    all.extend(processes::list());
    if role::role().must_not_block().is_none() {
        let (promise, answer) = promise();
        ambient::list(Box::new(move |tasks| promise.finish(Ok(tasks))));
        if answer.wait_timeout(PATIENCE) {
            all.extend(answer.result().unwrap_or_default());
        } else {
            // So nobody is told that an answer was lost.
            answer.cancel();
        }
    }
    all
}
