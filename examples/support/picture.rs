//! The Mandelbrot set in tiles, and the PNG file made of them, with nothing but the standard library.

use std::env;
use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::process::{self, ExitCode};

pub(crate) const WIDTH: usize = 1600;
pub(crate) const HEIGHT: usize = 1200;
/// The side of a tile: short enough that the work is spread evenly, though some tiles take far
/// longer than others, and long enough that each tile is worth sending to a worker process.
const TILE: usize = 100;
pub(crate) const TILES: usize = (WIDTH / TILE) * (HEIGHT / TILE);
const _: () = assert!(WIDTH % TILE == 0 && HEIGHT % TILE == 0);

/// The middle of the picture: a tail in the valley of the sea horses.
const MIDDLE: (f64, f64) = (-0.743_5, 0.131_3);
/// The distance from one pixel to the next.
const STEP: f64 = 0.002_7 / WIDTH as f64;
/// A point that stays near for this many turns counts as one of the set.
const TURNS: u32 = 2_000;
/// A pixel is the mean of this many points across and as many down.
const SAMPLES: usize = 2;

/// Puts a tile into the picture.
pub(crate) fn put(picture: &mut [u8], n: usize, tile: &Tile) {
    let (left, top) = corner(n);
    for (y, row) in (top..).zip(tile.rgb.chunks_exact(3 * TILE)) {
        let start = 3 * (y * WIDTH + left);
        picture[start..][..row.len()].copy_from_slice(row);
    }
}

/// The upper left corner of a tile.
fn corner(n: usize) -> (usize, usize) {
    let across = WIDTH / TILE;
    (n % across * TILE, n / across * TILE)
}

// --------------------------------------------------------------------------- in worker processes

pub(crate) struct Tile {
    pub(crate) worker: u32,
    /// The value of the environment variable `TILES_BY` in the worker.
    pub(crate) host: String,
    rgb: Vec<u8>,
}

unsync::wire!(struct Tile { worker, host, rgb });
unsync::register!(render);

pub(crate) fn render(n: usize) -> Tile {
    let mut rgb = Vec::with_capacity(3 * TILE * TILE);
    let (left, top) = corner(n);
    for y in top..top + TILE {
        for x in left..left + TILE {
            rgb.extend(pixel(x, y));
        }
    }
    Tile {
        worker: process::id(),
        host: env::var("TILES_BY").unwrap_or_default(),
        rgb,
    }
}

fn pixel(x: usize, y: usize) -> [u8; 3] {
    let offset = |pixel: usize, sample: usize, pixels: usize| {
        let part = (sample as f64 + 0.5) / SAMPLES as f64;
        (pixel as f64 + part - pixels as f64 / 2.0) * STEP
    };
    let mut sum = [0.0; 3];
    for sample in 0..SAMPLES * SAMPLES {
        let re = MIDDLE.0 + offset(x, sample % SAMPLES, WIDTH);
        let im = MIDDLE.1 - offset(y, sample / SAMPLES, HEIGHT);
        let color = escape(re, im).map_or([0.0; 3], color);
        sum = [sum[0] + color[0], sum[1] + color[1], sum[2] + color[2]];
    }
    sum.map(|sum| (255.0 * sum / (SAMPLES * SAMPLES) as f64).round() as u8)
}

/// After how many turns the point is far away, if it ever is, with a fraction that makes the colors smooth.
fn escape(re: f64, im: f64) -> Option<f64> {
    /// How far that is: the farther, the smoother.
    const FAR: f64 = 256.0;
    let (mut x, mut y) = (0.0, 0.0);
    for turn in 0..TURNS {
        let (xx, yy) = (x * x, y * y);
        if xx + yy > FAR * FAR {
            // Each turn squares the distance.
            let beyond = ((xx + yy).sqrt().ln() / FAR.ln()).log2();
            return Some(f64::from(turn) - beyond);
        }
        (x, y) = (xx - yy + re, 2.0 * x * y + im);
    }
    None
}

/// Waves of red, green and blue that grow longer and longer.
fn color(turns: f64) -> [f64; 3] {
    let phase = 0.35 * turns.sqrt();
    [1.8, 1.25, 0.8].map(|late| 0.5 - 0.5 * (phase - late).cos())
}

// ----------------------------------------------------------------------------------- the PNG file

/// The bytes of a PNG file; the chapters are those of <https://www.w3.org/TR/png-3/>.
pub(crate) fn png(rgb: &[u8]) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend((WIDTH as u32).to_be_bytes());
    header.extend((HEIGHT as u32).to_be_bytes());
    // 11.2.1: 8 bits each of red, green and blue; compression, filters, interlacing: method 0.
    header.extend([8, 2, 0, 0, 0]);
    let mut lines = Vec::with_capacity(rgb.len() + HEIGHT);
    for line in rgb.chunks_exact(3 * WIDTH) {
        // 9.2: no filter.
        lines.push(0);
        lines.extend(line);
    }
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    chunk(&mut png, b"IHDR", &header);
    chunk(&mut png, b"IDAT", &zlib(&lines));
    chunk(&mut png, b"IEND", &[]);
    png
}

/// 5.3: the length of the data, the name, the data, and the checksum of name and data.
fn chunk(png: &mut Vec<u8>, name: &[u8; 4], data: &[u8]) {
    png.extend((data.len() as u32).to_be_bytes());
    let checked = png.len();
    png.extend(name);
    png.extend(data);
    png.extend(crc32(&png[checked..]).to_be_bytes());
}

/// The format of RFC 1950, with the data in stored blocks of RFC 1951, section 3.2.4.
fn zlib(data: &[u8]) -> Vec<u8> {
    const BLOCK: usize = u16::MAX as usize;
    let mut zlib = vec![0x78, 0x01];
    for (number, block) in (1..).zip(data.chunks(BLOCK)) {
        let is_last = number * BLOCK >= data.len();
        let length = block.len() as u16;
        zlib.push(u8::from(is_last));
        zlib.extend(length.to_le_bytes());
        zlib.extend((!length).to_le_bytes());
        zlib.extend(block);
    }
    zlib.extend(adler32(data).to_be_bytes());
    zlib
}

/// Chapter 5.5 and annex D of the PNG specification, bit by bit.
fn crc32(data: &[u8]) -> u32 {
    let shift = |crc: u32, _| (crc >> 1) ^ (0xEDB8_8320 * (crc & 1));
    let step = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), shift);
    !data.iter().fold(!0, step)
}

/// RFC 1950, chapter 8.
fn adler32(data: &[u8]) -> u32 {
    let step = |(a, b), byte: &u8| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (b + a) % 65_521)
    };
    let (a, b) = data.iter().fold((1, 0), step);
    b << 16 | a
}

/// Ends a program: says what went wrong, if anything, and returns the exit code.
pub(crate) fn ended(program: &str, outcome: Result<(), Box<dyn Error>>) -> ExitCode {
    let Err(error) = outcome else {
        return ExitCode::SUCCESS;
    };
    show_progress("");
    say(&format!("{program}: {error}\n"));
    ExitCode::FAILURE
}

/// A line that the next one overwrites, on a terminal only.
pub(crate) fn show_progress(progress: &str) {
    if io::stderr().is_terminal() {
        say(&format!("\r{progress:<60}\r"));
    }
}

/// Writes to standard error, in one write. Ignores errors, since the reader may be gone.
pub(crate) fn say(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}
