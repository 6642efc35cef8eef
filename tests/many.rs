//! Many futures at once: `join_all`, `settle_all`, `race`, `as_completed`; and one future for many:
//! `Shared`. What each does when the work beneath it gives a value, panics, is cancelled or loses its
//! worker process, for all three kinds of work.
//!
//! Left out, because it has no meaning here:
//! - who is polled first in a join or a race, how often, and that nobody starves: the works run by
//!   themselves, and nobody polls them in turn. For the same reason such a future has no size of its
//!   own: it is an `Unfuture`;
//! - adding works to a set in use, or taking them out of it, iterating over or clearing sets, and a
//!   search for one that is done: `as_completed` takes all at once and gives each when it is done;
//! - the last clone of a `Shared` taking the value without a clone: `result` leaves the value in place,
//!   for the next call;
//! - weak clones of a `Shared`, and telling whether two belong to the same work.

mod support;

unsync::test_worker!();

use std::collections::HashSet;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use support::{
    Bomb, Counter, CountingWaker, Drops, Gate, HEAVY, Log, OnDrop, Place, QUICK, Token, boom, die,
    eventually, fence, hang, in_child, limit, panic_text, poll, quick, same, waker_with,
};
use unsync::{AsCompleted, Config, Error, ErrorKind, Promise, Shared, Unfuture};

unsync::register!(same, boom, die, hang);

/// Work of each kind that ends by itself, with its outcome.
fn ending(n: u64) -> Vec<(&'static str, Unfuture<u64>, Result<u64, ErrorKind>)> {
    let cancelled = unsync::spawn(std::future::pending());
    cancelled.cancel();
    vec![
        ("a task's value", unsync::spawn(async move { n }), Ok(n)),
        ("a job's value", unsync::thread(move || n), Ok(n)),
        ("a call's value", unsync::cpu(same, (n,)), Ok(n)),
        (
            "a task's panic",
            unsync::spawn(async { panic!("boom") }),
            Err(ErrorKind::Panicked),
        ),
        (
            "a job's panic",
            unsync::thread(|| panic!("boom")),
            Err(ErrorKind::Panicked),
        ),
        (
            "a call's panic",
            unsync::cpu(boom, (n,)),
            Err(ErrorKind::Panicked),
        ),
        ("a cancelled task", cancelled, Err(ErrorKind::Cancelled)),
        (
            "a lost worker",
            unsync::cpu(die, (n,)),
            Err(ErrorKind::WorkerLost),
        ),
        (
            "a broken promise",
            unsync::promise().1,
            Err(ErrorKind::Abandoned),
        ),
        (
            "a deadline",
            unsync::spawn(std::future::pending()).timeout(Duration::from_millis(1)),
            Err(ErrorKind::TimedOut),
        ),
    ]
}

/// Work of each kind that ends only when it is stopped, and the process of the call. The job on a
/// thread has to stop itself.
fn endless() -> (Vec<Unfuture<u64>>, u32) {
    let (started, running) = mpsc::channel();
    let job = unsync::thread(move || {
        started.send(()).unwrap();
        while !unsync::is_cancelled() {
            thread::yield_now();
        }
        0
    });
    running.recv().unwrap();
    let (call, pid) = hanging();
    (vec![unsync::spawn(std::future::pending()), job, call], pid)
}

/// A call that hangs by the time this returns, and its process. No test has two of them at once: there
/// may be only one worker, and another test that waits for it.
fn hanging() -> (Unfuture<u64>, u32) {
    let (sender, receiver) = mpsc::channel();
    let call = unsync::cpu(hang, (0,)).on_progress(move |pid: u32| sender.send(pid).unwrap());
    (call, receiver.recv().unwrap())
}

fn assert_killed(pid: u32) {
    if cfg!(target_os = "linux") {
        let process = format!("/proc/{pid}");
        eventually(QUICK, "the worker is gone", || {
            let there = std::path::Path::new(&process).exists();
            (!there, there)
        });
    }
}

fn kinds<T>(outcome: Result<T, Error>) -> Result<T, ErrorKind> {
    outcome.map_err(|error| error.kind())
}

type Pairs<T> = (Vec<Promise<T>>, Vec<Unfuture<T>>);

fn promises<T: Send + 'static>(number: usize) -> Pairs<T> {
    (0..number).map(|_| unsync::promise()).unzip()
}

mod join_all {
    use super::*;

    #[test]
    fn collect_collects() {
        quick(|| {
            let (set, works) = promises(5);
            let all = unsync::join_all(works);
            for (number, promise) in set.into_iter().enumerate().rev() {
                assert!(!all.is_done());
                promise.set(number);
            }
            assert_eq!(all.result().unwrap(), [0, 1, 2, 3, 4]);
        });
    }

    #[test]
    fn of_nothing_is_ready() {
        quick(|| {
            let none = unsync::join_all(Vec::<Unfuture<u8>>::new());
            assert!(none.is_done());
            assert!(none.result().unwrap().is_empty());
        });
    }

    #[test]
    fn join_all_from_iter() {
        quick(|| {
            let borrowed = [3_u64, 1, 2];
            let all = unsync::join_all(borrowed.iter().map(|n| {
                let n = *n;
                unsync::thread(move || n)
            }));
            assert_eq!(all.result().unwrap(), borrowed);
        });
    }

    #[test]
    fn the_first_error_ends_it_and_the_others_go_on() {
        quick(|| {
            let (mut set, mut works) = promises::<u8>(3);
            let (release, ran) = (Gate::new(), Counter::new());
            works.push(unsync::spawn({
                let (release, ran) = (release.clone(), ran.clone());
                async move {
                    release.pass().await;
                    ran.add();
                    1
                }
            }));
            let all = unsync::join_all(works);
            set.pop().unwrap().fail(kind_of(ErrorKind::Codec));
            assert_eq!(all.result().unwrap_err().kind(), ErrorKind::Codec);
            release.open();
            ran.wait_for(1);
            // The promises can tell that nobody will see their values.
            assert!(set.iter().all(Promise::is_cancelled));
            assert!(set.into_iter().all(|promise| !promise.set(1)));
        });
    }

    /// An error of this kind, from somewhere.
    fn kind_of(kind: ErrorKind) -> Error {
        assert_eq!(kind, ErrorKind::Codec, "the one that can be had by hand");
        <u8 as unsync::Wire>::decode(&mut &[][..]).unwrap_err()
    }

    #[test]
    fn of_every_kind_of_work() {
        limit(HEAVY, || {
            for (name, work, expected) in ending(7) {
                let all =
                    unsync::join_all([unsync::thread(|| 1), work, unsync::spawn(async { 2 })]);
                assert_eq!(
                    kinds(all.result()),
                    expected.map(|n| vec![1, n, 2]),
                    "{name}"
                );
            }
        });
    }

    #[test]
    fn cancelling_it_cancels_them_all() {
        limit(HEAVY, || {
            let (works, pid) = endless();
            let all = unsync::join_all(works);
            assert!(all.cancel());
            assert_eq!(all.result().unwrap_err().kind(), ErrorKind::Cancelled);
            assert_killed(pid);
        });
    }

    #[test]
    fn a_deadline_stops_them_all() {
        limit(HEAVY, || {
            let (call, pid) = hanging();
            let all = unsync::join_all([call, unsync::spawn(std::future::pending())]);
            let late = all.timeout(Duration::from_millis(10)).result();
            assert_eq!(late.unwrap_err().kind(), ErrorKind::TimedOut);
            assert_killed(pid);
        });
    }

    #[test]
    fn after_its_end_cancelling_it_does_nothing() {
        quick(|| {
            let (mut set, works) = promises::<u8>(2);
            let all = unsync::join_all(works);
            drop(set.pop());
            all.wait();
            assert!(!all.cancel());
            assert!(set[0].is_cancelled(), "nobody can see its value");
        });
    }

    #[test]
    fn tied_to_a_scope_it_cancels_them_all() {
        quick(|| {
            let (set, works) = promises::<u8>(3);
            drop(unsync::join_all(works).cancel_on_drop());
            fence();
            assert!(set.iter().all(Promise::is_cancelled));
        });
    }

    #[test]
    fn dropped_it_lets_them_go_on_and_drops_their_values() {
        quick(|| {
            let (set, works) = promises(3);
            drop(unsync::join_all(works));
            let drops = Drops::new();
            for promise in set {
                assert!(!promise.set(drops.token()));
            }
            drops.wait_for(3);
        });
    }

    #[test]
    fn many_from_many_threads() {
        limit(HEAVY, || {
            let (set, works) = promises(20_000);
            let all = unsync::join_all(works);
            settle_from_four_threads(set.into_iter().enumerate());
            assert!(all.result().unwrap().into_iter().eq(0..20_000));
        });
    }

    /// Two of them in one drop would abort the process.
    #[test]
    fn values_that_panic_in_their_drops_harm_nobody() {
        quick(|| {
            for is_done in [true, false] {
                let [one, two] = [(); 2].map(|()| Unfuture::ready(Bomb("gathered")));
                let (promise, failing) = unsync::promise();
                let error = Error::new(ErrorKind::Os, "no");
                let mut promise = Some(promise);
                let fails = |promise: Promise<Bomb>| promise.fail(error.clone());
                if is_done {
                    promise.take().map(fails).unwrap();
                }
                let all = unsync::join_all([one, two, failing]);
                promise.map(fails);
                let failed = all.result().err().unwrap();
                assert_eq!(failed.kind(), ErrorKind::Os);
            }
        });
    }
}

/// Sets each promise to its number, in scattered order, from four threads.
fn settle_from_four_threads(set: impl Iterator<Item = (usize, Promise<usize>)>) {
    let mut set: Vec<_> = set.collect();
    // A fixed shuffle: the index jumps by a number that has no common divisor with the length.
    let length = set.len();
    for index in 0..length {
        set.swap(index, index * 7919 % length);
    }
    let set = Mutex::new(set);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let next = set.lock().unwrap().pop();
                    let Some((number, promise)) = next else { break };
                    promise.set(number);
                }
            });
        }
    });
}

mod settle_all {
    use super::*;

    #[test]
    fn of_every_kind_of_work() {
        limit(HEAVY, || {
            let (works, expected): (Vec<_>, Vec<_>) = ending(7)
                .into_iter()
                .map(|(_, work, expected)| (work, expected))
                .unzip();
            let outcomes = unsync::settle_all(works).result().unwrap();
            let outcomes: Vec<_> = outcomes.into_iter().map(kinds).collect();
            assert_eq!(outcomes, expected);
        });
    }

    #[test]
    fn of_nothing_is_ready() {
        quick(|| {
            let none = unsync::settle_all(Vec::<Unfuture<u8>>::new());
            assert!(none.is_done());
            assert!(none.result().unwrap().is_empty());
        });
    }

    #[test]
    fn it_waits_for_the_last() {
        quick(|| {
            let (mut set, works) = promises(3);
            let all = unsync::settle_all(works);
            drop(set.remove(1));
            set.pop().unwrap().set(2);
            assert!(!all.is_done());
            set.pop().unwrap().set(0);
            let outcomes: Vec<_> = all.result().unwrap().into_iter().map(kinds).collect();
            assert_eq!(outcomes, [Ok(0), Err(ErrorKind::Abandoned), Ok(2)]);
        });
    }

    /// It does not fail: it gives the outcomes that were there, and says that the others were cancelled.
    #[test]
    fn cancelling_it_cancels_them_all() {
        limit(HEAVY, || {
            let (mut works, pid) = endless();
            works.push(Unfuture::ready(5));
            let all = unsync::settle_all(works);
            assert!(!all.cancel(), "it gives its outcomes");
            assert!(all.wait_timeout(QUICK), "at once");
            assert!(!all.cancel());
            let outcomes = all.result().unwrap();
            let text = outcomes[0].as_ref().unwrap_err().to_string();
            assert!(text.contains("many.rs"), "{text}");
            let outcomes: Vec<_> = outcomes.into_iter().map(kinds).collect();
            let cancelled = Err(ErrorKind::Cancelled);
            assert_eq!(outcomes, [cancelled, cancelled, cancelled, Ok(5)]);
            assert_killed(pid);
        });
    }

    #[test]
    fn a_deadline_ends_it_whatever_runs_on() {
        limit(HEAVY, || {
            let (mut works, pid) = endless();
            works.push(Unfuture::ready(5));
            let all = unsync::settle_all(works).timeout(Duration::from_millis(10));
            let outcomes: Vec<_> = all.result().unwrap().into_iter().map(kinds).collect();
            let late = Err(ErrorKind::TimedOut);
            assert_eq!(outcomes, [late, late, late, Ok(5)]);
            assert_killed(pid);
        });
    }

    #[test]
    fn after_its_end_cancelling_it_does_nothing() {
        quick(|| {
            let all = unsync::settle_all([Unfuture::ready(1)]);
            assert!(!all.cancel());
            assert_eq!(kinds(all.result().unwrap().remove(0)), Ok(1));
        });
    }

    #[test]
    fn what_it_stops_is_gone_before_its_end_is_seen() {
        quick(|| {
            for is_cancelled in [false, true] {
                let (begun, gone) = (Gate::new(), Counter::new());
                let held = OnDrop({
                    let gone = gone.clone();
                    move || {
                        // So that an end that comes too early is seen.
                        thread::sleep(Duration::from_millis(50));
                        gone.add();
                    }
                });
                let task = unsync::spawn({
                    let begun = begun.clone();
                    async move {
                        let _held = held;
                        begun.open();
                        std::future::pending::<()>().await
                    }
                });
                begun.wait();
                let all = unsync::settle_all([task]);
                let all = match is_cancelled {
                    true => {
                        all.cancel();
                        all
                    }
                    false => all.timeout(Duration::from_millis(1)),
                };
                assert!(all.result().unwrap()[0].is_err());
                assert_eq!(gone.count(), 1);
            }
        });
    }
}

mod race {
    use super::*;

    #[test]
    fn of_every_kind_of_work() {
        limit(HEAVY, || {
            for (name, work, expected) in ending(7) {
                let first = unsync::race([unsync::spawn(std::future::pending()), work]);
                assert_eq!(kinds(first.result()), expected, "{name}");
            }
        });
    }

    #[test]
    fn the_first_to_finish_wins() {
        quick(|| {
            let (mut set, works) = promises(3);
            let first = unsync::race(works);
            assert!(!first.is_done());
            set.remove(1).set("second");
            first.wait();
            assert!(set.iter().all(Promise::is_cancelled), "the others are told");
            assert!(set.into_iter().all(|promise| !promise.set("late")));
            assert_eq!(first.result().unwrap(), "second");
        });
    }

    #[test]
    fn of_those_that_have_finished_the_first_in_the_line_wins() {
        quick(|| {
            let first = unsync::race([Unfuture::ready(1), Unfuture::ready(2)]);
            assert!(first.is_done());
            assert_eq!(first.result().unwrap(), 1);
        });
    }

    #[test]
    fn of_nothing_is_abandoned() {
        quick(|| {
            let (nobody, line) = (unsync::race(Vec::<Unfuture<u8>>::new()), line!());
            let error = nobody.result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Abandoned);
            let text = error.to_string();
            assert!(text.starts_with("a race of nothing"), "{text}");
            assert!(text.contains(&format!("many.rs:{line}")), "{text}");
        });
    }

    #[test]
    fn a_losing_task_is_dropped_on_the_ambient_thread() {
        quick(|| {
            let drops = Drops::new();
            let token = drops.token();
            let loser = unsync::spawn(async move {
                std::future::pending::<()>().await;
                drop(token);
            });
            unsync::race([loser, unsync::thread(|| ())])
                .result()
                .unwrap();
            drops.wait_for(1);
            assert!(drops.places()[0].is_ambient());
        });
    }

    #[test]
    fn a_losing_job_sees_it_and_a_losing_call_is_killed() {
        limit(HEAVY, || {
            let ended = Gate::new();
            let told = ended.clone();
            let (started, running) = mpsc::channel();
            let job = unsync::thread(move || {
                started.send(()).unwrap();
                while !unsync::is_cancelled() {
                    thread::yield_now();
                }
                told.open();
                1
            });
            running.recv().unwrap();
            let (call, pid) = hanging();
            let first = unsync::race([job, call, unsync::spawn(async { 2 })]);
            assert_eq!(first.result().unwrap(), 2);
            ended.wait();
            assert_killed(pid);
        });
    }

    #[test]
    fn cancelling_it_cancels_them_all() {
        limit(HEAVY, || {
            let (call, pid) = hanging();
            let first = unsync::race([call, unsync::spawn(std::future::pending())]);
            assert!(first.cancel());
            assert_eq!(first.result().unwrap_err().kind(), ErrorKind::Cancelled);
            assert_killed(pid);
        });
    }

    #[test]
    fn in_a_race_of_races_only_one_wins() {
        quick(|| {
            let (mut set, works) = promises(4);
            let mut works = works.into_iter();
            let mut pair = || unsync::race(works.by_ref().take(2).collect::<Vec<_>>());
            let first = unsync::race([pair(), pair()]);
            set.remove(2).set(2);
            first.wait();
            assert!(set.iter().all(Promise::is_cancelled));
            assert_eq!(first.result().unwrap(), 2);
        });
    }

    #[test]
    fn races_in_a_race_are_stopped_before_it_ends() {
        const NAME: &str = "race::races_in_a_race_are_stopped_before_it_ends";
        in_child(NAME, HEAVY, &[("UNSYNC_THREADS", "1")], || {
            let (vacate, log) = (Gate::new(), Log::new());
            let busy = unsync::thread({
                let vacate = vacate.clone();
                move || vacate.wait()
            });
            let mut numbers = 0..;
            let mut queued = || {
                let (log, number) = (log.clone(), numbers.next());
                let dropped = OnDrop(move || log.push(number.unwrap()));
                unsync::thread(move || drop(dropped))
            };
            let pair = unsync::race([queued(), queued()]);
            let race = unsync::race([pair, queued(), unsync::race([queued(), queued()])]);
            assert!(race.cancel());
            race.wait();
            let mut stopped = log.entries();
            stopped.sort_unstable();
            assert_eq!(stopped, [0, 1, 2, 3, 4]);
            vacate.open();
            busy.result().unwrap();
        });
    }

    #[test]
    fn exactly_one_of_many_wins_and_all_are_dropped() {
        limit(HEAVY, || {
            for _ in 0..50 {
                let drops = Drops::new();
                let (set, works) = promises(100);
                let first = unsync::race(works);
                let set = Mutex::new(set);
                thread::scope(|scope| {
                    for _ in 0..4 {
                        scope.spawn(|| {
                            loop {
                                let next = set.lock().unwrap().pop();
                                let Some(promise) = next else { break };
                                promise.set(drops.token());
                            }
                        });
                    }
                });
                let winner = first.result().unwrap();
                assert_eq!(drops.count(), 99);
                drop(winner);
                assert_eq!(drops.count(), 100);
            }
        });
    }

    #[test]
    fn a_loser_that_panics_in_its_drop_harms_nobody() {
        quick(|| {
            let loser = unsync::spawn(async {
                let _bomb = Bomb("dropped with the loser");
                std::future::pending::<u8>().await
            });
            fence();
            assert_eq!(
                unsync::race([loser, Unfuture::ready(1)]).result().unwrap(),
                1
            );
            fence();
        });
    }
}

mod as_completed {
    use super::*;

    fn order(completed: AsCompleted<usize>) -> Vec<usize> {
        completed.map(|(index, _)| index).collect()
    }

    #[test]
    fn works_1() {
        quick(|| {
            let (set, works) = promises(3);
            let mut set: Vec<_> = set.into_iter().map(Some).collect();
            let mut completed = unsync::as_completed(works);
            for number in [1, 2, 0] {
                set[number].take().unwrap().set(number * 10);
                let (index, outcome) = completed.next().unwrap();
                assert_eq!((index, outcome.unwrap()), (number, number * 10));
            }
            assert!(completed.next().is_none());
            assert!(completed.next().is_none(), "and so it stays");
        });
    }

    #[test]
    fn of_every_kind_of_work() {
        limit(HEAVY, || {
            let (works, expected): (Vec<_>, Vec<_>) = ending(7)
                .into_iter()
                .map(|(_, work, expected)| (work, expected))
                .unzip();
            let mut seen = HashSet::new();
            for (index, outcome) in unsync::as_completed(works) {
                assert_eq!(kinds(outcome), expected[index]);
                assert!(seen.insert(index));
            }
            assert_eq!(seen.len(), expected.len());
        });
    }

    #[test]
    fn those_that_have_finished_come_in_the_order_of_the_input() {
        quick(|| {
            let completed = unsync::as_completed((0..5).map(Unfuture::ready));
            assert_eq!(order(completed), [0, 1, 2, 3, 4]);
            assert_eq!(order(unsync::as_completed([])), []);
        });
    }

    #[test]
    fn len_valid_during_out_of_order_completion() {
        quick(|| {
            let (mut set, works) = promises(3);
            let mut completed = unsync::as_completed(works);
            assert_eq!((completed.len(), completed.size_hint()), (3, (3, Some(3))));
            set.pop().unwrap().set(2);
            assert_eq!(completed.len(), 3, "not given away yet");
            completed.next();
            assert_eq!(completed.len(), 2);
            assert!(set.into_iter().all(|promise| promise.set(0)));
            assert_eq!(completed.by_ref().count(), 2);
            assert_eq!(completed.len(), 0);
        });
    }

    #[test]
    fn it_keeps_nothing_that_it_has_given_away() {
        quick(|| {
            let drops = Drops::new();
            let mut completed =
                unsync::as_completed([0, 1].map(|_| Unfuture::ready(drops.token())));
            drop(completed.next());
            assert_eq!(drops.count(), 1);
            drop(completed);
            assert_eq!(drops.count(), 2, "nor what it has not");
        });
    }

    #[test]
    fn dropped_it_lets_the_works_go_on() {
        quick(|| {
            let (mut set, works) = promises(3);
            let drops = Drops::new();
            let mut completed = unsync::as_completed(works);
            let waker = CountingWaker::new();
            assert!(
                waker
                    .poll(&mut Box::pin(completed.next_done()))
                    .is_pending()
            );
            set.pop().unwrap().set(drops.token());
            drop(completed);
            assert_eq!(drops.count(), 1);
            for promise in set {
                assert!(!promise.set(drops.token()));
            }
            assert_eq!(drops.count(), 3);
            assert_eq!(waker.held(), 0);
        });
    }

    #[test]
    fn cancel_cancels_what_is_left() {
        limit(HEAVY, || {
            let (mut works, pid) = endless();
            works.insert(0, Unfuture::ready(9));
            let mut completed = unsync::as_completed(works);
            assert_eq!(completed.next().unwrap().1.unwrap(), 9);
            completed.cancel();
            let mut outcomes: Vec<_> = completed.map(|(i, outcome)| (i, kinds(outcome))).collect();
            outcomes.sort_by_key(|(index, _)| *index);
            let cancelled = Err(ErrorKind::Cancelled);
            assert_eq!(outcomes, [(1, cancelled), (2, Ok(0)), (3, cancelled)]);
            assert_killed(pid);
        });
    }

    #[test]
    fn next_blocks_until_one_is_there() {
        quick(|| {
            let gate = Gate::new();
            let opened = gate.clone();
            let mut completed = unsync::as_completed([unsync::thread(move || opened.wait())]);
            let (waiting, waits) = mpsc::channel();
            let waiter = thread::spawn(move || {
                waiting.send(()).unwrap();
                completed.next().unwrap().0
            });
            waits.recv().unwrap();
            gate.open();
            assert_eq!(waiter.join().unwrap(), 0);
        });
    }

    #[test]
    fn on_the_ambient_thread_next_gives_what_is_there_and_does_not_block() {
        quick(|| {
            let task = unsync::spawn(async {
                let (promise, pending) = unsync::promise();
                let (mut completed, line) =
                    (unsync::as_completed([pending, Unfuture::ready(1)]), line!());
                assert_eq!(completed.next().unwrap().1.unwrap(), 1);
                let text = panic_text(|| completed.next());
                assert!(text.contains("next_done().await"), "{text}");
                assert!(text.contains(&format!("many.rs:{line}")), "{text}");
                promise.set(2);
                assert_eq!(completed.next().unwrap().1.unwrap(), 2, "nothing is lost");
            });
            task.result().unwrap();
        });
    }

    /// It returns an outcome that has come at once, an outcome that comes in time ends the wait, and the rest
    /// stays.
    #[test]
    fn next_timeout_keeps_the_rest() {
        quick(|| {
            let (mut set, works) = promises(3);
            let mut completed = unsync::as_completed(works);
            for limit in [Duration::ZERO, Duration::from_millis(20)] {
                let started = Instant::now();
                assert!(completed.next_timeout(limit).is_none());
                assert!(started.elapsed() >= limit);
                assert_eq!(completed.len(), 3, "they are not there yet");
            }
            set.remove(1).set(1);
            let (index, outcome) = completed.next_timeout(Duration::ZERO).unwrap();
            assert_eq!((index, outcome.unwrap(), completed.len()), (1, 1, 2));
            let mut set = set.into_iter();
            let first = set.next().unwrap();
            let setter = thread::spawn(move || {
                // Nothing can tell whether the other thread waits already; the result is the same either way.
                thread::yield_now();
                first.set(0);
            });
            let (index, outcome) = completed.next_timeout(Duration::MAX).unwrap();
            assert_eq!((index, outcome.unwrap(), completed.len()), (0, 0, 1));
            setter.join().unwrap();
            assert!(completed.next_timeout(Duration::ZERO).is_none());
            drop(set);
            let (index, outcome) = completed.next().unwrap();
            assert_eq!((index, kinds(outcome)), (2, Err(ErrorKind::Abandoned)));
            assert_eq!(completed.len(), 0);
            assert!(completed.next_timeout(Duration::MAX).is_none(), "no wait");
        });
    }

    #[test]
    fn on_the_ambient_thread_next_timeout_gives_what_is_there_and_does_not_block() {
        quick(|| {
            let task = unsync::spawn(async {
                let (promise, pending) = unsync::promise();
                let mut completed = unsync::as_completed([pending, Unfuture::ready(1)]);
                let mut next = || completed.next_timeout(Duration::from_secs(3600));
                assert_eq!(next().unwrap().1.unwrap(), 1);
                let text = panic_text(&mut next);
                assert!(text.contains("next_done().await"), "{text}");
                promise.set(2);
                assert_eq!(next().unwrap().1.unwrap(), 2, "nothing is lost");
                assert!(next().is_none(), "nothing is left");
            });
            task.result().unwrap();
        });
    }

    #[test]
    fn next_done_in_a_task_and_elsewhere() {
        quick(|| {
            async fn sum(works: Vec<Unfuture<u64>>) -> u64 {
                let mut completed = unsync::as_completed(works);
                let mut sum = 0;
                while let Some((index, outcome)) = completed.next_done().await {
                    sum += outcome.unwrap() * index as u64;
                }
                assert!(completed.next_done().await.is_none());
                sum
            }
            let works = || {
                vec![
                    unsync::thread(|| 5),
                    unsync::spawn(async { 6 }),
                    Unfuture::ready(7),
                ]
            };
            assert_eq!(unsync::spawn(sum(works())).result().unwrap(), 20);
            assert_eq!(unsync::block_on(sum(works())), 20);
        });
    }

    #[test]
    fn next_done_is_woken_once_for_each() {
        quick(|| {
            let (set, works) = promises(3);
            let mut completed = unsync::as_completed(works);
            let waker = CountingWaker::new();
            for (wakes, promise) in set.into_iter().enumerate() {
                let mut next = Box::pin(completed.next_done());
                assert!(waker.poll(&mut next).is_pending());
                assert!(waker.poll(&mut next).is_pending());
                assert_eq!(waker.wakes(), wakes);
                promise.set(wakes);
                assert_eq!(waker.wakes(), wakes + 1);
                assert!(waker.poll(&mut next).is_ready());
            }
            assert_eq!(waker.held(), 0);
        });
    }

    #[test]
    fn a_next_done_that_is_dropped_loses_nothing() {
        quick(|| {
            let (set, works) = promises(2);
            let mut completed = unsync::as_completed(works);
            let [early, late] = [CountingWaker::new(), CountingWaker::new()];
            assert!(
                early
                    .poll(&mut Box::pin(completed.next_done()))
                    .is_pending()
            );
            assert_eq!(early.held(), 0);
            let mut next = Box::pin(completed.next_done());
            assert!(late.poll(&mut next).is_pending());
            let mut set = set.into_iter().enumerate();
            assert!(set.all(|(n, promise)| promise.set(n)));
            assert_eq!((early.wakes(), late.wakes()), (0, 1));
            drop(next);
            assert_eq!(order(completed), [0, 1]);
        });
    }

    #[test]
    fn stress() {
        limit(HEAVY, || {
            const WORKS: usize = 20_000;
            let (set, works) = promises(WORKS);
            let completed = unsync::as_completed(works);
            let setter = thread::spawn(|| settle_from_four_threads(set.into_iter().enumerate()));
            let mut seen = vec![false; WORKS];
            for (index, outcome) in completed {
                assert_eq!(outcome.unwrap(), index);
                assert!(!std::mem::replace(&mut seen[index], true));
            }
            assert!(seen.into_iter().all(|seen| seen));
            setter.join().unwrap();
        });
    }

    /// A waiting pool job does not keep a place that the jobs it waits for need.
    #[test]
    fn in_a_pool_of_one() {
        in_child(
            "as_completed::in_a_pool_of_one",
            QUICK,
            &[("UNSYNC_THREADS", "1")],
            || {
                let sum = unsync::thread(|| {
                    let works = (1..=10_u64).map(|n| unsync::thread(move || n));
                    let outcomes = unsync::as_completed(works).map(|(_, outcome)| outcome.unwrap());
                    outcomes.sum::<u64>()
                });
                assert_eq!(sum.result().unwrap(), 55);
            },
        );
    }

    #[test]
    fn what_panics_in_its_drop_harms_nobody() {
        quick(|| {
            let drops = Drops::new();
            let armed = (Bomb("dropped unseen"), drops.token());
            drop(unsync::as_completed([Unfuture::ready(armed)]));
            fence();
            assert_eq!(drops.count(), 1);
        });
    }
}

mod shared {
    use super::*;

    /// Counts its clones.
    struct Counted(Counter);

    impl Clone for Counted {
        fn clone(&self) -> Counted {
            self.0.add();
            Counted(self.0.clone())
        }
    }

    #[test]
    fn of_every_kind_of_work() {
        limit(HEAVY, || {
            for (name, work, expected) in ending(7) {
                let shared = work.shared();
                let [there, task] = [shared.clone(), shared.clone()];
                let there = thread::spawn(move || there.result());
                let task = unsync::spawn(task).flatten();
                assert_eq!(kinds(shared.result()), expected, "{name}");
                assert_eq!(kinds(there.join().unwrap()), expected, "{name}");
                assert_eq!(kinds(task.result()), expected, "{name}");
                assert_eq!(kinds(unsync::block_on(shared)), expected, "{name}");
            }
        });
    }

    #[test]
    fn many_threads() {
        limit(HEAVY, || {
            let (promise, unfuture) = unsync::promise();
            let shared = unfuture.shared();
            let tasks: Vec<_> = (0..1000).map(|_| unsync::spawn(shared.clone())).collect();
            let waiting = Counter::new();
            let threads: Vec<_> = (0..100)
                .map(|_| {
                    let (shared, waiting) = (shared.clone(), waiting.clone());
                    thread::spawn(move || {
                        waiting.add();
                        shared.result().unwrap()
                    })
                })
                .collect();
            waiting.wait_for(100);
            fence();
            promise.set(6);
            assert!(
                threads
                    .into_iter()
                    .all(|thread| thread.join().unwrap() == 6)
            );
            let values = unsync::join_all(tasks).result().unwrap();
            assert!(values.into_iter().all(|value| value.unwrap() == 6));
        });
    }

    #[test]
    fn drop_on_one_task_ok() {
        quick(|| {
            let (promise, unfuture) = unsync::promise();
            let shared = unfuture.shared();
            let [one, other] = [0, 1].map(|_| unsync::spawn(shared.clone()));
            fence();
            assert!(one.cancel());
            one.result().unwrap_err();
            assert!(!shared.is_done());
            promise.set(5);
            assert_eq!(other.flatten().result().unwrap(), 5);
            assert_eq!(shared.result().unwrap(), 5);
        });
    }

    #[test]
    fn drop_in_poll() {
        quick(|| {
            let (promise, unfuture) = unsync::promise::<u8>();
            let shared = unfuture.shared();
            let mut clone = Some(shared.clone());
            let waker = CountingWaker::new();
            let dropped = poll_fn(|cx| {
                let state = Pin::new(clone.as_mut().unwrap()).poll(cx);
                clone = None;
                state
            });
            assert!(waker.poll(&mut Box::pin(dropped)).is_pending());
            assert_eq!(waker.held(), 0);
            promise.set(1);
            assert_eq!(waker.wakes(), 0);
            assert_eq!(shared.result().unwrap(), 1);
        });
    }

    #[test]
    fn peek() {
        quick(|| {
            let (promise, unfuture) = unsync::promise();
            let shared = unfuture.shared();
            let other = shared.clone();
            assert!(shared.peek().is_none() && other.peek().is_none());
            let clones = Counter::new();
            promise.set(Counted(clones.clone()));
            assert!(shared.peek().unwrap().is_ok() && other.peek().unwrap().is_ok());
            assert_eq!(clones.count(), 0, "it was not cloned");
        });
    }

    #[test]
    fn dont_do_unnecessary_clones_on_output() {
        quick(|| {
            let clones = Counter::new();
            let shared = Unfuture::ready(Counted(clones.clone())).shared();
            let [mut other, another] = [shared.clone(), shared.clone()];
            another.wait();
            assert!(another.is_done());
            assert_eq!(clones.count(), 0);
            assert!(shared.result().is_ok());
            assert!(CountingWaker::new().poll(&mut other).is_ready());
            assert_eq!(clones.count(), 2, "one for each answer");
        });
    }

    #[test]
    fn panic_while_poll() {
        quick(|| {
            let shared = unsync::spawn(async { std::panic::panic_any(7_u8) }).shared();
            let shared: Shared<()> = shared;
            let errors = [0, 1].map(|_| shared.result().unwrap_err());
            assert!(
                errors
                    .iter()
                    .all(|error| error.kind() == ErrorKind::Panicked)
            );
            let mut payloads = errors.map(|error| error.into_panic().unwrap()).into_iter();
            assert_eq!(payloads.next().unwrap().downcast_ref(), Some(&7_u8));
            assert!(
                payloads.next().unwrap().is::<String>(),
                "there is but one payload"
            );
        });
    }

    #[test]
    fn poll_while_panic() {
        quick(|| {
            let shared = Unfuture::ready(1).shared();
            let (sender, receiver) = mpsc::channel();
            let reader = OnDrop(move || {
                assert!(thread::panicking());
                let polled = CountingWaker::new().poll(&mut shared.clone());
                sender.send((polled.is_ready(), shared.result())).unwrap();
            });
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                let _reader = reader;
                panic!("unwinding");
            }));
            assert!(panicked.is_err());
            let (ready, outcome) = receiver.recv().unwrap();
            assert!(ready && outcome.unwrap() == 1);
        });
    }

    /// No livelock: sibling tasks get their turns.
    #[test]
    fn shared_future_that_wakes_itself_until_pending_is_returned() {
        quick(|| {
            let ended = Gate::new();
            let end = ended.clone();
            let spinner = unsync::spawn(poll_fn(move |cx: &mut Context<'_>| {
                cx.waker().wake_by_ref();
                if end.is_open() {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            }));
            let waiting = unsync::spawn(spinner.shared());
            unsync::spawn(async move { ended.open() }).result().unwrap();
            waiting.flatten().result().unwrap();
        });
    }

    #[test]
    fn each_clone_is_woken_once_and_the_last_waker_counts() {
        quick(|| {
            let (promise, unfuture) = unsync::promise();
            let mut clones: Vec<_> = std::iter::repeat_n(unfuture.shared(), 3).collect();
            let wakers: Vec<_> = (0..4).map(|_| CountingWaker::new()).collect();
            for (clone, waker) in clones.iter_mut().zip(&wakers) {
                assert!(waker.poll(clone).is_pending());
                assert!(waker.poll(clone).is_pending());
                assert_eq!(waker.held(), 1);
            }
            assert!(wakers[3].poll(&mut clones[2]).is_pending());
            assert_eq!(wakers[2].held(), 0, "replaced");
            drop(clones.remove(0));
            assert_eq!(wakers[0].held(), 0, "gone");
            promise.set(1);
            let wakes: Vec<_> = wakers.iter().map(CountingWaker::wakes).collect();
            assert_eq!(wakes, [0, 1, 0, 1]);
            assert!(wakers.iter().all(|waker| waker.held() == 0));
            assert!(
                clones
                    .iter_mut()
                    .all(|clone| wakers[0].poll(clone).is_ready())
            );
        });
    }

    #[test]
    fn ready_again_and_again() {
        quick(|| {
            let mut shared = Unfuture::ready(1).shared();
            let waker = CountingWaker::new();
            for _ in 0..3 {
                assert!(matches!(waker.poll(&mut shared), Poll::Ready(Ok(1))));
                assert_eq!(shared.result().unwrap(), 1);
            }
            assert_eq!(waker.held(), 0);
        });
    }

    #[test]
    fn on_the_ambient_thread_result_does_not_block() {
        quick(|| {
            let (promise, unfuture) = unsync::promise();
            let (shared, line) = (unfuture.shared(), line!() - 1);
            let task = unsync::spawn(async move {
                let error = shared.result().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                assert!(
                    error.to_string().contains(&format!("many.rs:{line}")),
                    "{error}"
                );
                assert!(panic_text(|| shared.wait()).contains("would block"));
                promise.set(3);
                shared.result().unwrap()
            });
            assert_eq!(task.result().unwrap(), 3);
        });
    }

    #[test]
    fn wait_and_wait_timeout() {
        quick(|| {
            let (promise, unfuture) = unsync::promise();
            let shared = unfuture.shared();
            assert!(!shared.wait_timeout(Duration::from_millis(1)));
            promise.set(Drops::new());
            assert!(shared.wait_timeout(Duration::ZERO));
            shared.wait();
        });
    }

    #[test]
    fn cancelling_one_cancels_the_work_of_all() {
        limit(HEAVY, || {
            let (call, pid) = hanging();
            let shared = call.shared();
            let other = unsync::spawn(shared.clone());
            assert!(shared.clone().cancel());
            assert_eq!(shared.result().unwrap_err().kind(), ErrorKind::Cancelled);
            let error = other.flatten().result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Cancelled);
            assert_killed(pid);
            assert!(shared.cancel() && shared.canceller().cancel(), "again");
            let shared = unsync::spawn(std::future::pending::<u8>()).shared();
            assert!(shared.canceller().cancel());
            shared.result().unwrap_err();
        });
    }

    #[test]
    fn the_last_clone_lets_the_work_go_on() {
        quick(|| {
            let (drops, release) = (Drops::new(), Gate::new());
            let task = unsync::spawn({
                let (token, release) = (drops.token(), release.clone());
                async move {
                    release.pass().await;
                    Arc::new(token)
                }
            });
            let shared = task.shared();
            drop([shared.clone(), shared]);
            fence();
            assert_eq!(drops.count(), 0, "it runs");
            release.open();
            drops.wait_for(1);
        });
    }

    #[test]
    fn the_last_clone_cancels_work_that_is_tied() {
        quick(|| {
            let (promise, unfuture) = unsync::promise::<u8>();
            let shared = unfuture.cancel_on_drop().shared();
            drop(shared.clone());
            assert!(!promise.is_cancelled());
            drop(shared);
            assert!(promise.is_cancelled());
        });
    }

    #[test]
    fn the_value_is_dropped_with_the_last_clone() {
        quick(|| {
            let drops = Drops::new();
            let shared = Unfuture::ready(Arc::new(drops.token())).shared();
            let other = shared.clone();
            drop(shared);
            assert_eq!(drops.count(), 0);
            drop(other);
            assert_eq!(drops.count(), 1);
        });
    }

    /// A clone that panics affects only the caller that asked for it. It is foreign code, so it may call
    /// back.
    #[test]
    fn a_clone_may_panic_and_call_back() {
        struct Moody(Arc<Mutex<Option<Shared<Moody>>>>, Arc<AtomicUsize>);
        impl Clone for Moody {
            fn clone(&self) -> Moody {
                let shared = self.0.lock().unwrap().take().unwrap();
                assert!(shared.is_done() && shared.peek().is_some());
                drop(shared.clone());
                *self.0.lock().unwrap() = Some(shared);
                assert!(self.1.fetch_add(1, Ordering::SeqCst) > 0, "the first time");
                Moody(Arc::clone(&self.0), Arc::clone(&self.1))
            }
        }
        quick(|| {
            let (place, clones) = (Arc::new(Mutex::new(None)), Arc::default());
            let shared = Unfuture::ready(Moody(Arc::clone(&place), clones)).shared();
            *place.lock().unwrap() = Some(shared.clone());
            assert!(catch_unwind(AssertUnwindSafe(|| shared.result().is_ok())).is_err());
            assert!(shared.result().is_ok());
            place.lock().unwrap().take();
        });
    }

    #[test]
    fn a_waker_may_call_back() {
        quick(|| {
            let (promise, unfuture) = unsync::promise();
            let mut shared = unfuture.shared();
            let seen = Log::new();
            let nosy = {
                let (shared, seen) = (Mutex::new(Some(shared.clone())), seen.clone());
                waker_with(
                    move || {
                        let shared = shared.lock().unwrap().take().unwrap();
                        seen.push(shared.clone().result().unwrap());
                    },
                    || (),
                )
            };
            assert!(poll(&mut shared, &nosy).is_pending());
            promise.set(8);
            assert_eq!(seen.entries(), [8]);
        });
    }

    #[test]
    fn a_waker_that_panics_harms_nobody() {
        quick(|| {
            let (promise, unfuture) = unsync::promise();
            let mut one = unfuture.shared();
            let mut other = one.clone();
            let waker = CountingWaker::new();
            assert!(poll(&mut one, &support::panicking_waker()).is_pending());
            assert!(waker.poll(&mut other).is_pending());
            promise.set(1);
            assert_eq!(waker.wakes(), 1);
        });
    }

    /// Wakers are polled with, dropped and replaced while it ends: none is forgotten.
    #[test]
    fn races_of_the_end_and_polls() {
        limit(HEAVY, || {
            support::race(
                5_000,
                |_| {
                    let (promise, unfuture) = unsync::promise();
                    (promise, unfuture.shared())
                },
                |number, promise| promise.set(number),
                |number, mut shared| {
                    let waker = CountingWaker::new();
                    let mut gone = shared.clone();
                    let _ = waker.poll(&mut gone);
                    drop(gone);
                    let before = waker.wakes();
                    if waker.poll(&mut shared).is_pending() {
                        waker.wait_for(before + 1);
                    }
                    assert!(matches!(waker.poll(&mut shared), Poll::Ready(Ok(n)) if n == number));
                    // The waking thread holds the waker until it has woken it.
                    while waker.held() > 0 {
                        thread::yield_now();
                    }
                },
            );
        });
    }

    /// What `cancel` says is true, however close the end is.
    #[test]
    fn races_of_cancelling_and_ending() {
        limit(HEAVY, || {
            support::race(
                20_000,
                |_| {
                    let (promise, unfuture) = unsync::promise();
                    (promise, unfuture.shared())
                },
                |number, promise| promise.set(number),
                |number, shared: Shared<usize>| {
                    let cancelled = shared.cancel();
                    match shared.result() {
                        Ok(value) => assert!(value == number && !cancelled),
                        Err(error) => {
                            assert!(cancelled && error.kind() == ErrorKind::Cancelled, "{error}");
                        }
                    }
                },
            );
        });
    }

    /// The waiters of all clones are released, and so are those of later clones.
    #[test]
    fn a_shutdown_ends_it_for_all() {
        in_child("shared::a_shutdown_ends_it_for_all", HEAVY, &[], || {
            let drops = Drops::new();
            let token = drops.token();
            let shared = unsync::spawn(async move {
                let _token = token;
                std::future::pending::<u8>().await
            });
            let mut shared = shared.shared();
            let ended = Unfuture::ready(5).shared();
            ended.wait();
            let waker = CountingWaker::new();
            assert!(waker.poll(&mut shared).is_pending());
            let arrived = Counter::new();
            let waiters = [0, 1].map(|number| {
                let (mut shared, arrived) = (shared.clone(), arrived.clone());
                thread::spawn(move || {
                    let waker = CountingWaker::new();
                    if number == 1 && waker.poll(&mut shared).is_pending() {
                        arrived.add();
                        return unsync::block_on(shared);
                    }
                    arrived.add();
                    shared.result()
                })
            });
            arrived.wait_for(2);
            // The first call asks; the second has all the time that a busy machine may need.
            drop(unsync::shutdown(Duration::from_millis(100)));
            unsync::shutdown(QUICK).unwrap();
            let outcomes = waiters.map(|waiter| waiter.join().unwrap());
            let late = [shared.clone().result(), unsync::block_on(shared.clone())];
            for outcome in outcomes.into_iter().chain(late) {
                assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ShutDown);
            }
            assert_eq!((waker.wakes(), waker.held(), drops.count()), (1, 0, 1));
            assert!(!shared.cancel(), "over");
            // Work that had ended keeps its outcome.
            assert_eq!(ended.clone().result().unwrap(), 5);
        });
    }

    #[test]
    fn debug_needs_no_debug() {
        quick(|| {
            #[derive(Clone)]
            struct Plain;
            let (promise, unfuture) = unsync::promise();
            let shared = unfuture.shared();
            assert!(format!("{shared:?}").starts_with("Shared(pending, started at tests"));
            promise.set(Plain);
            assert!(format!("{shared:?}").starts_with("Shared(done, started at tests"));
        });
    }
}

#[test]
fn auto_traits() {
    fn all<T: Send + Sync + Unpin + UnwindSafe + RefUnwindSafe>() {}
    all::<AsCompleted<std::cell::Cell<u8>>>();
    all::<Shared<u8>>();
    fn send<T: Send>(_: &T) {}
    let mut completed = unsync::as_completed([Unfuture::ready(std::cell::Cell::new(1))]);
    send(&completed.next_done());
}

/// A chain of joins, each of the join before and of a ready future: the stack does not grow with the
/// length of the chain.
#[test]
fn a_long_chain_of_joins_does_not_overflow_the_stack() {
    limit(HEAVY, || {
        let (promise, first) = unsync::promise::<u64>();
        let mut last = first;
        for _ in 0..20_000 {
            let pair = unsync::join_all([last, Unfuture::ready(1)]);
            last = unsync::race([pair.map(|pair| pair.iter().sum())]);
        }
        promise.set(0);
        assert_eq!(last.result().unwrap(), 20_000);
    });
}

/// Stopping a chain of races, each of the race before and of a promise, goes from one to the next without
/// recursion.
#[test]
fn stopping_a_long_chain_of_races_does_not_overflow_the_stack() {
    const NAME: &str = "stopping_a_long_chain_of_races_does_not_overflow_the_stack";
    fn chain() -> (Unfuture<usize>, Vec<Promise<usize>>) {
        let (first, mut last) = unsync::promise();
        let mut promises = vec![first];
        for _ in 0..20_000 {
            let (promise, other) = unsync::promise();
            promises.push(promise);
            last = unsync::race([last, other]);
        }
        (last, promises)
    }
    in_child(NAME, HEAVY, &[], || {
        let all_cancelled = |promises: &[Promise<usize>]| {
            assert!(promises.iter().all(Promise::is_cancelled));
        };
        let (last, promises) = chain();
        assert!(last.cancel());
        assert!(last.cancel(), "again");
        assert_eq!(last.result().unwrap_err().kind(), ErrorKind::Cancelled);
        all_cancelled(&promises);

        let (last, promises) = chain();
        let late = last.timeout(Duration::from_millis(1));
        assert_eq!(late.result().unwrap_err().kind(), ErrorKind::TimedOut);
        all_cancelled(&promises);

        let (last, mut promises) = chain();
        promises.pop().unwrap().set(7);
        assert_eq!(last.result().unwrap(), 7);
        all_cancelled(&promises);
    });
}

/// The hook is told of a failure once it is clear that nobody will look at it, and only then.
#[test]
fn failures_that_nobody_looked_at() {
    in_child("failures_that_nobody_looked_at", QUICK, &[], || {
        let told = Counter::new();
        let hook = {
            let told = told.clone();
            move |error: &Error| {
                assert_eq!(error.kind(), ErrorKind::Panicked);
                told.add();
            }
        };
        Config::new().on_unobserved(hook).install().unwrap();
        let fail = || {
            let failed = unsync::thread(|| -> u8 { panic!("nobody looked") });
            failed.wait();
            failed
        };
        // Looked at.
        let seen = fail().shared();
        seen.result().unwrap_err();
        drop(seen);
        unsync::settle_all([fail()]).result().unwrap();
        assert!(unsync::as_completed([fail()]).next().unwrap().1.is_err());
        unsync::race([fail(), Unfuture::ready(1)])
            .result()
            .unwrap_err();
        assert_eq!(told.count(), 0);
        // Not looked at.
        drop(fail().shared());
        assert_eq!(told.count(), 1);
        drop(unsync::as_completed([fail()]));
        assert_eq!(told.count(), 2);
        unsync::race([Unfuture::ready(1), fail()]).result().unwrap();
        assert_eq!(told.count(), 3);
        unsync::join_all([fail(), fail()]).result().unwrap_err();
        assert_eq!(told.count(), 4, "the second");
    });
}

/// All of these from inside the ambient thread, where nothing may block.
#[test]
fn from_inside_a_task() {
    quick(|| {
        let task = unsync::spawn(async {
            let works = || (1..=3_u64).map(|n| unsync::thread(move || n));
            let sum: u64 = unsync::join_all(works()).await?.iter().sum();
            let settled = unsync::settle_all(works()).await?.len() as u64;
            let first = unsync::race(works()).await?;
            let shared = unsync::race(works()).shared();
            let again = shared.clone().await? - shared.await?;
            Ok((sum, settled, first > 0, again))
        });
        assert_eq!(task.flatten().result().unwrap(), (6, 3, true, 0));
    });
}

/// The values stay alive until somebody takes them.
#[test]
fn values_are_not_dropped_where_they_are_not_looked_at() {
    quick(|| {
        let drops = Drops::new();
        let works = [0, 1].map(|_| {
            let token = drops.token();
            unsync::thread(move || token)
        });
        let tokens: Vec<Token> = unsync::join_all(works).result().unwrap();
        assert_eq!(drops.count(), 0);
        drop(tokens);
        assert!(drops.places().iter().all(|place| *place == Place::here()));
    });
}
