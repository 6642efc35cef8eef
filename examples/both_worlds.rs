//! A library function for synchronous and asynchronous callers alike: it returns an `Unfuture`.
//!
//! ```text
//! cargo run --example both_worlds
//! ```

mod support;

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use unsync::Unfuture;

/// The library: counts lines of files, and remembers them.
#[derive(Clone, Default)]
struct Counts(Arc<Mutex<HashMap<PathBuf, usize>>>);

impl Counts {
    /// How many lines a file has.
    ///
    /// Starts at once, and goes on if nobody waits for it.
    #[track_caller]
    fn lines(&self, path: impl AsRef<Path>) -> Unfuture<io::Result<usize>> {
        let path = path.as_ref().to_owned();
        if let Some(lines) = self.known().get(&path) {
            return Unfuture::ready(Ok(*lines));
        }
        let counts = self.clone();
        unsync::thread(move || {
            let lines = std::fs::read_to_string(&path)?.lines().count();
            counts.known().insert(path, lines);
            Ok(lines)
        })
    }

    /// How many lines several files have together. It builds on the function above, and is async inside.
    #[track_caller]
    fn all_lines(&self, paths: &[&str]) -> Unfuture<io::Result<usize>> {
        let each = Vec::from_iter(paths.iter().map(|path| self.lines(path)));
        unsync::join_all(each).map(|lines| lines.into_iter().sum())
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, usize>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

/// Files of this repository, wherever the example is started.
const FILES: [&str; 2] = [
    concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"),
];

/// A caller who knows nothing of async.
fn synchronous(counts: &Counts) -> Result<usize, Box<dyn Error>> {
    Ok(counts.all_lines(&FILES).result()??)
}

/// An async caller, under any executor.
async fn asynchronous(counts: &Counts) -> Result<usize, Box<dyn Error>> {
    let (first, second) = (counts.lines(FILES[0]), counts.lines(FILES[1]));
    Ok(first.await?? + second.await??)
}

fn main() -> Result<(), Box<dyn Error>> {
    unsync::init();
    support::arguments("both_worlds", 0);
    let counts = Counts::default();
    let lines = synchronous(&counts)?;
    assert_eq!(unsync::block_on(asynchronous(&counts))?, lines);
    println!("{lines} lines, in both worlds");
    let missing = counts.lines("no such file").result()?;
    println!("a missing file: {}", missing.unwrap_err());
    Ok(())
}
