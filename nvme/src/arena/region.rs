//! The mapping itself.
//!
//! Guarantees: aligned to 4 MiB, readable, writable and zero at first, unmapped when dropped.

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use nix::sys::resource::{Resource, getrlimit};

use super::{ArenaError, BUFFER_BYTES_MAX};

const PAGE_BYTES: usize = 4096;
const HUGE_PAGE_BYTES: usize = 2 << 20;
const GIGANTIC_PAGE_BYTES: usize = 1 << 30;

/// An owned, private, anonymous mapping.
#[derive(Debug)]
pub(super) struct Region {
    address: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a `Region` is an address and a length. Plain access to the memory goes through `DmaBuf`s, each of which
// is exclusive; all other access (words and slots that a device shares, and an emulated device's own) is atomic.
unsafe impl Send for Region {}
// SAFETY: as above: through `&Region` memory is reached by atomic access only.
unsafe impl Sync for Region {}

impl Region {
    /// Huge pages if there are enough, else ordinary ones; resident, and locked if allowed.
    pub(super) fn pinned(bytes: usize) -> Result<Self, ArenaError> {
        let kinds = [
            ("1 GiB", GIGANTIC_PAGE_BYTES, MapFlags::MAP_HUGE_1GB),
            ("2 MiB", HUGE_PAGE_BYTES, MapFlags::MAP_HUGE_2MB),
        ];
        for (name, page_bytes, flag) in kinds {
            // Refused where not enough of them are reserved.
            if bytes.is_multiple_of(page_bytes)
                && let Ok(region) = Self::map(bytes, page_bytes, MapFlags::MAP_HUGETLB | flag)
            {
                region.settle()?;
                log::info!("arena: {} MiB in reserved {name} pages (hugetlb)", bytes >> 20);
                return Ok(region);
            }
        }
        Self::pinned_ordinary(bytes)
    }

    fn pinned_ordinary(bytes: usize) -> Result<Self, ArenaError> {
        let mib = bytes >> 20;
        let region = Self::on_demand(bytes)?;
        // Advice only: a kernel without transparent huge pages runs on 4 KiB ones.
        let transparent = region.advise(MmapAdvise::MADV_HUGEPAGE).is_ok();
        region.settle()?;
        // SAFETY: the range is this mapping; locking changes no content.
        let locked = unsafe { mlock(region.address.cast(), bytes) };
        log::info!(
            "arena: {mib} MiB in {}, {} (for reserved 2 MiB pages: `sysctl vm.nr_hugepages={}`)",
            if transparent { "ordinary or transparent huge pages" } else { "ordinary pages" },
            if locked.is_ok() { "locked" } else { "not locked" },
            bytes / HUGE_PAGE_BYTES + 1,
        );
        if let Err(errno) = locked {
            warn_unlocked(bytes, errno);
        }
        Ok(region)
    }

    /// Ordinary pages that come when they are touched.
    pub(super) fn on_demand(bytes: usize) -> Result<Self, ArenaError> {
        let region = Self::map(bytes, PAGE_BYTES, MapFlags::MAP_NORESERVE)
            .map_err(|source| ArenaError::Map { mib: bytes >> 20, source })?;
        region
            .advise(MmapAdvise::MADV_DONTFORK)
            .map_err(|source| ArenaError::Map { mib: bytes >> 20, source })?;
        Ok(region)
    }

    /// Advice only: a kernel without transparent huge pages stays with ordinary ones.
    pub(super) fn prefer_huge_pages(&self) {
        if let Err(errno) = self.advise(MmapAdvise::MADV_HUGEPAGE) {
            log::debug!("arena: no transparent huge pages: {errno}");
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of `offset`, of which `bytes` lie inside the mapping.
    pub(super) fn at(&self, offset: usize, bytes: usize) -> NonNull<u8> {
        assert!(offset <= self.bytes && bytes <= self.bytes - offset);
        // SAFETY: `offset` is within the mapping, by the assertion.
        unsafe { self.address.add(offset) }
    }

    /// Keeps it out of forked children and makes every page resident now, where the lack of memory
    /// is an error and not a signal in the middle of an I/O.
    fn settle(&self) -> Result<(), ArenaError> {
        let mib = self.bytes >> 20;
        self.advise(MmapAdvise::MADV_DONTFORK).map_err(|source| ArenaError::Map { mib, source })?;
        // SAFETY: the range is this mapping; populating writes nothing.
        let rc = unsafe {
            libc::madvise(self.address.as_ptr().cast(), self.bytes, libc::MADV_POPULATE_WRITE)
        };
        match Errno::result(rc) {
            // Linux before 5.14 does not know the advice; the lock that follows populates.
            Ok(_) | Err(Errno::EINVAL) => Ok(()),
            Err(source) => Err(ArenaError::Populate { mib, source }),
        }
    }

    fn advise(&self, advice: MmapAdvise) -> nix::Result<()> {
        // SAFETY: the range is this mapping, and the advice used here changes no content.
        unsafe { madvise(self.address.cast(), self.bytes, advice) }
    }

    /// Maps `bytes`, aligned to 4 MiB: maps enough more to align in, and gives the ends back.
    fn map(bytes: usize, page_bytes: usize, flags: MapFlags) -> nix::Result<Self> {
        // Larger pages are aligned by themselves.
        let slack = BUFFER_BYTES_MAX.saturating_sub(page_bytes);
        let length = NonZeroUsize::new(bytes + slack).ok_or(Errno::EINVAL)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nobody's memory.
        let mapped =
            unsafe { mmap_anonymous(None, length, access, flags | MapFlags::MAP_PRIVATE) }?;
        // The address is a multiple of `page_bytes`, so this is at most `slack`.
        let head = mapped.addr().get().wrapping_neg() % BUFFER_BYTES_MAX;
        let unmap = |from: usize, bytes: usize| {
            if bytes > 0 {
                // SAFETY: `from..+bytes` lies in the mapping made above, outside the part that is
                // handed out; nothing points there.
                let result = unsafe { munmap(mapped.byte_add(from), bytes) };
                debug_assert!(result.is_ok(), "giving address space back: {result:?}");
            }
        };
        unmap(0, head);
        unmap(head + bytes, slack - head);
        // SAFETY: `head <= slack`, so the aligned address is inside the mapping.
        Ok(Self { address: unsafe { mapped.byte_add(head) }.cast(), bytes })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is this region's own, and every pool and buffer that points into it
        // holds it in an `Arc`, so none is left.
        let result = unsafe { munmap(self.address.cast(), self.bytes) };
        debug_assert!(result.is_ok(), "unmapping the arena: {result:?}");
    }
}

fn warn_unlocked(bytes: usize, errno: Errno) {
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    log::warn!(
        "arena: {} MiB could not be locked ({errno}; RLIMIT_MEMLOCK is {} KiB) and may be swapped \
         out: run `ulimit -l {}` before the daemon, or put `LimitMEMLOCK=infinity` into its \
         systemd unit",
        bytes >> 20,
        limit >> 10,
        bytes >> 10,
    );
}
