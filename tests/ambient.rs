//! The ambient thread: order and fairness, wake-ups and their traps, panics, local futures, time, and
//! `block_on` beside it.
//!
//! The tests of one binary share one ambient thread: none of them may depend on being alone. Where a defect
//! would end the process, or a count covers the whole process, the test runs in a process of its own.
//!
//! Left out, because it has no meaning here:
//! - a budget of polls for each task: there is none, a round of the loop ends by itself;
//! - a pending task that goes with its last waker: it stays, as in other executors, until it is
//!   cancelled or the library is shut down;
//! - a hook that queues a woken task, and what it may do: users cannot write one;
//! - dropping an executor, perhaps by a panic of its owner: it has no owner. It ends with the
//!   shutdown, in `life.rs`;
//! - captures of a future that are dropped while its panic unwinds: the panic is caught before. Only
//!   its locals are dropped then.

mod support;

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use support::{
    Bomb, Counter, CountingWaker, Drops, Gate, HEAVY, Log, OnDrop, Place, before_a_delay, fence,
    hold_ambient, in_child, limit, poll, quick, waker_with,
};
use unsync::{ErrorKind, Unfuture};

/// Keeps the ambient thread busy until it is dropped.
struct Load(Arc<AtomicBool>);

impl Load {
    /// Starts this many tasks that are always ready: half of them yield, half wake themselves in their poll.
    fn of(tasks: usize) -> Load {
        let ended = Arc::new(AtomicBool::new(false));
        for number in 0..tasks {
            let ended = Arc::clone(&ended);
            unsync::spawn(async move {
                while !ended.load(Ordering::SeqCst) {
                    match number % 2 {
                        0 => unsync::yield_now().await,
                        _ => wake_self().await,
                    }
                }
            });
        }
        fence();
        Load(ended)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Pending once, and woken from inside its own poll.
async fn wake_self() {
    let mut woken = false;
    poll_fn(|cx| {
        if woken {
            return Poll::Ready(());
        }
        woken = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// A future that never wakes itself, counts its polls, and ends when it is told to.
#[derive(Clone, Default)]
struct Probe(Arc<ProbeState>);

#[derive(Default)]
struct ProbeState {
    polls: Counter,
    ended: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Probe {
    /// Starts it as a task and waits for its first poll.
    fn start() -> (Probe, Unfuture<()>) {
        let probe = Probe::default();
        let task = unsync::spawn(probe.clone());
        probe.0.polls.wait_for(1);
        (probe, task)
    }

    /// The waker of its last poll.
    fn waker(&self) -> Waker {
        self.0.waker.lock().unwrap().clone().expect("it was polled")
    }

    fn polls(&self) -> usize {
        self.0.polls.count()
    }

    fn end(&self) {
        self.0.ended.store(true, Ordering::SeqCst);
        self.waker().wake();
    }
}

impl Future for Probe {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // Counted last: whoever has seen this poll and then ends the probe causes another poll.
        let ended = self.0.ended.load(Ordering::SeqCst);
        *self.0.waker.lock().unwrap() = Some(cx.waker().clone());
        self.0.polls.add();
        match ended {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

mod running {
    use super::*;

    #[test]
    fn a_detached_task_runs() {
        quick(|| {
            let (ran, place) = (Gate::new(), Arc::new(Mutex::new(None)));
            drop(unsync::spawn({
                let (ran, place) = (ran.clone(), Arc::clone(&place));
                async move {
                    unsync::yield_now().await;
                    *place.lock().unwrap() = Some(Place::here());
                    ran.open();
                }
            }));
            ran.wait();
            assert!(place.lock().unwrap().as_ref().unwrap().is_ambient());
        });
    }

    #[test]
    fn a_task_starts_tasks_and_awaits_them() {
        quick(|| {
            let sum = unsync::spawn(async {
                let one = unsync::spawn(async { 1 });
                let two = unsync::spawn(async { unsync::spawn(async { 2 }).await.unwrap() });
                one.await.unwrap() + two.await.unwrap()
            });
            assert_eq!(sum.result().unwrap(), 3);
        });
    }

    /// The caller's thread does not run the task, not even its first step.
    #[test]
    fn a_task_never_runs_on_the_callers_thread() {
        quick(|| {
            let from_outside = unsync::spawn(async { Place::here() });
            assert!(from_outside.result().unwrap().is_ambient());
            // A spawn from inside a task does not run the new task within the call either.
            let order = unsync::spawn(async {
                let log = Log::new();
                let inner = unsync::spawn({
                    let log = log.clone();
                    async move { log.push("inner") }
                });
                log.push("outer goes on");
                inner.await.unwrap();
                log.entries()
            });
            assert_eq!(order.result().unwrap(), ["outer goes on", "inner"]);
        });
    }

    #[test]
    fn tasks_start_in_the_order_of_spawning() {
        quick(|| {
            let log = Log::new();
            let start = |number| {
                let log = log.clone();
                unsync::spawn(async move { log.push(number) })
            };
            let tasks = Vec::from_iter((0..50).map(start));
            unsync::join_all(tasks).result().unwrap();
            assert_eq!(log.entries(), Vec::from_iter(0..50));
        });
    }

    #[test]
    fn tasks_woken_from_other_threads_all_come_through() {
        const TASKS: usize = 500;
        quick(|| {
            for from_a_task in [false, true] {
                let (promises, awaited): (Vec<_>, Vec<_>) =
                    (0..TASKS).map(|_| unsync::promise::<usize>()).unzip();
                let start = move || {
                    let tasks = awaited.into_iter().enumerate().map(|(number, awaited)| {
                        unsync::spawn(async move { awaited.await.unwrap() * TASKS + number })
                    });
                    Vec::from_iter(tasks)
                };
                let tasks = match from_a_task {
                    false => start(),
                    true => unsync::spawn(async move { start() }).result().unwrap(),
                };
                let mut threads = [const { Vec::new() }; 4];
                for (number, promise) in promises.into_iter().enumerate() {
                    threads[number % 4].push((number, promise));
                }
                for promises in threads {
                    thread::spawn(|| {
                        for (number, promise) in promises.into_iter().rev() {
                            promise.set(number);
                        }
                    });
                }
                let values = unsync::join_all(tasks).result().unwrap();
                let expected = (0..TASKS).map(|number| number * TASKS + number);
                assert_eq!(values, Vec::from_iter(expected));
            }
        });
    }

    #[test]
    fn large_futures_keep_their_values() {
        async fn sum<const N: usize>() -> usize {
            let bytes = [1u8; N];
            unsync::yield_now().await;
            bytes.iter().map(|byte| usize::from(*byte)).sum()
        }
        fn start<const N: usize>() -> [(usize, Unfuture<usize>); 3] {
            let ways = [
                unsync::spawn(sum::<N>()),
                unsync::spawn_local(sum::<N>),
                unsync::spawn_now(sum::<N>()),
            ];
            ways.map(|way| (N, way))
        }
        quick(|| {
            let tasks = [start::<1_000>(), start::<10_000>(), start::<50_000>()];
            for (length, task) in tasks.into_iter().flatten() {
                assert_eq!(task.result().unwrap(), length);
            }
        });
    }

    #[test]
    fn fifty_thousand_tasks_keep_their_values() {
        const TASKS: usize = 50_000;
        limit(HEAVY, || {
            let tasks = (0..TASKS).map(|number| unsync::spawn(async move { number }));
            for (number, task) in Vec::from_iter(tasks).into_iter().enumerate() {
                assert_eq!(task.result().unwrap(), number);
            }
        });
    }

    #[test]
    fn a_busy_ambient_thread_still_hears() {
        quick(|| {
            let load = Load::of(100);
            // A task from elsewhere.
            assert_eq!(unsync::spawn(async { 1 }).result().unwrap(), 1);
            // A wake from elsewhere.
            let (probe, task) = Probe::start();
            probe.end();
            task.result().unwrap();
            // A root future that waits for a task.
            let value = unsync::block_on(async {
                unsync::yield_now().await;
                unsync::spawn(async { 2 }).await
            });
            assert_eq!(value.unwrap(), 2);
            // A timer.
            let (started, brief) = (Instant::now(), Duration::from_millis(10));
            unsync::spawn(unsync::sleep(brief)).result().unwrap();
            assert!(started.elapsed() >= brief);
            drop(load);
        });
    }

    #[test]
    fn a_task_that_starts_its_own_like_for_ever_starves_nobody() {
        fn again(ended: Arc<AtomicBool>, rounds: Counter) {
            rounds.add();
            if !ended.load(Ordering::SeqCst) {
                unsync::spawn(async move { again(ended, rounds) });
            }
        }
        quick(|| {
            let (ended, rounds) = (Arc::new(AtomicBool::new(false)), Counter::new());
            again(Arc::clone(&ended), rounds.clone());
            rounds.wait_for(100);
            let five = unsync::spawn(async {
                for _ in 0..5 {
                    unsync::yield_now().await;
                }
            });
            five.result().unwrap();
            ended.store(true, Ordering::SeqCst);
        });
    }

    /// Pairs of tasks pass a value back and forth as fast as they can, and leave room for a task that yields.
    #[test]
    fn pairs_that_play_ping_pong_starve_nobody() {
        type Ball = unsync::Promise<Option<Next>>;
        struct Next(Ball);
        /// Answers every ball with the means to send the next.
        async fn play(first: Unfuture<Option<Next>>, ended: Arc<AtomicBool>) -> usize {
            let (mut rounds, mut awaited) = (0, first);
            while let Ok(Some(Next(answer))) = awaited.await {
                rounds += 1;
                let (promise, unfuture) = unsync::promise();
                awaited = unfuture;
                let over = ended.load(Ordering::SeqCst);
                answer.set((!over).then_some(Next(promise)));
            }
            rounds
        }
        quick(|| {
            let ended = Arc::new(AtomicBool::new(false));
            let players = Vec::from_iter((0..100).flat_map(|_| {
                let ((serve, left), (answer, right)) = (unsync::promise(), unsync::promise());
                serve.set(Some(Next(answer)));
                [left, right].map(|side| unsync::spawn(play(side, Arc::clone(&ended))))
            }));
            let five = unsync::spawn(async {
                for _ in 0..5 {
                    unsync::yield_now().await;
                }
            });
            five.result().unwrap();
            ended.store(true, Ordering::SeqCst);
            let rounds = unsync::join_all(players).result().unwrap();
            assert!(rounds.iter().sum::<usize>() > 0);
        });
    }

    #[test]
    fn two_spinners_take_turns() {
        const ROUNDS: usize = 50;
        quick(|| {
            for spins in [wake_self_boxed, yield_boxed] {
                let log = unsync::spawn(async move {
                    let log = Log::new();
                    let spinners = [0, 1].map(|number| {
                        let log = log.clone();
                        unsync::spawn(async move {
                            for _ in 0..ROUNDS {
                                log.push(number);
                                spins().await;
                            }
                        })
                    });
                    unsync::join_all(spinners).await.unwrap();
                    log.entries()
                });
                assert_eq!(log.result().unwrap(), [0, 1].repeat(ROUNDS));
            }
        });
        type Step = Pin<Box<dyn Future<Output = ()> + Send>>;
        fn wake_self_boxed() -> Step {
            Box::pin(wake_self())
        }
        fn yield_boxed() -> Step {
            Box::pin(unsync::yield_now())
        }
    }

    /// A task sees what happened outside while it ran after a few yields, not at some later time.
    #[test]
    fn a_yielding_task_sees_what_happened_meanwhile() {
        /// Yields until `so` is true, and returns how often.
        async fn yields_until(so: &AtomicBool) -> usize {
            let mut yields = 0;
            while !so.load(Ordering::SeqCst) {
                yields += 1;
                unsync::yield_now().await;
            }
            yields
        }
        // In its own process, so that the work of other tests is not ahead in the queue.
        let name = "running::a_yielding_task_sees_what_happened_meanwhile";
        in_child(name, HEAVY, &[], || {
            let (promise, awaited) = unsync::promise();
            let seen = Arc::new(AtomicBool::new(false));
            let _watcher = unsync::spawn({
                let seen = Arc::clone(&seen);
                async move {
                    awaited.await.unwrap();
                    seen.store(true, Ordering::SeqCst);
                }
            });
            let injected = unsync::spawn(async move {
                unsync::yield_now().await;
                // Both happen within this one step: a wake-up from elsewhere…
                let setter = thread::spawn(|| promise.set(()));
                setter.join().unwrap();
                let injected = yields_until(&seen).await;
                // …and a timer that has fallen due.
                let due = Arc::new(AtomicBool::new(false));
                let mut sleep = unsync::sleep(Duration::from_millis(20));
                let waker = waker_with(
                    {
                        let due = Arc::clone(&due);
                        move || due.store(true, Ordering::SeqCst)
                    },
                    || (),
                );
                let armed = Instant::now();
                if poll(&mut sleep, &waker).is_ready() {
                    return (injected, 0);
                }
                while armed.elapsed() < Duration::from_millis(20) {
                    thread::yield_now();
                }
                (injected, yields_until(&due).await)
            });
            let (injected, timed) = injected.result().unwrap();
            assert!(injected < 10 && timed < 10, "{injected} and {timed} yields");
        });
    }

    /// The docs of `yield_now` promise this.
    #[test]
    fn messages_of_other_threads_come_before_the_next_turn_of_who_yields() {
        let name = "running::messages_of_other_threads_come_before_the_next_turn_of_who_yields";
        in_child(name, HEAVY, &[], || {
            let first = unsync::spawn(async {
                // The task's own first turn is a message from another thread.
                unsync::yield_now().await;
                let ran = Arc::new(AtomicBool::new(false));
                let sender = thread::spawn({
                    let ran = Arc::clone(&ran);
                    move || {
                        drop(unsync::spawn(
                            async move { ran.store(true, Ordering::SeqCst) },
                        ))
                    }
                });
                sender.join().unwrap();
                unsync::yield_now().await;
                ran.load(Ordering::SeqCst)
            });
            assert!(first.result().unwrap());
        });
    }

    #[test]
    fn a_long_chain_of_continuations_ends() {
        quick(|| {
            let mut chain = Unfuture::ready(0);
            for number in 0..1000 {
                chain = match number % 4 {
                    0 => chain.map(|sum| sum + 1),
                    1 => chain.and_then(|sum| async move { sum + 1 }),
                    2 => chain.then(|task| async move { task.result().unwrap() + 1 }),
                    _ => unsync::spawn(async move { Ok(chain.await? + 1) }).flatten(),
                };
            }
            assert_eq!(chain.result().unwrap(), 1000);
        });
    }

    /// The end of one task ends them all: those ends must not be nested calls, 100,000 deep.
    #[test]
    fn a_deep_recursion_of_tasks_does_not_overflow_the_stack() {
        fn down(from: usize) -> Unfuture<usize> {
            match from {
                0 => Unfuture::ready(0),
                _ => Unfuture::ready(from - 1).map(down).flatten(),
            }
        }
        in_child(
            "running::a_deep_recursion_of_tasks_does_not_overflow_the_stack",
            HEAVY,
            &[],
            || assert_eq!(down(100_000).result().unwrap(), 0),
        );
    }

    /// The same for a stop, which has to find the task at the bottom.
    #[test]
    fn stopping_a_deep_recursion_of_tasks_does_not_overflow_the_stack() {
        fn down(from: usize, arrived: Gate) -> Unfuture<()> {
            if from == 0 {
                arrived.open();
                return unsync::spawn(std::future::pending());
            }
            Unfuture::ready(arrived)
                .map(move |arrived| down(from - 1, arrived))
                .flatten()
        }
        fn deep() -> Unfuture<()> {
            let arrived = Gate::new();
            let deep = down(100_000, arrived.clone());
            arrived.wait();
            deep
        }
        let name = "running::stopping_a_deep_recursion_of_tasks_does_not_overflow_the_stack";
        in_child(name, HEAVY, &[], || {
            let cancelled = deep();
            assert!(cancelled.cancel());
            let error = cancelled.result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
            let moment = Duration::from_millis(1);
            for late in [deep().timeout(moment), deep().run_timeout(moment)] {
                let error = late.result().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
            }
        });
    }

    #[test]
    fn racing_first_calls_start_one_ambient_thread() {
        in_child(
            "running::racing_first_calls_start_one_ambient_thread",
            HEAVY,
            &[],
            || {
                const CALLERS: usize = 32;
                let start = Arc::new(std::sync::Barrier::new(CALLERS));
                let callers = Vec::from_iter((0..CALLERS).map(|number| {
                    let start = Arc::clone(&start);
                    thread::spawn(move || {
                        start.wait();
                        let place = match number % 4 {
                            0 => unsync::spawn(async { Place::here() }),
                            1 => unsync::spawn_local(|| async { Place::here() }),
                            2 => Unfuture::ready(()).map(|()| Place::here()),
                            _ => {
                                unsync::block_on(unsync::sleep(Duration::from_millis(1)));
                                unsync::spawn(async { Place::here() })
                            }
                        };
                        place.result().unwrap()
                    })
                }));
                let callers = callers.into_iter().map(|caller| caller.join().unwrap());
                let places = Vec::from_iter(callers);
                assert!(places[0].is_ambient(), "{places:?}");
                assert_eq!(places, vec![places[0].clone(); CALLERS]);
                #[cfg(target_os = "linux")]
                {
                    let mut names = support::thread_names();
                    names.retain(|name| name.starts_with("unsync"));
                    assert_eq!(names, ["unsync-ambient"]);
                }
            },
        );
    }
}

mod waking {
    use super::*;

    #[test]
    fn a_task_is_polled_when_it_is_woken_and_only_then() {
        quick(|| {
            let (probe, task) = Probe::start();
            fence();
            assert_eq!(probe.polls(), 1);
            for polls in 2..10 {
                probe.waker().wake();
                probe.0.polls.wait_for(polls);
                fence();
                assert_eq!(probe.polls(), polls);
            }
            probe.end();
            task.result().unwrap();
            assert_eq!(probe.polls(), 10);
        });
    }

    #[test]
    fn any_number_of_wakes_while_queued_are_one_poll() {
        quick(|| {
            let (probe, task) = Probe::start();
            let held = hold_ambient();
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| (0..100).for_each(|_| probe.waker().wake_by_ref()));
                }
            });
            drop(held);
            fence();
            assert_eq!(probe.polls(), 2, "woken from elsewhere");
            let waker = probe.waker();
            unsync::spawn(async move { (0..100).for_each(|_| waker.wake_by_ref()) })
                .result()
                .unwrap();
            fence();
            assert_eq!(probe.polls(), 3, "woken on the ambient thread");
            probe.end();
            task.result().unwrap();
        });
    }

    #[test]
    fn wakes_during_a_poll_are_one_more_poll() {
        quick(|| {
            for from_elsewhere in [false, true] {
                let polls = Counter::new();
                let task = unsync::spawn({
                    let polls = polls.clone();
                    poll_fn(move |cx| {
                        if polls.add() == 1 {
                            let waker = cx.waker().clone();
                            let wake = move || (0..5).for_each(|_| waker.wake_by_ref());
                            match from_elsewhere {
                                false => wake(),
                                true => thread::spawn(wake).join().unwrap(),
                            }
                        }
                        Poll::<()>::Pending
                    })
                });
                polls.wait_for(2);
                fence();
                fence();
                assert_eq!(polls.count(), 2, "from elsewhere: {from_elsewhere}");
                drop(task);
            }
        });
    }

    #[test]
    fn every_wake_of_many_during_polls_is_honoured() {
        quick(|| {
            // Three tasks share ten wakes; each poll uses one and wakes its own task.
            let left = Arc::new(AtomicUsize::new(10));
            let polls = Counter::new();
            let tasks = [(); 3].map(|()| {
                let (left, polls) = (Arc::clone(&left), polls.clone());
                unsync::spawn(poll_fn(move |cx| {
                    polls.add();
                    if left.load(Ordering::SeqCst) == 0 {
                        return Poll::Ready(());
                    }
                    left.fetch_sub(1, Ordering::SeqCst);
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }))
            });
            unsync::join_all(tasks).result().unwrap();
            assert_eq!(polls.count(), 13);
        });
    }

    #[test]
    fn a_late_wake_does_nothing() {
        quick(|| {
            let ended = Vec::from_iter((0..100).map(|_| {
                let (probe, task) = Probe::start();
                probe.end();
                task.result().unwrap();
                probe
            }));
            // These tasks may reuse the memory of the ended ones.
            let living = Vec::from_iter((0..100).map(|_| Probe::start()));
            for old in &ended {
                let waker = old.waker();
                waker.wake_by_ref();
                thread::spawn(move || waker.wake()).join().unwrap();
            }
            fence();
            assert!(ended.iter().all(|old| old.polls() == 2));
            assert!(living.iter().all(|(probe, _)| probe.polls() == 1));
            for (probe, task) in living {
                probe.end();
                task.result().unwrap();
            }
        });
    }

    /// A waker may outlive its task by far: it keeps neither the future nor the value alive.
    #[test]
    fn a_waker_that_is_kept_keeps_nothing_alive() {
        quick(|| {
            let (futures, values) = (Drops::new(), Drops::new());
            let (sender, receiver) = mpsc::channel();
            for how in ["taken", "detached"] {
                let (future, value) = (futures.token(), values.token());
                let sender = sender.clone();
                let task = unsync::spawn(async move {
                    let _future = &future;
                    let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
                    sender.send(waker).unwrap();
                    value
                });
                match how {
                    "taken" => drop(task.result().unwrap()),
                    _ => drop(task),
                }
                let waker = receiver.recv().unwrap();
                fence();
                assert_eq!(futures.count(), values.count());
                waker.wake();
            }
            assert_eq!((futures.count(), values.count()), (2, 2));
        });
    }

    #[test]
    fn the_waker_of_a_task_stays_the_same() {
        quick(|| {
            let (sender, receiver) = mpsc::channel::<Waker>();
            thread::spawn(move || receiver.iter().for_each(Waker::wake));
            let mut wakers = Vec::new();
            let same = unsync::spawn(poll_fn(move |cx| {
                wakers.push(cx.waker().clone());
                match wakers.len() {
                    20 => return Poll::Ready(wakers.iter().all(|old| old.will_wake(cx.waker()))),
                    count if count % 2 == 0 => cx.waker().wake_by_ref(),
                    _ => sender.send(cx.waker().clone()).unwrap(),
                }
                Poll::Pending
            }));
            assert!(same.result().unwrap());
        });
    }

    /// A thread runs the destructors of its locals when it ends, when other locals may already be gone.
    #[test]
    fn a_thread_local_may_wake_and_spawn_in_its_destructor() {
        type Last = OnDrop<Box<dyn FnMut()>>;
        thread_local! {
            static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
        }
        quick(|| {
            let (probe, task) = Probe::start();
            let spawned = Gate::new();
            let last = {
                let (probe, spawned) = (probe.clone(), spawned.clone());
                move || {
                    probe.end();
                    let spawned = spawned.clone();
                    let inner = unsync::spawn(async move { spawned.open() });
                    inner.result().unwrap();
                    assert_eq!(unsync::block_on(unsync::spawn(async { 1 })).unwrap(), 1);
                }
            };
            let thread = thread::spawn(|| LAST.set(Some(OnDrop(Box::new(last)))));
            thread.join().unwrap();
            task.result().unwrap();
            assert!(spawned.is_open());
        });
    }

    /// A future may wake its own task when it is dropped, at its end and after a panic.
    #[test]
    fn a_future_may_wake_its_task_while_it_is_dropped() {
        quick(|| {
            for panics in [false, true] {
                let slot = Arc::new(Mutex::new(None::<Waker>));
                let guard = OnDrop({
                    let slot = Arc::clone(&slot);
                    move || {
                        slot.lock()
                            .unwrap()
                            .take()
                            .into_iter()
                            .for_each(Waker::wake)
                    }
                });
                let task = unsync::spawn(poll_fn(move |cx| {
                    let _guard = &guard;
                    *slot.lock().unwrap() = Some(cx.waker().clone());
                    assert!(!panics, "the first panic");
                    Poll::Ready(1)
                }));
                match task.result() {
                    Ok(value) => assert!(value == 1 && !panics),
                    Err(error) => assert!(error.to_string().contains("the first panic")),
                }
                fence();
            }
        });
    }

    /// A task wakes before a panic, and from a destructor that runs while it unwinds: the wakes arrive, and
    /// the panic stays the same.
    #[test]
    fn a_task_may_wake_while_its_panic_unwinds() {
        quick(|| {
            let (promise, awaited) = unsync::promise();
            let other = unsync::spawn(awaited).flatten();
            let (mut promise, polls) = (Some(promise), Counter::new());
            let task = unsync::spawn({
                let polls = polls.clone();
                async move {
                    let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
                    waker.wake_by_ref();
                    let _last = OnDrop(move || {
                        waker.wake_by_ref();
                        let promise = promise.take().unwrap();
                        promise.set(thread::panicking());
                    });
                    polls.add();
                    std::panic::panic_any("the cause");
                }
            });
            let error = task.map(|(): ()| ()).result().unwrap_err();
            assert!(error.to_string().contains("the cause"), "{error}");
            assert!(other.result().unwrap(), "it was dropped while unwinding");
            fence();
            assert_eq!(polls.count(), 1);
        });
    }

    #[test]
    fn values_go_to_and_fro_between_a_thread_and_a_task() {
        const ROUNDS: usize = 5_000;
        limit(HEAVY, || {
            let (to_task, in_task) = mpsc::channel::<(unsync::Promise<usize>, Unfuture<usize>)>();
            let task = unsync::spawn(async move {
                for round in 0.. {
                    // Never blocks: the next pair is sent before the value of this one.
                    let Ok((answer, value)) = in_task.recv() else {
                        return round;
                    };
                    answer.set(value.await.unwrap() + 1);
                }
                0
            });
            for round in 0..ROUNDS {
                let ((value, for_task), (answer, for_us)) = (unsync::promise(), unsync::promise());
                to_task.send((answer, for_task)).unwrap();
                value.set(round);
                let answered = match round % 2 {
                    0 => for_us.result(),
                    _ => unsync::block_on(for_us),
                };
                assert_eq!(answered.unwrap(), round + 1);
            }
            drop(to_task);
            assert_eq!(task.result().unwrap(), ROUNDS);
        });
    }

    /// A task itself parks the thread, which is how the ambient thread waits, too.
    #[test]
    fn a_task_may_park_and_block_in_its_poll() {
        quick(|| {
            let polls = Counter::new();
            let task = unsync::spawn({
                let polls = polls.clone();
                poll_fn(move |cx| {
                    if polls.add() > 20 {
                        return Poll::Ready(());
                    }
                    steal_the_park_token(cx.waker());
                    Poll::Pending
                })
            });
            task.result().unwrap();
            assert_eq!(polls.count(), 21);
        });
    }
}

/// Wakes a waker while this thread blocks in std, and uses up the resulting tokens.
fn steal_the_park_token(waker: &Waker) {
    let (sender, receiver) = mpsc::channel();
    let waker = waker.clone();
    let woken = thread::spawn(move || {
        waker.wake();
        sender.send(()).unwrap();
    });
    receiver.recv().unwrap();
    thread::current().unpark();
    thread::park();
    woken.join().unwrap();
}

mod blocking {
    use super::*;

    #[test]
    fn block_on_runs_what_borrows_and_is_not_send() {
        quick(|| {
            let (text, count) = (String::from("text"), std::rc::Rc::new(2));
            let length = unsync::block_on(async {
                unsync::yield_now().await;
                text.len() * *count
            });
            assert_eq!(length, 8);
        });
    }

    /// A wake-up that is only the park token is lost when the poll itself parks.
    #[test]
    fn block_on_survives_a_poll_that_parks() {
        quick(|| {
            let mut polls = 0;
            unsync::block_on(poll_fn(|cx| {
                polls += 1;
                if polls > 200 {
                    return Poll::Ready(());
                }
                if polls % 2 == 0 {
                    steal_the_park_token(cx.waker());
                } else {
                    cx.waker().wake_by_ref();
                    thread::current().unpark();
                    thread::park();
                }
                Poll::Pending
            }));
            assert_eq!(polls, 201);
        });
    }

    /// Neither tokens without a wake-up nor the wake-ups of others cause a poll.
    #[test]
    fn block_on_polls_when_it_is_woken_and_only_then() {
        const CALLS: usize = 3;
        quick(|| {
            let (gates, polled) = ([(); CALLS].map(|()| Gate::new()), Counter::new());
            thread::scope(|scope| {
                let calls = gates.each_ref().map(|gate| {
                    let polled = &polled;
                    scope.spawn(move || {
                        let (mut polls, mut pass) = (0, std::pin::pin!(gate.pass()));
                        unsync::block_on(poll_fn(|cx| {
                            polls += 1;
                            let state = pass.as_mut().poll(cx);
                            polled.add();
                            state
                        }));
                        polls
                    })
                });
                polled.wait_for(CALLS);
                for (call, gate) in calls.into_iter().zip(&gates) {
                    for _ in 0..100 {
                        call.thread().unpark();
                        thread::yield_now();
                    }
                    gate.open();
                    assert_eq!(call.join().unwrap(), 2, "polls for one wake-up");
                }
            });
        });
    }

    /// Wakes after a while, and sets the flag first: this wake-up did not cause an earlier poll.
    fn wake_later(waker: &Waker) -> Arc<AtomicBool> {
        let (waker, woken) = (waker.clone(), Arc::new(AtomicBool::new(false)));
        let says = Arc::clone(&woken);
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            says.store(true, Ordering::SeqCst);
            waker.wake();
        });
        woken
    }

    /// Pending until the expected wake-up; must not be polled before it.
    fn woken_by(waker: impl FnOnce(&Waker) -> Arc<AtomicBool>) -> impl Future<Output = ()> {
        let (mut waker, mut woken) = (Some(waker), None);
        poll_fn(move |cx| match (waker.take(), &woken) {
            (Some(waker), _) => {
                woken = Some(waker(cx.waker()));
                Poll::Pending
            }
            (None, Some(woken)) => {
                assert!(woken.load(Ordering::SeqCst), "polled without a wake-up");
                Poll::Ready(())
            }
            (None, None) => unreachable!(),
        })
    }

    #[test]
    fn block_on_never_polls_after_ready() {
        quick(|| {
            let mut ready = false;
            let value = unsync::block_on(poll_fn(|cx| {
                assert!(!ready, "polled after it was ready");
                ready = true;
                cx.waker().wake_by_ref();
                Poll::Ready(1)
            }));
            assert_eq!(value, 1);
            // Nor does the late wake-up reach the next `block_on`.
            unsync::block_on(woken_by(wake_later));
        });
    }

    #[test]
    fn nested_calls_of_block_on_have_wakers_of_their_own() {
        quick(|| {
            let mut polls = 0;
            unsync::block_on(poll_fn(|outer| {
                polls += 1;
                if polls == 2 {
                    return Poll::Ready(());
                }
                // The outer call is woken at once, the inner one later.
                unsync::block_on(woken_by(|inner| {
                    assert!(!inner.will_wake(outer.waker()));
                    outer.waker().wake_by_ref();
                    wake_later(inner)
                }));
                Poll::Pending
            }));
            assert_eq!(polls, 2);
            // And the other way round: the inner call uses up only its own wake-up.
            unsync::block_on(woken_by(|outer| {
                unsync::block_on(woken_by(wake_later));
                wake_later(outer)
            }));
        });
    }

    #[test]
    fn block_on_passes_a_panic_on() {
        quick(|| {
            let caught = std::panic::catch_unwind(|| {
                unsync::block_on(async {
                    unsync::yield_now().await;
                    std::panic::panic_any(5);
                })
            });
            assert_eq!(caught.unwrap_err().downcast_ref(), Some(&5));
        });
    }

    /// Each refusal says what to do instead, and the thread goes on.
    #[test]
    fn the_ambient_thread_refuses_to_block() {
        quick(|| {
            let (promise, pending) = unsync::promise::<u8>();
            let pending = Arc::new(Mutex::new(Some(pending)));
            type Block = Box<dyn FnOnce() + Send>;
            let block: [(&str, Block); 4] = [
                ("block_on", Box::new(|| unsync::block_on(async {}))),
                ("wait", {
                    let pending = Arc::clone(&pending);
                    Box::new(move || pending.lock().unwrap().as_ref().unwrap().wait())
                }),
                ("wait_timeout", {
                    let pending = Arc::clone(&pending);
                    Box::new(move || {
                        let pending = pending.lock().unwrap_or_else(|error| error.into_inner());
                        pending.as_ref().unwrap().wait_timeout(Duration::MAX);
                    })
                }),
                ("result", {
                    let pending = Arc::clone(&pending);
                    Box::new(move || {
                        let pending = pending.lock().unwrap_or_else(|e| e.into_inner()).take();
                        let error = pending.unwrap().result().unwrap_err();
                        assert_eq!(error.kind(), ErrorKind::WouldBlock);
                        panic!("{error}");
                    })
                }),
            ];
            for (name, block) in block {
                let refused = unsync::spawn(async move { block() }).result().unwrap_err();
                let text = refused.to_string();
                assert_eq!(refused.kind(), ErrorKind::Panicked, "{name}");
                assert!(text.contains("ambient thread"), "{name}: {text}");
                assert!(text.contains(".await"), "{name}: {text}");
            }
            drop(promise);
            fence();
        });
    }
}

mod panics {
    use super::*;
    use std::panic::panic_any;

    /// The ambient thread is the same as before the test, and works.
    fn unharmed(before: &Place) {
        let after = unsync::spawn(async { Place::here() }).result().unwrap();
        assert_eq!(after, *before);
    }

    fn ambient() -> Place {
        unsync::spawn(async { Place::here() }).result().unwrap()
    }

    #[test]
    fn a_panic_reaches_who_waits_with_its_payload() {
        #[derive(Debug, PartialEq)]
        struct Payload(u8);
        quick(|| {
            let before = ambient();
            let by_result = unsync::spawn(async { panic_any(Payload(1)) }).result();
            let by_await = unsync::spawn(async {
                let inner: Unfuture<()> = unsync::spawn(async {
                    unsync::yield_now().await;
                    panic_any(Payload(1))
                });
                inner.await
            });
            let by_local = unsync::spawn_local(|| async { panic_any(Payload(1)) }).result();
            for outcome in [by_result, by_await.flatten().result(), by_local] {
                let error = outcome.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Panicked);
                let payload = error.into_panic().unwrap();
                assert_eq!(payload.downcast_ref(), Some(&Payload(1)));
            }
            unharmed(&before);
        });
    }

    /// Its captures are dropped, and may use the library meanwhile.
    #[test]
    fn a_future_that_panics_is_dropped_once_on_the_ambient_thread() {
        quick(|| {
            for local in [false, true] {
                let drops = Drops::new();
                let (sender, receiver) = mpsc::channel();
                let guard = OnDrop(move || {
                    let spawned = unsync::spawn(async { 5 });
                    sender.send(spawned).unwrap();
                });
                let held = (drops.token(), guard);
                let panics = poll_fn(move |_| -> Poll<()> {
                    let _held = &held;
                    panic_any("in a poll")
                });
                let task = match local {
                    false => unsync::spawn(panics),
                    true => unsync::spawn_local(move || panics),
                };
                assert_eq!(task.result().unwrap_err().kind(), ErrorKind::Panicked);
                assert_eq!(drops.count(), 1);
                assert!(drops.places()[0].is_ambient());
                assert_eq!(receiver.recv().unwrap().result().unwrap(), 5);
            }
        });
    }

    #[test]
    fn a_hundred_panics_that_nobody_awaits_do_no_harm() {
        quick(|| {
            let (before, begun) = (ambient(), Counter::new());
            for number in 0..100 {
                let begun = begun.clone();
                let panics = async move {
                    begun.add();
                    panic_any("unheard")
                };
                match number % 2 {
                    0 => drop(unsync::spawn(panics)),
                    _ => drop(unsync::spawn_local(|| panics)),
                }
            }
            unharmed(&before);
            assert_eq!(begun.count(), 100);
        });
    }

    #[test]
    fn a_future_that_panics_in_its_drop_fails() {
        quick(|| {
            let before = ambient();
            let dropped = Drops::new();
            for local in [false, true] {
                let (bomb, value) = (Bomb("in the drop of a future"), dropped.token());
                let mut value = Some(value);
                let future = poll_fn(move |_| {
                    let _bomb = &bomb;
                    Poll::Ready(value.take().unwrap())
                });
                let task = match local {
                    false => unsync::spawn(future),
                    true => unsync::spawn_local(move || future),
                };
                let error = task.result().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Panicked);
                assert!(
                    error.to_string().contains("in the drop of a future"),
                    "{error}"
                );
            }
            assert_eq!(dropped.count(), 2, "the values are dropped all the same");
            unharmed(&before);
        });
    }

    /// The second panic is a consequence of the first, so the first is the one to report.
    #[test]
    fn the_first_of_two_panics_is_told() {
        in_child(
            "panics::the_first_of_two_panics_is_told",
            HEAVY,
            &[],
            || {
                let before = ambient();
                for local in [false, true] {
                    let bomb = Bomb("the consequence");
                    let future = poll_fn(move |_| -> Poll<()> {
                        let _bomb = &bomb;
                        panic_any("the cause")
                    });
                    let task = match local {
                        false => unsync::spawn(future),
                        true => unsync::spawn_local(move || future),
                    };
                    let error = task.result().unwrap_err();
                    assert!(
                        error.to_string().contains("the cause"),
                        "local: {local}: {error}"
                    );
                }
                unharmed(&before);
            },
        );
    }

    #[test]
    fn a_value_or_payload_that_panics_in_its_drop_does_no_harm() {
        quick(|| {
            let before = ambient();
            let gate = Gate::new();
            for number in 0..4 {
                let gate = gate.clone();
                drop(unsync::spawn(async move {
                    gate.pass().await;
                    match number {
                        0 => return Some(Bomb("in the drop of a value")),
                        1 => panic_any(Bomb("in the drop of a payload")),
                        2 => panic_any(OnDrop(|| panic_any(Bomb("a payload in a payload")))),
                        _ => {}
                    }
                    None
                }));
            }
            gate.open();
            unharmed(&before);
        });
    }

    #[test]
    fn a_foreign_waker_that_panics_does_no_harm() {
        quick(|| {
            let before = ambient();
            // Woken by the end of a task, and by a timer.
            let gate = Gate::new();
            let mut task = unsync::spawn({
                let gate = gate.clone();
                async move { gate.pass().await }
            });
            let woken = Counter::new();
            let waker = waker_with(
                {
                    let woken = woken.clone();
                    move || {
                        woken.add();
                        panic_any("in a wake");
                    }
                },
                || (),
            );
            assert!(poll(&mut task, &waker).is_pending());
            let mut sleep = unsync::sleep(Duration::from_millis(1));
            let armed = usize::from(poll(&mut sleep, &waker).is_pending());
            gate.open();
            woken.wait_for(1 + armed);
            task.result().unwrap();
            unharmed(&before);
        });
    }

    #[test]
    fn a_continuation_that_panics_fails_alone() {
        quick(|| {
            let before = ambient();
            let tasks = [
                Unfuture::ready(1).map(|_| panic_any("in a step")),
                Unfuture::ready(1).and_then(|_| async { panic_any("in a step") }),
                Unfuture::ready(1)
                    .and_then(|_| -> std::future::Ready<()> { panic_any("in a step") }),
                Unfuture::ready(1).then(|_| async { panic_any("in a step") }),
                Unfuture::ready(1).then(|_| -> std::future::Ready<()> { panic_any("in a step") }),
                Unfuture::ready(1).map_thread(|_| panic_any("in a step")),
            ];
            for task in tasks {
                assert_eq!(task.result().unwrap_err().kind(), ErrorKind::Panicked);
            }
            unharmed(&before);
        });
    }
}

/// Another thread acts while a task is in its poll, or queued for one.
mod meanwhile {
    use super::*;

    /// Another thread waits for the task, polls it, or leaves it alone; the task ends well, or panics.
    #[test]
    fn during_a_poll() {
        quick(|| {
            for panics in [false, true] {
                for what in ["waits", "polls", "leaves"] {
                    let (inside, go_on) = (Gate::new(), Gate::new());
                    let (polls, drops) = (Counter::new(), Drops::new());
                    let mut task = unsync::spawn({
                        let (inside, go_on) = (inside.clone(), go_on.clone());
                        let (polls, token) = (polls.clone(), drops.token());
                        poll_fn(move |_| {
                            let _ = &token;
                            polls.add();
                            inside.open();
                            go_on.wait();
                            assert!(!panics, "inside");
                            Poll::Ready(5)
                        })
                    });
                    inside.wait();
                    let waker = CountingWaker::new();
                    let outcome = match what {
                        "waits" => {
                            let waiter = thread::spawn(move || task.result());
                            go_on.open();
                            Some(waiter.join().unwrap())
                        }
                        "polls" => {
                            assert!(waker.poll(&mut task).is_pending());
                            go_on.open();
                            waker.wait_for(1);
                            let Poll::Ready(outcome) = waker.poll(&mut task) else {
                                panic!("woken too early");
                            };
                            Some(outcome)
                        }
                        _ => {
                            drop(task);
                            go_on.open();
                            None
                        }
                    };
                    drops.wait_for(1);
                    fence();
                    let seen = (polls.count(), drops.count(), waker.wakes());
                    assert_eq!(seen, (1, 1, usize::from(what == "polls")), "{what}");
                    match outcome {
                        Some(Ok(value)) => assert!(value == 5 && !panics, "{what}"),
                        Some(Err(error)) => {
                            assert!(panics && error.kind() == ErrorKind::Panicked, "{what}");
                        }
                        None => {}
                    }
                }
            }
        });
    }

    /// It is dropped at about the moment when its task is woken for the last time: nothing is kept, and
    /// nothing is dropped twice.
    #[test]
    fn an_unfuture_is_dropped_while_its_task_is_queued() {
        const ROUNDS: usize = 5_000;
        limit(HEAVY, || {
            let (futures, values) = (Drops::new(), Drops::new());
            support::race(
                ROUNDS,
                |_| {
                    let (promise, awaited) = unsync::promise::<()>();
                    let (future, value) = (futures.token(), values.token());
                    let mut task = unsync::spawn(async move {
                        let _future = future;
                        awaited.await.unwrap();
                        value
                    });
                    let waker = CountingWaker::new();
                    assert!(waker.poll(&mut task).is_pending());
                    (promise, (task, waker))
                },
                |_, promise| promise.set(()),
                |_, (task, waker)| {
                    drop(task);
                    // A thread that is just waking the waker holds it until it has.
                    while waker.held() > 0 {
                        thread::yield_now();
                    }
                    assert!(waker.wakes() <= 1);
                },
            );
            futures.wait_for(ROUNDS);
            values.wait_for(ROUNDS);
            fence();
            assert_eq!((futures.count(), values.count()), (ROUNDS, ROUNDS));
        });
    }
}

mod cancelling {
    use super::*;

    /// A task that holds a token and sleeps forever.
    fn sleeper(local: bool) -> (Unfuture<()>, Drops) {
        let drops = Drops::new();
        let token = drops.token();
        let task = match local {
            false => unsync::spawn(async move {
                unsync::sleep(Duration::MAX).await;
                drop(token);
            }),
            true => unsync::spawn_local(move || async move {
                let token = std::rc::Rc::new(token);
                unsync::sleep(Duration::MAX).await;
                drop(token);
            }),
        };
        (task, drops)
    }

    #[test]
    fn a_cancelled_task_is_gone_before_its_end_is_seen() {
        quick(|| {
            for local in [false, true] {
                let (task, drops) = sleeper(local);
                fence();
                assert_eq!(drops.count(), 0);
                assert!(task.cancel());
                let error = task.result().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
                assert_eq!(drops.count(), 1);
                assert!(drops.places()[0].is_ambient());
            }
        });
    }

    /// Neither the start nor the stop waits behind what other threads have sent.
    #[test]
    fn a_task_cancelled_by_the_step_that_spawned_it_goes_in_the_next_tick() {
        quick(|| {
            let outer = unsync::spawn(async {
                let flood = || (0..10_000).for_each(|_| drop(unsync::spawn(async {})));
                std::thread::spawn(flood).join().unwrap();
                let (task, drops) = sleeper(false);
                assert!(task.cancel());
                unsync::yield_now().await;
                unsync::yield_now().await;
                drops.count()
            });
            assert_eq!(outer.result().unwrap(), 1);
        });
    }

    #[test]
    fn a_cancelled_task_goes_though_nobody_waits_for_it() {
        quick(|| {
            for local in [false, true] {
                let (task, drops) = sleeper(local);
                let canceller = task.canceller();
                drop(task);
                fence();
                assert!(canceller.cancel());
                drops.wait_for(1);
                assert!(drops.places()[0].is_ambient());
            }
        });
    }

    #[test]
    fn a_task_cancelled_before_it_starts_never_runs() {
        quick(|| {
            let polls = Counter::new();
            let held = hold_ambient();
            let tasks = [false, true].map(|local| {
                let polls = polls.clone();
                match local {
                    false => unsync::spawn(async move { polls.add() }),
                    true => unsync::spawn_local(move || {
                        polls.add();
                        async { 1 }
                    }),
                }
            });
            assert!(tasks.iter().all(Unfuture::cancel));
            drop(held);
            for task in tasks {
                assert_eq!(task.result().unwrap_err().kind(), ErrorKind::Cancelled);
            }
            assert_eq!(polls.count(), 0);
        });
    }

    /// If `cancel` says that the task will end as cancelled, it does.
    #[test]
    fn a_task_cancelled_in_its_poll_is_cancelled() {
        quick(|| {
            for ready in [false, true] {
                let (polled, gate) = (Gate::new(), Gate::new());
                let values = Drops::new();
                let task = unsync::spawn({
                    let (polled, gate, values) = (polled.clone(), gate.clone(), values.clone());
                    poll_fn(move |_| {
                        polled.open();
                        gate.wait();
                        match ready {
                            true => Poll::Ready(values.token()),
                            false => Poll::Pending,
                        }
                    })
                });
                polled.wait();
                let cancelled = task.cancel();
                gate.open();
                assert_eq!(
                    kind_of(task.result()),
                    cancelled.then_some(ErrorKind::Cancelled)
                );
                fence();
                assert_eq!(values.count(), usize::from(ready));
            }
        });
    }

    fn kind_of<T>(outcome: Result<T, unsync::Error>) -> Option<ErrorKind> {
        outcome.err().map(|error| error.kind())
    }

    #[test]
    fn races_of_cancelling_and_ending() {
        limit(HEAVY, || {
            support::race(
                2_000,
                |number| {
                    let (promise, awaited) = unsync::promise::<()>();
                    let task = unsync::spawn(async move {
                        awaited.await.unwrap();
                        number
                    });
                    (promise, task)
                },
                |_, promise| promise.set(()),
                |number, task| {
                    let cancelled = task.cancel();
                    match task.result() {
                        Ok(value) => assert!(value == number && !cancelled),
                        Err(error) => {
                            assert!(cancelled && error.kind() == ErrorKind::Cancelled, "{error}");
                        }
                    }
                },
            );
        });
    }

    #[test]
    fn a_destructor_that_panics_is_contained() {
        quick(|| {
            for local in [false, true] {
                let bomb = Bomb("in the drop of what is cancelled");
                let make = move || async move {
                    unsync::sleep(Duration::MAX).await;
                    drop(bomb);
                };
                let task = match local {
                    false => unsync::spawn(make()),
                    true => unsync::spawn_local(make),
                };
                fence();
                task.cancel();
                let error = task.result().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Cancelled);
                assert_eq!(unsync::spawn(async { 1 }).result().unwrap(), 1);
            }
        });
    }

    #[test]
    fn a_wake_of_a_cancelled_task_does_nothing() {
        quick(|| {
            let (probe, task) = Probe::start();
            let waker = probe.waker();
            let held = hold_ambient();
            // In both orders, before the ambient thread hears of either.
            waker.wake_by_ref();
            assert!(task.cancel());
            waker.wake_by_ref();
            drop(held);
            assert_eq!(task.result().unwrap_err().kind(), ErrorKind::Cancelled);
            let polls = probe.polls();
            waker.wake();
            fence();
            assert!(polls <= 2 && probe.polls() == polls);
        });
    }

    /// A task may cancel itself, and may cancel another task in its drop.
    #[test]
    fn tasks_cancel_each_other() {
        quick(|| {
            let (sender, receiver) = mpsc::channel::<unsync::Canceller>();
            let own = unsync::spawn(async move {
                assert!(receiver.recv().unwrap().cancel());
                unsync::yield_now().await;
                unreachable!("it was cancelled");
            });
            sender.send(own.canceller()).unwrap();
            let error = own.map(|(): ()| ()).result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");

            let (last, drops) = sleeper(false);
            let mut cancels = last.canceller();
            let mut tasks = Vec::new();
            for _ in 0..20 {
                let next = OnDrop(move || assert!(cancels.cancel()));
                let task = unsync::spawn(async move {
                    unsync::sleep(Duration::MAX).await;
                    drop(next);
                });
                cancels = task.canceller();
                tasks.push(task);
            }
            assert!(cancels.cancel());
            for task in tasks.into_iter().chain([last]) {
                assert_eq!(task.result().unwrap_err().kind(), ErrorKind::Cancelled);
            }
            assert_eq!(drops.count(), 1);
        });
    }
}

mod local {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;

    #[test]
    fn a_local_future_lives_and_dies_on_the_ambient_thread() {
        quick(|| {
            let (made, polled, drops) = (Log::new(), Log::new(), Drops::new());
            let task = unsync::spawn_local({
                let (made, polled) = (made.clone(), polled.clone());
                let token = drops.token();
                move || {
                    made.push(Place::here());
                    let shared = Rc::new((token, Cell::new(1)));
                    async move {
                        let other = Rc::clone(&shared);
                        for _ in 0..3 {
                            polled.push(Place::here());
                            unsync::sleep(Duration::from_millis(1)).await;
                        }
                        other.1.set(2);
                        shared.1.get()
                    }
                }
            });
            assert_eq!(task.result().unwrap(), 2);
            let places = [made.entries(), polled.entries(), drops.places()].concat();
            assert_eq!(places.len(), 5);
            assert!(places.iter().all(Place::is_ambient), "{places:?}");
        });
    }

    #[test]
    fn local_futures_share_what_is_not_send() {
        quick(|| {
            let sum = unsync::spawn_local(|| async {
                let sum = Rc::new(RefCell::new(0));
                let (sender, receiver) = mpsc::channel();
                thread_local! {
                    static SHARED: RefCell<Option<Rc<RefCell<i32>>>> = const { RefCell::new(None) };
                }
                SHARED.set(Some(Rc::clone(&sum)));
                for number in 1..=10 {
                    let task = unsync::spawn_local(move || async move {
                        let sum = SHARED.with_borrow(|shared| shared.clone().unwrap());
                        unsync::yield_now().await;
                        *sum.borrow_mut() += number;
                    });
                    sender.send(task).unwrap();
                }
                drop(sender);
                for task in receiver {
                    task.await.unwrap();
                }
                SHARED.take();
                Rc::into_inner(sum).unwrap().into_inner()
            });
            assert_eq!(sum.result().unwrap(), 55);
        });
    }

    /// Neither holds what the other needs, when they make and drop each other.
    #[test]
    fn a_local_future_may_start_another_in_its_drop() {
        quick(|| {
            let (sender, receiver) = mpsc::channel();
            let task = unsync::spawn_local(move || {
                let last = OnDrop(move || {
                    let task = unsync::spawn_local(|| async { *Rc::new(5) });
                    sender.send(task).unwrap();
                });
                async move {
                    unsync::yield_now().await;
                    let _last = &last;
                }
            });
            task.result().unwrap();
            assert_eq!(receiver.recv().unwrap().result().unwrap(), 5);
        });
    }

    #[test]
    fn a_closure_that_panics_is_a_task_that_panics() {
        quick(|| {
            let drops = Drops::new();
            let token = drops.token();
            let task = unsync::spawn_local(move || {
                let _token = token;
                if Place::here().is_ambient() {
                    std::panic::panic_any("in the closure");
                }
                async {}
            });
            let error = task.result().unwrap_err();
            assert!(error.to_string().contains("in the closure"), "{error}");
            assert_eq!(drops.count(), 1);
            fence();
        });
    }

    #[test]
    fn many_local_futures_live_at_once() {
        quick(|| {
            let gate = Gate::new();
            let tasks = Vec::from_iter((0..1000).map(|number| {
                let gate = gate.clone();
                unsync::spawn_local(move || async move {
                    let number = Rc::new(number);
                    gate.pass().await;
                    *number
                })
            }));
            fence();
            gate.open();
            let numbers = unsync::join_all(tasks).result().unwrap();
            assert_eq!(numbers, Vec::from_iter(0..1000));
        });
    }
}

mod time {
    use super::*;

    const BRIEF: Duration = Duration::from_millis(5);

    /// So far in the future that no test sees it.
    fn far() -> Instant {
        Instant::now() + Duration::from_secs(24 * 3600)
    }

    #[test]
    fn a_sleep_is_never_early_wherever_it_is_awaited() {
        quick(|| {
            for micros in [1, 200, 999, 1_000, 1_001, 10_000] {
                let brief = Duration::from_micros(micros);
                let nap = move || async move {
                    let started = Instant::now();
                    unsync::sleep(brief).await;
                    started.elapsed()
                };
                let naps = [
                    unsync::block_on(nap()),
                    unsync::spawn(nap()).result().unwrap(),
                    unsync::spawn_local(nap).result().unwrap(),
                    unsync::thread(move || unsync::block_on(nap()))
                        .result()
                        .unwrap(),
                ];
                assert!(naps.iter().all(|nap| *nap >= brief), "{brief:?}: {naps:?}");
            }
        });
    }

    #[test]
    fn many_sleeps_at_once_are_never_early() {
        quick(|| {
            let sleeps = (0..1000u64).map(|number| {
                let brief = Duration::from_micros(number * 7919 % 50_000);
                unsync::spawn(async move {
                    let deadline = Instant::now() + brief;
                    unsync::sleep_until(deadline).await;
                    Instant::now() >= deadline
                })
            });
            let in_time = unsync::join_all(sleeps).result().unwrap();
            assert_eq!(in_time, [true; 1000]);
        });
    }

    #[test]
    fn a_sleep_that_is_over_is_ready_at_once() {
        quick(|| {
            let waker = support::panicking_waker();
            for _ in 0..1000 {
                assert!(poll(&mut unsync::sleep(Duration::ZERO), &waker).is_ready());
            }
            let past = Instant::now();
            let mut over = unsync::sleep_until(past);
            // Once it is over it stays over.
            assert!(poll(&mut over, &waker).is_ready());
            assert!(poll(&mut over, &waker).is_ready());
            assert!(poll(&mut unsync::sleep_until(past - BRIEF), &waker).is_ready());
        });
    }

    #[test]
    fn a_sleep_too_long_to_be_told_never_ends() {
        quick(|| {
            let century = Duration::from_secs(100 * 365 * 24 * 3600);
            let waker = CountingWaker::new();
            for mut sleep in [
                unsync::sleep(Duration::MAX),
                unsync::sleep(Duration::MAX - Duration::from_nanos(1)),
                unsync::sleep(Duration::from_secs(u64::MAX / 2)),
                unsync::sleep(century),
                unsync::sleep_until(Instant::now() + century),
            ] {
                assert!(waker.poll(&mut sleep).is_pending());
                // The ambient thread can wait that long, and for nearer deadlines.
                unsync::spawn(unsync::sleep(Duration::from_millis(1)))
                    .result()
                    .unwrap();
                assert!(waker.poll(&mut sleep).is_pending());
            }
            fence();
            assert_eq!((waker.wakes(), waker.held()), (0, 0));
        });
    }

    #[test]
    fn the_shorter_of_two_wins() {
        quick(|| {
            let first = unsync::spawn(async {
                let mut long = unsync::sleep_until(far());
                let mut short = unsync::sleep(BRIEF);
                poll_fn(|cx| match Pin::new(&mut long).poll(cx) {
                    Poll::Ready(()) => Poll::Ready("long"),
                    Poll::Pending => Pin::new(&mut short).poll(cx).map(|()| "short"),
                })
                .await
            });
            assert_eq!(first.result().unwrap(), "short");
        });
    }

    /// By their deadlines, and for the same deadline in the order in which they were set.
    #[test]
    fn sleeps_end_in_the_order_of_their_deadlines() {
        quick(|| {
            let mut delay = Duration::from_millis(50);
            loop {
                let (log, woken) = (Log::new(), Counter::new());
                let base = Instant::now() + delay;
                let places = (0..200u64).map(|number| (number * 79 % 50, number));
                let mut expected = Vec::from_iter(places.clone());
                expected.sort_unstable();
                // All are set within one step, so that none fires before the last is set.
                let set = unsync::spawn({
                    let (log, woken) = (log.clone(), woken.clone());
                    let places = Vec::from_iter(places);
                    poll_fn(move |_| {
                        let sleeps = places.iter().map(|place| {
                            let (log, woken, place) = (log.clone(), woken.clone(), *place);
                            let wake = move || {
                                log.push(place);
                                woken.add();
                            };
                            let waker = waker_with(wake, || ());
                            let deadline = base + Duration::from_micros(place.0 * 100);
                            let mut sleep = unsync::sleep_until(deadline);
                            poll(&mut sleep, &waker).is_pending().then_some(sleep)
                        });
                        Poll::Ready(Option::<Vec<_>>::from_iter(sleeps))
                    })
                });
                let Some(sleeps) = set.result().unwrap() else {
                    // The machine was too busy to set them in time.
                    delay *= 2;
                    continue;
                };
                woken.wait_for(expected.len());
                assert_eq!(log.entries(), expected);
                return drop(sleeps);
            }
        });
    }

    #[test]
    fn a_sleep_under_spurious_polls_ends_and_not_early() {
        quick(|| {
            let started = Instant::now();
            let mut sleep = unsync::sleep(BRIEF);
            let busy = unsync::spawn(poll_fn(move |cx| {
                let polled = Pin::new(&mut sleep).poll(cx);
                cx.waker().wake_by_ref();
                polled
            }));
            busy.result().unwrap();
            assert!(started.elapsed() >= BRIEF);
        });
    }

    #[test]
    fn a_dropped_sleep_forgets_its_waker() {
        quick(|| {
            let waker = CountingWaker::new();
            let mut sleep = unsync::sleep_until(far());
            assert!(waker.poll(&mut sleep).is_pending());
            assert!(waker.held() > 0);
            drop(sleep);
            fence();
            assert_eq!((waker.held(), waker.wakes()), (0, 0), "set from elsewhere");

            let there = waker.waker().clone();
            let set = unsync::spawn(async move {
                let mut sleep = unsync::sleep_until(far());
                assert!(poll(&mut sleep, &there).is_pending());
                drop(sleep);
            });
            set.result().unwrap();
            assert_eq!(
                (waker.held(), waker.wakes()),
                (0, 0),
                "set on the ambient thread"
            );
        });
    }

    /// Otherwise a task that sleeps in an executor that is gone would hold itself forever.
    #[test]
    fn a_sleep_that_has_fired_holds_no_waker() {
        quick(|| {
            before_a_delay(|delay| {
                let waker = CountingWaker::new();
                let mut sleep = unsync::sleep(delay);
                let pending = waker.poll(&mut sleep).is_pending();
                if pending {
                    waker.wait_for(1);
                    fence();
                    assert_eq!(waker.held(), 0);
                }
                assert!(waker.poll(&mut sleep).is_ready());
                pending
            });
        });
    }

    #[test]
    fn the_last_waker_of_a_sleep_is_woken() {
        quick(|| {
            before_a_delay(|delay| {
                let (first, last) = (CountingWaker::new(), CountingWaker::new());
                let mut sleep = unsync::sleep(delay);
                let pending = [&first, &last].map(|waker| waker.poll(&mut sleep).is_pending());
                if pending == [true; 2] {
                    last.wait_for(1);
                    assert_eq!((first.wakes(), first.held()), (0, 0));
                }
                assert!(last.poll(&mut sleep).is_ready());
                pending == [true; 2]
            });
        });
    }

    /// Polls a sleep on another thread, and waits for that here. `None` if the sleep has ended by then.
    fn polled_elsewhere(mut sleep: unsync::Sleep, waker: Waker) -> Option<unsync::Sleep> {
        let polled = thread::spawn(move || {
            let pending = poll(&mut sleep, &waker).is_pending();
            pending.then_some(sleep)
        });
        polled.join().unwrap()
    }

    /// The sleep is set elsewhere and moved to a task within one step of the ambient thread, so that the
    /// message with the first waker is still under way when the second is set.
    #[test]
    fn a_sleep_moved_to_a_task_wakes_the_task() {
        /// Whether the machine was quick enough.
        fn moved_in_time(delay: Duration) -> bool {
            let first = CountingWaker::new();
            let waker = first.waker().clone();
            let mut sleep = None;
            let task = unsync::spawn(poll_fn(move |cx| {
                if sleep.is_none() {
                    sleep = polled_elsewhere(unsync::sleep(delay), waker.clone());
                }
                match &mut sleep {
                    Some(sleep) => Pin::new(sleep).poll(cx).map(|()| true),
                    None => Poll::Ready(false),
                }
            }));
            assert!(
                task.wait_timeout(delay + Duration::from_secs(10)),
                "the sleep never woke its task"
            );
            assert_eq!(first.wakes(), 0);
            task.result().unwrap()
        }
        limit(HEAVY, || before_a_delay(moved_in_time));
    }

    #[test]
    fn a_sleep_moved_from_a_task_wakes_the_new_owner() {
        quick(|| {
            before_a_delay(|delay| {
                let mut sleep = Some(unsync::sleep(delay));
                let task = unsync::spawn(poll_fn(move |cx| {
                    let mut sleep = sleep.take().unwrap();
                    let pending = Pin::new(&mut sleep).poll(cx).is_pending();
                    Poll::Ready((sleep, pending))
                }));
                let (mut sleep, pending) = task.result().unwrap();
                let waker = CountingWaker::new();
                let pending = pending && waker.poll(&mut sleep).is_pending();
                if pending {
                    waker.wait_for(1);
                }
                assert!(waker.poll(&mut sleep).is_ready());
                pending
            });
        });
    }

    /// The sleep is set on the ambient thread, then elsewhere, and dropped before that message arrives.
    #[test]
    fn a_sleep_moved_to_and_fro_and_dropped_forgets_its_wakers() {
        quick(|| {
            let (first, last) = (CountingWaker::new(), CountingWaker::new());
            let wakers = [first.waker().clone(), last.waker().clone()];
            let task = unsync::spawn(poll_fn(move |_| {
                let mut sleep = unsync::sleep_until(far());
                assert!(poll(&mut sleep, &wakers[0]).is_pending());
                assert!(polled_elsewhere(sleep, wakers[1].clone()).is_some());
                Poll::Ready(())
            }));
            task.result().unwrap();
            fence();
            assert_eq!((first.held(), last.held()), (0, 0));
        });
    }

    /// Dropping a sleep takes its timer back, even from inside another timer's waker.
    #[test]
    fn a_waker_may_drop_sleeps_while_they_fire() {
        quick(|| {
            let sleeps = Arc::new(Mutex::new(Vec::new()));
            let woken = Counter::new();
            let waker = waker_with(
                {
                    let (sleeps, woken) = (Arc::clone(&sleeps), woken.clone());
                    move || {
                        let dropped = std::mem::take(&mut *sleeps.lock().unwrap());
                        drop(dropped);
                        woken.add();
                    }
                },
                || (),
            );
            let deadline = Instant::now() + Duration::from_millis(50);
            let mut armed = 0;
            // No waker gets past this lock before all sleeps are there.
            let mut all = sleeps.lock().unwrap();
            for _ in 0..100 {
                let mut sleep = unsync::sleep_until(deadline);
                armed += usize::from(poll(&mut sleep, &waker).is_pending());
                all.push(sleep);
            }
            drop(all);
            if armed > 0 {
                woken.wait_for(1);
                assert!(sleeps.lock().unwrap().is_empty());
            }
            fence();
        });
    }

    #[test]
    fn yield_now_is_pending_once() {
        quick(|| {
            let (waker, mut yields) = (CountingWaker::new(), unsync::yield_now());
            assert!(waker.poll(&mut yields).is_pending());
            assert_eq!(waker.wakes(), 1);
            assert!(waker.poll(&mut yields).is_ready());
            assert_eq!((waker.wakes(), waker.held()), (1, 0));
        });
    }
}
