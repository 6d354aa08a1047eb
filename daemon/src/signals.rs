//! SIGTERM and SIGINT as a descriptor, so that nothing runs in a signal handler.
//!
//! What would break it: a thread that was started before [`Signals::block`]: it would still die of
//! the signals, and the process with it.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::{AsFd, BorrowedFd};

/// The signals that ask the daemon to end.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks SIGTERM and SIGINT in this thread, and in all that it will start, and collects them.
    /// SIGPIPE is ignored (Rust's start-up does that), SIGHUP ends the process as ever.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn block() -> nix::Result<Self> {
        let mask = mask();
        mask.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self(SignalFd::with_flags(&mask, flags)?))
    }

    /// Runs `work` in this thread, which a signal ends at once meanwhile, and the process with it: for what may
    /// take long and leaves nothing undone. It starts no thread: that would die of the signals for ever after.
    ///
    /// # Errors
    /// The system does not change the mask.
    pub fn end_at_once_during<T>(&self, work: impl FnOnce() -> T) -> nix::Result<T> {
        let mask = mask();
        mask.thread_unblock()?;
        let done = work();
        mask.thread_block()?;
        Ok(done)
    }

    /// How many arrived since the last call.
    #[must_use]
    pub fn take(&self) -> usize {
        std::iter::from_fn(|| self.0.read_signal().ok().flatten()).count()
    }

    /// Turns readable when one arrives.
    #[must_use]
    pub fn wait_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn mask() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT].into_iter().collect()
}
