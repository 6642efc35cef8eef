//! The crash table: ways to fail × phases of a call.
//!
//! In every cell a sibling call runs in one of two workers, and the fault strikes the other one, with
//! three calls queued behind. Only the culprit fails, and says what happened; the sibling
//! and the queued calls are fine, and so are those that come later.
//!
//! Linux only: the faults are signals and the proofs are in `/proc`.
#![cfg(target_os = "linux")]
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::panic::panic_any;
use std::process::{self, Command};
use std::sync::Mutex;
use std::thread;

use unsync::{Config, Error, ErrorKind, Wire, cpu};

#[allow(dead_code, unused_macros)] // what this table does not use
mod scenario;
use scenario::{Gate, assert_says, is_gone, lane_state, pid, stay, until, wait_at};

unsync::test_worker!();

/// Makes the tests, as `unix::fault::phase`, `tcp::fault::phase` and `relay::fault::phase`.
macro_rules! crash_table {
    ($($fault:ident: $($phase:ident)+;)+) => {
        #[test]
        #[ignore = "no test: scenarios run here, each in a process of its own"]
        fn scenario_entry() {
            scenario::enter(
                &[$($((
                    concat!(stringify!($fault), " ", stringify!($phase)),
                    (|| cell(stringify!($fault), stringify!($phase))) as fn(),
                )),+),+],
                &[],
            );
        }
        crash_table! { @link unix Unix $($fault: $($phase)+;)+ }
        crash_table! { @link tcp Tcp $($fault: $($phase)+;)+ }
        crash_table! { @link relay Relay $($fault: $($phase)+;)+ }
    };
    (@link $module:ident $link:ident $($fault:ident: $($phase:ident)+;)+) => {
        mod $module {
            $(mod $fault {
                use crate::scenario::{Link, run};
                $(
                    #[test]
                    fn $phase() {
                        let play = concat!(stringify!($fault), " ", stringify!($phase));
                        run(Link::$link, "scenario_entry", play, "");
                    }
                )+
            })+
        }
    };
}

// A fault that strikes the program itself (in the encoding of an argument or the decoding of a result)
// must be one that a program survives.
crash_table! {
    abort:               argument_decode body result_encode result_drop idle mid_result;
    exit_0:              argument_decode body result_encode result_drop idle mid_result;
    exit_3:              argument_decode body result_encode result_drop idle mid_result;
    kill_9:              argument_decode body result_encode result_drop idle mid_result;
    stack_overflow:      argument_decode body result_encode result_drop idle mid_result;
    lose_the_link:       argument_decode body result_encode result_drop idle mid_result;
    panic_while_panicking: argument_decode body result_encode result_drop idle mid_result;
    panic_in_extern_c:   argument_decode body result_encode result_drop idle mid_result;
    panic_with_text:     argument_encode argument_decode body result_encode result_drop result_decode idle mid_result;
    panic_with_any:      argument_encode argument_decode body result_encode result_drop result_decode idle mid_result;
    panic_in_drop:       argument_encode argument_decode body result_encode result_drop result_decode idle mid_result;
    panic_elsewhere:     argument_encode argument_decode body result_encode result_drop result_decode idle mid_result;
    refuse_to_decode:    argument_decode result_decode;
    refuse_in_words:     argument_decode result_decode;
}

// -------------------------------------------------------------------------------------- the faults

const TEXT: &str = "what a fault";

/// Where the panics are: the line of each is this line plus a number.
const PANICS: u32 = line!();

fn panic_now() {
    panic!("{TEXT}");
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("{TEXT} in a drop");
    }
}

fn panic_any_now() {
    panic_any(42);
}

extern "C" fn panic_where_none_may_pass() {
    panic!("{TEXT}");
}

/// The place of the panic that reports a fault.
fn place(fault: &str) -> String {
    let line = match fault {
        "panic_with_text" | "panic_while_panicking" => 3,
        "panic_in_drop" => 10,
        "panic_with_any" => 15,
        "panic_in_extern_c" => 19,
        other => panic!("{other} has no place"),
    };
    format!("{}:{}:", file!(), PANICS + line)
}

fn commit(fault: &str) -> Result<(), Error> {
    match fault {
        "abort" => process::abort(),
        "exit_0" => process::exit(0),
        "exit_3" => process::exit(3),
        "kill_9" => {
            scenario::kill("KILL", &[process::id()]);
            // The signal is under way.
            loop {
                thread::park();
            }
        }
        "stack_overflow" => {
            black_box(deep(0));
        }
        // The link is closed on exec, and the process lives on.
        "lose_the_link" => panic!("{}", Command::new("sleep").arg("600").exec()),
        "panic_with_text" => panic_now(),
        "panic_with_any" => panic_any_now(),
        "panic_in_drop" => drop(Bomb),
        "panic_while_panicking" => {
            let _bomb = Bomb;
            panic_now();
        }
        "panic_in_extern_c" => panic_where_none_may_pass(),
        "panic_elsewhere" => {
            let helper = thread::Builder::new().name("helper".into());
            assert!(helper.spawn(panic_now).unwrap().join().is_err());
        }
        "refuse_to_decode" => return u64::decode(&mut &[0][..]).map(drop),
        "refuse_in_words" => return Err(Error::new(ErrorKind::Codec, TEXT)),
        other => panic!("no fault is called {other}"),
    }
    Ok(())
}

fn deep(depth: u64) -> u64 {
    let frame = black_box([depth; 128]);
    let below = if frame[0] < u64::MAX {
        deep(depth + 1)
    } else {
        0
    };
    below + frame[1]
}

// --------------------------------------------------------------------------------------- the calls

/// Commits a fault in one phase of its way through a call.
struct Trap {
    fault: String,
    phase: String,
}

impl Trap {
    fn at(&self, phase: &str) -> Result<(), Error> {
        if self.phase == phase {
            commit(&self.fault)
        } else {
            Ok(())
        }
    }
}

impl Wire for Trap {
    fn encode(&self, out: &mut Vec<u8>) {
        let phase = if unsync::is_worker() {
            "result_encode"
        } else {
            "argument_encode"
        };
        self.at(phase).expect("a fault for an encoder");
        (self.fault.clone(), self.phase.clone()).encode(out);
    }

    fn decode(input: &mut &[u8]) -> Result<Trap, Error> {
        let (fault, phase) = Wire::decode(input)?;
        let trap = Trap { fault, phase };
        let phase = if unsync::is_worker() {
            "argument_decode"
        } else {
            "result_decode"
        };
        trap.at(phase).map(|()| trap)
    }
}

/// The worker drops the result after it has encoded it.
impl Drop for Trap {
    fn drop(&mut self) {
        if unsync::is_worker() {
            self.at("result_drop").expect("a fault for a destructor");
        }
    }
}

/// The culprit.
fn carry(trap: Trap) -> Trap {
    trap.at("body").expect("a fault for a body");
    trap
}

/// The culprit that strikes when its worker is idle again.
fn leave_behind(fault: String, gate: String) {
    thread::spawn(move || {
        let _guest = wait_at(&gate);
        let _ = commit(&fault);
    });
}

/// A large result. This culprit strikes while the result is under way.
struct Bulk {
    fault: String,
    gate: String,
    bytes: Vec<u8>,
}

const BULK: usize = 64 << 20;

impl Wire for Bulk {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.fault.clone(), self.gate.clone()).encode(out);
        self.bytes.encode(out);
        leave_behind(self.fault.clone(), self.gate.clone());
    }

    fn decode(input: &mut &[u8]) -> Result<Bulk, Error> {
        let (fault, gate, bytes) = Wire::decode(input)?;
        Ok(Bulk { fault, gate, bytes })
    }
}

fn send_bulk(fault: String, gate: String) -> Bulk {
    let bytes = vec![7; BULK];
    Bulk { fault, gate, bytes }
}

/// A result that is decoded only when the door is open: until then nothing more is read from its worker.
struct Doorstop;

static DOOR: Mutex<()> = Mutex::new(());

impl Wire for Doorstop {
    fn encode(&self, _: &mut Vec<u8>) {}

    fn decode(_: &mut &[u8]) -> Result<Doorstop, Error> {
        drop(DOOR.lock());
        Ok(Doorstop)
    }
}

fn stop_the_door() -> Doorstop {
    Doorstop
}

unsync::register!(carry, leave_behind, send_bulk, stop_the_door, stay, pid);

// ---------------------------------------------------------------------------------------- the cell

fn cell(fault: &str, phase: &str) {
    Config::new().processes(2).install().unwrap();
    let gate = Gate::new();
    let sibling = cpu(stay, (gate.path(),));
    let beside = gate.guest();
    let struck = cpu(pid, ()).result().unwrap();
    assert_ne!(struck, beside.process);

    let death = Death::by(fault);
    match phase {
        "idle" => strike_idle(fault),
        "mid_result" => strike_mid_result(fault, struck),
        _ => strike_call(fault, phase, struck),
    }
    let later: Vec<u32> = (0..3).map(|_| cpu(pid, ()).result().unwrap()).collect();
    match death {
        Some(_) => {
            assert!(!later.contains(&struck), "the worker is said to have died");
            until("the dead worker is reaped", || is_gone(struck));
        }
        None => assert_eq!(later, [struck; 3], "the worker did not have to die"),
    }
    let neighbour = beside.process;
    beside.leave();
    assert_eq!(sibling.result().unwrap(), neighbour);
}

/// A call that fails on its way.
fn strike_call(fault: &str, phase: &str, struck: u32) {
    let trap = Trap {
        fault: fault.into(),
        phase: phase.into(),
    };
    let (culprit, line) = (cpu(carry, (trap,)), line!());
    let queued: Vec<_> = (0..3).map(|_| cpu(pid, ())).collect();
    let outcome = culprit.result().map(drop);
    let started = format!("(started at {}:{line}:", file!());
    match fault {
        "panic_elsewhere" => outcome.expect("a panic of another thread is not the call's"),
        "refuse_to_decode" | "refuse_in_words" => {
            let error = outcome.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Codec, "{error}");
            let why = if fault == "refuse_in_words" {
                TEXT
            } else {
                "u64"
            };
            assert_says(&error, &["`carry`", why, &started]);
            assert_eq!(error.worker_exit(), None);
        }
        _ if phase == "argument_encode" || phase == "result_decode" => {
            let error = outcome.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Panicked, "{error}");
            let step = if phase == "result_decode" {
                "decoding"
            } else {
                "encoding"
            };
            assert_says(&error, &["`carry`", step, text(fault), &started]);
            assert_eq!(error.worker_exit(), None);
            // The panic never left the program, so its payload is unchanged.
            let payload = error.into_panic().unwrap();
            assert_eq!(
                payload.downcast_ref() == Some(&42),
                fault == "panic_with_any"
            );
        }
        _ => assert_struck(outcome.unwrap_err(), "`carry`", fault, struck, &started),
    }
    for call in queued {
        call.result().unwrap();
    }
}

/// Checks the error of a call that was struck in the worker, on the thread of the call.
fn assert_struck(error: Error, name: &str, fault: &str, struck: u32, started: &str) {
    let process = format!("worker process {struck}");
    assert_says(&error, &[name, started]);
    match Death::by(fault) {
        Some(death) => {
            death.assert_is(&error);
            assert_says(&error, &[&process]);
        }
        None => assert_eq!(error.worker_exit(), None),
    }
    if !fault.starts_with("panic") {
        assert_eq!(error.kind(), ErrorKind::WorkerLost, "{error}");
        return;
    }
    assert_eq!(error.kind(), ErrorKind::Panicked, "{error}");
    assert_says(
        &error,
        &[&format!("panicked at {}", place(fault)), text(fault)],
    );
    let payload = error.into_panic().unwrap();
    assert_eq!(payload.downcast_ref::<String>().unwrap(), text(fault));
}

/// A worker that dies, or is panicked in, while it has nothing to do: nobody notices.
fn strike_idle(fault: &str) {
    let gate = Gate::new();
    cpu(leave_behind, (fault.to_owned(), gate.path()))
        .result()
        .unwrap();
    gate.guest().leave();
    let queued: Vec<_> = (0..3).map(|_| cpu(pid, ())).collect();
    for call in queued {
        call.result().unwrap();
    }
}

/// A worker that dies, or is panicked in, while its call is writing a large result.
fn strike_mid_result(fault: &str, struck: u32) {
    let gate = Gate::new();
    let door = DOOR.lock().unwrap();
    let before = cpu(stop_the_door, ());
    let (culprit, line) = (cpu(send_bulk, (fault.to_owned(), gate.path())), line!());
    let queued: Vec<_> = (0..3).map(|_| cpu(pid, ())).collect();
    // When the guest comes, the result is encoded; nobody reads, so the result does not get far.
    let guest = gate.guest();
    until("the result is stuck in the link", || {
        lane_state(struck) == Some('S')
    });
    guest.leave();
    assert!(!culprit.is_done());
    drop(door);
    before.result().unwrap();

    match Death::by(fault) {
        None => {
            let bulk = culprit.result().unwrap();
            assert!(bulk.bytes.len() == BULK && bulk.bytes.iter().all(|byte| *byte == 7));
        }
        Some(death) => {
            let error = culprit.result().map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WorkerLost, "{error}");
            death.assert_is(&error);
            let started = format!("(started at {}:{line}:", file!());
            assert_says(
                &error,
                &["`send_bulk`", &format!("worker process {struck}"), &started],
            );
        }
    }
    for call in queued {
        call.result().unwrap();
    }
}

/// The text of the panic.
fn text(fault: &str) -> &'static str {
    match fault {
        "panic_with_any" => "",
        "panic_in_drop" => "what a fault in a drop",
        _ => TEXT,
    }
}

/// How a worker dies of a fault.
struct Death {
    signal: Option<i32>,
    code: Option<i32>,
    /// What the error has to say.
    words: &'static [&'static str],
}

impl Death {
    fn by(fault: &str) -> Option<Death> {
        let signal = |number, words| Death {
            signal: Some(number),
            code: None,
            words,
        };
        let code = |number, words| Death {
            signal: None,
            code: Some(number),
            words,
        };
        match fault {
            "abort" => Some(signal(6, &["SIGABRT"])),
            "exit_0" => Some(code(0, &["exit status: 0", "without a result"])),
            "exit_3" => Some(code(3, &["exit status: 3"])),
            "kill_9" => Some(signal(9, &["SIGKILL"])),
            "stack_overflow" => Some(signal(6, &["stack overflow", "SIGABRT"])),
            "lose_the_link" => Some(signal(9, &["SIGKILL"])),
            "panic_while_panicking" | "panic_in_extern_c" => Some(signal(6, &["SIGABRT"])),
            _ => None,
        }
    }

    #[track_caller]
    fn assert_is(&self, error: &Error) {
        let exit = error.worker_exit().expect("a worker that died");
        assert_eq!(
            (exit.signal(), exit.code()),
            (self.signal, self.code),
            "{error}"
        );
        assert_says(error, self.words);
    }
}
