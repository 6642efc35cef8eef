//! At most once: workers, relays, launchers and the program itself are killed at random while calls that
//! leave a mark run.
//!
//! `UNSYNC_TEST_ROUNDS=1000 cargo test --release --test hosts storm` takes some minutes.

use std::collections::BTreeMap;

use crate::scenario::{Random, file, is_dead, program, signal, until, wait_within};
use crate::*;

plays! {
    programs: [leave_marks]
    kills_below_the_program;
    kills_of_the_program;
}

fn rounds(few: u64) -> u64 {
    let rounds = env::var("UNSYNC_TEST_ROUNDS").ok();
    rounds.map_or(few, |rounds| rounds.parse().unwrap())
}

/// The processes below this one, the nearest first.
fn below(process: u32) -> Vec<u32> {
    let names = fs::read_dir("/proc").unwrap().flatten();
    let numbers = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for process in numbers {
        if let Some(parent) = scenario::parent_of(process) {
            children.entry(parent).or_default().push(process);
        }
    }
    let (mut found, mut next) = (vec![process], 0);
    while let Some(process) = found.get(next) {
        found.extend(children.get(process).into_iter().flatten().copied());
        next += 1;
    }
    found.split_off(1)
}

fn two_hosts() -> Config {
    let config = Config::new().processes(0).host("one", 2, shell(PLAIN));
    config.host("other", 2, shell("\"$@\"; exit $?"))
}

/// Checks that each number is in the file at most once; returns the marks.
fn marks(file: &str) -> BTreeMap<u32, u32> {
    let mut marks = BTreeMap::new();
    for line in fs::read_to_string(file).unwrap_or_default().lines() {
        let (number, worker) = line.split_once(' ').unwrap();
        let (number, worker) = (number.parse().unwrap(), worker.parse().unwrap());
        let before: Option<u32> = marks.insert(number, worker);
        assert_eq!(
            before, None,
            "call {number} ran twice, the second time in {worker}"
        );
    }
    marks
}

fn kills_below_the_program() {
    const CALLS: u32 = 100;
    install(two_hosts());
    let (path, mut random, mut number) = (file("marks"), Random::seeded(), 0);
    let (mut lost, mut unmarked) = (Vec::new(), 0);
    let mut done = Vec::new();
    for _ in 0..rounds(30) {
        let calls: Vec<_> = (0..CALLS)
            .map(|_| {
                number += 1;
                (number, cpu(mark, (path.clone(), number, random.below(3))))
            })
            .collect();
        thread::sleep(Duration::from_millis(random.below(40)));
        let victims = below(process::id());
        if !victims.is_empty() {
            signal("KILL", random.pick(&victims));
        }
        for (number, call) in calls {
            match call.result() {
                Ok(marked) => done.push(marked),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WorkerLost, "{error}");
                    let text = error.to_string();
                    assert!(text.contains("lost its worker process"), "{text}");
                    lost.push(number);
                }
            }
        }
    }
    let marks = marks(&path);
    for number in &done {
        assert!(
            marks.contains_key(number),
            "call {number} was done and never ran"
        );
    }
    unmarked += lost
        .iter()
        .filter(|number| !marks.contains_key(number))
        .count();
    println!(
        "{} calls, {} lost, {unmarked} of those had not begun",
        number,
        lost.len()
    );
    assert_eq!(done.len() + lost.len(), number as usize);
}

/// The program that is killed.
fn leave_marks() {
    install(two_hosts());
    let first: u32 = env::var("FIRST").unwrap().parse().unwrap();
    let marks = env::var("MARKS").unwrap();
    let calls: Vec<_> = (first..first + 10_000)
        .map(|number| cpu(mark, (marks.clone(), number, u64::from(number % 3))))
        .collect();
    calls.into_iter().for_each(|call| drop(call.result()));
}

fn kills_of_the_program() {
    let (path, mut random) = (file("marks"), Random::seeded());
    for round in 0..rounds(10).min(200) {
        let mut parent = program("leave_marks");
        parent
            .env("FIRST", (round * 10_000).to_string())
            .env("MARKS", &path);
        let mut parent = parent.spawn().unwrap();
        let before = marks(&path).len();
        until("calls run", || marks(&path).len() > before + 4);
        thread::sleep(Duration::from_millis(random.below(30)));
        let others = below(parent.id());
        signal("KILL", parent.id());
        wait_within(&mut parent, scenario::SOON).unwrap();
        let killed = Instant::now();
        until("all have ended", || {
            others.iter().all(|process| is_dead(*process))
        });
        println!(
            "{} processes have ended after {:?}",
            others.len(),
            killed.elapsed()
        );
    }
    println!("{} calls ran once", marks(&path).len());
}
