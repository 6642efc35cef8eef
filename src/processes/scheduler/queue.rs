//! The calls that wait.

use std::collections::VecDeque;
use std::iter;

use super::Entry;

/// How much capacity an empty queue keeps. It frees the memory of a larger burst.
const KEPT: usize = 4096;

/// Waiting calls, ordered by id, in two queues, so that a large call that waits for an idle worker holds up
/// none of the others. Unbounded, like every way to start work.
pub(super) struct Queue<C> {
    pub(super) small: VecDeque<Entry<C>>,
    pub(super) large: VecDeque<Entry<C>>,
    /// A call with more bytes than this is large.
    pub(super) eager: usize,
}

fn trim<C>(calls: &mut VecDeque<Entry<C>>) {
    if calls.is_empty() {
        calls.shrink_to(KEPT);
    }
}

impl<C> Queue<C> {
    pub(super) fn of(&mut self, is_large: bool) -> &mut VecDeque<Entry<C>> {
        match is_large {
            true => &mut self.large,
            false => &mut self.small,
        }
    }

    /// Puts a call in its place: at the end if it is new.
    pub(super) fn insert(&mut self, entry: Entry<C>) {
        let is_large = entry.bytes > self.eager;
        let calls = self.of(is_large);
        let at = match calls.back() {
            Some(last) if last.id > entry.id => calls.partition_point(|next| next.id < entry.id),
            _ => calls.len(),
        };
        calls.insert(at, entry);
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Entry<C>> {
        [&mut self.small, &mut self.large]
            .into_iter()
            .find_map(|calls| {
                let at = calls.binary_search_by_key(&id, |entry| entry.id);
                let removed = calls.remove(at.ok()?);
                trim(calls);
                removed
            })
    }

    /// Takes the next call out of one of the queues.
    pub(super) fn pop(&mut self, is_large: bool) -> Option<Entry<C>> {
        let calls = self.of(is_large);
        let next = calls.pop_front();
        trim(calls);
        next
    }

    /// Whether the next call in the order of ids is a large one.
    pub(super) fn is_large_next(&self) -> bool {
        let large = self.large.front();
        large.is_some_and(|large| self.small.front().is_none_or(|small| large.id < small.id))
    }

    pub(super) fn drain(&mut self) -> Vec<Entry<C>> {
        iter::from_fn(|| self.pop(self.is_large_next())).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry<C>> {
        self.small.iter().chain(&self.large)
    }

    pub(super) fn len(&self) -> usize {
        self.small.len() + self.large.len()
    }
}
