//! A row of the table: one workload, run by our library and its peers in turns.
//!
//! Every row runs in a process of its own, so no row is affected by the threads or the state of another.
//! Within it the contestants take turns, round after round, and each round begins with the next
//! contestant: what disturbs the machine disturbs them all alike.

use std::process;
use std::time::{Duration, Instant};

use crate::support::{Samples, children_of, cpu_time_of};

/// A workload, and the targets set for it.
pub(crate) struct Row {
    /// The name that selects it.
    pub(crate) key: &'static str,
    pub(crate) workload: &'static str,
    pub(crate) unit: Unit,
    pub(crate) targets: &'static [Target],
    /// Sets up the contestants. Ours is the first.
    pub(crate) seat: fn(quick: bool) -> Contest,
}

/// The unit of a figure. Smaller is always better.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Unit {
    Nanoseconds,
    Bytes,
}

pub(crate) struct Target {
    /// What ours is compared with, as the table says it.
    pub(crate) against: &'static str,
    /// Prefixes of the names of these contestants. The best of them counts.
    pub(crate) peers: &'static [&'static str],
    pub(crate) limit: Limit,
}

#[derive(Clone, Copy)]
pub(crate) enum Limit {
    /// Ours over the best peer.
    AtMost(f64),
    /// The best peer over ours, for a rate.
    AtLeast(f64),
    /// Ours alone.
    Below(f64),
    /// Ours minus the peer.
    Over(f64),
}

pub(crate) struct Contest {
    operations: usize,
    rounds: usize,
    contestants: Vec<Contestant>,
}

pub(crate) struct Contestant {
    pub(crate) name: String,
    /// What its operations in a round are divided by: a slow contestant does fewer.
    share: usize,
    turn: Turn,
}

/// Does this many operations and returns the figure of one, or `None` if it cannot.
type Turn = Box<dyn FnMut(usize) -> Option<f64>>;

/// A row ends after this time, once it has had [`ROUNDS_MIN`] rounds.
const ENOUGH: Duration = Duration::from_secs(60);
const ROUNDS_MIN: usize = 3;

impl Contest {
    pub(crate) fn new(operations: usize, rounds: usize) -> Contest {
        Contest {
            operations,
            rounds,
            contestants: Vec::new(),
        }
    }

    /// Adds a contestant whose turn is timed as a whole.
    pub(crate) fn with(self, name: &str, mut work: impl FnMut(usize) + 'static) -> Contest {
        self.with_figure(name, move |operations| {
            let started = Instant::now();
            work(operations);
            Some(started.elapsed().as_nanos() as f64 / operations as f64)
        })
    }

    /// Adds a contestant that returns its figure itself.
    pub(crate) fn with_figure(
        mut self,
        name: &str,
        turn: impl FnMut(usize) -> Option<f64> + 'static,
    ) -> Contest {
        self.contestants.push(Contestant {
            name: name.to_owned(),
            share: 1,
            turn: Box::new(turn),
        });
        self
    }

    /// The last contestant does only one in `share` of the operations.
    pub(crate) fn sharing(mut self, share: usize) -> Contest {
        if let Some(last) = self.contestants.last_mut() {
            last.share = share;
        }
        self
    }

    /// Takes the turns; passes every figure to `tell` as it comes, with the CPU time of an operation.
    pub(crate) fn run(mut self, mut tell: impl FnMut(&str, f64, f64)) {
        let started = Instant::now();
        let parts = |contestant: &Contestant, whole: usize| (whole / contestant.share).max(1);
        let warm_up = self.operations / 10;
        self.contestants.retain_mut(|contestant| {
            let operations = parts(contestant, warm_up);
            (contestant.turn)(operations).is_some()
        });
        let seats = self.contestants.len();
        for round in 0..self.rounds {
            for turn in 0..seats {
                let contestant = &mut self.contestants[(round + turn) % seats];
                let operations = parts(contestant, self.operations);
                let before = cpu_time_of_all();
                if let Some(figure) = (contestant.turn)(operations) {
                    let spent = cpu_time_of_all().saturating_sub(before);
                    let cpu = spent.as_nanos() as f64 / operations as f64;
                    tell(&contestant.name, figure, cpu);
                }
            }
            if round + 1 >= ROUNDS_MIN && started.elapsed() > ENOUGH {
                break;
            }
        }
    }

    /// Only ours, and a tenth of the operations.
    pub(crate) fn alone(mut self) -> Contest {
        self.contestants.truncate(1);
        self.operations = (self.operations / 10).max(1);
        self.rounds = ROUNDS_MIN;
        self
    }
}

/// The CPU time of this process and its living children: what a figure costs besides time. A contestant
/// that spins pays here.
fn cpu_time_of_all() -> Duration {
    let own = process::id();
    let all = children_of(own).into_iter().chain([own]);
    let spent = all.filter_map(|process| cpu_time_of(&process.to_string()));
    spent.sum()
}

/// The figures of a row, by contestant, in their order.
#[derive(Default)]
pub(crate) struct Figures(pub(crate) Vec<Figure>);

pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) samples: Samples,
    /// CPU time of an operation, in nanoseconds.
    pub(crate) cpu: Samples,
}

impl Figures {
    pub(crate) fn add(&mut self, name: &str, figure: f64, cpu: f64) {
        match self.0.iter_mut().find(|known| known.name == name) {
            Some(known) => {
                known.samples.push(figure);
                known.cpu.push(cpu);
            }
            None => self.0.push(Figure {
                name: name.to_owned(),
                samples: [figure].into_iter().collect(),
                cpu: [cpu].into_iter().collect(),
            }),
        }
    }

    pub(crate) fn ours(&self) -> Option<f64> {
        let ours = self.0.iter().find(|figure| figure.name == OURS);
        ours.map(|figure| figure.samples.median())
    }
}

/// The name of our contestant.
pub(crate) const OURS: &str = "unsync";

/// Whether a target is met.
pub(crate) struct Verdict<'a> {
    /// The best of the peers, and its median.
    pub(crate) best: Option<(&'a str, f64)>,
    /// The ratio, or the figure that the target is about.
    pub(crate) reached: f64,
    pub(crate) met: bool,
}

impl Target {
    pub(crate) fn verdict<'a>(&self, figures: &'a Figures) -> Option<Verdict<'a>> {
        let ours = figures.ours()?;
        let peers = figures.0.iter().filter(|figure| {
            let mut families = self.peers.iter();
            families.any(|family| figure.name.starts_with(family))
        });
        let best = peers
            .map(|figure| (figure.name.as_str(), figure.samples.median()))
            .min_by(|one, other| one.1.total_cmp(&other.1));
        let (reached, met) = match (self.limit, best) {
            (Limit::AtMost(limit), Some((_, peer))) => (ours / peer, ours / peer <= limit),
            (Limit::AtLeast(limit), Some((_, peer))) => (peer / ours, peer / ours >= limit),
            (Limit::Over(limit), Some((_, peer))) => (ours - peer, ours - peer <= limit),
            (Limit::Below(limit), _) => (ours, ours < limit),
            (_, None) => return None,
        };
        Some(Verdict { best, reached, met })
    }
}
