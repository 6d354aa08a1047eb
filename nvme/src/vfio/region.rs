//! What the kernel says of a region of a device: where it is in the device's file, and what can be mapped.
//!
//! Guarantees: what is said to be mappable is, from the region's first byte on, in one piece.

use std::mem::offset_of;

use vfio_bindings::bindings::vfio::{
    VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
};

use super::chain::{Malformed, capability, pairs, u32_at, u64_at};

/// A region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    /// Where it begins in the device's file.
    pub(super) offset: u64,
    pub(super) bytes: u64,
    /// Whether it can be read and written.
    pub(super) accessible: bool,
    /// How much of it can be mapped, from its first byte on.
    pub(super) mappable_bytes: u64,
}

impl Region {
    /// From a `vfio_region_info` and what follows it.
    pub(super) fn parse(info: &[u8]) -> Result<Self, Malformed> {
        let flags = u32_at(info, offset_of!(vfio_region_info, flags))?;
        let bytes = u64_at(info, offset_of!(vfio_region_info, size))?;
        let offset = u64_at(info, offset_of!(vfio_region_info, offset))?;
        let first = u32_at(info, offset_of!(vfio_region_info, cap_offset))?;
        let first = if flags & VFIO_REGION_INFO_FLAG_CAPS != 0 { first } else { 0 };
        let sparse = capability(info, first, VFIO_REGION_INFO_CAP_SPARSE_MMAP)?;
        let mappable_bytes = match sparse {
            _ if flags & VFIO_REGION_INFO_FLAG_MMAP == 0 => 0,
            None => bytes,
            Some(areas) => from_the_start(pairs(areas)?).min(bytes),
        };
        let both = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
        Ok(Self { offset, bytes, accessible: flags & both == both, mappable_bytes })
    }
}

/// How far areas of (offset, bytes) reach without a gap.
fn from_the_start(mut areas: Vec<(u64, u64)>) -> u64 {
    areas.sort_unstable();
    areas.into_iter().fold(0, |reach, (offset, bytes)| {
        if offset <= reach { reach.max(offset.saturating_add(bytes)) } else { reach }
    })
}

#[cfg(test)]
mod tests {
    use super::super::chain::tests::encode;
    use super::*;

    fn info(flags: u32, capabilities: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 32];
        bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[12..16].copy_from_slice(&32u32.to_ne_bytes());
        bytes[16..24].copy_from_slice(&0x4000u64.to_ne_bytes());
        bytes[24..32].copy_from_slice(&(7u64 << 40).to_ne_bytes());
        bytes.extend(capabilities);
        bytes
    }

    fn mappable(flags: u32, capabilities: &[u8]) -> u64 {
        Region::parse(&info(flags, capabilities)).unwrap().mappable_bytes
    }

    #[test]
    fn a_region_is_mappable_as_a_whole_unless_it_says_which_parts_are() {
        let whole = Region::parse(&info(0b0111, &[])).unwrap();
        let expected =
            Region { offset: 7 << 40, bytes: 0x4000, accessible: true, mappable_bytes: 0x4000 };
        assert_eq!(whole, expected);
        assert_eq!(mappable(0b1111, &encode(3, 0, &[])), 0x4000, "only: MSI-X may be mapped too");
        assert_eq!(mappable(0b0011, &[]), 0, "no mmap");
        assert!(!Region::parse(&info(0b0101, &[])).unwrap().accessible);
    }

    #[test]
    fn only_what_is_in_one_piece_from_the_start_counts() {
        for (areas, reach) in [
            (&[(0, 0x2000), (0x3000, 0x1000)][..], 0x2000),
            (&[(0x2000, 0x1000), (0, 0x2000)], 0x3000),
            (&[(0x1000, 0x3000)], 0),
            (&[(0, u64::MAX), (5, u64::MAX)], 0x4000),
            (&[], 0),
        ] {
            assert_eq!(mappable(0b1111, &encode(1, 0, areas)), reach, "{areas:x?}");
        }
    }

    #[test]
    fn a_truncated_answer_is_malformed() {
        let whole = info(0b1111, &encode(1, 0, &[(0, 0x4000)]));
        for length in 0..whole.len() {
            assert_eq!(Region::parse(&whole[..length]), Err(Malformed), "{length}");
        }
    }
}
