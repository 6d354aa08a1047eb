//! What a failing or lying device does to the store: the damage is found, it is said, and it stays where
//! it is.

use forebay_fabric::Status;
use forebay_nvme::BLOCK_BYTES;
use forebay_nvme::sim::{Rule, SimConfig};
use forebay_tests::engine::StartError;
use forebay_tests::kv;
use forebay_tests::rig::{NAMESPACE, Rig, Shape, value};
use forebayd::store::RecoveryError;

const LENGTHS: [usize; 6] = [20, 300, 4096, 60_000, 70_000, 200_000];

fn key(number: usize) -> Vec<u8> {
    format!("key/{number}").into_bytes()
}

/// Stores one value of each length, each alone in its blocks.
fn stored() -> Rig {
    let mut rig = Rig::new(&Shape::default());
    for (number, length) in LENGTHS.into_iter().enumerate() {
        assert_eq!(rig.put(NAMESPACE, &key(number), &value(number as u64, length), 0), Ok(()));
    }
    rig
}

/// Everything but key `bad` is as it was; `bad` fails with `status`.
fn only_is_bad(rig: &mut Rig, bad: usize, status: Status) {
    for (number, length) in LENGTHS.into_iter().enumerate() {
        let found = rig.get(NAMESPACE, &key(number));
        if number == bad {
            assert_eq!(found, Err(status), "of {length} bytes");
        } else {
            assert!(found == Ok(value(number as u64, length)), "{length} beside {bad}");
        }
    }
}

#[test]
fn bit_rot_in_a_value_is_found_and_stays_with_that_value() {
    for (bad, length) in LENGTHS.into_iter().enumerate() {
        for restart in [false, true] {
            let mut rig = stored();
            let first = rig.block_of(&value(bad as u64, length)).expect("it is on media");
            let blocks = length.div_ceil(BLOCK_BYTES);
            let (byte, bit) = (length / 2, 3);
            assert!(byte / BLOCK_BYTES < blocks);
            rig.device.flip_bit(first + (byte / BLOCK_BYTES) as u64, byte % BLOCK_BYTES * 8 + bit);
            if restart {
                rig.restart();
            }
            only_is_bad(&mut rig, bad, Status::Corrupt);
            // A new value takes its place, and the old one can be deleted.
            assert_eq!(rig.put(NAMESPACE, &key(bad), b"new", 0), Ok(()));
            assert_eq!(rig.get(NAMESPACE, &key(bad)).as_deref(), Ok(&b"new"[..]));
            assert_eq!(rig.delete(NAMESPACE, &key(bad), 0), Ok(true));
        }
    }
}

#[test]
fn bit_rot_in_a_long_value_spares_the_fragments_beside_it() {
    let mut rig = stored();
    let whole = value(5, 200_000);
    let first = rig.block_of(&whole).expect("it is on media");
    // Byte 50 000 lies in the checksum block that begins at 49 152.
    rig.device.flip_bit(first + 12, 848 * 8);
    for offset in (0..200_000).step_by(1000) {
        let found = rig.get_range(&key(5), offset as u64, 100);
        let is_hit = (offset..offset + 100).any(|byte| (49_152..65_536).contains(&byte));
        if is_hit {
            assert_eq!(found, Err(Status::Corrupt), "{offset}");
        } else {
            assert!(found.as_deref() == Ok(&whole[offset..offset + 100]), "{offset}");
        }
    }
}

#[test]
fn bit_rot_in_a_checksum_page_fails_the_whole_value_only() {
    let mut rig = stored();
    let first = rig.block_of(&value(5, 200_000)).expect("it is on media");
    // Even in a part of the page that no fragment needs.
    rig.device.flip_bit(first + 49, 4000 * 8);
    assert_eq!(rig.get_range(&key(5), 0, 1), Err(Status::Corrupt));
    assert_eq!(rig.get_range(&key(5), 199_999, 1), Err(Status::Corrupt));
    only_is_bad(&mut rig, 5, Status::Corrupt);
}

#[test]
fn a_block_that_cannot_be_read_fails_its_value_only() {
    for (bad, length) in LENGTHS.into_iter().enumerate() {
        let mut rig = stored();
        let block = rig.block_of(&value(bad as u64, length)).expect("it is on media");
        rig.device.add_rule(Rule::FailRead { block });
        only_is_bad(&mut rig, bad, Status::Device);
        rig.device.clear_rules();
        rig.device.add_rule(Rule::FailRead { block: block + length.div_ceil(BLOCK_BYTES) as u64 });
        let has_page = length > 65_536;
        if has_page {
            only_is_bad(&mut rig, bad, Status::Device);
        }
        rig.device.clear_rules();
        assert!(rig.get(NAMESPACE, &key(bad)) == Ok(value(bad as u64, length)), "it was passing");
    }
}

#[test]
fn lost_and_misdirected_writes_are_found_when_they_are_read() {
    for is_lost in [true, false] {
        let mut rig = Rig::new(&Shape::default());
        let near = value(1, 5 * BLOCK_BYTES);
        assert_eq!(rig.put(NAMESPACE, b"before", &near, 0), Ok(()));
        let first = rig.block_of(&near).expect("it is on media");
        rig.device.add_rule(match is_lost {
            true => Rule::LoseNextWrite { block: first + 5 },
            false => Rule::MisdirectNextWrite { block: first + 5, to: first + 2 },
        });
        assert_eq!(rig.put(NAMESPACE, b"bad", &value(2, 2 * BLOCK_BYTES), 0), Ok(()), "the lie");
        assert_eq!(rig.put(NAMESPACE, b"after", &near, 0), Ok(()));
        assert_eq!(rig.get(NAMESPACE, b"bad"), Err(Status::Corrupt));
        let before = rig.get(NAMESPACE, b"before");
        assert!(before == if is_lost { Ok(near.clone()) } else { Err(Status::Corrupt) });
        assert!(rig.get(NAMESPACE, b"after") == Ok(near));
    }
}

#[test]
fn a_failed_data_write_fails_its_store_and_changes_nothing() {
    for length in LENGTHS {
        let mut rig = Rig::new(&Shape::default());
        assert_eq!(rig.put(NAMESPACE, b"old", &value(1, length), 0), Ok(()));
        assert_eq!(rig.put(NAMESPACE, b"key", b"as it was", 0), Ok(()));
        for block in rig.region.segments_block..rig.region.segments_block + 200 {
            rig.device.add_rule(Rule::FailWrite { block });
        }
        assert_eq!(rig.put(NAMESPACE, b"key", &value(2, length), 5), Err(Status::Device));
        rig.device.clear_rules();
        assert_eq!(rig.get(NAMESPACE, b"key").as_deref(), Ok(&b"as it was"[..]));
        assert!(!rig.store().has_failed(), "one bad block is no reason to stop");
        assert_eq!(
            rig.put(NAMESPACE, b"key", &value(2, length), 5),
            Ok(()),
            "the same token again"
        );
        rig.restart();
        assert!(rig.get(NAMESPACE, b"key") == Ok(value(2, length)));
        assert!(rig.get(NAMESPACE, b"old") == Ok(value(1, length)));
    }
}

#[test]
fn after_a_failed_flush_or_journal_write_the_shard_takes_no_writes_until_a_restart() {
    for kind in 0..3 {
        let mut rig = stored();
        let sequence = LENGTHS.len() as u64 + 1;
        rig.device.add_rule(match kind {
            0 => Rule::FailNextFlush,
            1 => Rule::FailWrite { block: rig.region.journal_block + sequence },
            _ => Rule::FailWrite { block: rig.region.index_block[1] },
        });
        let mut possible = vec![Err(Status::NotFound)];
        if kind == 2 {
            rig.checkpoint();
        } else {
            assert_eq!(rig.put(NAMESPACE, b"new", b"value", 9), Err(Status::Device));
            // The page may have been written all the same.
            possible.push(Ok(b"value".to_vec()));
        }
        assert!(rig.store().has_failed());
        rig.device.clear_rules();
        assert_eq!(rig.put(NAMESPACE, b"other", b"value", 0), Err(Status::Device));
        assert_eq!(rig.put(NAMESPACE, b"other", &value(1, 5000), 0), Err(Status::Device));
        assert_eq!(rig.delete(NAMESPACE, &key(0), 0), Err(Status::Device));
        only_is_bad(&mut rig, usize::MAX, Status::Ok);
        rig.crash(kind);
        only_is_bad(&mut rig, usize::MAX, Status::Ok);
        assert!(possible.contains(&rig.get(NAMESPACE, b"new")), "{kind}");
        assert_eq!(rig.get(NAMESPACE, b"other"), Err(Status::NotFound));
        assert_eq!(rig.put(NAMESPACE, b"new", b"again", 0), Ok(()));
        assert_eq!(rig.get(NAMESPACE, b"new").as_deref(), Ok(&b"again"[..]));
    }
}

#[test]
fn everybody_who_waits_hears_of_a_failed_shard() {
    let mut rig = Rig::new(&Shape { segments: 8, segment_blocks: 16, ..Shape::default() });
    let store = rig.store();
    let fill =
        (0..40u64).map(|number| {
            let store = store.clone();
            async move {
                kv::store(&store, NAMESPACE, &key(number as usize), &value(number, 9000), 0).await
            }
        });
    rig.run_all(fill.collect::<Vec<_>>(), 8);
    for block in rig.region.journal_block..rig.region.journal_block + 64 {
        rig.device.add_rule(Rule::FailWrite { block });
    }
    let tasks =
        (0..64u64).map(|number| {
            let (store, length) = (store.clone(), [10, 9000, 60_000][number as usize % 3]);
            async move {
                kv::store(&store, NAMESPACE, &key(number as usize), &value(1, length), 0).await
            }
        });
    for ended in rig.run_all(tasks.collect::<Vec<_>>(), 64) {
        assert!(matches!(ended, Err(Status::Device | Status::NoSpace)), "{ended:?}");
    }
}

#[test]
fn the_cleaner_leaves_what_it_cannot_read_and_moves_the_rest() {
    for fails_to_read in [true, false] {
        let mut rig = Rig::new(&Shape { segments: 12, segment_blocks: 16, ..Shape::default() });
        // Values of a block and a half, in 85 of a hundred of the blocks; two of them go bad.
        let of = |number: usize, round: u64| value(round << 32 | number as u64, 6000);
        for number in 0..48 {
            assert_eq!(rig.put(NAMESPACE, &key(number), &of(number, 0), 0), Ok(()));
        }
        let bad = [2, 9];
        let before = rig.region.segments_block..rig.region.segments_block + 32;
        for number in bad {
            let block = rig.block_of(&of(number, 0)).expect("it is on media");
            match fails_to_read {
                true => rig.device.add_rule(Rule::FailRead { block }),
                false => rig.device.flip_bit(block, 77),
            }
        }
        // Every third of the others is overwritten again and again, so that their segments are cleaned.
        for round in 1..80 {
            for number in (0..48).filter(|number| number % 3 == 0 && !bad.contains(number)) {
                assert_eq!(
                    rig.put(NAMESPACE, &key(number), &of(number, round), 0),
                    Ok(()),
                    "{round}"
                );
            }
        }
        for neighbour in [1, 4, 8, 10] {
            let copies = rig.blocks_of(&of(neighbour, 0));
            assert!(copies.iter().any(|block| !before.contains(block)), "it was moved");
        }
        let status = if fails_to_read { Status::Device } else { Status::Corrupt };
        for restart in [false, true] {
            if restart {
                rig.restart();
            }
            for number in 0..48 {
                let round = if number % 3 == 0 && !bad.contains(&number) { 79 } else { 0 };
                let found = rig.get(NAMESPACE, &key(number));
                match bad.contains(&number) {
                    true => assert_eq!(found, Err(status)),
                    false => assert!(found == Ok(of(number, round)), "{number}"),
                }
            }
        }
    }
}

#[test]
fn a_damaged_index_checkpoint_stops_the_start_and_a_damaged_older_one_does_not() {
    let mut rig = stored();
    rig.checkpoint();
    assert_eq!(rig.put(NAMESPACE, b"one", b"more", 0), Ok(()));
    rig.checkpoint();
    let newest = rig.region.index_block[0];
    // The older one's pages may be anything: its area is the next to be written.
    rig.device.flip_bit(rig.region.index_block[1] + 1, 99);
    rig.restart();
    only_is_bad(&mut rig, usize::MAX, Status::Ok);
    rig.device.flip_bit(newest + 1, 99);
    assert!(matches!(
        rig.start().map_err(|error| match error {
            StartError::Recovery(error) => error,
            StartError::Open(error) => panic!("{error}"),
        }),
        Err(RecoveryError::Checkpoint { shard: 0, .. })
    ));
    rig.device.flip_bit(newest + 1, 99);
    rig.restart();
    only_is_bad(&mut rig, usize::MAX, Status::Ok);
    // Without its header, the journal that the older one would need has to be whole; it is.
    rig.device.flip_bit(newest, 99);
    rig.device.flip_bit(rig.region.index_block[1] + 1, 99);
    rig.restart();
    only_is_bad(&mut rig, usize::MAX, Status::Ok);
    assert_eq!(rig.get(NAMESPACE, b"one").as_deref(), Ok(&b"more"[..]));
}

#[test]
fn a_device_without_a_volatile_cache_is_not_flushed() {
    let device = SimConfig { volatile_write_cache: false, ..SimConfig::default() };
    let mut rig = Rig::new(&Shape { device, ..Shape::default() });
    for number in 0..20 {
        assert_eq!(rig.put(NAMESPACE, &key(number), &value(1, 5000), 0), Ok(()));
    }
    rig.checkpoint();
    assert_eq!(rig.device.counters().flushes, 0);
    rig.crash(5);
    for number in 0..20 {
        assert!(rig.get(NAMESPACE, &key(number)) == Ok(value(1, 5000)));
    }
}
