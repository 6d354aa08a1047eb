//! CRC32C (Castagnoli; RFC 3720 B.4): what every PDU header and every value carries.
//!
//! On x86-64 the processor's own instruction does it, in three lanes, for it takes a word in each cycle
//! and gives the result three cycles later. Beside `crc-fast`'s SSE kernels that is 1.9 times as fast at
//! 4 KiB and 1.5 to 1.7 times at 64 KiB and 1 MiB (EPYC without AVX-512), and a third of the instructions
//! at 4 KiB. Where `crc-fast` has 512 bits to work with, long runs are its own, and on other processors
//! everything is.
//!
//! `unsafe` is here for one thing: to call what only some processors can do.

use crc_fast::{CrcAlgorithm, checksum_combine};

/// CRC32C of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    absorb(EMPTY, bytes)
}

/// CRC32C of the bytes with `first` and, behind them, `length` bytes with `next`.
#[must_use]
pub fn combine(first: u32, next: u32, length: usize) -> u32 {
    checksum_combine(CrcAlgorithm::Crc32Iscsi, first.into(), next.into(), length as u64) as u32
}

/// The CRC32C of no bytes.
pub const EMPTY: u32 = 0;

/// Bytes of a cache line.
pub(crate) const LINE_BYTES: usize = 64;

/// The CRC32C of bytes that come piece by piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(u32);

impl Digest {
    /// Of no bytes yet.
    #[must_use]
    pub fn new() -> Self {
        Self(EMPTY)
    }

    /// The same with `bytes` behind them.
    #[must_use]
    #[inline]
    pub fn and(self, bytes: &[u8]) -> Self {
        if bytes.is_empty() { self } else { Self(absorb(self.0, bytes)) }
    }

    /// Takes `bytes` in.
    pub fn update(&mut self, bytes: &[u8]) {
        *self = self.and(bytes);
    }

    /// Takes `bytes` in, and each piece of them passes by `each`, with its place in them, while the processor has it
    /// in its hands anyway: whoever copies bytes gets their checksum for little more. Every byte is in one piece; all
    /// begin at a multiple of [`LINE_BYTES`] and all but the last are so long.
    pub(crate) fn update_passing(&mut self, bytes: &[u8], each: impl FnMut(usize, &[u8])) {
        self.0 = absorb_passing(self.0, bytes, each);
    }

    /// Of all bytes so far.
    #[must_use]
    pub fn finalize(self) -> u32 {
        self.0
    }
}

/// The CRC32C of the bytes with `crc` and `bytes` behind them.
fn absorb(crc: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if x86::serves(bytes.len()) {
        // SAFETY: `serves` has found the features that `absorb` needs.
        #[expect(unsafe_code, reason = "only some processors have the instructions")]
        return unsafe { x86::absorb(crc, bytes) };
    }
    absorb_portably(crc, bytes)
}

/// [`absorb`], as [`Digest::update_passing`] says. However long they are, it is this module's lanes that do it where
/// there are any: `crc-fast` shows its bytes to nobody.
fn absorb_passing(crc: u32, bytes: &[u8], mut each: impl FnMut(usize, &[u8])) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if x86::serves(0) {
        // SAFETY: `serves` has found the features that `absorb_passing` needs.
        #[expect(unsafe_code, reason = "only some processors have the instructions")]
        return unsafe { x86::absorb_passing(crc, bytes, each) };
    }
    each(0, bytes);
    absorb(crc, bytes)
}

fn absorb_portably(crc: u32, bytes: &[u8]) -> u32 {
    let state = u64::from(!crc);
    let mut digest = crc_fast::Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, state);
    digest.update(bytes);
    digest.finalize() as u32
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::is_x86_feature_detected;
    use std::arch::x86_64::{
        __m128i, _MM_HINT_T0, _mm_clmulepi64_si128, _mm_crc32_u8, _mm_crc32_u16, _mm_crc32_u32,
        _mm_crc32_u64, _mm_cvtsi64_si128, _mm_cvtsi128_si64, _mm_prefetch, _mm_xor_si128,
    };

    use std::sync::LazyLock;

    type Word = [u8; 8];

    /// Words that a lane does between two looks at whether it is at its end: a cache line.
    const STEP: usize = super::LINE_BYTES / size_of::<Word>();
    /// Steps of a long lane: three of them are just below a page.
    const LONG: usize = 21;
    /// From so many words on, what comes is fetched ahead: another core or a drive has written it, as like as
    /// not, and lanes this short are over before the processor has seen that they are streams. 1.7 times as fast
    /// at 1 MiB over shared memory.
    const FAR_WORDS: usize = 2048;
    /// How far ahead, in words: three rounds of long lanes, into the next run of a value that is summed in pieces.
    const AHEAD: usize = 3 * 3 * LONG * STEP;
    /// From so many bytes on, 512 bits at a time pay.
    const WIDE_BYTES: usize = 1024;

    /// What is shorter than this is done here.
    static SERVED_BYTES: LazyLock<usize> = LazyLock::new(|| {
        let can = is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("pclmulqdq");
        let wide = is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("vpclmulqdq");
        match (can, wide) {
            (false, _) => 0,
            (true, true) => WIDE_BYTES,
            (true, false) => usize::MAX,
        }
    });

    /// Are `length` bytes better done here, and can they?
    #[inline]
    pub(super) fn serves(length: usize) -> bool {
        length < *SERVED_BYTES
    }

    #[target_feature(enable = "sse4.2,pclmulqdq")]
    pub(super) fn absorb(crc: u32, bytes: &[u8]) -> u32 {
        let (mut words, rest) = bytes.as_chunks::<8>();
        let mut state = u64::from(!crc);
        if words.len() >= 3 * STEP {
            (state, words) = side_by_side(state, words);
        }
        (state, words) = up_to::<16>(state, words);
        (state, words) = up_to::<8>(state, words);
        (state, words) = up_to::<4>(state, words);
        (state, words) = up_to::<2>(state, words);
        (state, _) = up_to::<1>(state, words);
        !few(state as u32, rest)
    }

    /// See [`super::absorb_passing`].
    #[target_feature(enable = "sse4.2,pclmulqdq")]
    pub(super) fn absorb_passing(
        crc: u32,
        bytes: &[u8],
        mut each: impl FnMut(usize, &[u8]),
    ) -> u32 {
        let (words, rest) = bytes.as_chunks::<8>();
        let (is_far, start) = (words.len() >= FAR_WORDS, bytes.as_ptr().addr());
        let mut pass = |line: &[Word; STEP]| {
            if is_far {
                fetch_ahead(line);
            }
            each(line.as_ptr().addr() - start, line.as_flattened());
        };
        let (state, left) = in_lanes(u64::from(!crc), words, &mut pass);
        let done = bytes.len() - rest.len() - size_of_val(left);
        each(done, &bytes[done..]);
        absorb(!(state as u32), &bytes[done..])
    }

    /// Does `WORDS` words, if there are so many: by halves, what is shorter than three lanes takes no loop, for
    /// which a header with a key pays twice as much.
    #[inline]
    #[target_feature(enable = "sse4.2")]
    fn up_to<const WORDS: usize>(state: u64, words: &[Word]) -> (u64, &[Word]) {
        match words.split_first_chunk::<WORDS>() {
            Some((now, rest)) => (now.iter().fold(state, |state, word| one(state, word)), rest),
            None => (state, words),
        }
    }

    /// Less than a word.
    #[inline]
    #[target_feature(enable = "sse4.2")]
    fn few(mut state: u32, bytes: &[u8]) -> u32 {
        let mut rest = bytes;
        if let Some((half, behind)) = rest.split_first_chunk() {
            (state, rest) = (_mm_crc32_u32(state, u32::from_le_bytes(*half)), behind);
        }
        if let Some((pair, behind)) = rest.split_first_chunk() {
            (state, rest) = (_mm_crc32_u16(state, u16::from_le_bytes(*pair)), behind);
        }
        rest.first().map_or(state, |byte| _mm_crc32_u8(state, *byte))
    }

    /// As much as lanes can share. Not a part of `absorb`: a PDU's few words would pay for its registers.
    #[inline(never)]
    #[target_feature(enable = "sse4.2,pclmulqdq")]
    fn side_by_side(mut state: u64, mut words: &[Word]) -> (u64, &[Word]) {
        if words.len() >= FAR_WORDS {
            (state, words) = lanes::<LONG>(state, words, &mut |line| fetch_ahead(line));
        }
        in_lanes(state, words, &mut |_| ())
    }

    /// The same, and each line passes by `pass`.
    #[inline]
    #[target_feature(enable = "sse4.2,pclmulqdq")]
    fn in_lanes<'a>(
        mut state: u64,
        mut words: &'a [Word],
        pass: &mut impl FnMut(&[Word; STEP]),
    ) -> (u64, &'a [Word]) {
        (state, words) = lanes::<LONG>(state, words, pass);
        (state, words) = lanes::<5>(state, words, pass);
        lanes::<1>(state, words, pass)
    }

    #[inline]
    #[target_feature(enable = "sse4.2")]
    fn one(state: u64, word: &Word) -> u64 {
        _mm_crc32_u64(state, u64::from_le_bytes(*word))
    }

    /// Does as many words as three lanes of `STEPS` steps can share, each line of which passes by `pass`; the state,
    /// and what is left.
    #[inline]
    #[target_feature(enable = "sse4.2,pclmulqdq")]
    fn lanes<'a, const STEPS: usize>(
        mut state: u64,
        mut words: &'a [Word],
        pass: &mut impl FnMut(&[Word; STEP]),
    ) -> (u64, &'a [Word]) {
        while let Some((now, rest)) = words.split_at_checked(3 * STEPS * STEP) {
            state = three_lanes::<STEPS>(state, now, pass);
            words = rest;
        }
        (state, words)
    }

    /// One behind the other on the wire, and side by side here. At the end the states of the first two are
    /// moved on by the words between them and the last word, which takes them in ("Fast CRC Computation for
    /// Generic Polynomials Using PCLMULQDQ", Gopal and others, 2009).
    #[inline]
    #[target_feature(enable = "sse4.2,pclmulqdq")]
    fn three_lanes<const STEPS: usize>(
        state: u64,
        words: &[Word],
        pass: &mut impl FnMut(&[Word; STEP]),
    ) -> u64 {
        let (first, others) = words.split_at(STEPS * STEP);
        let (second, third) = others.split_at(STEPS * STEP);
        let [(first, _), (second, _), (third, _)] = [first, second, third].map(<[Word]>::as_chunks);
        let (last, third) = third.split_last().expect("three lanes of at least one step");
        let (mut a, mut b, mut c) = (state, 0, 0);
        for ((first, second), third) in first.iter().zip(second).zip(third) {
            [first, second, third].into_iter().for_each(&mut *pass);
            (a, b, c) = step::<STEP>((a, b, c), first, second, third);
        }
        let (first, second) = (&first[third.len()], &second[third.len()]);
        [first, second, last].into_iter().for_each(pass);
        (a, b, c) = step::<{ STEP - 1 }>((a, b, c), first, second, last);
        (a, b) = (one(a, &first[STEP - 1]), one(b, &second[STEP - 1]));
        let a = moved(a, const { power(2 * STEPS * STEP - 1) });
        let b = moved(b, const { power(STEPS * STEP - 1) });
        let both = _mm_cvtsi128_si64(_mm_xor_si128(a, b)).cast_unsigned();
        _mm_crc32_u64(c, u64::from_le_bytes(last[STEP - 1]) ^ both)
    }

    /// A hint, which may point behind the end.
    #[inline]
    #[target_feature(enable = "sse4.2")]
    fn fetch_ahead(line: &[Word; STEP]) {
        _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(AHEAD).cast());
    }

    #[inline]
    #[target_feature(enable = "sse4.2")]
    fn step<const WORDS: usize>(
        (mut a, mut b, mut c): (u64, u64, u64),
        first: &[Word; STEP],
        second: &[Word; STEP],
        third: &[Word; STEP],
    ) -> (u64, u64, u64) {
        for at in 0..WORDS {
            (a, b, c) = (one(a, &first[at]), one(b, &second[at]), one(c, &third[at]));
        }
        (a, b, c)
    }

    /// The product of a state and a power of x: what has to be added to the next word.
    #[inline]
    #[target_feature(enable = "pclmulqdq")]
    fn moved(state: u64, power: u32) -> __m128i {
        let [state, power] = [state, power.into()].map(|n: u64| n.cast_signed());
        _mm_clmulepi64_si128::<0>(_mm_cvtsi64_si128(state), _mm_cvtsi64_si128(power))
    }

    /// The power of x, modulo the polynomial and with the lowest bit first, by which a state is multiplied to
    /// get behind `words` words: 64 for each, and 31 for where the product and the instruction have their ends.
    const fn power(words: usize) -> u32 {
        const POLYNOMIAL: u32 = 0x82F6_3B78;
        let (mut power, mut left) = (1 << 31, 64 * words + 31);
        while left > 0 {
            power = (power >> 1) ^ (POLYNOMIAL * (power & 1));
            left -= 1;
        }
        power
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_check_value_comes_out() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(b""), EMPTY);
    }

    #[test]
    fn every_length_from_every_address_is_as_crc_fast_has_it() {
        let mut bytes = vec![0; 10_000];
        fastrand::Rng::with_seed(7).fill(&mut bytes);
        for length in 0..9_000 {
            let piece = &bytes[length % 64..][..length];
            assert_eq!(crc32c(piece), crc_fast::crc32_iscsi(piece), "{length} bytes");
            assert_eq!(absorb(7, piece), absorb_portably(7, piece), "{length} bytes");
        }
    }

    #[test]
    fn every_byte_passes_by_once_and_the_checksum_is_that_of_all() {
        let mut bytes = vec![0; 300_000];
        fastrand::Rng::with_seed(7).fill(&mut bytes);
        for length in (0..3_000).chain([4095, 4096, 16_384, 100_001, 262_144, 299_900]) {
            let piece = &bytes[length % 64..][..length];
            let (mut copy, mut seen) = (vec![0; length], 0);
            let mut digest = Digest::new().and(b"before");
            digest.update_passing(piece, |place, part| {
                assert!(place.is_multiple_of(LINE_BYTES), "{length} bytes");
                assert!(part.len() == LINE_BYTES || place + part.len() == length);
                copy[place..place + part.len()].copy_from_slice(part);
                seen += part.len();
            });
            assert_eq!(digest, Digest::new().and(b"before").and(piece), "{length} bytes");
            assert!(copy == piece && seen == length, "{length} bytes");
        }
    }

    #[test]
    fn pieces_add_up() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut bytes = vec![0; 100_000];
        rng.fill(&mut bytes);
        for _ in 0..100 {
            let (first, second) = bytes.split_at(rng.usize(..bytes.len()));
            let mut digest = Digest::new().and(first);
            digest.update(second);
            assert_eq!(digest.finalize(), crc32c(&bytes));
            assert_eq!(combine(crc32c(first), crc32c(second), second.len()), crc32c(&bytes));
        }
    }
}
