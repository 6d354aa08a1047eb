//! The manifest: what a checkpoint consists of. The same bytes travel in SEAL and MANIFEST and lie
//! on media.
//!
//! A manifest that decodes has sound boxes: inside their global shape, as long as their elements
//! say, with one checksum per chunk. Two checksums (header, body) stand before any of it is believed.
//!
//! ```text
//! ManifestHeader (80)
//! attachments × { rank u32, length u32, bytes }
//! tensors     × { BoxHeader (32), dims × Dim (24), chunks × Chunk (8), name }
//! ```

use super::reader::Reader;
use super::{
    CHUNK_ALIGN_BYTES, CHUNK_BYTES, DIMS_MAX, Dtype, MANIFEST_BYTES_MAX, SessionId,
    TENSOR_NAME_BYTES_MAX, WORLD_MAX,
};
use crate::pdu::{DecodeError, crc32c};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The version that this code writes, and the only one it reads.
pub const MANIFEST_VERSION: u16 = 1;
const MAGIC: [u8; 4] = *b"FBCM";

/// The first 80 bytes of a manifest.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ManifestHeader {
    /// `b"FBCM"`.
    pub magic: [u8; 4],
    /// [`MANIFEST_VERSION`].
    pub version: U16,
    /// Zero.
    pub flags: U16,
    /// How many ranks wrote the checkpoint.
    pub world: U32,
    /// How many attachments follow.
    pub attachments: U32,
    /// The session that the chunks belong to: the beginning of their keys.
    pub session: SessionId,
    /// The session's epoch.
    pub epoch: U64,
    /// Bytes behind this header.
    pub body_bytes: U64,
    /// Bytes of all boxes together.
    pub data_bytes: U64,
    /// How many tensor boxes follow the attachments.
    pub tensors: U32,
    /// Zero.
    pub reserved: [u8; 12],
    /// CRC32C of the body.
    pub body_crc: U32,
    /// CRC32C of the 76 bytes before it.
    pub header_crc: U32,
}
const HEADER_BYTES: usize = 80;
const _: () = assert!(size_of::<ManifestHeader>() == HEADER_BYTES);

/// The first 32 bytes of a tensor box, in a manifest and in RESERVE.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct BoxHeader {
    /// The rank that holds the box.
    pub rank: U32,
    /// The number, within the rank, of the box's first chunk; the others follow.
    pub first_index: U32,
    /// Where the box's bytes are cut.
    pub chunk_bytes: U32,
    /// Chunks that follow the dims: all of the box's in a manifest, 0 in RESERVE.
    pub chunks: U32,
    /// Bytes of the box.
    pub bytes: U64,
    /// Bytes of the name behind it all.
    pub name_length: U16,
    /// A [`Dtype`].
    pub dtype: u8,
    /// How many [`Dim`]s follow.
    pub dims: u8,
    /// Zero.
    pub reserved: U32,
}
const BOX_HEADER_BYTES: usize = 32;
const _: () = assert!(size_of::<BoxHeader>() == BOX_HEADER_BYTES);

/// One dimension of a box: 24 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Dim {
    /// The whole tensor's extent.
    pub global: U64,
    /// Where the box begins.
    pub offset: U64,
    /// How far it goes.
    pub extent: U64,
}
const _: () = assert!(size_of::<Dim>() == 24);

impl Dim {
    /// The box covers `offset..offset + extent` of `global`.
    #[must_use]
    pub fn new(global: u64, offset: u64, extent: u64) -> Self {
        Self { global: global.into(), offset: offset.into(), extent: extent.into() }
    }

    /// The box covers all of `global`.
    #[must_use]
    pub fn whole(global: u64) -> Self {
        Self::new(global, 0, global)
    }

    /// One past the last element that is covered. The dim must have been checked.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.get() + self.extent.get()
    }
}

/// One chunk's length and checksum: 8 bytes. In RESERVE's answer, a length of 0 says: not there.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct Chunk {
    /// Bytes.
    pub length: U32,
    /// CRC32C of them.
    pub crc: U32,
}
const _: () = assert!(size_of::<Chunk>() == 8);

impl Chunk {
    /// A chunk of `length` bytes with this checksum.
    #[must_use]
    pub fn new(length: u32, crc: u32) -> Self {
        Self { length: length.into(), crc: crc.into() }
    }
}

/// What stands before an attachment's bytes.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct AttachmentHeader {
    rank: U32,
    length: U32,
}
const ATTACHMENT_HEADER_BYTES: usize = 8;
const _: () = assert!(size_of::<AttachmentHeader>() == ATTACHMENT_HEADER_BYTES);

/// Bytes of a rank that the server keeps and does not read: the header of the file it saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Whose.
    pub rank: u32,
    /// What.
    pub bytes: Vec<u8>,
}

/// One rank's box of one tensor. Its bytes are the box's elements in row-major order, raw and
/// little-endian, cut every `chunk_bytes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorBox {
    /// The tensor's name.
    pub name: String,
    /// What its elements are.
    pub dtype: Dtype,
    /// Which rank holds the box.
    pub rank: u32,
    /// The number, within the rank, of its first chunk.
    pub first_index: u32,
    /// Where its bytes are cut.
    pub chunk_bytes: u32,
    /// Where it lies in the whole tensor; none: a scalar.
    pub dims: Vec<Dim>,
    /// Its bytes.
    pub bytes: u64,
    /// Its chunks; none in RESERVE.
    pub chunks: Vec<Chunk>,
}

/// What a checkpoint, or one rank's part of it, consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Whose chunks these are.
    pub session: SessionId,
    /// The session's epoch.
    pub epoch: u64,
    /// How many ranks.
    pub world: u32,
    /// Opaque bytes, at most a few.
    pub attachments: Vec<Attachment>,
    /// Every box of every tensor.
    pub tensors: Vec<TensorBox>,
}

impl Manifest {
    /// The bytes, for the wire and for media.
    ///
    /// # Panics
    /// Never for a manifest within [`MANIFEST_BYTES_MAX`]; a count that overflows its field would.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Self { session, epoch, world, attachments, tensors } = self;
        let mut bytes = Vec::with_capacity(self.encoded_bytes());
        bytes.resize(HEADER_BYTES, 0);
        for Attachment { rank, bytes: attached } in attachments {
            let length = u32::try_from(attached.len()).expect("an attachment fits a manifest");
            let header = AttachmentHeader { rank: (*rank).into(), length: length.into() };
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(attached);
        }
        for tensor in tensors {
            tensor.encode(&mut bytes);
        }
        let body = &bytes[HEADER_BYTES..];
        let mut header = ManifestHeader {
            magic: MAGIC,
            version: MANIFEST_VERSION.into(),
            flags: 0.into(),
            world: (*world).into(),
            attachments: u32::try_from(attachments.len()).expect("few attachments").into(),
            session: *session,
            epoch: (*epoch).into(),
            body_bytes: (body.len() as u64).into(),
            data_bytes: self.data_bytes().into(),
            tensors: u32::try_from(tensors.len()).expect("a manifest is bounded").into(),
            reserved: [0; 12],
            body_crc: crc32c(body).into(),
            header_crc: 0.into(),
        };
        header.header_crc = crc32c(&header.as_bytes()[..HEADER_BYTES - 4]).into();
        bytes[..HEADER_BYTES].copy_from_slice(header.as_bytes());
        bytes
    }

    /// Reads and checks what [`Manifest::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`]: not a manifest, of another version, damaged, or with a box that cannot be.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let header = check_header(reader.take()?, bytes)?;
        let mut attachments = Vec::new();
        for _ in 0..header.attachments.get() {
            let AttachmentHeader { rank, length } = reader.take()?;
            let attached = reader.bytes(length.get() as usize)?.to_vec();
            attachments.push(Attachment { rank: rank.get(), bytes: attached });
        }
        let tensors = decode_boxes(&mut reader, header.tensors.get(), true)?;
        reader.end()?;
        let manifest = Self {
            session: header.session,
            epoch: header.epoch.get(),
            world: header.world.get(),
            attachments,
            tensors,
        };
        if manifest.ranks().any(|rank| rank >= manifest.world) {
            return Err(DecodeError::Field("rank"));
        }
        if manifest.checked_data_bytes() != Some(header.data_bytes.get()) {
            return Err(DecodeError::Field("data bytes"));
        }
        Ok(manifest)
    }

    /// Bytes that [`Manifest::encode`] makes.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        let attached = |attachment: &Attachment| ATTACHMENT_HEADER_BYTES + attachment.bytes.len();
        HEADER_BYTES
            + self.attachments.iter().map(attached).sum::<usize>()
            + self.tensors.iter().map(TensorBox::encoded_bytes).sum::<usize>()
    }

    /// Bytes of all boxes together; of a decoded manifest the sum always fits.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.checked_data_bytes().unwrap_or(u64::MAX)
    }

    fn checked_data_bytes(&self) -> Option<u64> {
        self.tensors.iter().try_fold(0_u64, |sum, tensor| sum.checked_add(tensor.bytes))
    }

    /// The rank of every attachment and box, in their order.
    pub fn ranks(&self) -> impl Iterator<Item = u32> {
        let attached = self.attachments.iter().map(|attachment| attachment.rank);
        attached.chain(self.tensors.iter().map(|tensor| tensor.rank))
    }

    /// Chunks of all boxes together.
    #[must_use]
    pub fn chunk_count(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.chunks.len() as u64).sum()
    }
}

/// Checks everything that the header can tell, and both checksums.
fn check_header<'a>(
    header: &'a ManifestHeader,
    bytes: &[u8],
) -> Result<&'a ManifestHeader, DecodeError> {
    if header.magic != MAGIC {
        return Err(DecodeError::Field("manifest magic"));
    }
    if crc32c(&bytes[..HEADER_BYTES - 4]) != header.header_crc.get() {
        return Err(DecodeError::Checksum);
    }
    if header.version.get() != MANIFEST_VERSION {
        return Err(DecodeError::Field("manifest version"));
    }
    if header.flags.get() != 0 || header.reserved != [0; 12] {
        return Err(DecodeError::Reserved);
    }
    if bytes.len() > MANIFEST_BYTES_MAX
        || header.body_bytes.get() != (bytes.len() - HEADER_BYTES) as u64
    {
        return Err(DecodeError::Length);
    }
    if !(1..=WORLD_MAX).contains(&header.world.get()) {
        return Err(DecodeError::Field("world"));
    }
    if crc32c(&bytes[HEADER_BYTES..]) != header.body_crc.get() {
        return Err(DecodeError::Checksum);
    }
    Ok(header)
}

/// Reads `count` boxes. What the count could allocate is bounded by the bytes that are there.
pub(super) fn decode_boxes(
    reader: &mut Reader<'_>,
    count: u32,
    chunks: bool,
) -> Result<Vec<TensorBox>, DecodeError> {
    if count as usize > reader.left() / BOX_HEADER_BYTES {
        return Err(DecodeError::Truncated);
    }
    let mut boxes = Vec::with_capacity(count as usize);
    for _ in 0..count {
        boxes.push(TensorBox::decode(reader, chunks)?);
    }
    Ok(boxes)
}

impl TensorBox {
    /// How many chunks the box is cut into.
    #[must_use]
    pub fn chunk_count(&self) -> u64 {
        self.bytes.div_ceil(u64::from(self.chunk_bytes))
    }

    /// Bytes of its chunk `nth`, counted from 0 within the box.
    #[must_use]
    pub fn chunk_length(&self, nth: u64) -> u32 {
        let left = self.bytes.saturating_sub(nth.saturating_mul(u64::from(self.chunk_bytes)));
        u32::try_from(left).unwrap_or(u32::MAX).min(self.chunk_bytes)
    }

    fn encoded_bytes(&self) -> usize {
        BOX_HEADER_BYTES
            + size_of_val(self.dims.as_slice())
            + size_of_val(self.chunks.as_slice())
            + self.name.len()
    }

    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        let Self { name, dtype, rank, first_index, chunk_bytes, dims, bytes: length, chunks } =
            self;
        let header = BoxHeader {
            rank: (*rank).into(),
            first_index: (*first_index).into(),
            chunk_bytes: (*chunk_bytes).into(),
            chunks: u32::try_from(chunks.len()).expect("a manifest is bounded").into(),
            bytes: (*length).into(),
            name_length: u16::try_from(name.len()).expect("a tensor's name is short").into(),
            dtype: *dtype as u8,
            dims: u8::try_from(dims.len()).expect("few dimensions"),
            reserved: 0.into(),
        };
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(dims.as_bytes());
        bytes.extend_from_slice(chunks.as_bytes());
        bytes.extend_from_slice(name.as_bytes());
    }

    fn decode(reader: &mut Reader<'_>, chunks: bool) -> Result<Self, DecodeError> {
        let header: &BoxHeader = reader.take()?;
        if header.reserved.get() != 0 {
            return Err(DecodeError::Reserved);
        }
        if usize::from(header.dims) > DIMS_MAX {
            return Err(DecodeError::Field("dims"));
        }
        let dims: &[Dim] = reader.slice(usize::from(header.dims))?;
        let listed: &[Chunk] = reader.slice(header.chunks.get() as usize)?;
        let name = reader.bytes(usize::from(header.name_length.get()))?;
        let tensor = Self {
            name: str::from_utf8(name).map_err(|_| DecodeError::Field("tensor name"))?.to_owned(),
            dtype: Dtype::from_wire(header.dtype)?,
            rank: header.rank.get(),
            first_index: header.first_index.get(),
            chunk_bytes: header.chunk_bytes.get(),
            dims: dims.to_vec(),
            bytes: header.bytes.get(),
            chunks: listed.to_vec(),
        };
        tensor.check(chunks)?;
        Ok(tensor)
    }

    /// Checks that the box can be: what decoding does, and what a client does before it sends.
    /// `chunks`: the list of chunks must be whole; otherwise it must be empty.
    ///
    /// # Errors
    /// [`DecodeError::Field`] names what is wrong.
    pub fn check(&self, chunks: bool) -> Result<(), DecodeError> {
        if !(1..=TENSOR_NAME_BYTES_MAX).contains(&self.name.len()) {
            return Err(DecodeError::Field("tensor name"));
        }
        if self.dims.len() > DIMS_MAX {
            return Err(DecodeError::Field("dims"));
        }
        if !CHUNK_BYTES.contains(&self.chunk_bytes)
            || !self.chunk_bytes.is_multiple_of(CHUNK_ALIGN_BYTES)
        {
            return Err(DecodeError::Field("chunk size"));
        }
        let inside = |dim: &Dim| {
            let end = dim.offset.get().checked_add(dim.extent.get());
            end.is_some_and(|end| end <= dim.global.get())
        };
        if !self.dims.iter().all(inside) {
            return Err(DecodeError::Field("box (outside its tensor)"));
        }
        self.global_elements().ok_or(DecodeError::Field("shape (too large)"))?;
        if self.elements().and_then(|elements| self.dtype.bytes(elements)) != Some(self.bytes) {
            return Err(DecodeError::Field("bytes (not what shape and dtype say)"));
        }
        self.check_chunks(chunks)
    }

    fn check_chunks(&self, listed: bool) -> Result<(), DecodeError> {
        let count = self.chunk_count();
        if u64::from(self.first_index) + count > u64::from(u32::MAX) {
            return Err(DecodeError::Field("chunk index"));
        }
        if self.chunks.len() as u64 != if listed { count } else { 0 } {
            return Err(DecodeError::Field("chunks"));
        }
        let right = |(nth, chunk): (u64, &Chunk)| chunk.length.get() == self.chunk_length(nth);
        if (0..).zip(&self.chunks).all(right) {
            Ok(())
        } else {
            Err(DecodeError::Field("chunk length"))
        }
    }

    /// Elements of the box; `None` if they do not fit a u64.
    #[must_use]
    pub fn elements(&self) -> Option<u64> {
        product(self.dims.iter().map(|dim| dim.extent.get()))
    }

    /// Elements of the whole tensor; `None` if they do not fit a u64.
    #[must_use]
    pub fn global_elements(&self) -> Option<u64> {
        product(self.dims.iter().map(|dim| dim.global.get()))
    }
}

/// The product, where a single 0 makes 0 however large the others are.
fn product(extents: impl Iterator<Item = u64> + Clone) -> Option<u64> {
    if extents.clone().any(|extent| extent == 0) {
        return Some(0);
    }
    extents.into_iter().try_fold(1_u64, u64::checked_mul)
}
