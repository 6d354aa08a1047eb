//! Connections over RDMA, over whichever device has the route.

use super::address::Address;
use super::clock::Clock;
use super::pipeline::{Connector, Slot};
use crate::rdma::client::{Hub, Line, client_shape};
use crate::rdma::{Provider, ProviderError};
use crate::verbs::{Verbs, VerbsConfig};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use std::io;
use std::time::Duration;

/// The longest single wait, in microseconds: callers wait again.
const WAIT_LONGEST_US: u64 = 60_000_000;

/// Makes RDMA connections; the clock is the system's monotonic one.
#[derive(Debug)]
pub struct RdmaConnector {
    hub: Hub<Verbs<Vec<u8>>>,
    clock: Clock,
}

impl RdmaConnector {
    /// A connector for clients with so many commands in flight on a connection.
    ///
    /// # Errors
    /// This machine has no RDMA device that can be used.
    pub fn new(queue_depth: u16) -> Result<Self, ProviderError> {
        let verbs = Verbs::new(VerbsConfig { send_bytes: 1 << 20, ..VerbsConfig::default() })?;
        Ok(Self { hub: Hub::new(verbs, client_shape(queue_depth)), clock: Clock::new() })
    }
}

impl Connector for RdmaConnector {
    type Stream = Line<Verbs<Vec<u8>>>;

    fn connect(&mut self, address: &Address) -> io::Result<Self::Stream> {
        self.hub.connect(address.tcp()?)
    }

    fn wait(&mut self, slots: &[Slot<Self::Stream>], timeout_us: u64) -> io::Result<()> {
        let moved = self.hub.turn(self.clock.now_us());
        // A read takes a part of what has come; for the rest no event will come.
        let readable = slots.iter().flat_map(|slot| &slot.stream).any(Line::is_readable);
        if !moved && !readable && self.hub.with_provider(Verbs::arm) {
            self.hub.with_provider(|verbs| sleep(verbs, timeout_us))?;
            self.hub.turn(self.clock.now_us());
        }
        slots.iter().for_each(|slot| slot.ready.set(true));
        Ok(())
    }

    fn now_us(&mut self) -> u64 {
        let now_us = self.clock.now_us();
        self.hub.set_now_us(now_us);
        now_us
    }
}

fn sleep(verbs: &Verbs<Vec<u8>>, timeout_us: u64) -> io::Result<()> {
    let timeout = TimeSpec::from_duration(Duration::from_micros(timeout_us.min(WAIT_LONGEST_US)));
    let Some(fd) = verbs.wait_fd() else { return Ok(()) };
    match ppoll(&mut [PollFd::new(fd, PollFlags::POLLIN)], Some(timeout), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
