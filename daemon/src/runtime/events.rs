//! What reactors tell the main thread, which sleeps on descriptors.

use crate::catalog::Table;
use crate::reactor::Phase;
use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// News of one reactor.
#[derive(Debug)]
pub enum Event {
    /// Its shards are there.
    Recovered {
        /// Which.
        reactor: u16,
        /// Keys in its shards.
        keys: usize,
        /// The catalog, from the reactor that keeps it.
        table: Option<Table>,
    },
    /// It got on.
    Phase {
        /// Which.
        reactor: u16,
        /// Where it is now.
        phase: Phase,
    },
    /// Its thread ends.
    Ended {
        /// Which.
        reactor: u16,
        /// What was wrong, if anything.
        error: Option<String>,
    },
}

/// The reactors' end.
#[derive(Clone, Debug)]
pub struct Events {
    sender: Sender<Event>,
    bell: Arc<EventFd>,
}

/// The main thread's end.
#[derive(Debug)]
pub struct Inbox {
    receiver: Receiver<Event>,
    bell: Arc<EventFd>,
}

/// Both ends.
///
/// # Errors
/// No descriptors left.
pub fn channel() -> nix::Result<(Events, Inbox)> {
    let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
    let (sender, receiver) = unbounded();
    Ok((Events { sender, bell: bell.clone() }, Inbox { receiver, bell }))
}

impl Events {
    /// Tells.
    pub fn send(&self, event: Event) {
        if self.sender.send(event).is_err() || self.bell.write(1).is_err() {
            log::debug!("the main thread has left, or was being woken already");
        }
    }
}

impl Inbox {
    /// The next event, if there is one.
    #[must_use]
    pub fn take(&self) -> Option<Event> {
        self.receiver.try_recv().ok()
    }

    /// Forgets the wake-ups so far: before the events are taken.
    pub fn quiet(&self) {
        while self.bell.read().is_ok_and(|rings| rings > 0) {}
    }

    /// Turns readable when there is an event.
    #[must_use]
    pub fn wait_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
