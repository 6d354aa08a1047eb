//! How an idle reactor sleeps: on one epoll over everything that can give it work.
//!
//! What would break it: a source of work without a descriptor here. One that has to be polled
//! (`wait_fd` is `None`) makes the reactor look again every [`POLLED_SLEEP_US`]; while such a queue has requests
//! the reactor does not come here at all.

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// The longest sleep while a source of work has to be polled, in microseconds.
const POLLED_SLEEP_US: u64 = 1_000;
/// The longest sleep at all, in microseconds: a safety net that costs nothing.
pub const LONGEST_SLEEP_US: u64 = 1_000_000;

/// Waits for the first of some descriptors, or for a time.
#[derive(Debug)]
pub struct Sleeper {
    epoll: Epoll,
    /// Something has no descriptor.
    polled: bool,
}

impl Sleeper {
    /// A sleeper that nothing wakes yet.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new() -> nix::Result<Self> {
        Ok(Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, polled: false })
    }

    /// Adds a source of work; `None` is one that has to be polled. Level-triggered: what a wake-up
    /// does not consume wakes again.
    ///
    /// # Errors
    /// The descriptor cannot be waited for.
    pub fn add(&mut self, source: Option<BorrowedFd<'_>>) -> nix::Result<()> {
        match source {
            Some(fd) => self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0)),
            None => {
                self.polled = true;
                Ok(())
            }
        }
    }

    /// Sleeps until there is work, or for `us` microseconds.
    ///
    /// # Errors
    /// epoll itself fails, which is a bug.
    pub fn sleep(&self, us: u64) -> nix::Result<()> {
        let longest = if self.polled { POLLED_SLEEP_US } else { LONGEST_SLEEP_US };
        // Rounded up: a millisecond late is better than a loop of wake-ups just before a deadline.
        let timeout = Duration::from_millis(us.min(longest).div_ceil(1_000));
        let timeout = EpollTimeout::try_from(timeout).unwrap_or(EpollTimeout::ZERO);
        match self.epoll.wait(&mut [EpollEvent::empty()], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
