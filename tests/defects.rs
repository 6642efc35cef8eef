//! The defects of Python's `unsync`, each as a test that it would fail. The number of a defect is in the
//! name of its test.

mod support;

unsync::test_worker!();

use std::pin::Pin;
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use support::{
    Counter, CountingWaker, Drops, Gate, HEAVY, Log, Place, QUICK, compile, fence, in_child, limit,
    poll, quick, shut_down,
};
use unsync::{Config, Error, ErrorKind, Unfuture};

// ------------------------------------------------------------------------------------------ D1, D20

mod types {
    pub(crate) struct A;
    pub(crate) struct B;

    impl A {
        pub(crate) fn run() -> String {
            "A.run".into()
        }
    }
    impl B {
        pub(crate) fn run() -> String {
            "B.run".into()
        }
    }
    unsync::register!(A::run, B::run);
}

fn named<T: 'static>(_: u8) -> String {
    std::any::type_name::<T>().into()
}
unsync::register!(named::<u8>, named::<Vec<u8>>);

#[test]
fn d01_same_named_methods_of_two_types() {
    limit(HEAVY, || {
        assert_eq!(unsync::cpu(types::B::run, ()).result().unwrap(), "B.run");
        assert_eq!(unsync::cpu(types::A::run, ()).result().unwrap(), "A.run");
        let [small, large] = [
            unsync::cpu(named::<u8>, (0,)),
            unsync::cpu(named::<Vec<u8>>, (0,)),
        ];
        assert_eq!(small.result().unwrap(), "u8");
        assert_eq!(large.result().unwrap(), "alloc::vec::Vec<u8>");
        // Two closures in one function, with the same name and the same types.
        let one = unsync::cpu!(|n: u32| -> u32 { n + 1 }, 1);
        let two = unsync::cpu!(|n: u32| -> u32 { n + 2 }, 1);
        assert_eq!((one.result().unwrap(), two.result().unwrap()), (2, 3));
    });
}

trait Area {
    fn area(self) -> f64;
}
#[derive(Clone, Copy)]
struct Square(f64);
unsync::wire!(struct Square(side));
impl Square {
    const fn unit() -> Square {
        Square(1.0)
    }
    fn grown(self, by: f64) -> Square {
        Square(self.0 * by)
    }
}
impl Area for Square {
    fn area(self) -> f64 {
        self.0 * self.0
    }
}
unsync::register!(
    Square::unit,
    Square::grown,
    <Square as Area>::area,
    u32::pow,
    f64::sqrt
);

#[test]
fn d20_associated_functions_and_methods_by_path() {
    limit(HEAVY, || {
        let unit = unsync::cpu(Square::unit, ()).result().unwrap();
        let grown = unsync::cpu(Square::grown, (unit, 3.0)).result().unwrap();
        let area = unsync::cpu(<Square as Area>::area, (grown,))
            .result()
            .unwrap();
        assert_eq!(area, 9.0);
        assert_eq!(unsync::cpu(f64::sqrt, (area,)).result().unwrap(), 3.0);
        assert_eq!(unsync::cpu(u32::pow, (2, 10)).result().unwrap(), 1024);
        assert_eq!(
            unsync::spawn(async { 16.0 })
                .map_cpu(f64::sqrt)
                .result()
                .unwrap(),
            4.0
        );
    });
}

// ------------------------------------------------------------------------------------------- D2, D17

/// Checks that programs with one thing wrong are refused, and that the program they are made from compiles.
#[track_caller]
fn assert_refused(name: &str, right: &str, wrong: &[(&str, &str, &str)]) {
    let program =
        |body: &str| format!("fn main() {{}}\n#[allow(unused)]\nfn used() {{\n{body}\n}}\n");
    let Some((compiles, said)) = compile(name, &program(right)) else {
        return;
    };
    assert!(compiles, "the right program does not compile: {said}");
    for (was, becomes, complaint) in wrong {
        let body = right.replace(was, becomes);
        assert_ne!(body, right, "nothing was changed");
        let (compiles, said) = compile(name, &program(&body)).unwrap();
        assert!(!compiles, "this compiles: {body}");
        assert!(said.contains(complaint), "{complaint:?} is not in: {said}");
    }
}

/// The second `set` is an error at compile time, not at run time.
#[test]
fn d02_a_promise_cannot_be_set_twice() {
    limit(HEAVY + HEAVY, || {
        assert_refused(
            "d02",
            "let (promise, unfuture) = unsync::promise::<u8>();\n\
             promise.set(1);\n\
             let value = unfuture.result();\n",
            &[
                (
                    "promise.set(1);",
                    "promise.set(1); promise.set(2);",
                    "use of moved value",
                ),
                (
                    "promise.set(1);",
                    "promise.clone().set(1);",
                    "no method named `clone`",
                ),
                (
                    "unfuture.result();",
                    "(unfuture.result(), unfuture.result());",
                    "use of moved",
                ),
            ],
        );
    });
}

#[test]
fn d17_an_unknown_option_does_not_compile() {
    limit(HEAVY + HEAVY, || {
        assert_refused(
            "d17",
            "unsync::unsync! {\n\
                 async fn sleeping() {}\n\
                 #[cpu] fn computing(n: u64) -> u64 { n }\n\
                 fn blocking(text: &'static str) {}\n\
             }\n\
             let settings = unsync::Config::new().threads(4).install();\n\
             let call = unsync::cpu(computing_plain, (1,));\n\
             fn computing_plain(n: u64) -> u64 { n }\n",
            &[
                ("#[cpu]", "#[process]", "cannot find attribute `process`"),
                ("#[cpu] fn", "#[cpu] async fn", "error"),
                (".threads(4)", ".treads(4)", "no method named `treads`"),
                (
                    ".threads(4)",
                    ".threads(-4)",
                    "cannot apply unary operator `-`",
                ),
                ("text: &'static str", "text: &str", "error"),
                ("(1,)", "(1, 2)", "error"),
                ("(1,)", "(\"1\",)", "error"),
            ],
        );
    });
}

// ----------------------------------------------------------------------------------------------- D3

#[test]
fn d03_a_ready_value_is_done_at_once() {
    quick(|| {
        let ready = Unfuture::ready(1);
        assert!(ready.is_done());
        assert_eq!(ready.result().unwrap(), 1);
        let on_ambient = unsync::spawn(async {
            let ready = Unfuture::ready(2);
            (ready.is_done(), ready.result())
        });
        let (done, value) = on_ambient.result().unwrap();
        assert!(done && value.unwrap() == 2);
    });
}

// ----------------------------------------------------------------------------------------------- D4

/// An executor that polls on a new thread each time: no two polls see the same thread or the same waker.
fn nomadic<T: Send>(mut future: impl Future<Output = T> + Unpin + Send) -> T {
    loop {
        let waker = CountingWaker::new();
        let polled = thread::scope(|scope| scope.spawn(|| waker.poll(&mut future)).join().unwrap());
        match polled {
            Poll::Ready(value) => return value,
            Poll::Pending => waker.wait_for(1),
        }
    }
}

#[test]
fn d04_await_on_a_foreign_executor() {
    limit(HEAVY, || {
        let pipeline = async {
            let one = unsync::spawn(async {
                unsync::sleep(Duration::from_millis(5)).await;
                1
            });
            let two = unsync::thread(|| 2).await.unwrap();
            unsync::sleep(Duration::from_millis(5)).await;
            unsync::yield_now().await;
            let four = unsync::cpu(u32::pow, (2, 2)).await.unwrap();
            one.await.unwrap() + two + four
        };
        let mut pinned = Box::pin(pipeline);
        assert_eq!(nomadic(pinned.as_mut()), 7);
    });
}

// ----------------------------------------------------------------------------------------------- D5

#[test]
fn d05_racing_first_calls_give_one_ambient() {
    in_child(
        "d05_racing_first_calls_give_one_ambient",
        HEAVY,
        &[],
        || {
            const CALLERS: u32 = 24;
            let start = Arc::new(Barrier::new(CALLERS as usize));
            let callers = Vec::from_iter((0..CALLERS).map(|number| {
                let start = Arc::clone(&start);
                thread::spawn(move || {
                    start.wait();
                    match number % 3 {
                        0 => {}
                        1 => assert_eq!(unsync::thread(|| 1).result().unwrap(), 1),
                        _ => {
                            assert_eq!(unsync::cpu(u32::pow, (number, 1)).result().unwrap(), number)
                        }
                    }
                    unsync::spawn(async { Place::here() }).result().unwrap()
                })
            }));
            let places = Vec::from_iter(callers.into_iter().map(|caller| caller.join().unwrap()));
            assert!(places[0].is_ambient());
            assert!(places.iter().all(|place| *place == places[0]), "{places:?}");
            #[cfg(target_os = "linux")]
            {
                let names = support::thread_names();
                let count = |name| names.iter().filter(|other| *other == name).count();
                assert_eq!(count("unsync-ambient"), 1, "{names:?}");
            }
        },
    );
}

// ----------------------------------------------------------------------------------------------- D6

#[test]
fn d06_a_panicking_task_does_not_kill_the_ambient() {
    quick(|| {
        let before = unsync::spawn(async { Place::here() }).result().unwrap();
        for _ in 0..10 {
            let panics = unsync::spawn(async { panic!("as SystemExit would") });
            let error = panics.map(|(): ()| ()).result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Panicked);
        }
        assert_eq!(
            unsync::spawn(async { Place::here() }).result().unwrap(),
            before
        );
    });
}

// ----------------------------------------------------------------------------------------------- D7

#[test]
fn d07_nested_blocking_deeper_than_the_pool_does_not_deadlock() {
    fn down(from: u32) -> u32 {
        match from {
            0 => 0,
            _ => unsync::thread(move || down(from - 1)).result().unwrap() + 1,
        }
    }
    in_child(
        "d07_nested_blocking_deeper_than_the_pool_does_not_deadlock",
        HEAVY,
        &[("UNSYNC_THREADS", "2")],
        || assert_eq!(down(64), 64),
    );
}

// ----------------------------------------------------------------------------------------------- D8

fn leave(code: i32) -> u8 {
    std::process::exit(code)
}
fn give_up() -> u8 {
    std::process::abort()
}
fn compute_for_ever() -> u8 {
    loop {
        std::hint::spin_loop();
    }
}
unsync::register!(leave, give_up, compute_for_ever, std::process::id);

#[test]
fn d08_a_worker_that_dies_fails_only_its_own_call() {
    limit(HEAVY, || {
        let before = Vec::from_iter((0..50).map(|n| unsync::cpu(u32::pow, (n, 2))));
        let (left, gave_up) = (unsync::cpu(leave, (3,)), unsync::cpu(give_up, ()));
        let after = Vec::from_iter((0..50).map(|n| unsync::cpu(u32::pow, (n, 2))));
        let left = left.result().unwrap_err();
        assert_eq!(left.kind(), ErrorKind::WorkerLost, "{left}");
        assert_eq!(left.worker_exit().unwrap().code(), Some(3));
        assert!(left.to_string().contains("leave"), "{left}");
        let gave_up = gave_up.result().unwrap_err();
        assert_eq!(gave_up.kind(), ErrorKind::WorkerLost, "{gave_up}");
        assert!(!gave_up.worker_exit().unwrap().success());
        for calls in [before, after] {
            for (n, call) in (0..50).zip(calls) {
                match call.result() {
                    // On Windows the end of a link may lose what its worker said last. Then the calls that
                    // were at that worker may have run, so they fail with it rather than run again.
                    Err(error) if cfg!(windows) && error.kind() == ErrorKind::WorkerLost => {}
                    square => assert_eq!(square.unwrap(), n * n),
                }
            }
        }
        assert_eq!(unsync::cpu(u32::pow, (7, 2)).result().unwrap(), 49);
    });
}

/// A process is killed while it is idle, or while it computes what nobody wants any more.
#[test]
fn d08_the_pool_heals() {
    in_child(
        "d08_the_pool_heals",
        HEAVY,
        &[("UNSYNC_PROCESSES", "1")],
        || {
            let hung = unsync::cpu(compute_for_ever, ());
            let waiting = unsync::cpu(u32::pow, (3, 2));
            assert!(!waiting.wait_timeout(Duration::from_millis(50)));
            assert!(hung.cancel());
            assert_eq!(hung.result().unwrap_err().kind(), ErrorKind::Cancelled);
            assert_eq!(waiting.result().unwrap(), 9);

            let first = unsync::cpu(std::process::id, ()).result().unwrap();
            if cfg!(unix) {
                let mut kill = Command::new("kill");
                kill.args(["-9", &first.to_string()]);
                assert!(support::run(kill, QUICK).success);
                let second = unsync::cpu(std::process::id, ()).result().unwrap();
                assert_ne!(second, first);
            }
        },
    );
}

// ----------------------------------------------------------------------------------------------- D9

/// Uses all of the library in a worker process.
fn all_of_it(n: u32) -> (bool, Vec<u32>) {
    let by_task = unsync::spawn(async move {
        unsync::sleep(Duration::from_millis(1)).await;
        n
    });
    let by_thread = unsync::thread(move || n + 1);
    let by_call = unsync::cpu(u32::pow, (n, 2));
    let chained = unsync::spawn(async move { n }).map_cpu(nested);
    let sums = [by_task, by_thread, by_call, chained].map(|work| work.result().unwrap());
    (unsync::is_worker(), sums.to_vec())
}
/// Starts more calls from within a call.
fn nested(depth: u32) -> u32 {
    match depth {
        0 => 0,
        _ => unsync::cpu(nested, (depth - 1,)).result().unwrap() + 1,
    }
}
unsync::register!(all_of_it, nested);

#[test]
fn d09_a_worker_may_use_the_ambient_threads_and_nested_calls() {
    limit(HEAVY, || {
        assert!(!unsync::is_worker());
        let (in_worker, values) = unsync::cpu(all_of_it, (5,)).result().unwrap();
        assert!(in_worker);
        assert_eq!(values, [5, 6, 25, 5]);
        assert_eq!(unsync::cpu(nested, (20,)).result().unwrap(), 20);
    });
}

// ---------------------------------------------------------------------------------------------- D10

#[test]
fn d10_cancelling_a_continuation_leaves_the_source_alone() {
    /// Continues a source in one of several ways.
    fn continued(source: Unfuture<u8>, log: Log<&'static str>, kind: usize) -> Unfuture<u8> {
        let step = move |value| {
            log.push("continued");
            value
        };
        match kind {
            0 => source.map(step),
            1 => source.and_then(|value| async move { step(value) }),
            2 => source.then(|task| async move { step(task.result().unwrap()) }),
            3 => source.map_thread(step),
            _ => source.map(|value| value + 1).map(step),
        }
    }
    quick(|| {
        for kind in 0..5 {
            let (gate, ended, log) = (Gate::new(), Gate::new(), Log::new());
            let source = unsync::spawn({
                let (gate, ended, log) = (gate.clone(), ended.clone(), log.clone());
                async move {
                    gate.pass().await;
                    log.push("source");
                    ended.open();
                    1
                }
            });
            let continuation = continued(source, log.clone(), kind);
            fence();
            assert!(continuation.cancel());
            let error = continuation.result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Cancelled, "{kind}: {error}");
            gate.open();
            ended.wait();
            fence();
            assert_eq!(log.entries(), ["source"], "{kind}");
        }
    });
}

// ---------------------------------------------------------------------------------------------- D11

fn fail_in_worker() -> u8 {
    panic!("unheard: in a worker")
}
unsync::register!(fail_in_worker);

#[test]
fn d11_an_unobserved_failure_is_reported_once_and_an_observed_one_never() {
    in_child(
        "d11_an_unobserved_failure_is_reported_once_and_an_observed_one_never",
        HEAVY,
        &[],
        || {
            let (reported, reports) = (Counter::new(), Log::new());
            let hook = {
                let (reported, reports) = (reported.clone(), reports.clone());
                move |error: &Error| {
                    reports.push(error.to_string());
                    reported.add();
                }
            };
            Config::new().on_unobserved(hook).install().unwrap();
            let fails = |how: &'static str| {
                [
                    unsync::spawn(async move { panic!("{how}: async") }),
                    unsync::thread(move || panic!("{how}: thread")),
                    unsync::spawn(async { 1 }).map(move |_: u8| panic!("{how}: continued")),
                ]
            };
            // Looked at, in every way.
            for fails in fails("heard") {
                fails.result().unwrap_err();
            }
            for fails in fails("heard") {
                unsync::block_on(fails).unwrap_err();
            }
            for fails in fails("heard") {
                let passed = fails
                    .map(|value| value)
                    .then(async |task| task.result().is_err());
                assert!(passed.result().unwrap());
            }
            unsync::join_all(fails("heard").map(|fails| fails.then(async |task| task.await)))
                .result()
                .unwrap()
                .into_iter()
                .for_each(|outcome| drop(outcome.unwrap_err()));
            // Cancelled work has not failed.
            let cancelled = unsync::spawn(unsync::sleep(Duration::MAX));
            assert!(cancelled.cancel());
            drop(cancelled);
            // Not looked at: dropped before the failure, and after it.
            fails("unheard").into_iter().for_each(drop);
            for fails in fails("unheard") {
                fails.wait();
            }
            drop(unsync::cpu(fail_in_worker, ()));
            reported.wait_for(7);
            assert!(unsync::drain(QUICK));
            let reports = reports.entries();
            assert_eq!(reports.len(), 7, "{reports:?}");
            for (what, times) in [
                ("unheard: async", 2),
                ("unheard: thread", 2),
                ("unheard: continued", 2),
                ("unheard: in a worker", 1),
            ] {
                let about = reports.iter().filter(|report| report.contains(what));
                assert_eq!(about.count(), times, "{what} in {reports:?}");
            }
        },
    );
}

// ---------------------------------------------------------------------------------------------- D12

#[test]
fn d12_a_dropped_setter_resolves_whoever_waits() {
    quick(|| {
        let abandoned = |outcome: Result<u8, Error>| {
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Abandoned);
        };
        let (promises, mut waited): (Vec<_>, Vec<_>) = (0..6).map(|_| unsync::promise()).unzip();
        let mut next = || waited.pop().unwrap();
        let (blocked, waits, root) = (next(), next(), next());
        let threads = [
            thread::spawn(move || blocked.result()),
            thread::spawn(move || {
                waits.wait();
                waits.result()
            }),
            thread::spawn(|| unsync::block_on(root)),
        ];
        let task = unsync::spawn(next()).flatten();
        let continued = next().map(|value| value);
        let mut polled = next();
        let waker = CountingWaker::new();
        assert!(waker.poll(&mut polled).is_pending());
        fence();
        drop(promises);
        for thread in threads {
            abandoned(thread.join().unwrap());
        }
        abandoned(task.result());
        abandoned(continued.result());
        assert_eq!(waker.wakes(), 1);
        abandoned(polled.result());
    });
}

// ---------------------------------------------------------------------------------------------- D13

#[test]
fn d13_pending_tasks_are_drained_or_cancelled_at_shutdown() {
    in_child(
        "d13_pending_tasks_are_drained_or_cancelled_at_shutdown",
        HEAVY,
        &[],
        || {
            // `drain` waits for work that ends, though nobody holds its future.
            let drops = Drops::new();
            let token = drops.token();
            drop(unsync::spawn(async move {
                unsync::sleep(Duration::from_millis(50)).await;
                unsync::thread(move || drop(token));
            }));
            assert!(unsync::drain(QUICK));
            assert_eq!(drops.count(), 1);

            // Work that does not end is stopped, and its destructors run where they have to.
            let drops = Drops::new();
            let [one, two] = [(); 2].map(|()| drops.token());
            let pending = [
                unsync::spawn(async move {
                    unsync::sleep(Duration::MAX).await;
                    drop(one);
                }),
                unsync::spawn_local(move || async move {
                    std::future::pending::<()>().await;
                    drop(two);
                }),
            ];
            assert!(!unsync::drain(Duration::from_millis(20)));
            assert_eq!(drops.count(), 0);
            shut_down(Duration::from_millis(600));
            assert_eq!(drops.count(), 2);
            assert!(drops.places().iter().all(Place::is_ambient));
            let later = [unsync::spawn(async {}), unsync::thread(|| ())];
            for work in pending.into_iter().chain(later) {
                assert_eq!(work.result().unwrap_err().kind(), ErrorKind::ShutDown);
            }
        },
    );
}

// ---------------------------------------------------------------------------------------------- D14

#[test]
fn d14_who_blocks_the_ambient_thread_is_named() {
    let said = in_child(
        "d14_who_blocks_the_ambient_thread_is_named",
        HEAVY,
        &[],
        || {
            let stall = Config::new().stall(Duration::from_millis(20));
            stall.install().unwrap();
            // In short naps: a machine that stands still eats one of them, and the watchdog sees the others.
            let nap = || thread::sleep(Duration::from_millis(50));
            println!("LINE {}", line!() + 1);
            let blocks = unsync::spawn(async move { (0..30).for_each(|_| nap()) });
            blocks.result().unwrap();
        },
    );
    let Some(said) = said else { return };
    let line = said.lines().find_map(|said| said.strip_prefix("LINE "));
    let place = format!("{}:{}:", file!(), line.expect("the child says it"));
    let reports = said
        .lines()
        .filter(|line| line.contains("ambient thread") && line.contains(&place));
    assert_eq!(reports.count(), 1, "{said}");
}

// ---------------------------------------------------------------------------------------------- D15

/// Ten jobs block at once, however few cores there are: each waits until all ten do.
#[test]
fn d15_ten_blocking_jobs_run_at_once() {
    quick(|| {
        let meeting = Arc::new(Barrier::new(10));
        let jobs = Vec::from_iter((0..10).map(|_| {
            let meeting = Arc::clone(&meeting);
            unsync::thread(move || meeting.wait().is_leader())
        }));
        let leaders = unsync::join_all(jobs).result().unwrap();
        assert_eq!(leaders.into_iter().filter(|leads| *leads).count(), 1);
    });
}

// ---------------------------------------------------------------------------------------------- D16

#[test]
fn d16_result_on_the_ambient_thread_never_hangs() {
    limit(HEAVY, || {
        let (promise, pending) = unsync::promise();
        let gate = Gate::new();
        let job = unsync::thread({
            let gate = gate.clone();
            move || gate.wait()
        });
        let refused = unsync::spawn(async move {
            let works = [
                pending,
                job,
                unsync::spawn(async {}),
                unsync::spawn_local(|| async {}),
                unsync::spawn(unsync::sleep(Duration::MAX)),
                unsync::cpu(u32::pow, (2, 2)).map(drop),
                unsync::join_all([unsync::spawn(async {})]).map(drop),
                unsync::spawn(async {}).map(Unfuture::ready).flatten(),
            ];
            works.map(|work| work.result().map_err(|error| error.kind()))
        });
        assert_eq!(refused.result().unwrap(), [Err(ErrorKind::WouldBlock); 8]);
        gate.open();
        promise.set(());
        fence();
    });
}

// ---------------------------------------------------------------------------------------------- D18

#[test]
fn d18_debug_mode_breaks_nothing() {
    let said = in_child(
        "d18_debug_mode_breaks_nothing",
        HEAVY,
        &[("UNSYNC_DEBUG", "1")],
        || {
            let chain = unsync::spawn(async {
                unsync::sleep(Duration::from_millis(1)).await;
                2
            });
            let chain = chain.map_thread(|n| n + 1).map_cpu(nested).map(|n| n * 2);
            assert_eq!(chain.result().unwrap(), 6);
            let local = unsync::spawn_local(|| async { *std::rc::Rc::new(5) });
            assert_eq!(local.result().unwrap(), 5);
            let failed = unsync::thread(|| panic!("looked at")).map(|(): ()| ());
            assert_eq!(failed.result().unwrap_err().kind(), ErrorKind::Panicked);
            assert_eq!(unsync::block_on(unsync::thread(|| 7)).unwrap(), 7);
        },
    );
    let unjust = |said: &String| said.contains("nobody looked");
    assert!(!said.as_ref().is_some_and(unjust), "{said:?}");
}

// ---------------------------------------------------------------------------------------------- D19

#[test]
fn d19_whatever_can_be_called_or_awaited_is_accepted() {
    /// The nearest thing to a callable object.
    struct Adder(u32);
    impl Adder {
        fn add(self, to: u32) -> u32 {
            self.0 + to
        }
    }
    fn partial(first: u32) -> impl FnOnce() -> u32 + Send {
        move || Adder(first).add(1)
    }
    quick(|| {
        let pointer: fn() -> u32 = || 5;
        let boxed: Box<dyn FnOnce() -> u32 + Send> = Box::new(|| 5);
        let method = {
            let adder = Adder(2);
            move || adder.add(3)
        };
        let jobs = [
            unsync::thread(pointer),
            unsync::thread(boxed),
            unsync::thread(method),
            unsync::thread(partial(4)),
            unsync::thread(Default::default).map(|zero: u32| zero + 5),
        ];
        for (number, job) in jobs.into_iter().enumerate() {
            assert_eq!(job.result().unwrap(), 5, "job {number}");
        }
        let future: Pin<Box<dyn Future<Output = u32> + Send>> = Box::pin(async { 5 });
        let closure = async |n: u32| n + 1;
        let tasks = [
            unsync::spawn(future),
            unsync::spawn(std::future::ready(5)),
            unsync::spawn(std::future::poll_fn(|_| Poll::Ready(5))),
            unsync::spawn(closure(4)),
            unsync::spawn(unsync::thread(|| 5)).flatten(),
        ];
        for (number, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.result().unwrap(), 5, "task {number}");
        }
        // An `Unfuture` is a future like any other.
        let mut nested = Box::pin(unsync::spawn(async { 5 }));
        nested.wait();
        assert!(matches!(
            poll(&mut nested, CountingWaker::new().waker()),
            Poll::Ready(Ok(5))
        ));
    });
}
