//! The one place of the client that reads a clock or asks for randomness.

use std::hash::{BuildHasher, Hasher};
use std::time::Instant;

/// Monotonic microseconds since it was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: Instant,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "the TCP driver's own clock")]
    pub(super) fn new() -> Self {
        Self { start: Instant::now() }
    }

    pub(super) fn now_us(self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// A number that differs between clients: the standard library keys its hashers from the system.
pub(super) fn fresh_seed() -> u64 {
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish()
}
