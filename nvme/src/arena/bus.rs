//! The emulated controller's way into the arena: what DMA is for a real one.
//!
//! Guarantees: no access leaves the span. What the crate has to keep, as it does for a real device: an
//! emulated controller touches only addresses that commands in flight gave it, and while a command is in
//! flight its buffer lies in a queue, where nothing on our side borrows its content.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Span;

impl Span {
    /// Reads `into.len()` bytes from `offset` on, as a device does. `false`, and nothing is read, if that is
    /// not all inside, or not whole words of 8 bytes.
    #[must_use]
    pub(crate) fn device_read(&self, offset: usize, into: &mut [u8]) -> bool {
        let Some(words) = self.device_words(offset, into.len()) else { return false };
        for (word, bytes) in words.iter().zip(into.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.load(Ordering::Acquire).to_le_bytes());
        }
        true
    }

    /// Writes `from` at `offset`, as a device does: in ascending order, each word at once. `false`, and
    /// nothing is written, if that is not all inside, or not whole words of 8 bytes.
    #[must_use]
    pub(crate) fn device_write(&self, offset: usize, from: &[u8]) -> bool {
        let Some(words) = self.device_words(offset, from.len()) else { return false };
        for (word, bytes) in words.iter().zip(from.chunks_exact(8)) {
            let mut value = [0; 8];
            value.copy_from_slice(bytes);
            word.store(u64::from_le_bytes(value), Ordering::Release);
        }
        true
    }

    fn device_words(&self, offset: usize, bytes: usize) -> Option<&[AtomicU64]> {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.bytes());
        if !inside || !offset.is_multiple_of(8) || !bytes.is_multiple_of(8) {
            return None;
        }
        let start = self.0.at(offset, bytes).cast::<AtomicU64>();
        // SAFETY: the range lies in the mapping, which `self` keeps alive, and is aligned to 8 bytes; it was
        // zero at first, and any bits are an `AtomicU64`. No reference to the bytes is live meanwhile: see the
        // module (the emulated controller runs when it is stepped, and a queue does not look at the content of
        // the buffers that it holds).
        Some(unsafe { std::slice::from_raw_parts(start.as_ptr(), bytes / 8) })
    }
}
