//! Several reactors in one thread, over a simulated network and simulated devices.
//!
//! Guarantees: with the same seed and the same calls a run replays exactly: reactors tick in an order
//! that the seed draws anew each round, and time moves only here. The code under test is the very
//! [`Reactor`] that production runs.
//!
//! A client in the same thread drives the reactors while it waits: [`SimConnector`].

use super::mail::Notice;
use super::{Core, Now, Parts, Reactor};
use crate::catalog::{self, Table};
use crate::checkpoint::{self, Limits};
use crate::mailbox;
use crate::runtime::thread::CATALOG_REACTOR;
use crate::service::{Chunks, Context, Setup};
use crate::store::geometry::FormatOptions;
use crate::store::pool::{self, Identity, OpenError};
use crate::store::{Namespace, RecoveryError, Usage};
use forebay_fabric::client::{Address, Connector, Slot};
use forebay_fabric::pdu::{CAPSULE_BYTES_DEFAULT, Endpoint};
use forebay_fabric::server::{Server, ServerConfig};
use forebay_fabric::stream::sim::{SimListener, SimNet, SimStream};
use forebay_fabric::stream::{StreamConfig, StreamTransport};
use forebay_nvme::sim::SimDevice;
use forebay_nvme::{Arena, ArenaError, BlockQueue, Buffer, PoolSeed};
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

/// The Unix time at which every simulation begins, in seconds.
const EPOCH_S: u64 = 1_700_000_000;
/// The longest step of the clock between two rounds, in microseconds.
const STEP_US: u64 = 50;

/// What to simulate.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Draws the order of ticks and the steps of the clock.
    pub seed: u64,
    /// How many reactors.
    pub reactors: u16,
    /// The devices; they outlive the daemon.
    pub devices: Vec<SimDevice>,
    /// Format them first.
    pub format: bool,
    /// How they are formatted.
    pub options: FormatOptions,
    /// The namespaces of the configuration.
    pub namespaces: Vec<Namespace>,
    /// Arena memory of each reactor, in bytes.
    pub memory_bytes: usize,
    /// What its DRAM tier has beside that, in bytes.
    pub tier_bytes: usize,
    /// DRAM for the indexes of each reactor, in bytes.
    pub index_bytes: usize,
    /// Commands in service on each reactor.
    pub slots: u16,
}

/// Why there is no simulation.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// No memory.
    #[error(transparent)]
    Memory(#[from] ArenaError),
    /// The pool.
    #[error(transparent)]
    Pool(#[from] OpenError),
    /// A shard.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] catalog::CatalogError),
    /// The network or the descriptors.
    #[error(transparent)]
    System(#[from] io::Error),
    /// The catalog of checkpoints.
    #[error(transparent)]
    Checkpoints(#[from] forebay_fabric::Status),
}

/// A simulated daemon.
#[derive(Debug)]
pub struct SimDaemon {
    reactors: Vec<Reactor<StreamTransport<SimListener, Buffer>>>,
    addresses: Vec<super::mail::Address>,
    net: SimNet,
    rng: fastrand::Rng,
    order: Vec<usize>,
}

/// Where reactor `reactor` listens on the simulated network.
#[must_use]
pub fn address(reactor: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7400 + reactor))
}

impl SimDaemon {
    /// Formats if asked to, opens the pool, recovers every reactor and lets them listen on `net`.
    ///
    /// # Errors
    /// [`SimError`].
    pub fn start(config: &SimConfig, net: &SimNet) -> Result<Self, SimError> {
        let mut rng = fastrand::Rng::with_seed(config.seed);
        let pool = open_pool(config, &mut rng)?;
        let (seats, addresses) = mailbox::mesh(config.reactors).map_err(io::Error::from)?;
        let memory_bytes = config.memory_bytes + config.tier_bytes;
        let memory = Arena::on_demand(memory_bytes * usize::from(config.reactors))?;
        let memory = memory.split(config.reactors.into());
        let (usage, mut table) = (Usage::default(), Table::default());
        let endpoints = (0..config.reactors).map(|n| Endpoint::tcp(n, address(n))).collect();
        let common = server_config(config, &pool, endpoints, &mut rng);
        let mut reactors = Vec::new();
        for ((seat, mut memory), reactor) in seats.into_iter().zip(memory).zip(0..) {
            let mut clock = || tick_clock(net);
            let parts = Parts {
                reactor,
                reactors: config.reactors,
                queues: queues(config),
                tier: memory.cut_off(config.tier_bytes).map(PoolSeed::into_pool),
                memory: memory.into_pool(),
                pool: pool.clone(),
                usage: usage.clone(),
                index_bytes: config.index_bytes,
            };
            let mut core = Core::recover(parts, &mut clock)?;
            let mailbox = Rc::new(seat.take(&core.ready));
            let mut checkpoints = None;
            if reactor == CATALOG_REACTOR {
                let load = catalog::load(core.store.clone(), config.namespaces.clone());
                table = core.drive(&mut clock, load)?;
                let storage = Chunks::new(core.store.clone(), mailbox.clone());
                let now = clock();
                let time = checkpoint::Clock { now_us: now.us, now_s: now.unix_s };
                let rng = fastrand::Rng::with_seed(rng.u64(..));
                let open = checkpoint::Service::open(storage, Limits::default(), rng, time);
                checkpoints = Some(Rc::new(core.drive(&mut clock, open)?));
            }
            let setup = Setup {
                mailbox,
                namespaces: table.clone(),
                checkpoints,
                catalog_reactor: CATALOG_REACTOR,
                listeners: 1,
                queue_depth: common.queue_depth,
                slots: config.slots,
            };
            let cx = Context::new(&core, setup);
            let transport =
                StreamTransport::new(net.listen(address(reactor))?, StreamConfig::default());
            let server = Server::new(transport, ServerConfig { reactor, ..common.clone() });
            reactors.push(Reactor::new(core, cx, vec![server]));
        }
        let order = (0..reactors.len()).collect();
        Ok(Self { reactors, addresses, net: net.clone(), rng, order })
    }

    /// One round: every reactor ticks once, in an order that the seed draws, and time goes on.
    /// `true` if any of them had something to do.
    pub fn step(&mut self) -> bool {
        self.rng.shuffle(&mut self.order);
        let now = now_of(&self.net);
        let mut busy = false;
        for reactor in &self.order {
            busy |= self.reactors[*reactor].tick(now);
        }
        self.net.advance(self.rng.u64(1..=STEP_US));
        busy
    }

    /// The reactors.
    #[must_use]
    pub fn reactors(&self) -> &[Reactor<StreamTransport<SimListener, Buffer>>] {
        &self.reactors
    }

    /// Tells every reactor.
    pub fn tell(&self, notice: &Notice) {
        for address in &self.addresses {
            assert!(address.notify(notice.clone()), "the reactors are all here");
        }
    }

    /// Ends in good order, once every reactor is drained: index checkpoints are written.
    pub fn close(self) {
        let net = self.net;
        for reactor in self.reactors {
            let mut core = reactor.into_core();
            let store = core.store.clone();
            core.drive(&mut || tick_clock(&net), async move { store.checkpoint_all().await });
        }
    }
}

fn now_of(net: &SimNet) -> Now {
    let us = net.now_us();
    Now { us, unix_s: EPOCH_S + us / 1_000_000 }
}

/// Reads the network's clock and moves it on: for one reactor that is driven alone.
fn tick_clock(net: &SimNet) -> Now {
    net.advance(STEP_US);
    now_of(net)
}

fn queues(config: &SimConfig) -> Vec<Box<dyn BlockQueue>> {
    let queue = |device: &SimDevice| -> Box<dyn BlockQueue> { Box::new(device.queue()) };
    config.devices.iter().map(queue).collect()
}

fn open_pool(config: &SimConfig, rng: &mut fastrand::Rng) -> Result<pool::Pool, SimError> {
    let memory = Arena::on_demand(8 << 20)?.pool();
    let mut queues = queues(config);
    if config.format {
        let mut bytes = || rng.u128(..).to_le_bytes();
        let identity = Identity {
            pool: bytes(),
            devices: config.devices.iter().map(|_| bytes()).collect(),
            hash_key: bytes(),
            created_s: EPOCH_S,
        };
        pool::format(&mut queues, &memory, &identity, config.options)?;
    }
    Ok(pool::open(&mut queues, &memory, config.reactors.into())?)
}

fn server_config(
    config: &SimConfig,
    pool: &pool::Pool,
    endpoints: Vec<Endpoint>,
    rng: &mut fastrand::Rng,
) -> ServerConfig {
    let reactors = u32::from(config.reactors);
    ServerConfig {
        queue_depth: 64,
        capsule_bytes: CAPSULE_BYTES_DEFAULT as u32,
        keep_alive_ms: 10_000,
        timeout_max_us: 60_000_000,
        connections_max: 64,
        pool: *pool.uuid(),
        incarnation: rng.u128(..).to_le_bytes(),
        reactor: 0,
        catalog_reactor: CATALOG_REACTOR,
        shard_map: (0..pool.shards()).map(|shard| (shard % reactors) as u16).collect(),
        reactors: config.reactors,
        endpoints,
    }
}

/// Connects a client in the same thread; while it waits, the daemon runs.
#[derive(Clone, Debug)]
pub struct SimConnector {
    /// The daemon; `None` while it is down.
    pub daemon: Rc<RefCell<Option<SimDaemon>>>,
    /// The network.
    pub net: SimNet,
}

impl Connector for SimConnector {
    type Stream = SimStream;

    fn connect(&mut self, address: &Address) -> io::Result<SimStream> {
        self.net.connect(address.tcp()?)
    }

    fn wait(&mut self, slots: &[Slot<SimStream>], timeout_us: u64) -> io::Result<()> {
        match self.daemon.borrow_mut().as_mut() {
            Some(daemon) => {
                daemon.step();
            }
            None => self.net.advance(timeout_us.clamp(1, STEP_US)),
        }
        slots.iter().for_each(|slot| slot.ready.set(true));
        Ok(())
    }

    fn now_us(&mut self) -> u64 {
        self.net.now_us()
    }
}
