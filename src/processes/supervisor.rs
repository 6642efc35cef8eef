//! The worker processes: each has a reader thread that starts the process, reads its link and reaps it. One
//! supervisor thread watches the clock for all of them.
//!
//! Each worker has a thread because std cannot wait for many children or many links at once. The end of the
//! link tells of an exit, because only one thread at a time can wait for or kill a `Child`. A read of
//! a local worker's link blocks without a limit; on a link to a host, silence ends it. The supervisor does what
//! the scheduler wants done at a certain time.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::io;
use std::iter;
use std::mem;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::buffers;
use super::frame::{self, Frame, FrameReader, Header, Kind};
use super::handshake::{self, SpawnError, WorkerConfig};
use super::procfs;
use super::relay::{self, Far};
use super::report::{self, ExitReport, Output, Printed};
use super::scheduler::{self, Action, Exit, Heard, SpawnFailure};
use super::transport::{self, Link, Rx, Tx};
use super::wire::Wire;
use super::worker::{PanicReport, add_arguments};
use super::{CallHandle, Pool, Request, apply, checked_settings, pool, update};
use crate::config::{Host, stack_size, start_deep_thread};
use crate::current::Current;
use crate::error::{Error, discard, lock, wall};

// ----------------------------------------------------------------------------------- the supervisor

/// Wakes the supervisor.
static EARLIER: Condvar = Condvar::new();

/// Tells the supervisor that the next deadline is earlier than it knows, or that no worker is left.
pub(super) fn wake() {
    EARLIER.notify_one();
}

/// Starts the supervisor thread. `supervised` is already set.
///
/// If the system refuses the thread, the pool works on without it: the next event tries again, and a reader
/// that ends stands in. Without any reader, nobody would ever look at the waiting calls.
pub(super) fn start() {
    let body = || {
        // The supervisor resolves calls that no other thread resolves.
        Current::Reader.set();
        supervise();
    };
    if let Err(error) = start_deep_thread("cpu", Box::new(body)) {
        let text = "no thread could be started for the worker processes";
        let may_stand_in = matches!(Current::get(), Current::Reader);
        fail_start(&Error::os(text, error), |pool, _| {
            if pool.state.is_empty() && !may_stand_in {
                pool.state.strand();
            }
        });
        // Reset only now, or that event would try again.
        lock(pool()).supervised = false;
    }
}

/// Lets an ending reader become the supervisor, if there is none and one is needed.
fn stand_in() {
    let mut pool = lock(pool());
    let is_needed = !pool.supervised && pool.state.next_deadline().is_some();
    pool.supervised |= is_needed;
    drop(pool);
    if is_needed {
        supervise();
    }
}

/// Runs the supervisor until the last worker is gone.
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
    /// Held while frames are written, so that they stay whole. Set while a large call is written, in pieces: all
    /// that could come between them is a `Cancel` that is late, and its call is over.
    writing: Mutex<bool>,
    child: Mutex<Child>,
    pid: u32,
    was_killed: AtomicBool,
    /// Whether a signal had stopped it when it was killed.
    was_stopped: AtomicBool,
    /// Set when it was reaped to see whether it had ended. Its pid may belong to another process since.
    was_reaped: AtomicBool,
    /// Whether its reader is decoding results, which runs foreign code, and hears nothing meanwhile.
    decodes: AtomicBool,
    /// The last call that was reported because a signal had stopped the process.
    reported: Mutex<u64>,
    printed: Arc<Printed>,
    /// Where the worker is, if on another host. `child` is then its launcher.
    far: Option<Far>,
}

/// A large call is written in pieces of this size. Each piece that the worker takes is a sign of life.
const PIECE: usize = 256 << 10;

impl Process {
    /// Carries out actions of the scheduler. `frames` is scratch space for what is written.
    pub(super) fn act(&self, actions: &[(Arc<Process>, Action<CallHandle>)], frames: &mut Vec<u8>) {
        frames.clear();
        for (_, action) in actions {
            match action {
                Action::Fresh => self.printed.clear(),
                Action::Call(call) => frames.extend_from_slice(&call.request().parts().frame),
                Action::RequestToSend => _ = frame::begin(frames, Kind::Rts, 0),
                Action::LargeCall(call) => self.send_large(call.request()),
                Action::Cancel(id) => _ = frame::begin(frames, Kind::Cancel, *id),
                Action::Retire => self.retire(),
                Action::Probe(running) => self.probe(running),
                Action::Kill => self.kill(),
            }
        }
        self.write(frames);
    }

    /// Writes an empty frame, for a relay.
    fn say(&self, kind: Kind) {
        self.write(&frame::of(kind, 0, &()));
    }

    /// Writes frames. If the link does not take them, the reader finds its end.
    fn write(&self, frames: &[u8]) {
        let is_loading = lock(&self.writing);
        if !*is_loading {
            let _ = self.tx.write_all(frames, None);
        }
    }

    /// Writes a large call. The worker does nothing but read meanwhile, and nothing else is written to it.
    fn send_large(&self, call: &Request) {
        let frame = call.take_frame();
        for piece in frame.chunks(PIECE) {
            let mut is_loading = lock(&self.writing);
            *is_loading = true;
            if self.tx.write_all(piece, None).is_err() {
                break;
            }
            drop(is_loading);
            self.heard(Heard::Progressed);
        }
        *lock(&self.writing) = false;
        // Another worker needs the frame if this one ends before the call starts.
        call.parts().frame = frame;
        self.heard(Heard::Loaded);
    }

    fn heard(&self, heard: Heard) {
        update(|pool, now| pool.state.heard(self.number, heard, now));
    }

    /// Kills the process. If it was killed before and has ended, something else holds its link open, and
    /// the link is closed.
    fn kill(&self) {
        if procfs::is_stopped(self.pid) {
            self.was_stopped.store(true, Ordering::Relaxed);
        }
        let was_killed = self.was_killed.swap(true, Ordering::Relaxed);
        // At the end of the link, a relay kills its worker and says how the worker ended. A launcher that was
        // killed could not pass that on. The child may be a shell that waits for the launcher it started.
        if self.far.is_some() && was_killed && !self.was_reaped.load(Ordering::Relaxed) {
            transport::kill_children(self.pid);
        }
        if self.far.is_none() || was_killed {
            // This fails only if the process was reaped before.
            let _ = lock(&self.child).kill();
        }
        // If the child is only a wrapper, the worker behind it ends when it sees the end of the link.
        self.tx.close();
        if was_killed && self.has_ended() {
            self.tx.close_both();
        }
    }

    /// Has an idle worker end by itself, so that it can flush what it printed.
    fn retire(&self) {
        match self.far {
            // At the end of the link, its relay would kill it.
            Some(_) => self.say(Kind::Retire),
            None => self.tx.close(),
        }
    }

    /// Checks on a worker that has long been silent. A process that it started may hold its link open and
    /// hide its end.
    fn probe(&self, running: &CallHandle) {
        if self.has_ended() {
            return self.tx.close_both();
        }
        if !checked_settings().debug || !procfs::is_stopped(self.pid) {
            return;
        }
        let Request { id, name, .. } = running.request();
        if mem::replace(&mut *lock(&self.reported), *id) != *id {
            let origin = running.slot().origin;
            transport::log(&format!(
                "worker process {}, which runs `{name}` (started at {origin}), was stopped by a \
                 signal; the system does that to a worker that uses the terminal",
                self.pid
            ));
        }
    }

    /// Whether the process has ended, even if another process holds its link open.
    fn has_ended(&self) -> bool {
        procfs::has_ended(self.pid).unwrap_or_else(|| {
            // This fails if the system has reaped it, as for a program that ignores SIGCHLD.
            let was_reaped = !matches!(lock(&self.child).try_wait(), Ok(None));
            self.was_reaped.store(was_reaped, Ordering::Relaxed);
            was_reaped
        })
    }

    /// Makes sure that the process has ended, and reaps it. Once the link has ended, a kill can no longer
    /// change how the process ended; a process that lives on without its link is useless.
    fn reap(&self) -> Option<ExitStatus> {
        if self.far.is_some() {
            return relay::end(&mut lock(&self.child)).ok();
        }
        // The id of its process group is not reused until the process is reaped.
        if checked_settings().kill_children && !self.was_reaped.load(Ordering::Relaxed) {
            transport::kill_children(self.pid);
        }
        self.kill();
        lock(&self.child).wait().ok()
    }

    /// Whether a worker on this machine uses more memory than it may.
    fn has_outgrown(&self) -> bool {
        let limit = checked_settings().memory_per_worker;
        limit.filter(|_| self.far.is_none()).is_some_and(|limit| {
            procfs::resident_bytes(self.pid).is_some_and(|bytes| bytes > limit)
        })
    }
}

// ------------------------------------------------------------------------------------------ the start

/// Starts a worker at a place, and the thread that reads from it.
pub(super) fn spawn((number, place): (u64, usize)) {
    // The thread decodes results, which may need as much stack as a call has.
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

/// Starts a worker, reads its link and reaps it.
fn attend(number: u64, place: usize) {
    let launched = wall(|| launch(place)).unwrap_or_else(|payload| {
        let culprit = "the hook that makes the command of a worker";
        Err((SpawnFailure::Final, Error::panicked(culprit, payload)))
    });
    let (child, Link { rx, tx }, output, far) = match launched {
        Ok(launched) => launched,
        Err((failure, error)) => return spawn_failed(place, failure, &error),
    };
    let trip = far.as_ref().map_or(Duration::ZERO, |far| far.trip);
    let process = Arc::new(Process {
        number,
        tx,
        writing: Mutex::default(),
        pid: child.id(),
        child: Mutex::new(child),
        was_killed: AtomicBool::new(false),
        was_stopped: AtomicBool::new(false),
        was_reaped: AtomicBool::new(false),
        decodes: AtomicBool::new(false),
        reported: Mutex::new(0),
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
    apply(event, &mut |call, _| {
        Err(report::unstartable(call.name, error))
    });
}

type Launched = (Child, Link, Output, Option<Far>);

/// Starts a process, and waits until it has connected.
fn launch(place: usize) -> Result<Launched, (SpawnFailure, Error)> {
    let settings = checked_settings();
    let host = place.checked_sub(1).map(|at| &settings.hosts[at]);
    let name = host.map(|host| &*host.name);
    let command = command(host);
    let program = command
        .as_ref()
        .map_or_else(|_| String::new(), report::describe);
    let refused = |refusal: SpawnError, output: Option<&Output>| {
        let failure = match &refusal {
            SpawnError::Os(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => SpawnFailure::Final,
                _ => SpawnFailure::Refused,
            },
            SpawnError::Died(_) => SpawnFailure::Died,
            _ => SpawnFailure::Final,
        };
        let limit = settings.start_timeout;
        let error = report::refused(refusal, limit, &program, name, output);
        (failure, error)
    };
    let os = |error| refused(SpawnError::Os(error), None);
    let command = command.map_err(os)?;
    let config = WorkerConfig {
        frame_bytes_max: settings.frame_bytes_max,
        stack_size: stack_size(),
        spin: settings.spin,
        slow: scheduler::WINDOW,
        start_timeout: settings.start_timeout,
        host_timeout: settings.host_timeout,
        kill_children: settings.kill_children,
    };
    let is_needed = || !lock(pool()).state.is_closed();
    if let Some(name) = name {
        // First of all: the relay takes the time that the parent needs to answer for the round-trip time.
        relay::build().map_err(os)?;
        let (mut child, socket) = transport::spawn_at_socket(command).map_err(os)?;
        let output = Output::attach(&mut child, transport::stdout).map_err(os)?;
        let connected = relay::connect(child, socket, name, config, &output, is_needed);
        let (child, link, far) = connected.map_err(|refusal| refused(refusal, Some(&output)))?;
        return Ok((child, link, output, Some(far)));
    }
    let (mut child, stdin) = transport::spawn(command).map_err(os)?;
    let output = Output::attach(&mut child, transport::stdout).map_err(os)?;
    let connected = handshake::connect(child, stdin, config, &output.ready, is_needed);
    let (child, link) = connected.map_err(|refusal| refused(refusal, Some(&output)))?;
    Ok((child, link, output, None))
}

/// The command that starts a worker.
fn command(host: Option<&Host>) -> io::Result<Command> {
    let make = host.and_then(|host| host.launcher.as_ref());
    let mut command = match make.or(checked_settings().worker_command.as_ref()) {
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

/// How many bytes a frame without a value may hold, whatever the limit for values.
const CONTROL_BYTES: usize = 1 << 20;

/// Events for the scheduler, with the payload of each `Done`.
type News<'a> = Vec<(Heard, Cow<'a, [u8]>)>;

/// Reads the link of a worker until it ends. Returns the reason if the worker cannot serve.
fn read(process: &Process, mut source: Rx) -> io::Result<Option<Error>> {
    let settings = checked_settings();
    let limit = settings.frame_bytes_max.max(CONTROL_BYTES);
    let mut reader = FrameReader::new(limit.saturating_add(frame::HEADER));
    loop {
        match reader.fill(&mut source) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => {
                let last = (&process.far, reader.behind_torn());
                let is_silent = error.kind() == io::ErrorKind::WouldBlock;
                return Err(match last {
                    (Some(far), Some((Kind::Gone, call))) => {
                        far.set_gone(call);
                        // The launcher may take long to end.
                        match is_silent {
                            true => io::ErrorKind::UnexpectedEof.into(),
                            false => error,
                        }
                    }
                    _ if is_silent => {
                        let limit = settings.host_timeout;
                        let text = format!("nothing was heard of its host for {limit:?}");
                        io::Error::new(io::ErrorKind::TimedOut, text)
                    }
                    _ => error,
                });
            }
        }
        // The scheduler gets everything that has arrived in one go.
        let mut news = News::new();
        let mut frames = iter::from_fn(|| reader.pop());
        let end =
            frames.find_map(|frame| accept(process, frame, &mut source, &mut news).transpose());
        advance(process, news);
        if let Some(end) = end {
            return end.map(Some);
        }
    }
}

/// Does what a frame says, or adds it to the news. Returns the reason if the worker cannot serve.
fn accept<'a>(
    process: &Process,
    frame: Frame<'a>,
    source: &mut Rx,
    news: &mut News<'a>,
) -> io::Result<Option<Error>> {
    let (Header { kind, call, .. }, payload) = frame;
    let mut bytes = &*payload;
    let find = || lock(pool()).state.find(process.number, call).cloned();
    match kind {
        Kind::Start => news.push((Heard::Started(call), Cow::default())),
        Kind::Done => news.push((Heard::Done(call), payload)),
        Kind::Returned => {
            let ids = Vec::decode(&mut bytes).map_err(io::Error::other)?;
            news.push((Heard::Returned(ids), Cow::default()));
        }
        Kind::Cts => {
            // This thread writes the call now.
            source.make_blocking();
            news.push((Heard::ClearToSend, Cow::default()));
        }
        Kind::Progress => {
            let progress = find().and_then(|found| found.request().progress());
            if let (Ok(kind), Some(progress)) = (u64::decode(&mut bytes), progress) {
                progress.say(kind, bytes);
            }
        }
        Kind::Panic => {
            if let (Ok(report), Some(found)) = (PanicReport::decode(&mut bytes), find()) {
                // The first and the last are kept.
                let panics = &mut found.request().parts().panics;
                panics.truncate(1);
                panics.push(report);
            }
        }
        Kind::Refused => {
            let error = io::Error::decode(&mut bytes).map_err(io::Error::other)?;
            let text = "no thread could be started in a worker process";
            return Ok(Some(Error::os(text, error)));
        }
        Kind::Noop => {}
        Kind::Ping => process.say(Kind::Noop),
        Kind::Gone => {
            process.far.iter().for_each(|far| far.set_gone(call));
            // The launcher may take long to end, say if a process there holds its standard error open.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Kind::Call | Kind::Rts | Kind::Cancel | Kind::Retire => {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(None)
}

/// Feeds the news to the scheduler, and resolves the calls that are done.
fn advance(process: &Process, news: News<'_>) {
    let is_done = |(heard, _): &(Heard, _)| matches!(heard, Heard::Done(_));
    let Some(last) = news.last() else { return };
    if process.far.is_some() && !is_done(last) {
        // A launcher or a network may hold back the end of the call until this acknowledges its start.
        process.say(Kind::Noop);
    }
    let decodes = news.iter().any(is_done);
    let large = news
        .iter()
        .any(|(_, payload)| payload.len() > buffers::LARGE);
    let outgrown = decodes && process.has_outgrown();
    process.decodes.store(decodes, Ordering::Relaxed);
    let event = |pool: &mut Pool, now| {
        let mut hear = |heard| pool.state.heard(process.number, heard, now);
        news.iter().for_each(|(heard, _)| hear(heard.clone()));
        let also = [(outgrown, Heard::Outgrown), (large, Heard::Decoding)];
        let also = also.into_iter().filter(|(is_so, _)| *is_so);
        also.for_each(|(_, heard)| hear(heard));
    };
    // Calls are resolved in the order in which they were done.
    let mut done = news.iter().filter_map(|(heard, payload)| match heard {
        Heard::Done(id) => Some((*id, &**payload)),
        _ => None,
    });
    apply(event, &mut |call, _| {
        let done = done.find(|(id, _)| *id == call.id);
        Ok(done.map_or(&[], |(_, payload)| payload))
    });
    process.decodes.store(false, Ordering::Relaxed);
    for (_, payload) in news {
        if let Cow::Owned(mut large) = payload {
            buffers::recycle(&mut large);
        }
    }
    if large {
        process.heard(Heard::Decoded);
    }
}

// -------------------------------------------------------------------------------------------- the end

/// Settles the calls of a worker whose link has ended, and reaps the worker.
fn exit(process: &Process, end: &io::Result<Option<Error>>, output: &Output) {
    let cause = end.as_ref().err();
    let refusal = end.as_ref().ok().and_then(Option::as_ref);
    let far = process.far.as_ref();
    let gone = far.and_then(|far| far.gone.get().copied());
    // If frames were lost or not read, calls may have started unnoticed.
    let is_told = |cause: &io::Error| transport::is_end(cause) && !transport::loses_frames(cause);
    let exit = match refusal {
        Some(_) => Exit::Refused,
        None if far.is_some() && gone.is_none() => Exit::Uncertain,
        None if cause.is_none_or(is_told) => Exit::Certain,
        None => Exit::Uncertain,
    };
    let report = OnceCell::new();
    let reap = || {
        process.tx.close_both();
        // Before it is reaped, which kills it too.
        let was_killed = process.was_killed.load(Ordering::Relaxed);
        let status = process.reap();
        ExitReport {
            process: match far {
                Some(far) => format!("{}{}", far.pid, report::place(Some(far.host))),
                None => process.pid.to_string(),
            },
            was_killed,
            was_stopped: process.was_stopped.load(Ordering::Relaxed),
            status: far.map_or(status, |_| gone),
            launcher: status.filter(|_| far.is_some()),
            cause,
            refusal,
            output,
        }
    };
    let event = |pool: &mut Pool, now| pool.state.exited(process.number, exit, now);
    apply(event, &mut |call, outcome| {
        Err(report.get_or_init(reap).error(call, outcome))
    });
    report.get_or_init(reap);
    output.drain();
    update(|pool, _| pool.state.reaped());
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::panic::Location;
    use std::thread;

    use super::*;
    use crate::processes::Call;

    /// The thread that stops a call may come late with its `Cancel`, when the worker reads its next call.
    #[test]
    fn a_late_cancel_does_not_get_into_a_large_call() {
        let (listener, port) = transport::listen("".as_ref()).unwrap();
        let near = transport::connect(port, "".as_ref()).unwrap();
        let mut far = iter::repeat_with(listener).find_map(Result::ok).unwrap();
        far.set_nonblocking(false).unwrap();
        let mut child = transport::command().unwrap();
        let child = child.arg("--list").stdout(Stdio::null()).spawn().unwrap();
        let process = Arc::new(Process {
            number: 0,
            tx: Link::new(near, None).tx,
            writing: Mutex::default(),
            pid: child.id(),
            child: Mutex::new(child),
            was_killed: AtomicBool::default(),
            was_stopped: AtomicBool::default(),
            was_reaped: AtomicBool::default(),
            decodes: AtomicBool::default(),
            reported: Mutex::default(),
            printed: Arc::default(),
            far: None,
        });
        let frame = frame::of(Kind::Call, 2, &vec![7_u8; 16 << 20]);
        let call = Call::<()>::new(Location::caller(), 2, "none", frame.clone());
        let late = [(Arc::clone(&process), Action::Cancel(1))];
        let received = thread::scope(|scope| {
            let reading = scope.spawn(|| {
                let mut received = Vec::new();
                far.read_to_end(&mut received).map(|_| received)
            });
            let loading = scope.spawn(|| process.send_large(&call.request));
            while !loading.is_finished() {
                process.act(&late, &mut Vec::new());
            }
            process.tx.close();
            reading.join().unwrap().unwrap()
        });
        lock(&process.child).wait().unwrap();
        // Before it and behind it are good places.
        let cancel = frame::of(Kind::Cancel, 1, &());
        let before = received.chunks(cancel.len());
        let before = before.take_while(|&chunk| chunk == cancel).count();
        assert!(received[before * cancel.len()..].starts_with(&frame));
    }
}
