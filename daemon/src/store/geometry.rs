//! Where everything is on a device: one arithmetic, used by format, open and every read.
//!
//! ```text
//! 0        1 MiB      2 MiB                                            end-2 MiB  end-1 MiB
//! | copy 0 | copy 1   | shard slot 0 | shard slot 1 | …                | copy 2   | copy 3 |
//!                     | journal ring | index A | index B | segment 0 | segment 1 | …
//! ```

use super::index::ADDRESS_BITS;
use super::space::UNITS_PER_BLOCK;
use forebay_fabric::pdu::VALUE_BYTES_MAX;
use forebay_nvme::BLOCK_BYTES;

/// The most units that the address in an index entry can tell apart: 4 TiB in a shard.
const UNITS_MAX: u64 = 1 << ADDRESS_BITS;
/// Bytes in a block.
const BLOCK: u64 = BLOCK_BYTES as u64;
/// The superblocks' place at each end, in blocks.
const EDGE_BLOCKS: u64 = (2 << 20) / BLOCK;
/// The fewest segments a shard works with: one open for each of three classes, the cleaner's
/// reserve, and some to hold data.
pub const SEGMENTS_MIN: u32 = 8;
/// The fewest blocks in a journal ring: two batches, or nothing could be written while the index
/// is being checkpointed.
pub const JOURNAL_BLOCKS_MIN: u32 = 4 * crate::store::journal::BATCH_PAGES as u32;

/// The layout of every device of a pool, in blocks of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Where the first shard slot begins.
    pub data_block: u64,
    /// From one shard slot to the next.
    pub stride_blocks: u64,
    /// Length of a shard's journal ring.
    pub journal_blocks: u32,
    /// Length of each of the two index checkpoint areas of a shard.
    pub index_blocks: u32,
    /// Length of a segment.
    pub segment_blocks: u32,
    /// Segments in a shard.
    pub segments: u32,
}

/// What may be chosen when a pool is formatted; `None` is decided by the capacity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FormatOptions {
    /// Virtual shards in the pool: bounds how many reactors can ever serve it.
    pub shards: Option<u32>,
    /// Bytes in a segment.
    pub segment_bytes: Option<u64>,
    /// Bytes in a shard's journal ring.
    pub journal_bytes: Option<u64>,
    /// Bytes in each of a shard's two index checkpoint areas.
    pub index_bytes: Option<u64>,
}

/// The pool does not fit on its devices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a device of {device_bytes} bytes is too small: {shards} shards over {devices} device(s) with segments of \
     {segment_bytes} bytes need at least {needed_bytes} bytes each"
)]
pub struct TooSmall {
    /// The smallest device's size.
    pub device_bytes: u64,
    /// How many devices there are.
    pub devices: u32,
    /// The number of shards asked for or chosen.
    pub shards: u32,
    /// The segment size asked for or chosen.
    pub segment_bytes: u64,
    /// What each device would need.
    pub needed_bytes: u64,
}

impl Layout {
    /// Lays a pool out over `devices` devices of which the smallest has `device_blocks` blocks.
    /// Returns the layout and the number of shards.
    ///
    /// # Errors
    /// [`TooSmall`].
    pub fn plan(
        device_blocks: u64,
        devices: u32,
        options: FormatOptions,
    ) -> Result<(Self, u32), TooSmall> {
        let fits = |blocks| Self::attempt(blocks, devices, options);
        fits(device_blocks).map_err(|(shards, segment_bytes)| {
            // What is chosen by capacity grows with it, so the need is found by trying.
            let mut needed = device_blocks.max(2 * EDGE_BLOCKS);
            while fits(needed).is_err() {
                needed += needed / 16;
            }
            let device_bytes = device_blocks * BLOCK;
            let needed_bytes = (needed * BLOCK).next_multiple_of(1 << 20);
            TooSmall { device_bytes, devices, shards, segment_bytes, needed_bytes }
        })
    }

    /// The layout, or the number of shards and the segment size that do not fit.
    fn attempt(
        device_blocks: u64,
        devices: u32,
        options: FormatOptions,
    ) -> Result<(Self, u32), (u32, u64)> {
        let pool_bytes = device_blocks * BLOCK * u64::from(devices);
        let segment_bytes = options.segment_bytes.unwrap_or_else(|| {
            let bytes = floor_power_of_two(pool_bytes / 512).clamp(8 << 20, 64 << 20);
            // The largest values fill it with their checksum pages: they would waste half of it.
            bytes + bytes / VALUE_BYTES_MAX as u64 * BLOCK
        });
        let shards = options.shards.unwrap_or_else(|| {
            let shards = floor_power_of_two(pool_bytes / segment_bytes / 128).clamp(4, 64) as u32;
            shards.max(devices.next_power_of_two())
        });
        let slots = u64::from(shards.div_ceil(devices));
        let stride_blocks = device_blocks.saturating_sub(2 * EDGE_BLOCKS) / slots;
        let shard_bytes = stride_blocks * BLOCK;
        let journal_bytes =
            options.journal_bytes.unwrap_or((shard_bytes / 64).clamp(1 << 20, 64 << 20));
        // An entry with a key of up to 36 bytes for every 4 KiB (pages may be three quarters full).
        let index_bytes = options.index_bytes.unwrap_or((shard_bytes / BLOCK * 96).max(256 << 10));
        let journal_blocks = (journal_bytes / BLOCK).max(u64::from(JOURNAL_BLOCKS_MIN));
        let index_blocks = (index_bytes / BLOCK).max(4);
        let segment_blocks = (segment_bytes / BLOCK).max(4);
        let segments =
            stride_blocks.saturating_sub(journal_blocks + 2 * index_blocks) / segment_blocks;
        let segments = segments.min(UNITS_MAX / UNITS_PER_BLOCK / segment_blocks);
        if segments < u64::from(SEGMENTS_MIN) {
            return Err((shards, segment_bytes));
        }
        let layout = Self {
            data_block: EDGE_BLOCKS,
            stride_blocks,
            journal_blocks: journal_blocks as u32,
            index_blocks: index_blocks as u32,
            segment_blocks: segment_blocks as u32,
            segments: segments as u32,
        };
        Ok((layout, shards))
    }

    /// Checks that a layout read from media lies inside a device of `device_blocks` blocks with
    /// `slots` shard slots on it.
    ///
    /// # Errors
    /// The name of the field that cannot be.
    pub fn validate(&self, device_blocks: u64, slots: u64) -> Result<(), &'static str> {
        if self.segment_blocks < 4 || self.segments < SEGMENTS_MIN {
            return Err("segments");
        }
        if self.journal_blocks < JOURNAL_BLOCKS_MIN || self.index_blocks < 4 {
            return Err("journal or index size");
        }
        let data = u64::from(self.segments) * u64::from(self.segment_blocks);
        if data > UNITS_MAX / UNITS_PER_BLOCK {
            return Err("segments");
        }
        let used = data + u64::from(self.journal_blocks) + 2 * u64::from(self.index_blocks);
        let end =
            slots.checked_mul(self.stride_blocks).and_then(|all| all.checked_add(self.data_block));
        if used > self.stride_blocks || self.data_block < EDGE_BLOCKS {
            return Err("shard slot");
        }
        // `device_blocks` comes from the same block: compare without trusting either.
        match end.and_then(|end| end.checked_add(EDGE_BLOCKS)) {
            Some(end) if end <= device_blocks => Ok(()),
            _ => Err("device size"),
        }
    }

    /// The regions of shard `shard` in a pool of `devices` devices.
    #[must_use]
    pub fn shard(&self, shard: u32, devices: u32) -> ShardRegion {
        let base = self.data_block + u64::from(shard / devices) * self.stride_blocks;
        let index_a = base + u64::from(self.journal_blocks);
        let index_b = index_a + u64::from(self.index_blocks);
        ShardRegion {
            device: (shard % devices) as usize,
            journal_block: base,
            index_block: [index_a, index_b],
            segments_block: index_b + u64::from(self.index_blocks),
        }
    }

    /// Bytes in a segment.
    #[must_use]
    pub fn segment_bytes(&self) -> u64 {
        u64::from(self.segment_blocks) * BLOCK
    }
}

/// Where one shard's parts begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardRegion {
    /// The device that holds the shard.
    pub device: usize,
    /// First block of the journal ring.
    pub journal_block: u64,
    /// First blocks of the two index checkpoint areas.
    pub index_block: [u64; 2],
    /// First block of segment 0.
    pub segments_block: u64,
}

fn floor_power_of_two(number: u64) -> u64 {
    if number == 0 { 0 } else { 1 << number.ilog2() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_that_is_planned_is_valid_and_lies_inside_the_device() {
        for gib in [1u64, 2, 4, 8, 64, 100, 512, 4096, 15_000] {
            for devices in [1u32, 2, 3, 8] {
                let blocks = (gib << 30) / BLOCK_BYTES as u64 + 7;
                let (layout, shards) =
                    Layout::plan(blocks, devices, FormatOptions::default()).expect("it fits");
                let slots = u64::from(shards.div_ceil(devices));
                layout.validate(blocks, slots).expect("valid");
                let last = layout.shard(shards - 1, devices);
                let end = last.segments_block
                    + u64::from(layout.segments) * u64::from(layout.segment_blocks);
                assert!(end <= blocks - EDGE_BLOCKS, "{gib} GiB × {devices}");
            }
        }
    }

    #[test]
    fn a_device_that_is_too_small_says_what_it_needs() {
        let error = Layout::plan(1000, 1, FormatOptions::default()).expect_err("1000 blocks");
        let blocks = error.needed_bytes / BLOCK_BYTES as u64;
        assert!(Layout::plan(blocks, 1, FormatOptions::default()).is_ok(), "{error}");
    }
}
