//! A command allocates nothing on its way through the daemon: counted on a reactor's own thread, over
//! real TCP, shared memory and io_uring, while a client in another thread keeps it busy.
#![expect(clippy::unwrap_used, reason = "a test: what fails, fails here")]

use bytes::Bytes;
use forebay_config::Listen;
use forebay_fabric::Status;
use forebay_fabric::client::{
    Address, ClientConfig, NamespaceId, Pipeline, Request, RetrieveItem, StoreItem,
};
use forebay_fabric::server::ServerConfig;
use forebay_nvme::uring::UringDevice;
use forebay_nvme::{Arena, Pool};
use forebay_tests::serving;
use forebayd::reactor::{Clock, Reactor};
use forebayd::runtime::listening::{Bound, Listening, Wire};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const NAMESPACE: NamespaceId = NamespaceId(16);
const KEYS: u64 = 64;
/// Commands before anything is counted: every buffer has grown to its size by then.
const WARM: u64 = 4_000;
/// Commands that are counted.
const COUNTED: u64 = 4_000;
/// So often, until there was no allocation.
const WINDOWS: u32 = 3;

/// A reactor that serves a blank device in `folder`, with a DRAM tier in `tier`, to the clients of `bound`.
fn reactor(folder: &Path, clock: Clock, bound: Bound, tier: Option<Pool>) -> Reactor<Wire> {
    let device = UringDevice::open(&folder.join("device"), Some(1 << 30)).unwrap();
    let memory = Arena::on_demand(64 << 20).unwrap().pool();
    let queue = Box::new(device.queue(&memory, 128).unwrap());
    let Bound { listening, endpoint, .. } = bound;
    let serve = |config: &ServerConfig| listening.serve(config, &memory).unwrap();
    serving::reactor(queue, &memory, tier, &mut || clock.now(), serve, endpoint)
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
    let mut until = WARM;
    let mut counted = || {
        until += COUNTED;
        let counted = allocation_counter::measure(|| tick_until(until));
        assert!(ended.load(Ordering::Relaxed) >= until, "{work:?}: the client gave up");
        counted.count_total
    };
    // A client that is kept from reading for longer than ever makes a queue grow, once.
    let mut fewest = counted();
    for _ in 1..WINDOWS {
        fewest = if fewest == 0 { 0 } else { counted() };
    }
    stop.store(true, Ordering::Relaxed);
    while !client.is_finished() {
        reactor.tick(clock.now());
    }
    client.join().unwrap();
    fewest
}

fn over_tcp(tier: Option<Pool>) {
    let folder = tempfile::tempdir().unwrap();
    let address = "127.0.0.1:0".parse().unwrap();
    let bound = Listening::bind(&Listen::Tcp { address, preference: 0 }, 0).unwrap();
    let address = bound.shown.parse().unwrap();
    nothing_is_allocated(folder.path(), bound, &address, tier);
}

#[test]
fn commands_over_tcp_allocate_nothing() {
    over_tcp(None);
}

/// It has room for all short values, and for a part of the long ones.
#[test]
fn commands_before_a_dram_tier_allocate_nothing() {
    over_tcp(Some(Arena::on_demand(4 << 20).unwrap().pool()));
}

#[test]
fn commands_over_shared_memory_allocate_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shm");
    let address = Address::shm(&path);
    let bound = Listening::bind(&Listen::Shm { path, mode: 0o600 }, 0).unwrap();
    nothing_is_allocated(folder.path(), bound, &address, None);
}

fn nothing_is_allocated(folder: &Path, bound: Bound, address: &Address, tier: Option<Pool>) {
    let clock = Clock::start();
    let mut reactor = reactor(folder, clock, bound, tier);
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
