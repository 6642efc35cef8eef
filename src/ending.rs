//! The end: waiting for all work, and shutting down.
//!
//! Floor 4: imports the future and the engines.

use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind};
use crate::role::{assert_may_block, role};
use crate::unfuture::{OnQuiet, promise};
use crate::{ambient, processes, threads};

/// What can be asked of every engine. It answers with the number of works that it ever began.
type Ask = [(&'static str, fn(OnQuiet)); 3];

const QUIET: Ask = [
    ("async tasks", ambient::when_quiet),
    ("thread jobs", threads::when_quiet),
    ("worker processes", processes::when_quiet),
];

const CLOSE: Ask = [
    ("async tasks", ambient::close),
    ("thread jobs", threads::close),
    ("worker processes", processes::close),
];

/// Waits until all work that was started has ended, or the limit has passed; says whether it has ended.
///
/// Work that is started meanwhile counts too. Without this, the end of the process ends unfinished
/// work unheard, like that of a daemon thread.
///
/// Called by a job of the thread pool it waits for that job too: until the limit.
///
/// # Panics
///
/// On the ambient thread, which would wait for itself, and wherever else
/// [`result`](crate::Unfuture::result) does not block.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// let task = unsync::spawn(async { println!("heard") });
/// drop(task); // the work goes on
/// assert!(unsync::drain(Duration::from_secs(5)));
/// ```
#[track_caller]
pub fn drain(limit: Duration) -> bool {
    assert_may_block(|thread| format!("drain would block {thread}"));
    let deadline = Instant::now().checked_add(limit);
    let mut before = None;
    loop {
        let Ok(works) = ask(&QUIET, deadline) else {
            return false;
        };
        // One kind of work may have started another that was asked before. If nothing was started
        // since the last time, then all were quiet at once.
        if before == Some(works) {
            return true;
        }
        before = Some(works);
    }
}

/// Waits for all work, stops what is left at the limit, and ends all threads and worker processes.
///
/// What is left: futures are dropped, on the ambient thread; queued jobs and calls are not run; worker
/// processes are killed. All of it resolves as [`ErrorKind::ShutDown`], and so does everything that is
/// started later. A job that runs on a thread cannot be stopped. There is no way back; a second call
/// does no harm.
///
/// # Errors
///
/// [`ErrorKind::TimedOut`] if something still runs at the limit, with what it is, and
/// [`ErrorKind::WouldBlock`] on the ambient thread and wherever else [`result`](crate::Unfuture::result)
/// does not block.
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
    if let Some(thread) = role().must_not_block() {
        let text = format!("shutdown would block {thread}");
        return Err(Error::new(ErrorKind::WouldBlock, text));
    }
    let deadline = Instant::now().checked_add(limit);
    // A part of the time is for the end itself.
    let reserve = (limit / 10).max(RESERVE).min(limit / 2);
    drain(limit - reserve);
    ask(&CLOSE, deadline).map(drop).map_err(|running| {
        let text = format!("the shutdown took longer than {limit:?}: {running} still run");
        Error::new(ErrorKind::TimedOut, text)
    })
}

/// What threads and processes should have to end, if the limit leaves that much.
const RESERVE: Duration = Duration::from_millis(200);

/// Asks every engine, and waits for the answers. Gives the name of one that has not answered by the
/// deadline.
fn ask(engines: &Ask, deadline: Option<Instant>) -> Result<[u64; 3], &'static str> {
    let asked = engines.map(|(name, engine)| {
        let (promise, answer) = promise();
        engine(Box::new(move |works| promise.finish(Ok(works))));
        (name, answer)
    });
    let mut works = [0; 3];
    for (works, (name, answer)) in works.iter_mut().zip(asked) {
        match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
            None => answer.wait(),
            Some(left) if answer.wait_timeout(left) => {}
            Some(_) => return Err(name),
        }
        // An answer that was dropped with a thread that ended: that engine is quiet.
        *works = answer.result().unwrap_or(0);
    }
    Ok(works)
}
