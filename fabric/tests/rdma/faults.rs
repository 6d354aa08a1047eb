//! Seeded runs over a fabric on which everything goes wrong: nothing hangs past its deadline, nothing
//! leaks, and every operation ends once, well or reported.
//!
//! `FOREBAY_RDMA_RUNS` is how many seeds there are, `FOREBAY_SEED` the only one.

use crate::house::{FakeConnector, House, address, connect, each_seed, settle, try_connect};
use crate::raw::{raw_peer, until};
use bytes::Bytes;
use forebay_fabric::Status;
use forebay_fabric::client::{Done, NamespaceId, Pipeline, Request};
use forebay_fabric::conformance::{MemoryPeer, Peer};
use forebay_fabric::pdu::{Command, Fragment, Opcode, Outcome, PduType, Ping, Response, crc32c};
use forebay_fabric::rdma::client::{Hub, client_shape};
use forebay_fabric::rdma::fake::{FakeNet, FakeProfile, FakeVerbs};
use forebay_fabric::rdma::{Event, LinePeer, Note, Provider, RdmaConfig, RdmaTransport, Shape};
use forebay_fabric::transport::{CloseReason, ConnId, Sink, Transport};
use std::collections::{BTreeMap, BTreeSet};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

const NS: NamespaceId = NamespaceId(16);
const TIMEOUT_US: u32 = 400_000;
/// A client that waits looks at its deadlines so often, at the latest.
const SLACK_US: u64 = 100_000;

/// A value of its own for each key and number, so that any mixture shows.
fn value(key: u8, number: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(number << 8 | u64::from(key)).fill(&mut bytes);
    bytes.iter_mut().zip([key, number as u8]).for_each(|(byte, mark)| *byte = mark);
    bytes
}

/// One run: a client stores and retrieves while queue pairs fail, connections are cut, packets and the
/// connection manager's messages are lost, and now and then the server starts anew.
fn run(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let shared = if rng.bool() { rng.u16(16..160) } else { 0 };
    let house = House::sharing(seed, FakeProfile::kind(), shared);
    let begins_rough = rng.bool();
    if begins_rough {
        house.borrow().net.set_profile(FakeProfile::rough());
    }
    let Some(mut pipeline) = try_connect(&house, seed) else {
        assert!(begins_rough, "seed {seed}: a kind fabric connects");
        return settle(&house, seed);
    };
    house.borrow().net.set_profile(FakeProfile::rough());
    let mut book = Book { seed, ..Book::default() };
    for number in 0..60 {
        book.submit(number, &mut pipeline, &mut rng);
        if rng.u8(..4) == 0 {
            pipeline.poll(&mut book.done, 500).expect("a client polls");
        }
        if rng.u8(..80) == 0 {
            house.borrow_mut().start();
        }
    }
    // Every eighth client is killed in the middle.
    let survives = rng.u8(..8) > 0;
    while survives && pipeline.in_flight() > 0 {
        pipeline.poll(&mut book.done, 50_000).expect("a client polls");
        book.check_deadlines(pipeline.now_us());
    }
    drop(pipeline);
    settle(&house, seed);
    book.check(survives, &house.borrow().desk.stored);
}

/// What a run has asked for, and what came of it.
#[derive(Default)]
struct Book {
    seed: u64,
    /// Its keys, and the numbers of its operations, begin here: other clients have others.
    first: u8,
    /// Every version of every key, with its checksum.
    sent: BTreeMap<u8, Vec<(u64, usize)>>,
    open: BTreeMap<u64, Asked>,
    done: Vec<Done>,
}

struct Asked {
    began_us: u64,
    key: u8,
    /// The checksum of what is stored, or nothing where something is retrieved.
    stores: Option<u32>,
}

impl Book {
    fn submit(
        &mut self,
        number: u64,
        pipeline: &mut Pipeline<FakeConnector>,
        rng: &mut fastrand::Rng,
    ) {
        let key = self.first + rng.u8(..8);
        let length = if rng.u8(..6) == 0 { rng.usize(..300_000) } else { rng.usize(9..9_000) };
        let name = [key];
        let mut asked = Asked { began_us: pipeline.now_us(), key, stores: None };
        let request = if rng.bool() {
            let value = value(key, number, length);
            self.sent.entry(key).or_default().push((number, length));
            asked.stores = Some(crc32c(&value));
            Request::store(NS, &name, Bytes::from(value))
        } else {
            Request::retrieve(NS, &name, 0, u32::MAX)
        };
        let request = request.with_tag(number).with_timeout_us(TIMEOUT_US);
        if pipeline.submit(request).is_ok() {
            self.open.insert(number, asked);
        }
    }

    /// Nothing that is open is older than its deadline and the slack of a client that just waited.
    fn check_deadlines(&self, now_us: u64) {
        let ended: BTreeSet<_> = self.done.iter().map(|done| done.tag).collect();
        for (tag, asked) in self.open.iter().filter(|(tag, _)| !ended.contains(tag)) {
            let late_us = asked.began_us + u64::from(TIMEOUT_US) + SLACK_US;
            assert!(now_us < late_us, "seed {}: operation {tag} hangs", self.seed);
        }
    }

    /// Each operation ended once. A store that ended well was done once; one of which the end is
    /// unknown was done at most once. What was retrieved is one of the values that were sent.
    fn check(mut self, survives: bool, stored: &[u32]) {
        let seed = self.seed;
        let mut times: BTreeMap<u32, usize> = BTreeMap::new();
        stored.iter().for_each(|crc| *times.entry(*crc).or_default() += 1);
        assert!(times.values().all(|count| *count == 1), "seed {seed}: a store was done twice");
        for done in &self.done {
            let ended = self.open.remove(&done.tag);
            let asked = ended.unwrap_or_else(|| panic!("seed {seed}: it ended twice: {done:?}"));
            match (asked.stores, done.status) {
                (_, Status::Timeout | Status::Disconnected) => {}
                (None, Status::NotFound) => {}
                (Some(crc), Status::Ok) => {
                    assert!(times.contains_key(&crc), "seed {seed}: a store was not done");
                }
                (None, Status::Ok) => {
                    let known = self.sent.get(&asked.key).into_iter().flatten();
                    let mut known =
                        known.map(|(number, length)| value(asked.key, *number, *length));
                    assert!(known.any(|value| done.data == value), "seed {seed}: wrong bytes");
                }
                (_, other) => panic!("seed {seed}: {other:?}"),
            }
        }
        let left: Vec<_> = self.open.keys().collect();
        assert!(!survives || left.is_empty(), "seed {seed}: {left:?} never ended");
    }
}

/// Many clients at once, which share too few receives for all that they would like to send.
fn run_many(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let shared = rng.u16(24..100);
    let house = House::sharing(seed, FakeProfile::kind(), shared);
    let mut clients = Vec::new();
    for number in 0..12u8 {
        if let Some(pipeline) = try_connect(&house, seed + u64::from(number)) {
            clients.push((pipeline, Book { seed, first: number * 16, ..Book::default() }));
        }
    }
    assert!(clients.len() >= 3, "seed {seed}: only {} clients fit", clients.len());
    // On a kind fabric nobody ever sends what there is no receive for.
    let is_rough = rng.bool();
    if is_rough {
        house.borrow().net.set_profile(FakeProfile::rough());
    }
    for number in 0..300 {
        let at = rng.usize(..clients.len());
        let (pipeline, book) = &mut clients[at];
        book.submit(u64::from(book.first) << 32 | number, pipeline, &mut rng);
        if rng.u8(..4) == 0 {
            pipeline.poll(&mut book.done, 500).expect("a client polls");
        }
    }
    while clients.iter().any(|(pipeline, _)| pipeline.in_flight() > 0) {
        for (pipeline, book) in &mut clients {
            pipeline.poll(&mut book.done, 500).expect("a client polls");
            book.check_deadlines(pipeline.now_us());
        }
    }
    if !is_rough {
        assert_eq!(house.borrow().net.not_ready(), 0, "seed {seed}: a receive queue overran");
    }
    let books: Vec<_> = clients.into_iter().map(|(_, book)| book).collect();
    settle(&house, seed);
    books.into_iter().for_each(|book| book.check(true, &house.borrow().desk.stored));
}

#[test]
fn many_clients_that_share_too_few_receives_all_get_on() {
    each_seed(4, run_many);
}

#[test]
fn nothing_hangs_leaks_or_ends_twice_on_a_rough_fabric() {
    each_seed(1, run);
}

fn retrieve(cid: u16, memory: Fragment) -> Vec<u8> {
    let mut command = Command::new(Opcode::Retrieve, cid);
    command.namespace = U32::new(NS.0);
    command.data_length = memory.length;
    command.address = memory.address;
    command.memory_key = memory.key;
    command.seal(&[], b"key", &[]);
    [command.as_bytes(), b"key"].concat()
}

#[test]
fn a_client_that_names_memory_that_it_does_not_have_loses_its_connection_only() {
    let house = House::new(5, FakeProfile::kind());
    let mut good = connect(&house, 5);
    let data = Bytes::from(vec![5; 10_000]);
    good.call(Request::store(NS, b"key", data.clone())).unwrap();
    for lie in 0..5 {
        let mut bad = raw_peer(&house, client_shape(8));
        let lies = bad.elsewhere(10_000);
        bad.send(&retrieve(0, lies[lie]));
        until(&house, &mut bad, |peer| peer.is_closed());
        assert_eq!(good.call(Request::retrieve(NS, b"key", 0, 10_000)).unwrap().data, data);
    }
    let counters = house.borrow().server.as_ref().unwrap().counters();
    assert_eq!((counters.protocol_errors, counters.connections_open), (5, 1));
}

#[test]
fn a_client_that_loses_power_is_reaped_within_three_keep_alives() {
    let house = House::new(6, FakeProfile::kind());
    let mut good = connect(&house, 6);
    good.call(Request::store(NS, b"key", Bytes::from(vec![5; 100_000]))).unwrap();
    let open = || house.borrow().server.as_ref().unwrap().counters().connections_open;
    let net: FakeNet = house.borrow().net.clone();
    let shape = client_shape(8);
    let mut verbs: FakeVerbs<Vec<u8>> = net.process();
    let greeting = forebay_fabric::rdma::Greeting::of(&shape).note();
    let qp = verbs.connect(address(), greeting, shape).unwrap();
    let mut events = Vec::new();
    while !events.iter().any(|event| matches!(event, Event::Established { .. })) {
        net.advance(50);
        house.borrow_mut().step();
        verbs.poll(net.now_us(), &mut events);
    }
    for _ in 0..20 {
        net.advance(50);
        house.borrow_mut().step();
    }
    assert!(verbs.in_flight(qp) == 0 && open() == 2);
    verbs.lose_power();
    // It never said HELLO: one keep-alive is all that it had.
    let dead_us = net.now_us();
    while open() > 1 {
        good.call(Request::exist(NS, b"key")).unwrap();
        net.advance(10_000);
        house.borrow_mut().step();
        assert!(net.now_us() < dead_us + 3 * 1_000_000 + 100_000, "still there");
    }
}

#[test]
fn a_client_that_hangs_in_the_middle_is_reaped_and_its_buffers_come_back() {
    let house = House::new(7, FakeProfile::kind());
    let mut good = connect(&house, 7);
    good.call(Request::store(NS, b"key", Bytes::from(vec![5; 100_000]))).unwrap();
    let mut bad = raw_peer(&house, client_shape(8));
    for cid in 0..8 {
        let remote = bad.share(&[0; 100_000]);
        bad.send(&retrieve(cid, remote));
    }
    for _ in 0..3 {
        bad.turn();
        house.borrow_mut().step();
    }
    // From here on the process does nothing, and its network card goes on answering.
    let hung_us = house.borrow().net.now_us();
    loop {
        let counters = house.borrow().server.as_ref().unwrap().counters();
        if counters.connections_open == 1 {
            break;
        }
        good.call(Request::exist(NS, b"key")).unwrap();
        house.borrow().net.advance(5_000);
        house.borrow_mut().step();
        let now_us = house.borrow().net.now_us();
        assert!(now_us < hung_us + 3 * 500_000 + 1_200_000, "still there");
    }
    assert_eq!(house.borrow().desk.buffers.live(), 0);
    drop(bad);
    drop(good);
    settle(&house, 7);
}

#[test]
fn garbage_in_the_connection_request_is_refused_and_a_storm_of_peers_leaves_nothing() {
    let house = House::new(8, FakeProfile::kind());
    let net = house.borrow().net.clone();
    let mut rng = fastrand::Rng::with_seed(8);
    let shape = client_shape(8);
    let mut peers: Vec<FakeVerbs<Vec<u8>>> = Vec::new();
    let mut refused = 0;
    for number in 0..1000 {
        let mut verbs = net.process();
        let ask = if number % 2 == 0 {
            let length = rng.usize(0..=56);
            Note::new(&(0..length).map(|_| rng.u8(..)).collect::<Vec<_>>())
        } else {
            forebay_fabric::rdma::Greeting::of(&shape).note()
        };
        verbs.connect(address(), ask, shape).unwrap();
        peers.push(verbs);
        if rng.u8(..8) == 0 {
            net.advance(100);
            house.borrow_mut().step();
        }
        if peers.len() > 40 {
            let mut events = Vec::new();
            let mut gone = peers.swap_remove(rng.usize(..peers.len()));
            gone.poll(net.now_us(), &mut events);
            refused += events.iter().filter(|e| matches!(e, Event::Refused { .. })).count();
        }
    }
    assert!(refused > 300, "{refused} were refused");
    drop(peers);
    settle(&house, 8);
}

/// What a transport says, in order.
#[derive(Default)]
struct Log(Vec<(ConnId, String)>);

impl Sink<Vec<u8>> for Log {
    fn connected(&mut self, conn: ConnId) {
        self.0.push((conn, "connected".into()));
    }
    fn pdu(&mut self, _: ConnId, _: &[u8]) -> Result<(), &'static str> {
        Ok(())
    }
    fn pulled(&mut self, conn: ConnId, cid: u16, buffer: Vec<u8>, complete: bool) {
        self.0.push((conn, format!("pulled {cid} {complete} {}", buffer[0])));
    }
    fn closed(&mut self, conn: ConnId, reason: CloseReason) {
        self.0.push((conn, format!("closed: {reason}")));
    }
}

fn step(net: &FakeNet, transport: &mut RdmaTransport<FakeVerbs<Vec<u8>>>, log: &mut Log) {
    net.advance(100);
    transport.poll(net.now_us(), log);
    transport.flush(net.now_us());
}

/// A client may use its memory for something else once it has the response: a command that is
/// answered at its deadline, with its READ under way, is therefore answered after the READ.
#[test]
fn a_response_waits_for_the_read_of_its_command() {
    let profile = FakeProfile { delay_us: 5_000, ..FakeProfile::kind() };
    let net = FakeNet::new(9, profile);
    let mut transport: RdmaTransport<FakeVerbs<Vec<u8>>> =
        RdmaTransport::new(net.listen(address()), RdmaConfig::default());
    let hub = Hub::new(net.process::<Vec<u8>>(), client_shape(8));
    let line = hub.connect(address()).unwrap();
    let clock = net.clone();
    let mut peer = LinePeer::new(hub, line, move || clock.now_us());
    let mut log = Log::default();
    while log.0.is_empty() {
        step(&net, &mut transport, &mut log);
        peer.turn();
    }
    let conn = log.0[0].0;
    let response = |cid| {
        let (status, credit_limit) = (Status::Timeout, 1);
        let (flags, data_length, result, data_crc) = (0, 0, 0, 0);
        Response::new(&Outcome { cid, flags, status, credit_limit, data_length, result, data_crc })
    };
    let first = peer.lend(1, vec![7; 100_000]);
    let second = peer.lend(2, vec![8; 100_000]);
    transport.pull(conn, 1, first.get(), vec![0; 100_000]);
    transport.flush(net.now_us());
    // This one has not begun when it is answered: it never will.
    transport.pull(conn, 2, second.get(), vec![0; 100_000]);
    transport.send(conn, response(1).as_bytes());
    transport.send(conn, response(2).as_bytes());
    let mut answers = 0;
    while answers < 2 {
        step(&net, &mut transport, &mut log);
        peer.turn();
        let received = peer.received();
        answers += received.iter().filter(|pdu| pdu[0] == PduType::Response as u8).count();
        let read = log.0.iter().any(|(_, event)| event == "pulled 1 true 7");
        assert!(read || answers < 2, "answered while the READ is under way");
    }
    assert!(log.0.iter().any(|(_, event)| event == "pulled 2 false 0"), "{:?}", log.0);
}

/// What is queued when a connection is closed may be more than the peer has receives for: the credits
/// by which the rest leaves are heard although nothing else is.
#[test]
fn closing_in_order_waits_for_the_credits_of_a_slow_peer() {
    let net = FakeNet::new(10, FakeProfile::kind());
    let mut transport: RdmaTransport<FakeVerbs<Vec<u8>>> =
        RdmaTransport::new(net.listen(address()), RdmaConfig::default());
    let hub = Hub::new(net.process::<Vec<u8>>(), Shape { receives: 8, ..client_shape(1) });
    let line = hub.connect(address()).unwrap();
    let clock = net.clone();
    let mut peer = LinePeer::new(hub, line, move || clock.now_us());
    let mut log = Log::default();
    while log.0.is_empty() {
        step(&net, &mut transport, &mut log);
        peer.turn();
    }
    let conn = log.0[0].0;
    for nonce in 0..200 {
        transport.send(conn, Ping::new(PduType::Ping, nonce).as_bytes());
    }
    transport.close(conn, false);
    let mut received = 0;
    while log.0.len() < 2 {
        step(&net, &mut transport, &mut log);
        peer.turn();
        received += peer.received().len();
    }
    assert_eq!(received, 200);
}
