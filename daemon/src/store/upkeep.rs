//! Upkeep: what keeps a shard able to take stores. Two tasks a shard, woken when something is due.
//!
//! Two, because the cleaner writes to the journal: it must not wait for room there in the very task that
//! makes room by a checkpoint.

use super::shard::Shard;
use super::{cleaner, index_checkpoint};
use std::rc::Rc;

#[derive(Clone, Copy, Debug)]
enum Due {
    Sweep,
    Clean,
}

fn due(shard: &Shard) -> Option<Due> {
    if shard.failed.get() {
        return None;
    }
    if shard.sweep_wanted.get() {
        return Some(Due::Sweep);
    }
    let space = shard.space.borrow();
    (space.is_low() && space.victim().is_some()).then_some(Due::Clean)
}

/// The task that writes index checkpoints.
pub(super) async fn run_checkpoints(shard: Rc<Shard>) {
    let ready = shard.context.ready.clone();
    let is_due = || (!shard.failed.get() && shard.wants_checkpoint()).then_some(());
    loop {
        shard.upkeep.until(&ready, is_due).await;
        checkpoint(&shard).await;
        ready.pass().await;
    }
}

/// The task that cleans segments and deletes what has expired.
pub(super) async fn run_cleaning(shard: Rc<Shard>) {
    let ready = shard.context.ready.clone();
    loop {
        match shard.upkeep.until(&ready, || due(&shard)).await {
            Due::Sweep => {
                shard.sweep_wanted.set(false);
                cleaner::sweep(&shard).await;
            }
            Due::Clean => {
                cleaner::clean_one(&shard).await;
            }
        }
        shard.space_room.wake_all(&ready);
        ready.pass().await;
    }
}

async fn checkpoint(shard: &Rc<Shard>) {
    if let Err(error) = index_checkpoint::write(shard).await {
        log::error!("shard {}: {error}; it takes no more writes", shard.id);
        shard.failed.set(true);
    }
    shard.checkpoint_wanted.set(false);
    shard.checkpoint_done.wake_all(&shard.context.ready);
    shard.journal_room.wake_all(&shard.context.ready);
    shard.space_room.wake_all(&shard.context.ready);
}

/// Asks for a checkpoint and waits until it is durable. Nothing is written if nothing has changed.
pub(super) async fn checkpoint_now(shard: &Shard) {
    let unchanged = {
        let journal = shard.journal.borrow();
        journal.tail_sequence == journal.next_sequence
    };
    if unchanged || shard.failed.get() {
        return;
    }
    let ready = &shard.context.ready;
    shard.checkpoint_wanted.set(true);
    shard.upkeep.wake_all(ready);
    let done = || (!shard.checkpoint_wanted.get()).then_some(());
    shard.checkpoint_done.until(ready, done).await;
}
