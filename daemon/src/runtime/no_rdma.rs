//! RDMA in a build without it: nothing is ever bound.

use super::listening::Wire;
use forebay_fabric::rdma::ProviderError;
use forebay_fabric::server::ServerConfig;
use forebay_nvme::Pool;
use std::net::SocketAddr;

/// There is none.
#[derive(Debug)]
pub enum Listener {}

impl Listener {
    /// # Errors
    /// Always: it says how to get a build that can.
    pub fn bind(_: SocketAddr) -> Result<Self, ProviderError> {
        Err(ProviderError::Unsuitable(forebay_fabric::NO_RDMA.to_owned()))
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        match *self {}
    }
}

pub(super) fn serve(
    listener: Listener,
    _: u16,
    _: &ServerConfig,
    _: &Pool,
) -> Result<Wire, ProviderError> {
    match listener {}
}
