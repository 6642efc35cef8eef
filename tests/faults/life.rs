//! The life of the pool: how workers are replaced, what a call finds in its process, and the end.

use std::collections::BTreeMap;
use std::env;
use std::io::{self, Read, Write};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use unsync::{Error, ErrorKind, Limit, Unfuture, Wire, WorkState, cpu};

use crate::scenario::{
    Gate, Link, SOON, children, file, is_gone, is_pointless_over_a_relay, link, program, until,
    wait_within,
};
use crate::*;

scenarios! {
    programs: [talkative, nobody_special]
    n33_stdin_is_at_its_end in "echo 'for the program' > $UNSYNC_TEST_HOME/in; exec < $UNSYNC_TEST_HOME/in";
    worker_is_called_what_the_program_is_called;
    n34_println_in_a_call_is_visible_and_harmless;
    streams_that_the_program_holds_do_not_hold_up_a_call;
    n51_calls_per_worker;
    n51_calls_per_worker_of_a_batch;
    n51_calls_per_worker_and_an_early_shutdown;
    an_idle_worker_is_used_again;
    n52_idle_timeout_shrinks_and_regrows;
    n53_rss_recycle;
    short_keep_alive_polls_no_long_call;
    short_keep_alive_and_values_that_take_long;
    n54_shutdown_while_submitting;
    n54_shutdown_ends_what_runs_and_what_waits;
    n54_shutdown_waits_though_workers_die;
    n54_drain_waits_for_all;
    n55_submit_from_a_continuation;
    n55_crash_in_a_continuation;
    n56_callback_panic;
    n56_codec_panic_by_every_way;
    n59_unregistered_function_is_named;
    n60_duplicate_registration_is_harmless;
    n64_env_leak_to_reexec_is_ignored;
}

// ------------------------------------------------------------------------------------------- waits

/// How many times a thread of this process has gone to sleep.
fn rests_of(name: &str) -> u32 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let mut status = tasks.filter_map(|task| {
        std::fs::read_to_string(task.path().join("status"))
            .ok()
            .filter(|status| status.starts_with(&format!("Name:\t{name}\n")))
    });
    let status = status.next().expect(name);
    let switches = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    switches.unwrap().trim().parse().unwrap()
}

fn short_keep_alive_polls_no_long_call() {
    install(workers(1).keep_alive(Duration::ZERO));
    let gate = Gate::new();
    let call = cpu(stay, (gate.path(),));
    let guest = gate.guest();
    let before = rests_of("unsync-cpu-1");
    thread::sleep(Duration::from_secs(1));
    let rests = rests_of("unsync-cpu-1") - before;
    assert!(rests < 50, "{rests} times");
    let worker = guest.process;
    guest.leave();
    call.result().unwrap();
    until("the worker leaves at once", || is_gone(worker));
}

/// Takes many times the keep-alive time to encode and to decode.
struct Slow;

impl Wire for Slow {
    fn encode(&self, _: &mut Vec<u8>) {
        thread::sleep(Duration::from_millis(20));
    }
    fn decode(_: &mut &[u8]) -> Result<Slow, Error> {
        thread::sleep(Duration::from_millis(20));
        Ok(Slow)
    }
}

fn pass_slow(value: Slow) -> Slow {
    value
}

fn short_keep_alive_and_values_that_take_long() {
    install(workers(2).keep_alive(Duration::from_millis(1)));
    for _ in 0..4 {
        let calls = [(); 3].map(|()| cpu(pass_slow, (Slow,)));
        for call in calls {
            call.result().unwrap();
        }
    }
}

// ------------------------------------------------------------------------------ standard streams

fn read_stdin() -> (usize, bool) {
    let own = io::stdin().read_to_end(&mut Vec::new()).unwrap();
    let of_a_child = Command::new("cat").output().unwrap();
    (own, of_a_child.stdout.is_empty())
}

fn n33_stdin_is_at_its_end() {
    install(workers(1));
    assert_eq!(cpu(read_stdin, ()).result().unwrap(), (0, true));
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).unwrap();
    assert_eq!(text, "for the program\n");
}

fn name() -> Vec<u8> {
    fs::read("/proc/self/comm").unwrap()
}

/// The name may differ from that of the executable file.
fn worker_is_called_what_the_program_is_called() {
    if is_pointless_over_a_relay("it is called what the relay is called") {
        return;
    }
    install(workers(1).calls_per_worker(1));
    let first = name();
    assert_eq!(cpu(name, ()).result().unwrap(), first);
    fs::write("/proc/self/comm", "another name").unwrap();
    assert_eq!(cpu(name, ()).result().unwrap(), b"another name\n");
    fs::write("/proc/self/comm", first.trim_ascii()).unwrap();
}

/// This many lines of a hundred bytes are more than a pipe holds.
const LINES: u32 = 1_000;

/// Prints much, including bytes that could be taken for frames.
fn talk(lines: u32) -> u32 {
    for line in 0..lines {
        println!("{:.>100}", format!("out {line} of {lines}"));
        eprintln!("{:.>100}", format!("err {line} of {lines}"));
    }
    io::stdout()
        .write_all(b"\x05snu\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\n")
        .unwrap();
    print!("and no newline at the end");
    io::stdout().flush().unwrap();
    lines
}

fn talkative() {
    install(workers(1));
    for _ in 0..3 {
        assert_eq!(cpu(talk, (LINES,)).result().unwrap(), LINES);
    }
    unsync::shutdown(SOON).unwrap();
}

fn n34_println_in_a_call_is_visible_and_harmless() {
    if is_pointless_over_a_relay("all that it prints comes on standard error") {
        return;
    }
    let output = program("talkative").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let count = |bytes: &[u8], word: &str| {
        let text = String::from_utf8_lossy(bytes);
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        (0..LINES)
            .map(|line| format!("{word} {line} of {LINES}"))
            .map(|line| lines.iter().filter(|found| found.ends_with(&line)).count())
            .all(|times| times == 3)
    };
    assert!(count(&output.stdout, "out"));
    assert!(count(&output.stderr, "err"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.matches("and no newline at the end").count(), 3);
}

/// `println!` and `eprintln!` hold the streams for a moment, other code for as long as it prints.
fn streams_that_the_program_holds_do_not_hold_up_a_call() {
    install(workers(1));
    let held = (io::stdout().lock(), io::stderr().lock());
    let call = cpu(talk, (LINES,));
    let ended = call.wait_timeout(SOON);
    drop(held);
    assert!(ended, "it waits for a lock of the program");
    assert_eq!(call.result().unwrap(), LINES);
}

// ----------------------------------------------------------------------- workers that are replaced

fn n51_calls_per_worker() {
    install(workers(1).calls_per_worker(3));
    let seen: Vec<u32> = (0..10).map(|_| cpu(pid, ()).result().unwrap()).collect();
    let turns: Vec<_> = seen
        .chunk_by(|one, next| one == next)
        .map(<[u32]>::len)
        .collect();
    assert_eq!(turns, [3, 3, 3, 1]);
}

fn n51_calls_per_worker_and_an_early_shutdown() {
    install(workers(3).calls_per_worker(1));
    let calls: Vec<_> = (0..6).map(|_| cpu(half, (8,))).collect();
    unsync::shutdown(SOON).unwrap();
    for call in calls {
        assert!(call.is_done());
        assert_eq!(call.result().unwrap(), 4);
    }
}

fn an_idle_worker_is_used_again() {
    install(workers(4));
    let worker = cpu(pid, ()).result().unwrap();
    for _ in 0..20 {
        assert_eq!(cpu(pid, ()).result().unwrap(), worker);
    }
    assert_eq!(children().len(), 1);
}

fn n51_calls_per_worker_of_a_batch() {
    install(workers(2).calls_per_worker(7));
    // A worker behind a relay takes longer to start.
    let number = if link() == Link::Relay { 100 } else { 500 };
    let calls: Vec<_> = (0..number).map(|_| cpu(pid, ())).collect();
    let mut turns = BTreeMap::<u32, u32>::new();
    for call in calls {
        *turns.entry(call.result().unwrap()).or_default() += 1;
    }
    assert!(turns.values().all(|calls| *calls <= 7), "{turns:?}");
}

fn n52_idle_timeout_shrinks_and_regrows() {
    install(workers(3).keep_alive(Duration::from_millis(100)));
    for _ in 0..2 {
        let before = idle_workers(3);
        until("idle workers retire", || children().is_empty());
        assert!(before.into_iter().all(is_gone));
    }
    // A worker that is busy for longer stays.
    let gate = Gate::new();
    let running = cpu(stay, (gate.path(),));
    let guest = gate.guest();
    cpu(pid, ()).result().unwrap();
    until("the idle one retires", || children().len() == 1);
    let worker = guest.process;
    guest.leave();
    assert_eq!(running.result().unwrap(), worker);
}

fn keep(bytes: usize) -> u32 {
    // Never freed.
    Box::leak(vec![1_u8; bytes].into_boxed_slice());
    process::id()
}

fn n53_rss_recycle() {
    if is_pointless_over_a_relay("`memory_per_worker` has no effect") {
        return;
    }
    // Workers have the name of the program, which the system cuts off after 15 bytes.
    let name = std::fs::read("/proc/self/comm").unwrap();
    std::fs::write("/proc/self/comm", b"abcdefghijklmn\xc3").unwrap();
    install(workers(1).memory_per_worker(128 << 20));
    let first = cpu(keep, (1 << 20,)).result().unwrap();
    assert_eq!(cpu(keep, (1 << 20,)).result().unwrap(), first);
    assert_eq!(
        cpu(keep, (150 << 20,)).result().unwrap(),
        first,
        "the call itself is fine"
    );
    let second = cpu(keep, (1 << 20,)).result().unwrap();
    assert_ne!(second, first);
    until("the large worker is reaped", || is_gone(first));
    assert_eq!(cpu(keep, (1 << 20,)).result().unwrap(), second);
    std::fs::write("/proc/self/comm", name).unwrap();
}

// ------------------------------------------------------------------------------------- the end

fn n54_shutdown_while_submitting() {
    install(workers(2));
    static AT_WORK: AtomicU32 = AtomicU32::new(0);
    let submit = || {
        let (mut values, mut refused) = (0, 0);
        while refused < 100 {
            let calls: Vec<_> = (0..50).map(|_| cpu(pid, ())).collect();
            let is_first = values == 0;
            for call in calls {
                match call.result() {
                    Ok(_) => values += 1,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::ShutDown, "{error}");
                        refused += 1;
                    }
                }
            }
            AT_WORK.fetch_add(u32::from(is_first && values > 0), Ordering::Relaxed);
        }
        values
    };
    let submitters: Vec<_> = (0..4).map(|_| thread::spawn(submit)).collect();
    until("all are at work", || AT_WORK.load(Ordering::Relaxed) == 4);
    // There is nearly always more work, so the pool hardly ever gets quiet.
    shut_down(Duration::from_secs(1));
    assert!(children().is_empty());
    for submitter in submitters {
        assert!(submitter.join().unwrap() > 0);
    }
}

fn n54_shutdown_ends_what_runs_and_what_waits() {
    install(workers(2));
    let running: Vec<_> = (0..2).map(|_| cpu(spin, ())).collect();
    until("both have begun", || {
        let tasks = unsync::tasks();
        let mut states = tasks.iter().map(|task| task.state);
        tasks.len() == 2 && states.all(|state| state == WorkState::Running)
    });
    let waiting: Vec<_> = (0..10).map(|_| cpu(pid, ())).collect();
    shut_down(Duration::from_millis(500));
    assert!(children().is_empty());
    for call in running {
        assert!(call.is_done());
        let error = assert_kind(call.result(), ErrorKind::ShutDown);
        let says = [
            "`spin`, which ran for",
            "ended without a value: unsync was shut down",
        ];
        assert_says(&error, &says);
        assert_says(&error, &["started at tests/faults/life.rs:"]);
    }
    for call in waiting {
        assert!(call.is_done());
        let error = assert_kind(call.result(), ErrorKind::ShutDown);
        assert_says(
            &error,
            &["`pid` ended without a value: unsync was shut down"],
        );
    }
    let late = cpu(pid, ());
    assert!(late.is_done());
    assert_kind(late.result(), ErrorKind::ShutDown);
    unsync::warm();
    unsync::shutdown(SOON).unwrap();
    assert!(children().is_empty());
}

fn n54_shutdown_waits_though_workers_die() {
    install(workers(2));
    let calls = [(); 3].map(|()| (cpu(die, ()), cpu(half, (8,))));
    unsync::shutdown(SOON).unwrap();
    for (lost, call) in calls {
        assert!(lost.is_done() && call.is_done());
        assert_kind(lost.result(), ErrorKind::WorkerLost);
        assert_eq!(call.result().unwrap(), 4);
    }
}

fn n54_drain_waits_for_all() {
    install(workers(2));
    let (gate, proof) = (Gate::new(), file("proof"));
    let running = cpu(stay, (gate.path(),));
    let guest = gate.guest();
    for line in 0..100 {
        drop(cpu(note, (proof.clone(), line)));
    }
    assert!(!unsync::drain(Duration::from_millis(10)), "one call stays");
    guest.leave();
    assert!(unsync::drain(SOON));
    assert!(running.is_done());
    assert_eq!(notes(&proof).len(), 100);
    // That did not end the pool.
    cpu(pid, ()).result().unwrap();
}

// ------------------------------------------------------------------------------ continuations

fn die() {
    process::abort();
}

fn half(number: u32) -> u32 {
    number / 2
}

fn n55_submit_from_a_continuation() {
    install(workers(2));
    // On the ambient thread, in a worker, and again.
    let call = cpu(half, (1024,));
    let call = call.and_then(|number| cpu(half, (number,))).flatten();
    let call = call.map_cpu(half).map(|number| number + 1);
    assert_eq!(call.result().unwrap(), 129);

    let chains: Vec<Unfuture<u32>> = (0..100)
        .map(|number| halve_to_the_end(cpu(half, (number,))))
        .collect();
    for chain in chains {
        assert_eq!(chain.result().unwrap(), 0);
    }
}

fn halve_to_the_end(call: Unfuture<u32>) -> Unfuture<u32> {
    call.and_then(|number| async move {
        let mut number = number;
        while number > 0 {
            number = cpu(half, (number,)).await?;
        }
        Ok(number)
    })
    .flatten()
}

/// Like loky's `test_in_callback_submit_with_crash`.
fn n55_crash_in_a_continuation() {
    install(workers(2));
    for _ in 0..10 {
        let rescued = cpu(die, ()).then(|call| async move {
            assert_eq!(call.result().unwrap_err().kind(), ErrorKind::WorkerLost);
            let again = cpu(die, ()).await.unwrap_err();
            assert_eq!(again.kind(), ErrorKind::WorkerLost);
            cpu(half, (8,)).await
        });
        assert_eq!(rescued.flatten().result().unwrap(), 4);
    }
}

fn n56_callback_panic() {
    install(workers(1));
    let worker = cpu(pid, ()).result().unwrap();
    for _ in 0..10 {
        let mapped = cpu(half, (8,)).map(|number| panic!("no use for {number}"));
        let error = assert_kind(mapped.map(|(): ()| ()).result(), ErrorKind::Panicked);
        assert_says(&error, &["no use for 4"]);
        let mapped = cpu(half, (8,)).map_thread(|number| panic!("no use for {number}"));
        assert_kind(mapped.map(|(): ()| ()).result(), ErrorKind::Panicked);
    }
    assert_eq!(cpu(pid, ()).result().unwrap(), worker);
}

/// A value that cannot leave the program, or cannot come back.
struct OneWay {
    leaves: bool,
}

impl Wire for OneWay {
    fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.leaves || unsync::is_worker(), "it cannot leave");
        self.leaves.encode(out);
    }
    fn decode(input: &mut &[u8]) -> Result<OneWay, Error> {
        assert!(unsync::is_worker(), "it cannot come back");
        let leaves = bool::decode(input)?;
        Ok(OneWay { leaves })
    }
}

fn round_trip(value: OneWay) -> OneWay {
    value
}

fn n56_codec_panic_by_every_way() {
    install(workers(1));
    let worker = cpu(pid, ()).result().unwrap();
    for leaves in [false, true] {
        let (limit, gate) = (Limit::new(1), Gate::new());
        let holder = limit.cpu(stay, (gate.path(),));
        let ways = [
            cpu(round_trip, (OneWay { leaves },)),
            unsync::spawn(async move { OneWay { leaves } }).map_cpu(round_trip),
            limit.cpu(round_trip, (OneWay { leaves },)),
        ];
        gate.guest().leave();
        assert_eq!(holder.result().unwrap(), worker);
        for way in ways {
            let error = assert_kind(way.map(|_| ()).result(), ErrorKind::Panicked);
            let word = if leaves { "come back" } else { "leave" };
            assert_says(&error, &["`round_trip`", word]);
        }
        assert_eq!(limit.cpu(pid, ()).result().unwrap(), worker);
    }
}

// -------------------------------------------------------------------------------- registration

fn forgotten(number: u32) -> u32 {
    number
}

fn n59_unregistered_function_is_named() {
    install(workers(2));
    let call = cpu(forgotten, (1,));
    assert!(call.is_done(), "the program knows it at once");
    let error = assert_kind(call.result(), ErrorKind::NotRegistered);
    assert_says(
        &error,
        &[
            "life::forgotten",
            "unsync::register!(",
            "started at tests/faults/life.rs:",
        ],
    );
    let error = assert_kind(
        cpu(|n: u32| -> u32 { n }, (1,)).result(),
        ErrorKind::NotRegistered,
    );
    assert_says(&error, &["closure"]);
    assert!(children().is_empty());
    cpu(pid, ()).result().unwrap();
}

fn n60_duplicate_registration_is_harmless() {
    install(workers(1));
    assert_eq!(cpu(half, (6,)).result().unwrap(), 3);
}

/// Registered at the end of this file, not beside the function.
fn n64_nested(depth: u32) -> bool {
    unsync::is_worker() && depth == 0
}

/// A program that a call starts from the same executable is no worker.
fn nobody_special() {
    assert!(!unsync::is_worker());
    install(workers(1));
    assert!(cpu(n64_nested, (0,)).result().unwrap());
    unsync::shutdown(SOON).unwrap();
    println!("nobody special was here");
}

fn start_own_executable() -> String {
    let mut program = program("nobody_special");
    // The child inherits everything that a worker gets, except the arguments.
    let output = program.output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// Even a program that is started like a worker is no worker, if no parent waits for it.
fn start_own_executable_as_a_worker() -> (bool, String) {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let mut child = Command::new(env::current_exe().unwrap())
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let status = wait_within(&mut child, SOON).expect("it leaves");
    let mut words = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut words)
        .unwrap();
    (status.success(), words)
}

fn n64_env_leak_to_reexec_is_ignored() {
    install(workers(1));
    let output = cpu(start_own_executable, ()).result().unwrap();
    assert!(output.contains("nobody special was here"), "{output}");
    let (success, words) = cpu(start_own_executable_as_a_worker, ()).result().unwrap();
    assert!(!success && words.contains("nobody waits for it"), "{words}");
}

unsync::register!(
    read_stdin,
    pass_slow,
    round_trip,
    name,
    talk,
    keep,
    die,
    half,
    half,
    n64_nested,
    start_own_executable,
    start_own_executable_as_a_worker,
);
unsync::register!(half);
