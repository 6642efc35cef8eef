//! Many calls, large values, much output: what the pool may hold, and what it may keep waiting.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use unsync::{ErrorKind, Wire, cpu};

use crate::scenario::{
    Gate, SOON, children, file, freeze, is_gone, memory_of, resident, signal, until, wait_at,
};
use crate::*;

scenarios! {
    programs: []
    n14_unjoined_handles_do_not_stall;
    n15_join_in_reverse_order;
    n16_queue_100k_under_ulimit_64 in "ulimit -n 64";
    n17_big_arg_does_not_block_submit;
    n17_big_arg_does_not_hold_up_quick_calls;
    n17_big_arg_gets_its_turn_among_quick_calls;
    n18_echo_of_many_sizes;
    n18_echo_of_64_mib_of_bytes;
    n18_echo_of_64_mib_of_floats;
    n19_too_large_fails_only_the_call;
    n19_elements_without_bytes_are_too_large_at_once;
    n19_limit_of_values_is_for_what_is_sent;
    n19_limit_of_values_is_none_of_panics;
    n19_limit_of_values_is_none_of_returns;
    n19_limit_of_values_holds_for_progress;
    cancelled_large_calls_harm_nobody;
    n42_slow_call_among_10k_quick_ones_holds_up_none;
    n42_slow_call_makes_the_pool_grow;
    n42_handed_out_calls_run_once;
    n57_arguments_are_dropped_after_the_send;
    n57_result_is_dropped_with_its_handle;
    memory_of_a_large_value_is_given_back_though_there_is_traffic;
    progress_newest_wins_and_last_arrives;
    progress_said_before_anybody_listens;
    progress_flood_of_a_million;
    progress_elsewhere_is_nothing;
}

fn n14_unjoined_handles_do_not_stall() {
    install(workers(2));
    let proof = file("proof");
    let calls: Vec<_> = (0..500)
        .map(|line| cpu(note, (proof.clone(), line)))
        .collect();
    assert!(unsync::drain(SOON));
    let mut proofs = notes(&proof);
    proofs.sort();
    assert!(proofs.into_iter().eq(0..500));
    assert!(calls.iter().all(|call| call.is_done()));
}

fn echo(value: u32) -> u32 {
    value
}

fn n15_join_in_reverse_order() {
    install(workers(2));
    let calls: Vec<_> = (0..1000).map(|value| cpu(echo, (value,))).collect();
    for (value, call) in calls.into_iter().enumerate().rev() {
        assert_eq!(call.result().unwrap() as usize, value);
    }
}

fn n16_queue_100k_under_ulimit_64() {
    install(workers(4));
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    assert!(files.contains(" 64 "), "{files}");
    let started = Instant::now();
    let calls: Vec<_> = (0..100_000).map(|value| cpu(echo, (value,))).collect();
    for (value, call) in calls.into_iter().enumerate() {
        assert_eq!(call.result().unwrap() as usize, value);
    }
    println!("100,000 calls in {:?}", started.elapsed());
}

fn sum(bytes: Vec<u8>) -> u64 {
    bytes.into_iter().map(u64::from).sum()
}

const BULK: usize = 64 << 20;

/// Cancelling each call kills the worker that is reading it; that must not count against workers.
fn cancelled_large_calls_harm_nobody() {
    install(workers(1));
    let bytes = vec![1; 128 << 20];
    let (mut killed, mut tries, mut innocent) = (0, 0, Vec::<Unfuture<u32>>::new());
    while killed < 8 {
        tries += 1;
        assert!(tries < 60, "most were too quick to be cancelled");
        let large = cpu(sum, (bytes.clone(),));
        until("a worker takes it", || {
            let mut memory = scenario::workers().into_iter().filter_map(memory_of);
            large.is_done() || memory.any(|bytes| bytes > 24 << 20)
        });
        if killed > 5 {
            innocent.extend((0..3).map(|value| cpu(echo, (value,))));
        }
        let takers = scenario::workers();
        if large.cancel() {
            killed += 1;
        } else {
            // A call that was too quick to be cancelled has shown that workers are good.
            killed = 0;
            for call in innocent.drain(..) {
                call.result().unwrap();
            }
            takers.iter().for_each(|worker| signal("KILL", *worker));
        }
        drop(large.result());
        // A worker that has taken a large call keeps the memory for a while, and the loop has to see the next
        // one grow.
        until("it is gone", || {
            takers.iter().all(|worker| is_gone(*worker))
        });
    }
    for call in innocent {
        call.result().unwrap();
    }
}

fn n17_big_arg_does_not_block_submit() {
    install(workers(1));
    let gate = Gate::new();
    let running = cpu(stay, (gate.path(),));
    let guest = gate.guest();
    // No worker is free to take them.
    let large: Vec<_> = (0..3u8)
        .map(|value| cpu(sum, (vec![value; BULK],)))
        .collect();
    let small = cpu(echo, (7,));
    assert!(!running.is_done());
    guest.leave();
    running.result().unwrap();
    for (value, call) in large.into_iter().enumerate() {
        assert_eq!(call.result().unwrap(), (value * BULK) as u64);
    }
    assert_eq!(small.result().unwrap(), 7);
}

/// More than a worker's link holds unread, and quickly written.
const LARGE: usize = 1 << 20;

/// Two workers have a call each, and room for more. A large call has to wait until one of them is idle; the
/// quick calls behind it need not. All of those go to the same worker, so that the other one is idle soon.
/// The workers are frozen meanwhile, which the pool tolerates for three seconds.
fn n17_big_arg_does_not_hold_up_quick_calls() {
    install(workers(2));
    let passed = || {
        let quick: Vec<_> = (0..600).map(|_| cpu(pid, ())).collect();
        quick.into_iter().for_each(|call| drop(call.result()));
        let workers = children();
        workers.iter().for_each(|worker| freeze(*worker));
        let first = [(); 2].map(|()| cpu(pid, ()));
        let large = cpu(sum, (vec![1; LARGE],));
        let behind = [(); 4].map(|()| cpu(pid, ()));
        let queued = unsync::stats().calls_queued;
        workers.iter().for_each(|worker| signal("CONT", *worker));
        let first = first.map(|call| call.result().unwrap());
        let behind = behind.map(|call| call.result().unwrap());
        assert_eq!(large.result().unwrap(), LARGE as u64);
        println!("{queued} were queued; {first:?} ran the first, {behind:?} those behind");
        queued == 1 && behind == [behind[0]; 4]
    };
    // A worker that had to wait for the processor is not dealt many calls at once.
    assert!((0..20).any(|_| passed()), "the large one was in the way");
}

/// Runs for longer than it takes to submit such a call.
fn spin_shortly() {
    let since = Instant::now();
    while since.elapsed() < Duration::from_micros(20) {}
}

/// There is always a quick call to run. The large call must not wait until all of them are done.
fn n17_big_arg_gets_its_turn_among_quick_calls() {
    const QUICK: usize = 5000;
    install(workers(2));
    teach_that_calls_are_quick();
    let feed = || (0..QUICK).for_each(|_| drop(cpu(spin_shortly, ())));
    feed();
    let large = cpu(sum, (vec![1; LARGE],));
    let since = Instant::now();
    while !large.wait_timeout(Duration::from_micros(100)) {
        assert!(since.elapsed() < SOON, "it waits until there is no other");
        if unsync::stats().calls_queued < QUICK {
            feed();
        }
    }
    assert_eq!(large.result().unwrap(), LARGE as u64);
}

fn echo_bytes(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

fn echo_floats(floats: Vec<f64>) -> Vec<f64> {
    floats
}

fn n18_echo_of_64_mib_of_bytes() {
    install(workers(2));
    let pattern: Vec<u8> = (0..BULK).map(|at| (at % 251) as u8).collect();
    let calls: Vec<_> = (0..2)
        .map(|_| cpu(echo_bytes, (pattern.clone(),)))
        .collect();
    for call in calls {
        assert!(call.result().unwrap() == pattern);
    }
}

/// Sizes around the limits of all buffers on the way.
fn n18_echo_of_many_sizes() {
    install(workers(2));
    let around = [
        0,
        1 << 10,
        4 << 10,
        16 << 10,
        32 << 10,
        48 << 10,
        64 << 10,
        128 << 10,
        1 << 20,
    ];
    let sizes = around
        .into_iter()
        .flat_map(|size: usize| size.saturating_sub(40)..size + 4);
    let sent: Vec<Vec<u8>> = sizes
        .map(|size| (0..size).map(|at| (at % 251) as u8).collect())
        .collect();
    let calls: Vec<_> = sent
        .iter()
        .map(|bytes| cpu(echo_bytes, (bytes.clone(),)))
        .collect();
    for (bytes, call) in sent.into_iter().zip(calls) {
        assert!(call.result().unwrap() == bytes, "{} bytes", bytes.len());
    }
}

fn n18_echo_of_64_mib_of_floats() {
    install(workers(1));
    let pattern: Vec<f64> = (0..BULK / 8).map(|at| at as f64 / 3.0).collect();
    assert!(cpu(echo_floats, (pattern.clone(),)).result().unwrap() == pattern);
}

fn make_bytes(number: usize) -> Vec<u8> {
    vec![1; number]
}

fn n19_too_large_fails_only_the_call() {
    const LIMIT: usize = 1 << 20;
    install(workers(1).frame_bytes_max(LIMIT));
    let worker = cpu(pid, ()).result().unwrap();
    // The length of a vector takes eight bytes.
    let (most, more) = (LIMIT - 8, LIMIT - 7);
    assert_eq!(cpu(sum, (vec![1; most],)).result().unwrap(), most as u64);
    assert_eq!(cpu(make_bytes, (most,)).result().unwrap().len(), most);

    let call = cpu(sum, (vec![1; more],));
    assert!(call.is_done(), "it cannot be sent");
    let error = assert_kind(call.result(), ErrorKind::TooLarge);
    assert_says(
        &error,
        &[
            "the arguments of `sum`",
            "1048577 bytes, more than the 1048576 of a frame",
            "started at tests/faults/bulk.rs:",
        ],
    );

    let beside: Vec<_> = (0..3).map(|value| cpu(echo, (value,))).collect();
    let error = assert_kind(cpu(make_bytes, (more,)).result(), ErrorKind::TooLarge);
    assert_says(&error, &["the result of `make_bytes`", "1048576"]);
    assert!(error.worker_exit().is_none());
    for (value, call) in beside.into_iter().enumerate() {
        assert_eq!(call.result().unwrap() as usize, value);
    }
    assert_eq!(cpu(pid, ()).result().unwrap(), worker);
}

/// This many zero-sized elements take no memory, but their encoding takes more bytes than memory has.
const COUNTLESS: usize = isize::MAX as usize;

#[derive(Clone, Copy, Debug)]
struct Nothing;
unsync::wire!(struct Nothing);

fn countless() -> Vec<()> {
    let units: Box<[()]> = Box::new([(); COUNTLESS]);
    units.into_vec()
}

fn countless_of_ours() -> VecDeque<Nothing> {
    let nothings: Box<[Nothing]> = Box::new([Nothing; COUNTLESS]);
    VecDeque::from(nothings.into_vec())
}

fn countless_inside() -> (u8, Option<Vec<Vec<()>>>) {
    (1, Some(vec![Vec::new(), countless(), countless()]))
}

fn count(units: Vec<()>) -> usize {
    units.len()
}

fn count_ours(nothings: VecDeque<Nothing>) -> usize {
    nothings.len()
}

fn count_inside((_, units): (u8, Option<Vec<Vec<()>>>)) -> usize {
    units.iter().flatten().map(Vec::len).sum()
}

fn say_countless() -> u32 {
    unsync::progress(countless());
    unsync::progress(7u32);
    7
}

fn nested_countless() -> String {
    let argument = cpu(count, (countless(),)).result().unwrap_err();
    let result = cpu(countless, ()).result().unwrap_err();
    let kinds = (argument.kind(), result.kind());
    assert_eq!(kinds, (ErrorKind::TooLarge, ErrorKind::TooLarge));
    result.to_string()
}

fn n19_elements_without_bytes_are_too_large_at_once() {
    install(workers(1));
    let worker = cpu(pid, ()).result().unwrap();
    let before = resident(process::id());
    for argument in [
        cpu(count, (countless(),)),
        cpu(count_ours, (countless_of_ours(),)),
        cpu(count_inside, (countless_inside(),)),
    ] {
        assert!(argument.is_done(), "it cannot be sent");
        let error = assert_kind(argument.result(), ErrorKind::TooLarge);
        assert_says(
            &error,
            &["the arguments of `count", "at least ", "more than the"],
        );
    }
    for error in [
        assert_kind(cpu(countless, ()).result(), ErrorKind::TooLarge),
        assert_kind(cpu(countless_of_ours, ()).result(), ErrorKind::TooLarge),
        assert_kind(cpu(countless_inside, ()).result(), ErrorKind::TooLarge),
    ] {
        assert_says(
            &error,
            &["the result of `countless", "at least ", "more than the"],
        );
        assert!(error.worker_exit().is_none());
    }
    let error = cpu(nested_countless, ()).result().unwrap();
    assert!(error.contains("the result of `countless`"), "{error}");
    let (listener, values) = ear::<u32>();
    let call = cpu(say_countless, ()).on_progress(listener);
    assert_eq!(call.result().unwrap(), 7);
    assert_eq!(values.iter().collect::<Vec<_>>(), [7]);
    assert_eq!(cpu(count, (vec![(); 1000],)).result().unwrap(), 1000);
    assert_eq!(cpu(pid, ()).result().unwrap(), worker);
    let grown = [process::id(), worker].map(|process| resident(process).saturating_sub(before));
    assert!(grown.iter().all(|grown| *grown < 64 << 20), "{grown:?}");
}

/// Zeros, encoded as their number.
struct Packed(Vec<u8>);

impl Wire for Packed {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut plain = Vec::new();
        self.0.encode(&mut plain);
        plain.len().encode(out);
    }
    fn decode(input: &mut &[u8]) -> Result<Packed, unsync::Error> {
        let plain = usize::decode(input)?;
        Ok(Packed(vec![0; plain - 8]))
    }
}

fn pass_packed(packed: Packed) -> Packed {
    packed
}

fn n19_limit_of_values_is_for_what_is_sent() {
    install(workers(1).frame_bytes_max(256));
    let packed = cpu(pass_packed, (Packed(vec![0; 10_000]),));
    assert_eq!(packed.result().unwrap().0.len(), 10_000);
}

fn panic_at_length(length: usize) {
    panic!("{}", "x".repeat(length));
}

fn n19_limit_of_values_is_none_of_panics() {
    install(workers(1).frame_bytes_max(256));
    let worker = cpu(pid, ()).result().unwrap();
    for length in [10, 1000, 100_000] {
        let error = assert_kind(
            cpu(panic_at_length, (length,)).result(),
            ErrorKind::Panicked,
        );
        assert_says(
            &error,
            &[
                "`panic_at_length` panicked at tests/faults/bulk.rs:",
                "xxxxxxxx",
            ],
        );
        assert!(error.worker_exit().is_none());
    }
    assert_eq!(cpu(pid, ()).result().unwrap(), worker);
}

/// The list of calls that a worker gives back is longer than a value may be.
fn n19_limit_of_values_is_none_of_returns() {
    install(workers(2).frame_bytes_max(256));
    let (calls, mut guests) = occupy(2);
    guests.remove(0).leave();
    let mut values = 0..;
    let (slow, slow_guest, handed_out) = hand_out(100, || {
        let value = values.next().unwrap();
        cpu(echo, (value,)).map(move |echo| assert_eq!(echo, value))
    });
    // From now on one worker is free.
    guests.remove(0).leave();
    for call in handed_out {
        call.result().unwrap();
    }
    assert!(!slow.is_done());
    let worker = slow_guest.process;
    slow_guest.leave();
    assert_eq!(slow.result().unwrap(), worker);
    for call in calls {
        call.result().unwrap();
    }
}

fn say_bytes(number: usize) -> usize {
    unsync::progress(7u8);
    unsync::progress(vec![1u8; number]);
    number
}

/// Progress that is too large is not sent; the call itself does not fail.
fn n19_limit_of_values_holds_for_progress() {
    install(workers(1).frame_bytes_max(256));
    let worker = cpu(pid, ()).result().unwrap();
    assert_eq!(cpu(say_bytes, (100,)).result().unwrap(), 100);
    assert_eq!(cpu(say_bytes, (1 << 20,)).result().unwrap(), 1 << 20);
    assert_eq!(cpu(pid, ()).result().unwrap(), worker);
}

// ---------------------------------------------------------------------------------------- batching

fn n42_slow_call_among_10k_quick_ones_holds_up_none() {
    install(workers(2));
    idle_workers(2);
    let gate = Gate::new();
    let quick = || (0..5_000).map(|value| cpu(echo, (value,)));
    let mut calls: Vec<_> = quick().collect();
    let slow = cpu(stay, (gate.path(),));
    calls.extend(quick());
    // The slow call goes on only when all of these have ended.
    for call in calls {
        call.result().unwrap();
    }
    assert!(!slow.is_done());
    gate.guest().leave();
    slow.result().unwrap();
}

/// Two workers may live, and one does: the calls behind the slow call at that worker go to a second one.
fn n42_slow_call_makes_the_pool_grow() {
    install(workers(2));
    teach_that_calls_are_quick();
    assert_eq!(children().len(), 1);
    let (gate, proof) = (Gate::new(), file("proof"));
    let slow = cpu(stay, (gate.path(),));
    let quick: Vec<_> = (0..50)
        .map(|line| cpu(note, (proof.clone(), line)))
        .collect();
    let guest = gate.guest();
    for call in quick {
        assert!(
            call.wait_timeout(SOON),
            "it waits for a call that waits for it"
        );
        assert_ne!(call.result().unwrap(), guest.process);
    }
    // In any order: the second worker may start before the first one has given its calls back.
    let mut proofs = notes(&proof);
    proofs.sort();
    assert!(proofs.into_iter().eq(0..50), "each of them once");
    guest.leave();
    slow.result().unwrap();
}

fn n42_handed_out_calls_run_once() {
    install(workers(2));
    let (mut lines, proof) = (0.., file("proof"));
    for _ in 0..20 {
        // One of the two shows that calls are quick, while the other one is busy.
        let (calls, mut guests) = occupy(2);
        guests.remove(0).leave();
        let (slow, slow_guest, quick) =
            hand_out(100, || cpu(note, (proof.clone(), lines.next().unwrap())));
        guests.remove(0).leave();
        for call in quick {
            call.result().unwrap();
        }
        assert!(!slow.is_done());
        slow_guest.leave();
        for call in calls.into_iter().chain([slow]) {
            call.result().unwrap();
        }
    }
    let mut proofs = notes(&proof);
    proofs.sort();
    assert!(proofs.into_iter().eq(0..lines.start));
}

// ------------------------------------------------------------------------------------------ memory

/// The memory of the program and of its worker.
fn memory_of_a_large_value_is_given_back_though_there_is_traffic() {
    install(workers(1));
    let worker = cpu(pid, ()).result().unwrap();
    let memory = || [process::id(), worker].map(resident);
    let before = memory();
    cpu(echo_bytes, (vec![1; BULK],)).result().unwrap();
    until("both have given it back", || {
        cpu(echo, (1,)).result().unwrap();
        let now = memory();
        (0..2).all(|of| now[of] < before[of] + BULK as u64 / 2)
    });
    assert_eq!(cpu(pid, ()).result().unwrap(), worker);
}

/// A value that counts its drops in this process.
struct Counted(u8);

static DROPS: AtomicU32 = AtomicU32::new(0);

impl Drop for Counted {
    fn drop(&mut self) {
        DROPS.fetch_add(1, Ordering::Relaxed);
    }
}

unsync::wire!(struct Counted(value));

fn pass(value: Counted) -> Counted {
    value
}

fn drops() -> u32 {
    DROPS.load(Ordering::Relaxed)
}

fn n57_arguments_are_dropped_after_the_send() {
    install(workers(1));
    let before = resident(process::id());
    let gate = Gate::new();
    let running = cpu(stay, (gate.path(),));
    let call = cpu(pass, (Counted(1),));
    assert_eq!(drops(), 1, "what was encoded is not needed any more");
    gate.guest().leave();
    running.result().unwrap();
    drop(call.result().unwrap());
    assert_eq!(drops(), 2, "the result");

    // Not even the bytes of large arguments stay, though their call still runs.
    let (waits, gate) = (cpu(sum_and_stay, (vec![1; BULK], gate.path())), gate);
    let guest = gate.guest();
    until("the bytes of the arguments are freed", || {
        resident(process::id()) < before + BULK as u64 / 2
    });
    guest.leave();
    assert_eq!(waits.result().unwrap(), BULK as u64);
}

fn sum_and_stay(bytes: Vec<u8>, gate: String) -> u64 {
    drop(wait_at(&gate));
    sum(bytes)
}

fn n57_result_is_dropped_with_its_handle() {
    install(workers(1));
    let gate = Gate::new();
    let kept = cpu(pass, (Counted(2),));
    assert!(kept.wait_timeout(SOON));
    assert_eq!(drops(), 1, "the argument");
    drop(kept);
    assert_eq!(drops(), 2, "a result that was there");
    let running = cpu(stay, (gate.path(),));
    drop(cpu(pass, (Counted(3),)));
    assert_eq!(drops(), 3, "the argument");
    gate.guest().leave();
    running.result().unwrap();
    assert!(unsync::drain(SOON));
    assert_eq!(drops(), 4, "a result that nobody waited for");
}

// ---------------------------------------------------------------------------------------- progress

fn count_and_stay(to: u32, gate: String) -> u32 {
    (0..to).for_each(unsync::progress);
    drop(wait_at(&gate));
    unsync::progress(to);
    to
}

/// The listener is busy with the first value until the call has reported all of them.
fn listen_slowly(to: u32) -> Vec<u32> {
    let gate = Gate::new();
    let (go, wait) = mpsc::channel::<()>();
    let (seen, values) = mpsc::channel();
    let call = cpu(count_and_stay, (to, gate.path())).on_progress(move |n: u32| {
        let _ = wait.recv();
        let _ = seen.send(n);
    });
    gate.guest().leave();
    assert_eq!(call.result().unwrap(), to);
    drop(go);
    values.iter().collect()
}

fn progress_newest_wins_and_last_arrives() {
    install(workers(1));
    let seen = listen_slowly(1000);
    assert!(
        seen.len() <= 2,
        "one that was looked at, and the newest: {seen:?}"
    );
    assert_eq!(seen.last(), Some(&1000));
    // With a quick listener, the values come in order.
    let (listener, values) = ear::<u32>();
    let call = cpu(report, (1000,)).on_progress(listener);
    assert_eq!(call.result().unwrap(), 1000);
    let heard: Vec<u32> = values.iter().collect();
    assert!(heard.is_sorted() && heard.last() == Some(&999), "{heard:?}");
}

fn report(to: u32) -> u32 {
    (0..to).for_each(unsync::progress);
    to
}

fn progress_said_before_anybody_listens() {
    install(workers(1));
    let gate = Gate::new();
    let call = cpu(count_and_stay, (5, gate.path()));
    let guest = gate.guest();
    let (first, values) = ear::<u32>();
    let call = call.on_progress(first);
    // The call reports no more for now, so this is what it reported before.
    while values.recv_timeout(SOON).unwrap() < 4 {}
    guest.leave();
    assert_eq!(values.recv_timeout(SOON).unwrap(), 5);
    call.result().unwrap();
    assert!(values.recv_timeout(SOON).is_err(), "the listener is gone");
    // After the end a listener gets the last value, once, and nothing more.
    let (late, values) = ear::<u32>();
    let done = cpu(report, (3,));
    done.wait();
    let done = done.on_progress(late);
    assert_eq!(values.iter().collect::<Vec<_>>(), [2]);
    let (later, values) = ear::<u32>();
    let done = done.on_progress(later);
    assert_eq!(values.iter().collect::<Vec<_>>(), []);
    done.result().unwrap();
    let (late, values) = ear::<u32>();
    let nested = cpu(report, (3,)).map(Ok::<_, unsync::Error>);
    nested.wait();
    nested.flatten().on_progress(late).result().unwrap();
    assert_eq!(values.iter().collect::<Vec<_>>(), [2]);
    let (late, values) = ear::<u32>();
    let nested = cpu(report, (3,)).map(Unfuture::ready);
    nested.wait();
    nested.flatten().on_progress(late).result().unwrap();
    assert_eq!(values.iter().collect::<Vec<_>>(), [2]);
}

const FLOOD: u32 = 1_000_000;

fn progress_flood_of_a_million() {
    install(workers(1));
    cpu(pid, ()).result().unwrap();
    let (before, started) = (resident(process::id()), Instant::now());
    let peak = Arc::new(AtomicU32::new(0));
    let watch = Arc::clone(&peak);
    let call = cpu(report, (FLOOD,)).on_progress(move |_: u32| {
        let grown = resident(process::id()).saturating_sub(before) >> 10;
        watch.fetch_max(grown as u32, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(10));
    });
    assert_eq!(call.result().unwrap(), FLOOD);
    let peak = peak.load(Ordering::Relaxed);
    println!(
        "{FLOOD} values in {:?}, {peak} KiB more memory at most",
        started.elapsed()
    );
    assert!(peak < 16 << 10, "{peak} KiB");
}

fn report_from_a_helper(gate: String) {
    thread::spawn(|| unsync::progress(13u32)).join().unwrap();
    drop(wait_at(&gate));
}

fn progress_elsewhere_is_nothing() {
    install(workers(1));
    unsync::progress(13u32);
    let gate = Gate::new();
    let (listener, values) = ear::<u32>();
    let call = cpu(report_from_a_helper, (gate.path(),)).on_progress(listener);
    gate.guest().leave();
    call.result().unwrap();
    assert!(values.iter().next().is_none());
    // A value of another type is ignored, and so is a panic of the listener.
    let (listener, values) = ear::<String>();
    let call = cpu(report, (3,)).on_progress(listener);
    call.result().unwrap();
    assert!(values.iter().next().is_none());
    let call = cpu(report, (3,)).on_progress(|n: u32| panic!("do not tell me {n}"));
    call.result().unwrap();
    assert_eq!(cpu(echo, (1,)).result().unwrap(), 1);
}

unsync::register!(
    echo,
    spin_shortly,
    sum,
    sum_and_stay,
    echo_bytes,
    echo_floats,
    make_bytes,
    countless,
    countless_of_ours,
    countless_inside,
    count,
    count_ours,
    count_inside,
    say_countless,
    nested_countless,
    pass_packed,
    panic_at_length,
    say_bytes,
    pass,
    count_and_stay,
    report,
    report_from_a_helper,
);
