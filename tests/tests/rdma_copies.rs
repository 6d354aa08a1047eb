//! Between a drive and a client's memory nothing is copied: over the NVMe driver on an emulated controller, and
//! simulated verbs. The very memory that the drive's DMA has filled is what the network card is told to send.

use bytes::Bytes;
use forebay_fabric::Status;
use forebay_fabric::client::{NamespaceId, Request, RetrieveItem, StoreItem};
use forebay_fabric::pdu::ItemResult;
use forebay_fabric::rdma::{Chain, Work};
use forebay_nvme::emulated::{EmulatedConfig, NamespaceConfig, Times};
use forebay_nvme::pcie::Options;
use forebay_nvme::{BlockQueue, Buffer, Completion, Geometry, Operation};
use forebay_tests::house::{House, Watch};
use forebay_tests::pcie::SteppedQueue;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

const NAMESPACE: NamespaceId = NamespaceId(16);

/// Addresses of memory: what the drive was told to fill and to write, and what the network card was told to
/// send and to fill.
#[derive(Clone, Debug, Default)]
struct Addresses {
    read: Rc<RefCell<BTreeSet<usize>>>,
    written: Rc<RefCell<BTreeSet<usize>>>,
    sent: Rc<RefCell<BTreeSet<usize>>>,
    pulled: Rc<RefCell<BTreeSet<usize>>>,
}

impl Addresses {
    fn forget(&self) {
        let Self { read, written, sent, pulled } = self;
        [read, written, sent, pulled].into_iter().for_each(|all| all.borrow_mut().clear());
    }
}

impl Watch for Addresses {
    fn post(&self, chain: &Chain<Buffer>) {
        let address = |piece: usize| {
            let piece = &chain.pieces()[piece];
            chain.buffers()[piece.buffer].as_ptr().addr() + piece.range.start
        };
        for step in chain.steps() {
            match &step.work {
                Work::Write { pieces, .. } => {
                    self.sent.borrow_mut().extend(pieces.clone().map(address));
                }
                Work::Read { piece, .. } => drop(self.pulled.borrow_mut().insert(address(*piece))),
                Work::Send { .. } => {}
            }
        }
    }
}

/// A drive's queue that notes which memory it is given.
struct Noted {
    queue: SteppedQueue,
    addresses: Addresses,
}

impl BlockQueue for Noted {
    fn geometry(&self) -> Geometry {
        self.queue.geometry()
    }

    fn submit(&mut self, request: forebay_nvme::Request) -> Result<(), forebay_nvme::Request> {
        match &request.operation {
            Operation::Read { buffer, .. } => {
                self.addresses.read.borrow_mut().insert(buffer.as_ptr().addr());
            }
            Operation::Write { buffer, .. } => {
                self.addresses.written.borrow_mut().insert(buffer.as_ptr().addr());
            }
            _ => {}
        }
        self.queue.submit(request)
    }

    fn poll(&mut self, now_us: u64, completions: &mut Vec<Completion>) -> usize {
        self.queue.poll(now_us, completions)
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }
}

type SharedHouse = Rc<RefCell<House<Addresses>>>;

fn house(addresses: &Addresses) -> SharedHouse {
    let namespaces = vec![NamespaceConfig::new(1, 196_608, 12)];
    let config = EmulatedConfig { times: Times::none(), namespaces, ..EmulatedConfig::default() };
    let queue = SteppedQueue::open(config, Options::default(), 128);
    let memory = queue.pool();
    House::new(Box::new(Noted { queue, addresses: addresses.clone() }), &memory, None, addresses)
}

/// What `work` makes the reactor copy.
fn copied(house: &SharedHouse, work: impl FnOnce()) -> u64 {
    let count = || house.borrow().reactor().context().bytes_copied();
    let before = count();
    work();
    count() - before
}

fn value(length: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(length as u64);
    (0..length).map(|_| rng.u8(..)).collect()
}

#[test]
fn a_retrieve_copies_nothing() {
    let addresses = Addresses::default();
    let house = house(&addresses);
    let mut client = House::client(&house);
    for length in [4096, 64 << 10, 1 << 20, 4 << 20] {
        let value = value(length);
        let store = Request::store(NAMESPACE, b"key", Bytes::from(value.clone()));
        assert_eq!(client.call(store).unwrap().status, Status::Ok);
        addresses.forget();
        let bytes = copied(&house, || {
            let retrieve = Request::retrieve(NAMESPACE, b"key", 0, length as u32);
            let done = client.call(retrieve).unwrap();
            assert!(done.status == Status::Ok && done.data == value, "{length} bytes");
        });
        assert_eq!(bytes, 0, "bytes copied in a retrieve of {length}");
        let (read, sent) = (addresses.read.borrow(), addresses.sent.borrow());
        assert!(!sent.is_empty(), "it was written to the client's memory");
        // A message may be split; each piece lies in the one buffer that the drive has filled.
        let first = sent.first().unwrap();
        assert!(read.contains(first), "another buffer than the drive's");
        assert!(sent.iter().all(|at| (*first..*first + length).contains(at)));
    }
}

#[test]
fn parts_of_values_and_batches_are_sent_from_where_the_drive_has_put_them() {
    let addresses = Addresses::default();
    let house = house(&addresses);
    let mut client = House::client(&house);
    let value = value(200_000);
    let store = Request::store(NAMESPACE, b"key", Bytes::from(value.clone()));
    assert_eq!(client.call(store).unwrap().status, Status::Ok);
    let bytes = copied(&house, || {
        // Unaligned, across checksum blocks.
        let done = client.call(Request::retrieve(NAMESPACE, b"key", 50_001, 77_777)).unwrap();
        assert!(done.data == value[50_001..127_778]);
        let items = [0, 70_000].map(|offset| RetrieveItem { key: b"key", offset, length: 9_999 });
        let done = client.call(Request::retrieve_batch(NAMESPACE, &items)).unwrap();
        assert!(done.item_data(0) == &value[..9_999]);
        assert!(done.item_data(1) == &value[70_000..79_999]);
    });
    assert_eq!(bytes, 0);
}

/// What a store copies: nothing if the server READs it; else once out of the capsule, and what is packed or
/// comes in a batch once more.
#[test]
fn a_store_copies_what_comes_in_the_capsule_and_what_is_packed() {
    let addresses = Addresses::default();
    let house = house(&addresses);
    let mut client = House::client(&house);
    let cases = [(64 << 10, 0), (1 << 20, 0), (4096, 4096), (100, 2 * 100)];
    for (length, expected) in cases {
        addresses.forget();
        let bytes = copied(&house, || {
            let store = Request::store(NAMESPACE, b"key", Bytes::from(value(length)));
            assert_eq!(client.call(store).unwrap().status, Status::Ok);
        });
        assert_eq!(bytes, expected, "bytes copied in a store of {length}");
        if expected == 0 {
            let (pulled, written) = (addresses.pulled.borrow(), addresses.written.borrow());
            assert!(written.contains(pulled.first().unwrap()), "what was READ is what is written");
        }
    }
    let bytes = copied(&house, || {
        let data = Bytes::from(value(8192));
        let items = [b"a", b"b", b"c"].map(|key| StoreItem { key, data: data.clone() });
        assert_eq!(
            client.call(Request::store_batch(NAMESPACE, &items)).unwrap().status,
            Status::Ok
        );
    });
    // Each of them once, as the drive wants it aligned; and their results, for which no memory was named.
    assert_eq!(bytes, 3 * 8192 + 3 * size_of::<ItemResult>() as u64);
}
