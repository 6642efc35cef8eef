//! Whether spinning before blocking does harm on a busy machine: our rows with and without it, while other
//! processes want every core.
//!
//! The setting applies to the whole process, so each figure comes from a process of its own.

use std::io::Read;
use std::process::{Child, Stdio};
use std::time::Duration;
use std::{hint, io, thread};

use crate::contest::{Figures, Row, Unit};
use crate::{raw, rows};

/// Rows that wait for nothing, or that start processes of their own.
const LEFT_OUT: [&str; 8] = [
    "sleeps-cpu",
    "sleeps-late",
    "cold",
    "memory",
    "memory-sleep",
    "idle",
    "build",
    "type-build",
];
const ROUNDS: usize = 7;
/// No row may be slower with spinning by more than this factor.
pub(crate) const LIMIT: f64 = 1.1;

/// The result of one row: nanoseconds with and without spinning.
pub(crate) struct Busy {
    pub(crate) row: &'static Row,
    pub(crate) spinning: f64,
    pub(crate) parking: f64,
}

impl Busy {
    pub(crate) fn ratio(&self) -> f64 {
        self.spinning / self.parking
    }

    pub(crate) fn is_met(&self) -> bool {
        self.ratio() <= LIMIT
    }
}

/// Runs all rows beside one busy process for each core; passes each result to `tell` as it comes.
pub(crate) fn run(wanted: impl Fn(&str) -> bool, mut tell: impl FnMut(&Busy)) -> Vec<Busy> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let hogs: Vec<Hog> = (0..cores).map(|_| Hog::start()).collect();
    let chosen = rows().filter(|row| row.unit == Unit::Nanoseconds);
    let chosen = chosen.filter(|row| !LEFT_OUT.contains(&row.key) && wanted(row.key));
    let results = chosen.map(|row| {
        let (mut spinning, mut parking) = (Figures::default(), Figures::default());
        for round in 0..ROUNDS {
            let mut ways = [(&mut spinning, "spinning"), (&mut parking, "parking")];
            // Take turns at going first, so that its effects do not always hit the same one.
            ways.rotate_left(round % 2);
            for (figures, way) in ways {
                crate::report::collect(&["--alone", row.key, way], figures);
            }
        }
        let busy = Busy {
            row,
            spinning: spinning.ours().unwrap_or(f64::NAN),
            parking: parking.ours().unwrap_or(f64::NAN),
        };
        tell(&busy);
        busy
    });
    let results = results.collect();
    drop(hogs);
    results
}

/// Runs in a process of its own: our contestant alone, with or without spinning.
pub(crate) fn run_alone(key: &str, spinning: bool) {
    if !spinning {
        let config = unsync::Config::new().spin(Duration::ZERO);
        config.install().expect("nothing ran before");
    }
    let row = rows().find(|row| row.key == key);
    let contest = (row.expect("there is such a row").seat)(false).alone();
    contest.run(|name, figure, cpu| println!("{name}\t{figure}\t{cpu}"));
}

/// A process that wants a core for itself.
struct Hog(Child);

impl Hog {
    fn start() -> Hog {
        let hog = raw::own_program()
            .arg("--hog")
            .stdin(Stdio::piped())
            .spawn();
        Hog(hog.expect("this program starts again"))
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // The process ends at the end of its input.
        let _ = self.0.wait();
    }
}

/// Runs in that process: spins until the parent is gone.
pub(crate) fn hog() {
    let turning = thread::spawn(|| {
        loop {
            hint::spin_loop();
        }
    });
    let _ = io::stdin().read(&mut [0]);
    drop(turning);
}
