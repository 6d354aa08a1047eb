//! A command over RDMA allocates nothing on its way through the daemon: counted inside of the reactor's
//! ticks, over simulated verbs, whose own work does not count.
#![expect(clippy::unwrap_used, reason = "a test: what fails, fails here")]

use bytes::Bytes;
use forebay_fabric::Status;
use forebay_fabric::client::{NamespaceId, Pipeline, Request, RetrieveItem, StoreItem};
use forebay_nvme::Arena;
use forebay_tests::drum::Drum;
use forebay_tests::house::{House, HouseConnector, Watch};
use std::cell::Cell;
use std::rc::Rc;

const NAMESPACE: NamespaceId = NamespaceId(16);
const KEYS: u64 = 64;
/// Commands before anything is counted: every buffer has grown to its size by then.
const WARM: u64 = 4_000;
/// Commands that are counted.
const COUNTED: u64 = 4_000;

/// Counts what ticks allocate.
#[derive(Clone, Debug, Default)]
struct Allocations(Rc<Cell<u64>>);

impl Watch for Allocations {
    fn tick(&self, tick: &mut dyn FnMut()) {
        let info = allocation_counter::measure(tick);
        self.0.set(self.0.get() + info.count_total);
    }

    fn card<T>(&self, work: impl FnOnce() -> T) -> T {
        let mut done = None;
        allocation_counter::opt_out(|| done = Some(work()));
        done.unwrap()
    }
}

type Client = Pipeline<HouseConnector<Allocations>>;

/// What the client does over and over.
#[derive(Clone, Copy, Debug)]
enum Work {
    Store(usize),
    Retrieve(usize),
    StoreBatch(usize),
    RetrieveBatch(usize),
    DeleteAndExist,
    /// What ends with an error: no such key, no such namespace, a range past the end.
    Errors,
}

fn submit(client: &mut Client, work: Work, turn: u64, bytes: &Bytes) -> bool {
    let key = format!("key {}", turn % KEYS);
    let key = key.as_bytes();
    let request = match work {
        Work::Store(length) => Request::store(NAMESPACE, key, bytes.slice(..length)),
        Work::Retrieve(length) => Request::retrieve(NAMESPACE, key, 0, length as u32),
        Work::DeleteAndExist if turn.is_multiple_of(2) => Request::delete(NAMESPACE, key),
        Work::DeleteAndExist => Request::exist(NAMESPACE, key),
        Work::Errors if turn.is_multiple_of(3) => Request::retrieve(NAMESPACE, b"none", 0, 4096),
        Work::Errors if turn % 3 == 1 => Request::store(NamespaceId(99), key, bytes.slice(..9000)),
        Work::Errors => Request::retrieve(NAMESPACE, key, 1 << 40, 4096),
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

/// Keeps 32 commands in flight until `count` have ended.
fn load(client: &mut Client, work: Work, count: u64, bytes: &Bytes) {
    let (mut done, mut turn, mut ended) = (Vec::new(), 0, 0);
    while ended < count || client.in_flight() > 0 {
        while ended < count && client.in_flight() < 32 && submit(client, work, turn, bytes) {
            turn += 1;
        }
        client.poll(&mut done, 1_000).unwrap();
        for end in done.drain(..) {
            let good = matches!(end.status, Status::Ok | Status::NotFound);
            assert!(good || matches!(work, Work::Errors), "{work:?}: {}", end.status);
            client.recycle(end);
            ended += 1;
        }
    }
}

#[test]
fn commands_over_rdma_allocate_nothing() {
    let (drum, watch) = (Drum::new(768 << 20), Allocations::default());
    let memory = Arena::on_demand(64 << 20).unwrap().pool();
    let house = House::new(Box::new(drum.queue()), &memory, None, &watch);
    let mut client = House::client(&house);
    let bytes = Bytes::from(vec![7; 256 << 10]);
    for work in [
        Work::Store(4096),
        Work::Retrieve(4096),
        Work::Store(100),
        Work::Retrieve(100),
        Work::Store(100_000),
        Work::Retrieve(100_000),
        Work::StoreBatch(1000),
        Work::RetrieveBatch(1000),
        Work::StoreBatch(8000),
        Work::RetrieveBatch(8000),
        Work::DeleteAndExist,
        Work::Errors,
    ] {
        load(&mut client, work, WARM, &bytes);
        watch.0.set(0);
        load(&mut client, work, COUNTED, &bytes);
        assert_eq!(watch.0.get(), 0, "{work:?}: allocations in {COUNTED} commands");
    }
}
