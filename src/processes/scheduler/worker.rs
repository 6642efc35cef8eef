//! One worker as the scheduler sees it, and what it has in flight.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::effects::{Action, Outcome};
use super::{CHECK, FROZEN, HERE, Limits, RETIRE_TIMEOUT, WINDOW};
use crate::stop::Reason;

/// What a frame counts for besides its bytes: a system charges a small write up to five times its bytes, and
/// a Linux socket holds 208 KiB.
pub(super) const FRAME_OVERHEAD: usize = 256;
const WINDOW_CALLS: usize = 256;

pub(super) struct Worker<C, W> {
    pub(super) number: u64,
    pub(super) place: usize,
    pub(super) handle: W,
    pub(super) phase: Phase,
    /// Calls sent and not done; the running one is in front.
    pub(super) in_flight: VecDeque<Entry<C>>,
    /// What to do to the worker next.
    pub(super) outbox: Vec<Action<C>>,
    /// Bytes that the link holds while the worker does not read.
    pub(super) eager: usize,
    /// How much of `eager` is taken, at most, by the frames of calls that are not known to have begun.
    pub(super) unacked_bytes: usize,
    /// How many calls may be in flight: as many as together fill the round trip.
    pub(super) window: usize,
    /// A call that runs for longer holds up those behind it.
    pub(super) slow: Duration,
    /// A worker that owes an answer for this long is frozen.
    pub(super) frozen: Duration,
    /// A moving average.
    pub(super) avg_runtime: Duration,
    /// Calls sent and not returned.
    pub(super) assigned: u64,
    /// At this many the worker drains: it gets no more calls, and retires when these are done. Zero as soon
    /// as it is to be replaced.
    pub(super) assigned_max: u64,
    /// Whether it has ever started a call.
    pub(super) proven: bool,
    /// Whether its reader is decoding a large result, and hears nothing meanwhile.
    pub(super) decoding: bool,
    /// When something was last heard from it, or given to it while it was idle, or when its reader was last seen
    /// to decode.
    pub(super) last_active: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Phase {
    Open,
    /// A request to send is not answered yet. Only a large call is in flight, or nothing if it was stopped.
    Rendezvous,
    /// The large call is being written.
    Loading,
    /// The worker was told to end, and is killed at `by` if it has not. It has nothing in flight, and no
    /// place in the pool.
    Leaving {
        by: Instant,
    },
    /// Killed, and killed once more at `again` if its link is still there.
    Killed {
        again: Instant,
    },
}

/// A call that is queued or in flight.
pub(super) struct Entry<C> {
    pub(super) id: u64,
    /// What its frame counts for.
    pub(super) bytes: usize,
    pub(super) call: C,
    /// How many workers died with it before they started it.
    pub(super) deaths: u32,
    pub(super) started: Option<Instant>,
    pub(super) stop: Option<Stop>,
    /// It was stopped, and resolved although its worker has not returned it.
    pub(super) resolved: bool,
}

#[derive(Clone, Copy)]
pub(super) struct Stop {
    pub(super) reason: Reason,
    /// When the worker is killed if it still runs the call.
    pub(super) kill_at: Instant,
}

impl<C: Clone, W: Clone> Worker<C, W> {
    /// A worker with the round-trip time `trip`.
    pub(super) fn new(
        (number, place): (u64, usize),
        handle: W,
        limits: &Limits,
        trip: Duration,
        now: Instant,
    ) -> Worker<C, W> {
        Worker {
            number,
            place,
            handle,
            phase: Phase::Open,
            in_flight: VecDeque::new(),
            outbox: Vec::new(),
            eager: limits.eager,
            unacked_bytes: 0,
            window: 1,
            slow: WINDOW + trip,
            frozen: match place {
                HERE => FROZEN,
                _ => limits.host_timeout,
            },
            avg_runtime: WINDOW,
            assigned: 0,
            assigned_max: limits.calls_per_worker.unwrap_or(u64::MAX),
            proven: false,
            decoding: false,
            last_active: now,
        }
    }

    pub(super) fn running(&self) -> Option<&Entry<C>> {
        self.in_flight
            .front()
            .filter(|front| front.started.is_some())
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.in_flight.is_empty() || matches!(self.phase, Phase::Rendezvous | Phase::Loading)
    }

    /// Whether it holds a place in the pool.
    pub(super) fn is_live(&self) -> bool {
        !matches!(self.phase, Phase::Leaving { .. })
    }

    pub(super) fn is_draining(&self) -> bool {
        self.assigned >= self.assigned_max
    }

    pub(super) fn takes_calls(&self) -> bool {
        // A worker that is about to be killed gets no more calls.
        let stopping = self.running().is_some_and(|running| running.stop.is_some());
        self.phase == Phase::Open && !self.is_draining() && !stopping
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.takes_calls()
    }

    pub(super) fn is_slow(&self, now: Instant) -> bool {
        let ran = self.running().and_then(|running| running.ran(now));
        ran.is_some_and(|ran| ran > self.slow)
    }

    /// Whether it has room for one more small call. It is refilled up to the whole window once only half of
    /// it is in flight, so that a write carries many calls.
    pub(super) fn has_room(&self, bytes: usize, now: Instant) -> bool {
        let (calls, filling) = (self.in_flight.len(), !self.outbox.is_empty());
        let in_window = calls < self.window && (filling || calls <= self.window / 2);
        let fits = self.unacked_bytes + bytes <= self.eager;
        self.takes_calls() && (calls == 0 || in_window && fits && !self.is_slow(now))
    }

    /// Assigns a call that there is room for.
    pub(super) fn push(&mut self, entry: Entry<C>, now: Instant) {
        if self.in_flight.is_empty() {
            self.last_active = now;
            if self.assigned > 0 {
                self.outbox.push(Action::Fresh);
            }
        }
        self.assigned += 1;
        self.unacked_bytes += self.charge(&entry);
        if entry.bytes > self.eager {
            self.phase = Phase::Rendezvous;
            self.outbox.push(Action::RequestToSend);
        } else {
            self.outbox.push(Action::Call(entry.call.clone()));
        }
        self.in_flight.push_back(entry);
    }

    /// What a call contributes to `unacked_bytes`.
    fn charge(&self, entry: &Entry<C>) -> usize {
        match entry.started {
            Some(_) => 0,
            None => entry.bytes.min(self.eager),
        }
    }

    pub(super) fn position(&self, id: u64) -> Option<usize> {
        self.in_flight.iter().position(|entry| entry.id == id)
    }

    /// Notes that a call has begun. Returns it, unless it was already resolved. If it was stopped, its time
    /// to end by itself counts from now, even if nobody waits for it.
    pub(super) fn start(&mut self, id: u64, now: Instant, grace: Duration) -> Option<C> {
        let at = self.position(id)?;
        self.in_flight.swap(0, at);
        self.unacked_bytes -= self.charge(&self.in_flight[0]);
        let entry = &mut self.in_flight[0];
        entry.started = Some(now);
        let call = (!entry.resolved).then(|| entry.call.clone());
        if let Some(stop) = entry.stop {
            self.stop(0, stop.reason, now, grace);
        }
        call
    }

    /// Removes a call that is over, and learns how long calls take.
    pub(super) fn finish(&mut self, id: u64, now: Instant) -> Option<Entry<C>> {
        let entry = self.in_flight.remove(self.position(id)?)?;
        self.unacked_bytes -= self.charge(&entry);
        let ran = entry.ran(now).unwrap_or_default();
        self.avg_runtime = (self.avg_runtime * 3 + ran) / 4;
        // The round trip stays filled even when only half of this is left and more is sent.
        let calls = (self.slow * 2 - WINDOW).div_duration_f32(self.avg_runtime);
        self.window = (calls as usize).clamp(1, WINDOW_CALLS);
        Some(entry)
    }

    /// Takes back calls that the worker has not begun.
    pub(super) fn take_back(&mut self, ids: &[u64]) -> Vec<Entry<C>> {
        let is_back = |entry: &Entry<C>| entry.started.is_none() && ids.contains(&entry.id);
        let in_flight = std::mem::take(&mut self.in_flight).into_iter();
        let (back, stay): (Vec<_>, Vec<_>) = in_flight.partition(is_back);
        self.in_flight = VecDeque::from(stay);
        self.assigned -= back.len() as u64;
        self.unacked_bytes -= back.iter().map(|entry| self.charge(entry)).sum::<usize>();
        // The running call is slow: nothing is assigned behind it.
        self.window = 1;
        back
    }

    /// The worker is reading: its large call can be written, unless the call was stopped meanwhile.
    pub(super) fn load(&mut self) {
        if self.phase == Phase::Rendezvous {
            let call = self.in_flight.front().map(|entry| entry.call.clone());
            self.phase = match call {
                Some(_) => Phase::Loading,
                None => Phase::Open,
            };
            self.outbox.extend(call.map(Action::LargeCall));
        }
    }

    pub(super) fn loaded(&mut self) {
        if self.phase == Phase::Loading {
            self.phase = Phase::Open;
        }
    }

    /// Stops a call in flight. A running one is asked to end by itself, if it gets time for that.
    pub(super) fn stop(&mut self, at: usize, reason: Reason, now: Instant, grace: Duration) {
        // While a large call is being written, the worker has no other and does nothing but read it.
        let at_once = self.phase == Phase::Loading || matches!(reason, Reason::ShutDown);
        let grace = if at_once { Duration::ZERO } else { grace };
        let entry = &mut self.in_flight[at];
        entry.stop = Some(Stop {
            reason,
            kill_at: now + grace,
        });
        if entry.started.is_some() && !grace.is_zero() {
            self.outbox.push(Action::Cancel(entry.id));
        }
    }

    pub(super) fn kill(&mut self, now: Instant) {
        // Only the word of its relay makes it certain that a call has not begun, and may begin elsewhere. The
        // relay may be slow to learn of this: where its write to a frozen worker blocks, it does by itself.
        let wanted = self.in_flight.iter().any(|entry| entry.stop.is_none());
        let was_killed = matches!(self.phase, Phase::Killed { .. });
        let again = match self.place {
            1.. if wanted && !was_killed => now + FROZEN,
            _ => now + CHECK,
        };
        self.phase = match self.phase {
            Phase::Leaving { .. } => Phase::Leaving { by: again },
            _ => Phase::Killed { again },
        };
        self.outbox.push(Action::Kill);
    }

    /// Has an idle worker end by itself.
    pub(super) fn retire(&mut self, now: Instant) {
        let by = now + RETIRE_TIMEOUT;
        self.phase = Phase::Leaving { by };
        self.outbox.push(Action::Retire);
    }

    /// When the worker is to be killed. It is killed for a stopped call only if nothing else can begin there.
    /// Calls behind one that takes long come back by themselves.
    pub(super) fn kill_at(&self) -> Option<Instant> {
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
    pub(super) fn idle_until(&self, keep_alive: Duration) -> Option<Instant> {
        let is_idle = self.phase == Phase::Open && self.in_flight.is_empty();
        is_idle.then(|| self.last_active + keep_alive)
    }

    pub(super) fn is_silent(&self, now: Instant, limit: Duration) -> bool {
        self.last_active + limit <= now
    }

    /// Whether it has owed an answer for so long that it is frozen. A call that has not started can go to
    /// another worker. A running call may be silent forever, unless it was stopped: then the calls behind it
    /// should have come back.
    pub(super) fn is_frozen(&self, now: Instant) -> bool {
        match (self.phase, self.running()) {
            (Phase::Rendezvous | Phase::Loading, _) => self.is_silent(now, self.frozen),
            (Phase::Open, None) => !self.in_flight.is_empty() && self.is_silent(now, self.frozen),
            (Phase::Open, Some(running)) => running.is_overdue(now),
            (Phase::Leaving { .. } | Phase::Killed { .. }, _) => false,
        }
    }

    /// Resolves stopped calls that should have begun, or should have come back from behind an innocent
    /// running one. They are over for those who wait; no worker is killed for them.
    pub(super) fn resolve_overdue(&mut self, now: Instant) -> impl Iterator<Item = (C, Outcome)> {
        self.in_flight.iter_mut().filter_map(move |entry| {
            let is_open = entry.started.is_none() && !entry.resolved;
            let is_overdue = is_open && entry.is_overdue(now);
            let stop = entry.stop.filter(|_| is_overdue)?;
            entry.resolved = true;
            Some((entry.call.clone(), Outcome::unstarted(stop.reason)))
        })
    }

    /// Whether its end suggests that the next worker may end the same way, because no call explains it: the
    /// worker was not killed for a call, and no call took it down.
    pub(super) fn has_failed(&self) -> bool {
        if self.in_flight.is_empty() {
            return !self.proven && self.phase == Phase::Open;
        }
        self.running().is_none() && self.in_flight.iter().any(|entry| entry.stop.is_none())
    }
}

impl<C> Entry<C> {
    /// Its outcome if it is over now. A stopped call ended by itself when it was asked to.
    pub(super) fn outcome(&self, now: Instant) -> Outcome {
        let ran = self.ran(now);
        self.stop
            .map_or(Outcome::Done, |Stop { reason, .. }| Outcome::Stopped {
                reason,
                ran,
            })
    }

    pub(super) fn ran(&self, now: Instant) -> Option<Duration> {
        let started = self.started?;
        Some(now.saturating_duration_since(started))
    }

    pub(super) fn kill_at(&self) -> Option<Instant> {
        self.stop.map(|stop| stop.kill_at)
    }

    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.kill_at().is_some_and(|at| at + CHECK <= now)
    }
}
