//! The Mandelbrot picture again, rendered on several hosts.
//!
//! Run with `cargo run --release --example hosts [HOST...]`. A HOST is `ssh:NAME:WORKERS`, where `ssh NAME`
//! asks no questions and the executable is at the same path; or `srun:WORKERS`, for a cluster under Slurm; or
//! `here:WORKERS`, for a relay on this machine. Without arguments it uses two `here` hosts.
//! The picture goes to `hosts.png` in the directory for temporary files.

mod support;

#[path = "support/picture.rs"]
mod picture;

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use picture::{HEIGHT, TILES, WIDTH, ended, png, put, render, show_progress};
use unsync::Config;

const USAGE: &str = "hosts [ssh:NAME:WORKERS | srun:WORKERS | here:WORKERS]...";

fn main() -> ExitCode {
    unsync::init();
    let mut hosts = support::arguments(USAGE, 100);
    if hosts.is_empty() {
        hosts = ["here:1", "here:2"].map(OsString::from).to_vec();
    }
    let hosts: Vec<String> = hosts
        .iter()
        .map(|host| host.to_string_lossy().into())
        .collect();
    ended("hosts", hosts_render(&hosts))
}

fn hosts_render(hosts: &[String]) -> Result<(), Box<dyn Error>> {
    // This machine only puts the tiles together.
    let mut config = Config::new().processes(0);
    for host in hosts {
        config =
            with_host(config, host).ok_or_else(|| format!("{host:?} is not a host: {USAGE}"))?;
    }
    config.install()?;

    let began = Instant::now();
    let mut tiles = unsync::as_completed((0..TILES).map(|n| unsync::cpu(render, (n,))));
    let mut picture = vec![0; 3 * WIDTH * HEIGHT];
    let mut done: BTreeMap<&str, usize> = hosts.iter().map(|host| (host.as_str(), 0)).collect();
    for (n, tile) in &mut tiles {
        let tile = tile?;
        put(&mut picture, n, &tile);
        if let Some(count) = done.get_mut(tile.host.as_str()) {
            *count += 1;
        }
        let counts: Vec<_> = done
            .iter()
            .map(|(host, count)| format!("{host} {count}"))
            .collect();
        show_progress(&counts.join("  "));
    }
    show_progress("");
    let path = env::temp_dir().join("hosts.png");
    fs::write(&path, png(&picture)).map_err(|error| format!("{path:?}: {error}"))?;

    for (host, count) in done {
        match count {
            0 => println!("{host}: no tiles: unreachable, or the other hosts were faster"),
            count => println!("{host}: {count} tiles"),
        }
    }
    println!("{:.3} s\n{}", began.elapsed().as_secs_f64(), path.display());
    Ok(())
}

/// Adds a host, given as on the command line.
fn with_host(config: Config, host: &str) -> Option<Config> {
    let (launcher, rest) = host.split_once(':')?;
    let (name, workers) = rest.rsplit_once(':').unwrap_or(("", rest));
    let workers = workers.parse().ok()?;
    let mut words: Vec<String> = match (launcher, name) {
        // `ssh` would take a name that begins with `-` for an option.
        ("ssh", name) if !name.is_empty() && !name.starts_with('-') => {
            ["ssh", "-T", "-oBatchMode=yes", "-oConnectTimeout=10", name]
                .map(String::from)
                .to_vec()
        }
        ("srun", "") => ["srun", "-Q", "-n1", "-N1"].map(String::from).to_vec(),
        ("here", "") => Vec::new(),
        _ => return None,
    };
    // This lets each tile say where it was rendered.
    words.extend(["env".into(), format!("TILES_BY={host}")]);
    Some(config.host(host, workers, move |program: &Path| {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(program);
        command
    }))
}
