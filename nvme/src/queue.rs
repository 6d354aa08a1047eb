//! The block queue seam: what the store asks of a device, and how it learns the end of it.
//!
//! Guarantees every implementation gives (the conformance suite holds them to it):
//!
//! * every accepted request ends in exactly one [`Completion`] that carries its `tag` and gives
//!   its buffer back, whatever the device does;
//! * requests complete in any order; a caller that needs an order waits for the completion;
//! * a completed write is visible to every later read; it survives a power cut only once it was
//!   submitted with `fua`, or a [`Operation::Flush`] submitted after its completion has completed
//!   (or the device says that it has no volatile cache);
//! * a request that cannot be valid (past the end, zero or unaligned length, larger than the
//!   buffer) completes with [`BlockError::Invalid`] and touches no media.

use crate::{BLOCK_BYTES, DmaBuf};

/// What a device is, as the store has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the device in blocks of [`crate::BLOCK_BYTES`].
    pub blocks: u64,
    /// The largest transfer that one request may ask for, in blocks.
    pub max_transfer_blocks: u32,
    /// The most requests that can be in flight on one queue.
    pub depth: u32,
    /// Completed writes may be lost in a power cut until they are flushed (NVM Command Set 1.0,
    /// "Volatile Write Cache").
    pub volatile_write_cache: bool,
    /// [`Operation::Discard`] does something.
    pub discard: bool,
    /// [`Operation::WriteZeroes`] is supported.
    pub write_zeroes: bool,
    /// [`Operation::Compare`] is supported.
    pub compare: bool,
    /// [`Operation::Verify`] is supported.
    pub verify: bool,
    /// A power cut leaves an aligned write of so many bytes whole or undone (NVMe: AWUPF, NAWUPF); at least
    /// one logical block.
    pub atomic_write_bytes: u32,
}

impl Geometry {
    /// Whether a device of this kind can do `operation` at all: the one check every
    /// implementation makes before it touches its media.
    ///
    /// # Errors
    /// [`BlockError::Invalid`] or [`BlockError::Unsupported`].
    #[inline]
    pub fn check(&self, operation: &Operation) -> Result<(), BlockError> {
        let inside = |first: u64, blocks: u64| {
            blocks > 0 && first.checked_add(blocks).is_some_and(|end| end <= self.blocks)
        };
        let valid = match operation {
            Operation::Compare { .. } if !self.compare => return Err(BlockError::Unsupported),
            Operation::Read { block, blocks, buffer }
            | Operation::Write { block, blocks, buffer, .. }
            | Operation::Compare { block, blocks, buffer } => {
                inside(*block, u64::from(*blocks))
                    && *blocks <= self.max_transfer_blocks
                    && *blocks as usize <= buffer.len() / BLOCK_BYTES
            }
            Operation::Flush => true,
            Operation::Discard { .. } if !self.discard => return Err(BlockError::Unsupported),
            Operation::WriteZeroes { .. } if !self.write_zeroes => {
                return Err(BlockError::Unsupported);
            }
            Operation::Verify { .. } if !self.verify => return Err(BlockError::Unsupported),
            Operation::Discard { block, blocks }
            | Operation::WriteZeroes { block, blocks }
            | Operation::Verify { block, blocks } => inside(*block, *blocks),
        };
        if valid { Ok(()) } else { Err(BlockError::Invalid) }
    }
}

/// One thing to do on a device. Addresses and lengths are in blocks of [`crate::BLOCK_BYTES`].
#[derive(Debug)]
pub enum Operation {
    /// Fill the first `blocks` blocks of `buffer` from `block` on.
    Read {
        /// First block on the device.
        block: u64,
        /// How many blocks.
        blocks: u32,
        /// Where they go; at least `blocks` long.
        buffer: DmaBuf,
    },
    /// Write the first `blocks` blocks of `buffer` at `block`.
    Write {
        /// First block on the device.
        block: u64,
        /// How many blocks.
        blocks: u32,
        /// Where they come from; at least `blocks` long.
        buffer: DmaBuf,
        /// Force unit access: durable when it completes.
        fua: bool,
    },
    /// Make every write that has completed durable.
    Flush,
    /// These blocks hold nothing that will be read again (NVMe: dataset management, deallocate).
    Discard {
        /// First block on the device.
        block: u64,
        /// How many blocks.
        blocks: u64,
    },
    /// Read as zeroes from now on, without a transfer.
    WriteZeroes {
        /// First block on the device.
        block: u64,
        /// How many blocks.
        blocks: u64,
    },
    /// Does the device hold what the first `blocks` blocks of `buffer` hold? [`BlockError::Mismatch`] if not.
    Compare {
        /// First block on the device.
        block: u64,
        /// How many blocks.
        blocks: u32,
        /// What is expected; at least `blocks` long.
        buffer: DmaBuf,
    },
    /// Can the device read these blocks? Nothing is transferred.
    Verify {
        /// First block on the device.
        block: u64,
        /// How many blocks.
        blocks: u64,
    },
}

impl Operation {
    /// How it fails when the media does.
    #[must_use]
    pub fn media_error(&self) -> BlockError {
        match self {
            Self::Read { .. } | Self::Compare { .. } | Self::Verify { .. } => BlockError::Read,
            Self::Write { .. } | Self::Discard { .. } | Self::WriteZeroes { .. } => {
                BlockError::Write
            }
            Self::Flush => BlockError::Flush,
        }
    }
}

/// An operation and the caller's name for it.
#[derive(Debug)]
pub struct Request {
    /// Comes back in the [`Completion`], unread.
    pub tag: u64,
    /// What to do.
    pub operation: Operation,
}

impl Request {
    /// Ends the request: its tag and its buffer go back to whoever submitted it.
    #[must_use]
    #[inline]
    pub fn end(self, result: Result<(), BlockError>) -> Completion {
        let buffer = match self.operation {
            Operation::Read { buffer, .. }
            | Operation::Write { buffer, .. }
            | Operation::Compare { buffer, .. } => Some(buffer),
            Operation::Flush
            | Operation::Discard { .. }
            | Operation::WriteZeroes { .. }
            | Operation::Verify { .. } => None,
        };
        Completion { tag: self.tag, result, buffer }
    }
}

/// The end of one request.
#[derive(Debug)]
pub struct Completion {
    /// The request's tag.
    pub tag: u64,
    /// How it ended. After an error the content of a read buffer is undefined.
    pub result: Result<(), BlockError>,
    /// The request's buffer, if it had one.
    pub buffer: Option<DmaBuf>,
}

/// Why a request failed. `Copy` and without allocation: it travels on the I/O path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The request itself is impossible (range, length, buffer).
    #[error("the request is outside the device or its buffer")]
    Invalid,
    /// The media could not be read (NVMe: unrecovered read error, 0x281).
    #[error("unrecovered read error")]
    Read,
    /// The media could not be written (NVMe: write fault, 0x280).
    #[error("write fault")]
    Write,
    /// A flush failed: what was written since the last good flush may be lost. Never retry a
    /// failed flush and believe the second answer.
    #[error("flush failed")]
    Flush,
    /// The device has no room for the write (a file on a full file system).
    #[error("no space behind the device")]
    NoSpace,
    /// The operation is not supported by this device.
    #[error("operation not supported by the device")]
    Unsupported,
    /// [`Operation::Compare`]: the device holds something else.
    #[error("the device holds something else")]
    Mismatch,
    /// The device did not answer in time, and was made to let go of the request. A write may have happened.
    #[error("the device did not answer in time")]
    Timeout,
    /// The device is gone; every request in flight ends so, and every later one that needs a device.
    #[error("the device is gone")]
    Gone,
}

/// A per-reactor queue on one device. See the module for what it guarantees.
pub trait BlockQueue {
    /// What the device is. Constant for the life of the queue.
    fn geometry(&self) -> Geometry;

    /// Takes a request. It need not reach the device before the next [`BlockQueue::poll`], so that
    /// many requests cost one doorbell.
    ///
    /// # Errors
    /// Gives the request back when `depth` requests are in flight already.
    fn submit(&mut self, request: Request) -> Result<(), Request>;

    /// Passes what was submitted to the device and appends what has completed to `completions`,
    /// up to its spare capacity, which is the reaping budget: a queue never grows the vector.
    /// `now_us` is the reactor's clock in microseconds. Returns how many were appended. Never blocks.
    fn poll(&mut self, now_us: u64, completions: &mut Vec<Completion>) -> usize;

    /// How many requests are in flight (submitted, not yet returned by `poll`).
    fn in_flight(&self) -> usize;

    /// A descriptor that turns readable when a completion is waiting, for a reactor that sleeps.
    /// `None`: the queue has to be polled.
    fn wait_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}
