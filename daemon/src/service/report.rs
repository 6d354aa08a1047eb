//! What a reactor tells of itself: to clients by the Stats command, to the admin socket by mail.

use super::Context;
use crate::catalog::{Entry, class_name};
use forebay_fabric::server::Counters;
use serde_json::{Value, json};

impl Context {
    /// This reactor's state and counters.
    #[must_use]
    pub fn report(&self) -> Value {
        let (live_bytes, limit_bytes) = self.store.space_bytes();
        let memory = self.memory.pool();
        let listeners = self.listeners.iter().map(|counters| listener(&counters.get()));
        json!({
            "reactor": self.mailbox.me(),
            "phase": format!("{:?}", self.phase.get()).to_lowercase(),
            "failed": self.store.has_failed(),
            "shards": self.store.shards().count(),
            "keys": self.store.keys(),
            "live_bytes": live_bytes,
            "limit_bytes": limit_bytes,
            "index_bytes": self.store.index_bytes(),
            "memory_bytes": memory.total_bytes(),
            "memory_free_bytes": memory.free_bytes(),
            "memory_low_water_bytes": memory.low_water_bytes(),
            "dram_tier": self.store.context().tier.report(),
            "commands_in_service": self.slots.in_use(),
            "device_requests_in_flight": self.store.context().disk.in_flight(),
            "counters": self.counters.to_json(),
            "bytes_copied": self.bytes_copied(),
            "listeners": listeners.collect::<Vec<_>>(),
        })
    }

    /// Bytes of values that the processor has copied between their arrival, the media and their departure: by
    /// the service (what comes in a capsule or in a batch), the packing of small values, and the fabric. What
    /// the system copies to and from sockets does not count.
    #[must_use]
    pub fn bytes_copied(&self) -> u64 {
        let listeners = self.listeners.iter().map(|counters| counters.get().bytes_copied);
        let own = self.counters.bytes_copied.get() + self.store.context().bytes_packed.get();
        own + listeners.sum::<u64>()
    }

    /// The namespaces of the pool, with what they hold.
    #[must_use]
    pub fn namespaces_report(&self) -> Value {
        let usage = &self.store.context().usage;
        let one = |entry: &Entry| namespace(entry, usage.bytes(entry.number as u16));
        self.namespaces.entries().iter().map(one).collect()
    }
}

/// One namespace, as every answer shows it.
#[must_use]
pub fn namespace(entry: &Entry, used_bytes: u64) -> Value {
    json!({
        "name": entry.namespace.name,
        "number": entry.number,
        "class": class_name(entry.namespace.class),
        "quota_bytes": entry.namespace.quota_bytes,
        "used_bytes": used_bytes,
        "ttl_s": entry.namespace.ttl_s,
        "configured": entry.configured,
    })
}

fn listener(counters: &Counters) -> Value {
    let Counters {
        connections_open, connections, requests, responses, bytes_in, bytes_out, ..
    } = counters;
    let Counters { protocol_errors, silent, refused, .. } = counters;
    let Counters { timeouts, cancelled, disconnected, turned_away, bytes_copied, .. } = counters;
    json!({
        "connections_open": connections_open,
        "connections": connections,
        "requests": requests,
        "responses": responses,
        "bytes_in": bytes_in,
        "bytes_out": bytes_out,
        "protocol_errors": protocol_errors,
        "silent": silent,
        "refused": refused,
        "timeouts": timeouts,
        "cancelled": cancelled,
        "disconnected": disconnected,
        "turned_away": turned_away,
        "bytes_copied": bytes_copied,
    })
}
