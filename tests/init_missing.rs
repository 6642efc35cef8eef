//! Number 45 of the faults: a program that forgot `init`, or calls it too late. In a test binary of its
//! own, because it must not have a `test_worker!` either.
//!
//! Not over a relay, where a program that ends at once is a launcher that ends at once.
//!
//! Linux only, like `faults`: what it looks for is in `/proc`.
#![cfg(target_os = "linux")]
#![forbid(unsafe_code)]

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use unsync::{Config, ErrorKind, cpu};

#[allow(dead_code)] // what this file does not use
#[macro_use]
mod scenario;
use scenario::{SOON, children};

scenarios! {
    without_relay
    programs: []
    n45_init_missing_no_fork_bomb;
    n45_init_too_late_no_fork_bomb;
}

fn answer() -> u32 {
    42
}

unsync::register!(answer);

fn n45_init_missing_no_fork_bomb() {
    unsync::warm();
    let started = Instant::now();
    for _ in 0..1000 {
        let call = cpu(answer, ());
        assert!(call.is_done(), "at once");
        let error = call.result().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotInitialised, "{error}");
        let text = error.to_string();
        let hints = [
            "answer",
            "`unsync::init();`",
            "`unsync::test_worker!();`",
            "tests/init_missing.rs:",
        ];
        for hint in hints {
            assert!(text.contains(hint), "{hint:?} is missing in: {text}");
        }
    }
    assert!(started.elapsed() < SOON);
    assert!(children().is_empty());
    // The rest of the library does not need `init`.
    assert_eq!(unsync::thread(answer).result().unwrap(), 42);
}

/// The parent has reached `init`, but its workers will not: they run something else and end.
fn n45_init_too_late_no_fork_bomb() {
    let started = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&started);
    let config = Config::new()
        .processes(2)
        .worker_command(move |executable| {
            counter.fetch_add(1, Ordering::Relaxed);
            Command::new(executable)
        });
    config.install().unwrap();
    assert_eq!(
        cpu(answer, ()).result().unwrap_err().kind(),
        ErrorKind::NotInitialised
    );
    unsync::init();
    let calls: Vec<_> = (0..10).map(|_| cpu(answer, ())).collect();
    for call in calls {
        let error = call.result().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WorkerLost, "{error}");
        let text = error.to_string();
        // And what the harness says about an argument that it does not know.
        let hints = [
            "`answer` cannot run: is there a `unsync::test_worker!()` in this test binary?",
            "unsync-worker",
        ];
        for hint in hints {
            assert!(text.contains(hint), "{hint:?} is missing in: {text}");
        }
    }
    let started = started.load(Ordering::Relaxed);
    assert!(started <= 12, "{started} processes were started");
}
