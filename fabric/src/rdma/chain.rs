//! Work for one queue pair, put together in safe memory and posted as a whole.
//!
//! A chain cannot be half-built: it names its buffers by index and owns them all, so that whoever
//! posts it finds every address in a buffer that is there. What is too large for one work request
//! is split here: by the fragments of the peer's memory, by the number of pieces and by the bytes that one
//! may have.

use super::provider::Limits;
use super::splitter::Splitter;
use crate::pdu::Fragment;
use crate::transport::{Payload, RemoteMemory};
use std::ops::Range;

/// Bytes of one of the chain's buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which buffer.
    pub buffer: usize,
    /// Which bytes of it.
    pub range: Range<usize>,
}

/// What one work request does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Sends these bytes of [`Chain::bytes`], and a number.
    Send {
        /// Which bytes.
        bytes: Range<usize>,
        /// The number.
        immediate: u32,
    },
    /// Writes these pieces, one behind the other, to the peer's memory.
    Write {
        /// Which of [`Chain::pieces`].
        pieces: Range<usize>,
        /// The peer's memory.
        address: u64,
        /// Its key.
        key: u32,
    },
    /// Reads the peer's memory into a piece.
    Read {
        /// Which of [`Chain::pieces`].
        piece: usize,
        /// The peer's memory.
        address: u64,
        /// Its key.
        key: u32,
        /// Of the last work request of a READ: the number that its end is reported under.
        token: Option<u32>,
    },
}

/// One work request, and how many buffers no later one refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it does.
    pub work: Work,
    /// So many of the chain's buffers, counted in order, are done with when it has completed.
    pub releases: u16,
}

/// Work requests in the order in which they are to be done.
#[derive(Debug)]
pub struct Chain<B> {
    steps: Vec<Step>,
    pieces: Vec<Piece>,
    buffers: Vec<B>,
    bytes: Vec<u8>,
}

/// A send queue's work requests that completed unheard pile up until one is signalled; at the
/// latest this one is.
const UNSIGNALLED_MAX: u32 = 31;

impl Step {
    /// Whether the completion of this work request has to be heard of: the last one of a doorbell,
    /// the last one of a READ, and one of every 32. `unheard` counts for the queue pair.
    pub fn is_signalled(&self, last: bool, unheard: &mut u32) -> bool {
        let reads = matches!(self.work, Work::Read { token: Some(_), .. });
        let signalled = last || reads || *unheard >= UNSIGNALLED_MAX;
        *unheard = if signalled { 0 } else { *unheard + 1 };
        signalled
    }

    /// The number that the end of this work request is reported under.
    #[must_use]
    pub fn token(&self) -> Option<u32> {
        if let Work::Read { token, .. } = self.work { token } else { None }
    }
}

impl<B> Default for Chain<B> {
    fn default() -> Self {
        Self { steps: Vec::new(), pieces: Vec::new(), buffers: Vec::new(), bytes: Vec::new() }
    }
}

impl<B> Chain<B> {
    /// There is nothing to post.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The work requests.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// What their pieces are.
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The bytes that are sent.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many buffers it owns.
    #[must_use]
    pub fn buffer_count(&self) -> usize {
        self.buffers.len()
    }

    /// Its buffers, in order.
    #[must_use]
    pub fn buffers(&self) -> &[B] {
        &self.buffers
    }

    /// Hands its buffers over, in order.
    pub fn take_buffers(&mut self) -> std::vec::Drain<'_, B> {
        self.buffers.drain(..)
    }

    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.steps.clear();
        self.pieces.clear();
        self.buffers.clear();
        self.bytes.clear();
    }

    /// Sends `message` and a number.
    pub fn send(&mut self, message: &[u8], immediate: u32) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(message);
        let work = Work::Send { bytes: start..self.bytes.len(), immediate };
        self.steps.push(Step { work, releases: 0 });
    }

    /// Writes `payloads`, none of them empty, one behind the other to the peer's memory, which is at
    /// least as long as they are.
    pub fn write(
        &mut self,
        remote: RemoteMemory<'_>,
        payloads: impl Iterator<Item = Payload<B>>,
        limits: &Limits,
    ) {
        let mut splitter = Splitter::new(remote, limits);
        for Payload { buffer, range } in payloads {
            debug_assert!(!range.is_empty(), "nothing to write");
            let index = self.buffers.len();
            self.buffers.push(buffer);
            let mut from = range.start;
            while let Some((begins, place)) = splitter.take(range.end - from) {
                if begins {
                    let (at, address) = (self.pieces.len(), place.address.get());
                    let work = Work::Write { pieces: at..at, address, key: place.key.get() };
                    self.steps.push(Step { work, releases: 0 });
                }
                let count = place.length.get() as usize;
                self.pieces.push(Piece { buffer: index, range: from..from + count });
                if let Some(Step { work: Work::Write { pieces, .. }, .. }) = self.steps.last_mut() {
                    pieces.end += 1;
                }
                from += count;
            }
            debug_assert!(from == range.end, "more to write than the memory holds");
            self.release_one();
        }
    }

    /// Writes `payload`, as long as `place`, there, with one work request.
    pub(super) fn write_one(&mut self, place: &Fragment, payload: Payload<B>) {
        let Payload { buffer, range } = payload;
        debug_assert!(range.len() == place.length.get() as usize, "a payload as long as its place");
        let at = self.pieces.len();
        self.pieces.push(Piece { buffer: self.buffers.len(), range });
        self.buffers.push(buffer);
        let (address, key) = (place.address.get(), place.key.get());
        self.steps
            .push(Step { work: Work::Write { pieces: at..at + 1, address, key }, releases: 1 });
    }

    /// Reads all of `remote` into the beginning of `buffer`; its end is reported as `token`.
    pub fn read(&mut self, token: u32, remote: RemoteMemory<'_>, buffer: B, limits: &Limits) {
        let index = self.buffers.len();
        self.buffers.push(buffer);
        let (mut walk, mut from) = (remote.walk(), 0);
        while let Some(place) = walk.step(limits.message_bytes) {
            let (piece, count) = (self.pieces.len(), place.length.get() as usize);
            self.pieces.push(Piece { buffer: index, range: from..from + count });
            from += count;
            let token = (from == remote.length() as usize).then_some(token);
            let (address, key) = (place.address.get(), place.key.get());
            self.steps.push(Step { work: Work::Read { piece, address, key, token }, releases: 0 });
        }
        self.release_one();
    }

    /// The last buffer is done with when the last work request is.
    fn release_one(&mut self) {
        if let Some(step) = self.steps.last_mut() {
            step.releases += 1;
        }
    }

    /// How many work requests it takes to read all of `remote`.
    #[must_use]
    pub fn works_to_read(remote: RemoteMemory<'_>, limits: &Limits) -> usize {
        let bytes = |fragment: &Fragment| fragment.length.get() as usize;
        let fragments = remote.fragments().iter();
        fragments.map(|fragment| bytes(fragment).div_ceil(limits.message_bytes)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(pieces: usize, message_bytes: usize) -> Limits {
        Limits { works: 1024, buffers: 1024, pieces, message_bytes, send_bytes: 1 << 20 }
    }

    /// Carries out a chain's WRITEs on `memory`, and drops buffers when it is told to.
    fn carry_out(chain: &mut Chain<Vec<u8>>, memory: &mut [u8], limits: &Limits) {
        let (steps, pieces) = (chain.steps().to_vec(), chain.pieces().to_vec());
        let mut buffers: Vec<Option<Vec<u8>>> = chain.take_buffers().map(Some).collect();
        let mut released = 0;
        for Step { work, releases } in steps {
            let Work::Write { pieces: range, address, key: 7 } = work else { panic!("{work:?}") };
            assert!(!range.is_empty() && range.len() <= limits.pieces);
            let mut at = address as usize;
            for piece in &pieces[range] {
                let bytes = &buffers[piece.buffer].as_ref().expect("released too early")
                    [piece.range.clone()];
                memory[at..at + bytes.len()].copy_from_slice(bytes);
                at += bytes.len();
            }
            assert!(at - address as usize <= limits.message_bytes);
            for _ in 0..releases {
                buffers[released] = None;
                released += 1;
            }
        }
        assert!(buffers.iter().all(Option::is_none), "released too late");
    }

    /// Memory of `length` bytes in `memory`, whose fragments do not overlap; some are empty, and some stand
    /// side by side. Returns which bytes they are, in order.
    fn scatter(rng: &mut fastrand::Rng, length: usize) -> (Vec<Fragment>, Vec<usize>, usize) {
        let mut pieces = Vec::new();
        let (mut at, mut rest) = (3, length);
        while rest > 0 {
            let count = rng.usize(0..rest.min(900) + 1);
            pieces.push((at, count));
            at += count + if rng.bool() { rng.usize(1..50) } else { 0 };
            rest -= count;
        }
        if rng.bool() {
            rng.shuffle(&mut pieces);
        }
        let fragments =
            pieces.iter().map(|(at, count)| Fragment::new(*at as u64, 7, *count as u32));
        let bytes = pieces.iter().flat_map(|(at, count)| *at..at + count);
        (fragments.collect(), bytes.collect(), at)
    }

    #[test]
    fn payloads_of_any_shape_land_in_fragments_of_any_shape() {
        for seed in 0..500 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let limits = limits(rng.usize(1..6), rng.usize(1..5000));
            let (mut chain, mut data) = (Chain::default(), Vec::new());
            let payloads: Vec<_> = (0..rng.usize(1..200))
                .map(|_| {
                    let (front, length) = (rng.usize(0..9), rng.usize(1..600));
                    let bytes: Vec<u8> = (0..front + length + 3).map(|_| rng.u8(1..)).collect();
                    data.extend_from_slice(&bytes[front..front + length]);
                    Payload { buffer: bytes, range: front..front + length }
                })
                .collect();
            let (fragments, places, end) = scatter(&mut rng, data.len());
            let remote = RemoteMemory::new(&fragments);
            let mut splitter = Splitter::new(remote, &limits);
            let lengths = payloads.iter().map(|payload| payload.range.len());
            let works: usize = lengths.map(|length| splitter.pass(length)).sum();
            chain.write(remote, payloads.into_iter(), &limits);
            assert_eq!(chain.steps().len(), works, "seed {seed}");
            let (mut memory, mut expected) = (vec![0; end], vec![0; end]);
            carry_out(&mut chain, &mut memory, &limits);
            places.into_iter().zip(data).for_each(|(at, byte)| expected[at] = byte);
            assert!(memory == expected, "seed {seed}");
        }
    }

    #[test]
    fn one_payload_takes_no_more_work_than_its_fragments_and_its_length() {
        for seed in 0..500 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (limits, length) =
                (limits(rng.usize(1..6), rng.usize(1..900)), rng.usize(1..20_000));
            let (fragments, ..) = scatter(&mut rng, length);
            let remote = RemoteMemory::new(&fragments);
            let most = fragments.len() + length / limits.message_bytes;
            assert!(Splitter::new(remote, &limits).pass(length) <= most, "seed {seed}");
            assert!(Chain::<Vec<u8>>::works_to_read(remote, &limits) <= most, "seed {seed}");
        }
    }

    #[test]
    fn a_read_is_split_by_fragments_and_the_longest_message_and_ends_once() {
        let limits = limits(1, 1000);
        let mut chain = Chain::default();
        let fragments =
            [Fragment::new(50, 1, 1200), Fragment::new(0, 1, 0), Fragment::new(9, 2, 1000)];
        let remote = RemoteMemory::new(&fragments);
        chain.read(9, remote, vec![0; 2500], &limits);
        let found: Vec<_> = chain
            .steps()
            .iter()
            .map(|step| match step.work {
                Work::Read { piece, address, key, token } => {
                    let range = chain.pieces()[piece].range.clone();
                    ((address, key), range, token, step.releases)
                }
                _ => panic!("{step:?}"),
            })
            .collect();
        let expected = [
            ((50, 1), 0..1000, None, 0),
            ((1050, 1), 1000..1200, None, 0),
            ((9, 2), 1200..2200, Some(9), 1),
        ];
        assert_eq!(found, expected);
        assert_eq!(Chain::<Vec<u8>>::works_to_read(remote, &limits), 3);
    }
}
