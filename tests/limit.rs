//! `Limit`: never more than the limit at once, in order, whatever becomes of running and waiting work, for
//! all three kinds of work.

mod support;

unsync::test_worker!();

use std::future::Future;
use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use support::{
    Bomb, Counter, Drops, Gate, HEAVY, Log, OnDrop, QUICK, blocked, boom, die, eventually, fence,
    hang, in_child, limit, on_ambient, poll, quick, same, waker_with,
};
use unsync::{ErrorKind, Limit, Unfuture};

/// Reports progress, and ends.
fn tell(n: u64) -> u64 {
    unsync::progress(n);
    n
}
/// Uses a limit of its own, in a worker process.
fn limited_there(n: u64) -> u64 {
    let limit = Limit::new(2);
    let works = (0..n).map(|n| match n % 3 {
        0 => limit.spawn(async move { n }),
        1 => limit.thread(move || n),
        _ => limit.cpu(same, (n,)),
    });
    unsync::join_all(works).result().unwrap().iter().sum()
}
fn unregistered(n: u64) -> u64 {
    n
}
unsync::register!(same, boom, die, hang, tell, limited_there);

/// Occupies a place until the gate is opened.
fn occupied(limit: &Limit) -> (Gate, Unfuture<()>) {
    blocked(|block| limit.thread(block))
}

/// Fails if the limit has no place left.
fn assert_free(limit: &Limit) {
    limit.spawn(async {}).result().unwrap();
    assert!(format!("{limit:?}").starts_with("Limit(0 of"), "{limit:?}");
}

/// How many run at once, and the most that ever did.
#[derive(Clone, Default)]
struct Crowd(Arc<[AtomicUsize; 2]>);

struct Member(Crowd);

impl Crowd {
    fn enter(&self) -> Member {
        let now = self.0[0].fetch_add(1, Ordering::SeqCst) + 1;
        self.0[1].fetch_max(now, Ordering::SeqCst);
        Member(self.clone())
    }

    fn most(&self) -> usize {
        self.0[1].load(Ordering::SeqCst)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.0.0[0].fetch_sub(1, Ordering::SeqCst);
    }
}

mod numbers {
    use super::*;

    #[test]
    fn ten_thousand_under_a_limit_of_eight() {
        limit(HEAVY, || {
            let (limit, crowd) = (Limit::new(8), Crowd::default());
            let works = (0..10_000_u64).map(|n| {
                let crowd = crowd.clone();
                match n % 2 {
                    0 => limit.thread(move || {
                        let _here = crowd.enter();
                        n
                    }),
                    _ => limit.spawn(async move {
                        let _here = crowd.enter();
                        unsync::yield_now().await;
                        n
                    }),
                }
            });
            let values = unsync::join_all(works).result().unwrap();
            assert!(values.into_iter().eq(0..10_000));
            assert!((1..=8).contains(&crowd.most()), "{}", crowd.most());
            assert_free(&limit);
        });
    }

    /// A limit allows no fewer than it says, either: eight jobs wait for each other.
    #[test]
    fn the_whole_limit_is_used() {
        quick(|| {
            let limit = Limit::new(8);
            let here = Counter::new();
            let works = (0..8).map(|_| {
                let here = here.clone();
                limit.thread(move || {
                    here.add();
                    here.wait_for(8);
                })
            });
            unsync::join_all(works).result().unwrap();
        });
    }

    #[test]
    fn all_kinds_share_it_and_start_in_order() {
        limit(HEAVY, || {
            let limit = Limit::new(1);
            let (gate, _holder) = occupied(&limit);
            let order = Log::new();
            let works: Vec<_> = (0..9_u64)
                .map(|n| {
                    let order = order.clone();
                    match n % 3 {
                        0 => limit.spawn(async move {
                            order.push(n);
                            n
                        }),
                        1 => limit.thread(move || {
                            order.push(n);
                            n
                        }),
                        _ => limit
                            .cpu(tell, (n,))
                            .on_progress(move |n: u64| order.push(n)),
                    }
                })
                .collect();
            assert_eq!(format!("{limit:?}"), "Limit(1 of 1 running, 9 waiting)");
            gate.open();
            let values = unsync::join_all(works).result().unwrap();
            assert!(values.into_iter().eq(0..9));
            fence();
            // The progress of calls arrives separately, in the order of the calls.
            let (calls, rest): (Vec<u64>, Vec<u64>) =
                order.entries().iter().partition(|n| *n % 3 == 2);
            assert_eq!((rest, calls), (vec![0, 1, 3, 4, 6, 7], vec![2, 5, 8]));
            assert_free(&limit);
        });
    }

    #[test]
    fn clones_are_the_same_limit() {
        quick(|| {
            let limit = Limit::new(1);
            let (gate, holder) = occupied(&limit.clone());
            let waiting = limit.spawn(async {});
            fence();
            assert!(!waiting.is_done());
            gate.open();
            waiting.result().unwrap();
            holder.result().unwrap();
        });
    }

    #[test]
    fn of_zero_is_refused() {
        let refused = catch_unwind(|| Limit::new(0));
        let text = *refused.unwrap_err().downcast::<&str>().unwrap();
        assert_eq!(text, "under a limit of 0 nothing would ever run");
        assert!(format!("{:?}", Limit::new(usize::MAX)).contains("0 of"));
    }

    #[test]
    fn in_a_worker_process() {
        limit(HEAVY, || {
            assert_eq!(unsync::cpu(limited_there, (30,)).result().unwrap(), 435);
        });
    }
}

mod ends {
    use super::*;

    /// However work ends, its place is free when its end is seen, and the error is its own.
    #[test]
    fn every_end_frees_the_place() {
        limit(HEAVY, || {
            let limit = Limit::new(1);
            let check = |work: Unfuture<u64>, expected: Result<u64, ErrorKind>| {
                let outcome = work.result().map_err(|error| error.kind());
                assert_eq!(outcome, expected);
                assert_eq!(format!("{limit:?}"), "Limit(0 of 1 running, 0 waiting)");
            };
            let panicked = Err(ErrorKind::Panicked);
            for held in [false, true] {
                let start = |start: &dyn Fn() -> Unfuture<u64>| match held {
                    false => start(),
                    true => {
                        let (gate, _holder) = occupied(&limit);
                        let work = start();
                        gate.open();
                        work
                    }
                };
                check(start(&|| limit.spawn(async { 1 })), Ok(1));
                check(start(&|| limit.thread(|| 2)), Ok(2));
                check(start(&|| limit.cpu(same, (3,))), Ok(3));
                check(start(&|| limit.spawn(async { panic!("boom") })), panicked);
                check(start(&|| limit.thread(|| panic!("boom"))), panicked);
                check(start(&|| limit.cpu(boom, (0,))), panicked);
                check(start(&|| limit.cpu(die, (0,))), Err(ErrorKind::WorkerLost));
                let bomb = || {
                    limit.spawn(async {
                        let _bomb = Bomb("in the drop");
                        0
                    })
                };
                check(start(&bomb), panicked);
                let endless = || limit.spawn(std::future::pending());
                let late = || endless().run_timeout(Duration::from_millis(1));
                check(start(&late), Err(ErrorKind::TimedOut));
            }
        });
    }

    #[test]
    fn cancelling_what_runs_frees_the_place() {
        limit(HEAVY, || {
            let limit = Limit::new(1);
            let (started, running) = mpsc::channel();
            let task = limit.spawn(async move {
                started.send(()).unwrap();
                std::future::pending::<()>().await
            });
            running.recv().unwrap();
            assert!(task.cancel());
            assert_eq!(task.result().unwrap_err().kind(), ErrorKind::Cancelled);
            let (sender, receiver) = mpsc::channel();
            let call = limit
                .cpu(hang, (0,))
                .on_progress(move |pid: u32| sender.send(pid).unwrap());
            receiver.recv().unwrap();
            assert!(call.cancel());
            assert_eq!(call.result().unwrap_err().kind(), ErrorKind::Cancelled);
            assert_free(&limit);
        });
    }

    /// A thread cannot be stopped, so it counts for as long as it runs.
    #[test]
    fn a_cancelled_job_that_still_runs_keeps_its_place() {
        quick(|| {
            let limit = Limit::new(1);
            let (gate, holder) = occupied(&limit);
            let waiting = limit.thread(|| 1);
            assert!(!holder.cancel());
            let holder = holder.timeout(Duration::ZERO);
            assert_eq!(holder.result().unwrap_err().kind(), ErrorKind::TimedOut);
            fence();
            assert!(!waiting.is_done());
            assert_eq!(format!("{limit:?}"), "Limit(1 of 1 running, 1 waiting)");
            gate.open();
            assert_eq!(waiting.result().unwrap(), 1);
        });
    }

    #[test]
    fn a_job_sees_that_it_was_cancelled() {
        quick(|| {
            let limit = Limit::new(1);
            let (gate, _holder) = occupied(&limit);
            let (started, running) = mpsc::channel();
            let job = limit.thread(move || {
                started.send(()).unwrap();
                while !unsync::is_cancelled() {
                    thread::yield_now();
                }
                "tidied up"
            });
            gate.open();
            running.recv().unwrap();
            job.cancel();
            assert_eq!(job.result().unwrap(), "tidied up");
        });
    }

    #[test]
    fn dropping_what_runs_or_waits_lets_it_go_on() {
        quick(|| {
            let limit = Limit::new(1);
            let (gate, holder) = occupied(&limit);
            let ran = Counter::new();
            for n in 0..3 {
                let ran = ran.clone();
                drop(match n {
                    0 => limit.spawn(async move { ran.add() }),
                    _ => limit.thread(move || ran.add()),
                });
            }
            drop((holder, limit));
            gate.open();
            ran.wait_for(3);
        });
    }

    /// The stack does not grow with the length of the line.
    #[test]
    fn a_long_line_of_failures() {
        in_child("ends::a_long_line_of_failures", HEAVY, &[], || {
            let limit = Limit::new(1);
            let (gate, holder) = occupied(&limit);
            let works: Vec<_> = (0..30_000_u64)
                .map(|n| match n % 3 {
                    0 => limit.spawn(async move { n }),
                    1 => limit.thread(move || n),
                    _ => limit.cpu(same, (n,)),
                })
                .collect();
            let shutdown = thread::spawn(|| unsync::shutdown(Duration::from_millis(100)));
            let outcomes = unsync::settle_all(works).result().unwrap();
            let kinds = outcomes
                .into_iter()
                .map(|outcome| outcome.unwrap_err().kind());
            assert!(kinds.into_iter().all(|kind| kind == ErrorKind::ShutDown));
            gate.open();
            holder.result().unwrap();
            let _late = shutdown.join().unwrap();
            let after = limit.thread(|| 1).result().unwrap_err();
            assert_eq!(after.kind(), ErrorKind::ShutDown);
        });
    }
}

mod shutdown {
    use super::*;

    fn assert_shut_down<T: std::fmt::Debug>(work: Unfuture<T>, what: &str) {
        assert!(work.wait_timeout(QUICK), "{what} does not resolve");
        let error = work.result().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ShutDown, "{what}: {error}");
    }

    /// What waits is started by whoever ends before it, so here nobody would ever start it.
    #[test]
    fn resolves_what_waits_behind_a_job_that_does_not_end() {
        const NAME: &str = "shutdown::resolves_what_waits_behind_a_job_that_does_not_end";
        in_child(NAME, HEAVY, &[], || {
            let gone: Vec<_> = (0..100).map(|_| Limit::new(1)).collect();
            drop(gone);
            let limit = Limit::new(1);
            let (gate, _holder) = occupied(&limit);
            let closures = Drops::new();
            let token = closures.token();
            let job = limit.thread(move || drop(token));
            let (call, task) = (limit.cpu(same, (1,)), limit.spawn(async {}));
            let continued = limit.thread(|| 1).map(|n| n + 1);
            let late = unsync::shutdown(Duration::from_millis(500)).unwrap_err();
            assert_eq!(late.kind(), ErrorKind::TimedOut);
            assert_shut_down(job, "the job");
            assert_eq!(closures.count(), 1);
            assert_shut_down(call, "the call");
            assert_shut_down(task, "the task");
            assert_shut_down(continued, "the continuation");
            assert_shut_down(limit.thread(|| 1), "a later job");
            assert_shut_down(limit.cpu(same, (1,)), "a later call");
            assert_shut_down(limit.spawn(async {}), "a later task");
            assert_eq!(format!("{limit:?}"), "Limit(1 of 1 running, 0 waiting)");
            gate.open();
        });
    }

    /// The limit is the only one of the library's parts that knows of the job.
    #[test]
    fn resolves_a_job_of_a_pool_that_was_never_used() {
        const NAME: &str = "shutdown::resolves_a_job_of_a_pool_that_was_never_used";
        in_child(NAME, HEAVY, &[], || {
            let limit = Limit::new(1);
            let (started, running) = mpsc::channel();
            let (release, gate) = mpsc::channel();
            let holder = limit.spawn(async move {
                started.send(()).unwrap();
                gate.recv().unwrap();
            });
            running.recv().unwrap();
            let job = limit.thread(|| 1);
            let late = unsync::shutdown(Duration::from_millis(500)).unwrap_err();
            assert_eq!(late.kind(), ErrorKind::TimedOut);
            assert_shut_down(job, "the job");
            release.send(()).unwrap();
            holder.wait();
        });
    }

    /// A destructor may wait for longer than the shutdown is to take. It counts as running.
    fn has_its_limit_though_a_destructor_waits(limit: &Limit, busy: &Gate) {
        let gate = Gate::new();
        let slow = OnDrop({
            let gate = gate.clone();
            move || gate.wait()
        });
        let job = limit.thread(move || drop(slow));
        for _ in 0..2 {
            let late = unsync::shutdown(Duration::from_millis(500)).unwrap_err();
            assert_eq!(late.kind(), ErrorKind::TimedOut);
            assert!(late.to_string().contains("thread jobs"), "{late}");
            assert!(!job.is_done());
            busy.open();
        }
        gate.open();
        unsync::shutdown(QUICK).unwrap();
        assert!(job.is_done());
        assert_shut_down(job, "the job");
    }

    #[test]
    fn has_its_limit_though_a_destructor_waits_behind_a_job() {
        const NAME: &str = "shutdown::has_its_limit_though_a_destructor_waits_behind_a_job";
        in_child(NAME, HEAVY, &[], || {
            let limit = Limit::new(1);
            let (gate, _holder) = occupied(&limit);
            has_its_limit_though_a_destructor_waits(&limit, &gate);
        });
    }

    /// The pool has no thread then.
    #[test]
    fn has_its_limit_though_a_destructor_waits_behind_a_task() {
        const NAME: &str = "shutdown::has_its_limit_though_a_destructor_waits_behind_a_task";
        in_child(NAME, HEAVY, &[], || {
            let limit = Limit::new(1);
            let _holder = limit.spawn(unsync::sleep(Duration::MAX));
            has_its_limit_though_a_destructor_waits(&limit, &Gate::new());
        });
    }
}

mod waiting {
    use super::*;

    #[test]
    fn cancelling_what_waits_frees_its_place() {
        limit(HEAVY, || {
            let limit = Limit::new(1);
            let (gate, _holder) = occupied(&limit);
            let (futures, closures) = (Drops::new(), Drops::new());
            let (first, second) = (futures.token(), closures.token());
            let works = [
                limit.spawn(async move {
                    drop(first);
                    0
                }),
                limit.thread(move || {
                    drop(second);
                    0
                }),
                limit.cpu(hang, (0,)),
            ];
            let last = limit.thread(|| 5);
            assert!(works.iter().all(Unfuture::cancel));
            for work in works {
                assert_eq!(work.result().unwrap_err().kind(), ErrorKind::Cancelled);
            }
            closures.wait_for(1);
            futures.wait_for(1);
            let place = &futures.places()[0];
            assert!(place.is_ambient(), "{place:?}");
            eventually(QUICK, "only one waits", || {
                let seen = format!("{limit:?}");
                (seen == "Limit(1 of 1 running, 1 waiting)", seen)
            });
            gate.open();
            assert_eq!(last.result().unwrap(), 5);
            assert_free(&limit);
        });
    }

    /// It stands in the line ready to run: no task waits for it, and nothing of it is left once cancelled.
    #[test]
    fn a_job_or_a_call_that_waits_is_no_task() {
        const NAME: &str = "waiting::a_job_or_a_call_that_waits_is_no_task";
        in_child(NAME, HEAVY, &[], || {
            let limit = Limit::new(1);
            let (gate, _holder) = occupied(&limit);
            let closures = Drops::new();
            let mut works = Vec::new();
            for number in 0..1_000 {
                let token = closures.token();
                works.push(limit.thread(move || {
                    drop(token);
                    number
                }));
                works.push(limit.cpu(same, (number,)));
            }
            fence();
            // The fence itself counts for a moment after its result is there.
            eventually(QUICK, "there is no task", || {
                let tasks = unsync::stats().async_tasks;
                (tasks == 0, tasks)
            });
            let last = works.pop().unwrap();
            assert!(works.iter().all(Unfuture::cancel));
            assert!(works.iter().all(Unfuture::is_done), "at once");
            assert_eq!(closures.count(), 1_000);
            assert_eq!(format!("{limit:?}"), "Limit(1 of 1 running, 1 waiting)");
            gate.open();
            assert_eq!(last.result().unwrap(), 999);
            assert_free(&limit);
        });
    }

    /// As everywhere, what the work holds is gone before anybody sees that it has ended.
    #[test]
    fn what_waits_lets_go_of_what_it_holds_first() {
        quick(|| {
            let limit = Limit::new(1);
            let (gate, _holder) = occupied(&limit);
            for kind in ["task", "job"] {
                let held = Drops::new();
                let token = held.token();
                let mut work = match kind {
                    "task" => limit.spawn(async move { drop(token) }),
                    _ => limit.thread(move || drop(token)),
                };
                let (sender, seen) = mpsc::channel();
                let waker = waker_with(move || sender.send(held.count()).unwrap(), || ());
                assert!(poll(&mut work, &waker).is_pending());
                assert!(work.cancel());
                assert_eq!(seen.recv().unwrap(), 1, "{kind}");
                assert_eq!(work.result().unwrap_err().kind(), ErrorKind::Cancelled);
            }
            gate.open();
        });
    }

    #[test]
    fn what_panics_in_its_drop_while_it_waits_is_contained() {
        quick(|| {
            let limit = Limit::new(1);
            let (gate, _holder) = occupied(&limit);
            let [first, second] = [(); 2].map(|()| Bomb("dropped in the line"));
            let works = [
                limit.spawn(async { drop(first) }),
                limit.thread(|| drop(second)),
            ];
            for work in works {
                work.cancel();
                let error = work.result().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Cancelled);
            }
            gate.open();
            assert_free(&limit);
        });
    }

    #[test]
    fn a_scope_that_ends_while_it_waits() {
        quick(|| {
            let limit = Limit::new(1);
            let (gate, _holder) = occupied(&limit);
            let drops = Drops::new();
            let token = drops.token();
            drop(limit.thread(move || drop(token)).cancel_on_drop());
            drops.wait_for(1);
            gate.open();
            assert_free(&limit);
        });
    }

    #[test]
    fn a_deadline_passes_while_it_waits() {
        quick(|| {
            let limit = Limit::new(1);
            let (gate, _holder) = occupied(&limit);
            let ran = Counter::new();
            let counted = ran.clone();
            let late = limit
                .thread(move || counted.add())
                .timeout(Duration::from_millis(10));
            assert_eq!(late.result().unwrap_err().kind(), ErrorKind::TimedOut);
            gate.open();
            assert_free(&limit);
            assert_eq!(ran.count(), 0);
        });
    }

    /// Only the time that work runs is counted.
    #[test]
    fn run_timeout_does_not_count_the_wait() {
        limit(HEAVY, || {
            let limit = Limit::new(1);
            let (gate, _holder) = occupied(&limit);
            let time = Duration::from_millis(100);
            let quick = [
                limit.spawn(async { 1 }).run_timeout(time * 100),
                limit.thread(|| 2).run_timeout(time * 100),
                limit.cpu(same, (3,)).run_timeout(time * 100),
            ];
            let late = [
                limit.spawn(std::future::pending()).run_timeout(time),
                limit.cpu(hang, (0,)).run_timeout(time),
            ];
            thread::sleep(time * 3);
            assert!(late.iter().all(|late| !late.is_done()));
            gate.open();
            assert_eq!(unsync::join_all(quick).result().unwrap(), [1, 2, 3]);
            for late in late {
                assert_eq!(late.result().unwrap_err().kind(), ErrorKind::TimedOut);
            }
            assert_free(&limit);
        });
    }

    #[test]
    fn a_call_that_waits_can_be_watched() {
        limit(HEAVY, || {
            let limit = Limit::new(1);
            let (gate, _holder) = occupied(&limit);
            let (sender, seen) = mpsc::channel();
            let call = limit
                .cpu(tell, (7,))
                .on_progress(move |n: u64| sender.send(n).unwrap());
            gate.open();
            assert_eq!(call.result().unwrap(), 7);
            assert_eq!(seen.iter().last(), Some(7));
        });
    }

    #[test]
    fn a_call_that_cannot_be_made_fails_at_once() {
        quick(|| {
            let limit = Limit::new(1);
            let (gate, holder) = occupied(&limit);
            let (refused, line) = (limit.cpu(unregistered, (1,)), line!());
            assert!(refused.is_done());
            let error = refused.result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotRegistered);
            assert!(
                error.to_string().contains(&format!("limit.rs:{line}")),
                "{error}"
            );
            gate.open();
            holder.result().unwrap();
            assert_free(&limit);
        });
    }

    #[test]
    fn errors_say_where_the_work_was_started() {
        quick(|| {
            let limit = Limit::new(1);
            for held in [false, true] {
                let holder = held.then(|| occupied(&limit));
                let (failed, line) = (limit.thread(|| -> u8 { panic!("boom") }), line!());
                assert!(format!("{failed:?}").contains(&format!("limit.rs:{line}")));
                if let Some((gate, _)) = holder {
                    gate.open();
                }
                let text = failed.result().unwrap_err().to_string();
                assert!(text.contains(&format!("limit.rs:{line}")), "{text}");
                let (failed, line) = (limit.spawn(async { panic!("boom") }), line!());
                let failed: Unfuture<()> = failed;
                let text = failed.result().unwrap_err().to_string();
                assert!(text.contains(&format!("limit.rs:{line}")), "{text}");
            }
        });
    }

    #[test]
    fn a_future_is_polled_and_dropped_on_the_ambient_thread() {
        quick(|| {
            let limit = Limit::new(1);
            let (gate, _holder) = occupied(&limit);
            let drops = Drops::new();
            let token = drops.token();
            let task = limit.spawn(async move {
                unsync::yield_now().await;
                drop(token);
                on_ambient()
            });
            gate.open();
            assert!(task.result().unwrap());
            assert!(drops.places()[0].is_ambient());
        });
    }

    #[test]
    fn from_inside_works_of_another_limit() {
        quick(|| {
            let (outer, inner) = (Limit::new(2), Limit::new(1));
            let works = (0..20_u64).map(|n| {
                let inner = inner.clone();
                match n % 2 {
                    0 => outer.spawn(async move { inner.thread(move || n).await.unwrap() }),
                    _ => outer.thread(move || inner.spawn(async move { n }).result().unwrap()),
                }
            });
            assert_eq!(
                unsync::join_all(works)
                    .result()
                    .unwrap()
                    .iter()
                    .sum::<u64>(),
                190
            );
        });
    }

    /// Threads submit at once, and cancel every other job: no place is lost, and no job.
    #[test]
    fn many_threads_submit_and_cancel() {
        limit(HEAVY, || {
            let limit = Limit::new(2);
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..500 {
                            let (kept, stopped) = (limit.thread(|| 1), limit.thread(|| 2));
                            let is_cancelled = stopped.cancel();
                            assert_eq!(stopped.result().is_err(), is_cancelled);
                            assert_eq!(kept.result().unwrap(), 1);
                        }
                    });
                }
            });
            fence();
            assert_free(&limit);
        });
    }

    /// Work is cancelled at about the moment when it gets the place: the place is never lost.
    #[test]
    fn races_of_cancel_and_turn() {
        limit(HEAVY, || {
            let limit = Limit::new(1);
            let rounds = limit.clone();
            support::race(
                5_000,
                |number| {
                    let (promise, unfuture) = unsync::promise::<()>();
                    let holder = limit.spawn(async { drop(unfuture.await) });
                    let waiting = match number % 2 {
                        0 => limit.spawn(async {}),
                        _ => limit.thread(|| ()),
                    };
                    (promise, (holder, waiting))
                },
                |_, promise| promise.set(()),
                |_, (holder, waiting)| {
                    waiting.cancel();
                    holder.result().unwrap();
                    if let Err(error) = waiting.result() {
                        assert_eq!(error.kind(), ErrorKind::Cancelled);
                    }
                },
            );
            fence();
            assert_free(&rounds);
        });
    }
}

#[test]
fn auto_traits() {
    fn all<T: Send + Sync + Unpin + UnwindSafe + RefUnwindSafe + Clone>() {}
    all::<Limit>();
    fn send(_: impl Future + Send) {}
    send(Limit::new(1).spawn(async {}));
    let limit = Limit::new(1);
    let unharmed = catch_unwind(AssertUnwindSafe(|| limit.thread(|| panic!("there"))));
    let failed: Unfuture<()> = unharmed.unwrap();
    assert!(failed.result().is_err());
}
