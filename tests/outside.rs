//! Ways in: threads, channels and child processes of std become Unfutures.

mod support;

use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use support::{
    Bomb, Counter, Drops, Gate, HEAVY, QUICK, eventually, fence, in_child, limit, quick,
};
use unsync::{ErrorKind, Unfuture};

mod threads {
    use super::*;

    #[test]
    fn a_thread_gives_its_value() {
        quick(|| {
            let gate = Gate::new();
            let opened = gate.clone();
            let running = Unfuture::from(thread::spawn(move || {
                opened.wait();
                7
            }));
            assert!(!running.wait_timeout(Duration::from_millis(1)));
            gate.open();
            assert_eq!(running.result().unwrap(), 7);
            let over = thread::spawn(|| 8);
            while !over.is_finished() {
                thread::yield_now();
            }
            let over: Unfuture<i32> = over.into();
            assert_eq!(unsync::block_on(over).unwrap(), 8);
        });
    }

    #[test]
    fn a_panic_comes_through() {
        quick(|| {
            let (failed, line) = (Unfuture::from(thread::spawn(panicking)), line!());
            fn panicking() {
                std::panic::panic_any(5_u8)
            }
            let error = failed.result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Panicked);
            let text = error.to_string();
            assert!(text.starts_with("std thread panicked"), "{text}");
            assert!(text.contains(&format!("outside.rs:{line}")), "{text}");
            assert_eq!(error.into_panic().unwrap().downcast_ref(), Some(&5_u8));
        });
    }

    #[test]
    fn a_value_that_nobody_wants_is_dropped() {
        quick(|| {
            let drops = Drops::new();
            let token = drops.token();
            drop(Unfuture::from(thread::spawn(move || token)));
            drops.wait_for(1);
            drop(Unfuture::from(thread::spawn(|| Bomb("unseen"))));
        });
    }

    #[test]
    fn a_deadline_passes_while_the_thread_runs_on() {
        quick(|| {
            let (gate, ended) = (Gate::new(), Counter::new());
            let (opened, counted) = (gate.clone(), ended.clone());
            let running = Unfuture::from(thread::spawn(move || {
                opened.wait();
                counted.add();
            }));
            let late = running.timeout(Duration::from_millis(10));
            assert_eq!(late.result().unwrap_err().kind(), ErrorKind::TimedOut);
            gate.open();
            ended.wait_for(1);
        });
    }

    /// Threads that only wait leave the pool to those that work.
    #[test]
    fn who_waits_does_not_count_against_the_limit() {
        in_child(
            "threads::who_waits_does_not_count_against_the_limit",
            HEAVY,
            &[("UNSYNC_THREADS", "2")],
            || {
                let gate = Gate::new();
                let threads = (0..20_u64).map(|n| {
                    let opened = gate.clone();
                    Unfuture::from(thread::spawn(move || {
                        opened.wait();
                        n
                    }))
                });
                let values = unsync::join_all(threads);
                let (senders, receivers): (Vec<_>, Vec<_>) =
                    (0..20).map(|_| mpsc::channel()).unzip();
                let received = unsync::join_all(receivers.into_iter().map(Unfuture::from));
                assert_eq!(unsync::thread(|| 1).result().unwrap(), 1);
                gate.open();
                assert_eq!(values.result().unwrap().iter().sum::<u64>(), 190);
                senders.iter().for_each(|sender| sender.send(1_u8).unwrap());
                assert_eq!(received.result().unwrap(), [1; 20]);
            },
        );
    }
}

mod channels {
    use super::*;

    #[test]
    fn the_first_value_of_a_channel() {
        quick(|| {
            let (sender, receiver) = mpsc::channel();
            let first = Unfuture::from(receiver);
            assert!(!first.wait_timeout(Duration::from_millis(1)));
            sender.send("first").unwrap();
            assert_eq!(first.result().unwrap(), "first");
            eventually(QUICK, "the channel is closed", || {
                (sender.send("late").is_err(), ())
            });
        });
    }

    #[test]
    fn what_was_sent_before_is_there() {
        quick(|| {
            let (sender, receiver) = mpsc::sync_channel(2);
            let drops = Drops::new();
            sender.send(drops.token()).unwrap();
            sender.send(drops.token()).unwrap();
            drop(sender);
            let first = unsync::spawn(Unfuture::from(receiver))
                .flatten()
                .result()
                .unwrap();
            drops.wait_for(1);
            drop(first);
            assert_eq!(drops.count(), 2);
        });
    }

    #[test]
    fn a_closed_channel_is_abandoned() {
        quick(|| {
            let (sender, receiver) = mpsc::channel::<u8>();
            let (none, line) = (Unfuture::from(receiver), line!());
            drop(sender);
            let error = none.result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Abandoned);
            let text = error.to_string();
            assert!(text.starts_with("the channel was closed"), "{text}");
            assert!(text.contains(&format!("outside.rs:{line}")), "{text}");
        });
    }
}

mod children {
    use super::*;

    const ROLE: &str = "UNSYNC_TEST_ROLE";

    /// This very binary, asked for the test below.
    fn command(role: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["children::child_process", "--exact", "--ignored"]);
        command.env(ROLE, role).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    #[test]
    #[ignore = "no test: a child process, if it is started as one"]
    fn child_process() {
        match std::env::var(ROLE).as_deref() {
            Ok("sleep") => thread::sleep(Duration::from_secs(600)),
            Ok("fail") => std::process::exit(42),
            Ok("read") => {
                let read = std::io::read_to_string(std::io::stdin()).unwrap();
                std::process::exit(i32::try_from(read.len()).unwrap());
            }
            _ => {}
        }
    }

    fn child(role: &str) -> Child {
        command(role).spawn().unwrap()
    }

    fn sleeping() -> (Unfuture<ExitStatus>, u32) {
        let child = child("sleep");
        let pid = child.id();
        (child.into(), pid)
    }

    /// Gone and reaped: a process that was not would still be listed.
    fn assert_reaped(pid: u32) {
        if cfg!(target_os = "linux") {
            let process = format!("/proc/{pid}");
            eventually(QUICK, "the child is reaped", || {
                let there = std::path::Path::new(&process).exists();
                (!there, there)
            });
        }
    }

    #[test]
    fn an_exit_status() {
        limit(HEAVY, || {
            let child = child("fail");
            let pid = child.id();
            let status = Unfuture::from(child).result().unwrap();
            assert_eq!(status.code(), Some(42));
            assert_reaped(pid);
        });
    }

    #[test]
    fn of_a_child_that_was_over() {
        limit(HEAVY, || {
            let mut over = child("fail");
            over.wait().unwrap();
            let over = Unfuture::from(over);
            let status = unsync::spawn(async move { over.await.unwrap() });
            assert_eq!(status.result().unwrap().code(), Some(42));
        });
    }

    #[test]
    fn cancelling_kills_it() {
        limit(HEAVY, || {
            let (status, pid) = sleeping();
            assert!(!status.wait_timeout(Duration::from_millis(20)));
            assert!(status.cancel());
            let asked = Instant::now();
            let error = status.result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Cancelled);
            let text = error.to_string();
            assert!(text.starts_with("child process was cancelled"), "{text}");
            assert!(text.contains("outside.rs"), "{text}");
            assert!(asked.elapsed() < Duration::from_secs(10));
            assert_reaped(pid);
        });
    }

    #[test]
    fn a_deadline_kills_it() {
        limit(HEAVY, || {
            for limited in [
                |status: Unfuture<ExitStatus>| status.timeout(Duration::from_millis(10)),
                |status: Unfuture<ExitStatus>| status.run_timeout(Duration::from_millis(10)),
            ] {
                let (status, pid) = sleeping();
                let error = limited(status).result().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::TimedOut);
                assert_reaped(pid);
            }
        });
    }

    /// Its wait stands in the queue: nobody else would notice.
    #[test]
    fn a_deadline_kills_it_before_a_thread_waits_for_it() {
        const NAME: &str = "children::a_deadline_kills_it_before_a_thread_waits_for_it";
        in_child(NAME, HEAVY, &[("UNSYNC_THREADS", "1")], || {
            let (running, release) = (Gate::new(), Gate::new());
            let busy = unsync::thread({
                let (running, release) = (running.clone(), release.clone());
                move || {
                    running.open();
                    release.wait();
                }
            });
            running.wait();
            let (status, pid) = sleeping();
            let error = status
                .timeout(Duration::from_millis(10))
                .result()
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            assert!(error.to_string().starts_with("child process"), "{error}");
            assert!(!busy.is_done());
            release.open();
            busy.result().unwrap();
            assert_reaped(pid);
        });
    }

    #[test]
    fn a_scope_that_ends_kills_it_and_a_drop_does_not() {
        limit(HEAVY, || {
            let (status, tied) = sleeping();
            let (free, pid) = sleeping();
            let canceller = free.canceller();
            drop((status.cancel_on_drop(), free));
            assert_reaped(tied);
            if cfg!(target_os = "linux") {
                assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
            }
            assert!(canceller.cancel());
            assert_reaped(pid);
        });
    }

    #[test]
    fn after_its_end_cancelling_does_nothing() {
        limit(HEAVY, || {
            let status = Unfuture::from(child("fail"));
            let canceller = status.canceller();
            status.wait();
            assert!(!status.cancel() && !canceller.cancel());
            assert_eq!(status.result().unwrap().code(), Some(42));
        });
    }

    /// Killed while it ends by itself: it is one or the other, and told as such.
    #[test]
    fn races_of_cancel_and_end() {
        limit(HEAVY, || {
            for round in 0..20 {
                let status = Unfuture::from(child("fail"));
                thread::sleep(Duration::from_micros(300 * round));
                let cancelled = status.cancel();
                match status.result() {
                    Ok(status) => assert!(!cancelled && status.code() == Some(42)),
                    Err(error) => assert!(cancelled && error.kind() == ErrorKind::Cancelled),
                }
            }
        });
    }

    /// Else it would wait for more, and its parent for it.
    #[test]
    fn its_standard_input_is_closed() {
        limit(HEAVY, || {
            let child = command("read").stdin(Stdio::piped()).spawn().unwrap();
            let status = Unfuture::from(child).result().unwrap();
            assert_eq!(status.code(), Some(0));
        });
    }

    #[test]
    fn many_at_once() {
        limit(HEAVY, || {
            let children = (0..20).map(|_| Unfuture::from(child("fail")));
            let all = unsync::join_all(children).result().unwrap();
            assert!(all.iter().all(|status| status.code() == Some(42)));
            let (status, pid) = sleeping();
            let first = unsync::race([status, Unfuture::from(child("fail"))]);
            assert_eq!(first.result().unwrap().code(), Some(42));
            assert_reaped(pid);
        });
    }
}

mod callbacks {
    use super::*;

    #[test]
    fn on_done_gets_every_outcome_on_the_ambient_thread() {
        quick(|| {
            let (sender, outcomes) = mpsc::channel();
            let tell = || {
                let sender = sender.clone();
                move |outcome: Result<u8, unsync::Error>| {
                    let kind = outcome.map_err(|error| error.kind());
                    sender.send((kind, support::on_ambient())).unwrap();
                }
            };
            unsync::thread(|| 1).on_done(tell());
            assert_eq!(outcomes.recv().unwrap(), (Ok(1), true));
            unsync::thread(|| panic!("told")).on_done(tell());
            assert_eq!(outcomes.recv().unwrap(), (Err(ErrorKind::Panicked), true));
            Unfuture::ready(2).on_done(tell());
            assert_eq!(outcomes.recv().unwrap(), (Ok(2), true));
            Unfuture::ready(3).on_done(|_| panic!("harms nobody"));
            fence();
            Unfuture::ready(4).on_done(tell());
            assert_eq!(outcomes.recv().unwrap(), (Ok(4), true));
        });
    }
}
