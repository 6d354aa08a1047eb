//! Files that live in memory (tmpfs): their transfers are done here, not by the ring.
//!
//! Such a file cannot be driven asynchronously: it has no `FMODE_NOWAIT`, so the kernel would hand each
//! read and write to a worker thread of the ring, one context switch each, on another core than the
//! reactor's. There is nothing to wait for in memory, so the queue makes the copy itself. Measured on
//! two cores: 4 KiB reads at depth 32 take half the processor time of the ring's.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;

use crate::{BLOCK_BYTES, BlockError, Completion, Operation, Request};

/// How many bytes one poll copies before the reactor looks at something else.
const POLL_BYTES: usize = 4 << 20;

/// Transfers that wait for the next poll.
#[derive(Debug)]
pub(super) struct Transfers {
    requests: VecDeque<Request>,
}

impl Transfers {
    /// Room for `depth` requests.
    pub(super) fn new(depth: u32) -> Self {
        Self { requests: VecDeque::with_capacity(depth as usize) }
    }

    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    pub(super) fn push(&mut self, request: Request) {
        self.requests.push_back(request);
    }

    /// Carries out what waits, within the room of `completions` and the bytes of one poll.
    pub(super) fn run(&mut self, file: &File, completions: &mut Vec<Completion>) {
        let mut bytes = 0;
        while completions.len() < completions.capacity()
            && bytes < POLL_BYTES
            && let Some(mut request) = self.requests.pop_front()
        {
            let result = transfer(file, &mut request.operation, &mut bytes);
            completions.push(request.end(result));
        }
    }
}

fn transfer(file: &File, operation: &mut Operation, bytes: &mut usize) -> Result<(), BlockError> {
    let outcome = match operation {
        Operation::Read { block, blocks, buffer } => {
            let length = *blocks as usize * BLOCK_BYTES;
            *bytes += length;
            file.read_exact_at(&mut buffer[..length], *block * BLOCK_BYTES as u64)
        }
        Operation::Write { block, blocks, buffer, .. } => {
            let length = *blocks as usize * BLOCK_BYTES;
            *bytes += length;
            file.write_all_at(&buffer[..length], *block * BLOCK_BYTES as u64)
        }
        _ => return Err(BlockError::Unsupported),
    };
    outcome.map_err(|error| {
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
        super::block_error(errno, operation)
    })
}
