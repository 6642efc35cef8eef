//! Rows of blocking jobs on a pool of threads.

use std::hint::black_box;
use std::sync::mpsc;

use crate::contest::{Contest, Limit, OURS, Row, Target, Unit};
use crate::python;
use crate::runtimes::tokio;

pub(crate) const ROWS: &[Row] = &[
    Row {
        key: "thread-many",
        workload: "1 M `thread` jobs, then all results",
        unit: Unit::Nanoseconds,
        targets: &[
            Target {
                against: "best of tokio `spawn_blocking`, `blocking`",
                peers: &["tokio", "blocking"],
                limit: Limit::AtMost(0.03),
            },
            Target {
                against: "best of rayon, threadpool",
                peers: &["rayon", "threadpool"],
                limit: Limit::AtMost(0.8),
            },
        ],
        seat: |quick| {
            let contest = Contest::new(if quick { 1_000 } else { 1_000_000 }, 5);
            everybody(contest, Shape::Many)
                .with_figure("python unsync", python::workload("thread-many"))
                .sharing(100)
        },
    },
    Row {
        key: "thread-one",
        workload: "`thread(f).result()`, one at a time",
        unit: Unit::Nanoseconds,
        targets: &[Target {
            against: "best of tokio, `blocking`, rayon",
            peers: &["tokio", "blocking", "rayon"],
            limit: Limit::AtMost(0.1),
        }],
        seat: |quick| {
            let contest = Contest::new(if quick { 200 } else { 20_000 }, 7);
            everybody(contest, Shape::One)
                .with_figure("python unsync", python::workload("thread-one"))
                .sharing(10)
        },
    },
    Row {
        key: "limit-many",
        workload: "1 M jobs under `Limit(4).thread`, then all results",
        unit: Unit::Nanoseconds,
        targets: &[Target {
            against: "our own `thread`",
            peers: &["(unsync"],
            limit: Limit::AtMost(1.5),
        }],
        seat: |quick| {
            let limit = unsync::Limit::new(4);
            let wait = |handle: unsync::Unfuture<usize>| handle.result().expect("a value");
            Contest::new(if quick { 1_000 } else { 1_000_000 }, 5)
                .with(OURS, move |n| {
                    shaped(Shape::Many, n, |i| limit.thread(move || i), wait);
                })
                .with("(unsync, without a limit)", move |n| {
                    shaped(Shape::Many, n, |i| unsync::thread(move || i), wait);
                })
        },
    },
];

#[derive(Clone, Copy)]
enum Shape {
    One,
    Many,
}

/// Starts `operations` jobs with `start` and takes every value with `wait`.
fn shaped<H>(
    shape: Shape,
    operations: usize,
    mut start: impl FnMut(usize) -> H,
    mut wait: impl FnMut(H) -> usize,
) {
    match shape {
        Shape::One => {
            for i in 0..operations {
                black_box(wait(start(i)));
            }
        }
        Shape::Many => {
            let handles: Vec<H> = (0..operations).map(start).collect();
            let sum: usize = handles.into_iter().map(wait).sum();
            assert_eq!(sum, operations * (operations - 1) / 2);
        }
    }
}

/// The same for pools without handles: the jobs send their values.
fn sent(shape: Shape, operations: usize, start: impl Fn(usize, mpsc::Sender<usize>)) {
    let (sender, values) = mpsc::channel();
    match shape {
        Shape::One => {
            for i in 0..operations {
                start(i, sender.clone());
                black_box(values.recv().expect("the job sends"));
            }
        }
        Shape::Many => {
            (0..operations).for_each(|i| start(i, sender.clone()));
            let sum: usize = values.iter().take(operations).sum();
            assert_eq!(sum, operations * (operations - 1) / 2);
        }
    }
}

fn everybody(contest: Contest, shape: Shape) -> Contest {
    let runtime = tokio(1);
    let pool = threadpool::ThreadPool::default();
    contest
        .with(OURS, move |n| {
            let wait = |handle: unsync::Unfuture<usize>| handle.result().expect("a value");
            shaped(shape, n, |i| unsync::thread(move || i), wait);
        })
        .with("tokio spawn_blocking", move |n| {
            let start = |i| runtime.spawn_blocking(move || i);
            match shape {
                Shape::One => {
                    shaped(shape, n, start, |job| {
                        runtime.block_on(job).expect("a value")
                    });
                }
                // One `block_on` for them all, as its documentation recommends.
                Shape::Many => {
                    let jobs: Vec<_> = (0..n).map(start).collect();
                    let sum = runtime.block_on(async {
                        let mut sum = 0;
                        for job in jobs {
                            sum += job.await.expect("a value");
                        }
                        sum
                    });
                    assert_eq!(sum, n * (n - 1) / 2);
                }
            }
        })
        .with("blocking", move |n| {
            let start = |i| blocking::unblock(move || i);
            match shape {
                Shape::One => shaped(shape, n, start, smol::future::block_on),
                Shape::Many => {
                    let jobs: Vec<_> = (0..n).map(start).collect();
                    let sum = smol::future::block_on(async {
                        let mut sum = 0;
                        for job in jobs {
                            sum += job.await;
                        }
                        sum
                    });
                    assert_eq!(sum, n * (n - 1) / 2);
                }
            }
        })
        .with("rayon", move |n| {
            sent(shape, n, |i, sender| {
                rayon::spawn(move || sender.send(i).expect("the caller listens"));
            });
        })
        .with("threadpool", move |n| {
            sent(shape, n, |i, sender| {
                pool.execute(move || sender.send(i).expect("the caller listens"));
            });
        })
}
