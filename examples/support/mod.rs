//! What all examples share: `--help`, wrong arguments, and readers that close the pipe.

use std::env;
use std::ffi::OsString;
use std::panic;
use std::process;

/// How the panic message of `println!` or `eprintln!` begins and ends when the reader has closed the pipe.
const PRINTING: &str = "failed printing to std";
const CLOSED: [&str; 2] = ["(os error 32)", "(os error 232)"]; // on Unix, on Windows

/// Returns the arguments, at most `most` of them.
///
/// With `--help` it prints how to call the program and exits with 0; with an unknown option or too many
/// arguments it exits with 2. From here on, a `println!` or `eprintln!` that
/// nobody reads ends the program quietly.
pub(crate) fn arguments(usage: &str, most: usize) -> Vec<OsString> {
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let text = info.payload().downcast_ref::<String>();
        let is_closed = |text: &String| {
            text.starts_with(PRINTING) && CLOSED.iter().any(|end| text.ends_with(end))
        };
        if text.is_some_and(is_closed) {
            process::exit(0);
        }
        default(info);
    }));

    let arguments = Vec::from_iter(env::args_os().skip(1));
    if arguments.iter().any(|argument| argument == "--help") {
        println!("usage: {usage}");
        process::exit(0);
    }
    let is_option = |argument: &OsString| argument.as_encoded_bytes().starts_with(b"-");
    if arguments.len() > most || arguments.iter().any(is_option) {
        eprintln!("usage: {usage}");
        process::exit(2);
    }
    arguments
}
