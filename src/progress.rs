//! Progress: values that work reports while it runs, and who listens to them.
//!
//! ```text
//!   call ──say──▶ Progress ──▶ listeners         shared by the call and the steps made on it
//!                     └─join─▶ Progress of the whole that the call is a part of: `flatten`, `map_cpu`
//! ```
//!
//! Values are encoded, and each carries a hash of its type. Of each type only the newest is kept.
//!
//! Floor 0: imports the error.

use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use crate::error::lock;

/// The values that were reported, and the listeners.
pub(crate) struct Progress(Mutex<State>);

struct State {
    /// The newest value of each type that has no listener yet. At most one for each type of the program.
    unheard: Vec<Said>,
    listeners: Vec<Listener>,
    /// Count of [`Speaker`]s and of joined parts. Listeners end when it reaches zero.
    speakers: usize,
    /// Gets every value too, and counts this as one of its speakers.
    whole: Option<Arc<Progress>>,
}

#[derive(Clone)]
struct Said {
    kind: u64,
    /// Greater for a newer value. A value may be overtaken while its part joins a whole.
    order: u64,
    bytes: Arc<[u8]>,
}

struct Listener {
    kind: u64,
    /// Of the newest value that came.
    order: u64,
    /// That value, until it is heard.
    newest: Option<Arc<[u8]>>,
    waker: Option<Waker>,
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Passes a value on to those who listen to this type.
    pub(crate) fn say(self: &Arc<Progress>, kind: u64, bytes: &[u8]) {
        static ORDER: AtomicU64 = AtomicU64::new(0);
        self.spread(Said {
            kind,
            order: ORDER.fetch_add(1, Ordering::Relaxed) + 1,
            bytes: bytes.into(),
        });
    }

    /// A loop and no recursion: wholes may be nested more deeply than the stack allows.
    fn spread(self: &Arc<Progress>, said: Said) {
        let mut next = Some(Arc::clone(self));
        while let Some(progress) = next {
            let mut state = progress.lock();
            let wakers = state.put(&said);
            next = state.whole.clone();
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    /// From now on `whole` gets every value, beginning with those that had no listener so far.
    pub(crate) fn join(self: &Arc<Progress>, whole: &Arc<Progress>) {
        whole.lock().speakers += 1;
        let mut state = self.lock();
        let unheard = mem::take(&mut state.unheard);
        let is_over = state.speakers == 0;
        if !is_over {
            state.whole = Some(Arc::clone(whole));
        }
        drop(state);
        unheard.into_iter().for_each(|said| whole.spread(said));
        if is_over {
            Progress::leave(Arc::clone(whole));
        }
    }

    /// Adds a listener to values of one type; gives its index.
    pub(crate) fn listen(&self, kind: u64) -> usize {
        let mut state = self.lock();
        let before = state.unheard.iter().position(|said| said.kind == kind);
        let before = before.map(|at| state.unheard.swap_remove(at));
        state.listeners.push(Listener {
            kind,
            order: before.as_ref().map_or(0, |said| said.order),
            newest: before.map(|said| said.bytes),
            waker: None,
        });
        state.listeners.len() - 1
    }

    /// The newest value that this listener has not been given; `None` at the end.
    pub(crate) fn poll(&self, listener: usize, cx: &mut Context<'_>) -> Poll<Option<Arc<[u8]>>> {
        let waker = cx.waker().clone();
        let mut state = self.lock();
        let is_over = state.speakers == 0;
        let listener = &mut state.listeners[listener];
        match listener.newest.take() {
            None if is_over => Poll::Ready(None),
            None => {
                let replaced = listener.waker.replace(waker);
                drop(state);
                drop(replaced);
                Poll::Pending
            }
            newest => Poll::Ready(newest),
        }
    }

    /// Takes one speaker away. The last one also leaves the whole.
    fn leave(progress: Arc<Progress>) {
        let mut next = Some(progress);
        while let Some(progress) = next {
            let mut state = progress.lock();
            state.speakers -= 1;
            if state.speakers > 0 {
                return;
            }
            let listeners = state.listeners.iter_mut();
            let wakers: Vec<_> = listeners.filter_map(|it| it.waker.take()).collect();
            next = state.whole.take();
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

impl State {
    /// Stores a value; gives the wakers to be woken.
    fn put(&mut self, said: &Said) -> Vec<Waker> {
        let mut wakers = Vec::new();
        let mut heard = self.whole.is_some();
        let listeners = self.listeners.iter_mut();
        for listener in listeners.filter(|listener| listener.kind == said.kind) {
            heard = true;
            if listener.order < said.order {
                listener.order = said.order;
                listener.newest = Some(Arc::clone(&said.bytes));
                wakers.extend(listener.waker.take());
            }
        }
        if !heard {
            match self.unheard.iter_mut().find(|it| it.kind == said.kind) {
                Some(older) if older.order < said.order => *older = said.clone(),
                Some(_) => {}
                None => self.unheard.push(said.clone()),
            }
        }
        wakers
    }
}

/// Keeps listeners waiting: held by work that may report values, or start other work that may.
pub(crate) struct Speaker(pub(crate) Arc<Progress>);

impl Speaker {
    pub(crate) fn new() -> Speaker {
        Speaker(Arc::new(Progress(Mutex::new(State {
            unheard: Vec::new(),
            listeners: Vec::new(),
            speakers: 1,
            whole: None,
        }))))
    }
}

impl Speaker {
    /// One for a whole of which this is a part.
    pub(crate) fn of(part: Option<Arc<Progress>>) -> Speaker {
        let speaker = Speaker::new();
        if let Some(part) = part {
            part.join(&speaker.0);
        }
        speaker
    }

    /// Leaves it to this part to speak.
    pub(crate) fn passes_on(self, part: Option<Arc<Progress>>) {
        if let Some(part) = part {
            part.join(&self.0);
        }
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        Progress::leave(Arc::clone(&self.0));
    }
}
