//! The recipe for all tasks: `Config::around_poll` enters a tokio runtime, so every task of ours finds
//! its reactor.
//!
//! The settings apply to the whole process, so this is a test binary of its own, and its runtime lives as
//! long as the process. It is a multi-thread runtime: its worker drives the reactor, while nobody would
//! drive a current-thread one.

mod support;

use std::sync::LazyLock;
use std::time::Instant;

use support::{TICK, echo, limit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let runtime = runtime.unwrap();
    let handle = runtime.handle().clone();
    let config = unsync::Config::new().around_poll(move |poll| {
        let _entered = handle.enter();
        poll();
    });
    config.install().unwrap();
    runtime
});

#[test]
fn sockets_work() {
    limit(|| {
        LazyLock::force(&RUNTIME);
        let address = echo();
        let talks = (0..20).map(|_| {
            unsync::spawn(async move {
                let mut stream = tokio::net::TcpStream::connect(address).await?;
                stream.write_all(b"hello").await?;
                let mut heard = [0; 5];
                stream.read_exact(&mut heard).await?;
                Ok::<_, std::io::Error>(heard)
            })
        });
        for talk in Vec::from_iter(talks) {
            assert_eq!(&talk.result().unwrap().unwrap(), b"hello");
        }
    });
}

#[test]
fn timers_and_tasks_work() {
    limit(|| {
        LazyLock::force(&RUNTIME);
        let task = unsync::spawn(async {
            let started = Instant::now();
            tokio::time::sleep(TICK).await;
            let spawned = tokio::spawn(async { 1 }).await.unwrap();
            let blocking = tokio::task::spawn_blocking(|| 2).await.unwrap();
            let late = tokio::time::timeout(TICK, std::future::pending::<()>()).await;
            assert!(late.is_err());
            (started.elapsed() >= TICK * 2, spawned + blocking)
        });
        assert_eq!(task.result().unwrap(), (true, 3));
    });
}

#[test]
fn local_tasks_work() {
    limit(|| {
        LazyLock::force(&RUNTIME);
        let task = unsync::spawn_local(|| async {
            let shared = std::rc::Rc::new(4);
            tokio::time::sleep(TICK).await;
            *shared
        });
        assert_eq!(task.result().unwrap(), 4);
    });
}

/// A cancelled task deregisters its socket and its timer where the runtime can be found.
#[test]
fn cancelling_what_waits_for_the_reactor() {
    limit(|| {
        LazyLock::force(&RUNTIME);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let silent = unsync::spawn(async move {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let (mut heard, sleep) = ([0], tokio::time::sleep(support::LONG));
            tokio::select! {
                _ = stream.read_exact(&mut heard) => {}
                () = sleep => {}
            }
        });
        let (mut peer, _) = listener.accept().unwrap();
        assert!(silent.cancel());
        assert_eq!(
            silent.result().unwrap_err().kind(),
            unsync::ErrorKind::Cancelled
        );
        let gone = std::io::Read::read(&mut peer, &mut [0]);
        assert_eq!(gone.unwrap(), 0, "the socket was closed");
    });
}

/// `spawn_now` polls first on the calling thread, where the hook does not run.
#[test]
fn spawn_now_begins_outside_the_hook() {
    limit(|| {
        LazyLock::force(&RUNTIME);
        let nap = || async { tokio::time::sleep(TICK).await };
        let error = unsync::spawn_now(nap()).result().unwrap_err();
        assert!(error.to_string().contains("no reactor running"), "{error}");
        let _entered = RUNTIME.enter();
        unsync::spawn_now(nap()).result().unwrap();
    });
}
