//! Calls to worker processes.
//!
//! `cargo bench --bench processes [-- [--quick] [--json] [ROW…]]`

use std::env;
use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

use unsync::Unfuture;

mod support;
use support::{Samples, Table, readable_bytes, time};

unsync::register!(same, echo_bytes, echo_floats, echo_words, forever, reports);

fn same(n: usize) -> usize {
    n
}
fn echo_bytes(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}
fn echo_floats(floats: Vec<f64>) -> Vec<f64> {
    floats
}
fn echo_words(words: Vec<String>) -> Vec<String> {
    words
}
fn forever() {
    loop {
        std::hint::spin_loop();
    }
}
fn reports(times: usize) -> usize {
    (0..times).for_each(unsync::progress);
    times
}

/// Makes this program measure its own first call.
const COLD: &str = "--cold";
/// Makes this program make calls, one at a time and then all at once, and print how long each call took.
const RELAY: &str = "--relay";

fn main() {
    unsync::init();
    if env::args().any(|argument| argument == COLD) {
        let (took, value) = time(|| unsync::cpu(same, (1,)).result());
        assert_eq!(value.expect("a value"), 1);
        return println!("{}", took.as_nanos());
    }
    if let Some(count) = env::args().skip_while(|argument| argument != RELAY).nth(1) {
        return through_relay(count.parse().expect("a number"));
    }
    let table = Table::open("processes");
    let amount = |full, quick| table.options.amount(full, quick);
    let rounds = amount(15, 2);

    table.section("one at a time");
    table.each("cpu, result", amount(20_000, 100), |i| {
        black_box(unsync::cpu(same, (i,)).result().expect("a value"));
    });
    cold(&table, amount(50, 3));
    table.each(
        "cancel a running call, replace its worker",
        amount(50, 3),
        |_| {
            let call = unsync::cpu(forever, ());
            // The next call waits until one of the workers is free again.
            unsync::cpu(same, (1,)).result().expect("a value");
            assert!(call.cancel());
            call.result().expect_err("it was cancelled");
        },
    );

    table.section("many at once");
    let many = amount(100_000, 1_000);
    table.rounds("cpu all, then all results", many, rounds, |n| {
        let calls: Vec<_> = (0..n).map(|i| unsync::cpu(same, (i,))).collect();
        assert_eq!(sum(calls), n * (n - 1) / 2);
    });
    table.rounds("progress of one call", many, rounds, |n| {
        let call = unsync::cpu(reports, (n,)).on_progress::<usize>(|i| assert!(i < usize::MAX));
        assert_eq!(call.result().expect("a value"), n);
    });

    held_up(&table, amount(10_000, 500), rounds);

    table.section("through a relay");
    relay(&table, amount(20_000, 100), rounds);

    table.section("there and back");
    let bytes = amount(64 << 20, 1 << 20);
    echo(
        &table,
        "Vec<u8>",
        rounds,
        bytes,
        vec![7u8; bytes],
        echo_bytes,
    );
    echo(
        &table,
        "Vec<f64>",
        rounds,
        bytes,
        vec![0.7f64; bytes / 8],
        echo_floats,
    );
    let words = vec!["sixteen letters.".to_string(); bytes / 256];
    echo(&table, "Vec<String>", rounds, bytes / 16, words, echo_words);
}

fn sum(all: Vec<Unfuture<usize>>) -> usize {
    let values = all.into_iter().map(|one| one.result().expect("a value"));
    values.sum()
}

/// One slow call in the middle of quick ones: the longest time by which a quick call finishes after one that
/// was made later. The ambient thread reads the clock as each quick call ends.
fn held_up(table: &Table, calls: usize, rounds: usize) {
    let name = "quick calls around a slow one: overtaken by";
    if !table.options.wants(name) {
        return;
    }
    let samples = (0..rounds).map(|_| {
        let quick = || (0..calls / 2).map(|i| unsync::cpu(same, (i,)).map(|_| Instant::now()));
        let mut all: Vec<_> = quick().collect();
        let slow = unsync::cpu(forever, ());
        all.extend(quick());
        let ends = unsync::join_all(all).result().expect("they end");
        slow.cancel();
        slow.result().expect_err("it was cancelled");
        let mut earliest_after = ends[ends.len() - 1];
        let overtaken = ends.iter().rev().map(|end| {
            earliest_after = earliest_after.min(*end);
            (*end - earliest_after).as_nanos() as f64
        });
        overtaken.fold(0.0, f64::max)
    });
    table.row(name, calls, &samples.collect());
}

/// Calls to workers behind a relay on this machine, from a process that has no other workers.
fn relay(table: &Table, calls: usize, rounds: usize) {
    let names = [
        "cpu through a relay, result",
        "cpu through a relay all, then all results",
    ];
    if !names.iter().any(|name| table.options.wants(name)) {
        return;
    }
    let mut samples = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        let program = env::current_exe().expect("the program");
        let mut command = Command::new(program);
        command
            .args([RELAY, &calls.to_string()])
            .env("UNSYNC_LINK", "relay");
        let output = command.output().expect("a process");
        let text = String::from_utf8(output.stdout).expect("text");
        for (samples, line) in samples.iter_mut().zip(text.lines()) {
            samples.push(line.parse::<f64>().expect("nanoseconds"));
        }
    }
    for (name, samples) in names.iter().zip(samples) {
        table.row(name, calls, &samples.into_iter().collect());
    }
}

fn through_relay(calls: usize) {
    unsync::cpu(same, (0,)).result().expect("a value");
    let (one_at_a_time, ()) = time(|| {
        for n in 0..calls {
            unsync::cpu(same, (n,)).result().expect("a value");
        }
    });
    let (at_once, _) = time(|| sum((0..calls).map(|n| unsync::cpu(same, (n,))).collect()));
    for took in [one_at_a_time, at_once] {
        println!("{}", took.as_nanos() as f64 / calls as f64);
    }
}

/// The time from the call to its result in a process that has no worker yet.
fn cold(table: &Table, times: usize) {
    let name = "first call of a process";
    if !table.options.wants(name) {
        return;
    }
    let program = env::current_exe().expect("this program has a name");
    let samples = (0..times).map(|_| {
        let output = Command::new(&program)
            .arg(COLD)
            .output()
            .expect("it starts");
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim().parse::<f64>().expect("it tells a number")
    });
    table.row(name, times, &samples.collect());
}

fn echo<T, F>(table: &Table, name: &str, rounds: usize, bytes: usize, payload: Vec<T>, echo: F)
where
    T: Send + 'static,
    Vec<T>: unsync::Wire,
    F: unsync::Entrypoint<(Vec<T>,), Output = Vec<T>> + Copy,
{
    let name = format!("echo {}, {name}", readable_bytes(bytes as f64));
    if !table.options.wants(&name) {
        return;
    }
    let mut payload = payload;
    let mut samples = Samples::default();
    for round in 0..rounds + 1 {
        let sent = std::mem::take(&mut payload);
        let (took, back) = time(|| unsync::cpu(echo, (sent,)).result());
        payload = back.expect("a value");
        if round > 0 {
            samples.push(took.as_nanos() as f64);
        }
    }
    // The bytes travel twice.
    let rate = 2.0 * bytes as f64 / samples.median() * 1e9;
    let text = format!("{}/s", readable_bytes(rate.round()));
    table.row_with(&name, 1, &samples, &[("bytes_per_second", rate, text)]);
}
