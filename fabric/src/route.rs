//! Key → shard, the same on both sides of the wire.

use siphasher::sip::SipHasher13;
use std::hash::Hasher;

/// The shard that owns `key` of `namespace` in a pool of `shards` shards.
///
/// SipHash-1-3 (Aumasson and Bernstein, 2012) keyed with the pool's UUID, over the namespace's
/// number and the key. The client gets `pool` and `shards` in HELLO_ACK; the identity of a key on
/// media is another, secret-keyed hash, so that knowing this one lets nobody build collisions there.
#[must_use]
pub fn shard_of(pool: &[u8; 16], namespace: u32, key: &[u8], shards: u32) -> u32 {
    let mut hasher = SipHasher13::new_with_key(pool);
    hasher.write(&namespace.to_le_bytes());
    hasher.write(key);
    let wide = u128::from(hasher.finish()) * u128::from(shards);
    (wide >> 64) as u32
}
