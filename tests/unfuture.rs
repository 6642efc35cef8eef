//! The future by its states: {pending, done, failed, taken, abandoned} × what one can do with it, and
//! its contract with wakers, with racing threads, and with dropped values.
//!
//! Left out, because it has no meaning here:
//! - a sender that waits until nobody wants its value, and its waker: a `Promise` is asked, it does not
//!   wait;
//! - closing one end while the other goes on: either end is dropped as a whole;
//! - a panic when the payload of an error that is not a panic is taken: the caller gets the error back;
//! - numbers of tasks, and the context that a destructor sees: a task is named by its line.

mod support;

use std::cell::Cell;
use std::error::Error as _;
use std::fmt::{self, Debug};
use std::io;
use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe, catch_unwind, panic_any};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use support::{
    Bomb, Counter, CountingWaker, Drops, Gate, HEAVY, Log, OnDrop, Place, QUICK, Token, eventually,
    fence, in_child, limit, panic_text, panicking_waker, poll, quick, race, waker_with,
};
use unsync::{Canceller, Error, ErrorKind, Interval, Promise, Sleep, Timeout, Unfuture, YieldNow};

// --------------------------------------------------------------------------------------- the table

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Pending,
    Done,
    Failed,
    Taken,
    Abandoned,
}
use State::{Abandoned, Done, Failed, Pending, Taken};

const STATES: [State; 5] = [Pending, Done, Failed, Taken, Abandoned];

/// An `Unfuture` in some state.
struct Subject {
    unfuture: Unfuture<Token>,
    /// `Some` while it is pending.
    promise: Option<Promise<Token>>,
    /// The drops of the value, if it has or gets one.
    drops: Drops,
}

fn subject(state: State) -> Subject {
    let drops = Drops::new();
    let (promise, mut unfuture) = unsync::promise();
    let mut kept = None;
    match state {
        Pending => kept = Some(promise),
        Done => assert!(promise.set(drops.token())),
        Failed => promise.fail(failure()),
        Taken => {
            promise.set(drops.token());
            let taken = CountingWaker::new().poll(&mut unfuture);
            assert!(matches!(taken, Poll::Ready(Ok(_))));
        }
        Abandoned => drop(promise),
    }
    Subject {
        unfuture,
        promise: kept,
        drops,
    }
}

/// An error of the kind that failed work gives.
fn failure() -> Error {
    let failed = unsync::spawn(async { panic_any("on purpose") });
    failed.map(|(): ()| ()).result().unwrap_err()
}

/// Checks the outcome of a subject that was pending and got a value, or was not pending.
#[track_caller]
fn check(state: State, outcome: Result<Token, Error>, drops: &Drops) {
    match (state, outcome) {
        (Pending | Done, Ok(token)) => {
            assert_eq!(drops.count(), 0, "{state:?}: the value is still there");
            drop(token);
        }
        (Failed, Err(error)) => assert_eq!(error.kind(), ErrorKind::Panicked),
        (Taken | Abandoned, Err(error)) => assert_eq!(error.kind(), ErrorKind::Abandoned),
        (_, outcome) => panic!("{state:?} gave {outcome:?}"),
    }
    let dropped = usize::from(matches!(state, Pending | Done | Taken));
    assert_eq!(drops.count(), dropped, "{state:?}: dropped exactly once");
}

#[test]
fn by_state_await() {
    quick(|| {
        for state in STATES {
            let mut subject = subject(state);
            let waker = CountingWaker::new();
            match state {
                Pending => {
                    assert!(waker.poll(&mut subject.unfuture).is_pending());
                    assert_eq!((waker.held(), waker.wakes()), (1, 0));
                    subject.promise.unwrap().set(subject.drops.token());
                    assert_eq!((waker.held(), waker.wakes()), (0, 1));
                }
                Taken => {
                    let text = panic_text(|| waker.poll(&mut subject.unfuture));
                    assert!(text.contains("polled after completion"), "{text}");
                    assert_eq!((waker.held(), waker.wakes()), (0, 0));
                    assert_eq!(subject.drops.count(), 1);
                    continue;
                }
                Done | Failed | Abandoned => {}
            }
            let before = waker.wakes();
            let Poll::Ready(outcome) = waker.poll(&mut subject.unfuture) else {
                panic!("{state:?} is not ready");
            };
            check(state, outcome, &subject.drops);
            assert_eq!((waker.held(), waker.wakes()), (0, before));
            let text = panic_text(|| waker.poll(&mut subject.unfuture));
            assert!(text.contains("polled after completion"), "{text}");
        }
    });
}

#[test]
fn by_state_result() {
    quick(|| {
        for state in STATES {
            let Subject {
                unfuture,
                promise,
                drops,
            } = subject(state);
            let log = Log::new();
            let waiter = thread::spawn({
                let log = log.clone();
                move || {
                    let outcome = unfuture.result();
                    log.push("given");
                    outcome
                }
            });
            if let Some(promise) = promise {
                log.push("set");
                promise.set(drops.token());
            }
            check(state, waiter.join().unwrap(), &drops);
            let set = usize::from(state == Pending);
            assert_eq!(log.entries(), ["set", "given"][1 - set..]);
        }
    });
}

#[test]
fn by_state_wait() {
    quick(|| {
        for state in STATES {
            let mut subject = subject(state);
            let log = Log::new();
            thread::scope(|scope| {
                let waiters = [(); 3].map(|()| {
                    scope.spawn(|| {
                        subject.unfuture.wait();
                        log.push("ended");
                    })
                });
                if let Some(promise) = subject.promise.take() {
                    log.push("set");
                    promise.set(subject.drops.token());
                }
                waiters
                    .into_iter()
                    .for_each(|waiter| waiter.join().unwrap());
                let set = usize::from(state == Pending);
                assert_eq!(log.entries(), ["set", "ended", "ended", "ended"][1 - set..]);
            });
            // Waiting does not take the value.
            subject.unfuture.wait();
            check(state, subject.unfuture.result(), &subject.drops);
        }
    });
}

#[test]
fn by_state_wait_timeout() {
    const SHORT: Duration = Duration::from_millis(20);
    quick(|| {
        for state in STATES {
            let mut subject = subject(state);
            if let Some(promise) = subject.promise.take() {
                let started = Instant::now();
                assert!(!subject.unfuture.wait_timeout(SHORT));
                assert!(started.elapsed() >= SHORT, "{:?}", started.elapsed());
                assert!(!subject.unfuture.wait_timeout(Duration::ZERO));
                assert!(!subject.unfuture.is_done());
                let token = subject.drops.token();
                let setter = thread::spawn(move || promise.set(token));
                assert!(subject.unfuture.wait_timeout(Duration::MAX));
                setter.join().unwrap();
            }
            assert!(subject.unfuture.wait_timeout(Duration::ZERO));
            assert!(subject.unfuture.wait_timeout(Duration::MAX));
            check(state, subject.unfuture.result(), &subject.drops);
        }
    });
}

#[test]
fn by_state_is_done() {
    quick(|| {
        for state in STATES {
            let subject = subject(state);
            assert_eq!(subject.unfuture.is_done(), state != Pending, "{state:?}");
            if let Some(promise) = subject.promise {
                promise.set(subject.drops.token());
            }
            assert!(subject.unfuture.is_done(), "{state:?}");
            check(state, subject.unfuture.result(), &subject.drops);
        }
    });
}

#[test]
fn by_state_then() {
    quick(|| {
        for state in STATES {
            let subject = subject(state);
            let log = Log::new();
            let continued = subject.unfuture.then({
                let log = log.clone();
                move |task| async move {
                    log.push("continued");
                    (task.is_done(), task.result(), Place::here())
                }
            });
            if let Some(promise) = subject.promise {
                // The continuation exists by now, and waits.
                fence();
                assert!(!continued.is_done());
                log.push("set");
                promise.set(subject.drops.token());
            }
            let (was_done, outcome, place) = continued.result().unwrap();
            assert!(was_done && place.is_ambient(), "{state:?}");
            check(state, outcome, &subject.drops);
            let set = usize::from(state == Pending);
            assert_eq!(log.entries(), ["set", "continued"][1 - set..]);
        }
    });
}

#[test]
fn by_state_drop() {
    quick(|| {
        for state in STATES {
            let mut subject = subject(state);
            let waker = CountingWaker::new();
            if state == Pending {
                assert!(waker.poll(&mut subject.unfuture).is_pending());
            }
            drop(subject.unfuture);
            let had_value = usize::from(matches!(state, Done | Taken));
            assert_eq!(subject.drops.count(), had_value, "{state:?}");
            if let Some(promise) = subject.promise {
                // Nobody wants the value any more: it is dropped on the thread that makes it.
                assert!(promise.is_cancelled());
                assert!(!promise.set(subject.drops.token()));
                assert_eq!(subject.drops.places(), [Place::here()]);
            }
            assert_eq!((waker.wakes(), waker.held()), (0, 0), "{state:?}");
        }
    });
}

#[test]
fn by_state_cancel() {
    quick(|| {
        for state in STATES {
            let Subject {
                unfuture,
                promise,
                drops,
            } = subject(state);
            let canceller = unfuture.canceller();
            assert_eq!(canceller.cancel(), state == Pending, "{state:?}");
            // Cancelling again, either way, gives the same answer.
            let again = [unfuture.cancel(), canceller.clone().cancel()];
            assert_eq!(again, [state == Pending; 2], "{state:?}");
            assert!(unfuture.is_done());
            let Some(promise) = promise else {
                check(state, unfuture.result(), &drops);
                continue;
            };
            assert!(promise.is_cancelled());
            assert!(!promise.set(drops.token()));
            assert_eq!(drops.places(), [Place::here()], "what comes too late goes");
            assert_eq!(unfuture.result().unwrap_err().kind(), ErrorKind::Cancelled);
            assert!(canceller.cancel(), "after the outcome was taken");
        }
        // Work that no longer exists cannot be cancelled.
        let gone = subject(Done).unfuture.canceller();
        assert!(!gone.cancel());
    });
}

#[test]
fn by_state_drop_of_what_is_tied() {
    quick(|| {
        for state in STATES {
            let subject = subject(state);
            let waker = CountingWaker::new();
            let mut tied = subject.unfuture.cancel_on_drop();
            if state == Pending {
                assert!(waker.poll(&mut tied).is_pending());
            }
            drop(tied);
            let had_value = usize::from(matches!(state, Done | Taken));
            assert_eq!(subject.drops.count(), had_value, "{state:?}");
            assert!(subject.promise.is_none_or(|promise| promise.is_cancelled()));
            assert_eq!(waker.held(), 0, "{state:?}");
        }
    });
}

/// On the ambient thread nothing blocks: work that ended gives its outcome, other work gives an error.
#[test]
fn by_state_on_the_ambient_thread() {
    quick(|| {
        for state in STATES {
            let Subject {
                unfuture,
                promise,
                drops,
            } = subject(state);
            let seen = unsync::spawn(async move {
                let waits = [
                    catch_unwind(AssertUnwindSafe(|| unfuture.wait())).is_ok(),
                    catch_unwind(AssertUnwindSafe(|| unfuture.wait_timeout(QUICK))).is_ok(),
                    unfuture.is_done(),
                ];
                (waits, unfuture.result())
            });
            let (waits, outcome) = seen.result().unwrap();
            assert_eq!(waits, [state != Pending; 3], "{state:?}");
            let Some(promise) = promise else {
                check(state, outcome, &drops);
                continue;
            };
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::WouldBlock);
            promise.set(drops.token());
            assert_eq!(drops.count(), 1, "the work went on, unheard");
        }
    });
}

// -------------------------------------------------------------------------------- made at once, by hand

#[test]
fn ready_and_failed_are_done_at_once() {
    quick(|| {
        let drops = Drops::new();
        let mut ready = Unfuture::ready(drops.token());
        assert!(ready.is_done());
        assert!(poll(&mut ready, &panicking_waker()).is_ready());
        assert_eq!(drops.count(), 1);
        let failed = Unfuture::<u8>::failed(failure());
        assert!(failed.is_done());
        assert_eq!(failed.result().unwrap_err().kind(), ErrorKind::Panicked);
    });
}

#[test]
fn a_promise_may_be_kept_broken_or_dropped_on_any_thread() {
    quick(|| {
        for how in ["set", "fail", "drop"] {
            let (promise, unfuture) = unsync::promise();
            let error = failure();
            let thread = thread::spawn(move || match how {
                "set" => assert!(promise.set(how)),
                "fail" => promise.fail(error),
                _ => drop(promise),
            });
            let outcome = unsync::block_on(unfuture).map_err(|error| error.kind());
            thread.join().unwrap();
            assert_eq!(
                outcome,
                match how {
                    "set" => Ok("set"),
                    "fail" => Err(ErrorKind::Panicked),
                    _ => Err(ErrorKind::Abandoned),
                }
            );
        }
    });
}

/// A panic is the usual way to lose a promise.
#[test]
fn a_promise_lost_in_a_panic_resolves_its_waiters() {
    quick(|| {
        let (promise, unfuture) = unsync::promise::<u8>();
        let job = unsync::thread(move || {
            let _promise = promise;
            panic_any("with a promise in hand");
        });
        assert_eq!(unfuture.result().unwrap_err().kind(), ErrorKind::Abandoned);
        assert_eq!(
            job.map(|(): ()| ()).result().unwrap_err().kind(),
            ErrorKind::Panicked
        );
    });
}

#[test]
fn a_promise_whose_unfuture_is_gone_is_harmless() {
    quick(|| {
        let drops = Drops::new();
        for how in ["set", "fail", "drop"] {
            let (promise, unfuture) = unsync::promise();
            drop(unfuture);
            match how {
                "set" => assert!(!promise.set(drops.token())),
                "fail" => promise.fail(failure()),
                _ => drop(promise),
            }
        }
        assert_eq!(drops.count(), 1);
    });
}

/// What only passes a value on counts as seeing it as long as somebody holds the result.
#[test]
fn a_promise_sees_that_what_was_made_of_it_is_dropped() {
    const LONG: Duration = Duration::from_secs(3600);
    fn check<T: Send + 'static, M>(name: &str, value: fn() -> T, make: impl Fn(Unfuture<T>) -> M) {
        let (promise, unfuture) = unsync::promise();
        let made = make(unfuture);
        assert!(!promise.is_cancelled(), "{name}");
        assert!(promise.set(value()), "{name}");
        drop(made);

        let (promise, unfuture) = unsync::promise();
        drop(make(unfuture));
        assert!(promise.is_cancelled(), "{name}");
        assert!(!promise.set(value()), "{name}");
    }
    quick(|| {
        let one = || 1;
        check("nothing", one, |unfuture| unfuture);
        check(
            "a result",
            || Ok(1),
            Unfuture::<Result<i32, Error>>::flatten,
        );
        check(
            "an unfuture",
            || Unfuture::ready(1),
            Unfuture::<Unfuture<i32>>::flatten,
        );
        check("a deadline", one, |unfuture| unfuture.timeout(LONG));
        check("a deadline to run", one, |unfuture| {
            unfuture.run_timeout(LONG)
        });
        check("join_all", one, |unfuture| {
            unsync::join_all([unfuture, pending()])
        });
        check("settle_all", one, |unfuture| unsync::settle_all([unfuture]));
        check("race", one, |unfuture| unsync::race([pending(), unfuture]));
        check("as_completed", one, |unfuture| {
            unsync::as_completed([unfuture])
        });
        check("shared", one, |unfuture| {
            let shared = unfuture.shared();
            drop(shared.clone());
            shared
        });
        check("all of it", one, |unfuture| {
            let deadline = unsync::race([unfuture.timeout(LONG)]).timeout(LONG);
            unsync::join_all([unsync::race([deadline])]).shared()
        });
        // Somebody would have seen this value, until something else ended the whole.
        let (promise, unfuture) = unsync::promise::<i32>();
        let failed = unsync::join_all([unfuture, Unfuture::failed(failure())]);
        failed.wait();
        assert!(promise.is_cancelled() && !promise.set(1));
        drop(failed);
    });
}

/// An `Unfuture` that stays pending.
fn pending() -> Unfuture<i32> {
    let (promise, unfuture) = unsync::promise();
    std::mem::forget(promise);
    unfuture
}

/// A step that uses the value runs whether or not anybody looks, so it sees the value.
#[test]
fn a_promise_counts_on_what_goes_on_with_its_value() {
    type Step = fn(Unfuture<i32>, Counter);
    quick(|| {
        let steps: [(&str, Step); 7] = [
            ("map", |unfuture, ran| {
                drop(unfuture.map(move |_| ran.add()))
            }),
            ("and_then", |unfuture, ran| {
                drop(unfuture.and_then(async move |_| ran.add()));
            }),
            ("then", |unfuture, ran| {
                drop(unfuture.then(async move |_| ran.add()));
            }),
            ("map_thread", |unfuture, ran| {
                drop(unfuture.map_thread(move |_| ran.add()));
            }),
            ("on_done", |unfuture, ran| {
                unfuture.on_done(move |_| {
                    ran.add();
                });
            }),
            ("a task", |unfuture, ran| {
                drop(unsync::spawn(
                    async move { unfuture.await.map(|_| ran.add()) },
                ));
            }),
            ("a thread", |unfuture, ran| {
                drop(thread::spawn(move || unfuture.result().map(|_| ran.add())));
            }),
        ];
        for (name, step) in steps {
            let (promise, unfuture) = unsync::promise();
            let ran = Counter::new();
            step(unsync::race([unfuture]), ran.clone());
            fence();
            assert!(!promise.is_cancelled(), "{name}");
            assert!(promise.set(1), "{name}");
            ran.wait_for(1);
        }
        // A step that has ended does not see it any more.
        let (promise, unfuture) = unsync::promise::<i32>();
        let mapped = unfuture.map(|n| n);
        assert!(mapped.cancel());
        mapped.wait();
        assert!(promise.is_cancelled() && !promise.set(1));
    });
}

#[test]
fn an_inner_promise_sees_that_the_whole_is_dropped() {
    quick(|| {
        let (outer, unfuture) = unsync::promise();
        let flat = Unfuture::<Unfuture<i32>>::flatten(unfuture);
        let (promise, inner) = unsync::promise();
        assert!(outer.set(inner));
        fence();
        assert!(!promise.is_cancelled());
        drop(flat);
        assert!(promise.is_cancelled() && !promise.set(1));
    });
}

#[test]
fn a_promise_asks_a_long_chain_without_overflowing_the_stack() {
    limit(HEAVY, || {
        let (promise, mut last) = unsync::promise::<i32>();
        for _ in 0..30_000 {
            last = unsync::race([last]);
        }
        assert!(!promise.is_cancelled());
        drop(last);
        assert!(promise.is_cancelled() && !promise.set(1));
    });
}

#[test]
fn races_of_set_and_drop_of_what_was_made() {
    limit(HEAVY, || {
        let drops = Drops::new();
        race(
            5_000,
            |_| {
                let (promise, unfuture) = unsync::promise();
                let made = unsync::settle_all([unsync::race([unfuture])]);
                ((promise, drops.token()), made)
            },
            |_, (promise, token)| {
                let cancelled = promise.is_cancelled();
                assert!(!(promise.set(token) && cancelled), "it does not come back");
            },
            |_, made| drop(made),
        );
        // The ambient thread drops what passes through a combinator.
        drops.wait_for(5_000);
        fence();
        assert_eq!(drops.count(), 5_000);
    });
}

// ------------------------------------------------------------------------------------------ wakers

#[test]
fn the_last_poll_wins() {
    quick(|| {
        let (promise, mut unfuture) = unsync::promise();
        let (first, last) = (CountingWaker::new(), CountingWaker::new());
        assert!(first.poll(&mut unfuture).is_pending());
        assert!(last.poll(&mut unfuture).is_pending());
        assert_eq!((first.held(), last.held()), (0, 1));
        promise.set(1);
        assert_eq!((first.wakes(), last.wakes()), (0, 1));
        assert_eq!((first.held(), last.held()), (0, 0));
    });
}

#[test]
fn an_unfuture_moves_from_task_to_task() {
    quick(|| {
        let (promise, mut unfuture) = unsync::promise();
        let (sender, receiver) = std::sync::mpsc::channel();
        let first = unsync::spawn(async move {
            std::future::poll_fn(|cx| {
                assert!(poll(&mut unfuture, cx.waker()).is_pending());
                Poll::Ready(())
            })
            .await;
            sender.send(unfuture).unwrap();
        });
        first.result().unwrap();
        let second = unsync::spawn(receiver.recv().unwrap()).flatten();
        fence();
        promise.set(2);
        assert_eq!(second.result().unwrap(), 2);
    });
}

#[test]
fn the_same_waker_registers_once() {
    quick(|| {
        let (promise, mut unfuture) = unsync::promise();
        let waker = CountingWaker::new();
        for _ in 0..20 {
            assert!(waker.poll(&mut unfuture).is_pending());
            assert_eq!(waker.held(), 1);
        }
        promise.set(1);
        assert_eq!((waker.wakes(), waker.held()), (1, 0));
    });
}

#[test]
fn a_waker_is_let_go_with_the_unfuture() {
    quick(|| {
        for how in ["set", "fail", "drop"] {
            let (promise, mut unfuture) = unsync::promise();
            let waker = CountingWaker::new();
            assert!(waker.poll(&mut unfuture).is_pending());
            drop(unfuture);
            assert_eq!(waker.held(), 0);
            match how {
                "set" => assert!(!promise.set(1)),
                "fail" => promise.fail(failure()),
                _ => drop(promise),
            }
            assert_eq!(waker.wakes(), 0, "{how}");
        }
    });
}

/// Flattening passes the outcome on without a waker; it must not wake an old waker.
#[test]
fn a_waker_is_let_go_when_the_unfuture_is_passed_on() {
    quick(|| {
        let (promise, mut unfuture) = unsync::promise::<Result<u8, Error>>();
        let waker = CountingWaker::new();
        assert!(waker.poll(&mut unfuture).is_pending());
        let flat = unfuture.flatten();
        assert_eq!(waker.held(), 0);
        promise.set(Ok(1));
        assert_eq!((flat.result().unwrap(), waker.wakes()), (1, 0));
    });
}

/// A waker's wake and drop are foreign code. Both call back here: under a lock of ours they would never
/// return.
#[test]
fn a_waker_may_call_back() {
    type Subject = Arc<Mutex<Option<Unfuture<Result<u8, Error>>>>>;
    /// A waker that uses the `Unfuture` that it is registered with, and the rest of the library.
    fn nosy(subject: &Subject, calls: &Counter) -> std::task::Waker {
        let call = {
            let (subject, calls) = (Arc::clone(subject), calls.clone());
            move || {
                // This is not the library's lock, so only `try_lock`: the test itself may hold it.
                if let Ok(subject) = subject.try_lock() {
                    subject.as_ref().map(Unfuture::is_done);
                }
                unsync::spawn(async {});
                let (promise, mut other) = unsync::promise::<u8>();
                assert!(poll(&mut other, std::task::Waker::noop()).is_pending());
                drop(promise);
                assert!(other.is_done());
                calls.add();
            }
        };
        waker_with(call.clone(), call)
    }
    quick(|| {
        for how in ["set", "drop the promise", "replace", "drop", "flatten"] {
            let calls = Counter::new();
            let (promise, unfuture) = unsync::promise();
            let subject = Arc::new(Mutex::new(Some(unfuture)));
            let waker = nosy(&subject, &calls);
            let again = |waker: &_| poll(subject.lock().unwrap().as_mut().unwrap(), waker);
            assert!(again(&waker).is_pending());
            drop(waker);
            match how {
                "set" => assert!(promise.set(Ok(1))),
                "drop the promise" => drop(promise),
                "replace" => assert!(again(std::task::Waker::noop()).is_pending()),
                "drop" => drop(subject.lock().unwrap().take()),
                _ => {
                    let flat = subject.lock().unwrap().take().unwrap().flatten();
                    promise.set(Ok(1));
                    assert_eq!(flat.result().unwrap(), 1);
                }
            }
            let woken = usize::from(matches!(how, "set" | "drop the promise"));
            assert_eq!(calls.count(), woken + 1, "{how}: woken, and dropped");
        }
    });
}

#[test]
fn a_waker_that_panics_harms_nobody() {
    quick(|| {
        for how in ["set", "fail", "drop"] {
            let (promise, mut unfuture) = unsync::promise();
            let held = Arc::new(());
            let waker = {
                let held = Arc::clone(&held);
                waker_with(
                    move || {
                        let _held = &held;
                        panic_any("a waker's panic")
                    },
                    || (),
                )
            };
            assert!(poll(&mut unfuture, &waker).is_pending());
            drop(waker);
            match how {
                "set" => assert!(promise.set(1)),
                "fail" => promise.fail(failure()),
                _ => drop(promise),
            }
            assert_eq!(Arc::strong_count(&held), 1, "{how}: no leaked waker");
            assert_eq!(unfuture.result().ok(), (how == "set").then_some(1));
        }
    });
}

/// Passing an outcome on wakes wakers and drops values. Such foreign code finds the library in working
/// order, even if it waits for work that is itself passed on.
#[test]
fn foreign_code_may_wait_while_an_outcome_is_handed_on() {
    fn handed_on() -> i32 {
        let flat = Unfuture::ready(Ok(1)).flatten().result().unwrap();
        let joined = unsync::join_all([Unfuture::ready(2)]).result().unwrap();
        flat + joined[0]
    }
    quick(|| {
        let seen = Log::new();
        let see = {
            let seen = seen.clone();
            move || seen.push(handed_on())
        };
        let (promise, unfuture) = unsync::promise::<Result<u8, Error>>();
        let mut flat = unfuture.flatten();
        let waker = waker_with(see.clone(), || ());
        assert!(poll(&mut flat, &waker).is_pending());
        promise.set(Ok(1));
        let seen_by = |what, expected: &[i32]| {
            eventually(QUICK, what, || {
                let entries = seen.entries();
                (entries == expected, entries)
            });
        };
        seen_by("in a wake", &[3]);

        let (promise, unfuture) = unsync::promise::<Result<OnDrop<_>, Error>>();
        drop(unfuture.flatten());
        promise.set(Ok(OnDrop(see)));
        seen_by("in the drop of a value", &[3, 3]);
    });
}

// ------------------------------------------------------------------------------------------- races

const RACES: usize = 20_000;

#[test]
fn races_of_set_and_drop() {
    limit(HEAVY, || {
        let drops = Drops::new();
        race(
            RACES,
            |_| unsync::promise(),
            |_, promise| promise.set(drops.token()),
            |_, unfuture| drop(unfuture),
        );
        assert_eq!(drops.count(), RACES);
    });
}

/// A waker is woken if and only if its poll returned `Pending`.
#[test]
fn races_of_set_and_poll() {
    limit(HEAVY, || {
        race(
            RACES,
            |_| unsync::promise(),
            |number, promise| match number % 2 {
                0 => assert!(promise.set(number)),
                _ => drop(promise),
            },
            |number, mut unfuture| {
                let waker = CountingWaker::new();
                let polled = match waker.poll(&mut unfuture) {
                    Poll::Ready(outcome) => outcome,
                    Poll::Pending => {
                        waker.wait_for(1);
                        unfuture.result()
                    }
                };
                assert!(waker.wakes() <= 1);
                assert_eq!(polled.ok(), (number % 2 == 0).then_some(number));
            },
        );
    });
}

/// Exactly one of the two wakers is woken, once; and the first only if the last poll did not return
/// `Pending`.
#[test]
fn races_of_set_and_another_waker() {
    limit(HEAVY, || {
        race(
            RACES,
            |_| {
                let (promise, mut unfuture) = unsync::promise();
                let (woken, first_woken) = (Counter::new(), Counter::new());
                let both = (woken.clone(), first_woken.clone());
                let first = waker_with(
                    move || {
                        both.1.add();
                        both.0.add();
                    },
                    || (),
                );
                assert!(poll(&mut unfuture, &first).is_pending());
                (promise, (unfuture, woken, first_woken))
            },
            |_, promise| promise.set(1),
            |_, (mut unfuture, woken, first_woken)| {
                let last = waker_with(
                    {
                        let woken = woken.clone();
                        move || {
                            woken.add();
                        }
                    },
                    || (),
                );
                let told_to_wait = poll(&mut unfuture, &last).is_pending();
                woken.wait_for(1);
                assert!(!told_to_wait || first_woken.count() == 0);
                drop(unfuture);
                assert_eq!(woken.count(), 1);
            },
        );
    });
}

#[test]
fn races_of_set_and_wait() {
    limit(HEAVY, || {
        race(
            RACES / 4,
            |_| unsync::promise(),
            |number, promise| promise.set(number),
            |number, unfuture| {
                unfuture.wait();
                assert!(unfuture.wait_timeout(Duration::ZERO));
                assert_eq!(unfuture.result().unwrap(), number);
            },
        );
    });
}

/// One of the two succeeds, and both sides know which.
#[test]
fn races_of_set_and_cancel() {
    limit(HEAVY, || {
        let drops = Drops::new();
        race(
            RACES,
            |_| unsync::promise(),
            |_, promise| promise.set(drops.token()),
            |_, unfuture: Unfuture<Token>| {
                let cancelled = unfuture.cancel();
                match unfuture.result() {
                    Ok(_token) => assert!(!cancelled),
                    Err(error) => assert!(cancelled && error.kind() == ErrorKind::Cancelled),
                }
            },
        );
        assert_eq!(drops.count(), RACES);
    });
}

#[test]
fn races_of_set_and_flatten() {
    limit(HEAVY, || {
        let drops = Drops::new();
        race(
            RACES / 4,
            |_| {
                let (inner_promise, inner) = unsync::promise();
                let (outer_promise, outer) = unsync::promise::<Unfuture<Token>>();
                ((inner_promise, outer_promise, inner), outer)
            },
            |number, (inner_promise, outer_promise, inner)| {
                let token = drops.token();
                if number % 2 == 0 {
                    outer_promise.set(inner);
                    inner_promise.set(token);
                } else {
                    inner_promise.set(token);
                    outer_promise.set(inner);
                }
            },
            |number, outer: Unfuture<Unfuture<Token>>| {
                let flat = outer.flatten();
                if number % 3 > 0 {
                    assert!(flat.result().is_ok());
                }
            },
        );
        // The last value that nobody waits for may not be dropped yet.
        drops.wait_for(RACES / 4);
        assert_eq!(drops.count(), RACES / 4);
    });
}

#[test]
fn many_threads_set_many_promises() {
    const THREADS: usize = 8;
    const EACH: usize = 500;
    quick(|| {
        let (promises, unfutures): (Vec<_>, Vec<_>) =
            (0..THREADS * EACH).map(|_| unsync::promise()).unzip();
        let promises = Arc::new(Mutex::new(Vec::from_iter(promises.into_iter().enumerate())));
        let all = unsync::join_all(unfutures);
        for _ in 0..THREADS {
            let promises = Arc::clone(&promises);
            thread::spawn(move || {
                loop {
                    let next = promises.lock().unwrap().pop();
                    let Some((number, promise)) = next else { break };
                    promise.set(number);
                }
            });
        }
        assert_eq!(all.result().unwrap(), Vec::from_iter(0..THREADS * EACH));
    });
}

/// `wait` takes a shared reference, so any number of threads may be in it.
#[test]
fn many_threads_wait_for_one() {
    quick(|| {
        let (promise, unfuture) = unsync::promise();
        let arrived = Counter::new();
        thread::scope(|scope| {
            let waiters = Vec::from_iter((0..100).map(|number| {
                let (unfuture, arrived) = (&unfuture, arrived.clone());
                scope.spawn(move || {
                    arrived.add();
                    match number % 2 {
                        0 => unfuture.wait(),
                        _ => assert!(unfuture.wait_timeout(QUICK)),
                    }
                })
            }));
            arrived.wait_for(100);
            promise.set(1);
            waiters
                .into_iter()
                .for_each(|waiter| waiter.join().unwrap());
        });
        assert_eq!(unfuture.result().unwrap(), 1);
    });
}

// ------------------------------------------------------------------------------------ what is dropped

#[test]
fn a_value_that_nobody_wants_is_dropped_where_it_is_made() {
    quick(|| {
        let (drops, gate) = (Drops::new(), Gate::new());
        drop(unsync::spawn({
            let (drops, gate) = (drops.clone(), gate.clone());
            async move {
                gate.pass().await;
                drops.token()
            }
        }));
        gate.open();
        drops.wait_for(1);
        assert!(drops.places()[0].is_ambient(), "{:?}", drops.places());

        let (drops, gate) = (Drops::new(), Gate::new());
        drop(unsync::thread({
            let (drops, gate) = (drops.clone(), gate.clone());
            move || {
                gate.wait();
                drops.token()
            }
        }));
        gate.open();
        drops.wait_for(1);
        assert!(drops.places()[0].is_pool(), "{:?}", drops.places());
    });
}

#[test]
fn a_value_that_is_there_is_dropped_with_the_unfuture() {
    quick(|| {
        let drops = Drops::new();
        let made = [
            unsync::spawn({
                let drops = drops.clone();
                async move { drops.token() }
            }),
            unsync::thread({
                let drops = drops.clone();
                move || drops.token()
            }),
            Unfuture::ready(drops.token()),
        ];
        for unfuture in made {
            unfuture.wait();
            drop(unfuture);
        }
        assert_eq!(drops.places(), [(); 3].map(|()| Place::here()));
    });
}

/// Dropping an `Unfuture` is silent, whether the drop or the value comes first; otherwise a race would
/// decide whether it panics.
#[test]
fn a_value_that_panics_in_its_drop_does_not_reach_who_drops_the_unfuture() {
    quick(|| {
        let gate = Gate::new();
        let early = unsync::spawn({
            let gate = gate.clone();
            async move {
                gate.pass().await;
                Bomb("dropped where it was made")
            }
        });
        drop(early);
        gate.open();
        fence();
        let text = "dropped with its unfuture";
        let ended = [
            Unfuture::ready(Bomb(text)),
            unsync::spawn(async { Bomb(text) }),
            unsync::thread(|| Bomb(text)),
        ];
        for late in ended {
            late.wait();
            let silent = catch_unwind(AssertUnwindSafe(|| drop(late)));
            assert!(silent.is_ok(), "dropping an `Unfuture` panicked");
        }
    });
}

/// Work is over when its value is seen: its future or closure, and what that holds, are gone.
#[test]
fn work_is_gone_before_its_value_is_seen() {
    quick(|| {
        for round in 0..100 {
            let drops = Drops::new();
            let token = drops.token();
            let task = unsync::spawn(async move {
                unsync::yield_now().await;
                let _token = &token;
            });
            task.result().unwrap();
            assert_eq!(drops.count(), 1, "async, round {round}");
            assert!(drops.places()[0].is_ambient());

            let drops = Drops::new();
            let token = drops.token();
            let job = unsync::thread(move || {
                let _token = &token;
            });
            unsync::block_on(job).unwrap();
            assert_eq!(drops.count(), 1, "thread, round {round}");
            assert!(drops.places()[0].is_pool());
        }
    });
}

/// So a continuation finds its source cleaned up.
#[test]
fn a_source_is_gone_before_its_continuation_runs() {
    /// Work that holds a token, and that token's counter.
    fn source() -> (Unfuture<()>, Drops) {
        let drops = Drops::new();
        let token = drops.token();
        let task = unsync::spawn(async move {
            unsync::yield_now().await;
            drop(token);
        });
        (task, drops)
    }
    quick(|| {
        let (task, drops) = source();
        assert_eq!(task.map(move |()| drops.count()).result().unwrap(), 1);
        let (task, drops) = source();
        let seen = task.and_then(move |()| async move { drops.count() });
        assert_eq!(seen.result().unwrap(), 1);
        let (task, drops) = source();
        let seen = task.then(move |_| async move { drops.count() });
        assert_eq!(seen.result().unwrap(), 1);
        let (task, drops) = source();
        let seen = task.map_thread(move |()| drops.count());
        assert_eq!(seen.result().unwrap(), 1);
    });
}

#[test]
fn a_closure_that_is_skipped_is_dropped() {
    quick(|| {
        let drops = Drops::new();
        let [one, two, three] = [(); 3].map(|()| drops.token());
        let skipped = Unfuture::<()>::failed(failure())
            .map(move |()| drop(one))
            .and_then(move |()| async move { drop(two) })
            .map_thread(move |()| drop(three));
        assert_eq!(skipped.result().unwrap_err().kind(), ErrorKind::Panicked);
        assert_eq!(drops.count(), 3);
    });
}

#[test]
fn a_joined_failure_drops_the_values_that_were_there() {
    quick(|| {
        let drops = Drops::new();
        let (late, pending) = unsync::promise();
        let works = [
            Unfuture::ready(drops.token()),
            Unfuture::failed(failure()),
            pending,
        ];
        let error = unsync::join_all(works).result().unwrap_err();
        assert_eq!((error.kind(), drops.count()), (ErrorKind::Panicked, 1));
        late.set(drops.token());
        assert_eq!(drops.count(), 2, "what comes later goes too");
    });
}

// ----------------------------------------------------------------------------------------- flatten

#[test]
fn flatten_takes_out_an_inner_result() {
    quick(|| {
        let cases = [
            (Ok(Ok(1)), Ok(1)),
            (Ok(Err(abandoned())), Err(ErrorKind::Abandoned)),
            (Err(failure()), Err(ErrorKind::Panicked)),
        ];
        for (outer, expected) in cases {
            for early in [true, false] {
                let (promise, unfuture) = unsync::promise::<Result<i32, Error>>();
                let flat = if early {
                    Ok(unfuture.flatten())
                } else {
                    Err(unfuture)
                };
                match outer.clone() {
                    Ok(value) => assert!(promise.set(value)),
                    Err(error) => promise.fail(error),
                }
                let flat = flat.unwrap_or_else(|unfuture| unfuture.flatten());
                assert!(early || flat.is_done());
                assert_eq!(flat.result().map_err(|error| error.kind()), expected);
            }
        }
    });
}

#[test]
fn flatten_waits_for_an_inner_unfuture() {
    quick(|| {
        // Whether the inner work ends before the outer, after it, or after somebody waits.
        for order in ["inner first", "outer first"] {
            for (inner_outcome, expected) in
                [(Ok(1), Ok(1)), (Err(failure()), Err(ErrorKind::Panicked))]
            {
                let (outer_promise, outer) = unsync::promise::<Unfuture<i32>>();
                let (inner_promise, inner) = unsync::promise();
                let mut flat = outer.flatten();
                let waker = CountingWaker::new();
                assert!(waker.poll(&mut flat).is_pending());
                let settle = |promise: Promise<i32>| match inner_outcome.clone() {
                    Ok(value) => assert!(promise.set(value)),
                    Err(error) => promise.fail(error),
                };
                if order == "inner first" {
                    settle(inner_promise);
                    assert_eq!((flat.is_done(), waker.wakes()), (false, 0));
                    outer_promise.set(inner);
                } else {
                    outer_promise.set(inner);
                    assert_eq!((flat.is_done(), waker.wakes()), (false, 0));
                    settle(inner_promise);
                }
                flat.wait();
                waker.wait_for(1);
                assert_eq!(waker.wakes(), 1, "{order}");
                assert_eq!(flat.result().map_err(|error| error.kind()), expected);
            }
        }
        let failed = Unfuture::<Unfuture<u8>>::failed(failure()).flatten();
        assert_eq!(failed.result().unwrap_err().kind(), ErrorKind::Panicked);
    });
}

#[test]
fn flatten_of_what_is_abandoned_or_taken() {
    quick(|| {
        let (promise, outer) = unsync::promise::<Unfuture<u8>>();
        let flat = outer.flatten();
        drop(promise);
        assert_eq!(flat.result().unwrap_err().kind(), ErrorKind::Abandoned);

        let (promise, inner) = unsync::promise::<u8>();
        let flat = Unfuture::ready(inner).flatten();
        drop(promise);
        assert_eq!(flat.result().unwrap_err().kind(), ErrorKind::Abandoned);

        let mut taken = Unfuture::ready(Ok(1));
        assert!(poll(&mut taken, &panicking_waker()).is_ready());
        assert_eq!(
            taken.flatten().result().unwrap_err().kind(),
            ErrorKind::Abandoned
        );
    });
}

/// The error of a dropped promise.
fn abandoned() -> Error {
    let (_, unfuture) = unsync::promise::<()>();
    unfuture.result().unwrap_err()
}

// ------------------------------------------------------------------------------------------ errors

#[test]
fn an_error_says_what_panicked_and_how() {
    quick(|| {
        let cases: [(&str, fn()); 3] = [
            ("async task panicked: static text (started at", || {
                panic_any("static text")
            }),
            ("async task panicked: text 5 (started at", || {
                panic!("text {}", 5)
            }),
            ("async task panicked (started at", || panic_any(5)),
        ];
        for (expected, panics) in cases {
            let error = unsync::spawn(async move { panics() }).result().unwrap_err();
            let (display, debug) = (format!("{error}"), format!("{error:?}"));
            assert!(display.starts_with(expected), "{display}");
            assert!(display.contains(file!()), "{display}");
            assert_eq!(debug, format!("Error(Panicked: {display})"));
        }
        let error = unsync::thread(|| panic_any("static text")).result();
        let display = error.map(|(): ()| ()).unwrap_err().to_string();
        assert!(
            display.starts_with("thread job panicked: static text"),
            "{display}"
        );
    });
}

#[test]
fn an_error_keeps_the_payload_for_one() {
    #[derive(Debug, PartialEq)]
    struct Payload(Cell<u8>);
    quick(|| {
        let error = unsync::spawn(async { panic_any(Payload(Cell::new(5))) }).result();
        let error = error.map(|(): ()| ()).unwrap_err();
        let copy = error.clone();
        let payload = error.into_panic().unwrap();
        assert_eq!(payload.downcast_ref(), Some(&Payload(Cell::new(5))));
        // The others get a description of it.
        let text = copy.clone().into_panic().unwrap();
        assert!(text.downcast_ref::<String>().unwrap().contains("panicked"));
        assert_eq!(copy.kind(), ErrorKind::Panicked);
        // An error that is not a panic is given back.
        let back = abandoned().into_panic().unwrap_err();
        assert_eq!(back.kind(), ErrorKind::Abandoned);
    });
}

/// Every way to start work names the line that called it.
#[test]
fn an_error_says_where_the_work_was_started() {
    const DECORATED: u32 = line!() + 1;
    unsync::unsync! {
        async fn asynchronous() { panic_any("async fn") }
        fn blocking() { panic_any("fn") }
    }
    /// The error, and the line of the call.
    macro_rules! here {
        ($work:expr) => {
            (
                line!(),
                stringify!($work),
                $work.result().map(drop).unwrap_err(),
            )
        };
    }
    #[track_caller]
    fn abandoned_here() -> Unfuture<u8> {
        let (_, unfuture) = unsync::promise();
        unfuture
    }
    fn boom() {
        panic_any("on purpose")
    }
    quick(|| {
        let cases = [
            here!(unsync::spawn(async move { boom() })),
            here!(unsync::spawn_local(move || async move { boom() })),
            here!(unsync::spawn_local(|| {
                boom();
                std::future::ready(())
            })),
            here!(unsync::thread(boom)),
            here!(asynchronous()),
            here!(blocking()),
            here!(abandoned_here()),
            here!(Unfuture::ready(()).map(move |()| boom())),
            here!(Unfuture::ready(()).and_then(move |()| async move { boom() })),
            here!(Unfuture::ready(()).then(move |_| async move { boom() })),
            here!(Unfuture::ready(()).map_thread(move |()| boom())),
            here!(unsync::spawn(async move { unsync::thread(boom).await }).flatten()),
        ];
        let wrong = cases.iter().filter_map(|(line, work, error)| {
            let place = format!("(started at {}:{line}:", file!());
            let named = error.to_string().contains(&place);
            (!named).then(|| format!("`{work}` on line {line}: {error}"))
        });
        assert_eq!(Vec::from_iter(wrong), [""; 0]);
        // A function pointer hides its caller.
        let pointer: fn() -> Unfuture<()> = asynchronous;
        let error = pointer().result().unwrap_err().to_string();
        assert!(
            error.contains(&format!("{}:{DECORATED}:", file!())),
            "{error}"
        );
        // Blocking on the ambient thread names the work that was waited for.
        let (promise, pending) = unsync::promise::<u8>();
        let line = line!() - 1;
        let refused = unsync::spawn(async move { pending.result() }).flatten();
        let error = refused.result().unwrap_err().to_string();
        assert!(error.contains(&format!("{}:{line}:", file!())), "{error}");
        drop(promise);
    });
}

/// Where a call panics, the panic points at the caller.
#[test]
fn a_panic_names_the_line_of_the_caller() {
    const NAME: &str = "a_panic_names_the_line_of_the_caller";
    in_child(NAME, HEAVY, &[], || {
        let places = Log::new();
        std::panic::set_hook(Box::new({
            let places = places.clone();
            move |info| {
                let at = info.location().unwrap();
                places.push((at.file().to_owned(), at.line()));
            }
        }));
        let pending = || unsync::spawn(std::future::pending::<u8>());
        type Refused = Box<dyn FnOnce() + Send>;
        /// What is refused on the ambient thread, and its line.
        macro_rules! refused {
            ($($work:ident),*; $refused:expr) => {{
                $(let $work = $work();)*
                (line!(), Box::new(move || _ = $refused) as Refused)
            }};
        }
        let shared = || pending().shared();
        let completed = || unsync::as_completed([pending()]);
        #[rustfmt::skip]
        let refused = [
            refused!(pending; pending.wait()),
            refused!(pending; pending.wait_timeout(QUICK)),
            refused!(shared; shared.wait()),
            refused!(shared; shared.wait_timeout(QUICK)),
            refused!(completed; { let mut completed = completed; completed.next() }),
            refused!(; unsync::block_on(async {})),
            refused!(; unsync::drain(QUICK)),
            refused!(; unsync::Limit::new(0)),
            refused!(; unsync::interval(Duration::ZERO)),
        ];
        let mut lines = Vec::new();
        for (line, refused) in refused {
            lines.push((file!().to_owned(), line));
            let error = unsync::spawn(async move { refused() })
                .result()
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Panicked, "line {line}");
        }
        assert_eq!(places.entries(), lines);
    });
}

/// An error that passes through keeps its own message and source.
#[test]
fn an_error_that_passes_through_is_not_changed() {
    quick(|| {
        let failed = unsync::thread(|| panic_any("the cause"));
        let line = line!() - 1;
        let passed = failed
            .map(|(): ()| 1)
            .and_then(|one| async move { one })
            .map_thread(|one| one)
            .then(|task| task)
            .flatten();
        let joined = unsync::join_all([passed]);
        let error = joined.result().unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("the cause") && text.contains(&format!(":{line}:")),
            "{text}"
        );
        assert!(error.into_panic().unwrap().is::<&str>());
    });
}

/// A user-defined error, with another one as its source.
#[derive(Debug)]
struct Outer(io::Error);

impl fmt::Display for Outer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the outer one")
    }
}

impl std::error::Error for Outer {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// As for an `io::Error`: the message is a text or an error, whose own source is kept.
#[test]
fn anybody_may_make_an_error() {
    quick(|| {
        let owned = format!("text {}", 1);
        for error in [
            Error::new(ErrorKind::Codec, "text 1"),
            Error::new(ErrorKind::Codec, &*owned),
            Error::new(ErrorKind::Codec, owned.clone()),
        ] {
            assert_eq!(
                (error.kind(), error.to_string()),
                (ErrorKind::Codec, owned.clone())
            );
            assert_eq!(format!("{error:?}"), "Error(Codec: text 1)");
            assert!(error.source().is_none() && error.worker_exit().is_none());
        }
        let outer = Error::new(ErrorKind::Os, Outer(io::ErrorKind::NotFound.into()));
        assert_eq!(outer.to_string(), "the outer one");
        let inner = outer.source().and_then(|inner| inner.downcast_ref());
        assert_eq!(inner.map(io::Error::kind), Some(io::ErrorKind::NotFound));

        let (promise, unfuture) = unsync::promise::<u8>();
        promise.fail(Error::new(ErrorKind::Panicked, "it fell over"));
        let error = unfuture.result().unwrap_err();
        assert_eq!(error.to_string(), "it fell over");
        let payload = error.into_panic().unwrap();
        assert_eq!(payload.downcast_ref(), Some(&"it fell over".to_owned()));
    });
}

/// There and back it is the same error, even if others hold clones of it.
#[test]
fn an_io_error_goes_through_and_comes_back() {
    quick(|| {
        // An error of the system, even from a clone.
        let missing = || std::fs::File::open("/no/such/file").unwrap_err();
        let error = Error::from(missing());
        assert_eq!(error.kind(), ErrorKind::Os);
        assert_eq!(error.to_string(), missing().to_string());
        let source = error
            .source()
            .and_then(|source| source.downcast_ref::<io::Error>());
        assert_eq!(source.unwrap().raw_os_error(), missing().raw_os_error());
        for back in [io::Error::from(error.clone()), error.into()] {
            assert_eq!(back.raw_os_error(), missing().raw_os_error(), "{back}");
        }

        // An error of a program, with the value in it.
        let own = || io::Error::new(io::ErrorKind::AddrInUse, Outer(missing()));
        let back = io::Error::from(Error::from(own()));
        assert_eq!(back.kind(), io::ErrorKind::AddrInUse);
        assert!(back.downcast::<Outer>().is_ok());
        // A clone does not give that value away, but keeps its kind and text.
        let error = Error::from(own());
        let copy = io::Error::from(error.clone());
        assert_eq!(copy.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(copy.to_string(), own().to_string());
        drop(copy);
        let back = io::Error::from(error);
        assert!(back.downcast::<Outer>().is_ok(), "the last one has it");

        // Through work that failed, and through its waiters.
        let (promise, unfuture) = unsync::promise::<()>();
        promise.fail(own().into());
        let passed = unfuture.map(|()| 1).and_then(async |one| one);
        let back = io::Error::from(unsync::join_all([passed]).result().unwrap_err());
        assert!(back.downcast::<Outer>().is_ok());
    });
}

#[test]
fn an_error_goes_through_an_io_error_and_comes_back() {
    quick(|| {
        let error = failure();
        let there = io::Error::from(error.clone());
        assert_eq!(there.kind(), io::ErrorKind::Other);
        assert_eq!(there.to_string(), error.to_string());
        let back = Error::from(there);
        drop(error);
        let payload = back.into_panic().expect("it is the panic itself");
        assert_eq!(payload.downcast_ref(), Some(&"on purpose"));

        let kinds = [
            (ErrorKind::TimedOut, io::ErrorKind::TimedOut),
            (ErrorKind::WouldBlock, io::ErrorKind::WouldBlock),
            (ErrorKind::Codec, io::ErrorKind::InvalidData),
            // Not `Interrupted`, which is tried again, nor `BrokenPipe`, which is ignored.
            (ErrorKind::Cancelled, io::ErrorKind::Other),
            (ErrorKind::Abandoned, io::ErrorKind::Other),
            (ErrorKind::WorkerLost, io::ErrorKind::Other),
            (ErrorKind::NotRegistered, io::ErrorKind::Other),
            (ErrorKind::Os, io::ErrorKind::Other),
        ];
        for (kind, expected) in kinds {
            let there = io::Error::from(Error::new(kind, "text"));
            assert_eq!((there.kind(), there.to_string()), (expected, "text".into()));
            assert_eq!(Error::from(there).kind(), kind);
        }
    });
}

/// `?` converts either into the other, and both into a user-defined error.
#[test]
fn the_question_mark_works_in_all_directions() {
    fn read() -> Unfuture<io::Result<Vec<u8>>> {
        unsync::thread(|| std::fs::read("/no/such/file"))
    }
    fn ours() -> Result<usize, Error> {
        Ok(read().result()??.len())
    }
    fn std() -> io::Result<usize> {
        Ok(read().result()??.len())
    }
    fn boxed() -> Result<usize, Box<dyn std::error::Error + Send + Sync>> {
        Ok(read().result()??.len())
    }
    quick(|| {
        assert_eq!(ours().unwrap_err().kind(), ErrorKind::Os);
        assert_eq!(std().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(boxed().unwrap_err().is::<io::Error>());
    });
}

// ------------------------------------------------------------------------------------------- types

/// The auto traits, for a value that is `Send` and nothing else.
const _: () = {
    const fn sound<T: Send + Sync + Unpin + UnwindSafe + RefUnwindSafe + Debug + 'static>() {}
    sound::<Error>();
    sound::<Unfuture<Cell<u8>>>();
    sound::<Promise<Cell<u8>>>();
    sound::<Canceller>();
    sound::<Error>();
    sound::<ErrorKind>();
    const fn mobile<T: Send + Sync + Unpin + Debug + 'static>() {}
    mobile::<Sleep>();
    mobile::<Interval>();
    mobile::<Timeout<std::future::Ready<u8>>>();
    mobile::<YieldNow>();
    const fn error<T: std::error::Error + Clone>() {}
    error::<Error>();
    const fn plain<T: Copy + Eq + std::hash::Hash>() {}
    plain::<ErrorKind>();
};

/// One value, one taker: neither end can be cloned. (For a `Clone` type a second implementation would make
/// these lines ambiguous.)
const _: () = {
    trait NotClone<A> {
        const IS_NOT: () = ();
    }
    impl<T> NotClone<()> for T {}
    impl<T: Clone> NotClone<u8> for T {}
    let () = <Unfuture<u8> as NotClone<_>>::IS_NOT;
    let () = <Promise<u8> as NotClone<_>>::IS_NOT;
};

/// Two words, whatever the value. One would do with the method table beside the value, which safe code
/// cannot do.
const _: () = {
    assert!(size_of::<Unfuture<()>>() == 2 * size_of::<usize>());
    assert!(size_of::<Unfuture<[u8; 1000]>>() == 2 * size_of::<usize>());
    assert!(size_of::<Promise<[u8; 1000]>>() == size_of::<usize>());
    assert!(size_of::<Error>() == size_of::<usize>());
    assert!(size_of::<Result<u8, Error>>() <= 2 * size_of::<usize>());
};

#[test]
fn debug_tells_the_state_and_not_the_value() {
    struct Secret;
    quick(|| {
        let (promise, mut unfuture) = unsync::promise::<Secret>();
        let line = line!() - 1;
        let place = format!("started at {}:{line}:", file!());
        let pending = format!("{unfuture:?}");
        assert!(
            pending.contains("pending") && pending.contains(&place),
            "{pending}"
        );
        promise.set(Secret);
        let done = format!("{unfuture:?}");
        assert!(done.contains("done") && done.contains(&place), "{done}");
        assert!(poll(&mut unfuture, &panicking_waker()).is_ready());
        assert_eq!(format!("{unfuture:?}"), "Unfuture(taken)");
    });
}

/// The drop of a value may use the library, even the work that made it.
#[test]
fn a_value_may_call_back_in_its_drop() {
    quick(|| {
        let calls = Counter::new();
        for how in ["set", "drop"] {
            let calls = calls.clone();
            let (promise, unfuture) = unsync::promise();
            let value = OnDrop(move || {
                let inner = unsync::spawn(async { 1 });
                assert_eq!(inner.result().unwrap(), 1);
                calls.add();
            });
            if how == "set" {
                drop(unfuture);
                promise.set(value);
            } else {
                promise.set(value);
                drop(unfuture);
            }
        }
        assert_eq!(calls.count(), 2);
    });
}
