//! All kinds of ends of the program: no worker outlives it. And the processes that workers start.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::panic;
use std::path::Path;
use std::process::{self, Command};
use std::thread;
use std::time::{Duration, Instant};

use unsync::{Error, ErrorKind, Wire, cpu};

use crate::scenario::{
    Gate, Guest, Link, children, come_to, entries, file, freeze, group_of, is_dead, is_gone, kill,
    lane_state, link, program, until, wait_at, wait_within, worker_after,
};
use crate::*;

scenarios! {
    programs: [victim, starting_victim, deaf_victim]
    n26_parent_kill9_idle;
    n26_parent_kill9_spin;
    n26_parent_kill9_stdout_lock;
    n26_parent_kill9_stdout_full;
    n26_parent_kill9_sleep;
    n26_parent_kill9_writing;
    n26_parent_kill9_stopped;
    n26_parent_kill9_panicking;
    n26_parent_kill9_nested;
    n26_parent_kill9_all_at_once;
    n26_parent_kill9_starting;
    n26_parent_kill9_inviting;
    n27_parent_panic;
    n28_parent_exit_with_outstanding_calls;
    n28_parent_exit_starting;
    n28_parent_exit_inviting;
    n28_parent_exec;
    n29_parent_abort;
    n29_parent_terminated;
    n30_grandchild_keeps_stdout_open_shutdown_fast;
    n30_grandchild_keeps_stdout_open_retirement_fast;
    n32_kill_children_with_a_crash;
    n32_kill_children_with_a_cancel;
    n32_kill_children_with_a_retirement;
    n32_kill_children_with_a_shutdown;
    n32_kill_children_of_a_worker_that_is_not_reaped in "PATH=$UNSYNC_TEST_HOME/bin:$PATH";
    n32_kill_children_of_a_dead_wrapper_that_is_not_reaped in "PATH=$UNSYNC_TEST_HOME/bin:$PATH";
    n32_children_live_on_by_default;
    n36_sigint_to_the_group_ends_all;
    n36_sigint_to_the_group_parent_decides;
}

/// The library promises a second; a busy machine gets more.
const PROMPT: Duration = Duration::from_secs(10);

// -------------------------------------------------------------------------------------- the victim

/// What a worker does when its program ends. By then the worker has come to the gate, and stays there until
/// it ends.
fn be(state: String, gate: String) -> Flood {
    let at_gate = come_to(&gate);
    match state.as_str() {
        "idle" => {
            thread::spawn(move || stay_at(at_gate));
            Flood(0)
        }
        "spin" => {
            spin();
            park()
        }
        "sleep" | "stopped" => {
            thread::sleep(Duration::from_secs(3600));
            park()
        }
        "stdout_lock" => {
            let mut lock = io::stdout().lock();
            lock.write_all(b"the beginning of a line").unwrap();
            park()
        }
        "stdout_full" => loop {
            println!("nobody reads this");
        },
        "writing" => {
            thread::spawn(move || stay_at(at_gate));
            Flood(64 << 20)
        }
        "panicking" => {
            panic::set_hook(Box::new(move |_| park()));
            panic!("for ever");
        }
        "nested" => {
            cpu(spin, ()).result().unwrap();
            park()
        }
        other => panic!("{other}?"),
    }
}

fn stay_at(_gate: UnixStream) {
    park()
}

fn park() -> ! {
    loop {
        thread::park();
    }
}

/// A result that is large or empty.
struct Flood(usize);

impl Wire for Flood {
    fn encode(&self, out: &mut Vec<u8>) {
        out.resize(out.len() + self.0, 0);
    }

    fn decode(_: &mut &[u8]) -> Result<Flood, Error> {
        Ok(Flood(0))
    }
}

/// A result whose decoding never ends: nothing more is read from its worker.
struct Stopper;

impl Wire for Stopper {
    fn encode(&self, _: &mut Vec<u8>) {}

    fn decode(_: &mut &[u8]) -> Result<Stopper, Error> {
        park()
    }
}

fn stop_the_reader() -> Stopper {
    Stopper
}

/// Has workers in some states, and ends.
fn victim() {
    let (states, gate) = (env::var("STATES").unwrap(), env::var("GATE").unwrap());
    let states: Vec<&str> = states.split(' ').collect();
    install(workers(states.len()));
    let mut calls = Vec::new();
    for state in &states {
        if *state == "writing" {
            drop(cpu(stop_the_reader, ()));
        }
        let call = cpu(be, (state.to_string(), gate.clone()));
        if *state == "idle" {
            call.wait();
        }
        calls.push(call);
    }
    drop(wait_at(&gate));
    match env::var("END").unwrap().as_str() {
        "panic" => panic!("the end"),
        "exit" => process::exit(7),
        "abort" => process::abort(),
        "exec" => panic!("{}", Command::new("sleep").arg("600").exec()),
        signal => panic!("{signal} was to come from outside"),
    }
}

/// Ends the victim, and waits until all of its workers have gone. Returns the victim's exit status.
fn end_victim(states: &[&str], end: &str) -> process::ExitStatus {
    let gate = Gate::new();
    // A shell that starts the tests in the background may have made them ignore SIGINT.
    let mut victim = started_by(&["env", "--default-signal=INT"], &program("victim"));
    victim
        .env("STATES", states.join(" "))
        .env("GATE", gate.path())
        .env("END", end);
    if states.contains(&"stdout_full") {
        // A pipe that this process does not read.
        victim.stdout(process::Stdio::piped());
    }
    let mut victim = victim.spawn().unwrap();
    let guests: Vec<Guest> = (0..=states.len()).map(|_| gate.guest()).collect();
    let (parents, mut workers): (Vec<_>, Vec<_>) = guests
        .into_iter()
        .partition(|guest| guest.process == victim.id());
    for (state, worker) in states.iter().zip(&workers) {
        match *state {
            "stopped" => freeze(worker.process),
            "writing" | "stdout_full" => until("the worker is stuck", || {
                lane_state(worker.process) == Some('S')
            }),
            _ => {}
        }
    }

    let ended = Instant::now();
    match end {
        "KILL" | "TERM" => kill(end, &[victim.id()]),
        "INT" => kill_group("INT", victim.id()),
        _ => drop(parents),
    }
    for worker in &mut workers {
        worker.wait_for_end();
        until("the worker is dead", || is_dead(worker.process));
    }
    let took = ended.elapsed();
    println!("{states:?} gone {took:?} after {end}");
    assert!(took < PROMPT, "{took:?}");
    if end == "exec" {
        victim.kill().unwrap();
    }
    wait_within(&mut victim, PROMPT).expect("the victim ends")
}

fn kill_group(signal: &str, group: u32) {
    let status = Command::new("kill")
        .arg(format!("-{signal}"))
        .args(["--", &format!("-{group}")])
        .status();
    assert!(status.unwrap().success());
}

fn n26_parent_kill9(states: &[&str]) {
    assert_eq!(end_victim(states, "KILL").signal(), Some(9));
}

fn n26_parent_kill9_idle() {
    n26_parent_kill9(&["idle"]);
}

fn n26_parent_kill9_spin() {
    n26_parent_kill9(&["spin"]);
}

fn n26_parent_kill9_stdout_lock() {
    n26_parent_kill9(&["stdout_lock"]);
}

fn n26_parent_kill9_stdout_full() {
    n26_parent_kill9(&["stdout_full"]);
}

fn n26_parent_kill9_sleep() {
    n26_parent_kill9(&["sleep"]);
}

fn n26_parent_kill9_writing() {
    n26_parent_kill9(&["writing"]);
}

/// The system wakes the stopped worker: its process group is orphaned then.
fn n26_parent_kill9_stopped() {
    n26_parent_kill9(&["stopped"]);
}

fn n26_parent_kill9_panicking() {
    n26_parent_kill9(&["panicking"]);
}

fn n26_parent_kill9_nested() {
    n26_parent_kill9(&["nested"]);
}

fn n26_parent_kill9_all_at_once() {
    n26_parent_kill9(&[
        "idle",
        "sleep",
        "sleep",
        "stdout_lock",
        "nested",
        "panicking",
        "spin",
    ]);
}

fn n27_parent_panic() {
    assert_eq!(
        end_victim(&["idle", "spin", "sleep"], "panic").code(),
        Some(101)
    );
}

fn n28_parent_exit_with_outstanding_calls() {
    assert_eq!(
        end_victim(&["idle", "spin", "sleep"], "exit").code(),
        Some(7)
    );
}

/// The program becomes another one, which has no links, but still has the old program's children.
fn n28_parent_exec() {
    end_victim(&["idle", "spin", "sleep"], "exec");
}

fn n29_parent_abort() {
    assert_eq!(
        end_victim(&["idle", "spin", "sleep"], "abort").signal(),
        Some(6)
    );
}

fn n29_parent_terminated() {
    assert_eq!(
        end_victim(&["idle", "spin", "sleep"], "TERM").signal(),
        Some(15)
    );
}

/// Starts a worker that does not get ready before it is allowed to.
///
/// The output of a test's worker ends with the test, and the harness gives up when it cannot print, before
/// the worker's code runs. So such a worker is invited late. A worker with an output of its own, as the
/// worker of any other program has, is invited at once.
fn starting_victim() {
    let (asked, allowed) = (file("asked"), file("allowed"));
    let invited_at_once = env::var_os("INVITED_AT_ONCE").is_some();
    let output = match invited_at_once {
        true => format!("exec >> {} 2>&1", file("output")),
        false => String::new(),
    };
    let ask = format!("echo $$ > {asked}.new; mv {asked}.new {asked}");
    let shell = format!("{output}\n{ask}; : < {allowed}");
    install(workers(1).worker_command(move |executable| {
        // The given path refers to the parent's executable, and the parent is gone by then.
        assert!(executable.exists());
        worker_after(&shell, &env::current_exe().unwrap())
    }));
    let call = cpu(pid, ());
    until("the worker starts", || Path::new(&asked).exists());
    if invited_at_once && link() == Link::Unix {
        until("the link has a place", || {
            !entries(&env::temp_dir()).is_empty()
        });
    }
    drop(wait_at(&env::var("GATE").unwrap()));
    drop(call);
    process::exit(7);
}

/// Ends the victim while its worker starts. The worker finds no parent, ends, and leaves nothing behind.
fn end_starting_victim(victim: &mut Command, end: impl FnOnce(Guest)) {
    let (asked, allowed, gate) = (file("asked"), file("allowed"), Gate::new());
    assert!(
        Command::new("mkfifo")
            .arg(&allowed)
            .status()
            .unwrap()
            .success()
    );
    let mut victim = victim.env("GATE", gate.path()).spawn().unwrap();
    let guest = gate.guest();
    let worker: u32 = std::fs::read_to_string(asked)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    end(guest);
    wait_within(&mut victim, PROMPT).expect("the victim ends");
    assert!(!is_dead(worker));
    drop(File::create(allowed).unwrap());
    until("the worker is dead", || is_dead(worker));
}

fn n26_parent_kill9_starting() {
    let mut victim = program("starting_victim");
    end_starting_victim(&mut victim, |victim| kill("KILL", &[victim.process]));
}

fn n26_parent_kill9_inviting() {
    let mut victim = program("starting_victim");
    victim.env("INVITED_AT_ONCE", "1");
    end_starting_victim(&mut victim, |victim| kill("KILL", &[victim.process]));
}

fn n28_parent_exit_starting() {
    end_starting_victim(&mut program("starting_victim"), drop);
}

fn n28_parent_exit_inviting() {
    let mut victim = program("starting_victim");
    victim.env("INVITED_AT_ONCE", "1");
    end_starting_victim(&mut victim, drop);
}

// ---------------------------------------------------------------------------------- grandchildren

/// Starts a process that holds everything that it inherits. Returns its number.
fn have_a_child() -> u32 {
    Command::new("sleep").arg("600").spawn().unwrap().id()
}

fn have_a_child_and_die(proof: String) {
    note(proof, have_a_child());
    process::abort();
}

fn have_a_child_and_stay(gate: String) -> u32 {
    let child = have_a_child();
    drop(wait_at(&gate));
    child
}

fn have_a_child_and_spin(proof: String, gate: String) {
    note(proof, have_a_child());
    let _at_gate = come_to(&gate);
    spin();
}

fn n30_grandchild_keeps_stdout_open_shutdown_fast() {
    install(workers(2));
    let grandchildren: Vec<u32> = (0..2)
        .map(|_| cpu(have_a_child, ()).result().unwrap())
        .collect();
    let asked = Instant::now();
    unsync::shutdown(Duration::from_secs(20)).unwrap();
    let took = asked.elapsed();
    println!("shut down after {took:?}");
    assert!(took < PROMPT, "{took:?}");
    assert!(!grandchildren.iter().any(|child| is_dead(*child)));
    kill("KILL", &grandchildren);
}

fn n30_grandchild_keeps_stdout_open_retirement_fast() {
    install(workers(1).keep_alive(Duration::from_millis(50)));
    let grandchild = cpu(have_a_child, ()).result().unwrap();
    let idle = Instant::now();
    until("the worker is reaped", || children().is_empty());
    assert!(idle.elapsed() < PROMPT, "{:?}", idle.elapsed());
    cpu(pid, ()).result().unwrap();
    kill("KILL", &[grandchild]);
}

fn n32_kill_children_with_a_crash() {
    install(workers(1).kill_children(true));
    let proof = file("proof");
    let lost = cpu(have_a_child_and_die, (proof.clone(),)).result();
    let error = assert_kind(lost, ErrorKind::WorkerLost);
    assert_eq!(
        error.worker_exit().unwrap().signal(),
        Some(6),
        "its own end, not ours"
    );
    until("the grandchild is dead", || is_dead(notes(&proof)[0]));
}

fn n32_kill_children_with_a_cancel() {
    install(workers(1).kill_children(true));
    let (proof, gate) = (file("proof"), Gate::new());
    let call = cpu(have_a_child_and_spin, (proof.clone(), gate.path()));
    let _guest = gate.guest();
    assert!(!is_dead(notes(&proof)[0]));
    assert!(call.cancel());
    assert_kind(call.result(), ErrorKind::Cancelled);
    until("the grandchild is dead", || is_dead(notes(&proof)[0]));
}

fn n32_kill_children_with_a_retirement() {
    install(workers(1).kill_children(true).calls_per_worker(1));
    let grandchild = cpu(have_a_child, ()).result().unwrap();
    until("the grandchild is dead", || is_dead(grandchild));
}

fn n32_kill_children_with_a_shutdown() {
    install(workers(2).kill_children(true));
    let gate = Gate::new();
    let grandchild = cpu(have_a_child, ()).result().unwrap();
    let running = cpu(have_a_child_and_stay, (gate.path(),));
    let guest = gate.guest();
    shut_down(Duration::from_millis(500));
    assert_kind(running.result(), ErrorKind::ShutDown);
    until("the grandchild is dead", || is_dead(grandchild));
    drop(guest);
}

/// A `kill` that comes first in the path. It records whether the leader of the group to kill exists, dead or
/// alive: once the leader is reaped, its number may belong to another process.
fn watch_kills() -> String {
    let (bin, seen) = (file("bin"), file("seen"));
    fs::create_dir(&bin).unwrap();
    let script = format!(
        "#!/bin/sh\n\
         for group; do :; done\n\
         [ -e /proc/${{group#-}} ] && there=1 || there=0\n\
         echo $there >> {seen}\n\
         PATH=${{PATH#*:}}; exec kill \"$@\"\n"
    );
    let kill = format!("{bin}/kill");
    fs::write(&kill, script).unwrap();
    fs::set_permissions(&kill, PermissionsExt::from_mode(0o755)).unwrap();
    seen
}

fn n32_kill_children_of_a_worker_that_is_not_reaped() {
    install(workers(1).kill_children(true));
    let (seen, proof) = (watch_kills(), file("proof"));
    for round in 0..3 {
        let lost = cpu(have_a_child_and_die, (proof.clone(),)).result();
        assert_kind(lost, ErrorKind::WorkerLost);
        until("the grandchild is dead", || is_dead(notes(&proof)[round]));
    }
    assert_eq!(notes(&seen), [1, 1, 1]);
}

/// The wrapper dies, and the worker behind it lives on with its link: the pool must find out that the wrapper
/// is dead without reaping it.
fn n32_kill_children_of_a_dead_wrapper_that_is_not_reaped() {
    let seen = watch_kills();
    install(workers(1).kill_children(true).worker_command(|executable| {
        let mut command = Command::new("sh");
        command.args(["-c", "\"$0\" \"$@\"; exit"]).arg(executable);
        command
    }));
    let worker = cpu(pid, ()).result().unwrap();
    let wrapper = *children().first().unwrap();
    assert_ne!(worker, wrapper, "the shell is in between");
    // By its path, so that it is not the `kill` that records.
    let mut kill = Command::new("/bin/kill");
    kill.args(["-KILL", &wrapper.to_string()]).status().unwrap();
    until("the worker has gone too", || is_gone(worker));
    until("the wrapper is reaped", || is_gone(wrapper));
    assert_ne!(cpu(pid, ()).result().unwrap(), worker);
    assert_eq!(notes(&seen), [1]);
}

fn n32_children_live_on_by_default() {
    install(workers(1).calls_per_worker(1));
    let grandchild = cpu(have_a_child, ()).result().unwrap();
    until("the worker is reaped", || children().is_empty());
    assert!(!is_dead(grandchild));
    kill("KILL", &[grandchild]);
}

// ------------------------------------------------------------------------------------------ Ctrl-C

fn n36_sigint_to_the_group_ends_all() {
    assert_eq!(
        end_victim(&["idle", "spin", "sleep"], "INT").signal(),
        Some(2)
    );
}

/// Does not hear SIGINT, but its workers would.
fn deaf_victim() {
    let gate = env::var("GATE").unwrap();
    install(workers(2).worker_command(|executable| {
        let mut command = Command::new("env");
        command.arg("--default-signal=INT").arg(executable);
        command
    }));
    let calls = [cpu(stay, (gate.clone(),)), cpu(stay, (gate,))];
    let outcomes = calls.map(Unfuture::result);
    let (unharmed, harmed): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!((unharmed.len(), harmed.len()), (1, 1), "{harmed:?}");
    for outcome in harmed {
        let error = assert_kind(outcome, ErrorKind::WorkerLost);
        assert_eq!(error.worker_exit().unwrap().signal(), Some(2), "{error}");
    }
    println!("the deaf one heard it all");
}

fn n36_sigint_to_the_group_parent_decides() {
    let gate = Gate::new();
    let deaf = ["sh", "-c", "trap '' INT; exec \"$0\" \"$@\""];
    let mut victim = started_by(&deaf, &program("deaf_victim"))
        .env("GATE", gate.path())
        .spawn()
        .unwrap();
    let (unharmed, mut harmed) = (gate.guest(), gate.guest());
    for worker in [&unharmed, &harmed] {
        assert_eq!(
            group_of(worker.process),
            Some(worker.process),
            "a group of its own"
        );
    }
    kill_group("INT", victim.id());
    // SIGINT would end this worker, if it were delivered.
    kill("INT", &[harmed.process]);
    harmed.wait_for_end();
    unharmed.leave();
    assert_eq!(
        wait_within(&mut victim, PROMPT)
            .expect("the victim ends")
            .code(),
        Some(0)
    );
}

unsync::register!(
    be,
    stop_the_reader,
    have_a_child,
    have_a_child_and_die,
    have_a_child_and_stay,
    have_a_child_and_spin,
);
