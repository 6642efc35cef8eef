//! What happens to workers, relays and launchers while calls run, and the end of the program.

use std::os::unix::process::ExitStatusExt;

use unsync::{TaskInfo, WorkKind, WorkState};

use crate::scenario::{
    Gate, SOON, file, freeze, is_dead, lane_state, program, signal, until, wait_at, wait_within,
};
use crate::*;

plays! {
    programs: [delay, leave_calls]
    prints_appear_on_standard_error;
    worker_is_killed;
    worker_is_killed_while_it_sends;
    worker_of_a_launcher_that_stays_is_killed_while_it_sends;
    worker_is_killed_while_the_way_up_is_slow;
    worker_exits;
    relay_is_killed;
    launcher_is_killed;
    noise_among_the_frames;
    quick_calls_of_a_lost_relay_are_not_run_again;
    deadline_kills_the_worker;
    launcher_that_hangs_does_not_hold_up_a_deadline;
    silent_launcher_is_lost;
    silent_parent_is_lost;
    idle_worker_outlives_the_silence;
    memory_of_a_launcher_is_not_that_of_its_worker;
    large_values;
    cancelled_while_it_is_loaded;
    children_of_a_far_worker_die_with_it;
    delayed_calls_travel_together;
    delayed_slow_calls_travel_together;
    nothing_survives_the_program;
}

/// In a call: starts a process that outlives it, and returns its number.
fn leave_a_child() -> u32 {
    let mut sleep = Command::new("sleep");
    sleep.arg("1000").stdin(Stdio::null()).stdout(Stdio::null());
    sleep.stderr(Stdio::null()).spawn().unwrap().id()
}

/// In a call: the same, and returns more than any pipe or socket holds.
fn fill(gate: String) -> Vec<u8> {
    drop(wait_at(&gate));
    vec![7; 32 << 20]
}

/// In a call: reports this many bytes when the scenario lets it, and stays.
fn say(first: String, second: String, bytes: usize) {
    drop(wait_at(&first));
    unsync::progress(vec![7_u8; bytes]);
    drop(wait_at(&second));
}

unsync::register!(stay, fill, say, leave_a_child);

/// Waits for the news that a call has begun.
fn until_one_runs() {
    let runs = |task: &TaskInfo| task.kind == WorkKind::Cpu && task.state == WorkState::Running;
    until("the news of its start has arrived", || {
        unsync::tasks().iter().any(runs)
    });
}

fn prints_appear_on_standard_error() {
    install(only(1, PLAIN));
    for round in 0..20 {
        cpu(print, (format!("{round};"),)).result().unwrap();
    }

    let has_all = || {
        let output = output();
        (0..20).all(|round| {
            let parts = ["out", "err", "no newline"].map(|part| format!("{part} {round};"));
            parts.iter().all(|part| output.contains(part))
        })
    };
    until("all is passed on", has_all);
}

// -------------------------------------------------------------------------------------------- the deaths

fn worker_is_killed() {
    install(only(1, PLAIN));
    let gate = Gate::new();
    let call = cpu(stay, (gate.path(),));
    let guest = gate.guest();
    let behind: Vec<_> = (0..20).map(|n| cpu(add, (n, 1))).collect();
    signal("KILL", guest.process);
    let place = format!("worker process {} on host `far`", guest.process);
    let words = ["`stay` lost its", &place, "SIGKILL", "memory ran out"];
    let error = assert_lost(call.result(), &words);
    assert_eq!(error.worker_exit().unwrap().signal(), Some(9));
    for (n, sum) in behind.into_iter().enumerate() {
        assert_eq!(sum.result().unwrap(), n as u64 + 1, "it had not begun");
    }
}

/// Half a frame arrives, and how the worker ended is known nevertheless.
fn worker_is_killed_while_it_sends() {
    kill_while_it_sends(only(1, PLAIN));
}

/// The line has no end after that.
fn worker_of_a_launcher_that_stays_is_killed_while_it_sends() {
    let config = only(1, "\"$@\"; sleep 1000");
    kill_while_it_sends(config.host_timeout(Duration::from_secs(10)));
}

fn kill_while_it_sends(config: Config) {
    install(config);
    let gate = Gate::new();
    let call = cpu(fill, (gate.path(),));
    let guest = gate.guest();
    let (worker, relay) = (guest.process, parent_of(guest.process));
    freeze(relay);
    guest.leave();
    until("the worker is in the middle of its write", || {
        lane_state(worker) == Some('S')
    });
    signal("KILL", worker);
    signal("CONT", relay);
    let error = assert_lost(call.result(), &["`fill` lost its", "SIGKILL"]);
    assert_eq!(error.worker_exit().unwrap().signal(), Some(9));
    assert_works(10);
}

/// What it said before arrives, however long that takes, though something was to be written to it since.
fn worker_is_killed_while_the_way_up_is_slow() {
    const BYTES: usize = 200_000;
    let (pipe, first, second) = (file("pipe"), Gate::new(), Gate::new());
    let slow = format!("\"$@\" | sh -c 'echo $$ > {pipe}; exec cat'");
    install(only(1, &slow).cancel_grace(SOON));
    let (said, hears) = mpsc::channel();
    let call = cpu(say, (first.path(), second.path(), BYTES));
    let call = call.on_progress(move |bytes: Vec<u8>| said.send(bytes.len()).unwrap());
    let guest = first.guest();
    until_one_runs();
    let pipe = fs::read_to_string(pipe).unwrap().trim().parse().unwrap();
    freeze(pipe);
    guest.leave();
    let guest = second.guest();
    signal("KILL", guest.process);
    until("the worker ends", || is_dead(guest.process));
    // This is written to it.
    assert!(call.cancel());
    // A relay that takes this for the end of its parent waits two seconds, and no longer.
    thread::sleep(Duration::from_secs(4));
    signal("CONT", pipe);
    let error = call.result().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert_eq!(error.worker_exit().unwrap().signal(), Some(9), "{error}");
    assert_eq!(hears.recv_timeout(SOON), Ok(BYTES));
}

fn worker_exits() {
    install(only(1, PLAIN));
    for code in [0, 3] {
        let error = assert_lost(cpu(exit, (code,)).result(), &["on host `far`"]);
        assert_eq!(error.worker_exit().unwrap().code(), Some(code));
    }
}

/// Kills the process `above` levels up from a call's worker: its relay, and above a relay the launcher.
fn strike(launcher: &str, above: u32, words: &[&str]) {
    install(only(1, launcher));
    let gate = Gate::new();
    let call = cpu(stay, (gate.path(),));
    let guest = gate.guest();
    let victim = (0..above).fold(guest.process, |process, _| parent_of(process));
    assert_ne!(victim, process::id());
    signal("KILL", victim);
    let error = assert_lost(call.result(), words);
    assert_eq!(
        error.worker_exit(),
        None,
        "nobody knows how the worker ended"
    );
    until("the worker ends", || is_dead(guest.process));
    assert_works(10);
}

fn relay_is_killed() {
    let words = ["on host `far`", "its launcher ended (exit status: 137)"];
    strike("\"$@\"; exit $?", 1, &words);
}

fn launcher_is_killed() {
    strike(
        "\"$@\"; exit $?",
        2,
        &["its launcher ended (signal: 9 (SIGKILL))"],
    );
}

/// For example a message of the launcher.
fn noise_among_the_frames() {
    let (first, gate) = (file("first"), Gate::new());
    let noise = format!(
        "mkdir {first} 2>/dev/null && (while test -e {first}; do sleep 0.05; done; \
         echo far: this node goes down in five minutes) &"
    );
    install(only(1, &format!("{noise} exec \"$@\"")));
    let call = cpu(stay, (gate.path(),));
    let _guest = gate.guest();
    until("the shell behind the launcher has begun", || {
        fs::remove_dir(&first).is_ok()
    });
    let words = ["bytes that are not a frame arrived", "host `far`"];
    assert_lost(call.result(), &words);
    fs::create_dir(first).unwrap();
    assert_works(100);
}

/// Nobody knows which of the calls had begun, so all fail, and none runs twice.
fn quick_calls_of_a_lost_relay_are_not_run_again() {
    install(only(1, PLAIN));
    let marks = file("marks");
    for n in 0..300 {
        cpu(add, (n, 1)).result().unwrap();
    }
    let (mut lost, mut number) = (0, 0);
    for _ in 0..20 {
        // A worker whose relay is dying may still get a call.
        let worker = (0..).find_map(|_| cpu(pid, ()).result().ok()).unwrap();
        let relay = parent_of(worker);
        let calls: Vec<_> = (0..100)
            .map(|_| {
                number += 1;
                cpu(mark, (marks.clone(), number, 0))
            })
            .collect();
        signal("KILL", relay);
        for call in calls {
            if let Err(error) = call.result() {
                let failed: Result<(), _> = Err(error);
                assert_lost(failed, &["host `far`"]);
                lost += 1;
            }
        }
    }
    println!("{lost} of {number} were lost");
    let text = fs::read_to_string(marks).unwrap();
    let mut numbers: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    let before = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), before, "a call ran twice");
}

fn deadline_kills_the_worker() {
    install(only(1, PLAIN));
    let worker = cpu(pid, ()).result().unwrap();
    let started = Instant::now();
    let error = cpu(spin, ())
        .run_timeout(Duration::from_millis(100))
        .result()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert_eq!(error.worker_exit().unwrap().signal(), Some(9));
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(is_dead(worker));
    let spinning = cpu(spin, ());
    until_one_runs();
    assert!(spinning.cancel());
    assert_eq!(spinning.result().unwrap_err().kind(), ErrorKind::Cancelled);
}

fn launcher_that_hangs_does_not_hold_up_a_deadline() {
    install(only(1, "\"$@\"; exit $?"));
    let worker = cpu(pid, ()).result().unwrap();
    let relay = parent_of(worker);
    let gate = Gate::new();
    let call = cpu(stay, (gate.path(),));
    let _guest = gate.guest();
    until_one_runs();
    signal("STOP", relay);
    let started = Instant::now();
    let call = call.timeout(Duration::from_secs(1));
    let error = call.result().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert!(
        started.elapsed() < Duration::from_secs(15),
        "{:?}",
        started.elapsed()
    );
    until("the worker ends", || is_dead(worker));
}

// ------------------------------------------------------------------------------------------- the silence

fn silent_launcher_is_lost() {
    install(only(1, PLAIN).host_timeout(Duration::from_secs(8)));
    let worker = cpu(pid, ()).result().unwrap();
    let call = cpu(sleep, (60_000,));
    until_one_runs();
    // A long call does not count as eight seconds of silence.
    thread::sleep(Duration::from_secs(12));
    assert!(!call.is_done());
    signal("STOP", parent_of(worker));
    assert_lost(call.result(), &["nothing was heard of its host for 8s"]);
    until("the worker ends", || is_dead(worker));
}

fn silent_parent_is_lost() {
    install(only(1, PLAIN).host_timeout(Duration::from_secs(8)));
    let worker = cpu(pid, ()).result().unwrap();
    let call = cpu(spin, ());
    until_one_runs();
    // This process stops, and a shell lets it go on.
    let me = process::id();
    let wake = format!("kill -STOP {me}; sleep 12; kill -CONT {me}");
    Command::new("sh").arg("-c").arg(wake).status().unwrap();
    until("the worker has ended by itself", || is_dead(worker));
    assert!(call.result().is_err());
    assert_works(10);
}

fn idle_worker_outlives_the_silence() {
    let config = only(1, PLAIN).keep_alive(Duration::from_secs(60));
    install(config.host_timeout(Duration::from_secs(8)));
    let worker = cpu(pid, ()).result().unwrap();
    thread::sleep(Duration::from_secs(12));
    assert_eq!(cpu(pid, ()).result().unwrap(), worker);
}

// -------------------------------------------------------------------------------------------- the values

fn memory_of_a_launcher_is_not_that_of_its_worker() {
    install(only(1, PLAIN).memory_per_worker(1));
    let worker = cpu(pid, ()).result().unwrap();
    assert_eq!(cpu(pid, ()).result().unwrap(), worker);
}

fn large_values() {
    install(only(2, PLAIN));
    let bytes: Vec<u8> = (0..20_000_000u32).map(|n| (n >> 3) as u8).collect();
    let calls: Vec<_> = (0..4).map(|_| cpu(echo, (bytes.clone(),))).collect();
    for call in calls {
        assert!(call.result().unwrap() == bytes);
    }
}

fn cancelled_while_it_is_loaded() {
    install(only(1, PLAIN).host_timeout(Duration::from_secs(10)));
    let worker = cpu(pid, ()).result().unwrap();
    signal("STOP", worker);
    let call = cpu(echo, (vec![7; 50_000_000],));
    thread::sleep(Duration::from_millis(200));
    assert!(call.cancel());
    let started = Instant::now();
    assert_eq!(call.result().unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(
        started.elapsed() < Duration::from_secs(40),
        "{:?}",
        started.elapsed()
    );
    assert_works(10);
    until("the worker ends", || is_dead(worker));
}

fn children_of_a_far_worker_die_with_it() {
    install(only(1, PLAIN).kill_children(true));
    let child = cpu(leave_a_child, ()).result().unwrap();
    assert!(!is_dead(child));
    assert_lost(cpu(exit, (1,)).result(), &["exit status: 1"]);
    until("the child ends", || is_dead(child));
}

// --------------------------------------------------------------------------------------------- the delay

/// A launcher that delays every byte in both directions.
fn delay() {
    let late = env::var("DELAY").unwrap().parse().unwrap();
    let late = Duration::from_millis(late);
    let words = env::var("DELAYED").unwrap();
    let mut words = words.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (down, up) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let own =
        |stream: &dyn std::os::fd::AsFd| File::from(stream.as_fd().try_clone_to_owned().unwrap());
    let (stdin, stdout) = (own(&io::stdin()), own(&io::stdout()));
    thread::spawn(move || carry(late, stdin, down));
    carry(late, up, stdout);
    process::exit(child.wait().unwrap().code().unwrap_or(1))
}

fn carry(late: Duration, mut from: impl Read + Send + 'static, mut to: impl Write) {
    let (sender, bytes) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            if sender
                .send((Instant::now() + late, buffer[..read].to_vec()))
                .is_err()
            {
                return;
            }
        }
        // The end is delayed too.
        let _ = sender.send((Instant::now() + late, Vec::new()));
    });
    for (at, bytes) in bytes {
        thread::sleep(at.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            return;
        }
    }
}

fn delayed(slots: usize, millis: u64) -> Config {
    let delay = program("delay");
    let arguments: Vec<_> = delay.get_args().map(|it| it.to_string_lossy()).collect();
    let (program, arguments) = (delay.get_program().to_string_lossy(), arguments.join(" "));
    let text =
        format!("DELAYED=\"$*\" DELAY={millis} UNSYNC_TEST_PLAY=delay exec {program} {arguments}");
    only(slots, &text)
}

fn delayed_calls_travel_together() {
    install(delayed(1, 25));
    assert_works(100);
    let started = Instant::now();
    assert_works(10_000);
    let took = started.elapsed();
    println!("10,000 calls with 25 ms each way: {took:?}");
    // One after the other they would take 500 s.
    assert!(took < Duration::from_secs(20), "{took:?}");
}

/// Even calls that would hold up the others at a worker on this machine.
fn delayed_slow_calls_travel_together() {
    install(delayed(2, 100));
    assert_works(100);
    let started = Instant::now();
    let calls: Vec<_> = (0..400).map(|_| cpu(sleep, (5,))).collect();
    for call in calls {
        call.result().unwrap();
    }
    let took = started.elapsed();
    println!("400 calls of 5 ms on 2 workers with 100 ms each way: {took:?}");
    // One second of work for each worker; one call after the other would take 41 s.
    assert!(took < Duration::from_secs(20), "{took:?}");
}

// ----------------------------------------------------------------------------------------------- the end

/// The program that is killed.
fn leave_calls() {
    install(only(2, "\"$@\"; exit $?"));
    let calls: Vec<_> = (0..2)
        .map(|_| cpu(stay, (env::var("GATE").unwrap(),)))
        .collect();
    calls.into_iter().for_each(|call| drop(call.result()));
}

fn nothing_survives_the_program() {
    let gate = Gate::new();
    let mut child = program("leave_calls")
        .env("GATE", gate.path())
        .spawn()
        .unwrap();
    let guests = [gate.guest(), gate.guest()];
    let mut processes = Vec::new();
    for guest in &guests {
        let relay = parent_of(guest.process);
        processes.extend([guest.process, relay, parent_of(relay)]);
    }
    signal("KILL", child.id());
    let started = Instant::now();
    wait_within(&mut child, scenario::SOON).unwrap();
    until("all have ended", || {
        processes.iter().all(|process| is_dead(*process))
    });
    println!("all have ended after {:?}", started.elapsed());
}
