//! Rows of sleeping tasks.

use std::future::Future;
use std::time::{Duration, Instant};

use crate::contest::{Contest, Limit, OURS, Row, Target, Unit};
use crate::runtimes::{Runtime, TokioThread, Unsync, smol_executor, tokio};
use crate::support::{Samples, cpu_time};

pub(crate) const ROWS: &[Row] = &[
    Row {
        key: "sleeps-cpu",
        workload: "100 k sleeps over a second: CPU time of each",
        unit: Unit::Nanoseconds,
        targets: &[Target {
            against: "tokio",
            peers: &["tokio"],
            limit: Limit::AtMost(1.3),
        }],
        seat: |quick| everybody(quick, Measure::CpuTime),
    },
    Row {
        key: "sleeps-late",
        workload: "100 k sleeps over a second: median lateness",
        unit: Unit::Nanoseconds,
        targets: &[Target {
            against: "tokio",
            peers: &["tokio"],
            limit: Limit::AtMost(0.25),
        }],
        seat: |quick| everybody(quick, Measure::Lateness),
    },
];

#[derive(Clone, Copy)]
enum Measure {
    CpuTime,
    Lateness,
}

/// The time from the first spawn to the first deadline: enough to spawn them all.
const LEAD: Duration = Duration::from_millis(300);
/// The time from the first deadline to the last. The deadlines are spread, so that meeting each one counts.
const SPREAD: Duration = Duration::from_secs(1);

fn everybody(quick: bool, measure: Measure) -> Contest {
    let (one, two, current) = (tokio(1), tokio(2), TokioThread::start());
    let own = smol_executor();
    let tokio_sleep = |at: Instant| tokio::time::sleep_until(at.into());
    let smol_sleep = |at: Instant| async move {
        smol::Timer::at(at).await;
    };
    let rounds = if quick { 1 } else { 5 };
    Contest::new(if quick { 1_000 } else { 100_000 }, rounds)
        .with_figure(OURS, move |n| {
            sleeps(&Unsync, unsync::sleep_until, measure, n)
        })
        .with_figure("tokio current_thread", move |n| {
            sleeps(current.handle(), tokio_sleep, measure, n)
        })
        .with_figure("tokio 1 worker", move |n| {
            sleeps(one.handle(), tokio_sleep, measure, n)
        })
        .with_figure("tokio 2 workers", move |n| {
            sleeps(two.handle(), tokio_sleep, measure, n)
        })
        .with_figure("smol own executor", move |n| {
            sleeps(&own, smol_sleep, measure, n)
        })
}

fn sleeps<R, S>(
    runtime: &R,
    sleep_until: impl Fn(Instant) -> S + Copy + Send + 'static,
    measure: Measure,
    sleeps: usize,
) -> Option<f64>
where
    R: Runtime,
    S: Future<Output = ()> + Send + 'static,
{
    let before = cpu_time()?;
    let first = Instant::now() + LEAD;
    let gap = SPREAD / u32::try_from(sleeps).unwrap_or(u32::MAX);
    let handles = (0..sleeps).map(|i| {
        // In scattered order: the step has no common divisor with their number.
        let place = (i * 7919) % sleeps;
        let deadline = first + gap * u32::try_from(place).unwrap_or(0);
        runtime.spawn(async move {
            sleep_until(deadline).await;
            Instant::now().duration_since(deadline)
        })
    });
    let handles: Vec<_> = handles.collect();
    let mut late = Samples::default();
    runtime.wait_all(handles, |lateness| late.push(lateness.as_nanos() as f64));
    let spent = cpu_time()?.saturating_sub(before);
    Some(match measure {
        Measure::CpuTime => spent.as_nanos() as f64 / sleeps as f64,
        Measure::Lateness => late.median(),
    })
}
