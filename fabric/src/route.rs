//! Key → shard, the same on both sides of the wire, and the hash behind it.

/// The shard that owns `key` of `namespace` in a pool of `shards` shards.
///
/// SipHash-1-3 keyed with the pool's UUID, over the namespace's
/// number and the key. The client gets `pool` and `shards` in HELLO_ACK; the identity of a key on
/// media is another, secret-keyed hash, so that knowing this one lets nobody build collisions there.
#[must_use]
pub fn shard_of(pool: &[u8; 16], namespace: u32, key: &[u8], shards: u32) -> u32 {
    let mut state = SipHash::new(pool);
    state.absorb_all(namespace, key);
    let wide = u128::from(state.finish()) * u128::from(shards);
    (wide >> 64) as u32
}

/// SipHash-1-3-128 keyed with `hash_key`, over the namespace's number and the key: its first half is the lower
/// one.
#[must_use]
pub fn wide_hash(hash_key: &[u8; 16], namespace: u32, key: &[u8]) -> u128 {
    let mut state = SipHash::new(hash_key);
    state.0[1] ^= 0xee;
    state.absorb_all(namespace, key);
    state.finish_wide()
}

/// SipHash with one round for each word and three at the end ("SipHash: a fast short-input PRF", Aumasson and
/// Bernstein, 2012), for one message of a number and some bytes. Every command is hashed twice on its way:
/// in one pass over the words this takes a third of what a hasher takes that is fed piece by piece.
struct SipHash([u64; 4]);

impl SipHash {
    #[inline]
    fn new(key: &[u8; 16]) -> Self {
        let [k0, k1] =
            [0, 8].map(|at| u64::from_le_bytes(std::array::from_fn(|byte| key[at + byte])));
        // "somepseudorandomlygeneratedbytes"
        Self([
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ])
    }

    #[inline]
    fn round(&mut self) {
        let [v0, v1, v2, v3] = &mut self.0;
        *v0 = v0.wrapping_add(*v1);
        *v2 = v2.wrapping_add(*v3);
        *v1 = v1.rotate_left(13) ^ *v0;
        *v3 = v3.rotate_left(16) ^ *v2;
        *v0 = v0.rotate_left(32).wrapping_add(*v3);
        *v2 = v2.wrapping_add(*v1);
        *v3 = v3.rotate_left(21) ^ *v0;
        *v1 = v1.rotate_left(17) ^ *v2;
        *v2 = v2.rotate_left(32);
    }

    #[inline]
    fn absorb(&mut self, word: u64) {
        self.0[3] ^= word;
        self.round();
        self.0[0] ^= word;
    }

    /// The number, the bytes behind it, and their count in the last byte of the last word.
    #[inline(always)]
    fn absorb_all(&mut self, number: u32, bytes: &[u8]) {
        let last = (bytes.len() as u64 + 4) << 56;
        let Some((first, rest)) = bytes.split_first_chunk::<4>() else {
            return self.absorb(last | u64::from(number) | tail(bytes) << 32);
        };
        self.absorb(u64::from(number) | u64::from(u32::from_le_bytes(*first)) << 32);
        let (words, rest) = rest.as_chunks::<8>();
        words.iter().for_each(|word| self.absorb(u64::from_le_bytes(*word)));
        let word = match rest.split_first_chunk::<4>() {
            Some((half, rest)) => u64::from(u32::from_le_bytes(*half)) | tail(rest) << 32,
            None => tail(rest),
        };
        self.absorb(last | word);
    }

    #[inline]
    fn rounds_at_the_end(&mut self) -> u64 {
        (0..3).for_each(|_| self.round());
        let [v0, v1, v2, v3] = self.0;
        v0 ^ v1 ^ v2 ^ v3
    }

    fn finish(mut self) -> u64 {
        self.0[2] ^= 0xff;
        self.rounds_at_the_end()
    }

    fn finish_wide(mut self) -> u128 {
        self.0[2] ^= 0xee;
        let first = self.rounds_at_the_end();
        self.0[1] ^= 0xdd;
        u128::from(first) | u128::from(self.rounds_at_the_end()) << 64
    }
}

/// At most three bytes as a number.
fn tail(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use siphasher::sip;
    use siphasher::sip128::{self, Hasher128};
    use std::hash::Hasher;

    #[test]
    fn keys_of_every_length_hash_as_the_paper_says() {
        let mut rng = fastrand::Rng::with_seed(7);
        for length in 0..100 {
            let secret: [u8; 16] = std::array::from_fn(|_| rng.u8(..));
            let (number, mut bytes) = (rng.u32(..), vec![0; length]);
            rng.fill(&mut bytes);
            let mut short = sip::SipHasher13::new_with_key(&secret);
            let mut wide = sip128::SipHasher13::new_with_key(&secret);
            for hasher in [&mut short as &mut dyn Hasher, &mut wide] {
                hasher.write(&number.to_le_bytes());
                hasher.write(&bytes);
            }
            let mut state = SipHash::new(&secret);
            state.absorb_all(number, &bytes);
            assert_eq!(state.finish(), short.finish(), "{length} bytes");
            assert_eq!(wide_hash(&secret, number, &bytes), wide.finish128().as_u128());
        }
    }
}
