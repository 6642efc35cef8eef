//! Threads and channels of std become Unfutures.

mod support;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use support::{Bomb, Counter, Drops, Gate, HEAVY, QUICK, eventually, fence, in_child, quick};
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
            assert!(text.contains(&format!("convert.rs:{line}")), "{text}");
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
            let armed = (Bomb("unseen"), drops.token());
            drop(Unfuture::from(thread::spawn(move || armed)));
            drops.wait_for(2);
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

    /// Threads that only wait leave the pool to jobs that work.
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
            assert!(text.contains(&format!("convert.rs:{line}")), "{text}");
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
