//! A daemon's reactor without a daemon: the service and the store of production, over whichever queue and
//! transport a test or a benchmark has.
//!
//! Guarantees: one reactor, one device, two namespaces ([`NAMESPACE`], and [`BRIEF`] whose values expire); the code under test is the very
//! [`Reactor`] that production runs, and it moves only when its owner ticks it.

use forebay_fabric::pdu::{CAPSULE_BYTES_DEFAULT, Endpoint};
use forebay_fabric::server::{Server, ServerConfig};
use forebay_fabric::transport::Transport;
use forebay_nvme::{BlockQueue, Buffer, Pool as Memory};
use forebayd::catalog;
use forebayd::mailbox;
use forebayd::reactor::{Core, Now, Parts, Reactor};
use forebayd::service::{Context, Setup};
use forebayd::store::geometry::FormatOptions;
use forebayd::store::pool::{self, Identity};
use forebayd::store::{Class, Namespace, Usage};
use std::rc::Rc;

/// The namespace for whatever a test does.
pub const NAMESPACE: u32 = 16;
/// The namespace whose values live [`BRIEF_S`] seconds.
pub const BRIEF: u32 = 17;
/// Seconds that a value of [`BRIEF`] is there.
pub const BRIEF_S: u32 = 2;
/// The most commands in flight on one connection.
pub const QUEUE_DEPTH: u16 = 64;
/// DRAM for the index, in bytes.
const INDEX_BYTES: usize = 8 << 20;

/// Formats the device behind `queue` and serves it, with a DRAM tier in `tier`, to the clients of the transport
/// that is made. The clock is read before every poll.
///
/// # Panics
/// When the device or the memory is too small.
#[must_use]
pub fn reactor<T: Transport<Buffer = Buffer>>(
    queue: Box<dyn BlockQueue>,
    memory: &Memory,
    tier: Option<Memory>,
    clock: &mut dyn FnMut() -> Now,
    transport: impl FnOnce(&ServerConfig) -> T,
    endpoint: Endpoint,
) -> Reactor<T> {
    let mut queues = vec![queue];
    let identity =
        Identity { pool: [1; 16], devices: vec![[2; 16]], hash_key: [3; 16], created_s: 0 };
    // A journal so long that no index checkpoint falls into the time that is counted: it is no
    // command's, and sorts its keys in memory of its own.
    let options = FormatOptions { journal_bytes: Some(96 << 20), ..FormatOptions::default() };
    pool::format(&mut queues, memory, &identity, options).expect("the device is large enough");
    let pool = pool::open(&mut queues, memory, 1).expect("it was just formatted");
    let shard_map = vec![0; pool.shards() as usize];
    let parts = Parts {
        reactor: 0,
        reactors: 1,
        queues,
        memory: memory.clone(),
        tier,
        pool,
        usage: Usage::default(),
        index_bytes: INDEX_BYTES,
    };
    let mut core = Core::recover(parts, clock).expect("an empty pool recovers");
    let cx = context(&mut core, clock);
    let config = config(shard_map, endpoint);
    Reactor::new(core, cx, vec![Server::new(transport(&config), config)])
}

fn context(core: &mut Core, clock: &mut dyn FnMut() -> Now) -> Rc<Context> {
    let namespace = |name: &str, ttl_s| Namespace {
        name: name.to_owned(),
        class: Class::Durable,
        quota_bytes: None,
        ttl_s,
    };
    let both = vec![namespace("default", None), namespace("brief", Some(BRIEF_S))];
    let load = catalog::load(core.store.clone(), both);
    let namespaces = core.drive(clock, load).expect("the catalog is written");
    let (seats, _) = mailbox::mesh(1).expect("descriptors for a mailbox");
    let seat = seats.into_iter().next().expect("one reactor, one seat");
    let setup = Setup {
        mailbox: Rc::new(seat.take(&core.ready)),
        namespaces,
        checkpoints: None,
        catalog_reactor: 0,
        listeners: 1,
        queue_depth: QUEUE_DEPTH,
        slots: 256,
    };
    Context::new(core, setup)
}

fn config(shard_map: Vec<u16>, endpoint: Endpoint) -> ServerConfig {
    ServerConfig {
        queue_depth: QUEUE_DEPTH,
        capsule_bytes: CAPSULE_BYTES_DEFAULT as u32,
        keep_alive_ms: 10_000,
        timeout_max_us: 60_000_000,
        connections_max: 16,
        pool: [1; 16],
        incarnation: [4; 16],
        reactor: 0,
        catalog_reactor: 0,
        shard_map,
        reactors: 1,
        endpoints: vec![endpoint],
    }
}
