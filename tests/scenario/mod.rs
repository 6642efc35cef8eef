//! Scenarios: tests that need a process to themselves, because they kill it, limit it, set it up, or
//! count what it holds.
//!
//! ```text
//!   test ──starts──▶ scenario: another process of the test binary ──▶ its workers
//!     │                  └──starts──▶ programs: processes that the scenario may kill
//!     └── waits, within a limit, and then looks for anything that was left behind
//! ```
//!
//! - **A home** is the private directory of a scenario. It holds the files that the scenario makes, its
//!   output, and its temporary directory, which has to be empty at the end. Its path is in the
//!   environment of every process of the scenario, so that they can be found.
//! - **A play** is a named function, for a scenario or a program: it runs in [`enter`].
//! - **A gate** is where calls and the scenario wait for each other, so that nobody has to sleep.
//!
//! [`scenarios!`] does all that a test file has to do.

use std::collections::BTreeSet;
use std::env;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use unsync::Error;

/// Makes tests of functions: each runs as a scenario over each kind of link, as `unix::name`, `tcp::name` and
/// `relay::name`. The text after `in` is what a shell does before it becomes the scenario. The programs are
/// other functions, for [`program`]. Use it once per module. With `without_relay` first, there are no `relay`
/// tests.
macro_rules! scenarios {
    (
        programs: [$($program:ident),* $(,)?]
        $($play:ident $(in $shell:literal)?;)*
    ) => {
        scenarios! { without_relay programs: [$($program),*] $($play $(in $shell)?;)* }
        scenarios! { @link relay Relay $($play $(in $shell)?;)* }
    };
    (
        without_relay
        programs: [$($program:ident),* $(,)?]
        $($play:ident $(in $shell:literal)?;)*
    ) => {
        #[test]
        #[ignore = "no test: scenarios run here, each in a process of its own"]
        fn scenario_entry() {
            $crate::scenario::enter(
                &[$((stringify!($play), $play as fn())),*],
                &[$((stringify!($program), $program as fn())),*],
            );
        }
        scenarios! { @link unix Unix $($play $(in $shell)?;)* }
        scenarios! { @link tcp Tcp $($play $(in $shell)?;)* }
    };
    (@link $module:ident $link:ident $($play:ident $(in $shell:literal)?;)*) => {
        mod $module {
            use $crate::scenario::{Link, run};
            $(
                #[test]
                fn $play() {
                    // The entry is next to this module. The harness leaves out the crate's name.
                    let (_, path) = module_path!().split_once("::").unwrap();
                    let entry = path.replace(stringify!($module), "scenario_entry");
                    run(Link::$link, &entry, stringify!($play), concat!($($shell)?));
                }
            )*
        }
    };
}

/// How the workers of a scenario are connected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Link {
    Unix,
    Tcp,
    /// Through a relay, as on another host.
    Relay,
}

/// How long a scenario may take beyond the time it was asked to take. Most take milliseconds: this is for
/// busy machines.
const LIMIT: Duration = Duration::from_secs(120);
/// How long a wait for anything else may take.
pub(crate) const SOON: Duration = Duration::from_secs(40);

/// How long a scenario that has no end of its own was asked to run, by `UNSYNC_TEST_SECONDS`.
pub(crate) fn asked_time() -> Option<Duration> {
    let seconds = env::var("UNSYNC_TEST_SECONDS").ok()?;
    Some(Duration::from_secs(seconds.parse().unwrap()))
}

/// The environment of a scenario: which test enters it, what it plays, and where its home is.
const ENTRY: &str = "UNSYNC_TEST_ENTRY";
const PLAY: &str = "UNSYNC_TEST_PLAY";
const HOME: &str = "UNSYNC_TEST_HOME";
const APPLAUSE: &str = "the scenario came to its end";

// ------------------------------------------------------------------------------- around a scenario

/// Runs a scenario in a process of its own. If it fails, hangs, or leaves anything behind, fails with all
/// its output. `entry` is the name of the test that calls [`enter`].
pub(crate) fn run(link: Link, entry: &str, play: &str, shell: &str) {
    let home = Home::new();
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("{shell}\nexec \"$0\" \"$@\""))
        .arg(env::current_exe().unwrap());
    as_play(&mut command, entry, play)
        .env(ENTRY, entry)
        .env(HOME, &home.0)
        .env("TMPDIR", home.temporary())
        .env("UNSYNC_LINK", format!("{link:?}").to_lowercase())
        .env_remove("RUST_BACKTRACE")
        .env_remove("RUST_LIB_BACKTRACE")
        .env_remove("UNSYNC_DEBUG")
        .env_remove("UNSYNC_THREADS")
        .env_remove("UNSYNC_PROCESSES")
        .stdin(Stdio::null())
        .stdout(home.append())
        .stderr(home.append())
        .process_group(0);
    let mut child = command.spawn().unwrap();
    // Each relay reads and hashes the executable, which takes a debug build a fifth of a second.
    let limit = LIMIT * if link == Link::Relay { 3 } else { 1 } + asked_time().unwrap_or_default();
    let status = wait_within(&mut child, limit);
    if status.is_none() {
        // It may have ended just now.
        signal("KILL", child.id());
        child.wait().unwrap();
    }
    let output = fs::read(home.output()).unwrap();
    let output = String::from_utf8_lossy(&output);
    let mut faults = Vec::new();
    match status {
        None => faults.push(format!("it hung: not over after {limit:?}")),
        Some(status) if !status.success() => faults.push(format!("it failed: {status}")),
        Some(_) if !output.contains(APPLAUSE) => faults.push("it never ran".to_owned()),
        Some(_) => {}
    }
    // The workers of a failed scenario may take a moment to notice its end.
    holds_within(SOON, || home.processes().is_empty());
    for process in home.processes() {
        faults.push(format!(
            "it left the process {process}: {}",
            what_is(process)
        ));
        signal("KILL", process);
    }
    for file in entries(&home.temporary()) {
        faults.push(format!("it left {file} in its temporary directory"));
    }
    // The harness shows this if the test fails.
    println!("{output}");
    assert!(
        faults.is_empty(),
        "scenario {play} over {link:?}: {}",
        faults.join("; ")
    );
}

fn as_play<'a>(command: &'a mut Command, entry: &str, play: &str) -> &'a mut Command {
    let arguments = [
        entry,
        "--exact",
        "--include-ignored",
        "--nocapture",
        "--test-threads=1",
        "-q",
    ];
    command.args(arguments).env(PLAY, play)
}

/// The private directory of a scenario.
struct Home(PathBuf);

impl Home {
    fn new() -> Home {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Not `create_dir_all`: it would create a missing temporary directory, which would be left behind.
        let make = |parent: &Path| {
            let path = parent.join(format!("unsync-test-{}-{number}", process::id()));
            let made = fs::create_dir(&path);
            made.map_err(|error| format!("{}: {error}", path.display()))?;
            Ok::<_, String>(Home(path))
        };
        let home = make(&env::temp_dir()).or_else(|first| {
            let spare = Path::new(env!("CARGO_TARGET_TMPDIR"));
            make(spare).map_err(|second| format!("no home for a scenario: {first}; {second}"))
        });
        let home = home.unwrap_or_else(|refused| panic!("{refused}"));
        fs::create_dir(home.temporary()).unwrap();
        home
    }

    /// Standard output and error in one file, so that nobody has to read them meanwhile.
    fn append(&self) -> File {
        let mut options = File::options();
        options.create(true).append(true);
        options.open(self.output()).unwrap()
    }

    fn temporary(&self) -> PathBuf {
        self.0.join("tmp")
    }

    fn output(&self) -> PathBuf {
        self.0.join("output")
    }

    /// The live processes of the scenario, by their environment.
    fn processes(&self) -> Vec<u32> {
        let mark = [HOME.as_bytes(), b"=", self.0.as_os_str().as_encoded_bytes()].concat();
        let is_ours = |process: &u32| {
            // The environment of a process that has just ended cannot be read.
            fs::read(format!("/proc/{process}/environ"))
                .is_ok_and(|variables| variables.split(|byte| *byte == 0).any(|one| one == mark))
        };
        processes().filter(is_ours).collect()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

// ------------------------------------------------------------------------------- inside a scenario

/// In a scenario or a program: runs its play. In a test run: does nothing.
pub(crate) fn enter(scenarios: &[(&str, fn())], programs: &[(&str, fn())]) {
    let Some(play) = env::var_os(PLAY) else {
        return;
    };
    let find = |plays: &[(&str, fn())]| plays.iter().find(|(name, _)| play == *name).map(|it| it.1);
    if let Some(program) = find(programs) {
        return program();
    }
    let scenario = find(scenarios).expect("a play of this test file");
    let before = Holdings::now();
    scenario();
    unsync::shutdown(SOON).expect("the shutdown");
    before.assert_unchanged();
    println!("{APPLAUSE}");
}

/// What a process holds that could leak.
#[derive(Debug, PartialEq)]
pub(crate) struct Holdings {
    descriptors: Vec<String>,
    threads: Vec<String>,
    /// With their states: a zombie was not reaped.
    children: Vec<String>,
    files: Vec<String>,
}

impl Holdings {
    pub(crate) fn now() -> Holdings {
        Holdings {
            descriptors: descriptors(),
            threads: threads(),
            children: children().into_iter().map(what_is).collect(),
            files: entries(&env::temp_dir()),
        }
    }

    /// The last threads of a worker may take a moment to end.
    pub(crate) fn assert_unchanged(&self) {
        let mut after = Holdings::now();
        // Not read again once it holds: a list of ending threads may leave out others.
        holds_within(SOON, || {
            after = Holdings::now();
            *self == after
        });
        assert_eq!(*self, after, "left: before, right: now");
    }
}

/// A file of the scenario. Calls get its path as an argument.
pub(crate) fn file(name: &str) -> String {
    let home = env::var(HOME).expect("a scenario");
    format!("{home}/{name}")
}

pub(crate) fn link() -> Link {
    match env::var("UNSYNC_LINK").as_deref() {
        Ok("tcp") => Link::Tcp,
        Ok("relay") => Link::Relay,
        _ => Link::Unix,
    }
}

/// For a scenario that does not apply over a relay: whether the workers are behind one.
pub(crate) fn is_pointless_over_a_relay(why: &str) -> bool {
    let is_one = link() == Link::Relay;
    if is_one {
        println!("not over a relay: {why}");
    }
    is_one
}

/// Another process of the test binary, to run one of the programs, in a process group of its own.
pub(crate) fn program(name: &str) -> Command {
    program_at(&env::current_exe().unwrap(), name)
}

/// The same for a copy of the test binary.
pub(crate) fn program_at(executable: &Path, name: &str) -> Command {
    let mut command = Command::new(executable);
    as_play(&mut command, &env::var(ENTRY).expect("a scenario"), name)
        .stdin(Stdio::null())
        .process_group(0);
    command
}

/// For `worker_command`: a process that runs a program instead of the worker. It ignores what the library
/// adds to the command, and its standard output, where the harness prints, is discarded.
pub(crate) fn program_as_worker(name: &str) -> Command {
    let program = program(name);
    let arguments: Vec<_> = program.get_args().map(|it| it.to_string_lossy()).collect();
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("exec \"$0\" {} >/dev/null", arguments.join(" ")));
    command.arg(program.get_program()).env(PLAY, name);
    command
}

/// For `worker_command`: the worker, after a shell has done something.
pub(crate) fn worker_after(shell: &str, executable: &Path) -> Command {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("{shell}\nexec \"$0\" \"$@\""))
        .arg(executable);
    command
}

/// Waits for something that has no event to wait for, and fails if it does not happen in time.
#[track_caller]
pub(crate) fn until(what: impl Display, mut holds: impl FnMut() -> bool) {
    assert!(
        holds_within(SOON, &mut holds),
        "waited {SOON:?} in vain until {what}"
    );
}

fn holds_within(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn wait_within(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let mut status = None;
    holds_within(limit, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status
}

// ------------------------------------------------------------------------------------------- gates

/// A place where calls wait until the scenario lets them go, and the scenario waits until they arrive.
pub(crate) struct Gate {
    listener: UnixListener,
    path: String,
}

/// A call that waits at a gate. Dropping it lets the call go.
pub(crate) struct Guest {
    stream: UnixStream,
    /// The process that it runs in.
    pub(crate) process: u32,
}

impl Gate {
    pub(crate) fn new() -> Gate {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = file(&format!("gate-{}-{number}", process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        Gate { listener, path }
    }

    /// For [`wait_at`], as an argument of the call.
    pub(crate) fn path(&self) -> String {
        self.path.clone()
    }

    #[track_caller]
    pub(crate) fn guest(&self) -> Guest {
        let mut guest = None;
        until("somebody comes to the gate", || {
            guest = self.poll();
            guest.is_some()
        });
        guest.unwrap()
    }

    /// A guest that waits already, if any.
    pub(crate) fn poll(&self) -> Option<Guest> {
        let (mut stream, _) = match self.listener.accept() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            accepted => accepted.unwrap(),
        };
        stream.set_nonblocking(false).unwrap();
        let mut process = [0; 4];
        stream.read_exact(&mut process).unwrap();
        let process = u32::from_le_bytes(process);
        Some(Guest { stream, process })
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Guest {
    /// Lets the call go, and waits until its thread or process has left the place where it waited.
    pub(crate) fn leave(mut self) {
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
        self.wait_for_end();
    }

    /// Waits until the thread or process that waits at the gate has ended, without letting it go.
    pub(crate) fn wait_for_end(&mut self) {
        self.stream.set_read_timeout(Some(SOON)).unwrap();
        match self.stream.read(&mut [0]) {
            Ok(0) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            other => panic!("the guest {} did not leave: {other:?}", self.process),
        }
    }
}

/// In a call: comes to a gate. The call stays there as long as the returned stream lives.
pub(crate) fn come_to(gate: &str) -> UnixStream {
    let mut stream = UnixStream::connect(gate).unwrap();
    stream.write_all(&process::id().to_le_bytes()).unwrap();
    stream
}

/// The same, and waits until the scenario lets it go.
pub(crate) fn wait_at(gate: &str) -> UnixStream {
    let mut stream = come_to(gate);
    let _ = stream.read(&mut [0]);
    stream
}

/// As a call: returns its worker.
pub(crate) fn pid() -> u32 {
    process::id()
}

/// The same, once the scenario lets it go.
pub(crate) fn stay(gate: String) -> u32 {
    drop(wait_at(&gate));
    process::id()
}

// ------------------------------------------------------------------------------------------ proofs

/// In a call: appends a line to a file, which proves how often and in which order calls ran.
pub(crate) fn note(file: String, line: u32) -> u32 {
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(file)
        .unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
    process::id()
}

#[track_caller]
pub(crate) fn assert_says(error: &Error, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
}

pub(crate) fn notes(file: &str) -> Vec<u32> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

// ------------------------------------------------------------------------------------------ choices

/// A generator of numbers that are random enough: Steele's and Vigna's SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    /// The same numbers in every run, or others by `UNSYNC_TEST_SEED`.
    pub(crate) fn seeded() -> Random {
        let seed = env::var("UNSYNC_TEST_SEED").map_or(0x5eed, |seed| seed.parse().unwrap());
        println!("UNSYNC_TEST_SEED={seed}");
        Random(seed)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

// --------------------------------------------------------------------------------------- processes

/// Sends a signal by the name that `kill` knows.
pub(crate) fn kill(signal: &str, processes: &[u32]) {
    let numbers = processes.iter().map(u32::to_string);
    let status = Command::new("kill")
        .arg(format!("-{signal}"))
        .args(numbers)
        .status();
    assert!(status.unwrap().success(), "kill -{signal} {processes:?}");
}

/// The same to a process that may have ended.
pub(crate) fn signal(name: &str, process: u32) {
    let mut kill = Command::new("kill");
    kill.arg(format!("-{name}"))
        .arg(process.to_string())
        .stderr(Stdio::null());
    let mut kill = kill.spawn().unwrap();
    // This waits, and then fails in a scenario that ignores the end of its children.
    let _ = kill.wait();
}

fn processes() -> impl Iterator<Item = u32> {
    let names = fs::read_dir("/proc").unwrap().flatten();
    names.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The fields of `/proc/PID/stat` starting with the state; empty if there is no such process.
fn stat(process: u32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    after_name.split_whitespace().map(str::to_owned).collect()
}

/// `R`, `S`, `T` for stopped, `Z` for a zombie; nothing if there is no such process.
pub(crate) fn state_of(process: u32) -> Option<char> {
    stat(process).first()?.chars().next()
}

/// The parent process.
pub(crate) fn parent_of(process: u32) -> Option<u32> {
    stat(process).get(1)?.parse().ok()
}

/// The process group.
pub(crate) fn group_of(process: u32) -> Option<u32> {
    stat(process).get(2)?.parse().ok()
}

/// Stops a process, and waits until all its threads have stopped. If that takes so long that the pool
/// notices, there is no process left to wait for.
pub(crate) fn freeze(process: u32) {
    signal("STOP", process);
    until("the process is stopped", || {
        let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else {
            return true;
        };
        let mut states = threads
            .flatten()
            .map(|thread| state_of(thread.file_name().to_str()?.parse().ok()?));
        is_dead(process) || states.all(|state| state == Some('T'))
    });
}

/// The state of the thread that runs a worker's calls.
pub(crate) fn lane_state(worker: u32) -> Option<char> {
    let mut tasks = fs::read_dir(format!("/proc/{worker}/task")).ok()?.flatten();
    let lane = tasks.find(|task| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "unsync-call\n")
    })?;
    state_of(lane.file_name().to_str()?.parse().ok()?)
}

/// Whether the process has ended. A child may not be reaped yet.
pub(crate) fn is_dead(process: u32) -> bool {
    matches!(state_of(process), None | Some('Z' | 'X'))
}

/// Whether the process has ended and was reaped.
pub(crate) fn is_gone(process: u32) -> bool {
    state_of(process).is_none()
}

/// The children of this process, including dead ones that are not reaped yet.
pub(crate) fn children() -> BTreeSet<u32> {
    processes()
        .filter(|process| parent_of(*process) == Some(process::id()))
        .collect()
}

/// The worker processes. Over a relay each is a grandchild.
pub(crate) fn workers() -> BTreeSet<u32> {
    let children = children();
    if link() != Link::Relay {
        return children;
    }
    let is_below =
        |process: &u32| parent_of(*process).is_some_and(|parent| children.contains(&parent));
    processes().filter(is_below).collect()
}

fn what_is(process: u32) -> String {
    let command = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    format!("{process} in state {:?}, {command}", state_of(process))
}

/// The resident memory of a living process, in bytes.
pub(crate) fn resident(process: u32) -> u64 {
    memory_of(process).unwrap()
}

/// The same for a process that may have ended; then `None`.
pub(crate) fn memory_of(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes = line.trim().trim_end_matches(" kB").trim();
    Some(kibibytes.parse::<u64>().unwrap() << 10)
}

/// What the descriptors of this process refer to. This identifies the sockets of `/proc/net`.
pub(crate) fn descriptors() -> Vec<String> {
    let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
    // The descriptor that reads the directory is closed when its link is followed.
    let mut links: Vec<_> = links
        .filter_map(|link| Some(format!("{:?}", fs::read_link(link.path()).ok()?)))
        .filter(|target| !target.contains("/fd\""))
        .collect();
    links.sort();
    links
}

/// The names of the threads of this process.
pub(crate) fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let mut names: Vec<_> = tasks
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .collect();
    names.sort();
    names
}

/// The entries of a directory, if it exists.
pub(crate) fn entries(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).into_iter().flatten().flatten();
    names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
