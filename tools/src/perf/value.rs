//! Values that can be told from their key and the seed alone.
//!
//! All values are slices of one pool of random bytes: where a slice begins follows from the key's
//! number and the seed. Making one costs nothing and copies nothing, so that the client measures
//! the server and not itself, and a value that belongs to another key differs from the first byte.

use bytes::Bytes;
use fastrand::Rng;

/// Slices begin at multiples of 8 in the first 8 MiB: about a million different values.
const STARTS: u64 = 1 << 20;
const STEP_BYTES: u64 = 8;

/// The values of one run. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Values {
    pool: Bytes,
    seed: u64,
    value_bytes: usize,
}

impl Values {
    pub(crate) fn new(seed: u64, value_bytes: usize) -> Self {
        let mut pool = vec![0; (STARTS * STEP_BYTES) as usize + value_bytes];
        Rng::with_seed(seed).fill(&mut pool);
        Self { pool: pool.into(), seed, value_bytes }
    }

    /// The value of key number `key`.
    pub(crate) fn of(&self, key: u64) -> Bytes {
        let start = (mix(key ^ mix(self.seed)) % STARTS * STEP_BYTES) as usize;
        self.pool.slice(start..start + self.value_bytes)
    }
}

/// A bijection that scatters its input over 64 bits (the finaliser of splitmix64; Steele, Lea and
/// Flood, 2014).
pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_told_by_key_and_seed_alone() {
        let (a, b) = (Values::new(7, 4096), Values::new(7, 4096));
        assert_eq!(a.of(3), b.of(3));
        assert_eq!(a.of(3).len(), 4096);
        assert_ne!(a.of(3), a.of(4));
        assert_ne!(a.of(3), Values::new(8, 4096).of(3));
    }

    #[test]
    fn neighbours_do_not_share_their_first_bytes() {
        let values = Values::new(1, 64);
        let firsts: std::collections::BTreeSet<_> =
            (0..1000).map(|key| values.of(key)[..8].to_vec()).collect();
        assert!(firsts.len() > 990, "{}", firsts.len());
    }
}
