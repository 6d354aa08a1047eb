//! What waits to leave on one connection: small PDUs in a byte run, bulk data in its own buffers.
//!
//! Guarantees the order of what was pushed, and that a payload's buffer is dropped once its last
//! byte is the kernel's. Nothing is copied but small PDUs; one vectored write takes as much as
//! [`SLICES_MAX`] pieces hold. Small PDUs are bounded by [`SMALL_BYTES_MAX`] (a peer that pings and
//! never reads would otherwise fill the memory), payloads by the credits of the session above.

use crate::Buffer;
use crate::transport::Payload;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Write};

/// Pieces of one vectored write (the system's limit is 1024).
const SLICES_MAX: usize = 64;
/// The most bytes of small PDUs that wait.
const SMALL_BYTES_MAX: usize = 512 << 10;
/// Once this many bytes have left in one go it is the others' turn.
const BUDGET_BYTES: usize = 4 << 20;

#[derive(Debug)]
enum Entry<B> {
    /// The next so many bytes of `small`.
    Small(usize),
    Payload(Payload<B>),
}

/// How a try to empty the queue ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// Nothing is left.
    All,
    /// The stream takes no more now.
    Blocked,
    /// It would take more, but the budget is used up.
    Some,
}

#[derive(Debug)]
pub(super) struct SendQueue<B> {
    small: Vec<u8>,
    small_head: usize,
    entries: VecDeque<Entry<B>>,
}

impl<B: Buffer> SendQueue<B> {
    pub(super) fn new() -> Self {
        Self {
            small: Vec::with_capacity(4096),
            small_head: 0,
            entries: VecDeque::with_capacity(64),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Appends bytes that are copied, unless too many wait already.
    pub(super) fn push_small(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        if self.small.len() - self.small_head + bytes.len() > SMALL_BYTES_MAX {
            return Err("the peer does not read");
        }
        if self.small_head > self.small.len() / 2 {
            self.small.drain(..self.small_head);
            self.small_head = 0;
        }
        self.small.extend_from_slice(bytes);
        match self.entries.back_mut() {
            Some(Entry::Small(length)) => *length += bytes.len(),
            _ => self.entries.push_back(Entry::Small(bytes.len())),
        }
        Ok(())
    }

    /// Appends bulk data, which is not copied.
    pub(super) fn push_payload(&mut self, payload: Payload<B>) {
        assert!(payload.range.end <= payload.buffer.as_ref().len(), "payload outside its buffer");
        if !payload.range.is_empty() {
            self.entries.push_back(Entry::Payload(payload));
        }
    }

    /// Drops everything.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.small.clear();
        self.small_head = 0;
    }

    /// Writes what the stream takes. `short_blocks`: a write that took less than it was given would
    /// block now. Returns the number of bytes as well.
    pub(super) fn write_to(
        &mut self,
        stream: &mut impl Write,
        short_blocks: bool,
    ) -> io::Result<(Sent, usize)> {
        let mut total = 0;
        while !self.is_empty() {
            if total >= BUDGET_BYTES {
                return Ok((Sent::Some, total));
            }
            let (offered, result) = self.write_once(stream);
            match result {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.advance(written);
                    total += written;
                    if written < offered && short_blocks {
                        return Ok((Sent::Blocked, total));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Ok((Sent::Blocked, total));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok((Sent::All, total))
    }

    fn write_once(&self, stream: &mut impl Write) -> (usize, io::Result<usize>) {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let (mut count, mut offered, mut small) = (0, 0, self.small_head);
        for entry in self.entries.iter().take(SLICES_MAX) {
            let piece = match entry {
                Entry::Small(length) => {
                    small += length;
                    &self.small[small - length..small]
                }
                Entry::Payload(payload) => &payload.buffer.as_ref()[payload.range.clone()],
            };
            slices[count] = IoSlice::new(piece);
            count += 1;
            offered += piece.len();
        }
        (offered, stream.write_vectored(&slices[..count]))
    }

    /// Forgets the first `bytes` bytes.
    fn advance(&mut self, mut bytes: usize) {
        while let Some(entry) = self.entries.front_mut() {
            let done = match entry {
                Entry::Small(length) => {
                    let part = bytes.min(*length);
                    *length -= part;
                    self.small_head += part;
                    bytes -= part;
                    *length == 0
                }
                Entry::Payload(payload) => {
                    let part = bytes.min(payload.range.len());
                    payload.range.start += part;
                    bytes -= part;
                    payload.range.is_empty()
                }
            };
            if !done {
                return;
            }
            self.entries.pop_front();
        }
        self.small.clear();
        self.small_head = 0;
    }
}
