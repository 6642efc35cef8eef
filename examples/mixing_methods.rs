//! Work of different kinds in one chain: ten requests, each on a pool thread and then on the ambient
//! thread, gathered by an async function.
//!
//! Run with `cargo run --release --example mixing_methods`.

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use unsync::{Error, Unfuture};

const TENTH: Duration = Duration::from_millis(100);

unsync::unsync! {
    fn download(number: u64) -> (u64, u64) {
        std::thread::sleep(TENTH);
        (number, number + 1)
    }
    async fn gather(requests: Vec<Unfuture<(u64, u64)>>) -> Result<BTreeMap<u64, u64>, Error> {
        Ok(unsync::join_all(requests).await?.into_iter().collect())
    }
}

async fn process((number, fetched): (u64, u64)) -> (u64, u64) {
    unsync::sleep(TENTH).await;
    (number, fetched * 2)
}

fn main() -> Result<(), Error> {
    support::arguments("mixing_methods", 0);
    let start = Instant::now();
    let requests = (0..10)
        .map(|number| download(number).and_then(process))
        .collect();
    let answers = gather(requests).flatten().result()?;
    println!("{answers:?} after {:.3} s", start.elapsed().as_secs_f64());
    Ok(())
}
