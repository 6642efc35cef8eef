//! A time limit, and a peer to talk to.
#![allow(dead_code)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

pub(crate) const LIMIT: Duration = Duration::from_secs(30);
pub(crate) const TICK: Duration = Duration::from_millis(10);
/// A time that does not pass in a test.
pub(crate) const LONG: Duration = Duration::from_secs(3600);

/// Runs the body of a test on a thread of its own: a hang is a failure.
pub(crate) fn limit<R: Send + 'static>(body: impl FnOnce() -> R + Send + 'static) -> R {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(catch_unwind(AssertUnwindSafe(body))));
    match receiver.recv_timeout(LIMIT) {
        Ok(Ok(value)) => value,
        Ok(Err(payload)) => resume_unwind(payload),
        Err(_) => panic!("not within {LIMIT:?}"),
    }
}

/// The address of a server that echoes once to each client.
pub(crate) fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for peer in listener.incoming() {
            let (mut peer, mut heard) = (peer.unwrap(), [0; 5]);
            peer.read_exact(&mut heard).unwrap();
            peer.write_all(&heard).unwrap();
        }
    });
    address
}
