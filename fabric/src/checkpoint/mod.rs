//! The checkpoint store's words on the wire: names, chunk keys, payloads and the manifest.
//!
//! What the decoders guarantee: any bytes either become a value whose every field has been checked,
//! or a [`DecodeError`]; they never panic, and they never allocate by a length that was not first
//! compared with the bytes at hand. What they do not know: whether a session exists, whether boxes
//! of several ranks fit together, whether a chunk is on media. That is the server's part.
//!
//! A checkpoint goes BEGIN → (RESERVE → PUT…) → SEAL → COMMIT; `PROTOCOL.md`, "Checkpoint
//! payloads", has the byte tables. Chunks are values of namespace [`CHUNK_NAMESPACE`] under a
//! [`ChunkKey`], so any reactor takes and serves them; everything else is asked of the catalog's
//! reactor, by commands whose data is one of the payloads here.

mod dtype;
mod manifest;
mod payload;
mod reader;

pub use dtype::Dtype;
pub use manifest::{
    Attachment, BoxHeader, Chunk, Dim, MANIFEST_VERSION, Manifest, ManifestHeader, TensorBox,
};
pub use payload::{
    BeginAnswer, BeginRequest, CheckpointEntry, ReserveRequest, SealRequest, SessionRequest,
    begin_flags, chunk_states, encode_reserve, encode_seal, entries,
};

use crate::pdu::{DecodeError, VALUE_BYTES_MAX};
use std::fmt;
use std::ops::RangeInclusive;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The namespace of the system catalog: commit records, open sessions.
pub const CATALOG_NAMESPACE: u32 = 0;
/// The namespace of checkpoint chunks and manifest parts.
pub const CHUNK_NAMESPACE: u32 = 1;
/// The longest checkpoint name, in bytes.
pub const NAME_BYTES_MAX: usize = 512;
/// The longest tensor name, in bytes.
pub const TENSOR_NAME_BYTES_MAX: usize = 4096;
/// The most dimensions of a tensor.
pub const DIMS_MAX: usize = 16;
/// The most ranks of one checkpoint; also one past the highest rank that a PUT may name.
pub const WORLD_MAX: u32 = 1 << 16;
/// What a chunk may be cut at, in bytes; always a multiple of [`CHUNK_ALIGN_BYTES`].
pub const CHUNK_BYTES: RangeInclusive<u32> = (1 << 20)..=(VALUE_BYTES_MAX as u32);
/// Chunks are cut at multiples of this, in bytes: the device's block.
pub const CHUNK_ALIGN_BYTES: u32 = 4096;
/// Where chunks are cut unless there is a reason, in bytes.
pub const CHUNK_BYTES_DEFAULT: u32 = 4 << 20;
/// A manifest is stored, and travels, in parts of this many bytes (the last one may be shorter).
pub const MANIFEST_PART_BYTES: usize = VALUE_BYTES_MAX;
/// The largest manifest, in bytes: 8 parts, or 16 TiB of weights in 4 MiB chunks.
pub const MANIFEST_BYTES_MAX: usize = 8 * MANIFEST_PART_BYTES;
/// The rank under which the server keeps a manifest's parts; no PUT may name it.
pub const MANIFEST_RANK: u32 = u32::MAX;
/// What `result` says where no single rank is to blame.
pub const NO_RANK: u64 = u64::MAX;

/// One attempt at writing one checkpoint; the server draws it, and no two are ever the same.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(transparent)]
pub struct SessionId(pub [u8; 16]);
const _: () = assert!(size_of::<SessionId>() == 16);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The key of one chunk in [`CHUNK_NAMESPACE`]: 24 bytes.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct ChunkKey {
    /// Whose chunk.
    pub session: SessionId,
    /// Which rank's; [`MANIFEST_RANK`]: a part of the manifest.
    pub rank: U32,
    /// Which one: chunks are numbered within the rank.
    pub index: U32,
}
const _: () = assert!(size_of::<ChunkKey>() == 24);

impl ChunkKey {
    /// The key of `rank`'s chunk `index`.
    #[must_use]
    pub fn new(session: SessionId, rank: u32, index: u32) -> Self {
        Self { session, rank: rank.into(), index: index.into() }
    }

    /// The key of part `index` of the manifest.
    #[must_use]
    pub fn manifest_part(session: SessionId, index: u32) -> Self {
        Self::new(session, MANIFEST_RANK, index)
    }

    /// The key that these bytes are, if they are one: what a READ may name.
    #[must_use]
    pub fn parse(key: &[u8]) -> Option<Self> {
        Self::read_from_bytes(key).ok()
    }

    /// The key that these bytes are, if a PUT may name it: manifest parts are the server's own.
    #[must_use]
    pub fn parse_put(key: &[u8]) -> Option<Self> {
        Self::parse(key).filter(|key| key.rank.get() < WORLD_MAX)
    }
}

/// Checks a checkpoint's name: `run/step` or `tenant/run/step`, UTF-8, no empty part, no `.` or
/// `..`, no control characters, at most [`NAME_BYTES_MAX`] bytes.
///
/// # Errors
/// [`DecodeError::Field`] says what is wrong.
pub fn check_name(name: &[u8]) -> Result<&str, DecodeError> {
    let name = check_prefix(name)?;
    let parts = name.split('/').count();
    if !(2..=3).contains(&parts) {
        return Err(DecodeError::Field("name (run/step or tenant/run/step)"));
    }
    if name.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err(DecodeError::Field("name (a part is empty, `.` or `..`)"));
    }
    Ok(name)
}

/// Checks what LIST may ask for: the beginning of a name, also an empty one.
///
/// # Errors
/// [`DecodeError::Field`]: not UTF-8, a control character, or too long.
pub fn check_prefix(prefix: &[u8]) -> Result<&str, DecodeError> {
    let prefix = str::from_utf8(prefix).map_err(|_| DecodeError::Field("name (not UTF-8)"))?;
    if prefix.len() > NAME_BYTES_MAX {
        return Err(DecodeError::Field("name (too long)"));
    }
    if prefix.chars().any(char::is_control) {
        return Err(DecodeError::Field("name (control character)"));
    }
    Ok(prefix)
}

#[cfg(test)]
mod tests;
