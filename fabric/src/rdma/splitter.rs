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
    pieces_max: usize,
    bytes_max: usize,
    /// Of the work request that was begun last.
    pieces: usize,
    bytes: usize,
    /// Behind the last byte that was taken: address and key.
    end: (u64, u32),
}

impl<'a> Splitter<'a> {
    pub(super) fn new(remote: RemoteMemory<'a>, limits: &Limits) -> Self {
        let Limits { pieces, message_bytes, .. } = *limits;
        let (pieces_max, bytes_max) = (pieces, message_bytes);
        Self { walk: remote.walk(), pieces_max, bytes_max, pieces, bytes: 0, end: (0, 0) }
    }

    /// From here on as at a beginning: the next piece begins a work request.
    pub(super) fn begin(&mut self) {
        self.pieces = self.pieces_max;
    }

    /// Where the first of the next `wanted` bytes go, as one piece, and whether it begins a work request.
    /// `None` if none is wanted, or at the memory's end.
    pub(super) fn take(&mut self, wanted: usize) -> Option<(bool, Fragment)> {
        if wanted == 0 {
            return None;
        }
        let (address, key) = self.walk.position()?;
        let full = self.pieces == self.pieces_max || self.bytes == self.bytes_max;
        let begins = full || self.end != (address, key);
        if begins {
            (self.pieces, self.bytes) = (0, 0);
        }
        let place = self.walk.step(wanted.min(self.bytes_max - self.bytes))?;
        let count = place.length.get();
        self.pieces += 1;
        self.bytes += count as usize;
        self.end = (address.wrapping_add(count.into()), key);
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
