//! Reads an index checkpoint as a stream of entries with their keys, in the order of their hashes.
//!
//! It reads through one buffer that it is given: who holds other memory gets both at once, or all who
//! do could wait for one another.

use super::format::{FormatError, IndexPage};
use super::index::Entry;
use super::shard::{Checkpointed, Shard};
use forebay_nvme::{BLOCK_BYTES, BlockError, DmaBuf};
use std::rc::Rc;

/// Pages that are read in one go.
const CHUNK_PAGES: u32 = 16;

/// Bytes of the buffer that it reads through.
pub(super) const BUFFER_BYTES: usize = CHUNK_PAGES as usize * BLOCK_BYTES;

/// Why a checkpoint cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The device failed.
    #[error("page {page}: {error}")]
    Device {
        /// The page.
        page: u32,
        /// How.
        error: BlockError,
    },
    /// A page is not what it should be.
    #[error("page {page}: {error}")]
    Format {
        /// The page.
        page: u32,
        /// How.
        error: FormatError,
    },
}

/// A checkpoint being read.
#[derive(Debug)]
pub(super) struct IndexStream {
    shard: Rc<Shard>,
    checkpoint: Checkpointed,
    next: u32,
    buffer: Option<DmaBuf>,
}

/// Some pages of it, read but not yet checked.
#[derive(Debug)]
pub(super) struct Chunk {
    buffer: DmaBuf,
    first: u32,
    pages: u32,
}

impl IndexStream {
    /// The checkpoint from its first page on, through `buffer` of [`BUFFER_BYTES`]; without one, it
    /// waits for memory at each step.
    #[must_use]
    pub(super) fn new(shard: &Rc<Shard>, checkpoint: Checkpointed, buffer: Option<DmaBuf>) -> Self {
        Self { shard: shard.clone(), checkpoint, next: 0, buffer }
    }

    /// Takes the buffer of a chunk back, for the next one.
    pub(super) fn recycle(&mut self, chunk: Chunk) {
        self.buffer = Some(chunk.buffer);
    }

    /// Gives the buffer back.
    pub(super) fn into_buffer(self) -> Option<DmaBuf> {
        self.buffer
    }

    /// The checkpoint from the page on in which hashes with `prefix` begin: a binary search that
    /// reads one page a step.
    ///
    /// # Errors
    /// [`StreamError`].
    pub(super) async fn seek(
        shard: &Rc<Shard>,
        checkpoint: Checkpointed,
        prefix: u64,
        buffer: Option<DmaBuf>,
    ) -> Result<Self, StreamError> {
        let mut stream = Self::new(shard, checkpoint, buffer);
        let (mut low, mut high) = (0, checkpoint.pages);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let chunk = stream.read(middle, 1).await?;
            let first = stream.entries(&chunk, 0)?.next().transpose();
            let error = |error| StreamError::Format { page: middle, error };
            match first.map_err(error)? {
                Some((entry, _)) if entry.hash().prefix() >= prefix => high = middle,
                _ => low = middle,
            }
            stream.recycle(chunk);
        }
        stream.next = low;
        Ok(stream)
    }

    /// The next pages; `None` at the end.
    ///
    /// # Errors
    /// [`StreamError::Device`].
    pub(super) async fn next(&mut self) -> Result<Option<Chunk>, StreamError> {
        let pages = CHUNK_PAGES.min(self.checkpoint.pages - self.next);
        if pages == 0 {
            return Ok(None);
        }
        let chunk = self.read(self.next, pages).await?;
        self.next += pages;
        Ok(Some(chunk))
    }

    async fn read(&mut self, first: u32, pages: u32) -> Result<Chunk, StreamError> {
        let context = &self.shard.context;
        let buffer = match self.buffer.take() {
            Some(buffer) => buffer,
            None => context.buffer(BUFFER_BYTES).await,
        };
        let area = self.shard.region.index_block[(self.checkpoint.generation % 2) as usize];
        // The header is the area's first block.
        let block = area + 1 + u64::from(first);
        let (result, buffer) =
            context.disk.read(self.shard.region.device, block, pages, buffer).await;
        result.map_err(|error| StreamError::Device { page: first, error })?;
        let buffer = buffer.expect("a read gives its buffer back");
        Ok(Chunk { buffer, first, pages })
    }

    /// The entries of page `page` of `chunk`.
    ///
    /// # Errors
    /// [`StreamError::Format`].
    pub(super) fn entries<'a>(
        &self,
        chunk: &'a Chunk,
        page: u32,
    ) -> Result<impl Iterator<Item = Result<(Entry, &'a [u8]), FormatError>> + use<'a>, StreamError>
    {
        let number = chunk.first + page;
        let block = &chunk.buffer[page as usize * BLOCK_BYTES..][..BLOCK_BYTES];
        let page = IndexPage::parse(block, self.shard.ring, self.checkpoint.generation, number)
            .map_err(|error| StreamError::Format { page: number, error })?;
        Ok(page.entries())
    }
}

impl Chunk {
    /// The numbers of its pages, for [`IndexStream::entries`].
    pub(super) fn pages(&self) -> std::ops::Range<u32> {
        0..self.pages
    }
}
