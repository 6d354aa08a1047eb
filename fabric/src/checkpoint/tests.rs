//! Golden bytes, and what the decoders must refuse.

use super::*;
use crate::pdu::crc32c;
use proptest::prelude::*;
use zerocopy::FromZeros;

const SESSION: SessionId = SessionId(*b"0123456789abcdef");

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn tensor() -> TensorBox {
    TensorBox {
        name: "w".to_owned(),
        dtype: Dtype::F32,
        rank: 1,
        first_index: 7,
        chunk_bytes: 1 << 20,
        dims: vec![Dim::new(4, 2, 2), Dim::whole(1 << 18)],
        bytes: 2 << 20,
        chunks: vec![Chunk::new(1 << 20, 0x1122_3344), Chunk::new(1 << 20, 0x5566_7788)],
    }
}

fn manifest() -> Manifest {
    Manifest {
        session: SESSION,
        epoch: 9,
        world: 2,
        attachments: vec![Attachment { rank: 1, bytes: b"hdr".to_vec() }],
        tensors: vec![tensor()],
    }
}

/// `bytes` with the manifest's checksums made right again after a change.
fn rechecked(mut bytes: Vec<u8>) -> Vec<u8> {
    let body = crc32c(&bytes[80..]).to_le_bytes();
    bytes[72..76].copy_from_slice(&body);
    let header = crc32c(&bytes[..76]).to_le_bytes();
    bytes[76..80].copy_from_slice(&header);
    bytes
}

#[test]
fn the_manifest_has_its_golden_bytes() {
    let golden = concat!(
        "4642434d",
        "0100",
        "0000",
        "02000000",
        "01000000",                         // magic, version, flags, world, att.
        "30313233343536373839616263646566", // session
        "0900000000000000",
        "6c00000000000000",
        "0000200000000000", // epoch, body, data bytes
        "01000000",
        "000000000000000000000000", // tensors, reserved
        "7140f656",
        "aa790aea",
        "01000000",
        "03000000",
        "686472", // attachment
        "01000000",
        "07000000",
        "00001000",
        "02000000", // rank, first index, chunk size, chunks
        "0000200000000000",
        "0100",
        "0c",
        "02",
        "00000000", // bytes, name length, dtype, dims
        "0400000000000000",
        "0200000000000000",
        "0200000000000000",
        "0000040000000000",
        "0000000000000000",
        "0000040000000000",
        "00001000",
        "44332211",
        "00001000",
        "88776655", // chunks
        "77",
    );
    let bytes = manifest().encode();
    assert_eq!(hex(&bytes), golden);
    assert_eq!(bytes.len(), manifest().encoded_bytes());
    assert_eq!(Manifest::decode(&bytes), Ok(manifest()));
}

#[test]
fn the_payloads_have_their_golden_bytes() {
    let session = "30313233343536373839616263646566";
    let key = ChunkKey::new(SESSION, 3, 0x0102);
    assert_eq!(hex(key.as_bytes()), format!("{session}0300000002010000"));
    let begin = BeginRequest::new(2, 5, 60_000);
    assert_eq!(hex(begin.as_bytes()), "050000000000000060ea0000000000000200000000000000");
    let answer = BeginAnswer {
        session: SESSION,
        epoch: 5.into(),
        world: 2.into(),
        chunk_bytes_max: (4 << 20).into(),
        flags: begin_flags::RESUMED.into(),
        reserved: 0.into(),
    };
    let golden = format!("{session}05000000000000000200000000004000{}", "0100000000000000");
    assert_eq!(hex(answer.as_bytes()), golden);
    let scalar = TensorBox { dims: vec![], bytes: 4, chunks: vec![], ..tensor() };
    let reserve = encode_reserve(SESSION, 1, 2, &[scalar]);
    let golden = format!(
        "{session}01000000010000000200000000000000{}",
        "01000000070000000000100000000000040000000000000001000c000000000077"
    );
    assert_eq!(hex(&reserve), golden);
    let slice = SealRequest { session: SESSION, rank: 1, total_bytes: 9, offset: 4, slice: b"xy" };
    let golden = format!("{session}01000000090000000400000000000000{}", "7879");
    assert_eq!(hex(&encode_seal(&slice)), golden);
    let entry = CheckpointEntry {
        session: SESSION,
        epoch: 1.into(),
        committed_s: 2.into(),
        data_bytes: 3.into(),
        manifest_bytes: 4.into(),
        tensors: 5.into(),
        chunks: 6.into(),
        world: 7.into(),
        name_length: 3.into(),
        reserved: 0.into(),
    };
    let words: String = (1..=4).map(|word| format!("0{word}00000000000000")).collect();
    let golden = format!("{session}{words}0500000006000000070000000300{}", "0000");
    assert_eq!(hex(entry.as_bytes()), golden);
}

#[test]
fn a_payload_reads_back_as_it_was_written() {
    let begin = BeginRequest::new(2, 5, 60_000);
    assert_eq!(BeginRequest::decode(begin.as_bytes()), Ok(begin));
    let boxes = vec![TensorBox { chunks: vec![], ..tensor() }];
    let reserve = encode_reserve(SESSION, 1, 2, &[tensor()]);
    let expected = ReserveRequest { session: SESSION, rank: 1, skip: 2, boxes };
    assert_eq!(ReserveRequest::decode(&reserve), Ok(expected));
    let seal = SealRequest { session: SESSION, rank: 1, total_bytes: 6, offset: 4, slice: b"xy" };
    assert_eq!(SealRequest::decode(&encode_seal(&seal)), Ok(seal));
    let commit = SessionRequest { session: SESSION };
    assert_eq!(SessionRequest::decode(commit.as_bytes()), Ok(commit));
}

#[test]
fn list_entries_read_back_and_a_cut_one_ends_in_an_error() {
    let entry = |name: &str| {
        let mut entry = CheckpointEntry::new_zeroed();
        entry.name_length = (name.len() as u16).into();
        [entry.as_bytes(), name.as_bytes()].concat()
    };
    let bytes = [entry("run/1"), entry("run/22")].concat();
    let names: Vec<&str> = entries(&bytes).map(|entry| entry.unwrap().1).collect();
    assert_eq!(names, ["run/1", "run/22"]);
    let cut: Vec<_> = entries(&bytes[..bytes.len() - 1]).collect();
    assert!(matches!(cut[..], [Ok(_), Err(DecodeError::Truncated)]), "{cut:?}");
}

#[test]
fn every_prefix_of_a_payload_is_refused() {
    type Decodes = fn(&[u8]) -> bool;
    let payloads: [(Vec<u8>, Decodes); 5] = [
        (manifest().encode(), |bytes| Manifest::decode(bytes).is_ok()),
        (encode_reserve(SESSION, 1, 0, &[tensor()]), |b| ReserveRequest::decode(b).is_ok()),
        (BeginRequest::new(1, 0, 0).as_bytes().to_vec(), |b| BeginRequest::decode(b).is_ok()),
        (SESSION.0.to_vec(), |bytes| SessionRequest::decode(bytes).is_ok()),
        (ChunkKey::new(SESSION, 0, 0).as_bytes().to_vec(), |b| ChunkKey::parse(b).is_some()),
    ];
    for (bytes, decodes) in payloads {
        assert!(decodes(&bytes));
        let shorter = (0..bytes.len()).find(|length| decodes(&bytes[..*length]));
        assert_eq!(shorter, None);
        assert!(!decodes(&[&bytes[..], b"x"].concat()), "a trailing byte was taken");
    }
}

#[test]
fn a_flipped_bit_in_a_manifest_is_noticed() {
    let bytes = manifest().encode();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Manifest::decode(&flipped).is_err(), "bit {bit} may flip");
    }
}

#[test]
fn boxes_that_cannot_be_are_refused_by_name() {
    let scalar = || TensorBox { dims: vec![], bytes: 4, ..tensor() };
    let f4 = |extent| TensorBox { dtype: Dtype::F4, dims: vec![Dim::whole(extent)], ..tensor() };
    let cases = [
        (TensorBox { name: String::new(), ..tensor() }, "tensor name"),
        (TensorBox { name: "x".repeat(4097), ..tensor() }, "tensor name"),
        (TensorBox { dims: vec![Dim::whole(1); 17], ..tensor() }, "dims"),
        (TensorBox { chunk_bytes: 0, ..tensor() }, "chunk size"),
        (TensorBox { chunk_bytes: (1 << 20) + 1, ..tensor() }, "chunk size"),
        (TensorBox { chunk_bytes: 8 << 20, ..tensor() }, "chunk size"),
        (TensorBox { dims: vec![Dim::new(4, 3, 2)], ..tensor() }, "box (outside its tensor)"),
        (
            TensorBox { dims: vec![Dim::new(4, u64::MAX, 2)], ..tensor() },
            "box (outside its tensor)",
        ),
        (TensorBox { dims: vec![Dim::new(1 << 40, 0, 1); 2], ..tensor() }, "shape (too large)"),
        (TensorBox { bytes: 2 << 19, ..tensor() }, "bytes (not what shape and dtype say)"),
        (TensorBox { bytes: 1, ..f4(3) }, "bytes (not what shape and dtype say)"),
        (TensorBox { first_index: u32::MAX, ..tensor() }, "chunk index"),
        (TensorBox { chunks: vec![], ..tensor() }, "chunks"),
        (TensorBox { chunks: vec![Chunk::new(5, 0)], ..scalar() }, "chunk length"),
    ];
    for (tensor, wrong) in cases {
        assert_eq!(tensor.check(true), Err(DecodeError::Field(wrong)), "{tensor:?}");
        let bytes = Manifest { tensors: vec![tensor], ..manifest() }.encode();
        assert_eq!(Manifest::decode(&bytes), Err(DecodeError::Field(wrong)));
    }
    assert_eq!(TensorBox { chunks: vec![Chunk::new(4, 0)], ..scalar() }.check(true), Ok(()));
    let empty = TensorBox { dims: vec![Dim::whole(0), Dim::whole(u64::MAX)], ..tensor() };
    assert_eq!(TensorBox { bytes: 0, chunks: vec![], ..empty }.check(true), Ok(()));
}

#[test]
fn counts_that_the_bytes_do_not_hold_are_refused_before_they_allocate() {
    let bytes = manifest().encode();
    let counts = [(12, "attachments"), (56, "tensors"), (84, "attachment length"), (103, "chunks")];
    for (offset, what) in counts {
        let mut hostile = bytes.clone();
        hostile[offset..offset + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Manifest::decode(&rechecked(hostile)).is_err(), "{what}");
    }
}

#[test]
fn a_rank_outside_the_world_is_refused() {
    let outside = Manifest { world: 1, ..manifest() }.encode();
    assert_eq!(Manifest::decode(&outside), Err(DecodeError::Field("rank")));
    let nobody = Manifest { world: 0, attachments: vec![], tensors: vec![], ..manifest() };
    assert_eq!(Manifest::decode(&nobody.encode()), Err(DecodeError::Field("world")));
}

#[test]
fn names_have_two_or_three_sound_parts() {
    for good in ["run/1", "tenant/run/step-10", "ü/é", "a b/c"] {
        assert_eq!(check_name(good.as_bytes()), Ok(good));
    }
    let long = format!("run/{}", "x".repeat(509));
    let bad = ["", "run", "/", "run/", "/1", "a/b/c/d", "a//b", "./a", "a/..", "a/b\n", &long];
    for bad in bad {
        assert!(check_name(bad.as_bytes()).is_err(), "{bad:?}");
    }
    assert!(check_name(b"run/\xff").is_err());
    assert_eq!(check_prefix(b""), Ok(""));
}

#[test]
fn a_put_cannot_name_a_part_of_the_manifest() {
    let part = ChunkKey::manifest_part(SESSION, 0);
    assert_eq!(ChunkKey::parse(part.as_bytes()), Some(part));
    assert_eq!(ChunkKey::parse_put(part.as_bytes()), None);
    let chunk = ChunkKey::new(SESSION, WORLD_MAX - 1, 0);
    assert_eq!(ChunkKey::parse_put(chunk.as_bytes()), Some(chunk));
    assert_eq!(ChunkKey::parse_put(ChunkKey::new(SESSION, WORLD_MAX, 0).as_bytes()), None);
}

#[test]
fn dtype_numbers_and_names_are_unique_and_lead_back() {
    for dtype in Dtype::ALL {
        assert_eq!(Dtype::from_wire(*dtype as u8), Ok(*dtype));
        assert_eq!(Dtype::from_name(dtype.name()), Some(*dtype));
    }
    assert!(Dtype::from_wire(0).is_err());
    assert_eq!((Dtype::F4.bytes(3), Dtype::F4.bytes(4)), (None, Some(2)));
    assert_eq!(Dtype::F64.bytes(u64::MAX), None);
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let sound = [
            Manifest::decode(&bytes).is_ok(),
            ReserveRequest::decode(&bytes).is_ok(),
            SealRequest::decode(&bytes).is_ok(),
            BeginRequest::decode(&bytes).is_ok(),
            BeginAnswer::decode(&bytes).is_ok(),
        ];
        prop_assert!(bytes.len() >= 24 || !sound.contains(&true));
        prop_assert_eq!(chunk_states(&bytes).is_ok(), bytes.len().is_multiple_of(8));
        prop_assert!(check_name(&bytes).is_err() || bytes.contains(&b'/'));
        prop_assert!(entries(&bytes).count() <= bytes.len());
    }

    /// Past the checksums, into the boxes.
    #[test]
    fn no_damaged_manifest_with_right_checksums_makes_it_panic(
        damage in prop::collection::vec((0_usize..191, any::<u8>()), 1..8)
    ) {
        let mut bytes = manifest().encode();
        for (place, value) in damage {
            if let Some(byte) = bytes.get_mut(place) {
                *byte = value;
            }
        }
        let bytes = rechecked(bytes);
        if let Ok(decoded) = Manifest::decode(&bytes) {
            prop_assert_eq!(decoded.encode(), bytes);
        }
    }
}
