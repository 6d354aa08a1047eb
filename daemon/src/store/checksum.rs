//! Checksum pages: one CRC32C for every 16 KiB of a value above 64 KiB, in a block behind its data.
//!
//! The pointer's CRC then covers this page, and the page covers the data: a fragment is verified by
//! reading itself and one block more, and a misdirected or stale page is caught like any other.

use super::format::{CHECKSUM_BLOCK_BYTES, WHOLE_CRC_BYTES_MAX, crc32c};
use forebay_nvme::BLOCK_BYTES;
use std::ops::Range;

/// Does a value of this length have a checksum page?
#[must_use]
pub fn has_checksum_page(length: u32) -> bool {
    length > WHOLE_CRC_BYTES_MAX
}

/// Fills `page` for `value`; returns the CRC32C of the page, which the pointer carries.
///
/// # Panics
/// A value of more than 16 MiB: the page has 1024 places.
pub fn fill_page(value: &[u8], page: &mut [u8]) -> u32 {
    let page = &mut page[..BLOCK_BYTES];
    assert!(value.len() <= CHECKSUM_BLOCK_BYTES * BLOCK_BYTES / 4, "a value beyond one page");
    let (used, rest) = page.split_at_mut(value.len().div_ceil(CHECKSUM_BLOCK_BYTES) * 4);
    for (block, place) in value.chunks(CHECKSUM_BLOCK_BYTES).zip(used.chunks_exact_mut(4)) {
        place.copy_from_slice(&crc32c(block).to_le_bytes());
    }
    rest.fill(0);
    crc32c(page)
}

/// The checksum blocks that a range of bytes lies in, as a range of bytes clipped to the value.
#[must_use]
pub fn covering(range: Range<u64>, length: u32) -> Range<u64> {
    let block = CHECKSUM_BLOCK_BYTES as u64;
    range.start / block * block..range.end.next_multiple_of(block).min(u64::from(length))
}

/// Checks `data`, which begins at byte `start` of its value (a multiple of the checksum block),
/// against the value's page and the pointer's `page_crc`.
#[must_use]
pub fn verify(data: &[u8], start: u64, page: &[u8], page_crc: u32) -> bool {
    let page = &page[..BLOCK_BYTES];
    if crc32c(page) != page_crc {
        return false;
    }
    let first = start as usize / CHECKSUM_BLOCK_BYTES * 4;
    let expected = page[first..].chunks_exact(4);
    data.chunks(CHECKSUM_BLOCK_BYTES)
        .zip(expected)
        .all(|(block, place)| crc32c(block).to_le_bytes() == place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_anywhere_fails_only_what_covers_it() {
        let mut value: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let mut page = vec![0; BLOCK_BYTES];
        let crc = fill_page(&value, &mut page);
        assert!(verify(&value, 0, &page, crc));
        let part = covering(40_000..40_001, 100_000);
        assert_eq!(part, 32_768..49_152);
        value[50_000] ^= 1;
        assert!(!verify(&value, 0, &page, crc));
        assert!(verify(&value[32_768..49_152], 32_768, &page, crc));
        page[4000] ^= 1;
        assert!(!verify(&value[32_768..49_152], 32_768, &page, crc));
    }

    #[test]
    fn the_last_checksum_block_may_be_short() {
        let value = vec![7; 65_537];
        let mut page = vec![0; BLOCK_BYTES];
        let crc = fill_page(&value, &mut page);
        let part = covering(65_536..65_537, 65_537);
        assert_eq!(part, 65_536..65_537);
        assert!(verify(&value[65_536..], 65_536, &page, crc));
    }
}
