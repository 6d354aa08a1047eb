//! Real time: a virtual machine cannot be stepped, only waited for.

use anyhow::{Context as _, bail};
use std::time::{Duration, Instant};

/// Between two looks at something that is waited for.
const PAUSE: Duration = Duration::from_millis(20);

/// The time.
#[expect(clippy::disallowed_methods, reason = "a virtual machine runs in real time")]
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

/// Waits.
#[expect(clippy::disallowed_methods, reason = "no reactor here: this thread has nothing else")]
pub fn sleep(duration: Duration) {
    std::thread::sleep(duration);
}

/// Looks again and again until there is something to return.
///
/// # Errors
/// What `look` failed with, or `what` did not come within `patience`.
pub fn wait_until<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let began = now();
    loop {
        if let Some(found) = look().with_context(|| format!("waiting for {what}"))? {
            return Ok(found);
        }
        if began.elapsed() > patience {
            bail!("{what}: not within {} s", patience.as_secs());
        }
        sleep(PAUSE);
    }
}
