//! Deadlines for work, and what it says of its progress: both cross from an engine to the ambient
//! thread.
//!
//! Floor 4: imports the ambient engine, the codec and the future.

use std::future::poll_fn;
use std::mem;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::ambient::{sleep_until, spawn, spawn_at};
use crate::error::{Error, Origin, discard, lock};
use crate::processes::Wire;
use crate::processes::registry::id_of;
use crate::unfuture::{Promise, Reason, Stop, Stopping, Unfuture, unobserved_late};

impl<T: Send + 'static> Unfuture<T> {
    /// Sets the work a deadline, `limit` from now; time in a queue counts.
    ///
    /// When the time is up the work is cancelled, as [`cancel`](Unfuture::cancel) does it: a call in a
    /// worker process is killed. A thread job that runs cannot be stopped; its `Unfuture` resolves all
    /// the same, and the error names the job and says that it still runs.
    ///
    /// # Errors
    ///
    /// Resolves as [`ErrorKind::TimedOut`](crate::ErrorKind) at the deadline; and at once, if there is
    /// no ambient thread to keep it: as [`ErrorKind::ShutDown`](crate::ErrorKind) after a shutdown, as
    /// [`ErrorKind::Os`](crate::ErrorKind) if the operating system refuses the thread. The work is
    /// cancelled in these cases too.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let late = unsync::spawn(unsync::sleep(Duration::MAX)).timeout(Duration::from_millis(10));
    /// assert_eq!(late.result().unwrap_err().kind(), unsync::ErrorKind::TimedOut);
    /// ```
    #[track_caller]
    pub fn timeout(self, limit: Duration) -> Unfuture<T> {
        let (deadline, limited) = Deadline::new(self, limit);
        deadline.set();
        limited
    }

    /// Sets the work a deadline, `limit` after it has begun to run; time in a queue does not count.
    ///
    /// # Errors
    ///
    /// As [`timeout`](Unfuture::timeout).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let limit = Duration::from_millis(10);
    /// let hangs = unsync::spawn(std::future::pending::<()>()).run_timeout(limit);
    /// assert_eq!(hangs.result().unwrap_err().kind(), unsync::ErrorKind::TimedOut);
    /// ```
    #[track_caller]
    pub fn run_timeout(self, limit: Duration) -> Unfuture<T> {
        let work = self.stopper();
        let (deadline, limited) = Deadline::new(self, limit);
        match work {
            Some(work) => work.when_begun(Box::new(move || deadline.set())),
            None => deadline.set(),
        }
        limited
    }

    /// Calls `f` on the ambient thread with what a call in a worker process says of its
    /// [`progress`](crate::progress()).
    ///
    /// `f` gets the newest value of type `P` whenever it is free, so values may be skipped, but not the
    /// last one. Values of other types are ignored, even if their bytes would decode as a `P`. `f` is
    /// dropped after the call has ended. There may be several listeners, also of one type.
    ///
    /// The call is heard through every step made on it: [`map`](Unfuture::map) and the other
    /// continuations, [`flatten`](Unfuture::flatten), [`timeout`](Unfuture::timeout),
    /// [`Limit`](crate::Limit). After [`map_cpu`](Unfuture::map_cpu), `f` hears both calls.
    ///
    /// `f` does not hear calls that some other future awaits, such as the one that
    /// [`and_then`](Unfuture::and_then) makes. Nor does it hear the parts of
    /// [`join_all`](crate::join_all), [`settle_all`](crate::settle_all) and [`race`](crate::race), whose
    /// values could not be told apart. Listen to those calls themselves. Work that involves no call reports
    /// nothing, and `f` is dropped at once.
    ///
    /// # Examples
    ///
    /// ```
    /// fn count(to: u32) -> u32 {
    ///     (0..to).for_each(|n| unsync::progress(n));
    ///     to
    /// }
    /// unsync::register!(count);
    ///
    /// # fn main() -> Result<(), unsync::Error> {
    /// unsync::init();
    /// let (seen, last) = std::sync::mpsc::channel();
    /// let call = unsync::cpu(count, (100,)).on_progress(move |n: u32| drop(seen.send(n)));
    /// assert_eq!(call.result()?, 100);
    /// assert_eq!(last.iter().last(), Some(99));
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn on_progress<P>(self, mut f: impl FnMut(P) + Send + 'static) -> Unfuture<T>
    where
        P: Wire + 'static,
    {
        if let Some(progress) = self.progress() {
            let listener = progress.listen(id_of::<P>());
            let _detached = spawn(async move {
                while let Some(bytes) = poll_fn(|cx| progress.poll(listener, cx)).await {
                    let mut rest = &bytes[..];
                    match P::decode(&mut rest) {
                        Ok(value) if rest.is_empty() => f(value),
                        Ok(_) | Err(_) => {}
                    }
                }
            });
        }
        self
    }
}

/// A deadline that is not set yet.
struct Deadline<T> {
    open: Arc<Mutex<Option<Open<T>>>>,
    work: Option<Arc<dyn Stop>>,
    limit: Duration,
    origin: Origin,
}

/// What is there until the work or its time has ended.
struct Open<T> {
    promise: Promise<T>,
    /// To take the timer back.
    timer: Option<Arc<dyn Stop>>,
}

impl<T: Send + 'static> Deadline<T> {
    fn new(source: Unfuture<T>, limit: Duration) -> (Deadline<T>, Unfuture<T>) {
        let (work, origin) = (source.stopper(), source.origin());
        let (promise, limited) = source.derive(work.clone());
        let observed = promise.observed();
        let open = Arc::new(Mutex::new(Some(Open {
            promise,
            timer: None,
        })));
        let pending = Arc::clone(&open);
        source.hand_on(observed, move |outcome| {
            if let Some(late) = close(&pending, outcome) {
                unobserved_late(late);
            }
        });
        (
            Deadline {
                open,
                work,
                limit,
                origin,
            },
            limited,
        )
    }

    /// The time counts from now.
    fn set(self) {
        let Deadline {
            open,
            work,
            limit,
            origin,
        } = self;
        let Some(end) = Instant::now().checked_add(limit) else {
            return;
        };
        let (pending, lost, unlimited) = (Arc::clone(&open), Arc::clone(&open), work.clone());
        let timer = spawn_at(origin, async move {
            sleep_until(end).await;
            let reason = Reason::TimedOut(limit);
            if work
                .clone()
                .is_none_or(|work| work.stop(reason) == Stopping::No)
            {
                // It cannot be stopped, or it has ended just now.
                let error = reason.error_of(work, "work", origin);
                discard(close(&pending, Err(error)));
            }
        });
        let stopper = timer.stopper();
        // There is no ambient thread to keep the deadline, or no more: who counts on it must not wait
        // for ever. A timer that was taken back fails as well, and finds everything resolved.
        timer.when_done(move |outcome| {
            if let Err(error) = outcome {
                if close(&lost, Err(error)).is_none() {
                    unlimited.map(|work| work.stop(Reason::Cancelled));
                }
            }
        });
        let unneeded = match lock(&open).as_mut() {
            Some(open) => mem::replace(&mut open.timer, stopper),
            None => stopper,
        };
        take_back(unneeded);
    }
}

fn take_back(timer: Option<Arc<dyn Stop>>) {
    timer.map(|timer| timer.stop(Reason::Cancelled));
}

/// Resolves what is not resolved yet; else it gives the outcome back.
fn close<T>(open: &Mutex<Option<Open<T>>>, outcome: Result<T, Error>) -> Option<Result<T, Error>> {
    let open = lock(open).take();
    let Some(Open { promise, timer }) = open else {
        return Some(outcome);
    };
    promise.finish(outcome);
    take_back(timer);
    None
}
