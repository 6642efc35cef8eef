//! How a worker starts, and how it and its parent find each other.
//!
//! ```text
//!   parent                                         child
//!   starts the child                               …
//!   stdin: the path of the socket ───────────────▶ removes it, whatever happens to the parent
//!   listens
//!   stdin: port, tokens, settings; then EOF ─────▶ connects
//!   checks it ◀────────────────────────── link: its token, on each connection
//!   link: the other token, on each ──────────────▶ checks it
//! ```
//!
//! So nothing secret is in arguments or the environment, a stranger at either end is detected, and the
//! worker's standard input is at its end when the program's own code reads it. Standard output and
//! standard error stay the user's own.

use std::env;
use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::path::{self, PathBuf};
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use super::latch::Latch;
use super::procfs;
use super::transport::{self, Link, Listener, Socket};
use super::wire::Wire;

/// What the parent tells the child on its standard input, after the path of the socket.
struct Handshake {
    /// Set if the parent listens at a port, and not at the path.
    port: Option<u16>,
    /// What the child says first on each connection.
    child: Token,
    /// What the parent answers.
    parent: Token,
    /// The name that the child is to take, see [`procfs::name`].
    name: Vec<u8>,
    config: WorkerConfig,
}

/// The settings that a worker or a relay needs.
#[derive(Clone, Copy)]
pub(super) struct WorkerConfig {
    /// The largest result that it may send.
    pub(super) frame_bytes_max: usize,
    /// The stack of the thread that runs the calls.
    pub(super) stack_size: usize,
    /// How long a wait spins before it parks.
    pub(super) spin: Duration,
    /// A call that runs for longer holds up those behind it, and they are returned.
    pub(super) slow: Duration,
    pub(super) start_timeout: Duration,
    pub(super) host_timeout: Duration,
    pub(super) kill_children: bool,
}

crate::wire!(struct Handshake { port, child, parent, name, config });
crate::wire! {
    struct WorkerConfig {
        frame_bytes_max, stack_size, spin, slow, start_timeout, host_timeout, kill_children,
    }
}

/// 128 random bits, by which one side proves itself to the other.
type Token = u128;

/// Random bits from the only source that std has: the keys of its hash maps.
fn token() -> Token {
    let half = || u128::from(RandomState::new().build_hasher().finish());
    half() << 64 | half()
}

/// A Unix socket and the directory made for it. Removed on drop, if they are there.
struct SocketPath(PathBuf);

impl Drop for SocketPath {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        if let Some(directory) = self.0.parent() {
            let _ = fs::remove_dir(directory);
        }
    }
}

/// No system allows socket paths much longer than this. So the message to the child is short, and the parent
/// can write it before the child reads.
const PATH_MAX: usize = 108;

/// Where the parent listens, if it can: a path that nobody can guess. Empty if it cannot.
fn socket_path() -> SocketPath {
    let is_wanted = env::var_os("UNSYNC_LINK").is_none_or(|link| link != "tcp");
    let path = format!("unsync-{:032x}/link", token());
    // The worker may have another working directory.
    let path = path::absolute(env::temp_dir().join(path)).unwrap_or_default();
    SocketPath(match is_wanted && path.as_os_str().len() < PATH_MAX {
        true => path,
        false => PathBuf::new(),
    })
}

// --------------------------------------------------------------------------------- the parent side

/// How the start of a worker can fail.
pub(super) enum SpawnError {
    /// The operating system refused something.
    Os(io::Error),
    /// The child ended before it connected.
    Died(ExitStatus),
    /// The child did not connect in time, or nobody needs it any more.
    TimedOut,
    /// The process that a launcher started on another host cannot serve.
    Unfit(String),
}

impl From<io::Error> for SpawnError {
    fn from(error: io::Error) -> SpawnError {
        SpawnError::Os(error)
    }
}

/// Waits until a child has connected, for a limited time and while `is_needed`. A child that does not
/// connect is killed and reaped.
///
/// The handshake begins when `ready` opens: a test binary may end before it reads its standard input.
pub(super) fn connect(
    mut child: Child,
    stdin: Box<dyn Write>,
    config: WorkerConfig,
    ready: &Latch,
    is_needed: impl Fn() -> bool,
) -> Result<(Child, Link), SpawnError> {
    let check_time = time_limit(config.start_timeout, is_needed);
    let mut check = || match child.try_wait()? {
        Some(status) => Err(SpawnError::Died(status)),
        None => check_time(),
    };
    let linked = invite(stdin, config, ready, &mut check);
    if linked.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    linked.map(|link| (child, link))
}

/// Fails when there is no reason to wait any longer.
pub(super) type Check<'a> = &'a mut dyn FnMut() -> Result<(), SpawnError>;

/// Fails when the time is up, or nobody needs the child any more.
pub(super) fn time_limit(
    limit: Duration,
    is_needed: impl Fn() -> bool,
) -> impl Fn() -> Result<(), SpawnError> {
    let started = Instant::now();
    move || match is_needed() && started.elapsed() < limit {
        true => Ok(()),
        false => Err(SpawnError::TimedOut),
    }
}

fn invite(
    mut stdin: Box<dyn Write>,
    config: WorkerConfig,
    ready: &Latch,
    check: Check<'_>,
) -> Result<Link, SpawnError> {
    // The path comes first: if this process ends before the handshake, the child removes what is there.
    // Nothing is created there before the child is sure to read this.
    let SocketPath(path) = &socket_path();
    // This fails if the child is gone or has closed its standard input, and the checks notice that.
    let _ = stdin.write_all(&encoded(path));
    while !ready.wait(PAUSE_MAX) {
        check()?;
    }
    let (listener, port) = transport::listen(path)?;
    let handshake = Handshake {
        port,
        child: token(),
        parent: token(),
        name: procfs::name(),
        config,
    };
    // This may fail like the first write.
    let _ = stdin.write_all(&encoded(&handshake));
    drop(stdin);
    let mut accept = || accept(&listener, &handshake, check);
    let first = accept()?;
    Ok(match handshake.port {
        None => Link::new(first, None),
        // The first connection carries what the parent says.
        Some(_) => Link::new(accept()?, Some(first)),
    })
}

/// The shortest and the longest pause between two attempts to accept.
const PAUSE_MIN: Duration = Duration::from_micros(100);
const PAUSE_MAX: Duration = Duration::from_millis(10);

/// Waits for a connection whose other end knows the token.
///
/// Polls, because std has no event for "connected or dead". A child usually connects within a millisecond
/// or two, so the pauses are short at first. They delay a start by a sixteenth at most.
fn accept(
    listener: &Listener,
    handshake: &Handshake,
    check: Check<'_>,
) -> Result<Socket, SpawnError> {
    let started = Instant::now();
    loop {
        match listener() {
            Ok(socket) if greet(&socket, handshake).is_ok() => return Ok(socket),
            // A stranger, or the child has died, which `check` notices.
            Ok(_) => {}
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => {
                    thread::sleep((started.elapsed() / 16).clamp(PAUSE_MIN, PAUSE_MAX));
                }
                // A stranger that is already gone.
                io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                _ => return Err(error.into()),
            },
        }
        check()?;
    }
}

/// How long a connection may stay silent before it says its token.
const GREETING: Duration = Duration::from_secs(1);

fn greet(socket: &Socket, handshake: &Handshake) -> io::Result<()> {
    // On some systems the socket inherits this from the listener.
    socket.set_nonblocking(false)?;
    expect(socket, handshake.child, GREETING)?;
    say(socket, handshake.parent)
}

// ---------------------------------------------------------------------------------- the child side

/// More than a handshake takes.
const HANDSHAKE_MAX: u64 = 64 << 10;
/// How long a worker waits for the answer of a parent that it has reached.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connects to the parent that started this process, as its standard input says.
pub(super) fn connect_back() -> io::Result<(Link, WorkerConfig)> {
    let mut bytes = Vec::new();
    // Somebody may have started this by hand, with a standard input that has no end.
    let stdin = transport::stdin()?;
    stdin.take(HANDSHAKE_MAX).read_to_end(&mut bytes)?;
    let mut bytes = bytes.as_slice();
    // No other process connects to the socket, and the parent may be gone and unable to remove it.
    let SocketPath(path) = &SocketPath(PathBuf::decode(&mut bytes)?);
    let handshake = Handshake::decode(&mut bytes)?;
    procfs::set_name(&handshake.name);
    let connect = || -> io::Result<Socket> {
        let socket = transport::connect(handshake.port, path)?;
        say(&socket, handshake.child)?;
        Ok(socket)
    };
    let incoming = connect()?;
    let outgoing = handshake.port.map(|_| connect()).transpose()?;
    for socket in [&incoming].into_iter().chain(&outgoing) {
        // The real parent may be gone, and a stranger may listen at its port.
        expect(socket, handshake.parent, PATIENCE)?;
    }
    Ok((Link::new(incoming, outgoing), handshake.config))
}

// --------------------------------------------------------------------------------- the messages

pub(super) fn encoded(what: &impl Wire) -> Vec<u8> {
    let mut bytes = Vec::new();
    what.encode(&mut bytes);
    bytes
}

fn say(mut socket: &Socket, token: Token) -> io::Result<()> {
    // Nothing else is in transit, so there is room for the token.
    socket.write_all(&token.to_le_bytes())
}

/// Reads a token, waiting up to `limit` for each part of it; any other token is an error.
fn expect(mut socket: &Socket, token: Token, limit: Duration) -> io::Result<()> {
    let mut found = [0; size_of::<Token>()];
    socket.set_read_timeout(Some(limit))?;
    socket.read_exact(&mut found)?;
    match found == token.to_le_bytes() {
        true => socket.set_read_timeout(None),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;
    use std::sync::Arc;

    use super::super::latch::Opener;
    use super::*;

    /// An error of the write would hide how the child ended.
    #[test]
    fn a_child_that_is_gone_before_it_is_told_anything_has_died() {
        let mut command = transport::command().unwrap();
        command.args(["--list", "no such test"]);
        command.stdout(Stdio::null());
        let (mut child, stdin) = transport::spawn(command).unwrap();
        let ended = child.wait().unwrap();
        let config = WorkerConfig {
            frame_bytes_max: 1 << 20,
            stack_size: 1 << 20,
            spin: Duration::ZERO,
            slow: Duration::ZERO,
            start_timeout: Duration::from_secs(60),
            host_timeout: Duration::ZERO,
            kill_children: false,
        };
        let ready = Arc::<Latch>::default();
        drop(Opener(Arc::clone(&ready)));
        let connected = connect(child, stdin, config, &ready, || true);
        match connected.map(drop) {
            Err(SpawnError::Died(status)) => assert_eq!(status, ended),
            Err(SpawnError::Os(error)) => panic!("{error}"),
            _ => panic!("it has not connected"),
        }
    }
}
