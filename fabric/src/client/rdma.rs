//! RDMA for the system's connector: one hub for all its connections, over whichever device has the route.

use crate::rdma::client::{Hub, Line, client_shape};
use crate::rdma::{Provider, ProviderError};
use crate::verbs::{Verbs, VerbsConfig};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A connection over real verbs.
pub type RdmaStream = Line<Verbs<Vec<u8>>>;

/// Bytes of PDUs that may be on their way on one connection.
const SEND_BYTES: usize = 1 << 20;

/// The hub, once a connection was asked for.
#[derive(Debug)]
pub(super) struct Rdma {
    queue_depth: u16,
    made: Option<Made>,
}

#[derive(Debug)]
struct Made {
    hub: Hub<Verbs<Vec<u8>>>,
    /// Readable when the armed hub has something to do.
    wait_fd: OwnedFd,
}

impl Rdma {
    pub(super) fn new(queue_depth: u16) -> Self {
        Self { queue_depth, made: None }
    }

    /// Starts a connection.
    pub(super) fn connect(&mut self, address: SocketAddr) -> io::Result<RdmaStream> {
        if self.made.is_none() {
            self.made = Some(Made::new(self.queue_depth)?);
        }
        self.made.as_ref().ok_or(io::ErrorKind::NotConnected)?.hub.connect(address)
    }

    /// The time that connections move at from now on.
    pub(super) fn set_now_us(&self, now_us: u64) {
        self.made.iter().for_each(|made| made.hub.set_now_us(now_us));
    }

    /// Moves what can be moved; `true` if anything was, or if something came before it could be waited
    /// for.
    pub(super) fn is_ready_before_waiting(&self, now_us: u64) -> bool {
        let Some(Made { hub, .. }) = &self.made else { return false };
        hub.turn(now_us) || !hub.with_provider(Verbs::arm)
    }

    /// Takes in what came meanwhile.
    pub(super) fn woke(&self, now_us: u64) {
        if let Some(Made { hub, .. }) = &self.made {
            hub.turn(now_us);
        }
    }

    /// What to wait for, if there is a connection.
    pub(super) fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.made.as_ref().map(|made| made.wait_fd.as_fd())
    }
}

impl Made {
    fn new(queue_depth: u16) -> io::Result<Self> {
        let config = VerbsConfig { send_bytes: SEND_BYTES, ..VerbsConfig::default() };
        let verbs = Verbs::new(config).map_err(io_error)?;
        let wait_fd = verbs.wait_fd().map(|fd| fd.try_clone_to_owned());
        let wait_fd = wait_fd.ok_or(io::ErrorKind::Unsupported)??;
        Ok(Self { hub: Hub::new(verbs, client_shape(queue_depth)), wait_fd })
    }
}

fn io_error(error: ProviderError) -> io::Error {
    io::Error::other(error)
}
