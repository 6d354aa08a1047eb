//! The NVMe driver: a controller that is owned from user space, and polled.
//!
//! Two halves, which share nothing but atomics and a mailbox:
//!
//! * [`Controller`] brings the controller up from any state, owns the admin queue, and recovers: one per
//!   drive, off the data path, driven by [`Controller::poll`];
//! * [`Queue`] is a reactor's own pair of a submission and a completion queue: the [`crate::BlockQueue`] of a
//!   drive. Submitting writes 64 bytes; a poll rings one doorbell for all that was submitted and reaps
//!   completions from memory. No allocation, no lock and no system call on the way.
//!
//! Guarantees, beyond those of [`crate::queue`]:
//!
//! * every request ends, whatever the controller does: by its completion; or, when it is late, by an
//!   Abort, then a controller reset, then a function reset, then by giving the drive up;
//! * a buffer goes back only when the controller cannot touch it any more: its command completed, its queue
//!   was deleted, the controller was stopped, or the bus was taken from it;
//! * what the controller says is checked before it is used (command identifiers, queue counts, sizes), so that
//!   a broken one costs itself and nothing else. What it is told are addresses inside the arena.
//!
//! What breaks it: a device behind no IOMMU (which [`crate::vfio`] refuses).
//!
//! References are to NVMe Base Specification 2.0 and NVM Command Set Specification 1.0.

mod admin;
mod controller;
mod doorbell;
mod drive;
mod error;
mod facts;
mod keeper;
mod link;
mod queue;
mod ring;

pub use controller::{Controller, State};
pub use drive::{AdminReply, Drive, smart_of};
pub use error::{AdminError, Trouble};
pub use facts::Facts;
pub use keeper::{Keeper, KeeperError};
pub use queue::Queue;

/// The size of a memory page for the controller (CC.MPS = 0), in bytes.
pub(crate) const PAGE_BYTES: usize = 4096;

/// How long a namespace may be formatted, in milliseconds: erasing all of a large drive takes hours, and a reset
/// in the middle of it can leave a drive that is of no use.
pub const FORMAT_TIMEOUT_MS: u32 = 48 * 3_600_000;

/// How a drive is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// A command that has not completed by then is aborted, in microseconds.
    pub command_timeout_us: u64,
    /// If it still has not completed so long after that, the controller is reset, in microseconds.
    pub abort_timeout_us: u64,
    /// An admin command that has not completed by then is a reason to reset the controller, in microseconds.
    pub admin_timeout_us: u64,
    /// A request is not tried again after so long, in microseconds.
    pub request_timeout_us: u64,
    /// The namespace to use; the first active one without it.
    pub namespace: Option<u32>,
    /// Use shadow doorbells (Doorbell Buffer Config) where the controller offers them.
    pub shadow_doorbells: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            command_timeout_us: 5_000_000,
            abort_timeout_us: 2_000_000,
            admin_timeout_us: 15_000_000,
            request_timeout_us: 20_000_000,
            namespace: None,
            shadow_doorbells: true,
        }
    }
}
