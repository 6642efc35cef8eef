//! Limits and switches: read once, at first use.
//!
//! Floor 2: imports only the error.

use std::env;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use crate::error::{Error, ErrorKind};

/// What the engines go by.
pub(crate) struct Settings {
    /// Threads of the pool that may run at once; those that block in `result()` do not count.
    pub(crate) threads: usize,
    /// Worker processes that may live at once.
    pub(crate) processes: usize,
    /// How long an idle pool thread or worker process waits for work before it ends.
    pub(crate) keep_alive: Duration,
    /// The largest payload of a frame: encoded arguments, or an encoded result.
    pub(crate) frame_bytes_max: usize,
    /// How long a worker process may take to connect.
    pub(crate) start_timeout: Duration,
}

/// As many as tokio's blocking pool: enough for blocking work, and few enough for any machine.
const THREADS: usize = 512;
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const FRAME_BYTES_MAX: usize = 1 << 30;
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// The settings in force, or what is wrong with them.
pub(crate) fn settings() -> Result<&'static Settings, Error> {
    static SETTINGS: OnceLock<Result<Settings, Error>> = OnceLock::new();
    SETTINGS.get_or_init(read).as_ref().map_err(Error::clone)
}

fn read() -> Result<Settings, Error> {
    Ok(Settings {
        threads: from_env("UNSYNC_THREADS")?.unwrap_or(THREADS),
        processes: from_env("UNSYNC_PROCESSES")?.unwrap_or_else(cores),
        keep_alive: KEEP_ALIVE,
        frame_bytes_max: FRAME_BYTES_MAX,
        start_timeout: START_TIMEOUT,
    })
}

/// The processors that this process may use; respects affinity and cgroups.
pub(crate) fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| thread::available_parallelism().map_or(1, usize::from))
}

fn from_env(name: &str) -> Result<Option<usize>, Error> {
    /// More than this is a slip of the pen.
    const MOST: usize = 1 << 20;
    let Some(value) = env::var_os(name) else {
        return Ok(None);
    };
    match value.to_str().and_then(|text| text.trim().parse().ok()) {
        Some(number @ 1..=MOST) => Ok(Some(number)),
        _ => Err(Error::new(
            ErrorKind::NotInitialised,
            format!("{name} is {value:?}, expected a whole number from 1 to {MOST}"),
        )),
    }
}
