//! The thread pool with its defaults: where jobs run, waits of every kind inside jobs, panics, drops, and
//! floods.
//!
//! What depends on a limit, or counts the threads of the process, is in `thread_limits.rs`.
//!
//! Left out, because it has no meaning here:
//! - a model checker that tries all orders of the pool's steps: none comes with std. Churn from many
//!   threads stands in for it;
//! - threads that stay forever: all of them retire;
//! - scopes whose jobs borrow: what a job holds is its own.

mod support;

use std::collections::HashSet;
use std::panic::panic_any;
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::Duration;

use support::{
    Bomb, CountingWaker, Drops, Gate, HEAVY, OnDrop, Place, compile, fence, limit, panicking_waker,
    poll, quick,
};
use unsync::{ErrorKind, Unfuture};

#[test]
fn a_job_runs_on_a_pool_thread() {
    quick(|| {
        let place = unsync::thread(Place::here).result().unwrap();
        assert!(place.is_pool() && place != Place::here(), "{place:?}");
        // The name is complete where the system shows only 15 bytes.
        assert!(place.name.unwrap().len() <= 15);
    });
}

#[test]
fn a_job_is_pending_until_it_ends() {
    quick(|| {
        let gate = Gate::new();
        let mut job = unsync::thread({
            let gate = gate.clone();
            move || {
                gate.wait();
                5
            }
        });
        let waker = CountingWaker::new();
        assert!(!job.is_done() && waker.poll(&mut job).is_pending());
        assert!(!job.wait_timeout(Duration::from_millis(10)));
        assert_eq!(waker.wakes(), 0);
        gate.open();
        waker.wait_for(1);
        assert!(job.is_done());
        assert_eq!(job.result().unwrap(), 5);
    });
}

/// There are far more jobs than cores, and each waits for all others.
#[test]
fn blocking_jobs_run_all_at_once() {
    const JOBS: usize = 100;
    quick(|| {
        let meeting = Arc::new(Barrier::new(JOBS));
        let jobs = Vec::from_iter((0..JOBS).map(|_| {
            let meeting = Arc::clone(&meeting);
            unsync::thread(move || {
                meeting.wait();
                thread::current().id()
            })
        }));
        let ids = unsync::join_all(jobs).result().unwrap();
        assert_eq!(HashSet::<_>::from_iter(ids).len(), JOBS);
    });
}

/// Quick jobs and jobs that wait for a later job, over and over: a job that no thread picks up would
/// hang its round.
#[test]
fn no_job_is_stranded_in_churn() {
    const ROUNDS: usize = 512;
    limit(HEAVY, || {
        for round in 0..ROUNDS {
            let (sender, receiver) = mpsc::channel();
            let quick_jobs = |count| (0..count).map(|number| unsync::thread(move || number));
            let before = Vec::from_iter(quick_jobs(round % 5));
            let waiting = unsync::thread(move || receiver.recv().unwrap());
            let between = Vec::from_iter(quick_jobs(round % 3));
            let sending = unsync::thread(move || sender.send(round).unwrap());
            let after = Vec::from_iter(quick_jobs(round % 4));
            let value = match round % 2 {
                0 => waiting.result(),
                _ => unsync::block_on(waiting),
            };
            assert_eq!(value.unwrap(), round);
            sending.result().unwrap();
            for jobs in [before, between, after] {
                for (number, job) in jobs.into_iter().enumerate() {
                    assert_eq!(job.result().unwrap(), number);
                }
            }
        }
    });
}

/// The same from many threads at once, with pauses in between, so that idle threads are claimed, searched
/// for and missed in every order.
#[test]
fn no_job_is_stranded_when_many_submit() {
    limit(HEAVY, || {
        let submitters = Vec::from_iter((0..8usize).map(|number| {
            thread::spawn(move || {
                for round in 0..500 {
                    let (sender, receiver) = mpsc::channel();
                    let waiting = unsync::thread(move || receiver.recv().unwrap());
                    if (round + number) % 7 == 0 {
                        thread::yield_now();
                    }
                    let sending = unsync::thread(move || sender.send(round).unwrap());
                    assert_eq!(waiting.result().unwrap(), round);
                    sending.result().unwrap();
                }
            })
        }));
        submitters
            .into_iter()
            .for_each(|submitter| submitter.join().unwrap());
    });
}

#[test]
fn jobs_and_tasks_wait_for_each_other() {
    quick(|| {
        for _ in 0..100 {
            let by_task = unsync::spawn(async { unsync::thread(|| 1).await.unwrap() + 1 });
            let by_job = unsync::thread(|| unsync::spawn(async { 1 }).result().unwrap() + 1);
            let by_both = unsync::thread(|| {
                let inner = unsync::thread(|| unsync::spawn(async { 1 }).result().unwrap());
                unsync::block_on(async { unsync::spawn(inner).await.unwrap().unwrap() + 1 })
            });
            for work in [by_task, by_job, by_both] {
                assert_eq!(work.result().unwrap(), 2);
            }
        }
    });
}

#[test]
fn jobs_wait_for_jobs_a_hundred_deep() {
    fn down(from: u32) -> u32 {
        match from {
            0 => 0,
            _ => unsync::thread(move || down(from - 1)).result().unwrap() + 1,
        }
    }
    quick(|| assert_eq!(down(100), 100));
}

/// Every job of a wave waits for a job of the next wave.
#[test]
fn waves_of_jobs_wait_for_later_waves() {
    quick(|| {
        let (first_sender, mut receiver) = mpsc::channel::<usize>();
        let mut jobs = Vec::new();
        for _ in 0..50 {
            let (sender, next) = mpsc::channel();
            let previous = std::mem::replace(&mut receiver, next);
            jobs.push(unsync::thread(move || {
                let number = previous.recv().unwrap();
                sender.send(number + 1).unwrap();
            }));
        }
        // No job can go on before the last one has its thread.
        unsync::thread(move || first_sender.send(0).unwrap())
            .result()
            .unwrap();
        unsync::join_all(jobs).result().unwrap();
        assert_eq!(receiver.recv().unwrap(), 50);
    });
}

#[test]
fn a_million_trivial_jobs_give_their_sum() {
    const BATCH: u64 = 50_000;
    limit(HEAVY, || {
        let mut sum = 0;
        for batch in 0..20 {
            let jobs = (0..BATCH).map(|number| unsync::thread(move || batch * BATCH + number));
            for job in Vec::from_iter(jobs) {
                sum += job.result().unwrap();
            }
        }
        let all = 20 * BATCH;
        assert_eq!(sum, all * (all - 1) / 2);
    });
}

#[test]
fn jobs_may_be_submitted_and_dropped_on_many_threads() {
    const THREADS: usize = 8;
    const EACH: usize = 500;
    quick(|| {
        let drops = Drops::new();
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for number in 0..EACH {
                        let token = drops.token();
                        let job = unsync::thread(move || token);
                        match number % 3 {
                            0 => drop(job),
                            1 => drop(job.result().unwrap()),
                            _ => drop(unsync::block_on(job).unwrap()),
                        }
                    }
                });
            }
        });
        drops.wait_for(THREADS * EACH);
        fence();
        assert_eq!(drops.count(), THREADS * EACH);
    });
}

// ------------------------------------------------------------------------------------------ panics

#[test]
fn a_panic_reaches_who_waits_with_its_payload() {
    #[derive(Debug, PartialEq)]
    struct Payload(u8);
    quick(|| {
        let jobs = [(); 2].map(|()| unsync::thread(|| panic_any(Payload(1))));
        let [waited, awaited] = jobs;
        let awaited = unsync::spawn(awaited).flatten();
        for outcome in [waited.result(), awaited.result()] {
            let error = outcome.map(|(): ()| ()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Panicked);
            assert_eq!(
                error.into_panic().unwrap().downcast_ref(),
                Some(&Payload(1))
            );
        }
    });
}

/// As many panics at once as there are threads, and then as many jobs at once.
#[test]
fn the_pool_is_as_large_after_every_thread_had_a_panic() {
    const JOBS: usize = 64;
    quick(|| {
        for panics in [true, false] {
            let meeting = Arc::new(Barrier::new(JOBS));
            let jobs = Vec::from_iter((0..JOBS).map(|_| {
                let meeting = Arc::clone(&meeting);
                unsync::thread(move || {
                    meeting.wait();
                    assert!(!panics, "every thread panics");
                })
            }));
            for job in jobs {
                assert_eq!(job.result().is_err(), panics);
            }
        }
    });
}

#[test]
fn a_panic_in_a_drop_or_a_wake_harms_no_other_job() {
    quick(|| {
        let gate = Gate::new();
        let started = |number| {
            let gate = gate.clone();
            unsync::thread(move || {
                gate.wait();
                match number {
                    0 => Some(Bomb("in the drop of a value")),
                    1 => panic_any(Bomb("in the drop of a payload")),
                    2 => panic_any(OnDrop(|| panic_any(Bomb("a payload in a payload")))),
                    _ => None,
                }
            })
        };
        // Three jobs that nobody wants, and one with a waker that panics.
        (0..3).for_each(|number| drop(started(number)));
        let mut last = started(3);
        assert!(poll(&mut last, &panicking_waker()).is_pending());
        gate.open();
        assert!(last.result().unwrap().is_none());
        let meeting = Arc::new(Barrier::new(10));
        let jobs = (0..10).map(|_| {
            let meeting = Arc::clone(&meeting);
            unsync::thread(move || {
                meeting.wait();
            })
        });
        unsync::join_all(Vec::from_iter(jobs)).result().unwrap();
    });
}

/// The job drops what its closure holds, so a panic in that drop is the job's.
#[test]
fn a_closure_that_panics_in_its_drop_fails() {
    quick(|| {
        let bomb = Bomb("in the drop of a capture");
        let job = unsync::thread(move || {
            let _bomb = &bomb;
        });
        let error = job.result().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Panicked);
        assert!(
            error.to_string().contains("in the drop of a capture"),
            "{error}"
        );
    });
}

// ----------------------------------------------------------------------------------------- dropping

#[test]
fn an_unfuture_that_is_dropped_lets_its_job_run() {
    quick(|| {
        let (started, gate, ran, drops) = (Gate::new(), Gate::new(), Gate::new(), Drops::new());
        drop(unsync::thread({
            let (started, gate, ran) = (started.clone(), gate.clone(), ran.clone());
            let token = drops.token();
            move || {
                started.open();
                gate.wait();
                ran.open();
                token
            }
        }));
        started.wait();
        assert_eq!(drops.count(), 0);
        gate.open();
        ran.wait();
        drops.wait_for(1);
        assert!(drops.places()[0].is_pool(), "{:?}", drops.places());
    });
}

#[test]
fn the_result_of_a_job_may_be_waited_for_or_awaited_by_anybody() {
    quick(|| {
        let wait: [fn(Unfuture<u8>) -> u8; 5] = [
            |job| job.result().unwrap(),
            |job| unsync::block_on(job).unwrap(),
            |job| unsync::spawn(job).flatten().result().unwrap(),
            |job| {
                unsync::thread(move || job.result())
                    .flatten()
                    .result()
                    .unwrap()
            },
            |job| {
                job.wait();
                job.result().unwrap()
            },
        ];
        for wait in wait {
            assert_eq!(wait(unsync::thread(|| 5)), 5);
        }
    });
}

/// A destructor may start work on a pool thread, as on any other.
#[test]
fn a_job_may_start_jobs_whatever_it_holds() {
    quick(|| {
        let (sender, receiver) = mpsc::channel();
        let last = OnDrop(move || {
            let inner = unsync::thread(|| 5);
            sender.send(inner.result().unwrap()).unwrap();
        });
        let job = unsync::thread(move || {
            let _last = &last;
        });
        job.result().unwrap();
        assert_eq!(receiver.recv().unwrap(), 5);
    });
}

// ---------------------------------------------------------------------------- what does not compile

/// Nothing that is not `Send`, and nothing borrowed, crosses to another thread, in or out.
#[test]
fn what_must_stay_on_its_thread_does_not_compile() {
    limit(HEAVY + HEAVY, || {
        let program = |body: &str| format!("use std::rc::Rc;\nfn main() {{\n{body}\n}}\n");
        let right = "let mut numbers = vec![2, 1];\nlet other = Rc::new(1);\n\
                     unsync::thread(move || numbers.sort());\n\
                     unsync::spawn_local(|| async { *Rc::new(1) });\ndrop(other);";
        let Some((compiles, said)) = compile("stay", &program(right)) else {
            return;
        };
        assert!(compiles, "{said}");
        let not_send = "cannot be sent between threads safely";
        let wrong = [
            (
                "rc_upvar",
                "let rc = Rc::new(1); unsync::thread(move || drop(rc));",
                not_send,
            ),
            ("rc_return", "unsync::thread(|| Rc::new(1));", not_send),
            (
                "rc_held",
                "unsync::spawn(async { let rc = Rc::new(1); unsync::yield_now().await; drop(rc) });",
                not_send,
            ),
            ("rc_given", "unsync::spawn(async { Rc::new(1) });", not_send),
            (
                "rc_made",
                "let rc = Rc::new(1); unsync::spawn_local(move || async move { drop(rc) });",
                not_send,
            ),
            (
                "rc_mapped",
                "unsync::spawn(async { 1 }).map(Rc::new);",
                not_send,
            ),
            (
                "quicksort_race",
                "let mut numbers = [2, 1]; let half = &mut numbers[1..]; unsync::thread(move || half.sort());",
                "does not live long enough",
            ),
            (
                "scope_join_bad",
                "let mut sum = 0; unsync::thread(|| sum += 1);",
                "may outlive",
            ),
        ];
        for (name, body, complaint) in wrong {
            let (compiles, said) = compile("stay", &program(body)).unwrap();
            assert!(!compiles, "{name} compiles: {body}");
            assert!(said.contains(complaint), "{name}: {said}");
        }
    });
}
