//! Worker processes of a program with a `main` of its own, which calls `init` oddly: on two threads at
//! once, and again within a call. No harness here, since that has its own `main`.
#![forbid(unsafe_code)]

use std::env;
use std::process::Command;
use std::thread;
use std::time::Duration;

use unsync::{ErrorKind, Unfuture, cpu, init, is_worker};

fn double(n: u32) -> u32 {
    n * 2
}

fn starts_again() {
    init();
}
unsync::register!(double, starts_again);

/// Set for worker processes only.
const WORKER: &str = "UNSYNC_TEST_WORKER";

/// What is allowed for something that takes milliseconds.
const QUICK: Duration = Duration::from_secs(20);

fn main() {
    let callers = [(); 2].map(|()| thread::spawn(init));
    for caller in callers {
        caller.join().unwrap();
    }
    let came_here = is_worker() || env::var_os(WORKER).is_some();
    assert!(!came_here, "`init` returned in a worker process");
    // So runners that list the tests of a binary, such as cargo-nextest, find one.
    if env::args().any(|argument| argument == "--list") {
        if !env::args().any(|argument| argument == "--ignored") {
            println!("main_calls_init: test");
        }
        return;
    }

    // What is put before the argument of a worker must not hide it.
    let config = unsync::Config::new().worker_command(|executable| {
        let mut command = Command::new(executable);
        command.arg("--quiet").env(WORKER, "yes");
        command
    });
    config.install().unwrap();
    let doubled: Vec<u32> = (0..100)
        .map(|n| in_time(cpu(double, (n,))).result().unwrap())
        .collect();
    assert_eq!(doubled, (0..100).map(|n| n * 2).collect::<Vec<_>>());
    println!("two threads that call `init` make one worker ... ok");

    let error = in_time(cpu(starts_again, ())).result().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Panicked, "{error}");
    assert!(
        error.to_string().contains("first line of `main`"),
        "{error}"
    );
    println!("`init` within a call is its panic ... ok");
}

fn in_time<T>(work: Unfuture<T>) -> Unfuture<T> {
    assert!(work.wait_timeout(QUICK), "{work:?} did not end");
    work
}
