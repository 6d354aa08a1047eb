//! The transport seam: moves PDUs and bulk data, and knows nothing of what they mean.
//!
//! What every implementation guarantees (the conformance suite holds them to it):
//!
//! * PDUs of one connection arrive whole, once and in order, or the connection closes;
//! * a [`Transport::pull`] ends in exactly one [`Sink::pulled`] with its buffer, also when the
//!   connection dies; a [`Transport::push`] drops its buffer once no byte of it can move any more;
//! * a connection that breaks ends in exactly one [`Sink::closed`]; a stale [`ConnId`] is ignored;
//! * a peer can neither make it allocate by a length that was not checked nor stop the others.
//!
//! On a byte stream, `pull` sends R2T and receives DATA straight into the buffer, and `push` frames
//! the data behind the response. On RDMA ([`crate::rdma`]) they are the server's READ and WRITE against
//! the [`RemoteMemory`] that the client registered; on shared memory, copies out of and into it.

mod memory;

pub use memory::{KeptMemory, RemoteMemory, Walk};

use crate::Buffer;
use crate::pdu::Outcome;
use std::fmt;
use std::ops::Range;

/// One connection of one transport: a slot, and a generation so that a stale id is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    /// Index into the transport's table of connections.
    pub slot: u16,
    /// Grows each time the slot is used again.
    pub generation: u16,
}

/// Bulk data on its way out: `range` of `buffer`.
#[derive(Debug)]
pub struct Payload<B> {
    /// The memory; the transport drops it when the data has left.
    pub buffer: B,
    /// Which bytes of it.
    pub range: Range<usize>,
}

/// The data of one response.
pub enum Payloads<'a, B> {
    /// It lies in one buffer, which is taken from here; or there is none.
    One(&'a mut Option<Payload<B>>),
    /// It lies in several, in this order.
    Many(&'a mut dyn Iterator<Item = Payload<B>>),
}

impl<B> Payloads<'_, B> {
    /// All of them, in order.
    pub fn for_each(self, each: impl FnMut(Payload<B>)) {
        match self {
            Self::One(payload) => payload.take().into_iter().for_each(each),
            Self::Many(payloads) => payloads.for_each(each),
        }
    }
}

impl<B> fmt::Debug for Payloads<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One(payload) if payload.is_none() => "no data",
            Self::One(_) => "one payload",
            Self::Many(_) => "payloads",
        })
    }
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The peer closed it in good order.
    #[error("closed by the peer")]
    Peer,
    /// Closed by this side with [`Transport::close`].
    #[error("closed here")]
    Local,
    /// The network failed (reset, unreachable).
    #[error("connection lost")]
    Lost,
    /// The peer broke the framing rules: a length, type or order that cannot be.
    #[error("protocol error: {0}")]
    Protocol(&'static str),
}

/// Receives what a transport's `poll` finds. Called with borrowed bytes: nothing is copied.
pub trait Sink<B> {
    /// A peer connected; no PDU of it has been seen yet.
    fn connected(&mut self, conn: ConnId);
    /// A whole PDU: the common header and all its bytes, already bounded by the largest allowed.
    ///
    /// # Errors
    /// The peer broke the protocol: the transport tells it so (GOAWAY), takes nothing more of it,
    /// and reports `closed` with [`CloseReason::Protocol`] at once.
    fn pdu(&mut self, conn: ConnId, pdu: &[u8]) -> Result<(), &'static str>;
    /// The pull of command `cid` has ended: with its data, or `false` because the connection died.
    fn pulled(&mut self, conn: ConnId, cid: u16, buffer: B, complete: bool);
    /// The connection is gone; nothing more will come from it.
    fn closed(&mut self, conn: ConnId, reason: CloseReason);
}

/// The server's side of one transport in one reactor. See the module for what it guarantees.
pub trait Transport {
    /// The memory that bulk data moves through.
    type Buffer: Buffer;

    /// The most fragments of a [`RemoteMemory`]. 0: it reaches no memory of its clients, and whatever
    /// they name, their data moves with the PDUs.
    fn fragments_max(&self) -> u16 {
        0
    }

    /// Moves what can be moved now and reports it. Returns `true` if anything was done.
    fn poll(&mut self, now_us: u64, sink: &mut dyn Sink<Self::Buffer>) -> bool;

    /// Queues a PDU that carries no bulk data.
    fn send(&mut self, conn: ConnId, pdu: &[u8]);

    /// Delivers `payloads`, one right behind the other, to the client's memory or behind the response, and a
    /// response that says `outcome`, and where they are. Memory behind their last byte stays as it is.
    fn push(
        &mut self,
        conn: ConnId,
        outcome: &Outcome,
        remote: RemoteMemory<'_>,
        payloads: Payloads<'_, Self::Buffer>,
    );

    /// Brings all bytes of `remote` into the beginning of `buffer`, one behind the other. A
    /// connection has one pull of a `cid` at a time.
    fn pull(&mut self, conn: ConnId, cid: u16, remote: RemoteMemory<'_>, buffer: Self::Buffer);

    /// Ends a connection once what is queued on it has left (within a bound), or at once if `abort`.
    /// Nothing more of it is reported but the end of its pulls and then `closed`.
    fn close(&mut self, conn: ConnId, abort: bool);

    /// Passes everything that was queued to the network: once per reactor tick.
    fn flush(&mut self, now_us: u64);

    /// Everything that was queued has left.
    fn is_flushed(&self) -> bool;

    /// When `poll` or `flush` has to be called at the latest, if nothing wakes the reactor before;
    /// a time in the past if there is something to do now.
    fn next_deadline_us(&self) -> Option<u64>;

    /// Bytes of values that the processor has copied here, between buffers or to and from a peer's memory;
    /// what the system copies to and from a socket, and PDUs, do not count. Only ever grows.
    fn bytes_copied(&self) -> u64;

    /// A descriptor that turns readable when `poll` has something to do, for a reactor that sleeps.
    fn wait_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }

    /// The reactor is about to wait for `wait_fd`: from now until the next `poll`, whatever comes
    /// turns it readable. `false`: something has come already, so `poll` first.
    fn may_sleep(&mut self) -> bool {
        true
    }
}

/// Any transport behind a pointer, for a reactor that serves several kinds.
impl<T: Transport + ?Sized> Transport for Box<T> {
    type Buffer = T::Buffer;

    fn fragments_max(&self) -> u16 {
        (**self).fragments_max()
    }

    fn poll(&mut self, now_us: u64, sink: &mut dyn Sink<Self::Buffer>) -> bool {
        (**self).poll(now_us, sink)
    }

    fn send(&mut self, conn: ConnId, pdu: &[u8]) {
        (**self).send(conn, pdu);
    }

    fn push(
        &mut self,
        conn: ConnId,
        outcome: &Outcome,
        remote: RemoteMemory<'_>,
        payloads: Payloads<'_, Self::Buffer>,
    ) {
        (**self).push(conn, outcome, remote, payloads);
    }

    fn pull(&mut self, conn: ConnId, cid: u16, remote: RemoteMemory<'_>, buffer: Self::Buffer) {
        (**self).pull(conn, cid, remote, buffer);
    }

    fn close(&mut self, conn: ConnId, abort: bool) {
        (**self).close(conn, abort);
    }

    fn flush(&mut self, now_us: u64) {
        (**self).flush(now_us);
    }

    fn is_flushed(&self) -> bool {
        (**self).is_flushed()
    }

    fn next_deadline_us(&self) -> Option<u64> {
        (**self).next_deadline_us()
    }

    fn bytes_copied(&self) -> u64 {
        (**self).bytes_copied()
    }

    fn wait_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        (**self).wait_fd()
    }

    fn may_sleep(&mut self) -> bool {
        (**self).may_sleep()
    }
}
