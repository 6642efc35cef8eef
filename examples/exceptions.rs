//! Errors appear where the outcome is looked at, by `result` and by `.await` alike, and say which
//! line started the work. A panic ends its own work and nothing else.
//!
//! Run with `cargo run --release --example exceptions`. The panics also report themselves on standard
//! error, as panics do.

mod support;

use std::time::Instant;

use unsync::{Error, Unfuture};

unsync::unsync! {
    async fn on_the_ambient_thread() -> u32 { panic!("async trouble") }
    fn on_a_pool_thread() -> u32 { panic!("blocking trouble") }
    #[cpu] fn in_a_worker_process() -> u32 { panic!("computing trouble") }
}

fn show(seen_by: &str, outcome: Result<u32, Error>) {
    match outcome {
        Ok(value) => println!("{seen_by}: {value}"),
        Err(error) => println!("{seen_by}: {:?}: {error}", error.kind()),
    }
}

async fn observe(work: Unfuture<u32>) {
    show(".await  ", work.await);
}

fn main() -> Result<(), Error> {
    unsync::init();
    support::arguments("exceptions", 0);
    let start = Instant::now();
    for (first, second) in [
        (on_the_ambient_thread(), on_the_ambient_thread()),
        (on_a_pool_thread(), on_a_pool_thread()),
        (in_a_worker_process(), in_a_worker_process()),
    ] {
        first.wait();
        println!("failed, unseen so far: {first:?}");
        show("result()", first.result());
        unsync::spawn(observe(second)).result()?;
    }
    show("after all that", unsync::thread(|| 42).result());
    println!("done after {:.3} s", start.elapsed().as_secs_f64());
    Ok(())
}
