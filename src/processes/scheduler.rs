//! The scheduler: decides which worker runs which call, and when workers start and end.
//!
//! It does no I/O. [`State`] takes events and appends what has to be done to [`Effects`]. It knows no
//! thread, process or socket, and no clock but the `now` that it is given. The pool has one function that
//! locks the state, feeds it an event, calls [`State::schedule`], unlocks, and carries out the effects.
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

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::unfuture::Reason;

/// What a frame counts for beside its bytes: a system charges a small write for up to five times its
/// bytes, and a socket of Linux holds 208 KiB.
const FRAME_OVERHEAD: usize = 256;
/// Room for calls that the queue keeps. It gives back the memory of a larger burst.
const QUEUE_KEPT: usize = 4096;
/// The work that may lie ready at a worker. A call that runs for longer is slow.
const WINDOW: Duration = Duration::from_millis(1);
const WINDOW_CALLS: usize = 256;
/// Workers that may die with a call before they start it.
pub(super) const DEATHS: u32 = 3;
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

/// What is to be done when the lock is free again, in the order of the fields: writes come before
/// resolutions, so that workers run while the results of others are decoded; and a call begins before it
/// is resolved.
#[derive(Debug)]
#[must_use]
pub(super) struct Effects<C, W> {
    /// Write these frames.
    pub(super) sends: Vec<(W, Outbox<C>)>,
    /// Kill these processes. Where a process is asked for again, it is dead and something else holds its
    /// link open: close the link.
    pub(super) kills: Vec<W>,
    /// Close the sending side of these links, which ends the workers.
    pub(super) retirements: Vec<W>,
    /// Look whether these processes live: nothing was heard of them for long. Close the link of one that
    /// does not.
    pub(super) probes: Vec<W>,
    /// These calls have begun.
    pub(super) begun: Vec<C>,
    /// Resolve these calls, then say so with [`State::resolved`].
    pub(super) resolutions: Vec<(C, Outcome)>,
    /// Start workers of these numbers. Each ends up as [`State::ready`] or [`State::spawn_failed`].
    pub(super) spawns: Vec<u64>,
    /// The next deadline is earlier than the supervisor knows.
    pub(super) wake_supervisor: bool,
    /// Nothing is queued, in flight, or about to be resolved.
    pub(super) quiet: bool,
    /// No worker process exists.
    pub(super) empty: bool,
}

/// What is to be written to one worker.
#[derive(Debug)]
pub(super) struct Outbox<C> {
    pub(super) messages: Vec<Message<C>>,
    /// The worker has done all calls that it had before: its standard error is that of others.
    pub(super) was_idle: bool,
}

#[derive(Debug)]
pub(super) enum Message<C> {
    Call(C),
    /// Asks the worker to say when it reads.
    RequestToSend,
    /// Asks the running call to end by itself.
    Cancel(u64),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    /// `Done` has arrived. Its payload says how the call ended.
    Done,
    /// The call was stopped before it ran, or ended by itself when asked to, after having `ran` that long.
    Stopped {
        reason: Reason,
        ran: Option<Duration>,
    },
    /// The worker has ended, after the call `ran` that long. Without `ran` the call may have begun, or, if
    /// there are `deaths`, it was not started by that many workers.
    Lost {
        ran: Option<Duration>,
        deaths: u32,
        stop: Option<Reason>,
    },
    /// No worker can be started. The failure is the one of the event.
    Unstartable,
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

/// The same for workers that die before they start any call. Two calls that kill whoever gets them do not
/// make the calls behind them fail.
const LOST_WORKERS: u32 = 2 * DEATHS + 1;

pub(super) struct State<C, W> {
    limits: Limits,
    /// What the events since the last `schedule` ask for.
    fx: Effects<C, W>,
    queue: Queue<C>,
    /// Those that are connected, in the order in which they were.
    workers: Vec<Worker<C, W>>,
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
    /// within one back-off count once. The first start of a call by a worker resets it.
    failures: u32,
    /// When the next worker may be started. Set with `failures`.
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
}

/// Calls that wait, ordered by id. Two queues, so that a large call that waits for an idle worker holds up
/// none of the others. Without a limit, as every way to start work.
struct Queue<C> {
    small: VecDeque<Queued<C>>,
    large: VecDeque<Queued<C>>,
}

struct Queued<C> {
    call: C,
    /// Workers that died with it before they had started it.
    deaths: u32,
}

struct Worker<C, W> {
    number: u64,
    handle: W,
    phase: Phase,
    /// Sent and not done; the one that runs is in front.
    in_flight: VecDeque<InFlight<C>>,
    outbox: Outbox<C>,
    /// Bytes that the link holds while the worker does not read.
    eager: usize,
    /// What the frames of calls that are not known to have begun take of `eager`, at most.
    unacked_bytes: usize,
    /// How many calls may be in flight: as many as take about `WINDOW` together.
    window: usize,
    /// A moving average.
    avg_runtime: Duration,
    /// Calls sent and not returned.
    assigned: u64,
    /// At so many the worker drains: it gets no more, and retires when it has done them. Zero as soon as it
    /// is to be replaced.
    assigned_max: u64,
    /// Whether it has ever started a call.
    proven: bool,
    /// Its reader decodes a large result, and hears nothing meanwhile.
    decoding: bool,
    /// When something was last heard of it, or given to it while it was idle.
    last_active: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Open,
    /// A request to send is not answered yet. Only a large call is in flight, or nothing if it was stopped.
    Rendezvous,
    /// The large call is being written.
    Loading,
    /// The worker was told to end, or at `by` killed. It has nothing in flight, and no place in the pool.
    Leaving {
        by: Instant,
    },
    /// Killed, and to be killed again if its link is still there then.
    Killed {
        again: Instant,
    },
}

struct InFlight<C> {
    call: C,
    deaths: u32,
    /// Its part of `unacked_bytes`. Zero once it has started.
    charge: usize,
    started: Option<Instant>,
    stop: Option<Stop>,
    /// It holds up others: they were returned because of it.
    slow: bool,
    /// It was stopped, its worker has not given it back, and the one who waited for that was told.
    resolved: bool,
}

#[derive(Clone, Copy)]
struct Stop {
    reason: Reason,
    /// When the worker is killed if it still runs the call.
    kill_at: Instant,
}

// -------------------------------------------------------------------------------------- the events

impl<C: Call, W: Clone> State<C, W> {
    pub(super) fn new(limits: Limits) -> State<C, W> {
        State {
            limits,
            fx: Effects::default(),
            queue: Queue {
                small: VecDeque::new(),
                large: VecDeque::new(),
            },
            workers: Vec::new(),
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
        }
    }

    /// A call is made.
    pub(super) fn submit(&mut self, call: C) {
        if self.closed {
            let reason = Reason::ShutDown;
            return self.resolve(call, Outcome::Stopped { reason, ran: None });
        }
        self.accepted += 1;
        self.queue.insert(Queued { call, deaths: 0 });
    }

    /// Workers are wanted up to the limit, whatever there is to do.
    pub(super) fn warm(&mut self, now: Instant) {
        while self.reserve_slot(now) {
            self.fx.spawns.push(self.spawned);
        }
    }

    /// A worker has connected. Its link holds so many bytes that it does not read.
    pub(super) fn ready(&mut self, number: u64, handle: W, eager: usize, now: Instant) {
        self.starting -= 1;
        self.workers.push(Worker {
            number,
            handle,
            phase: Phase::Open,
            in_flight: VecDeque::new(),
            outbox: Outbox::default(),
            eager,
            unacked_bytes: 0,
            window: 1,
            avg_runtime: WINDOW,
            assigned: 0,
            assigned_max: self.limits.calls_per_worker.unwrap_or(u64::MAX),
            proven: false,
            decoding: false,
            last_active: now,
        });
    }

    /// A worker could not be started. Calls wait for those that live; if there are none, they fail in the end.
    pub(super) fn spawn_failed(&mut self, failure: SpawnFailure, now: Instant) {
        self.starting -= 1;
        self.fail(failure.tries(), now);
    }

    /// A worker runs a call from now on.
    pub(super) fn started(&mut self, number: u64, id: u64, now: Instant) {
        let grace = self.limits.cancel_grace;
        let Some(worker) = self.hear(number, now) else {
            return;
        };
        let is_first = !worker.proven;
        let begun = worker.start(id, now, grace);
        if is_first && worker.proven {
            self.failures = 0;
            self.not_before = None;
        }
        self.fx.begun.extend(begun);
    }

    /// A call is over.
    pub(super) fn done(&mut self, number: u64, id: u64, now: Instant) {
        let Some(worker) = self.hear(number, now) else {
            return;
        };
        if let Some(entry) = worker.finish(id, now) {
            let outcome = match entry.stop {
                None => Outcome::Done,
                // It ended by itself when it was asked to.
                Some(Stop { reason, .. }) => Outcome::Stopped {
                    reason,
                    ran: entry.ran(now),
                },
            };
            self.resolve_entry(entry, outcome);
        }
    }

    /// A worker gives back calls that it has not begun, because the one that it runs takes long.
    pub(super) fn returned(&mut self, number: u64, ids: &[u64], now: Instant) {
        let worker = self.hear(number, now);
        let returned = worker.map_or_else(Vec::new, |worker| worker.take_back(ids));
        for entry in returned {
            self.requeue(entry);
        }
    }

    /// A worker reads, and does nothing else until the large call has arrived. When the effects of this are
    /// carried out, the call is written: [`State::loaded`] follows.
    pub(super) fn clear_to_send(&mut self, number: u64, now: Instant) {
        let Some(worker) = self.hear(number, now) else {
            return;
        };
        if worker.phase != Phase::Rendezvous {
            return;
        }
        worker.phase = Phase::Open;
        if let Some(entry) = worker.in_flight.front() {
            worker.phase = Phase::Loading;
            worker
                .outbox
                .messages
                .push(Message::Call(entry.call.clone()));
        }
    }

    /// The large call is written, or the link does not take it any more.
    pub(super) fn loaded(&mut self, number: u64, now: Instant) {
        if let Some(worker) = self.hear(number, now) {
            if worker.phase == Phase::Loading {
                worker.phase = Phase::Open;
            }
        }
    }

    /// The link of a worker has taken further bytes of a large call.
    pub(super) fn progressed(&mut self, number: u64, now: Instant) {
        self.hear(number, now);
    }

    /// A call says something that concerns only itself: how far it is, or that it panicked. Gives the call.
    pub(super) fn told(&mut self, number: u64, id: u64, now: Instant) -> Option<C> {
        let worker = self.hear(number, now)?;
        let entry = worker
            .in_flight
            .iter()
            .find(|entry| entry.call.id() == id)?;
        Some(entry.call.clone())
    }

    /// The reader of a worker is about to decode a large result, and will not hear the worker.
    pub(super) fn decoding(&mut self, number: u64) {
        if let Some(worker) = self.worker(number) {
            worker.decoding = true;
        }
    }

    /// It listens again.
    pub(super) fn decoded(&mut self, number: u64, now: Instant) {
        if let Some(worker) = self.hear(number, now) {
            worker.decoding = false;
        }
    }

    /// So many calls of `resolutions` are resolved.
    pub(super) fn resolved(&mut self, calls: usize) {
        self.resolving -= calls;
    }

    /// A worker has taken too much memory, say: another one takes its place once it is idle.
    pub(super) fn replace(&mut self, number: u64) {
        if let Some(worker) = self.worker(number) {
            worker.assigned_max = 0;
        }
    }

    /// The link of a worker has ended, and all that the worker had said is known. If that is not `certain`,
    /// because the link has lost something, anything that was sent may have begun.
    ///
    /// [`State::reaped`] follows.
    pub(super) fn exited(&mut self, number: u64, certain: bool, now: Instant) {
        let Some(at) = self
            .workers
            .iter()
            .position(|worker| worker.number == number)
        else {
            return;
        };
        let worker = self.workers.remove(at);
        self.reaping += 1;
        let certain = certain || worker.phase == Phase::Rendezvous;
        let failed = worker.has_failed();
        for mut entry in worker.in_flight {
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

    /// A call is to be stopped. Says whether it will be, which is false for one that is over.
    pub(super) fn stop(&mut self, id: u64, reason: Reason, now: Instant) -> bool {
        let stopped = Outcome::Stopped { reason, ran: None };
        if let Some(queued) = self.queue.remove(id) {
            self.resolve(queued.call, stopped);
            return true;
        }
        let grace = self.limits.cancel_grace;
        let found = self.workers.iter_mut().find_map(|worker| {
            let at = worker.position(id)?;
            Some((worker, at))
        });
        let Some((worker, at)) = found else {
            return false;
        };
        if worker.phase == Phase::Rendezvous {
            // Nothing of the call is written yet.
            if let Some(entry) = worker.remove(at) {
                worker.assigned -= 1;
                self.resolve_entry(entry, stopped);
            }
        } else if worker.in_flight[at].stop.is_none() {
            worker.stop(at, reason, now, grace);
        }
        true
    }

    /// The end of the pool: it stops all calls and takes no more, and all workers end.
    pub(super) fn close(&mut self, now: Instant) {
        let reason = Reason::ShutDown;
        self.closed = true;
        for queued in self.queue.drain() {
            self.resolve(queued.call, Outcome::Stopped { reason, ran: None });
        }
        let busy = |worker: &&mut Worker<C, W>| worker.is_busy();
        for worker in self.workers.iter_mut().filter(busy) {
            for entry in &mut worker.in_flight {
                entry.stop.get_or_insert(Stop {
                    reason,
                    kill_at: now,
                });
            }
            self.fx.kills.push(worker.kill(now));
        }
    }

    /// What follows from the events since the last time, and from the time that has passed. To be called
    /// after each event, and by the supervisor at the deadline.
    pub(super) fn schedule(&mut self, now: Instant) -> Effects<C, W> {
        self.check_health(now);
        self.kill_due(now);
        self.assign(now);
        self.retire(now);
        self.grow(now);
        self.plan(now);
        for worker in &mut self.workers {
            if !worker.outbox.messages.is_empty() {
                let outbox = std::mem::take(&mut worker.outbox);
                self.fx.sends.push((worker.handle.clone(), outbox));
            }
        }
        self.fx.quiet = self.is_quiet();
        self.fx.empty = self.workers.is_empty() && self.starting + self.reaping == 0;
        std::mem::take(&mut self.fx)
    }

    // ---------------------------------------------------------------------------------- the questions

    /// When the supervisor has to call `schedule` next. It is woken if that becomes earlier.
    pub(super) fn next_deadline(&mut self) -> Option<Instant> {
        self.planned = self.deadline;
        self.deadline
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(super) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Whether nothing is queued, in flight, or about to be resolved.
    pub(super) fn is_quiet(&self) -> bool {
        let flying = self
            .workers
            .iter()
            .any(|worker| !worker.in_flight.is_empty());
        self.queue.len() == 0 && !flying && self.resolving == 0
    }

    /// The calls that are not over, and when they started.
    pub(super) fn calls(&self) -> impl Iterator<Item = (&C, Option<Instant>)> {
        let in_flight = self.workers.iter().flat_map(|worker| &worker.in_flight);
        let in_flight = in_flight.map(|entry| (&entry.call, entry.started));
        let queued = self.queue.small.iter().chain(&self.queue.large);
        in_flight.chain(queued.map(|queued| (&queued.call, None)))
    }

    /// How many calls are queued, how many in flight, and how many workers there are.
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        let in_flight = self.workers.iter().map(|worker| worker.in_flight.len());
        (self.queue.len(), in_flight.sum(), self.live())
    }

    // ---------------------------------------------------------------------------------- the parts

    fn worker(&mut self, number: u64) -> Option<&mut Worker<C, W>> {
        self.workers
            .iter_mut()
            .find(|worker| worker.number == number)
    }

    fn hear(&mut self, number: u64, now: Instant) -> Option<&mut Worker<C, W>> {
        let worker = self.worker(number)?;
        worker.last_active = now;
        Some(worker)
    }

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
        match entry.stop {
            Some(Stop { reason, .. }) => {
                self.resolve_entry(entry, Outcome::Stopped { reason, ran: None });
            }
            None => self.queue.insert(Queued {
                call: entry.call,
                deaths: entry.deaths,
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
        let stays = |worker: &&Worker<C, W>| !matches!(worker.phase, Phase::Leaving { .. });
        self.workers.iter().filter(stays).count()
    }

    fn is_full(&self) -> bool {
        self.live() + self.starting >= self.limits.processes
    }

    /// Reserves a place for one more worker, if there may be one more now. After a failure one at a time is
    /// tried.
    fn reserve_slot(&mut self, now: Instant) -> bool {
        let backs_off = self
            .not_before
            .is_some_and(|at| now < at || self.starting > 0);
        if self.closed || backs_off || self.is_full() {
            return false;
        }
        self.starting += 1;
        self.spawned += 1;
        true
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
        for worker in self.workers.iter_mut().filter(|worker| !worker.decoding) {
            if worker.is_frozen(now) {
                self.fx.kills.push(worker.kill(now));
            } else if worker.running().is_some() {
                let silent = worker.is_silent(now).then(|| worker.handle.clone());
                self.fx.probes.extend(silent);
                overdue.extend(worker.take_overdue(now));
            }
        }
        for (call, reason) in overdue {
            self.resolve(call, Outcome::Stopped { reason, ran: None });
        }
    }

    fn kill_due(&mut self, now: Instant) {
        for worker in &mut self.workers {
            if worker.kill_at().is_some_and(|at| at <= now) {
                self.fx.kills.push(worker.kill(now));
            }
        }
    }

    /// Moves calls from the queue to workers with room.
    fn assign(&mut self, now: Instant) {
        // What a worker says while its reader decodes is heard late: one more worker is better.
        let complete = self.live() >= self.limits.processes;
        let usable = |worker: &Worker<C, W>| complete || !worker.decoding;
        loop {
            let large = self.queue.is_large_next();
            let mut kept_free = None;
            if large {
                let is_idle = |worker: &Worker<C, W>| usable(worker) && worker.is_idle();
                if let Some(at) = self.least_loaded(is_idle) {
                    let queued = self.queue.large.pop_front();
                    queued
                        .into_iter()
                        .for_each(|call| self.workers[at].push(call, now));
                    self.active = true;
                    continue;
                }
                // The small calls behind it leave one worker alone, the one that is idle next. It changes
                // only to one that is idle earlier, or if its call turns out slow.
                kept_free = self.idle_next(now);
            }
            let Some(bytes) = self.queue.small.front().map(|next| next.call.bytes()) else {
                break;
            };
            let has_room = |worker: &Worker<C, W>| {
                usable(worker) && Some(worker.number) != kept_free && worker.has_room(bytes, now)
            };
            let Some(at) = self.least_loaded(has_room) else {
                break;
            };
            let queued = self.queue.small.pop_front();
            queued
                .into_iter()
                .for_each(|call| self.workers[at].push(call, now));
            self.active = true;
        }
        self.queue.shrink();
    }

    /// Among idle workers the oldest, so that the surplus can retire.
    fn least_loaded(&self, is_fit: impl Fn(&Worker<C, W>) -> bool) -> Option<usize> {
        let fit = self
            .workers
            .iter()
            .enumerate()
            .filter(|(_, worker)| is_fit(worker));
        let least = fit.min_by_key(|(_, worker)| (worker.decoding, worker.in_flight.len()));
        least.map(|(at, _)| at)
    }

    fn idle_next(&self, now: Instant) -> Option<u64> {
        let takes_calls = self.workers.iter().filter(|worker| worker.takes_calls());
        let next = takes_calls.min_by_key(|worker| (worker.is_slow(now), worker.in_flight.len()));
        next.map(|worker| worker.number)
    }

    /// Ends idle workers that are not needed any more.
    fn retire(&mut self, now: Instant) {
        for worker in &mut self.workers {
            let Some(at) = worker.idle_until(self.limits.keep_alive) else {
                continue;
            };
            if self.closed || worker.is_draining() || at <= now {
                worker.phase = Phase::Leaving {
                    by: now + RETIRE_TIMEOUT,
                };
                self.fx.retirements.push(worker.handle.clone());
            }
        }
    }

    /// Starts workers while calls wait that no worker being started is for.
    fn grow(&mut self, now: Instant) {
        while self.is_short() && self.reserve_slot(now) {
            self.fx.spawns.push(self.spawned);
        }
    }

    /// Whether more calls wait, in the queue or behind another call, than workers are being started.
    fn is_short(&self) -> bool {
        let in_flight = self.workers.iter().map(|worker| worker.in_flight.len());
        let behind: usize = in_flight.map(|calls| calls.saturating_sub(1)).sum();
        self.queue.len() + behind > self.starting
    }

    /// Finds the next deadline.
    fn plan(&mut self, now: Instant) {
        if self.next_check.is_none() && self.workers.iter().any(Worker::is_busy) {
            self.next_check = Some(now + FROZEN);
        }
        let grows = !self.closed && !self.is_full() && self.is_short();
        let start_at = self.not_before.filter(|at| grows && now < *at);
        let keep_alive = self.limits.keep_alive;
        let workers = self.workers.iter();
        let workers = workers.flat_map(|worker| [worker.kill_at(), worker.idle_until(keep_alive)]);
        let deadlines = workers.chain([self.next_check, start_at]);
        self.deadline = deadlines.flatten().min();
        if self
            .deadline
            .is_some_and(|at| self.planned.is_none_or(|planned| at < planned))
        {
            self.planned = self.deadline;
            self.fx.wake_supervisor = true;
        }
    }
}

// ---------------------------------------------------------------------------------- one worker

impl<C: Call, W: Clone> Worker<C, W> {
    fn running(&self) -> Option<&InFlight<C>> {
        self.in_flight
            .front()
            .filter(|front| front.started.is_some())
    }

    fn is_busy(&self) -> bool {
        !self.in_flight.is_empty() || matches!(self.phase, Phase::Rendezvous | Phase::Loading)
    }

    fn is_draining(&self) -> bool {
        self.assigned >= self.assigned_max
    }

    fn takes_calls(&self) -> bool {
        // One that is about to be killed gets no more.
        let stopping = self.running().is_some_and(|running| running.stop.is_some());
        self.phase == Phase::Open && !self.is_draining() && !stopping
    }

    fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.takes_calls()
    }

    fn is_slow(&self, now: Instant) -> bool {
        self.running()
            .is_some_and(|running| running.slow || running.ran(now).is_some_and(|ran| ran > WINDOW))
    }

    /// Whether it may have one more small call. It takes more when half a window is still under way, so that
    /// a write carries many calls, and then up to the whole.
    fn has_room(&self, bytes: usize, now: Instant) -> bool {
        let (calls, filling) = (self.in_flight.len(), !self.outbox.messages.is_empty());
        let in_window = calls < self.window && (filling || calls <= self.window / 2);
        let fits = self.unacked_bytes + bytes + FRAME_OVERHEAD <= self.eager;
        self.takes_calls() && (calls == 0 || in_window && fits && !self.is_slow(now))
    }

    /// Assigns a call that there is room for.
    fn push(&mut self, queued: Queued<C>, now: Instant) {
        let Queued { call, deaths } = queued;
        if self.in_flight.is_empty() {
            self.outbox.was_idle = self.assigned > 0;
            self.last_active = now;
        }
        self.assigned += 1;
        let bytes = call.bytes() + FRAME_OVERHEAD;
        if bytes > self.eager {
            self.phase = Phase::Rendezvous;
            self.outbox.messages.push(Message::RequestToSend);
        } else {
            self.outbox.messages.push(Message::Call(call.clone()));
        }
        let charge = bytes.min(self.eager);
        self.unacked_bytes += charge;
        self.in_flight.push_back(InFlight {
            call,
            deaths,
            charge,
            started: None,
            stop: None,
            slow: false,
            resolved: false,
        });
    }

    fn position(&self, id: u64) -> Option<usize> {
        self.in_flight
            .iter()
            .position(|entry| entry.call.id() == id)
    }

    fn remove(&mut self, at: usize) -> Option<InFlight<C>> {
        let entry = self.in_flight.remove(at)?;
        self.unacked_bytes -= entry.charge;
        Some(entry)
    }

    /// A call has begun. Gives it, unless it was resolved already. If it was stopped, its time to end by
    /// itself counts from now.
    fn start(&mut self, id: u64, now: Instant, grace: Duration) -> Option<C> {
        let at = self.position(id)?;
        self.proven = true;
        self.in_flight.swap(0, at);
        let entry = self.in_flight.front_mut()?;
        entry.started = Some(now);
        self.unacked_bytes -= std::mem::take(&mut entry.charge);
        if entry.resolved {
            return None;
        }
        let call = entry.call.clone();
        if let Some(stop) = entry.stop {
            self.stop(0, stop.reason, now, grace);
        }
        Some(call)
    }

    /// Takes a call that is over, and learns how long calls take.
    fn finish(&mut self, id: u64, now: Instant) -> Option<InFlight<C>> {
        let entry = self.remove(self.position(id)?)?;
        let ran = entry.ran(now).unwrap_or_default();
        self.avg_runtime = (self.avg_runtime * 3 + ran) / 4;
        let calls = WINDOW.as_nanos() / self.avg_runtime.as_nanos().max(1);
        let calls = usize::try_from(calls).unwrap_or(WINDOW_CALLS);
        self.window = calls.clamp(1, WINDOW_CALLS);
        Some(entry)
    }

    fn take_back(&mut self, ids: &[u64]) -> Vec<InFlight<C>> {
        let is_back =
            |entry: &InFlight<C>| entry.started.is_none() && ids.contains(&entry.call.id());
        let in_flight = std::mem::take(&mut self.in_flight).into_iter();
        let (back, stay): (Vec<_>, Vec<_>) = in_flight.partition(is_back);
        self.in_flight = VecDeque::from(stay);
        self.assigned -= back.len() as u64;
        self.unacked_bytes -= back.iter().map(|entry| entry.charge).sum::<usize>();
        if let Some(running) = self.in_flight.front_mut() {
            running.slow = running.started.is_some();
        }
        back
    }

    /// Stops a call in flight. One that runs is asked to end by itself if it gets time for that.
    fn stop(&mut self, at: usize, reason: Reason, now: Instant, grace: Duration) {
        // A large call that is being written has the worker to itself, which does nothing but take it.
        let at_once = self.phase == Phase::Loading || matches!(reason, Reason::ShutDown);
        let grace = if at_once { Duration::ZERO } else { grace };
        let entry = &mut self.in_flight[at];
        entry.stop = Some(Stop {
            reason,
            kill_at: now + grace,
        });
        if entry.started.is_some() && !grace.is_zero() {
            self.outbox.messages.push(Message::Cancel(entry.call.id()));
        }
    }

    #[must_use]
    fn kill(&mut self, now: Instant) -> W {
        let again = now + FROZEN;
        self.phase = match self.phase {
            Phase::Leaving { .. } => Phase::Leaving { by: again },
            _ => Phase::Killed { again },
        };
        self.handle.clone()
    }

    /// When the worker is to be killed. For a call that was stopped: if nothing else can begin there. What
    /// lies behind a call that takes long comes back by itself.
    fn kill_at(&self) -> Option<Instant> {
        let alone = self.in_flight.front().filter(|_| self.in_flight.len() == 1);
        match self.phase {
            Phase::Leaving { by } => Some(by),
            Phase::Killed { again } => Some(again),
            Phase::Open => alone.filter(|entry| entry.started.is_some())?.kill_at(),
            Phase::Loading => alone?.kill_at(),
            Phase::Rendezvous => None,
        }
    }

    /// Until when it may be idle.
    fn idle_until(&self, keep_alive: Duration) -> Option<Instant> {
        let is_idle = self.phase == Phase::Open && self.in_flight.is_empty();
        is_idle.then(|| self.last_active + keep_alive)
    }

    fn is_silent(&self, now: Instant) -> bool {
        self.last_active + FROZEN <= now
    }

    /// Whether it owes an answer for so long that it is frozen. A call that has not started can be had by
    /// another worker. A call that runs may be silent for ever, unless it was stopped: then what lies behind
    /// it should have come back.
    fn is_frozen(&self, now: Instant) -> bool {
        match (self.phase, self.running()) {
            (Phase::Rendezvous | Phase::Loading, _) => self.is_silent(now),
            (Phase::Open, None) => !self.in_flight.is_empty() && self.is_silent(now),
            (Phase::Open, Some(running)) => running.is_overdue(now),
            (Phase::Leaving { .. } | Phase::Killed { .. }, _) => false,
        }
    }

    /// Stopped calls that lie behind one that runs and is innocent, and that should have come back. They are
    /// over for those who wait; what runs is not killed for them.
    fn take_overdue(&mut self, now: Instant) -> Vec<(C, Reason)> {
        let overdue = |entry: &mut InFlight<C>| {
            let stop = entry.stop.filter(|_| entry.is_overdue(now))?;
            entry.resolved = true;
            Some((entry.call.clone(), stop.reason))
        };
        let behind = self.in_flight.iter_mut().skip(1);
        behind.filter_map(overdue).collect()
    }

    /// Whether its end says that the next worker may end the same way: it died for no reason that a call
    /// would explain. Not one that was killed because of a call, and not one that a call took along.
    fn has_failed(&self) -> bool {
        if self.in_flight.is_empty() {
            return !self.proven && self.phase == Phase::Open;
        }
        self.running().is_none() && self.in_flight.iter().any(|entry| entry.stop.is_none())
    }
}

impl<C> InFlight<C> {
    fn ran(&self, now: Instant) -> Option<Duration> {
        let started = self.started?;
        Some(now.saturating_duration_since(started))
    }

    fn kill_at(&self) -> Option<Instant> {
        self.stop.map(|stop| stop.kill_at)
    }

    fn is_overdue(&self, now: Instant) -> bool {
        !self.resolved && self.kill_at().is_some_and(|at| at + FROZEN <= now)
    }
}

impl<C: Call> Queue<C> {
    fn of(&mut self, is_large: bool) -> &mut VecDeque<Queued<C>> {
        match is_large {
            true => &mut self.large,
            false => &mut self.small,
        }
    }

    /// Puts a call at its place: at the end if it is new.
    fn insert(&mut self, queued: Queued<C>) {
        let id = queued.call.id();
        let calls = self.of(queued.call.is_large());
        let at = match calls.back() {
            Some(last) if last.call.id() > id => calls.partition_point(|next| next.call.id() < id),
            _ => calls.len(),
        };
        calls.insert(at, queued);
    }

    fn remove(&mut self, id: u64) -> Option<Queued<C>> {
        [false, true].into_iter().find_map(|is_large| {
            let calls = self.of(is_large);
            let at = calls.binary_search_by_key(&id, |queued| queued.call.id());
            calls.remove(at.ok()?)
        })
    }

    /// Whether the next call in the order of ids is a large one.
    fn is_large_next(&self) -> bool {
        let id = |calls: &VecDeque<Queued<C>>| calls.front().map(|next| next.call.id());
        id(&self.large).is_some_and(|large| id(&self.small).is_none_or(|small| large < small))
    }

    fn drain(&mut self) -> Vec<Queued<C>> {
        let mut calls = Vec::from_iter(self.small.drain(..).chain(self.large.drain(..)));
        calls.sort_by_key(|queued| queued.call.id());
        calls
    }

    fn len(&self) -> usize {
        self.small.len() + self.large.len()
    }

    fn shrink(&mut self) {
        if self.len() == 0 && self.small.capacity() > QUEUE_KEPT {
            self.small = VecDeque::new();
        }
    }
}

impl<C> Default for Outbox<C> {
    fn default() -> Outbox<C> {
        Outbox {
            messages: Vec::new(),
            was_idle: false,
        }
    }
}

impl<C, W> Default for Effects<C, W> {
    fn default() -> Effects<C, W> {
        Effects {
            sends: Vec::new(),
            kills: Vec::new(),
            retirements: Vec::new(),
            probes: Vec::new(),
            begun: Vec::new(),
            resolutions: Vec::new(),
            spawns: Vec::new(),
            wake_supervisor: false,
            quiet: false,
            empty: false,
        }
    }
}

#[cfg(test)]
#[path = "simulation.rs"]
mod simulation;
