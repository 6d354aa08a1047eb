//! The journal's recovery table (`FORMAT.md`), every row of it: what lies at the place where the next page
//! is expected, against what lies behind it.

use forebay_fabric::Status;
use forebay_nvme::BLOCK_BYTES;
use forebay_tests::engine::StartError;
use forebay_tests::rig::{NAMESPACE, Rig, Shape};
use forebayd::store::format::journal_page::RingId;
use forebayd::store::format::{
    IndexHeader, JournalPage, JournalPageBuilder, Record, RecordKind, crc32c,
};
use forebayd::store::index::{Entry, Pointer};
use forebayd::store::{RecoveryError, key_hash};

const RING_PAGES: u64 = 64;
/// Runs: the one that wrote what is stale, the last one, and the one that is about to start.
const STALE: u64 = 3;
const LAST: u64 = 4;
const NEXT: u64 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Good,
    Torn,
    Blank,
    StaleEpoch,
    OlderLap,
    ForeignPool,
    ForeignShard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Later {
    None,
    SameBatch,
    NewBatch,
    /// Of a later run than the pages before the place.
    NewBatchOfNewEpoch,
    StaleEpoch,
    OlderLap,
    Torn,
    ForeignPool,
}

const PLACES: [Place; 7] = [
    Place::Good,
    Place::Torn,
    Place::Blank,
    Place::StaleEpoch,
    Place::OlderLap,
    Place::ForeignPool,
    Place::ForeignShard,
];
const LATERS: [Later; 8] = [
    Later::None,
    Later::SameBatch,
    Later::NewBatch,
    Later::NewBatchOfNewEpoch,
    Later::StaleEpoch,
    Later::OlderLap,
    Later::Torn,
    Later::ForeignPool,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    place: Place,
    later: Later,
    /// Good pages before the place.
    before: u64,
    /// How far behind the place the later page lies.
    distance: u64,
    /// The first page after the checkpoint.
    first: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The place's page is applied or not, the later one is or not, and the journal goes on at `end`.
    End { place: bool, later: bool, end: u64 },
    /// Acknowledged records are lost from page `sequence` on.
    Damage { sequence: u64 },
}

/// The table, as `FORMAT.md` has it.
fn verdict(case: Case) -> Verdict {
    let Case { place, later, before, distance, first } = case;
    let at = first + before;
    let is_good = place == Place::Good;
    let end = at + u64::from(is_good);
    let is_next = is_good && distance == 1;
    match later {
        Later::SameBatch | Later::NewBatch | Later::NewBatchOfNewEpoch if is_next => {
            Verdict::End { place: true, later: true, end: end + 1 }
        }
        Later::NewBatch | Later::NewBatchOfNewEpoch => Verdict::Damage { sequence: end },
        _ => Verdict::End { place: is_good, later: false, end },
    }
}

/// A device whose last three runs have ended, and what is needed to craft pages on it.
struct Craft {
    rig: Rig,
    ring: RingId,
}

impl Craft {
    fn new() -> Self {
        let mut rig = Rig::new(&Shape { journal_blocks: RING_PAGES, ..Shape::default() });
        // Format is generation 1, and each start raises it.
        rig.restart();
        rig.restart();
        rig.stop();
        let ring = RingId { pool: rig.superblock.tag(), shard: 0 };
        Self { rig, ring }
    }

    /// A put of an empty value under `name`, with `name`'s checksum as its token.
    fn page(
        &self,
        ring: RingId,
        name: &str,
        epoch: u64,
        sequence: u64,
        batch_first: u64,
    ) -> Vec<u8> {
        let mut page = vec![0; BLOCK_BYTES];
        let mut builder = JournalPageBuilder::default();
        let hash = key_hash(&self.rig.superblock.hash_key, NAMESPACE, name.as_bytes());
        let entry = Entry::new(Pointer {
            hash,
            namespace: NAMESPACE as u16,
            address: 0,
            length: 0,
            crc: 0,
            expiry_s: 0,
        });
        let kind = RecordKind::Put(entry);
        let record = Record { kind, token: token(name), key: name.as_bytes() };
        builder.push(&mut page, &record).expect("it fits");
        builder.seal(&mut page, ring, epoch, sequence, batch_first);
        page
    }

    fn put(&self, sequence: u64, page: &[u8]) {
        let block = self.rig.region.journal_block + sequence % RING_PAGES;
        self.rig.device.edit(block, |there| there.copy_from_slice(page));
    }

    /// The checkpoint that the tail begins at.
    fn checkpoint(&self, journal_sequence: u64) {
        let header = IndexHeader {
            generation: 1,
            journal_sequence,
            journal_epoch: LAST,
            entries: 0,
            pages: 0,
        };
        let block = self.rig.region.index_block[1];
        self.rig.device.edit(block, |there| header.encode(there, self.ring));
    }

    fn lay_out(&self, case: Case) {
        let Case { place, later, before, distance, first } = case;
        let RingId { pool, shard } = self.ring;
        let (other_pool, other_shard) =
            (RingId { pool: pool + 1, shard }, RingId { pool, shard: shard + 1 });
        self.checkpoint(first);
        for n in 0..before {
            let name = format!("before{n}");
            self.put(first + n, &self.page(self.ring, &name, LAST, first + n, first + n));
        }
        let at = first + before;
        let page = |ring, epoch, sequence| self.page(ring, "place", epoch, sequence, sequence);
        let good = page(self.ring, LAST, at);
        self.put(
            at,
            &match place {
                Place::Good => good,
                Place::Torn => torn(good),
                Place::Blank => vec![0; BLOCK_BYTES],
                Place::StaleEpoch => page(self.ring, STALE, at),
                Place::OlderLap => page(self.ring, LAST, at - RING_PAGES),
                Place::ForeignPool => page(other_pool, LAST, at),
                Place::ForeignShard => page(other_shard, LAST, at),
            },
        );
        let sequence = at + distance;
        let page = |ring, epoch, sequence, batch| self.page(ring, "later", epoch, sequence, batch);
        let good = page(self.ring, LAST, sequence, sequence);
        self.put(
            sequence,
            &match later {
                Later::None => vec![0; BLOCK_BYTES],
                Later::SameBatch => page(self.ring, LAST, sequence, at),
                Later::NewBatch => good,
                Later::NewBatchOfNewEpoch => page(self.ring, LAST + 1, sequence, sequence),
                Later::StaleEpoch => page(self.ring, STALE, sequence, sequence),
                Later::OlderLap => {
                    page(self.ring, LAST, sequence - RING_PAGES, sequence - RING_PAGES)
                }
                Later::Torn => torn(good),
                Later::ForeignPool => page(other_pool, LAST, sequence, sequence),
            },
        );
    }

    fn has(&self, name: &str) -> bool {
        self.rig.store().exist(NAMESPACE, name.as_bytes()) == Ok(0)
    }
}

fn token(name: &str) -> u64 {
    u64::from(crc32c(name.as_bytes()))
}

/// Its second half is what was there before.
fn torn(mut page: Vec<u8>) -> Vec<u8> {
    page[48..64].fill(0xff);
    page[BLOCK_BYTES / 2..].fill(0x5a);
    page
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for place in PLACES {
        for later in LATERS {
            for before in [0, 2] {
                for distance in [1, 3, 15] {
                    // In the middle of the ring, and over its end.
                    for first in [1000 * RING_PAGES + 10, 1000 * RING_PAGES + 62] {
                        cases.push(Case { place, later, before, distance, first });
                    }
                }
            }
        }
    }
    cases
}

fn recover(case: Case) {
    let mut craft = Craft::new();
    craft.lay_out(case);
    let started = craft.rig.start();
    let (place, later, end) = match verdict(case) {
        Verdict::Damage { sequence } => {
            let wanted = RecoveryError::Journal { shard: 0, sequence };
            let is_it = matches!(&started, Err(StartError::Recovery(error)) if *error == wanted);
            assert!(is_it, "{case:?}: {started:?}");
            return;
        }
        Verdict::End { place, later, end } => (place, later, end),
    };
    assert!(started.is_ok(), "{case:?}: {started:?}");
    // Twice: what the first start left alone must not be taken by the second, behind a new page.
    for restart in 0..2 {
        for n in 0..case.before {
            assert!(craft.has(&format!("before{n}")), "{case:?}");
        }
        assert_eq!(craft.has("place"), place, "{case:?}, restart {restart}");
        assert_eq!(craft.has("later"), later, "{case:?}, restart {restart}");
        if restart == 0 {
            assert_eq!(craft.rig.put(NAMESPACE, b"new", b"", 0), Ok(()));
            let block = craft.rig.region.journal_block + end % RING_PAGES;
            let bytes = craft.rig.device.peek(block);
            let page = JournalPage::parse(&bytes, craft.ring).expect("the new run's first page");
            let where_it_is = (page.sequence, page.batch_first, page.epoch);
            assert_eq!(where_it_is, (end, end, NEXT), "{case:?}");
            craft.rig.restart();
        }
        assert!(restart == 0 || craft.has("new"), "{case:?}");
    }
    let listed = craft.rig.list(NAMESPACE).expect("a listing").len() as u64;
    assert_eq!(listed, case.before + u64::from(place) + u64::from(later) + 1, "{case:?}");
}

#[test]
fn every_row_of_the_recovery_table_holds() {
    let cases = cases();
    assert_eq!(cases.len(), 7 * 8 * 2 * 3 * 2);
    cases.into_iter().for_each(recover);
}

/// The crash that the epoch is for: a run dies in a batch of three pages, of which the first is torn and
/// the others are whole; the next run writes one page over the torn one, and dies too.
#[test]
fn what_an_earlier_run_left_behind_the_first_page_of_a_new_run_is_not_applied() {
    let mut craft = Craft::new();
    craft.checkpoint(100);
    craft.put(100, &torn(craft.page(craft.ring, "torn", LAST, 100, 100)));
    craft.put(101, &craft.page(craft.ring, "unacknowledged", LAST, 101, 100));
    craft.put(102, &craft.page(craft.ring, "unacknowledged too", LAST, 102, 100));
    craft.rig.restart();
    assert_eq!(craft.rig.put(NAMESPACE, b"acknowledged", b"", 0), Ok(()));
    craft.rig.restart();
    let keys = craft.rig.list(NAMESPACE);
    assert_eq!(keys, Ok([b"acknowledged".to_vec()].into()));
    // Its token is not known either.
    let deleted = craft.rig.delete(NAMESPACE, b"none", token("unacknowledged"));
    assert_eq!(deleted, Ok(false));
}

#[test]
fn tokens_of_the_lap_before_are_known_and_those_of_pages_that_do_not_count_are_not() {
    let mut craft = Craft::new();
    craft.checkpoint(100);
    craft.put(100, &craft.page(craft.ring, "applied", LAST, 100, 100));
    craft.put(102, &craft.page(craft.ring, "stale", STALE, 102, 102));
    craft.put(
        103 - RING_PAGES,
        &craft.page(craft.ring, "lap", STALE, 103 - RING_PAGES, 103 - RING_PAGES),
    );
    craft.put(99, &craft.page(craft.ring, "covered", LAST, 99, 99));
    craft.rig.restart();
    for (name, is_known) in [("applied", true), ("lap", true), ("covered", true), ("stale", false)]
    {
        // A replayed delete is told that the key was there; a new one finds nothing.
        let deleted = craft.rig.delete(NAMESPACE, b"none", token(name));
        assert_eq!(deleted, Ok(is_known), "{name}");
    }
}

#[test]
fn records_are_applied_in_their_order_and_a_move_only_to_the_value_it_moved() {
    let mut craft = Craft::new();
    craft.checkpoint(7);
    let hash = |name: &[u8]| key_hash(&craft.rig.superblock.hash_key, NAMESPACE, name);
    let entry = |name: &[u8], address: u64, length: u32| {
        let (namespace, crc, expiry_s) = (NAMESPACE as u16, length, 0);
        Entry::new(Pointer { hash: hash(name), namespace, address, length, crc, expiry_s })
    };
    let (put, delete) = (RecordKind::Put, RecordKind::Delete);
    let moved = |from, to| RecordKind::Move { from, to };
    let records: [(RecordKind, &[u8]); 11] = [
        (put(entry(b"moved", 64, 10)), b"moved"),
        (moved(64, entry(b"moved", 128, 10)), b""),
        (put(entry(b"overwritten", 65, 11)), b"overwritten"),
        (put(entry(b"overwritten", 192, 12)), b"overwritten"),
        (moved(65, entry(b"overwritten", 129, 11)), b""),
        (put(entry(b"emptied", 0, 13)), b"emptied"),
        (put(entry(b"emptied", 0, 0)), b"emptied"),
        (moved(0, entry(b"emptied", 130, 13)), b""),
        (put(entry(b"deleted", 66, 14)), b"deleted"),
        (delete(hash(b"deleted")), b""),
        (moved(66, entry(b"deleted", 131, 14)), b""),
    ];
    let mut page = vec![0; BLOCK_BYTES];
    let mut builder = JournalPageBuilder::default();
    for (kind, key) in records {
        builder.push(&mut page, &Record { kind, token: 0, key }).expect("it fits");
    }
    builder.seal(&mut page, craft.ring, LAST, 7, 7);
    craft.put(7, &page);
    craft.rig.restart();
    let store = craft.rig.store();
    let length = |name: &[u8]| store.exist(NAMESPACE, name);
    assert_eq!(length(b"moved"), Ok(10));
    assert_eq!(length(b"overwritten"), Ok(12));
    assert_eq!(length(b"emptied"), Ok(0));
    assert_eq!(length(b"deleted"), Err(Status::NotFound));
    assert_eq!(store.keys(), 3);
}

#[test]
fn an_entry_that_points_out_of_its_segments_stops_the_start() {
    for (address, length) in [(64 * 64 * 24, 1), (64 * 64 - 1, 65), ((1 << 36) - 1, 1 << 20)] {
        let mut craft = Craft::new();
        craft.checkpoint(1);
        let hash = key_hash(&craft.rig.superblock.hash_key, NAMESPACE, b"key");
        let entry =
            Pointer { hash, namespace: NAMESPACE as u16, address, length, crc: 0, expiry_s: 0 };
        let kind = RecordKind::Put(Entry::new(entry));
        let mut page = vec![0; BLOCK_BYTES];
        let mut builder = JournalPageBuilder::default();
        builder.push(&mut page, &Record { kind, token: 0, key: b"key" }).expect("it fits");
        builder.seal(&mut page, craft.ring, LAST, 1, 1);
        craft.put(1, &page);
        let started = craft.rig.start();
        let wanted = RecoveryError::Entry { shard: 0 };
        let is_it = matches!(&started, Err(StartError::Recovery(error)) if *error == wanted);
        assert!(is_it, "{address}, {length}: {started:?}");
    }
}

#[test]
fn more_keys_than_the_index_holds_stop_the_start_with_a_hint() {
    let mut rig = Rig::new(&Shape::default());
    for n in 0..100u8 {
        assert_eq!(rig.put(NAMESPACE, &[n], b"value", 0), Ok(()));
    }
    rig.set_index_bytes(64 * 32);
    let started = rig.start();
    let is_it = matches!(&started, Err(StartError::Recovery(RecoveryError::IndexFull { .. })));
    assert!(is_it, "{started:?}");
    rig.set_index_bytes(1 << 20);
    rig.restart();
    assert_eq!(rig.list(NAMESPACE).map(|keys| keys.len()), Ok(100));
}
