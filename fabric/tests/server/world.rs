//! A server on a simulated network, a service that writes everything down, and raw peers.

use forebay_fabric::Status;
use forebay_fabric::conformance::{Buffers, Counted, Peer, StreamPeer};
use forebay_fabric::pdu::{
    Auth, Capsule, Command, Endpoint, GoAway, GoAwayReason, Hello, Item, Offer, Opcode, Outcome,
    PduType, Response, Welcome, features,
};
use forebay_fabric::server::{Reply, RequestId, Server, ServerConfig, Service};
use forebay_fabric::stream::sim::{SimListener, SimNet, SimProfile, SimStream};
use forebay_fabric::stream::{StreamConfig, StreamTransport};
use forebay_fabric::transport::Payload;
use std::net::SocketAddr;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

pub(crate) const DEPTH: u16 = 8;
pub(crate) const KEEP_ALIVE_US: u64 = 1_000_000;
pub(crate) const TIMEOUT_MAX_US: u32 = 500_000;
pub(crate) const CONNECTIONS_MAX: u16 = 8;
/// One turn, in microseconds.
pub(crate) const TURN_US: u64 = 100;

/// What the service was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Request {
        id: RequestId,
        opcode: Opcode,
        key: Vec<u8>,
        /// In the capsule.
        data: Vec<u8>,
        /// What the command says about its data.
        length: usize,
        deadline_us: u64,
    },
    Pulled(RequestId, Vec<u8>, bool),
    Abandoned(RequestId, Status),
}

/// Writes down what it is told; the tests answer for it.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    pub(crate) told: Vec<Told>,
}

impl Service<Counted> for Desk {
    fn request(&mut self, id: RequestId, capsule: &Capsule<'_>, deadline_us: u64) {
        let opcode = capsule.opcode.expect("the server knows every opcode it lets through");
        let (key, data) = (capsule.keys.to_vec(), capsule.data.to_vec());
        let length = capsule.command.data_length.get() as usize;
        self.told.push(Told::Request { id, opcode, key, data, length, deadline_us });
    }

    fn pulled(&mut self, id: RequestId, buffer: Counted, complete: bool) {
        self.told.push(Told::Pulled(id, buffer.as_ref().to_vec(), complete));
    }

    fn abandoned(&mut self, id: RequestId, why: Status) {
        self.told.push(Told::Abandoned(id, why));
    }
}

pub(crate) struct World {
    pub(crate) net: SimNet,
    pub(crate) address: SocketAddr,
    pub(crate) server: Server<StreamTransport<SimListener, Counted>>,
    pub(crate) desk: Desk,
    pub(crate) buffers: Buffers,
}

pub(crate) type Client = StreamPeer<SimStream>;

impl World {
    pub(crate) fn new() -> Self {
        Self::with(SimNet::new(1, SimProfile::kind()))
    }

    pub(crate) fn with(net: SimNet) -> Self {
        let address = SocketAddr::from(([10, 0, 0, 1], 7000));
        let stream = StreamConfig {
            connections_max: CONNECTIONS_MAX,
            stall_us: 2 * KEEP_ALIVE_US,
            linger_us: KEEP_ALIVE_US / 2,
        };
        let listener = net.listen(address).expect("the address is free");
        let server = Server::new(StreamTransport::new(listener, stream), config(address));
        Self { net, address, server, desk: Desk::default(), buffers: Buffers::default() }
    }

    pub(crate) fn turn(&mut self) {
        self.net.advance(TURN_US);
        let now_us = self.net.now_us();
        self.server.poll(now_us, &mut self.desk);
        self.server.flush(now_us);
    }

    /// Turns the server and `clients` for `us` microseconds.
    pub(crate) fn run(&mut self, clients: &mut [&mut Client], us: u64) {
        for _ in 0..us / TURN_US {
            clients.iter_mut().for_each(|client| client.turn());
            self.turn();
        }
    }

    /// Long enough for everything that is under way to arrive, on a kind network.
    pub(crate) fn settle(&mut self, clients: &mut [&mut Client]) {
        self.run(clients, 20 * TURN_US);
    }

    /// A raw connection that has said nothing.
    pub(crate) fn dial(&mut self) -> Client {
        StreamPeer::new(self.net.connect(self.address).expect("the server listens"))
    }

    /// A client whose handshake is done, and that answers PINGs.
    pub(crate) fn client(&mut self) -> Client {
        let mut client = self.mute_client();
        client.answer_pings();
        client
    }

    /// A client whose handshake is done, and that leaves PINGs to the test.
    pub(crate) fn mute_client(&mut self) -> Client {
        let mut client = self.dial();
        client.send(Hello::new(&offer()).as_bytes());
        client.send(Auth::none(PduType::Auth).as_bytes());
        self.settle(&mut [&mut client]);
        let greeting = client.received();
        assert_eq!(greeting.len(), 2, "HELLO_ACK and AUTH_ACK");
        Welcome::parse(&greeting[0]).expect("HELLO_ACK");
        client
    }

    /// The requests that the service was told of since the last call; other news stay.
    pub(crate) fn requests(&mut self) -> Vec<RequestId> {
        let mut ids = Vec::new();
        self.desk.told.retain(|told| match told {
            Told::Request { id, .. } => {
                ids.push(*id);
                false
            }
            _ => true,
        });
        ids
    }

    /// The one request that the service was told of.
    pub(crate) fn request(&mut self) -> RequestId {
        let ids = self.requests();
        assert_eq!(ids.len(), 1, "one request: {ids:?}");
        ids[0]
    }

    pub(crate) fn told(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.desk.told)
    }

    pub(crate) fn reply(&mut self, id: RequestId, status: Status) {
        self.server.reply(id, Reply::status(status, 0));
    }

    pub(crate) fn reply_with(&mut self, id: RequestId, bytes: &[u8]) {
        let buffer = self.buffers.holding(bytes.to_vec());
        let payload = Payload { buffer, range: 0..bytes.len() };
        self.server.reply(id, Reply::data(bytes.len() as u64, 0, payload));
    }

    pub(crate) fn pull(&mut self, id: RequestId, length: usize) {
        let buffer = self.buffers.holding(vec![0xEE; length]);
        self.server.pull(id, buffer);
    }

    /// A whole exchange on `client`, to show that it and the server are well.
    #[track_caller]
    pub(crate) fn assert_served(&mut self, client: &mut Client) {
        drop(self.requests());
        client.send(&store(DEPTH - 1, b"well?", b"yes"));
        self.settle(&mut [client]);
        let id = self.request();
        self.reply(id, Status::Ok);
        self.settle(&mut [client]);
        assert_eq!(outcomes(client), [(DEPTH - 1, Status::Ok)], "a bystander was harmed");
    }

    /// `client` was told GOAWAY for `reason` as the last thing, and its connection is over.
    #[track_caller]
    pub(crate) fn assert_dismissed(&mut self, client: &mut Client, reason: GoAwayReason) {
        self.settle(&mut [client]);
        let last = client.received().pop();
        assert_eq!(last.as_deref(), Some(GoAway::new(reason).as_bytes()), "the last PDU");
        assert!(client.is_closed());
    }
}

pub(crate) fn config(address: SocketAddr) -> ServerConfig {
    ServerConfig {
        queue_depth: DEPTH,
        capsule_bytes: 8192,
        keep_alive_ms: (KEEP_ALIVE_US / 1000) as u32,
        timeout_max_us: TIMEOUT_MAX_US,
        connections_max: CONNECTIONS_MAX,
        pool: *b"pool-pool-pool-p",
        incarnation: *b"incarnation-incn",
        reactor: 1,
        catalog_reactor: 0,
        shard_map: vec![0, 1, 1, 0],
        reactors: 2,
        endpoints: vec![Endpoint::tcp(0, address), Endpoint::tcp(1, address)],
    }
}

pub(crate) fn offer() -> Offer {
    Offer {
        versions: 1..=1,
        features: features::ALL,
        client_id: [7; 16],
        queue_depth: DEPTH,
        capsule_bytes: 8192,
        keep_alive_ms: 0,
    }
}

/// A store with its value in the capsule.
pub(crate) fn store(cid: u16, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut command = Command::new(Opcode::Store, cid);
    command.seal(&[], key, value);
    [command.as_bytes(), key, value].concat()
}

/// A command whose `length` bytes of data are pulled (store) or wanted (retrieve).
pub(crate) fn transfer(opcode: Opcode, cid: u16, length: usize, timeout_us: u32) -> Vec<u8> {
    let mut command = Command::new(opcode, cid);
    command.data_length = U32::new(length as u32);
    command.timeout_us = U32::new(timeout_us);
    command.seal(&[] as &[Item], b"key", &[]);
    [command.as_bytes(), b"key"].concat()
}

/// The responses that have come, in order; anything else that came is an error.
#[track_caller]
pub(crate) fn responses(client: &mut Client) -> Vec<(Outcome, Vec<u8>)> {
    let parse = |pdu: Vec<u8>| {
        let outcome = Response::parse(&pdu).expect("a response");
        (outcome, pdu[size_of::<Response>()..].to_vec())
    };
    client.received().into_iter().map(parse).collect()
}

#[track_caller]
pub(crate) fn outcomes(client: &mut Client) -> Vec<(u16, Status)> {
    responses(client).into_iter().map(|(outcome, _)| (outcome.cid, outcome.status)).collect()
}
