//! The worker processes: each has a reader thread that starts the process, reads its link and reaps it. One
//! supervisor thread looks at the clock for all of them.
//!
//! A thread for each, because std can wait neither for many children nor for many links at once; and
//! the end of the link is the event that tells of an exit, because `Child` can be waited for and killed
//! by one thread only at a time. Readers block in their reads without a limit. What has to happen at a
//! certain time, the scheduler asks of the supervisor.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::io;
use std::iter::{self, Peekable};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::buffers;
use super::frame::{self, Frame, FrameReader, Kind};
use super::handshake::{self, SpawnError, WorkerConfig};
use super::procfs;
use super::relay::{self, Far};
use super::report::{self, ExitReport, Output, Printed};
use super::scheduler::{self, Exit, Heard, Message, SpawnFailure};
use super::transport::{self, Link, Rx, Tx};
use super::wire::Wire;
use super::worker::{PanicReport, add_arguments};
use super::{CallHandle, Pool, Request, apply, pool, update};
use crate::config::{Host, Settings, settings, stack_size, start_deep_thread};
use crate::current::Current;
use crate::error::{Error, discard, lock, wall};
use crate::progress::Progress;

// ----------------------------------------------------------------------------------- the supervisor

/// Wakes the supervisor.
static EARLIER: Condvar = Condvar::new();

/// Tells the supervisor that there is something to look after earlier than it knows, or nothing any more.
pub(super) fn wake() {
    EARLIER.notify_one();
}

/// Starts the supervisor thread, which is entered as there already.
///
/// If the system refuses it, the pool works on without: the next event tries again, and a reader that ends
/// stands in. Without any reader nobody would ever look at the calls that wait.
pub(super) fn start() {
    // It resolves calls that nobody else does.
    let thread = start_deep_thread(
        "cpu",
        Box::new(|| {
            Current::Reader.set();
            supervise();
        }),
    );
    if let Err(error) = thread {
        let text = "no thread could be started for the worker processes";
        let may_stand_in = matches!(Current::get(), Current::Reader);
        fail_start(&Error::os(text, error), |pool, _| {
            if pool.state.is_empty() && !may_stand_in {
                pool.state.strand();
            }
        });
        // Not before, or that event would try again.
        lock(pool()).supervised = false;
    }
}

/// A reader ends. It is the supervisor from now on if there is none and one is needed.
fn stand_in() {
    let mut pool = lock(pool());
    let is_needed = !pool.supervised && pool.state.next_deadline().is_some();
    pool.supervised |= is_needed;
    drop(pool);
    if is_needed {
        supervise();
    }
}

/// The life of the supervisor. It ends with the last worker.
fn supervise() {
    loop {
        let decodes = |process: &Arc<Process>| process.decodes.load(Ordering::Relaxed);
        update(|pool, now| pool.state.check(now, decodes));
        let mut pool = lock(pool());
        // The lock is held from here to the wait, so that no change is missed.
        let deadline = pool.state.next_deadline();
        if deadline.is_none() && pool.state.is_empty() {
            pool.supervised = false;
            return;
        }
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        drop(EARLIER.wait_timeout(pool, left.unwrap_or(Duration::MAX)));
    }
}

// --------------------------------------------------------------------------------------- the process

/// A worker process, and what is needed to write to it and to end it.
pub(super) struct Process {
    number: u64,
    tx: Tx,
    /// Held while frames are written, so that they stay whole.
    writing: Mutex<()>,
    child: Mutex<Child>,
    pid: u32,
    was_killed: AtomicBool,
    /// Whether a signal had stopped it when it was killed.
    was_stopped: AtomicBool,
    /// Set when it was reaped to see whether it had ended. Its number may be another's since.
    was_reaped: AtomicBool,
    /// Whether its reader decodes results, which is foreign code, and hears nothing meanwhile.
    decodes: AtomicBool,
    /// The last call that was reported because a signal had stopped the process.
    reported: AtomicU64,
    printed: Arc<Printed>,
    /// Where it is, if that is another host. The child is its launcher then.
    far: Option<Far>,
}

/// A large call is written in pieces of this size. Each that the worker takes is a sign of life.
const PIECE: usize = 256 << 10;

impl Process {
    /// Writes what the scheduler has for the worker. `frames` is room to put it together.
    pub(super) fn send(
        &self,
        messages: impl Iterator<Item = Message<CallHandle>>,
        frames: &mut Vec<u8>,
    ) {
        frames.clear();
        for message in messages {
            match message {
                Message::Fresh => self.printed.clear(),
                Message::Call(call) => call.request().copy_frame(frames),
                Message::RequestToSend => frame::plain(frames, Kind::Rts, 0),
                Message::LargeCall(call) => self.send_large(call.request()),
                Message::Cancel(id) => frame::plain(frames, Kind::Cancel, id),
            }
        }
        self.write(frames);
    }

    /// Writes an empty frame, for a relay.
    fn say(&self, kind: Kind) {
        self.write(&frame::of(kind, 0, &()));
    }

    /// Writes frames; says whether the link took them. If not, the reader finds the end of the link.
    fn write(&self, frames: &[u8]) -> bool {
        let _writing = lock(&self.writing);
        self.tx.write_all(frames, None).is_ok()
    }

    /// Writes a large call. The worker does nothing but read meanwhile, and nothing else is written to it.
    fn send_large(&self, call: &Request) {
        let frame = call.take_frame();
        for piece in frame.chunks(PIECE) {
            if !self.write(piece) {
                break;
            }
            self.heard(Heard::Progressed);
        }
        // Another worker needs it if this one ends before the call starts.
        call.put_frame(frame);
    }

    fn heard(&self, heard: Heard) {
        update(|pool, now| pool.state.heard(self.number, heard, now));
    }

    /// Kills the process. If it was killed before and has ended, something else holds its link open, and
    /// the link is closed.
    pub(super) fn kill(&self) {
        if procfs::is_stopped(self.pid) {
            self.was_stopped.store(true, Ordering::Relaxed);
        }
        let was_killed = self.was_killed.swap(true, Ordering::Relaxed);
        // At the end of the link a relay kills its worker, and says how that ended. A launcher that was killed
        // could not pass it on. A shell may wait for the one that it started.
        if self.far.is_some() && was_killed {
            transport::kill_children(self.pid);
        }
        if self.far.is_none() || was_killed {
            // It fails only if the process was reaped before.
            let _ = lock(&self.child).kill();
        }
        // If that was a wrapper only, the worker behind it ends when it sees the end of the link.
        self.tx.close();
        if was_killed && self.has_ended() {
            self.tx.close_both();
        }
    }

    /// Has an idle worker end by itself, so that it can flush what it printed.
    pub(super) fn retire(&self) {
        match self.far {
            // The end of the link would have its relay kill it.
            Some(_) => self.say(Kind::Retire),
            None => self.tx.close(),
        }
    }

    /// Looks after a worker of which nothing was heard for long. A process that it started may hold its
    /// link, and hide its end.
    pub(super) fn probe(&self) {
        if self.has_ended() {
            self.tx.close_both();
        } else if settings().is_ok_and(|settings| settings.debug) && procfs::is_stopped(self.pid) {
            self.report_stopped();
        }
    }

    /// Reports once for each call that a signal has stopped the worker while it runs the call.
    fn report_stopped(&self) {
        let running = lock(pool()).state.running(self.number).cloned();
        let Some(call) = running else { return };
        let Request {
            id, name, origin, ..
        } = call.request();
        if self.reported.swap(*id, Ordering::Relaxed) != *id {
            transport::log(&format!(
                "worker process {}, which runs `{name}` (started at {origin}), was stopped by a \
                 signal; the system does that to a worker that uses the terminal",
                self.pid
            ));
        }
    }

    /// Whether the process has ended, whoever else may hold its link.
    fn has_ended(&self) -> bool {
        procfs::has_ended(self.pid).unwrap_or_else(|| {
            let was_reaped = matches!(lock(&self.child).try_wait(), Ok(Some(_)));
            self.was_reaped.store(was_reaped, Ordering::Relaxed);
            was_reaped
        })
    }

    /// Makes sure that the process has ended, and reaps it. A process whose link has ended is past
    /// the point where a kill could change how it ended; one that lives on without its link is of no
    /// use.
    fn reap(&self) -> Option<ExitStatus> {
        if self.far.is_some() {
            return relay::end(&mut lock(&self.child)).ok();
        }
        let asked = settings().is_ok_and(|settings| settings.kill_children);
        // The number of its group is taken until the process is reaped.
        if asked && !self.was_reaped.load(Ordering::Relaxed) {
            transport::kill_children(self.pid);
        }
        self.kill();
        lock(&self.child).wait().ok()
    }

    /// Whether it holds more memory than it may.
    fn has_outgrown(&self) -> bool {
        let limit = settings().map_or(None, |settings| settings.memory_per_worker);
        limit.is_some_and(|limit| {
            procfs::resident_bytes(self.pid).is_some_and(|bytes| bytes > limit)
        })
    }
}

// ------------------------------------------------------------------------------------------ the start

/// Starts a worker at a place, and the thread that reads from it.
pub(super) fn spawn((number, place): (u64, usize)) {
    // It decodes results: they may be as large as what a call has the stack for.
    let body = move || {
        Current::Reader.set();
        attend(number, place);
        stand_in();
    };
    if let Err(error) = start_deep_thread(&format!("cpu-{number}"), Box::new(body)) {
        let text = "no thread could be started for a worker process";
        spawn_failed(place, SpawnFailure::Refused, &Error::os(text, error));
    }
}

/// The life of a worker.
fn attend(number: u64, place: usize) {
    let (child, Link { rx, tx }, output, far) = match launch(place) {
        Ok(launched) => launched,
        Err((failure, error)) => return spawn_failed(place, failure, &error),
    };
    let trip = far.as_ref().map_or(Duration::ZERO, |far| far.trip);
    let process = Arc::new(Process {
        number,
        tx,
        writing: Mutex::new(()),
        pid: child.id(),
        child: Mutex::new(child),
        was_killed: AtomicBool::new(false),
        was_stopped: AtomicBool::new(false),
        was_reaped: AtomicBool::new(false),
        decodes: AtomicBool::new(false),
        reported: AtomicU64::new(0),
        printed: Arc::clone(&output.printed),
        far,
    });
    update(|pool, now| {
        let handle = Arc::clone(&process);
        pool.state.ready((number, place), handle, trip, now);
    });
    // Whatever happens in there, the worker is reaped.
    let end = wall(|| read(&process, rx)).unwrap_or_else(|payload| {
        discard(payload);
        Err(io::Error::other("the reader of a worker process panicked"))
    });
    buffers::free();
    exit(&process, &end, &output);
}

fn spawn_failed(place: usize, failure: SpawnFailure, error: &Error) {
    fail_start(error, |pool, now| {
        pool.state.spawn_failed(place, failure, now);
    });
}

/// Feeds an event after which calls may have no worker to wait for.
fn fail_start(error: &Error, event: impl FnOnce(&mut Pool, Instant)) {
    let fail = |call: &CallHandle| call.fail(report::unstartable(call.request().name, error));
    apply(event, &mut |call, _| fail(call));
}

type Launched = (Child, Link, Output, Option<Far>);

/// Starts a process, and waits until it has connected.
fn launch(place: usize) -> Result<Launched, (SpawnFailure, Error)> {
    let is_final = |error| (SpawnFailure::Final, error);
    let settings = settings().map_err(is_final)?;
    let config = WorkerConfig {
        frame_bytes_max: settings.frame_bytes_max,
        stack_size: stack_size(),
        spin: settings.spin,
        slow: scheduler::WINDOW,
        start_timeout: settings.start_timeout,
        host_timeout: settings.host_timeout,
        kill_children: settings.kill_children,
    };
    let host = place.checked_sub(1).map(|at| &settings.hosts[at]);
    let name = host.map(|host| &*host.name);
    let refused = |refusal: SpawnError, program: &str, output: Option<&Output>| {
        let failure = match &refusal {
            SpawnError::Os(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => SpawnFailure::Final,
                _ => SpawnFailure::Refused,
            },
            SpawnError::Died(_) => SpawnFailure::Died,
            SpawnError::TimedOut | SpawnError::Unneeded | SpawnError::Unfit(_) => {
                SpawnFailure::Final
            }
        };
        let limit = settings.start_timeout;
        let error = report::refused(refusal, limit, program, name, output);
        (failure, error)
    };
    let command = wall(|| command(settings, host)).map_err(|payload| {
        let culprit = "the hook that makes the command of a worker";
        is_final(Error::panicked(culprit, payload))
    })?;
    let command = command.map_err(|error| refused(SpawnError::Os(error), "", None))?;
    let program = report::describe(&command);
    let is_needed = || !lock(pool()).state.is_closed();
    let os = |error| refused(SpawnError::Os(error), &program, None);
    if let Some(name) = name {
        let (mut child, socket) = transport::spawn_at_socket(command).map_err(os)?;
        let (output, _) = Output::attach(&mut child, transport::stdout);
        return match relay::connect(child, socket, name, config, &output, is_needed) {
            Ok((child, link, far)) => Ok((child, link, output, Some(far))),
            Err(refusal) => Err(refused(refusal, &program, Some(&output))),
        };
    }
    let (mut child, stdin) = transport::spawn(command).map_err(os)?;
    let (output, ready) = Output::attach(&mut child, transport::stdout);
    match handshake::connect(child, stdin, config, &ready, is_needed) {
        Ok((child, link)) => Ok((child, link, output, None)),
        Err(refusal) => Err(refused(refusal, &program, Some(&output))),
    }
}

/// How a worker is started.
fn command(settings: &Settings, host: Option<&Host>) -> io::Result<Command> {
    let make = host.map(|host| &host.launcher);
    let mut command = match make.or(settings.worker_command.as_ref()) {
        Some(make) => make(&transport::executable()?),
        None => transport::command()?,
    };
    add_arguments(&mut command, host.is_some());
    if host.is_some() || !io::IsTerminal::is_terminal(&io::stderr()) {
        command.stderr(Stdio::piped());
    }
    Ok(command)
}

// ---------------------------------------------------------------------------------------- the reading

/// What frames other than those of values may hold, whatever the limit of those.
const CONTROL_BYTES: usize = 1 << 20;

/// Reads the link of a worker until it ends. Gives what the worker lacks if it cannot serve.
fn read(process: &Process, mut source: Rx) -> io::Result<Option<Error>> {
    let settings = settings().map_err(io::Error::other)?;
    let limit = settings.frame_bytes_max.max(CONTROL_BYTES);
    let mut reader = FrameReader::new(limit.saturating_add(frame::HEADER));
    let mut reporting = None;
    loop {
        match reader.fill(&mut source) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => continue,
                io::ErrorKind::WouldBlock => {
                    let limit = settings.host_timeout;
                    let text = format!("nothing was heard of its host for {limit:?}");
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
                _ => {
                    let last = (&process.far, reader.behind_torn());
                    if let (Some(far), Some((Kind::Gone, call))) = last {
                        far.set_gone(call);
                    }
                    return Err(error);
                }
            },
        }
        let mut frames = iter::from_fn(|| reader.pop()).peekable();
        while let Some(frame) = frames.peek() {
            if is_start_or_done(frame) {
                advance(process, &mut frames);
                continue;
            }
            match frames.next() {
                Some(frame) if frame.kind == Kind::Refused => {
                    let refusal = io::Error::decode(&mut &*frame.payload);
                    let text = "no thread could be started in a worker process";
                    let error = refusal.map(|error| Error::os(text, error));
                    return error.map(Some).map_err(io::Error::other);
                }
                Some(frame) => accept(process, frame, &mut source, &mut reporting)?,
                None => {}
            }
        }
    }
}

fn is_start_or_done(frame: &Frame<'_>) -> bool {
    matches!(frame.kind, Kind::Start | Kind::Done)
}

/// What the worker has begun and ended, as far as it is here, in one go.
fn advance<'a>(process: &Process, frames: &mut Peekable<impl Iterator<Item = Frame<'a>>>) {
    let batch = Vec::from_iter(iter::from_fn(|| frames.next_if(is_start_or_done)));
    let is_done = |frame: &&Frame<'_>| frame.kind == Kind::Done;
    let is_running = batch.last().is_some_and(|last| !is_done(&last));
    if is_running && process.far.is_some() {
        // A launcher or a network may hold back the end of the call until this acknowledges its start.
        process.say(Kind::Noop);
    }
    let is_large = |frame: &Frame<'_>| frame.payload.len() > buffers::LARGE;
    let (decodes, large) = (
        batch.iter().any(|it| is_done(&it)),
        batch.iter().any(is_large),
    );
    let outgrown = decodes && process.has_outgrown();
    process.decodes.store(decodes, Ordering::Relaxed);
    let event = |pool: &mut Pool, now| {
        let mut hear = |heard| pool.state.heard(process.number, heard, now);
        for frame in &batch {
            hear(match frame.kind {
                Kind::Done => Heard::Done(frame.call),
                _ => Heard::Started(frame.call),
            });
        }
        let also = [(outgrown, Heard::Outgrown), (large, Heard::Decoding)];
        let also = also.into_iter().filter(|(is_so, _)| *is_so);
        also.for_each(|(_, heard)| hear(heard));
    };
    // Calls are resolved in the order in which they were done.
    let mut done = batch.iter().filter(is_done);
    apply(event, &mut |call, _| {
        let frame = done.find(|frame| frame.call == call.request().id);
        call.done(frame.map_or(&[], |frame| &*frame.payload));
    });
    process.decodes.store(false, Ordering::Relaxed);
    for frame in batch {
        if let Cow::Owned(mut large) = frame.payload {
            buffers::recycle(&mut large);
        }
    }
    if large {
        process.heard(Heard::Decoded);
    }
}

/// Does what another frame says. `reporting` is the call that has reported progress last: most reports are
/// one of many.
fn accept(
    process: &Process,
    frame: Frame<'_>,
    source: &mut Rx,
    reporting: &mut Option<(u64, Arc<Progress>)>,
) -> io::Result<()> {
    let mut payload = &*frame.payload;
    let find = || lock(pool()).state.find(process.number, frame.call).cloned();
    match frame.kind {
        Kind::Progress => {
            if reporting.as_ref().is_none_or(|(id, _)| *id != frame.call) {
                let progress = find().and_then(|call| call.request().progress());
                *reporting = progress.map(|progress| (frame.call, progress));
            }
            if let (Ok(kind), Some((_, progress))) = (u64::decode(&mut payload), reporting) {
                progress.say(kind, payload);
            }
        }
        Kind::Panic => {
            if let (Ok(report), Some(call)) = (PanicReport::decode(&mut payload), find()) {
                call.request().panicked(report);
            }
        }
        Kind::Returned => {
            let ids = Vec::decode(&mut payload).map_err(io::Error::other)?;
            process.heard(Heard::Returned(ids));
        }
        Kind::Cts => {
            // This thread writes the call now.
            source.make_blocking();
            process.heard(Heard::ClearToSend);
            process.heard(Heard::Loaded);
        }
        Kind::Noop => {}
        Kind::Ping => process.say(Kind::Noop),
        Kind::Gone => {
            process.far.iter().for_each(|far| far.set_gone(frame.call));
            // Its launcher may take long to end, as when a process there holds its standard error.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        _ => return Err(io::ErrorKind::InvalidData.into()),
    }
    Ok(())
}

// -------------------------------------------------------------------------------------------- the end

/// The link has ended: settles what the worker had, and reaps it.
fn exit(process: &Process, end: &io::Result<Option<Error>>, output: &Output) {
    let (exit, cause, refusal) = match end {
        Ok(None) => (Exit::Certain, None, None),
        Ok(Some(refusal)) => (Exit::Refused, None, Some(refusal)),
        // Calls may have started without a word of it if frames were lost, or not read.
        Err(cause) if transport::loses_frames(cause) || !transport::is_end(cause) => {
            (Exit::Uncertain, Some(cause), None)
        }
        Err(cause) => (Exit::Certain, Some(cause), None),
    };
    let far = process.far.as_ref();
    let exit = match far.map(|far| far.gone.get()) {
        Some(None) if exit != Exit::Refused => Exit::Uncertain,
        _ => exit,
    };
    let report = OnceCell::new();
    let reap = || {
        process.tx.close_both();
        let status = process.reap();
        ExitReport {
            pid: far.map_or(process.pid, |far| far.pid),
            was_stopped: process.was_stopped.load(Ordering::Relaxed),
            status: far.map_or(status, |far| far.gone.get().copied()),
            place: report::place(far.map(|far| far.host)),
            launcher: status.filter(|_| far.is_some()),
            cause,
            refusal,
            output,
            tail: OnceCell::new(),
        }
    };
    let event = |pool: &mut Pool, now| pool.state.exited(process.number, exit, now);
    apply(event, &mut |call, outcome| {
        call.fail(report.get_or_init(reap).error(call.request(), outcome));
    });
    report.get_or_init(reap);
    output.drain();
    update(|pool, _| pool.state.reaped());
}
