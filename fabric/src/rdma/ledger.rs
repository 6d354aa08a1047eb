//! What is in flight on one send queue: who owns which buffer until which work has completed.
//!
//! Work requests of a send queue complete in the order in which they were posted, so that one
//! completion stands for all that were posted before it. Buffers lie in places that do not move
//! while they are held: their addresses may be taken once they are in place.

/// Sequence numbers have so many bits.
const SEQUENCE_BITS: u32 = 31;
const SEQUENCE_MASK: u32 = (1 << SEQUENCE_BITS) - 1;

/// One posted work request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    /// Buffers that are done with when it has completed.
    pub releases: u16,
    /// Bytes of the send ring that it has taken.
    pub ring_bytes: u32,
    /// It ends a READ that is reported under this number.
    pub token: Option<u32>,
}

/// A READ that is over.
#[derive(Debug)]
pub struct Ended<H> {
    /// The number that it was started with.
    pub token: u32,
    /// What it was read into.
    pub held: H,
    /// All its bytes are there.
    pub complete: bool,
}

/// The work in flight on one send queue, and what it refers to.
#[derive(Debug)]
pub struct Ledger<H> {
    /// By the low bits of their sequence numbers.
    works: Box<[InFlight]>,
    works_max: usize,
    /// The sequence numbers of the oldest one in flight, and of the next one.
    oldest: u32,
    next: u32,
    places: Box<[Option<H>]>,
    /// The first place that is taken, and how many are.
    first: usize,
    taken: usize,
    /// Where the bytes of PDUs lie.
    pub ring: ByteRing,
}

impl<H> Ledger<H> {
    /// Room for `works` work requests, `buffers` buffers and `ring_bytes` bytes of PDUs.
    #[must_use]
    pub fn new(works: usize, buffers: usize, ring_bytes: usize) -> Self {
        Self {
            works: vec![InFlight::default(); works.next_power_of_two()].into_boxed_slice(),
            works_max: works,
            oldest: 0,
            next: 0,
            places: (0..buffers).map(|_| None).collect(),
            first: 0,
            taken: 0,
            ring: ByteRing::new(ring_bytes),
        }
    }

    /// Work requests that have not completed.
    #[must_use]
    #[inline]
    pub fn in_flight(&self) -> usize {
        (self.next.wrapping_sub(self.oldest) & SEQUENCE_MASK) as usize
    }

    #[inline]
    fn place_of(&self, sequence: u32) -> usize {
        sequence as usize & (self.works.len() - 1)
    }

    /// What there is room for.
    #[must_use]
    pub fn room(&self) -> super::Room {
        super::Room {
            works: self.works_max - self.in_flight(),
            buffers: self.places.len() - self.taken,
            bytes: self.ring.room(),
        }
    }

    /// Puts a buffer into the place where it stays until the work that releases it has completed.
    ///
    /// # Panics
    /// If there is no room.
    pub fn hold(&mut self, held: H) -> usize {
        assert!(self.taken < self.places.len(), "more buffers than there is room for");
        let place = self.behind(self.taken);
        self.places[place] = Some(held);
        self.taken += 1;
        place
    }

    /// The place that is `count` behind the first one that is taken: at most once around.
    #[inline]
    fn behind(&self, count: usize) -> usize {
        let (place, places) = (self.first + count, self.places.len());
        if place < places { place } else { place - places }
    }

    /// The buffer in a place.
    ///
    /// # Panics
    /// If it is empty.
    pub fn at(&mut self, place: usize) -> &mut H {
        self.places[place].as_mut().expect("a place that holds a buffer")
    }

    /// A work request is about to be posted; its sequence number.
    ///
    /// # Panics
    /// If there is no room.
    pub fn post(&mut self, work: InFlight) -> u32 {
        assert!(self.in_flight() < self.works_max, "more work than there is room for");
        let sequence = self.next;
        self.works[self.place_of(sequence)] = work;
        self.next = (sequence + 1) & SEQUENCE_MASK;
        sequence
    }

    /// The work request `sequence` has completed, and with it all before it. Drops their buffers,
    /// and hands those of READs to `ended`. `false` if it is not in flight.
    pub fn complete(
        &mut self,
        sequence: u32,
        success: bool,
        mut ended: impl FnMut(Ended<H>),
    ) -> bool {
        let count = (sequence.wrapping_sub(self.oldest) & SEQUENCE_MASK) as usize;
        if count >= self.in_flight() {
            return false;
        }
        for number in 0..=count {
            self.retire(success || number < count, &mut ended);
        }
        true
    }

    fn retire(&mut self, success: bool, ended: &mut impl FnMut(Ended<H>)) {
        let work = self.works[self.place_of(self.oldest)];
        self.oldest = (self.oldest + 1) & SEQUENCE_MASK;
        self.ring.give_back(work.ring_bytes as usize);
        for number in 0..work.releases {
            let held = self.places[self.first].take();
            self.first = self.behind(1);
            self.taken -= 1;
            let last = number + 1 == work.releases;
            if let (Some(held), Some(token), true) = (held, work.token, last) {
                ended(Ended { token, held, complete: success });
            }
        }
    }

    /// Nothing of it moves any more: everything that is in flight has failed.
    pub fn give_up(&mut self, mut ended: impl FnMut(Ended<H>)) {
        while self.in_flight() > 0 {
            self.retire(false, &mut ended);
        }
    }
}

/// Memory for bytes that leave in the order in which they came.
#[derive(Clone, Copy, Debug)]
pub struct ByteRing {
    size: usize,
    next: usize,
    used: usize,
}

impl ByteRing {
    fn new(size: usize) -> Self {
        Self { size, next: 0, used: 0 }
    }

    /// Any number of takes that are so many bytes together find room.
    #[must_use]
    pub fn room(&self) -> usize {
        let free = self.size - self.used;
        let behind = (self.size - self.next).min(free);
        behind.max(free.saturating_sub(self.size - self.next))
    }

    /// Room for `length` bytes in a row: where, and how many bytes are taken by it.
    pub fn take(&mut self, length: usize) -> Option<(usize, u32)> {
        let skipped = if self.size - self.next < length { self.size - self.next } else { 0 };
        if self.used + skipped + length > self.size {
            return None;
        }
        let start = (self.next + skipped) % self.size.max(1);
        self.next = start + length;
        self.used += skipped + length;
        Some((start, (skipped + length) as u32))
    }

    fn give_back(&mut self, taken: usize) {
        self.used -= taken;
        if self.used == 0 {
            self.next = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    #[test]
    fn one_completion_stands_for_all_before_it() {
        let mut ledger = Ledger::new(8, 8, 0);
        (ledger.oldest, ledger.next) = (SEQUENCE_MASK - 1, SEQUENCE_MASK - 1);
        let mut sequences = Vec::new();
        for (number, token) in [(0, None), (1, Some(5)), (2, None), (3, Some(6))] {
            ledger.hold(number);
            sequences.push(ledger.post(InFlight { releases: 1, ring_bytes: 0, token }));
        }
        let mut ended = Vec::new();
        let mut note = |end: Ended<i32>| ended.push((end.token, end.held, end.complete));
        assert!(ledger.complete(sequences[2], false, &mut note));
        assert!(!ledger.complete(sequences[2], true, &mut note), "said twice");
        assert_eq!(ledger.in_flight(), 1);
        ledger.give_up(&mut note);
        assert_eq!(ended, [(5, 1, true), (6, 3, false)]);
        assert_eq!(ledger.room().buffers, 8);
    }

    #[test]
    fn bytes_in_the_ring_never_overlap_and_what_there_is_room_for_fits() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let size = rng.usize(100..1000);
            let mut ring = ByteRing::new(size);
            let mut held: VecDeque<(usize, usize, u32)> = VecDeque::new();
            for _ in 0..500 {
                let mut room = ring.room();
                while room > 0 && rng.u8(..4) > 0 {
                    let length = rng.usize(1..=room.min(120));
                    room -= length;
                    let (start, taken) = ring.take(length).expect("there was room");
                    assert!(start + length <= size);
                    for (other, bytes, _) in &held {
                        assert!(start + length <= *other || other + bytes <= start, "seed {seed}");
                    }
                    held.push_back((start, length, taken));
                }
                for _ in 0..rng.usize(0..4) {
                    if let Some((.., taken)) = held.pop_front() {
                        ring.give_back(taken as usize);
                    }
                }
            }
            while let Some((.., taken)) = held.pop_front() {
                ring.give_back(taken as usize);
            }
            assert_eq!(ring.room(), size, "an empty ring takes the longest PDU");
        }
    }
}
