//! All sessions and what they decide: grants, answers of the server's own, deadlines, keep-alives.
//!
//! While the transport is at work it cannot be talked to; what sessions decide on is put down as
//! [`Action`]s and done right afterwards, in order.

use super::deadline::Deadlines;
use super::session::{Session, Slot, State, Step};
use super::{Counters, RequestId, ServerConfig, Service};
use crate::Status;
use crate::pdu::{
    Auth, CAPSULE_BYTES_MIN, Cancel, DecodeError, GoAway, GoAwayReason, Hello, Outcome, PduType,
    Ping, Response, VERSION, Welcome, features,
};
use crate::transport::{CloseReason, ConnId};
use zerocopy::IntoBytes;

/// The shortest keep-alive that is granted, in milliseconds.
const KEEP_ALIVE_MS_MIN: u32 = 100;
/// A peer that has been silent for so many keep-alives is closed.
const KEEP_ALIVES_MAX: u64 = 3;

/// A PDU of at most 32 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Small {
    bytes: [u8; size_of::<Response>()],
    length: u8,
}

impl Small {
    fn new(pdu: &[u8]) -> Self {
        let mut bytes = [0; size_of::<Response>()];
        bytes[..pdu.len()].copy_from_slice(pdu);
        Self { bytes, length: pdu.len() as u8 }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// What the transport has to do next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    Send(ConnId, Small),
    /// HELLO_ACK, with what was granted.
    Welcome(ConnId),
    /// In good order.
    Close(ConnId),
}

/// The most that a client is granted.
#[derive(Clone, Copy, Debug)]
struct Limits {
    queue_depth: u16,
    capsule_bytes: u32,
    keep_alive_ms: u32,
}

/// All sessions, and what they share.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) now_us: u64,
    pub(super) actions: Vec<Action>,
    pub(super) counters: Counters,
    /// Commands in flight on all connections.
    pub(super) active: u64,
    /// Commands that were answered for the service and have not ended there.
    pub(super) zombies: u64,
    welcome: Welcome,
    limits: Limits,
    sessions: Vec<Session>,
    deadlines: Deadlines,
    /// The most commands of a connection: the distance of two sessions' nodes in `deadlines`.
    stride: u32,
    draining: bool,
    /// No keep-alive is due before.
    next_sweep_us: u64,
}

impl Core {
    pub(super) fn new(config: ServerConfig, fragments_max: u16) -> Self {
        let (connections, depth) = (config.connections_max, config.queue_depth);
        let welcome = Welcome { fragments_max, ..super::welcome(config) };
        let limits = Limits {
            queue_depth: welcome.queue_depth,
            capsule_bytes: welcome.capsule_bytes,
            keep_alive_ms: welcome.keep_alive_ms,
        };
        Self {
            now_us: 0,
            actions: Vec::with_capacity(usize::from(depth)),
            counters: Counters::default(),
            active: 0,
            zombies: 0,
            welcome,
            limits,
            sessions: (0..connections).map(|slot| Session::new(slot, depth)).collect(),
            deadlines: Deadlines::new(usize::from(connections) * usize::from(depth)),
            stride: u32::from(depth),
            draining: false,
            next_sweep_us: u64::MAX,
        }
    }

    pub(super) fn session(&mut self, conn: ConnId) -> &mut Session {
        &mut self.sessions[usize::from(conn.slot)]
    }

    /// The place of a command, in flight or just answered.
    pub(super) fn slot(&mut self, id: RequestId) -> &mut Slot {
        &mut self.sessions[usize::from(id.conn.slot)].slots[usize::from(id.cid)]
    }

    /// The session of `conn`, if it is not over.
    fn live(&mut self, conn: ConnId) -> Option<&mut Session> {
        let session = self.session(conn);
        (session.conn == conn && session.state != State::Vacant).then_some(session)
    }

    fn node(&self, conn: ConnId, cid: u16) -> u32 {
        u32::from(conn.slot) * self.stride + u32::from(cid)
    }

    fn send(&mut self, conn: ConnId, pdu: &[u8]) {
        self.actions.push(Action::Send(conn, Small::new(pdu)));
    }

    /// GOAWAY, and the end of the connection.
    fn dismiss(&mut self, conn: ConnId, reason: GoAwayReason) {
        self.session(conn).state = State::Closing;
        self.send(conn, GoAway::new(reason).as_bytes());
        self.actions.push(Action::Close(conn));
    }

    /// What HELLO_ACK says on `conn`.
    pub(super) fn welcome(&mut self, conn: ConnId) -> &Welcome {
        let session = &self.sessions[usize::from(conn.slot)];
        self.welcome.version = session.version;
        self.welcome.queue_depth = session.queue_depth;
        self.welcome.capsule_bytes = session.capsule_bytes;
        self.welcome.features = session.features;
        self.welcome.keep_alive_ms = (session.keep_alive_us / 1000) as u32;
        &self.welcome
    }
}

// The handshake.
impl Core {
    fn greet(&mut self, conn: ConnId, pdu: &[u8]) -> Result<(), DecodeError> {
        let offer = Hello::parse(pdu)?;
        if !offer.versions.contains(&VERSION) {
            self.counters.refused += 1;
            self.dismiss(conn, GoAwayReason::Version);
            return Ok(());
        }
        let (limits, reaches_memory) = (self.limits, self.welcome.fragments_max > 0);
        let wished_ms = match offer.keep_alive_ms {
            0 => limits.keep_alive_ms,
            wished_ms => wished_ms.max(KEEP_ALIVE_MS_MIN).min(limits.keep_alive_ms),
        };
        let session = self.session(conn);
        session.version = VERSION;
        session.queue_depth = offer.queue_depth.clamp(1, limits.queue_depth);
        session.capsule_bytes =
            offer.capsule_bytes.max(CAPSULE_BYTES_MIN as u32).min(limits.capsule_bytes);
        session.features = offer.features & features::ALL;
        session.keep_alive_us = u64::from(wished_ms) * 1000;
        session.state = State::AwaitAuth;
        let depth = usize::from(session.queue_depth);
        if session.slots.len() < depth {
            session.slots.resize_with(depth, Default::default);
        }
        if reaches_memory {
            session.slots.iter_mut().for_each(Slot::reserve);
        }
        self.actions.push(Action::Welcome(conn));
        Ok(())
    }

    fn admit(&mut self, conn: ConnId, pdu: &[u8]) -> Result<(), DecodeError> {
        let (method, bytes) = Auth::parse(pdu, PduType::Auth)?;
        if method != Auth::NONE || !bytes.is_empty() {
            self.counters.refused += 1;
            self.dismiss(conn, GoAwayReason::Auth);
            return Ok(());
        }
        self.session(conn).state = State::Ready;
        self.send(conn, Auth::none(PduType::AuthAck).as_bytes());
        Ok(())
    }
}

// Commands.
impl Core {
    /// Takes a command; refusals that are no violation are answered here.
    fn take<B>(
        &mut self,
        conn: ConnId,
        pdu: &[u8],
        service: &mut impl Service<B>,
    ) -> Result<(), DecodeError> {
        let node = self.node(conn, 0);
        let Self { sessions, deadlines, counters, welcome, now_us, .. } = self;
        let session = &mut sessions[usize::from(conn.slot)];
        let capsule = session.check(pdu, welcome.fragments_max)?;
        let cid = capsule.command.header.cid.get();
        counters.bytes_in += pdu.len() as u64;
        if let Some(status) = session.turn_away(&capsule) {
            counters.turned_away += u64::from(status != Status::Unsupported);
            self.respond(conn, cid, status);
            return Ok(());
        }
        let wished_us = match capsule.command.timeout_us.get() {
            0 => welcome.timeout_max_us,
            wished_us => wished_us.min(welcome.timeout_max_us),
        };
        let deadline_us = *now_us + u64::from(wished_us);
        deadlines.set(node + u32::from(cid), deadline_us);
        counters.requests += 1;
        session.active += 1;
        let slot = &mut session.slots[usize::from(cid)];
        slot.generation = slot.generation.wrapping_add(1);
        slot.active = true;
        slot.note(&capsule);
        let id = RequestId { conn, cid, generation: slot.generation };
        self.active += 1;
        service.request(id, &capsule, deadline_us);
        Ok(())
    }

    fn respond(&mut self, conn: ConnId, cid: u16, status: Status) {
        let outcome = Outcome::bare(cid, status, self.session(conn).queue_depth);
        self.counters.responses += 1;
        self.counters.bytes_out += size_of::<Response>() as u64;
        self.send(conn, Response::new(&outcome).as_bytes());
    }

    /// The service has answered `id`. `None`: nothing is to be sent. Otherwise the client's credits.
    pub(super) fn answered(&mut self, id: RequestId) -> Option<u16> {
        let session = self.session(id.conn);
        if session.active_slot(id).is_none() {
            session.zombies = session.zombies.saturating_sub(1);
            self.zombies = self.zombies.saturating_sub(1);
            return None;
        }
        let credit_limit = session.queue_depth;
        self.release(id.conn, id.cid);
        Some(credit_limit)
    }

    /// A command is no longer in flight.
    #[inline]
    fn release(&mut self, conn: ConnId, cid: u16) {
        let (node, now_us) = (self.node(conn, cid), self.now_us);
        self.active -= 1;
        let session = self.session(conn);
        session.active -= 1;
        let left = session.state == State::Leaving && session.active == 0;
        let slot = &mut session.slots[usize::from(cid)];
        slot.active = false;
        if slot.pulling {
            // The client still owes the DATA: so long does its buffer wait.
            let owed_us = now_us + session.keep_alive_us;
            self.deadlines.set(node, owed_us);
        } else {
            self.deadlines.remove(node);
        }
        if left {
            self.session(conn).state = State::Closing;
            self.actions.push(Action::Close(conn));
        }
    }

    /// Ends a command without the service, which learns of it.
    fn abandon<B>(&mut self, conn: ConnId, cid: u16, why: Status, service: &mut impl Service<B>) {
        self.zombies += 1;
        let session = self.session(conn);
        session.zombies += 1;
        let id = session.request_id(cid, session.slots[usize::from(cid)].generation);
        if why != Status::Disconnected {
            self.respond(conn, cid, why);
        }
        self.release(conn, cid);
        service.abandoned(id, why);
    }

    fn cancel<B>(
        &mut self,
        conn: ConnId,
        pdu: &[u8],
        service: &mut impl Service<B>,
    ) -> Result<(), DecodeError> {
        let cid = Cancel::parse(pdu)?;
        let session = self.session(conn);
        if cid >= session.queue_depth {
            return Err(DecodeError::Field("cid past the queue depth"));
        }
        if session.slots[usize::from(cid)].active {
            self.counters.cancelled += 1;
            self.abandon(conn, cid, Status::Cancelled, service);
        }
        Ok(())
    }
}

// What the transport reports.
impl Core {
    pub(super) fn connected(&mut self, conn: ConnId) {
        let (now_us, keep_alive_us) = (self.now_us, u64::from(self.limits.keep_alive_ms) * 1000);
        self.counters.connections += 1;
        self.counters.connections_open += 1;
        self.next_sweep_us = self.next_sweep_us.min(now_us + keep_alive_us);
        self.session(conn).begin(conn, keep_alive_us, now_us);
        if self.draining {
            self.dismiss(conn, GoAwayReason::Drain);
        }
    }

    pub(super) fn pdu<B>(
        &mut self,
        conn: ConnId,
        pdu: &[u8],
        service: &mut impl Service<B>,
    ) -> Result<(), DecodeError> {
        let now_us = self.now_us;
        let Some(session) = self.live(conn) else { return Ok(()) };
        session.heard_us = now_us;
        let pdu_type = pdu.first().and_then(|first| PduType::from_wire(*first));
        match session.state.step(pdu_type.ok_or(DecodeError::Type)?) {
            Step::Greet => self.greet(conn, pdu),
            Step::Admit => self.admit(conn, pdu),
            Step::Take | Step::Refuse => self.take(conn, pdu, service),
            Step::Cancel => self.cancel(conn, pdu, service),
            Step::Pong => {
                let nonce = Ping::parse(pdu, PduType::Ping)?;
                self.send(conn, Ping::new(PduType::Pong, nonce).as_bytes());
                Ok(())
            }
            Step::Leave => self.leave(conn, pdu),
            Step::Note | Step::Ignore => Ok(()),
            Step::Violation => Err(DecodeError::Type),
        }
    }

    fn leave(&mut self, conn: ConnId, pdu: &[u8]) -> Result<(), DecodeError> {
        GoAway::parse(pdu)?;
        let session = self.session(conn);
        session.state = State::Leaving;
        if session.active == 0 {
            session.state = State::Closing;
            self.actions.push(Action::Close(conn));
        }
        Ok(())
    }

    /// Which command a pull was for; its memory is no longer awaited.
    pub(super) fn pulled(&mut self, conn: ConnId, cid: u16, complete: bool) -> RequestId {
        let (node, now_us) = (self.node(conn, cid), self.now_us);
        let session = self.session(conn);
        assert!(session.conn == conn, "a pull outlived its connection");
        let slot = &mut session.slots[usize::from(cid)];
        slot.pulling = false;
        let (active, id) = (slot.active, RequestId { conn, cid, generation: slot.pull_generation });
        let length = if complete { slot.source().length() } else { 0 };
        if complete {
            session.heard_us = now_us;
            self.counters.bytes_in += u64::from(length);
        }
        if !active {
            self.deadlines.remove(node);
        }
        id
    }

    pub(super) fn closed<B>(
        &mut self,
        conn: ConnId,
        reason: CloseReason,
        service: &mut impl Service<B>,
    ) {
        let Some(session) = self.live(conn) else { return };
        let depth = session.queue_depth;
        session.state = State::Closing;
        self.counters.connections_open -= 1;
        if let CloseReason::Protocol(what) = reason {
            self.counters.protocol_errors += 1;
            log::info!("connection {}.{}: protocol error: {what}", conn.slot, conn.generation);
        } else {
            log::debug!("connection {}.{}: {reason}", conn.slot, conn.generation);
        }
        for cid in 0..depth {
            if self.session(conn).slots[usize::from(cid)].active {
                self.counters.disconnected += 1;
                self.abandon(conn, cid, Status::Disconnected, service);
            }
            let node = self.node(conn, cid);
            self.deadlines.remove(node);
        }
        self.session(conn).state = State::Vacant;
    }
}

// The clock.
impl Core {
    /// Answers the commands whose deadline has passed, and gives up the clients that owe DATA.
    pub(super) fn expire<B>(&mut self, service: &mut impl Service<B>) {
        while let Some(node) = self.deadlines.expired(self.now_us) {
            let (slot, cid) = ((node / self.stride) as usize, (node % self.stride) as u16);
            let conn = self.sessions[slot].conn;
            if self.sessions[slot].slots[usize::from(cid)].active {
                self.counters.timeouts += 1;
                self.abandon(conn, cid, Status::Timeout, service);
            } else if self.sessions[slot].state != State::Closing {
                self.counters.protocol_errors += 1;
                self.dismiss(conn, GoAwayReason::Protocol);
            }
        }
    }

    /// Asks silent peers, and closes those that stay silent.
    pub(super) fn sweep(&mut self) {
        if self.now_us < self.next_sweep_us {
            return;
        }
        let mut next_us = u64::MAX;
        for index in 0..self.sessions.len() {
            if let Some(due_us) = self.attend(index) {
                next_us = next_us.min(due_us);
            }
        }
        // Many sessions with as many times would be swept all the time.
        self.next_sweep_us = next_us.max(self.now_us + 1000);
        if next_us == u64::MAX {
            self.next_sweep_us = u64::MAX;
        }
    }

    /// Looks after the keep-alive of one session; when it has to be looked at again.
    fn attend(&mut self, index: usize) -> Option<u64> {
        let now_us = self.now_us;
        let Session { conn, keep_alive_us, heard_us, pinged_us, began_us, state, .. } =
            self.sessions[index];
        let end_us = match state {
            State::Vacant | State::Closing => return None,
            State::AwaitHello | State::AwaitAuth => began_us + keep_alive_us,
            State::Ready | State::Draining | State::Leaving => {
                heard_us + KEEP_ALIVES_MAX * keep_alive_us
            }
        };
        if now_us >= end_us {
            self.counters.silent += 1;
            self.dismiss(conn, GoAwayReason::KeepAlive);
            return None;
        }
        let ping_us = heard_us.max(pinged_us) + keep_alive_us;
        if matches!(state, State::AwaitHello | State::AwaitAuth) || now_us < ping_us {
            return Some(end_us.min(ping_us));
        }
        self.sessions[index].pinged_us = now_us;
        self.send(conn, Ping::new(PduType::Ping, now_us).as_bytes());
        Some(end_us.min(now_us + keep_alive_us))
    }

    pub(super) fn drain(&mut self) {
        self.draining = true;
        for index in 0..self.sessions.len() {
            let Session { conn, state, .. } = self.sessions[index];
            match state {
                State::AwaitHello | State::AwaitAuth => self.dismiss(conn, GoAwayReason::Drain),
                State::Ready => {
                    self.sessions[index].state = State::Draining;
                    self.send(conn, GoAway::new(GoAwayReason::Drain).as_bytes());
                }
                State::Vacant | State::Draining | State::Leaving | State::Closing => {}
            }
        }
    }

    pub(super) fn next_deadline_us(&self) -> Option<u64> {
        let sweep_us = Some(self.next_sweep_us).filter(|at_us| *at_us != u64::MAX);
        [self.deadlines.next_us(), sweep_us].into_iter().flatten().min()
    }
}
