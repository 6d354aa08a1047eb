//! The RDMA transport: PDUs by SEND, bulk data by the server's READ and WRITE.
//!
//! What it adds to the guarantees of [`crate::transport`]:
//!
//! * bulk data is moved by the network card between the client's registered memory and the very
//!   buffer that the device filled or will be written from: nothing is copied here. A command that
//!   names no memory gets its data behind the response;
//! * no queue overruns: a side sends a PDU only if the other has posted a receive for it
//!   (`credits`), and posts work only where the queue pair has room for it. A server's connections may
//!   share one pool of receives: what all of them were granted is never more than there are (`grants`);
//! * a buffer that work refers to is dropped only when that work has completed, or its queue pair
//!   is gone; a connection that breaks is drained before its end is reported;
//! * no key of the server's memory leaves the server, and its queue pairs take no READ or WRITE.
//!
//! What breaks it: a client that gives its memory to something else before the response has come.
//! It then finds the server's data in it (`PROTOCOL.md`, "RDMA").
//!
//! A refused peer, or one whose connection is closed with READs under way, is reported as closed
//! when those have ended: their buffers belong to the network card until then.
//!
//! From the wire upwards: a [`Provider`] has queue pairs (`verbs`, behind the cargo feature `rdma`,
//! has real ones; [`fake`] simulates them, faults included), a [`Chain`] is work for one of them, a
//! `channel` is a connection's PDUs, credits and bulk data, [`RdmaTransport`] is the server's side
//! and [`client`] the client's.

mod chain;
mod channel;
pub mod client;
mod credits;
pub mod fake;
mod grants;
mod greeting;
mod ledger;
mod output;
mod peer;
mod provider;
mod run;
mod splitter;
mod transport;

pub use chain::{Chain, Piece, Step, Work};
pub use greeting::{GREETING_BYTES, Greeting};
pub use ledger::{ByteRing, Ended, InFlight, Ledger};
pub use peer::LinePeer;
pub use provider::{
    Event, LentRegion, Limits, Note, Provider, ProviderError, Qp, Room, Shape, Violation,
};
pub use transport::{RdmaConfig, RdmaTransport};
