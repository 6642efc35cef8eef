//! Calls that share a worker with one that is stopped, or that kills it: only the culprit fails.

use std::process::{self, Command};
use std::time::{Duration, Instant};

use unsync::{ErrorKind, Unfuture, cpu};

use crate::scenario::{SOON, children, is_gone, until};
use crate::*;

scenarios! {
    programs: []
    stopping_a_quick_call_kills_no_neighbour;
    stopping_a_running_call_kills_no_neighbour;
    stopping_with_a_grace_kills_no_neighbour;
    calls_behind_those_that_kill_their_worker_all_run;
    a_stopped_call_ends_though_its_worker_is_wrapped;
    many_calls_in_the_middle_of_a_long_queue_are_cancelled;
}

/// Runs for as long as it says.
fn busy(micros: u64) -> u64 {
    let started = Instant::now();
    while started.elapsed() < Duration::from_micros(micros) {
        std::hint::spin_loop();
    }
    micros
}

fn abort_if(so: bool) {
    if so {
        process::abort();
    }
}

unsync::register!(busy, abort_if);

/// Of many that one worker was dealt, one is stopped at a time when nobody knows whether it has started.
fn stopping_a_quick_call_kills_no_neighbour() {
    install(workers(1));
    for round in 0..50 {
        teach_that_calls_are_quick();
        let mut calls: Vec<_> = (0..200).map(|_| cpu(busy, (5,))).collect();
        let culprit = calls.swap_remove(round);
        let stopped = culprit.cancel();
        for call in calls {
            call.result().unwrap();
        }
        match culprit.result() {
            Ok(_) => {}
            Err(error) => assert!(stopped && error.kind() == ErrorKind::Cancelled, "{error}"),
        }
    }
}

/// The one that is stopped has begun. The next one begins at the same moment as it is killed.
fn stopping_a_running_call_kills_no_neighbour() {
    neighbours_of_stopped_calls(|call, round| {
        call.run_timeout(Duration::from_micros(1 + u64::from(round) * 10))
    });
}

fn neighbours_of_stopped_calls(limited: impl Fn(Unfuture<u64>, u32) -> Unfuture<u64>) {
    install(workers(1));
    let mut late = 0;
    for round in 0..50 {
        teach_that_calls_are_quick();
        let culprits = (0..5).map(|_| limited(cpu(busy, (200,)), round));
        let mut calls: Vec<_> = culprits.collect();
        let neighbours: Vec<_> = (0..50).map(|_| cpu(busy, (20,))).collect();
        calls.push(limited(cpu(busy, (200,)), round));
        for call in neighbours {
            call.result().unwrap();
        }
        for call in calls {
            if let Err(error) = call.result() {
                assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
                late += 1;
            }
        }
    }
    assert!(late > 0, "none was stopped");
}

fn stopping_with_a_grace_kills_no_neighbour() {
    let grace = Duration::from_micros(100);
    install(workers(1).cancel_grace(grace));
    for round in 0..50 {
        teach_that_calls_are_quick();
        let culprit = cpu(busy, (1_000,)).run_timeout(Duration::from_micros(10 * round));
        let neighbours: Vec<_> = (0..50).map(|_| cpu(busy, (20,))).collect();
        for call in neighbours {
            call.result().unwrap();
        }
        if let Err(error) = culprit.result() {
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        }
    }
}

/// Those behind it have not begun: however often that happens to one, it is none of its doing.
fn calls_behind_those_that_kill_their_worker_all_run() {
    install(workers(1));
    teach_that_calls_are_quick();
    let calls: Vec<_> = (0..600)
        .map(|number| (number % 30 == 29, cpu(abort_if, (number % 30 == 29,))))
        .collect();
    for (aborts, call) in calls {
        match call.result() {
            Ok(()) => assert!(!aborts),
            Err(error) => assert!(aborts && error.kind() == ErrorKind::WorkerLost, "{error}"),
        }
    }
}

/// The process that was started is not the one that works: that has to hear of the end itself.
fn a_stopped_call_ends_though_its_worker_is_wrapped() {
    install(workers(1).worker_command(|executable| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "\"$0\" \"$@\"; exit $?"]).arg(executable);
        shell
    }));
    let worker = cpu(pid, ()).result().unwrap();
    assert!(!children().contains(&worker), "the shell is in between");
    let endless = cpu(spin, ()).run_timeout(Duration::from_millis(100));
    assert!(endless.wait_timeout(SOON), "nobody stopped it");
    assert_kind(endless.result(), ErrorKind::TimedOut);
    until("the worker has gone", || is_gone(worker));
    assert_ne!(cpu(pid, ()).result().unwrap(), worker);
}

fn many_calls_in_the_middle_of_a_long_queue_are_cancelled() {
    const CALLS: usize = 20_000;
    install(workers(1));
    let (calls, guests) = occupy(1);
    let mut queued = [(); 3].map(|()| Vec::from_iter((0..CALLS).map(|_| cpu(pid, ()))));
    let started = Instant::now();
    for call in &queued[1] {
        assert!(call.cancel());
    }
    let took = started.elapsed();
    println!("{CALLS} calls cancelled in {took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    for call in queued[1].drain(..) {
        assert_kind(call.result(), ErrorKind::Cancelled);
    }
    guests.into_iter().for_each(Guest::leave);
    for call in queued.into_iter().flatten().chain(calls) {
        call.result().unwrap();
    }
}
