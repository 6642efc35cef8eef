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
    /// Worker: how far the call is. A value of the function's choice.
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
}

impl Kind {
    const ALL: [Kind; 11] = [
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
const CHUNK: usize = 64 << 10;

/// Cuts frames out of a stream.
pub(crate) struct Frames {
    /// The largest payload that is taken.
    limit: usize,
    chunk: Box<[u8]>,
    /// What of the chunk is read and not yet given out.
    start: usize,
    end: usize,
    /// The payload of a frame that the chunk is too small for. Grows as bytes arrive, so a length
    /// that lies allocates nothing; kept for the next one.
    large: Vec<u8>,
    /// The header that belongs to `large`, while that is being filled.
    filling: Option<Header>,
}

/// A large payload buffer that is kept over an idle time.
const LARGE_KEPT: usize = 1 << 20;

impl Frames {
    pub(crate) fn new(limit: usize) -> Frames {
        Frames {
            limit,
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
    pub(crate) fn next(
        &mut self,
        source: &mut impl Read,
    ) -> io::Result<Option<(Kind, u64, &[u8])>> {
        let Header { kind, call, length } = loop {
            if let Some(header) = self.filling {
                self.fill_large(header, source)?;
                self.filling = None;
                return Ok(Some((header.kind, header.call, &self.large)));
            }
            let waiting = &self.chunk[self.start..self.end];
            match header(waiting, self.limit)? {
                Some(header) if waiting.len() >= HEADER + header.length => break header,
                Some(header) if HEADER + header.length > CHUNK => {
                    self.large.clear();
                    self.large.extend_from_slice(&waiting[HEADER..]);
                    (self.start, self.end) = (0, 0);
                    self.filling = Some(header);
                }
                _ if !self.fill_chunk(source)? => return Ok(None),
                _ => {}
            }
        };
        let payload = self.start + HEADER..self.start + HEADER + length;
        self.start = payload.end;
        Ok(Some((kind, call, &self.chunk[payload])))
    }

    /// Gives the last large payload away instead of copying it.
    pub(crate) fn take_large(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.large)
    }

    /// Gives memory back that only an unusually large frame needed.
    pub(crate) fn relax(&mut self) {
        if self.filling.is_none() && self.large.capacity() > LARGE_KEPT {
            self.large = Vec::new();
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

    fn fill_large(&mut self, header: Header, source: &mut impl Read) -> io::Result<()> {
        let missing = header.length - self.large.len();
        self.large.reserve(missing.min(LARGE_KEPT));
        source.take(missing as u64).read_to_end(&mut self.large)?;
        match self.large.len() == header.length {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
