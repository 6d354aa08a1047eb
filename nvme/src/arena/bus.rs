//! The emulated controller's way into the arena: what DMA is for a real one.
//!
//! Guarantees: no access leaves the span. What the crate has to keep, as it does for a real device: an
//! emulated controller touches only addresses that commands in flight gave it, and while a command is in
//! flight its buffer lies in a queue, where nothing on our side borrows its content.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::Span;

impl Span {
    /// Reads `into.len()` bytes from `offset` on, as a device does: in words of 8 bytes where both are
    /// multiples of that, else of 4. `false`, and nothing is read, if that is not all inside, or not whole
    /// words.
    #[must_use]
    pub(crate) fn device_read(&self, offset: usize, into: &mut [u8]) -> bool {
        if let Some(words) = self.device_words(offset, into.len()) {
            for (word, bytes) in words.iter().zip(into.chunks_exact_mut(8)) {
                bytes.copy_from_slice(&word.load(Ordering::Acquire).to_le_bytes());
            }
            return true;
        }
        let Some(words) = self.device_halves(offset, into.len()) else { return false };
        for (word, bytes) in words.iter().zip(into.chunks_exact_mut(4)) {
            bytes.copy_from_slice(&word.load(Ordering::Acquire).to_le_bytes());
        }
        true
    }

    /// Writes `from` at `offset`, as a device does: in ascending order, each word at once, and words as in
    /// [`Span::device_read`]. `false`, and nothing is written, if that is not all inside, or not whole words.
    #[must_use]
    pub(crate) fn device_write(&self, offset: usize, from: &[u8]) -> bool {
        if let Some(words) = self.device_words(offset, from.len()) {
            for (word, bytes) in words.iter().zip(from.as_chunks().0) {
                word.store(u64::from_le_bytes(*bytes), Ordering::Release);
            }
            return true;
        }
        let Some(words) = self.device_halves(offset, from.len()) else { return false };
        for (word, bytes) in words.iter().zip(from.as_chunks().0) {
            word.store(u32::from_le_bytes(*bytes), Ordering::Release);
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

    fn device_halves(&self, offset: usize, bytes: usize) -> Option<&[AtomicU32]> {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.bytes());
        if !inside || !offset.is_multiple_of(4) || !bytes.is_multiple_of(4) {
            return None;
        }
        let start = self.0.at(offset, bytes).cast::<AtomicU32>();
        // SAFETY: as in `device_words`, with an alignment of 4 bytes, which is all that an `AtomicU32` asks for.
        Some(unsafe { std::slice::from_raw_parts(start.as_ptr(), bytes / 4) })
    }
}

#[cfg(test)]
mod tests {
    use crate::Arena;

    #[test]
    fn no_access_leaves_the_span() {
        let span = Arena::on_demand(4 << 20).unwrap().pool().span();
        let end = span.bytes();
        let mut bytes = [0; 16];
        assert!(span.device_write(end - 16, &[7; 16]) && span.device_read(end - 16, &mut bytes));
        assert_eq!(bytes, [7; 16]);
        for offset in [end - 8, end, end + 8, usize::MAX - 7, usize::MAX - 15] {
            assert!(!span.device_write(offset, &[1; 16]) && !span.device_read(offset, &mut bytes));
        }
        assert_eq!(bytes, [7; 16]);
    }

    #[test]
    fn an_access_of_half_words_touches_no_neighbour() {
        let span = Arena::on_demand(4 << 20).unwrap().pool().span();
        assert!(span.device_write(4, &[1, 2, 3, 4]));
        let mut bytes = [9; 16];
        assert!(span.device_read(0, &mut bytes));
        assert_eq!(bytes, [0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(!span.device_write(2, &[1; 4]) && !span.device_write(4, &[1; 6]));
    }
}
