//! The workloads of `unsync` and its peers, side by side, and the targets set for `unsync` against them.
//!
//! ```text
//! cargo run --release --manifest-path benches/peers/Cargo.toml [-- [--quick] [--busy] [--json] [ROW…]]
//! ```
//!
//! Prints the whole table and writes `RESULTS.md` beside `Cargo.toml`. `--busy` only measures what
//! spinning costs on a busy machine. Any part of a row's name selects it.

mod busy;
mod contest;
mod footprint;
mod processes;
mod python;
mod raw;
mod report;
mod runtimes;
#[path = "../../support/mod.rs"]
mod support;
mod tasks;
mod threads;
mod timers;
mod weight;

use std::io::Write;
use std::{env, io};

use contest::Row;

/// Every row, in the order of the table.
fn rows() -> impl Iterator<Item = &'static Row> {
    let groups = [
        tasks::ROWS,
        threads::ROWS,
        timers::ROWS,
        processes::ROWS,
        footprint::ROWS,
        weight::ROWS,
    ];
    groups.into_iter().flatten()
}

fn main() {
    let arguments: Vec<String> = env::args().collect();
    let role: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    // The measurement of a process start comes before everything else.
    if role == ["--first-byte"] {
        io::stdout().write_all(&[1]).expect("the parent reads");
        return;
    }
    unsync::init();
    procspawn::init();
    match role[..] {
        ["--raw", way, path] => drop(raw::serve(way, path)),
        ["--row", key, amount] => run_row(key, amount == "quick"),
        ["--alone", key, spin] => busy::run_alone(key, spin == "spinning"),
        ["--hog"] => busy::hog(),
        ["--idle"] => footprint::burst_and_idle(),
        ["--memory", what, name, amount] => {
            let amount = amount.parse().expect("an amount is a number");
            let bytes = footprint::memory_of(what, name, amount);
            println!("{}", bytes.unwrap_or(f64::NAN));
        }
        ["--cold-cpu"] => println!("{}", processes::cold_cpu()),
        ["--cold-raw"] => println!("{}", processes::cold_raw()),
        ["--versions"] => println!("{}", python::versions().unwrap_or_default()),
        _ => report::run(),
    }
}

/// Runs in a process of its own: the turns of one row, one figure on each line.
fn run_row(key: &str, quick: bool) {
    let row = rows()
        .find(|row| row.key == key)
        .expect("there is such a row");
    (row.seat)(quick).run(|name, figure, cpu| println!("{name}\t{figure}\t{cpu}"));
}
