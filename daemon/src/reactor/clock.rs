//! The one place of the daemon that reads clocks; everything below a reactor is told the time.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// One reading of the clocks, the same for everything that happens in one tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Microseconds since the daemon's start; never steps back.
    pub us: u64,
    /// Seconds since 1970, for what expires across restarts; may step.
    pub unix_s: u64,
}

/// The clocks of a real machine.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Time 0 is now. Reactors that talk to each other share one clock.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the reactor's clock is where time comes from")]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Reads the clocks: once per tick.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the reactor's clock is where time comes from")]
    pub fn now(&self) -> Now {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { us: self.start.elapsed().as_micros() as u64, unix_s: since_1970.as_secs() }
    }
}
