//! Workers that die: how that is noticed, and what the error says.

use std::error::Error as _;
use std::fs;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::panic::{self, resume_unwind};
use std::process::{self, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use unsync::{Error, ErrorKind, Wire, cpu};

use crate::scenario::{
    Gate, Guest, Link, SOON, file, freeze, is_dead, is_gone, kill, link, signal, until, wait_at,
    worker_after,
};
use crate::*;

scenarios! {
    programs: []
    n01_idle_kill_is_invisible;
    n01_idle_kill_just_before_a_call_is_invisible;
    n01_running_kill_is_noticed_soon;
    n02_all_workers_killed_at_once;
    n03_workers_kill_each_other_1;
    n03_workers_kill_each_other_2;
    n03_workers_kill_each_other_5;
    n03_workers_kill_each_other_13;
    n04_dead_before_start_is_queued_again;
    n05_started_call_is_never_rerun;
    n05_started_call_is_never_rerun_though_its_start_was_not_heard;
    n04_out_of_memory;
    n04_out_of_memory_before_the_start;
    n04_out_of_memory_for_the_result in "export MALLOC_ARENA_MAX=1; ulimit -S -v 200000";
    n04_out_of_memory_for_the_decoded_result in "export MALLOC_ARENA_MAX=1; ulimit -S -v 450000";
    n27_panic_hook_of_the_function;
    n28_panic_that_no_hook_sees;
    n31_grandchild_does_not_hide_death;
    n35_last_words_in_the_error;
    n35_last_words_are_no_novel;
    n35_first_words_are_quoted_too;
    n35_last_words_are_no_backtrace in "export RUST_BACKTRACE=full";
    n63_abort_after_the_panic_hook;
    caught_panic_is_not_the_cause_of_the_next;
    caught_panic_is_not_the_cause_of_a_kill;
    caught_panic_is_not_the_cause_of_an_exit;
    caught_panic_is_not_the_cause_of_a_stack_overflow;
    exit_in_the_panic_hook_is_an_exit;
    panic_in_a_drop_during_a_panic_is_the_cause;
    backtrace_is_the_source_if_asked_for in "export RUST_BACKTRACE=1";
    backtrace_is_none_if_not_asked_for;
}

fn n01_idle_kill_is_invisible() {
    install(workers(2));
    let before = idle_workers(2);
    kill("KILL", &before);
    until("the dead are reaped", || {
        before.iter().all(|worker| is_gone(*worker))
    });
    for _ in 0..10 {
        assert!(!before.contains(&cpu(pid, ()).result().unwrap()));
    }
}

/// The pool may not know of the kill yet: the call may be dealt to a worker that is dying.
fn n01_idle_kill_just_before_a_call_is_invisible() {
    install(workers(1));
    // A worker behind a relay takes longer to start.
    for _ in 0..if link() == Link::Relay { 10 } else { 50 } {
        let before = cpu(pid, ()).result().unwrap();
        kill("KILL", &[before]);
        assert_ne!(cpu(pid, ()).result().unwrap(), before);
    }
}

fn n01_running_kill_is_noticed_soon() {
    install(workers(1));
    let mut delays: Vec<Duration> = Vec::new();
    for _ in 0..20 {
        let gate = Gate::new();
        let call = cpu(stay, (gate.path(),));
        let guest = gate.guest();
        kill("KILL", &[guest.process]);
        let killed = Instant::now();
        assert_kind(call.result(), ErrorKind::WorkerLost);
        delays.push(killed.elapsed());
    }
    delays.sort();
    println!("noticed after {:?}, at worst {:?}", delays[10], delays[19]);
    assert!(delays[10] < Duration::from_millis(500), "{delays:?}");
}

fn n02_all_workers_killed_at_once() {
    install(workers(4));
    let (calls, guests) = occupy(4);
    let queued: Vec<_> = (0..8).map(|_| cpu(pid, ())).collect();
    let before: Vec<u32> = guests.iter().map(|guest| guest.process).collect();
    kill("KILL", &before);
    for call in calls {
        let error = assert_kind(call.result(), ErrorKind::WorkerLost);
        assert_eq!(error.worker_exit().unwrap().signal(), Some(9));
    }
    for call in queued {
        assert!(!before.contains(&call.result().unwrap()));
    }
}

fn kill_all(gate: String, victims: String) {
    drop(wait_at(&gate));
    let victims = fs::read_to_string(victims).unwrap();
    let mut kill = Command::new("kill");
    // `kill` does not find those that another worker has killed already.
    let _ = kill
        .arg("-KILL")
        .args(victims.lines())
        .stderr(Stdio::null())
        .status();
    thread::park();
}

fn n03_workers_kill_each_other(number: usize) {
    install(workers(number));
    for round in 0..3 {
        let (gate, list) = (Gate::new(), file(&format!("victims-{round}")));
        let calls: Vec<_> = (0..number)
            .map(|_| cpu(kill_all, (gate.path(), list.clone())))
            .collect();
        let guests: Vec<Guest> = calls.iter().map(|_| gate.guest()).collect();
        let victims: Vec<_> = guests
            .iter()
            .map(|guest| guest.process.to_string())
            .collect();
        fs::write(&list, victims.join("\n")).unwrap();
        let queued: Vec<_> = (0..number).map(|_| cpu(pid, ())).collect();
        drop(guests);
        for call in calls {
            let error = assert_kind(call.result(), ErrorKind::WorkerLost);
            assert_eq!(error.worker_exit().unwrap().signal(), Some(9));
        }
        for call in queued {
            call.result().unwrap();
        }
    }
}

fn n03_workers_kill_each_other_1() {
    n03_workers_kill_each_other(1);
}

fn n03_workers_kill_each_other_2() {
    n03_workers_kill_each_other(2);
}

fn n03_workers_kill_each_other_5() {
    n03_workers_kill_each_other(5);
}

fn n03_workers_kill_each_other_13() {
    n03_workers_kill_each_other(13);
}

fn n04_dead_before_start_is_queued_again() {
    install(workers(1));
    let (worker, proof) = (cpu(pid, ()).result().unwrap(), file("proof"));
    // The frozen worker can be dealt a call, but cannot start it; on a busy machine the pool may notice
    // before this test goes on.
    freeze(worker);
    let call = cpu(note, (proof.clone(), 1));
    let next = cpu(note, (proof.clone(), 2));
    signal("KILL", worker);
    assert_ne!(call.result().unwrap(), worker);
    next.result().unwrap();
    assert_eq!(notes(&proof), [1, 2]);
}

fn note_and_die(proof: String, how: u32) {
    note(proof, how);
    match how {
        0 => process::exit(0),
        1 => process::abort(),
        _ => kill("KILL", &[process::id()]),
    }
    thread::park();
}

fn n05_started_call_is_never_rerun() {
    install(workers(2));
    let proof = file("proof");
    let calls: Vec<_> = (0..9)
        .map(|how| cpu(note_and_die, (proof.clone(), how)))
        .collect();
    for call in calls {
        assert_kind(call.result(), ErrorKind::WorkerLost);
        cpu(pid, ()).result().unwrap();
    }
    assert!(unsync::drain(SOON));
    let mut proofs = notes(&proof);
    proofs.sort();
    assert_eq!(proofs, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
}

/// A result whose decoding waits until it may go on: meanwhile nothing more is read from its worker.
struct Pause(String);

impl Wire for Pause {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }

    fn decode(input: &mut &[u8]) -> Result<Pause, Error> {
        let gate = String::decode(input)?;
        drop(wait_at(&gate));
        Ok(Pause(gate))
    }
}

fn pause_the_reader(gate: String) -> Pause {
    Pause(gate)
}

fn note_and_stay(proof: String, gate: String) {
    note(proof, 1);
    drop(wait_at(&gate));
}

/// The worker dies before the parent has read that the call started, with input of its own unread.
fn n05_started_call_is_never_rerun_though_its_start_was_not_heard() {
    install(workers(1));
    // Over TCP, more than the other side takes unread: part of it has not left the worker when that dies.
    let size = if link() == Link::Tcp {
        1 << 20
    } else {
        1 << 10
    };
    let (proof, reader, [paused, large, running], guest) = (0..20)
        .find_map(|attempt| {
            teach_that_calls_are_quick();
            let (pause, gate) = (Gate::new(), Gate::new());
            let proof = file(&format!("proof_{attempt}"));
            let paused = cpu(pause_the_reader, (pause.path(),)).map(drop);
            let reader = pause.guest();
            let large = cpu(fill, (size,)).map(drop);
            let running = cpu(note_and_stay, (proof.clone(), gate.path()));
            let calls = [paused, large, running];
            let deadline = Instant::now() + Duration::from_secs(2);
            while Instant::now() < deadline {
                if let Some(guest) = gate.poll() {
                    return Some((proof, reader, calls, guest));
                }
                thread::sleep(Duration::from_millis(1));
            }
            // The worker had to wait for the processor, so it is not dealt many calls at once.
            reader.leave();
            gate.guest().leave();
            calls.into_iter().for_each(|call| call.result().unwrap());
            None
        })
        .expect("never dealt together");
    freeze(guest.process);
    let behind = cpu(pid, ());
    kill("KILL", &[guest.process]);
    until("the worker is dead", || is_dead(guest.process));
    reader.leave();
    paused.result().unwrap();
    assert_kind(running.result(), ErrorKind::WorkerLost);
    large.result().unwrap();
    behind.result().unwrap();
    assert_eq!(notes(&proof), [1]);
}

fn allocate(bytes: usize) -> usize {
    vec![1_u8; bytes].iter().filter(|byte| **byte == 1).count()
}

fn measure(bytes: Vec<u8>) -> usize {
    bytes.len()
}

/// Workers that may have this many MiB.
fn poor_workers(mebibytes: usize) -> Config {
    let shell = format!("ulimit -v {}", mebibytes << 10);
    workers(1).worker_command(move |executable| worker_after(&shell, executable))
}

fn n04_out_of_memory() {
    install(poor_workers(512));
    assert_eq!(cpu(allocate, (1 << 20,)).result().unwrap(), 1 << 20);
    let error = assert_kind(cpu(allocate, (1 << 30,)).result(), ErrorKind::WorkerLost);
    assert_says(
        &error,
        &[
            "`allocate`",
            "SIGABRT",
            "memory allocation of 1073741824 bytes failed",
        ],
    );
    assert_eq!(cpu(allocate, (1 << 20,)).result().unwrap(), 1 << 20);
}

/// No worker can even take the arguments. The pool tries three times, and other calls are not harmed.
fn n04_out_of_memory_before_the_start() {
    install(poor_workers(128));
    let calls = [(); 2].map(|()| cpu(measure, (vec![1; 160 << 20],)));
    let next = cpu(measure, (vec![1; 1 << 20],));
    for call in calls {
        let error = assert_kind(call.result(), ErrorKind::WorkerLost);
        assert_says(
            &error,
            &[
                "`measure` was not started by any of 3 worker processes",
                "memory",
            ],
        );
    }
    assert_eq!(next.result().unwrap(), 1 << 20);
}

fn fill(bytes: usize) -> Vec<u8> {
    vec![1; bytes]
}

fn fill_with_numbers(bytes: usize) -> Vec<u64> {
    vec![1; bytes / 8]
}

fn fill_with_blocks(bytes: usize) -> Vec<[u8; 1 << 16]> {
    vec![[1; 1 << 16]; bytes >> 16]
}

/// The workers have enough memory, whatever the program has.
fn rich_workers() -> Config {
    workers(1).worker_command(|executable| worker_after("ulimit -S -v unlimited", executable))
}

fn n04_out_of_memory_for_the_result() {
    install(rich_workers());
    let result = cpu(fill, (256 << 20,)).result().map(drop);
    let error = assert_kind(result, ErrorKind::WorkerLost);
    assert_says(&error, &["`fill`", "memory"]);
    assert_eq!(cpu(fill, (1 << 20,)).result().unwrap().len(), 1 << 20);
}

/// The program has enough memory for the bytes of the result, but not for the value as well.
fn n04_out_of_memory_for_the_decoded_result() {
    install(rich_workers());
    let worker = cpu(pid, ()).result().unwrap();
    for result in [
        cpu(fill, (256 << 20,)).result().map(drop),
        cpu(fill_with_numbers, (256 << 20,)).result().map(drop),
        cpu(fill_with_blocks, (256 << 20,)).result().map(drop),
    ] {
        let error = assert_kind(result, ErrorKind::Codec);
        assert_says(&error, &["`fill", "memory"]);
    }
    assert_eq!(cpu(fill, (1 << 20,)).result().unwrap().len(), 1 << 20);
    assert_eq!(cpu(pid, ()).result().unwrap(), worker);
}

fn panic_without_hook() {
    panic::set_hook(Box::new(|_| {}));
    panic!("caught all the same");
}

/// The function removed our hook. The caught panic is still reported, and so is the next one.
fn n27_panic_hook_of_the_function() {
    install(workers(1));
    for _ in 0..2 {
        let error = assert_kind(cpu(panic_without_hook, ()).result(), ErrorKind::Panicked);
        assert_says(
            &error,
            &["`panic_without_hook` panicked: caught all the same"],
        );
    }
}

fn unwind_by_hand() {
    resume_unwind(Box::new("by hand".to_owned()));
}

fn n28_panic_that_no_hook_sees() {
    install(workers(1));
    let worker = cpu(pid, ()).result().unwrap();
    let error = assert_kind(cpu(unwind_by_hand, ()).result(), ErrorKind::Panicked);
    assert_says(&error, &["`unwind_by_hand` panicked: by hand"]);
    assert_eq!(cpu(pid, ()).result().unwrap(), worker);
}

/// Starts a process that holds everything that it inherits, and dies.
fn leave_a_child_and_die(proof: String) {
    let child = Command::new("sleep").arg("600").spawn().unwrap();
    note(proof, child.id());
    eprintln!("the child lives on");
    process::abort();
}

fn n31_grandchild_does_not_hide_death() {
    install(workers(1));
    let (proof, started) = (file("proof"), Instant::now());
    let outcome = cpu(leave_a_child_and_die, (proof.clone(),)).result();
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "after {:?}",
        started.elapsed()
    );
    let error = assert_kind(outcome, ErrorKind::WorkerLost);
    assert_says(&error, &["SIGABRT", "the child lives on"]);
    cpu(pid, ()).result().unwrap();
    kill("KILL", &notes(&proof));
}

fn say_and_die() {
    eprintln!("a first word");
    eprintln!("and a last");
    process::exit(3);
}

fn n35_last_words_in_the_error() {
    install(workers(1));
    let error = assert_kind(cpu(say_and_die, ()).result(), ErrorKind::WorkerLost);
    assert_says(&error, &["exit status: 3", "a first word\nand a last"]);
    // The output of the previous worker is not quoted for this one.
    let error = assert_kind(cpu(die_silently, ()).result(), ErrorKind::WorkerLost);
    assert!(!error.to_string().contains("last"), "{error}");
}

fn die_silently() {
    process::exit(3);
}

fn talk_and_die() {
    let mut stderr = io::stderr();
    for _ in 0..10_000 {
        stderr.write_all(b"0123456789\n").unwrap();
    }
    eprintln!("to cut it short");
    process::exit(3);
}

fn n35_last_words_are_no_novel() {
    install(workers(1));
    let error = assert_kind(cpu(talk_and_die, ()).result(), ErrorKind::WorkerLost);
    assert_says(&error, &["to cut it short"]);
    assert!(
        error.to_string().len() < 4096,
        "{} bytes",
        error.to_string().len()
    );
}

/// Prints lines of many lengths, so that no limit falls at the end of one.
fn tell_and_die(lines: usize) {
    eprintln!("the cause");
    for line in 0..lines {
        eprintln!("line {line} {}", "x".repeat(line % 700));
    }
    eprint!("the end");
    process::exit(3);
}

fn n35_first_words_are_quoted_too() {
    install(workers(1));
    for lines in [0, 1, 10, 100, 1000] {
        let call = cpu(tell_and_die, (lines,));
        let error = assert_kind(call.result(), ErrorKind::WorkerLost).to_string();
        let words = error.split_once("; its last output: ").expect(&error).1;
        let words = words.split_once(" (started at ").expect(&error).0;
        assert!(words.starts_with("the cause\n"), "{error}");
        assert!(words.ends_with("\nthe end"), "{error}");
        assert!(error.len() < 4096, "{error}");
        let told: Vec<_> = words.lines().collect();
        for line in &told[1..told.len() - 1] {
            assert!(line.starts_with("line ") || *line == "[...]", "{error}");
        }
        assert_eq!(words.contains("[...]"), lines > 10, "{error}");
    }
}

/// Another thread's panic is not the call's, so the output is all that is known about it.
fn panic_elsewhere_and_die() {
    eprintln!("the cause");
    assert!(thread::spawn(panic_deep_down).join().is_err());
    eprintln!("and a last");
    process::exit(3);
}

fn n35_last_words_are_no_backtrace() {
    install(workers(1));
    let call = cpu(panic_elsewhere_and_die, ());
    let error = assert_kind(call.result(), ErrorKind::WorkerLost);
    assert_says(&error, &["the cause\n", "\ndown here\nand a last"]);
    let text = error.to_string();
    for frame in ["backtrace", "a_function_to_be_named", "/library/", " 0:"] {
        assert!(!text.contains(frame), "{text}");
    }
    let error = assert_kind(cpu(panic_and_abort, ()).result(), ErrorKind::Panicked);
    assert_says(&error, &["out of cheese"]);
    assert!(!error.to_string().contains("backtrace"), "{error}");
    let source = error.source().expect("a backtrace").to_string();
    assert!(source.contains("panic_and_abort"), "{source}");
}

/// As with `panic = "abort"`: the hook runs, and nothing after it.
fn panic_twice() {
    for _ in 0..3 {
        assert!(panic::catch_unwind(|| panic!("the first")).is_err());
    }
    panic!("the second");
}

fn caught_panic_is_not_the_cause_of_the_next() {
    install(workers(1));
    let error = assert_kind(cpu(panic_twice, ()).result(), ErrorKind::Panicked);
    let says = [
        "`panic_twice` panicked at tests/faults/death.rs:",
        ": the second",
    ];
    assert_says(&error, &says);
    assert!(!error.to_string().contains("the first"), "{error}");
}

fn panic_and_be_killed() {
    assert!(panic::catch_unwind(|| panic!("the first")).is_err());
    kill("KILL", &[process::id()]);
    spin();
}

fn caught_panic_is_not_the_cause_of_a_kill() {
    install(workers(1));
    let error = assert_kind(cpu(panic_and_be_killed, ()).result(), ErrorKind::WorkerLost);
    assert_says(
        &error,
        &["`panic_and_be_killed` lost its worker process", "SIGKILL"],
    );
}

fn panic_and_exit(code: i32) {
    assert!(panic::catch_unwind(|| panic!("caught and handled")).is_err());
    process::exit(code);
}

/// An exit code is chosen by whoever calls `exit`, even 101.
fn caught_panic_is_not_the_cause_of_an_exit() {
    install(workers(1));
    for code in [0, 1, 3, 101, 134, 255] {
        let error = assert_kind(cpu(panic_and_exit, (code,)).result(), ErrorKind::WorkerLost);
        let status = format!("exit status: {code}");
        assert_says(
            &error,
            &["`panic_and_exit` lost its worker process", &status],
        );
        assert_eq!(error.worker_exit().unwrap().code(), Some(code));
    }
}

fn panic_and_overflow() -> u32 {
    fn descend(depth: u32) -> u32 {
        let ground = std::hint::black_box([depth as u8; 1024]);
        match std::hint::black_box(depth) {
            u32::MAX => 0,
            _ => descend(depth + 1) + u32::from(ground[7]),
        }
    }
    assert!(panic::catch_unwind(|| panic!("caught and handled")).is_err());
    descend(0)
}

/// A stack overflow is an abort too, and std says why.
fn caught_panic_is_not_the_cause_of_a_stack_overflow() {
    install(workers(1));
    let outcome = cpu(panic_and_overflow, ()).result();
    let error = assert_kind(outcome, ErrorKind::WorkerLost);
    assert_says(
        &error,
        &["`panic_and_overflow` lost its worker", "stack overflow"],
    );
}

fn exit_in_the_hook() {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        hook(info);
        process::exit(9);
    }));
    panic!("out of crackers");
}

/// The hook ended the process. What it printed is quoted.
fn exit_in_the_panic_hook_is_an_exit() {
    install(workers(1));
    let error = assert_kind(cpu(exit_in_the_hook, ()).result(), ErrorKind::WorkerLost);
    assert_says(&error, &["exit status: 9", "out of crackers"]);
    assert_eq!(error.worker_exit().unwrap().code(), Some(9));
}

fn panic_in_a_drop() {
    struct PanicsToo;
    impl Drop for PanicsToo {
        fn drop(&mut self) {
            panic!("in the drop");
        }
    }
    let _panics_too = PanicsToo;
    panic!("in the function");
}

/// A second panic while the first unwinds ends the process: the cause is the panic.
fn panic_in_a_drop_during_a_panic_is_the_cause() {
    install(workers(1));
    let error = assert_kind(cpu(panic_in_a_drop, ()).result(), ErrorKind::Panicked);
    assert_says(
        &error,
        &[
            "`panic_in_a_drop` panicked at",
            "in the function",
            "SIGABRT",
        ],
    );
    assert_eq!(error.worker_exit().unwrap().signal(), Some(6));
}

fn panic_and_abort() {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        hook(info);
        process::abort();
    }));
    panic!("out of cheese");
}

fn n63_abort_after_the_panic_hook() {
    install(workers(1));
    let worker = cpu(pid, ()).result().unwrap();
    let error = assert_kind(cpu(panic_and_abort, ()).result(), ErrorKind::Panicked);
    let place = format!("panicked at {}:", file!());
    let process = format!("; its worker process {worker} ");
    assert_says(
        &error,
        &[
            "`panic_and_abort`",
            &place,
            "out of cheese",
            &process,
            "ended with it (signal: 6 (SIGABRT)",
        ],
    );
    assert_eq!(error.worker_exit().unwrap().signal(), Some(6));
    assert_eq!(
        error
            .into_panic()
            .unwrap()
            .downcast_ref::<String>()
            .unwrap(),
        "out of cheese"
    );
    assert_ne!(cpu(pid, ()).result().unwrap(), worker);
}

fn panic_deep_down() {
    #[inline(never)]
    fn a_function_to_be_named() {
        panic!("down here");
    }
    a_function_to_be_named();
}

fn backtrace_is_the_source_if_asked_for() {
    install(workers(1));
    let error = assert_kind(cpu(panic_deep_down, ()).result(), ErrorKind::Panicked);
    let source = error.source().expect("a backtrace").to_string();
    assert!(source.contains("a_function_to_be_named"), "{source}");
}

fn backtrace_is_none_if_not_asked_for() {
    install(workers(1));
    let error = assert_kind(cpu(panic_deep_down, ()).result(), ErrorKind::Panicked);
    assert!(error.source().is_none());
}

unsync::register!(
    kill_all,
    pause_the_reader,
    note_and_stay,
    note_and_die,
    allocate,
    measure,
    fill,
    fill_with_blocks,
    fill_with_numbers,
    panic_without_hook,
    unwind_by_hand,
    leave_a_child_and_die,
    say_and_die,
    die_silently,
    talk_and_die,
    tell_and_die,
    panic_elsewhere_and_die,
    panic_and_abort,
    panic_and_exit,
    panic_and_overflow,
    exit_in_the_hook,
    panic_in_a_drop,
    panic_twice,
    panic_and_be_killed,
    panic_deep_down,
);
