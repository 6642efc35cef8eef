//! Deadlines for work, and what it says of its progress: both cross from an engine to the ambient
//! thread.
//!
//! Floor 4: imports the ambient engine, the codec and the future.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use crate::ambient::{sleep, spawn, try_spawn_with};
use crate::error::ErrorKind;
use crate::processes::Wire;
use crate::processes::registry::id_of;
use crate::unfuture::{Reason, Stop, Stopping, Unfuture};

impl<T: Send + 'static> Unfuture<T> {
    /// Sets the work a deadline, `limit` from now; time in a queue counts.
    ///
    /// When the time is up the work is cancelled, as [`cancel`](Unfuture::cancel) does it: a call in a
    /// worker process is killed. A thread job that runs cannot be stopped; its `Unfuture` resolves all
    /// the same, and the error names the job and says that it still runs, unless the job is one of many.
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
        self.limited(limit, sleep(limit))
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
        let source = self.stopper().map(<dyn Stop>::last_source);
        self.limited(limit, async move {
            if let Some(source) = source {
                poll_fn(|cx| source.poll_begun(cx)).await;
            }
            sleep(limit).await;
        })
    }

    /// Ends the work when its time is up.
    pub(crate) fn limited<F>(self, limit: Duration, time_is_up: F) -> Unfuture<T>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if self.is_done() {
            return self;
        }
        let (origin, is_tied) = (self.origin(), self.is_tied());
        let (source, progress) = (self.pass_on(), self.progress());
        let work = self.cancel_on_drop();
        let limited = try_spawn_with(origin, true, |itself| {
            work.observed_by(itself);
            async move {
                let mut time_is_up = pin!(time_is_up);
                poll_fn(|cx| match work.poll_done(cx) {
                    Poll::Ready(()) => Poll::Ready(()),
                    Poll::Pending => time_is_up.as_mut().poll(cx),
                })
                .await;
                if work.is_done() {
                    return work.await;
                }
                let (reason, stopper) = (Reason::TimedOut(limit), work.stopper());
                let late = |work| Err(reason.error_of(work, "work", origin));
                let goes_on = |work: Arc<dyn Stop>| work.stop(reason) == Stopping::No;
                if stopper.clone().is_some_and(goes_on) && !work.is_done() {
                    return late(stopper);
                }
                let still_runs = |work: Arc<dyn Stop>| work.last_source().running().is_some();
                let still_runs = stopper.clone().is_some_and(still_runs);
                match work.await {
                    Err(error) if still_runs && error.kind() == ErrorKind::TimedOut => {
                        late(stopper)
                    }
                    outcome => outcome,
                }
            }
        });
        limited.with(None, source, progress).tied(is_tied)
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
