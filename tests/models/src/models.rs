//! The models. Each is one small program; [`end`] closes the engines that it used.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use loom::thread;

use crate::ambient::{sleep, spawn, try_spawn, yield_now};
use crate::block_on::block_on;
use crate::combine::{as_completed, join_all};
use crate::config::LIMIT;
use crate::error::{Error, ErrorKind, Origin};
use crate::limit::Limit;
use crate::slot::Slot;
use crate::stop::{Fate, Reason, Stopping};
use crate::sync::Instant;
use crate::unfuture::{Unfuture, promise};
use crate::{clock, engine, sync, threads};

pub(crate) const ALL: &[(&str, fn())] = &[
    ("slot: complete, wait", complete_wait),
    ("slot: complete, wait for a time", complete_wait_timeout),
    ("slot: complete, poll", complete_poll),
    (
        "slot: complete, poll with another waker",
        complete_poll_twice,
    ),
    ("slot: complete, drop", complete_drop),
    ("slot: complete, cancel", complete_cancel),
    ("slot: begin, watch", begin_watch),
    ("slot: tie, detach", tie_detach),
    ("slot: share", complete_shared),
    ("fate: end, cancel, time out", fates),
    ("promise: set, drop of a tied one", set_tied_drop),
    ("promise: drop, cancel", abandon_cancel),
    ("promise: drop, wait", abandon_wait),
    ("promise: drop, drop", abandon_drop),
    ("block_on: wake, token eaten", token_eaten),
    ("ambient: start, park", start_park),
    ("ambient: two starts, park", two_starts_park),
    ("ambient: wake, poll, park", wake_poll),
    ("ambient: two wakes, poll", two_wakes_poll),
    ("ambient: cancel, poll", cancel_poll),
    ("ambient: cancel, end as cancelled", cancel_cancelled),
    ("ambient: stop, start here", stop_start_here),
    ("ambient: stop here, start", stop_here_start),
    ("ambient: start, close", start_close),
    ("ambient: start, busy thread", start_busy),
    ("timer: fire, park", timer_fires),
    ("timer: fire, set from elsewhere", timer_elsewhere),
    ("timer: fire, another waker", timer_another_waker),
    ("timer: fire, reset", timer_reset),
    ("timer: fire, cancel", timer_cancel),
    ("pool: submit, park", submit_park),
    ("pool: two submits", two_submits),
    ("pool: submit, retire", submit_retire),
    ("pool: submit, close", submit_close),
    ("pool: cancel, close", cancel_close),
    ("pool: run, cancel", run_cancel),
    ("pool: nested wait under a limit of 1", nested_wait),
    ("ready-set: two ends, poll", two_ends),
    ("ready-set: end, wait for a time", end_next_timeout),
    ("ready-set: end, poll in a task", end_join_all),
    ("limit: release, acquire", release_acquire),
    ("limit: release, cancel", release_cancel),
    ("limit: submit, submit", submit_submit),
    ("limit: submit, close", limited_close),
];

/// Ends the model: what the engines do from here on is not explored.
fn end() {
    loom::stop_exploring();
    clock::stop();
    close();
}

fn close() -> Vec<Unfuture<u64>> {
    let closing = engine::entered().into_iter().map(|engine| {
        let (promise, closed) = promise();
        (engine.close)(Box::new(move |begun| _ = promise.set(begun)));
        closed
    });
    closing.collect()
}

/// Runs `step` in one schedule only.
fn unexplored<R>(step: impl FnOnce() -> R) -> R {
    loom::stop_exploring();
    let result = step();
    loom::explore();
    result
}

fn poll_once<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(waker))
}

/// Counts its wake-ups, for checks at the end of a schedule.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

fn kind<T>(outcome: &Result<T, Error>) -> Option<ErrorKind> {
    outcome.as_ref().err().map(Error::kind)
}

const SECOND: Duration = Duration::from_secs(1);

// ------------------------------------------------------------------------------ slot and promise

fn complete_wait() {
    let (promise, unfuture) = promise();
    let setter = thread::spawn(move || assert!(promise.set(1)));
    assert_eq!(unfuture.result().unwrap(), 1);
    setter.join().unwrap();
}

fn complete_wait_timeout() {
    clock::start(1);
    let (promise, unfuture) = promise();
    let setter = thread::spawn(move || assert!(promise.set(1)));
    let is_done = unfuture.wait_timeout(SECOND);
    assert!(is_done || Instant::now().elapsed().is_zero());
    assert!(!is_done || unfuture.is_done());
    assert_eq!(unfuture.result().unwrap(), 1);
    setter.join().unwrap();
    end();
}

fn complete_poll() {
    let (promise, unfuture) = promise();
    let setter = thread::spawn(move || assert!(promise.set(1)));
    assert_eq!(block_on(unfuture).unwrap(), 1);
    setter.join().unwrap();
}

/// The last waker is the one that is woken.
fn complete_poll_twice() {
    let (promise, mut unfuture) = promise();
    let setter = thread::spawn(move || assert!(promise.set(1)));
    let first = Waker::from(Arc::new(Count::default()));
    let outcome = match poll_once(&mut unfuture, &first) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => block_on(unfuture),
    };
    assert_eq!(outcome.unwrap(), 1);
    setter.join().unwrap();
}

/// A value that nobody can see is dropped.
fn complete_drop() {
    let value = Arc::new(());
    let (promise, unfuture) = promise();
    let sent = Arc::clone(&value);
    let setter = thread::spawn(move || promise.set(sent));
    // The canceller keeps the work in memory, but not the value.
    let _canceller = unfuture.canceller();
    drop(unfuture);
    setter.join().unwrap();
    assert_eq!(Arc::strong_count(&value), 1);
}

/// Both sides agree on who was first.
fn complete_cancel() {
    let (promise, unfuture) = promise();
    let setter = thread::spawn(move || promise.set(1));
    let is_cancelled = unfuture.cancel();
    let outcome = unfuture.result();
    let arrived = setter.join().unwrap();
    assert_eq!(is_cancelled, !arrived);
    assert_eq!(is_cancelled, kind(&outcome) == Some(ErrorKind::Cancelled));
    assert_eq!(arrived, outcome.is_ok());
}

fn here() -> Origin {
    std::panic::Location::caller()
}

fn begin_watch() {
    let slot: Arc<Slot> = Arc::new(Slot::<Option<u8>>::new(here()));
    let begins = Arc::clone(&slot);
    let beginner = thread::spawn(move || begins.begin());
    block_on(poll_fn(|cx| slot.poll_begun(cx)));
    beginner.join().unwrap();
}

/// Either the one who ties work sees that the `Unfuture` is gone, or the one who drops it sees the tie.
fn tie_detach() {
    let slot: Arc<Slot> = Arc::new(Slot::<Option<u8>>::new(here()));
    let tied = Arc::clone(&slot);
    let tier = thread::spawn(move || tied.tie());
    let stops = slot.detach() == Some(true);
    let is_there = tier.join().unwrap();
    assert!(stops || !is_there, "nobody stops the work");
}

fn complete_shared() {
    let (promise, unfuture) = promise();
    let shared = unfuture.shared();
    let other = shared.clone();
    let waiter = thread::spawn(move || assert_eq!(block_on(other).unwrap(), 1));
    let setter = thread::spawn(move || promise.set(1));
    assert_eq!(block_on(shared).unwrap(), 1);
    assert!(setter.join().unwrap());
    waiter.join().unwrap();
}

/// One of them is first, and all answers fit.
fn fates() {
    let fate = Arc::new(Fate::default());
    let (ends, stops) = (Arc::clone(&fate), Arc::clone(&fate));
    let ender = thread::spawn(move || ends.end());
    let stopper = thread::spawn(move || stops.stop(Reason::TimedOut(SECOND)));
    let cancelled = fate.stop(Reason::Cancelled);
    let (ended, timed_out) = (ender.join().unwrap(), stopper.join().unwrap());
    let firsts = [ended, cancelled.is_ok(), timed_out.is_ok()];
    assert_eq!(firsts.into_iter().filter(|first| *first).count(), 1);
    assert_eq!(cancelled == Err(Stopping::No), ended);
    assert_eq!(timed_out == Err(Stopping::No), ended);
    assert_eq!(fate.outcome(Ok(()), "it").is_err(), cancelled.is_ok());
    assert_eq!(fate.is_stopped(), !ended);
}

fn set_tied_drop() {
    let value = Arc::new(());
    let (promise, unfuture) = promise();
    let sent = Arc::clone(&value);
    let setter = thread::spawn(move || promise.set(sent));
    drop(unfuture.cancel_on_drop());
    setter.join().unwrap();
    assert_eq!(Arc::strong_count(&value), 1);
}

fn abandon_cancel() {
    let (promise, unfuture) = promise::<u8>();
    let dropper = thread::spawn(move || drop(promise));
    let is_cancelled = unfuture.cancel();
    let expected = match is_cancelled {
        true => ErrorKind::Cancelled,
        false => ErrorKind::Abandoned,
    };
    assert_eq!(kind(&unfuture.result()), Some(expected));
    dropper.join().unwrap();
}

fn abandon_wait() {
    let (promise, unfuture) = promise::<u8>();
    let dropper = thread::spawn(move || drop(promise));
    assert_eq!(kind(&unfuture.result()), Some(ErrorKind::Abandoned));
    dropper.join().unwrap();
}

/// The waker is dropped with both ends, whichever is last.
fn abandon_drop() {
    let count = Arc::new(Count::default());
    let (promise, mut unfuture) = promise::<u8>();
    let waker = Waker::from(Arc::clone(&count));
    assert!(poll_once(&mut unfuture, &waker).is_pending());
    drop(waker);
    let dropper = thread::spawn(move || drop(promise));
    drop(unfuture);
    dropper.join().unwrap();
    assert_eq!(Arc::strong_count(&count), 1);
}

/// A polled future may park for reasons of its own, and take the token of a wake-up.
fn token_eaten() {
    let mut waker_thread = None;
    block_on(poll_fn(|cx| {
        if waker_thread.is_some() {
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        waker_thread = Some(thread::spawn(move || waker.wake()));
        sync::thread::current().unpark();
        sync::thread::park();
        Poll::Pending
    }));
    waker_thread.unwrap().join().unwrap();
}

// -------------------------------------------------------------------------- the ambient thread

fn start_park() {
    let task = spawn(async { 1 });
    assert_eq!(task.result().unwrap(), 1);
    end();
}

fn two_starts_park() {
    unexplored(|| spawn(async {}).result().unwrap());
    let other = thread::spawn(|| spawn(async { 1 }).result().unwrap());
    assert_eq!(spawn(async { 2 }).result().unwrap(), 2);
    assert_eq!(other.join().unwrap(), 1);
    end();
}

fn wake_poll() {
    let (promise, source) = promise();
    let task = unexplored(|| spawn(async { source.await.unwrap() }));
    let setter = thread::spawn(move || assert!(promise.set(1)));
    assert_eq!(task.result().unwrap(), 1);
    setter.join().unwrap();
    end();
}

/// A poll sees what was written before a wake, even before a wake that found the task queued.
fn two_wakes_poll() {
    let is_set = Arc::new(sync::atomic::AtomicBool::new(false));
    let (sets, waker) = (
        Arc::clone(&is_set),
        Arc::new(std::sync::OnceLock::<Waker>::new()),
    );
    let kept = Arc::clone(&waker);
    let task = spawn(poll_fn(move |cx| {
        kept.get_or_init(|| cx.waker().clone());
        match is_set.load(Relaxed) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }));
    // The other task is polled after the first.
    unexplored(|| spawn(async {}).result().unwrap());
    let waker = waker.get().unwrap().clone();
    let setter = thread::spawn(move || {
        waker.wake_by_ref();
        sets.store(true, Relaxed);
        waker.wake();
    });
    task.result().unwrap();
    setter.join().unwrap();
    end();
}

/// The future is dropped before anybody sees the end, and the answer is how it ends.
fn cancel_poll() {
    let value = Arc::new(());
    let held = Arc::clone(&value);
    let task = spawn(async move {
        yield_now().await;
        drop(held);
    });
    let is_cancelled = task.cancel();
    let outcome = task.result();
    assert_eq!(Arc::strong_count(&value), 1);
    assert_eq!(is_cancelled, kind(&outcome) == Some(ErrorKind::Cancelled));
    assert_eq!(is_cancelled, outcome.is_err());
    end();
}

/// The answer holds for work that ends as cancelled by itself too.
fn cancel_cancelled() {
    let (promise, source) = promise::<u8>();
    let task = unexplored(|| {
        let task = try_spawn(here(), true, |_| source);
        spawn(async {}).result().unwrap();
        task
    });
    promise.fail(Error::new(ErrorKind::Cancelled, "cancelled elsewhere"));
    assert!(task.cancel());
    assert_eq!(kind(&task.result()), Some(ErrorKind::Cancelled));
    end();
}

/// A task is stopped from elsewhere before its turn in the local queue, or later.
fn stop_start_here() {
    let (promise, spawned) = promise();
    let outer = spawn(async move { assert!(promise.set(spawn(std::future::pending::<()>()))) });
    let task = spawned.result().unwrap();
    assert!(task.cancel());
    assert_eq!(kind(&task.result()), Some(ErrorKind::Cancelled));
    outer.result().unwrap();
    end();
}

/// A task is stopped by the thread itself while its start is still in the injector, or later.
fn stop_here_start() {
    let (promise, task) = promise::<Unfuture<()>>();
    let stopper = spawn(async move {
        let task = task.await.unwrap();
        assert!(task.cancel());
        task.await
    });
    promise.set(spawn(std::future::pending()));
    let outcome = stopper.result().unwrap();
    assert_eq!(kind(&outcome), Some(ErrorKind::Cancelled));
    end();
}

/// A task that comes too late resolves all the same, and the end is announced.
fn start_close() {
    unexplored(|| spawn(async {}).result().unwrap());
    let late = thread::spawn(|| spawn(async { 1 }).result());
    for closed in close() {
        closed.result().unwrap();
    }
    let outcome = late.join().unwrap();
    assert!(outcome.is_ok() || kind(&outcome) == Some(ErrorKind::ShutDown));
}

/// A thread that is never idle checks its channel from time to time, whatever the flag says.
fn start_busy() {
    let (sent, seen) = (flag(), flag());
    let (has_sent, has_seen, sees) = (sent.clone(), seen.clone(), seen);
    let busy = spawn(async move {
        let mut ticks = 0;
        while !has_seen.load(Relaxed) {
            match has_sent.load(Relaxed) {
                true => ticks += 1,
                false => thread::yield_now(),
            }
            assert!(ticks <= 65, "a message waits for longer than 64 ticks");
            yield_now().await;
        }
    });
    let other = spawn(async move { sees.store(true, Relaxed) });
    sent.store(true, Relaxed);
    busy.result().unwrap();
    other.result().unwrap();
    end();
}

/// Passes a fact between threads unseen by loom: using it is not a step, and orders nothing.
fn flag() -> Arc<AtomicBool> {
    Arc::default()
}

// ------------------------------------------------------------------------------------- timers

fn timer_fires() {
    clock::start(1);
    let deadline = Instant::now() + SECOND;
    spawn(sleep(SECOND)).result().unwrap();
    assert!(Instant::now() >= deadline);
    end();
}

fn timer_elsewhere() {
    clock::start(1);
    let deadline = Instant::now() + SECOND;
    block_on(sleep(SECOND));
    assert!(Instant::now() >= deadline);
    end();
}

/// The timer may take the first waker while the second is on its way.
fn timer_another_waker() {
    clock::start(2);
    let first = Waker::from(Arc::new(Count::default()));
    let mut nap = sleep(SECOND);
    let _ = unexplored(|| poll_once(&mut nap, &first));
    block_on(nap);
    end();
}

fn timer_reset() {
    clock::start(2);
    let first = Waker::from(Arc::new(Count::default()));
    let mut nap = sleep(SECOND);
    let _ = unexplored(|| poll_once(&mut nap, &first));
    nap.reset(2 * SECOND);
    let deadline = nap.deadline().unwrap();
    block_on(nap);
    assert!(Instant::now() >= deadline);
    end();
}

/// A dropped sleep leaves nothing behind, and others go on.
fn timer_cancel() {
    clock::start(1);
    let count = Arc::new(Count::default());
    let mut nap = sleep(SECOND);
    let waker = Waker::from(Arc::clone(&count));
    let _ = unexplored(|| poll_once(&mut nap, &waker));
    drop((nap, waker));
    block_on(sleep(2 * SECOND));
    assert_eq!(Arc::strong_count(&count), 1);
    end();
}

// ------------------------------------------------------------------------------ the thread pool

fn submit_park() {
    assert_eq!(threads::thread(|| 1).result().unwrap(), 1);
    assert_eq!(threads::thread(|| 2).result().unwrap(), 2);
    end();
}

fn two_submits() {
    unexplored(|| threads::thread(|| ()).result().unwrap());
    let other = thread::spawn(|| threads::thread(|| 1).result().unwrap());
    assert_eq!(threads::thread(|| 2).result().unwrap(), 2);
    assert_eq!(other.join().unwrap(), 1);
    end();
}

/// The time of the idle thread is up while a job comes.
fn submit_retire() {
    clock::start(1);
    unexplored(|| threads::thread(|| ()).result().unwrap());
    assert_eq!(threads::thread(|| 1).result().unwrap(), 1);
    end();
}

/// A job that comes too late fails, and none runs once the end is announced.
fn submit_close() {
    unexplored(|| threads::thread(|| ()).result().unwrap());
    let is_closed = flag();
    let seen = Arc::clone(&is_closed);
    let late =
        thread::spawn(move || threads::thread(move || assert!(!seen.load(Relaxed))).result());
    for closed in close() {
        closed.result().unwrap();
    }
    is_closed.store(true, Relaxed);
    let outcome = late.join().unwrap();
    assert!(outcome.is_ok() || kind(&outcome) == Some(ErrorKind::ShutDown));
}

/// The second job that is cancelled takes both out of the queue, and no other.
fn cancel_close() {
    LIMIT.set(1);
    let (release, gate) = sync::mpsc::channel::<()>();
    let [first, second, third] = unexplored(|| {
        let (started, running) = sync::mpsc::channel();
        drop(threads::thread(move || {
            started.send(()).unwrap();
            gate.recv().unwrap();
        }));
        running.recv().unwrap();
        [(); 3].map(|()| threads::thread(|| ()))
    });
    unexplored(|| first.cancel());
    let canceller = thread::spawn(move || second.cancel());
    let closing = close();
    canceller.join().unwrap();
    release.send(()).unwrap();
    for closed in closing {
        closed.result().unwrap();
    }
    assert_eq!(kind(&third.result()), Some(ErrorKind::ShutDown));
}

fn run_cancel() {
    let value = Arc::new(());
    let held = Arc::clone(&value);
    let job = threads::thread(move || drop(held));
    let is_cancelled = job.cancel();
    let outcome = job.result();
    assert_eq!(Arc::strong_count(&value), 1);
    assert_eq!(is_cancelled, kind(&outcome) == Some(ErrorKind::Cancelled));
    assert_eq!(is_cancelled, outcome.is_err());
    end();
}

/// A job that waits for another job makes room for it.
fn nested_wait() {
    LIMIT.set(1);
    let outer = threads::thread(|| threads::thread(|| 1).result().unwrap());
    assert_eq!(outer.result().unwrap(), 1);
    end();
}

// ---------------------------------------------------------------------------------- ready-set

fn two_ends() {
    let ((first, a), (second, b)) = (promise(), promise());
    let setters = [
        thread::spawn(move || assert!(first.set(0))),
        thread::spawn(move || assert!(second.set(1))),
    ];
    let mut ended: Vec<_> = as_completed([a, b])
        .map(|(index, outcome)| (index, outcome.unwrap()))
        .collect();
    ended.sort_unstable();
    assert_eq!(ended, [(0, 0), (1, 1)]);
    for setter in setters {
        setter.join().unwrap();
    }
}

/// An outcome that came too late comes next time.
fn end_next_timeout() {
    clock::start(1);
    let (promise, unfuture) = promise();
    let setter = thread::spawn(move || assert!(promise.set(1)));
    let mut completed = as_completed([unfuture]);
    let next = completed.next_timeout(SECOND).or_else(|| completed.next());
    assert_eq!(
        next.map(|(index, outcome)| (index, outcome.unwrap())),
        Some((0, 1))
    );
    setter.join().unwrap();
    end();
}

fn end_join_all() {
    unexplored(|| spawn(async {}).result().unwrap());
    let ((first, a), (second, b)) = (promise(), promise());
    let all = join_all([a, b]);
    let setter = thread::spawn(move || assert!(first.set(1)));
    assert!(second.set(2));
    assert_eq!(all.result().unwrap(), [1, 2]);
    setter.join().unwrap();
    end();
}

// -------------------------------------------------------------------------------------- limit

fn release_acquire() {
    unexplored(|| threads::thread(|| ()).result().unwrap());
    let running = Arc::new(AtomicUsize::new(0));
    let limit = Limit::new(1);
    let jobs = [(); 2].map(|()| {
        let running = Arc::clone(&running);
        limit.thread(move || {
            assert_eq!(running.fetch_add(1, Relaxed), 0);
            yield_explored();
            running.fetch_sub(1, Relaxed);
        })
    });
    for job in jobs {
        job.result().unwrap();
    }
    end();
}

/// A step at which others may run.
fn yield_explored() {
    drop(sync::Mutex::new(()).lock());
}

/// The waiting work is cancelled while its place is released; the next work gets the place.
fn release_cancel() {
    unexplored(|| threads::thread(|| ()).result().unwrap());
    let limit = Limit::new(1);
    let first = limit.thread(|| 1);
    let second = limit.thread(|| 2);
    let third = limit.thread(|| 3);
    let is_cancelled = second.cancel();
    assert_eq!(third.result().unwrap(), 3);
    assert_eq!(first.result().unwrap(), 1);
    assert_eq!(is_cancelled, second.result().is_err());
    end();
}

/// Two threads submit while the place is taken; the work of one is cancelled at once. No place is lost.
fn submit_submit() {
    unexplored(|| threads::thread(|| ()).result().unwrap());
    let limit = Limit::new(1);
    let first = limit.thread(|| 1);
    let other = limit.clone();
    let submitter = sync::thread::spawn(move || {
        let second = other.thread(|| 2);
        let is_cancelled = second.cancel();
        assert_eq!(is_cancelled, second.result().is_err());
    });
    assert_eq!(limit.thread(|| 3).result().unwrap(), 3);
    submitter.join().unwrap();
    assert_eq!(first.result().unwrap(), 1);
    assert_eq!(format!("{limit:?}"), "Limit(0 of 1 running, 0 waiting)");
    end();
}

/// What waits for a place ends, whether it came before the end was announced or after. Here nobody would ever start
/// it, since the job that has the place waits for it.
fn limited_close() {
    unexplored(|| threads::thread(|| ()).result().unwrap());
    let limit = Limit::new(1);
    let same = limit.clone();
    let outer = limit.thread(move || same.thread(|| 1).result());
    for closed in close() {
        closed.result().unwrap();
    }
    let outcome = outer.result().and_then(|inner| inner);
    assert_eq!(kind(&outcome), Some(ErrorKind::ShutDown));
}
