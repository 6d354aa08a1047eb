//! Setting a ring up: the best mode that the kernel has, and the pool's memory registered with it.

use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::IoUring;

use super::OpenError;
use crate::Pool;

/// The kernel takes at most this much in one registered buffer. A power of two and a multiple of
/// the largest [`crate::DmaBuf`], so that no buffer lies in two pieces.
const PIECE_BYTES: usize = 1 << 30;

const _: () = assert!(PIECE_BYTES.is_multiple_of(crate::arena::BUFFER_BYTES_MAX));

/// The pool's memory, as the kernel knows it: pieces of [`PIECE_BYTES`], numbered from 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registered {
    base: usize,
    bytes: usize,
}

impl Registered {
    /// The number of the registered piece that the range lies in. `None`: not registered, or in
    /// two pieces; such a range goes by its address.
    pub(super) fn piece_of(&self, address: usize, bytes: usize) -> Option<u16> {
        let from = address.checked_sub(self.base)?;
        let last = from.checked_add(bytes.checked_sub(1)?)?;
        let inside = last < self.bytes && from / PIECE_BYTES == last / PIECE_BYTES;
        inside.then_some((from / PIECE_BYTES) as u16)
    }
}

/// A ring that can hold `depth` requests, in the best mode of the kernel at hand.
pub(super) fn build(depth: u32) -> Result<IoUring, OpenError> {
    let entries = depth.next_power_of_two();
    // One thread submits (Linux 6.0), and completions run when it next enters the kernel instead
    // of interrupting it (5.19); a flag in shared memory says that some wait for that. Not
    // IORING_SETUP_DEFER_TASKRUN: its completions do not wake a thread that sleeps in epoll.
    let mode = |single_issuer: bool| {
        let mut builder = IoUring::builder();
        if single_issuer {
            builder.setup_single_issuer();
        }
        builder.setup_submit_all().setup_coop_taskrun().setup_taskrun_flag().build(entries)
    };
    mode(true)
        .or_else(|_| mode(false))
        .or_else(|_| IoUring::new(entries))
        .map_err(|source| OpenError::IoUring { source })
}

/// Makes `file` the ring's registered file 0.
pub(super) fn register_file(ring: &IoUring, file: BorrowedFd<'_>) -> Result<(), OpenError> {
    ring.submitter()
        .register_files(&[file.as_raw_fd()])
        .map_err(|source| OpenError::IoUring { source })
}

/// Pins the pool's memory once, instead of once in every request. `None` where the limits forbid
/// it: slower, but right.
pub(super) fn register_pool(ring: &IoUring, pool: &Pool) -> Option<Registered> {
    let (address, bytes) = pool.region();
    let pieces: Vec<libc::iovec> = (0..bytes)
        .step_by(PIECE_BYTES)
        .map(|offset| libc::iovec {
            iov_base: address.wrapping_add(offset).cast_mut().cast(),
            iov_len: PIECE_BYTES.min(bytes - offset),
        })
        .collect();
    // SAFETY: the pieces cover the pool's mapping and nothing else. It stays mapped for as long as
    // the ring: the queue that owns the ring also owns a handle on the pool.
    match unsafe { ring.submitter().register_buffers(&pieces) } {
        Ok(()) => Some(Registered { base: address.addr(), bytes }),
        Err(error) => {
            log::warn!(
                "uring: {} MiB of buffers could not be registered ({error}), every request pins \
                 its own: raise `ulimit -l`, or put `LimitMEMLOCK=infinity` into the systemd unit",
                bytes >> 20,
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_fixed_only_inside_one_registered_piece() {
        let base = 1 << 40;
        let registered = Registered { base, bytes: 2 * PIECE_BYTES + 8192 };
        let last = 2 * PIECE_BYTES;
        assert_eq!(registered.piece_of(base, 4096), Some(0));
        assert_eq!(registered.piece_of(base + PIECE_BYTES, 4096), Some(1));
        assert_eq!(registered.piece_of(base + PIECE_BYTES - 4096, 4096), Some(0));
        assert_eq!(registered.piece_of(base + PIECE_BYTES - 4096, 8192), None);
        assert_eq!(registered.piece_of(base + last, 8192), Some(2));
        assert_eq!(registered.piece_of(base + last + 4096, 8192), None);
        assert_eq!(registered.piece_of(base - 4096, 4096), None);
        assert_eq!(registered.piece_of(base, 0), None);
    }
}
