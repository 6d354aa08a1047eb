//! Memory that a device and this process use at the same time: submission and completion queues, doorbell
//! shadows, PRP lists.
//!
//! Guarantees: every access is atomic, so that a device may write at any moment; the memory is this
//! value's alone on our side, and goes back to its pool when it is dropped. Who drops it has to know that
//! no device uses it any more: a late write would land in the next owner's buffer.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::region::Region;
use super::{ArenaError, DmaBuf, Span, whole_units};

/// A [`DmaBuf`] as words of 64 bits, each accessed atomically. Little-endian on the device's side.
pub struct DmaWords {
    buffer: DmaBuf,
}

impl DmaWords {
    /// Zeroes the buffer and takes it.
    #[must_use]
    pub fn new(mut buffer: DmaBuf) -> Self {
        buffer.fill(0);
        Self { buffer }
    }

    /// All words.
    #[must_use]
    #[inline]
    pub fn words(&self) -> &[AtomicU64] {
        let bytes = self.buffer.len();
        let start = self.buffer.as_shared_ptr().cast::<AtomicU64>();
        // SAFETY: the buffer is a live, initialised block of `bytes` bytes, aligned to 4 KiB, and any bits are
        // an `AtomicU64`. Nothing makes a `&[u8]` or `&mut [u8]` of it while `self` owns it (`buffer` is private
        // and used here only), so that all accesses on our side are atomic.
        unsafe { std::slice::from_raw_parts(start, bytes / size_of::<AtomicU64>()) }
    }

    /// Its first address, to be turned into the device's.
    #[must_use]
    pub fn address(&self) -> usize {
        self.buffer.as_shared_ptr().addr()
    }
}

impl fmt::Debug for DmaWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaWords({:?})", self.buffer)
    }
}

/// Slots of 32 bits in memory of their own, which threads and a device share: doorbells and their shadows.
#[derive(Debug)]
pub struct DmaSlots {
    span: Span,
    slots: usize,
}

impl DmaSlots {
    /// At least `slots` slots, all zero.
    ///
    /// # Errors
    /// [`ArenaError`]: no memory.
    pub fn new(slots: usize) -> Result<Self, ArenaError> {
        let region = Region::on_demand(whole_units(slots * size_of::<AtomicU32>())?)?;
        Ok(Self { span: Span(Arc::new(region)), slots })
    }

    /// All slots.
    #[must_use]
    #[inline]
    pub fn slots(&self) -> &[AtomicU32] {
        let start = self.span.0.at(0, self.slots * size_of::<AtomicU32>()).cast::<AtomicU32>();
        // SAFETY: the range is inside the mapping (asserted by `at`), which `self` keeps, and aligned to a page;
        // it was zero at first, and any bits are an `AtomicU32`. Nobody else refers to this memory: it was
        // mapped for this value alone.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.slots) }
    }

    /// Its memory, to be given to the device.
    #[must_use]
    pub fn span(&self) -> &Span {
        &self.span
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use crate::Arena;

    use super::*;

    #[test]
    fn words_are_zero_at_first_and_give_their_buffer_back() {
        let pool = Arena::on_demand(4 << 20).unwrap().pool();
        let mut buffer = pool.alloc(8192).unwrap();
        buffer.fill(9);
        let words = DmaWords::new(buffer);
        assert_eq!(words.words().len(), 1024);
        assert!(words.words().iter().all(|word| word.load(Relaxed) == 0));
        words.words()[1023].store(7, Relaxed);
        assert_eq!(words.words()[1023].load(Relaxed), 7);
        drop(words);
        assert_eq!(pool.free_bytes(), pool.total_bytes());
    }
}
