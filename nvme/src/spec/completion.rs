//! The completion queue entry (Base, "Completion Queue Entry").
//!
//! Guarantees: any 16 bytes are one. What to beware of: an entry is the device's until its phase bit says
//! otherwise; the second of its two words has the phase, so read that one first, with acquire.

use core::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute};

use super::status::Status;

/// Size of an entry (Base, "Completion Queue Entry"): IOCQES 4.
pub const COMPLETION_BYTES: usize = 16;

/// How a command ended (Base, "Common Completion Queue Entry Layout").
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct Completion {
    /// Dword 0: the command's result.
    pub result: U32,
    /// Dword 1: the upper half of a result of 64 bits.
    pub result_high: U32,
    /// How far the controller has read the submission queue (SQHD).
    pub sq_head: U16,
    /// The submission queue that the command was in (SQID).
    pub sq_id: U16,
    /// The command's identifier (CID).
    pub cid: U16,
    /// The phase tag in bit 0, the status above it.
    pub status_phase: U16,
}
const _: () = assert!(size_of::<Completion>() == COMPLETION_BYTES);
const _: () = assert!(offset_of!(Completion, sq_head) == 8);
const _: () = assert!(offset_of!(Completion, sq_id) == 10);
const _: () = assert!(offset_of!(Completion, cid) == 12);
const _: () = assert!(offset_of!(Completion, status_phase) == 14);

impl Completion {
    /// From the two words of an entry, as numbers.
    #[must_use]
    #[inline]
    pub fn from_words(words: [u64; 2]) -> Self {
        transmute!(words.map(U64::new))
    }

    /// The two words of an entry, as numbers.
    #[must_use]
    #[inline]
    pub fn words(&self) -> [u64; 2] {
        let words: [U64; 2] = transmute!(*self);
        words.map(U64::get)
    }

    /// The phase tag: it changes each time that the controller passes the slot (Base, "Phase Tag").
    #[must_use]
    #[inline]
    pub fn phase(&self) -> bool {
        self.status_phase.get() & 1 != 0
    }

    /// How it went.
    #[must_use]
    #[inline]
    pub fn status(&self) -> Status {
        Status(self.status_phase.get() >> 1)
    }

    /// The same, with this status and phase.
    #[must_use]
    #[inline]
    pub fn with_status(mut self, status: Status, phase: bool) -> Self {
        self.status_phase = U16::new(status.0 << 1 | u16::from(phase));
        self
    }

    /// The phase in the second word of an entry, for who has read no more than that.
    #[must_use]
    #[inline]
    pub const fn phase_of_word(second: u64) -> bool {
        second >> 48 & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::status::media;

    const GOLDEN: [u8; 16] =
        [0x78, 0x56, 0x34, 0x12, 0x01, 0, 0, 0, 0x22, 0x11, 0x03, 0x00, 0x34, 0x12, 0x03, 0x45];

    #[test]
    fn a_completion_is_its_golden_bytes() {
        let golden = Completion::read_from_bytes(&GOLDEN).unwrap();
        assert_eq!((golden.result.get(), golden.result_high.get()), (0x1234_5678, 1));
        assert_eq!(
            (golden.sq_head.get(), golden.sq_id.get(), golden.cid.get()),
            (0x1122, 3, 0x1234)
        );
        assert!(golden.phase());
        assert_eq!(golden.status().full(), media::UNRECOVERED_READ_ERROR);
        assert!(golden.status().more() && !golden.status().do_not_retry());
        assert_eq!(golden.words()[1], 0x4503_1234_0003_1122);
        assert_eq!(golden.with_status(golden.status(), true), golden);
    }

    #[test]
    fn words_and_entries_are_the_same() {
        let mut rng = fastrand::Rng::with_seed(2);
        for _ in 0..100_000 {
            let words = [rng.u64(..), rng.u64(..)];
            let completion = Completion::from_words(words);
            assert_eq!(completion.words(), words);
            assert_eq!(completion.phase(), Completion::phase_of_word(words[1]));
            assert_eq!(completion.with_status(completion.status(), completion.phase()), completion);
        }
    }
}
