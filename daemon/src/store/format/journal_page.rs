//! A page of the journal ring: 4 KiB of records under one checksum.
//!
//! Pages are numbered by `sequence` without end; page `n` lies at `n % journal_blocks`. What follows
//! the last good page is told apart by three fields: a page of an earlier lap has a lower `sequence`,
//! what an earlier run left unacknowledged has a lower `epoch`, and `batch_first` says which pages
//! were written in one go, so that the torn end of the last write is not taken for damage.

use super::{FormatError, crc32c};
use crate::store::index::{Entry, KeyHash};
use forebay_nvme::BLOCK_BYTES;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of a journal page.
pub const MAGIC: [u8; 4] = *b"FBJ1";

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    /// CRC32C of the page from offset 8 on.
    crc: U32,
    pool: U64,
    epoch: U64,
    sequence: U64,
    batch_first: U64,
    shard: U16,
    records: U16,
    used: U16,
    reserved: U16,
    reserved2: [u8; 16],
}
const HEADER_BYTES: usize = 64;
const _: () = assert!(size_of::<Header>() == HEADER_BYTES);

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRecord {
    kind: u8,
    reserved: u8,
    key_length: U16,
    reserved2: U32,
    token: U64,
    words: [U64; 4],
    from_address: U64,
}
const RECORD_BYTES: usize = 56;
const _: () = assert!(size_of::<RawRecord>() == RECORD_BYTES);

/// What a record does to the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// The key now has this value.
    Put(Entry),
    /// The key is gone.
    Delete(KeyHash),
    /// The cleaner moved the value: if the key's value is still at `from`, it is at `to` now.
    Move {
        /// The address before, in units.
        from: u64,
        /// The entry with the new address.
        to: Entry,
    },
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// What it does.
    pub kind: RecordKind,
    /// The idempotency token of the operation; 0: none.
    pub token: u64,
    /// The key in full (puts only).
    pub key: &'a [u8],
}

const KIND_PUT: u8 = 1;
const KIND_DELETE: u8 = 2;
const KIND_MOVE: u8 = 3;

impl Record<'_> {
    /// Bytes it takes in a page.
    #[must_use]
    pub fn bytes(&self) -> usize {
        RECORD_BYTES + self.key.len().next_multiple_of(8)
    }

    fn raw(&self) -> RawRecord {
        let (kind, words, from) = match self.kind {
            RecordKind::Put(entry) => (KIND_PUT, entry.to_words(), 0),
            RecordKind::Delete(hash) => {
                (KIND_DELETE, [hash.get() as u64, (hash.get() >> 64) as u64, 0, 0], 0)
            }
            RecordKind::Move { from, to } => (KIND_MOVE, to.to_words(), from),
        };
        RawRecord {
            kind,
            reserved: 0,
            key_length: (self.key.len() as u16).into(),
            reserved2: U32::ZERO,
            token: self.token.into(),
            words: words.map(U64::new),
            from_address: from.into(),
        }
    }
}

fn parse_record(bytes: &[u8]) -> Result<(Record<'_>, &[u8]), FormatError> {
    let (raw, rest) =
        RawRecord::ref_from_prefix(bytes).map_err(|_| FormatError::Field("record length"))?;
    let padded = usize::from(raw.key_length.get()).next_multiple_of(8);
    let (key, rest) = rest.split_at_checked(padded).ok_or(FormatError::Field("key length"))?;
    let words = raw.words.map(U64::get);
    let entry = || Entry::from_words(words).ok_or(FormatError::Field("entry"));
    let kind = match raw.kind {
        KIND_PUT => RecordKind::Put(entry()?),
        KIND_DELETE => {
            RecordKind::Delete(KeyHash::new(u128::from(words[0]) | u128::from(words[1]) << 64))
        }
        KIND_MOVE => RecordKind::Move { from: raw.from_address.get(), to: entry()? },
        _ => return Err(FormatError::Field("record kind")),
    };
    let key = &key[..usize::from(raw.key_length.get())];
    Ok((Record { kind, token: raw.token.get(), key }, rest))
}

/// Which ring a page belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingId {
    /// The first 8 bytes of the pool's UUID.
    pub pool: u64,
    /// The shard.
    pub shard: u16,
}

/// Fills one page.
#[derive(Clone, Copy, Debug, Default)]
pub struct JournalPageBuilder {
    used: usize,
    records: u16,
}

impl JournalPageBuilder {
    /// The most bytes of records in a page.
    pub const CAPACITY: usize = BLOCK_BYTES - HEADER_BYTES;

    /// Appends `record` to `page`; `None` if it does not fit. Returns where in the page its key is.
    pub fn push(&mut self, page: &mut [u8], record: &Record<'_>) -> Option<usize> {
        let bytes = record.bytes();
        if self.used + bytes > Self::CAPACITY {
            return None;
        }
        let start = HEADER_BYTES + self.used;
        let key_start = start + RECORD_BYTES;
        page[start..key_start].copy_from_slice(record.raw().as_bytes());
        page[key_start..key_start + record.key.len()].copy_from_slice(record.key);
        page[key_start + record.key.len()..start + bytes].fill(0);
        self.used += bytes;
        self.records += 1;
        Some(key_start)
    }

    /// Nothing has been appended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Completes `page` with its header and checksum.
    pub fn seal(self, page: &mut [u8], ring: RingId, epoch: u64, sequence: u64, batch_first: u64) {
        page[HEADER_BYTES + self.used..].fill(0);
        let mut header = Header {
            magic: MAGIC,
            crc: U32::ZERO,
            pool: ring.pool.into(),
            epoch: epoch.into(),
            sequence: sequence.into(),
            batch_first: batch_first.into(),
            shard: ring.shard.into(),
            records: self.records.into(),
            used: (self.used as u16).into(),
            reserved: U16::ZERO,
            reserved2: [0; 16],
        };
        page[..HEADER_BYTES].copy_from_slice(header.as_bytes());
        header.crc = crc32c(&page[8..]).into();
        page[..HEADER_BYTES].copy_from_slice(header.as_bytes());
    }
}

/// A page whose checksum and owner have been checked.
#[derive(Clone, Copy, Debug)]
pub struct JournalPage<'a> {
    /// The run that wrote it.
    pub epoch: u64,
    /// Its number.
    pub sequence: u64,
    /// The number of the first page that was written in the same go.
    pub batch_first: u64,
    records: u16,
    bytes: &'a [u8],
}

impl<'a> JournalPage<'a> {
    /// Checks a block.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn parse(block: &'a [u8], ring: RingId) -> Result<Self, FormatError> {
        let block = block.get(..BLOCK_BYTES).ok_or(FormatError::Field("length"))?;
        let (header, body) =
            Header::ref_from_prefix(block).map_err(|_| FormatError::Field("length"))?;
        if header.magic != MAGIC {
            return Err(FormatError::Magic);
        }
        if crc32c(&block[8..]) != header.crc.get() {
            return Err(FormatError::Checksum);
        }
        if header.pool.get() != ring.pool || header.shard.get() != ring.shard {
            return Err(FormatError::Foreign);
        }
        let bytes = body.get(..usize::from(header.used.get())).ok_or(FormatError::Field("used"))?;
        if header.batch_first.get() > header.sequence.get() {
            return Err(FormatError::Field("batch"));
        }
        Ok(Self {
            epoch: header.epoch.get(),
            sequence: header.sequence.get(),
            batch_first: header.batch_first.get(),
            records: header.records.get(),
            bytes,
        })
    }

    /// The records, in the order in which they were acknowledged. A record that cannot be read ends
    /// the walk with its error; under a good checksum that is our own mistake, or an attack.
    pub fn records(&self) -> impl Iterator<Item = Result<Record<'a>, FormatError>> + use<'a> {
        let mut rest = self.bytes;
        let mut failed = false;
        (0..self.records).map_while(move |_| {
            if failed {
                return None;
            }
            match parse_record(rest) {
                Ok((record, after)) => {
                    rest = after;
                    Some(Ok(record))
                }
                Err(error) => {
                    failed = true;
                    Some(Err(error))
                }
            }
        })
    }
}
