//! Two processes and a socket, without any library: the lower bound for a process pool.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::{env, fs, process, thread};

/// The approximate size on the wire of a call with one number.
const PING: usize = 32;
/// Non-blocking tries, with a yield between, before a read blocks.
const TRIES: usize = 200;

pub(crate) fn own_program() -> Command {
    Command::new(env::current_exe().expect("this program has a name"))
}

/// The parent's end.
pub(crate) struct Link {
    stream: UnixStream,
    child: Child,
}

impl Drop for Link {
    fn drop(&mut self) {
        // The child ends when the link does.
        let _ = self.stream.shutdown(Shutdown::Both);
        let _ = self.child.wait();
    }
}

impl Link {
    /// Starts a child that serves in this way.
    pub(crate) fn open(way: &str) -> Link {
        let name = format!("unsync-peers-{}-{way}", process::id());
        let path: PathBuf = env::temp_dir().join(name);
        let listener = UnixListener::bind(&path).expect("a socket can be made");
        let child = own_program()
            .args(["--raw", way])
            .arg(&path)
            .spawn()
            .expect("this program starts again");
        let (stream, _) = listener.accept().expect("it connects");
        let _ = fs::remove_file(&path);
        Link { stream, child }
    }

    pub(crate) fn ping(&mut self, times: usize) {
        let mut message = [7; PING];
        for _ in 0..times {
            self.stream.write_all(&message).expect("the child lives");
            self.stream
                .read_exact(&mut message)
                .expect("the child lives");
        }
    }

    pub(crate) fn ping_spinning(&mut self, times: usize) {
        self.stream
            .set_nonblocking(true)
            .expect("a socket can be set");
        let mut message = [7; PING];
        for _ in 0..times {
            self.stream.write_all(&message).expect("the child lives");
            spin_read(&mut self.stream, &mut message).expect("the child lives");
        }
    }

    pub(crate) fn echo_zeroed(&mut self, payload: &[u8]) -> Vec<u8> {
        self.send(payload);
        receive_zeroed(&mut self.stream).expect("the child lives")
    }

    pub(crate) fn echo_reserved(&mut self, payload: &[u8]) -> Vec<u8> {
        self.send(payload);
        receive_reserved(&mut self.stream).expect("the child lives")
    }

    fn send(&mut self, payload: &[u8]) {
        send(&mut self.stream, payload).expect("the child lives");
    }
}

fn send(stream: &mut UnixStream, payload: &[u8]) -> std::io::Result<()> {
    stream.write_all(&(payload.len() as u64).to_le_bytes())?;
    stream.write_all(payload)
}

fn length(stream: &mut UnixStream) -> std::io::Result<usize> {
    let mut length = [0; 8];
    stream.read_exact(&mut length)?;
    Ok(u64::from_le_bytes(length) as usize)
}

fn receive_zeroed(stream: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    let mut payload = vec![0; length(stream)?];
    stream.read_exact(&mut payload)?;
    Ok(payload)
}

fn receive_reserved(stream: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    let length = length(stream)?;
    let mut payload = Vec::with_capacity(length);
    stream.take(length as u64).read_to_end(&mut payload)?;
    Ok(payload)
}

fn spin_read(stream: &mut UnixStream, message: &mut [u8]) -> std::io::Result<()> {
    for _ in 0..TRIES {
        match stream.read(message) {
            Ok(read) => return stream.read_exact(&mut message[read..]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
            Err(error) => return Err(error),
        }
    }
    stream.set_nonblocking(false)?;
    stream.read_exact(message)?;
    stream.set_nonblocking(true)
}

/// The child's end: serves until the parent is gone.
pub(crate) fn serve(way: &str, path: &str) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(path)?;
    let mut message = [0; PING];
    match way {
        "ping" => loop {
            stream.read_exact(&mut message)?;
            stream.write_all(&message)?;
        },
        "ping-spinning" => {
            stream.set_nonblocking(true)?;
            loop {
                spin_read(&mut stream, &mut message)?;
                stream.write_all(&message)?;
            }
        }
        "echo-zeroed" => loop {
            let payload = receive_zeroed(&mut stream)?;
            send(&mut stream, &payload)?;
        },
        _ => loop {
            let payload = receive_reserved(&mut stream)?;
            send(&mut stream, &payload)?;
        },
    }
}
