//! The part of a reactor that needs no network: executor, devices and shards.
//!
//! Guarantees: tasks run in the order of their wakes, between device polls that happen once before
//! and once behind the journal's group commit, so what the network brought is on its way to the media
//! before the tick ends. Nothing here reads a clock or blocks.

use super::Now;
use crate::disk::Disk;
use crate::executor::{Ready, TaskId, Tasks};
use crate::store::tier::Tier;
use crate::store::{self, Background, RecoveryError, Store, Usage};
use forebay_nvme::{BlockQueue, Pool};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::rc::Rc;

/// Task sets of a reactor: this one, and the commands'.
pub(super) const BACKGROUND_SET: u8 = 1;
/// Background tasks beside the store's own: questions of other reactors, checkpoint upkeep.
const SPARE_TASKS: usize = 256;
/// How many wakes the ready queue holds before it has to grow.
const READY_WAKES: usize = 8192;

/// What a reactor is made of, gathered on its own thread.
pub struct Parts {
    /// Its number.
    pub reactor: u16,
    /// How many there are.
    pub reactors: u16,
    /// Its queues, one on each device of the pool.
    pub queues: Vec<Box<dyn BlockQueue>>,
    /// Its slice of the arena.
    pub memory: Pool,
    /// What its DRAM tier has of the arena, if it has one.
    pub tier: Option<Pool>,
    /// The pool whose shards it serves.
    pub pool: store::Pool,
    /// Bytes used in each namespace, over all reactors.
    pub usage: Usage,
    /// DRAM for its shards' indexes, in bytes.
    pub index_bytes: usize,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("reactor", &self.reactor).finish_non_exhaustive()
    }
}

/// One reactor's engine.
pub struct Core {
    /// The executor's ready queue.
    pub ready: Ready,
    /// The reactor's queues.
    pub disk: Disk,
    /// The reactor's slice of the arena.
    pub memory: Pool,
    /// The reactor's shards.
    pub store: Store,
    /// The time of this tick.
    pub now: Rc<Cell<Now>>,
    background: Tasks<Background>,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl Core {
    /// Recovers this reactor's shards and starts their tasks. `clock` is read before every poll.
    ///
    /// # Errors
    /// [`RecoveryError`].
    pub fn recover(parts: Parts, clock: &mut dyn FnMut() -> Now) -> Result<Self, RecoveryError> {
        let Parts { reactor, reactors, queues, memory, tier, pool, usage, index_bytes } = parts;
        let tier = tier.map_or_else(Tier::default, Tier::new);
        let ready = Ready::new(READY_WAKES);
        let disk = Disk::new(&ready, queues);
        let context = store::Context::new(&ready, &disk, &memory, tier, &usage);
        let mut tasks = Tasks::new(&ready, BACKGROUND_SET, 1);
        let (reactor, reactors) = (reactor.into(), reactors.into());
        let recovering = {
            let context = context.clone();
            async move { Store::recover(&context, &pool, reactor, reactors, index_bytes).await }
        };
        let outcome = spawn_for(&mut tasks, recovering);
        let store = loop {
            let now = clock();
            context.now_s.set(now.unix_s as u32);
            context.memory.wake_all(&ready);
            while let Some(task) = ready.next() {
                tasks.run(task);
            }
            if !disk.poll(now.us) {
                std::thread::yield_now();
            }
            if let Some(recovered) = outcome.take() {
                break recovered?;
            }
        };
        let own = store.background();
        let mut background = Tasks::new(&ready, BACKGROUND_SET, own.len() + SPARE_TASKS);
        for task in own {
            assert!(background.spawn(task), "there is a slot for each of the store's tasks");
        }
        let now = Rc::new(Cell::new(Now::default()));
        Ok(Self { ready, disk, memory, store, now, background })
    }

    /// Starts a task; `false` if there are too many already.
    #[must_use]
    pub fn spawn(&mut self, task: Background) -> bool {
        self.background.spawn(task)
    }

    /// Background tasks that are running, the store's own included.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.background.len()
    }

    /// It is `now` from here on, for tasks and for what expires.
    pub fn set_time(&self, now: Now) {
        self.now.set(now);
        self.store.context().now_s.set(now.unix_s as u32);
    }

    /// Takes the time, and lets tasks and devices get on. `other` runs the tasks that are not in the
    /// background. `true` if anything happened.
    pub fn turn(&mut self, now: Now, other: &mut dyn FnMut(TaskId)) -> bool {
        self.set_time(now);
        self.ready.turn();
        let mut busy = self.store.tick();
        busy |= self.run_ready(other);
        // First poll: what the network asked for. Second: the journal pages that follow from it.
        for _ in 0..2 {
            busy |= self.disk.poll(now.us);
            busy |= self.run_ready(other);
        }
        busy
    }

    /// Drives `future` to its end, and everything else in the background with it.
    pub fn drive<T: 'static>(
        &mut self,
        clock: &mut dyn FnMut() -> Now,
        future: impl Future<Output = T> + 'static,
    ) -> T {
        let outcome = spawn_for(&mut self.background, future);
        loop {
            if !self.turn(clock(), &mut |_| {}) {
                std::thread::yield_now();
            }
            if let Some(outcome) = outcome.take() {
                return outcome;
            }
        }
    }

    fn run_ready(&mut self, other: &mut dyn FnMut(TaskId)) -> bool {
        let mut busy = false;
        while let Some(task) = self.ready.next() {
            busy = true;
            if !self.background.run(task) {
                other(task);
            }
        }
        busy
    }
}

/// Starts `future`; its outcome will be in the cell.
fn spawn_for<T: 'static>(
    tasks: &mut Tasks<Background>,
    future: impl Future<Output = T> + 'static,
) -> Rc<RefCell<Option<T>>> {
    let outcome = Rc::new(RefCell::new(None));
    let put = outcome.clone();
    let task = Box::pin(async move {
        put.replace(Some(future.await));
    });
    assert!(tasks.spawn(task), "there is a slot for what the reactor itself does");
    outcome
}
