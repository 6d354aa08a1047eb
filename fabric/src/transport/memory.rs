//! The client's memory, as its command names it: in one piece, or in up to 256.
//!
//! Nothing here knows whether an address is the client's: who moves the data finds out. A
//! [`RemoteMemory`] is borrowed for one call; who needs it longer keeps a copy in a [`KeptMemory`], whose
//! storage is used again and again.

use crate::pdu::Fragment;

/// Memory that an operation moves data to or from: the bytes of its fragments, one behind the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoteMemory<'a> {
    length: u32,
    fragments: &'a [Fragment],
}

impl<'a> RemoteMemory<'a> {
    /// The client names no memory: `length` bytes move with the PDUs.
    #[must_use]
    pub fn none(length: u32) -> Self {
        Self { length, fragments: &[] }
    }

    /// The client's memory is these fragments; without any it names none.
    ///
    /// # Panics
    /// If they are 4 GiB and more together, which no capsule says.
    #[must_use]
    pub fn new(fragments: &'a [Fragment]) -> Self {
        let length = match fragments {
            [one] => one.length.get(),
            many => u32::try_from(Fragment::bytes(many)).expect("fragments of less than 4 GiB"),
        };
        Self { length, fragments }
    }

    /// Bytes that the client sends, or the most that an answer may have there.
    #[must_use]
    pub fn length(self) -> u32 {
        self.length
    }

    /// The client names memory.
    #[must_use]
    pub fn is_named(self) -> bool {
        !self.fragments.is_empty()
    }

    /// Its pieces; some of them may be empty.
    #[must_use]
    pub fn fragments(self) -> &'a [Fragment] {
        self.fragments
    }

    /// From its first byte on.
    #[must_use]
    pub fn walk(self) -> Walk<'a> {
        Walk { fragments: self.fragments, done: 0 }
    }
}

/// A way through memory, from its first byte to its last.
#[derive(Clone, Copy, Debug)]
pub struct Walk<'a> {
    fragments: &'a [Fragment],
    /// Bytes of the first fragment that are behind.
    done: u32,
}

impl Walk<'_> {
    /// Address and key of the next byte. `None` behind the last.
    pub fn position(&mut self) -> Option<(u64, u32)> {
        loop {
            let (first, rest) = self.fragments.split_first()?;
            if self.done < first.length.get() {
                // An address that wraps is no memory of anybody's, and is found out by who uses it.
                let address = first.address.get().wrapping_add(self.done.into());
                return Some((address, first.key.get()));
            }
            (self.fragments, self.done) = (rest, 0);
        }
    }

    /// The next bytes that lie in a row: at least one, at most `wanted`. `None` behind the last.
    pub fn step(&mut self, wanted: usize) -> Option<Fragment> {
        let (address, key) = self.position()?;
        let left = self.fragments.first()?.length.get() - self.done;
        let count = wanted.min(left as usize) as u32;
        self.done += count;
        Some(Fragment::new(address, key, count))
    }
}

/// A copy of a [`RemoteMemory`]. Its storage grows to the most fragments that it has ever had.
#[derive(Clone, Debug, Default)]
pub struct KeptMemory {
    length: u32,
    fragments: Vec<Fragment>,
}

impl KeptMemory {
    /// A copy of `memory`.
    #[must_use]
    pub fn of(memory: RemoteMemory<'_>) -> Self {
        let mut kept = Self::default();
        kept.keep(memory);
        kept
    }

    /// Room for so many fragments, made now.
    pub fn reserve(&mut self, fragments: usize) {
        self.fragments.reserve(fragments.saturating_sub(self.fragments.len()));
    }

    /// From now on it is a copy of `memory`.
    pub fn keep(&mut self, memory: RemoteMemory<'_>) {
        self.length = memory.length;
        self.fragments.clear();
        self.fragments.extend_from_slice(memory.fragments);
    }

    /// What it is a copy of.
    #[must_use]
    pub fn get(&self) -> RemoteMemory<'_> {
        RemoteMemory { length: self.length, fragments: &self.fragments }
    }

    /// Only the first so many bytes of each fragment are used, and none of those behind the last of
    /// `lengths`.
    ///
    /// # Panics
    /// If a fragment is not so long, or there are fewer of them.
    pub fn shorten(&mut self, lengths: impl Iterator<Item = u32>) {
        let (mut count, mut sum) = (0, 0);
        for length in lengths {
            let fragment = &mut self.fragments[count];
            assert!(length <= fragment.length.get(), "more data than its fragment holds");
            fragment.length.set(length);
            (count, sum) = (count + 1, sum + length);
        }
        self.fragments.truncate(count);
        self.length = sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_passes_every_byte_once_and_in_order() {
        for seed in 0..300 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let fragments: Vec<_> = (0..rng.usize(0..20))
                .map(|_| Fragment::new(rng.u64(..), rng.u32(1..4), rng.u32(..5)))
                .collect();
            let expected: Vec<_> = fragments
                .iter()
                .flat_map(|one| (0..one.length.get()).map(|at| (one.address.get(), at, one.key)))
                .map(|(address, at, key)| (address.wrapping_add(at.into()), key))
                .collect();
            let memory = RemoteMemory::new(&fragments);
            assert_eq!(memory.length() as usize, expected.len(), "seed {seed}");
            let (mut walk, mut found) = (memory.walk(), Vec::new());
            while let Some(piece) = walk.step(rng.usize(1..7)) {
                let (address, key) = (piece.address.get(), piece.key);
                assert!(piece.length.get() > 0, "seed {seed}: an empty step");
                let bytes = 0..u64::from(piece.length.get());
                found.extend(bytes.map(|at| (address.wrapping_add(at), key)));
            }
            assert_eq!(found, expected, "seed {seed}");
        }
    }

    #[test]
    fn what_is_kept_is_shortened_fragment_by_fragment() {
        let fragments = [(8, 32), (100, 50), (200, 60), (300, 70)];
        let fragments = fragments.map(|(address, length)| Fragment::new(address, 1, length));
        let mut kept = KeptMemory::of(RemoteMemory::new(&fragments));
        kept.shorten([32, 0, 60].into_iter());
        let left = [(8, 32), (100, 0), (200, 60)];
        let left = left.map(|(address, length)| Fragment::new(address, 1, length));
        assert_eq!(kept.get(), RemoteMemory::new(&left));
        kept.keep(RemoteMemory::none(7));
        assert_eq!((kept.get().is_named(), kept.get().length()), (false, 7));
    }

    #[test]
    #[should_panic(expected = "more data than its fragment holds")]
    fn data_past_its_fragment_is_a_bug_of_our_own() {
        KeptMemory::of(RemoteMemory::new(&[Fragment::new(8, 1, 9)])).shorten([10].into_iter());
    }
}
