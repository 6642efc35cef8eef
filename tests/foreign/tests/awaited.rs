//! An `Unfuture`, and the library's timers, under foreign executors.

mod support;

use std::future::{Future, pending};
use std::pin::Pin;
use std::time::Instant;

use support::{LONG, TICK, limit};
use unsync::ErrorKind;

type Boxed = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs a future to its end on each executor, as a task.
fn on_every_executor(make: fn() -> Boxed) {
    type Run = fn(Boxed);
    let executors: [(&str, Run); 6] = [
        ("tokio, current_thread", |future| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            runtime.block_on(async { tokio::spawn(future).await.unwrap() });
        }),
        ("tokio, multi_thread", |future| {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .build();
            runtime
                .unwrap()
                .block_on(async { tokio::spawn(future).await.unwrap() });
        }),
        ("smol", |future| smol::block_on(smol::spawn(future))),
        ("futures, LocalPool", |future| {
            futures::executor::LocalPool::new().run_until(future);
        }),
        ("futures, ThreadPool", |future| {
            use futures::task::SpawnExt;
            let pool = futures::executor::ThreadPool::builder()
                .pool_size(2)
                .create()
                .unwrap();
            let handle = pool.spawn_with_handle(future).unwrap();
            futures::executor::block_on(handle);
        }),
        ("unsync", |future| unsync::spawn(future).result().unwrap()),
    ];
    for (name, run) in executors {
        println!("{name}");
        limit(move || run(make()));
    }
}

#[test]
fn every_kind_of_work_is_awaited() {
    on_every_executor(|| {
        Box::pin(async {
            assert_eq!(unsync::spawn(async { 1 }).await.unwrap(), 1);
            assert_eq!(unsync::thread(|| 2).await.unwrap(), 2);
            let late = unsync::spawn(async {
                unsync::sleep(TICK).await;
                3
            });
            assert_eq!(late.map(|n| n + 1).map_thread(|n| n + 1).await.unwrap(), 5);
            let (promise, awaited) = unsync::promise();
            std::thread::spawn(|| promise.set(6));
            assert_eq!(awaited.await.unwrap(), 6);
            let many = (0..100).map(|n| unsync::spawn(async move { n }));
            assert_eq!(unsync::join_all(many).await.unwrap().len(), 100);
        })
    });
}

#[test]
fn failures_are_values() {
    on_every_executor(|| {
        Box::pin(async {
            let panicked = unsync::thread(|| panic!("no")).await.map(|(): ()| ());
            assert_eq!(panicked.unwrap_err().kind(), ErrorKind::Panicked);
            let late = unsync::spawn(pending::<()>()).timeout(TICK).await;
            assert_eq!(late.unwrap_err().kind(), ErrorKind::TimedOut);
            let cancelled = unsync::spawn(pending::<()>());
            cancelled.cancel();
            assert_eq!(cancelled.await.unwrap_err().kind(), ErrorKind::Cancelled);
        })
    });
}

#[test]
fn the_timers_work() {
    on_every_executor(|| {
        Box::pin(async {
            let started = Instant::now();
            unsync::sleep(TICK).await;
            assert!(started.elapsed() >= TICK);
            let late = unsync::timeout(TICK, pending::<()>()).await;
            assert_eq!(late.unwrap_err().kind(), ErrorKind::TimedOut);
            assert_eq!(unsync::timeout(LONG, async { 1 }).await.unwrap(), 1);
            let (mut ticks, started) = (unsync::interval(TICK), Instant::now());
            for _ in 0..4 {
                ticks.tick().await;
            }
            assert!(started.elapsed() >= TICK * 3, "{:?}", started.elapsed());
            unsync::yield_now().await;
        })
    });
}

/// Tokio gives a task 128 steps until it must let others run. The awaited work is not a resource of
/// tokio, so tokio does not count these steps.
#[test]
fn a_thousand_in_a_row() {
    on_every_executor(|| {
        Box::pin(async {
            for n in 0..1000 {
                assert_eq!(unsync::spawn(async move { n }).await.unwrap(), n);
            }
        })
    });
}

/// Blocking in a task of another runtime blocks its thread, but is no deadlock as long as the work
/// does not need that thread.
#[test]
fn blocking_inside_a_task_of_tokio() {
    for threads in [0, 1, 2] {
        limit(move || {
            let runtime = match threads {
                0 => tokio::runtime::Builder::new_current_thread().build(),
                _ => tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(threads)
                    .build(),
            };
            runtime.unwrap().block_on(async {
                let task = tokio::spawn(async {
                    for n in 0..1000 {
                        assert_eq!(unsync::spawn(async move { n }).result().unwrap(), n);
                    }
                    for n in 0..100 {
                        assert_eq!(unsync::thread(move || n).result().unwrap(), n);
                        let value = unsync::block_on(unsync::spawn(async move { n }));
                        assert_eq!(value.unwrap(), n);
                    }
                });
                task.await.unwrap();
            });
        });
    }
}

/// The work that the caller blocks for waits for tokio itself, a thousand times. A task of
/// ours has a budget of its own for each poll, and its wakes do not wait for the blocked worker.
#[test]
fn blocking_for_what_tokio_does_elsewhere() {
    limit(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .build()
            .unwrap();
        runtime.block_on(async {
            let handle = tokio::runtime::Handle::current();
            let task = tokio::spawn(async move {
                for n in 0..1000 {
                    let job = handle.spawn_blocking(move || n);
                    let value = unsync::spawn(async move { job.await.unwrap() });
                    assert_eq!(value.result().unwrap(), n);
                }
            });
            task.await.unwrap();
        });
    });
}

/// An `Unfuture` moves from one executor to the next while it is pending.
#[test]
fn the_last_executor_is_woken() {
    limit(|| {
        let (promise, mut awaited) = unsync::promise::<u8>();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let early = runtime.block_on(async { tokio::time::timeout(TICK, &mut awaited).await });
        assert!(early.is_err(), "it is tokio's timeout that ended");
        let early = smol::block_on(unsync::timeout(TICK, &mut awaited));
        assert_eq!(early.unwrap_err().kind(), ErrorKind::TimedOut);
        std::thread::spawn(move || promise.set(7));
        assert_eq!(futures::executor::block_on(awaited).unwrap(), 7);
    });
}

/// A select that loses an `Unfuture` loses only that: the work goes on.
#[test]
fn dropped_by_a_select() {
    limit(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (promise, gate) = unsync::promise::<()>();
            let (ended, end) = std::sync::mpsc::channel();
            let slow = unsync::spawn(async move {
                gate.await.unwrap();
                ended.send(()).unwrap();
            });
            tokio::select! {
                _ = slow => panic!("its gate is closed"),
                quick = unsync::spawn(async { 1 }) => assert_eq!(quick.unwrap(), 1),
            }
            promise.set(());
            end.recv().unwrap();
        });
    });
}
