//! Stores and deletes: data to the device, then a record, then the acknowledgement.

use super::checksum::{fill_page, has_checksum_page};
use super::format::{Record, RecordKind, crc32c};
use super::index::{Entry, KeyHash, Pointer};
use super::namespace::Class;
use super::packer::pack;
use super::shard::{Pin, Shard, value_blocks};
use super::space::SegmentClass;
use super::{Store, StoreRequest};
use crate::disk::Io;
use forebay_fabric::Status;
use forebay_nvme::{BLOCK_BYTES, DmaBuf};
use std::rc::Rc;

/// A store whose data is on its way to the device.
#[derive(Debug)]
#[must_use = "finish it, or it is not stored"]
pub struct PendingStore<'k> {
    shard: Rc<Shard>,
    key: &'k [u8],
    pointer: Pointer,
    token: u64,
    class: SegmentClass,
    /// Set if this is the cleaner's: where the value was.
    moved_from: Option<u64>,
    /// The checksum page, filled, if the value has one and there was memory.
    page: Option<DmaBuf>,
    /// `None` only while it moves from one stage to the next.
    stage: Option<Stage>,
}

#[derive(Debug)]
enum Stage {
    /// Nothing has been submitted: no space or no memory yet, or the value is to be packed or empty.
    Held(DmaBuf),
    /// The token is known: this is the replay of a store that has been taken.
    Replayed,
    /// The data is being written.
    Writing { pin: Pin, data: Io, page: Option<Io> },
}

/// A delete that is about to be recorded.
#[derive(Debug)]
#[must_use = "finish it, or nothing is deleted"]
pub struct PendingDelete {
    shard: Rc<Shard>,
    hash: KeyHash,
    token: u64,
}

impl Store {
    /// Checks a store and starts to write its data.
    ///
    /// # Errors
    /// A [`Status`] if it cannot be taken at all.
    pub fn start_store<'k>(&self, request: StoreRequest<'k>) -> Result<PendingStore<'k>, Status> {
        let StoreRequest { namespace, key, value, length, crc, token } = request;
        let (shard, hash) = self.locate(namespace, key)?;
        let (class, quota_bytes, ttl_s) = self.rules(namespace)?;
        if length > self.value_bytes_max() {
            return Err(Status::ValueLength);
        }
        // One pass over the value makes its checksum page and checks what the client has sent.
        let mut page = match has_checksum_page(length) {
            true => shard.context.pool.alloc(BLOCK_BYTES),
            false => None,
        };
        let bytes = &value[..length as usize];
        let sums = page.as_mut().map(|page| fill_page(bytes, page));
        if sums.map_or_else(|| crc32c(bytes), |sums| sums.value) != crc {
            return Err(Status::DataChecksum);
        }
        let crc = sums.map_or(crc, |sums| sums.page);
        let is_replay = shard.tokens.borrow_mut().get(token).is_some();
        let replaced = shard.find_any(hash).map_or(0, |entry| entry.pointer().length);
        let used = self.context().usage.bytes(namespace as u16);
        let is_beyond = |quota| used + u64::from(length) > quota + u64::from(replaced);
        if !is_replay && quota_bytes.is_some_and(is_beyond) {
            return Err(Status::Quota);
        }
        let now_s = self.context().now_s.get();
        let expiry_s = ttl_s.map_or(0, |ttl_s| now_s.saturating_add(ttl_s));
        let pointer =
            Pointer { hash, namespace: namespace as u16, address: 0, length, crc, expiry_s };
        let class = match class {
            Class::Durable => SegmentClass::Durable,
            Class::Cache => SegmentClass::Cache,
        };
        let stage = Some(if is_replay { Stage::Replayed } else { Stage::Held(value) });
        let mut pending =
            PendingStore { shard, key, pointer, token, class, moved_from: None, page, stage };
        pending.start();
        Ok(pending)
    }

    /// Checks a delete.
    ///
    /// # Errors
    /// A [`Status`] if it cannot be taken at all.
    pub fn start_delete(
        &self,
        namespace: u32,
        key: &[u8],
        token: u64,
    ) -> Result<PendingDelete, Status> {
        let (shard, hash) = self.locate(namespace, key)?;
        self.rules(namespace)?;
        Ok(PendingDelete { shard, hash, token })
    }
}

impl PendingStore<'_> {
    /// Writes the value at `pointer`, which is in `value`, somewhere else.
    pub(super) fn relocate(shard: &Rc<Shard>, pointer: Pointer, value: DmaBuf) -> Self {
        let (shard, class) = (shard.clone(), SegmentClass::Cleaner);
        let (moved_from, stage) = (Some(pointer.address), Some(Stage::Held(value)));
        let mut pending = PendingStore {
            shard,
            key: &[],
            pointer,
            token: 0,
            class,
            moved_from,
            page: None,
            stage,
        };
        pending.start();
        pending
    }

    fn is_direct(&self) -> bool {
        self.pointer.length as usize >= BLOCK_BYTES
    }

    /// Submits the writes if space and memory are there at once: the usual case.
    fn start(&mut self) {
        if !self.is_direct() || !matches!(self.stage, Some(Stage::Held(_))) {
            return;
        }
        if !self.prepare_page() {
            return;
        }
        let Ok(Some(pin)) = self.shard.try_allocate(self.class, value_blocks(self.pointer.length))
        else {
            return;
        };
        self.submit(pin);
    }

    /// Fills the checksum page if the value has one; `false` if there is no memory for it.
    fn prepare_page(&mut self) -> bool {
        let length = self.pointer.length;
        let Some(Stage::Held(value)) = &self.stage else { return false };
        if !has_checksum_page(length) || self.page.is_some() {
            return true;
        }
        let Some(mut page) = self.shard.context.pool.alloc(BLOCK_BYTES) else { return false };
        self.pointer.crc = fill_page(&value[..length as usize], &mut page).page;
        self.page = Some(page);
        true
    }

    fn submit(&mut self, pin: Pin) {
        let Pointer { length, .. } = self.pointer;
        let (disk, device) = (&self.shard.context.disk, self.shard.region.device);
        let block = self.shard.block_of(pin.address());
        let blocks = length.div_ceil(BLOCK_BYTES as u32);
        let Some(Stage::Held(mut value)) = self.stage.take() else { return };
        value[length as usize..blocks as usize * BLOCK_BYTES].fill(0);
        let behind = block + u64::from(blocks);
        let page = self.page.take().map(|page| disk.write(device, behind, 1, page, false));
        let data = disk.write(device, block, blocks, value, false);
        self.stage = Some(Stage::Writing { pin, data, page });
    }

    /// Waits until the value is stored: on media, in the journal and in the index.
    ///
    /// # Errors
    /// `NoSpace`, `Device`, `Busy`; whatever it is, nothing was stored.
    pub async fn finish(mut self) -> Result<(), Status> {
        if let Some(Stage::Replayed) = self.stage {
            return self.shard.replayed(self.token).await.map(drop);
        }
        let pin = self.place().await?;
        self.pointer.address = pin.as_ref().map_or(0, Pin::address);
        let entry = Entry::new(self.pointer);
        let kind = match self.moved_from {
            Some(from) => RecordKind::Move { from, to: entry },
            None => RecordKind::Put(entry),
        };
        let record = Record { kind, token: self.token, key: self.key };
        // The pin is given back when the entry is linked.
        self.shard.commit(&record).await.map(drop)
    }

    /// Brings the value to the device; returns the pin on its place (none for an empty value).
    async fn place(&mut self) -> Result<Option<Pin>, Status> {
        if self.pointer.length == 0 {
            return Ok(None);
        }
        if !self.is_direct() {
            // The value's memory goes back before the wait for the journal: a checkpoint may need it.
            let Some(Stage::Held(value)) = self.stage.take() else { return Err(Status::Internal) };
            let value = &value[..self.pointer.length as usize];
            return pack(&self.shard, self.class, value).await.map(|(_, pin)| Some(pin));
        }
        if let Some(Stage::Held(_)) = self.stage {
            // Who holds memory does not wait for more: all could.
            if !self.prepare_page() {
                return Err(Status::Busy);
            }
            let blocks = value_blocks(self.pointer.length);
            let pin = self.shard.allocate(self.class, blocks).await?;
            self.submit(pin);
        }
        let Some(Stage::Writing { pin, data, page }) = self.stage.take() else {
            return Err(Status::Internal);
        };
        let data = data.await.0;
        let page = match page {
            Some(page) => page.await.0,
            None => Ok(()),
        };
        data.and(page).map_err(Shard::status_of)?;
        Ok(Some(pin))
    }
}

impl PendingDelete {
    /// Waits until the delete is durable. Returns whether the key was there.
    ///
    /// # Errors
    /// `Device`; then the key may or may not be there after a restart.
    pub async fn finish(self) -> Result<bool, Status> {
        let record = Record { kind: RecordKind::Delete(self.hash), token: self.token, key: &[] };
        self.shard.commit(&record).await
    }
}

impl Shard {
    /// Space for a value, if there is some at once.
    fn try_allocate(
        self: &Rc<Self>,
        class: SegmentClass,
        blocks: u64,
    ) -> Result<Option<Pin>, Status> {
        if self.failed.get() {
            return Err(Status::Device);
        }
        let mut space = self.space.borrow_mut();
        let units = blocks * super::space::UNITS_PER_BLOCK;
        // What the cleaner moves is counted already.
        let is_new = class != SegmentClass::Cleaner;
        if is_new && !space.has_room(units) {
            return Err(Status::NoSpace);
        }
        let address = space.allocate(class, blocks);
        let (low, cleanable) = (space.is_low(), address.is_none() && space.is_cleanable());
        drop(space);
        if low {
            self.upkeep.wake_all(&self.context.ready);
        }
        match address {
            Some(address) => Ok(Some(Pin::adopt(self, address, if is_new { units } else { 0 }))),
            // The cleaner cannot wait for itself.
            None if cleanable && is_new && self.starving.get() == 0 => Ok(None),
            // It has no memory to move values through, and this store holds some.
            None if cleanable && is_new => Err(Status::Busy),
            None => Err(Status::NoSpace),
        }
    }

    /// Space for a value, waiting for the cleaner if it has something to clean.
    pub(super) async fn allocate(
        self: &Rc<Self>,
        class: SegmentClass,
        blocks: u64,
    ) -> Result<Pin, Status> {
        let ready = &self.context.ready;
        self.space_room.until(ready, || self.try_allocate(class, blocks).transpose()).await
    }
}
