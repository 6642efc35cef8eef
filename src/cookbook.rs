//! Runnable recipes for everyday tasks, and how to use other runtimes.
//!
//! - [A parallel map with a limit](#a-parallel-map-with-a-limit)
//! - [A time limit, and a retry with back-off](#a-time-limit-and-a-retry-with-back-off)
//! - [A progress bar](#a-progress-bar)
//! - [Results as they come](#results-as-they-come)
//! - [Work of different types](#work-of-different-types)
//! - [Ctrl-C that keeps what is done](#ctrl-c-that-keeps-what-is-done)
//! - [Cancelling a task and what it started](#cancelling-a-task-and-what-it-started)
//! - [Errors](#errors)
//! - [One function for both worlds](#one-function-for-both-worlds)
//! - [When something goes wrong](#when-something-goes-wrong)
//! - [What a worker does not have](#what-a-worker-does-not-have)
//! - [A memory limit for workers](#a-memory-limit-for-workers)
//! - [Tests, doctests and coverage](#tests-doctests-and-coverage)
//! - [Foreign runtimes](#foreign-runtimes), `#[tokio::main]` among them
//!
//! # A parallel map with a limit
//!
//! A [`Limit`](crate::Limit) bounds how many jobs, tasks or calls run at once. [`join_all`](crate::join_all)
//! keeps the order and fails at the first error.
//!
//! ```
//! # fn fetch(url: &str) -> String { url.to_uppercase() }
//! # fn main() -> Result<(), unsync::Error> {
//! let urls = ["a", "b", "c"];
//! let limit = unsync::Limit::new(8); // at most eight connections
//! let pages = urls.map(|url| limit.thread(move || fetch(url)));
//! let pages: Vec<String> = unsync::join_all(pages).result()?;
//! # assert_eq!(pages, ["A", "B", "C"]);
//! # Ok(())
//! # }
//! ```
//!
//! CPU-bound calls need no limit: by default no more of them run at the same time than there are processors. A
//! call costs about ten microseconds, or two if thousands are made at once, so give each call more work than
//! that. The arguments of every call stay in memory until the call starts.
//!
//! # A time limit, and a retry with back-off
//!
//! [`run_timeout`](crate::Unfuture::run_timeout) counts from the moment the work starts to run: waiting for a
//! place under the limit does not count. The pause between two attempts is a [`sleep`](crate::sleep()) on the
//! ambient thread, so it holds neither a thread nor a place. `cancel_on_drop` ties an attempt to its task: a
//! deadline for the whole task, or its cancellation, also takes a waiting attempt out of the queue.
//!
//! ```
//! use std::time::Duration;
//! use unsync::{Error, Limit};
//!
//! async fn fetch_patiently(limit: Limit, url: &'static str) -> Result<String, Error> {
//!     let mut pause = Duration::from_millis(10);
//!     loop {
//!         let attempt = limit.thread(move || fetch(url)).flatten().cancel_on_drop();
//!         match attempt.run_timeout(Duration::from_secs(5)).await {
//!             Err(_) if pause < Duration::from_secs(1) => unsync::sleep(pause).await,
//!             outcome => return outcome,
//!         }
//!         pause *= 2; // 10, 20, 40 … 640 ms
//!     }
//! }
//! # fn fetch(url: &str) -> Result<String, Error> {
//! #     static CALLS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
//! #     match CALLS.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
//! #         0 | 1 => Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()),
//! #         _ => Ok(url.to_uppercase()),
//! #     }
//! # }
//! # fn main() -> Result<(), Error> {
//! let limit = Limit::new(8);
//! let page = unsync::spawn(fetch_patiently(limit.clone(), "a")).flatten();
//! let page = page.timeout(Duration::from_secs(60)).result()?; // all attempts and pauses
//! # assert_eq!(page, "A");
//! # Ok(())
//! # }
//! ```
//!
//! A thread job that does not end in time keeps its place and its thread until it returns: std has no way to
//! stop a thread. Give sockets a timeout of their own, and let long loops check
//! [`is_cancelled`](crate::is_cancelled). A `cpu` call that takes too long is killed.
//!
//! # A progress bar
//!
//! [`as_completed`](crate::as_completed) knows how many outcomes are still to come. A progress-bar crate fits
//! in the same place.
//!
//! ```
//! # fn main() -> Result<(), unsync::Error> {
//! let mut jobs = unsync::as_completed((0..20).map(|n| unsync::thread(move || n * n)));
//! let (total, mut sum) = (jobs.len(), 0);
//! while let Some((_, outcome)) = jobs.next() {
//!     sum += outcome?;
//!     eprint!("\r{}/{total} ", total - jobs.len());
//! }
//! eprintln!();
//! # assert_eq!(sum, 2470);
//! # Ok(())
//! # }
//! ```
//!
//! A long `cpu` call reports its own progress with [`progress`](crate::progress()), and
//! [`on_progress`](crate::Unfuture::on_progress) receives it.
//!
//! # Results as they come
//!
//! The loop gets each result as soon as it is ready, in any order.
//!
//! ```
//! # fn shrink(n: u64) -> u64 { n / 2 }
//! # unsync::register!(shrink);
//! # fn main() -> Result<(), unsync::Error> {
//! # unsync::init();
//! # let mut files = Vec::new();
//! for (index, outcome) in unsync::as_completed((0..100).map(|n| unsync::cpu(shrink, (n,)))) {
//!     match outcome {
//!         Ok(picture) => files.push((index, picture)), // write it to its file
//!         Err(error) => eprintln!("picture {index}: {error}"), // the others continue
//!     }
//! }
//! # assert_eq!(files.len(), 100);
//! # Ok(())
//! # }
//! ```
//!
//! # Work of different types
//!
//! Both already run, so waiting for one after the other takes only as long as the slower one.
//! `cancel_on_drop` stops the second if the first fails and `?` returns.
//!
//! ```
//! # fn main() -> Result<(), unsync::Error> {
//! let name = unsync::thread(|| String::from("a.txt")).cancel_on_drop();
//! let size = unsync::spawn(async { 42 }).cancel_on_drop();
//! let (name, size): (String, u64) = (name.result()?, size.result()?);
//! # assert_eq!((name.as_str(), size), ("a.txt", 42));
//! # Ok(())
//! # }
//! ```
//!
//! # Ctrl-C that keeps what is done
//!
//! A [`settle_all`](crate::settle_all) that is cancelled, or runs out of time, gives the outcomes so far. Std
//! has no signal handlers; crates such as `ctrlc` call a closure.
//!
//! ```
//! # mod ctrlc {
//! #     pub fn set_handler(f: impl FnOnce() + Send + 'static) -> Result<(), ()> {
//! #         std::thread::spawn(f);
//! #         Ok(())
//! #     }
//! # }
//! # fn main() -> Result<(), unsync::Error> {
//! # use std::time::Duration;
//! # let forever = Duration::from_secs(3600);
//! let all = unsync::settle_all([unsync::Unfuture::ready(()), unsync::spawn(unsync::sleep(forever))]);
//! let stop = all.canceller(); // before `timeout`: cancelling the timeout would lose the outcomes
//! ctrlc::set_handler(move || _ = stop.cancel()).expect("the first handler");
//! let all = all.timeout(Duration::from_secs(60));
//! let (done, not_done): (Vec<_>, Vec<_>) = all.result()?.into_iter().partition(Result::is_ok);
//! println!("{} done, {} not", done.len(), not_done.len());
//! # assert_eq!(done.len(), 1);
//! unsync::shutdown(Duration::from_secs(5))
//! # }
//! ```
//!
//! Worker processes have process groups of their own, so Ctrl-C at a terminal reaches only the program. The
//! workers end with the program, even if it has no handler.
//!
//! # Cancelling a task and what it started
//!
//! Dropping an `Unfuture` lets its work continue. Work tied by
//! [`cancel_on_drop`](crate::Unfuture::cancel_on_drop) ends with the task that holds its `Unfuture`. Steps
//! chained to tied work are tied too.
//!
//! ```
//! # fn work() { loop { std::hint::spin_loop() } }
//! # unsync::register!(work);
//! # fn main() {
//! # unsync::init();
//! let task = unsync::spawn(async {
//!     let parts = (0..4).map(|_| unsync::cpu(work, ()).cancel_on_drop());
//!     unsync::join_all(parts).cancel_on_drop().await
//! });
//! task.cancel(); // kills the worker processes that run the parts
//! # assert!(unsync::drain(std::time::Duration::from_secs(60)));
//! # }
//! ```
//!
//! # Errors
//!
//! An [`Error`](crate::Error) is a `std::error::Error + Send + Sync`, so `?` turns it into a
//! `Box<dyn std::error::Error>` or an `anyhow::Error`, and thiserror's `#[from]` accepts it. `?` also
//! converts an `Error` into an [`io::Error`](std::io::Error) and back. So work whose own errors are I/O
//! errors needs only one type:
//!
//! ```
//! use unsync::{Error, Unfuture};
//!
//! fn first_line(path: &'static str) -> Unfuture<String> {
//!     let read = unsync::thread(move || -> Result<String, Error> {
//!         let text = std::fs::read_to_string(path)?;
//!         Ok(text.lines().next().unwrap_or_default().to_owned())
//!     });
//!     read.flatten() // one `Result`, not two
//! }
//! # assert_eq!(first_line("Cargo.toml").result().unwrap(), "[package]");
//! # assert_eq!(first_line("missing").result().unwrap_err().kind(), unsync::ErrorKind::Os);
//! ```
//!
//! For a library with its own error type, see [`Error`](crate::Error). A test in the repository
//! (`tests/foreign`) compiles and runs the pattern with anyhow and thiserror.
//!
//! # One function for both worlds
//!
//! A library that does I/O is commonly written twice, once blocking and once `async`. A function that returns
//! an [`Unfuture`](crate::Unfuture) is written once: it starts the work, and the caller chooses how to wait.
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
//! - The outer `Result` says whether the work was done: it may have panicked, been cancelled or taken too long.
//!   The inner one is the function's own.
//! - **The work starts with the call**, not with the `.await`, and continues if the caller drops the
//!   `Unfuture`. Say so in the function's documentation, or tie the work: `.cancel_on_drop()`.
//! - The function chooses the engine: [`spawn`](crate::spawn()) for async code, [`thread`](crate::thread())
//!   for code that blocks, [`cpu`](crate::cpu()) for code that computes. For `cpu`, the program's `main` has
//!   to call `init`, and its tests need `test_worker!`. Re-export them:
//!   `pub use unsync::{init, test_worker};`. Callers notice nothing else.
//! - Arguments are owned, since the work may outlive the call. Convert them at the boundary, as above.
//! - Return an answer that is already in memory with [`Unfuture::ready`](crate::Unfuture::ready): it costs no
//!   thread.
//!
//! To give callers a single `Result`, wrap the function in two others. Their error type is your own (see
//! [`Error`](crate::Error) for how), or `unsync::Error`:
//!
//! ```
//! # use unsync::Unfuture;
//! # fn start(path: &str) -> Unfuture<std::io::Result<usize>> {
//! #     let path = path.to_owned();
//! #     unsync::thread(move || Ok(std::fs::read_to_string(path)?.lines().count()))
//! # }
//! pub fn count_lines(path: &str) -> Result<usize, unsync::Error> {
//!     Ok(start(path).result()??)
//! }
//!
//! pub async fn count_lines_async(path: &str) -> Result<usize, unsync::Error> {
//!     Ok(start(path).await??)
//! }
//! # assert_eq!(count_lines("/none").unwrap_err().kind(), unsync::ErrorKind::Os);
//! # let lines = unsync::block_on(count_lines_async("Cargo.toml"));
//! # assert_eq!(lines.unwrap(), count_lines("Cargo.toml").unwrap());
//! ```
//!
//! `examples/both_worlds.rs` is a small library for both worlds, with a synchronous and an asynchronous caller.
//!
//! # When something goes wrong
//!
//! [`tasks`](crate::tasks()) lists live work and [`stats`](crate::stats()) counts it. With `UNSYNC_DEBUG=1`
//! in its environment, any program reports the rest on standard error. `examples/diagnose.rs` shows all of it
//! and prints this, apart from the panic message itself:
//!
//! ```text
//! # A task that blocks the ambient thread
//! unsync: the async task started at examples/diagnose.rs:55:5 has been blocking the ambient thread for 100 ms; blocking work belongs on unsync::thread
//!
//! # A failure that was never observed
//! unsync: unobserved failure: async task panicked: called `Result::unwrap()` on an `Err` value: ParseIntError { kind: InvalidDigit } (started at examples/diagnose.rs:58:10)
//!
//! # A worker process that crashes
//! WorkerLost: `crashes` lost its worker process 29941 after 7.2µs: signal: 6 (SIGABRT) (started at examples/diagnose.rs:62:10)
//!
//! # A wait that would deadlock
//! WouldBlock: waiting for unfinished work would block the ambient thread; `.await` it in a task instead (started at examples/diagnose.rs:66:31)
//!
//! # A worker process that a signal has stopped
//! unsync: worker process 29947, which runs `stops_itself` (started at examples/diagnose.rs:73:14), was stopped by a signal; the system does that to a worker that uses the terminal
//! TimedOut: `stops_itself`, which ran for 3.0s in a worker process that a signal had stopped, took longer than its limit of 3s (started at examples/diagnose.rs:73:14)
//!
//! # What is running
//! Cpu computes, Running, examples/diagnose.rs:79:9
//! Cpu computes, Running, examples/diagnose.rs:80:9
//! Cpu computes, Queued, examples/diagnose.rs:81:9
//! Async task, Running, examples/diagnose.rs:66:31
//! Async task, Running, examples/diagnose.rs:78:9
//! 1 of 3 calls wait
//! ```
//!
//! # What a worker does not have
//!
//! A worker process runs the same executable up to [`init`](crate::init), and then only the functions that it
//! is asked to run. It has what the program had *before* `init`. It does not have what `main` sets up
//! afterwards: values stored in statics, loggers, panic hooks, parsed arguments, threads, open files.
//!
//! - **State**: pass it as an argument, or let the function create it on its first call and keep it in a
//!   [`OnceLock`](std::sync::OnceLock). The worker keeps it for the calls that follow.
//! - **Loggers, environment**: set them before `init`, or inside the function, once.
//! - **Panic hooks**: set them before `init`. One that is set inside the function replaces the hook that reports
//!   panics to the program, unless it calls that one, which [`take_hook`](std::panic::take_hook) returns.
//! - **Arguments of the program**: a worker's command line has one argument, which is not one of the
//!   program's. Pass what the function needs.
//!
//! ```
//! use std::sync::OnceLock;
//!
//! fn lookup(key: u64) -> u64 {
//!     static TABLE: OnceLock<Vec<u64>> = OnceLock::new(); // one for each worker
//!     let table = TABLE.get_or_init(|| (0..1000).map(|n| n * n).collect());
//!     table[key as usize]
//! }
//! unsync::register!(lookup);
//!
//! fn main() -> Result<(), unsync::Error> {
//!     unsync::init();
//!     assert_eq!(unsync::cpu(lookup, (30,)).result()?, 900);
//!     Ok(())
//! }
//! ```
//!
//! Workers print where the program prints, panic messages included. A panic hook that prints nothing,
//! `std::panic::set_hook(Box::new(|_| {}))` before `init`, silences the panic messages of the program and its
//! workers; errors keep the message.
//!
//! # A memory limit for workers
//!
//! [`memory_per_worker`](crate::Config::memory_per_worker) replaces a worker after a call that left it too
//! large. For a limit during the call, start workers under `prlimit`, which is part of util-linux on Linux:
//! if an allocation in the function fails, the worker aborts, and its call fails as
//! [`WorkerLost`](crate::ErrorKind::WorkerLost).
//!
//! ```standalone_crate
//! # fn hungry() -> usize { std::hint::black_box(vec![1_u8; 4 << 30]).len() }
//! # unsync::register!(hungry);
//! # #[cfg(target_os = "linux")]
//! fn main() -> Result<(), unsync::Error> {
//!     unsync::init();
//!     let config = unsync::Config::new().worker_command(|program| {
//!         let mut prlimit = std::process::Command::new("prlimit");
//!         prlimit.arg("--as=2147483648").arg(program); // 2 GiB of address space
//!         prlimit
//!     });
//!     config.install()?;
//!     let error = unsync::cpu(hungry, ()).result().unwrap_err();
//!     assert_eq!(error.kind(), unsync::ErrorKind::WorkerLost);
//!     Ok(())
//! }
//! # #[cfg(not(target_os = "linux"))]
//! # fn main() {}
//! ```
//!
//! With [`run_timeout`](crate::Unfuture::run_timeout) on each call as well, input that crashes the decoder, hangs
//! it or fills memory costs only its own call.
//!
//! In a container with a memory limit, Linux kills a worker before it kills the program.
//!
//! # Tests, doctests and coverage
//!
//! - A test binary has no `main` of its own: put [`test_worker!`](crate::test_worker) in it once, anywhere,
//!   and its tests call `cpu` as a program does. cargo-nextest, which runs each test in a process of its own,
//!   works too; each process then starts its own workers.
//! - With `harness = false`, `init` is the first line of `main`.
//! - A doctest that uses `cpu` writes out its `fn main` with `init`, as those on this page do.
//! - Settings last for the process. A test that needs other settings belongs in a test binary of its own.
//! - Coverage tools that write a file at exit need one file for each process, as with `%p` in
//!   `LLVM_PROFILE_FILE`. Killed workers write none: call [`shutdown`](crate::shutdown) at the end.
//!
//! # Foreign runtimes
//!
//! An [`Unfuture`](crate::Unfuture) is a plain future: it can be awaited under any executor, and a task
//! of this library can await any plain future. What may be missing is the *reactor*, the part of a runtime
//! that watches sockets and clocks. This library has a clock and no sockets; other libraries' sockets work as
//! follows.
//!
//! `cargo test --manifest-path tests/foreign/Cargo.toml` in the repository runs all of this, last with tokio
//! 1.54, tokio-util 0.7.20, async-compat 0.2.6, smol 2.0, async-io 2.6 and futures 0.3.34.
//!
//! | wanted | does it work? |
//! | --- | --- |
//! | `.await` of an `Unfuture` under tokio (both flavours), smol, futures | yes, as it is |
//! | [`sleep`](crate::sleep()), [`timeout`](crate::timeout()), [`interval`](crate::interval()) there | yes: the timer lives on the ambient thread |
//! | `.result()` and [`block_on`](crate::block_on()) in a task of theirs | yes, as any blocking call; see [below](#what-cannot-work) |
//! | channels and locks: `tokio::sync`, `futures::channel` | yes, anywhere, without a runtime |
//! | `async-io` and `smol`: sockets, timers, `unblock` | yes, as they are: they bring a driver thread along |
//! | tokio's sockets, timers and `tokio::spawn` in an `unsync` task | with one of the recipes |
//!
//! Without a recipe tokio does not find its reactor and panics: "there is no reactor running, must be
//! called from the context of a Tokio 1.x runtime". Only that task fails, as
//! [`ErrorKind::Panicked`](crate::ErrorKind::Panicked).
//!
//! ## `#[tokio::main]` with workers
//!
//! `init` may be the first line of an async `main`, but then each worker process starts a runtime that it
//! does not need. To call `init` first, write out what the attribute expands to:
//!
//! ```ignore
//! // Run by tests/foreign/tests/tokio_main.rs.
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     unsync::init();
//!     tokio::runtime::Runtime::new()?.block_on(async {
//!         let squares = unsync::join_all((0..100).map(|n| unsync::cpu(square, (n,)))).await?;
//!         Ok(println!("{}", squares.len()))
//!     })
//! }
//! ```
//!
//! ## For every task: enter the runtime around each poll
//!
//! For a program that uses tokio's types everywhere, [`Config::around_poll`](crate::Config::around_poll)
//! enters a runtime for every task.
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
//! - The runtime must be a **multi-thread** one, which drives its reactor by itself; one worker is enough. A
//!   current-thread runtime drives its reactor only while a thread is in its `block_on`; otherwise the task
//!   waits forever.
//! - The runtime must live as long as the tasks that use it. When the runtime is dropped, those tasks panic,
//!   each with its own error.
//! - [`spawn_now`](crate::spawn_now()) makes its first poll on the calling thread, without the hook.
//!
//! ## For one future: wrap it
//!
//! ```ignore
//! // Run by tests/foreign/tests/wrapped.rs.
//! unsync::spawn(async_compat::Compat::new(talk())); // brings its own runtime
//! unsync::spawn(tokio_util::context::TokioContext::new(talk(), handle)); // uses yours
//! ```
//!
//! The same without another crate. `within` enters the runtime for each poll, because the guard of `enter`
//! must not be held across an `.await`: the guard is bound to its thread, so such a future would not be
//! `Send`.
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
//! Create tokio's types inside the future, `within(handle, async { tokio::time::sleep(d).await })`: tokio
//! looks for its reactor when a timer is created, and a timer in an argument is created before the runtime is
//! entered.
//!
//! ## What cannot work
//!
//! - **Blocking the thread that the work needs.** A current-thread runtime drives its reactor on the thread
//!   of its `block_on`. Calling [`result`](crate::Unfuture::result) there, for an `unsync` task that waits
//!   for a socket of the same runtime, deadlocks: neither library knows of the other. `.await` it, or use a
//!   multi-thread runtime. [`wait_timeout`](crate::Unfuture::wait_timeout) turns the hang into a `false`.
//! - **Blocking in an `unsync` task.** `result` of unfinished work is an error there, and every other wait of
//!   this library panics or returns an error. The library cannot refuse the waits of other libraries, but
//!   `UNSYNC_DEBUG=1` reports them.
//! - **Sockets without a reactor.** Use `std::net` in a [`thread`](crate::thread()) job: it needs no crate.
