//! What all benchmarks share: options, the machine, samples, the table, CPU time and memory,
//! and a way to hand a value from one task to another.
//!
//! std only. Figures that a platform does not provide are `None` and appear in tables as a dash.

// Each benchmark is a program of its own and uses part of this file.
#![allow(dead_code)]

use std::cell::RefCell;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

// ----------------------------------------------------------------------------------- the options

/// The command line. `cargo bench` passes `--bench`, which means nothing here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Small amounts: to see that everything runs, not how fast.
    pub(crate) quick: bool,
    /// One JSON object for each row, in place of the table.
    pub(crate) json: bool,
    /// Only rows whose name contains one of these.
    pub(crate) filters: Vec<String>,
}

impl Options {
    pub(crate) fn parse() -> Options {
        let mut options = Options::default();
        for argument in env::args().skip(1) {
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--json" => options.json = true,
                flag if flag.starts_with('-') => {}
                filter => options.filters.push(filter.to_owned()),
            }
        }
        options
    }

    pub(crate) fn wants(&self, name: &str) -> bool {
        let filters = &self.filters;
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    }

    /// The amount of work: all of it, or what `--quick` leaves.
    pub(crate) fn amount(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }
}

// ----------------------------------------------------------------------------------- the machine

/// Where the figures were taken, in lines of text.
pub(crate) fn machine() -> Vec<String> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or(env::consts::ARCH, |(_, model)| model.trim());
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let release = read("/proc/sys/kernel/osrelease");
    let memory = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.parse::<u64>().ok())
        .map_or_else(String::new, |kib| format!(", {} GiB", kib >> 20));
    let virtual_machine = if cpuinfo.contains("hypervisor") {
        ", virtual machine"
    } else {
        ""
    };
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().filter(|load| !load.is_empty());
    vec![
        format!("cpu     {model}, {cores} cores{memory}{virtual_machine}"),
        format!("system  {} {}", env::consts::OS, release.trim()),
        format!("load    {} when started", load.unwrap_or("unknown")),
    ]
}

/// The day, in UTC, as `2026-01-31`.
pub(crate) fn today() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let days = since.map_or(0, |since| since.as_secs() / 86_400);
    // Counted from 1 March of the year 0, so that a leap day is the last of its year: then divisions
    // give the lengths of months and years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    format!("{}-{month:02}-{day:02}", era * 400 + year + next)
}

// ------------------------------------------------------------------------------------ the samples

/// Figures of one kind. Smaller is better.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    pub(crate) fn min(&self) -> f64 {
        self.quantile(0.0)
    }

    pub(crate) fn max(&self) -> f64 {
        self.quantile(1.0)
    }

    pub(crate) fn p99(&self) -> f64 {
        self.quantile(0.99)
    }

    /// The sample that this share of all samples does not exceed.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let place = (share * sorted.len() as f64).ceil() as usize;
        let figure = sorted.get(place.saturating_sub(1).min(sorted.len().saturating_sub(1)));
        figure.copied().unwrap_or(f64::NAN)
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(figures: I) -> Samples {
        Samples(figures.into_iter().collect())
    }
}

/// How long something takes.
pub(crate) fn time<R>(work: impl FnOnce() -> R) -> (Duration, R) {
    let started = Instant::now();
    let output = work();
    (started.elapsed(), output)
}

/// Nanoseconds as a person reads them: three digits and a unit.
pub(crate) fn readable(nanoseconds: f64) -> String {
    let units = [(1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns")];
    if !nanoseconds.is_finite() {
        return "–".into();
    }
    let unit = units.iter().find(|unit| nanoseconds >= unit.0);
    let (scale, name) = unit.unwrap_or(&units[3]);
    let number = nanoseconds / scale;
    let digits = match number {
        number if number >= 100.0 => 0,
        number if number >= 10.0 => 1,
        _ => 2,
    };
    format!("{number:.digits$} {name}")
}

/// Bytes as a person reads them.
pub(crate) fn readable_bytes(bytes: f64) -> String {
    let units = [
        ((1u64 << 30) as f64, "GiB"),
        ((1u64 << 20) as f64, "MiB"),
        (1024.0, "KiB"),
    ];
    match units.iter().find(|unit| bytes >= unit.0) {
        Some((scale, name)) if bytes % scale == 0.0 => format!("{} {name}", bytes / scale),
        Some((scale, name)) => format!("{:.1} {name}", bytes / scale),
        None => format!("{bytes:.0} B"),
    }
}

// -------------------------------------------------------------------------------------- the table

/// Prints results as they come.
pub(crate) struct Table {
    pub(crate) options: Options,
    /// The name of the benchmark, which is that of its file.
    name: &'static str,
    /// The rows of this section and their medians.
    section: RefCell<Vec<(String, f64)>>,
}

impl Table {
    /// Reads the options and says where the figures are taken.
    pub(crate) fn open(name: &'static str) -> Table {
        let options = Options::parse();
        let section = RefCell::default();
        let table = Table {
            options,
            name,
            section,
        };
        if table.options.json {
            let lines: Vec<String> = machine().iter().map(|line| quoted(line)).collect();
            println!(
                "{{\"bench\":{},\"machine\":[{}]}}",
                quoted(name),
                lines.join(",")
            );
        } else {
            println!("\n{name}");
            machine().iter().for_each(|line| println!("  {line}"));
        }
        table
    }

    /// Prints a heading over the rows that follow.
    pub(crate) fn section(&self, title: &str) {
        self.section.take();
        if !self.options.json {
            println!(
                "\n  {title:<44} {:>9} {:>10} {:>10} {:>10} {:>12}",
                "ops", "median", "min", "p99", "ops/s"
            );
        }
    }

    /// Prints how far apart the rows of this section are, and what would explain it.
    pub(crate) fn spread(&self, reason: &str) {
        let rows = self.section.take();
        let by_median = |a: &&(String, f64), b: &&(String, f64)| a.1.total_cmp(&b.1);
        let (least, most) = (rows.iter().min_by(by_median), rows.iter().max_by(by_median));
        if let (Some((low, least)), Some((high, most))) = (least, most) {
            let (from, to) = (readable(*least), readable(*most));
            let times = most / least;
            self.note(&format!(
                "from {from} ({low}) to {to} ({high}), {times:.1} times as much"
            ));
            self.note(reason);
        }
    }

    /// Prints what the rows above do not say themselves.
    pub(crate) fn note(&self, text: &str) {
        if !self.options.json {
            println!("    {text}");
        }
    }

    /// One row: nanoseconds for each operation.
    pub(crate) fn row(&self, name: &str, operations: usize, samples: &Samples) {
        self.row_with(name, operations, samples, &[]);
    }

    /// One row with more figures, each with its name, number, and readable text.
    pub(crate) fn row_with(
        &self,
        name: &str,
        operations: usize,
        samples: &Samples,
        more: &[(&str, f64, String)],
    ) {
        let (median, min, p99) = (samples.median(), samples.min(), samples.p99());
        self.section.borrow_mut().push((name.to_owned(), median));
        if self.options.json {
            let mut line = format!(
                "{{\"bench\":{},\"row\":{},\"operations\":{operations},\"samples\":{},\
                 \"median_ns\":{median:.1},\"min_ns\":{min:.1},\"p99_ns\":{p99:.1}",
                quoted(self.name),
                quoted(name),
                samples.len(),
            );
            for (name, number, _) in more {
                let _ = write!(line, ",{}:{number:.3}", quoted(name));
            }
            println!("{line}}}");
            return;
        }
        let rate = 1e9 / median;
        let more: Vec<String> = more
            .iter()
            .map(|(name, _, text)| format!("{name} {text}"))
            .collect();
        println!(
            "  {name:<44} {operations:>9} {:>10} {:>10} {:>10} {rate:>12.0}  {}",
            readable(median),
            readable(min),
            readable(p99),
            more.join(", ")
        );
    }

    /// Measures every operation by itself: for operations that take a microsecond or more.
    pub(crate) fn each(&self, name: &str, operations: usize, mut operation: impl FnMut(usize)) {
        if !self.options.wants(name) {
            return;
        }
        (0..operations / 10 + 1).for_each(&mut operation);
        let samples = (0..operations).map(|n| time(|| operation(n)).0.as_nanos() as f64);
        self.row(name, operations, &samples.collect());
    }

    /// Measures rounds of many operations: for operations that are shorter than reading the clock, or
    /// that run side by side.
    pub(crate) fn rounds(
        &self,
        name: &str,
        operations: usize,
        rounds: usize,
        mut round: impl FnMut(usize),
    ) {
        if !self.options.wants(name) {
            return;
        }
        round(operations / 10 + 1);
        let samples = (0..rounds).map(|_| per_operation(operations, || round(operations)));
        self.row(name, operations, &samples.collect());
    }
}

/// Nanoseconds for each of `operations` operations.
pub(crate) fn per_operation(operations: usize, work: impl FnOnce()) -> f64 {
    time(work).0.as_nanos() as f64 / operations.max(1) as f64
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

// --------------------------------------------------------------------------- CPU time and memory

/// The CPU time of all threads that this process has now. Linux reports it in nanoseconds for each
/// thread. The time of a thread that ends is lost, so nothing that is measured may end its threads.
pub(crate) fn cpu_time() -> Option<Duration> {
    cpu_time_of("self")
}

/// The same for another process, by its number.
pub(crate) fn cpu_time_of(process: &str) -> Option<Duration> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let nanoseconds = |path: &std::path::Path| {
        let text = fs::read_to_string(path.join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    let all = threads.filter_map(|thread| nanoseconds(&thread.ok()?.path()));
    Some(Duration::from_nanos(all.sum()))
}

/// The living children of a process.
pub(crate) fn children_of(process: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else {
        return Vec::new();
    };
    let lists = threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .collect::<String>();
    let numbers = lists.split_whitespace();
    numbers.filter_map(|number| number.parse().ok()).collect()
}

/// The resident memory of this process, in bytes.
pub(crate) fn resident() -> Option<u64> {
    /// The page size of every Linux that this is likely to run on. std does not provide it.
    const PAGE: u64 = 4096;
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * PAGE)
}

/// The threads of this process.
pub(crate) fn threads() -> Option<usize> {
    fs::read_dir("/proc/self/task")
        .ok()
        .map(|threads| threads.count())
}

// ------------------------------------------------------------------------------- from task to task

/// The least code that hands a value from one task to another, the same for every runtime.
#[derive(Default)]
pub(crate) struct Spot(Mutex<(Option<usize>, Option<Waker>)>);

impl Spot {
    pub(crate) fn put(&self, value: usize) {
        let mut spot = self.0.lock().expect("nothing panics here");
        spot.0 = Some(value);
        let waker = spot.1.take();
        drop(spot);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn take(&self) -> Take<'_> {
        Take(self)
    }
}

pub(crate) struct Take<'a>(&'a Spot);

impl Future for Take<'_> {
    type Output = usize;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<usize> {
        let mut spot = self.0.0.lock().expect("nothing panics here");
        match spot.0.take() {
            Some(value) => Poll::Ready(value),
            None => {
                spot.1 = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
