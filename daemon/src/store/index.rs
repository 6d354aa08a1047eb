//! The index: open addressing in DRAM, 32 bytes an entry, no allocation per key.
//!
//! Identity and checksum live in the pointer: an entry holds 112 bits of the key's secret-keyed hash
//! (the pool's routing hash adds the shard), where the value is, how long it is and its CRC32C. The
//! table never grows: its size is fixed when the shard starts, and a store beyond its cap is refused.
//!
//! Linear probing with backward-shift deletion: no tombstones, so a table that has churned for a year
//! probes as a fresh one does.

use forebay_nvme::ArenaError;
use forebay_nvme::arena::Table;

/// Bits of a key's hash that an entry keeps.
const HASH_MASK: u128 = (1 << 112) - 1;

/// A key's identity: the low 112 bits of SipHash-1-3-128 over namespace and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyHash(u128);

impl KeyHash {
    /// Keeps the low 112 bits.
    #[must_use]
    pub fn new(hash: u128) -> Self {
        Self(hash & HASH_MASK)
    }

    /// The hash as a number below 2¹¹².
    #[must_use]
    pub fn get(self) -> u128 {
        self.0
    }

    /// The low 64 bits.
    #[must_use]
    pub fn low(self) -> u64 {
        self.0 as u64
    }

    /// The top 48 bits: the order in which keys are listed.
    #[must_use]
    pub fn prefix(self) -> u64 {
        (self.0 >> 64) as u64
    }
}

/// One entry: four little-endian words on media, the same four words in RAM.
///
/// | word | bits |
/// |---|---|
/// | 0 | hash 0..64 |
/// | 1 | hash 64..112, namespace 16 |
/// | 2 | address in units of 64 B: 36, length: 24, clock: 2, reserved: 1, in use: 1 |
/// | 3 | CRC32C 32, expiry in seconds since 1970: 32 (0: never) |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry([u64; 4]);
const _: () = assert!(size_of::<Entry>() == 32);

/// Bits of an address.
pub(super) const ADDRESS_BITS: u32 = 36;
const LENGTH_BITS: u32 = 24;
const IN_USE: u64 = 1 << 63;

/// The fields of an [`Entry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// The key's identity.
    pub hash: KeyHash,
    /// The namespace's number.
    pub namespace: u16,
    /// Where the value begins, in units of 64 bytes from the start of the shard's segments.
    pub address: u64,
    /// Bytes in the value.
    pub length: u32,
    /// CRC32C of the value, or of its checksum page if it is longer than 64 KiB.
    pub crc: u32,
    /// When it ends, in seconds since 1970; 0: never.
    pub expiry_s: u32,
}

impl Entry {
    /// Packs the fields.
    ///
    /// # Panics
    /// An address of 2³⁶ units or a length of 2²⁴ bytes: geometry and limits keep both smaller.
    #[must_use]
    pub fn new(pointer: Pointer) -> Self {
        let Pointer { hash, namespace, address, length, crc, expiry_s } = pointer;
        assert!(address < 1 << ADDRESS_BITS && length < 1 << LENGTH_BITS, "pointer out of range");
        Self([
            hash.0 as u64,
            (hash.0 >> 64) as u64 | u64::from(namespace) << 48,
            address | u64::from(length) << ADDRESS_BITS | IN_USE,
            u64::from(crc) | u64::from(expiry_s) << 32,
        ])
    }

    /// The words, for media.
    #[must_use]
    pub fn to_words(self) -> [u64; 4] {
        self.0
    }

    /// Words from media. `None` if they are not those of an entry in use.
    #[must_use]
    pub fn from_words(words: [u64; 4]) -> Option<Self> {
        (words[2] & IN_USE != 0).then_some(Self(words))
    }

    /// The fields.
    #[must_use]
    pub fn pointer(&self) -> Pointer {
        Pointer {
            hash: self.hash(),
            namespace: self.namespace(),
            address: self.0[2] & ((1 << ADDRESS_BITS) - 1),
            length: (self.0[2] >> ADDRESS_BITS) as u32 & ((1 << LENGTH_BITS) - 1),
            crc: self.0[3] as u32,
            expiry_s: (self.0[3] >> 32) as u32,
        }
    }

    /// The key's identity.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        KeyHash(u128::from(self.0[0]) | u128::from(self.0[1] & ((1 << 48) - 1)) << 64)
    }

    /// The namespace's number.
    #[must_use]
    pub fn namespace(&self) -> u16 {
        (self.0[1] >> 48) as u16
    }

    /// Is this the value that was moved from `from` to where `to` points? The address alone does not
    /// tell: an empty value has none, so it is 0 like that of the first value of the first segment.
    #[must_use]
    pub fn is_moved_by(&self, from: u64, to: &Self) -> bool {
        let pointer = self.pointer();
        let there = Pointer { address: to.pointer().address, ..pointer };
        pointer.address == from && there == to.pointer()
    }

    fn in_use(&self) -> bool {
        self.0[2] & IN_USE != 0
    }
}

/// The table of one shard.
#[derive(Debug)]
pub struct Index {
    slots: Table,
    mask: usize,
    len: usize,
    cap: usize,
}

/// The table takes no new key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexFull;

impl Index {
    /// A table of at most `bytes` bytes: the largest power of two of slots that fits, of which 7/8
    /// may be in use. The memory is zero pages until it is touched.
    ///
    /// # Errors
    /// [`ArenaError`]: the kernel gives no address space.
    pub fn with_bytes(bytes: usize) -> Result<Self, ArenaError> {
        let wanted = (bytes / size_of::<Entry>()).max(64);
        let slots = 1usize << wanted.ilog2();
        Ok(Self { slots: Table::new(slots)?, mask: slots - 1, len: 0, cap: slots / 8 * 7 })
    }

    /// Entries in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// No entry is in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The most entries that may be in use: 7/8 of the slots. Who takes new keys holds to it;
    /// [`Index::insert`] itself goes a little further, for recovery passes through states with more
    /// keys than there were at any one time.
    #[must_use]
    pub fn cap(&self) -> usize {
        self.cap
    }

    /// Bytes of the table.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.slots.len() * size_of::<Entry>()
    }

    /// How many slots there are, for [`Index::at`].
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The entry in slot `slot`, for scans that go through the table a piece at a time. An entry that
    /// moves meanwhile may be missed or met twice; who scans looks it up again.
    #[must_use]
    pub fn at(&self, slot: usize) -> Option<Entry> {
        self.slots.get(slot).map(|words| Entry(*words)).filter(Entry::in_use)
    }

    /// The entry of `hash`.
    #[must_use]
    pub fn get(&self, hash: KeyHash) -> Option<Entry> {
        self.find(hash).ok().map(|slot| Entry(self.slots[slot]))
    }

    /// Puts `entry` in the place of the one with its hash, which is returned, or in a free place.
    ///
    /// # Errors
    /// [`IndexFull`]: it is a new key, and 15/16 of the slots are in use.
    pub fn insert(&mut self, entry: Entry) -> Result<Option<Entry>, IndexFull> {
        match self.find(entry.hash()) {
            Ok(slot) => Ok(Some(Entry(std::mem::replace(&mut self.slots[slot], entry.0)))),
            Err(_) if self.len >= self.slots.len() / 16 * 15 => Err(IndexFull),
            Err(slot) => {
                self.slots[slot] = entry.0;
                self.len += 1;
                Ok(None)
            }
        }
    }

    /// Takes the entry of `hash` out.
    pub fn remove(&mut self, hash: KeyHash) -> Option<Entry> {
        let slot = self.find(hash).ok()?;
        let entry = Entry(self.slots[slot]);
        self.close_gap(slot);
        self.len -= 1;
        Some(entry)
    }

    /// The slot of `hash`, or the free slot where its probe ends. There always is one: a sixteenth
    /// of the slots stays free.
    fn find(&self, hash: KeyHash) -> Result<usize, usize> {
        let mut slot = self.home(hash);
        loop {
            let entry = Entry(self.slots[slot]);
            if !entry.in_use() {
                return Err(slot);
            }
            if entry.hash() == hash {
                return Ok(slot);
            }
            slot = (slot + 1) & self.mask;
        }
    }

    fn home(&self, hash: KeyHash) -> usize {
        hash.0 as usize & self.mask
    }

    /// Moves back what lies behind `gap` on the same probe, so that no probe ends early.
    fn close_gap(&mut self, mut gap: usize) {
        let mut slot = gap;
        loop {
            slot = (slot + 1) & self.mask;
            let entry = Entry(self.slots[slot]);
            if !entry.in_use() {
                break;
            }
            let from_home = slot.wrapping_sub(self.home(entry.hash())) & self.mask;
            let from_gap = slot.wrapping_sub(gap) & self.mask;
            if from_home >= from_gap {
                self.slots[gap] = entry.0;
                gap = slot;
            }
        }
        self.slots[gap] = [0; 4];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn entry(hash: u128, address: u64) -> Entry {
        Entry::new(Pointer {
            hash: KeyHash::new(hash),
            namespace: 16,
            address,
            length: 7,
            crc: 9,
            expiry_s: 11,
        })
    }

    #[test]
    fn fields_come_back_from_their_bits() {
        let pointer = Pointer {
            hash: KeyHash::new(u128::MAX),
            namespace: u16::MAX,
            address: (1 << 36) - 1,
            length: (1 << 24) - 1,
            crc: u32::MAX,
            expiry_s: u32::MAX,
        };
        assert_eq!(Entry::new(pointer).pointer(), pointer);
        let zero = Pointer {
            hash: KeyHash::new(0),
            namespace: 0,
            address: 0,
            length: 0,
            crc: 0,
            expiry_s: 0,
        };
        assert_eq!(Entry::new(zero).pointer(), zero);
        assert!(Entry::new(zero).in_use());
    }

    /// The key of the value at address 0 was overwritten with an empty value while the cleaner moved
    /// it: the move put the old value back.
    #[test]
    fn a_move_from_address_0_does_not_move_an_empty_value() {
        let (value, moved) = (entry(1, 0), entry(1, 77));
        assert!(value.is_moved_by(0, &moved));
        assert!(!value.is_moved_by(64, &moved));
        let empty = Entry::new(Pointer { length: 0, crc: 0, ..value.pointer() });
        assert!(!empty.is_moved_by(0, &moved));
    }

    #[test]
    fn it_agrees_with_a_map_over_random_operations_near_its_cap() {
        let mut index = Index::with_bytes(64 * 32).expect("2 KiB of memory");
        let mut model = BTreeMap::new();
        let mut rng = fastrand::Rng::with_seed(7);
        for step in 0..200_000u64 {
            // Few distinct low bits make long probes that wrap around the end.
            let hash = u128::from(rng.u64(0..90)) << 60 | u128::from(rng.u64(56..64));
            if rng.u8(0..5) < 3 {
                let new = entry(hash, step);
                let full = model.len() == 60 && !model.contains_key(&hash);
                let old = index.insert(new);
                assert_eq!(old.is_err(), full);
                if !full {
                    assert_eq!(old, Ok(model.insert(hash, new)));
                }
            } else {
                assert_eq!(index.remove(KeyHash::new(hash)), model.remove(&hash));
            }
            assert_eq!(index.len(), model.len());
            let probe = u128::from(rng.u64(0..90)) << 60 | u128::from(rng.u64(56..64));
            assert_eq!(index.get(KeyHash::new(probe)), model.get(&probe).copied());
        }
        assert!(!model.is_empty());
    }
}
