//! The protocol by hand over one connection, for those who mean harm.

use anyhow::{Context as _, bail, ensure};
use forebay_fabric::client::Lent;
use forebay_fabric::pdu::{
    Auth, Command, CommonHeader, Hello, Offer, Opcode, Outcome, PduType, Response, VERSION,
};
use forebay_fabric::rdma::client::{Hub, Line, client_shape};
use forebay_fabric::verbs::{Verbs, VerbsConfig};
use forebay_tests::vm::{now, sleep};
use std::io::{ErrorKind, Read as _};
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes as _;

/// How long the server may take to say or do anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The first namespace of a configuration.
pub(crate) const NAMESPACE: u32 = 16;

/// Real verbs, as the lines here use them.
pub(crate) type Lines = Hub<Verbs<Vec<u8>>>;

pub(crate) fn lines(queue_depth: u16) -> anyhow::Result<Lines> {
    let verbs = Verbs::new(VerbsConfig::default()).context("this machine's RDMA device")?;
    Ok(Hub::new(verbs, client_shape(queue_depth)))
}

/// One connection.
pub(crate) struct Peer {
    lines: Lines,
    pub(crate) line: Line<Verbs<Vec<u8>>>,
    bytes: Vec<u8>,
}

/// What the server did.
#[derive(Debug)]
pub(crate) enum Heard {
    Pdu(Vec<u8>),
    /// The queue pair is dead.
    Closed,
    Nothing,
}

impl Peer {
    pub(crate) fn connect(lines: &Lines, address: SocketAddr) -> anyhow::Result<Self> {
        let line = lines.connect(address)?;
        Ok(Self { lines: lines.clone(), line, bytes: Vec::new() })
    }

    /// To where commands are taken.
    pub(crate) fn shake_hands(&mut self) -> anyhow::Result<()> {
        self.greet()?;
        self.expect(PduType::HelloAck)?;
        self.expect(PduType::AuthAck)
    }

    /// Says HELLO and AUTH, and waits for nothing.
    pub(crate) fn greet(&mut self) -> anyhow::Result<()> {
        let offer = Offer {
            versions: VERSION..=VERSION,
            features: u64::MAX,
            client_id: [9; 16],
            queue_depth: 8,
            capsule_bytes: 8 << 10,
            keep_alive_ms: 10_000,
        };
        self.line.send(Hello::new(&offer).as_bytes())?;
        Ok(self.line.send(Auth::none(PduType::Auth).as_bytes())?)
    }

    fn expect(&mut self, wanted: PduType) -> anyhow::Result<()> {
        match self.hear(PATIENCE)? {
            Heard::Pdu(pdu) => {
                ensure!(pdu.first() == Some(&(wanted as u8)), "{pdu:02x?} is no {wanted:?}");
                Ok(())
            }
            other => bail!("no {wanted:?}: {other:?}"),
        }
    }

    /// Asks for or stores `data_length` bytes under `key`, in memory that may be anybody's.
    pub(crate) fn command(
        &mut self,
        opcode: Opcode,
        key: &[u8],
        memory: Lent,
        data_crc: u32,
    ) -> anyhow::Result<()> {
        let mut command = Command::new(opcode, 1);
        command.namespace = NAMESPACE.into();
        command.address = memory.address.into();
        command.memory_key = memory.key.into();
        command.data_length = memory.bytes.into();
        command.data_crc = data_crc.into();
        command.timeout_us = 10_000_000.into();
        command.seal(&[], key, &[]);
        Ok(self.line.send(&[command.as_bytes(), key].concat())?)
    }

    /// The next PDU, or the end.
    pub(crate) fn hear(&mut self, patience: Duration) -> anyhow::Result<Heard> {
        let began = now();
        while began.elapsed() < patience {
            turn(&self.lines);
            if let Some(heard) = self.look()? {
                return Ok(heard);
            }
        }
        Ok(Heard::Nothing)
    }

    /// What has come already.
    pub(crate) fn look(&mut self) -> anyhow::Result<Option<Heard>> {
        let mut chunk = [0; 4096];
        loop {
            if let Some((_, length)) = CommonHeader::peek(&self.bytes)?
                && self.bytes.len() >= length
            {
                return Ok(Some(Heard::Pdu(self.bytes.drain(..length).collect())));
            }
            match self.line.read(&mut chunk) {
                Ok(count @ 1..) => self.bytes.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Ok(0) | Err(_) => return Ok(Some(Heard::Closed)),
            }
        }
    }
}

/// One step of all lines, and a moment for others: the daemon is on the same two cores.
pub(crate) fn turn(lines: &Lines) {
    if !lines.turn(clock_us()) {
        sleep(Duration::from_millis(1));
    }
}

fn clock_us() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(now).elapsed().as_micros() as u64
}

/// The outcome in a response.
pub(crate) fn outcome(pdu: &[u8]) -> Option<Outcome> {
    Response::parse(pdu.get(..size_of::<Response>())?).ok()
}
