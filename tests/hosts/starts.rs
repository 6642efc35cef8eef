//! What a launcher prints, delays or refuses before there is a worker.

use crate::scenario::{Gate, file, until};
use crate::*;

plays! {
    programs: []
    plain;
    banner;
    no_environment;
    shell_that_does_not_become_the_relay;
    whole_lines_only;
    exits;
    exits_with_words_on_standard_output;
    is_not_there;
    does_not_start_the_program;
    says_nothing;
    returns_what_it_gets;
    prints_without_end;
    goes_through_a_terminal;
    starts_another_build;
    starts_a_program_without_a_relay;
    fails_every_other_time;
    dead_and_hanging_hosts_beside_a_good_one;
    dead_host_alone_is_tried_again;
    eight_starts_at_a_time;
    panics;
    settings_that_make_no_sense;
    far_and_here;
}

fn plain() {
    install(only(2, PLAIN));
    let worker = cpu(pid, ()).result().unwrap();
    let is_child = scenario::children().contains(&worker);
    assert!(worker != process::id() && !is_child, "a relay is between");
    assert_works(1000);
}

/// The banner of a login shell, which ends without a newline.
fn banner() {
    install(only(
        2,
        "printf 'Welcome to far!\n\nLast login: \\001 never $ '; exec \"$@\"",
    ));
    assert_works(100);
}

fn no_environment() {
    install(only(2, "exec env -i \"$@\""));
    assert_works(100);
}

fn shell_that_does_not_become_the_relay() {
    install(only(2, "\"$@\"; exit $?"));
    assert_works(100);
    let spinning = cpu(spin, ()).run_timeout(Duration::from_millis(100));
    assert_eq!(spinning.result().unwrap_err().kind(), ErrorKind::TimedOut);
    assert_works(100);
}

/// As plain `srun` does.
fn whole_lines_only() {
    install(only(2, "\"$@\" | LC_ALL=C grep -a --line-buffered ''"));
    assert_works(100);
    for size in [0, 1, 100, 10_000, 3_000_000] {
        let bytes: Vec<u8> = (0..size).map(|n| n as u8).collect();
        assert!(cpu(echo, (bytes.clone(),)).result().unwrap() == bytes);
    }
    assert_lost(cpu(exit, (4,)).result(), &["exit status: 4"]);
}

// --------------------------------------------------------------------------------------------- refusals

fn exits() {
    install(only(2, "echo 'no such node' >&2; exit 3"));
    let error = assert_lost(
        cpu(pid, ()).result(),
        &[
            "`pid` cannot run",
            "the launcher of host `far` ended (exit status: 3)",
            "no such node",
        ],
    );
    assert_eq!(error.worker_exit(), None, "there was no worker");
}

fn exits_with_words_on_standard_output() {
    install(only(1, "echo 'Permission denied (publickey)'; exit 255"));
    let words = ["exit status: 255", "Permission denied (publickey)"];
    assert_lost(cpu(pid, ()).result(), &words);
}

fn is_not_there() {
    let config = Config::new().processes(0);
    install(config.host("far", 1, |_| Command::new("/nonexistent/launcher")));
    let error = cpu(pid, ()).result().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Os, "{error}");
    let text = error.to_string();
    assert!(
        text.contains("host `far`") && text.contains("/nonexistent/launcher"),
        "{text}"
    );
}

fn does_not_start_the_program() {
    install(only(1, "exec /nonexistent/program"));
    assert_lost(
        cpu(pid, ()).result(),
        &["exit status: 127", "/nonexistent/program"],
    );
}

fn says_nothing() {
    install(only(1, "echo waiting >&2; sleep 1000").start_timeout(Duration::from_millis(500)));
    // On a busy machine, the launcher may not come so far in that time.
    until("its words are quoted", || {
        let words = ["on host `far` was not ready within 500ms"];
        let error = assert_lost(cpu(pid, ()).result(), &words);
        error.to_string().contains("waiting")
    });
}

/// The parent must not take its own words for those of the relay.
fn returns_what_it_gets() {
    install(only(1, "exec cat").start_timeout(Duration::from_millis(500)));
    assert_lost(
        cpu(pid, ()).result(),
        &["on host `far` was not ready within 500ms"],
    );
}

fn prints_without_end() {
    install(only(1, "exec yes"));
    assert_lost(
        cpu(pid, ()).result(),
        &["it prints without end and says no hello"],
    );
}

fn goes_through_a_terminal() {
    install(only(1, "\"$@\" | sed -u 's/$/\\r/'"));
    assert_lost(
        cpu(pid, ()).result(),
        &["goes through a terminal", "ssh -T"],
    );
}

fn starts_another_build() {
    let copy = file("copy");
    fs::copy(env::current_exe().unwrap(), &copy).unwrap();
    let mut bytes = File::options().append(true).open(&copy).unwrap();
    bytes.write_all(b"x").unwrap();
    drop(bytes);
    install(only(1, &format!("shift; exec {copy} \"$@\"")));
    let size = fs::metadata(&copy).unwrap().len();
    let sizes = [format!("{size}-"), format!("not {}-", size - 1)];
    let words = ["its executable is a different build", &sizes[0], &sizes[1]];
    assert_lost(cpu(pid, ()).result(), &words);
}

fn starts_a_program_without_a_relay() {
    install(only(1, "exec true"));
    assert_lost(
        cpu(pid, ()).result(),
        &["the launcher of host `far` ended (exit status: 0)"],
    );
}

fn fails_every_other_time() {
    let turn = file("turn");
    let text = format!("mkdir {turn} 2>/dev/null && exit 1; rmdir {turn} 2>/dev/null; {PLAIN}");
    install(only(3, &text));
    assert_works(1000);
}

fn panics() {
    let config = Config::new().processes(0);
    install(config.host("far", 1, |_| panic!("no launcher")));
    let error = cpu(pid, ()).result().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Panicked, "{error}");
}

fn settings_that_make_no_sense() {
    let configs = [
        (Config::new().processes(0), "processes is 0"),
        (only(0, PLAIN), "slots of a host"),
        (only(usize::MAX, PLAIN), "slots of a host"),
        (only(1, PLAIN).host_timeout(Duration::ZERO), "host_timeout"),
    ];
    for (config, words) in configs {
        let error = config.install().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotInitialised, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    install(only(1, PLAIN));
    assert_works(1);
}

// -------------------------------------------------------------------------------------------- several hosts

fn dead_and_hanging_hosts_beside_a_good_one() {
    let config = Config::new()
        .processes(0)
        .start_timeout(Duration::from_secs(60));
    let config = config.host("dead", 4, shell("exit 255"));
    let config = config.host("hangs", 4, shell("sleep 1000"));
    install(config.host("good", 4, shell(PLAIN)));
    let started = Instant::now();
    assert_works(3000);
    // Even with few calls, the good host gets all that it has room for.
    let calls: Vec<_> = (0..4).map(|_| cpu(sleep, (3000,))).collect();
    let mut workers: Vec<u32> = calls
        .into_iter()
        .map(|call| call.result().unwrap())
        .collect();
    workers.sort_unstable();
    workers.dedup();
    assert_eq!(workers.len(), 4);
    assert!(started.elapsed() < Duration::from_secs(30));
}

fn dead_host_alone_is_tried_again() {
    let revived = file("revived");
    install(only(1, &format!("test -e {revived} || exit 255; {PLAIN}")));
    let started = Instant::now();
    for _ in 0..3 {
        assert_lost(cpu(pid, ()).result(), &["exit status: 255"]);
    }
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
    File::create(revived).unwrap();
    until("it is tried again", || cpu(pid, ()).result().is_ok());
}

fn eight_starts_at_a_time() {
    let starts = file("starts");
    let goes = file("goes");
    let text = format!("echo >> {starts}; while ! test -e {goes}; do sleep 0.05; done; {PLAIN}");
    install(only(12, &text));
    let calls: Vec<_> = (0..100).map(|n| cpu(add, (n, n))).collect();
    let count = || {
        fs::read_to_string(&starts)
            .unwrap_or_default()
            .lines()
            .count()
    };
    until("eight are started", || count() >= 8);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(count(), 8);
    File::create(goes).unwrap();
    for call in calls {
        call.result().unwrap();
    }
}

/// Calls run here first.
fn far_and_here() {
    let config = Config::new().processes(1);
    install(config.host("far", 1, shell(PLAIN)));
    let here = cpu(pid, ()).result().unwrap();
    assert!(scenario::children().contains(&here));
    let gate = Gate::new();
    let calls: Vec<_> = (0..2).map(|_| cpu(stay, (gate.path(),))).collect();
    // Both run at the same time, however long the far one takes to start.
    let workers = [gate.guest(), gate.guest()].map(|guest| guest.process);
    let is_here = |worker: &&u32| scenario::children().contains(worker);
    assert_eq!(workers.iter().filter(is_here).count(), 1, "{workers:?}");
    calls.into_iter().for_each(|call| drop(call.result()));
}
