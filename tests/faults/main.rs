//! The process pool under real faults: real kills, limits, deleted files, strangers.
//!
//! Each number in the names is a fault that some well-known pool does not survive. Some stand for two: 4 is
//! also the memory that is not there, 26 and 28 the parent that ends while a worker starts, 27 and 28
//! panics that no hook or no end of the process sees, 42 slow calls among quick ones. A test without a
//! number is a further case.
//!
//! - `death`: 1 to 5, 27, 28, 31, 35, 63. Who notices that a worker died, and what is said.
//! - `stop`: 7 to 13, 37, 38. Cancelled, out of time, frozen, dropped.
//! - `bulk`: 14 to 19, 42, 57, progress. Many calls, large values, much to say.
//! - `link`: 20 to 24, 48. Strangers, fake workers, fake parents.
//! - `orphans`: 26 to 30, 32, 36. The end of the program, and processes that workers start.
//! - `start`: 39 to 44, 47, 48, 50. Workers that do not start.
//! - `neighbours`: what befalls one call and must not befall those that share its worker.
//! - `life`: 33, 34, 51 to 56, 59, 60, 64. Workers that are replaced, their surroundings, the end.
//!
//! Elsewhere: 66 in `soak`; 45 in `init_missing`, which must have no worker; 29 and the faults × phases in
//! `crash_table`; 61 as an example of `register!` that does not compile; 62 by the examples, the
//! doctests and whoever runs these tests.
//!
//! Not tested, because it is not so here:
//!
//! - 6: a call that may have started is never run again, and there is no switch for it.
//! - 13: dropping a handle does not stop the call; that is tested instead.
//! - 21: a worker that garbles before it starts its call may have lost the word that it did, so the call
//!   fails, and is not queued again.
//! - 25: workers run the very file that this process runs, so they cannot differ. Elsewhere than on
//!   Linux they can; `init` says so.
//! - 46: calls made in a worker run in that process, so there is no depth of processes. That is 47.
//! - 49: no code of the program runs in a worker before its first call, but what stands before `init`.
//! - 58: there is no map of this pool. `join_all` is not its business.
//! - 63: a build with `panic = "abort"` would be one more build; a hook that aborts after ours does the
//!   same.
//! - 65: there are no remote workers; nor is there a priority.
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
#[allow(dead_code)] // what these tests have no use for
#[macro_use]
mod scenario;
use scenario::{Gate, Guest, SOON, note, notes, wait_at};

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

/// Which worker runs it.
fn pid() -> u32 {
    process::id()
}

/// The same, once the scenario lets it go.
fn stay(gate: String) -> u32 {
    drop(wait_at(&gate));
    process::id()
}

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

/// Calls that stay, one in each worker, and the guests that they are.
fn occupy(workers: usize) -> (Vec<Unfuture<u32>>, Vec<Guest>) {
    // A gate for each, because they come in any order.
    let gates: Vec<Gate> = (0..workers).map(|_| Gate::new()).collect();
    let calls = gates.iter().map(|gate| cpu(stay, (gate.path(),)));
    let calls = calls.collect();
    (calls, gates.iter().map(Gate::guest).collect())
}

/// The workers that there are, once there are that many, with nothing to do.
fn idle_workers(number: usize) -> Vec<u32> {
    let (calls, guests) = occupy(number);
    guests.into_iter().for_each(Guest::leave);
    let workers: Vec<u32> = calls
        .into_iter()
        .map(|call| call.result().unwrap())
        .collect();
    workers
}

/// Calls that are quick, one after the other, until each worker that gets them is dealt many at once.
fn teach_that_calls_are_quick() {
    for _ in 0..300 {
        cpu(pid, ()).result().unwrap();
    }
}

/// A call that stays, and the guest that it is, with so many calls behind it, most of which were sent to its
/// worker, which returns them within a moment. A worker that had to wait for the processor is not sent many
/// at once: then all of it is run to its end, and tried again.
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

/// Ends everything, for a scenario in which something runs for ever. A busy machine may not let all of it
/// go within the limit, and says so; then only the ends of what was stopped are left to be waited for.
fn shut_down(limit: Duration) {
    if let Err(error) = unsync::shutdown(limit) {
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        unsync::shutdown(SOON).unwrap();
    }
}

/// A listener to progress, and what it hears. That ends with the listener.
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

#[track_caller]
fn assert_says(error: &Error, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
}

/// The same program in a group of its own, started by another one, whose command this is, in its place.
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
