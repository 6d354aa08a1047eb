//! Everything that comes over the wire, in both directions: no input makes a parser panic, loop, or take
//! memory by a number that it has not checked; and what is accepted is exactly what the encoder makes.
#![no_main]

use forebay_fabric::Status;
use forebay_fabric::checkpoint::{self, ChunkKey, Dim, Dtype, SessionId, TensorBox};
use forebay_fabric::pdu::{
    Auth, COMMON_HEADER_BYTES, Cancel, Capsule, Command, CommonHeader, Data, Endpoint, Fragment,
    GoAway, GoAwayReason, Hello, HelloAck, Item, ItemResult, ListEntries, ListEntry, Offer, Opcode,
    Outcome, PduType, Ping, ReadyToTransfer, Response, Transfer, Welcome, crc32c,
};
use forebay_fuzz::{Input, put_crc, write_seeds};
use libfuzzer_sys::fuzz_target;
use zerocopy::{FromBytes, IntoBytes};

const LIST: u8 = 12;
const ITEM_RESULTS: u8 = 13;
const BEGIN: u8 = 14;
const RESERVE: u8 = 15;
const SEAL: u8 = 16;
const ENTRIES: u8 = 17;
const NAMES: u8 = 18;

fuzz_target!(init: write_seeds(seeds), |data: &[u8]| {
    let Some(input) = Input::new(data) else { return };
    match input.structure {
        LIST => list(input.bytes),
        ITEM_RESULTS => item_results(&input),
        BEGIN => begin(input.bytes),
        RESERVE => reserve(input.bytes),
        SEAL => seal(input.bytes),
        ENTRIES => entries(input.bytes),
        NAMES => names(input.bytes),
        number => pdu(PduType::ALL[usize::from(number) % PduType::ALL.len()], &input),
    }
});

/// Bytes of the fixed part, whose last four are its checksum.
fn fixed_bytes(pdu_type: PduType) -> usize {
    match pdu_type {
        PduType::Hello => size_of::<Hello>(),
        PduType::HelloAck => size_of::<HelloAck>(),
        PduType::Auth | PduType::AuthAck => size_of::<Auth>(),
        PduType::Command => size_of::<Command>(),
        PduType::Response => size_of::<Response>(),
        PduType::Data => size_of::<Data>(),
        PduType::ReadyToTransfer => size_of::<ReadyToTransfer>(),
        PduType::Cancel => size_of::<Cancel>(),
        PduType::Ping | PduType::Pong => size_of::<Ping>(),
        PduType::GoAway => size_of::<GoAway>(),
    }
}

/// Puts type, length and checksums right.
fn reseal(pdu_type: PduType, bytes: &mut [u8]) {
    let (length, fixed) = (bytes.len(), fixed_bytes(pdu_type));
    if length < fixed {
        return;
    }
    bytes[0] = pdu_type as u8;
    // Behind these, the fixed part stands alone: their length follows from a field.
    let length = match pdu_type {
        PduType::Response => fixed as u32 + u32::from(bytes[12]),
        PduType::Data => fixed as u32 + u32::from(bytes[12]),
        _ => length as u32,
    };
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    if pdu_type == PduType::HelloAck && bytes.len() >= fixed + 4 {
        let end = bytes.len() - 4;
        put_crc(bytes, end, fixed..end);
    }
    if pdu_type == PduType::Command {
        reseal_command(bytes);
    } else {
        put_crc(bytes, fixed - 4, 0..fixed - 4);
    }
}

fn reseal_command(bytes: &mut [u8]) {
    let (fixed, behind) = bytes.split_at(size_of::<Command>());
    let Ok(command) = Command::ref_from_bytes(fixed) else { return };
    let count = usize::from(command.items.get()).min(behind.len() / size_of::<Item>());
    let Ok((items, rest)) = <[Item]>::ref_from_prefix_with_elems(behind, count) else { return };
    let fragments = usize::from(command.fragments.get()) * size_of::<Fragment>();
    let fragments = fragments.min(rest.len());
    let keys: usize = items.iter().map(|item| usize::from(item.key_length.get())).sum();
    let keys = keys + usize::from(command.key_length.get());
    let covered = (size_of_val(items) + fragments + keys).min(behind.len());
    let crc = crc32c(&[&fixed[..60], &behind[..covered]].concat());
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
}

fn pdu(pdu_type: PduType, input: &Input<'_>) {
    let mut bytes = input.bytes.to_vec();
    if input.reseal {
        reseal(pdu_type, &mut bytes);
    }
    let peeked = CommonHeader::peek(&bytes);
    assert!(peeked != Ok(None) || bytes.len() < COMMON_HEADER_BYTES);
    // A stream hands a PDU on only when its type and length can be.
    let can_be = matches!(peeked, Ok(Some((found, _))) if found == pdu_type);
    let again = parse(pdu_type, &bytes, can_be);
    if let Some(again) = again
        && can_be
    {
        assert_eq!(again, bytes[..again.len()], "what is accepted is what the encoder makes");
    }
}

/// Parses; what the encoder makes of what was accepted.
fn parse(pdu_type: PduType, bytes: &[u8], can_be: bool) -> Option<Vec<u8>> {
    Some(match pdu_type {
        PduType::Hello => {
            let mut hello = Hello::new(&Hello::parse(bytes).ok()?);
            // Before there is a command its cid means nothing.
            hello.header = Hello::ref_from_bytes(bytes).expect("it was parsed").header;
            let mut bytes = hello.as_bytes().to_vec();
            put_crc(&mut bytes, 60, 0..60);
            bytes
        }
        PduType::HelloAck => hello_ack(bytes)?,
        PduType::Auth | PduType::AuthAck => {
            let (_, own) = Auth::parse(bytes, pdu_type).ok()?;
            assert_eq!(own.len(), bytes.len() - size_of::<Auth>());
            return None;
        }
        PduType::Command => {
            command(bytes)?;
            return None;
        }
        PduType::Response => {
            let outcome = Response::parse(bytes).ok()?;
            // A status of a newer peer reads as Internal.
            let is_known = u16::from_le_bytes([bytes[8], bytes[9]]) == outcome.status as u16;
            if !can_be || !is_known {
                return None;
            }
            Response::new(&outcome).as_bytes().to_vec()
        }
        PduType::Data => Data::new(Data::parse(bytes).ok()?).as_bytes().to_vec(),
        PduType::ReadyToTransfer => {
            ReadyToTransfer::new(ReadyToTransfer::parse(bytes).ok()?).as_bytes().to_vec()
        }
        PduType::Cancel => Cancel::new(Cancel::parse(bytes).ok()?).as_bytes().to_vec(),
        PduType::Ping | PduType::Pong => {
            // The header's cid means nothing here.
            let nonce = Ping::parse(bytes, pdu_type).ok()?;
            assert_eq!(Ping::parse(Ping::new(pdu_type, nonce).as_bytes(), pdu_type), Ok(nonce));
            return None;
        }
        PduType::GoAway => {
            let reason = GoAway::parse(bytes).ok()?;
            assert_eq!(GoAway::parse(GoAway::new(reason).as_bytes()), Ok(reason));
            return None;
        }
    })
}

fn hello_ack(bytes: &[u8]) -> Option<Vec<u8>> {
    let welcome = Welcome::parse(bytes).ok()?;
    assert!(welcome.shard_map.iter().all(|one| usize::from(*one) < usize::from(welcome.reactors)));
    let reached = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    for endpoint in &welcome.endpoints {
        let address = endpoint.socket_address(reached);
        assert_eq!(address.port(), endpoint.port.get());
    }
    let mut again = Vec::new();
    welcome.encode(&mut again);
    assert_eq!(Welcome::parse(&again), Ok(welcome));
    None
}

fn command(bytes: &[u8]) -> Option<()> {
    let capsule = Capsule::parse(bytes).ok()?;
    let keys: usize = capsule.items_with_keys().map(|(_, key)| key.len()).sum();
    assert!(capsule.items.is_empty() || keys == capsule.keys.len());
    let lists = size_of_val(capsule.items) + size_of_val(capsule.fragments);
    let behind = lists + capsule.keys.len() + capsule.data.len();
    assert_eq!(bytes.len(), size_of::<Command>() + behind);
    assert!(Fragment::bytes(capsule.fragments) <= u32::MAX.into());
    let _ = capsule.fragments_fit();
    // Sealed again it is the same, but for an empty in-capsule flag, which the client never sets.
    let mut again = *capsule.command;
    if capsule.fragments.is_empty() {
        again.seal(capsule.items, capsule.keys, capsule.data);
    } else {
        again.seal_fragments(capsule.items, capsule.fragments, capsule.keys);
    }
    assert!(again == *capsule.command || capsule.data.is_empty() && capsule.is_in_capsule());
    Some(())
}

fn list(bytes: &[u8]) {
    let mut rest = bytes.len();
    let mut buffer = vec![0; bytes.len()];
    for entry in ListEntries::new(bytes) {
        let Ok(entry) = entry else { return };
        let written = entry.encode(&mut buffer).expect("it came out of fewer bytes");
        rest -= written;
    }
    assert_eq!(rest, 0);
}

fn item_results(input: &Input<'_>) {
    let [items, bytes @ ..] = input.bytes else { return };
    let items = usize::from(*items);
    let covered = &bytes[..(items * size_of::<ItemResult>()).min(bytes.len())];
    let crc = if input.reseal { crc32c(covered) } else { 0 };
    let Ok((results, data)) = ItemResult::parse_all(bytes, items, crc) else { return };
    assert_eq!(results.len(), items);
    let lengths: u64 = results.iter().map(|one| u64::from(one.data_length.get())).sum();
    assert_eq!(lengths, data.len() as u64);
    for result in results {
        let _ = result.outcome();
    }
}

fn begin(bytes: &[u8]) {
    if let Ok(request) = checkpoint::BeginRequest::decode(bytes) {
        assert_eq!(request.as_bytes(), bytes);
    }
    if let Ok(answer) = checkpoint::BeginAnswer::decode(bytes) {
        assert_eq!(answer.as_bytes(), bytes);
    }
    if let Ok(request) = checkpoint::SessionRequest::decode(bytes) {
        assert_eq!(request.as_bytes(), bytes);
    }
}

fn reserve(bytes: &[u8]) {
    if let Ok(request) = checkpoint::ReserveRequest::decode(bytes) {
        let checkpoint::ReserveRequest { session, rank, skip, boxes } = request;
        assert_eq!(checkpoint::encode_reserve(session, rank, skip, &boxes), bytes);
        for tensor in &boxes {
            let _ = (tensor.chunk_count(), tensor.elements(), tensor.global_elements());
        }
    }
}

fn seal(bytes: &[u8]) {
    if let Ok(request) = checkpoint::SealRequest::decode(bytes) {
        assert_eq!(checkpoint::encode_seal(&request), bytes);
    }
}

fn entries(bytes: &[u8]) {
    for entry in checkpoint::entries(bytes) {
        let Ok((_, name)) = entry else { break };
        assert_eq!(checkpoint::check_name(name.as_bytes()), Ok(name));
    }
    let _ = checkpoint::chunk_states(bytes);
}

fn names(bytes: &[u8]) {
    let _ = (checkpoint::check_name(bytes), checkpoint::check_prefix(bytes));
    if let Some(key) = ChunkKey::parse(bytes) {
        assert_eq!(key.as_bytes(), bytes);
    }
    let _ = ChunkKey::parse_put(bytes);
}

fn seeds() -> Vec<(u8, Vec<u8>)> {
    let number = |wanted| PduType::ALL.iter().position(|one| *one == wanted).expect("a type") as u8;
    let transfer = Transfer { cid: 7, offset: 4096, length: 200 };
    let mut welcome = Vec::new();
    seed_welcome().encode(&mut welcome);
    let outcome = Outcome {
        cid: 7,
        flags: 0,
        status: Status::NotFound,
        credit_limit: 64,
        data_length: 100,
        result: 4096,
        data_crc: 9,
    };
    let mut list = vec![0; 64];
    let written = ListEntry { key: b"a key", value_length: 77 }.encode(&mut list).expect("room");
    list.truncate(written);
    let results = [ItemResult::new(Status::Ok, 4, 0, 1), ItemResult::new(Status::Busy, 0, 0, 0)];
    let tensor = TensorBox {
        name: "layer.weight".to_owned(),
        dtype: Dtype::Bf16,
        rank: 1,
        first_index: 0,
        chunk_bytes: 1 << 20,
        dims: vec![Dim::new(16, 8, 8), Dim::whole(4)],
        bytes: 64,
        chunks: Vec::new(),
    };
    let session = SessionId([5; 16]);
    let slice =
        checkpoint::SealRequest { session, rank: 1, total_bytes: 99, offset: 3, slice: b"ab" };
    let mut seeds = vec![
        (number(PduType::Hello), Hello::new(&seed_offer()).as_bytes().to_vec()),
        (number(PduType::HelloAck), welcome),
        (number(PduType::Auth), Auth::none(PduType::Auth).as_bytes().to_vec()),
        (number(PduType::Response), Response::new(&outcome).as_bytes().to_vec()),
        (number(PduType::Data), Data::new(transfer).as_bytes().to_vec()),
        (number(PduType::ReadyToTransfer), ReadyToTransfer::new(transfer).as_bytes().to_vec()),
        (number(PduType::Cancel), Cancel::new(7).as_bytes().to_vec()),
        (number(PduType::Ping), Ping::new(PduType::Ping, 5).as_bytes().to_vec()),
        (number(PduType::GoAway), GoAway::new(GoAwayReason::Drain).as_bytes().to_vec()),
        (LIST, list),
        (ITEM_RESULTS, [&[2], results.as_bytes(), b"data"].concat()),
        (BEGIN, checkpoint::BeginRequest::new(4, 2, 1000).as_bytes().to_vec()),
        (RESERVE, checkpoint::encode_reserve(session, 1, 0, &[tensor])),
        (SEAL, checkpoint::encode_seal(&slice)),
        (NAMES, b"run/step-1".to_vec()),
        (NAMES, ChunkKey::new(session, 1, 2).as_bytes().to_vec()),
    ];
    let command = |opcode, items: &[Item], keys: &[u8], data: &[u8]| {
        let mut command = Command::new(opcode, 7);
        command.namespace = 16.into();
        command.token = 5.into();
        command.data_crc = crc32c(data).into();
        command.seal(items, keys, data);
        [command.as_bytes(), items.as_bytes(), keys, data].concat()
    };
    let items = [Item::new(3, 0, 4096, 0, 0), Item::new(4, 16, 99, 0, 0)];
    let pdu_type = number(PduType::Command);
    seeds.push((pdu_type, command(Opcode::Store, &[], b"key", b"a value")));
    seeds.push((pdu_type, command(Opcode::Retrieve, &items, b"onetwo2", b"")));
    let fragments = [Fragment::new(64, 7, 32), Fragment::new(1 << 40, 7, 4096)];
    let mut scattered = Command::new(Opcode::Retrieve, 7);
    scattered.data_length = 4096.into();
    scattered.seal_fragments(&[], &fragments, b"key");
    seeds.push((pdu_type, [scattered.as_bytes(), fragments.as_bytes(), b"key"].concat()));
    seeds
}

fn seed_offer() -> Offer {
    Offer {
        versions: 1..=1,
        features: 3,
        client_id: [3; 16],
        queue_depth: 64,
        capsule_bytes: 16 << 10,
        keep_alive_ms: 5000,
    }
}

fn seed_welcome() -> Welcome {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 4420));
    Welcome {
        version: 1,
        queue_depth: 64,
        capsule_bytes: 16 << 10,
        features: 3,
        pool: [1; 16],
        incarnation: [2; 16],
        keep_alive_ms: 5000,
        timeout_max_us: 1_000_000,
        value_bytes_max: 4 << 20,
        items_max: 64,
        reactor: 1,
        catalog_reactor: 0,
        reactors: 2,
        fragments_max: 256,
        endpoints: vec![Endpoint::tcp(0, address), Endpoint::tcp(1, address)],
        shard_map: vec![0, 1, 0, 1],
    }
}
