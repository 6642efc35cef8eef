//! Frames: what travels between the parent and a worker, and how it is cut out of a stream of bytes.
//!
//! A frame is a header of 20 bytes and a payload:
//!
//! ```text
//!   mark and kind: u32 │ call: u64 │ length of the payload: u64 │ payload        (little endian)
//! ```
//!
//! Pure: knows neither process nor thread nor socket.

use std::io::{self, Read};

use super::spare;

/// The kinds of frames, with what the payload is and who sends it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Parent: run this. Entrypoint and arguments.
    Call = 1,
    /// Parent: say something, when the calls before it are done. Empty.
    Ping = 2,
    /// Parent: give back what has not started. Empty.
    Recall = 3,
    /// Parent: this call should end by itself. Empty.
    Cancel = 4,
    /// Worker: the call runs from now on. Empty.
    Start = 5,
    /// Worker: how far the call is. The name of a type, and a value of it, of the function's choice.
    Progress = 6,
    /// Worker: the call panicked. A report; the end of the call follows, or that of the worker.
    Panic = 7,
    /// Worker: the call is over. A byte that says how, and the value or a message.
    Done = 8,
    /// Worker: the answer to a recall. The calls that will not run.
    Returned = 9,
    /// Worker: the answer to a cancel. Empty.
    Cancelling = 10,
    /// Worker: the answer to a ping. Empty.
    Pong = 11,
    /// Worker: it cannot serve, and ends; no call has started. What the system refused it with, as a code
    /// and a text.
    Refused = 12,
}

impl Kind {
    const ALL: [Kind; 12] = [
        Kind::Call,
        Kind::Ping,
        Kind::Recall,
        Kind::Cancel,
        Kind::Start,
        Kind::Progress,
        Kind::Panic,
        Kind::Done,
        Kind::Returned,
        Kind::Cancelling,
        Kind::Pong,
        Kind::Refused,
    ];
}

pub(crate) const HEADER: usize = 20;
/// In the upper bytes of the kind. Bytes of another origin are most likely not taken for a frame.
const MARK: u32 = 0x756e_7300;

/// Writes a header whose length is not known yet; [`end`] fills it in.
pub(crate) fn begin(out: &mut Vec<u8>, kind: Kind, call: u64) -> usize {
    let start = out.len();
    out.extend_from_slice(&(MARK | kind as u32).to_le_bytes());
    out.extend_from_slice(&call.to_le_bytes());
    out.extend_from_slice(&0u64.to_le_bytes());
    start
}

pub(crate) fn end(out: &mut [u8], start: usize) {
    let length = (out.len() - start - HEADER) as u64;
    out[start + HEADER - 8..start + HEADER].copy_from_slice(&length.to_le_bytes());
}

/// A frame with an empty payload.
pub(crate) fn plain(out: &mut Vec<u8>, kind: Kind, call: u64) {
    begin(out, kind, call);
}

/// Panics unless the only frame in `out` still begins as it was begun, up to `before`: the code of the
/// program that encodes a value has the whole buffer in its hands.
pub(crate) fn assert_begun(out: &[u8], before: usize, kind: Kind, call: u64) {
    let header = header(out, 0).ok().flatten();
    let is_this = header.is_some_and(|header| (header.kind, header.call) == (kind, call));
    assert!(
        is_this && out.len() >= before,
        "`encode` must append to what is there, and has changed it"
    );
}

#[derive(Clone, Copy, Debug)]
struct Header {
    kind: Kind,
    call: u64,
    length: usize,
}

fn header(bytes: &[u8], limit: usize) -> io::Result<Option<Header>> {
    let Some((head, _)) = bytes.split_at_checked(HEADER) else {
        return Ok(None);
    };
    let number = |range: std::ops::Range<usize>| {
        head[range]
            .iter()
            .rev()
            .fold(0u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let mark = number(0..4);
    let kind = Kind::ALL
        .into_iter()
        .find(|kind| u64::from(MARK | *kind as u32) == mark);
    let Some(kind) = kind else {
        return Err(broken("something that is no frame arrived"));
    };
    match usize::try_from(number(12..20)) {
        Ok(length) if length <= limit => Ok(Some(Header {
            kind,
            call: number(4..12),
            length,
        })),
        _ => Err(broken("a frame longer than the limit arrived")),
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Bytes read at once. Most frames are small: many come with one read.
const CHUNK: usize = spare::LARGE;

/// Where frames come from.
pub(crate) trait Source: Read {
    /// Appends so many bytes, or fewer if the stream ends before. After an error what was read is
    /// there.
    fn read_many(&mut self, count: usize, into: &mut Vec<u8>) -> io::Result<()>;
}

/// The kind, the number of the call, and the payload.
pub(crate) type Frame<'a> = (Kind, u64, &'a [u8]);

/// Cuts frames out of a stream.
pub(crate) struct Frames {
    /// The largest payload that is taken.
    limit: usize,
    chunk: Box<[u8]>,
    /// What of the chunk is read and not yet given out.
    start: usize,
    end: usize,
    /// The payload of a frame that the chunk is too small for. Grows as bytes arrive, so a length
    /// that lies allocates nothing.
    large: Vec<u8>,
    /// The header that belongs to `large`, while that is being filled.
    filling: Option<Header>,
}

/// What the length of a frame is trusted for.
const RESERVE: usize = 1 << 20;

impl Frames {
    pub(crate) fn new(limit: usize) -> Frames {
        Frames {
            // With its header it has to fit into memory.
            limit: limit.min(isize::MAX as usize),
            chunk: vec![0; CHUNK].into_boxed_slice(),
            start: 0,
            end: 0,
            large: Vec::new(),
            filling: None,
        }
    }

    /// The next frame. `None` is the end of the stream between two frames.
    ///
    /// After an error like `WouldBlock` it may be called again and goes on where it stood.
    ///
    /// # Errors
    ///
    /// Those of the source; `UnexpectedEof` within a frame; `InvalidData` for bytes that are no frame
    /// or one above the limit.
    pub(crate) fn next(&mut self, source: &mut impl Source) -> io::Result<Option<Frame<'_>>> {
        self.wait(source)?;
        Ok(self.take())
    }

    /// The next frame, if it is here as a whole.
    pub(crate) fn take(&mut self) -> Option<Frame<'_>> {
        let Header { kind, call, length } = self.pass()?;
        let payload = match HEADER + length > CHUNK {
            true => &self.large[..],
            false => &self.chunk[self.start - length..self.start],
        };
        Some((kind, call, payload))
    }

    /// Waits for the next frame without taking it; `false` at the end of the stream. Fails as `next`
    /// does.
    pub(crate) fn wait(&mut self, source: &mut impl Source) -> io::Result<bool> {
        if self.filling.is_none() {
            spare::give(&mut self.large);
        }
        while !self.is_ready() {
            let waiting = &self.chunk[self.start..self.end];
            match (self.filling, header(waiting, self.limit)?) {
                (Some(header), _) => self.fill_large(header, source)?,
                (None, Some(header)) if HEADER + header.length > CHUNK => {
                    self.large.clear();
                    spare::lend(&mut self.large);
                    self.large.extend_from_slice(&waiting[HEADER..]);
                    (self.start, self.end) = (0, 0);
                    self.filling = Some(header);
                }
                (None, _) if !self.fill_chunk(source)? => return Ok(false),
                (None, _) => {}
            }
        }
        Ok(true)
    }

    /// The frames that are here as a whole.
    pub(crate) fn ready(&self) -> impl Iterator<Item = Frame<'_>> {
        let (mut at, mut large) = (self.start, self.filling);
        std::iter::from_fn(move || {
            if let Some(header) = large.take() {
                let is_whole = self.large.len() == header.length;
                return is_whole.then_some((header.kind, header.call, &self.large[..]));
            }
            let rest = &self.chunk[at..self.end];
            let header = header(rest, self.limit).ok()??;
            let payload = rest.get(HEADER..HEADER + header.length)?;
            at += HEADER + header.length;
            Some((header.kind, header.call, payload))
        })
    }

    /// Passes over so many of them.
    pub(crate) fn skip(&mut self, count: usize) {
        for _ in 0..count {
            self.pass();
        }
    }

    fn pass(&mut self) -> Option<Header> {
        if !self.is_ready() {
            return None;
        }
        if self.filling.is_some() {
            return self.filling.take();
        }
        let header = header(&self.chunk[self.start..self.end], self.limit).ok()??;
        self.start += HEADER + header.length;
        Some(header)
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready().next().is_some()
    }

    /// The payload of the last frame, which has this length, as the caller's own: a large one is given
    /// away, a small one copied.
    pub(crate) fn take_payload(&mut self, length: usize) -> Vec<u8> {
        match HEADER + length > CHUNK {
            true => std::mem::take(&mut self.large),
            false => self.chunk[self.start - length..self.start].to_vec(),
        }
    }

    /// Reads once; `false` at the end of the stream.
    fn fill_chunk(&mut self, source: &mut impl Read) -> io::Result<bool> {
        if self.start > 0 {
            self.chunk.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        match source.read(&mut self.chunk[self.end..])? {
            0 if self.end > 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.end += read;
                Ok(read > 0)
            }
        }
    }

    fn fill_large(&mut self, header: Header, source: &mut impl Source) -> io::Result<()> {
        let missing = header.length - self.large.len();
        self.large.reserve(missing.min(RESERVE));
        source.read_many(missing, &mut self.large)?;
        match self.large.len() == header.length {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For tests that look at the memory of a buffer: spare ones are shared.
    fn turn() -> std::sync::MutexGuard<'static, ()> {
        static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(|poison| poison.into_inner());
        spare::clear(std::time::Duration::ZERO);
        turn
    }

    macro_rules! sources {
        ($($source:ty)*) => {$(
            impl Source for $source {
                fn read_many(&mut self, count: usize, into: &mut Vec<u8>) -> io::Result<()> {
                    Read::take(self, count as u64).read_to_end(into).map(drop)
                }
            }
        )*};
    }
    sources!(&[u8] Drip<'_> Pieces<'_>);

    /// Gives one byte at a time, and says `WouldBlock` between any two.
    struct Drip<'a>(&'a [u8], bool);

    impl Read for Drip<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            match self.1 {
                true => Err(io::ErrorKind::WouldBlock.into()),
                false => self.0.read(&mut buffer[..1]),
            }
        }
    }

    /// Gives pieces of a length.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let piece = buffer.len().min(self.1);
            self.0.read(&mut buffer[..piece])
        }
    }

    fn stream(payloads: &[usize]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (call, length) in payloads.iter().enumerate() {
            let start = begin(&mut bytes, Kind::Done, call as u64);
            bytes.extend((0..*length).map(|byte| byte as u8));
            end(&mut bytes, start);
        }
        bytes
    }

    /// Numbers by xorshift (Marsaglia 2003), the same in every run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 11) as usize % end
        }
    }

    #[test]
    fn a_million_mutated_and_random_streams() {
        let _turn = turn();
        let (mut random, mut frames) = (Random(0x9e37_79b9_7f4a_7c15), Frames::new(2 * CHUNK));
        let (mut whole, mut refused, mut torn) = (0, 0, 0);
        let valid = stream(&[0, 1, 30, 7, 0, 100]);
        let mut bytes = Vec::new();
        for round in 0..1_000_000 {
            bytes.clear();
            match round % 4 {
                0 => bytes.extend((0..random.below(80)).map(|_| random.0 as u8)),
                _ => {
                    bytes.extend_from_slice(&valid[..random.below(valid.len())]);
                    for _ in 0..random.below(4).min(bytes.len()) {
                        let at = random.below(bytes.len());
                        bytes[at] = random.below(256) as u8;
                    }
                }
            }
            let mut source = Pieces(&bytes, 1 + random.below(bytes.len() + 1));
            let mut given = 0;
            let end = loop {
                match frames.next(&mut source) {
                    Ok(Some((_, _, payload))) => given += HEADER + payload.len(),
                    Ok(None) => break None,
                    Err(error) => break Some(error.kind()),
                }
            };
            assert!(given <= bytes.len(), "more than there was");
            assert!(
                frames.large.capacity() <= 4 * CHUNK,
                "for {} bytes",
                bytes.len()
            );
            match end {
                None => whole += 1,
                Some(io::ErrorKind::InvalidData) => refused += 1,
                Some(io::ErrorKind::UnexpectedEof) => torn += 1,
                Some(other) => panic!("{other}"),
            }
            (frames.start, frames.end, frames.filling) = (0, 0, None);
        }
        let least = [whole, refused, torn].into_iter().min();
        assert!(
            least > Some(10_000),
            "{whole} whole, {refused} refused, {torn} torn"
        );
    }

    #[test]
    fn frames_of_any_size_come_out_as_they_went_in() {
        let _turn = turn();
        let sizes = [
            0,
            1,
            CHUNK - HEADER,
            CHUNK - HEADER + 1,
            3,
            3 * CHUNK,
            0,
            7,
            1 << 21,
            5,
        ];
        let bytes = stream(&sizes);
        let mut source = bytes.as_slice();
        let mut frames = Frames::new(1 << 30);
        for (call, length) in sizes.into_iter().enumerate() {
            let (kind, number, payload) = frames.next(&mut source).unwrap().unwrap();
            assert_eq!(
                (kind, number, payload.len()),
                (Kind::Done, call as u64, length)
            );
            let payload = payload.to_vec();
            assert!(
                (0u8..=255)
                    .cycle()
                    .zip(&payload)
                    .all(|(byte, found)| byte == *found)
            );
            assert!(frames.take_payload(length) == payload, "{length} bytes");
        }
        assert!(frames.next(&mut source).unwrap().is_none());
        assert!(frames.large.capacity() <= CHUNK);
    }

    #[test]
    fn an_interrupted_read_goes_on_where_it_stood() {
        let _turn = turn();
        let bytes = stream(&[3, CHUNK + 10, 0]);
        let mut source = Drip(&bytes, false);
        let mut frames = Frames::new(1 << 30);
        let mut lengths = Vec::new();
        loop {
            match frames.next(&mut source) {
                Ok(Some((_, _, payload))) => lengths.push(payload.len()),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    assert!(frames.take().is_none(), "half a frame");
                }
            }
        }
        assert_eq!(lengths, [3, CHUNK + 10, 0]);
    }

    #[test]
    fn an_end_within_a_frame_is_told_from_an_end_between_two() {
        let _turn = turn();
        let bytes = stream(&[10, 2 * CHUNK]);
        for cut in [1, HEADER - 1, HEADER + 3, HEADER + 10 + 5, bytes.len() - 1] {
            let mut source = &bytes[..cut];
            let mut frames = Frames::new(1 << 30);
            let error = loop {
                match frames.next(&mut source) {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("cut at {cut} taken for an end between two frames"),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "cut at {cut}");
        }
    }

    #[test]
    fn bytes_of_another_origin_are_no_frame() {
        let error = Frames::new(1 << 30)
            .next(&mut &b"GET / HTTP/1.1\r\nHost: x\r\n"[..])
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let mut unknown = stream(&[0]);
        unknown[0] = 200;
        let error = Frames::new(1 << 30)
            .next(&mut unknown.as_slice())
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_length_that_lies_allocates_nothing() {
        let _turn = turn();
        let mut lie = stream(&[0]);
        lie[12..20].copy_from_slice(&(1u64 << 29).to_le_bytes());
        lie.extend([0; 100]);
        let mut frames = Frames::new(1 << 30);
        let error = frames.next(&mut lie.as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(frames.large.capacity() <= 2 * RESERVE);

        lie[12..20].copy_from_slice(&u64::MAX.to_le_bytes());
        let error = Frames::new(1 << 30).next(&mut lie.as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
