//! Time: the timers of the ambient thread, and the futures that set them.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::{LOCAL, Message, Refused, inject, is_ambient};
use crate::error::{Error, Origin, discard, lock, wall};
use crate::stop::Reason;
use crate::sync::{Instant, Mutex};

/// The timers that are set, in the order in which they fire. Knows no clock: `now` is passed in.
///
/// A tree, because a heap of many timers misses the cache at every level of every removal.
///
/// A timer whose sleep was dropped or reset stays as a cancelled entry until it comes to the front, or
/// until more than half of the entries may be cancelled.
pub(super) struct Timers {
    /// By deadline, and by the order of insertion for the same deadline.
    entries: BTreeMap<(Instant, u64), Timer>,
    /// How many entries were ever inserted.
    inserted: u64,
    /// Timers cancelled since the last sweep. Some of them may have left the tree meanwhile.
    cancelled: usize,
    /// When a timer last fired.
    fired: Option<Instant>,
}

/// Timers closer together than this fire together: a wake-up costs twenty times as much as a timer.
const BUNDLE: Duration = Duration::from_micros(250);

impl Timers {
    pub(super) const fn new() -> Timers {
        Timers {
            entries: BTreeMap::new(),
            inserted: 0,
            cancelled: 0,
            fired: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// When to check for due timers next.
    pub(super) fn next(&mut self) -> Option<Instant> {
        let mut first = self.entries.first_entry()?;
        while first.get().is_cancelled() {
            first.remove();
            first = self.entries.first_entry()?;
        }
        let (first, _) = *first.key();
        Some(self.fired.map_or(first, |at| first.max(at + BUNDLE)))
    }

    pub(super) fn insert(&mut self, deadline: Instant, timer: Timer) {
        self.entries.insert((deadline, self.inserted), timer);
        self.inserted += 1;
    }

    /// Counts a timer that was cancelled; its entry may still be on its way here.
    pub(super) fn cancelled(&mut self) {
        self.cancelled += 1;
        if self.cancelled * 2 > self.entries.len() {
            self.cancelled = 0;
            self.entries.retain(|_, timer| !timer.is_cancelled());
        }
    }

    /// Removes one timer that is due. It fires when the caller drops it.
    pub(super) fn due(&mut self, now: Instant) -> Option<Timer> {
        let first = self.entries.first_entry()?;
        if first.key().0 > now {
            return None;
        }
        self.fired = Some(now);
        Some(first.remove())
    }
}

/// A timer. Dropping it wakes the task that waits for it: its time has come, or it was lost on its way or at
/// the end, and then the sleep has to see that there is no timer.
pub(super) struct Timer(Arc<WakerCell>);

impl Timer {
    fn is_cancelled(&self) -> bool {
        lock(&self.0).is_none()
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let waker = lock(&self.0).take();
        if let Some(waker) = waker {
            discard(wall(|| waker.wake()));
        }
    }
}

/// What a [`Sleep`] and its timer share: the waker of the task that waits. So a new waker needs no message,
/// and the timer of a sleep that was dropped has nobody to wake.
type WakerCell = Mutex<Option<Waker>>;

/// Waits for a duration.
///
/// A sleep never ends early; `Duration::MAX` means never. It works on the ambient thread and on any other
/// executor: the ambient thread keeps the timer and wakes the task that polls. The time counts from this
/// call, not from the first poll. Timers that are less than 0.25 ms apart fire together, so that many timers
/// do not each wake the thread.
///
/// # Panics
///
/// This call never panics. A poll that has to wait panics if there is no ambient thread: after a
/// [`shutdown`](crate::shutdown), or if the operating system refuses the thread. A sleep that waits on
/// another executor during the shutdown is woken and polled again, and panics then. The message names the
/// line of this call. A sleep that has elapsed, or never ends, does not panic.
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
    Sleep::new("sleep", Instant::now().checked_add(duration))
}

/// Waits until a point in time. See [`sleep`].
///
/// # Panics
///
/// The same as for [`sleep`].
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
    Sleep::new("sleep_until", Some(deadline))
}

/// The future of [`sleep`] and [`sleep_until`]. Dropping it cancels the timer.
///
/// Once elapsed it stays elapsed, and may be awaited again, until it is [`reset`](Sleep::reset).
///
/// # Examples
///
/// ```
/// let nap: unsync::Sleep = unsync::sleep(std::time::Duration::from_millis(1));
/// unsync::block_on(nap);
/// ```
#[must_use = "a sleep does nothing unless it is awaited"]
pub struct Sleep {
    /// `None`: never.
    deadline: Option<Instant>,
    /// `None` until it is polled.
    waker: Option<Arc<WakerCell>>,
    /// The function that made it.
    maker: &'static str,
    origin: Origin,
}

impl Sleep {
    #[track_caller]
    fn new(maker: &'static str, deadline: Option<Instant>) -> Sleep {
        Sleep {
            deadline,
            waker: None,
            maker,
            origin: Location::caller(),
        }
    }

    /// Returns when the sleep ends; `None` for never.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    ///
    /// let nap = unsync::sleep(Duration::from_secs(1));
    /// assert!(nap.deadline().unwrap() > Instant::now());
    /// assert!(unsync::sleep(Duration::MAX).deadline().is_none());
    /// ```
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Returns whether the deadline has passed.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// assert!(unsync::sleep(Duration::ZERO).is_elapsed());
    /// assert!(!unsync::sleep(Duration::MAX).is_elapsed());
    /// ```
    pub fn is_elapsed(&self) -> bool {
        self.deadline.is_some_and(|at| at <= Instant::now())
    }

    /// Moves the deadline to this duration from now.
    ///
    /// A task that awaits the sleep is woken at the new deadline and not at the old one.
    ///
    /// # Panics
    ///
    /// Panics if a task awaits the sleep and there is no ambient thread. See [`sleep`].
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

    /// Moves the deadline to this point in time. See [`reset`](Sleep::reset).
    ///
    /// # Panics
    ///
    /// The same as for [`reset`](Sleep::reset).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    ///
    /// let mut nap = unsync::sleep(Duration::MAX);
    /// nap.reset_until(Instant::now() + Duration::from_millis(1));
    /// unsync::block_on(nap);
    /// ```
    pub fn reset_until(&mut self, deadline: Instant) {
        self.set(Some(deadline));
    }

    fn set(&mut self, deadline: Option<Instant>) {
        let waker = self.cancel();
        self.deadline = deadline;
        if waker.is_some() {
            self.waker = Some(Arc::new(Mutex::new(waker)));
            self.start();
        }
    }

    /// Sets a timer, unless the sleep never ends.
    fn start(&self) {
        let (Some(deadline), Some(waker)) = (self.deadline, &self.waker) else {
            return;
        };
        let timer = Timer(Arc::clone(waker));
        if is_ambient() {
            return LOCAL.with(|local| local.timers.borrow_mut().insert(deadline, timer));
        }
        let Err((_, refused)) = inject(Message::SetTimer(deadline, timer)) else {
            return;
        };
        let why = match refused {
            Refused::Closed => String::from("after `unsync::shutdown`"),
            Refused::Os(error) => {
                format!("without the ambient thread, which could not be started: {error}")
            }
        };
        panic!("`{}` {why} (started at {})", self.maker, self.origin);
    }

    /// Cancels the timer. Returns the waker, if the timer has not taken it.
    fn cancel(&mut self) -> Option<Waker> {
        let waker = self.waker.take().and_then(|waker| lock(&waker).take());
        // A timer that fired has taken the waker, so cancelling it costs the ambient thread no message.
        if waker.is_some() && self.deadline.is_some() {
            if is_ambient() {
                LOCAL.with(|local| local.timers.borrow_mut().cancelled());
            } else {
                discard(inject(Message::TimerCancelled));
            }
        }
        waker
    }
}

impl Future for Sleep {
    type Output = ();

    /// # Panics
    ///
    /// Panics if it has to wait and there is no ambient thread. See [`sleep`].
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_elapsed() {
            drop(self.cancel());
            return Poll::Ready(());
        }
        let cell = self.waker.get_or_insert_default();
        let is_known = |old: &Waker| old.will_wake(cx.waker());
        if !lock(cell).as_ref().is_some_and(is_known) {
            // Cloning and dropping a waker is foreign code: it happens outside the lock.
            let waker = cx.waker().clone();
            let replaced = lock(cell).replace(waker);
            // A timer that fired just now, or was lost in a shutdown, has taken the last waker.
            if replaced.is_none() {
                self.start();
            }
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        drop(self.cancel());
    }
}

/// Limits how long a future may take, from now on.
///
/// The future is polled before the deadline is checked, so a future that is ready wins, however late. It may
/// borrow and need not be `Send`. Works on any executor, like [`sleep`]. For work that already runs, use
/// [`Unfuture::timeout`](crate::Unfuture::timeout).
///
/// A future that loops over what is always ready never returns from its poll: it starves every other task of
/// its thread, and the deadline is never checked. Such a loop needs a [`yield_now`].
///
/// # Errors
///
/// [`ErrorKind::TimedOut`](crate::ErrorKind) at the deadline.
///
/// # Panics
///
/// Panics if the future panics and, if the future has to wait, where [`sleep`] does.
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
        deadline: Sleep::new("timeout", Instant::now().checked_add(limit)),
        limit,
    }
}

/// The future of [`timeout()`]. Dropping it drops the limited future.
///
/// # Examples
///
/// ```
/// let timed: unsync::Timeout<_> = unsync::timeout(std::time::Duration::from_secs(1), async { 1 });
/// assert_eq!(unsync::block_on(timed).unwrap(), 1);
/// ```
#[must_use = "a timeout does nothing unless it is awaited"]
pub struct Timeout<F> {
    /// Boxed, because an `async` block would hold the future twice: three timeouts around one future would be
    /// eight times as large as that future.
    future: Pin<Box<F>>,
    deadline: Sleep,
    limit: Duration,
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(value) = self.future.as_mut().poll(cx) {
            return Poll::Ready(Ok(value));
        }
        Pin::new(&mut self.deadline).poll(cx).map(|()| {
            let error = Reason::TimedOut(self.limit).error("a future");
            Err(error.started_at(self.deadline.origin))
        })
    }
}

/// Without the waker, whose lock would be held while foreign code writes.
impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Sleep(until {:?}, made at {})",
            self.deadline, self.origin
        )
    }
}

impl<F> fmt::Debug for Timeout<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = self.deadline.origin;
        write!(f, "Timeout({:?}, set at {origin})", self.limit)
    }
}

/// Ticks once per period. The first tick is due at once.
///
/// # Panics
///
/// Panics if the period is zero. A [`tick`](Interval::tick) that has to wait panics where [`sleep`] does.
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
        next: Sleep::new("interval", Some(Instant::now())),
        period,
        missed: MissedTicks::Burst,
    }
}

/// A sequence of ticks, made by [`interval`].
///
/// # Examples
///
/// ```
/// let mut ticks: unsync::Interval = unsync::interval(std::time::Duration::from_millis(1));
/// unsync::block_on(async {
///     ticks.tick().await; // at once
///     ticks.tick().await; // a millisecond later
/// });
/// ```
#[derive(Debug)]
pub struct Interval {
    next: Sleep,
    period: Duration,
    missed: MissedTicks,
}

/// What an [`Interval`] does after a tick that nobody awaited in time. Called `MissedTickBehavior` in tokio.
///
/// With a period of 10 ms, and a tick that was due at 10 but is taken at 35:
///
/// ```text
/// due        0    10    20    30    40    50    60    70
/// Burst      0 ············ 35 35 35 40    50    60    70
/// Delay      0 ············ 35        45    55    65
/// Skip       0 ············ 35    40    50    60    70
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MissedTicks {
    /// The missed ticks follow at once, until the interval has caught up. There are as many ticks as
    /// periods.
    #[default]
    Burst,
    /// The next tick comes a whole period after the late one was taken, and all later ticks shift with it. A
    /// tick that is late by less than 5 ms, and by less than a period, shifts nothing. So two ticks are closer
    /// than a period by less than that.
    Delay,
    /// Missed ticks are skipped. All ticks stay at multiples of the period.
    Skip,
}

impl Interval {
    /// Sets what happens after a late tick. Default: [`MissedTicks::Burst`].
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
    #[must_use = "this returns the interval"]
    pub fn missed(mut self, policy: MissedTicks) -> Interval {
        self.missed = policy;
        self
    }

    /// Waits for the next tick and returns when it was due.
    ///
    /// Dropping the future before it is ready loses no tick.
    ///
    /// # Panics
    ///
    /// Panics if it has to wait and there is no ambient thread. See [`sleep`].
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
    ///     // the work of each tick
    /// }
    /// # });
    /// ```
    pub async fn tick(&mut self) -> Instant {
        (&mut self.next).await;
        let now = Instant::now();
        let due = self.next.deadline().unwrap_or(now);
        self.next.set(self.missed.next(due, now, self.period));
        due
    }

    /// Restarts the interval: the next tick comes a whole period from now.
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

/// A tick that is less late than this, and by less than a period, is in time: even an awaited one is taken a
/// little late.
const IN_TIME: Duration = Duration::from_millis(5);

impl MissedTicks {
    /// When the next tick is due; `None` for never.
    fn next(self, due: Instant, now: Instant, period: Duration) -> Option<Instant> {
        let late = now.saturating_duration_since(due);
        let from = match self {
            MissedTicks::Delay if late >= IN_TIME.min(period) => now,
            MissedTicks::Burst | MissedTicks::Delay => due,
            MissedTicks::Skip => {
                // At most the lateness, which fits in 64 bits for 584 years.
                let since_last = late.as_nanos() % period.as_nanos();
                let since_last = u64::try_from(since_last).unwrap_or(0);
                now - Duration::from_nanos(since_last)
            }
        };
        from.checked_add(period)
    }
}

/// Lets everything else that is ready run first.
///
/// The task goes to the back of the queue. Messages from other threads and due timers are handled once per
/// round of that queue.
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
///
/// # Examples
///
/// ```
/// let pause: unsync::YieldNow = unsync::yield_now();
/// unsync::block_on(pause);
/// ```
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn insert(timers: &mut Timers, deadline: Instant) -> (Arc<WakerCell>, Arc<Count>) {
        let count = Arc::new(Count::default());
        let waker = Arc::new(Mutex::new(Some(Waker::from(Arc::clone(&count)))));
        timers.insert(deadline, Timer(Arc::clone(&waker)));
        (waker, count)
    }

    #[test]
    fn a_delayed_tick_shifts_the_next_ones_unless_it_is_hardly_late() {
        let (due, ms) = (Instant::now(), Duration::from_millis);
        let next = |late, period| {
            let next = MissedTicks::Delay.next(due, due + ms(late), ms(period));
            next.unwrap() - due
        };
        assert_eq!([next(4, 100), next(90, 100)], [ms(100), ms(190)]);
        assert_eq!([next(1, 2), next(2, 2)], [ms(2), ms(4)]);
    }

    #[test]
    fn timers_fire_in_the_order_of_their_deadlines_and_then_of_their_insertion() {
        let (mut timers, start) = (Timers::new(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let counts = [3, 1, 2, 1].map(|ms| insert(&mut timers, at(ms)).1);
        let fired = || {
            counts
                .each_ref()
                .map(|count| count.0.load(Ordering::Relaxed))
        };
        assert_eq!(timers.next(), Some(at(1)));
        assert!(timers.due(at(0)).is_none());
        drop(timers.due(at(2)));
        assert_eq!(fired(), [0, 1, 0, 0]);
        drop(timers.due(at(2)));
        assert_eq!(fired(), [0, 1, 0, 1]);
        drop(timers.due(at(2)));
        assert_eq!(fired(), [0, 1, 1, 1]);
        assert!(timers.due(at(2)).is_none());
        assert_eq!(timers.next(), Some(at(3)));
        drop(timers);
        assert_eq!(fired(), [1, 1, 1, 1]);
    }

    #[test]
    fn timers_that_are_close_to_the_last_one_are_looked_at_together() {
        let (mut timers, start) = (Timers::new(), Instant::now());
        let last = [0, 1].map(|us| insert(&mut timers, start + Duration::from_micros(us)));
        drop(timers.due(start));
        assert_eq!(timers.next(), Some(start + BUNDLE));
        assert_eq!(last[1].1.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn cancelled_timers_are_never_looked_for_and_hold_little_memory() {
        let (mut timers, start) = (Timers::new(), Instant::now());
        let last = start + Duration::from_secs(100);
        let (_kept, count) = insert(&mut timers, last);
        for ms in 0..1000 {
            let (waker, _) = insert(&mut timers, start + Duration::from_millis(ms));
            drop(lock(&waker).take());
            timers.cancelled();
            assert!(timers.entries.len() <= 4);
        }
        assert_eq!(timers.next(), Some(last));
        assert_eq!(timers.entries.len(), 1);
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
    }
}
