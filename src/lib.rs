//! Async, blocking and CPU-bound work from ordinary programs, and one kind of future for all three.
//!
//! There is no runtime to set up: [`spawn`] runs a future on an ambient thread, [`thread`] runs a closure on
//! an elastic pool, and [`cpu`](cpu()) runs a function in a worker process that may crash and can be killed.
//! Each starts its work at once and returns an [`Unfuture`]: await it on any executor, or block for it with
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
//! | [`spawn`], [`spawn_local`], [`spawn_now`] | on the ambient thread, one for the process; `spawn_now` polls once on the calling thread first | drops the future, there |
//! | [`thread`] | on a pool thread; the pool grows as jobs block | while queued; a running job sees [`is_cancelled`] |
//! | [`cpu`](cpu()), [`cpu!`] | in a worker process, up to one for each processor | while queued; a running call is killed |
//! | [`unsync!`] | by the kind of function | as above |
//! | [`block_on`] | on the calling thread | |
//!
//! Work continues when its `Unfuture` is dropped. [`cancel_on_drop`](Unfuture::cancel_on_drop),
//! [`timeout`](Unfuture::timeout) and [`Canceller`] end it early.
//!
//! # What to use
//!
//! | to | use |
//! | --- | --- |
//! | start work | [`spawn`], [`spawn_local`], [`spawn_now`], [`thread`], [`cpu`](cpu()), [`cpu!`], [`unsync!`] |
//! | keep a value on one thread | [`Pinned`] |
//! | wait for it | `.await`, [`result`](Unfuture::result), [`wait`](Unfuture::wait), [`wait_timeout`](Unfuture::wait_timeout), [`block_on`] |
//! | continue with its value | [`map`](Unfuture::map), [`and_then`](Unfuture::and_then), [`then`](Unfuture::then), [`map_thread`](Unfuture::map_thread), [`map_cpu`](Unfuture::map_cpu), [`flatten`](Unfuture::flatten), [`on_done`](Unfuture::on_done) |
//! | gather many | [`join_all`], [`settle_all`], [`race`], [`as_completed`] |
//! | let many wait for one | [`shared`](Unfuture::shared) |
//! | bound how many run at once | [`Limit`] |
//! | end it early | [`cancel`](Unfuture::cancel), [`timeout`](Unfuture::timeout), [`run_timeout`](Unfuture::run_timeout), [`cancel_on_drop`](Unfuture::cancel_on_drop), [`canceller`](Unfuture::canceller), [`is_cancelled`] |
//! | measure time | [`sleep`](sleep()), [`sleep_until`], [`timeout`](timeout()), [`interval`](interval()), [`yield_now`] |
//! | set a value from elsewhere | [`promise`](promise()), [`Unfuture::ready`], [`Unfuture::failed`], `Unfuture::from` a thread or a channel |
//! | call functions on other machines | [`Config::host`] |
//! | make functions callable in workers | [`init`], [`register!`], [`test_worker!`], [`wire!`], [`Wire`], [`warm`], [`is_worker`] |
//! | follow the progress of a call | [`progress`], [`on_progress`](Unfuture::on_progress) |
//! | look inside | [`stats`], [`tasks`], [`Config::on_unobserved`], [`Config::stall`] |
//! | end | [`drain`], [`shutdown`] |
//!
//! The [`cookbook`] has runnable recipes for everyday tasks. [`hosts`] explains `cpu` calls on other
//! machines.
//!
//! # What may go wrong
//!
//! Whatever dies, every `Unfuture` resolves exactly once, to a value or to an [`Error`] that says what
//! happened to which work, and where the work was started. A panic ends the work that panicked and nothing
//! else. [`ErrorKind`] lists the kinds.
//!
//! Blocking the ambient thread would stop every async task, so no wait of this library blocks it: there,
//! [`result`](Unfuture::result) of pending work fails as [`ErrorKind::WouldBlock`]. The same holds on threads
//! that decode results. Blocking in a pool job is safe: a waiting thread does not count against the limit, so
//! nested waits cannot deadlock.
//!
//! # Worker processes
//!
//! A worker is another process that runs the same executable; [`init`] makes the process a worker, as
//! [`test_worker!`] does in a test binary. [`register!`] makes functions callable there. Arguments and results
//! travel as [`Wire`]. If a worker dies, only the call that it ran fails; calls that it had not started go to
//! another worker. Workers end with the program, however the program ends.
//!
//! # The end of the program
//!
//! When `main` returns, unfinished work ends with the process, as daemon threads do. [`drain`] waits for that
//! work; [`shutdown`] waits, stops the rest, and ends all threads and processes.
//!
//! If the program ends while a call runs, the worker process exits as if by [`std::process::exit`]: its exit
//! handlers run while the function is still running on another thread.
//!
//! # Settings
//!
//! All settings are optional. [`Config`] has all of them, and environment variables set some from outside:
//!
//! | variable | meaning |
//! | --- | --- |
//! | `UNSYNC_THREADS`, `UNSYNC_PROCESSES` | how many pool threads may run jobs, and how many worker processes may live |
//! | `UNSYNC_DEBUG=1` | reports on standard error: tasks that block the ambient thread, failures that were never observed, workers that a signal has stopped |
//! | `UNSYNC_LINK=tcp`, `relay` | for tests: workers connect over loopback TCP instead of a Unix socket, or through a relay, as on another machine |
//!
//! An empty variable counts as unset. Invalid values are refused: thread jobs, pinned values and worker calls
//! resolve as [`ErrorKind::NotInitialised`], and the error says what is wrong; async tasks run with the
//! defaults.
//!
//! # Compared with others
//!
//! | | what it does better | what this library does instead |
//! | --- | --- | --- |
//! | tokio | sockets, files and signals on a reactor; tasks on all cores; a large ecosystem | nothing to set up, no dependencies, `result()` from anywhere; CPU-bound work can be killed |
//! | smol | the same in smaller parts; you can bring your own executor | one call each for the three kinds of work |
//! | rayon | parallel iterators over borrowed data, at nanoseconds for each item | work that blocks, fails, crashes, or must be stopped |
//! | procspawn | anything that serde can encode; standard streams of a worker as pipes | calls are batched; a worker that dies fails one call; no dependencies |
//! | `concurrent.futures` (Python) | any picklable function, without registration | a worker that dies fails one call, not the pool; running calls can be cancelled |
//! | `unsync` (Python) | a decorator for any function of the language | types, real kills, no deadlock of nested waits |
//!
//! `benches/peers/RESULTS.md` in the repository has measurements against them.
//!
//! # Versions
//!
//! Versions follow semver. Raising the minimum Rust version, which is 1.90, takes a minor version. Any
//! version may add error kinds. The texts of errors and reports, and what crosses between a program and its
//! workers, are not part of the interface.
//!
//! # Dependencies and unsafe code
//!
//! No dependencies, no unsafe code, std only. [`register!`] writes the one attribute that is outside
//! safe Rust, `#[unsafe(link_section)]`, and says so.
//!
//! # For contributors
//!
//! An [`Unfuture`] holds a slot, the cell that its outcome goes into, behind whatever produces the outcome:
//! an async task, a job of the thread pool, a call of the process pool, or a promise. The three engines
//! resolve slots and know nothing of each other. Continuations and combinators are async tasks
//! that await other `Unfuture`s, and limits and shared values stand beside them.
//!
//! - **Ambient thread** (`ambient/`): a loop over a run queue, a `std::sync::mpsc` channel that other threads
//!   send to, and timers.
//! - **Thread pool** (`threads`): a queue under one lock, and a pure function that decides when a thread is
//!   woken or started.
//! - **Process pool** (`processes/`): a scheduler without I/O takes events and returns effects. Reader
//!   threads, one for each worker, and one supervisor thread feed it events and carry out its effects.
//!
//! The invariants, and what guards each:
//!
//! | invariant | guarded by |
//! | --- | --- |
//! | no dependencies | `.ci/run`: "manifest" |
//! | no unsafe code | `unsafe_code = "forbid"` in `Cargo.toml` |
//! | each file uses only what lies below it, but for a few listed exceptions; `cfg` in one file | `tests/floors.rs` |
//! | every `Unfuture` resolves exactly once, whatever dies | `tests/combinations.rs`, `tests/beneath.rs`, `tests/crash_table.rs`, `tests/soak.rs`, the simulation of the scheduler in `tests/simulation` |
//! | no wake-up is lost and every race has one winner, in every schedule with two preemptions | `tests/models`: `slot`, `fate`, `promise`, `block_on`, `ambient`, `timer`, `pool`, `ready-set`, `limit` |
//! | no lock is held while foreign code runs | tests named `…_may_call_back`, and `foreign_code_may_wait_while_an_outcome_is_handed_on` |
//! | a panic ends a step, never a loop | tests named `…_panics_…` in `tests/ambient.rs`, `tests/threads.rs`, `tests/pinned.rs` |
//! | `result` on the ambient thread never blocks | `by_state_on_the_ambient_thread`, `the_ambient_thread_refuses_to_block` |
//! | foreign code on our own threads may not wait, and has stack enough | tests named `…_may_not_wait`, `large_values_are_decoded_wherever_they_arrive` |
//! | nothing goes through a lock that the program can hold | `reports_do_not_wait_for_whoever_holds_standard_error` |
//! | nothing that may have run is run again | `tests/crash_table.rs`, `tests/hosts/storm.rs`, the simulation |
//! | no worker outlives the program | `tests/faults/orphans.rs`, `tests/hosts/lives.rs` |
//! | idle costs nothing, and nothing grows | `tests/idle.rs`, `tests/soak.rs` |

// The modules are in groups, roughly from the ground up. `tests/floors.rs` has the exact order with its few
// exceptions, and checks it. Writing to standard error without its lock differs by platform, so
// `log` is handed down from the platform file.
use processes::log;

mod current;
mod error;
mod progress;
mod spin;
mod sync;

mod block_on;
mod slot;
mod stop;
mod unfuture;

mod config;
mod engine;
mod stalls;

mod ambient;
mod processes;
mod threads;

mod combine;
mod continuations;
mod convert;
pub mod cookbook;
pub mod hosts;
mod lifecycle;
mod limit;
mod macros;
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
pub use current::is_cancelled;
pub use engine::{Stats, TaskInfo, WorkKind, WorkState};
pub use error::{Error, ErrorKind};
pub use lifecycle::{drain, shutdown, stats, tasks};
pub use limit::Limit;
pub use pinned::Pinned;
pub use processes::{Entrypoint, Wire, init, is_worker, progress, warm};
pub use shared::Shared;
pub use threads::thread;
pub use unfuture::{Canceller, Promise, Unfuture, promise};

/// For the macros, which expand in other crates.
#[doc(hidden)]
pub mod __private {
    pub use crate::processes::registry::{Entry, Serve, id};
    pub use crate::processes::worker::{set_test_worker, test_worker};
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
