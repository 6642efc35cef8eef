//! Blocking jobs on the pool of threads.
//!
//! `cargo bench --bench threads [-- [--quick] [--json] [ROW…]]`

use std::hint::black_box;
use std::thread;
use std::time::Duration;

use unsync::Unfuture;

mod support;
use support::Table;

fn main() {
    let table = Table::open("threads");
    let amount = |full, quick| table.options.amount(full, quick);
    let rounds = amount(15, 2);

    table.section("one at a time");
    table.each("thread, result", amount(50_000, 200), |i| {
        black_box(unsync::thread(move || i).result().expect("a value"));
    });
    table.each("thread, map_thread, result", amount(20_000, 100), |i| {
        let next = unsync::thread(move || i).map_thread(|i| i + 1);
        black_box(next.result().expect("a value"));
    });

    table.section("many at once");
    let many = amount(1_000_000, 1_000);
    table.rounds("thread all, then all results", many, rounds, |n| {
        let jobs: Vec<_> = (0..n).map(|i| unsync::thread(move || i)).collect();
        assert_eq!(sum(jobs), n * (n - 1) / 2);
    });
    table.rounds("from 4 threads at once", many, rounds, |n| {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let jobs: Vec<_> = (0..n / 4).map(|i| unsync::thread(move || i)).collect();
                    black_box(sum(jobs));
                });
            }
        });
    });
    table.rounds("each computes 5 µs", many / 50, rounds, |n| {
        let jobs = (0..n).map(|i| unsync::thread(move || compute(i)));
        black_box(sum(jobs.collect()));
    });

    table.section("jobs that block");
    let blocking = amount(5, 1);
    table.rounds("10 sleep 0.1 s: each, of 0.1 s / 10", 10, blocking, |n| {
        sleeps(n, 100)
    });
    table.rounds(
        "100 sleep 0.1 s: each, of 0.1 s / 100",
        100,
        blocking,
        |n| sleeps(n, 100),
    );
    table.rounds("nested, 50 deep", 50, blocking * 20, |n| {
        assert_eq!(nested(n), n)
    });
}

fn sum(all: Vec<Unfuture<usize>>) -> usize {
    let values = all.into_iter().map(|one| one.result().expect("a value"));
    values.sum()
}

fn sleeps(jobs: usize, milliseconds: u64) {
    let nap = Duration::from_millis(milliseconds);
    let jobs = unsync::join_all((0..jobs).map(|_| unsync::thread(move || thread::sleep(nap))));
    jobs.result().expect("they end");
}

/// Every job waits for the next one.
fn nested(depth: usize) -> usize {
    match depth {
        0 => 0,
        depth => {
            1 + unsync::thread(move || nested(depth - 1))
                .result()
                .expect("a value")
        }
    }
}

/// About five microseconds of arithmetic.
fn compute(seed: usize) -> usize {
    (0..2_000).fold(seed, |state, step| {
        black_box(
            state
                .rotate_left(5)
                .wrapping_mul(0x9e37_79b9)
                .wrapping_add(step),
        )
    }) & 0xff
}
