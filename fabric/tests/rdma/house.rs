//! A server in memory over simulated verbs, and clients of it. Everything happens inside `wait`, on the
//! fabric's clock, so that runs replay.

use forebay_fabric::Status;
use forebay_fabric::client::{Address, ClientConfig, Connector, Pipeline, Slot};
use forebay_fabric::conformance::{Buffers, Counted};
use forebay_fabric::pdu::{Capsule, Endpoint, ItemResult, Opcode, crc32c, response_flags};
use forebay_fabric::rdma::client::{Hub, Line, client_shape};
use forebay_fabric::rdma::fake::{FakeNet, FakeProfile, FakeVerbs};
use forebay_fabric::rdma::{RdmaConfig, RdmaTransport};
use forebay_fabric::server::{Reply, RequestId, Server, ServerConfig, Service};
use forebay_fabric::transport::Payload;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use zerocopy::IntoBytes;

const STEP_US: u64 = 100;

pub(crate) fn address() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 7000))
}

#[derive(Debug)]
struct Work {
    id: RequestId,
    opcode: Opcode,
    /// A write that comes again has the same, and is not done again.
    token: u64,
    is_batch: bool,
    /// Key, offset, length.
    parts: Vec<(Vec<u8>, usize, usize)>,
    data_crc: u32,
    data: Vec<u8>,
}

/// Values, and what is still to be done.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    pub(crate) values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Checksums of what was stored, each time that it was.
    pub(crate) stored: Vec<u32>,
    tokens: BTreeSet<u64>,
    pub(crate) buffers: Buffers,
    pub(crate) pulled: u64,
    pulls: Vec<(RequestId, usize)>,
    pulling: Vec<Work>,
    ready: Vec<Work>,
    swallowed: Vec<RequestId>,
}

impl Desk {
    fn forget(&mut self) {
        self.pulls.clear();
        self.pulling.clear();
        self.ready.clear();
        self.swallowed.clear();
    }

    /// The answer; of a batch, with what is sent behind one another: the item results and each item's data.
    fn execute(&mut self, work: &Work) -> (Reply<Counted>, Vec<Payload<Counted>>) {
        let mut at = 0;
        let (mut results, mut parts) = (Vec::new(), Vec::new());
        for (key, offset, length) in &work.parts {
            let (status, result, data) = match work.opcode {
                Opcode::Store => {
                    let value = work.data[at..at + length].to_vec();
                    at += length;
                    if !work.is_batch && crc32c(&value) != work.data_crc {
                        (Status::DataChecksum, 0, Vec::new())
                    } else {
                        if work.token == 0 || self.tokens.insert(work.token) {
                            self.stored.push(crc32c(&value));
                            self.values.insert(key.clone(), value);
                        }
                        (Status::Ok, 0, Vec::new())
                    }
                }
                Opcode::Retrieve => match self.values.get(key) {
                    Some(value) => {
                        let (from, to) = ((*offset).min(value.len()), offset + length);
                        let data = value[from..to.min(value.len())].to_vec();
                        (Status::Ok, value.len() as u64, data)
                    }
                    None => (Status::NotFound, 0, Vec::new()),
                },
                Opcode::Stats => (Status::Ok, 0, vec![b'x'; 100_000]),
                Opcode::Exist => match self.values.get(key) {
                    Some(value) => (Status::Ok, value.len() as u64, Vec::new()),
                    None => (Status::NotFound, 0, Vec::new()),
                },
                _ => (Status::Unsupported, 0, Vec::new()),
            };
            results.push(ItemResult::new(status, data.len() as u32, result as u32, crc32c(&data)));
            if !work.is_batch {
                return (self.reply(status, result, 0, crc32c(&data), data), parts);
            }
            parts.extend(self.payload(data));
        }
        let table = results.as_slice().as_bytes().to_vec();
        let crc = crc32c(&table);
        parts.splice(0..0, self.payload(table));
        (self.reply(Status::Ok, 0, response_flags::ITEMS, crc, Vec::new()), parts)
    }

    fn payload(&self, data: Vec<u8>) -> Option<Payload<Counted>> {
        let range = 0..data.len();
        (!data.is_empty()).then(|| Payload { buffer: self.buffers.holding(data), range })
    }

    fn reply(
        &self,
        status: Status,
        result: u64,
        flags: u8,
        crc: u32,
        data: Vec<u8>,
    ) -> Reply<Counted> {
        let mut reply = Reply::status(status, result);
        (reply.flags, reply.data_crc) = (flags, crc);
        reply.payload = self.payload(data);
        reply
    }
}

impl Service<Counted> for Desk {
    fn request(&mut self, id: RequestId, capsule: &Capsule<'_>, _deadline_us: u64) {
        let command = capsule.command;
        let parts = if capsule.items.is_empty() {
            let offset = command.offset.get() as usize;
            vec![(capsule.keys.to_vec(), offset, command.data_length.get() as usize)]
        } else {
            let part = |(item, key): (&forebay_fabric::pdu::Item, &[u8])| {
                (key.to_vec(), item.offset.get() as usize, item.data_length.get() as usize)
            };
            capsule.items_with_keys().map(part).collect()
        };
        let work = Work {
            id,
            opcode: capsule.opcode.expect("an opcode that is known"),
            token: command.token.get(),
            is_batch: !capsule.items.is_empty(),
            parts,
            data_crc: command.data_crc.get(),
            data: capsule.data.to_vec(),
        };
        let length = command.data_length.get() as usize;
        if work.opcode == Opcode::Store && length > 0 && !capsule.is_in_capsule() {
            self.pulls.push((id, length));
            self.pulling.push(work);
        } else {
            self.ready.push(work);
        }
    }

    fn pulled(&mut self, id: RequestId, buffer: Counted, complete: bool) {
        self.pulled += 1;
        let Some(at) = self.pulling.iter().position(|work| work.id == id) else { return };
        let mut work = self.pulling.swap_remove(at);
        work.data = buffer.as_ref().to_vec();
        if complete { self.ready.push(work) } else { self.swallowed.push(id) }
    }

    fn abandoned(&mut self, id: RequestId, _why: Status) {
        self.ready.retain(|work| work.id != id);
        self.pulling.retain(|work| work.id != id);
        self.swallowed.push(id);
    }
}

/// One server and its fabric.
#[derive(Debug)]
pub(crate) struct House {
    pub(crate) net: FakeNet,
    pub(crate) server: Option<Server<RdmaTransport<FakeVerbs<Counted>>>>,
    pub(crate) desk: Desk,
    /// Receives that the server's connections share; 0: each has its own.
    pub(crate) shared: u16,
}

pub(crate) type SharedHouse = Rc<RefCell<House>>;

impl House {
    pub(crate) fn new(seed: u64, profile: FakeProfile) -> SharedHouse {
        Self::sharing(seed, profile, 0)
    }

    /// The same, with a server whose connections share so many receives.
    pub(crate) fn sharing(seed: u64, profile: FakeProfile, shared: u16) -> SharedHouse {
        Self::over(FakeNet::new(seed, profile), shared)
    }

    /// In a fabric that is there.
    pub(crate) fn over(net: FakeNet, shared: u16) -> SharedHouse {
        let mut house = Self { net, server: None, desk: Desk::default(), shared };
        house.start();
        Rc::new(RefCell::new(house))
    }

    /// Starts anew: what was in flight is forgotten, what was stored is not.
    pub(crate) fn start(&mut self) {
        self.server = None;
        self.desk.forget();
        let config = ServerConfig {
            queue_depth: 32,
            capsule_bytes: 8 << 10,
            keep_alive_ms: 1_000,
            timeout_max_us: 30_000_000,
            connections_max: 16,
            pool: [7; 16],
            incarnation: [1; 16],
            reactor: 0,
            catalog_reactor: 0,
            shard_map: vec![0],
            reactors: 1,
            endpoints: vec![Endpoint::tcp(0, address())],
        };
        let limits = RdmaConfig { connections_max: 16, receives: 80, ..RdmaConfig::default() };
        let verbs = self.net.listen(address());
        let verbs = if self.shared > 0 { verbs.sharing(self.shared) } else { verbs };
        let transport = RdmaTransport::new(verbs, limits);
        self.server = Some(Server::new(transport, config));
    }

    pub(crate) fn step(&mut self) {
        let now_us = self.net.now_us();
        let Some(server) = &mut self.server else { return };
        let desk = &mut self.desk;
        server.poll(now_us, desk);
        for id in std::mem::take(&mut desk.swallowed) {
            server.reply(id, Reply::status(Status::Cancelled, 0));
        }
        for (id, length) in std::mem::take(&mut desk.pulls) {
            let buffer = desk.buffers.holding(vec![0; length]);
            server.pull(id, buffer);
        }
        for work in std::mem::take(&mut desk.ready) {
            let (reply, mut parts) = desk.execute(&work);
            if work.is_batch {
                server.reply_parts(work.id, &reply, &mut parts);
            } else {
                server.reply(work.id, reply);
            }
        }
        server.flush(now_us);
    }
}

/// Connects through the fabric, and lets the house work whenever the client waits.
pub(crate) struct FakeConnector {
    house: SharedHouse,
    hub: Hub<FakeVerbs<Vec<u8>>>,
}

impl FakeConnector {
    pub(crate) fn new(house: &SharedHouse) -> Self {
        let hub = Hub::new(house.borrow().net.process(), client_shape(32));
        Self { house: Rc::clone(house), hub }
    }

    fn turn(&self) {
        let now_us = self.house.borrow().net.now_us();
        self.hub.turn(now_us);
    }
}

impl Connector for FakeConnector {
    type Stream = Line<FakeVerbs<Vec<u8>>>;

    fn connect(&mut self, address: &Address) -> io::Result<Self::Stream> {
        self.hub.connect(address.tcp()?)
    }

    fn wait(&mut self, slots: &[Slot<Self::Stream>], timeout_us: u64) -> io::Result<()> {
        self.turn();
        self.house.borrow_mut().step();
        self.house.borrow().net.advance(timeout_us.clamp(1, STEP_US));
        self.house.borrow_mut().step();
        self.turn();
        slots.iter().for_each(|slot| slot.ready.set(true));
        Ok(())
    }

    fn now_us(&mut self) -> u64 {
        self.house.borrow().net.now_us()
    }
}

/// A client, unless the fabric is too rough for it.
pub(crate) fn try_connect(house: &SharedHouse, seed: u64) -> Option<Pipeline<FakeConnector>> {
    let config = ClientConfig {
        seed,
        capsule_bytes: 8 << 10,
        queue_depth: 32,
        ..ClientConfig::new(vec![address()])
    };
    Pipeline::connect_with(config, FakeConnector::new(house)).ok()
}

pub(crate) fn connect(house: &SharedHouse, seed: u64) -> Pipeline<FakeConnector> {
    try_connect(house, seed).expect("a kind fabric connects")
}

/// After the last client: no queue pair, no region and no buffer is left.
pub(crate) fn settle(house: &SharedHouse, seed: u64) {
    for _ in 0..100 {
        house.borrow().net.advance(50_000);
        house.borrow_mut().step();
    }
    let house = house.borrow();
    assert_eq!(house.net.queue_pairs(), 0, "seed {seed}: a queue pair leaked");
    assert_eq!(house.net.regions(), 0, "seed {seed}: a region leaked");
    assert_eq!(house.desk.buffers.live(), 0, "seed {seed}: a buffer leaked");
    let server = house.server.as_ref().expect("a server");
    assert_eq!(server.transport().connections(), 0, "seed {seed}: a connection leaked");
    assert!(server.is_idle(), "seed {seed}: something is in flight");
    let posted = server.transport().provider().shared_posted();
    assert_eq!(posted, usize::from(house.shared), "seed {seed}: a receive leaked");
}

/// Says which seed it was, whatever failed.
pub(crate) struct Seed(pub(crate) u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with seed {}: replay with FOREBAY_SEED={}", self.0, self.0);
        }
    }
}

pub(crate) fn runs() -> u64 {
    std::env::var("FOREBAY_RDMA_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(300)
}

/// Runs `run` for each seed that was asked for, or for one of `share`.
pub(crate) fn each_seed(share: u64, run: fn(u64)) {
    let one: Option<u64> = std::env::var("FOREBAY_SEED").ok().and_then(|text| text.parse().ok());
    let seeds = one.map_or(0..runs() / share, |seed| seed..seed + 1);
    for seed in seeds {
        let told = Seed(seed);
        run(told.0);
    }
}
