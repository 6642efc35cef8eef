//! Idle is idle: threads and worker processes that have nothing to do use no processor time, whatever
//! they did before and whatever they wait for.
//!
//! Processor time is counted by process, so every test runs in a process of its own. Linux only: elsewhere
//! std has no way to ask for it.
#![cfg(target_os = "linux")]

mod support;

unsync::test_worker!();

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use unsync::{Error, Wire};

use support::{
    CountingWaker, Gate, HEAVY, QUICK, children, eventually, fence, in_child, poll, used, waits,
};

/// The processor time that one second of idling may use.
const NEXT_TO_NOTHING: Duration = Duration::from_millis(10);

fn square(n: u64) -> u64 {
    n * n
}
unsync::register!(square, std::process::id);

/// The threads of these processes that use processor time within a period, and how much. One that ends
/// meanwhile takes its time with it.
fn used_within(period: Duration, processes: &[u32]) -> BTreeMap<u32, Duration> {
    let before = used(processes);
    thread::sleep(period);
    let busy = used(processes).into_iter().map(|(thread, time)| {
        let earlier = before.get(&thread).copied().unwrap_or_default();
        (thread, time.saturating_sub(earlier))
    });
    BTreeMap::from_iter(busy.filter(|(_, time)| !time.is_zero()))
}

/// Observes a second in which nobody asks for anything.
#[track_caller]
fn assert_idle(when: &str) {
    let processes = [children(), vec![std::process::id()]].concat();
    let busy = used_within(Duration::from_secs(1), &processes);
    let sum: Duration = busy.values().sum();
    assert!(
        sum < NEXT_TO_NOTHING,
        "{when}: {sum:?} in a second, by thread: {busy:?}"
    );
}

/// Uses everything that the library has, and much of it.
fn burst() {
    let tasks = (0..10_000u64).map(|n| {
        unsync::spawn(async move {
            unsync::yield_now().await;
            unsync::sleep(Duration::from_micros(n % 1000)).await;
            n
        })
    });
    let tasks = Vec::from_iter(tasks);
    let jobs = Vec::from_iter((0..10_000u64).map(|n| unsync::thread(move || n)));
    let blocking = Vec::from_iter((0..50u64).map(|n| {
        unsync::thread(move || {
            thread::sleep(Duration::from_millis(2));
            n
        })
    }));
    let calls = Vec::from_iter((0..1_000u64).map(|n| unsync::cpu(square, (n,))));
    for works in [tasks, jobs, blocking, calls] {
        let count = works.len();
        assert_eq!(unsync::join_all(works).result().unwrap().len(), count);
    }
}

#[test]
fn after_a_burst() {
    in_child("after_a_burst", HEAVY, &[], || {
        burst();
        assert!(!children().is_empty());
        assert_idle("after a burst");
        burst();
        assert_idle("after the second");
    });
}

#[test]
fn while_work_is_pending() {
    in_child("while_work_is_pending", HEAVY, &[], || {
        let (gate, (promise, pending)) = (Gate::new(), unsync::promise::<u8>());
        // A distant timer, tasks and jobs that wait, and threads that wait for them in every way.
        let sleeper = unsync::spawn(unsync::sleep(Duration::from_secs(3600)));
        let mut elsewhere = unsync::sleep(Duration::from_secs(3600));
        assert!(poll(&mut elsewhere, CountingWaker::new().waker()).is_pending());
        let task = unsync::spawn({
            let gate = gate.clone();
            async move { gate.pass().await }
        });
        let job = unsync::thread({
            let gate = gate.clone();
            move || gate.wait()
        });
        let nested = unsync::thread(move || job.result());
        // A time limit that counts from a distant start, and one from a start that never comes.
        let place = unsync::Limit::new(1);
        let holder = place.spawn(unsync::sleep(Duration::from_secs(3600)));
        let in_line = [(); 2].map(|()| place.spawn(async {}).run_timeout(QUICK));
        assert!(in_line[1].cancel());
        let threads = [
            thread::spawn(move || task.result().is_ok()),
            thread::spawn(move || unsync::block_on(nested).is_ok()),
            thread::spawn(move || pending.wait_timeout(QUICK)),
            thread::spawn({
                let gate = gate.clone();
                move || {
                    unsync::block_on(gate.pass());
                    true
                }
            }),
        ];
        // They all wait by now, or will once they have done the little that is left.
        fence();
        eventually(QUICK, "every thread but this one waits", || {
            let states = fs::read_dir("/proc/self/task").unwrap().flatten();
            let running = states
                .filter(|task| state_of(&task.path()) == Some('R'))
                .count();
            (running == 1, running)
        });
        assert_idle("while work is pending");
        gate.open();
        promise.set(1);
        assert!(sleeper.cancel() && holder.cancel());
        let ended = in_line.map(|work| work.result().is_ok());
        assert_eq!(ended, [true, false]);
        assert_eq!(threads.map(|thread| thread.join().unwrap()), [true; 4]);
    });
}

#[test]
fn while_pool_threads_and_workers_retire() {
    in_child("while_pool_threads_and_workers_retire", HEAVY, &[], || {
        let quick_to_go = unsync::Config::new().keep_alive(Duration::from_millis(200));
        quick_to_go.install().unwrap();
        burst();
        eventually(QUICK, "all have gone", || {
            let left = (support::thread_names(), children());
            let pool = left
                .0
                .iter()
                .filter(|name| name.starts_with("unsync-"))
                .count();
            (pool == 1 && left.1.is_empty(), left)
        });
        assert_idle("with the ambient thread alone");
        // And work comes again.
        burst();
    });
}

fn echo(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}
unsync::register!(echo);

/// The buffers of a large call serve the next one, but not for long.
#[test]
fn large_buffers_are_given_back() {
    in_child("large_buffers_are_given_back", HEAVY, &[], || {
        const LARGE: usize = 48 << 20;
        for _ in 0..3 {
            let back = unsync::cpu(echo, (vec![1; LARGE],)).result().unwrap();
            assert_eq!(back.len(), LARGE);
        }
        for process in [children(), vec![std::process::id()]].concat() {
            eventually(QUICK, "the memory of a large call is given back", || {
                let resident = resident_bytes(process);
                (resident < LARGE / 2, resident)
            });
        }
        eventually(QUICK, "the thread that freed them has ended", || {
            let names = support::thread_names();
            (!names.iter().any(|name| name == "unsync-buffers"), names)
        });
        assert_idle("without them");
    });
}

fn resident_bytes(process: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes: usize = kibibytes
        .unwrap()
        .trim_end_matches("kB")
        .trim()
        .parse()
        .unwrap();
    kibibytes << 10
}

/// The state of a thread: `R` for running, `S` for sleeping.
fn state_of(task: &Path) -> Option<char> {
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// The ambient thread sleeps without a timeout: whoever asks for something wakes it.
#[test]
fn a_sleeping_ambient_thread_is_woken_by_whoever_asks() {
    in_child(
        "a_sleeping_ambient_thread_is_woken_by_whoever_asks",
        HEAVY,
        &[],
        || {
            unsync::spawn(async {}).result().unwrap();
            let ambient = fs::read_dir("/proc/self/task")
                .unwrap()
                .flatten()
                .find(|task| {
                    let name = fs::read_to_string(task.path().join("comm"));
                    name.is_ok_and(|name| name.trim() == "unsync-ambient")
                });
            let ambient = ambient.unwrap().path();
            let asleep = || {
                eventually(QUICK, "the ambient thread sleeps", || {
                    let state = state_of(&ambient);
                    (state == Some('S'), state)
                });
            };
            let (promise, pending) = unsync::promise();
            let waiting = unsync::spawn(pending);
            asleep();
            assert_eq!(unsync::spawn(async { 1 }).result().unwrap(), 1);
            asleep();
            promise.set(2);
            assert_eq!(waiting.flatten().result().unwrap(), 2);
            asleep();
            let (started, brief) = (Instant::now(), Duration::from_millis(5));
            unsync::block_on(unsync::sleep(brief));
            assert!(started.elapsed() >= brief);
            // A nearer deadline than the one it sleeps for.
            let _far = unsync::spawn(unsync::sleep(Duration::from_secs(3600)));
            fence();
            asleep();
            unsync::block_on(unsync::sleep(brief));
            asleep();
            assert_eq!(unsync::thread(|| 3).map(|n| n + 1).result().unwrap(), 4);
        },
    );
}

/// If it begins with a one, decoding it takes until the second gate opens.
struct Blob(Vec<u8>);

static DECODING: Mutex<Option<[Gate; 2]>> = Mutex::new(None);

impl Wire for Blob {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
    fn decode(input: &mut &[u8]) -> Result<Blob, Error> {
        let bytes = Vec::<u8>::decode(input)?;
        let gates = DECODING.lock().unwrap().clone();
        if let (1, Some([begun, end])) = (bytes[0], gates) {
            begun.open();
            end.wait();
        }
        Ok(Blob(bytes))
    }
}

fn blob(slow: bool, length: usize) -> Blob {
    Blob(vec![u8::from(slow); length])
}
unsync::register!(blob);

fn stay(millis: u64) {
    thread::sleep(Duration::from_millis(millis));
}
unsync::register!(stay);

/// The library does not check on idle workers, and checks once a second on workers that run long calls.
#[test]
fn workers_wake_nobody() {
    in_child("workers_wake_nobody", HEAVY, &[], || {
        let four = unsync::Config::new().processes(4).keep_alive(HEAVY);
        four.install().unwrap();
        let run = |millis| Vec::from_iter((0..4).map(|_| unsync::cpu(stay, (millis,))));
        unsync::join_all(run(300)).result().unwrap();
        assert_eq!(children().len(), 4);
        eventually(QUICK, "what the calls left behind is done", || {
            let before = waits();
            thread::sleep(Duration::from_millis(1500));
            (waits() == before, waits() - before)
        });
        let in_five_seconds = || {
            let before = waits();
            thread::sleep(Duration::from_secs(5));
            waits() - before
        };
        let idle = in_five_seconds();
        assert!(idle <= 2, "{idle}");
        let calls = run(3_600_000);
        eventually(QUICK, "all run", || {
            let started = unsync::tasks();
            let running = started
                .iter()
                .filter(|task| task.state == unsync::WorkState::Running);
            (running.clone().count() == 4, running.count())
        });
        let began = Instant::now();
        let busy = in_five_seconds();
        assert!(busy <= 3 + began.elapsed().as_secs(), "{busy}");
        assert!(calls.iter().all(unsync::Unfuture::cancel));
    });
}

/// The worker's results fill the link, and the program is slow to take them: it waits without spinning.
#[test]
fn a_worker_whose_results_nobody_takes() {
    in_child("a_worker_whose_results_nobody_takes", HEAVY, &[], || {
        unsync::Config::new().processes(1).install().unwrap();
        let _ = unsync::cpu(blob, (false, 1)).result().unwrap();
        let processes = children();
        let (mut rounds, mut tries) = (4..=8, 0);
        let mut next = rounds.next();
        while let Some(count) = next {
            tries += 1;
            assert!(tries <= 30, "{count} calls are never dealt at once");
            // This makes the pool deal many calls at once.
            for _ in 0..300 {
                let _ = unsync::cpu(blob, (false, 100)).result().unwrap();
            }
            let [begun, end] = [(); 2].map(|()| Gate::new());
            *DECODING.lock().unwrap() = Some([begun.clone(), end.clone()]);
            let calls = (0..count).map(|n| unsync::cpu(blob, (n == 0, 60_000)));
            let calls = Vec::from_iter(calls);
            begun.wait();
            // Otherwise the worker has had to wait for the processor, so it does not get all of the calls.
            let all_dealt = unsync::stats().calls_queued == 0;
            // The worker's remaining work takes a while on a busy machine.
            if all_dealt {
                eventually(QUICK, "it waits", || {
                    let busy = used_within(Duration::from_millis(200), &processes);
                    let busy: Duration = busy.values().sum();
                    (busy < NEXT_TO_NOTHING, (busy, count))
                });
                next = rounds.next();
            }
            end.open();
            calls
                .into_iter()
                .for_each(|call| drop(call.result().unwrap()));
        }
    });
}
