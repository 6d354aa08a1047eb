//! What a status means for a request (NVMe Base 2.0, "Status Code"; NVM Command Set 1.0).

use crate::BlockError;
use crate::spec::status::{Status, generic, media};

/// How often a command is tried.
const TRIES_MAX: u8 = 4;

/// Whether the same command may do better another time. `tries` have been made; `failure` is how it fails when
/// the media does.
pub(super) fn may_try_again(status: Status, failure: BlockError, tries: u8) -> bool {
    // What a flush that failed has lost is not found by a second one that succeeds.
    if failure == BlockError::Flush || tries + 1 >= TRIES_MAX {
        return false;
    }
    was_aborted(status) || !(status.do_not_retry() || is_answer(status))
}

/// The controller let go of the command because it was told to.
pub(super) fn was_aborted(status: Status) -> bool {
    matches!(status.full(), generic::ABORT_REQUESTED | generic::ABORTED_SQ_DELETION)
}

/// Not a failure of the device, but its answer.
fn is_answer(status: Status) -> bool {
    matches!(
        status.full(),
        media::COMPARE_FAILURE
            | generic::LBA_OUT_OF_RANGE
            | generic::CAPACITY_EXCEEDED
            | generic::INVALID_FIELD
            | generic::INVALID_OPCODE
            | generic::INVALID_NAMESPACE
    )
}

/// The error that a request ends with.
pub(super) fn error(status: Status, failure: BlockError) -> BlockError {
    match (status.full(), failure) {
        // A flush that failed for whatever reason is a flush that failed.
        (_, BlockError::Flush) => BlockError::Flush,
        _ if was_aborted(status) => BlockError::Timeout,
        (media::COMPARE_FAILURE, _) => BlockError::Mismatch,
        (generic::LBA_OUT_OF_RANGE | generic::INVALID_FIELD, _) => BlockError::Invalid,
        (generic::CAPACITY_EXCEEDED, _) => BlockError::NoSpace,
        (generic::INVALID_OPCODE, _) => BlockError::Unsupported,
        _ => failure,
    }
}
