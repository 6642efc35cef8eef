//! The same through real launchers: `ssh`, to a server of our own on this machine, where `sshd` is installed; and
//! `srun`, where that reaches a cluster. Without them the tests do nothing, and say so.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;

use crate::scenario::{file, is_dead, signal, until};
use crate::*;

plays! {
    programs: []
    over_ssh;
    over_ssh_without_the_key;
    over_srun;
}

/// Checks that two workers behind a launcher do all that others do.
fn do_all(launcher: impl Fn(&Path) -> Command + Send + Sync + 'static) {
    let others = scenario::children();
    let config = Config::new().processes(0).host("real", 2, launcher);
    install(config);
    assert_works(1000);
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
    assert!(cpu(echo, (bytes.clone(),)).result().unwrap() == bytes);
    let error = assert_lost(
        cpu(exit, (3,)).result(),
        &["on host `real`", "exit status: 3"],
    );
    assert_eq!(error.worker_exit().unwrap().code(), Some(3));
    let worker = cpu(pid, ()).result().unwrap();
    signal("KILL", worker);
    assert_works(100);
    let deadline = cpu(spin, ()).run_timeout(Duration::from_millis(100));
    let error = deadline.result().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert_eq!(error.worker_exit().unwrap().signal(), Some(9));
    cpu(print, ("from afar;".into(),)).result().unwrap();
    until("it is passed on", || output().contains("err from afar;"));
    // The launcher dies with a call that runs, and the other side finds out.
    let marks = file("marks");
    let calls: Vec<_> = (0..2)
        .map(|n| cpu(mark, (marks.clone(), n, 60_000)))
        .collect();
    let workers = || {
        let marks = fs::read_to_string(&marks).unwrap_or_default();
        let workers = marks
            .lines()
            .map(|line| line.split_once(' ').unwrap().1.parse().unwrap());
        workers.collect::<Vec<u32>>()
    };
    until("both run", || workers().len() == 2);
    let launchers = scenario::children();
    for launcher in launchers.iter().filter(|process| !others.contains(process)) {
        signal("KILL", *launcher);
    }
    for call in calls {
        assert_lost(call.result(), &["its launcher ended (signal: 9"]);
    }
    until("the workers end", || workers().into_iter().all(is_dead));
    assert_works(100);
}

// ----------------------------------------------------------------------------------------------------- ssh

const SSHD: &str = "/usr/sbin/sshd";

/// A server with keys of its own, which touches nothing outside the home of the scenario.
struct Server {
    sshd: Child,
    config: String,
}

impl Server {
    fn start() -> Option<Server> {
        if !Path::new(SSHD).exists() {
            println!("there is no {SSHD}");
            return None;
        }
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        for key in ["host", "key"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f", &file(key)]);
            assert!(keygen.status().unwrap().success());
        }
        let [home, host, key, known, authorized] =
            ["", "host", "key", "known", "key.pub"].map(file);
        let mut permissions = fs::metadata(&home).unwrap().permissions();
        permissions.set_mode(0o700);
        fs::set_permissions(&home, permissions).unwrap();
        let public = fs::read_to_string(format!("{host}.pub")).unwrap();
        fs::write(&known, format!("[127.0.0.1]:{port} {public}")).unwrap();
        fs::write(
            file("sshd_config"),
            format!(
                "Port {port}\nListenAddress 127.0.0.1\nHostKey {host}\nPidFile none\n\
                 AuthorizedKeysFile {authorized}\nStrictModes no\nUsePAM no\n\
                 PasswordAuthentication no\nKbdInteractiveAuthentication no\n\
                 PermitRootLogin prohibit-password\nPrintMotd no\nMaxStartups 100\n"
            ),
        )
        .unwrap();
        let config = file("ssh_config");
        fs::write(
            &config,
            format!(
                "Host real\nHostName 127.0.0.1\nPort {port}\nIdentityFile {key}\n\
                 IdentitiesOnly yes\nIdentityAgent none\nUserKnownHostsFile {known}\n\
                 GlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\nLogLevel ERROR\n"
            ),
        )
        .unwrap();
        // `sshd` needs this directory for its privilege separation.
        let _ = fs::create_dir_all("/run/sshd");
        let mut sshd = Command::new(SSHD);
        sshd.args(["-D", "-f", &file("sshd_config"), "-E", &file("sshd_log")]);
        let sshd = sshd.stdin(Stdio::null()).spawn().unwrap();
        let server = Server { sshd, config };
        until("the server answers", || {
            let mut ssh = server.ssh();
            ssh.arg("true")
                .stderr(Stdio::null())
                .status()
                .unwrap()
                .success()
        });
        Some(server)
    }

    fn ssh(&self) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-T", "-oBatchMode=yes", "-F", &self.config, "real"]);
        ssh.stdin(Stdio::null());
        ssh
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}

fn over_ssh() {
    let Some(server) = Server::start() else {
        return;
    };
    let config = server.config.clone();
    // The server passes on none of the scenario's environment.
    let home = env::var("UNSYNC_TEST_HOME").unwrap();
    do_all(move |program| {
        let mut ssh = Command::new("ssh");
        ssh.args(["-T", "-oBatchMode=yes", "-F", &config, "real"]);
        ssh.arg(format!("UNSYNC_TEST_HOME={home}")).arg(program);
        ssh
    });
    drop(server);
}

fn over_ssh_without_the_key() {
    let Some(server) = Server::start() else {
        return;
    };
    let config = server.config.clone();
    let config = Config::new().processes(0).host("real", 2, move |program| {
        let mut ssh = Command::new("ssh");
        ssh.args(["-T", "-oBatchMode=yes", "-F", &config, "-i", "/dev/null"]);
        ssh.args(["-oIdentityFile=/dev/null", "nobody@real"])
            .arg(program);
        ssh
    });
    install(config);
    let words = [
        "the launcher of host `real` ended (exit status: 255)",
        "denied",
    ];
    assert_lost(cpu(pid, ()).result(), &words);
    drop(server);
}

// ---------------------------------------------------------------------------------------------------- Slurm

fn over_srun() {
    let mut srun = Command::new("srun");
    srun.args(["-Q", "--immediate=10", "-n1", "true"])
        .stdin(Stdio::null());
    if !srun
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
    {
        return println!("`srun` reaches no cluster");
    }
    do_all(|program| {
        let mut srun = Command::new("srun");
        srun.args(["-Q", "-n1", "-N1"]).arg(program);
        srun
    });
}
