//! The byte link between the parent and a worker, and everything else that differs by platform.
//!
//! Connect-back: the parent listens, on Unix at a socket in a directory that only its user may enter,
//! elsewhere and as a fallback on loopback TCP. The child learns the address and a secret from its
//! standard input, which then ends, so that the program's own code finds nothing there to read. Both
//! sides prove that they know the secret. Standard output and standard error stay the user's own.
//!
//! Why not hand a socket pair to the child as its standard input and be done: a process started by
//! the program's own code inherits that, holds it open, and hides the death of the worker. A socket
//! that the child opens itself is closed on exec.
//!
//! Over TCP a link is two connections, one for each direction. A process that ends with something
//! unread resets that connection, and a reset throws away what is under way on it, either way: so what
//! workers say has a connection on which nobody ever says anything to them.

use std::borrow::Cow;
use std::convert::Infallible;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

#[cfg(unix)]
use std::os::unix::net::{UnixListener, UnixStream};

use super::frame::Source;
use super::wire::Wire;
use crate::spin::Spin;

/// What proves to the other side who one is: 128 random bits.
type Secret = u128;

/// What the child says first on a connection, and what the parent answers.
type Secrets = (Secret, Secret);

/// Random bits from the only source that std has: the keys of its hash maps.
fn secret() -> Secret {
    let half = || u128::from(RandomState::new().build_hasher().finish());
    half() << 64 | half()
}

fn secrets() -> Secrets {
    (secret(), secret())
}

// ------------------------------------------------------------------------------------- the stream

/// A connected link. Read by one thread, written by any, one at a time.
pub(crate) struct Stream {
    incoming: Connection,
    /// Over TCP. A Unix socket is both.
    outgoing: Option<Connection>,
}

enum Connection {
    #[cfg(unix)]
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// What a link holds for sure while its other side does not read: a write of so much does not block. A
/// Unix socket of macOS and the BSDs holds 8 KiB.
pub(crate) const ROOM: usize = match cfg!(any(target_os = "linux", target_os = "android", windows))
{
    true => 64 << 10,
    false => 4 << 10,
};

/// Calls the same method whatever the connection is.
macro_rules! on {
    ($connection:expr, $inner:ident => $call:expr) => {
        match $connection {
            #[cfg(unix)]
            Connection::Unix($inner) => $call,
            Connection::Tcp($inner) => $call,
        }
    };
}

impl Connection {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        on!(self, stream => { let mut stream = stream; stream.read(buffer) })
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        on!(self, stream => { let mut stream = stream; stream.write(bytes) })
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        on!(self, stream => stream.set_nonblocking(nonblocking))
    }

    /// How long a read may block; `None` for ever.
    fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        on!(self, stream => stream.set_read_timeout(limit))
    }

    fn shut_down(&self, how: Shutdown) {
        // It fails only if the other side has ended it before.
        let _ = on!(self, stream => stream.shutdown(how));
    }
}

impl Stream {
    fn outgoing(&self) -> &Connection {
        self.outgoing.as_ref().unwrap_or(&self.incoming)
    }

    /// Writes everything.
    ///
    /// The reader may have made a Unix socket non-blocking for the moment that it spins; so a full
    /// one is tried again until the reader has ended its spin and the write can block.
    pub(crate) fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        self.write_all_unless(bytes, || {
            thread::yield_now();
            Ok(())
        })
    }

    /// The same, for one who can do something about a full socket: `full` is called for each write
    /// that found no room, and ends it all with an error.
    pub(crate) fn write_all_unless(
        &self,
        mut bytes: &[u8],
        mut full: impl FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.outgoing().write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_full(&error) => full()?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// How long a write may find no room; `None` for ever.
    pub(crate) fn set_write_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        on!(self.outgoing(), stream => stream.set_write_timeout(limit))
    }

    /// Ends the link towards the other side: it finds the end when it has read what is under way.
    pub(crate) fn shut_down_writing(&self) {
        self.outgoing().shut_down(Shutdown::Write);
    }

    /// Ends the link in both directions. The thread that reads it finds its end.
    pub(crate) fn shut_down(&self) {
        self.incoming.shut_down(Shutdown::Both);
        self.outgoing().shut_down(Shutdown::Both);
    }
}

/// Whether a write found no room, at once or for as long as it may wait.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// The reading end. Looks a few times before it blocks.
pub(crate) struct Reader<'a> {
    incoming: &'a Connection,
    spin: Spin,
    nonblocking: bool,
    timeout: Option<Duration>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(stream: &'a Stream) -> Reader<'a> {
        Reader {
            incoming: &stream.incoming,
            spin: Spin::new(),
            nonblocking: false,
            timeout: None,
        }
    }

    /// For a write that this thread is about to make and that may take long.
    pub(crate) fn make_blocking(&mut self) {
        self.switch(false);
    }

    /// How long a read may block; `None` for ever.
    pub(crate) fn set_timeout(&mut self, limit: Option<Duration>) {
        if self.timeout != limit {
            // It fails only on a link that has ended, as the next read tells.
            let _ = self.incoming.set_read_timeout(limit);
            self.timeout = limit;
        }
    }

    fn switch(&mut self, nonblocking: bool) {
        if self.nonblocking != nonblocking {
            // As above.
            let _ = self.incoming.set_nonblocking(nonblocking);
            self.nonblocking = nonblocking;
        }
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut read = None;
        if self.spin.pays() {
            self.switch(true);
            read = self.spin.look(|| look(self.incoming, buffer));
        }
        read.unwrap_or_else(|| {
            self.switch(false);
            self.incoming.read(buffer)
        })
    }
}

/// Reads what is there, if anything is.
fn look(incoming: &Connection, buffer: &mut [u8]) -> Option<io::Result<usize>> {
    match incoming.read(buffer) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        read => Some(read),
    }
}

impl Source for Reader<'_> {
    /// Blocks at once: more bytes come than one look finds. Straight from the stream into the memory:
    /// a reader in between would have std fill that with zeros first.
    fn read_many(&mut self, count: usize, into: &mut Vec<u8>) -> io::Result<()> {
        self.switch(false);
        on!(self.incoming, stream => stream.take(count as u64).read_to_end(into)).map(drop)
    }
}

// --------------------------------------------------------------------------------- the parent side

/// What the child is told on its standard input: how to connect, the secrets, and settings.
struct Invitation {
    /// Of the connection on which the child is told what to do.
    secrets: Secrets,
    /// Where the parent listens on loopback, and the secrets of the connection on which it wants to hear
    /// the child. Else it listens at the place told before, and one connection is enough.
    loopback: Option<(u16, Secrets)>,
    /// What the child is to be called, as in [`name`].
    name: Vec<u8>,
    terms: Terms,
}

/// What a worker has to go by.
#[derive(Clone, Copy)]
pub(crate) struct Terms {
    /// The largest result that it may send.
    pub(crate) frame_bytes_max: u64,
    /// The stack of the thread that runs the calls.
    pub(crate) stack_size: u64,
    /// How long a wait looks before it parks.
    pub(crate) spin: Duration,
}

crate::wire!(struct Invitation { secrets, loopback, name, terms });
crate::wire!(struct Terms { frame_bytes_max, stack_size, spin });

enum Listener {
    #[cfg(unix)]
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

/// Where the parent will listen, if it can: a name that nobody can guess.
#[cfg(unix)]
fn place() -> Option<PathBuf> {
    let wanted = env::var_os("UNSYNC_LINK").is_none_or(|link| link != "tcp");
    // The worker may have another working directory.
    let temporary = std::path::absolute(env::temp_dir()).ok()?;
    let directory = temporary.join(format!("unsync-{:032x}", secret()));
    wanted.then(|| directory.join("link"))
}

#[cfg(not(unix))]
fn place() -> Option<PathBuf> {
    None
}

impl Listener {
    fn open(place: Option<PathBuf>) -> io::Result<Listener> {
        #[cfg(unix)]
        let refused = match place.map(Listener::open_unix) {
            Some(Ok(listener)) => return Ok(listener),
            Some(Err(error)) => Some(error),
            None => None,
        };
        #[cfg(not(unix))]
        let refused: Option<io::Error> = place.and(None);
        Listener::open_loopback().map_err(|error| match refused {
            Some(refused) => io::Error::new(error.kind(), format!("{error}; {refused}")),
            None => error,
        })
    }

    fn open_loopback() -> io::Result<Listener> {
        let loopback = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let listener = TcpListener::bind(loopback).map_err(|error| of(&loopback, error))?;
        listener.set_nonblocking(true)?;
        Ok(Listener::Tcp(listener))
    }

    fn port(&self) -> io::Result<Option<u16>> {
        match self {
            #[cfg(unix)]
            Listener::Unix(..) => Ok(None),
            Listener::Tcp(listener) => Ok(Some(listener.local_addr()?.port())),
        }
    }

    #[cfg(unix)]
    fn open_unix(path: PathBuf) -> io::Result<Listener> {
        use std::os::unix::fs::DirBuilderExt;
        let bound = || {
            let directory = path.parent().ok_or(io::ErrorKind::NotFound)?;
            fs::DirBuilder::new().mode(0o700).create(directory)?;
            let listener = UnixListener::bind(&path)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        match bound() {
            Ok(listener) => Ok(Listener::Unix(listener, path)),
            Err(error) => {
                remove(&path);
                Err(of(&path.display(), error))
            }
        }
    }

    fn accept(&self) -> io::Result<Connection> {
        match self {
            #[cfg(unix)]
            Listener::Unix(listener, _) => Ok(Connection::Unix(listener.accept()?.0)),
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                // It fails only on a connection that has ended, as the first read tells.
                let _ = stream.set_nodelay(true);
                Ok(Connection::Tcp(stream))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        #[cfg(unix)]
        if let Listener::Unix(_, path) = self {
            remove(path);
        }
    }
}

/// The error of what was tried with something, which it names.
fn of(what: &dyn Display, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("`{what}`: {error}"))
}

/// Removes a socket and the directory made for it. What is not there need not be removed.
#[cfg(unix)]
fn remove(path: &Path) {
    let _ = fs::remove_file(path);
    if let Some(directory) = path.parent() {
        let _ = fs::remove_dir(directory);
    }
}

/// How long the parent waits for a child to connect before it looks for itself.
const MOMENT: Duration = Duration::from_millis(if cfg!(unix) { 10 } else { 1 });

/// The parent's end of the child's standard input.
struct Lead {
    #[cfg(unix)]
    stream: UnixStream,
    /// The child has ended its direction: this event is used up.
    #[cfg(unix)]
    ended: bool,
}

#[cfg(unix)]
impl Lead {
    /// On Unix a socket pair: the child ends its direction when it has connected, or dies. So there is
    /// an event to wait for, and no polling.
    fn attach(command: &mut Command) -> io::Result<Lead> {
        let (stream, theirs) = UnixStream::pair()?;
        stream.set_read_timeout(Some(MOMENT))?;
        command.stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
        Ok(Lead {
            stream,
            ended: false,
        })
    }

    fn tell(&mut self, _child: &mut Child, what: &impl Wire) -> io::Result<()> {
        self.stream.write_all(&encoded(what))
    }

    fn end(&mut self, _child: &mut Child) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Waits until the child has connected, or for a moment.
    fn wait(&mut self) {
        match self.ended {
            true => thread::sleep(MOMENT),
            false => self.ended = matches!(self.stream.read(&mut [0]), Ok(0)),
        }
    }
}

#[cfg(not(unix))]
impl Lead {
    fn attach(command: &mut Command) -> io::Result<Lead> {
        command.stdin(Stdio::piped());
        Ok(Lead {})
    }

    fn tell(&mut self, child: &mut Child, what: &impl Wire) -> io::Result<()> {
        match &mut child.stdin {
            Some(stdin) => stdin.write_all(&encoded(what)),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn end(&mut self, child: &mut Child) -> io::Result<()> {
        child.stdin = None;
        Ok(())
    }

    /// std has no event for "connected or dead" here; a process is started rarely.
    fn wait(&mut self) {
        thread::sleep(MOMENT);
    }
}

fn encoded(what: &impl Wire) -> Vec<u8> {
    let mut bytes = Vec::new();
    what.encode(&mut bytes);
    bytes
}

/// How the start of a worker can fail.
pub(crate) enum Refusal {
    /// The operating system refused something.
    Os(io::Error),
    /// The child ended before it connected.
    Died(ExitStatus),
    /// The child did not connect in time.
    Silent,
    /// Nobody wants the child any more.
    Unwanted,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal::Os(error)
    }
}

/// Starts a child, and waits until it has connected. `born` sees it before that, and gives what ends when
/// nothing of its own keeps the child from reading its invitation any more; it is given up when it is
/// not `wanted` any more.
pub(crate) fn launch(
    mut command: Command,
    terms: Terms,
    limit: Duration,
    born: impl FnOnce(&mut Child) -> Receiver<Infallible>,
    wanted: impl Fn() -> bool,
) -> Result<(Child, Stream), Refusal> {
    let deadline = Instant::now().checked_add(limit);
    let lead = Lead::attach(&mut command)?;
    own_group(&mut command);
    let mut child = command.spawn()?;
    // The command still holds the child's end of the lead.
    drop(command);
    // While the child comes up: it asks for the invitation when it is there.
    let coming = born(&mut child);
    let mut arrival = Arrival {
        lead,
        child,
        deadline,
        wanted,
    };
    match arrival.invite(terms, &coming) {
        Ok(stream) => Ok((arrival.child, stream)),
        Err(refusal) => {
            let _ = arrival.child.kill();
            match (arrival.child.wait(), refusal) {
                // A child that is gone explains more than the broken pipe to it.
                (Ok(status), Refusal::Os(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                    Err(Refusal::Died(status))
                }
                (_, refusal) => Err(refusal),
            }
        }
    }
}

/// A child that has not connected yet.
struct Arrival<W> {
    lead: Lead,
    child: Child,
    deadline: Option<Instant>,
    wanted: W,
}

impl<W: Fn() -> bool> Arrival<W> {
    fn invite(&mut self, terms: Terms, coming: &Receiver<Infallible>) -> Result<Stream, Refusal> {
        // First of all the place: should this process end before it has invited the child, the child
        // clears it up. And nothing is made there before the child is sure to come to that.
        let place = place();
        self.lead.tell(&mut self.child, &place)?;
        while let Err(RecvTimeoutError::Timeout) = coming.recv_timeout(MOMENT) {
            self.go_on()?;
        }
        let listener = Listener::open(place)?;
        let invitation = Invitation {
            secrets: secrets(),
            loopback: listener.port()?.map(|port| (port, secrets())),
            name: name(),
            terms,
        };
        self.lead.tell(&mut self.child, &invitation)?;
        self.lead.end(&mut self.child)?;
        let first = self.meet(&listener, invitation.secrets)?;
        Ok(match invitation.loopback {
            None => Stream {
                incoming: first,
                outgoing: None,
            },
            Some((_, secrets)) => Stream {
                incoming: self.meet(&listener, secrets)?,
                outgoing: Some(first),
            },
        })
    }

    /// Waits for the connection of the one who knows the secret.
    fn meet(&mut self, listener: &Listener, secrets: Secrets) -> Result<Connection, Refusal> {
        loop {
            match listener.accept() {
                Ok(connection) => {
                    // Without it was a stranger, or the child died: which of them is seen below.
                    if shake_hands(&connection, secrets).is_ok() {
                        return Ok(connection);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.lead.wait();
                }
                // A stranger that has thought better of it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
            self.go_on()?;
        }
    }

    /// Whether there is a reason to wait for longer.
    fn go_on(&mut self) -> Result<(), Refusal> {
        if let Some(status) = self.child.try_wait()? {
            return Err(Refusal::Died(status));
        }
        if self.deadline.is_some_and(|at| at <= Instant::now()) {
            return Err(Refusal::Silent);
        }
        if !(self.wanted)() {
            return Err(Refusal::Unwanted);
        }
        Ok(())
    }
}

/// The first bytes of a connection: the child's secret, answered by the parent's.
fn shake_hands(connection: &Connection, (child, parent): Secrets) -> io::Result<()> {
    connection.set_nonblocking(false)?;
    expect_secret(connection, child, Duration::from_secs(1))?;
    say_secret(connection, parent)
}

fn say_secret(connection: &Connection, secret: Secret) -> io::Result<()> {
    let bytes = secret.to_le_bytes();
    // Nothing else is on its way: there is room for it.
    match connection.write(&bytes)? == bytes.len() {
        true => Ok(()),
        false => Err(io::ErrorKind::WriteZero.into()),
    }
}

fn expect_secret(connection: &Connection, expected: Secret, limit: Duration) -> io::Result<()> {
    let mut found = [0; size_of::<Secret>()];
    let (mut filled, started) = (0, Instant::now());
    while filled < found.len() {
        let left = limit.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        connection.set_read_timeout(Some(left))?;
        match connection.read(&mut found[filled..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => filled += read,
        }
    }
    match found == expected.to_le_bytes() {
        true => connection.set_read_timeout(None),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

/// A command that starts the executable of this process. On Linux by a name that stays valid when the
/// file is replaced or deleted, and then still means the very same program.
pub(crate) fn command() -> io::Result<Command> {
    #[cfg(target_os = "linux")]
    let command = Command::new("/proc/self/exe");
    #[cfg(not(target_os = "linux"))]
    let command = Command::new(env::current_exe()?);
    Ok(named(command))
}

/// Has the arguments in the list of processes begin with the name of the program.
fn named(command: Command) -> Command {
    #[cfg(unix)]
    if let Some(name) = env::args_os().next() {
        let mut command = command;
        std::os::unix::process::CommandExt::arg0(&mut command, name);
        return command;
    }
    command
}

/// Linux only: the name of a process in `top`, `pgrep` and the log of the kernel.
const NAME: &str = "/proc/self/comm";

/// What this process is called, and its workers are to be; empty where that is not known. By itself a
/// process that was started as `/proc/self/exe` is called `exe`.
fn name() -> Vec<u8> {
    let line = fs::read(NAME).unwrap_or_default();
    line.trim_ascii_end().to_vec()
}

/// The same executable by a name that means it in other processes too, for a command that wraps it.
///
/// On Linux that is its path while the file there is the very same; else the name by which this process
/// has it, which is valid as long as this process lives.
pub(crate) fn executable() -> io::Result<PathBuf> {
    let path = env::current_exe();
    #[cfg(target_os = "linux")]
    if !path
        .as_ref()
        .is_ok_and(|path| is_same_file(path, "/proc/self/exe"))
    {
        return Ok(format!("/proc/{}/exe", std::process::id()).into());
    }
    path
}

/// The executable of this process and the file that this code is in, if that is another one: under a
/// loader that was started by itself, or in a library that some program has loaded. Known on Linux.
pub(crate) fn loader() -> Option<(PathBuf, PathBuf)> {
    let executable = fs::read_link("/proc/self/exe").ok()?;
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let here = loader as *const () as usize;
    let file = maps.lines().find_map(|line| {
        let (start, rest) = line.split_once('-')?;
        let (end, rest) = rest.split_once(' ')?;
        let [start, end] = [start, end].map(|address| usize::from_str_radix(address, 16));
        let holds = (start.ok()?..end.ok()?).contains(&here);
        let path = &rest[rest.find('/')?..];
        holds.then(|| PathBuf::from(path))
    })?;
    (file != executable).then_some((executable, file))
}

#[cfg(target_os = "linux")]
fn is_same_file(one: &Path, other: &str) -> bool {
    identity(fs::metadata(one)).is_some_and(|file| identity(fs::metadata(other)) == Some(file))
}

/// What tells a file from every other.
#[cfg(unix)]
fn identity(file: io::Result<fs::Metadata>) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    file.map(|file| (file.dev(), file.ino())).ok()
}

/// Whether this is how a link ends when the other side is gone.
pub(crate) fn is_end(error: &io::Error) -> bool {
    let ends = [
        io::ErrorKind::UnexpectedEof,
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::ConnectionAborted,
        io::ErrorKind::BrokenPipe,
    ];
    ends.contains(&error.kind())
}

/// Whether a link that ended so may have lost what the other side said last: on Windows a process that
/// ends without a word resets its connections, and that throws away what was not read yet. Then nobody
/// knows what had started.
pub(crate) fn loses_frames(error: &io::Error) -> bool {
    let lost = [
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::ConnectionAborted,
    ];
    cfg!(windows) && lost.contains(&error.kind())
}

/// Whether a process that ended so has aborted.
pub(crate) fn is_abort(status: ExitStatus) -> bool {
    #[cfg(unix)]
    {
        const SIGABRT: i32 = 6;
        std::os::unix::process::ExitStatusExt::signal(&status) == Some(SIGABRT)
    }
    #[cfg(not(unix))]
    {
        // What Windows ends a process with that calls `__fastfail`, as std does.
        const STATUS_STACK_BUFFER_OVERRUN: u32 = 0xC000_0409;
        status.code() == Some(STATUS_STACK_BUFFER_OVERRUN as i32)
    }
}

/// Whether a child of this process has ended, without reaping it. Known on Linux; nothing is known of one
/// that was reaped.
pub(crate) fn has_ended(child: u32) -> Option<bool> {
    let stat = fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
    // The name before may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let (state, parent) = (fields.next()?, fields.next()?);
    (parent == std::process::id().to_string()).then_some(matches!(state, "Z" | "X"))
}

/// Kills the processes that a worker started, as far as they stayed in its group. The worker must not be
/// reaped. std can signal one process only, so this costs the start of a program.
pub(crate) fn kill_children(worker: u32) {
    if cfg!(target_os = "linux") && has_ended(worker).is_none() {
        // Somebody else has reaped it: a program that ignores SIGCHLD has the system do so.
        return;
    }
    let mut command = match cfg!(windows) {
        true => Command::new("taskkill"),
        false => Command::new("kill"),
    };
    match cfg!(windows) {
        true => command.args(["/T", "/F", "/PID"]).arg(worker.to_string()),
        false => command.args(["-KILL", "--"]).arg(format!("-{worker}")),
    };
    // It fails if the group is empty, which is what is wanted.
    let _ = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// The resident memory of a process. Known on Linux.
pub(crate) fn resident_bytes(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// Whether a signal has stopped a process, as a terminal does it to one in the background that reads from
/// it. Known on Linux.
pub(crate) fn is_stopped(process: u32) -> bool {
    let stat = fs::read(format!("/proc/{process}/stat")).unwrap_or_default();
    // The state comes behind the name, which stands in parentheses and may be anything.
    let stat = String::from_utf8_lossy(&stat);
    stat.rsplit_once(") ")
        .is_some_and(|(_, fields)| fields.starts_with('T'))
}

/// A group of its own: Ctrl-C reaches the parent only, and what that does then decides.
fn own_group(command: &mut Command) {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    #[cfg(windows)]
    {
        const CREATE_NEW_PROCESS_GROUP: u32 = 0x0000_0200;
        std::os::windows::process::CommandExt::creation_flags(command, CREATE_NEW_PROCESS_GROUP);
    }
}

// ---------------------------------------------------------------------------------- the child side

/// More than an invitation takes: paths are shorter than this.
const INVITATION_MAX: u64 = 64 << 10;

/// Accepts the invitation that stands on the standard input of this process.
pub(crate) fn connect() -> io::Result<(Stream, Terms)> {
    let mut bytes = Vec::new();
    // Somebody may have started this by hand, and what stands there may have no end.
    let stdin = duplicate(&io::stdin())?;
    stdin.take(INVITATION_MAX).read_to_end(&mut bytes)?;
    let mut told = bytes.as_slice();
    let place: Option<PathBuf> = decoded(&mut told)?;
    let connected = accept(&mut told, place.as_deref());
    #[cfg(unix)]
    if let Some(path) = &place {
        // Nobody else comes this way, and the parent may be gone and unable to do this.
        remove(path);
    }
    connected
}

fn decoded<T: Wire>(bytes: &mut &[u8]) -> io::Result<T> {
    T::decode(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// How long a worker waits for the answer of a parent that it has reached.
const PATIENCE: Duration = Duration::from_secs(60);

fn accept(told: &mut &[u8], place: Option<&Path>) -> io::Result<(Stream, Terms)> {
    let invitation: Invitation = decoded(told)?;
    if !invitation.name.is_empty() {
        // Without it the process is called something else, and works as well.
        let _ = fs::write(NAME, &invitation.name);
    }
    let port = invitation.loopback.map(|(port, _)| port);
    let knock = |(child, _): Secrets| {
        let connection = connect_to(port, place)?;
        say_secret(&connection, child)?;
        io::Result::Ok(connection)
    };
    // The parent may be gone, and a stranger at its port.
    let expect_answer =
        |connection: &Connection, (_, parent): Secrets| expect_secret(connection, parent, PATIENCE);
    let incoming = knock(invitation.secrets)?;
    let second = match invitation.loopback {
        Some((_, secrets)) => Some((knock(secrets)?, secrets)),
        None => None,
    };
    announce();
    expect_answer(&incoming, invitation.secrets)?;
    if let Some((outgoing, secrets)) = &second {
        expect_answer(outgoing, *secrets)?;
    }
    let outgoing = second.map(|(outgoing, _)| outgoing);
    Ok((Stream { incoming, outgoing }, invitation.terms))
}

fn connect_to(port: Option<u16>, place: Option<&Path>) -> io::Result<Connection> {
    match (port, place) {
        (Some(port), _) => {
            let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
            let connected = TcpStream::connect(address).map_err(|error| of(&address, error));
            let stream = connected.map_err(|error| match place {
                // The parent comes to this only if it could not have that.
                Some(place) => {
                    let text = format!("{error}; `{}` could not be made", place.display());
                    io::Error::new(error.kind(), text)
                }
                None => error,
            })?;
            stream.set_nodelay(true)?;
            Ok(Connection::Tcp(stream))
        }
        #[cfg(unix)]
        (None, Some(path)) => {
            let stream = UnixStream::connect(path).map_err(|error| of(&path.display(), error))?;
            Ok(Connection::Unix(stream))
        }
        (None, _) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Tells the parent that it need not wait any longer, by the end of the lead in this direction. Not by
/// a word: left unread it would reset the lead, and standard input would not just be at its end here.
///
/// A wrapper around the worker may have put something else in the place of standard input, or sent the
/// output the same way, which must not end. Then the parent finds out by itself, a little later.
#[cfg(unix)]
fn announce() {
    use std::os::fd::OwnedFd;
    let (Ok(stdin), Ok(stdout), Ok(stderr)) = (duplicate(&io::stdin()), stdout(), stderr()) else {
        return;
    };
    let outputs = [stdout, stderr].map(|output| identity(output.metadata()));
    if !outputs.contains(&identity(stdin.metadata())) {
        // It fails where that is no socket.
        let _ = UnixStream::from(OwnedFd::from(stdin)).shutdown(Shutdown::Write);
    }
}

#[cfg(not(unix))]
fn announce() {}

// ------------------------------------------------------------------------------ standard streams

/// Standard output without the lock around it: the program may hold that for as long as it likes, and wait
/// for us meanwhile. Made for each write, it stays where the program has redirected it to.
pub(crate) fn stdout() -> io::Result<fs::File> {
    duplicate(&io::stdout())
}

/// The same for standard error.
pub(crate) fn stderr() -> io::Result<fs::File> {
    duplicate(&io::stderr())
}

/// Writes a line to standard error. If that is closed, or no descriptor is left, nobody can be told.
pub(crate) fn log(text: &str) {
    let line = format!("unsync: {text}\n");
    let _ = stderr().and_then(|mut stderr| stderr.write_all(line.as_bytes()));
}

#[cfg(unix)]
fn duplicate(stream: &impl std::os::fd::AsFd) -> io::Result<fs::File> {
    Ok(stream.as_fd().try_clone_to_owned()?.into())
}

#[cfg(windows)]
fn duplicate(stream: &impl std::os::windows::io::AsHandle) -> io::Result<fs::File> {
    Ok(stream.as_handle().try_clone_to_owned()?.into())
}

// ---------------------------------------------------------------------------------- for the codec

/// The bytes of a platform string.
#[cfg(unix)]
pub(crate) fn os_bytes(string: &OsStr) -> Cow<'_, [u8]> {
    use std::os::unix::ffi::OsStrExt;
    Cow::Borrowed(string.as_bytes())
}

/// The platform string of these bytes.
#[cfg(unix)]
pub(crate) fn os_string(bytes: Vec<u8>) -> Option<OsString> {
    use std::os::unix::ffi::OsStringExt;
    Some(OsString::from_vec(bytes))
}

/// The 16-bit units of a platform string, little endian.
#[cfg(windows)]
pub(crate) fn os_bytes(string: &OsStr) -> Cow<'_, [u8]> {
    use std::os::windows::ffi::OsStrExt;
    Cow::Owned(string.encode_wide().flat_map(u16::to_le_bytes).collect())
}

/// The platform string of these units.
#[cfg(windows)]
pub(crate) fn os_string(bytes: Vec<u8>) -> Option<OsString> {
    use std::os::windows::ffi::OsStringExt;
    let (pairs, rest) = (bytes.chunks_exact(2), bytes.len() % 2);
    let units: Vec<u16> = pairs
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .collect();
    (rest == 0).then(|| OsString::from_wide(&units))
}
