//! Without a hook: what panics, what needs nothing, and the recipes that wrap one future.

mod support;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use async_compat::Compat;
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use support::{TICK, echo, limit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::context::TokioContext;
use unsync::ErrorKind;

fn runtime() -> Runtime {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    runtime.unwrap()
}

/// Everything that needs tokio's reactor: a socket, a timer, a task.
async fn tokio_talk(address: std::net::SocketAddr) -> [u8; 5] {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    AsyncWriteExt::write_all(&mut stream, b"hello")
        .await
        .unwrap();
    let mut heard = [0; 5];
    AsyncReadExt::read_exact(&mut stream, &mut heard)
        .await
        .unwrap();
    let started = Instant::now();
    tokio::time::sleep(TICK).await;
    assert!(started.elapsed() >= TICK);
    tokio::spawn(async move { heard }).await.unwrap()
}

/// Tokio cannot find its reactor and panics. It is that task's error; nothing else ends.
#[test]
fn without_a_reactor_tokio_panics_and_the_task_says_so() {
    limit(|| {
        let address = echo();
        let tasks = [
            unsync::spawn(async { tokio::time::sleep(TICK).await }),
            unsync::spawn(async move { _ = tokio_talk(address).await }),
            unsync::spawn(async { drop(tokio::spawn(async {})) }),
        ];
        for task in tasks {
            let error = task.result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Panicked);
            assert!(error.to_string().contains("no reactor running"), "{error}");
        }
        assert_eq!(unsync::spawn(async { 1 }).result().unwrap(), 1);
    });
}

#[test]
fn compat_brings_a_runtime_along() {
    limit(|| {
        let address = echo();
        let task = unsync::spawn(Compat::new(tokio_talk(address)));
        assert_eq!(&task.result().unwrap(), b"hello");
    });
}

#[test]
fn tokio_context_enters_a_runtime() {
    limit(|| {
        let (runtime, address) = (runtime(), echo());
        let future = TokioContext::new(tokio_talk(address), runtime.handle().clone());
        assert_eq!(&unsync::spawn(future).result().unwrap(), b"hello");
    });
}

/// This takes no crate: enter for each poll, since the guard may not be held across an await.
async fn within<F: Future>(handle: Handle, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let _entered = handle.enter();
        future.as_mut().poll(cx)
    })
    .await
}

#[test]
fn five_lines_enter_a_runtime() {
    limit(|| {
        let (runtime, address) = (runtime(), echo());
        let future = within(runtime.handle().clone(), tokio_talk(address));
        assert_eq!(&unsync::spawn(future).result().unwrap(), b"hello");
    });
}

/// Tokio's `sleep` looks for its reactor when it is made, so it is made in a poll.
async fn nap() {
    tokio::time::sleep(TICK).await;
}

/// A current-thread runtime has a reactor, but only `block_on` drives it.
#[test]
fn a_current_thread_runtime_has_to_be_driven() {
    limit(|| {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let future = within(runtime.handle().clone(), nap());
        let task = unsync::spawn(future);
        assert!(!task.wait_timeout(TICK * 10), "nobody drives it");
        runtime.block_on(async { task.await.unwrap() });
    });
}

/// Code that blocks the only thread that drives a reactor waits in vain for work that needs it. A time
/// limit helps; the cure is not to block there.
#[test]
fn blocking_the_thread_that_drives_the_reactor() {
    limit(|| {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let task = unsync::spawn(within(handle, nap()));
        let ended = runtime.block_on(async { task.wait_timeout(TICK * 10) });
        assert!(!ended, "its reactor is blocked by this wait");
        runtime.block_on(async { task.await.unwrap() });
    });
}

/// The timers of a runtime end with it. The task sees that as a panic.
#[test]
fn a_runtime_that_shuts_down() {
    limit(|| {
        let runtime = runtime();
        let (polled, first) = std::sync::mpsc::channel();
        let handle = runtime.handle().clone();
        let task = unsync::spawn(within(handle, async move {
            let mut sleep = pin!(tokio::time::sleep(support::LONG));
            poll_fn(|cx| {
                let poll = sleep.as_mut().poll(cx);
                let _ = polled.send(());
                poll
            })
            .await;
        }));
        first.recv().unwrap();
        drop(runtime);
        let error = task.result().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Panicked);
        assert!(error.to_string().contains("shutdown"), "{error}");
        assert_eq!(unsync::spawn(async { 1 }).result().unwrap(), 1);
    });
}

/// Types that bring their own driver thread need nothing.
#[test]
fn async_io_works_as_it_is() {
    limit(|| {
        let address = echo();
        let task = unsync::spawn(async move {
            let mut stream = async_io::Async::<std::net::TcpStream>::connect(address).await?;
            stream.write_all(b"hello").await?;
            let mut heard = [0; 5];
            stream.read_exact(&mut heard).await?;
            let started = Instant::now();
            async_io::Timer::after(TICK).await;
            assert!(started.elapsed() >= TICK);
            Ok::<_, std::io::Error>(heard)
        });
        assert_eq!(&task.result().unwrap().unwrap(), b"hello");
    });
}

#[test]
fn smol_works_as_it_is() {
    limit(|| {
        let address = echo();
        let task = unsync::spawn(async move {
            let mut stream = smol::net::TcpStream::connect(address).await?;
            stream.write_all(b"hello").await?;
            let mut heard = [0; 5];
            stream.read_exact(&mut heard).await?;
            smol::Timer::after(TICK).await;
            let elsewhere = smol::spawn(async move { heard }).await;
            Ok::<_, std::io::Error>(smol::unblock(move || elsewhere).await)
        });
        assert_eq!(&task.result().unwrap().unwrap(), b"hello");
    });
}

/// Channels and locks are plain futures, and need no runtime at all.
#[test]
fn channels_work_anywhere() {
    const MESSAGES: usize = 10_000;
    limit(|| {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(8);
        let (notify, lock) = (
            Arc::new(tokio::sync::Notify::new()),
            tokio::sync::Mutex::new(0),
        );
        let sum = unsync::spawn({
            let notify = Arc::clone(&notify);
            async move {
                notify.notified().await;
                while let Some(n) = receiver.recv().await {
                    *lock.lock().await += n;
                }
                lock.into_inner()
            }
        });
        notify.notify_one();
        unsync::spawn(async move {
            for n in 0..MESSAGES {
                sender.send(n).await.unwrap();
            }
        });
        assert_eq!(sum.result().unwrap(), MESSAGES * (MESSAGES - 1) / 2);

        let (once, awaited) = tokio::sync::oneshot::channel();
        let (watch, mut watched) = tokio::sync::watch::channel(0);
        let both = unsync::spawn(async move {
            watched.changed().await.unwrap();
            let seen = *watched.borrow();
            awaited.await.unwrap() + seen
        });
        watch.send(3).unwrap();
        once.send(4).unwrap();
        assert_eq!(both.result().unwrap(), 7);

        let (sender, mut receiver) = futures::channel::mpsc::unbounded();
        sender.unbounded_send(5).unwrap();
        let next = unsync::spawn(async move { futures::StreamExt::next(&mut receiver).await });
        assert_eq!(next.result().unwrap(), Some(5));
    });
}
