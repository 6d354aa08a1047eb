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
//! since the server holds memory for it; memory that a command in flight names is not used for anything
//! else before its answer, or the end of the connection; an answer with more data than was asked for, or for nothing
//! that is in flight, ends the connection before anything is allocated for it.

use super::data;
use super::error::LinkError;
use super::landing::{self, Landed};
use super::operation::{Buffers, OpId, Operation, Operations, State as OpState};
use super::placing::{self, Placement, Room, Source};
use super::receive::{Fed, Got, Incoming, Receiver};
use super::send::SendQueue;
use super::stream::{Lent, Reach, Stream};
use crate::Status;
use crate::pdu::{
    Auth, CAPSULE_BYTES_MIN, Cancel, Command, CommonHeader, Data, DecodeError, Fragment, GoAway,
    GoAwayReason, Hello, ItemResult, Offer, Outcome, PduType, Ping, QUEUE_DEPTH_MAX,
    ReadyToTransfer, Response, VERSION, Welcome, crc32c, response_flags,
};
use crate::region::Region;
use bytes::Bytes;
use std::io::{self, Write};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of a response's fixed part.
const RESPONSE_BYTES: usize = size_of::<Response>();

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
    /// What did not land in fragments.
    pub data: data::Data,
    pub landed: Option<Landed>,
}

impl Answer {
    /// Bytes of data, wherever they are.
    pub(super) fn length(&self) -> u32 {
        self.landed.map_or(self.data.len() as u32, |landed| landed.bytes)
    }

    /// The checksum of a single command's data, if nobody could compare it.
    pub(super) fn unchecked_crc(&self) -> Option<u32> {
        self.landed.filter(|landed| landed.unseen != 0).map(|_| self.data_crc)
    }
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
    placements: Vec<Placement>,
    free: Vec<u16>,
    receiver: Receiver,
    sender: SendQueue,
    /// The network took less than there was.
    blocked: bool,
    pong: Option<u64>,
    welcome: Option<Box<Welcome>>,
    /// The values of a batch, put together to travel in a capsule.
    gathered: Vec<u8>,
    /// The fragments of the command that is being sent.
    named: Vec<Fragment>,
    fragments_max: usize,
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
            placements: Vec::with_capacity(depth.into()),
            free: Vec::with_capacity(depth.into()),
            receiver: Receiver::new(settings.receive_buffer_bytes),
            sender: SendQueue::with_capacity(256 << 10),
            blocked: false,
            pong: None,
            welcome: None,
            gathered: Vec::new(),
            named: Vec::new(),
            fragments_max: 0,
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

    /// The most fragments that a command may name here; 0: none, or that is not known.
    pub(super) fn fragments_max(&self) -> usize {
        if self.is_ready() { self.fragments_max } else { 0 }
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
        self.placements.clear();
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
    ///
    /// # Errors
    /// The memory that it names cannot be reached over this connection; nothing was queued.
    pub(super) fn send_command(
        &mut self,
        id: OpId,
        ops: &mut Operations,
        stream: &mut impl Stream,
        now_us: u64,
    ) -> io::Result<()> {
        let Some(&cid) = self.free.last() else {
            unreachable!("credits are never above the depth")
        };
        let op = &mut ops[id];
        let left_us = op.deadline_us.saturating_sub(now_us).clamp(1, u32::MAX.into());
        let mut command = op.command(cid, left_us as u32);
        let in_capsule = op.value_bytes > 0
            && op.capsule_bytes() + op.value_bytes as usize <= self.capsule_bytes
            && !op.is_unseen();
        self.named.clear();
        let mut placement = Placement::Nothing;
        if !in_capsule && let Some(memory) = stream.memory() {
            let room =
                Room { fragments_max: self.fragments_max, capsule_bytes: self.capsule_bytes };
            placement = placing::name(op, &mut command, &mut self.named, memory, room)?;
        } else if op.is_unseen() {
            op.fragments.iter().try_for_each(|held| Reach::by_copy(held.region()).map(drop))?;
        }
        self.free.pop();
        self.cids[usize::from(cid)] = Some(id);
        self.placements[usize::from(cid)] = placement;
        op.state = OpState::Sent(cid);
        op.was_sent = true;
        op.transferred = 0;
        self.encode(op, command, in_capsule);
        Ok(())
    }

    fn encode(&mut self, op: &Operation, mut command: Command, in_capsule: bool) {
        let data: &[u8] = match op.values.as_slice() {
            [value] if in_capsule => value,
            values if in_capsule => {
                self.gathered.clear();
                values.iter().for_each(|value| self.gathered.extend_from_slice(value));
                op.fragments.iter().for_each(|held| {
                    let all = 0..held.len() as usize;
                    held.read_pieces(all, |piece| self.gathered.extend_from_slice(piece));
                });
                &self.gathered
            }
            _ => &[],
        };
        if self.named.is_empty() {
            command.seal(&op.items, &op.keys, data);
        } else {
            command.seal_fragments(&op.items, &self.named, &op.keys);
        }
        self.sender.put(command.as_bytes());
        self.sender.put(op.items.as_bytes());
        self.sender.put(self.named.as_bytes());
        self.sender.put(&op.keys);
        self.sender.put(data);
    }

    /// Some of `region` waits to be sent, for commands that may have been answered.
    pub(super) fn holds(&self, region: &Region) -> bool {
        self.sender.holds(region)
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
        let count = match self.receiver.fill(stream, context.ops) {
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
        loop {
            match self.receiver.feed(context.ops)? {
                Fed::Nothing => {}
                Fed::More => return Ok(()),
                Fed::Whole(outcome, got) => self.answer(outcome, got, context, stream),
            }
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
        if placing::lands(&context.ops[op], &outcome)? {
            let results = size_of::<ItemResult>() * context.ops[op].items.len();
            let data = context.buffers.take(results);
            self.receiver.expect(Incoming::landing(outcome, op, data));
            return Ok(());
        }
        match self.receiver.bytes().get(..length) {
            Some(data) => {
                let has_items = outcome.flags & response_flags::ITEMS != 0;
                let intact = has_items || data.is_empty() || crc32c(data) == outcome.data_crc;
                let data = context.buffers.copy(data);
                self.receiver.consume_data(length);
                let got = Got { data: data.into(), intact, landed: None };
                self.answer(outcome, got, context, stream);
            }
            None => {
                let data = context.buffers.take(length);
                self.receiver.expect(Incoming::new(outcome, op, data));
            }
        }
        Ok(())
    }

    /// A response whose data is in the memory that its command has named.
    fn fetch(
        &mut self,
        outcome: Outcome,
        context: &mut Context<'_>,
        stream: &mut impl Stream,
    ) -> Result<(), LinkError> {
        let (cid, op) = (usize::from(outcome.cid), self.in_flight_op(outcome.cid)?);
        let Some(memory) = stream.memory() else {
            return Err(LinkError::Protocol("data in memory that was not lent"));
        };
        let (op, source) = (&context.ops[op], Source { memory, next: self.next_placed() });
        let got = placing::fetch(self.placements[cid], &outcome, op, source, context.buffers)?;
        if got.data.is_placed() {
            // Whoever has the data has the memory.
            self.placements[cid] = Placement::Nothing;
        }
        self.answer(outcome, got, context, stream);
        Ok(())
    }

    /// Where the data of the response behind this one is, if it has arrived. That is not checked yet: what
    /// it says wrong costs a look at memory that is lent.
    fn next_placed(&self) -> Option<Lent> {
        let (next, _) = Response::ref_from_prefix(self.receiver.bytes()).ok()?;
        match self.placements.get(usize::from(next.header.cid.get()))? {
            Placement::Lent(lent) => {
                Some(Lent { bytes: next.data_length.get().min(lent.bytes), ..*lent })
            }
            _ => None,
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
        got: Got,
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
        if let Some(lent) = std::mem::take(&mut self.placements[usize::from(cid)]).lent()
            && let Some(memory) = stream.memory()
        {
            memory.take_back(lent);
        }
        let has_items = flags & response_flags::ITEMS != 0;
        let Got { data, intact, landed } = got;
        let status = if intact { status } else { Status::DataChecksum };
        context.answers.push(Answer { op, status, result, has_items, data_crc, data, landed });
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
                let (skip, count) = (transfer.offset as usize, transfer.length as usize);
                landing::pieces(&op.fragments, skip, count)
                    .for_each(|(held, range)| self.sender.put_held(held, range));
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
        self.placements.resize(self.depth.into(), Placement::Nothing);
        self.fragments_max = welcome.fragments_max.into();
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

/// The results of a batch of `items`, checked against `answer`, and where their data begins.
pub(super) fn item_results(
    answer: &Answer,
    items: usize,
) -> Result<(&[ItemResult], usize), LinkError> {
    let (results, data) =
        ItemResult::parse_all(&answer.data, items, answer.data_crc).map_err(protocol)?;
    Ok((results, answer.data.len() - data.len()))
}

pub(super) fn protocol(error: DecodeError) -> LinkError {
    LinkError::Protocol(error.text())
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
