//! Rows of calls to worker processes.

use std::cell::RefCell;
use std::hint::black_box;
use std::process::{Command, Stdio};

use crate::contest::{Contest, Limit, OURS, Row, Target, Unit};
use crate::python;
use crate::raw;

pub(crate) const ROWS: &[Row] = &[
    Row {
        key: "cpu-one",
        workload: "`cpu(f, (1,)).result()`, one at a time",
        unit: Unit::Nanoseconds,
        targets: &[
            Target {
                against: "raw blocking ping-pong over the same kind of socket",
                peers: &["raw"],
                limit: Limit::AtMost(0.4),
            },
            Target {
                against: "procspawn pool",
                peers: &["procspawn"],
                limit: Limit::AtMost(0.15),
            },
            Target {
                against: "Python's process pool",
                peers: &["python"],
                limit: Limit::AtMost(0.1),
            },
        ],
        seat: |quick| {
            let mut blocking = raw::Link::open("ping");
            let mut spinning = raw::Link::open("ping-spinning");
            let pool = procspawn_pool();
            Contest::new(if quick { 100 } else { 10_000 }, 7)
                .with(OURS, |n| {
                    for i in 0..n {
                        black_box(unsync::cpu(same, (i,)).result().expect("a value"));
                    }
                })
                .with("raw socket, blocking", move |n| blocking.ping(n))
                .with("procspawn", move |n| {
                    for i in 0..n {
                        black_box(pool.spawn(i, |i| i).join().expect("a value"));
                    }
                })
                .with_figure(
                    "python concurrent.futures",
                    python::workload("executor-cpu-one"),
                )
                .sharing(10)
                .with_figure("python unsync", python::workload("cpu-one"))
                .sharing(10)
                .with("(raw socket, 200 tries before it blocks)", move |n| {
                    spinning.ping_spinning(n);
                })
        },
    },
    Row {
        key: "cpu-many",
        workload: "100 k trivial `cpu` calls at once, per call",
        unit: Unit::Nanoseconds,
        targets: &[
            Target {
                against: "procspawn pool",
                peers: &["procspawn"],
                limit: Limit::AtMost(0.05),
            },
            Target {
                against: "Python `map` with chunksize 64",
                peers: &["python concurrent.futures"],
                limit: Limit::AtMost(0.9),
            },
        ],
        seat: |quick| {
            let pool = procspawn_pool();
            Contest::new(if quick { 1_000 } else { 100_000 }, 7)
                .with(OURS, |n| {
                    let calls: Vec<_> = (0..n).map(|i| unsync::cpu(same, (i,))).collect();
                    let values = calls
                        .into_iter()
                        .map(|call| call.result().expect("a value"));
                    assert_eq!(values.sum::<usize>(), n * (n - 1) / 2);
                })
                // Each queued call of procspawn holds descriptors: no more calls than this fit at once.
                .with("procspawn, 1,000 at once", move |n| {
                    for from in (0..n).step_by(1_000) {
                        let calls = (from..n.min(from + 1_000)).map(|i| pool.spawn(i, |i| i));
                        let calls: Vec<_> = calls.collect();
                        for call in calls {
                            black_box(call.join().expect("a value"));
                        }
                    }
                })
                .sharing(10)
                .with_figure(
                    "python concurrent.futures, map, chunksize 64",
                    python::workload("executor-cpu-map"),
                )
                .with_figure("python unsync", python::workload("cpu-many"))
                .sharing(50)
        },
    },
    Row {
        key: "echo-bytes",
        workload: "`cpu` echo of 64 MiB: `Vec<u8>`",
        unit: Unit::Nanoseconds,
        targets: &[Target {
            against: "raw socket into a fresh `Vec`",
            peers: &["raw"],
            limit: Limit::AtLeast(0.8),
        }],
        seat: |quick| {
            let bytes = if quick { 1 << 20 } else { 64 << 20 };
            echo(vec![7u8; bytes], bytes, echo_bytes)
        },
    },
    Row {
        key: "echo-floats",
        workload: "`cpu` echo of 64 MiB: `Vec<f64>`",
        unit: Unit::Nanoseconds,
        targets: &[Target {
            against: "raw socket into a fresh `Vec`",
            peers: &["raw"],
            limit: Limit::AtLeast(0.75),
        }],
        seat: |quick| {
            let bytes = if quick { 1 << 20 } else { 64 << 20 };
            echo(vec![0.7f64; bytes / size_of::<f64>()], bytes, echo_floats)
        },
    },
    Row {
        key: "cold",
        workload: "first `cpu` result of a process, cold",
        unit: Unit::Nanoseconds,
        targets: &[Target {
            against: "raw re-exec until its first byte",
            peers: &["raw"],
            limit: Limit::AtMost(1.6),
        }],
        seat: |quick| {
            let contest = Contest::new(1, if quick { 3 } else { 51 });
            contest
                .with_figure(OURS, |_| fresh_process(&["--cold-cpu"]))
                .with_figure("raw re-exec", |_| fresh_process(&["--cold-raw"]))
        },
    },
];

unsync::register!(same, echo_bytes, echo_floats);

fn same(n: usize) -> usize {
    n
}
fn echo_bytes(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}
fn echo_floats(floats: Vec<f64>) -> Vec<f64> {
    floats
}

/// As many workers as our pool has: one for each core.
fn procspawn_pool() -> procspawn::Pool {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    procspawn::Pool::new(workers).expect("the pool of procspawn starts")
}

fn echo<T, F>(payload: Vec<T>, bytes: usize, echo: F) -> Contest
where
    T: Send + 'static,
    Vec<T>: unsync::Wire,
    F: unsync::Entrypoint<(Vec<T>,), Output = Vec<T>> + Copy + 'static,
{
    let (mut zeroed, mut reserved) = (
        raw::Link::open("echo-zeroed"),
        raw::Link::open("echo-reserved"),
    );
    let payload = RefCell::new(payload);
    // The value that came back is sent next, so no contestant pays for an extra copy.
    let (mut one, mut other) = (vec![7u8; bytes], vec![7u8; bytes]);
    Contest::new(8, 7)
        .with(OURS, move |n| {
            for _ in 0..n {
                let back = unsync::cpu(echo, (payload.take(),))
                    .result()
                    .expect("a value");
                payload.replace(back);
            }
        })
        .with("raw socket, zeroed Vec", move |n| {
            (0..n).for_each(|_| one = zeroed.echo_zeroed(&one));
        })
        .with("raw socket, reserved Vec", move |n| {
            (0..n).for_each(|_| other = reserved.echo_reserved(&other));
        })
}

/// Makes a new process measure something and report it in nanoseconds.
pub(crate) fn fresh_process(role: &[&str]) -> Option<f64> {
    let output = raw::own_program()
        .args(role)
        .stderr(Stdio::inherit())
        .output()
        .ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// For a row that is not about the calls themselves.
pub(crate) fn burst(calls: usize) {
    let calls: Vec<_> = (0..calls).map(|i| unsync::cpu(same, (i,))).collect();
    let all = calls.into_iter().all(|call| call.result().is_ok());
    assert!(all, "every call gives a value");
}

/// Runs in such a process.
pub(crate) fn cold_cpu() -> f64 {
    let (took, value) = crate::support::time(|| unsync::cpu(same, (1,)).result());
    assert_eq!(value.expect("a value"), 1);
    took.as_nanos() as f64
}

/// Runs in such a process.
pub(crate) fn cold_raw() -> f64 {
    use std::io::Read;
    let first_byte = || {
        let mut command: Command = raw::own_program();
        let mut child = command
            .arg("--first-byte")
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut byte = [0];
        let mut output = child.stdout.take().expect("it is piped");
        output.read_exact(&mut byte).expect("a byte comes");
        child
    };
    let (took, mut child) = crate::support::time(first_byte);
    child.wait().expect("it ends");
    took.as_nanos() as f64
}
