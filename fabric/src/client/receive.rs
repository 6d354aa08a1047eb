//! What arrives on one connection: a buffer for PDUs, and large data past it.
//!
//! Data that has not arrived whole behind its response is read straight to where it belongs: the
//! next vectored read fills its buffer first and the receive buffer with what follows. While
//! answers are large, only little is read behind them, since that would have to be copied. The
//! checksum of such data is computed as it arrives, while it is still in the CPU's cache.

use crate::pdu::{Outcome, response_flags};
use crc_fast::{CrcAlgorithm, Digest};
use std::io::{self, IoSliceMut, Read};

/// Data from this size on counts as large.
const LARGE_BYTES: usize = 64 << 10;
/// What is read into the buffer while answers are large.
const SHORT_READ_BYTES: usize = 8 << 10;

/// Data of a response on its way in.
#[derive(Debug)]
pub(super) struct Incoming {
    pub outcome: Outcome,
    pub data: Vec<u8>,
    filled: usize,
    /// Of what has arrived; `None`: the data as a whole has no checksum.
    digest: Option<Digest>,
}

impl Incoming {
    /// Data that begins with `front`, all that has arrived of it.
    pub(super) fn new(outcome: Outcome, mut data: Vec<u8>, front: &[u8]) -> Self {
        data[..front.len()].copy_from_slice(front);
        let checked = outcome.flags & response_flags::ITEMS == 0;
        let digest = checked.then(|| Digest::new(CrcAlgorithm::Crc32Iscsi));
        let mut incoming = Self { outcome, data, filled: 0, digest };
        incoming.advance(front.len());
        incoming
    }

    fn missing(&self) -> usize {
        self.data.len() - self.filled
    }

    fn advance(&mut self, count: usize) {
        let end = self.filled + count;
        if let Some(digest) = &mut self.digest {
            digest.update(&self.data[self.filled..end]);
        }
        self.filled = end;
    }

    /// Once it is complete: the data is what the response says it is.
    pub(super) fn is_intact(&self) -> bool {
        self.digest.as_ref().is_none_or(|crc| crc.finalize() as u32 == self.outcome.data_crc)
    }
}

#[derive(Debug)]
pub(super) struct Receiver {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    incoming: Option<Incoming>,
    /// The last data that came was large.
    large: bool,
}

impl Receiver {
    pub(super) fn new(bytes: usize) -> Self {
        let buffer = vec![0; bytes].into_boxed_slice();
        Self { buffer, start: 0, end: 0, incoming: None, large: false }
    }

    /// One read; the bytes that came, 0 at the end of the stream.
    pub(super) fn fill<R: Read>(&mut self, stream: &mut R) -> io::Result<usize> {
        self.make_room();
        let room = &mut self.buffer[self.end..];
        let limit = if self.large { room.len().min(SHORT_READ_BYTES) } else { room.len() };
        let room = &mut room[..limit];
        let Some(incoming) = &mut self.incoming else {
            let count = stream.read(room)?;
            self.end += count;
            return Ok(count);
        };
        let mut slices =
            [IoSliceMut::new(&mut incoming.data[incoming.filled..]), IoSliceMut::new(room)];
        let count = stream.read_vectored(&mut slices)?;
        let missing = incoming.missing();
        incoming.advance(count.min(missing));
        self.end += count.saturating_sub(missing);
        Ok(count)
    }

    fn make_room(&mut self) {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.start > 0 && self.end > self.buffer.len() / 2 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// What has arrived and has not been consumed.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub(super) fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.end - self.start);
        self.start += count;
    }

    /// From now on, what arrives first belongs to `incoming`; the buffer is used up.
    pub(super) fn expect(&mut self, incoming: Incoming) {
        debug_assert!(self.start == self.end && self.incoming.is_none());
        self.large = incoming.data.len() >= LARGE_BYTES;
        self.incoming = Some(incoming);
    }

    /// The next `count` bytes were data that had arrived whole.
    pub(super) fn consume_data(&mut self, count: usize) {
        self.large = count >= LARGE_BYTES;
        self.consume(count);
    }

    /// More bytes must come before anything else can be read.
    pub(super) fn is_waiting_for_data(&self) -> bool {
        self.incoming.as_ref().is_some_and(|incoming| incoming.missing() > 0)
    }

    /// The data that has arrived whole, past the buffer.
    pub(super) fn take_complete(&mut self) -> Option<Incoming> {
        self.incoming.take_if(|incoming| incoming.missing() == 0)
    }

    /// Forgets everything; the buffer of data that was on its way is returned.
    pub(super) fn clear(&mut self) -> Option<Vec<u8>> {
        self.start = 0;
        self.end = 0;
        self.large = false;
        self.incoming.take().map(|incoming| incoming.data)
    }
}
