//! The errors of workers that end and of calls that fail, and the output of workers.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::Request;
use super::handshake::SpawnError;
use super::procfs;
use super::scheduler::{DEATHS, Outcome};
use super::transport;
use super::worker::{Ending, PanicReport, Setup, TEST_MARK, setup};
use crate::config::start_thread;
use crate::error::{Error, ErrorKind, lock};
use crate::stop::Reason;

// ------------------------------------------------------------------------------------- the calls

/// The error of a call that was stopped before it ran, or after it `ran` that long.
pub(super) fn stopped(name: &str, reason: Reason, ran: Option<Duration>, place: &str) -> Error {
    reason.error(&match ran {
        Some(ran) => format!("`{name}`, which ran for {ran:.1?}{place},"),
        None => format!("`{name}`"),
    })
}

/// The error of a call that its worker has ended without a value.
pub(super) fn failed(name: &str, ending: u8, message: String, panics: Vec<PanicReport>) -> Error {
    let is = |other: Ending| ending == other as u8;
    if is(Ending::Panicked) {
        // The function may have caught another one before.
        let is_this = |report: &PanicReport| report.text.as_deref().unwrap_or("") == message;
        let report = panics.into_iter().rfind(is_this).unwrap_or_default();
        return report.error(name, &message, "");
    }
    if is(Ending::Unknown) {
        Error::new(ErrorKind::NotRegistered, format!("`{name}`: {message}"))
    } else if is(Ending::TooLarge) {
        let text = format!("the result of `{name}` is {message}");
        Error::new(ErrorKind::TooLarge, text)
    } else {
        let text = format!("the arguments of `{name}`: {message}");
        Error::new(ErrorKind::Codec, text)
    }
}

/// The error of a call for which no worker can be started.
pub(super) fn unstartable(name: &str, error: &Error) -> Error {
    error.about(&format!("`{name}` cannot run"))
}

impl PanicReport {
    /// The error of a call that panicked; `message` is what was caught, if anything was.
    fn error(&self, name: &str, message: &str, suffix: &str) -> Error {
        let caught = Some(message).filter(|text| !text.is_empty());
        let text = caught.or(self.text.as_deref()).unwrap_or_default();
        let mut said = format!("`{name}` panicked");
        for (mark, part) in [(" at ", self.place.as_deref()), (": ", Some(text))] {
            if let Some(part) = part.filter(|part| !part.is_empty()) {
                said = said + mark + part;
            }
        }
        Error::new(ErrorKind::Panicked, said + suffix)
            .with_remote_panic(text.to_owned(), self.backtrace.clone())
    }
}

// -------------------------------------------------------------------------------------- the start

/// What a command starts, and where, as the end of a sentence.
pub(super) fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program()).display();
    match command.get_current_dir() {
        Some(directory) => format!(" as `{program}` in `{}`", directory.display()),
        None => format!(" as `{program}`"),
    }
}

/// Where a worker is, as the end of a sentence. Here is not worth mentioning.
pub(super) fn place(host: Option<&str>) -> String {
    host.map_or_else(String::new, |host| format!(" on host `{host}`"))
}

/// The error of a worker that could not be started.
pub(super) fn refused(
    refusal: SpawnError,
    limit: Duration,
    program: &str,
    host: Option<&str>,
    output: Option<&Output>,
) -> Error {
    let place = place(host);
    let (what, status) = match (refusal, host) {
        (SpawnError::Os(error), _) => {
            let attempt = format!("no worker process could be started{place}{program}");
            return Error::os(attempt, error);
        }
        (SpawnError::Died(status), None) => {
            let what = format!("a worker process ended before it was ready ({status})");
            (what, Some(status))
        }
        (SpawnError::Died(status), Some(host)) => {
            let what = format!("the launcher of host `{host}` ended ({status})");
            (what, None)
        }
        (SpawnError::TimedOut, _) => {
            let what = format!("a worker process{place} was not ready within {limit:?}");
            (what, None)
        }
        (SpawnError::Unfit(why), _) => (format!("no worker process{place}: {why}"), None),
    };
    let tail = output.map_or_else(String::new, Output::quote);
    // A worker that has said what is wrong needs no hint.
    let passed_harness =
        output.is_some_and(|output| output.printed.passed_harness.load(Ordering::Relaxed));
    let hint = match host.is_some() || passed_harness || tail.contains("unsync: ") {
        true => String::new(),
        false => hint(status, &tail),
    };
    Error::new(ErrorKind::WorkerLost, format!("{hint}{what}{tail}")).exited(status)
}

/// The most likely cause if the process never became a worker, as the beginning of a sentence.
fn hint(status: Option<ExitStatus>, tail: &str) -> String {
    if let Some((executable, program)) = procfs::loader() {
        let (executable, program) = (executable.display(), program.display());
        return format!(
            "the executable of this process is `{executable}`, which has loaded `{program}` and \
             cannot become a worker process: "
        );
    }
    let question = match (status.map(|status| status.code()), setup()) {
        // A signal ended it, or a shell could not start it: what `main` does is not the cause.
        (Some(None | Some(126 | 127)), _) => "",
        (_, Some(Setup::Test(_))) => {
            "can this test binary run the test of `unsync::test_worker!()`? "
        }
        // A test harness that was given our argument ends with this.
        (Some(Some(101)), _) if tail.contains("Unrecognized option: 'unsync-worker") => {
            "is there a `unsync::test_worker!()` in this test binary? "
        }
        _ => "does `main` call `unsync::init()` first? ",
    };
    question.into()
}

// ---------------------------------------------------------------------------------------- the end

/// How a worker ended.
pub(super) struct ExitReport<'a> {
    pub(super) pid: u32,
    /// Whether a signal had stopped it when it was killed.
    pub(super) was_stopped: bool,
    pub(super) status: Option<ExitStatus>,
    /// Where it was, as the end of a sentence, and how its launcher ended, if on another host.
    pub(super) place: String,
    pub(super) launcher: Option<ExitStatus>,
    /// Why the link ended, if not because the worker closed it.
    pub(super) cause: Option<&'a io::Error>,
    /// What it lacked, if it could not serve.
    pub(super) refusal: Option<&'a Error>,
    pub(super) output: &'a Output,
    /// The end of its standard error, once that was waited for.
    pub(super) tail: OnceCell<String>,
}

impl ExitReport<'_> {
    /// The error of a call that the end of the worker leaves without a value.
    pub(super) fn error(&self, call: &Request, outcome: Outcome) -> Error {
        let name = call.name;
        if let Outcome::Lost {
            ran,
            stop: Some(reason),
            ..
        } = outcome
        {
            let place = match self.was_stopped {
                true => " in a worker process that a signal had stopped",
                false => "",
            };
            return stopped(name, reason, ran, place).exited(self.status);
        }
        let what = match (outcome, self.refusal) {
            (Outcome::Lost { ran: Some(ran), .. }, _) => return self.ran(call, ran),
            (_, Some(refusal)) => return unstartable(name, refusal),
            // It may have started, and nobody will ever know.
            (Outcome::Lost { deaths: 0, .. }, _) => {
                let begun = self.launcher.map_or("", |_| ", which may have begun,");
                format!("`{name}`{begun} lost its worker process")
            }
            (Outcome::Lost { .. }, _) => format!(
                "`{name}` was not started by any of {DEATHS} worker processes, the last was"
            ),
            _ => format!(
                "`{name}` was not started: one worker process after the other ended before it \
                 started anything, the last was"
            ),
        };
        let text = format!("{what} {}{}: {}", self.pid, self.place, self.how());
        Error::new(ErrorKind::WorkerLost, text).exited(self.status)
    }

    /// The error of a call that ran.
    fn ran(&self, call: &Request, ran: Duration) -> Error {
        let (name, how) = (call.name, self.how());
        let pid = format!("{}{}", self.pid, self.place);
        let panics = call.take_panics();
        let error = match panics.first().filter(|_| self.may_be_panic()) {
            Some(report) => {
                let suffix = format!("; its worker process {pid} ended with it ({how})");
                report.error(name, "", &suffix)
            }
            None => Error::new(
                ErrorKind::WorkerLost,
                format!("`{name}` lost its worker process {pid} after {ran:.1?}: {how}"),
            ),
        };
        error.exited(self.status)
    }

    /// Whether a panic that was reported may be what ended it: one that cannot unwind aborts. The function
    /// may have caught it, and have ended in any other way later.
    fn may_be_panic(&self) -> bool {
        self.status.is_some_and(transport::is_abort) && self.abort_without_panic().is_none()
    }

    /// What made std abort without a panic, if it was heard to say so.
    fn abort_without_panic(&self) -> Option<&'static str> {
        let tail = self.tail();
        if tail.contains("has overflowed its stack") {
            Some("stack overflow")
        } else if tail.contains("memory allocation of ") {
            Some("out of memory")
        } else {
            None
        }
    }

    fn tail(&self) -> &str {
        self.tail.get_or_init(|| self.output.quote())
    }

    fn how(&self) -> String {
        let mut how = match self.status {
            Some(status) if status.success() => format!("{status}, without a result"),
            Some(status) => status.to_string(),
            None => match self.launcher {
                Some(status) => format!("its launcher ended ({status})"),
                None => "unknown exit status".into(),
            },
        };
        if let Some(cause) = self.cause.filter(|cause| !transport::is_end(cause)) {
            how = format!("{how}; {cause}");
        } else if self.status.is_some() && how.contains("SIGKILL") {
            // A system that runs out of memory kills so, but so may others.
            how += ", perhaps for want of memory";
        }
        if let Some(why) = self.abort_without_panic() {
            how = format!("{why}, {how}");
        }
        how + self.tail()
    }
}

// ------------------------------------------------------------------------------ standard streams

/// The forwarded output of a worker.
pub(super) struct Output {
    pub(super) printed: Arc<Printed>,
    /// Disconnected when everything is forwarded.
    drained: Receiver<Infallible>,
}

/// How long the rest of what a worker printed may take to arrive after its end, for an error and before the
/// worker counts as gone. A process that the worker started may hold its streams open for ever.
const TAIL_WAIT: Duration = Duration::from_millis(500);
const DRAIN_WAIT: Duration = Duration::from_secs(1);

/// Where standard output is forwarded to.
type Sink = fn() -> io::Result<File>;

impl Output {
    /// Forwards what a worker prints. The receiver is disconnected when a test harness has printed its own
    /// words, which have to be read: otherwise it ends the process.
    pub(super) fn attach(child: &mut Child, sink: Sink) -> (Output, Receiver<Infallible>) {
        let (copying, drained) = channel();
        let (prelude, ready) = channel();
        let printed = Arc::<Printed>::default();
        // Without a thread its pipe is closed: what the worker prints to standard error is lost, and printing
        // to standard output fails.
        if let Some(stderr) = child.stderr.take() {
            let (printed, copying) = (Arc::clone(&printed), copying.clone());
            let forward = move || {
                forward_stderr(stderr, &printed);
                drop(copying);
            };
            let _ = start_thread("stderr", Box::new(forward));
        }
        if let Some(stdout) = child.stdout.take() {
            let printed = Arc::clone(&printed);
            let forward = move || {
                forward_stdout(stdout, &printed, prelude, sink);
                drop(copying);
            };
            let _ = start_thread("stdout", Box::new(forward));
        }
        (Output { printed, drained }, ready)
    }

    /// The end of standard error of a worker that has ended, as the end of a sentence.
    fn quote(&self) -> String {
        let _ = self.drained.recv_timeout(TAIL_WAIT);
        let text = lock(&self.printed.stderr).clone();
        match excerpt(&String::from_utf8_lossy(&text)) {
            text if text.is_empty() => text,
            text => format!("; its last output: {text}"),
        }
    }

    /// Waits until everything is forwarded: the program may end next.
    pub(super) fn drain(&self) {
        let _ = self.drained.recv_timeout(DRAIN_WAIT);
    }
}

/// What a worker has printed.
#[derive(Default)]
pub(super) struct Printed {
    /// To standard error since its call began; the middle is dropped if it is long.
    ///
    /// If standard error is a terminal, the worker writes to it directly. Otherwise it is forwarded, so that
    /// an error can quote it.
    stderr: Mutex<Vec<u8>>,
    /// Whether a test harness has handed over to the worker.
    passed_harness: AtomicBool,
}

/// How much is kept of the beginning, which tells the cause, and of the end.
const KEPT: usize = 32 << 10;
/// How much is quoted of each, in whole lines.
const QUOTED: usize = 1024;
/// How much is quoted of one line.
const LINE: usize = 512;
/// Stands for what is left out.
const OMITTED: &str = "[...]";

impl Printed {
    pub(super) fn add(&self, bytes: &[u8]) {
        let mut text = lock(&self.stderr);
        text.extend(bytes);
        let end = text.len().saturating_sub(KEPT);
        if end > KEPT {
            text.splice(KEPT..end, format!("\n{OMITTED}\n").into_bytes());
        }
    }

    /// Another call begins.
    pub(super) fn clear(&self) {
        lock(&self.stderr).clear();
    }
}

/// The first and the last lines of a text, without backtraces: they would leave no room for anything else,
/// and that of a call's panic is the source of the error anyway.
fn excerpt(text: &str) -> String {
    let mut in_backtrace = false;
    let mut lines = Vec::new();
    for line in text.trim().lines() {
        in_backtrace = is_backtrace(line, in_backtrace);
        if !in_backtrace {
            let cut = line.char_indices().nth(LINE);
            lines.push(match cut {
                Some((at, _)) => format!("{}...", &line[..at]),
                None => line.trim_end().to_owned(),
            });
        }
    }
    let fit = |lines: &mut dyn Iterator<Item = &String>| {
        let mut bytes = 0;
        let fits = |line: &&String| {
            bytes += line.len() + 1;
            bytes <= QUOTED
        };
        lines.take_while(fits).count()
    };
    let first = fit(&mut lines.iter());
    let last = lines.len() - fit(&mut lines.iter().rev());
    if first < last {
        lines.splice(first..last, [OMITTED.to_owned()]);
    }
    lines.join("\n")
}

/// Whether this is a line of a backtrace as the standard library prints it.
fn is_backtrace(line: &str, after_another: bool) -> bool {
    let number = |character: char| character.is_ascii_digit();
    let begins = line.trim().eq_ignore_ascii_case("stack backtrace:");
    let continues = line.starts_with(' ')
        || line.trim_start_matches(number).starts_with(": ")
        || line.starts_with("note: Some details are omitted");
    begins || (after_another && continues)
}

fn forward_stderr(mut stderr: ChildStderr, printed: &Printed) {
    copy(&mut stderr, |bytes| {
        printed.add(bytes);
        // A closed standard error is no reason to stop listening.
        let _ = transport::stderr().and_then(|mut stderr| stderr.write_all(bytes));
        Ok(())
    });
}

/// Forwards what a test's worker prints, without what the harness prints before it. Outside of tests, a worker
/// has the standard output of the program.
fn forward_stdout(
    mut stdout: ChildStdout,
    printed: &Printed,
    prelude: Sender<Infallible>,
    sink: Sink,
) {
    // The last bytes, as many as the mark has.
    let (mut seen, mut byte) = (VecDeque::from([0; TEST_MARK.len()]), [0]);
    while seen != TEST_MARK.as_bytes() {
        if stdout.read_exact(&mut byte).is_err() {
            return;
        }
        seen.pop_front();
        seen.extend(byte);
    }
    printed.passed_harness.store(true, Ordering::Relaxed);
    drop(prelude);
    copy(&mut stdout, |bytes| {
        let _ = sink().and_then(|mut stdout| stdout.write_all(bytes));
        Ok(())
    });
}

/// Reads to the end, or until the sink fails.
pub(super) fn copy(source: &mut impl Read, mut sink: impl FnMut(&[u8]) -> io::Result<()>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match source.read(&mut buffer) {
            Ok(read @ 1..) if sink(&buffer[..read]).is_ok() => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => return,
        }
    }
}
