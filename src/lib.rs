//! unsync
mod ambient;
mod block_on;
mod chain;
mod combine;
mod config;
mod deadline;
mod decorate;
mod ending;
mod error;
mod processes;
mod spin;
mod threads;
mod unfuture;
mod watch;
pub use ambient::{Sleep, YieldNow, sleep, sleep_until, spawn, spawn_local, spawn_now, yield_now};
pub use block_on::block_on;
pub use chain::cpu;
pub use combine::join_all;
pub use config::Config;
pub use ending::{drain, shutdown};
pub use error::{Error, ErrorKind};
pub use processes::{Entrypoint, Wire, init, is_worker, progress, warm};
pub use threads::thread;
pub use unfuture::{Canceller, is_cancelled};
pub use unfuture::{Promise, Unfuture, promise};

/// For the macros.
#[doc(hidden)]
pub mod __private {
    pub use crate::processes::registry::{Entry, Registered, Registration};
    pub use crate::processes::worker::{set_test_worker, test_worker};
}
