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

mod begin;
mod end;
mod report;
mod seam;

use super::chain::Chain;
use super::channel::{Channel, Reading};
use super::grants::Pool;
use super::provider::{Event, Limits, Provider, Qp, Shape};
use crate::pdu::{FRAGMENTS_MAX, Response, VALUE_BYTES_MAX};
use crate::table::{EndedPulls, Table};
use crate::transport::{CloseReason, ConnId, KeptMemory, Payload};
use std::collections::VecDeque;

/// How often the connections that wait for their peer are looked at, in microseconds.
const SWEEP_US: u64 = 100_000;
/// How soon a connection that is ending is looked at again, in microseconds.
const ATTEND_US: u64 = 200;
/// After so many polls that found nothing, the provider is asked to wake a sleeper.
const IDLE_POLLS: u32 = 16;

/// How many fragments a command may have, so that a value in them takes at most half of a send queue, with
/// its response: then neither READs nor responses have to wait for the others to pause.
fn fragments_max(limits: &Limits) -> usize {
    let rest = VALUE_BYTES_MAX.div_ceil(limits.message_bytes) + 1;
    (limits.works / 2).saturating_sub(rest).min(FRAGMENTS_MAX)
}

/// The bounds of an [`RdmaTransport`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RdmaConfig {
    /// The most connections at a time; further peers are refused with GOAWAY (full).
    pub connections_max: u16,
    /// Receives of each connection: two for each command in flight, and some for control PDUs. Where the
    /// provider's receives are shared, the most that one connection may use.
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

/// A response whose command still has a READ under way: the client may use its memory for something else
/// as soon as it has the response, so that comes after the READ.
#[derive(Debug)]
struct Held<B> {
    token: u32,
    pdu: [u8; size_of::<Response>()],
    remote: KeptMemory,
    payloads: Vec<Payload<B>>,
}

/// The RDMA transport over a provider's queue pairs. See the modules for what it guarantees.
#[derive(Debug)]
pub struct RdmaTransport<P: Provider> {
    provider: P,
    config: RdmaConfig,
    connections: Table<Connection<P::Buffer>>,
    /// The provider's slot → ours.
    numbers: Vec<u16>,
    dirty: VecDeque<u16>,
    /// Connections that may start a READ when another one ends.
    starved: VecDeque<u16>,
    /// Connections that are neither open nor forgotten.
    ending: Vec<u16>,
    ended: EndedPulls<P::Buffer>,
    events: Vec<Event<P::Buffer>>,
    chain: Chain<P::Buffer>,
    reading: Reading,
    /// Receives that no connection was granted, if they are shared.
    pool: Pool,
    now_us: u64,
    next_sweep_us: u64,
    idle_polls: u32,
    armed: bool,
    bytes_copied: u64,
}

impl<P: Provider> RdmaTransport<P> {
    /// A transport for the peers that ask `provider` for a connection.
    ///
    /// # Panics
    /// If the provider's queue pairs are too small for a value.
    #[must_use]
    pub fn new(provider: P, config: RdmaConfig) -> Self {
        let limits = provider.limits();
        assert!(fragments_max(&limits) > 0 && limits.buffers >= 4, "queue pairs are too small");
        let count = config.connections_max;
        let pool = Pool::new(provider.shared_receives());
        Self {
            provider,
            config,
            connections: Table::new(count),
            numbers: Vec::new(),
            dirty: VecDeque::with_capacity(usize::from(count)),
            starved: VecDeque::with_capacity(usize::from(count)),
            ending: Vec::with_capacity(usize::from(count)),
            ended: EndedPulls::new(),
            events: Vec::new(),
            chain: Chain::default(),
            reading: Reading::default(),
            pool,
            now_us: 0,
            next_sweep_us: u64::MAX,
            idle_polls: 0,
            armed: false,
            bytes_copied: 0,
        }
    }

    /// Connections that are open, or begin, or end.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.used()
    }

    /// The provider, for its own numbers and addresses.
    #[must_use]
    pub fn provider(&self) -> &P {
        &self.provider
    }

    /// The shape of the next connection; `None`: there are too few receives for another one.
    fn shape(&mut self) -> Option<Shape> {
        let RdmaConfig { receives, receive_bytes, reads, .. } = self.config;
        let shared = self.provider.shared_receives() > 0;
        let receives = if shared { self.pool.admit(receives.into())? as u16 } else { receives };
        Some(Shape { receives, receive_bytes, reads, remote_access: false, shared })
    }

    fn at(&mut self, number: u16) -> Option<&mut Connection<P::Buffer>> {
        self.connections.at(number)
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
        let Some(connection) = self.connections.at(number) else {
            return;
        };
        if !connection.in_dirty {
            connection.in_dirty = true;
            self.dirty.push_back(number);
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
