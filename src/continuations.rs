//! Continuations: what happens with an outcome, and where.
//!
//! They lead from one engine to another, so this file is above all engines. Each continuation is an async
//! block that owns its source and awaits it. Cancelling a continuation drops the source's `Unfuture`, so the
//! source runs on. Only [`flatten`](Unfuture::flatten) and deadlines tie the source to themselves.

use std::convert::identity;
use std::future::{Future, poll_fn};
use std::mem;
use std::panic::Location;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use crate::ambient::{sleep, spawn, try_spawn};
use crate::error::{Error, ErrorKind, Origin, discard};
use crate::processes::registry::{assert_captures_nothing, id_of};
use crate::processes::{self, Entrypoint, Wire, is_worker};
use crate::progress::{Progress, Speaker};
use crate::slot::Work;
use crate::stop::{Reason, Stopping};
use crate::sync::atomic::Ordering;
use crate::threads::try_thread;
use crate::unfuture::Unfuture;

/// Calls a function in a worker process: for work that takes long to compute, may crash, or may hang.
///
/// `args` is the tuple of the function's arguments, checked at compile time: `()` if it has none, `(x,)` if
/// it has one. Arguments and result are encoded, see [`Wire`]. A round trip takes about 10 µs for one call
/// and 2 µs for each of many, and starting a worker takes 1 to 2 ms; give each call more work than that. The
/// function must be named in a [`register!`](crate::register), and `main` must begin with
/// [`init`](crate::init).
///
/// Inside a worker process, a call runs on a thread of that process, so nested pools do not multiply.
///
/// Workers print where the program prints. Standard error passes through the program unless it is a terminal,
/// so that errors can quote its last lines; the last output may be lost if the program ends without
/// [`shutdown`](crate::shutdown()).
///
/// A worker cannot read from the terminal: on Unix the system stops a process that reads from `/dev/tty`, and
/// the call never ends. The same holds for programs that the function starts, such as `ssh`; see
/// [`init`](crate::init).
///
/// A worker costs the program one thread and one descriptor, another of each if its standard error passes
/// through, and another descriptor where the link is TCP: on Windows, and where no socket can be made in the
/// temporary directory. One more thread watches the time for all workers.
///
/// # Errors
///
/// The `Unfuture` resolves as
/// - [`ErrorKind::Panicked`](crate::ErrorKind) with the message and the place if the function panics; if
///   `RUST_BACKTRACE` is set in the worker's environment, the backtrace is the
///   [`source`](std::error::Error::source),
/// - [`ErrorKind::WorkerLost`](crate::ErrorKind) with the exit status if the worker dies while it runs the
///   function; a call that had not started goes to another worker instead (on Windows a dying process may
///   lose what it sent last, so a call that may have started fails too),
/// - [`ErrorKind::NotRegistered`](crate::ErrorKind) or
///   [`ErrorKind::NotInitialised`](crate::ErrorKind) at once, with the line to add,
/// - [`ErrorKind::Codec`](crate::ErrorKind) or [`ErrorKind::TooLarge`](crate::ErrorKind) if the arguments or
///   the result cannot cross,
/// - [`ErrorKind::Os`](crate::ErrorKind) if no worker process can be started,
/// - [`ErrorKind::Cancelled`](crate::ErrorKind), [`ErrorKind::TimedOut`](crate::ErrorKind) or
///   [`ErrorKind::ShutDown`](crate::ErrorKind) if it was stopped.
///
/// # Examples
///
/// ```
/// fn add(a: u64, b: u64) -> u64 {
///     a + b
/// }
/// unsync::register!(add);
///
/// # fn main() -> Result<(), unsync::Error> {
/// unsync::init();
/// assert_eq!(unsync::cpu(add, (1, 2)).result()?, 3);
/// # Ok(())
/// # }
/// ```
#[track_caller]
pub fn cpu<F, A>(entrypoint: F, args: A) -> Unfuture<F::Output>
where
    F: Entrypoint<A>,
    A: Wire,
    F::Output: Wire + Send + 'static,
{
    const { assert_captures_nothing::<F>() }
    cpu_at(Location::caller(), entrypoint, args)
}

fn cpu_at<F, A>(origin: Origin, entrypoint: F, args: A) -> Unfuture<F::Output>
where
    F: Entrypoint<A>,
    A: Wire,
    F::Output: Wire + Send + 'static,
{
    let started = if is_worker() {
        processes::nested(origin, entrypoint, args).map(|call| try_thread(origin, call))
    } else {
        processes::prepare(origin, entrypoint, args).map(|(unfuture, call)| {
            processes::submit(call);
            unfuture
        })
    };
    started.unwrap_or_else(|error| Unfuture::failed(error.started_at(origin)))
}

impl<T: Send + 'static> Unfuture<T> {
    /// Maps the value to another on the ambient thread; an error passes through.
    ///
    /// Use it for quick steps. A step that blocks belongs in [`map_thread`](Unfuture::map_thread), one that
    /// computes in [`map_cpu`](Unfuture::map_cpu).
    ///
    /// # Examples
    ///
    /// ```
    /// let length = unsync::thread(|| "four").map(str::len);
    /// assert_eq!(length.result().unwrap(), 4);
    /// ```
    #[track_caller]
    pub fn map<U, F>(self, f: F) -> Unfuture<U>
    where
        U: Send + 'static,
        F: FnOnce(T) -> U + Send + 'static,
    {
        let origin = Location::caller();
        self.continued(origin, |work| async move { work.await.map(f) })
    }

    /// Makes a future from the value and runs it on the ambient thread; an error passes through.
    ///
    /// # Examples
    ///
    /// ```
    /// let sum = unsync::spawn(async { 1 }).and_then(|one| async move {
    ///     unsync::yield_now().await;
    ///     one + 1
    /// });
    /// assert_eq!(sum.result().unwrap(), 2);
    /// ```
    #[track_caller]
    pub fn and_then<F, U>(self, f: F) -> Unfuture<U::Output>
    where
        F: FnOnce(T) -> U + Send + 'static,
        U: Future + Send + 'static,
        U::Output: Send + 'static,
    {
        let origin = Location::caller();
        self.continued(origin, |work| async move { Ok(f(work.await?).await) })
    }

    /// Makes a future from the finished `Unfuture` and runs it on the ambient thread. That future sees errors
    /// too, and [`result`](Unfuture::result) inside it never blocks.
    ///
    /// # Examples
    ///
    /// ```
    /// let rescued = unsync::thread(|| -> u8 { panic!("no") })
    ///     .then(|task| async move { task.result().unwrap_or(7) });
    /// assert_eq!(rescued.result().unwrap(), 7);
    /// ```
    #[track_caller]
    pub fn then<F, U>(self, f: F) -> Unfuture<U::Output>
    where
        F: FnOnce(Unfuture<T>) -> U + Send + 'static,
        U: Future + Send + 'static,
        U::Output: Send + 'static,
    {
        self.continued(Location::caller(), |work| async move {
            poll_fn(|cx| work.slot().poll_done(cx)).await;
            Ok(f(work).await)
        })
    }

    /// Maps the value to another on a pool thread; an error passes through.
    ///
    /// # Examples
    ///
    /// ```
    /// let text = unsync::spawn(async { "Cargo.toml" }).map_thread(std::fs::read_to_string);
    /// assert!(text.result().unwrap().is_ok());
    /// ```
    #[track_caller]
    pub fn map_thread<U, F>(self, f: F) -> Unfuture<U>
    where
        U: Send + 'static,
        F: FnOnce(T) -> U + Send + 'static,
    {
        let origin = Location::caller();
        self.continued(origin, move |work| async move {
            let value = work.await?;
            let job = try_thread(origin, move || Ok(f(value)));
            job.cancel_on_drop().await
        })
    }

    /// Maps the value to another in a worker process; an error passes through.
    ///
    /// The function takes the value as its one argument, and must be named in a
    /// [`register!`](crate::register).
    ///
    /// # Examples
    ///
    /// ```
    /// fn longest(text: String) -> usize {
    ///     text.lines().map(str::len).max().unwrap_or(0)
    /// }
    /// unsync::register!(longest);
    ///
    /// # fn main() -> Result<(), unsync::Error> {
    /// unsync::init();
    /// let text = unsync::thread(|| String::from("one\nthree"));
    /// assert_eq!(text.map_cpu(longest).result()?, 5);
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn map_cpu<F>(self, entrypoint: F) -> Unfuture<F::Output>
    where
        T: Wire,
        F: Entrypoint<(T,)>,
        F::Output: Wire + Send + 'static,
    {
        const { assert_captures_nothing::<F>() }
        let origin = Location::caller();
        let speaker = Speaker::new();
        speaker.passes_on(self.progress());
        let progress = Arc::clone(&speaker.0);
        let mapped = self.continued(origin, move |work| async move {
            let value = work.await?;
            let call = cpu_at(origin, entrypoint, (value,)).cancel_on_drop();
            speaker.passes_on(call.progress());
            drop(speaker);
            call.await
        });
        mapped.heard_as(Some(progress))
    }

    /// Calls `f` with the outcome on the ambient thread.
    ///
    /// If a [`shutdown`](crate::shutdown) comes before the outcome, `f` gets
    /// [`ErrorKind::ShutDown`](crate::ErrorKind::ShutDown). After a shutdown, and if the operating system
    /// refuses the ambient thread, `f` is called at once, on the calling thread: with the outcome if there is
    /// one, and else with that error. A callback that starts itself again must end then. A panic of `f` is
    /// reported to [`on_unobserved`](crate::Config::on_unobserved) and goes no further.
    ///
    /// This consumes the `Unfuture` and undoes its tie: work tied by
    /// [`cancel_on_drop`](Unfuture::cancel_on_drop) runs to its end.
    ///
    /// # Examples
    ///
    /// ```
    /// let (sender, outcomes) = std::sync::mpsc::channel();
    /// unsync::thread(|| 1).on_done(move |outcome| sender.send(outcome).unwrap());
    /// assert_eq!(outcomes.recv().unwrap().unwrap(), 1);
    /// ```
    #[track_caller]
    pub fn on_done<F>(self, f: F)
    where
        F: FnOnce(Result<T, Error>) + Send + 'static,
    {
        self.slot().tied.store(false, Ordering::Relaxed);
        let callback = Callback(self, Some(f));
        drop(spawn(async move {
            poll_fn(|cx| callback.0.slot().poll_done(cx)).await;
            drop(callback);
        }));
    }

    /// Sets a deadline for the work, `limit` from now. Time in a queue counts.
    ///
    /// At the deadline the work is cancelled as by [`cancel`](Unfuture::cancel): a call in a worker process
    /// is killed. A running thread job cannot be stopped: its `Unfuture` resolves anyway, and the error names
    /// the job and says that it still runs, unless the job is part of a `join_all` or `race`. The ambient
    /// thread watches the time, so a task that blocks it delays all deadlines.
    ///
    /// # Errors
    ///
    /// Resolves as [`ErrorKind::TimedOut`](crate::ErrorKind) at the deadline. If there is no ambient thread
    /// to watch the deadline, the work is cancelled at once, and resolves as
    /// [`ErrorKind::ShutDown`](crate::ErrorKind) after a shutdown and as [`ErrorKind::Os`](crate::ErrorKind)
    /// if the operating system refuses the thread.
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

    /// Sets a deadline for the work, `limit` after it begins to run. Time in a queue does not count.
    ///
    /// # Errors
    ///
    /// The same as for [`timeout`](Unfuture::timeout).
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
        let source = self.untyped().last_source();
        self.limited(limit, async move {
            poll_fn(|cx| source.slot().poll_begun(cx)).await;
            sleep(limit).await;
        })
    }

    /// Ends the work when its time is up.
    fn limited<F>(self, limit: Duration, time_is_up: F) -> Unfuture<T>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if self.is_done() {
            return self;
        }
        let origin = self.slot().origin;
        self.within(|work, _| async move {
            let mut time_is_up = pin!(time_is_up);
            poll_fn(|cx| match work.slot().poll_done(cx) {
                Poll::Ready(()) => Poll::Ready(()),
                Poll::Pending => time_is_up.as_mut().poll(cx),
            })
            .await;
            if work.is_done() {
                return work.await;
            }
            let stopper = work.untyped();
            let reason = Reason::TimedOut(limit);
            let outcome = match Arc::clone(&stopper).stop(reason) {
                Stopping::No if !work.is_done() => Err(reason.error("work").started_at(origin)),
                _ => work.await,
            };
            outcome.map_err(|error| match error.kind() {
                ErrorKind::TimedOut => stopper.still_running(reason).unwrap_or(error),
                _ => error,
            })
        })
    }

    /// Calls `f` on the ambient thread with the [`progress`](crate::progress()) that a call in a worker process
    /// reports.
    ///
    /// `f` gets the newest value of type `P` whenever it is free, so it may miss values, but not the last
    /// one. Values of other types are ignored, even if their bytes would decode as a `P`. `f` is dropped
    /// after the call has ended. There may be several listeners, even for one type; a later listener
    /// for the same type may begin with the next value, and so get none.
    ///
    /// Progress passes through every step made on the call: [`map`](Unfuture::map) and the other
    /// continuations, [`flatten`](Unfuture::flatten), [`timeout`](Unfuture::timeout),
    /// [`Limit`](crate::Limit). After [`map_cpu`](Unfuture::map_cpu), `f` gets the progress of both calls.
    ///
    /// `f` gets nothing from calls that another future awaits, such as the one that
    /// [`and_then`](Unfuture::and_then) makes, nor from the parts of [`join_all`](crate::join_all),
    /// [`settle_all`](crate::settle_all) and [`race`](crate::race), which could not be told apart. Listen to
    /// those calls themselves. If there is no call, `f` is dropped at once.
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
            let kind = id_of::<P>();
            let mut seen = progress.listen(kind);
            let _detached = spawn(async move {
                while let Some(report) = poll_fn(|cx| progress.poll(kind, seen, cx)).await {
                    seen = report.order;
                    let mut rest = &report.bytes[..];
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

impl<T: Send + 'static> Unfuture<Result<T, Error>> {
    /// Turns an error inside the value into an error of the `Unfuture`.
    ///
    /// The flat `Unfuture` waits on the ambient thread, unless the work has ended. Cancelling it cancels the
    /// work.
    ///
    /// # Examples
    ///
    /// ```
    /// let outer = unsync::spawn(async { unsync::thread(|| 1).await });
    /// assert_eq!(outer.flatten().result().unwrap(), 1);
    /// ```
    pub fn flatten(self) -> Unfuture<T> {
        if self.is_done() {
            let (origin, progress) = (self.slot().origin, self.progress());
            let flat = Unfuture::settled_at(origin, self.take().and_then(identity));
            return flat.heard_as(progress);
        }
        self.within(|work, _| async { work.await.and_then(identity) })
    }
}

impl<T: Send + 'static> Unfuture<Unfuture<T>> {
    /// Waits for the inner work too.
    ///
    /// Cancelling the flat `Unfuture` cancels the outer work while that runs, and the inner work afterwards. If
    /// the outer work is a running job, which cannot be stopped, the inner work is cancelled as soon as it
    /// exists.
    ///
    /// # Examples
    ///
    /// ```
    /// let outer = unsync::spawn(async { unsync::thread(|| 1) });
    /// assert_eq!(outer.flatten().result().unwrap(), 1);
    /// ```
    pub fn flatten(self) -> Unfuture<T> {
        let (origin, is_tied) = (self.slot().origin, self.slot().is_tied());
        let speaker = Speaker::new();
        speaker.passes_on(self.progress());
        let progress = Arc::clone(&speaker.0);
        if self.is_done() {
            let flat = match self.take() {
                Ok(inner) if inner.is_done() => inner.tied(is_tied),
                Ok(inner) => inner.tied(is_tied).within(|inner, _| inner),
                Err(error) => Unfuture::settled_at(origin, Err(error)),
            };
            speaker.passes_on(flat.progress());
            return flat.heard_as(Some(progress));
        }
        let flat = self.within(|outer, itself| {
            let outer = Outer(outer);
            async move {
                poll_fn(|cx| outer.0.slot().poll_done(cx)).await;
                let inner = outer.0.take()?;
                let (is_tied, source) = (inner.slot().is_tied(), inner.untyped().last_source());
                let is_there = itself.upgrade().is_some_and(|flat| {
                    let source = Arc::downgrade(&source);
                    flat.slot().link(|links| links.source = Some(source));
                    !is_tied || flat.slot().tie()
                });
                if is_tied && !is_there {
                    return Err(Reason::Cancelled.error("work"));
                }
                drop(source);
                inner.slot().observed_by(itself);
                speaker.passes_on(inner.progress());
                drop(speaker);
                inner.cancel_on_drop().await
            }
        });
        flat.heard_as(Some(progress))
    }
}

/// Outer work whose inner work is not known yet. Dropping it stops the outer work, and the inner work as soon
/// as that exists.
struct Outer<T: Send + 'static>(Unfuture<Unfuture<T>>);

impl<T: Send + 'static> Drop for Outer<T> {
    fn drop(&mut self) {
        if self.0.slot().is_taken() {
            return;
        }
        self.0.cancel();
        // A running job may still produce the inner work.
        let gone = Unfuture::failed(Reason::Cancelled.error("work"));
        let outer = mem::replace(&mut self.0, gone);
        let _detached = spawn(async move { outer.await.map(Unfuture::cancel_on_drop) });
    }
}

impl<T: Send + 'static> Unfuture<T> {
    /// Starts a task that follows this work: it is tied if the work is, and listeners hear the work's
    /// progress from it.
    fn continued<U, F>(self, origin: Origin, next: impl FnOnce(Unfuture<T>) -> F) -> Unfuture<U>
    where
        F: Future<Output = Result<U, Error>> + Send + 'static,
        U: Send + 'static,
    {
        let (is_tied, progress) = (self.slot().is_tied(), self.progress());
        let next = try_spawn(origin, true, |_| next(self)).tied(is_tied);
        next.heard_as(progress)
    }

    /// The same work, with this as its progress.
    fn heard_as(self, progress: Option<Arc<Progress>>) -> Unfuture<T> {
        if progress.is_some() {
            self.slot().link(|links| links.progress = progress);
        }
        self
    }

    /// Starts a task that stands for this work: cancelling the task cancels the work, and whoever sees the
    /// task's outcome sees the work's.
    fn within<U, M, F>(self, make: M) -> Unfuture<U>
    where
        M: FnOnce(Unfuture<T>, Weak<dyn Work>) -> F,
        F: Future<Output = Result<U, Error>> + Send + 'static,
        U: Send + 'static,
    {
        let slot = self.slot();
        let (origin, is_tied, progress) = (slot.origin, slot.is_tied(), self.progress());
        // The task that polled this work before is no longer woken.
        discard(slot.replace_waker(None));
        let source = Arc::downgrade(&self.untyped().last_source());
        let work = self.cancel_on_drop();
        let whole = try_spawn(origin, true, |itself| {
            work.slot().observed_by(itself.clone());
            // Before the task runs, which may know a later source.
            if let Some(whole) = itself.upgrade() {
                whole.slot().link(|links| {
                    links.source = Some(source);
                    links.progress = progress;
                });
            }
            make(work, itself)
        });
        whole.tied(is_tied)
    }
}

/// A callback that has not been called yet. If its task ends before the work, the drop calls it.
struct Callback<T, F: FnOnce(Result<T, Error>)>(Unfuture<T>, Option<F>);

impl<T, F: FnOnce(Result<T, Error>)> Drop for Callback<T, F> {
    fn drop(&mut self) {
        if let Some(f) = self.1.take() {
            let slot = self.0.slot();
            f(if slot.is_done() {
                self.0.take()
            } else {
                let text = "no ambient thread is left to report the outcome";
                Err(Error::new(ErrorKind::ShutDown, text).started_at(slot.origin))
            });
        }
    }
}
