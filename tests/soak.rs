//! Everything at once, at random, for some seconds, or for as long as it is asked to take:
//!
//! `UNSYNC_TEST_SECONDS=3600 cargo test --release --test soak unix -- --nocapture`
//!
//! `UNSYNC_TEST_SEED` makes other choices. Busy and idle spells take turns. In a busy spell pieces of work are started
//! while workers are killed and stopped: each piece is a source that runs on one of the engines, some steps made on
//! it, and a way to end it. After the spell
//!
//! - each piece has ended once, and as it may end;
//! - every value was dropped, and no call ran twice;
//! - the process has the descriptors, threads, children and temporary files that it had before, and no more memory;
//! - it uses no processor time.
//!
//! Linux only: the faults are signals and the proofs are in `/proc`.
#![cfg(target_os = "linux")]
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::future::pending;
use std::os::unix::process::CommandExt;
use std::panic::{self, resume_unwind};
use std::process::{self, Command};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use unsync::{Config, Error, ErrorKind, Limit, Pinned, Unfuture, Wire, cpu, promise, spawn};

#[allow(dead_code, unused_macros)] // what this test does not use
#[macro_use]
mod scenario;
mod support;
use scenario::{
    Holdings, Link, Random, SOON, asked_time, children, file, link, note, notes, signal, threads,
    until, workers,
};

unsync::test_worker!();

scenarios! {
    programs: []
    soak;
}

const TIME: Duration = Duration::from_secs(6);
/// How many pieces may be open at once, more or less.
const OPEN: u64 = 200;
/// By how many mebibytes the memory may vary.
const SLACK: u64 = 64;
/// The only thread of the library that does not retire.
const STAYS: &str = "unsync-ambient";
/// The minimum length of an idle spell, and the processor time that it may use.
const SPELL: Duration = Duration::from_millis(300);
const NEXT_TO_NOTHING: Duration = Duration::from_millis(5);

fn soak() {
    silence_deliberate_panics();
    let config = Config::new().threads(8).processes(4).calls_per_worker(50);
    let config = config.keep_alive(Duration::from_millis(30));
    let config = config.cancel_grace(Duration::from_millis(10));
    config.install().unwrap();
    let before = once_warm();
    let (mut soak, started) = (Soak::new(), Instant::now());
    let mut memory = Vec::new();
    while memory.is_empty() || started.elapsed() < asked_time().unwrap_or(TIME) {
        soak.be_busy();
        soak.assert_settled();
        clean_up_after_killed_relays();
        before.assert_unchanged();
        assert_idle();
        memory.push((started.elapsed(), scenario::resident(process::id()) >> 20));
        println!("{:?} MiB, {:?}", memory[memory.len() - 1], soak.outcomes);
    }
    let quarter = started.elapsed() / 4;
    let (first, last) = (memory[0], memory[memory.len() - 1]);
    let early = memory.iter().take_while(|(at, _)| *at < quarter);
    let most = early.fold(first.1, |most, (_, mebibytes)| most.max(*mebibytes));
    assert!(last.1 <= most + SLACK, "the memory grows: {memory:?}");
}

/// A relay that is killed while it starts its worker leaves the directory of their link behind.
fn clean_up_after_killed_relays() {
    if link() == Link::Relay {
        for name in scenario::entries(&env::temp_dir()) {
            let _ = fs::remove_dir_all(env::temp_dir().join(name));
        }
    }
}

/// What the process holds once everything was used, and whatever may retire has retired.
fn once_warm() -> Holdings {
    let pinned = Pinned::new(|| ());
    let call = pinned.call(|()| Load::of(0)).map_thread(pass).map_cpu(pass);
    call.result().unwrap();
    drop(pinned);
    let retires = |name: &str| name.starts_with("unsync-") && name.trim() != STAYS;
    until("pool threads and workers have retired", || {
        children().is_empty() && !threads().iter().any(|name| retires(name))
    });
    Holdings::now()
}

/// Checks that nothing wakes and nothing spins. Work left over from a busy spell may take a moment on a busy
/// machine.
fn assert_idle() {
    let time = || support::used(&[process::id()]).values().sum::<Duration>();
    until("the program is idle", || {
        let (waits, used) = (support::waits(), time());
        thread::sleep(SPELL);
        support::waits() == waits && time().saturating_sub(used) < NEXT_TO_NOTHING
    });
}

/// Silences those of this process: an hour of them is too much to read. Workers still print theirs.
fn silence_deliberate_panics() {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<String>();
        if !text.is_some_and(|text| text.starts_with(DELIBERATE)) {
            hook(panic);
        }
    }));
}

const DELIBERATE: &str = "deliberate panic of piece ";

fn deliberate_panic(id: u32) -> ! {
    panic!("{DELIBERATE}{id}.")
}

// ------------------------------------------------------------------------------------------- values

/// How many loads there are in this process.
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// The value of a piece, sometimes large.
#[derive(Debug, PartialEq)]
struct Load {
    id: u32,
    bytes: Vec<u8>,
}

impl Load {
    fn of(id: u32) -> Load {
        let most = if id % 100 == 0 { 1 << 20 } else { 200 };
        let length = id.wrapping_mul(0x9e37_79b9) % most;
        Load::new(id, vec![id as u8; length as usize])
    }

    fn new(id: u32, bytes: Vec<u8>) -> Load {
        LIVE.fetch_add(1, Ordering::Relaxed);
        Load { id, bytes }
    }
}

impl Clone for Load {
    fn clone(&self) -> Load {
        Load::new(self.id, self.bytes.clone())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Wire for Load {
    fn encode(&self, out: &mut Vec<u8>) {
        self.id.encode(out);
        self.bytes.encode(out);
    }
    fn decode(input: &mut &[u8]) -> Result<Load, Error> {
        Ok(Load::new(u32::decode(input)?, Vec::decode(input)?))
    }
}

// ------------------------------------------------------------------------------------------ sources

/// What a source does in this process.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Deed {
    Return,
    TakeAWhile,
    Panic,
    /// Ends only when it is stopped.
    Stay,
}

const DEEDS: [Deed; 6] = [
    Deed::Return,
    Deed::Return,
    Deed::TakeAWhile,
    Deed::TakeAWhile,
    Deed::Panic,
    Deed::Stay,
];

async fn task(id: u32, deed: Deed) -> Load {
    let load = Load::of(id);
    match deed {
        Deed::Return => {}
        Deed::TakeAWhile => {
            let mut ticks = unsync::interval(Duration::from_millis(1));
            for _ in 0..id % 4 {
                unsync::yield_now().await;
                ticks.tick().await;
            }
            unsync::sleep(Duration::from_micros(u64::from(id % 3000))).await;
        }
        Deed::Panic => deliberate_panic(id),
        Deed::Stay => pending().await,
    }
    load
}

async fn local(id: u32, deed: Deed) -> Load {
    let counted = Rc::new(id);
    task(*counted, deed).await
}

fn job(id: u32, deed: Deed) -> Load {
    let load = Load::of(id);
    match deed {
        Deed::Return => {}
        Deed::TakeAWhile => thread::sleep(Duration::from_micros(u64::from(id % 3000))),
        Deed::Panic => deliberate_panic(id),
        Deed::Stay => stay(unsync::is_cancelled),
    }
    load
}

fn stay(is_over: impl Fn() -> bool) {
    while !is_over() {
        thread::sleep(Duration::from_millis(1));
    }
}

fn promised(id: u32, deed: Deed) -> Unfuture<Load> {
    let (promise, unfuture) = promise();
    drop(unsync::thread(move || {
        if deed == Deed::Stay {
            stay(|| promise.is_cancelled());
        } else {
            // A panic drops the promise.
            promise.set(job(id, deed));
        }
    }));
    unfuture
}

/// What a call does in a worker once it has left the proof that it runs.
const CALLS: [&str; 13] = [
    "return",
    "return",
    "return",
    "return",
    "report progress",
    "panic",
    "unwind",
    "abort",
    "exit",
    "kill",
    "leave the link",
    "stay",
    "stay and spin",
];

fn call(proof: String, number: u32, deed: String, load: Load) -> Load {
    note(proof, number);
    match &deed[..] {
        "report progress" => {
            for step in 0..20u32 {
                unsync::progress(step);
                thread::sleep(Duration::from_millis(1));
            }
        }
        "panic" => deliberate_panic(load.id),
        "unwind" => resume_unwind(Box::new(format!("{DELIBERATE}{}.", load.id))),
        "abort" => process::abort(),
        "exit" => process::exit(number as i32 % 200),
        "kill" => {
            signal("KILL", process::id());
            thread::park();
        }
        "leave the link" => {
            // A killed relay cannot kill the process that its worker has become: that has to end by itself.
            let seconds = if link() == Link::Relay { "2" } else { "600" };
            panic!("{}", Command::new("sleep").arg(seconds).exec());
        }
        "stay" => stay(unsync::is_cancelled),
        "stay and spin" => loop {
            std::hint::spin_loop();
        },
        _ => {}
    }
    load
}

fn pass(load: Load) -> Load {
    load
}

unsync::register!(call, pass);

// ------------------------------------------------------------------------------------------- pieces

/// A piece of work, and what may become of it.
struct Piece {
    id: u32,
    /// What it is made of.
    made_of: String,
    work: Unfuture<Load>,
    /// Whether it ends unless it is stopped.
    ends: bool,
    may_return: bool,
    /// The errors that it may end with.
    errors: Vec<ErrorKind>,
    /// What `cancel` said.
    cancelled: Option<bool>,
}

impl Piece {
    /// Checks that its outcome is a possible one; returns the outcome in a word.
    fn settle(self) -> String {
        let (id, what) = (self.id, self.made_of);
        assert!(self.work.wait_timeout(SOON), "{id}, {what}: it hangs");
        let kind = match self.work.result() {
            Ok(load) => {
                assert!(self.may_return, "{id}, {what}: it returned");
                assert!(load == Load::of(id), "{id}, {what}: a wrong value");
                None
            }
            Err(error) => {
                let (kind, text) = (error.kind(), error.to_string());
                let expected = self.errors.contains(&kind);
                let words = match kind {
                    ErrorKind::Panicked => format!("{DELIBERATE}{id}."),
                    _ => String::new(),
                };
                assert!(expected && text.contains(&words), "{id}, {what}: {text}");
                Some(kind)
            }
        };
        if let Some(cancelled) = self.cancelled {
            let agrees = cancelled == (kind == Some(ErrorKind::Cancelled));
            assert!(
                agrees,
                "{id}, {what}: `cancel` said {cancelled}, but: {kind:?}"
            );
        }
        kind.map_or("value".to_owned(), |kind| format!("{kind:?}"))
    }
}

struct Soak {
    random: Random,
    /// Where each call leaves its number.
    proof: String,
    calls: u32,
    pieces: u32,
    open: Vec<Piece>,
    /// One limit for each step, so that no piece waits for itself.
    limits: [Limit; 3],
    frozen: Vec<u32>,
    outcomes: BTreeMap<String, u32>,
}

impl Soak {
    fn new() -> Soak {
        Soak {
            random: Random::seeded(),
            proof: file("proof"),
            calls: 0,
            pieces: 0,
            open: Vec::new(),
            limits: [1, 2, 20].map(Limit::new),
            frozen: Vec::new(),
            outcomes: BTreeMap::new(),
        }
    }

    fn be_busy(&mut self) {
        let pinned = Pinned::new(|| Rc::new(()));
        let end = Instant::now() + Duration::from_millis(self.random.below(2000));
        while Instant::now() < end {
            let mut piece = self.source(&pinned);
            for limit in 1..self.limits.len() {
                if self.random.below(2) == 0 {
                    piece = self.step(piece, limit);
                }
            }
            self.end(piece);
            match self.random.below(50) {
                0 => self.disturb(),
                1 => thread::sleep(Duration::from_millis(self.random.below(10))),
                _ => {}
            }
            // In bursts, so that the queues are long at times and empty at others.
            if self.open.len() as u64 > self.random.below(OPEN) + OPEN / 2 {
                let left = self.random.below(OPEN) as usize;
                self.settle_until(left);
            }
        }
    }

    fn settle_until(&mut self, left: usize) {
        self.thaw();
        while self.open.len() > left {
            let next = self.random.below(self.open.len() as u64) as usize;
            let outcome = self.open.swap_remove(next).settle();
            *self.outcomes.entry(outcome).or_insert(0) += 1;
        }
    }

    fn assert_settled(&mut self) {
        self.settle_until(0);
        assert!(unsync::drain(SOON), "left: {:#?}", unsync::tasks());
        until("all values are dropped", || {
            LIVE.load(Ordering::Relaxed) == 0
        });
        let mut proofs = notes(&self.proof);
        let ran = proofs.len();
        proofs.sort();
        proofs.dedup();
        assert_eq!(proofs.len(), ran, "a call was run again");
        let _ = fs::remove_file(&self.proof);
    }

    fn source(&mut self, pinned: &Pinned<Rc<()>>) -> Piece {
        self.pieces += 1;
        let (id, deed) = (self.pieces, self.random.pick(&DEEDS));
        let limit = &self.limits[0];
        let (source, work) = match self.random.below(12) {
            0 => ("spawn", spawn(task(id, deed))),
            1 => ("spawn_now", unsync::spawn_now(task(id, deed))),
            2 => ("spawn_local", unsync::spawn_local(move || local(id, deed))),
            3 => ("limit.spawn", limit.spawn(task(id, deed))),
            4 => ("thread", unsync::thread(move || job(id, deed))),
            5 => ("limit.thread", limit.thread(move || job(id, deed))),
            6 => ("pinned", pinned.call(move |_| job(id, deed))),
            7 => ("promise", promised(id, deed)),
            other => return self.call(id, other == 8),
        };
        // A job that is stopped while it runs still returns.
        let is_job = ["thread", "limit.thread", "pinned"].contains(&source);
        Piece {
            id,
            made_of: format!("{source}, {deed:?}"),
            work,
            ends: deed != Deed::Stay,
            may_return: match deed {
                Deed::Return | Deed::TakeAWhile => true,
                Deed::Panic => false,
                Deed::Stay => is_job,
            },
            errors: match deed {
                Deed::Panic if source == "promise" => vec![ErrorKind::Abandoned],
                Deed::Panic => vec![ErrorKind::Panicked],
                _ => Vec::new(),
            },
            cancelled: None,
        }
    }

    fn call(&mut self, id: u32, is_limited: bool) -> Piece {
        self.calls += 1;
        let deed = self.random.pick(&CALLS);
        let arguments = (
            self.proof.clone(),
            self.calls,
            deed.to_owned(),
            Load::of(id),
        );
        let work = if is_limited {
            self.limits[0].cpu(call, arguments)
        } else {
            cpu(call, arguments)
        };
        let may_return = ["return", "report progress"].contains(&deed);
        // Workers are killed at random.
        let mut errors = vec![ErrorKind::WorkerLost];
        if ["panic", "unwind"].contains(&deed) {
            errors.push(ErrorKind::Panicked);
        }
        Piece {
            id,
            made_of: format!("cpu, {deed}"),
            work,
            ends: !deed.starts_with("stay"),
            may_return,
            errors,
            cancelled: None,
        }
    }

    /// Makes new work of the work of a piece.
    fn step(&mut self, piece: Piece, limit: usize) -> Piece {
        let Piece {
            id,
            mut made_of,
            mut work,
            mut ends,
            mut may_return,
            mut errors,
            cancelled,
        } = piece;
        // Stopping a step does not stop what it was made on.
        if !ends {
            work = work.cancel_on_drop();
        }
        let soon = self.soon();
        let limit = &self.limits[limit];
        let other = || spawn(task(id, Deed::TakeAWhile));
        // The last four hand the work to something that waits for its end.
        let (step, work) = match self.random.below(if ends { 19 } else { 15 }) {
            0 => ("map", work.map(|load| load)),
            1 => {
                may_return = false;
                errors.push(ErrorKind::Panicked);
                ("map panics", work.map(move |_| deliberate_panic(id)))
            }
            2 => ("and_then", work.and_then(|load| async { load })),
            3 => {
                let done = work.then(|done| async { done.result() });
                ("then", done.flatten())
            }
            4 => ("map_thread", work.map_thread(|load| load)),
            5 => {
                errors.push(ErrorKind::WorkerLost);
                ("map_cpu", work.map_cpu(pass))
            }
            6 => ("flatten", unsync::thread(|| work).flatten()),
            7 => ("limit", limit.spawn(work).flatten()),
            8 => ("shared", shared(work)),
            9 => {
                let both = unsync::join_all([work, other()]);
                ("join_all", both.map(|mut both| both.swap_remove(0)))
            }
            10 => {
                let both = unsync::settle_all([work, other()]);
                let first = both.map(|mut both| both.swap_remove(0));
                ("settle_all", first.flatten())
            }
            11 => {
                (ends, may_return) = (true, true);
                ("race", unsync::race([work, other()]))
            }
            12 => ("as_completed", spawn(first_of([work, other()])).flatten()),
            13 => {
                ends = true;
                errors.push(ErrorKind::TimedOut);
                ("timeout", work.timeout(soon))
            }
            14 => {
                ends = true;
                errors.push(ErrorKind::TimedOut);
                let timed = spawn(unsync::timeout(soon, work));
                ("timeout()", timed.flatten().flatten())
            }
            15 => ("on_done", handed_on(work)),
            16 => ("result", unsync::thread(|| work.result()).flatten()),
            17 => {
                let waits = unsync::thread(|| unsync::block_on(work));
                ("block_on", waits.flatten())
            }
            _ => ("a std thread", through_a_thread(work)),
        };
        made_of = made_of + ", " + step;
        Piece {
            id,
            made_of,
            work,
            ends,
            may_return,
            errors,
            cancelled,
        }
    }

    /// Stops a piece, or leaves it alone.
    fn end(&mut self, mut piece: Piece) {
        let soon = self.soon();
        let (end, error) = match self.random.below(if piece.ends { 10 } else { 5 }) {
            0 => {
                piece.work = piece.work.timeout(soon);
                ("timeout", Some(ErrorKind::TimedOut))
            }
            1 => {
                piece.work = piece.work.run_timeout(soon);
                ("run_timeout", Some(ErrorKind::TimedOut))
            }
            2 => {
                piece.cancelled = Some(piece.work.cancel());
                ("cancel", Some(ErrorKind::Cancelled))
            }
            3 => {
                let canceller = piece.work.canceller();
                drop(spawn(async move {
                    unsync::sleep(soon).await;
                    canceller.cancel();
                }));
                ("cancel soon", Some(ErrorKind::Cancelled))
            }
            4 => return drop(piece.work.cancel_on_drop()),
            5 => return drop(piece.work),
            _ => ("awaited", None),
        };
        piece.made_of = piece.made_of + ", " + end;
        piece.errors.extend(error);
        self.open.push(piece);
    }

    fn soon(&mut self) -> Duration {
        Duration::from_millis(self.random.below(30))
    }

    /// Disturbs a random worker, or its relay.
    fn disturb(&mut self) {
        let processes = Vec::from_iter(workers().into_iter().chain(children()));
        if processes.is_empty() {
            return;
        }
        let process = self.random.pick(&processes);
        match self.random.below(4) {
            0 | 1 => signal("KILL", process),
            2 => {
                signal("STOP", process);
                self.frozen.push(process);
            }
            _ => self.thaw(),
        }
    }

    fn thaw(&mut self) {
        for process in self.frozen.drain(..) {
            signal("CONT", process);
        }
    }
}

// -------------------------------------------------------------------------------------------- steps

/// Two wait for the work, and get the same.
fn shared(work: Unfuture<Load>) -> Unfuture<Load> {
    let shared = work.shared();
    let both = async move {
        let first = shared.clone().await;
        let second = shared.await;
        let of = |outcome: &Result<Load, Error>| match outcome {
            Ok(load) => Ok(load.id),
            Err(error) => Err(error.kind()),
        };
        assert_eq!(of(&first), of(&second));
        second
    };
    spawn(both).flatten()
}

async fn first_of(both: [Unfuture<Load>; 2]) -> Result<Load, Error> {
    let mut both = unsync::as_completed(both);
    let (mut first, mut indices) = (None, [0, 0]);
    while let Some((index, outcome)) = both.next_done().await {
        indices[index] += 1;
        if index == 0 {
            first = Some(outcome);
        }
    }
    assert_eq!(indices, [1, 1]);
    first.unwrap()
}

fn handed_on(work: Unfuture<Load>) -> Unfuture<Load> {
    let (promise, unfuture) = promise();
    work.on_done(move |outcome| match outcome {
        Ok(load) => drop(promise.set(load)),
        Err(error) => promise.fail(error),
    });
    unfuture
}

fn through_a_thread(work: Unfuture<Load>) -> Unfuture<Load> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        // Nobody may wait any more.
        let _ = sender.send(work.result());
    });
    Unfuture::from(receiver).flatten()
}
