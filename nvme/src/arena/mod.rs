//! The arena: the memory that devices and the network read and write.
//!
//! Guarantees:
//!
//! * one mapping, made at start, in huge pages where the machine has them, resident and (where
//!   the limits allow it) locked: no page fault and no allocation on the I/O path;
//! * every [`DmaBuf`] is exclusive: no byte of the arena is reachable through two of them; a [`SharedBuf`] may
//!   have several holders, who only read;
//! * the mapping outlives every pool and every buffer cut from it;
//! * a forked child does not inherit it (`MADV_DONTFORK`), so that a device that writes here
//!   while a child lives never writes into a copy.
//!
//! What breaks it: nothing in safe code. A pool that is empty says so (`None`); it never grows.
//!
//! [`Arena::split`] cuts the mapping into one slice per reactor. A [`PoolSeed`] travels to the
//! reactor's thread and becomes its [`Pool`] there: a buddy allocator without locks or atomics.

#![expect(
    unsafe_code,
    reason = "owns the mapping, and hands out exclusive slices of it; each block carries its proof"
)]

mod buddy;
pub(crate) mod bus;
mod pool;
mod region;
mod table;
mod words;

use std::sync::Arc;

pub use pool::{Buffer, DmaBuf, Pool, SharedBuf};
use region::Region;
pub use table::{Table, TableEntry};
pub use words::{DmaSlots, DmaWords};

/// The smallest buffer, in bytes.
pub const BUFFER_BYTES_MIN: usize = 4096;
/// The largest buffer, and the unit and alignment of the arena, in bytes.
pub const BUFFER_BYTES_MAX: usize = BUFFER_BYTES_MIN << (buddy::ORDERS - 1);

const _: () = assert!(BUFFER_BYTES_MAX == 4 << 20);

/// Why the arena could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// The size is zero, or more than a process can address.
    #[error("an arena of {bytes} bytes is impossible: ask for 4 MiB or more")]
    Size {
        /// What was asked for.
        bytes: usize,
    },
    /// The kernel refused the mapping.
    #[error("cannot map an arena of {mib} MiB: {source}; make the arena smaller or free memory")]
    Map {
        /// Size in MiB.
        mib: usize,
        /// What the kernel said.
        source: nix::errno::Errno,
    },
    /// The mapping is there, and the memory behind it is not.
    #[error(
        "cannot make an arena of {mib} MiB resident: {source}; make the arena smaller, free \
         memory, or raise the memory limit of this service's control group"
    )]
    Populate {
        /// Size in MiB.
        mib: usize,
        /// What the kernel said.
        source: nix::errno::Errno,
    },
}

/// One anonymous mapping, not yet cut into pools.
#[derive(Debug)]
pub struct Arena {
    region: Region,
}

impl Arena {
    /// Maps at least `bytes` (rounded up to 4 MiB): huge pages, resident, locked, as far as the
    /// machine allows; one log line says how far.
    ///
    /// # Errors
    /// [`ArenaError`] if there is not that much memory.
    pub fn new(bytes: usize) -> Result<Self, ArenaError> {
        Ok(Self { region: Region::pinned(whole_units(bytes)?)? })
    }

    /// Maps at least `bytes` of ordinary pages that become resident when they are touched, for
    /// tools and simulations: cheap to make, of no use to a real device driver.
    ///
    /// # Errors
    /// [`ArenaError`] if the address space is not there.
    pub fn on_demand(bytes: usize) -> Result<Self, ArenaError> {
        Ok(Self { region: Region::on_demand(whole_units(bytes)?)? })
    }

    /// Its size.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        self.region.bytes()
    }

    /// Cuts the arena into `parts` pools, equal but for a remainder of 4 MiB units.
    ///
    /// # Panics
    /// When `parts` is zero, or there are fewer 4 MiB units than parts.
    #[must_use]
    pub fn split(self, parts: usize) -> Vec<PoolSeed> {
        let units = self.region.bytes() / BUFFER_BYTES_MAX;
        assert!(parts > 0 && parts <= units, "{units} arena units do not split into {parts}");
        let region = Arc::new(self.region);
        let start = |part: usize| part * units / parts * BUFFER_BYTES_MAX;
        (0..parts)
            .map(|part| PoolSeed {
                region: Arc::clone(&region),
                offset: start(part),
                bytes: start(part + 1) - start(part),
            })
            .collect()
    }

    /// The whole arena as one pool.
    #[must_use]
    pub fn pool(self) -> Pool {
        let bytes = self.region.bytes();
        PoolSeed { region: Arc::new(self.region), offset: 0, bytes }.into_pool()
    }
}

/// A whole arena as a device or a network card registers it: where it is, and that it stays there. Gives no
/// access to its content.
#[derive(Clone, Debug)]
pub struct Span(Arc<Region>);

impl Span {
    /// Its first address, a multiple of [`BUFFER_BYTES_MAX`].
    #[must_use]
    pub fn address(&self) -> usize {
        self.0.at(0, 0).addr().get()
    }

    /// Its length, a multiple of [`BUFFER_BYTES_MAX`].
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// Whether both are one mapping.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

fn whole_units(bytes: usize) -> Result<usize, ArenaError> {
    match bytes.checked_next_multiple_of(BUFFER_BYTES_MAX) {
        Some(rounded) if rounded > 0 && rounded <= isize::MAX as usize / 2 => Ok(rounded),
        _ => Err(ArenaError::Size { bytes }),
    }
}

/// A slice of the arena on its way to the thread that will use it.
///
/// Slices of one arena never overlap; that, and the buddy allocator inside a slice, is the whole
/// argument for the exclusiveness of a [`DmaBuf`].
#[derive(Debug)]
pub struct PoolSeed {
    region: Arc<Region>,
    offset: usize,
    bytes: usize,
}

impl PoolSeed {
    /// Sets up the allocator over this slice; from here on it stays on this thread.
    #[must_use]
    pub fn into_pool(self) -> Pool {
        Pool::over(self)
    }

    /// Its size.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        self.bytes
    }

    /// Cuts at most `bytes`, in whole units of [`BUFFER_BYTES_MAX`], off its end, and leaves one unit; `None` if
    /// that is nothing.
    #[must_use]
    pub fn cut_off(&mut self, bytes: usize) -> Option<Self> {
        let bytes = bytes.min(self.bytes - BUFFER_BYTES_MAX) / BUFFER_BYTES_MAX * BUFFER_BYTES_MAX;
        self.bytes -= bytes;
        let (region, offset) = (Arc::clone(&self.region), self.offset + self.bytes);
        (bytes > 0).then_some(Self { region, offset, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arena_is_aligned_to_its_largest_buffer_and_rounded_up() {
        for arena in [Arena::new(5 << 20).unwrap(), Arena::on_demand(5 << 20).unwrap()] {
            assert_eq!(arena.total_bytes(), 8 << 20);
            let pool = arena.pool();
            assert_eq!(pool.region().0.addr() % BUFFER_BYTES_MAX, 0);
            assert_eq!(pool.region().1, 8 << 20);
        }
    }

    #[test]
    fn an_impossible_arena_is_refused() {
        for bytes in [0, usize::MAX, usize::MAX / 2] {
            assert!(matches!(Arena::new(bytes), Err(ArenaError::Size { .. })), "{bytes}");
        }
    }

    #[test]
    fn what_is_cut_off_a_slice_lies_behind_it() {
        let mut slice = Arena::on_demand(5 * BUFFER_BYTES_MAX).unwrap().split(1).remove(0);
        assert!(slice.cut_off(BUFFER_BYTES_MAX - 1).is_none());
        let cut = slice.cut_off(3 * BUFFER_BYTES_MAX + 1).unwrap();
        assert_eq!((slice.total_bytes(), cut.total_bytes()), (8 << 20, 12 << 20));
        let (first, second) = (slice.into_pool().region(), cut.into_pool().region());
        assert_eq!(first.0.addr() + first.1, second.0.addr());
    }

    #[test]
    fn parts_of_an_arena_cover_it_without_overlap() {
        let arena = Arena::on_demand(7 * BUFFER_BYTES_MAX).unwrap();
        let pools: Vec<Pool> = arena.split(3).into_iter().map(PoolSeed::into_pool).collect();
        let mut regions: Vec<_> =
            pools.iter().map(|pool| (pool.region().0.addr(), pool.region().1)).collect();
        regions.sort_unstable();
        for pair in regions.windows(2) {
            assert_eq!(pair[0].0 + pair[0].1, pair[1].0);
        }
        assert_eq!(regions.iter().map(|region| region.1).sum::<usize>(), 7 * BUFFER_BYTES_MAX);
    }

    #[test]
    fn a_pool_works_on_another_thread_after_its_arena_is_gone() {
        let mut seeds = Arena::on_demand(2 * BUFFER_BYTES_MAX).unwrap().split(2);
        let other = seeds.pop().unwrap();
        drop(seeds);
        std::thread::spawn(move || {
            let pool = other.into_pool();
            let mut buffer = pool.alloc(BUFFER_BYTES_MAX).unwrap();
            drop(pool);
            buffer.fill(7);
            assert!(buffer.iter().all(|byte| *byte == 7));
        })
        .join()
        .unwrap();
    }
}
