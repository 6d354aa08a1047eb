//! Retrieves: from memory, or one media read, verified before the first byte leaves.

use super::checksum::{covering, has_checksum_page, verify};
use super::format::{UNIT_BYTES, crc32c};
use super::index::{KeyHash, Pointer};
use super::shard::{Pin, Shard};
use super::space::UNITS_PER_BLOCK;
use super::tier::Found;
use super::{Context, Fragment, Store};
use crate::disk::Io;
use forebay_fabric::Status;
use forebay_nvme::{BLOCK_BYTES, Buffer, DmaBuf};
use std::ops::Range;
use std::rc::Rc;
use std::task::Poll;

/// What a retrieve asks for: `length` bytes of a value from `offset` on, or what there is of them.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'k> {
    /// The namespace's number.
    pub namespace: u32,
    /// The key.
    pub key: &'k [u8],
    /// The first byte.
    pub offset: u64,
    /// The most bytes.
    pub length: u32,
}

/// Where a value is.
#[derive(Debug)]
pub enum Looked {
    /// In memory.
    Found(Fragment),
    /// Not there; what its key is known by, for [`Store::read`].
    Elsewhere(KeyHash),
}

/// A retrieve that has begun.
#[derive(Debug)]
#[must_use = "finish it, or nothing is read"]
pub enum Retrieve {
    /// It was in memory.
    Found(Fragment),
    /// It is being read.
    Reading(PendingRetrieve),
}

impl Retrieve {
    /// Waits for the bytes.
    ///
    /// # Errors
    /// As [`PendingRetrieve::finish`].
    pub async fn finish(self) -> Result<Fragment, Status> {
        match self {
            Self::Found(fragment) => Ok(fragment),
            Self::Reading(pending) => pending.finish().await,
        }
    }
}

/// A retrieve whose reads are under way.
#[derive(Debug)]
#[must_use = "finish it, or nothing is read"]
pub struct PendingRetrieve {
    shard: Rc<Shard>,
    pointer: Pointer,
    /// The bytes of the value that are wanted.
    wanted: Range<u64>,
    /// The bytes of the value that have to be read to verify them.
    covered: Range<u64>,
    reads: Option<Reads>,
    /// Once it is read and verified, it may stay in memory.
    is_to_stay: bool,
}

#[derive(Debug)]
struct Reads {
    pin: Pin,
    data: Io,
    page: Option<Io>,
}

impl Store {
    /// Looks a key up and starts to read `length` bytes of its value from `offset` on, or what there is.
    ///
    /// # Errors
    /// `NotFound`, `Range` (it begins past the end), or another [`Status`].
    pub fn start_retrieve(
        &self,
        namespace: u32,
        key: &[u8],
        offset: u64,
        length: u32,
    ) -> Result<Retrieve, Status> {
        let wanted = Wanted { namespace, key, offset, length };
        Ok(match self.look(&wanted)? {
            Looked::Found(fragment) => Retrieve::Found(fragment),
            Looked::Elsewhere(hash) => Retrieve::Reading(self.read(&wanted, hash)?),
        })
    }

    /// Looks for a value in memory alone.
    ///
    /// # Errors
    /// `KeyLength`, `Range`.
    pub fn look(&self, wanted: &Wanted<'_>) -> Result<Looked, Status> {
        let Wanted { namespace, key, offset, length } = *wanted;
        let Context { tier, now_s, namespaces, .. } = &**self.context();
        let hash = self.hash(namespace, key)?;
        match tier.find(hash, now_s.get()) {
            Some(found) if namespaces.are(namespace) => {
                debug_assert!(self.is_current(namespace, key, &found), "memory holds an old value");
                let range = range(offset, length, found.length)?;
                Ok(Looked::Found(found.cut(range)))
            }
            _ => Ok(Looked::Elsewhere(hash)),
        }
    }

    /// Starts to read a value that is not in memory.
    ///
    /// # Errors
    /// As [`Store::start_retrieve`].
    pub fn read(&self, wanted: &Wanted<'_>, hash: KeyHash) -> Result<PendingRetrieve, Status> {
        let Wanted { namespace, key, offset, length } = *wanted;
        let shard = self.shard(namespace, key)?;
        self.rules(namespace)?;
        let pointer = shard.find(hash).ok_or(Status::NotFound)?.pointer();
        let wanted = range(offset, length, pointer.length)?;
        let is_to_stay = pointer.length > 0 && wanted == (0..u64::from(pointer.length));
        Ok(PendingRetrieve::start(shard.clone(), pointer, wanted, is_to_stay))
    }

    /// Does the index point at what was found in memory?
    fn is_current(&self, namespace: u32, key: &[u8], found: &Found) -> bool {
        let hash = self.hash(namespace, key);
        let entry = hash.and_then(|hash| Ok(self.shard(namespace, key)?.find(hash)));
        let pointer = entry.ok().flatten().map(|entry| entry.pointer());
        pointer.is_some_and(|pointer| {
            let known = (pointer.length, pointer.expiry_s) == (found.length, found.expiry_s);
            known && (has_checksum_page(pointer.length) || pointer.crc == found.crc)
        })
    }

    /// The length of a key's value.
    ///
    /// # Errors
    /// `NotFound`, or another [`Status`].
    pub fn exist(&self, namespace: u32, key: &[u8]) -> Result<u32, Status> {
        let (shard, hash) = self.locate(namespace, key)?;
        self.rules(namespace)?;
        shard.find(hash).map(|entry| entry.pointer().length).ok_or(Status::NotFound)
    }
}

/// The bytes of a value that are asked for, or what there is of them.
fn range(offset: u64, length: u32, value_length: u32) -> Result<Range<u64>, Status> {
    let end = u64::from(value_length);
    if offset > end || (offset == end && end > 0) {
        return Err(Status::Range);
    }
    Ok(offset..end.min(offset + u64::from(length)))
}

impl Found {
    /// The bytes `wanted` of it.
    fn cut(self, wanted: Range<u64>) -> Fragment {
        let Self { buffer, begin, length, crc, .. } = self;
        let begin = begin as usize;
        let range = begin + wanted.start as usize..begin + wanted.end as usize;
        let crc = if range.len() == length as usize { crc } else { crc32c(&buffer[range.clone()]) };
        Fragment { buffer: Buffer::Shared(buffer), range, crc, value_length: length }
    }
}

impl PendingRetrieve {
    /// Starts to read `wanted` of the value at `pointer`, for nobody but the caller.
    pub(super) fn new(shard: Rc<Shard>, pointer: Pointer, wanted: Range<u64>) -> Self {
        Self::start(shard, pointer, wanted, false)
    }

    fn start(shard: Rc<Shard>, pointer: Pointer, wanted: Range<u64>, is_to_stay: bool) -> Self {
        let covered = match has_checksum_page(pointer.length) {
            true => covering(wanted.clone(), pointer.length),
            false => 0..u64::from(pointer.length),
        };
        let mut pending = Self { shard, pointer, wanted, covered, reads: None, is_to_stay };
        // The pin comes before any wait: from here on the segment is not reused.
        if let Some((buffer, page)) = pending.buffers() {
            pending.submit(buffer, page);
        }
        pending
    }

    /// Blocks of data to read.
    fn blocks(&self) -> u64 {
        let in_block = self.pointer.address % UNITS_PER_BLOCK * UNIT_BYTES;
        (in_block + self.covered.end - self.covered.start).div_ceil(BLOCK_BYTES as u64).max(1)
    }

    fn buffers(&mut self) -> Option<(DmaBuf, Option<DmaBuf>)> {
        let Context { pool, tier, .. } = &*self.shard.context;
        let page = match has_checksum_page(self.pointer.length) {
            true => Some(pool.alloc(BLOCK_BYTES)?),
            false => None,
        };
        let bytes = self.blocks() as usize * BLOCK_BYTES;
        let stays = if self.is_to_stay { tier.alloc(bytes) } else { None };
        self.is_to_stay = stays.is_some();
        Some((stays.or_else(|| pool.alloc(bytes))?, page))
    }

    fn submit(&mut self, buffer: DmaBuf, page: Option<DmaBuf>) {
        let Pointer { address, length, .. } = self.pointer;
        let (disk, device) = (&self.shard.context.disk, self.shard.region.device);
        let pin = Pin::new(&self.shard, address);
        let block = self.shard.block_of(address);
        let first = block + self.covered.start / BLOCK_BYTES as u64;
        let data = disk.read(device, first, self.blocks() as u32, buffer);
        let page = page.map(|page| {
            let behind = block + u64::from(length).div_ceil(BLOCK_BYTES as u64);
            disk.read(device, behind, 1, page)
        });
        self.reads = Some(Reads { pin, data, page });
    }

    /// Nothing has been submitted yet, for want of memory.
    pub(super) fn waits_for_memory(&self) -> bool {
        self.reads.is_none() && self.pointer.length > 0
    }

    /// Its reads are under way: [`PendingRetrieve::poll`] is all that it takes.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.reads.is_some()
    }

    /// The verified bytes, or wakes the polled task when there is more to know.
    ///
    /// # Errors
    /// As [`PendingRetrieve::finish`].
    ///
    /// # Panics
    /// When no reads are under way.
    pub fn poll(&mut self) -> Poll<Result<Fragment, Status>> {
        let reads = self.reads.as_ref().expect("reads are under way");
        if !reads.data.is_done() || !reads.page.as_ref().is_none_or(Io::is_done) {
            return Poll::Pending;
        }
        Poll::Ready(self.arrived())
    }

    /// Waits for the bytes and verifies them.
    ///
    /// # Errors
    /// `Corrupt`: they are not those that were stored. `Device`: the device could not read them.
    pub async fn finish(mut self) -> Result<Fragment, Status> {
        if self.pointer.length == 0 {
            let buffer = self.shard.context.buffer(BLOCK_BYTES).await;
            let buffer = Buffer::Own(buffer);
            return Ok(Fragment { buffer, range: 0..0, crc: crc32c(&[]), value_length: 0 });
        }
        if self.reads.is_none() {
            self.wait_for_memory().await?;
        }
        std::future::poll_fn(|_| self.poll()).await
    }

    fn arrived(&mut self) -> Result<Fragment, Status> {
        let Reads { pin, data, page } = self.reads.take().ok_or(Status::Internal)?;
        let read = |mut io: Io| {
            let (result, buffer) = io.take().ok_or(Status::Internal)?;
            result.map_err(Shard::status_of)?;
            buffer.ok_or(Status::Internal)
        };
        let (data, page) = (read(data), page.map(read).transpose());
        drop(pin);
        self.verified(data?, page?.as_deref())
    }

    /// Memory was short: wait for it, then look at the index again, for the value may have moved.
    async fn wait_for_memory(&mut self) -> Result<(), Status> {
        let context = self.shard.context.clone();
        let (buffer, page) = context.memory.until(&context.ready, || self.buffers()).await;
        let current = self.shard.find(self.pointer.hash).ok_or(Status::NotFound)?.pointer();
        let Pointer { address, expiry_s, .. } = current;
        if current != (Pointer { address, expiry_s, ..self.pointer }) {
            // Another value by now: its length and checksum are not the ones planned for.
            return Err(Status::Busy);
        }
        self.pointer = current;
        self.submit(buffer, page);
        Ok(())
    }

    fn verified(&self, buffer: DmaBuf, page: Option<&[u8]>) -> Result<Fragment, Status> {
        let Pointer { address, length, crc, .. } = self.pointer;
        let begin = (address % UNITS_PER_BLOCK * UNIT_BYTES) as usize;
        let bytes = (self.covered.end - self.covered.start) as usize;
        let data = &buffer[begin..begin + bytes];
        let sum = match page {
            Some(page) => verify(data, self.covered.start, page, crc),
            None => (crc32c(data) == crc).then_some(crc),
        };
        let Some(sum) = sum else {
            let Shard { id, .. } = *self.shard;
            log::error!("shard {id}: value of {length} bytes at unit {address} fails its checksum");
            return Err(Status::Corrupt);
        };
        let from = begin + (self.wanted.start - self.covered.start) as usize;
        let range = from..from + (self.wanted.end - self.wanted.start) as usize;
        let crc = if range.len() == bytes { sum } else { crc32c(&buffer[range.clone()]) };
        let buffer = self.stay(buffer, begin, sum);
        Ok(Fragment { buffer, range, crc, value_length: length })
    }

    /// Leaves a whole value that was verified in memory, if it is still its key's.
    fn stay(&self, buffer: DmaBuf, begin: usize, crc: u32) -> Buffer {
        let current = self.shard.find_any(self.pointer.hash);
        if !self.is_to_stay || current.is_none_or(|entry| entry.pointer() != self.pointer) {
            return Buffer::Own(buffer);
        }
        Buffer::Shared(self.shard.context.tier.keep(self.pointer, begin, crc, buffer).buffer)
    }
}
