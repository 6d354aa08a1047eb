//! The journal of one shard: records gather in a batch while the batch before is being written.
//!
//! One batch is in flight at a time, so batches grow by themselves when the device is busy, and a later
//! page never becomes durable before an earlier one was acknowledged. The ring is never written over a
//! page that recovery would need: `tail_sequence` moves only when an index checkpoint is durable.

use super::format::journal_page::RingId;
use super::format::{JournalPageBuilder, Record, RecordKind};
use crate::executor::{Ready, TaskId};
use forebay_fabric::Status;
use forebay_nvme::{BLOCK_BYTES, DmaBuf};
use std::future::poll_fn;
use std::ops::Range;
use std::task::Poll;

/// The most pages that are written in one go.
pub const BATCH_PAGES: usize = 16;

/// What is done to the index once a record is durable.
#[derive(Debug)]
pub struct Apply {
    /// The record.
    pub kind: RecordKind,
    /// Its token.
    pub token: u64,
    /// Where its key is in the batch.
    pub key: Range<usize>,
    /// Who waits for it.
    pub ticket: u32,
}

/// Records on their way to media.
#[derive(Debug)]
pub struct Batch {
    /// [`BATCH_PAGES`] pages.
    pub buffer: Option<DmaBuf>,
    /// What to do when they are durable, in their order.
    pub applies: Vec<Apply>,
    /// Pages that are complete but for their headers.
    full: Vec<JournalPageBuilder>,
    open: JournalPageBuilder,
}

impl Batch {
    /// Room for a batch in `buffer`.
    #[must_use]
    pub fn new(buffer: DmaBuf) -> Self {
        Self {
            buffer: Some(buffer),
            applies: Vec::with_capacity(BATCH_PAGES * 80),
            full: Vec::with_capacity(BATCH_PAGES),
            open: JournalPageBuilder::default(),
        }
    }

    /// Nothing has been appended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.applies.is_empty()
    }

    /// Pages used.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.full.len() + usize::from(!self.open.is_empty())
    }

    fn push(&mut self, record: &Record<'_>, pages_max: usize) -> Option<Range<usize>> {
        let buffer = self.buffer.as_mut().expect("a filling batch has its buffer");
        let mut page = self.full.len();
        let start = page * BLOCK_BYTES;
        if let Some(key) = self.open.push(&mut buffer[start..start + BLOCK_BYTES], record) {
            return Some(start + key..start + key + record.key.len());
        }
        if page + 1 >= pages_max {
            return None;
        }
        self.full.push(std::mem::take(&mut self.open));
        page += 1;
        let start = page * BLOCK_BYTES;
        let key = self.open.push(&mut buffer[start..start + BLOCK_BYTES], record)?;
        Some(start + key..start + key + record.key.len())
    }

    /// Completes the pages' headers.
    pub fn seal(&mut self, ring: RingId, epoch: u64, first: u64) {
        let buffer = self.buffer.as_mut().expect("a filling batch has its buffer");
        if !self.open.is_empty() {
            self.full.push(std::mem::take(&mut self.open));
        }
        for (page, builder) in self.full.iter().enumerate() {
            let block = &mut buffer[page * BLOCK_BYTES..][..BLOCK_BYTES];
            builder.seal(block, ring, epoch, first + page as u64, first);
        }
    }

    /// Empties it for the next round.
    pub fn clear(&mut self) {
        self.applies.clear();
        self.full.clear();
        self.open = JournalPageBuilder::default();
    }
}

/// The ring's state.
#[derive(Debug)]
pub struct Journal {
    /// Pages in the ring.
    pub pages: u64,
    /// The number that the next batch's first page gets.
    pub next_sequence: u64,
    /// The first page whose records are not yet applied to the index.
    pub applied_sequence: u64,
    /// The first page that recovery would need.
    pub tail_sequence: u64,
    /// Puts that are appended and not yet applied: each may become a new entry.
    pub pending_puts: usize,
    /// Deletes that are appended and not yet applied: each may make an overwrite a new entry.
    pub pending_deletes: usize,
    /// Bytes of their keys.
    pub pending_key_bytes: usize,
    filling: Batch,
    spare: Option<Batch>,
}

impl Journal {
    /// A ring of `pages` pages that goes on at `next_sequence`, with everything from
    /// `tail_sequence` on still needed.
    #[must_use]
    pub fn new(pages: u32, tail_sequence: u64, next_sequence: u64, buffers: [DmaBuf; 2]) -> Self {
        let [filling, spare] = buffers.map(Batch::new);
        Self {
            pages: u64::from(pages),
            next_sequence,
            applied_sequence: next_sequence,
            tail_sequence,
            pending_puts: 0,
            pending_deletes: 0,
            pending_key_bytes: 0,
            filling,
            spare: Some(spare),
        }
    }

    /// Where in the ring page `sequence` lies.
    #[must_use]
    pub fn position(&self, sequence: u64) -> u64 {
        sequence % self.pages
    }

    /// Pages that could be written before the ring would bite its tail.
    fn room(&self) -> u64 {
        self.pages - (self.next_sequence - self.tail_sequence)
    }

    /// Half of the ring is in use: an index checkpoint is due.
    #[must_use]
    pub fn is_half_full(&self) -> bool {
        self.room() < self.pages / 2
    }

    /// The most pages the filling batch may have: it neither wraps around the ring's end nor bites
    /// its tail.
    fn pages_max(&self) -> usize {
        let to_end = self.pages - self.position(self.next_sequence);
        (BATCH_PAGES as u64).min(to_end).min(self.room()) as usize
    }

    /// Appends a record to the filling batch; `false` if it has to wait for the next one.
    pub fn append(&mut self, record: &Record<'_>, ticket: u32) -> bool {
        let pages_max = self.pages_max();
        if pages_max == 0 {
            return false;
        }
        let Some(key) = self.filling.push(record, pages_max) else { return false };
        match record.kind {
            RecordKind::Put(_) => {
                self.pending_puts += 1;
                self.pending_key_bytes += record.key.len();
            }
            RecordKind::Delete(_) => self.pending_deletes += 1,
            RecordKind::Move { .. } => {}
        }
        let (kind, token) = (record.kind, record.token);
        self.filling.applies.push(Apply { kind, token, key, ticket });
        true
    }

    /// An appended record is about to be applied, or has been refused.
    pub fn is_over(&mut self, apply: &Apply) {
        match apply.kind {
            RecordKind::Put(_) => {
                self.pending_puts -= 1;
                self.pending_key_bytes -= apply.key.len();
            }
            RecordKind::Delete(_) => self.pending_deletes -= 1,
            RecordKind::Move { .. } => {}
        }
    }

    /// Takes the filling batch for writing, and the number of its first page. `None` if it is empty,
    /// or the batch before is still in flight.
    pub fn take_batch(&mut self) -> Option<(Batch, u64)> {
        if self.filling.is_empty() {
            return None;
        }
        let spare = self.spare.take()?;
        let batch = std::mem::replace(&mut self.filling, spare);
        let first = self.next_sequence;
        self.next_sequence += batch.pages() as u64;
        Some((batch, first))
    }

    /// Gives a batch back that has been applied.
    pub fn return_batch(&mut self, mut batch: Batch) {
        batch.clear();
        self.applied_sequence = self.next_sequence;
        self.spare = Some(batch);
    }
}

/// Waiters for an outcome each: a slab, so that waiting allocates nothing.
#[derive(Debug)]
pub struct Tickets<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    task: Option<TaskId>,
    outcome: Option<T>,
}

/// What became of a record: for a put and a delete, whether the key was there before.
pub type Committed = Result<bool, Status>;

impl<T> Default for Tickets<T> {
    fn default() -> Self {
        Self { slots: Vec::with_capacity(256), free: Vec::with_capacity(256) }
    }
}

impl<T> Tickets<T> {
    /// A new ticket.
    pub fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { task: None, outcome: None });
            self.slots.len() as u32 - 1
        })
    }

    /// Gives a ticket back that was not used.
    pub fn give_back(&mut self, ticket: u32) {
        self.free.push(ticket);
    }

    /// Sets the outcome of a ticket and wakes who waits for it.
    pub fn settle(&mut self, ticket: u32, outcome: T, ready: &Ready) {
        let slot = &mut self.slots[ticket as usize];
        slot.outcome = Some(outcome);
        if let Some(task) = slot.task.take() {
            ready.wake(task);
        }
    }

    /// Takes the outcome, which frees the ticket, or notes who waits.
    fn poll(&mut self, ticket: u32, ready: &Ready) -> Option<T> {
        let slot = &mut self.slots[ticket as usize];
        match slot.outcome.take() {
            Some(outcome) => {
                self.free.push(ticket);
                Some(outcome)
            }
            None => {
                slot.task = Some(ready.current());
                None
            }
        }
    }
}

/// Waits for a ticket of `tickets`.
pub async fn settled<T>(tickets: &std::cell::RefCell<Tickets<T>>, ticket: u32, ready: &Ready) -> T {
    poll_fn(|_| match tickets.borrow_mut().poll(ticket, ready) {
        Some(outcome) => Poll::Ready(outcome),
        None => Poll::Pending,
    })
    .await
}
