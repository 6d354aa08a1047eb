//! A reactor that has slept takes commands in by the time that it is, not by the time when it fell asleep.
#![expect(clippy::unwrap_used, reason = "a test: what fails, fails here")]

use bytes::Bytes;
use forebay_fabric::Status;
use forebay_fabric::client::{NamespaceId, Pipeline, Request};
use forebay_nvme::Arena;
use forebay_tests::drum::Drum;
use forebay_tests::house::{Blind, House, HouseConnector};
use forebay_tests::serving::{BRIEF, BRIEF_S};

const NAMESPACE: NamespaceId = NamespaceId(BRIEF);
const KEY: &[u8] = b"key";

fn ended(client: &mut Pipeline<HouseConnector<Blind>>) -> Status {
    let mut done = Vec::new();
    while done.is_empty() {
        client.poll(&mut done, 1_000).unwrap();
    }
    done[0].status
}

#[test]
fn a_value_that_expired_while_the_reactor_slept_is_not_found() {
    let (drum, memory) = (Drum::new(768 << 20), Arena::on_demand(64 << 20).unwrap().pool());
    let house = House::new(Box::new(drum.queue()), &memory, None, &Blind);
    let mut client = House::client(&house);
    let value = Bytes::from(vec![7; 4096]);
    client.submit(Request::store(NAMESPACE, KEY, value)).unwrap();
    assert_eq!(ended(&mut client), Status::Ok);
    client.submit(Request::retrieve(NAMESPACE, KEY, 0, 4096)).unwrap();
    assert_eq!(ended(&mut client), Status::Ok);
    client.submit(Request::retrieve(NAMESPACE, KEY, 0, 4096)).unwrap();
    house.borrow_mut().sleep(u64::from(BRIEF_S) + 1);
    assert_eq!(ended(&mut client), Status::NotFound);
}
