//! Progress: values that a call reports while it runs, and who listens to them.
//!
//! ```text
//!   call ──report──▶ Progress ──▶ listeners      shared by the call and the steps made on it
//!                        └─join─▶ Progress of the whole that the call is a part of: `flatten`, `map_cpu`
//! ```
//!
//! Values are encoded, and each carries a hash of its type. Only the newest value of each type is kept.

use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::error::{lock, next_number};
use crate::sync::{Mutex, MutexGuard};

/// The values that were reported, and who waits for the next.
pub(crate) struct Progress(Mutex<State>);

struct State {
    /// The newest value of each type: at most one for each type of the program.
    newest: Vec<Report>,
    /// The wakers of listeners, whatever type they listen to.
    wakers: Vec<Waker>,
    /// Count of [`Speaker`]s and of joined parts. Listening ends when it reaches zero.
    speakers: usize,
    /// Gets every value too, and counts this as one of its speakers.
    whole: Option<Arc<Progress>>,
}

/// A value that was reported.
#[derive(Clone)]
pub(crate) struct Report {
    kind: u64,
    /// Greater for a newer value. A value may be overtaken while its part joins a whole.
    pub(crate) order: u64,
    pub(crate) bytes: Arc<[u8]>,
    /// Whether somebody listens to this type. Later listeners to the same `Progress` begin with the next value.
    is_heard: bool,
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Passes a value on to the listeners of its type.
    pub(crate) fn say(self: &Arc<Progress>, kind: u64, bytes: &[u8]) {
        static LAST: Mutex<u64> = Mutex::new(0);
        self.spread(Report {
            kind,
            order: next_number(&LAST),
            bytes: bytes.into(),
            is_heard: false,
        });
    }

    /// A loop, because wholes may be nested too deeply for recursion.
    fn spread(self: &Arc<Progress>, report: Report) {
        let mut next = Some(Arc::clone(self));
        while let Some(progress) = next {
            let mut state = progress.lock();
            let wakers = state.put(&report);
            next = state.whole.clone();
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    /// Makes `whole` get every value from now on, beginning with the newest.
    pub(crate) fn join(self: &Arc<Progress>, whole: &Arc<Progress>) {
        whole.lock().speakers += 1;
        let mut state = self.lock();
        let newest = state.newest.clone();
        let is_over = state.speakers == 0;
        if !is_over {
            state.whole = Some(Arc::clone(whole));
        }
        drop(state);
        newest.into_iter().for_each(|report| whole.spread(report));
        if is_over {
            Progress::leave(Arc::clone(whole));
        }
    }

    /// Adds a listener to values of one type; returns the `after` that it begins with.
    pub(crate) fn listen(&self, kind: u64) -> u64 {
        let mut state = self.lock();
        match state.newest.iter_mut().find(|report| report.kind == kind) {
            Some(newest) if newest.is_heard => return newest.order,
            Some(newest) => newest.is_heard = true,
            None => state.newest.push(Report {
                kind,
                order: 0,
                bytes: Arc::default(),
                is_heard: true,
            }),
        }
        0
    }

    /// The newest value of this type, if it is newer than `after`; `None` at the end.
    pub(crate) fn poll(&self, kind: u64, after: u64, cx: &mut Context<'_>) -> Poll<Option<Report>> {
        let waker = cx.waker().clone();
        let mut state = self.lock();
        let mut newest = state.newest.iter();
        let newer = newest.find(|report| report.kind == kind && report.order > after);
        if newer.is_some() || state.speakers == 0 {
            return Poll::Ready(newer.cloned());
        }
        if !state.wakers.iter().any(|known| known.will_wake(&waker)) {
            state.wakers.push(waker);
        }
        Poll::Pending
    }

    /// Removes one speaker. The last one also leaves the whole.
    fn leave(progress: Arc<Progress>) {
        let mut next = Some(progress);
        while let Some(progress) = next {
            let mut state = progress.lock();
            state.speakers -= 1;
            if state.speakers > 0 {
                return;
            }
            let wakers = mem::take(&mut state.wakers);
            next = state.whole.take();
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

impl State {
    /// Stores a value; returns the wakers to wake.
    fn put(&mut self, report: &Report) -> Vec<Waker> {
        match self.newest.iter_mut().find(|it| it.kind == report.kind) {
            Some(newest) if newest.order > report.order => return Vec::new(),
            Some(newest) => {
                newest.order = report.order;
                newest.bytes = Arc::clone(&report.bytes);
            }
            None => self.newest.push(Report {
                is_heard: false,
                ..report.clone()
            }),
        }
        mem::take(&mut self.wakers)
    }
}

/// Keeps listeners waiting: held by work that may report values, or may start other work that does.
pub(crate) struct Speaker(pub(crate) Arc<Progress>);

impl Speaker {
    pub(crate) fn new() -> Speaker {
        Speaker(Arc::new(Progress(Mutex::new(State {
            newest: Vec::new(),
            wakers: Vec::new(),
            speakers: 1,
            whole: None,
        }))))
    }

    /// Passes on what this part reports from now on.
    pub(crate) fn passes_on(&self, part: Option<Arc<Progress>>) {
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
