//! Runs the rows and reports their results: on standard output as they come, and in `RESULTS.md`.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::{env, fs, process};

use crate::busy::{self, Busy};
use crate::contest::{Figure, Figures, Limit, Row, Target, Unit, Verdict};
use crate::support::{Options, machine, readable, readable_bytes, today};
use crate::{raw, rows};

/// What is known about the rows that miss their target.
const LIMITS: &str = include_str!("../LIMITS.md");
const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/RESULTS.md");

pub(crate) fn run() {
    let options = Options::parse();
    let only_busy = env::args().any(|argument| argument == "--busy");
    let say = |text: &str| {
        if !options.json {
            println!("{text}");
        }
    };
    let mut machine = machine();
    machine.extend(versions());
    machine.iter().for_each(|line| say(line));
    let mut results = Vec::new();
    for row in rows().filter(|row| !only_busy && options.wants(row.key)) {
        let figures = figures_of(row, options.quick);
        if options.json {
            print!("{}", json(row, &figures));
        } else {
            print!("{}", lines(row, &figures));
        }
        results.push((row, figures));
    }
    let everything = !options.quick && !only_busy && options.filters.is_empty();
    let mut loaded = Vec::new();
    if only_busy || everything {
        say("\nwith a busy process on every core: with and without looking again before parking");
        loaded = busy::run(|key| options.wants(key), |busy| say(&busy_line(busy)));
    }
    if !everything {
        say("\nnot written to RESULTS.md: that takes all rows, and all of each");
        return;
    }
    if let Err(error) = fs::write(RESULTS, page(&machine, &results, &loaded)) {
        eprintln!("{RESULTS}: {error}");
        process::exit(1);
    }
    say(&format!("\nwritten to {RESULTS}"));
}

/// The commit, and the versions of the compiler, the peers and Python, as far as each is available.
fn versions() -> Vec<String> {
    let says = |mut command: Command| {
        let output = command.stderr(Stdio::null()).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let mut git = Command::new("git");
    git.current_dir(env!("CARGO_MANIFEST_DIR"));
    git.args(["describe", "--always", "--dirty", "--exclude=*"]);
    let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.arg("--version");
    let mut python = raw::own_program();
    python.arg("--versions");
    let peers = [
        "tokio",
        "smol",
        "async-executor",
        "async-io",
        "blocking",
        "futures",
        "rayon",
        "threadpool",
        "procspawn",
    ];
    let lock = include_str!("../Cargo.lock");
    let version = |name: &str| {
        let entry = lock
            .split_once(&format!("name = \"{name}\"\nversion = \""))?
            .1;
        Some(format!("{name} {}", entry.split('"').next()?))
    };
    let peers: Vec<String> = peers.into_iter().filter_map(version).collect();
    let peers = peers.join(", ");
    let lines = [says(git), says(rustc), Some(peers), says(python)];
    let titled = ["commit", "rust", "peers", "python"].into_iter().zip(lines);
    titled
        .filter_map(|(title, line)| Some(format!("{title:<7} {}", line?)))
        .collect()
}

/// Runs a row in a process of its own.
fn figures_of(row: &Row, quick: bool) -> Figures {
    let mut figures = Figures::default();
    let amount = if quick { "quick" } else { "full" };
    collect(&["--row", row.key, amount], &mut figures);
    figures
}

/// Adds what this program prints in such a role: contestant, figure and CPU time on every line.
pub(crate) fn collect(role: &[&str], figures: &mut Figures) {
    let mut child = raw::own_program()
        .args(role)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program starts again");
    let output = child.stdout.take().expect("it is piped");
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        if let [name, figure, cpu] = line.split('\t').collect::<Vec<_>>()[..] {
            let number = |text: &str| text.parse().unwrap_or(f64::NAN);
            figures.add(name, number(figure), number(cpu));
        }
    }
    let status = child.wait().expect("it can be waited for");
    if !status.success() {
        eprintln!("{role:?}: {status}");
    }
}

fn figure(unit: Unit, figure: f64) -> String {
    match unit {
        Unit::Nanoseconds => readable(figure),
        Unit::Bytes => readable_bytes(figure),
    }
}

/// The row for a terminal: its targets, then everybody's figures.
fn lines(row: &Row, figures: &Figures) -> String {
    let mut text = format!("{} — {}\n", row.key, row.workload);
    for target in row.targets {
        let Some(verdict) = target.verdict(figures) else {
            let _ = writeln!(text, "    no figures against {}", target.against);
            continue;
        };
        let _ = writeln!(
            text,
            "    {:<6} {} (target {}) against {}",
            if verdict.met { "met" } else { "MISSED" },
            reached(row, target, &verdict),
            limit(row, target),
            verdict.best.map_or("–", |best| best.0),
        );
    }
    for Figure { name, samples, cpu } in &figures.0 {
        let _ = writeln!(
            text,
            "      {name:<50} {:>9}   min {:>9}   max {:>9}   CPU {:>9}   {} rounds",
            figure(row.unit, samples.median()),
            figure(row.unit, samples.min()),
            figure(row.unit, samples.max()),
            readable(cpu.median()),
            samples.len()
        );
    }
    text
}

fn reached(row: &Row, target: &Target, verdict: &Verdict<'_>) -> String {
    match target.limit {
        Limit::AtMost(_) | Limit::AtLeast(_) => format!("{:.3}", verdict.reached),
        Limit::Below(_) => figure(row.unit, verdict.reached),
        Limit::Over(_) => format!("+{}", figure(row.unit, verdict.reached)),
    }
}

fn limit(row: &Row, target: &Target) -> String {
    match target.limit {
        Limit::AtMost(limit) => format!("≤ {limit}"),
        Limit::AtLeast(limit) => format!("≥ {limit}"),
        Limit::Below(limit) => format!("< {}", figure(row.unit, limit)),
        Limit::Over(limit) => format!("≤ +{}", figure(row.unit, limit)),
    }
}

fn busy_line(busy: &Busy) -> String {
    format!(
        "    {:<6} {:.2} (target ≤ {})  {:<14} with {:>9}   without {:>9}",
        if busy.is_met() { "met" } else { "MISSED" },
        busy.ratio(),
        busy::LIMIT,
        busy.row.key,
        readable(busy.spinning),
        readable(busy.parking),
    )
}

/// One object for each contestant.
fn json(row: &Row, figures: &Figures) -> String {
    let mut text = String::new();
    for Figure { name, samples, cpu } in &figures.0 {
        let _ = writeln!(
            text,
            "{{\"row\":\"{}\",\"contestant\":\"{name}\",\"median\":{:.1},\"min\":{:.1},\
             \"max\":{:.1},\"cpu_ns\":{:.1},\"rounds\":{}}}",
            row.key,
            samples.median(),
            samples.min(),
            samples.max(),
            cpu.median(),
            samples.len()
        );
    }
    text
}

/// The page: the table of targets, the results on a busy machine, then all figures.
fn page(machine: &[String], results: &[(&Row, Figures)], loaded: &[Busy]) -> String {
    let mut page = format!(
        "# unsync and its peers\n\n\
         Measured on {} by `cargo run --release --manifest-path benches/peers/Cargo.toml`, which writes \
         this page.\n\n```text\n{}\n```\n\n\
         Every row is a process of its own in which the contestants take turns. A figure is the median \
         of its rounds. A ratio is ours over the best peer, for a rate the best peer over ours.\n\n\
         | workload | against | ours | best peer | ratio | target | |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
        today(),
        machine.join("\n"),
    );
    for (row, figures) in results {
        for target in row.targets {
            let Some(verdict) = target.verdict(figures) else {
                let _ = writeln!(
                    page,
                    "| {} | {} | – | – | – | {} | not measured |",
                    row.workload,
                    target.against,
                    limit(row, target)
                );
                continue;
            };
            let ours = figures.ours().unwrap_or(f64::NAN);
            let best = verdict.best.map_or_else(
                || "–".to_owned(),
                |(name, peer)| format!("{} ({name})", figure(row.unit, peer)),
            );
            let _ = writeln!(
                page,
                "| {} | {} | {} | {best} | {} | {} | {} |",
                row.workload,
                target.against,
                figure(row.unit, ours),
                reached(row, target, &verdict),
                limit(row, target),
                if verdict.met { "met" } else { "**missed**" },
            );
        }
    }
    page.push_str(
        "\n## On a busy machine\n\nOurs, while another process wants every core: with looking again \
         before parking (the default) and without.\n\n| row | with | without | ratio | target | |\n\
         | --- | --- | --- | --- | --- | --- |\n",
    );
    for busy in loaded {
        let _ = writeln!(
            page,
            "| {} | {} | {} | {:.2} | ≤ {} | {} |",
            busy.row.workload,
            readable(busy.spinning),
            readable(busy.parking),
            busy.ratio(),
            busy::LIMIT,
            if busy.is_met() { "met" } else { "**missed**" },
        );
    }
    let _ = write!(page, "\n{LIMITS}");
    page.push_str(
        "\n## Everybody's figures\n\nCPU time is that of all threads and child processes, for one \
         operation. A contestant in brackets is there for orientation and is not set against ours.\n",
    );
    for (row, figures) in results {
        let _ = write!(
            page,
            "\n### {}\n\n{}\n\n| contestant | median | min | max | CPU time | rounds |\n\
             | --- | --- | --- | --- | --- | --- |\n",
            row.key, row.workload
        );
        for Figure { name, samples, cpu } in &figures.0 {
            let _ = writeln!(
                page,
                "| {name} | {} | {} | {} | {} | {} |",
                figure(row.unit, samples.median()),
                figure(row.unit, samples.min()),
                figure(row.unit, samples.max()),
                readable(cpu.median()),
                samples.len()
            );
        }
    }
    page
}
