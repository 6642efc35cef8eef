//! How a worker starts, and how it and its parent find each other.
//!
//! ```text
//!   parent                                         child
//!   starts the child                               …
//!   stdin: the path of the socket ───────────────▶ removes it, whatever happens to the parent
//!   listens
//!   stdin: endpoint, tokens, settings; then EOF ─▶ connects
//!   checks it ◀────────────────────────── link: a token on each connection
//!   link: the other token of each ───────────────▶ checks it
//! ```
//!
//! So nothing secret is in arguments or the environment, a stranger at either end is found out, and the
//! worker's standard input is at its end when the program's own code reads it. Standard output and
//! standard error stay the user's own.

use std::convert::Infallible;
use std::env;
use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::path::{self, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::procfs;
use super::transport::{self, Endpoint, Link, Listener, Socket};
use super::wire::Wire;

/// What the parent tells the child on its standard input, after the path of the socket.
struct Handshake {
    endpoint: Endpoint,
    /// One for a Unix socket. Two for TCP: the first connection is for what the parent says.
    tokens: Vec<Tokens>,
    /// What the child is to be called, as in [`procfs::name`].
    name: Vec<u8>,
    config: WorkerConfig,
}

/// The settings that a worker needs.
#[derive(Clone, Copy)]
pub(super) struct WorkerConfig {
    /// The largest result that it may send.
    pub(super) frame_bytes_max: u64,
    /// The stack of the thread that runs the calls.
    pub(super) stack_size: u64,
    /// How long a wait looks before it parks.
    pub(super) spin: Duration,
}

crate::wire!(struct Handshake { endpoint, tokens, name, config });
crate::wire!(struct WorkerConfig { frame_bytes_max, stack_size, spin });

/// 128 random bits, by which one side proves itself to the other.
type Token = u128;

/// What the child says first on a connection, and what the parent answers.
type Tokens = (Token, Token);

/// Random bits from the only source that std has: the keys of its hash maps.
fn token() -> Token {
    let half = || u128::from(RandomState::new().build_hasher().finish());
    half() << 64 | half()
}

/// A Unix socket and the directory made for it. Removed when this is dropped, if they are there.
struct SocketPath(PathBuf);

impl Drop for SocketPath {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        if let Some(directory) = self.0.parent() {
            let _ = fs::remove_dir(directory);
        }
    }
}

/// No system has sockets with longer paths than about this. So what the child is told is short, and the
/// parent can write it before the child reads.
const PATH_MAX: usize = 108;

/// Where the parent listens, if it can: a name that nobody can guess.
fn socket_path() -> Option<SocketPath> {
    let is_wanted =
        transport::HAS_PATHS && env::var_os("UNSYNC_LINK").is_none_or(|link| link != "tcp");
    // The worker may have another working directory.
    let temporary = path::absolute(env::temp_dir()).ok()?;
    let path = temporary.join(format!("unsync-{:032x}", token()));
    let path = path.join("link");
    (is_wanted && path.as_os_str().len() < PATH_MAX).then(|| SocketPath(path))
}

// --------------------------------------------------------------------------------- the parent side

/// How the start of a worker can fail.
pub(super) enum SpawnError {
    /// The operating system refused something.
    Os(io::Error),
    /// The child ended before it connected.
    Died(ExitStatus),
    /// The child did not connect in time.
    TimedOut,
    /// Nobody needs the child any more.
    Unneeded,
}

impl From<io::Error> for SpawnError {
    fn from(error: io::Error) -> SpawnError {
        SpawnError::Os(error)
    }
}

/// A child that has not connected yet.
pub(super) struct Starting {
    pub(super) child: Child,
    stdin: Box<dyn Write>,
}

impl Starting {
    pub(super) fn spawn(command: Command) -> io::Result<Starting> {
        let (child, stdin) = transport::spawn(command)?;
        Ok(Starting { child, stdin })
    }

    /// Waits until the child has connected, for `limit` at most and while `is_needed`. A child that does
    /// not connect is killed and reaped.
    ///
    /// The handshake begins when `ready` is disconnected: a test binary may end before it reads its
    /// standard input.
    pub(super) fn connect(
        self,
        config: WorkerConfig,
        limit: Duration,
        ready: &Receiver<Infallible>,
        is_needed: impl Fn() -> bool,
    ) -> Result<(Child, Link), SpawnError> {
        let Starting { mut child, stdin } = self;
        let deadline = Instant::now().checked_add(limit);
        let mut check = || {
            if let Some(status) = child.try_wait()? {
                return Err(SpawnError::Died(status));
            }
            if deadline.is_some_and(|at| at <= Instant::now()) {
                return Err(SpawnError::TimedOut);
            }
            match is_needed() {
                true => Ok(()),
                false => Err(SpawnError::Unneeded),
            }
        };
        let linked = invite(stdin, config, ready, &mut check);
        if linked.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        linked.map(|link| (child, link))
    }
}

/// Fails when there is no reason to wait any longer.
type Check<'a> = &'a mut dyn FnMut() -> Result<(), SpawnError>;

fn invite(
    mut stdin: Box<dyn Write>,
    config: WorkerConfig,
    ready: &Receiver<Infallible>,
    check: Check<'_>,
) -> Result<Link, SpawnError> {
    // The path comes first: if this process ends before the handshake, the child removes what is there.
    // Nothing is created there before the child is sure to read this.
    let path = socket_path();
    // This fails if the child is gone or has closed its standard input, and the checks notice that.
    let _ = stdin.write_all(&encoded(&path.as_ref().map(|path| path.0.clone())));
    while let Err(RecvTimeoutError::Timeout) = ready.recv_timeout(PAUSE_MAX) {
        check()?;
    }
    let listener = Listener::open(path.as_ref().map(|path| &*path.0))?;
    let endpoint = listener.endpoint()?;
    let first = (token(), token());
    let second = matches!(endpoint, Endpoint::Tcp(_)).then(|| (token(), token()));
    let handshake = Handshake {
        endpoint,
        tokens: [first].into_iter().chain(second).collect(),
        name: procfs::name(),
        config,
    };
    // As above.
    let _ = stdin.write_all(&encoded(&handshake));
    drop(stdin);
    let first = accept(&listener, first, check)?;
    Ok(match second {
        None => Link::new(first, None),
        Some(second) => Link::new(accept(&listener, second, check)?, Some(first)),
    })
}

/// The shortest and the longest pause between two attempts to accept.
const PAUSE_MIN: Duration = Duration::from_micros(100);
const PAUSE_MAX: Duration = Duration::from_millis(10);

/// Waits for the connection of the one who knows the token.
///
/// Polls, because std has no event for "connected or dead". A child usually connects within a millisecond
/// or two, so the pauses are short at first. They delay a start by a sixteenth at most.
fn accept(listener: &Listener, tokens: Tokens, check: Check<'_>) -> Result<Socket, SpawnError> {
    let started = Instant::now();
    loop {
        match listener.accept() {
            Ok(socket) => {
                // Otherwise it was a stranger, or the child has died, as the check tells.
                if greet(&socket, tokens).is_ok() {
                    return Ok(socket);
                }
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => {
                    thread::sleep((started.elapsed() / 16).clamp(PAUSE_MIN, PAUSE_MAX));
                }
                // A stranger that has gone again.
                io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                _ => return Err(error.into()),
            },
        }
        check()?;
    }
}

/// How long a connection may take to say its token.
const GREETING: Duration = Duration::from_secs(1);

fn greet(socket: &Socket, (child, parent): Tokens) -> io::Result<()> {
    // Some systems let it inherit this from the listener.
    socket.set_nonblocking(false)?;
    expect(socket, child, GREETING)?;
    say(socket, parent)
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
    // No other process connects there, and the parent may be gone and unable to remove it.
    let path = decoded::<Option<PathBuf>>(&mut bytes)?.map(SocketPath);
    let handshake: Handshake = decoded(&mut bytes)?;
    procfs::set_name(&handshake.name);
    let mut sockets = Vec::new();
    for (child, parent) in handshake.tokens {
        let socket = handshake.endpoint.connect().map_err(|error| {
            match (&handshake.endpoint, &path) {
                // The parent comes to this only if it could not have that.
                (Endpoint::Tcp(_), Some(SocketPath(path))) => {
                    let text = format!("{error}; `{}` could not be made", path.display());
                    io::Error::new(error.kind(), text)
                }
                _ => error,
            }
        })?;
        say(&socket, child)?;
        sockets.push((socket, parent));
    }
    for (socket, parent) in &sockets {
        // The real parent may be gone, and a stranger at its port.
        expect(socket, *parent, PATIENCE)?;
    }
    let mut sockets = sockets.into_iter().map(|(socket, _)| socket);
    let incoming = sockets.next().ok_or(io::ErrorKind::InvalidData)?;
    Ok((Link::new(incoming, sockets.next()), handshake.config))
}

// --------------------------------------------------------------------------------- the messages

fn encoded(what: &impl Wire) -> Vec<u8> {
    let mut bytes = Vec::new();
    what.encode(&mut bytes);
    bytes
}

fn decoded<T: Wire>(bytes: &mut &[u8]) -> io::Result<T> {
    T::decode(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn say(mut socket: &Socket, token: Token) -> io::Result<()> {
    // Nothing else is in transit: there is room for it.
    socket.write_all(&token.to_le_bytes())
}

/// Reads a token within the limit; any other is an error.
fn expect(mut socket: &Socket, token: Token, limit: Duration) -> io::Result<()> {
    let mut found = [0; size_of::<Token>()];
    let (mut filled, started) = (0, Instant::now());
    while filled < found.len() {
        let left = limit.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut found[filled..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => filled += read,
        }
    }
    match found == token.to_le_bytes() {
        true => socket.set_read_timeout(None),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;
    use std::sync::mpsc;

    use super::*;

    /// The error of the write would hide how the child ended.
    #[test]
    fn a_child_that_is_gone_before_it_is_told_anything_has_died() {
        let mut command = transport::command().unwrap();
        command.args(["--list", "no such test"]);
        command.stdout(Stdio::null());
        let mut starting = Starting::spawn(command).unwrap();
        let ended = starting.child.wait().unwrap();
        let config = WorkerConfig {
            frame_bytes_max: 1 << 20,
            stack_size: 1 << 20,
            spin: Duration::ZERO,
        };
        let ready = mpsc::channel().1;
        let connected = starting.connect(config, Duration::from_secs(60), &ready, || true);
        match connected.map(drop) {
            Err(SpawnError::Died(status)) => assert_eq!(status, ended),
            Err(SpawnError::Os(error)) => panic!("{error}"),
            _ => panic!("it has not connected"),
        }
    }
}
