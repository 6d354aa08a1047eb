//! The checkpoint store: immutable checkpoints, written by many ranks, visible all at once.
//!
//! What is guaranteed:
//!
//! * a checkpoint exists from the moment its **one catalog record** is durable, and not before:
//!   then every chunk that it names is on media with its length, and its boxes tile every tensor;
//! * a chunk is freed only when no record names its session: the record goes first;
//! * a name has at most one open session; a higher epoch fences the lower one for good, also over
//!   a restart, because BEGIN answers only when its own record is durable.
//!
//! What breaks it: a store that acknowledges before it is durable, or a PUT that changes a chunk
//! which is there (see [`put_again`]).
//!
//! [`session`] is the table of sessions, a state machine without I/O or clock; [`coverage`] is the
//! geometry of boxes; [`record`] the bytes of the catalog; [`service`] does the I/O in the right
//! order over [`storage`], which the runtime implements.

pub mod coverage;
pub mod record;
pub mod service;
pub mod session;
pub mod storage;

#[cfg(test)]
mod memory;
#[cfg(test)]
mod service_tests;
#[cfg(test)]
mod session_tests;

pub use service::{Answer, Call, Clock, Service};
pub use session::Limits;
pub use storage::{ListCursor, Storage};

use forebay_fabric::Status;
use forebay_fabric::checkpoint::{Chunk, NO_RANK};
use forebay_fabric::pdu::DecodeError;

/// Why a command is not carried out: its status, what its `result` names, and words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the client's code sees.
    pub status: Status,
    /// The rank to blame, the epoch in force, or [`NO_RANK`].
    pub result: u64,
    /// What the client's user sees.
    pub text: String,
}

impl Refusal {
    fn new(status: Status, text: impl Into<String>) -> Self {
        Self { status, result: NO_RANK, text: text.into() }
    }

    fn naming(self, result: u64) -> Self {
        Self { result, ..self }
    }
}

impl From<DecodeError> for Refusal {
    fn from(error: DecodeError) -> Self {
        Self::new(Status::Malformed, error.to_string())
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::new(status, status.to_string())
    }
}

/// What a PUT does whose key is there already: a chunk never changes once it was put, so that what
/// COMMIT has verified stays true. `Ok(false)`: the same bytes are there, answer Ok; `Ok(true)`:
/// what is there cannot be read (`existing` is `None`), write it.
///
/// # Errors
/// [`Status::CheckpointExists`]: other bytes are there. Begin again with a higher epoch.
pub fn put_again(existing: Option<Chunk>, new: Chunk) -> Result<bool, Status> {
    match existing {
        None => Ok(true),
        Some(existing) if existing == new => Ok(false),
        Some(_) => Err(Status::CheckpointExists),
    }
}
