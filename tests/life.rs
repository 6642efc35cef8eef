//! From the first use to the last: settings, hooks, reports, draining, shutting down, and ending
//! without any of these.
//!
//! Settings and the shutdown apply to the whole process, so every test has a process of its own, and some
//! have one for each case.
//!
//! Left out, because it has no meaning here:
//! - a hook for the end of a thread: there is one for the start, and thread-locals have destructors;
//! - dropping a pool while its jobs run, or before they panic: there is one pool for the process;
//! - releasing those who wait for a wave of jobs before the next wave: `drain` waits for both.

mod support;

unsync::test_worker!();

use std::cell::Cell;
use std::collections::HashSet;
use std::future::{Future, pending, poll_fn};
use std::iter;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use support::{
    Bomb, Counter, Drops, Gate, HEAVY, Log, OnDrop, Place, QUICK, Token, assert_kind, blocked,
    blocked_task, children, eventually, fence, in_child, shut_down,
};
use unsync::{Config, Error, ErrorKind, Limit, Stats, Unfuture, WorkKind, WorkState};

/// A limit that does not pass in the test.
const LONG: Duration = Duration::from_secs(3600);
/// How long a busy machine may take for something that takes no time.
const SLACK: Duration = Duration::from_secs(8);
/// Long enough to see that something does not happen.
const WHILE: Duration = Duration::from_millis(600);

const CASE: &str = "UNSYNC_TEST_CASE";

/// Runs the body once for each case, each time in a process of its own.
fn in_children(name: &str, cases: &[&str], variables: &[(&str, &str)], body: fn(&str)) {
    for &case in cases {
        let variables = Vec::from_iter(variables.iter().copied().chain([(CASE, case)]));
        let case = case.to_owned();
        in_child(name, HEAVY, &variables, move || body(&case));
    }
}

fn double(n: u64) -> u64 {
    n * 2
}

fn sleep_for(millis: u64) {
    thread::sleep(Duration::from_millis(millis));
}

unsync::register!(double, sleep_for);

/// The names of the library's own threads, where the system lists them.
fn threads(prefix: &str) -> Vec<String> {
    #[cfg(target_os = "linux")]
    let names = support::thread_names();
    #[cfg(not(target_os = "linux"))]
    let names = Vec::<String>::new();
    let ours = names.into_iter().filter(|name| name.starts_with(prefix));
    ours.collect()
}

// --------------------------------------------------------------------------------------- settings

mod settings {
    use super::*;

    #[test]
    fn come_before_the_first_use_or_are_refused() {
        const NAME: &str = "settings::come_before_the_first_use_or_are_refused";
        let uses = ["install", "spawn", "spawn_now", "sleep", "thread", "cpu"];
        in_children(NAME, &uses, &[], |case| {
            match case {
                "install" => Config::new().install().unwrap(),
                "spawn" => unsync::spawn(async {}).result().unwrap(),
                "spawn_now" => unsync::spawn_now(unsync::yield_now()).result().unwrap(),
                "sleep" => unsync::block_on(unsync::sleep(Duration::from_millis(1))),
                "thread" => unsync::thread(|| ()).result().unwrap(),
                "cpu" => assert_eq!(unsync::cpu(double, (2,)).result().unwrap(), 4),
                _ => unreachable!(),
            }
            let refused = Config::new().threads(3).install().unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::NotInitialised);
            assert!(
                refused.to_string().contains("in force already"),
                "{refused}"
            );
            // And the refusal does no harm.
            assert_eq!(unsync::thread(|| 1).result().unwrap(), 1);
        });
    }

    /// Calls that start no work do not fix the settings.
    #[test]
    fn may_come_after_what_is_no_use() {
        const NAME: &str = "settings::may_come_after_what_is_no_use";
        in_child(NAME, HEAVY, &[], || {
            unsync::init();
            let (promise, awaited) = unsync::promise();
            promise.set(1);
            assert_eq!(unsync::block_on(awaited).unwrap(), 1);
            assert!(!unsync::is_cancelled() && !unsync::is_worker());
            Config::new().install().unwrap();
        });
    }

    #[test]
    fn that_make_no_sense_are_refused_by_name() {
        const NAME: &str = "settings::that_make_no_sense_are_refused_by_name";
        in_child(NAME, HEAVY, &[], || {
            let zero = Duration::ZERO;
            let nonsense = [
                ("threads", Config::new().threads(0)),
                ("threads", Config::new().threads(usize::MAX)),
                ("processes", Config::new().processes(0)),
                ("processes", Config::new().processes(usize::MAX)),
                ("stack_size", Config::new().stack_size(0)),
                ("stack_size", Config::new().stack_size(usize::MAX)),
                ("calls_per_worker", Config::new().calls_per_worker(0)),
                ("memory_per_worker", Config::new().memory_per_worker(0)),
                ("frame_bytes_max", Config::new().frame_bytes_max(0)),
                ("start_timeout", Config::new().start_timeout(zero)),
                ("stall", Config::new().stall(zero)),
                ("spin", Config::new().spin(Duration::from_millis(2))),
                ("thread_name", Config::new().thread_name("a\0b")),
            ];
            for (name, config) in nonsense {
                let refused = config.install().expect_err(name);
                assert_eq!(refused.kind(), ErrorKind::NotInitialised, "{name}");
                assert!(refused.to_string().contains(name), "{name}: {refused}");
            }
            // A refusal does not fix the settings: later ones can still be installed.
            Config::new().threads(1).install().unwrap();
            assert_eq!(unsync::thread(|| 1).result().unwrap(), 1);
        });
    }

    /// An endless time is a valid setting.
    #[test]
    fn may_be_as_long_as_time() {
        const NAME: &str = "settings::may_be_as_long_as_time";
        let cases = ["keep_alive", "start_timeout", "cancel_grace", "stall"];
        in_children(NAME, &cases, &[], |case| {
            let config = Config::new().threads(2).processes(1);
            let config = match case {
                "keep_alive" => config.keep_alive(Duration::MAX),
                "start_timeout" => config.start_timeout(Duration::MAX),
                "cancel_grace" => config.cancel_grace(Duration::MAX),
                "stall" => config.stall(Duration::MAX),
                _ => unreachable!(),
            };
            config.install().unwrap();
            for round in 0..20 {
                assert_eq!(unsync::spawn(async move { round }).result().unwrap(), round);
                assert_eq!(unsync::thread(move || round).result().unwrap(), round);
                assert_eq!(unsync::cpu(double, (round,)).result().unwrap(), round * 2);
                // This lets the threads go to sleep now and then.
                thread::sleep(Duration::from_millis(round % 4));
            }
            unsync::shutdown(QUICK).unwrap();
        });
    }

    /// Checks that this many jobs run at once, of a few more.
    fn assert_at_once(expected: usize) {
        let (running, release) = (Counter::new(), Gate::new());
        let works = Vec::from_iter((0..expected + 3).map(|_| {
            let (running, release) = (running.clone(), release.clone());
            unsync::thread(move || {
                running.add();
                release.wait();
            })
        }));
        running.wait_for(expected);
        // There is no event for something that does not happen.
        thread::sleep(WHILE);
        assert_eq!(running.count(), expected);
        release.open();
        works.into_iter().for_each(|work| work.result().unwrap());
    }

    #[test]
    fn code_goes_before_the_environment_and_that_before_the_default() {
        const NAME: &str = "settings::code_goes_before_the_environment_and_that_before_the_default";
        in_children(
            NAME,
            &["code", "environment"],
            &[("UNSYNC_THREADS", " 3 ")],
            |case| {
                if case == "code" {
                    Config::new().threads(2).install().unwrap();
                    assert_at_once(2);
                } else {
                    Config::new().install().unwrap();
                    assert_at_once(3);
                }
            },
        );
    }

    #[test]
    fn the_default_is_far_above_the_cores() {
        const NAME: &str = "settings::the_default_is_far_above_the_cores";
        in_child(NAME, HEAVY, &[], || assert_at_once(512));
    }

    #[test]
    fn nonsense_in_the_environment_is_an_error_and_no_hang() {
        const NAME: &str = "settings::nonsense_in_the_environment_is_an_error_and_no_hang";
        for (variable, value) in [
            ("UNSYNC_THREADS", "0"),
            ("UNSYNC_THREADS", "-1"),
            ("UNSYNC_THREADS", "many"),
            ("UNSYNC_THREADS", " "),
            ("UNSYNC_THREADS", "99999999999999999999"),
            ("UNSYNC_PROCESSES", "0"),
            ("UNSYNC_PROCESSES", "1.5"),
            ("UNSYNC_DEBUG", "yes"),
            ("UNSYNC_LINK", "pigeon"),
        ] {
            in_child(NAME, HEAVY, &[(variable, value)], move || {
                let job = unsync::thread(|| ()).result().unwrap_err();
                let call = unsync::cpu(double, (1,)).result().unwrap_err();
                let refused = Config::new().install().unwrap_err();
                for error in [job, call, refused] {
                    assert_eq!(error.kind(), ErrorKind::NotInitialised, "{error}");
                    assert!(error.to_string().contains(variable), "{error}");
                }
            });
        }
    }

    /// A compose file or a systemd unit may pass on an unset variable as an empty one.
    #[test]
    fn an_empty_variable_is_an_unset_one() {
        const NAME: &str = "settings::an_empty_variable_is_an_unset_one";
        for variable in [
            "UNSYNC_THREADS",
            "UNSYNC_PROCESSES",
            "UNSYNC_DEBUG",
            "UNSYNC_LINK",
        ] {
            in_child(NAME, HEAVY, &[(variable, "")], || {
                assert_eq!(unsync::thread(|| 1).result().unwrap(), 1);
                assert_eq!(unsync::cpu(double, (1,)).result().unwrap(), 2);
                let late = Config::new().install().unwrap_err();
                assert!(late.to_string().contains("in force already"), "{late}");
            });
        }
    }

    #[test]
    fn what_code_sets_is_not_looked_up() {
        const NAME: &str = "settings::what_code_sets_is_not_looked_up";
        in_child(NAME, HEAVY, &[("UNSYNC_THREADS", "none")], || {
            Config::new().threads(2).install().unwrap();
            assert_eq!(unsync::thread(|| 1).result().unwrap(), 1);
        });
    }

    #[test]
    fn thread_name_is_seen_by_the_system() {
        const NAME: &str = "settings::thread_name_is_seen_by_the_system";
        in_child(NAME, HEAVY, &[], || {
            let config = Config::new().thread_name("mine").stall(LONG);
            config.install().unwrap();
            let name = || thread::current().name().unwrap_or_default().to_owned();
            assert_eq!(
                unsync::spawn(async move { name() }).result().unwrap(),
                "mine-ambient"
            );
            let pool = unsync::thread(name).result().unwrap();
            assert!(pool.starts_with("mine-"), "{pool}");
            if cfg!(target_os = "linux") {
                let seen = threads("mine-");
                assert!(seen.contains(&pool) && seen.contains(&"mine-ambient".into()));
                assert!(threads("unsync").is_empty(), "{:?}", threads("unsync"));
            }
        });
    }

    /// Uses at least a KiB of stack for each level.
    #[inline(never)]
    fn descend(levels: usize) -> usize {
        let frame = std::hint::black_box([levels as u8; 1024]);
        match levels {
            0 => 0,
            _ => descend(levels - 1) + 1 + usize::from(frame[levels % 1024] != levels as u8),
        }
    }

    #[test]
    fn stack_size_is_that_of_every_thread() {
        const NAME: &str = "settings::stack_size_is_that_of_every_thread";
        in_child(NAME, HEAVY, &[], || {
            const LEVELS: usize = 16 << 10;
            Config::new().stack_size(64 << 20).install().unwrap();
            assert_eq!(unsync::thread(|| descend(LEVELS)).result().unwrap(), LEVELS);
            let task = unsync::spawn(async { descend(LEVELS) });
            assert_eq!(task.result().unwrap(), LEVELS);
        });
    }
}

// ------------------------------------------------------------------------------------------ hooks

mod hooks {
    use super::*;

    #[test]
    fn on_thread_start_runs_once_on_each_thread_and_first() {
        const NAME: &str = "hooks::on_thread_start_runs_once_on_each_thread_and_first";
        in_children(NAME, &["quiet", "panics"], &[], |case| {
            thread_local! {
                static STARTED: Cell<u32> = const { Cell::new(0) };
            }
            const JOBS: usize = 8;
            let (log, panics) = (Log::new(), case == "panics");
            let config = Config::new().threads(JOBS).on_thread_start({
                let log = log.clone();
                move || {
                    STARTED.set(STARTED.get() + 1);
                    log.push(thread::current().id());
                    assert!(!panics, "in the hook");
                }
            });
            config.install().unwrap();
            let together = Arc::new(Barrier::new(JOBS));
            let jobs = (0..JOBS).map(|_| {
                let together = Arc::clone(&together);
                unsync::thread(move || {
                    together.wait();
                    (thread::current().id(), STARTED.get())
                })
            });
            let mut seen = Vec::from_iter(Vec::from_iter(jobs).into_iter().map(Unfuture::result));
            seen.push(unsync::spawn(async { (thread::current().id(), STARTED.get()) }).result());
            let ids = log.entries();
            assert_eq!(
                ids.len(),
                HashSet::<_>::from_iter(&ids).len(),
                "once on each"
            );
            for outcome in seen {
                let (id, started) = outcome.unwrap();
                assert!(ids.contains(&id) && started == 1);
            }
        });
    }

    /// The hook is part of the thread: if it waits for a job, the job runs, whatever the limit.
    #[test]
    fn on_thread_start_may_wait_for_a_job() {
        const NAME: &str = "hooks::on_thread_start_may_wait_for_a_job";
        in_child(NAME, HEAVY, &[], || {
            let (waited, log) = (AtomicBool::new(false), Log::new());
            let config = Config::new().threads(1).on_thread_start({
                let log = log.clone();
                move || {
                    if !waited.swap(true, Ordering::SeqCst) {
                        log.push(unsync::thread(|| 1).result().unwrap());
                    }
                }
            });
            config.install().unwrap();
            let job = unsync::thread(|| 2);
            assert!(job.wait_timeout(SLACK), "it hangs");
            assert_eq!(job.result().unwrap(), 2);
            eventually(QUICK, "the hook has had its job", || {
                (log.entries() == [1], log.entries())
            });
        });
    }

    #[test]
    fn around_poll_runs_around_every_poll() {
        const NAME: &str = "hooks::around_poll_runs_around_every_poll";
        in_child(NAME, HEAVY, &[], || {
            thread_local! {
                static INSIDE: Cell<bool> = const { Cell::new(false) };
            }
            let rounds = Counter::new();
            let config = Config::new().around_poll({
                let rounds = rounds.clone();
                move |poll| {
                    rounds.add();
                    INSIDE.set(true);
                    poll();
                    INSIDE.set(false);
                }
            });
            config.install().unwrap();
            let left = Arc::new(AtomicBool::new(false));
            let task = |left: Arc<AtomicBool>| async move {
                let _inside = OnDrop(move || left.store(INSIDE.get(), Ordering::SeqCst));
                let mut seen = vec![INSIDE.get()];
                for _ in 0..9 {
                    unsync::yield_now().await;
                    seen.push(INSIDE.get());
                }
                seen
            };
            let inside = unsync::spawn(task(Arc::clone(&left))).result().unwrap();
            assert_eq!(inside, [true; 10]);
            assert!(left.load(Ordering::SeqCst), "the destructor, too");
            assert_eq!(rounds.count(), 10);
            let local = unsync::spawn_local({
                let left = Arc::clone(&left);
                move || task(left)
            });
            assert_eq!(local.result().unwrap(), [true; 10]);
            assert!(!INSIDE.get(), "the hook is of the ambient thread");
        });
    }

    /// Whatever the hook does, each round polls the task once, and the task comes to its end.
    #[test]
    fn around_poll_may_misbehave() {
        const NAME: &str = "hooks::around_poll_may_misbehave";
        let cases = ["twice", "never", "panics before", "panics after"];
        in_children(NAME, &cases, &[], |case| {
            let rounds = AtomicUsize::new(0);
            let wrong = case.to_owned();
            let config = Config::new().around_poll(move |poll| {
                if rounds.fetch_add(1, Ordering::SeqCst) % 2 == 1 {
                    return poll();
                }
                match wrong.as_str() {
                    "twice" => {
                        poll();
                        poll();
                    }
                    "never" => {}
                    "panics before" => panic!("in the hook"),
                    _ => {
                        poll();
                        panic!("in the hook");
                    }
                }
            });
            config.install().unwrap();
            for _ in 0..10 {
                let polls = Counter::new();
                let task = unsync::spawn({
                    let polls = polls.clone();
                    poll_fn(move |cx| match polls.add() {
                        3 => Poll::Ready(()),
                        _ => {
                            cx.waker().wake_by_ref();
                            Poll::Pending
                        }
                    })
                });
                assert!(task.wait_timeout(SLACK), "{case}: a task hangs");
                task.result().unwrap();
                fence();
                assert_eq!(polls.count(), 3, "{case}");
            }
        });
    }

    /// Installs a hook that records what it is told.
    fn note_unobserved(also_panics: bool) -> Log<String> {
        let log = Log::new();
        let config = Config::new().on_unobserved({
            let log = log.clone();
            move |error| {
                log.push(error.to_string());
                assert!(!also_panics, "in the hook");
            }
        });
        config.install().unwrap();
        log
    }

    fn fail(text: &str) {
        panic!("{text}");
    }

    #[test]
    fn on_unobserved_hears_once_of_every_failure_that_nobody_looked_at() {
        const NAME: &str = "hooks::on_unobserved_hears_once_of_every_failure_that_nobody_looked_at";
        in_children(NAME, &["quiet", "panics"], &[], |case| {
            let log = note_unobserved(case == "panics");
            let expect = |text: &str| {
                unsync::drain(QUICK);
                let heard = log.entries();
                let times = heard.iter().filter(|heard| heard.contains(text)).count();
                assert_eq!(times, 1, "{text}: {heard:?}");
            };
            drop(unsync::spawn(async { fail("first") }));
            expect("first");
            let done = unsync::spawn(async { fail("second") });
            done.wait();
            drop(done);
            expect("second");
            drop(unsync::thread(|| fail("third")));
            expect("third");
            drop(
                unsync::spawn(async { fail("fourth") })
                    .map(|()| ())
                    .map(|()| ()),
            );
            expect("fourth");
            drop(unsync::spawn(pending::<()>()).timeout(Duration::from_millis(1)));
            expect("longer than its limit");
            // Before it runs, the job would be taken out of the queue.
            let (release, job) = blocked(|block| {
                unsync::thread(move || {
                    block();
                    fail("after its deadline");
                })
            });
            let error = job.timeout(Duration::from_millis(1)).result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            release.open();
            expect("after its deadline");
            drop(unsync::promise::<()>());
            expect("dropped unfulfilled");
            drop(unsync::spawn(async { fail("sixth") }).cancel_on_drop());
            drop(unsync::spawn_local(|| async { fail("seventh") }));
            expect("seventh");
            assert_eq!(unsync::spawn(async { 1 }).result().unwrap(), 1);
        });
    }

    /// A thread-local that is older than those of this library outlives them.
    /// No stack is that large, so the system refuses the ambient thread, and the callback runs here.
    #[test]
    fn on_unobserved_hears_of_a_panic_without_the_ambient_thread() {
        const NAME: &str = "hooks::on_unobserved_hears_of_a_panic_without_the_ambient_thread";
        in_child(NAME, HEAVY, &[], || {
            let log = Log::new();
            let hears = log.clone();
            let config = Config::new().stack_size(1 << 60);
            let config = config.on_unobserved(move |error| hears.push(error.kind()));
            config.install().unwrap();
            Unfuture::ready(1).on_done(|_| panic!("heard"));
            assert_eq!(log.entries(), [ErrorKind::Panicked]);
        });
    }

    #[test]
    fn a_thread_local_may_ask_in_its_destructor() {
        const NAME: &str = "hooks::a_thread_local_may_ask_in_its_destructor";
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        struct Asks;
        impl Drop for Asks {
            fn drop(&mut self) {
                let waited = unsync::Unfuture::ready(1).result();
                if !unsync::is_cancelled() && waited.is_ok() {
                    ASKED.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
        thread_local! {
            static EARLY: Asks = const { Asks };
        }
        in_child(NAME, HEAVY, &[], || {
            let config = Config::new().keep_alive(Duration::from_millis(1));
            let config = config.on_thread_start(|| EARLY.with(|_| ()));
            config.install().unwrap();
            unsync::thread(|| ()).result().unwrap();
            let pinned = unsync::Pinned::new(|| ());
            pinned.call(|()| ()).result().unwrap();
            drop(pinned);
            eventually(QUICK, "two threads have ended", || {
                let asked = ASKED.load(Ordering::SeqCst);
                (asked >= 2, asked)
            });
        });
    }

    #[test]
    fn on_unobserved_does_not_hear_of_what_somebody_looked_at_or_wanted() {
        const NAME: &str =
            "hooks::on_unobserved_does_not_hear_of_what_somebody_looked_at_or_wanted";
        in_child(NAME, HEAVY, &[], || {
            let log = note_unobserved(false);
            drop(unsync::spawn(async { fail("seen") }).result());
            drop(unsync::block_on(unsync::thread(|| fail("seen"))));
            let then =
                unsync::spawn(async { fail("seen") }).then(async |task| task.result().is_err());
            assert!(then.result().unwrap());
            assert!(
                unsync::join_all([unsync::thread(|| fail("seen"))])
                    .result()
                    .is_err()
            );
            // Work that is cancelled, in every way.
            let task = unsync::spawn(pending::<()>());
            task.cancel();
            drop(task);
            drop(unsync::spawn(pending::<()>()).cancel_on_drop());
            let canceller = unsync::spawn(pending::<()>()).map(drop).canceller();
            canceller.cancel();
            // And values are not failures.
            drop(unsync::spawn(async { 1 }));
            drop(unsync::thread(|| 1));
            let pending = unsync::spawn(pending::<()>());
            drop(pending);
            drop(unsync::shutdown(WHILE));
            drop(unsync::spawn(async {}));
            assert_eq!(log.entries(), Vec::<String>::new());
        });
    }

    /// Refused settings leave nothing behind.
    #[test]
    fn on_unobserved_of_refused_settings_is_not_set() {
        const NAME: &str = "hooks::on_unobserved_of_refused_settings_is_not_set";
        in_child(NAME, HEAVY, &[], || {
            unsync::spawn(async {}).result().unwrap();
            let log = Log::new();
            let late = Config::new().on_unobserved({
                let log = log.clone();
                move |error| log.push(error.to_string())
            });
            assert!(late.install().is_err());
            drop(unsync::spawn(async { fail("unheard") }));
            fence();
            assert_eq!(log.entries(), Vec::<String>::new());
        });
    }
}

// ---------------------------------------------------------------------- threads that read results

/// Results are decoded, and some hooks called, on the threads that read from worker processes. All
/// calls depend on those threads, so waiting there is refused, as it is on the ambient thread.
mod readers {
    use super::*;
    use std::mem;
    use std::panic::catch_unwind;
    use unsync::{Pinned, Wire, as_completed, block_on, cpu, promise};

    fn never() -> Unfuture<()> {
        let (promise, unfuture) = promise();
        mem::forget(promise);
        unfuture
    }

    fn nap() {
        thread::sleep(WHILE);
    }

    /// Waits for something that does not come in time; returns the error that it got instead.
    type Wait = fn() -> Option<Error>;

    const WAITS: [(&str, Wait); 13] = [
        ("result", || never().result().err()),
        ("result of a call", || cpu(sleep_for, (600,)).result().err()),
        ("result of a job", || unsync::thread(nap).result().err()),
        ("result of a task", || {
            unsync::spawn(unsync::sleep(WHILE)).result().err()
        }),
        ("result of a pinned value", || {
            Pinned::new(|| ()).call(|()| nap()).result().err()
        }),
        ("result of a Shared", || never().shared().result().err()),
        ("wait", || {
            never().wait();
            None
        }),
        ("wait_timeout", || {
            never().wait_timeout(LONG);
            None
        }),
        ("wait of a Shared", || {
            never().shared().wait();
            None
        }),
        ("block_on", || block_on(never()).err()),
        ("as_completed", || as_completed([never()]).next()?.1.err()),
        ("drain", || {
            unsync::drain(LONG);
            None
        }),
        ("shutdown", || unsync::shutdown(LONG).err()),
    ];

    /// What a caller that waits gets: an error, or a panic.
    fn refusal(wait: Wait) -> String {
        match catch_unwind(wait) {
            Ok(Some(error)) => format!("{:?}: {error}", error.kind()),
            Ok(None) => "nothing".to_owned(),
            Err(payload) => match payload.downcast::<String>() {
                Ok(text) => *text,
                Err(payload) => (*payload.downcast::<&str>().unwrap()).to_owned(),
            },
        }
    }

    #[track_caller]
    fn assert_refused(what: &str, heard: &str) {
        assert!(heard.contains("would block"), "{what}: {heard}");
        assert!(heard.contains("worker process"), "{what}: {heard}");
        if what.starts_with("result") || what == "shutdown" {
            assert!(heard.starts_with("WouldBlock: "), "{what}: {heard}");
        }
    }

    /// A value that waits in its `decode`, and catches the refusal.
    struct Heard(u8, String);

    impl Wire for Heard {
        fn encode(&self, out: &mut Vec<u8>) {
            self.0.encode(out);
        }
        fn decode(input: &mut &[u8]) -> Result<Heard, Error> {
            let number = u8::decode(input)?;
            Ok(Heard(number, refusal(WAITS[usize::from(number)].1)))
        }
    }

    fn make_heard(number: u8) -> Heard {
        Heard(number, String::new())
    }

    /// A value that waits in its `decode` and catches nothing.
    struct Insists(bool);

    impl Wire for Insists {
        fn encode(&self, out: &mut Vec<u8>) {
            self.0.encode(out);
        }
        fn decode(input: &mut &[u8]) -> Result<Insists, Error> {
            let panics = bool::decode(input)?;
            match panics {
                true => never().wait(),
                false => never().result()?,
            }
            Ok(Insists(panics))
        }
    }

    fn make_insists(panics: bool) -> Insists {
        Insists(panics)
    }

    unsync::register!(make_heard, make_insists);

    /// There are more such calls than workers: none hangs, and the pool goes on.
    #[test]
    fn a_decode_may_not_wait() {
        const NAME: &str = "readers::a_decode_may_not_wait";
        in_child(NAME, HEAVY, &[("UNSYNC_PROCESSES", "2")], || {
            let calls = Vec::from_iter((0..WAITS.len()).map(|n| cpu(make_heard, (n as u8,))));
            for ((what, _), call) in iter::zip(WAITS, calls) {
                assert!(call.wait_timeout(SLACK), "{what} hangs");
                assert_refused(what, &call.result().unwrap().1);
            }
            assert_eq!(cpu(double, (4,)).result().unwrap(), 8);
        });
    }

    /// The same where the error or the panic is passed on: it becomes the outcome of the call.
    #[test]
    fn a_decode_that_waits_fails_its_call() {
        const NAME: &str = "readers::a_decode_that_waits_fails_its_call";
        in_child(NAME, HEAVY, &[("UNSYNC_PROCESSES", "1")], || {
            let kinds = [(false, ErrorKind::WouldBlock), (true, ErrorKind::Panicked)];
            for (panics, kind) in kinds {
                let call = cpu(make_insists, (panics,));
                assert!(call.wait_timeout(SLACK), "it hangs");
                let error = call.result().map(|insists| insists.0).unwrap_err();
                let text = error.to_string();
                assert_eq!(error.kind(), kind, "{text}");
                assert!(text.contains("decoding the result of"), "{text}");
                assert!(text.contains("make_insists"), "{text}");
                assert!(text.contains("would block"), "{text}");
            }
            assert_eq!(cpu(double, (4,)).result().unwrap(), 8);
        });
    }

    /// Calls that do not block work there as anywhere.
    struct Looks(u64);

    impl Wire for Looks {
        fn encode(&self, out: &mut Vec<u8>) {
            self.0.encode(out);
        }
        fn decode(input: &mut &[u8]) -> Result<Looks, Error> {
            let number = u64::decode(input)?;
            let ready = Unfuture::ready(number).result()?;
            assert!(as_completed([Unfuture::ready(())]).next().is_some());
            let job = unsync::thread(move || number);
            drop(job.map(|number| number + 1));
            assert!(unsync::tasks().len() < 1000);
            Ok(Looks(ready))
        }
    }

    fn make_looks(number: u64) -> Looks {
        Looks(number)
    }

    unsync::register!(make_looks);

    #[test]
    fn a_decode_may_do_what_does_not_block() {
        const NAME: &str = "readers::a_decode_may_do_what_does_not_block";
        in_child(NAME, HEAVY, &[("UNSYNC_PROCESSES", "1")], || {
            for number in 0..20 {
                let looks = cpu(make_looks, (number,));
                assert!(looks.wait_timeout(SLACK), "it hangs");
                assert_eq!(looks.result().unwrap().0, number);
            }
            assert!(unsync::drain(SLACK));
        });
    }

    /// A value that nobody wants any more, and that waits when it is dropped.
    struct Clings(u8);

    impl Wire for Clings {
        fn encode(&self, out: &mut Vec<u8>) {
            self.0.encode(out);
        }
        fn decode(input: &mut &[u8]) -> Result<Clings, Error> {
            u8::decode(input).map(Clings)
        }
    }

    static CLINGING: Mutex<Vec<String>> = Mutex::new(Vec::new());

    impl Drop for Clings {
        fn drop(&mut self) {
            if !unsync::is_worker() {
                let heard = refusal(|| cpu(sleep_for, (600,)).result().err());
                CLINGING.lock().unwrap().push(heard);
                never().wait();
            }
        }
    }

    fn make_clings(number: u8) -> Clings {
        sleep_for(50);
        Clings(number)
    }

    unsync::register!(make_clings);

    #[test]
    fn a_drop_may_not_wait() {
        const NAME: &str = "readers::a_drop_may_not_wait";
        in_child(NAME, HEAVY, &[("UNSYNC_PROCESSES", "2")], || {
            for number in 0..4 {
                drop(cpu(make_clings, (number,)));
            }
            eventually(HEAVY, "all values are dropped", || {
                let dropped = CLINGING.lock().unwrap().len();
                (dropped == 4, dropped)
            });
            for heard in &*CLINGING.lock().unwrap() {
                assert_refused("result", heard);
            }
            assert!(unsync::drain(SLACK), "the calls of the destructors hang");
            assert_eq!(cpu(double, (4,)).result().unwrap(), 8);
        });
    }

    fn fail_late() {
        sleep_for(50);
        panic!("in the worker");
    }

    unsync::register!(fail_late);

    #[test]
    fn on_unobserved_may_not_wait() {
        const NAME: &str = "readers::on_unobserved_may_not_wait";
        in_child(NAME, HEAVY, &[("UNSYNC_PROCESSES", "2")], || {
            let (log, told) = (Log::new(), Counter::new());
            let config = Config::new().on_unobserved({
                let (log, told) = (log.clone(), told.clone());
                move |error| {
                    assert_eq!(error.kind(), ErrorKind::Panicked);
                    log.push(refusal(|| cpu(sleep_for, (600,)).result().err()));
                    log.push(refusal(|| unsync::thread(nap).result().err()));
                    told.add();
                }
            });
            config.install().unwrap();
            for _ in 0..4 {
                drop(cpu(fail_late, ()));
            }
            told.wait_for(4);
            for heard in log.entries() {
                assert_refused("result", &heard);
            }
            assert!(unsync::drain(SLACK), "the calls of the hook hang");
            assert_eq!(cpu(double, (4,)).result().unwrap(), 8);
        });
    }

    #[test]
    fn worker_command_may_not_wait() {
        const NAME: &str = "readers::worker_command_may_not_wait";
        in_child(NAME, HEAVY, &[("UNSYNC_PROCESSES", "1")], || {
            let log = Log::new();
            let config = Config::new().worker_command({
                let log = log.clone();
                move |executable| {
                    log.push(refusal(|| cpu(sleep_for, (600,)).result().err()));
                    std::process::Command::new(executable)
                }
            });
            config.install().unwrap();
            let call = cpu(double, (4,));
            assert!(call.wait_timeout(QUICK), "it hangs");
            assert_eq!(call.result().unwrap(), 8);
            assert_refused("result", &log.entries()[0]);
        });
    }

    /// Progress is decoded on the ambient thread, and its callback runs there.
    #[test]
    fn on_progress_may_not_wait() {
        const NAME: &str = "readers::on_progress_may_not_wait";
        in_child(NAME, HEAVY, &[("UNSYNC_PROCESSES", "1")], || {
            let (log, told) = (Log::new(), Counter::new());
            let call = cpu(say, (0,)).on_progress({
                let (log, told) = (log.clone(), told.clone());
                move |heard: Heard| {
                    log.push(heard.1);
                    log.push(refusal(|| cpu(sleep_for, (600,)).result().err()));
                    told.add();
                }
            });
            assert!(call.wait_timeout(QUICK), "it hangs");
            call.result().unwrap();
            told.wait_for(1);
            for heard in log.entries() {
                assert!(heard.starts_with("WouldBlock: "), "{heard}");
                assert!(heard.contains("ambient thread"), "{heard}");
            }
            assert_eq!(cpu(double, (4,)).result().unwrap(), 8);
        });
    }

    fn say(number: u8) {
        unsync::progress(Heard(number, String::new()));
    }

    /// More stack than std gives a thread by default, and less than a call has.
    const LARGE: usize = 2 << 20;

    /// The array is on the stack while it is decoded.
    type Large = Box<[u8; LARGE]>;

    fn make_large(item: u8) -> Large {
        vec![item; LARGE].into_boxed_slice().try_into().unwrap()
    }

    fn take_large(large: Large) -> u8 {
        large[LARGE - 1]
    }

    fn make_large_beneath(item: u8) -> (Large, u8) {
        let large = cpu(make_large, (item,)).result().unwrap();
        let last = unsync::spawn(async move { large }).map_cpu(take_large);
        (make_large(item), last.result().unwrap())
    }

    fn say_large(item: u8) {
        unsync::progress(make_large(item));
    }

    unsync::register!(say, make_large, take_large, make_large_beneath, say_large);

    #[test]
    fn large_values_are_decoded_wherever_they_arrive() {
        const NAME: &str = "readers::large_values_are_decoded_wherever_they_arrive";
        in_child(NAME, HEAVY, &[("UNSYNC_PROCESSES", "2")], || {
            let calls = [1, 2, 3].map(|item| cpu(make_large, (item,)));
            let larges = unsync::join_all(calls).result().unwrap();
            assert!(iter::zip(1.., &larges).all(|(item, large)| large[LARGE - 1] == item));
            assert_eq!(cpu(take_large, (make_large(4),)).result().unwrap(), 4);
            let (large, last) = cpu(make_large_beneath, (5,)).result().unwrap();
            assert_eq!((large[0], last), (5, 5));
            let (sender, heard) = mpsc::channel();
            let says = cpu(say_large, (6,)).on_progress(move |large: Large| {
                // The receiver may be gone; then the test has failed.
                let _ = sender.send(large[LARGE - 1]);
            });
            says.result().unwrap();
            assert_eq!(heard.recv_timeout(SLACK).unwrap(), 6);
        });
    }
}

// ---------------------------------------------------------------------------------------- reports

mod reports {
    use super::*;

    /// The line that starts the blocking task.
    const LINE: u32 = line!() + 5;

    /// In short naps: a machine that stands still eats one of them, and the watchdog sees the others.
    fn block_the_ambient_thread(naps: u32) {
        let nap = || thread::sleep(Duration::from_millis(50));
        let blocking = unsync::spawn(async move { (0..naps).for_each(|_| nap()) });
        blocking.result().unwrap();
    }

    /// On a busy machine, other tasks may be reported too.
    fn assert_reported(text: &str) {
        let place = format!("{}:{LINE}:", file!());
        let is_ours = |line: &&str| {
            line.contains("has been blocking the ambient thread") && line.contains(&place)
        };
        let reports = text.lines().filter(is_ours).count();
        assert_eq!(reports, 1, "one stall, one report for {place}: {text}");
    }

    #[test]
    fn a_stall_is_reported_with_its_line() {
        const NAME: &str = "reports::a_stall_is_reported_with_its_line";
        let output = in_child(NAME, HEAVY, &[], || {
            let config = Config::new().stall(Duration::from_millis(300));
            config.install().unwrap();
            block_the_ambient_thread(30);
            // A task that waits for a long time does not hold up anything.
            unsync::spawn(unsync::sleep(Duration::from_millis(600)))
                .result()
                .unwrap();
        });
        if let Some(output) = output {
            assert_reported(&output);
        }
    }

    #[test]
    fn debugging_reports_stalls_and_failures_and_breaks_nothing() {
        const NAME: &str = "reports::debugging_reports_stalls_and_failures_and_breaks_nothing";
        let output = in_child(NAME, HEAVY, &[("UNSYNC_DEBUG", "1")], || {
            block_the_ambient_thread(30);
            drop(unsync::thread(|| panic!("unheard-of")));
            let work = unsync::spawn(async { 4 })
                .map(|n| n + 1)
                .and_then(async |n| n + 1)
                .map_thread(|n| n + 1)
                .map_cpu(double)
                .timeout(LONG);
            assert_eq!(work.result().unwrap(), 14);
            assert!(unsync::drain(QUICK));
            unsync::shutdown(QUICK).unwrap();
        });
        if let Some(output) = output {
            assert_reported(&output);
            let told = "unsync: unobserved failure: thread job panicked: unheard-of";
            assert_eq!(output.matches(told).count(), 1, "{output}");
        }
    }

    /// A thread that holds standard error must not have to wait for a thread that reports something there.
    #[test]
    fn reports_do_not_wait_for_whoever_holds_standard_error() {
        const NAME: &str = "reports::reports_do_not_wait_for_whoever_holds_standard_error";
        let output = in_child(NAME, HEAVY, &[("UNSYNC_DEBUG", "1")], || {
            let held = std::io::stderr().lock();
            block_the_ambient_thread(30);
            drop(unsync::thread(|| panic!("unheard-of")));
            unsync::shutdown(QUICK).unwrap();
            drop(held);
        });
        if let Some(output) = output {
            assert_reported(&output);
            let told = "unsync: unobserved failure: thread job panicked: unheard-of";
            assert_eq!(output.matches(told).count(), 1, "{output}");
        }
    }

    #[test]
    fn without_debugging_nothing_is_reported() {
        const NAME: &str = "reports::without_debugging_nothing_is_reported";
        for off in ["", "0"] {
            let output = in_child(NAME, HEAVY, &[("UNSYNC_DEBUG", off)], || {
                block_the_ambient_thread(6);
                let (promise, awaited) = unsync::promise::<()>();
                drop((awaited, promise));
            });
            if let Some(output) = output {
                assert!(!output.contains("unsync: "), "{output}");
            }
        }
    }

    /// One piece of work of each kind runs, and one more waits where there is only one place.
    #[test]
    fn tasks_and_stats_tell_what_there_is() {
        const NAME: &str = "reports::tasks_and_stats_tell_what_there_is";
        let alone = [("UNSYNC_THREADS", "1"), ("UNSYNC_PROCESSES", "1")];
        in_child(NAME, HEAVY, &alone, || {
            assert_eq!(unsync::stats(), Stats::default());
            assert!(unsync::tasks().is_empty());

            let started = Instant::now();
            let line = line!();
            let task = unsync::spawn(pending::<()>());
            let (release, job) = blocked(unsync::thread);
            let queued_job = unsync::thread(|| ());
            let call = unsync::cpu(sleep_for, (LONG.as_millis() as u64,));
            let queued_call = unsync::cpu(double, (1,));

            let is_running = |kind| {
                let mut all = unsync::tasks().into_iter();
                all.any(|it| it.kind == kind && it.state == WorkState::Running)
            };
            eventually(QUICK, "both run", || {
                let both = (is_running(WorkKind::Cpu), is_running(WorkKind::Async));
                (both == (true, true), both)
            });
            let stats = unsync::stats();
            assert_eq!((stats.async_tasks, stats.threads, stats.workers), (1, 1, 1));
            assert_eq!((stats.jobs_running, stats.jobs_queued), (1, 1));
            assert_eq!(stats.calls_running + stats.calls_queued, 2, "{stats:?}");

            let tasks = unsync::tasks();
            assert_eq!(tasks.len(), 5, "{tasks:?}");
            let find = |line| {
                let mut all = tasks.iter().filter(|it| it.started_at.line() == line);
                let found = all
                    .next()
                    .unwrap_or_else(|| panic!("none of {line}: {tasks:?}"));
                assert_eq!(found.started_at.file(), file!());
                assert!(found.age.is_none_or(|age| age <= started.elapsed()));
                (found.kind, found.state, found.name.unwrap_or_default())
            };
            let (running, queued) = (WorkState::Running, WorkState::Queued);
            assert_eq!(find(line + 1), (WorkKind::Async, running, ""));
            assert_eq!(find(line + 3), (WorkKind::Thread, queued, ""));
            assert_eq!(find(line + 4), (WorkKind::Cpu, running, "sleep_for"));
            assert_eq!(find(line + 5), (WorkKind::Cpu, queued, "double"));
            let of_running = tasks.iter().filter(|it| it.state == running);
            assert!(of_running.clone().all(|it| it.age.is_some()), "{tasks:?}");
            assert_eq!(of_running.count(), 3);

            task.cancel();
            call.cancel();
            release.open();
            job.result().unwrap();
            queued_job.result().unwrap();
            assert_eq!(queued_call.result().unwrap(), 2);
            eventually(QUICK, "nothing is left", || {
                let left = unsync::tasks();
                (left.is_empty(), left)
            });
            let mut idle = Stats::default();
            (idle.threads, idle.workers) = (1, 1);
            eventually(QUICK, "all are idle", || {
                let stats = unsync::stats();
                (stats == idle, stats)
            });
        });
    }
}

// -------------------------------------------------------------------------------------- draining

mod draining {
    use super::*;

    #[test]
    fn waits_for_work_that_starts_work() {
        const NAME: &str = "draining::waits_for_work_that_starts_work";
        fn go_on(left: u32, ended: Gate) {
            let next = move || match left {
                0 => ended.open(),
                _ => go_on(left - 1, ended),
            };
            match left % 3 {
                0 => drop(unsync::spawn(async move {
                    unsync::sleep(Duration::from_millis(1)).await;
                    next();
                })),
                1 => drop(unsync::thread(move || {
                    thread::sleep(Duration::from_millis(1));
                    next();
                })),
                _ => drop(unsync::cpu(double, (1,)).map(move |_| next())),
            }
        }
        in_child(NAME, HEAVY, &[], || {
            for depth in [0, 1, 2, 3, 30] {
                let ended = Gate::new();
                go_on(depth, ended.clone());
                assert!(unsync::drain(QUICK));
                assert!(ended.is_open(), "depth {depth}");
            }
        });
    }

    #[test]
    fn ends_at_its_limit_and_leaves_the_work_alone() {
        const NAME: &str = "draining::ends_at_its_limit_and_leaves_the_work_alone";
        in_children(NAME, &["async", "thread", "cpu"], &[], |case| {
            let gate = Gate::new();
            let work = match case {
                "async" => {
                    let gate = gate.clone();
                    unsync::spawn(async move { gate.pass().await })
                }
                "thread" => {
                    let gate = gate.clone();
                    unsync::thread(move || gate.wait())
                }
                _ => unsync::cpu(sleep_for, (3_600_000,)),
            };
            let started = Instant::now();
            assert!(!unsync::drain(WHILE));
            assert!(started.elapsed() >= WHILE && started.elapsed() < WHILE + SLACK);
            assert!(!unsync::drain(Duration::ZERO));
            gate.open();
            let stopped = case == "cpu" && work.cancel();
            assert!(unsync::drain(Duration::MAX));
            assert!(work.is_done());
            match work.result() {
                Ok(()) => assert!(!stopped),
                Err(error) => assert!(stopped && error.kind() == ErrorKind::Cancelled, "{error}"),
            }
            assert!(unsync::drain(Duration::MAX), "and again");
        });
    }

    /// A job that is cancelled ends on the thread that cancels it, and may have left the queue before.
    #[test]
    fn waits_for_what_a_cancelled_job_drops() {
        const NAME: &str = "draining::waits_for_what_a_cancelled_job_drops";
        in_child(NAME, HEAVY, &[("UNSYNC_THREADS", "1")], || {
            let busy = Gate::new();
            let holder = unsync::thread({
                let busy = busy.clone();
                move || busy.wait()
            });
            let (dropping, begun) = mpsc::channel();
            let gate = Gate::new();
            let slow = OnDrop({
                let gate = gate.clone();
                move || {
                    dropping.send(()).unwrap();
                    gate.wait();
                }
            });
            let job = unsync::thread(move || drop(slow));
            let canceller = job.canceller();
            let cancelling = thread::spawn(move || assert!(canceller.cancel()));
            begun.recv().unwrap();
            busy.open();
            holder.result().unwrap();
            unsync::thread(|| ()).result().unwrap();
            assert!(!unsync::drain(WHILE));
            let late = unsync::shutdown(WHILE).unwrap_err();
            assert!(late.to_string().contains("thread jobs"), "{late}");
            assert!(!job.is_done());
            gate.open();
            unsync::shutdown(QUICK).unwrap();
            assert!(job.is_done());
            cancelling.join().unwrap();
        });
    }

    #[test]
    fn does_not_wait_for_calls_on_a_pinned_value() {
        const NAME: &str = "draining::does_not_wait_for_calls_on_a_pinned_value";
        in_child(NAME, HEAVY, &[], || {
            unsync::thread(|| ()).result().unwrap();
            let pinned = unsync::Pinned::new(|| ());
            let (gate, _running) = blocked(|block| pinned.call(move |()| block()));
            let (dropping, begun) = mpsc::channel();
            let slow = OnDrop({
                let gate = gate.clone();
                move || {
                    dropping.send(()).unwrap();
                    gate.wait();
                }
            });
            let call = pinned.call(move |()| drop(slow));
            let cancelling = thread::spawn(move || assert!(call.cancel()));
            begun.recv().unwrap();
            assert!(unsync::drain(QUICK));
            gate.open();
            cancelling.join().unwrap();
        });
    }

    #[test]
    fn of_nothing_is_over_at_once() {
        const NAME: &str = "draining::of_nothing_is_over_at_once";
        in_child(NAME, HEAVY, &[], || {
            assert!(unsync::drain(LONG));
            assert!(unsync::drain(Duration::ZERO), "nothing was ever asked for");
            assert!(
                threads("unsync").is_empty(),
                "and nothing was started for it"
            );
        });
    }

    #[test]
    fn is_refused_on_the_ambient_thread() {
        const NAME: &str = "draining::is_refused_on_the_ambient_thread";
        in_child(NAME, HEAVY, &[], || {
            let drained = unsync::spawn(async { unsync::drain(LONG) }).result();
            let error = drained.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Panicked);
            assert!(error.to_string().contains("drain would block"), "{error}");
        });
    }

    #[test]
    fn many_may_drain_at_once() {
        const NAME: &str = "draining::many_may_drain_at_once";
        in_child(NAME, HEAVY, &[], || {
            let (release, job) = blocked(unsync::thread);
            thread::scope(|scope| {
                let drains = [(); 8].map(|()| scope.spawn(|| unsync::drain(QUICK)));
                release.open();
                assert!(drains.into_iter().all(|drain| drain.join().unwrap()));
            });
            assert!(job.is_done());
        });
    }
}

// ---------------------------------------------------------------------------------- shutting down

mod shutdown {
    use super::*;

    /// Starts one of each kind of work, and checks that all are refused.
    #[track_caller]
    fn assert_all_refused() {
        let works = [
            unsync::spawn(async {}),
            unsync::spawn_local(|| async {}),
            unsync::spawn_now(pending()),
            unsync::thread(|| ()),
            unsync::cpu(sleep_for, (0,)),
            unsync::spawn(async {}).timeout(LONG),
            unsync::thread(|| ()).run_timeout(LONG),
            unsync::thread(|| 1).map(drop),
            Unfuture::ready(1).and_then(async |_| ()),
            Unfuture::ready(1).map_thread(drop),
            Limit::new(1).thread(|| ()),
            Limit::new(1).spawn(async {}),
            unsync::join_all([unsync::thread(|| ())]).map(drop),
        ];
        for (number, work) in works.into_iter().enumerate() {
            assert!(work.wait_timeout(SLACK), "{number} hangs");
            assert_kind(
                work.result(),
                ErrorKind::ShutDown,
                &format!("work {number}"),
            );
        }
    }

    #[test]
    fn drops_what_is_pending_on_the_ambient_thread() {
        const NAME: &str = "shutdown::drops_what_is_pending_on_the_ambient_thread";
        in_child(NAME, HEAVY, &[], || {
            let (drops, shared) = (Drops::new(), Arc::new(()));
            let hold = || (drops.token(), Arc::clone(&shared));
            let (first, second, third) = (hold(), hold(), hold());
            let tasks = [
                unsync::spawn(async move {
                    let _held = first;
                    pending().await
                }),
                unsync::spawn_local(move || async move {
                    let _held = (second, std::rc::Rc::new(()));
                    pending().await
                }),
                unsync::spawn_now(async move {
                    let _held = third;
                    unsync::sleep(LONG).await
                }),
            ];
            fence();
            shut_down(WHILE);
            assert_eq!((drops.count(), Arc::strong_count(&shared)), (3, 1));
            assert_eq!(unsync::stats().async_tasks, 0);
            assert!(drops.places().iter().all(Place::is_ambient));
            for task in tasks {
                assert!(task.is_done());
                let error = task.result().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ShutDown, "{error}");
                assert!(error.to_string().contains(file!()), "{error}");
            }
        });
    }

    /// Every callback is called, even if no outcome will ever come.
    #[test]
    fn callbacks_are_called_for_all_that() {
        const NAME: &str = "shutdown::callbacks_are_called_for_all_that";
        in_child(NAME, HEAVY, &[], || {
            let (told, tells) = mpsc::channel();
            let tell = |tag| {
                let told = told.clone();
                move |outcome: Result<u64, Error>| {
                    told.send((tag, outcome.map_err(|error| error.kind())))
                        .unwrap();
                }
            };
            let (promise, never) = unsync::promise();
            never.on_done(tell("pending"));
            unsync::spawn(pending()).on_done(tell("stopped"));
            unsync::spawn(async { 1 }).on_done(tell("done"));
            fence();
            shut_down(WHILE);
            Unfuture::ready(1).on_done(tell("later"));
            drop(promise);
            Unfuture::ready(1).on_done(|_: Result<u64, Error>| panic!("a callback panics"));
            drop(told);
            let mut all: Vec<_> = tells.iter().collect();
            all.sort_by_key(|(tag, _)| *tag);
            let refused = Err(ErrorKind::ShutDown);
            assert_eq!(
                all,
                [
                    ("done", Ok(1)),
                    ("later", Ok(1)),
                    ("pending", refused),
                    ("stopped", refused)
                ]
            );
        });
    }

    /// What comes just before the end is seen by those who would only learn of it after the end.
    #[test]
    fn loses_no_outcome_that_is_there() {
        const NAME: &str = "shutdown::loses_no_outcome_that_is_there";
        in_child(NAME, HEAVY, &[], || {
            let ((one, first), (_never, second)) = (unsync::promise(), unsync::promise());
            let ((two, third), (told, tells)) = (unsync::promise(), mpsc::channel());
            let all = unsync::settle_all([first, second]);
            third.on_done(move |outcome: Result<i32, Error>| told.send(outcome).unwrap());
            fence();
            let (release, holder) = blocked_task();
            let setter = unsync::spawn(async move { one.set(1) && two.set(2) });
            let late = unsync::shutdown(WHILE).unwrap_err();
            assert_eq!(late.kind(), ErrorKind::TimedOut);
            release.open();
            unsync::shutdown(QUICK).unwrap();
            holder.result().unwrap();
            assert!(setter.result().unwrap());
            let outcomes = all.result().unwrap();
            assert_eq!(*outcomes[0].as_ref().unwrap(), 1);
            assert!(outcomes[1].is_err());
            assert_eq!(tells.recv().unwrap().unwrap(), 2);
        });
    }

    #[test]
    fn refuses_everything_that_comes_later() {
        fn assert_finished_work_needs_no_thread() {
            let ready = Unfuture::ready;
            assert_eq!(Unfuture::ready(Ok(1)).flatten().result().unwrap(), 1);
            assert_eq!(Unfuture::ready(ready(2)).flatten().result().unwrap(), 2);
            let all = [ready(3), ready(4)];
            assert_eq!(unsync::join_all(all).result().unwrap(), [3, 4]);
            let settled = unsync::settle_all([ready(5)]).result().unwrap();
            assert_eq!(settled[0].as_ref().unwrap(), &5);
            assert_eq!(unsync::race([ready(6), ready(7)]).result().unwrap(), 6);
            let mut completed = unsync::as_completed([ready(8)]);
            assert_eq!(completed.next().unwrap().1.unwrap(), 8);
            assert_eq!(ready(9).shared().result().unwrap(), 9);
            let limited = ready(10)
                .timeout(Duration::ZERO)
                .run_timeout(Duration::ZERO);
            assert_eq!(limited.result().unwrap(), 10);
        }
        const NAME: &str = "shutdown::refuses_everything_that_comes_later";
        in_children(NAME, &["unused", "used"], &[], |case| {
            let kept = (case == "used").then(|| {
                let kept = unsync::spawn(async { 1 });
                assert_eq!(unsync::cpu(double, (1,)).result().unwrap(), 2);
                unsync::thread(|| ()).result().unwrap();
                kept.wait();
                kept
            });
            unsync::shutdown(QUICK).unwrap();
            assert_all_refused();
            // A second call is harmless, and so are many at once.
            unsync::shutdown(QUICK).unwrap();
            thread::scope(|scope| {
                let calls = [(); 4].map(|()| scope.spawn(|| unsync::shutdown(QUICK)));
                calls
                    .into_iter()
                    .for_each(|call| call.join().unwrap().unwrap());
            });
            assert!(unsync::drain(QUICK));
            assert_all_refused();
            // Whatever needs no thread of the library still works.
            if let Some(kept) = kept {
                assert_eq!(kept.result().unwrap(), 1);
            }
            let (promise, awaited) = unsync::promise();
            promise.set(2);
            assert_eq!(unsync::block_on(awaited).unwrap(), 2);
            assert_finished_work_needs_no_thread();
            assert!(!unsync::spawn(pending::<()>()).cancel());
        });
    }

    #[test]
    fn lets_work_end_that_ends_in_time() {
        const NAME: &str = "shutdown::lets_work_end_that_ends_in_time";
        in_child(NAME, HEAVY, &[], || {
            let works = [
                unsync::spawn(unsync::sleep(WHILE)),
                unsync::thread(|| thread::sleep(WHILE)),
                unsync::cpu(sleep_for, (WHILE.as_millis() as u64,)),
                unsync::spawn(unsync::sleep(WHILE)).map_thread(|()| thread::sleep(WHILE)),
            ];
            unsync::shutdown(QUICK).unwrap();
            for work in works {
                assert!(work.is_done());
                work.result().unwrap();
            }
        });
    }

    #[test]
    fn does_not_wait_when_there_is_nothing_to_wait_for() {
        const NAME: &str = "shutdown::does_not_wait_when_there_is_nothing_to_wait_for";
        in_children(NAME, &["an hour", "for ever"], &[], |case| {
            unsync::spawn(async {}).result().unwrap();
            unsync::thread(|| ()).result().unwrap();
            unsync::cpu(double, (1,)).result().unwrap();
            let limit = if case == "an hour" {
                LONG
            } else {
                Duration::MAX
            };
            let started = Instant::now();
            unsync::shutdown(limit).unwrap();
            assert!(started.elapsed() < SLACK, "{:?}", started.elapsed());
        });
    }

    #[test]
    fn is_bounded_while_a_job_runs_for_ever() {
        const NAME: &str = "shutdown::is_bounded_while_a_job_runs_for_ever";
        in_children(NAME, &["0", "300"], &[("UNSYNC_THREADS", "1")], |case| {
            let limit = Duration::from_millis(case.parse().unwrap());
            let (release, job) = blocked(unsync::thread);
            let queued = unsync::thread(|| 1);
            let started = Instant::now();
            let late = unsync::shutdown(limit).unwrap_err();
            let took = started.elapsed();
            assert!(took >= limit && took < limit + SLACK, "{took:?}");
            assert_eq!(late.kind(), ErrorKind::TimedOut);
            if !limit.is_zero() {
                assert!(late.to_string().contains("thread jobs"), "{late}");
            }
            assert_kind(queued.result(), ErrorKind::ShutDown, "the one behind");
            assert_all_refused();
            assert!(!job.is_done(), "what runs goes on");
            release.open();
            job.result().unwrap();
            unsync::shutdown(QUICK).unwrap();
        });
    }

    /// The destructor of a queued job may take long, or wait for what the shutdown ends after the pool.
    #[test]
    fn is_bounded_while_a_queued_job_is_dropped() {
        const NAME: &str = "shutdown::is_bounded_while_a_queued_job_is_dropped";
        in_child(NAME, HEAVY, &[("UNSYNC_THREADS", "1")], || {
            let (running, job) = blocked(unsync::thread);
            let task = unsync::spawn(pending::<()>());
            let (drops, release) = (Gate::new(), Gate::new());
            let slow = OnDrop({
                let (drops, release) = (drops.clone(), release.clone());
                move || {
                    task.wait();
                    drops.open();
                    release.wait();
                }
            });
            let queued = unsync::thread(move || drop(slow));
            let late = unsync::shutdown(WHILE).unwrap_err();
            drops.wait();
            assert!(late.to_string().contains("thread jobs"), "{late}");
            running.open();
            job.result().unwrap();
            let again = unsync::shutdown(WHILE).unwrap_err();
            assert!(again.to_string().contains("thread jobs"), "{again}");
            release.open();
            unsync::shutdown(QUICK).unwrap();
            assert_kind(queued.result(), ErrorKind::ShutDown, "a queued job");
        });
    }

    #[test]
    fn running_jobs_see_that_they_are_cancelled() {
        const NAME: &str = "shutdown::running_jobs_see_that_they_are_cancelled";
        in_child(NAME, HEAVY, &[], || {
            let (runs, pinned) = (Gate::new(), unsync::Pinned::new(|| ()));
            let job = unsync::thread({
                let runs = runs.clone();
                move || {
                    runs.open();
                    while !unsync::is_cancelled() {
                        thread::yield_now();
                    }
                }
            });
            runs.wait();
            shut_down(WHILE);
            job.result().unwrap();
            // A shutdown leaves these alone.
            assert!(!pinned.call(|()| unsync::is_cancelled()).result().unwrap());
        });
    }

    #[test]
    fn is_bounded_while_a_task_blocks_for_ever() {
        const NAME: &str = "shutdown::is_bounded_while_a_task_blocks_for_ever";
        in_child(NAME, HEAVY, &[], || {
            let (release, task) = blocked_task();
            let behind = unsync::spawn(pending::<()>());
            let late = unsync::shutdown(WHILE).unwrap_err();
            assert_eq!(late.kind(), ErrorKind::TimedOut);
            assert!(late.to_string().contains("async tasks"), "{late}");
            release.open();
            task.result().unwrap();
            assert_kind(behind.result(), ErrorKind::ShutDown, "the one behind");
            unsync::shutdown(QUICK).unwrap();
        });
    }

    /// Not even a second call, which finds everything closed, says that all is over.
    #[test]
    fn is_not_over_while_a_destructor_runs() {
        const NAME: &str = "shutdown::is_not_over_while_a_destructor_runs";
        in_child(NAME, HEAVY, &[], || {
            let (drops, blocks, release) = (Drops::new(), Gate::new(), Gate::new());
            let slow = OnDrop({
                let (blocks, release) = (blocks.clone(), release.clone());
                move || {
                    blocks.open();
                    release.wait();
                }
            });
            let token = drops.token();
            let task = unsync::spawn(async move {
                let _held = (token, slow);
                pending::<()>().await
            });
            fence();
            let first = unsync::shutdown(WHILE).unwrap_err();
            blocks.wait();
            let again = unsync::shutdown(WHILE).unwrap_err();
            for late in [first, again] {
                assert_eq!(late.kind(), ErrorKind::TimedOut);
                assert!(late.to_string().contains("async tasks"), "{late}");
            }
            assert!(!unsync::drain(WHILE) && !task.is_done());
            release.open();
            unsync::shutdown(QUICK).unwrap();
            assert_eq!(drops.count(), 1);
            assert_kind(task.result(), ErrorKind::ShutDown, "a slow one");
        });
    }

    #[test]
    fn kills_calls_that_run() {
        const NAME: &str = "shutdown::kills_calls_that_run";
        in_child(NAME, HEAVY, &[("UNSYNC_PROCESSES", "1")], || {
            let calls = [(); 3].map(|()| unsync::cpu(sleep_for, (3_600_000,)));
            assert_eq!(
                calls.iter().filter(|call| call.wait_timeout(WHILE)).count(),
                0
            );
            let started = Instant::now();
            shut_down(WHILE);
            assert!(started.elapsed() < WHILE + SLACK);
            for call in calls {
                assert_kind(call.result(), ErrorKind::ShutDown, "a call");
            }
            assert_eq!(children(), []);
        });
    }

    #[test]
    fn ends_threads_and_processes() {
        const NAME: &str = "shutdown::ends_threads_and_processes";
        in_children(NAME, &["plain", "stall"], &[], |case| {
            if case == "stall" {
                Config::new().stall(LONG).install().unwrap();
            }
            let jobs = (0..50).map(|_| unsync::thread(|| thread::sleep(Duration::from_millis(5))));
            unsync::join_all(Vec::from_iter(jobs)).result().unwrap();
            let calls = unsync::join_all((0..50).map(|n| unsync::cpu(double, (n,))));
            assert_eq!(calls.result().unwrap().len(), 50);
            unsync::spawn(unsync::sleep(Duration::from_millis(1)))
                .result()
                .unwrap();
            if cfg!(target_os = "linux") {
                assert!(!threads("unsync").is_empty() && !children().is_empty());
            }
            unsync::shutdown(QUICK).unwrap();
            assert_eq!(children(), []);
            // The threads have reported their end, and are about to end.
            eventually(SLACK, "no thread is left", || {
                let left = threads("unsync");
                (left.is_empty(), left)
            });
        });
    }

    /// All work is either run or refused.
    #[test]
    fn races_with_those_who_start_work() {
        const NAME: &str = "shutdown::races_with_those_who_start_work";
        let cases = ["1", "2", "3", "4", "5"];
        in_children(NAME, &cases, &[], |case| {
            const CALLERS: usize = 6;
            let limit = Duration::from_millis(case.parse().unwrap());
            let (start, refused) = (Barrier::new(CALLERS + 1), Counter::new());
            thread::scope(|scope| {
                for caller in 0..CALLERS {
                    let (start, refused) = (&start, &refused);
                    scope.spawn(move || {
                        start.wait();
                        for round in 0.. {
                            let works = [
                                unsync::spawn(async move { round }),
                                unsync::spawn_local(move || async move { round }),
                                unsync::thread(move || round),
                                unsync::thread(move || round).map(|n| n),
                                unsync::spawn(unsync::sleep(LONG)).map(move |()| round),
                            ];
                            let call = (caller == 0).then(|| unsync::cpu(double, (round,)));
                            let mut ended = 0;
                            for work in works.into_iter().chain(call) {
                                // The sleeping task ends with the shutdown.
                                let work = work.timeout(QUICK);
                                if round % 64 != 0 && !work.wait_timeout(Duration::from_micros(50))
                                {
                                    continue;
                                }
                                match work.result() {
                                    Ok(_) => {}
                                    Err(error) => {
                                        assert_eq!(error.kind(), ErrorKind::ShutDown, "{error}");
                                        ended += 1;
                                    }
                                }
                            }
                            if ended >= 4 {
                                refused.add();
                                break;
                            }
                        }
                    });
                }
                start.wait();
                drop(unsync::shutdown(limit));
                refused.wait_for(CALLERS);
            });
            // A worker that was being started has to be there, or gone, so that nothing is left behind.
            unsync::shutdown(QUICK).unwrap();
        });
    }

    #[test]
    fn wakes_race_with_it() {
        const NAME: &str = "shutdown::wakes_race_with_it";
        in_children(NAME, &["1", "2", "3"], &[], |_| {
            const TASKS: usize = 10_000;
            let wakers = Arc::new(Mutex::new(Vec::<Waker>::new()));
            let drops = Drops::new();
            let tasks = Vec::from_iter((0..TASKS).map(|_| {
                let (wakers, token) = (Arc::clone(&wakers), drops.token());
                unsync::spawn(poll_fn(move |cx| {
                    let _ = &token;
                    let mut wakers = wakers.lock().unwrap();
                    if wakers.len() < TASKS {
                        wakers.push(cx.waker().clone());
                    }
                    Poll::<()>::Pending
                }))
            }));
            fence();
            let ended = AtomicBool::new(false);
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        let wakers = wakers.lock().unwrap().clone();
                        while !ended.load(Ordering::SeqCst) {
                            wakers.iter().for_each(Waker::wake_by_ref);
                        }
                    });
                }
                shut_down(Duration::from_secs(2));
                ended.store(true, Ordering::SeqCst);
            });
            assert_eq!(drops.count(), TASKS);
            for task in tasks {
                assert_kind(task.result(), ErrorKind::ShutDown, "woken");
            }
            // The wakers outlive their executor.
            let wakers = std::mem::take(&mut *wakers.lock().unwrap());
            assert_eq!(wakers.len(), TASKS);
            wakers.into_iter().for_each(Waker::wake);
        });
    }

    /// Each destructor wakes the other tasks, and takes a lock that the other destructors need.
    #[test]
    fn destructors_may_wake_each_other() {
        const NAME: &str = "shutdown::destructors_may_wake_each_other";
        struct Mutual(Arc<Mutex<Vec<Waker>>>);
        impl Future for Mutual {
            type Output = ();
            fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
                self.0.lock().unwrap().push(cx.waker().clone());
                Poll::Pending
            }
        }
        impl Drop for Mutual {
            fn drop(&mut self) {
                let wakers = self.0.lock().unwrap();
                wakers.iter().for_each(Waker::wake_by_ref);
            }
        }
        in_child(NAME, HEAVY, &[], || {
            let wakers = Arc::default();
            let tasks = [(); 50].map(|()| unsync::spawn(Mutual(Arc::clone(&wakers))));
            fence();
            shut_down(WHILE);
            for task in tasks {
                assert_kind(task.result(), ErrorKind::ShutDown, "woken by a drop");
            }
        });
    }

    #[test]
    fn ends_what_starts_its_like_again() {
        fn beat(beats: &Counter) {
            let again = beats.clone();
            unsync::spawn(unsync::sleep(LONG)).on_done(move |_| beat(&again));
            beats.add();
        }

        const NAME: &str = "shutdown::ends_what_starts_its_like_again";
        in_child(NAME, HEAVY, &[], || {
            let beats = Counter::new();
            beat(&beats);
            fence();
            shut_down(WHILE);
            assert!(beats.count() < 1000);
        });
    }

    /// A callback undoes the tie, also where a shutdown leaves the work alone.
    #[test]
    fn work_with_a_callback_is_not_tied() {
        const NAME: &str = "shutdown::work_with_a_callback_is_not_tied";
        in_child(NAME, HEAVY, &[], || {
            let (pinned, release, ran) = (unsync::Pinned::new(|| ()), Gate::new(), Gate::new());
            let gate = release.clone();
            let first = pinned.call(move |()| gate.wait());
            let opens = ran.clone();
            let second = pinned.call(move |()| opens.open());
            second.cancel_on_drop().on_done(drop);
            fence();
            shut_down(WHILE);
            release.open();
            first.result().unwrap();
            ran.wait();
        });
    }

    /// In a chain of tasks, each destructor keeps a promise that the next task waits for.
    #[test]
    fn destructors_may_keep_promises() {
        const NAME: &str = "shutdown::destructors_may_keep_promises";
        in_child(NAME, HEAVY, &[], || {
            let links = (0..1000).map(|_| unsync::promise::<()>());
            let (promises, awaited): (Vec<_>, Vec<_>) = links.unzip();
            let drops = Drops::new();
            for (promise, before) in promises.into_iter().skip(1).zip(awaited) {
                let (mut promise, token) = (Some(promise), drops.token());
                let keep = OnDrop(move || {
                    if let Some(promise) = promise.take() {
                        promise.set(());
                    }
                });
                unsync::spawn(async move {
                    let _held = (keep, token);
                    drop(before.await);
                    pending::<()>().await
                });
            }
            fence();
            shut_down(WHILE);
            assert_eq!(drops.count(), 999);
        });
    }

    /// A destructor can still call the library, which refuses what it asks for.
    #[test]
    fn destructors_may_ask_for_more() {
        const NAME: &str = "shutdown::destructors_may_ask_for_more";
        in_child(NAME, HEAVY, &[], || {
            let (sender, receiver) = mpsc::channel();
            let drops = Drops::new();
            let ask = OnDrop({
                let drops = drops.clone();
                move || {
                    let (token, inner) = (drops.token(), drops.token());
                    let works = [
                        unsync::spawn(async move {
                            let _token = token;
                        }),
                        unsync::spawn_local(move || async move {
                            let _token = inner;
                        }),
                        unsync::thread(|| ()),
                        unsync::cpu(sleep_for, (0,)),
                        unsync::spawn(unsync::sleep(LONG)),
                        unsync::spawn(async {}).map(|()| ()),
                    ];
                    assert_kind(unsync::shutdown(LONG), ErrorKind::WouldBlock, "inside");
                    sender.send(works).unwrap();
                }
            });
            unsync::spawn(async move {
                let _ask = ask;
                pending::<()>().await
            });
            fence();
            shut_down(WHILE);
            for (number, work) in receiver.recv().unwrap().into_iter().enumerate() {
                assert!(work.wait_timeout(SLACK), "{number} hangs");
                // The pool may take a job before the pool itself is closed.
                if let Err(error) = work.result() {
                    assert_eq!(error.kind(), ErrorKind::ShutDown, "{number}: {error}");
                }
            }
            assert_eq!(drops.count(), 2);
        });
    }

    #[test]
    fn destructors_may_panic() {
        const NAME: &str = "shutdown::destructors_may_panic";
        in_child(NAME, HEAVY, &[("RUST_BACKTRACE", "0")], || {
            let drops = Drops::new();
            let tasks = Vec::from_iter((0..20).map(|number| {
                let (token, bomb) = (drops.token(), (number % 2 == 0).then(|| Bomb("boom")));
                unsync::spawn(async move {
                    let _held = (token, bomb);
                    pending::<()>().await
                })
            }));
            fence();
            shut_down(WHILE);
            for (number, task) in tasks.into_iter().enumerate() {
                let kinds = [ErrorKind::Panicked, ErrorKind::ShutDown];
                assert_kind(task.result(), kinds[number % 2], "a drop");
            }
            assert_eq!(drops.count(), 20);
        });
    }

    /// Two tasks, each of which waits for the other.
    #[test]
    fn breaks_cycles() {
        const NAME: &str = "shutdown::breaks_cycles";
        in_child(NAME, HEAVY, &[], || {
            let (drops, (give, given)) = (Drops::new(), unsync::promise::<Unfuture<()>>());
            let (first, second) = (drops.token(), drops.token());
            let one = unsync::spawn(async move {
                let _token = first;
                drop(given.await.unwrap().await);
            });
            let other = unsync::spawn(async move {
                let _token = second;
                drop(one.await);
            });
            give.set(other);
            fence();
            assert_eq!(drops.count(), 0);
            shut_down(WHILE);
            assert_eq!(drops.count(), 2);
        });
    }

    #[test]
    fn what_waits_for_its_turn_is_let_go() {
        const NAME: &str = "shutdown::what_waits_for_its_turn_is_let_go";
        in_child(NAME, HEAVY, &[], || {
            let limit = Limit::new(1);
            let works = [
                limit.spawn(pending::<()>()),
                limit.spawn(async {}),
                limit.thread(|| ()),
                limit.cpu(sleep_for, (0,)),
            ];
            let all = unsync::settle_all(works);
            let first = unsync::race([unsync::spawn(pending::<()>()), unsync::spawn(pending())]);
            let joined = unsync::join_all([unsync::spawn(pending::<()>())]);
            let completed = unsync::as_completed([unsync::spawn(pending::<()>())]);
            let next = thread::spawn(move || completed.map(|(_, outcome)| outcome).last().unwrap());
            fence();
            shut_down(WHILE);
            assert!(all.wait_timeout(SLACK), "settle_all hangs");
            for outcome in all.result().unwrap() {
                assert_kind(outcome, ErrorKind::ShutDown, "limited");
            }
            assert!(first.wait_timeout(SLACK), "race hangs");
            assert_kind(first.result(), ErrorKind::ShutDown, "a race");
            assert!(joined.wait_timeout(SLACK), "join_all hangs");
            assert_kind(joined.result(), ErrorKind::ShutDown, "a join");
            assert_kind(next.join().unwrap(), ErrorKind::ShutDown, "one by one");
        });
    }

    /// Nothing waits for a deadline that no timer can keep any more, not even for the deadline of work that
    /// no engine of the library does.
    #[test]
    fn ends_what_waits_for_a_deadline() {
        const NAME: &str = "shutdown::ends_what_waits_for_a_deadline";
        in_child(NAME, HEAVY, &[], || {
            let (kept, awaited): (Vec<_>, Vec<_>) =
                (0..4).map(|_| unsync::promise::<Token>()).unzip();
            let mut awaited = awaited.into_iter();
            let mut next = || awaited.next().unwrap();
            let mut works = vec![next().timeout(LONG), next().run_timeout(LONG)];
            fence();
            shut_down(WHILE);
            let brief = Duration::from_millis(1);
            works.extend([next().timeout(brief), next().run_timeout(brief)]);
            for (number, work) in works.into_iter().enumerate() {
                assert!(work.wait_timeout(SLACK), "{number} hangs");
                let error = work.result().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ShutDown, "{number}: {error}");
                assert!(error.to_string().contains(file!()), "{number}: {error}");
            }
            // Whoever holds the promises is told, and may still keep them.
            let drops = Drops::new();
            for promise in kept {
                assert!(promise.is_cancelled());
                promise.set(drops.token());
            }
            assert_eq!(drops.count(), 4);
        });
    }

    #[test]
    fn lets_blocked_waiters_go() {
        const NAME: &str = "shutdown::lets_blocked_waiters_go";
        in_child(NAME, HEAVY, &[], || {
            let waits = Counter::new();
            thread::scope(|scope| {
                let waiters = [(); 4].map(|()| {
                    let (task, waits) = (unsync::spawn(pending::<()>()), waits.clone());
                    scope.spawn(move || {
                        waits.add();
                        task.result()
                    })
                });
                // One waiter is on a pool thread, which has to end as well.
                let nested = unsync::thread(|| unsync::spawn(pending::<()>()).result());
                waits.wait_for(waiters.len());
                assert!(!nested.wait_timeout(WHILE));
                shut_down(WHILE);
                for waiter in waiters {
                    assert_kind(waiter.join().unwrap(), ErrorKind::ShutDown, "blocked");
                }
                assert_kind(nested.result().unwrap(), ErrorKind::ShutDown, "nested");
            });
        });
    }

    #[test]
    fn is_refused_on_the_ambient_thread() {
        const NAME: &str = "shutdown::is_refused_on_the_ambient_thread";
        in_child(NAME, HEAVY, &[], || {
            let inside = unsync::spawn(async { unsync::shutdown(LONG) });
            assert_kind(inside.result().unwrap(), ErrorKind::WouldBlock, "inside");
            assert_eq!(unsync::spawn(async { 1 }).result().unwrap(), 1);
        });
    }

    /// A waker in a thread-local of another thread is woken by the end of that thread.
    #[test]
    fn a_wake_from_a_dying_thread_is_harmless() {
        type Last = OnDrop<Box<dyn FnMut()>>;
        thread_local! {
            static LAST: Cell<Option<Last>> = const { Cell::new(None) };
        }
        const NAME: &str = "shutdown::a_wake_from_a_dying_thread_is_harmless";
        in_child(NAME, HEAVY, &[], || {
            for after in [false, true] {
                let (sender, receiver) = mpsc::channel::<Waker>();
                let (polls, mut sender) = (Counter::new(), Some(sender));
                let task = unsync::spawn({
                    let polls = polls.clone();
                    poll_fn(move |cx| {
                        let first = sender.take();
                        first
                            .iter()
                            .for_each(|one| one.send(cx.waker().clone()).unwrap());
                        polls.add();
                        if first.is_some() {
                            Poll::Pending
                        } else {
                            Poll::Ready(())
                        }
                    })
                });
                let waker = receiver.recv().unwrap();
                if after {
                    shut_down(WHILE);
                }
                let dying = thread::spawn(move || {
                    let wake: Box<dyn FnMut()> = Box::new(move || waker.wake_by_ref());
                    LAST.set(Some(OnDrop(wake)));
                });
                dying.join().unwrap();
                match after {
                    false => task.result().unwrap(),
                    true => assert_kind(task.result(), ErrorKind::ShutDown, "after"),
                }
                assert_eq!(polls.count(), if after { 1 } else { 2 });
            }
        });
    }
}

// ------------------------------------------------------------------------- the end without an end

mod exit {
    use super::*;

    #[test]
    fn does_not_wait_for_those_who_start_work() {
        const NAME: &str = "exit::does_not_wait_for_those_who_start_work";
        in_child(NAME, HEAVY, &[], || {
            let begun = Counter::new();
            // On Windows a process that ends while it creates another may leave that one suspended forever.
            let engines = if cfg!(windows) { 2 } else { 3 };
            for engine in 0..engines {
                let begun = begun.clone();
                thread::spawn(move || {
                    loop {
                        let work = match engine {
                            0 => unsync::spawn(async { 2 }),
                            1 => unsync::thread(|| 2),
                            _ => unsync::cpu(double, (1,)),
                        };
                        assert_eq!(work.result().unwrap(), 2);
                        begun.add();
                    }
                });
            }
            begun.wait_for(1000);
        });
    }

    #[test]
    fn does_not_wait_for_pending_work() {
        const NAME: &str = "exit::does_not_wait_for_pending_work";
        let started = Instant::now();
        let output = in_child(NAME, HEAVY, &[], || {
            let dropped = OnDrop(|| println!("a destructor ran"));
            drop(unsync::spawn(async move {
                let _dropped = dropped;
                pending::<()>().await
            }));
            drop(unsync::spawn(unsync::sleep(LONG)));
            let (_release, job) = blocked(unsync::thread);
            drop(job);
            let jobs = iter::repeat_with(|| unsync::thread(|| thread::sleep(LONG)));
            drop(Vec::from_iter(jobs.take(20)));
            drop(unsync::cpu(sleep_for, (3_600_000,)));
            assert_eq!(unsync::cpu(double, (1,)).result().unwrap(), 2);
            println!("the end");
        });
        if let Some(output) = output {
            assert!(output.contains("the end"), "{output}");
            assert!(!output.contains("a destructor ran"), "{output}");
            // Nor do the workers hold the pipes of the process open: the pipes were read to their end.
            assert!(started.elapsed() < QUICK, "{:?}", started.elapsed());
        }
    }
}
