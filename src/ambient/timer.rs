//! Time: the timers that the ambient thread keeps, and the futures that set them.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::{LOCAL, Message, Refused, inject, post};
use crate::error::discard;

/// When, and a number that tells timers of one instant apart.
pub(super) type TimerKey = (Instant, u64);

/// Wakers by deadline. Knows no clock: it is told what time it is.
pub(super) struct Timers(BTreeMap<TimerKey, Waker>);

impl Timers {
    pub(super) const fn new() -> Timers {
        Timers(BTreeMap::new())
    }
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.first_key_value().map(|(key, _)| key.0)
    }
    /// Gives the waker that stood there, to be dropped by the caller.
    pub(super) fn arm(&mut self, key: TimerKey, waker: Waker) -> Option<Waker> {
        self.0.insert(key, waker)
    }
    pub(super) fn disarm(&mut self, key: TimerKey) -> Option<Waker> {
        self.0.remove(&key)
    }
    pub(super) fn drain(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.0).into_values().collect()
    }
    /// Takes out one timer that is due.
    pub(super) fn due(&mut self, now: Instant) -> Option<Waker> {
        let first = self.0.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}

/// Waits for a duration.
///
/// Never ends early; `Duration::MAX` means never. Works on the ambient thread and on any other
/// executor: the timer lives on the ambient thread, whoever polls is woken. It is set by the first
/// poll but counts from this call.
///
/// # Examples
///
/// ```
/// use std::time::{Duration, Instant};
///
/// let started = Instant::now();
/// unsync::block_on(unsync::sleep(Duration::from_millis(10)));
/// assert!(started.elapsed() >= Duration::from_millis(10));
/// ```
pub fn sleep(duration: Duration) -> Sleep {
    Sleep {
        deadline: Instant::now().checked_add(duration),
        armed: None,
    }
}

/// Waits until a point in time. See [`sleep`].
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep {
        deadline: Some(deadline),
        armed: None,
    }
}

/// The future of [`sleep`] and [`sleep_until`]. Dropping it takes the timer back.
#[derive(Debug)]
#[must_use = "a sleep does nothing unless it is awaited"]
pub struct Sleep {
    /// `None`: never.
    deadline: Option<Instant>,
    armed: Option<Armed>,
}

#[derive(Debug)]
struct Armed {
    key: TimerKey,
    waker: Waker,
    /// Set through the injector, so it may still be on its way.
    from_elsewhere: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else {
            return Poll::Pending;
        };
        if Instant::now() >= deadline {
            self.disarm();
            return Poll::Ready(());
        }
        if self
            .armed
            .as_ref()
            .is_some_and(|armed| armed.waker.will_wake(cx.waker()))
        {
            return Poll::Pending;
        }
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // The same key replaces the waker in place.
        let known = self.armed.as_ref().map(|armed| armed.key);
        let key = known.unwrap_or_else(|| (deadline, NEXT.fetch_add(1, Ordering::Relaxed)));
        let waker = cx.waker().clone();
        let from_elsewhere = match arm(key, waker.clone()) {
            Ok(from_elsewhere) => from_elsewhere,
            Err(refused) => panic!("no timer without the ambient thread: {refused:?}"),
        };
        let replaced = self.armed.replace(Armed {
            key,
            waker,
            from_elsewhere,
        });
        drop(replaced);
        Poll::Pending
    }
}

impl Sleep {
    fn disarm(&mut self) {
        let Some(armed) = self.armed.take() else {
            return;
        };
        let removed = LOCAL.try_with(|local| match local.is_ambient.get() {
            true => Some(local.timers.borrow_mut().disarm(armed.key)),
            false => None,
        });
        match removed {
            // Found, or fired already: on the ambient thread itself there is no third case…
            Ok(Some(Some(waker))) => drop(waker),
            Ok(Some(None)) if !armed.from_elsewhere => {}
            // …unless the timer was set from another thread: then this goes in behind it.
            _ => discard(inject(Message::Disarm(armed.key))),
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.disarm();
    }
}

/// Sets a timer; says whether it went through the injector.
fn arm(key: TimerKey, waker: Waker) -> Result<bool, Refused> {
    let mut waker = Some(waker);
    let replaced = LOCAL.try_with(|local| match local.is_ambient.get() {
        true => waker
            .take()
            .and_then(|waker| local.timers.borrow_mut().arm(key, waker)),
        false => None,
    });
    drop(replaced);
    match waker {
        None => Ok(false),
        Some(waker) => match post(Message::Arm(key, waker)) {
            Ok(()) => Ok(true),
            Err((_, refused)) => Err(refused),
        },
    }
}

/// Lets everything else that is ready run first.
///
/// The task goes to the back of the queue; messages from other threads and timers that are due come
/// before its next turn.
pub fn yield_now() -> YieldNow {
    YieldNow { yielded: false }
}

/// The future of [`yield_now`].
#[derive(Debug)]
#[must_use = "a yield does nothing unless it is awaited"]
pub struct YieldNow {
    yielded: bool,
}

impl Future for YieldNow {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.yielded {
            return Poll::Ready(());
        }
        self.yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
