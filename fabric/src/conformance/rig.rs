//! A transport under test, its peers, and what it has reported.

use super::{Buffers, Peer, Wire};
use crate::pdu::{Command, Opcode, Outcome, PduType, crc32c};
use crate::transport::{CloseReason, ConnId, RemoteMemory, Sink, Transport};
use crate::{Buffer, Status};
use zerocopy::IntoBytes;

/// After so many turns without the expected event, a claim has failed.
const TURNS_MAX: usize = 300_000;

/// What a transport has reported.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    Connected(ConnId),
    Pdu(ConnId, Vec<u8>),
    Pulled(ConnId, u16, Vec<u8>, bool),
    Closed(ConnId, CloseReason),
}

/// Writes everything down; refuses PONGs.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    pub events: Vec<Event>,
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

pub(super) struct Rig<W: Wire> {
    pub wire: W,
    pub recorder: Recorder,
    pub buffers: Buffers,
    pub rng: fastrand::Rng,
    pub seed: u64,
}

impl<W: Wire> Rig<W> {
    pub(super) fn turn(&mut self) {
        let now_us = self.wire.tick();
        let transport = self.wire.transport();
        transport.poll(now_us, &mut self.recorder);
        transport.flush(now_us);
    }

    /// Turns the transport and `peers` until `done` says so.
    pub(super) fn until(
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
    pub(super) fn peer(&mut self) -> (W::Peer, ConnId) {
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
    pub(super) fn closed(&mut self, conn: ConnId, peers: &mut [&mut W::Peer]) -> CloseReason {
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
    pub(super) fn settle(&mut self, peers: &mut [&mut W::Peer]) {
        for _ in 0..200 {
            peers.iter_mut().for_each(|peer| peer.turn());
            self.turn();
        }
    }

    pub(super) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.rng.fill(&mut bytes);
        bytes
    }

    pub(super) fn pull(&mut self, conn: ConnId, cid: u16, remote: RemoteMemory<'_>) {
        // Longer than what is pulled: the rest must stay as it is.
        let buffer = self.buffers.holding(vec![0xEE; remote.length() as usize + 3]);
        self.wire.transport().pull(conn, cid, remote, buffer);
    }

    pub(super) fn pulled(&self) -> Vec<&Event> {
        self.recorder.events.iter().filter(|event| matches!(event, Event::Pulled(..))).collect()
    }
}

pub(super) fn command(cid: u16, key: &[u8], data: &[u8]) -> Vec<u8> {
    let mut command = Command::new(Opcode::Store, cid);
    command.seal(&[], key, data);
    [command.as_bytes(), key, data].concat()
}

/// Command `cid` was answered with `data`.
#[must_use]
pub fn response(cid: u16, data: &[u8]) -> Outcome {
    let (data_length, data_crc) = (data.len() as u32, crc32c(data));
    Outcome { data_length, data_crc, ..Outcome::bare(cid, Status::Ok, 1) }
}
