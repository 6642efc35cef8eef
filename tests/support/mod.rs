//! The building blocks of the tests: time limits, gates, counters, hand-made wakers, and separate
//! processes for tests that count what the whole process has.
//!
//! Each test binary includes this file and uses part of it.
#![allow(dead_code)]

use std::fmt::Debug;
use std::future::Future;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};
use std::{env, iter};

use unsync::{Error, ErrorKind, Unfuture};

/// The limit of a test that takes hardly any time.
pub(crate) const QUICK: Duration = Duration::from_secs(30);
/// The limit of a test that does a lot.
pub(crate) const HEAVY: Duration = Duration::from_secs(60);

/// Runs the body of a test on a thread of its own and panics if it does not end in time, so that a hang
/// is a failure with a name. Panics of the body are passed on.
pub(crate) fn limit<R: Send + 'static>(
    limit: Duration,
    body: impl FnOnce() -> R + Send + 'static,
) -> R {
    let (sender, receiver) = mpsc::channel();
    let name = thread::current().name().unwrap_or("a test").to_owned();
    let body = move || sender.send(catch_unwind(AssertUnwindSafe(body)));
    let thread = thread::Builder::new().name(name.clone()).spawn(body);
    thread.expect("a thread for the test");
    match receiver.recv_timeout(limit) {
        Ok(Ok(value)) => value,
        Ok(Err(payload)) => resume_unwind(payload),
        Err(RecvTimeoutError::Timeout) => panic!("{name} did not end within {limit:?}"),
        Err(RecvTimeoutError::Disconnected) => unreachable!("the body always reports"),
    }
}

/// [`limit`] with the limit of most tests.
pub(crate) fn quick<R: Send + 'static>(body: impl FnOnce() -> R + Send + 'static) -> R {
    limit(QUICK, body)
}

/// Waits for something that has no event of its own: checks until it holds.
#[track_caller]
pub(crate) fn eventually<S: Debug>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> (bool, S),
) {
    let deadline = Instant::now() + limit;
    loop {
        let (so, seen) = look();
        if so {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "not within {limit:?}: {what}; seen last: {seen:?}"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

/// Tries something that has to be done before a delay is over, with longer and longer delays, until it was
/// done in time.
#[track_caller]
pub(crate) fn before_a_delay(in_time: impl FnMut(Duration) -> bool) {
    let mut delays = [30, 300, 3_000, 15_000]
        .map(Duration::from_millis)
        .into_iter();
    assert!(delays.any(in_time), "too slow a machine");
}

/// Returns when the ambient thread has done everything that this thread asked of it before this call,
/// and has then looked at its own queue twice.
pub(crate) fn fence() {
    let fence = unsync::spawn(async {
        unsync::yield_now().await;
        unsync::yield_now().await;
    });
    fence.result().unwrap();
}

/// Work that blocks its thread by now, and ends when the gate opens.
pub(crate) fn blocked(
    start: impl FnOnce(Box<dyn FnOnce() + Send>) -> Unfuture<()>,
) -> (Gate, Unfuture<()>) {
    let (blocks, release) = (Gate::new(), Gate::new());
    let work = start(Box::new({
        let (blocks, release) = (blocks.clone(), release.clone());
        move || {
            blocks.open();
            release.wait();
        }
    }));
    blocks.wait();
    (release, work)
}

/// A task that blocks the ambient thread.
pub(crate) fn blocked_task() -> (Gate, Unfuture<()>) {
    blocked(|block| unsync::spawn(async { block() }))
}

/// Keeps the ambient thread inside a poll until it is dropped.
pub(crate) struct Held(Gate, Option<Unfuture<()>>);

pub(crate) fn hold_ambient() -> Held {
    let (release, task) = blocked_task();
    Held(release, Some(task))
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.open();
        let ended = self.1.take().map(Unfuture::result);
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))));
    }
}

#[track_caller]
pub(crate) fn assert_kind<T>(outcome: Result<T, Error>, kind: ErrorKind, what: &str) {
    match outcome {
        Ok(_) => panic!("{what}: a value instead of {kind:?}"),
        Err(error) => assert_eq!(error.kind(), kind, "{what}: {error}"),
    }
}

/// Shuts down while work is pending. A tenth of the limit is left for the ends, which is not always
/// enough on a busy machine: the second call only waits for them.
#[track_caller]
pub(crate) fn shut_down(limit: Duration) {
    if let Err(late) = unsync::shutdown(limit) {
        assert_eq!(late.kind(), ErrorKind::TimedOut, "{late}");
        unsync::shutdown(QUICK).unwrap();
    }
}

/// The text of a panic.
#[track_caller]
pub(crate) fn panic_text<R>(step: impl FnOnce() -> R) -> String {
    let Err(payload) = catch_unwind(AssertUnwindSafe(step)) else {
        panic!("it did not panic");
    };
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|&text| text.into()))
        .expect("a panic with a text")
}

/// Whether the calling thread is the ambient one, by its name.
pub(crate) fn on_ambient() -> bool {
    thread::current().name() == Some("unsync-ambient")
}

// ------------------------------------------------------------------------------------------ gates

/// Closed until it is opened, then open forever. Threads and tasks can wait for it.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<GateState>);

#[derive(Default)]
struct GateState {
    /// Whether it is open, and the wakers to wake when it opens.
    state: Mutex<(bool, Vec<Waker>)>,
    opened: Condvar,
}

impl Gate {
    pub(crate) fn new() -> Gate {
        Gate::default()
    }

    fn lock(&self) -> MutexGuard<'_, (bool, Vec<Waker>)> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn open(&self) {
        let mut state = self.lock();
        state.0 = true;
        let wakers = std::mem::take(&mut state.1);
        drop(state);
        self.0.opened.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn is_open(&self) -> bool {
        self.lock().0
    }

    /// Blocks the thread.
    pub(crate) fn wait(&self) {
        let opened = self.0.opened.wait_while(self.lock(), |state| !state.0);
        drop(opened.unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) async fn pass(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.lock();
            if state.0 {
                return Poll::Ready(());
            }
            if !state.1.iter().any(|waker| waker.will_wake(cx.waker())) {
                state.1.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

// --------------------------------------------------------------------------------------- counters

/// A number that threads can wait for.
#[derive(Clone, Default)]
pub(crate) struct Counter(Arc<(Mutex<usize>, Condvar)>);

impl Counter {
    pub(crate) fn new() -> Counter {
        Counter::default()
    }

    /// Adds one and returns the sum.
    pub(crate) fn add(&self) -> usize {
        let mut count = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        *count += 1;
        self.0.1.notify_all();
        *count
    }

    pub(crate) fn count(&self) -> usize {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks until the count is at least `least`.
    pub(crate) fn wait_for(&self, least: usize) {
        let count = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let reached = self.0.1.wait_while(count, |count| *count < least);
        drop(reached.unwrap_or_else(PoisonError::into_inner));
    }
}

/// How often values were dropped, and where.
#[derive(Clone, Default)]
pub(crate) struct Drops {
    count: Counter,
    places: Arc<Mutex<Vec<Place>>>,
}

/// A thread as a test names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) id: ThreadId,
    pub(crate) name: Option<String>,
}

impl Place {
    pub(crate) fn here() -> Place {
        let thread = thread::current();
        Place {
            id: thread.id(),
            name: thread.name().map(str::to_owned),
        }
    }

    pub(crate) fn is_ambient(&self) -> bool {
        self.name.as_deref() == Some("unsync-ambient")
    }

    pub(crate) fn is_pool(&self) -> bool {
        self.name.as_deref().is_some_and(is_pool)
    }
}

/// Whether it is `unsync-1`, `unsync-2` and so on.
pub(crate) fn is_pool(name: &str) -> bool {
    let number = name.strip_prefix("unsync-");
    number.is_some_and(|number| number.parse::<usize>().is_ok())
}

/// A value whose drop is counted.
pub(crate) struct Token(Drops);

impl Drops {
    pub(crate) fn new() -> Drops {
        Drops::default()
    }

    pub(crate) fn token(&self) -> Token {
        Token(self.clone())
    }

    pub(crate) fn count(&self) -> usize {
        self.count.count()
    }

    /// Blocks until this many tokens were dropped.
    pub(crate) fn wait_for(&self, least: usize) {
        self.count.wait_for(least);
    }

    /// Where the tokens were dropped, in order.
    pub(crate) fn places(&self) -> Vec<Place> {
        self.places.lock().unwrap().clone()
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.0.places.lock().unwrap().push(Place::here());
        self.0.count.add();
    }
}

impl Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// A value whose drop runs a closure.
pub(crate) struct OnDrop<F: FnMut()>(pub(crate) F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// A value whose drop panics.
pub(crate) struct Bomb(pub(crate) &'static str);

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("{}", self.0);
    }
}

/// The order in which things happened.
#[derive(Clone, Default)]
pub(crate) struct Log<T>(Arc<Mutex<Vec<T>>>);

impl<T: Clone> Log<T> {
    pub(crate) fn new() -> Log<T> {
        Log(Arc::default())
    }

    pub(crate) fn push(&self, entry: T) {
        self.0.lock().unwrap().push(entry);
    }

    pub(crate) fn entries(&self) -> Vec<T> {
        self.0.lock().unwrap().clone()
    }
}

/// Applies `left` and `right` to the two halves of many pairs, at about the same time on two threads.
pub(crate) fn race<A: Send, B: Send, L, R>(
    rounds: usize,
    mut pair: impl FnMut(usize) -> (A, B),
    left: impl Fn(usize, A) -> L + Sync,
    right: impl Fn(usize, B) -> R + Sync,
) {
    const BATCH: usize = 500;
    for first in (0..rounds).step_by(BATCH) {
        let numbers = first..rounds.min(first + BATCH);
        let (lefts, rights): (Vec<A>, Vec<B>) = numbers.map(&mut pair).unzip();
        let at = [AtomicUsize::new(first), AtomicUsize::new(first)];
        // Each side waits for the other, but only briefly: the other may have no core just now.
        let meet = |side: usize, number: usize| {
            at[side].store(number, Ordering::SeqCst);
            let met = || at[1 - side].load(Ordering::SeqCst) >= number;
            (0..1000).any(|_| {
                met() || {
                    std::hint::spin_loop();
                    false
                }
            });
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                for (number, half) in (first..).zip(lefts) {
                    meet(0, number);
                    left(number, half);
                }
            });
            for (number, half) in (first..).zip(rights) {
                meet(1, number);
                right(number, half);
            }
        });
    }
}

// ----------------------------------------------------------------------------------------- wakers

/// A waker that counts its wakes, and shows how many references to it exist.
pub(crate) struct CountingWaker {
    count: Arc<Count>,
    waker: Waker,
}

struct Count(Counter);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.add();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.0.add();
    }
}

impl CountingWaker {
    pub(crate) fn new() -> CountingWaker {
        let count = Arc::new(Count(Counter::new()));
        let waker = Waker::from(Arc::clone(&count));
        CountingWaker { count, waker }
    }

    pub(crate) fn waker(&self) -> &Waker {
        &self.waker
    }

    pub(crate) fn wakes(&self) -> usize {
        self.count.0.count()
    }

    /// Blocks until it was woken this many times.
    pub(crate) fn wait_for(&self, least: usize) {
        self.count.0.wait_for(least);
    }

    /// How many clones of the waker others hold.
    pub(crate) fn held(&self) -> usize {
        // One in `count`, one in `waker`.
        Arc::strong_count(&self.count) - 2
    }

    /// Polls once with this waker.
    pub(crate) fn poll<F: Future + Unpin>(&self, future: &mut F) -> Poll<F::Output> {
        poll(future, &self.waker)
    }
}

/// Polls once by hand.
pub(crate) fn poll<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(waker))
}

/// A waker that runs `on_wake` when it is woken and `on_drop` when its last clone is dropped.
pub(crate) fn waker_with(
    on_wake: impl Fn() + Send + Sync + 'static,
    on_drop: impl Fn() + Send + Sync + 'static,
) -> Waker {
    struct Hooks<W, D: Fn()> {
        wake: W,
        drop: D,
    }
    impl<W: Fn() + Send + Sync, D: Fn() + Send + Sync> Wake for Hooks<W, D> {
        fn wake(self: Arc<Self>) {
            (self.wake)();
        }
        fn wake_by_ref(self: &Arc<Self>) {
            (self.wake)();
        }
    }
    impl<W, D: Fn()> Drop for Hooks<W, D> {
        fn drop(&mut self) {
            (self.drop)();
        }
    }
    Waker::from(Arc::new(Hooks {
        wake: on_wake,
        drop: on_drop,
    }))
}

/// A waker that must not be woken.
pub(crate) fn panicking_waker() -> Waker {
    waker_with(|| panic!("this waker must not be woken"), || ())
}

// ---------------------------------------------------------------- threads and processes by counting

/// The names of the threads of this process, where the system lists them.
#[cfg(target_os = "linux")]
pub(crate) fn thread_names() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    // A thread may end between the listing and the reading.
    let names = tasks.filter_map(|task| {
        std::fs::read_to_string(task.ok()?.path().join("comm")).ok() //
    });
    names.map(|name| name.trim().to_owned()).collect()
}

/// The child processes of this one, where the system lists them.
pub(crate) fn children() -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    numbers
        .filter(|number| parent_of(*number) == Some(std::process::id()))
        .collect()
}

fn parent_of(process: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let after_name = stat.rsplit_once(')')?.1;
    after_name.split_whitespace().nth(1)?.parse().ok()
}

// --------------------------------------------------------------------------------- processor time

/// The processor time that each thread of these processes has used so far. Exact for a sleeping
/// thread.
#[cfg(target_os = "linux")]
pub(crate) fn used(processes: &[u32]) -> std::collections::BTreeMap<u32, Duration> {
    let mut used = std::collections::BTreeMap::new();
    for process in processes {
        let tasks = std::fs::read_dir(format!("/proc/{process}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let number = task.file_name().to_string_lossy().parse().unwrap();
            // If there is nothing to read, the thread has ended since the directory was read.
            if let Some(time) = time_of(&task.path()) {
                used.insert(number, time);
            }
        }
    }
    used
}

#[cfg(target_os = "linux")]
fn time_of(task: &std::path::Path) -> Option<Duration> {
    if let Ok(schedstat) = std::fs::read_to_string(task.join("schedstat")) {
        let nanos = schedstat.split(' ').next()?.parse().ok()?;
        return Some(Duration::from_nanos(nanos));
    }
    // A kernel without it counts in ticks, a hundred per second: user and system time are the 12th
    // and 13th field after the name, which is in parentheses.
    let stat = std::fs::read_to_string(task.join("stat")).ok()?;
    let fields = Vec::from_iter(stat.rsplit_once(')')?.1.split_whitespace());
    let ticks: u64 = [11, 12]
        .iter()
        .map(|&at| fields[at].parse::<u64>().unwrap())
        .sum();
    Some(Duration::from_millis(10 * ticks))
}

/// How many times threads of the library have begun to wait so far.
#[cfg(target_os = "linux")]
pub(crate) fn waits() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let of_task = |task: std::fs::DirEntry| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        let mut lines = status.lines();
        let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        let count: u64 = count.trim().parse().unwrap();
        name.starts_with("unsync-").then_some(count)
    };
    tasks.filter_map(of_task).sum()
}

// ------------------------------------------------------------------------- processes of their own

const CHILD: &str = "UNSYNC_TEST_CHILD";

/// Runs the body of the test `name` in a process of its own, with these variables set: for what is
/// counted by process, set before first use, or ends a process when it fails.
///
/// The process is this test binary, asked for the same test. `name` is the test's path as libtest prints
/// it; a wrong name is noticed, because then the body does not run. Returns the output of the process;
/// `None` in that process itself.
pub(crate) fn in_child(
    name: &str,
    limit: Duration,
    variables: &[(&str, &str)],
    body: impl FnOnce() + Send + 'static,
) -> Option<String> {
    // With its variables, since a test may use several sets of them.
    let this = format!("{name} {variables:?}");
    if let Some(child) = env::var_os(CHILD) {
        if child == *this {
            self::limit(limit, body);
            println!("{CHILD}: {this} ends");
        }
        return None;
    }
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([name, "--exact", "--nocapture"]);
    for variable in ["UNSYNC_THREADS", "UNSYNC_PROCESSES", "UNSYNC_DEBUG"] {
        command.env_remove(variable);
    }
    command.envs(variables.iter().copied()).env(CHILD, &this);
    // The child ends a hang by itself; this limit is for a child that cannot.
    let ended = run(command, limit + QUICK);
    print!("{}", ended.output);
    assert!(
        ended.success && ended.output.contains(&format!("{CHILD}: {this} ends")),
        "{this} failed in a process of its own ({})",
        ended.status
    );
    Some(ended.output)
}

/// What became of a process.
pub(crate) struct Ended {
    pub(crate) success: bool,
    pub(crate) status: String,
    /// Standard output, and then standard error.
    pub(crate) output: String,
}

/// Runs a command to its end, and kills it if it takes longer than `limit`.
pub(crate) fn run(mut command: Command, limit: Duration) -> Ended {
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (sender, receiver) = mpsc::channel();
    let read = |mut pipe: Box<dyn Read + Send>| {
        let sender = sender.clone();
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let read = pipe.read_to_end(&mut bytes);
            // Nobody receives this if the limit has passed.
            let _ = sender.send(());
            read.unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let readers = [
        read(Box::new(child.stdout.take().unwrap())),
        read(Box::new(child.stderr.take().unwrap())),
    ];
    let deadline = Instant::now() + limit;
    let in_time = iter::repeat_with(|| deadline.saturating_duration_since(Instant::now()))
        .take(readers.len())
        .all(|left| receiver.recv_timeout(left).is_ok());
    if !in_time {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    let output = readers.map(|reader| reader.join().unwrap()).concat();
    let late = if in_time { "" } else { ", killed: too slow" };
    Ended {
        success: in_time && status.success(),
        status: format!("{status}{late}"),
        output,
    }
}

// ------------------------------------------------------------------ programs that must not compile

/// Compiles a program that uses this crate, and says whether it compiles and what the compiler says.
/// `None` if there is no cargo to run.
pub(crate) fn compile(name: &str, main: &str) -> Option<(bool, String)> {
    cargo("check", name, main)
}

/// The same down to machine code: some errors appear only there.
pub(crate) fn build(name: &str, main: &str) -> Option<(bool, String)> {
    cargo("build", name, main)
}

fn cargo(subcommand: &str, name: &str, main: &str) -> Option<(bool, String)> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let root = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled");
    let project = root.join(name);
    std::fs::create_dir_all(project.join("src")).unwrap();
    let manifest = format!(
        "[package]\nname = \"{name}\"\nedition = \"2024\"\n\
         [dependencies]\nunsync = {{ path = {:?} }}\n[workspace]\n",
        env!("CARGO_MANIFEST_DIR")
    );
    std::fs::write(project.join("Cargo.toml"), manifest).unwrap();
    std::fs::write(project.join("src/main.rs"), main).unwrap();
    let mut command = Command::new(env::var_os("CARGO").unwrap_or(env!("CARGO").into()));
    command
        .args([subcommand, "--offline", "--quiet", "--color=never"])
        // The suite also runs with compilers that are older than the crate asks for.
        .arg("--ignore-rust-version")
        .arg("--target-dir")
        .arg(root.join("target"))
        .current_dir(&project);
    // The settings that the tests themselves are built with do not apply here.
    for (variable, _) in env::vars_os() {
        let name = variable.to_string_lossy();
        if name.contains("RUSTFLAGS") || name.starts_with("CARGO_BUILD_") {
            command.env_remove(variable);
        }
    }
    if Command::new(command.get_program())
        .arg("-V")
        .output()
        .is_err()
    {
        println!("skipped: {:?} cannot be run", command.get_program());
        return None;
    }
    // It compiles the whole library. On a busy machine that may take minutes.
    let ended = run(command, 10 * HEAVY);
    assert!(!ended.status.contains("too slow"), "{}", ended.status);
    Some((ended.success, ended.output))
}

// ----------------------------------------------------------------------- guests of worker processes

/// A function for worker processes to run: each test binary registers the ones it calls.
pub(crate) fn same(n: u64) -> u64 {
    n
}

pub(crate) fn boom(_: u64) -> u64 {
    panic!("boom")
}

pub(crate) fn die(_: u64) -> u64 {
    std::process::exit(3)
}

/// Reports its process number, and ends only by being killed.
pub(crate) fn hang(_: u64) -> u64 {
    unsync::progress(std::process::id());
    loop {
        thread::sleep(Duration::from_secs(60));
    }
}
