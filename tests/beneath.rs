//! What a step does when the thing beneath it panics, is cancelled, or loses its worker process: every
//! step × every kind of work × every such end × before the step is made and after. Each time the step
//! ends the same way, at once, with the error of the work itself; and work under a [`Limit`] gives its
//! place back.
//!
//! Left out, because it has no meaning here: the death of a worker process under a task or a job, which
//! have none; and cancelling a job while it runs, which gives its value all the same.

mod support;

unsync::test_worker!();

use std::future::pending;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use support::{Gate, HEAVY, QUICK, fence, in_child, same};
use unsync::{Error, ErrorKind, Limit, Unfuture};

/// A limit that does not pass in the test.
const LONG: Duration = Duration::from_secs(3600);

/// Does what a socket tells it, so that nobody has to guess when it runs.
fn obey(port: u16) -> u64 {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut order = [0];
    socket.read_exact(&mut order).unwrap();
    match order[0] {
        b'p' => panic!("boom"),
        b'd' => std::process::exit(3),
        _ => 1,
    }
}

/// Reports progress of several types, of which only the `u64` matters, waits for an order, returns `n + 1`.
fn say(n: u64, port: u16) -> u64 {
    unsync::progress(n);
    unsync::progress((n + 100, n + 100));
    unsync::progress(format!("{n} of many"));
    unsync::progress(n as f64);
    obey(port);
    n + 1
}

fn say_more(n: u64) -> u64 {
    unsync::progress(n as u32);
    unsync::progress(n);
    n
}

unsync::register!(obey, same, say, say_more);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Task,
    Job,
    Call,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Panics,
    IsCancelled,
    Dies,
}

const BENEATH: [(Kind, End); 7] = [
    (Kind::Task, End::Panics),
    (Kind::Task, End::IsCancelled),
    (Kind::Job, End::Panics),
    (Kind::Job, End::IsCancelled),
    (Kind::Call, End::Panics),
    (Kind::Call, End::IsCancelled),
    (Kind::Call, End::Dies),
];

/// Work, and what ends it.
type Beneath = (Unfuture<u64>, Box<dyn FnOnce()>);

fn beneath(kind: Kind, end: End, limit: Option<&Limit>) -> Beneath {
    let gate = Gate::new();
    let opened = gate.clone();
    let (work, told): (Unfuture<u64>, Box<dyn FnOnce()>) = match (kind, end) {
        (Kind::Task, _) => {
            let body = async move {
                opened.pass().await;
                panic!("boom")
            };
            let work = match limit {
                Some(limit) => limit.spawn(body),
                None => unsync::spawn(body),
            };
            (work, Box::new(move || gate.open()))
        }
        (Kind::Job, _) => {
            // There is one thread; a job that will be cancelled waits for it.
            let before = (end == End::IsCancelled).then(|| {
                let opened = gate.clone();
                unsync::thread(move || opened.wait())
            });
            let body = move || {
                opened.wait();
                panic!("boom")
            };
            let work = match limit {
                Some(limit) => limit.thread(body),
                None => unsync::thread(body),
            };
            let end = move || {
                gate.open();
                before.into_iter().for_each(|job| job.result().unwrap());
            };
            (work, Box::new(end))
        }
        (Kind::Call, _) => {
            let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            let work = match limit {
                Some(limit) => limit.cpu(obey, (port,)),
                None => unsync::cpu(obey, (port,)),
            };
            let (mut socket, _) = listener.accept().unwrap();
            let order = if end == End::Dies { b"d" } else { b"p" };
            (work, Box::new(move || socket.write_all(order).unwrap()))
        }
    };
    if end != End::IsCancelled {
        return (work, told);
    }
    let canceller = work.canceller();
    let cancel = move || {
        assert!(canceller.cancel(), "it is cancelled in time");
        if kind == Kind::Job {
            told();
        }
    };
    (work, Box::new(cancel))
}

type Pass = fn(Unfuture<u64>) -> Unfuture<u64>;
type Step = (&'static str, Pass);

/// Each passes on the outcome of what is beneath it.
const STEPS: [Step; 15] = [
    ("nothing", |work| work),
    ("then", |work| {
        let step = work.then(async |ended| {
            assert!(ended.is_done());
            ended.result()
        });
        step.flatten()
    }),
    ("map", |work| work.map(skipped)),
    ("and_then", |work| work.and_then(async |n| skipped(n))),
    ("map_thread", |work| work.map_thread(skipped)),
    ("map_cpu", |work| work.map_cpu(same)),
    ("flatten", |work| Unfuture::ready(work).flatten()),
    ("await", |work| unsync::spawn(work).flatten()),
    ("race", |work| {
        unsync::race([unsync::spawn(pending()), work])
    }),
    ("join_all", |work| {
        let all = unsync::join_all([unsync::spawn(pending()), work]);
        all.map(|_| unreachable!("one of them fails"))
    }),
    ("settle_all", |work| {
        let all = unsync::settle_all([work, Unfuture::ready(1)]);
        all.map(|mut all| all.swap_remove(0)).flatten()
    }),
    ("shared", |work| unsync::spawn(work.shared()).flatten()),
    ("Unfuture::timeout", |work| work.timeout(LONG)),
    ("run_timeout", |work| work.run_timeout(LONG)),
    ("timeout", |work| {
        unsync::spawn(unsync::timeout(LONG, work))
            .flatten()
            .flatten()
    }),
];

fn skipped(n: u64) -> u64 {
    unreachable!("there is no value {n}")
}

#[track_caller]
fn assert_ended(error: Error, kind: Kind, end: End, what: &str) {
    let expected = match end {
        End::Panics => ErrorKind::Panicked,
        End::IsCancelled => ErrorKind::Cancelled,
        End::Dies => ErrorKind::WorkerLost,
    };
    assert_eq!(error.kind(), expected, "{what}: {error}");
    let text = error.to_string();
    assert!(text.contains(file!()), "{what} names its start: {text}");
    // On Windows a killed process has a code, too.
    let by_itself = error.worker_exit().filter(|_| end != End::IsCancelled);
    let code = by_itself.and_then(|status| status.code());
    assert_eq!(code, (end == End::Dies).then_some(3), "{what}: {text}");
    match (end, error.into_panic()) {
        (End::Panics, Ok(payload)) => {
            // From another process only the text arrives.
            let said = payload.downcast_ref::<&str>().copied();
            let said = said.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            let said = said.unwrap_or_default();
            assert!(said.contains("boom"), "{what}: {said} of {kind:?}");
        }
        (End::IsCancelled | End::Dies, Err(_)) => {}
        (_, panic) => panic!("{what}: {panic:?}"),
    }
}

fn every_cell(mut cell: impl FnMut(Kind, End, Step, bool, &str)) {
    for (kind, end) in BENEATH {
        for step in STEPS {
            for early in [true, false] {
                let what = format!("{} over {kind:?} that {end:?}, early: {early}", step.0);
                cell(kind, end, step, early, &what);
            }
        }
    }
}

#[test]
fn whatever_is_beneath_a_step() {
    const NAME: &str = "whatever_is_beneath_a_step";
    in_child(NAME, HEAVY, &[("UNSYNC_THREADS", "1")], || {
        every_cell(|kind, end, (_, step), early, what| {
            let (work, ends) = beneath(kind, end, None);
            let work = if early {
                ends();
                work.wait();
                step(work)
            } else {
                let work = step(work);
                fence();
                assert!(!work.is_done(), "{what}: too early");
                ends();
                work
            };
            assert_ended(work.result().unwrap_err(), kind, end, what);
        });
    });
}

/// The same under a limit: work that waits behind it gets its turn, however the first one ended.
#[test]
fn whatever_is_beneath_a_step_under_a_limit() {
    const NAME: &str = "whatever_is_beneath_a_step_under_a_limit";
    in_child(NAME, HEAVY, &[("UNSYNC_THREADS", "1")], || {
        let limit = Limit::new(1);
        every_cell(|kind, end, (_, step), early, what| {
            let (work, ends) = beneath(kind, end, Some(&limit));
            let next = limit.spawn(async { 5 });
            fence();
            assert_eq!(
                format!("{limit:?}"),
                "Limit(1 of 1 running, 1 waiting)",
                "{what}"
            );
            let work = if early {
                ends();
                work.wait();
                step(work)
            } else {
                let work = step(work);
                ends();
                work
            };
            assert_ended(work.result().unwrap_err(), kind, end, what);
            assert_eq!(next.result().unwrap(), 5, "{what}");
            assert_eq!(format!("{limit:?}"), "Limit(0 of 1 running, 0 waiting)");
        });
    });
}

/// The same while the work waits for its turn: then it can only be cancelled, and the work behind it
/// moves up.
#[test]
fn whatever_waits_for_its_turn_beneath_a_step() {
    const NAME: &str = "whatever_waits_for_its_turn_beneath_a_step";
    in_child(NAME, HEAVY, &[("UNSYNC_THREADS", "1")], || {
        let limit = Limit::new(1);
        for kind in [Kind::Task, Kind::Job, Kind::Call] {
            for (name, step) in STEPS {
                let what = &format!("{name} over {kind:?}");
                let (held, holder) = unsync::promise::<()>();
                let holder = limit.spawn(async { drop(holder.await) });
                let work = match kind {
                    Kind::Task => limit.spawn(async { 1 }),
                    Kind::Job => limit.thread(|| 1),
                    Kind::Call => limit.cpu(same, (1,)),
                };
                let next = limit.spawn(async { 5 });
                let canceller = work.canceller();
                let work = step(work);
                fence();
                assert!(canceller.cancel(), "{what}");
                assert_ended(work.result().unwrap_err(), kind, End::IsCancelled, what);
                assert!(!next.is_done(), "{what}: the place is still taken");
                held.set(());
                assert_eq!(next.result().unwrap(), 5, "{what}");
                holder.result().unwrap();
            }
        }
    });
}

/// Stopped by a cancellation, or tied and dropped.
#[test]
fn stopping_what_stands_on_a_running_call_kills_its_worker() {
    type Over = fn(Unfuture<u64>) -> Unfuture<u64>;
    let overs: [(&str, Over); 11] = [
        ("the call", |work| work),
        ("map", |work| work.map(|n| n)),
        ("and_then", |work| work.and_then(|n| async move { n })),
        ("then", |work| {
            work.then(|work| async { work.result().unwrap_or(0) })
        }),
        ("map_thread", |work| work.map_thread(|n| n)),
        ("map_cpu", |work| work.map_cpu(same)),
        ("timeouts", |work| work.timeout(LONG).run_timeout(LONG)),
        ("flatten", |work| work.map(Ok).flatten()),
        ("join_all", |work| {
            unsync::join_all([work, Unfuture::ready(1)]).map(|all| all[0])
        }),
        ("race", |work| {
            unsync::race([work, unsync::spawn(pending())])
        }),
        ("settle_all", |work| {
            unsync::settle_all([work]).map(|all| all.len() as u64)
        }),
    ];
    in_child(
        "stopping_what_stands_on_a_running_call_kills_its_worker",
        HEAVY,
        &[],
        move || {
            for (name, over) in overs {
                for dropped in [false, true] {
                    let (call, mut worker) = running_call(|port| unsync::cpu(obey, (port,)));
                    let work = over(call.cancel_on_drop());
                    if dropped {
                        drop(work);
                    } else {
                        // The call is tied, so the cancelled step drops it and stops it.
                        assert!(work.cancel() && work.cancel(), "{name}");
                        let error = work.result().unwrap_err();
                        assert_eq!(error.kind(), ErrorKind::Cancelled, "{name}: {error}");
                    }
                    assert_eq!(worker.read(&mut [0]).unwrap_or(0), 0, "{name}: it is gone");
                }
            }
            // Without a tie: the step itself started the call.
            let (work, mut worker) =
                running_call(|port| unsync::spawn(async move { port }).map_cpu(obey));
            assert!(work.cancel() && work.cancel());
            assert_eq!(worker.read(&mut [0]).unwrap_or(0), 0);
            let limit = Limit::new(1);
            let (work, mut worker) = running_call(|port| limit.cpu(obey, (port,)));
            let waiting = limit.cpu(same, (2,));
            drop(work.cancel_on_drop().map(|n| n).shared());
            assert_eq!(worker.read(&mut [0]).unwrap_or(0), 0);
            assert_eq!(waiting.result().unwrap(), 2);
        },
    );
}

fn running_call(start: impl FnOnce(u16) -> Unfuture<u64>) -> (Unfuture<u64>, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let work = start(listener.local_addr().unwrap().port());
    let (worker, _) = listener.accept().unwrap();
    (work, worker)
}

#[test]
fn a_call_answers_the_same_before_and_after_its_end() {
    const NAME: &str = "a_call_answers_the_same_before_and_after_its_end";
    in_child(NAME, HEAVY, &[("UNSYNC_PROCESSES", "1")], || {
        let (running, _worker) = running_call(|port| unsync::cpu(obey, (port,)));
        let queued = unsync::cpu(same, (1,));
        for call in [queued, running] {
            let canceller = call.canceller();
            assert!(call.cancel() && call.cancel());
            call.wait();
            assert!(call.cancel());
            assert_eq!(call.result().unwrap_err().kind(), ErrorKind::Cancelled);
            assert!(canceller.cancel());
        }
        // Nobody listens at port 1, so the function panics.
        let ended = [
            (unsync::cpu(same, (2,)), None),
            (unsync::cpu(obey, (1,)), Some(ErrorKind::Panicked)),
        ];
        for (call, kind) in ended {
            call.wait();
            let canceller = call.canceller();
            assert!(!call.cancel() && !canceller.cancel());
            assert_eq!(call.result().err().map(|error| error.kind()), kind);
            assert!(!canceller.cancel());
        }
    });
}

/// Steps on one call, and the last number that a listener hears.
const HEARD: [(&str, Pass, u64); 13] = [
    ("nothing", |work| work, 1),
    ("map", |work| work.map(|n| n), 1),
    ("and_then", |work| work.and_then(async |n| n), 1),
    (
        "then",
        |work| work.then(async |ended| ended.result()).flatten(),
        1,
    ),
    ("map_thread", |work| work.map_thread(|n| n), 1),
    ("map_cpu", |work| work.map_cpu(same), 1),
    ("a further call", |work| work.map_cpu(say_more), 2),
    (
        "flatten",
        |work| unsync::spawn(std::future::ready(work)).flatten(),
        1,
    ),
    (
        "a call that starts another",
        |work| work.map(|n| unsync::cpu(say_more, (n,))).flatten(),
        2,
    ),
    ("timeout", |work| work.timeout(LONG), 1),
    ("run_timeout", |work| work.run_timeout(LONG), 1),
    ("cancel_on_drop", |work| work.cancel_on_drop(), 1),
    (
        "all of them",
        |work| {
            let work = work.map(|n| n).cancel_on_drop().timeout(LONG);
            let work = unsync::spawn(std::future::ready(work.map_thread(|n| n))).flatten();
            work.then(async |ended| ended.result()).flatten()
        },
        1,
    ),
];

#[test]
fn progress_is_heard_through_every_step() {
    const NAME: &str = "progress_is_heard_through_every_step";
    in_child(NAME, HEAVY, &[("UNSYNC_PROCESSES", "1")], || {
        let limit = Limit::new(1);
        let ear = || {
            let (sender, heard) = mpsc::channel();
            let listen = move |n: u64| sender.send(n).unwrap();
            (listen, heard)
        };
        for (name, step, last) in HEARD {
            for limited in [false, true] {
                for late in [false, true] {
                    let what = &format!("{name}, limited: {limited}, late: {late}");
                    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
                    let port = listener.local_addr().unwrap().port();
                    // Under the limit the call waits for its turn until there is a listener.
                    let (held, holder) = unsync::promise::<()>();
                    let holder = limit.spawn(async { drop(holder.await) });
                    let work = match limited {
                        true => limit.cpu(say, (1, port)),
                        false => unsync::cpu(say, (1, port)),
                    };
                    let mut work = step(work);
                    let (listen, heard) = ear();
                    let mut listen = Some(listen);
                    if !late {
                        work = work.on_progress(listen.take().unwrap());
                    }
                    held.set(());
                    holder.result().unwrap();
                    let (mut socket, _) = listener.accept().unwrap();
                    if !late {
                        assert_eq!(heard.recv_timeout(QUICK), Ok(1), "{what}: while it runs");
                    }
                    socket.write_all(b"v").unwrap();
                    work.wait();
                    if let Some(listen) = listen {
                        work = work.on_progress(listen);
                    }
                    assert_eq!(work.result().unwrap(), 2, "{what}");
                    let heard: Vec<u64> = heard.iter().collect();
                    let expected = if late || last > 1 { Some(&last) } else { None };
                    assert_eq!(heard.last(), expected, "{what}: {heard:?}");
                }
            }
        }
    });
}

/// Each listener hears its own type, and two listeners of one type both hear it.
#[test]
fn progress_is_heard_by_all_who_listen() {
    const NAME: &str = "progress_is_heard_by_all_who_listen";
    in_child(NAME, HEAVY, &[("UNSYNC_PROCESSES", "1")], || {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, heard) = mpsc::channel();
        let (numbers, texts, again, wrong) =
            (sender.clone(), sender.clone(), sender.clone(), sender);
        let work = unsync::cpu(say, (1, port))
            .on_progress(move |n: u64| drop(numbers.send(format!("number {n}"))))
            .on_progress(move |text: String| drop(texts.send(text)))
            .map(|n| n)
            .on_progress(move |n: u64| drop(again.send(format!("again {n}"))))
            .on_progress(move |n: i64| drop(wrong.send(format!("wrong {n}"))));
        let (mut socket, _) = listener.accept().unwrap();
        socket.write_all(b"v").unwrap();
        assert_eq!(work.result().unwrap(), 2);
        let mut heard: Vec<String> = heard.iter().collect();
        heard.sort();
        assert_eq!(heard, ["1 of many", "again 1", "number 1"]);
    });
}
