//! What is on media: fixed little-endian layouts, their checksums, and nothing else.
//!
//! Every structure names the pool and the shard that it belongs to and carries a CRC32C over all of
//! its bytes, so that a torn, stale, misdirected or foreign block is told apart from a good one. Bytes
//! that have not been checked are plain slices; only `parse` makes them one of these types.
//! `FORMAT.md` holds the same tables for readers.

#[cfg(test)]
mod golden;
pub mod index_page;
pub mod journal_page;
pub mod superblock;

pub use index_page::{IndexHeader, IndexPage, IndexPageBuilder};
pub use journal_page::{JournalPage, JournalPageBuilder, Record, RecordKind};
pub use superblock::{Copies, Superblock};

/// The version of everything in this module.
pub const FORMAT_VERSION: u32 = 1;

/// The unit in which values are placed inside segments, in bytes: a small value costs at most this
/// much more than its length.
pub const UNIT_BYTES: u64 = 64;

/// Values longer than this have a checksum page, so that a fragment is verified without the rest.
pub const WHOLE_CRC_BYTES_MAX: u32 = 64 << 10;

/// How much data one entry of a checksum page covers, in bytes.
pub const CHECKSUM_BLOCK_BYTES: usize = 16 << 10;

/// Why a structure on media is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Not this kind of structure at all.
    #[error("no such structure here")]
    Magic,
    /// The checksum does not match: torn or rotten.
    #[error("checksum mismatch")]
    Checksum,
    /// Written by a version that this one does not know.
    #[error("format version {0} is not known to this release")]
    Version(u32),
    /// Of another pool, or of another place in this one.
    #[error("belongs to another pool or place")]
    Foreign,
    /// A field is out of its bounds; the text names it.
    #[error("bad field: {0}")]
    Field(&'static str),
}

/// CRC32C of `bytes` (RFC 3720, B.4), the one checksum of the format.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    forebay_fabric::checksum::crc32c(bytes)
}
