//! Golden bytes: what is on media today must be read for ever. Each structure is pinned in full, in
//! both directions, and each single bit of it that turns over is refused.

use super::index_page::{IndexHeader, IndexPage, IndexPageBuilder};
use super::journal_page::{JournalPage, JournalPageBuilder, Record, RecordKind, RingId};
use super::superblock::Superblock;
use super::{FormatError, crc32c};
use crate::store::checksum;
use crate::store::geometry::Layout;
use crate::store::index::{Entry, KeyHash, Pointer};
use forebay_nvme::BLOCK_BYTES;

const RING: RingId = RingId { pool: 0x1716_1514_1312_1110, shard: 0x0102 };

/// A block that begins with the bytes in `hex` and goes on with zeroes.
fn block(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let digit = |at: usize| (digits[at] as char).to_digit(16).unwrap() as u8;
    let mut block: Vec<u8> =
        (0..digits.len()).step_by(2).map(|at| digit(at) << 4 | digit(at + 1)).collect();
    block.resize(BLOCK_BYTES, 0);
    block
}

/// Panics with the bytes in hex, so that a format that was changed on purpose can be pinned again.
fn assert_is(bytes: &[u8], golden: &str) {
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let rows = bytes[..used].chunks(16).map(|row| {
        let hex: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
        hex.join(" ")
    });
    assert!(bytes == block(golden), "now:\n{}", rows.collect::<Vec<_>>().join("\n"));
}

/// Turns each bit of `block` over, one at a time; `is_refused` says whether that was noticed.
fn each_flip(block: &mut [u8], is_refused: impl Fn(&[u8]) -> bool) {
    for bit in 0..block.len() * 8 {
        block[bit / 8] ^= 1 << (bit % 8);
        assert!(is_refused(block), "bit {} of byte {} is not noticed", bit % 8, bit / 8);
        block[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(!is_refused(block), "it is good itself");
}

fn superblock() -> Superblock {
    Superblock {
        generation: 0x0102_0304_0506_0708,
        pool: std::array::from_fn(|n| 0x10 + n as u8),
        device: std::array::from_fn(|n| 0x20 + n as u8),
        device_index: 2,
        device_count: 3,
        shards: 8,
        device_blocks: 0x10_0000,
        layout: Layout {
            data_block: 512,
            stride_blocks: 0x5_0000,
            journal_blocks: 0x100,
            index_blocks: 0x201,
            segment_blocks: 0x802,
            segments: 0x83,
        },
        hash_key: std::array::from_fn(|n| 0x30 + n as u8),
        created_s: 0x6543_2100,
    }
}

const SUPERBLOCK: &str = "
    46 4f 52 45 42 41 59 01 01 00 00 00 a3 a1 5e 61
    08 07 06 05 04 03 02 01 10 11 12 13 14 15 16 17
    18 19 1a 1b 1c 1d 1e 1f 20 21 22 23 24 25 26 27
    28 29 2a 2b 2c 2d 2e 2f 02 00 00 00 03 00 00 00
    08 00 00 00 00 10 00 00 00 00 10 00 00 00 00 00
    00 02 00 00 00 00 00 00 00 00 05 00 00 00 00 00
    00 01 00 00 01 02 00 00 02 08 00 00 83 00 00 00
    30 31 32 33 34 35 36 37 38 39 3a 3b 3c 3d 3e 3f
    00 21 43 65
";

#[test]
fn superblock_bytes_are_golden() {
    let mut bytes = vec![0xff; BLOCK_BYTES];
    superblock().encode(&mut bytes);
    assert_is(&bytes, SUPERBLOCK);
    assert_eq!(Superblock::parse(&bytes), Ok(superblock()));
    each_flip(&mut bytes, |bytes| Superblock::parse(bytes).is_err());
    assert_eq!(Superblock::parse(&bytes[1..]), Err(FormatError::Field("length")));
}

/// A superblock with bytes `at` set to `value`, under a good checksum.
fn resealed(at: usize, value: &[u8]) -> Result<Superblock, FormatError> {
    let mut bytes = block(SUPERBLOCK);
    bytes[at..at + value.len()].copy_from_slice(value);
    bytes[12..16].fill(0);
    let crc = crc32c(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    Superblock::parse(&bytes)
}

#[test]
fn superblocks_that_cannot_be_are_refused_under_a_good_checksum() {
    assert_eq!(resealed(0, &[]), Ok(superblock()));
    assert_eq!(resealed(8, &[2]), Err(FormatError::Version(2)));
    let field = |name| Err(FormatError::Field(name));
    assert_eq!(resealed(56, &[3]), field("device index"));
    assert_eq!(resealed(60, &[0]), field("device index"));
    assert_eq!(resealed(64, &[0]), field("shards"));
    assert_eq!(resealed(64, &[0, 0, 1]), field("shards"));
    assert_eq!(resealed(68, &[0, 32]), field("block size"));
    assert_eq!(resealed(72, &[0, 0, 0x0f]), field("device size"));
    assert_eq!(resealed(72, &[0; 8]), field("device size"));
    assert_eq!(resealed(80, &[0, 1]), field("shard slot"));
    assert_eq!(resealed(88, &[0xff; 8]), field("device size"));
    assert_eq!(resealed(88, &[0, 0, 1]), field("shard slot"));
    assert_eq!(resealed(96, &[63, 0]), field("journal or index size"));
    assert_eq!(resealed(100, &[3, 0]), field("journal or index size"));
    assert_eq!(resealed(104, &[3, 0]), field("segments"));
    assert_eq!(resealed(108, &[7]), field("segments"));
    assert_eq!(resealed(96, &[0xff; 16]), field("segments"));
}

fn entry() -> Entry {
    Entry::new(pointer())
}

fn pointer() -> Pointer {
    Pointer {
        hash: KeyHash::new(0x0102_0304_0506_0708_090a_0b0c_0d0e),
        namespace: 0x1f2e,
        address: 0x9_8765_4321,
        length: 0x0a_bcde,
        crc: 0x1122_3344,
        expiry_s: 0x5566_7788,
    }
}

#[test]
fn entry_words_are_golden() {
    let words = [
        0x0708_090a_0b0c_0d0e,
        0x1f2e_0102_0304_0506,
        0x80ab_cde9_8765_4321,
        0x5566_7788_1122_3344,
    ];
    assert_eq!(entry().to_words(), words);
    assert_eq!(Entry::from_words(words).map(|entry| entry.pointer()), Some(pointer()));
    // Bits 60 to 62 of the third word are not in use yet; the page that holds it guards them.
    for bit in (0..256).filter(|bit| !(128 + 60..128 + 63).contains(bit)) {
        let mut flipped = words;
        flipped[bit / 64] ^= 1 << (bit % 64);
        let other = Entry::from_words(flipped).map(|entry| entry.pointer());
        assert_ne!(other, Some(pointer()), "bit {bit}");
        assert_eq!(other.is_none(), bit == 128 + 63, "bit {bit}");
    }
}

fn records() -> [Record<'static>; 4] {
    let hash = KeyHash::new(0xf1f2_f3f4_f5f6_f7f8_f9fa_fbfc_fdfe);
    [
        Record { kind: RecordKind::Put(entry()), token: 0xa1a2_a3a4_a5a6_a7a8, key: b"a key" },
        Record { kind: RecordKind::Delete(hash), token: 0xb1b2_b3b4_b5b6_b7b8, key: b"" },
        Record { kind: RecordKind::Move { from: 0x7_6543_2109, to: entry() }, token: 0, key: b"" },
        Record { kind: RecordKind::Put(entry()), token: 1, key: b"8 bytes." },
    ]
}

const JOURNAL_PAGE: &str = "
    46 42 4a 31 34 9c 21 a1 10 11 12 13 14 15 16 17
    06 05 00 00 00 00 00 00 0d 0c 0b 0a 00 00 00 00
    0a 0c 0b 0a 00 00 00 00 02 01 04 00 f0 00 00 00
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
    01 00 05 00 00 00 00 00 a8 a7 a6 a5 a4 a3 a2 a1
    0e 0d 0c 0b 0a 09 08 07 06 05 04 03 02 01 2e 1f
    21 43 65 87 e9 cd ab 80 44 33 22 11 88 77 66 55
    00 00 00 00 00 00 00 00 61 20 6b 65 79 00 00 00
    02 00 00 00 00 00 00 00 b8 b7 b6 b5 b4 b3 b2 b1
    fe fd fc fb fa f9 f8 f7 f6 f5 f4 f3 f2 f1 00 00
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
    00 00 00 00 00 00 00 00 03 00 00 00 00 00 00 00
    00 00 00 00 00 00 00 00 0e 0d 0c 0b 0a 09 08 07
    06 05 04 03 02 01 2e 1f 21 43 65 87 e9 cd ab 80
    44 33 22 11 88 77 66 55 09 21 43 65 07 00 00 00
    01 00 08 00 00 00 00 00 01 00 00 00 00 00 00 00
    0e 0d 0c 0b 0a 09 08 07 06 05 04 03 02 01 2e 1f
    21 43 65 87 e9 cd ab 80 44 33 22 11 88 77 66 55
    00 00 00 00 00 00 00 00 38 20 62 79 74 65 73 2e
";

fn journal_page() -> Vec<u8> {
    let mut page = vec![0xff; BLOCK_BYTES];
    let mut builder = JournalPageBuilder::default();
    let keys: Vec<_> =
        records().iter().map(|record| builder.push(&mut page, record).unwrap()).collect();
    assert_eq!(keys, [120, 184, 240, 296]);
    builder.seal(&mut page, RING, 0x0506, 0x0a0b_0c0d, 0x0a0b_0c0a);
    page
}

#[test]
fn journal_page_bytes_are_golden() {
    let mut bytes = journal_page();
    assert_is(&bytes, JOURNAL_PAGE);
    let page = JournalPage::parse(&bytes, RING).unwrap();
    assert_eq!((page.epoch, page.sequence, page.batch_first), (0x0506, 0x0a0b_0c0d, 0x0a0b_0c0a));
    let found: Vec<_> = page.records().map(Result::unwrap).collect();
    assert_eq!(found, records());
    each_flip(&mut bytes, |bytes| JournalPage::parse(bytes, RING).is_err());
    for other in [RingId { pool: 1, ..RING }, RingId { shard: 1, ..RING }] {
        assert_eq!(JournalPage::parse(&bytes, other).map(drop), Err(FormatError::Foreign));
    }
    let short = JournalPage::parse(&bytes[1..], RING).map(drop);
    assert_eq!(short, Err(FormatError::Field("length")));
}

/// A journal page with bytes `at` set to `value`, under a good checksum.
fn resealed_journal(at: usize, value: &[u8]) -> Result<Vec<RecordKind>, FormatError> {
    let mut bytes = journal_page();
    bytes[at..at + value.len()].copy_from_slice(value);
    let crc = crc32c(&bytes[8..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    let page = JournalPage::parse(&bytes, RING)?;
    page.records().map(|record| record.map(|record| record.kind)).collect()
}

#[test]
fn journal_records_that_cannot_be_are_refused_under_a_good_checksum() {
    let field = |name| Err(FormatError::Field(name));
    assert_eq!(resealed_journal(8, &[]).map(|records| records.len()), Ok(4));
    assert_eq!(resealed_journal(32, &[0xff]), field("batch"));
    assert_eq!(resealed_journal(42, &[5]), field("record length"), "a fifth record");
    assert_eq!(resealed_journal(44, &[0xff, 0xff]), field("used"));
    assert_eq!(resealed_journal(44, &[100, 0]), field("record length"), "cut in the second");
    assert_eq!(resealed_journal(44, &[60, 0]), field("key length"), "cut in the first key");
    assert_eq!(resealed_journal(64, &[0]), field("record kind"));
    assert_eq!(resealed_journal(64, &[4]), field("record kind"));
    assert_eq!(resealed_journal(66, &[0xff, 0xff]), field("key length"));
    assert_eq!(resealed_journal(64 + 16 + 23, &[0]), field("entry"), "an entry not in use");
}

const INDEX_HEADER: &str = "
    46 42 58 31 a0 6a 6c b2 10 11 12 13 14 15 16 17
    01 00 00 00 02 01 00 00 04 03 02 01 00 00 00 00
    14 13 12 11 00 00 00 00 22 21 00 00 00 00 00 00
    34 33 32 31 00 00 00 00 42 41
";

#[test]
fn index_header_bytes_are_golden() {
    let header = IndexHeader {
        generation: 0x0102_0304,
        journal_sequence: 0x1112_1314,
        journal_epoch: 0x2122,
        entries: 0x3132_3334,
        pages: 0x4142,
    };
    let mut bytes = vec![0xff; BLOCK_BYTES];
    header.encode(&mut bytes, RING);
    assert_is(&bytes, INDEX_HEADER);
    assert_eq!(IndexHeader::parse(&bytes, RING), Ok(header));
    each_flip(&mut bytes, |bytes| IndexHeader::parse(bytes, RING).is_err());
    for other in [RingId { pool: 1, ..RING }, RingId { shard: 1, ..RING }] {
        assert_eq!(IndexHeader::parse(&bytes, other), Err(FormatError::Foreign));
    }
    bytes[16] = 2;
    let crc = crc32c(&bytes[8..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(IndexHeader::parse(&bytes, RING), Err(FormatError::Version(2)));
    let short = IndexHeader::parse(&bytes[1..], RING);
    assert_eq!(short, Err(FormatError::Field("length")));
}

const INDEX_PAGE: &str = "
    46 42 45 31 bb 1f 9b 2e 10 11 12 13 14 15 16 17
    04 03 02 01 00 00 00 00 06 05 00 00 02 01 03 00
    73 00 00 00 00 00 00 00 0e 0d 0c 0b 0a 09 08 07
    06 05 04 03 02 01 2e 1f 21 43 65 87 e9 cd ab 80
    44 33 22 11 88 77 66 55 05 00 61 20 6b 65 79 0e
    0d 0c 0b 0a 09 08 07 06 05 04 03 02 01 2e 1f 21
    43 65 87 e9 cd ab 80 44 33 22 11 88 77 66 55 07
    00 61 6e 6f 74 68 65 72 0e 0d 0c 0b 0a 09 08 07
    06 05 04 03 02 01 2e 1f 21 43 65 87 e9 cd ab 80
    44 33 22 11 88 77 66 55 01 00 6b
";

#[test]
fn index_page_bytes_are_golden() {
    let mut bytes = vec![0xff; BLOCK_BYTES];
    let mut builder = IndexPageBuilder::default();
    let keys: [&[u8]; 3] = [b"a key", b"another", b"k"];
    for key in keys {
        assert!(builder.push(&mut bytes, entry(), key));
    }
    builder.seal(&mut bytes, RING, 0x0102_0304, 0x0506);
    assert_is(&bytes, INDEX_PAGE);
    let page = IndexPage::parse(&bytes, RING, 0x0102_0304, 0x0506).unwrap();
    let found: Vec<_> = page.entries().map(Result::unwrap).collect();
    assert_eq!(found, keys.map(|key| (entry(), key)));
    each_flip(&mut bytes, |bytes| IndexPage::parse(bytes, RING, 0x0102_0304, 0x0506).is_err());
    for (ring, generation, number) in [
        (RingId { pool: 1, ..RING }, 0x0102_0304, 0x0506),
        (RingId { shard: 1, ..RING }, 0x0102_0304, 0x0506),
        (RING, 0x0102_0302, 0x0506),
        (RING, 0x0102_0304, 0x0505),
    ] {
        let parsed = IndexPage::parse(&bytes, ring, generation, number).map(drop);
        assert_eq!(parsed, Err(FormatError::Foreign));
    }
    for (at, value, name) in [
        (30, 4, "entry length"),
        (33, 0xff, "used"),
        (32, 36, "key length"),
        (40 + 23, 0, "entry"),
        (40 + 33, 0xff, "key length"),
    ] {
        let mut bytes = bytes.clone();
        bytes[at] = value;
        let crc = crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        let page = IndexPage::parse(&bytes, RING, 0x0102_0304, 0x0506);
        let all = page.and_then(|page| page.entries().collect::<Result<Vec<_>, _>>()).map(drop);
        assert_eq!(all, Err(FormatError::Field(name)), "byte {at}");
    }
}

const CHECKSUM_PAGE: &str = "
    1d a5 fc ea 4e bc 9f 5e 60 60 aa 63 90 07 7b 26
    bc c9 bd bf
";

#[test]
fn checksum_page_bytes_are_golden() {
    let mut value: Vec<u8> = (0..70_000u32).map(|n| (n % 251) as u8).collect();
    let mut page = vec![0xff; BLOCK_BYTES];
    let crc = checksum::fill_page(&value, &mut page).page;
    assert_is(&page, CHECKSUM_PAGE);
    assert_eq!(crc, 0xd5b5_623c);
    each_flip(&mut page, |page| checksum::verify(&value, 0, page, crc).is_none());
    // Of the value, each bit of the last, short checksum block.
    let mut last = value.split_off(65_536);
    each_flip(&mut last, |last| checksum::verify(last, 65_536, &page, crc).is_none());
}

#[test]
fn the_checksum_is_crc32c() {
    // RFC 3720, B.4: 32 bytes of zeroes, of ones, and counting up.
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    let up: Vec<u8> = (0..32).collect();
    assert_eq!(crc32c(&up), 0x46dd_794e);
}
