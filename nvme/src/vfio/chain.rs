//! Reads what the kernel answers in variable length: a struct, and a chain of capabilities behind it.
//!
//! Guarantees: every offset in the bytes is checked, so that an answer of any content, truncated or going in
//! circles, is a result or a [`Malformed`], never a panic or an endless loop. Integers are in native order:
//! they come from the kernel, not from a device.

use vfio_bindings::bindings::vfio::vfio_info_cap_header;

/// The kernel's answer contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's answer is malformed; this kernel's VFIO is not one that this driver knows")]
pub(super) struct Malformed;

/// The integer of 32 bits at `offset`.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Result<u32, Malformed> {
    let tail = bytes.get(offset..).ok_or(Malformed)?;
    tail.first_chunk().map(|word| u32::from_ne_bytes(*word)).ok_or(Malformed)
}

/// The integer of 64 bits at `offset`.
pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Result<u64, Malformed> {
    let tail = bytes.get(offset..).ok_or(Malformed)?;
    tail.first_chunk().map(|word| u64::from_ne_bytes(*word)).ok_or(Malformed)
}

/// The capability `id` of a chain that begins at `first` (0: there is none): its bytes, from its header to the end
/// of the answer, for the answer does not tell where it ends.
pub(super) fn capability(bytes: &[u8], first: u32, id: u32) -> Result<Option<&[u8]>, Malformed> {
    let mut offset = first as usize;
    let mut end = 0;
    while offset != 0 {
        // The kernel appends, so a chain only goes forward: one that does not would never end.
        if offset < end {
            return Err(Malformed);
        }
        let found = bytes.get(offset..).ok_or(Malformed)?;
        let id_here = u32_at(found, 0)? & 0xFFFF;
        let next = u32_at(found, std::mem::offset_of!(vfio_info_cap_header, next))?;
        if id_here == id {
            return Ok(Some(found));
        }
        end = offset + size_of::<vfio_info_cap_header>();
        offset = next as usize;
    }
    Ok(None)
}

/// The pairs of 64 bits that a capability lists: their number is at offset 8, and they begin at offset 16 (so in
/// `vfio_iommu_type1_info_cap_iova_range` and `vfio_region_info_cap_sparse_mmap`).
pub(super) fn pairs(capability: &[u8]) -> Result<Vec<(u64, u64)>, Malformed> {
    let count = u32_at(capability, 8)? as usize;
    let list = capability.get(16..).ok_or(Malformed)?;
    let list = list.get(..count.checked_mul(16).ok_or(Malformed)?).ok_or(Malformed)?;
    list.chunks_exact(16).map(|pair| Ok((u64_at(pair, 0)?, u64_at(pair, 8)?))).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::mem::offset_of;

    use vfio_bindings::bindings::vfio::{
        vfio_iommu_type1_info_cap_iova_range as IovaRange,
        vfio_region_info_cap_sparse_mmap as SparseMmap,
    };

    use super::*;

    #[test]
    fn both_lists_of_pairs_have_the_layout_that_is_read() {
        assert_eq!((offset_of!(IovaRange, nr_iovas), size_of::<IovaRange>()), (8, 16));
        assert_eq!((offset_of!(SparseMmap, nr_areas), size_of::<SparseMmap>()), (8, 16));
    }

    /// A capability with a list of pairs; `next` is an offset from the start of the answer.
    pub(in crate::vfio) fn encode(id: u16, next: u32, pairs: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = id.to_ne_bytes().to_vec();
        bytes.extend(1u16.to_ne_bytes());
        bytes.extend(next.to_ne_bytes());
        bytes.extend((pairs.len() as u32).to_ne_bytes());
        bytes.extend([0; 4]);
        for (first, second) in pairs {
            bytes.extend(first.to_ne_bytes());
            bytes.extend(second.to_ne_bytes());
        }
        bytes
    }

    /// 24 bytes of struct, a capability 3 and behind it a capability 1.
    fn answer() -> Vec<u8> {
        let mut bytes = vec![0; 24];
        bytes.extend(encode(3, 56, &[(7, 7)]));
        bytes.extend(encode(1, 0, &[(0x1000, 0x1FFF), (0x10_0000, u64::MAX)]));
        bytes
    }

    #[test]
    fn a_capability_is_found_wherever_it_stands() {
        let bytes = answer();
        let found = capability(&bytes, 24, 1).unwrap().unwrap();
        assert_eq!(pairs(found), Ok(vec![(0x1000, 0x1FFF), (0x10_0000, u64::MAX)]));
        assert_eq!(pairs(capability(&bytes, 24, 3).unwrap().unwrap()), Ok(vec![(7, 7)]));
        assert_eq!(capability(&bytes, 24, 2), Ok(None));
        assert_eq!(capability(&bytes, 0, 1), Ok(None), "no chain");
    }

    #[test]
    fn an_answer_cut_anywhere_is_malformed_or_right() {
        let whole = answer();
        for length in 0..whole.len() {
            let found = capability(&whole[..length], 24, 1)
                .and_then(|found| found.map_or(Err(Malformed), pairs));
            assert_eq!(found, Err(Malformed), "cut to {length}");
        }
    }

    #[test]
    fn a_chain_that_goes_in_circles_ends() {
        for next in [24, 56, 25, 1, 63, u32::MAX, 1 << 20] {
            let mut bytes = answer();
            bytes[60..64].copy_from_slice(&next.to_ne_bytes());
            assert_eq!(capability(&bytes, 24, 9), Err(Malformed), "next {next}");
        }
    }

    #[test]
    fn a_list_longer_than_the_answer_is_malformed() {
        for count in [3, 1 << 28, u32::MAX] {
            let mut bytes = encode(1, 0, &[(1, 2), (3, 4)]);
            bytes[8..12].copy_from_slice(&count.to_ne_bytes());
            assert_eq!(pairs(&bytes), Err(Malformed), "{count}");
        }
    }

    #[test]
    fn any_bytes_are_an_answer_or_malformed() {
        for seed in 0..20_000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut bytes = answer();
            for _ in 0..rng.usize(1..8) {
                let at = rng.usize(24..bytes.len());
                bytes[at] = rng.u8(..);
            }
            let first = if rng.bool() { 24 } else { rng.u32(..) };
            if let Ok(Some(found)) = capability(&bytes, first, 1) {
                // Nothing to assert but that it returns.
                drop(pairs(found));
            }
        }
    }
}
