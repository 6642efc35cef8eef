//! `Pinned`: a value that never leaves its thread, whatever becomes of the calls.

mod support;

use std::cell::{Cell, RefCell};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use support::{
    Bomb, Counter, Drops, Gate, HEAVY, Log, Place, QUICK, Token, blocked, in_child, limit, quick,
};
use unsync::{Config, ErrorKind, Pinned, Unfuture};

/// A value that is not `Send`, and records where it is dropped.
struct Rooted {
    place: Place,
    number: Rc<RefCell<u64>>,
    _token: Token,
}

fn rooted(drops: &Drops) -> Pinned<Rooted> {
    let token = drops.token();
    Pinned::new(move || Rooted {
        place: Place::here(),
        number: Rc::default(),
        _token: token,
    })
}

/// A call that runs until the gate is opened.
fn occupied<V: 'static>(pinned: &Pinned<V>) -> (Gate, Unfuture<()>) {
    blocked(|block| pinned.call(|_| block()))
}

#[test]
fn a_value_is_made_used_and_dropped_on_its_own_thread() {
    quick(|| {
        let drops = Drops::new();
        let pinned = rooted(&drops);
        let made = pinned.call(|value| value.place.clone()).result().unwrap();
        assert_eq!(made.name.as_deref(), Some("unsync-pinned"));
        assert_ne!(made.id, thread::current().id());
        for number in 1..=3 {
            let used = pinned.call(move |value| {
                *value.number.borrow_mut() += 1;
                (Place::here(), *value.number.borrow())
            });
            assert_eq!(used.result().unwrap(), (made.clone(), number));
        }
        drop(pinned);
        drops.wait_for(1);
        assert_eq!(drops.places(), [made]);
    });
}

#[test]
fn calls_run_in_order_one_at_a_time() {
    limit(HEAVY, || {
        let pinned = Arc::new(Pinned::new(Vec::new));
        thread::scope(|scope| {
            for caller in 0..4_usize {
                let pinned = &pinned;
                scope.spawn(move || {
                    for number in 0..5_000_usize {
                        pinned.call(move |seen| seen.push((caller, number)));
                    }
                });
            }
        });
        let seen = pinned.call(std::mem::take).result().unwrap();
        assert_eq!(seen.len(), 20_000);
        for caller in 0..4 {
            let numbers = seen.iter().filter(|(other, _)| *other == caller);
            assert!(numbers.map(|(_, number)| *number).eq(0..5_000));
        }
    });
}

#[test]
fn a_panic_is_the_error_of_its_call_and_the_value_stays() {
    quick(|| {
        let pinned = Pinned::new(|| Cell::new(0));
        let (failed, line) = (pinned.call(half_done), line!());
        fn half_done(value: &mut Cell<u64>) {
            value.set(1);
            panic!("half done");
        }
        let error = failed.result().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Panicked);
        let text = error.to_string();
        assert!(text.contains("half done"), "{text}");
        assert!(text.contains(&format!("pinned.rs:{line}")), "{text}");
        assert_eq!(pinned.call(|value| value.get()).result().unwrap(), 1);
    });
}

#[test]
fn a_value_that_cannot_be_made_fails_every_call() {
    quick(|| {
        let (started, line): (Pinned<u8>, _) = (Pinned::new(|| panic!("no luck")), line!());
        let drops = Drops::new();
        for _ in 0..3 {
            let token = drops.token();
            let failed = started.call(move |_| drop(token));
            let error = failed.result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Panicked);
            let text = error.to_string();
            assert!(text.contains("no luck"), "{text}");
            assert!(text.contains(&format!("pinned.rs:{line}")), "{text}");
        }
        assert_eq!(drops.count(), 3);
    });
}

#[test]
fn dropping_it_ends_the_thread_after_what_was_queued() {
    quick(|| {
        let (drops, order) = (Drops::new(), Log::new());
        let pinned = rooted(&drops);
        let (gate, _first) = occupied(&pinned);
        for number in 0..10 {
            let order = order.clone();
            pinned.call(move |_| order.push(number));
        }
        let last = pinned.call(|value| *value.number.borrow());
        drop(pinned);
        assert_eq!((drops.count(), order.entries().len()), (0, 0));
        gate.open();
        assert_eq!(last.result().unwrap(), 0);
        assert!(order.entries().into_iter().eq(0..10));
        drops.wait_for(1);
    });
}

/// The last owner may be one of its calls.
#[test]
fn it_may_be_dropped_on_its_own_thread() {
    quick(|| {
        let drops = Drops::new();
        let pinned = Arc::new(rooted(&drops));
        let (gate, _first) = occupied(&pinned);
        let owner = Arc::clone(&pinned);
        pinned.call(move |_| drop(owner));
        drop(pinned);
        gate.open();
        drops.wait_for(1);
    });
}

#[test]
fn a_queued_call_that_is_cancelled_is_skipped() {
    quick(|| {
        let drops = Drops::new();
        let pinned = Pinned::new(Place::here);
        let (gate, first) = occupied(&pinned);
        let (ran, token) = (Counter::new(), drops.token());
        let counted = ran.clone();
        let skipped = pinned.call(move |_| {
            drop(token);
            counted.add();
        });
        assert!(skipped.cancel());
        assert!(skipped.is_done(), "it need not wait for its turn");
        assert_eq!(skipped.result().unwrap_err().kind(), ErrorKind::Cancelled);
        assert_eq!(drops.count(), 1, "nor does what it holds");
        gate.open();
        pinned.call(|_| ()).result().unwrap();
        assert_eq!(ran.count(), 0);
        assert!(!first.cancel(), "over");
        first.result().unwrap();
    });
}

#[test]
fn a_running_call_that_is_cancelled_sees_it() {
    quick(|| {
        let pinned = Pinned::new(|| ());
        assert!(!pinned.call(|()| unsync::is_cancelled()).result().unwrap());
        let (started, running) = mpsc::channel();
        let call = pinned.call(move |()| {
            started.send(()).unwrap();
            while !unsync::is_cancelled() {
                thread::yield_now();
            }
            "tidied up"
        });
        running.recv().unwrap();
        assert!(!call.cancel());
        assert_eq!(call.result().unwrap(), "tidied up");
        assert!(
            !pinned.call(|()| unsync::is_cancelled()).result().unwrap(),
            "the next is another"
        );
    });
}

/// A call is cancelled at about the moment when its turn comes: it ran, or it did not.
#[test]
fn races_of_cancel_and_turn() {
    limit(HEAVY, || {
        let pinned = Arc::new(Pinned::new(|| 0_u64));
        let calls = Arc::clone(&pinned);
        let ran = Counter::new();
        let counted = ran.clone();
        let seen = Counter::new();
        support::race(
            5_000,
            move |_| {
                let gate = Gate::new();
                let (opened, ran) = (gate.clone(), counted.clone());
                calls.call(move |_| opened.wait());
                (gate, calls.call(move |_| ran.add()))
            },
            |_, gate| gate.open(),
            |_, call| {
                let cancelled = call.cancel();
                assert_eq!(call.result().is_err(), cancelled);
                if !cancelled {
                    seen.add();
                }
            },
        );
        pinned.call(|_| ()).result().unwrap();
        assert_eq!(ran.count(), seen.count());
    });
}

#[test]
fn deadlines() {
    quick(|| {
        let pinned = Pinned::new(|| ());
        let (gate, first) = occupied(&pinned);
        let late = pinned.call(|()| ()).timeout(Duration::from_millis(10));
        assert_eq!(late.result().unwrap_err().kind(), ErrorKind::TimedOut);
        let patient = pinned.call(|()| 1).run_timeout(Duration::from_secs(10));
        let first = first.timeout(Duration::ZERO);
        assert_eq!(first.result().unwrap_err().kind(), ErrorKind::TimedOut);
        gate.open();
        assert_eq!(patient.result().unwrap(), 1);
        let (gate, hurried) = occupied(&pinned);
        let hurried = hurried.run_timeout(Duration::from_millis(10));
        assert_eq!(hurried.result().unwrap_err().kind(), ErrorKind::TimedOut);
        gate.open();
    });
}

#[test]
fn a_call_may_wait_for_any_other_work() {
    quick(|| {
        let (pinned, other) = (Pinned::new(|| 1), Pinned::new(|| 2));
        let sum = pinned.call(move |one| {
            let two = other.call(|two| *two).result().unwrap();
            let three = unsync::thread(|| 3).result().unwrap();
            let four = unsync::spawn(async { 4 }).result().unwrap();
            let five = unsync::block_on(async { unsync::thread(|| 5).await.unwrap() });
            *one + two + three + four + five
        });
        assert_eq!(sum.result().unwrap(), 15);
    });
}

#[test]
fn a_call_may_be_awaited_and_chained() {
    quick(|| {
        let pinned = Pinned::new(|| String::from("four"));
        let task = unsync::spawn(async move {
            let length = pinned.call(|text| text.len()).await.unwrap();
            pinned
                .call(move |text| text.repeat(length))
                .map(|text| text.len())
                .await
        });
        assert_eq!(task.flatten().result().unwrap(), 16);
    });
}

#[test]
fn calls_that_nobody_waits_for_run() {
    quick(|| {
        let (pinned, ran) = (Pinned::new(|| ()), Counter::new());
        for _ in 0..100 {
            let ran = ran.clone();
            drop(pinned.call(move |()| ran.add()));
        }
        ran.wait_for(100);
        let counted = ran.clone();
        let (gate, _first) = occupied(&pinned);
        drop(pinned.call(move |()| counted.add()).cancel_on_drop());
        gate.open();
        pinned.call(|()| ()).result().unwrap();
        assert_eq!(ran.count(), 100);
    });
}

#[test]
fn what_panics_in_its_drop_harms_nobody() {
    quick(|| {
        let (drops, after) = (Drops::new(), Drops::new());
        let (bomb, token) = (Bomb("a closure"), after.token());
        let pinned = rooted(&drops);
        let (gate, _first) = occupied(&pinned);
        let skipped = pinned.call(move |_| drop((bomb, token)));
        skipped.cancel();
        drop(pinned.call(|_| Bomb("a value")));
        gate.open();
        assert_eq!(pinned.call(|_| 1).result().unwrap(), 1);
        drop(pinned);
        drops.wait_for(1);
        let pinned = Pinned::new(|| Bomb("the pinned value itself"));
        pinned.call(|_| ()).result().unwrap();
    });
}

/// Its owner ends it: neither `drain` nor `shutdown` waits for it or ends it. But work that its calls
/// start is refused, like everything that is started later.
#[test]
fn a_shutdown_leaves_it_alone() {
    in_child("a_shutdown_leaves_it_alone", QUICK, &[], || {
        let drops = Drops::new();
        let pinned = rooted(&drops);
        let (gate, running) = occupied(&pinned);
        let queued = pinned.call(|_| unsync::is_cancelled());
        assert!(unsync::drain(QUICK), "there is nothing to wait for");
        unsync::shutdown(QUICK).unwrap();
        assert!(!running.is_done() && !queued.is_done());
        let started = pinned.call(|_| unsync::thread(|| ()).result().unwrap_err().kind());
        gate.open();
        running.result().unwrap();
        assert!(!queued.result().unwrap());
        assert_eq!(started.result().unwrap(), ErrorKind::ShutDown);
        let last = pinned.call(|value| *value.number.borrow());
        let mapped = pinned.call(|_| 1).map(|one| one + 1);
        assert_eq!(mapped.result().unwrap_err().kind(), ErrorKind::ShutDown);
        drop(pinned);
        assert_eq!(last.result().unwrap(), 0);
        drops.wait_for(1);
        // Nor does a new one need anything that is gone.
        assert_eq!(Pinned::new(|| 2).call(|two| *two).result().unwrap(), 2);
    });
}

#[test]
fn the_settings_hold_for_its_thread() {
    in_child("the_settings_hold_for_its_thread", QUICK, &[], || {
        let started = Log::new();
        let log = started.clone();
        let config = Config::new().thread_name("mine").stack_size(64 << 20);
        let hook = move || log.push(thread::current().name().map(str::to_owned));
        config.on_thread_start(hook).install().unwrap();
        let pinned = Pinned::new(|| 0_u64);
        // Deeper than any default stack.
        fn deep(levels: u64) -> u64 {
            let weight = std::hint::black_box([levels; 512]);
            match levels {
                0 => 0,
                _ => deep(levels - 1) + weight[0] / levels,
            }
        }
        let depth = pinned.call(|_| deep(5_000)).result().unwrap();
        assert_eq!(depth, 5_000);
        assert_eq!(started.entries(), [Some("mine-pinned".to_owned())]);
    });
}

#[test]
fn settings_that_make_no_sense_fail_every_call() {
    let variables = [("UNSYNC_THREADS", "many")];
    in_child(
        "settings_that_make_no_sense_fail_every_call",
        QUICK,
        &variables,
        || {
            let pinned = Pinned::new(|| 0);
            for _ in 0..2 {
                let error = pinned.call(|_| ()).result().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::NotInitialised);
            }
        },
    );
}

/// The stack is larger than any memory, so the system refuses the thread.
#[test]
fn a_thread_that_the_system_refuses_fails_every_call() {
    in_child(
        "a_thread_that_the_system_refuses_fails_every_call",
        QUICK,
        &[],
        || {
            Config::new().stack_size(1 << 60).install().unwrap();
            let drops = Drops::new();
            let (pinned, line) = (rooted(&drops), line!());
            assert_eq!(drops.count(), 1, "what was to make the value");
            for _ in 0..2 {
                let error = pinned.call(|_| ()).result().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Os);
                assert!(std::error::Error::source(&error).is_some());
                let text = error.to_string();
                assert!(text.contains("pinned.rs"), "{text} {line}");
            }
        },
    );
}

#[test]
fn auto_traits_and_debug() {
    fn all<T: Send + Sync + Unpin>() {}
    all::<Pinned<Rc<Cell<*const u8>>>>();
    fn unwind_safe<T: UnwindSafe + RefUnwindSafe>() {}
    unwind_safe::<Pinned<Rc<Cell<u8>>>>();
    let (pinned, line) = (Pinned::new(|| Rc::new(1)), line!());
    let place = format!("Pinned(started at {}:{line}:", file!());
    assert!(format!("{pinned:?}").starts_with(&place), "{pinned:?}");
}
