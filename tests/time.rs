//! Time: deadlines for futures, sleeps that are reset, intervals; each on the ambient thread, under
//! `block_on`, and under an executor that is neither: polling by hand.
//!
//! No test relies on sleeping long enough. Where time passes on purpose, a test asserts that nothing came
//! too early, and that values follow from the observed moments.
//!
//! Left out, because it has no meaning here: deadlines that are rounded to a tick or clamped to some years
//! (they are kept as they are), and a clock that a test can stop (there is none).

mod support;

use std::fmt;
use std::future::{Future, pending, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use support::{
    Counter, CountingWaker, Drops, Gate, HEAVY, QUICK, before_a_delay, fence, in_child, limit,
    panic_text, poll, quick,
};
use unsync::{ErrorKind, Interval, MissedTicks, Sleep, timeout};

/// Long enough to be distinct from now, short enough for a test.
const BRIEF: Duration = Duration::from_millis(30);
/// Never, for a test.
const LONG: Duration = Duration::from_secs(3600);

/// Sleeps until a point in time has certainly passed.
fn pass(until: Instant) {
    thread::sleep(until.saturating_duration_since(Instant::now()));
    assert!(Instant::now() >= until);
}

/// Where a closure panics: file and line.
fn panic_place(step: impl FnOnce()) -> String {
    let (sender, receiver) = mpsc::channel();
    let this = thread::current().id();
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if thread::current().id() == this {
            let place = info
                .location()
                .map(|at| format!("{}:{}", at.file(), at.line()));
            let _ = sender.send(place.unwrap_or_default());
        } else {
            before(info);
        }
    }));
    assert!(catch_unwind(AssertUnwindSafe(step)).is_err());
    // The hook that stays passes the panics of other threads on.
    receiver.recv().unwrap()
}

mod deadlines {
    use super::*;

    #[test]
    fn timeout_value() {
        quick(|| {
            assert_eq!(unsync::block_on(timeout(LONG, async { 1 })).unwrap(), 1);
            let task = unsync::spawn(timeout(LONG, async { 2 }));
            assert_eq!(task.flatten().result().unwrap(), 2);
            let waker = CountingWaker::new();
            let Poll::Ready(Ok(3)) = waker.poll(&mut timeout(LONG, ready(3))) else {
                panic!("ready at the first poll");
            };
            assert_eq!((waker.wakes(), waker.held()), (0, 0));
        });
    }

    #[test]
    fn simultaneous_deadline_future_completion() {
        quick(|| {
            for limit in [Duration::ZERO, Duration::from_millis(1), BRIEF] {
                let sleep = unsync::sleep(limit);
                unsync::block_on(timeout(limit, sleep)).unwrap();
            }
        });
    }

    #[test]
    fn completed_future_past_deadline() {
        quick(|| {
            let late = timeout(Duration::from_millis(1), ready("late and welcome"));
            pass(Instant::now() + BRIEF);
            assert_eq!(unsync::block_on(late).unwrap(), "late and welcome");
        });
    }

    #[test]
    fn future_and_deadline_in_future() {
        quick(|| {
            let gate = Gate::new();
            let opened = gate.clone();
            let waker = CountingWaker::new();
            let mut limited = timeout(LONG, Box::pin(async move { opened.pass().await }));
            assert!(waker.poll(&mut limited).is_pending());
            assert_eq!(waker.wakes(), 0);
            gate.open();
            assert_eq!(waker.wakes(), 1);
            assert!(matches!(waker.poll(&mut limited), Poll::Ready(Ok(()))));
            drop(limited);
            assert_eq!(waker.held(), 0, "nor does the timer hold it");
        });
    }

    #[test]
    fn very_large_timeout() {
        quick(|| {
            let task = unsync::spawn(timeout(Duration::MAX, async {
                unsync::yield_now().await;
                1
            }));
            assert_eq!(task.flatten().result().unwrap(), 1);
            let mut never = timeout(Duration::MAX, pending::<()>());
            assert!(CountingWaker::new().poll(&mut never).is_pending());
        });
    }

    #[test]
    fn deadline_now_elapses() {
        quick(|| {
            let mut limited = timeout(Duration::ZERO, pending::<()>());
            let Poll::Ready(Err(error)) = CountingWaker::new().poll(&mut limited) else {
                panic!("over at the first poll");
            };
            assert_eq!(error.kind(), ErrorKind::TimedOut);
        });
    }

    #[test]
    fn deadline_future_elapses() {
        quick(|| {
            let started = Instant::now();
            let error = unsync::block_on(timeout(BRIEF, pending::<()>())).unwrap_err();
            assert!(started.elapsed() >= BRIEF);
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            let task = unsync::spawn(timeout(BRIEF, pending::<()>())).flatten();
            assert_eq!(task.result().unwrap_err().kind(), ErrorKind::TimedOut);
            let waker = CountingWaker::new();
            let mut limited = timeout(BRIEF, pending::<()>());
            if waker.poll(&mut limited).is_pending() {
                waker.wait_for(1);
            }
            assert!(matches!(waker.poll(&mut limited), Poll::Ready(Err(_))));
        });
    }

    /// A future that takes every poll it can get does not prevent a check of the deadline.
    #[test]
    fn timeout_is_not_exhausted_by_future() {
        quick(|| {
            let greedy = || {
                poll_fn(|cx: &mut Context<'_>| {
                    cx.waker().wake_by_ref();
                    Poll::<()>::Pending
                })
            };
            assert!(unsync::block_on(timeout(BRIEF, greedy())).is_err());
            assert!(
                unsync::spawn(timeout(BRIEF, greedy()))
                    .flatten()
                    .result()
                    .is_err()
            );
        });
    }

    #[test]
    fn timeout_future_many() {
        limit(HEAVY, || {
            let limited = |n: u64| timeout(Duration::from_millis(n % 20), pending::<()>());
            let tasks = (0..10_000).map(|n| unsync::spawn(limited(n)));
            for late in unsync::join_all(tasks).result().unwrap() {
                assert_eq!(late.unwrap_err().kind(), ErrorKind::TimedOut);
            }
        });
    }

    #[test]
    fn a_timeout_counts_from_its_call() {
        quick(|| {
            let mut limited = timeout(BRIEF, pending::<()>());
            pass(Instant::now() + BRIEF);
            assert!(CountingWaker::new().poll(&mut limited).is_ready());
        });
    }

    #[test]
    fn a_future_under_a_deadline_may_borrow_and_stay() {
        quick(|| {
            let text = String::from("borrowed");
            let shared = Rc::new(5);
            let length = unsync::block_on(timeout(LONG, async {
                unsync::yield_now().await;
                text.len() + *shared
            }));
            assert_eq!(length.unwrap(), 13);
        });
    }

    #[test]
    fn a_panic_goes_through_a_timeout() {
        quick(|| {
            let limited = timeout(LONG, async { panic!("inside") });
            let task = unsync::spawn(limited).flatten().map(|(): ()| ());
            let error = task.result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Panicked);
            assert!(error.to_string().contains("inside"), "{error}");
        });
    }

    #[test]
    fn a_dropped_timeout_drops_its_future_and_its_timer() {
        quick(|| {
            let (drops, waker) = (Drops::new(), CountingWaker::new());
            let token = drops.token();
            let mut limited = timeout(
                LONG,
                Box::pin(async move {
                    pending::<()>().await;
                    drop(token);
                }),
            );
            assert!(waker.poll(&mut limited).is_pending());
            assert_eq!((drops.count(), waker.held()), (0, 1));
            drop(limited);
            assert_eq!((drops.count(), waker.held()), (1, 0));
        });
    }

    #[test]
    fn a_timeout_says_where_it_was_set() {
        quick(|| {
            let (limited, line) = (timeout(Duration::ZERO, pending::<()>()), line!());
            assert!(format!("{limited:?}").contains(&format!("time.rs:{line}")));
            let text = unsync::block_on(limited).unwrap_err().to_string();
            assert!(text.contains(&format!("time.rs:{line}")), "{text}");
            assert!(text.contains("0ns"), "{text}");
        });
    }

    /// Nested timeouts in an `async` block would double the size each time.
    #[test]
    fn a_timeout_is_small_however_large_its_future() {
        let large = [0_u8; 4096];
        let future = poll_fn(move |_| match large[0] {
            0 => Poll::<()>::Pending,
            _ => Poll::Ready(()),
        });
        assert!(size_of_val(&future) >= 4096);
        let nested = timeout(LONG, timeout(LONG, timeout(LONG, future)));
        assert!(size_of_val(&nested) <= 128, "{}", size_of_val(&nested));
    }

    #[test]
    fn a_timeout_is_send_if_its_future_is() {
        fn send<T: Send + Unpin>(_: &T) {}
        send(&timeout(LONG, ready(1)));
        send(&unsync::sleep(LONG));
        send(&unsync::interval(LONG));

        /// Does not compile for a type that is `Send`: then two impls apply.
        trait NotSend<A> {
            fn not_send(&self) {}
        }
        struct Send2;
        impl<T> NotSend<()> for T {}
        impl<T: Send> NotSend<Send2> for T {}
        timeout(LONG, ready(Rc::new(1))).not_send();
    }

    /// It may be written to something that waits for other work.
    #[test]
    fn writing_a_sleep_holds_up_no_timer() {
        struct Waits(Instant);

        impl fmt::Write for Waits {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                if text.contains("Waker") {
                    let due = unsync::spawn(unsync::sleep_until(self.0));
                    assert!(due.wait_timeout(QUICK), "at {text:?}");
                }
                Ok(())
            }
        }

        limit(HEAVY, || {
            before_a_delay(|delay| {
                let deadline = Instant::now() + delay;
                let mut nap = unsync::sleep_until(deadline);
                let is_pending = poll(&mut nap, Waker::noop()).is_pending();
                fmt::Write::write_fmt(&mut Waits(deadline), format_args!("{nap:?}")).unwrap();
                is_pending && Instant::now() < deadline
            });
        });
    }
}

mod resets {
    use super::*;

    /// A sleep that was polled with this waker.
    fn polled(mut sleep: Sleep, waker: &CountingWaker) -> Sleep {
        assert!(waker.poll(&mut sleep).is_pending());
        sleep
    }

    #[test]
    fn reset_future_sleep_before_fire() {
        quick(|| {
            let waker = CountingWaker::new();
            let mut sleep = polled(unsync::sleep(LONG), &waker);
            let reset = Instant::now();
            sleep.reset(BRIEF);
            waker.wait_for(1);
            assert!(reset.elapsed() >= BRIEF);
            assert!(waker.poll(&mut sleep).is_ready());
            // The waking thread holds the waker until it has woken it.
            fence();
            assert_eq!((waker.wakes(), waker.held()), (1, 0));
        });
    }

    #[test]
    fn reset_future_sleep_to_later() {
        quick(|| {
            before_a_delay(|first| {
                let waker = CountingWaker::new();
                let mut sleep = unsync::sleep(first);
                let pending = waker.poll(&mut sleep).is_pending();
                let earlier = sleep.deadline().unwrap();
                let later = earlier + BRIEF * 10;
                sleep.reset_until(later);
                if !pending || Instant::now() >= earlier {
                    return false;
                }
                assert_eq!(sleep.deadline(), Some(later));
                waker.wait_for(1);
                assert!(Instant::now() >= later, "not woken at the old time");
                assert!(waker.poll(&mut sleep).is_ready());
                assert_eq!(waker.wakes(), 1);
                true
            });
        });
    }

    #[test]
    fn reset_past_sleep_before_turn() {
        quick(|| {
            let waker = CountingWaker::new();
            let mut sleep = unsync::sleep(Duration::ZERO);
            assert!(sleep.is_elapsed());
            sleep.reset(LONG);
            assert!(!sleep.is_elapsed());
            assert!(waker.poll(&mut sleep).is_pending());
            sleep.reset(Duration::ZERO);
            waker.wait_for(1);
            assert!(waker.poll(&mut sleep).is_ready());
        });
    }

    #[test]
    fn reset_after_firing() {
        quick(|| {
            let waker = CountingWaker::new();
            let mut sleep = unsync::sleep(Duration::ZERO);
            assert!(waker.poll(&mut sleep).is_ready());
            assert!(waker.poll(&mut sleep).is_ready(), "it stays so");
            sleep.reset(LONG);
            assert!(waker.poll(&mut sleep).is_pending());
            drop(sleep);
            assert_eq!((waker.wakes(), waker.held()), (0, 0));
        });
    }

    /// It has fired, and nobody has looked: only the new time counts.
    #[test]
    fn reset_future_sleep_after_fire() {
        quick(|| {
            let waker = CountingWaker::new();
            let mut sleep = unsync::sleep(BRIEF);
            if waker.poll(&mut sleep).is_pending() {
                waker.wait_for(1);
            }
            let wakes = waker.wakes();
            sleep.reset(LONG);
            assert!(!sleep.is_elapsed());
            assert!(waker.poll(&mut sleep).is_pending(), "its time was put off");
            let reset = Instant::now();
            sleep.reset(BRIEF);
            waker.wait_for(wakes + 1);
            assert!(reset.elapsed() >= BRIEF);
            assert!(waker.poll(&mut sleep).is_ready());
        });
    }

    /// Several sleeps have the same time, some of them after a reset: only the dropped one goes.
    #[test]
    fn drop_after_reschedule_at_new_scheduled_time() {
        quick(|| {
            let wakers = [(); 4].map(|()| CountingWaker::new());
            let time = Instant::now() + BRIEF * 10;
            let mut sleeps = wakers.each_ref().map(|waker| {
                let mut sleep = polled(unsync::sleep(LONG), waker);
                sleep.reset_until(time);
                Some(sleep)
            });
            sleeps[1] = None;
            // On a busy machine the drop may come after the sleep has fired.
            let in_time = Instant::now() < time;
            for index in [0, 2, 3] {
                wakers[index].wait_for(1);
                assert!(Instant::now() >= time);
                let sleep = sleeps[index].as_mut().unwrap();
                assert!(wakers[index].poll(sleep).is_ready());
            }
            fence();
            let wakes = wakers.each_ref().map(CountingWaker::wakes);
            assert!(wakes[1] == 0 || !in_time, "{wakes:?}");
            assert!(wakers.iter().all(|waker| waker.held() == 0));
        });
    }

    #[test]
    fn reset_to_never_and_back() {
        quick(|| {
            let waker = CountingWaker::new();
            let mut sleep = polled(unsync::sleep(LONG), &waker);
            sleep.reset(Duration::MAX);
            assert_eq!(sleep.deadline(), None);
            assert!(waker.poll(&mut sleep).is_pending());
            sleep.reset(BRIEF);
            waker.wait_for(1);
            assert!(waker.poll(&mut sleep).is_ready());
        });
    }

    #[test]
    fn a_reset_sleep_forgets_its_waker_when_it_is_dropped() {
        quick(|| {
            let waker = CountingWaker::new();
            let mut sleep = polled(unsync::sleep(LONG), &waker);
            sleep.reset(LONG * 2);
            sleep.reset(Duration::MAX);
            sleep.reset(LONG);
            assert_eq!(waker.held(), 1);
            drop(sleep);
            assert_eq!((waker.wakes(), waker.held()), (0, 0));
        });
    }

    /// One thread resets, another waits, and the wait is not polled in between.
    #[test]
    fn set_from_another_thread_while_awaited() {
        quick(|| {
            for first in [LONG, Duration::MAX] {
                let sleep = Arc::new(Mutex::new(unsync::sleep(first)));
                let polls = Counter::new();
                let awaited = {
                    let (sleep, polls) = (Arc::clone(&sleep), polls.clone());
                    poll_fn(move |cx| {
                        polls.add();
                        Pin::new(&mut *sleep.lock().unwrap()).poll(cx)
                    })
                };
                let awaited = unsync::spawn(awaited);
                polls.wait_for(1);
                sleep.lock().unwrap().reset(BRIEF);
                awaited.result().unwrap();
                assert_eq!(polls.count(), 2);
            }
        });
    }

    #[test]
    fn resets_in_a_task_and_under_block_on() {
        quick(|| {
            let resets = || async {
                let started = Instant::now();
                let mut sleep = unsync::sleep(LONG);
                for _ in 0..3 {
                    sleep.reset(BRIEF);
                    (&mut sleep).await;
                }
                assert!(started.elapsed() >= BRIEF * 3);
            };
            unsync::block_on(resets());
            unsync::spawn(resets()).result().unwrap();
        });
    }

    /// Many resets and moves between threads while the timer fires: the sleep ends.
    #[test]
    fn resets_that_race_with_the_timer() {
        limit(HEAVY, || {
            for round in 0..2000_u32 {
                let waker = CountingWaker::new();
                let mut sleep = unsync::sleep(Duration::from_micros(100));
                let mut wakes = 0;
                for reset in 0..3 {
                    if waker.poll(&mut sleep).is_pending() && (round + reset) % 2 == 0 {
                        sleep.reset(Duration::from_micros(u64::from(round % 150)));
                    }
                    while waker.poll(&mut sleep).is_pending() {
                        wakes += 1;
                        waker.wait_for(wakes);
                    }
                    // Wakes between the last poll and now count as seen.
                    wakes = waker.wakes();
                    sleep.reset(Duration::from_micros(80));
                }
            }
        });
    }
}

mod intervals {
    use super::*;

    const PERIOD: Duration = Duration::from_millis(100);
    const POLICIES: [MissedTicks; 3] = [MissedTicks::Burst, MissedTicks::Delay, MissedTicks::Skip];

    fn tick(ticks: &mut Interval) -> Instant {
        unsync::block_on(ticks.tick())
    }

    /// Whether the next tick is there already; takes it if so.
    fn is_due(ticks: &mut Interval) -> bool {
        let tick = pin!(ticks.tick());
        tick.poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    }

    /// An interval after its first tick, and a second that is late by more than one period. Also returns
    /// when the first was due, and the times before and after the second was taken.
    fn late(policy: MissedTicks) -> (Interval, Instant, [Instant; 2]) {
        let mut ticks = unsync::interval(PERIOD).missed(policy);
        let first = tick(&mut ticks);
        // With Delay the second tick is due a whole period after the first was taken, which is before
        // now.
        pass(Instant::now() + PERIOD * 5 / 2);
        let before = Instant::now();
        let second = tick(&mut ticks);
        assert!(
            first + PERIOD <= second && second < before - PERIOD,
            "{policy:?}"
        );
        (ticks, first, [before, Instant::now()])
    }

    #[test]
    fn the_first_tick_comes_at_once() {
        quick(|| {
            let before = Instant::now();
            let mut ticks = unsync::interval(LONG);
            let first = tick(&mut ticks);
            assert!(before <= first && first <= Instant::now());
            assert!(!is_due(&mut ticks));
        });
    }

    #[test]
    fn ticks_in_time_are_multiples_of_the_period() {
        quick(|| {
            // With Delay, a tick that this thread takes late shifts the following ones.
            for policy in [MissedTicks::Burst, MissedTicks::Skip] {
                let mut ticks = unsync::interval(BRIEF).missed(policy);
                let first = tick(&mut ticks);
                for _ in 0..3 {
                    let due = tick(&mut ticks);
                    assert!(Instant::now() >= due, "never early");
                    let since = (due - first).as_nanos();
                    assert_eq!(since % BRIEF.as_nanos(), 0);
                }
            }
        });
    }

    #[test]
    fn burst() {
        quick(|| {
            let (mut ticks, first, _) = late(MissedTicks::Burst);
            for number in 2..6 {
                assert_eq!(tick(&mut ticks), first + PERIOD * number);
            }
            assert_eq!(MissedTicks::default(), MissedTicks::Burst);
        });
    }

    #[test]
    fn burst_catches_up_at_once() {
        quick(|| {
            let (mut ticks, ..) = late(MissedTicks::Burst);
            assert!(is_due(&mut ticks), "the one that was missed");
        });
    }

    #[test]
    fn delay() {
        quick(|| {
            let (mut ticks, _, [before, after]) = late(MissedTicks::Delay);
            let next = tick(&mut ticks);
            assert!(before + PERIOD <= next && next <= after + PERIOD);
            assert!(Instant::now() >= next);
        });
    }

    #[test]
    fn skip() {
        quick(|| {
            let (mut ticks, first, [before, after]) = late(MissedTicks::Skip);
            let next = tick(&mut ticks);
            assert_eq!((next - first).as_nanos() % PERIOD.as_nanos(), 0);
            assert!(before < next && next <= after + PERIOD);
        });
    }

    #[rustfmt::skip]
    const ZERO: (fn(), u32) = (|| drop(unsync::interval(Duration::ZERO)), line!());

    #[test]
    fn interval_zero_duration() {
        let (zero, line) = ZERO;
        let place = panic_place(zero);
        assert!(place.ends_with(&format!("time.rs:{line}")), "{place}");
    }

    #[test]
    fn interval_doesnt_panic_max_duration_when_polling() {
        quick(|| {
            for policy in POLICIES {
                let mut ticks = unsync::interval(Duration::MAX).missed(policy);
                tick(&mut ticks);
                assert!(!is_due(&mut ticks), "{policy:?}");
                ticks.reset();
                assert!(!is_due(&mut ticks), "{policy:?}");
            }
        });
    }

    #[test]
    fn a_very_short_period() {
        quick(|| {
            for policy in POLICIES {
                let mut ticks = unsync::interval(Duration::from_nanos(1)).missed(policy);
                let mut last = tick(&mut ticks);
                for _ in 0..1000 {
                    let next = tick(&mut ticks);
                    assert!(last < next && next <= Instant::now(), "{policy:?}");
                    last = next;
                }
            }
        });
    }

    #[test]
    fn a_tick_that_is_dropped_is_not_lost() {
        quick(|| {
            before_a_delay(|period| {
                let mut ticks = unsync::interval(period);
                let first = tick(&mut ticks);
                let waker = CountingWaker::new();
                for _ in 0..3 {
                    let mut dropped = Box::pin(ticks.tick());
                    if waker.poll(&mut dropped).is_ready() {
                        return false;
                    }
                }
                assert_eq!(tick(&mut ticks), first + period);
                true
            });
        });
    }

    #[test]
    fn reset_begins_anew() {
        quick(|| {
            let mut ticks = unsync::interval(BRIEF);
            tick(&mut ticks);
            pass(Instant::now() + BRIEF / 2);
            let reset = Instant::now();
            ticks.reset();
            assert!(tick(&mut ticks) >= reset + BRIEF);
        });
    }

    /// One wake for each tick, whoever polls.
    #[test]
    fn under_a_foreign_executor() {
        quick(|| {
            let waker = CountingWaker::new();
            let mut ticks = unsync::interval(BRIEF);
            let mut wakes = 0;
            for _ in 0..4 {
                let mut tick = Box::pin(ticks.tick());
                while waker.poll(&mut tick).is_pending() {
                    wakes += 1;
                    waker.wait_for(wakes);
                }
                assert_eq!(waker.wakes(), wakes);
            }
            fence();
            assert_eq!(waker.held(), 0);
        });
    }

    #[test]
    fn in_a_task() {
        quick(|| {
            let task = unsync::spawn(async {
                let started = Instant::now();
                let mut ticks = unsync::interval(BRIEF);
                for _ in 0..4 {
                    ticks.tick().await;
                }
                started.elapsed()
            });
            assert!(task.result().unwrap() >= BRIEF * 3);
        });
    }
}

mod ends {
    use super::*;

    /// A sleep in another executor does not wait forever for a thread that no longer exists.
    #[test]
    fn a_sleep_elsewhere_hears_of_the_shutdown() {
        in_child(
            "ends::a_sleep_elsewhere_hears_of_the_shutdown",
            QUICK,
            &[],
            || {
                let polled = Gate::new();
                let sleeper = {
                    let polled = polled.clone();
                    thread::spawn(move || {
                        let mut sleep = unsync::sleep(LONG);
                        unsync::block_on(poll_fn(|cx| {
                            let state = Pin::new(&mut sleep).poll(cx);
                            polled.open();
                            state
                        }));
                    })
                };
                polled.wait();
                unsync::shutdown(QUICK).unwrap();
                let payload = sleeper.join().unwrap_err();
                let text = payload.downcast_ref::<String>().unwrap();
                assert!(text.contains("`sleep` after `unsync::shutdown`"), "{text}");
                // A sleep that need not wait is not affected.
                unsync::block_on(unsync::sleep(Duration::ZERO));
                assert!(poll(&mut unsync::sleep(Duration::MAX), Waker::noop()).is_pending());
            },
        );
    }

    /// The panic message of a wait that cannot be woken.
    fn refusal<F: Future>(wait: F) -> String {
        panic_text(|| unsync::block_on(wait))
    }

    /// The panic of a wait names the call, and where it was made.
    #[test]
    fn a_wait_after_the_shutdown_names_its_line() {
        const NAME: &str = "ends::a_wait_after_the_shutdown_names_its_line";
        in_child(NAME, QUICK, &[], || {
            unsync::shutdown(QUICK).unwrap();
            let soon = Instant::now() + LONG;
            let mut ticks = unsync::interval(LONG);
            let line = line!() - 1;
            unsync::block_on(ticks.tick()); // the first one need not wait
            let first = line!() + 2;
            let told = [
                refusal(unsync::sleep(LONG)),
                refusal(unsync::sleep_until(soon)),
                refusal(unsync::timeout(LONG, pending::<()>())),
                refusal(ticks.tick()),
            ];
            let lines = [first, first + 1, first + 2, line];
            let names = ["sleep", "sleep_until", "timeout", "interval"];
            for ((text, name), line) in told.iter().zip(names).zip(lines) {
                let call = format!("`{name}` after `unsync::shutdown` (started at ");
                let place = format!("{}:{line}:", file!());
                assert!(text.starts_with(&call) && text.contains(&place), "{text}");
            }
            // As for all work, it is an error where an error can be returned.
            let local = unsync::spawn_local(|| unsync::sleep(LONG));
            let (error, line) = (local.result().unwrap_err(), line!() - 1);
            assert_eq!(error.kind(), ErrorKind::ShutDown);
            let place = format!("(started at {}:{line}:", file!());
            assert!(error.to_string().contains(&place), "{error}");
        });
    }

    /// The panic names the place that made the sleep, not the reset.
    #[test]
    fn a_reset_after_the_shutdown_names_the_line_of_the_sleep() {
        const NAME: &str = "ends::a_reset_after_the_shutdown_names_the_line_of_the_sleep";
        in_child(NAME, QUICK, &[], || {
            let mut sleep = unsync::sleep(Duration::MAX);
            let place = format!("{}:{}:", file!(), line!() - 1);
            unsync::shutdown(QUICK).unwrap();
            assert!(poll(&mut sleep, Waker::noop()).is_pending());
            let text = panic_text(|| sleep.reset(LONG));
            assert!(text.contains("`sleep` after `unsync::shutdown`"), "{text}");
            assert!(text.contains(&place), "{text}");
        });
    }
}
