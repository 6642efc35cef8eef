//! The queue, what is in flight, and the attendants.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::frame::{self, Frames, Kind};
use super::link::{self, Reader, Refusal, Stream, Terms};
use super::wire::Wire;
use super::worker::{ARGUMENT, Setup, TEST_ARGUMENT, TEST_MARK, setup};
use crate::config::settings;
use crate::error::{Error, ErrorKind, discard, wall};

/// A call without its types.
pub(super) trait Remote: Send + Sync {
    fn name(&self) -> &'static str;
    /// Resolves the call from the payload of its `Done` and the panic that was reported before it.
    fn done(&self, payload: &[u8], panic: Option<String>);
    fn fail(&self, error: Error) -> bool;
}

/// A call on its way.
pub(super) struct Item {
    id: u64,
    call: Arc<dyn Remote>,
    /// The whole frame, until the start is acknowledged.
    frame: Vec<u8>,
    /// Workers that died with it before they had started it.
    deaths: u32,
}

impl Item {
    pub(super) fn new(id: u64, call: Arc<dyn Remote>, frame: Vec<u8>) -> Item {
        Item {
            id,
            call,
            frame,
            deaths: 0,
        }
    }
}

/// Numbers calls. Never reused; the queue is in their order.
pub(super) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

pub(super) static POOL: Pool = Pool {
    state: Mutex::new(State::new()),
};

pub(super) struct Pool {
    state: Mutex<State>,
}

struct State {
    /// Sorted by id. No limit, as for every way to start work.
    queue: VecDeque<Item>,
    /// Those that have connected, by number.
    workers: BTreeMap<u64, Hand>,
    /// Attendants that are starting a worker.
    starting: usize,
    /// Workers started so far.
    started: u64,
}

/// A worker as the dealer sees it.
struct Hand {
    worker: Arc<Worker>,
    /// Sent and not done, in the order of sending, which is that of running.
    flight: VecDeque<InFlight>,
    /// How many calls may be in flight: as many as take about `WINDOW` together.
    window: usize,
    /// What a call takes, as a moving average.
    pace: Duration,
    /// A recall was sent and is not answered.
    recalling: bool,
    /// A large call waits for the attendant to write it, or is being written.
    loading: bool,
}

struct InFlight {
    item: Item,
    /// When the start was acknowledged.
    started: Option<Instant>,
    panic: Option<String>,
    /// Why it shall not give a value any more.
    stop: Option<Error>,
}

struct Worker {
    number: u64,
    link: Stream,
    writing: Mutex<()>,
    child: Mutex<Child>,
    pid: u32,
}

/// What is to be written when the lock is free again.
type Mail = Vec<(Arc<Worker>, Vec<u8>)>;

/// Frames up to this size together may be unstarted at a worker: what a socket holds for sure, so that
/// the write of a dealer never blocks. A larger frame is written by the attendant.
const DIRECT: usize = 64 << 10;
/// The work that may lie ready at a worker.
const WINDOW: Duration = Duration::from_millis(1);
const WINDOW_CALLS: usize = 256;
/// A call that takes longer than this holds up those behind it.
const STALL: Duration = Duration::from_millis(2);
/// Workers in a row that may die before they start a call, or fail to start themselves.
const DEATHS: u32 = 3;
/// How long an idle worker may take to leave.
const FAREWELL: Duration = Duration::from_secs(3);

impl State {
    const fn new() -> State {
        State {
            queue: VecDeque::new(),
            workers: BTreeMap::new(),
            starting: 0,
            started: 0,
        }
    }

    fn enqueue(&mut self, item: Item) {
        let place = match self.queue.back() {
            Some(last) if last.id > item.id => {
                self.queue.partition_point(|other| other.id < item.id)
            }
            _ => self.queue.len(),
        };
        self.queue.insert(place, item);
    }

    /// Moves calls from the queue to workers with room, and has those recalled that lie behind a slow
    /// one.
    fn deal(&mut self) -> Mail {
        let mut mail = Mail::new();
        let now = Instant::now();
        while let Some(item) = self.queue.front() {
            let large = item.frame.len() > DIRECT;
            let bytes = item.frame.len();
            let roomy = self.workers.values_mut().filter(|hand| match large {
                true => hand.is_idle(),
                false => hand.has_room(bytes, now),
            });
            // The one with the least to do; among idle ones the youngest, so that the oldest can
            // retire.
            let Some(hand) =
                roomy.min_by_key(|hand| (hand.flight.len(), u64::MAX - hand.worker.number))
            else {
                break;
            };
            let Some(item) = self.queue.pop_front() else {
                break;
            };
            let at = match mail
                .iter()
                .position(|(worker, _)| Arc::ptr_eq(worker, &hand.worker))
            {
                Some(at) => at,
                None => {
                    mail.push((Arc::clone(&hand.worker), Vec::new()));
                    mail.len() - 1
                }
            };
            let frames = &mut mail[at].1;
            if large {
                // The answer calls the attendant from its reading, to write the frame itself.
                frame::plain(frames, Kind::Ping, 0);
                hand.loading = true;
            } else {
                frames.extend_from_slice(&item.frame);
            }
            hand.flight.push_back(InFlight {
                item,
                started: None,
                panic: None,
                stop: None,
            });
        }
        self.recall(now, &mut mail);
        mail
    }

    fn recall(&mut self, now: Instant, mail: &mut Mail) {
        let somebody_idle = self.queue.is_empty() && self.workers.values().any(Hand::is_idle);
        for hand in self.workers.values_mut() {
            let stalled = hand.flight.front().is_some_and(|front| front.is_slow(now));
            if hand.flight.len() > 1 && !hand.recalling && (stalled || somebody_idle) {
                hand.recalling = true;
                let mut frame = Vec::new();
                frame::plain(&mut frame, Kind::Recall, 0);
                mail.push((Arc::clone(&hand.worker), frame));
            }
        }
    }

    /// Books one more worker if calls wait and there may be one more.
    fn grow(&mut self) -> Option<u64> {
        let limit = settings().map_or(1, |settings| settings.processes);
        if self.queue.len() <= self.starting || self.workers.len() + self.starting >= limit {
            return None;
        }
        self.starting += 1;
        self.started += 1;
        Some(self.started)
    }

    /// Whether nobody will ever come for the queue.
    fn is_deserted(&self) -> bool {
        self.workers.is_empty() && self.starting == 0
    }
}

impl Hand {
    fn is_idle(&self) -> bool {
        self.flight.is_empty() && !self.recalling && !self.loading
    }

    fn has_room(&self, bytes: usize, now: Instant) -> bool {
        let Some(front) = self.flight.front() else {
            return self.is_idle();
        };
        let unstarted: usize = self.flight.iter().map(|entry| entry.item.frame.len()).sum();
        !self.recalling
            && !self.loading
            && self.flight.len() < self.window
            && unstarted + bytes <= DIRECT
            && !front.is_slow(now)
    }

    fn find(&mut self, id: u64) -> Option<&mut InFlight> {
        self.flight.iter_mut().find(|entry| entry.item.id == id)
    }

    /// Learns from a call that took so long.
    fn learn(&mut self, took: Duration) {
        self.pace = (self.pace * 3 + took) / 4;
        let calls = WINDOW.as_nanos() / self.pace.as_nanos().max(1);
        self.window =
            usize::try_from(calls).map_or(WINDOW_CALLS, |calls| calls.clamp(1, WINDOW_CALLS));
    }
}

impl InFlight {
    fn is_slow(&self, now: Instant) -> bool {
        self.started
            .is_some_and(|started| now.saturating_duration_since(started) > STALL)
    }
}

impl Worker {
    /// Writes frames. An error needs no care here: the attendant finds the end of the link.
    fn send(&self, frames: &[u8]) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.link.write_all(frames);
    }

    fn kill(&self) {
        // It fails only if the process was reaped before.
        let _ = self
            .child
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .kill();
    }

    /// Makes sure that the process has ended, and reaps it. A process whose link has ended is past
    /// the point where a kill could change how it ended; one that lives on without its link is of no
    /// use.
    fn reap(&self) -> Option<ExitStatus> {
        self.kill();
        self.child
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .wait()
            .ok()
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn submit(&'static self, item: Item) {
        let mut state = self.lock();
        state.enqueue(item);
        self.proceed(state);
    }

    /// Deals, grows, and does outside the lock what that takes.
    fn proceed(&'static self, mut state: MutexGuard<'_, State>) {
        let mail = state.deal();
        let number = state.grow();
        drop(state);
        for (worker, frames) in mail {
            worker.send(&frames);
        }
        if let Some(number) = number {
            let attendant = thread::Builder::new().name(format!("unsync-cpu-{number}"));
            if let Err(error) = attendant.spawn(move || self.attend(number)) {
                self.give_up(&Error::os(
                    "no thread could be started for a worker process",
                    error,
                ));
            }
        }
    }

    /// Stops a call: takes it out of the queue, or kills its worker.
    pub(super) fn stop(&'static self, id: u64, reason: Error) -> bool {
        let mut state = self.lock();
        if let Ok(place) = state.queue.binary_search_by_key(&id, |item| item.id) {
            let item = state.queue.remove(place);
            drop(state);
            return item.is_some_and(|item| item.call.fail(reason));
        }
        for hand in state.workers.values_mut() {
            let Some(entry) = hand.find(id) else { continue };
            if entry.stop.is_some() {
                return true;
            }
            entry.stop = Some(reason);
            let running = entry.started.is_some() || hand.loading;
            let worker = Arc::clone(&hand.worker);
            let recall = !running && !std::mem::replace(&mut hand.recalling, true);
            drop(state);
            if running {
                worker.kill();
            } else if recall {
                let mut frame = Vec::new();
                frame::plain(&mut frame, Kind::Recall, 0);
                worker.send(&frame);
            }
            return true;
        }
        false
    }

    // ------------------------------------------------------------------------------- attendants

    /// The life of an attendant: one worker, from its start to its burial.
    fn attend(&'static self, number: u64) {
        let (child, link) = match self.launch() {
            Ok(Some(launched)) => launched,
            Ok(None) => return self.lock().starting -= 1,
            Err(error) => return self.give_up(&error),
        };
        let pid = child.id();
        let (writing, child) = (Mutex::new(()), Mutex::new(child));
        let worker = Arc::new(Worker {
            number,
            link,
            writing,
            child,
            pid,
        });
        let mut state = self.lock();
        state.starting -= 1;
        state.workers.insert(
            number,
            Hand {
                worker: Arc::clone(&worker),
                flight: VecDeque::new(),
                window: 1,
                pace: WINDOW,
                recalling: false,
                loading: false,
            },
        );
        self.proceed(state);
        // Whatever happens in there, the worker is buried.
        discard(wall(|| self.read(&worker)));
        self.bury(&worker);
    }

    /// Starts a process. `None` if it is not needed any more.
    fn launch(&self) -> Result<Option<(Child, Stream)>, Error> {
        let settings = settings()?;
        let terms = Terms {
            frame_bytes_max: settings.frame_bytes_max as u64,
        };
        let mut tries = 0;
        loop {
            let refusal = match command()
                .map_err(Refusal::Os)
                .and_then(|command| link::launch(command, terms, settings.start_timeout))
            {
                Ok((mut child, link)) => {
                    forward(&mut child);
                    return Ok(Some((child, link)));
                }
                Err(refusal) => refusal,
            };
            tries += 1;
            let fatal = matches!(&refusal, Refusal::Os(error) if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
            ));
            if fatal || tries == DEATHS {
                return Err(refused(refusal, settings.start_timeout));
            }
            // There is no event for "the system can take one more process again".
            thread::sleep(Duration::from_millis(10) * 4u32.pow(tries - 1));
            if self.lock().queue.is_empty() {
                return Ok(None);
            }
        }
    }

    /// A worker could not be started. The calls wait for those that live; if there are none, they
    /// fail.
    fn give_up(&self, error: &Error) {
        let mut state = self.lock();
        state.starting -= 1;
        let deserted = state.is_deserted();
        let stranded = if deserted {
            std::mem::take(&mut state.queue)
        } else {
            VecDeque::new()
        };
        drop(state);
        for item in stranded {
            item.call.fail(error.clone());
        }
    }

    /// Reads the link of a worker until it ends, or until the worker has been idle for long.
    fn read(&'static self, worker: &Arc<Worker>) -> io::Result<()> {
        let settings = settings().map_err(io::Error::other)?;
        let mut frames = Frames::new(settings.frame_bytes_max.saturating_add(frame::HEADER));
        let mut source = Reader::new(&worker.link);
        worker.link.set_read_timeout(Some(settings.keep_alive))?;
        loop {
            match frames.next(&mut source) {
                Ok(None) => return Ok(()),
                Ok(Some((Kind::Start, id, _))) => self.started(worker, id),
                Ok(Some((Kind::Done, id, payload))) => self.done(worker, id, payload),
                Ok(Some((Kind::Panic, id, payload))) => self.panicked(worker, id, payload),
                Ok(Some((Kind::Returned, _, mut payload))) => {
                    let ids = Vec::<u64>::decode(&mut payload).map_err(io::Error::other)?;
                    self.returned(worker, &ids);
                }
                Ok(Some((Kind::Pong, ..))) => {
                    source.make_blocking()?;
                    self.load(worker);
                }
                Ok(Some(_)) => return Err(io::ErrorKind::InvalidData.into()),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        frames.relax();
                        if self.retires(worker) {
                            return dismiss(worker, &mut source);
                        }
                    }
                    _ => return Err(error),
                },
            }
        }
    }

    fn started(&self, worker: &Worker, id: u64) {
        let mut state = self.lock();
        let hand = state.workers.get_mut(&worker.number);
        let Some(entry) = hand.and_then(|hand| hand.find(id)) else {
            return;
        };
        entry.started = Some(Instant::now());
        let frame = std::mem::take(&mut entry.item.frame);
        let stopped = entry.stop.is_some();
        drop(state);
        drop(frame);
        if stopped {
            worker.kill();
        }
    }

    fn done(&'static self, worker: &Worker, id: u64, payload: &[u8]) {
        let mut state = self.lock();
        let Some(hand) = state.workers.get_mut(&worker.number) else {
            return;
        };
        let Some(place) = hand.flight.iter().position(|entry| entry.item.id == id) else {
            return;
        };
        let Some(entry) = hand.flight.remove(place) else {
            return;
        };
        if let Some(started) = entry.started {
            hand.learn(started.elapsed());
        }
        // Half a window is still under way: the next refill can carry more calls at once.
        if hand.flight.len() <= hand.window / 2 {
            self.proceed(state);
        } else {
            drop(state);
        }
        entry.item.call.done(payload, entry.panic);
    }

    fn panicked(&self, worker: &Worker, id: u64, mut payload: &[u8]) {
        let Ok(message) = String::decode(&mut payload) else {
            return;
        };
        let mut state = self.lock();
        let hand = state.workers.get_mut(&worker.number);
        if let Some(entry) = hand.and_then(|hand| hand.find(id)) {
            entry.panic = Some(message);
        }
    }

    /// Takes back what a worker has not started.
    fn returned(&'static self, worker: &Worker, ids: &[u64]) {
        let mut state = self.lock();
        let Some(hand) = state.workers.get_mut(&worker.number) else {
            return;
        };
        hand.recalling = false;
        let flight = std::mem::take(&mut hand.flight);
        let (back, stay): (Vec<_>, Vec<_>) = flight
            .into_iter()
            .partition(|entry| ids.contains(&entry.item.id));
        hand.flight = VecDeque::from(stay);
        let stopped = requeue(&mut state, back, 0);
        self.proceed(state);
        for (item, reason) in stopped {
            item.call.fail(reason);
        }
    }

    /// Writes the large call that waits for this worker.
    fn load(&'static self, worker: &Worker) {
        let mut state = self.lock();
        let Some(hand) = state.workers.get_mut(&worker.number) else {
            return;
        };
        let Some(entry) = hand.flight.front_mut() else {
            return;
        };
        let frame = std::mem::take(&mut entry.item.frame);
        drop(state);
        worker.send(&frame);
        let mut state = self.lock();
        if let Some(hand) = state.workers.get_mut(&worker.number) {
            hand.loading = false;
            if let Some(entry) = hand.flight.front_mut() {
                entry.item.frame = frame;
            }
        }
    }

    /// Takes an idle worker out of the pool; says whether it was idle.
    fn retires(&self, worker: &Worker) -> bool {
        let mut state = self.lock();
        let idle = state.workers.get(&worker.number).is_none_or(Hand::is_idle);
        if idle {
            state.workers.remove(&worker.number);
        }
        idle
    }

    /// The worker is dead, or as good as dead: settles what it had.
    fn bury(&'static self, worker: &Worker) {
        let hand = self.lock().workers.remove(&worker.number);
        worker.link.shut_down();
        let status = worker.reap();
        let Some(hand) = hand else { return };
        let (lost, back): (Vec<_>, Vec<_>) = hand
            .flight
            .into_iter()
            .partition(|entry| entry.started.is_some());
        let mut state = self.lock();
        let (back, doomed): (Vec<_>, Vec<_>) = back
            .into_iter()
            .partition(|entry| entry.item.deaths + 1 < DEATHS);
        let stopped = requeue(&mut state, back, 1);
        self.proceed(state);
        for entry in lost.into_iter().chain(doomed) {
            let error = entry.stop.clone().map(|reason| reason.exited(status));
            let error = error.unwrap_or_else(|| death(&entry, worker.pid, status));
            entry.item.call.fail(error);
        }
        for (item, reason) in stopped {
            item.call.fail(reason);
        }
    }
}

/// Puts calls back at their place in the queue; gives those that were stopped meanwhile.
fn requeue(state: &mut State, entries: Vec<InFlight>, deaths: u32) -> Vec<(Item, Error)> {
    let mut stopped = Vec::new();
    for entry in entries {
        let mut item = entry.item;
        item.deaths += deaths;
        match entry.stop {
            Some(reason) => stopped.push((item, reason)),
            None => state.enqueue(item),
        }
    }
    stopped
}

/// What is said of a call whose worker died.
fn death(entry: &InFlight, pid: u32, status: Option<ExitStatus>) -> Error {
    let name = entry.item.call.name();
    let how = status.map_or_else(|| "unknown exit status".into(), |status| status.to_string());
    let error = match (&entry.panic, entry.started) {
        (Some(report), _) => Error::new(
            ErrorKind::Panicked,
            format!("`{name}` {report}; its worker process {pid} ended with it ({how})"),
        ),
        (None, Some(started)) => Error::new(
            ErrorKind::WorkerLost,
            format!(
                "`{name}` lost its worker process {pid} after {:?} ({how})",
                started.elapsed()
            ),
        ),
        (None, None) => Error::new(
            ErrorKind::WorkerLost,
            format!("`{name}` was not started by any of {DEATHS} worker processes ({how})"),
        ),
    };
    error.exited(status)
}

fn refused(refusal: Refusal, limit: Duration) -> Error {
    match refusal {
        Refusal::Os(error) => Error::os("no worker process could be started", error),
        Refusal::Died(status) => Error::new(
            ErrorKind::WorkerLost,
            format!(
                "a worker process ended before it was ready ({status}): does `main` call \
                 `unsync::init()` first?"
            ),
        )
        .exited(Some(status)),
        Refusal::Silent => Error::new(
            ErrorKind::WorkerLost,
            format!(
                "a worker process was not ready within {limit:?}: does `main` call \
                 `unsync::init()` first?"
            ),
        ),
    }
}

/// Lets an idle worker leave by itself, so that it can flush what it printed.
fn dismiss(worker: &Worker, source: &mut Reader<'_>) -> io::Result<()> {
    worker.link.shut_down_writing();
    worker.link.set_read_timeout(Some(FAREWELL))?;
    let mut rest = [0; 64];
    while source.read(&mut rest)? > 0 {}
    Ok(())
}

/// How a worker is started.
fn command() -> io::Result<Command> {
    let mut command = link::command()?;
    match setup() {
        Some(Setup::Test(name)) => {
            let quiet = [
                "--exact",
                "--include-ignored",
                "--nocapture",
                "--test-threads=1",
                "-q",
            ];
            command
                .arg(name)
                .args(quiet)
                .arg(TEST_ARGUMENT)
                .stdout(Stdio::piped());
        }
        Some(Setup::Main) | None => {
            command.arg(ARGUMENT);
        }
    }
    Ok(command)
}

/// Passes on what a test's worker prints, without what the harness prints before it. Elsewhere the
/// standard output of a worker is that of the program.
fn forward(child: &mut Child) {
    let Some(mut output) = child.stdout.take() else {
        return;
    };
    let mut copy = move || -> io::Result<()> {
        let (mut seen, mut byte) = (Vec::new(), [0]);
        while !seen.ends_with(TEST_MARK.as_bytes()) {
            output.read_exact(&mut byte)?;
            seen.extend_from_slice(&byte);
        }
        let mut buffer = [0; 4096];
        loop {
            let read = output.read(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            io::stdout().write_all(&buffer[..read])?;
        }
    };
    // Without the thread the pipe is closed, and printing fails in the worker: no reason to fail here.
    let _ = thread::Builder::new()
        .name("unsync-stdout".into())
        .spawn(move || copy());
}
