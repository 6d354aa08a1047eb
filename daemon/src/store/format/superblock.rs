//! The superblock: what a device is in its pool. Four copies, of which two that agree are enough.
//!
//! Each open raises `generation` and rewrites all copies before anything else is written; the
//! generation is the epoch of that run's journal pages. A crash between the copies leaves two
//! generations, of which the newest with at least two equal copies counts: either is whole.

use super::{FORMAT_VERSION, FormatError, crc32c};
use crate::store::geometry::Layout;
use forebay_nvme::BLOCK_BYTES;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of a superblock.
pub const MAGIC: [u8; 8] = *b"FOREBAY\x01";
/// How many copies there are.
pub const COPIES: usize = 4;
/// How many equal copies make one that is trusted.
pub const QUORUM: usize = 2;

/// The layout on media: one block.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U32,
    /// CRC32C of the block with this field as zero.
    crc: U32,
    generation: U64,
    pool: [u8; 16],
    device: [u8; 16],
    device_index: U32,
    device_count: U32,
    shards: U32,
    block_bytes: U32,
    device_blocks: U64,
    data_block: U64,
    stride_blocks: U64,
    journal_blocks: U32,
    index_blocks: U32,
    segment_blocks: U32,
    segments: U32,
    hash_key: [u8; 16],
    created_s: U64,
    reserved: [u8; 3960],
}
const _: () = assert!(size_of::<Raw>() == BLOCK_BYTES);
const _: () = assert!(std::mem::offset_of!(Raw, crc) == 12);
const _: () = assert!(std::mem::offset_of!(Raw, hash_key) == 112);

/// A superblock that has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Raised by every open; the epoch of what that run writes.
    pub generation: u64,
    /// The pool's UUID.
    pub pool: [u8; 16],
    /// This device's UUID.
    pub device: [u8; 16],
    /// Which device of the pool this is.
    pub device_index: u32,
    /// How many devices the pool has.
    pub device_count: u32,
    /// How many virtual shards the pool has.
    pub shards: u32,
    /// Size of this device, in blocks, when it was formatted.
    pub device_blocks: u64,
    /// Where everything is; the same on every device of the pool.
    pub layout: Layout,
    /// The secret key of the identity hash (SipHash-1-3-128). Never leaves the server.
    pub hash_key: [u8; 16],
    /// When the pool was made, in seconds since 1970.
    pub created_s: u64,
}

impl Superblock {
    /// Where copy `copy` lies on a device of `device_blocks` blocks: two at the front and two at the
    /// end, 1 MiB apart, so that no single stray write reaches a quorum of them.
    #[must_use]
    pub fn block_of_copy(copy: usize, device_blocks: u64) -> u64 {
        const APART: u64 = (1 << 20) / BLOCK_BYTES as u64;
        match copy {
            0 => 0,
            1 => APART,
            2 => device_blocks - 2 * APART,
            _ => device_blocks - APART,
        }
    }

    /// Writes the block into `block`.
    pub fn encode(&self, block: &mut [u8]) {
        let Self {
            generation,
            pool,
            device,
            device_index,
            device_count,
            shards,
            device_blocks,
            layout,
            hash_key,
            created_s,
        } = self;
        let Layout {
            data_block,
            stride_blocks,
            journal_blocks,
            index_blocks,
            segment_blocks,
            segments,
        } = layout;
        let mut raw = Raw {
            magic: MAGIC,
            version: FORMAT_VERSION.into(),
            crc: U32::ZERO,
            generation: (*generation).into(),
            pool: *pool,
            device: *device,
            device_index: (*device_index).into(),
            device_count: (*device_count).into(),
            shards: (*shards).into(),
            block_bytes: (BLOCK_BYTES as u32).into(),
            device_blocks: (*device_blocks).into(),
            data_block: (*data_block).into(),
            stride_blocks: (*stride_blocks).into(),
            journal_blocks: (*journal_blocks).into(),
            index_blocks: (*index_blocks).into(),
            segment_blocks: (*segment_blocks).into(),
            segments: (*segments).into(),
            hash_key: *hash_key,
            created_s: (*created_s).into(),
            reserved: [0; 3960],
        };
        raw.crc = crc32c(raw.as_bytes()).into();
        block[..BLOCK_BYTES].copy_from_slice(raw.as_bytes());
    }

    /// Checks a block.
    ///
    /// # Errors
    /// [`FormatError`]; a device that was never ours is [`FormatError::Magic`].
    pub fn parse(block: &[u8]) -> Result<Self, FormatError> {
        let mut raw = Raw::new_zeroed();
        let bytes = block.get(..BLOCK_BYTES).ok_or(FormatError::Field("length"))?;
        raw.as_mut_bytes().copy_from_slice(bytes);
        if raw.magic != MAGIC {
            return Err(FormatError::Magic);
        }
        let crc = std::mem::replace(&mut raw.crc, U32::ZERO);
        if crc32c(raw.as_bytes()) != crc.get() {
            return Err(FormatError::Checksum);
        }
        if raw.version.get() != FORMAT_VERSION {
            return Err(FormatError::Version(raw.version.get()));
        }
        if raw.block_bytes.get() as usize != BLOCK_BYTES {
            return Err(FormatError::Field("block size"));
        }
        let superblock = Self {
            generation: raw.generation.get(),
            pool: raw.pool,
            device: raw.device,
            device_index: raw.device_index.get(),
            device_count: raw.device_count.get(),
            shards: raw.shards.get(),
            device_blocks: raw.device_blocks.get(),
            layout: Layout {
                data_block: raw.data_block.get(),
                stride_blocks: raw.stride_blocks.get(),
                journal_blocks: raw.journal_blocks.get(),
                index_blocks: raw.index_blocks.get(),
                segment_blocks: raw.segment_blocks.get(),
                segments: raw.segments.get(),
            },
            hash_key: raw.hash_key,
            created_s: raw.created_s.get(),
        };
        superblock.validate()?;
        Ok(superblock)
    }

    fn validate(&self) -> Result<(), FormatError> {
        if self.device_count == 0 || self.device_index >= self.device_count {
            return Err(FormatError::Field("device index"));
        }
        if self.shards == 0 || self.shards > u32::from(u16::MAX) {
            return Err(FormatError::Field("shards"));
        }
        let slots = u64::from(self.shards.div_ceil(self.device_count));
        self.layout.validate(self.device_blocks, slots).map_err(FormatError::Field)
    }
}

/// What was found at the four places of a device.
#[derive(Debug)]
pub struct Copies(Vec<Result<Superblock, FormatError>>);

impl Copies {
    /// Takes the copies in their order; an unreadable one is an error like any other.
    #[must_use]
    pub fn new(copies: Vec<Result<Superblock, FormatError>>) -> Self {
        Self(copies)
    }

    /// The copies, for `inspect`.
    pub fn each(&self) -> &[Result<Superblock, FormatError>] {
        &self.0
    }

    /// The newest superblock that a quorum of copies agrees on.
    ///
    /// # Errors
    /// The most telling of the copies' errors: `Magic` only if no copy was ever ours.
    pub fn quorum(&self) -> Result<&Superblock, FormatError> {
        let good = || self.0.iter().flatten();
        let agreed = good()
            .filter(|one| good().filter(|other| other == one).count() >= QUORUM)
            .max_by_key(|one| one.generation);
        agreed.ok_or_else(|| {
            let errors = || self.0.iter().filter_map(|copy| copy.as_ref().err());
            if good().next().is_some() {
                return FormatError::Checksum;
            }
            errors()
                .find(|error| **error != FormatError::Magic)
                .copied()
                .unwrap_or(FormatError::Magic)
        })
    }
}
