//! The commonest words under a directory, or in one file, by all three kinds of work at once: pool
//! threads read, worker processes count, an async task merges.
//!
//! Run with `cargo run --release --example wordcount [DIR]`; without DIR it counts this repository.
//!
//! A word is a run of letters, in lower case. Hidden directories, directories named `target` and
//! symbolic links are skipped. What cannot be read or is not UTF-8 is left out, and named on standard
//! error. However many files there are, only a few batches of text are in memory.

mod support;

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet, VecDeque};
use std::error::Error;
use std::fs::{self, File, ReadDir};
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use unsync::Unfuture;

/// Enough text to be worth sending to a worker process.
const BATCH_BYTES: usize = 256 << 10;
/// Longer files are left out, since each file is held in memory as a whole.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// How many words are shown.
const COMMONEST: usize = 20;
/// How many characters of a word are shown.
const WIDTH: usize = 60;

fn main() -> ExitCode {
    unsync::init();
    let given = support::arguments("wordcount [DIR]", 1).pop();
    let start = given.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    match wordcount(start.into()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("wordcount: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn wordcount(start: PathBuf) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    let total = unsync::spawn(merge(Files::under(start)?)).result()??;
    total.print(began);
    Ok(())
}

// ------------------------------------------------------------------- async, on the ambient thread

/// What was counted so far.
#[derive(Default)]
struct Total {
    files: usize,
    bytes: usize,
    left_out: usize,
    words: HashMap<String, u64>,
    workers: HashSet<u32>,
}

/// Keeps some batches under way and adds up their results.
async fn merge(files: Files) -> Result<Total, unsync::Error> {
    let files = Arc::new(Mutex::new(files));
    let next_batch = || {
        let files = Arc::clone(&files);
        unsync::thread(move || read(&files))
    };
    // For each core: one batch being counted, one waiting to be counted, two being read.
    let ahead = 4 * thread::available_parallelism().map_or(1, usize::from);
    let mut under_way: VecDeque<_> = (0..ahead).map(|_| next_batch()).collect();
    let mut total = Total::default();
    let mut shown = Instant::now();
    while let Some(batch) = under_way.pop_front() {
        let Some(batch) = batch.await? else { continue };
        under_way.push_back(next_batch());
        total.add(batch).await?;
        if shown.elapsed() > Duration::from_millis(100) {
            show_progress(&format!(
                "{} files, {} MB",
                total.files,
                total.bytes / 1_000_000
            ));
            shown = Instant::now();
        }
    }
    show_progress("");
    Ok(total)
}

impl Total {
    async fn add(&mut self, batch: Batch) -> Result<(), unsync::Error> {
        let counted = batch.counted.await?;
        self.files += batch.files;
        self.bytes += batch.bytes;
        self.left_out += batch.left_out;
        self.workers.insert(counted.worker);
        for (word, times) in counted.words {
            *self.words.entry(word).or_default() += times;
        }
        Ok(())
    }

    fn print(&self, began: Instant) {
        let mut words: Vec<_> = self.words.iter().collect();
        words.sort_unstable_by_key(|&(word, times)| (Reverse(times), word));
        for (word, times) in words.iter().take(COMMONEST) {
            println!("{times:>10} {}", shortened(word));
        }
        let Total {
            files,
            bytes,
            left_out,
            workers,
            ..
        } = self;
        let (seconds, workers) = (began.elapsed().as_secs_f64(), workers.len());
        println!("{files} files, {bytes} bytes, {left_out} left out");
        println!("{seconds:.3} s, worker processes: {workers}");
    }
}

/// The part of a word that fits on a line: a file of nothing but letters is one word.
fn shortened(word: &str) -> String {
    match word.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}…", &word[..end]),
        None => word.to_owned(),
    }
}

// ------------------------------------------------------------------------ blocking, on pool threads

/// Texts that have been read and sent to a worker process to be counted.
struct Batch {
    files: usize,
    bytes: usize,
    left_out: usize,
    counted: Unfuture<Counted>,
}

/// Reads the next texts and sends them to be counted; `None` when there are no more.
fn read(files: &Mutex<Files>) -> Option<Batch> {
    let (mut texts, mut bytes, mut left_out) = (Vec::new(), 0, 0);
    while bytes < BATCH_BYTES {
        // A statement of its own, so that the lock is free while the file is read.
        let found = files.lock().unwrap().next();
        let Some(found) = found else { break };
        match found.and_then(|path| read_text(&path).map_err(|error| named(&path, &error))) {
            Ok(text) => {
                bytes += text.len();
                texts.push(text);
            }
            Err(reason) => {
                left_out += 1;
                complain(&format!("left out {reason}"));
            }
        }
    }
    let files = texts.len();
    if files + left_out == 0 {
        return None;
    }
    let counted = unsync::cpu(count, (texts,));
    Some(Batch {
        files,
        bytes,
        left_out,
        counted,
    })
}

fn read_text(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let mut text = String::new();
    // A special file has no length, and may have no end.
    if file.metadata()?.len() > FILE_BYTES_MAX
        || file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)? as u64 > FILE_BYTES_MAX
    {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

/// The files under a directory, found as they are asked for.
struct Files {
    /// The start, if it is itself a file.
    single: Option<PathBuf>,
    /// The directory that is being read.
    open: Option<(PathBuf, ReadDir)>,
    /// Directories that are still to be read.
    waiting: Vec<PathBuf>,
}

impl Files {
    fn under(start: PathBuf) -> Result<Files, String> {
        let (single, open) = match fs::read_dir(&start) {
            Ok(entries) => (None, Some((start, entries))),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => (Some(start), None),
            Err(error) => return Err(named(&start, &error)),
        };
        Ok(Files {
            single,
            open,
            waiting: Vec::new(),
        })
    }
}

impl Iterator for Files {
    /// A file, or why some files may be missing.
    type Item = Result<PathBuf, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(single) = self.single.take() {
            return Some(Ok(single));
        }
        loop {
            let Some((directory, entries)) = &mut self.open else {
                let directory = self.waiting.pop()?;
                match fs::read_dir(&directory) {
                    Ok(entries) => self.open = Some((directory, entries)),
                    Err(error) => return Some(Err(named(&directory, &error))),
                }
                continue;
            };
            let Some(entry) = entries.next() else {
                self.open = None;
                continue;
            };
            match entry.and_then(|entry| Ok((entry.file_type()?, entry.path()))) {
                Ok((kind, path)) if kind.is_file() => return Some(Ok(path)),
                Ok((kind, path)) if kind.is_dir() && is_wanted(&path) => self.waiting.push(path),
                Ok(_) => {}
                Err(error) => return Some(Err(named(directory, &error))),
            }
        }
    }
}

fn is_wanted(directory: &Path) -> bool {
    let name = directory.file_name().unwrap_or_default().as_encoded_bytes();
    name != b"target" && !name.starts_with(b".")
}

// -------------------------------------------------------------------- CPU-bound, in worker processes

struct Counted {
    worker: u32,
    words: HashMap<String, u64>,
}

unsync::wire!(struct Counted { worker, words });
unsync::register!(count);

fn count(texts: Vec<String>) -> Counted {
    // First as they stand: a word is copied only once it is known to be new.
    let mut as_they_stand: HashMap<&str, u64> = HashMap::new();
    for text in &texts {
        for word in text.split(|c: char| !c.is_alphabetic()) {
            *as_they_stand.entry(word).or_default() += 1;
        }
    }
    // What `split` returns between two adjacent non-letters.
    as_they_stand.remove("");
    let mut words = HashMap::new();
    for (word, times) in as_they_stand {
        *words.entry(word.to_lowercase()).or_default() += times;
    }
    Counted {
        worker: process::id(),
        words,
    }
}

// ----------------------------------------------------------------------------------- standard error

/// A line that the next one overwrites, on a terminal only.
fn show_progress(progress: &str) {
    if io::stderr().is_terminal() {
        say(&format!("\r{progress:<40}\r"));
    }
}

fn complain(message: &str) {
    show_progress("");
    say(&format!("{message}\n"));
}

/// Writes in one piece, so that lines of many threads stay whole. Ignores errors: the reader may be gone.
fn say(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

fn named(path: &Path, error: &io::Error) -> String {
    format!("{path:?}: {error}")
}
