//! A client of an RDMA transport under test, for the suite of the seam.

use super::client::{Hub, Line};
use super::provider::Provider;
use crate::client::{Lent, Memory};
use crate::conformance::{MemoryPeer, Peer};
use crate::pdu::{CommonHeader, Fragment, Outcome, PduType, Response, response_flags};
use crate::transport::{KeptMemory, RemoteMemory};
use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use zerocopy::IntoBytes;

/// A [`Peer`] over a [`Line`] with a provider of its own.
#[derive(Debug)]
pub struct LinePeer<P: Provider, C> {
    line: Line<P>,
    hub: Hub<P>,
    clock: C,
    out: VecDeque<Vec<u8>>,
    bytes: Vec<u8>,
    received: Vec<Vec<u8>>,
    /// By the command that it is lent for.
    lent: BTreeMap<u16, Lent>,
}

impl<P: Provider, C: FnMut() -> u64> LinePeer<P, C> {
    /// Over a line of `hub`, whose other lines nobody uses; `clock` tells the time.
    pub fn new(hub: Hub<P>, line: Line<P>, clock: C) -> Self {
        let (out, bytes, received) = (VecDeque::new(), Vec::new(), Vec::new());
        Self { line, hub, clock, out, bytes, received, lent: BTreeMap::new() }
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
            let pdu = self.bytes.drain(..length).collect();
            let whole = self.with_its_data(pdu);
            self.received.push(whole);
        }
    }

    /// A response as a byte stream would have it, with the data behind it that the server has placed in
    /// memory which was lent for its command. Memory that is shared is looked at by who shares it.
    fn with_its_data(&mut self, pdu: Vec<u8>) -> Vec<u8> {
        if pdu.first() != Some(&(PduType::Response as u8)) {
            return pdu;
        }
        let head = &pdu[..size_of::<Response>()];
        let outcome = Response::parse(head).expect("the server sends responses");
        let Some(lent) = self.lent.remove(&outcome.cid) else { return pdu };
        let flags = outcome.flags & !response_flags::PLACED;
        let whole = if flags == outcome.flags {
            pdu
        } else {
            let mut data = vec![0; outcome.data_length as usize];
            self.line.get(lent, 0, &mut data);
            [Response::new(&Outcome { flags, ..outcome }).as_bytes(), &data].concat()
        };
        self.line.take_back(lent);
        whole
    }

    fn lend_for(&mut self, cid: u16, bytes: usize) -> Lent {
        let lent = self.line.lend(bytes).expect("memory to register");
        self.lent.insert(cid, lent);
        lent
    }
}

fn remote(lent: Lent) -> KeptMemory {
    KeptMemory::of(RemoteMemory::new(&[fragment(lent)]))
}

fn fragment(lent: Lent) -> Fragment {
    Fragment::new(lent.address, lent.key, lent.bytes)
}

fn lent(memory: Fragment) -> Lent {
    Lent { address: memory.address.get(), key: memory.key.get(), bytes: memory.length.get() }
}

impl<P: Provider, C: FnMut() -> u64> Peer for LinePeer<P, C> {
    const IS_PASSIVE: bool = true;

    fn send(&mut self, pdu: &[u8]) {
        self.out.push_back(pdu.to_vec());
    }

    fn lend(&mut self, cid: u16, memory: Vec<u8>) -> KeptMemory {
        let lent = self.lend_for(cid, memory.len());
        self.line.put(lent, 0, &memory);
        remote(lent)
    }

    fn expect(&mut self, cid: u16, length: usize) -> KeptMemory {
        remote(self.lend_for(cid, length))
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

impl<P: Provider, C: FnMut() -> u64> MemoryPeer for LinePeer<P, C> {
    fn share(&mut self, bytes: &[u8]) -> Fragment {
        let memory = fragment(self.line.lend(bytes.len()).expect("memory to register"));
        self.fill(memory, bytes);
        memory
    }

    fn fill(&mut self, memory: Fragment, bytes: &[u8]) {
        self.line.put(lent(memory), 0, bytes);
    }

    fn look(&mut self, memory: Fragment) -> Vec<u8> {
        let mut found = vec![0; memory.length.get() as usize];
        self.line.get(lent(memory), 0, &mut found);
        found
    }

    fn elsewhere(&mut self, length: u32) -> Vec<Fragment> {
        let here = self.share(&vec![0; length as usize]);
        let (address, key) = (here.address.get(), here.key.get());
        let far = [address - 1, address + (1 << 26), u64::MAX - u64::from(length), u64::MAX];
        let far = far.into_iter().map(|address| Fragment::new(address, key, length));
        far.chain([Fragment::new(address, key ^ 0xffff, length)]).collect()
    }
}
