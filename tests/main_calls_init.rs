//! Worker processes of a program with a `main` of its own, which calls `init` oddly: on two threads at
//! once, again within a call, too late, not at all, and in a worker that another version of the library has
//! started.
//! There is no harness, since a harness has its own `main`.
#![forbid(unsafe_code)]

use std::env;
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use unsync::{ErrorKind, Unfuture, cpu, init, is_worker};

// In a program without a harness, this must do nothing.
unsync::test_worker!();

fn double(n: u32) -> u32 {
    n * 2
}

fn starts_again() {
    init();
}
fn arguments() -> Vec<String> {
    env::args().collect()
}
fn print() {
    println!("printed in a worker");
    eprintln!("on both streams");
}
unsync::register!(double, starts_again, arguments, print);

/// Set for worker processes only.
const WORKER: &str = "UNSYNC_TEST_WORKER";

/// The argument of a worker of another version.
const OTHERS: &str = "--unsync-worker=0.0.0";

/// Set for a program whose workers do not come to `init`, and for those workers.
const FORGETFUL: &str = "UNSYNC_TEST_FORGETFUL";

/// Set for a program that does only this, and for its workers.
const PROGRAM: &str = "UNSYNC_TEST_PROGRAM";

/// The time allowed for something that takes milliseconds.
const QUICK: Duration = Duration::from_secs(20);

fn main() {
    let forgetful = env::var(FORGETFUL).unwrap_or_default();
    if forgetful == "worker" {
        process::exit(3);
    }
    if env::var(PROGRAM).is_ok_and(|program| program == "no init") {
        return do_without_init();
    }
    let callers = [(); 2].map(|()| thread::spawn(init));
    for caller in callers {
        caller.join().unwrap();
    }
    if env::args().any(|argument| argument == OTHERS) {
        println!("left for the other version");
        return;
    }
    if forgetful == "program" {
        return be_forgetful();
    }
    match &*env::var(PROGRAM).unwrap_or_default() {
        "pipe" => return pipe(),
        "far" => return be_far(),
        "run out of threads" => return run_out_of_threads(),
        _ => {}
    }
    let came_here = is_worker() || env::var_os(WORKER).is_some();
    assert!(!came_here, "`init` returned in a worker process");
    // For runners that list the tests of a binary, such as cargo-nextest: they find one test.
    if env::args().any(|argument| argument == "--list") {
        if !env::args().any(|argument| argument == "--ignored") {
            println!("main_calls_init: test");
        }
        return;
    }

    // Arguments before that of the worker must not hide it.
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

    if cfg!(unix) {
        let far = in_time(unsync::thread(|| {
            let mut program = Command::new(env::current_exe().unwrap());
            program.env(PROGRAM, "far").status().unwrap()
        }));
        assert!(far.result().unwrap().success());
        println!("two threads that call `init` make one relay ... ok");
    }

    // A program may contain two versions of the library, whose `init` it calls one after the other.
    let own = concat!("--unsync-worker=", env!("CARGO_PKG_VERSION"));
    let told = in_time(cpu(arguments, ())).result().unwrap();
    assert_eq!(told[1..], ["--quiet", own]);
    let others = in_time(unsync::thread(|| {
        let mut others = Command::new(env::current_exe().unwrap());
        others.arg(OTHERS).stdin(Stdio::null()).output().unwrap()
    }));
    let said = others.result().unwrap().stdout;
    assert_eq!(said, b"left for the other version\n");
    println!("`init` takes the workers of its own version ... ok");

    let by_hand = in_time(unsync::thread(|| {
        let mut program = Command::new(env::current_exe().unwrap());
        let endless = std::fs::File::open("/dev/zero").map_or(Stdio::null(), Stdio::from);
        program
            .arg("--unsync-worker")
            .stdin(endless)
            .output()
            .unwrap()
    }));
    let by_hand = by_hand.result().unwrap();
    assert_eq!(by_hand.status.code(), Some(1));
    let said = String::from_utf8_lossy(&by_hand.stderr);
    assert!(said.contains("nobody waits for it"), "{said}");
    println!("a worker that was started by hand ends ... ok");

    let forgetful = in_time(unsync::thread(|| {
        let mut program = Command::new(env::current_exe().unwrap());
        program.env(FORGETFUL, "program").status().unwrap()
    }));
    assert!(forgetful.result().unwrap().success());
    println!("workers that do not come to `init` are told of ... ok");

    let piped = in_time(unsync::thread(|| {
        let mut program = Command::new(env::current_exe().unwrap());
        let ended = program.env(PROGRAM, "pipe").stderr(Stdio::inherit());
        ended.output().unwrap()
    }));
    let piped = piped.result().unwrap();
    assert!(piped.status.success());
    assert_eq!(piped.stdout, b"printed in a worker\n");
    println!("workers whose standard output is a pipe start ... ok");

    let without = in_time(unsync::thread(|| {
        let mut program = Command::new(env::current_exe().unwrap());
        program.env(PROGRAM, "no init").status().unwrap()
    }));
    assert!(without.result().unwrap().success());
    println!("a program that does not call `init` starts no workers ... ok");

    if cfg!(target_os = "linux") {
        let cramped = in_time(unsync::thread(|| {
            let mut program = Command::new("sh");
            let limit = format!("ulimit -v {}; exec \"$0\"", 3 * STACK / 2 / 1024);
            program
                .arg("-c")
                .arg(limit)
                .arg(env::current_exe().unwrap());
            program.env(PROGRAM, "run out of threads").output().unwrap()
        }));
        let cramped = cramped.result().unwrap();
        let said = String::from_utf8_lossy(&cramped.stderr);
        assert!(cramped.status.success(), "{said}");
        println!("workers whose output nobody can read do not start ... ok");
    }

    let error = in_time(cpu(starts_again, ())).result().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Panicked, "{error}");
    assert!(
        error.to_string().contains("first line of `main`"),
        "{error}"
    );
    println!("`init` within a call is its panic ... ok");
}

fn be_forgetful() {
    let config = unsync::Config::new().worker_command(|executable| {
        let mut command = Command::new(executable);
        command.env(FORGETFUL, "worker");
        command
    });
    config.install().unwrap();
    let error = in_time(cpu(double, (1,))).result().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WorkerLost, "{error}");
    let hint = "`double` cannot run: does `main` call `unsync::init()` first?";
    assert!(error.to_string().starts_with(hint), "{error}");
}

/// If this program were taken for a test binary, its workers would run this too, and start workers.
fn do_without_init() {
    let config = unsync::Config::new().worker_command(|_| Command::new("/no/such/program"));
    config.install().unwrap();
    let error = in_time(cpu(double, (1,))).result().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotInitialised, "{error}");
}

fn be_far() {
    let config = unsync::Config::new().processes(0);
    let config = config.host("far", 1, |executable| Command::new(executable));
    config.install().unwrap();
    assert_eq!(in_time(cpu(double, (1,))).result().unwrap(), 2);
    unsync::shutdown(QUICK).unwrap();
}

/// The limit is shorter than that of a start.
fn pipe() {
    let config = unsync::Config::new().worker_command(|executable| {
        let mut command = Command::new(executable);
        command.stdout(Stdio::piped());
        command
    });
    config.install().unwrap();
    in_time(cpu(print, ())).result().unwrap();
    unsync::shutdown(QUICK).unwrap();
}

/// The size of a stack. There is room for one.
const STACK: usize = 1 << 30;

/// The reader of the worker gets a thread, and what would pass on its standard error does not.
fn run_out_of_threads() {
    static STARTS: AtomicU32 = AtomicU32::new(0);
    let config = unsync::Config::new().worker_command(|executable| {
        STARTS.fetch_add(1, Ordering::Relaxed);
        Command::new(executable)
    });
    config.stack_size(STACK).install().unwrap();
    let error = in_time(cpu(print, ())).result().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Os, "{error}");
    assert!(
        error.to_string().starts_with("`print` cannot run: "),
        "{error}"
    );
    assert!(STARTS.load(Ordering::Relaxed) > 0, "no reader: {error}");
}

fn in_time<T>(work: Unfuture<T>) -> Unfuture<T> {
    assert!(work.wait_timeout(QUICK), "{work:?} did not end");
    work
}
