//! The link under attack: strangers that connect, and workers that talk nonsense.
//!
//! A fake worker is a program of ours that accepts the invitation and then says what a test wants. So
//! this module knows what an invitation and a frame look like.
//!
//! Not over a relay, which has its own link to a worker: `tests/hosts` tests strangers there.

use std::any::TypeId;
use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use unsync::{Config, ErrorKind, Wire, cpu};

use crate::scenario::{
    Gate, Link, SOON, descriptors, entries, file, is_dead, kill, link, program_as_worker, resident,
    until, wait_at, wait_within, worker_after,
};
use crate::*;

scenarios! {
    without_relay
    programs: [
        serve_in_drips, serve_amid_strangers, stop_halfway, garble, garble_after_start, speak_unknown_kind, speak_as_the_parent,
        lie_about_a_length, lie_about_a_huge_length, tear_a_frame, tear_a_header,
        show_a_wrong_secret, die_when_connected, die_with_the_call, leave_a_child_with_the_words,
        leave_the_link_to_a_child,
    ]
    fake_worker_can_serve;
    n20_lying_length_prefix_allocates_nothing;
    n20_lying_length_prefix_above_the_limit;
    n20_lying_length_in_an_argument;
    n21_garbage_frame_before_the_start;
    n21_garbage_frame_after_the_start;
    n21_frame_of_an_unknown_kind;
    n21_frame_that_only_the_parent_sends;
    n22_truncated_frame;
    n22_truncated_header;
    n23_wrong_token_of_a_stranger;
    n23_wrong_token_of_a_worker;
    n23_wrong_token_of_a_parent;
    n23_silent_strangers;
    n23_strangers_between_the_connections;
    n23_worker_that_stops_halfway;
    n24_second_connection_refused;
    worker_without_an_invitation_leaves;
    worker_clears_up_after_a_parent_that_is_gone;
    worker_that_is_invited_without_end_leaves;
    worker_leaves_when_the_parent_garbles;
    worker_leaves_though_its_call_holds_standard_error;
    worker_leaves_though_nobody_reads_what_it_says;
    worker_that_writes_where_it_reads_can_go_on;
    worker_without_a_temporary_directory in "export TMPDIR=/nonexistent";
    worker_without_any_link in "export TMPDIR=/nonexistent
        if unshare -rn true; then exec unshare -rn \"$0\" \"$@\"; fi";
    n48_worker_that_dies_when_connected;
    n48_worker_that_dies_with_the_call;
    n48_last_words_that_do_not_end_are_waited_for_once;
    worker_whose_child_holds_its_link_is_noticed;
}

// -------------------------------------------------------------------------------- what is mirrored

type Secrets = (u128, u128);

/// What the parent writes to the standard input of a worker.
struct Invitation {
    /// The socket, empty if the parent could make none. It is sent first, the rest once the parent listens.
    place: PathBuf,
    /// The port where the parent listens otherwise. Then there are two connections: the first for what the
    /// worker is told, the second for what it says.
    port: Option<u16>,
    /// What the worker has to send first on each connection, and the answer.
    secrets: Secrets,
    /// The name that the worker gets.
    name: Vec<u8>,
    frame_bytes_max: u64,
    stack_size: u64,
    spin: Duration,
    slow: Duration,
    start_timeout: Duration,
    host_timeout: Duration,
    kill_children: bool,
}

unsync::wire! {
    struct Invitation {
        place, port, secrets, name, frame_bytes_max, stack_size, spin, slow, start_timeout, host_timeout,
        kill_children,
    }
}

impl Invitation {
    fn address(&self) -> Address {
        match self.port {
            Some(port) => Address::Port(port),
            None => Address::Path(self.place.clone()),
        }
    }

    fn connections(&self) -> usize {
        1 + usize::from(self.port.is_some())
    }
}

#[derive(Clone, Debug)]
enum Address {
    Path(PathBuf),
    Port(u16),
}

const CALL: u32 = 0;
const START: u32 = 3;
const PROGRESS: u32 = 4;
const DONE: u32 = 6;
const MARK: u32 = 0x756e_7300;

fn frame(kind: u32, call: u64, length: u64, payload: &[u8]) -> Vec<u8> {
    let mut frame = (MARK | kind).to_le_bytes().to_vec();
    frame.extend(call.to_le_bytes());
    frame.extend(length.to_le_bytes());
    frame.extend(payload);
    frame
}

fn start(call: u64) -> Vec<u8> {
    frame(START, call, 0, &[])
}

/// The id of a type on the link.
fn id_of<T: 'static>() -> [u8; 8] {
    let mut hasher = DefaultHasher::new();
    TypeId::of::<T>().hash(&mut hasher);
    hasher.finish().to_le_bytes()
}

/// The frame of a call that returned a `u32`.
fn done(call: u64, value: u32) -> Vec<u8> {
    let payload = [&[0][..], &value.to_le_bytes()].concat();
    frame(DONE, call, payload.len() as u64, &payload)
}

trait Stream: Read + Write + AsFd {}
impl<T: Read + Write + AsFd> Stream for T {}

/// A worker's end of the link.
struct Both {
    incoming: Box<dyn Stream>,
    /// The outgoing connection, if it is a separate one.
    outgoing: Option<Box<dyn Stream>>,
}

impl Both {
    fn outgoing(&mut self) -> &mut dyn Stream {
        self.outgoing.as_deref_mut().unwrap_or(&mut *self.incoming)
    }
}

impl Read for Both {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.incoming.read(buffer)
    }
}

impl Write for Both {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.outgoing().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.outgoing().flush()
    }
}

impl Address {
    fn connect(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Address::Path(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(SOON))?;
                Box::new(stream)
            }
            Address::Port(port) => {
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, *port))?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(SOON))?;
                Box::new(stream)
            }
        })
    }
}

/// The address for the one worker that this process is starting.
fn address() -> Address {
    let mut found = None;
    until("a worker is invited", || {
        found = match link() {
            Link::Unix | Link::Relay => fs::read_dir(env::temp_dir())
                .unwrap()
                .flatten()
                .next()
                .map(|it| it.path().join("link"))
                .filter(|path| path.exists())
                .map(Address::Path),
            Link::Tcp => listening_port().map(Address::Port),
        };
        found.is_some()
    });
    found.unwrap()
}

fn listening_port() -> Option<u16> {
    let ours = descriptors();
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (fields[1], fields[3], fields[9]);
        let is_ours = state == "0A" && ours.contains(&format!("\"socket:[{inode}]\""));
        let (_, port) = local.split_once(':')?;
        u16::from_str_radix(port, 16).ok().filter(|_| is_ours)
    })
}

// -------------------------------------------------------------------------------- the fake workers

/// Accepts the invitation; returns the link and the number of the first call.
fn pretend() -> (Both, u64) {
    pretend_amid(|_, _| ())
}

/// The same with `strangers` that come before each connection.
fn pretend_amid(strangers: impl Fn(&Invitation, usize)) -> (Both, u64) {
    let mut link = accept_invitation(strangers);
    let mut header = [0; 20];
    link.read_exact(&mut header).unwrap();
    assert_eq!(header[..4], (MARK | CALL).to_le_bytes());
    let call = u64::from_le_bytes(header[4..12].try_into().unwrap());
    let length = u64::from_le_bytes(header[12..].try_into().unwrap());
    let mut payload = vec![0; length as usize];
    link.read_exact(&mut payload).unwrap();
    (link, call)
}

fn invitation() -> Invitation {
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes).unwrap();
    Invitation::decode(&mut bytes.as_slice()).unwrap()
}

fn accept_invitation(strangers: impl Fn(&Invitation, usize)) -> Both {
    let invitation = invitation();
    let mut reached = (0..invitation.connections()).map(|number| {
        strangers(&invitation, number);
        let connection = introduce(&invitation, 0);
        connection.expect("the parent answers")
    });
    Both {
        incoming: reached.next().unwrap(),
        outgoing: reached.next(),
    }
}

/// Connects with the bits of `wrong` flipped in its secret; returns the connection if the parent answers.
fn introduce(invitation: &Invitation, wrong: u128) -> Option<Box<dyn Stream>> {
    let (child, parent) = invitation.secrets;
    let mut connection = invitation.address().connect().unwrap();
    let secret = child ^ wrong;
    connection.write_all(&secret.to_le_bytes()).unwrap();
    let mut answer = [0; 16];
    connection.read_exact(&mut answer).ok()?;
    assert_eq!(answer, parent.to_le_bytes());
    Some(connection)
}

/// The link outlives this process.
fn leave_the_link_to_a_child() {
    let (mut link, call) = pretend();
    link.write_all(&start(call)).unwrap();
    let held = link.outgoing().as_fd().try_clone_to_owned().unwrap();
    let mut child = Command::new("sleep");
    child.arg("600").stdin(held).spawn().unwrap();
    process::exit(6);
}

/// Waits until the parent ends the link, or this process.
fn await_the_end(mut link: Both) {
    let _ = io::copy(&mut link, &mut io::sink());
}

fn serve_in_drips() {
    serve(pretend());
}

/// The strangers know all but one bit of the secret, or connect and say nothing.
fn serve_amid_strangers() {
    serve(pretend_amid(|invitation, _| {
        for bit in [0, 77, 127] {
            let answered = introduce(invitation, 1 << bit);
            assert!(answered.is_none(), "answered with bit {bit} wrong");
        }
        drop(invitation.address().connect().unwrap());
    }));
}

/// A progress value with the id of its type.
fn named<P: 'static>(value: u8) -> Vec<u8> {
    [&id_of::<P>()[..], &[value]].concat()
}

fn serve((mut link, call): (Both, u64)) {
    let strange = call + 1000;
    let said = [
        frame(PROGRESS, strange, 0, &[]),
        done(strange, 1),
        start(strange),
        start(call),
        frame(PROGRESS, call, 1, &[7]),
        frame(PROGRESS, call, 9, &named::<u16>(7)),
        frame(PROGRESS, call, 9, &named::<u8>(7)),
        done(call, 4711),
        done(call, 4712),
    ];
    for byte in said.concat() {
        link.write_all(&[byte]).unwrap();
    }
    await_the_end(link);
}

fn garble() {
    let (mut link, _) = pretend();
    link.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    await_the_end(link);
}

fn garble_after_start() {
    let (mut link, call) = pretend();
    link.write_all(&start(call)).unwrap();
    link.write_all(&[0xff; 100_000]).unwrap();
    await_the_end(link);
}

fn speak_unknown_kind() {
    let (mut link, call) = pretend();
    link.write_all(&[start(call), frame(99, call, 0, &[])].concat())
        .unwrap();
    await_the_end(link);
}

fn speak_as_the_parent() {
    let (mut link, call) = pretend();
    link.write_all(&[start(call), frame(CALL, call, 0, &[])].concat())
        .unwrap();
    await_the_end(link);
}

/// How much a liar claims to send, and how much it sends: more than any socket holds, so that the parent
/// must have read some of it before all is written.
const CLAIMED: usize = 1 << 29;
const SENT: usize = 32 << 20;

fn lie_about_a_length() {
    let (mut link, call) = pretend();
    link.write_all(&start(call)).unwrap();
    link.write_all(&frame(DONE, call, CLAIMED as u64, &vec![0; SENT]))
        .unwrap();
    drop(wait_at(&env::var("GATE").unwrap()));
    process::exit(6);
}

fn lie_about_a_huge_length() {
    let (mut link, call) = pretend();
    link.write_all(&start(call)).unwrap();
    link.write_all(&frame(DONE, call, u64::MAX, &[0; 100]))
        .unwrap();
    await_the_end(link);
}

fn tear_a_frame() {
    let (mut link, call) = pretend();
    link.write_all(&start(call)).unwrap();
    link.write_all(&frame(DONE, call, 100, &[0; 50])).unwrap();
    process::exit(6);
}

fn tear_a_header() {
    let (mut link, call) = pretend();
    link.write_all(&start(call)).unwrap();
    link.write_all(&done(call, 1)[..7]).unwrap();
    process::exit(6);
}

/// Shows a wrong secret on the last connection, or the only one.
fn show_a_wrong_secret() {
    let _link = accept_invitation(|invitation, number| {
        if number + 1 == invitation.connections() {
            assert!(introduce(invitation, 1).is_none());
            process::exit(9);
        }
    });
}

/// The same, but never sends the secret.
fn stop_halfway() {
    let _link = accept_invitation(|invitation, number| {
        if number + 1 == invitation.connections() {
            drop(wait_at(&env::var("GATE").unwrap()));
        }
    });
}

fn die_when_connected() {
    let _link = accept_invitation(|_, _| ());
    eprintln!("too early");
    process::exit(5);
}

fn die_with_the_call() {
    let _link = pretend();
    eprintln!("too early");
    process::exit(5);
}

fn leave_a_child_with_the_words() {
    let _link = pretend();
    let mut child = Command::new("sleep");
    let child = child.arg("600").stdin(Stdio::null()).spawn().unwrap();
    note(file("left_over"), child.id());
    eprintln!("too early");
    process::exit(5);
}

/// The first `number` workers are fake, the later ones are real. Returns the count of started workers.
fn fake_first(number: u32, program: &'static str, config: Config) -> Arc<AtomicU32> {
    let started = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&started);
    install(config.worker_command(move |executable| {
        match counter.fetch_add(1, Ordering::Relaxed) < number {
            true => program_as_worker(program),
            false => Command::new(executable),
        }
    }));
    started
}

/// Checks that the one call that meets the fake worker is lost, for these reasons, and that the next is fine.
fn lost_to(program: &'static str, reasons: &[&str]) -> Error {
    fake_first(1, program, workers(1));
    let lost = cpu(pid, ());
    let next = cpu(pid, ());
    let error = assert_kind(lost.result(), ErrorKind::WorkerLost);
    assert_says(
        &error,
        &[
            "`pid` lost its worker process",
            "started at tests/faults/link.rs:",
        ],
    );
    assert_says(&error, reasons);
    next.result().unwrap();
    error
}

/// Proves that the fake workers of the other tests get as far as they should.
fn fake_worker_can_serve() {
    fake_first(1, "serve_in_drips", workers(1));
    let (listener, values) = ear::<u8>();
    let call = cpu(pid, ()).on_progress(listener);
    assert_eq!(call.result().unwrap(), 4711);
    assert_eq!(values.iter().collect::<Vec<_>>(), [7]);
}

/// The memory mapped for this process, used or not, in bytes.
fn mapped() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("VmSize:"));
    let kibibytes = line.unwrap().trim().trim_end_matches(" kB");
    kibibytes.parse::<u64>().unwrap() << 10
}

fn n20_lying_length_prefix_allocates_nothing() {
    let gate = Gate::new();
    let path = gate.path();
    let config = workers(1).worker_command(move |_| {
        let mut command = program_as_worker("lie_about_a_length");
        command.env("GATE", &path);
        command
    });
    install(config);
    let before = [resident(process::id()), mapped()];
    let call = cpu(pid, ());
    let guest = gate.guest();
    let after = [resident(process::id()), mapped()];
    let [used, room] = [0, 1].map(|n| after[n].saturating_sub(before[n]) as usize);
    println!("{used} bytes more, and room for {room}");
    // The buffer for what was sent may double as it grows. Threads take some room, too.
    assert!(used < 3 * SENT, "{used} bytes");
    assert!(room < CLAIMED, "room for {room} bytes");
    guest.leave();
    let error = assert_kind(call.result(), ErrorKind::WorkerLost);
    assert_eq!(error.worker_exit().unwrap().code(), Some(6));
}

fn n20_lying_length_prefix_above_the_limit() {
    let error = lost_to(
        "lie_about_a_huge_length",
        &["a frame longer than the limit arrived"],
    );
    assert!(error.worker_exit().is_some());
}

/// A value that claims to hold more than it does.
struct Liar(Vec<u8>);

impl Wire for Liar {
    fn encode(&self, out: &mut Vec<u8>) {
        (u64::MAX / 2).encode(out);
        out.extend(&self.0);
    }

    fn decode(input: &mut &[u8]) -> Result<Liar, Error> {
        Vec::decode(input).map(Liar)
    }
}

fn listen_to(lie: Liar) -> usize {
    lie.0.len()
}

fn lie() -> Liar {
    Liar(vec![1; 10])
}

fn n20_lying_length_in_an_argument() {
    install(workers(1));
    let worker = cpu(pid, ()).result().unwrap();
    let error = assert_kind(
        cpu(listen_to, (Liar(vec![1; 10]),)).result(),
        ErrorKind::Codec,
    );
    assert_says(&error, &["the arguments of `listen_to`"]);
    let error = cpu(lie, ()).result().map(drop);
    assert_kind(error, ErrorKind::Codec);
    assert_eq!(cpu(pid, ()).result().unwrap(), worker);
}

/// The worker may have said that it started the call, so no other worker gets the call.
fn n21_garbage_frame_before_the_start() {
    let started = fake_first(1, "garble", workers(1));
    let error = assert_kind(cpu(pid, ()).result(), ErrorKind::WorkerLost);
    let words = [
        "`pid`, which may have begun, lost its worker process",
        "bytes that are not a frame arrived",
    ];
    assert_says(&error, &words);
    cpu(pid, ()).result().unwrap();
    assert_eq!(started.load(Ordering::Relaxed), 2);
}

fn n21_garbage_frame_after_the_start() {
    lost_to(
        "garble_after_start",
        &["bytes that are not a frame arrived"],
    );
}

fn n21_frame_of_an_unknown_kind() {
    lost_to(
        "speak_unknown_kind",
        &["bytes that are not a frame arrived"],
    );
}

fn n21_frame_that_only_the_parent_sends() {
    lost_to("speak_as_the_parent", &[]);
}

fn n22_truncated_frame() {
    let error = lost_to("tear_a_frame", &["exit status: 6"]);
    assert_eq!(error.worker_exit().unwrap().code(), Some(6));
}

fn n22_truncated_header() {
    let error = lost_to("tear_a_header", &["exit status: 6"]);
    assert_eq!(error.worker_exit().unwrap().code(), Some(6));
}

// ------------------------------------------------------------------------------------ the strangers

/// Starts a worker that waits until the returned closure is called. It is invited at once, like the worker of
/// a program that is not a test.
fn start_slowly() -> (Unfuture<u32>, impl FnOnce()) {
    let door = file("door");
    let status = Command::new("mkfifo").arg(&door).status();
    assert!(status.unwrap().success());
    let shell = format!("exec > /dev/null; : < {door}");
    install(workers(1).worker_command(move |executable| worker_after(&shell, executable)));
    (cpu(pid, ()), move || drop(fs::File::create(door).unwrap()))
}

/// Connects to the address where the parent waits for a worker. It exists a moment before anybody listens.
fn visit() -> Box<dyn Stream> {
    let mut stranger = None;
    until("somebody listens", || {
        stranger = address().connect().ok();
        stranger.is_some()
    });
    stranger.unwrap()
}

fn is_refused(stranger: &mut dyn Stream) -> bool {
    // The end, or a reset, if not all that the stranger sent was read.
    match stranger.read(&mut [0; 32]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

fn n23_wrong_token_of_a_stranger() {
    let (call, open) = start_slowly();
    for length in [0, 1, 15, 16, 17, 100_000] {
        let mut stranger = visit();
        let said = stranger.write_all(&vec![0; length]);
        assert!(said.is_ok() || length > 16, "{said:?}");
        if length >= 16 {
            assert!(is_refused(&mut *stranger), "a stranger was answered");
        }
    }
    open();
    call.result().unwrap();
}

fn n23_wrong_token_of_a_worker() {
    let started = fake_first(u32::MAX, "show_a_wrong_secret", workers(1));
    let error = assert_kind(cpu(pid, ()).result(), ErrorKind::WorkerLost);
    assert_eq!(error.worker_exit().unwrap().code(), Some(9), "{error}");
    assert_eq!(started.load(Ordering::Relaxed), 3);
}

/// Silent strangers cost time, and nothing else.
fn n23_silent_strangers() {
    let (call, open) = start_slowly();
    let mut strangers: Vec<_> = (0..3).map(|_| visit()).collect();
    open();
    call.result().unwrap();
    for stranger in &mut strangers {
        assert!(is_refused(&mut **stranger));
    }
}

fn n23_strangers_between_the_connections() {
    fake_first(1, "serve_amid_strangers", workers(1));
    assert_eq!(cpu(pid, ()).result().unwrap(), 4711);
}

fn n23_worker_that_stops_halfway() {
    let gate = Gate::new();
    let path = gate.path();
    let config = workers(1).start_timeout(Duration::from_secs(3));
    install(config.worker_command(move |_| {
        let mut command = program_as_worker("stop_halfway");
        command.env("GATE", &path);
        command
    }));
    let call = cpu(pid, ());
    let stopped = gate.guest();
    let error = assert_kind(call.result(), ErrorKind::WorkerLost);
    assert_says(&error, &["`pid`", "not ready within 3s"]);
    until("it is killed", || is_dead(stopped.process));
}

fn n24_second_connection_refused() {
    let (call, open) = start_slowly();
    let address = address();
    open();
    call.result().unwrap();
    let error = address.connect().map(drop).unwrap_err();
    let refused = match address {
        Address::Path(_) => io::ErrorKind::NotFound,
        Address::Port(_) => io::ErrorKind::ConnectionRefused,
    };
    assert_eq!(error.kind(), refused, "{error}");
    cpu(pid, ()).result().unwrap();
}

// -------------------------------------------------------------------------------- the fake parents

/// A real worker, whose invitation this test writes.
fn invite(invitation: &[u8]) -> Child {
    let mut worker = worker()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = worker.stdin.take().unwrap().write_all(invitation);
    worker
}

fn worker() -> Command {
    let arguments = [
        "__unsync_test_worker",
        "--exact",
        "--include-ignored",
        "--nocapture",
        "--test-threads=1",
        "-q",
        concat!("unsync::worker=", env!("CARGO_PKG_VERSION")),
    ];
    let mut worker = Command::new(env::current_exe().unwrap());
    worker.args(arguments);
    worker
}

/// The exit code of a worker, and its output.
fn end_of(mut worker: Child) -> (Option<i32>, String) {
    let status = wait_within(&mut worker, SOON).expect("the worker leaves");
    let mut words = String::new();
    worker
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut words)
        .unwrap();
    (status.code(), words)
}

fn encoded(what: &impl Wire) -> Vec<u8> {
    let mut bytes = Vec::new();
    what.encode(&mut bytes);
    bytes
}

/// A connection, and the answer to give on it.
type Met = (Box<dyn Stream>, u128);

/// Invites a worker to a listener of this test; returns the connections after the worker's secrets, with
/// the answers to give.
fn meet() -> (Child, Vec<Met>) {
    meet_by(invite)
}

fn meet_by(invite: impl FnOnce(&[u8]) -> Child) -> (Child, Vec<Met>) {
    let secrets = (0x1234_5678_9abc, 0xdef0_1234);
    let invite_to = |place, port| {
        invite(&encoded(&Invitation {
            place,
            port,
            secrets,
            name: Vec::new(),
            frame_bytes_max: 1 << 20,
            stack_size: 1 << 20,
            spin: Duration::ZERO,
            slow: Duration::from_millis(1),
            start_timeout: SOON,
            host_timeout: SOON,
            kill_children: false,
        }))
    };
    let (worker, streams): (_, Vec<Box<dyn Stream>>) = match link() {
        Link::Unix | Link::Relay => {
            let path = PathBuf::from(file("link"));
            let listener = UnixListener::bind(&path).unwrap();
            let worker = invite_to(path, None);
            (worker, vec![Box::new(listener.accept().unwrap().0)])
        }
        Link::Tcp => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            let worker = invite_to(PathBuf::new(), Some(port));
            let accept = || Box::new(listener.accept().unwrap().0) as Box<dyn Stream>;
            (worker, vec![accept(), accept()])
        }
    };
    let met = streams.into_iter().map(|mut stream| {
        let mut secret = [0; 16];
        stream.read_exact(&mut secret).unwrap();
        assert_eq!(secret, secrets.0.to_le_bytes());
        (stream, secrets.1)
    });
    (worker, met.collect())
}

fn n23_wrong_token_of_a_parent() {
    let connections = match link() {
        Link::Unix | Link::Relay => 1,
        Link::Tcp => 2,
    };
    for wrong in 0..connections {
        let (worker, mut met) = meet();
        for (at, (stream, parent)) in met.iter_mut().enumerate() {
            let answer = *parent ^ u128::from(at == wrong);
            // The worker may have left because of the first answer.
            let _ = stream.write_all(&answer.to_le_bytes());
        }
        let (code, words) = end_of(worker);
        assert_eq!(code, Some(1), "{words}");
        assert!(
            words.contains("this is a worker process and nobody waits for it"),
            "{words}"
        );
        let _ = fs::remove_file(file("link"));
    }
}

fn worker_without_an_invitation_leaves() {
    for invitation in [&b""[..], b"\0", b"nonsense", &[0xff; 5000]] {
        let (code, words) = end_of(invite(invitation));
        assert_eq!(code, Some(1), "{words}");
        assert!(
            words.contains("this is a worker process and nobody waits for it"),
            "{words}"
        );
    }
}

/// The parent ended after it had made its directory and before it invited the worker.
fn worker_clears_up_after_a_parent_that_is_gone() {
    let directory = PathBuf::from(file("directory"));
    fs::create_dir(&directory).unwrap();
    let place = encoded(&directory.join("link"));
    let (code, words) = end_of(invite(&place));
    assert_eq!(code, Some(1), "{words}");
    assert!(!directory.exists(), "left behind");
}

/// As with `< /dev/zero`.
fn worker_that_is_invited_without_end_leaves() {
    const MUCH: usize = 64 << 20;
    let (mut lead, theirs) = UnixStream::pair().unwrap();
    let mut command = worker();
    command
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let worker = command.spawn().unwrap();
    drop(command);
    let mut taken = 0;
    while taken < MUCH {
        match lead.write(&[0; 4096]) {
            Ok(written) => taken += written,
            Err(_) => break,
        }
    }
    drop(lead);
    let (code, words) = end_of(worker);
    assert_eq!(code, Some(1), "{words}");
    assert!(
        words.contains("this is a worker process and nobody waits for it"),
        "{words}"
    );
    assert!(taken < MUCH / 8, "it has taken {taken} bytes");
}

fn worker_leaves_when_the_parent_garbles() {
    let (worker, mut met) = meet();
    shake_hands(&mut met);
    met[0]
        .0
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let (code, words) = end_of(worker);
    assert_eq!(code, Some(1), "{words}");
    assert!(
        words.contains("cannot read its link: bytes that are not a frame arrived"),
        "{words}"
    );
}

fn shake_hands(met: &mut [Met]) {
    for (stream, parent) in met {
        stream.write_all(&parent.to_le_bytes()).unwrap();
    }
}

fn hold_standard_error(gate: String) {
    let _held = io::stderr().lock();
    drop(wait_at(&gate));
}

/// The frame of a call, as this program writes it for a function and the tuple of its arguments.
fn call_of<F: 'static>(_: F, arguments: impl Wire) -> Vec<u8> {
    let mut payload = id_of::<F>().to_vec();
    arguments.encode(&mut payload);
    frame(CALL, 1, payload.len() as u64, &payload)
}

fn worker_leaves_though_its_call_holds_standard_error() {
    let (worker, mut met) = meet();
    shake_hands(&mut met);
    let gate = Gate::new();
    let call = call_of(hold_standard_error, (gate.path(),));
    met[0].0.write_all(&call).unwrap();
    let _guest = gate.guest();
    met[0].0.write_all(&[0xff; 20]).unwrap();
    let (code, words) = end_of(worker);
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("cannot read its link"), "{words}");
}

fn worker_leaves_though_nobody_reads_what_it_says() {
    let (mut full, _unread) = UnixStream::pair().unwrap();
    full.set_nonblocking(true).unwrap();
    while full.write(&[b'.'; 4096]).is_ok() {}
    full.set_nonblocking(false).unwrap();
    let mut command = worker();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(OwnedFd::from(full));
    let mut worker = command.spawn().unwrap();
    let status = wait_within(&mut worker, SOON);
    if status.is_none() {
        worker.kill().unwrap();
    }
    assert!(!status.expect("the worker leaves").success());
}

/// The worker is invited through a socket that is also its standard error, as with some wrappers.
fn worker_that_writes_where_it_reads_can_go_on() {
    let (mut lead, theirs) = UnixStream::pair().unwrap();
    lead.set_read_timeout(Some(SOON)).unwrap();
    let mut command = worker();
    command
        .stderr(OwnedFd::from(theirs.try_clone().unwrap()))
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null());
    let (mut worker, mut met) = meet_by(|invitation| {
        let worker = command.spawn().unwrap();
        lead.write_all(invitation).unwrap();
        lead.shutdown(Shutdown::Write).unwrap();
        worker
    });
    // This process has a copy of their end.
    drop(command);
    shake_hands(&mut met);
    met[0].0.write_all(&[0xff; 20]).unwrap();
    assert!(wait_within(&mut worker, SOON).is_some());
    let mut words = String::new();
    lead.read_to_string(&mut words).unwrap();
    assert!(
        words.starts_with("unsync: a worker process cannot read its link"),
        "{words}"
    );
}

/// Without a directory for its socket, the link goes over TCP.
fn worker_without_a_temporary_directory() {
    install(workers(1));
    cpu(pid, ()).result().unwrap();
}

/// Where there is no network either, the error names what could not be created, so that it can be fixed.
fn worker_without_any_link() {
    let loopback = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let reached = loopback.and_then(|listener| TcpStream::connect(listener.local_addr()?));
    if reached.is_ok() {
        return println!("skipped: there is no `unshare` that takes the network away");
    }
    install(workers(1));
    let error = cpu(pid, ()).result().unwrap_err();
    println!("{error}");
    let directory = match link() {
        Link::Unix | Link::Relay => "/nonexistent/unsync-",
        Link::Tcp => "",
    };
    assert_says(&error, &["`pid` cannot run", "127.0.0.1", directory]);
}

/// The scenarios need no temporary directory: they do not create one, and leave nothing in the place that
/// they use instead. The scenario that runs here has its own time limit.
#[test]
fn scenarios_without_a_temporary_directory() {
    let spare = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let missing = spare.join(format!("missing-{}", std::process::id()));
    for directory in [&*missing, Path::new("/proc")] {
        let mut test = Command::new(env::current_exe().unwrap());
        test.args([
            "link::unix::worker_without_a_temporary_directory",
            "--exact",
        ])
        .env("TMPDIR", directory)
        .stdout(Stdio::piped());
        let test = test.spawn().unwrap();
        let home = format!("unsync-test-{}-", test.id());
        let ended = test.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(
            ended.status.success() && said.contains("1 passed"),
            "{said}"
        );
        assert!(!missing.exists());
        let left = entries(spare);
        assert!(!left.iter().any(|name| name.starts_with(&home)), "{left:?}");
    }
}

// ----------------------------------------------------------------------------------- crash loops

fn die_before_the_start(program: &'static str) {
    let started = fake_first(u32::MAX, program, workers(2));
    let calls: Vec<_> = (0..10).map(|_| cpu(pid, ())).collect();
    for call in calls {
        let error = assert_kind(call.result(), ErrorKind::WorkerLost);
        assert_says(
            &error,
            &["`pid`", "too early", "started at tests/faults/link.rs:"],
        );
        assert_eq!(error.worker_exit().unwrap().code(), Some(5));
    }
    let started = started.load(Ordering::Relaxed);
    println!("{started} workers were started");
    assert!(started <= 60, "{started}");
}

fn n48_worker_that_dies_when_connected() {
    die_before_the_start("die_when_connected");
}

fn n48_worker_that_dies_with_the_call() {
    die_before_the_start("die_with_the_call");
}

/// A process that a worker has started holds the worker's standard error open. The pool must not wait for its
/// end with each of the calls that fail.
fn n48_last_words_that_do_not_end_are_waited_for_once() {
    const CALLS: u32 = 100;
    fake_first(u32::MAX, "leave_a_child_with_the_words", workers(1));
    let started = Instant::now();
    let calls: Vec<_> = (0..CALLS).map(|_| cpu(pid, ())).collect();
    for call in calls {
        let error = assert_kind(call.result(), ErrorKind::WorkerLost);
        assert_says(&error, &["`pid` was not started", "too early"]);
    }
    let took = started.elapsed();
    assert!(unsync::drain(SOON));
    kill("KILL", &notes(&file("left_over")));
    // Half a second for each call would be twice that.
    assert!(took < Duration::from_secs(25), "{took:?}");
}

unsync::register!(listen_to, lie, hold_standard_error);

/// A process that was created without `exec` has the link, whatever flags its descriptors have.
fn worker_whose_child_holds_its_link_is_noticed() {
    fake_first(
        1,
        "leave_the_link_to_a_child",
        workers(1).kill_children(true),
    );
    let (lost, next) = (cpu(pid, ()), cpu(pid, ()));
    assert!(lost.wait_timeout(SOON), "nobody noticed");
    let error = assert_kind(lost.result(), ErrorKind::WorkerLost);
    assert_eq!(error.worker_exit().unwrap().code(), Some(6));
    next.result().unwrap();
}
