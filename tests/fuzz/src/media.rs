//! Everything that is read from media: no input makes a parser panic, loop, or take memory by a number
//! that it has not checked; and what is accepted comes back from its own encoding.
#![no_main]

use forebay_fabric::checkpoint::{Attachment, Chunk, Dim, Dtype, Manifest, SessionId, TensorBox};
use forebay_fabric::pdu::crc32c;
use forebay_fuzz::{BLOCK_BYTES, Input, put_crc, write_seeds};
use forebayd::checkpoint::record::{CommitRecord, SessionRecord};
use forebayd::store::checksum;
use forebayd::store::format::journal_page::RingId;
use forebayd::store::format::{
    Copies, IndexHeader, IndexPage, IndexPageBuilder, JournalPage, JournalPageBuilder, Record,
    RecordKind, Superblock,
};
use forebayd::store::geometry::{FormatOptions, Layout};
use forebayd::store::index::{Entry, KeyHash, Pointer};
use libfuzzer_sys::fuzz_target;
use zerocopy::{FromZeros, IntoBytes};

const RING: RingId = RingId { pool: 0x0807_0605_0403_0201, shard: 3 };
const GENERATION: u64 = 6;
const PAGE: u32 = 2;

fuzz_target!(init: write_seeds(seeds), |data: &[u8]| {
    let Some(input) = Input::new(data) else { return };
    match input.structure {
        0 => superblock(&input),
        1 => journal_page(&input),
        2 => index_header(&input),
        3 => index_page(&input),
        4 => copies(&input),
        5 => checksum_page(&input),
        6 => manifest(&input),
        7 => commit_record(&input),
        8 => session_record(&input),
        _ => entry_words(&input),
    }
});

fn superblock(input: &Input<'_>) {
    let mut block = input.block();
    if input.reseal {
        reseal_superblock(&mut block);
    }
    let Ok(superblock) = Superblock::parse(&block) else { return };
    superblock.encode(&mut block);
    assert_eq!(Superblock::parse(&block), Ok(superblock.clone()));
    // What is accepted can be used: every shard lies on the device.
    for shard in [0, superblock.shards - 1] {
        let region = superblock.layout.shard(shard, superblock.device_count);
        assert!(region.segments_block < superblock.device_blocks);
        let data =
            u64::from(superblock.layout.segments) * u64::from(superblock.layout.segment_blocks);
        assert!(region.segments_block + data <= superblock.device_blocks);
    }
    for copy in 0..4 {
        assert!(
            Superblock::block_of_copy(copy, superblock.device_blocks) < superblock.device_blocks
        );
    }
}

fn reseal_superblock(block: &mut [u8]) {
    block[12..16].fill(0);
    put_crc(block, 12, 0..BLOCK_BYTES);
}

/// Four copies, each of which differs from the first in a few bytes that the input gives.
fn copies(input: &Input<'_>) {
    let (edits, bytes) = input.bytes.split_at(input.bytes.len().min(16));
    let first = Input { structure: 0, reseal: false, bytes }.block();
    let copy = |edit: &[u8]| {
        let mut block = first.clone();
        if let [at, high, value, reseal] = edit {
            block[usize::from(*at) | usize::from(high & 15) << 8] ^= value;
            if reseal & 1 == 1 {
                reseal_superblock(&mut block);
            }
        }
        Superblock::parse(&block)
    };
    let copies: Vec<_> = (0..4).map(|n| copy(edits.get(n * 4..n * 4 + 4).unwrap_or(&[]))).collect();
    let count = |one: &Superblock| copies.iter().flatten().filter(|other| *other == one).count();
    match Copies::new(copies.clone()).quorum() {
        Ok(agreed) => assert!(count(agreed) >= 2),
        Err(_) => assert!(copies.iter().flatten().all(|one| count(one) < 2)),
    }
}

fn journal_page(input: &Input<'_>) {
    let mut block = input.block();
    if input.reseal {
        put_crc(&mut block, 4, 8..BLOCK_BYTES);
    }
    let Ok(page) = JournalPage::parse(&block, RING) else { return };
    assert!(page.batch_first <= page.sequence);
    let records: Result<Vec<Record<'_>>, _> = page.records().collect();
    let Ok(records) = records else { return };
    let mut again = vec![0; BLOCK_BYTES];
    let mut builder = JournalPageBuilder::default();
    for record in &records {
        builder.push(&mut again, record).expect("it came out of a page");
    }
    builder.seal(&mut again, RING, page.epoch, page.sequence, page.batch_first);
    let page = JournalPage::parse(&again, RING).expect("our own page");
    assert!(page.records().map(|record| record.expect("our own record")).eq(records));
}

fn index_header(input: &Input<'_>) {
    let mut block = input.block();
    if input.reseal {
        put_crc(&mut block, 4, 8..BLOCK_BYTES);
    }
    let Ok(header) = IndexHeader::parse(&block, RING) else { return };
    header.encode(&mut block, RING);
    assert_eq!(IndexHeader::parse(&block, RING), Ok(header));
}

fn index_page(input: &Input<'_>) {
    let mut block = input.block();
    if input.reseal {
        put_crc(&mut block, 4, 8..BLOCK_BYTES);
    }
    let Ok(page) = IndexPage::parse(&block, RING, GENERATION, PAGE) else { return };
    let entries: Result<Vec<_>, _> = page.entries().collect();
    let Ok(entries) = entries else { return };
    let mut again = vec![0; BLOCK_BYTES];
    let mut builder = IndexPageBuilder::default();
    for (entry, key) in &entries {
        assert!(builder.push(&mut again, *entry, key), "it came out of a page");
    }
    builder.seal(&mut again, RING, GENERATION, PAGE);
    let page = IndexPage::parse(&again, RING, GENERATION, PAGE).expect("our own page");
    assert!(page.entries().map(|entry| entry.expect("our own entry")).eq(entries));
}

fn checksum_page(input: &Input<'_>) {
    let [a, b, c, d, value @ ..] = input.bytes else { return };
    let crc = u32::from_le_bytes([*a, *b, *c, *d]);
    let mut page = vec![0; BLOCK_BYTES];
    let right = checksum::fill_page(value, &mut page);
    assert_eq!(right.value, crc32c(value));
    assert_eq!(checksum::verify(value, 0, &page, right.page), Some(right.value));
    assert_eq!(checksum::verify(value, 0, &page, crc).is_some(), crc == right.page);
}

fn manifest(input: &Input<'_>) {
    let mut bytes = input.bytes.to_vec();
    if input.reseal && bytes.len() >= 80 {
        let body = (bytes.len() - 80) as u64;
        bytes[40..48].copy_from_slice(&body.to_le_bytes());
        let end = bytes.len();
        put_crc(&mut bytes, 72, 80..end);
        put_crc(&mut bytes, 76, 0..76);
    }
    let Ok(manifest) = Manifest::decode(&bytes) else { return };
    assert_eq!(manifest.encode(), bytes);
    assert_eq!(manifest.encoded_bytes(), bytes.len());
    let _ = (manifest.chunk_count(), manifest.data_bytes());
    for tensor in &manifest.tensors {
        let chunks = tensor.chunk_count();
        for nth in [0, chunks / 2, chunks.saturating_sub(1)] {
            if nth < chunks {
                assert!(tensor.chunk_length(nth) <= tensor.chunk_bytes);
            }
        }
    }
}

fn commit_record(input: &Input<'_>) {
    let (key, value) = input.bytes.split_at(input.bytes.len().saturating_sub(112));
    let mut value = value.to_vec();
    if input.reseal && value.len() == 112 {
        put_crc(&mut value, 108, 0..108);
    }
    let _ = CommitRecord::decode(key, &value);
}

fn session_record(input: &Input<'_>) {
    let mut value = input.bytes.to_vec();
    if input.reseal && value.len() >= 56 {
        let covered = [&value[..52], &value[56..]].concat();
        value[52..56].copy_from_slice(&crc32c(&covered).to_le_bytes());
    }
    if let Ok(record) = SessionRecord::decode(&value) {
        assert_eq!(SessionRecord::decode(&record.encode()), Ok(record));
    }
}

fn entry_words(input: &Input<'_>) {
    let Some(bytes) = input.bytes.first_chunk::<32>() else { return };
    let word = |n: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[n * 8 + byte]));
    let Some(entry) = Entry::from_words([word(0), word(1), word(2), word(3)]) else { return };
    let pointer = entry.pointer();
    assert_eq!(Entry::new(pointer).pointer(), pointer);
}

fn entry(number: u64) -> Entry {
    Entry::new(Pointer {
        hash: KeyHash::new(u128::from(number) << 70 | 7),
        namespace: 16,
        address: number * 64,
        length: 70_000,
        crc: 0x1234_5678,
        expiry_s: number as u32,
    })
}

fn seeds() -> Vec<(u8, Vec<u8>)> {
    let device_blocks = 1 << 20;
    let (layout, shards) =
        Layout::plan(device_blocks, 2, FormatOptions::default()).expect("4 GiB are enough");
    let superblock = Superblock {
        generation: 5,
        pool: std::array::from_fn(|n| n as u8 + 1),
        device: [9; 16],
        device_index: 1,
        device_count: 2,
        shards,
        device_blocks,
        layout,
        hash_key: [7; 16],
        created_s: 1_700_000_000,
    };
    let mut block = vec![0; BLOCK_BYTES];
    superblock.encode(&mut block);
    let four = [&[16, 0, 1, 0, 16, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0], &block[..]].concat();
    let mut seeds = vec![(0, block), (4, four)];

    let records = [
        Record { kind: RecordKind::Put(entry(1)), token: 11, key: b"run/1/layer/7" },
        Record { kind: RecordKind::Delete(KeyHash::new(99)), token: 12, key: b"" },
        Record { kind: RecordKind::Move { from: 64, to: entry(2) }, token: 0, key: b"" },
    ];
    let mut page = vec![0; BLOCK_BYTES];
    let mut builder = JournalPageBuilder::default();
    for record in &records {
        builder.push(&mut page, record).expect("it fits");
    }
    builder.seal(&mut page, RING, 5, 1000, 998);
    seeds.push((1, page));

    let header = IndexHeader {
        generation: GENERATION,
        journal_sequence: 900,
        journal_epoch: 5,
        entries: 2,
        pages: 1,
    };
    let mut block = vec![0; BLOCK_BYTES];
    header.encode(&mut block, RING);
    seeds.push((2, block));

    let mut page = vec![0; BLOCK_BYTES];
    let mut builder = IndexPageBuilder::default();
    for (number, key) in [(1, "a key"), (2, "another key"), (3, "k")] {
        assert!(builder.push(&mut page, entry(number), key.as_bytes()));
    }
    builder.seal(&mut page, RING, GENERATION, PAGE);
    seeds.push((3, page));

    seeds.push((5, b"....a value that has a checksum page".to_vec()));
    let manifest = Manifest {
        session: SessionId([5; 16]),
        epoch: 3,
        world: 2,
        attachments: vec![Attachment { rank: 1, bytes: b"text".to_vec() }],
        tensors: vec![TensorBox {
            name: "layer.weight".to_owned(),
            dtype: Dtype::F32,
            rank: 0,
            first_index: 0,
            chunk_bytes: 1 << 20,
            dims: vec![Dim::new(16, 8, 8), Dim::whole(4)],
            bytes: 128,
            chunks: vec![Chunk::new(128, 77)],
        }],
    };
    assert!(Manifest::decode(&manifest.encode()).is_ok(), "a seed that is one");
    seeds.push((6, manifest.encode()));
    let session = SessionRecord {
        name: "run/1".to_owned(),
        session: SessionId([5; 16]),
        epoch: 3,
        sequence: 4,
        deadline_ms: 1000,
        world: 2,
    };
    seeds.push((8, session.encode()));
    let mut commit = CommitRecord::new_zeroed();
    commit.parts = 1.into();
    commit.manifest_bytes = 100.into();
    let record = [&CommitRecord::key("run/1"), commit.sealed().as_bytes()].concat();
    seeds.push((7, record));
    seeds.push((9, entry(5).to_words().iter().flat_map(|word| word.to_le_bytes()).collect()));
    seeds
}
