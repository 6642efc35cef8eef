//! Async tasks: starting them, waiting for them, switching between them.
//!
//! `cargo bench --bench tasks [-- [--quick] [--json] [ROW…]]`

use std::hint::black_box;
use std::sync::Arc;

use unsync::Unfuture;

mod support;
use support::{Spot, Table};

fn main() {
    let table = Table::open("tasks");
    let amount = |full, quick| table.options.amount(full, quick);
    let rounds = amount(15, 2);

    table.section("one at a time, from synchronous code");
    let single = amount(100_000, 500);
    table.each("spawn, result", single, |i| {
        black_box(unsync::spawn(async move { i }).result().expect("a value"));
    });
    table.each("spawn_local, result", single, |i| {
        black_box(
            unsync::spawn_local(move || async move { i })
                .result()
                .expect("a value"),
        );
    });
    table.rounds("spawn_now, result", single, rounds, |n| {
        for i in 0..n {
            black_box(
                unsync::spawn_now(async move { i })
                    .result()
                    .expect("a value"),
            );
        }
    });
    table.each("spawn, map, result", single, |i| {
        black_box(
            unsync::spawn(async move { i })
                .map(|i| i + 1)
                .result()
                .expect("a value"),
        );
    });
    table.each("spawn, and_then, result", single, |i| {
        let next = unsync::spawn(async move { i }).and_then(|i| async move { i + 1 });
        black_box(next.result().expect("a value"));
    });
    table.rounds("promise, set, result", single, rounds, |n| {
        for i in 0..n {
            let (promise, unfuture) = unsync::promise();
            promise.set(i);
            black_box(unfuture.result().expect("a value"));
        }
    });
    table.rounds("block_on of what is ready", single, rounds, |n| {
        (0..n).for_each(|i| assert_eq!(unsync::block_on(async move { i }), i));
    });

    table.section("many at once, from synchronous code");
    let many = amount(1_000_000, 1_000);
    table.rounds("spawn all, then all results", many, rounds, |n| {
        let tasks: Vec<_> = (0..n).map(|i| unsync::spawn(async move { i })).collect();
        assert_eq!(sum(tasks), n * (n - 1) / 2);
    });
    table.rounds("spawn all, join_all", many, rounds, |n| {
        let tasks = unsync::join_all((0..n).map(|i| unsync::spawn(async move { i })));
        assert_eq!(tasks.result().expect("values").len(), n);
    });
    table.rounds("spawn all, keep none", many, rounds, |n| {
        (0..n).for_each(|i| drop(unsync::spawn(async move { i })));
        unsync::spawn(async {}).result().expect("the last of them");
    });

    table.section("inside a task");
    table.rounds("spawn, await", many, rounds, |n| {
        let task = unsync::spawn(async move {
            let mut sum = 0;
            for i in 0..n {
                sum += unsync::spawn(async move { i }).await.expect("a value");
            }
            sum
        });
        assert_eq!(task.result().expect("a value"), n * (n - 1) / 2);
    });
    table.rounds("spawn 100, await 100", many, rounds, |n| {
        let task = unsync::spawn(async move {
            for _ in 0..n / 100 {
                let tasks: Vec<_> = (0..100).map(|i| unsync::spawn(async move { i })).collect();
                for task in tasks {
                    black_box(task.await.expect("a value"));
                }
            }
        });
        task.result().expect("it ends");
    });

    table.section("switching");
    table.rounds("yield_now, 1 task", many, rounds, |n| yields(1, n));
    table.rounds("yield_now, 1,000 tasks", many, rounds, |n| yields(1_000, n));
    table.rounds("two tasks, a value to and fro", many / 4, rounds, ping_pong);
}

fn sum(all: Vec<Unfuture<usize>>) -> usize {
    let values = all.into_iter().map(|one| one.result().expect("a value"));
    values.sum()
}

fn yields(tasks: usize, yields: usize) {
    let each = (yields / tasks).max(1);
    let task = || async move {
        for _ in 0..each {
            unsync::yield_now().await;
        }
    };
    let tasks = unsync::join_all((0..tasks).map(|_| unsync::spawn(task())));
    tasks.result().expect("they end");
}

fn ping_pong(times: usize) {
    let (ping, pong) = (Arc::new(Spot::default()), Arc::new(Spot::default()));
    let (heard, said) = (Arc::clone(&ping), Arc::clone(&pong));
    let echo = unsync::spawn(async move {
        for _ in 0..times {
            said.put(heard.take().await);
        }
    });
    let player = unsync::spawn(async move {
        for i in 0..times {
            ping.put(i);
            assert_eq!(pong.take().await, i);
        }
    });
    player.result().expect("it ends");
    echo.result().expect("it ends");
}
