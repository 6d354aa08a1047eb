//! CRC32C, the one checksum of the protocol, by whichever way is fastest on this processor.
//!
//! Two crates compute it. `crc-fast` folds with carry-less multiplications, and wins where these are 512
//! bits wide, and for a few bytes. Elsewhere three interleaved runs of the processor's own instruction
//! (`crc32c`) are faster by half, measured on a processor without AVX-512: 11 → 16 GB/s for 4 KiB in the
//! cache; and they leave more room for the loads of the bytes that come next, so that 1 MiB which another
//! core has just written takes half the time.

use crc_fast::CrcAlgorithm;
use std::sync::LazyLock;

/// From this many bytes on it pays to go the other way, in bytes.
const LONG_BYTES: usize = 512;

/// This processor has wide carry-less multiplications.
static IS_WIDE: LazyLock<bool> = LazyLock::new(is_wide);

#[cfg(target_arch = "x86_64")]
fn is_wide() -> bool {
    is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("vpclmulqdq")
}

/// Elsewhere `crc-fast` knows best.
#[cfg(not(target_arch = "x86_64"))]
fn is_wide() -> bool {
    true
}

/// CRC32C (Castagnoli; RFC 3720 B.4) of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    if bytes.len() < LONG_BYTES || *IS_WIDE {
        return crc_fast::crc32_iscsi(bytes);
    }
    crc32c::crc32c(bytes)
}

/// Two pieces up to this many bytes together are put together first: computing two short sums takes longer.
const PAIR_BYTES: usize = 192;

/// The CRC32C of `first` and then `second`.
pub(crate) fn of_two(first: &[u8], second: &[u8]) -> u32 {
    let (end, mut both) = (first.len() + second.len(), [0; PAIR_BYTES]);
    if end <= PAIR_BYTES {
        both[..first.len()].copy_from_slice(first);
        both[first.len()..end].copy_from_slice(second);
        return crc32c(&both[..end]);
    }
    let mut digest = Digest::new();
    digest.update(first);
    digest.update(second);
    digest.finalize()
}

/// The CRC32C of bytes that come in pieces.
#[derive(Clone, Copy, Debug)]
pub struct Digest(State);

#[derive(Clone, Copy, Debug)]
#[expect(clippy::large_enum_variant, reason = "one processor has always the same variant")]
enum State {
    Wide(crc_fast::Digest),
    Narrow(u32),
}

impl Digest {
    /// Of no bytes yet.
    #[must_use]
    pub fn new() -> Self {
        Self(match *IS_WIDE {
            true => State::Wide(crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi)),
            false => State::Narrow(0),
        })
    }

    /// `bytes` come next.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Wide(digest) => digest.update(bytes),
            State::Narrow(crc) => *crc = crc32c::crc32c_append(*crc, bytes),
        }
    }

    /// Of all that have come.
    #[must_use]
    pub fn finalize(&self) -> u32 {
        match &self.0 {
            State::Wide(digest) => digest.finalize() as u32,
            State::Narrow(crc) => *crc,
        }
    }
}

impl Default for Digest {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_agree_whatever_the_length_and_the_pieces() {
        let bytes: Vec<u8> = (0..70_000_u32).map(|at| ((at * 31) >> 3) as u8).collect();
        for length in (0..1200).chain([4096, 16_384, 24_577, 65_536, 70_000]) {
            let (bytes, expected) = (&bytes[..length], crc_fast::crc32_iscsi(&bytes[..length]));
            assert_eq!((crc32c(bytes), crc32c::crc32c(bytes)), (expected, expected), "{length}");
            let wide = State::Wide(crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi));
            for state in [wide, State::Narrow(0)] {
                let mut digest = Digest(state);
                bytes.chunks(997).for_each(|piece| digest.update(piece));
                assert_eq!(digest.finalize(), expected, "{length}");
            }
        }
        for cut in 0..=400 {
            let (first, second) = (&bytes[..cut / 2], &bytes[cut / 2..cut]);
            assert_eq!(of_two(first, second), crc32c(&bytes[..cut]), "{cut}");
        }
        assert_eq!(crc32c(b"123456789"), 0xe306_9283, "the check value of the algorithm");
    }
}
