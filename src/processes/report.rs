//! The errors of workers that end and of calls that fail, and the output of workers.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::Request;
use super::handshake::SpawnError;
use super::latch::{Latch, Opener};
use super::scheduler::{DEATHS, Outcome};
use super::transport;
use super::worker::{PanicReport, Setup, TEST_MARK, clip, setup};
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

/// The error of a call that its worker ended without a value.
pub(super) fn failed(name: &str, kind: u8, message: String, panics: Vec<PanicReport>) -> Error {
    if kind == ErrorKind::Panicked as u8 {
        // The function may have caught another panic before.
        let is_this = |report: &PanicReport| report.text.as_deref().unwrap_or("") == message;
        let report = panics.into_iter().rfind(is_this).unwrap_or_default();
        return report.error(name, message, "");
    }
    let (kind, text) = if kind == ErrorKind::NotRegistered as u8 {
        (ErrorKind::NotRegistered, format!("`{name}`: {message}"))
    } else if kind == ErrorKind::TooLarge as u8 {
        let text = format!("the result of `{name}` is {message}");
        (ErrorKind::TooLarge, text)
    } else {
        let text = format!("the arguments of `{name}`: {message}");
        (ErrorKind::Codec, text)
    };
    Error::new(kind, text)
}

/// The error of a call for which no worker can be started.
pub(super) fn unstartable(name: &str, error: &Error) -> Error {
    error.about(&format!("`{name}` cannot run"))
}

impl PanicReport {
    /// The error of a call that panicked; `message` is what was caught, if anything was.
    fn error(self, name: &str, message: String, suffix: &str) -> Error {
        let text = match message.is_empty() {
            true => self.text.unwrap_or_default(),
            false => message,
        };
        let place = self
            .place
            .map_or_else(String::new, |at| format!(" at {at}"));
        let colon = if text.is_empty() { "" } else { ": " };
        let said = format!("`{name}` panicked{place}{colon}{text}{suffix}");
        Error::new(ErrorKind::Panicked, said).with_remote_panic(text, self.backtrace)
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

/// Where a worker is, as the end of a sentence. This machine is not worth mentioning.
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
    let mut status = None;
    let what = match refusal {
        SpawnError::Os(error) => {
            let attempt = format!("no worker process could be started{place}{program}");
            return Error::os(attempt, error);
        }
        SpawnError::Died(ended) => match host {
            Some(host) => format!("the launcher of host `{host}` ended ({ended})"),
            None => {
                status = Some(ended);
                format!("a worker process ended before it was ready ({ended})")
            }
        },
        SpawnError::TimedOut => format!("a worker process{place} was not ready within {limit:?}"),
        SpawnError::Unfit(why) => format!("no worker process{place}: {why}"),
    };
    let tail = output.map_or("", Output::tail);
    // A worker that has said what is wrong needs no hint.
    let hint = match host.is_some() || tail.contains("unsync: ") {
        true => "",
        false => hint(status, tail),
    };
    Error::new(ErrorKind::WorkerLost, format!("{hint}{what}{tail}")).exited(status)
}

/// The most likely cause if the process never became a worker, as the beginning of a sentence.
fn hint(status: Option<ExitStatus>, tail: &str) -> &'static str {
    match (status.map(|status| status.code()), setup()) {
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
    }
}

// ---------------------------------------------------------------------------------------- the end

/// How a worker ended.
pub(super) struct ExitReport<'a> {
    /// Its pid, and its host if it was on another one.
    pub(super) process: String,
    /// Whether it was killed while its link was open.
    pub(super) was_killed: bool,
    /// Whether a signal had stopped it when it was killed.
    pub(super) was_stopped: bool,
    pub(super) status: Option<ExitStatus>,
    /// How its launcher ended, if it was on another host.
    pub(super) launcher: Option<ExitStatus>,
    /// Why the link ended, if not because the worker closed it.
    pub(super) cause: Option<&'a io::Error>,
    /// Why it could not serve, if that is how it ended.
    pub(super) refusal: Option<&'a Error>,
    pub(super) output: &'a Output,
}

impl ExitReport<'_> {
    /// The error of a call that the end of the worker leaves without a value.
    pub(super) fn error(&self, call: &Request, outcome: Outcome) -> Error {
        let name = call.name;
        if let Outcome::Lost { ran, stop, .. } = outcome {
            if let Some(reason) = stop {
                let place = match self.was_stopped {
                    true => " in a worker process that a signal had stopped",
                    false => "",
                };
                return stopped(name, reason, ran, place).exited(self.status);
            }
            if let Some(ran) = ran {
                return self.ran(call, ran);
            }
        }
        if let Some(refusal) = self.refusal {
            return unstartable(name, refusal);
        }
        let what = match outcome {
            // It may have started, and nobody will ever know.
            Outcome::Lost { deaths: 0, .. } => {
                format!("`{name}`, which may have begun, lost its worker process")
            }
            Outcome::Lost { .. } => format!(
                "`{name}` was not started by any of {DEATHS} worker processes, the last was"
            ),
            _ => format!(
                "`{name}` was not started: one worker process after the other ended before it \
                 started anything, the last was"
            ),
        };
        let text = format!("{what} {}: {}", self.process, self.how());
        Error::new(ErrorKind::WorkerLost, text).exited(self.status)
    }

    /// The error of a call that ran.
    fn ran(&self, call: &Request, ran: Duration) -> Error {
        let (name, process, how) = (call.name, &self.process, self.how());
        let mut panics = call.take_panics().into_iter();
        let error = match panics.next().filter(|_| self.may_be_panic()) {
            Some(report) => {
                let suffix = format!("; its worker process {process} ended with it ({how})");
                report.error(name, String::new(), &suffix)
            }
            None => Error::new(
                ErrorKind::WorkerLost,
                format!("`{name}` lost its worker process {process} after {ran:.1?}: {how}"),
            ),
        };
        error.exited(self.status)
    }

    /// Whether a reported panic may be what ended the worker: one that cannot unwind aborts. But the function
    /// may have caught it, and the worker may have ended in another way later.
    fn may_be_panic(&self) -> bool {
        self.status.is_some_and(transport::is_abort) && self.abort_without_panic().is_none()
    }

    /// What made std abort without a panic, if its message was heard.
    fn abort_without_panic(&self) -> Option<&'static str> {
        let tail = self.output.tail();
        if tail.contains("has overflowed its stack") {
            Some("stack overflow")
        } else if tail.contains("memory allocation of ") {
            Some("out of memory")
        } else {
            None
        }
    }

    fn how(&self) -> String {
        let mut how = match (self.status, self.launcher) {
            (Some(status), _) if status.success() => format!("{status}, without a result"),
            (Some(status), _) => status.to_string(),
            (None, Some(launcher)) => format!("its launcher ended ({launcher})"),
            (None, None) => "unknown exit status".into(),
        };
        if let Some(cause) = self.cause.filter(|cause| !transport::is_end(cause)) {
            how = format!("{how}; {cause}");
        } else if self.status.is_some() && how.contains("SIGKILL") {
            how += match self.was_killed {
                true => ", because it did not answer",
                // A system that runs out of memory kills this way, but so may others.
                false => ", perhaps because memory ran out or its connection was closed",
            };
        }
        if let Some(why) = self.abort_without_panic() {
            how = format!("{why}, {how}");
        }
        how + self.output.tail()
    }
}

// ------------------------------------------------------------------------------ standard streams

/// The forwarded output of a worker.
#[derive(Default)]
pub(super) struct Output {
    pub(super) printed: Arc<Printed>,
    /// Open when a test harness has printed its own output, which has to be read, or else the harness ends the
    /// process.
    pub(super) ready: Arc<Latch>,
    /// Open when everything is forwarded.
    drained: Arc<Latch>,
    tail: OnceCell<String>,
}

/// How long the rest of what a worker printed may take to arrive after its end. A process that the worker
/// started may hold its streams open forever.
const TAIL_WAIT: Duration = Duration::from_secs(1);

/// Where standard output is forwarded to.
type Sink = fn() -> io::Result<File>;

impl Output {
    /// Forwards what a worker prints. If that cannot be read for want of a thread, the worker is killed: what it
    /// prints would block its calls, or make them panic.
    pub(super) fn attach(child: &mut Child, sink: Sink) -> io::Result<Output> {
        let output = Output::default();
        let prelude = Opener(Arc::clone(&output.ready));
        let copying = Arc::new(Opener(Arc::clone(&output.drained)));
        let mut started = Ok(());
        if let Some(stderr) = child.stderr.take() {
            let (printed, copying) = (Arc::clone(&output.printed), Arc::clone(&copying));
            let forward = move || forward_stderr(stderr, &printed, copying);
            started = start_thread("stderr", Box::new(forward));
        }
        if let Some(stdout) = child.stdout.take() {
            let forward = move || forward_stdout(stdout, prelude, sink, copying);
            started = started.and_then(|()| start_thread("stdout", Box::new(forward)));
        }
        if let Err(error) = started {
            let _ = child.kill();
            child.wait()?;
            return Err(error);
        }
        Ok(output)
    }

    /// The end of the standard error of a worker that has ended, as the end of a sentence. Waits for it once.
    fn tail(&self) -> &str {
        self.tail.get_or_init(|| {
            self.drained.wait(TAIL_WAIT);
            let text = lock(&self.printed.0).clone();
            match excerpt(&String::from_utf8_lossy(&text)) {
                text if text.is_empty() => text,
                text => format!("; its last output: {text}"),
            }
        })
    }

    /// Waits until everything is forwarded: the program may end next.
    pub(super) fn drain(&self) {
        self.tail();
    }
}

/// What a worker has printed to standard error since its call began; the middle is dropped if it is long.
///
/// If standard error is a terminal, the worker writes to it directly. Otherwise it is forwarded, so that
/// an error can quote it.
#[derive(Default)]
pub(super) struct Printed(Mutex<Vec<u8>>);

/// How much is kept at least of the beginning, which tells the cause, and of the end.
const KEPT: usize = 32 << 10;
/// How much is quoted of each, in whole lines where they are shorter than this.
const QUOTED: usize = 1024;
/// Stands for what is left out.
const OMITTED: &str = "\n[...]\n";

impl Printed {
    pub(super) fn add(&self, bytes: &[u8]) {
        let mut text = lock(&self.0);
        text.extend(bytes);
        let end = text.len().saturating_sub(KEPT);
        // Not before as much again has gathered, or each write would move all of it.
        if end > 3 * KEPT {
            *text = [&text[..KEPT], OMITTED.as_bytes(), &text[end..]].concat();
        }
    }

    /// Another call begins.
    pub(super) fn clear(&self) {
        lock(&self.0).clear();
    }
}

/// The first and the last lines of a text, without backtraces: these would leave no room for anything else,
/// and the backtrace of a call's panic is the source of the error anyway.
fn excerpt(text: &str) -> String {
    let mut in_backtrace = false;
    let is_quoted = |line: &&str| {
        in_backtrace = is_backtrace(line, in_backtrace);
        !in_backtrace
    };
    let lines: Vec<&str> = text.trim().lines().filter(is_quoted).collect();
    let text = lines.join("\n");
    let text = text.trim();
    if text.len() <= 2 * QUOTED {
        return text.to_owned();
    }
    let first = clip(text, QUOTED);
    let last = &text[clip(text, text.len() - QUOTED).len()..];
    let first = first.rsplit_once('\n').map_or(first, |(whole, _)| whole);
    let last = last.split_once('\n').map_or(last, |(_, whole)| whole);
    [first, last].join(OMITTED)
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

fn forward_stderr(mut stderr: ChildStderr, printed: &Printed, _copying: Arc<Opener>) {
    copy(&mut stderr, |bytes| {
        printed.add(bytes);
        // A closed standard error is no reason to stop listening.
        let _ = transport::stderr().and_then(|mut stderr| stderr.write_all(bytes));
        Ok(())
    });
}

/// Forwards what a test's worker prints, without what the harness prints before it. Outside tests, a worker
/// has the standard output of the program, unless the user's command has it piped.
fn forward_stdout(stdout: ChildStdout, prelude: Opener, sink: Sink, _copying: Arc<Opener>) {
    let mut stdout = BufReader::new(stdout);
    if let Some(Setup::Test(_)) = setup() {
        // The last bytes, as many as the mark has.
        let mut seen = VecDeque::from([0; TEST_MARK.len()]);
        for byte in stdout.by_ref().bytes().map_while(Result::ok) {
            seen.pop_front();
            seen.push_back(byte);
            if seen == TEST_MARK.as_bytes() {
                break;
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use std::panic::Location;

    use super::*;
    use crate::processes::Call;

    /// The system is not to blame for what the pool does.
    #[test]
    fn a_worker_that_was_killed_for_its_silence_did_not_run_out_of_memory() {
        let output = Output::default();
        drop(Opener(Arc::clone(&output.drained)));
        let error = |was_killed| {
            let report = ExitReport {
                process: "1".into(),
                was_killed,
                was_stopped: false,
                status: Some(transport::exit_status(9)),
                launcher: None,
                cause: None,
                refusal: None,
                output: &output,
            };
            let outcome = Outcome::Lost {
                ran: None,
                deaths: DEATHS,
                stop: None,
            };
            let call = Call::<()>::new(Location::caller(), 1, "none", Vec::new());
            report.error(&call.request, outcome).to_string()
        };
        let [ours, other] = [true, false].map(error);
        let is_signal = other.contains("SIGKILL");
        assert!(!ours.contains("memory"), "{ours}");
        assert_eq!(ours.contains("did not answer"), is_signal, "{ours}");
        assert_eq!(other.contains("memory"), is_signal, "{other}");
    }

    #[test]
    fn long_output_keeps_both_ends_and_is_rarely_moved() {
        let printed = Printed::default();
        printed.add(b"the cause\n");
        printed.add(&vec![b'.'; 5 * KEPT]);
        let (mut moves, mut before) = (0, 0);
        for _ in 0..10 * KEPT {
            printed.add(b".");
            let length = lock(&printed.0).len();
            assert!(length <= 4 * KEPT + OMITTED.len(), "{length}");
            moves += usize::from(length <= before);
            before = length;
        }
        assert!(moves <= 10, "{moves}");
        printed.add(b"\nthe end");
        let text = lock(&printed.0).clone();
        let text = String::from_utf8(text).unwrap();
        assert!(text.starts_with("the cause\n."), "{}", &text[..20]);
        assert!(text.ends_with(".\nthe end"));
        assert_eq!(text.matches(OMITTED).count(), 1);
        assert_eq!(text.find(OMITTED), Some(KEPT));
    }
}
