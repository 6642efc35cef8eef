//! The queue, what is in flight, and the dealing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::attendant::{self, Begun, Worker};
use super::frame::{self, Kind};
use super::worker::PanicReport;
use crate::config::settings;
use crate::error::{Error, Origin, lock};
use crate::unfuture::{OnQuiet, Reason};
use crate::watch::{Stats, TaskInfo, WorkKind, WorkState};

/// A call without its types.
pub(super) trait Remote: Send + Sync {
    fn name(&self) -> &'static str;
    fn origin(&self) -> Origin;
    fn begin(&self);
    fn progress(&self, payload: &[u8]);
    /// Resolves the call from the payload of its `Done` and the panics that were reported before it.
    fn done(&self, payload: &[u8], panics: Vec<PanicReport>);
    fn fail(&self, error: Error) -> bool;
}

/// A call on its way.
pub(super) struct Item {
    pub(super) id: u64,
    pub(super) call: Arc<dyn Remote>,
    /// The whole frame, until the start is acknowledged.
    pub(super) frame: Vec<u8>,
    queued: Instant,
    /// Workers that died with it before they had started it.
    pub(super) deaths: u32,
}

impl Item {
    pub(super) fn new(id: u64, call: Arc<dyn Remote>, frame: Vec<u8>) -> Item {
        Item {
            id,
            call,
            frame,
            queued: Instant::now(),
            deaths: 0,
        }
    }

    pub(super) fn stop(&self, reason: Reason) -> bool {
        self.call
            .fail(reason.error(&format!("`{}`", self.call.name())))
    }
}

/// Numbers calls. Never reused; the queues are in their order.
pub(super) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// More than this is large.
const DIRECT: usize = 64 << 10;

pub(super) static POOL: Pool = Pool {
    state: Mutex::new(State::new()),
    turn: Condvar::new(),
};

pub(super) struct Pool {
    state: Mutex<State>,
    /// For an attendant that waits until it may start a worker.
    turn: Condvar,
}

pub(super) struct State {
    pub(super) queue: Queue,
    /// The worker that gets nothing more until the large call that waits has it to itself.
    kept: Option<u64>,
    /// Those that have connected, by number.
    pub(super) workers: BTreeMap<u64, Hand>,
    /// Attendants that have no worker yet.
    pub(super) starting: usize,
    /// Attendants that bury their worker.
    pub(super) burying: usize,
    /// Calls that are neither queued nor in flight any more, and about to be resolved.
    pub(super) settling: usize,
    /// Workers started so far.
    started: u64,
    /// Starts of workers in a row that came to nothing: there was no process, or it died before it had
    /// started a call. The first `Start` of any worker ends the row; later ones tell nothing about starts.
    failures: u32,
    /// No worker is started before. Set by each failure, cleared with them.
    not_before: Option<Instant>,
    /// Calls that were ever queued.
    accepted: u64,
    /// Set by the shutdown, for good.
    pub(super) closed: bool,
    /// To be called when no call is queued or in flight. Until then each `drain` that gave up is here.
    when_quiet: Vec<OnQuiet>,
    /// To be called when no worker is left.
    when_empty: Vec<OnQuiet>,
}

/// A worker as the dealer sees it.
pub(super) struct Hand {
    pub(super) worker: Arc<Worker>,
    /// Frames up to this size together may be unstarted there, so that the write of a dealer never blocks.
    /// A larger frame is written by the attendant.
    eager: usize,
    /// Sent and not done, the one that runs in front. The others are in the order of dealing; two who
    /// deal at the same time may write them in another.
    pub(super) flight: VecDeque<InFlight>,
    /// What its frames take of the link at most, until their calls are known to have begun.
    charged: usize,
    /// How many calls may be in flight: as many as take about `WINDOW` together.
    pub(super) window: usize,
    /// What a call takes, as a moving average.
    pace: Duration,
    /// Calls sent so far and not given back.
    pub(super) dealt: u64,
    /// However many calls it has had, it gets no more, and leaves when it is done with those it has.
    pub(super) spent: bool,
    /// A recall was sent, then, and is not answered.
    pub(super) recalling: Option<Instant>,
    /// Whether it has started a call.
    pub(super) serves: bool,
    /// A large call waits for the attendant to write it, or is being written.
    pub(super) loading: bool,
    /// Its attendant decodes a large value, and hears nothing of it meanwhile.
    pub(super) unheard: bool,
    /// Something in flight may have been stopped.
    stopping: bool,
}

pub(super) struct InFlight {
    pub(super) item: Item,
    pub(super) sent: Instant,
    /// When the start was acknowledged.
    pub(super) started: Option<Instant>,
    /// The first that was told, and the last.
    pub(super) panics: Vec<PanicReport>,
    /// Why it shall not give a value any more.
    pub(super) stop: Option<(Reason, Instant)>,
    /// If it runs, its worker has to die for that.
    condemned: bool,
}

/// What is to be done to a worker because of a call that was stopped.
#[must_use]
pub(super) enum Pursuit {
    /// Nothing, or nothing before more is heard of it.
    Wait,
    Recall,
    Kill,
}

impl Pursuit {
    /// Not under the lock.
    pub(super) fn execute(self, worker: &Worker) {
        match self {
            Pursuit::Wait => {}
            Pursuit::Recall => worker.say(Kind::Recall, 0),
            Pursuit::Kill => worker.kill(),
        }
    }
}

/// What is to be written to a worker when the lock is free again.
struct Letter {
    worker: Arc<Worker>,
    frames: Vec<u8>,
    /// Whether this comes after other calls, all of them done.
    first: bool,
}

type Mail = Vec<Letter>;

/// Workers that may die with a call before they start it.
pub(super) const DEATHS: u32 = 3;
/// Starts in a row that come to nothing before calls fail for want of a worker: more than two calls cause
/// that kill whoever gets them. The calls behind those shall not suffer for it.
pub(super) const FAILURES: u32 = 2 * DEATHS + 1;
/// The pause after the first failure; each further one doubles it, so often at most.
const PAUSE: Duration = Duration::from_millis(10);
const DOUBLINGS: u32 = 8;
/// What a frame counts for beside its bytes: a system charges a small write for up to five times its
/// bytes, and a socket of Linux holds 208 KiB.
const WRITE: usize = 256;
/// Room for calls that is kept; the memory of a larger burst is given back after it.
const QUEUE_KEPT: usize = 4096;
/// The work that may lie ready at a worker.
const WINDOW: Duration = Duration::from_millis(1);
const WINDOW_CALLS: usize = 256;
/// A call that takes longer than this holds up those behind it.
const STALL: Duration = Duration::from_millis(2);

impl State {
    const fn new() -> State {
        State {
            queue: Queue::new(),
            kept: None,
            workers: BTreeMap::new(),
            starting: 0,
            burying: 0,
            settling: 0,
            started: 0,
            failures: 0,
            not_before: None,
            accepted: 0,
            closed: false,
            when_quiet: Vec::new(),
            when_empty: Vec::new(),
        }
    }

    /// Moves calls from the queue to workers with room, and has those recalled that lie behind a slow
    /// one.
    fn deal(&mut self) -> Mail {
        let mut mail = Mail::new();
        let now = Instant::now();
        let complete = self.workers.len() >= limit();
        // A large call needs a worker that is idle. While there is none, the small ones behind it may go to
        // any but the one that is kept for it, so neither starves.
        let mut waits = false;
        while let Some(item) = self.queue.front(waits) {
            let bytes = item.frame.len();
            let large = bytes > DIRECT;
            let kept = self.kept.filter(|_| waits);
            let roomy = self
                .workers
                .iter_mut()
                .filter(|(number, hand)| match large {
                    // What is said of a call there is heard late: better one more worker.
                    _ if hand.unheard && !complete => false,
                    true => hand.is_idle(),
                    false => hand.has_room(bytes, now) && kept != Some(**number),
                });
            // The one with the least to do; among idle ones the oldest, so that the surplus can
            // retire.
            let least = roomy.min_by_key(|(_, hand)| (hand.unheard, hand.flight.len()));
            let Some((_, hand)) = least else {
                if !large {
                    break;
                }
                waits = true;
                self.keep_one(now);
                continue;
            };
            let Some(item) = self.queue.pop_front(large) else {
                break;
            };
            let at = match mail
                .iter()
                .position(|letter| Arc::ptr_eq(&letter.worker, &hand.worker))
            {
                Some(at) => at,
                None => {
                    let worker = Arc::clone(&hand.worker);
                    let first = hand.flight.is_empty() && hand.dealt > 0;
                    mail.push(Letter {
                        worker,
                        frames: Vec::new(),
                        first,
                    });
                    mail.len() - 1
                }
            };
            let frames = &mut mail[at].frames;
            if bytes > hand.eager {
                // The answer calls the attendant from its reading, to write the frame itself.
                frame::plain(frames, Kind::Ping, 0);
                hand.loading = true;
                self.kept = None;
            } else {
                frames.extend_from_slice(&item.frame);
            }
            hand.push(item, now);
        }
        if !waits {
            self.kept = None;
        }
        self.queue.trim();
        self.recall(now, &mut mail);
        mail
    }

    /// Keeps a worker that will soon be idle, the same one as long as it is likely to be.
    fn keep_one(&mut self, now: Instant) {
        let is_fit = |hand: &Hand| {
            let stalled = hand.flight.front().is_some_and(|front| front.is_slow(now));
            hand.is_free() && !stalled
        };
        let kept = self.kept.and_then(|number| self.workers.get(&number));
        if !kept.is_some_and(is_fit) {
            let fit = self.workers.iter().filter(|(_, hand)| is_fit(hand));
            let least = fit.min_by_key(|(_, hand)| (hand.unheard, hand.flight.len()));
            self.kept = least.map(|(number, _)| *number);
        }
    }

    fn recall(&mut self, now: Instant, mail: &mut Mail) {
        let is_idle = |hand: &Hand| hand.is_idle() && !hand.unheard;
        let somebody_idle = self.queue.is_empty() && self.workers.values().any(is_idle);
        for hand in self.workers.values_mut() {
            let stalled = hand.flight.front().is_some_and(|front| front.is_slow(now));
            if hand.flight.len() > 1 && hand.recalling.is_none() && (stalled || somebody_idle) {
                hand.recalling = Some(now);
                let mut frames = Vec::new();
                frame::plain(&mut frames, Kind::Recall, 0);
                let worker = Arc::clone(&hand.worker);
                mail.push(Letter {
                    worker,
                    frames,
                    first: false,
                });
            }
        }
    }

    /// Whether calls wait that no worker being started is for: in the queue, or behind another call.
    fn is_short(&self) -> bool {
        let behind = self
            .workers
            .values()
            .map(|hand| hand.flight.len().saturating_sub(1));
        self.queue.len() + behind.sum::<usize>() > self.starting
    }

    /// Books one more worker if there may be one more.
    fn book(&mut self) -> Option<u64> {
        if self.closed || self.workers.len() + self.starting >= limit() {
            return None;
        }
        if self.failures > 0 {
            // One at a time shows whether it works again.
            let tried = self.starting > 0 || self.workers.values().any(|hand| !hand.serves);
            // Without any worker the attendant waits for the time; else it is tried if there are calls then.
            let pauses = !self.workers.is_empty() && self.pause().is_some();
            if tried || pauses {
                return None;
            }
        }
        self.starting += 1;
        self.started += 1;
        Some(self.started)
    }

    /// A start came to nothing that began after so many failures; says whether it counts as one more. Of
    /// those that began together one counts, and one for each pause.
    pub(super) fn fail(&mut self, before: u32) -> bool {
        let counts = self.failures <= before && self.pause().is_none();
        if counts {
            let pause = PAUSE * (1 << self.failures.min(DOUBLINGS));
            self.failures = self.failures.saturating_add(1);
            self.not_before = Instant::now().checked_add(pause);
        }
        counts
    }

    /// Takes out a worker, to be buried: nobody writes to it any more.
    pub(super) fn remove(&mut self, number: u64) -> Option<Hand> {
        let hand = self.workers.remove(&number)?;
        self.burying += 1;
        if hand.serves && self.workers.is_empty() {
            // Whoever waits from now on has seen none of the failures beside it.
            self.failures = 0;
        }
        Some(hand)
    }

    /// How long no worker may be started yet.
    fn pause(&self) -> Option<Duration> {
        let left = self.not_before?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// Whether calls have nobody to wait for any more: there is no worker, and so many starts in a row came
    /// to nothing.
    pub(super) fn is_hopeless(&self, tries: u32) -> bool {
        self.failures >= tries && self.workers.is_empty()
    }

    pub(super) fn is_quiet(&self) -> bool {
        let flying = self.workers.values().any(|hand| !hand.flight.is_empty());
        self.queue.is_empty() && !flying && self.settling == 0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.workers.is_empty() && self.starting + self.burying == 0
    }

    /// Who waits for a state that is reached.
    fn told(&mut self) -> Vec<OnQuiet> {
        let mut told = Vec::new();
        if !self.when_quiet.is_empty() && self.is_quiet() {
            told.append(&mut self.when_quiet);
        }
        if !self.when_empty.is_empty() && self.is_empty() {
            told.append(&mut self.when_empty);
        }
        told
    }
}

/// Calls that wait, each kind in the order of the numbers. No limit, as for every way to start work.
pub(super) struct Queue {
    small: VecDeque<Item>,
    /// Those whose frames are above `DIRECT`.
    large: VecDeque<Item>,
}

impl Queue {
    const fn new() -> Queue {
        Queue {
            small: VecDeque::new(),
            large: VecDeque::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.small.len() + self.large.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn push(&mut self, item: Item) {
        let queue = match item.frame.len() > DIRECT {
            true => &mut self.large,
            false => &mut self.small,
        };
        let place = match queue.back() {
            Some(last) if last.id > item.id => queue.partition_point(|other| other.id < item.id),
            _ => queue.len(),
        };
        queue.insert(place, item);
    }

    /// The first, or the first small one.
    fn front(&self, only_small: bool) -> Option<&Item> {
        let large = self.large.front().filter(|_| !only_small);
        let small = self.small.front();
        small.into_iter().chain(large).min_by_key(|item| item.id)
    }

    fn pop_front(&mut self, large: bool) -> Option<Item> {
        match large {
            true => self.large.pop_front(),
            false => self.small.pop_front(),
        }
    }

    fn remove(&mut self, id: u64) -> Option<Item> {
        [&mut self.small, &mut self.large]
            .into_iter()
            .find_map(|queue| {
                let place = queue.binary_search_by_key(&id, |item| item.id);
                queue.remove(place.ok()?)
            })
    }

    pub(super) fn take(&mut self) -> VecDeque<Item> {
        let mut all = std::mem::take(&mut self.small);
        all.append(&mut self.large);
        all
    }

    fn iter(&self) -> impl Iterator<Item = &Item> {
        self.small.iter().chain(&self.large)
    }

    /// Gives back what a burst has left.
    fn trim(&mut self) {
        for queue in [&mut self.small, &mut self.large] {
            if queue.is_empty() && queue.capacity() > QUEUE_KEPT {
                *queue = VecDeque::new();
            }
        }
    }
}

impl Hand {
    pub(super) fn new(worker: Arc<Worker>, eager: usize) -> Hand {
        Hand {
            worker,
            eager,
            flight: VecDeque::new(),
            charged: 0,
            window: 1,
            pace: WINDOW,
            dealt: 0,
            spent: false,
            recalling: None,
            serves: false,
            loading: false,
            unheard: false,
            stopping: false,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.flight.is_empty() && self.is_free()
    }

    fn is_free(&self) -> bool {
        self.recalling.is_none() && !self.loading && !self.is_spent()
    }

    fn is_spent(&self) -> bool {
        let limit = settings()
            .ok()
            .and_then(|settings| settings.calls_per_worker);
        self.spent || limit.is_some_and(|limit| self.dealt >= limit)
    }

    /// Whether it has nothing more to do, ever.
    pub(super) fn is_over(&self) -> bool {
        self.flight.is_empty() && self.recalling.is_none() && self.is_spent()
    }

    fn has_room(&self, bytes: usize, now: Instant) -> bool {
        let Some(front) = self.flight.front() else {
            return self.is_idle();
        };
        if !self.is_free() || self.flight.len() >= self.window || front.is_slow(now) {
            return false;
        }
        self.charged + bytes + WRITE <= self.eager
    }

    fn push(&mut self, item: Item, now: Instant) {
        self.dealt += 1;
        let entry = InFlight {
            item,
            sent: now,
            started: None,
            panics: Vec::new(),
            stop: None,
            condemned: false,
        };
        self.charged += entry.charge();
        self.flight.push_back(entry);
    }

    /// A recall is answered: these will not run.
    pub(super) fn take_back(&mut self, ids: &[u64]) -> Vec<InFlight> {
        self.recalling = None;
        let flight = std::mem::take(&mut self.flight).into_iter();
        let (back, stay): (Vec<_>, Vec<_>) = flight.partition(|entry| ids.contains(&entry.item.id));
        self.flight = VecDeque::from(stay);
        self.charged = self.flight.iter().map(InFlight::charge).sum();
        self.dealt -= back.len() as u64;
        back
    }

    /// Stops a call in flight, for good if it gets no grace.
    fn stop(&mut self, at: usize, reason: Reason) {
        self.stopping = true;
        self.flight[at].stop = Some((reason, Instant::now()));
        self.flight[at].condemned = !has_grace(reason);
    }

    /// A call that was stopped has had its grace.
    pub(super) fn condemn(&mut self, id: u64) -> Pursuit {
        if let Some(entry) = self.find(id) {
            entry.condemned = true;
        }
        self.pursue()
    }

    /// The next step against calls in flight that were stopped, whenever those may have changed.
    ///
    /// A call that runs is stopped by the death of its worker. What else is in flight there may begin at
    /// any time, as nobody knows how far the worker is: so all of that is taken back first, and a worker
    /// that is about to be killed gets no more.
    pub(super) fn pursue(&mut self) -> Pursuit {
        if !self.stopping || self.recalling.is_some() || self.loading {
            return Pursuit::Wait;
        }
        self.stopping = self.flight.iter().any(|entry| entry.stop.is_some());
        let is_due = |entry: &InFlight| match entry.started {
            Some(_) => entry.condemned,
            None => entry.stop.is_some(),
        };
        if !self.flight.iter().any(is_due) {
            return Pursuit::Wait;
        }
        if self.flight.len() == 1 && self.flight[0].started.is_some() {
            return self.give_up();
        }
        self.recalling = Some(Instant::now());
        Pursuit::Recall
    }

    pub(super) fn find(&mut self, id: u64) -> Option<&mut InFlight> {
        self.flight.iter_mut().find(|entry| entry.item.id == id)
    }

    /// The worker is to be killed, and gets nothing more to do.
    pub(super) fn give_up(&mut self) -> Pursuit {
        self.spent = true;
        Pursuit::Kill
    }

    /// The start of a call is acknowledged.
    pub(super) fn begin(&mut self, id: u64, now: Instant) -> Option<Begun> {
        let place = self.flight.iter().position(|entry| entry.item.id == id)?;
        self.flight.swap(0, place);
        let entry = self.flight.front_mut()?;
        self.charged -= entry.item.frame.len();
        entry.started = Some(now);
        Some(Begun {
            id,
            call: Arc::clone(&entry.item.call),
            frame: std::mem::take(&mut entry.item.frame),
            in_grace: entry.stop.is_some() && !entry.condemned,
        })
    }

    /// A call is over.
    pub(super) fn finish(&mut self, id: u64, now: Instant) -> Option<InFlight> {
        let place = self.flight.iter().position(|entry| entry.item.id == id)?;
        let entry = self.flight.remove(place)?;
        self.charged -= entry.charge();
        self.learn(
            entry
                .started
                .map_or(Duration::ZERO, |started| now - started),
        );
        Some(entry)
    }

    /// Learns from a call that took so long.
    fn learn(&mut self, took: Duration) {
        self.pace = (self.pace * 3 + took) / 4;
        let calls = WINDOW.as_nanos() / self.pace.as_nanos().max(1);
        let calls = usize::try_from(calls).unwrap_or(WINDOW_CALLS);
        self.window = calls.clamp(1, WINDOW_CALLS);
    }
}

impl InFlight {
    fn charge(&self) -> usize {
        self.item.frame.len() + WRITE
    }

    fn is_slow(&self, now: Instant) -> bool {
        self.started
            .is_some_and(|started| now.saturating_duration_since(started) > STALL)
    }
}

impl Pool {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn submit(&'static self, item: Item) {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            item.stop(Reason::ShutDown);
            return;
        }
        state.accepted += 1;
        state.queue.push(item);
        self.proceed(state);
    }

    /// Deals, grows, and does outside the lock what that takes.
    pub(super) fn proceed(&'static self, mut state: MutexGuard<'_, State>) {
        let mail = state.deal();
        let number = if state.is_short() { state.book() } else { None };
        self.settle(state, mail);
        if let Some(number) = number {
            attendant::start(number);
        }
    }

    /// Waits until a worker may be started. Gives the number of failures before, or nothing if no worker
    /// is needed any more.
    pub(super) fn await_turn(&self) -> Option<u32> {
        let mut state = self.lock();
        let mut waited = false;
        loop {
            let left = state.pause().filter(|_| !state.closed);
            let Some(left) = left else { break };
            let woken = self.turn.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
            waited = true;
        }
        let needless = state.closed || (waited && state.queue.is_empty());
        (!needless).then_some(state.failures)
    }

    /// Workers can be started, as one of them shows that has started its first call. Says whether there was
    /// any doubt.
    pub(super) fn succeed(&self, state: &mut State) -> bool {
        let doubtful = state.failures > 0;
        if doubtful {
            (state.failures, state.not_before) = (0, None);
            self.turn.notify_all();
        }
        doubtful
    }

    /// So many calls that were counted as settling are resolved.
    pub(super) fn settled(&'static self, calls: usize) {
        let mut state = self.lock();
        state.settling -= calls;
        if !state.when_quiet.is_empty() {
            self.proceed(state);
        }
    }

    fn settle(&self, mut state: MutexGuard<'_, State>, mail: Mail) {
        let (told, works) = (state.told(), state.accepted);
        drop(state);
        for letter in mail {
            if letter.first {
                letter.worker.forget_words();
            }
            letter.worker.send(&letter.frames);
        }
        for call in told {
            call(works);
        }
    }

    /// Starts workers up to the limit.
    pub(super) fn warm(&'static self) {
        let mut state = self.lock();
        let numbers: Vec<u64> = std::iter::from_fn(|| state.book()).collect();
        drop(state);
        numbers.into_iter().for_each(attendant::start);
    }

    /// Stops a call: takes it out of the queue, or has its worker end it.
    pub(super) fn stop(&'static self, id: u64, reason: Reason) -> bool {
        let mut state = self.lock();
        if let Some(item) = state.queue.remove(id) {
            state.settling += 1;
            self.proceed(state);
            let stopped = item.stop(reason);
            self.settled(1);
            return stopped;
        }
        let found = state.workers.values_mut().find_map(|hand| {
            let at = hand.flight.iter().position(|entry| entry.item.id == id)?;
            Some((hand, at))
        });
        let Some((hand, at)) = found else {
            return false;
        };
        if hand.flight[at].stop.is_some() {
            return true;
        }
        hand.stop(at, reason);
        let entry = &hand.flight[at];
        let in_grace = entry.started.is_some() && !entry.condemned;
        // A large call has the worker to itself, which does nothing but take it.
        let pursuit = match hand.loading {
            true => hand.give_up(),
            false => hand.pursue(),
        };
        let worker = Arc::clone(&hand.worker);
        drop(state);
        if in_grace {
            worker.say(Kind::Cancel, id);
        }
        pursuit.execute(&worker);
        true
    }

    pub(super) fn list(&self) -> Vec<TaskInfo> {
        let info = |item: &Item, started: Option<Instant>| TaskInfo {
            kind: WorkKind::Cpu,
            state: if started.is_some() {
                WorkState::Running
            } else {
                WorkState::Queued
            },
            age: Some(started.unwrap_or(item.queued).elapsed()),
            started_at: item.call.origin(),
            name: Some(item.call.name()),
        };
        let state = self.lock();
        let flights = state.workers.values().flat_map(|hand| &hand.flight);
        let flying = flights.map(|entry| info(&entry.item, entry.started));
        flying
            .chain(state.queue.iter().map(|item| info(item, None)))
            .collect()
    }

    pub(super) fn count(&self, stats: &mut Stats) {
        let state = self.lock();
        stats.calls_queued = state.queue.len();
        stats.calls_running = state.workers.values().map(|hand| hand.flight.len()).sum();
        stats.workers = state.workers.len();
    }

    /// Calls once nothing is queued or in flight.
    pub(super) fn when_quiet(&'static self, call: OnQuiet) {
        let mut state = self.lock();
        state.when_quiet.push(call);
        self.proceed(state);
    }

    /// Takes no more calls, and stops those that there are; calls once the last worker has ended.
    pub(super) fn close(&'static self, call: OnQuiet) {
        let mut state = self.lock();
        state.closed = true;
        self.turn.notify_all();
        state.when_empty.push(call);
        let queue = state.queue.take();
        let calls = queue.len();
        state.settling += calls;
        let (mut busy, mut idle) = (Vec::new(), Vec::new());
        for hand in state.workers.values_mut() {
            hand.spent = true;
            for entry in &mut hand.flight {
                entry.stop.get_or_insert((Reason::ShutDown, Instant::now()));
            }
            let group = if hand.flight.is_empty() {
                &mut idle
            } else {
                &mut busy
            };
            group.push(Arc::clone(&hand.worker));
        }
        self.proceed(state);
        for item in queue {
            item.stop(Reason::ShutDown);
        }
        self.settled(calls);
        for worker in busy {
            worker.kill();
        }
        for worker in idle {
            worker.dismiss();
        }
    }
}

/// How many workers there may be.
fn limit() -> usize {
    settings().map_or(1, |settings| settings.processes)
}

/// Whether a call that is stopped for this reason may first end by itself.
pub(super) fn has_grace(reason: Reason) -> bool {
    let grace = settings().map_or(Duration::ZERO, |settings| settings.cancel_grace);
    !grace.is_zero() && !matches!(reason, Reason::ShutDown)
}
