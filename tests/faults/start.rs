//! Workers that do not start: because of the executable, the system, the settings, or the program.
//!
//! Not over a relay: the launcher decides which file it runs, and where. See `tests/hosts`.

use std::env;
use std::error::Error as _;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use unsync::{ErrorKind, cpu};

use crate::scenario::{
    Gate, SOON, children, file, is_gone, kill, program, program_at, threads, until, wait_within,
    worker_after,
};
use crate::*;

scenarios! {
    without_relay
    programs: [
        delete_itself, delete_itself_under_a_wrapper, replace_itself, replace_itself_under_a_wrapper,
        run_out_of_processes, have_no_proc, leave_no_thread_to_workers, shut_down_in_a_pause,
    ]
    n39_exe_deleted;
    n39_exe_deleted_under_a_wrapper;
    n40_exe_replaced;
    n40_exe_replaced_under_a_wrapper;
    n41_exe_missing_override;
    n41_exe_not_executable;
    n41_exe_of_no_known_format;
    n41_exe_missing_for_a_while;
    exe_without_proc;
    n42_cwd_missing;
    n42_cwd_of_the_parent_deleted;
    n43_eagain_backoff;
    n44_emfile_backoff in "ulimit -n 64";
    a_worker_that_could_not_be_started_is_tried_again_beside_a_long_call;
    n44_emfile_for_good in "ulimit -n 64";
    n44_emfile_waits_for_the_living in "ulimit -n 64";
    n44_emfile_at_every_step in "ulimit -n 64";
    n43_worker_that_gets_no_thread_for_its_calls;
    n43_worker_that_gets_no_thread_for_its_link;
    n43_worker_that_gets_no_thread_waits_for_the_living;
    n43_worker_of_a_user_who_may_have_no_thread;
    n47_nested_cpu_runs_in_the_same_process;
    worker_that_ends_unheard_is_told_with_a_hint;
    worker_that_was_heard_is_told_without_a_hint;
    worker_that_a_shell_cannot_start_is_told_without_a_hint;
    worker_that_a_signal_ends_at_its_start_is_told_without_a_hint;
    n48_crash_loop_cap;
    n48_crash_loop_waits_for_the_living;
    n48_starts_become_rare_beside_a_worker_that_is_well;
    n48_refused_starts_become_rare_beside_a_worker_that_is_well;
    n48_starts_become_rare_without_any_worker;
    n48_a_start_that_works_ends_the_pauses;
    n48_calls_of_a_worker_that_was_well_are_tried_again;
    n48_pause_does_not_delay_the_shutdown;
    n50_never_connects_timeout;
    n50_never_connects_shutdown;
    warm_starts_all_workers_and_no_more;
    worker_command_decides_on_environment_and_directory;
    worker_command_panics;
    worker_under_a_long_temporary_path
        in "TMPDIR=$UNSYNC_TEST_HOME/$(printf '%0100d' 0); mkdir $TMPDIR";
    stack_is_as_large_as_it_was_asked_for;
}

// ---------------------------------------------------------------------------------- the executable

/// Runs a program from a copy of this executable, with which it may do what it likes.
fn run_copy(play: &str) {
    let copy = file("copy");
    fs::copy(env::current_exe().unwrap(), &copy).unwrap();
    let mut program = program_at(Path::new(&copy), play).spawn().unwrap();
    let status = wait_within(&mut program, SOON).expect("the program ends");
    assert!(status.success(), "{status}");
}

/// Checks that a worker can be started, and then another one.
fn use_two_workers() {
    let worker = cpu(pid, ()).result().unwrap();
    kill("KILL", &[worker]);
    assert_ne!(cpu(pid, ()).result().unwrap(), worker);
}

fn delete_itself() {
    fs::remove_file(env::current_exe().unwrap()).unwrap();
    install(workers(1));
    use_two_workers();
}

/// The path that a wrapper is given has to refer to the same executable too.
fn delete_itself_under_a_wrapper() {
    fs::remove_file(env::current_exe().unwrap()).unwrap();
    install(workers(1).worker_command(|executable| worker_after("", executable)));
    use_two_workers();
}

fn n39_exe_deleted() {
    run_copy("delete_itself");
    assert!(!Path::new(&file("copy")).exists());
}

fn n39_exe_deleted_under_a_wrapper() {
    run_copy("delete_itself_under_a_wrapper");
}

fn put_another_in_its_place() {
    let other = file("other");
    fs::write(&other, "#!/bin/sh\nexit 77\n").unwrap();
    fs::set_permissions(&other, PermissionsExt::from_mode(0o755)).unwrap();
    fs::rename(other, env::current_exe().unwrap()).unwrap();
}

fn replace_itself() {
    put_another_in_its_place();
    install(workers(1));
    use_two_workers();
}

fn replace_itself_under_a_wrapper() {
    put_another_in_its_place();
    install(workers(1).worker_command(|executable| worker_after("", executable)));
    use_two_workers();
}

fn n40_exe_replaced() {
    run_copy("replace_itself");
    assert_eq!(
        fs::read_to_string(file("copy")).unwrap(),
        "#!/bin/sh\nexit 77\n"
    );
}

fn n40_exe_replaced_under_a_wrapper() {
    run_copy("replace_itself_under_a_wrapper");
}

/// Checks that all calls, earlier and later ones, fail soon and for this reason.
fn assert_no_worker(kind: io::ErrorKind, missing: &str) {
    let started = Instant::now();
    for _ in 0..2 {
        let calls: Vec<_> = (0..10).map(|_| cpu(pid, ())).collect();
        for call in calls {
            let error = assert_kind(call.result(), ErrorKind::Os);
            let says = ["`pid`", missing, "started at tests/faults/start.rs:"];
            assert_says(&error, &says);
            let source = error.source().expect("what the system said");
            let source = source
                .downcast_ref::<io::Error>()
                .expect("what the system said");
            assert_eq!(source.kind(), kind, "{error}");
        }
    }
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
}

fn n41_exe_missing_override() {
    install(workers(2).worker_command(|_| Command::new("/no/such/worker")));
    assert_no_worker(io::ErrorKind::NotFound, "`/no/such/worker`");
}

fn n41_exe_not_executable() {
    let path = file("worker");
    fs::write(&path, "#!/bin/sh\n").unwrap();
    let given = path.clone();
    install(workers(2).worker_command(move |_| Command::new(&given)));
    assert_no_worker(io::ErrorKind::PermissionDenied, &path);
}

fn n41_exe_of_no_known_format() {
    let path = file("worker");
    fs::write(&path, [0; 100]).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    install(workers(2).worker_command(move |_| Command::new(&path)));
    let error = assert_kind(cpu(pid, ()).result(), ErrorKind::Os);
    let source = error.source().unwrap().downcast_ref::<io::Error>().unwrap();
    assert_eq!(source.raw_os_error(), Some(8), "{error}");
}

fn n41_exe_missing_for_a_while() {
    let path = file("worker");
    let given = path.clone();
    install(workers(2).worker_command(move |_| Command::new(&given)));
    assert_no_worker(io::ErrorKind::NotFound, &path);
    std::os::unix::fs::symlink(env::current_exe().unwrap(), path).unwrap();
    let calls: Vec<_> = (0..10).map(|_| cpu(pid, ())).collect();
    for call in calls {
        call.result().unwrap();
    }
}

fn have_no_proc() {
    install(workers(1));
    assert_no_worker(io::ErrorKind::NotFound, "`/proc/self/exe`");
    println!("no proc, and no worker");
}

fn exe_without_proc() {
    let shell = r#"umount -l /proc && exec "$0" "$@""#;
    let program = program_at(&env::current_exe().unwrap(), "have_no_proc");
    let mut program = started_by(&["unshare", "-m", "sh", "-c", shell], &program);
    let output = program.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("not permitted") || said.contains("must be superuser") {
        println!("not root: nothing is tested");
        return;
    }
    assert!(output.status.success(), "{said}");
}

fn n42_cwd_missing() {
    install(workers(2).worker_command(|executable| {
        let mut command = Command::new(executable);
        command.current_dir("/no/such/directory");
        command
    }));
    assert_no_worker(io::ErrorKind::NotFound, "`/no/such/directory`");
}

fn n42_cwd_of_the_parent_deleted() {
    let directory = file("directory");
    fs::create_dir(&directory).unwrap();
    env::set_current_dir(&directory).unwrap();
    fs::remove_dir(&directory).unwrap();
    install(workers(1));
    cpu(pid, ()).result().unwrap();
}

// ------------------------------------------------------------------------------------- the system

/// Threads that do nothing but count towards the limit.
struct Crowd(Vec<(Sender<()>, thread::JoinHandle<()>)>);

impl Crowd {
    /// As many as the system allows.
    fn gather() -> Crowd {
        let mut crowd = Vec::new();
        loop {
            let (stay, left) = mpsc::channel::<()>();
            let thread = thread::Builder::new().stack_size(64 << 10).spawn(move || {
                let _ = left.recv();
            });
            match thread {
                Ok(thread) => crowd.push((stay, thread)),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
                    return Crowd(crowd);
                }
            }
        }
    }

    fn disperse(&mut self, number: usize) {
        for (stay, thread) in self.0.drain(..number) {
            drop(stay);
            thread.join().unwrap();
        }
    }

    fn disperse_all(mut self) {
        self.disperse(self.0.len());
    }
}

/// Runs as a user that may have few processes, threads included.
fn run_out_of_processes() {
    install(workers(2));
    let before = threads().len();
    // Not even the thread of a reader can be started.
    let crowd = Crowd::gather();
    let error = assert_kind(cpu(pid, ()).result(), ErrorKind::Os);
    assert_says(&error, &["`pid`", "started at tests/faults/start.rs:"]);
    crowd.disperse_all();

    // There is a worker, and a second one cannot be started: the calls wait for the first.
    let gate = Gate::new();
    let running = cpu(stay, (gate.path(),));
    let guest = gate.guest();
    let crowd = Crowd::gather();
    let queued: Vec<_> = (0..10).map(|_| cpu(pid, ())).collect();
    assert!(!running.is_done() && !queued.iter().any(Unfuture::is_done));
    let worker = guest.process;
    guest.leave();
    running.result().unwrap();
    for call in queued {
        assert_eq!(call.result().unwrap(), worker);
    }
    assert_kind(cpu(abort, ()).result(), ErrorKind::WorkerLost);
    until("the worker's threads have gone", || {
        threads().len() == crowd.0.len() + before
    });
    crowd.disperse_all();

    // The reader gets its thread, but no process. It tries again.
    let mut crowd = Crowd::gather();
    crowd.disperse(1);
    let call = loop {
        let call = cpu(pid, ());
        if !call.is_done() {
            break call;
        }
        // A thread that has ended may count for a moment longer.
        assert_kind(call.result(), ErrorKind::Os);
        thread::yield_now();
    };
    crowd.disperse_all();
    call.result().unwrap();
    unsync::shutdown(SOON).unwrap();
    println!("out of processes, and in again");
}

/// Runs a program as a user that does not exist, under these additional limits: root may have any number of
/// processes, and any other user has some already. This requires root.
fn as_nobody(play: &str, limits: &[&str]) {
    let identity = Command::new("id").arg("-u").output().unwrap().stdout;
    if identity != b"0\n" {
        println!("not root: nothing is tested");
        return;
    }
    let (room, executable) = (file("room"), file("room/test"));
    fs::create_dir(&room).unwrap();
    for directory in [room.as_str(), &file("")] {
        fs::set_permissions(directory, PermissionsExt::from_mode(0o777)).unwrap();
    }
    fs::copy(env::current_exe().unwrap(), &executable).unwrap();
    let program = program_at(Path::new(&executable), play);
    let nobody = (100_000 + process::id()).to_string();
    let identity = [
        "setpriv",
        "--reuid",
        &nobody,
        "--regid",
        &nobody,
        "--clear-groups",
    ];
    let limited = [&identity[..], limits].concat();
    let mut program = started_by(&limited, &program);
    let mut program = program.env("TMPDIR", &room).spawn().unwrap();
    let status = wait_within(&mut program, SOON).expect("the program ends");
    assert!(status.success(), "{status}");
    fs::remove_file(executable).unwrap();
    assert_eq!(fs::read_dir(room).unwrap().count(), 0);
}

fn n43_eagain_backoff() {
    as_nobody("run_out_of_processes", &["prlimit", "--nproc=60"]);
}

/// Workers that have no room for a thread with a large stack, until a file exists.
fn cramped(config: Config, variable: &str) -> (Config, String) {
    let (over, variable) = (file("over"), variable.to_owned());
    let shell = format!("[ -e {over} ] || {{ ulimit -v 2000000; export {variable}; }}");
    let command = move |executable: &Path| worker_after(&shell, executable);
    (config.worker_command(command), over)
}

/// Checks that no call runs, and that each reports the system's error: no thread could be started.
fn assert_no_thread() {
    let (started, proof) = (Instant::now(), file("proof"));
    let calls: Vec<_> = (0..10).map(|n| cpu(note, (proof.clone(), n))).collect();
    for call in calls {
        let error = assert_kind(call.result(), ErrorKind::Os);
        let says = [
            "`note` cannot run: no thread could be started in a worker process",
            "started at tests/faults/start.rs:",
        ];
        assert_says(&error, &says);
        let source = error.source().unwrap().downcast_ref::<io::Error>().unwrap();
        // EAGAIN, or ENOMEM.
        assert!(matches!(source.raw_os_error(), Some(11 | 12)), "{source:?}");
    }
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    assert_eq!(notes(&proof), [], "nothing has run");
    assert!(unsync::drain(SOON));
}

fn n43_worker_that_gets_no_thread_for_its_calls() {
    // This process has room for such a stack.
    let (config, over) = cramped(workers(2).stack_size(4 << 30), "NOTHING=");
    install(config);
    assert_no_thread();
    File::create(over).unwrap();
    cpu(pid, ()).result().unwrap();
}

/// The thread that reads the link has std's default stack size.
fn n43_worker_that_gets_no_thread_for_its_link() {
    let (config, over) = cramped(workers(2), "RUST_MIN_STACK=4294967296");
    install(config);
    assert_no_thread();
    File::create(over).unwrap();
    cpu(pid, ()).result().unwrap();
}

fn n43_worker_that_gets_no_thread_waits_for_the_living() {
    let (config, over) = cramped(workers(2).stack_size(4 << 30), "NOTHING=");
    File::create(&over).unwrap();
    install(config);
    let gate = Gate::new();
    let running = cpu(stay, (gate.path(),));
    let guest = gate.guest();
    fs::remove_file(over).unwrap();
    let proof = file("proof");
    let queued: Vec<_> = (0..5).map(|n| cpu(note, (proof.clone(), n))).collect();
    let second = |seen: &mut Option<u32>| {
        let children = children().into_iter();
        *seen = children.into_iter().find(|child| *child != guest.process);
        seen.is_some()
    };
    let mut seen = None;
    until("a second worker was tried", || second(&mut seen));
    until("it has ended", || is_gone(seen.unwrap()));
    assert!(!queued.iter().any(Unfuture::is_done));
    let worker = guest.process;
    guest.leave();
    running.result().unwrap();
    for call in queued {
        assert_eq!(call.result().unwrap(), worker);
    }
    // One more worker may have been tried, and had the first of them until it was refused.
    let mut proofs = notes(&proof);
    proofs.sort();
    assert_eq!(proofs, [0, 1, 2, 3, 4]);
}

/// Runs as a user other than root, whose workers may have no process but themselves, threads included.
fn leave_no_thread_to_workers() {
    install(workers(1).worker_command(|executable| {
        let mut command = Command::new("prlimit");
        command.arg("--nproc=1").arg(executable);
        command
    }));
    for _ in 0..2 {
        let error = assert_kind(cpu(pid, ()).result(), ErrorKind::Os);
        assert_says(
            &error,
            &["`pid` cannot run: no thread could be started in a worker process"],
        );
    }
    unsync::shutdown(SOON).unwrap();
    println!("no thread at all");
}

fn n43_worker_of_a_user_who_may_have_no_thread() {
    as_nobody("leave_no_thread_to_workers", &[]);
}

/// All descriptors that this process can open.
fn hoard() -> Vec<File> {
    let mut files = Vec::new();
    loop {
        match File::open("/dev/null") {
            Ok(file) => files.push(file),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(24), "{error}");
                return files;
            }
        }
    }
}

fn n44_emfile_backoff() {
    static FILES: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let tries = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&tries);
    install(workers(1).worker_command(move |executable| {
        // The first start fails, and the second one does not.
        if counter.fetch_add(1, Ordering::Relaxed) == 1 {
            FILES.lock().unwrap().clear();
        }
        Command::new(executable)
    }));
    *FILES.lock().unwrap() = hoard();
    cpu(pid, ()).result().unwrap();
    assert!(tries.load(Ordering::Relaxed) >= 2, "it had no trouble");
}

/// The call that waits behind the long one has no other event to wait for.
fn a_worker_that_could_not_be_started_is_tried_again_beside_a_long_call() {
    static STARTED: AtomicU32 = AtomicU32::new(0);
    install(workers(2).worker_command(
        |executable| match STARTED.fetch_add(1, Ordering::Relaxed) {
            1 => Command::new("/no/such/worker"),
            _ => Command::new(executable),
        },
    ));
    let gate = Gate::new();
    let long = cpu(stay, (gate.path(),));
    let guest = gate.guest();
    let queued = cpu(pid, ());
    assert!(queued.wait_timeout(SOON), "it waits for the long one");
    assert_ne!(queued.result().unwrap(), guest.process);
    assert_eq!(STARTED.load(Ordering::Relaxed), 3);
    guest.leave();
    long.result().unwrap();
}

fn n44_emfile_for_good() {
    install(workers(2));
    let files = hoard();
    let calls: Vec<_> = (0..10).map(|_| cpu(pid, ())).collect();
    for call in calls {
        let error = assert_kind(call.result(), ErrorKind::Os);
        assert_says(&error, &["`pid`", "started at tests/faults/start.rs:"]);
        let source = error.source().unwrap().downcast_ref::<io::Error>().unwrap();
        assert_eq!(source.raw_os_error(), Some(24), "{error}");
    }
    drop(files);
    cpu(pid, ()).result().unwrap();
}

fn n44_emfile_waits_for_the_living() {
    install(workers(2));
    let gate = Gate::new();
    let running = cpu(stay, (gate.path(),));
    let guest = gate.guest();
    let files = hoard();
    let queued: Vec<_> = (0..10).map(|_| cpu(pid, ())).collect();
    let worker = guest.process;
    guest.leave();
    running.result().unwrap();
    for call in queued {
        assert_eq!(call.result().unwrap(), worker);
    }
    drop(files);
}

/// However few descriptors there are, a call runs or says why not, and nothing leaks.
fn n44_emfile_at_every_step() {
    install(workers(1));
    for free in [1, 3, 5, 6, 7, 8] {
        let mut files = hoard();
        files.truncate(files.len() - free);
        match cpu(pid, ()).result() {
            Ok(worker) => {
                println!("{free} descriptors are enough");
                kill("KILL", &[worker]);
                until("the worker is reaped", || is_gone(worker));
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Os, "{error}");
                println!("{free} descriptors are not enough: {error}");
            }
        }
    }
    cpu(pid, ()).result().unwrap();
}

// ------------------------------------------------------------------------------------ the program

/// Calls itself, in a worker; returns the processes on the way down.
fn nest(depth: u32) -> Vec<u32> {
    let mut processes = vec![process::id()];
    if depth > 0 {
        unsync::warm();
        processes.extend(cpu(nest, (depth - 1,)).result().unwrap());
    }
    processes
}

fn nest_and_panic() -> String {
    cpu(panic_at_last, ()).result().unwrap_err().to_string()
}

fn panic_at_last() {
    panic!("at last");
}

fn nest_and_abort() {
    cpu(abort, ()).result().unwrap();
}

fn abort() {
    process::abort();
}

fn n47_nested_cpu_runs_in_the_same_process() {
    install(workers(2));
    let processes = cpu(nest, (20,)).result().unwrap();
    assert_eq!(processes, vec![processes[0]; 21]);
    assert_eq!(children().into_iter().collect::<Vec<_>>(), [processes[0]]);
    let text = cpu(nest_and_panic, ()).result().unwrap();
    assert!(text.contains("panic") && text.contains("at last"), "{text}");
    let error = assert_kind(cpu(nest_and_abort, ()).result(), ErrorKind::WorkerLost);
    assert_says(&error, &["`nest_and_abort`", "SIGABRT"]);
}

// ------------------------------------------------------------------------------------ crash loops

/// Workers that end at once, until the second file says that the trouble is over. The first file counts the
/// started workers.
fn trouble() -> (Config, String, String) {
    let (starts, over) = (file("starts"), file("over"));
    let shell = format!("echo 1 >> {starts}; [ -e {over} ] || {{ echo boom >&2; exit 7; }}");
    let config = workers(2).worker_command(move |executable| worker_after(&shell, executable));
    (config, starts, over)
}

fn told_after(shell: &'static str) -> Error {
    install(workers(1).worker_command(move |executable| worker_after(shell, executable)));
    let error = assert_kind(cpu(pid, ()).result(), ErrorKind::WorkerLost);
    assert_says(&error, &["`pid` cannot run: "]);
    error
}

fn worker_that_ends_unheard_is_told_with_a_hint() {
    let error = told_after("echo boom >&2; exit 7");
    let hint = "`pid` cannot run: can this test binary run the test of `unsync::test_worker!()`?";
    assert_says(&error, &[hint, "exit status: 7", "boom"]);
}

fn worker_that_was_heard_is_told_without_a_hint() {
    let error = told_after("head -c 1 >/dev/null");
    assert_says(
        &error,
        &["exit status: 1", "unsync: this is a worker process"],
    );
    assert!(!error.to_string().contains('?'), "{error}");
}

fn worker_that_a_shell_cannot_start_is_told_without_a_hint() {
    let error = told_after("exec /no/such/worker");
    assert_says(&error, &["exit status: 127", "/no/such/worker"]);
    assert!(!error.to_string().contains('?'), "{error}");
}

/// As under a memory limit that is too small for a start.
fn worker_that_a_signal_ends_at_its_start_is_told_without_a_hint() {
    let error = told_after("kill -SEGV $$");
    assert_says(&error, &["ended before it was ready", "SIGSEGV"]);
    assert!(!error.to_string().contains('?'), "{error}");
}

fn n48_crash_loop_cap() {
    let (config, starts, over) = trouble();
    install(config);
    let calls: Vec<_> = (0..10).map(|_| cpu(pid, ())).collect();
    for call in calls {
        let error = assert_kind(call.result(), ErrorKind::WorkerLost);
        assert_eq!(error.worker_exit().unwrap().code(), Some(7));
        let hints = ["`pid`", "exit status: 7", "boom"];
        assert_says(&error, &hints);
        assert_says(&error, &["started at tests/faults/start.rs:"]);
    }
    assert!(unsync::drain(SOON));
    let started = notes(&starts).len();
    println!("{started} workers were started");
    assert!(started <= 12, "{started}");
    File::create(over).unwrap();
    cpu(pid, ()).result().unwrap();
}

/// As long as there is a worker, calls wait for it rather than fail.
fn n48_crash_loop_waits_for_the_living() {
    let (config, starts, over) = trouble();
    File::create(&over).unwrap();
    install(config);
    let gate = Gate::new();
    let running = cpu(stay, (gate.path(),));
    let guest = gate.guest();
    fs::remove_file(over).unwrap();
    let queued: Vec<_> = (0..10).map(|_| cpu(pid, ())).collect();
    until("a second worker was tried", || notes(&starts).len() >= 4);
    assert!(!queued.iter().any(Unfuture::is_done));
    let worker = guest.process;
    guest.leave();
    running.result().unwrap();
    for call in queued {
        assert_eq!(call.result().unwrap(), worker);
    }
    let started = notes(&starts).len();
    println!("{started} workers were started");
    assert!(started <= 40, "{started}");
}

/// Makes quick calls for this long, a few at a time and at least once, while one worker is well.
fn keep_busy(time: Duration) {
    let begun = Instant::now();
    loop {
        let calls: Vec<_> = (0..8).map(|_| cpu(pid, ())).collect();
        for call in calls {
            call.result().expect("one worker is well");
        }
        if begun.elapsed() >= time {
            return;
        }
    }
}

/// The first worker is well, and each later start fails.
fn starts_become_rare(further: fn() -> Command) {
    static STARTS: AtomicU32 = AtomicU32::new(0);
    install(workers(3).worker_command(
        move |executable| match STARTS.fetch_add(1, Ordering::Relaxed) {
            0 => Command::new(executable),
            _ => further(),
        },
    ));
    let well = cpu(pid, ()).result().unwrap();
    until("a further one is tried", || {
        keep_busy(Duration::ZERO);
        STARTS.load(Ordering::Relaxed) >= 2
    });
    keep_busy(Duration::from_secs(2));
    let before = STARTS.load(Ordering::Relaxed);
    keep_busy(Duration::from_secs(4));
    let after = STARTS.load(Ordering::Relaxed);
    println!("{before} starts in two seconds, {after} in six");
    assert!(before <= 16, "{before} starts in two seconds");
    assert!(
        after - before <= 4,
        "{} starts in four seconds",
        after - before
    );
    // The last worker that was tried may not have ended yet.
    until("only the one that is well is left", || {
        children().into_iter().eq([well])
    });
}

fn n48_starts_become_rare_beside_a_worker_that_is_well() {
    starts_become_rare(|| Command::new("false"));
}

fn n48_refused_starts_become_rare_beside_a_worker_that_is_well() {
    starts_become_rare(refused);
}

/// Calls fail one after the other, and so do starts, but there are fewer starts than calls.
fn n48_starts_become_rare_without_any_worker() {
    let (config, starts, over) = trouble();
    install(config);
    let begun = Instant::now();
    let mut failed = 0;
    while begun.elapsed() < Duration::from_secs(4) {
        assert_kind(cpu(pid, ()).result(), ErrorKind::WorkerLost);
        failed += 1;
    }
    let started = notes(&starts).len();
    println!("{failed} calls failed, for which {started} workers were started");
    assert!(started <= 16, "{started}");
    File::create(over).unwrap();
    cpu(pid, ()).result().unwrap();
}

/// Once the trouble is over, there are as many workers as before, as soon as before.
fn n48_a_start_that_works_ends_the_pauses() {
    let (config, starts, over) = trouble();
    File::create(&over).unwrap();
    install(config);
    let gate = Gate::new();
    let running = cpu(stay, (gate.path(),));
    let guest = gate.guest();
    fs::remove_file(&over).unwrap();
    let queued = cpu(pid, ());
    until("some starts have failed", || notes(&starts).len() >= 5);
    File::create(&over).unwrap();
    assert_ne!(queued.result().unwrap(), guest.process);
    let started = notes(&starts).len();
    // Each worker dies with the call that it runs, which says nothing about starts.
    for _ in 0..10 {
        assert_kind(cpu(abort, ()).result(), ErrorKind::WorkerLost);
    }
    assert!(notes(&starts).len() <= started + 10);
    // The series of failures begins anew: the first pauses are short.
    fs::remove_file(&over).unwrap();
    let queued = cpu(pid, ());
    let begun = Instant::now();
    until("further starts have failed", || {
        notes(&starts).len() >= started + 13
    });
    println!("three starts within {:?}", begun.elapsed());
    File::create(&over).unwrap();
    queued.result().unwrap();
    guest.leave();
    running.result().unwrap();
}

fn refused() -> Command {
    let mut too_large = Command::new("true");
    too_large.env("TOO_LARGE", "x".repeat(3 << 20));
    too_large
}

/// Calls that have waited for a worker that was well are not given up because other starts failed.
fn n48_calls_of_a_worker_that_was_well_are_tried_again() {
    static STARTS: AtomicU32 = AtomicU32::new(0);
    static FIRST_GOOD: AtomicU32 = AtomicU32::new(u32::MAX);
    install(workers(2).worker_command(|executable| {
        let start = STARTS.fetch_add(1, Ordering::SeqCst);
        match start == 0 || start >= FIRST_GOOD.load(Ordering::SeqCst) {
            true => Command::new(executable),
            false => refused(),
        }
    }));
    let gate = Gate::new();
    let running = cpu(stay, (gate.path(),));
    let guest = gate.guest();
    let queued = cpu(pid, ());
    until("many starts have failed", || {
        STARTS.load(Ordering::SeqCst) >= 9
    });
    // A start works after some more failures. Set before the series of failures begins anew.
    FIRST_GOOD.store(STARTS.load(Ordering::SeqCst) + 3, Ordering::SeqCst);
    kill("KILL", &[guest.process]);
    assert_kind(running.result(), ErrorKind::WorkerLost);
    assert_ne!(queued.result().unwrap(), guest.process);
}

/// A machine that stands still for a moment delays it too.
fn n48_pause_does_not_delay_the_shutdown() {
    let is_quick = || program("shut_down_in_a_pause").status().unwrap().success();
    assert!((0..3).any(|_| is_quick()));
}

/// After a long series of failures the next start is some seconds away.
fn shut_down_in_a_pause() {
    let (config, starts, _) = trouble();
    install(config);
    // Three tries for the first call, and one for each of the others.
    for _ in 0..6 {
        assert_kind(cpu(pid, ()).result(), ErrorKind::WorkerLost);
    }
    let (queued, before) = (cpu(pid, ()), notes(&starts).len());
    let asked = Instant::now();
    shut_down(Duration::from_millis(400));
    let took = asked.elapsed();
    println!("shut down after {took:?}");
    // The pause is longer than this.
    assert!(took < Duration::from_millis(2_500), "{took:?}");
    assert_kind(queued.result(), ErrorKind::ShutDown);
    assert_eq!(
        notes(&starts).len(),
        before,
        "and nothing was started for it"
    );
}

fn hang(executable: &Path) -> Command {
    let mut command = worker_after("echo stuck >&2; exec sleep 600", executable);
    command.stdout(Stdio::null());
    command
}

fn n50_never_connects_timeout() {
    let limit = Duration::from_millis(300);
    install(workers(1).start_timeout(limit).worker_command(hang));
    let started = Instant::now();
    let calls: Vec<_> = (0..3).map(|_| cpu(pid, ())).collect();
    for call in calls {
        let error = assert_kind(call.result(), ErrorKind::WorkerLost);
        assert_says(
            &error,
            &["`pid`", "300ms", "started at tests/faults/start.rs:"],
        );
    }
    let took = started.elapsed();
    assert!(
        took >= limit && took < limit + Duration::from_secs(10),
        "{took:?}"
    );
    // On a busy machine, a worker may not come so far in that time.
    until("what a worker printed is quoted", || {
        let error = assert_kind(cpu(pid, ()).result(), ErrorKind::WorkerLost);
        error.to_string().contains("stuck")
    });
    until("the hanging worker is reaped", || children().is_empty());
}

fn n50_never_connects_shutdown() {
    install(
        workers(1)
            .start_timeout(Duration::from_secs(3600))
            .worker_command(hang),
    );
    let call = cpu(pid, ());
    until("the worker is there", || !children().is_empty());
    shut_down(Duration::from_millis(500));
    assert!(children().is_empty());
    assert_kind(call.result(), ErrorKind::ShutDown);
}

// -------------------------------------------------------------------------------------- set-up

fn warm_starts_all_workers_and_no_more() {
    install(workers(3));
    unsync::warm();
    until("three workers are there", || children().len() == 3);
    unsync::warm();
    let started = children();
    let used = idle_workers(3);
    assert!(used.iter().all(|worker| started.contains(worker)));
    assert_eq!(children(), started);
}

fn surroundings() -> (Option<String>, Option<String>, String) {
    let directory = env::current_dir().unwrap().to_string_lossy().into_owned();
    (env::var("ADDED").ok(), env::var("TMPDIR").ok(), directory)
}

fn worker_command_decides_on_environment_and_directory() {
    let directory = file("directory");
    fs::create_dir(&directory).unwrap();
    let inside = directory.clone();
    install(workers(1).worker_command(move |executable| {
        let mut command = Command::new(executable);
        command
            .env("ADDED", "there")
            .env_remove("TMPDIR")
            .current_dir(&inside);
        command
    }));
    let seen = cpu(surroundings, ()).result().unwrap();
    assert_eq!(seen, (Some("there".to_owned()), None, directory));
}

fn worker_command_panics() {
    install(workers(2).worker_command(|_| panic!("no command today")));
    for _ in 0..3 {
        let calls = [cpu(pid, ()), cpu(pid, ())];
        for call in calls {
            let error = assert_kind(call.result(), ErrorKind::Panicked);
            assert!(error.to_string().contains("no command today"), "{error}");
        }
    }
    assert!(unsync::drain(SOON));
}

/// Too long for the address of a socket: the link goes over TCP.
fn worker_under_a_long_temporary_path() {
    assert!(env::temp_dir().as_os_str().len() > 108);
    install(workers(1));
    cpu(pid, ()).result().unwrap();
}

/// Uses this many KiB of stack.
fn dig(depth: u32) -> u32 {
    let ground = std::hint::black_box([depth as u8; 1024]);
    if depth == 0 {
        0
    } else {
        u32::from(ground[7] == depth as u8) + dig(depth - 1)
    }
}

fn stack_is_as_large_as_it_was_asked_for() {
    install(workers(1).stack_size(64 << 20));
    // The frames of a debug build are larger than their contents.
    assert_eq!(cpu(dig, (20 << 10,)).result().unwrap(), 20 << 10);
    // The thread that decodes the result has such a stack too.
    assert_eq!(cpu(array, (7,)).result().unwrap()[ARRAY - 1], 7);
}

const ARRAY: usize = 3 << 20;

/// The array is on the stack while it is decoded.
fn array(item: u8) -> Box<[u8; ARRAY]> {
    vec![item; ARRAY].into_boxed_slice().try_into().unwrap()
}

unsync::register!(
    array,
    nest,
    nest_and_panic,
    panic_at_last,
    nest_and_abort,
    abort,
    surroundings,
    dig,
);
