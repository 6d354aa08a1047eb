//! Registered memory: what a network card may reach, and that it stays there.
//!
//! Memory of the server has local rights only. What a client lends has remote rights, is of its own, and
//! is only ever copied to and from: the server may write to it at any time. A caller's region has the remote
//! rights that it asks for.

use super::device::Domain;
use super::last_error;
use crate::Buffer;
use crate::conformance::Counted;
use crate::rdma::{LentRegion, ProviderError};
use crate::region::{self, Usage};
use ibverbs_sys as sys;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use stable_deref_trait::StableDeref;
use std::any::Any;
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::rc::Rc;

/// A buffer whose bytes stay where they are: a network card has their address while work is under way.
///
/// That they do is what [`StableDeref`] promises; that nobody else reads or writes them meanwhile follows from
/// its giving them out mutably. The bytes are always taken by `deref`, never by `as_ref`.
pub trait Steady: Buffer + StableDeref<Target = [u8]> + DerefMut + 'static {}
impl<T: Buffer + StableDeref<Target = [u8]> + DerefMut + 'static> Steady for T {}

impl Deref for Counted {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_ref()
    }
}

impl DerefMut for Counted {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.as_mut()
    }
}

// SAFETY: its bytes are those of a vector that only it has.
unsafe impl StableDeref for Counted {}

const LOCAL: sys::ibv_access_flags = sys::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE;
const REMOTE_READ: sys::ibv_access_flags = sys::ibv_access_flags::IBV_ACCESS_REMOTE_READ;
const REMOTE_WRITE: sys::ibv_access_flags = sys::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE;

/// What fails where the memory limit is too low.
const CANNOT_REGISTER: &str = "cannot register memory with an RDMA device: raise the locked-memory limit (ulimit -l, or \
     LimitMEMLOCK= of the service)";

/// What fails where the device, or its driver, cannot.
const CANNOT_REGISTER_DMA_BUF: &str = "cannot register dma-buf memory with an RDMA device: soft-RoCE never can, and others need \
     kernel and driver support for it; use a region of ordinary memory";

/// A registration with one device.
#[derive(Debug)]
pub(super) struct Registration {
    raw: *mut sys::ibv_mr,
    address: usize,
    length: usize,
    _domain: Rc<Domain>,
    /// Keeps the memory mapped.
    _owner: Option<Rc<dyn Any>>,
}

impl Registration {
    /// Registers memory for work requests of this side only. By itself this lets nobody reach it: a
    /// work request names memory of a buffer that its queue pair owns.
    ///
    /// # Errors
    /// It is not mapped or cannot be locked.
    pub(super) fn local(
        domain: &Rc<Domain>,
        address: usize,
        length: usize,
        owner: Option<Rc<dyn Any>>,
    ) -> Result<Self, ProviderError> {
        Self::new(domain, address, length, LOCAL, owner)
    }

    fn new(
        domain: &Rc<Domain>,
        address: usize,
        length: usize,
        access: sys::ibv_access_flags,
        owner: Option<Rc<dyn Any>>,
    ) -> Result<Self, ProviderError> {
        // The address is a number here: the kernel looks for pages there, and says so if there are none.
        let start = std::ptr::without_provenance_mut::<c_void>(address);
        // SAFETY: an allocated domain; the kernel checks the range, pins its pages and changes nothing.
        let raw = unsafe { sys::ibv_reg_mr(domain.raw(), start, length, access.0 as i32) };
        if raw.is_null() {
            return Err(last_error(CANNOT_REGISTER));
        }
        Ok(Self { raw, address, length, _domain: Rc::clone(domain), _owner: owner })
    }

    /// Registers a caller's region for a server to READ from or WRITE to, as its usage says. The region has
    /// it deregistered before its memory goes.
    ///
    /// # Errors
    /// It cannot be locked, or is a dma-buf that the device cannot reach.
    pub(super) fn of_region(
        domain: &Rc<Domain>,
        region: &region::Region,
    ) -> Result<Self, ProviderError> {
        let access = match region.usage() {
            Usage::Stores => REMOTE_READ,
            // Remote writes take local ones.
            Usage::Retrieves => LOCAL | REMOTE_WRITE,
            Usage::Both => LOCAL | REMOTE_READ | REMOTE_WRITE,
        };
        let (address, length) = (region.device_address(), region.bytes());
        let Some((fd, offset)) = region.as_dma_buf() else {
            return Self::new(domain, address as usize, length, access, None);
        };
        let (fd, access) = (fd.as_raw_fd(), access.0 as i32);
        // SAFETY: an allocated domain and an open descriptor; the kernel looks for a dma-buf behind it, which
        // it keeps, and checks the range.
        let raw =
            unsafe { sys::ibv_reg_dmabuf_mr(domain.raw(), offset, length, address, fd, access) };
        if raw.is_null() {
            return Err(last_error(CANNOT_REGISTER_DMA_BUF));
        }
        Ok(Self {
            raw,
            address: address as usize,
            length,
            _domain: Rc::clone(domain),
            _owner: None,
        })
    }

    /// The key that work requests of this side name it by.
    pub(super) fn local_key(&self) -> u32 {
        // SAFETY: registered until this is dropped.
        unsafe { (*self.raw).lkey }
    }

    pub(super) fn remote_key(&self) -> u32 {
        // SAFETY: registered until this is dropped.
        unsafe { (*self.raw).rkey }
    }

    /// All of the range is registered here.
    pub(super) fn covers(&self, address: usize, length: usize) -> bool {
        address >= self.address
            && length <= self.length
            && address - self.address <= self.length - length
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: registered once, and deregistered once.
        let failed = unsafe { sys::ibv_dereg_mr(self.raw) };
        if failed != 0 {
            log::error!("cannot deregister memory: error {failed}");
        }
    }
}

/// Tells the kernel that a forked child does not get this memory: a child that writes to a page makes
/// a copy, and the network card may be left with the wrong one. Whole pages only.
pub(super) fn keep_from_children(address: usize, length: usize) {
    let page = 4096;
    let (start, end) = (address.next_multiple_of(page), (address + length) / page * page);
    let Some(start_pointer) = NonNull::new(std::ptr::without_provenance_mut::<c_void>(start))
    else {
        return;
    };
    if start < end {
        // SAFETY: MADV_DONTFORK changes nothing in this process, whatever is mapped there.
        let told = unsafe { madvise(start_pointer, end - start, MmapAdvise::MADV_DONTFORK) };
        told.unwrap_or_else(|error| log::debug!("MADV_DONTFORK: {error}"));
    }
}

/// Pages of our own.
#[derive(Debug)]
struct Pages {
    start: NonNull<c_void>,
    length: usize,
}

impl Pages {
    fn new(length: usize) -> Result<Self, ProviderError> {
        let rounded = length.max(1).next_multiple_of(4096);
        let size = NonZeroUsize::new(rounded).ok_or(ProviderError::Full)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new anonymous mapping wherever the kernel likes touches nothing that exists.
        let mapped = unsafe { mmap_anonymous(None, size, protection, MapFlags::MAP_PRIVATE) };
        let start = mapped.map_err(|errno| ProviderError::System {
            what: "cannot map memory for an RDMA connection",
            source: errno.into(),
        })?;
        keep_from_children(start.as_ptr().addr(), rounded);
        Ok(Self { start, length: rounded })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; no pointer into it outlives its owner.
        let unmapped = unsafe { munmap(self.start, self.length) };
        unmapped.unwrap_or_else(|error| log::error!("munmap: {error}"));
    }
}

/// Registered pages of our own. Bytes that a network card may be writing to are only copied, or looked
/// at by whoever knows that it is not.
#[derive(Debug)]
pub(super) struct Slab {
    // Deregistered before it is unmapped: fields are dropped in this order.
    registration: Registration,
    pages: Pages,
}

impl Slab {
    pub(super) fn new(domain: &Rc<Domain>, length: usize) -> Result<Self, ProviderError> {
        Self::with_access(domain, length, LOCAL)
    }

    fn with_access(
        domain: &Rc<Domain>,
        length: usize,
        access: sys::ibv_access_flags,
    ) -> Result<Self, ProviderError> {
        let pages = Pages::new(length)?;
        let address = pages.start.as_ptr().addr();
        let registration = Registration::new(domain, address, pages.length, access, None)?;
        Ok(Self { registration, pages })
    }

    pub(super) fn local_key(&self) -> u32 {
        self.registration.local_key()
    }

    pub(super) fn address_of(&self, offset: usize) -> u64 {
        assert!(offset <= self.pages.length, "past the end of a slab");
        (self.pages.start.as_ptr().expose_provenance() + offset) as u64
    }

    fn at(&self, offset: usize, length: usize) -> *mut u8 {
        let fits = offset.checked_add(length).is_some_and(|end| end <= self.pages.length);
        assert!(fits, "past the end of a slab");
        // SAFETY: inside of one mapping, as was just checked.
        unsafe { self.pages.start.as_ptr().cast::<u8>().add(offset) }
    }

    /// Copies bytes in.
    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        let target = self.at(offset, bytes.len());
        // SAFETY: `target` is so many bytes of a mapping that nobody has a reference to, since this
        // one is borrowed mutably; `bytes` cannot overlap it for the same reason.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
    }

    /// Copies bytes out. A network card that writes meanwhile makes them a mixture, no more.
    pub(super) fn read(&self, offset: usize, bytes: &mut [u8]) {
        let source = self.at(offset, bytes.len());
        // SAFETY: `source` is so many bytes of the mapping; `bytes` is memory of its own.
        unsafe { std::ptr::copy_nonoverlapping(source, bytes.as_mut_ptr(), bytes.len()) };
    }

    /// Looks at bytes in place.
    ///
    /// # Safety
    /// No network card writes to them as long as the borrow lasts.
    pub(super) unsafe fn slice(&self, offset: usize, length: usize) -> &[u8] {
        // SAFETY: inside of the mapping, initialised (fresh pages are zeros), and by this function's
        // contract not written to; writing from here needs a mutable borrow.
        unsafe { std::slice::from_raw_parts(self.at(offset, length), length) }
    }
}

/// Memory of a client's that the server may READ and WRITE.
#[derive(Debug)]
pub struct VerbsRegion {
    slab: Slab,
    length: usize,
}

impl VerbsRegion {
    pub(super) fn new(domain: &Rc<Domain>, length: usize) -> Result<Self, ProviderError> {
        let access = LOCAL | REMOTE_READ | REMOTE_WRITE;
        Ok(Self { slab: Slab::with_access(domain, length, access)?, length })
    }
}

impl LentRegion for VerbsRegion {
    fn address(&self) -> u64 {
        self.slab.address_of(0)
    }

    fn key(&self) -> u32 {
        self.slab.registration.remote_key()
    }

    fn len(&self) -> usize {
        self.length
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.slab.write(offset, bytes);
    }

    fn read(&self, offset: usize, bytes: &mut [u8]) {
        self.slab.read(offset, bytes);
    }
}
