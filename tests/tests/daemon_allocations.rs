//! A command allocates nothing on its way through the daemon: counted on a reactor's own thread, over
//! real TCP, shared memory and io_uring, while a client in another thread keeps it busy.
#![expect(clippy::unwrap_used, reason = "a test: what fails, fails here")]

use bytes::Bytes;
use forebay_config::Listen;
use forebay_fabric::Status;
use forebay_fabric::client::{
    Address, ClientConfig, NamespaceId, Pipeline, Request, RetrieveItem, StoreItem,
};
use forebay_fabric::pdu::CAPSULE_BYTES_DEFAULT;
use forebay_fabric::server::{Server, ServerConfig};
use forebay_nvme::uring::UringDevice;
use forebay_nvme::{Arena, BlockQueue};
use forebayd::catalog;
use forebayd::mailbox;
use forebayd::reactor::{Clock, Core, Parts, Reactor};
use forebayd::runtime::listening::{Bound, Listening, Wire};
use forebayd::service::{Context, Setup};
use forebayd::store::geometry::FormatOptions;
use forebayd::store::pool::{self, Identity};
use forebayd::store::{Class, Namespace, Usage};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const NAMESPACE: NamespaceId = NamespaceId(16);
const KEYS: u64 = 64;
/// Commands before anything is counted: every buffer has grown to its size by then.
const WARM: u64 = 4_000;
/// Commands that are counted.
const COUNTED: u64 = 4_000;

/// A reactor that serves a blank device in `folder` to the clients of `bound`.
fn reactor(folder: &Path, clock: Clock, bound: Bound) -> Reactor<Wire> {
    let device = UringDevice::open(&folder.join("device"), Some(1 << 30)).unwrap();
    let memory = Arena::on_demand(64 << 20).unwrap().pool();
    let queues =
        || -> Vec<Box<dyn BlockQueue>> { vec![Box::new(device.queue(&memory, 128).unwrap())] };
    let identity =
        Identity { pool: [1; 16], devices: vec![[2; 16]], hash_key: [3; 16], created_s: 0 };
    // A journal so long that no index checkpoint falls into the time that is counted: it is no
    // command's, and sorts its keys in memory of its own.
    let options = FormatOptions { journal_bytes: Some(96 << 20), ..FormatOptions::default() };
    pool::format(&mut queues(), &memory, &identity, options).unwrap();
    let pool = pool::open(&mut queues(), &memory, 1).unwrap();
    let shard_map = vec![0; pool.shards() as usize];
    let parts = Parts {
        reactor: 0,
        reactors: 1,
        queues: queues(),
        memory: memory.clone(),
        pool,
        usage: Usage::default(),
        index_bytes: 8 << 20,
    };
    let read = &mut || clock.now();
    let mut core = Core::recover(parts, read).unwrap();
    let namespace = Namespace {
        name: "default".to_owned(),
        class: Class::Durable,
        quota_bytes: None,
        ttl_s: None,
    };
    let namespaces = core.drive(read, catalog::load(core.store.clone(), vec![namespace])).unwrap();
    let (seats, _) = mailbox::mesh(1).unwrap();
    let seat = seats.into_iter().next().unwrap();
    let setup = Setup {
        mailbox: Rc::new(seat.take(&core.ready)),
        namespaces,
        checkpoints: None,
        catalog_reactor: 0,
        listeners: 1,
        queue_depth: 64,
        slots: 256,
    };
    let cx = Context::new(&core, setup);
    let config = ServerConfig {
        queue_depth: 64,
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
        endpoints: vec![bound.endpoint],
    };
    let wire = bound.listening.serve(&config, cx.memory.pool()).unwrap();
    let server = Server::new(wire, config);
    Reactor::new(core, cx, vec![server])
}

/// What the client does over and over.
#[derive(Clone, Copy, Debug)]
enum Work {
    Store(usize),
    Retrieve(usize),
    StoreBatch(usize),
    RetrieveBatch(usize),
    DeleteAndExist,
}

fn submit(client: &mut Pipeline, work: Work, turn: u64, bytes: &Bytes) -> bool {
    let key = format!("key {}", turn % KEYS);
    let key = key.as_bytes();
    let request = match work {
        Work::Store(length) => Request::store(NAMESPACE, key, bytes.slice(..length)),
        Work::Retrieve(length) => Request::retrieve(NAMESPACE, key, 0, length as u32),
        Work::DeleteAndExist if turn.is_multiple_of(2) => Request::delete(NAMESPACE, key),
        Work::DeleteAndExist => Request::exist(NAMESPACE, key),
        Work::StoreBatch(length) => {
            let items = [0u8; 8].map(|_| StoreItem { key, data: bytes.slice(..length) });
            return client.submit(Request::store_batch(NAMESPACE, &items)).is_ok();
        }
        Work::RetrieveBatch(length) => {
            let item = RetrieveItem { key, offset: 0, length: length as u32 };
            let items = [0u8; 8].map(|_| RetrieveItem { ..item });
            return client.submit(Request::retrieve_batch(NAMESPACE, &items)).is_ok();
        }
    };
    client.submit(request).is_ok()
}

/// Keeps 32 commands in flight until told to stop.
fn load(address: Address, work: Work, ended: &AtomicU64, stop: &AtomicBool) {
    let mut client = Pipeline::connect(ClientConfig::new(vec![address])).unwrap();
    let bytes = Bytes::from(vec![7; 256 << 10]);
    let (mut done, mut turn) = (Vec::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        while client.in_flight() < 32 && submit(&mut client, work, turn, &bytes) {
            turn += 1;
        }
        client.poll(&mut done, 1_000).unwrap();
        for end in done.drain(..) {
            assert!(matches!(end.status, Status::Ok | Status::NotFound), "{}", end.status);
            client.recycle(end);
            ended.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn allocations(reactor: &mut Reactor<Wire>, clock: Clock, address: &Address, work: Work) -> u64 {
    let address = address.clone();
    let (ended, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let client = {
        let (ended, stop) = (ended.clone(), stop.clone());
        std::thread::spawn(move || load(address, work, &ended, &stop))
    };
    let mut tick_until = |count| {
        while ended.load(Ordering::Relaxed) < count && !client.is_finished() {
            if !reactor.tick(clock.now()) {
                std::thread::yield_now();
            }
        }
    };
    tick_until(WARM);
    let counted = allocation_counter::measure(|| tick_until(WARM + COUNTED));
    assert!(ended.load(Ordering::Relaxed) >= WARM + COUNTED, "{work:?}: the client gave up");
    stop.store(true, Ordering::Relaxed);
    while !client.is_finished() {
        reactor.tick(clock.now());
    }
    client.join().unwrap();
    counted.count_total
}

#[test]
fn commands_over_tcp_allocate_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let address = "127.0.0.1:0".parse().unwrap();
    let bound = Listening::bind(&Listen::Tcp { address, preference: 0 }, 0).unwrap();
    let address = bound.shown.parse().unwrap();
    nothing_is_allocated(folder.path(), bound, &address);
}

#[test]
fn commands_over_shared_memory_allocate_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shm");
    let address = Address::shm(&path);
    let bound = Listening::bind(&Listen::Shm { path, mode: 0o600 }, 0).unwrap();
    nothing_is_allocated(folder.path(), bound, &address);
}

fn nothing_is_allocated(folder: &Path, bound: Bound, address: &Address) {
    let clock = Clock::start();
    let mut reactor = reactor(folder, clock, bound);
    for work in [
        Work::Store(4096),
        Work::Retrieve(4096),
        Work::Store(100),
        Work::Retrieve(100),
        Work::Store(100_000),
        Work::Retrieve(100_000),
        Work::StoreBatch(1000),
        Work::RetrieveBatch(1000),
        Work::DeleteAndExist,
    ] {
        let count = allocations(&mut reactor, clock, address, work);
        assert_eq!(count, 0, "{work:?}: allocations in {COUNTED} commands");
    }
}
