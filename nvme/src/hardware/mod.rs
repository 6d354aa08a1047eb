//! The hardware seam: what the driver asks of the machine, in three small traits.
//!
//! [`Registers`] is the controller's register file (BAR 0), [`Dma`] gives it access to our memory, and
//! [`Hardware`] is the function as a whole. [`crate::vfio`] implements them for a real drive, and
//! [`crate::emulated`] in memory, so that every line of the driver runs in tests as it does in production.
//!
//! Guarantees an implementation gives: registers are accessed in program order, each access at its own
//! width, and everything that was stored to memory before a register write is visible to the device that
//! sees the write; after [`Hardware::reset`] or [`Hardware::set_bus_master`]`(false)` has succeeded, the
//! device does not touch memory until it is told to again; memory stays mapped for as long as a
//! [`Mapping`] of it lives.

mod mapping;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::arena::Span;
pub use mapping::{MapError, Mapping, WeakMapping};

/// A controller's registers. Shared by the threads that ring its doorbells.
pub trait Registers: Send + Sync + 'static {
    /// Length of the register file in bytes: accesses end before it.
    fn bytes(&self) -> usize;

    /// Reads 32 bits at `offset`, a multiple of 4. All ones: the device is not there any more.
    ///
    /// # Panics
    /// When `offset` is unaligned or past the end: the driver checks what a device asks for.
    fn read32(&self, offset: usize) -> u32;

    /// Reads 64 bits at `offset`, a multiple of 8. All ones: the device is not there any more.
    ///
    /// # Panics
    /// As [`Registers::read32`].
    fn read64(&self, offset: usize) -> u64;

    /// Writes 32 bits at `offset`, a multiple of 4; what was stored before is visible to the device first.
    ///
    /// # Panics
    /// As [`Registers::read32`].
    fn write32(&self, offset: usize, value: u32);

    /// Writes 64 bits at `offset`, a multiple of 8.
    ///
    /// # Panics
    /// As [`Registers::read32`].
    fn write64(&self, offset: usize, value: u64);
}

/// Gives devices access to memory. One map for each arena, however many devices and threads ask.
pub trait Dma: Send + Sync + 'static {
    /// Makes all of `span` readable and writable for the device. The same span gives the same mapping again.
    ///
    /// # Errors
    /// [`MapError`].
    fn map(&self, span: &Span) -> Result<Mapping, MapError>;
}

/// News about the function, beside its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HardwareEvent {
    /// The system wants the device back, because it is being removed: let go of it soon.
    RemovalRequested,
    /// The bus reports an uncorrectable error: the device has to be reset before it is used again.
    Error,
}

/// One PCI function that is an NVMe controller, and all that is held of it: dropping it, with every clone
/// of its registers and mappings, gives it back.
pub trait Hardware: 'static {
    /// Its registers.
    type Registers: Registers;
    /// Its way to memory.
    type Dma: Dma;

    /// How a person calls it: the PCI address, `0000:03:00.0`.
    fn name(&self) -> &str;

    /// BAR 0.
    fn registers(&self) -> Arc<Self::Registers>;

    /// Its way to memory.
    fn dma(&self) -> Arc<Self::Dma>;

    /// Lets the device access memory, or stops it (PCI command register, bit 2).
    ///
    /// # Errors
    /// Configuration space cannot be written: the device is gone.
    fn set_bus_master(&mut self, on: bool) -> io::Result<()>;

    /// Resets the function (function level reset, or what the platform has instead).
    ///
    /// # Errors
    /// There is no way to reset it, or the device is gone.
    fn reset(&mut self) -> io::Result<()>;

    /// The next event, if there is one. Never blocks.
    fn next_event(&mut self) -> Option<HardwareEvent>;

    /// Calls `visit` with every descriptor that turns readable when there is an event.
    fn wait_fds(&self, visit: &mut dyn FnMut(BorrowedFd<'_>));
}
