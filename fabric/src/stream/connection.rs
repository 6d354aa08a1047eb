//! One connection: its stream, what arrives, what leaves, and how it ends.
//!
//! It ends in one of two ways. Abruptly: the stream is dropped. In order: what is queued leaves,
//! this side says that nothing more will come, and the peer's remaining bytes are read and thrown
//! away until it has ended its side too, so that the last PDU is not lost to a reset.

use super::input::{IMPOSSIBLE, Input, Pull, Received};
use super::queue::{SendQueue, Sent};
use super::{ByteStream, PeerMemory};
use crate::crc32c::Digest;
use crate::pdu::{Outcome, Response, response_flags};
use crate::transport::{CloseReason, ConnId, Payload, Payloads, RemoteMemory, Sink, Walk};
use crate::{Buffer, Status};
use std::io::{self, ErrorKind};
use zerocopy::IntoBytes;

/// Where a command's data should be is not the peer's memory.
const ELSEWHERE: &str = "memory that the peer does not lend";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// Nothing is taken any more; what is queued still leaves.
    Finishing,
    /// Everything has left; waiting for the peer to end its side.
    Finished,
}

#[derive(Debug)]
pub(super) struct Connection<S, B> {
    pub(super) id: ConnId,
    stream: S,
    input: Input<B>,
    output: SendQueue<B>,
    phase: Phase,
    /// Found while writing: to be reported by the next `receive`.
    broken: Option<CloseReason>,
    /// `closed` has been said already.
    pub(super) reported: bool,
    /// The stream has ended or is broken as far as the system says; read until that shows.
    pub(super) hangup: bool,
    pub(super) writable: bool,
    /// It is in the transport's list of connections to receive from, or to send on.
    pub(super) in_ready: bool,
    pub(super) in_dirty: bool,
    /// When bytes last left, or began to wait.
    pub(super) progress_us: u64,
    /// Bytes in the peer's memory of which it has not been told.
    pub(super) placed_bytes: usize,
}

impl<S: ByteStream, B: Buffer> Connection<S, B> {
    pub(super) fn new(id: ConnId, stream: S, now_us: u64) -> Self {
        Self {
            id,
            stream,
            input: Input::new(),
            output: SendQueue::new(),
            phase: Phase::Open,
            broken: None,
            reported: false,
            hangup: false,
            writable: true,
            in_ready: false,
            in_dirty: false,
            progress_us: now_us,
            placed_bytes: 0,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open && self.broken.is_none()
    }

    /// It waits for the peer: to read what is queued, or to end its side.
    pub(super) fn is_waiting(&self) -> bool {
        !self.output.is_empty() || self.phase != Phase::Open
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.output.is_empty()
    }

    pub(super) fn output(&mut self) -> &mut SendQueue<B> {
        &mut self.output
    }

    /// Nothing but an abrupt end is possible any more; the next `receive` says so.
    pub(super) fn break_off(&mut self, reason: CloseReason) {
        self.output.clear();
        self.broken.get_or_insert(reason);
    }

    /// Its end was reported: what is left is to tell the peer, in order.
    pub(super) fn mend(&mut self) {
        self.broken = None;
    }

    /// Ends it in order.
    pub(super) fn finish(&mut self, now_us: u64) {
        if self.phase == Phase::Open {
            self.phase = Phase::Finishing;
            self.progress_us = now_us;
        }
    }

    /// Queues a response and its data: in the peer's memory if the command names some that holds it,
    /// else behind the response. What is put into memory is checked on its way, so that the peer need not look at it:
    /// it is answered with [`Status::Corrupt`] if it is not what `outcome` says.
    pub(super) fn push(
        &mut self,
        outcome: &Outcome,
        remote: RemoteMemory<'_>,
        payloads: Payloads<'_, B>,
    ) -> Result<(), &'static str> {
        if remote.is_named()
            && let Some(memory) = self.stream.memory()
            && outcome.fits(remote.length())
        {
            let mut walk = remote.walk();
            self.placed_bytes += outcome.data_length as usize;
            // Of a batch, it is the client who checks each item.
            let mut sum = (outcome.flags & response_flags::ITEMS == 0).then(Digest::new);
            let mut all_put = Some(());
            payloads.for_each(|Payload { buffer, range }| {
                let bytes = &buffer.as_ref()[range];
                all_put = all_put.and_then(|()| put(memory, &mut walk, bytes, sum.as_mut()));
            });
            all_put.ok_or(ELSEWHERE)?;
            if sum.is_some_and(|sum| sum.finalize() != outcome.data_crc) {
                log::error!("{} bytes have changed in memory: not sent", outcome.data_length);
                let corrupt = Outcome::bare(outcome.cid, Status::Corrupt, outcome.credit_limit);
                return self.output.push_small(Response::new(&corrupt).as_bytes());
            }
            return self.output.push_small(Response::placed(outcome).as_bytes());
        }
        let queued = self.output.push_small(Response::new(outcome).as_bytes());
        payloads.for_each(|payload| self.output.push_payload(payload));
        queued
    }

    /// Copies `remote` out of the peer's memory. `None`: it lies in none.
    pub(super) fn fetch(
        &mut self,
        remote: RemoteMemory<'_>,
        into: &mut [u8],
    ) -> Option<Result<(), &'static str>> {
        let memory = self.stream.memory().filter(|_| remote.is_named())?;
        Some(get(memory, &mut remote.walk(), into).ok_or(ELSEWHERE))
    }

    /// Bytes of payloads that were copied out of the receive buffer since this was last asked.
    pub(super) fn take_copied(&mut self) -> u64 {
        self.input.take_copied()
    }

    pub(super) fn expect(&mut self, pull: Pull<B>) {
        self.input.expect(pull);
    }

    pub(super) fn give_up(&mut self) -> Option<Pull<B>> {
        self.input.give_up()
    }

    /// Receives until the stream is empty or `budget_bytes` are used up.
    pub(super) fn receive(
        &mut self,
        sink: &mut dyn Sink<B>,
        short_blocks: bool,
        budget_bytes: usize,
    ) -> Received {
        let mut total = 0;
        loop {
            match self.receive_once(sink, short_blocks) {
                Received::More(bytes) if total + bytes < budget_bytes => total += bytes,
                received => return received,
            }
        }
    }

    fn receive_once(&mut self, sink: &mut dyn Sink<B>, short_blocks: bool) -> Received {
        if let Some(reason) = self.broken {
            return Received::Closed(reason);
        }
        let received = if self.phase == Phase::Open {
            self.input.receive(self.id, &mut self.stream, sink, short_blocks)
        } else {
            self.input.discard(&mut self.stream)
        };
        match received {
            // The end of a stream may have come with the last bytes, and is said only once.
            Received::Empty if self.hangup && short_blocks => Received::More(0),
            received => received,
        }
    }

    /// Sends what the stream takes. Returns `true` if it would take more at once.
    pub(super) fn send(&mut self, now_us: u64, short_blocks: bool) -> bool {
        self.placed_bytes = 0;
        match self.output.write_to(&mut self.stream, short_blocks) {
            Ok((sent, bytes)) => {
                if bytes > 0 {
                    self.progress_us = now_us;
                }
                self.writable = sent != Sent::Blocked;
                if sent == Sent::All && self.phase == Phase::Finishing {
                    self.end_stream(now_us);
                }
                sent == Sent::Some
            }
            Err(error) => {
                self.break_off(why(&error));
                false
            }
        }
    }

    fn end_stream(&mut self, now_us: u64) {
        self.phase = Phase::Finished;
        self.progress_us = now_us;
        if self.stream.finish().is_err() {
            self.break_off(CloseReason::Lost);
        }
    }

    /// Why it ended, as far as this side can say: whoever asked for the end has caused it.
    pub(super) fn reason(&self, found: CloseReason) -> CloseReason {
        if self.phase == Phase::Open { found } else { CloseReason::Local }
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }
}

/// Copies into memory, as far as `walk` is long; `sum` takes it in. `None`: a piece of it is not the peer's.
fn put(
    memory: &dyn PeerMemory,
    walk: &mut Walk<'_>,
    mut from: &[u8],
    mut sum: Option<&mut Digest>,
) -> Option<()> {
    while !from.is_empty() {
        let piece = walk.step(from.len()).filter(|piece| piece.key.get() == memory.key())?;
        let (bytes, rest) = from.split_at(piece.length.get() as usize);
        memory.put(piece.address.get(), bytes, sum.as_deref_mut())?;
        from = rest;
    }
    Some(())
}

/// Copies out of memory. `None`: a piece of it is not the peer's.
fn get(memory: &dyn PeerMemory, walk: &mut Walk<'_>, mut into: &mut [u8]) -> Option<()> {
    while !into.is_empty() {
        let piece = walk.step(into.len()).filter(|piece| piece.key.get() == memory.key())?;
        let (bytes, rest) = into.split_at_mut(piece.length.get() as usize);
        memory.get(piece.address.get(), bytes)?;
        into = rest;
    }
    Some(())
}

/// What an error of the stream says about its peer.
fn why(error: &io::Error) -> CloseReason {
    match error.kind() {
        ErrorKind::InvalidData => CloseReason::Protocol(IMPOSSIBLE),
        _ => CloseReason::Lost,
    }
}
