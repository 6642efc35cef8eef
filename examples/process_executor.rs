//! CPU-bound work, first one after the other in this process and then at once in worker processes.
//!
//! Run with `cargo run --release --example process_executor`.

mod support;

use std::collections::BTreeSet;
use std::process;
use std::time::Instant;

const SPINS: u64 = 10;
const TURNS: u64 = 200_000_000;

/// Turns a random number generator; returns its last number, and the process that did it.
fn spin(seed: u64) -> (u64, u32) {
    let turn = |x: u64, _| x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    ((0..TURNS).fold(seed, turn), process::id())
}
unsync::register!(spin);

fn main() -> Result<(), unsync::Error> {
    unsync::init();
    support::arguments("process_executor", 0);

    let start = Instant::now();
    let serial: Vec<_> = (0..SPINS).map(spin).collect();
    println!(
        "serial:  {SPINS} spins in {:.3} s, process {}",
        start.elapsed().as_secs_f64(),
        process::id()
    );

    let start = Instant::now();
    let workers = unsync::join_all((0..SPINS).map(|seed| unsync::cpu(spin, (seed,)))).result()?;
    let processes: BTreeSet<u32> = workers.iter().map(|(_, process)| *process).collect();
    println!(
        "workers: {SPINS} spins in {:.3} s, processes {processes:?}",
        start.elapsed().as_secs_f64()
    );

    assert!(
        serial
            .iter()
            .map(|spun| spun.0)
            .eq(workers.iter().map(|spun| spun.0))
    );
    println!("the same numbers");
    Ok(())
}
