//! The mapping: the only place that touches shared memory, but for a client that reads answers in place
//! (`view`).
//!
//! Guarantees: every access is inside the mapping; plain bytes are only ever *copied*, through raw
//! pointers, between it and private memory; words are atomics. It makes no reference to plain shared bytes,
//! so the compiler may assume nothing about them, and whoever copies them out has values that
//! nobody changes any more. What a copy holds that raced with the peer is any mix of old and new
//! bytes: whoever reads it checks it.
#![expect(
    unsafe_code,
    reason = "maps memory that another process writes; each block has its proof"
)]

use crate::crc32c::{Digest, LINE_BYTES};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence};

/// A page.
pub(super) const PAGE_BYTES: usize = 4096;

/// One shared mapping of a memfd.
#[derive(Debug)]
pub(super) struct Mapping {
    address: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it is an address and a length; all access through `&Mapping` is atomic or copies plain
// bytes that are expected to change at any time, by another process or another thread alike.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `bytes` of `memfd`. The caller has made sure that the file has them and can
    /// never shrink: else an access would raise SIGBUS.
    pub(super) fn new(memfd: BorrowedFd<'_>, bytes: usize) -> nix::Result<Self> {
        let length = NonZeroUsize::new(bytes).ok_or(nix::Error::EINVAL)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nobody's memory.
        let address = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, memfd, 0) }?;
        let mapping = Self { address: address.cast(), bytes };
        // SAFETY: the range is this mapping, and the advice changes no content.
        unsafe { madvise(address, bytes, MmapAdvise::MADV_DONTFORK) }?;
        Ok(mapping)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of `offset`, of which `count` bytes lie inside.
    pub(super) fn at(&self, offset: usize, count: usize) -> *mut u8 {
        assert!(offset <= self.bytes && count <= self.bytes - offset, "outside of the mapping");
        // SAFETY: `offset` is within the mapping, by the assertion.
        unsafe { self.address.as_ptr().add(offset) }
    }

    /// The 64-bit word at `offset`, a multiple of 8.
    pub(super) fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(align_of::<AtomicU64>()));
        let at = self.at(offset, size_of::<AtomicU64>()).cast::<u64>();
        // SAFETY: valid for as long as `self`, and aligned, since the mapping is aligned to a page.
        // Everybody who follows the layout accesses words atomically; one who does not is in another
        // process, where this program's compiler cannot reason about it.
        unsafe { AtomicU64::from_ptr(at) }
    }

    /// The 32-bit word at `offset`, a multiple of 4.
    pub(super) fn half(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(align_of::<AtomicU32>()));
        let at = self.at(offset, size_of::<AtomicU32>()).cast::<u32>();
        // SAFETY: as in `word`.
        unsafe { AtomicU32::from_ptr(at) }
    }

    /// Copies out of it.
    pub(super) fn copy_out(&self, offset: usize, into: &mut [u8]) {
        let from = self.at(offset, into.len());
        // SAFETY: `from` is readable for `into.len()` bytes, by `at`; `into` is this process's own
        // memory and no part of the mapping, to which only shared references are made. The source may change
        // under the copy: any bytes are good ones, and nothing is read twice.
        unsafe { from.copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) };
        // Memory may have changed, for all the compiler knows: it cannot read the source again where
        // the program reads the copy.
        compiler_fence(Ordering::SeqCst);
    }

    /// Copies into it.
    pub(super) fn copy_in(&self, offset: usize, from: &[u8]) {
        let into = self.at(offset, from.len());
        // SAFETY: as in `copy_out`, the other way round: nobody in this process has a reference to the
        // bytes that are written.
        unsafe { into.copy_from_nonoverlapping(from.as_ptr(), from.len()) }
    }
}

impl Mapping {
    /// Copies bulk data into it, past this core's caches: the peer reads it next, and this side never.
    /// Twice as fast as [`Mapping::copy_in`], which fetches each line from the peer's cache first. The peer may
    /// be told of it after [`Mapping::fence`].
    #[cfg(target_arch = "x86_64")]
    pub(super) fn stream_in(&self, offset: usize, from: &[u8]) {
        let lead = self.at(offset, from.len()).align_offset(LINE_BYTES).min(from.len());
        let (lines, tail) = from[lead..].as_chunks::<LINE_BYTES>();
        self.copy_in(offset, &from[..lead]);
        self.stream_lines(offset + lead, lines);
        self.copy_in(offset + from.len() - tail.len(), tail);
    }

    /// What was streamed in before is seen before what is stored after: by themselves these stores are in no order
    /// with later ones, not even with a release. For all answers of a turn at once it costs what it costs for one.
    pub(super) fn fence(&self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 processor has SSE.
        unsafe {
            std::arch::x86_64::_mm_sfence();
        };
    }

    /// `count` bytes from `offset` on will be copied out soon: a hint, which reads nothing.
    pub(super) fn prefetch(&self, offset: usize, count: usize) {
        let from = self.at(offset, count);
        (0..count).step_by(LINE_BYTES).for_each(|line| fetch(from.wrapping_add(line)));
    }

    /// Elsewhere it is an ordinary copy.
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn stream_in(&self, offset: usize, from: &[u8]) {
        self.copy_in(offset, from);
    }

    /// Lines one behind the other, to an offset that is aligned to one. The caller issues the fence.
    #[cfg(target_arch = "x86_64")]
    fn stream_lines(&self, offset: usize, lines: &[[u8; LINE_BYTES]]) {
        let into = self.at(offset, size_of_val(lines));
        assert!(lines.is_empty() || into.addr().is_multiple_of(STREAM_BYTES));
        for (number, line) in lines.iter().enumerate() {
            // SAFETY: inside of the mapping, by `at` for all of them, and aligned.
            unsafe { stream_line(into.add(number * LINE_BYTES), line) };
        }
    }

    /// Copies bulk data into it, which `sum` takes in on its way. What is long goes past this core's caches. What is
    /// short does not: the peer, who need not look at it at once, has not fetched all of the lines, so they are near,
    /// and fetched ahead of the copy.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn copy_in_summed(&self, offset: usize, from: &[u8], sum: &mut Digest) {
        let into = self.at(offset, from.len());
        let is_aligned = into.addr().is_multiple_of(STREAM_BYTES);
        let is_streamed = is_aligned && from.len() >= STREAMED_BYTES;
        sum.update_passing(from, |place, piece| {
            assert!(place + piece.len() <= from.len() && place.is_multiple_of(STREAM_BYTES));
            if !is_streamed {
                fetch(into.wrapping_add(place + AHEAD_BYTES));
            }
            match piece.try_into() {
                // SAFETY: inside of the mapping, by `at` and the assertion, and aligned.
                Ok(line) if is_streamed => unsafe { stream_line(into.add(place), line) },
                // SAFETY: as in `copy_in`, of a part of the same bytes, by the assertion.
                _ => unsafe {
                    into.add(place).copy_from_nonoverlapping(piece.as_ptr(), piece.len());
                },
            }
        });
    }

    /// Elsewhere it is an ordinary copy.
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn copy_in_summed(&self, offset: usize, from: &[u8], sum: &mut Digest) {
        self.copy_in(offset, from);
        sum.update(from);
    }
}

/// From so many bytes on, data that is summed goes past the caches.
#[cfg(target_arch = "x86_64")]
const STREAMED_BYTES: usize = 32 << 10;
/// How far ahead of a copy its lines are fetched.
#[cfg(target_arch = "x86_64")]
const AHEAD_BYTES: usize = 8 * LINE_BYTES;
/// What is stored past the caches at a time, and where: at multiples of itself.
#[cfg(target_arch = "x86_64")]
const STREAM_BYTES: usize = 16;

/// A hint that the line at `address`, which may be anywhere, will be used soon.
#[inline]
fn fetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it reads nothing; every x86-64 processor has SSE.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _: *const u8 = address;
}

/// Stores a line past this core's caches.
///
/// # Safety
/// `into` is writable for a line, no part of it is referred to, and it is aligned to [`STREAM_BYTES`].
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn stream_line(into: *mut u8, line: &[u8; LINE_BYTES]) {
    use std::arch::x86_64::{_mm_loadu_si128, _mm_stream_si128};
    for at in (0..LINE_BYTES).step_by(STREAM_BYTES) {
        // SAFETY: both are valid for the line, and `into` is aligned, as the caller says. Every x86-64 processor
        // has SSE2.
        unsafe {
            let bytes = _mm_loadu_si128(line.as_ptr().add(at).cast());
            _mm_stream_si128(into.add(at).cast(), bytes);
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no pointer into it outlives a method.
        let result = unsafe { munmap(self.address.cast(), self.bytes) };
        debug_assert!(result.is_ok(), "unmapping shared memory: {result:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crc32c::crc32c;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::os::fd::AsFd;

    fn pair() -> (Mapping, Mapping) {
        pair_of(2)
    }

    fn pair_of(pages: usize) -> (Mapping, Mapping) {
        let memfd = memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&memfd, (pages * PAGE_BYTES) as i64).unwrap();
        let map = || Mapping::new(memfd.as_fd(), pages * PAGE_BYTES).unwrap();
        (map(), map())
    }

    #[test]
    fn what_one_side_writes_the_other_sees() {
        let (one, other) = pair();
        one.copy_in(PAGE_BYTES - 2, b"over the edge");
        one.word(8).store(7, Ordering::Release);
        let mut found = [0; 13];
        other.copy_out(PAGE_BYTES - 2, &mut found);
        assert_eq!(&found, b"over the edge");
        assert_eq!(
            (other.word(8).load(Ordering::Acquire), other.half(8).load(Ordering::Acquire)),
            (7, 7)
        );
    }

    #[test]
    fn bulk_data_arrives_whatever_its_place_and_length() {
        let (one, other) = pair();
        let bytes: Vec<u8> = (0..1000_u32).map(|at| (at * 7 + 1) as u8).collect();
        for offset in (0..130).chain([2 * PAGE_BYTES - 1000]) {
            for length in (0..130).chain([700, 1000]) {
                for summed in [false, true] {
                    one.copy_in(0, &[0; 2 * PAGE_BYTES]);
                    let (from, mut sum) = (&bytes[..length], Digest::new());
                    match summed {
                        false => one.stream_in(offset, from),
                        true => one.copy_in_summed(offset, from, &mut sum),
                    }
                    assert!(!summed || sum.finalize() == crc32c(from), "{offset} {length}");
                    let mut found = vec![0; 2 * PAGE_BYTES];
                    other.copy_out(0, &mut found);
                    assert_eq!(found[offset..offset + length], *from, "{offset} {length}");
                    found[offset..offset + length].fill(0);
                    assert!(found.iter().all(|byte| *byte == 0), "{offset} {length}: nothing else");
                }
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn long_data_that_is_summed_arrives_aligned_or_not() {
        let mut bytes = vec![0; STREAMED_BYTES + 5_000];
        fastrand::Rng::with_seed(7).fill(&mut bytes);
        for offset in [0, 1, 8, 16, 48, 64, 100, 4096] {
            for length in [STREAMED_BYTES - 1, STREAMED_BYTES, STREAMED_BYTES + 4_999] {
                let (one, other) = pair_of(12);
                let (from, mut sum) = (&bytes[7..][..length - 7], Digest::new());
                one.copy_in_summed(offset, from, &mut sum);
                one.fence();
                let mut found = vec![0; 12 * PAGE_BYTES];
                other.copy_out(0, &mut found);
                assert!(found[offset..offset + from.len()] == *from, "{offset} {length}");
                assert_eq!(sum.finalize(), crc32c(from), "{offset} {length}");
                found[offset..offset + from.len()].fill(0);
                assert!(found.iter().all(|byte| *byte == 0), "{offset} {length}: nothing else");
            }
        }
    }

    #[test]
    #[should_panic(expected = "outside of the mapping")]
    fn bulk_data_across_the_end_panics() {
        pair().0.stream_in(2 * PAGE_BYTES - 100, &[0; 101]);
    }

    #[test]
    #[should_panic(expected = "outside of the mapping")]
    fn bulk_data_that_is_summed_across_the_end_panics() {
        pair().0.copy_in_summed(2 * PAGE_BYTES - 512, &[0; 513], &mut Digest::new());
    }

    #[test]
    #[should_panic(expected = "outside of the mapping")]
    fn an_access_across_the_end_panics() {
        pair().0.copy_in(2 * PAGE_BYTES - 3, b"four");
    }

    #[test]
    #[should_panic(expected = "outside of the mapping")]
    fn an_offset_that_overflows_panics() {
        pair().0.copy_out(usize::MAX, &mut [0; 4]);
    }
}
