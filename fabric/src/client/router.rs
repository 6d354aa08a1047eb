//! Links to every reactor, and which of them carries what: routing, deadlines, replay.
//!
//! Knows no socket and no clock: a driver passes streams and the time in. What is guaranteed is in
//! the module above; how a command that is not answered goes on is one table:
//!
//! | what happened                         | anything else               | abort, delete checkpoint |
//! |---------------------------------------|-----------------------------|--------------------------|
//! | not sent yet, connection lost         | sent on the next connection | the same                 |
//! | sent, connection lost                 | sent again, same token      | `Disconnected`           |
//! | answered `Busy` or `ShuttingDown`     | sent again                  | the same                 |
//! | answered `WrongReactor`               | sent there (thrice at most) | the answer               |
//! | deadline passed                       | `Timeout`, and a CANCEL     | the same                 |
//! | deadline passed while disconnected    | `Disconnected` if ever sent, else `Timeout` | the same |

mod connections;
mod reclaim;

pub(super) use connections::{Peer, Rewired};

use super::ClientConfig;
use super::address::Address;
use super::batch::{Groups, Limits, refuse_fragments};
use super::data::Data;
use super::error::{ClientError, LinkError};
use super::link::{Answer, Context, Settings};
use super::operation::{Buffers, OpId, Operations, Sizes, State, writes};
use super::request::{Body, Done, Request, Target, Ticket};
use super::stream::Stream;
use crate::Status;
use crate::pdu::{
    CAPSULE_BYTES_MAX, CAPSULE_BYTES_MIN, FRAGMENTS_MAX, KEY_BYTES, Offer, Opcode, QUEUE_DEPTH_MAX,
    VERSION, Welcome, features,
};
use crate::region::Fragment;
use crate::route::shard_of;
use std::collections::VecDeque;

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
    /// Receive buffers that had to be made or enlarged; stands still when each [`Done`] is recycled.
    pub fresh_buffers: u64,
    /// Bytes handed to the network.
    pub sent_bytes: u64,
    /// Bytes that came from the network.
    pub received_bytes: u64,
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
    fatal: Option<(Address, LinkError)>,
    counters: ClientCounters,
}

/// Bytes of all `fragments`; more than any value has stay more than that.
fn bytes_of(fragments: &[Fragment]) -> u32 {
    fragments.iter().fold(0, |sum, fragment| sum.saturating_add(fragment.len()))
}

impl Router {
    pub(super) fn new(config: ClientConfig) -> Result<Self, ClientError> {
        let addresses = config.addresses.len() as u64;
        if addresses == 0 {
            return Err(ClientError::NoAddress);
        }
        let mut rng = fastrand::Rng::with_seed(config.seed);
        let offer = Offer {
            versions: VERSION..=VERSION,
            features: features::ALL,
            client_id: rng.u128(..).to_le_bytes(),
            queue_depth: config.queue_depth.clamp(1, QUEUE_DEPTH_MAX),
            capsule_bytes: config
                .capsule_bytes
                .clamp(CAPSULE_BYTES_MIN as u32, CAPSULE_BYTES_MAX as u32),
            keep_alive_ms: config.keep_alive_ms,
        };
        let settings = Settings {
            offer,
            // An address where nobody answers leaves the others time.
            handshake_us: u64::from(config.connect_timeout_ms) * 1000 / addresses,
            receive_buffer_bytes: config.receive_buffer_bytes.max(RECEIVE_BYTES_MIN),
        };
        Ok(Self {
            token_next: rng.u64(..) << TOKEN_COUNTER_BITS,
            peers: vec![Peer::new(Vec::new(), &settings)],
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
        ClientCounters { fresh_buffers: self.buffers.fresh, ..self.counters }
    }

    /// Requests whose [`Done`] has not been taken.
    pub(super) fn in_flight(&self) -> usize {
        self.pending + self.finished.len()
    }

    pub(super) fn window(&self) -> usize {
        self.peers.iter().map(|peer| peer.link.depth()).sum()
    }

    pub(super) fn reactor_of(&self, namespace: u32, key: &[u8]) -> usize {
        let Some(welcome) = self.welcome.as_ref().filter(|welcome| welcome.reactors > 1) else {
            return 0;
        };
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
        let (key, offset, wanted) = match &request.body {
            Body::One { key, offset, length, .. } => (*key, *offset, *length),
            Body::Fragments { key, offset, fragments } => (*key, *offset, bytes_of(fragments)),
            _ => return self.submit_batch(request, now_us),
        };
        let link = self.link_for(request.target, request.namespace.0, key);
        if link.is_some_and(|link| !self.peers[link].has_room()) {
            return Err(request);
        }
        let ticket = self.next_ticket();
        let refused = match link {
            None => Some(Status::Malformed),
            Some(_) if self.fatal.is_some() => Some(Status::Disconnected),
            Some(_) => self.refuse_single(&request, key),
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
        op.offset = offset;
        op.keys.extend_from_slice(key);
        match &request.body {
            Body::Fragments { fragments, .. } => op.set_fragments(fragments, request.data_crc),
            Body::One { data, .. } if data.is_empty() => {}
            Body::One { data, .. } => op.set_value(data.clone(), request.data_crc),
            _ => unreachable!("batches were submitted above"),
        }
        let sizes = Sizes::of(request.opcode, op.value_bytes, wanted, &self.limits);
        (op.data_length, op.answer_bytes_max) = (sizes.data_length, sizes.answer_bytes_max);
        self.enqueue(id, link.unwrap_or_default());
        Ok(ticket)
    }

    fn refuse_single(&self, request: &Request<'_>, key: &[u8]) -> Option<Status> {
        let (bytes, fragments) = match &request.body {
            Body::One { data, .. } => (data.len(), [].as_slice()),
            Body::Fragments { fragments, .. } => (bytes_of(fragments) as usize, *fragments),
            _ => return None,
        };
        if fragments.len() > FRAGMENTS_MAX {
            return Some(Status::Malformed);
        }
        let sent = if request.opcode.sends_data() { bytes } else { 0 };
        let refused = self.refuse(request.opcode, key, sent);
        let knows_crc = request.data_crc.is_some();
        refused.or_else(|| refuse_fragments(request.opcode, fragments, knows_crc))
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

    /// Sends what there is to send, with one write. `true` if anything left.
    pub(super) fn write<S: Stream>(&mut self, index: usize, stream: &mut S, now_us: u64) -> bool {
        self.dispatch(index, stream, now_us);
        match self.peers[index].link.write(stream, now_us) {
            Ok(count) => {
                self.counters.sent_bytes += count as u64;
                count > 0
            }
            Err(error) => self.lost(index, now_us, error),
        }
    }

    fn dispatch(&mut self, index: usize, stream: &mut impl Stream, now_us: u64) {
        let peer = &mut self.peers[index];
        if now_us < peer.resume_at_us {
            return;
        }
        let mut unreached = None;
        while unreached.is_none()
            && peer.link.can_send()
            && let Some(id) = peer.backlog.pop_front()
        {
            let sent = peer.link.send_command(id, &mut self.ops, stream, now_us);
            unreached = sent.err().map(|error| (id, error));
        }
        if let Some((id, error)) = unreached {
            log::warn!("an operation's memory cannot be used: {error}");
            self.conclude_with(id, Status::Memory);
            self.ops.release(id);
            self.dispatch(index, stream, now_us);
        }
    }

    /// Takes in what has arrived, with one read. `true` if anything had.
    pub(super) fn read<S: Stream>(&mut self, index: usize, stream: &mut S, now_us: u64) -> bool {
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
            self.peers[index].paths.ready(now_us);
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

    fn retry(&mut self, id: OpId, link: usize, data: Data) {
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
        (done.length, done.unchecked_crc) = (answer.length(), answer.unchecked_crc());
        done.data = answer.data;
        self.deliver(done);
        Ok(())
    }

    /// Ends an operation that has no answer.
    pub(super) fn conclude_with(&mut self, id: OpId, status: Status) {
        let (result, has_items, data_crc, data, landed) = (0, false, 0, Data::default(), None);
        let answer = Answer { op: id, status, result, has_items, data_crc, data, landed };
        let concluded = self.conclude(id, answer);
        debug_assert!(concluded.is_ok(), "there is nothing in it to be wrong");
    }

    pub(super) fn deliver(&mut self, done: Done) {
        self.pending -= 1;
        self.finished.push_back(done);
    }

    // ---- time -------------------------------------------------------------------------------

    /// Ends what is over its deadline, and connections that are silent.
    pub(super) fn tick(&mut self, now_us: u64) {
        for index in 0..self.peers.len() {
            let peer = &mut self.peers[index];
            if peer.paths.goes_back(now_us) {
                peer.link.drain();
            }
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
            peer.link.next_tick_us().min(retry_us).min(resume_us).min(peer.paths.next_us())
        });
        peers.min().unwrap_or(u64::MAX).min(self.next_deadline_us)
    }

    // ---- what the driver asks ---------------------------------------------------------------

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

    pub(super) fn recycle(&mut self, done: Done) {
        self.buffers.give(done.data);
        self.groups.give(done.items, done.parts, &mut self.buffers);
    }
}
