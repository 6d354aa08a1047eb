//! The client of the counted server: capsules that were made before, and answers that are counted.

use anyhow::Context as _;
use forebay_fabric::Status;
use forebay_fabric::pdu::{
    Auth, Command, CommonHeader, Hello, Offer, Opcode, PduType, Response, VERSION, crc32c, features,
};
use forebay_nvme::BLOCK_BYTES;
use forebay_tests::card::CardPeer;
use forebay_tests::serving::{NAMESPACE, QUEUE_DEPTH};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use zerocopy::IntoBytes;

/// Any memory: nothing is moved there.
const MEMORY_KEY: u32 = 7;

/// One client, which works between two ticks.
pub(super) trait Client {
    /// The connection is there.
    fn is_connected(&mut self) -> bool;

    /// Sends a PDU.
    fn send(&mut self, pdu: &[u8]);

    /// How many answers have come.
    fn take(&mut self) -> usize;

    /// The key of the memory that the server is to write to; 0: it is to send.
    fn memory_key(&self) -> u32;

    /// Sends the handshake, which is answered twice.
    fn greet(&mut self) {
        let offer = Offer {
            versions: VERSION..=VERSION,
            features: features::ALL,
            client_id: [1; 16],
            queue_depth: QUEUE_DEPTH,
            capsule_bytes: 16 << 10,
            keep_alive_ms: 0,
        };
        self.send(Hello::new(&offer).as_bytes());
        self.send(Auth::none(PduType::Auth).as_bytes());
    }

    /// Stores a value, in the capsule.
    fn store(&mut self, cid: u16) {
        let value = [cid as u8; BLOCK_BYTES];
        let mut command = Command::new(Opcode::Store, cid);
        command.namespace = NAMESPACE.into();
        command.data_crc = crc32c(&value).into();
        let key = key(cid);
        command.seal(&[], &key, &value);
        self.send(&[command.as_bytes(), &key, &value].concat());
    }

    /// Asks for it.
    fn retrieve(&mut self, cid: u16) {
        let mut command = Command::new(Opcode::Retrieve, cid);
        command.namespace = NAMESPACE.into();
        command.data_length = (BLOCK_BYTES as u32).into();
        command.memory_key = self.memory_key().into();
        let key = key(cid);
        command.seal(&[], &key, &[]);
        self.send(&[command.as_bytes(), &key].concat());
    }
}

/// 16 bytes, as `forebay perf` has them.
fn key(number: u16) -> [u8; 16] {
    let mut key = *b"key:000000000000";
    key[14..].copy_from_slice(&number.to_be_bytes());
    key
}

/// Panics if an answer is none, or a bad one.
fn check(pdu: &[u8]) {
    let (pdu_type, _) = CommonHeader::peek(pdu).expect("a PDU").expect("a whole header");
    match pdu_type {
        PduType::HelloAck | PduType::AuthAck => {}
        PduType::Response => {
            let outcome = Response::parse(&pdu[..size_of::<Response>()]).expect("a response");
            assert_eq!(outcome.status, Status::Ok);
        }
        other => panic!("the server sends {other:?}"),
    }
}

/// Behind a [`CardPeer`].
#[derive(Debug)]
pub(super) struct PeerClient(CardPeer);

impl PeerClient {
    pub(super) fn new(peer: CardPeer) -> Self {
        Self(peer)
    }
}

impl Client for PeerClient {
    fn is_connected(&mut self) -> bool {
        self.0.is_connected()
    }

    fn send(&mut self, pdu: &[u8]) {
        self.0.send(pdu);
    }

    fn take(&mut self) -> usize {
        let mut come = 0;
        self.0.take(|message| {
            if !message.is_empty() {
                check(message);
                come += 1;
            }
        });
        come
    }

    fn memory_key(&self) -> u32 {
        MEMORY_KEY
    }
}

/// On a socket.
#[derive(Debug)]
pub(super) struct TcpClient {
    stream: TcpStream,
    input: Vec<u8>,
}

impl TcpClient {
    pub(super) fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).context("the server listens")?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, input: Vec::new() })
    }

    fn read(&mut self) {
        let mut chunk = [0; 1 << 16];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => panic!("the server has closed the connection"),
                Ok(count) => self.input.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

impl Client for TcpClient {
    fn is_connected(&mut self) -> bool {
        true
    }

    fn send(&mut self, pdu: &[u8]) {
        self.stream.write_all(pdu).expect("a few capsules fit into a socket");
    }

    fn take(&mut self) -> usize {
        self.read();
        let (mut come, mut start) = (0, 0);
        while let Ok(Some((_, length))) = CommonHeader::peek(&self.input[start..])
            && start + length <= self.input.len()
        {
            check(&self.input[start..start + length]);
            (come, start) = (come + 1, start + length);
        }
        self.input.drain(..start);
        come
    }

    fn memory_key(&self) -> u32 {
        0
    }
}
