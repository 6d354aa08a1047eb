//! Writes an index checkpoint: the old one merged with the keys that are new since, each with the
//! entry that the index has now.
//!
//! It is fuzzy: the shard goes on working meanwhile. The journal from `journal_sequence` on, noted
//! before the first page, is replayed over it, and every record says what is, not what changes; so it
//! does not matter from which moment between start and end an entry is. The header is written when all
//! pages are durable; only then the journal's tail moves and the keys are forgotten.

use super::barrier::{Flusher, For};
use super::format::{IndexHeader, IndexPageBuilder, index_page};
use super::index::KeyHash;
use super::index_stream::{self, IndexStream, StreamError};
use super::shard::{Checkpointed, Shard};
use forebay_nvme::{BLOCK_BYTES, BlockError, DmaBuf};
use std::rc::Rc;

/// Pages that are written in one go.
const CHUNK_PAGES: usize = 16;

/// Why a checkpoint could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CheckpointError {
    /// The old one cannot be read.
    #[error("reading the last index checkpoint: {0}")]
    Read(#[from] StreamError),
    /// The device failed.
    #[error("writing an index checkpoint: {0}")]
    Write(BlockError),
    /// It would not fit; the limits on keys should have prevented it.
    #[error("the index does not fit into its checkpoint area")]
    Full,
}

/// Fills and writes pages.
struct Writer<'a> {
    shard: &'a Shard,
    generation: u64,
    area: u64,
    buffer: Option<DmaBuf>,
    builder: IndexPageBuilder,
    /// Complete pages in the buffer.
    filled: usize,
    /// Pages on media.
    written: u32,
    entries: u64,
}

impl Writer<'_> {
    /// Appends the current entry of `hash`; `Some(false)` if the key is gone, `None` if the buffer
    /// has to be written first.
    fn push(&mut self, hash: KeyHash, key: &[u8]) -> Option<bool> {
        // Expired or not: until it is deleted, an overwrite relies on its key being kept here.
        let Some(entry) = self.shard.find_any(hash) else { return Some(false) };
        loop {
            if self.filled == CHUNK_PAGES {
                return None;
            }
            let buffer = self.buffer.as_mut().expect("the buffer is here between writes");
            let page = &mut buffer[self.filled * BLOCK_BYTES..][..BLOCK_BYTES];
            if self.builder.push(page, entry, key) {
                self.entries += 1;
                return Some(true);
            }
            self.seal_page();
        }
    }

    fn seal_page(&mut self) {
        let buffer = self.buffer.as_mut().expect("the buffer is here between writes");
        let page = &mut buffer[self.filled * BLOCK_BYTES..][..BLOCK_BYTES];
        let number = self.written + self.filled as u32;
        std::mem::take(&mut self.builder).seal(page, self.shard.ring, self.generation, number);
        self.filled += 1;
    }

    async fn write(&mut self) -> Result<(), CheckpointError> {
        if self.filled == 0 {
            return Ok(());
        }
        if self.written + self.filled as u32 >= self.shard.layout.index_blocks {
            return Err(CheckpointError::Full);
        }
        let (disk, device) = (&self.shard.context.disk, self.shard.region.device);
        let buffer = self.buffer.take().expect("the buffer is here between writes");
        let block = self.area + 1 + u64::from(self.written);
        let (result, buffer) = disk.write(device, block, self.filled as u32, buffer, false).await;
        self.buffer = buffer;
        result.map_err(CheckpointError::Write)?;
        self.written += self.filled as u32;
        self.filled = 0;
        Ok(())
    }

    async fn finish(mut self, journal_sequence: u64) -> Result<Checkpointed, CheckpointError> {
        if !self.builder.is_empty() {
            self.seal_page();
        }
        self.write().await?;
        let (disk, device) = (&self.shard.context.disk, self.shard.region.device);
        let mut flusher = Flusher::new(self.shard, For::Checkpoint);
        flusher.flush(self.shard).await.map_err(CheckpointError::Write)?;
        let (generation, pages, entries) = (self.generation, self.written, self.entries);
        let journal_epoch = self.shard.epoch;
        let header = IndexHeader { generation, journal_sequence, journal_epoch, entries, pages };
        let mut buffer = self.buffer.take().expect("the buffer is here between writes");
        header.encode(&mut buffer, self.shard.ring);
        let (result, _) = disk.write(device, self.area, 1, buffer, true).await;
        result.map_err(CheckpointError::Write)?;
        Ok(Checkpointed { generation, pages })
    }
}

/// Writes a checkpoint of `shard`. Only the upkeep task calls it: one at a time.
///
/// # Errors
/// [`CheckpointError`]; the last checkpoint is still whole, and the journal still reaches back to it.
pub(super) async fn write(shard: &Rc<Shard>) -> Result<(), CheckpointError> {
    let journal_sequence = shard.journal.borrow().applied_sequence;
    let keys = shard.key_log.borrow().len();
    let removed_keys = shard.removed_keys.get();
    let order = shard.key_log.borrow().sorted(keys, 0);
    let last = shard.checkpointed.get();
    let generation = last.generation + 1;
    let [to_write, to_read] =
        shard.context.buffers([CHUNK_PAGES * BLOCK_BYTES, index_stream::BUFFER_BYTES]).await;
    let mut writer = Writer {
        shard,
        generation,
        area: shard.region.index_block[(generation % 2) as usize],
        buffer: Some(to_write),
        builder: IndexPageBuilder::default(),
        filled: 0,
        written: 0,
        entries: 0,
    };
    let dropped =
        merge(shard, &mut writer, IndexStream::new(shard, last, Some(to_read)), &order).await?;
    let checkpointed = writer.finish(journal_sequence).await?;
    shard.checkpointed.set(checkpointed);
    shard.index_media_bytes.set(shard.index_media_bytes.get() - dropped);
    shard.removed_keys.set(shard.removed_keys.get() - removed_keys);
    shard.key_log.borrow_mut().forget(keys);
    shard.journal.borrow_mut().tail_sequence = journal_sequence;
    Ok(())
}

/// Merges the last checkpoint with the key log's `order`. Returns the bytes of entries that went.
async fn merge(
    shard: &Rc<Shard>,
    writer: &mut Writer<'_>,
    mut stream: IndexStream,
    order: &[u32],
) -> Result<u64, CheckpointError> {
    let mut merge = Merge { shard, order, next: 0, last: None, dropped: 0 };
    while let Some(chunk) = stream.next().await? {
        for page in chunk.pages() {
            for entry in stream.entries(&chunk, page)? {
                let number = |error| StreamError::Format { page, error };
                let (entry, key) = entry.map_err(number)?;
                merge.log_before(writer, Some(entry.hash())).await?;
                merge.emit(writer, entry.hash(), key).await?;
            }
        }
        stream.recycle(chunk);
    }
    merge.log_before(writer, None).await?;
    Ok(merge.dropped)
}

struct Merge<'a> {
    shard: &'a Shard,
    order: &'a [u32],
    next: usize,
    last: Option<KeyHash>,
    dropped: u64,
}

impl Merge<'_> {
    /// Emits the logged keys that come before `hash`, or all that are left.
    async fn log_before(
        &mut self,
        writer: &mut Writer<'_>,
        hash: Option<KeyHash>,
    ) -> Result<(), CheckpointError> {
        while let Some(place) = self.order.get(self.next).copied() {
            // The log does not move under this task: only a finished checkpoint forgets keys.
            let before = {
                let log = self.shard.key_log.borrow();
                hash.is_none_or(|hash| log.key(place as usize).0 < hash)
            };
            if !before {
                break;
            }
            while !self.try_emit_logged(writer, place) {
                writer.write().await?;
            }
            self.next += 1;
        }
        Ok(())
    }

    fn try_emit_logged(&mut self, writer: &mut Writer<'_>, place: u32) -> bool {
        let log = self.shard.key_log.borrow();
        let (hash, key) = log.key(place as usize);
        self.try_emit(writer, hash, key)
    }

    async fn emit(
        &mut self,
        writer: &mut Writer<'_>,
        hash: KeyHash,
        key: &[u8],
    ) -> Result<(), CheckpointError> {
        while !self.try_emit(writer, hash, key) {
            writer.write().await?;
        }
        Ok(())
    }

    /// Emits a key once, if it is still alive; `false` if the writer's buffer is full.
    fn try_emit(&mut self, writer: &mut Writer<'_>, hash: KeyHash, key: &[u8]) -> bool {
        let pushed = match self.last == Some(hash) {
            true => Some(false),
            false => writer.push(hash, key),
        };
        match pushed {
            None => return false,
            Some(true) => self.last = Some(hash),
            Some(false) => self.dropped += index_page::entry_bytes(key.len()) as u64,
        }
        true
    }
}
