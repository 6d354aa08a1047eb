//! Listing: keys in the order of their hashes, from the last index checkpoint and the key log.
//!
//! The cursor is a shard and a hash prefix, so it does not depend on where anything lies: a key that
//! exists from the first page of a listing to its last is given exactly once, whatever is stored,
//! deleted, cleaned or checkpointed meanwhile.

use super::Store;
use super::format::FormatError;
use super::index::KeyHash;
use super::index_stream::{self, IndexStream, StreamError};
use super::shard::{Checkpointed, Shard};
use forebay_fabric::Status;
use forebay_fabric::pdu::ListHeader;
use forebay_nvme::DmaBuf;
use std::rc::Rc;
use zerocopy::IntoBytes;

/// Bits of a cursor that hold the hash prefix; the shard is above them.
const PREFIX_BITS: u32 = 48;

/// A page of a listing.
#[derive(Debug)]
pub struct Listed {
    /// Entries in the wire's format (`PROTOCOL.md`, "List").
    pub buffer: DmaBuf,
    /// Bytes of them.
    pub bytes: usize,
    /// Where the next page begins; 0: that was all.
    pub cursor: u64,
}

impl Store {
    /// Lists keys of `namespace` that begin with `prefix`, from `cursor` on (0: from the start), in at
    /// most `bytes_max` bytes. A page may be empty and not be the last.
    ///
    /// # Errors
    /// `NoNamespace`; `ValueLength` if not even one key with its header would fit; `Corrupt` or `Device` if the keys cannot be read.
    pub async fn list(
        &self,
        namespace: u32,
        cursor: u64,
        prefix: &[u8],
        bytes_max: usize,
    ) -> Result<Listed, Status> {
        self.rules(namespace)?;
        let bytes_max = bytes_max.min(self.value_bytes_max() as usize);
        if bytes_max < size_of::<ListHeader>() + 1024 {
            return Err(Status::ValueLength);
        }
        let [buffer, chunk] = self.context().buffers([bytes_max, index_stream::BUFFER_BYTES]).await;
        let (namespace, chunk) = (namespace as u16, Some(chunk));
        let (bytes, keys, last) = (0, 0, None);
        let mut page = Page { namespace, prefix, buffer, chunk, bytes_max, bytes, keys, last };
        let (mut number, mut from) = (cursor >> PREFIX_BITS, cursor & ((1 << PREFIX_BITS) - 1));
        while let Some(slot) = self.0.shards.get(number as usize) {
            if let Some(shard) = slot
                && let Some(stop) = list_shard(shard, &mut page, from).await?
            {
                return Ok(page.end(number << PREFIX_BITS | stop));
            }
            (number, from) = (number + 1, 0);
        }
        Ok(page.end(0))
    }
}

/// Appends a shard's keys from `from` on; `Some(prefix)` if the page is full and goes on there.
async fn list_shard(
    shard: &Rc<Shard>,
    page: &mut Page<'_>,
    from: u64,
) -> Result<Option<u64>, Status> {
    let mark = (page.bytes, page.keys);
    loop {
        (page.bytes, page.keys) = mark;
        page.last = None;
        let checkpointed = shard.checkpointed.get();
        let outcome = list_once(shard, page, from, checkpointed).await;
        // A checkpoint that ended meanwhile took keys out of the log, and the next one may have
        // written over the pages that were read: once more, from the new one.
        if shard.checkpointed.get() == checkpointed {
            return outcome.map_err(|error| {
                log::error!("shard {}: listing: {error}", shard.id);
                Status::Corrupt
            });
        }
    }
}

async fn list_once(
    shard: &Rc<Shard>,
    page: &mut Page<'_>,
    from: u64,
    checkpointed: Checkpointed,
) -> Result<Option<u64>, StreamError> {
    let order = {
        let log = shard.key_log.borrow();
        log.sorted(log.len(), from)
    };
    let mut stream = IndexStream::seek(shard, checkpointed, from, page.chunk.take()).await?;
    let outcome = list_merged(shard, page, from, checkpointed, &mut stream, &order).await;
    page.chunk = stream.into_buffer();
    outcome
}

/// Merges the checkpoint's keys with those of the key log, `order`.
async fn list_merged(
    shard: &Rc<Shard>,
    page: &mut Page<'_>,
    from: u64,
    checkpointed: Checkpointed,
    stream: &mut IndexStream,
    order: &[u32],
) -> Result<Option<u64>, StreamError> {
    let mut logged = order.iter().copied().peekable();
    while let Some(chunk) = stream.next().await? {
        if shard.checkpointed.get() != checkpointed {
            return Ok(None);
        }
        let log = shard.key_log.borrow();
        for number in chunk.pages() {
            for entry in stream.entries(&chunk, number)? {
                let format = |error: FormatError| StreamError::Format { page: number, error };
                let (entry, key) = entry.map_err(format)?;
                let hash = entry.hash();
                while let Some(place) = logged.next_if(|place| log.key(*place as usize).0 < hash) {
                    let (hash, key) = log.key(place as usize);
                    if let Some(stop) = page.push(shard, hash, key) {
                        return Ok(Some(stop));
                    }
                }
                if hash.prefix() >= from
                    && let Some(stop) = page.push(shard, hash, key)
                {
                    return Ok(Some(stop));
                }
            }
        }
        stream.recycle(chunk);
    }
    if shard.checkpointed.get() != checkpointed {
        return Ok(None);
    }
    let log = shard.key_log.borrow();
    for place in logged {
        let (hash, key) = log.key(place as usize);
        if let Some(stop) = page.push(shard, hash, key) {
            return Ok(Some(stop));
        }
    }
    Ok(None)
}

/// The page being filled.
struct Page<'a> {
    namespace: u16,
    prefix: &'a [u8],
    buffer: DmaBuf,
    /// For reading the checkpoint.
    chunk: Option<DmaBuf>,
    bytes_max: usize,
    bytes: usize,
    keys: usize,
    /// The last key's hash, and how many bytes there were before the first key of its hash prefix:
    /// a page never ends between two keys that a cursor cannot tell apart.
    last: Option<(KeyHash, usize)>,
}

impl Page<'_> {
    /// Appends a key if it is wanted and alive; `Some(prefix)` if it does not fit any more.
    fn push(&mut self, shard: &Shard, hash: KeyHash, key: &[u8]) -> Option<u64> {
        if self.last.is_some_and(|(last, _)| last == hash) || !key.starts_with(self.prefix) {
            return None;
        }
        let entry = shard.find(hash)?;
        if entry.namespace() != self.namespace {
            return None;
        }
        let header = ListHeader {
            key_length: (key.len() as u16).into(),
            value_length: entry.pointer().length.into(),
        };
        let group = match self.last {
            Some((last, start)) if last.prefix() == hash.prefix() => start,
            _ => self.bytes,
        };
        let end = self.bytes + size_of::<ListHeader>() + key.len();
        if end > self.bytes_max {
            self.bytes = group;
            return Some(hash.prefix());
        }
        let place = &mut self.buffer[self.bytes..end];
        place[..size_of::<ListHeader>()].copy_from_slice(header.as_bytes());
        place[size_of::<ListHeader>()..].copy_from_slice(key);
        self.last = Some((hash, group));
        (self.bytes, self.keys) = (end, self.keys + 1);
        None
    }

    fn end(self, cursor: u64) -> Listed {
        Listed { buffer: self.buffer, bytes: self.bytes, cursor }
    }
}
