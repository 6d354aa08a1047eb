//! The keys that are new since the last index checkpoint, in full, in RAM.
//!
//! The index keeps hashes only. The next checkpoint, and `list` until then, need the keys themselves:
//! those of older entries are in the last checkpoint, the others are here. Its room is fixed; a
//! checkpoint is due long before it is used up.

use super::index::KeyHash;

/// Bytes of keys that it holds.
pub const BYTES: usize = 4 << 20;
/// Keys that it holds.
pub const KEYS: usize = 64 << 10;

#[derive(Clone, Copy, Debug)]
struct Place {
    hash: KeyHash,
    offset: u32,
    length: u16,
}

/// See the module.
#[derive(Debug)]
pub struct KeyLog {
    bytes: Vec<u8>,
    places: Vec<Place>,
}

impl Default for KeyLog {
    fn default() -> Self {
        Self { bytes: Vec::with_capacity(BYTES), places: Vec::with_capacity(KEYS) }
    }
}

impl KeyLog {
    /// Appends a key. There is room: who takes a store asks [`KeyLog::has_room`] before.
    pub fn push(&mut self, hash: KeyHash, key: &[u8]) {
        let offset = self.bytes.len() as u32;
        self.bytes.extend_from_slice(key);
        self.places.push(Place { hash, offset, length: key.len() as u16 });
    }

    /// Is there room for `keys` more keys of `bytes` bytes in all?
    #[must_use]
    pub fn has_room(&self, keys: usize, bytes: usize) -> bool {
        self.places.len() + keys <= KEYS && self.bytes.len() + bytes <= BYTES
    }

    /// Half of the room is used: time for a checkpoint.
    #[must_use]
    pub fn is_half_full(&self) -> bool {
        !self.has_room(KEYS / 2, BYTES / 2)
    }

    /// How many keys it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// It holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Key number `place`.
    #[must_use]
    pub fn key(&self, place: usize) -> (KeyHash, &[u8]) {
        let Place { hash, offset, length } = self.places[place];
        (hash, &self.bytes[offset as usize..][..usize::from(length)])
    }

    /// The numbers of the first `count` keys whose hash prefix is at least `from`, in the order of their hashes.
    #[must_use]
    pub fn sorted(&self, count: usize, from: u64) -> Vec<u32> {
        let mut order: Vec<u32> = (0..count.min(self.places.len()) as u32)
            .filter(|place| self.places[*place as usize].hash.prefix() >= from)
            .collect();
        order.sort_unstable_by_key(|place| self.places[*place as usize].hash);
        order
    }

    /// Forgets the first `count` keys: they are in a durable checkpoint now.
    pub fn forget(&mut self, count: usize) {
        let bytes = self.places.get(count).map_or(self.bytes.len(), |place| place.offset as usize);
        self.bytes.drain(..bytes);
        self.places.drain(..count);
        for place in &mut self.places {
            place.offset -= bytes as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_sorted_and_survive_forgetting_the_ones_before() {
        let mut log = KeyLog::default();
        for n in [5u128, 3, 9, 1] {
            log.push(KeyHash::new(n << 64), format!("key{n}").as_bytes());
        }
        let keys = |log: &KeyLog, count| -> Vec<String> {
            let order = log.sorted(count, 0);
            let key = |place: u32| String::from_utf8(log.key(place as usize).1.to_vec()).unwrap();
            order.into_iter().map(key).collect()
        };
        assert_eq!(keys(&log, 4), ["key1", "key3", "key5", "key9"]);
        assert_eq!(log.sorted(4, 5).len(), 2);
        log.forget(2);
        assert_eq!(keys(&log, 4), ["key1", "key9"]);
        log.forget(2);
        assert!(log.is_empty());
    }
}
