//! When one machine is not enough: `cpu` calls on other machines.
//!
//! A program that outgrows its machine keeps its code: [`Config::host`](crate::Config::host) adds worker
//! processes on another machine. A launcher that is already installed starts them: `ssh`, Slurm's `srun`,
//! `kubectl exec -i`, `docker run -i`, `mpirun -n 1`. This library has no daemon, no port and no scheduler.
//!
//! ```no_run
//! use std::process::Command;
//!
//! fn primes(below: u64) -> u64 {
//!     (2..below).filter(|n| (2..*n).take_while(|d| d * d <= *n).all(|d| n % d != 0)).count() as u64
//! }
//! unsync::register!(primes);
//!
//! fn main() -> Result<(), unsync::Error> {
//!     unsync::init();
//!     let mut config = unsync::Config::new(); // .processes(0) leaves this machine out
//!     for name in ["node1", "node2"] {
//!         config = config.host(name, 8, move |program| {
//!             let mut ssh = Command::new("ssh");
//!             ssh.args(["-T", "-oBatchMode=yes", name]).arg(program);
//!             ssh
//!         });
//!     }
//!     config.install()?;
//!     let counts = (1..1000).map(|n| unsync::cpu(primes, (1000 * n,)));
//!     println!("{:?}", unsync::join_all(counts).result()?);
//!     Ok(())
//! }
//! ```
//!
//! The example `hosts` in the repository renders a picture this way.
//!
//! # Launchers
//!
//! | launcher | command | notes |
//! | --- | --- | --- |
//! | ssh | `ssh -T -oBatchMode=yes node1 PROGRAM` | with keys, and no terminal. A server drops logins beyond its `MaxStartups`; no more than eight are tried at once. `ControlMaster auto` with `ControlPersist` in the configuration of ssh makes all but the first login cheap |
//! | Slurm | `srun -Q -n1 -N1 PROGRAM` | a job for each worker; the queue counts towards `start_timeout`. In `salloc` or `sbatch`, add `--overlap -w node1`: then each is a step of the allocation, and starts at once |
//! | Kubernetes | `kubectl exec -i POD -- PROGRAM` | without `-t` |
//! | containers | `docker run -i --rm IMAGE PROGRAM` | the image has the program |
//! | MPI | `mpirun -n 1 --host node1 PROGRAM` | |
//!
//! `PROGRAM` is the path that the closure gets. If the program has a different path on the other machine, the
//! closure ignores its argument and names that path. The library appends arguments that tell the program what
//! it is.
//!
//! Each worker takes one launcher process and two threads here, so one program drives tens of machines, not
//! thousands.
//!
//! # The same build
//!
//! The executable there must be the same as here, byte for byte. Copy it (`scp`, `rsync`), or put it on a
//! shared file system or into the image. The library compares the size and a hash of the two files before the
//! first call; if they differ, the error shows both. A stripped copy is a different build.
//!
//! # What crosses, and what does not
//!
//! - Arguments, results, and panics with their messages cross, as with any worker.
//! - What the function prints there appears on standard error here, from both streams.
//! - Files, the environment and the working directory are those of the other machine, as the launcher sets them.
//!   `ssh node1 env NAME=VALUE PROGRAM` sets a variable.
//! - [`worker_exit`](crate::Error::worker_exit) says how the worker there ended, signals included.
//! - [`kill_children`](crate::Config::kill_children) acts there too;
//!   [`memory_per_worker`](crate::Config::memory_per_worker) does not.
//!
//! # When something is lost
//!
//! **A call runs at most once.** When a connection breaks, nobody knows how far the calls on it had got. They
//! fail as [`WorkerLost`](crate::ErrorKind::WorkerLost), and the error says that they may have begun. The
//! library does not retry them. If a call may run twice, retry it yourself:
//!
//! ```
//! # fn primes(below: u64) -> u64 { below }
//! # unsync::register!(primes);
//! use unsync::{Error, ErrorKind};
//!
//! async fn primes_for_sure(below: u64) -> Result<u64, Error> {
//!     loop {
//!         match unsync::cpu(primes, (below,)).await {
//!             Err(error) if error.kind() == ErrorKind::WorkerLost => {}
//!             outcome => return outcome,
//!         }
//!     }
//! }
//! # unsync::init();
//! # assert_eq!(unsync::block_on(primes_for_sure(7)).unwrap(), 7);
//! ```
//!
//! Calls that were not yet sent go elsewhere. If a worker dies and its machine can still say so, only the
//! call that it ran fails.
//!
//! **A dead machine stalls nobody.** The library leaves it alone for a quarter of a second, then longer each
//! time, up to about a minute. Calls fail only if no machine has a worker or can start one; the error quotes
//! the last output of the launcher, such as `Permission denied (publickey)`.
//!
//! **Nothing stays behind.** A deadline or a cancel kills the process on the other machine. However the
//! program ends, everything there ends, as a rule within a second; a worker that is still starting ends once it
//! has started, or after [`start_timeout`](crate::Config::start_timeout). If the network is cut, both sides give
//! up after [`host_timeout`](crate::Config::host_timeout), 60 s by default. Only a worker that has replaced itself
//! with another program (`exec`), or is stopped, survives a `kill -9` of the relay that started it.
//!
//! # What it costs
//!
//! Measured once, in November 2026, on two virtual processors, with one worker behind an `sshd` and behind a
//! Slurm cluster on the same machine; a network adds its own delay. Calls are batched as on one machine, and
//! enough of them are in flight to fill the round trip. `cargo bench --bench processes` in the repository
//! measures calls to a local worker and over a relay; the figures for `ssh` and `srun`, and those below the
//! table, were measured by hand.
//!
//! | | local worker | relay | ssh | srun |
//! | --- | --- | --- | --- | --- |
//! | first result | 3 ms | 8 ms | 0.35 s | 40 ms |
//! | one call at a time | 12 to 21 µs | 30 to 75 µs | 130 to 250 µs | 80 to 230 µs |
//! | 10,000 calls at once, each | 2.8 µs | 3.1 µs | 5 µs | 120 µs |
//! | 64 MiB there and back | 0.15 s | 0.17 s | 0.5 s | 2.4 s |
//!
//! With four hosts of two workers, 2,000 calls of 5 ms take 1.3 s over relays, 1.5 s over `srun`, and 1.4 s over
//! `ssh` once its eight logins are done, which take a second here; without any overhead it would be 1.25 s.
//!
//! Over a launcher that delays every byte by 25 ms each way, one call takes 50 ms, and 10,000 calls at once take
//! 0.24 ms each.
//!
//! # When to use something else
//!
//! - **Ray** and **dask** keep data on the cluster between tasks, run tasks where their data is, scale up and down,
//!   and have a dashboard. Here every argument travels from the program, and every result back to it.
//! - **Julia's `Distributed`** and **mirai** (R) have workers that talk to each other, and languages in which
//!   functions can be sent. Here both sides have the same executable, and calls go one way.
//! - **MPI** is for programs whose processes exchange data all the time, over networks made for that.
//!
//! Use this for independent calls that take milliseconds or more and come from one program: parameter sweeps,
//! rendering, simulations, conversions. If all you need is one more machine, it takes a few lines.
//!
//! # On Windows
//!
//! The program that makes the calls needs a Unix system. On Windows, calls to a host fail as
//! [`Os`](crate::ErrorKind::Os), and the error says why.
