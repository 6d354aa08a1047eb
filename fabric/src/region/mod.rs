//! Regions: memory of the caller's that values land in and are sent from, on every transport.
//!
//! A [`Region`] is pages of its own, memory of somebody else's ([`Region::foreign`]: a numpy array, a host
//! buffer that a GPU has pinned, a mapped file), or a dma-buf. It belongs to the thread of its clients,
//! and to no connection: a device that is to reach it registers it once, when it is first used or when
//! [`crate::client::Pipeline::register`] says so, and forgets it with the region's last handle. A
//! [`Fragment`] names some of its bytes for an operation.
//!
//! Guarantees:
//!
//! * the memory stays where it is as long as there is a handle of the region, and every operation that
//!   names some of it has one;
//! * it is deregistered before it is unmapped or given back to its owner;
//! * a device gets the rights that the region's [`Usage`] asks for, and no other;
//! * no reference to its bytes exists while a device may write there: they are copied by address then. A
//!   [`View`] is to be had only while nothing uses the region, and takes the device's rights away first.
//!   The one exception is a checksum, which decides nothing by what it reads;
//! * slices that are out (views, or those handed to the system for one read or write) keep everything
//!   else in this thread from the bytes.
//!
//! What breaks it: an owner that does not keep what it has promised to [`Region::foreign`]; and a server
//! that writes, while the region is registered, where it was not asked to. That server can change what
//! is in the region, at any time, and nothing else.

#![expect(
    unsafe_code,
    reason = "lends memory that devices write to and that others may own; each block has its proof"
)]

mod memory;
mod registry;
mod slices;
#[cfg(test)]
mod tests;
mod view;

pub use registry::Registrar;
pub(crate) use registry::{Registry, WeakRegion};
pub(crate) use slices::{SLICES_MAX, Slices};
pub use view::{View, ViewMut};

use memory::Memory;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt::{Debug, Formatter};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::rc::{Rc, Weak};

/// Bytes that are copied at a time where no slice may be made.
const STAGE_BYTES: usize = 4096;

/// What operations may do with a region; a device gets no other rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Usage {
    /// Store from it and retrieve into it.
    #[default]
    Both,
    /// Store from it: nothing lands there. Foreign memory is then not written to at all.
    Stores,
    /// Retrieve into it.
    Retrieves,
}

impl Usage {
    /// Values are sent from it.
    #[must_use]
    pub fn stores(self) -> bool {
        self != Self::Retrieves
    }

    /// Values land in it.
    #[must_use]
    pub fn retrieves(self) -> bool {
        self != Self::Stores
    }
}

/// Which pages [`Region::allocate`] takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HugePages {
    /// Ordinary ones.
    #[default]
    No,
    /// 2 MiB each, of those that the system has set aside: a network card looks up fewer of them.
    Yes,
}

/// Why a region cannot be made, or its bytes cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// None, or more than there is an address for.
    #[error("a region has at least one byte, and fits into the address space")]
    Bytes,
    /// A null pointer.
    #[error("a region cannot begin at a null pointer")]
    Null,
    /// The system has no such pages.
    #[error("cannot map memory for a region: {0}")]
    Map(io::Error),
    /// The system has set none aside.
    #[error("cannot map huge pages for a region: {0}; set them aside (sysctl vm.nr_hugepages)")]
    HugePages(io::Error),
    /// The descriptor is none of a dma-buf, or of a shorter one.
    #[error("not a dma-buf of {wanted} bytes from its {offset}th on: {source}")]
    DmaBuf {
        /// Where the region was to begin.
        offset: u64,
        /// How many bytes.
        wanted: usize,
        /// What the system said.
        source: io::Error,
    },
    /// Not all of it is inside.
    #[error("bytes {0:?} are not all in the region")]
    Outside(Range<usize>),
    /// Memory of a device.
    #[error("a processor cannot look at dma-buf memory: map it where it comes from")]
    Invisible,
    /// Foreign memory for [`Usage::Stores`].
    #[error("the region is foreign memory for stores only: nothing writes there")]
    ReadOnly,
    /// A view is out that excludes it.
    #[error("the region is being viewed: drop the view first")]
    Viewed,
    /// Operations hold some of it.
    #[error(
        "operations still hold some of the region: wait for their ends, or end their connections \
         (Pipeline::reclaim)"
    )]
    InUse,
}

/// Memory for values; see the module. Cloning it makes another handle of the same.
#[derive(Clone)]
pub struct Region(Rc<Shared>);

struct Shared {
    memory: Memory,
    usage: Usage,
    /// Fragments that operations hold.
    busy: Cell<u32>,
    /// Slices that are out: so many shared ones, or (below 0) mutable ones.
    slices: Cell<isize>,
    registrars: RefCell<Vec<Weak<dyn Registrar>>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Deregistered before the memory is unmapped, or its owner gets it back.
        self.deregister();
    }
}

impl Debug for Region {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region")
            .field("memory", &self.0.memory)
            .field("usage", &self.0.usage)
            .field("busy", &self.0.busy.get())
            .finish_non_exhaustive()
    }
}

impl Region {
    /// `bytes` of zeros, to store from and retrieve into.
    ///
    /// # Errors
    /// The system has no memory.
    pub fn new(bytes: usize) -> Result<Self, RegionError> {
        Self::allocate(bytes, Usage::default(), HugePages::default())
    }

    /// `bytes` of zeros on pages of its own, which a forked child does not have.
    ///
    /// # Errors
    /// The system has no such memory.
    pub fn allocate(bytes: usize, usage: Usage, huge: HugePages) -> Result<Self, RegionError> {
        if bytes == 0 {
            return Err(RegionError::Bytes);
        }
        Ok(Self::over(Memory::map(bytes, huge)?, usage))
    }

    /// `bytes` of somebody else's memory. It is not kept from forked children: kernels since 5.12 copy
    /// pages that a device holds for the child.
    ///
    /// # Errors
    /// The pointer is null, or there are no bytes.
    ///
    /// # Safety
    /// From now until `owner` is dropped, which happens when the last handle of the region and the last
    /// operation on it are gone:
    ///
    /// * the bytes are mapped and initialised, and stay where they are; unless `usage` is
    ///   [`Usage::Stores`] they may be written to;
    /// * nobody else has a reference to them; and while the region is not idle, a view of it is out or a
    ///   method of it runs, nobody else writes to them or (unless it is for stores) reads them.
    pub unsafe fn foreign(
        start: *mut u8,
        bytes: usize,
        usage: Usage,
        owner: impl Any,
    ) -> Result<Self, RegionError> {
        let start = NonNull::new(start).ok_or(RegionError::Null)?;
        if bytes == 0 || isize::try_from(bytes).is_err() {
            return Err(RegionError::Bytes);
        }
        // SAFETY: the same contract.
        let memory = unsafe { Memory::foreign(start, bytes, Box::new(owner)) };
        Ok(Self::over(memory, usage))
    }

    /// `bytes` of a dma-buf from `offset` on: memory of a GPU or another device. Only RDMA reaches it,
    /// and only over devices that can (soft-RoCE is none); elsewhere operations end with
    /// [`crate::Status::Memory`]. No processor sees these bytes, so that nobody here checks what lands in
    /// them ([`crate::client::Done::unchecked_crc`]), and a store from them has to be told their checksum
    /// ([`crate::client::Request::with_data_crc`]).
    ///
    /// # Errors
    /// The descriptor is none of a dma-buf that has so many bytes.
    pub fn dma_buf(
        fd: OwnedFd,
        offset: u64,
        bytes: usize,
        usage: Usage,
    ) -> Result<Self, RegionError> {
        if bytes == 0 {
            return Err(RegionError::Bytes);
        }
        let wrong = |source| RegionError::DmaBuf { offset, wanted: bytes, source };
        let length = nix::unistd::lseek(fd.as_fd(), 0, nix::unistd::Whence::SeekEnd)
            .map_err(|errno| wrong(errno.into()))?;
        let end = offset.checked_add(bytes as u64);
        if end.is_none_or(|end| end > length as u64) {
            return Err(wrong(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(Self::over(Memory::dma_buf(fd, offset, bytes), usage))
    }

    fn over(memory: Memory, usage: Usage) -> Self {
        Self(Rc::new(Shared {
            memory,
            usage,
            busy: Cell::new(0),
            slices: Cell::new(0),
            registrars: RefCell::default(),
        }))
    }

    /// Bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.memory.bytes()
    }

    /// What it may be used for.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.0.usage
    }

    /// A processor can look at it: it is no dma-buf.
    #[must_use]
    pub fn is_visible(&self) -> bool {
        self.0.memory.is_visible()
    }

    /// The descriptor of its dma-buf and where it begins in it, if it is one.
    #[must_use]
    pub fn as_dma_buf(&self) -> Option<(BorrowedFd<'_>, u64)> {
        self.0.memory.as_dma_buf()
    }

    /// No operation holds any of it, on whichever connection: the caller may use it for something else.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.0.busy.get() == 0
    }

    /// Some slice of it is out.
    pub(crate) fn is_viewed(&self) -> bool {
        self.0.slices.get() != 0
    }

    /// Another handle of the same memory.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// Where it begins, as a device names it once it is registered.
    #[must_use]
    pub fn device_address(&self) -> u64 {
        self.0.memory.device_address()
    }

    /// Names some of its bytes, for an operation.
    ///
    /// # Panics
    /// If they are not all in it, or 4 GiB and more.
    #[must_use]
    pub fn fragment(&self, range: Range<usize>) -> Fragment {
        assert!(range.start <= range.end && range.end <= self.bytes(), "outside of the region");
        let length = u32::try_from(range.len()).expect("a fragment is shorter than 4 GiB");
        Fragment { region: self.clone(), offset: range.start, length }
    }

    /// Names all of it.
    ///
    /// # Panics
    /// If it has 4 GiB and more.
    #[must_use]
    pub fn whole(&self) -> Fragment {
        self.fragment(0..self.bytes())
    }

    /// Copies bytes out: also while operations hold it, and then whatever is there.
    ///
    /// # Errors
    /// There are not so many behind `offset`, a processor cannot look at them, or a mutable view is out.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), RegionError> {
        self.check(offset, into.len())?;
        if self.0.slices.get() < 0 {
            return Err(RegionError::Viewed);
        }
        // SAFETY: no mutable slice is out, and nobody else in this process may have one.
        unsafe { self.0.memory.copy_out(offset, into) };
        Ok(())
    }

    /// Copies bytes in: also while operations hold it. What such an operation then sends fails its
    /// checksum, and what it receives is overwritten or overwrites.
    ///
    /// # Errors
    /// They do not fit behind `offset`, a processor cannot reach them, it is foreign memory for stores
    /// only, or a view is out.
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<(), RegionError> {
        self.check(offset, from.len())?;
        if !self.0.is_writable() {
            return Err(RegionError::ReadOnly);
        }
        if self.is_viewed() {
            return Err(RegionError::Viewed);
        }
        // SAFETY: no slice is out, and nobody else in this process may have one; it may be written to.
        unsafe { self.0.memory.copy_in(offset, from) };
        Ok(())
    }

    fn check(&self, offset: usize, count: usize) -> Result<(), RegionError> {
        if !self.is_visible() {
            return Err(RegionError::Invisible);
        }
        match offset.checked_add(count) {
            Some(end) if end <= self.bytes() => Ok(()),
            end => Err(RegionError::Outside(offset..end.unwrap_or(usize::MAX))),
        }
    }
}

impl Shared {
    fn is_writable(&self) -> bool {
        self.usage.retrieves() || !self.memory.is_foreign()
    }

    /// A device may write to it at any time.
    fn is_exposed(&self) -> bool {
        let alive = |found: &Weak<dyn Registrar>| found.strong_count() > 0;
        self.usage.retrieves() && self.registrars.borrow().iter().any(alive)
    }

    fn deregister(&self) {
        let number = std::ptr::from_ref(self).addr();
        let registrars = self.registrars.take();
        registrars.iter().filter_map(Weak::upgrade).for_each(|found| found.forget(number));
    }
}

/// Some bytes of a region, for an operation to move data to or from.
#[derive(Clone, Debug)]
pub struct Fragment {
    region: Region,
    offset: usize,
    length: u32,
}

impl Fragment {
    /// Of which region.
    #[must_use]
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Which bytes of it.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.length as usize
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.length
    }

    /// None.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Where it begins, as a device names it once the region is registered.
    #[must_use]
    pub fn device_address(&self) -> u64 {
        self.region.device_address() + self.offset as u64
    }
}

/// A fragment that an operation holds: its region is not idle.
#[derive(Debug)]
pub(crate) struct Held(Fragment);

impl Held {
    /// Takes hold. Nobody views the region: the caller has asked [`Region::is_viewed`].
    pub(crate) fn new(fragment: &Fragment) -> Self {
        let busy = &fragment.region.0.busy;
        busy.set(busy.get() + 1);
        Self(fragment.clone())
    }
}

impl Clone for Held {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let busy = &self.0.region.0.busy;
        busy.set(busy.get() - 1);
    }
}

impl std::ops::Deref for Held {
    type Target = Fragment;

    fn deref(&self) -> &Fragment {
        &self.0
    }
}
