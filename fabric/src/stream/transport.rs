//! [`StreamTransport`]: the table of connections, and whose turn it is.
//!
//! One `poll` asks the listener what became ready and reads from every connection that may have
//! bytes; one `flush` writes to every connection that has some queued. A connection that has more
//! than its budget waits for the next tick, behind the others: none can starve them. In the steady
//! state a tick costs one system call to learn what is ready, one read and one write per busy
//! connection.

use super::connection::Connection;
use super::input::{Pull, Received};
use super::{ByteStream, Listener, Readiness};
use crate::Buffer;
use crate::pdu::{
    FRAGMENTS_MAX, GoAway, GoAwayReason, Outcome, ReadyToTransfer, Transfer, VALUE_BYTES_MAX,
};
use crate::table::{EndedPulls, Table};
use crate::transport::{CloseReason, ConnId, Payloads, RemoteMemory, Sink, Transport};
use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::BorrowedFd;
use zerocopy::IntoBytes;

/// Peers that are accepted in one poll.
const ACCEPTS_MAX: usize = 16;
/// Streams of which one poll hears.
const EVENTS_MAX: usize = 256;
/// Once so many bytes were read in one go it is the others' turn. Large enough that the answers to
/// several large stores leave in one write.
const BUDGET_BYTES: usize = 512 << 10;
/// Once so many bytes lie in a peer's memory, it is told of them.
const EARLY_BYTES: usize = 16 << 10;
/// How often the connections that wait for their peer are looked at, in microseconds.
const SWEEP_US: u64 = 100_000;

/// The bounds of a [`StreamTransport`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamConfig {
    /// The most connections at a time; further peers are told GOAWAY (full).
    pub connections_max: u16,
    /// A connection on which bytes wait and none leaves for so long is closed.
    pub stall_us: u64,
    /// A connection that is being closed waits at most so long for its peer.
    pub linger_us: u64,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self { connections_max: 1024, stall_us: 30_000_000, linger_us: 1_000_000 }
    }
}

/// The byte-stream transport over the streams of a listener.
#[derive(Debug)]
pub struct StreamTransport<L: Listener, B> {
    listener: L,
    config: StreamConfig,
    connections: Table<Connection<L::Stream, B>>,
    /// Connections that may have bytes to read, or an end to report.
    ready: VecDeque<u16>,
    /// Connections that have bytes to write.
    dirty: VecDeque<u16>,
    ended: EndedPulls<B>,
    events: Vec<Readiness>,
    now_us: u64,
    next_sweep_us: u64,
    bytes_copied: u64,
}

impl<L: Listener, B: Buffer> StreamTransport<L, B> {
    /// A transport for the peers of `listener`.
    #[must_use]
    pub fn new(listener: L, config: StreamConfig) -> Self {
        let count = config.connections_max;
        Self {
            listener,
            config,
            connections: Table::new(count),
            ready: VecDeque::with_capacity(usize::from(count)),
            dirty: VecDeque::with_capacity(usize::from(count)),
            ended: EndedPulls::new(),
            events: Vec::with_capacity(EVENTS_MAX),
            now_us: 0,
            next_sweep_us: u64::MAX,
            bytes_copied: 0,
        }
    }

    /// Connections that are open, or being closed.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.used()
    }

    /// What it accepts from.
    #[must_use]
    pub fn listener(&self) -> &L {
        &self.listener
    }

    fn open(&mut self, conn: ConnId) -> Option<&mut Connection<L::Stream, B>> {
        let connection = self.connections.at(conn.slot)?;
        (connection.id == conn && connection.is_open()).then_some(connection)
    }

    /// Asks the listener; returns whether peers wait to be accepted.
    fn hear(&mut self) -> bool {
        self.events.clear();
        let waiting = match self.listener.ready(&mut self.events) {
            Ok(waiting) => waiting,
            Err(error) => {
                log::error!("cannot learn which connections are ready: {error}");
                false
            }
        };
        for event in &self.events {
            let slot = event.token as u16;
            let Some(connection) = self.connections.at(slot) else {
                continue;
            };
            connection.hangup |= event.hangup;
            connection.writable |= event.writable;
            if (event.readable || event.hangup) && !connection.in_ready {
                connection.in_ready = true;
                self.ready.push_back(slot);
            }
            if connection.writable && !connection.is_flushed() && !connection.in_dirty {
                connection.in_dirty = true;
                self.dirty.push_back(slot);
            }
        }
        waiting
    }

    fn accept(&mut self, sink: &mut dyn Sink<B>) {
        for _ in 0..ACCEPTS_MAX {
            match self.listener.accept() {
                Ok(Some(stream)) => self.admit(stream, sink),
                Ok(None) => return,
                Err(error) => {
                    log::warn!("cannot accept a connection: {error}");
                    return;
                }
            }
        }
    }

    fn admit(&mut self, mut stream: L::Stream, sink: &mut dyn Sink<B>) {
        let Some(number) = self.connections.reserve() else {
            // A peer that does not even read this much is not told.
            let goaway = GoAway::new(GoAwayReason::Full);
            let told = stream.write_all(goaway.as_bytes()).is_ok() && stream.finish().is_ok();
            log::debug!("no room for another connection (the peer was told: {told})");
            return;
        };
        if let Err(error) = self.listener.watch(&stream, u32::from(number)) {
            log::warn!("cannot watch a connection: {error}");
            self.connections.give_back(number);
            return;
        }
        let now_us = self.now_us;
        self.connections.put(number, |id| Connection::new(id, stream, now_us));
        if let Some(connection) = self.connections.at(number) {
            mark(&mut self.ready, &mut connection.in_ready, number);
            sink.connected(connection.id);
        }
    }

    /// Reads from every connection that was ready when this began.
    fn receive(&mut self, sink: &mut dyn Sink<B>) -> bool {
        let count = self.ready.len();
        for _ in 0..count {
            let Some(number) = self.ready.pop_front() else { break };
            let Some(connection) = self.connections.at(number) else {
                continue;
            };
            connection.in_ready = false;
            let received = connection.receive(sink, L::SHORT_BLOCKS, BUDGET_BYTES);
            self.bytes_copied += connection.take_copied();
            match received {
                Received::Empty => {}
                Received::More(_) => {
                    connection.in_ready = true;
                    self.ready.push_back(number);
                }
                Received::Closed(CloseReason::Protocol(what)) => self.refuse(number, what, sink),
                Received::Closed(reason) => self.end(number, reason, sink),
            }
        }
        count > 0
    }

    /// The peer broke the framing: reports the end now, and tells the peer in good order.
    fn refuse(&mut self, number: u16, what: &'static str, sink: &mut dyn Sink<B>) {
        let now_us = self.now_us;
        let Some(connection) = self.connections.at(number) else {
            return;
        };
        if connection.reported {
            // It was told, and goes on: its stream is of no more use.
            return self.end(number, CloseReason::Lost, sink);
        }
        while let Some(pull) = connection.give_up() {
            sink.pulled(connection.id, pull.cid, pull.buffer, false);
        }
        connection.reported = true;
        connection.mend();
        let told = connection.output().push_small(GoAway::new(GoAwayReason::Protocol).as_bytes());
        log::debug!("a peer broke the protocol ({what}); it will be told: {}", told.is_ok());
        connection.finish(now_us);
        sink.closed(connection.id, CloseReason::Protocol(what));
        mark(&mut self.ready, &mut connection.in_ready, number);
        mark(&mut self.dirty, &mut connection.in_dirty, number);
        self.watch_over();
    }

    /// Forgets a connection, and reports its end if that was not done yet.
    fn end(&mut self, number: u16, reason: CloseReason, sink: &mut dyn Sink<B>) {
        let Some(mut connection) = self.connections.take(number) else {
            return;
        };
        self.connections.give_back(number);
        while let Some(pull) = connection.give_up() {
            sink.pulled(connection.id, pull.cid, pull.buffer, false);
        }
        if !connection.reported {
            sink.closed(connection.id, connection.reason(reason));
        }
        self.ready.retain(|other| *other != number);
        self.dirty.retain(|other| *other != number);
    }

    /// Ends the connections whose peer has not moved for too long.
    fn sweep(&mut self, sink: &mut dyn Sink<B>) {
        if self.now_us < self.next_sweep_us {
            return;
        }
        self.next_sweep_us = u64::MAX;
        for number in self.connections.numbers() {
            let Some(connection) = self.connections.get(number) else {
                continue;
            };
            if !connection.is_waiting() {
                continue;
            }
            let StreamConfig { stall_us, linger_us, .. } = self.config;
            let bound_us = if connection.is_open() { stall_us } else { linger_us };
            if self.now_us >= connection.progress_us + bound_us {
                self.end(number, CloseReason::Lost, sink);
            } else {
                self.next_sweep_us = self.now_us + SWEEP_US;
            }
        }
    }

    /// A connection begins to wait for its peer.
    fn watch_over(&mut self) {
        self.next_sweep_us = self.next_sweep_us.min(self.now_us + SWEEP_US);
    }

    /// Queues bytes with `queue`; what `send` and `push` have in common.
    fn queue(
        &mut self,
        conn: ConnId,
        queue: impl FnOnce(&mut Connection<L::Stream, B>) -> Result<(), &'static str>,
    ) {
        let now_us = self.now_us;
        let Some(connection) = self.open(conn) else { return };
        if !connection.is_waiting() {
            connection.progress_us = now_us;
        }
        if let Err(what) = queue(connection) {
            connection.break_off(CloseReason::Protocol(what));
            self.report_soon(conn.slot);
            return;
        }
        if connection.writable && !connection.in_dirty {
            connection.in_dirty = true;
            self.dirty.push_back(conn.slot);
        }
        self.watch_over();
    }

    /// The peer takes its data out of its memory while this side puts the next there: without this,
    /// each would wait until the other has moved all that is in flight.
    fn send_early(&mut self, conn: ConnId) {
        let now_us = self.now_us;
        let Some(connection) = self.open(conn) else { return };
        if connection.placed_bytes < EARLY_BYTES || !connection.writable {
            return;
        }
        // It stays among the dirty ones, where what is left is seen to.
        connection.send(now_us, L::SHORT_BLOCKS);
        if connection.is_broken() {
            self.report_soon(conn.slot);
        }
    }

    fn report_soon(&mut self, number: u16) {
        if let Some(connection) = self.connections.at(number) {
            mark(&mut self.ready, &mut connection.in_ready, number);
        }
    }
}

/// Puts a connection into a list once.
fn mark(list: &mut VecDeque<u16>, listed: &mut bool, number: u16) {
    if !*listed {
        *listed = true;
        list.push_back(number);
    }
}

impl<L: Listener, B: Buffer> Transport for StreamTransport<L, B> {
    type Buffer = B;

    fn fragments_max(&self) -> u16 {
        if L::HAS_MEMORY { FRAGMENTS_MAX as u16 } else { 0 }
    }

    fn poll(&mut self, now_us: u64, sink: &mut dyn Sink<B>) -> bool {
        self.now_us = now_us;
        let reported = self.ended.report(sink);
        let waiting = self.hear();
        if waiting {
            self.accept(sink);
        }
        let received = self.receive(sink);
        self.sweep(sink);
        reported || waiting || received
    }

    fn send(&mut self, conn: ConnId, pdu: &[u8]) {
        self.queue(conn, |connection| connection.output().push_small(pdu));
    }

    fn push(
        &mut self,
        conn: ConnId,
        outcome: &Outcome,
        remote: RemoteMemory<'_>,
        payloads: Payloads<'_, B>,
    ) {
        let mut bytes_copied = 0;
        self.queue(conn, |connection| {
            let before = connection.placed_bytes;
            let pushed = connection.push(outcome, remote, payloads);
            bytes_copied = connection.placed_bytes - before;
            pushed
        });
        self.bytes_copied += bytes_copied as u64;
        self.send_early(conn);
    }

    fn pull(&mut self, conn: ConnId, cid: u16, remote: RemoteMemory<'_>, mut buffer: B) {
        let length = remote.length() as usize;
        assert!(length <= VALUE_BYTES_MAX, "a pull longer than any value");
        assert!(length <= buffer.as_ref().len(), "a pull longer than its buffer");
        let Some(connection) = self.open(conn).filter(|_| length > 0) else {
            let complete = length == 0 && self.open(conn).is_some();
            self.ended.add(conn, cid, buffer, complete);
            return;
        };
        if let Some(fetched) = connection.fetch(remote, &mut buffer.as_mut()[..length]) {
            if let Err(what) = fetched {
                connection.break_off(CloseReason::Protocol(what));
                self.report_soon(conn.slot);
            } else {
                self.bytes_copied += length as u64;
            }
            self.ended.add(conn, cid, buffer, fetched.is_ok());
            return;
        }
        connection.expect(Pull { cid, length, filled: 0, buffer });
        let transfer = Transfer { cid, offset: 0, length: remote.length() };
        self.send(conn, ReadyToTransfer::new(transfer).as_bytes());
    }

    fn close(&mut self, conn: ConnId, abort: bool) {
        let now_us = self.now_us;
        let Some(connection) = self.connections.at(conn.slot) else {
            return;
        };
        if connection.id != conn {
            return;
        }
        while let Some(Pull { cid, buffer, .. }) = connection.give_up() {
            self.ended.add(conn, cid, buffer, false);
        }
        connection.finish(now_us);
        if abort {
            connection.break_off(CloseReason::Local);
        }
        mark(&mut self.ready, &mut connection.in_ready, conn.slot);
        mark(&mut self.dirty, &mut connection.in_dirty, conn.slot);
        self.watch_over();
    }

    fn flush(&mut self, now_us: u64) {
        self.now_us = now_us;
        for _ in 0..self.dirty.len() {
            let Some(number) = self.dirty.pop_front() else { break };
            let Some(connection) = self.connections.at(number) else {
                continue;
            };
            connection.in_dirty = connection.send(now_us, L::SHORT_BLOCKS);
            if connection.in_dirty {
                self.dirty.push_back(number);
            }
            if connection.is_broken() {
                mark(&mut self.ready, &mut connection.in_ready, number);
            }
        }
    }

    fn is_flushed(&self) -> bool {
        self.connections.all().all(Connection::is_flushed)
    }

    fn next_deadline_us(&self) -> Option<u64> {
        let work = !self.ended.is_empty() || !self.ready.is_empty() || !self.dirty.is_empty();
        match (work, self.next_sweep_us) {
            (true, _) => Some(0),
            (false, u64::MAX) => None,
            (false, sweep_us) => Some(sweep_us),
        }
    }

    fn bytes_copied(&self) -> u64 {
        self.bytes_copied
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.listener.wait_fd()
    }

    fn may_sleep(&mut self) -> bool {
        self.listener.may_sleep()
    }
}
