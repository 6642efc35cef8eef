//! Whether a unit costs the same however many there are: tasks, threads, workers, bytes, and the
//! memory of waiting work.
//!
//! `cargo bench --bench growth [-- [--quick] [--json] [ROW…]]`
//!
//! A figure that depends on the settings, or that another's memory would disturb, comes from a process
//! of its own.

use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;
use std::{env, thread};

use unsync::Unfuture;

mod support;
use support::{Samples, Table, per_operation, readable_bytes, resident, threads, time};

unsync::register!(same, echo, nap);

fn same(n: usize) -> usize {
    n
}
fn echo(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}
fn nap(milliseconds: u64) {
    thread::sleep(Duration::from_millis(milliseconds));
}

fn main() {
    unsync::init();
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [role, what, amount] = &arguments[..] {
        if role == MEASURE {
            let amount = amount.parse().expect("an amount is a number");
            return println!("{}", measure(what, amount));
        }
    }
    let table = Table::open("growth");
    tasks(&table);
    pool(&table);
    workers(&table);
    payloads(&table);
    memory(&table);
}

/// 10, 100, … up to `most`.
fn decades(most: usize) -> impl Iterator<Item = usize> {
    let all = std::iter::successors(Some(10), |n| Some(n * 10));
    all.take_while(move |n| *n <= most)
}

fn tasks(table: &Table) {
    table.section("tasks: spawn all, then all results");
    for count in decades(table.options.amount(10_000_000, 10_000)) {
        // The same amount of work in every row, as far as possible.
        let rounds = table
            .options
            .amount(3_000_000, 10_000)
            .div_ceil(count)
            .clamp(3, 1_000);
        table.rounds(&format!("{count} tasks"), count, rounds, |n| {
            let tasks: Vec<_> = (0..n).map(|i| unsync::spawn(async move { i })).collect();
            assert_eq!(sum(tasks), n * (n - 1) / 2);
        });
    }
    table.spread("of few tasks: the spawning thread and the ambient one wait for each other");
    table.section("tasks: all there at once, each yields");
    for count in decades(table.options.amount(1_000_000, 10_000)) {
        let each = table.options.amount(2_000_000, 20_000).div_ceil(count);
        table.rounds(&format!("{count} tasks that yield"), count * each, 5, |n| {
            let task = || async move {
                for _ in 0..n / count {
                    unsync::yield_now().await;
                }
            };
            let tasks = (0..count).map(|_| unsync::spawn(task()));
            unsync::join_all(tasks).result().expect("they end");
        });
    }
    table.spread(
        "of many: 250 bytes for each are more than the caches hold, so a poll waits for memory",
    );
}

fn pool(table: &Table) {
    table.section("threads: jobs of 10 ms, 4 for each thread");
    let most = table.options.amount(512, 8);
    let doubled = std::iter::successors(Some(1), |n| Some(n * 2));
    let counts: Vec<usize> = doubled.take_while(|n| *n <= most).collect();
    for count in &counts {
        let setting = ("UNSYNC_THREADS", *count);
        fresh(
            table,
            &format!("{count} threads, blocking"),
            "naps",
            *count,
            Some(setting),
        );
    }
    table.spread("of more threads: the start of each");
    table.section("threads: trivial jobs, so many allowed");
    let jobs = table.options.amount(300_000, 3_000);
    for count in &counts {
        let setting = ("UNSYNC_THREADS", *count);
        fresh(
            table,
            &format!("{count} threads, trivial jobs"),
            "jobs",
            jobs,
            Some(setting),
        );
    }
    table.spread("however many are allowed, trivial jobs get a few threads");
}

fn workers(table: &Table) {
    let counts = if table.options.quick {
        &[1, 2][..]
    } else {
        &[1, 2, 4, 8, 16]
    };
    table.section("workers: calls of 10 ms, 8 for each");
    for count in counts {
        let setting = ("UNSYNC_PROCESSES", *count);
        fresh(
            table,
            &format!("{count} workers, calls that wait"),
            "waits",
            *count,
            Some(setting),
        );
    }
    table.spread("of more workers: the start of each process");
    table.section("workers: trivial calls");
    let calls = table.options.amount(50_000, 500);
    for count in counts {
        let setting = ("UNSYNC_PROCESSES", *count);
        fresh(
            table,
            &format!("{count} workers, trivial calls"),
            "calls",
            calls,
            Some(setting),
        );
    }
    table.spread(
        "of more workers than cores: they take turns, so each finds fewer calls waiting, parks",
    );
    table.note("more often, and its answers come in smaller bundles");
}

fn payloads(table: &Table) {
    table.section("payloads: there and back");
    let most = table.options.amount(256 << 20, 1 << 20);
    let sizes = std::iter::successors(Some(1), |n| Some(n * 4));
    for bytes in sizes.take_while(|n| *n <= most) {
        let name = format!("{} there and back", readable_bytes(bytes as f64));
        if !table.options.wants(&name) {
            continue;
        }
        let rounds = ((256 << 20) / bytes).clamp(5, table.options.amount(2_000, 20));
        let mut payload = vec![7; bytes];
        let mut samples = Samples::default();
        for round in 0..rounds + 2 {
            let sent = std::mem::take(&mut payload);
            let (took, back) = time(|| unsync::cpu(echo, (sent,)).result());
            payload = back.expect("a value");
            if round > 1 {
                samples.push(took.as_nanos() as f64);
            }
        }
        let rate = 2.0 * bytes as f64 / samples.median() * 1e9;
        let text = format!("{}/s", readable_bytes(rate.round()));
        table.row_with(&name, 1, &samples, &[("bytes_per_second", rate, text)]);
    }
    table.note("up to some KiB the round trip, from there on the bytes; above the size of the caches every");
    table.note("copy goes to memory, and the decoded value is fresh memory, of which each page costs a fault");
}

fn memory(table: &Table) {
    table.section("what waits: time to put it there, memory");
    // One thread and one worker, which are busy.
    let (thread, worker) = (("UNSYNC_THREADS", 1), ("UNSYNC_PROCESSES", 1));
    for (name, what, most, setting) in [
        ("pending tasks", "pending", 10_000_000, None),
        ("sleeping tasks", "sleeping", 1_000_000, None),
        ("queued jobs", "queued-jobs", 1_000_000, Some(thread)),
        ("queued calls", "queued-calls", 1_000_000, Some(worker)),
    ] {
        // Fewer would show whole pages of memory, not what each unit takes.
        let counts = decades(table.options.amount(most, 10_000));
        for count in counts.filter(|count| *count >= 10_000) {
            fresh(table, &format!("{count} {name}"), what, count, setting);
        }
    }
    table.spread("a sleeping task costs its timer as well");
}

fn sum(all: Vec<Unfuture<usize>>) -> usize {
    let values = all.into_iter().map(|one| one.result().expect("a value"));
    values.sum()
}

// ---------------------------------------------------------------------- in a process of its own

const MEASURE: &str = "--measure";

/// One row, measured in new processes.
fn fresh(table: &Table, name: &str, what: &str, amount: usize, setting: Option<(&str, usize)>) {
    if !table.options.wants(name) {
        return;
    }
    let program = env::current_exe().expect("this program has a name");
    let (mut samples, mut bytes, mut most) = (Samples::default(), Samples::default(), 0.0);
    for _ in 0..table.options.amount(3, 1) {
        let mut command = Command::new(&program);
        command.args([MEASURE, what, &amount.to_string()]);
        command.envs(setting.map(|(name, value)| (name, value.to_string())));
        let output = command.output().expect("it starts");
        assert!(output.status.success(), "{what}, {amount}: {output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        let numbers = text.split_whitespace().map(str::parse::<f64>);
        let numbers: Vec<f64> = numbers.map_while(Result::ok).collect();
        if let [took, size, count] = numbers[..] {
            samples.push(took);
            bytes.push(size);
            most = count;
        }
    }
    let size = bytes.median();
    let more = match what {
        "naps" | "jobs" | "waits" | "calls" => ("threads", most, format!("{most}")),
        _ => ("bytes", size, format!("{size:.0}")),
    };
    table.row_with(name, amount, &samples, &[more]);
}

/// Runs in that process: nanoseconds and bytes of each unit, and threads at the end.
fn measure(what: &str, amount: usize) -> String {
    let far = Duration::from_secs(3600);
    let ten = Duration::from_millis(10);
    // The ambient thread and its memory exist before the first measurement.
    unsync::spawn(async {}).result().expect("it ends");
    let before = resident().unwrap_or(0);
    let mut kept: Vec<Unfuture<()>> = Vec::with_capacity(amount);
    let settle = || unsync::spawn(async {}).result().expect("it ends");
    let (gate, closed) = mpsc::channel::<()>();
    let jobs = || sum((0..amount).map(|i| unsync::thread(move || i)).collect());
    let calls = || sum((0..amount).map(|i| unsync::cpu(same, (i,))).collect());
    match what {
        // The rows that wait measure how long their threads and processes take to start.
        "jobs" => _ = jobs(),
        "calls" => _ = calls(),
        _ => {}
    }
    // Waiting work: this many turns for each thread or worker. A turn takes its own time if the pool grows.
    let (turns, operations) = match what {
        "naps" => (4, 4),
        "waits" => (8, 8),
        _ => (1, amount),
    };
    let each = per_operation(operations, || match what {
        "pending" => {
            kept.extend((0..amount).map(|_| unsync::spawn(std::future::pending())));
            settle();
        }
        "sleeping" => {
            kept.extend((0..amount).map(|_| unsync::spawn(unsync::sleep(far))));
            settle();
        }
        "queued-jobs" => {
            // The only thread is taken.
            kept.push(unsync::thread(move || closed.iter().count()).map(|_| ()));
            kept.extend((0..amount).map(|_| unsync::thread(|| ())));
        }
        "queued-calls" => {
            kept.push(unsync::cpu(nap, (60_000,)));
            kept.extend((0..amount).map(|_| unsync::cpu(nap, (0,))));
        }
        "naps" => {
            kept.extend((0..amount * turns).map(|_| unsync::thread(move || thread::sleep(ten))));
            kept.drain(..)
                .for_each(|job| job.result().expect("it ends"));
        }
        "jobs" => _ = jobs(),
        "waits" => {
            kept.extend((0..amount * turns).map(|_| unsync::cpu(nap, (10,))));
            kept.drain(..)
                .for_each(|call| call.result().expect("it ends"));
        }
        "calls" => _ = calls(),
        unknown => panic!("nobody measures {unknown}"),
    });
    let grown = resident().unwrap_or(0).saturating_sub(before);
    drop(gate);
    // Destroying them takes long and is not measured.
    std::mem::forget(kept);
    let threads = threads().unwrap_or(0);
    format!("{each} {} {threads}", grown as f64 / amount as f64)
}
