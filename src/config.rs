//! The settings: read once, at first use.

use std::env;
use std::fmt;
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::error::{Error, ErrorKind, OnUnobserved, discard, on_unobserved, wall};
use crate::{log, spin};

/// The library's settings, to be installed before its first use.
///
/// Each setting has a default, so no program needs a `Config`. Values set here take precedence over the
/// environment variables `UNSYNC_THREADS` and `UNSYNC_PROCESSES`, and those over the defaults. An empty
/// variable counts as unset. [`install`](Config::install) refuses invalid values.
///
/// The settings apply to the program itself: install them after [`init`](crate::init), from which worker
/// processes never return. Workers use the environment variables and the defaults; of the program's settings,
/// only `frame_bytes_max`, `stack_size` and `spin` reach them. A `Config` that is installed before `init` is
/// installed in every worker too.
///
/// # Examples
///
/// ```standalone_crate
/// use std::time::Duration;
///
/// # fn main() -> Result<(), unsync::Error> {
/// unsync::init();
/// unsync::Config::new().threads(64).keep_alive(Duration::from_secs(1)).install()?;
/// assert_eq!(unsync::thread(|| 1).result()?, 1);
/// assert!(unsync::Config::new().install().is_err(), "already in force");
/// # Ok(())
/// # }
/// ```
#[must_use = "settings do nothing unless they are installed"]
pub struct Config(Settings);

/// Another machine for worker processes.
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) slots: usize,
    /// `None` starts a worker as on this machine.
    pub(crate) launcher: Option<MakeCommand>,
}

type OnThreadStart = Box<dyn Fn() + Send + Sync>;
type MakeCommand = Box<dyn Fn(&Path) -> Command + Send + Sync>;
pub(crate) type AroundPoll = Box<dyn Fn(&mut dyn FnMut()) + Send + Sync>;

/// As many as tokio's blocking pool: enough for blocking work, and few enough for any machine.
const THREADS: usize = 512;
/// Longer than anybody waits, yet std can wait for it on every platform and add it to any point in time.
const FOREVER: Duration = Duration::from_secs(1 << 30);
/// Parking a thread and waking it takes less than this on any machine.
const SPIN_MAX: Duration = Duration::from_millis(1);
/// More threads or processes than this are a mistake.
const MOST: usize = 1 << 20;

/// Declares the settings: the name, type and default of each, and how the method of that name makes the value
/// from its argument.
macro_rules! settings {
    ($(
        $(#[$docs:meta])*
        $name:ident: $type:ty = $default:expr, |$argument:ident: $given:ty| $value:expr;
    )*) => {
        /// The settings that the engines use.
        pub(crate) struct Settings {
            $(pub(crate) $name: $type,)*
            pub(crate) hosts: Vec<Host>,
            /// Whether to report a worker that a signal has stopped.
            pub(crate) debug: bool,
        }

        impl Config {
            /// Creates a `Config` with the defaults.
            ///
            /// # Examples
            ///
            /// ```
            /// let config = unsync::Config::new(); // the defaults
            /// # drop(config);
            /// ```
            pub fn new() -> Config {
                Config(Settings { $($name: $default,)* hosts: Vec::new(), debug: false })
            }

            $(
                $(#[$docs])*
                pub fn $name(mut self, $argument: $given) -> Config {
                    self.0.$name = $value;
                    self
                }
            )*
        }
    };
}

settings! {
    /// Sets how many pool threads may run jobs at once. Threads that block in a wait of this library do not
    /// count. When the wait ends, the thread resumes immediately, so the limit may be exceeded until the thread
    /// that replaced it finishes its job. Default: 512.
    ///
    /// # Examples
    ///
    /// ```
    /// let config = unsync::Config::new().threads(16);
    /// # drop(config);
    /// ```
    threads: Option<usize> = None, |most: usize| Some(most);

    /// Sets how many worker processes may live at once on this machine. Default: the available parallelism,
    /// which respects affinity and cgroups. With a [`host`](Config::host) it may be 0.
    ///
    /// # Examples
    ///
    /// ```
    /// let config = unsync::Config::new().processes(4);
    /// # drop(config);
    /// ```
    processes: Option<usize> = None, |most: usize| Some(most);

    /// Sets how long an idle pool thread or worker process waits for work before it ends. Default: 10 s.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let config = unsync::Config::new().keep_alive(Duration::from_secs(60));
    /// # drop(config);
    /// ```
    keep_alive: Duration = Duration::from_secs(10), |time: Duration| time.min(FOREVER);

    /// Sets the prefix of thread names. Default: `unsync`. Linux shows 15 bytes of a name.
    ///
    /// # Examples
    ///
    /// ```
    /// let config = unsync::Config::new().thread_name("app");
    /// # drop(config);
    /// ```
    thread_name: String = "unsync".into(), |prefix: impl Into<String>| prefix.into();

    /// Sets the stack size of every thread that runs code of the program, in bytes. Default: that of
    /// `std::thread` for the pool and for pinned values; 8 MiB, or the environment variable `RUST_MIN_STACK`
    /// if that is more, for the ambient thread, for calls in a worker process, and for the threads that
    /// decode their results.
    ///
    /// # Examples
    ///
    /// ```
    /// let config = unsync::Config::new().stack_size(32 << 20); // deep recursion
    /// # drop(config);
    /// ```
    stack_size: Option<usize> = None, |bytes: usize| Some(bytes);

    /// Sets how long a waiting thread spins before it parks, up to 1 ms; timed waits may end late by that
    /// much. Default: 50 µs; zero turns spinning off. Spinning turns itself off where it does not pay.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let config = unsync::Config::new().spin(Duration::ZERO); // never spin
    /// # drop(config);
    /// ```
    spin: Duration = Duration::from_micros(50), |time: Duration| time;

    /// Reports on standard error each poll that blocks the ambient thread for longer than this.
    /// Default: no reports, or 100 ms if the environment variable `UNSYNC_DEBUG` is `1`.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let config = unsync::Config::new().stall(Duration::from_millis(20));
    /// # drop(config);
    /// ```
    stall: Option<Duration> = None, |longest: Duration| Some(longest);

    /// Replaces a worker process after this many calls. Default: never.
    ///
    /// # Examples
    ///
    /// ```
    /// let config = unsync::Config::new().calls_per_worker(1000); // foreign code that leaks
    /// # drop(config);
    /// ```
    calls_per_worker: Option<u64> = None, |calls: u64| Some(calls);

    /// Replaces a worker process whose resident memory exceeds this many bytes at the end of a call. It does
    /// not limit the call itself, which may use as much memory as the system gives. Default: never. It costs
    /// a read of `/proc` for each call. Linux only; elsewhere it has no effect.
    ///
    /// # Examples
    ///
    /// ```
    /// let config = unsync::Config::new().memory_per_worker(1 << 30);
    /// # drop(config);
    /// ```
    memory_per_worker: Option<u64> = None, |bytes: u64| Some(bytes);

    /// Sets how long a worker process may take to start. Default: 30 s.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let config = unsync::Config::new().start_timeout(Duration::from_secs(120));
    /// # drop(config);
    /// ```
    start_timeout: Duration = Duration::from_secs(30), |limit: Duration| limit.min(FOREVER);

    /// Sets how long the function of a cancelled call may keep running, to see
    /// [`is_cancelled`](crate::is_cancelled) and end by itself, before its worker process is killed. Default:
    /// zero, which kills at once.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// use std::time::Duration;
    ///
    /// fn count() -> u64 {
    ///     let mut count = 0;
    ///     while !unsync::is_cancelled() {
    ///         count += 1;
    ///     }
    ///     count
    /// }
    /// unsync::register!(count);
    ///
    /// # fn main() -> Result<(), unsync::Error> {
    /// unsync::init();
    /// unsync::Config::new().cancel_grace(Duration::from_secs(60)).install()?;
    /// let call = unsync::cpu(count, ()).run_timeout(Duration::from_millis(10));
    /// let error = call.result().unwrap_err();
    /// assert_eq!(error.kind(), unsync::ErrorKind::TimedOut);
    /// assert!(error.worker_exit().is_none(), "its worker process lives on");
    /// # Ok(())
    /// # }
    /// ```
    cancel_grace: Duration = Duration::ZERO, |time: Duration| time.min(FOREVER);

    /// Sets the largest encoded size of the arguments or the result of a call, in bytes. Default: 1 GiB.
    ///
    /// # Examples
    ///
    /// ```
    /// let config = unsync::Config::new().frame_bytes_max(16 << 20);
    /// # drop(config);
    /// ```
    frame_bytes_max: usize = 1 << 30, |bytes: usize| bytes;

    /// Sets whether the processes that a worker started are killed when the worker ends, if they are still in
    /// its process group. Default: no.
    ///
    /// The library runs the program `kill`, on Windows `taskkill`, for each worker that ends. Where that
    /// program is missing, nothing is killed.
    ///
    /// A group is signalled only until its worker is reaped, since after that its number may belong to
    /// another group. So children live on:
    ///
    /// - on Windows, if the worker ended by itself, as in a crash: `taskkill` finds children only through a
    ///   live worker;
    /// - on systems other than Linux, if the worker ended while a process that foreign code forked without
    ///   `exec` held its link: without `/proc`, only reaping the worker shows that it has ended;
    /// - if the program lets somebody else reap its children, as by ignoring `SIGCHLD`. On Linux the library
    ///   sees that; elsewhere do not use this setting in such a program.
    ///
    /// # Examples
    ///
    /// ```
    /// let config = unsync::Config::new().kill_children(true);
    /// # drop(config);
    /// ```
    kill_children: bool = false, |kill: bool| kill;

    /// Sets the closure that makes the command for starting a worker process from the path of the executable:
    /// to run workers under `nice` or valgrind, or with another environment or working directory.
    ///
    /// The library adds the one argument by which a worker recognises itself. It replaces the command's
    /// standard input, its standard error unless the program's own is a terminal, and its standard output in
    /// tests; it forwards what a worker prints there. A wrapper must pass all of that on: without the argument
    /// it runs the program itself, which starts workers in turn, without end. It must also become the worker,
    /// as a shell does with `exec`, or forward signals: to stop a call, the library kills the process that it
    /// started.
    ///
    /// The closure must not wait for other work: see [`Unfuture::result`](crate::Unfuture::result).
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// use std::process::Command;
    ///
    /// # #[cfg(unix)]
    /// # fn main() -> Result<(), unsync::Error> {
    /// unsync::init();
    /// let config = unsync::Config::new().worker_command(|executable| {
    ///     let mut command = Command::new("nice");
    ///     command.arg(executable).env("RUST_BACKTRACE", "1");
    ///     command
    /// });
    /// config.install()?;
    /// assert_eq!(unsync::cpu(u32::pow, (2, 3)).result()?, 8);
    /// # Ok(())
    /// # }
    /// # unsync::register!(u32::pow);
    /// # #[cfg(not(unix))]
    /// # fn main() {}
    /// ```
    worker_command: Option<MakeCommand> = None,
        |make: impl Fn(&Path) -> Command + Send + Sync + 'static| Some(Box::new(make));

    /// Sets how long a [`host`](Config::host) may be silent before its worker counts as lost, and how long
    /// the program may be silent before the worker ends. Default: 60 s. Each side sends a heartbeat six times
    /// in that period. The program sends none while it decodes a result of that worker.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let config = unsync::Config::new().host_timeout(Duration::from_secs(300));
    /// # drop(config);
    /// ```
    host_timeout: Duration = Duration::from_secs(60), |time: Duration| time.min(FOREVER);

    /// Sets a hook that runs first on the ambient thread, on every pool thread and on the threads of
    /// [`Pinned`](crate::Pinned) values.
    ///
    /// # Examples
    ///
    /// ```
    /// let config = unsync::Config::new().on_thread_start(|| println!("a thread starts"));
    /// # drop(config);
    /// ```
    on_thread_start: Option<OnThreadStart> = None,
        |hook: impl Fn() + Send + Sync + 'static| Some(Box::new(hook));

    /// Sets a hook that runs around every poll on the ambient thread and must call its argument once. Use it
    /// to enter a reactor, such as tokio's. If the hook does not call its argument, the poll follows after
    /// the hook.
    ///
    /// # Examples
    ///
    /// ```
    /// let config = unsync::Config::new().around_poll(|poll| {
    ///     // Enter the reactor here.
    ///     poll();
    /// });
    /// # drop(config);
    /// ```
    around_poll: Option<AroundPoll> = None,
        |hook: impl Fn(&mut dyn FnMut()) + Send + Sync + 'static| Some(Box::new(hook));

    /// Sets a hook that is called with every failure that was never observed because the `Unfuture` was
    /// dropped. Cancelled work and work stopped by a shutdown do not count as failures. Default: nothing, or
    /// a line on standard error if the environment variable `UNSYNC_DEBUG` is `1`.
    ///
    /// The hook may be called on a thread that must not wait for other work: see
    /// [`Unfuture::result`](crate::Unfuture::result).
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// use std::sync::mpsc;
    ///
    /// # fn main() -> Result<(), unsync::Error> {
    /// unsync::init();
    /// let (sender, heard) = mpsc::channel();
    /// let config = unsync::Config::new().on_unobserved(move |error| {
    ///     let _ = sender.send(error.to_string());
    /// });
    /// config.install()?;
    /// drop(unsync::thread(|| -> u32 { panic!("nobody looks") }));
    /// assert!(heard.recv().unwrap().contains("nobody looks"));
    /// # Ok(())
    /// # }
    /// ```
    on_unobserved: Option<OnUnobserved> = None,
        |hook: impl Fn(&Error) + Send + Sync + 'static| Some(Box::new(hook));
}

impl Config {
    /// Adds up to `slots` worker processes on another machine. `launcher` gets the path of the executable
    /// here and makes the command that starts this program there: `ssh`, `srun`, `kubectl exec -i`. `name` is
    /// for errors.
    ///
    /// The launcher connects its standard input and output to those of the program there, byte for byte:
    /// without a terminal (`ssh -T`) and without prompts (`ssh -oBatchMode=yes`). One launcher runs for each
    /// worker. The other machine needs the same build of the executable; a different one is refused. What a
    /// function prints there, on either stream, appears on standard error here. The environment and the
    /// working directory are those that the launcher sets.
    ///
    /// Calls go to local workers first, then to the least loaded host. A host that cannot be reached is left
    /// alone for a while. When a machine or the connection to it is lost, its calls fail as
    /// [`ErrorKind::WorkerLost`], even those that may not have begun: no call runs twice.
    ///
    /// [`kill_children`](Config::kill_children) acts on that machine too;
    /// [`memory_per_worker`](Config::memory_per_worker) does not. The calling program needs a Unix system.
    /// [`hosts`](crate::hosts) has the details.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::process::Command;
    ///
    /// # fn main() -> Result<(), unsync::Error> {
    /// unsync::init();
    /// let mut config = unsync::Config::new();
    /// for name in ["node1", "node2"] {
    ///     config = config.host(name, 8, move |program| {
    ///         let mut ssh = Command::new("ssh");
    ///         ssh.args(["-T", "-oBatchMode=yes", name]).arg(program);
    ///         ssh
    ///     });
    /// }
    /// config.install()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn host<F>(mut self, name: impl Into<String>, slots: usize, launcher: F) -> Config
    where
        F: Fn(&Path) -> Command + Send + Sync + 'static,
    {
        self.0.hosts.push(Host {
            name: name.into(),
            slots,
            launcher: Some(Box::new(launcher)),
        });
        self
    }

    /// Puts these settings into effect.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotInitialised`] if settings are already in force, because they were installed or the
    /// library was used before, or if a value is invalid; then nothing changes. Invalid are
    /// - `threads`, `processes` and the slots of a host below 1 or above 1,048,576, except 0 `processes` with a
    ///   host,
    /// - 0 for `calls_per_worker`, `memory_per_worker`, `frame_bytes_max`, `stack_size`, `start_timeout`,
    ///   `host_timeout` and `stall`,
    /// - a `stack_size` above `isize::MAX`, a `spin` above 1 ms, and a `thread_name` with a NUL character,
    /// - an environment variable with an invalid value, unless code has set that value.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # fn main() -> Result<(), unsync::Error> {
    /// # unsync::init();
    /// unsync::Config::new().threads(8).install()?;
    /// let error = unsync::Config::new().threads(0).install().unwrap_err();
    /// assert_eq!(error.kind(), unsync::ErrorKind::NotInitialised);
    /// # Ok(())
    /// # }
    /// ```
    pub fn install(self) -> Result<(), Error> {
        let settings = self.0.checked()?;
        let mut is_first = false;
        SETTINGS.get_or_init(|| {
            is_first = true;
            Ok(settings.in_force())
        });
        if is_first {
            return Ok(());
        }
        let text =
            "others are in force already: install settings once, before the library's first use";
        Err(refused(text))
    }
}

impl Settings {
    /// How many pool threads may run jobs at once.
    pub(crate) fn threads(&self) -> usize {
        self.threads.unwrap_or(THREADS)
    }

    /// How many worker processes may live at once on this machine.
    pub(crate) fn processes(&self) -> usize {
        self.processes.unwrap_or_else(cores)
    }

    /// Fills in values from the environment; refuses invalid values.
    fn checked(mut self) -> Result<Settings, Error> {
        self.threads = number("threads", self.threads, "UNSYNC_THREADS")?;
        if self.hosts.is_empty() || self.processes != Some(0) {
            self.processes = number("processes", self.processes, "UNSYNC_PROCESSES")?;
        }
        self.debug = one_of("UNSYNC_DEBUG", &["0", "1"])? == "1";
        if one_of("UNSYNC_LINK", &["unix", "tcp", "relay"])? == "relay" {
            // For tests: treats the workers of this machine as those of a host.
            self.hosts.push(Host {
                name: "here".into(),
                slots: self.processes(),
                launcher: None,
            });
            self.processes = Some(0);
        }
        let is_huge = self.stack_size > Some(isize::MAX as usize);
        let has_nul = self.thread_name.contains('\0');
        let mut slots = self.hosts.iter().map(|host| host.slots);
        let slots_fit = slots.all(|slots| (1..=MOST).contains(&slots));
        let mistakes = [
            (self.calls_per_worker == Some(0), "calls_per_worker is 0"),
            (self.memory_per_worker == Some(0), "memory_per_worker is 0"),
            (self.frame_bytes_max == 0, "frame_bytes_max is 0"),
            (self.stack_size == Some(0), "stack_size is 0"),
            (is_huge, "stack_size is more than memory can be"),
            (self.start_timeout.is_zero(), "start_timeout is 0"),
            (self.host_timeout.is_zero(), "host_timeout is 0"),
            (!slots_fit, "slots of a host are not from 1 to 1048576"),
            (self.stall == Some(Duration::ZERO), "stall is 0"),
            (self.spin > SPIN_MAX, "spin is more than 1 ms"),
            (has_nul, "thread_name holds a nul character"),
        ];
        if let Some((_, mistake)) = mistakes.iter().find(|(is_made, _)| *is_made) {
            return Err(refused(mistake));
        }
        if self.debug {
            self.stall.get_or_insert(Duration::from_millis(100));
            let report = |error: &Error| log(&format!("unobserved failure: {error}"));
            self.on_unobserved.get_or_insert(Box::new(report));
        }
        Ok(self)
    }

    /// Hands settings down to the files below this one.
    fn in_force(mut self) -> Settings {
        spin::set_budget(self.spin);
        if let Some(hook) = self.on_unobserved.take() {
            on_unobserved(hook);
        }
        self
    }
}

impl Default for Config {
    fn default() -> Config {
        Config::new()
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Config")
    }
}

static SETTINGS: OnceLock<Result<Settings, Error>> = OnceLock::new();

/// The settings in force, or what is wrong with them. After this they cannot be changed.
pub(crate) fn settings() -> Result<&'static Settings, Error> {
    let defaults = || Config::new().0.checked().map(Settings::in_force);
    let settings = SETTINGS.get_or_init(defaults).as_ref();
    // Not a clone: each error says where its own work was started.
    settings.map_err(|error| Error::new(error.kind(), error.to_string()))
}

/// Starts a thread with the name prefix and the stack size of the settings.
pub(crate) fn start_thread(name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    let stack_size = settings().ok().and_then(|settings| settings.stack_size);
    start(name, stack_size, body).map(drop)
}

/// The same for a thread on which functions of the program expect a main thread's stack.
pub(crate) fn start_deep_thread(name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    start(name, Some(stack_size()), body).map(drop)
}

/// Starts a thread with the name prefix of the settings.
pub(crate) fn start(
    name: &str,
    stack_size: Option<usize>,
    body: Box<dyn FnOnce() + Send>,
) -> io::Result<JoinHandle<()>> {
    let prefix = settings().map_or("unsync", |settings| &settings.thread_name);
    let mut thread = thread::Builder::new().name(format!("{prefix}-{name}"));
    if let Some(bytes) = stack_size {
        thread = thread.stack_size(bytes);
    }
    thread.spawn(body)
}

/// The stack size of a main thread, or that of the settings or the environment.
pub(crate) fn stack_size() -> usize {
    const MAIN: usize = 8 << 20;
    let set = settings().ok().and_then(|settings| settings.stack_size);
    set.unwrap_or_else(|| {
        // Std uses this for threads without a stack size of their own.
        MAIN.max(variable("RUST_MIN_STACK").parse().unwrap_or(0))
    })
}

/// Runs the program's hook, first of all on a thread that runs code of the program.
pub(crate) fn on_thread_start() {
    let settings = settings().ok();
    if let Some(hook) = settings.and_then(|settings| settings.on_thread_start.as_ref()) {
        discard(wall(hook));
    }
}

/// The processors that this process may use; respects affinity and cgroups.
pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

#[cold]
fn refused(what: &str) -> Error {
    let text = format!("settings refused: {what}");
    Error::new(ErrorKind::NotInitialised, text)
}

/// Reads an environment variable. An unset one counts as empty: compose files and systemd units pass a
/// variable that is unset outside as an empty one.
fn variable(name: &str) -> String {
    let value = env::var_os(name).unwrap_or_default();
    value.to_string_lossy().into_owned()
}

/// Reads a variable that must have one of these values; empty if it is unset.
fn one_of(name: &str, values: &[&str]) -> Result<String, Error> {
    let value = variable(name);
    match value.is_empty() || values.contains(&&*value) {
        true => Ok(value),
        false => Err(refused(&format!(
            "{name} is {value:?}, not one of {values:?}"
        ))),
    }
}

/// A number set in code, or else by an environment variable.
fn number(name: &str, set: Option<usize>, variable_name: &str) -> Result<Option<usize>, Error> {
    let text = variable(variable_name);
    let (number, shown) = match set {
        Some(number) => (set, format!("{name} is {number}")),
        None if text.is_empty() => return Ok(None),
        None => (
            text.trim_ascii().parse().ok(),
            format!("{variable_name} is {text:?}"),
        ),
    };
    match number {
        Some(1..=MOST) => Ok(number),
        _ => Err(refused(&format!("{shown}, not a number from 1 to {MOST}"))),
    }
}
