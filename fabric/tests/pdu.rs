//! The bytes of every PDU, and what its parser makes of other bytes.

use forebay_fabric::Status;
use forebay_fabric::crc32c::Digest;
use forebay_fabric::pdu::*;
use proptest::prelude::*;
use std::net::SocketAddr;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

/// Bytes from hex digits and white space.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn show(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn assert_bytes(found: &[u8], golden: &str) {
    assert_eq!(show(found), show(&hex(golden)), "the format has changed");
}

fn offer() -> Offer {
    Offer {
        versions: 1..=1,
        features: features::ALL,
        client_id: *b"0123456789abcdef",
        queue_depth: 32,
        capsule_bytes: 0x4000,
        keep_alive_ms: 10_000,
    }
}

fn welcome() -> Welcome {
    Welcome {
        queue_depth: 16,
        pool: *b"pool-pool-pool-p",
        incarnation: *b"incarnation-incn",
        reactor: 1,
        reactors: 2,
        fragments_max: FRAGMENTS_MAX as u16,
        endpoints: vec![
            Endpoint::tcp(0, SocketAddr::from(([127, 0, 0, 1], 7000))),
            Endpoint::tcp(1, SocketAddr::from(([0, 0, 0, 0], 7001))),
            Endpoint::rdma(1, SocketAddr::from(([10, 0, 0, 1], 7001))).with_preference(2),
        ],
        shard_map: vec![0, 1, 0, 1],
        ..Welcome::default()
    }
}

fn welcome_bytes() -> Vec<u8> {
    let mut bytes = Vec::new();
    welcome().encode(&mut bytes);
    bytes
}

fn store() -> Vec<u8> {
    let mut command = Command::new(Opcode::Store, 5);
    command.timeout_us = U32::new(1_000_000);
    command.namespace = U32::new(16);
    command.token = U64::new(0x0102_0304_0506_0708);
    command.data_crc = U32::new(crc32c(b"value"));
    command.seal(&[], b"key", b"value");
    [command.as_bytes(), b"key", b"value"].concat()
}

fn batch() -> Vec<u8> {
    let items = [Item::new(1, 0, 100, 0, 0), Item::new(2, 7, 200, 9, 10)];
    let mut command = Command::new(Opcode::Retrieve, 6);
    command.data_length = U32::new(332);
    command.seal(&items, b"abb", &[]);
    [command.as_bytes(), items.as_bytes(), b"abb"].concat()
}

fn fragments() -> [Fragment; 3] {
    [
        Fragment::new(0x1000, 7, 32),
        Fragment::new(u64::MAX, 0x0102_0304, 100),
        Fragment::new(9, 8, 200),
    ]
}

/// A batch of two retrieves, with memory for the results and for each item.
fn scattered() -> Vec<u8> {
    let items = [Item::new(1, 0, 100, 0, 0), Item::new(2, 7, 200, 0, 0)];
    let mut command = Command::new(Opcode::Retrieve, 6);
    command.data_length = U32::new(300);
    command.seal_fragments(&items, &fragments(), b"abb");
    [command.as_bytes(), items.as_bytes(), fragments().as_bytes(), b"abb"].concat()
}

/// A command of `opcode` with `items` and `fragments`, and whether its fragments fit.
fn fits(opcode: Opcode, data_length: u32, items: &[Item], fragments: &[Fragment]) -> bool {
    let mut command = Command::new(opcode, 0);
    command.data_length = U32::new(data_length);
    let keys = vec![b'k'; items.len().max(1)];
    command.seal_fragments(items, fragments, &keys);
    let bytes = [command.as_bytes(), items.as_bytes(), fragments.as_bytes(), &keys].concat();
    Capsule::parse(&bytes).expect("a sound capsule").fragments_fit()
}

fn outcome() -> Outcome {
    Outcome {
        cid: 5,
        flags: response_flags::ITEMS,
        status: Status::Range,
        credit_limit: 32,
        data_length: 0x20,
        result: 0x1122,
        data_crc: 0xAABB_CCDD,
    }
}

fn transfer() -> Transfer {
    Transfer { cid: 5, offset: 0, length: 0x1000 }
}

#[test]
fn the_handshake_has_its_golden_bytes() {
    assert_bytes(Hello::new(&offer()).as_bytes(), HELLO);
    assert_bytes(&welcome_bytes(), HELLO_ACK);
    assert_bytes(Auth::none(PduType::Auth).as_bytes(), AUTH);
    assert_bytes(Auth::none(PduType::AuthAck).as_bytes(), AUTH_ACK);
}

#[test]
fn commands_and_responses_have_their_golden_bytes() {
    assert_bytes(&store(), STORE);
    assert_bytes(&batch(), BATCH);
    assert_bytes(&scattered(), SCATTERED);
    assert_bytes(Response::new(&outcome()).as_bytes(), RESPONSE);
    assert_bytes(Response::placed(&outcome()).as_bytes(), PLACED);
    assert_bytes(ItemResult::new(Status::NotFound, 0, 1, 2).as_bytes(), ITEM_RESULT);
    let mut list = [0; 9];
    assert_eq!(ListEntry { key: b"key", value_length: 4096 }.encode(&mut list), Some(9));
    assert_bytes(&list, "0300 00100000 6b6579");
}

#[test]
fn the_small_pdus_have_their_golden_bytes() {
    assert_bytes(ReadyToTransfer::new(transfer()).as_bytes(), R2T);
    assert_bytes(Data::new(transfer()).as_bytes(), DATA);
    assert_bytes(Cancel::new(5).as_bytes(), CANCEL);
    assert_bytes(Ping::new(PduType::Ping, 0x0123_4567_89AB_CDEF).as_bytes(), PING);
    assert_bytes(GoAway::new(GoAwayReason::KeepAlive).as_bytes(), GOAWAY);
}

#[test]
fn crc32c_has_its_published_check_value() {
    // RFC 3720, B.4: 32 bytes of zeros.
    assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
    assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    assert_eq!(Digest::new().and(b"1234").and(b"56789").finalize(), 0xE306_9283);
}

#[test]
fn what_was_encoded_parses_to_the_same() {
    assert_eq!(Hello::parse(Hello::new(&offer()).as_bytes()), Ok(offer()));
    assert_eq!(Welcome::parse(&welcome_bytes()), Ok(welcome()));
    assert_eq!(Response::parse(Response::new(&outcome()).as_bytes()), Ok(outcome()));
    assert_eq!(ReadyToTransfer::parse(ReadyToTransfer::new(transfer()).as_bytes()), Ok(transfer()));
    assert_eq!(Data::parse(Data::new(transfer()).as_bytes()), Ok(transfer()));
    assert_eq!(Cancel::parse(Cancel::new(9).as_bytes()), Ok(9));
    let ping = Ping::new(PduType::Pong, 77);
    assert_eq!(Ping::parse(ping.as_bytes(), PduType::Pong), Ok(77));
    for reason in GoAwayReason::ALL {
        assert_eq!(GoAway::parse(GoAway::new(reason).as_bytes()), Ok(reason));
    }
    let auth = Auth::none(PduType::Auth);
    assert_eq!(Auth::parse(auth.as_bytes(), PduType::Auth), Ok((Auth::NONE, &[][..])));
}

#[test]
fn a_capsule_gives_back_its_keys_and_its_value() {
    let bytes = store();
    let capsule = Capsule::parse(&bytes).unwrap();
    assert_eq!(
        (capsule.opcode, capsule.keys, capsule.data),
        (Some(Opcode::Store), &b"key"[..], &b"value"[..])
    );
    assert!(capsule.is_in_capsule());
    let bytes = batch();
    let capsule = Capsule::parse(&bytes).unwrap();
    let keys: Vec<_> =
        capsule.items_with_keys().map(|(item, key)| (item.offset.get(), key)).collect();
    assert_eq!(keys, [(0, &b"a"[..]), (7, &b"bb"[..])]);
    assert!(!capsule.is_in_capsule() && capsule.data.is_empty());
    assert!(capsule.fragments.is_empty() && capsule.fragments_fit());
}

#[test]
fn a_capsule_gives_back_its_fragments() {
    let bytes = scattered();
    let capsule = Capsule::parse(&bytes).unwrap();
    assert_eq!(capsule.fragments, fragments());
    assert_eq!((Fragment::bytes(capsule.fragments), capsule.keys), (332, &b"abb"[..]));
    let many: Vec<_> = (0..FRAGMENTS_MAX as u64).map(|at| Fragment::new(at, 1, 1)).collect();
    assert!(fits(Opcode::Store, FRAGMENTS_MAX as u32, &[], &many));
}

#[test]
fn fragments_fit_what_their_command_moves() {
    let of = |lengths: &[u32]| -> Vec<Fragment> {
        lengths.iter().map(|length| Fragment::new(64, 1, *length)).collect()
    };
    let item = |wanted| Item::new(1, 0, wanted, 0, 0);
    for (found, expected, what) in [
        (fits(Opcode::Store, 10, &[], &of(&[3, 0, 7])), true, "a store's are its value"),
        (fits(Opcode::Store, 10, &[], &of(&[3, 6])), false, "less than the value"),
        (fits(Opcode::Store, 10, &[], &of(&[3, 8])), false, "more than the value"),
        (fits(Opcode::Retrieve, 10, &[], &of(&[3, 8])), true, "room for a value"),
        (fits(Opcode::Retrieve, 10, &[], &of(&[9])), false, "less than is wanted"),
        (fits(Opcode::Exist, 0, &[item(0); 2], &of(&[30, 2])), true, "room for the results"),
        (fits(Opcode::Exist, 0, &[item(0); 2], &of(&[30, 1])), false, "less than the results"),
        (fits(Opcode::Retrieve, 9, &[item(4), item(5)], &of(&[32, 4, 9])), true, "one for each"),
        (fits(Opcode::Retrieve, 9, &[item(4), item(5)], &of(&[32, 9, 4])), false, "too long"),
        (fits(Opcode::Retrieve, 9, &[item(4), item(5)], &of(&[32, 9])), false, "too few"),
        (fits(Opcode::Retrieve, 9, &[item(4), item(5)], &of(&[32, 4, 5, 1])), false, "too many"),
        (fits(Opcode::Retrieve, 9, &[item(4), item(5)], &of(&[31, 4, 5])), false, "results"),
        (fits(Opcode::Retrieve, 0, &[item(0)], &of(&[16, 0])), true, "nothing is wanted"),
    ] {
        assert_eq!(found, expected, "{what}");
    }
}

/// Everything that a checksum cannot see.
#[test]
fn fragments_that_contradict_their_command_are_refused() {
    type Change = fn(&mut Command, &mut Vec<Fragment>, &mut Vec<u8>);
    let cases: [(Change, &str); 7] = [
        (|command, _, _| command.opflags = 0, "a number of fragments that contradicts the flag"),
        (
            |command, list, _| {
                list.clear();
                command.fragments.set(0);
            },
            "a number of fragments that contradicts the flag",
        ),
        (
            |command, list, _| {
                *list = vec![Fragment::new(1, 1, 1); FRAGMENTS_MAX + 1];
                command.fragments.set(FRAGMENTS_MAX as u16 + 1);
            },
            "too many fragments",
        ),
        (
            |command, _, data| {
                command.opflags |= command_flags::IN_CAPSULE;
                command.data_length.set(4);
                data.extend_from_slice(b"data");
            },
            "data in the capsule and in fragments",
        ),
        (|command, _, _| command.memory_key.set(1), "fragments and an address"),
        (|_, list, _| list[1].key.set(0), "a fragment without a key"),
        (
            |_, list, _| list.iter_mut().for_each(|one| one.length.set(u32::MAX / 2)),
            "fragments of 4 GiB and more",
        ),
    ];
    for (change, what) in cases {
        let mut command = Command::new(Opcode::Store, 1);
        command.seal_fragments(&[], &fragments(), b"k");
        let (mut list, mut data) = (fragments().to_vec(), Vec::new());
        change(&mut command, &mut list, &mut data);
        let behind = [list.as_bytes(), b"k"].concat();
        command.header.length = U32::new((64 + behind.len() + data.len()) as u32);
        command.header_crc =
            U32::new(Digest::new().and(&command.as_bytes()[..60]).and(&behind).finalize());
        let bytes = [command.as_bytes(), &behind, &data].concat();
        assert_eq!(Capsule::parse(&bytes).err(), Some(DecodeError::Field(what)));
    }
    // A list that reaches past the end of the capsule.
    let mut command = Command::new(Opcode::Store, 1);
    command.seal_fragments(&[], &fragments(), b"");
    command.header.length = U32::new(64 + 40);
    let bytes = [command.as_bytes(), &fragments().as_bytes()[..40]].concat();
    assert_eq!(Capsule::parse(&bytes).err(), Some(DecodeError::Truncated));
}

#[test]
fn an_unknown_opcode_is_a_capsule_without_an_opcode() {
    let mut command = Command::new(Opcode::Store, 1);
    command.opcode = 0x7F;
    command.seal(&[], b"k", &[]);
    let bytes = [command.as_bytes(), b"k"].concat();
    assert_eq!(Capsule::parse(&bytes).unwrap().opcode, None);
}

#[test]
fn item_results_are_cut_off_only_if_everything_adds_up() {
    let results =
        [ItemResult::new(Status::Ok, 3, 3, 0), ItemResult::new(Status::NotFound, 0, 0, 0)];
    let data = [results.as_bytes(), b"abc"].concat();
    let crc = crc32c(results.as_bytes());
    let (found, rest) = ItemResult::parse_all(&data, 2, crc).unwrap();
    assert_eq!((found, rest), (&results[..], &b"abc"[..]));
    assert_eq!(found[1].outcome(), Status::NotFound);
    assert_eq!(ItemResult::parse_all(&data, 2, crc ^ 1), Err(DecodeError::Checksum));
    assert_eq!(ItemResult::parse_all(&data[..20], 2, crc), Err(DecodeError::Truncated));
    assert_eq!(ItemResult::parse_all(&data[..34], 2, crc), Err(DecodeError::Length));
}

#[test]
fn a_list_is_walked_until_its_first_error() {
    let mut data = vec![0; 64];
    let first = ListEntry { key: b"one", value_length: 1 };
    let second = ListEntry { key: b"two!", value_length: 2 };
    let n = first.encode(&mut data).unwrap();
    let end = n + second.encode(&mut data[n..]).unwrap();
    let walked: Vec<_> = ListEntries::new(&data[..end]).collect();
    assert_eq!(walked, [Ok(first), Ok(second)]);
    let walked: Vec<_> = ListEntries::new(&data[..end - 1]).collect();
    assert_eq!(walked, [Ok(first), Err(DecodeError::Truncated)]);
    assert_eq!(second.encode(&mut [0; 9]), None, "an entry is written whole or not at all");
}

#[test]
fn an_endpoint_without_an_address_is_where_the_client_has_connected_to() {
    let reached = "192.168.1.9".parse().unwrap();
    let [known, unknown] = [0, 1].map(|i| welcome().endpoints[i].socket_address(reached));
    assert_eq!(known, SocketAddr::from(([127, 0, 0, 1], 7000)));
    assert_eq!(unknown, SocketAddr::from(([192, 168, 1, 9], 7001)));
}

#[test]
fn an_endpoint_over_shared_memory_is_a_number() {
    let zero = "0000000000000000 0000000000000000";
    assert_bytes(Endpoint::shm(3).as_bytes(), &format!("{zero} 0300 0300 0300 0000"));
}

#[test]
fn a_response_is_placed_only_where_its_data_fits() {
    assert!(!outcome().fits(0x1f));
    assert!(outcome().fits(0x20) && outcome().fits(u32::MAX));
    let empty = Outcome { data_length: 0, ..outcome() };
    assert!(!empty.fits(0x20), "there is nothing to place");
    let flags = response_flags::ITEMS | response_flags::PLACED;
    let placed = Outcome { flags, ..outcome() };
    assert_eq!(Response::parse(Response::placed(&outcome()).as_bytes()), Ok(placed));
    assert_eq!(Response::new(&placed), Response::placed(&outcome()), "said already");
}

/// One valid PDU of each kind.
fn samples() -> Vec<Vec<u8>> {
    let data = [Data::new(Transfer { cid: 1, offset: 0, length: 4 }).as_bytes(), b"data"].concat();
    vec![
        Hello::new(&offer()).as_bytes().to_vec(),
        welcome_bytes(),
        Auth::none(PduType::Auth).as_bytes().to_vec(),
        Auth::none(PduType::AuthAck).as_bytes().to_vec(),
        store(),
        batch(),
        scattered(),
        [Response::new(&outcome()).as_bytes(), &[0; 0x20]].concat(),
        ReadyToTransfer::new(transfer()).as_bytes().to_vec(),
        data,
        Cancel::new(1).as_bytes().to_vec(),
        Ping::new(PduType::Ping, 1).as_bytes().to_vec(),
        Ping::new(PduType::Pong, 1).as_bytes().to_vec(),
        GoAway::new(GoAwayReason::Drain).as_bytes().to_vec(),
    ]
}

/// Runs `bytes` through every parser; how many took them.
fn parse_all(bytes: &[u8]) -> usize {
    let mut taken = [
        Hello::parse(bytes).is_ok(),
        Welcome::parse(bytes).is_ok(),
        Auth::parse(bytes, PduType::Auth).is_ok(),
        Auth::parse(bytes, PduType::AuthAck).is_ok(),
        Capsule::parse(bytes).is_ok_and(|capsule| capsule.items_with_keys().count() <= ITEMS_MAX),
        Response::parse(bytes).is_ok(),
        ReadyToTransfer::parse(bytes).is_ok(),
        Data::parse(bytes).is_ok(),
        Cancel::parse(bytes).is_ok(),
        Ping::parse(bytes, PduType::Ping).is_ok(),
        Ping::parse(bytes, PduType::Pong).is_ok(),
        GoAway::parse(bytes).is_ok(),
    ];
    // These have no checksum of their own: any bytes may do.
    let entries = ListEntries::new(bytes).count();
    assert!(entries <= bytes.len());
    if let Ok((results, rest)) = ItemResult::parse_all(bytes, bytes.len() % 70, 0) {
        assert!(size_of_val(results) + rest.len() == bytes.len());
    }
    taken.sort_unstable();
    taken.iter().filter(|taken| **taken).count()
}

#[test]
fn every_sample_is_taken_by_exactly_its_own_parser() {
    for sample in samples() {
        assert_eq!(parse_all(&sample), 1, "{}", show(&sample));
        let (_, length) = CommonHeader::peek(&sample).unwrap().unwrap();
        assert_eq!(length, sample.len());
    }
}

#[test]
fn every_truncation_is_refused() {
    for sample in samples() {
        for end in 0..sample.len() {
            let whole_fixed_part = match PduType::from_wire(sample[0]) {
                // Their parsers look at the fixed part only; the data behind it is the caller's.
                Some(PduType::Response) => 32,
                Some(PduType::Data) => 24,
                _ => usize::MAX,
            };
            if end < whole_fixed_part {
                assert_eq!(parse_all(&sample[..end]), 0, "{} bytes of {}", end, show(&sample));
            }
        }
    }
}

#[test]
fn every_flipped_bit_outside_of_the_data_is_refused() {
    for sample in samples() {
        let data_bytes = match PduType::from_wire(sample[0]) {
            Some(PduType::Response) => 0x20,
            Some(PduType::Data) => 4,
            Some(PduType::Command) if sample == store() => 5,
            _ => 0,
        };
        for bit in 0..8 * (sample.len() - data_bytes) {
            let mut flipped = sample.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse_all(&flipped), 0, "bit {bit} of {}", show(&sample));
        }
    }
}

#[test]
fn a_length_that_no_pdu_of_its_type_has_is_refused_from_the_first_8_bytes() {
    for pdu_type in PduType::ALL {
        let range = pdu_type.length_bytes();
        for length in [0, 7, range.start() - 1, range.end() + 1, u32::MAX as usize] {
            let mut header = [pdu_type as u8, 0, 0, 0, 0, 0, 0, 0];
            header[4..].copy_from_slice(&(length as u32).to_le_bytes());
            assert_eq!(CommonHeader::peek(&header), Err(DecodeError::Length), "{pdu_type:?}");
        }
    }
    assert_eq!(CommonHeader::peek(b"GET / HTTP/1.1"), Err(DecodeError::Type));
    assert_eq!(CommonHeader::peek(&[1; 7]), Ok(None));
}

/// A checksum says that the sender meant it, not that it makes sense.
#[test]
fn nonsense_under_a_right_checksum_is_refused() {
    let mut welcome = welcome();
    welcome.shard_map[2] = 2;
    let mut bytes = Vec::new();
    welcome.encode(&mut bytes);
    assert_eq!(Welcome::parse(&bytes), Err(DecodeError::Field("reactor number")));

    let mut offer = offer();
    offer.versions = std::ops::RangeInclusive::new(2, 1);
    assert!(Hello::parse(Hello::new(&offer).as_bytes()).is_err());

    let mut command = Command::new(Opcode::Retrieve, 0);
    command.seal(&[Item::new(1, 0, 0, 0, 0); ITEMS_MAX + 1], &[b'k'; ITEMS_MAX + 1], &[]);
    let items = [Item::new(1, 0, 0, 0, 0); ITEMS_MAX + 1];
    let bytes = [command.as_bytes(), items.as_bytes(), &[b'k'; ITEMS_MAX + 1]].concat();
    assert_eq!(Capsule::parse(&bytes).err(), Some(DecodeError::Field("too many items")));

    // A key length that reaches past the end of the capsule.
    let mut command = Command::new(Opcode::Retrieve, 0);
    command.seal(&[], &[b'k'; 100], &[]);
    command.header.length = U32::new(64 + 50);
    let bytes = [command.as_bytes(), &[b'k'; 50]].concat();
    assert_eq!(Capsule::parse(&bytes).err(), Some(DecodeError::Truncated));

    let past_the_end = Transfer { cid: 0, offset: 1, length: VALUE_BYTES_MAX as u32 };
    assert!(ReadyToTransfer::parse(ReadyToTransfer::new(past_the_end).as_bytes()).is_err());
    let nothing = Transfer { cid: 0, offset: 0, length: 0 };
    assert!(ReadyToTransfer::parse(ReadyToTransfer::new(nothing).as_bytes()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4096,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(7),
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_parser_panics_on_arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        parse_all(&bytes);
        if let Ok(Some((pdu_type, length))) = CommonHeader::peek(&bytes) {
            prop_assert!(pdu_type.length_bytes().contains(&length));
        }
    }

    /// Damage that the checksums do not see: they are made right again afterwards.
    #[test]
    fn no_parser_panics_on_damage_under_right_checksums(
        which in 0..14_usize,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        keep in any::<prop::sample::Index>(),
    ) {
        let mut bytes = samples().swap_remove(which);
        let pdu_type = bytes[0];
        for (index, byte) in damage {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        bytes.truncate(bytes.len().min(8 + keep.index(bytes.len())));
        bytes[0] = pdu_type;
        let length = (bytes.len() as u32).to_le_bytes();
        bytes[4..8].copy_from_slice(&length);
        mend(&mut bytes);
        parse_all(&bytes);
    }
}

/// Writes the checksum that the parsers of this type will compute.
fn mend(bytes: &mut [u8]) {
    let fixed = match PduType::from_wire(bytes[0]) {
        Some(PduType::Hello | PduType::Command) => 64,
        Some(PduType::HelloAck) => 96,
        Some(PduType::Response) => 32,
        Some(PduType::ReadyToTransfer | PduType::Data | PduType::Ping | PduType::Pong) => 24,
        _ => 16,
    };
    if bytes.len() < fixed {
        return;
    }
    let crc = if bytes[0] == PduType::Command as u8 {
        Digest::new().and(&bytes[..60]).and(&bytes[64..]).finalize()
    } else {
        crc32c(&bytes[..fixed - 4])
    };
    bytes[fixed - 4..fixed].copy_from_slice(&crc.to_le_bytes());
    if bytes[0] == PduType::HelloAck as u8 && bytes.len() >= fixed + 4 {
        let end = bytes.len() - 4;
        let crc = crc32c(&bytes[fixed..end]);
        bytes[end..].copy_from_slice(&crc.to_le_bytes());
    }
}

// Field by field, in the order of the tables in PROTOCOL.md.
const HELLO: &str = "
    01 00 0000 40000000 464f5245 0100 0100 0300000000000000
    30313233343536373839616263646566 2000 0000 00400000 10270000 00000000 00000000
    f5fa727c";
const HELLO_ACK: &str = "
    02 00 0000 b4000000 0100 1000 00400000 0300000000000000
    706f6f6c2d706f6f6c2d706f6f6c2d70 696e6361726e6174696f6e2d696e636e 10270000 80c3c901
    00004000 4000 0100 0200 0400 0000 0300 0001 0000 0000000000000000 925c7220
    00000000000000000000ffff7f000001 581b 0000 0100 0000
    00000000000000000000000000000000 591b 0100 0100 0000
    00000000000000000000ffff0a000001 591b 0100 0200 0200 0000 0100 0000 0100 f13aeb7f";
const AUTH: &str = "03 00 0000 10000000 0000 0000 b9c084fc";
const AUTH_ACK: &str = "04 00 0000 10000000 0000 0000 29ecd16a";
const STORE: &str = "
    10 00 0500 48000000 01 01 0300 40420f00 10000000 00000000 0000000000000000
    0000000000000000 00000000 05000000 0807060504030201 6303e0e1 f72c79ed 6b6579
    76616c7565";
const BATCH: &str = "
    10 00 0600 83000000 02 00 0000 00000000 00000000 0200 0000 0000000000000000
    0000000000000000 00000000 4c010000 0000000000000000 00000000 ad9a588e 0100 0000
    64000000 0000000000000000 0000000000000000 00000000 00000000 0200 0000 c8000000
    0700000000000000 0900000000000000 0a000000 00000000 616262";
const SCATTERED: &str = "
    10 00 0600 b3000000 02 02 0000 00000000 00000000 0200 0300 0000000000000000
    0000000000000000 00000000 2c010000 0000000000000000 00000000 ca3d9e47 0100 0000
    64000000 0000000000000000 0000000000000000 00000000 00000000 0200 0000 c8000000
    0700000000000000 0000000000000000 00000000 00000000
    0010000000000000 07000000 20000000 ffffffffffffffff 04030201 64000000
    0900000000000000 08000000 c8000000 616262";
const RESPONSE: &str = "
    11 01 0500 40000000 0500 2000 20000000 2211000000000000 ddccbbaa 6aeaa74d";
const PLACED: &str = "
    11 03 0500 20000000 0500 2000 20000000 2211000000000000 ddccbbaa 234d14e2";
const ITEM_RESULT: &str = "0100 0000 00000000 01000000 02000000";
const R2T: &str = "13 00 0500 18000000 00000000 00100000 00000000 83595fae";
const DATA: &str = "12 00 0500 18100000 00000000 00100000 00000000 08489afd";
const CANCEL: &str = "14 00 0500 10000000 00000000 183ac39b";
const PING: &str = "20 00 0000 18000000 efcdab8967452301 00000000 d9281aea";
const GOAWAY: &str = "22 00 0000 10000000 0500 0000 e43fc159";
