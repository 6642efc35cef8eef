//! Recipes: other people's runtimes, and functions for both worlds.
//!
//! # Foreign runtimes
//!
//! An [`Unfuture`](crate::Unfuture) is a plain future: it can be awaited under any executor, and a task
//! of ours can await any plain future. What may be missing is the *reactor*, the part of a runtime that
//! watches sockets and clocks. This library has a clock and no sockets; those of other people work as
//! follows.
//!
//! All of this is run by `cargo test --manifest-path tests/foreign/Cargo.toml` in the repository, last
//! with tokio 1.54, tokio-util 0.7.20, async-compat 0.2.6, smol 2.0, async-io 2.6 and futures 0.3.34.
//!
//! | wanted | does it work? |
//! | --- | --- |
//! | `.await` of an `Unfuture` under tokio (both flavours), smol, futures | yes, as it is |
//! | [`sleep`](crate::sleep()), [`timeout`](crate::timeout()), [`interval`](crate::interval()) there | yes: the timer lives on the ambient thread |
//! | `.result()` and [`block_on`](crate::block_on()) in a task of theirs | yes, as any blocking call; see [below](#what-cannot-work) |
//! | channels and locks: `tokio::sync`, `futures::channel` | yes, anywhere, without a runtime |
//! | `async-io` and `smol`: sockets, timers, `unblock` | yes, as they are: they bring a driver thread along |
//! | tokio's sockets, timers and `tokio::spawn` in a task of ours | with one of the recipes |
//!
//! Without a recipe tokio does not find its reactor and panics: "there is no reactor running, must be
//! called from the context of a Tokio 1.x runtime". That is the error of the one task
//! ([`ErrorKind::Panicked`](crate::ErrorKind::Panicked)); nothing else ends.
//!
//! ## For every task: enter the runtime around each poll
//!
//! For a program that uses tokio's types all over, [`Config::around_poll`](crate::Config::around_poll)
//! enters a runtime once and for all.
//!
//! ```ignore
//! // Run by tests/foreign/tests/hook.rs.
//! let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
//! let handle = runtime.handle().clone();
//! unsync::Config::new()
//!     .around_poll(move |poll| {
//!         let _entered = handle.enter();
//!         poll();
//!     })
//!     .install()?;
//!
//! let page = unsync::spawn(async {
//!     let mut stream = tokio::net::TcpStream::connect("127.0.0.1:80").await?;
//!     // …
//! });
//! ```
//!
//! - The runtime must be a **multi-thread** one, and one worker is enough. It drives the reactor by
//!   itself. A current-thread runtime does so only while somebody is in its `block_on`; without that
//!   the task waits for ever.
//! - The runtime must live as long as the tasks that use it. When it goes, they panic, each as its own
//!   error.
//! - [`spawn_now`](crate::spawn_now()) makes its first poll on the calling thread, where the hook is not.
//!
//! ## For one future: wrap it
//!
//! ```ignore
//! // Run by tests/foreign/tests/wrapped.rs.
//! unsync::spawn(async_compat::Compat::new(talk())); // brings its own runtime
//! unsync::spawn(tokio_util::context::TokioContext::new(talk(), handle)); // uses yours
//! ```
//!
//! The same without a further crate. It enters anew for each poll, because the guard of `enter` may not
//! be held across an `.await`: it is bound to its thread, so such a future would not be `Send`.
//!
//! ```ignore
//! // Run by tests/foreign/tests/wrapped.rs.
//! async fn within<F: Future>(handle: tokio::runtime::Handle, future: F) -> F::Output {
//!     let mut future = std::pin::pin!(future);
//!     std::future::poll_fn(|cx| {
//!         let _entered = handle.enter();
//!         future.as_mut().poll(cx)
//!     })
//!     .await
//! }
//! ```
//!
//! Make the types inside the future, `within(handle, async { tokio::time::sleep(d).await })`: tokio looks
//! for its reactor when a timer is made, which in an argument is before anything was entered.
//!
//! ## What cannot work
//!
//! - **Blocking the thread that the work needs.** A current-thread runtime drives its reactor on the
//!   thread of its `block_on`. Who calls [`result`](crate::Unfuture::result) there, for a task of ours
//!   that waits for a socket of that very runtime, waits for ever: the two cannot know of each other.
//!   `.await` it, or use a multi-thread runtime.
//!   [`wait_timeout`](crate::Unfuture::wait_timeout) turns the hang into a `false`.
//! - **Blocking in a task of ours.** `result` of unfinished work is an error there, and so is every other
//!   way to block that this library has. Those of others it cannot refuse, but `UNSYNC_DEBUG=1` reports
//!   them.
//! - **Sockets without a reactor.** `std::net` in a [`thread`](crate::thread()) job is the way that needs
//!   no crate at all.
//!
//! # One function for both worlds
//!
//! A library that does I/O is commonly written twice, once blocking and once `async`. A function that
//! returns an [`Unfuture`](crate::Unfuture) is written once: it starts the work, and the caller says how
//! to wait.
//!
//! ```
//! use std::path::Path;
//! use unsync::Unfuture;
//!
//! /// Counts the lines of a file.
//! #[track_caller] // errors name the line of the caller, not this one
//! fn count_lines(path: impl AsRef<Path>) -> Unfuture<std::io::Result<usize>> {
//!     let path = path.as_ref().to_owned();
//!     unsync::thread(move || Ok(std::fs::read_to_string(path)?.lines().count()))
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // In a synchronous program:
//! let lines = count_lines("Cargo.toml").result()??;
//!
//! // In an asynchronous one, under any executor:
//! async fn both() -> Result<usize, Box<dyn std::error::Error>> {
//!     let (first, second) = (count_lines("Cargo.toml"), count_lines("README.md"));
//!     Ok(first.await?? + second.await??) // they run at the same time
//! }
//! # assert!(unsync::block_on(both())? > lines);
//! # Ok(())
//! # }
//! ```
//!
//! - The outer `Result` says whether the work was done: it panicked, was cancelled, took too long. The
//!   inner one is the function's own.
//! - **It starts when it is called**, not when it is awaited, and goes on if the caller looks away. Say so
//!   in its documentation, or tie it: `.cancel_on_drop()`.
//! - The engine is an affair of the function: [`spawn`](crate::spawn()) for what is async inside,
//!   [`thread`](crate::thread()) for what blocks, [`cpu`](crate::cpu()) for what computes. It can change
//!   without a change for the caller.
//! - Arguments are owned, since the work may outlive the call. Convert at the border, as above.
//! - Answer from memory with [`Unfuture::ready`](crate::Unfuture::ready): it costs no thread.
//!
//! `examples/both_worlds.rs` is a small library in this manner, with a synchronous and an asynchronous
//! caller.
