//! Makes a shard from what is on media: newest index checkpoint, then the journal's tail.
//!
//! How the tail's end is told from damage (every case is a row of the table in `FORMAT.md`):
//!
//! | page at the expected place | a later page that is newer and began after it | verdict |
//! |---|---|---|
//! | expected sequence, epoch not lower | – | applied |
//! | anything else | none | the end of the journal |
//! | anything else | there is one | damage: acknowledged records are lost; the shard does not start |

use super::format::journal_page::RingId;
use super::format::{FormatError, IndexHeader, JournalPage, RecordKind, index_page};
use super::geometry::ShardRegion;
use super::index::{Entry, Index, IndexFull};
use super::index_stream::{IndexStream, StreamError};
use super::journal::{BATCH_PAGES, Journal, Tickets};
use super::key_log::KeyLog;
use super::packer::Packer;
use super::shard::{Checkpointed, Shard, value_units};
use super::space::Space;
use super::tokens::TokenWindow;
use super::{Context, Pool};
use crate::executor::Waiters;
use forebay_nvme::{BLOCK_BYTES, BlockError, DmaBuf};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Journal pages that are read in one go.
const RING_CHUNK_PAGES: u64 = 64;

/// Why a shard cannot start. Each says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    /// The device failed a read.
    #[error("shard {shard}: reading {what}: {error}; check the device, then start again")]
    Device {
        /// The shard.
        shard: u32,
        /// What was read.
        what: &'static str,
        /// How it failed.
        error: BlockError,
    },
    /// The index checkpoint is damaged.
    #[error(
        "shard {shard}: its index checkpoint is damaged ({error}); the shard cannot be recovered: restore \
         the device, or format the pool again"
    )]
    Checkpoint {
        /// The shard.
        shard: u32,
        /// How.
        error: StreamError,
    },
    /// The journal is damaged before its end.
    #[error(
        "shard {shard}: its journal is damaged at page {sequence}, and later pages are good: \
         acknowledged writes are unreadable; restore the device, or format the pool again"
    )]
    Journal {
        /// The shard.
        shard: u32,
        /// The page that should be there.
        sequence: u64,
    },
    /// The configured index is too small for the keys that exist.
    #[error(
        "shard {shard}: its keys do not fit into {bytes} bytes of index; raise `index` in [daemon]"
    )]
    IndexFull {
        /// The shard.
        shard: u32,
        /// The shard's share of the index.
        bytes: usize,
    },
    /// A pointer leads outside of the segments, under a good checksum.
    #[error(
        "shard {shard}: an index entry points outside of its segments; the pool was not made by this release"
    )]
    Entry {
        /// The shard.
        shard: u32,
    },
    /// The arena is too small for the shard's own buffers.
    #[error(
        "shard {shard}: no memory for its journal or its index; raise `arena` or lower `index` in [daemon]"
    )]
    Memory {
        /// The shard.
        shard: u32,
    },
}

/// Recovers shard `id` with `index_bytes` of DRAM for its index.
pub(super) async fn recover(
    context: &Rc<Context>,
    pool: &Pool,
    id: u32,
    index_bytes: usize,
) -> Result<Rc<Shard>, RecoveryError> {
    let shard = Rc::new(empty_shard(context, pool, id, index_bytes)?);
    let header = newest_header(&shard).await?;
    if let Some(header) = &header {
        let checkpointed = Checkpointed { generation: header.generation, pages: header.pages };
        shard.checkpointed.set(checkpointed);
        load_checkpoint(&shard, checkpointed).await?;
    }
    let (sequence, epoch) =
        header.map_or((1, 0), |header| (header.journal_sequence, header.journal_epoch));
    let next = replay(&shard, sequence, epoch).await?;
    let mut journal = shard.journal.borrow_mut();
    (journal.tail_sequence, journal.next_sequence) = (sequence, next);
    journal.applied_sequence = next;
    drop(journal);
    count_space(&shard)?;
    Ok(shard)
}

fn empty_shard(
    context: &Rc<Context>,
    pool: &Pool,
    id: u32,
    index_bytes: usize,
) -> Result<Shard, RecoveryError> {
    let (layout, region) = (pool.layout(), pool.region(id));
    let index = Index::with_bytes(index_bytes).map_err(|_| RecoveryError::Memory { shard: id })?;
    let buffer = |bytes| context.pool.alloc(bytes).ok_or(RecoveryError::Memory { shard: id });
    let pair = |bytes| -> Result<[DmaBuf; 2], _> { Ok([buffer(bytes)?, buffer(bytes)?]) };
    let packer = || Ok(RefCell::new(Packer::new(pair(Packer::BUFFER_BYTES)?)));
    let batches = pair(BATCH_PAGES * BLOCK_BYTES)?;
    Ok(Shard {
        id,
        context: context.clone(),
        pool: pool.clone(),
        region,
        layout,
        ring: RingId { pool: pool.tag(), shard: id as u16 },
        epoch: pool.epoch(),
        volatile_cache: context.disk.geometry(region.device).volatile_write_cache,
        index: RefCell::new(index),
        index_media_bytes: Cell::new(0),
        removed_keys: Cell::new(0),
        space: RefCell::new(Space::new(layout.segments, layout.segment_blocks)),
        journal: RefCell::new(Journal::new(layout.journal_blocks, 1, 1, batches)),
        commits: RefCell::new(Tickets::default()),
        packers: [packer()?, packer()?, packer()?],
        key_log: RefCell::new(KeyLog::default()),
        tokens: RefCell::new(TokenWindow::default()),
        checkpointed: Cell::new(Checkpointed::default()),
        journal_room: Waiters::new(super::WAITERS),
        space_room: Waiters::new(super::WAITERS),
        committer: Waiters::new(1),
        upkeep: Waiters::new(2),
        checkpoint_done: Waiters::new(1),
        jobs: RefCell::default(),
        job_waiters: Waiters::new(super::cleaner::WORKERS),
        starving: Cell::new(0),
        checkpoint_wanted: Cell::new(false),
        sweep_wanted: Cell::new(false),
        failed: Cell::new(false),
    })
}

async fn read(
    shard: &Shard,
    what: &'static str,
    block: u64,
    blocks: u64,
) -> Result<DmaBuf, RecoveryError> {
    let buffer = shard.context.buffer(blocks as usize * BLOCK_BYTES).await;
    let disk = &shard.context.disk;
    let (result, buffer) = disk.read(shard.region.device, block, blocks as u32, buffer).await;
    result.map_err(|error| RecoveryError::Device { shard: shard.id, what, error })?;
    Ok(buffer.expect("a read gives its buffer back"))
}

/// The newest good header of the two areas; `None` on a fresh shard.
async fn newest_header(shard: &Shard) -> Result<Option<IndexHeader>, RecoveryError> {
    let ShardRegion { index_block, .. } = shard.region;
    let mut newest: Option<IndexHeader> = None;
    for block in index_block {
        let buffer = read(shard, "the index checkpoint's header", block, 1).await?;
        // A torn or blank header is the rule here: the area that was being written, or never was.
        let Ok(header) = IndexHeader::parse(&buffer, shard.ring) else { continue };
        if newest.is_none_or(|other| other.generation < header.generation) {
            newest = Some(header);
        }
    }
    Ok(newest)
}

async fn load_checkpoint(
    shard: &Rc<Shard>,
    checkpointed: Checkpointed,
) -> Result<(), RecoveryError> {
    let damaged = |error| RecoveryError::Checkpoint { shard: shard.id, error };
    let mut stream = IndexStream::new(shard, checkpointed, None);
    while let Some(chunk) = stream.next().await.map_err(damaged)? {
        for page in chunk.pages() {
            for entry in stream.entries(&chunk, page).map_err(damaged)? {
                let format = |error: FormatError| damaged(StreamError::Format { page, error });
                let (entry, key) = entry.map_err(format)?;
                insert(shard, entry)?;
                let bytes = index_page::entry_bytes(key.len()) as u64;
                shard.index_media_bytes.set(shard.index_media_bytes.get() + bytes);
            }
        }
    }
    Ok(())
}

fn insert(shard: &Shard, entry: Entry) -> Result<Option<Entry>, RecoveryError> {
    let mut index = shard.index.borrow_mut();
    let bytes = index.bytes();
    index.insert(entry).map_err(|IndexFull| RecoveryError::IndexFull { shard: shard.id, bytes })
}

/// Replays the ring from page `sequence` on. Returns the number of the next page to write.
async fn replay(shard: &Shard, sequence: u64, epoch: u64) -> Result<u64, RecoveryError> {
    let pages = shard.journal.borrow().pages;
    let mut scan = Scan { expected: sequence, epoch, ended: false };
    let mut done = 0;
    while done < pages {
        let position = (sequence + done) % pages;
        let count = RING_CHUNK_PAGES.min(pages - position).min(pages - done);
        let block = shard.region.journal_block + position;
        let buffer = read(shard, "the journal", block, count).await?;
        for page in buffer.chunks_exact(BLOCK_BYTES).take(count as usize) {
            scan.page(shard, JournalPage::parse(page, shard.ring))?;
        }
        done += count;
    }
    Ok(scan.expected)
}

struct Scan {
    expected: u64,
    epoch: u64,
    ended: bool,
}

impl Scan {
    fn page(
        &mut self,
        shard: &Shard,
        page: Result<JournalPage<'_>, FormatError>,
    ) -> Result<(), RecoveryError> {
        let Ok(page) = page else {
            self.ended = true;
            return Ok(());
        };
        if !self.ended && page.sequence == self.expected && page.epoch >= self.epoch {
            (self.expected, self.epoch) = (page.sequence + 1, page.epoch);
            return apply(shard, &page);
        }
        self.ended = true;
        if page.batch_first > self.expected && page.epoch >= self.epoch {
            return Err(RecoveryError::Journal { shard: shard.id, sequence: self.expected });
        }
        if page.sequence < self.expected {
            note_tokens(shard, &page);
        }
        Ok(())
    }
}

/// Pages of the lap before still know their tokens.
fn note_tokens(shard: &Shard, page: &JournalPage<'_>) {
    let mut tokens = shard.tokens.borrow_mut();
    for record in page.records().flatten() {
        tokens.recover(record.token, page.sequence);
    }
}

fn apply(shard: &Shard, page: &JournalPage<'_>) -> Result<(), RecoveryError> {
    note_tokens(shard, page);
    let sequence = page.sequence;
    for record in page.records() {
        // Under a good checksum this is our own mistake, not the media's.
        let record = record.map_err(|_| RecoveryError::Journal { shard: shard.id, sequence })?;
        match record.kind {
            RecordKind::Put(entry) => {
                if insert(shard, entry)?.is_none() {
                    shard.add_media_bytes(record.key.len() as i64);
                    shard.key_log.borrow_mut().push(entry.hash(), record.key);
                }
            }
            RecordKind::Delete(hash) => {
                let removed = shard.index.borrow_mut().remove(hash).is_some();
                shard.removed_keys.set(shard.removed_keys.get() + u64::from(removed));
            }
            RecordKind::Move { from, to } => {
                if shard.find_any(to.hash()).is_some_and(|entry| entry.is_moved_by(from, &to)) {
                    insert(shard, to)?;
                }
            }
        }
    }
    Ok(())
}

/// Adds up what is alive where, and drops what has expired.
fn count_space(shard: &Shard) -> Result<(), RecoveryError> {
    let slots = shard.index.borrow().slots();
    for slot in 0..slots {
        let Some(entry) = shard.index.borrow().at(slot) else { continue };
        let pointer = entry.pointer();
        let units = value_units(pointer.length);
        if units > 0 && !shard.space.borrow().contains(pointer.address, units) {
            return Err(RecoveryError::Entry { shard: shard.id });
        }
        shard.link(&entry);
    }
    shard.space.borrow_mut().recovered();
    Ok(())
}
