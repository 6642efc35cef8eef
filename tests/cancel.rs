//! Ending work early: by hand, with its scope, or because its time is up.
//!
//! The first tests are tables, state of the work × way to end it. They check where a future was dropped,
//! and that this was before anybody saw its end; and that a closure was dropped once, and whether it ran.
//! Tests that fill the pool, or hold the ambient thread for long, run in processes of their own.

#![expect(clippy::async_yields_async, reason = "this is what `flatten` is for")]

mod support;

use std::future::{pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Barrier, Mutex};
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use support::{
    Bomb, Counter, CountingWaker, Drops, Gate, HEAVY, Log, OnDrop, Place, QUICK, Token,
    assert_kind, blocked, eventually, fence, hold_ambient, in_child, limit, quick, race,
};
use unsync::{Error, ErrorKind, Unfuture};

/// A deadline that passes in the test.
const SHORT: Duration = Duration::from_millis(20);
/// One that does not.
const LONG: Duration = Duration::from_secs(3600);

/// How far the work is when the test ends it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Queued,
    Running,
    Done,
    Taken,
}

use State::{Done, Queued, Running, Taken};

const STATES: [State; 4] = [Queued, Running, Done, Taken];

/// How it is ended.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Cancel,
    /// The `Unfuture` is dropped first.
    Canceller,
    CancelOnDrop,
    Timeout,
    RunTimeout,
}

const WAYS: [Way; 5] = [
    Way::Cancel,
    Way::Canceller,
    Way::CancelOnDrop,
    Way::Timeout,
    Way::RunTimeout,
];

impl Way {
    /// Ends the work; returns what is left to look at. The two deadlines are [`SHORT`].
    fn end<T: Send + 'static>(self, state: State, work: Unfuture<T>) -> Option<Unfuture<T>> {
        let in_time = matches!(state, Queued | Running);
        match self {
            Way::Cancel => {
                work.cancel();
                let again = work.cancel();
                assert!(in_time || !again, "{state:?}: there was nothing to cancel");
                Some(work)
            }
            Way::Canceller => {
                let canceller = work.canceller();
                drop(work);
                let cancelled = canceller.cancel();
                assert!(in_time || !cancelled, "{state:?}: nothing to cancel");
                None
            }
            Way::CancelOnDrop => {
                drop(work.cancel_on_drop());
                None
            }
            Way::Timeout => Some(work.timeout(SHORT)),
            Way::RunTimeout => Some(work.run_timeout(SHORT)),
        }
    }

    /// The kind of error of work that was ended in time.
    fn kind(self) -> ErrorKind {
        match self {
            Way::Cancel | Way::Canceller | Way::CancelOnDrop => ErrorKind::Cancelled,
            Way::Timeout | Way::RunTimeout => ErrorKind::TimedOut,
        }
    }
}

/// What the tests count for a piece of work.
#[derive(Clone, Default)]
struct Traces {
    begun: Gate,
    /// The work waits for this gate.
    gate: Gate,
    /// The future, or the closure.
    body: Drops,
    value: Drops,
    runs: Counter,
}

impl Traces {
    fn future(&self) -> impl Future<Output = Token> + Send + use<> {
        let (traces, body) = (self.clone(), self.body.token());
        async move {
            let _body = body;
            traces.runs.add();
            traces.begun.open();
            traces.gate.pass().await;
            traces.value.token()
        }
    }

    fn closure(&self) -> impl FnOnce() -> (Token, bool) + Send + use<> {
        let (traces, body) = (self.clone(), self.body.token());
        move || {
            let _body = body;
            traces.runs.add();
            traces.begun.open();
            traces.gate.wait();
            (traces.value.token(), unsync::is_cancelled())
        }
    }
}

/// Takes the value and leaves the `Unfuture` in place.
fn take<T>(work: &mut Unfuture<T>) {
    let taken = CountingWaker::new().poll(work);
    assert!(matches!(taken, Poll::Ready(Ok(_))));
}

/// Receives the failures that nobody looks at, from now on.
fn unobserved() -> Receiver<Error> {
    let (sender, receiver) = mpsc::channel();
    let hook = move |error: &Error| sender.send(error.clone()).unwrap();
    unsync::Config::new().on_unobserved(hook).install().unwrap();
    receiver
}

fn panics(text: &str) {
    panic!("{text}");
}

// ----------------------------------------------------------------------------------------- tables

#[test]
fn async_work_by_state_and_way() {
    in_child("async_work_by_state_and_way", HEAVY, &[], || {
        for state in STATES {
            for way in WAYS {
                for local in [false, true] {
                    let what = format!("{state:?} × {way:?}, local: {local}");
                    async_cell(state, way, local, &what);
                }
            }
        }
    });
}

fn async_cell(state: State, way: Way, local: bool, what: &str) {
    let traces = Traces::default();
    let held = (state == Queued).then(hold_ambient);
    let mut work = match local {
        false => unsync::spawn(traces.future()),
        true => unsync::spawn_local({
            let traces = traces.clone();
            move || traces.future()
        }),
    };
    if state != Queued {
        traces.begun.wait();
    }
    if matches!(state, Done | Taken) {
        traces.gate.open();
        work.wait();
    }
    if state == Taken {
        take(&mut work);
        assert_eq!(traces.value.count(), 1);
    }
    let left = way.end(state, work);
    drop(held);
    if let Some(left) = left {
        let outcome = left.result();
        // Dropped before the outcome was seen, not soon after.
        let made = usize::from(traces.runs.count() > 0);
        assert_eq!(traces.body.count(), made.max(usize::from(!local)), "{what}");
        match state {
            Queued | Running => assert_kind(outcome, way.kind(), what),
            Done => drop(outcome.expect(what)),
            Taken => assert_kind(outcome, ErrorKind::Abandoned, what),
        }
    }
    fence();
    let dropped = traces.body.places();
    assert!(dropped.len() <= 1 && dropped.iter().all(Place::is_ambient));
    let valued = usize::from(matches!(state, Done | Taken));
    assert_eq!(traces.value.count(), valued, "{what}: values");
    if state == Queued && way.kind() == ErrorKind::Cancelled {
        assert_eq!(traces.runs.count(), 0, "{what}: it never began");
    } else {
        assert_eq!((traces.runs.count(), dropped.len()), (1, 1), "{what}");
    }
}

#[test]
fn thread_work_by_state_and_way() {
    const NAME: &str = "thread_work_by_state_and_way";
    in_child(NAME, HEAVY, &[("UNSYNC_THREADS", "1")], || {
        for state in STATES {
            for way in WAYS {
                thread_cell(state, way, &format!("{state:?} × {way:?}"));
            }
        }
    });
}

fn thread_cell(state: State, way: Way, what: &str) {
    let traces = Traces::default();
    // There is one thread, and this job occupies it.
    let (occupied, vacate) = (Gate::new(), Gate::new());
    let first = unsync::thread({
        let (occupied, vacate) = (occupied.clone(), vacate.clone());
        move || {
            occupied.open();
            vacate.wait();
        }
    });
    occupied.wait();
    let mut work = unsync::thread(traces.closure());
    if state != Queued {
        vacate.open();
        traces.begun.wait();
    }
    if matches!(state, Done | Taken) {
        traces.gate.open();
        work.wait();
    }
    if state == Taken {
        take(&mut work);
    }
    let left = way.end(state, work);
    // Queueing does not count for `run_timeout`: the time of this job is over only once it runs.
    let runs = state != Queued || way == Way::RunTimeout;
    if state == Queued && way == Way::RunTimeout {
        let left = left.as_ref().unwrap();
        assert!(!left.wait_timeout(SHORT * 5), "{what}: {left:?}");
        vacate.open();
    }
    match (left, state, way) {
        (Some(left), Running, Way::Cancel) => {
            assert!(!left.wait_timeout(SHORT), "{what}: a job that runs goes on");
            traces.gate.open();
            let (_value, cancelled) = left.result().expect(what);
            assert!(cancelled, "{what}: the job was told");
        }
        (Some(left), Queued | Running, _) => {
            assert_kind(left.result(), way.kind(), what);
            assert_eq!(traces.body.count(), usize::from(!runs), "{what}: bodies");
        }
        (Some(left), Done, _) => {
            let (_value, cancelled) = left.result().expect(what);
            assert!(!cancelled, "{what}");
        }
        (Some(left), Taken, _) => assert_kind(left.result(), ErrorKind::Abandoned, what),
        (None, ..) => {}
    }
    traces.gate.open();
    vacate.open();
    first.result().unwrap();
    // Behind everything else in the queue.
    assert!(!unsync::thread(unsync::is_cancelled).result().unwrap());
    let ran = usize::from(runs);
    assert_eq!(traces.runs.count(), ran, "{what}: runs");
    assert_eq!(traces.body.count(), 1, "{what}: dropped exactly once");
    assert_eq!(traces.value.count(), ran, "{what}: values");
}

fn ambient() -> Place {
    unsync::spawn(async { Place::here() }).result().unwrap()
}

// ------------------------------------------------------------------------------------- async work

mod tasks {
    use super::*;

    /// The end is not visible before the destructor has run, however long it takes.
    #[test]
    fn the_future_is_gone_before_the_unfuture_resolves() {
        quick(|| {
            for way in [Way::Cancel, Way::Timeout, Way::RunTimeout] {
                let (log, begun) = (Log::new(), Gate::new());
                let work = unsync::spawn({
                    let (log, begun) = (log.clone(), begun.clone());
                    async move {
                        let _slow = OnDrop(|| {
                            thread::sleep(SHORT);
                            log.push(Place::here().is_ambient());
                        });
                        begun.open();
                        pending::<()>().await
                    }
                });
                begun.wait();
                let left = way.end(Running, work).unwrap();
                assert_kind(left.result(), way.kind(), "slow");
                assert_eq!(log.entries(), [true], "{way:?}");
            }
        });
    }

    #[test]
    fn a_destructor_that_panics_is_reported_and_contained() {
        const NAME: &str = "tasks::a_destructor_that_panics_is_reported_and_contained";
        in_child(NAME, HEAVY, &[], || {
            let panics = unobserved();
            let before = ambient();
            for way in WAYS {
                let begun = Gate::new();
                let work = unsync::spawn({
                    let begun = begun.clone();
                    async move {
                        let _bomb = Bomb("on the way out");
                        begun.open();
                        pending::<()>().await
                    }
                });
                begun.wait();
                let Some(left) = way.end(Running, work) else {
                    continue;
                };
                let mut error = left.result().unwrap_err();
                if way.kind() == ErrorKind::Cancelled {
                    // `cancel` has said so, so the panic goes to the hook.
                    assert_eq!(error.kind(), ErrorKind::Cancelled, "{way:?}: {error}");
                    error = panics.recv_timeout(QUICK).unwrap();
                }
                assert_eq!(error.kind(), ErrorKind::Panicked, "{way:?}: {error}");
                assert!(error.to_string().contains("on the way out"), "{error}");
                let payload = error.into_panic().unwrap();
                assert_eq!(payload.downcast_ref::<String>().unwrap(), "on the way out");
            }
            assert_eq!(ambient(), before);
        });
    }

    #[test]
    fn a_cancelled_task_is_not_polled_again() {
        quick(|| {
            let (polls, waker) = (Counter::new(), Arc::new(Mutex::new(None::<Waker>)));
            let work = unsync::spawn({
                let (polls, waker) = (polls.clone(), Arc::clone(&waker));
                poll_fn(move |cx| {
                    *waker.lock().unwrap() = Some(cx.waker().clone());
                    polls.add();
                    Poll::<()>::Pending
                })
            });
            polls.wait_for(1);
            let waker = waker.lock().unwrap().take().unwrap();
            let held = hold_ambient();
            // Woken before the cancellation, after it, and when all is over.
            waker.wake_by_ref();
            assert!(work.cancel());
            waker.wake_by_ref();
            drop(held);
            assert_kind(work.result(), ErrorKind::Cancelled, "woken");
            waker.wake_by_ref();
            fence();
            assert_eq!(polls.count(), 1);
        });
    }

    /// The future would be ready at once, but that does not matter: it was not polled in time.
    #[test]
    fn a_ready_future_that_is_still_queued_is_not_run() {
        quick(|| {
            let held = hold_ambient();
            let ran = Arc::new(AtomicBool::new(false));
            let work = unsync::spawn({
                let ran = Arc::clone(&ran);
                async move { ran.store(true, Ordering::SeqCst) }
            });
            assert!(work.cancel());
            drop(held);
            assert_kind(work.result(), ErrorKind::Cancelled, "ready");
            assert!(!ran.load(Ordering::SeqCst));
        });
    }

    #[test]
    fn one_that_is_cancelled_during_its_poll_ends_as_was_told() {
        const NAME: &str = "tasks::one_that_is_cancelled_during_its_poll_ends_as_was_told";
        #[derive(Clone, Copy)]
        enum Gives {
            Ready,
            Pending,
            Panic,
        }
        in_child(NAME, HEAVY, &[], || {
            let panics = unobserved();
            for gives in [Gives::Ready, Gives::Pending, Gives::Panic] {
                for detached in [false, true] {
                    let (inside, go_on, drops) = (Gate::new(), Gate::new(), Drops::new());
                    let polls = Counter::new();
                    let work = unsync::spawn({
                        let (inside, go_on) = (inside.clone(), go_on.clone());
                        let (polls, token) = (polls.clone(), drops.token());
                        poll_fn(move |cx| {
                            let _ = &token;
                            polls.add();
                            inside.open();
                            go_on.wait();
                            match gives {
                                Gives::Ready => Poll::Ready(()),
                                Gives::Pending => {
                                    cx.waker().wake_by_ref();
                                    Poll::Pending
                                }
                                Gives::Panic => panic!("inside"),
                            }
                        })
                    });
                    inside.wait();
                    let canceller = work.canceller();
                    let work = (!detached).then_some(work);
                    assert!(canceller.cancel());
                    go_on.open();
                    drops.wait_for(1);
                    fence();
                    assert_eq!((polls.count(), drops.count()), (1, 1));
                    // `cancel` said that it is cancelled, so it is, whatever the poll gave.
                    if let Some(work) = work {
                        assert_kind(work.result(), ErrorKind::Cancelled, "during a poll");
                    }
                    if matches!(gives, Gives::Panic) {
                        let error = panics.recv_timeout(QUICK).unwrap();
                        assert!(error.to_string().contains("inside"), "{error}");
                    }
                }
            }
        });
    }

    #[test]
    fn a_task_may_cancel_itself() {
        quick(|| {
            let (sender, receiver) = mpsc::channel();
            let drops = Drops::new();
            let work = unsync::spawn({
                let token = drops.token();
                async move {
                    let _token = token;
                    let canceller: unsync::Canceller = receiver.recv().unwrap();
                    assert!(canceller.cancel());
                    // It still runs: a cancelled task ends where it waits.
                    unsync::yield_now().await;
                    unreachable!("it was cancelled");
                }
            });
            sender.send(work.canceller()).unwrap();
            assert_kind::<()>(work.result(), ErrorKind::Cancelled, "itself");
            assert_eq!(drops.count(), 1);
        });
    }

    /// Each destructor cancels the next task: they do not nest, however many there are.
    #[test]
    fn destructors_may_cancel_other_tasks() {
        const TASKS: usize = 10_000;
        quick(|| {
            let drops = Drops::new();
            let mut next: Option<Unfuture<()>> = None;
            for _ in 0..TASKS {
                let (token, tied) = (drops.token(), next.take().map(Unfuture::cancel_on_drop));
                next = Some(unsync::spawn(async move {
                    let _held = (token, tied);
                    pending().await
                }));
            }
            assert!(next.unwrap().cancel());
            drops.wait_for(TASKS);
            assert!(drops.places().iter().all(Place::is_ambient));
        });
    }

    #[test]
    fn a_waiter_is_woken_once() {
        quick(|| {
            let mut work = unsync::spawn(pending::<()>());
            let waker = CountingWaker::new();
            assert!(waker.poll(&mut work).is_pending());
            assert!(work.cancel());
            waker.wait_for(1);
            fence();
            work.cancel();
            assert_eq!((waker.wakes(), waker.held()), (1, 0));
            let Poll::Ready(outcome) = waker.poll(&mut work) else {
                panic!("woken too early");
            };
            assert_kind(outcome, ErrorKind::Cancelled, "awaited");
        });
    }

    #[test]
    fn a_blocked_waiter_is_let_go() {
        quick(|| {
            let (work, waits) = (unsync::spawn(pending::<()>()), Gate::new());
            let canceller = work.canceller();
            let waiter = thread::spawn({
                let waits = waits.clone();
                move || {
                    waits.open();
                    work.result()
                }
            });
            waits.wait();
            assert!(canceller.cancel());
            assert_kind(waiter.join().unwrap(), ErrorKind::Cancelled, "blocked");
        });
    }

    #[test]
    fn a_future_polled_at_once_is_dropped_on_the_ambient_thread_too() {
        quick(|| {
            let drops = Drops::new();
            let token = drops.token();
            let work = unsync::spawn_now(async move {
                let _token = token;
                pending::<()>().await
            });
            assert!(work.cancel());
            assert_kind(work.result(), ErrorKind::Cancelled, "polled");
            assert!(drops.places()[0].is_ambient());
        });
    }
}

// ----------------------------------------------------------------------- many threads at one work

mod races {
    use super::*;

    #[test]
    fn many_threads_cancel_one_task() {
        const THREADS: usize = 16;
        quick(|| {
            for _ in 0..100 {
                let (drops, start) = (Drops::new(), Barrier::new(THREADS));
                let token = drops.token();
                let work = unsync::spawn(async move {
                    let _token = token;
                    pending::<()>().await
                });
                thread::scope(|scope| {
                    for _ in 0..THREADS {
                        let canceller = work.canceller();
                        let start = &start;
                        scope.spawn(move || {
                            start.wait();
                            canceller.cancel()
                        });
                    }
                });
                assert_kind(work.result(), ErrorKind::Cancelled, "by many");
                assert_eq!(drops.count(), 1);
            }
        });
    }

    /// A value or a cancellation, and never both: the value is dropped once in either case.
    #[test]
    fn cancelling_races_with_the_end_of_a_task() {
        limit(HEAVY, || {
            let pair = |_| {
                let (promise, source) = unsync::promise::<Token>();
                let work = unsync::spawn(async move { source.await.unwrap() });
                (promise, work)
            };
            let values = Drops::new();
            race(
                5_000,
                pair,
                |_, promise| promise.set(values.token()),
                |_, work: Unfuture<Token>| {
                    work.cancel();
                    match work.result() {
                        Ok(value) => drop(value),
                        Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled),
                    }
                },
            );
            values.wait_for(5_000);
            fence();
            assert_eq!(values.count(), 5_000);
        });
    }

    /// A job that is cancelled either never begins or gives its value.
    #[test]
    fn cancelling_races_with_the_start_of_a_job() {
        limit(HEAVY, || {
            let (bodies, runs) = (Drops::new(), Counter::new());
            let pair = |_| {
                let (token, runs) = (bodies.token(), runs.clone());
                let work = unsync::thread(move || {
                    let _token = token;
                    runs.add();
                });
                (work.canceller(), work)
            };
            let cancelled = Counter::new();
            race(
                5_000,
                pair,
                |_, canceller| _ = canceller.cancel(),
                |_, work| match work.result() {
                    Ok(()) => {}
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Cancelled);
                        cancelled.add();
                    }
                },
            );
            bodies.wait_for(5_000);
            assert_eq!(runs.count() + cancelled.count(), 5_000);
        });
    }

    #[test]
    fn cancelling_races_with_a_promise_that_is_kept() {
        limit(HEAVY, || {
            let values = Drops::new();
            race(
                5_000,
                |_| unsync::promise::<Token>(),
                |_, promise| promise.set(values.token()),
                |_, work| {
                    let cancelled = work.cancel();
                    match work.result() {
                        Ok(value) => {
                            assert!(!cancelled);
                            drop(value);
                        }
                        Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled),
                    }
                },
            );
            assert_eq!(values.count(), 5_000);
        });
    }

    #[test]
    fn a_deadline_races_with_the_end() {
        limit(HEAVY, || {
            const WORKS: usize = 2_000;
            let values = Drops::new();
            let works = (0..WORKS as u64).map(|number| {
                let (value, moment) = (values.token(), Duration::from_micros(5_000 + number % 7));
                let work = unsync::spawn(async move {
                    unsync::sleep(moment).await;
                    value
                });
                work.timeout(Duration::from_micros(5_003))
            });
            for work in Vec::from_iter(works) {
                match work.result() {
                    Ok(value) => drop(value),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::TimedOut),
                }
            }
            fence();
            assert_eq!(values.count(), WORKS);
        });
    }
}

// ------------------------------------------------------------------------------------ continuations

mod continuations {
    use super::*;

    /// For each step: a source that waits for its gate, and what the step made of it.
    fn derived() -> Vec<(&'static str, Traces, Unfuture<()>)> {
        type Derive = fn(Unfuture<Token>) -> Unfuture<()>;
        let derivations: [(&str, Derive); 4] = [
            ("map", |source| source.map(drop)),
            ("and_then", |source| {
                source.and_then(async |token| drop(token))
            }),
            ("then", |source| {
                source.then(async |source| drop(source.result()))
            }),
            ("map_thread", |source| source.map_thread(drop)),
        ];
        let made = derivations.map(|(name, derive)| {
            let traces = Traces::default();
            let derived = derive(unsync::spawn(traces.future()));
            (name, traces, derived)
        });
        made.into()
    }

    #[test]
    fn cancelling_one_leaves_its_source_alone() {
        quick(|| {
            for (name, traces, derived) in derived() {
                traces.begun.wait();
                assert!(derived.cancel(), "{name}");
                assert_kind(derived.result(), ErrorKind::Cancelled, name);
                fence();
                assert_eq!(traces.body.count(), 0, "{name}: the source goes on");
                traces.gate.open();
                traces.value.wait_for(1);
                assert_eq!(traces.value.count(), 1, "{name}: to its end");
            }
        });
    }

    #[test]
    fn a_deadline_of_one_leaves_its_source_alone() {
        quick(|| {
            for (name, traces, derived) in derived() {
                traces.begun.wait();
                assert_kind(derived.timeout(SHORT).result(), ErrorKind::TimedOut, name);
                fence();
                assert_eq!(traces.body.count(), 0, "{name}: the source goes on");
                traces.gate.open();
                traces.value.wait_for(1);
            }
        });
    }

    /// Ending the scope of tied work is meant to end the work.
    #[test]
    fn a_source_that_is_tied_ends_with_its_continuation() {
        quick(|| {
            let traces = Traces::default();
            let derived = unsync::spawn(traces.future()).cancel_on_drop().map(drop);
            traces.begun.wait();
            assert!(derived.cancel());
            traces.body.wait_for(1);
            assert!(traces.body.places()[0].is_ambient());
        });
    }

    #[test]
    fn cancelling_the_source_is_seen_by_its_continuation() {
        quick(|| {
            let source = unsync::spawn(pending::<()>());
            let canceller = source.canceller();
            let (ran, seen) = (Arc::new(AtomicBool::new(false)), Gate::new());
            let mapped = source.map({
                let ran = Arc::clone(&ran);
                move |()| ran.store(true, Ordering::SeqCst)
            });
            let rescued = mapped.then({
                let seen = seen.clone();
                async move |mapped| {
                    seen.open();
                    mapped.result().unwrap_err().kind()
                }
            });
            assert!(canceller.cancel());
            assert_eq!(rescued.result().unwrap(), ErrorKind::Cancelled);
            assert!(seen.is_open() && !ran.load(Ordering::SeqCst));
        });
    }

    #[test]
    fn the_future_that_a_continuation_made_is_dropped() {
        quick(|| {
            let traces = Traces::default();
            let inner = traces.future();
            let derived = unsync::spawn(async {}).and_then(|()| inner);
            traces.begun.wait();
            assert!(derived.cancel());
            assert_kind(derived.result(), ErrorKind::Cancelled, "and_then");
            assert_eq!(traces.body.count(), 1);
            assert!(traces.body.places()[0].is_ambient());
        });
    }

    #[test]
    fn the_job_that_a_continuation_started_is_told() {
        quick(|| {
            let (told, runs) = (Gate::new(), Gate::new());
            let derived = unsync::spawn(async {}).map_thread({
                let (told, runs) = (told.clone(), runs.clone());
                move |()| {
                    runs.open();
                    while !unsync::is_cancelled() {
                        thread::yield_now();
                    }
                    told.open();
                }
            });
            runs.wait();
            assert!(derived.cancel());
            assert_kind(derived.result(), ErrorKind::Cancelled, "map_thread");
            told.wait();
        });
    }

    /// `flatten` makes no new work: it is the same work, and stopping it stops the stage that runs.
    #[test]
    fn a_flattened_one_is_the_work_itself() {
        quick(|| {
            let traces = Traces::default();
            let future = traces.future();
            let result = unsync::spawn(async { Ok(future.await) }).flatten();
            traces.begun.wait();
            assert!(result.cancel());
            assert_kind(result.result(), ErrorKind::Cancelled, "a result inside");
            assert_eq!(traces.body.count(), 1);

            let (inner, outer, release) = (Traces::default(), Traces::default(), Gate::new());
            let nested = unsync::spawn({
                let (future, started) = (outer.future(), inner.future());
                let release = release.clone();
                async move {
                    drop(future.await);
                    let started = unsync::spawn(started);
                    release.open();
                    started
                }
            });
            let flat = nested.flatten();
            outer.begun.wait();
            outer.gate.open();
            release.wait();
            inner.begun.wait();
            fence();
            assert!(flat.cancel(), "the inner one runs by now");
            assert_kind(flat.result(), ErrorKind::Cancelled, "the inner one");
            assert_eq!((outer.value.count(), inner.body.count()), (1, 1));

            let (inner, outer) = (Traces::default(), Traces::default());
            let nested = unsync::spawn({
                let (future, started) = (outer.future(), inner.future());
                async move {
                    drop(future.await);
                    unsync::spawn(started)
                }
            });
            let flat = nested.flatten();
            outer.begun.wait();
            assert!(flat.cancel(), "the outer one runs");
            assert_kind(flat.result(), ErrorKind::Cancelled, "the outer one");
            assert_eq!((outer.body.count(), inner.runs.count()), (1, 0));
        });
    }

    /// When the end of the whole is seen, nothing is left of the work beneath it.
    #[test]
    fn what_a_whole_stands_on_is_gone_before_its_end_is_seen() {
        quick(|| {
            for _ in 0..20 {
                let traces = [(); 3].map(|()| Traces::default());
                let [one, two, three] = traces.each_ref().map(|one| unsync::spawn(one.future()));
                let pair = unsync::join_all([one.timeout(LONG), two]);
                let pairs = unsync::race([pair, unsync::join_all([three.run_timeout(LONG)])]);
                let whole = unsync::spawn(async { pairs }).flatten().timeout(LONG);
                traces.iter().for_each(|one| one.begun.wait());
                fence();
                assert!(whole.cancel());
                assert_kind(whole.result(), ErrorKind::Cancelled, "the whole");
                assert!(traces.iter().all(|one| one.body.count() == 1));
            }
        });
    }

    /// A running job cannot be stopped, and may still return the inner work.
    #[test]
    fn the_inner_work_of_a_job_that_ran_on_is_cancelled_too() {
        quick(|| {
            let (runs, go_on, inner) = (Gate::new(), Gate::new(), Traces::default());
            let flat = unsync::thread({
                let (runs, go_on, inner) = (runs.clone(), go_on.clone(), inner.clone());
                move || {
                    runs.open();
                    go_on.wait();
                    let started = unsync::spawn(inner.future());
                    inner.begun.wait();
                    started
                }
            });
            let flat = flat.flatten();
            runs.wait();
            assert!(flat.cancel());
            assert_kind(flat.result(), ErrorKind::Cancelled, "at once");
            go_on.open();
            inner.body.wait_for(1);
            assert_eq!(inner.value.count(), 0);
        });
    }

    /// The outer work has ended, but the ambient thread has not got round to its value.
    #[test]
    fn inner_work_that_nobody_has_looked_at_is_cancelled_too() {
        quick(|| {
            let inner = Traces::default();
            let started = unsync::spawn(inner.future());
            inner.begun.wait();
            let (promise, outer) = unsync::promise::<Unfuture<support::Token>>();
            let flat = outer.flatten();
            fence();
            let held = hold_ambient();
            assert!(promise.set(started));
            assert!(flat.cancel());
            drop(held);
            assert_kind(flat.result(), ErrorKind::Cancelled, "the flat one");
            inner.body.wait_for(1);
            assert_eq!(inner.value.count(), 0);
        });
    }

    #[test]
    fn cancelling_a_join_cancels_what_it_joins() {
        quick(|| {
            let traces = [(); 3].map(|()| Traces::default());
            let joined = unsync::join_all(traces.iter().map(|one| unsync::spawn(one.future())));
            traces.iter().for_each(|one| one.begun.wait());
            assert!(joined.cancel());
            assert_kind(joined.result(), ErrorKind::Cancelled, "join_all");
            traces.iter().for_each(|one| one.body.wait_for(1));
        });
    }

    /// One of a hundred waiters, each with its own source, gives up.
    #[test]
    fn other_waiters_are_left_alone() {
        quick(|| {
            let (gate, works) = (Gate::new(), 0..100);
            let mut mapped = Vec::from_iter(works.map(|number| {
                let gate = gate.clone();
                let source = unsync::spawn(async move {
                    gate.pass().await;
                    number
                });
                source.map(|number| number + 1)
            }));
            let given_up = mapped.remove(50);
            assert!(given_up.cancel());
            assert_kind(given_up.result(), ErrorKind::Cancelled, "given up");
            gate.open();
            let sum: i32 = unsync::join_all(mapped).result().unwrap().iter().sum();
            assert_eq!(sum, (1..=100).sum::<i32>() - 51);
        });
    }
}

// --------------------------------------------------------------------------------------- answers

/// `cancel` says whether the work ends, or has ended, as cancelled.
mod answers {
    use super::*;
    use unsync::{Limit, Pinned};

    fn endless() -> Unfuture<()> {
        unsync::spawn(pending())
    }

    /// Cancels twice before the end, and twice after it, the last time after the outcome was taken.
    #[track_caller]
    fn assert_answers<T>(work: Unfuture<T>, expected: bool, what: &str) {
        let canceller = work.canceller();
        let before = [work.cancel(), canceller.cancel()];
        assert!(work.wait_timeout(QUICK), "{what} did not end");
        let ended = work.cancel();
        let kind = work.result().err().map(|error| error.kind());
        let answers = [before[0], before[1], ended, canceller.cancel()];
        let is_cancelled = kind == Some(ErrorKind::Cancelled);
        assert_eq!(answers, [is_cancelled; 4], "{what} ended as {kind:?}");
        assert_eq!(is_cancelled, expected, "{what} ended as {kind:?}");
    }

    #[test]
    fn are_yes_where_the_source_was_cancelled() {
        quick(|| {
            type Step = fn(Unfuture<()>) -> Unfuture<()>;
            let steps: [(&str, Step); 6] = [
                ("map", |source| source.map(|()| ())),
                ("and_then", |source| source.and_then(|()| async {})),
                ("map_thread", |source| source.map_thread(|()| ())),
                ("timeout", |source| source.timeout(LONG)),
                ("join_all", |source| unsync::join_all([source]).map(|_| ())),
                ("race", |source| unsync::race([source])),
            ];
            for (what, step) in steps {
                let source = endless();
                let canceller = source.canceller();
                let work = step(source);
                assert!(canceller.cancel());
                assert!(work.wait_timeout(QUICK), "{what} did not end");
                let canceller = work.canceller();
                let ended = work.cancel();
                let kind = work.result().unwrap_err().kind();
                assert_eq!(kind, ErrorKind::Cancelled, "{what}");
                assert_eq!([ended, canceller.cancel()], [true; 2], "{what}");
            }
        });
    }

    #[test]
    fn are_the_same_for_every_kind_of_work_and_at_any_time() {
        const NAME: &str = "answers::are_the_same_for_every_kind_of_work_and_at_any_time";
        in_child(NAME, HEAVY, &[("UNSYNC_THREADS", "1")], || {
            let (occupied, vacate) = (Gate::new(), Gate::new());
            let busy = unsync::thread({
                let (occupied, vacate) = (occupied.clone(), vacate.clone());
                move || {
                    occupied.open();
                    vacate.wait();
                }
            });
            occupied.wait();
            let queued = || unsync::thread(|| ());
            let (_promise, promised) = unsync::promise::<u8>();
            assert_answers(promised, true, "a promise");
            assert_answers(endless(), true, "a task");
            assert_answers(unsync::spawn_local(pending::<()>), true, "a local task");
            assert_answers(queued(), true, "a queued job");
            assert_answers(endless().map(|()| 1), true, "map");
            assert_answers(endless().and_then(|()| async {}), true, "and_then");
            assert_answers(endless().then(|_| async {}), true, "then");
            assert_answers(endless().map_thread(|()| ()), true, "map_thread");
            assert_answers(queued().map(|()| ()), true, "map of a job");
            assert_answers(endless().timeout(LONG), true, "timeout");
            assert_answers(endless().run_timeout(LONG), true, "run_timeout");
            assert_answers(queued().timeout(LONG), true, "timeout of a job");
            assert_answers(
                unsync::spawn(async { endless() }).flatten(),
                true,
                "flatten",
            );
            let inside = unsync::spawn(async { endless().await });
            assert_answers(inside.flatten(), true, "flatten of a result");
            assert_answers(unsync::join_all([endless()]), true, "join_all");
            assert_answers(unsync::join_all([queued()]), true, "join_all of jobs");
            assert_answers(unsync::race([endless(), queued()]), true, "race");
            let settled = unsync::settle_all([endless(), queued()]);
            assert_answers(settled, false, "settle_all gives its outcomes");
            let limit = Limit::new(1);
            let _held = limit.spawn(pending::<()>());
            assert_answers(limit.spawn(async {}), true, "a task in line");
            assert_answers(limit.thread(|| ()), true, "a job in line");
            let pinned = Pinned::new(|| ());
            let (gate, first) = blocked(|block| pinned.call(|()| block()));
            assert_answers(
                pinned.call(|()| ()),
                true,
                "a queued call of a pinned value",
            );
            assert!(!first.cancel(), "it runs");
            gate.open();
            assert_answers(first, false, "a call of a pinned value that ran");

            assert!(!busy.cancel(), "it runs");
            let joined = unsync::join_all([busy, Unfuture::ready(())]);
            // Work that cannot be stopped does not hold up the join.
            assert_answers(joined, true, "join_all of a job that runs");
            vacate.open();
            assert_answers(Unfuture::ready(1), false, "one that ended well");
            let panicked = unsync::spawn(async { panics("before") });
            panicked.wait();
            assert_answers(panicked, false, "one that panicked");
            let late = endless().timeout(SHORT);
            late.wait();
            assert_answers(late, false, "one that was late");
            let shared = endless().shared();
            assert!(shared.cancel() && shared.canceller().cancel());
            assert_kind(shared.result(), ErrorKind::Cancelled, "shared");
            assert!(shared.cancel() && shared.clone().cancel(), "after the end");
        });
    }

    /// The shutdown is already in the queue of the ambient thread when the task is cancelled, or the other
    /// way round.
    #[test]
    fn hold_during_a_shutdown() {
        const NAME: &str = "answers::hold_during_a_shutdown";
        in_child(NAME, HEAVY, &[], || {
            let sleepers: Vec<_> = (0..100).map(|_| endless()).collect();
            let joined = unsync::join_all((0..10).map(|_| endless()));
            eventually(QUICK, "all tasks run", || {
                let tasks = unsync::stats().async_tasks;
                // The join is a task too.
                (tasks == 111, tasks)
            });
            let held = hold_ambient();
            let (sender, asked) = mpsc::channel();
            let shutdown = thread::spawn(move || {
                // Nothing shows when the request has reached the queue, so the cancels are spread out.
                sender.send(()).unwrap();
                unsync::shutdown(SHORT)
            });
            asked.recv().unwrap();
            let cancel = |sleeper: &Unfuture<()>| {
                thread::sleep(SHORT / 50);
                sleeper.cancel()
            };
            let (early, late) = sleepers.split_at(80);
            let mut answers: Vec<bool> = early.iter().map(cancel).collect();
            let of_joined = joined.cancel();
            drop(held);
            answers.extend(late.iter().map(cancel));
            drop(shutdown.join().unwrap());
            for (sleeper, answer) in sleepers.into_iter().zip(answers) {
                let expected = match answer {
                    true => ErrorKind::Cancelled,
                    false => ErrorKind::ShutDown,
                };
                assert_eq!(sleeper.cancel(), answer);
                assert_kind(sleeper.result(), expected, "a task");
            }
            assert_eq!(joined.cancel(), of_joined);
            let kind = joined.result().unwrap_err().kind();
            assert_eq!(kind == ErrorKind::Cancelled, of_joined, "{kind:?}");
        });
    }

    /// Numbers by xorshift (Marsaglia 2003), the same in every run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 11) % end
        }

        fn moment(&mut self) -> Duration {
            Duration::from_micros(self.below(400))
        }

        /// Work of a kind that is not made of other work.
        fn leaf(&mut self, limit: &Limit) -> Unfuture<u64> {
            let (moment, panics) = (self.moment(), self.below(4) == 0);
            let end = move || match panics {
                true => panics_now(),
                false => 1,
            };
            let task = async move {
                unsync::sleep(moment).await;
                end()
            };
            let job = move || {
                thread::sleep(moment);
                end()
            };
            match self.below(6) {
                0 => unsync::spawn(pending()),
                1 => unsync::spawn(task),
                2 => unsync::thread(job),
                3 => limit.spawn(task),
                4 => limit.thread(job),
                _ => unsync::spawn(async { 1 }),
            }
        }

        fn work(&mut self, depth: u64, limit: &Limit) -> Unfuture<u64> {
            if depth == 0 {
                return self.leaf(limit);
            }
            let work = self.work(depth - 1, limit);
            let moment = self.moment();
            match self.below(12) {
                0 => work.map(|n| n + 1),
                1 => work.and_then(|n| async move { n }),
                2 => work.then(|work| async { work.result().unwrap_or(3) }),
                3 => work.map_thread(|n| n + 1),
                4 => unsync::spawn(async { work }).flatten(),
                5 => unsync::spawn(work).flatten(),
                6 => work.timeout(moment),
                7 => work.run_timeout(moment),
                8 => unsync::join_all([work, self.leaf(limit)]).map(|all| all.iter().sum()),
                9 => unsync::race([work, self.leaf(limit)]),
                10 => unsync::settle_all([work, self.leaf(limit)]).map(|all| all.len() as u64),
                _ => work.cancel_on_drop(),
            }
        }
    }

    fn panics_now() -> u64 {
        panic!("in the storm")
    }

    #[test]
    fn hold_in_a_storm_of_random_work() {
        const NAME: &str = "answers::hold_in_a_storm_of_random_work";
        in_child(NAME, HEAVY, &[("UNSYNC_THREADS", "4")], || {
            std::panic::set_hook(Box::new(|_| ()));
            let (mut random, limit) = (Random(0x9e37_79b9_7f4a_7c15), Limit::new(3));
            let mut cancelled = 0;
            for round in 0..4_000 {
                let seed = random.0;
                let depth = random.below(4);
                let work = random.work(depth, &limit);
                let (canceller, pause) = (work.canceller(), random.moment());
                let other = thread::spawn(move || {
                    thread::sleep(pause);
                    canceller.cancel()
                });
                thread::sleep(random.moment());
                let answer = work.cancel();
                let others = other.join().unwrap();
                if !answer && !others {
                    // It may never end by itself, or may end by itself while it is asked again.
                    let _ = work.wait_timeout(Duration::from_millis(1));
                }
                let canceller = work.canceller();
                if !work.is_done() && !canceller.cancel() {
                    eventually(QUICK, "it ends by itself", || (work.is_done(), seed));
                }
                let last = canceller.cancel();
                assert!(
                    work.wait_timeout(QUICK),
                    "round {round}, seed {seed}: no end"
                );
                let kind = work.result().err().map(|error| error.kind());
                let ended = kind == Some(ErrorKind::Cancelled);
                let text = format!("round {round}, seed {seed}: ended as {kind:?}");
                assert_eq!((last, canceller.cancel()), (ended, ended), "{text}");
                assert!(ended || !(answer || others), "it was told so; {text}");
                cancelled += u32::from(ended);
            }
            assert!((1_000..3_900).contains(&cancelled), "{cancelled} cancelled");
        });
    }
}

// ---------------------------------------------------------------------------------------- scopes

mod scopes {
    use super::*;

    #[test]
    fn a_scope_that_unwinds_takes_its_work_along() {
        quick(|| {
            let traces = Traces::default();
            let work = unsync::spawn(traces.future()).cancel_on_drop();
            traces.begun.wait();
            let unwound = catch_unwind(AssertUnwindSafe(move || {
                let _work = work;
                panics("the scope fails");
            }));
            assert!(unwound.is_err());
            traces.body.wait_for(1);
        });
    }

    #[test]
    fn the_tie_goes_over_to_what_takes_its_place() {
        quick(|| {
            type Replace = fn(Unfuture<Token>) -> Unfuture<Token>;
            let replaced: [Replace; 4] = [
                |work| work.timeout(LONG),
                |work| work.run_timeout(LONG),
                |work| work.map(Ok).cancel_on_drop().flatten(),
                |work| work.timeout(LONG).timeout(LONG).run_timeout(LONG),
            ];
            for (number, replace) in replaced.into_iter().enumerate() {
                let traces = Traces::default();
                let work = replace(unsync::spawn(traces.future()).cancel_on_drop());
                traces.begun.wait();
                fence();
                assert_eq!(traces.body.count(), 0, "{number}: too early");
                drop(work);
                traces.body.wait_for(1);
            }
        });
    }

    /// Makes something of tied work, and drops it.
    #[test]
    fn the_tie_holds_through_everything_that_takes_it() {
        type Take = fn(Unfuture<Token>);
        let takes: [(&str, Take); 17] = [
            ("map", |work| drop(work.map(drop))),
            ("and_then", |work| drop(work.and_then(async |_| ()))),
            ("then", |work| drop(work.then(async |_| ()))),
            ("map_thread", |work| drop(work.map_thread(drop))),
            ("map of map", |work| drop(work.map(|n| n).map(drop))),
            ("timeout of map", |work| drop(work.map(drop).timeout(LONG))),
            ("join_all", |work| drop(unsync::join_all([work]))),
            ("settle_all", |work| drop(unsync::settle_all([work]))),
            ("race", |work| drop(unsync::race([work]))),
            ("as_completed", |work| drop(unsync::as_completed([work]))),
            ("shared", |work| drop(work.map(Arc::new).shared())),
            ("flatten", |work| {
                drop(work.map(Ok::<_, Error>).flatten());
            }),
            ("flatten of an inner one", |work| {
                let flat = unsync::spawn(async { work }).flatten();
                fence();
                drop(flat);
            }),
            ("a flatten that is gone", |work| {
                let held = hold_ambient();
                drop(unsync::spawn(async { work }).flatten());
                drop(held);
            }),
            ("join_all that fails", |work| {
                let failed = unsync::spawn(async { panics("first") }).map(|()| unreachable!());
                drop(unsync::join_all([work, failed]).result());
            }),
            ("race that is lost", |work| {
                drop(unsync::race([work.map(drop), Unfuture::ready(())]).result());
            }),
            ("the rest of as_completed", |work| {
                let mut works = unsync::as_completed([work.map(drop), Unfuture::ready(())]);
                assert_eq!(works.next().unwrap().0, 1);
            }),
        ];
        quick(move || {
            for (name, take) in takes {
                let traces = Traces::default();
                let work = unsync::spawn(traces.future()).cancel_on_drop();
                traces.begun.wait();
                take(work);
                eventually(QUICK, name, || (traces.body.count() == 1, ()));
            }
        });
    }

    #[test]
    fn the_tie_holds_in_a_limit() {
        quick(|| {
            let limit = unsync::Limit::new(1);
            let traces = [(); 2].map(|()| Traces::default());
            let tied = |one: &Traces| limit.spawn(one.future()).cancel_on_drop();
            let [running, waiting] = traces.each_ref().map(tied);
            traces[0].begun.wait();
            drop(unsync::join_all([waiting]));
            traces[1].body.wait_for(1);
            assert_eq!(traces[0].body.count(), 0);
            drop(running.map(drop));
            traces[0].body.wait_for(1);
            assert_eq!(limit.thread(|| 1).result().unwrap(), 1);
        });
    }

    #[test]
    fn what_is_not_tied_goes_on() {
        quick(|| {
            let (tied, free) = (Traces::default(), Traces::default());
            let works = [
                unsync::spawn(tied.future()).cancel_on_drop(),
                unsync::spawn(free.future()),
            ];
            drop(unsync::as_completed(works));
            tied.body.wait_for(1);
            free.gate.open();
            free.value.wait_for(1);
        });
    }

    #[test]
    fn a_callback_lets_go() {
        quick(|| {
            let traces = Traces::default();
            let work = unsync::spawn(traces.future()).cancel_on_drop();
            let (sender, outcomes) = mpsc::channel();
            work.on_done(move |outcome| sender.send(outcome.is_ok()).unwrap());
            traces.begun.wait();
            fence();
            traces.gate.open();
            assert!(outcomes.recv_timeout(QUICK).unwrap());
        });
    }

    #[test]
    fn a_tie_harms_nothing_that_has_ended() {
        quick(|| {
            assert_eq!(
                unsync::spawn(async { 1 })
                    .cancel_on_drop()
                    .result()
                    .unwrap(),
                1
            );
            let awaited = async { unsync::thread(|| 2).cancel_on_drop().await };
            assert_eq!(unsync::block_on(awaited).unwrap(), 2);
            assert_eq!(Unfuture::ready(3).cancel_on_drop().result().unwrap(), 3);
        });
    }

    /// What a closure holds may wait, by its own means, for what its drop causes.
    #[test]
    fn a_destructor_of_tied_work_may_wait_for_what_it_caused() {
        const NAME: &str = "scopes::a_destructor_of_tied_work_may_wait_for_what_it_caused";
        in_child(NAME, HEAVY, &[("UNSYNC_THREADS", "1")], || {
            let vacate = Gate::new();
            let busy = unsync::thread({
                let vacate = vacate.clone();
                move || vacate.wait()
            });
            let (promise, awaited) = unsync::promise::<()>();
            let awaited = unsync::race([awaited]);
            let waiter = std::thread::spawn(move || awaited.result());
            let inner = Gate::new();
            let opens = OnDrop({
                let inner = inner.clone();
                move || inner.open()
            });
            let tied = unsync::thread(move || drop(opens)).cancel_on_drop();
            let mut held = Some((promise, waiter, tied));
            let held = OnDrop(move || {
                if let Some((promise, waiter, tied)) = held.take() {
                    promise.set(());
                    waiter.join().unwrap().unwrap();
                    drop(tied);
                    inner.wait();
                }
            });
            drop(unsync::thread(move || drop(held)).cancel_on_drop());
            vacate.open();
            busy.result().unwrap();
        });
    }

    /// Work that owns work that owns work, and so on: dropping the outermost ends all of it, without
    /// recursion.
    #[test]
    fn a_long_chain_of_ties_does_not_overflow_the_stack() {
        const NAME: &str = "scopes::a_long_chain_of_ties_does_not_overflow_the_stack";
        type Start = fn(Unfuture<()>, Token) -> Unfuture<()>;
        let starts: [(&str, Start); 3] = [
            ("jobs", |owned, token| {
                unsync::thread(move || {
                    let _token = token;
                    owned.result().unwrap();
                })
            }),
            ("tasks", |owned, token| {
                unsync::spawn(async move {
                    let _token = token;
                    owned.await.unwrap();
                })
            }),
            ("jobs and tasks", |owned, token| {
                let task = unsync::spawn(async move { owned.await.unwrap() }).cancel_on_drop();
                unsync::thread(move || {
                    let _token = token;
                    task.result().unwrap();
                })
            }),
        ];
        in_child(NAME, HEAVY, &[("UNSYNC_THREADS", "1")], move || {
            let vacate = Gate::new();
            let busy = unsync::thread({
                let vacate = vacate.clone();
                move || vacate.wait()
            });
            for (name, start) in starts {
                let bodies = Drops::new();
                let (promise, first) = unsync::promise();
                let mut last = first.cancel_on_drop();
                for _ in 0..20_000 {
                    last = start(last, bodies.token()).cancel_on_drop();
                }
                assert_eq!(bodies.count(), 0, "{name}");
                drop(last);
                if name == "jobs" {
                    assert_eq!(bodies.count(), 20_000, "queued jobs end at once");
                    assert!(promise.is_cancelled());
                }
                bodies.wait_for(20_000);
                fence();
                assert!(promise.is_cancelled(), "{name}");
            }
            vacate.open();
            busy.result().unwrap();
        });
    }

    #[test]
    fn without_a_tie_the_work_goes_on() {
        quick(|| {
            for limited in [false, true] {
                let traces = Traces::default();
                let work = unsync::spawn(traces.future());
                traces.begun.wait();
                drop(match limited {
                    false => work,
                    true => work.timeout(LONG),
                });
                traces.gate.open();
                traces.value.wait_for(1);
            }
        });
    }

    /// A canceller leads to the work but does not own it.
    #[test]
    fn a_canceller_keeps_nothing_alive() {
        quick(|| {
            let (promise, awaited) = unsync::promise();
            let values = [(); 3].map(|()| Drops::new());
            promise.set(values[0].token());
            let (second, third) = (values[1].token(), values[2].token());
            let works = [
                awaited,
                unsync::spawn(async { second }),
                unsync::thread(|| third),
            ];
            let cancellers = works.each_ref().map(Unfuture::canceller);
            let cancellers = [cancellers.clone(), cancellers].concat();
            works.iter().for_each(Unfuture::wait);
            drop(works);
            fence();
            values.iter().for_each(|drops| assert_eq!(drops.count(), 1));
            assert!(cancellers.iter().all(|canceller| !canceller.cancel()));
            assert_eq!(format!("{:?}", cancellers[0]), "Canceller");
        });
    }

    /// The order in which the `Unfuture`, its cancellers and the work go does not matter.
    #[test]
    fn a_cancelled_and_abandoned_task_is_freed_at_once() {
        quick(|| {
            for cancel_first in [false, true] {
                let traces = Traces::default();
                let work = unsync::spawn(traces.future());
                let canceller = work.canceller();
                traces.begun.wait();
                if cancel_first {
                    assert!(canceller.cancel());
                    drop(work);
                } else {
                    drop(work);
                    assert!(canceller.cancel());
                }
                traces.body.wait_for(1);
            }
        });
    }
}

// -------------------------------------------------------------------------------------- deadlines

mod deadlines {
    use super::*;

    #[test]
    fn a_value_in_time_is_given_and_the_timer_taken_back() {
        in_child(
            "deadlines::a_value_in_time_is_given_and_the_timer_taken_back",
            HEAVY,
            &[],
            || {
                for number in 0..1000 {
                    let work = match number % 2 {
                        0 => unsync::spawn(async move { number }),
                        _ => unsync::thread(move || number),
                    };
                    let limited = match number % 3 {
                        0 => work.timeout(LONG),
                        1 => work.run_timeout(LONG),
                        _ => work.timeout(LONG).run_timeout(LONG).timeout(LONG),
                    };
                    assert_eq!(limited.result().unwrap(), number);
                }
                assert!(unsync::drain(Duration::from_secs(10)), "no timer is left");
            },
        );
    }

    /// Each case is the same job that nothing can stop, behind something else.
    #[test]
    fn a_job_that_cannot_be_stopped_is_named() {
        fn gives(job: impl FnOnce()) -> Result<(), Error> {
            job();
            Ok(())
        }
        quick(|| {
            let release = Gate::new();
            let job = |begun: Gate| {
                let release = release.clone();
                move || {
                    begun.open();
                    release.wait();
                }
            };
            let pinned = unsync::Pinned::new(|| ());
            for (name, culprit) in [
                ("bare", "thread job"),
                ("run_timeout", "thread job"),
                ("limited", "thread job"),
                ("flat", "thread job"),
                ("nested", "thread job"),
                ("settled", "thread job"),
                ("pinned", "call of a pinned value"),
            ] {
                let begun = Gate::new();
                let job = job(begun.clone());
                let (work, line) = match name {
                    "limited" => (unsync::Limit::new(1).thread(job), line!()),
                    "flat" => (unsync::thread(|| gives(job)).flatten(), line!()),
                    "nested" => (
                        unsync::spawn(async { unsync::thread(job) }).flatten(),
                        line!() - 1,
                    ),
                    "pinned" => (pinned.call(move |()| job()), line!()),
                    _ => (unsync::thread(job), line!()),
                };
                begun.wait();
                fence();
                let done = Unfuture::ready(());
                let error = match name {
                    "run_timeout" => work.run_timeout(SHORT).result().unwrap_err(),
                    "settled" => {
                        let settled = unsync::settle_all([done, work]).timeout(SHORT);
                        settled.result().unwrap().remove(1).unwrap_err()
                    }
                    _ => work.timeout(SHORT).result().unwrap_err(),
                };
                assert_kind(Err::<(), _>(error.clone()), ErrorKind::TimedOut, name);
                let text = format!(
                    "{culprit} took longer than its limit of 20ms and still runs (started at {}:{line}:",
                    file!()
                );
                assert!(error.to_string().starts_with(&text), "{name}: {error}");
            }
            release.open();
        });
    }

    #[test]
    fn the_ends_of_time() {
        quick(|| {
            assert_kind(
                unsync::spawn(pending::<()>())
                    .timeout(Duration::ZERO)
                    .result(),
                ErrorKind::TimedOut,
                "no time at all",
            );
            let ready = Unfuture::ready(1).timeout(Duration::ZERO);
            assert_eq!(ready.result().unwrap(), 1);
            let never = unsync::spawn(pending::<()>());
            let never = never.timeout(Duration::MAX).run_timeout(Duration::MAX);
            assert!(!never.wait_timeout(SHORT));
            assert!(never.cancel());
            assert_kind(never.result(), ErrorKind::Cancelled, "never");
        });
    }

    #[test]
    fn no_deadline_is_early() {
        quick(|| {
            for limit in [1, 5, 20].map(Duration::from_millis) {
                let started = Instant::now();
                let limited = unsync::spawn(pending::<()>()).timeout(limit);
                assert_kind(limited.result(), ErrorKind::TimedOut, "late");
                assert!(started.elapsed() >= limit, "{:?}", started.elapsed());
            }
        });
    }

    #[test]
    fn the_shorter_of_two_counts() {
        quick(|| {
            let inner = unsync::spawn(pending::<()>()).timeout(SHORT).timeout(LONG);
            let outer = unsync::spawn(pending::<()>()).timeout(LONG).timeout(SHORT);
            for limited in [inner, outer] {
                let error = limited.result().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::TimedOut);
                assert!(error.to_string().contains("20ms"), "{error}");
            }
        });
    }

    #[test]
    fn failures_pass_through() {
        quick(|| {
            let failed = unsync::thread(|| panics("in time")).timeout(LONG);
            let error = failed.result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Panicked);
            assert!(error.to_string().contains("in time"), "{error}");
            let cancelled = unsync::spawn(pending::<()>()).run_timeout(LONG);
            assert!(cancelled.cancel());
            assert_kind(cancelled.result(), ErrorKind::Cancelled, "cancelled");
        });
    }

    /// A running job cannot be stopped; waiting for it can.
    #[test]
    fn a_running_job_outlives_its_deadline() {
        quick(|| {
            let (begun, go_on, ended) = (Gate::new(), Gate::new(), Gate::new());
            let told = Arc::new(Mutex::new(None));
            let job = unsync::thread({
                let (begun, go_on, ended) = (begun.clone(), go_on.clone(), ended.clone());
                let told = Arc::clone(&told);
                move || {
                    begun.open();
                    go_on.wait();
                    *told.lock().unwrap() = Some(unsync::is_cancelled());
                    ended.open();
                }
            });
            begun.wait();
            assert_kind(job.timeout(SHORT).result(), ErrorKind::TimedOut, "a job");
            assert!(!ended.is_open());
            go_on.open();
            ended.wait();
            assert_eq!(*told.lock().unwrap(), Some(true));
        });
    }

    /// Waiting in a full queue counts for `timeout`, and not for `run_timeout`.
    #[test]
    fn queueing_counts_or_does_not() {
        const NAME: &str = "deadlines::queueing_counts_or_does_not";
        in_child(NAME, HEAVY, &[("UNSYNC_THREADS", "1")], || {
            let (vacate, first) = blocked(unsync::thread);
            let ran = Counter::new();
            let job = || {
                let ran = ran.clone();
                unsync::thread(move || ran.add())
            };
            const LIMIT: Duration = Duration::from_millis(100);
            let (counted, uncounted) = (job().timeout(SHORT), job().run_timeout(LIMIT));
            let last = job().run_timeout(LONG);
            assert_kind(counted.result(), ErrorKind::TimedOut, "counted");
            assert!(!uncounted.wait_timeout(LIMIT + SHORT));
            vacate.open();
            first.result().unwrap();
            // On a busy machine it may run for longer than its limit.
            if let Err(late) = uncounted.result() {
                assert_eq!(late.kind(), ErrorKind::TimedOut, "{late}");
            }
            assert_eq!(last.result().unwrap(), 2);
        });
    }
}

// ------------------------------------------------------------------------------------ thread jobs

mod jobs {
    use super::*;

    /// Every second job of a long queue is taken out: the others run, in order.
    #[test]
    fn queued_jobs_are_taken_out_of_the_queue() {
        const NAME: &str = "jobs::queued_jobs_are_taken_out_of_the_queue";
        in_child(NAME, HEAVY, &[("UNSYNC_THREADS", "1")], || {
            let (vacate, log, bodies) = (Gate::new(), Log::new(), Drops::new());
            let first = unsync::thread({
                let vacate = vacate.clone();
                move || vacate.wait()
            });
            let jobs = Vec::from_iter((0..100).map(|number| {
                let (log, body) = (log.clone(), bodies.token());
                unsync::thread(move || {
                    let _body = body;
                    log.push(number);
                })
            }));
            for job in jobs.iter().step_by(2) {
                assert!(job.cancel());
                assert!(job.is_done(), "a queued job ends at once");
            }
            assert_eq!(bodies.count(), 50, "and lets go of what it holds");
            vacate.open();
            first.result().unwrap();
            for (number, job) in jobs.into_iter().enumerate() {
                match number % 2 {
                    0 => assert_kind(job.result(), ErrorKind::Cancelled, "even"),
                    _ => job.result().unwrap(),
                }
            }
            assert_eq!(log.entries(), Vec::from_iter((1..100).step_by(2)));
            assert_eq!(bodies.count(), 100);
        });
    }

    /// As with a future, what a closure holds may panic when it is dropped.
    #[test]
    fn a_closure_that_panics_in_its_drop_is_reported() {
        const NAME: &str = "jobs::a_closure_that_panics_in_its_drop_is_reported";
        in_child(NAME, HEAVY, &[("UNSYNC_THREADS", "1")], || {
            let panics = unobserved();
            let (occupied, vacate) = (Gate::new(), Gate::new());
            let first = unsync::thread({
                let (occupied, vacate) = (occupied.clone(), vacate.clone());
                move || {
                    occupied.open();
                    vacate.wait();
                }
            });
            occupied.wait();
            let bomb = Bomb("on the way out");
            let job = unsync::thread(move || drop(bomb));
            assert!(job.cancel());
            assert_kind(job.result(), ErrorKind::Cancelled, "as it was told");
            let error = panics.recv_timeout(QUICK).unwrap();
            assert_eq!(error.kind(), ErrorKind::Panicked, "{error}");
            assert!(error.to_string().contains("on the way out"), "{error}");
            vacate.open();
            first.result().unwrap();
        });
    }

    #[test]
    fn a_running_job_is_told_and_the_next_one_is_not() {
        const NAME: &str = "jobs::a_running_job_is_told_and_the_next_one_is_not";
        in_child(NAME, HEAVY, &[("UNSYNC_THREADS", "1")], || {
            let runs = Gate::new();
            let job = unsync::thread({
                let runs = runs.clone();
                move || {
                    runs.open();
                    while !unsync::is_cancelled() {
                        thread::yield_now();
                    }
                    // Asking again gives the same answer.
                    let seen = [unsync::is_cancelled(), unsync::is_cancelled()];
                    (seen, Place::here())
                }
            });
            runs.wait();
            assert!(!job.cancel(), "it runs, and gives its value");
            assert!(!job.cancel());
            let (seen, place) = job.result().unwrap();
            assert_eq!(seen, [true; 2]);
            let next = unsync::thread(|| (unsync::is_cancelled(), Place::here()));
            assert_eq!(next.result().unwrap(), (false, place));
        });
    }

    #[test]
    fn a_job_that_panics_after_it_was_told_is_reported() {
        quick(|| {
            let runs = Gate::new();
            let job = unsync::thread({
                let runs = runs.clone();
                move || {
                    runs.open();
                    while !unsync::is_cancelled() {
                        thread::yield_now();
                    }
                    panics("told");
                }
            });
            runs.wait();
            job.cancel();
            assert_kind(job.result(), ErrorKind::Panicked, "told");
        });
    }

    #[test]
    fn elsewhere_nothing_is_cancelled() {
        quick(|| {
            assert!(!unsync::is_cancelled());
            let (sender, receiver) = mpsc::channel::<unsync::Canceller>();
            let (seen, report) = mpsc::channel();
            let task = unsync::spawn(async move {
                receiver.recv().unwrap().cancel();
                seen.send(unsync::is_cancelled()).unwrap();
            });
            sender.send(task.canceller()).unwrap();
            assert!(!report.recv().unwrap());
        });
    }
}

// --------------------------------------------------------------------------------------- promises

mod promises {
    use super::*;

    #[test]
    fn who_keeps_it_sees_that_nobody_waits() {
        quick(|| {
            for way in WAYS {
                let (promise, awaited) = unsync::promise::<Token>();
                assert!(!promise.is_cancelled());
                let left = way.end(Running, awaited);
                if let Some(left) = left {
                    assert_kind(left.result(), way.kind(), "a promise");
                }
                assert!(promise.is_cancelled(), "{way:?}");
                let drops = Drops::new();
                assert!(!promise.set(drops.token()), "{way:?}");
                assert_eq!(drops.count(), 1, "{way:?}: the value is let go");
            }
        });
    }

    #[test]
    fn who_keeps_it_sees_that_it_was_merely_dropped() {
        quick(|| {
            let (promise, awaited) = unsync::promise::<()>();
            let canceller = awaited.canceller();
            drop(awaited);
            assert!(promise.is_cancelled());
            assert!(!promise.set(()));
            drop(canceller);
        });
    }

    #[test]
    fn breaking_one_that_was_cancelled_is_harmless() {
        quick(|| {
            let (promise, awaited) = unsync::promise::<()>();
            assert!(awaited.cancel());
            assert!(awaited.cancel(), "again");
            drop(promise);
            assert_kind(awaited.result(), ErrorKind::Cancelled, "broken later");
        });
    }
}

// ------------------------------------------------------------------------------------------ texts

/// Every error names the line that started the work, and not the one that ended it.
#[test]
fn errors_name_their_culprit_and_its_line() {
    const NAME: &str = "errors_name_their_culprit_and_its_line";
    in_child(NAME, HEAVY, &[("UNSYNC_THREADS", "1")], || {
        let line = line!() + 1;
        let cancelled = unsync::spawn(pending::<()>());
        cancelled.cancel();
        assert_text(cancelled, line, "async task was cancelled");

        let line = line!() + 1;
        let late = unsync::spawn(pending::<()>());
        let late = late.timeout(SHORT);
        assert_text(late, line, "async task took longer than its limit of 20ms");

        let line = line!() + 1;
        let (vacate, running) = blocked(|block| unsync::thread(block));
        assert_text(
            running.timeout(SHORT),
            line,
            "took longer than its limit of 20ms",
        );

        let line = line!() + 1;
        let queued = unsync::thread(|| ());
        assert!(queued.cancel());
        assert_text(queued, line, "thread job was cancelled");

        let line = line!() + 1;
        let queued = unsync::thread(|| ());
        assert_text(queued.timeout(SHORT), line, "thread job took longer than");

        let line = line!() + 1;
        let (_promise, awaited) = unsync::promise::<()>();
        awaited.cancel();
        assert_text(awaited, line, "promise was cancelled");

        let source = unsync::spawn(async {});
        let line = line!() + 1;
        let mapped = source.and_then(|()| pending::<()>());
        mapped.cancel();
        assert_text(mapped, line, "was cancelled");
        vacate.open();
    });
}

#[track_caller]
fn assert_text(work: Unfuture<()>, line: u32, what: &str) {
    let text = work.result().unwrap_err().to_string();
    assert!(text.contains(what), "{text}");
    let place = format!("(started at {}:{line}:", file!());
    assert!(text.contains(&place), "{place} is not in: {text}");
    let first = text.chars().next().unwrap();
    assert!(!first.is_uppercase() && !text.ends_with('.'), "{text}");
}
