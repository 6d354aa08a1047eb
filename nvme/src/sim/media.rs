//! The blocks themselves: what reads see, what a power cut leaves, and what lies between.
//!
//! Guarantees: `durable` never loses to an older write, in whatever order cached and FUA writes to
//! one block reach it, because each write has a sequence number. Blocks are shared (`Arc`) between
//! the images and their clones, so that a copy of a device costs a map, not its bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use fastrand::Rng;

use crate::BLOCK_BYTES;

pub(crate) type Block = [u8; BLOCK_BYTES];

const SECTOR_BYTES: usize = 512;

/// Blocks never written are absent, and read as zeroes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Media {
    live: BTreeMap<u64, Arc<Block>>,
    durable: BTreeMap<u64, Stored>,
    /// Blocks written but not durable, in the order in which their writes completed.
    unflushed: Vec<Unflushed>,
    sequence: u64,
}

#[derive(Clone, Debug)]
struct Stored {
    sequence: u64,
    data: Arc<Block>,
}

/// One block of a write in the volatile cache.
#[derive(Clone, Debug)]
struct Unflushed {
    /// Of the write; all its blocks share it.
    sequence: u64,
    block: u64,
    /// Which block of the write this is, and of how many.
    index: usize,
    count: usize,
    data: Arc<Block>,
}

/// What a power cut does to one write.
enum Fate {
    Kept,
    Dropped,
    /// Only the bytes before this offset in the write reached the media.
    Prefix(usize),
    /// Each atomic unit decides for itself.
    Scattered,
}

impl Media {
    pub(crate) fn read(&self, first: u64, into: &mut [u8]) {
        into.fill(0);
        let end = first + (into.len() / BLOCK_BYTES) as u64;
        for (block, data) in self.live.range(first..end) {
            let at = (block - first) as usize * BLOCK_BYTES;
            into[at..at + BLOCK_BYTES].copy_from_slice(&data[..]);
        }
    }

    pub(crate) fn write(&mut self, first: u64, bytes: &[u8], durable: bool) {
        self.write_some(first, bytes, durable, |_| true);
    }

    /// Writes those blocks of the request for which `keep` says so.
    pub(crate) fn write_some(
        &mut self,
        first: u64,
        bytes: &[u8],
        durable: bool,
        mut keep: impl FnMut(u64) -> bool,
    ) {
        let from = self.unflushed.len();
        self.cache(first, bytes, &mut keep);
        for write in &self.unflushed[from..] {
            let Unflushed { sequence, block, ref data, .. } = *write;
            self.live.insert(block, Arc::clone(data));
            if durable {
                self.durable.insert(block, Stored { sequence, data: Arc::clone(data) });
            }
        }
        if durable {
            self.unflushed.truncate(from);
        }
    }

    /// Writes zeroes to whole blocks, which share one.
    pub(crate) fn zero(&mut self, first: u64, blocks: u64, durable: bool) {
        self.sequence += 1;
        let (sequence, count) = (self.sequence, blocks as usize);
        let zero = Arc::new([0; BLOCK_BYTES]);
        for (index, block) in (first..first + blocks).enumerate() {
            let data = Arc::clone(&zero);
            self.live.insert(block, Arc::clone(&data));
            if durable {
                self.durable.insert(block, Stored { sequence, data });
            } else {
                self.unflushed.push(Unflushed { sequence, block, index, count, data });
            }
        }
    }

    fn cache(&mut self, first: u64, bytes: &[u8], keep: &mut impl FnMut(u64) -> bool) {
        self.sequence += 1;
        let (count, sequence) = (bytes.len() / BLOCK_BYTES, self.sequence);
        for (index, chunk) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
            let block = first + index as u64;
            if keep(block) {
                let data: &Block = chunk.try_into().expect("chunks of one block");
                let data = Arc::new(*data);
                self.unflushed.push(Unflushed { sequence, block, index, count, data });
            }
        }
    }

    pub(crate) fn flush(&mut self) {
        let mut unflushed = std::mem::take(&mut self.unflushed);
        for Unflushed { sequence, block, data, .. } in unflushed.drain(..) {
            self.store(block, sequence, data);
        }
        self.unflushed = unflushed;
    }

    /// Any of the cached blocks is forgotten: reads still see it, and no later flush saves it.
    pub(crate) fn fail_flush(&mut self, rng: &mut Rng) {
        self.unflushed.retain(|_| rng.bool());
    }

    /// Any of the blocks becomes zeroes, at once and for good: the harshest reading of a discard.
    pub(crate) fn discard(&mut self, first: u64, blocks: u64, rng: &mut Rng) {
        let range = first..first + blocks;
        let mut gone: Vec<u64> = self.live.range(range).map(|(block, _)| *block).collect();
        gone.retain(|_| rng.bool());
        for block in &gone {
            self.live.remove(block);
            self.durable.remove(block);
        }
        // What was cached before must not come back in place of what has replaced it.
        self.unflushed.retain(|write| gone.binary_search(&write.block).is_err());
    }

    /// The power goes: `in_flight` writes, and the cached ones, each meet a fate of their own.
    pub(crate) fn crash<'a>(
        &mut self,
        in_flight: impl Iterator<Item = (u64, &'a [u8])>,
        atomic_bytes: usize,
        reordering: bool,
        rng: &mut Rng,
    ) {
        let mut fates = Vec::new();
        let mut cached: Vec<u64> = self.unflushed.iter().map(|block| block.sequence).collect();
        cached.dedup();
        let survivors = if reordering { usize::MAX } else { rng.usize(..=cached.len()) };
        for at in 0..cached.len() {
            fates.push(match at.cmp(&survivors) {
                _ if reordering => Fate::draw(rng),
                std::cmp::Ordering::Less => Fate::Kept,
                std::cmp::Ordering::Equal => Fate::Scattered,
                std::cmp::Ordering::Greater => Fate::Dropped,
            });
        }
        for (first, bytes) in in_flight {
            self.cache(first, bytes, &mut |_| true);
            fates.push(Fate::draw(rng));
        }
        self.apply(&mut fates, atomic_bytes, rng);
        self.live =
            self.durable.iter().map(|(block, kept)| (*block, Arc::clone(&kept.data))).collect();
    }

    /// Takes the unflushed writes to the media as far as their fates let them.
    fn apply(&mut self, fates: &mut Vec<Fate>, atomic_bytes: usize, rng: &mut Rng) {
        let unflushed = std::mem::take(&mut self.unflushed);
        let mut fates = fates.drain(..);
        let mut current = (0, Fate::Dropped);
        for Unflushed { sequence, block, index, count, data } in unflushed {
            if current.0 != sequence {
                let fate = fates.next().expect("one fate for each write");
                let fate = match fate {
                    Fate::Prefix(at) => {
                        Fate::Prefix(at % (count * BLOCK_BYTES) / atomic_bytes * atomic_bytes)
                    }
                    other => other,
                };
                current = (sequence, fate);
            }
            let reached = |offset: usize, rng: &mut Rng| match current.1 {
                Fate::Kept => true,
                Fate::Dropped => false,
                Fate::Prefix(end) => index * BLOCK_BYTES + offset < end,
                Fate::Scattered => rng.bool(),
            };
            let mut after = self.durable.get(&block).map_or([0; BLOCK_BYTES], |old| *old.data);
            let mut changed = false;
            for offset in (0..BLOCK_BYTES).step_by(atomic_bytes) {
                if reached(offset, rng) {
                    let unit = offset..offset + atomic_bytes;
                    after[unit.clone()].copy_from_slice(&data[unit]);
                    changed = true;
                }
            }
            if changed {
                self.store(block, sequence, Arc::new(after));
            }
        }
    }

    fn store(&mut self, block: u64, sequence: u64, data: Arc<Block>) {
        if self.durable.get(&block).is_none_or(|there| there.sequence < sequence) {
            self.durable.insert(block, Stored { sequence, data });
        }
    }

    pub(crate) fn peek(&self, block: u64) -> Block {
        self.live.get(&block).map_or([0; BLOCK_BYTES], |data| **data)
    }

    /// Changes a block wherever it is: in the cache and on the media.
    pub(crate) fn edit(&mut self, block: u64, mut change: impl FnMut(&mut Block)) {
        if !self.live.contains_key(&block) {
            self.write(block, &[0; BLOCK_BYTES], true);
        }
        let cached = self.unflushed.iter_mut().filter(|write| write.block == block);
        let copies = cached
            .map(|write| &mut write.data)
            .chain(self.durable.get_mut(&block).map(|stored| &mut stored.data))
            .chain(self.live.get_mut(&block));
        for data in copies {
            change(Arc::make_mut(data));
        }
    }
}

impl Fate {
    fn draw(rng: &mut Rng) -> Self {
        match rng.u32(..8) {
            0..=2 => Self::Kept,
            3..=5 => Self::Dropped,
            6 => Self::Prefix(rng.usize(..)),
            _ => Self::Scattered,
        }
    }
}

const _: () = assert!(BLOCK_BYTES.is_multiple_of(SECTOR_BYTES));

/// The unit of tearing that was asked for, if a device can have it.
pub(crate) fn check_atomic_bytes(atomic_bytes: usize) {
    assert!(
        atomic_bytes >= SECTOR_BYTES && BLOCK_BYTES.is_multiple_of(atomic_bytes),
        "a device's atomic unit is 512, 1024, 2048 or 4096 bytes, not {atomic_bytes}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen in a hostile run of the NVMe driver: a cached write was overtaken by a forced one, both were
    /// discarded, and the next power cut brought the older one back.
    #[test]
    fn a_discarded_block_never_goes_back_to_an_older_write() {
        for seed in 0..64 {
            let mut rng = Rng::with_seed(seed);
            let mut media = Media::default();
            media.write(5, &[1; BLOCK_BYTES], false);
            media.write(5, &[2; BLOCK_BYTES], true);
            media.discard(5, 1, &mut rng);
            media.crash(std::iter::empty(), SECTOR_BYTES, true, &mut rng);
            assert!(matches!(media.peek(5)[0], 0 | 2), "seed {seed}: {}", media.peek(5)[0]);
        }
    }
}
