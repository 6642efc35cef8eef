#![forbid(unsafe_code)]
//! What the library and the compiler say about a mistake: it leads to the correct code.

mod support;

#[path = "messages/unregistered.rs"]
mod unregistered;

unsync::test_worker!();

use support::{build, compile, quick};
use unsync::ErrorKind;

/// The compiler's errors, each with its notes.
fn errors(said: &str) -> Vec<&str> {
    let starts = said.match_indices("error").map(|(at, _)| at);
    let starts: Vec<usize> = starts
        .filter(|at| *at == 0 || said[..*at].ends_with('\n'))
        .chain([said.len()])
        .collect();
    starts.windows(2).map(|at| &said[at[0]..at[1]]).collect()
}

/// The place of something in a program, as the compiler prints it.
#[track_caller]
fn place(program: &str, what: &str) -> String {
    let at = program.find(what).expect("it is in the program");
    let before = &program[..at];
    let line = before.matches('\n').count() + 1;
    let column = at - before.rfind('\n').map_or(0, |newline| newline + 1) + 1;
    format!("--> src/main.rs:{line}:{column}\n")
}

/// The one error whose first place is that of `what`.
#[track_caller]
fn error_at<'a>(said: &'a str, program: &str, what: &str) -> &'a str {
    let place = place(program, what);
    let is_there = |error: &&&str| {
        let first = error.lines().find(|line| line.contains("--> "));
        first.is_some_and(|line| line.ends_with(place.trim_end()))
    };
    let errors = errors(said);
    let there: Vec<_> = errors.iter().filter(is_there).collect();
    assert_eq!(there.len(), 1, "errors at {what}, {place}{said}");
    there[0]
}

// ---------------------------------------------------------------------------------- not registered

#[test]
fn the_line_to_add_compiles_beside_the_function() {
    let mut source = include_str!("messages/unregistered.rs").to_owned();
    for (name, error) in quick(unregistered::errors) {
        assert_eq!(error.kind(), ErrorKind::NotRegistered, "{error}");
        let text = error.to_string();
        let line = text
            .split_once(": add `")
            .and_then(|(_, rest)| rest.split_once("` beside it"));
        let (line, _) = line.unwrap_or_else(|| panic!("no line to add: {text}"));
        let place = format!("// beside: {name}\n");
        assert!(source.contains(&place), "no place for {name}");
        source = source.replace(&place, &format!("{line}\n"));
    }
    assert!(!source.contains("// beside:"), "{source}");
    let lines = source.lines().filter(|line| !line.starts_with("//!"));
    let source = lines.collect::<Vec<_>>().join("\n");
    let program =
        format!("#![allow(dead_code)]\nmod unregistered {{\n{source}\n}}\nfn main() {{}}\n");
    if let Some((compiles, said)) = compile("pasted", &program) {
        assert!(compiles, "{said}\n{program}");
    }
}

#[test]
fn a_closure_is_sent_to_the_macro_that_calls_one() {
    let error = unsync::cpu(|n: u64| -> u64 { n }, (1,))
        .result()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotRegistered);
    let text = error.to_string();
    assert!(text.contains("`unsync::cpu!(|n: u64| -> u64 {"), "{text}");
    assert!(!text.contains("register!("), "{text}");
}

// ----------------------------------------------------------------------------- what cannot cross

/// Each type is named once, where the function is registered, with the fitting advice below.
#[test]
fn what_cannot_cross_is_named_at_its_register() {
    const PROGRAM: &str = r#"
        use std::{fs::File, sync::Mutex, time::Instant};
        struct Opaque;
        type Boxed = Box<dyn std::error::Error>;
        fn takes(_: u8, _: Vec<Opaque>) {}
        fn gives() -> Option<Opaque> { None }
        fn text(text: &str) -> usize { text.len() }
        fn slice(items: &[u8]) -> usize { items.len() }
        fn method(opaque: &Opaque) -> usize { size_of_val(opaque) }
        fn boxed() -> Result<u8, Boxed> { Ok(1) }
        fn fmt() -> Result<u8, std::fmt::Error> { Ok(1) }
        fn file() -> File { panic!() }
        fn lock(_: Mutex<u8>) {}
        fn now() -> Instant { Instant::now() }
        async fn later(n: u64) -> u64 { n }
        fn fine(n: u64) -> std::io::Result<u64> { Ok(n) }
        unsync::register!(
            (takes), (gives), (text), (slice), (method), (boxed), (fmt), (file), (lock), (now), (later), (fine),
        );
        fn main() {
            unsync::init();
        }
    "#;
    let Some((compiles, said)) = compile("crossing", PROGRAM) else {
        return;
    };
    assert!(!compiles, "{said}");
    let advice = [
        ("takes", "`Opaque`", "`unsync::wire!`"),
        ("gives", "`Opaque`", "`unsync::wire!`"),
        ("text", "`&str`", "`String` for `&str`"),
        ("slice", "`&[u8]`", "`Vec<T>` for `&[T]`"),
        ("method", "`&Opaque`", "a reference cannot cross"),
        (
            "boxed",
            "dyn std::error::Error",
            "`std::io::Error` can cross",
        ),
        ("fmt", "`std::fmt::Error`", "`std::io::Error` can cross"),
        ("file", "`File`", "belongs to one process"),
        ("lock", "Mutex<u8>`", "belongs to one process"),
        ("now", "`Instant`", "belongs to one process"),
        ("later", "`impl Future<Output = u64>`", "`unsync::spawn("),
    ];
    for (function, culprit, advice) in advice {
        let error = error_at(&said, PROGRAM, &format!("({function})"));
        let first = error.lines().next().unwrap();
        assert!(first.contains(culprit), "{function}: {said}");
        assert!(
            first.ends_with("cannot cross to a worker process"),
            "{said}"
        );
        assert!(error.contains(advice), "{function}: {advice}: {said}");
        // The error lists types that can cross. Tuples would fill the whole list.
        assert!(!error.contains("(A, B"), "{said}");
    }
    let others = errors(&said).len() - advice.len();
    assert_eq!(others, 1, "only that it could not be compiled: {said}");
}

/// The last place that the compiler shows is the line of the call.
#[test]
fn what_captures_is_told_at_its_call() {
    const PROGRAM: &str = r#"
        fn work(n: u64) -> u64 { n }
        fn main() {
            unsync::init();
            let factor = 2;
            let pointer: fn(u64) -> u64 = work;
            let scale = move |n: u64| -> u64 { n * factor };
            drop(unsync::cpu(scale, (1,)));
            drop(unsync::cpu(pointer, (1,)));
            drop(unsync::Limit::new(1).cpu(scale, (1,)));
            drop(unsync::Unfuture::ready(1).map_cpu(scale));
        }
    "#;
    let Some((compiles, said)) = build("captures", PROGRAM) else {
        return;
    };
    assert!(!compiles, "{said}");
    for call in [
        "unsync::cpu(scale",
        "unsync::cpu(pointer",
        "unsync::Limit::new(1).cpu(",
        "unsync::Unfuture::ready(1).map_cpu(",
    ] {
        let place = place(PROGRAM, call);
        let error = errors(&said)
            .into_iter()
            .find(|error| error.contains(place.trim_end()));
        let error = error.unwrap_or_else(|| panic!("no error at {place}{said}"));
        let last = error.lines().rfind(|line| line.contains("--> "));
        assert!(
            last.is_some_and(|line| line.ends_with(place.trim_end())),
            "{error}"
        );
        let advice = "`unsync::cpu!(|n: u64, factor: u64| -> u64 { n * factor }, n, factor)`";
        assert!(error.contains(advice), "{error}");
    }
}

// ----------------------------------------------------------------------------------- forms of macros

#[test]
fn macros_say_what_to_write() {
    const RIGHT: &str = r#"
        mod shapes {
            pub fn area(w: u32, h: u32) -> u32 { w * h }
            pub fn first<T: Clone>(items: Vec<T>) -> T { items[0].clone() }
        }
        fn work(n: u64) -> u64 { n }
        fn nothing() {}
        fn main() {
            unsync::init();
            let n = 1;
            let _ = (unsync::cpu!(work, n), unsync::cpu!(work(n)), unsync::cpu!(work(2 * n,),));
            let _ = (unsync::cpu!(shapes::area(1, 2)), unsync::cpu!(crate::shapes::area, 1, 2));
            let _ = (unsync::cpu!(nothing()), unsync::cpu!(nothing));
            let _ = (unsync::cpu!(shapes::first::<u64>(vec![1])), unsync::cpu!(shapes::first::<u64>, vec![1]));
            let _ = (unsync::cpu!(move |n: u64| -> u64 { n }, n), unsync::cpu!(|n: u64| -> u64 { n }, n));
            let _ = (unsync::cpu!(move || -> u64 { 1 }), unsync::cpu!(|| {}));
        }
    "#;
    const WRONG: &str = r#"
        struct Tile { x: u32 }
        unsync::wire!(pub struct Tile { x });
        unsync::wire!(struct Tile { x: u32 });
        unsync::wire!(pub struct Tile { pub x: u32 });
        unsync::wire!(pub(crate) struct Metres(f64));
        unsync::wire!(#[derive(Debug)] struct Empty;);
        unsync::wire!(struct Kept<'a> { text });
        unsync::wire!(pub enum Shape { Circle(f64) });
        unsync::wire!(enum Shape { Box { w: u32 } });
        unsync::wire!(Tile);
        fn main() {
            unsync::init();
            let n = 1u64;
            let _ = unsync::cpu!(|n| n, 1);
            let _ = unsync::cpu!(move |n| n * 2, 1);
            let _ = unsync::cpu!(n.pow(2));
            let _ = unsync::cpu!(async { n });
            let _ = unsync::cpu!(async move |n: u64| -> u64 { n }, 1);
        }
    "#;
    let Some((compiles, said)) = compile("forms", RIGHT) else {
        return;
    };
    assert!(compiles, "{said}");
    let (compiles, said) = compile("forms", WRONG).unwrap();
    assert!(!compiles, "{said}");
    let forms = "as in `unsync::wire!(struct Name { first, second });` or \
                 `unsync::wire!(enum Name { Empty, Pair(first, second) });`";
    let advice = [
        ("unsync::wire!(pub struct Tile { x })", forms),
        ("unsync::wire!(struct Tile { x: u32 })", forms),
        ("unsync::wire!(pub struct Tile { pub", forms),
        ("unsync::wire!(pub(crate)", forms),
        ("unsync::wire!(#[derive", forms),
        ("unsync::wire!(struct Kept<'a>", "no lifetimes"),
        ("unsync::wire!(pub enum", forms),
        ("unsync::wire!(enum", forms),
        ("unsync::wire!(Tile)", forms),
        (
            "unsync::cpu!(|n| n",
            "`cpu!(|n: u64| -> u64 { n * 2 }, 21)`",
        ),
        (
            "unsync::cpu!(move |n|",
            "`cpu!(|n: u64| -> u64 { n * 2 }, 21)`",
        ),
        ("unsync::cpu!(n.pow", "`cpu!(work, 21)`"),
        ("unsync::cpu!(async {", "`unsync::spawn(async { … })`"),
        ("unsync::cpu!(async move |", "`unsync::spawn(async { … })`"),
    ];
    for (form, advice) in advice {
        let error = error_at(&said, WRONG, form);
        assert!(
            error.lines().next().unwrap().contains(advice),
            "{form}: {said}"
        );
    }
}
