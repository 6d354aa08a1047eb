//! The engine without a daemon: one reactor's store over simulated devices on a virtual clock, or over real
//! queues.

use forebay_nvme::sim::SimDevice;
use forebay_nvme::{Arena, BlockQueue, Pool as Memory};
use forebayd::disk::Disk;
use forebayd::executor::{Ready, Tasks};
use forebayd::store::geometry::FormatOptions;
use forebayd::store::pool::{self, Identity};
use forebayd::store::tier::Tier;
use forebayd::store::{Background, Context, OpenError, RecoveryError, Store, Usage};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Arena for simulations, in bytes: made once, used by one engine after the other.
const ARENA_BYTES: usize = 32 << 20;

/// Makes the memory of a simulation.
///
/// # Panics
/// The machine has no 32 MiB.
#[must_use]
pub fn memory() -> Memory {
    Arena::on_demand(ARENA_BYTES).expect("32 MiB of memory").pool()
}

/// Formats `devices` as one pool; everything random comes from `seed`.
///
/// # Errors
/// As [`pool::format`].
pub fn format(
    devices: &[SimDevice],
    memory: &Memory,
    seed: u64,
    options: FormatOptions,
) -> Result<(), OpenError> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut id = || rng.u128(..).to_le_bytes();
    let pool = id();
    let identity = Identity {
        pool,
        devices: devices.iter().map(|_| id()).collect(),
        hash_key: id(),
        created_s: 1,
    };
    pool::format(&mut queues(devices), memory, &identity, options).map(drop)
}

fn queues(devices: &[SimDevice]) -> Vec<Box<dyn BlockQueue>> {
    devices.iter().map(|device| Box::new(device.queue()) as Box<dyn BlockQueue>).collect()
}

/// Why an engine did not start.
#[derive(Debug)]
pub enum StartError {
    /// The pool did not open.
    Open(OpenError),
    /// A shard did not recover.
    Recovery(RecoveryError),
}

/// One reactor's store, running.
#[derive(Debug)]
pub struct Engine {
    devices: Vec<SimDevice>,
    disk: Disk,
    ready: Ready,
    context: Rc<Context>,
    clients: Tasks<Background>,
    background: Tasks<Background>,
    store: Option<Store>,
    now_us: u64,
    /// The unix time that the store sees.
    pub now_s: u32,
}

impl Engine {
    /// Opens the pool on `devices` and recovers all of its shards.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(devices: &[SimDevice], memory: &Memory) -> Result<Self, StartError> {
        Self::start_with(devices, memory, 1 << 20)
    }

    /// The same with `index_bytes` of index.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start_with(
        devices: &[SimDevice],
        memory: &Memory,
        index_bytes: usize,
    ) -> Result<Self, StartError> {
        Self::build(devices, || queues(devices), memory, Tier::default(), index_bytes)
    }

    /// The same with a DRAM tier in `tier`.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start_with_tier(
        devices: &[SimDevice],
        memory: &Memory,
        tier: &Memory,
    ) -> Result<Self, StartError> {
        let tier = Tier::new(tier.clone());
        Self::build(devices, || queues(devices), memory, tier, 1 << 20)
    }

    /// The same over real queues, one for each device of the pool; `queues` is asked once to open the
    /// pool and once for the engine.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn on_queues(
        queues: impl Fn() -> Vec<Box<dyn BlockQueue>>,
        memory: &Memory,
        index_bytes: usize,
    ) -> Result<Self, StartError> {
        Self::build(&[], queues, memory, Tier::default(), index_bytes)
    }

    fn build(
        devices: &[SimDevice],
        queues: impl Fn() -> Vec<Box<dyn BlockQueue>>,
        memory: &Memory,
        tier: Tier,
        index_bytes: usize,
    ) -> Result<Self, StartError> {
        let pool = pool::open(&mut queues(), memory, 1).map_err(StartError::Open)?;
        let ready = Ready::new(256);
        let disk = Disk::new(&ready, queues());
        let context = Context::new(&ready, &disk, memory, tier, &Usage::default());
        let mut engine = Self {
            devices: devices.to_vec(),
            disk,
            clients: Tasks::new(&ready, 0, 64),
            background: Tasks::new(&ready, 1, 1024),
            ready,
            context: context.clone(),
            store: None,
            now_us: 0,
            now_s: 1_000,
        };
        let store = engine
            .block_on(async move { Store::recover(&context, &pool, 0, 1, index_bytes).await })
            .map_err(StartError::Recovery)?;
        for task in store.background() {
            assert!(engine.background.spawn(task), "too many background tasks");
        }
        engine.store = Some(store);
        Ok(engine)
    }

    /// The store.
    ///
    /// # Panics
    /// While the engine is still starting.
    #[must_use]
    pub fn store(&self) -> &Store {
        self.store.as_ref().expect("a started engine has its store")
    }

    /// Starts a client's task.
    ///
    /// # Panics
    /// More than 64 at a time.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + 'static) {
        assert!(self.clients.spawn(Box::pin(task)), "too many clients");
    }

    /// Client tasks that still run.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// One tick: everything that is ready runs, the devices are polled, and if nothing moved, the clock
    /// jumps to the next thing that a device will do. `false` if nothing will ever move again.
    pub fn step(&mut self) -> bool {
        // Who waits for memory looks again in every tick: the devices must not stand still for them.
        self.now_us += 1;
        self.context.now_s.set(self.now_s);
        let waiting = self.store.as_ref().is_some_and(Store::tick);
        let ran = self.run_ready();
        let reaped = self.disk.poll(self.now_us);
        if ran || reaped {
            return true;
        }
        match self.devices.iter().filter_map(SimDevice::next_event_us).min() {
            Some(next_us) => {
                self.now_us = next_us.max(self.now_us);
                true
            }
            None => waiting || self.disk.in_flight() > 0,
        }
    }

    fn run_ready(&mut self) -> bool {
        let mut ran = false;
        self.ready.turn();
        while let Some(task) = self.ready.next() {
            if !self.clients.run(task) {
                self.background.run(task);
            }
            ran = true;
        }
        ran
    }

    /// Runs `future` to its end.
    ///
    /// # Panics
    /// If it waits for something that will never come.
    pub fn block_on<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let done = Rc::new(Cell::new(false));
        let (slot, flag) = (result.clone(), done.clone());
        self.spawn(async move {
            let value = future.await;
            *slot.borrow_mut() = Some(value);
            flag.set(true);
        });
        while !done.get() {
            assert!(self.step() || done.get(), "the engine hangs");
        }
        let value = result.borrow_mut().take();
        value.expect("the task has ended")
    }
}
