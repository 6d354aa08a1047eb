//! The suite that every [`Transport`] passes, whatever is beneath it.
//!
//! Guarantees checked: those of [`crate::transport`], one function each, named as a claim. A failed
//! claim panics with what was expected and the seed. A transport brings a [`Wire`]: itself, peers
//! that speak its language ([`StreamPeer`] does for byte streams), and a clock.

use crate::client::{Lent, Stream};
use crate::pdu::{
    COMMON_HEADER_BYTES, Command, CommonHeader, Data, GoAway, GoAwayReason, Opcode, Outcome,
    PduType, Ping, ReadyToTransfer, Response, response_flags,
};
use crate::transport::{CloseReason, ConnId, Payload, RemoteMemory, Sink, Transport};
use crate::{Buffer, Status};
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::rc::Rc;
use zerocopy::IntoBytes;

/// Connections that the transport under test has room for.
pub const CONNECTIONS_MAX: u16 = 4;
/// After so many turns without the expected event, a claim has failed.
const TURNS_MAX: usize = 300_000;

/// A buffer that is counted while it lives.
#[derive(Debug)]
pub struct Counted {
    bytes: Vec<u8>,
    live: Rc<Cell<usize>>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsMut<[u8]> for Counted {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.live.set(self.live.get() - 1);
    }
}

/// Makes [`Counted`] buffers.
#[derive(Clone, Debug, Default)]
pub struct Buffers {
    live: Rc<Cell<usize>>,
}

impl Buffers {
    /// A buffer that holds `bytes`.
    #[must_use]
    pub fn holding(&self, bytes: Vec<u8>) -> Counted {
        self.live.set(self.live.get() + 1);
        Counted { bytes, live: self.live.clone() }
    }

    /// How many have not been dropped.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live.get()
    }
}

/// A client of the transport under test. Dropping it cuts its connection.
pub trait Peer {
    /// Sends a PDU.
    fn send(&mut self, pdu: &[u8]);
    /// Its memory is read and written while it does nothing (RDMA).
    const IS_PASSIVE: bool = false;
    /// Memory that the server may pull for command `cid`, once.
    fn lend(&mut self, cid: u16, memory: Vec<u8>) -> RemoteMemory;
    /// Memory of so many bytes that the server may push the data of command `cid` to. A peer that is
    /// not passive does not answer a pull of it.
    fn expect(&mut self, _cid: u16, length: usize) -> RemoteMemory {
        remote(length)
    }
    /// Moves what can be moved.
    fn turn(&mut self);
    /// The PDUs that have arrived since the last call, each with its bulk data behind it.
    fn received(&mut self) -> Vec<Vec<u8>>;
    /// The connection is over.
    fn is_closed(&self) -> bool;
}

/// A [`Peer`] that lends the server memory.
pub trait MemoryPeer: Peer {
    /// Memory that holds `bytes`.
    fn share(&mut self, bytes: &[u8]) -> RemoteMemory;
    /// What is in it now.
    fn look(&mut self, memory: RemoteMemory) -> Vec<u8>;
    /// Memory that this peer does not have, of `length` bytes.
    fn elsewhere(&mut self, length: u32) -> Vec<RemoteMemory>;
}

/// A transport under test, fresh, with [`CONNECTIONS_MAX`], and the world around it.
pub trait Wire {
    /// The transport.
    type Transport: Transport<Buffer = Counted>;
    /// Its clients.
    type Peer: Peer;
    /// The transport.
    fn transport(&mut self) -> &mut Self::Transport;
    /// A new client.
    fn connect(&mut self) -> Self::Peer;
    /// Lets a little time pass; what the clock says then.
    fn tick(&mut self) -> u64;
}

/// A [`Peer`] over a non-blocking byte stream: answers R2Ts from what was lent.
#[derive(Debug)]
pub struct StreamPeer<S> {
    stream: S,
    out: VecDeque<u8>,
    bytes: Vec<u8>,
    /// How far `bytes` has been cut into PDUs.
    cut: usize,
    lent: BTreeMap<u16, Vec<u8>>,
    closed: bool,
    answers_pings: bool,
    received: Vec<Vec<u8>>,
}

impl<S: Read + Write> StreamPeer<S> {
    /// Over a connected, non-blocking stream.
    #[must_use]
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            out: VecDeque::new(),
            bytes: Vec::new(),
            cut: 0,
            lent: BTreeMap::new(),
            closed: false,
            answers_pings: false,
            received: Vec::new(),
        }
    }

    /// From now on PINGs are answered, and not among what was received.
    pub fn answer_pings(&mut self) {
        self.answers_pings = true;
    }

    /// The stream itself.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    fn write(&mut self) {
        while !self.out.is_empty() && !self.closed {
            match self.stream.write(self.out.as_slices().0) {
                Ok(n) => drop(self.out.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // What the other side has said before may still be read.
                Err(_) => self.out.clear(),
            }
        }
    }

    fn read(&mut self) {
        let mut chunk = [0; 1 << 16];
        for _ in 0..64 {
            match self.stream.read(&mut chunk) {
                Ok(0) => self.closed = true,
                Ok(n) => {
                    self.bytes.extend_from_slice(&chunk[..n]);
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.closed = true,
            }
            return;
        }
    }

    fn cut(&mut self) {
        while let Some((pdu_type, length)) =
            CommonHeader::peek(&self.bytes[self.cut..]).expect("the server sends PDUs")
        {
            let Some(pdu) = self.bytes.get(self.cut..self.cut + length) else { break };
            let pdu = pdu.to_vec();
            self.cut += length;
            match pdu_type {
                PduType::ReadyToTransfer => self.transfer(&pdu),
                PduType::Ping if self.answers_pings => {
                    let nonce = Ping::parse(&pdu, PduType::Ping).expect("a whole PING");
                    self.send(Ping::new(PduType::Pong, nonce).as_bytes());
                }
                _ => self.received.push(pdu),
            }
        }
        if self.cut > self.bytes.len() / 2 {
            self.bytes.drain(..self.cut);
            self.cut = 0;
        }
    }

    /// Answers an R2T, if there is memory for it.
    fn transfer(&mut self, pdu: &[u8]) {
        let transfer = ReadyToTransfer::parse(pdu).expect("a whole R2T");
        if let Some(memory) = self.lent.remove(&transfer.cid) {
            assert_eq!(memory.len(), transfer.length as usize, "the R2T's length");
            self.send(Data::new(transfer).as_bytes());
            self.out.extend(&memory);
        }
    }
}

impl<S: Read + Write> Peer for StreamPeer<S> {
    fn send(&mut self, pdu: &[u8]) {
        self.out.extend(pdu);
    }

    fn lend(&mut self, cid: u16, memory: Vec<u8>) -> RemoteMemory {
        let remote = remote(memory.len());
        self.lent.insert(cid, memory);
        remote
    }

    fn turn(&mut self) {
        if !self.closed {
            self.write();
            self.read();
            self.cut();
        }
    }

    fn received(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.received)
    }

    fn is_closed(&self) -> bool {
        self.closed
    }
}

impl<S: Stream> MemoryPeer for StreamPeer<S> {
    fn share(&mut self, bytes: &[u8]) -> RemoteMemory {
        let memory = self.stream.memory().expect("a stream whose peer lends memory");
        let lent = memory.lend(bytes.len()).expect("an area with room");
        memory.put(lent, 0, bytes);
        RemoteMemory { address: lent.address, key: lent.key, length: lent.bytes }
    }

    fn look(&mut self, memory: RemoteMemory) -> Vec<u8> {
        let RemoteMemory { address, key, length: bytes } = memory;
        let mut found = vec![0; bytes as usize];
        let memory = self.stream.memory().expect("a stream whose peer lends memory");
        memory.get(Lent { address, key, bytes }, 0, &mut found);
        found
    }

    fn elsewhere(&mut self, length: u32) -> Vec<RemoteMemory> {
        let here = self.share(&vec![0; length as usize]);
        let far = [1 << 40, u64::MAX, u64::MAX - u64::from(length), i64::MAX as u64];
        let mut found: Vec<_> =
            far.into_iter().map(|address| RemoteMemory { address, ..here }).collect();
        found.push(RemoteMemory { key: here.key + 1, ..here });
        found
    }
}

/// What a transport has reported.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Connected(ConnId),
    Pdu(ConnId, Vec<u8>),
    Pulled(ConnId, u16, Vec<u8>, bool),
    Closed(ConnId, CloseReason),
}

/// Writes everything down; refuses PONGs.
#[derive(Debug, Default)]
struct Recorder {
    events: Vec<Event>,
}

impl<B: Buffer> Sink<B> for Recorder {
    fn connected(&mut self, conn: ConnId) {
        self.events.push(Event::Connected(conn));
    }

    fn pdu(&mut self, conn: ConnId, pdu: &[u8]) -> Result<(), &'static str> {
        if pdu[0] == PduType::Pong as u8 {
            return Err("a pong");
        }
        self.events.push(Event::Pdu(conn, pdu.to_vec()));
        Ok(())
    }

    fn pulled(&mut self, conn: ConnId, cid: u16, buffer: B, complete: bool) {
        self.events.push(Event::Pulled(conn, cid, buffer.as_ref().to_vec(), complete));
    }

    fn closed(&mut self, conn: ConnId, reason: CloseReason) {
        self.events.push(Event::Closed(conn, reason));
    }
}

/// Holds the transports that `make` makes to every guarantee of the seam.
///
/// # Panics
/// At the first guarantee that does not hold.
pub fn run<W: Wire>(make: &mut dyn FnMut() -> W, seed: u64) {
    let claims: [fn(&mut Rig<W>); 14] = [
        pdus_arrive_whole_once_and_in_order,
        what_is_sent_arrives_in_order_with_its_data,
        pulls_bring_each_clients_bytes_into_its_own_buffer,
        a_pull_of_nothing_is_complete,
        a_payload_is_dropped_when_it_has_left,
        every_pull_ends_once_when_the_peer_vanishes,
        payloads_are_dropped_when_the_peer_vanishes,
        a_stale_connection_is_ignored,
        closing_in_order_delivers_what_was_queued,
        aborting_gives_every_buffer_back,
        a_refused_pdu_closes_its_connection_and_no_other,
        a_peer_beyond_the_limit_is_told,
        a_slot_is_used_again_under_a_new_generation,
        a_flood_on_one_connection_does_not_stop_the_others,
    ];
    hold(&claims, make, seed);
}

/// [`run`]'s like, for transports whose peers lend memory.
///
/// # Panics
/// At the first guarantee that does not hold.
pub fn run_memory<W: Wire<Peer: MemoryPeer>>(make: &mut dyn FnMut() -> W, seed: u64) {
    let claims: [fn(&mut Rig<W>); 4] = [
        a_push_lands_in_the_peers_memory,
        a_pull_takes_what_is_in_the_peers_memory,
        data_that_the_memory_does_not_hold_stands_behind_its_response,
        memory_that_is_not_the_peers_ends_its_connection_and_no_other,
    ];
    hold(&claims, make, seed);
}

fn hold<W: Wire>(claims: &[fn(&mut Rig<W>)], make: &mut dyn FnMut() -> W, seed: u64) {
    for claim in claims {
        let mut rig = Rig {
            wire: make(),
            recorder: Recorder::default(),
            buffers: Buffers::default(),
            rng: fastrand::Rng::with_seed(seed),
            seed,
        };
        claim(&mut rig);
        drop(rig.wire);
        assert_eq!(rig.buffers.live(), 0, "seed {seed}: a buffer outlived its transport");
    }
}

struct Rig<W: Wire> {
    wire: W,
    recorder: Recorder,
    buffers: Buffers,
    rng: fastrand::Rng,
    seed: u64,
}

impl<W: Wire> Rig<W> {
    fn turn(&mut self) {
        let now_us = self.wire.tick();
        let transport = self.wire.transport();
        transport.poll(now_us, &mut self.recorder);
        transport.flush(now_us);
    }

    /// Turns the transport and `peers` until `done` says so.
    fn until(
        &mut self,
        what: &str,
        peers: &mut [&mut W::Peer],
        mut done: impl FnMut(&mut Self, &mut [&mut W::Peer]) -> bool,
    ) {
        for _ in 0..TURNS_MAX {
            if done(self, peers) {
                return;
            }
            peers.iter_mut().for_each(|peer| peer.turn());
            self.turn();
        }
        panic!("seed {}: {what} did not happen; events: {:.2000?}", self.seed, self.recorder);
    }

    /// A peer, connected.
    fn peer(&mut self) -> (W::Peer, ConnId) {
        let mut peer = self.wire.connect();
        let mut found = None;
        self.until("a connection", &mut [&mut peer], |rig, _| {
            let index = rig.recorder.events.iter().position(|e| matches!(e, Event::Connected(_)));
            if let Some(Event::Connected(conn)) = index.map(|i| rig.recorder.events.remove(i)) {
                found = Some(conn);
            }
            found.is_some()
        });
        (peer, found.expect("until found it"))
    }

    /// Turns until `conn` has been reported as closed; why.
    fn closed(&mut self, conn: ConnId, peers: &mut [&mut W::Peer]) -> CloseReason {
        let mut found = None;
        self.until("the end of a connection", peers, |rig, _| {
            found = rig.recorder.events.iter().find_map(|event| match event {
                Event::Closed(closed, reason) if *closed == conn => Some(*reason),
                _ => None,
            });
            found.is_some()
        });
        found.expect("until found it")
    }

    /// Turns long enough for a late event to show itself.
    fn settle(&mut self, peers: &mut [&mut W::Peer]) {
        for _ in 0..200 {
            peers.iter_mut().for_each(|peer| peer.turn());
            self.turn();
        }
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.rng.fill(&mut bytes);
        bytes
    }

    fn pull(&mut self, conn: ConnId, cid: u16, remote: RemoteMemory) {
        // Longer than what is pulled: the rest must stay as it is.
        let buffer = self.buffers.holding(vec![0xEE; remote.length as usize + 3]);
        self.wire.transport().pull(conn, cid, remote, buffer);
    }

    fn pulled(&self) -> Vec<&Event> {
        self.recorder.events.iter().filter(|event| matches!(event, Event::Pulled(..))).collect()
    }
}

fn remote(length: usize) -> RemoteMemory {
    RemoteMemory { address: 0, key: 0, length: length as u32 }
}

fn command(cid: u16, key: &[u8], data: &[u8]) -> Vec<u8> {
    let mut command = Command::new(Opcode::Store, cid);
    command.seal(&[], key, data);
    [command.as_bytes(), key, data].concat()
}

fn response(cid: u16, data_length: usize) -> Response {
    Response::new(&Outcome {
        cid,
        flags: 0,
        status: Status::Ok,
        credit_limit: 1,
        data_length: data_length as u32,
        result: 0,
        data_crc: 0,
    })
}

fn pdus_arrive_whole_once_and_in_order<W: Wire>(rig: &mut Rig<W>) {
    let (mut peer, conn) = rig.peer();
    let mut expected = Vec::new();
    for number in 0..1000_u64 {
        let pdu = if rig.rng.bool() {
            Ping::new(PduType::Ping, number).as_bytes().to_vec()
        } else {
            let length = rig.rng.usize(0..if number % 50 == 0 { 100_000 } else { 2_000 });
            let data = rig.bytes(length);
            command(number as u16, b"key", &data)
        };
        peer.send(&pdu);
        expected.push(Event::Pdu(conn, pdu));
    }
    rig.until("all PDUs", &mut [&mut peer], |rig, _| rig.recorder.events.len() >= expected.len());
    rig.settle(&mut [&mut peer]);
    assert!(rig.recorder.events == expected, "seed {}: other PDUs, or in another order", rig.seed);
}

fn what_is_sent_arrives_in_order_with_its_data<W: Wire>(rig: &mut Rig<W>) {
    let (mut peer, conn) = rig.peer();
    let mut expected = Vec::new();
    for cid in 0..200 {
        if rig.rng.u8(..4) == 0 {
            let ping = Ping::new(PduType::Ping, rig.rng.u64(..));
            rig.wire.transport().send(conn, ping.as_bytes());
            expected.push(ping.as_bytes().to_vec());
            continue;
        }
        let most = if cid % 40 == 0 { 4 << 20 } else { 20_000 };
        let (parts, length) = (rig.rng.usize(1..=4), rig.rng.usize(0..most));
        let data = rig.bytes(length);
        let response = response(cid, data.len());
        let mut payloads: Vec<_> = data
            .chunks(data.len().div_ceil(parts).max(1))
            .map(|part| {
                let buffer = rig.buffers.holding([b"xx", part, b"yyy"].concat());
                Payload { buffer, range: 2..2 + part.len() }
            })
            .collect();
        let remote = peer.expect(cid, data.len());
        rig.wire.transport().push(conn, response.as_bytes(), remote, &mut payloads.drain(..));
        expected.push([response.as_bytes(), &data].concat());
        if rig.rng.u8(..8) == 0 {
            rig.turn();
            peer.turn();
        }
    }
    let mut received = Vec::new();
    rig.until("all responses", &mut [&mut peer], |_, peers| {
        received.append(&mut peers[0].received());
        received.len() >= expected.len()
    });
    assert!(received == expected, "seed {}: other bytes, or in another order", rig.seed);
    rig.until("a flushed transport", &mut [&mut peer], |rig, _| rig.wire.transport().is_flushed());
}

fn pulls_bring_each_clients_bytes_into_its_own_buffer<W: Wire>(rig: &mut Rig<W>) {
    let (mut first, conn) = rig.peer();
    let (mut second, other) = rig.peer();
    let mut expected = Vec::new();
    for cid in 0..60 {
        let most = if cid % 20 == 0 { 4 << 20 } else { 60_000 };
        for (peer, conn) in [(&mut first, conn), (&mut second, other)] {
            let length = rig.rng.usize(1..most);
            let data = rig.bytes(length);
            let remote = peer.lend(cid, data.clone());
            rig.pull(conn, cid, remote);
            // Other PDUs stand between the data.
            peer.send(Ping::new(PduType::Ping, 0).as_bytes());
            expected.push(Event::Pulled(conn, cid, [&data[..], &[0xEE; 3]].concat(), true));
        }
    }
    rig.until("all pulls", &mut [&mut first, &mut second], |rig, _| {
        rig.pulled().len() >= expected.len()
    });
    for event in &expected {
        let found = rig.recorder.events.iter().filter(|found| *found == event).count();
        assert_eq!(found, 1, "seed {}: a pull has other bytes, or ends {found} times", rig.seed);
    }
}

fn a_pull_of_nothing_is_complete<W: Wire>(rig: &mut Rig<W>) {
    let (mut peer, conn) = rig.peer();
    rig.pull(conn, 3, remote(0));
    rig.until("an empty pull", &mut [&mut peer], |rig, _| !rig.pulled().is_empty());
    assert_eq!(rig.pulled(), [&Event::Pulled(conn, 3, vec![0xEE; 3], true)]);
}

fn a_payload_is_dropped_when_it_has_left<W: Wire>(rig: &mut Rig<W>) {
    let (mut peer, conn) = rig.peer();
    let buffer = rig.buffers.holding(vec![1; 4 << 20]);
    let response = response(0, 4 << 20);
    let payload = Payload { buffer, range: 0..4 << 20 };
    let remote = peer.expect(0, 4 << 20);
    rig.wire.transport().push(conn, response.as_bytes(), remote, &mut [payload].into_iter());
    assert!(!rig.wire.transport().is_flushed());
    rig.until("a flushed transport", &mut [&mut peer], |rig, _| rig.wire.transport().is_flushed());
    assert_eq!(rig.buffers.live(), 0, "the payload left, its buffer stayed");
}

fn every_pull_ends_once_when_the_peer_vanishes<W: Wire>(rig: &mut Rig<W>) {
    let (mut peer, conn) = rig.peer();
    let lent = peer.lend(0, vec![9; 100_000]);
    rig.pull(conn, 0, lent);
    for cid in 1..8 {
        let remote = peer.expect(cid, 100_000);
        rig.pull(conn, cid, remote);
    }
    rig.until("the first pull", &mut [&mut peer], |rig, _| !rig.pulled().is_empty());
    drop(peer);
    let reason = rig.closed(conn, &mut []);
    assert!(matches!(reason, CloseReason::Peer | CloseReason::Lost), "{reason:?}");
    rig.settle(&mut []);
    let mut ends: Vec<_> = rig
        .pulled()
        .iter()
        .map(|event| match event {
            Event::Pulled(_, cid, _, complete) if *cid == 0 => (*cid, *complete),
            Event::Pulled(_, cid, _, complete) => (*cid, *complete && !W::Peer::IS_PASSIVE),
            other => panic!("{other:?}"),
        })
        .collect();
    ends.sort_unstable();
    let expected: Vec<_> = (0..8).map(|cid| (cid, cid == 0)).collect();
    assert_eq!(ends, expected, "seed {}", rig.seed);
    assert!(matches!(rig.recorder.events.last(), Some(Event::Closed(..))), "closed comes last");
    assert_eq!(rig.buffers.live(), 0);
}

fn payloads_are_dropped_when_the_peer_vanishes<W: Wire>(rig: &mut Rig<W>) {
    let (mut peer, conn) = rig.peer();
    for cid in 0..16 {
        let buffer = rig.buffers.holding(vec![1; 1 << 20]);
        let payload = Payload { buffer, range: 0..1 << 20 };
        let (pdu, remote) = (response(cid, 1 << 20), peer.expect(cid, 1 << 20));
        rig.wire.transport().push(conn, pdu.as_bytes(), remote, &mut [payload].into_iter());
    }
    if W::Peer::IS_PASSIVE {
        rig.turn();
    } else {
        rig.settle(&mut []);
    }
    assert!(rig.buffers.live() > 0, "the peer reads nothing: something waits");
    drop(peer);
    rig.closed(conn, &mut []);
    assert_eq!(rig.buffers.live(), 0);
    let ends = rig.recorder.events.iter().filter(|event| matches!(event, Event::Closed(..)));
    assert_eq!(ends.count(), 1, "closed is said once");
}

fn a_stale_connection_is_ignored<W: Wire>(rig: &mut Rig<W>) {
    let (peer, stale) = rig.peer();
    drop(peer);
    rig.closed(stale, &mut []);
    let (mut peer, conn) = rig.peer();
    rig.recorder.events.clear();
    rig.pull(stale, 1, remote(10));
    rig.wire.transport().send(stale, Ping::new(PduType::Ping, 1).as_bytes());
    let payload = Payload { buffer: rig.buffers.holding(vec![0; 9]), range: 0..9 };
    let (pdu, remote) = (response(2, 9), remote(9));
    rig.wire.transport().push(stale, pdu.as_bytes(), remote, &mut [payload].into_iter());
    rig.wire.transport().close(stale, true);
    rig.settle(&mut [&mut peer]);
    let only = [Event::Pulled(stale, 1, vec![0xEE; 13], false)];
    assert_eq!(rig.recorder.events, only, "the pull comes back, and nothing else");
    assert!(!peer.is_closed() && peer.received().is_empty(), "{conn:?} was taken for {stale:?}");
}

fn closing_in_order_delivers_what_was_queued<W: Wire>(rig: &mut Rig<W>) {
    let (mut peer, conn) = rig.peer();
    rig.pull(conn, 7, remote(50));
    let data = rig.bytes(3 << 20);
    let payload = Payload { buffer: rig.buffers.holding(data.clone()), range: 0..data.len() };
    let (pdu, remote) = (response(1, data.len()), peer.expect(1, data.len()));
    rig.wire.transport().push(conn, pdu.as_bytes(), remote, &mut [payload].into_iter());
    let goaway = GoAway::new(GoAwayReason::Drain);
    rig.wire.transport().send(conn, goaway.as_bytes());
    rig.wire.transport().close(conn, false);
    // What the peer still says is not looked at any more.
    peer.send(Ping::new(PduType::Ping, 5).as_bytes());
    rig.until("the end", &mut [&mut peer], |_, peers| peers[0].is_closed());
    let expected = [[pdu.as_bytes(), &data].concat(), goaway.as_bytes().to_vec()];
    assert!(peer.received() == expected, "seed {}: what was queued did not arrive", rig.seed);
    drop(peer);
    assert_eq!(rig.closed(conn, &mut []), CloseReason::Local);
    assert_eq!(rig.pulled(), [&Event::Pulled(conn, 7, vec![0xEE; 53], false)]);
    assert!(!rig.recorder.events.iter().any(|event| matches!(event, Event::Pdu(..))));
}

fn aborting_gives_every_buffer_back<W: Wire>(rig: &mut Rig<W>) {
    let (mut peer, conn) = rig.peer();
    rig.pull(conn, 0, remote(1000));
    for cid in 1..9 {
        let payload = Payload { buffer: rig.buffers.holding(vec![0; 1 << 20]), range: 0..1 << 20 };
        let (pdu, remote) = (response(cid, 1 << 20), remote(1 << 20));
        rig.wire.transport().push(conn, pdu.as_bytes(), remote, &mut [payload].into_iter());
    }
    rig.wire.transport().close(conn, true);
    rig.turn();
    assert_eq!(rig.buffers.live(), 0, "an abort takes effect within a turn");
    assert_eq!(rig.closed(conn, &mut [&mut peer]), CloseReason::Local);
    rig.until("the peer to see it", &mut [&mut peer], |_, peers| peers[0].is_closed());
}

fn a_refused_pdu_closes_its_connection_and_no_other<W: Wire>(rig: &mut Rig<W>) {
    let (mut bad, conn) = rig.peer();
    let (mut good, other) = rig.peer();
    let remote = bad.expect(1, 10);
    rig.pull(conn, 1, remote);
    bad.send(Ping::new(PduType::Pong, 1).as_bytes());
    bad.send(Ping::new(PduType::Ping, 2).as_bytes());
    let reason = rig.closed(conn, &mut [&mut bad, &mut good]);
    assert_eq!(reason, CloseReason::Protocol("a pong"));
    let pong = Ping::new(PduType::Ping, 3);
    good.send(pong.as_bytes());
    rig.until("the good peer's PDU", &mut [&mut bad, &mut good], |rig, _| {
        rig.recorder.events.contains(&Event::Pdu(other, pong.as_bytes().to_vec()))
    });
    rig.until("the bad peer's end", &mut [&mut bad, &mut good], |_, peers| peers[0].is_closed());
    let told = GoAway::new(GoAwayReason::Protocol).as_bytes().to_vec();
    assert_eq!(bad.received().last(), Some(&told), "the peer is told why");
    let later = |event: &&Event| matches!(event, Event::Pdu(found, _) if *found == conn);
    assert_eq!(rig.recorder.events.iter().find(later), None, "nothing after the refused PDU");
}

fn a_peer_beyond_the_limit_is_told<W: Wire>(rig: &mut Rig<W>) {
    let mut peers: Vec<_> = (0..CONNECTIONS_MAX).map(|_| rig.peer()).collect();
    let mut late = rig.wire.connect();
    rig.until("the end of the late peer", &mut [&mut late], |_, peers| peers[0].is_closed());
    assert_eq!(late.received(), [GoAway::new(GoAwayReason::Full).as_bytes()]);
    let (gone, conn) = peers.swap_remove(0);
    drop(gone);
    rig.closed(conn, &mut []);
    let (_again, conn) = rig.peer();
    assert!(peers.iter().all(|(peer, other)| *other != conn && !peer.is_closed()));
}

fn a_slot_is_used_again_under_a_new_generation<W: Wire>(rig: &mut Rig<W>) {
    let mut seen = Vec::new();
    for _ in 0..3 * CONNECTIONS_MAX {
        let (peer, conn) = rig.peer();
        assert!(conn.slot < CONNECTIONS_MAX && !seen.contains(&conn), "{conn:?} {seen:?}");
        seen.push(conn);
        drop(peer);
        rig.closed(conn, &mut []);
    }
}

fn a_flood_on_one_connection_does_not_stop_the_others<W: Wire>(rig: &mut Rig<W>) {
    let (mut flood, _) = rig.peer();
    let (mut calm, conn) = rig.peer();
    let big = command(0, b"key", &vec![0; 100_000]);
    assert!(big.len() > COMMON_HEADER_BYTES);
    for _ in 0..400 {
        flood.send(&big);
    }
    let ping = Ping::new(PduType::Ping, 1);
    rig.settle(&mut [&mut flood]);
    calm.send(ping.as_bytes());
    let before = rig.recorder.events.len();
    rig.until("the calm peer's PDU", &mut [&mut flood, &mut calm], |rig, _| {
        rig.recorder.events.contains(&Event::Pdu(conn, ping.as_bytes().to_vec()))
    });
    let between = rig.recorder.events.len() - before;
    assert!(between < 300, "seed {}: {between} PDUs of the flood came first", rig.seed);
}

/// Response `cid` with `data` in two pieces.
fn push<W: Wire>(rig: &mut Rig<W>, conn: ConnId, cid: u16, data: &[u8], into: RemoteMemory) {
    let (first, second) = data.split_at(data.len() / 2);
    let payloads = [first, second].map(|part| {
        let buffer = rig.buffers.holding([b"xx", part, b"yyy"].concat());
        Payload { buffer, range: 2..2 + part.len() }
    });
    let response = response(cid, data.len());
    rig.wire.transport().push(conn, response.as_bytes(), into, &mut payloads.into_iter());
}

fn a_push_lands_in_the_peers_memory<W: Wire<Peer: MemoryPeer>>(rig: &mut Rig<W>) {
    let (mut peer, conn) = rig.peer();
    let mut expected = Vec::new();
    for cid in 0..40 {
        let length = rig.rng.usize(1..if cid % 10 == 0 { 4 << 20 } else { 20_000 });
        let spare = rig.rng.usize(..100);
        let into = peer.share(&vec![0xEE; length + spare]);
        let data = rig.bytes(length);
        push(rig, conn, cid, &data, into);
        expected.push((cid, into, [data, vec![0xEE; spare]].concat()));
    }
    let mut received = Vec::new();
    rig.until("all responses", &mut [&mut peer], |_, peers| {
        received.append(&mut peers[0].received());
        received.len() >= expected.len()
    });
    for (pdu, (cid, into, memory)) in received.iter().zip(expected) {
        let outcome = Response::parse(pdu).expect("a response, and nothing behind it");
        assert_eq!(
            (outcome.cid, outcome.flags),
            (cid, response_flags::PLACED),
            "seed {}",
            rig.seed
        );
        assert!(peer.look(into) == memory, "seed {}: other bytes in the memory", rig.seed);
    }
    assert_eq!(rig.buffers.live(), 0, "the payloads have left");
}

fn a_pull_takes_what_is_in_the_peers_memory<W: Wire<Peer: MemoryPeer>>(rig: &mut Rig<W>) {
    let (mut peer, conn) = rig.peer();
    let mut expected = Vec::new();
    for cid in 0..40 {
        let length = rig.rng.usize(1..if cid % 10 == 0 { 4 << 20 } else { 20_000 });
        let data = rig.bytes(length);
        let from = peer.share(&data);
        let buffer = rig.buffers.holding(vec![0xEE; length + 3]);
        rig.wire.transport().pull(conn, cid, from, buffer);
        expected.push(Event::Pulled(conn, cid, [&data[..], &[0xEE; 3]].concat(), true));
    }
    rig.until("all pulls", &mut [&mut peer], |rig, _| rig.pulled().len() >= expected.len());
    rig.settle(&mut [&mut peer]);
    assert!(rig.recorder.events == expected, "seed {}: other bytes, or ends", rig.seed);
    assert!(peer.received().is_empty(), "nothing was asked of the peer");
}

fn data_that_the_memory_does_not_hold_stands_behind_its_response<W: Wire<Peer: MemoryPeer>>(
    rig: &mut Rig<W>,
) {
    let (mut peer, conn) = rig.peer();
    let into = peer.share(&[0xEE; 99]);
    let data = rig.bytes(100);
    push(rig, conn, 1, &data, into);
    push(rig, conn, 2, &[], into);
    let mut received = Vec::new();
    rig.until("both responses", &mut [&mut peer], |_, peers| {
        received.append(&mut peers[0].received());
        received.len() == 2
    });
    assert_eq!(received[0], [response(1, 100).as_bytes(), &data].concat());
    assert_eq!(received[1], response(2, 0).as_bytes());
    assert_eq!(peer.look(into), [0xEE; 99]);
}

fn memory_that_is_not_the_peers_ends_its_connection_and_no_other<W: Wire<Peer: MemoryPeer>>(
    rig: &mut Rig<W>,
) {
    let (mut good, other) = rig.peer();
    let count = good.elsewhere(5000).len() * 2;
    for number in 0..count {
        rig.recorder.events.clear();
        let (mut peer, conn) = rig.peer();
        let wrong = peer.elsewhere(5000)[number / 2];
        if number % 2 == 0 {
            push(rig, conn, 1, &[7; 5000], wrong);
        } else {
            let buffer = rig.buffers.holding(vec![0xEE; 5000]);
            rig.wire.transport().pull(conn, 1, wrong, buffer);
        }
        let reason = rig.closed(conn, &mut [&mut peer, &mut good]);
        assert!(matches!(reason, CloseReason::Protocol(_)), "{wrong:?}: {reason:?}");
        let pulls = rig.pulled();
        let given_back = [&Event::Pulled(conn, 1, vec![0xEE; 5000], false)];
        assert_eq!(pulls, if number % 2 == 0 { &[][..] } else { &given_back[..] }, "{wrong:?}");
        rig.until("the peer to see it", &mut [&mut peer], |_, peers| peers[0].is_closed());
        assert_eq!(rig.buffers.live(), 0, "{wrong:?}");
    }
    let data = rig.bytes(3000);
    let into = good.share(&[0; 3000]);
    push(rig, other, 9, &data, into);
    rig.until("the good peer's response", &mut [&mut good], |_, peers| {
        !peers[0].received().is_empty()
    });
    assert_eq!(good.look(into), data);
}
