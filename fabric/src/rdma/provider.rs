//! What the transport needs of RDMA: queue pairs that are connected, worked and drained.
//!
//! Everything is asynchronous: a call starts something, [`Provider::poll`] tells how it ended. A
//! stale [`Qp`] does no harm. Work is handed over in whole [`Chain`]s, one doorbell each, and the
//! provider owns the buffers in them until the work that refers to them has completed.

use super::chain::Chain;
use crate::Buffer;
use crate::region;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

/// A queue pair: a slot in the provider's table, and a generation so that a stale one is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Qp {
    /// Index into the provider's table.
    pub slot: u16,
    /// Grows each time the slot is used again.
    pub generation: u16,
}

/// What a queue pair of this provider can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Work requests that its send queue holds.
    pub works: usize,
    /// Buffers that the work on it may refer to at a time.
    pub buffers: usize,
    /// Pieces of memory that one work request gathers.
    pub pieces: usize,
    /// Bytes that one work request moves.
    pub message_bytes: usize,
    /// Bytes of PDUs that may be on their way.
    pub send_bytes: usize,
}

/// What a queue pair has room for now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Work requests.
    pub works: usize,
    /// Buffers.
    pub buffers: usize,
    /// Bytes of PDUs.
    pub bytes: usize,
}

/// How a connection's queue pair is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Receives that are posted before the peer can send, and again as they are used up; where they are
    /// shared, those that the peer may use at first.
    pub receives: u16,
    /// Bytes of each.
    pub receive_bytes: u32,
    /// READs in flight: what this side may start, or lets the other side start.
    pub reads: u8,
    /// Whether the peer may READ and WRITE memory that this side registers for it.
    pub remote_access: bool,
    /// The receives are those that all such queue pairs of the provider share.
    pub shared: bool,
}

/// The few bytes that travel with the connection manager's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    bytes: [u8; Self::BYTES_MAX],
    length: u8,
}

impl Note {
    /// What every message of the connection manager has room for.
    pub const BYTES_MAX: usize = 56;

    /// The first bytes of `bytes`, as many as fit.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let length = bytes.len().min(Self::BYTES_MAX);
        let mut note = Self { bytes: [0; Self::BYTES_MAX], length: length as u8 };
        note.bytes[..length].copy_from_slice(&bytes[..length]);
        note
    }

    /// The bytes. On a real network zeros may stand behind what was sent.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// Why a queue pair has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The peer did not answer, however often it was asked.
    #[error("the peer does not answer")]
    Silent,
    /// The peer had no receive posted.
    #[error("the peer takes no more messages than it has granted credits for, or fewer")]
    NotReady,
    /// The key or address that the peer has named is not (or no longer) its memory.
    #[error("the peer named memory that it does not have")]
    RemoteAccess,
    /// The peer tried what it may not do here.
    #[error("the peer tried what this side does not allow")]
    Forbidden,
    /// Something else: the number that the network card gave.
    #[error("work completion status {0}")]
    Other(u32),
}

/// What [`Provider::poll`] has found.
#[derive(Debug)]
pub enum Event<B> {
    /// A peer asks for a connection: accept or reject it.
    Requested {
        /// Names the request.
        request: u32,
        /// What came with it.
        ask: Note,
        /// READs in flight that the peer answers.
        reads: u8,
    },
    /// The connection is there.
    Established {
        /// Which.
        qp: Qp,
        /// What the accepting side has said (empty on the accepting side).
        answer: Note,
    },
    /// The peer has refused the connection, or is not there.
    Refused {
        /// Which.
        qp: Qp,
        /// What the peer has said, if anything.
        answer: Note,
    },
    /// The peer has ended the connection.
    Disconnected {
        /// Which.
        qp: Qp,
    },
    /// A message has arrived.
    Received {
        /// Where.
        qp: Qp,
        /// In which receive: read it with [`Provider::received`], then [`Provider::repost`] it.
        receive: u16,
        /// Its bytes.
        length: u32,
        /// The number that came with it.
        immediate: u32,
    },
    /// A READ has ended.
    Read {
        /// Where.
        qp: Qp,
        /// The number that it was started with.
        token: u32,
        /// The memory.
        buffer: B,
        /// It holds the peer's bytes.
        complete: bool,
    },
    /// Some of the work on it has completed: there is more room.
    Progress {
        /// Where.
        qp: Qp,
    },
    /// It has failed: what was on it is being flushed.
    Broken {
        /// Which.
        qp: Qp,
        /// Why.
        why: Violation,
    },
}

/// Why a provider cannot do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The system said no.
    #[error("{what}: {source}")]
    System {
        /// What was tried, and what to do about it.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The peer, or the request, is gone.
    #[error("the peer has given up")]
    Gone,
    /// There are as many queue pairs as there can be.
    #[error("no room for another queue pair: raise the device's or this process's limits")]
    Full,
    /// A region's memory is in use otherwise.
    #[error(transparent)]
    Region(#[from] region::RegionError),
    /// The device or its set-up is one that does not work here.
    #[error("{0}")]
    Unsuitable(String),
}

/// Memory that the peer may READ and WRITE, for clients. It may change at any time while an
/// operation names it; bytes are therefore copied in and out.
pub trait LentRegion {
    /// Where it begins, as the peer names it.
    fn address(&self) -> u64;
    /// The key by which the peer names it.
    fn key(&self) -> u32;
    /// Bytes.
    fn len(&self) -> usize;
    /// There are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Copies `bytes` in.
    ///
    /// # Panics
    /// If they do not fit behind `offset`.
    fn write(&mut self, offset: usize, bytes: &[u8]);
    /// Copies `bytes` out.
    ///
    /// # Panics
    /// If there are not so many behind `offset`.
    fn read(&self, offset: usize, bytes: &mut [u8]);
}

/// Queue pairs and their connections. See the module for the rules.
pub trait Provider {
    /// What bulk data is read into and written from.
    type Buffer: Buffer;
    /// Memory for peers.
    type Region: LentRegion;

    /// What its queue pairs can do.
    fn limits(&self) -> Limits;

    /// Receives that queue pairs may share, all of them posted; 0: there are none.
    fn shared_receives(&self) -> u32 {
        0
    }

    /// Appends what has happened; `true` if anything has.
    fn poll(&mut self, now_us: u64, events: &mut Vec<Event<Self::Buffer>>) -> bool;

    /// Takes the connection of [`Event::Requested`]; `answer` travels with the acceptance. All
    /// receives are posted before the peer learns of it.
    ///
    /// # Errors
    /// The request is over, and there is no connection.
    fn accept(&mut self, request: u32, answer: Note, shape: Shape) -> Result<Qp, ProviderError>;

    /// Refuses it; `answer` travels with the refusal.
    fn reject(&mut self, request: u32, answer: Note);

    /// Asks for a connection to `address`; `ask` travels with the request. Ends in
    /// [`Event::Established`], [`Event::Refused`] or [`Event::Broken`].
    ///
    /// # Errors
    /// It could not even be started.
    fn connect(
        &mut self,
        address: SocketAddr,
        ask: Note,
        shape: Shape,
    ) -> Result<Qp, ProviderError>;

    /// The message in a receive that [`Event::Received`] has named and that was not reposted.
    fn received(&self, qp: Qp, receive: u16, length: u32) -> &[u8];

    /// Gives a receive back; it is posted with the next [`Provider::post`] or
    /// [`Provider::ring_receives`], of any queue pair if it is shared.
    fn repost(&mut self, qp: Qp, receive: u16);

    /// Posts the receives that were given back.
    fn ring_receives(&mut self, qp: Qp);

    /// What there is room for.
    fn room(&self, qp: Qp) -> Room;

    /// Work that has not completed.
    fn in_flight(&self, qp: Qp) -> usize;

    /// Posts the receives that were given back, and all of `chain` with one doorbell; empties it.
    /// If that fails, [`Event::Broken`] follows.
    ///
    /// # Panics
    /// If there is no room for it.
    fn post(&mut self, qp: Qp, chain: &mut Chain<Self::Buffer>);

    /// Tells the peer that the connection is over.
    fn disconnect(&mut self, qp: Qp);

    /// Stops all work on it: what is in flight is flushed, and its buffers come back.
    fn break_off(&mut self, qp: Qp);

    /// Nothing of it is in flight, in either direction.
    fn is_drained(&self, qp: Qp) -> bool;

    /// Forgets it. Work that is still in flight is cut off before this returns; the buffers of READs go to
    /// `ended`, with their tokens.
    fn release(&mut self, qp: Qp, ended: &mut dyn FnMut(u32, Self::Buffer));

    /// Takes memory of the queue pair that was released last: it is dropped when that is gone.
    fn keep(&mut self, region: Self::Region) {
        drop(region);
    }

    /// Memory that the peer of a connected queue pair may READ and WRITE, if it was made for that.
    ///
    /// # Errors
    /// There is not so much, or it cannot be locked; or the connection is over.
    fn region(&mut self, qp: Qp, bytes: usize) -> Result<Self::Region, ProviderError>;

    /// The key by which the peer of a connected queue pair reaches memory of the caller's, to READ or
    /// WRITE as its [`region::Usage`] says. It is registered with the device when that is asked for the first
    /// time, and until its last handle is gone.
    ///
    /// # Errors
    /// The device cannot reach it, or it cannot be locked, or is being viewed; or the connection is over.
    fn offer(&mut self, qp: Qp, region: &region::Region) -> Result<u32, ProviderError>;

    /// From now until the next event, [`Provider::wait_fd`] turns readable when there is one;
    /// `false` if there may be one already.
    fn arm(&mut self) -> bool {
        true
    }

    /// A descriptor that turns readable when `poll` has something to say, once armed.
    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
