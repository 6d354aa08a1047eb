//! RDMA in the guest: soft-RoCE on a network device of its own, and what can happen to that.
//!
//! Guarantees: verbs are the kernel's own, down to the network device. On a machine without a wire that
//! device is a dummy, and both ends of each connection are in the guest; with one it is `eth1`, and the
//! other end may be in the machine at the other end of the wire. What breaks it: soft-RoCE computes in
//! software what network cards do by themselves, so nothing here is as fast as it would be there.

use super::machine::Machine;
use super::qemu::WIRE;
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::time::Duration;

/// What the kernel loads for it. It needs a CRC32 of its own before the device can be made.
const MODULES: &str = "crc32_generic dummy sch_netem sch_tbf ib_uverbs rdma_ucm rdma_rxe";
/// How long a command that speaks to the network may take.
const COMMAND: Duration = Duration::from_secs(60);

/// How many objects of each kind a process, or all of them, have on the RDMA device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RdmaObjects {
    /// Queue pairs.
    pub queue_pairs: usize,
    /// Completion queues.
    pub completion_queues: usize,
    /// Memory regions.
    pub memory_regions: usize,
    /// Protection domains.
    pub protection_domains: usize,
}

impl Machine<'_> {
    /// Brings RDMA up; the address under which this machine is reached by it.
    ///
    /// # Errors
    /// The guest has not what it takes.
    pub fn rdma_up(&self) -> anyhow::Result<Ipv4Addr> {
        let (netdev, address) = self.rdma_netdev();
        let make = match netdev {
            "dummy0" => "ip link add dummy0 type dummy &&",
            _ => "",
        };
        self.sh(&format!(
            "modprobe -a {MODULES} && {make} ip addr add {address}/24 dev {netdev} && \
             ip link set {netdev} up && rdma link add rxe0 type rxe netdev {netdev}"
        ))?;
        Ok(address)
    }

    fn rdma_netdev(&self) -> (&'static str, Ipv4Addr) {
        match &self.place().wire {
            None => ("dummy0", Ipv4Addr::new(10, 9, 0, 1)),
            Some(wire) => ("eth1", Ipv4Addr::new(10, 9, 0, wire.number)),
        }
    }

    /// What process `pid` has on the RDMA device; all processes without one.
    ///
    /// # Errors
    /// The guest does not say.
    pub fn rdma_objects(&self, pid: Option<u32>) -> anyhow::Result<RdmaObjects> {
        let count = |kind: &str| {
            let said = self.sh(&format!("rdma -j resource show {kind}"))?;
            let rows: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
            let rows = rows.as_array().with_context(|| format!("{said} is no list"))?;
            // What the kernel has for itself has no process.
            let counts = |row: &&Value| match pid {
                Some(pid) => row["pid"] == pid,
                None => row["pid"].is_u64(),
            };
            anyhow::Ok(rows.iter().filter(counts).count())
        };
        Ok(RdmaObjects {
            queue_pairs: count("qp")?,
            completion_queues: count("cq")?,
            memory_regions: count("mr")?,
            protection_domains: count("pd")?,
        })
    }

    /// Has what leaves the machine by that device suffer, as tc-netem(8) has it: `loss 1%`.
    ///
    /// # Errors
    /// The guest's `tc` refuses.
    pub fn netem(&self, how: &str) -> anyhow::Result<()> {
        let (netdev, _) = self.rdma_netdev();
        self.sh(&format!("tc qdisc replace dev {netdev} root netem {how}")).map(drop)
    }

    /// Keeps what leaves the machine by that device in a queue of 16 MiB that is as good as stopped. Unlike
    /// those that netem delays, these packets still hold on to who has sent them.
    ///
    /// # Errors
    /// The guest refuses.
    pub fn hold_packets(&self) -> anyhow::Result<()> {
        let (netdev, _) = self.rdma_netdev();
        let how = "tbf rate 8bit burst 2kb limit 16mb";
        self.sh(&format!("tc qdisc replace dev {netdev} root {how}")).map(drop)
    }

    /// How many packets netem has dropped, and how many left, so far.
    ///
    /// # Errors
    /// There is no netem.
    pub fn netem_counts(&self) -> anyhow::Result<(u64, u64)> {
        let (netdev, _) = self.rdma_netdev();
        let said = self.sh(&format!("tc -j -s qdisc show dev {netdev}"))?;
        let shown: Value = serde_json::from_str(&said)?;
        let count =
            |what: &str| shown[0][what].as_u64().with_context(|| format!("no {what} in {said}"));
        Ok((count("drops")?, count("packets")?))
    }

    /// The network is good again.
    ///
    /// # Errors
    /// It was not bad.
    pub fn network_is_good(&self) -> anyhow::Result<()> {
        let (netdev, _) = self.rdma_netdev();
        self.sh(&format!("tc qdisc del dev {netdev} root")).map(drop)
    }

    /// Takes the interface down, or brings it up.
    ///
    /// # Errors
    /// The guest refuses.
    pub fn set_interface(&self, up: bool) -> anyhow::Result<()> {
        let (netdev, _) = self.rdma_netdev();
        let how = if up { "up" } else { "down" };
        let said = self.run(&format!("ip link set {netdev} {how}"), COMMAND)?;
        ensure!(said.status == 0, "{netdev} does not go {how}: {}", said.stderr);
        Ok(())
    }

    /// Pulls the plug of the wire, or puts it back: nobody in the guest does it.
    ///
    /// # Errors
    /// There is no wire.
    pub fn set_plugged(&self, plugged: bool) -> anyhow::Result<()> {
        self.qmp("set_link", &json!({ "name": WIRE, "up": plugged })).map(drop)
    }
}
