//! The Python original, and the process pool of Python's standard library.
//!
//! One interpreter for each row, started when it is first needed: it reads a workload and an amount and
//! answers with seconds. `PYTHON` names an interpreter other than `python3`.

use std::cell::RefCell;
use std::env;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

thread_local! {
    static PYTHON: RefCell<Option<Option<Python>>> = const { RefCell::new(None) };
}

struct Python {
    _child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Python {
    fn start() -> Option<Python> {
        let interpreter = env::var("PYTHON").unwrap_or_else(|_| "python3".into());
        let mut child = Command::new(interpreter)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/peer.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let (input, output) = (child.stdin.take()?, child.stdout.take()?);
        Some(Python {
            _child: child,
            input,
            output: BufReader::new(output),
        })
    }

    /// The answer to one line, or `None` if there is no such thing.
    fn ask(&mut self, line: &str) -> Option<String> {
        writeln!(self.input, "{line}").ok()?;
        let mut answer = String::new();
        self.output.read_line(&mut answer).ok()?;
        Some(answer.trim().to_owned())
    }
}

fn ask(line: &str) -> Option<String> {
    PYTHON.with_borrow_mut(|python| python.get_or_insert_with(Python::start).as_mut()?.ask(line))
}

/// Runs one of the workloads of `peer.py`.
pub(crate) fn workload(name: &'static str) -> impl FnMut(usize) -> Option<f64> {
    move |operations| {
        let seconds: f64 = ask(&format!("{name} {operations}"))?.parse().ok()?;
        Some(seconds * 1e9 / operations as f64)
    }
}

/// The versions of Python and of its `unsync`.
pub(crate) fn versions() -> Option<String> {
    ask("versions 0")
}
