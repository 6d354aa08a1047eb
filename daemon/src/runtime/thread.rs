//! The life of one reactor's thread: recover, wait for the order to serve, serve, close.

use super::devices::{Media, QueueError};
use super::events::{Event, Events};
use super::listening::Listening;
use crate::catalog::{self, CatalogError, Table};
use crate::checkpoint::{self, Limits};
use crate::reactor::mail::Seat;
use crate::reactor::{Clock, Core, Now, Parts, Phase, Reactor, run};
use crate::service::{self, Chunks, Context, Setup};
use crate::store::{self, Namespace, RecoveryError, Usage};
use crossbeam_channel::Receiver;
use forebay_fabric::Status;
use forebay_fabric::rdma::ProviderError;
use forebay_fabric::server::{Server, ServerConfig};
use forebay_nvme::PoolSeed;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::rc::Rc;

/// The reactor that keeps the catalog: it owns shard 0.
pub const CATALOG_REACTOR: u16 = 0;
/// Commands in service at a time, on one reactor.
const SLOTS: u16 = 1024;

/// Everything a reactor's thread begins with.
#[derive(Debug)]
pub struct Berth {
    /// Its number.
    pub reactor: u16,
    /// How many there are.
    pub reactors: u16,
    /// The core it is pinned to.
    pub core: usize,
    /// The pool's devices.
    pub media: Vec<Media>,
    /// Requests in flight on its queue on each of them.
    pub queue_depth: u32,
    /// Its slice of the arena.
    pub memory: PoolSeed,
    /// What its DRAM tier gets of that, in bytes.
    pub tier_bytes: usize,
    /// The pool.
    pub pool: store::Pool,
    /// Bytes used in each namespace.
    pub usage: Usage,
    /// DRAM for its indexes, in bytes.
    pub index_bytes: usize,
    /// Its place among the reactors.
    pub seat: Seat,
    /// The configuration's namespaces.
    pub namespaces: Vec<Namespace>,
    /// When it may sleep.
    pub idle_after_us: u64,
    /// The daemon's clock.
    pub clock: Clock,
}

/// The order to serve.
#[derive(Debug)]
pub struct Order {
    /// The namespaces of the pool.
    pub namespaces: Table,
    /// What each listener listens on, and grants.
    pub listeners: Vec<(Listening, ServerConfig)>,
}

/// Why a reactor does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ReactorError {
    /// No queue on a device.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// A shard is not recovered.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The catalog is of no use.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The catalog of checkpoints is of no use.
    #[error("the catalog of checkpoints cannot be read: {0}")]
    Checkpoints(Status),
    /// RDMA does not work here.
    #[error("it cannot listen: {0}")]
    Rdma(#[from] ProviderError),
    /// The reactor cannot sleep.
    #[error("epoll failed: {0}")]
    Sleep(#[from] nix::Error),
}

/// Lives the whole life. Every step is told through `events`; the thread ends when this returns.
///
/// # Errors
/// [`ReactorError`].
pub fn live(berth: Berth, events: &Events, orders: &Receiver<Order>) -> Result<(), ReactorError> {
    let Berth { reactor, reactors, media, mut memory, tier_bytes, pool, usage, .. } = berth;
    let Berth {
        index_bytes, core: cpu, queue_depth, seat, namespaces, idle_after_us, clock, ..
    } = berth;
    pin(cpu);
    let tier = memory.cut_off(tier_bytes).map(PoolSeed::into_pool);
    let memory = memory.into_pool();
    let queues = media.iter().map(|device| device.queue(&memory, queue_depth));
    let queues = queues.collect::<Result<Vec<_>, _>>()?;
    let parts = Parts { reactor, reactors, queues, memory, tier, pool, usage, index_bytes };
    let read = &mut || clock.now();
    let mut core = Core::recover(parts, read)?;
    let mailbox = Rc::new(seat.take(&core.ready));
    let (mut table, mut checkpoints) = (None, None);
    if reactor == CATALOG_REACTOR {
        table = Some(core.drive(read, catalog::load(core.store.clone(), namespaces))?);
        let storage = Chunks::new(core.store.clone(), mailbox.clone());
        checkpoints = Some(Rc::new(open_checkpoints(&mut core, storage, read)?));
    }
    events.send(Event::Recovered { reactor, keys: core.store.keys(), table });
    let Ok(Order { namespaces, listeners }) = orders.recv() else { return Ok(()) };
    let setup = Setup {
        mailbox,
        namespaces,
        checkpoints,
        catalog_reactor: CATALOG_REACTOR,
        listeners: listeners.len(),
        queue_depth: listeners.iter().map(|(_, config)| config.queue_depth).max().unwrap_or(1),
        slots: SLOTS,
    };
    let cx = Context::new(&core, setup);
    let memory = cx.memory.pool();
    let servers = listeners
        .into_iter()
        .map(|(listener, config)| Ok(Server::new(listener.serve(&config, memory)?, config)));
    let servers = servers.collect::<Result<_, ReactorError>>()?;
    if let Some(sweep) = service::checkpoint_sweep(&cx) {
        assert!(core.spawn(sweep), "there is a slot for it at the start");
    }
    let mut reactor = Reactor::new(core, cx, servers);
    let number = berth.reactor;
    let mut drained = false;
    run::run(&mut reactor, clock, idle_after_us, |phase| {
        drained |= phase == Phase::Drained;
        events.send(Event::Phase { reactor: number, phase });
    })?;
    if drained {
        close(reactor.into_core(), read);
    }
    Ok(())
}

/// Writes what makes the next start quick.
fn close(mut core: Core, clock: &mut dyn FnMut() -> Now) {
    let store = core.store.clone();
    core.drive(clock, async move { store.checkpoint_all().await });
}

fn open_checkpoints(
    core: &mut Core,
    storage: Chunks,
    clock: &mut dyn FnMut() -> Now,
) -> Result<checkpoint::Service<Chunks>, ReactorError> {
    let now = clock();
    let time = checkpoint::Clock { now_us: now.us, now_s: now.unix_s };
    // Seeded by the operating system: session names must differ from start to start.
    let rng = fastrand::Rng::new();
    let open = checkpoint::Service::open(storage, Limits::default(), rng, time);
    core.drive(clock, open).map_err(ReactorError::Checkpoints)
}

fn pin(core: usize) {
    let mut set = CpuSet::new();
    let pinned = set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = pinned {
        log::warn!("cannot pin a reactor to core {core} ({error}): it runs wherever it is put");
    }
}
