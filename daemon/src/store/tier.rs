//! The DRAM tier: whole values that were read and verified, kept where the network takes them from.
//!
//! What stays is decided by S3-FIFO (Yang et al., SOSP 2023): a new value goes to a small queue, and from its
//! end to the main one if it was asked for meanwhile; one that has just been dropped goes to the main queue at
//! once when it comes back. A scan therefore passes through a tenth of the memory.
//!
//! Guarantees: what is found is what the index points at; memory is a pool of its own, so that values here take
//! none from commands; replies hold what they send, however long that takes, and nobody writes to it; nothing is
//! allocated after the start, and a hit touches no device. What breaks it: memory that changes by itself. The
//! checksum that was verified goes with the bytes, so a client finds out, or over shared memory the copy to it; but the
//! value stays until it is dropped.

use super::index::{KeyHash, Pointer};
use crate::counters::Count;
use forebay_nvme::{BLOCK_BYTES, DmaBuf, Pool, SharedBuf};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::VecDeque;

/// One part in so many is the small queue's.
const SMALL_PART: usize = 10;
/// A value that takes more than one part in so many of the memory is not kept.
const VALUE_PART: usize = 8;
/// Times that a value was asked for, as far as that counts.
const HITS_MAX: u8 = 3;
/// Values that are moved within the queues, at most, before one is dropped all the same: time has a bound.
const MOVES_MAX: usize = 1024;
/// So much more than is needed is dropped, at most, for one buffer: others may still hold what was dropped.
const DROPPED_MAX: usize = 8;
/// Values that were dropped and are known, for each that fits.
const GHOSTS: usize = 4;

/// Which queue a value is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    Small,
    Main,
}

/// One value's place. Without a buffer it was forgotten, and is still in its queue.
#[derive(Debug)]
struct Slot {
    hash: KeyHash,
    found: Option<Found>,
    hits: u8,
    queue: Queue,
    /// The next one whose hash leads to the same place.
    next: u32,
}

/// A value of the tier.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// The memory it is in.
    pub buffer: SharedBuf,
    /// Where in it.
    pub begin: u32,
    /// Bytes in it.
    pub length: u32,
    /// CRC32C of the whole value.
    pub crc: u32,
    /// When it ends, as in its [`Pointer`].
    pub expiry_s: u32,
}

/// No slot.
const NONE: u32 = u32::MAX;

#[derive(Debug, Default)]
struct State {
    /// By the low bits of a hash, which has a secret key: the first slot of a chain.
    heads: Box<[u32]>,
    values: usize,
    slots: Vec<Slot>,
    free: Vec<u32>,
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    /// Bytes of memory in the small queue.
    small_bytes: usize,
    small_bytes_max: usize,
    /// Values that were dropped from the small queue: each place has the last one whose hash led there.
    ghosts: Box<[u64]>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Tier {
    /// `None`: there is no tier.
    pool: Option<Pool>,
    state: RefCell<State>,
    hits: Count,
    misses: Count,
    dropped: Count,
}

impl Tier {
    /// A tier in all of `pool`.
    #[must_use]
    pub fn new(pool: Pool) -> Self {
        let bytes = pool.total_bytes();
        let count = bytes / BLOCK_BYTES;
        let state = State {
            heads: vec![NONE; count.next_power_of_two()].into_boxed_slice(),
            values: 0,
            slots: Vec::with_capacity(count),
            free: Vec::with_capacity(count),
            small: VecDeque::with_capacity(count),
            main: VecDeque::with_capacity(count),
            small_bytes: 0,
            small_bytes_max: bytes / SMALL_PART,
            ghosts: vec![0; GHOSTS * count.next_power_of_two()].into_boxed_slice(),
        };
        Self { pool: Some(pool), state: RefCell::new(state), ..Self::default() }
    }

    /// The value of a key, if it is here and has not expired by `now_s`.
    pub(super) fn find(&self, hash: KeyHash, now_s: u32) -> Option<Found> {
        self.pool.as_ref()?;
        let found = self.state.borrow_mut().find(hash, now_s);
        if found.is_some() { &self.hits } else { &self.misses }.bump();
        found
    }

    /// Memory to read a whole value into that may stay here; other values go for it.
    pub(super) fn alloc(&self, bytes: usize) -> Option<DmaBuf> {
        let pool = self.pool.as_ref()?;
        if bytes > pool.total_bytes() / VALUE_PART {
            return None;
        }
        let mut dropped = 0;
        loop {
            if let Some(buffer) = pool.alloc(bytes) {
                return Some(buffer);
            }
            if dropped > DROPPED_MAX * bytes {
                return None;
            }
            dropped += self.drop_one()?;
        }
    }

    /// Keeps the value at `pointer`, verified, from byte `begin` of `buffer` on, which [`Tier::alloc`] has given.
    pub(super) fn keep(&self, pointer: Pointer, begin: usize, crc: u32, buffer: DmaBuf) -> Found {
        let Pointer { hash, length, expiry_s, .. } = pointer;
        let found = Found { buffer: buffer.share(), begin: begin as u32, length, crc, expiry_s };
        while !self.state.borrow_mut().keep(hash, &found) {
            if self.drop_one().is_none() {
                break;
            }
        }
        found
    }

    /// The key has another value by now, or none.
    pub(super) fn forget(&self, hash: KeyHash) {
        if self.pool.is_some() {
            self.state.borrow_mut().forget(hash);
        }
    }

    fn drop_one(&self) -> Option<usize> {
        let dropped = self.state.borrow_mut().drop_one()?;
        self.dropped.bump();
        Some(dropped)
    }

    /// What it holds, and how well that serves.
    #[must_use]
    pub fn report(&self) -> Value {
        let bytes = self.pool.as_ref().map_or(0, Pool::total_bytes);
        json!({
            "bytes": bytes,
            "used_bytes": bytes - self.pool.as_ref().map_or(0, Pool::free_bytes),
            "values": self.state.borrow().values,
            "hits": self.hits.get(),
            "misses": self.misses.get(),
            "dropped": self.dropped.get(),
        })
    }
}

impl State {
    /// Where places for `hash` begin.
    fn place(&self, hash: KeyHash) -> usize {
        hash.low() as usize & (self.heads.len() - 1)
    }

    fn find(&mut self, hash: KeyHash, now_s: u32) -> Option<Found> {
        let mut at = self.heads[self.place(hash)];
        while at != NONE {
            let slot = &mut self.slots[at as usize];
            if slot.hash == hash {
                let lives = |found: &&Found| !(1..=now_s).contains(&found.expiry_s);
                let found = slot.found.as_ref().filter(lives)?;
                slot.hits = (slot.hits + 1).min(HITS_MAX);
                return Some(found.clone());
            }
            at = slot.next;
        }
        None
    }

    /// `false`: there is no slot until another value goes.
    fn keep(&mut self, hash: KeyHash, found: &Found) -> bool {
        self.forget(hash);
        let at = match self.free.pop() {
            Some(at) => at,
            None if self.slots.len() < self.slots.capacity() => self.slots.len() as u32,
            None => return false,
        };
        let queue = if self.was_dropped(hash) { Queue::Main } else { Queue::Small };
        let place = self.place(hash);
        let next = std::mem::replace(&mut self.heads[place], at);
        let slot = Slot { hash, found: Some(found.clone()), hits: 0, queue, next };
        match self.slots.get_mut(at as usize) {
            Some(free) => *free = slot,
            None => self.slots.push(slot),
        }
        self.values += 1;
        if queue == Queue::Small {
            self.small_bytes += found.buffer.len();
        }
        self.queue(queue).push_back(at);
        true
    }

    fn queue(&mut self, queue: Queue) -> &mut VecDeque<u32> {
        match queue {
            Queue::Small => &mut self.small,
            Queue::Main => &mut self.main,
        }
    }

    /// Lets go of a key's value, if it is here; how many bytes of memory that had.
    fn forget(&mut self, hash: KeyHash) -> usize {
        let place = self.place(hash);
        let (mut before, mut at) = (NONE, self.heads[place]);
        while at != NONE && self.slots[at as usize].hash != hash {
            (before, at) = (at, self.slots[at as usize].next);
        }
        let Some(slot) = self.slots.get_mut(at as usize) else { return 0 };
        let (next, queue) = (slot.next, slot.queue);
        let bytes = slot.found.take().map_or(0, |found| found.buffer.len());
        match self.slots.get_mut(before as usize) {
            Some(before) => before.next = next,
            None => self.heads[place] = next,
        }
        self.values -= 1;
        self.small_bytes -= if queue == Queue::Small { bytes } else { 0 };
        bytes
    }

    /// Drops the value that serves least; how many bytes of memory that had.
    fn drop_one(&mut self) -> Option<usize> {
        for moves in 0.. {
            let is_small = self.small_bytes > self.small_bytes_max || self.main.is_empty();
            let from = if is_small { Queue::Small } else { Queue::Main };
            let at = self.queue(from).pop_front()?;
            let slot = &mut self.slots[at as usize];
            let Some(found) = &slot.found else {
                // It was forgotten, and gives its slot back now.
                self.free.push(at);
                continue;
            };
            if slot.hits > 0 && moves < MOVES_MAX {
                let bytes = found.buffer.len();
                slot.hits = if is_small { 0 } else { slot.hits - 1 };
                slot.queue = Queue::Main;
                self.small_bytes -= if is_small { bytes } else { 0 };
                self.main.push_back(at);
                continue;
            }
            let hash = slot.hash;
            if is_small {
                *self.ghost(hash) = hash.low();
            }
            self.free.push(at);
            return Some(self.forget(hash));
        }
        None
    }

    fn ghost(&mut self, hash: KeyHash) -> &mut u64 {
        let place = hash.low() as usize & (self.ghosts.len() - 1);
        &mut self.ghosts[place]
    }

    fn was_dropped(&mut self, hash: KeyHash) -> bool {
        let ghost = self.ghost(hash);
        let was = *ghost == hash.low();
        if was {
            *ghost = 0;
        }
        was
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_nvme::Arena;

    const BYTES: usize = 4 << 20;
    /// Blocks of the memory.
    const BLOCKS: u128 = (BYTES / BLOCK_BYTES) as u128;

    fn tier() -> Tier {
        Tier::new(Arena::on_demand(BYTES).unwrap().pool())
    }

    fn pointer(key: u128, expiry_s: u32) -> Pointer {
        // Two of them lead to the same place: there are chains.
        let hash = KeyHash::new(key >> 1 | key << 64);
        Pointer { hash, namespace: 16, address: 0, length: 4096, crc: 0, expiry_s }
    }

    /// As a miss does it; `false`: there was no memory.
    fn read(tier: &Tier, key: u128, bytes: usize) -> bool {
        let Some(mut buffer) = tier.alloc(bytes) else { return false };
        buffer.fill(key as u8);
        drop(tier.keep(pointer(key, 0), 0, key as u32, buffer));
        true
    }

    fn asked(tier: &Tier, key: u128) -> bool {
        let found = tier.find(pointer(key, 0).hash, 1);
        if let Some(found) = &found {
            assert_eq!(found.crc, key as u32, "the value of another key");
            assert!(found.buffer.iter().all(|byte| *byte == key as u8), "bytes of another key");
        }
        found.is_some()
    }

    #[test]
    fn a_scan_drops_nothing_that_is_asked_for() {
        let tier = tier();
        for key in 0..BLOCKS / 2 {
            assert!(read(&tier, key, 4096) && asked(&tier, key));
        }
        for key in 1_000_000..1_000_000 + 10 * BLOCKS {
            assert!(read(&tier, key, 4096));
        }
        assert!((0..BLOCKS / 2).all(|key| asked(&tier, key)));
        assert!(tier.state.borrow().slots.len() <= BLOCKS as usize);
    }

    #[test]
    fn what_comes_back_soon_after_it_was_dropped_stays() {
        let tier = tier();
        // Asked for once: all of the main queue.
        (0..BLOCKS).for_each(|key| assert!(read(&tier, key, 4096) && asked(&tier, key)));
        assert!(read(&tier, 7_000, 4096));
        (8_000..8_000 + BLOCKS).for_each(|key| assert!(read(&tier, key, 4096)));
        assert!(!asked(&tier, 7_000), "a scan went over it");
        assert!(read(&tier, 7_000, 4096));
        (9_000..9_000 + BLOCKS / 2).for_each(|key| assert!(read(&tier, key, 4096)));
        assert!(asked(&tier, 7_000), "it is known to come back");
    }

    #[test]
    fn what_is_forgotten_or_has_expired_is_not_found_and_its_memory_is_free() {
        let tier = tier();
        let buffer = tier.alloc(4096).unwrap();
        drop(tier.keep(pointer(1, 100), 0, 0, buffer));
        assert!(tier.find(pointer(1, 100).hash, 99).is_some());
        assert!(tier.find(pointer(1, 100).hash, 100).is_none());
        (0..3 * BLOCKS).for_each(|_| {
            assert!(read(&tier, 2, 4096));
            tier.forget(pointer(2, 0).hash);
            assert!(!asked(&tier, 2));
        });
        tier.forget(pointer(1, 0).hash);
        let pool = tier.pool.as_ref().unwrap();
        assert_eq!((pool.free_bytes(), tier.state.borrow().values), (BYTES, 0));
    }

    #[test]
    fn what_replies_hold_stays_as_it_is_and_others_go_without_memory() {
        let tier = tier();
        let held: Vec<_> = (0..BLOCKS)
            .map(|key| {
                let mut buffer = tier.alloc(4096).unwrap();
                buffer.fill(key as u8);
                tier.keep(pointer(key, 0), 0, 0, buffer)
            })
            .collect();
        (2_000..2_100).for_each(|key| assert!(!read(&tier, key, 4096), "all memory is held"));
        let same = |(key, found): (u128, &Found)| found.buffer.iter().all(|b| *b == key as u8);
        assert!((0..).zip(&held).all(same));
        drop(held);
        assert!(read(&tier, 2_000, 4096) && asked(&tier, 2_000));
    }

    #[test]
    fn values_of_all_sizes_and_orders_are_found_as_they_were_kept_or_not_at_all() {
        for seed in 0..50 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let tier = tier();
            for _ in 0..4_000 {
                let key = rng.u128(..400);
                match rng.u8(..10) {
                    0 => tier.forget(pointer(key, 0).hash),
                    1..=4 => drop(read(&tier, key, 4096 << rng.u8(..8))),
                    _ => drop(asked(&tier, key)),
                }
            }
            let state = tier.state.borrow();
            let small = state.slots.iter().filter(|slot| slot.queue == Queue::Small);
            let bytes = |slot: &Slot| slot.found.as_ref().map_or(0, |found| found.buffer.len());
            assert_eq!(small.map(bytes).sum::<usize>(), state.small_bytes, "seed {seed}");
            let used = state.slots.iter().map(bytes).sum::<usize>();
            let free = tier.pool.as_ref().unwrap().free_bytes();
            assert_eq!(used + free, BYTES, "seed {seed}");
        }
    }
}
