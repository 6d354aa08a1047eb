//! Small values through TCP, beside Redis: 4 KiB, 32 operations in flight.
//!
//! Redis answers from memory and acknowledges before its log is on disk; Forebay reads media and
//! acknowledges what is durable.

use crate::Effort;
use crate::machine::{Machine, folder_in_memory};
use crate::peers::Redis;
use crate::server::{Load, Server};
use forebay_tests::measure::{Metrics, Rate};

/// Of Redis's GET rate.
const RETRIEVE_GOAL: f64 = 1.0;
/// Of Redis's SET rate.
const STORE_GOAL: f64 = 1.5;
const DEVICE_MIB: u64 = 2048;
/// For the append-only file.
const REDIS_MIB: u64 = 3072;
const RETRIEVE: Load = Load {
    namespace: "small",
    op: "retrieve",
    value_bytes: 4096,
    keys: 100_000,
    dist: "uniform",
    depth: 32,
};

pub(crate) fn measure(
    machine: &Machine,
    effort: Effort,
    metrics: &mut Metrics,
) -> anyhow::Result<()> {
    let (core, seconds) = (machine.client_core, effort.seconds);
    let (own, redis) = (folder_in_memory(DEVICE_MIB)?, folder_in_memory(REDIS_MIB)?);
    let server = Server::start(machine, own.path(), DEVICE_MIB)?;
    server.fill(core, RETRIEVE)?;
    let redis = Redis::start(machine.server_core, redis.path(), RETRIEVE.keys)?;
    let store = Load { op: "store", ..RETRIEVE };
    let mut retrieves = Rate::new("retrieve_4k_per_s", "1/s");
    let mut stores = Rate::new("store_4k_per_s", "1/s");
    let mut gets = Rate::new("redis_get_4k_per_s", "1/s");
    let mut sets = Rate::new("redis_set_4k_per_s", "1/s");
    for _ in 0..effort.rounds {
        gets.push(redis.ops_per_s(core, "get", seconds)?);
        retrieves.push(server.measure(core, RETRIEVE, seconds)?.ops_per_s);
        sets.push(redis.ops_per_s(core, "set", seconds)?);
        stores.push(server.measure(core, store, seconds)?.ops_per_s);
    }
    metrics.ratio("retrieve_4k_vs_redis_get", &retrieves, &gets, RETRIEVE_GOAL);
    metrics.ratio("store_4k_vs_redis_set", &stores, &sets, STORE_GOAL);
    Ok(())
}
