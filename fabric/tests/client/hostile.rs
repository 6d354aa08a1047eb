//! A peer that breaks the rules, by accident or on purpose: scripted bytes instead of a server.

use crate::support::{NS, address, bytes, client_config};
use bytes::Bytes;
use forebay_fabric::Status;
use forebay_fabric::client::{
    Address, ClientError, Connector, Done, Pipeline, Request, Slot, StoreItem,
};
use forebay_fabric::pdu::{
    Auth, Command, CommonHeader, Data, Endpoint, GoAway, GoAwayReason, ItemResult, Outcome,
    PduType, Ping, ReadyToTransfer, Response, Transfer, Welcome, crc32c, response_flags,
};
use forebay_fabric::stream::Listener;
use forebay_fabric::stream::sim::{SimListener, SimNet, SimProfile, SimStream};
use std::cell::{Cell, RefCell};
use std::io::{self, Read, Write};
use std::rc::Rc;
use zerocopy::{FromBytes, IntoBytes};

/// Answers a PDU of the client with any bytes.
type Script = Box<dyn FnMut(PduType, &[u8]) -> Vec<u8>>;

/// PDUs of the client, as they came.
type Heard = Rc<RefCell<Vec<(PduType, Vec<u8>)>>>;

/// Speaks only through its script. What it says is cut in pieces of `piece` bytes.
struct Peer {
    net: SimNet,
    listener: SimListener,
    streams: Vec<(SimStream, Vec<u8>, Vec<u8>)>,
    script: Script,
    piece: usize,
    /// Said at once to every client that connects.
    greeting: Vec<u8>,
    heard: Heard,
    /// The most commands that came at once, in the last while.
    burst: Rc<Cell<usize>>,
}

impl Peer {
    fn new(script: impl FnMut(PduType, &[u8]) -> Vec<u8> + 'static) -> Self {
        let net = SimNet::new(1, SimProfile::kind());
        let listener = net.listen(address(0)).unwrap();
        Self {
            net,
            listener,
            streams: Vec::new(),
            script: Box::new(script),
            piece: usize::MAX,
            greeting: Vec::new(),
            heard: Rc::default(),
            burst: Rc::default(),
        }
    }

    fn step(&mut self) {
        while let Some(stream) = self.listener.accept().unwrap() {
            self.streams.push((stream, Vec::new(), self.greeting.clone()));
        }
        for (stream, inbox, outbox) in &mut self.streams {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut chunk) {
                inbox.extend_from_slice(&chunk[..count]);
            }
            let mut commands = 0;
            while let Ok(Some((pdu_type, length))) = CommonHeader::peek(inbox)
                && inbox.len() >= length
            {
                let pdu: Vec<u8> = inbox.drain(..length).collect();
                outbox.extend((self.script)(pdu_type, &pdu));
                self.heard.borrow_mut().push((pdu_type, pdu));
                commands += usize::from(pdu_type == PduType::Command);
            }
            self.burst.set(self.burst.get().max(commands));
            let piece = self.piece.min(outbox.len());
            if stream.write_all(&outbox[..piece]).is_ok() {
                outbox.drain(..piece);
            }
        }
    }
}

impl Connector for Peer {
    type Stream = SimStream;

    fn connect(&mut self, address: &Address) -> io::Result<SimStream> {
        self.net.connect(address.tcp()?)
    }

    fn wait(&mut self, slots: &[Slot<SimStream>], timeout_us: u64) -> io::Result<()> {
        let step_us = if self.piece == usize::MAX { 1_000 } else { 10 };
        self.net.advance(timeout_us.clamp(1, step_us));
        self.step();
        slots.iter().for_each(|slot| slot.ready.set(true));
        Ok(())
    }

    fn now_us(&mut self) -> u64 {
        self.net.now_us()
    }
}

fn welcome() -> Welcome {
    Welcome {
        queue_depth: 8,
        pool: [7; 16],
        reactors: 1,
        endpoints: vec![Endpoint::tcp(0, address(0))],
        ..Welcome::default()
    }
}

fn encoded(welcome: &Welcome) -> Vec<u8> {
    let mut bytes = Vec::new();
    welcome.encode(&mut bytes);
    bytes
}

/// A polite handshake, then `script` for everything else.
fn polite(
    mut script: impl FnMut(PduType, &[u8]) -> Vec<u8> + 'static,
) -> impl FnMut(PduType, &[u8]) -> Vec<u8> {
    move |pdu_type, pdu| match pdu_type {
        PduType::Hello => encoded(&welcome()),
        PduType::Auth => Auth::none(PduType::AuthAck).as_bytes().to_vec(),
        _ => script(pdu_type, pdu),
    }
}

/// To any command: `bytes`.
fn to_commands(bytes: Vec<u8>) -> impl FnMut(PduType, &[u8]) -> Vec<u8> {
    polite(move |pdu_type, _| if pdu_type == PduType::Command { bytes.clone() } else { Vec::new() })
}

fn cid(pdu: &[u8]) -> u16 {
    Command::ref_from_prefix(pdu).unwrap().0.header.cid.get()
}

fn answer(cid: u16, data: &[u8], change: impl Fn(&mut Outcome)) -> Vec<u8> {
    let mut outcome = Outcome {
        cid,
        flags: 0,
        status: Status::Ok,
        credit_limit: 8,
        data_length: data.len() as u32,
        result: data.len() as u64,
        data_crc: crc32c(data),
    };
    change(&mut outcome);
    [Response::new(&outcome).as_bytes(), data].concat()
}

fn connect(peer: Peer) -> Result<Pipeline<Peer>, ClientError> {
    Pipeline::connect_with(client_config(1), peer)
}

/// One retrieve of up to 100 bytes, with a deadline of 100 ms.
fn retrieve(pipeline: &mut Pipeline<Peer>) -> Done {
    pipeline.call(Request::retrieve(NS, b"key", 0, 100).with_timeout_us(100_000)).unwrap()
}

/// The client left the connection after `reply`, and ended the retrieve at its deadline.
fn assert_refused(what: &str, reply: Vec<u8>) {
    let mut pipeline = connect(Peer::new(to_commands(reply))).unwrap();
    let done = retrieve(&mut pipeline);
    assert!(matches!(done.status, Status::Timeout | Status::Disconnected), "{what}");
    assert!(pipeline.counters().connection_errors > 1, "{what}: the connection was kept");
}

#[test]
fn a_peer_that_is_no_forebay_server_is_told_apart() {
    for greeting in
        ["HTTP/1.1 400 Bad Request\r\n\r\n", "SSH-2.0-OpenSSH_9.2\r\n", "\0\0\0\0\0\0\0\0"]
    {
        let mut peer = Peer::new(|_, _| Vec::new());
        peer.greeting = greeting.as_bytes().to_vec();
        let text = connect(peer).err().unwrap().to_string();
        assert!(
            text.starts_with("cannot connect to 10.0.0.1:7000: the peer does not follow"),
            "{text}"
        );
    }
}

#[test]
fn a_peer_that_says_nothing_is_left_in_time() {
    let text = connect(Peer::new(|_, _| Vec::new())).err().unwrap().to_string();
    assert_eq!(text, "cannot connect to 10.0.0.1:7000: the server did not answer in time");
}

#[test]
fn refusals_say_why() {
    let other = Welcome { version: 9, ..welcome() };
    for (reply, expected) in [
        (encoded(&other), "the server speaks protocol version 9, and this client only 1"),
        (
            GoAway::new(GoAwayReason::Version).as_bytes().to_vec(),
            "the server refused the connection: it speaks no protocol version that this client knows",
        ),
        (
            GoAway::new(GoAwayReason::Full).as_bytes().to_vec(),
            "the server refused the connection: it has no room for another connection",
        ),
    ] {
        let text = connect(Peer::new(move |_, _| reply.clone())).err().unwrap().to_string();
        assert_eq!(text, format!("cannot connect to 10.0.0.1:7000: {expected}"));
    }
}

#[test]
fn random_bytes_never_connect_and_never_panic() {
    for seed in 0..500 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let length = rng.usize(1..2_000);
        let mut garbage = bytes(&mut rng, length);
        // Half of them at least begin like a PDU.
        if rng.bool() && garbage.len() > 8 {
            garbage[0] = rng.choice(PduType::ALL).map_or(0, |pdu_type| pdu_type as u8);
            garbage[4..8].copy_from_slice(&rng.u32(8..300).to_le_bytes());
        }
        let during_handshake = rng.bool();
        let mut script = to_commands(garbage.clone());
        let peer =
            Peer::new(
                move |pdu_type, pdu| {
                    if during_handshake { garbage.clone() } else { script(pdu_type, pdu) }
                },
            );
        match connect(peer) {
            Err(_) => assert!(during_handshake, "seed {seed}"),
            Ok(mut pipeline) => {
                let status = retrieve(&mut pipeline).status;
                let ended = matches!(status, Status::Timeout | Status::Disconnected);
                assert!(!during_handshake && ended, "seed {seed}");
            }
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_in_a_handshake_is_noticed() {
    let ack = encoded(&welcome());
    for bit in 0..ack.len() * 8 {
        let mut flipped = ack.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let connected = connect(Peer::new(move |pdu_type, _| match pdu_type {
            PduType::Hello => flipped.clone(),
            _ => Auth::none(PduType::AuthAck).as_bytes().to_vec(),
        }));
        assert!(connected.is_err(), "bit {bit}");
    }
}

#[test]
fn a_flipped_bit_anywhere_in_an_answer_never_passes_for_data() {
    let good = answer(0, b"the value", |_| {});
    for bit in 0..good.len() * 8 {
        let mut flipped = good.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let mut peer = Peer::new(to_commands(flipped));
        // At once, or so that the data does not arrive with its response.
        peer.piece = if bit % 2 == 0 { usize::MAX } else { size_of::<Response>() };
        let mut pipeline = connect(peer).unwrap();
        let done = retrieve(&mut pipeline);
        assert_ne!(done.status, Status::Ok, "bit {bit}");
        let in_data = bit >= size_of::<Response>() * 8;
        assert_eq!(done.status == Status::DataChecksum, in_data, "bit {bit}");
    }
}

#[test]
fn answers_that_cannot_be_end_the_connection() {
    let data = vec![1; 101];
    assert_refused("more data than was asked for", answer(0, &data, |_| {}));
    assert_refused("an identifier that is not in flight", answer(1, b"", |_| {}));
    assert_refused("an identifier past the queue depth", answer(9, b"", |_| {}));
    assert_refused("the largest identifier", answer(u16::MAX, b"", |_| {}));
    let twice = [answer(0, b"", |o| o.status = Status::Busy), answer(0, b"", |_| {})].concat();
    assert_refused("two answers to one command", twice);
    assert_refused("a second HELLO_ACK", encoded(&welcome()));
    assert_refused("a second AUTH_ACK", Auth::none(PduType::AuthAck).as_bytes().to_vec());
    let data = Data::new(Transfer { cid: 0, offset: 0, length: 1 });
    assert_refused("DATA from a server", [data.as_bytes(), b"x"].concat());
    let r2t = |cid, offset, length| {
        ReadyToTransfer::new(Transfer { cid, offset, length }).as_bytes().to_vec()
    };
    assert_refused("an R2T for a retrieve", r2t(0, 0, 1));
    assert_refused("an R2T for nothing", r2t(3, 0, 1));
    assert_refused("GOAWAY", GoAway::new(GoAwayReason::Protocol).as_bytes().to_vec());
}

#[test]
fn an_r2t_past_the_end_gets_nothing() {
    for (offset, length) in [(0, 20_001), (20_000, 1), (1, 20_000), (0, 4 << 20)] {
        let transfer = Transfer { cid: 0, offset, length };
        let reply = ReadyToTransfer::new(transfer).as_bytes().to_vec();
        let peer = Peer::new(to_commands(reply));
        let heard = Rc::clone(&peer.heard);
        let mut pipeline = connect(peer).unwrap();
        let single = Request::store(NS, b"key", Bytes::from(vec![1; 20_000]));
        let half = |key| StoreItem { key, data: Bytes::from(vec![1; 10_000]) };
        let halves = [half(b"a"), half(b"b")];
        for request in [single, Request::store_batch(NS, &halves)] {
            let errors = pipeline.counters().connection_errors;
            let done = pipeline.call(request.with_timeout_us(100_000)).unwrap();
            assert!(pipeline.counters().connection_errors > errors + 1, "the link was kept");
            assert!(matches!(done.status, Status::Timeout | Status::Disconnected));
        }
        assert!(heard.borrow().iter().all(|(pdu_type, _)| *pdu_type != PduType::Data));
    }
}

#[test]
fn r2ts_may_come_in_pieces_and_in_any_order() {
    let value: Vec<u8> = (0..40_000u32).map(|n| n as u8 ^ (n >> 8) as u8).collect();
    let mut pieces = vec![(30_000, 10_000), (0, 1), (1, 9_999), (10_000, 20_000)];
    let mut got = vec![0; 40_000];
    let expected = value.clone();
    let peer = Peer::new(polite(move |pdu_type, pdu| {
        if pdu_type == PduType::Data {
            let transfer = Data::parse(pdu).unwrap();
            let from = transfer.offset as usize;
            got[from..from + transfer.length as usize].copy_from_slice(&pdu[24..]);
        } else if pdu_type != PduType::Command {
            return Vec::new();
        }
        match pieces.pop() {
            Some((offset, length)) => {
                ReadyToTransfer::new(Transfer { cid: 0, offset, length }).as_bytes().to_vec()
            }
            None => answer(0, b"", |o| {
                o.status = if got == expected { Status::Ok } else { Status::Malformed };
            }),
        }
    }));
    let mut pipeline = connect(peer).unwrap();
    let done = pipeline.call(Request::store(NS, b"key", value.into())).unwrap();
    assert_eq!(done.status, Status::Ok);
}

#[test]
fn batch_answers_that_do_not_add_up_end_the_connection_and_not_the_process() {
    let items = [b"a".as_slice(), b"b", b"c"];
    let table = |lengths: [u32; 3]| {
        lengths
            .map(|length| ItemResult::new(Status::Ok, length, 0, crc32c(b"")))
            .as_bytes()
            .to_vec()
    };
    let good = table([0; 3]);
    let batch = |data: &[u8], crc: u32| {
        answer(0, data, |o| {
            o.flags = response_flags::ITEMS;
            o.data_crc = crc;
        })
    };
    for (what, reply, expected) in [
        ("well formed", batch(&good, crc32c(&good)), [Status::Ok; 3]),
        ("too short", batch(&good[..40], crc32c(&good[..40])), [Status::Internal; 3]),
        ("wrong checksum", batch(&good, 1), [Status::Internal; 3]),
        (
            "lengths past the end",
            batch(&table([1, 0, 0]), crc32c(&table([1, 0, 0]))),
            [Status::Internal; 3],
        ),
        (
            "lengths that overflow",
            batch(&table([u32::MAX; 3]), crc32c(&table([u32::MAX; 3]))),
            [Status::Internal; 3],
        ),
        ("no item results", answer(0, b"", |_| {}), [Status::Internal; 3]),
        ("refused", answer(0, b"", |o| o.status = Status::NoNamespace), [Status::NoNamespace; 3]),
    ] {
        let mut pipeline = connect(Peer::new(to_commands(reply))).unwrap();
        let done = pipeline.call(Request::exist_batch(NS, &items)).unwrap();
        let statuses: Vec<_> = done.items.iter().map(|item| item.status).collect();
        assert_eq!(statuses, expected, "{what}");
        assert!((0..3).all(|index| done.item_data(index).is_empty()), "{what}");
    }
}

#[test]
fn credit_limits_are_kept_and_absurd_ones_survived() {
    for limit in [0, 1, 7, 9, u16::MAX] {
        let peer = Peer::new(polite(move |pdu_type, pdu| match pdu_type {
            PduType::Command => answer(cid(pdu), b"", |o| o.credit_limit = limit),
            _ => Vec::new(),
        }));
        let (heard, burst) = (Rc::clone(&peer.heard), Rc::clone(&peer.burst));
        let mut pipeline = connect(peer).unwrap();
        let mut done = Vec::new();
        for number in 0..100u8 {
            if number == 50 {
                burst.set(0);
            }
            let key = [number];
            while pipeline.submit(Request::exist(NS, &key)).is_err() {
                pipeline.poll(&mut done, 10_000).unwrap();
            }
        }
        while pipeline.in_flight() > 0 {
            pipeline.poll(&mut done, 10_000).unwrap();
        }
        assert!(done.len() == 100 && done.iter().all(|done| done.status == Status::Ok));
        let heard = heard.borrow();
        let commands = heard.iter().filter(|(pdu_type, _)| *pdu_type == PduType::Command);
        assert!(commands.clone().all(|(_, pdu)| cid(pdu) < 8) && commands.count() == 100);
        assert_eq!(burst.get(), usize::from(limit.clamp(1, 8)));
    }
}

#[test]
fn pings_are_answered_and_a_flood_of_them_is_not_hoarded() {
    let ping = |nonce| Ping::new(PduType::Ping, nonce).as_bytes().to_vec();
    let flood: Vec<u8> = (0..5_000u64).flat_map(ping).collect();
    let peer = Peer::new(polite(move |pdu_type, pdu| match pdu_type {
        PduType::Command => [flood.clone(), answer(cid(pdu), b"", |_| {})].concat(),
        _ => Vec::new(),
    }));
    let heard = Rc::clone(&peer.heard);
    let mut pipeline = connect(peer).unwrap();
    assert_eq!(retrieve(&mut pipeline).status, Status::Ok);
    pipeline.poll(&mut Vec::new(), 10_000).unwrap();
    let heard = heard.borrow();
    let pongs: Vec<_> = heard.iter().filter(|(pdu_type, _)| *pdu_type == PduType::Pong).collect();
    assert!((1..100).contains(&pongs.len()), "{}", pongs.len());
    assert_eq!(Ping::parse(&pongs[pongs.len() - 1].1, PduType::Pong), Ok(4_999));
}

#[test]
fn pieces_of_any_size_make_the_same_answers() {
    for piece in (1..200).chain([1_000, 5_000, 100_000]) {
        let value: Vec<u8> = (0..9_000u32).map(|n| (n * 7) as u8).collect();
        let data = value.clone();
        let mut peer = Peer::new(polite(move |pdu_type, pdu| {
            let ping = Ping::new(PduType::Ping, 1).as_bytes().to_vec();
            let transfer = |cid| Transfer { cid, offset: 0, length: 20_000 };
            match pdu_type {
                PduType::Command => {
                    let command = Command::ref_from_prefix(pdu).unwrap().0;
                    if command.data_length.get() == 20_000 {
                        let r2t = ReadyToTransfer::new(transfer(cid(pdu)));
                        [ping, r2t.as_bytes().to_vec()].concat()
                    } else {
                        [answer(cid(pdu), &data, |_| {}), ping].concat()
                    }
                }
                PduType::Data => answer(Data::parse(pdu).unwrap().cid, b"", |o| o.result = 77),
                _ => Vec::new(),
            }
        }));
        peer.piece = piece;
        let mut pipeline = connect(peer).unwrap();
        for tag in 0..3 {
            pipeline.submit(Request::retrieve(NS, b"a", 0, 9_000).with_tag(tag)).unwrap();
        }
        let large = Request::store(NS, b"b", Bytes::from(vec![1; 20_000])).with_tag(3);
        pipeline.submit(large).unwrap();
        let mut done = Vec::new();
        while pipeline.in_flight() > 0 {
            pipeline.poll(&mut done, 1_000_000).unwrap();
        }
        assert_eq!(done.len(), 4);
        for done in done {
            assert_eq!(done.status, Status::Ok, "pieces of {piece}");
            let expected: &[u8] = if done.tag == 3 { &[] } else { &value };
            assert!(done.data == expected, "pieces of {piece}");
            assert_eq!(done.result, if done.tag == 3 { 77 } else { 9_000 });
        }
        assert_eq!(pipeline.counters().connection_errors, 0);
    }
}
