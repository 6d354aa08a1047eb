//! Telling the controller that a queue has moved.
//!
//! Guarantees: entries are visible before their doorbell. With shadow doorbells (NVMe Base 2.0, "Doorbell
//! Buffer Config command") the new value goes to memory, and the register is written only if the controller
//! asked for it.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release, SeqCst};
use std::sync::atomic::{AtomicU32, fence};

use super::PAGE_BYTES;
use crate::arena::DmaSlots;
use crate::hardware::{Dma, MapError, Mapping, Registers};

/// Doorbells in one page of shadows.
const SLOTS: usize = PAGE_BYTES / size_of::<u32>();

/// The two pages of shadow doorbells: what we last wrote, and when the controller wants to hear of it.
#[derive(Debug)]
pub(super) struct Shadows {
    memory: DmaSlots,
    mapping: Mapping,
}

impl Shadows {
    /// Both pages, mapped.
    ///
    /// # Errors
    /// [`MapError`].
    pub(super) fn new(dma: &dyn Dma) -> Result<Self, MapError> {
        let memory = DmaSlots::new(2 * SLOTS)?;
        let mapping = dma.map(memory.span())?;
        Ok(Self { memory, mapping })
    }

    /// Where the controller finds the values, and where it is to put its event indexes.
    pub(super) fn iovas(&self) -> (u64, u64) {
        (self.mapping.iova(), self.mapping.iova() + PAGE_BYTES as u64)
    }

    fn value(&self, number: usize) -> &AtomicU32 {
        &self.memory.slots()[number]
    }

    fn event(&self, number: usize) -> &AtomicU32 {
        &self.memory.slots()[SLOTS + number]
    }
}

/// One doorbell of one queue.
#[derive(Debug)]
pub(super) struct Doorbell {
    /// Offset of its register.
    offset: usize,
    /// Both pages, and the number of its entry there.
    shadow: Option<(Arc<Shadows>, usize)>,
}

impl Doorbell {
    /// The doorbell whose register is at `offset`, and whose shadow is in slot `number`, of a queue that is about to
    /// be made: what an earlier queue of the same number left in its shadow is cleared, or the controller
    /// would seem to want no word of the first entries.
    pub(super) fn new(offset: usize, number: usize, shadows: Option<Arc<Shadows>>) -> Self {
        let shadow = shadows.filter(|_| number < SLOTS).map(|shadows| (shadows, number));
        if let Some((shadows, number)) = &shadow {
            shadows.value(*number).store(0, Release);
            shadows.event(*number).store(0, Release);
        }
        Self { offset, shadow }
    }

    /// Tells the controller that the queue moved from `old` to `new`.
    #[inline]
    pub(super) fn ring<R: Registers>(&self, registers: &R, old: u32, new: u32) {
        if self.shadow.as_ref().is_none_or(|shadow| wanted(shadow, old, new)) {
            registers.write32(self.offset, new);
        }
    }
}

/// Shows the new value, and tells whether the controller wants the register written.
fn wanted((shadows, number): &(Arc<Shadows>, usize), old: u32, new: u32) -> bool {
    shadows.value(*number).store(new, Release);
    // The controller looks at the value after it has written the event index, we the other way round:
    // one of the two sees the other.
    fence(SeqCst);
    let event = shadows.event(*number).load(Acquire);
    passed(event as u16, old as u16, new as u16)
}

/// Did the value pass the event index on its way from `old` to `new`? All three wrap.
fn passed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::passed;

    #[test]
    fn the_register_is_written_when_the_event_index_is_passed() {
        assert!(passed(0, 0, 1));
        assert!(passed(2, 0, 3));
        assert!(!passed(3, 0, 3));
        assert!(!passed(7, 0, 3));
        assert!(passed(u16::MAX, u16::MAX - 1, 2));
    }
}
