//! The settings, and how threads are started: what `crate::config` is in the models.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use crate::error::Error;

pub(crate) type AroundPoll = Box<dyn Fn(&mut dyn FnMut()) + Send + Sync>;

pub(crate) struct Settings {
    pub(crate) keep_alive: Duration,
    pub(crate) around_poll: Option<AroundPoll>,
    pub(crate) stall: Option<Duration>,
}

static SETTINGS: Settings = Settings {
    keep_alive: Duration::from_secs(10),
    around_poll: None,
    stall: None,
};

std::thread_local! {
    /// How many threads the pool may have.
    pub(crate) static LIMIT: Cell<usize> = const { Cell::new(2) };
}

impl Settings {
    pub(crate) fn threads(&self) -> usize {
        LIMIT.get()
    }
}

pub(crate) fn settings() -> Result<&'static Settings, Error> {
    Ok(&SETTINGS)
}

pub(crate) fn cores() -> usize {
    1
}

pub(crate) fn on_thread_start() {}

pub(crate) fn start_thread(_: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    loom::thread::spawn(body);
    Ok(())
}

pub(crate) fn start_deep_thread(name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    start_thread(name, body)
}
