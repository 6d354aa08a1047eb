//! The payloads of the checkpoint commands: what their data holds, both ways.
//!
//! LIST, MANIFEST and DELETE send none: the key is the prefix or the name, and `offset` and
//! `data_length` say what is wanted, as in a key-value list and retrieve. LIST goes in the order of
//! commits (`offset` 0, then each `result`, until that is 0) and answers [`CheckpointEntry`]s; of
//! MANIFEST, `result` is the whole length, and an answer may be shorter than asked: go on behind it.

use super::manifest::decode_boxes;
use super::reader::Reader;
use super::{
    CHUNK_BYTES, Chunk, MANIFEST_BYTES_MAX, NAME_BYTES_MAX, SessionId, TensorBox, WORLD_MAX,
    check_name,
};
use crate::pdu::DecodeError;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// BEGIN, 24 bytes; the checkpoint's name is the command's key.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct BeginRequest {
    /// Grows with each restart of the job: a higher epoch fences every lower one.
    pub epoch: U64,
    /// The session ends by itself when it has not committed after so many milliseconds; 0: the
    /// server's default.
    pub deadline_ms: U64,
    /// How many ranks will seal.
    pub world: U32,
    /// Zero.
    pub reserved: U32,
}
const _: () = assert!(size_of::<BeginRequest>() == 24);

impl BeginRequest {
    /// A request of `world` ranks.
    #[must_use]
    pub fn new(world: u32, epoch: u64, deadline_ms: u64) -> Self {
        let (epoch, deadline_ms) = (epoch.into(), deadline_ms.into());
        Self { epoch, deadline_ms, world: world.into(), reserved: 0.into() }
    }

    /// Reads and checks one.
    ///
    /// # Errors
    /// [`DecodeError`]: wrong length, reserved bits, or a world of 0 or over the limit.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let request = exactly::<Self>(bytes)?;
        if request.reserved.get() != 0 {
            return Err(DecodeError::Reserved);
        }
        if !(1..=WORLD_MAX).contains(&request.world.get()) {
            return Err(DecodeError::Field("world"));
        }
        Ok(*request)
    }
}

/// Bits of [`BeginAnswer::flags`].
pub mod begin_flags {
    /// The session was there already: some chunks may be, too (ask with RESERVE).
    pub const RESUMED: u32 = 1 << 0;
}

/// The answer to BEGIN, 40 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct BeginAnswer {
    /// What every later command of this attempt names.
    pub session: SessionId,
    /// The session's epoch.
    pub epoch: U64,
    /// How many ranks it waits for.
    pub world: U32,
    /// The largest chunk that the server takes, in bytes.
    pub chunk_bytes_max: U32,
    /// [`begin_flags`].
    pub flags: U32,
    /// Zero.
    pub reserved: U32,
}
const _: () = assert!(size_of::<BeginAnswer>() == 40);

impl BeginAnswer {
    /// Reads and checks one.
    ///
    /// # Errors
    /// [`DecodeError`]: wrong length, unknown bits, or a chunk size that cannot be.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let answer = exactly::<Self>(bytes)?;
        if answer.reserved.get() != 0 || answer.flags.get() & !begin_flags::RESUMED != 0 {
            return Err(DecodeError::Reserved);
        }
        if answer.chunk_bytes_max.get() < *CHUNK_BYTES.start() {
            return Err(DecodeError::Field("chunk size"));
        }
        Ok(*answer)
    }

    /// The session was there already.
    #[must_use]
    pub fn resumed(&self) -> bool {
        self.flags.get() & begin_flags::RESUMED != 0
    }
}

/// The first 32 bytes of RESERVE; the boxes follow, without chunks.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
struct ReserveHeader {
    session: SessionId,
    rank: U32,
    tensors: U32,
    skip: U32,
    reserved: U32,
}
const _: () = assert!(size_of::<ReserveHeader>() == 32);

/// RESERVE: the boxes that a rank will put. The answer is one [`Chunk`] for each of their chunks,
/// in order, after the first `skip`: what is there already, length 0 for what is not. `result` is
/// the next `skip`, or 0 at the end: the server may stop early, because it reads what it finds in
/// order to tell its checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReserveRequest {
    /// Which session.
    pub session: SessionId,
    /// Which rank.
    pub rank: u32,
    /// How many chunks, counted over all boxes, the answer leaves out.
    pub skip: u32,
    /// The boxes; a rank may declare them in several RESERVEs.
    pub boxes: Vec<TensorBox>,
}

/// The bytes of a RESERVE of `boxes`, whose lists of chunks are ignored.
#[must_use]
pub fn encode_reserve(session: SessionId, rank: u32, skip: u32, boxes: &[TensorBox]) -> Vec<u8> {
    let tensors = u32::try_from(boxes.len()).expect("a payload is bounded");
    let (rank, tensors, skip) = (rank.into(), tensors.into(), skip.into());
    let header = ReserveHeader { session, rank, tensors, skip, reserved: 0.into() };
    let mut bytes = header.as_bytes().to_vec();
    for tensor in boxes {
        TensorBox { chunks: Vec::new(), ..tensor.clone() }.encode(&mut bytes);
    }
    bytes
}

impl ReserveRequest {
    /// Reads and checks one.
    ///
    /// # Errors
    /// [`DecodeError`]: truncated, trailing bytes, a box that cannot be or of another rank.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let header: &ReserveHeader = reader.take()?;
        if header.reserved.get() != 0 {
            return Err(DecodeError::Reserved);
        }
        let rank = header.rank.get();
        let boxes = decode_boxes(&mut reader, header.tensors.get(), false)?;
        reader.end()?;
        if rank >= WORLD_MAX || boxes.iter().any(|tensor| tensor.rank != rank) {
            return Err(DecodeError::Field("rank"));
        }
        Ok(Self { session: header.session, rank, skip: header.skip.get(), boxes })
    }
}

/// The answer to RESERVE.
///
/// # Errors
/// [`DecodeError::Length`]: not a whole number of entries.
pub fn chunk_states(bytes: &[u8]) -> Result<&[Chunk], DecodeError> {
    <[Chunk]>::ref_from_bytes(bytes).map_err(|_| DecodeError::Length)
}

/// The first 32 bytes of SEAL; the slice of the rank's manifest follows.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
struct SealHeader {
    session: SessionId,
    rank: U32,
    total_bytes: U32,
    offset: U32,
    reserved: U32,
}
const _: () = assert!(size_of::<SealHeader>() == 32);

/// SEAL: a rank's manifest, whole or a slice of it, in order. The rank is sealed with the last
/// byte. Sending a slice again is harmless; beginning again with other bytes replaces what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealRequest<'a> {
    /// Which session.
    pub session: SessionId,
    /// Which rank.
    pub rank: u32,
    /// Bytes of the rank's whole manifest.
    pub total_bytes: u32,
    /// Where this slice begins in it.
    pub offset: u32,
    /// The slice.
    pub slice: &'a [u8],
}

/// The bytes of a SEAL.
#[must_use]
pub fn encode_seal(request: &SealRequest<'_>) -> Vec<u8> {
    let SealRequest { session, rank, total_bytes, offset, slice } = *request;
    let (rank, total_bytes, offset) = (rank.into(), total_bytes.into(), offset.into());
    let header = SealHeader { session, rank, total_bytes, offset, reserved: 0.into() };
    [header.as_bytes(), slice].concat()
}

impl<'a> SealRequest<'a> {
    /// Reads and checks one; the manifest itself is decoded when all of it is there.
    ///
    /// # Errors
    /// [`DecodeError`]: truncated, over the limit, or a slice that lies outside the manifest.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let header: &SealHeader = reader.take()?;
        let slice = reader.rest();
        if header.reserved.get() != 0 {
            return Err(DecodeError::Reserved);
        }
        let (total, offset) = (header.total_bytes.get(), header.offset.get());
        if total as usize > MANIFEST_BYTES_MAX {
            return Err(DecodeError::Field("manifest (too large)"));
        }
        if slice.is_empty() || offset as usize + slice.len() > total as usize {
            return Err(DecodeError::Field("slice"));
        }
        let (session, rank) = (header.session, header.rank.get());
        Ok(Self { session, rank, total_bytes: total, offset, slice })
    }
}

/// COMMIT and ABORT, 16 bytes: the session. COMMIT's `result` is the manifest's length.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct SessionRequest {
    /// Which session.
    pub session: SessionId,
}
const _: () = assert!(size_of::<SessionRequest>() == 16);

impl SessionRequest {
    /// Reads one.
    ///
    /// # Errors
    /// [`DecodeError`]: wrong length.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        exactly::<Self>(bytes).copied()
    }
}

/// The first 64 bytes of an entry of LIST's answer; the name follows.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct CheckpointEntry {
    /// The session that wrote it.
    pub session: SessionId,
    /// Its epoch.
    pub epoch: U64,
    /// When it was committed, in seconds of Unix time (by the server's clock).
    pub committed_s: U64,
    /// Bytes of its tensors.
    pub data_bytes: U64,
    /// Bytes of its manifest.
    pub manifest_bytes: U64,
    /// How many boxes.
    pub tensors: U32,
    /// How many chunks.
    pub chunks: U32,
    /// How many ranks wrote it.
    pub world: U32,
    /// Bytes of the name behind.
    pub name_length: U16,
    /// Zero.
    pub reserved: U16,
}
const _: () = assert!(size_of::<CheckpointEntry>() == 64);

/// The entries of LIST's answer, with their names.
///
/// # Errors
/// The iterator ends with a [`DecodeError`] at the first entry that cannot be.
pub fn entries(
    bytes: &[u8],
) -> impl Iterator<Item = Result<(&CheckpointEntry, &str), DecodeError>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut reader = Reader::new(std::mem::take(&mut rest));
        let entry = take_entry(&mut reader);
        if entry.is_ok() {
            rest = reader.rest();
        }
        Some(entry)
    })
}

fn take_entry<'a>(reader: &mut Reader<'a>) -> Result<(&'a CheckpointEntry, &'a str), DecodeError> {
    let entry: &CheckpointEntry = reader.take()?;
    if usize::from(entry.name_length.get()) > NAME_BYTES_MAX {
        return Err(DecodeError::Field("name (too long)"));
    }
    let name = reader.bytes(usize::from(entry.name_length.get()))?;
    Ok((entry, check_name(name)?))
}

/// `bytes` as one fixed layout and nothing else.
fn exactly<T>(bytes: &[u8]) -> Result<&T, DecodeError>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned,
{
    T::ref_from_bytes(bytes).map_err(|_| DecodeError::Length)
}
