//! Workers on other hosts: what a launcher carries between the parent and the relay, and the relay.
//!
//! ```text
//!   reader ──socket──▶ launcher: ssh, srun … ──▶ stdin ─┐       ┌──link──▶ worker
//!          ◀─────────                        ◀── stdout ┴ relay ┴◀────────
//! ```
//!
//! A launcher is a program of the user's choice. What it gets on its standard input arrives at the other
//! host, and vice versa: nothing else is known of it. A worker could not sit at that end itself: its standard
//! output is the user's, and a process that it starts could hold the stream open and hide its death. The
//! relay starts the worker like any other, and copies bytes.
//!
//! - **Hello**: the relay names its build. The parent says nothing before that, and skips what comes first,
//!   such as a greeting of the host. It refuses any other build, and otherwise answers with the settings. The
//!   relay answers once the worker is connected. Frames follow.
//! - **Gone** is the last frame of a relay. Without it nobody knows what the worker has begun: a launcher or
//!   a network that dies loses what it carried.
//! - **The end of standard input** kills the worker.
//! - **Silence** ends both sides, since a network that is cut closes nothing. The relay sends `Ping` now and
//!   then, and the parent answers.
//! - **Whole lines** are all that some launchers pass on, so a `Noop` with a newline follows what the worker
//!   says.
//! - **Nagle's algorithm** is left on by some launchers. When a call has begun, a `Noop` from the parent
//!   carries the acknowledgement that the end of the call would wait for.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read, Write};
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use super::frame::{self, FrameTracker, Kind};
use super::handshake::{self, Check, SpawnError, WorkerConfig};
use super::latch::{Latch, Opener};
use super::procfs;
use super::report::{self, Output};
use super::scheduler::WINDOW;
use super::transport::{self, Link, Rx, Socket, Tx};
use super::wire::Wire;
use super::worker::{self, add_arguments};
use crate::config::start_thread;
use crate::error::lock;
use crate::spin;

/// How a line of the relay begins, before any frames.
const HELLO: &str = "\u{1}unsync::hello\u{1}";
const READY: &str = "\u{1}unsync::ready\u{1}";

/// How long a launcher whose relay has ended may take to end. A relay checks on its worker at least this often.
const GRACE: Duration = Duration::from_secs(1);
/// No host is further away than this. On a busy host, an answer may take longer.
const TRIP_MAX: Duration = Duration::from_millis(250);

/// What tells this build of the program from any other: the size of the executable, and a hash of its bytes.
pub(super) fn build() -> io::Result<&'static str> {
    static BUILD: Mutex<Option<&str>> = Mutex::new(None);
    // Held to the end: other threads would read the same file.
    let mut known = lock(&BUILD);
    if let Some(build) = *known {
        return Ok(build);
    }
    let bytes = fs::read(transport::program()?)?;
    let mut hasher = DefaultHasher::new();
    hasher.write(&bytes);
    let build = format!("{}-{:016x}", bytes.len(), hasher.finish());
    Ok(known.insert(build.leak()))
}

// --------------------------------------------------------------------------------------- the parent side

/// A worker on another host. The child of this process is its launcher.
pub(super) struct Far {
    pub(super) host: &'static str,
    /// The pid of the worker process there.
    pub(super) pid: u32,
    /// The round-trip time.
    pub(super) trip: Duration,
    /// How the worker ended. Set when its relay has said so: then all that the worker said has arrived.
    pub(super) gone: OnceLock<ExitStatus>,
}

impl Far {
    /// Takes what a `Gone` has in place of the call: the pid of the worker, and its exit status.
    pub(super) fn set_gone(&self, call: u64) {
        if call >> 32 == u64::from(self.pid) {
            let status = transport::exit_status(call as u32 as i32);
            self.gone.get_or_init(|| status);
        }
    }
}

/// Waits until the worker behind a launcher is connected. If it does not connect, the launcher is ended.
pub(super) fn connect(
    mut child: Child,
    socket: Socket,
    host: &'static str,
    config: WorkerConfig,
    output: &Output,
    is_needed: impl Fn() -> bool,
) -> Result<(Child, Link, Far), SpawnError> {
    let mut check = handshake::time_limit(config.start_timeout, is_needed);
    let mut heard = Vec::new();
    let refusal = match meet(&socket, host, config, &mut heard, &mut check) {
        Ok(far) => return Ok((child, Link::new(socket, None), far)),
        Err(refusal) => refusal,
    };
    // What it printed instead of a hello may say why.
    output.printed.add(&heard);
    drop(socket);
    match (end(&mut child), refusal) {
        (Ok(status), SpawnError::Os(error)) if transport::is_end(&error) => {
            Err(SpawnError::Died(status))
        }
        (_, refusal) => Err(refusal),
    }
}

fn meet(
    mut socket: &Socket,
    host: &'static str,
    config: WorkerConfig,
    heard: &mut Vec<u8>,
    check: Check<'_>,
) -> Result<Far, SpawnError> {
    /// How often `check` is called while nothing is heard.
    const PAUSE: Duration = Duration::from_millis(50);
    let own = build()?;
    socket.set_read_timeout(Some(PAUSE))?;
    let build = read_line(socket, HELLO, heard, check)?;
    if build != own {
        let text = format!("its executable is a different build: {build}, not {own}");
        return Err(SpawnError::Unfit(text));
    }
    let mut message = handshake::encoded(&config);
    message.insert(0, message.len() as u8);
    socket.write_all(&message)?;
    let ready = read_line(socket, READY, heard, check)?;
    socket.set_read_timeout(Some(config.host_timeout))?;
    let numbers = ready.split_once(' ');
    let numbers = numbers.and_then(|(pid, trip)| Some((pid.parse().ok()?, trip.parse().ok()?)));
    let (pid, trip) = numbers.ok_or_else(|| SpawnError::Unfit(format!("it says {ready:?}")))?;
    Ok(Far {
        host,
        pid,
        trip: Duration::from_micros(trip),
        gone: OnceLock::new(),
    })
}

/// Reads the rest of the first line that has the mark, byte by byte because frames follow it.
fn read_line(
    mut socket: &Socket,
    mark: &str,
    heard: &mut Vec<u8>,
    check: Check<'_>,
) -> Result<String, SpawnError> {
    const HEARD_MAX: usize = 256 << 10;
    let unfit = |text: &str| Err(SpawnError::Unfit(text.into()));
    let (mut start, mut byte) = (heard.len(), [0]);
    while heard.len() < HEARD_MAX {
        check()?;
        match socket.read(&mut byte) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(_) => heard.push(byte[0]),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => continue,
                _ => return Err(error.into()),
            },
        }
        if byte == *b"\n" {
            let line = String::from_utf8_lossy(&heard[start..heard.len() - 1]);
            match line.split_once(mark) {
                Some((_, rest)) if rest.ends_with('\r') => {
                    return unfit(
                        "its launcher goes through a terminal, which changes bytes (ssh -T)",
                    );
                }
                Some((_, rest)) => return Ok(rest.into()),
                None => start = heard.len(),
            }
        }
    }
    unfit("it prints without end and says no hello")
}

/// Ends a launcher that has nothing left to carry, if it does not end by itself.
pub(super) fn end(child: &mut Child) -> io::Result<ExitStatus> {
    let deadline = Instant::now() + GRACE;
    // std cannot wait for the end of a process with a time limit.
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(2));
    }
    // The child may be a shell that waits for the launcher it started.
    transport::kill_children(child.id());
    child.kill()?;
    child.wait()
}

// --------------------------------------------------------------------------------------- the relay

struct Relay {
    tx: Tx,
    child: Mutex<Child>,
    /// The file, and a tracker of what was written to it.
    stdout: Mutex<(File, FrameTracker)>,
    /// Whether there was a sign of life from the parent since the last check.
    heard: AtomicBool,
    /// Whether a ping found a frame being written, and goes out with the end of that frame.
    owes_ping: AtomicBool,
}

/// Runs this process as a relay.
pub(super) fn serve() -> ! {
    worker::park_if_served();
    match run() {
        Ok(()) => worker::leave(None),
        // The parent has refused this relay, or is gone.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => worker::leave(None),
        Err(error) => worker::leave(Some(&format!(
            "this process was started to reach a worker from another host: {error}"
        ))),
    }
}

fn run() -> io::Result<()> {
    let (mut stdin, mut stdout) = (transport::stdin()?, transport::stdout()?);
    stdout.write_all(format!("{HELLO}{}\n", build()?).as_bytes())?;
    let said = Instant::now();
    let mut length = [0];
    stdin.read_exact(&mut length)?;
    let mut message = vec![0; length[0].into()];
    stdin.read_exact(&mut message)?;
    let mut config = WorkerConfig::decode(&mut message.as_slice()).map_err(io::Error::other)?;
    let trip = said.elapsed().min(TRIP_MAX);
    config.slow = WINDOW + trip;
    spin::set_budget(config.spin);

    // The worker is one like any other. What it prints must not go where its frames go.
    let mut command = transport::command()?;
    command.stdout(transport::stderr()?);
    add_arguments(&mut command, false);
    let (mut child, its_stdin) = transport::spawn(command)?;
    let output = Output::attach(&mut child, transport::stderr)?;
    let connected = handshake::connect(child, its_stdin, config, &output.ready, || true);
    let (child, Link { rx, tx }) = connected.map_err(|refusal| {
        let limit = config.start_timeout;
        io::Error::other(report::refused(refusal, limit, "", None, Some(&output)))
    })?;
    let ready = format!("{READY}{} {}\n", child.id(), trip.as_micros());
    stdout.write_all(ready.as_bytes())?;
    let relay = Box::leak(Box::new(Relay {
        tx,
        child: Mutex::new(child),
        stdout: Mutex::new((stdout, FrameTracker::default())),
        heard: AtomicBool::new(true),
        owes_ping: AtomicBool::new(false),
    }));
    relay.serve(stdin, rx, config)?;
    output.drain();
    Ok(())
}

impl Relay {
    /// Copies in both directions until the worker has ended, and reports how it ended.
    fn serve(&'static self, mut stdin: File, mut rx: Rx, config: WorkerConfig) -> io::Result<()> {
        let pid = lock(&self.child).id();
        let ended = Arc::<Latch>::default();
        let ends = Opener(Arc::clone(&ended));
        let down = move || {
            report::copy(&mut stdin, |bytes| self.pass_down(bytes));
            self.kill();
        };
        let up = move || {
            report::copy(&mut rx, |bytes| self.pass_up(bytes));
            drop(ends);
        };
        start_thread("down", Box::new(down))?;
        start_thread("up", Box::new(up))?;
        let pulse = config.host_timeout / 6;
        let (mut is_lost, mut is_reaped) = (false, false);
        let (mut heard, mut pinged) = (Instant::now(), Instant::now());
        while !ended.wait(GRACE.min(pulse)) {
            let was_lost = is_lost;
            if self.heard.swap(false, Ordering::Relaxed) {
                heard = Instant::now();
            }
            is_lost |= heard.elapsed() >= config.host_timeout;
            if pinged.elapsed() >= pulse {
                pinged = Instant::now();
                is_lost |= self.ping().is_err();
            }
            if is_lost && !was_lost {
                self.kill();
            }
            let has_ended = procfs::has_ended(pid).unwrap_or_else(|| {
                is_reaped = !matches!(lock(&self.child).try_wait(), Ok(None));
                is_reaped
            });
            if has_ended {
                // Another process may hold the link open, and hide its end.
                self.tx.close_both();
            }
        }
        // Once it is reaped, the id of its group may belong to another.
        if config.kill_children && !is_reaped {
            transport::kill_children(pid);
        }
        let mut child = lock(&self.child);
        let _ = child.kill();
        let status = u64::from(transport::raw_status(child.wait()?) as u32);
        drop(child);
        let gone = frame::of(Kind::Gone, u64::from(pid) << 32 | status, &());
        let (stdout, tracker) = &mut *lock(&self.stdout);
        if tracker.may_end_with(gone.len()) {
            // This fails if nobody is left to read it.
            let _ = stdout.write_all(&gone);
        }
        Ok(())
    }

    /// Ends the worker of a parent that is gone.
    fn kill(&self) {
        // Perhaps nobody reads what is still to be written.
        worker::abort_soon();
        let _ = lock(&self.child).kill();
    }

    fn pass_down(&self, bytes: &[u8]) -> io::Result<()> {
        self.heard.store(true, Ordering::Relaxed);
        // A worker that does not take them has ended. The parent lives, and what is on its way up must arrive.
        let _ = self.tx.write_all(bytes, None);
        Ok(())
    }

    fn pass_up(&self, bytes: &[u8]) -> io::Result<()> {
        let (stdout, tracker) = &mut *lock(&self.stdout);
        tracker.follow(bytes)?;
        if tracker.is_between() {
            let end = match self.owes_ping.swap(false, Ordering::Relaxed) {
                true => Kind::Ping,
                false => Kind::Noop,
            };
            return stdout.write_all(&[bytes, &newline(end)].concat());
        }
        stdout.write_all(bytes)?;
        // The parent is taking a large result.
        self.heard.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Asks the parent for an answer, after the frame that is being written.
    fn ping(&self) -> io::Result<()> {
        match self.stdout.try_lock() {
            Ok(mut stdout) if stdout.1.is_between() => stdout.0.write_all(&newline(Kind::Ping)),
            _ => {
                self.owes_ping.store(true, Ordering::Relaxed);
                Ok(())
            }
        }
    }
}

/// A frame that ends a line.
fn newline(kind: Kind) -> Vec<u8> {
    frame::of(kind, 0, &b'\n')
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;
    use std::{env, process};

    use super::*;

    /// A line that is never between two frames when it is time for a ping must not end a healthy worker.
    #[test]
    fn a_ping_goes_out_with_the_end_of_the_frame_that_is_in_its_way() {
        let path = env::temp_dir().join(format!("unsync-relay-{}", process::id()));
        let stdout = File::create_new(&path).unwrap();
        let mut written = File::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let (listener, port) = transport::listen("".as_ref()).unwrap();
        let socket = transport::connect(port, "".as_ref()).unwrap();
        let mut command = transport::command().unwrap();
        command.args(["--list", "no such test"]);
        command.stdout(Stdio::null());
        let relay = Relay {
            tx: Link::new(socket, None).tx,
            child: Mutex::new(command.spawn().unwrap()),
            stdout: Mutex::new((stdout, FrameTracker::default())),
            heard: AtomicBool::new(false),
            owes_ping: AtomicBool::new(false),
        };
        drop(listener);
        let mut look = |expected: &[&[u8]]| {
            let mut found = Vec::new();
            written.read_to_end(&mut found).unwrap();
            assert_eq!(found, expected.concat());
        };
        let frame = frame::of(Kind::Done, 1, &7_u64);
        let (first, rest) = frame.split_at(10);
        relay.pass_up(first).unwrap();
        relay.ping().unwrap();
        look(&[first]);
        relay.pass_up(rest).unwrap();
        look(&[rest, &newline(Kind::Ping)]);
        relay.pass_up(&frame).unwrap();
        look(&[&frame, &newline(Kind::Noop)]);
        relay.ping().unwrap();
        look(&[&newline(Kind::Ping)]);
        assert!(lock(&relay.child).wait().unwrap().success());
    }
}
