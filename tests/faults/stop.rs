//! Calls that are stopped: cancelled, out of time, frozen, or dropped.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use unsync::{Error, ErrorKind, Unfuture, cpu};

use crate::scenario::{
    Gate, SOON, children, file, freeze, is_gone, is_pointless_over_a_relay, kill, memory_of,
    resident, signal, until, wait_at, worker_after,
};
use crate::*;

scenarios! {
    programs: []
    n07_run_timeout_counts_from_the_start;
    n08_timeout_kills_spin;
    n08_run_timeout_kills_spin;
    n09_timed_out_handle_does_not_hold_the_slot;
    n10_cancel_queued;
    n10_cancel_handed_out_but_not_started;
    n10_cancel_while_the_worker_is_buried in "PATH=$UNSYNC_TEST_HOME/bin:$PATH";
    n10_timeout_while_the_worker_is_buried in "PATH=$UNSYNC_TEST_HOME/bin:$PATH";
    n10_cancel_again_and_too_late;
    n11_cancel_running_cooperative_keeps_worker;
    n11_timeout_running_cooperative_keeps_worker;
    n11_cancel_is_not_seen_by_the_next_call;
    n12_cancel_running_kills_only_it;
    n12_cancel_running_kill_after_the_grace;
    n13_drop_handle_queued_and_running;
    n13_cancel_on_drop_queued_and_running;
    n37_sigstop_worker_others_progress;
    n37_sigstop_worker_gives_its_call_back;
    n37_sigstop_worker_while_it_takes_a_large_call;
    n37_worker_is_killed_while_it_takes_a_large_call;
    n37_sigstop_of_the_program;
    n37_sigstop_while_running_is_told_by_the_deadline;
    n37_sigstop_while_running_is_told_when_debugging in "export UNSYNC_DEBUG=1";
    n38_sigstop_then_cancel;
    n38_sigstop_then_cancel_with_grace;
    n38_sigstop_then_shutdown_bounded;
    n38_sigstop_while_running_then_shutdown_bounded;
}

/// Long enough for any quick call on a busy machine.
const AMPLE: Duration = Duration::from_secs(1);

fn n07_run_timeout_counts_from_the_start() {
    install(workers(1));
    let gate = Gate::new();
    let running = cpu(stay, (gate.path(),));
    let guest = gate.guest();
    let queued = cpu(pid, ()).run_timeout(AMPLE);
    let impatient = cpu(pid, ()).timeout(AMPLE);
    // When this call has waited that long, the one before it has waited for longer.
    let error = assert_kind(impatient.result(), ErrorKind::TimedOut);
    assert_says(&error, &["`pid`", "1s"]);
    assert!(!queued.is_done());
    guest.leave();
    running.result().unwrap();
    if let Err(error) = queued.result() {
        assert_says(&error, &["which ran for", "1s"]);
    }
}

fn timeout_kills_spin(limited: impl Fn(Unfuture<()>, Duration) -> Unfuture<()>) {
    install(workers(2));
    let gate = Gate::new();
    let sibling = cpu(stay, (gate.path(),));
    let beside = gate.guest();
    let worker = cpu(pid, ()).result().unwrap();
    let (limit, started) = (Duration::from_millis(200), Instant::now());
    let error = assert_kind(limited(cpu(spin, ()), limit).result(), ErrorKind::TimedOut);
    let took = started.elapsed();
    assert!(
        took >= limit && took < limit + Duration::from_secs(10),
        "after {took:?}"
    );
    assert_says(&error, &["`spin`, which ran for", "200ms"]);
    assert_eq!(error.worker_exit().unwrap().signal(), Some(9));
    assert_ne!(cpu(pid, ()).result().unwrap(), worker);
    until("the killed worker is reaped", || is_gone(worker));
    let neighbour = beside.process;
    beside.leave();
    assert_eq!(sibling.result().unwrap(), neighbour);
}

fn n08_timeout_kills_spin() {
    timeout_kills_spin(Unfuture::timeout);
}

fn n08_run_timeout_kills_spin() {
    timeout_kills_spin(Unfuture::run_timeout);
}

fn n09_timed_out_handle_does_not_hold_the_slot() {
    install(workers(1));
    let late: Vec<_> = (0..3)
        .map(|_| {
            let late = cpu(spin, ()).run_timeout(Duration::from_millis(50));
            late.wait();
            cpu(pid, ()).result().unwrap();
            late
        })
        .collect();
    for late in late {
        assert_kind(late.result(), ErrorKind::TimedOut);
    }
}

fn n10_cancel_queued() {
    install(workers(1));
    let (gate, proof) = (Gate::new(), file("proof"));
    let running = cpu(stay, (gate.path(),));
    let guest = gate.guest();
    let queued: Vec<_> = (0..10)
        .map(|line| cpu(note, (proof.clone(), line)))
        .collect();
    let mut left = Vec::new();
    for (line, call) in queued.into_iter().enumerate() {
        if line % 2 == 0 {
            assert!(call.cancel());
            let error = assert_kind(call.result(), ErrorKind::Cancelled);
            assert_says(&error, &["`note`", "started at tests/faults/stop.rs:"]);
            assert_eq!(error.worker_exit(), None);
        } else {
            left.push(call);
        }
    }
    guest.leave();
    running.result().unwrap();
    for call in left {
        call.result().unwrap();
    }
    assert_eq!(notes(&proof), [1, 3, 5, 7, 9]);
}

/// The call is already at a worker, behind one that runs.
fn n10_cancel_handed_out_but_not_started() {
    install(workers(1));
    let (mut lines, proof) = ((0..10).cycle(), file("proof"));
    let (running, guest, handed) =
        hand_out(10, || cpu(note, (proof.clone(), lines.next().unwrap())));
    let before = notes(&proof).len();
    for call in handed.iter().take(5) {
        assert!(call.cancel());
    }
    let (cancelled, left): (Vec<_>, Vec<_>) =
        handed.into_iter().enumerate().partition(|it| it.0 < 5);
    for (_, call) in cancelled {
        assert_kind(call.result(), ErrorKind::Cancelled);
    }
    assert!(!running.is_done(), "nobody had to die for that");
    let worker = guest.process;
    guest.leave();
    assert_eq!(running.result().unwrap(), worker);
    for (_, call) in left {
        assert_eq!(call.result().unwrap(), worker);
    }
    // The worker may give some calls back just when the others can be sent, so they need not run in order.
    let mut ran = notes(&proof).split_off(before);
    ran.sort_unstable();
    assert_eq!(ran, [5, 6, 7, 8, 9]);
}

/// A `kill` that comes first in the path, and waits until it may go on, so that burying a worker takes as
/// long. Returns the file that says that it waits, and the file that lets it go on.
fn delay_burials() -> (String, String) {
    let (bin, asked, allowed) = (file("bin"), file("asked"), file("allowed"));
    fs::create_dir(&bin).unwrap();
    let wait = format!("#!/bin/sh\n: > {asked}\n: < {allowed}\n");
    let script = wait + "PATH=${PATH#*:}; exec kill \"$@\"\n";
    fs::write(format!("{bin}/kill"), script).unwrap();
    run("chmod", &["+x", &format!("{bin}/kill")]);
    run("mkfifo", &[&allowed]);
    (asked, allowed)
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status();
    assert!(status.unwrap().success(), "{program} {arguments:?}");
}

/// A call can be stopped even while no worker has it, because the worker that should run it is being buried.
fn stop_in_the_burial(stop: impl FnOnce(Unfuture<u32>) -> Unfuture<u32>, kind: ErrorKind) {
    // Only the first worker gets ready before the door is open.
    let (first, door) = (file("first"), file("door"));
    run("mkfifo", &[&door]);
    let shell = format!("[ -e {first} ] && : < {door}; : > {first}");
    let config = workers(1).kill_children(true);
    install(config.worker_command(move |executable| worker_after(&shell, executable)));
    let (worker, proof) = (cpu(pid, ()).result().unwrap(), file("proof"));
    freeze(worker);
    let call = cpu(note, (proof.clone(), 1));
    let (asked, allowed) = delay_burials();
    // By its path, so that it is not the `kill` that waits. On a busy machine the pool may be quicker: it
    // kills a worker that owes an answer.
    let mut kill = Command::new("/bin/kill");
    kill.args(["-KILL", &worker.to_string()]).status().unwrap();
    until("the burial is under way", || Path::new(&asked).exists());
    assert_kind(stop(call).result(), kind);
    assert!(!is_gone(worker));
    drop(File::create(allowed).unwrap());
    fs::remove_dir_all(file("bin")).unwrap();
    until("the burial is over", || is_gone(worker));
    // This call would come after the stopped one.
    let next = cpu(note, (proof.clone(), 2));
    drop(File::create(door).unwrap());
    next.result().unwrap();
    assert_eq!(notes(&proof), [2]);
}

fn n10_cancel_while_the_worker_is_buried() {
    let cancel = |call: Unfuture<u32>| {
        assert!(call.cancel(), "it had not ended");
        call
    };
    stop_in_the_burial(cancel, ErrorKind::Cancelled);
}

fn n10_timeout_while_the_worker_is_buried() {
    stop_in_the_burial(
        |call| call.timeout(Duration::from_millis(50)),
        ErrorKind::TimedOut,
    );
}

fn n10_cancel_again_and_too_late() {
    install(workers(1));
    let gate = Gate::new();
    let running = cpu(stay, (gate.path(),));
    let queued = cpu(pid, ());
    let guest = gate.guest();
    let canceller = queued.canceller();
    assert!(queued.cancel());
    assert!(queued.cancel() && canceller.cancel(), "again");
    guest.leave();
    running.wait();
    assert!(!running.cancel(), "it has ended");
    running.result().unwrap();
    assert_kind(queued.result(), ErrorKind::Cancelled);
    assert!(canceller.cancel(), "it has ended so");
}

/// Ends by itself when it is asked to.
fn be_polite(gate: String) -> bool {
    let _guest = wait_at(&gate);
    while !unsync::is_cancelled() {
        thread::yield_now();
    }
    true
}

fn n11_cancel_running_cooperative_keeps_worker() {
    install(workers(1).cancel_grace(SOON));
    let gate = Gate::new();
    let call = cpu(be_polite, (gate.path(),));
    let guest = gate.guest();
    let worker = guest.process;
    drop(guest);
    assert!(call.cancel());
    let error = assert_kind(call.result(), ErrorKind::Cancelled);
    assert_says(&error, &["`be_polite`, which ran for"]);
    assert_eq!(error.worker_exit(), None);
    assert_eq!(cpu(pid, ()).result().unwrap(), worker);
}

fn n11_timeout_running_cooperative_keeps_worker() {
    install(workers(1).cancel_grace(SOON));
    let gate = Gate::new();
    let call = cpu(be_polite, (gate.path(),)).run_timeout(Duration::from_millis(50));
    let guest = gate.guest();
    let worker = guest.process;
    drop(guest);
    let error = assert_kind(call.result(), ErrorKind::TimedOut);
    assert_says(&error, &["`be_polite`, which ran for", "50ms"]);
    assert_eq!(cpu(pid, ()).result().unwrap(), worker);
}

fn is_cancelled_now() -> bool {
    unsync::is_cancelled()
}

fn n11_cancel_is_not_seen_by_the_next_call() {
    install(workers(1).cancel_grace(SOON));
    let gate = Gate::new();
    let call = cpu(be_polite, (gate.path(),));
    let next = cpu(is_cancelled_now, ());
    drop(gate.guest());
    assert!(call.cancel());
    assert_kind(call.result(), ErrorKind::Cancelled);
    assert!(!next.result().unwrap());
}

fn n12_cancel_running_kills_only_it() {
    install(workers(2));
    let (mut calls, mut guests) = occupy(2);
    let queued = cpu(pid, ());
    let (cancelled, mut victim) = (calls.remove(0), guests.remove(0));
    assert!(cancelled.cancel());
    let error = assert_kind(cancelled.result(), ErrorKind::Cancelled);
    assert_says(&error, &["`stay`, which ran for"]);
    assert_eq!(error.worker_exit().unwrap().signal(), Some(9));
    victim.wait_for_end();
    until("the killed worker is reaped", || is_gone(victim.process));
    let neighbour = guests[0].process;
    // The other worker stays busy, so a new worker ran this call.
    assert!(![victim.process, neighbour].contains(&queued.result().unwrap()));
    guests.remove(0).leave();
    assert_eq!(calls.remove(0).result().unwrap(), neighbour);
}

fn n12_cancel_running_kill_after_the_grace() {
    let grace = Duration::from_millis(200);
    install(workers(1).cancel_grace(grace));
    let gate = Gate::new();
    let call = cpu(stay, (gate.path(),));
    let guest = gate.guest();
    let cancelled = Instant::now();
    assert!(call.cancel());
    let error = assert_kind(call.result(), ErrorKind::Cancelled);
    let took = cancelled.elapsed();
    assert!(
        took >= grace && took < grace + Duration::from_secs(10),
        "after {took:?}"
    );
    assert_eq!(error.worker_exit().unwrap().signal(), Some(9));
    assert_ne!(cpu(pid, ()).result().unwrap(), guest.process);
}

fn n13_drop_handle_queued_and_running() {
    install(workers(1));
    let (gate, proof) = (Gate::new(), file("proof"));
    drop(cpu(stay, (gate.path(),)));
    drop(cpu(note, (proof.clone(), 1)));
    let guest = gate.guest();
    drop(cpu(note, (proof.clone(), 2)));
    guest.leave();
    assert!(unsync::drain(SOON));
    assert_eq!(notes(&proof), [1, 2]);
}

fn n13_cancel_on_drop_queued_and_running() {
    install(workers(1));
    let (gate, proof) = (Gate::new(), file("proof"));
    let running = cpu(stay, (gate.path(),)).cancel_on_drop();
    let queued = cpu(note, (proof.clone(), 1)).cancel_on_drop();
    let mut guest = gate.guest();
    drop(queued);
    drop(running);
    guest.wait_for_end();
    assert_ne!(
        cpu(note, (proof.clone(), 2)).result().unwrap(),
        guest.process
    );
    assert_eq!(notes(&proof), [2]);
}

// --------------------------------------------------------------------------------- frozen workers

/// The time after which a worker behind a relay counts as frozen; others do so within three seconds.
const FROZEN: Duration = Duration::from_secs(10);

fn n37_sigstop_worker_others_progress() {
    install(workers(2));
    let (calls, guests) = occupy(2);
    freeze(guests[0].process);
    let others: Vec<_> = (0..20).map(|_| cpu(pid, ())).collect();
    let (frozen, free) = (guests[0].process, guests[1].process);
    guests.into_iter().for_each(drop);
    for call in others {
        assert_eq!(call.result().unwrap(), free);
    }
    kill("CONT", &[frozen]);
    for call in calls {
        call.result().unwrap();
    }
}

fn length(bytes: Vec<u8>) -> usize {
    bytes.len()
}
unsync::register!(length);

/// The worker freezes before the whole call is written: the reader cannot notice, since it is writing.
///
/// Each try has a worker of its own. A worker that took such a call before keeps that memory for a while: it
/// grows only once the call has begun, and a running call may take as long as it likes.
const LARGE: usize = 128 << 20;

/// A large call, and its worker, which is frozen before it has half of the call.
fn freeze_while_it_takes_a_large_call() -> (Unfuture<usize>, u32) {
    let bytes = vec![1; LARGE];
    for _ in 0..30 {
        let [worker] = idle_workers(1)[..] else {
            unreachable!()
        };
        let before = resident(worker);
        let large = cpu(length, (bytes.clone(),));
        until("it takes the call", || {
            let grown = |bytes| bytes > before + (16 << 20);
            large.is_done() || memory_of(worker).is_none_or(grown)
        });
        freeze(worker);
        let in_time = |bytes| bytes < before + (LARGE / 2) as u64;
        if !large.is_done() && memory_of(worker).is_some_and(in_time) {
            return (large, worker);
        }
        // The worker had all of the call, or nearly all. Or this took so long that the pool has noticed by
        // now, and another worker gets the call.
        signal("CONT", worker);
        assert_eq!(large.result().unwrap(), LARGE);
        let used = children();
        used.iter().for_each(|worker| signal("KILL", *worker));
        until("the workers are gone", || {
            used.iter().all(|worker| is_gone(*worker))
        });
    }
    panic!("it was never frozen in time");
}

fn n37_sigstop_worker_while_it_takes_a_large_call() {
    install(
        workers(1)
            .keep_alive(Duration::from_secs(3600))
            .host_timeout(FROZEN),
    );
    let (large, frozen) = freeze_while_it_takes_a_large_call();
    let started = Instant::now();
    assert!(large.wait_timeout(SOON), "nobody noticed");
    assert_eq!(large.result().unwrap(), LARGE);
    until("the frozen worker is replaced", || is_gone(frozen));
    assert!(started.elapsed() < SOON, "after {:?}", started.elapsed());
}

/// The call has not begun, so it goes to another worker.
fn n37_worker_is_killed_while_it_takes_a_large_call() {
    install(workers(1).keep_alive(Duration::from_secs(3600)));
    let (large, worker) = freeze_while_it_takes_a_large_call();
    let queued = cpu(pid, ());
    signal("KILL", worker);
    assert_eq!(large.result().unwrap(), LARGE);
    assert_ne!(queued.result().unwrap(), worker);
}

/// The program is stopped, as by a shell, or with the whole machine.
fn n37_sigstop_of_the_program() {
    install(workers(2));
    let gate = Gate::new();
    let running = cpu(stay, (gate.path(),));
    let guest = gate.guest();
    let (sleep, started) = (unsync::spawn(unsync::sleep(AMPLE)), Instant::now());
    let mut signals = Command::new("sh");
    signals.args(["-c", "kill -STOP $PPID; sleep 2; kill -CONT $PPID"]);
    let mut signals = signals.spawn().unwrap();
    let calls: Vec<_> = (0..1000).map(|_| cpu(pid, ())).collect();
    assert!(signals.wait().unwrap().success());
    for call in calls {
        call.result().unwrap();
    }
    sleep.result().unwrap();
    assert!(started.elapsed() >= AMPLE);
    let worker = guest.process;
    guest.leave();
    assert_eq!(running.result().unwrap(), worker);
}

/// A frozen idle worker is dealt a call, which it does not start, so another worker can have it.
fn n37_sigstop_worker_gives_its_call_back() {
    install(
        workers(2)
            .keep_alive(Duration::from_secs(3600))
            .host_timeout(FROZEN),
    );
    for frozen in idle_workers(2) {
        freeze(frozen);
    }
    let (proof, started) = (file("proof"), Instant::now());
    let calls: Vec<_> = (0..4)
        .map(|line| cpu(note, (proof.clone(), line)))
        .collect();
    for call in calls {
        call.result().unwrap();
    }
    assert!(started.elapsed() < SOON, "after {:?}", started.elapsed());
    let mut proofs = notes(&proof);
    proofs.sort();
    assert_eq!(proofs, [0, 1, 2, 3]);
}

/// As a terminal does to a worker that reads from it.
fn n37_sigstop_while_running_is_told_by_the_deadline() {
    if is_pointless_over_a_relay("nobody here looks at the state of the process") {
        return;
    }
    install(workers(1));
    const STOPPED: &str = "in a worker process that a signal had stopped, took longer than";
    for freezes in [true, false] {
        let gate = Gate::new();
        let call = cpu(stay, (gate.path(),));
        let guest = gate.guest();
        if freezes {
            freeze(guest.process);
        }
        let call = call.timeout(Duration::from_secs(3));
        let error = assert_kind(call.result(), ErrorKind::TimedOut);
        assert_eq!(error.to_string().contains(STOPPED), freezes, "{error}");
    }
}

fn n37_sigstop_while_running_is_told_when_debugging() {
    if is_pointless_over_a_relay("nobody here looks at the state of the process") {
        return;
    }
    install(workers(2));
    let (calls, guests) = occupy(2);
    let [frozen, free] = [0, 1].map(|at: usize| guests[at].process);
    freeze(frozen);
    let said = || fs::read_to_string(file("output")).unwrap();
    let of = |worker| format!("unsync: worker process {worker}, which runs `stay` (started at ");
    until("the frozen one is named", || said().contains(&of(frozen)));
    // The worker is checked again, but not named again.
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(said().matches(&of(frozen)).count(), 1, "{}", said());
    assert!(!said().contains(&of(free)), "{}", said());
    kill("CONT", &[frozen]);
    guests.into_iter().for_each(Guest::leave);
    for call in calls {
        call.result().unwrap();
    }
}

fn sigstop_then_cancel() -> Error {
    let gate = Gate::new();
    let call = cpu(stay, (gate.path(),));
    let guest = gate.guest();
    freeze(guest.process);
    let cancelled = Instant::now();
    assert!(call.cancel());
    let ended = call.wait_timeout(SOON);
    println!("ended: {ended}, {:?} after the cancel", cancelled.elapsed());
    if !ended {
        // This lets the scenario reach its end.
        kill("KILL", &[guest.process]);
    }
    assert!(ended);
    assert_kind(call.result(), ErrorKind::Cancelled)
}

fn n38_sigstop_then_cancel() {
    install(workers(1).keep_alive(Duration::from_secs(3600)));
    let error = sigstop_then_cancel();
    assert_eq!(error.worker_exit().unwrap().signal(), Some(9));
}

fn n38_sigstop_then_cancel_with_grace() {
    let grace = Duration::from_millis(100);
    install(
        workers(1)
            .cancel_grace(grace)
            .keep_alive(Duration::from_secs(3600)),
    );
    let error = sigstop_then_cancel();
    assert_eq!(error.worker_exit().unwrap().signal(), Some(9));
}

fn n38_sigstop_then_shutdown_bounded() {
    install(workers(2).keep_alive(Duration::from_secs(3600)));
    let idle = idle_workers(2);
    freeze(idle[0]);
    let asked = Instant::now();
    unsync::shutdown(SOON).unwrap();
    println!("shut down after {:?}", asked.elapsed());
    assert!(idle.into_iter().all(is_gone));
}

fn n38_sigstop_while_running_then_shutdown_bounded() {
    install(workers(1).keep_alive(Duration::from_secs(3600)));
    let gate = Gate::new();
    let call = cpu(stay, (gate.path(),));
    let guest = gate.guest();
    freeze(guest.process);
    shut_down(Duration::from_millis(500));
    assert_kind(call.result(), ErrorKind::ShutDown);
    assert!(is_gone(guest.process));
}

unsync::register!(be_polite, is_cancelled_now);
