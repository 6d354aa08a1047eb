//! A client over any byte stream.

use super::{MemoryPeer, Peer};
use crate::client::{Lent, Stream};
use crate::pdu::{CommonHeader, Data, Fragment, PduType, Ping, ReadyToTransfer};
use crate::transport::{KeptMemory, RemoteMemory};
use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use zerocopy::IntoBytes;

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

    fn lend(&mut self, cid: u16, memory: Vec<u8>) -> KeptMemory {
        let length = memory.len() as u32;
        self.lent.insert(cid, memory);
        KeptMemory::of(RemoteMemory::none(length))
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
    fn share(&mut self, bytes: &[u8]) -> Fragment {
        let memory = self.stream.memory().expect("a stream whose peer lends memory");
        let lent = memory.lend(bytes.len()).expect("an area with room");
        memory.put(lent, 0, bytes);
        Fragment::new(lent.address, lent.key, lent.bytes)
    }

    fn fill(&mut self, memory: Fragment, bytes: &[u8]) {
        let (address, key, length) = (memory.address.get(), memory.key.get(), memory.length.get());
        let memory = self.stream.memory().expect("a stream whose peer lends memory");
        memory.put(Lent { address, key, bytes: length }, 0, bytes);
    }

    fn look(&mut self, memory: Fragment) -> Vec<u8> {
        let (address, key, bytes) = (memory.address.get(), memory.key.get(), memory.length.get());
        let mut found = vec![0; bytes as usize];
        let memory = self.stream.memory().expect("a stream whose peer lends memory");
        memory.get(Lent { address, key, bytes }, 0, &mut found);
        found
    }

    fn elsewhere(&mut self, length: u32) -> Vec<Fragment> {
        let here = self.share(&vec![0; length as usize]);
        let far = [1 << 40, u64::MAX, u64::MAX - u64::from(length), i64::MAX as u64];
        let key = here.key.get();
        let far = far.into_iter().map(|address| Fragment::new(address, key, length));
        far.chain([Fragment::new(here.address.get(), key + 1, length)]).collect()
    }
}
