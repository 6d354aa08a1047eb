//! Verbs: real queue pairs, over libibverbs and librdmacm.
//!
//! Guarantees, beyond those of [`crate::rdma::Provider`]:
//!
//! * no address that a work request names is unmapped, moved or handed to anybody else before the
//!   work has completed or the queue pair is destroyed: the queue pair owns the buffers;
//! * a queue pair of a server takes no READ and no WRITE, and the server's memory is registered with
//!   local rights only: it has no key that a peer could use;
//! * a caller's region is registered once with each device, with the rights of its usage, and until its last
//!   handle is gone;
//! * nothing here waits: not for the network, and not for the connection manager, which may take long to let
//!   go of a connection that has ended: a thread waits for that;
//! * a peer costs a queue pair, and its failure is told of that queue pair only.
//!
//! What breaks it: memory that is registered ([`Verbs::register`]) and then mapped anew by somebody
//! who was trusted to keep it. iWARP is not supported (a READ needs remote rights there), and says so.
//!
//! Not there yet: shared receive queues.
//!
//! The connection manager is control plane only: queue pairs, protection domains and completion queues
//! are on contexts of our own, one per device. Completions are taken with `ibv_poll_cq`; the extended
//! completion queues of some providers hand out completions that never were.
//!
//! From the wire upwards: `device` (contexts, ports, GIDs), `memory` (registrations), `completion`
//! (queues), `shared` (receives of many), `pair` (queue pairs and what is in flight on them), `manager` (connections),
//! `reaper` (their ends), [`Verbs`].

#![expect(
    unsafe_code,
    reason = "calls libibverbs and librdmacm, and gives a network card addresses of buffers that it \
              owns until their work completes; each block carries its proof"
)]

mod completion;
mod device;
mod listener;
mod manager;
mod memory;
mod pair;
mod provider;
mod reaper;
mod shared;

pub use device::{Gid, GidKind, devices, gids};
pub use listener::Listener;
pub use memory::{Steady, VerbsRegion};
pub use pair::PairFacts;
pub use provider::{Verbs, VerbsConfig};

use crate::rdma::ProviderError;

/// The error of the call that has just failed.
fn last_error(what: &'static str) -> ProviderError {
    ProviderError::System { what, source: std::io::Error::last_os_error() }
}

/// The error that a call has returned as a number.
fn number_error(what: &'static str, number: i32) -> ProviderError {
    let source = std::io::Error::from_raw_os_error(number.abs());
    ProviderError::System { what, source }
}
