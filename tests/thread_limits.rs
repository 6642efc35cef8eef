//! The thread pool at its limits: the limit itself, waits under it, the way back to few threads,
//! settings that make no sense, and a system that gives no thread.
//!
//! Limits are read at first use and threads are counted by process, so every test runs in a process of
//! its own, with the variables that it needs. Tests in which the system refuses a thread, or which count
//! the system's threads, are for Linux: elsewhere std has no way to do that.

mod support;

unsync::test_worker!();

use std::cell::Cell;
#[cfg(target_os = "linux")]
use std::error::Error as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::Duration;

use support::{Counter, Drops, Gate, HEAVY, Log, QUICK, blocked, in_child};
#[cfg(target_os = "linux")]
use support::{is_pool, panic_text};
use unsync::{Error, ErrorKind, Unfuture};

unsync::unsync! {
    #[cpu]
    fn double(number: u32) -> u32 { number * 2 }
}

#[test]
fn nested_waits_a_thousand_deep_under_a_limit_of_four() {
    const DEPTH: u32 = 1000;
    type Down = fn(u32) -> Unfuture<u32>;
    fn by_result(from: u32) -> Unfuture<u32> {
        unsync::thread(move || match from {
            0 => 0,
            _ => by_result(from - 1).result().unwrap() + 1,
        })
    }
    fn by_wait(from: u32) -> Unfuture<u32> {
        unsync::thread(move || {
            if from == 0 {
                return 0;
            }
            let inner = by_wait(from - 1);
            match from % 2 {
                0 => inner.wait(),
                _ => assert!(inner.wait_timeout(Duration::MAX)),
            }
            inner.result().unwrap() + 1
        })
    }
    fn by_block_on(from: u32) -> Unfuture<u32> {
        unsync::thread(move || match from {
            0 => 0,
            _ => unsync::block_on(by_block_on(from - 1)).unwrap() + 1,
        })
    }
    fn by_a_task(from: u32) -> Unfuture<u32> {
        unsync::thread(move || match from {
            0 => 0,
            _ => {
                let task = unsync::spawn(async move { by_a_task(from - 1).await.unwrap() + 1 });
                task.result().unwrap()
            }
        })
    }
    in_child(
        "nested_waits_a_thousand_deep_under_a_limit_of_four",
        HEAVY,
        &[("UNSYNC_THREADS", "4")],
        || {
            let ways: [Down; 4] = [by_result, by_wait, by_block_on, by_a_task];
            for way in ways {
                assert_eq!(way(DEPTH).result().unwrap(), DEPTH);
            }
        },
    );
}

/// A tree of waits: many jobs of each level wait at once.
#[test]
fn nested_waits_many_wide_under_a_limit_of_two() {
    fn leaves(depth: u32) -> u32 {
        if depth == 0 {
            return 1;
        }
        let inner = [(); 3].map(|()| unsync::thread(move || leaves(depth - 1)));
        inner.into_iter().map(|inner| inner.result().unwrap()).sum()
    }
    in_child(
        "nested_waits_many_wide_under_a_limit_of_two",
        HEAVY,
        &[("UNSYNC_THREADS", "2")],
        || assert_eq!(leaves(6), 3u32.pow(6)),
    );
}

#[test]
fn never_more_than_the_limit_runs_at_once() {
    in_child(
        "never_more_than_the_limit_runs_at_once",
        HEAVY,
        &[("UNSYNC_THREADS", "4")],
        || {
            let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            // Four jobs do run at once: each waits for three others.
            let meeting = Arc::new(Barrier::new(4));
            let jobs = Vec::from_iter((0..400).map(|_| {
                let (running, most) = (Arc::clone(&running), Arc::clone(&most));
                let meeting = Arc::clone(&meeting);
                unsync::thread(move || {
                    let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now, Ordering::SeqCst);
                    meeting.wait();
                    running.fetch_sub(1, Ordering::SeqCst);
                })
            }));
            unsync::join_all(jobs).result().unwrap();
            assert_eq!(most.load(Ordering::SeqCst), 4);
        },
    );
}

/// A job at the limit is neither started nor lost.
#[test]
fn a_job_at_the_limit_waits_for_one_to_end() {
    in_child(
        "a_job_at_the_limit_waits_for_one_to_end",
        HEAVY,
        &[("UNSYNC_THREADS", "4")],
        || {
            let (started, gates) = (Counter::new(), [(); 4].map(|()| Gate::new()));
            let four = gates.clone().map(|gate| {
                let started = started.clone();
                unsync::thread(move || {
                    started.add();
                    gate.wait();
                })
            });
            started.wait_for(4);
            let fifth = unsync::thread({
                let started = started.clone();
                move || started.add()
            });
            assert!(!fifth.wait_timeout(Duration::from_millis(50)));
            assert_eq!(started.count(), 4);
            gates[2].open();
            assert_eq!(fifth.result().unwrap(), 5);
            gates.iter().for_each(Gate::open);
            four.into_iter().for_each(|job| job.result().unwrap());
        },
    );
}

/// A thread that stood in for one that waited does not run jobs beside it afterwards.
#[test]
fn waits_that_are_over_leave_the_limit_as_it_was() {
    in_child(
        "waits_that_are_over_leave_the_limit_as_it_was",
        HEAVY,
        &[("UNSYNC_THREADS", "2")],
        || {
            fn descend(levels: u32) {
                if levels > 0 {
                    unsync::thread(move || descend(levels - 1))
                        .result()
                        .unwrap();
                }
            }
            descend(10);
            let (started, gate) = (Counter::new(), Gate::new());
            let jobs = Vec::from_iter((0..6).map(|_| {
                let (started, gate) = (started.clone(), gate.clone());
                unsync::thread(move || {
                    started.add();
                    gate.wait();
                })
            }));
            started.wait_for(2);
            assert!(!jobs[2].wait_timeout(Duration::from_millis(50)));
            assert_eq!(started.count(), 2);
            gate.open();
            unsync::join_all(jobs).result().unwrap();
        },
    );
}

/// A thread that is one too many leaves the queue as it is, however long.
#[test]
fn a_thread_too_many_leaves_a_long_queue_alone() {
    const NAME: &str = "a_thread_too_many_leaves_a_long_queue_alone";
    in_child(NAME, HEAVY, &[("UNSYNC_THREADS", "1")], || {
        let (promise, awaited) = unsync::promise::<()>();
        let waits = unsync::thread(move || awaited.result().unwrap());
        // This one begins when the first blocks.
        let (release, stands_in) = blocked(unsync::thread);
        let jobs = Vec::from_iter((0..5_000).map(|n| unsync::thread(move || n)));
        promise.set(());
        waits.result().unwrap();
        release.open();
        stands_in.result().unwrap();
        for (n, job) in jobs.into_iter().enumerate() {
            assert!(job.wait_timeout(QUICK), "job {n} was lost");
            assert_eq!(job.result().unwrap(), n);
        }
    });
}

/// A shutdown refuses what is queued: no more of it begins.
#[test]
fn a_shutdown_lets_no_queued_job_begin() {
    const NAME: &str = "a_shutdown_lets_no_queued_job_begin";
    in_child(NAME, HEAVY, &[], || {
        thread_local! {
            static LATE: Cell<usize> = const { Cell::new(0) };
        }
        static MOST: AtomicUsize = AtomicUsize::new(0);
        let job = || {
            let late = LATE.get() + usize::from(unsync::is_cancelled());
            LATE.set(late);
            MOST.fetch_max(late, Ordering::Relaxed);
            while !unsync::is_cancelled() {
                std::thread::yield_now();
            }
        };
        // More than there can be threads.
        let jobs = Vec::from_iter((0..5_000).map(|_| unsync::thread(job)));
        let _ = unsync::shutdown(Duration::ZERO);
        let refused = jobs.into_iter().filter_map(|job| job.result().err());
        assert!(refused.count() > 4_000);
        // A thread may just have taken a job.
        let most = MOST.load(Ordering::Relaxed);
        assert!(most <= 1, "a thread began {most} jobs in the shutdown");
    });
}

#[test]
fn a_cancellation_during_the_shutdown_loses_no_other_job() {
    const NAME: &str = "a_cancellation_during_the_shutdown_loses_no_other_job";
    in_child(NAME, HEAVY, &[("UNSYNC_THREADS", "1")], || {
        let (sender, receiver) = mpsc::channel::<Unfuture<()>>();
        let begun = Gate::new();
        let running = unsync::thread({
            let begun = begun.clone();
            move || {
                begun.open();
                let child = receiver.recv().unwrap();
                while !unsync::is_cancelled() {
                    std::hint::spin_loop();
                }
                child.cancel()
            }
        });
        begun.wait();
        let [first, child, kept] = [(); 3].map(|()| unsync::thread(|| ()));
        assert!(first.cancel());
        sender.send(child).unwrap();
        // Everything has ended, or the shutdown still waits for the running job.
        let _ = unsync::shutdown(Duration::from_millis(400));
        running.result().unwrap();
        assert!(kept.wait_timeout(QUICK), "it was lost");
        assert_eq!(kept.result().unwrap_err().kind(), ErrorKind::ShutDown);
    });
}

#[test]
fn one_thread_runs_jobs_in_their_order() {
    in_child(
        "one_thread_runs_jobs_in_their_order",
        HEAVY,
        &[("UNSYNC_THREADS", "1")],
        || {
            let log = Log::new();
            let jobs = Vec::from_iter((0..500).map(|number| {
                let log = log.clone();
                unsync::thread(move || {
                    log.push((number, std::thread::current().id()));
                })
            }));
            unsync::join_all(jobs).result().unwrap();
            let (order, mut threads): (Vec<i32>, Vec<_>) = log.entries().into_iter().unzip();
            assert_eq!(order, Vec::from_iter(0..500));
            threads.dedup();
            assert_eq!(threads.len(), 1);
            // And waits of a job for a job still end.
            let nested = unsync::thread(|| unsync::thread(|| 5).result());
            assert_eq!(nested.flatten().result().unwrap(), 5);
        },
    );
}

#[test]
fn five_hundred_and_twelve_jobs_run_at_once_by_default() {
    in_child(
        "five_hundred_and_twelve_jobs_run_at_once_by_default",
        HEAVY,
        &[],
        || {
            const LIMIT: usize = 512;
            let (meeting, gate) = (Arc::new(Barrier::new(LIMIT)), Gate::new());
            let jobs = Vec::from_iter((0..LIMIT).map(|_| {
                let (meeting, gate) = (Arc::clone(&meeting), gate.clone());
                unsync::thread(move || {
                    meeting.wait();
                    gate.wait();
                })
            }));
            let more = unsync::thread(|| ());
            assert!(!more.wait_timeout(Duration::from_millis(50)));
            gate.open();
            more.result().unwrap();
            unsync::join_all(jobs).result().unwrap();
        },
    );
}

/// The current number of pool threads.
#[cfg(target_os = "linux")]
fn pool_threads() -> usize {
    let names = support::thread_names();
    names.iter().filter(|name| is_pool(name)).count()
}

#[cfg(target_os = "linux")]
#[test]
fn idle_threads_retire() {
    in_child("idle_threads_retire", HEAVY, &[], || {
        const JOBS: usize = 100;
        for _ in 0..2 {
            let meeting = Arc::new(Barrier::new(JOBS + 1));
            let jobs = Vec::from_iter((0..JOBS).map(|_| {
                let meeting = Arc::clone(&meeting);
                unsync::thread(move || {
                    meeting.wait();
                })
            }));
            support::eventually(HEAVY, "a thread for each job", || {
                (pool_threads() >= JOBS, pool_threads())
            });
            meeting.wait();
            unsync::join_all(jobs).result().unwrap();
            // They stay for a while: they retire after ten seconds without work.
            assert!(pool_threads() >= JOBS, "{}", pool_threads());
            support::eventually(Duration::from_secs(30), "all idle threads retired", || {
                (pool_threads() == 0, support::thread_names())
            });
        }
        // An empty pool is a working pool.
        assert_eq!(unsync::thread(|| 5).result().unwrap(), 5);
    });
}

/// The thread that watches the pool is one of those that the limit counts, and runs a job when all others do.
#[cfg(target_os = "linux")]
#[test]
fn the_thread_that_watches_the_pool_is_within_the_limit() {
    const NAME: &str = "the_thread_that_watches_the_pool_is_within_the_limit";
    in_child(NAME, HEAVY, &[], || {
        let jobs = std::thread::available_parallelism().unwrap().get() + 3;
        unsync::Config::new().threads(jobs).install().unwrap();
        let meeting = Arc::new(Barrier::new(jobs + 1));
        let works = Vec::from_iter((0..jobs).map(|_| {
            let meeting = Arc::clone(&meeting);
            unsync::thread(move || {
                meeting.wait();
            })
        }));
        support::eventually(HEAVY, "all jobs run", || {
            let stats = unsync::stats();
            (stats.jobs_running == jobs, stats)
        });
        assert_eq!((unsync::stats().threads, pool_threads()), (jobs, jobs));
        meeting.wait();
        unsync::join_all(works).result().unwrap();
    });
}

#[cfg(target_os = "linux")]
#[test]
fn trivial_jobs_do_not_grow_the_pool() {
    in_child("trivial_jobs_do_not_grow_the_pool", HEAVY, &[], || {
        let mut most = 0;
        for _ in 0..20 {
            let jobs = (0..10_000).map(|number| unsync::thread(move || number));
            for (number, job) in Vec::from_iter(jobs).into_iter().enumerate() {
                assert_eq!(job.result().unwrap(), number);
            }
            most = most.max(pool_threads());
        }
        // A few for the moments when the machine is busy; growth for every job would reach all of the
        // five hundred and twelve.
        assert!(most < 128, "{most} threads");
    });
}

// ---------------------------------------------------------------------------------------- settings

const NONSENSE: [&str; 7] = ["0", "-1", "abc", " ", "4.5", "0x10", "99999999999999999999"];

#[test]
fn a_number_of_threads_that_makes_no_sense_is_refused() {
    for value in NONSENSE {
        in_child(
            "a_number_of_threads_that_makes_no_sense_is_refused",
            HEAVY,
            &[("UNSYNC_THREADS", value)],
            move || {
                let drops = Drops::new();
                let token = drops.token();
                let refused = unsync::thread(move || drop(token));
                assert!(refused.is_done());
                assert_names(&refused.result().unwrap_err(), "UNSYNC_THREADS", value);
                assert_eq!(drops.count(), 1, "the closure is dropped");
                let mapped = Unfuture::ready(1).map_thread(|one| one);
                assert_names(&mapped.result().unwrap_err(), "UNSYNC_THREADS", value);
                // Work that needs no pool thread is not affected.
                assert_eq!(unsync::spawn(async { 1 }).result().unwrap(), 1);
            },
        );
    }
}

#[test]
fn a_number_of_processes_that_makes_no_sense_is_refused() {
    for value in NONSENSE {
        in_child(
            "a_number_of_processes_that_makes_no_sense_is_refused",
            HEAVY,
            &[("UNSYNC_PROCESSES", value)],
            move || {
                let refused = double(1);
                assert!(refused.is_done());
                assert_names(&refused.result().unwrap_err(), "UNSYNC_PROCESSES", value);
                assert_eq!(unsync::spawn(async { 1 }).result().unwrap(), 1);
            },
        );
    }
}

#[track_caller]
fn assert_names(error: &Error, variable: &str, value: &str) {
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::NotInitialised, "{text}");
    let quoted = format!("{value:?}");
    assert!(text.contains(variable) && text.contains(&quoted), "{text}");
    assert!(
        text.contains("(started at tests/thread_limits.rs:"),
        "{text}"
    );
}

#[test]
fn numbers_that_make_sense_are_taken() {
    for value in ["1", " 3 ", "1000"] {
        let variables = [("UNSYNC_THREADS", value), ("UNSYNC_PROCESSES", value)];
        in_child(
            "numbers_that_make_sense_are_taken",
            HEAVY,
            &variables,
            || {
                assert_eq!(unsync::thread(|| 1).result().unwrap(), 1);
                assert_eq!(double(1).result().unwrap(), 2);
            },
        );
    }
}

// ----------------------------------------------------------------------- a system that gives no thread

/// Makes the system refuse threads to this process: there is no more room for a stack.
#[cfg(target_os = "linux")]
struct NoMoreThreads {
    /// Lifts the limit. Already running, since it could not be started later.
    lifter: std::process::Child,
    /// Threads that took the stacks that were kept for reuse.
    holders: Gate,
}

#[cfg(target_os = "linux")]
impl NoMoreThreads {
    /// `None`, with the reason printed, where that cannot be done.
    #[expect(
        clippy::zombie_processes,
        reason = "`lift` waits, and else the test is over"
    )]
    fn set() -> Option<NoMoreThreads> {
        use std::io::{BufRead, Write};
        use std::process::{Command, Stdio};
        let script = format!(
            "prlimit --pid {0} --as || exit 1; echo ready; read size; \
             prlimit --pid {0} --as=$size: && echo set; read any; \
             prlimit --pid {0} --as=unlimited: && echo lifted",
            std::process::id()
        );
        let mut lifter = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = std::io::BufReader::new(lifter.stdout.take().unwrap());
        let mut hear = |word: &str| {
            let mut line = String::new();
            while said.read_line(&mut line).unwrap() > 0 {
                if line.trim() == word {
                    return true;
                }
                line.clear();
            }
            false
        };
        if !hear("ready") {
            println!("skipped: there is no prlimit here");
            return None;
        }
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
        let kib: u64 = size
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        // Room for what is allocated meanwhile, but not for the two MiB of a stack.
        let bytes = (kib + 1024) * 1024;
        writeln!(lifter.stdin.as_mut().unwrap(), "{bytes}").unwrap();
        let set = hear("set");
        lifter.stdout = Some(said.into_inner());
        let holders = Gate::new();
        for _ in 0..100 {
            let gate = holders.clone();
            let held = std::thread::Builder::new().spawn(move || gate.wait());
            if let Err(error) = held {
                println!("from here on: {error}");
                return Some(NoMoreThreads { lifter, holders });
            }
        }
        println!("skipped: this system gives threads under any limit (set: {set})");
        None
    }

    fn lift(mut self) {
        use std::io::Read;
        // The end of its input tells it to go on.
        drop(self.lifter.stdin.take());
        let mut said = String::new();
        let stdout = self.lifter.stdout.as_mut().unwrap();
        stdout.read_to_string(&mut said).unwrap();
        assert!(self.lifter.wait().unwrap().success() && said.contains("lifted"));
        self.holders.open();
    }
}

#[cfg(target_os = "linux")]
#[track_caller]
fn assert_refused<T: std::fmt::Debug>(work: Unfuture<T>) {
    let error = work.result().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Os, "{error}");
    let source = error.source().expect("the system's own error");
    let source = source.downcast_ref::<std::io::Error>().unwrap();
    assert!(source.raw_os_error().is_some(), "{source}");
}

#[cfg(target_os = "linux")]
#[test]
fn work_that_no_thread_can_be_had_for_fails_and_later_work_runs() {
    in_child(
        "work_that_no_thread_can_be_had_for_fails_and_later_work_runs",
        HEAVY,
        &[],
        || {
            let Some(refusal) = NoMoreThreads::set() else {
                return;
            };
            let drops = Drops::new();
            for _ in 0..3 {
                let [one, two, three] = [(); 3].map(|()| drops.token());
                assert_refused(unsync::thread(move || drop(one)));
                assert_refused(unsync::spawn(async move { drop(two) }));
                assert_refused(unsync::spawn_local(move || async move { drop(three) }));
                assert_refused(double(1));
            }
            assert_eq!(drops.count(), 9, "what would have run is dropped");
            // Work that has ended needs no thread.
            let joined = unsync::join_all([Unfuture::ready(1)]).timeout(HEAVY);
            assert_eq!(unsync::race([joined]).result().unwrap(), [1]);
            let line = line!() + 1;
            let text = panic_text(|| unsync::block_on(unsync::sleep(Duration::from_secs(1))));
            assert!(
                text.starts_with("`sleep` without the ambient thread"),
                "{text}"
            );
            let place = format!("(started at {}:{line}:", file!());
            assert!(text.contains(&place) && !text.contains('{'), "{text}");
            refusal.lift();
            assert_eq!(unsync::thread(|| 1).result().unwrap(), 1);
            assert_eq!(unsync::spawn(async { 2 }).result().unwrap(), 2);
            assert_eq!(double(2).result().unwrap(), 4);
            unsync::block_on(unsync::sleep(Duration::from_millis(1)));
        },
    );
}

/// A cancelled job does not stay in the queue until its turn comes.
#[test]
fn cancelled_jobs_leave_the_queue() {
    in_child(
        "cancelled_jobs_leave_the_queue",
        HEAVY,
        &[("UNSYNC_THREADS", "1")],
        || {
            let (gate, held) = blocked(unsync::thread);
            let mut queued = Vec::from_iter((0..1000).map(|number| unsync::thread(move || number)));
            assert_eq!(unsync::stats().jobs_queued, 1000);
            let kept = Vec::from_iter((0..10).map(|at| queued.remove(at * 90)));
            for job in queued {
                assert!(job.cancel());
                assert_eq!(job.result().unwrap_err().kind(), ErrorKind::Cancelled);
            }
            let left = unsync::stats().jobs_queued;
            assert!(left <= 2 * kept.len(), "{left} are left");
            assert_eq!(unsync::tasks().len(), 1 + kept.len());
            gate.open();
            held.result().unwrap();
            let values = unsync::join_all(kept).result().unwrap();
            assert_eq!(values, Vec::from_iter((0..10).map(|at| at * 91)));
            assert!(unsync::drain(HEAVY));
            assert_eq!(unsync::stats().jobs_queued, 0);
        },
    );
}

#[cfg(target_os = "linux")]
#[test]
fn jobs_wait_for_the_threads_that_live() {
    in_child("jobs_wait_for_the_threads_that_live", HEAVY, &[], || {
        let (gate, held) = blocked(unsync::thread);
        let Some(refusal) = NoMoreThreads::set() else {
            return;
        };
        let queued = Vec::from_iter((0..10).map(|number| unsync::thread(move || number)));
        assert!(queued.iter().all(|job| !job.is_done()));
        gate.open();
        held.result().unwrap();
        for (number, job) in queued.into_iter().enumerate() {
            assert_eq!(job.result().unwrap(), number);
        }
        refusal.lift();
        // The pool can grow again.
        let meeting = Arc::new(Barrier::new(20));
        let jobs = Vec::from_iter((0..20).map(|_| {
            let meeting = Arc::clone(&meeting);
            unsync::thread(move || {
                meeting.wait();
            })
        }));
        unsync::join_all(jobs).result().unwrap();
    });
}

/// The living threads wait for a job that cannot get a thread: the job fails, so that they go on.
#[cfg(target_os = "linux")]
#[test]
fn a_job_that_blocked_threads_wait_for_fails_rather_than_hang() {
    in_child(
        "a_job_that_blocked_threads_wait_for_fails_rather_than_hang",
        HEAVY,
        &[],
        || {
            let (ready, go) = (Counter::new(), Gate::new());
            let nested = [(); 2].map(|()| {
                let (ready, go) = (ready.clone(), go.clone());
                unsync::thread(move || {
                    ready.add();
                    go.wait();
                    unsync::thread(|| 5).result()
                })
            });
            ready.wait_for(2);
            let Some(refusal) = NoMoreThreads::set() else {
                return;
            };
            go.open();
            for outer in nested {
                let inner = outer.result().unwrap();
                // One of the two may have lent its thread to the other.
                match inner {
                    Ok(value) => assert_eq!(value, 5),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Os, "{error}"),
                }
            }
            refusal.lift();
            assert_eq!(unsync::thread(|| 5).result().unwrap(), 5);
        },
    );
}

/// The destructor of a job that is refused may wait on the very thread that waited for the job.
#[cfg(target_os = "linux")]
#[test]
fn a_thread_that_waits_within_a_wait_counts_once() {
    struct OnDrop(Option<std::sync::mpsc::Sender<Result<u32, Error>>>);

    impl Drop for OnDrop {
        fn drop(&mut self) {
            let inner = unsync::spawn(async {
                unsync::sleep(Duration::from_millis(50)).await;
                unsync::thread(|| 1).await
            });
            let _ = self.0.take().unwrap().send(inner.flatten().result());
        }
    }

    in_child(
        "a_thread_that_waits_within_a_wait_counts_once",
        HEAVY,
        &[],
        || {
            unsync::spawn(async {}).result().unwrap();
            let (running, go) = (Counter::new(), Gate::new());
            let (send, dropped) = std::sync::mpsc::channel();
            let outer = unsync::thread({
                let (running, go) = (running.clone(), go.clone());
                move || {
                    running.add();
                    go.wait();
                    let held = OnDrop(Some(send));
                    unsync::thread(move || drop(held)).result()
                }
            });
            running.wait_for(1);
            let Some(refusal) = NoMoreThreads::set() else {
                go.open();
                return outer.result().unwrap().unwrap();
            };
            go.open();
            let inner = dropped.recv().unwrap();
            assert_eq!(inner.unwrap_err().kind(), ErrorKind::Os);
            assert_eq!(outer.result().unwrap().unwrap_err().kind(), ErrorKind::Os);
            refusal.lift();
            assert_eq!(unsync::thread(|| 5).result().unwrap(), 5);
        },
    );
}
