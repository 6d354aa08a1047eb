//! What the store does at its limits: a full device, a full index, keys and values at and over their
//! bounds, quotas, times to live, short memory. Everywhere: a clear status, nothing lost, and the
//! store is usable again when the reason is gone.

use forebay_fabric::Status;
use forebay_nvme::sim::{Latency, SimConfig};
use forebay_tests::kv;
use forebay_tests::rig::{NAMESPACE, Rig, Shape, value};

const KIB: usize = 1024;

fn key(number: u64) -> Vec<u8> {
    format!("key/{number}").into_bytes()
}

/// Stores value `version` of keys `numbers`, many at a time; which of them were taken.
fn put_all(rig: &mut Rig, numbers: &[u64], version: u64, length: usize) -> Vec<u64> {
    let store = rig.store();
    let tasks = numbers.iter().map(|number| {
        let (store, number) = (store.clone(), *number);
        async move {
            let bytes = value(number << 20 | version, length);
            kv::store(&store, NAMESPACE, &key(number), &bytes, 0).await
        }
    });
    // What is in flight takes room twice, the old and the new value.
    let at_a_time = (numbers.len() / 16).clamp(1, 32);
    let results = rig.run_all(tasks.collect::<Vec<_>>(), at_a_time);
    let taken = |(number, result): (&u64, &Result<(), Status>)| match result {
        Ok(()) => Some(*number),
        Err(Status::NoSpace) => None,
        Err(other) => panic!("key {number}: {other:?}"),
    };
    numbers.iter().zip(&results).filter_map(taken).collect()
}

fn verify_all(rig: &mut Rig, numbers: &[u64], version: u64, length: usize) {
    let store = rig.store();
    let tasks = numbers.iter().map(|number| {
        let (store, number) = (store.clone(), *number);
        async move {
            let found = kv::retrieve(&store, NAMESPACE, &key(number)).await;
            assert!(found == Ok(value(number << 20 | version, length)), "key {number}");
        }
    });
    rig.run_all(tasks.collect::<Vec<_>>(), 32);
}

fn delete_all(rig: &mut Rig, numbers: &[u64]) {
    let store = rig.store();
    let tasks = numbers.iter().map(|number| {
        let (store, number) = (store.clone(), *number);
        async move { assert_eq!(kv::delete(&store, NAMESPACE, &key(number), 0).await, Ok(true)) }
    });
    rig.run_all(tasks.collect::<Vec<_>>(), 32);
}

/// Stores keys from `first` on until there is no room; those that were taken.
fn fill(rig: &mut Rig, first: u64, version: u64, length: usize) -> Vec<u64> {
    let mut taken = Vec::new();
    for start in (first..).step_by(512) {
        let numbers: Vec<u64> = (start..start + 512).collect();
        let now = put_all(rig, &numbers, version, length);
        taken.extend(&now);
        if now.is_empty() {
            break;
        }
    }
    taken
}

fn quick() -> SimConfig {
    SimConfig {
        latency: Latency { flush_us: 20..60, ..Latency::default() },
        ..SimConfig::default()
    }
}

/// Blocks in a segment, segments, and a length of values: each with what it does to packing and to the
/// ends of segments.
const SIZES: [(u64, u64, usize); 10] = [
    (64, 10, 64),
    (64, 12, 100),
    (64, 24, 700),
    (64, 24, 2100),
    (64, 24, 3000),
    (16, 24, 4096),
    (16, 24, 5 * 4096),
    (16, 24, 9 * 4096),
    (64, 24, 64 * KIB + 1),
    (64, 24, 130 * KIB),
];

fn shape(segment_blocks: u64, segments: u64) -> Shape {
    Shape { segment_blocks, segments, index_blocks: 512, device: quick(), ..Shape::default() }
}

#[test]
fn a_full_device_says_so_and_takes_as_much_again_after_deletes() {
    for (segment_blocks, segments, length) in SIZES {
        let mut rig = Rig::new(&shape(segment_blocks, segments));
        let taken = fill(&mut rig, 0, 0, length);
        assert!(!taken.is_empty());
        verify_all(&mut rig, &taken, 0, length);
        // Every other one goes, and as many come back.
        let odd: Vec<u64> = taken.iter().copied().filter(|number| number % 2 == 1).collect();
        let even: Vec<u64> = taken.iter().copied().filter(|number| number % 2 == 0).collect();
        delete_all(&mut rig, &odd);
        let again = fill(&mut rig, 1 << 16, 1, length);
        assert!(again.len() * 20 >= odd.len() * 19, "{length}: {} of {}", again.len(), odd.len());
        verify_all(&mut rig, &even, 0, length);
        verify_all(&mut rig, &again, 1, length);
        delete_all(&mut rig, &even);
        delete_all(&mut rig, &again);
        let last = fill(&mut rig, 1 << 17, 2, length);
        assert!(last.len() * 20 >= taken.len() * 19, "{length}: {} of {}", last.len(), taken.len());
        rig.restart();
        verify_all(&mut rig, &last, 2, length);
        eprintln!("{length}: {} {} {}", taken.len(), again.len(), last.len());
    }
}

#[test]
fn overwrites_go_on_for_many_rounds_on_a_device_that_is_85_per_cent_full() {
    for (segment_blocks, segments, length) in SIZES {
        let mut rig = Rig::new(&shape(segment_blocks, segments));
        let full = fill(&mut rig, 0, 0, length).len() as u64;
        rig = Rig::new(&shape(segment_blocks, segments));
        let numbers: Vec<u64> = (0..full * 85 / 100).collect();
        for round in 0..12 {
            let mut order = numbers.clone();
            fastrand::Rng::with_seed(round).shuffle(&mut order);
            let taken = put_all(&mut rig, &order, round, length);
            assert_eq!(taken.len(), numbers.len(), "{length}: round {round}");
            if round % 4 == 3 {
                rig.crash(round);
            }
            verify_all(&mut rig, &numbers, round, length);
        }
    }
}

#[test]
fn a_full_and_idle_device_is_left_alone_by_the_cleaner() {
    for (segment_blocks, segments, length) in SIZES {
        let mut rig = Rig::new(&shape(segment_blocks, segments));
        fill(&mut rig, 0, 0, length);
        rig.idle(200_000);
        let before = rig.device.counters();
        rig.idle(200_000);
        let after = rig.device.counters();
        assert_eq!(
            after.writes, before.writes,
            "values of {length} bytes are moved without an end"
        );
    }
}
