//! One virtual shard: its state, and how the index changes when records become durable.
//!
//! A shard lives in one reactor and is touched by nothing else. Everything that waits (writes, reads,
//! the committer, the cleaner) holds it by `Rc` and borrows its parts between two awaits, never across.

use super::checksum::has_checksum_page;
use super::cleaner::Jobs;
use super::format::journal_page::RingId;
use super::format::{RecordKind, UNIT_BYTES, index_page};
use super::geometry::{Layout, ShardRegion};
use super::index::{Entry, Index, KeyHash};
use super::journal::{Batch, Committed, Journal, Tickets};
use super::key_log::KeyLog;
use super::packer::Packer;
use super::space::{Space, UNITS_PER_BLOCK};
use super::tokens::TokenWindow;
use super::{Context, Pool};
use crate::executor::Waiters;
use forebay_fabric::Status;
use forebay_nvme::{BLOCK_BYTES, BlockError};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// The last durable index checkpoint of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Checkpointed {
    /// Its generation; 0: there is none yet.
    pub generation: u64,
    /// Its pages.
    pub pages: u32,
}

/// Whether there is room for a new key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// There is.
    Free,
    /// There will be when a checkpoint has been written.
    AfterCheckpoint,
    /// There is none until keys are deleted.
    Full,
}

/// See the module.
#[derive(Debug)]
pub struct Shard {
    /// Its number.
    pub id: u32,
    pub(super) context: Rc<Context>,
    pub(super) pool: Pool,
    pub(super) region: ShardRegion,
    pub(super) layout: Layout,
    pub(super) ring: RingId,
    /// The generation of the superblock in this run.
    pub(super) epoch: u64,
    pub(super) volatile_cache: bool,
    pub(super) index: RefCell<Index>,
    /// Bytes that all entries would take in a checkpoint.
    pub(super) index_media_bytes: Cell<u64>,
    /// Keys deleted since the last checkpoint, whose bytes the next one gives back.
    pub(super) removed_keys: Cell<u64>,
    pub(super) space: RefCell<Space>,
    pub(super) journal: RefCell<Journal>,
    pub(super) commits: RefCell<Tickets<Committed>>,
    /// By [`super::space::SegmentClass`].
    pub(super) packers: [RefCell<Packer>; 3],
    pub(super) key_log: RefCell<KeyLog>,
    pub(super) tokens: RefCell<TokenWindow>,
    pub(super) checkpointed: Cell<Checkpointed>,
    /// Records wait here for room in a batch or in the ring.
    pub(super) journal_room: Waiters,
    /// Stores wait here for the cleaner.
    pub(super) space_room: Waiters,
    /// The committer waits here for records.
    pub(super) committer: Waiters,
    /// The upkeep task waits here for something to do.
    pub(super) upkeep: Waiters,
    /// Whoever asked for a checkpoint waits here.
    pub(super) checkpoint_done: Waiters,
    /// Work for the cleaner's workers, who wait for it in `job_waiters`.
    pub(super) jobs: RefCell<Jobs>,
    pub(super) job_waiters: Waiters,
    /// Workers of the cleaner that wait for memory.
    pub(super) starving: Cell<u32>,
    /// A checkpoint has been asked for.
    pub(super) checkpoint_wanted: Cell<bool>,
    /// A sweep for expired entries has been asked for.
    pub(super) sweep_wanted: Cell<bool>,
    /// Set when a journal write or a flush has failed: what is durable is no longer known, so nothing
    /// is taken any more until a restart has recovered.
    pub(super) failed: Cell<bool>,
}

/// Units that a value of `length` bytes takes: packed below a block, in whole blocks from there on,
/// with its checksum page behind it if it has one.
#[must_use]
pub(super) fn value_units(length: u32) -> u64 {
    let length = u64::from(length);
    if length < BLOCK_BYTES as u64 {
        return length.div_ceil(UNIT_BYTES);
    }
    value_blocks(length as u32) * UNITS_PER_BLOCK
}

/// Blocks that a value of at least one block takes.
#[must_use]
pub(super) fn value_blocks(length: u32) -> u64 {
    u64::from(length).div_ceil(BLOCK_BYTES as u64) + u64::from(has_checksum_page(length))
}

impl Shard {
    /// The first block of the value at `address`.
    pub(super) fn block_of(&self, address: u64) -> u64 {
        self.region.segments_block + address / UNITS_PER_BLOCK
    }

    /// The entry of `hash`, unless it has expired.
    pub(super) fn find(&self, hash: KeyHash) -> Option<Entry> {
        let entry = self.index.borrow().get(hash)?;
        (!self.is_expired(&entry)).then_some(entry)
    }

    pub(super) fn is_expired(&self, entry: &Entry) -> bool {
        let expiry_s = entry.pointer().expiry_s;
        expiry_s != 0 && expiry_s <= self.context.now_s.get()
    }

    /// Would a put of `hash` replace an entry, whatever is on its way?
    pub(super) fn is_overwrite(&self, hash: KeyHash) -> bool {
        self.journal.borrow().pending_deletes == 0 && self.find_any(hash).is_some()
    }

    /// May one more key of `key_length` bytes be taken, with all that is on its way?
    pub(super) fn index_room(&self, key_length: usize) -> Room {
        let journal = self.journal.borrow();
        let index = self.index.borrow();
        let bytes = self.index_media_bytes.get()
            + (journal.pending_key_bytes + key_length) as u64
            + (index_page::entry_bytes(0) * (journal.pending_puts + 1)) as u64;
        if index.len() + journal.pending_puts >= index.cap() {
            return Room::Full;
        }
        if bytes > self.index_media_limit() {
            let has_removed = self.removed_keys.get() > 0;
            return if has_removed { Room::AfterCheckpoint } else { Room::Full };
        }
        let keys = (journal.pending_puts + 1, journal.pending_key_bytes + key_length);
        match self.key_log.borrow().has_room(keys.0, keys.1) {
            true => Room::Free,
            false => Room::AfterCheckpoint,
        }
    }

    /// The most bytes of entries that certainly fit into a checkpoint area.
    fn index_media_limit(&self) -> u64 {
        u64::from(self.layout.index_blocks - 2) * index_page::PAGE_FILL_MIN as u64
    }

    /// Applies a durable batch to the index, in its order, and tells those who wait.
    pub(super) fn apply_batch(&self, batch: &Batch) {
        let buffer = batch.buffer.as_ref().expect("the batch is back from the device");
        for apply in &batch.applies {
            self.journal.borrow_mut().is_over(apply);
            let existed = match apply.kind {
                RecordKind::Put(entry) => self.apply_put(entry, &buffer[apply.key.clone()]),
                RecordKind::Delete(hash) => self.apply_delete(hash),
                RecordKind::Move { from, to } => self.apply_move(from, to),
            };
            self.tokens.borrow_mut().note(apply.token, Some(existed));
            self.commits.borrow_mut().settle(apply.ticket, Ok(existed), &self.context.ready);
        }
        self.wake_space_room();
    }

    /// The key now has this value; returns whether it had one. A new key goes to the key log.
    pub(super) fn apply_put(&self, entry: Entry, key: &[u8]) -> bool {
        let old =
            self.index.borrow_mut().insert(entry).expect("room was reserved before the record");
        self.link(&entry);
        match &old {
            Some(old) => self.unlink(old),
            None => {
                self.add_media_bytes(key.len() as i64);
                self.key_log.borrow_mut().push(entry.hash(), key);
            }
        }
        old.is_some_and(|old| !self.is_expired(&old))
    }

    /// The key is gone; returns whether it was there. Its media bytes stay counted until the next
    /// checkpoint drops them.
    pub(super) fn apply_delete(&self, hash: KeyHash) -> bool {
        let old = self.index.borrow_mut().remove(hash);
        if let Some(old) = &old {
            self.removed_keys.set(self.removed_keys.get() + 1);
            self.unlink(old);
        }
        old.is_some_and(|old| !self.is_expired(&old))
    }

    /// The value moved, unless the key got another one meanwhile; returns whether it moved.
    pub(super) fn apply_move(&self, from: u64, to: Entry) -> bool {
        if !self.find_any(to.hash()).is_some_and(|entry| entry.is_moved_by(from, &to)) {
            return false;
        }
        let old = self.index.borrow_mut().insert(to).expect("the key is in the index");
        self.link(&to);
        old.iter().for_each(|old| self.unlink(old));
        true
    }

    /// The entry of `hash`, expired or not.
    pub(super) fn find_any(&self, hash: KeyHash) -> Option<Entry> {
        self.index.borrow().get(hash)
    }

    pub(super) fn add_media_bytes(&self, key_length: i64) {
        let bytes = self.index_media_bytes.get() as i64 + index_page::entry_bytes(0) as i64;
        self.index_media_bytes.set((bytes + key_length) as u64);
    }

    pub(super) fn link(&self, entry: &Entry) {
        let pointer = entry.pointer();
        self.context.usage.add(pointer.namespace, pointer.length);
        let units = value_units(pointer.length);
        if units > 0 {
            self.space.borrow_mut().link(pointer.address, units);
        }
    }

    pub(super) fn unlink(&self, entry: &Entry) {
        let pointer = entry.pointer();
        self.context.tier.forget(pointer.hash);
        self.context.usage.sub(pointer.namespace, pointer.length);
        let units = value_units(pointer.length);
        if units > 0 {
            self.space.borrow_mut().unlink(pointer.address, units);
        }
    }

    /// A pin has ended or a value has gone: whoever waits for space looks again, and with it the cleaner.
    pub(super) fn wake_space_room(&self) {
        self.space_room.wake_all(&self.context.ready);
    }

    /// Something that must not fail has failed: nothing is taken any more.
    pub(super) fn fail(&self, what: &str, error: BlockError) {
        if !self.failed.replace(true) {
            log::error!(
                "shard {}: {what}: {error}; it takes no more writes; restart the daemon to recover \
                 what is durable",
                self.id
            );
        }
        self.journal_room.wake_all(&self.context.ready);
        self.space_room.wake_all(&self.context.ready);
    }

    /// Is there something for the upkeep task?
    pub(super) fn wants_checkpoint(&self) -> bool {
        self.checkpoint_wanted.get()
            || self.journal.borrow().is_half_full()
            || self.key_log.borrow().is_half_full()
    }

    /// A block error as the client sees it.
    pub(super) fn status_of(error: BlockError) -> Status {
        match error {
            BlockError::NoSpace => Status::NoSpace,
            _ => Status::Device,
        }
    }
}

/// Keeps the segment of `address` from being reused for as long as it lives.
#[derive(Debug)]
pub(super) struct Pin {
    shard: Rc<Shard>,
    address: u64,
    promised_units: u64,
}

impl Pin {
    /// Pins.
    #[must_use]
    pub(super) fn new(shard: &Rc<Shard>, address: u64) -> Self {
        shard.space.borrow_mut().pin(address);
        Self { shard: shard.clone(), address, promised_units: 0 }
    }

    /// The address that was pinned.
    #[must_use]
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Takes over the pin that [`Space::allocate`] made, and promises a new value's units there.
    #[must_use]
    pub(super) fn adopt(shard: &Rc<Shard>, address: u64, promised_units: u64) -> Self {
        shard.space.borrow_mut().promise(promised_units);
        Self { shard: shard.clone(), address, promised_units }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut space = self.shard.space.borrow_mut();
        space.keep_promise(self.promised_units);
        space.unpin(self.address);
        drop(space);
        self.shard.wake_space_room();
    }
}
