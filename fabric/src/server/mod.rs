//! The server's half of the protocol: sessions over one transport in one reactor.
//!
//! What a [`Service`] can rely on:
//!
//! * every [`Service::request`] is answered exactly once on the wire, by [`Server::reply`] or, past
//!   its deadline, after a CANCEL or when the peer is gone, by the server itself; then
//!   [`Service::abandoned`] says so, and the service's own reply is swallowed;
//! * every [`Server::pull`] ends in exactly one [`Service::pulled`];
//! * a stale [`RequestId`] does no harm;
//! * a peer that breaks the protocol loses its own connection and nothing else. It has at most
//!   `queue_depth` commands in flight, and as many more that were answered for the service and have
//!   not ended there; beyond that its commands are refused as busy.
//!
//! In the steady state nothing is allocated: commands live in slots made at the handshake.

mod core;
mod deadline;
mod door;
mod session;

use self::core::{Action, Core};
use self::door::Door;
use crate::Status;
use crate::pdu::{
    self, Capsule, Endpoint, FRAGMENTS_MAX, Outcome, QUEUE_DEPTH_MAX, RESPONSE_DATA_BYTES_MAX,
    Response, Welcome, response_flags,
};
use crate::transport::{ConnId, Payload, Payloads, Transport};

/// What a server grants, and what it tells its clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// The most commands in flight on one connection.
    pub queue_depth: u16,
    /// The largest capsule, in bytes.
    pub capsule_bytes: u32,
    /// The longest that a connection may be silent before the peer is asked, in milliseconds.
    pub keep_alive_ms: u32,
    /// The longest deadline of a command, in microseconds.
    pub timeout_max_us: u32,
    /// The transport's most connections: its `ConnId`s have slots below this.
    pub connections_max: u16,
    /// The pool's UUID.
    pub pool: [u8; 16],
    /// This start of the server.
    pub incarnation: [u8; 16],
    /// This reactor.
    pub reactor: u16,
    /// The reactor that keeps the catalog.
    pub catalog_reactor: u16,
    /// Shard → reactor.
    pub shard_map: Vec<u16>,
    /// How many reactors there are.
    pub reactors: u16,
    /// Where they listen: at least one endpoint for each.
    pub endpoints: Vec<Endpoint>,
}

/// Names a command in flight. Stale ones are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    /// The connection it came on.
    pub conn: ConnId,
    /// Its identifier there.
    pub cid: u16,
    /// Which use of that identifier.
    pub generation: u32,
}

/// How a command ended, and what it brings.
#[derive(Debug)]
pub struct Reply<B> {
    /// How it ended.
    pub status: Status,
    /// As [`Response::result`].
    pub result: u64,
    /// [`pdu::response_flags`].
    pub flags: u8,
    /// As [`Response::data_crc`].
    pub data_crc: u32,
    /// The data; dropped when it has left.
    pub payload: Option<Payload<B>>,
}

impl<B> Reply<B> {
    /// An answer without data.
    #[must_use]
    pub fn status(status: Status, result: u64) -> Self {
        Self { status, result, flags: 0, data_crc: 0, payload: None }
    }

    /// Everything went well, and here is the data.
    #[must_use]
    pub fn data(result: u64, data_crc: u32, payload: Payload<B>) -> Self {
        Self { status: Status::Ok, result, flags: 0, data_crc, payload: Some(payload) }
    }

    /// What the response to command `cid` says, with `length` bytes of data.
    fn outcome(&self, cid: u16, credit_limit: u16, length: usize) -> Outcome {
        let Self { status, result, flags, data_crc, .. } = *self;
        let data_length = length as u32;
        Outcome { cid, flags, status, credit_limit, data_length, result, data_crc }
    }
}

/// Whoever does what commands ask. Called from inside [`Server::poll`]; answers at any later time
/// with [`Server::reply`].
pub trait Service<B> {
    /// A command, checked and with a known opcode. Its limits of its own (key length, value length,
    /// range) are the service's to judge. `capsule` is borrowed: copy out what is kept.
    fn request(&mut self, id: RequestId, capsule: &Capsule<'_>, deadline_us: u64);
    /// A pull has ended; `complete` tells whether `buffer` holds the client's data.
    fn pulled(&mut self, id: RequestId, buffer: B, complete: bool);
    /// `id` has been answered already ([`Status::Timeout`], [`Status::Cancelled`]) or its peer is
    /// gone ([`Status::Disconnected`]). The service gives it up as soon as it can and still calls
    /// [`Server::reply`] once, which frees its slot and sends nothing. A pull that has not ended
    /// still will.
    fn abandoned(&mut self, id: RequestId, why: Status);
}

/// What happened so far; only ever grows, but for `connections_open`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections now.
    pub connections_open: u64,
    /// Connections ever.
    pub connections: u64,
    /// Commands that reached the service.
    pub requests: u64,
    /// Responses sent.
    pub responses: u64,
    /// Bytes of capsules and pulled data.
    pub bytes_in: u64,
    /// Bytes of responses and their data.
    pub bytes_out: u64,
    /// Connections closed because the peer broke the protocol.
    pub protocol_errors: u64,
    /// Connections closed because the peer was silent, or never finished its handshake.
    pub silent: u64,
    /// Handshakes refused: version or authentication.
    pub refused: u64,
    /// Commands answered with "timeout" here.
    pub timeouts: u64,
    /// Commands answered with "cancelled" here.
    pub cancelled: u64,
    /// Commands whose peer was gone before they were answered.
    pub disconnected: u64,
    /// Commands refused as busy or shutting down here.
    pub turned_away: u64,
    /// As [`Transport::bytes_copied`].
    pub bytes_copied: u64,
}

/// Sessions over a transport. See the module for what it guarantees.
#[derive(Debug)]
pub struct Server<T: Transport> {
    transport: T,
    core: Core,
    /// Buffers of pulls for commands that were gone already.
    orphans: Vec<(RequestId, T::Buffer)>,
    scratch: Vec<u8>,
}

impl<T: Transport> Server<T> {
    /// A server over `transport`.
    ///
    /// # Panics
    /// If `config` contradicts itself: a reactor without an endpoint, no shard, a queue depth of 0.
    #[must_use]
    pub fn new(transport: T, config: ServerConfig) -> Self {
        let known = |reactor: &u16| *reactor < config.reactors;
        assert!(!config.shard_map.is_empty() && config.shard_map.iter().all(known), "shard map");
        assert!(known(&config.reactor) && known(&config.catalog_reactor), "reactor numbers");
        assert!((1..=QUEUE_DEPTH_MAX).contains(&config.queue_depth), "queue depth");
        let fragments_max = transport.fragments_max().min(FRAGMENTS_MAX as u16);
        let (core, orphans) = (Core::new(config, fragments_max), Vec::new());
        Self { transport, core, orphans, scratch: Vec::with_capacity(4096) }
    }

    /// Takes in what the network brought and tells `service`; keeps deadlines and keep-alives.
    /// Returns `true` if anything was done.
    pub fn poll(&mut self, now_us: u64, service: &mut impl Service<T::Buffer>) -> bool {
        self.core.now_us = now_us;
        let mut busy = !self.orphans.is_empty();
        for (id, buffer) in self.orphans.drain(..) {
            service.pulled(id, buffer, false);
        }
        busy |= self.transport.poll(now_us, &mut Door { core: &mut self.core, service });
        // What the PDUs asked for goes out before what the clock asks for.
        busy |= self.act();
        self.core.expire(service);
        self.core.sweep();
        busy | self.act()
    }

    /// Brings the client's data of `id` into the beginning of `buffer`; ends in
    /// [`Service::pulled`]. Not for data that lies in the capsule.
    ///
    /// # Panics
    /// If `buffer` is shorter than the command's `data_length`, or a pull of `id` is under way.
    pub fn pull(&mut self, id: RequestId, buffer: T::Buffer) {
        let Some(slot) = self.core.session(id.conn).active_slot(id) else {
            self.orphans.push((id, buffer));
            return;
        };
        assert!(!slot.pulling, "two pulls for one command");
        slot.pulling = true;
        slot.pull_generation = id.generation;
        self.transport.pull(id.conn, id.cid, slot.source(), buffer);
    }

    /// Answers `id`. If it has been answered already, only its slot is freed.
    ///
    /// # Panics
    /// If there is more data than a response holds.
    pub fn reply(&mut self, id: RequestId, mut reply: Reply<T::Buffer>) {
        let Some(credit_limit) = self.core.answered(id) else { return };
        let length = reply.payload.as_ref().map_or(0, |payload| payload.range.len());
        self.fit(id, reply.flags, reply.payload.as_ref(), length);
        let outcome = reply.outcome(id.cid, credit_limit, length);
        self.answer(id, &outcome, Payloads::One(&mut reply.payload));
    }

    /// [`Server::reply`] with data that lies in several buffers, which are sent one behind the
    /// other (a batch: item results, then the items' data). Empties `parts`; `reply.payload` is
    /// not looked at.
    ///
    /// # Panics
    /// If there is more data than a response holds.
    pub fn reply_parts(
        &mut self,
        id: RequestId,
        reply: &Reply<T::Buffer>,
        parts: &mut Vec<Payload<T::Buffer>>,
    ) {
        match self.core.answered(id) {
            Some(credit_limit) => {
                let length = parts.iter().map(|payload| payload.range.len()).sum();
                self.fit(id, reply.flags, parts.first(), length);
                let outcome = reply.outcome(id.cid, credit_limit, length);
                self.answer(id, &outcome, Payloads::Many(&mut parts.drain(..)));
            }
            None => parts.clear(),
        }
    }

    /// Finds where each item's data goes, if it has memory of its own: there are `length` bytes, and `first` of them.
    #[inline]
    fn fit(&mut self, id: RequestId, flags: u8, first: Option<&Payload<T::Buffer>>, length: usize) {
        assert!(length <= RESPONSE_DATA_BYTES_MAX, "more data than a response holds");
        let slot = self.core.slot(id);
        if slot.has_items()
            && let Some(Payload { buffer, range }) = first
        {
            let has_results = flags & response_flags::ITEMS != 0;
            slot.fit(has_results, &buffer.as_ref()[range.clone()], length);
        }
    }

    fn answer(&mut self, id: RequestId, outcome: &Outcome, payloads: Payloads<'_, T::Buffer>) {
        self.core.counters.responses += 1;
        self.core.counters.bytes_out +=
            size_of::<Response>() as u64 + u64::from(outcome.data_length);
        // The slot is free for the client's next command, which cannot come before this has been told.
        let remote = self.core.slot(id).answer();
        self.transport.push(id.conn, outcome, remote, payloads);
        self.act();
    }

    /// Passes everything that was queued to the network: once per reactor tick, after the replies.
    pub fn flush(&mut self, now_us: u64) {
        self.transport.flush(now_us);
    }

    /// Tells every client that no new commands are taken; those in flight are still answered.
    pub fn drain(&mut self, now_us: u64) {
        self.core.now_us = now_us;
        self.core.drain();
        self.act();
    }

    /// No command is in flight here or in the service, and everything that was queued has left.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.core.active == 0
            && self.core.zombies == 0
            && self.orphans.is_empty()
            && self.transport.is_flushed()
    }

    /// When `poll` or `flush` has to be called at the latest, if nothing wakes the reactor before;
    /// a time in the past if there is something to do now.
    #[must_use]
    pub fn next_deadline_us(&self) -> Option<u64> {
        let orphans = if self.orphans.is_empty() { None } else { Some(0) };
        [orphans, self.core.next_deadline_us(), self.transport.next_deadline_us()]
            .into_iter()
            .flatten()
            .min()
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters { bytes_copied: self.transport.bytes_copied(), ..self.core.counters }
    }

    /// The transport, for its own numbers and addresses.
    #[must_use]
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// A descriptor that turns readable when `poll` has something to do.
    #[must_use]
    pub fn wait_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.transport.wait_fd()
    }

    /// As [`Transport::may_sleep`].
    pub fn may_sleep(&mut self) -> bool {
        self.transport.may_sleep()
    }

    /// Does what the sessions have decided on while the transport was at work.
    #[inline]
    fn act(&mut self) -> bool {
        let has_actions = !self.core.actions.is_empty();
        if has_actions {
            self.act_now();
        }
        has_actions
    }

    #[cold]
    fn act_now(&mut self) {
        let mut actions = std::mem::take(&mut self.core.actions);
        for action in actions.drain(..) {
            match action {
                Action::Send(conn, small) => self.transport.send(conn, small.bytes()),
                Action::Welcome(conn) => {
                    self.scratch.clear();
                    self.core.welcome(conn).encode(&mut self.scratch);
                    self.transport.send(conn, &self.scratch);
                }
                Action::Close(conn) => self.transport.close(conn, false),
            }
        }
        self.core.actions = actions;
    }
}

/// The limits of `config`, as every HELLO_ACK has them.
fn welcome(config: ServerConfig) -> Welcome {
    let ServerConfig {
        queue_depth,
        capsule_bytes,
        keep_alive_ms,
        timeout_max_us,
        connections_max: _,
        pool,
        incarnation,
        reactor,
        catalog_reactor,
        shard_map,
        reactors,
        endpoints,
    } = config;
    Welcome {
        version: pdu::VERSION,
        queue_depth,
        capsule_bytes: capsule_bytes.min(pdu::CAPSULE_BYTES_MAX as u32),
        features: pdu::features::ALL,
        pool,
        incarnation,
        keep_alive_ms,
        timeout_max_us,
        value_bytes_max: pdu::VALUE_BYTES_MAX as u32,
        items_max: pdu::ITEMS_MAX as u16,
        reactors,
        reactor,
        catalog_reactor,
        fragments_max: 0,
        endpoints,
        shard_map,
    }
}
