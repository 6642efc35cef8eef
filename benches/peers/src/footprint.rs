//! Rows about the footprint: memory of pending tasks, CPU time of an idle process.

use std::future::{Future, pending};
use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::Duration;
use std::{io, thread};

use crate::contest::{Contest, Limit, OURS, Row, Target, Unit};
use crate::processes::{self, fresh_process};
use crate::raw;
use crate::runtimes::{Runtime, TokioThread, Unsync, smol_executor, tokio};
use crate::support::{children_of, cpu_time_of, resident};

pub(crate) const ROWS: &[Row] = &[
    Row {
        key: "memory",
        workload: "memory of one pending task, its handle kept",
        unit: Unit::Bytes,
        targets: &[Target {
            against: "tokio",
            peers: &["tokio"],
            limit: Limit::AtMost(0.75),
        }],
        seat: |quick| memory(quick, "pending"),
    },
    Row {
        key: "memory-sleep",
        workload: "memory of one sleeping task, its handle kept",
        unit: Unit::Bytes,
        targets: &[Target {
            against: "tokio",
            peers: &["tokio"],
            limit: Limit::AtMost(0.9),
        }],
        seat: |quick| memory(quick, "sleeping"),
    },
    Row {
        key: "limit-memory",
        workload: "memory of one job that waits under `Limit(4).thread`, its handle kept",
        unit: Unit::Bytes,
        targets: &[Target {
            against: "our own `thread`",
            peers: &["(unsync"],
            limit: Limit::AtMost(1.5),
        }],
        seat: |quick| memory_of_all(quick, "queued", &[OURS, "(unsync, without a limit)"]),
    },
    Row {
        key: "idle",
        workload: "CPU time in 1 s of idle after a burst, workers included",
        unit: Unit::Nanoseconds,
        targets: &[Target {
            against: "–",
            peers: &[],
            limit: Limit::Below(1e6),
        }],
        seat: |quick| {
            Contest::new(1, if quick { 1 } else { 5 }).with_figure(OURS, |_| idle_process())
        },
    },
];

// ------------------------------------------------------------------------------------- the memory

/// Each figure comes from a process of its own.
fn memory(quick: bool, what: &'static str) -> Contest {
    let contestants = [
        OURS,
        "tokio current_thread",
        "tokio 1 worker",
        "tokio 2 workers",
        "smol",
    ];
    memory_of_all(quick, what, &contestants)
}

fn memory_of_all(quick: bool, what: &'static str, contestants: &[&'static str]) -> Contest {
    let amount = if quick { 10_000 } else { 1_000_000 };
    let contest = Contest::new(1, 3);
    contestants.iter().fold(contest, |contest, &name| {
        contest.with_figure(name, move |_| {
            fresh_process(&["--memory", what, name, &amount.to_string()])
        })
    })
}

/// Runs in such a process: the bytes of one task.
pub(crate) fn memory_of(what: &str, name: &str, amount: usize) -> Option<f64> {
    /// Long after the measurement.
    const FAR: Duration = Duration::from_secs(3600);
    if what == "queued" {
        return queued_grown(name == OURS, amount);
    }
    let sleeps = what == "sleeping";
    match name {
        OURS if sleeps => grown(&Unsync, amount, || unsync::sleep(FAR)),
        OURS => grown(&Unsync, amount, pending),
        "smol" if sleeps => grown(&smol_executor(), amount, || async {
            smol::Timer::after(FAR).await;
        }),
        "smol" => grown(&smol_executor(), amount, pending),
        "tokio current_thread" => tokio_grown(TokioThread::start().handle(), amount, sleeps),
        "tokio 1 worker" => tokio_grown(tokio(1).handle(), amount, sleeps),
        _ => tokio_grown(tokio(2).handle(), amount, sleeps),
    }
}

fn tokio_grown(handle: &tokio::runtime::Handle, amount: usize, sleeps: bool) -> Option<f64> {
    /// Long after the measurement.
    const FAR: Duration = Duration::from_secs(3600);
    if sleeps {
        grown(handle, amount, || async { tokio::time::sleep(FAR).await })
    } else {
        grown(handle, amount, pending)
    }
}

/// How much the resident memory grows for each job that waits for one of four threads.
fn queued_grown(limited: bool, amount: usize) -> Option<f64> {
    let config = unsync::Config::new().threads(4);
    config.install().expect("nothing has begun");
    let limit = unsync::Limit::new(4);
    let start = |i| match limited {
        true => limit.thread(move || i),
        false => unsync::thread(move || i),
    };
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Arc::new(std::sync::Mutex::new(gate));
    let held = (0..4).map(|i| {
        let gate = gate.clone();
        let hold = move || {
            let _ = gate.lock().map(|gate| gate.recv());
            i
        };
        match limited {
            true => limit.thread(hold),
            false => unsync::thread(hold),
        }
    });
    let held: Vec<_> = held.collect();
    let before = resident()?;
    let handles: Vec<_> = (0..amount).map(start).collect();
    let after = resident()?;
    drop(open);
    let sum = |all: Vec<unsync::Unfuture<usize>>| {
        let values = all.into_iter().map(|one| one.result().expect("a value"));
        values.sum::<usize>()
    };
    assert_eq!(sum(held), 6);
    assert_eq!(sum(handles), amount * (amount - 1) / 2);
    Some(after.saturating_sub(before) as f64 / amount as f64)
}

/// How much the resident memory grows for each task that waits.
fn grown<R, F>(runtime: &R, amount: usize, future: impl Fn() -> F) -> Option<f64>
where
    R: Runtime,
    F: Future<Output = ()> + Send + 'static,
{
    // All threads exist before the first measurement.
    (0..100).for_each(|_| runtime.wait(runtime.spawn(async {})));
    let before = resident()?;
    let handles: Vec<_> = (0..amount).map(|_| runtime.spawn(future())).collect();
    // The queues are first in, first out: when this one has run, all others have been polled.
    runtime.wait(runtime.spawn(async {}));
    thread::sleep(Duration::from_millis(300));
    let after = resident()?;
    black_box(handles.len());
    // Destroying them takes long and is not measured.
    std::mem::forget(handles);
    Some(after.saturating_sub(before) as f64 / amount as f64)
}

// --------------------------------------------------------------------------------------- the idle

/// Observes from outside a process that has just ended a burst of everything, and its workers.
fn idle_process() -> Option<f64> {
    let mut child = raw::own_program()
        .arg("--idle")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take()?)
        .read_line(&mut line)
        .ok()?;
    let spent = || {
        let workers = children_of(child.id());
        let all = workers.into_iter().chain([child.id()]);
        all.filter_map(|process| cpu_time_of(&process.to_string()))
            .sum::<Duration>()
    };
    let before = spent();
    thread::sleep(Duration::from_secs(1));
    let used = spent().saturating_sub(before);
    drop(child.stdin.take());
    child.wait().ok()?;
    Some(used.as_nanos() as f64)
}

/// Runs in that process: the burst, then nothing.
pub(crate) fn burst_and_idle() {
    let spawned: Vec<_> = (0..10_000)
        .map(|i| unsync::spawn(async move { i }))
        .collect();
    let jobs: Vec<_> = (0..10_000).map(|i| unsync::thread(move || i)).collect();
    let sum = |all: Vec<unsync::Unfuture<usize>>| {
        let values = all.into_iter().map(|one| one.result().expect("a value"));
        values.sum::<usize>()
    };
    assert_eq!(sum(spawned), sum(jobs));
    processes::burst(1_000);
    println!("idle");
    io::stdout().flush().expect("the parent reads");
    let mut end = String::new();
    io::stdin().read_line(&mut end).expect("the parent lives");
}
