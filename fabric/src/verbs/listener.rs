//! A listener before anybody serves it: bound where the addresses are known, served on another thread.

use super::manager::{EventChannel, Id};
use crate::rdma::ProviderError;
use std::net::SocketAddr;
use std::rc::Rc;

/// Bound to an address. Peers wait until [`super::Verbs::serve`] takes it.
#[derive(Debug)]
pub struct Listener {
    id: Id,
    manager: Rc<EventChannel>,
}

// SAFETY: all that shares the event channel is in here, so that its count is only touched by the thread that
// has this; librdmacm locks what its objects share with others.
unsafe impl Send for Listener {}

impl Listener {
    /// Listens at `address`; with port 0, at a free one.
    ///
    /// # Errors
    /// The address is none of an RDMA device, or its port is taken.
    pub fn bind(address: SocketAddr) -> Result<Self, ProviderError> {
        let manager = EventChannel::new()?;
        let id = Id::listen(&manager, address)?;
        Ok(Self { id, manager })
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.id.port()
    }

    pub(super) fn into_parts(self) -> (Id, Rc<EventChannel>) {
        (self.id, self.manager)
    }
}
