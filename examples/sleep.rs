//! Two sleeps at once take the time of one: `spawn` starts the work, `result` only waits for it.
//!
//! Run with `cargo run --release --example sleep`.

mod support;

use std::time::{Duration, Instant};

fn main() -> Result<(), unsync::Error> {
    support::arguments("sleep", 0);
    let second = Duration::from_secs(1);
    let start = Instant::now();
    let one = unsync::spawn(unsync::sleep(second));
    let two = unsync::spawn(unsync::sleep(second));
    println!("started two sleeps of 1 s");
    one.result()?;
    two.result()?;
    println!("both done after {:.3} s", start.elapsed().as_secs_f64());
    Ok(())
}
