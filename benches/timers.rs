//! Sleeping: how late a sleep ends, and what it costs.
//!
//! `cargo bench --bench timers [-- [--quick] [--json] [ROW…]]`

use std::time::{Duration, Instant};

mod support;
use support::{Samples, Table, cpu_time, readable};

fn main() {
    let table = Table::open("timers");
    let amount = |full, quick| table.options.amount(full, quick);

    table.section("lateness: past the deadline, not from the start");
    let single = amount(1_000, 20);
    lateness(
        &table,
        "sleep 1 ms, one at a time, on the ambient thread",
        single,
        |nap| {
            unsync::spawn(unsync::sleep(nap)).result().expect("it ends");
        },
    );
    lateness(
        &table,
        "sleep 1 ms, one at a time, in block_on",
        single,
        |nap| {
            unsync::block_on(unsync::sleep(nap));
        },
    );
    let many = amount(100_000, 1_000);
    at_once(
        &table,
        "at once, deadlines spread over 1 s",
        many,
        Duration::from_secs(1),
    );
    at_once(
        &table,
        "at once, all with the same deadline",
        many,
        Duration::ZERO,
    );

    table.section("set and taken back");
    let rounds = amount(15, 2);
    table.rounds(
        "sleep, polled once, dropped, in a task",
        many,
        rounds,
        |n| {
            let task = unsync::spawn(async move {
                for _ in 0..n {
                    let far = unsync::sleep(Duration::from_secs(60));
                    drop(unsync::timeout(Duration::ZERO, far).await);
                }
            });
            task.result().expect("it ends");
        },
    );
    table.rounds("timeout of what is ready, in a task", many, rounds, |n| {
        let task = unsync::spawn(async move {
            for i in 0..n {
                let ready = unsync::timeout(Duration::from_secs(60), async move { i }).await;
                assert_eq!(ready.expect("in time"), i);
            }
        });
        task.result().expect("it ends");
    });
}

fn lateness(table: &Table, name: &str, times: usize, sleep: impl Fn(Duration)) {
    if !table.options.wants(name) {
        return;
    }
    let nap = Duration::from_millis(1);
    let samples = (0..times).map(|_| {
        let started = Instant::now();
        sleep(nap);
        started.elapsed().saturating_sub(nap).as_nanos() as f64
    });
    table.row(name, times, &samples.collect());
}

/// Many tasks that sleep at the same time: measures how late each wakes up.
fn at_once(table: &Table, name: &str, sleeps: usize, spread: Duration) {
    /// Time to spawn them all.
    const LEAD: Duration = Duration::from_millis(300);
    if !table.options.wants(name) {
        return;
    }
    let before = cpu_time();
    let first = Instant::now() + LEAD;
    let gap = spread / u32::try_from(sleeps).unwrap_or(u32::MAX);
    let tasks = (0..sleeps).map(|i| {
        // In scattered order.
        let place = u32::try_from((i * 7919) % sleeps).unwrap_or(0);
        let deadline = first + gap * place;
        unsync::spawn(async move {
            unsync::sleep_until(deadline).await;
            deadline.elapsed()
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let late = tasks
        .into_iter()
        .map(|task| task.result().expect("it ends"));
    let late: Samples = late.map(|late| late.as_nanos() as f64).collect();
    let spent = cpu_time().zip(before).map(|(after, before)| after - before);
    let each = spent.map_or(f64::NAN, |spent| spent.as_nanos() as f64 / sleeps as f64);
    table.row_with(name, sleeps, &late, &[("cpu", each, readable(each))]);
}
