//! The server's side: connections over the queue pairs of one provider.
//!
//! A poll takes what the provider has found; a flush rings one doorbell for each connection that has
//! something new. How a connection ends:
//!
//! ```text
//!             accept          established          close          all has left
//! (requested) ─────▶ Pending ────────────▶ Open ────────▶ Finishing ────────▶ Finished
//!                        │                   │  abort, broken   │                 │ peer is gone,
//!                        ▼                   ▼                  ▼                 ▼ or linger is over
//!                     Draining: the queue pair is in error, buffers come back ──▶ reported, forgotten
//! ```

use super::chain::Chain;
use super::channel::{Channel, Reading, Waiting};
use super::greeting::Greeting;
use super::provider::{Event, Limits, Note, Provider, Qp, Shape, Violation};
use crate::Buffer;
use crate::pdu::{
    COMMON_HEADER_BYTES, CommonHeader, GoAway, GoAwayReason, PduType, Response, VALUE_BYTES_MAX,
};
use crate::transport::{CloseReason, ConnId, Payload, RemoteMemory, Sink, Transport};
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use zerocopy::{FromBytes, IntoBytes};

/// How often the connections that wait for their peer are looked at, in microseconds.
const SWEEP_US: u64 = 100_000;
/// How soon a connection that is ending is looked at again, in microseconds.
const ATTEND_US: u64 = 200;
/// After so many polls that found nothing, the provider is asked to wake a sleeper.
const IDLE_POLLS: u32 = 16;

/// The bounds of an [`RdmaTransport`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RdmaConfig {
    /// The most connections at a time; further peers are refused with GOAWAY (full).
    pub connections_max: u16,
    /// Receives of each connection: two for each command in flight, and some for control PDUs.
    pub receives: u16,
    /// Bytes of each receive: the longest capsule.
    pub receive_bytes: u32,
    /// READs in flight on each connection.
    pub reads: u8,
    /// Bytes of READs in flight on all connections.
    pub read_bytes: usize,
    /// A connection on which something waits and nothing moves for so long is closed.
    pub stall_us: u64,
    /// A connection that is being closed waits at most so long for its peer.
    pub linger_us: u64,
}

impl Default for RdmaConfig {
    fn default() -> Self {
        Self {
            connections_max: 256,
            receives: 2 * 64 + 16,
            receive_bytes: 16 << 10,
            reads: 16,
            read_bytes: 64 << 20,
            stall_us: 30_000_000,
            linger_us: 1_000_000,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Pending,
    Open,
    Finishing,
    Finished,
    Draining,
}

#[derive(Debug)]
struct Connection<B> {
    id: ConnId,
    channel: Channel<B>,
    held: Vec<Held<B>>,
    phase: Phase,
    /// Why it ends.
    reason: Option<CloseReason>,
    /// The peer broke the protocol: its end is reported as soon as its READs have ended.
    refused: bool,
    /// `connected` and `closed` have been said.
    announced: bool,
    reported: bool,
    /// It is in the list of connections to flush.
    in_dirty: bool,
    /// When something last moved, or began to wait.
    progress_us: u64,
}

#[derive(Debug)]
struct Slot<B> {
    generation: u16,
    connection: Option<Box<Connection<B>>>,
}

/// A response whose command still has a READ under way: the client may use its memory for something else
/// as soon as it has the response, so that comes after the READ.
#[derive(Debug)]
struct Held<B> {
    token: u32,
    pdu: Vec<u8>,
    remote: RemoteMemory,
    payloads: Vec<Payload<B>>,
}

/// A pull that ended outside of `poll`, to be reported by the next one.
#[derive(Debug)]
struct Ended<B> {
    conn: ConnId,
    cid: u16,
    buffer: B,
    complete: bool,
}

/// The RDMA transport over a provider's queue pairs. See the modules for what it guarantees.
#[derive(Debug)]
pub struct RdmaTransport<P: Provider> {
    provider: P,
    config: RdmaConfig,
    slots: Vec<Slot<P::Buffer>>,
    free: Vec<u16>,
    /// The provider's slot → ours.
    numbers: Vec<u16>,
    dirty: VecDeque<u16>,
    /// Connections that may start a READ when another one ends.
    starved: VecDeque<u16>,
    /// Connections that are neither open nor forgotten.
    ending: Vec<u16>,
    ended: Vec<Ended<P::Buffer>>,
    events: Vec<Event<P::Buffer>>,
    chain: Chain<P::Buffer>,
    reading: Reading,
    now_us: u64,
    next_sweep_us: u64,
    idle_polls: u32,
    armed: bool,
}

impl<P: Provider> RdmaTransport<P> {
    /// A transport for the peers that ask `provider` for a connection.
    ///
    /// # Panics
    /// If the provider's queue pairs are too small for a value.
    #[must_use]
    pub fn new(provider: P, config: RdmaConfig) -> Self {
        let limits = provider.limits();
        let works = Chain::<P::Buffer>::works_to_read(VALUE_BYTES_MAX, &limits);
        assert!(limits.works >= 2 * works + 2 && limits.buffers >= 4, "queue pairs are too small");
        let count = config.connections_max;
        Self {
            provider,
            config,
            slots: (0..count).map(|_| Slot { generation: 0, connection: None }).collect(),
            free: (0..count).rev().collect(),
            numbers: Vec::new(),
            dirty: VecDeque::with_capacity(usize::from(count)),
            starved: VecDeque::with_capacity(usize::from(count)),
            ending: Vec::with_capacity(usize::from(count)),
            ended: Vec::new(),
            events: Vec::new(),
            chain: Chain::default(),
            reading: Reading::default(),
            now_us: 0,
            next_sweep_us: u64::MAX,
            idle_polls: 0,
            armed: false,
        }
    }

    /// Connections that are open, or begin, or end.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The provider, for its own numbers and addresses.
    #[must_use]
    pub fn provider(&self) -> &P {
        &self.provider
    }

    fn shape(&self) -> Shape {
        let RdmaConfig { receives, receive_bytes, reads, .. } = self.config;
        Shape { receives, receive_bytes, reads, remote_access: false }
    }

    fn at(&mut self, number: u16) -> Option<&mut Connection<P::Buffer>> {
        self.slots.get_mut(usize::from(number))?.connection.as_deref_mut()
    }

    fn open(&mut self, conn: ConnId) -> Option<&mut Connection<P::Buffer>> {
        let connection = self.at(conn.slot)?;
        (connection.id == conn && connection.phase == Phase::Open).then_some(connection)
    }

    /// The connection of a queue pair.
    fn number(&mut self, qp: Qp) -> Option<u16> {
        let number = *self.numbers.get(usize::from(qp.slot))?;
        let connection = self.at(number)?;
        (connection.channel.qp == qp).then_some(number)
    }

    fn mark(&mut self, number: u16) {
        let Some(connection) = self.slots[usize::from(number)].connection.as_deref_mut() else {
            return;
        };
        if !connection.in_dirty {
            connection.in_dirty = true;
            self.dirty.push_back(number);
        }
    }

    fn report_ended(&mut self, sink: &mut dyn Sink<P::Buffer>) -> bool {
        let any = !self.ended.is_empty();
        for Ended { conn, cid, buffer, complete } in self.ended.drain(..) {
            sink.pulled(conn, cid, buffer, complete);
        }
        any
    }
}

// How connections begin.
impl<P: Provider> RdmaTransport<P> {
    fn requested(&mut self, request: u32, ask: &Note, reads: u8) {
        let Some(greeting) = Greeting::parse(ask) else {
            log::info!("refused a peer whose connection request is not of this protocol");
            return self.turn_away(request, GoAwayReason::Protocol);
        };
        let Some(number) = self.free.pop() else {
            log::debug!("no room for another connection");
            return self.turn_away(request, GoAwayReason::Full);
        };
        let shape = self.shape();
        let answer = Greeting::of(&shape).note();
        match self.provider.accept(request, answer, shape) {
            Ok(qp) => self.admit(number, Channel::new(qp, &shape, greeting, reads)),
            Err(error) => {
                log::warn!("cannot accept a connection: {error}");
                self.free.push(number);
            }
        }
    }

    fn turn_away(&mut self, request: u32, reason: GoAwayReason) {
        self.provider.reject(request, Note::new(GoAway::new(reason).as_bytes()));
    }

    fn admit(&mut self, number: u16, channel: Channel<P::Buffer>) {
        let place = usize::from(channel.qp.slot);
        if self.numbers.len() <= place {
            self.numbers.resize(place + 1, u16::MAX);
        }
        self.numbers[place] = number;
        let slot = &mut self.slots[usize::from(number)];
        slot.generation = slot.generation.wrapping_add(1);
        slot.connection = Some(Box::new(Connection {
            id: ConnId { slot: number, generation: slot.generation },
            channel,
            held: Vec::new(),
            phase: Phase::Pending,
            reason: None,
            refused: false,
            announced: false,
            reported: false,
            in_dirty: false,
            progress_us: self.now_us,
        }));
        self.ending.push(number);
    }

    /// The peer is there: by what the connection manager says, or by its first message.
    fn established(&mut self, number: u16, sink: &mut dyn Sink<P::Buffer>) {
        let Some(connection) = self.at(number).filter(|found| found.phase == Phase::Pending) else {
            return;
        };
        connection.phase = Phase::Open;
        connection.announced = true;
        let id = connection.id;
        self.ending.retain(|other| *other != number);
        sink.connected(id);
    }
}

// What the provider reports.
impl<P: Provider> RdmaTransport<P> {
    fn take(&mut self, event: Event<P::Buffer>, sink: &mut dyn Sink<P::Buffer>) {
        match event {
            Event::Requested { request, ask, reads } => self.requested(request, &ask, reads),
            Event::Established { qp, .. } => {
                if let Some(number) = self.number(qp) {
                    self.established(number, sink);
                }
            }
            Event::Received { qp, receive, length, immediate } => {
                if let Some(number) = self.number(qp) {
                    self.established(number, sink);
                    self.received(number, (receive, length), immediate, sink);
                }
            }
            Event::Read { qp, token, buffer, complete } => {
                if let Some(number) = self.number(qp) {
                    self.read(number, token, buffer, complete, sink);
                }
            }
            Event::Progress { qp } => {
                let now_us = self.now_us;
                let Some(number) = self.number(qp) else { return };
                self.at(number).into_iter().for_each(|found| found.progress_us = now_us);
                self.mark(number);
            }
            Event::Refused { qp, .. } | Event::Disconnected { qp } => {
                self.broken(qp, CloseReason::Peer);
            }
            Event::Broken { qp, why } => {
                log::debug!("queue pair {}.{}: {why}", qp.slot, qp.generation);
                self.broken(qp, close_reason(why));
            }
        }
    }

    fn broken(&mut self, qp: Qp, reason: CloseReason) {
        if let Some(number) = self.number(qp) {
            self.drain(number, reason);
        }
    }

    /// A message: a whole PDU, or nothing but credits.
    fn received(
        &mut self,
        number: u16,
        (receive, length): (u16, u32),
        immediate: u32,
        sink: &mut dyn Sink<P::Buffer>,
    ) {
        let Some(connection) = self.slots[usize::from(number)].connection.as_deref_mut() else {
            return;
        };
        if !matches!(connection.phase, Phase::Open | Phase::Finishing) {
            return;
        }
        let (id, qp) = (connection.id, connection.channel.qp);
        let message = self.provider.received(qp, receive, length);
        // Whoever is being closed is heard no more, but for the credits by which the rest leaves.
        let is_heard = connection.phase == Phase::Open && !message.is_empty();
        let taken = connection.channel.hear(immediate).and_then(|()| {
            if !is_heard {
                return Ok(());
            }
            whole_pdu(message).and_then(|()| sink.pdu(id, message))
        });
        self.provider.repost(qp, receive);
        self.mark(number);
        match taken {
            Ok(()) => {}
            Err(what) if is_heard => self.refuse(number, what, sink),
            Err(what) => self.drain(number, CloseReason::Protocol(what)),
        }
    }

    fn read(
        &mut self,
        number: u16,
        token: u32,
        buffer: P::Buffer,
        complete: bool,
        sink: &mut dyn Sink<P::Buffer>,
    ) {
        let (limits, now_us) = (self.provider.limits(), self.now_us);
        let Some(connection) = self.slots[usize::from(number)].connection.as_deref_mut() else {
            return;
        };
        connection.channel.read_ended(token, &limits, &mut self.reading);
        connection.progress_us = now_us;
        let id = connection.id;
        sink.pulled(id, token as u16, buffer, complete);
        self.let_go(number, token);
        self.mark(number);
        self.wake_starved();
    }

    /// Room for READs has come back: whoever waits for it may try again.
    fn wake_starved(&mut self) {
        while let Some(starved) = self.starved.pop_front() {
            self.mark(starved);
        }
    }

    /// Queues the response that waited for this READ.
    fn let_go(&mut self, number: u16, token: u32) {
        let limits = self.provider.limits();
        let Some(connection) = self.at(number) else { return };
        let Some(at) = connection.held.iter().position(|held| held.token == token) else { return };
        let Held { pdu, remote, payloads, .. } = connection.held.remove(at);
        if matches!(connection.phase, Phase::Open | Phase::Finishing)
            && !deliver(&mut connection.channel, &pdu, remote, &mut payloads.into_iter(), &limits)
        {
            self.drain(number, CloseReason::Protocol("the peer does not read"));
        }
    }

    /// The peer broke the protocol: tells it so, and takes nothing more of it.
    fn refuse(&mut self, number: u16, what: &'static str, sink: &mut dyn Sink<P::Buffer>) {
        self.finish(number);
        self.report_ended(sink);
        let Some(connection) = self.at(number) else { return };
        connection.reason = Some(CloseReason::Protocol(what));
        connection.refused = true;
        let goaway = GoAway::new(GoAwayReason::Protocol);
        let message_bytes = connection.channel.message_bytes();
        connection.channel.output.push_pdu(goaway.as_bytes(), message_bytes);
    }
}

// How connections end.
impl<P: Provider> RdmaTransport<P> {
    /// Ends it in order: what is queued still leaves. Pulls that have not begun never will.
    fn finish(&mut self, number: u16) {
        let now_us = self.now_us;
        self.give_up_pulls(number);
        let Some(connection) = self.at(number).filter(|found| found.phase == Phase::Open) else {
            return;
        };
        connection.phase = Phase::Finishing;
        connection.progress_us = now_us;
        self.ending.push(number);
        self.mark(number);
    }

    /// Stops everything on it, now.
    fn drain(&mut self, number: u16, reason: CloseReason) {
        let now_us = self.now_us;
        self.give_up_pulls(number);
        let Some(connection) = self.at(number).filter(|found| found.phase != Phase::Draining)
        else {
            return;
        };
        let was_open = connection.phase == Phase::Open;
        let reason = if was_open { reason } else { CloseReason::Local };
        connection.reason.get_or_insert(reason);
        connection.phase = Phase::Draining;
        connection.progress_us = now_us;
        connection.channel.output.clear();
        connection.held.clear();
        let qp = connection.channel.qp;
        if !self.ending.contains(&number) {
            self.ending.push(number);
        }
        self.provider.break_off(qp);
    }

    fn give_up_pulls(&mut self, number: u16) {
        let Some(connection) = self.slots[usize::from(number)].connection.as_deref_mut() else {
            return;
        };
        let conn = connection.id;
        for Waiting { token, buffer, .. } in connection.channel.waiting.drain(..) {
            self.ended.push(Ended { conn, cid: token as u16, buffer, complete: false });
        }
    }

    /// A command is answered whose pull has not begun: it never will.
    fn give_up_pull_of(&mut self, conn: ConnId, pdu: &[u8]) {
        let Some(token) = answered(pdu) else { return };
        let Some(connection) = self.open(conn) else { return };
        let waiting = &mut connection.channel.waiting;
        let Some(at) = waiting.iter().position(|pull| pull.token == token) else { return };
        if let Some(Waiting { buffer, .. }) = waiting.remove(at) {
            self.ended.push(Ended { conn, cid: token as u16, buffer, complete: false });
        }
    }

    /// Moves on the connections that are ending.
    fn attend(&mut self, sink: &mut dyn Sink<P::Buffer>) {
        self.report_ended(sink);
        for index in (0..self.ending.len()).rev() {
            let number = self.ending[index];
            if self.attend_one(number, sink) {
                self.ending.swap_remove(index);
                self.forget(number, sink);
            }
        }
    }

    /// Returns `true` when nothing is left to wait for.
    fn attend_one(&mut self, number: u16, sink: &mut dyn Sink<P::Buffer>) -> bool {
        let (now_us, linger_us) = (self.now_us, self.config.linger_us);
        let Some(connection) = self.slots[usize::from(number)].connection.as_deref_mut() else {
            return true;
        };
        let (qp, phase) = (connection.channel.qp, connection.phase);
        let late = now_us >= connection.progress_us.saturating_add(linger_us);
        let quiet = connection.channel.is_empty()
            && connection.held.is_empty()
            && self.provider.in_flight(qp) == 0;
        if connection.refused && !connection.reported && connection.channel.reading.works == 0 {
            connection.reported = true;
            sink.closed(connection.id, connection.reason.unwrap_or(CloseReason::Local));
        }
        match phase {
            Phase::Open => return false,
            Phase::Draining => return late || self.provider.is_drained(qp),
            Phase::Finishing if quiet => {
                connection.phase = Phase::Finished;
                connection.progress_us = now_us;
                self.provider.disconnect(qp);
            }
            Phase::Pending | Phase::Finishing | Phase::Finished if late => {
                self.drain(number, CloseReason::Lost);
            }
            Phase::Pending | Phase::Finishing | Phase::Finished => {}
        }
        false
    }

    fn forget(&mut self, number: u16, sink: &mut dyn Sink<P::Buffer>) {
        let Some(connection) = self.slots[usize::from(number)].connection.take() else { return };
        let Connection { id, mut channel, reason, announced, reported, .. } = *connection;
        let (limits, reading) = (self.provider.limits(), &mut self.reading);
        self.provider.release(channel.qp, &mut |token, buffer| {
            channel.read_ended(token, &limits, reading);
            sink.pulled(id, token as u16, buffer, false);
        });
        if announced && !reported {
            sink.closed(id, reason.unwrap_or(CloseReason::Local));
        }
        self.dirty.retain(|other| *other != number);
        self.starved.retain(|other| *other != number);
        self.wake_starved();
        self.free.push(number);
    }

    /// Ends the connections on which nothing moves.
    fn sweep(&mut self) {
        if self.now_us < self.next_sweep_us {
            return;
        }
        self.next_sweep_us = u64::MAX;
        for number in 0..self.slots.len() as u16 {
            let Some(connection) = self.slots[usize::from(number)].connection.as_deref() else {
                continue;
            };
            let channel = &connection.channel;
            if channel.is_empty() && self.provider.in_flight(channel.qp) == 0 {
                continue;
            }
            let stalled = self.now_us >= connection.progress_us + self.config.stall_us;
            if stalled && connection.phase == Phase::Open {
                self.drain(number, CloseReason::Lost);
            }
            self.next_sweep_us = self.now_us + SWEEP_US;
        }
    }

    /// Queues with `queue`; what `send`, `push` and `pull` have in common.
    fn queue(
        &mut self,
        conn: ConnId,
        queue: impl FnOnce(&mut Connection<P::Buffer>) -> Result<(), &'static str>,
    ) {
        let now_us = self.now_us;
        let Some(connection) = self.open(conn) else { return };
        if connection.channel.is_empty() {
            connection.progress_us = now_us;
        }
        if let Err(what) = queue(connection) {
            return self.drain(conn.slot, CloseReason::Protocol(what));
        }
        self.next_sweep_us = self.next_sweep_us.min(now_us + SWEEP_US);
        self.mark(conn.slot);
    }
}

/// A message of a client is one PDU, no less and no more.
fn whole_pdu(message: &[u8]) -> Result<(), &'static str> {
    match CommonHeader::peek(message).map_err(crate::pdu::DecodeError::text)? {
        Some((PduType::Data | PduType::ReadyToTransfer, _)) => Err("DATA or R2T over RDMA"),
        Some((_, length)) if length == message.len() => Ok(()),
        _ => Err("a message that is not one PDU"),
    }
}

fn close_reason(why: Violation) -> CloseReason {
    match why {
        Violation::RemoteAccess => CloseReason::Protocol("memory that the peer does not have"),
        Violation::Forbidden => CloseReason::Protocol("the peer tried to reach this side's memory"),
        Violation::Silent | Violation::NotReady | Violation::Other(_) => CloseReason::Lost,
    }
}

/// The command that a PDU answers, as the token of its pull.
fn answered(pdu: &[u8]) -> Option<u32> {
    let header = CommonHeader::ref_from_prefix(pdu).ok()?.0;
    (header.pdu_type == PduType::Response as u8).then(|| header.cid.get().into())
}

/// Queues a PDU and its data: to the peer's memory, or behind it; `false` if the peer does not read.
fn deliver<B: Buffer>(
    channel: &mut Channel<B>,
    pdu: &[u8],
    remote: RemoteMemory,
    payloads: &mut dyn Iterator<Item = Payload<B>>,
    limits: &Limits,
) -> bool {
    if data_bytes(pdu) == 0 {
        return channel.output.push_pdu(pdu, channel.message_bytes());
    }
    if remote.key != 0
        && let Some(placed) = Response::placed(pdu, remote.length)
    {
        channel.output.push_written(placed.as_bytes(), remote, payloads, limits);
        return true;
    }
    channel.output.push_copied(pdu, payloads, channel.message_bytes())
}

/// Bytes of data that a response announces.
fn data_bytes(pdu: &[u8]) -> usize {
    let header = pdu.get(..COMMON_HEADER_BYTES).and_then(|b| CommonHeader::ref_from_bytes(b).ok());
    header.map_or(0, |header| (header.length.get() as usize).saturating_sub(pdu.len()))
}

impl<P: Provider> Transport for RdmaTransport<P> {
    type Buffer = P::Buffer;

    fn poll(&mut self, now_us: u64, sink: &mut dyn Sink<P::Buffer>) -> bool {
        self.now_us = now_us;
        let reported = self.report_ended(sink);
        let mut events = std::mem::take(&mut self.events);
        let moved = self.provider.poll(now_us, &mut events);
        for event in events.drain(..) {
            self.take(event, sink);
        }
        self.events = events;
        self.sweep();
        self.attend(sink);
        if moved || reported {
            (self.idle_polls, self.armed) = (0, false);
        } else if !self.armed {
            self.idle_polls += 1;
            self.armed = self.idle_polls >= IDLE_POLLS && self.provider.arm();
        }
        moved || reported
    }

    fn send(&mut self, conn: ConnId, pdu: &[u8]) {
        self.push(conn, pdu, RemoteMemory::default(), &mut std::iter::empty());
    }

    fn push(
        &mut self,
        conn: ConnId,
        pdu: &[u8],
        remote: RemoteMemory,
        payloads: &mut dyn Iterator<Item = Payload<P::Buffer>>,
    ) {
        let limits = self.provider.limits();
        self.give_up_pull_of(conn, pdu);
        self.queue(conn, |connection| {
            let token = answered(pdu).filter(|token| connection.channel.is_reading(*token));
            let Some(token) = token else {
                let queued = deliver(&mut connection.channel, pdu, remote, payloads, &limits);
                return queued.then_some(()).ok_or("the peer does not read");
            };
            let (pdu, payloads) = (pdu.to_vec(), payloads.collect());
            connection.held.push(Held { token, pdu, remote, payloads });
            Ok(())
        });
    }

    fn pull(&mut self, conn: ConnId, cid: u16, remote: RemoteMemory, buffer: P::Buffer) {
        let length = remote.length as usize;
        assert!(length <= VALUE_BYTES_MAX, "a pull longer than any value");
        assert!(length <= buffer.as_ref().len(), "a pull longer than its buffer");
        let possible = self.open(conn).is_some_and(|found| found.channel.can_read());
        if length == 0 || !possible {
            let complete = length == 0 && self.open(conn).is_some();
            self.ended.push(Ended { conn, cid, buffer, complete });
            if length > 0 {
                self.queue(conn, |_| Err("a peer that answers no READs"));
            }
            return;
        }
        self.queue(conn, |connection| {
            connection.channel.waiting.push_back(Waiting { token: cid.into(), remote, buffer });
            Ok(())
        });
    }

    fn close(&mut self, conn: ConnId, abort: bool) {
        if self.at(conn.slot).is_none_or(|found| found.id != conn) {
            return;
        }
        self.finish(conn.slot);
        if abort {
            self.drain(conn.slot, CloseReason::Local);
        }
    }

    fn flush(&mut self, now_us: u64) {
        self.now_us = now_us;
        for _ in 0..self.dirty.len() {
            let Some(number) = self.dirty.pop_front() else { break };
            let Some(connection) = self.slots[usize::from(number)].connection.as_deref_mut() else {
                continue;
            };
            connection.in_dirty = false;
            if !matches!(connection.phase, Phase::Open | Phase::Finishing) {
                continue;
            }
            let (chain, all) = (&mut self.chain, &mut self.reading);
            connection.channel.pump(&mut self.provider, chain, all, self.config.read_bytes);
            if !connection.channel.waiting.is_empty() && !self.starved.contains(&number) {
                self.starved.push_back(number);
            }
        }
    }

    fn is_flushed(&self) -> bool {
        self.slots.iter().flat_map(|slot| &slot.connection).all(|connection| {
            connection.held.is_empty()
                && connection.channel.is_empty()
                && self.provider.in_flight(connection.channel.qp) == 0
        })
    }

    fn next_deadline_us(&self) -> Option<u64> {
        let unarmed = !self.armed && self.provider.wait_fd().is_some();
        if unarmed || !self.ended.is_empty() || !self.dirty.is_empty() {
            return Some(0);
        }
        let attend_us = (!self.ending.is_empty()).then_some(self.now_us + ATTEND_US);
        let sweep_us = Some(self.next_sweep_us).filter(|at_us| *at_us != u64::MAX);
        [attend_us, sweep_us].into_iter().flatten().min()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.provider.wait_fd()
    }
}
