//! The fabric: PDUs, sessions, transports and the client.
//!
//! One protocol on every transport (`PROTOCOL.md` has the byte tables). From the wire upwards:
//! [`pdu`] (layouts and checks), [`transport`] (moves PDUs and bulk data; [`stream`] implements it
//! over any byte stream: `tcp`, `sim` and [`shm`]; [`rdma`] over queue pairs), [`server`] (sessions: handshake, credits,
//! keep-alive, deadlines) and [`client`]. [`checkpoint`] holds the checkpoint store's payloads.

pub mod checkpoint;
pub mod checksum;
pub mod client;
pub mod conformance;
pub mod pdu;
pub mod rdma;
pub mod region;
pub mod route;
pub mod server;
pub mod shm;
pub mod status;
pub mod stream;
mod table;
pub mod transport;
#[cfg(feature = "rdma")]
pub mod verbs;

pub use status::Status;

/// What a build without the cargo feature `rdma` says to who asks it for RDMA.
pub const NO_RDMA: &str = "this program was built without RDMA: build it with `make build`, which needs the \
                           packages of libibverbs, or use TCP";

/// Memory that bulk data is sent from and received into: the daemon's arena buffers, a client's
/// own allocations. A transport owns a buffer while data moves through it and gives it back.
pub trait Buffer: AsRef<[u8]> + AsMut<[u8]> {}
impl<T: AsRef<[u8]> + AsMut<[u8]>> Buffer for T {}
