//! Retrieves by RDMA in a virtual machine, beside `ib_write_bw` over the same soft-RoCE device.
//!
//! Both ends of either are in one guest of two cores. The daemon has a reactor on each, as it is installed;
//! perftest's server is on the first, and who asks is on the second. What is behind the daemon is a drive of its
//! own, whose bytes come by DMA: no processor of the guest's copies them.
//!
//! Soft-RoCE is its core's work: it copies and checksums each packet of both sides on the core that has posted
//! it. So perftest works on one core and leaves the other idle, and a daemon of one reactor, which is measured
//! beside, does the same, but has a CRC32C over each value to compute there, with instructions that QEMU emulates
//! bit by bit: 15 % of what that core does.

use crate::Effort;
use crate::guest::program_folder;
use anyhow::{Context as _, bail};
use forebay_tests::measure::{Metrics, Rate, target};
use forebay_tests::vm::{
    Daemon, DaemonOptions, DeviceLine, Drive, Machine, Place, Prepared, RDMA_PORT,
};
use serde_json::Value;
use std::net::Ipv4Addr;
use std::time::Duration;

/// Bytes of a value, and of perftest's messages.
const BYTES: u64 = 1 << 20;
/// Part of its bandwidth that is hoped for.
const GOAL: f64 = 0.8;
/// So many messages a second make a measurement of about the same length here.
const MESSAGES_PER_S: u32 = 20;
const DRIVE_BYTES: u64 = 512 << 20;
/// As many retrieves in flight as the figure is not limited by.
const DEPTH: u32 = 8;

pub(crate) fn measure(effort: Effort, metrics: &mut Metrics) -> anyhow::Result<()> {
    let agent = target()?.join(program_folder()?).join("vm-guest");
    let Some(prepared) = Prepared::find(&agent)? else { bail!("run `make bench-vm`") };
    let drive = Drive::file(DRIVE_BYTES).lba_bytes(4096);
    let place = Place::new(&prepared, "bench-rdma")?.drive(drive)?;
    let machine = place.boot()?;
    let address = machine.rdma_up()?;
    let guest = Guest { machine: &machine, address, seconds: effort.seconds };
    let device = DeviceLine::Vfio(machine.bind_vfio(0)?);
    let mut theirs = Rate::new("vm_ib_write_bw_1m_bytes_per_s", "B/s");
    let mut ours = [
        Row::new("vm_rdma_retrieve_1m", 2, "--region", GOAL),
        Row::new("vm_rdma_retrieve_1m_copied", 2, "", 0.0),
        Row::new("vm_rdma_retrieve_1m_one_reactor", 1, "--region", 0.0),
    ];
    for round in 0..effort.rounds {
        theirs.push(guest.ib_write_bw().with_context(|| format!("round {round}"))?);
        for row in &mut ours {
            let options = DaemonOptions::new("daemon", [device.clone()]);
            let options = options.rdma(address).reactors(row.reactors);
            let daemon = Daemon::start(&machine, &options)?;
            if round == 0 {
                guest.forebay("--op store --ops 1 --warmup 0 --prefill")?;
            }
            row.rate.push(guest.retrieve(row.how)?);
            daemon.stop()?;
        }
    }
    for row in &ours {
        metrics.ratio(&format!("{}_vs_ib_write_bw", row.name), &row.rate, &theirs, row.goal);
    }
    Ok(())
}

/// One way to retrieve.
struct Row {
    name: &'static str,
    reactors: u16,
    /// For `forebay perf`: where the value goes.
    how: &'static str,
    /// Part of perftest's bandwidth that is hoped for.
    goal: f64,
    rate: Rate,
}

impl Row {
    fn new(name: &'static str, reactors: u16, how: &'static str, goal: f64) -> Self {
        let rate = Rate::new(&format!("{name}_bytes_per_s"), "B/s");
        Self { name, reactors, how, goal, rate }
    }
}

struct Guest<'a> {
    machine: &'a Machine<'a>,
    address: Ipv4Addr,
    seconds: u32,
}

impl Guest<'_> {
    fn forebay(&self, arguments: &str) -> anyhow::Result<Value> {
        let program = self.machine.place().binary("forebay");
        let server = format!("rdma:{}:{RDMA_PORT}", self.address);
        let sizes = format!("--value-size {BYTES} --keys 32 --depth {DEPTH}");
        let said = self.machine.sh(&format!(
            "taskset -c 1 {} --server {server} -o json perf {sizes} {arguments}",
            program.display()
        ))?;
        serde_json::from_str(&said).with_context(|| format!("forebay perf said {said:?}"))
    }

    /// Bytes per second that `forebay perf` retrieves; with `--region`, into memory of its own, and otherwise
    /// copied out of memory that the client lends.
    fn retrieve(&self, how: &str) -> anyhow::Result<f64> {
        let seconds = self.seconds;
        let work = format!("--op retrieve {how} --warmup 1 --duration {seconds}");
        let said = self.forebay(&work)?;
        said["bytes_per_s"].as_f64().with_context(|| format!("no rate in {said}"))
    }

    /// Bytes per second that perftest writes.
    fn ib_write_bw(&self) -> anyhow::Result<f64> {
        // By a count: with a duration it leaves out seconds at both ends, and finds nothing here.
        let count = MESSAGES_PER_S * self.seconds;
        let measure = format!("ib_write_bw -F -x 1 -s {BYTES} -t {DEPTH} -n {count}");
        let server = self.machine.spawn("ib_write_bw", &format!("exec taskset -c 0 {measure}"))?;
        // It listens at once, but the guest is slow to start it.
        let said = self.machine.sh(&format!("sleep 2; taskset -c 1 {measure} {}", self.address))?;
        server.wait(Duration::from_secs(60))?;
        average(&said).with_context(|| format!("ib_write_bw said {said:?}"))
    }
}

/// From the table's one line: bytes, iterations, peak, average in MiB/s, messages.
fn average(said: &str) -> Option<f64> {
    let numbers = |line: &str| -> Option<Vec<f64>> {
        line.split_whitespace().map(|word| word.parse().ok()).collect()
    };
    let line = said.lines().filter_map(numbers).find(|numbers| numbers.len() == 5)?;
    (line[0] == BYTES as f64).then_some(line[3] * (1 << 20) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_of_perftest_is_read() {
        let said = " #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]\n \
                    1048576    1000             0.00               101.50\t\t   0.000102\n---\n";
        assert_eq!(average(said), Some(101.5 * 1_048_576.0));
        assert_eq!(average("nothing"), None);
    }
}
