//! The process pool under real faults: real kills, limits, deleted files, strangers.
//!
//! Each number in the names is a fault that some well-known pool does not survive. Some stand for two: 4 is
//! also a lack of memory, 26 and 28 a parent that ends while a worker starts, 27 and 28 panics that no hook
//! or no end of the process sees, 42 slow calls among quick ones. A test without a number is an additional
//! case.
//!
//! - `death`: 1 to 5, 27, 28, 31, 35, 63. How the death of a worker is noticed, and what the error says.
//! - `stop`: 7 to 13, 37, 38. Cancelled, out of time, frozen, dropped.
//! - `bulk`: 14 to 19, 42, 57, progress. Many calls, large values, much output.
//! - `link`: 20 to 24, 48. Strangers, fake workers, fake parents.
//! - `orphans`: 26 to 30, 32, 36. The end of the program, and processes that workers start.
//! - `start`: 39 to 44, 47, 48, 50. Workers that do not start.
//! - `neighbours`: what happens to one call and must not happen to calls that share its worker.
//! - `life`: 33, 34, 51 to 56, 59, 60, 64. Workers that are replaced, their surroundings, the end.
//!
//! Elsewhere: 66 in `soak`; 45 in `init_missing`, which must have no worker; 29 and the faults × phases in
//! `crash_table`; 61 as an example of `register!` that does not compile; 62 by the examples, the
//! doctests and every run of these tests.
//!
//! Not tested, because it is not so here:
//!
//! - 6: a call that may have started is never run again, and there is no switch for it.
//! - 13: dropping a handle does not stop the call; that is tested instead.
//! - 21: a worker that sends garbage before it starts its call may have lost the message that it did, so
//!   the call fails, and is not queued again.
//! - 25: workers run the same file as this process, so they cannot differ. On other systems than Linux
//!   they can; `init` says so.
//! - 46: calls made in a worker run in that process, so processes do not nest. That is 47.
//! - 49: the only code of the program that runs in a worker before its first call is what precedes `init`.
//! - 58: this pool has no map, and `join_all` is not part of it.
//! - 63: `panic = "abort"` would need a separate build; a hook that aborts after ours has the same
//!   effect.
//! - 65: workers on other hosts are in `tests/hosts`; there is no priority.
//! - The link's descriptor cannot be closed in safe code. `exec` closes it, in `crash_table`.
//!
//! Linux only: the faults are signals and limits, and the proofs are in `/proc`.
#![cfg(target_os = "linux")]
#![forbid(unsafe_code)]

use std::fs;
use std::iter;
use std::os::unix::process::CommandExt;
use std::process::{self, Command};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use unsync::{Config, Error, ErrorKind, Unfuture, cpu};

#[path = "../scenario/mod.rs"]
#[allow(dead_code)] // what these tests do not use
#[macro_use]
mod scenario;
use scenario::{Gate, Guest, SOON, assert_says, note, notes, pid, stay};

mod bulk;
mod death;
mod life;
mod link;
mod neighbours;
mod orphans;
mod start;
mod stop;

unsync::test_worker!();

// ------------------------------------------------------------------------- calls of several modules

fn spin() {
    loop {
        std::hint::spin_loop();
    }
}

unsync::register!(pid, stay, spin, note);

// --------------------------------------------------------------------------- steps of several modules

fn install(config: Config) {
    config.install().unwrap();
}

fn workers(most: usize) -> Config {
    Config::new().processes(most)
}

/// Calls that stay, one in each worker, and their guests.
fn occupy(workers: usize) -> (Vec<Unfuture<u32>>, Vec<Guest>) {
    // A gate for each, because they come in any order.
    let gates: Vec<Gate> = (0..workers).map(|_| Gate::new()).collect();
    let calls = gates.iter().map(|gate| cpu(stay, (gate.path(),)));
    let calls = calls.collect();
    (calls, gates.iter().map(Gate::guest).collect())
}

/// The workers, once there are `number` of them, all idle.
fn idle_workers(number: usize) -> Vec<u32> {
    let (calls, guests) = occupy(number);
    guests.into_iter().for_each(Guest::leave);
    let workers: Vec<u32> = calls
        .into_iter()
        .map(|call| call.result().unwrap())
        .collect();
    workers
}

/// Makes quick calls, one after the other, until a worker that gets such calls is dealt many at once.
fn teach_that_calls_are_quick() {
    for _ in 0..300 {
        cpu(pid, ()).result().unwrap();
    }
}

/// A call that stays, and its guest, with `number` calls behind it, most of which were sent to its worker,
/// which returns them within a moment. A worker that had to wait for the processor is not sent many calls at
/// once: then this runs all of them to their end, and tries again.
fn hand_out<T>(
    number: usize,
    call: impl FnMut() -> Unfuture<T>,
) -> (Unfuture<u32>, Guest, Vec<Unfuture<T>>) {
    let mut calls = iter::repeat_with(call);
    for _ in 0..200 {
        teach_that_calls_are_quick();
        let (gate, before) = (Gate::new(), unsync::stats().calls_running);
        let slow = cpu(stay, (gate.path(),));
        let behind: Vec<_> = calls.by_ref().take(number).collect();
        let sent = unsync::stats().calls_running;
        let guest = gate.guest();
        if sent > before + 1 + number / 2 {
            return (slow, guest, behind);
        }
        guest.leave();
        slow.result().unwrap();
        for call in behind {
            call.result().map(drop).unwrap();
        }
    }
    panic!("never were {number} calls dealt at once");
}

/// Ends everything, for a scenario in which something runs forever. On a busy machine not everything may end
/// within the limit, and `shutdown` says so; then only stopped work is left to wait for.
fn shut_down(limit: Duration) {
    if let Err(error) = unsync::shutdown(limit) {
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        unsync::shutdown(SOON).unwrap();
    }
}

/// A progress listener, and what it hears, which ends with the listener.
fn ear<P: Send + 'static>() -> (impl FnMut(P) + Send, Receiver<P>) {
    let (heard, values) = mpsc::channel();
    let listen = move |value| {
        let _ = heard.send(value);
    };
    (listen, values)
}

#[track_caller]
fn assert_kind<T: std::fmt::Debug>(outcome: Result<T, Error>, kind: ErrorKind) -> Error {
    let error = outcome.expect_err("a call that fails");
    assert_eq!(error.kind(), kind, "{error}");
    error
}

/// The same program in a group of its own, started by another program, `starter`, which it replaces.
fn started_by(starter: &[&str], program: &Command) -> Command {
    let set = program
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)));
    let mut command = Command::new(starter[0]);
    command
        .args(&starter[1..])
        .arg(program.get_program())
        .args(program.get_args())
        .envs(set)
        .stdin(process::Stdio::null())
        .process_group(0);
    command
}
