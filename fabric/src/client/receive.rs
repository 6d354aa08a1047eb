//! What arrives on one connection: a buffer for PDUs, and large data past it.
//!
//! Data that has not arrived whole behind its response is read straight to where it belongs: the
//! next vectored read fills its buffer, or the caller's fragments, first, and the receive buffer with what
//! follows. While
//! answers are large, only little is read behind them, since that would have to be copied. The
//! checksum of such data is computed as it arrives, while it is still in the CPU's cache.

use super::data::Data;
use super::error::LinkError;
use super::landing::{Landed, Landing};
use super::link::protocol;
use super::operation::{OpId, Operation, Operations};
use crate::checksum::Digest;
use crate::pdu::{Outcome, response_flags};
use crate::region::{SLICES_MAX, Slices};
use std::io::{self, IoSliceMut, Read};

/// Data from this size on counts as large.
const LARGE_BYTES: usize = 64 << 10;
/// What is read into the buffer while answers are large.
const SHORT_READ_BYTES: usize = 8 << 10;

/// The data of one answer, all of it.
#[derive(Debug)]
pub(super) struct Got {
    /// What did not land in fragments.
    pub data: Data,
    /// It is what the response says it is, as far as that says anything of the whole.
    pub intact: bool,
    pub landed: Option<Landed>,
}

impl Got {
    pub(super) fn landed(outcome: &Outcome, data: Vec<u8>, landing: Landing) -> Self {
        let has_items = outcome.flags & response_flags::ITEMS != 0;
        let intact = has_items || landing.is_intact(outcome);
        Self { data: data.into(), intact, landed: Some(landing.landed()) }
    }
}

/// Data of a response on its way in.
#[derive(Debug)]
pub(super) struct Incoming {
    pub outcome: Outcome,
    pub op: OpId,
    /// What does not land in fragments, so much of it as `filled` says.
    data: Vec<u8>,
    filled: usize,
    /// Of what has arrived; `None`: the data as a whole has no checksum.
    digest: Option<Digest>,
    /// What comes behind `data` lands in fragments; how far that is, once `data` has come.
    lands: bool,
    landing: Option<Landing>,
}

impl Incoming {
    /// All of it goes to `data`.
    pub(super) fn new(outcome: Outcome, op: OpId, data: Vec<u8>) -> Self {
        let checked = outcome.flags & response_flags::ITEMS == 0;
        let digest = checked.then(Digest::new);
        Self { outcome, op, data, filled: 0, digest, lands: false, landing: None }
    }

    /// What comes behind `data`, the results of a batch or nothing, lands in the fragments of `op`.
    pub(super) fn landing(outcome: Outcome, op: OpId, data: Vec<u8>) -> Self {
        Self { outcome, op, data, filled: 0, digest: None, lands: true, landing: None }
    }

    /// Bytes that `data` lacks.
    fn wanted(&self) -> usize {
        self.data.len() - self.filled
    }

    fn is_complete(&self) -> bool {
        match &self.landing {
            Some(landing) => landing.left() == 0,
            None => !self.lands && self.wanted() == 0,
        }
    }

    /// The next `count` bytes of `data` are there.
    fn advance(&mut self, count: usize) {
        let end = self.filled + count;
        if let Some(digest) = &mut self.digest {
            digest.update(&self.data[self.filled..end]);
        }
        self.filled = end;
    }

    /// Takes what it needs of `bytes`, which came next; how many.
    fn feed(&mut self, bytes: &[u8], op: &Operation) -> Result<usize, LinkError> {
        let mut taken = self.wanted().min(bytes.len());
        self.data[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
        self.advance(taken);
        if !self.lands || self.wanted() > 0 {
            return Ok(taken);
        }
        let landing = match &mut self.landing {
            Some(landing) => landing,
            None => {
                let begun = Landing::begin(op, &self.outcome, &self.data).map_err(protocol)?;
                self.landing.insert(begun)
            }
        };
        let count = landing.left().min(bytes.len() - taken);
        landing.advance(op.layout(&self.data), count, |held, range| {
            let end = taken + range.len();
            held.put(range.start, &bytes[taken..end]);
            taken = end;
        });
        Ok(taken)
    }

    /// Once it is complete.
    fn finish(self) -> Fed {
        let Self { outcome, data, digest, landing, .. } = self;
        let got = match landing {
            Some(landing) => Got::landed(&outcome, data, landing),
            None => {
                let crc = digest.map(|digest| digest.finalize());
                let intact = crc.is_none_or(|crc| crc == outcome.data_crc);
                Got { data: data.into(), intact, landed: None }
            }
        };
        Fed::Whole(outcome, got)
    }
}

#[derive(Debug)]
pub(super) struct Receiver {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    incoming: Option<Incoming>,
    /// The last data that came was large.
    large: bool,
}

impl Receiver {
    pub(super) fn new(bytes: usize) -> Self {
        let buffer = vec![0; bytes].into_boxed_slice();
        Self { buffer, start: 0, end: 0, incoming: None, large: false }
    }

    /// One read; the bytes that came, 0 at the end of the stream.
    pub(super) fn fill<R: Read>(&mut self, stream: &mut R, ops: &Operations) -> io::Result<usize> {
        self.make_room();
        let room = &mut self.buffer[self.end..];
        let limit = if self.large { room.len().min(SHORT_READ_BYTES) } else { room.len() };
        let (count, placed) = match &mut self.incoming {
            Some(incoming) if incoming.wanted() > 0 => fill_data(incoming, stream, room, limit)?,
            Some(incoming) => fill_fragments(incoming, stream, room, limit, ops)?,
            None => (stream.read(&mut room[..limit])?, 0),
        };
        self.end += count - placed;
        Ok(count)
    }

    fn make_room(&mut self) {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.start > 0 && self.end > self.buffer.len() / 2 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// What has arrived and has not been consumed.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub(super) fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.end - self.start);
        self.start += count;
    }

    /// From now on, what arrives first belongs to `incoming`, and so does what is in the buffer.
    pub(super) fn expect(&mut self, incoming: Incoming) {
        debug_assert!(self.incoming.is_none());
        self.large = incoming.outcome.data_length as usize >= LARGE_BYTES;
        self.incoming = Some(incoming);
    }

    /// Hands on what is in the buffer to the data that it belongs to.
    pub(super) fn feed(&mut self, ops: &Operations) -> Result<Fed, LinkError> {
        let Some(incoming) = &mut self.incoming else { return Ok(Fed::Nothing) };
        let bytes = &self.buffer[self.start..self.end];
        self.start += incoming.feed(bytes, &ops[incoming.op])?;
        let whole = self.incoming.take_if(|incoming| incoming.is_complete());
        Ok(whole.map_or(Fed::More, Incoming::finish))
    }

    /// The next `count` bytes were data that had arrived whole.
    pub(super) fn consume_data(&mut self, count: usize) {
        self.large = count >= LARGE_BYTES;
        self.consume(count);
    }

    /// Forgets everything; the buffer of data that was on its way is returned.
    pub(super) fn clear(&mut self) -> Option<Vec<u8>> {
        self.start = 0;
        self.end = 0;
        self.large = false;
        self.incoming.take().map(|incoming| incoming.data)
    }
}

/// What [`Receiver::feed`] has found.
#[derive(Debug)]
pub(super) enum Fed {
    /// No data is on its way: the buffer begins with a PDU.
    Nothing,
    /// More of it has to come.
    More,
    /// It is complete.
    Whole(Outcome, Got),
}

/// Reads into the buffer of `incoming`, and behind that into `room`. The bytes that came, and how many of
/// them were the data's.
fn fill_data<R: Read>(
    incoming: &mut Incoming,
    stream: &mut R,
    room: &mut [u8],
    limit: usize,
) -> io::Result<(usize, usize)> {
    let wanted = incoming.wanted();
    // What is behind the results of a batch goes to fragments; which ones they say themselves.
    let limit = if incoming.lands { 0 } else { limit };
    let data = IoSliceMut::new(&mut incoming.data[incoming.filled..]);
    let count = stream.read_vectored(&mut [data, IoSliceMut::new(&mut room[..limit])])?;
    incoming.advance(count.min(wanted));
    Ok((count, count.min(wanted)))
}

/// Reads into the fragments that `incoming` lands in, and behind the last one into `room`. Where they
/// cannot be read into, all goes to `room`, and is copied from there.
fn fill_fragments<R: Read>(
    incoming: &mut Incoming,
    stream: &mut R,
    room: &mut [u8],
    limit: usize,
    ops: &Operations,
) -> io::Result<(usize, usize)> {
    let layout = ops[incoming.op].layout(&incoming.data);
    let Some(landing) = &mut incoming.landing else { return Ok((stream.read(room)?, 0)) };
    let slices = Slices::mutable();
    let mut list: [_; SLICES_MAX + 1] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
    let (mut places, mut bytes) = (0, 0);
    for (held, range) in landing.pieces(layout) {
        bytes += range.len();
        let Some(slice) = slices.get_mut(held, range.clone()) else {
            bytes -= range.len();
            break;
        };
        list[places] = slice;
        places += 1;
    }
    if bytes == landing.left() {
        list[places] = IoSliceMut::new(&mut room[..limit]);
        places += 1;
    } else if places == 0 {
        list[0] = IoSliceMut::new(room);
        places = 1;
    }
    let count = stream.read_vectored(&mut list[..places])?;
    drop(slices);
    landing.advance(layout, count.min(bytes), |_, _| ());
    Ok((count, count.min(bytes)))
}
