//! What waits to leave on one connection: PDUs, and the bulk data that goes before them.
//!
//! An item is posted as a whole: the WRITEs of a response and then the PDU itself. A push with more
//! work than half of the send queue has room for becomes several items, of which the last one has the
//! PDU: no item has to wait until READs leave it more than that half. PDUs are copied; bulk data is not.

use super::chain::Chain;
use super::provider::{Limits, Room};
use super::run::Run;
use super::splitter::Splitter;
use crate::pdu::{FRAGMENTS_MAX, Fragment, Response};
use crate::transport::{Payload, Payloads, RemoteMemory, Walk};
use std::collections::VecDeque;

/// Bytes of PDUs without bulk data that a peer may let wait.
const WAITING_BYTES_MAX: usize = 512 << 10;
/// Bytes of copied data beyond which nothing is copied before some of it has left: room for four of
/// the longest values. A client that names memory for its answers, as it should, never gets there.
const COPIED_BYTES_MAX: usize = 16 << 20;

/// What is posted as a whole.
#[derive(Debug)]
enum Item<B> {
    One(One<B>),
    Many(Many),
}

/// The usual push: one payload to one place of the peer's memory, in one work request, and its response.
#[derive(Debug)]
struct One<B> {
    payload: Payload<B>,
    place: Fragment,
    pdu: [u8; PDU_BYTES],
}

/// Bytes of a response.
const PDU_BYTES: usize = size_of::<Response>();

/// Anything else; its parts are those of all items, in order.
#[derive(Clone, Copy, Debug)]
struct Many {
    /// Bytes of the message, if this item has one.
    message: Option<usize>,
    /// It is a part of copied data.
    copied: bool,
    works: usize,
    payloads: usize,
    /// Fragments of the peer's memory.
    places: usize,
}

#[derive(Debug)]
pub(super) struct Output<B> {
    items: VecDeque<Item<B>>,
    /// The messages of all items of many parts.
    bytes: Run<u8>,
    /// The peer's memory of all those: as long as the payloads.
    places: Run<Fragment>,
    /// Of those that wait: bytes of copied data.
    copied: usize,
    payloads: VecDeque<Payload<B>>,
    /// Bytes of data that were ever copied.
    bytes_copied: u64,
}

impl<B> Output<B> {
    pub(super) fn new() -> Self {
        Self {
            items: VecDeque::new(),
            bytes: Run::new(WAITING_BYTES_MAX),
            places: Run::new(16 * FRAGMENTS_MAX),
            copied: 0,
            payloads: VecDeque::new(),
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
        if self.bytes.len() - self.copied + pdu.len() > WAITING_BYTES_MAX {
            return false;
        }
        self.bytes.all.extend_from_slice(pdu);
        self.put_messages(pdu.len(), false, message_bytes);
        true
    }

    /// Queues data that the peer has no memory for, behind its PDU in messages of at most
    /// `message_bytes`; `false` if the peer lets too much wait.
    pub(super) fn push_copied(
        &mut self,
        pdu: &[u8],
        payloads: Payloads<'_, B>,
        message_bytes: usize,
    ) -> bool
    where
        B: AsRef<[u8]>,
    {
        if self.copied > COPIED_BYTES_MAX {
            return false;
        }
        let before = self.bytes.len();
        self.bytes.all.extend_from_slice(pdu);
        payloads
            .for_each(|part| self.bytes.all.extend_from_slice(&part.buffer.as_ref()[part.range]));
        let length = self.bytes.len() - before;
        self.bytes_copied += (length - pdu.len()) as u64;
        self.copied += length;
        self.put_messages(length, true, message_bytes);
        true
    }

    /// The last `length` bytes leave in messages of at most `message_bytes`.
    fn put_messages(&mut self, length: usize, copied: bool, message_bytes: usize) {
        let lengths = (0..length).step_by(message_bytes).map(|at| message_bytes.min(length - at));
        let item = |message| Many { message, copied, works: 1, payloads: 0, places: 0 };
        self.items.extend(lengths.map(|message| Item::Many(item(Some(message)))));
    }

    /// Queues data for the peer's memory, and the PDU that says so.
    #[inline]
    pub(super) fn push_written(
        &mut self,
        pdu: &[u8],
        remote: RemoteMemory<'_>,
        payloads: Payloads<'_, B>,
        limits: &Limits,
    ) {
        match payloads {
            Payloads::One(one) => {
                let length = one.as_ref().map_or(0, |payload| payload.range.len());
                if let (Some(place), Ok(pdu)) = (one_place(remote, length, limits), pdu.try_into())
                    && let Some(payload) = one.take()
                {
                    self.items.push_back(Item::One(One { payload, place, pdu }));
                } else {
                    self.push_many(pdu, remote, one.take().into_iter(), limits);
                }
            }
            Payloads::Many(payloads) => self.push_many(pdu, remote, payloads, limits),
        }
    }

    fn push_many(
        &mut self,
        pdu: &[u8],
        remote: RemoteMemory<'_>,
        payloads: impl Iterator<Item = Payload<B>>,
        limits: &Limits,
    ) {
        let mut group = Group::default();
        let (mut splitter, mut walk) = (Splitter::new(remote, limits), remote.walk());
        for payload in payloads.filter(|payload| !payload.range.is_empty()) {
            let length = payload.range.len();
            let before = (group.works > 0).then_some(splitter);
            let works = splitter.pass(length);
            // The last one of a push has its PDU, too.
            let crowded = group.works + works + 1 > limits.works / 2
                || group.payloads + 1 > limits.buffers / 2;
            match before {
                Some(before) if crowded => {
                    self.put(None, std::mem::take(&mut group), &mut walk);
                    splitter = before;
                    splitter.begin();
                    group.works = splitter.pass(length);
                }
                _ => group.works += works,
            }
            group.payloads += 1;
            group.bytes += length;
            self.payloads.push_back(payload);
        }
        self.put(Some(pdu), group, &mut walk);
    }

    /// Queues one item: the next bytes of `walk`, as many as `group` has, and perhaps a message.
    fn put(&mut self, message: Option<&[u8]>, group: Group, walk: &mut Walk<'_>) {
        let Group { mut works, payloads, bytes } = group;
        if let Some(message) = message {
            self.bytes.all.extend_from_slice(message);
            works += 1;
        }
        let (before, mut rest) = (self.places.all.len(), bytes);
        while rest > 0 {
            let place = walk.step(rest).expect("memory that holds the data");
            rest -= place.length.get() as usize;
            self.places.all.push(place);
        }
        let (message, places) = (message.map(<[u8]>::len), self.places.all.len() - before);
        self.items.push_back(Item::Many(Many { message, copied: false, works, payloads, places }));
    }

    /// Moves the next item into `chain`, if there is room for it and (should it need one) a credit;
    /// `credit` gives the number beside its message.
    #[inline]
    pub(super) fn pop(
        &mut self,
        chain: &mut Chain<B>,
        room: &mut Room,
        limits: &Limits,
        credit: impl FnOnce() -> Option<u32>,
    ) -> bool {
        match self.items.front() {
            None => false,
            Some(Item::One(_)) => self.pop_one(chain, room, credit),
            Some(Item::Many(many)) => self.pop_many(*many, chain, room, limits, credit),
        }
    }

    #[inline]
    fn pop_one(
        &mut self,
        chain: &mut Chain<B>,
        room: &mut Room,
        credit: impl FnOnce() -> Option<u32>,
    ) -> bool {
        if room.works < 2 || room.buffers < 1 || room.bytes < PDU_BYTES {
            return false;
        }
        let Some(number) = credit() else { return false };
        let Some(Item::One(One { payload, place, pdu })) = self.items.pop_front() else {
            return false;
        };
        chain.write_one(&place, payload);
        chain.send(&pdu, number);
        room.works -= 2;
        room.buffers -= 1;
        room.bytes -= PDU_BYTES;
        true
    }

    fn pop_many(
        &mut self,
        many: Many,
        chain: &mut Chain<B>,
        room: &mut Room,
        limits: &Limits,
        credit: impl FnOnce() -> Option<u32>,
    ) -> bool {
        let Many { message, copied, works, payloads, places } = many;
        let bytes = message.unwrap_or(0);
        if room.works < works || room.buffers < payloads || room.bytes < bytes {
            return false;
        }
        let number = if message.is_some() { credit() } else { Some(0) };
        let Some(number) = number else { return false };
        self.items.pop_front();
        let remote = RemoteMemory::new(self.places.take(places));
        let next = std::iter::from_fn(|| self.payloads.pop_front());
        chain.write(remote, next.take(payloads), limits);
        if copied {
            self.copied -= bytes;
        }
        if message.is_some() {
            chain.send(self.bytes.take(bytes), number);
        }
        room.works -= works;
        room.buffers -= payloads;
        room.bytes -= bytes;
        self.bytes.compact();
        self.places.compact();
        true
    }

    /// Drops everything that has not been posted.
    pub(super) fn clear(&mut self) {
        self.items.clear();
        self.payloads.clear();
        self.bytes.clear();
        self.places.clear();
        self.copied = 0;
    }
}

/// The place of the first `length` bytes of `remote`, if one work request writes them there.
fn one_place(remote: RemoteMemory<'_>, length: usize, limits: &Limits) -> Option<Fragment> {
    let Fragment { address, key, length: room } = remote.fragments().first()?;
    let fits = (1..=room.get() as usize).contains(&length) && length <= limits.message_bytes;
    fits.then(|| Fragment::new(address.get(), key.get(), length as u32))
}

/// What one item will have.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    works: usize,
    payloads: usize,
    bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdma::{Piece, Work};

    const LIMITS: Limits =
        Limits { works: 64, buffers: 64, pieces: 4, message_bytes: 1 << 20, send_bytes: 1 << 20 };

    fn copied(output: &mut Output<Vec<u8>>, length: usize) -> bool {
        let payload = Payload { buffer: vec![7; length], range: 0..length };
        output.push_copied(&[1; 32], Payloads::One(&mut Some(payload)), 8192)
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

    /// Whatever the shapes: items are no larger than half of a send queue, what they say of themselves is what
    /// they take, and all of them together write every byte to its place.
    #[test]
    fn a_push_of_any_shape_leaves_in_items_that_fit() {
        for seed in 0..500 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let limits = Limits { works: 100, buffers: 40, pieces: 3, ..LIMITS };
            let (mut output, mut data) = (Output::new(), Vec::new());
            let payloads: Vec<_> = (0..rng.usize(1..80))
                .map(|_| {
                    let buffer: Vec<u8> = (0..rng.usize(0..500)).map(|_| rng.u8(..)).collect();
                    data.extend_from_slice(&buffer);
                    Payload { range: 0..buffer.len(), buffer }
                })
                .collect();
            let mut fragments = Vec::new();
            let (mut at, mut rest) = (0, data.len());
            for left in (1..=40).rev() {
                let count = if left == 1 { rest } else { rng.usize(0..=rest.min(1500)) };
                fragments.push(Fragment::new(at, 7, count as u32));
                at += count as u64 + rng.u64(0..2);
                rest -= count;
            }
            output.push_written(
                &[9; 32],
                RemoteMemory::new(&fragments),
                Payloads::Many(&mut payloads.into_iter()),
                &limits,
            );
            let (mut memory, mut items) = (vec![0; at as usize], 0);
            while !output.is_empty() {
                let mut chain = Chain::<Vec<u8>>::default();
                let mut room = Room { works: 50, buffers: 20, bytes: 32 };
                assert!(output.pop(&mut chain, &mut room, &limits, || Some(0)), "seed {seed}");
                assert_eq!(chain.steps().len(), 50 - room.works, "seed {seed}");
                assert_eq!(chain.buffer_count(), 20 - room.buffers, "seed {seed}");
                write(&mut chain, &mut memory);
                items += 1;
            }
            let places = fragments.iter().flat_map(|one| {
                let start = one.address.get() as usize;
                start..start + one.length.get() as usize
            });
            assert!(places.map(|at| memory[at]).eq(data), "seed {seed}: {items} items");
        }
    }

    fn write(chain: &mut Chain<Vec<u8>>, memory: &mut [u8]) {
        let (steps, pieces) = (chain.steps().to_vec(), chain.pieces().to_vec());
        let buffers: Vec<_> = chain.take_buffers().collect();
        for step in steps {
            let Work::Write { pieces: range, address, .. } = step.work else { continue };
            let mut at = address as usize;
            for Piece { buffer, range } in &pieces[range] {
                memory[at..at + range.len()].copy_from_slice(&buffers[*buffer][range.clone()]);
                at += range.len();
            }
        }
    }
}
