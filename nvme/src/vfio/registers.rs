//! BAR 0, mapped.
//!
//! Guarantees: every access lies in the mapping, at its own width and alignment, in program order; what was
//! stored to memory before a register is written is visible to the device before it sees the write, and what is
//! loaded from memory after a register is read was there when it was read. The mapping
//! keeps the device open: the kernel gives a device back, and reports it as removed (`DEVICE_DELETED` in QEMU), only
//! when the last clone of its registers is dropped. Forked children do not inherit it.
//!
//! What breaks it: memory space turned off in the device's command register would make accesses fault.
//! Nothing here does that ([`super::config`]), and the kernel holds accesses back while it resets the device.
//! A drive that is pulled reads as all ones.

#![expect(unsafe_code, reason = "owns the mapping of the registers; each block carries its proof")]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};

use crate::hardware::Registers;

use super::device::Handle;

/// The registers of one drive.
#[derive(Debug)]
pub struct VfioRegisters {
    base: NonNull<u8>,
    bytes: usize,
    /// Dropped after the mapping is gone (see `drop`): the last of these two gives the device back.
    _device: Arc<Handle>,
}

// SAFETY: the mapping belongs to this value and stays where it is until it is dropped. Registers are accessed by
// volatile loads and stores of whole words, which the device takes from any thread.
unsafe impl Send for VfioRegisters {}
// SAFETY: as above. Two threads that write one register at once give the device one write after the other.
unsafe impl Sync for VfioRegisters {}

impl VfioRegisters {
    /// Maps `bytes` bytes of the device's file, from `offset` on.
    pub(super) fn map(device: &Arc<Handle>, offset: u64, bytes: usize) -> io::Result<Self> {
        let length = NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let file: &File = device.file();
        // SAFETY: a new mapping at an address of the kernel's choice touches nobody's memory.
        let base = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, file, offset) }?;
        let mapped = Self { base: base.cast(), bytes, _device: Arc::clone(device) };
        // SAFETY: the range is the mapping made above; the advice changes no content.
        unsafe { madvise(base, bytes, MmapAdvise::MADV_DONTFORK) }?;
        Ok(mapped)
    }

    /// The address of the register of `width` bytes at `offset`.
    #[inline]
    fn at(&self, offset: usize, width: usize) -> *mut u8 {
        let inside = offset < self.bytes && width <= self.bytes - offset;
        assert!(inside && offset.is_multiple_of(width), "no register at {offset:#x}");
        // SAFETY: `offset` lies in the mapping, by the assertion.
        unsafe { self.base.add(offset) }.as_ptr()
    }
}

/// Orders what was stored to memory before a register write that follows.
///
/// On x86-64 stores become visible in program order, and registers are mapped uncached: the fence is one for the
/// compiler only. Elsewhere a fence for other threads need not hold for devices.
#[inline]
fn publish() {
    fence(Ordering::Release);
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier for stores, for devices as well (outer shareable); touches no memory and no register.
    unsafe {
        std::arch::asm!("dmb oshst", options(nostack, preserves_flags));
    }
}

/// Orders a register read before loads from memory that follow. On x86-64 a fence for the compiler only.
#[inline]
fn observe() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier for loads, for devices as well (outer shareable); touches no memory and no register.
    unsafe {
        std::arch::asm!("dmb oshld", options(nostack, preserves_flags));
    }
    fence(Ordering::Acquire);
}

impl Registers for VfioRegisters {
    fn bytes(&self) -> usize {
        self.bytes
    }

    #[inline]
    fn read32(&self, offset: usize) -> u32 {
        let register = self.at(offset, 4).cast::<u32>();
        // SAFETY: 4 aligned bytes of the mapping (by `at`: it begins on a page), which lives as long as `self`.
        // The device may change them at any time: volatile, never a reference.
        let value = u32::from_le(unsafe { register.read_volatile() });
        observe();
        value
    }

    #[inline]
    fn read64(&self, offset: usize) -> u64 {
        let register = self.at(offset, 8).cast::<u64>();
        // SAFETY: as in `read32`, 8 bytes.
        let value = u64::from_le(unsafe { register.read_volatile() });
        observe();
        value
    }

    #[inline]
    fn write32(&self, offset: usize, value: u32) {
        let register = self.at(offset, 4).cast::<u32>();
        publish();
        // SAFETY: as in `read32`. What the write makes the device do to memory is limited to arenas by the IOMMU.
        unsafe { register.write_volatile(value.to_le()) };
    }

    #[inline]
    fn write64(&self, offset: usize, value: u64) {
        let register = self.at(offset, 8).cast::<u64>();
        publish();
        // SAFETY: as in `write32`, 8 bytes.
        unsafe { register.write_volatile(value.to_le()) };
    }
}

impl Drop for VfioRegisters {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own; no register is accessed any more.
        let result = unsafe { munmap(self.base.cast(), self.bytes) };
        debug_assert!(result.is_ok(), "unmapping registers: {result:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of memory in the place of a BAR.
    fn registers(bytes: usize) -> VfioRegisters {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes as u64).unwrap();
        VfioRegisters::map(&Arc::new(Handle::of_file(file)), 0, bytes).unwrap()
    }

    fn panics(access: impl FnOnce() + std::panic::UnwindSafe) -> bool {
        std::panic::catch_unwind(access).is_err()
    }

    #[test]
    fn registers_are_little_endian_words() {
        let registers = registers(8192);
        registers.write64(0x1000, 0x1122_3344_5566_7788);
        assert_eq!(registers.read32(0x1000), 0x5566_7788);
        registers.write32(0x1004, 7);
        assert_eq!(registers.read64(0x1000), 0x7_5566_7788);
        assert_eq!((registers.bytes(), registers.read32(8188)), (8192, 0));
    }

    #[test]
    fn an_access_past_the_end_or_unaligned_panics() {
        let registers = &registers(8192);
        for offset in [1, 2, 6, 8190, 8192, 8196, usize::MAX, usize::MAX - 3] {
            let access = std::panic::AssertUnwindSafe(|| registers.write32(offset, 1));
            assert!(panics(access), "{offset}");
        }
        for offset in [4, 8188, 8192, usize::MAX - 7] {
            let access = std::panic::AssertUnwindSafe(|| assert_eq!(registers.read64(offset), 0));
            assert!(panics(access), "{offset}");
        }
    }
}
