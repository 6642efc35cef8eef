//! Frames: what travels between the parent and a worker, and how it is cut out of a stream of bytes.
//!
//! A frame is a header of 20 bytes and a payload:
//!
//! ```text
//!   mark and kind: u32 │ call: u64 │ length of the payload: u64 │ payload        (little endian)
//! ```
//!
//! Pure: it knows no process, thread or socket.

use std::borrow::Cow;
use std::cell::Cell;
use std::io::{self, Read};

use super::buffers;
use super::wire::Wire;

/// The kinds of frames, with what the payload is and who sends it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Parent: run this. Entrypoint and arguments.
    Call,
    /// Parent: request to send a large call. Empty.
    Rts,
    /// Parent: this call should end by itself. Empty.
    Cancel,
    /// Worker: the call runs from now on. Empty.
    Start,
    /// Worker: how far the call has got. The id of a type, and a value of it.
    Progress,
    /// Worker: the call panicked. A report; the end of the call or of the worker follows.
    Panic,
    /// Worker: the call is over. An `Option` of the `ErrorKind` as a number, and the value or a message.
    Done,
    /// Worker: these calls will not run here, because another takes long. Their ids.
    Returned,
    /// Worker: clear to send, the answer to a request. It does nothing but read the large call. Empty.
    Cts,
    /// Worker: it cannot serve, and ends; no call has started. The `io::Error` of the system.
    Refused,
    /// Parent to a worker behind a relay: end by yourself. Empty.
    Retire,
    /// Parent and relay: nothing. Empty, or a newline.
    Noop,
    /// Relay: the parent has to say something. A newline.
    Ping,
    /// Relay: the worker has ended, and that was all it said. Its pid and exit status are in place of the
    /// call. Empty.
    Gone,
}

crate::wire! {
    enum Kind {
        Call, Rts, Cancel, Start, Progress, Panic, Done, Returned, Cts, Refused, Retire, Noop, Ping, Gone,
    }
}

pub(crate) const HEADER: usize = 20;
/// In the upper bytes of the kind: tells frames from other bytes, most likely.
const MARK: u32 = 0x756e_7300;

/// Writes an empty frame, or the header of one whose length is not known yet; [`end`] fills it in.
pub(crate) fn begin(out: &mut Vec<u8>, kind: Kind, call: u64) -> usize {
    let start = out.len();
    (MARK | kind as u32, call, 0u64).encode(out);
    start
}

pub(crate) fn end(out: &mut [u8], start: usize) {
    let length = (out.len() - start - HEADER) as u64;
    out[start + HEADER - 8..start + HEADER].copy_from_slice(&length.to_le_bytes());
}

/// A frame by itself.
pub(crate) fn of(kind: Kind, call: u64, payload: &impl Wire) -> Vec<u8> {
    let mut frame = Vec::new();
    let start = begin(&mut frame, kind, call);
    payload.encode(&mut frame);
    end(&mut frame, start);
    frame
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) call: u64,
    length: usize,
}

fn header(bytes: &[u8], limit: usize) -> io::Result<Option<Header>> {
    let Some((mut head, _)) = bytes.split_at_checked(HEADER) else {
        return Ok(None);
    };
    let header = <(u32, u64, u64)>::decode(&mut head);
    let (mark, call, length) = header.map_err(io::Error::other)?;
    let kind = Kind::decode(&mut &(mark ^ MARK).to_le_bytes()[..])
        .map_err(|_| broken("bytes that are not a frame arrived"))?;
    match usize::try_from(length) {
        Ok(length) if length <= limit => Ok(Some(Header { kind, call, length })),
        _ => Err(broken("a frame longer than the limit arrived")),
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// How many bytes are read at once. Most frames are small: many come with one read.
const CHUNK: usize = buffers::LARGE;
/// How far the length of a frame is trusted. Beyond that, there is room for as many bytes again as have arrived.
const RESERVE: usize = 1 << 20;

/// Where frames come from.
pub(crate) trait Source: Read {
    /// Appends `count` bytes, or fewer if the stream ends. After an error, `into` holds what was read.
    fn read_many(&mut self, count: usize, into: &mut Vec<u8>) -> io::Result<()>;
}

/// A frame that has arrived. Small payloads are borrowed from the reader, large ones are given away.
pub(crate) type Frame<'a> = (Header, Cow<'a, [u8]>);

/// Cuts frames out of a stream: [`fill`](Self::fill) reads, [`pop`](Self::pop) cuts.
pub(crate) struct FrameReader {
    /// The largest payload that is accepted.
    limit: usize,
    chunk: Box<[u8]>,
    /// The bytes of the chunk from `start` to `end` are read and not yet popped. In a cell, so that
    /// `pop` takes `&self`: many frames can be held at once, and none beyond the next `fill`.
    start: Cell<usize>,
    end: usize,
    /// A payload larger than the chunk, as far as it has arrived. The chunk is empty meanwhile.
    large: Cell<Option<(Header, Vec<u8>)>>,
}

impl FrameReader {
    pub(crate) fn new(limit: usize) -> FrameReader {
        FrameReader {
            // A frame has to fit into memory with its header.
            limit: limit.min(isize::MAX as usize - HEADER),
            chunk: vec![0; CHUNK].into_boxed_slice(),
            start: Cell::new(0),
            end: 0,
            large: Cell::new(None),
        }
    }

    /// Blocks until there is a whole frame to pop; `false` at the end of the stream between two frames.
    /// Does not read if there is one already.
    ///
    /// It may be called again after an error such as `WouldBlock`, and continues where it stopped.
    ///
    /// # Errors
    ///
    /// Those of the source; `UnexpectedEof` at the end of the stream within a frame; `InvalidData` for
    /// bytes that are not a frame and for a frame above the limit.
    pub(crate) fn fill(&mut self, source: &mut impl Source) -> io::Result<bool> {
        loop {
            if let Some((header, payload)) = self.large.get_mut() {
                while payload.len() < header.length {
                    let missing = header.length - payload.len();
                    if payload.len() == payload.capacity() {
                        payload.try_reserve_exact(missing.min(payload.len().max(RESERVE)))?;
                    }
                    let end = header.length.min(payload.capacity());
                    source.read_many(end - payload.len(), payload)?;
                    if payload.len() < end {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                return Ok(true);
            }
            let unread = &self.chunk[self.start.get()..self.end];
            match header(unread, self.limit)? {
                Some(header) if HEADER + header.length <= unread.len() => return Ok(true),
                Some(header) if HEADER + header.length > CHUNK => {
                    let mut payload = Vec::new();
                    buffers::enlarge(&mut payload);
                    payload.extend_from_slice(&unread[HEADER..]);
                    (self.start, self.end) = (Cell::default(), 0);
                    self.large.set(Some((header, payload)));
                }
                _ if !self.read_chunk(source)? => return Ok(false),
                _ => {}
            }
        }
    }

    /// Takes the next frame, if all of it has arrived.
    pub(crate) fn pop(&self) -> Option<Frame<'_>> {
        match self.large.take() {
            Some((header, payload)) if payload.len() == header.length => {
                Some((header, payload.into()))
            }
            partial => {
                self.large.set(partial);
                let unread = &self.chunk[self.start.get()..self.end];
                // `fill` reports an error.
                let header = header(unread, self.limit).ok()??;
                let end = HEADER + header.length;
                let payload = unread.get(HEADER..end)?;
                self.start.set(self.start.get() + end);
                Some((header, payload.into()))
            }
        }
    }

    /// Reads once; `false` at the end of the stream.
    fn read_chunk(&mut self, source: &mut impl Read) -> io::Result<bool> {
        let start = self.start.take();
        self.chunk.copy_within(start..self.end, 0);
        self.end -= start;
        match source.read(&mut self.chunk[self.end..])? {
            0 if self.end > 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.end += read;
                Ok(read > 0)
            }
        }
    }

    /// When nothing more comes: the empty frame behind a torn one, if there is one.
    pub(crate) fn behind_torn(&mut self) -> Option<(Kind, u64)> {
        let torn = match self.large.get_mut() {
            Some((_, payload)) => payload,
            None => &self.chunk[self.start.get()..self.end],
        };
        let start = torn.len().checked_sub(HEADER)?;
        let header = header(&torn[start..], 0).ok()??;
        Some((header.kind, header.call))
    }
}

/// Follows a stream that is passed on unread, and knows where its frames end.
#[derive(Default)]
pub(crate) struct FrameTracker {
    header: Vec<u8>,
    /// How much of the payload is missing.
    missing: usize,
}

impl FrameTracker {
    pub(crate) fn follow(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let payload = self.missing.min(bytes.len());
            self.missing -= payload;
            bytes = &bytes[payload..];
            let part = bytes.len().min(HEADER - self.header.len());
            self.header.extend_from_slice(&bytes[..part]);
            bytes = &bytes[part..];
            if let Some(header) = header(&self.header, usize::MAX)? {
                self.missing = header.length;
                self.header.clear();
            }
        }
        Ok(())
    }

    /// Whether the stream is between two frames.
    pub(crate) fn is_between(&self) -> bool {
        self.missing == 0 && self.header.is_empty()
    }

    /// Whether this many more bytes would not be taken for the rest of a frame.
    pub(crate) fn may_end_with(&self, count: usize) -> bool {
        self.is_between() || self.missing > count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processes::buffers::tests::turn;

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

    /// Gives pieces of a given length.
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

    fn next<'a>(
        frames: &'a mut FrameReader,
        source: &mut impl Source,
    ) -> io::Result<Option<Frame<'a>>> {
        frames.fill(source)?;
        Ok(frames.pop())
    }

    /// Why the first frame of these bytes is refused.
    fn refused(mut bytes: &[u8]) -> io::Error {
        FrameReader::new(1 << 30).fill(&mut bytes).unwrap_err()
    }

    /// The memory reserved for a payload that has not fully arrived.
    fn reserved(frames: &mut FrameReader) -> usize {
        let large = frames.large.get_mut().as_ref();
        large.map_or(0, |(_, payload)| payload.capacity())
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
        let (mut random, mut frames) = (Random(0x9e37_79b9_7f4a_7c15), FrameReader::new(2 * CHUNK));
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
            let (mut given, mut most) = (0, 0);
            let end = loop {
                match next(&mut frames, &mut source) {
                    Ok(Some((_, payload))) => {
                        given += HEADER + payload.len();
                        if let Cow::Owned(large) = payload {
                            most = most.max(large.capacity());
                        }
                    }
                    Ok(None) => break None,
                    Err(error) => break Some(error.kind()),
                }
            };
            assert!(given <= bytes.len(), "more than there was");
            most = most.max(reserved(&mut frames));
            assert!(most <= 4 * CHUNK, "{most} for {} bytes", bytes.len());
            match end {
                None => whole += 1,
                Some(io::ErrorKind::InvalidData) => refused += 1,
                Some(io::ErrorKind::UnexpectedEof) => torn += 1,
                Some(other) => panic!("{other}"),
            }
            (frames.start, frames.end, frames.large) = (Cell::default(), 0, Cell::default());
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
        let mut frames = FrameReader::new(1 << 30);
        for (call, length) in sizes.into_iter().enumerate() {
            let (header, payload) = next(&mut frames, &mut source).unwrap().unwrap();
            assert_eq!(
                (header.kind, header.call, payload.len()),
                (Kind::Done, call as u64, length)
            );
            assert!(
                (0u8..=255)
                    .cycle()
                    .zip(&*payload)
                    .all(|(byte, found)| byte == *found)
            );
            let is_given_away = matches!(payload, Cow::Owned(_));
            assert_eq!(is_given_away, HEADER + length > CHUNK, "{length} bytes");
        }
        assert!(next(&mut frames, &mut source).unwrap().is_none());
        assert_eq!(reserved(&mut frames), 0);
    }

    #[test]
    fn frames_that_arrive_together_can_be_held_together() {
        let bytes = stream(&[3, 0, CHUNK / 2, 2 * CHUNK, 5]);
        let mut source = bytes.as_slice();
        let mut frames = FrameReader::new(1 << 30);
        let mut batches = Vec::new();
        while frames.fill(&mut source).unwrap() {
            assert!(frames.fill(&mut source).unwrap(), "the same frames again");
            let batch: Vec<_> = std::iter::from_fn(|| frames.pop()).collect();
            batches.push(Vec::from_iter(
                batch
                    .iter()
                    .map(|(header, payload)| (header.call, payload.len())),
            ));
        }
        let expected = [
            vec![(0, 3), (1, 0), (2, CHUNK / 2)],
            vec![(3, 2 * CHUNK)],
            vec![(4, 5)],
        ];
        assert_eq!(batches, expected);
    }

    #[test]
    fn an_interrupted_read_goes_on_where_it_stood() {
        let _turn = turn();
        let bytes = stream(&[3, CHUNK + 10, 0]);
        let mut source = Drip(&bytes, false);
        let mut frames = FrameReader::new(1 << 30);
        let mut lengths = Vec::new();
        loop {
            match next(&mut frames, &mut source) {
                Ok(Some((_, payload))) => lengths.push(payload.len()),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    assert!(frames.pop().is_none(), "half a frame");
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
            let mut frames = FrameReader::new(1 << 30);
            let error = loop {
                match next(&mut frames, &mut source) {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("cut at {cut} taken for an end between two frames"),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "cut at {cut}");
        }
    }

    #[test]
    fn a_tracker_knows_where_frames_end() {
        let lengths = [0, 1, 0, HEADER - 1, HEADER, 300, 0];
        let bytes = stream(&lengths);
        let ends = lengths.iter().scan(0, |end, length| {
            *end += HEADER + length;
            Some(*end)
        });
        let borders: Vec<usize> = [0].into_iter().chain(ends).collect();
        for piece in 1..bytes.len() {
            let (mut tracker, mut followed) = (FrameTracker::default(), 0);
            for part in bytes.chunks(piece) {
                tracker.follow(part).unwrap();
                followed += part.len();
                let is_between = borders.contains(&followed);
                assert_eq!(tracker.is_between(), is_between, "after {followed}");
            }
        }
        let noise = FrameTracker::default().follow(b"far: this node goes down in five minutes");
        assert_eq!(noise.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    /// Wherever the stream is torn, the frame behind it is found, or was not to be sent.
    #[test]
    fn the_last_frame_is_found_behind_a_torn_one() {
        let mut last = Vec::new();
        begin(&mut last, Kind::Gone, 77);
        for bytes in [stream(&[100]), stream(&[10, 2 * CHUNK])] {
            for cut in 1..bytes.len() {
                let mut tracker = FrameTracker::default();
                tracker.follow(&bytes[..cut]).unwrap();
                if !tracker.may_end_with(HEADER) || tracker.is_between() {
                    continue;
                }
                let torn = [&bytes[..cut], &last].concat();
                let (mut source, mut frames) = (torn.as_slice(), FrameReader::new(1 << 30));
                while frames.fill(&mut source).is_ok() {
                    assert_eq!(frames.pop().unwrap().0.kind, Kind::Done, "cut at {cut}");
                }
                assert_eq!(frames.behind_torn(), Some((Kind::Gone, 77)), "cut at {cut}");
            }
        }
    }

    #[test]
    fn bytes_of_another_origin_are_no_frame() {
        let error = refused(b"GET / HTTP/1.1\r\nHost: x\r\n");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let mut unknown = stream(&[0]);
        unknown[0] = 200;
        assert_eq!(refused(&unknown).kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn every_kind_arrives_as_what_it_is() {
        let decode = |number: u32| Kind::decode(&mut &number.to_le_bytes()[..]);
        let kinds: Vec<_> = (0..=u32::from(u8::MAX)).flat_map(decode).collect();
        for (number, kind) in (0..).zip(&kinds) {
            assert_eq!(*kind as u32, number);
        }
        assert_eq!(kinds.last(), Some(&Kind::Gone));
    }

    #[test]
    fn a_length_that_lies_allocates_nothing() {
        let _turn = turn();
        let mut lie = stream(&[0]);
        lie[12..20].copy_from_slice(&(1u64 << 29).to_le_bytes());
        lie.extend([0; 100]);
        let mut frames = FrameReader::new(1 << 30);
        let error = frames.fill(&mut lie.as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(reserved(&mut frames) <= 2 * RESERVE);

        lie[12..20].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(refused(&lie).kind(), io::ErrorKind::InvalidData);
    }
}
