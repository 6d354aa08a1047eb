//! What arrives on one connection: bytes cut into PDUs in place, bulk data steered into its buffer.
//!
//! Guarantees: a PDU is handed up whole and once; nothing is kept of a length that no PDU of its
//! type can have; DATA is taken only for a pull that waits for exactly it, and lands in that pull's
//! buffer and nowhere else. While a payload arrives, one vectored read fills the rest of it and
//! then the receive buffer behind it.

use crate::Buffer;
use crate::pdu::{CAPSULE_BYTES_MAX, CommonHeader, Data, DecodeError, PduType, Transfer};
use crate::transport::{CloseReason, ConnId, Sink};
use std::collections::VecDeque;
use std::io::{ErrorKind, IoSliceMut, Read};

/// The receive buffer, in bytes. The longest PDU without bulk data always fits behind the rest of
/// the one before it.
const RECEIVE_BYTES: usize = 2 * CAPSULE_BYTES_MAX;
/// A pull of at least this many bytes is worth reading straight into its buffer.
const BULK_BYTES: usize = 32 << 10;
/// While such a pull waits for its DATA, so much is read ahead: what was read ahead is copied.
const READ_AHEAD_BYTES: usize = 4 << 10;

/// What a stream over shared memory finds out by itself.
pub(super) const IMPOSSIBLE: &str = "indices that no ring can have";

/// A pull that has not ended.
#[derive(Debug)]
pub(super) struct Pull<B> {
    pub(super) cid: u16,
    pub(super) length: usize,
    pub(super) filled: usize,
    pub(super) buffer: B,
}

/// How a try to receive ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// So many bytes; there may be more.
    More(usize),
    /// Nothing more has arrived yet.
    Empty,
    /// Nothing more will be taken.
    Closed(CloseReason),
}

#[derive(Debug)]
pub(super) struct Input<B> {
    bytes: Box<[u8]>,
    head: usize,
    tail: usize,
    /// Asked for by R2T; their DATA has not begun.
    pulls: VecDeque<Pull<B>>,
    /// Its DATA has begun: the next bytes of the stream belong to it.
    arriving: Option<Pull<B>>,
    /// Of payloads: bytes that came into the receive buffer first.
    bytes_copied: u64,
}

impl<B: Buffer> Input<B> {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; RECEIVE_BYTES].into_boxed_slice(),
            head: 0,
            tail: 0,
            pulls: VecDeque::new(),
            arriving: None,
            bytes_copied: 0,
        }
    }

    /// Expects DATA for `pull`.
    pub(super) fn expect(&mut self, pull: Pull<B>) {
        self.pulls.push_back(pull);
    }

    /// Takes out a pull that will not end any more.
    pub(super) fn give_up(&mut self) -> Option<Pull<B>> {
        self.arriving.take().or_else(|| self.pulls.pop_front())
    }

    /// Bytes that were copied since this was last asked.
    pub(super) fn take_copied(&mut self) -> u64 {
        std::mem::take(&mut self.bytes_copied)
    }

    /// Reads once and hands up what that completes. `short_blocks`: a read that got less than it
    /// had room for has emptied the stream.
    pub(super) fn receive(
        &mut self,
        conn: ConnId,
        stream: &mut impl Read,
        sink: &mut dyn Sink<B>,
        short_blocks: bool,
    ) -> Received {
        let ahead = self.tail + self.room_bytes();
        let buffer = &mut self.bytes[self.tail..ahead];
        let (room, result) = match &mut self.arriving {
            Some(Pull { buffer: payload, filled, length, .. }) => {
                let rest = &mut payload.as_mut()[*filled..*length];
                let room = rest.len() + buffer.len();
                let mut slices = [IoSliceMut::new(rest), IoSliceMut::new(buffer)];
                (room, stream.read_vectored(&mut slices))
            }
            None => (buffer.len(), stream.read(buffer)),
        };
        match result {
            Ok(0) if self.head == self.tail && self.arriving.is_none() => {
                Received::Closed(CloseReason::Peer)
            }
            Ok(0) => Received::Closed(CloseReason::Lost),
            Ok(bytes) => match self.take(conn, bytes, sink) {
                Err(what) => Received::Closed(CloseReason::Protocol(what)),
                Ok(()) if bytes < room && short_blocks => Received::Empty,
                Ok(()) => Received::More(bytes),
            },
            Err(error) => after(error.kind()),
        }
    }

    /// Reads and forgets: the connection is being closed here.
    pub(super) fn discard(&mut self, stream: &mut impl Read) -> Received {
        match stream.read(&mut self.bytes) {
            Ok(0) => Received::Closed(CloseReason::Local),
            Ok(bytes) => Received::More(bytes),
            Err(error) => after(error.kind()),
        }
    }

    fn room_bytes(&self) -> usize {
        let room = self.bytes.len() - self.tail;
        match self.pulls.front() {
            // A PDU of which the beginning is here has to fit.
            Some(pull) if pull.length >= BULK_BYTES && self.head == self.tail => {
                room.min(READ_AHEAD_BYTES)
            }
            _ => room,
        }
    }

    /// Sorts `count` bytes that were read: first into the payload, then behind the receive buffer.
    fn take(
        &mut self,
        conn: ConnId,
        count: usize,
        sink: &mut dyn Sink<B>,
    ) -> Result<(), &'static str> {
        let mut ahead = count;
        if let Some(mut pull) = self.arriving.take() {
            let part = count.min(pull.length - pull.filled);
            pull.filled += part;
            ahead -= part;
            self.settle(conn, pull, sink);
        }
        self.tail += ahead;
        self.parse(conn, sink)
    }

    /// Hands up a pull that is complete; keeps one that is not.
    fn settle(&mut self, conn: ConnId, pull: Pull<B>, sink: &mut dyn Sink<B>) {
        if pull.filled == pull.length {
            sink.pulled(conn, pull.cid, pull.buffer, true);
        } else {
            self.arriving = Some(pull);
        }
    }

    fn parse(&mut self, conn: ConnId, sink: &mut dyn Sink<B>) -> Result<(), &'static str> {
        while self.arriving.is_none() {
            let bytes = &self.bytes[self.head..self.tail];
            let Some((pdu_type, length)) = CommonHeader::peek(bytes).map_err(DecodeError::text)?
            else {
                break;
            };
            if pdu_type == PduType::Data {
                if bytes.len() < size_of::<Data>() {
                    break;
                }
                let transfer = Data::parse(bytes).map_err(DecodeError::text)?;
                self.begin(conn, transfer, sink)?;
                continue;
            }
            if length > CAPSULE_BYTES_MAX {
                return Err("a PDU that only a server sends");
            }
            let Some(pdu) = bytes.get(..length) else { break };
            self.head += length;
            sink.pdu(conn, pdu)?;
        }
        self.compact();
        Ok(())
    }

    /// DATA begins at `head`: finds its pull, and moves what has arrived of it already.
    fn begin(
        &mut self,
        conn: ConnId,
        transfer: Transfer,
        sink: &mut dyn Sink<B>,
    ) -> Result<(), &'static str> {
        let Transfer { cid, offset, length } = transfer;
        let asked = |pull: &Pull<B>| pull.cid == cid && pull.length == length as usize;
        let found = self.pulls.iter().position(asked).filter(|_| offset == 0);
        let mut pull = found
            .and_then(|index| self.pulls.remove(index))
            .ok_or("DATA that no R2T has asked for")?;
        self.head += size_of::<Data>();
        let here = pull.length.min(self.tail - self.head);
        pull.buffer.as_mut()[..here].copy_from_slice(&self.bytes[self.head..self.head + here]);
        self.bytes_copied += here as u64;
        pull.filled = here;
        self.head += here;
        self.settle(conn, pull, sink);
        Ok(())
    }

    /// Makes room for the longest PDU behind what is left.
    fn compact(&mut self) {
        if self.head == self.tail {
            (self.head, self.tail) = (0, 0);
        } else if self.bytes.len() - self.head < CAPSULE_BYTES_MAX || self.tail == self.bytes.len()
        {
            self.bytes.copy_within(self.head..self.tail, 0);
            (self.head, self.tail) = (0, self.tail - self.head);
        }
    }
}

fn after(error: ErrorKind) -> Received {
    match error {
        ErrorKind::WouldBlock => Received::Empty,
        ErrorKind::Interrupted => Received::More(0),
        ErrorKind::InvalidData => Received::Closed(CloseReason::Protocol(IMPOSSIBLE)),
        _ => Received::Closed(CloseReason::Lost),
    }
}
