//! Two sleeps at once take the time of one: `spawn` starts the work, `result` only waits for it.
//!
//! Run with `cargo run --release --example sleep`.

use std::time::{Duration, Instant};

fn main() -> Result<(), unsync::Error> {
    let tenth = Duration::from_millis(100);
    let start = Instant::now();
    let one = unsync::spawn(unsync::sleep(tenth));
    let two = unsync::spawn(unsync::sleep(tenth));
    println!("started two sleeps of 0.1 s");
    one.result()?;
    two.result()?;
    println!("both done after {:.3} s", start.elapsed().as_secs_f64());
    Ok(())
}
