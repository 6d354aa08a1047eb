//! What a reactor listens on, whichever transport it is.
//!
//! The main thread binds everything, so that each reactor can tell of all; what was bound goes to its
//! reactor's thread and becomes a transport there.

use super::RunError;
use forebay_config::{Listen, address_of};
use forebay_fabric::pdu::Endpoint;
use forebay_fabric::shm::{Shm, socket_path};
use forebay_fabric::stream::tcp::Tcp;
use forebay_fabric::stream::{StreamConfig, StreamTransport};
use forebay_fabric::transport::Transport;
use forebay_nvme::DmaBuf;

/// A reactor's transport of any kind.
pub type Wire = Box<dyn Transport<Buffer = DmaBuf>>;

/// Bound, and not served yet.
#[derive(Debug)]
pub enum Listening {
    /// A port.
    Tcp(Box<Tcp>),
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
            Listen::Tcp { address } => {
                let address = address_of(*address, reactor);
                let failed = |source| RunError::Listen { address: address.to_string(), source };
                let tcp = Tcp::bind(address).map_err(failed)?;
                let address = tcp.local_addr().map_err(failed)?;
                let endpoint = Endpoint::tcp(reactor, address);
                Ok(Bound { listening: Self::Tcp(tcp.into()), endpoint, shown: address.to_string() })
            }
            Listen::Shm { path, mode } => {
                let address = format!("shm:{}", socket_path(path, reactor).display());
                let shm = Shm::bind(path, reactor, *mode)
                    .map_err(|source| RunError::Listen { address: address.clone(), source })?;
                let endpoint = Endpoint::shm(reactor);
                Ok(Bound { listening: Self::Shm(shm), endpoint, shown: address })
            }
        }
    }

    /// The transport over it.
    #[must_use]
    pub fn serve(self, config: StreamConfig) -> Wire {
        match self {
            Self::Tcp(tcp) => Box::new(StreamTransport::new(*tcp, config)),
            Self::Shm(shm) => Box::new(StreamTransport::new(shm, config)),
        }
    }
}
