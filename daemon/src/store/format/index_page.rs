//! The index checkpoint of a shard: a header block, and pages of entries with their keys in the order
//! of their hashes. Two areas take turns; the header is written last, so the newest good header
//! always stands for a whole checkpoint.

use super::journal_page::RingId;
use super::{FORMAT_VERSION, FormatError, crc32c};
use crate::store::index::Entry;
use forebay_nvme::BLOCK_BYTES;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of a checkpoint's header.
pub const HEADER_MAGIC: [u8; 4] = *b"FBX1";
/// First bytes of a checkpoint's page.
pub const PAGE_MAGIC: [u8; 4] = *b"FBE1";

#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 4],
    /// CRC32C of the block from offset 8 on.
    crc: U32,
    pool: U64,
    version: U32,
    shard: U16,
    reserved: U16,
    generation: U64,
    journal_sequence: U64,
    journal_epoch: U64,
    entries: U64,
    pages: U32,
    reserved2: U32,
    reserved3: [u8; 4032],
}
const _: () = assert!(size_of::<RawHeader>() == BLOCK_BYTES);

/// The header of a checkpoint, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexHeader {
    /// Raised by every checkpoint of the shard.
    pub generation: u64,
    /// The first journal page that the checkpoint does not cover.
    pub journal_sequence: u64,
    /// The epoch of the run that wrote it: no page of the tail is older.
    pub journal_epoch: u64,
    /// How many entries it holds.
    pub entries: u64,
    /// How many pages follow the header.
    pub pages: u32,
}

impl IndexHeader {
    /// Writes the block.
    pub fn encode(&self, block: &mut [u8], ring: RingId) {
        let Self { generation, journal_sequence, journal_epoch, entries, pages } = *self;
        let mut raw = RawHeader {
            magic: HEADER_MAGIC,
            crc: U32::ZERO,
            pool: ring.pool.into(),
            version: FORMAT_VERSION.into(),
            shard: ring.shard.into(),
            reserved: U16::ZERO,
            generation: generation.into(),
            journal_sequence: journal_sequence.into(),
            journal_epoch: journal_epoch.into(),
            entries: entries.into(),
            pages: pages.into(),
            reserved2: U32::ZERO,
            reserved3: [0; 4032],
        };
        raw.crc = crc32c(&raw.as_bytes()[8..]).into();
        block[..BLOCK_BYTES].copy_from_slice(raw.as_bytes());
    }

    /// Checks a block.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn parse(block: &[u8], ring: RingId) -> Result<Self, FormatError> {
        let block = block.get(..BLOCK_BYTES).ok_or(FormatError::Field("length"))?;
        let mut raw = RawHeader::new_zeroed();
        raw.as_mut_bytes().copy_from_slice(block);
        if raw.magic != HEADER_MAGIC {
            return Err(FormatError::Magic);
        }
        if crc32c(&block[8..]) != raw.crc.get() {
            return Err(FormatError::Checksum);
        }
        if raw.pool.get() != ring.pool || raw.shard.get() != ring.shard {
            return Err(FormatError::Foreign);
        }
        if raw.version.get() != FORMAT_VERSION {
            return Err(FormatError::Version(raw.version.get()));
        }
        Ok(Self {
            generation: raw.generation.get(),
            journal_sequence: raw.journal_sequence.get(),
            journal_epoch: raw.journal_epoch.get(),
            entries: raw.entries.get(),
            pages: raw.pages.get(),
        })
    }
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct PageHeader {
    magic: [u8; 4],
    /// CRC32C of the page from offset 8 on.
    crc: U32,
    pool: U64,
    generation: U64,
    page: U32,
    shard: U16,
    entries: U16,
    used: U16,
    reserved: [u8; 6],
}
const PAGE_HEADER_BYTES: usize = 40;
const _: () = assert!(size_of::<PageHeader>() == PAGE_HEADER_BYTES);

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEntry {
    words: [U64; 4],
    key_length: U16,
}
const ENTRY_BYTES: usize = 34;
const _: () = assert!(size_of::<RawEntry>() == ENTRY_BYTES);

/// Bytes that an entry with a key of `key_length` bytes takes in a page.
#[must_use]
pub const fn entry_bytes(key_length: usize) -> usize {
    ENTRY_BYTES + key_length
}

/// The fewest bytes of entries that a page holds before it counts as full: what one more entry with
/// the longest key could leave unused.
pub const PAGE_FILL_MIN: usize = BLOCK_BYTES - PAGE_HEADER_BYTES - entry_bytes(1024);

/// Fills one page.
#[derive(Clone, Copy, Debug, Default)]
pub struct IndexPageBuilder {
    used: usize,
    entries: u16,
}

impl IndexPageBuilder {
    /// Appends an entry to `page`; `false` if it does not fit.
    #[must_use]
    pub fn push(&mut self, page: &mut [u8], entry: Entry, key: &[u8]) -> bool {
        let start = PAGE_HEADER_BYTES + self.used;
        let key_start = start + ENTRY_BYTES;
        let Some(place) = page[..BLOCK_BYTES].get_mut(start..key_start + key.len()) else {
            return false;
        };
        let raw = RawEntry {
            words: entry.to_words().map(U64::new),
            key_length: (key.len() as u16).into(),
        };
        place[..ENTRY_BYTES].copy_from_slice(raw.as_bytes());
        place[ENTRY_BYTES..].copy_from_slice(key);
        self.used += entry_bytes(key.len());
        self.entries += 1;
        true
    }

    /// Nothing has been appended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Completes page number `number` of checkpoint `generation`.
    pub fn seal(self, page: &mut [u8], ring: RingId, generation: u64, number: u32) {
        page[PAGE_HEADER_BYTES + self.used..BLOCK_BYTES].fill(0);
        let mut header = PageHeader {
            magic: PAGE_MAGIC,
            crc: U32::ZERO,
            pool: ring.pool.into(),
            generation: generation.into(),
            page: number.into(),
            shard: ring.shard.into(),
            entries: self.entries.into(),
            used: (self.used as u16).into(),
            reserved: [0; 6],
        };
        page[..PAGE_HEADER_BYTES].copy_from_slice(header.as_bytes());
        header.crc = crc32c(&page[8..BLOCK_BYTES]).into();
        page[..PAGE_HEADER_BYTES].copy_from_slice(header.as_bytes());
    }
}

/// A page of a checkpoint, checked.
#[derive(Clone, Copy, Debug)]
pub struct IndexPage<'a> {
    entries: u16,
    bytes: &'a [u8],
}

impl<'a> IndexPage<'a> {
    /// Checks that `block` is page `number` of checkpoint `generation`.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn parse(
        block: &'a [u8],
        ring: RingId,
        generation: u64,
        number: u32,
    ) -> Result<Self, FormatError> {
        let block = block.get(..BLOCK_BYTES).ok_or(FormatError::Field("length"))?;
        let (header, body) =
            PageHeader::ref_from_prefix(block).map_err(|_| FormatError::Field("length"))?;
        if header.magic != PAGE_MAGIC {
            return Err(FormatError::Magic);
        }
        if crc32c(&block[8..]) != header.crc.get() {
            return Err(FormatError::Checksum);
        }
        let place =
            (header.pool.get(), header.shard.get(), header.generation.get(), header.page.get());
        if place != (ring.pool, ring.shard, generation, number) {
            return Err(FormatError::Foreign);
        }
        let bytes = body.get(..usize::from(header.used.get())).ok_or(FormatError::Field("used"))?;
        Ok(Self { entries: header.entries.get(), bytes })
    }

    /// The entries with their keys, in the order of their hashes. One that cannot be read ends the walk.
    pub fn entries(
        &self,
    ) -> impl Iterator<Item = Result<(Entry, &'a [u8]), FormatError>> + use<'a> {
        let mut rest = Some(self.bytes);
        (0..self.entries).map_while(move |_| {
            let parsed = parse_entry(rest?);
            rest = parsed.as_ref().ok().map(|(_, _, after)| *after);
            Some(parsed.map(|(entry, key, _)| (entry, key)))
        })
    }
}

fn parse_entry(bytes: &[u8]) -> Result<(Entry, &[u8], &[u8]), FormatError> {
    let (raw, rest) =
        RawEntry::ref_from_prefix(bytes).map_err(|_| FormatError::Field("entry length"))?;
    let entry = Entry::from_words(raw.words.map(U64::get)).ok_or(FormatError::Field("entry"))?;
    let (key, rest) = rest
        .split_at_checked(usize::from(raw.key_length.get()))
        .ok_or(FormatError::Field("key length"))?;
    Ok((entry, key, rest))
}
