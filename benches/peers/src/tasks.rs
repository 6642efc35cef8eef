//! Rows of async tasks.

use std::hint::black_box;
use std::sync::{Arc, mpsc};
use std::thread;

use crate::contest::{Contest, Limit, OURS, Row, Target, Unit};
use crate::python;
use crate::runtimes::{
    Runtime, SmolGlobal, TokioThread, Unsync, futures_pool, smol_executor, tokio,
};
use crate::support::Spot;

pub(crate) const ROWS: &[Row] = &[
    Row {
        key: "spawn-one",
        workload: "`spawn(async { i }).result()`, one at a time",
        unit: Unit::Nanoseconds,
        targets: &[Target {
            against: "best of tokio, smol, futures `ThreadPool`",
            peers: &["tokio", "smol", "futures"],
            limit: Limit::AtMost(0.08),
        }],
        seat: |quick| {
            let contest = Contest::new(if quick { 200 } else { 20_000 }, 7);
            everybody(contest, One)
                .with("(raw mpsc to a thread and back)", raw_mpsc())
                .with(
                    "(tokio current_thread, on the caller's own thread)",
                    on_this_thread(),
                )
                .with_figure("python unsync", python::workload("spawn-one"))
                .sharing(10)
        },
    },
    Row {
        key: "spawn-many",
        workload: "1 M spawns from outside, then all results",
        unit: Unit::Nanoseconds,
        targets: &[Target {
            against: "best of tokio, smol",
            peers: &["tokio", "smol"],
            limit: Limit::AtMost(0.85),
        }],
        seat: |quick| {
            let contest = Contest::new(if quick { 2_000 } else { 1_000_000 }, 7);
            everybody(contest, Many)
                .with_figure("python unsync", python::workload("spawn-many"))
                .sharing(50)
        },
    },
    Row {
        key: "spawn-inside",
        workload: "1 M spawn + await inside a task",
        unit: Unit::Nanoseconds,
        targets: &[Target {
            against: "best of tokio, smol",
            peers: &["tokio", "smol"],
            limit: Limit::AtMost(0.65),
        }],
        seat: |quick| {
            everybody(
                Contest::new(if quick { 1_000 } else { 1_000_000 }, 7),
                Inside,
            )
        },
    },
    Row {
        key: "yield",
        workload: "1,000 tasks × 2,000 `yield_now`",
        unit: Unit::Nanoseconds,
        targets: &[Target {
            against: "best of tokio, smol",
            peers: &["tokio", "smol"],
            limit: Limit::AtMost(0.9),
        }],
        seat: |quick| {
            everybody(
                Contest::new(if quick { 10_000 } else { 2_000_000 }, 7),
                Yields,
            )
        },
    },
    Row {
        key: "ping-pong",
        workload: "two tasks handing a value to and fro",
        unit: Unit::Nanoseconds,
        targets: &[Target {
            against: "best of tokio, smol",
            peers: &["tokio", "smol"],
            limit: Limit::AtMost(0.9),
        }],
        seat: |quick| {
            let contest = Contest::new(if quick { 1_000 } else { 200_000 }, 7);
            let (one, two, current) = (tokio(1), tokio(2), TokioThread::start());
            let (own, pool) = (smol_executor(), futures_pool());
            everybody(contest, PingPong)
                .with("tokio 1 worker, its own channel", move |n| {
                    tokio_channel(one.handle(), n)
                })
                .with("tokio 2 workers, its own channel", move |n| {
                    tokio_channel(two.handle(), n)
                })
                .with("tokio current_thread, its own channel", move |n| {
                    tokio_channel(current.handle(), n);
                })
                .with("smol global, async-channel", |n| {
                    async_channel(&SmolGlobal, n)
                })
                .with("smol own executor, async-channel", move |n| {
                    async_channel(&own, n)
                })
                .with("futures ThreadPool, its own channel", move |n| {
                    futures_channel(&pool, n)
                })
        },
    },
];

/// A workload that is the same for every runtime.
trait Workload: Copy + 'static {
    fn run<R: Runtime>(self, runtime: &R, operations: usize);
}

fn everybody<W: Workload>(contest: Contest, workload: W) -> Contest {
    let (one, two, current) = (tokio(1), tokio(2), TokioThread::start());
    let (own, pool) = (smol_executor(), futures_pool());
    contest
        .with(OURS, move |n| workload.run(&Unsync, n))
        .with("tokio current_thread", move |n| {
            workload.run(current.handle(), n)
        })
        .with("tokio 1 worker", move |n| workload.run(one.handle(), n))
        .with("tokio 2 workers", move |n| workload.run(two.handle(), n))
        .with("smol global", move |n| workload.run(&SmolGlobal, n))
        .with("smol own executor", move |n| workload.run(&own, n))
        .with("futures ThreadPool", move |n| workload.run(&pool, n))
}

#[derive(Clone, Copy)]
struct One;

impl Workload for One {
    fn run<R: Runtime>(self, runtime: &R, operations: usize) {
        for i in 0..operations {
            black_box(runtime.wait(runtime.spawn(async move { i })));
        }
    }
}

#[derive(Clone, Copy)]
struct Many;

impl Workload for Many {
    fn run<R: Runtime>(self, runtime: &R, operations: usize) {
        let handles = (0..operations).map(|i| runtime.spawn(async move { i }));
        let handles: Vec<_> = handles.collect();
        let mut sum = 0;
        runtime.wait_all(handles, |i| sum += i);
        assert_eq!(sum, operations * (operations - 1) / 2);
    }
}

#[derive(Clone, Copy)]
struct Inside;

impl Workload for Inside {
    fn run<R: Runtime>(self, runtime: &R, operations: usize) {
        let inner = runtime.clone();
        let sum = runtime.wait(runtime.spawn(async move {
            let mut sum = 0;
            for i in 0..operations {
                sum += R::value(inner.spawn(async move { i }).await);
            }
            sum
        }));
        assert_eq!(sum, operations * (operations - 1) / 2);
    }
}

#[derive(Clone, Copy)]
struct Yields;

impl Workload for Yields {
    fn run<R: Runtime>(self, runtime: &R, operations: usize) {
        const TASKS: usize = 1000;
        let handles = (0..TASKS).map(|_| {
            runtime.spawn(async move {
                for _ in 0..operations / TASKS {
                    R::yield_now().await;
                }
            })
        });
        let handles: Vec<_> = handles.collect();
        runtime.wait_all(handles, |()| ());
    }
}

#[derive(Clone, Copy)]
struct PingPong;

impl Workload for PingPong {
    fn run<R: Runtime>(self, runtime: &R, operations: usize) {
        let (ping, pong) = (Arc::new(Spot::default()), Arc::new(Spot::default()));
        let (heard, said) = (Arc::clone(&ping), Arc::clone(&pong));
        let echo = runtime.spawn(async move {
            for _ in 0..operations {
                said.put(heard.take().await);
            }
        });
        let player = runtime.spawn(async move {
            for i in 0..operations {
                ping.put(i);
                assert_eq!(pong.take().await, i);
            }
        });
        runtime.wait(player);
        runtime.wait(echo);
    }
}

fn tokio_channel(handle: &tokio::runtime::Handle, operations: usize) {
    let (ping, mut heard) = tokio::sync::mpsc::channel(1);
    let (said, mut pong) = tokio::sync::mpsc::channel(1);
    handle.spawn(async move {
        while let Some(i) = heard.recv().await {
            said.send(i).await.expect("the player listens");
        }
    });
    let player = handle.spawn(async move {
        for i in 0..operations {
            ping.send(i).await.expect("the echo listens");
            assert_eq!(pong.recv().await, Some(i));
        }
    });
    handle.block_on(player).expect("the player ends well");
}

fn async_channel<R: Runtime>(runtime: &R, operations: usize) {
    let (ping, heard) = async_channel::bounded(1);
    let (said, pong) = async_channel::bounded(1);
    let echo = runtime.spawn(async move {
        while let Ok(i) = heard.recv().await {
            said.send(i).await.expect("the player listens");
        }
    });
    let player = runtime.spawn(async move {
        for i in 0..operations {
            ping.send(i).await.expect("the echo listens");
            assert_eq!(pong.recv().await, Ok(i));
        }
    });
    runtime.wait(player);
    runtime.wait(echo);
}

fn futures_channel<R: Runtime>(runtime: &R, operations: usize) {
    use futures::{SinkExt, StreamExt};
    let (mut ping, mut heard) = futures::channel::mpsc::channel(1);
    let (mut said, mut pong) = futures::channel::mpsc::channel(1);
    let echo = runtime.spawn(async move {
        while let Some(i) = heard.next().await {
            said.send(i).await.expect("the player listens");
        }
    });
    let player = runtime.spawn(async move {
        for i in 0..operations {
            ping.send(i).await.expect("the echo listens");
            assert_eq!(pong.next().await, Some(i));
        }
    });
    runtime.wait(player);
    runtime.wait(echo);
}

/// No executor at all: a number is sent to a thread and back.
fn raw_mpsc() -> impl FnMut(usize) {
    let (ping, heard) = mpsc::channel();
    let (said, pong) = mpsc::channel();
    thread::spawn(move || heard.iter().try_for_each(|i: usize| said.send(i)));
    move |operations| {
        for i in 0..operations {
            ping.send(i).expect("the thread listens");
            black_box(pong.recv().expect("the thread answers"));
        }
    }
}

/// No second thread: the cost when nothing runs beside the caller.
fn on_this_thread() -> impl FnMut(usize) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("tokio's runtime starts");
    move |operations| {
        for i in 0..operations {
            let task = runtime.spawn(async move { i });
            black_box(runtime.block_on(task).expect("the task gives a value"));
        }
    }
}
