//! One connection's state machine: handshake, credits, commands in flight, keep-alive, GOAWAY.
//!
//! ```text
//! Closed ──open──▶ Hello ──HELLO_ACK──▶ Auth ──AUTH_ACK──▶ Ready ──GOAWAY──▶ Draining
//!    ▲                │                    │                  │                  │ last answer
//!    └────────────────┴────────────────────┴──────────────────┴──────────────────┘ any error
//! ```
//!
//! Guarantees: never more commands in flight than the server's credit limit; a command identifier
//! is used again only after its answer; every R2T is answered, also for a command that was given up,
//! since the server holds memory for it; an answer with more data than was asked for, or for nothing
//! that is in flight, ends the connection before anything is allocated for it.

use super::error::LinkError;
use super::operation::{Buffers, OpId, Operation, Operations, State as OpState};
use super::receive::{Incoming, Receiver};
use super::send::SendQueue;
use super::stream::{Lent, Memory, Stream};
use crate::Status;
use crate::pdu::{
    Auth, CAPSULE_BYTES_MIN, Cancel, Command, CommonHeader, Data, DecodeError, GoAway,
    GoAwayReason, Hello, ItemResult, Offer, Outcome, PduType, Ping, QUEUE_DEPTH_MAX,
    ReadyToTransfer, Response, VERSION, Welcome, crc32c, response_flags,
};
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use std::io::{self, Write};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

/// Bytes of a response's fixed part.
const RESPONSE_BYTES: usize = size_of::<Response>();
/// How much is copied out of lent memory before its checksum is computed: it is in the cache then, and
/// what comes next is on its way there meanwhile.
const COPY_BYTES: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Hello,
    Auth,
    Ready,
    Draining,
}

/// What one link is made with.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub offer: Offer,
    pub handshake_us: u64,
    pub receive_buffer_bytes: usize,
}

/// The answer to one command.
#[derive(Debug)]
pub(super) struct Answer {
    pub op: OpId,
    pub status: Status,
    pub result: u64,
    /// The data begins with item results, whose own checksum has not been compared yet.
    pub has_items: bool,
    pub data_crc: u32,
    pub data: Vec<u8>,
}

/// What a link needs from its surroundings while it reads and writes.
pub(super) struct Context<'a> {
    pub ops: &'a mut Operations,
    pub buffers: &'a mut Buffers,
    pub answers: &'a mut Vec<Answer>,
    pub now_us: u64,
}

#[derive(Debug)]
pub(super) struct Link {
    settings: Settings,
    state: State,
    depth: u16,
    capsule_bytes: usize,
    credit_limit: u16,
    /// Command identifier → the operation in flight under it.
    cids: Vec<Option<OpId>>,
    /// Command identifier → the memory that the server may use until it answers.
    lent: Vec<Option<Lent>>,
    free: Vec<u16>,
    receiver: Receiver,
    sender: SendQueue,
    /// The network took less than there was.
    blocked: bool,
    pong: Option<u64>,
    welcome: Option<Box<Welcome>>,
    /// The values of a batch, put together to travel in a capsule.
    gathered: Vec<u8>,
    keep_alive_us: u64,
    opened_us: u64,
    handshake_us: u64,
    received_us: u64,
    sent_us: u64,
    ticked_us: u64,
}

impl Link {
    pub(super) fn new(settings: Settings) -> Self {
        let depth = settings.offer.queue_depth;
        Self {
            state: State::Closed,
            depth,
            capsule_bytes: settings.offer.capsule_bytes as usize,
            credit_limit: 0,
            cids: Vec::with_capacity(depth.into()),
            lent: Vec::with_capacity(depth.into()),
            free: Vec::with_capacity(depth.into()),
            receiver: Receiver::new(settings.receive_buffer_bytes),
            sender: SendQueue::with_capacity(256 << 10),
            blocked: false,
            pong: None,
            welcome: None,
            gathered: Vec::new(),
            keep_alive_us: 0,
            opened_us: 0,
            handshake_us: 0,
            received_us: 0,
            sent_us: 0,
            ticked_us: 0,
            settings,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    pub(super) fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// The handshake is behind it.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, State::Ready | State::Draining)
    }

    /// Bytes wait for the network to take more.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Something waits to be written, blocked or not.
    pub(super) fn has_output(&self) -> bool {
        !self.sender.is_empty() || self.pong.is_some()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.cids.len() - self.free.len()
    }

    pub(super) fn depth(&self) -> usize {
        self.depth.into()
    }

    pub(super) fn can_send(&self) -> bool {
        self.state == State::Ready && self.in_flight() < usize::from(self.credit_limit)
    }

    /// What the server granted, once, after its HELLO_ACK.
    pub(super) fn take_welcome(&mut self) -> Option<Box<Welcome>> {
        self.welcome.take()
    }

    /// A connection has been started: the first bytes on it are a HELLO. It has the time of the settings to
    /// be ready, and at most `longest_us`.
    pub(super) fn open(&mut self, now_us: u64, longest_us: u64) {
        debug_assert!(self.is_closed() && self.cids.is_empty());
        self.state = State::Hello;
        self.opened_us = now_us;
        self.handshake_us = self.settings.handshake_us.min(longest_us);
        self.received_us = now_us;
        self.sent_us = now_us;
        self.ticked_us = now_us;
        self.sender.put(Hello::new(&self.settings.offer).as_bytes());
    }

    /// The connection is gone: passes on what was in flight, and forgets the rest.
    pub(super) fn close(&mut self, buffers: &mut Buffers, mut orphan: impl FnMut(OpId)) {
        self.state = State::Closed;
        self.cids.drain(..).flatten().for_each(&mut orphan);
        self.free.clear();
        // The memory goes with the connection.
        self.lent.clear();
        self.sender.clear();
        self.blocked = false;
        self.pong = None;
        self.welcome = None;
        if let Some(buffer) = self.receiver.clear() {
            buffers.give(buffer);
        }
    }

    /// No new commands here; those in flight may still be answered.
    pub(super) fn drain(&mut self) {
        if self.state == State::Ready {
            self.state = State::Draining;
        }
    }

    /// Queues the command of `id`. The caller has asked [`Link::can_send`].
    pub(super) fn send_command(
        &mut self,
        id: OpId,
        ops: &mut Operations,
        stream: &mut impl Stream,
        now_us: u64,
    ) {
        let Some(cid) = self.free.pop() else { unreachable!("credits are never above the depth") };
        self.cids[usize::from(cid)] = Some(id);
        let op = &mut ops[id];
        op.state = OpState::Sent(cid);
        op.was_sent = true;
        op.transferred = 0;
        let left_us = op.deadline_us.saturating_sub(now_us).clamp(1, u32::MAX.into());
        let mut command = op.command(cid, left_us as u32);
        let in_capsule = op.value_bytes > 0
            && op.capsule_bytes() + op.value_bytes as usize <= self.capsule_bytes;
        if !in_capsule && let Some(memory) = stream.memory() {
            self.lent[usize::from(cid)] = lend(op, &mut command, memory);
        }
        self.encode(op, command, in_capsule);
    }

    fn encode(&mut self, op: &Operation, mut command: Command, in_capsule: bool) {
        let data: &[u8] = match op.values.as_slice() {
            [value] if in_capsule => value,
            values if in_capsule => {
                self.gathered.clear();
                values.iter().for_each(|value| self.gathered.extend_from_slice(value));
                &self.gathered
            }
            _ => &[],
        };
        command.seal(&op.items, &op.keys, data);
        self.sender.put(command.as_bytes());
        self.sender.put(op.items.as_bytes());
        self.sender.put(&op.keys);
        self.sender.put(data);
    }

    /// Gives up a command whose caller has been answered: its identifier stays taken until the
    /// server has answered, too.
    pub(super) fn abandon(&mut self, cid: u16) {
        self.sender.put(Cancel::new(cid).as_bytes());
    }

    /// One write, if there is anything to write. Returns the bytes that left.
    pub(super) fn write<W: Write>(
        &mut self,
        stream: &mut W,
        now_us: u64,
    ) -> Result<usize, LinkError> {
        if !self.blocked
            && let Some(nonce) = self.pong.take()
        {
            self.sender.put(Ping::new(PduType::Pong, nonce).as_bytes());
        }
        if self.sender.is_empty() {
            return Ok(0);
        }
        match self.sender.write(stream) {
            Ok(count) => {
                self.sent_us = now_us;
                self.blocked = false;
                Ok(count)
            }
            Err(error) if is_temporary(&error) => {
                self.blocked = true;
                Ok(0)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// One read, and everything that can be said about what has arrived. Returns the bytes read;
    /// answers that were found before an error are valid.
    pub(super) fn read<S: Stream>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Result<usize, LinkError> {
        let count = match self.receiver.fill(stream) {
            Ok(0) => return Err(LinkError::Closed),
            Ok(count) => count,
            Err(error) if is_temporary(&error) => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        self.received_us = context.now_us;
        self.parse(context, stream)?;
        Ok(count)
    }

    fn parse(
        &mut self,
        context: &mut Context<'_>,
        stream: &mut impl Stream,
    ) -> Result<(), LinkError> {
        if let Some(incoming) = self.receiver.take_complete() {
            let intact = incoming.is_intact();
            self.answer(incoming.outcome, incoming.data, intact, context, stream);
        }
        while !self.receiver.is_waiting_for_data() {
            let bytes = self.receiver.bytes();
            let Some((pdu_type, length)) = CommonHeader::peek(bytes).map_err(protocol)? else {
                return Ok(());
            };
            if pdu_type == PduType::Response {
                if bytes.len() < RESPONSE_BYTES {
                    return Ok(());
                }
                self.response(context, stream)?;
            } else {
                if bytes.len() < length {
                    return Ok(());
                }
                self.control(pdu_type, length, context)?;
                self.receiver.consume(length);
            }
        }
        Ok(())
    }

    /// A response whose fixed part has arrived: its data is copied out if it is there, or expected.
    fn response(
        &mut self,
        context: &mut Context<'_>,
        stream: &mut impl Stream,
    ) -> Result<(), LinkError> {
        let outcome =
            Response::parse(&self.receiver.bytes()[..RESPONSE_BYTES]).map_err(protocol)?;
        let op = self.in_flight_op(outcome.cid)?;
        if outcome.data_length > context.ops[op].answer_bytes_max {
            return Err(LinkError::Protocol("more data than was asked for"));
        }
        self.receiver.consume(RESPONSE_BYTES);
        if outcome.flags & response_flags::PLACED != 0 {
            return self.fetch(outcome, context, stream);
        }
        let length = outcome.data_length as usize;
        match self.receiver.bytes().get(..length) {
            Some(data) => {
                let has_items = outcome.flags & response_flags::ITEMS != 0;
                let intact = has_items || data.is_empty() || crc32c(data) == outcome.data_crc;
                let data = context.buffers.copy(data);
                self.receiver.consume_data(length);
                self.answer(outcome, data, intact, context, stream);
            }
            None => {
                let front = self.receiver.bytes();
                let arrived = front.len();
                let incoming = Incoming::new(outcome, context.buffers.take(length), front);
                self.receiver.consume(arrived);
                self.receiver.expect(incoming);
            }
        }
        Ok(())
    }

    /// A response whose data is in the memory that its command has lent: copies it out, then looks at
    /// it.
    fn fetch(
        &mut self,
        outcome: Outcome,
        context: &mut Context<'_>,
        stream: &mut impl Stream,
    ) -> Result<(), LinkError> {
        let lent = self.lent[usize::from(outcome.cid)];
        let lent = lent.filter(|lent| outcome.data_length <= lent.bytes);
        let (Some(lent), Some(memory)) = (lent, stream.memory()) else {
            return Err(LinkError::Protocol("data in memory that was not lent"));
        };
        self.expect_next(memory);
        let mut data = context.buffers.take(outcome.data_length as usize);
        let has_items = outcome.flags & response_flags::ITEMS != 0;
        let intact = if has_items {
            memory.get(lent, 0, &mut data);
            true
        } else {
            copy_out(memory, lent, &mut data) == outcome.data_crc
        };
        self.answer(outcome, data, intact, context, stream);
        Ok(())
    }

    /// Has the data of the response behind this one on its way, if it has arrived.
    fn expect_next(&self, memory: &dyn Memory) {
        let next = self.receiver.bytes().get(..RESPONSE_BYTES).map(Response::parse);
        let Some(Ok(next)) = next else { return };
        if let Some(Some(lent)) = self.lent.get(usize::from(next.cid)) {
            memory.prefetch(*lent, 0, COPY_BYTES.min(next.data_length.min(lent.bytes) as usize));
        }
    }

    fn in_flight_op(&self, cid: u16) -> Result<OpId, LinkError> {
        let op = self.cids.get(usize::from(cid)).copied().flatten();
        op.ok_or(LinkError::Protocol("an answer to no command"))
    }

    /// A response with all its data: the identifier is free again.
    fn answer(
        &mut self,
        outcome: Outcome,
        data: Vec<u8>,
        intact: bool,
        context: &mut Context<'_>,
        stream: &mut impl Stream,
    ) {
        let Outcome { cid, flags, status, credit_limit, data_length: _, result, data_crc } =
            outcome;
        // A limit of 0 with nothing in flight could never be raised again.
        self.credit_limit = credit_limit.clamp(1, self.depth);
        let Some(op) = self.cids[usize::from(cid)].take() else {
            unreachable!("looked up when its response began")
        };
        self.free.push(cid);
        if let Some(lent) = self.lent[usize::from(cid)].take()
            && let Some(memory) = stream.memory()
        {
            memory.take_back(lent);
        }
        let has_items = flags & response_flags::ITEMS != 0;
        let status = if intact { status } else { Status::DataChecksum };
        context.answers.push(Answer { op, status, result, has_items, data_crc, data });
    }

    fn control(
        &mut self,
        pdu_type: PduType,
        length: usize,
        context: &mut Context<'_>,
    ) -> Result<(), LinkError> {
        let pdu = &self.receiver.bytes()[..length];
        match (pdu_type, self.state) {
            (PduType::HelloAck, State::Hello) => {
                let welcome = Welcome::parse(pdu).map_err(protocol)?;
                self.welcomed(Box::new(welcome))
            }
            (PduType::AuthAck, State::Auth) => {
                Auth::parse(pdu, PduType::AuthAck).map_err(protocol)?;
                self.state = State::Ready;
                Ok(())
            }
            (PduType::ReadyToTransfer, State::Ready | State::Draining) => {
                let transfer = ReadyToTransfer::parse(pdu).map_err(protocol)?;
                let op = &mut context.ops[self.in_flight_op(transfer.cid)?];
                if !op.transfer(transfer) {
                    return Err(LinkError::Protocol("an R2T past the end of the data"));
                }
                self.sender.put(Data::new(transfer).as_bytes());
                op.pieces(transfer).for_each(|piece: Bytes| self.sender.put_shared(piece));
                Ok(())
            }
            (PduType::Ping, State::Ready | State::Draining) => {
                self.pong = Some(Ping::parse(pdu, PduType::Ping).map_err(protocol)?);
                Ok(())
            }
            (PduType::Pong, State::Ready | State::Draining) => {
                Ping::parse(pdu, PduType::Pong).map(|_| ()).map_err(protocol)
            }
            (PduType::GoAway, _) => match GoAway::parse(pdu).map_err(protocol)? {
                GoAwayReason::Drain if matches!(self.state, State::Ready | State::Draining) => {
                    self.state = State::Draining;
                    Ok(())
                }
                reason => Err(LinkError::GoAway(reason)),
            },
            _ => Err(protocol(DecodeError::Type)),
        }
    }

    fn welcomed(&mut self, welcome: Box<Welcome>) -> Result<(), LinkError> {
        if welcome.version != VERSION {
            return Err(LinkError::Version(welcome.version));
        }
        if welcome.queue_depth > QUEUE_DEPTH_MAX
            || (welcome.capsule_bytes as usize) < CAPSULE_BYTES_MIN
        {
            return Err(LinkError::Protocol("queue depth or capsule size"));
        }
        self.depth = welcome.queue_depth.min(self.settings.offer.queue_depth);
        self.credit_limit = self.depth;
        self.capsule_bytes = welcome.capsule_bytes.min(self.settings.offer.capsule_bytes) as usize;
        self.keep_alive_us = u64::from(welcome.keep_alive_ms) * 1000;
        self.cids.resize(self.depth.into(), None);
        self.lent.resize(self.depth.into(), None);
        self.free.extend((0..self.depth).rev());
        self.state = State::Auth;
        self.welcome = Some(welcome);
        self.sender.put(Auth::none(PduType::Auth).as_bytes());
        Ok(())
    }

    /// What the passing of time asks for: a PING, or the end.
    pub(super) fn tick(&mut self, now_us: u64) -> Result<(), LinkError> {
        match self.state {
            State::Closed => return Ok(()),
            State::Hello | State::Auth => {
                let late = now_us.saturating_sub(self.opened_us) >= self.handshake_us;
                return if late { Err(LinkError::Handshake) } else { Ok(()) };
            }
            State::Draining if self.in_flight() == 0 => return Err(LinkError::Drained),
            State::Ready | State::Draining if self.keep_alive_us == 0 => return Ok(()),
            State::Ready | State::Draining => {}
        }
        let ping_us = self.keep_alive_us / 3;
        // A caller that did not poll for a while has not listened, either.
        if now_us.saturating_sub(self.ticked_us) > ping_us {
            self.received_us = self.received_us.max(now_us - ping_us);
        }
        self.ticked_us = now_us;
        if now_us.saturating_sub(self.received_us) >= self.keep_alive_us {
            return Err(LinkError::Silent);
        }
        if now_us.saturating_sub(self.sent_us) >= ping_us && !self.has_output() {
            self.sender.put(Ping::new(PduType::Ping, now_us).as_bytes());
        }
        Ok(())
    }

    /// When [`Link::tick`] has something to do at the latest.
    pub(super) fn next_tick_us(&self) -> u64 {
        match self.state {
            State::Closed => u64::MAX,
            State::Hello | State::Auth => self.opened_us + self.handshake_us,
            State::Ready | State::Draining if self.keep_alive_us == 0 => u64::MAX,
            State::Ready | State::Draining => {
                let third = self.keep_alive_us / 3;
                (self.sent_us + third).min(self.received_us + self.keep_alive_us)
            }
        }
    }
}

/// Lends the memory that `op` sends from, or is answered into, and names it in `command`.
fn lend(op: &Operation, command: &mut Command, memory: &mut dyn Memory) -> Option<Lent> {
    let lent = Some(op.memory_bytes()).filter(|bytes| *bytes > 0)?;
    let lent = memory.lend(lent)?;
    let mut offset = 0;
    for value in &op.values {
        memory.put(lent, offset, value);
        offset += value.len();
    }
    command.address = U64::new(lent.address);
    command.memory_key = U32::new(lent.key);
    Some(lent)
}

/// Copies data out of lent memory; its checksum.
fn copy_out(memory: &dyn Memory, lent: Lent, data: &mut [u8]) -> u32 {
    if data.len() <= COPY_BYTES {
        memory.get(lent, 0, data);
        return crc32c(data);
    }
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    let mut begin = 0;
    while begin < data.len() {
        let end = data.len().min(begin + COPY_BYTES);
        memory.get(lent, begin, &mut data[begin..end]);
        memory.prefetch(lent, end, COPY_BYTES.min(data.len() - end));
        digest.update(&data[begin..end]);
        begin = end;
    }
    digest.finalize() as u32
}

/// The results of a batch of `items`, checked against `answer`, and where their data begins.
pub(super) fn item_results(
    answer: &Answer,
    items: usize,
) -> Result<(&[ItemResult], usize), LinkError> {
    let (results, data) =
        ItemResult::parse_all(&answer.data, items, answer.data_crc).map_err(protocol)?;
    Ok((results, answer.data.len() - data.len()))
}

fn protocol(error: DecodeError) -> LinkError {
    LinkError::Protocol(error.text())
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
