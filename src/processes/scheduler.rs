//! The scheduler: decides which worker runs which call, and when workers start and end.
//!
//! It does no I/O. [`State`] takes events, and [`State::schedule`] produces the [`Effects`] that follow. It
//! knows no thread, process or socket, and no clock but the `now` that it is given. The pool has one function
//! that locks the state, feeds it an event, calls `schedule`, unlocks, and carries out the effects.
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
//!    with the fewest calls in flight. Quick calls travel in batches: a worker may have as many in flight as
//!    it runs in about a millisecond, and as many bytes as its link holds unread.
//! 2. A large call needs an idle worker. The pool asks that worker whether it listens (request to send), and
//!    writes the call once it has answered (clear to send).
//! 3. `started` decides what the end of the worker means: before it the call goes back to its place in the
//!    queue, after it the call is lost and never runs again.
//! 4. A worker whose call takes long returns the calls behind it. So a slow call holds up no other, and a
//!    worker can be killed for the one call that it is left with.
//!
//! # Invariants
//!
//! - Each call is resolved exactly once. The pool is not idle before that has been carried out.
//! - A call that may have begun is never assigned again.
//! - Before the shutdown no worker is killed while it runs a call that nobody has stopped. A worker that runs
//!   or loads a stopped call is killed once it has nothing else in flight. Otherwise a worker is killed only if
//!   it is frozen or does not retire.
//! - A call waits only while no worker has room for it and no other may be started. There are two exceptions:
//!   small calls leave one worker alone for an older large call, and while a place has a free slot, a worker
//!   whose reader decodes a large result gets no calls.
//! - The bytes written to a worker and not known to be read never exceed what its link holds, except those of
//!   a large call, which the worker reads as they are written.
//! - After `schedule(now)` the next deadline is later than `now`, unless a check is due. An idle pool has no
//!   deadlines but those of `keep_alive`.
//!
//! `tests/simulation` lets all this happen at random and checks the invariants after each event.

mod effects;
mod place;
mod queue;
mod worker;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub(super) use effects::{Action, Effects, Outcome};
use place::Place;
use queue::Queue;
use worker::{Entry, FRAME_OVERHEAD, Phase, Stop, Worker};

use crate::stop::Reason;

/// How many workers may die with a call before they start it.
pub(super) const DEATHS: u32 = 3;
/// The same for workers in a row that die before they start any call, if no worker is left. Two calls that
/// kill every worker that gets them do not make the calls behind them fail.
const LOST_WORKERS: u32 = 2 * DEATHS + 1;
/// How much work may be in flight at a worker on this machine. A call that runs for longer is slow.
pub(super) const WINDOW: Duration = Duration::from_millis(1);
/// The interval between health checks.
const CHECK: Duration = Duration::from_secs(1);
/// A worker that owes an answer for this long is frozen. On a busy machine, a healthy worker or the thread
/// that reads from it may get no processor for a second.
const FROZEN: Duration = Duration::from_secs(3);
/// How long a worker that is told to end may take.
const RETIRE_TIMEOUT: Duration = Duration::from_secs(1);
/// The index of this machine among the places.
const HERE: usize = 0;

/// The settings that concern the scheduler.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// How many workers may live at once: on this machine, then at each host.
    pub(super) places: Vec<usize>,
    pub(super) calls_per_worker: Option<u64>,
    pub(super) keep_alive: Duration,
    pub(super) cancel_grace: Duration,
    /// Bytes that the link of a worker holds while the worker does not read.
    pub(super) eager: usize,
    /// A host that owes an answer for this long is lost.
    pub(super) host_timeout: Duration,
}

/// What is heard from a connected worker.
#[derive(Clone, Debug)]
pub(super) enum Heard {
    /// It runs this call from now on.
    Started(u64),
    /// This call is over.
    Done(u64),
    /// It gives back these calls, which it has not begun, because the one that it runs takes long.
    Returned(Vec<u64>),
    /// It does nothing but read until a large call has arrived. The effect is to write the call; `Loaded`
    /// follows.
    ClearToSend,
    /// The large call is written, or the link no longer takes it.
    Loaded,
    /// Something that concerns one call only, or the link has taken more bytes of a large call.
    Progressed,
    /// Its reader is about to decode a large result, and hears nothing until `Decoded`. Fed together with
    /// `Done`, so that no call is assigned in between.
    Decoding,
    Decoded,
    /// It uses too much memory, say: another worker takes its place once it is idle.
    Outgrown,
}

/// Why a worker did not start, and after how many such failures in a row calls fail, if there is no worker.
#[derive(Clone, Copy, Debug)]
pub(super) enum SpawnFailure {
    /// Another try would end the same way.
    Final = 1,
    /// The process ended before it was connected.
    Died = DEATHS as isize,
    /// The system is short of a resource.
    Refused = 5,
}

/// How the link of a worker has ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Exit {
    /// Everything that the worker said has arrived.
    Certain,
    /// The link has lost something: any call that was sent may have begun.
    Uncertain,
    /// The worker was short of a resource, and has begun nothing.
    Refused,
}

/// The state of the pool. Effects name a worker by its `W`.
pub(super) struct State<C, W> {
    limits: Limits,
    queue: Queue<C>,
    /// The connected workers, in the order in which they connected.
    workers: Vec<Worker<C, W>>,
    /// Where workers run: here, then the hosts.
    places: Vec<Place>,
    /// Workers whose link has ended and whose process is not reaped yet.
    reaping: usize,
    /// The last number given to a worker.
    spawned: u64,
    /// Set when a worker has something to do, and kept until it is due, so that a series of single calls does
    /// not wake the supervisor each time.
    next_check: Option<Instant>,
    /// The supervisor knows it, or an earlier one, or is woken for it.
    deadline: Option<Instant>,
    /// Set by the shutdown, for good.
    closed: bool,
    /// What the events since the last `schedule` ask for.
    pub(super) fx: Effects<C, W>,
}

// -------------------------------------------------------------------------------------- the events

impl<C: Clone, W: Clone> State<C, W> {
    pub(super) fn new(limits: Limits) -> State<C, W> {
        let places = limits.places.iter().enumerate();
        let places = places.map(|(at, slots)| Place::new(*slots, at != HERE));
        State {
            places: places.collect(),
            queue: Queue {
                small: VecDeque::new(),
                large: VecDeque::new(),
                eager: limits.eager,
            },
            limits,
            workers: Vec::new(),
            reaping: 0,
            spawned: 0,
            next_check: None,
            deadline: None,
            closed: false,
            fx: Effects::default(),
        }
    }

    /// A call is made, with a frame of this many bytes. Ids ascend in the order in which calls are made.
    pub(super) fn submit(&mut self, id: u64, bytes: usize, call: C) {
        let entry = Entry {
            id,
            bytes: bytes + FRAME_OVERHEAD,
            call,
            deaths: 0,
            started: None,
            stop: None,
            resolved: false,
        };
        match self.closed {
            true => self.resolve(entry, Outcome::unstarted(Reason::ShutDown)),
            false => self.queue.insert(entry),
        }
    }

    /// As many workers are wanted as may be started now, however little there is to do.
    pub(super) fn warm(&mut self, now: Instant) {
        while self.reserve_slot(now) {}
    }

    /// A worker has connected, at a place with the round-trip time `trip`.
    pub(super) fn ready(&mut self, spawn: (u64, usize), handle: W, trip: Duration, now: Instant) {
        self.places[spawn.1].connected(now);
        let worker = Worker::new(spawn, handle, &self.limits, trip, now);
        self.workers.push(worker);
    }

    /// A worker could not be started. Calls wait for those that there are; if there are none, calls eventually
    /// fail.
    pub(super) fn spawn_failed(&mut self, place: usize, failure: SpawnFailure, now: Instant) {
        self.places[place].starting -= 1;
        self.fail(place, failure as u32, now);
    }

    /// There is no worker, and nobody who could start one.
    pub(super) fn strand(&mut self) {
        for entry in self.queue.drain() {
            self.resolve(entry, Outcome::Unstartable);
        }
    }

    /// A worker says something, or its reader does.
    pub(super) fn heard(&mut self, number: u64, heard: Heard, now: Instant) {
        let mut workers = self.workers.iter_mut();
        let Some(worker) = workers.find(|worker| worker.number == number) else {
            return;
        };
        worker.last_active = now;
        match heard {
            Heard::Started(id) => {
                let begun = worker.start(id, now, self.limits.cancel_grace);
                self.fx.begun.extend(begun);
                if !std::mem::replace(&mut worker.proven, true) {
                    self.places[worker.place].succeed();
                }
            }
            Heard::Done(id) => {
                if let Some(entry) = worker.finish(id, now) {
                    let outcome = entry.outcome(now);
                    self.resolve(entry, outcome);
                }
            }
            Heard::Returned(ids) => {
                let returned = worker.take_back(&ids);
                returned.into_iter().for_each(|entry| self.requeue(entry));
            }
            Heard::ClearToSend => worker.load(),
            Heard::Loaded => worker.loaded(),
            Heard::Progressed => {}
            Heard::Decoding => worker.decoding = true,
            Heard::Decoded => worker.decoding = false,
            Heard::Outgrown => worker.assigned_max = 0,
        }
    }

    /// The link of a worker has ended. [`State::reaped`] follows.
    pub(super) fn exited(&mut self, number: u64, exit: Exit, now: Instant) {
        let mut workers = self.workers.iter();
        let Some(at) = workers.position(|worker| worker.number == number) else {
            return;
        };
        let worker = self.workers.remove(at);
        self.reaping += 1;
        // Nothing of a large call is written before the worker is clear for it.
        let certain = exit != Exit::Uncertain || worker.phase == Phase::Rendezvous;
        if self.workers.is_empty() {
            self.places.iter_mut().for_each(|place| place.hurry(now));
            if worker.proven {
                self.places.iter_mut().for_each(Place::forgive);
            }
        }
        // A worker that was short of a resource has not even seen its calls.
        let refused = exit == Exit::Refused;
        let failed = worker.has_failed() && !refused;
        for mut entry in worker.in_flight {
            entry.deaths += u32::from(failed && certain && entry.stop.is_none());
            let ran = entry.ran(now);
            if ran.is_none() && certain && entry.deaths < DEATHS {
                self.requeue(entry);
            } else {
                let deaths = if certain { entry.deaths } else { 0 };
                let stop = entry.stop.map(|stop| stop.reason);
                self.resolve(entry, Outcome::Lost { ran, deaths, stop });
            }
        }
        if refused {
            self.fail(worker.place, SpawnFailure::Refused as u32, now);
        } else if failed {
            self.fail(worker.place, LOST_WORKERS, now);
        }
    }

    /// The process of a worker has ended, and what it printed has been passed on.
    pub(super) fn reaped(&mut self) {
        self.reaping -= 1;
    }

    /// A call is to be stopped. Returns whether it will be: `false` if it is over.
    pub(super) fn stop(&mut self, id: u64, reason: Reason, now: Instant) -> bool {
        if let Some(entry) = self.queue.remove(id) {
            self.resolve(entry, Outcome::unstarted(reason));
            return true;
        }
        for worker in &mut self.workers {
            let Some(at) = worker.position(id) else {
                continue;
            };
            // Nothing of a large call is written before the worker is clear for it.
            if worker.phase == Phase::Rendezvous {
                for unsent in worker.take_back(&[id]) {
                    self.resolve(unsent, Outcome::unstarted(reason));
                }
            } else if worker.in_flight[at].stop.is_none() {
                worker.stop(at, reason, now, self.limits.cancel_grace);
            }
            return true;
        }
        false
    }

    /// The end of the pool: it stops all calls and takes no more, and all workers end.
    pub(super) fn close(&mut self, now: Instant) {
        let reason = Reason::ShutDown;
        self.closed = true;
        for entry in self.queue.drain() {
            self.resolve(entry, Outcome::unstarted(reason));
        }
        for worker in self.workers.iter_mut().filter(|worker| worker.is_busy()) {
            for entry in &mut worker.in_flight {
                let kill_at = now;
                entry.stop.get_or_insert(Stop { reason, kill_at });
            }
            worker.kill(now);
        }
    }

    /// A tick of the supervisor: checks on workers that owe an answer, but not while their readers decode and
    /// hear nothing. A check that is late judges no worker: the program itself was frozen, and has not heard
    /// what they said.
    pub(super) fn check(&mut self, now: Instant, decodes: impl Fn(&W) -> bool) {
        let Some(at) = self.next_check.filter(|at| *at <= now) else {
            return;
        };
        self.next_check = None;
        if now > at + CHECK / 2 {
            return;
        }
        for worker in &mut self.workers {
            if decodes(&worker.handle) {
                // Its reader has not heard what it said since. That counts from the end of the decoding.
                worker.last_active = now;
                continue;
            }
            if worker.is_frozen(now) {
                worker.kill(now);
                continue;
            }
            self.fx.resolutions.extend(worker.resolve_overdue(now));
            let silent = worker.running().filter(|_| worker.is_silent(now, CHECK));
            let probe = silent.map(|running| Action::Probe(running.call.clone()));
            worker.outbox.extend(probe);
        }
    }

    /// Decides what follows from the events since the last `schedule` and from the time that has passed, and
    /// adds it to the effects. Called after each event, and by the supervisor at the deadline.
    pub(super) fn schedule(&mut self, now: Instant) {
        self.assign(now);
        let of_workers = self.end_workers(now);
        while self.is_short(now) && self.reserve_slot(now) {}
        self.plan(of_workers, now);
        for worker in &mut self.workers {
            let actions = worker.outbox.drain(..);
            let actions = actions.map(|action| (worker.handle.clone(), action));
            self.fx.actions.extend(actions);
        }
    }
}

// -------------------------------------------------------------------------------------- the questions

impl<C: Clone, W: Clone> State<C, W> {
    /// When the supervisor has to call `schedule` next. It is woken if that becomes earlier.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether no worker process exists.
    pub(super) fn is_empty(&self) -> bool {
        self.workers.is_empty() && self.starting() + self.reaping == 0
    }

    /// The call with this id, if the worker with this number has it in flight.
    pub(super) fn find(&self, number: u64, id: u64) -> Option<&C> {
        let worker = self.workers.iter().find(|worker| worker.number == number)?;
        Some(&worker.in_flight[worker.position(id)?].call)
    }

    /// The calls that are not over, and when they started.
    pub(super) fn calls(&self) -> impl Iterator<Item = (&C, Option<Instant>)> {
        let in_flight = self.workers.iter().flat_map(|worker| &worker.in_flight);
        let in_flight = in_flight.filter(|entry| !entry.resolved);
        let in_flight = in_flight.map(|entry| (&entry.call, entry.started));
        in_flight.chain(self.queue.iter().map(|entry| (&entry.call, None)))
    }

    /// How many calls are queued, how many in flight, and how many workers there are.
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        let in_flight = self.workers.iter().flat_map(|worker| &worker.in_flight);
        let in_flight = in_flight.filter(|entry| !entry.resolved);
        (self.queue.len(), in_flight.count(), self.live())
    }
}

// -------------------------------------------------------------------------------------- the decisions

impl<C: Clone, W: Clone> State<C, W> {
    fn resolve(&mut self, entry: Entry<C>, outcome: Outcome) {
        if !entry.resolved {
            self.fx.resolutions.push((entry.call, outcome));
        }
    }

    /// Puts a call that has not begun back to its place in the queue, unless it was stopped meanwhile.
    fn requeue(&mut self, entry: Entry<C>) {
        match entry.stop {
            Some(stop) => self.resolve(entry, Outcome::unstarted(stop.reason)),
            None => self.queue.insert(entry),
        }
    }

    /// Counts a failure. With no worker, and enough failures at every place, nothing can run. A worker that is
    /// leaving is about to free what the next one may lack.
    fn fail(&mut self, place: usize, tries: u32, now: Instant) {
        let is_alone = self.workers.is_empty() && self.starting() == 0;
        self.places[place].fail(tries, now);
        if is_alone {
            self.places.iter_mut().for_each(|place| place.hurry(now));
            if self.places.iter().all(|place| place.is_hopeless) {
                self.strand();
            }
        }
    }

    /// Workers that hold a place in the pool.
    fn live(&self) -> usize {
        let live = |worker: &&Worker<C, W>| worker.is_live();
        self.workers.iter().filter(live).count()
    }

    fn starting(&self) -> usize {
        self.places.iter().map(|place| place.starting).sum()
    }

    /// Starts one more worker, if one may be started now: on this machine, or else at the host with the
    /// lowest load for its size.
    fn reserve_slot(&mut self, now: Instant) -> bool {
        let load = |at: usize| {
            let is_there = |worker: &&Worker<C, W>| worker.place == at && worker.is_live();
            self.workers.iter().filter(is_there).count() + self.places[at].starting
        };
        let is_open = |at: &usize| {
            let place = &self.places[*at];
            !self.closed && load(*at) < place.slots && place.may_start(now)
        };
        let open = (0..self.places.len()).filter(is_open);
        let key = |at: &usize| (*at != HERE, load(*at) * 1000 / self.places[*at].slots);
        let Some(place) = open.min_by_key(key) else {
            return false;
        };
        self.places[place].start(now);
        self.spawned += 1;
        self.fx.spawns.push((self.spawned, place));
        true
    }

    /// How many calls lie behind another one at their worker. If that one takes long, they come back.
    fn behind(&self) -> usize {
        let in_flight = self.workers.iter().map(|worker| worker.in_flight.len());
        in_flight.map(|calls| calls.saturating_sub(1)).sum()
    }

    /// Whether more calls wait, in the queue or behind another call, than workers are idle or being started.
    fn is_short(&self, now: Instant) -> bool {
        let expected = self.places.iter().map(|place| place.expected(now)).sum();
        let is_idle = |worker: &&Worker<C, W>| worker.is_idle() && !worker.decoding;
        let idle = self.workers.iter().filter(is_idle).count();
        self.queue.len() + self.behind().saturating_sub(idle) > expected
    }

    /// Moves calls from the queue to workers with room.
    fn assign(&mut self, now: Instant) {
        while self.queue.len() > 0 {
            let large = self.queue.is_large_next();
            let idle = large.then(|| self.least_loaded(Worker::is_idle)).flatten();
            // While a large call waits, the small ones behind it leave one worker alone: the one that will be
            // idle next. That changes only to one that will be idle earlier, or if its call turns out slow.
            let kept = if large { self.idle_next(now) } else { None };
            let bytes = self.queue.small.front().map(|next| next.bytes);
            let has_room = |worker: &Worker<C, W>| {
                let fits = bytes.is_some_and(|bytes| worker.has_room(bytes, now));
                fits && Some(worker.number) != kept
            };
            let Some(at) = idle.or_else(|| self.least_loaded(has_room)) else {
                return;
            };
            if let Some(next) = self.queue.pop(idle.is_some()) {
                self.workers[at].push(next, now);
            }
        }
    }

    /// The worker with the fewest calls; among idle ones one here, and the oldest, so that the surplus can
    /// retire.
    fn least_loaded(&self, is_fit: impl Fn(&Worker<C, W>) -> bool) -> Option<usize> {
        // What a worker says while its reader decodes is heard late: one more worker is better.
        let complete = self.live() >= self.limits.places.iter().sum();
        let workers = self.workers.iter().enumerate();
        let fit = workers.filter(|(_, worker)| (complete || !worker.decoding) && is_fit(worker));
        let key = |worker: &Worker<C, W>| {
            let is_far = worker.place != HERE;
            (worker.decoding, worker.in_flight.len(), is_far)
        };
        let least = fit.min_by_key(|(_, worker)| key(worker));
        least.map(|(at, _)| at)
    }

    fn idle_next(&self, now: Instant) -> Option<u64> {
        let workers = self.workers.iter().filter(|worker| worker.takes_calls());
        let next = workers.min_by_key(|worker| (worker.is_slow(now), worker.in_flight.len()));
        next.map(|worker| worker.number)
    }

    /// Kills workers whose time is up, and retires idle ones that are no longer needed. Idle workers stay
    /// while calls may be returned. Returns when the next worker is due.
    fn end_workers(&mut self, now: Instant) -> Option<Instant> {
        let surplus = self.behind() == 0;
        let mut next = None;
        for worker in &mut self.workers {
            if worker.kill_at().is_some_and(|at| at <= now) {
                worker.kill(now);
            }
            let rest = match self.closed || worker.is_draining() {
                true => Some(Duration::ZERO),
                false => surplus.then_some(self.limits.keep_alive),
            };
            let idle_until = rest.and_then(|rest| worker.idle_until(rest));
            if idle_until.is_some_and(|at| at <= now) {
                worker.retire(now);
            }
            let due = worker.kill_at().or(idle_until);
            next = next.into_iter().chain(due).min();
        }
        next
    }

    /// Finds the next deadline.
    fn plan(&mut self, of_workers: Option<Instant>, now: Instant) {
        if self.workers.is_empty() {
            // The supervisor can end.
            self.next_check = None;
        } else if self.next_check.is_none() && self.workers.iter().any(Worker::is_busy) {
            self.next_check = Some(now + CHECK);
        }
        let of_places = self.places.iter().flat_map(Place::deadlines);
        let of_places = of_places.filter(|at| now < *at).min();
        let of_places = of_places.filter(|_| !self.closed && self.queue.len() + self.behind() > 0);
        let deadlines = of_workers.into_iter().chain(self.next_check);
        let deadline = deadlines.chain(of_places).min();
        let is_earlier = |at: Instant| self.deadline.is_none_or(|known| at < known);
        self.fx.wake_supervisor |= deadline.is_some_and(is_earlier);
        self.deadline = deadline;
    }
}

#[cfg(test)]
#[path = "../../tests/simulation/mod.rs"]
mod simulation;

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);
    const EAGER: usize = 64 << 10;

    /// A pool that does what it is told, at a time that stands still.
    struct Pool {
        state: State<u64, u64>,
        now: Instant,
        resolved: Vec<(u64, Outcome)>,
    }

    fn limits(processes: usize) -> Limits {
        Limits {
            places: vec![processes],
            calls_per_worker: None,
            keep_alive: 10 * SECOND,
            cancel_grace: Duration::ZERO,
            eager: EAGER,
            host_timeout: 60 * SECOND,
        }
    }

    impl Pool {
        fn new(limits: Limits) -> Pool {
            Pool {
                state: State::new(limits),
                now: Instant::now(),
                resolved: Vec::new(),
            }
        }

        /// A pool with all its workers connected: 1, 2 and so on.
        fn with(limits: Limits) -> Pool {
            let mut pool = Pool::new(limits);
            let spawns = pool.act(|state, now| state.warm(now)).spawns;
            spawns
                .into_iter()
                .for_each(|(number, _)| pool.connect(number));
            pool
        }

        /// Feeds an event, and notes what is resolved.
        fn act(&mut self, event: impl FnOnce(&mut State<u64, u64>, Instant)) -> Effects<u64, u64> {
            event(&mut self.state, self.now);
            self.state.schedule(self.now);
            let fx = std::mem::take(&mut self.state.fx);
            self.resolved.extend(&fx.resolutions);
            fx
        }

        fn connect(&mut self, number: u64) {
            let _ = self.act(|state, now| state.ready((number, HERE), number, Duration::ZERO, now));
        }

        fn submit(&mut self, id: u64, bytes: usize) -> Effects<u64, u64> {
            self.act(|state, _| state.submit(id, bytes, id))
        }

        fn hear(&mut self, number: u64, heard: Heard) -> Effects<u64, u64> {
            self.act(|state, now| state.heard(number, heard, now))
        }

        fn start(&mut self, number: u64, id: u64) {
            let _ = self.hear(number, Heard::Started(id));
        }

        fn stop(&mut self, id: u64) -> Effects<u64, u64> {
            self.act(|state, now| assert!(state.stop(id, Reason::Cancelled, now)))
        }

        fn exit(&mut self, number: u64, certain: bool) -> Effects<u64, u64> {
            let exit = if certain {
                Exit::Certain
            } else {
                Exit::Uncertain
            };
            self.act(|state, now| state.exited(number, exit, now))
        }

        /// Lets time pass; the supervisor does its work.
        fn wait(&mut self, time: Duration) -> Vec<Effects<u64, u64>> {
            let (end, mut effects) = (self.now + time, Vec::new());
            while let Some(at) = self.state.next_deadline().filter(|at| *at <= end) {
                assert!(at >= self.now, "the deadline has passed");
                self.now = at;
                effects.push(self.act(|state, now| state.check(now, |_| false)));
            }
            self.now = end;
            effects
        }

        /// Lets a worker learn that calls are quick, then submits calls with these ids.
        fn batch(&mut self, number: u64, ids: std::ops::Range<u64>) {
            for id in 1_000..1_020 {
                let _ = self.submit(id, 10);
                self.start(number, id);
                let _ = self.hear(number, Heard::Done(id));
            }
            self.resolved.clear();
            ids.for_each(|id| drop(self.submit(id, 10)));
        }

        fn in_flight(&self, number: u64) -> Vec<u64> {
            let worker = self
                .state
                .workers
                .iter()
                .find(|worker| worker.number == number);
            let in_flight = worker.map(|worker| worker.in_flight.iter());
            in_flight
                .into_iter()
                .flatten()
                .map(|entry| entry.id)
                .collect()
        }

        fn queued(&self) -> Vec<u64> {
            self.state.queue.iter().map(|entry| entry.id).collect()
        }
    }

    fn sent(fx: &Effects<u64, u64>) -> Vec<(u64, u64)> {
        let calls = fx
            .actions
            .iter()
            .filter_map(|(worker, action)| match action {
                Action::Call(call) | Action::LargeCall(call) => Some((*worker, *call)),
                _ => None,
            });
        calls.collect()
    }

    /// The workers that get such an action.
    macro_rules! workers {
        ($effects:expr, $action:pat) => {{
            let actions = $effects.iter().flat_map(|fx| &fx.actions);
            let such = actions.filter(|(_, action)| matches!(action, $action));
            Vec::from_iter(such.map(|(worker, _)| *worker))
        }};
    }

    fn kills(effects: &[Effects<u64, u64>]) -> Vec<u64> {
        workers!(effects, Action::Kill)
    }

    fn retired(effects: &[Effects<u64, u64>]) -> Vec<u64> {
        workers!(effects, Action::Retire)
    }

    macro_rules! assert_resolved {
        ($pool:expr, $($id:literal as $outcome:pat),*) => {
            let resolved = std::mem::take(&mut $pool.resolved);
            assert!(matches!(resolved[..], [$(($id, $outcome)),*]), "{resolved:?}");
        };
    }

    #[test]
    fn queue_frees_the_memory_of_a_burst_that_is_stopped() {
        let mut pool = Pool::new(limits(1));
        let burst = 1..=100_000;
        burst.clone().for_each(|id| drop(pool.submit(id, 10)));
        burst.for_each(|id| drop(pool.stop(id)));
        let capacity = pool.state.queue.small.capacity();
        assert!(capacity < 10_000, "{capacity}");
    }

    #[test]
    fn call_takes_its_way() {
        let mut pool = Pool::new(limits(2));
        assert_eq!(pool.submit(1, 10).spawns, [(1, HERE)]);
        let fx = pool.act(|state, now| state.ready((1, HERE), 1, Duration::ZERO, now));
        assert_eq!(sent(&fx), [(1, 1)]);
        let fx = pool.hear(1, Heard::Started(1));
        assert_eq!(fx.begun, [1]);
        let _ = pool.hear(1, Heard::Done(1));
        assert_resolved!(pool, 1 as Outcome::Done);
    }

    #[test]
    fn quick_calls_travel_together_as_far_as_the_link_holds() {
        let mut pool = Pool::with(limits(1));
        pool.batch(1, 1..300);
        let window = pool.in_flight(1).len();
        assert!((100..=256).contains(&window), "{window}");
        // The window is refilled at half, with one write.
        let mut refills = 0;
        for id in 1..=window as u64 {
            pool.start(1, id);
            let fx = pool.hear(1, Heard::Done(id));
            refills += usize::from(!fx.actions.is_empty());
            assert!(pool.state.workers[0].unacked_bytes <= EAGER);
        }
        assert!((1..=3).contains(&refills), "{refills}");

        let mut pool = Pool::with(limits(1));
        pool.batch(1, 0..0);
        (1..10).for_each(|id| drop(pool.submit(id, 20_000)));
        assert_eq!(pool.in_flight(1), [1, 2, 3]);
    }

    #[test]
    fn slow_calls_travel_alone_and_to_the_oldest_idle_worker() {
        let mut pool = Pool::with(limits(2));
        assert_eq!(sent(&pool.submit(1, 10)), [(1, 1)]);
        assert_eq!(sent(&pool.submit(2, 10)), [(2, 2)]);
        assert_eq!(sent(&pool.submit(3, 10)), []);
        for worker in [2, 1] {
            pool.start(worker, worker);
            pool.now += 2 * MILLI;
        }
        assert_eq!(sent(&pool.hear(2, Heard::Done(2))), [(2, 3)]);
        let _ = pool.hear(1, Heard::Done(1));
        assert_eq!(sent(&pool.submit(4, 10)), [(1, 4)]);
    }

    #[test]
    fn returned_calls_go_to_the_front_and_not_back_behind_the_slow_one() {
        let mut pool = Pool::with(limits(1));
        pool.batch(1, 1..5);
        pool.start(1, 1);
        let _ = pool.submit(5, 70_000);
        let fx = pool.hear(1, Heard::Returned(vec![3, 2, 4]));
        assert_eq!((sent(&fx), pool.in_flight(1)), (vec![], vec![1]));
        assert_eq!(pool.queued(), [2, 3, 4, 5]);
        let _ = pool.hear(1, Heard::Done(1));
        assert_eq!(pool.in_flight(1), [2, 3, 4]);
    }

    #[test]
    fn start_decides_what_a_death_means() {
        for certain in [true, false] {
            let mut pool = Pool::with(limits(1));
            pool.batch(1, 1..4);
            pool.start(1, 1);
            let _ = pool.exit(1, certain);
            match certain {
                true => {
                    assert_resolved!(pool, 1 as Outcome::Lost { ran: Some(_), .. });
                    assert_eq!(pool.queued(), [2, 3]);
                    assert_eq!(pool.state.places[HERE].failures, 0, "the call explains it");
                }
                false => {
                    assert_resolved!(pool, 1 as Outcome::Lost { .. },
                        2 as Outcome::Lost { ran: None, deaths: 0, .. }, 3 as Outcome::Lost { .. });
                }
            }
        }
    }

    #[test]
    fn call_that_kills_three_workers_is_lost_and_the_next_one_is_not() {
        let mut pool = Pool::new(limits(1));
        let _ = pool.submit(1, 10);
        let _ = pool.submit(2, 10);
        for number in 1..=3 {
            pool.connect(number);
            assert_eq!(pool.in_flight(number), [1]);
            let _ = pool.exit(number, true);
            let _ = pool.wait(SECOND);
        }
        assert_resolved!(pool, 1 as Outcome::Lost { ran: None, deaths: 3, stop: None });
        pool.connect(4);
        pool.start(4, 2);
        assert_eq!(
            (
                pool.state.places[HERE].failures,
                pool.state.places[HERE].not_before
            ),
            (0, None)
        );
    }

    #[test]
    fn stopped_call_costs_no_neighbour() {
        let mut pool = Pool::with(limits(1));
        pool.batch(1, 1..5);
        pool.start(1, 1);
        assert_eq!(kills(&[pool.stop(1), pool.stop(3)]), []);
        let fx = pool.hear(1, Heard::Returned(vec![2, 3, 4]));
        assert_eq!(kills(&[fx]), [1]);
        assert_resolved!(pool, 3 as Outcome::Stopped { ran: None, .. });
        assert_eq!(pool.queued(), [2, 4]);
        let _ = pool.exit(1, true);
        assert_resolved!(pool, 1 as Outcome::Lost { stop: Some(_), .. });
    }

    #[test]
    fn call_that_was_stopped_before_it_began_is_killed_when_it_begins() {
        let mut pool = Pool::with(limits(1));
        pool.batch(1, 1..3);
        pool.start(1, 1);
        let _ = pool.stop(2);
        assert_eq!(kills(&[pool.hear(1, Heard::Done(1))]), []);
        assert_eq!(kills(&[pool.hear(1, Heard::Started(2))]), [1]);
    }

    #[test]
    fn stopped_call_gets_its_grace_from_its_start() {
        let cancel_grace = 100 * MILLI;
        let mut pool = Pool::with(Limits {
            cancel_grace,
            ..limits(1)
        });
        let _ = pool.submit(1, 10);
        assert!(pool.stop(1).actions.is_empty(), "it does not run");
        let _ = pool.wait(50 * MILLI);
        let fx = pool.hear(1, Heard::Started(1));
        assert!(matches!(fx.actions[..], [(1, Action::Cancel(1))]));
        assert_eq!(kills(&pool.wait(cancel_grace - MILLI)), []);
        assert_eq!(kills(&pool.wait(MILLI)), [1]);
    }

    #[test]
    fn large_call_waits_for_an_idle_worker_and_holds_up_nobody() {
        let mut pool = Pool::with(limits(2));
        pool.batch(1, 0..0);
        let _ = pool.submit(1, 10);
        let _ = pool.submit(2, 10);
        pool.start(2, 2);
        let _ = pool.submit(3, 70_000);
        // One of the workers takes small calls meanwhile, and only one does.
        (4..7).for_each(|id| drop(pool.submit(id, 10)));
        pool.now += 2 * MILLI;
        pool.start(1, 1);
        let _ = pool.submit(7, 10);
        let small = [pool.in_flight(1).len(), pool.in_flight(2).len()];
        assert_eq!(
            (small, pool.queued().len()),
            ([1, 1], 5),
            "the one that is next is left alone"
        );
        let fx = pool.hear(1, Heard::Done(1));
        assert!(matches!(
            fx.actions[..],
            [(1, Action::Fresh), (1, Action::RequestToSend)]
        ));
        assert_eq!(pool.in_flight(1), [3]);
        let _ = pool.hear(2, Heard::Done(2));
        assert_eq!(pool.in_flight(2), [4], "it has not learnt yet");
        assert_eq!(sent(&pool.hear(1, Heard::ClearToSend)), [(1, 3)]);
        let _ = pool.hear(1, Heard::Loaded);
        pool.start(1, 3);
    }

    #[test]
    fn small_calls_pass_a_large_one_on_the_other_worker() {
        let mut pool = Pool::with(limits(2));
        pool.batch(1, 1..3);
        pool.batch(2, 0..0);
        pool.state.workers[1].window = 100;
        let at = |pool: &Pool| [pool.in_flight(1).len(), pool.in_flight(2).len()];
        let before = at(&pool);
        let _ = pool.submit(10, 70_000);
        (11..15).for_each(|id| drop(pool.submit(id, 10)));
        let after = at(&pool);
        assert!(
            after[0] == before[0] || after[1] == before[1],
            "{before:?} {after:?}"
        );
        assert_eq!(pool.queued(), [10]);
    }

    #[test]
    fn large_call_that_is_stopped_before_it_is_sent_kills_nobody() {
        let mut pool = Pool::with(limits(1));
        let _ = pool.submit(1, 70_000);
        let _ = pool.submit(2, 10);
        assert_eq!(kills(&[pool.stop(1)]), []);
        assert_resolved!(pool, 1 as Outcome::Stopped { .. });
        assert_eq!(sent(&pool.hear(1, Heard::ClearToSend)), [(1, 2)]);
        let _ = pool.submit(3, 70_000);
        pool.start(1, 2);
        let _ = pool.hear(1, Heard::Done(2));
        let _ = pool.hear(1, Heard::ClearToSend);
        assert_eq!(kills(&[pool.stop(3)]), [1], "it is being written");
    }

    #[test]
    fn worker_whose_reader_decodes_gets_calls_only_if_there_can_be_no_other() {
        for processes in [1, 2] {
            let mut pool = Pool::new(limits(processes));
            let _ = pool.submit(1, 10);
            pool.connect(1);
            pool.start(1, 1);
            let _ = pool.act(|state, now| {
                state.heard(1, Heard::Done(1), now);
                state.heard(1, Heard::Decoding, now);
            });
            let fx = pool.submit(2, 10);
            let (sends, spawns) = (sent(&fx).len(), fx.spawns.len());
            assert_eq!((sends, spawns), (2 - processes, processes - 1));
            assert_eq!(sent(&pool.hear(1, Heard::Decoded)).len(), processes - 1);
        }
    }

    #[test]
    fn pool_grows_while_more_wait_than_start() {
        let mut pool = Pool::new(limits(3));
        let spawns = (1..10).flat_map(|id| pool.submit(id, 10).spawns);
        assert_eq!(
            spawns.collect::<Vec<_>>(),
            [(1, HERE), (2, HERE), (3, HERE)]
        );
        let mut pool = Pool::new(limits(3));
        let _ = pool.submit(1, 10);
        pool.connect(1);
        assert_eq!(pool.submit(2, 10).spawns, [(2, HERE)]);
    }

    #[test]
    fn worker_that_starts_for_calls_behind_another_waits_for_them() {
        let keep_alive = Duration::ZERO;
        let mut pool = Pool::new(Limits {
            keep_alive,
            ..limits(2)
        });
        let _ = pool.submit(1, 10);
        pool.connect(1);
        pool.state.workers[0].window = 10;
        assert_eq!(pool.submit(2, 10).spawns, [(2, HERE)]);
        let fx = pool.act(|state, now| state.ready((2, HERE), 2, Duration::ZERO, now));
        assert!(fx.actions.is_empty() && fx.spawns.is_empty());
        pool.start(1, 1);
        let _ = pool.wait(MILLI);
        let fx = pool.hear(1, Heard::Returned(vec![2]));
        assert_eq!(sent(&fx), [(2, 2)]);
        pool.start(2, 2);
        assert_eq!(retired(&[pool.hear(2, Heard::Done(2))]), [2]);
    }

    #[test]
    fn worker_is_replaced_after_its_calls_or_when_it_has_outgrown() {
        let calls_per_worker = Some(2);
        let mut pool = Pool::with(Limits {
            calls_per_worker,
            ..limits(1)
        });
        (1..=3).for_each(|id| drop(pool.submit(id, 10)));
        for id in [1, 2] {
            pool.start(1, id);
            let fx = pool.hear(1, Heard::Done(id));
            let spawns = fx.spawns.len();
            let replaced = (retired(&[fx]).len(), spawns);
            assert_eq!(replaced, if id == 2 { (1, 1) } else { (0, 0) });
        }
        // It does not leave.
        assert_eq!(kills(&pool.wait(RETIRE_TIMEOUT)), [1]);
        assert_eq!(kills(&pool.wait(SECOND)), [1], "its link is still there");

        let mut pool = Pool::with(limits(1));
        let _ = pool.submit(1, 10);
        pool.start(1, 1);
        assert_eq!(retired(&[pool.hear(1, Heard::Outgrown)]), []);
        assert_eq!(retired(&[pool.hear(1, Heard::Done(1))]), [1]);
    }

    #[test]
    fn idle_pool_wants_nothing_but_the_end_of_its_keep_alive() {
        let mut pool = Pool::with(limits(4));
        (1..5).for_each(|id| drop(pool.submit(id, 10)));
        for worker in 1..5 {
            pool.start(worker, worker);
            let _ = pool.hear(worker, Heard::Done(worker));
        }
        let idle_from = pool.now;
        let _ = pool.wait(3 * SECOND);
        assert_eq!(pool.state.next_deadline(), Some(idle_from + 10 * SECOND));
        let effects = pool.wait(7 * SECOND);
        assert_eq!(retired(&effects), [1, 2, 3, 4]);
    }

    #[test]
    fn supervisor_is_woken_only_for_an_earlier_deadline() {
        let mut pool = Pool::with(limits(1));
        assert!(pool.submit(1, 10).wake_supervisor);
        let mut wakes = 0;
        for id in 2..1_000 {
            pool.start(1, id - 1);
            wakes += usize::from(pool.hear(1, Heard::Done(id - 1)).wake_supervisor);
            wakes += usize::from(pool.submit(id, 10).wake_supervisor);
            let _ = pool.wait(10 * MILLI);
        }
        assert!(wakes <= 10, "one for each second: {wakes}");
        pool.start(1, 999);
        let wakes = pool.wait(10 * SECOND).len();
        assert!(wakes <= 11, "{wakes}");
    }

    /// One worker is healthy, and no other can be started.
    #[test]
    fn starts_that_fail_get_rare_though_the_calls_of_others_start() {
        let mut pool = Pool::new(limits(2));
        let _ = pool.submit(1, 10);
        pool.connect(1);
        pool.start(1, 1);
        let (mut starts, mut id) = (Vec::new(), 1);
        for milli in 0..10_000 {
            let done = pool.hear(1, Heard::Done(id));
            id += 1;
            let (one, more) = (pool.submit(id, 10), pool.submit(id + 100_000, 10));
            let mut effects = vec![done, one, more, pool.hear(1, Heard::Started(id))];
            effects.push(pool.hear(1, Heard::Done(id + 100_000)));
            effects.extend(pool.wait(MILLI));
            for _ in effects.iter().flat_map(|fx| &fx.spawns) {
                starts.push(milli);
                let _ = pool.act(|state, now| state.spawn_failed(HERE, SpawnFailure::Died, now));
            }
        }
        let within =
            |from: u32, to: u32| starts.iter().filter(|at| (from..to).contains(at)).count();
        assert!(within(0, 2_000) >= 4, "{starts:?}");
        for second in (2_000..10_000).step_by(1_000) {
            assert!(within(second, second + 1_000) <= 2, "{starts:?}");
        }
        assert!(within(2_000, 10_000) <= 4, "{starts:?}");
    }

    #[test]
    fn calls_fail_when_no_worker_can_be_started() {
        for (failure, tries) in [
            (SpawnFailure::Final, 1),
            (SpawnFailure::Died, 3),
            (SpawnFailure::Refused, 5),
        ] {
            let mut pool = Pool::new(limits(2));
            let mut starts = [pool.submit(1, 10), pool.submit(2, 10)]
                .map(|fx| fx.spawns.len())
                .iter()
                .sum();
            let mut rounds = 0;
            while starts > 0 {
                assert!(pool.resolved.is_empty());
                rounds += 1;
                for _ in 0..starts {
                    let fail =
                        |state: &mut State<u64, u64>, now| state.spawn_failed(HERE, failure, now);
                    assert!(pool.act(fail).spawns.is_empty(), "it waits");
                }
                starts = pool.wait(3 * SECOND).iter().map(|fx| fx.spawns.len()).sum();
            }
            assert_eq!(rounds, tries);
            assert_resolved!(pool, 1 as Outcome::Unstartable, 2 as Outcome::Unstartable);
        }
    }

    #[test]
    fn worker_that_is_short_of_something_costs_its_call_nothing() {
        let mut pool = Pool::new(limits(1));
        let _ = pool.submit(1, 10);
        for number in 1..=5 {
            assert!(pool.resolved.is_empty());
            pool.connect(number);
            assert_eq!(pool.in_flight(number), [1]);
            let _ = pool.act(|state, now| state.exited(number, Exit::Refused, now));
            let _ = pool.wait(3 * SECOND);
        }
        assert_resolved!(pool, 1 as Outcome::Unstartable);
    }

    /// What the start lacks may be what the worker that leaves still holds.
    #[test]
    fn calls_wait_for_the_end_of_a_worker_that_leaves() {
        let mut pool = Pool::with(Limits {
            calls_per_worker: Some(1),
            ..limits(1)
        });
        (1..=2).for_each(|id| drop(pool.submit(id, 10)));
        pool.start(1, 1);
        let mut spawns = pool.hear(1, Heard::Done(1)).spawns.len();
        let mut refuse = |pool: &mut Pool, time: Duration| {
            let mut tries = 0;
            for _ in 0..time.as_millis() / 10 {
                for _ in 0..std::mem::take(&mut spawns) {
                    tries += 1;
                    let refused = SpawnFailure::Refused;
                    let fx = pool.act(|state, now| state.spawn_failed(HERE, refused, now));
                    spawns += fx.spawns.len();
                }
                let effects = pool.wait(10 * MILLI);
                spawns += effects.iter().map(|fx| fx.spawns.len()).sum::<usize>();
            }
            tries
        };
        assert_eq!(refuse(&mut pool, SECOND), 5);
        assert_resolved!(pool, 1 as Outcome::Done);
        let _ = pool.exit(1, true);
        assert_eq!(refuse(&mut pool, 20 * SECOND), 5);
        assert_resolved!(pool, 2 as Outcome::Unstartable);
    }

    #[test]
    fn failures_beside_a_worker_that_was_well_do_not_count_after_it() {
        let mut pool = Pool::new(limits(2));
        let _ = pool.submit(1, 10);
        pool.connect(1);
        pool.start(1, 1);
        let mut spawns = pool.submit(2, 10).spawns.len();
        for _ in 0..10 {
            for _ in 0..spawns {
                let _ = pool.act(|state, now| state.spawn_failed(HERE, SpawnFailure::Refused, now));
            }
            spawns = pool.wait(3 * SECOND).iter().map(|fx| fx.spawns.len()).sum();
        }
        let _ = pool.exit(1, true);
        assert_resolved!(pool, 1 as Outcome::Lost { .. });
        let _ = pool.act(|state, now| state.spawn_failed(HERE, SpawnFailure::Refused, now));
        assert_eq!(
            (pool.queued(), pool.state.places[HERE].failures),
            (vec![2], 1)
        );
    }

    fn at_hosts(slots: &[usize]) -> Pool {
        let mut limits = limits(0);
        limits.places.extend(slots);
        Pool::new(limits)
    }

    #[test]
    fn eight_workers_are_started_at_a_host_at_once() {
        let mut pool = at_hosts(&[12, 2]);
        let spawns = (1..20).flat_map(|id| pool.submit(id, 10).spawns);
        let places = Vec::from_iter(spawns.map(|(_, place)| place));
        let count = |host| places.iter().filter(|place| **place == host).count();
        assert_eq!([count(1), count(2)], [8, 2]);
        let _ = pool.act(|state, now| state.ready((1, 1), 1, Duration::ZERO, now));
        assert_eq!(pool.state.starting(), 10, "the next one");
    }

    /// Eight logins at once may take a second on a small machine.
    #[test]
    fn a_host_where_workers_keep_connecting_is_not_hanging() {
        let mut pool = at_hosts(&[12]);
        (1..20).for_each(|id| _ = pool.submit(id, 10));
        for number in 1..=4 {
            assert!(pool.wait(600 * MILLI).iter().all(|fx| fx.spawns.is_empty()));
            let ready = |state: &mut State<_, _>, now| {
                state.ready((number, 1), number, Duration::ZERO, now)
            };
            assert_eq!(pool.act(ready).spawns, [(8 + number, 1)]);
        }
    }

    #[test]
    fn a_dead_host_is_left_alone_and_a_hanging_one_not_counted_on() {
        let mut pool = at_hosts(&[4, 4]);
        assert_eq!(pool.submit(1, 10).spawns, [(1, 1)]);
        let fail = |state: &mut State<u64, u64>, now| {
            state.spawn_failed(1, SpawnFailure::Died, now);
        };
        assert_eq!(pool.act(fail).spawns, [(2, 2)], "the other one is tried");
        let spawns = |effects: Vec<Effects<u64, u64>>| {
            Vec::from_iter(effects.into_iter().flat_map(|fx| fx.spawns))
        };
        assert_eq!(spawns(pool.wait(500 * MILLI)), []);
        assert_eq!(spawns(pool.wait(SECOND)), [(3, 1)], "it takes too long");
        let _ = pool.act(|state, now| state.ready((2, 2), 2, Duration::ZERO, now));
        assert_eq!(pool.in_flight(2), [1]);
    }

    #[test]
    fn calls_run_here_first_whichever_worker_is_older() {
        let mut pool = Pool::new(Limits {
            places: vec![1, 1],
            ..limits(0)
        });
        let spawns = pool.act(|state, now| state.warm(now)).spawns;
        assert_eq!(spawns, [(1, HERE), (2, 1)]);
        let _ = pool.act(|state, now| state.ready((2, 1), 2, Duration::ZERO, now));
        pool.connect(1);
        assert_eq!(sent(&pool.submit(1, 10)), [(1, 1)]);
        assert_eq!(sent(&pool.submit(2, 10)), [(2, 2)]);
    }

    #[test]
    fn a_dead_host_is_not_left_alone_for_long_once_no_worker_is_left() {
        let mut pool = at_hosts(&[1, 1]);
        assert_eq!(pool.submit(1, 10).spawns, [(1, 1)]);
        let _ = pool.act(|state, now| state.ready((1, 1), 1, Duration::ZERO, now));
        pool.start(1, 1);
        let fail = |pool: &mut Pool, place| {
            let died = SpawnFailure::Died;
            pool.act(|state, now| state.spawn_failed(place, died, now))
        };
        assert_eq!(pool.submit(2, 10).spawns, [(2, 2)]);
        for _ in 0..4 {
            let _ = fail(&mut pool, 2);
            let _ = pool.wait(64 * SECOND);
        }
        let _ = fail(&mut pool, 2);
        let pause = pool.state.places[2].not_before.map(|at| at - pool.now);
        assert_eq!(pause, Some(64 * SECOND));

        let mut spawns = pool.exit(1, true).spawns;
        for _ in 0..20 {
            if spawns.iter().any(|(_, place)| *place == 2) {
                return;
            }
            let tried = std::mem::take(&mut spawns);
            for (_, place) in tried {
                spawns.extend(fail(&mut pool, place).spawns);
            }
            let effects = pool.wait(100 * MILLI);
            spawns.extend(effects.into_iter().flat_map(|fx| fx.spawns));
        }
        panic!("it is not tried");
    }

    #[test]
    fn a_dead_host_is_left_alone_while_the_only_worker_is_replaced_again_and_again() {
        let mut limits = limits(1);
        limits.places.push(1);
        limits.calls_per_worker = Some(1);
        let mut pool = Pool::new(limits);
        let mut spawns = (1..=100)
            .flat_map(|id| pool.submit(id, 10).spawns)
            .collect::<Vec<_>>();
        let mut tries = 0;
        for id in 1..=50 {
            let (number, _) = *spawns.iter().find(|(_, place)| *place == HERE).unwrap();
            for _ in spawns.drain(..).filter(|(_, place)| *place != HERE) {
                tries += 1;
                let died = SpawnFailure::Died;
                let failed = pool.act(|state, now| state.spawn_failed(1, died, now));
                assert!(failed.spawns.is_empty());
            }
            pool.connect(number);
            pool.start(number, id);
            let mut effects = vec![pool.hear(number, Heard::Done(id)), pool.exit(number, true)];
            effects.extend(pool.wait(100 * MILLI));
            spawns.extend(effects.into_iter().flat_map(|fx| fx.spawns));
        }
        // One a second, since at times there is no worker at all.
        assert!((1..=7).contains(&tries), "{tries}");
    }

    #[test]
    fn a_dead_host_is_not_left_alone_for_long_once_no_other_starts() {
        let mut pool = at_hosts(&[1, 1]);
        assert_eq!(pool.submit(1, 10).spawns, [(1, 1)]);
        assert_eq!(pool.submit(2, 10).spawns, [(2, 2)]);
        let died = SpawnFailure::Died;
        let pause = |pool: &Pool| pool.state.places[1].not_before.map(|at| at - pool.now);
        for _ in 0..4 {
            let _ = pool.act(|state, now| state.spawn_failed(1, died, now));
            let _ = pool.wait(64 * SECOND);
        }
        let _ = pool.act(|state, now| state.spawn_failed(1, died, now));
        assert_eq!(pause(&pool), Some(64 * SECOND));
        let _ = pool.act(|state, now| state.spawn_failed(2, died, now));
        assert_eq!(pause(&pool), Some(SECOND));
    }

    #[test]
    fn calls_fail_when_no_host_is_left_to_be_tried() {
        let mut pool = at_hosts(&[1, 1]);
        let mut spawns = pool.submit(1, 10).spawns;
        for _ in 0..2 * DEATHS {
            assert!(pool.resolved.is_empty(), "there is hope");
            let (_, place) = spawns.remove(0);
            let fx = pool.act(|state, now| state.spawn_failed(place, SpawnFailure::Died, now));
            spawns.extend(fx.spawns);
            let effects = pool.wait(2 * SECOND);
            spawns.extend(effects.into_iter().flat_map(|fx| fx.spawns));
        }
        assert!(matches!(pool.resolved[..], [(1, Outcome::Unstartable)]));
    }

    /// The calls behind another one are not held up by the round trip, and the round trip is filled.
    #[test]
    fn as_many_calls_are_under_way_as_the_round_trip_takes() {
        let mut pool = at_hosts(&[1]);
        let _ = pool.submit(1, 10);
        let trip = 50 * MILLI;
        let _ = pool.act(|state, now| state.ready((1, 1), 1, trip, now));
        for id in 1..30 {
            pool.start(1, id);
            pool.now += 5 * MILLI;
            let _ = pool.hear(1, Heard::Done(id));
            let _ = pool.submit(id + 1, 10);
        }
        (100..200).for_each(|id| drop(pool.submit(id, 10)));
        let under_way = pool.in_flight(1).len();
        assert!(
            (10..=20).contains(&under_way),
            "{under_way} of 5 ms in 50 ms"
        );
    }

    #[test]
    fn calls_wait_for_a_living_worker_when_no_other_can_be_started() {
        let mut pool = Pool::new(limits(2));
        let _ = pool.submit(1, 10);
        pool.connect(1);
        pool.start(1, 1);
        let mut spawns = pool.submit(2, 10).spawns.len();
        for _ in 0..10 {
            for _ in 0..spawns {
                let _ = pool.act(|state, now| state.spawn_failed(HERE, SpawnFailure::Final, now));
            }
            spawns = pool.wait(SECOND).iter().map(|fx| fx.spawns.len()).sum();
        }
        assert!(pool.resolved.is_empty());
        assert_eq!(sent(&pool.hear(1, Heard::Done(1))), [(1, 2)]);
    }

    #[test]
    fn frozen_worker_is_killed_unless_an_innocent_call_runs_there() {
        let mut pool = Pool::with(limits(1));
        let _ = pool.submit(1, 10);
        assert_eq!(kills(&pool.wait(FROZEN - SECOND)), []);
        assert_eq!(kills(&pool.wait(SECOND)), [1]);
        let _ = pool.exit(1, true);
        assert_eq!(pool.queued(), [1]);

        let mut pool = Pool::with(limits(1));
        pool.batch(1, 1..4);
        pool.start(1, 1);
        let _ = pool.stop(2);
        let effects = pool.wait(5 * SECOND);
        assert_eq!(kills(&effects), []);
        assert!(workers!(effects, Action::Probe(1)).contains(&1));
        assert_resolved!(pool, 2 as Outcome::Stopped { ran: None, .. });
        assert!(pool.state.calls().all(|(id, _)| *id != 2), "it is over");
        // The worker thaws, and begins a call that is over.
        let _ = pool.hear(1, Heard::Done(1));
        pool.start(1, 2);
        let fx = pool.hear(1, Heard::Returned(vec![3]));
        assert_eq!((kills(&[fx]), pool.queued()), (vec![1], vec![3]));
        let _ = pool.exit(1, true);
        assert_resolved!(pool, 1 as Outcome::Done);

        // The same, but the worker freezes again before it gives anything back.
        let mut pool = Pool::with(limits(1));
        pool.batch(1, 1..4);
        pool.start(1, 1);
        let _ = pool.stop(2);
        let _ = pool.wait(5 * SECOND);
        let _ = pool.hear(1, Heard::Done(1));
        pool.start(1, 2);
        assert_eq!(kills(&pool.wait(CHECK - MILLI)), [], "it has just begun");
        assert_eq!(kills(&pool.wait(CHECK)), [1]);
        let _ = pool.exit(1, true);
        assert_eq!(pool.queued(), [3]);
    }

    /// The launcher is killed second, and a relay has to be earlier, though it may block in its write.
    #[test]
    fn relay_has_time_to_find_out_that_its_worker_is_frozen() {
        for bytes in [10, 2 * EAGER] {
            let mut pool = at_hosts(&[1]);
            let _ = pool.submit(1, bytes);
            let _ = pool.act(|state, now| state.ready((1, 1), 1, Duration::ZERO, now));
            let _ = pool.hear(1, Heard::ClearToSend);
            let frozen = pool.wait(61 * SECOND);
            assert_eq!(kills(&frozen), [1]);
            assert_eq!(kills(&pool.wait(SECOND)), []);
            assert_eq!(kills(&pool.wait(SECOND)), [1]);
            assert_eq!(kills(&pool.wait(CHECK)), [1], "something holds its link");
            let _ = pool.exit(1, true);
            assert_eq!(pool.queued(), [1]);
        }

        // Nothing depends on it once the call is stopped.
        let mut pool = at_hosts(&[1]);
        let _ = pool.submit(1, 2 * EAGER);
        let _ = pool.act(|state, now| state.ready((1, 1), 1, Duration::ZERO, now));
        let _ = pool.hear(1, Heard::ClearToSend);
        assert_eq!(kills(&[pool.act(State::close)]), [1]);
        assert_eq!(kills(&pool.wait(CHECK)), [1]);
    }

    /// The flag falls before the reader hears what the worker has said meanwhile.
    #[test]
    fn worker_is_not_judged_by_the_time_of_a_decoding_that_has_just_ended() {
        let mut pool = Pool::with(limits(1));
        let _ = pool.submit(1, 10);
        pool.start(1, 1);
        let _ = pool.submit(2, 10);
        let _ = pool.act(|state, now| {
            state.heard(1, Heard::Done(1), now);
            state.heard(1, Heard::Decoding, now);
        });
        assert_eq!(pool.in_flight(1), [2]);
        for second in 1..=5 {
            pool.now += SECOND;
            let fx = pool.act(|state, now| state.check(now, |_| second < 5));
            assert_eq!(kills(&[fx]), [], "after {second} s");
        }
    }

    #[test]
    fn check_that_is_late_judges_nobody() {
        let mut pool = Pool::with(limits(1));
        let _ = pool.submit(1, 10);
        pool.now += 60 * SECOND;
        let fx = pool.act(|state, now| state.check(now, |_| false));
        assert_eq!(kills(&[fx]), [], "this process was frozen itself");
        assert_eq!(kills(&pool.wait(SECOND)), [1]);
    }

    #[test]
    fn worker_is_not_judged_while_its_reader_decodes() {
        let mut pool = Pool::with(limits(1));
        let _ = pool.submit(1, 10);
        for decodes in [true, false] {
            pool.now += FROZEN;
            pool.state.next_check = Some(pool.now);
            let fx = pool.act(|state, now| state.check(now, |_| decodes));
            assert_eq!(kills(&[fx]).is_empty(), decodes);
        }
    }

    #[test]
    fn shutdown_waits_for_no_worker_to_return_what_it_has() {
        let mut pool = Pool::with(limits(1));
        pool.batch(1, 1..5);
        pool.start(1, 1);
        assert_eq!(kills(&[pool.act(|state, now| state.close(now))]), [1]);
        let _ = pool.exit(1, true);
        assert_eq!(pool.resolved.len(), 4);
    }

    #[test]
    fn shutdown_ends_all() {
        let mut pool = Pool::with(limits(2));
        (1..4).for_each(|id| drop(pool.submit(id, 10)));
        pool.start(1, 1);
        let _ = pool.exit(2, true);
        let _ = pool.submit(4, 10);
        let fx = pool.act(|state, now| state.close(now));
        assert_eq!(kills(&[fx]), [1]);
        let _ = pool.submit(5, 10);
        assert_eq!(pool.resolved.len(), 4, "all but the one that runs");
        let _ = pool.exit(1, true);
        assert_eq!(pool.resolved.len(), 5);
        let starting = pool.state.starting();
        for number in 0..starting as u64 {
            let spawn = (10 + number, HERE);
            let ready =
                |state: &mut State<u64, u64>, now| state.ready(spawn, 10, Duration::ZERO, now);
            assert_eq!(retired(&[pool.act(ready)]), [10]);
            let _ = pool.exit(10 + number, true);
        }
        let count = pool.state.reaping;
        let _ = pool.act(|state, _| (0..count).for_each(|_| state.reaped()));
        assert!(pool.state.is_empty());
        let _ = pool.wait(2 * SECOND);
        assert_eq!(pool.state.next_deadline(), None);
    }
}
