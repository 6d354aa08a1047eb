//! A client of an RDMA transport under test, for the suite of the seam.

use super::client::{Hub, Lend, Line};
use super::provider::Provider;
use crate::conformance::Peer;
use crate::pdu::CommonHeader;
use crate::transport::RemoteMemory;
use std::collections::VecDeque;
use std::io::Read;

/// A [`Peer`] over a [`Line`] with a provider of its own.
#[derive(Debug)]
pub struct LinePeer<P: Provider, C> {
    line: Line<P>,
    hub: Hub<P>,
    clock: C,
    out: VecDeque<Vec<u8>>,
    bytes: Vec<u8>,
    received: Vec<Vec<u8>>,
}

impl<P: Provider, C: FnMut() -> u64> LinePeer<P, C> {
    /// Over a line of `hub`, whose other lines nobody uses; `clock` tells the time.
    pub fn new(hub: Hub<P>, line: Line<P>, clock: C) -> Self {
        let (out, bytes, received) = (VecDeque::new(), Vec::new(), Vec::new());
        Self { line, hub, clock, out, bytes, received }
    }

    fn write(&mut self) {
        while let Some(pdu) = self.out.front() {
            match self.line.send(pdu) {
                Ok(()) => drop(self.out.pop_front()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => self.out.clear(),
            }
        }
    }

    fn read(&mut self) {
        let mut chunk = [0; 1 << 16];
        while let Ok(count @ 1..) = self.line.read(&mut chunk) {
            self.bytes.extend_from_slice(&chunk[..count]);
        }
        while let Some((_, length)) =
            CommonHeader::peek(&self.bytes).expect("the server sends PDUs")
        {
            if self.bytes.len() < length {
                return;
            }
            self.received.push(self.bytes.drain(..length).collect());
        }
    }
}

impl<P: Provider, C: FnMut() -> u64> Peer for LinePeer<P, C> {
    const IS_PASSIVE: bool = true;

    fn send(&mut self, pdu: &[u8]) {
        self.out.push_back(pdu.to_vec());
    }

    fn lend(&mut self, cid: u16, memory: Vec<u8>) -> RemoteMemory {
        self.line.lend(cid, Lend::Send(&[memory.into()])).expect("memory to register")
    }

    fn expect(&mut self, cid: u16, length: usize) -> RemoteMemory {
        self.line.lend(cid, Lend::Receive(length)).expect("memory to register")
    }

    fn turn(&mut self) {
        self.write();
        self.hub.turn((self.clock)());
        self.read();
    }

    fn received(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.received)
    }

    fn is_closed(&self) -> bool {
        self.line.is_closed()
    }
}
