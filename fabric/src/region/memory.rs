//! The bytes of a region: where they are, who keeps them, and raw copies in and out.

use super::{HugePages, RegionError};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use std::any::Any;
use std::ffi::c_void;
use std::fmt::{Debug, Formatter};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

const PAGE_BYTES: usize = 4096;
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Memory of a region. It stays where it is until this is dropped.
pub(super) struct Memory {
    source: Source,
    bytes: usize,
}

enum Source {
    /// Pages of our own, so many bytes of them.
    Pages { start: NonNull<u8>, mapped: usize },
    /// Somebody else's, who keeps them mapped.
    Foreign { start: NonNull<u8>, _owner: Box<dyn Any> },
    /// Memory of a device, from `offset` on. It has no address here.
    DmaBuf { fd: OwnedFd, offset: u64 },
}

impl Debug for Memory {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let kind = match &self.source {
            Source::Pages { .. } => "pages",
            Source::Foreign { .. } => "foreign",
            Source::DmaBuf { .. } => "dma-buf",
        };
        f.debug_struct("Memory").field("kind", &kind).field("bytes", &self.bytes).finish()
    }
}

impl Memory {
    /// Pages of zeros, which a forked child does not get: it would be given a copy of a page when it
    /// writes there, or this process would, and a network card would be left with the other one.
    pub(super) fn map(bytes: usize, huge: HugePages) -> Result<Self, RegionError> {
        let (page, flags) = match huge {
            HugePages::No => (PAGE_BYTES, MapFlags::empty()),
            HugePages::Yes => (HUGE_PAGE_BYTES, MapFlags::MAP_HUGETLB | MapFlags::MAP_HUGE_2MB),
        };
        let mapped = bytes.checked_next_multiple_of(page).ok_or(RegionError::Bytes)?;
        let length = NonZeroUsize::new(mapped).ok_or(RegionError::Bytes)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new anonymous mapping wherever the kernel likes touches nothing that exists.
        let start = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE | flags) };
        let start = start.map_err(|errno| match huge {
            HugePages::No => RegionError::Map(errno.into()),
            HugePages::Yes => RegionError::HugePages(errno.into()),
        })?;
        let memory = Self { source: Source::Pages { start: start.cast(), mapped }, bytes };
        // SAFETY: the range is this mapping, and the advice changes no content.
        unsafe { madvise(start, mapped, MmapAdvise::MADV_DONTFORK) }
            .map_err(|errno| RegionError::Map(errno.into()))?;
        Ok(memory)
    }

    /// # Safety
    /// As [`super::Region::foreign`].
    pub(super) unsafe fn foreign(start: NonNull<u8>, bytes: usize, owner: Box<dyn Any>) -> Self {
        Self { source: Source::Foreign { start, _owner: owner }, bytes }
    }

    pub(super) fn dma_buf(fd: OwnedFd, offset: u64, bytes: usize) -> Self {
        Self { source: Source::DmaBuf { fd, offset }, bytes }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn start(&self) -> Option<NonNull<u8>> {
        match &self.source {
            Source::Pages { start, .. } | Source::Foreign { start, .. } => Some(*start),
            Source::DmaBuf { .. } => None,
        }
    }

    /// A processor can look at it.
    pub(super) fn is_visible(&self) -> bool {
        self.start().is_some()
    }

    pub(super) fn is_foreign(&self) -> bool {
        matches!(self.source, Source::Foreign { .. })
    }

    pub(super) fn as_dma_buf(&self) -> Option<(BorrowedFd<'_>, u64)> {
        match &self.source {
            Source::DmaBuf { fd, offset } => Some((fd.as_fd(), *offset)),
            _ => None,
        }
    }

    /// As a network card names it.
    pub(super) fn device_address(&self) -> u64 {
        match &self.source {
            Source::Pages { start, .. } | Source::Foreign { start, .. } => {
                start.as_ptr().expose_provenance() as u64
            }
            Source::DmaBuf { offset, .. } => *offset,
        }
    }

    /// Where `offset` is, with `count` bytes behind it that are all inside.
    ///
    /// # Panics
    /// If they are not, or a processor cannot look at them.
    pub(super) fn at(&self, offset: usize, count: usize) -> NonNull<u8> {
        let fits = offset <= self.bytes && count <= self.bytes - offset;
        assert!(fits, "outside of the region");
        let start = self.start().expect("memory that a processor can look at");
        // SAFETY: `offset` is within the memory, by the assertion.
        unsafe { start.add(offset) }
    }

    /// Copies bytes in.
    ///
    /// # Safety
    /// Nobody in this process has a reference to the bytes that are written.
    pub(super) unsafe fn copy_in(&self, offset: usize, from: &[u8]) {
        let into = self.at(offset, from.len());
        // SAFETY: `into` is so many bytes of the memory, by `at`; `from` cannot overlap it, since it is a
        // reference and there is none, by this function's contract.
        unsafe { into.copy_from_nonoverlapping(NonNull::from(from).cast(), from.len()) };
    }

    /// Copies bytes out. A network card that writes meanwhile makes them a mixture, no more.
    ///
    /// # Safety
    /// Nobody in this process has a mutable reference to the bytes that are read.
    pub(super) unsafe fn copy_out(&self, offset: usize, into: &mut [u8]) {
        let from = self.at(offset, into.len());
        let target = NonNull::from(&mut *into).cast();
        // SAFETY: `from` is so many bytes of the memory, by `at`; `into` cannot overlap it, since it is a
        // mutable reference and there is none, by this function's contract.
        unsafe { from.copy_to_nonoverlapping(target, into.len()) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Source::Pages { start, mapped } = &self.source {
            // SAFETY: mapped by `map` with this length; no reference into it outlives its region.
            let unmapped = unsafe { munmap(start.cast::<c_void>(), *mapped) };
            unmapped.unwrap_or_else(|error| log::error!("munmap of a region: {error}"));
        }
    }
}
