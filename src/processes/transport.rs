//! The byte link between the parent and a worker, and everything else that differs by platform: the only
//! file here with `cfg`, but for the sections in `register!`.
//!
//! The parent listens and the child connects, see [`handshake`](super::handshake). On Unix the parent listens
//! at a socket in a directory that only its user may enter; elsewhere, or if that fails, on loopback TCP.
//!
//! A socket pair that the child inherits would be simpler. But processes that the program's own code
//! starts would inherit it too, hold it open, and hide the death of the worker. A socket that the child
//! opens itself is closed on exec.
//!
//! Over TCP a link is two connections, one for each direction. A process that ends with unread data
//! resets that connection, and a reset discards what is in transit in both directions. Nothing is ever
//! sent to the worker on the connection that it writes to, so its last frames arrive.

use std::borrow::Cow;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;

#[cfg(unix)]
use std::os::{
    fd::OwnedFd,
    unix::net::{UnixListener, UnixStream},
};

use super::frame::Source;
use super::procfs;
#[cfg(unix)]
use crate::error::discard;
use crate::spin::Spin;

// --------------------------------------------------------------------------------------- the link

/// A connected socket. std's socket types differ only in how they name addresses, so on Unix this one holds
/// TCP connections too.
#[cfg(unix)]
pub(super) type Socket = UnixStream;
#[cfg(not(unix))]
pub(super) type Socket = TcpStream;

/// The connection to a worker, or to the parent.
pub(super) struct Link {
    pub(super) rx: Rx,
    pub(super) tx: Tx,
}

/// How many bytes can always be written while the other side does not read. On macOS and the BSDs, a Unix
/// socket holds 8 KiB.
pub(super) const EAGER: usize = match cfg!(any(target_os = "linux", target_os = "android", windows))
{
    true => 64 << 10,
    false => 4 << 10,
};

impl Link {
    /// A Unix socket carries both directions; TCP has a second connection for the outgoing one.
    pub(super) fn new(incoming: Socket, outgoing: Option<Socket>) -> Link {
        let incoming = Arc::new(incoming);
        let outgoing = outgoing.map_or_else(|| Arc::clone(&incoming), Arc::new);
        Link {
            rx: Rx {
                socket: Arc::clone(&incoming),
                spin: Spin::new(),
                is_nonblocking: false,
            },
            tx: Tx { incoming, outgoing },
        }
    }
}

/// The reading end, for one thread.
pub(super) struct Rx {
    socket: Arc<Socket>,
    spin: Spin,
    is_nonblocking: bool,
}

impl Rx {
    /// Lets a long write of another thread block until there is room.
    pub(super) fn make_blocking(&mut self) {
        // This fails only on a link that has ended, as the next read shows.
        let _ = self.set_nonblocking(false);
    }

    fn set_nonblocking(&mut self, is_nonblocking: bool) -> io::Result<()> {
        if self.is_nonblocking != is_nonblocking {
            self.socket.set_nonblocking(is_nonblocking)?;
            self.is_nonblocking = is_nonblocking;
        }
        Ok(())
    }
}

impl Read for Rx {
    /// Spins for a while before it blocks, if that pays and the socket can be made non-blocking.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use io::ErrorKind::{Interrupted, WouldBlock};
        if self.spin.pays() && self.set_nonblocking(true).is_ok() {
            let look = || match (&*self.socket).read(buffer) {
                Err(error) if matches!(error.kind(), WouldBlock | Interrupted) => None,
                read => Some(read),
            };
            if let Some(read) = self.spin.look(look) {
                return read;
            }
        }
        self.set_nonblocking(false)?;
        loop {
            match (&*self.socket).read(buffer) {
                Err(error) if error.kind() == Interrupted => {}
                read => return read,
            }
        }
    }
}

impl Source for Rx {
    /// Blocks at once, because one look would not find all of it. Reads directly from the socket: with a
    /// reader in between, std would zero the memory first.
    fn read_many(&mut self, count: usize, into: &mut Vec<u8>) -> io::Result<()> {
        self.set_nonblocking(false)?;
        let mut bytes = (&*self.socket).take(count as u64);
        bytes.read_to_end(into).map(drop)
    }
}

/// The writing end, for any thread, one at a time.
pub(super) struct Tx {
    incoming: Arc<Socket>,
    outgoing: Arc<Socket>,
}

impl Tx {
    /// Writes everything.
    ///
    /// The reading end makes a Unix socket non-blocking while it spins. The thread that has the reading
    /// end passes it as `rx`, so that a write that finds no room can block. Other threads try again until
    /// the spin is over.
    pub(super) fn write_all(&self, mut bytes: &[u8], mut rx: Option<&mut Rx>) -> io::Result<()> {
        while !bytes.is_empty() {
            match (&*self.outgoing).write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match &mut rx {
                    Some(rx) => rx.set_nonblocking(false)?,
                    None => thread::yield_now(),
                },
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Ends this direction: the other side reads what is in transit, then the end of the stream.
    pub(super) fn close(&self) {
        // This fails only if the other side has ended it before.
        let _ = self.outgoing.shutdown(Shutdown::Write);
    }

    /// Ends both directions. A read that blocks returns.
    pub(super) fn close_both(&self) {
        // As above.
        let _ = self.incoming.shutdown(Shutdown::Both);
        let _ = self.outgoing.shutdown(Shutdown::Both);
    }
}

/// Whether this is how a link ends when the other side is gone.
pub(super) fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        error.kind(),
        UnexpectedEof | BrokenPipe | ConnectionReset | ConnectionAborted
    )
}

/// Whether a link that ended this way may have lost its last frames. On Windows a process that crashes resets
/// its connections, which discards what was not read yet, and nobody knows what had started.
pub(super) fn loses_frames(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset};
    cfg!(windows) && matches!(error.kind(), ConnectionReset | ConnectionAborted)
}

// ---------------------------------------------------------------------------------- the connection

/// Connects to a parent that listens at this port, or else at this path.
pub(super) fn connect(port: Option<u16>, path: &Path) -> io::Result<Socket> {
    let Some(port) = port else {
        #[cfg(unix)]
        return UnixStream::connect(path).map_err(|error| of(&path.display(), error));
        #[cfg(not(unix))]
        return Err(io::ErrorKind::Unsupported.into());
    };
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    let what = match path.parent() {
        // The parent falls back to a port only if it could not use the path.
        Some(_) => format!("{address}` in place of `{}", path.display()),
        None => address.to_string(),
    };
    let connected = TcpStream::connect(address).map(undelayed);
    connected.map_err(|error| of(&what, error))
}

fn undelayed(stream: TcpStream) -> Socket {
    // This fails only on a connection that has ended, as the first read shows.
    let _ = stream.set_nodelay(true);
    #[cfg(unix)]
    return OwnedFd::from(stream).into();
    #[cfg(not(unix))]
    stream
}

/// Accepts a connection when called, or fails with `WouldBlock` if none waits. The socket may be non-blocking.
pub(super) type Listener = Box<dyn Fn() -> io::Result<Socket>>;

/// Listens at this path, or else at a loopback port, which it returns.
pub(super) fn listen(path: &Path) -> io::Result<(Listener, Option<u16>)> {
    let refused = match listen_unix(path) {
        Ok(accept) => return Ok((accept, None)),
        Err(error) => of(&path.display(), error),
    };
    let loopback = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    let listener = TcpListener::bind(loopback).map_err(|error| {
        io::Error::new(error.kind(), format!("`{loopback}`: {error}; {refused}"))
    })?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    let accept = move || Ok(undelayed(listener.accept()?.0));
    Ok((Box::new(accept), Some(port)))
}

#[cfg(unix)]
fn listen_unix(path: &Path) -> io::Result<Listener> {
    use std::os::unix::fs::DirBuilderExt;
    let directory = path.parent().ok_or(io::ErrorKind::Unsupported)?;
    fs::DirBuilder::new().mode(0o700).create(directory)?;
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(Box::new(move || Ok(listener.accept()?.0)))
}

#[cfg(not(unix))]
fn listen_unix(_: &Path) -> io::Result<Listener> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The error with the name of its object in front.
pub(super) fn of(what: &dyn Display, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("`{what}`: {error}"))
}

// ------------------------------------------------------------------------------------- the process

/// The executable of this process. On Linux its name stays valid in this process when the file is replaced or
/// deleted, and still means the same program.
pub(super) fn program() -> io::Result<PathBuf> {
    #[cfg(target_os = "linux")]
    return Ok("/proc/self/exe".into());
    #[cfg(not(target_os = "linux"))]
    env::current_exe()
}

/// A command that starts this program.
pub(super) fn command() -> io::Result<Command> {
    let command = Command::new(program()?);
    #[cfg(unix)]
    if let Some(name) = env::args_os().next() {
        // The list of processes shows it.
        let mut command = command;
        std::os::unix::process::CommandExt::arg0(&mut command, name);
        return Ok(command);
    }
    Ok(command)
}

/// The same executable under a name that is valid in other processes too, for a command that wraps it.
///
/// On Linux that is its path if the same file is still there, or else the `/proc` name of this process, which
/// is valid as long as this process lives.
pub(super) fn executable() -> io::Result<PathBuf> {
    let path = env::current_exe();
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::MetadataExt;
        let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
        if path.as_deref().ok().and_then(identity) != identity("/proc/self/exe".as_ref()) {
            return Ok(format!("/proc/{}/exe", std::process::id()).into());
        }
    }
    path
}

/// Starts a child, and returns a writer to its standard input. The child has a process group of its own, so
/// Ctrl-C reaches only the parent, which decides what to do.
pub(super) fn spawn(mut command: Command) -> io::Result<(Child, Box<dyn Write>)> {
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt;
        // Not a pipe: a write to one raises SIGPIPE when the child is gone, and the program may have restored
        // the default action of that signal.
        let (stdin, theirs) = UnixStream::pair()?;
        command.stdin(OwnedFd::from(theirs)).process_group(0);
        let child = command.spawn();
        // A `pre_exec` closure may own a value whose drop panics, which must not leave the child behind.
        discard(command);
        Ok((child?, Box::new(stdin)))
    }
    #[cfg(windows)]
    {
        use std::os::windows::process::CommandExt;
        const CREATE_NEW_PROCESS_GROUP: u32 = 0x0000_0200;
        command.creation_flags(CREATE_NEW_PROCESS_GROUP);
        let mut child = command.stdin(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok((child, Box::new(stdin)))
    }
}

/// Starts a child whose standard input and output are the other end of a socket.
pub(super) fn spawn_at_socket(command: Command) -> io::Result<(Child, Socket)> {
    #[cfg(unix)]
    {
        let (mut command, (ours, theirs)) = (command, UnixStream::pair()?);
        command.stdin(OwnedFd::from(theirs.try_clone()?));
        command.stdout(OwnedFd::from(theirs));
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn();
        discard(command);
        Ok((child?, ours))
    }
    #[cfg(not(unix))]
    {
        let text = format!("{command:?}: this system has no workers on other hosts");
        Err(io::Error::new(io::ErrorKind::Unsupported, text))
    }
}

/// Kills the processes that a worker started, as far as they stayed in its group. The worker must not be
/// reaped yet. std can signal only one process, so this costs the start of a program.
pub(super) fn kill_children(worker: u32) {
    if cfg!(target_os = "linux") && procfs::has_ended(worker).is_none() {
        // It is already reaped: if a program ignores SIGCHLD, the system reaps its children.
        return;
    }
    let (program, arguments) = match cfg!(windows) {
        true => ("taskkill", format!("/T /F /PID {worker}")),
        false => ("kill", format!("-KILL -- -{worker}")),
    };
    // This fails if the group is empty, which is what is wanted.
    let _ = Command::new(program)
        .args(arguments.split(' '))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// Whether a process that ended this way has aborted.
pub(super) fn is_abort(status: ExitStatus) -> bool {
    #[cfg(unix)]
    {
        const SIGABRT: i32 = 6;
        std::os::unix::process::ExitStatusExt::signal(&status) == Some(SIGABRT)
    }
    #[cfg(not(unix))]
    {
        // The exit code of a Windows process that calls `__fastfail`, as std does.
        const STATUS_STACK_BUFFER_OVERRUN: u32 = 0xC000_0409;
        status.code() == Some(STATUS_STACK_BUFFER_OVERRUN as i32)
    }
}

/// How a process has ended, for another process of the same program.
pub(super) fn raw_status(status: ExitStatus) -> i32 {
    #[cfg(unix)]
    return std::os::unix::process::ExitStatusExt::into_raw(status);
    #[cfg(windows)]
    status.code().unwrap_or(-1)
}

pub(super) fn exit_status(raw: i32) -> ExitStatus {
    #[cfg(unix)]
    return std::os::unix::process::ExitStatusExt::from_raw(raw);
    #[cfg(windows)]
    std::os::windows::process::ExitStatusExt::from_raw(raw as u32)
}

// ------------------------------------------------------------------------------ standard streams

/// Standard input without the program's buffer, which must not swallow the handshake.
pub(super) fn stdin() -> io::Result<fs::File> {
    duplicate(&io::stdin())
}

/// Standard output without the lock around it: the program may hold the lock for as long as it likes, and
/// wait for us meanwhile. Duplicated for each write, it follows any redirection by the program.
pub(super) fn stdout() -> io::Result<fs::File> {
    duplicate(&io::stdout())
}

/// The same for standard error.
pub(super) fn stderr() -> io::Result<fs::File> {
    duplicate(&io::stderr())
}

/// Writes a line to standard error. If that is closed, or no descriptor is left, the line is lost.
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

/// What a platform string consists of: bytes, on Windows 16-bit units.
#[cfg(unix)]
pub(super) fn os_units(string: &OsStr) -> Cow<'_, [u8]> {
    std::os::unix::ffi::OsStrExt::as_bytes(string).into()
}

#[cfg(unix)]
pub(super) fn os_string(units: Vec<u8>) -> OsString {
    std::os::unix::ffi::OsStringExt::from_vec(units)
}

#[cfg(windows)]
pub(super) fn os_units(string: &OsStr) -> Cow<'_, [u16]> {
    let units = std::os::windows::ffi::OsStrExt::encode_wide(string);
    units.collect::<Vec<_>>().into()
}

#[cfg(windows)]
pub(super) fn os_string(units: Vec<u16>) -> OsString {
    std::os::windows::ffi::OsStringExt::from_wide(&units)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn pair() -> (Socket, Socket) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let near = connect(Some(port), Path::new("")).unwrap();
        (near, undelayed(listener.accept().unwrap().0))
    }

    #[test]
    fn a_write_that_finds_no_room_goes_on_when_there_is_some() {
        // More than any socket holds.
        let bytes = vec![7; 32 << 20];
        for is_lent in [true, false] {
            let (near, mut far) = pair();
            let Link { mut rx, tx, .. } = Link::new(near, None);
            rx.set_nonblocking(true).unwrap();
            let received = thread::scope(|scope| {
                let reading = scope.spawn(|| {
                    let mut received = Vec::new();
                    far.read_to_end(&mut received).map(|_| received)
                });
                let written = tx.write_all(&bytes, is_lent.then_some(&mut rx));
                tx.close_both();
                written.unwrap();
                reading.join().unwrap().unwrap()
            });
            assert!(received == bytes, "{} bytes", received.len());
        }
    }

    #[test]
    fn closing_both_directions_ends_a_read() {
        let (incoming, _far_incoming) = pair();
        let (outgoing, mut far_outgoing) = pair();
        let Link { mut rx, tx, .. } = Link::new(incoming, Some(outgoing));
        for socket in [&*rx.socket, &far_outgoing] {
            socket
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
        }
        thread::scope(|scope| {
            let reading = scope.spawn(|| rx.read(&mut [0]));
            tx.close_both();
            assert_eq!(reading.join().unwrap().unwrap(), 0);
        });
        assert_eq!(far_outgoing.read(&mut [0]).unwrap(), 0);
    }
}
