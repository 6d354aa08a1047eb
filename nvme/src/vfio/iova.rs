//! Where arenas lie for devices: the ranges of I/O virtual addresses (IOVAs) that the IOMMU can translate, and
//! the choice of a free place in them.
//!
//! Guarantees: what is chosen lies in one range as a whole, overlaps nothing that is taken, is aligned to 4 MiB
//! (1 GiB where the arena is that large and the place is there, so that the IOMMU can use large pages), and is
//! never at address 0, which a drive may take for "no address". It never depends on the virtual address of the
//! memory: a machine whose IOMMU translates 39 bits cannot map memory at 0x7f… there.

use std::fmt;

use super::chain::Malformed;

/// The unit of every map, as of every arena.
const ALIGN: u64 = 4 << 20;
/// The largest page of an x86-64 IOMMU.
const ALIGN_LARGE: u64 = 1 << 30;

/// The addresses that can be mapped: ascending, apart from each other, ends inclusive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// From what the kernel lists, in any order. `end` is the last address of a range, not one past it.
    pub(super) fn new(mut listed: Vec<(u64, u64)>) -> Result<Self, Malformed> {
        if listed.iter().any(|(start, end)| start > end) {
            return Err(Malformed);
        }
        listed.sort_unstable();
        let mut ranges: Vec<(u64, u64)> = Vec::with_capacity(listed.len());
        for (start, end) in listed {
            match ranges.last_mut() {
                Some(last) if start <= last.1.saturating_add(1) => last.1 = last.1.max(end),
                _ => ranges.push((start, end)),
            }
        }
        Ok(Self(ranges))
    }

    /// Whether all of `bytes` bytes from `iova` on can be mapped.
    pub(super) fn contain(&self, iova: u64, bytes: u64) -> bool {
        let Some(last) = iova.checked_add(bytes.saturating_sub(1)) else { return false };
        self.0.iter().any(|(start, end)| *start <= iova && last <= *end)
    }

    /// Takes `bytes` bytes from `iova` on out of the ranges.
    pub(super) fn exclude(&mut self, iova: u64, bytes: u64) {
        let last = iova.saturating_add(bytes.saturating_sub(1));
        let mut left = Vec::with_capacity(self.0.len() + 1);
        for (start, end) in self.0.drain(..) {
            if last < start || end < iova {
                left.push((start, end));
                continue;
            }
            if start < iova {
                left.push((start, iova - 1));
            }
            if last < end {
                left.push((last + 1, end));
            }
        }
        self.0 = left;
    }

    /// A place for `bytes` bytes, the lowest that there is. `taken` is what lies there already, as
    /// (address, bytes), in ascending order.
    pub(super) fn choose(&self, bytes: u64, taken: &[(u64, u64)]) -> Option<u64> {
        let large = bytes >= ALIGN_LARGE;
        let at_large = large.then(|| self.choose_aligned(bytes, taken, ALIGN_LARGE)).flatten();
        at_large.or_else(|| self.choose_aligned(bytes, taken, ALIGN))
    }

    fn choose_aligned(&self, bytes: u64, taken: &[(u64, u64)], align: u64) -> Option<u64> {
        let in_range = |&(start, end): &(u64, u64)| {
            let mut place = start.max(1).checked_next_multiple_of(align)?;
            for &(other, length) in taken {
                // `place` only grows, and what is taken ascends: one pass sees every overlap.
                if other < place.checked_add(bytes)? && place < other + length {
                    place = (other + length).checked_next_multiple_of(align)?;
                }
            }
            (place.checked_add(bytes - 1)? <= end).then_some(place)
        };
        self.0.iter().find_map(in_range)
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (start, end)) in self.0.iter().enumerate() {
            write!(f, "{}{start:#x}-{end:#x}", if index > 0 { ", " } else { "" })?;
        }
        if self.0.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    /// What x86-64 machines report: the window for message signalled interrupts is a hole.
    fn machine(bits: u32) -> Ranges {
        Ranges::new(vec![(0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << bits) - 1)]).unwrap()
    }

    #[test]
    fn nothing_is_placed_at_address_zero() {
        assert_eq!(machine(39).choose(64 * MIB, &[]), Some(4 * MIB));
        assert_eq!(machine(39).choose(GIB, &[]), Some(GIB));
    }

    #[test]
    fn a_large_arena_lies_behind_the_hole_and_on_a_large_page() {
        for bits in [39, 48, 57] {
            assert_eq!(machine(bits).choose(3 * GIB, &[]), Some(4 * GIB), "{bits} bits");
        }
        // Without room on a boundary of 1 GiB, one of 4 MiB is good enough.
        let narrow = Ranges::new(vec![(GIB + 4 * MIB, 3 * GIB - 1)]).unwrap();
        assert_eq!(narrow.choose(GIB + 512 * MIB, &[]), Some(GIB + 4 * MIB));
    }

    #[test]
    fn an_inclusive_end_is_the_last_address() {
        let exact = Ranges::new(vec![(4 * MIB, 12 * MIB - 1)]).unwrap();
        assert_eq!(exact.choose(8 * MIB, &[]), Some(4 * MIB));
        assert!(exact.contain(4 * MIB, 8 * MIB) && !exact.contain(4 * MIB, 8 * MIB + 1));
        let short = Ranges::new(vec![(4 * MIB, 12 * MIB - 2)]).unwrap();
        assert_eq!(short.choose(8 * MIB, &[]), None);
        assert!(!short.contain(4 * MIB, 8 * MIB));
        let top = Ranges::new(vec![(u64::MAX - 8 * MIB + 1, u64::MAX)]).unwrap();
        assert!(top.contain(u64::MAX - 4 * MIB + 1, 4 * MIB));
        assert!(!top.contain(u64::MAX - 4 * MIB + 1, 4 * MIB + 1));
    }

    #[test]
    fn an_address_space_of_39_bits_is_used_up_and_then_refused() {
        let ranges = machine(39);
        let mut taken = Vec::new();
        while let Some(iova) = ranges.choose(16 * GIB, &taken) {
            assert!(iova + 16 * GIB <= 1 << 39 && ranges.contain(iova, 16 * GIB));
            taken.push((iova, 16 * GIB));
            taken.sort_unstable();
        }
        assert_eq!(
            taken.len(),
            31,
            "512 GiB, but for the 4 GiB with the hole in them and what is below 16"
        );
        assert_eq!(ranges.choose(1 << 39, &[]), None);
        assert_eq!(Ranges::default().choose(4 * MIB, &[]), None);
    }

    #[test]
    fn ranges_are_put_in_order_and_joined() {
        let ranges =
            Ranges::new(vec![(16 * MIB, 32 * MIB - 1), (0, 8 * MIB - 1), (8 * MIB, 16 * MIB - 1)]);
        assert_eq!(ranges.unwrap().0, [(0, 32 * MIB - 1)]);
        assert_eq!(Ranges::new(vec![(0, u64::MAX), (5, 6)]).unwrap().0, [(0, u64::MAX)]);
        assert_eq!(Ranges::new(vec![(6, 5)]), Err(Malformed));
    }

    #[test]
    fn an_excluded_place_is_not_chosen_again() {
        let mut ranges = Ranges::new(vec![(0, 32 * MIB - 1)]).unwrap();
        ranges.exclude(4 * MIB, 8 * MIB);
        assert_eq!(ranges.to_string(), "0x0-0x3fffff, 0xc00000-0x1ffffff");
        assert_eq!(ranges.choose(4 * MIB, &[]), Some(12 * MIB));
        ranges.exclude(0, u64::MAX);
        assert_eq!(ranges.to_string(), "none");
    }

    #[test]
    fn places_never_overlap_and_are_always_inside() {
        for seed in 0..500 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let holes: Vec<(u64, u64)> =
                (0..rng.u64(1..5)).map(|_| (rng.u64(..1 << 36), rng.u64(..1 << 34))).collect();
            let mut ranges = Ranges::new(vec![(0, (1 << 39) - 1)]).unwrap();
            holes.iter().for_each(|(iova, bytes)| ranges.exclude(*iova, *bytes));
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for _ in 0..40 {
                if taken.len() > 4 && rng.bool() {
                    taken.remove(rng.usize(..taken.len()));
                    continue;
                }
                let most = 1 << rng.u32(1..14);
                let bytes = rng.u64(1..most) * ALIGN;
                let Some(iova) = ranges.choose(bytes, &taken) else { continue };
                assert!(
                    iova != 0 && iova % ALIGN == 0 && ranges.contain(iova, bytes),
                    "seed {seed}"
                );
                let apart =
                    |(other, length): &(u64, u64)| other + length <= iova || iova + bytes <= *other;
                assert!(taken.iter().all(apart), "seed {seed}: {iova:#x}+{bytes:#x} in {taken:x?}");
                taken.push((iova, bytes));
                taken.sort_unstable();
            }
        }
    }
}
