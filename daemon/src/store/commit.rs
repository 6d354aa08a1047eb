//! Group commit: from a record to its acknowledgement.
//!
//! A record is appended only once its data is on the device. The committer runs when everything else
//! that was ready has run, takes what has gathered, makes the data durable (a flush, where the device
//! has a volatile cache), writes the pages with FUA, changes the index, and only then wakes the waiters.
//! A flush or a write that fails is not tried again: the shard stops taking writes.

use super::barrier::{Flusher, For};
use super::format::{Record, RecordKind};
use super::journal::{Batch, Committed, settled};
use super::shard::{Room, Shard};
use super::tokens::Known;
use forebay_fabric::Status;
use forebay_nvme::{BLOCK_BYTES, BlockError};
use std::rc::Rc;

/// What [`Shard::try_append`] found.
enum Appended {
    /// It is in the batch; wait for the ticket.
    Ticket(u32),
    /// It was done before, or cannot be done.
    Over(Committed),
}

impl Shard {
    /// Appends `record` and waits until it is durable and applied. Returns whether the key was there
    /// before. A token that is known already is not done again: it ends as it did the first time.
    pub(super) async fn commit(&self, record: &Record<'_>) -> Committed {
        let ready = &self.context.ready;
        match self.journal_room.until(ready, || self.try_append(record)).await {
            Appended::Over(outcome) => outcome,
            Appended::Ticket(ticket) => settled(&self.commits, ticket, ready).await,
        }
    }

    /// The outcome of the operation with `token`, which is known already.
    pub(super) async fn replayed(&self, token: u64) -> Committed {
        let outcome = || match self.tokens.borrow_mut().get(token) {
            Some(Known::Done(existed)) => Some(Ok(existed)),
            Some(Known::Pending) if self.failed.get() => Some(Err(Status::Device)),
            Some(Known::Pending) => None,
            None => Some(Err(Status::Busy)),
        };
        self.journal_room.until(&self.context.ready, outcome).await
    }

    fn try_append(&self, record: &Record<'_>) -> Option<Appended> {
        if self.failed.get() {
            return Some(Appended::Over(Err(Status::Device)));
        }
        match self.tokens.borrow_mut().get(record.token) {
            Some(Known::Done(existed)) => return Some(Appended::Over(Ok(existed))),
            Some(Known::Pending) => return None,
            None => {}
        }
        if let RecordKind::Put(entry) = record.kind
            && !self.is_overwrite(entry.hash())
        {
            match self.index_room(record.key.len()) {
                Room::Free => {}
                Room::Full => return Some(Appended::Over(Err(Status::NoSpace))),
                Room::AfterCheckpoint => {
                    self.checkpoint_wanted.set(true);
                    self.upkeep.wake_all(&self.context.ready);
                    return None;
                }
            }
        }
        let ticket = self.commits.borrow_mut().take();
        if !self.journal.borrow_mut().append(record, ticket) {
            self.commits.borrow_mut().give_back(ticket);
            self.upkeep.wake_all(&self.context.ready);
            return None;
        }
        self.tokens.borrow_mut().note(record.token, None);
        self.committer.wake_all(&self.context.ready);
        Some(Appended::Ticket(ticket))
    }
}

/// The committer's task.
pub(super) async fn run(shard: Rc<Shard>) {
    let ready = shard.context.ready.clone();
    let mut flusher = Flusher::new(&shard, For::Journal);
    loop {
        let taken = shard.committer.until(&ready, || shard.journal.borrow_mut().take_batch()).await;
        let (mut batch, first) = taken;
        // The batch that fills now has room for those who waited.
        shard.journal_room.wake_all(&ready);
        match write(&shard, &mut flusher, &mut batch, first).await {
            Ok(()) => shard.apply_batch(&batch),
            Err((what, error)) => {
                shard.fail(what, error);
                refuse(&shard, &batch);
            }
        }
        shard.journal.borrow_mut().return_batch(batch);
        shard.journal_room.wake_all(&ready);
        if shard.wants_checkpoint() {
            shard.upkeep.wake_all(&ready);
        }
    }
}

async fn write(
    shard: &Shard,
    flusher: &mut Flusher,
    batch: &mut Batch,
    first: u64,
) -> Result<(), (&'static str, BlockError)> {
    let disk = &shard.context.disk;
    let device = shard.region.device;
    if shard.failed.get() {
        return Err(("journal", BlockError::Write));
    }
    flusher.flush(shard).await.map_err(|error| ("flush of the data", error))?;
    batch.seal(shard.ring, shard.epoch, first);
    let position = shard.journal.borrow().position(first);
    let block = shard.region.journal_block + position;
    let buffer = batch.buffer.take().expect("the batch has its buffer");
    let (result, buffer) = disk.write(device, block, batch.pages() as u32, buffer, true).await;
    batch.buffer = buffer;
    debug_assert!(batch.buffer.as_ref().is_some_and(|buffer| buffer.len() >= BLOCK_BYTES));
    result.map_err(|error| ("write of the journal", error))
}

fn refuse(shard: &Shard, batch: &Batch) {
    for apply in &batch.applies {
        shard.journal.borrow_mut().is_over(apply);
        shard.commits.borrow_mut().settle(apply.ticket, Err(Status::Device), &shard.context.ready);
    }
}
