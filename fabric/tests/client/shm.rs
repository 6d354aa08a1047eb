//! Client and server over shared memory in one thread, by a seed and a clock of its own: connections
//! that move few bytes at a time and die anywhere, and a server that starts anew.

use crate::support::{Desk, House, Memory, NS, turn};
use forebay_fabric::Status;
use forebay_fabric::client::{
    Address, ClientConfig, Connector, Data, Done, Pipeline, Request, Slot, Stream,
};
use forebay_fabric::pdu::Endpoint;
use forebay_fabric::server::{Server, ServerConfig};
use forebay_fabric::shm::{Shm, ShmStream};
use forebay_fabric::stream::{StreamConfig, StreamTransport};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::rc::Rc;

const KEYS: u8 = 12;
const REQUESTS: usize = 120;

type ShmServer = Server<StreamTransport<Shm, Vec<u8>>>;

/// A server whose turns the client takes.
struct World {
    folder: tempfile::TempDir,
    memory: Rc<RefCell<Memory>>,
    server: Option<(ShmServer, Desk)>,
    now_us: u64,
    rng: fastrand::Rng,
}

impl World {
    fn new(seed: u64) -> Rc<RefCell<Self>> {
        let rng = fastrand::Rng::with_seed(seed);
        let folder = tempfile::tempdir().unwrap();
        let mut world = Self { folder, memory: Rc::default(), server: None, now_us: 1, rng };
        world.start();
        Rc::new(RefCell::new(world))
    }

    fn start(&mut self) {
        // The old one first: it has the socket.
        self.server = None;
        let config = ServerConfig { endpoints: vec![Endpoint::shm(0)], ..House::config(1, 1) };
        let desk = Desk::new(&config, &self.memory);
        let shm = Shm::bind(&self.folder.path().join("shm"), 0, 0o600).unwrap();
        let transport = StreamTransport::new(shm, StreamConfig::default());
        self.server = Some((Server::new(transport, config), desk));
    }

    fn step(&mut self) {
        self.now_us += self.rng.u64(1..50);
        if self.rng.u32(..5_000) == 0 {
            self.start();
        }
        if let Some((server, desk)) = &mut self.server {
            turn(server, desk, self.now_us);
        }
    }
}

/// A connection that moves some of what it is asked to, and dies of its own.
struct Frail {
    stream: ShmStream,
    rng: fastrand::Rng,
}

impl Frail {
    fn some(&mut self, length: usize) -> io::Result<usize> {
        match self.rng.u32(..1_000) {
            0 => Err(ErrorKind::ConnectionReset.into()),
            1..300 => Ok(self.rng.usize(..length.min(2_000)) + 1),
            _ => Ok(length),
        }
    }
}

impl Read for Frail {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = self.some(into.len())?.min(into.len());
        self.stream.read(&mut into[..most])
    }

    fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self.rng.u8(..3) {
            0 => self.stream.read_vectored(slices),
            _ => self.read(&mut slices[0]),
        }
    }
}

impl Write for Frail {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let most = self.some(from.len())?.min(from.len());
        self.stream.write(&from[..most])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.rng.u8(..3) {
            0 => self.stream.write_vectored(slices),
            _ => self.write(&slices[0]),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Frail {
    fn memory(&mut self) -> Option<&mut dyn forebay_fabric::client::Memory> {
        self.stream.memory()
    }
}

struct Steps(Rc<RefCell<World>>);

impl Connector for Steps {
    type Stream = Frail;

    fn connect(&mut self, address: &Address) -> io::Result<Frail> {
        // A small area: some data finds no room in it.
        let stream = ShmStream::connect_with(&address.socket().unwrap(), 256 << 10)?;
        Ok(Frail { stream, rng: self.0.borrow_mut().rng.fork() })
    }

    fn wait(&mut self, slots: &[Slot<Frail>], _: u64) -> io::Result<()> {
        self.0.borrow_mut().step();
        slots.iter().for_each(|slot| slot.ready.set(true));
        Ok(())
    }

    fn now_us(&mut self) -> u64 {
        self.0.borrow().now_us
    }
}

fn value(key: u8, version: u32) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(u64::from(key) << 32 | u64::from(version));
    let most = if rng.u8(..6) == 0 { 300_000 } else { 30_000 };
    (0..rng.usize(..most)).map(|_| rng.u8(..)).collect()
}

/// What one key may hold: its values by version, once it is known which.
#[derive(Default)]
struct Model {
    next: u32,
    /// `None`: nothing was ever stored.
    may_be: Vec<Option<u32>>,
    in_flight: Option<u32>,
    busy: bool,
}

impl Model {
    fn ended(&mut self, key: u8, done: &Done) {
        self.busy = false;
        match (self.in_flight.take(), done.status) {
            (Some(version), Status::Ok) => self.may_be = vec![Some(version)],
            (Some(version), _) => self.may_be.push(Some(version)),
            (None, Status::Ok) => {
                let found = |version: &Option<u32>| {
                    version.is_some_and(|version| done.data == value(key, version))
                };
                assert!(self.may_be.iter().any(found), "key {key}: bytes that nobody stored");
            }
            (None, Status::NotFound) => assert!(self.may_be.contains(&None), "key {key} is lost"),
            (None, status) => assert_eq!(status, Status::Timeout),
        }
    }
}

fn run(seed: u64) {
    let world = World::new(seed);
    let mut rng = fastrand::Rng::with_seed(!seed);
    let address = Address::shm(&world.borrow().folder.path().join("shm"));
    let config = ClientConfig { seed, timeout_us: 5_000_000, ..ClientConfig::new(vec![address]) };
    let connect = || Pipeline::connect_with(config.clone(), Steps(world.clone()));
    let mut client = (0..100).find_map(|_| connect().ok()).expect("a connection holds for once");
    let fresh = || Model { may_be: vec![None], ..Model::default() };
    let mut keys: BTreeMap<u8, Model> = (0..KEYS).map(|key| (key, fresh())).collect();
    let (mut done, mut sent, mut ended) = (Vec::new(), 0, 0);
    // Answers of which the caller keeps the data, and what that was.
    let mut kept: VecDeque<(Data, Vec<u8>)> = VecDeque::new();
    while ended < REQUESTS {
        let key = rng.u8(..KEYS);
        let model = keys.get_mut(&key).unwrap();
        if sent < REQUESTS && !model.busy {
            let name = [key];
            let request = if rng.bool() {
                model.next += 1;
                model.in_flight = Some(model.next);
                Request::store(NS, &name, value(key, model.next).into())
            } else {
                let most = if rng.bool() { 4 << 20 } else { 300_000 };
                Request::retrieve(NS, &name, 0, most)
            };
            assert!(client.submit(request.with_tag(key.into())).is_ok(), "32 are never in flight");
            (model.busy, sent) = (true, sent + 1);
        }
        let timeout_us = rng.u64(..200);
        client.poll(&mut done, timeout_us).unwrap();
        for one in done.drain(..) {
            ended += 1;
            let key = one.tag as u8;
            keys.get_mut(&key).unwrap().ended(key, &one);
            if rng.u8(..3) == 0 {
                let was = one.data.to_vec();
                kept.push_back((one.data, was));
            } else {
                client.recycle(one);
            }
        }
        while kept.len() > rng.usize(1..30) {
            assert!(kept.pop_front().is_some_and(|(data, was)| data == was), "seed {seed}");
        }
    }
    assert_eq!(client.in_flight(), 0, "seed {seed}");
    drop(client);
    assert!(
        kept.iter().all(|(data, was)| data == was),
        "seed {seed}: data outlives its connection"
    );
    let mut world = world.borrow_mut();
    for _ in 0..1_000 {
        world.step();
    }
    let (server, _) = world.server.as_ref().unwrap();
    assert!(server.is_idle(), "seed {seed}: the server still has something of a dead client's");
    assert_eq!(server.transport().connections(), 0, "seed {seed}");
}

#[test]
fn every_request_ends_once_and_right_whatever_dies_when() {
    (0..300).for_each(run);
}
