//! Regions over byte streams and shared memory, simulated and real; and when connections break.

use crate::common;
use crate::support::{
    House, NS, SimConnector, ThreadHouse, bytes, client_config, connect, connect_with, finish,
};
use forebay_fabric::Status;
use forebay_fabric::client::{ClientConfig, Pipeline, Request};
use forebay_fabric::region::Region;
use forebay_fabric::stream::sim::SimProfile;

#[test]
fn regions_keep_their_promises_over_a_simulated_stream() {
    for (seed, profile) in [(1, SimProfile::kind()), (2, SimProfile::choppy())] {
        let house = House::new(seed, profile, 3);
        common::conform(connect(&house, seed), seed);
        assert_eq!(house.borrow().protocol_errors(), 0);
    }
}

#[test]
fn regions_keep_their_promises_over_tcp() {
    let house = ThreadHouse::tcp(2);
    let config = ClientConfig::new(house.addresses.clone());
    common::conform(Pipeline::connect(config).unwrap(), 3);
}

#[test]
fn regions_keep_their_promises_over_shared_memory() {
    let house = ThreadHouse::shm(2);
    let config = ClientConfig::new(house.addresses.clone());
    common::conform(Pipeline::connect(config).unwrap(), 4);
}

fn stored(pipeline: &mut Pipeline<SimConnector>, length: usize) -> Vec<u8> {
    let value = bytes(&mut fastrand::Rng::with_seed(9), length);
    let store = Request::store(NS, b"key", value.clone().into());
    assert_eq!(pipeline.call(store).unwrap().status, Status::Ok);
    value
}

#[test]
fn a_region_is_busy_after_a_timeout_until_the_late_answer() {
    let house = House::new(5, SimProfile::kind(), 1);
    let mut pipeline = connect(&house, 5);
    let value = stored(&mut pipeline, 200_000);
    // The answer has begun to arrive when the deadline passes.
    let slow = SimProfile { window_bytes: 10_000, delay_us: 3_000..=3_000, ..SimProfile::kind() };
    house.borrow().net.set_profile(slow);
    let region = Region::new(200_000).unwrap();
    let fragments = [region.whole()];
    let retrieve = Request::retrieve_into(NS, b"key", 0, &fragments).with_timeout_us(20_000);
    let done = pipeline.call(retrieve).unwrap();
    assert_eq!(done.status, Status::Timeout);
    assert!(!region.is_idle(), "the rest of the answer is still to come");
    assert!(region.view(0..1).is_err());
    let mut done = Vec::new();
    while !region.is_idle() {
        pipeline.poll(&mut done, 10_000).unwrap();
    }
    assert!(done.is_empty() && *region.view(0..200_000).unwrap() == value);
    assert_eq!(pipeline.counters().connection_errors, 0);
}

#[test]
fn a_region_is_taken_back_by_force_from_a_server_that_does_not_answer() {
    let house = House::new(6, SimProfile::kind(), 2);
    let mut pipeline = connect(&house, 6);
    let (region, other) = (Region::new(50_000).unwrap(), Region::new(50_000).unwrap());
    house.borrow().memory.borrow_mut().mute = true;
    let fragments = [region.whole()];
    let timed_out = Request::retrieve_into(NS, b"key", 0, &fragments).with_timeout_us(1_000);
    assert_eq!(pipeline.call(timed_out).unwrap().status, Status::Timeout);
    let mut done = Vec::new();
    pipeline.submit(Request::store_from(NS, b"key", &[region.whole()]).with_tag(1)).unwrap();
    pipeline.submit(Request::store_from(NS, b"key", &[other.whole()]).with_tag(2)).unwrap();
    pipeline.poll(&mut done, 5_000).unwrap();
    assert!(done.is_empty() && !region.is_idle());
    assert!(pipeline.reclaim(&region), "nobody holds it any more");
    assert!(region.is_idle() && !other.is_idle());
    pipeline.poll(&mut done, 0).unwrap();
    let ended: Vec<_> = done.drain(..).map(|done| (done.tag, done.status)).collect();
    assert_eq!(ended, [(1, Status::Cancelled)]);
    // What else was under way there is sent again.
    house.borrow().memory.borrow_mut().mute = false;
    finish(&mut pipeline, &mut done);
    let ended: Vec<_> = done.drain(..).map(|done| (done.tag, done.status)).collect();
    assert_eq!(ended, [(2, Status::Ok)]);
    assert!(pipeline.reclaim(&other) && pipeline.counters().replays >= 1);
}

#[test]
fn data_that_fails_its_checksum_ends_the_operation_and_says_so() {
    let house = House::new(7, SimProfile::kind(), 1);
    let mut pipeline = connect(&house, 7);
    stored(&mut pipeline, 100_000);
    house.borrow().memory.borrow_mut().corrupt = true;
    let region = Region::new(100_000).unwrap();
    let fragments = [region.whole()];
    let done = pipeline.call(Request::retrieve_into(NS, b"key", 0, &fragments)).unwrap();
    assert_eq!(done.status, Status::DataChecksum);
    assert!(region.is_idle());
    let done = pipeline.call(Request::retrieve_into(NS, b"key", 0, &fragments)).unwrap();
    assert_eq!((done.status, done.length), (Status::Ok, 100_000));
}

/// Stores and retrieves into regions while connections are cut anywhere: each ends once and right, and no
/// region stays busy.
#[test]
fn operations_on_regions_survive_connections_that_are_cut() {
    for seed in 0..40 {
        let rough = SimProfile { cut_per_million: 3_000, ..SimProfile::choppy() };
        let house = House::new(seed, SimProfile::choppy(), 2);
        let mut pipeline = connect_with(&house, client_config(seed)).unwrap();
        house.borrow().net.set_profile(rough);
        let mut rng = fastrand::Rng::with_seed(seed);
        for round in 0..12u8 {
            let value = bytes(&mut rng, 1 + usize::from(round) * 20_000);
            let from = Region::new(value.len()).unwrap();
            from.write(0, &value).unwrap();
            let (half, into) = (value.len() / 2, Region::new(value.len() + 10).unwrap());
            let fragments = [from.fragment(0..half), from.fragment(half..value.len())];
            let key = [round];
            let store = Request::store_from(NS, &key, &fragments);
            assert_eq!(pipeline.call(store).unwrap().status, Status::Ok, "seed {seed}");
            let fragments = [into.fragment(half..into.bytes()), into.fragment(0..half)];
            let retrieve = Request::retrieve_into(NS, &key, 0, &fragments);
            let done = pipeline.call(retrieve).unwrap();
            assert_eq!(done.status, Status::Ok, "seed {seed}");
            let (first, second) = value.split_at(value.len().min(into.bytes() - half));
            let found = common::read(&into);
            assert!(found[half..].starts_with(first) && found.starts_with(second), "seed {seed}");
            assert!(from.is_idle() && into.is_idle(), "seed {seed}");
        }
    }
}
