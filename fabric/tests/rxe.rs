//! Real verbs. Runs where there is an RDMA device (soft-RoCE does), at the address in `FOREBAY_RXE`;
//! elsewhere every test says that it is skipped.

use forebay_fabric::Status;
use forebay_fabric::client::{Address, Client, ClientConfig, NamespaceId};
use forebay_fabric::conformance::{self, CONNECTIONS_MAX, Counted, Peer, Wire};
use forebay_fabric::pdu::{Capsule, Endpoint, Fragment, Opcode, Outcome, crc32c};
use forebay_fabric::rdma::client::{Hub, client_shape};
use forebay_fabric::rdma::{
    Chain, Event, Greeting, LentRegion, LinePeer, Note, Provider, Qp, RdmaConfig, RdmaTransport,
    Shape, Violation,
};
use forebay_fabric::region::{HugePages, Region as CallersRegion, Usage};
use forebay_fabric::server::{Reply, RequestId, Server, ServerConfig, Service};
use forebay_fabric::transport::{ConnId, Payload, Payloads, RemoteMemory};
use forebay_fabric::verbs::{GidKind, Listener, Verbs, VerbsConfig, devices};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The address of an RDMA device, unless this machine has none.
fn address() -> Option<IpAddr> {
    let found = std::env::var("FOREBAY_RXE").ok()?.parse().ok();
    if found.is_none() {
        eprintln!("skipped: FOREBAY_RXE is not an address");
    }
    found
}

#[expect(clippy::disallowed_methods, reason = "a test of real hardware")]
fn now() -> Instant {
    Instant::now()
}

fn server_shape() -> Shape {
    Shape { receives: 16, receive_bytes: 16 << 10, reads: 16, remote_access: false, shared: false }
}

/// `IBV_ACCESS_REMOTE_WRITE`, `IBV_ACCESS_REMOTE_READ` and `IBV_ACCESS_REMOTE_ATOMIC`.
const REMOTE_RIGHTS: u32 = 2 | 4 | 8;

/// Both ends of one connection, each with a provider of its own.
struct Ends {
    server: Verbs<Vec<u8>>,
    client: Verbs<Vec<u8>>,
    server_qp: Qp,
    client_qp: Qp,
    address: SocketAddr,
    start: Instant,
}

type Events = Vec<Event<Vec<u8>>>;

impl Ends {
    fn new(ip: IpAddr, server_shape: Shape) -> Self {
        let (server, address) = listen(ip);
        let client = Verbs::new(VerbsConfig::default()).expect("a device");
        let none = Qp { slot: u16::MAX, generation: 0 };
        let mut ends =
            Self { server, client, server_qp: none, client_qp: none, address, start: now() };
        ends.connect(server_shape);
        ends
    }

    fn connect(&mut self, server_shape: Shape) {
        let shape = client_shape(8);
        let ask = Greeting::of(&shape).note();
        self.client_qp = self.client.connect(self.address, ask, shape).expect("it starts");
        let (mut here, mut there) = (false, false);
        while !(here && there) {
            let (server, client) = self.turn();
            for event in server {
                match event {
                    Event::Requested { request, ask, reads } => {
                        assert_eq!(Greeting::parse(&ask), Some(Greeting::of(&shape)));
                        assert!(reads > 0);
                        let answer = Greeting::of(&server_shape).note();
                        self.server_qp =
                            self.server.accept(request, answer, server_shape).expect("accepted");
                    }
                    Event::Established { .. } => here = true,
                    other => panic!("{other:?}"),
                }
            }
            for event in client {
                match event {
                    Event::Established { answer, .. } => {
                        assert_eq!(Greeting::parse(&answer), Some(Greeting::of(&server_shape)));
                        there = true;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn turn(&mut self) -> (Events, Events) {
        let now_us = self.start.elapsed().as_micros() as u64;
        assert!(self.start.elapsed() < Duration::from_secs(60), "nothing happens any more");
        let (mut server, mut client) = (Vec::new(), Vec::new());
        self.server.poll(now_us, &mut server);
        self.client.poll(now_us, &mut client);
        (server, client)
    }

    /// Turns until `found` has found what it looks for in an event of the server or the client.
    fn until<T>(&mut self, mut found: impl FnMut(bool, Event<Vec<u8>>) -> Option<T>) -> T {
        loop {
            let (server, client) = self.turn();
            let server = server.into_iter().map(|event| (true, event));
            for (side, event) in server.chain(client.into_iter().map(|event| (false, event))) {
                if let Some(found) = found(side, event) {
                    return found;
                }
            }
        }
    }
}

fn listen(ip: IpAddr) -> (Verbs<Vec<u8>>, SocketAddr) {
    let any = SocketAddr::new(ip, 0);
    let listener = Listener::bind(any).expect("the address of a device");
    let port = listener.port();
    let server = Verbs::serve(VerbsConfig::default(), listener).expect("a device");
    (server, SocketAddr::new(ip, port))
}

fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

fn message(ends: &Ends, at_server: bool, event: &Event<Vec<u8>>) -> Option<(Vec<u8>, u32)> {
    let Event::Received { qp, receive, length, immediate } = *event else { return None };
    let side = if at_server { &ends.server } else { &ends.client };
    Some((side.received(qp, receive, length).to_vec(), immediate))
}

fn receive(ends: &mut Ends, wanted_at_server: bool) -> (Vec<u8>, u32) {
    loop {
        let (server, client) = ends.turn();
        let events = if wanted_at_server { &server } else { &client };
        if let Some(found) = events.iter().find_map(|event| message(ends, wanted_at_server, event))
        {
            return found;
        }
    }
}

#[test]
fn there_is_a_device_and_its_address_is_found_as_roce_v2() {
    let Some(ip) = address() else { return };
    assert!(!devices().unwrap().is_empty());
    let verbs: Verbs<Vec<u8>> = Verbs::new(VerbsConfig::default()).unwrap();
    let (device, gid) = verbs.gid_for(ip).expect("a GID for the address");
    assert_eq!(gid.kind, GidKind::RoceV2, "{device}: {gid:?}");
}

/// Who knows the packet numbers can forge packets: they begin anywhere. And nobody is waited for without an
/// end, but for a server's receives.
#[test]
fn packet_numbers_are_random_and_a_silent_peer_is_given_up() {
    let Some(ip) = address() else { return };
    let mut numbers = BTreeSet::new();
    let mut ends = Ends::new(ip, server_shape());
    for _ in 0..8 {
        let server = ends.server.facts(ends.server_qp).unwrap();
        let client = ends.client.facts(ends.client_qp).unwrap();
        assert_eq!(server.send_psn, client.receive_psn);
        assert_eq!(client.send_psn, server.receive_psn);
        numbers.extend([server.send_psn, client.send_psn]);
        for facts in [server, client] {
            assert!((1..=6).contains(&facts.retries) && (1..=18).contains(&facts.ack_timeout));
        }
        assert!(server.not_ready_retries <= 3 && client.not_ready_retries == 7);
        assert_eq!(server.access & REMOTE_RIGHTS, 0);
        ends.connect(server_shape());
    }
    // Of 16 numbers of 24 bits: that two are close to each other is less likely than one in 1 000.
    let close = numbers.iter().zip(numbers.iter().skip(1)).any(|(one, next)| next - one < 64);
    assert!(numbers.len() == 16 && !close, "{numbers:?}");
}

#[test]
fn messages_go_both_ways_inline_and_not() {
    let Some(ip) = address() else { return };
    let mut ends = Ends::new(ip, server_shape());
    for (round, length) in [0, 1, 32, 64, 300, 4096, 16 << 10].into_iter().enumerate() {
        let bytes = pattern(length, round as u64);
        let mut chain = Chain::default();
        chain.send(&bytes, round as u32);
        let qp = ends.client_qp;
        ends.client.post(qp, &mut chain);
        assert_eq!(receive(&mut ends, true), (bytes.clone(), round as u32));
        chain.send(&bytes, 100);
        let qp = ends.server_qp;
        ends.server.post(qp, &mut chain);
        assert_eq!(receive(&mut ends, false), (bytes, 100));
    }
}

#[test]
fn the_server_reads_and_writes_the_clients_memory() {
    let Some(ip) = address() else { return };
    let mut ends = Ends::new(ip, server_shape());
    let mut region = ends.client.region(ends.client_qp, 8 << 20).unwrap();
    let limits = ends.server.limits();
    let (address, key) = (region.address() + 1, region.key());
    let value = pattern(3 << 20, 1);
    region.write(1, &value);
    let whole = [Fragment::new(address, key, value.len() as u32)];
    let remote = RemoteMemory::new(&whole);
    let (mut chain, qp) = (Chain::default(), ends.server_qp);
    chain.read(7, remote, vec![0; value.len() + 3], &limits);
    ends.server.post(qp, &mut chain);
    let found = ends.until(|_, event| match event {
        Event::Read { token: 7, buffer, complete: true, .. } => Some(buffer),
        Event::Progress { .. } => None,
        other => panic!("{other:?}"),
    });
    assert!(found[..value.len()] == value && found[value.len()..] == [0; 3]);
    // 150 fragments, and the message that says so behind them, with one doorbell.
    let parts: Vec<Vec<u8>> = (0..150).map(|n| pattern(1 + 97 * n, n as u64)).collect();
    let payloads = parts.iter().map(|part| {
        let range = 0..part.len();
        Payload { buffer: part.clone(), range }
    });
    chain.write(remote, payloads, &limits);
    chain.send(b"done", 5);
    ends.server.post(qp, &mut chain);
    assert_eq!(receive(&mut ends, false), (b"done".to_vec(), 5));
    let joined = parts.concat();
    let mut found = vec![0; joined.len()];
    region.read(1, &mut found);
    assert!(found == joined, "the data is there before the message");
    while ends.server.in_flight(qp) > 0 {
        ends.turn();
    }
    // The client's memory in 256 pieces, most of them at odd addresses, and back.
    let fragments: Vec<_> = (0..256)
        .map(|number| Fragment::new(address + 5000 * number, key, 1 + 17 * number as u32))
        .collect();
    let remote = RemoteMemory::new(&fragments);
    let value = pattern(remote.length() as usize, 2);
    region.write(0, &vec![0xEE; 2 << 20]);
    let payload = Payload { range: 0..value.len(), buffer: value.clone() };
    chain.write(remote, std::iter::once(payload), &limits);
    chain.read(8, remote, vec![0; value.len()], &limits);
    assert_eq!(chain.steps().len(), 512, "half of them fit twice");
    ends.server.post(qp, &mut chain);
    let found = ends.until(|_, event| match event {
        Event::Read { token: 8, buffer, complete: true, .. } => Some(buffer),
        Event::Progress { .. } => None,
        other => panic!("{other:?}"),
    });
    assert!(found == value, "what was written is what is read");
    let mut found = vec![0; 5000 * 256];
    region.read(1, &mut found);
    let (mut hit, mut spared) = (Vec::new(), true);
    for (number, space) in found.chunks(5000).enumerate() {
        let (inside, outside) = space.split_at(1 + 17 * number);
        hit.extend_from_slice(inside);
        spared &= outside.iter().all(|byte| *byte == 0xEE);
    }
    assert!(hit == value && spared, "the fragments, and nothing else");
}

#[test]
fn a_wrong_key_or_address_breaks_that_queue_pair_and_no_other() {
    let Some(ip) = address() else { return };
    let mut ends = Ends::new(ip, server_shape());
    let region = ends.client.region(ends.client_qp, 64 << 10).unwrap();
    let good = (ends.server_qp, ends.client_qp);
    let limits = ends.server.limits();
    let (address, key) = (region.address(), region.key());
    let lies = [(address, key ^ 0x55), (address - 1, key), (address + 60_000, key), (0, 0)];
    for (address, key) in lies {
        for writes in [false, true] {
            ends.connect(server_shape());
            let qp = ends.server_qp;
            let wrong = [Fragment::new(address, key, 10_000)];
            let remote = RemoteMemory::new(&wrong);
            let mut chain = Chain::default();
            if writes {
                let payload = Payload { buffer: vec![1; 10_000], range: 0..10_000 };
                chain.write(remote, std::iter::once(payload), &limits);
                chain.send(b"never", 0);
            } else {
                chain.read(1, remote, vec![0; 10_000], &limits);
            }
            ends.server.post(qp, &mut chain);
            let why = ends.until(|at_server, event| match event {
                Event::Broken { qp: broken, why } if at_server => {
                    assert_eq!(broken, qp);
                    Some(why)
                }
                _ => None,
            });
            assert_eq!(why, Violation::RemoteAccess, "{address:x} {key:x}");
            ends.server.break_off(qp);
            while !ends.server.is_drained(qp) {
                ends.turn();
            }
            ends.server.release(qp, &mut |_, _| {});
            let theirs = ends.client_qp;
            ends.client.release(theirs, &mut |_, _| {});
        }
    }
    (ends.server_qp, ends.client_qp) = good;
    let mut chain = Chain::default();
    chain.send(b"still here", 1);
    ends.client.post(good.1, &mut chain);
    assert_eq!(receive(&mut ends, true), (b"still here".to_vec(), 1));
}

#[test]
fn a_server_lets_nobody_read_or_write_its_memory() {
    let Some(ip) = address() else { return };
    let mut ends = Ends::new(ip, server_shape());
    // Memory of the server's process that is registered with remote rights, as no server does: even so
    // its queue pairs take no READ and no WRITE.
    let mut region = ends.server.region(ends.server_qp, 4096).unwrap();
    region.write(0, &[9; 4096]);
    let limits = ends.client.limits();
    let theirs = [Fragment::new(region.address(), region.key(), 4096)];
    let remote = RemoteMemory::new(&theirs);
    for reads in [false, true] {
        let (qp, theirs) = (ends.client_qp, ends.server_qp);
        let mut chain = Chain::default();
        if reads {
            chain.read(1, remote, vec![0; 4096], &limits);
        } else {
            let payload = Payload { buffer: vec![1; 4096], range: 0..4096 };
            chain.write(remote, std::iter::once(payload), &limits);
        }
        ends.client.post(qp, &mut chain);
        ends.until(|at_server, event| match event {
            Event::Broken { qp: broken, .. } if !at_server && broken == qp => Some(()),
            Event::Read { complete, .. } => {
                assert!(!complete, "the server's memory was read");
                None
            }
            _ => None,
        });
        let mut found = vec![0; 4096];
        region.read(0, &mut found);
        assert!(found == [9; 4096], "the server's memory was written to");
        ends.client.release(qp, &mut |_, _| {});
        ends.server.release(theirs, &mut |_, _| {});
        if !reads {
            ends.connect(server_shape());
        }
    }
}

#[test]
fn a_peer_that_posts_no_receives_is_given_up() {
    let Some(ip) = address() else { return };
    let mut ends = Ends::new(ip, server_shape());
    let qp = ends.server_qp;
    let began = now();
    for _ in 0..40 {
        let mut chain = Chain::default();
        chain.send(b"no receive is left for all of these", 0);
        if ends.server.room(qp).works > 0 {
            ends.server.post(qp, &mut chain);
        }
    }
    let why = ends.until(|at_server, event| match event {
        Event::Broken { why, .. } if at_server => Some(why),
        _ => None,
    });
    assert_eq!(why, Violation::NotReady);
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_client_that_is_gone_is_noticed_and_everything_comes_back() {
    let Some(ip) = address() else { return };
    let mut ends = Ends::new(ip, server_shape());
    let region = ends.client.region(ends.client_qp, 16 << 20).unwrap();
    let (limits, qp) = (ends.server.limits(), ends.server_qp);
    for token in 0..16 {
        let length = 1 << 20;
        let address = region.address() + u64::from(token * length);
        let fragment = [Fragment::new(address, region.key(), length)];
        let remote = RemoteMemory::new(&fragment);
        let mut chain = Chain::default();
        chain.read(token, remote, vec![0; length as usize], &limits);
        ends.server.post(qp, &mut chain);
    }
    let dead = std::mem::replace(&mut ends.client, Verbs::new(VerbsConfig::default()).unwrap());
    drop((dead, region));
    let mut read = 0;
    ends.until(|at_server, event| match event {
        Event::Disconnected { .. } | Event::Broken { .. } if at_server => Some(()),
        Event::Read { .. } => {
            read += 1;
            None
        }
        _ => None,
    });
    ends.server.break_off(qp);
    while !ends.server.is_drained(qp) {
        let (server, _) = ends.turn();
        read += server.iter().filter(|event| matches!(event, Event::Read { .. })).count();
    }
    assert_eq!(read, 16, "every buffer comes back once");
    ends.server.release(qp, &mut |_, _| panic!("nothing was left"));
}

#[test]
fn garbage_in_the_connection_request_and_refusals_arrive() {
    let Some(ip) = address() else { return };
    let (mut server, address) = listen(ip);
    let mut client: Verbs<Vec<u8>> = Verbs::new(VerbsConfig::default()).unwrap();
    let start = now();
    for length in [0, 1, 24, 56] {
        let ask = Note::new(&pattern(length, length as u64));
        let qp = client.connect(address, ask, client_shape(8)).unwrap();
        let mut refused = None;
        while refused.is_none() {
            let now_us = start.elapsed().as_micros() as u64;
            let (mut here, mut there) = (Vec::new(), Vec::new());
            server.poll(now_us, &mut here);
            client.poll(now_us, &mut there);
            for event in here {
                let Event::Requested { request, ask, .. } = event else { panic!("{event:?}") };
                assert_eq!(Greeting::parse(&ask), None);
                server.reject(request, Note::new(b"no"));
            }
            for event in there {
                let Event::Refused { answer, .. } = event else { panic!("{event:?}") };
                refused = Some(answer);
            }
        }
        assert_eq!(&refused.unwrap().bytes()[..2], b"no");
        client.release(qp, &mut |_, _| {});
    }
}

struct RxeWire {
    address: SocketAddr,
    transport: RdmaTransport<Verbs<Counted>>,
    start: Instant,
}

impl Wire for RxeWire {
    type Transport = RdmaTransport<Verbs<Counted>>;
    type Peer = LinePeer<Verbs<Vec<u8>>, Box<dyn FnMut() -> u64>>;

    fn transport(&mut self) -> &mut Self::Transport {
        &mut self.transport
    }

    fn connect(&mut self) -> Self::Peer {
        let verbs = Verbs::new(VerbsConfig::default()).expect("a device");
        let hub = Hub::new(verbs, Shape { receives: 24, ..client_shape(8) });
        let line = hub.connect(self.address).expect("a connection starts");
        let start = self.start;
        LinePeer::new(hub, line, Box::new(move || start.elapsed().as_micros() as u64))
    }

    #[expect(clippy::disallowed_methods, reason = "soft-RoCE needs the processor, too")]
    fn tick(&mut self) -> u64 {
        std::thread::sleep(Duration::from_micros(50));
        self.start.elapsed().as_micros() as u64
    }
}

#[test]
fn real_verbs_conform() {
    conform(0);
}

#[test]
fn real_verbs_conform_with_shared_receives() {
    conform(8 * CONNECTIONS_MAX);
}

/// `shared`: so many receives are shared; 0: each connection has its own.
fn conform(shared: u16) {
    let Some(ip) = address() else { return };
    let mut make = || {
        let config = RdmaConfig {
            connections_max: CONNECTIONS_MAX,
            receives: 32,
            receive_bytes: 128 << 10,
            // Software on a slow machine: a second is not enough for what may be queued.
            linger_us: 10_000_000,
            ..RdmaConfig::default()
        };
        let any = SocketAddr::new(ip, 0);
        let listener = Listener::bind(any).expect("the address of a device");
        let address = SocketAddr::new(ip, listener.port());
        let mut verbs = Verbs::serve(VerbsConfig::default(), listener).expect("a device");
        if shared > 0 {
            verbs.share_receives(shared, config.receive_bytes).expect("shared receives");
        }
        let transport = RdmaTransport::new(verbs, config);
        RxeWire { address, transport, start: now() }
    };
    conformance::run(&mut make, 1);
    conformance::run_memory(&mut make, 2);
}

/// A value, or none, and what the reactor still has to do.
#[derive(Default)]
struct Desk {
    value: Option<Vec<u8>>,
    pulls: Vec<(RequestId, usize)>,
    replies: Vec<(RequestId, Reply<Vec<u8>>)>,
}

impl Service<Vec<u8>> for Desk {
    fn request(&mut self, id: RequestId, capsule: &Capsule<'_>, _deadline_us: u64) {
        let length = capsule.command.data_length.get() as usize;
        match capsule.opcode {
            Some(Opcode::Store) if !capsule.is_in_capsule() => self.pulls.push((id, length)),
            Some(Opcode::Store) => self.pulled(id, capsule.data.to_vec(), true),
            _ => {
                let value = self.value.clone().unwrap_or_default();
                let mut reply = Reply::status(Status::Ok, value.len() as u64);
                reply.data_crc = crc32c(&value);
                let range = 0..value.len();
                reply.payload = Some(Payload { buffer: value, range });
                self.replies.push((id, reply));
            }
        }
    }

    fn pulled(&mut self, id: RequestId, buffer: Vec<u8>, complete: bool) {
        assert!(complete, "the client is there");
        self.value = Some(buffer);
        self.replies.push((id, Reply::status(Status::Ok, 0)));
    }

    fn abandoned(&mut self, _: RequestId, why: Status) {
        assert_eq!(why, Status::Disconnected, "nothing takes longer than its deadline");
    }
}

/// A reactor with a server, until `ended`. It says its address first.
fn serve(ip: IpAddr, said: &mpsc::Sender<SocketAddr>, ended: &AtomicBool) {
    let listener = Listener::bind(SocketAddr::new(ip, 0)).expect("the address of a device");
    let address = SocketAddr::new(ip, listener.port());
    let mut verbs = Verbs::serve(VerbsConfig::default(), listener).expect("a device");
    verbs.share_receives(64, RdmaConfig::default().receive_bytes).expect("shared receives");
    let config = ServerConfig {
        queue_depth: 32,
        capsule_bytes: 8 << 10,
        keep_alive_ms: 5_000,
        timeout_max_us: 30_000_000,
        connections_max: 4,
        pool: [7; 16],
        incarnation: [1; 16],
        reactor: 0,
        catalog_reactor: 0,
        shard_map: vec![0],
        reactors: 1,
        endpoints: vec![Endpoint::rdma(0, address)],
    };
    let mut server = Server::new(RdmaTransport::new(verbs, RdmaConfig::default()), config);
    let (mut desk, start) = (Desk::default(), now());
    said.send(address).expect("somebody asks");
    while !ended.load(Ordering::Relaxed) {
        let now_us = start.elapsed().as_micros() as u64;
        server.poll(now_us, &mut desk);
        for (id, length) in desk.pulls.drain(..) {
            server.pull(id, vec![0; length]);
        }
        for (id, reply) in desk.replies.drain(..) {
            server.reply(id, reply);
        }
        server.flush(now_us);
        std::thread::yield_now();
    }
}

#[test]
fn the_client_stores_and_retrieves_by_rdma() {
    let Some(ip) = address() else { return };
    let (said, heard) = mpsc::channel();
    let ended = Arc::new(AtomicBool::new(false));
    let until = Arc::clone(&ended);
    let server = std::thread::spawn(move || serve(ip, &said, &until));
    // What `auto` stands for; nobody listens at that port with TCP.
    let addresses = Address::auto(heard.recv().unwrap()).to_vec();
    let config = ClientConfig { queue_depth: 32, ..ClientConfig::new(addresses) };
    let mut client = Client::connect(config).unwrap();
    for length in [1, 4096, 5000, 65_537, 1 << 20, 4 << 20] {
        let value = pattern(length, length as u64);
        client.store(NamespaceId(16), b"key", value.clone()).unwrap();
        assert!(client.retrieve(NamespaceId(16), b"key").unwrap() == Some(value), "{length} bytes");
    }
    drop(client);
    ended.store(true, Ordering::Relaxed);
    server.join().unwrap();
}

fn client_of(heard: &mpsc::Receiver<SocketAddr>) -> Client {
    let addresses = vec![Address::Rdma(heard.recv().expect("a server"))];
    let config = ClientConfig { queue_depth: 32, ..ClientConfig::new(addresses) };
    Client::connect(config).expect("it takes connections")
}

#[test]
fn values_land_in_a_callers_region_and_are_sent_from_there() {
    const NS: NamespaceId = NamespaceId(16);
    let Some(ip) = address() else { return };
    let (said, heard) = mpsc::channel();
    let ended = Arc::new(AtomicBool::new(false));
    let until = Arc::clone(&ended);
    let server = std::thread::spawn(move || serve(ip, &said, &until));
    let mut client = client_of(&heard);
    let (from, into) = (CallersRegion::new(5 << 20).unwrap(), CallersRegion::new(5 << 20).unwrap());
    client.register(&from).unwrap();
    for length in [1usize, 4096, 9001, 65_537, 1 << 20, 4 << 20] {
        let value = pattern(length, length as u64);
        let cut = length / 3;
        from.write(5, &value[..cut]).unwrap();
        from.write(cut + 100, &value[cut..]).unwrap();
        let fragments = [from.fragment(5..cut + 5), from.fragment(cut + 100..length + 100)];
        client.store_from(NS, b"key", &fragments).unwrap();
        into.write(0, &vec![9; 5 << 20]).unwrap();
        // One fragment that is longer than the value, and two that are not in order.
        for fragments in [
            vec![into.fragment(3..(4 << 20) + 7)],
            vec![into.fragment(3..3 + cut), into.fragment(cut + 3..into.bytes())],
        ] {
            let came = client.retrieve_into(NS, b"key", 0, &fragments).unwrap().unwrap();
            assert_eq!((came.length as usize, came.value_bytes), (length, length as u64));
            assert!(into.is_idle());
            let mut found = vec![0; length + 6];
            into.read(0, &mut found).unwrap();
            assert!(found[3..length + 3] == value, "{length} bytes");
            assert!(found[..3] == [9; 3] && found[length + 3..] == [9; 3], "{length} bytes");
        }
    }
    let file = tempfile::tempfile().unwrap();
    file.set_len(8192).unwrap();
    let device = CallersRegion::dma_buf(file.into(), 0, 8192, Usage::Both).unwrap();
    let error = client.register(&device).unwrap_err().to_string();
    assert!(error.contains("soft-RoCE never can"), "{error}");
    let refused = client.retrieve_into(NS, b"key", 0, &[device.whole()]).unwrap_err();
    assert_eq!(refused.status(), Some(Status::Memory));
    drop(client);
    ended.store(true, Ordering::Relaxed);
    server.join().unwrap();
}

/// Whether the server may read what is behind `key`, and write there.
fn rights(ends: &mut Ends, address: u64, key: u32) -> (bool, bool) {
    let mut may = [false; 2];
    for (writes, may) in [false, true].into_iter().zip(&mut may) {
        ends.connect(server_shape());
        let (qp, theirs, limits) = (ends.server_qp, ends.client_qp, ends.server.limits());
        let named = [Fragment::new(address, key, 1000)];
        let remote = RemoteMemory::new(&named);
        let mut chain = Chain::default();
        if writes {
            let payload = Payload { buffer: vec![1; 1000], range: 0..1000 };
            chain.write(remote, std::iter::once(payload), &limits);
            chain.send(b"written", 0);
        } else {
            chain.read(1, remote, vec![0; 1000], &limits);
        }
        ends.server.post(qp, &mut chain);
        *may = ends.until(|at_server, event| match event {
            Event::Read { complete: true, .. } | Event::Received { .. } => Some(true),
            Event::Broken { why, .. } if at_server => {
                assert_eq!(why, Violation::RemoteAccess);
                Some(false)
            }
            _ => None,
        });
        ends.server.break_off(qp);
        while !ends.server.is_drained(qp) {
            ends.turn();
        }
        ends.server.release(qp, &mut |_, _| {});
        ends.client.release(theirs, &mut |_, _| {});
    }
    (may[0], may[1])
}

#[test]
fn a_server_has_the_rights_of_a_regions_usage_as_long_as_there_is_a_region() {
    let Some(ip) = address() else { return };
    let mut ends = Ends::new(ip, server_shape());
    let qp = ends.client_qp;
    for usage in [Usage::Stores, Usage::Retrieves, Usage::Both] {
        let region = CallersRegion::allocate(4096, usage, HugePages::No).unwrap();
        let key = ends.client.offer(qp, &region).unwrap();
        assert_eq!(ends.client.offer(qp, &region).unwrap(), key, "registered once");
        let address = region.device_address();
        let may = rights(&mut ends, address, key);
        assert_eq!(may, (usage.stores(), usage.retrieves()), "{usage:?}");
        drop(region);
        assert_eq!(rights(&mut ends, address, key), (false, false), "{usage:?}: deregistered");
    }
}

/// What one retrieve of 1 MiB moves, and how long it takes here: printed, not judged.
#[test]
fn retrieves_of_a_mebibyte_are_timed() {
    use forebay_fabric::transport::{CloseReason, Sink, Transport};
    struct Quiet(Option<ConnId>);
    impl Sink<Vec<u8>> for Quiet {
        fn connected(&mut self, conn: ConnId) {
            self.0 = Some(conn);
        }
        fn pdu(&mut self, _: ConnId, _: &[u8]) -> Result<(), &'static str> {
            Ok(())
        }
        fn pulled(&mut self, _: ConnId, _: u16, _: Vec<u8>, _: bool) {}
        fn closed(&mut self, _: ConnId, reason: CloseReason) {
            panic!("{reason}");
        }
    }
    let Some(ip) = address() else { return };
    let (verbs, address) = listen(ip);
    let mut transport = RdmaTransport::new(verbs, RdmaConfig::default());
    let start = now();
    let clock = move || start.elapsed().as_micros() as u64;
    let verbs: Verbs<Vec<u8>> = Verbs::new(VerbsConfig::default()).unwrap();
    let hub = Hub::new(verbs, client_shape(64));
    let line = hub.connect(address).unwrap();
    let mut peer = LinePeer::new(hub, line, clock);
    let mut sink = Quiet(None);
    while sink.0.is_none() {
        peer.turn();
        transport.poll(clock(), &mut sink);
    }
    let (conn, length, count) = (sink.0.unwrap(), 1 << 20, 32);
    let mut spare: Vec<Vec<u8>> = (0..count).map(|_| pattern(length, 1)).collect();
    let began = now();
    for cid in 0..count as u16 {
        let remote = peer.expect(cid, length);
        let data_length = length as u32;
        let outcome = Outcome { data_length, ..Outcome::bare(cid, Status::Ok, 1) };
        let payload = Payload { buffer: spare.pop().unwrap(), range: 0..length };
        transport.push(conn, &outcome, remote.get(), Payloads::One(&mut Some(payload)));
    }
    let mut received = 0;
    while received < count {
        transport.flush(clock());
        transport.poll(clock(), &mut sink);
        peer.turn();
        received += peer.received().len();
    }
    let seconds = began.elapsed().as_secs_f64();
    println!("{:.1} MiB/s of pushes of 1 MiB, client's copies included", count as f64 / seconds);
}
