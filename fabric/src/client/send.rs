//! What waits to be sent on one connection: small parts copied together, large ones by reference.
//!
//! Bytes leave in the order in which they were put, in as few vectored writes as the network takes.

use crate::region::{Held, Region, SLICES_MAX, Slices};
use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::ops::Range;

/// Parts up to this many bytes are copied: cheaper than another entry in a vectored write.
const COPY_BYTES: usize = 8 << 10;
/// Parts handed to the network in one write.
const WRITE_PARTS: usize = SLICES_MAX;
/// Sent bytes at the front of the buffer that are worth moving the rest for.
const COMPACT_BYTES: usize = 256 << 10;

#[derive(Debug)]
enum Part {
    /// The next bytes of `copied`.
    Copied(usize),
    Shared(Bytes),
    /// These bytes of a fragment, counted from its beginning: its region is not idle until they left.
    Held(Held, Range<usize>),
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Self::Copied(length) => *length,
            Self::Shared(data) => data.len(),
            Self::Held(_, range) => range.len(),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct SendQueue {
    copied: Vec<u8>,
    /// Bytes at the front of `copied` that have left.
    sent: usize,
    parts: VecDeque<Part>,
}

impl SendQueue {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self { copied: Vec::with_capacity(bytes), sent: 0, parts: VecDeque::with_capacity(64) }
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.copied.extend_from_slice(bytes);
        match self.parts.back_mut() {
            Some(Part::Copied(length)) => *length += bytes.len(),
            _ => self.parts.push_back(Part::Copied(bytes.len())),
        }
    }

    pub(super) fn put_shared(&mut self, data: Bytes) {
        if data.len() <= COPY_BYTES {
            self.put(&data);
        } else {
            self.parts.push_back(Part::Shared(data));
        }
    }

    /// Bytes of a fragment, counted from its beginning; sent from where they are.
    pub(super) fn put_held(&mut self, held: &Held, range: Range<usize>) {
        if range.len() <= COPY_BYTES {
            held.read_pieces(range, |piece| self.put(piece));
        } else {
            self.parts.push_back(Part::Held(held.clone(), range));
        }
    }

    /// Some of `region` waits to be sent.
    pub(super) fn holds(&self, region: &Region) -> bool {
        let is_its =
            |part: &Part| matches!(part, Part::Held(held, _) if held.region().is_same(region));
        self.parts.iter().any(is_its)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.copied.clear();
        self.sent = 0;
    }

    /// One vectored write; the bytes that left.
    pub(super) fn write<W: Write>(&mut self, stream: &mut W) -> io::Result<usize> {
        let held = Slices::shared();
        let mut slices = [IoSlice::new(&[]); WRITE_PARTS];
        let mut count = 0;
        let mut at = self.sent;
        for (slice, part) in slices.iter_mut().zip(&self.parts) {
            *slice = match part {
                Part::Copied(length) => {
                    at += length;
                    IoSlice::new(&self.copied[at - length..at])
                }
                Part::Shared(data) => IoSlice::new(data),
                Part::Held(one, range) => match held.get(one, range.clone()) {
                    Some(bytes) => bytes,
                    None => break,
                },
            };
            count += 1;
        }
        let written = match (count, self.parts.front()) {
            (0, Some(Part::Held(one, range))) => write_staged(one, range.clone(), stream)?,
            _ => stream.write_vectored(&slices[..count])?,
        };
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        drop(held);
        self.advance(written);
        Ok(written)
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(part) = self.parts.front_mut() {
            let length = part.len();
            let step = length.min(written);
            written -= step;
            match part {
                Part::Copied(length) => {
                    *length -= step;
                    self.sent += step;
                }
                Part::Shared(data) => data.advance(step),
                Part::Held(_, range) => range.start += step,
            }
            if step < length {
                break;
            }
            self.parts.pop_front();
        }
        if self.parts.is_empty() {
            self.copied.clear();
            self.sent = 0;
        } else if self.sent >= COMPACT_BYTES && self.sent * 2 >= self.copied.len() {
            self.copied.drain(..self.sent);
            self.sent = 0;
        }
    }
}

/// Writes the first bytes of a fragment that a device may write to: a copy of them.
fn write_staged<W: Write>(held: &Held, range: Range<usize>, stream: &mut W) -> io::Result<usize> {
    let count = range.len().min(COPY_BYTES);
    let mut stage = [0; COPY_BYTES];
    let mut filled = 0;
    held.read_pieces(range.start..range.start + count, |piece| {
        stage[filled..filled + piece.len()].copy_from_slice(piece);
        filled += piece.len();
    });
    stream.write(&stage[..count])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a different, small number of bytes at each write.
    struct Trickle {
        taken: Vec<u8>,
        rng: fastrand::Rng,
    }

    impl Write for Trickle {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = self.rng.usize(1..=bytes.len());
            self.taken.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_leave_in_order_however_little_the_network_takes() {
        for seed in 0..50 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut queue = SendQueue::default();
            let mut expected = Vec::new();
            let mut peer = Trickle { taken: Vec::new(), rng: rng.fork() };
            for _ in 0..60 {
                let bytes: Vec<u8> = (0..rng.usize(1..30_000)).map(|_| rng.u8(..)).collect();
                expected.extend_from_slice(&bytes);
                match rng.u8(..3) {
                    0 => queue.put(&bytes),
                    1 => queue.put_shared(bytes.into()),
                    _ => {
                        let region = Region::new(bytes.len() + 1).unwrap();
                        region.write(1, &bytes).unwrap();
                        queue.put_held(&Held::new(&region.whole()), 1..bytes.len() + 1);
                    }
                }
                while rng.u8(..) > 100 && !queue.is_empty() {
                    queue.write(&mut peer).unwrap();
                }
            }
            while !queue.is_empty() {
                queue.write(&mut peer).unwrap();
            }
            assert!(peer.taken == expected, "seed {seed}");
            assert!(queue.copied.is_empty());
        }
    }
}
