//! The client: connects to every reactor, routes by key, and ends every operation by its deadline.
//!
//! What it guarantees:
//!
//! * each submitted request ends in exactly one [`Done`], at its deadline at the latest, whether
//!   the server is alive or not;
//! * a lost connection is made again by itself (jittered exponential backoff); reads are asked
//!   again, and writes are sent again under the same idempotency token. What cannot be sent twice
//!   (to abort or delete a checkpoint) and was on its way ends as [`Status::Disconnected`];
//! * data is checked against its CRC32C before it is handed out: here, or over shared memory, where it is read in
//!   place, by the server with its last copy;
//! * memory of a [`crate::region::Region`] belongs to an operation until no server can reach it for that
//!   operation any more: a timeout alone does not give it back ([`crate::region::Region::is_idle`]);
//! * nothing a server sends makes it panic, or allocate more than was asked for. A server that
//!   breaks the protocol loses the connection.
//!
//! What breaks it: a caller that never calls [`Pipeline::poll`]. There is no thread of its own, so
//! time passes for the client only while it is polled.
//!
//! From the wire upwards: `send` and `receive` (queues of one connection), `placing` and `landing` (memory
//! that commands name, and what answers put there), `link` (its state machine), `operation` (what is kept of a request until it ends), `router` (links, routing,
//! batches, deadlines, replay); all of these are free of sockets and clocks. [`Pipeline`] drives
//! them over a [`Connector`], and [`Client`] blocks on a pipeline.

mod address;
mod batch;
mod blocking;
mod clock;
mod data;
mod error;
mod into_regions;
mod landing;
mod link;
mod operation;
mod paths;
mod pipeline;
mod placing;
#[cfg(feature = "rdma")]
mod rdma;
mod receive;
mod request;
mod router;
mod send;
mod stream;
mod system;

pub use address::{Address, NoAddress};
pub use blocking::{Answer, Client, Keys, NamespaceInfo};
pub use data::Data;
pub use error::{ClientError, LinkError};
pub use into_regions::Came;
pub use pipeline::{Connector, Pipeline, Slot};
#[cfg(feature = "rdma")]
pub use rdma::RdmaStream;
pub use request::{
    Done, ItemDone, NamespaceId, Request, RetrieveIntoItem, RetrieveItem, StoreFromItem, StoreItem,
    Target, Ticket,
};
pub use router::ClientCounters;
pub use stream::{Lent, Memory, Reach, Stream};
pub use system::{SystemConnector, SystemStream};

use crate::Status;
use crate::pdu::CAPSULE_BYTES_DEFAULT;

/// How a client connects and behaves. `ClientConfig::new(addresses)` fills in the rest.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Where to find the server: any of its reactors; they are tried in turn. Only transports that are
    /// among them are used, the first one where it works.
    pub addresses: Vec<Address>,
    /// Commands in flight on each connection; the server may grant fewer.
    pub queue_depth: u16,
    /// The largest capsule to ask for, in bytes: what fits travels without waiting for an R2T.
    pub capsule_bytes: u32,
    /// The deadline of an operation that does not name its own, in microseconds.
    pub timeout_us: u32,
    /// How long a connection may be silent before it counts as dead, in milliseconds.
    pub keep_alive_ms: u32,
    /// How long connecting and shaking hands may take, in milliseconds.
    pub connect_timeout_ms: u32,
    /// The receive buffer of each connection, in bytes (never below 128 KiB).
    pub receive_buffer_bytes: usize,
    /// Where idempotency tokens, the client's id and the jitter of the backoff come from. Two
    /// clients must not share one.
    pub seed: u64,
}

impl ClientConfig {
    /// The defaults, for a server at one of `addresses`.
    #[must_use]
    pub fn new<A: Into<Address>>(addresses: Vec<A>) -> Self {
        let addresses = addresses.into_iter().map(Into::into).collect();
        Self { addresses, ..Self::default() }
    }
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            queue_depth: 64,
            capsule_bytes: CAPSULE_BYTES_DEFAULT as u32,
            timeout_us: 10_000_000,
            keep_alive_ms: 10_000,
            connect_timeout_ms: 5_000,
            receive_buffer_bytes: 256 << 10,
            seed: clock::fresh_seed(),
        }
    }
}
