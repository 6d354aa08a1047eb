//! Links to every reactor, and which of them carries what: routing, deadlines, replay.
//!
//! Knows no socket and no clock: a driver passes streams and the time in. What is guaranteed is in
//! the module above; how a command that is not answered goes on is one table:
//!
//! | what happened                         | reads, stores, deletes, PUT | other commands          |
//! |---------------------------------------|-----------------------------|-------------------------|
//! | not sent yet, connection lost         | sent on the next connection | the same                |
//! | sent, connection lost                 | sent again, same token      | `Disconnected`          |
//! | answered `Busy` or `ShuttingDown`     | sent again                  | sent again              |
//! | answered `WrongReactor`               | sent there (thrice at most) | the answer              |
//! | deadline passed                       | `Timeout`, and a CANCEL     | the same                |
//! | deadline passed while disconnected    | `Disconnected` if ever sent, else `Timeout` | the same |

use super::ClientConfig;
use super::batch::{Groups, Limits};
use super::error::{ClientError, LinkError};
use super::link::{Answer, Context, Link, Settings};
use super::operation::{Buffers, OpId, Operation, Operations, State};
use super::request::{Body, Done, NamespaceId, Request, Target, Ticket};
use crate::Status;
use crate::pdu::{
    CAPSULE_BYTES_MAX, CAPSULE_BYTES_MIN, KEY_BYTES, Offer, Opcode, QUEUE_DEPTH_MAX, VALUE_BYTES_MAX, VERSION,
    Welcome, crc32c, features,
};
use crate::route::shard_of;
use bytes::Bytes;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::SocketAddr;

/// The first pause before connecting again, in microseconds; it doubles with every failure.
const BACKOFF_FIRST_US: u64 = 10_000;
/// The longest pause, in microseconds.
const BACKOFF_LONGEST_US: u64 = 1_000_000;
/// How long a link sends nothing after the server was busy, in microseconds.
const BUSY_PAUSE_US: u64 = 1_000;
/// How often one command follows a redirection.
const REDIRECTS_MAX: u8 = 3;
/// The receive buffer holds the longest HELLO_ACK.
const RECEIVE_BYTES_MIN: usize = 128 << 10;
/// Bits of a token that count; the others name the client.
const TOKEN_COUNTER_BITS: u32 = 40;

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCounters {
    /// Connections that were established.
    pub connections: u64,
    /// Connections, and attempts at one, that failed.
    pub connection_errors: u64,
    /// Commands that were sent again on another connection.
    pub replays: u64,
    /// Commands that were sent again because the server was busy, draining, or another one.
    pub retries: u64,
    /// Commands that ended at their deadline.
    pub timeouts: u64,
    /// Bytes handed to the network.
    pub sent_bytes: u64,
    /// Bytes that came from the network.
    pub received_bytes: u64,
}

/// The link to one reactor, and what waits for it.
#[derive(Debug)]
pub(super) struct Peer {
    pub link: Link,
    address: SocketAddr,
    pub backlog: VecDeque<OpId>,
    /// Failures since the link was last up.
    failures: u32,
    retry_at_us: u64,
    /// The server was busy: nothing is sent before this.
    resume_at_us: u64,
    /// Where the last connection was, and why it ended.
    error: Option<(SocketAddr, LinkError)>,
}

impl Peer {
    fn new(address: SocketAddr, settings: &Settings) -> Self {
        Self {
            link: Link::new(settings.clone()),
            address,
            backlog: VecDeque::with_capacity(usize::from(settings.offer.queue_depth)),
            failures: 0,
            retry_at_us: 0,
            resume_at_us: 0,
            error: None,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.link.in_flight() + self.backlog.len() < self.link.depth()
    }
}

/// The links were made anew: the stream of link `from` now is that of link `to`; all others are gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rewired {
    pub from: usize,
    pub to: usize,
    pub links: usize,
}

#[derive(Debug)]
pub(super) struct Router {
    config: ClientConfig,
    settings: Settings,
    rng: fastrand::Rng,
    token_next: u64,
    ticket_next: u64,
    /// What the server said last; `None` until the first handshake.
    welcome: Option<Box<Welcome>>,
    pub(super) limits: Limits,
    pub(super) peers: Vec<Peer>,
    pub(super) ops: Operations,
    pub(super) groups: Groups,
    pub(super) buffers: Buffers,
    answers: Vec<Answer>,
    orphans: Vec<OpId>,
    finished: VecDeque<Done>,
    /// Tickets that have not ended.
    pending: usize,
    /// No deadline passes before this.
    next_deadline_us: u64,
    rewired: Option<Rewired>,
    fatal: Option<(SocketAddr, LinkError)>,
    counters: ClientCounters,
}

impl Router {
    pub(super) fn new(config: ClientConfig) -> Result<Self, ClientError> {
        let first = *config.addresses.first().ok_or(ClientError::NoAddress)?;
        let mut rng = fastrand::Rng::with_seed(config.seed);
        let offer = Offer {
            versions: VERSION..=VERSION,
            features: features::ALL,
            client_id: rng.u128(..).to_le_bytes(),
            queue_depth: config.queue_depth.clamp(1, QUEUE_DEPTH_MAX),
            capsule_bytes: config.capsule_bytes.clamp(CAPSULE_BYTES_MIN as u32, CAPSULE_BYTES_MAX as u32),
            keep_alive_ms: config.keep_alive_ms,
        };
        let settings = Settings {
            offer,
            handshake_us: u64::from(config.connect_timeout_ms) * 1000,
            receive_buffer_bytes: config.receive_buffer_bytes.max(RECEIVE_BYTES_MIN),
        };
        Ok(Self {
            token_next: rng.u64(..) << TOKEN_COUNTER_BITS,
            peers: vec![Peer::new(first, &settings)],
            config,
            settings,
            rng,
            ticket_next: 0,
            welcome: None,
            limits: Limits::default(),
            ops: Operations::default(),
            groups: Groups::default(),
            buffers: Buffers::default(),
            answers: Vec::new(),
            orphans: Vec::new(),
            finished: VecDeque::new(),
            pending: 0,
            next_deadline_us: u64::MAX,
            rewired: None,
            fatal: None,
            counters: ClientCounters::default(),
        })
    }

    pub(super) fn welcome(&self) -> Option<&Welcome> {
        self.welcome.as_deref()
    }

    pub(super) fn counters(&self) -> ClientCounters {
        self.counters
    }

    /// Requests whose [`Done`] has not been taken.
    pub(super) fn in_flight(&self) -> usize {
        self.pending + self.finished.len()
    }

    pub(super) fn window(&self) -> usize {
        self.peers.iter().map(|peer| peer.link.depth()).sum()
    }

    pub(super) fn reactor_of(&self, namespace: u32, key: &[u8]) -> usize {
        let Some(welcome) = &self.welcome else { return 0 };
        let shards = welcome.shard_map.len() as u32;
        let shard = shard_of(&welcome.pool, namespace, key, shards);
        welcome.shard_map[shard as usize].into()
    }

    pub(super) fn next_token(&mut self) -> u64 {
        let (low, high) = (self.token_next.wrapping_add(1), self.token_next);
        let mask = (1 << TOKEN_COUNTER_BITS) - 1;
        self.token_next = (high & !mask) | (low & mask);
        self.token_next.max(1)
    }

    pub(super) fn next_ticket(&mut self) -> Ticket {
        self.ticket_next += 1;
        self.pending += 1;
        Ticket(self.ticket_next)
    }

    pub(super) fn deadline_us(&mut self, timeout_us: u32, now_us: u64) -> u64 {
        let timeout_us = if timeout_us == 0 { self.config.timeout_us } else { timeout_us };
        let deadline_us = now_us.saturating_add(timeout_us.into());
        self.next_deadline_us = self.next_deadline_us.min(deadline_us);
        deadline_us
    }

    // ---- submitting -------------------------------------------------------------------------

    /// Takes a request in, or gives it back if a link that it needs has no room.
    pub(super) fn submit<'a>(
        &mut self,
        request: Request<'a>,
        now_us: u64,
    ) -> Result<Ticket, Request<'a>> {
        let Body::One { key, offset, length, data } = &request.body else {
            return self.submit_batch(request, now_us);
        };
        let link = self.link_for(request.target, request.namespace.0, key);
        if link.is_some_and(|link| !self.peers[link].has_room()) {
            return Err(request);
        }
        let ticket = self.next_ticket();
        let refused = match link {
            None => Some(Status::Malformed),
            Some(_) if self.fatal.is_some() => Some(Status::Disconnected),
            Some(_) => self.refuse(request.opcode, key, data.len()),
        };
        if let Some(status) = refused {
            self.deliver(Done::single(ticket, request.tag, status));
            return Ok(ticket);
        }
        let deadline_us = self.deadline_us(request.timeout_us, now_us);
        let token = if writes(request.opcode) { self.next_token() } else { 0 };
        let id = self.ops.take();
        let op = &mut self.ops[id];
        op.begin(request.opcode, request.target, request.namespace, deadline_us);
        (op.ticket, op.tag, op.token) = (ticket, request.tag, token);
        op.offset = *offset;
        op.keys.extend_from_slice(key);
        let sizes = Sizes::of(request.opcode, data.len() as u32, *length, &self.limits);
        (op.data_length, op.answer_bytes_max) = (sizes.data_length, sizes.answer_bytes_max);
        op.set_value(data.clone());
        self.enqueue(id, link.unwrap_or_default());
        Ok(ticket)
    }

    fn link_for(&self, target: Target, namespace: u32, key: &[u8]) -> Option<usize> {
        let link = match target {
            Target::Key => self.reactor_of(namespace, key),
            Target::Reactor(reactor) => reactor.into(),
            Target::Catalog => self.welcome.as_ref().map_or(0, |w| w.catalog_reactor.into()),
        };
        (link < self.peers.len()).then_some(link)
    }

    /// What the server would refuse anyway, and what could not be encoded.
    pub(super) fn refuse(&self, opcode: Opcode, key: &[u8], value_bytes: usize) -> Option<Status> {
        let needs_key =
            matches!(opcode, Opcode::Store | Opcode::Retrieve | Opcode::Delete | Opcode::Exist);
        if key.len() > *KEY_BYTES.end() || (needs_key && key.is_empty()) {
            return Some(Status::KeyLength);
        }
        (value_bytes > self.limits.value_bytes_max as usize).then_some(Status::ValueLength)
    }

    /// Into the backlog of `link`; it leaves when the link next has credit.
    pub(super) fn enqueue(&mut self, id: OpId, link: usize) {
        self.ops[id].state = State::Queued;
        self.ops[id].link = link as u16;
        self.peers[link].backlog.push_back(id);
    }

    fn enqueue_first(&mut self, id: OpId, link: usize) {
        self.ops[id].state = State::Queued;
        self.ops[id].link = link as u16;
        self.peers[link].backlog.push_front(id);
    }

    // ---- one link's turn --------------------------------------------------------------------

    /// The address that link `index` should be connected to now, if it should.
    pub(super) fn wants_connection(&self, index: usize, now_us: u64) -> Option<SocketAddr> {
        let peer = &self.peers[index];
        if !peer.link.is_closed() || now_us < peer.retry_at_us || self.fatal.is_some() {
            return None;
        }
        Some(self.address(index))
    }

    /// The reactor's own address, and every other time after repeated failure one of those that
    /// were configured: the server may have moved.
    fn address(&self, index: usize) -> SocketAddr {
        let peer = &self.peers[index];
        let failures = peer.failures as usize;
        let known = &self.config.addresses;
        if self.welcome.is_none() {
            known[failures % known.len()]
        } else if failures >= 2 && failures.is_multiple_of(2) {
            known[failures / 2 % known.len()]
        } else {
            peer.address
        }
    }

    pub(super) fn opened(&mut self, index: usize, now_us: u64) {
        self.peers[index].link.open(now_us);
    }

    /// Sends what there is to send, with one write. `true` if anything left.
    pub(super) fn write<W: Write>(&mut self, index: usize, stream: &mut W, now_us: u64) -> bool {
        self.dispatch(index, now_us);
        match self.peers[index].link.write(stream, now_us) {
            Ok(count) => {
                self.counters.sent_bytes += count as u64;
                count > 0
            }
            Err(error) => self.lost(index, now_us, error),
        }
    }

    fn dispatch(&mut self, index: usize, now_us: u64) {
        let peer = &mut self.peers[index];
        if now_us < peer.resume_at_us {
            return;
        }
        while peer.link.can_send()
            && let Some(id) = peer.backlog.pop_front()
        {
            peer.link.send_command(id, &mut self.ops, now_us);
        }
    }

    /// Takes in what has arrived, with one read. `true` if anything had.
    pub(super) fn read<R: Read>(&mut self, index: usize, stream: &mut R, now_us: u64) -> bool {
        let mut context = Context {
            ops: &mut self.ops,
            buffers: &mut self.buffers,
            answers: &mut self.answers,
            now_us,
        };
        let link = &mut self.peers[index].link;
        let was_ready = link.is_ready();
        let outcome = link.read(stream, &mut context);
        if link.is_ready() && !was_ready {
            self.counters.connections += 1;
            self.peers[index].failures = 0;
        }
        let settled = self.settle_all(index, now_us);
        let outcome = outcome.and_then(|count| settled.map(|()| count));
        let outcome = outcome.and_then(|count| self.greet(index).map(|()| count));
        match outcome {
            Ok(count) => {
                self.counters.received_bytes += count as u64;
                count > 0
            }
            Err(error) => self.lost(index, now_us, error),
        }
    }

    fn settle_all(&mut self, index: usize, now_us: u64) -> Result<(), LinkError> {
        let mut answers = std::mem::take(&mut self.answers);
        let mut outcome = Ok(());
        for answer in answers.drain(..) {
            outcome = outcome.and(self.settle(index, answer, now_us));
        }
        self.answers = answers;
        outcome
    }

    /// One answer: ends its operation, or sends it elsewhere or again.
    fn settle(&mut self, index: usize, answer: Answer, now_us: u64) -> Result<(), LinkError> {
        let id = answer.op;
        if matches!(self.ops[id].state, State::Ended(_)) {
            self.ops.release(id);
            self.buffers.give(answer.data);
            return Ok(());
        }
        match answer.status {
            Status::Busy => {
                let pause_us = BUSY_PAUSE_US + self.rng.u64(0..BUSY_PAUSE_US);
                self.peers[index].resume_at_us = now_us + pause_us;
                self.retry(id, index, answer.data);
            }
            Status::ShuttingDown => {
                self.peers[index].link.drain();
                self.retry(id, index, answer.data);
            }
            Status::WrongReactor if self.can_redirect(id, answer.result) => {
                self.ops[id].redirects += 1;
                self.retry(id, answer.result as usize, answer.data);
            }
            _ => {
                let outcome = self.conclude(id, answer);
                self.ops.release(id);
                return outcome;
            }
        }
        Ok(())
    }

    fn can_redirect(&self, id: OpId, reactor: u64) -> bool {
        let op = &self.ops[id];
        op.target == Target::Key
            && op.items.is_empty()
            && op.redirects < REDIRECTS_MAX
            && reactor < self.peers.len() as u64
            && reactor != u64::from(op.link)
    }

    fn retry(&mut self, id: OpId, link: usize, data: Vec<u8>) {
        self.counters.retries += 1;
        self.buffers.give(data);
        self.enqueue_first(id, link);
    }

    /// Tells the caller how `answer.op` ended. The slot is left to whoever called.
    fn conclude(&mut self, id: OpId, answer: Answer) -> Result<(), LinkError> {
        let op = &self.ops[id];
        if op.is_part {
            return self.join(id, answer);
        }
        let mut done = Done::single(op.ticket, op.tag, answer.status);
        done.result = answer.result;
        done.data = answer.data;
        self.deliver(done);
        Ok(())
    }

    /// Ends an operation that has no answer.
    pub(super) fn conclude_with(&mut self, id: OpId, status: Status) {
        let (result, has_items, data_crc, data) = (0, false, 0, Vec::new());
        let answer = Answer { op: id, status, result, has_items, data_crc, data };
        let concluded = self.conclude(id, answer);
        debug_assert!(concluded.is_ok(), "there is nothing in it to be wrong");
    }

    pub(super) fn deliver(&mut self, done: Done) {
        self.pending -= 1;
        self.finished.push_back(done);
    }

    // ---- connections ------------------------------------------------------------------------

    /// After a HELLO_ACK: is this the server, and the reactor, that was meant?
    fn greet(&mut self, index: usize) -> Result<(), LinkError> {
        let Some(welcome) = self.peers[index].link.take_welcome() else { return Ok(()) };
        if let Some(known) = &self.welcome {
            if known.pool != welcome.pool {
                return Err(LinkError::OtherPool {
                    expected: hexadecimal(&known.pool),
                    found: hexadecimal(&welcome.pool),
                });
            }
            if is_same_house(known, &welcome) {
                let meant = usize::from(welcome.reactor) == index;
                return if meant { Ok(()) } else { Err(LinkError::OtherReactor) };
            }
            log::info!("the server's reactors or shard map have changed: connecting anew");
        }
        self.adopt(index, welcome);
        Ok(())
    }

    /// Makes the links that `welcome` asks for; the link it came on is kept, all others are lost.
    fn adopt(&mut self, from: usize, welcome: Box<Welcome>) {
        let reached = self.address(from).ip();
        let to = usize::from(welcome.reactor);
        self.limits = Limits::of(&welcome);
        let settings = &self.settings;
        let addresses = welcome.endpoints.iter().map(|endpoint| endpoint.socket_address(reached));
        let peers = addresses.map(|address| Peer::new(address, settings)).collect();
        let mut old = std::mem::replace(&mut self.peers, peers);
        self.welcome = Some(welcome);
        std::mem::swap(&mut self.peers[to].link, &mut old[from].link);
        self.rewired = Some(Rewired { from, to, links: self.peers.len() });
        let mut stray = Vec::new();
        for mut peer in old {
            peer.link.close(&mut self.buffers, |id| self.orphans.push(id));
            self.take_in_orphans(&mut stray);
            stray.extend(peer.backlog);
        }
        stray.into_iter().for_each(|id| self.reroute(id));
    }

    fn reroute(&mut self, id: OpId) {
        if !self.ops[id].items.is_empty() {
            return self.split_again(id);
        }
        let op = &self.ops[id];
        match self.link_for(op.target, op.namespace, &op.keys) {
            Some(link) => self.enqueue(id, link),
            None => {
                self.conclude_with(id, Status::Disconnected);
                self.ops.release(id);
            }
        }
    }

    /// What becomes of commands whose connection is gone: `queued` are to be sent again.
    fn take_in_orphans(&mut self, queued: &mut Vec<OpId>) {
        let mut orphans = std::mem::take(&mut self.orphans);
        for id in orphans.drain(..) {
            match self.ops[id].state {
                State::Ended(_) => self.ops.release(id),
                _ if self.ops[id].can_replay() => {
                    self.counters.replays += 1;
                    queued.push(id);
                }
                _ => {
                    self.conclude_with(id, Status::Disconnected);
                    self.ops.release(id);
                }
            }
        }
        self.orphans = orphans;
    }

    /// The connection of link `index` is gone, or could not be made. Always `true`: something
    /// happened.
    pub(super) fn lost(&mut self, index: usize, now_us: u64, error: LinkError) -> bool {
        let address = self.address(index);
        log::debug!("connection to {address} (reactor {index}): {error}");
        self.counters.connection_errors += 1;
        let peer = &mut self.peers[index];
        peer.link.close(&mut self.buffers, |id| self.orphans.push(id));
        let longest_us = (BACKOFF_FIRST_US << peer.failures.min(16)).min(BACKOFF_LONGEST_US);
        peer.retry_at_us = now_us + self.rng.u64(longest_us / 2..=longest_us);
        peer.failures = peer.failures.saturating_add(1);
        if error.is_fatal() {
            self.fatal.get_or_insert((address, error));
        } else {
            peer.error = Some((address, error));
        }
        let mut queued = Vec::new();
        self.take_in_orphans(&mut queued);
        queued.into_iter().rev().for_each(|id| self.enqueue_first(id, index));
        if self.fatal.is_some() {
            self.give_up();
        }
        true
    }

    /// Nothing can be sent any more: everything ends.
    fn give_up(&mut self) {
        for index in 0..self.peers.len() {
            let peer = &mut self.peers[index];
            peer.link.close(&mut self.buffers, |id| self.orphans.push(id));
            let mut stray = Vec::new();
            stray.extend(peer.backlog.drain(..));
            self.take_in_orphans(&mut stray);
            for id in stray {
                self.conclude_with(id, Status::Disconnected);
                self.ops.release(id);
            }
        }
    }

    // ---- time -------------------------------------------------------------------------------

    /// Ends what is over its deadline, and connections that are silent.
    pub(super) fn tick(&mut self, now_us: u64) {
        for index in 0..self.peers.len() {
            if let Err(error) = self.peers[index].link.tick(now_us) {
                self.lost(index, now_us, error);
            }
        }
        if now_us < self.next_deadline_us {
            return;
        }
        self.next_deadline_us = u64::MAX;
        for id in self.ops.ids() {
            let op = &self.ops[id];
            if !matches!(op.state, State::Queued | State::Sent(_)) {
                continue;
            }
            if op.deadline_us > now_us {
                self.next_deadline_us = self.next_deadline_us.min(op.deadline_us);
            } else {
                self.expire(id);
            }
        }
    }

    fn expire(&mut self, id: OpId) {
        self.counters.timeouts += 1;
        let op = &self.ops[id];
        let peer = &mut self.peers[usize::from(op.link)];
        match op.state {
            State::Sent(cid) => {
                peer.link.abandon(cid);
                self.conclude_with(id, Status::Timeout);
                self.ops[id].state = State::Ended(cid);
            }
            _ => {
                peer.backlog.retain(|&queued| queued != id);
                let unknown = op.was_sent && !peer.link.is_ready();
                self.conclude_with(
                    id,
                    if unknown { Status::Disconnected } else { Status::Timeout },
                );
                self.ops.release(id);
            }
        }
    }

    /// When [`Router::tick`] or a connection has something to do at the latest.
    pub(super) fn next_wake_us(&self) -> u64 {
        let peers = self.peers.iter().map(|peer| {
            if peer.link.has_output() && !peer.link.is_blocked() {
                return 0;
            }
            let retry_us = if peer.link.is_closed() { peer.retry_at_us } else { u64::MAX };
            let resume_us = if peer.backlog.is_empty() || !peer.link.can_send() {
                u64::MAX
            } else {
                peer.resume_at_us
            };
            peer.link.next_tick_us().min(retry_us).min(resume_us)
        });
        peers.min().unwrap_or(u64::MAX).min(self.next_deadline_us)
    }

    // ---- what the driver asks ---------------------------------------------------------------

    pub(super) fn take_rewired(&mut self) -> Option<Rewired> {
        self.rewired.take()
    }

    /// Ends that nobody has taken.
    pub(super) fn finished(&self) -> usize {
        self.finished.len()
    }

    pub(super) fn has_finished(&self, ticket: Ticket) -> bool {
        self.finished.iter().any(|done| done.ticket == ticket)
    }

    /// Moves what has ended to `done`; how many.
    pub(super) fn take_finished(&mut self, done: &mut Vec<Done>) -> usize {
        let count = self.finished.len();
        done.extend(self.finished.drain(..));
        count
    }

    /// The end of one request, if it has ended.
    pub(super) fn take_one(&mut self, ticket: Ticket) -> Option<Done> {
        let at = self.finished.iter().position(|done| done.ticket == ticket)?;
        self.finished.remove(at)
    }

    /// Nothing works any more, and [`Router::fatal`] says why.
    pub(super) fn is_hopeless(&self) -> bool {
        self.fatal.is_some()
    }

    /// Why nothing works any more, if so.
    pub(super) fn fatal(&self) -> Option<ClientError> {
        self.fatal.as_ref().map(|(address, error)| ClientError::Connect {
            address: *address,
            source: error.again(),
        })
    }

    /// Every reactor is connected.
    pub(super) fn is_connected(&self) -> bool {
        self.welcome.is_some() && self.peers.iter().all(|peer| peer.link.is_ready())
    }

    /// Why the first connecting has failed: all addresses were tried, or a reactor is out of reach.
    pub(super) fn take_first_error(&mut self) -> Option<ClientError> {
        let patience = if self.welcome.is_some() { 1 } else { self.config.addresses.len() };
        let index = self.peers.iter().position(|peer| peer.failures as usize >= patience)?;
        let (address, source) = self.peers[index].error.take()?;
        Some(ClientError::Connect { address, source })
    }

    /// The first connecting took too long.
    pub(super) fn too_slow(&self) -> ClientError {
        let index = self.peers.iter().position(|peer| !peer.link.is_ready()).unwrap_or(0);
        ClientError::Connect { address: self.address(index), source: LinkError::Handshake }
    }

    pub(super) fn recycle(&mut self, done: Done) {
        self.buffers.give(done.data);
        self.groups.give(done.items, done.parts, &mut self.buffers);
    }
}

/// Bytes of data that a command sends or asks for.
struct Sizes {
    data_length: u32,
    answer_bytes_max: u32,
}

impl Sizes {
    fn of(opcode: Opcode, sent_bytes: u32, asked_bytes: u32, limits: &Limits) -> Self {
        let asked_bytes = asked_bytes.min(limits.value_bytes_max);
        let (data_length, answer_bytes_max) = match opcode {
            Opcode::Store | Opcode::Delete | Opcode::Exist => (sent_bytes, 0),
            _ if sent_bytes > 0 => (sent_bytes, VALUE_BYTES_MAX as u32),
            Opcode::Retrieve
            | Opcode::List
            | Opcode::Namespaces
            | Opcode::Stats
            | Opcode::CheckpointList
            | Opcode::CheckpointManifest
            | Opcode::CheckpointRead => (asked_bytes, asked_bytes),
            _ => (0, VALUE_BYTES_MAX as u32),
        };
        Self { data_length, answer_bytes_max }
    }
}

impl Operation {
    /// Common to all operations that begin; what varies in size is empty.
    pub(super) fn begin(
        &mut self,
        opcode: Opcode,
        target: Target,
        namespace: NamespaceId,
        deadline_us: u64,
    ) {
        (self.opcode, self.target, self.namespace) = (opcode, target, namespace.0);
        self.deadline_us = deadline_us;
        (self.offset, self.data_length, self.data_crc, self.token) = (0, 0, 0, 0);
        (self.value_bytes, self.answer_bytes_max) = (0, 0);
        (self.was_sent, self.redirects, self.is_part) = (false, 0, false);
    }

    fn set_value(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.value_bytes = data.len() as u32;
            self.data_crc = crc32c(&data);
            self.values.push(data);
        }
    }
}

/// The command changes something, so that its replay has to be recognised.
pub(super) fn writes(opcode: Opcode) -> bool {
    !matches!(
        opcode,
        Opcode::Retrieve
            | Opcode::List
            | Opcode::Exist
            | Opcode::Namespaces
            | Opcode::Stats
            | Opcode::CheckpointList
            | Opcode::CheckpointManifest
            | Opcode::CheckpointRead
    )
}

/// The reactors are where they were, own what they owned, and take what they took.
fn is_same_house(old: &Welcome, new: &Welcome) -> bool {
    old.shard_map == new.shard_map
        && old.endpoints == new.endpoints
        && old.catalog_reactor == new.catalog_reactor
        && Limits::of(old) == Limits::of(new)
}

fn hexadecimal(bytes: &[u8; 16]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
