//! Hostile functions beside honest ones, all in worker processes: the honest ones finish with the
//! right results, and one line says what became of each hostile one.
//!
//! Run with `cargo run --release --example crashproof`. The crashes' own output goes to
//! standard error. The exit code is 0 if everything went as it should, and 1 if not.

mod support;

use std::hint::{black_box, spin_loop};
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;
use std::process::{self, Command, ExitCode};
use std::time::{Duration, Instant};

use unsync::Config;
use unsync::ErrorKind::{Panicked, TimedOut, WorkerLost};

/// The honest calls, and how many numbers each looks at.
const SLICES: usize = 40;
const SLICE: usize = 50_000;

unsync::unsync! {
    #[cpu] fn count_primes(among: Range<usize>) -> usize {
        let is_prime = |n: &usize| *n > 1 && (2..=n.isqrt()).all(|divisor| n % divisor != 0);
        among.filter(is_prime).count()
    }

    #[cpu] fn aborts() { process::abort() }
    #[cpu] fn overflows_its_stack() {
        // Opaque to the optimizer, which would turn the recursion into a loop.
        let deeper: fn() = black_box(overflows_its_stack);
        deeper();
        black_box(deeper);
    }
    #[cpu] fn never_ends() { loop { spin_loop() } }
    #[cpu] fn exits_as_if_all_were_well() { process::exit(0) }
    #[cpu] fn panics() { panic!("not what I was made for") }
    #[cpu] fn takes_a_gibibyte() { drop(black_box(vec![1_u8; 1 << 30])) }
    #[cpu] fn kills_itself() {
        let killed = Command::new("kill").args(["-KILL", &process::id().to_string()]).status();
        panic!("still alive: {killed:?}")
    }
}

fn main() -> ExitCode {
    unsync::init();
    support::arguments("crashproof", 0);
    match crashproof() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "crashproof: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether everything went as it should.
fn crashproof() -> io::Result<bool> {
    let (began, mut out) = (Instant::now(), io::stdout().lock());
    let has_limit = cfg!(target_os = "linux");
    if has_limit {
        let installed = Config::new().worker_command(limited).install();
        installed.map_err(io::Error::other)?;
    } else {
        writeln!(out, "`takes_a_gibibyte` is left out: no limit here")?;
    }

    let primes = sieve();
    let count = |n| (count_primes(n * SLICE..(n + 1) * SLICE), primes[n]);
    let mut honest: Vec<_> = (0..SLICES / 2).map(count).collect();
    // The hostile calls start in the middle of the honest ones.
    let half_a_second = Duration::from_millis(500);
    let mut hostile = vec![
        (aborts(), WorkerLost),
        (overflows_its_stack(), WorkerLost),
        (never_ends().run_timeout(half_a_second), TimedOut),
        (exits_as_if_all_were_well(), WorkerLost),
        (panics(), Panicked),
    ];
    hostile.extend(has_limit.then(|| (takes_a_gibibyte(), WorkerLost)));
    hostile.extend(cfg!(unix).then(|| (kills_itself(), WorkerLost)));
    honest.extend((SLICES / 2..SLICES).map(count));

    let (calls, mut survived) = (hostile.len(), 0);
    for (call, expected) in hostile {
        match call.result() {
            Err(error) if error.kind() == expected => {
                survived += 1;
                let told = error.to_string();
                // The rest is already on standard error, or is the line that started the call.
                let end = told.find("; its last output").or(told.find(" (started"));
                writeln!(out, "{}", &told[..end.unwrap_or(told.len())])?;
            }
            outcome => writeln!(out, "WRONG: {outcome:?}, not {expected:?}")?,
        }
    }
    let mut right = 0;
    for (call, expected) in honest {
        match call.result() {
            Ok(counted) if counted == expected => right += 1,
            outcome => writeln!(out, "WRONG: {outcome:?}, not {expected} primes")?,
        }
    }
    write!(out, "honest: {right} of {SLICES} right; ")?;
    write!(out, "hostile: {survived} of {calls} survived; ")?;
    writeln!(out, "{:.3} s", began.elapsed().as_secs_f64())?;
    Ok(right == SLICES && survived == calls)
}

/// Starts a worker process with an address space of 512 MiB: enough, and less than a gibibyte.
fn limited(executable: &Path) -> Command {
    let script = r#"ulimit -v 524288; exec "$0" "$@""#;
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).arg(executable);
    shell
}

/// How many primes each honest call has to find, computed in another way: the sieve of Eratosthenes.
fn sieve() -> Vec<usize> {
    let mut is_prime = vec![true; SLICES * SLICE];
    is_prime[..2].fill(false);
    for n in 2..=is_prime.len().isqrt() {
        let multiples = is_prime[n * n..].iter_mut().step_by(n);
        multiples.for_each(|is_prime| *is_prime = false);
    }
    let count = |slice: &[bool]| slice.iter().filter(|is_prime| **is_prime).count();
    is_prime.chunks(SLICE).map(count).collect()
}
