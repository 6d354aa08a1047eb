//! What clients do, over RDMA: the same client and the same server as over TCP.

use crate::house::{House, connect};
use bytes::Bytes;
use forebay_fabric::Status;
use forebay_fabric::client::{Client, NamespaceId, Request, RetrieveItem, StoreItem, Target};
use forebay_fabric::pdu::Opcode;
use forebay_fabric::rdma::fake::FakeProfile;

const NS: NamespaceId = NamespaceId(16);

fn bytes(rng: &mut fastrand::Rng, length: usize) -> Vec<u8> {
    (0..length).map(|_| rng.u8(..)).collect()
}

#[test]
fn values_of_every_size_come_back() {
    let house = House::new(1, FakeProfile::kind());
    let mut client = Client::over(connect(&house, 1));
    let mut rng = fastrand::Rng::with_seed(1);
    for length in [0, 1, 100, 4096, 5000, 8192, 65_536, 65_537, 1 << 20, 4 << 20] {
        let value = bytes(&mut rng, length);
        client.store(NS, b"key", value.clone()).unwrap();
        assert_eq!(client.retrieve(NS, b"key").unwrap(), Some(value), "{length} bytes");
    }
    assert!(house.borrow().desk.pulled >= 5, "large values are read by the server");
    assert_eq!(client.retrieve(NS, b"none").unwrap(), None);
}

#[test]
fn an_answer_for_which_no_memory_was_named_comes_behind_the_response() {
    let house = House::new(2, FakeProfile::kind());
    let mut client = Client::over(connect(&house, 2));
    let answer = client
        .pipeline()
        .call(Request::command(Opcode::Stats, Target::Reactor(0), NS, b"", Bytes::new()))
        .unwrap();
    assert!(answer.status == Status::Ok && answer.data == [b'x'; 100_000]);
}

#[test]
fn batches_bring_every_item() {
    let house = House::new(3, FakeProfile::kind());
    let mut pipeline = connect(&house, 3);
    let mut rng = fastrand::Rng::with_seed(3);
    let values: Vec<(Vec<u8>, Vec<u8>)> = (0..200u32)
        .map(|number| {
            let length = rng.usize(0..40_000);
            (number.to_be_bytes().to_vec(), bytes(&mut rng, length))
        })
        .collect();
    let items: Vec<_> = values
        .iter()
        .map(|(key, value)| StoreItem { key, data: Bytes::copy_from_slice(value) })
        .collect();
    let done = pipeline.call(Request::store_batch(NS, &items)).unwrap();
    assert_eq!(done.status, Status::Ok);
    let items: Vec<_> = values
        .iter()
        .map(|(key, value)| RetrieveItem { key, offset: 0, length: value.len() as u32 })
        .collect();
    let done = pipeline.call(Request::retrieve_batch(NS, &items)).unwrap();
    for (index, (_, value)) in values.iter().enumerate() {
        assert!(done.item_data(index) == value, "item {index}");
    }
}

/// Doorbells and completions by count: what the hardware is asked to do.
#[test]
fn a_poll_rings_one_doorbell_and_few_completions_are_heard_of() {
    let house = House::new(4, FakeProfile { delay_us: 0, ..FakeProfile::kind() });
    let mut pipeline = connect(&house, 4);
    pipeline.call(Request::store(NS, b"key", Bytes::from(vec![7; 4096]))).unwrap();
    let count = || house.borrow().server.as_ref().unwrap().transport().provider().counters();
    let before = count();
    for _ in 0..32 {
        pipeline.submit(Request::retrieve(NS, b"key", 0, 4096)).unwrap();
    }
    let mut done = Vec::new();
    while pipeline.in_flight() > 0 {
        pipeline.poll(&mut done, 1_000_000).unwrap();
    }
    let after = count();
    assert!(done.iter().all(|done| done.data == vec![7; 4096]));
    let works = after.works - before.works;
    let (doorbells, heard) =
        (after.doorbells - before.doorbells, after.completions - before.completions);
    assert!((64..=68).contains(&works), "a WRITE and a SEND each, and credits: {works}");
    assert!(doorbells <= 6, "{doorbells} doorbells");
    assert!(heard <= doorbells + works / 32, "{heard} completions of {works} works");
}
