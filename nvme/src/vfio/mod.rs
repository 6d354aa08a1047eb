//! Real drives, over Linux VFIO: the implementation of [`crate::hardware`] behind which is an NVMe controller.
//!
//! Guarantees:
//!
//! * a drive reaches only arenas that were mapped: an IOMMU stands before it, or it is not opened;
//! * one process drives it: the kernel gives its group to one, and [`VfioIommu`] gives it out once;
//! * an arena is mapped once, for all drives and threads ([`VfioIommu`]), and is at the same IOVA for as long as
//!   a mapping lives, whichever drives come and go;
//! * whatever is wrong with the machine or its configuration is one line that says what to do ([`OpenError`]);
//! * dropping a [`VfioDevice`] stops its access to memory at once. The kernel gets the drive back (and resets it) when
//!   the last clone of its registers is dropped as well.
//!
//! What breaks it: a drive whose firmware lies about its own reset, or an IOMMU that does. A process that dies needs
//! nothing of this: the kernel resets its drives before their memory is used for anything else.
//!
//! How: the drive's IOMMU group (`/dev/vfio/N`) is put into a container (`/dev/vfio/vfio`) of type 1, version 2,
//! one for all drives; the group gives the device's file, through which configuration space is read and
//! written, and BAR 0 is mapped. `unsafe` is in two files: system calls in `kernel`, registers in `registers`.

mod chain;
mod config;
mod container;
mod device;
mod error;
mod events;
mod iommu;
mod iova;
mod kernel;
mod limits;
mod preflight;
mod region;
mod registers;

pub use device::VfioDevice;
pub use error::OpenError;
pub use iommu::VfioIommu;
pub use registers::VfioRegisters;
