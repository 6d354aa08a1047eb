//! What a reactor listens on, whichever transport it is.
//!
//! The main thread binds everything, so that each reactor can tell of all; what was bound goes to its
//! reactor's thread and becomes a transport there.

use super::RunError;
use super::rdma::{self, Listener};
use forebay_config::{Listen, address_of};
use forebay_fabric::pdu::Endpoint;
use forebay_fabric::rdma::ProviderError;
use forebay_fabric::server::ServerConfig;
use forebay_fabric::shm::{Shm, socket_path};
use forebay_fabric::stream::tcp::Tcp;
use forebay_fabric::stream::{StreamConfig, StreamTransport};
use forebay_fabric::transport::Transport;
use forebay_nvme::{Buffer, Pool};
use std::net::SocketAddr;
use std::path::Path;

/// A reactor's transport of any kind.
pub type Wire = Box<dyn Transport<Buffer = Buffer>>;

/// Bound, and not served yet.
#[derive(Debug)]
pub enum Listening {
    /// A port.
    Tcp(Box<Tcp>),
    /// A port of RDMA's.
    Rdma {
        /// What was bound.
        listener: Listener,
        /// Receives that its connections share.
        receives: u16,
    },
    /// A Unix socket.
    Shm(Shm),
}

/// One reactor's share of a `[[listen]]`.
#[derive(Debug)]
pub struct Bound {
    /// What it listens on.
    pub listening: Listening,
    /// How clients are told of it.
    pub endpoint: Endpoint,
    /// How people are.
    pub shown: String,
}

impl Listening {
    /// Binds what `listen` says for `reactor`.
    ///
    /// # Errors
    /// [`RunError::Listen`].
    pub fn bind(listen: &Listen, reactor: u16) -> Result<Bound, RunError> {
        match listen {
            Listen::Tcp { address, preference } => {
                bind_tcp(address_of(*address, reactor), reactor, *preference)
            }
            Listen::Rdma { address, preference, receives } => {
                bind_rdma(address_of(*address, reactor), reactor, *preference, *receives)
            }
            Listen::Shm { path, mode } => bind_shm(path, *mode, reactor),
        }
    }

    /// The transport over it, for a reactor that has `memory`.
    ///
    /// # Errors
    /// An RDMA device cannot be used, or cannot have the memory.
    pub fn serve(self, config: &ServerConfig, memory: &Pool) -> Result<Wire, ProviderError> {
        let stream =
            StreamConfig { connections_max: config.connections_max, ..StreamConfig::default() };
        match self {
            Self::Tcp(tcp) => Ok(Box::new(StreamTransport::new(*tcp, stream))),
            Self::Rdma { listener, receives } => rdma::serve(listener, receives, config, memory),
            Self::Shm(shm) => Ok(Box::new(StreamTransport::new(shm, stream))),
        }
    }
}

fn bind_tcp(address: SocketAddr, reactor: u16, preference: u16) -> Result<Bound, RunError> {
    let failed = |source| RunError::Listen { address: address.to_string(), source };
    let tcp = Tcp::bind(address).map_err(failed)?;
    let address = tcp.local_addr().map_err(failed)?;
    let endpoint = Endpoint::tcp(reactor, address).with_preference(preference);
    Ok(Bound { listening: Listening::Tcp(tcp.into()), endpoint, shown: address.to_string() })
}

fn bind_shm(path: &Path, mode: u32, reactor: u16) -> Result<Bound, RunError> {
    let address = format!("shm:{}", socket_path(path, reactor).display());
    let shm = Shm::bind(path, reactor, mode)
        .map_err(|source| RunError::Listen { address: address.clone(), source })?;
    let endpoint = Endpoint::shm(reactor);
    Ok(Bound { listening: Listening::Shm(shm), endpoint, shown: address })
}

fn bind_rdma(
    mut address: SocketAddr,
    reactor: u16,
    preference: u16,
    receives: u16,
) -> Result<Bound, RunError> {
    let listener = Listener::bind(address).map_err(|error| {
        let (address, source) = (format!("rdma:{address}"), std::io::Error::other(error));
        RunError::Listen { address, source }
    })?;
    address.set_port(listener.port());
    let endpoint = Endpoint::rdma(reactor, address).with_preference(preference);
    let listening = Listening::Rdma { listener, receives };
    Ok(Bound { listening, endpoint, shown: format!("rdma:{address}") })
}
