//! Runs the library's own files under [loom](https://docs.rs/loom): every schedule of a few threads up to a number
//! of preemptions, and every value that a relaxed load may see.
//!
//! ```text
//! cargo run                 all models, with 2 preemptions at most
//! cargo run -- timer 3      the models with `timer` in their names, with 3
//! ./mutations.sh            breaks the library in one place after another: a model has to fail each time
//! ```
//!
//! The files are compiled from `src/` as they are. They take their locks, atomics, channels, parking and the
//! time from `crate::sync`, which is a module of this crate. What is below them and has no schedules
//! (settings, spinning) is a stub or is switched off; the process pool has a simulation of its own.
//!
//! What a model cannot see:
//!
//! - `Arc` and `Weak` are std's: no schedule depends on the order of their counts.
//! - The clock stands still or jumps to an alarm; reading it is not a step of its own.
//! - Preemptions beyond the bound, and more than five threads.

use std::fmt::Display;
use std::process::exit;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use std::{env, panic};

// Before the macro that replaces std's in the files below.
mod clock;
#[macro_use]
mod sync;

#[path = "../../../src/ambient/mod.rs"]
mod ambient;
#[path = "../../../src/block_on.rs"]
mod block_on;
#[path = "../../../src/combine.rs"]
mod combine;
mod config;
#[path = "../../../src/current.rs"]
mod current;
#[path = "../../../src/engine.rs"]
mod engine;
#[path = "../../../src/error.rs"]
mod error;
#[path = "../../../src/limit.rs"]
mod limit;
mod models;
mod processes;
#[path = "../../../src/progress.rs"]
mod progress;
#[path = "../../../src/shared.rs"]
mod shared;
#[path = "../../../src/slot.rs"]
mod slot;
#[path = "../../../src/spin.rs"]
mod spin;
#[path = "../../../src/stalls.rs"]
mod stalls;
#[path = "../../../src/stop.rs"]
mod stop;
#[path = "../../../src/threads/mod.rs"]
mod threads;
#[path = "../../../src/unfuture.rs"]
mod unfuture;

/// Where the library reports what nobody else sees.
fn log(text: &str) {
    panic!("{text}");
}

/// The model that runs.
static MODEL: Mutex<&str> = Mutex::new("");
/// The number of schedules that it has run.
static SCHEDULES: AtomicUsize = AtomicUsize::new(0);

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let numbers = arguments
        .iter()
        .filter_map(|argument| argument.parse().ok());
    let preemptions = numbers.last().unwrap_or(2);
    let names: Vec<_> = arguments
        .iter()
        .filter(|it| it.parse::<usize>().is_err())
        .collect();
    // Also for a panic that the library would catch, such as loom's about a deadlock in a task.
    panic::set_hook(Box::new(|panic| {
        let (model, schedule) = (*MODEL.lock().unwrap(), SCHEDULES.load(Relaxed));
        fail(format_args!("{model}, schedule {schedule}: {panic}"));
    }));
    // A wait that spins looks at a clock that no schedule repeats.
    spin::set_budget(Duration::ZERO);
    let mut all = 0;
    let started = Instant::now();
    for (name, model) in models::ALL {
        if names.is_empty() || names.iter().any(|part| name.contains(&***part)) {
            all += check(name, preemptions, *model);
        }
    }
    println!(
        "{all} schedules in {:.1} s",
        started.elapsed().as_secs_f64()
    );
    if all == 0 {
        fail("there is no such model");
    }
}

fn check(name: &'static str, preemptions: usize, model: fn()) -> usize {
    *MODEL.lock().unwrap() = name;
    SCHEDULES.store(0, Relaxed);
    let started = Instant::now();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(move || {
        SCHEDULES.fetch_add(1, Relaxed);
        sync::begin_run();
        config::LIMIT.set(2);
        model();
    });
    let schedules = SCHEDULES.load(Relaxed);
    println!(
        "{name:42} {schedules:8} schedules {:6.1} s",
        started.elapsed().as_secs_f64()
    );
    schedules
}

fn fail(why: impl Display) -> ! {
    println!("FAILED: {why}");
    exit(1);
}
