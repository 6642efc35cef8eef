//! The child side: a process that does nothing but serve calls.
//!
//! ```text
//!   link ──▶ executor: Start, run, Done ──▶ link        while calls are quick
//!   link ──▶ standby reader ──▶ Returned ──▶ link       while one takes long
//!               └ end of the link: the process ends, whatever the executor is doing
//! ```
//!
//! - **The executor** runs one call after another on a stack of known size. It acknowledges the start of each
//!   call before it runs it, in one write with the end of the previous one. Between two calls it reads the
//!   link itself: every additional thread that a call passes through costs as much as the call.
//! - **The standby reader** takes over the link when a call runs for longer than a moment. It returns the
//!   calls behind that one, so that other workers can run them. The parent can always write, and the worker
//!   sees at once when the parent ends: no orphans.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::env;
use std::io::{self, Write};
use std::mem;
use std::panic::{self, PanicHookInfo};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use super::buffers;
use super::frame::{self, Frame, FrameReader, Header, Kind};
use super::handshake::{self, WorkerConfig};
use super::registry;
use super::relay;
use super::transport::{self, Link, Rx, Tx};
use super::wire::{Wire, encode_within};
use crate::config::{Config, start};
use crate::current::{self, Current};
use crate::error::{Error, ErrorKind, discard, lock, panic_message, wall};
use crate::spin;

/// The argument that tells a worker process what it is. Processes that it starts do not inherit arguments. The
/// version is in it: a program may contain several, each with its own `init`.
const ARGUMENT: &str = concat!("--unsync-worker=", env!("CARGO_PKG_VERSION"));
/// The same for a worker that is a test binary: the harness takes it for one more filter.
const TEST_ARGUMENT: &str = concat!("unsync::worker=", env!("CARGO_PKG_VERSION"));
/// Without a version, the process was started by hand, and says that no program waits for it.
const MANUAL_ARGUMENT: &str = "--unsync-worker";
/// The same for a relay. [`MANUAL_ARGUMENT`] follows, so that a program with another version of this library
/// says that no program waits for it, and does not run its `main`.
const RELAY_ARGUMENT: &str = concat!("--unsync-relay=", env!("CARGO_PKG_VERSION"));
const TEST_RELAY_ARGUMENT: &str = concat!("unsync::relay=", env!("CARGO_PKG_VERSION"));
/// Ends what the harness prints on standard output: the rest is the user's.
pub(crate) const TEST_MARK: &str = "\u{1}unsync::worker\u{1}\n";

/// How this program starts workers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Setup {
    /// `main` calls `init`.
    Main,
    /// A test of this name stands in for `main`.
    Test(&'static str),
}

static MAIN_CALLS_INIT: OnceLock<()> = OnceLock::new();
static TEST: OnceLock<&'static str> = OnceLock::new();
static WORKER: OnceLock<Worker> = OnceLock::new();

/// Lets this program run its own functions in worker processes. Call it in the first line of `main`.
///
/// A worker is another process running the same executable. In a worker, this function serves until the
/// program that started the worker ends, and never returns, whichever thread calls it and however often. So
/// code before it in `main` runs in every worker too. Elsewhere it returns at once and costs nothing. A test
/// binary has no `main` of its own: there, use [`test_worker!`](crate::test_worker).
///
/// - **Executable.** On Linux a worker runs the same file as this program, even if that file was replaced or
///   deleted since. Elsewhere it runs the file that now has the name. If a program is replaced there while it
///   runs, its workers run the new one and may not understand their calls; if that has another version of
///   this library, they run its `main`.
/// - **Two versions** of this library in one program: call the `init` of both, one directly after the other.
///   Each takes the workers of its own version.
/// - **Signals.** On Unix each worker has its own process group. Ctrl-C and Ctrl-Z at the terminal reach the
///   program alone: its workers end with it, but they do not pause with it. A service manager that signals
///   every process of a service reaches the workers too: systemd's SIGTERM ends them, and the calls that they
///   run fail as [`ErrorKind::WorkerLost`], unless the unit says `KillMode=mixed`.
/// - **Terminal.** On Unix workers are not in the terminal's foreground. The system stops a worker that reads
///   from `/dev/tty` or sets the terminal's modes, or that starts a program which does so, such as `ssh` when
///   it asks for a password; after `stty tostop` also one that prints. A stopped worker stays stopped, and
///   its call does not end unless a deadline ends it. On Linux, with the environment variable `UNSYNC_DEBUG`
///   set to `1`, a worker that is stopped while it runs a call is reported on standard error.
/// - **Memory.** If memory runs out, Linux ends a worker before it ends the program: a worker sets its
///   `oom_score_adj` to 500.
/// - **Environment.** A worker keeps the working directory and the environment that the program had when the
///   worker was started.
/// - **Orphans.** A process that a worker started and did not wait for becomes a child of process 1 when the
///   worker ends. If the program itself is process 1, as in a container, nobody reaps such processes: let an
///   init process start the program, as `docker run --init` does.
/// - **Fork.** A process that foreign code forks without `exec` has none of this library's threads, so work
///   that it starts never ends.
///
/// # Panics
///
/// If a function that runs in a worker calls it, since it never returns there.
///
/// # Examples
///
/// ```
/// fn main() {
///     unsync::init();
///     println!("only the program itself comes here");
/// }
/// ```
#[allow(clippy::needless_doctest_main)]
pub fn init() {
    // Not only the first argument: `worker_command` may have put others before it.
    for argument in env::args_os().skip(1) {
        if argument == RELAY_ARGUMENT {
            relay::serve();
        }
        if argument == ARGUMENT || argument == MANUAL_ARGUMENT {
            serve();
        }
    }
    MAIN_CALLS_INIT.get_or_init(|| ());
}

/// Returns whether this process is a worker. `false` until [`init`] is called.
///
/// # Examples
///
/// ```
/// fn where_am_i() -> bool {
///     unsync::is_worker()
/// }
/// unsync::register!(where_am_i);
///
/// # fn main() {
/// unsync::init();
/// assert!(!unsync::is_worker());
/// assert!(unsync::cpu(where_am_i, ()).result().unwrap());
/// # }
/// ```
pub fn is_worker() -> bool {
    WORKER.get().is_some()
}

pub(crate) fn setup() -> Option<Setup> {
    let main = MAIN_CALLS_INIT.get().map(|()| Setup::Main);
    main.or_else(|| TEST.get().map(|name| Setup::Test(name)))
}

/// Adds the arguments by which another process of this program knows that it is a worker, or a relay.
pub(super) fn add_arguments(command: &mut Command, is_relay: bool) {
    match setup() {
        Some(Setup::Test(name)) => {
            let role = match is_relay {
                true => TEST_RELAY_ARGUMENT,
                false => TEST_ARGUMENT,
            };
            let quiet = "--exact --include-ignored --nocapture --test-threads=1 -q".split(' ');
            command.arg(name).args(quiet).arg(role);
            command.stdout(Stdio::piped());
        }
        _ if is_relay => drop(command.args([RELAY_ARGUMENT, MANUAL_ARGUMENT])),
        _ => drop(command.arg(ARGUMENT)),
    }
}

/// Lets a test binary run its functions in worker processes.
///
/// Use it once per test binary, at the top of an integration test or beside the unit tests of a crate. It
/// appears in the list of tests as an ignored test, and works under any harness that can run a test by name,
/// such as cargo-nextest.
///
/// # Examples
///
/// ```
/// # #![allow(unused)]
/// # mod tests {
/// unsync::test_worker!();
///
/// fn double(n: u32) -> u32 {
///     n * 2
/// }
/// unsync::register!(double);
///
/// #[test]
/// fn doubles_in_another_process() {
///     assert_eq!(unsync::cpu(double, (2,)).result().unwrap(), 4);
/// }
/// # }
/// ```
#[allow(clippy::test_attr_in_doctest)]
#[macro_export]
macro_rules! test_worker {
    () => {
        #[test]
        #[ignore = "no test: worker processes start here"]
        fn __unsync_test_worker() {
            // In here, so that it is there only if the test is: any other program would start its own `main`.
            $crate::__before_main! {
                $crate::__private::set_test_worker(::core::concat!(
                    ::core::module_path!(),
                    "::__unsync_test_worker"
                ))
            }
            $crate::__private::test_worker();
        }
    };
}

/// For `test_worker!`: tells which test is the worker. The harness leaves out the crate's name.
pub fn set_test_worker(path: &'static str) {
    TEST.get_or_init(|| path.split_once("::").map_or(path, |(_, name)| name));
}

/// For `test_worker!`: the body of that test. Outside a worker it does nothing.
pub fn test_worker() {
    if env::args_os().any(|argument| argument == TEST_RELAY_ARGUMENT) {
        relay::serve();
    }
    if env::args_os().any(|argument| argument == TEST_ARGUMENT) {
        // If nobody reads this, nobody waits for a worker either, and `serve` finds that out.
        let _ = transport::stdout().and_then(|mut stdout| stdout.write_all(TEST_MARK.as_bytes()));
        serve();
    }
}

// ------------------------------------------------------------------------------------ the worker

struct Worker {
    tx: Tx,
    config: WorkerConfig,
    /// Held while a frame is written, so that frames stay whole.
    writing: Mutex<()>,
    state: Mutex<State>,
    /// Wakes the standby reader when a call begins, or the executor when the link is put back. At most one of
    /// them waits.
    changed: Condvar,
}

/// What the executor is doing.
#[derive(Default)]
struct State {
    /// The call that it runs, while it does not read the link. Zero while it reads.
    call: u64,
    /// Whether the parent wants that call to end by itself.
    is_cancelled: bool,
    /// The reading end of the link, while nobody reads.
    incoming: Option<Incoming>,
    /// Whether the standby reader sleeps until a call begins. Set by the standby reader.
    wakes_standby: bool,
}

struct Incoming {
    frames: FrameReader,
    source: Rx,
}

/// Lets the first thread serve, as a worker or as a relay. Any other must not get past `init` either.
pub(super) fn park_if_served() {
    static SERVED: AtomicBool = AtomicBool::new(false);
    while SERVED.swap(true, Ordering::Relaxed) {
        thread::park();
    }
}

fn serve() -> ! {
    assert!(
        !matches!(Current::get(), Current::Worker),
        "`init` belongs to the first line of `main`: this is a call in a worker process"
    );
    park_if_served();
    let (Link { rx, tx }, config) = handshake::connect_back().unwrap_or_else(|error| {
        let text = format!("this is a worker process and nobody waits for it: {error}");
        leave(Some(&text))
    });
    spin::set_budget(config.spin);
    let settings = Config::new()
        .frame_bytes_max(config.frame_bytes_max)
        .stack_size(config.stack_size)
        .spin(config.spin);
    // For calls that a function makes, which run in this process, on other threads. If the environment is in
    // the way, they say so; settings that code before `init` has made stay.
    drop(settings.install());
    let worker = WORKER.get_or_init(|| Worker {
        tx,
        config,
        writing: Mutex::new(()),
        state: Mutex::new(State {
            incoming: Some(Incoming {
                frames: FrameReader::new(usize::MAX),
                source: rx,
            }),
            ..State::default()
        }),
        changed: Condvar::new(),
    });
    prefer_to_be_killed();
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        worker.report(info);
        default(info);
    }));
    let stack_size = Some(config.stack_size);
    // The executor comes last: calls start with it.
    let standby = start("link", None, Box::new(|| worker.stand_by()));
    match standby.and_then(|_| start("call", stack_size, Box::new(|| worker.execute()))) {
        // Foreign code can end a thread. A worker without its executor is useless, and must not look alive.
        Ok(executor) => drop(executor.join()),
        Err(error) => worker.refuse(&error),
    }
    process::abort()
}

/// If memory runs out, it is better to lose a worker than the program. Only Linux has this.
fn prefer_to_be_killed() {
    const SCORE: &str = "/proc/self/oom_score_adj";
    let score = std::fs::read_to_string(SCORE).unwrap_or_default();
    if score.trim().parse().is_ok_and(|score: i32| score < 500) {
        let _ = std::fs::write(SCORE, "500");
    }
}

/// Ends the process, and says why if its program may still be there to read that.
///
/// Nothing here may keep the process alive: neither a standard error that nobody reads, nor an exit handler
/// of the process.
pub(super) fn leave(why: Option<&str>) -> ! {
    abort_soon();
    why.into_iter().for_each(transport::log);
    process::exit(i32::from(why.is_some()))
}

/// Aborts the process in two seconds, unless it ends before.
pub(super) fn abort_soon() {
    let watchdog = || {
        // In parts: a machine that stands still uses up one of them at most.
        (0..20).for_each(|_| thread::sleep(Duration::from_millis(100)));
        process::abort();
    };
    if start("abort", None, Box::new(watchdog)).is_err() {
        process::abort();
    }
}

impl Worker {
    /// Writes frames. A parent that does not take them is gone.
    ///
    /// The thread that has the reading end lends it, see [`Tx::write_all`].
    fn send(&self, frames: &[u8], rx: Option<&mut Rx>) {
        let writing = lock(&self.writing);
        let sent = self.tx.write_all(frames, rx);
        drop(writing);
        if sent.is_err() {
            leave(None);
        }
    }

    /// Tells the parent that there is no thread to run calls, and ends the process.
    fn refuse(&self, error: &io::Error) -> ! {
        self.send(&frame::of(Kind::Refused, 0, error), None);
        process::exit(1)
    }

    /// Does what a frame says, or returns it if it is a call.
    fn accept<'a>(&self, frame: Frame<'a>, reader: &mut Rx) -> Option<Frame<'a>> {
        let Header { kind, call, .. } = frame.0;
        match kind {
            Kind::Call => return Some(frame),
            Kind::Rts => self.send(&frame::of(Kind::Cts, 0, &()), Some(reader)),
            Kind::Cancel => {
                let mut state = lock(&self.state);
                // A `Cancel` for a call that is over does not concern the running one.
                state.is_cancelled |= state.call == call;
            }
            Kind::Noop => {}
            _ => leave(None),
        }
        None
    }

    /// Reads until there is a frame. At the end of the link the process ends.
    fn fill(&self, incoming: &mut Incoming) {
        match incoming.frames.fill(&mut incoming.source) {
            Ok(true) => {}
            Ok(false) => leave(None),
            Err(error) if transport::is_end(&error) => leave(None),
            Err(error) => leave(Some(&format!(
                "a worker process cannot read its link: {error}"
            ))),
        }
    }

    /// The body of the thread that runs the calls.
    fn execute(&self) {
        Current::Worker.set();
        current::run(Arc::new(RunningCall), || {
            let mut outbox = Vec::new();
            loop {
                let (call, payload) = self.next(&mut outbox);
                frame::begin(&mut outbox, Kind::Start, call);
                self.send(&outbox, None);
                outbox.clear();
                self.run(call, payload, &mut outbox);
            }
        });
    }

    /// The next call from the link, which runs from now on.
    fn next(&self, outbox: &mut Vec<u8>) -> (u64, Vec<u8>) {
        let incoming = lock(&self.state).incoming.take();
        let mut incoming = incoming.unwrap_or_else(|| {
            self.finish(outbox, None);
            self.await_incoming()
        });
        loop {
            let Some(frame) = incoming.frames.pop() else {
                self.finish(outbox, Some(&mut incoming.source));
                self.fill(&mut incoming);
                continue;
            };
            if let Some((header, payload)) = self.accept(frame, &mut incoming.source) {
                let payload = payload.into_owned();
                // Before the parent learns that the call runs, and may want to end it.
                self.begin(header.call, incoming);
                return (header.call, payload);
            }
        }
    }

    /// Sends the end of the last call: nothing follows that it could travel with.
    fn finish(&self, outbox: &mut Vec<u8>, reader: Option<&mut Rx>) {
        // Before the parent learns of the end: calls that it sends after that are not returned.
        lock(&self.state).call = 0;
        if !outbox.is_empty() {
            self.send(outbox, reader);
            buffers::recycle(outbox);
        }
    }

    /// Waits for the standby reader to put back the link, which it does when something has arrived.
    fn await_incoming(&self) -> Incoming {
        let mut state = lock(&self.state);
        loop {
            if let Some(incoming) = state.incoming.take() {
                return incoming;
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The call that runs, or zero.
    fn running(&self) -> u64 {
        lock(&self.state).call
    }

    /// Notes that the executor runs a call, and leaves the link to the standby reader meanwhile.
    fn begin(&self, call: u64, incoming: Incoming) {
        let begun = State {
            call,
            incoming: Some(incoming),
            ..State::default()
        };
        let before = mem::replace(&mut *lock(&self.state), begun);
        if before.wakes_standby {
            self.changed.notify_one();
        }
    }

    /// The body of the thread that reads the link while the executor runs a slow call. As long as calls are
    /// quick, it only checks now and then whether they still are; while there are none, it sleeps.
    fn stand_by(&self) {
        let mut state = lock(&self.state);
        loop {
            let before = state.call;
            let waited = self.changed.wait_timeout(state, self.config.slow);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.call != before {
                continue;
            }
            if before == 0 {
                state.wakes_standby = true;
                let slept = self.changed.wait_while(state, |state| state.wakes_standby);
                state = slept.unwrap_or_else(PoisonError::into_inner);
            } else if let Some(incoming) = state.incoming.take() {
                drop(state);
                self.take_over(incoming);
                state = lock(&self.state);
            }
        }
    }

    /// Reads the link until the executor can read it again, and returns to the parent the calls that are
    /// there and those that arrive.
    ///
    /// A write may wait here for the executor to finish one. The executor can finish, because the parent
    /// reads: the parent makes no write that blocks while anything of this worker is in flight.
    fn take_over(&self, mut incoming: Incoming) {
        while self.running() != 0 {
            // The executor may be in a write that finds no room.
            incoming.source.make_blocking();
            let mut returned = Vec::new();
            while let Some(frame) = incoming.frames.pop() {
                let call = self.accept(frame, &mut incoming.source);
                returned.extend(call.map(|(header, _)| header.call));
            }
            if !returned.is_empty() {
                let frame = frame::of(Kind::Returned, 0, &returned);
                self.send(&frame, Some(&mut incoming.source));
            }
            self.fill(&mut incoming);
        }
        lock(&self.state).incoming = Some(incoming);
        self.changed.notify_one();
    }

    /// Reports a panic to the parent from inside the panic hook, so that it arrives even if the process ends.
    /// Panics of other threads are not the call's.
    fn report(&self, info: &PanicHookInfo<'_>) {
        let Some(call) = self.call() else { return };
        let text = panic_message(info.payload());
        let backtrace = Backtrace::capture();
        let captured = backtrace.status() == BacktraceStatus::Captured;
        let report = PanicReport {
            text: text.map(|text| clip(text, TEXT).to_owned()),
            place: info.location().map(ToString::to_string),
            backtrace: captured.then(|| clip(&backtrace.to_string(), BACKTRACE).to_owned()),
        };
        self.send(&frame::of(Kind::Panic, call, &report), None);
    }

    /// The call that this thread runs. Other threads of its function have no call of their own, and a pinned
    /// value lives on a thread of its own.
    fn call(&self) -> Option<u64> {
        let running = self.running();
        matches!(Current::get(), Current::Worker).then_some(running)
    }

    /// Runs one call and writes its `Done` into the empty outbox.
    fn run(&self, call: u64, payload: Vec<u8>, outbox: &mut Vec<u8>) {
        let start = frame::begin(outbox, Kind::Done, call);
        None::<u8>.encode(outbox);
        let (kind, message) = match wall(|| perform(payload, self.config.frame_bytes_max, outbox)) {
            Ok(Ok(())) => return frame::end(outbox, start),
            Ok(Err(error)) => (error.kind(), error.to_string()),
            Err(payload) => {
                let message = panic_message(&*payload).unwrap_or_default().to_owned();
                discard(payload);
                (ErrorKind::Panicked, message)
            }
        };
        let message = clip(&message, TEXT).to_owned();
        *outbox = frame::of(Kind::Done, call, &(Some(kind as u8), message));
    }
}

/// The call that runs, whichever it is.
struct RunningCall;

impl current::Job for RunningCall {
    fn is_cancelled(&self) -> bool {
        WORKER.get().is_some_and(|worker| {
            let state = lock(&worker.state);
            state.call != 0 && state.is_cancelled
        })
    }
}

/// The longest message of a failure and the longest backtrace that are reported, in bytes.
const TEXT: usize = 64 << 10;
const BACKTRACE: usize = 512 << 10;

pub(super) fn clip(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// What a panic hook knows.
#[derive(Default)]
pub(crate) struct PanicReport {
    pub(crate) text: Option<String>,
    pub(crate) place: Option<String>,
    /// Only if `RUST_BACKTRACE` is set.
    pub(crate) backtrace: Option<String>,
}

crate::wire!(struct PanicReport { text, place, backtrace });

/// Reports the progress of the running call to the program:
/// [`on_progress`](crate::Unfuture::on_progress) receives the value.
///
/// Call it in the function of a [`cpu`](crate::cpu()) call, on the thread that runs the function. Elsewhere
/// it does nothing: on other threads, outside a worker process, and in a call that a worker makes. A value
/// above the limit of a frame is not sent.
///
/// Costs one write of a small message. The program looks at the newest value of each type only, so frequent
/// reports do no harm. The listener has to name the same type: it does not get a `u32` as a `u64`.
///
/// # Examples
///
/// ```
/// fn count(to: u64) -> u64 {
///     (1..=to).inspect(|done| unsync::progress(*done)).sum()
/// }
/// unsync::register!(count);
///
/// # fn main() -> Result<(), unsync::Error> {
/// unsync::init();
/// let counting = unsync::cpu(count, (100,)).on_progress(|done: u64| println!("{done} of 100"));
/// assert_eq!(counting.result()?, 5050);
/// # Ok(())
/// # }
/// ```
pub fn progress<P: Wire + 'static>(value: P) {
    let Some(worker) = WORKER.get() else { return };
    let Some(call) = worker.call() else { return };
    let mut frame = Vec::new();
    let start = frame::begin(&mut frame, Kind::Progress, call);
    registry::id_of::<P>().encode(&mut frame);
    let encoded = encode_within(worker.config.frame_bytes_max, &value, &mut frame);
    frame::end(&mut frame, start);
    if encoded.is_ok() {
        worker.send(&frame, None);
    }
}

/// Decodes a call, runs it, and appends what it returns, which may take up to `limit` bytes.
///
/// # Errors
///
/// `NotRegistered`, `Codec` for the arguments, or `TooLarge` for the result.
pub(crate) fn perform(payload: Vec<u8>, limit: usize, output: &mut Vec<u8>) -> Result<(), Error> {
    let id = u64::decode(&mut payload.as_slice())?;
    let entry = registry::find(id).ok_or_else(|| {
        Error::new(
            ErrorKind::NotRegistered,
            "the worker process does not know this function",
        )
    })?;
    (entry.serve)(payload, limit, output)
}
