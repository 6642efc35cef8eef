//! What the library says when something goes wrong: a task that blocks the ambient thread, a failure that
//! was never observed, a crash, a wait that would deadlock, a worker that was stopped, and what is still
//! running.
//!
//! Run with `cargo run --release --example diagnose`. `UNSYNC_DEBUG=1` turns on the same reports in any
//! program; this one starts itself again with that variable set.

mod support;

use std::env;
use std::process::{self, Command, ExitCode};
use std::thread;
use std::time::Duration;

use unsync::{Config, Error};

unsync::unsync! {
    #[cpu] fn crashes() { process::abort() }
    #[cpu] fn stops_itself() {
        let stopped = Command::new("kill").args(["-STOP", &process::id().to_string()]).status();
        panic!("still running: {stopped:?}")
    }
    #[cpu] fn computes() { thread::sleep(Duration::from_secs(60)) }
}

fn main() -> ExitCode {
    unsync::init();
    support::arguments("diagnose", 0);
    let done = match env::var("UNSYNC_DEBUG").as_deref() {
        Ok("1") => diagnose(),
        _ => again(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("diagnose: {error}");
            ExitCode::FAILURE
        }
    }
}

fn again() -> Result<(), Error> {
    let mut own = Command::new(env::current_exe()?);
    let status = own.env("UNSYNC_DEBUG", "1").status()?;
    match status.success() {
        true => Ok(()),
        false => Err(std::io::Error::other(status.to_string()).into()),
    }
}

fn diagnose() -> Result<(), Error> {
    Config::new().threads(4).processes(2).install()?;

    eprintln!("\n# A task that blocks the ambient thread");
    unsync::spawn(async { thread::sleep(Duration::from_millis(250)) }).result()?;

    eprintln!("\n# A failure that was never observed");
    drop(unsync::spawn(async { "12 eggs".parse::<u32>().unwrap() }));
    unsync::drain(Duration::from_secs(10));

    eprintln!("\n# A worker process that crashes");
    show(crashes().result());

    eprintln!("\n# A wait that would deadlock");
    show(
        unsync::spawn(async { unsync::spawn(unsync::sleep(Duration::MAX)).result() })
            .flatten()
            .result(),
    );

    if cfg!(target_os = "linux") {
        eprintln!("\n# A worker process that a signal has stopped");
        show(stops_itself().run_timeout(Duration::from_secs(3)).result());
    }

    eprintln!("\n# What is running");
    let _kept = [
        unsync::spawn(unsync::sleep(Duration::MAX)).cancel_on_drop(),
        computes().cancel_on_drop(),
        computes().cancel_on_drop(),
        computes().cancel_on_drop(),
    ];
    thread::sleep(Duration::from_millis(100));
    for work in unsync::tasks() {
        let (name, place) = (work.name.unwrap_or("task"), work.started_at);
        eprintln!("{:?} {name}, {:?}, {place}", work.kind, work.state);
    }
    let stats = unsync::stats();
    eprintln!(
        "{} of {} calls wait",
        stats.calls_queued,
        stats.calls_queued + stats.calls_running
    );
    Ok(())
}

fn show<T>(outcome: Result<T, Error>) {
    match outcome {
        Ok(_) => eprintln!("it went well"),
        Err(error) => eprintln!("{:?}: {error}", error.kind()),
    }
}
