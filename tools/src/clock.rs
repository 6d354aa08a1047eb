//! The one place in the tools that reads a clock or waits: they measure real time.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Nanoseconds since the first call in this process; never goes back.
pub(crate) fn now_ns() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    #[expect(clippy::disallowed_methods, reason = "latency is measured against the real clock")]
    let now = Instant::now();
    now.duration_since(*START.get_or_init(|| now)).as_nanos() as u64
}

/// The time since the Unix epoch.
pub(crate) fn unix_time() -> Duration {
    #[expect(clippy::disallowed_methods, reason = "a log's header names the date it was taken")]
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Waits.
pub(crate) fn sleep(duration: Duration) {
    #[expect(clippy::disallowed_methods, reason = "no reactor here: this thread has nothing else")]
    std::thread::sleep(duration);
}

/// Seconds between two readings of [`now_ns`].
pub(crate) fn seconds_between(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64 / 1e9
}
