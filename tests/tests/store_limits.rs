//! What the store does at its limits: a full device, a full index, keys and values at and over their
//! bounds, quotas, times to live, short memory. Everywhere: a clear status, nothing lost, and the
//! store is usable again when the reason is gone.

use forebay_fabric::Status;
use forebay_nvme::Arena;
use forebay_nvme::sim::{Latency, SimConfig};
use forebay_tests::kv;
use forebay_tests::rig::{NAMESPACE, Rig, Shape, namespace, value};
use forebayd::store::StoreRequest;

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

#[test]
fn values_of_every_edge_length_come_back_and_one_byte_more_than_the_limit_is_refused() {
    let mut rig = Rig::new(&Shape { segment_blocks: 64, ..Shape::default() });
    let limit = rig.store().value_bytes_max() as usize;
    assert_eq!(limit, 63 * 4096);
    let lengths = [
        0,
        1,
        63,
        64,
        65,
        4095,
        4096,
        4097,
        64 * KIB - 1,
        64 * KIB,
        64 * KIB + 1,
        limit - 1,
        limit,
    ];
    for length in lengths {
        let bytes = value(length as u64, length);
        assert_eq!(rig.put(NAMESPACE, b"key", &bytes, 0), Ok(()), "{length}");
        assert!(rig.get(NAMESPACE, b"key") == Ok(bytes), "{length}");
        assert_eq!(rig.store().exist(NAMESPACE, b"key"), Ok(length as u32));
    }
    let too_long = value(1, limit + 1);
    assert_eq!(rig.put(NAMESPACE, b"key", &too_long, 0), Err(Status::ValueLength));
    assert!(rig.get(NAMESPACE, b"key") == Ok(value(limit as u64, limit)), "it was left alone");
}

#[test]
fn ranges_are_cut_at_the_end_and_refused_past_it() {
    let mut rig = Rig::new(&Shape { segment_blocks: 64, ..Shape::default() });
    for length in [1, 100, 5000, 64 * KIB, 64 * KIB + 1, 100_000] {
        let bytes = value(7, length);
        assert_eq!(rig.put(NAMESPACE, b"key", &bytes, 0), Ok(()));
        let end = length as u64;
        for offset in [0, 1, end / 2, end - 1, end, end + 1, 16_384, 16_385, u64::MAX] {
            for count in [0, 1, 63, 4096, 16_384, u32::MAX] {
                let found = rig.get_range(b"key", offset, count);
                if offset >= end {
                    assert_eq!(found, Err(Status::Range), "{length}: {offset} + {count}");
                } else {
                    let wanted = offset as usize..(offset + u64::from(count)).min(end) as usize;
                    assert!(found.as_deref() == Ok(&bytes[wanted]), "{length}: {offset} + {count}");
                }
            }
        }
    }
    assert_eq!(rig.put(NAMESPACE, b"empty", b"", 0), Ok(()));
    assert_eq!(rig.get_range(b"empty", 0, 10), Ok(Vec::new()));
    assert_eq!(rig.get_range(b"empty", 1, 0), Err(Status::Range));
}

#[test]
fn keys_have_1_to_1024_bytes() {
    let mut rig = Rig::new(&Shape::default());
    for length in [0, 1025] {
        let key = vec![b'k'; length];
        assert_eq!(rig.put(NAMESPACE, &key, b"value", 0), Err(Status::KeyLength));
        assert_eq!(rig.get(NAMESPACE, &key), Err(Status::KeyLength));
        assert_eq!(rig.delete(NAMESPACE, &key, 0), Err(Status::KeyLength));
        assert_eq!(rig.store().exist(NAMESPACE, &key), Err(Status::KeyLength));
    }
    let keys: Vec<Vec<u8>> = [1, 2, 1023, 1024].iter().map(|length| vec![b'k'; *length]).collect();
    for key in &keys {
        assert_eq!(rig.put(NAMESPACE, key, key, 0), Ok(()));
    }
    for restart in 0..3 {
        for key in &keys {
            assert_eq!(rig.get(NAMESPACE, key).as_ref(), Ok(key));
        }
        assert_eq!(rig.list(NAMESPACE), Ok(keys.iter().cloned().collect()), "restart {restart}");
        rig.checkpoint();
        rig.restart();
    }
}

#[test]
fn what_does_not_exist_is_told_apart() {
    let mut rig = Rig::new(&Shape::default());
    assert_eq!(rig.get(NAMESPACE, b"none"), Err(Status::NotFound));
    assert_eq!(rig.delete(NAMESPACE, b"none", 0), Ok(false));
    assert_eq!(rig.put(17, b"key", b"value", 0), Err(Status::NoNamespace));
    assert_eq!(rig.get(17, b"key"), Err(Status::NoNamespace));
    assert_eq!(rig.delete(17, b"key", 0), Err(Status::NoNamespace));
    assert_eq!(rig.list(17), Err(Status::NoNamespace));
    assert_eq!(rig.put(70_000, b"key", b"value", 0), Err(Status::NoNamespace));
}

#[test]
fn a_value_that_does_not_match_its_checksum_is_not_stored() {
    let mut rig = Rig::new(&Shape::default());
    let store = rig.store();
    let stored = rig.run(async move {
        let mut buffer = store.context().buffer(4096).await;
        buffer[..5].copy_from_slice(b"value");
        let crc = forebayd::store::format::crc32c(b"valve");
        let request = StoreRequest {
            namespace: NAMESPACE,
            key: b"key",
            value: buffer,
            length: 5,
            crc,
            token: 0,
        };
        store.start_store(request).map(drop)
    });
    assert_eq!(stored, Err(Status::DataChecksum));
    assert_eq!(rig.get(NAMESPACE, b"key"), Err(Status::NotFound));
}

#[test]
fn a_full_index_refuses_new_keys_only_and_survives_restarts() {
    // 64 slots, of which 56 may be used.
    let mut rig = Rig::new(&Shape { index_bytes: 64 * 32, ..Shape::default() });
    let taken = fill(&mut rig, 0, 0, 100);
    assert_eq!(taken.len(), 56);
    for round in 1..50u64 {
        let taken_now = put_all(&mut rig, &taken, round, 100);
        assert_eq!(taken_now, taken, "overwrites need no room: round {round}");
        // Another key only for one that goes.
        let (old, new) = (taken[round as usize], 1000 + round);
        assert!(put_all(&mut rig, &[new], 0, 100).is_empty());
        delete_all(&mut rig, &[old]);
        assert_eq!(put_all(&mut rig, &[new], 0, 100), [new]);
        delete_all(&mut rig, &[new]);
        assert_eq!(put_all(&mut rig, &[old], round, 100), [old]);
        if round % 10 == 0 {
            rig.checkpoint();
        }
        if round % 7 == 0 {
            rig.crash(round);
        }
        verify_all(&mut rig, &taken, round, 100);
    }
}

#[test]
fn deletes_make_room_in_a_full_index_checkpoint_area() {
    // Eight pages of index with keys of 1000 bytes, under a journal that is far from half full.
    let shape = Shape { index_blocks: 8, journal_blocks: 256, ..Shape::default() };
    let mut rig = Rig::new(&shape);
    let long = |number: u64| format!("{number:01000}").into_bytes();
    let count = (0..).find(|n| rig.put(NAMESPACE, &long(*n), b"v", 0) == Err(Status::NoSpace));
    let count = count.expect("it becomes full");
    assert!((10..40).contains(&count), "{count}");
    for round in 0..30 {
        for n in 0..count {
            assert_eq!(rig.put(NAMESPACE, &long(n), b"overwrite", 0), Ok(()));
        }
        assert_eq!(rig.put(NAMESPACE, &long(count + round), b"v", 0), Err(Status::NoSpace));
        assert_eq!(rig.delete(NAMESPACE, &long(0), 0), Ok(true));
        assert_eq!(rig.put(NAMESPACE, &long(count + round), b"v", 0), Ok(()), "round {round}");
        assert_eq!(rig.delete(NAMESPACE, &long(count + round), 0), Ok(true));
        assert_eq!(rig.put(NAMESPACE, &long(0), b"v", 0), Ok(()), "round {round}");
        if round % 9 == 8 {
            rig.restart();
        }
    }
    assert_eq!(rig.list(NAMESPACE), Ok((0..count).map(long).collect()));
}

#[test]
fn a_quota_refuses_what_goes_beyond_it_and_nothing_else() {
    let mut rig = Rig::new(&Shape::default());
    rig.add_namespace(20, namespace(Some(10_000), None));
    assert_eq!(rig.put(20, b"a", &value(1, 6000), 1), Ok(()));
    assert_eq!(rig.put(20, b"b", &value(2, 4001), 2), Err(Status::Quota));
    assert_eq!(rig.put(20, b"b", &value(2, 4000), 3), Ok(()));
    assert_eq!(rig.put(20, b"c", b"!", 0), Err(Status::Quota));
    assert_eq!(rig.put(20, b"a", &value(3, 6000), 0), Ok(()), "an overwrite adds nothing");
    assert_eq!(rig.put(20, b"a", &value(3, 6001), 0), Err(Status::Quota));
    assert_eq!(rig.put(20, b"b", &value(2, 4000), 3), Ok(()), "a replay is what it was");
    assert_eq!(rig.put(NAMESPACE, b"c", &value(4, 20_000), 0), Ok(()), "another namespace");
    rig.restart();
    assert_eq!(rig.put(20, b"c", b"!", 0), Err(Status::Quota), "counted again after a restart");
    assert_eq!(rig.delete(20, b"b", 0), Ok(true));
    assert_eq!(rig.put(20, b"c", &value(5, 4000), 0), Ok(()));
    assert_eq!(rig.store().context().usage.bytes(20), 10_000);
}

#[test]
fn values_end_with_their_time_free_their_space_and_do_not_come_back() {
    let mut rig = Rig::new(&Shape::default());
    rig.add_namespace(20, namespace(None, Some(60)));
    assert_eq!(rig.put(NAMESPACE, b"stays", b"value", 0), Ok(()));
    for n in 0..50 {
        assert_eq!(rig.put(20, &key(n), &value(n, 10_000), 0), Ok(()));
    }
    rig.set_time(1_059);
    assert!(rig.get(20, &key(7)) == Ok(value(7, 10_000)));
    rig.set_time(1_060);
    assert_eq!(rig.get(20, &key(7)), Err(Status::NotFound));
    assert_eq!(rig.store().exist(20, &key(7)), Err(Status::NotFound));
    assert_eq!(rig.list(20), Ok(Default::default()));
    assert_eq!(rig.delete(20, &key(7), 0), Ok(false), "it is not there any more");
    // The sweep comes within half a minute.
    rig.set_time(1_100);
    rig.idle(50_000);
    assert_eq!(rig.store().keys(), 1);
    assert_eq!(rig.store().space_bytes().0, 64);
    assert_eq!(rig.store().context().usage.bytes(20), 0);
    for time_s in [1_101, 1_010] {
        rig.set_time(time_s);
        rig.crash(1);
        assert_eq!(rig.get(20, &key(7)), Err(Status::NotFound), "at {time_s}");
        assert_eq!(rig.list(20), Ok(Default::default()));
    }
    assert_eq!(rig.get(NAMESPACE, b"stays").as_deref(), Ok(&b"value"[..]));
}

/// An index checkpoint once left out what had expired. The key was overwritten before the sweep; then it
/// was in the index, but neither in the checkpoint nor in the key log: not in listings, and after the
/// next checkpoint a restart lost it.
#[test]
fn an_expired_key_that_is_stored_again_is_kept_by_the_next_checkpoints() {
    let mut rig = Rig::new(&Shape::default());
    rig.add_namespace(20, namespace(None, Some(5)));
    assert_eq!(rig.put(20, b"key", b"first", 0), Ok(()));
    rig.checkpoint();
    // It has expired, and the next sweep is not due yet.
    rig.set_time(1_010);
    assert_eq!(rig.put(NAMESPACE, b"other", b"", 0), Ok(()));
    rig.checkpoint();
    assert_eq!(rig.store().keys(), 2, "it was not swept");
    assert_eq!(rig.put(20, b"key", b"second", 0), Ok(()));
    assert_eq!(rig.list(20), Ok([b"key".to_vec()].into()));
    rig.checkpoint();
    rig.restart();
    assert_eq!(rig.get(20, b"key").as_deref(), Ok(&b"second"[..]));
    assert_eq!(rig.list(20), Ok([b"key".to_vec()].into()));
}

#[test]
fn operations_end_however_little_memory_there_is() {
    // A megabyte is left beside the shard's own buffers; twenty stores of a quarter each want it.
    let memory = Arena::on_demand(4 << 20).expect("4 MiB").pool();
    let shape = Shape { segment_blocks: 96, segments: 16, device: quick(), ..Shape::default() };
    let mut rig = Rig::with_memory(&shape, memory.clone());
    let mut rng = fastrand::Rng::with_seed(3);
    for round in 0..6u64 {
        let store = rig.store();
        let hold: Vec<_> = (0..8).map_while(|_| memory.alloc(256 * KIB)).collect();
        let tasks = (0..64u64).map(|number| {
            let (store, length, kind) = (store.clone(), rng.usize(1..250 * KIB), rng.u8(..4));
            async move {
                match kind {
                    0..2 => {
                        kv::store(&store, NAMESPACE, &key(number), &value(round, length), 0).await
                    }
                    2 => kv::retrieve(&store, NAMESPACE, &key(number)).await.map(drop),
                    _ => kv::list(&store, NAMESPACE, b"", 200 * KIB).await.map(drop),
                }
            }
        });
        for ended in rig.run_all(tasks.collect::<Vec<_>>(), 64) {
            let statuses = [Status::NotFound, Status::Busy, Status::NoSpace];
            assert!(ended.is_ok() || statuses.iter().any(|one| ended == Err(*one)), "{ended:?}");
        }
        drop(hold);
        rig.checkpoint();
    }
    let free = memory.free_bytes();
    rig.stop();
    assert!(
        memory.free_bytes() == memory.total_bytes() && free > 3 << 20,
        "{free} bytes were free"
    );
}
