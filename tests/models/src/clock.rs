//! Time in the models: it stands still, unless a model [starts](start) the clock.
//!
//! Then it jumps from one alarm to the next. The first few alarms ring at any time; later ones ring only when
//! nothing else can run, so that every wait with a limit ends and no loop of such waits runs forever.

use std::cell::{Cell, RefCell};
use std::ops::{Add, AddAssign, Sub};
use std::sync::Arc;
use std::time::Duration;

use crate::sync::{Condvar, Mutex, PoisonError};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(Duration);

impl Instant {
    pub fn now() -> Instant {
        Instant(NOW.get())
    }
    pub fn elapsed(&self) -> Duration {
        NOW.get() - self.0
    }
    pub fn checked_add(&self, time: Duration) -> Option<Instant> {
        self.0.checked_add(time).map(Instant)
    }
    pub fn saturating_duration_since(&self, earlier: Instant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, time: Duration) -> Instant {
        Instant(self.0 + time)
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, time: Duration) -> Instant {
        Instant(self.0 - time)
    }
}

impl Sub for Instant {
    type Output = Duration;
    fn sub(self, earlier: Instant) -> Duration {
        self.0 - earlier.0
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, time: Duration) {
        self.0 += time;
    }
}

type Ring = Arc<dyn Fn()>;

thread_local! {
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static RUNS: Cell<bool> = const { Cell::new(false) };
    static ALARMS: RefCell<Vec<(u64, Duration, Ring)>> = const { RefCell::new(Vec::new()) };
    static NUMBER: Cell<u64> = const { Cell::new(0) };
}

static GATE: Mutex<()> = Mutex::new(());
static CHANGED: Condvar = Condvar::new();

pub(crate) fn reset() {
    NOW.set(Duration::ZERO);
    RUNS.set(false);
    ALARMS.take().into_iter().for_each(std::mem::forget);
}

/// An alarm that is unset when it is dropped.
pub(crate) struct Alarm(u64, Duration);

impl Alarm {
    pub(crate) fn has_rung(&self) -> bool {
        NOW.get() >= self.1
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        ALARMS.with_borrow_mut(|alarms| alarms.retain(|(number, ..)| *number != self.0));
    }
}

pub(crate) fn set_alarm(time: Duration, ring: impl Fn() + 'static) -> Alarm {
    let (number, at) = (NUMBER.get(), NOW.get().saturating_add(time));
    if RUNS.get() {
        let gate = GATE.lock();
        NUMBER.set(number + 1);
        ALARMS.with_borrow_mut(|alarms| alarms.push((number, at, Arc::new(ring))));
        drop(gate);
        CHANGED.notify_one();
    }
    Alarm(number, at)
}

/// Starts the clock; `early` alarms ring at any time.
pub(crate) fn start(mut early: usize) {
    RUNS.set(true);
    loom::thread::spawn(move || {
        let mut gate = GATE.lock().unwrap_or_else(PoisonError::into_inner);
        while RUNS.get() {
            let first = ALARMS.with_borrow(|alarms| alarms.iter().map(|(_, at, _)| *at).min());
            let Some(first) = first else {
                gate = CHANGED.wait(gate).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(gate);
            match early.checked_sub(1) {
                Some(left) => early = left,
                None => loom::thread::yield_now(),
            }
            NOW.set(first.max(NOW.get()));
            let due = ALARMS.with_borrow(|alarms| {
                let due = alarms.iter().filter(|(_, at, _)| *at <= first);
                due.map(|(.., ring)| Arc::clone(ring)).collect::<Vec<_>>()
            });
            due.into_iter().for_each(|ring| ring());
            gate = GATE.lock().unwrap_or_else(PoisonError::into_inner);
        }
    });
}

pub(crate) fn runs() -> bool {
    RUNS.get()
}

pub(crate) fn stop() {
    drop(GATE.lock());
    RUNS.set(false);
    CHANGED.notify_one();
}
