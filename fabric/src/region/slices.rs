//! Slices of fragments for the time of one call: of the system, of a copy, of a checksum.
//!
//! While a device may write to a region, no slice of it is made, and its bytes are copied piece by piece.

use super::{Held, STAGE_BYTES, Shared};
use crate::checksum::Digest;
use std::cell::Cell;
use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;

/// Slices of one call.
pub(crate) const SLICES_MAX: usize = 64;

/// The slices that are out for one call: shared ones, or mutable ones. They are in when it is dropped.
pub(crate) struct Slices<'a> {
    out: [Cell<Option<&'a Shared>>; SLICES_MAX],
    count: Cell<usize>,
    /// Where the last mutable one ended: the next has to begin behind it, so that none overlap.
    end: Cell<usize>,
    step: isize,
}

impl<'a> Slices<'a> {
    pub(crate) fn shared() -> Self {
        Self::new(1)
    }

    pub(crate) fn mutable() -> Self {
        Self::new(-1)
    }

    fn new(step: isize) -> Self {
        let out = [const { Cell::new(None) }; SLICES_MAX];
        Self { out, count: Cell::new(0), end: Cell::new(0), step }
    }

    /// Takes one more of `shared` out, unless no slice of it may be made now.
    fn take(&self, shared: &'a Shared) -> Option<()> {
        let slices = shared.slices.get();
        let is_free = match self.step {
            1 => slices >= 0,
            _ => shared.is_writable() && (slices == 0 || (slices < 0 && self.holds(shared))),
        };
        if !is_free || shared.is_exposed() {
            return None;
        }
        self.out.get(self.count.get())?.set(Some(shared));
        self.count.set(self.count.get() + 1);
        shared.slices.set(slices + self.step);
        Some(())
    }

    fn holds(&self, shared: &Shared) -> bool {
        let found = self.out[..self.count.get()].iter().rev().filter_map(Cell::get);
        found.into_iter().any(|one| std::ptr::eq(one, shared))
    }

    /// The bytes of `held` in `range`, counted from its beginning. `None`: copy them.
    ///
    /// # Panics
    /// If they are not in it.
    pub(crate) fn get(&self, held: &'a Held, range: Range<usize>) -> Option<IoSlice<'_>> {
        assert!(self.step > 0 && range.end <= held.length as usize, "outside of the fragment");
        let shared = &*held.region.0;
        self.take(shared)?;
        let start = shared.memory.at(held.offset + range.start, range.len());
        // SAFETY: so many bytes of the memory, by `at`, mapped as long as `held`. Until `self` is dropped,
        // which outlives the slice, nobody writes to them: `slices` keeps this thread from it (no mutable
        // slice is out, or comes out, and `Region::write` refuses), and no device may.
        Some(IoSlice::new(unsafe { std::slice::from_raw_parts(start.as_ptr(), range.len()) }))
    }

    /// [`Slices::get`], to write to. `None` also where it does not lie behind the one before.
    ///
    /// # Panics
    /// If they are not in it.
    pub(crate) fn get_mut(&self, held: &'a Held, range: Range<usize>) -> Option<IoSliceMut<'_>> {
        assert!(self.step < 0 && range.end <= held.length as usize, "outside of the fragment");
        let shared = &*held.region.0;
        let start = shared.memory.at(held.offset + range.start, range.len());
        if start.addr().get() < self.end.get() {
            return None;
        }
        self.take(shared)?;
        self.end.set(start.addr().get() + range.len());
        // SAFETY: as in `get`; and no other slice of them is out: those of this call lie before them, and
        // others there are none, since `slices` was 0 when this call took its first one.
        Some(IoSliceMut::new(unsafe {
            std::slice::from_raw_parts_mut(start.as_ptr(), range.len())
        }))
    }
}

impl Drop for Slices<'_> {
    fn drop(&mut self) {
        for shared in self.out.iter().filter_map(Cell::take) {
            shared.slices.set(shared.slices.get() - self.step);
        }
    }
}

impl Held {
    /// Hands the bytes in `range`, counted from the beginning, to `take`: in place, or in copied pieces.
    ///
    /// # Panics
    /// If they are not in it.
    pub(crate) fn read_pieces(&self, range: Range<usize>, mut take: impl FnMut(&[u8])) {
        if let Some(slice) = Slices::shared().get(self, range.clone()) {
            return take(&slice);
        }
        let mut stage = [0; STAGE_BYTES];
        for start in range.clone().step_by(STAGE_BYTES) {
            let piece = &mut stage[..STAGE_BYTES.min(range.end - start)];
            let read = self.region.read(self.offset + start, piece);
            read.expect("nobody views what an operation holds");
            take(piece);
        }
    }

    /// Has `fill` write the bytes in `range`: in place, or in pieces that are copied.
    ///
    /// # Panics
    /// If they are not in it, or cannot be written to.
    pub(crate) fn fill_pieces(&self, range: Range<usize>, mut fill: impl FnMut(&mut [u8])) {
        if let Some(mut slice) = Slices::mutable().get_mut(self, range.clone()) {
            return fill(&mut slice);
        }
        let mut stage = [0; STAGE_BYTES];
        for start in range.clone().step_by(STAGE_BYTES) {
            let piece = &mut stage[..STAGE_BYTES.min(range.end - start)];
            fill(piece);
            self.put(start, piece);
        }
    }

    /// Copies `bytes` to `offset`, counted from the beginning.
    ///
    /// # Panics
    /// If they do not fit, or it cannot be written to.
    pub(crate) fn put(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.length as usize, "outside of the fragment");
        let written = self.region.write(self.offset + offset, bytes);
        written.expect("nobody views what an operation holds");
    }

    /// Adds the bytes in `range`, counted from the beginning, to a checksum: in place, also while a device
    /// may write to them.
    ///
    /// # Panics
    /// If they are not in it.
    pub(crate) fn add_to(&self, digest: &mut Digest, range: Range<usize>) {
        assert!(range.end <= self.length as usize, "outside of the fragment");
        let shared = &*self.region.0;
        assert!(shared.slices.get() >= 0, "a slice that is written to is out");
        let start = shared.memory.at(self.offset + range.start, range.len());
        // SAFETY: so many bytes of the memory, by `at`, mapped as long as `self`, and nobody in this
        // process writes to them. A device may: one whose server keeps to the protocol does not, once it
        // has answered, or as long as the bytes are being sent. One that does not makes the sum a wrong
        // one: the function goes over the bytes once, and decides nothing by what they are.
        let bytes = unsafe { std::slice::from_raw_parts(start.as_ptr(), range.len()) };
        digest.update(bytes);
    }
}
