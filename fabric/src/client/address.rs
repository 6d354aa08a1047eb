//! Where a server is, on whichever transport.

use crate::pdu::{Endpoint, TRANSPORT_RDMA, TRANSPORT_SHM, TRANSPORT_TCP};
use crate::shm::socket_path;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// How an address over shared memory begins in text.
const SHM: &str = "shm:";
/// How one over RDMA does.
const RDMA: &str = "rdma:";
/// How one over TCP may.
const TCP: &str = "tcp:";

/// Where one reactor of a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// RDMA: RoCE v2 or InfiniBand.
    Rdma(SocketAddr),
    /// Shared memory, on this host.
    Shm {
        /// The listener's path, as the server's configuration has it.
        path: Arc<Path>,
        /// The reactor's socket is this path with `.number` behind it.
        number: u16,
    },
}

impl Address {
    /// The first reactor of the server that listens at `path` over shared memory.
    #[must_use]
    pub fn shm(path: &Path) -> Self {
        Self::Shm { path: path.into(), number: 0 }
    }

    /// RDMA where both sides have it, or else TCP at the same address and port.
    #[must_use]
    pub fn auto(address: SocketAddr) -> [Self; 2] {
        [Self::Rdma(address), Self::Tcp(address)]
    }

    /// The TCP address, for connectors that know nothing else.
    ///
    /// # Errors
    /// It is no TCP address.
    pub fn tcp(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(address) => Ok(*address),
            Self::Rdma(_) | Self::Shm { .. } => {
                Err(io::Error::other("this connector speaks TCP only"))
            }
        }
    }

    /// The socket's path, if it is one over shared memory.
    #[must_use]
    pub fn socket(&self) -> Option<PathBuf> {
        match self {
            Self::Tcp(_) | Self::Rdma(_) => None,
            Self::Shm { path, number } => Some(socket_path(path, *number)),
        }
    }

    /// Where `endpoint` is, for a client that knows the server to be here; `None` if that does not say,
    /// or its transport is of a later version.
    pub(super) fn of(&self, endpoint: &Endpoint) -> Option<Self> {
        let reached = match self {
            Self::Tcp(address) | Self::Rdma(address) => address.ip(),
            Self::Shm { .. } => Ipv6Addr::LOCALHOST.into(),
        };
        match (endpoint.transport.get(), self) {
            (TRANSPORT_TCP, _) => Some(Self::Tcp(endpoint.socket_address(reached))),
            (TRANSPORT_RDMA, _) => Some(Self::Rdma(endpoint.socket_address(reached))),
            (TRANSPORT_SHM, Self::Shm { path, .. }) => {
                Some(Self::Shm { path: path.clone(), number: endpoint.port.get() })
            }
            _ => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Rdma(address) => write!(f, "{RDMA}{address}"),
            Self::Shm { path, number } => write!(f, "{SHM}{}.{number}", path.display()),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl From<(IpAddr, u16)> for Address {
    fn from(address: (IpAddr, u16)) -> Self {
        Self::Tcp(address.into())
    }
}

/// A text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no address; write IP:PORT, rdma:IP:PORT, or shm:PATH as in the server's [[listen]]"
)]
pub struct NoAddress(String);

impl FromStr for Address {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Self, NoAddress> {
        if let Some(path) = text.strip_prefix(SHM).filter(|path| !path.is_empty()) {
            return Ok(Self::shm(Path::new(path)));
        }
        let found = match text.strip_prefix(RDMA) {
            Some(rest) => rest.parse().map(Self::Rdma),
            None => text.strip_prefix(TCP).unwrap_or(text).parse().map(Self::Tcp),
        };
        found.map_err(|_| NoAddress(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        let tcp: Address = "127.0.0.1:7400".parse().unwrap();
        assert_eq!(tcp, Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 7400))));
        assert!(tcp.tcp().is_ok() && tcp.socket().is_none());
        let shm: Address = "shm:/run/forebay/shm".parse().unwrap();
        assert_eq!(shm.socket(), Some(PathBuf::from("/run/forebay/shm.0")));
        assert!(shm.tcp().is_err());
        assert_eq!(shm.to_string(), "shm:/run/forebay/shm.0");
        let rdma: Address = "rdma:10.0.0.1:7400".parse().unwrap();
        assert_eq!(rdma, Address::Rdma(SocketAddr::from(([10, 0, 0, 1], 7400))));
        assert_eq!(rdma.to_string(), "rdma:10.0.0.1:7400");
        assert_eq!("tcp:127.0.0.1:7400".parse(), Ok(tcp));
        for wrong in ["", "shm:", "rdma:", "rdma:/run", "nowhere", "127.0.0.1"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn endpoints_are_found_from_where_the_server_was_reached() {
        let shm = Address::shm(Path::new("/run/shm"));
        let third = shm.of(&Endpoint::shm(3)).unwrap();
        assert_eq!(third.socket(), Some(PathBuf::from("/run/shm.3")));
        let tcp = Address::Tcp(SocketAddr::from(([10, 0, 0, 7], 7400)));
        let any = Endpoint::tcp(1, SocketAddr::from(([0, 0, 0, 0], 7401)));
        assert_eq!(tcp.of(&any), Some(Address::Tcp(SocketAddr::from(([10, 0, 0, 7], 7401)))));
        assert_eq!(tcp.of(&Endpoint::shm(3)), None, "a path is not announced");
    }
}
