//! Time: the timers that the ambient thread keeps, and the futures that set them.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::num::NonZeroU64;
use std::panic::Location;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::{IS_AMBIENT, LOCAL, Message, Refused, inject};
use crate::error::{Error, Origin, discard, lock, wall};
use crate::unfuture::Reason;

/// When, and a number that tells timers of one instant apart.
pub(super) type TimerKey = (Instant, u64);

/// Alarms by deadline. Knows no clock: it is told what time it is.
pub(super) struct Timers {
    alarms: BTreeMap<TimerKey, Alarm>,
    /// When one was last taken out because it was due.
    fired: Option<Instant>,
}

/// Timers that are closer than this fire together: each wake-up costs twenty times as much as a timer.
const BUNDLE: Duration = Duration::from_micros(100);

impl Timers {
    pub(super) const fn new() -> Timers {
        Timers {
            alarms: BTreeMap::new(),
            fired: None,
        }
    }
    pub(super) fn is_empty(&self) -> bool {
        self.alarms.is_empty()
    }
    /// When to look for those that are due.
    pub(super) fn next(&self) -> Option<Instant> {
        let (first, _) = self.alarms.first_key_value()?;
        Some(self.fired.map_or(first.0, |at| first.0.max(at + BUNDLE)))
    }
    pub(super) fn arm(&mut self, key: TimerKey, alarm: Alarm) {
        let replaced = self.alarms.insert(key, alarm);
        debug_assert!(replaced.is_none(), "keys are not used again");
    }
    /// Gives the alarm that stood there, to be dropped by the caller.
    pub(super) fn disarm(&mut self, key: TimerKey) -> Option<Alarm> {
        self.alarms.remove(&key)
    }
    /// Takes out all of them, at the end.
    pub(super) fn drain(&mut self) -> Vec<Alarm> {
        std::mem::take(&mut self.alarms).into_values().collect()
    }
    /// Takes out one timer that is due.
    pub(super) fn due(&mut self, now: Instant) -> Option<Alarm> {
        let first = self.alarms.first_entry()?;
        if first.key().0 > now {
            return None;
        }
        self.fired = Some(now);
        Some(first.remove())
    }
}

/// Wakes its sleeper when it is dropped: because its time has come, or because it was lost on its
/// way or at the end, when the sleeper has to see that there is no timer.
pub(super) struct Alarm(Arc<Sleeper>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some(waker) = self.0.leave() {
            discard(wall(|| waker.wake()));
        }
    }
}

/// Who is to be woken: the one thing that a [`Sleep`] and its timer share. So a new waker needs no
/// message, and a sleep that was woken or dropped holds none.
#[derive(Debug)]
struct Sleeper(Mutex<Option<Waker>>);

impl Sleeper {
    fn new(waker: Option<Waker>) -> Arc<Sleeper> {
        Arc::new(Sleeper(Mutex::new(waker)))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Waker>> {
        lock(&self.0)
    }

    /// Registers who polls. Says whether there was nobody, so that a timer has to be set.
    fn enter(&self, waker: &Waker) -> bool {
        if self.lock().as_ref().is_some_and(|old| old.will_wake(waker)) {
            return false;
        }
        // Cloning and dropping a waker is foreign code: it happens outside the lock.
        let waker = waker.clone();
        let replaced = self.lock().replace(waker);
        replaced.is_none()
    }

    fn leave(&self) -> Option<Waker> {
        self.lock().take()
    }
}

/// What made a [`Sleep`].
#[derive(Clone, Copy, Debug)]
enum Maker {
    Sleep,
    SleepUntil,
    Timeout,
    Interval,
}

impl Maker {
    /// Its name, as a user writes it.
    fn name(self) -> &'static str {
        match self {
            Maker::Sleep => "sleep",
            Maker::SleepUntil => "sleep_until",
            Maker::Timeout => "timeout",
            Maker::Interval => "interval",
        }
    }
}

/// Waits for a duration.
///
/// Never ends early; `Duration::MAX` means never. Works on the ambient thread and on any other
/// executor: the timer lives on the ambient thread, whoever polls is woken. It is set by the first
/// poll but counts from this call. Timers that are less than 0.1 ms apart fire together, so that a crowd
/// of them does not wake the thread for each.
///
/// # Panics
///
/// Not this call, but the poll that has to wait when there is no ambient thread to be had: after a
/// [`shutdown`](crate::shutdown), or if the operating system refuses the thread. So does a sleep that
/// waits on another executor during the shutdown: it is woken, and polled again. The message names the
/// line of this call. What is over already, or never will be, does not panic.
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
#[track_caller]
pub fn sleep(duration: Duration) -> Sleep {
    Sleep::new(Maker::Sleep, Instant::now().checked_add(duration))
}

/// Waits until a point in time. See [`sleep`].
///
/// # Panics
///
/// As [`sleep`].
///
/// # Examples
///
/// ```
/// use std::time::{Duration, Instant};
///
/// let soon = Instant::now() + Duration::from_millis(10);
/// unsync::block_on(unsync::sleep_until(soon));
/// assert!(Instant::now() >= soon);
/// ```
#[track_caller]
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep::new(Maker::SleepUntil, Some(deadline))
}

/// The future of [`sleep`] and [`sleep_until`]. Dropping it takes the timer back.
///
/// Once it is over it stays so, and may be awaited again, until it is [`reset`](Sleep::reset).
#[derive(Debug)]
#[must_use = "a sleep does nothing unless it is awaited"]
pub struct Sleep {
    /// `None`: never.
    deadline: Option<Instant>,
    /// `None` until it is polled.
    sleeper: Option<Arc<Sleeper>>,
    /// The number of the timer that was set for the sleeper, at the deadline.
    armed: Option<NonZeroU64>,
    maker: Maker,
    origin: Origin,
}

impl Sleep {
    #[track_caller]
    fn new(maker: Maker, deadline: Option<Instant>) -> Sleep {
        Sleep {
            deadline,
            sleeper: None,
            armed: None,
            maker,
            origin: Location::caller(),
        }
    }

    /// When it is over; `None` for never.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether its time has come.
    pub fn is_elapsed(&self) -> bool {
        self.deadline.is_some_and(|at| at <= Instant::now())
    }

    /// Begins anew: over after this duration from now.
    ///
    /// Who awaits it is woken at the new time and not at the old one.
    ///
    /// # Panics
    ///
    /// If somebody awaits it and there is no ambient thread to be had. See [`sleep`].
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// # unsync::block_on(async {
    /// let mut watchdog = unsync::sleep(Duration::MAX);
    /// watchdog.reset(Duration::from_millis(1));
    /// watchdog.await;
    /// # });
    /// ```
    pub fn reset(&mut self, duration: Duration) {
        self.set(Instant::now().checked_add(duration));
    }

    /// Begins anew: over at this point in time. See [`reset`](Sleep::reset).
    ///
    /// # Panics
    ///
    /// As [`reset`](Sleep::reset).
    pub fn reset_until(&mut self, deadline: Instant) {
        self.set(Some(deadline));
    }

    fn set(&mut self, deadline: Option<Instant>) {
        let waker = self.disarm();
        self.deadline = deadline;
        if waker.is_some() {
            self.sleeper = Some(Sleeper::new(waker));
            self.arm();
        }
    }

    /// Sets a timer for the sleeper, if there is one and a time for it.
    fn arm(&mut self) {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let (Some(deadline), Some(sleeper)) = (self.deadline, &self.sleeper) else {
            return;
        };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        if let Err(refused) = set_timer((deadline, number), Alarm(Arc::clone(sleeper))) {
            let (name, origin) = (self.maker.name(), self.origin);
            match refused {
                Refused::Closed => {
                    panic!("`{name}` after `unsync::shutdown` (started at {origin})")
                }
                Refused::Os(error) => panic!(
                    "`{name}` without the ambient thread, which could not be started: {error} \
                     (started at {origin})"
                ),
            }
        }
        self.armed = NonZeroU64::new(number);
    }

    /// Takes the timer back. Gives who was to be woken.
    fn disarm(&mut self) -> Option<Waker> {
        // First the waker, so that the alarm has nobody to wake when it is dropped.
        let waker = self.sleeper.take().and_then(|sleeper| sleeper.leave());
        // Without one there is no alarm any more: it takes the waker along when it goes, and nobody else
        // does. So a timer that fired costs the ambient thread no message.
        let armed = self.deadline.zip(self.armed.take());
        let (Some((deadline, number)), true) = (armed, waker.is_some()) else {
            return waker;
        };
        let key = (deadline, number.get());
        let removed = match IS_AMBIENT.get() {
            true => LOCAL.with(|local| local.timers.borrow_mut().disarm(key)),
            false => None,
        };
        match removed {
            Some(alarm) => drop(alarm),
            // It may still be on its way from another thread: this goes in behind it.
            None => discard(inject(Message::Disarm(key))),
        }
        waker
    }
}

impl Future for Sleep {
    type Output = ();

    /// # Panics
    ///
    /// If it has to wait and there is no ambient thread to wake it: the operating system refused
    /// it, or it was shut down.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_elapsed() {
            drop(self.disarm());
            return Poll::Ready(());
        }
        let sleeper = self.sleeper.get_or_insert_with(|| Sleeper::new(None));
        // There was somebody, but no more, if the timer fired just now, or was lost at a shutdown.
        if sleeper.enter(cx.waker()) {
            self.arm();
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        drop(self.disarm());
    }
}

fn set_timer(key: TimerKey, alarm: Alarm) -> Result<(), Refused> {
    if IS_AMBIENT.get() {
        LOCAL.with(|local| local.timers.borrow_mut().arm(key, alarm));
        return Ok(());
    }
    inject(Message::Arm(key, alarm)).map_err(|(_, refused)| refused)
}

/// Sets a future a deadline, `limit` from now.
///
/// The future is polled before the deadline is looked at: a future that is ready wins, however late. Both
/// may borrow and need not be `Send`; for work that runs already there is
/// [`Unfuture::timeout`](crate::Unfuture::timeout). Under any executor, as [`sleep`].
///
/// A future that loops over what is always ready never returns from its poll: it starves every other task of
/// its thread, and the deadline is never looked at. Such a loop needs a [`yield_now`].
///
/// # Errors
///
/// [`ErrorKind::TimedOut`](crate::ErrorKind) at the deadline.
///
/// # Panics
///
/// As the future does; and as [`sleep`] if the future has to wait.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// let never = std::future::pending::<()>();
/// let late = unsync::block_on(unsync::timeout(Duration::from_millis(10), never));
/// assert_eq!(late.unwrap_err().kind(), unsync::ErrorKind::TimedOut);
/// ```
#[track_caller]
pub fn timeout<F: Future>(limit: Duration, future: F) -> Timeout<F> {
    Timeout {
        future: Box::pin(future),
        deadline: Sleep::new(Maker::Timeout, Instant::now().checked_add(limit)),
        limit,
        origin: Location::caller(),
    }
}

/// The future of [`timeout()`]. Dropping it drops the future in it.
#[must_use = "a timeout does nothing unless it is awaited"]
pub struct Timeout<F> {
    /// In a box, because an `async` block would hold it twice: a timeout in a timeout in a timeout
    /// would be eight times as large as what it limits.
    future: Pin<Box<F>>,
    deadline: Sleep,
    limit: Duration,
    origin: Origin,
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(value) = self.future.as_mut().poll(cx) {
            return Poll::Ready(Ok(value));
        }
        Pin::new(&mut self.deadline).poll(cx).map(|()| {
            let error = Reason::TimedOut(self.limit).error("a future");
            Err(error.started_at(self.origin))
        })
    }
}

impl<F> fmt::Debug for Timeout<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Timeout({:?}, set at {})", self.limit, self.origin)
    }
}

/// Ticks again and again, the first time at once.
///
/// # Panics
///
/// If the period is zero. A [`tick`](Interval::tick) that has to wait panics as [`sleep`] does.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// # unsync::block_on(async {
/// let period = Duration::from_millis(5);
/// let mut ticks = unsync::interval(period);
/// let first = ticks.tick().await;
/// assert_eq!(ticks.tick().await, first + period);
/// # });
/// ```
#[track_caller]
pub fn interval(period: Duration) -> Interval {
    assert!(!period.is_zero(), "the period of an interval is zero");
    Interval {
        next: Sleep::new(Maker::Interval, Some(Instant::now())),
        period,
        missed: MissedTicks::Burst,
    }
}

/// Ticks, one after the other. Made by [`interval`].
#[derive(Debug)]
pub struct Interval {
    next: Sleep,
    period: Duration,
    missed: MissedTicks,
}

/// What an [`Interval`] does when a tick is taken late: nobody waited for it at its time.
///
/// With a period of 10 ms, and one tick, due at 10, that is taken only at 35:
///
/// ```text
/// due        0    10    20    30    40    50    60    70
/// Burst      0 ············ 35 35 35 40    50    60    70
/// Delay      0 ············ 35        45    55    65
/// Skip       0 ············ 35    40    50    60    70
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MissedTicks {
    /// The ticks that were missed follow at once, until it has caught up. There are as many ticks
    /// as there were periods.
    #[default]
    Burst,
    /// The next tick comes a whole period after the late one was taken, and all that follow shift
    /// with it. Two are never taken closer to each other than that.
    Delay,
    /// The ticks that were missed are left out. All are multiples of the period.
    Skip,
}

impl Interval {
    /// Says what is to be done when a tick is taken late. Default: [`MissedTicks::Burst`].
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// # unsync::block_on(async {
    /// let period = Duration::from_millis(5);
    /// let mut ticks = unsync::interval(period).missed(unsync::MissedTicks::Delay);
    /// ticks.tick().await;
    /// std::thread::sleep(3 * period); // longer than it should
    /// let late = ticks.tick().await;
    /// assert!(ticks.tick().await >= late + 3 * period);
    /// # });
    /// ```
    #[must_use = "it is the interval, given back"]
    pub fn missed(mut self, policy: MissedTicks) -> Interval {
        self.missed = policy;
        self
    }

    /// Waits for the next tick; gives when it was due.
    ///
    /// The future may be dropped before it is ready: no tick is lost.
    ///
    /// # Panics
    ///
    /// If it has to wait and there is no ambient thread to be had. See [`sleep`].
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// # unsync::block_on(async {
    /// let mut ticks = unsync::interval(Duration::from_millis(5));
    /// for _ in 0..3 {
    ///     ticks.tick().await;
    ///     // what is to be done each time
    /// }
    /// # });
    /// ```
    pub async fn tick(&mut self) -> Instant {
        let awaited = !self.next.is_elapsed();
        (&mut self.next).await;
        let now = Instant::now();
        let due = self.next.deadline().unwrap_or(now);
        // Who waited gets it a little late all the same. That is no reason to shift what follows.
        let in_time = awaited && now - due < self.period;
        let next = match in_time {
            true => due.checked_add(self.period),
            false => self.missed.next(due, now, self.period),
        };
        self.next.set(next);
        due
    }

    /// Begins anew: the next tick comes a whole period from now.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    ///
    /// # unsync::block_on(async {
    /// let period = Duration::from_millis(5);
    /// let mut ticks = unsync::interval(period);
    /// let now = Instant::now();
    /// ticks.reset(); // without it the first tick would come at once
    /// assert!(ticks.tick().await >= now + period);
    /// # });
    /// ```
    pub fn reset(&mut self) {
        self.next.reset(self.period);
    }
}

impl MissedTicks {
    /// When the tick after a late one that was `due` comes; `None` for never.
    fn next(self, due: Instant, now: Instant, period: Duration) -> Option<Instant> {
        let from = match self {
            MissedTicks::Burst => due,
            MissedTicks::Delay => now,
            MissedTicks::Skip => {
                let late = now.saturating_duration_since(due).as_nanos();
                // No more than how late it is, which fits in 64 bits for 584 years.
                let since_last = u64::try_from(late % period.as_nanos()).unwrap_or(0);
                now - Duration::from_nanos(since_last)
            }
        };
        from.checked_add(period)
    }
}

/// Lets everything else that is ready run first.
///
/// The task goes to the back of the queue; messages from other threads and timers that are due come
/// before its next turn.
///
/// # Examples
///
/// ```
/// let sum = unsync::spawn(async {
///     let mut sum = 0;
///     for n in 0..1000 {
///         sum += n;
///         unsync::yield_now().await; // others get their turn
///     }
///     sum
/// });
/// assert_eq!(sum.result().unwrap(), 499_500);
/// ```
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
