//! A write that is sent again with its token is not done again: not after somebody else's write, not
//! after a restart, not while the first is still on its way.

use forebay_fabric::Status;
use forebay_nvme::BLOCK_BYTES;
use forebay_nvme::sim::Rule;
use forebay_tests::kv;
use forebay_tests::rig::{NAMESPACE, Rig, Shape, namespace, value};

#[test]
fn a_replayed_store_does_not_undo_what_came_after_it() {
    let mut rig = Rig::new(&Shape::default());
    for length in [0, 10, 5000, 100_000] {
        let (first, second) = (value(1, length), value(2, length + 1));
        let token = length as u64 + 1;
        assert_eq!(rig.put(NAMESPACE, b"key", &first, token), Ok(()));
        assert_eq!(rig.put(NAMESPACE, b"key", &second, 0), Ok(()));
        assert_eq!(rig.put(NAMESPACE, b"key", &first, token), Ok(()), "it was done");
        assert!(rig.get(NAMESPACE, b"key") == Ok(second.clone()), "{length}");
        rig.restart();
        assert_eq!(rig.put(NAMESPACE, b"key", &first, token), Ok(()), "after a restart");
        assert!(rig.get(NAMESPACE, b"key") == Ok(second.clone()), "{length}");
        assert_eq!(rig.delete(NAMESPACE, b"key", 0), Ok(true));
        rig.checkpoint();
        rig.crash(3);
        assert_eq!(rig.put(NAMESPACE, b"key", &first, token), Ok(()), "after a checkpoint");
        assert_eq!(rig.get(NAMESPACE, b"key"), Err(Status::NotFound), "{length}");
    }
}

#[test]
fn a_replayed_delete_says_again_what_it_found_and_deletes_nothing() {
    let mut rig = Rig::new(&Shape::default());
    assert_eq!(rig.delete(NAMESPACE, b"key", 1), Ok(false));
    assert_eq!(rig.put(NAMESPACE, b"key", b"first", 2), Ok(()));
    assert_eq!(rig.delete(NAMESPACE, b"key", 1), Ok(false), "it found nothing then");
    assert_eq!(rig.delete(NAMESPACE, b"key", 3), Ok(true));
    assert_eq!(rig.put(NAMESPACE, b"key", b"second", 4), Ok(()));
    assert_eq!(rig.delete(NAMESPACE, b"key", 3), Ok(true));
    rig.crash(1);
    assert_eq!(rig.delete(NAMESPACE, b"key", 3), Ok(true), "after a restart");
    assert_eq!(rig.get(NAMESPACE, b"key").as_deref(), Ok(&b"second"[..]));
}

#[test]
fn a_replay_while_the_first_is_on_its_way_is_done_once() {
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut rig = Rig::new(&Shape::default());
        let length = [0, 10, 5000, 100_000][rng.usize(..4)];
        let first = value(1, length);
        // Wherever the first waits: for its data, or for the journal.
        let slow =
            if rng.bool() { rig.region.segments_block } else { rig.region.journal_block + 1 };
        rig.device.add_rule(Rule::Delay { block: slow, delay_us: rng.u64(..5000) });
        let pauses: Vec<usize> = (0..6).map(|_| rng.usize(..40)).collect();
        let store = rig.store();
        let tasks = (0..6usize).map(|number| {
            let (store, first, pause) = (store.clone(), first.clone(), pauses[number]);
            async move {
                for _ in 0..pause {
                    store.context().ready.pass().await;
                }
                kv::store(&store, NAMESPACE, b"key", &first, 77).await
            }
        });
        let ended = rig.run_all(tasks.collect::<Vec<_>>(), 6);
        assert!(ended.iter().all(Result::is_ok), "seed {seed}: {ended:?}");
        let store = rig.store();
        let later = rig.run(async move {
            kv::store(&store, NAMESPACE, b"key", b"later", 78).await?;
            kv::store(&store, NAMESPACE, b"key", &first, 77).await
        });
        assert_eq!(later, Ok(()));
        assert_eq!(rig.get(NAMESPACE, b"key").as_deref(), Ok(&b"later"[..]), "seed {seed}");
        // One record each: the journal holds two tokens, and no third record.
        assert_eq!(puts_in_journal(&rig), 2, "seed {seed}");
    }
}

fn puts_in_journal(rig: &Rig) -> usize {
    use forebayd::store::format::JournalPage;
    use forebayd::store::format::journal_page::RingId;
    let ring = RingId { pool: rig.superblock.tag(), shard: 0 };
    let first = rig.region.journal_block;
    let pages = first..first + u64::from(rig.superblock.layout.journal_blocks);
    let records = |block| {
        let bytes: [u8; BLOCK_BYTES] = rig.device.peek(block);
        JournalPage::parse(&bytes, ring).map_or(0, |page| page.records().flatten().count())
    };
    pages.map(records).sum()
}

#[test]
fn a_replay_is_told_that_it_was_done_even_where_a_new_store_would_be_refused() {
    let mut rig = Rig::new(&Shape { segments: 8, segment_blocks: 16, ..Shape::default() });
    rig.add_namespace(20, namespace(Some(50_000), None));
    assert_eq!(rig.put(20, b"key", &value(1, 50_000), 9), Ok(()));
    assert_eq!(rig.put(20, b"other", &value(1, 50_000), 10), Err(Status::Quota));
    assert_eq!(rig.put(20, b"key", &value(1, 50_000), 9), Ok(()));
    assert_eq!(rig.put(NAMESPACE, b"last", &value(1, 50_000), 11), Ok(()));
    let full = (0..100u8).find(|n| rig.put(NAMESPACE, &[*n + 1], &value(1, 50_000), 0).is_err());
    assert!(full.is_some(), "the device is full");
    assert_eq!(rig.put(NAMESPACE, b"another", &value(1, 50_000), 0), Err(Status::NoSpace));
    assert_eq!(rig.put(NAMESPACE, b"last", &value(1, 50_000), 11), Ok(()));
}

/// Recovery read the ring from the journal's tail on, and the pages of the lap before last: their tokens
/// came in as the newest.
#[test]
fn the_newest_tokens_are_known_after_a_restart_whatever_the_ring_still_holds() {
    let mut rig = Rig::new(&Shape { journal_blocks: 256, ..Shape::default() });
    let mut token = 0;
    for round in 0..10 {
        let store = rig.store();
        let tasks = (0..2000u64).map(|number| {
            let (store, token) = (store.clone(), token + number + 1);
            async move { kv::delete(&store, NAMESPACE, b"none", token).await }
        });
        assert!(rig.run_all(tasks.collect::<Vec<_>>(), 64).iter().all(Result::is_ok));
        token += 2000;
        if round % 3 == 1 {
            rig.checkpoint();
        }
    }
    assert_eq!(rig.put(NAMESPACE, b"key", b"value", 0), Ok(()));
    rig.restart();
    for replayed in token - 1000..=token {
        let store = rig.store();
        let done = rig.run(async move { kv::delete(&store, NAMESPACE, b"key", replayed).await });
        assert_eq!(done, Ok(true));
    }
    assert_eq!(rig.get(NAMESPACE, b"key").as_deref(), Ok(&b"value"[..]));
}
