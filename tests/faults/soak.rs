//! Everything at once, at random, for some seconds, or until so many faults have happened:
//!
//! `UNSYNC_TEST_FAULTS=5000 cargo test --release --test faults n66`

use std::collections::BTreeMap;
use std::env;
use std::io;
use std::process::{self, Command};
use std::thread;
use std::time::{Duration, Instant};

use unsync::{Error, ErrorKind, Unfuture, cpu};

use crate::scenario::{Link, SOON, children, file, link, signal};
use crate::*;

scenarios! {
    programs: []
    n66_soak;
}

const TIME: Duration = Duration::from_secs(6);
/// A slow machine takes longer, until there were so many.
const FAULTS: u32 = 50;
/// Calls that may be unsettled at once.
const OPEN: usize = 100;

/// A generator of numbers that are random enough: Steele's and Vigna's SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// What a call does once it has left the proof that it runs.
const DEEDS: [&str; 12] = [
    "return",
    "return",
    "return",
    "return",
    "abort",
    "exit",
    "panic",
    "kill",
    "leave the link",
    "wait for the end",
    "take a while",
    "carry much",
];

fn act(proof: String, id: u32, deed: usize, load: Vec<u8>) -> (u32, Vec<u8>) {
    note(proof, id);
    match DEEDS[deed] {
        "abort" => process::abort(),
        "exit" => process::exit(id as i32 % 200),
        "panic" => panic!("call {id}"),
        "kill" => {
            signal("KILL", process::id());
            thread::park();
        }
        "leave the link" => {
            use std::os::unix::process::CommandExt;
            // A relay that is killed cannot kill what its worker has become: that has to end by itself.
            let seconds = if link() == Link::Relay { "10" } else { "600" };
            panic!("{}", Command::new("sleep").arg(seconds).exec());
        }
        "wait for the end" => {
            while !unsync::is_cancelled() {
                thread::sleep(Duration::from_millis(1));
            }
        }
        "take a while" => {
            for step in 0..20u32 {
                unsync::progress(step);
                thread::sleep(Duration::from_millis(1));
            }
        }
        _ => {}
    }
    (id, load)
}

struct Open {
    id: u32,
    deed: &'static str,
    load: Vec<u8>,
    stopped: bool,
    call: Unfuture<(u32, Vec<u8>)>,
}

impl Open {
    fn start(id: u32, random: &mut Random, proof: &str) -> Open {
        let deed = random.below(DEEDS.len());
        let much = if DEEDS[deed] == "carry much" {
            1 << 20
        } else {
            100
        };
        let load = vec![id as u8; random.below(much)];
        let call = cpu(act, (proof.to_owned(), id, deed, load.clone()));
        let limit = Duration::from_millis(random.below(30) as u64);
        let endless = DEEDS[deed] == "wait for the end";
        let (call, stopped) = match random.below(10) {
            0 => (call.timeout(limit), true),
            1 => (call.run_timeout(limit), true),
            2 => {
                call.cancel();
                (call, true)
            }
            _ if endless => (call.run_timeout(limit), true),
            _ => (call, false),
        };
        Open {
            id,
            deed: DEEDS[deed],
            load,
            stopped,
            call,
        }
    }

    /// Checks that what became of it can have become of it; says it in a word.
    fn settle(self) -> String {
        assert!(
            self.call.wait_timeout(SOON),
            "call {}, {}: it hangs",
            self.id,
            self.deed
        );
        let expected = |error: &Error| match error.kind() {
            // Workers are killed at random.
            ErrorKind::WorkerLost => true,
            ErrorKind::Panicked => {
                self.deed == "panic" && error.to_string().contains(&format!("call {}", self.id))
            }
            ErrorKind::Cancelled | ErrorKind::TimedOut => self.stopped,
            _ => false,
        };
        let returns = ["return", "take a while", "carry much"].contains(&self.deed);
        match self.call.result() {
            Ok(value) => {
                assert!(returns, "call {}, {}", self.id, self.deed);
                assert!(
                    value == (self.id, self.load),
                    "call {}: a wrong value",
                    self.id
                );
                "value".to_owned()
            }
            Err(error) => {
                assert!(expected(&error), "call {}, {}: {error}", self.id, self.deed);
                format!("{:?}", error.kind())
            }
        }
    }
}

/// Disturbs a worker at random.
fn disturb(random: &mut Random, frozen: &mut Vec<u32>) {
    let workers: Vec<u32> = children().into_iter().collect();
    if workers.is_empty() {
        return;
    }
    let worker = workers[random.below(workers.len())];
    match random.below(4) {
        0 | 1 => signal("KILL", worker),
        2 => {
            signal("STOP", worker);
            frozen.push(worker);
        }
        _ => thaw(frozen),
    }
}

fn thaw(frozen: &mut Vec<u32>) {
    for worker in frozen.drain(..) {
        signal("CONT", worker);
    }
}

fn n66_soak() {
    let seed = env::var("UNSYNC_TEST_SEED").map_or(0x5eed, |seed| seed.parse().unwrap());
    println!("UNSYNC_TEST_SEED={seed}");
    install(
        workers(4)
            .keep_alive(Duration::from_millis(30))
            .cancel_grace(Duration::from_millis(10))
            .calls_per_worker(50),
    );
    let (mut random, proof) = (Random(seed), file("proof"));
    let (mut open, mut outcomes, mut frozen) = (Vec::new(), BTreeMap::new(), Vec::new());
    let mut faults = 0;
    let mut settle = |open: Open, faults: &mut u32| {
        let outcome = open.settle();
        *faults += u32::from(outcome != "value");
        *outcomes.entry(outcome).or_insert(0) += 1;
    };
    let (started, mut calls) = (Instant::now(), 0);
    let asked = env::var("UNSYNC_TEST_FAULTS").map_or(0, |faults| faults.parse().unwrap());
    while faults < asked.max(FAULTS) || (asked == 0 && started.elapsed() < TIME) {
        open.push(Open::start(calls, &mut random, &proof));
        calls += 1;
        if random.below(20) == 0 {
            disturb(&mut random, &mut frozen);
        }
        // In bursts, so that the queue is long now and empty then.
        if open.len() > random.below(OPEN) + OPEN / 2 {
            thaw(&mut frozen);
            while open.len() > random.below(OPEN) {
                settle(open.swap_remove(random.below(open.len())), &mut faults);
            }
        }
    }
    thaw(&mut frozen);
    open.into_iter().for_each(|open| settle(open, &mut faults));
    assert!(unsync::drain(SOON));
    let took = started.elapsed();
    println!("{calls} calls, {faults} faults in {took:?}: {outcomes:?}");
    assert_eq!(outcomes.values().sum::<u32>(), calls);

    let mut proofs = notes(&proof);
    let started = proofs.len();
    proofs.sort();
    proofs.dedup();
    assert_eq!(proofs.len(), started, "a call was run again");
    for _ in 0..10 {
        cpu(pid, ()).result().unwrap();
    }
    io::Write::flush(&mut io::stdout()).unwrap();
}

unsync::register!(act);
