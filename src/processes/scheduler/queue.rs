//! The calls that wait.

use std::collections::VecDeque;

use super::Call;

/// Room for calls that the queue keeps. It gives back the memory of a larger burst.
const KEPT: usize = 4096;

/// Calls that wait, ordered by id. Two queues, so that a large call that waits for an idle worker holds up
/// none of the others. Without a limit, as every way to start work.
pub(super) struct Queue<C> {
    pub(super) small: VecDeque<Queued<C>>,
    pub(super) large: VecDeque<Queued<C>>,
}

pub(super) struct Queued<C> {
    pub(super) call: C,
    /// Workers that died with it before they had started it.
    pub(super) deaths: u32,
}

impl<C: Call> Queue<C> {
    pub(super) fn new() -> Queue<C> {
        Queue {
            small: VecDeque::new(),
            large: VecDeque::new(),
        }
    }

    pub(super) fn of(&mut self, is_large: bool) -> &mut VecDeque<Queued<C>> {
        match is_large {
            true => &mut self.large,
            false => &mut self.small,
        }
    }

    /// Puts a call at its place: at the end if it is new.
    pub(super) fn insert(&mut self, queued: Queued<C>) {
        let id = queued.call.id();
        let calls = self.of(queued.call.is_large());
        let at = match calls.back() {
            Some(last) if last.call.id() > id => calls.partition_point(|next| next.call.id() < id),
            _ => calls.len(),
        };
        calls.insert(at, queued);
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Queued<C>> {
        [false, true].into_iter().find_map(|is_large| {
            let calls = self.of(is_large);
            let at = calls.binary_search_by_key(&id, |queued| queued.call.id());
            calls.remove(at.ok()?)
        })
    }

    /// Whether the next call in the order of ids is a large one.
    pub(super) fn is_large_next(&self) -> bool {
        let id = |calls: &VecDeque<Queued<C>>| calls.front().map(|next| next.call.id());
        id(&self.large).is_some_and(|large| id(&self.small).is_none_or(|small| large < small))
    }

    pub(super) fn drain(&mut self) -> Vec<Queued<C>> {
        let mut calls = Vec::from_iter(self.small.drain(..).chain(self.large.drain(..)));
        calls.sort_by_key(|queued| queued.call.id());
        calls
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &C> {
        let queued = self.small.iter().chain(&self.large);
        queued.map(|queued| &queued.call)
    }

    pub(super) fn len(&self) -> usize {
        self.small.len() + self.large.len()
    }

    pub(super) fn shrink(&mut self) {
        if self.len() == 0 && self.small.capacity() > KEPT {
            self.small = VecDeque::new();
        }
    }
}
