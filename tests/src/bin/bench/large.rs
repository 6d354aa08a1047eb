//! Large values through TCP, beside what TCP gives (iperf3 over the same two cores).

use crate::Effort;
use crate::machine::{Machine, folder_in_memory};
use crate::peers::Iperf;
use crate::server::{Load, Server};
use forebay_tests::measure::{Metrics, Rate};

/// Of iperf3's rate.
const GOAL: f64 = 0.8;
const DEVICE_MIB: u64 = 2048;

const MEDIUM: Load = Load {
    namespace: "medium",
    op: "retrieve",
    value_bytes: 128 << 10,
    keys: 2048,
    dist: "sequential",
    depth: 16,
};
const LARGE: Load =
    Load { namespace: "large", value_bytes: 1 << 20, keys: 256, depth: 8, ..MEDIUM };

pub(crate) fn measure(
    machine: &Machine,
    effort: Effort,
    metrics: &mut Metrics,
) -> anyhow::Result<()> {
    let folder = folder_in_memory(DEVICE_MIB)?;
    let server = Server::start(machine, folder.path(), DEVICE_MIB)?;
    let mut iperf = Iperf::start(machine.server_core)?;
    let loads = [
        ("retrieve_128k", MEDIUM),
        ("store_128k", Load { op: "store", ..MEDIUM }),
        ("retrieve_1m", LARGE),
        ("store_1m", Load { op: "store", ..LARGE }),
    ];
    server.fill(machine.client_core, MEDIUM)?;
    server.fill(machine.client_core, LARGE)?;
    let mut ours = loads.map(|(name, _)| Rate::new(&format!("{name}_bytes_per_s"), "B/s"));
    let mut theirs = Rate::new("iperf3_bytes_per_s", "B/s");
    for _ in 0..effort.rounds {
        theirs.push(iperf.bytes_per_s(machine.client_core, effort.seconds)?);
        for ((_, load), rate) in loads.iter().zip(&mut ours) {
            rate.push(server.measure(machine.client_core, *load, effort.seconds)?.bytes_per_s);
        }
    }
    for ((name, _), rate) in loads.iter().zip(&ours) {
        metrics.ratio(&format!("{name}_vs_iperf3"), rate, &theirs, GOAL);
    }
    Ok(())
}
