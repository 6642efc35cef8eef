//! Async, blocking and CPU-bound work from ordinary programs, and one kind of future for all three.
//!
//! There is no runtime to set up: [`spawn`] runs a future on an ambient thread, [`thread`] a closure
//! on an elastic pool, [`cpu`](cpu()) a function in a worker process that can crash and be killed.
//! Each starts at once and gives an [`Unfuture`], to be awaited from any executor or waited for with
//! [`result`](Unfuture::result).
//!
//! ```
//! # const TENTH: std::time::Duration = std::time::Duration::from_millis(100);
//! fn primes(below: u64) -> u64 {
//!     (2..below).filter(|n| (2..*n).take_while(|d| d * d <= *n).all(|d| n % d != 0)).count() as u64
//! }
//! unsync::register!(primes);
//!
//! fn main() -> Result<(), unsync::Error> {
//!     unsync::init(); // a worker process stops here and serves
//!     let page = unsync::spawn(async {
//!         unsync::sleep(TENTH).await;
//!         "async, on the ambient thread"
//!     });
//!     let text = unsync::thread(|| std::fs::read_to_string("a.txt")); // blocking, on a pool thread
//!     let count = unsync::cpu(primes, (10_000,)); // CPU-bound, in a worker process
//!     println!("{} {:?} {}", page.result()?, text.result()?, count.result()?);
//!     Ok(())
//! }
//! ```
//!
//! # Where work runs
//!
//! | call | runs | cancelling it |
//! | --- | --- | --- |
//! | [`spawn`], [`spawn_local`], [`spawn_now`] | on the ambient thread, one for the process | drops the future, there |
//! | [`thread`] | on a pool thread; the pool grows as jobs block | while queued; a running job sees [`is_cancelled`] |
//! | [`cpu`](cpu()), [`cpu!`] | in a worker process, up to one for each processor | while queued; a running call is killed |
//! | [`unsync!`] | by the kind of function | as above |
//! | [`block_on`] | on the calling thread | |
//!
//! Work goes on when its `Unfuture` is dropped. [`cancel_on_drop`](Unfuture::cancel_on_drop),
//! [`timeout`](Unfuture::timeout) and [`Canceller`] end it early.
//!
//! # What may go wrong
//!
//! Every `Unfuture` resolves exactly once, whatever dies: to a value, or to an [`Error`] that says what
//! happened, to whom, and where it was started. A panic ends the work that panicked and nothing else.
//! [`ErrorKind`] lists the kinds.
//!
//! Waiting on the ambient thread would stop every async task, so nothing here does:
//! [`result`](Unfuture::result) of pending work is [`ErrorKind::WouldBlock`] there. The same holds where a
//! result is decoded. Blocking in a pool job is safe: a thread that waits does not count against the limit,
//! so nested waits cannot deadlock.
//!
//! # Worker processes
//!
//! A worker is a further process of the same executable, which [`init`] turns into one; in a test
//! binary [`test_worker!`] does. Functions are made known by [`register!`], and their arguments and
//! results travel as [`Wire`]. A worker that dies fails the one call that it ran; calls it had not
//! started go to another. Workers end with the program, however that ends.
//!
//! # The end of the program
//!
//! Like daemon threads, unfinished work ends unheard with the process. [`drain`] waits for it,
//! [`shutdown`] waits, stops the rest and ends all threads and processes.
//!
//! If the program ends while a call runs, the worker process exits as by [`std::process::exit`]: its exit
//! handlers run while the function still runs on another thread.
//!
//! # Settings
//!
//! None are needed. [`Config`] has them; `UNSYNC_THREADS` and `UNSYNC_PROCESSES` set the two limits
//! from outside, `UNSYNC_DEBUG=1` reports on standard error stalls, failures that nobody looked at and
//! workers that a signal has stopped, and `UNSYNC_LINK=tcp` makes workers connect over loopback TCP
//! instead of a Unix socket. An empty variable counts as unset. Values that make no sense are refused:
//! thread jobs, pinned values and worker calls resolve as [`ErrorKind::NotInitialised`], which says what is
//! wrong; async tasks run with the defaults.
//!
//! # What it is made of
//!
//! No dependencies, no unsafe code, std only. [`register!`] writes the one attribute that is outside
//! safe Rust, `#[unsafe(link_section)]`, and says so.

// Floors, from the ground up. Nothing imports a floor above its own, no engine imports another, and
// platform differences stand in processes/transport.rs and in `register!` only. How to write to standard error
// without its lock is one of them: so `log` is called from below.
mod error;
mod progress;
mod role;
mod spin;

mod block_on;
mod slot;
mod unfuture;

mod config;
mod engine;
mod watch;

mod ambient;
mod processes;
mod threads;

mod combine;
mod continuations;
pub mod cookbook;
mod lifecycle;
mod limit;
mod macros;
mod outside;
mod pinned;
mod shared;

pub use ambient::{
    Interval, MissedTicks, Sleep, Timeout, YieldNow, interval, sleep, sleep_until, spawn,
    spawn_local, spawn_now, timeout, yield_now,
};
pub use block_on::block_on;
pub use combine::{AsCompleted, as_completed, join_all, race, settle_all};
pub use config::Config;
pub use continuations::cpu;
pub use engine::{Stats, TaskInfo, WorkKind, WorkState};
pub use error::{Error, ErrorKind};
pub use lifecycle::{drain, shutdown, stats, tasks};
pub use limit::Limit;
pub use pinned::Pinned;
pub use processes::{Entrypoint, Wire, init, is_worker, progress, warm};
pub use role::is_cancelled;
pub use shared::Shared;
pub use threads::thread;
pub use unfuture::{Canceller, Promise, Unfuture, promise};

/// For the macros, which expand in other crates.
#[doc(hidden)]
pub mod __private {
    pub use crate::processes::registry::{Entry, Registered, Registration};
    pub use crate::processes::worker::{set_test_worker, test_worker};
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
