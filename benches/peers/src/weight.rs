//! Rows about the weight of a dependency: the time to build a small program with it, and its size.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, process};

use crate::contest::{Contest, Limit, OURS, Row, Target, Unit};

pub(crate) const ROWS: &[Row] = &[
    Row {
        key: "build",
        workload: "clean release build of a small program, CPU time",
        unit: Unit::Nanoseconds,
        targets: &[Target {
            against: "tokio `rt,time`",
            peers: &["tokio"],
            limit: Limit::AtMost(1.3),
        }],
        seat: |quick| everybody(quick, |built| built.cpu_ns),
    },
    Row {
        key: "size",
        workload: "stripped size of that program",
        unit: Unit::Bytes,
        targets: &[Target {
            against: "std only",
            peers: &["std only"],
            limit: Limit::Over(144.0 * 1024.0),
        }],
        seat: |_| everybody(true, |built| built.bytes),
    },
    Row {
        key: "size-threads",
        workload: "stripped size of a program with threads and `shutdown` only",
        unit: Unit::Bytes,
        targets: &[Target {
            against: "std only",
            peers: &["std only"],
            limit: Limit::Over(150.0 * 1024.0),
        }],
        seat: |_| {
            let programs = [
                (OURS, UNSYNC, WITH_UNSYNC_THREADS.into()),
                ("std only", "", STD_ONLY.into()),
            ];
            contest(true, programs, |built| built.bytes)
        },
    },
    Row {
        key: "type-build",
        workload: "each further `spawn` type: CPU time to build it",
        unit: Unit::Nanoseconds,
        targets: &[Target {
            against: "tokio `rt,time`",
            peers: &["tokio"],
            limit: Limit::AtMost(1.07),
        }],
        seat: |quick| types(quick, |built| built.cpu_ns),
    },
    Row {
        key: "type-size",
        workload: "each further `spawn` type: stripped bytes",
        unit: Unit::Bytes,
        targets: &[Target {
            against: "tokio `rt,time`",
            peers: &["tokio"],
            limit: Limit::AtMost(1.02),
        }],
        seat: |_| types(true, |built| built.bytes),
    },
];

struct Built {
    cpu_ns: f64,
    bytes: f64,
}

/// All of them sleep a millisecond on one thread, run a closure on another, and print both.
const STD_ONLY: &str = r#"
fn main() {
    let slept = std::thread::spawn(|| std::thread::sleep(std::time::Duration::from_millis(1)));
    let text = std::thread::spawn(|| std::fs::read_to_string("Cargo.toml").map(|text| text.len()));
    println!("{:?} {:?}", slept.join(), text.join().unwrap());
}
"#;
const WITH_UNSYNC: &str = r#"
fn main() {
    let slept = unsync::spawn(async { unsync::sleep(std::time::Duration::from_millis(1)).await });
    let text = unsync::thread(|| std::fs::read_to_string("Cargo.toml").map(|text| text.len()));
    println!("{:?} {:?}", slept.result(), text.result().unwrap());
}
"#;
const WITH_UNSYNC_CPU: &str = r#"
fn double(n: u64) -> u64 {
    n * 2
}
unsync::register!(double);
fn main() {
    unsync::init();
    let slept = unsync::spawn(async { unsync::sleep(std::time::Duration::from_millis(1)).await });
    let text = unsync::thread(|| std::fs::read_to_string("Cargo.toml").map(|text| text.len()));
    let doubled = unsync::cpu(double, (21,));
    println!("{:?} {:?} {:?}", slept.result(), text.result().unwrap(), doubled.result());
}
"#;
const WITH_UNSYNC_THREADS: &str = r#"
fn main() {
    let slept = unsync::thread(|| std::thread::sleep(std::time::Duration::from_millis(1)));
    let text = unsync::thread(|| std::fs::read_to_string("Cargo.toml").map(|text| text.len()));
    println!("{:?} {:?}", slept.result(), text.result().unwrap());
    println!("{:?}", unsync::shutdown(std::time::Duration::from_secs(1)));
}
"#;
const WITH_TOKIO: &str = r#"
fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let slept = tokio::spawn(async { tokio::time::sleep(std::time::Duration::from_millis(1)).await });
        let text = tokio::task::spawn_blocking(|| std::fs::read_to_string("Cargo.toml").map(|text| text.len()));
        println!("{:?} {:?}", slept.await, text.await.unwrap());
    });
}
"#;

const UNSYNC: &str = concat!(
    "unsync = { path = \"",
    env!("CARGO_MANIFEST_DIR"),
    "/../..\" }"
);
const TOKIO: &str =
    "tokio = { version = \"1\", default-features = false, features = [\"rt\", \"time\"] }";

/// A contestant: its name, what it depends on, and its program.
type Program = (&'static str, &'static str, String);

fn everybody(once: bool, figure: fn(Built) -> f64) -> Contest {
    let programs = [
        (OURS, UNSYNC, WITH_UNSYNC.into()),
        ("tokio rt,time", TOKIO, WITH_TOKIO.into()),
        ("std only", "", STD_ONLY.into()),
        (
            "(unsync, with a worker process)",
            UNSYNC,
            WITH_UNSYNC_CPU.into(),
        ),
    ];
    contest(once, programs, figure)
}

fn contest<const N: usize>(
    once: bool,
    programs: [Program; N],
    figure: fn(Built) -> f64,
) -> Contest {
    let contest = Contest::new(1, if once { 1 } else { 5 });
    programs.into_iter().fold(contest, |contest, program| {
        let (name, dependency, main) = program;
        let package = RefCell::new(None);
        contest.with_figure(name, move |_| {
            let mut package = package.borrow_mut();
            let package = package.get_or_insert_with(|| Package::write(dependency, &main));
            package.build().map(figure)
        })
    })
}

/// How much more a program with twenty more types of tasks costs than one with a single type, for each type.
fn types(once: bool, figure: fn(Built) -> f64) -> Contest {
    const MORE: usize = 20;
    let contest = Contest::new(1, if once { 1 } else { 5 });
    let contestants = [(OURS, UNSYNC), ("tokio rt,time", TOKIO)];
    contestants
        .into_iter()
        .fold(contest, |contest, (name, dependency)| {
            let packages = RefCell::new(None);
            contest.with_figure(name, move |_| {
                let mut packages = packages.borrow_mut();
                let packages = packages.get_or_insert_with(|| {
                    [1, 1 + MORE].map(|types| Package::write(dependency, &program_of(name, types)))
                });
                let [one, all] = packages
                    .each_ref()
                    .map(|package| package.build().map(figure));
                Some((all? - one?) / MORE as f64)
            })
        })
}

/// A program that spawns futures of this many types, each with its own output type.
fn program_of(name: &str, types: usize) -> String {
    let tasks = (1..=types).map(|length| {
        let future = format!("async move {{ [n; {length}].map(|n| n + {length}) }}");
        match name {
            OURS => format!("println!(\"{{:?}}\", unsync::spawn({future}).result());\n"),
            _ => format!("println!(\"{{:?}}\", runtime.block_on(runtime.spawn({future})));\n"),
        }
    });
    let runtime = match name {
        OURS => "",
        _ => {
            "let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();"
        }
    };
    let tasks: String = tasks.collect();
    format!("fn main() {{\nlet n = std::env::args().count();\n{runtime}\n{tasks}}}\n")
}

/// A small program in a directory of its own, which is removed with it.
struct Package(PathBuf);

impl Package {
    fn write(dependency: &str, main: &str) -> Package {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("unsync-weight-{}-{number}", process::id());
        let directory = env::temp_dir().join(name);
        let manifest = format!(
            "[package]\nname = \"hello\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n\
             [profile.release]\nstrip = true\n[dependencies]\n{dependency}\n"
        );
        fs::create_dir_all(directory.join("src")).expect("the temporary directory can be written");
        fs::write(directory.join("Cargo.toml"), manifest).expect("it can be written");
        fs::write(directory.join("src/main.rs"), main).expect("it can be written");
        let package = Package(directory);
        // The download is not part of the figure.
        package.cargo("fetch", &[]);
        package
    }

    fn cargo(&self, command: &str, arguments: &[&str]) -> bool {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .arg(command)
            .args(arguments)
            .current_dir(&self.0)
            .env_remove("CARGO_TARGET_DIR")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    }

    fn build(&self) -> Option<Built> {
        let _ = fs::remove_dir_all(self.0.join("target"));
        let before = children_cpu_ns()?;
        self.cargo("build", &["--release", "--offline"])
            .then_some(())?;
        let cpu_ns = children_cpu_ns()? - before;
        let program = self.0.join(Path::new("target/release/hello"));
        let bytes = fs::metadata(program).ok()?.len() as f64;
        Some(Built { cpu_ns, bytes })
    }
}

impl Drop for Package {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The CPU time of this process's children that have ended, including their own descendants.
fn children_cpu_ns() -> Option<f64> {
    /// Linux counts it in hundredths of a second.
    const TICK_NS: f64 = 1e7;
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let of_children = fields.split(' ').skip(13).take(2);
    let ticks = of_children.map(|field| field.parse::<f64>().ok());
    Some(ticks.sum::<Option<f64>>()? * TICK_NS)
}
