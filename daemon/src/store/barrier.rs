//! Flushes of one device, by all shards that are on it.
//!
//! A device whose flush fails may have dropped anything from its write cache, also what shards have written
//! that did not ask for this flush; and the next one, which they ask for, succeeds. Guarantee: a flush that has
//! returned `Ok` covers all that its shard wrote before it, whatever other shards and their reactors did
//! meanwhile. Once any flush of a device has failed, none is believed until a restart has recovered.
//! What breaks it: a device that says that it has flushed, and has not.

use super::shard::Shard;
use crate::disk::Io;
use crate::executor::Ready;
use forebay_nvme::BlockError;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Who flushes for a shard, one flush after the other.
#[derive(Clone, Copy, Debug)]
pub(super) enum For {
    /// The committer, before it writes to the journal.
    Journal,
    /// The writer of index checkpoints.
    Checkpoint,
}

const FLUSHERS: usize = 2;

/// See the module. Shared by all reactors.
#[derive(Debug)]
pub(super) struct Barrier {
    failed: AtomicBool,
    /// By shard and flusher: odd while it has a flush under way, whose end nobody knows yet.
    rounds: Box<[AtomicU32]>,
}

impl Barrier {
    /// For a device of a pool with so many shards.
    pub(super) fn new(shards: u32) -> Self {
        let rounds = (0..shards as usize * FLUSHERS).map(|_| AtomicU32::new(0)).collect();
        Self { failed: AtomicBool::new(false), rounds }
    }

    /// How often the flusher at `place` has begun and ended.
    fn round(&self, place: usize) -> u32 {
        // What was noted before a round has ended is seen by whoever sees its end.
        self.rounds[place].load(Ordering::SeqCst)
    }

    fn under_way(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        let rounds = (0..self.rounds.len()).map(|place| (place, self.round(place)));
        rounds.filter(|(_, round)| round % 2 == 1)
    }
}

/// A flush under way.
struct Round<'a> {
    barrier: &'a Barrier,
    place: usize,
    succeeded: bool,
}

impl<'a> Round<'a> {
    fn begin(barrier: &'a Barrier, place: usize) -> Self {
        barrier.rounds[place].fetch_add(1, Ordering::SeqCst);
        Self { barrier, place, succeeded: false }
    }
}

impl Drop for Round<'_> {
    /// One that was given up before its end is known counts as failed.
    fn drop(&mut self) {
        if !self.succeeded {
            self.barrier.failed.store(true, Ordering::SeqCst);
        }
        self.barrier.rounds[self.place].fetch_add(1, Ordering::SeqCst);
    }
}

/// One of a shard's two that flush.
#[derive(Debug)]
pub(super) struct Flusher {
    place: usize,
    /// Flushes that were under way when the last one of this ended: their places, and their rounds.
    others: Vec<(usize, u32)>,
}

impl Flusher {
    pub(super) fn new(shard: &Shard, is_for: For) -> Self {
        let place = shard.id as usize * FLUSHERS + is_for as usize;
        Self { place, others: Vec::new() }
    }

    /// Makes durable what the shard has written to its device. At once where the device has no write cache
    /// that forgets. Otherwise it waits for flushes by other shards, too, that began before this one has ended:
    /// if one of them has failed, it may have taken what this one was to save.
    ///
    /// # Errors
    /// `Flush`: this one has failed, or another one of the device, now or before.
    pub(super) async fn flush(&mut self, shard: &Shard) -> Result<(), BlockError> {
        if !shard.volatile_cache {
            return Ok(());
        }
        let Shard { context, region, pool, .. } = shard;
        let submit = || context.disk.flush(region.device);
        self.pass(pool.barrier(region.device), &context.ready, submit).await
    }

    /// Passes the barrier with the flush that is submitted then.
    async fn pass(
        &mut self,
        barrier: &Barrier,
        ready: &Ready,
        submit: impl FnOnce() -> Io,
    ) -> Result<(), BlockError> {
        let mut round = Round::begin(barrier, self.place);
        let (flushed, _) = submit().await;
        round.succeeded = flushed.is_ok();
        drop(round);
        flushed?;
        self.others.clear();
        self.others.extend(barrier.under_way());
        for &(place, round) in &self.others {
            while barrier.round(place) == round {
                ready.pass().await;
            }
        }
        let failed = barrier.failed.load(Ordering::SeqCst);
        if failed { Err(BlockError::Flush) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;
    use crate::executor::Tasks;
    use forebay_nvme::sim::{SimConfig, SimDevice};
    use std::cell::Cell;
    use std::rc::Rc;

    /// What becomes of a flush that succeeds, beside one of another shard that ends after it, and how.
    fn beside(other_succeeds: bool) -> Result<(), BlockError> {
        let (ready, barrier) = (Ready::new(4), Rc::new(Barrier::new(2)));
        let device = SimDevice::new(SimConfig::default());
        let disk = Disk::new(&ready, vec![Box::new(device.queue())]);
        let mut tasks = Tasks::new(&ready, 0, 1);
        let ended = Rc::new(Cell::new(None));
        let (passing, ends, at) = (ready.clone(), ended.clone(), barrier.clone());
        let flushed = disk.clone();
        assert!(tasks.spawn(Box::pin(async move {
            let mut flusher = Flusher { place: 0, others: Vec::new() };
            ends.set(Some(flusher.pass(&at, &passing, || flushed.flush(0)).await));
        })));
        let mut turns = |from: u64| {
            for now_us in from..from + 10_000 {
                disk.poll(now_us);
                ready.turn();
                while let Some(task) = ready.next() {
                    tasks.run(task);
                }
            }
        };
        let mut other = Round::begin(&barrier, FLUSHERS);
        turns(0);
        assert_eq!((disk.in_flight(), ended.get()), (0, None), "it has ended, and waits");
        other.succeeded = other_succeeds;
        drop(other);
        turns(10_000);
        ended.get().expect("nobody is waited for any more")
    }

    #[test]
    fn a_flush_is_believed_when_those_beside_it_have_succeeded_too() {
        assert_eq!(beside(true), Ok(()));
        assert_eq!(beside(false), Err(BlockError::Flush));
    }
}
