//! The scheduler: decides which worker runs which call, and when workers start and end.
//!
//! It does no I/O. [`State`] takes events, and [`State::schedule`] gives the [`Effects`] that follow. It knows
//! no thread, process or socket, and no clock but the `now` that it is given. The pool has one function that
//! locks the state, feeds it an event, calls `schedule`, unlocks, and carries out the effects.
//!
//! # The life of a call
//!
//! ```text
//!   submit ──▶ queued ──assign──▶ in flight ──started──▶ running ──done──▶ resolved
//!                ▲                    │                     │
//!                └─ returned, exited ─┘                     └─ exited: lost
//! ```
//!
//! 1. `submit` puts the call into the queue, which is ordered by id, and `schedule` assigns it to the worker
//!    with the fewest calls in flight. Calls that are quick travel in batches: a worker may have as many in
//!    flight as it runs in about a millisecond, and as many bytes as its link holds unread.
//! 2. A large call needs an idle worker. The pool asks that worker whether it listens (request to send), and
//!    writes the call once it has answered (clear to send).
//! 3. `started` decides what the end of the worker means: before it the call goes back to its place in the
//!    queue, after it the call is lost and never runs again.
//! 4. A worker whose call takes long returns the calls behind it. So a slow call holds up no other, and a
//!    worker can be killed for the one call that it is left with.
//!
//! # Invariants
//!
//! - Each call is resolved exactly once. `resolving` counts those whose resolution is an effect that is not
//!   carried out yet.
//! - A call that may have begun is not assigned again.
//! - A worker is killed if all that it has in flight is one call that runs and was stopped; or if it is
//!   frozen, and then no other call than a stopped one has started there.
//! - A call waits only if no worker has room for it, and no worker may be started for it.
//! - After `schedule(now)` the next deadline is later than `now`, and an idle pool has none but those of
//!   `keep_alive`.

mod effects;
mod queue;
mod slot;

use std::time::{Duration, Instant};

pub(super) use effects::{Effects, Message, Outbox, Outcome};
use queue::{Queue, Queued};
use slot::{InFlight, Phase, Slot, Stop};

use crate::unfuture::Reason;

/// Workers that may die with a call before they start it.
pub(super) const DEATHS: u32 = 3;
/// The same for workers in a row that die before they start any call, if no worker is left. Two calls that
/// kill whoever gets them do not make the calls behind them fail.
const LOST_WORKERS: u32 = 2 * DEATHS + 1;
/// A worker that owes an answer for this long is frozen. The health checks are as far apart.
const FROZEN: Duration = Duration::from_secs(1);
/// How long a worker that is told to end may take for it.
const RETIRE_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause after the first failure. Each further failure makes it four times as long, up to 2.56 s.
const BACKOFF: Duration = Duration::from_millis(10);
const BACKOFF_STEPS: u32 = 4;

/// What the scheduler has to know of a call. A clone is another handle to the same call.
pub(super) trait Call: Clone {
    /// Unique and ascending in the order of submission.
    fn id(&self) -> u64;
    /// The length of its frame.
    fn bytes(&self) -> usize;
    /// Whether its frame is too long to be written to a worker that does not read.
    fn is_large(&self) -> bool;
}

/// The settings that concern the scheduler.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// Workers that may live at once.
    pub(super) processes: usize,
    pub(super) calls_per_worker: Option<u64>,
    pub(super) keep_alive: Duration,
    pub(super) cancel_grace: Duration,
}

/// What is heard of a worker that is connected.
#[derive(Clone, Debug)]
pub(super) enum Heard {
    /// It runs this call from now on.
    Started(u64),
    /// This call is over.
    Done(u64),
    /// It gives back these calls, which it has not begun, because the one that it runs takes long.
    Returned(Vec<u64>),
    /// It reads, and does nothing else until a large call has arrived. The effect is to write the call, and
    /// then `Loaded` follows.
    ClearToSend,
    /// The large call is written, or the link does not take it any more.
    Loaded,
    /// Something that concerns one call only, or that the link has taken further bytes of a large call.
    Progressed,
    /// Its reader is about to decode a large result, and hears nothing until `Decoded`.
    Decoding,
    Decoded,
    /// It takes too much memory, say: another one takes its place once it is idle.
    Outgrown,
}

/// Why no worker came up.
#[derive(Clone, Copy, Debug)]
pub(super) enum SpawnFailure {
    /// The system is short of something.
    Refused,
    /// The process ended before it was connected.
    Died,
    /// Another try would end alike.
    Final,
}

impl SpawnFailure {
    /// After how many failures in a row the calls fail, if there is no worker.
    fn tries(self) -> u32 {
        match self {
            SpawnFailure::Refused => 5,
            SpawnFailure::Died => DEATHS,
            SpawnFailure::Final => 1,
        }
    }
}

/// The state of the pool. `W` is what the effects name a worker by.
pub(super) struct State<C, W> {
    limits: Limits,
    queue: Queue<C>,
    /// The workers that are connected, in the order in which they were.
    slots: Vec<Slot<C, W>>,
    /// Workers that are being started.
    starting: usize,
    /// Workers whose link has ended and whose process is not reaped yet.
    reaping: usize,
    /// Calls whose resolution is an effect that is not carried out yet.
    resolving: usize,
    /// Numbers given to workers.
    spawned: u64,
    /// Calls that were ever submitted.
    accepted: u64,
    /// Failures in a row: starts that failed, and workers that died before they started a call. Those
    /// within one back-off count once. Reset when a worker starts its first call.
    failures: u32,
    /// When the next worker may be started. Set and reset with `failures`.
    not_before: Option<Instant>,
    /// Set while a worker has something to do, and for up to two checks after that, so that single calls
    /// one after the other do not wake the supervisor each.
    next_check: Option<Instant>,
    /// Something was assigned since the last check.
    active: bool,
    deadline: Option<Instant>,
    /// The deadline that the supervisor knows, or is woken for.
    planned: Option<Instant>,
    /// Set by the shutdown, for good.
    closed: bool,
    /// What the events since the last `schedule` ask for.
    fx: Effects<C, W>,
}

// -------------------------------------------------------------------------------------- the events

impl<C: Call, W: Clone> State<C, W> {
    pub(super) fn new(limits: Limits) -> State<C, W> {
        State {
            limits,
            queue: Queue::new(),
            slots: Vec::new(),
            starting: 0,
            reaping: 0,
            resolving: 0,
            spawned: 0,
            accepted: 0,
            failures: 0,
            not_before: None,
            next_check: None,
            active: false,
            deadline: None,
            planned: None,
            closed: false,
            fx: Effects::default(),
        }
    }

    /// A call is made.
    pub(super) fn submit(&mut self, call: C) {
        if self.closed {
            return self.resolve(call, Outcome::unstarted(Reason::ShutDown));
        }
        self.accepted += 1;
        self.queue.insert(Queued { call, deaths: 0 });
    }

    /// Workers are wanted up to the limit, whatever there is to do.
    pub(super) fn warm(&mut self, now: Instant) {
        while self.reserve_slot(now) {}
    }

    /// A worker has connected. Its link holds so many bytes that it does not read.
    pub(super) fn ready(&mut self, number: u64, handle: W, eager: usize, now: Instant) {
        self.starting -= 1;
        let mut slot = Slot::new(number, handle, eager, now);
        slot.assigned_max = self.limits.calls_per_worker.unwrap_or(u64::MAX);
        self.slots.push(slot);
    }

    /// A worker could not be started. Calls wait for those that live; if there are none, they fail in the
    /// end.
    pub(super) fn spawn_failed(&mut self, failure: SpawnFailure, now: Instant) {
        self.starting -= 1;
        self.fail(failure.tries(), now);
    }

    /// A worker says something, or its reader does.
    pub(super) fn heard(&mut self, number: u64, heard: Heard, now: Instant) {
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.number == number) else {
            return;
        };
        slot.last_active = now;
        match heard {
            Heard::Started(id) => {
                let was_proven = slot.proven;
                self.fx
                    .begun
                    .extend(slot.start(id, now, self.limits.cancel_grace));
                if slot.proven && !was_proven {
                    (self.failures, self.not_before) = (0, None);
                }
            }
            Heard::Done(id) => {
                if let Some(entry) = slot.finish(id, now) {
                    let outcome = entry.outcome(now);
                    self.resolve_entry(entry, outcome);
                }
            }
            Heard::Returned(ids) => {
                let returned = slot.take_back(&ids);
                returned.into_iter().for_each(|entry| self.requeue(entry));
            }
            Heard::ClearToSend => slot.load(),
            Heard::Loaded => slot.loaded(),
            Heard::Progressed => {}
            Heard::Decoding => slot.decoding = true,
            Heard::Decoded => slot.decoding = false,
            Heard::Outgrown => slot.assigned_max = 0,
        }
    }

    /// The link of a worker has ended, and all that the worker had said is known. If that is not `certain`,
    /// because the link has lost something, anything that was sent may have begun.
    ///
    /// [`State::reaped`] follows.
    pub(super) fn exited(&mut self, number: u64, certain: bool, now: Instant) {
        let Some(at) = self.slots.iter().position(|slot| slot.number == number) else {
            return;
        };
        let slot = self.slots.remove(at);
        self.reaping += 1;
        // Nothing of a large call was sent that the worker was not clear for.
        let certain = certain || slot.phase == Phase::Rendezvous;
        let failed = slot.has_failed();
        for mut entry in slot.in_flight {
            entry.deaths += u32::from(failed && certain && entry.stop.is_none());
            let ran = entry.ran(now);
            if ran.is_none() && certain && entry.deaths < DEATHS {
                self.requeue(entry);
            } else {
                let (deaths, stop) = (entry.deaths, entry.stop.map(|stop| stop.reason));
                self.resolve_entry(entry, Outcome::Lost { ran, deaths, stop });
            }
        }
        if failed {
            self.fail(LOST_WORKERS, now);
        }
    }

    /// The process of a worker has ended, and what it printed is passed on.
    pub(super) fn reaped(&mut self) {
        self.reaping -= 1;
    }

    /// So many calls of [`Effects::resolutions`] are resolved.
    pub(super) fn resolved(&mut self, calls: usize) {
        self.resolving -= calls;
    }

    /// A call is to be stopped. Says whether it will be, which is false for one that is over.
    pub(super) fn stop(&mut self, id: u64, reason: Reason, now: Instant) -> bool {
        if let Some(queued) = self.queue.remove(id) {
            self.resolve(queued.call, Outcome::unstarted(reason));
            return true;
        }
        for slot in &mut self.slots {
            let Some(at) = slot.position(id) else {
                continue;
            };
            // Of a large call nothing is written before the worker is clear for it.
            if slot.phase == Phase::Rendezvous {
                let unsent = slot.take_back(&[id]);
                let call = unsent.into_iter().next();
                call.into_iter()
                    .for_each(|entry| self.resolve(entry.call, Outcome::unstarted(reason)));
            } else if slot.in_flight[at].stop.is_none() {
                slot.stop(at, reason, now, self.limits.cancel_grace);
            }
            return true;
        }
        false
    }

    /// The end of the pool: it stops all calls and takes no more, and all workers end.
    pub(super) fn close(&mut self, now: Instant) {
        let reason = Reason::ShutDown;
        self.closed = true;
        for queued in self.queue.drain() {
            self.resolve(queued.call, Outcome::unstarted(reason));
        }
        for slot in self.slots.iter_mut().filter(|slot| slot.is_busy()) {
            for entry in &mut slot.in_flight {
                let kill_at = now;
                entry.stop.get_or_insert(Stop { reason, kill_at });
            }
            self.fx.kills.push(slot.kill(now));
        }
    }

    /// What follows from the events since the last time, and from the time that has passed. To be called
    /// after each event, and by the supervisor at the deadline.
    pub(super) fn schedule(&mut self, now: Instant) -> Effects<C, W> {
        self.check_health(now);
        self.kill_due(now);
        self.assign(now);
        self.retire(now);
        while self.is_short() && self.reserve_slot(now) {}
        self.plan(now);
        let sends = self.slots.iter_mut().filter_map(Slot::take_outbox);
        self.fx.sends.extend(sends);
        self.fx.quiet = self.is_quiet();
        self.fx.empty = self.slots.is_empty() && self.starting + self.reaping == 0;
        std::mem::take(&mut self.fx)
    }
}

// -------------------------------------------------------------------------------------- the questions

impl<C: Call, W: Clone> State<C, W> {
    /// When the supervisor has to call `schedule` next. It is woken if that becomes earlier.
    pub(super) fn next_deadline(&mut self) -> Option<Instant> {
        self.planned = self.deadline;
        self.deadline
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether nothing is queued, in flight, or about to be resolved.
    pub(super) fn is_quiet(&self) -> bool {
        let idle = self.slots.iter().all(|slot| slot.in_flight.is_empty());
        idle && self.queue.len() == 0 && self.resolving == 0
    }

    /// Calls that were ever submitted.
    pub(super) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// The call of this number that a worker has in flight.
    pub(super) fn find(&self, number: u64, id: u64) -> Option<&C> {
        let slot = self.slots.iter().find(|slot| slot.number == number)?;
        Some(&slot.in_flight[slot.position(id)?].call)
    }

    /// The calls that are not over, and when they started.
    pub(super) fn calls(&self) -> impl Iterator<Item = (&C, Option<Instant>)> {
        let in_flight = self.slots.iter().flat_map(|slot| &slot.in_flight);
        let in_flight = in_flight.map(|entry| (&entry.call, entry.started));
        in_flight.chain(self.queue.iter().map(|call| (call, None)))
    }

    /// How many calls are queued, how many in flight, and how many workers there are.
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        let in_flight = self.slots.iter().map(|slot| slot.in_flight.len());
        (self.queue.len(), in_flight.sum(), self.live())
    }
}

// -------------------------------------------------------------------------------------- the decisions

impl<C: Call, W: Clone> State<C, W> {
    fn resolve(&mut self, call: C, outcome: Outcome) {
        self.resolving += 1;
        self.fx.resolutions.push((call, outcome));
    }

    fn resolve_entry(&mut self, entry: InFlight<C>, outcome: Outcome) {
        if !entry.resolved {
            self.resolve(entry.call, outcome);
        }
    }

    /// Puts a call that has not begun back to its place in the queue, unless it was stopped meanwhile.
    fn requeue(&mut self, entry: InFlight<C>) {
        let InFlight { deaths, stop, .. } = entry;
        match stop {
            Some(stop) => self.resolve_entry(entry, Outcome::unstarted(stop.reason)),
            None => self.queue.insert(Queued {
                call: entry.call,
                deaths,
            }),
        }
    }

    /// Counts a failure. Without any worker, and after enough of them, nothing can run.
    fn fail(&mut self, tries: u32, now: Instant) {
        if self.not_before.is_none_or(|at| at <= now) {
            self.failures += 1;
            let steps = (self.failures - 1).min(BACKOFF_STEPS);
            self.not_before = Some(now + BACKOFF * 4u32.pow(steps));
        }
        if self.live() + self.starting == 0 && self.failures >= tries {
            for queued in self.queue.drain() {
                self.resolve(queued.call, Outcome::Unstartable);
            }
        }
    }

    /// Workers that hold a place in the pool.
    fn live(&self) -> usize {
        let leaving = |slot: &&Slot<C, W>| matches!(slot.phase, Phase::Leaving { .. });
        self.slots.len() - self.slots.iter().filter(leaving).count()
    }

    fn is_full(&self) -> bool {
        self.live() + self.starting >= self.limits.processes
    }

    /// Starts one more worker, if there may be one more now. After a failure one at a time is tried.
    fn reserve_slot(&mut self, now: Instant) -> bool {
        let trouble = self.not_before;
        let backs_off = trouble.is_some_and(|at| now < at || self.starting > 0);
        if self.closed || backs_off || self.is_full() {
            return false;
        }
        self.starting += 1;
        self.spawned += 1;
        self.fx.spawns.push(self.spawned);
        true
    }

    /// Whether more calls wait, in the queue or behind another call, than workers are being started.
    fn is_short(&self) -> bool {
        let in_flight = self.slots.iter().map(|slot| slot.in_flight.len());
        let behind: usize = in_flight.map(|calls| calls.saturating_sub(1)).sum();
        self.queue.len() + behind > self.starting
    }

    /// Looks after workers that owe something. A check that is late judges nobody: the program was frozen
    /// itself, and has not heard what they said.
    fn check_health(&mut self, now: Instant) {
        let Some(at) = self.next_check.filter(|at| *at <= now) else {
            return;
        };
        self.next_check = std::mem::take(&mut self.active).then(|| now + FROZEN);
        if now > at + FROZEN / 2 {
            return;
        }
        let mut overdue = Vec::new();
        for slot in self.slots.iter_mut().filter(|slot| !slot.decoding) {
            if slot.is_frozen(now) {
                self.fx.kills.push(slot.kill(now));
            } else if slot.running().is_some() {
                let silent = slot.is_silent(now).then(|| slot.handle.clone());
                self.fx.probes.extend(silent);
                overdue.extend(slot.take_overdue(now));
            }
        }
        for (call, reason) in overdue {
            self.resolve(call, Outcome::unstarted(reason));
        }
    }

    fn kill_due(&mut self, now: Instant) {
        for slot in &mut self.slots {
            if slot.kill_at().is_some_and(|at| at <= now) {
                self.fx.kills.push(slot.kill(now));
            }
        }
    }

    /// Moves calls from the queue to workers with room.
    fn assign(&mut self, now: Instant) {
        loop {
            let large = self.queue.is_large_next();
            let idle = large.then(|| self.least_loaded(Slot::is_idle)).flatten();
            // While a large call waits, the small ones behind it leave one worker alone, the one that is
            // idle next. It changes only to one that is idle earlier, or if its call turns out slow.
            let kept = if large { self.idle_next(now) } else { None };
            let is_next = |slot: &Slot<C, W>| Some(slot.number) == kept;
            let bytes = self.queue.small.front().map(|next| next.call.bytes());
            let has_room = |slot: &Slot<C, W>| {
                bytes.is_some_and(|bytes| slot.has_room(bytes, now)) && !is_next(slot)
            };
            let Some(at) = idle.or_else(|| self.least_loaded(has_room)) else {
                break;
            };
            let next = self.queue.of(idle.is_some()).pop_front();
            next.into_iter()
                .for_each(|next| self.slots[at].push(next, now));
            self.active = true;
        }
        self.queue.shrink();
    }

    /// The worker with the fewest calls; among idle ones the oldest, so that the surplus can retire.
    fn least_loaded(&self, is_fit: impl Fn(&Slot<C, W>) -> bool) -> Option<usize> {
        // What a worker says while its reader decodes is heard late: one more worker is better.
        let complete = self.live() >= self.limits.processes;
        let fit = |at: &usize| {
            let slot = &self.slots[*at];
            (complete || !slot.decoding) && is_fit(slot)
        };
        let load = |at: &usize| (self.slots[*at].decoding, self.slots[*at].in_flight.len());
        (0..self.slots.len()).filter(fit).min_by_key(load)
    }

    fn idle_next(&self, now: Instant) -> Option<u64> {
        let slots = self.slots.iter().filter(|slot| slot.takes_calls());
        let next = slots.min_by_key(|slot| (slot.is_slow(now), slot.in_flight.len()));
        next.map(|slot| slot.number)
    }

    /// Ends idle workers that are not needed any more.
    fn retire(&mut self, now: Instant) {
        for slot in &mut self.slots {
            let Some(at) = slot.idle_until(self.limits.keep_alive) else {
                continue;
            };
            if self.closed || slot.is_draining() || at <= now {
                let by = now + RETIRE_TIMEOUT;
                slot.phase = Phase::Leaving { by };
                self.fx.retirements.push(slot.handle.clone());
            }
        }
    }

    /// Finds the next deadline.
    fn plan(&mut self, now: Instant) {
        if self.next_check.is_none() && self.slots.iter().any(Slot::is_busy) {
            self.next_check = Some(now + FROZEN);
        }
        let grows = !self.closed && !self.is_full() && self.is_short();
        let start_at = self.not_before.filter(|at| grows && now < *at);
        let keep_alive = self.limits.keep_alive;
        let slots = self.slots.iter();
        let of_slots = slots.flat_map(|slot| [slot.kill_at(), slot.idle_until(keep_alive)]);
        self.deadline = of_slots.chain([self.next_check, start_at]).flatten().min();
        let is_earlier = |at: Instant| self.planned.is_none_or(|planned| at < planned);
        if self.deadline.is_some_and(is_earlier) {
            self.planned = self.deadline;
            self.fx.wake_supervisor = true;
        }
    }
}

#[cfg(test)]
#[path = "simulation.rs"]
mod simulation;
