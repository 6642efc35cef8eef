//! A picture of the Mandelbrot set: worker processes render its tiles, the program puts them together
//! and writes a PNG file, with nothing but the standard library.
//!
//! Run with `cargo run --release --example mandelbrot [OUT.png]`; without OUT.png the picture goes to
//! the directory for temporary files.

mod support;

#[path = "support/picture.rs"]
mod picture;

use std::collections::HashSet;
use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use picture::{HEIGHT, TILES, WIDTH, ended, png, put, render, show_progress};

fn main() -> ExitCode {
    unsync::init();
    let given = support::arguments("mandelbrot [OUT.png]", 1).pop();
    let path = given.map_or_else(|| env::temp_dir().join("mandelbrot.png"), PathBuf::from);
    ended("mandelbrot", mandelbrot(&path))
}

fn mandelbrot(path: &Path) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    let tiles: Vec<_> = (0..TILES).map(|n| unsync::cpu(render, (n,))).collect();
    let mut picture = vec![0; 3 * WIDTH * HEIGHT];
    let mut workers = HashSet::new();
    for (n, tile) in tiles.into_iter().enumerate() {
        show_progress(&format!("[{:<50}]", "#".repeat(50 * n / TILES)));
        let tile = tile.result()?;
        workers.insert(tile.worker);
        put(&mut picture, n, &tile);
    }
    show_progress("");
    fs::write(path, png(&picture)).map_err(|error| format!("{path:?}: {error}"))?;

    let (workers, seconds) = (workers.len(), began.elapsed().as_secs_f64());
    let size = format!("{WIDTH} x {HEIGHT} pixels in {TILES} tiles");
    let effort = format!("worker processes: {workers}, {seconds:.3} s");
    println!("{size}\n{effort}\n{}", path.display());
    Ok(())
}
