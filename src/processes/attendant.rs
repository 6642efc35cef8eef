//! Attendants: the one thread that each worker costs. It starts the process, reads its link, and buries
//! it.
//!
//! A thread for each, because std can wait neither for many children nor for many links at once; and
//! the end of the link is the event that tells of a death, because `Child` can be waited for and killed
//! by one thread only at a time.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::iter::{self, Peekable};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use super::buffers;
use super::frame::{self, Frame, FrameReader, Kind};
use super::handshake::{SpawnError, Starting, WorkerConfig};
use super::pool::{DEATHS, FAILURES, Hand, InFlight, Item, POOL, Pursuit, Remote, State};
use super::procfs;
use super::transport::{self, Link, Rx, Tx};
use super::wire::Wire;
use super::worker::{ARGUMENT, PanicReport, Setup, TEST_ARGUMENT, TEST_MARK, setup};
use crate::config::{Settings, new_deep_thread, new_thread, settings, stack_size};
use crate::error::{Error, ErrorKind, discard, lock, wall};
use crate::role::{Role, set_role};
use crate::unfuture::Reason;

/// A worker process, and what is needed to write to it and to end it.
pub(super) struct Worker {
    number: u64,
    tx: Tx,
    /// Held while frames are written, so that they stay whole.
    writing: Mutex<()>,
    child: Mutex<Child>,
    pid: u32,
    /// Whether a signal had stopped it when it was killed.
    stopped: AtomicBool,
    /// Set when it was reaped to see whether it had ended. Its number may be another's since.
    reaped: AtomicBool,
    /// What it said on standard error, if that passes through here.
    words: Option<Arc<LastWords>>,
}

/// A worker that owes an answer for this long is frozen. Attendants look that often, because nothing in
/// std calls a thread from a read that blocks.
const FROZEN: Duration = Duration::from_secs(1);
/// The shortest time that a read may block; zero would mean for ever.
const MOMENT: Duration = Duration::from_millis(1);
/// What frames other than those of values may hold, whatever the limit of those.
const SMALL_TALK: usize = 1 << 20;
/// How long an idle worker may take to leave.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long the rest of what a worker printed may take to be passed on. A process that the worker started
/// may hold its streams open for ever.
const PRINTED: Duration = Duration::from_secs(1);

impl Worker {
    /// Writes frames. An error needs no care here: the attendant finds the end of the link.
    pub(super) fn send(&self, frames: &[u8]) {
        let _writing = lock(&self.writing);
        let _ = self.tx.write_all(frames, None);
    }

    /// Writes a frame without a payload.
    pub(super) fn say(&self, kind: Kind, call: u64) {
        let mut frame = Vec::new();
        frame::plain(&mut frame, kind, call);
        self.send(&frame);
    }

    /// Writes a large frame; fails if the worker takes nothing of it for as long as one that is frozen.
    fn load(&self, frame: &[u8], rx: &mut Rx) -> io::Result<()> {
        let _writing = lock(&self.writing);
        self.tx.set_write_timeout(Some(FROZEN))?;
        self.tx.write_all(frame, Some(rx))?;
        self.tx.set_write_timeout(None)
    }

    pub(super) fn kill(&self) {
        if procfs::is_stopped(self.pid) {
            self.stopped.store(true, Ordering::Relaxed);
        }
        // It fails only if the process was reaped before.
        let _ = lock(&self.child).kill();
        // If that was a wrapper only, the worker behind it leaves when it hears of the end.
        self.tx.close();
    }

    /// Whether the process has ended, whoever else may hold its link.
    fn has_ended(&self) -> bool {
        procfs::has_ended(self.pid).unwrap_or_else(|| {
            let reaped = matches!(lock(&self.child).try_wait(), Ok(Some(_)));
            self.reaped.store(reaped, Ordering::Relaxed);
            reaped
        })
    }

    /// What it says on standard error from now on is said by another call.
    pub(super) fn forget_words(&self) {
        if let Some(words) = &self.words {
            words.forget();
        }
    }

    /// Has an idle worker leave by itself, so that it can flush what it printed.
    pub(super) fn dismiss(&self) {
        self.tx.close();
    }

    /// Makes sure that the process has ended, and reaps it. A process whose link has ended is past
    /// the point where a kill could change how it ended; one that lives on without its link is of no
    /// use.
    fn reap(&self) -> Option<ExitStatus> {
        let asked = settings().is_ok_and(|settings| settings.kill_children);
        // The number of its group is taken until the process is reaped.
        if asked && !self.reaped.load(Ordering::Relaxed) {
            transport::kill_children(self.pid);
        }
        self.kill();
        lock(&self.child).wait().ok()
    }
}

/// Starts the attendant of a worker that is booked.
pub(super) fn start(number: u64) {
    // It decodes results: they may be as large as what a call has the stack for.
    let thread = new_deep_thread(format_args!("cpu-{number}"));
    if let Err(error) = thread.spawn(move || attend(number)) {
        let text = "no thread could be started for a worker process";
        give_up(&Error::os(text, error), u32::MAX, 1);
    }
}

/// The life of an attendant.
fn attend(number: u64) {
    set_role(Role::Reader);
    let unneeded = || {
        let mut state = POOL.lock();
        state.starting -= 1;
        POOL.proceed(state);
    };
    let (before, launched) = loop {
        let Some(before) = POOL.await_turn() else {
            return unneeded();
        };
        let (error, tries) = match launch() {
            Ok(launched) => break (before, launched),
            Err(Failure::Unwanted) => return unneeded(),
            Err(Failure::Refused { error, tries }) => (error, tries),
        };
        if !give_up(&error, before, tries) {
            return;
        }
    };
    let (child, Link { rx, tx, eager }, words, copied) = launched;
    let pid = child.id();
    let (writing, child) = (Mutex::new(()), Mutex::new(child));
    let worker = Arc::new(Worker {
        number,
        tx,
        writing,
        child,
        pid,
        stopped: AtomicBool::new(false),
        reaped: AtomicBool::new(false),
        words,
    });
    let mut state = POOL.lock();
    state.starting -= 1;
    if state.closed {
        worker.dismiss();
    }
    state
        .workers
        .insert(number, Hand::new(Arc::clone(&worker), eager));
    POOL.proceed(state);
    // Whatever happens in there, the worker is buried.
    let end = wall(|| read(&worker, rx)).unwrap_or_else(|payload| {
        discard(payload);
        Err(io::Error::other("the attendant panicked").into())
    });
    buffers::free();
    bury(&worker, before, end.err(), &copied);
}

// -------------------------------------------------------------------------------------- the start

type Launched = (Child, Link, Option<Arc<LastWords>>, Copied);

/// Why there is no worker.
enum Failure {
    /// Nobody wants it any more.
    Unwanted,
    /// It could not be started, and so many tries are enough to be sure of it.
    Refused { error: Error, tries: u32 },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Refused { error, tries: 1 }
    }
}

/// Starts a process.
fn launch() -> Result<Launched, Failure> {
    let settings = settings()?;
    let config = WorkerConfig {
        frame_bytes_max: settings.frame_bytes_max as u64,
        stack_size: stack_size() as u64,
        spin: settings.spin,
    };
    let command = wall(|| command(settings))
        .map_err(|payload| Error::panicked("the hook `worker_command`", payload))?;
    let (mut words, mut program) = (None, String::new());
    let heard = Arc::new(AtomicBool::new(false));
    let (copying, copied) = mpsc::channel();
    let launched = command.map_err(SpawnError::Os).and_then(|command| {
        program = describe(&command);
        let mut starting = Starting::spawn(command)?;
        let ready = forward_stdout(&mut starting.child, copying.clone(), Arc::clone(&heard));
        words = LastWords::listen(&mut starting.child, copying);
        let is_needed = || !POOL.lock().closed;
        starting.connect(config, settings.start_timeout, &ready, is_needed)
    });
    let refusal = match launched {
        Ok((child, link)) => return Ok((child, link, words, copied)),
        Err(SpawnError::Unneeded) => return Err(Failure::Unwanted),
        Err(refusal) => refusal,
    };
    let tries = match &refusal {
        SpawnError::Os(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => 1,
            _ => FAILURES,
        },
        SpawnError::Died(_) => DEATHS,
        SpawnError::TimedOut | SpawnError::Unneeded => 1,
    };
    let (words, heard) = (words.as_deref(), heard.load(Ordering::Relaxed));
    let error = refused(refusal, settings, &program, words, heard);
    Err(Failure::Refused { error, tries })
}

/// How a worker is started.
fn command(settings: &Settings) -> io::Result<Command> {
    let mut command = match &settings.worker_command {
        Some(make) => make(&transport::executable()?),
        None => transport::command()?,
    };
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
    if !io::IsTerminal::is_terminal(&io::stderr()) {
        command.stderr(Stdio::piped());
    }
    Ok(command)
}

/// A worker could not be started; says whether to try again, when it is time. The calls wait for those that
/// live; if there are none, they fail after so many tries.
fn give_up(error: &Error, before: u32, tries: u32) -> bool {
    let mut state = POOL.lock();
    let counts = state.fail(before);
    // There is no event for "the system can take one more process again". Who shall not try again at all
    // may be no attendant.
    let again = tries > 1 && !(counts && state.is_hopeless(tries));
    if again && state.starting == 1 && !state.queue.is_empty() {
        return true;
    }
    state.starting -= 1;
    let deserted = state.workers.is_empty() && state.starting == 0;
    let stranded = if deserted {
        state.queue.take()
    } else {
        VecDeque::new()
    };
    let calls = stranded.len();
    state.settling += calls;
    POOL.proceed(state);
    for item in stranded {
        item.call
            .fail(error.about(&format!("`{}` cannot run", item.call.name())));
    }
    if calls > 0 {
        POOL.settled(calls);
    }
    false
}

/// What a command starts, and where, as the end of a sentence.
fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program()).display();
    match command.get_current_dir() {
        Some(directory) => format!(" as `{program}` in `{}`", directory.display()),
        None => format!(" as `{program}`"),
    }
}

fn refused(
    refusal: SpawnError,
    settings: &Settings,
    program: &str,
    words: Option<&LastWords>,
    heard: bool,
) -> Error {
    let (what, status) = match refusal {
        SpawnError::Os(error) => {
            let attempt = format!("no worker process could be started{program}");
            return Error::os(attempt, error);
        }
        SpawnError::Died(status) => {
            let what = format!("a worker process ended before it was ready ({status})");
            (what, Some(status))
        }
        SpawnError::TimedOut | SpawnError::Unneeded => {
            let limit = settings.start_timeout;
            (
                format!("a worker process was not ready within {limit:?}"),
                None,
            )
        }
    };
    let words = words.map_or_else(String::new, LastWords::quote);
    // Its own account of what is wrong is the best.
    let heard = heard || words.contains("unsync: ");
    let hint = if heard {
        String::new()
    } else {
        hint(status, &words)
    };
    Error::new(ErrorKind::WorkerLost, format!("{hint}{what}{words}")).exited(status)
}

/// What is most likely wrong with a process of which nothing of ours was heard, as the beginning of a
/// sentence.
fn hint(status: Option<ExitStatus>, words: &str) -> String {
    if let Some((executable, program)) = procfs::loader() {
        let (executable, program) = (executable.display(), program.display());
        return format!(
            "the executable of this process is `{executable}`, which has loaded `{program}` and \
             cannot become a worker process: "
        );
    }
    let question = match (status.and_then(|status| status.code()), setup()) {
        // So ends a shell that could not start the program.
        (Some(126 | 127), _) => "",
        (_, Some(Setup::Test(_))) => {
            "can this test binary run the test of `unsync::test_worker!()`? "
        }
        // So ends a test harness that was given our argument.
        (Some(101), _) if words.contains("Unrecognized option: 'unsync-worker") => {
            "is there a `unsync::test_worker!()` in this test binary? "
        }
        _ => "does `main` call `unsync::init()` first? ",
    };
    question.into()
}

// ------------------------------------------------------------------------------------- the reading

/// Why nothing more is to be heard of a worker that did not just leave.
enum Cut {
    /// Its link failed.
    Link(io::Error),
    /// It said that it got no thread to run calls.
    Refused(io::Error),
}

impl From<io::Error> for Cut {
    fn from(error: io::Error) -> Cut {
        Cut::Link(error)
    }
}

impl Cut {
    /// Whether calls may have started without a word of it: frames were lost, or not read.
    fn hides_starts(&self) -> bool {
        match self {
            Cut::Link(cause) => transport::loses_frames(cause) || !transport::is_end(cause),
            Cut::Refused(_) => false,
        }
    }
}

/// Reads the link of a worker until it ends, or until the worker is to leave.
fn read(worker: &Arc<Worker>, mut source: Rx) -> Result<(), Cut> {
    let settings = settings().map_err(io::Error::other)?;
    let limit = settings
        .frame_bytes_max
        .max(SMALL_TALK)
        .saturating_add(frame::HEADER);
    let mut reader = FrameReader::new(limit);
    // When a call that was asked to end by itself has had its time.
    let mut grace: Option<(Instant, u64)> = None;
    let shortest = settings.keep_alive.clamp(MOMENT, FROZEN);
    let (mut silence, mut pulse) = (Duration::ZERO, shortest);
    // A process that the worker made may hold the link, and hide its end.
    let mut ended = false;
    let mut reported = false;
    loop {
        let left = |(end, _): (Instant, u64)| end.saturating_duration_since(Instant::now());
        if let Some((_, id)) = grace.take_if(|grace| left(*grace).is_zero()) {
            let mut state = POOL.lock();
            let hand = state.workers.get_mut(&worker.number);
            let pursuit = hand.map_or(Pursuit::Wait, |hand| hand.condemn(id));
            drop(state);
            pursuit.execute(worker);
        }
        let limit = grace.map_or(pulse, |grace| left(grace).clamp(MOMENT, pulse));
        source.set_timeout(Some(limit));
        let heard = reader.fill(&mut source);
        if heard.is_ok() {
            (silence, pulse, reported) = (Duration::ZERO, shortest, false);
        }
        match heard {
            Ok(false) => return Ok(()),
            Ok(true) => {}
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    if ended {
                        // All that it had said is read.
                        return Ok(());
                    }
                    silence += limit;
                    ended = silence >= FROZEN && worker.has_ended();
                    if settings.debug && silence >= FROZEN && !reported {
                        reported = report_stopped(worker);
                    }
                    if rest(worker, silence, settings) {
                        return farewell(worker, &mut source);
                    }
                    // It is at a long call, or rests for longer than this.
                    pulse = (pulse * 2).min(FROZEN);
                }
                _ => return Err(error.into()),
            },
        }
        let mut frames = iter::from_fn(|| reader.pop()).peekable();
        if advance(worker, &mut frames) {
            return farewell(worker, &mut source);
        }
        let Some(frame) = frames.next() else { continue };
        let (id, payload) = (frame.call, frame.payload);
        match frame.kind {
            Kind::Progress => {
                let call = POOL
                    .lock()
                    .workers
                    .get_mut(&worker.number)
                    .and_then(|hand| Some(Arc::clone(&hand.find(id)?.item.call)));
                if let Some(call) = call {
                    call.progress(&payload);
                }
            }
            Kind::Panic => panicked(worker, id, &payload),
            Kind::Returned => {
                let ids = Vec::<u64>::decode(&mut &*payload).map_err(io::Error::other)?;
                if returned(worker, &ids) {
                    return farewell(worker, &mut source);
                }
            }
            // That of a call that is over says nothing of the next.
            Kind::Cancelling if !is_in_flight(worker, id) => {}
            Kind::Cancelling => {
                let end = Instant::now().checked_add(settings.cancel_grace);
                grace = end.map(|end| (end, id));
            }
            Kind::Pong => load(worker, &mut source),
            Kind::Refused => {
                let refusal = <(Option<i32>, String)>::decode(&mut &payload[..]);
                let (code, text) = refusal.map_err(io::Error::other)?;
                let error = code.map(io::Error::from_raw_os_error);
                return Err(Cut::Refused(
                    error.unwrap_or_else(|| io::Error::other(text)),
                ));
            }
            _ => return Err(io::Error::from(io::ErrorKind::InvalidData).into()),
        }
    }
}

/// Reports a worker that a signal has stopped while it runs a call; says whether that is so.
fn report_stopped(worker: &Worker) -> bool {
    if !procfs::is_stopped(worker.pid) {
        return false;
    }
    let state = POOL.lock();
    let hand = state.workers.get(&worker.number);
    let running = hand.and_then(|hand| hand.flight.front().filter(|entry| entry.started.is_some()));
    let Some(call) = running.map(|entry| Arc::clone(&entry.item.call)) else {
        return false;
    };
    drop(state);
    transport::log(&format!(
        "worker process {}, which runs `{}` (started at {}), was stopped by a signal; the \
         system does that to a worker that uses the terminal",
        worker.pid,
        call.name(),
        call.origin()
    ));
    true
}

fn is_in_flight(worker: &Worker, id: u64) -> bool {
    let mut state = POOL.lock();
    state
        .workers
        .get_mut(&worker.number)
        .is_some_and(|hand| hand.find(id).is_some())
}

/// What the worker has begun and ended, as far as it is here, in one go; says whether the worker is to
/// leave.
fn advance<'a>(worker: &Worker, frames: &mut Peekable<impl Iterator<Item = Frame<'a>>>) -> bool {
    let is_start_or_done = |frame: &Frame<'_>| matches!(frame.kind, Kind::Start | Kind::Done);
    let batch: Vec<_> = iter::from_fn(|| frames.next_if(is_start_or_done)).collect();
    if batch.is_empty() {
        return false;
    }
    let bloated = batch.iter().any(|frame| frame.kind == Kind::Done) && is_bloated(worker);
    let (mut begun, mut over, now) = (Vec::new(), Vec::new(), Instant::now());
    let mut state = POOL.lock();
    let Some(hand) = state.workers.get_mut(&worker.number) else {
        return false;
    };
    for frame in batch {
        match frame.kind {
            Kind::Start => begun.extend(hand.begin(frame.call, now)),
            _ => {
                let entry = hand.finish(frame.call, now);
                over.extend(entry.map(|entry| (entry, frame.payload)));
            }
        }
    }
    hand.spent |= bloated;
    hand.unheard = over
        .iter()
        .any(|(_, payload)| payload.len() > buffers::LARGE);
    let unheard = hand.unheard;
    let leaves = !over.is_empty() && hand.is_over();
    let first = !begun.is_empty() && !std::mem::replace(&mut hand.serves, true);
    let pursuit = hand.pursue();
    // Half a window is still under way, so that a refill carries many calls at once.
    let refill = !over.is_empty() && hand.flight.len() <= hand.window / 2;
    if leaves {
        state.remove(worker.number);
    }
    let grows = first && POOL.succeed(&mut state);
    state.settling += over.len();
    if refill || grows {
        POOL.proceed(state);
    } else {
        drop(state);
    }
    pursuit.execute(worker);
    for start in begun {
        start.tell(worker);
    }
    let settled = over.len();
    for (entry, payload) in over {
        match entry.stop {
            None => entry.item.call.done(&payload, entry.panics),
            // It ended by itself when it was asked to.
            Some((reason, _)) => {
                let took = entry
                    .started
                    .map_or(Duration::ZERO, |started| now - started);
                let error = stopped_after(&entry.item, reason, took, false);
                entry.item.call.fail(error);
            }
        }
        if let Cow::Owned(mut large) = payload {
            buffers::recycle(&mut large);
        }
    }
    if unheard {
        let mut state = POOL.lock();
        if let Some(hand) = state.workers.get_mut(&worker.number) {
            hand.unheard = false;
        }
        POOL.proceed(state);
    }
    if settled > 0 {
        POOL.settled(settled);
    }
    leaves
}

/// A call that has begun, and is told so.
pub(super) struct Begun {
    pub(super) id: u64,
    pub(super) call: Arc<dyn Remote>,
    /// Of no more use.
    pub(super) frame: Vec<u8>,
    /// It was stopped, and may end by itself.
    pub(super) in_grace: bool,
}

impl Begun {
    fn tell(mut self, worker: &Worker) {
        buffers::recycle(&mut self.frame);
        self.call.begin();
        if self.in_grace {
            worker.say(Kind::Cancel, self.id);
        }
    }
}

fn panicked(worker: &Worker, id: u64, mut payload: &[u8]) {
    let Ok(report) = PanicReport::decode(&mut payload) else {
        return;
    };
    let mut state = POOL.lock();
    let hand = state.workers.get_mut(&worker.number);
    if let Some(entry) = hand.and_then(|hand| hand.find(id)) {
        entry.panics.truncate(1);
        entry.panics.push(report);
    }
}

/// Whether the worker holds more memory than it may.
fn is_bloated(worker: &Worker) -> bool {
    let limit = settings()
        .ok()
        .and_then(|settings| settings.memory_per_worker);
    limit.is_some_and(|limit| procfs::resident_bytes(worker.pid).is_some_and(|bytes| bytes > limit))
}

/// Takes back what a worker has not started; says whether the worker is to leave.
fn returned(worker: &Worker, ids: &[u64]) -> bool {
    let mut state = POOL.lock();
    let Some(hand) = state.workers.get_mut(&worker.number) else {
        return false;
    };
    let back = hand.take_back(ids);
    let leaves = hand.is_over();
    let pursuit = hand.pursue();
    if leaves {
        state.remove(worker.number);
    }
    let stopped = requeue(&mut state, back);
    state.settling += stopped.len();
    POOL.proceed(state);
    pursuit.execute(worker);
    stop_all(stopped);
    leaves
}

/// Writes the large call that waits for this worker. The worker does nothing but read meanwhile.
fn load(worker: &Worker, rx: &mut Rx) {
    let mut state = POOL.lock();
    let Some(hand) = state.workers.get_mut(&worker.number) else {
        return;
    };
    let Some(entry) = hand.flight.front_mut() else {
        return;
    };
    let frame = std::mem::take(&mut entry.item.frame);
    drop(state);
    let loaded = worker.load(&frame, rx);
    let mut state = POOL.lock();
    if let Some(hand) = state.workers.get_mut(&worker.number) {
        hand.loading = false;
        hand.spent |= loaded.is_err();
        if let Some(entry) = hand.flight.front_mut() {
            entry.item.frame = frame;
            entry.sent = Instant::now();
        }
    }
    drop(state);
    if loaded.is_err() {
        worker.kill();
    }
}

/// Nothing was heard of the worker for some time: says whether it is to leave. A worker that should
/// have answered and has not is frozen, and killed.
fn rest(worker: &Worker, silence: Duration, settings: &Settings) -> bool {
    let mut state = POOL.lock();
    let closed = state.closed;
    let Some(hand) = state.workers.get_mut(&worker.number) else {
        return true;
    };
    let next = hand.flight.front();
    // A call that has not started can be had by another worker.
    let unstarted = next.is_some_and(|next| next.started.is_none() && next.sent.elapsed() > FROZEN);
    let deaf = hand.recalling.is_some_and(|since| since.elapsed() > FROZEN);
    // Its end would take along an innocent call that runs; it is worth that where another waits for it.
    let harmless = hand.flight.iter().all(|entry| entry.started.is_none())
        || hand.flight.iter().any(|entry| entry.stop.is_some());
    let idle = hand.flight.is_empty() && hand.recalling.is_none() && !hand.loading;
    // One whose worker does not even say that it shall end.
    let overdue = hand.flight.iter().find(|entry| {
        let limit = settings.cancel_grace.saturating_add(FROZEN);
        entry.stop.is_some_and(|(_, since)| since.elapsed() > limit)
    });
    let overdue = overdue.map(|entry| entry.item.id);
    let pursuit = match overdue {
        _ if unstarted || (deaf && harmless) || (idle && closed) => hand.give_up(),
        Some(id) => hand.condemn(id),
        None => Pursuit::Wait,
    };
    if !matches!(pursuit, Pursuit::Wait) {
        drop(state);
        pursuit.execute(worker);
        return false;
    }
    let leaves = idle && silence >= settings.keep_alive;
    if leaves {
        state.remove(worker.number);
    }
    if !state.queue.is_empty() {
        // A worker that could not be started may be had by now.
        POOL.proceed(state);
    }
    leaves
}

/// Waits until a worker that was taken out has left.
fn farewell(worker: &Worker, source: &mut Rx) -> Result<(), Cut> {
    worker.dismiss();
    source.set_timeout(Some(FAREWELL));
    let mut remains = [0; 64];
    while source.read(&mut remains)? > 0 {}
    Ok(())
}

// -------------------------------------------------------------------------------------- the burial

/// The worker is dead, or as good as dead: settles what it had.
fn bury(worker: &Worker, before: u32, cut: Option<Cut>, copied: &Copied) {
    let certain = !cut.as_ref().is_some_and(Cut::hides_starts);
    let (cause, refusal) = match cut {
        Some(Cut::Link(error)) => (Some(error), None),
        Some(Cut::Refused(error)) => {
            let text = "no thread could be started in a worker process";
            (None, Some(Error::os(text, error)))
        }
        None => (None, None),
    };
    let mut state = POOL.lock();
    let Some(hand) = state.remove(worker.number) else {
        // It was idle and has left.
        drop(state);
        worker.tx.close_both();
        worker.reap();
        return rest_in_peace(copied);
    };
    // What has not started is in the queue again before anything else happens, so that it can be
    // stopped there. It cannot start any more: its start could not be told.
    let (mut lost, back): (Vec<_>, Vec<_>) = hand
        .flight
        .into_iter()
        .partition(|entry| entry.started.is_some() || !certain);
    // Only a worker that died for no reason that a call would explain is a sign that the next one may do
    // the same: not one that was killed because of a call, and not one that a call took along.
    let barren = lost.is_empty() && back.iter().any(|entry| entry.stop.is_none());
    let counts = (barren || refusal.is_some()) && state.fail(before);
    // One that got no thread has not even seen its calls.
    let (doomed, back) = if barren && refusal.is_none() {
        age(back)
    } else {
        (Vec::new(), back)
    };
    lost.extend(doomed);
    let stopped = requeue(&mut state, back);
    // Workers die one after the other before they start anything: so would the next ones.
    let queue = if counts && state.is_hopeless(FAILURES) {
        state.queue.take()
    } else {
        VecDeque::new()
    };
    state.settling += lost.len() + queue.len() + stopped.len();
    POOL.proceed(state);
    stop_all(stopped);
    worker.tx.close_both();
    let status = worker.reap();
    let end = End {
        worker,
        status,
        cause,
    };
    let settled = lost.len() + queue.len();
    for entry in lost {
        let error = end.explain(&entry);
        entry.item.call.fail(error);
    }
    for item in queue {
        let name = item.call.name();
        item.call.fail(match &refusal {
            Some(error) => error.about(&format!("`{name}` cannot run")),
            None => end.lost(format!(
                "`{name}` was not started: one worker process after the other ended before it \
                 started anything, the last was"
            )),
        });
    }
    POOL.settled(settled);
    rest_in_peace(copied);
}

/// The worker is reaped and its calls are settled. What it printed is passed on to the end before it
/// counts as gone: the program may end next.
fn rest_in_peace(copied: &Copied) {
    let _ = copied.recv_timeout(PRINTED);
    let mut state = POOL.lock();
    state.burying -= 1;
    POOL.proceed(state);
}

/// One more worker died with these before they had started. Gives those first that have seen enough of
/// it.
fn age(entries: Vec<InFlight>) -> (Vec<InFlight>, Vec<InFlight>) {
    let older = entries.into_iter().map(|mut entry| {
        entry.item.deaths += 1;
        entry
    });
    older.partition(|entry| entry.item.deaths >= DEATHS && entry.stop.is_none())
}

/// How a worker ended.
struct End<'a> {
    worker: &'a Worker,
    status: Option<ExitStatus>,
    cause: Option<io::Error>,
}

impl End<'_> {
    /// What is said of a call that was in flight.
    fn explain(&self, entry: &InFlight) -> Error {
        let name = entry.item.call.name();
        if let Some((reason, _)) = entry.stop {
            let error = match entry.started {
                Some(started) => {
                    let by_signal = self.worker.stopped.load(Ordering::Relaxed);
                    stopped_after(&entry.item, reason, started.elapsed(), by_signal)
                }
                None => reason.error(&format!("`{name}`")),
            };
            return error.exited(self.status);
        }
        let Some(started) = entry.started else {
            return self.lost(match entry.item.deaths {
                // It may have started, and nobody will ever know.
                0 => format!("`{name}` lost its worker process"),
                _ => format!(
                    "`{name}` was not started by any of {DEATHS} worker processes, the last was"
                ),
            });
        };
        let (pid, how) = (self.worker.pid, self.how());
        let error = match entry.panics.first().filter(|_| self.may_be_panic()) {
            Some(report) => {
                let suffix = format!("; its worker process {pid} ended with it ({how})");
                report.error(name, None, &suffix)
            }
            None => Error::new(
                ErrorKind::WorkerLost,
                format!(
                    "`{name}` lost its worker process {pid} after {:.1?}: {how}",
                    started.elapsed()
                ),
            ),
        };
        error.exited(self.status)
    }

    /// Whether a panic that was told may be what ended it: one that cannot unwind aborts. The function may
    /// have caught it, and have ended in any other way later.
    fn may_be_panic(&self) -> bool {
        self.status.is_some_and(transport::is_abort) && self.abort_without_panic().is_none()
    }

    /// What made std abort without a panic, if it was heard to say so.
    fn abort_without_panic(&self) -> Option<&'static str> {
        const SAID: [(&str, &str); 2] = [
            ("has overflowed its stack", "stack overflow"),
            ("memory allocation of ", "out of memory"),
        ];
        let words = self.worker.words.as_ref()?.get();
        let said = SAID.into_iter().find(|(text, _)| words.contains(text));
        said.map(|(_, why)| why)
    }

    /// The error of a call that cannot have a value, from what is said before the number of the worker.
    fn lost(&self, what: String) -> Error {
        let text = format!("{what} {}: {}", self.worker.pid, self.how());
        Error::new(ErrorKind::WorkerLost, text).exited(self.status)
    }

    fn how(&self) -> String {
        /// What a system that runs out of memory ends a worker with; others may do it too.
        const KILLED: &str = "SIGKILL";
        let mut how = match self.status {
            Some(status) if status.success() => format!("{status}, without a result"),
            Some(status) => status.to_string(),
            None => "unknown exit status".into(),
        };
        if let Some(cause) = self
            .cause
            .as_ref()
            .filter(|cause| !transport::is_end(cause))
        {
            how = format!("{how}; {cause}");
        } else if how.contains(KILLED) {
            how.push_str(", perhaps for want of memory");
        }
        let words = self.worker.words.as_ref();
        let words = words.map_or_else(String::new, |words| words.quote());
        match self.abort_without_panic() {
            Some(why) => format!("{why}, {how}{words}"),
            None => format!("{how}{words}"),
        }
    }
}

fn stopped_after(item: &Item, reason: Reason, took: Duration, by_signal: bool) -> Error {
    let place = match by_signal {
        true => " in a worker process that a signal had stopped",
        false => "",
    };
    let name = item.call.name();
    reason.error(&format!("`{name}`, which ran for {took:.1?}{place},"))
}

/// Puts calls back at their place in the queue; gives those that were stopped meanwhile.
fn requeue(state: &mut State, entries: Vec<InFlight>) -> Vec<(Item, Reason)> {
    let mut stopped = Vec::new();
    for entry in entries {
        match entry.stop {
            Some((reason, _)) => stopped.push((entry.item, reason)),
            None => state.queue.push(entry.item),
        }
    }
    stopped
}

/// Resolves calls that are counted as settling.
fn stop_all(stopped: Vec<(Item, Reason)>) {
    let count = stopped.len();
    for (item, reason) in stopped {
        item.stop(reason);
    }
    POOL.settled(count);
}

// ------------------------------------------------------------------------------ standard streams

/// What a worker wrote to standard error since its call began, the middle left out.
///
/// Where standard error is a terminal, it is the worker's own. Elsewhere it passes through here on its
/// way, so that an error can quote it: nothing is taken away from the user.
struct LastWords {
    excerpt: Mutex<Excerpt>,
    ended: Condvar,
}

#[derive(Default)]
struct Excerpt {
    /// Whole lines from the beginning, which tell the cause.
    first: String,
    /// The newest lines, once there is no more room for first ones.
    last: String,
    /// Whether there were lines between the two.
    omitted: bool,
    /// What there is of the line that is under way.
    line: Vec<u8>,
    /// The line before was one of a backtrace.
    in_backtrace: bool,
    ended: bool,
}

/// How much is quoted of the first lines, and of the last.
const WORDS: usize = 1024;
/// How much is quoted of one line.
const LINE: usize = 512;
/// How long the rest of it may take to arrive after the end of the worker. A process that the worker
/// started may hold it open for ever.
const WORDS_WAIT: Duration = Duration::from_millis(500);

impl LastWords {
    fn listen(child: &mut Child, copying: Copying) -> Option<Arc<LastWords>> {
        let mut stderr = child.stderr.take()?;
        let words = Arc::new(LastWords {
            excerpt: Mutex::default(),
            ended: Condvar::new(),
        });
        let listener = Arc::clone(&words);
        let listen = move || {
            let _copying = copying;
            copy(&mut stderr, |bytes| {
                lock(&listener.excerpt).add(bytes);
                // A closed standard error is no reason to stop listening.
                let _ = transport::stderr().and_then(|mut stderr| stderr.write_all(bytes));
            });
            lock(&listener.excerpt).ended = true;
            listener.ended.notify_all();
        };
        // Without the thread the pipe is closed; then the worker's words are lost, and it lives on.
        new_thread("stderr").spawn(listen).ok()?;
        Some(words)
    }

    fn forget(&self) {
        let mut excerpt = lock(&self.excerpt);
        *excerpt = Excerpt {
            ended: excerpt.ended,
            ..Excerpt::default()
        };
    }

    /// What there is when the worker has ended.
    fn get(&self) -> String {
        let excerpt = lock(&self.excerpt);
        let waited = self
            .ended
            .wait_timeout_while(excerpt, WORDS_WAIT, |excerpt| !excerpt.ended);
        let mut excerpt = waited.unwrap_or_else(PoisonError::into_inner).0;
        // Whoever asks next has no reason to wait again.
        excerpt.ended = true;
        excerpt.text()
    }

    fn quote(&self) -> String {
        match self.get() {
            words if words.is_empty() => words,
            words => format!("; its last words: {words}"),
        }
    }
}

impl Excerpt {
    fn add(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE - self.line.len();
            self.line.extend(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let cut = if self.line.len() == LINE { "..." } else { "" };
        let line = String::from_utf8_lossy(&self.line);
        let line = format!("{}{cut}\n", line.trim_end());
        self.line.clear();
        self.in_backtrace = is_backtrace(&line, self.in_backtrace);
        if self.in_backtrace {
            return;
        }
        if self.last.is_empty() && self.first.len() + line.len() <= WORDS {
            self.first.push_str(&line);
            return;
        }
        self.last.push_str(&line);
        while self.last.len() > WORDS {
            let end = self.last.find('\n').map_or(self.last.len(), |at| at + 1);
            self.last.drain(..end);
            self.omitted = true;
        }
    }

    fn text(&mut self) -> String {
        if !self.line.is_empty() {
            self.end_line();
        }
        let between = if self.omitted { "[...]\n" } else { "" };
        let text = [&self.first, between, &self.last].concat();
        text.trim().to_owned()
    }
}

/// Whether this is a line of a backtrace as the standard library prints it, which would leave no room for
/// anything else. That of a call's panic is the source of the error anyway.
fn is_backtrace(line: &str, after_another: bool) -> bool {
    let number = |character: char| character.is_ascii_digit();
    let begins = line.trim().eq_ignore_ascii_case("stack backtrace:");
    let goes_on = line.starts_with(' ')
        || line.trim_start_matches(number).starts_with(": ")
        || line.starts_with("note: Some details are omitted");
    begins || (after_another && goes_on)
}

/// Held by whoever passes on what a worker prints, until it has come to its end.
type Copying = mpsc::Sender<Infallible>;
/// Ends when all that the worker printed has been passed on.
type Copied = mpsc::Receiver<Infallible>;

/// Passes on what a test's worker prints, without what the harness prints before it. Elsewhere the
/// standard output of a worker is that of the program.
///
/// Gives what ends when the harness has had its say: it ends the process if nobody listens to that.
/// Whether that is because the worker itself was `heard` is told apart.
fn forward_stdout(
    child: &mut Child,
    copying: Copying,
    heard: Arc<AtomicBool>,
) -> mpsc::Receiver<Infallible> {
    let (prelude, over) = mpsc::channel();
    let Some(mut stdout) = child.stdout.take() else {
        return over;
    };
    let forward = move || {
        let _copying = copying;
        // The last bytes, as many as the mark has.
        let (mut seen, mut byte) = (VecDeque::from([0; TEST_MARK.len()]), [0]);
        while seen != TEST_MARK.as_bytes() {
            if stdout.read_exact(&mut byte).is_err() {
                return;
            }
            seen.pop_front();
            seen.extend(byte);
        }
        heard.store(true, Ordering::Relaxed);
        drop(prelude);
        copy(&mut stdout, |bytes| {
            let _ = transport::stdout().and_then(|mut stdout| stdout.write_all(bytes));
        });
    };
    // Without the thread the pipe is closed, and printing fails in the worker.
    let _ = new_thread("stdout").spawn(forward);
    over
}

/// Reads to the end.
fn copy(source: &mut impl Read, mut sink: impl FnMut(&[u8])) {
    let mut buffer = [0; 4096];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return,
            Ok(read) => sink(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
