//! A daemon with a million keys: how big it is, how long it takes to come back, what it costs idle.

use crate::Effort;
use crate::machine::{Machine, folder_in_memory, now, sleep};
use crate::server::{Load, Server};
use forebay_tests::measure::{Goal, Metrics, Rate};
use forebayd::store::index::{Entry, Index};
use std::time::Duration;

const DEVICE_MIB: u64 = 6144;
/// What the daemon may take beyond its arena and its index, in MiB.
const RESIDENT_MIB_GOAL: f64 = 64.0;
const RESTART_S_GOAL: f64 = 1.0;
const INDEX_BYTES_GOAL: f64 = 32.0;
const IDLE_PERCENT_GOAL: f64 = 1.0;
/// How long the daemon is idle for.
const IDLE: Duration = Duration::from_secs(10);
const NAMESPACE: &str = "small";

pub(crate) fn measure(
    machine: &Machine,
    effort: Effort,
    metrics: &mut Metrics,
) -> anyhow::Result<()> {
    let folder = folder_in_memory(DEVICE_MIB)?;
    let mut server = Server::start(machine, folder.path(), DEVICE_MIB)?;
    let load = Load {
        namespace: NAMESPACE,
        op: "store",
        value_bytes: 4096,
        keys: effort.keys,
        dist: "sequential",
        depth: 64,
    };
    let began = now();
    server.fill(machine.client_core, load)?;
    metrics.note("fill_4k_per_s", effort.keys as f64 / began.elapsed().as_secs_f64(), "1/s");
    size(&server, metrics)?;
    idle(&server, metrics)?;
    restart(&mut server, effort, metrics)
}

fn size(server: &Server, metrics: &mut Metrics) -> anyhow::Result<()> {
    let entry_bytes = size_of::<Entry>() as f64;
    metrics.goal("index_bytes_per_key", entry_bytes, "B", Goal::AtMost(INDEX_BYTES_GOAL));
    let table = Index::with_bytes(1 << 20)?;
    metrics.note(
        "index_table_bytes_per_key_at_cap",
        table.bytes() as f64 / table.cap() as f64,
        "B",
    );
    let budget_bytes = server.arena_bytes() + server.index_bytes()?;
    let resident_bytes = server.process.resident_bytes()?;
    let beyond_mib = (resident_bytes as f64 - budget_bytes as f64) / f64::from(1 << 20);
    metrics.note("resident_bytes", resident_bytes as f64, "B");
    let goal = Goal::AtMost(RESIDENT_MIB_GOAL);
    metrics.goal("resident_beyond_arena_and_index", beyond_mib, "MiB", goal);
    Ok(())
}

fn idle(server: &Server, metrics: &mut Metrics) -> anyhow::Result<()> {
    // What the last load has left to do in the background is not idling.
    sleep(Duration::from_secs(1));
    let (began, before_s) = (now(), server.process.cpu_seconds()?);
    sleep(IDLE);
    let used_s = server.process.cpu_seconds()? - before_s;
    let percent = used_s / began.elapsed().as_secs_f64() * 100.0;
    metrics.goal("idle_core_percent", percent, "%", Goal::Below(IDLE_PERCENT_GOAL));
    Ok(())
}

/// From the start of the process to the first answer, behind SIGKILL and behind SIGTERM.
fn restart(server: &mut Server, effort: Effort, metrics: &mut Metrics) -> anyhow::Result<()> {
    let key = format!("key:{:012}", effort.keys / 2);
    let mut killed = Rate::new("restart_after_kill", "s");
    let mut stopped = Rate::new("restart_after_stop", "s");
    for _ in 0..effort.rounds {
        server.process.kill()?;
        killed.push(server.restart(NAMESPACE, key.as_bytes())?);
        server.process.stop()?;
        stopped.push(server.restart(NAMESPACE, key.as_bytes())?);
    }
    for times in [killed, stopped] {
        times.goal_in(metrics, Goal::AtMost(RESTART_S_GOAL));
    }
    Ok(())
}
