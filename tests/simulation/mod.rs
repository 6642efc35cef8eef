//! A world to find errors of the scheduler in: callers, workers and readers that misbehave at random, in
//! simulated time.
//!
//! Everything follows from a seed, so a failure repeats. Workers crash before and after a start, freeze, are
//! slow, lose their last messages, give back and answer late, fail to start, and leave something behind that
//! holds their link. Some are on hosts, which may be slow, dead, or hang. Calls are large or small, quick or
//! slow, are stopped at any time, and kill the worker that gets them. The simulation knows what really
//! happens, and after each event compares it with what the scheduler does.
//!
//! `UNSYNC_SIMULATION_SEED=n` repeats one world, `UNSYNC_SIMULATION_EVENTS=n` makes the run longer.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::{Action, Effects, Exit, HERE, Heard, Limits, Outcome, SpawnFailure, State, Worker};
use crate::stop::Reason;

/// Numbers by splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn micros(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(from + self.below(to - from))
    }
}

const EAGER: usize = 64 << 10;
const OVERHEAD: usize = 256;
const SECOND: Duration = Duration::from_secs(1);
/// The last messages that a frozen worker may have sent arrive within this time.
const LATE: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug)]
struct Handle {
    id: u64,
    bytes: usize,
}

impl Handle {
    fn is_large(&self) -> bool {
        self.bytes + OVERHEAD > EAGER
    }
}

/// What is true of a call.
#[derive(Default)]
struct Truth {
    runs: Duration,
    kills_unstarted: bool,
    kills_started: bool,
    result_is_large: bool,
    ends_when_asked: bool,
    stopped: Option<Instant>,
    begun_at: Option<u64>,
    announced: bool,
    died_with: u32,
    finished: bool,
    resolved: bool,
}

/// What happens, mostly to the worker with this number.
#[derive(Clone, Copy, Debug)]
enum Event {
    Submit,
    Stop(u64),
    /// The time by which a call that was stopped is over.
    Overdue(u64),
    Connect(u64, usize),
    Step(u64),
    TakeOver(u64, u64),
    Finish(u64, u64),
    Die(u64),
    FreezeOne,
    Thaw(u64),
    Hear(u64),
    Progress(u64),
    Loaded(u64),
    Decoded(u64),
    Reaped,
    Tick(Instant),
    Warm,
    Close,
}

/// What a worker says.
#[derive(Clone, Debug)]
enum Said {
    Start(u64),
    Done(u64),
    Returned(Vec<u64>),
    ClearToSend,
    Exit { certain: bool },
}

/// A worker: the process as it is, and what the pool can know of it.
#[derive(Debug, Default)]
struct Process {
    place: usize,
    dead: bool,
    frozen: Option<Instant>,
    thawed: Option<Instant>,
    /// Events that wait for it to thaw.
    deferred: Vec<Event>,
    inbox: VecDeque<Action<Handle>>,
    running: Option<u64>,
    turn: u64,
    taken_over: bool,
    said: VecDeque<Said>,
    link_is_held: bool,
    has_left_link: bool,

    reader_is_busy: bool,
    decoding: bool,
    loading: Option<Handle>,
    asked: bool,
    /// Calls that were sent and are not known to be over, and whether each is known to have begun.
    in_flight: Vec<(Handle, bool)>,
    assigned: u64,
    proven: bool,
    replaced: bool,
    retired: Option<Instant>,
    killed: bool,
    heard_at: Option<Instant>,
}

/// Deliberate errors that the simulation has to find.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Tamper {
    Nothing,
    /// A call that comes back is not queued again.
    DropRequeued,
    /// A call that was stopped has no time to end by itself.
    KillEarly,
    /// A worker is killed for a call though others are in flight there.
    KillNeighbours,
    /// A worker's first start does not reset the failures.
    KeepFailures,
    /// Failures cause no back-off.
    ForgetBackoff,
    /// The bytes in the link are not counted.
    ForgetBytes,
    /// The start of a call is not noted: when its worker dies it is queued again.
    ForgetStart,
    /// The supervisor is not woken.
    ForgetWake,
    /// Nobody checks for frozen workers.
    ForgetCheck,
}

struct World {
    random: Random,
    tamper: Tamper,
    base: Instant,
    now: Instant,
    agenda: BTreeMap<(Duration, u64), Event>,
    scheduled: u64,
    steps: u64,
    state: State<Handle, u64>,
    limits: Limits,
    calls: Vec<Truth>,
    to_submit: u64,
    processes: BTreeMap<u64, Process>,
    places: Vec<Place>,
    reaping: usize,
    freezes: bool,
    ticking: Option<Instant>,
    closed: bool,
    /// Calls that are not resolved.
    open: usize,
    /// What has happened, and how often.
    seen: Seen,
    fault: Option<String>,
}

/// This machine or a host, as far as the pool can know it.
#[derive(Default)]
struct Place {
    slots: usize,
    starting: usize,
    /// When the first of these was started, or a worker has connected since.
    starting_since: Option<Instant>,
    failures: u32,
    not_before: Option<Instant>,
    /// The share of starts that fail, in percent, and how long a start takes.
    start_fails: u64,
    start_takes: Duration,
    trip: Duration,
}

type Seen = BTreeMap<&'static str, u64>;

/// What one step of the pool is about.
#[derive(Clone, Copy, PartialEq)]
enum Occasion {
    Other,
    Exit { worker: u64, certain: bool },
    SpawnFailed,
}

impl World {
    fn new(seed: u64, tamper: Tamper) -> World {
        let mut random = Random(seed);
        let mut places = vec![1 + random.below(6) as usize];
        if random.percent(40) {
            places[HERE] = random.below(3) as usize;
            let hosts = 1 + random.below(3);
            places.extend((0..hosts).map(|_| 1 + random.below(12) as usize));
        }
        let limits = Limits {
            places,
            calls_per_worker: random.percent(20).then(|| 1 + random.below(40)),
            eager: EAGER,
            keep_alive: [Duration::ZERO, random.micros(1, 50_000), 10 * SECOND]
                [random.below(3) as usize],
            cancel_grace: [Duration::ZERO, random.micros(1, 300_000)][random.below(2) as usize],
            host_timeout: 60 * SECOND,
        };
        let place = |(at, slots): (usize, &usize)| Place {
            slots: *slots,
            start_fails: match at {
                HERE => [0, 0, 0, 3, 3, 30, 30, 95][random.below(8) as usize],
                _ => [0, 0, 0, 10, 50, 100][random.below(6) as usize],
            },
            start_takes: match at {
                HERE => Duration::from_millis(30),
                _ => Duration::from_millis([50, 300, 10_000][random.below(3) as usize]),
            },
            trip: Duration::from_millis(match at {
                HERE => 0,
                _ => random.below(100),
            }),
            ..Place::default()
        };
        let places = limits.places.iter().enumerate().map(place).collect();
        let base = Instant::now();
        let mut world = World {
            tamper,
            base,
            now: base,
            agenda: BTreeMap::new(),
            scheduled: 0,
            steps: 0,
            state: State::new(limits.clone()),
            limits,
            calls: Vec::new(),
            to_submit: 100 + random.below(900),
            processes: BTreeMap::new(),
            places,
            reaping: 0,
            freezes: random.percent(40),
            ticking: None,
            closed: false,
            open: 0,
            seen: Seen::new(),
            fault: None,
            random,
        };
        world.after(Duration::ZERO, Event::Submit);
        if world.random.percent(20) {
            world.after(Duration::ZERO, Event::Warm);
        }
        if world.freezes {
            world.after(Duration::from_millis(20), Event::FreezeOne);
        }
        if world.random.percent(50) {
            let at = world.random.micros(1, 2_000_000);
            world.after(at, Event::Close);
        }
        world
    }

    /// Runs the world to its end; returns the events that it had, or what was wrong.
    fn run(mut self) -> Result<Seen, String> {
        // A thousand calls take hours if each worker runs only one and hardly any worker starts.
        const LONGEST: Duration = Duration::from_secs(1_000_000);
        while let Some(((at, _), event)) = self.agenda.pop_first() {
            self.now = self.base + at;
            self.steps += 1;
            self.note("event");
            self.happen(event);
            if at > LONGEST {
                self.fail("it does not come to an end".into());
            }
            if let Some(fault) = self.fault {
                return Err(format!(
                    "event {} at {at:?}, {event:?}: {fault}",
                    self.steps
                ));
            }
        }
        self.at_the_end();
        match self.fault {
            None => Ok(self.seen),
            Some(fault) => Err(format!("at the end: {fault}")),
        }
    }

    fn note(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn fail(&mut self, fault: String) {
        self.fault.get_or_insert(fault);
    }

    fn require(&mut self, so: bool, fault: impl FnOnce() -> String) {
        if !so {
            self.fail(fault());
        }
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.scheduled += 1;
        let at = self.now - self.base + delay;
        self.agenda.insert((at, self.scheduled), event);
    }

    fn living(&mut self, worker: u64) -> Option<&mut Process> {
        let process = self.processes.get_mut(&worker);
        process.filter(|process| !process.dead)
    }

    /// The process, if it lives and is not frozen; events for a frozen one happen when it thaws.
    fn awake(&mut self, worker: u64, event: Event) -> Option<&mut Process> {
        let process = self.living(worker)?;
        if process.frozen.is_some() {
            process.deferred.push(event);
            return None;
        }
        Some(process)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Submit => self.submit(),
            Event::Stop(id) => self.stop(id),
            Event::Overdue(id) => {
                let over = self.calls[id as usize].resolved;
                self.require(over, || format!("call {id} was stopped and is not over"));
            }
            Event::Connect(worker, place) => self.connect(worker, place),
            Event::Step(worker) => self.step(worker),
            Event::TakeOver(worker, turn) => self.take_over(worker, turn),
            Event::Finish(worker, turn) => self.finish(worker, turn),
            Event::Die(worker) => {
                if self.awake(worker, event).is_some() {
                    self.die(worker);
                }
            }
            Event::FreezeOne => self.freeze_one(),
            Event::Thaw(worker) => self.thaw(worker),
            Event::Hear(worker) => self.hear(worker),
            Event::Progress(worker) => {
                let loading = |process: &mut Process| process.loading.is_some();
                if self.awake(worker, event).is_some_and(loading) {
                    let now = self.now;
                    self.act(Occasion::Other, |state| {
                        state.heard(worker, Heard::Progressed, now)
                    });
                    self.after(LATE / 2, event);
                }
            }
            Event::Loaded(worker) => self.loaded(worker),
            Event::Decoded(worker) => self.decoded(worker),
            Event::Reaped => {
                self.reaping -= 1;
                self.act(Occasion::Other, State::reaped);
            }
            Event::Tick(at) => {
                if self.ticking == Some(at) {
                    self.ticking = None;
                    let now = self.now;
                    let all = self.processes.iter();
                    let decoding = all.filter(|(_, process)| process.decoding);
                    let decoding = Vec::from_iter(decoding.map(|(worker, _)| *worker));
                    self.act(Occasion::Other, |state| {
                        state.check(now, |worker| decoding.contains(worker))
                    });
                    self.look_at_clock();
                }
            }
            Event::Warm => {
                let now = self.now;
                self.act(Occasion::Other, |state| state.warm(now));
            }
            Event::Close => {
                let now = self.now;
                self.closed = true;
                self.to_submit = self.to_submit.min(3);
                self.act(Occasion::Other, |state| state.close(now));
            }
        }
    }

    // ------------------------------------------------------------------------------------ the callers

    fn submit(&mut self) {
        for _ in 0..1 + self.random.below(20) * self.random.below(2) {
            let id = self.calls.len() as u64;
            let random = &mut self.random;
            let runs = match random.below(100) {
                0..80 => random.micros(1, 100),
                80..97 => random.micros(100, 5_000),
                _ => random.micros(5_000, 1_500_000),
            };
            let bytes = match random.below(100) {
                0..80 => 40 + random.below(1_000),
                80..92 => 1_000 + random.below(EAGER as u64),
                _ => EAGER as u64 + random.below(10 * EAGER as u64),
            };
            self.calls.push(Truth {
                runs,
                kills_unstarted: random.below(1000) < 3,
                kills_started: random.percent(1),
                result_is_large: random.percent(3),
                ends_when_asked: random.percent(50),
                ..Truth::default()
            });
            let is_long = runs > Duration::from_millis(5);
            if random.percent(if is_long { 40 } else { 12 }) {
                let longest = [100, 20_000, 1_500_000][random.below(3) as usize];
                let delay = random.micros(0, longest);
                self.after(delay, Event::Stop(id));
            }
            let bytes = bytes as usize;
            self.open += 1;
            self.act(Occasion::Other, |state| {
                state.submit(id, bytes, Handle { id, bytes })
            });
        }
        self.to_submit = self.to_submit.saturating_sub(1);
        if self.to_submit > 0 {
            let longest = [100, 5_000, 5_000, 200_000][self.random.below(4) as usize];
            let delay = self.random.micros(0, longest);
            self.after(delay, Event::Submit);
        } else {
            let numbers: Vec<u64> = self.processes.keys().copied().collect();
            numbers.into_iter().for_each(|worker| self.thaw(worker));
        }
    }

    fn stop(&mut self, id: u64) {
        let over = self.calls[id as usize].resolved;
        let (mut known, now) = (false, self.now);
        // Set before the effects, which may resolve the call.
        self.calls[id as usize].stopped.get_or_insert(now);
        let reason = Reason::Cancelled;
        self.act(Occasion::Other, |state| known = state.stop(id, reason, now));
        if !known {
            self.calls[id as usize].stopped = None;
        }
        self.require(known || over, || {
            format!("call {id} is not over and cannot be stopped")
        });
        self.after(
            2 * self.limits.cancel_grace + 10 * SECOND,
            Event::Overdue(id),
        );
    }

    // ------------------------------------------------------------------------------------ the workers

    fn connect(&mut self, worker: u64, place: usize) {
        self.places[place].starting -= 1;
        let now = self.now;
        if self.random.percent(self.places[place].start_fails) {
            let failure = match self.random.below(10) {
                0 => SpawnFailure::Final,
                1..3 => SpawnFailure::Died,
                _ => SpawnFailure::Refused,
            };
            self.failed(place);
            return self.act(Occasion::SpawnFailed, |state| {
                state.spawn_failed(place, failure, now)
            });
        }
        let process = Process {
            place,
            link_is_held: self.random.percent(5),
            heard_at: Some(now),
            ..Process::default()
        };
        self.processes.insert(worker, process);
        if self.random.percent(4) {
            let delay = self.random.micros(0, 30_000);
            self.after(delay, Event::Die(worker));
        }
        self.places[place].starting_since = Some(now);
        let trip = self.places[place].trip;
        self.act(Occasion::Other, |state| {
            state.ready((worker, place), worker, trip, now);
        });
    }

    /// The pool writes to a worker.
    fn deliver(&mut self, worker: u64, message: Action<Handle>) {
        let Some(process) = self.living(worker) else {
            return;
        };
        process.inbox.push_back(message);
        let (awake, taken_over) = (process.frozen.is_none(), process.taken_over);
        if awake && taken_over {
            let turn = process.turn;
            self.take_over(worker, turn);
        } else {
            let delay = self.random.micros(0, 50);
            self.after(delay, Event::Step(worker));
        }
    }

    /// An idle worker reads its link.
    fn step(&mut self, worker: u64) {
        let Some(process) = self.awake(worker, Event::Step(worker)) else {
            return;
        };
        if process.running.is_some() {
            return;
        }
        match process.inbox.pop_front() {
            None => {}
            Some(Action::Call(call) | Action::LargeCall(call)) => self.begin(worker, call.id),
            Some(Action::RequestToSend) => self.say(worker, Said::ClearToSend),
            Some(_) => self.step(worker),
        }
    }

    fn begin(&mut self, worker: u64, id: u64) {
        let truth = &mut self.calls[id as usize];
        if truth.kills_unstarted {
            return self.die(worker);
        }
        let before = truth.begun_at.replace(worker);
        let (runs, kills, resolved) = (truth.runs, truth.kills_started, truth.resolved);
        let stopped_at = truth.stopped;
        self.require(before.is_none(), || format!("call {id} begins again"));
        // A stopped call is over after a second, whatever its worker does with it: a busy worker may be late
        // several times in a row with giving it back, and run it after all.
        let overdue = stopped_at.is_some_and(|at| self.now - at > SECOND);
        let thaws = self.was_frozen(worker);
        self.require(!resolved || thaws || overdue, || {
            format!("call {id} begins and is over")
        });
        let process = self.processes.get_mut(&worker).expect("it runs");
        process.running = Some(id);
        process.turn += 1;
        let turn = process.turn;
        self.say(worker, Said::Start(id));
        if kills {
            let delay = self.random.micros(0, 3_000).min(runs);
            self.after(delay, Event::Die(worker));
        }
        self.after(runs, Event::Finish(worker, turn));
        let late = [100, 100, 100, 400_000][self.random.below(4) as usize];
        let delay = self.random.micros(1_000, 1_000 + late);
        if delay < runs {
            self.after(delay, Event::TakeOver(worker, turn));
        }
    }

    /// The call takes a long time: another thread of the worker reads, and gives back the calls it finds.
    fn take_over(&mut self, worker: u64, turn: u64) {
        let Some(process) = self.awake(worker, Event::TakeOver(worker, turn)) else {
            return;
        };
        let Some(running) = process.running.filter(|_| process.turn == turn) else {
            return;
        };
        process.taken_over = true;
        let inbox = std::mem::take(&mut process.inbox);
        let mut back = Vec::new();
        for message in inbox {
            match message {
                Action::Call(call) | Action::LargeCall(call) => back.push(call.id),
                Action::RequestToSend => {
                    self.fail("a busy worker is asked for a large call".into())
                }
                Action::Cancel(id) if id == running && self.calls[id as usize].ends_when_asked => {
                    let delay = self.random.micros(0, 2_000);
                    self.after(delay, Event::Finish(worker, turn));
                }
                _ => {}
            }
        }
        if !back.is_empty() {
            self.note("calls are given back");
            self.say(worker, Said::Returned(back));
        }
    }

    fn finish(&mut self, worker: u64, turn: u64) {
        let Some(process) = self.awake(worker, Event::Finish(worker, turn)) else {
            return;
        };
        if process.turn != turn {
            return;
        }
        if let Some(id) = process.running.take() {
            process.taken_over = false;
            self.calls[id as usize].finished = true;
            self.say(worker, Said::Done(id));
            self.step(worker);
        }
    }

    fn die(&mut self, worker: u64) {
        let Some(process) = self.living(worker) else {
            return;
        };
        process.dead = true;
        process.running = None;
        let (is_loading, held) = (process.loading.is_some(), process.link_is_held);
        if is_loading {
            self.after(Duration::ZERO, Event::Loaded(worker));
        }
        if !held {
            self.leave_link(worker);
        }
    }

    fn leave_link(&mut self, worker: u64) {
        let certain = !self.random.percent(10);
        let keeps = self.random.percent(50);
        let Some(process) = self.processes.get_mut(&worker) else {
            return;
        };
        if !std::mem::replace(&mut process.has_left_link, true) {
            if !certain && !keeps {
                let half = process.said.len() / 2;
                process.said.truncate(half);
            }
            self.say(worker, Said::Exit { certain });
        }
    }

    /// Freezes a worker, mostly one that has several calls, and stops some of them.
    fn freeze_one(&mut self) {
        let at = self.random.below(self.processes.len() as u64) as usize;
        let laden = |worker: &u64| self.processes[worker].in_flight.len() > 1;
        let laden = self.processes.keys().copied().find(laden);
        let any = self.processes.keys().nth(at).copied();
        let worker = laden.filter(|_| self.random.percent(80)).or(any);
        let time = match self.random.below(3) {
            0 => self.random.micros(1_000, 800_000),
            _ => self.random.micros(800_000, 8_000_000),
        };
        let now = self.now;
        let process = worker.and_then(|worker| self.processes.get_mut(&worker));
        if let Some(process) = process.filter(|process| process.frozen.is_none()) {
            process.frozen = Some(now);
            let calls: Vec<u64> = process.in_flight.iter().map(|(call, _)| call.id).collect();
            self.after(time, Event::Thaw(worker.unwrap_or_default()));
            for id in calls {
                if self.random.percent(40) {
                    let delay = self.random.micros(0, 500_000);
                    self.after(delay, Event::Stop(id));
                }
            }
        }
        if self.to_submit > 0 {
            let delay = self.random.micros(1_000, 200_000);
            self.after(delay, Event::FreezeOne);
        }
    }

    fn thaw(&mut self, worker: u64) {
        let now = self.now;
        let Some(process) = self.processes.get_mut(&worker) else {
            return;
        };
        if let Some(since) = process.frozen.take() {
            if now - since > SECOND - LATE {
                process.thawed = Some(now);
            }
            for event in std::mem::take(&mut process.deferred) {
                self.after(Duration::ZERO, event);
            }
        }
    }

    /// Whether a worker has been frozen so long that it may be killed for that.
    fn was_frozen(&self, worker: u64) -> bool {
        let process = &self.processes[&worker];
        let is = process
            .frozen
            .is_some_and(|since| self.now - since > SECOND - LATE);
        is || process.thawed.is_some_and(|at| self.now - at < LATE)
    }

    fn say(&mut self, worker: u64, said: Said) {
        let process = self.processes.get_mut(&worker).expect("it speaks");
        process.said.push_back(said);
        let longest = [50, 1_000, 20_000][self.random.below(3) as usize];
        let delay = self.random.micros(1, 1 + longest);
        self.after(delay, Event::Hear(worker));
    }

    // ------------------------------------------------------------------------------------ the readers

    /// The reader of a worker reads everything that is there, unless it is busy.
    fn hear(&mut self, worker: u64) {
        loop {
            let Some(process) = self.processes.get_mut(&worker) else {
                return;
            };
            if process.reader_is_busy {
                return;
            }
            if !process.said.is_empty() {
                process.heard_at = Some(self.now);
            }
            let news = |said: &Said| matches!(said, Said::Start(_) | Said::Done(_));
            let mut batch = Vec::new();
            while process.said.front().is_some_and(news) {
                batch.extend(process.said.pop_front());
            }
            if !batch.is_empty() {
                self.advance(worker, &batch);
                continue;
            }
            let now = self.now;
            match process.said.pop_front() {
                None => return,
                Some(Said::Returned(ids)) => {
                    process
                        .in_flight
                        .retain(|(call, _)| !ids.contains(&call.id));
                    process.assigned -= ids.len() as u64;
                    self.act(Occasion::Other, |state| {
                        state.heard(worker, Heard::Returned(ids), now)
                    });
                    if self.tamper == Tamper::DropRequeued {
                        self.state.queue.small.pop_front();
                    }
                }
                Some(Said::ClearToSend) => {
                    process.asked = false;
                    self.act(Occasion::Other, |state| {
                        state.heard(worker, Heard::ClearToSend, now)
                    });
                }
                Some(Said::Exit { certain }) => return self.exit(worker, certain),
                Some(Said::Start(_) | Said::Done(_)) => {}
            }
        }
    }

    fn advance(&mut self, worker: u64, batch: &[Said]) {
        let (mut decodes, mut proves, mut unknown) = (false, false, false);
        let replaces = self.random.below(1000) < 2;
        let process = self.processes.get_mut(&worker).expect("it has spoken");
        for said in batch {
            match said {
                Said::Start(id) => {
                    unknown |= self.state.find(worker, *id).is_none();
                    proves |= !std::mem::replace(&mut process.proven, true);
                    let mut known = process.in_flight.iter_mut();
                    known
                        .find(|(call, _)| call.id == *id)
                        .expect("it is in flight")
                        .1 = true;
                }
                Said::Done(id) => {
                    process.in_flight.retain(|(call, _)| call.id != *id);
                    decodes |= self.calls[*id as usize].result_is_large;
                }
                _ => {}
            }
        }
        process.replaced |= replaces;
        process.decoding |= decodes;
        process.reader_is_busy |= decodes;
        let place = process.place;
        self.require(!unknown, || "a call begins that is not in flight".into());
        if proves {
            (self.places[place].failures, self.places[place].not_before) = (0, None);
        }
        let (now, tamper) = (self.now, self.tamper);
        let known = &self.state.places[place];
        let before = (known.failures, known.not_before);
        self.act(Occasion::Other, |state| {
            for said in batch {
                match said {
                    Said::Start(id) => state.heard(worker, Heard::Started(*id), now),
                    Said::Done(id) => state.heard(worker, Heard::Done(*id), now),
                    _ => {}
                }
            }
            if tamper == Tamper::KeepFailures {
                let place = &mut state.places[place];
                (place.failures, place.not_before) = before;
            }
            if replaces {
                state.heard(worker, Heard::Outgrown, now);
            }
            if decodes {
                state.heard(worker, Heard::Decoding, now);
            }
        });
        if decodes {
            let longest = [100_000, 3_000_000][usize::from(self.random.percent(5))];
            let delay = self.random.micros(0, longest);
            self.after(delay, Event::Decoded(worker));
        }
    }

    fn decoded(&mut self, worker: u64) {
        if let Some(process) = self.processes.get_mut(&worker) {
            process.decoding = false;
            process.reader_is_busy = false;
            process.heard_at = Some(self.now);
        }
        let now = self.now;
        self.act(Occasion::Other, |state| {
            state.heard(worker, Heard::Decoded, now)
        });
        self.after(Duration::ZERO, Event::Hear(worker));
    }

    fn loaded(&mut self, worker: u64) {
        let Some(process) = self.processes.get_mut(&worker) else {
            return;
        };
        if process.frozen.is_some() && !process.dead {
            return process.deferred.push(Event::Loaded(worker));
        }
        let Some(call) = process.loading.take() else {
            return;
        };
        process.reader_is_busy = false;
        self.deliver(worker, Action::LargeCall(call));
        let now = self.now;
        self.act(Occasion::Other, |state| {
            state.heard(worker, Heard::Loaded, now)
        });
        self.after(Duration::ZERO, Event::Hear(worker));
    }

    fn exit(&mut self, worker: u64, certain: bool) {
        let Some(process) = self.processes.remove(&worker) else {
            return;
        };
        let (now, tamper, place) = (self.now, self.tamper, process.place);
        // Whether the pool has to take this as a sign that the next worker may end the same way.
        let started = process.in_flight.iter().any(|(_, started)| *started);
        let is_stopped = |id: u64| self.calls[id as usize].stopped.is_some() || self.closed;
        let blameless = process
            .in_flight
            .iter()
            .any(|(call, _)| !is_stopped(call.id));
        if self.processes.is_empty() {
            self.hurry();
            if process.proven {
                self.places[HERE].failures = 0;
            }
        }
        let mut expected = self.places[place].failures;
        expected += u32::from(!started && blameless && self.may_start(place));
        let mut workers = self.state.workers.iter_mut();
        if let Some(known) = workers.find(|known| known.number == worker) {
            for entry in &mut known.in_flight {
                self.calls[entry.id as usize].died_with += 1;
                if tamper == Tamper::ForgetStart {
                    entry.started = None;
                }
            }
        }
        self.reaping += 1;
        self.act(Occasion::Exit { worker, certain }, |state| {
            let exit = if certain {
                Exit::Certain
            } else {
                Exit::Uncertain
            };
            state.exited(worker, exit, now);
        });
        let counted = self.state.places[place].failures;
        self.require(counted >= expected, || "a failure is not counted".into());
        let delay = self.random.micros(0, 5_000);
        self.after(delay, Event::Reaped);
    }

    // ------------------------------------------------------------------------------------ the pool

    /// Feeds the scheduler, does what it asks for, and checks whether that is right.
    fn act(&mut self, occasion: Occasion, event: impl FnOnce(&mut State<Handle, u64>)) {
        event(&mut self.state);
        self.tamper_before();
        self.state.schedule(self.now);
        let mut fx = std::mem::take(&mut self.state.fx);
        self.tamper_after(&mut fx);
        for place in 0..self.places.len() {
            let counted = self.state.places[place].failures;
            let is_new = counted > self.places[place].failures;
            if matches!(occasion, Occasion::Exit { .. }) && is_new {
                let may_fail = self.may_start(place);
                self.require(may_fail, || "a failure within a back-off counts".into());
                self.failed(place);
            }
            let failures = (counted, self.places[place].failures);
            self.require(failures.0 == failures.1, || {
                format!("counts failures {failures:?}")
            });
        }
        self.carry_out(fx, occasion);
        self.check();
    }

    fn tamper_before(&mut self) {
        let now = self.now;
        match self.tamper {
            Tamper::KillEarly => {
                for worker in &mut self.state.workers {
                    let stops = worker
                        .in_flight
                        .iter_mut()
                        .filter_map(|entry| entry.stop.as_mut());
                    stops.for_each(|stop| stop.kill_at = now);
                }
            }
            Tamper::ForgetBackoff => {
                let places = self.state.places.iter_mut();
                places.for_each(|place| place.not_before = None);
            }
            Tamper::ForgetBytes => {
                let workers = self.state.workers.iter_mut();
                workers.for_each(|worker| worker.eager = usize::MAX);
            }
            Tamper::ForgetCheck => self.state.next_check = None,
            _ => {}
        }
    }

    fn tamper_after(&mut self, fx: &mut Effects<Handle, u64>) {
        match self.tamper {
            Tamper::KillNeighbours => {
                let is_stopping = |worker: &&Worker<Handle, u64>| {
                    worker.in_flight.len() > 1
                        && worker.running().is_some_and(|entry| entry.stop.is_some())
                };
                let stopping = self.state.workers.iter().filter(is_stopping);
                fx.actions
                    .extend(stopping.map(|worker| (worker.number, Action::Kill)));
            }
            Tamper::ForgetWake => fx.wake_supervisor = false,
            _ => {}
        }
    }

    /// Whether no back-off is under way.
    fn may_start(&self, place: usize) -> bool {
        self.places[place]
            .not_before
            .is_none_or(|at| at <= self.now)
    }

    fn failed(&mut self, place: usize) {
        if self.may_start(place) {
            let base = if place == HERE { 10 } else { 250 };
            let place = &mut self.places[place];
            place.failures += 1;
            let pause = base * 4u64.pow((place.failures - 1).min(4));
            place.not_before = Some(self.now + Duration::from_millis(pause));
        }
        if self.processes.is_empty() && self.starting() == 0 {
            self.hurry();
        }
    }

    /// Nothing lives that could run a call.
    fn hurry(&mut self) {
        for host in &mut self.places[HERE + 1..] {
            host.not_before = host.not_before.map(|at| at.min(self.now + SECOND));
        }
    }

    fn starting(&self) -> usize {
        self.places.iter().map(|place| place.starting).sum()
    }

    /// The workers, or those of one place, that were not told to end.
    fn live(&self, place: Option<usize>) -> usize {
        let stays = |process: &&Process| {
            process.retired.is_none() && place.is_none_or(|place| process.place == place)
        };
        self.processes.values().filter(stays).count()
    }

    fn carry_out(&mut self, fx: Effects<Handle, u64>, occasion: Occasion) {
        for (worker, action) in fx.actions {
            match action {
                Action::Kill => self.kill(worker),
                Action::Retire => self.retire(worker),
                Action::Probe(_) => {
                    self.note("a silent worker is looked at");
                    let process = self.processes.get(&worker);
                    if process.is_some_and(|process| process.dead) {
                        self.leave_link(worker);
                    }
                }
                message => self.send(worker, message),
            }
        }
        for call in fx.begun {
            let truth = &mut self.calls[call.id as usize];
            let again = std::mem::replace(&mut truth.announced, true) || truth.resolved;
            self.require(!again, || format!("call {} begins twice, or over", call.id));
        }
        for (call, outcome) in fx.resolutions {
            self.resolve(call.id, outcome, occasion);
        }
        for (worker, at) in fx.spawns {
            let may_start = self.may_start(at);
            let place = &mut self.places[at];
            let waits = may_start && (place.failures == 0 || place.starting == 0);
            if place.starting == 0 {
                place.starting_since = Some(self.now);
            }
            place.starting += 1;
            let crowded = at != HERE && place.starting > 8;
            let longest = place.start_takes.as_micros() as u64;
            self.require(waits, || "a worker is started within a back-off".into());
            self.require(!crowded, || "too many workers are started at once".into());
            let delay = self.random.micros(500, longest);
            self.after(delay, Event::Connect(worker, at));
            self.note(if at == HERE {
                "started here"
            } else {
                "started at a host"
            });
        }
        if fx.wake_supervisor {
            self.look_at_clock();
        }
        let empty = self.processes.is_empty() && self.starting() + self.reaping == 0;
        let says = self.state.is_empty();
        self.require(says == empty, || format!("empty: {empty}, and says {says}"));
    }

    fn look_at_clock(&mut self) {
        self.ticking = self.state.next_deadline();
        if let Some(at) = self.ticking {
            let late = self.random.micros(0, 300);
            self.after(
                at.saturating_duration_since(self.now) + late,
                Event::Tick(at),
            );
        }
    }

    fn send(&mut self, worker: u64, message: Action<Handle>) {
        let complete = self.live(None) >= self.limits.places.iter().sum();
        let Some(process) = self.processes.get_mut(&worker) else {
            return self.fail("something is sent to a worker that has gone".into());
        };
        if process.decoding && !complete && !matches!(message, Action::Cancel(_) | Action::Fresh) {
            return self.fail(format!("{worker} gets a call while its reader decodes"));
        }
        let leaves = process.killed || process.retired.is_some();
        match &message {
            Action::LargeCall(call) => {
                process.in_flight.push((*call, false));
                process.assigned += 1;
                process.loading = Some(*call);
                process.reader_is_busy = true;
                let dead = process.dead;
                let slow = self.random.percent(5);
                let longest = if slow { 4_000_000 } else { 30_000 };
                let delay = self.random.micros(100, longest);
                let delay = if dead { Duration::ZERO } else { delay };
                self.after(delay, Event::Loaded(worker));
                self.after(LATE / 2, Event::Progress(worker));
                return;
            }
            Action::Call(call) => {
                process.in_flight.push((*call, false));
                process.assigned += 1;
                self.require(!leaves, || {
                    format!("call {} goes to a worker that leaves", call.id)
                });
            }
            Action::RequestToSend => {
                let idle = process.in_flight.is_empty() && !process.asked;
                process.asked = true;
                self.require(idle && !leaves, || "a busy worker gets a large call".into());
            }
            Action::Cancel(_) => {}
            Action::Fresh | Action::Retire | Action::Probe(_) | Action::Kill => return,
        }
        self.deliver(worker, message);
    }

    fn kill(&mut self, worker: u64) {
        let Some(process) = self.processes.get_mut(&worker) else {
            return self.fail("a worker that has gone is killed".into());
        };
        let again = std::mem::replace(&mut process.killed, true);
        if process.dead {
            let again = again || process.retired.is_some();
            self.note("killed and dead already");
            if again {
                self.leave_link(worker);
            }
            return;
        }
        let process = &self.processes[&worker];
        let grace = self.limits.cancel_grace;
        let stopped = |id: u64| self.calls[id as usize].stopped;
        let innocent = process.running.filter(|id| stopped(*id).is_none());
        let overdue = process.retired.is_some_and(|at| self.now - at >= SECOND);
        let culprit = match process.in_flight[..] {
            [(call, started)] => stopped(call.id)
                .is_some_and(|at| (started && self.now >= at + grace) || process.loading.is_some()),
            _ => false,
        };
        // It should have given back the calls behind a call that was stopped, however it was held up.
        let held_up = process.running.and_then(stopped);
        let held_up = held_up.is_some_and(|at| self.now >= at + grace + SECOND);
        let frozen = self.was_frozen(worker) || held_up;
        let described = format!("{process:?}");
        let legal = self.closed || overdue || frozen || culprit;
        let unheard = process.thawed.is_some_and(|at| self.now - at < LATE);
        self.require(legal, || {
            format!("worker {worker} is killed without a reason: {described}")
        });
        self.require(self.closed || innocent.is_none() || unheard, || {
            format!("worker {worker} is killed while it runs {innocent:?}")
        });
        self.note(match () {
            () if self.closed => "killed by the shutdown",
            () if overdue => "killed as it did not retire",
            () if culprit => "killed for a call",
            () => "killed as frozen",
        });
        self.die(worker);
    }

    fn retire(&mut self, worker: u64) {
        let now = self.now;
        let Some(process) = self.processes.get_mut(&worker) else {
            return self.fail("a worker that has gone is retired".into());
        };
        let idle = process.in_flight.is_empty() && !process.asked && process.running.is_none();
        let again = process.retired.replace(now).is_some() || process.killed;
        let used = self.limits.calls_per_worker;
        let used = process.replaced || used.is_some_and(|most| process.assigned >= most);
        let rested = process
            .heard_at
            .is_some_and(|at| now >= at + self.limits.keep_alive);
        let why = used || rested || self.closed;
        self.require(why, || format!("worker {worker} retires for no reason"));
        self.require(idle && !again, || {
            format!("worker {worker} retires and is not idle")
        });
        if self.random.percent(95) {
            let delay = self.random.micros(0, 50_000);
            self.after(delay, Event::Die(worker));
        }
    }

    fn resolve(&mut self, id: u64, outcome: Outcome, occasion: Occasion) {
        let truth = &self.calls[id as usize];
        let is_stopped = truth.stopped.is_some() || self.closed;
        let nobody = self.processes.is_empty() && self.starting() == 0;
        let right = match outcome {
            Outcome::Done => truth.finished && truth.announced && truth.stopped.is_none(),
            Outcome::Stopped { reason, .. } => match reason {
                Reason::ShutDown => self.closed,
                _ => truth.stopped.is_some(),
            },
            Outcome::Lost { ran, stop, .. } => match occasion {
                Occasion::Exit { worker, certain } => {
                    let begun = truth.begun_at == Some(worker) && ran.is_some();
                    let blamed = begun || !certain || truth.died_with >= 3;
                    blamed && stop.is_some() == is_stopped
                }
                _ => false,
            },
            Outcome::Unstartable => occasion != Occasion::Other && nobody && self.is_hopeless(),
        };
        let early = occasion == Occasion::Other
            && self
                .processes
                .values()
                .any(|process| process.in_flight.iter().any(|(call, _)| call.id == id));
        self.note(match outcome {
            Outcome::Done => "done",
            Outcome::Stopped { ran: Some(_), .. } => "stopped, and ended by itself",
            Outcome::Stopped { .. } if early && !self.closed => {
                "stopped behind a call of a frozen worker"
            }
            Outcome::Stopped { .. } => "stopped before it began",
            Outcome::Lost { stop: Some(_), .. } => "stopped by the end of its worker",
            Outcome::Lost { deaths: 3, .. } => "lost with three workers",
            Outcome::Lost { ran: Some(_), .. } => "lost while it ran",
            Outcome::Lost { .. } => "lost, perhaps before it began",
            Outcome::Unstartable => "no worker can be started",
        });
        let over = std::mem::replace(&mut self.calls[id as usize].resolved, true);
        self.open -= usize::from(!over);
        self.require(!over, || {
            format!("call {id} is resolved twice, now as {outcome:?}")
        });
        self.require(right, || format!("call {id} is resolved as {outcome:?}"));
    }

    /// Checks what must always be true once the scheduler has done everything.
    fn check(&mut self) {
        let limits = self.limits.clone();
        let live = self.live(None);
        for at in 0..self.places.len() {
            let workers = self.live(Some(at)) + self.places[at].starting;
            let fits = workers <= self.places[at].slots;
            self.require(fits, || "too many workers".into());
        }
        let complete = live >= limits.places.iter().sum();
        let waiting = self.state.queue.len();
        let mut faults = Vec::new();
        for (worker, process) in &self.processes {
            let unheard = process.in_flight.iter().filter(|(_, started)| !started);
            let bytes: usize = unheard.map(|(call, _)| call.bytes + OVERHEAD).sum();
            let large = matches!(process.in_flight[..], [(call, _)] if call.is_large());
            if bytes > EAGER && !large {
                faults.push(format!("worker {worker} has {bytes} bytes unread"));
            }
            let quota = limits
                .calls_per_worker
                .is_none_or(|most| process.assigned < most);
            let stays = process.retired.is_none() && !process.killed && !process.replaced;
            let busy = !process.in_flight.is_empty() || process.asked;
            let may = stays && quota && !busy && (complete || !process.decoding);
            if may && waiting > 0 {
                faults.push(format!(
                    "worker {worker} is idle while {waiting} calls wait"
                ));
            }
            if limits
                .calls_per_worker
                .is_some_and(|most| process.assigned > most)
            {
                faults.push(format!(
                    "worker {worker} has had {} calls",
                    process.assigned
                ));
            }
        }
        // The pool does not count on a host that hangs, and starts no more workers there.
        let hangs = |at: usize, place: &Place| {
            let since = place.starting_since;
            let since = since.filter(|_| at != HERE && place.starting > 0);
            since.is_some_and(|since| self.now >= since + SECOND)
        };
        let expected =
            self.places.iter().enumerate().map(
                |(at, place)| {
                    if hangs(at, place) { 0 } else { place.starting }
                },
            );
        let is_short = waiting > expected.sum();
        for (at, place) in self.places.iter().enumerate() {
            let room = self.live(Some(at)) + place.starting < place.slots;
            let may_start = self.may_start(at)
                && (place.not_before.is_none() || place.starting == 0)
                && (at == HERE || place.starting < 8)
                && !hangs(at, place);
            if is_short && room && may_start && !self.closed {
                faults.push(format!("{waiting} calls wait and no worker is started"));
            }
        }
        if self.steps % 64 == 0 {
            // This looks at every call.
            let (queued, in_flight, workers) = self.state.counts();
            let listed = self.state.calls().count();
            let counted = (queued + in_flight, listed, workers, self.state.is_closed());
            if counted != (self.open, self.open, live, self.closed) {
                let open = self.open;
                faults.push(format!("{counted:?} are not {open}, {open}, {live}"));
            }
        }
        // The next check waits for the supervisor.
        let deadline = self.state.deadline;
        let deadline = deadline.filter(|at| self.state.next_check != Some(*at));
        if deadline.is_some_and(|at| at <= self.now) {
            faults.push("the deadline has passed".into());
        }
        faults.into_iter().for_each(|fault| self.fail(fault));
    }

    /// Whether calls fail if there is no worker. How many failures that takes depends on what they are.
    fn is_hopeless(&self) -> bool {
        let places = self.places.iter();
        places
            .filter(|place| place.slots > 0)
            .all(|place| place.failures > 0)
    }

    fn at_the_end(&mut self) {
        let open = self.open;
        self.require(open == 0, || format!("{open} calls are not over"));
        let left = (self.processes.len(), self.starting(), self.reaping);
        self.require(left == (0, 0, 0), || format!("something is left: {left:?}"));
        let deadline = self.state.next_deadline();
        self.require(deadline.is_none(), || {
            "nobody waits for the next deadline".into()
        });
    }
}

/// Runs worlds until there were this many events; returns what happened, or the first fault.
fn run_worlds(first: u64, events: u64, tamper: Tamper) -> Result<Seen, String> {
    let mut seen = Seen::new();
    for seed in first.. {
        let world = World::new(seed, tamper).run();
        let world = world.map_err(|fault| {
            format!("seed {seed} (UNSYNC_SIMULATION_SEED={seed} repeats it): {fault}")
        })?;
        for (what, times) in world {
            *seen.entry(what).or_default() += times;
        }
        if seen["event"] >= events {
            break;
        }
    }
    Ok(seen)
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// What has to have happened for a run without a fault to mean anything.
const HAPPENINGS: [&str; 19] = [
    "calls are given back",
    "a silent worker is looked at",
    "done",
    "stopped, and ended by itself",
    "stopped behind a call of a frozen worker",
    "stopped before it began",
    "stopped by the end of its worker",
    "lost with three workers",
    "lost while it ran",
    "lost, perhaps before it began",
    "no worker can be started",
    "killed by the shutdown",
    "killed as it did not retire",
    "killed for a call",
    "killed as frozen",
    "killed and dead already",
    "started here",
    "started at a host",
    "event",
];

#[test]
fn a_million_events() {
    if let Some(seed) = number_from("UNSYNC_SIMULATION_SEED") {
        let seen = run_worlds(seed, 1, Tamper::Nothing).unwrap_or_else(|fault| panic!("{fault}"));
        return println!("{seen:#?}");
    }
    let events = number_from("UNSYNC_SIMULATION_EVENTS").unwrap_or(1_000_000);
    let seen = run_worlds(1, events, Tamper::Nothing).unwrap_or_else(|fault| panic!("{fault}"));
    println!("{seen:#?}");
    for what in HAPPENINGS {
        assert!(seen.contains_key(what), "it never happens: {what}");
    }
}

#[test]
fn what_is_wrong_is_found() {
    for tamper in [
        Tamper::DropRequeued,
        Tamper::KillEarly,
        Tamper::KillNeighbours,
        Tamper::KeepFailures,
        Tamper::ForgetBackoff,
        Tamper::ForgetBytes,
        Tamper::ForgetStart,
        Tamper::ForgetWake,
        Tamper::ForgetCheck,
    ] {
        let fault =
            run_worlds(1, 1_000_000, tamper).expect_err(&format!("{tamper:?} is not found"));
        println!("{tamper:?}: {fault}");
    }
}
