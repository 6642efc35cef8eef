//! `crate::sync` in the models: loom's types behind std's interfaces.
//!
//! loom's objects belong to one schedule and are not `const`, but the library keeps some in statics. So each
//! type here makes its object when a schedule first uses it ([`PerRun`]), and resets a static to the value
//! that it was compiled with.
//!
//! Everything runs on one thread of the operating system and only loom's operations switch, so what lies between
//! two of them is one step.

use std::cell::{Cell, UnsafeCell};
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::ptr;
use std::sync::{Arc, LockResult};
use std::time::Duration;

pub(crate) use std::sync::PoisonError;

pub(crate) use super::clock::{self, Instant};

thread_local! {
    static RUN: Cell<u64> = const { Cell::new(0) };
}

/// A new schedule begins.
pub(crate) fn begin_run() {
    RUN.set(RUN.get() + 1);
    clock::reset();
    atomic::prepare();
}

/// A value that each schedule makes anew. What an earlier one left is forgotten: loom has dropped its part.
struct PerRun<T> {
    run: Cell<u64>,
    value: UnsafeCell<MaybeUninit<T>>,
}

// There is one thread of the operating system, and no switch within a method.
unsafe impl<T> Send for PerRun<T> {}
unsafe impl<T> Sync for PerRun<T> {}

impl<T> PerRun<T> {
    const fn new() -> PerRun<T> {
        PerRun {
            run: Cell::new(0),
            value: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }

    fn get(&self, make: impl FnOnce() -> T) -> &T {
        if self.run.get() != RUN.get() {
            let value = make();
            unsafe { (*self.value.get()).write(value) };
            self.run.set(RUN.get());
        }
        unsafe { (*self.value.get()).assume_init_ref() }
    }
}

/// The bytes of a value before its first use, for statics: what is made at compile time owns no memory.
struct Pristine {
    run: Cell<u64>,
    bytes: UnsafeCell<Vec<MaybeUninit<u8>>>,
}

impl Pristine {
    const fn new() -> Pristine {
        Pristine {
            run: Cell::new(0),
            bytes: UnsafeCell::new(Vec::new()),
        }
    }

    /// Before each use of the value.
    fn restore<T: ?Sized>(&self, value: &UnsafeCell<T>) {
        if self.run.get() == RUN.get() {
            return;
        }
        unsafe {
            let (at, size) = (
                value.get().cast::<MaybeUninit<u8>>(),
                size_of_val(&*value.get()),
            );
            let bytes = &mut *self.bytes.get();
            if self.run.get() == 0 {
                *bytes = std::slice::from_raw_parts(at, size).to_vec();
            } else {
                ptr::copy_nonoverlapping(bytes.as_ptr(), at, size);
            }
        }
        self.run.set(RUN.get());
    }
}

type Lock = Arc<loom::sync::Mutex<()>>;

pub(crate) struct Mutex<T: ?Sized> {
    lock: PerRun<Lock>,
    pristine: Pristine,
    value: UnsafeCell<T>,
}

unsafe impl<T: ?Sized + Send> Send for Mutex<T> {}
unsafe impl<T: ?Sized + Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Mutex<T> {
        Mutex {
            lock: PerRun::new(),
            pristine: Pristine::new(),
            value: UnsafeCell::new(value),
        }
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Mutex<T> {
        Mutex::new(T::default())
    }
}

impl<T: ?Sized> Mutex<T> {
    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        self.pristine.restore(&self.value);
        let lock = self.lock.get(|| Arc::new(loom::sync::Mutex::new(())));
        let held = lock.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(MutexGuard {
            held: Some(held),
            lock,
            value: &self.value,
        })
    }
}

impl<T: ?Sized> std::fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mutex")
    }
}

pub(crate) struct MutexGuard<'a, T: ?Sized> {
    /// `None` while it waits.
    held: Option<loom::sync::MutexGuard<'a, ()>>,
    lock: &'a Lock,
    value: &'a UnsafeCell<T>,
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        unsafe { &*self.value.get() }
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        unsafe { &mut *self.value.get() }
    }
}

pub(crate) struct Condvar(PerRun<Arc<loom::sync::Condvar>>);

impl Condvar {
    pub(crate) const fn new() -> Condvar {
        Condvar(PerRun::new())
    }

    fn get(&self) -> &Arc<loom::sync::Condvar> {
        self.0.get(|| Arc::new(loom::sync::Condvar::new()))
    }

    pub(crate) fn notify_one(&self) {
        self.get().notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.get().notify_all();
    }

    pub(crate) fn wait<'a, T: ?Sized>(
        &self,
        guard: MutexGuard<'a, T>,
    ) -> LockResult<MutexGuard<'a, T>> {
        Ok(self.wait_for(guard, None).0)
    }

    pub(crate) fn wait_timeout<'a, T: ?Sized>(
        &self,
        guard: MutexGuard<'a, T>,
        time: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, bool)> {
        Ok(self.wait_for(guard, Some(time)))
    }

    /// Says whether the time is over. It passes only while the [clock] runs.
    fn wait_for<'a, T: ?Sized>(
        &self,
        mut guard: MutexGuard<'a, T>,
        time: Option<Duration>,
    ) -> (MutexGuard<'a, T>, bool) {
        // std takes the longest time for no limit.
        let alarm = time.filter(|time| *time < Duration::MAX).map(|time| {
            let (lock, condvar) = (Arc::clone(guard.lock), Arc::clone(self.get()));
            // Under the lock, which every notifier has held, so that the alarm is not missed.
            clock::set_alarm(time, move || {
                drop(lock.lock());
                condvar.notify_all();
            })
        });
        let held = guard.held.take().expect("it does not wait already");
        let held = self.get().wait(held);
        guard.held = Some(held.unwrap_or_else(PoisonError::into_inner));
        (guard, alarm.is_some_and(|alarm| alarm.has_rung()))
    }

    pub(crate) fn wait_timeout_while<'a, T: ?Sized>(
        &self,
        mut guard: MutexGuard<'a, T>,
        time: Duration,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<(MutexGuard<'a, T>, bool)> {
        let mut over = false;
        while !over && condition(&mut guard) {
            (guard, over) = self.wait_timeout(guard, time)?;
        }
        Ok((guard, over))
    }
}

pub(crate) struct OnceLock<T> {
    is_set: atomic::AtomicBool,
    /// Locked while it is set.
    value: Mutex<Option<T>>,
}

impl<T> OnceLock<T> {
    pub(crate) const fn new() -> OnceLock<T> {
        OnceLock {
            is_set: atomic::AtomicBool::new(false),
            value: Mutex::new(None),
        }
    }

    pub(crate) fn get(&self) -> Option<&T> {
        match self.is_set.load(atomic::Ordering::Acquire) {
            true => unsafe { (*self.value.value.get()).as_ref() },
            false => None,
        }
    }

    pub(crate) fn set(&self, value: T) -> Result<(), T> {
        let mut value = Some(value);
        self.get_or_init(|| value.take().expect("it is called once"));
        value.map_or(Ok(()), Err)
    }

    pub(crate) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        if self.get().is_none() {
            let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
            if value.is_none() {
                *value = Some(make());
                self.is_set.store(true, atomic::Ordering::Release);
            }
        }
        // Set by now, whatever a load would say.
        unsafe { (*self.value.value.get()).as_ref().expect("it was set") }
    }
}

pub(crate) mod atomic {
    //! loom requires that an atomic is made before every use of it. An atomic in a static, or from a `const`
    //! function, cannot be made there; so each schedule first makes a stock of them.

    use std::cell::RefCell;

    use super::PerRun;

    pub(crate) use std::sync::atomic::Ordering;

    /// How many atomics of each kind a schedule begins with.
    const STOCK: usize = 20;

    macro_rules! atomics {
        ($($name:ident($type:ty): $stock:ident of $($initial:expr),*;)*) => {
            $(
                thread_local! {
                    static $stock: RefCell<Vec<($type, loom::sync::atomic::$name)>> =
                        const { RefCell::new(Vec::new()) };
                }

                pub(crate) struct $name {
                    initial: $type,
                    object: PerRun<loom::sync::atomic::$name>,
                }

                impl $name {
                    pub(crate) const fn new(initial: $type) -> $name {
                        $name { initial, object: PerRun::new() }
                    }

                    fn get(&self) -> &loom::sync::atomic::$name {
                        self.object.get(|| {
                            $stock.with_borrow_mut(|stock| {
                                let at = stock.iter().position(|(value, _)| *value == self.initial);
                                let at = at.unwrap_or_else(|| {
                                    panic!("no {} of {} is left", stringify!($name), self.initial)
                                });
                                stock.swap_remove(at).1
                            })
                        })
                    }

                    pub(crate) fn load(&self, order: Ordering) -> $type {
                        self.get().load(order)
                    }

                    pub(crate) fn store(&self, value: $type, order: Ordering) {
                        self.get().store(value, order);
                    }

                    pub(crate) fn swap(&self, value: $type, order: Ordering) -> $type {
                        self.get().swap(value, order)
                    }

                    pub(crate) fn compare_exchange(
                        &self,
                        current: $type,
                        new: $type,
                        success: Ordering,
                        failure: Ordering,
                    ) -> Result<$type, $type> {
                        self.get().compare_exchange(current, new, success, failure)
                    }
                }

                impl Default for $name {
                    fn default() -> $name {
                        $name::new(<$type>::default())
                    }
                }
            )*

            pub(super) fn prepare() {
                $($stock.with_borrow_mut(|stock| {
                    // The rest of the last schedule's stock no longer exists in loom.
                    std::mem::take(stock).into_iter().for_each(std::mem::forget);
                    for initial in [$($initial),*] {
                        for _ in 0..STOCK {
                            stock.push((initial, loom::sync::atomic::$name::new(initial)));
                        }
                    }
                });)*
            }
        };
    }

    atomics! {
        AtomicBool(bool): BOOLS of false, true;
        AtomicU8(u8): BYTES of 0, 2;
        AtomicU32(u32): WORDS of 0, u32::MAX;
        AtomicUsize(usize): SIZES of 0, 1;
    }

    impl AtomicUsize {
        pub(crate) fn fetch_add(&self, value: usize, order: Ordering) -> usize {
            self.get().fetch_add(value, order)
        }
    }
}

pub(crate) mod mpsc {
    //! A channel that orders no more than std's: what was sent comes before its receipt, and nothing that the
    //! receiver did is known to a sender.

    use std::cell::Cell;
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::time::Duration;

    use loom::sync::atomic::AtomicUsize;

    use super::atomic::Ordering;
    use super::{Condvar, Mutex, PoisonError};

    pub(crate) use std::sync::mpsc::{RecvError, RecvTimeoutError, SendError, TryRecvError};

    struct Channel<T> {
        /// How many messages were sent; in the bits above, whether the receiver is gone.
        sent: AtomicUsize,
        messages: std::sync::Mutex<VecDeque<T>>,
        gate: Mutex<()>,
        arrived: Condvar,
        waits: Cell<bool>,
    }

    const CLOSED: usize = 1 << 32;

    pub(crate) struct Sender<T>(Arc<Channel<T>>);

    pub(crate) struct Receiver<T> {
        channel: Arc<Channel<T>>,
        received: Cell<usize>,
    }

    unsafe impl<T: Send> Send for Channel<T> {}
    unsafe impl<T: Send> Sync for Channel<T> {}

    pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
        let channel = Arc::new(Channel {
            sent: AtomicUsize::new(0),
            messages: std::sync::Mutex::default(),
            gate: Mutex::new(()),
            arrived: Condvar::new(),
            waits: Cell::new(false),
        });
        let receiver = Receiver {
            channel: Arc::clone(&channel),
            received: Cell::new(0),
        };
        (Sender(channel), receiver)
    }

    impl<T> Channel<T> {
        fn messages(&self) -> std::sync::MutexGuard<'_, VecDeque<T>> {
            self.messages.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    impl<T> Sender<T> {
        pub(crate) fn send(&self, message: T) -> Result<(), SendError<T>> {
            let channel = &*self.0;
            if channel.sent.fetch_add(1, Ordering::Release) >= CLOSED {
                return Err(SendError(message));
            }
            channel.messages().push_back(message);
            if channel.waits.take() {
                drop(channel.gate.lock());
                channel.arrived.notify_one();
            }
            Ok(())
        }
    }

    impl<T> Receiver<T> {
        fn pop(&self) -> Option<T> {
            // Not a load, which may see an old value forever.
            let sent = self.channel.sent.fetch_add(0, Ordering::Acquire);
            if sent == self.received.get() {
                return None;
            }
            self.received.set(self.received.get() + 1);
            self.channel.messages().pop_front()
        }

        pub(crate) fn try_recv(&self) -> Result<T, TryRecvError> {
            self.pop().ok_or(TryRecvError::Empty)
        }

        pub(crate) fn try_iter(&self) -> impl Iterator<Item = T> + '_ {
            std::iter::from_fn(|| self.try_recv().ok())
        }

        pub(crate) fn recv(&self) -> Result<T, RecvError> {
            self.wait(None).ok_or(RecvError)
        }

        pub(crate) fn recv_timeout(&self, time: Duration) -> Result<T, RecvTimeoutError> {
            self.wait(Some(time)).ok_or(RecvTimeoutError::Timeout)
        }

        fn wait(&self, time: Option<Duration>) -> Option<T> {
            let channel = &*self.channel;
            if let Ok(message) = self.try_recv() {
                return Some(message);
            }
            let mut gate = channel.gate.lock().unwrap_or_else(PoisonError::into_inner);
            let mut over = time.is_some_and(|time| time.is_zero());
            loop {
                if let Some(message) = self.pop() {
                    return Some(message);
                }
                if over {
                    return None;
                }
                channel.waits.set(true);
                (gate, over) = channel.arrived.wait_for(gate, time);
                channel.waits.set(false);
            }
        }
    }

    impl<T> Drop for Receiver<T> {
        fn drop(&mut self) {
            self.channel.sent.fetch_add(CLOSED, Ordering::AcqRel);
            let left = std::mem::take(&mut *self.channel.messages());
            drop(left);
        }
    }
}

pub(crate) mod thread {
    //! Parking. loom's own lets an `unpark` break into the wait for a lock.

    use std::sync::Arc;
    use std::time::Duration;

    use super::{Condvar, Mutex, PoisonError, clock};

    pub(crate) use loom::thread::{JoinHandle, spawn, yield_now};

    #[derive(Clone)]
    pub(crate) struct Thread(Arc<Parker>);

    struct Parker {
        token: Mutex<bool>,
        set: Condvar,
    }

    loom::thread_local! {
        static CURRENT: Thread = Thread(Arc::new(Parker {
            token: Mutex::new(false),
            set: Condvar::new(),
        }));
    }

    pub(crate) fn current() -> Thread {
        CURRENT.with(Thread::clone)
    }

    impl Thread {
        pub(crate) fn unpark(&self) {
            *self.0.token.lock().unwrap_or_else(PoisonError::into_inner) = true;
            self.0.set.notify_one();
        }
    }

    pub(crate) fn park() {
        wait(None);
    }

    pub(crate) fn park_timeout(time: Duration) {
        wait(Some(time));
    }

    /// Takes no time while the clock stands still, but lets all others go first.
    pub(crate) fn sleep(time: Duration) {
        if !clock::runs() {
            return yield_now();
        }
        let alone = Mutex::new(());
        let guard = alone.lock().unwrap_or_else(PoisonError::into_inner);
        drop(Condvar::new().wait_for(guard, Some(time)));
    }

    fn wait(time: Option<Duration>) {
        let Thread(parker) = current();
        let mut token = parker.token.lock().unwrap_or_else(PoisonError::into_inner);
        let mut over = false;
        while !*token && !over {
            (token, over) = parker.set.wait_for(token, time);
        }
        *token = false;
    }
}

/// std's `LocalKey` on top of loom's.
pub(crate) struct LocalKey<T: 'static>(pub(crate) loom::thread::LocalKey<T>);

#[derive(Debug, PartialEq)]
pub(crate) struct AccessError;

impl<T: 'static> LocalKey<T> {
    pub(crate) fn with<R>(&'static self, f: impl FnOnce(&T) -> R) -> R {
        self.0.with(f)
    }

    pub(crate) fn try_with<R>(&'static self, f: impl FnOnce(&T) -> R) -> Result<R, AccessError> {
        self.0.try_with(f).map_err(|_| AccessError)
    }
}

impl<T: 'static> LocalKey<Cell<T>> {
    pub(crate) fn get(&'static self) -> T
    where
        T: Copy,
    {
        self.with(Cell::get)
    }

    pub(crate) fn set(&'static self, value: T) {
        self.with(|cell| cell.set(value));
    }
}

impl<T: 'static> LocalKey<std::cell::RefCell<T>> {
    pub(crate) fn replace(&'static self, value: T) -> T {
        self.with(|cell| cell.replace(value))
    }

    pub(crate) fn take(&'static self) -> T
    where
        T: Default,
    {
        self.with(std::cell::RefCell::take)
    }

    pub(crate) fn with_borrow_mut<R>(&'static self, f: impl FnOnce(&mut T) -> R) -> R {
        self.with(|cell| f(&mut cell.borrow_mut()))
    }
}

/// Replaces std's macro in the library's files.
macro_rules! thread_local {
    ($($(#[$attribute:meta])* static $name:ident: $type:ty = $initial:expr;)*) => {
        $($(#[$attribute])*
        static $name: crate::sync::LocalKey<$type> = crate::sync::LocalKey(loom::thread::LocalKey {
            init: || $initial,
            _p: std::marker::PhantomData,
        });)*
    };
}
