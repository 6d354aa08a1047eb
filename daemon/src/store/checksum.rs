//! Checksum pages: one CRC32C for every 16 KiB of a value above 64 KiB, in a block behind its data.
//!
//! The pointer's CRC then covers this page, and the page covers the data: a fragment is verified by
//! reading itself and one block more, and a misdirected or stale page is caught like any other.

use super::format::{CHECKSUM_BLOCK_BYTES, WHOLE_CRC_BYTES_MAX, crc32c};
use forebay_fabric::crc32c::{EMPTY, combine};
use forebay_nvme::BLOCK_BYTES;
use std::ops::Range;
use std::sync::LazyLock;

/// What a CRC32C becomes when a whole checksum block of zeroes is appended, by its bytes: the operation
/// is linear over GF(2), so four lookups do it (zlib's `crc32_combine`, for one length).
static SHIFT: LazyLock<[[u32; 256]; 4]> = LazyLock::new(|| {
    let shifted = |crc: u32| combine(crc, 0, CHECKSUM_BLOCK_BYTES);
    std::array::from_fn(|byte| std::array::from_fn(|value| shifted((value as u32) << (8 * byte))))
});

/// The CRC32C of a piece with `crc` and the `length` bytes with `next` behind it.
fn join(crc: u32, next: u32, length: usize) -> u32 {
    if length != CHECKSUM_BLOCK_BYTES {
        return combine(crc, next, length);
    }
    let shifted = crc.to_le_bytes().into_iter().zip(&*SHIFT);
    shifted.fold(next, |sum, (byte, table)| sum ^ table[usize::from(byte)])
}

/// The checksums of a value, from one pass over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sums {
    /// Of its checksum page: what the pointer carries.
    pub page: u32,
    /// Of the value itself: what the client has sent.
    pub value: u32,
}

/// Does a value of this length have a checksum page?
#[must_use]
pub fn has_checksum_page(length: u32) -> bool {
    length > WHOLE_CRC_BYTES_MAX
}

/// Fills `page` for `value`.
///
/// # Panics
/// A value of more than 16 MiB: the page has 1024 places.
pub fn fill_page(value: &[u8], page: &mut [u8]) -> Sums {
    let page = &mut page[..BLOCK_BYTES];
    assert!(value.len() <= CHECKSUM_BLOCK_BYTES * BLOCK_BYTES / 4, "a value beyond one page");
    let (used, rest) = page.split_at_mut(value.len().div_ceil(CHECKSUM_BLOCK_BYTES) * 4);
    let mut whole = EMPTY;
    for (block, place) in value.chunks(CHECKSUM_BLOCK_BYTES).zip(used.chunks_exact_mut(4)) {
        let crc = crc32c(block);
        place.copy_from_slice(&crc.to_le_bytes());
        whole = join(whole, crc, block.len());
    }
    rest.fill(0);
    Sums { page: crc32c(page), value: whole }
}

/// The checksum blocks that a range of bytes lies in, as a range of bytes clipped to the value.
#[must_use]
pub fn covering(range: Range<u64>, length: u32) -> Range<u64> {
    let block = CHECKSUM_BLOCK_BYTES as u64;
    range.start / block * block..range.end.next_multiple_of(block).min(u64::from(length))
}

/// Checks `data`, which begins at byte `start` of its value (a multiple of the checksum block),
/// against the value's page and the pointer's `page_crc`. Returns the data's own CRC32C if it is good.
#[must_use]
pub fn verify(data: &[u8], start: u64, page: &[u8], page_crc: u32) -> Option<u32> {
    let page = &page[..BLOCK_BYTES];
    if crc32c(page) != page_crc {
        return None;
    }
    let first = start as usize / CHECKSUM_BLOCK_BYTES * 4;
    let expected = page[first..].chunks_exact(4);
    data.chunks(CHECKSUM_BLOCK_BYTES).zip(expected).try_fold(EMPTY, |whole, (block, place)| {
        let crc = crc32c(block);
        (crc.to_le_bytes() == place).then(|| join(whole, crc, block.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_anywhere_fails_only_what_covers_it() {
        let mut value: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let mut page = vec![0; BLOCK_BYTES];
        let Sums { page: crc, value: whole } = fill_page(&value, &mut page);
        assert_eq!(whole, crc32c(&value));
        assert_eq!(verify(&value, 0, &page, crc), Some(whole));
        let part = covering(40_000..40_001, 100_000);
        assert_eq!(part, 32_768..49_152);
        value[50_000] ^= 1;
        assert_eq!(verify(&value, 0, &page, crc), None);
        let part = &value[32_768..49_152];
        assert_eq!(verify(part, 32_768, &page, crc), Some(crc32c(part)));
        page[4000] ^= 1;
        assert_eq!(verify(part, 32_768, &page, crc), None);
    }

    #[test]
    fn the_last_checksum_block_may_be_short() {
        let value = vec![7; 65_537];
        let mut page = vec![0; BLOCK_BYTES];
        let sums = fill_page(&value, &mut page);
        assert_eq!(sums.value, crc32c(&value));
        let part = covering(65_536..65_537, 65_537);
        assert_eq!(part, 65_536..65_537);
        assert_eq!(verify(&value[65_536..], 65_536, &page, sums.page), Some(crc32c(&[7])));
    }
}
