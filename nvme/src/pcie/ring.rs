//! Submission and completion queues in memory (NVMe Base 2.0, "Queues").
//!
//! Guarantees: an entry of a completion queue is taken once, when its phase bit says that it is new, and its
//! words are read behind that; a submission queue is never overrun, because whoever owns it has fewer
//! commands in flight than it has entries.

use std::sync::atomic::Ordering::{Acquire, Relaxed};

use crate::arena::DmaWords;

/// Words of 64 bits in a submission queue entry.
const SQE_WORDS: usize = 8;
/// Words of 64 bits in a completion queue entry.
const CQE_WORDS: usize = 2;
/// The phase bit in the last word of a completion queue entry.
const PHASE: u64 = 1 << 48;

/// The host's end of a submission queue.
#[derive(Debug)]
pub(super) struct SubmissionRing {
    memory: DmaWords,
    entries: u32,
    tail: u32,
    /// The tail that the controller was told.
    shown: u32,
}

impl SubmissionRing {
    /// `memory` holds at least `entries` entries.
    pub(super) fn new(memory: DmaWords, entries: u32) -> Self {
        assert!(entries >= 2 && memory.words().len() >= entries as usize * SQE_WORDS);
        Self { memory, entries, tail: 0, shown: 0 }
    }

    pub(super) fn address(&self) -> usize {
        self.memory.address()
    }

    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    /// Writes the next entry. The controller sees it when the doorbell rings.
    #[inline]
    pub(super) fn push(&mut self, entry: [u64; SQE_WORDS]) {
        let slot = &self.memory.words().as_chunks::<SQE_WORDS>().0[self.tail as usize];
        for (word, value) in slot.iter().zip(entry) {
            word.store(value, Relaxed);
        }
        self.tail += 1;
        if self.tail == self.entries {
            self.tail = 0;
        }
    }

    /// The old and the new tail, if the controller has to be told.
    #[inline]
    pub(super) fn commit(&mut self) -> Option<(u32, u32)> {
        if self.tail == self.shown {
            return None;
        }
        let old = std::mem::replace(&mut self.shown, self.tail);
        Some((old, self.tail))
    }

    /// Back to the beginning, for a queue that is made again. The controller must have stopped.
    pub(super) fn reset(&mut self) {
        // Whatever it may be told of before there is a new entry is no command that was given once.
        for word in self.memory.words() {
            word.store(0, Relaxed);
        }
        (self.tail, self.shown) = (0, 0);
    }
}

/// The host's end of a completion queue.
#[derive(Debug)]
pub(super) struct CompletionRing {
    memory: DmaWords,
    entries: u32,
    head: u32,
    /// The head that the controller was told.
    shown: u32,
    /// Entries taken since then.
    taken: u32,
    /// After so many, the controller is told.
    lazy: u32,
    /// [`PHASE`] or 0: what a new entry carries.
    phase: u64,
}

impl CompletionRing {
    /// `memory` holds at least `entries` entries. There are never more than `in_flight_max` completions
    /// under way: what is beyond that is how long the controller need not be told of free entries.
    pub(super) fn new(memory: DmaWords, entries: u32, in_flight_max: u32) -> Self {
        assert!(entries > in_flight_max && memory.words().len() >= entries as usize * CQE_WORDS);
        let lazy = ((entries - in_flight_max) / 2).max(1);
        Self { memory, entries, head: 0, shown: 0, taken: 0, lazy, phase: PHASE }
    }

    pub(super) fn address(&self) -> usize {
        self.memory.address()
    }

    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    /// Takes the next entry, if the controller has written one: its two words.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<[u64; CQE_WORDS]> {
        let slot = &self.memory.words().as_chunks::<CQE_WORDS>().0[self.head as usize];
        // The phase bit says that the entry is whole: what is read after it is behind it.
        let last = slot[1].load(Acquire);
        if last & PHASE != self.phase {
            return None;
        }
        let first = slot[0].load(Relaxed);
        self.taken += 1;
        self.head += 1;
        if self.head == self.entries {
            self.head = 0;
            self.phase ^= PHASE;
        }
        Some([first, last])
    }

    /// The old and the new head, if the controller has to be told by now. It need not hear of every entry
    /// that is free again, only before it runs out of them.
    #[inline]
    pub(super) fn commit(&mut self) -> Option<(u32, u32)> {
        if self.taken < self.lazy {
            return None;
        }
        self.taken = 0;
        let old = std::mem::replace(&mut self.shown, self.head);
        Some((old, self.head))
    }

    /// Back to the beginning, for a queue that is made again. The controller must have stopped.
    pub(super) fn reset(&mut self) {
        for word in self.memory.words() {
            word.store(0, Relaxed);
        }
        (self.head, self.shown, self.taken, self.phase) = (0, 0, 0, PHASE);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Release;

    use crate::Arena;

    use super::*;

    fn words() -> DmaWords {
        DmaWords::new(Arena::on_demand(4 << 20).unwrap().pool().alloc(4096).unwrap())
    }

    #[test]
    fn a_submission_ring_wraps_and_tells_each_tail_once() {
        let mut ring = SubmissionRing::new(words(), 3);
        assert_eq!(ring.commit(), None);
        ring.push([1; 8]);
        ring.push([2; 8]);
        assert_eq!((ring.commit(), ring.commit()), (Some((0, 2)), None));
        ring.push([3; 8]);
        assert_eq!(ring.commit(), Some((2, 0)));
        let held: Vec<u64> = (0..3).map(|n| ring.memory.words()[n * 8].load(Relaxed)).collect();
        assert_eq!(held, [1, 2, 3]);
    }

    #[test]
    fn a_completion_is_taken_once_on_every_lap() {
        let mut ring = CompletionRing::new(words(), 4, 2);
        let mut phase = PHASE;
        for lap in 0..5_u64 {
            for at in 0..4 {
                assert_eq!(ring.pop(), None, "lap {lap}");
                let slot = &ring.memory.words()[at * 2..];
                slot[0].store(lap, Relaxed);
                slot[1].store(phase | at as u64, Release);
                assert_eq!(ring.pop(), Some([lap, phase | at as u64]));
                assert!(ring.commit().is_some(), "told before it runs out");
            }
            phase ^= PHASE;
        }
    }

    #[test]
    fn the_controller_is_told_before_it_runs_out_of_entries() {
        for (entries, in_flight) in [(2, 1), (64, 31), (256, 63), (1024, 1023)] {
            let ring = CompletionRing::new(
                DmaWords::new(Arena::on_demand(4 << 20).unwrap().pool().alloc(16_384).unwrap()),
                entries,
                in_flight,
            );
            // Taken and not told, with all that can be under way: they fit.
            assert!(
                ring.lazy - 1 + in_flight < entries,
                "{entries} entries, {in_flight} in flight"
            );
        }
    }
}
