//! The cleaner: moves what is alive out of a segment, so that the segment is free again.
//!
//! There are no headers in a segment; what is alive in it follows from the index. The upkeep task picks
//! a victim and lists its values; a few workers move them, each by the same path that a store takes,
//! with a `Move` record at the end: if the key got another value meanwhile, the record does nothing.
//! The same workers delete what has expired.

use super::Fragment;
use super::format::{Record, RecordKind};
use super::index::{Entry, KeyHash};
use super::read::PendingRetrieve;
use super::shard::{Pin, Shard};
use super::space::SegmentClass;
use super::write::PendingStore;
use crate::executor::Waiters;
use forebay_fabric::Status;
use std::ops::Range;
use std::rc::Rc;

/// Workers of a shard. As many small values are packed into the same blocks: of the smallest, a whole
/// block.
pub(super) const WORKERS: usize = 64;

/// Bytes of values that are being moved at a time.
const BYTES_MAX: u64 = 4 << 20;

/// Slots of the index that are looked at before others run.
const SCAN_SLOTS: usize = 4096;

/// Jobs in the queue at which the scan waits for the workers.
const QUEUE_FULL: usize = 4 * WORKERS;

/// One thing for a worker to do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Job {
    /// Move the value that this entry points at.
    Move(Entry),
    /// Delete the key if it is still expired.
    Expire(KeyHash),
}

impl Job {
    fn bytes(&self) -> u64 {
        match self {
            Self::Move(entry) => u64::from(entry.pointer().length),
            Self::Expire(_) => 0,
        }
    }
}

/// The workers' queue.
#[derive(Debug)]
pub(super) struct Jobs {
    queue: Vec<Job>,
    active: usize,
    active_bytes: u64,
    /// The scan is looking for more to do.
    is_scanning: bool,
    /// The scan waits here for the workers.
    idle: Rc<Waiters>,
}

impl Default for Jobs {
    /// With room for what one look at the index can add: cleaning allocates nothing.
    fn default() -> Self {
        Self {
            queue: Vec::with_capacity(QUEUE_FULL + SCAN_SLOTS),
            active: 0,
            active_bytes: 0,
            is_scanning: false,
            idle: Rc::new(Waiters::new(1)),
        }
    }
}

impl Jobs {
    fn take(&mut self) -> Option<Job> {
        let job = *self.queue.last()?;
        if self.active > 0 && self.active_bytes + job.bytes() > BYTES_MAX {
            return None;
        }
        self.queue.pop();
        self.active += 1;
        self.active_bytes += job.bytes();
        Some(job)
    }

    /// Are there more values on their way to the packer than the `values` that wait in it?
    pub(super) fn more_than(&self, values: usize) -> bool {
        self.is_scanning || self.active > values
    }

    fn is_done(&self) -> bool {
        self.queue.is_empty() && self.active == 0
    }
}

/// A worker's task.
pub(super) async fn work(shard: Rc<Shard>) {
    let ready = shard.context.ready.clone();
    loop {
        let job = shard.job_waiters.until(&ready, || shard.jobs.borrow_mut().take()).await;
        match job {
            Job::Move(entry) => relocate(&shard, entry).await,
            Job::Expire(hash) => expire(&shard, hash).await,
        }
        let mut jobs = shard.jobs.borrow_mut();
        jobs.active -= 1;
        jobs.active_bytes -= job.bytes();
        jobs.idle.wake_all(&ready);
        drop(jobs);
        shard.job_waiters.wake_all(&ready);
        wake_packer(&shard);
    }
}

/// The cleaner's packer looks again whether more values are on their way to it.
fn wake_packer(shard: &Shard) {
    shard.packers[SegmentClass::Cleaner as usize].borrow().wakeup.wake_all(&shard.context.ready);
}

async fn relocate(shard: &Rc<Shard>, entry: Entry) {
    let pointer = entry.pointer();
    let current = shard.index.borrow().get(pointer.hash);
    if current != Some(entry) {
        return;
    }
    // To the end: if the key got another value meanwhile, that one must not lie at this very address.
    let _pin = Pin::new(shard, pointer.address);
    let whole = 0..u64::from(pointer.length);
    let read = read(shard, PendingRetrieve::new(shard.clone(), pointer, whole)).await;
    let outcome = match read {
        Ok(Fragment { buffer, range, .. }) => match buffer.into_own() {
            Some(mut buffer) => {
                buffer.copy_within(range, 0);
                PendingStore::relocate(shard, pointer, buffer).finish().await
            }
            None => Err(Status::Internal),
        },
        Err(status) => Err(status),
    };
    match outcome {
        // Another value took its place meanwhile: that is what the cleaner wants.
        Ok(()) | Err(Status::Busy | Status::NotFound) => {}
        Err(Status::NoSpace) => shard.space.borrow_mut().cleaner_is_stuck(),
        Err(status) => quarantine(shard, pointer.address, status),
    }
}

/// Stores that wait for space give their memory up for as long as a worker has none.
async fn read(shard: &Shard, pending: PendingRetrieve) -> Result<Fragment, Status> {
    if !pending.waits_for_memory() {
        return pending.finish().await;
    }
    shard.starving.set(shard.starving.get() + 1);
    shard.wake_space_room();
    let outcome = pending.finish().await;
    shard.starving.set(shard.starving.get() - 1);
    outcome
}

fn quarantine(shard: &Shard, address: u64, status: Status) {
    let mut space = shard.space.borrow_mut();
    let segment = space.segment_of(address);
    if matches!(status, Status::Corrupt | Status::Device) && !shard.failed.get() {
        log::error!(
            "shard {}: segment {segment} cannot be cleaned: {status}; left as it is",
            shard.id
        );
        space.quarantine(segment);
    }
}

async fn expire(shard: &Shard, hash: KeyHash) {
    let expired = {
        let index = shard.index.borrow();
        index.get(hash).is_some_and(|entry| shard.is_expired(&entry))
    };
    if expired {
        let record = Record { kind: RecordKind::Delete(hash), token: 0, key: &[] };
        if let Err(status) = shard.commit(&record).await {
            log::debug!("shard {}: an expired key stays for now: {status}", shard.id);
        }
    }
}

/// Cleans the best victim; `false` if there is none.
pub(super) async fn clean_one(shard: &Rc<Shard>) -> bool {
    let victim = shard.space.borrow().victim();
    let Some(victim) = victim else { return false };
    let in_victim = |entry: &Entry| {
        let pointer = entry.pointer();
        let inside = shard.space.borrow().segment_of(pointer.address) == victim;
        (inside && pointer.length > 0).then_some(Job::Move(*entry))
    };
    run_all(shard, in_victim).await;
    true
}

/// Deletes what has expired.
pub(super) async fn sweep(shard: &Rc<Shard>) {
    let expired = |entry: &Entry| shard.is_expired(entry).then(|| Job::Expire(entry.hash()));
    run_all(shard, expired).await;
}

/// Goes through the index, and has the workers do what `select` makes of its entries.
async fn run_all(shard: &Rc<Shard>, select: impl Fn(&Entry) -> Option<Job>) {
    let ready = &shard.context.ready;
    let slots = shard.index.borrow().slots();
    let idle = shard.jobs.borrow().idle.clone();
    for start in (0..slots).step_by(SCAN_SLOTS) {
        let queued = scan(shard, start..slots.min(start + SCAN_SLOTS), &select);
        shard.job_waiters.wake_all(ready);
        if queued >= QUEUE_FULL {
            drained(shard, &idle, |jobs| jobs.queue.len() < QUEUE_FULL).await;
        } else {
            ready.pass().await;
        }
    }
    drained(shard, &idle, Jobs::is_done).await;
}

/// Puts jobs for `slots` of the index in the queue; returns how many wait there.
fn scan(shard: &Shard, slots: Range<usize>, select: impl Fn(&Entry) -> Option<Job>) -> usize {
    let mut jobs = shard.jobs.borrow_mut();
    jobs.is_scanning = true;
    let index = shard.index.borrow();
    let entries = slots.filter_map(|slot| index.at(slot));
    jobs.queue.extend(entries.filter_map(|entry| select(&entry)));
    jobs.queue.len()
}

/// Waits until the workers have come so far.
async fn drained(shard: &Rc<Shard>, idle: &Waiters, is_enough: impl Fn(&Jobs) -> bool) {
    shard.jobs.borrow_mut().is_scanning = false;
    wake_packer(shard);
    idle.until(&shard.context.ready, || is_enough(&shard.jobs.borrow()).then_some(())).await;
}
