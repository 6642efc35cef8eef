//! A continuation: `then` receives the finished `Unfuture`, so `result` in it never blocks.
//!
//! Run with `cargo run --release --example continuation`.

mod support;

use std::time::{Duration, Instant};

use unsync::{Error, Unfuture};

const TENTH: Duration = Duration::from_millis(100);

unsync::unsync! {
    async fn initiate(request: u64) -> u64 {
        unsync::sleep(TENTH).await;
        request + 1
    }
}

async fn process(task: Unfuture<u64>) -> Result<u64, Error> {
    unsync::sleep(TENTH).await;
    Ok(task.result()? * 2)
}

fn main() -> Result<(), Error> {
    support::arguments("continuation", 0);
    let start = Instant::now();
    let answer = initiate(3).then(process).flatten().result()?;
    println!("{answer} after {:.3} s", start.elapsed().as_secs_f64());
    Ok(())
}
