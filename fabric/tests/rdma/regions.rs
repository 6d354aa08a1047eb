//! Regions over queue pairs: nothing is copied here, so that what a server does late could show.

use crate::common;
use crate::house::{FakeConnector, House, connect};
use forebay_fabric::Status;
use forebay_fabric::client::{NamespaceId, Pipeline, Request};
use forebay_fabric::rdma::fake::FakeProfile;
use forebay_fabric::region::Region;

const NS: NamespaceId = NamespaceId(16);

#[test]
fn regions_keep_their_promises_over_rdma() {
    let house = House::new(20, FakeProfile::kind());
    common::conform(connect(&house, 20), 20);
    assert_eq!(house.borrow().server.as_ref().unwrap().counters().protocol_errors, 0);
}

fn stored(pipeline: &mut Pipeline<FakeConnector>, length: usize) -> Vec<u8> {
    let value = common::bytes(&mut fastrand::Rng::with_seed(9), length);
    let store = Request::store(NS, b"key", value.clone().into());
    assert_eq!(pipeline.call(store).unwrap().status, Status::Ok);
    value
}

#[test]
fn values_land_without_a_copy_in_memory_that_is_registered_once() {
    let house = House::new(21, FakeProfile::kind());
    let mut pipeline = connect(&house, 21);
    let value = stored(&mut pipeline, 1 << 20);
    let net = house.borrow().net.clone();
    let (before, received) = (net.regions(), pipeline.counters().received_bytes);
    let region = Region::new(1 << 20).unwrap();
    for _ in 0..10 {
        let fragments = [region.whole()];
        let done = pipeline.call(Request::retrieve_into(NS, b"key", 0, &fragments)).unwrap();
        assert_eq!((done.status, done.length), (Status::Ok, 1 << 20));
        let done = pipeline.call(Request::store_from(NS, b"other", &fragments)).unwrap();
        assert_eq!(done.status, Status::Ok);
    }
    assert!(common::read(&region) == value);
    let received = pipeline.counters().received_bytes - received;
    assert!(received < 10_000, "{received} bytes came through the connection");
    assert_eq!(net.regions(), before + 1, "one registration, and no memory was lent");
    drop(region);
    assert_eq!(net.regions(), before, "it goes with its last handle");
}

#[test]
fn a_region_is_registered_up_front_and_once_for_all_connections_of_a_device() {
    let house = House::new(22, FakeProfile::kind());
    let mut pipeline = connect(&house, 22);
    let net = house.borrow().net.clone();
    let (before, region) = (net.regions(), Region::new(4096).unwrap());
    pipeline.register(&region).unwrap();
    pipeline.register(&region.clone()).unwrap();
    assert_eq!(net.regions(), before + 1);
    let mut other = connect(&house, 23);
    let lent = net.regions();
    other.register(&region).unwrap();
    assert_eq!(net.regions(), lent + 1, "another device has a registration of its own");
    let before = net.regions();
    drop(other);
    assert!(net.regions() < before);
    drop(pipeline);
    assert_eq!(net.regions(), 0, "no registration outlives its device");
}

/// A region in a seeded run.
struct Place {
    region: Region,
    /// What is in it, since it was idle.
    idle: Option<Vec<u8>>,
}

impl Place {
    /// What became idle stays as it is: no server writes there any more.
    fn check(&mut self, told: &str) {
        match &self.idle {
            Some(bytes) => {
                assert!(common::read(&self.region) == *bytes, "{told}: a late WRITE");
                assert!(self.region.is_idle(), "{told}: busy with nothing");
            }
            None if self.region.is_idle() => self.idle = Some(common::read(&self.region)),
            None => {}
        }
    }
}

/// A value of its own for each number, so that any mixture shows.
fn value(number: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(number);
    let length = if rng.u8(..4) == 0 { rng.usize(1..60_000) } else { rng.usize(1..9_000) };
    common::bytes(&mut rng, length)
}

/// One run: operations with deadlines that many miss, on regions that are used again as soon as they are
/// idle, while queue pairs fail, connections are cut and servers start anew.
fn run(seed: u64) -> usize {
    let house = House::new(seed, FakeProfile::kind());
    let mut rng = fastrand::Rng::with_seed(!seed);
    let mut pipeline = connect(&house, seed);
    house.borrow().net.set_profile(FakeProfile::rough());
    let places = (0..6).map(|_| Place { region: Region::new(64 << 10).unwrap(), idle: None });
    let mut places: Vec<_> = places.collect();
    let (mut done, mut late) = (Vec::new(), 0);
    for number in 0..80u64 {
        let told = format!("seed {seed}, operation {number}");
        let which = rng.usize(..places.len());
        places.iter_mut().for_each(|place| place.check(&told));
        let place = &mut places[which];
        let cut = if rng.bool() { 0 } else { rng.usize(0..=place.region.bytes()) };
        if place.idle.take().is_some() {
            let key = [rng.u8(..8)];
            let timeout_us = rng.u32(200..6_000);
            let sent = if rng.bool() {
                let value = value(number);
                place.region.write(0, &value).unwrap();
                let cut = cut.min(value.len());
                let fragments =
                    [place.region.fragment(0..cut), place.region.fragment(cut..value.len())];
                let request = Request::store_from(NS, &key, &fragments);
                pipeline.submit(request.with_timeout_us(timeout_us)).is_ok()
            } else {
                let end = place.region.bytes();
                let fragments = [place.region.fragment(0..cut), place.region.fragment(cut..end)];
                let request = Request::retrieve_into(NS, &key, 0, &fragments);
                let request = request.with_tag(1 + which as u64);
                pipeline.submit(request.with_timeout_us(timeout_us)).is_ok()
            };
            assert!(sent, "{told}: six are never too many");
        } else if rng.u8(..20) == 0 {
            assert!(pipeline.reclaim(&place.region), "{told}");
        }
        pipeline.poll(&mut done, rng.u64(..1_500)).expect("a client polls");
        for ended in done.drain(..) {
            late += usize::from(ended.status == Status::Timeout);
            let Some(place) = (ended.tag as usize).checked_sub(1) else { continue };
            if ended.status == Status::Ok {
                // Idle at once, and one of the values that were stored.
                let found = common::read(&places[place].region);
                let found = &found[..ended.length as usize];
                assert!((0..=number).any(|number| value(number) == found), "{told}: wrong bytes");
            }
            pipeline.recycle(ended);
        }
        if rng.u8(..60) == 0 {
            house.borrow_mut().start();
        }
    }
    places.iter().for_each(|place| assert!(pipeline.reclaim(&place.region), "seed {seed}"));
    drop((pipeline, places));
    crate::house::settle(&house, seed);
    late
}

#[test]
fn no_late_write_touches_memory_that_is_idle() {
    let one: Option<u64> = std::env::var("FOREBAY_SEED").ok().and_then(|text| text.parse().ok());
    let seeds = one.map_or(0..crate::house::runs() / 2, |seed| seed..seed + 1);
    let late: usize = seeds.clone().map(|seed| run(crate::house::Seed(seed).0)).sum();
    println!("{late} of {} operations missed their deadlines", 80 * seeds.count());
}
