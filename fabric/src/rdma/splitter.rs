//! How data becomes work requests: by the fragments of the peer's memory, by the pieces that one gathers and by the
//! bytes that one moves. What counts work beforehand and what makes it are the same code, so that no queue
//! is ever given more than it was asked about.

use super::provider::Limits;
use crate::pdu::Fragment;
use crate::transport::{RemoteMemory, Walk};

/// Fills work requests up to their limits, along the peer's memory: what lies in a row there, and not in a row
/// here, takes one work request.
#[derive(Clone, Copy)]
pub(super) struct Splitter<'a> {
    walk: Walk<'a>,
    limits: Limits,
    pieces: usize,
    bytes: usize,
    /// Behind the last byte that was taken: address and key.
    end: (u64, u32),
}

impl<'a> Splitter<'a> {
    pub(super) fn new(remote: RemoteMemory<'a>, limits: &Limits) -> Self {
        let pieces = limits.pieces;
        Self { walk: remote.walk(), limits: *limits, pieces, bytes: 0, end: (0, 0) }
    }

    /// From here on as at a beginning: the next piece begins a work request.
    pub(super) fn begin(&mut self) {
        self.pieces = self.limits.pieces;
    }

    /// Where the first of the next `wanted` bytes go, as one piece, and whether it begins a work request.
    /// `None` if none is wanted, or at the memory's end.
    pub(super) fn take(&mut self, wanted: usize) -> Option<(bool, Fragment)> {
        if wanted == 0 {
            return None;
        }
        let mut ahead = self.walk;
        let next = ahead.step(1)?;
        let full = self.pieces == self.limits.pieces || self.bytes == self.limits.message_bytes;
        let begins = full || self.end != (next.address.get(), next.key.get());
        if begins {
            (self.pieces, self.bytes) = (0, 0);
        }
        let place = self.walk.step(wanted.min(self.limits.message_bytes - self.bytes))?;
        let count = place.length.get();
        self.pieces += 1;
        self.bytes += count as usize;
        self.end = (place.address.get().wrapping_add(count.into()), place.key.get());
        Some((begins, place))
    }

    /// Passes the next `length` bytes; how many work requests they begin.
    pub(super) fn pass(&mut self, length: usize) -> usize {
        let (mut works, mut rest) = (0, length);
        while let Some((begins, place)) = self.take(rest) {
            works += usize::from(begins);
            rest -= place.length.get() as usize;
        }
        works
    }
}
