//! RDMA for a reactor: its own devices' contexts, with the arena registered once in each.
//!
//! What a drive has read into the arena is what the network card sends, and the other way round: the same
//! buffer is mapped for the one and registered for the other, and nothing is copied between them.

use super::listening::Wire;
use forebay_fabric::rdma::{ProviderError, RdmaConfig, RdmaTransport};
use forebay_fabric::server::ServerConfig;
pub use forebay_fabric::verbs::Listener;
use forebay_fabric::verbs::{Verbs, VerbsConfig};
use forebay_nvme::Pool;
use std::rc::Rc;

/// The most receives of a connection beyond two for each command in flight: for PDUs that are no commands.
const CONTROL_RECEIVES: u16 = 16;

/// The transport over `listener`, whose connections share so many receives on each device.
pub(super) fn serve(
    listener: Listener,
    receives: u16,
    config: &ServerConfig,
    memory: &Pool,
) -> Result<Wire, ProviderError> {
    let mut verbs = Verbs::serve(VerbsConfig::default(), listener)?;
    let span = memory.span();
    verbs.register(span.address(), span.bytes(), Rc::new(span.clone()))?;
    verbs.share_receives(receives, config.capsule_bytes)?;
    let rdma = RdmaConfig {
        connections_max: config.connections_max,
        receives: 2 * config.queue_depth + CONTROL_RECEIVES,
        receive_bytes: config.capsule_bytes,
        ..RdmaConfig::default()
    };
    Ok(Box::new(RdmaTransport::new(verbs, rdma)))
}
