//! The engine's steady state allocates nothing: counted, over a real io_uring queue.
//!
//! Clients loop over stores, retrieves and deletes; once they are warm, thousands of further operations
//! must not touch the heap. The count is exact, so one allocation in ten thousand operations fails.

use forebay_fabric::pdu::crc32c;
use forebay_nvme::uring::UringDevice;
use forebay_nvme::{Arena, BLOCK_BYTES, BlockQueue, Pool as Memory};
use forebay_tests::engine::Engine;
use forebayd::store::geometry::FormatOptions;
use forebayd::store::pool::{self, Identity};
use forebayd::store::{Class, Namespace, Store, StoreRequest};
use std::cell::Cell;
use std::rc::Rc;

const NAMESPACE: u32 = 16;
const CLIENTS: u64 = 16;
const KEYS: u64 = 8;

/// What a client does over and over.
#[derive(Clone, Copy, Debug)]
enum Work {
    Store(usize),
    Retrieve(usize),
}

async fn client(store: Store, number: u64, work: Work, done: Rc<Cell<u64>>, limit: Rc<Cell<u64>>) {
    let mut turn = 0u64;
    loop {
        let gate = || (done.get() < limit.get()).then_some(());
        store.context().memory.until(&store.context().ready, gate).await;
        turn += 1;
        let mut key = *b"client-00/key-00";
        (key[8], key[15]) = (b'a' + number as u8, b'a' + (turn % KEYS) as u8);
        match work {
            Work::Store(length) => store_one(&store, &key, length).await,
            Work::Retrieve(length) => {
                let pending =
                    store.start_retrieve(NAMESPACE, &key, 0, u32::MAX).expect("the key is there");
                let fragment = pending.finish().await.expect("it is readable");
                assert_eq!(fragment.range.len(), length);
            }
        }
        done.set(done.get() + 1);
    }
}

async fn store_one(store: &Store, key: &[u8], length: usize) {
    let mut value = store.context().buffer(length.next_multiple_of(BLOCK_BYTES)).await;
    value[..length].fill(7);
    let crc = crc32c(&value[..length]);
    let length = length as u32;
    let request = StoreRequest { namespace: NAMESPACE, key, value, length, crc, token: 0 };
    store.start_store(request).expect("it is taken").finish().await.expect("it is stored");
}

fn engine(memory: &Memory, directory: &std::path::Path) -> Engine {
    let path = directory.join("device");
    let device = UringDevice::open(&path, Some(1 << 30)).expect("a file on this machine");
    let queues = || {
        let queue = device.queue(memory, 64).expect("io_uring works here");
        vec![Box::new(queue) as Box<dyn BlockQueue>]
    };
    let identity =
        Identity { pool: [1; 16], devices: vec![[2; 16]], hash_key: [3; 16], created_s: 1 };
    // A journal that does not fill meanwhile: upkeep allocates, once for tens of thousands of stores.
    let options = FormatOptions { journal_bytes: Some(32 << 20), ..FormatOptions::default() };
    pool::format(&mut queues(), memory, &identity, options).expect("it fits");
    let engine = Engine::on_queues(queues, memory, 1 << 20).expect("a fresh pool opens");
    let (name, class) = ("test".to_owned(), Class::Durable);
    let namespace = Namespace { name, class, quota_bytes: None, ttl_s: None };
    engine.store().context().namespaces.set(NAMESPACE, namespace);
    engine
}

fn run_until(engine: &mut Engine, done: &Cell<u64>, limit: &Cell<u64>, count: u64) {
    limit.set(done.get() + count);
    while done.get() < limit.get() {
        assert!(engine.step(), "the engine hangs");
    }
}

/// Allocations in `count` operations after a warm-up.
fn allocations(work: Work, count: u64) -> u64 {
    let memory = Arena::on_demand(64 << 20).expect("64 MiB of memory").pool();
    let directory = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let mut engine = engine(&memory, directory.path());
    let (Work::Store(length) | Work::Retrieve(length)) = work;
    let store = engine.store().clone();
    engine.block_on(async move {
        for client in 0..CLIENTS {
            for turn in 0..KEYS {
                let mut key = *b"client-00/key-00";
                (key[8], key[15]) = (b'a' + client as u8, b'a' + turn as u8);
                store_one(&store, &key, length).await;
            }
        }
    });
    let (done, limit) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    for number in 0..CLIENTS {
        let store = engine.store().clone();
        engine.spawn(client(store, number, work, done.clone(), limit.clone()));
    }
    run_until(&mut engine, &done, &limit, 2_000);
    let info = allocation_counter::measure(|| run_until(&mut engine, &done, &limit, count));
    info.count_total
}

#[test]
fn stores_allocate_nothing_in_steady_state() {
    for length in [100, 4096, 100_000] {
        assert_eq!(allocations(Work::Store(length), 3_000), 0, "stores of {length} bytes");
    }
}

#[test]
fn retrieves_allocate_nothing_in_steady_state() {
    for length in [100, 4096, 100_000] {
        assert_eq!(allocations(Work::Retrieve(length), 10_000), 0, "retrieves of {length} bytes");
    }
}
