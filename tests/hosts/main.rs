//! Workers on other hosts, through launchers. Here these are shell commands that start the relay on this machine,
//! and get in its way as real ones do. They need nothing installed.
//!
//! - `starts`: what a launcher prints, delays or refuses before there is a worker.
//! - `lives`: what happens to workers, relays and launchers while calls run, and the end of the program.
//! - `storm`: kills at random, and no call runs twice.
//! - `real`: the same through `ssh` and `srun`, where these are.
//!
//! Linux only: the faults are signals, and the proofs are in `/proc`.
#![cfg(target_os = "linux")]
#![forbid(unsafe_code)]

use std::env;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{self, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use unsync::{Config, Error, ErrorKind, cpu};

#[path = "../scenario/mod.rs"]
#[allow(dead_code)] // what these tests do not use
#[macro_use]
mod scenario;
use scenario::{pid, stay};

mod lives;
mod real;
mod starts;
mod storm;

unsync::test_worker!();

/// The same as `scenarios!`, over the only kind of link that there is here.
macro_rules! plays {
    (programs: [$($program:ident),*] $($play:ident;)*) => {
        #[test]
        #[ignore = "no test: scenarios run here, each in a process of its own"]
        fn scenario_entry() {
            $crate::scenario::enter(
                &[$((stringify!($play), $play as fn())),*],
                &[$((stringify!($program), $program as fn())),*],
            );
        }
        scenarios! { @link host Unix $($play;)* }
    };
}
use plays;

// ---------------------------------------------------------------------------------------- the launchers

/// A launcher: a shell that runs this text, in which `"$@"` starts the relay.
fn shell(text: &str) -> impl Fn(&Path) -> Command + Send + Sync + 'static {
    let text = text.to_owned();
    move |program| {
        let mut command = Command::new("sh");
        command.arg("-c").arg(&text).arg("launcher").arg(program);
        command
    }
}

const PLAIN: &str = "exec \"$@\"";

/// No workers but those of one host.
fn only(slots: usize, launcher: &str) -> Config {
    let config = Config::new().processes(0);
    config.host("far", slots, shell(launcher))
}

fn install(config: Config) {
    config.install().unwrap();
}

// ---------------------------------------------------------------------------------------- the functions

fn add(one: u64, other: u64) -> u64 {
    one + other
}

fn sleep(millis: u64) -> u32 {
    thread::sleep(Duration::from_millis(millis));
    process::id()
}

fn spin() {
    loop {
        std::hint::spin_loop();
    }
}

fn echo(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

fn exit(code: i32) {
    process::exit(code)
}

fn print(text: String) -> u32 {
    println!("out {text}");
    // In one piece, since both streams end up in one place.
    let line = format!("err {text}\n");
    eprint!("{line}");
    print!("no newline {text}");
    process::id()
}

/// Leaves a mark in a file.
fn mark(file: String, number: u32, millis: u64) -> u32 {
    let mut options = File::options();
    let file = options.create(true).append(true).open(file);
    let line = format!("{number} {}\n", process::id());
    file.unwrap().write_all(line.as_bytes()).unwrap();
    thread::sleep(Duration::from_millis(millis));
    number
}

unsync::register!(pid, add, sleep, spin, echo, exit, print, mark);

// ------------------------------------------------------------------------------------------- the checks

/// Calls that show that all is well.
#[track_caller]
fn assert_works(calls: u64) {
    let sums: Vec<_> = (0..calls).map(|n| cpu(add, (n, 1))).collect();
    for (n, sum) in sums.into_iter().enumerate() {
        assert_eq!(sum.result().unwrap(), n as u64 + 1);
    }
}

#[track_caller]
fn assert_lost(outcome: Result<impl std::fmt::Debug, Error>, words: &[&str]) -> Error {
    let error = outcome.expect_err("a call that fails");
    println!("{error}");
    assert_eq!(error.kind(), ErrorKind::WorkerLost, "{error}");
    scenario::assert_says(&error, words);
    error
}

/// The parent of a worker is its relay, whose parent is the launcher or this process.
fn parent_of(process: u32) -> u32 {
    scenario::parent_of(process).unwrap()
}

/// What the scenario and its workers have printed so far.
fn output() -> String {
    fs::read_to_string(scenario::file("output")).unwrap()
}
