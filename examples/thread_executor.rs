//! Ten blocking sleeps at once take the time of one, even on two cores: the thread pool grows with
//! blocking work.
//!
//! Run with `cargo run --release --example thread_executor`.

mod support;

use std::thread::sleep;
use std::time::{Duration, Instant};

const TENTH: Duration = Duration::from_millis(100);

unsync::unsync! {
    fn doze(number: u32) -> u32 {
        sleep(TENTH);
        number
    }
}

fn main() -> Result<(), unsync::Error> {
    support::arguments("thread_executor", 0);
    let start = Instant::now();
    let dozing: Vec<_> = (0..10).map(|_| unsync::thread(|| sleep(TENTH))).collect();
    for one in dozing {
        one.result()?;
    }
    println!(
        "thread:  10 done after {:.3} s",
        start.elapsed().as_secs_f64()
    );

    let start = Instant::now();
    let numbers = unsync::join_all((0..10).map(doze)).result()?;
    println!(
        "unsync!: {} done after {:.3} s",
        numbers.len(),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}
