//! A server in memory for the client's tests: real sessions over the simulated network, and a map
//! for a store. Everything happens inside `wait`, on the simulated clock, so that runs replay.

use forebay_fabric::Status;
use forebay_fabric::client::{
    Address, ClientConfig, ClientError, Connector, Done, NamespaceId, Pipeline, Request, Slot,
};
use forebay_fabric::pdu::{
    Capsule, Endpoint, ItemResult, ListEntry, Opcode, crc32c, response_flags,
};
use forebay_fabric::route::shard_of;
use forebay_fabric::server::{Reply, RequestId, Server, ServerConfig, Service};
use forebay_fabric::shm::Shm;
use forebay_fabric::stream::sim::{SimListener, SimNet, SimProfile, SimStream};
use forebay_fabric::stream::tcp::Tcp;
use forebay_fabric::stream::{Listener, StreamConfig, StreamTransport};
use forebay_fabric::transport::{Payload, Transport};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use zerocopy::IntoBytes;

pub(crate) const NS: NamespaceId = NamespaceId(16);
pub(crate) const SHARDS: u16 = 16;
/// How far the simulated clock goes in one step, in microseconds.
const STEP_US: u64 = 100;

type MemoryServer = Server<StreamTransport<SimListener, Vec<u8>>>;

pub(crate) fn address(reactor: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 7000 + reactor))
}

/// One command, copied out of its capsule.
#[derive(Debug)]
struct Work {
    id: RequestId,
    opcode: Opcode,
    namespace: u32,
    is_batch: bool,
    offset: u64,
    data_length: u32,
    items: Vec<Part>,
    data: Vec<u8>,
}

#[derive(Debug)]
struct Part {
    key: Vec<u8>,
    offset: u64,
    length: u32,
    token: u64,
    crc: u32,
}

/// What the reactors of one house share: values, and what was asked of them.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) values: BTreeMap<(u32, Vec<u8>), Vec<u8>>,
    /// Token → how often it was seen.
    pub(crate) tokens: BTreeMap<u64, u32>,
    /// Commands that reached a service, by opcode.
    pub(crate) commands: BTreeMap<u8, u64>,
    /// Commands that the wrong reactor got.
    pub(crate) misrouted: u64,
    /// How many of the next commands to refuse as busy.
    pub(crate) busy: u32,
    /// How many of the next commands to send to another reactor.
    pub(crate) mislead: u32,
    /// The most commands that were unanswered at once on one reactor.
    pub(crate) most_unanswered: usize,
    /// No command is answered any more.
    pub(crate) mute: bool,
    /// Commands are answered so long after they arrived, in microseconds.
    pub(crate) slow_us: u64,
    /// Flip a bit in the next data that is sent.
    pub(crate) corrupt: bool,
    pub(crate) pulls: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Desk {
    reactor: u16,
    pool: [u8; 16],
    shard_map: Vec<u16>,
    memory: Rc<RefCell<Memory>>,
    now_us: u64,
    pulls: Vec<(RequestId, Vec<u8>)>,
    pulling: Vec<Work>,
    /// (when to answer, what)
    ready: Vec<(u64, Work)>,
    swallowed: Vec<RequestId>,
}

impl Service<Vec<u8>> for Desk {
    fn request(&mut self, id: RequestId, capsule: &Capsule<'_>, _deadline_us: u64) {
        let command = capsule.command;
        let single = Part {
            key: capsule.keys.to_vec(),
            offset: command.offset.get(),
            length: command.data_length.get(),
            token: command.token.get(),
            crc: command.data_crc.get(),
        };
        let items = if capsule.items.is_empty() {
            vec![single]
        } else {
            let part = |(item, key): (&forebay_fabric::pdu::Item, &[u8])| Part {
                key: key.to_vec(),
                offset: item.offset.get(),
                length: item.data_length.get(),
                token: item.token.get(),
                crc: item.data_crc.get(),
            };
            capsule.items_with_keys().map(part).collect()
        };
        let work = Work {
            id,
            opcode: capsule.opcode.unwrap(),
            namespace: command.namespace.get(),
            is_batch: !capsule.items.is_empty(),
            offset: command.offset.get(),
            data_length: command.data_length.get(),
            items,
            data: capsule.data.to_vec(),
        };
        let mut memory = self.memory.borrow_mut();
        *memory.commands.entry(work.opcode as u8).or_default() += 1;
        let sends =
            matches!(work.opcode, Opcode::Store | Opcode::CheckpointPut | Opcode::CheckpointBegin);
        if sends && work.data_length > 0 && !capsule.is_in_capsule() {
            memory.pulls += 1;
            self.pulls.push((id, vec![0; work.data_length as usize]));
            self.pulling.push(work);
        } else {
            self.ready.push((self.now_us + memory.slow_us, work));
        }
        let unanswered = self.pulling.len() + self.ready.len();
        memory.most_unanswered = memory.most_unanswered.max(unanswered);
    }

    fn pulled(&mut self, id: RequestId, buffer: Vec<u8>, complete: bool) {
        let Some(at) = self.pulling.iter().position(|work| work.id == id) else { return };
        let mut work = self.pulling.swap_remove(at);
        work.data = buffer;
        if complete {
            self.ready.push((self.now_us + self.memory.borrow().slow_us, work));
        } else {
            self.swallowed.push(id);
        }
    }

    fn abandoned(&mut self, id: RequestId, _why: Status) {
        self.ready.retain(|(_, work)| work.id != id);
        self.pulling.retain(|work| work.id != id);
        self.swallowed.push(id);
    }
}

fn plain(status: Status, result: u64) -> Reply<Vec<u8>> {
    Reply::status(status, result)
}

impl Desk {
    pub(crate) fn new(config: &ServerConfig, memory: &Rc<RefCell<Memory>>) -> Self {
        Self {
            reactor: config.reactor,
            pool: config.pool,
            shard_map: config.shard_map.clone(),
            memory: Rc::clone(memory),
            ..Self::default()
        }
    }

    fn take_due(&mut self) -> Vec<Work> {
        if self.memory.borrow().mute {
            return Vec::new();
        }
        let now_us = self.now_us;
        let (due, later) = self.ready.drain(..).partition(|(at_us, _)| *at_us <= now_us);
        self.ready = later;
        let due: Vec<(u64, Work)> = due;
        due.into_iter().map(|(_, work)| work).collect()
    }

    fn execute(&mut self, work: &Work) -> Reply<Vec<u8>> {
        let memory = Rc::clone(&self.memory);
        let mut memory = memory.borrow_mut();
        if memory.busy > 0 {
            memory.busy -= 1;
            return plain(Status::Busy, 0);
        }
        let elsewhere = u64::from(self.reactor) ^ 1;
        if memory.mislead > 0 {
            memory.mislead -= 1;
            return plain(Status::WrongReactor, elsewhere);
        }
        match work.opcode {
            Opcode::List => return self.list(&memory, work),
            Opcode::Namespaces => {
                let text = br#"[{"name":"kv","number":16,"class":"durable","quota_bytes":null,
                    "used_bytes":7,"ttl_s":null},{"name":"cache","number":17}]"#;
                return with_data(0, text.to_vec());
            }
            Opcode::Stats => {
                return with_data(0, format!("{{\"reactor\":{}}}", self.reactor).into());
            }
            Opcode::CheckpointBegin => {
                let mut answer = work.items[0].key.clone();
                answer.extend_from_slice(&work.data);
                return with_data(self.reactor.into(), answer);
            }
            Opcode::CheckpointDelete => return plain(Status::NoCheckpoint, 0),
            _ => {}
        }
        let mut at = 0;
        let mut results = Vec::new();
        let mut joined = Vec::new();
        for part in &work.items {
            let value_bytes = if work.data.is_empty() { 0 } else { part.length as usize };
            let value = &work.data[at..at + value_bytes];
            at += value_bytes;
            let (status, result, data) = self.one(&mut memory, work, part, value);
            results.push(ItemResult::new(status, data.len() as u32, result as u32, crc32c(&data)));
            joined.extend_from_slice(&data);
            if !work.is_batch {
                let mut reply = with_data(result, data);
                reply.status = status;
                if memory.corrupt && reply.payload.is_some() {
                    memory.corrupt = false;
                    reply.data_crc ^= 1;
                }
                return reply;
            }
        }
        let table = results.as_slice().as_bytes();
        let crc = crc32c(table);
        let mut data = table.to_vec();
        data.extend_from_slice(&joined);
        let mut reply = with_data(0, data);
        reply.flags = response_flags::ITEMS;
        reply.data_crc = crc;
        reply
    }

    fn one(
        &self,
        memory: &mut Memory,
        work: &Work,
        part: &Part,
        value: &[u8],
    ) -> (Status, u64, Vec<u8>) {
        let shard = shard_of(&self.pool, work.namespace, &part.key, self.shard_map.len() as u32);
        if self.shard_map[shard as usize] != self.reactor {
            memory.misrouted += 1;
            return (Status::WrongReactor, self.shard_map[shard as usize].into(), Vec::new());
        }
        let name = (work.namespace, part.key.clone());
        if part.token != 0 {
            *memory.tokens.entry(part.token).or_default() += 1;
        }
        match work.opcode {
            Opcode::Store | Opcode::CheckpointPut => {
                if crc32c(value) != part.crc {
                    return (Status::DataChecksum, 0, Vec::new());
                }
                memory.values.insert(name, value.to_vec());
                (Status::Ok, 0, Vec::new())
            }
            Opcode::Delete => {
                (Status::Ok, memory.values.remove(&name).is_some().into(), Vec::new())
            }
            Opcode::Exist => match memory.values.get(&name) {
                Some(value) => (Status::Ok, value.len() as u64, Vec::new()),
                None => (Status::NotFound, 0, Vec::new()),
            },
            Opcode::Retrieve => match memory.values.get(&name) {
                Some(value) if part.offset <= value.len() as u64 => {
                    let from = part.offset as usize;
                    let to = value.len().min(from + part.length as usize);
                    (Status::Ok, value.len() as u64, value[from..to].to_vec())
                }
                Some(_) => (Status::Range, 0, Vec::new()),
                None => (Status::NotFound, 0, Vec::new()),
            },
            _ => (Status::Unsupported, 0, Vec::new()),
        }
    }

    /// The cursor counts the keys of this reactor that were listed.
    fn list(&self, memory: &Memory, work: &Work) -> Reply<Vec<u8>> {
        let prefix = &work.items[0].key;
        let mine = memory.values.iter().filter(|((namespace, key), _)| {
            let shard = shard_of(&self.pool, *namespace, key, self.shard_map.len() as u32);
            *namespace == work.namespace
                && key.starts_with(prefix)
                && self.shard_map[shard as usize] == self.reactor
        });
        let mut data = vec![0; work.data_length.min(100) as usize];
        let (mut used, mut cursor, mut more) = (0, work.offset, false);
        for ((_, key), value) in mine.skip(work.offset as usize) {
            let entry = ListEntry { key, value_length: value.len() as u32 };
            let Some(count) = entry.encode(&mut data[used..]) else {
                more = true;
                break;
            };
            used += count;
            cursor += 1;
        }
        data.truncate(used);
        with_data(if more { cursor } else { 0 }, data)
    }
}

fn with_data(result: u64, data: Vec<u8>) -> Reply<Vec<u8>> {
    let crc = crc32c(&data);
    let payload = Payload { range: 0..data.len(), buffer: data };
    let empty = payload.range.is_empty();
    let mut reply = Reply::data(result, crc, payload);
    if empty {
        reply.payload = None;
    }
    reply
}

#[derive(Debug)]
struct Reactor {
    server: MemoryServer,
    desk: Desk,
}

/// A server of several reactors, its clients' network and its clock.
#[derive(Debug)]
pub(crate) struct House {
    pub(crate) net: SimNet,
    pub(crate) memory: Rc<RefCell<Memory>>,
    pub(crate) config: ServerConfig,
    reactors: Vec<Option<Reactor>>,
}

pub(crate) type SharedHouse = Rc<RefCell<House>>;

impl House {
    pub(crate) fn new(seed: u64, profile: SimProfile, reactors: u16) -> SharedHouse {
        let net = SimNet::new(seed, profile);
        let config = Self::config(reactors, 1);
        let memory = Rc::new(RefCell::new(Memory::default()));
        let mut house = Self { net, memory, config, reactors: Vec::new() };
        house.start_all();
        Rc::new(RefCell::new(house))
    }

    pub(crate) fn config(reactors: u16, incarnation: u8) -> ServerConfig {
        ServerConfig {
            queue_depth: 32,
            capsule_bytes: 16 << 10,
            keep_alive_ms: 1_000,
            timeout_max_us: 30_000_000,
            connections_max: 16,
            pool: [7; 16],
            incarnation: [incarnation; 16],
            reactor: 0,
            catalog_reactor: reactors - 1,
            shard_map: (0..SHARDS).map(|shard| shard % reactors).collect(),
            reactors,
            endpoints: (0..reactors).map(|r| Endpoint::tcp(r, address(r))).collect(),
        }
    }

    pub(crate) fn start_all(&mut self) {
        self.reactors = (0..self.config.reactors).map(|_| None).collect();
        (0..self.config.reactors).for_each(|reactor| self.start(reactor));
    }

    pub(crate) fn start(&mut self, reactor: u16) {
        self.reactors[usize::from(reactor)] = Some(self.listen(reactor, address(reactor)));
    }

    /// Another listener of a reactor; the number to kill it by.
    pub(crate) fn start_at(&mut self, reactor: u16, at: SocketAddr) -> u16 {
        let started = self.listen(reactor, at);
        self.reactors.push(Some(started));
        self.reactors.len() as u16 - 1
    }

    fn listen(&self, reactor: u16, at: SocketAddr) -> Reactor {
        let listener = self.net.listen(at).unwrap();
        let limits = StreamConfig { connections_max: 16, ..StreamConfig::default() };
        let transport = StreamTransport::new(listener, limits);
        let config = ServerConfig { reactor, ..self.config.clone() };
        let desk = Desk::new(&config, &self.memory);
        let server = Server::new(transport, config);
        Reactor { server, desk }
    }

    /// Gone, with everything that it had not answered.
    pub(crate) fn kill(&mut self, reactor: u16) {
        self.reactors[usize::from(reactor)] = None;
    }

    pub(crate) fn kill_all(&mut self) {
        self.reactors.clear();
    }

    pub(crate) fn drain(&mut self, reactor: u16) {
        let now_us = self.net.now_us();
        if let Some(reactor) = &mut self.reactors[usize::from(reactor)] {
            reactor.server.drain(now_us);
        }
    }

    pub(crate) fn protocol_errors(&self) -> u64 {
        let reactors = self.reactors.iter().flatten();
        reactors.map(|reactor| reactor.server.counters().protocol_errors).sum()
    }

    pub(crate) fn step(&mut self) {
        let now_us = self.net.now_us();
        for Reactor { server, desk } in self.reactors.iter_mut().flatten() {
            turn(server, desk, now_us);
        }
    }
}

/// One reactor's turn.
pub(crate) fn turn<T: Transport<Buffer = Vec<u8>>>(
    server: &mut Server<T>,
    desk: &mut Desk,
    now_us: u64,
) {
    desk.now_us = now_us;
    server.poll(now_us, desk);
    for id in desk.swallowed.drain(..) {
        server.reply(id, plain(Status::Cancelled, 0));
    }
    for (id, buffer) in desk.pulls.drain(..) {
        server.pull(id, buffer);
    }
    for work in desk.take_due() {
        let reply = desk.execute(&work);
        server.reply(work.id, reply);
    }
    server.flush(now_us);
}

/// A house of one thread that listens on real sockets, until it is dropped.
pub(crate) struct ThreadHouse {
    pub(crate) addresses: Vec<Address>,
    /// Sent to and taken: restart. Hung up: end.
    orders: Option<mpsc::SyncSender<()>>,
    thread: Option<thread::JoinHandle<()>>,
    _folder: Option<tempfile::TempDir>,
}

impl ThreadHouse {
    pub(crate) fn tcp(reactors: u16) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        // All at once, and kept: a port that was given back may be the next one's, or somebody else's.
        let bound: Vec<_> = (0..reactors).map(|_| Tcp::bind(any).unwrap()).collect();
        let listen: Vec<_> = bound.iter().map(|one| one.local_addr().unwrap()).collect();
        let addresses = listen.iter().copied().map(Address::Tcp).collect();
        let mut bound = Some(bound);
        Self::start(addresses, None, move || {
            let endpoints = (0..).zip(&listen).map(|(r, at)| Endpoint::tcp(r, *at)).collect();
            let again = || listen.iter().map(|at| Tcp::bind(*at).unwrap()).collect();
            (bound.take().unwrap_or_else(again), endpoints)
        })
    }

    pub(crate) fn shm(reactors: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shm");
        Self::start(vec![Address::shm(&path)], Some(folder), move || {
            let listeners = (0..reactors).map(|r| Shm::bind(&path, r, 0o600).unwrap());
            (listeners.collect(), (0..reactors).map(Endpoint::shm).collect())
        })
    }

    fn start<L: Listener + 'static>(
        addresses: Vec<Address>,
        folder: Option<tempfile::TempDir>,
        mut listen: impl FnMut() -> (Vec<L>, Vec<Endpoint>) + Send + 'static,
    ) -> Self {
        let (orders, inbox) = mpsc::sync_channel(0);
        let (up, is_up) = mpsc::sync_channel(1);
        let thread = thread::spawn(move || {
            loop {
                let (listeners, endpoints) = listen();
                if !serve(listeners, endpoints, &up, &inbox) {
                    break;
                }
            }
        });
        is_up.recv().unwrap();
        Self { addresses, orders: Some(orders), thread: Some(thread), _folder: folder }
    }

    /// Everything that it held is gone when this returns.
    pub(crate) fn restart(&self) {
        self.orders.as_ref().unwrap().send(()).unwrap();
    }
}

impl Drop for ThreadHouse {
    fn drop(&mut self) {
        drop(self.orders.take());
        let ended = self.thread.take().map(|thread| thread.join());
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))));
    }
}

/// Serves until there is an order; `true` if it is to start anew.
fn serve<L: Listener>(
    listeners: Vec<L>,
    endpoints: Vec<Endpoint>,
    up: &mpsc::SyncSender<()>,
    orders: &mpsc::Receiver<()>,
) -> bool {
    let memory = Rc::default();
    let mut config = House::config(endpoints.len() as u16, 1);
    config.endpoints = endpoints;
    let mut reactors: Vec<_> = (0..)
        .zip(listeners)
        .map(|(reactor, listener)| {
            let transport = StreamTransport::new(listener, StreamConfig::default());
            let config = ServerConfig { reactor, ..config.clone() };
            let desk = Desk::new(&config, &memory);
            (Server::new(transport, config), desk)
        })
        .collect();
    // Only the first start has somebody who waits for it.
    let _nobody = up.try_send(());
    let mut now_us = 0;
    loop {
        match orders.recv_timeout(Duration::from_micros(20)) {
            Ok(()) => return true,
            Err(mpsc::RecvTimeoutError::Disconnected) => return false,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        now_us += 20;
        reactors.iter_mut().for_each(|(server, desk)| turn(server, desk, now_us));
    }
}

/// Connects through the house's network, and lets the house work whenever the client waits.
#[derive(Debug)]
pub(crate) struct SimConnector {
    pub(crate) house: SharedHouse,
    /// Streams that were opened, by number.
    pub(crate) opened: Rc<RefCell<Vec<u64>>>,
}

impl SimConnector {
    pub(crate) fn new(house: &SharedHouse) -> Self {
        Self { house: Rc::clone(house), opened: Rc::default() }
    }
}

impl Connector for SimConnector {
    type Stream = SimStream;

    fn connect(&mut self, address: &Address) -> io::Result<SimStream> {
        let stream = self.house.borrow().net.connect(address.tcp()?)?;
        self.opened.borrow_mut().push(stream.id());
        Ok(stream)
    }

    fn wait(&mut self, slots: &[Slot<SimStream>], timeout_us: u64) -> io::Result<()> {
        let mut house = self.house.borrow_mut();
        house.step();
        house.net.advance(timeout_us.clamp(1, STEP_US));
        house.step();
        slots.iter().for_each(|slot| slot.ready.set(true));
        Ok(())
    }

    fn now_us(&mut self) -> u64 {
        self.house.borrow().net.now_us()
    }
}

pub(crate) fn client_config(seed: u64) -> ClientConfig {
    ClientConfig { seed, ..ClientConfig::new(vec![address(0)]) }
}

pub(crate) fn connect(house: &SharedHouse, seed: u64) -> Pipeline<SimConnector> {
    connect_with(house, client_config(seed)).unwrap()
}

pub(crate) fn connect_with(
    house: &SharedHouse,
    config: ClientConfig,
) -> Result<Pipeline<SimConnector>, ClientError> {
    Pipeline::connect_with(config, SimConnector::new(house))
}

/// Submits, polling while the window is full; what ends meanwhile goes to `done`.
pub(crate) fn submit(
    pipeline: &mut Pipeline<SimConnector>,
    request: Request<'_>,
    done: &mut Vec<Done>,
) {
    let mut request = Some(request);
    while let Some(next) = request.take() {
        if let Err(refused) = pipeline.submit(next) {
            request = Some(refused);
            pipeline.poll(done, 1_000).unwrap();
        }
    }
}

/// Polls until nothing is in flight.
pub(crate) fn finish(pipeline: &mut Pipeline<SimConnector>, done: &mut Vec<Done>) {
    while pipeline.in_flight() > 0 {
        pipeline.poll(done, 1_000_000).unwrap();
    }
}

pub(crate) fn bytes(rng: &mut fastrand::Rng, length: usize) -> Vec<u8> {
    (0..length).map(|_| rng.u8(..)).collect()
}
