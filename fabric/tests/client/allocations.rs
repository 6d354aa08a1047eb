//! Operations on regions allocate nothing in the client, once as many have been in flight as ever will be:
//! counted on its thread, while the server works on another.

use crate::support::{NS, ThreadHouse};
use forebay_fabric::Status;
use forebay_fabric::client::{
    ClientConfig, Done, Pipeline, Request, RetrieveIntoItem, StoreFromItem,
};
use forebay_fabric::region::{Fragment, Region};

const WARM: usize = 300;
const COUNTED: usize = 1_000;
/// Operations in flight.
const DEPTH: usize = 8;
/// Items of a batch.
const ITEMS: usize = 8;

/// What the client does all the time.
#[derive(Clone, Copy, Debug)]
enum Work {
    Store(usize),
    Retrieve(usize),
    StoreBatch(usize),
    RetrieveBatch(usize),
}

/// Each operation's own fragments: for a value in two, for a batch one an item.
fn places(region: &Region) -> Vec<Vec<Fragment>> {
    let bytes = region.bytes() / (DEPTH * ITEMS);
    let place = |number: usize| region.fragment(number * bytes..(number + 1) * bytes);
    (0..DEPTH).map(|one| (0..ITEMS).map(|item| place(one * ITEMS + item)).collect()).collect()
}

fn keep_busy(pipeline: &mut Pipeline, region: &Region, work: Work) {
    let (places, keys) = (places(region), [[1u8], [2], [3], [4], [5], [6], [7], [8]]);
    let cut = |fragment: &Fragment, bytes: usize| {
        region.fragment(fragment.range().start..fragment.range().start + bytes)
    };
    let bytes = match work {
        Work::Store(bytes) | Work::Retrieve(bytes) => bytes / 2,
        Work::StoreBatch(bytes) | Work::RetrieveBatch(bytes) => bytes,
    };
    let cuts: Vec<Vec<_>> =
        places.iter().map(|all| all.iter().map(|place| cut(place, bytes)).collect()).collect();
    let stores: Vec<Vec<_>> = cuts
        .iter()
        .map(|all| {
            let items = keys.iter().zip(all);
            items.map(|(key, one)| StoreFromItem { key, fragment: one.clone() }).collect()
        })
        .collect();
    let retrieves: Vec<Vec<_>> = cuts
        .iter()
        .map(|all| {
            let item = |(key, one): (_, &Fragment)| RetrieveIntoItem {
                key,
                offset: 0,
                fragment: one.clone(),
            };
            keys.iter().map(|key| key.as_slice()).zip(all).map(item).collect()
        })
        .collect();
    let request = |number: usize| {
        let (one, key) = (number % DEPTH, &keys[number % DEPTH]);
        match work {
            Work::Store(_) => Request::store_from(NS, key, &cuts[one][..2]),
            Work::Retrieve(_) => Request::retrieve_into(NS, key, 0, &cuts[one][..2]),
            Work::StoreBatch(_) => Request::store_batch_from(NS, &stores[one]),
            Work::RetrieveBatch(_) => Request::retrieve_batch_into(NS, &retrieves[one]),
        }
    };
    let mut done: Vec<Done> = Vec::with_capacity(4 * DEPTH);
    let mut run = |pipeline: &mut Pipeline, count: usize| {
        let (mut sent, mut ended) = (0, 0);
        while ended < count {
            while sent < count && sent - ended < DEPTH {
                pipeline.submit(request(sent)).expect("few are in flight");
                sent += 1;
            }
            pipeline.poll(&mut done, 1_000_000).expect("a client polls");
            for one in done.drain(..) {
                assert_eq!(one.status, Status::Ok, "{work:?}");
                ended += 1;
                pipeline.recycle(one);
            }
        }
    };
    run(pipeline, WARM);
    let counted = allocation_counter::measure(|| run(pipeline, COUNTED));
    assert_eq!(counted.count_total, 0, "{work:?}: allocations in {COUNTED} operations");
}

fn nothing_is_allocated(house: &ThreadHouse) {
    let mut pipeline = Pipeline::connect(ClientConfig::new(house.addresses.clone())).unwrap();
    let region = Region::new(DEPTH * ITEMS * (256 << 10)).unwrap();
    for bytes in [100, 4096, 300_000] {
        keep_busy(&mut pipeline, &region, Work::Store(bytes));
        keep_busy(&mut pipeline, &region, Work::Retrieve(bytes));
    }
    for bytes in [100, 20_000] {
        keep_busy(&mut pipeline, &region, Work::StoreBatch(bytes));
        keep_busy(&mut pipeline, &region, Work::RetrieveBatch(bytes));
    }
}

#[test]
fn operations_on_regions_over_tcp_allocate_nothing() {
    nothing_is_allocated(&ThreadHouse::tcp(1));
}

#[test]
fn operations_on_regions_over_shared_memory_allocate_nothing() {
    nothing_is_allocated(&ThreadHouse::shm(1));
}
