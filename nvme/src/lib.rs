//! The device layer: block queues, and the memory that devices read and write.
//!
//! A reactor owns one [`BlockQueue`] on every device. It hands requests in with
//! [`BlockQueue::submit`], and takes what has ended with [`BlockQueue::poll`]; nothing here
//! blocks, and nothing here allocates once it is set up.
//!
//! Implementations: [`uring`] (io_uring with `O_DIRECT` on a file or a block device: the embedded
//! default) and [`sim`] (memory under a seeded fault overlay). [`conformance`] is the one suite
//! that every implementation passes.

pub mod arena;
pub mod conformance;
pub mod emulated;
pub mod hardware;
pub mod kernel;
pub mod pci;
pub mod pcie;
pub mod queue;
pub mod sim;
pub mod spec;
pub mod uring;
pub mod vfio;

pub use arena::{Arena, ArenaError, Buffer, DmaBuf, Pool, PoolSeed, SharedBuf};
pub use queue::{BlockError, BlockQueue, Completion, Geometry, Operation, Request};

/// The unit of every address, length and alignment on a device, in bytes.
///
/// Drives with 512 B logical blocks are driven in eights of them; nothing above this crate sees
/// another size.
pub const BLOCK_BYTES: usize = 4096;
