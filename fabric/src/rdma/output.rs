//! What waits to leave on one connection: PDUs, and the bulk data that goes before them.
//!
//! An item is posted as a whole: the WRITEs of a response and then the PDU itself. A push with more
//! pieces than fit into half of the send queue becomes several items, of which the last one has the
//! PDU. PDUs are copied; bulk data is not.

use super::chain::Chain;
use super::provider::{Limits, Room};
use crate::transport::{Payload, RemoteMemory};
use std::collections::VecDeque;

/// Bytes of PDUs without bulk data that a peer may let wait.
const WAITING_BYTES_MAX: usize = 512 << 10;
/// Bytes of copied data beyond which nothing is copied before some of it has left: room for four of
/// the longest values. A client that names memory for its answers, as it should, never gets there.
const COPIED_BYTES_MAX: usize = 16 << 20;

#[derive(Clone, Copy, Debug)]
struct Item {
    /// Bytes of the message, if this item has one.
    message: Option<usize>,
    /// It is a part of copied data.
    copied: bool,
    works: usize,
    pieces: usize,
    remote: RemoteMemory,
}

#[derive(Debug)]
pub(super) struct Output<B> {
    items: VecDeque<Item>,
    /// The messages of all items; those before `taken` have left.
    bytes: Vec<u8>,
    taken: usize,
    /// Of those that wait: bytes of copied data.
    copied: usize,
    payloads: VecDeque<Payload<B>>,
    group: Vec<usize>,
    /// Bytes of data that were ever copied.
    bytes_copied: u64,
}

impl<B> Output<B> {
    pub(super) fn new() -> Self {
        Self {
            items: VecDeque::new(),
            bytes: Vec::new(),
            taken: 0,
            copied: 0,
            payloads: VecDeque::new(),
            group: Vec::new(),
            bytes_copied: 0,
        }
    }

    /// Bytes of data that were copied since this was last asked.
    pub(super) fn take_copied(&mut self) -> u64 {
        std::mem::take(&mut self.bytes_copied)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Queues a PDU, in messages of at most `message_bytes`; `false` if the peer lets too many wait.
    pub(super) fn push_pdu(&mut self, pdu: &[u8], message_bytes: usize) -> bool {
        if self.bytes.len() - self.taken - self.copied + pdu.len() > WAITING_BYTES_MAX {
            return false;
        }
        self.bytes.extend_from_slice(pdu);
        self.put_messages(pdu.len(), false, message_bytes);
        true
    }

    /// Queues data that the peer has no memory for, behind its PDU in messages of at most
    /// `message_bytes`; `false` if the peer lets too much wait.
    pub(super) fn push_copied(
        &mut self,
        pdu: &[u8],
        payloads: &mut dyn Iterator<Item = Payload<B>>,
        message_bytes: usize,
    ) -> bool
    where
        B: AsRef<[u8]>,
    {
        if self.copied > COPIED_BYTES_MAX {
            return false;
        }
        let before = self.bytes.len();
        self.bytes.extend_from_slice(pdu);
        payloads.for_each(|part| self.bytes.extend_from_slice(&part.buffer.as_ref()[part.range]));
        let length = self.bytes.len() - before;
        self.bytes_copied += (length - pdu.len()) as u64;
        self.copied += length;
        self.put_messages(length, true, message_bytes);
        true
    }

    /// The last `length` bytes leave in messages of at most `message_bytes`.
    fn put_messages(&mut self, length: usize, copied: bool, message_bytes: usize) {
        let lengths = (0..length).step_by(message_bytes).map(|at| message_bytes.min(length - at));
        self.items.extend(lengths.map(|message| Item {
            message: Some(message),
            copied,
            works: 1,
            pieces: 0,
            remote: RemoteMemory::default(),
        }));
    }

    /// Queues data for the peer's memory, and the PDU that says so.
    pub(super) fn push_written(
        &mut self,
        pdu: &[u8],
        mut remote: RemoteMemory,
        payloads: impl Iterator<Item = Payload<B>>,
        limits: &Limits,
    ) {
        self.group.clear();
        let mut works = 0;
        for payload in payloads.filter(|payload| !payload.range.is_empty()) {
            self.group.push(payload.range.len());
            let with = Chain::<B>::works_to_write(self.group.iter().copied(), limits);
            if (with > limits.works / 2 || self.group.len() > limits.buffers / 2) && works > 0 {
                let pieces = self.group.len() - 1;
                let bytes: usize = self.group.drain(..pieces).sum();
                self.put(None, works, pieces, remote);
                remote.address = remote.address.wrapping_add(bytes as u64);
                works = Chain::<B>::works_to_write(self.group.iter().copied(), limits);
            } else {
                works = with;
            }
            self.payloads.push_back(payload);
        }
        self.put(Some(pdu), works, self.group.len(), remote);
    }

    fn put(&mut self, message: Option<&[u8]>, works: usize, pieces: usize, remote: RemoteMemory) {
        if let Some(message) = message {
            self.bytes.extend_from_slice(message);
        }
        let (message, works) = (message.map(<[u8]>::len), works + usize::from(message.is_some()));
        self.items.push_back(Item { message, copied: false, works, pieces, remote });
    }

    /// Moves the next item into `chain`, if there is room for it and (should it need one) a credit;
    /// `credit` gives the number beside its message.
    pub(super) fn pop(
        &mut self,
        chain: &mut Chain<B>,
        room: &mut Room,
        limits: &Limits,
        credit: impl FnOnce() -> Option<u32>,
    ) -> bool {
        let Some(Item { message, copied, works, pieces, remote }) = self.items.front().copied()
        else {
            return false;
        };
        let bytes = message.unwrap_or(0);
        if room.works < works || room.buffers < pieces || room.bytes < bytes {
            return false;
        }
        let number = if message.is_some() { credit() } else { Some(0) };
        let Some(number) = number else { return false };
        self.items.pop_front();
        chain.write(remote, self.payloads.drain(..pieces), limits);
        if copied {
            self.copied -= bytes;
        }
        if message.is_some() {
            chain.send(&self.bytes[self.taken..self.taken + bytes], number);
            self.taken += bytes;
        }
        room.works -= works;
        room.buffers -= pieces;
        room.bytes -= bytes;
        self.compact();
        true
    }

    fn compact(&mut self) {
        if self.taken == self.bytes.len() {
            self.bytes.clear();
            self.taken = 0;
        } else if self.taken > WAITING_BYTES_MAX {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
    }

    /// Drops everything that has not been posted.
    pub(super) fn clear(&mut self) {
        self.items.clear();
        self.payloads.clear();
        self.bytes.clear();
        (self.taken, self.copied) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { works: 64, buffers: 64, pieces: 4, message_bytes: 1 << 20, send_bytes: 1 << 20 };

    fn copied(output: &mut Output<Vec<u8>>, length: usize) -> bool {
        let payload = Payload { buffer: vec![7; length], range: 0..length };
        output.push_copied(&[1; 32], &mut std::iter::once(payload), 8192)
    }

    #[test]
    fn who_reads_nothing_is_told_apart_from_who_waits_for_a_long_answer() {
        let mut output = Output::new();
        assert!(copied(&mut output, 4 << 20));
        assert!(output.push_pdu(&[2; 32], 8192), "a long answer before it is not its fault");
        assert!((0..20).any(|_| !copied(&mut output, 4 << 20)), "copies have a bound");
        assert!((0..20_000).any(|_| !output.push_pdu(&[2; 32], 8192)), "and so have PDUs");
        output.clear();
        assert!(output.is_empty() && copied(&mut output, 4 << 20));
    }

    #[test]
    fn what_was_copied_leaves_in_order_and_makes_room() {
        let mut output = Output::new();
        let (mut chain, mut sent) = (Chain::<Vec<u8>>::default(), 0);
        for _ in 0..10 {
            assert!(copied(&mut output, 4 << 20), "all before it has left");
            let mut room = Room { works: 10_000, buffers: 10, bytes: 8 << 20 };
            while output.pop(&mut chain, &mut room, &LIMITS, || Some(0)) {}
            sent += 32 + (4 << 20);
            assert_eq!(chain.bytes().len(), sent);
        }
        assert_eq!((output.copied, output.is_empty()), (0, true));
    }
}
