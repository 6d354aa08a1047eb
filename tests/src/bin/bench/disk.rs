//! The same on a disk, for information: what the target folder is on is nobody's promise.

use crate::Effort;
use crate::machine::{Machine, folder_in};
use crate::peers::fio;
use crate::server::{Load, Server};
use forebay_tests::measure::{Fio, Metrics, target};

const DEVICE_MIB: u64 = 2048;
const SMALL: Load = Load {
    namespace: "small",
    op: "store",
    value_bytes: 4096,
    keys: 20_000,
    dist: "uniform",
    depth: 32,
};
const MEDIUM: Load = Load {
    namespace: "medium",
    value_bytes: 128 << 10,
    keys: 1024,
    dist: "sequential",
    depth: 16,
    ..SMALL
};

pub(crate) fn measure(
    machine: &Machine,
    effort: Effort,
    metrics: &mut Metrics,
) -> anyhow::Result<()> {
    let folder = folder_in(&target()?)?;
    let (core, seconds) = (machine.client_core, effort.seconds);
    let file = folder.path().join("fio");
    let job = Fio {
        file: &file,
        rw: "randread",
        block_bytes: 4096,
        depth: 32,
        batch: 16,
        size_mib: Some(512),
    };
    metrics.note("disk_fio_4k_randread_per_s", fio(core, job, seconds)?, "1/s");
    let job = Fio { rw: "read", block_bytes: 128 << 10, depth: 16, batch: 8, ..job };
    let bytes_per_s = fio(core, job, seconds)? * job.block_bytes as f64;
    metrics.note("disk_fio_128k_read_bytes_per_s", bytes_per_s, "B/s");
    std::fs::remove_file(&file)?;

    let server = Server::start(machine, folder.path(), DEVICE_MIB)?;
    server.fill(core, SMALL)?;
    server.fill(core, MEDIUM)?;
    for (name, op) in [("disk_store_4k_per_s", "store"), ("disk_retrieve_4k_per_s", "retrieve")] {
        let rate = server.measure(core, Load { op, ..SMALL }, seconds)?.ops_per_s;
        metrics.note(name, rate, "1/s");
    }
    for (name, op) in
        [("disk_store_128k_bytes_per_s", "store"), ("disk_retrieve_128k_bytes_per_s", "retrieve")]
    {
        let rate = server.measure(core, Load { op, ..MEDIUM }, seconds)?.bytes_per_s;
        metrics.note(name, rate, "B/s");
    }
    Ok(())
}
