//! Calls that share a worker with a call that is stopped, or that kills the worker: only the culprit fails.

use std::ops::RangeInclusive;
use std::path::Path;
use std::process::{self, Command};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use unsync::{Error, ErrorKind, Limit, Unfuture, Wire, cpu};

use crate::scenario::{SOON, children, file, freeze, is_gone, signal, until};
use crate::*;

scenarios! {
    programs: []
    stopping_a_quick_call_kills_no_neighbour;
    stopping_a_running_call_kills_no_neighbour;
    stopping_with_a_grace_kills_no_neighbour;
    calls_behind_those_that_kill_their_worker_all_run;
    a_stopped_call_ends_though_its_worker_is_wrapped;
    a_stopped_call_ends_though_its_wrapped_worker_is_frozen;
    a_stopped_call_ends_though_the_program_ignores_the_end_of_its_children in "exec env --ignore-signal=CHLD \"$0\" \"$@\"";
    many_calls_in_the_middle_of_a_long_queue_are_cancelled;
    a_value_that_is_slow_to_decode_holds_up_nobody;
    an_encode_that_replaces_what_is_there_fails_alone;
    a_report_that_replaces_what_is_there_fails_alone;
    a_decode_that_fails_with_a_long_text_fails_alone;
    a_value_nested_too_deep_fails_alone;
    nothing_runs_twice_though_the_link_was_full_at_the_end;
    a_call_within_a_call_has_its_stack_and_its_limit;
    an_error_within_a_call_names_the_function_and_the_line;
}

/// Runs for this long.
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

/// One of many calls dealt to one worker is stopped when nobody knows whether it has started.
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

/// The stopped call has begun. The next one begins at the moment when the stopped one is killed.
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

/// The calls behind the culprit have not begun: however often that happens to a call, it is not to blame.
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

fn in_a_shell(executable: &Path) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "\"$0\" \"$@\"; exit $?"]).arg(executable);
    shell
}

/// The process that the pool started is not the worker: the worker itself has to hear of the end.
fn a_stopped_call_ends_though_its_worker_is_wrapped() {
    install(workers(1).worker_command(in_a_shell));
    let worker = cpu(pid, ()).result().unwrap();
    assert!(!children().contains(&worker), "the shell is in between");
    let endless = cpu(spin, ()).run_timeout(Duration::from_millis(100));
    assert!(endless.wait_timeout(SOON), "nobody stopped it");
    assert_kind(endless.result(), ErrorKind::TimedOut);
    until("the worker has gone", || is_gone(worker));
    assert_ne!(cpu(pid, ()).result().unwrap(), worker);
}

/// A frozen worker cannot hear even that.
fn a_stopped_call_ends_though_its_wrapped_worker_is_frozen() {
    let config = workers(1).host_timeout(Duration::from_secs(10));
    install(config.worker_command(in_a_shell));
    let worker = cpu(pid, ()).result().unwrap();
    freeze(worker);
    let unheard = cpu(pid, ()).timeout(Duration::from_millis(100));
    assert!(unheard.wait_timeout(SOON), "nobody stopped it");
    assert_kind(unheard.result(), ErrorKind::TimedOut);
    assert_ne!(cpu(pid, ()).result().unwrap(), worker);
    // Over a relay, the relay has killed it.
    signal("KILL", worker);
}

/// The system reaps the wrapper, and nobody can wait for it.
fn a_stopped_call_ends_though_the_program_ignores_the_end_of_its_children() {
    let config = workers(1).host_timeout(Duration::from_secs(10));
    install(config.worker_command(|executable| {
        // In a session of its own, since the end of the shell would wake it in this one.
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "setsid \"$0\" \"$@\"; exit $?"])
            .arg(executable);
        shell
    }));
    let worker = cpu(pid, ()).result().unwrap();
    freeze(worker);
    let unheard = cpu(pid, ()).timeout(Duration::from_millis(100));
    assert_kind(unheard.result(), ErrorKind::TimedOut);
    let next = cpu(pid, ());
    assert!(next.wait_timeout(SOON), "the worker was not given up");
    assert_ne!(next.result().unwrap(), worker);
    signal("KILL", worker);
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

/// Large, and not decoded in this process before the test allows it.
struct Slow(Vec<u8>);

static DECODING: Mutex<Option<(Sender<()>, Receiver<()>)>> = Mutex::new(None);

impl Wire for Slow {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }

    fn decode(input: &mut &[u8]) -> Result<Slow, Error> {
        if let Some((begun, end)) = DECODING.lock().unwrap().take() {
            begun.send(()).unwrap();
            let _ = end.recv_timeout(SOON);
        }
        Vec::decode(input).map(Slow)
    }
}

fn make_slow() -> Slow {
    Slow(vec![1; 1 << 20])
}

/// The thread that decodes the value also reads that worker's link, and hears nothing meanwhile.
fn a_value_that_is_slow_to_decode_holds_up_nobody() {
    install(workers(2));
    let worker = cpu(pid, ()).result().unwrap();
    let ((begun, decodes), (end, ends)) = (mpsc::channel(), mpsc::channel());
    *DECODING.lock().unwrap() = Some((begun, ends));
    let slow = cpu(make_slow, ());
    decodes.recv_timeout(SOON).unwrap();
    for _ in 0..10 {
        let quick = cpu(pid, ());
        assert!(quick.wait_timeout(SOON / 2), "it waits for the other");
        assert_ne!(quick.result().unwrap(), worker);
    }
    assert!(!slow.is_done());
    end.send(()).unwrap();
    assert_eq!(slow.result().unwrap().0.len(), 1 << 20);
}

/// A value whose `encode` does not append.
struct Replacing(usize);

impl Wire for Replacing {
    fn encode(&self, out: &mut Vec<u8>) {
        *out = vec![1; self.0];
    }

    fn decode(input: &mut &[u8]) -> Result<Replacing, Error> {
        u8::decode(input).map(usize::from).map(Replacing)
    }
}

fn take_replacing(_: Replacing) {}

fn make_replacing(size: usize) -> Replacing {
    Replacing(size)
}

fn an_encode_that_replaces_what_is_there_fails_alone() {
    install(workers(1));
    let worker = cpu(pid, ()).result().unwrap();
    for size in [0, 1, 20, 21, 27, 28, 100, 100_000] {
        teach_that_calls_are_quick();
        let before = Vec::from_iter((0..20).map(|_| cpu(pid, ())));
        let argument = cpu(take_replacing, (Replacing(size),));
        let result = cpu(make_replacing, (size,)).map(drop);
        let behind = (0..20).map(|_| cpu(pid, ()));
        for call in before.into_iter().chain(Vec::from_iter(behind)) {
            assert_eq!(call.result().unwrap(), worker);
        }
        for outcome in [argument.result(), result.result()] {
            let error = assert_kind(outcome, ErrorKind::Panicked);
            assert_says(&error, &["`encode` must append"]);
        }
    }
}

fn say_replacing(size: usize) {
    unsync::progress(Replacing(size));
}

/// The value travels in a frame of its own.
fn a_report_that_replaces_what_is_there_fails_alone() {
    install(workers(1));
    let worker = cpu(pid, ()).result().unwrap();
    for size in [0, 1, 20, 21, 27, 28, 100, 100_000] {
        teach_that_calls_are_quick();
        let before = Vec::from_iter((0..20).map(|_| cpu(pid, ())));
        let report = cpu(say_replacing, (size,));
        let behind = (0..20).map(|_| cpu(pid, ()));
        for call in before.into_iter().chain(Vec::from_iter(behind)) {
            assert_eq!(call.result().unwrap(), worker);
        }
        let error = assert_kind(report.result(), ErrorKind::Panicked);
        assert_says(&error, &["`encode` must append"]);
    }
}

/// An argument that is refused, with all of it in the error.
struct Refused(Vec<u8>);

impl Wire for Refused {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }

    fn decode(input: &mut &[u8]) -> Result<Refused, Error> {
        let bytes = Vec::<u8>::decode(input)?;
        Err(Error::new(ErrorKind::Codec, format!("bad: {bytes:?}")))
    }
}

fn take_refused(_: Refused) {}

/// The text is longer than a frame may be.
fn a_decode_that_fails_with_a_long_text_fails_alone() {
    install(workers(1).frame_bytes_max(1 << 20));
    let worker = cpu(pid, ()).result().unwrap();
    let refused = cpu(take_refused, (Refused(vec![255; 400_000]),));
    let behind = cpu(pid, ());
    let error = assert_kind(refused.result(), ErrorKind::Codec);
    assert_says(&error, &["arguments of `take_refused`: bad: [255, 255,"]);
    assert_eq!(behind.result().unwrap(), worker);
    assert_eq!(cpu(pid, ()).result().unwrap(), worker);
}

fn note_and_make(proof: String, line: u32, _: Vec<u8>) -> Slow {
    note(proof, line);
    if line % 1_000 == 12 {
        process::abort();
    }
    Slow(vec![0; 40_000])
}

/// If a process ends with unread data on a connection, TCP discards what is under way on it: news of starts,
/// and whole calls, if calls come on the same connection.
fn nothing_runs_twice_though_the_link_was_full_at_the_end() {
    install(workers(1));
    let proof = file("proof");
    for round in 0..10 {
        teach_that_calls_are_quick();
        let ((begun, decodes), (end, ends)) = (mpsc::channel(), mpsc::channel());
        *DECODING.lock().unwrap() = Some((begun, ends));
        let lines = round * 1_000..round * 1_000 + 100;
        let call = |line| {
            (
                line,
                cpu(note_and_make, (proof.clone(), line, vec![0; 2_000])),
            )
        };
        let calls: Vec<_> = lines.map(call).collect();
        decodes.recv_timeout(SOON).unwrap();
        // The worker goes on until the link is full, or until it reaches the call that ends it.
        std::thread::sleep(Duration::from_millis(50));
        end.send(()).unwrap();
        for (line, call) in calls {
            let lost = call.map(drop).result().map_err(|error| error.kind());
            let is_culprit = line % 1_000 == 12;
            assert_eq!(lost.is_err(), is_culprit, "{line}: {lost:?}");
            assert!(
                !is_culprit || lost == Err(ErrorKind::WorkerLost),
                "{lost:?}"
            );
        }
    }
    let mut proofs = notes(&proof);
    let ran = proofs.len();
    assert!(ran > 100, "hardly any ran");
    proofs.sort();
    proofs.dedup();
    assert_eq!(proofs.len(), ran, "a call was run again");
}

/// A list of boxes.
#[derive(Default)]
struct List(Option<Box<List>>);

unsync::wire!(struct List(next));

impl Drop for List {
    fn drop(&mut self) {
        let mut next = self.0.take();
        while let Some(mut list) = next {
            next = list.0.take();
        }
    }
}

fn make_list(length: usize) -> List {
    (0..length).fold(List::default(), |list, _| List(Some(Box::new(list))))
}

fn length_of(list: List) -> usize {
    let (mut list, mut length) = (&list, 0);
    while let Some(next) = &list.0 {
        (list, length) = (next, length + 1);
    }
    length
}

fn a_value_nested_too_deep_fails_alone() {
    install(workers(1));
    let worker = cpu(pid, ()).result().unwrap();
    assert_eq!(cpu(length_of, (make_list(200),)).result().unwrap(), 200);
    assert_eq!(length_of(cpu(make_list, (200,)).result().unwrap()), 200);
    let argument = cpu(length_of, (make_list(1_000_000),)).map(drop);
    let result = cpu(make_list, (1_000_000,)).map(drop);
    for outcome in [argument.result(), result.result()] {
        let error = assert_kind(outcome, ErrorKind::Panicked);
        assert_says(&error, &["nested deeper than 256"]);
    }
    assert_eq!(cpu(pid, ()).result().unwrap(), worker);
}

/// Takes some KiB of stack for each level.
fn descend(levels: u64) -> u64 {
    let room = std::hint::black_box([levels; 512]);
    match levels {
        0 => 0,
        _ => descend(levels - 1) + room[511] / levels,
    }
}

fn descend_within(levels: u64) -> u64 {
    cpu(descend, (levels,)).result().unwrap()
}

fn echo_within(bytes: usize) -> bool {
    let error = cpu(length, (vec![1; bytes],)).result().unwrap_err();
    error.kind() == ErrorKind::TooLarge
}

fn length(bytes: Vec<u8>) -> usize {
    bytes.len()
}

fn a_call_within_a_call_has_its_stack_and_its_limit() {
    install(workers(1).frame_bytes_max(1 << 20));
    // More than the two MiB that threads have elsewhere.
    const LEVELS: u64 = 800;
    assert_eq!(cpu(descend, (LEVELS,)).result().unwrap(), LEVELS);
    assert_eq!(cpu(descend_within, (LEVELS,)).result().unwrap(), LEVELS);
    assert!(cpu(echo_within, (2 << 20,)).result().unwrap());
}

/// Cannot cross: it was iterated to its end.
fn make_range() -> RangeInclusive<u8> {
    let mut range = 0..=0;
    range.next();
    range
}

fn take_range(_: RangeInclusive<u8>) {}

fn fail_within() -> [String; 3] {
    let limit = Limit::new(1);
    [
        cpu(take_range, (make_range(),)).result().unwrap_err(),
        cpu(make_range, ()).result().unwrap_err(),
        limit.cpu(take_range, (make_range(),)).result().unwrap_err(),
    ]
    .map(|error| error.to_string())
}

fn an_error_within_a_call_names_the_function_and_the_line() {
    install(workers(1));
    let [arguments, result, limited] = cpu(fail_within, ()).result().unwrap();
    for (error, culprit) in [
        (arguments, "the arguments of `take_range`"),
        (result, "decoding the result of `make_range`"),
        (limited, "the arguments of `take_range`"),
    ] {
        assert!(error.starts_with(culprit), "{error}");
        assert!(error.contains("(started at tests/"), "{error}");
    }
}

unsync::register!(
    make_range,
    take_range,
    fail_within,
    make_slow,
    note_and_make,
    take_replacing,
    make_replacing,
    say_replacing,
    take_refused,
    make_list,
    length_of,
    descend,
    descend_within,
    echo_within,
    length
);
