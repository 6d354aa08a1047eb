//! What a retrieve costs the server, counted: user-space instructions from the capsule's arrival to the
//! posted response, over RDMA and over TCP.
//!
//! The reactor of production, its service and its store serve one client in the same thread. All that
//! happens inside of the reactor's ticks counts, the bytes' checksum with it; the client, the moving of the
//! bytes between drive and memory, and the network card do not: they do their work between two ticks.
//! A round is as many retrieves as are in flight: one tick takes them in and asks the device, the next
//! one finds what it has done and answers; what is in the DRAM tier is answered by the first. Idle ticks are not in it. N retrieves are taken from 2 N, so
//! that start and warm-up fall out.

mod client;

use crate::Effort;
use crate::machine::{Machine, free_address};
use anyhow::Context as _;
use clap::{Args, ValueEnum};
use client::{Client, PeerClient, TcpClient};
use forebay_config::Listen;
use forebay_fabric::pdu::Endpoint;
use forebay_fabric::rdma::{ProviderError, RdmaConfig, RdmaTransport};
use forebay_fabric::server::ServerConfig;
use forebay_fabric::transport::Transport;
use forebay_nvme::emulated::{EmulatedConfig, NamespaceConfig, Times};
use forebay_nvme::pcie::Options;
use forebay_nvme::{Arena, BLOCK_BYTES, BlockQueue, Buffer, Pool};
use forebay_tests::card::card;
use forebay_tests::drum::Drum;
use forebay_tests::measure::{Callgrind, Counts, Goal, Metrics};
use forebay_tests::pcie::SteppedQueue;
use forebay_tests::serving::reactor;
use forebayd::reactor::{Now, Reactor};
use forebayd::runtime::listening::{Bound, Listening};
use std::path::Path;

/// Instructions of a retrieve of 4 KiB, with 32 in flight.
const RDMA_GOAL: f64 = 2500.0;
const TCP_GOAL: f64 = 5000.0;
/// Rounds that are counted; twice as many are done in the second run.
const ROUNDS: u32 = 64;
const DEVICE_BYTES: usize = 768 << 20;
const ARENA_BYTES: usize = 64 << 20;
/// Time passes by so much in each tick, in microseconds.
const TICK_US: u64 = 10;
/// Ticks after which the client gives up waiting.
const PATIENCE: u32 = 100_000;

/// How the capsules come and the values leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Over {
    /// Verbs, whose card does nothing by itself.
    Rdma,
    /// Real sockets on loopback.
    Tcp,
}

/// Where the values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum On {
    /// A device in memory, whose queue does next to nothing.
    Drum,
    /// The DRAM tier, before the same.
    Tier,
    /// An emulated NVMe controller, behind the driver of production.
    Nvme,
}

/// Retrieves of 4 KiB, all alike.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Work {
    #[arg(long)]
    over: Over,
    #[arg(long)]
    on: On,
    /// How many at a time
    #[arg(long)]
    depth: u16,
    /// How often so many
    #[arg(long)]
    rounds: u32,
}

const RDMA: Work = Work { over: Over::Rdma, on: On::Drum, depth: 32, rounds: ROUNDS };
const TCP: Work = Work { over: Over::Tcp, ..RDMA };

const WORKS: [(&str, Work, Goal); 9] = [
    ("rdma_tier_retrieve_4k_qd32", Work { on: On::Tier, ..RDMA }, Goal::AtMost(RDMA_GOAL)),
    ("rdma_tier_retrieve_4k_qd1", Work { on: On::Tier, depth: 1, ..RDMA }, Goal::None),
    ("tcp_tier_retrieve_4k_qd32", Work { on: On::Tier, ..TCP }, Goal::AtMost(TCP_GOAL)),
    ("rdma_retrieve_4k_qd32", RDMA, Goal::None),
    ("rdma_retrieve_4k_qd1", Work { depth: 1, ..RDMA }, Goal::None),
    ("rdma_nvme_retrieve_4k_qd32", Work { on: On::Nvme, ..RDMA }, Goal::None),
    ("rdma_nvme_retrieve_4k_qd1", Work { on: On::Nvme, depth: 1, ..RDMA }, Goal::None),
    ("tcp_retrieve_4k_qd32", TCP, Goal::AtMost(TCP_GOAL)),
    ("tcp_retrieve_4k_qd1", Work { depth: 1, ..TCP }, Goal::None),
];

pub(crate) fn measure(_: &Machine, _: Effort, metrics: &mut Metrics) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("a folder for what valgrind writes")?;
    let file = folder.path().join("callgrind.out");
    let each = |work: Work, functions, of: fn(&Counts) -> u64| -> anyhow::Result<f64> {
        let once = counts(work, functions, &file)?;
        let twice = counts(Work { rounds: 2 * ROUNDS, ..work }, functions, &file)?;
        let retrieves = f64::from(ROUNDS) * f64::from(work.depth);
        Ok((of(&twice) as f64 - of(&once) as f64) / retrieves)
    };
    for (name, work, goal) in WORKS {
        let instructions = each(work, TICK, |counts| counts.instructions)?;
        metrics.goal(&format!("instructions_{name}"), instructions, "", goal);
        if work.over == Over::Tcp {
            let calls = each(work, TICK, |counts| counts.system_calls)?;
            metrics.note(&format!("syscalls_{name}"), calls, "");
        }
    }
    let (name, work, _) = WORKS[0];
    let own = each(work, TICK_WITHOUT_CARD, |counts| counts.instructions)?;
    metrics.note(&format!("instructions_{name}_without_card"), own, "");
    Ok(())
}

/// What is counted.
const TICK: &[&str] = &["counted_tick"];
/// The same without what the card does in place of libibverbs and its hardware.
const TICK_WITHOUT_CARD: &[&str] = &["counted_tick", "card::Card as"];

/// Has valgrind run this program, and look at the ticks.
fn counts(work: Work, functions: &[&str], file: &Path) -> anyhow::Result<Counts> {
    let Work { over, on, depth, rounds } = work;
    let name = |value: Option<clap::builder::PossibleValue>| {
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    };
    let arguments = [
        ("--over", name(over.to_possible_value())),
        ("--on", name(on.to_possible_value())),
        ("--depth", depth.to_string()),
        ("--rounds", rounds.to_string()),
    ];
    let mut all = vec!["work".to_owned()];
    all.extend(arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
    Callgrind { functions, arguments: all, file }.run()
}

impl Work {
    /// Does it.
    ///
    /// # Errors
    /// The system has no port for a listener.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.over {
            Over::Rdma => {
                let (card, peer) = card();
                let transport = RdmaTransport::new(card, RdmaConfig::default());
                let endpoint = Endpoint::tcp(0, ([127, 0, 0, 1], 1).into());
                self.serve(|_, _| Ok(transport), endpoint, || Ok(PeerClient::new(peer)))
            }
            Over::Tcp => {
                let listen = Listen::Tcp { address: free_address()?, preference: 0 };
                let bound = Listening::bind(&listen, 0)?;
                let address = bound.shown.parse()?;
                let Bound { listening, endpoint, .. } = bound;
                let serve = |config: &ServerConfig, memory: &Pool| listening.serve(config, memory);
                self.serve(serve, endpoint, || TcpClient::connect(address))
            }
        }
    }

    fn serve<T: Transport<Buffer = Buffer>, C: Client>(
        self,
        transport: impl FnOnce(&ServerConfig, &Pool) -> Result<T, ProviderError>,
        endpoint: Endpoint,
        connect: impl FnOnce() -> anyhow::Result<C>,
    ) -> anyhow::Result<()> {
        let (device, memory) = Device::new(self.on)?;
        // The emulated controller has lived for a while already.
        let mut now = Now { us: 1_000_000_000, unix_s: 1_700_000_000 };
        let clock = &mut || {
            now.us += TICK_US;
            now
        };
        let transport = |config: &ServerConfig| transport(config, &memory).expect("a transport");
        let tier = match self.on {
            On::Tier => Some(Arena::on_demand(TIER_BYTES)?.pool()),
            On::Drum | On::Nvme => None,
        };
        let reactor = reactor(device.queue(), &memory, tier, clock, transport, endpoint);
        device.stop();
        let mut rig = Rig { reactor, device, client: connect()?, now };
        rig.greet();
        rig.store_all(self.depth);
        (0..self.rounds).for_each(|_| rig.round(self.depth));
        Ok(())
    }
}

/// A device that works between two ticks.
enum Device {
    Drum(Drum),
    Nvme(SteppedQueue),
}

impl Device {
    fn new(on: On) -> anyhow::Result<(Self, Pool)> {
        Ok(match on {
            On::Drum | On::Tier => {
                (Self::Drum(Drum::new(DEVICE_BYTES)), Arena::on_demand(ARENA_BYTES)?.pool())
            }
            On::Nvme => {
                let blocks = (DEVICE_BYTES / BLOCK_BYTES) as u64;
                let namespaces = vec![NamespaceConfig::new(1, blocks, 12)];
                let times = Times::none();
                let config = EmulatedConfig { times, namespaces, ..EmulatedConfig::default() };
                let queue = SteppedQueue::open(config, Options::default(), 256);
                let pool = queue.pool();
                (Self::Nvme(queue), pool)
            }
        })
    }

    fn queue(&self) -> Box<dyn BlockQueue> {
        match self {
            Self::Drum(drum) => Box::new(drum.queue()),
            Self::Nvme(queue) => Box::new(queue.clone()),
        }
    }

    /// From now on it works only when it is told to.
    fn stop(&self) {
        match self {
            Self::Drum(drum) => drum.stop(),
            Self::Nvme(queue) => queue.stop(),
        }
    }

    fn work(&self, now_us: u64) {
        match self {
            Self::Drum(drum) => drum.work(),
            Self::Nvme(queue) => queue.step(now_us),
        }
    }
}

/// What the DRAM tier has.
const TIER_BYTES: usize = 16 << 20;

struct Rig<T: Transport<Buffer = Buffer>, C> {
    reactor: Reactor<T>,
    device: Device,
    client: C,
    now: Now,
}

impl<T: Transport<Buffer = Buffer>, C: Client> Rig<T, C> {
    fn tick(&mut self) {
        self.now.us += TICK_US;
        counted_tick(&mut self.reactor, self.now);
    }

    /// Lets everybody work until `count` more answers have come.
    fn until(&mut self, count: usize) {
        let mut come = 0;
        for _ in 0..PATIENCE {
            self.tick();
            self.device.work(self.now.us);
            come += self.client.take();
            if come >= count {
                assert_eq!(come, count, "more answers than questions");
                return;
            }
        }
        panic!("{come} of {count} answers have come");
    }

    fn greet(&mut self) {
        for _ in 0..PATIENCE {
            if self.client.is_connected() {
                self.client.greet();
                return self.until(2);
            }
            self.tick();
        }
        panic!("the server does not accept");
    }

    fn store_all(&mut self, depth: u16) {
        for cid in 0..depth {
            self.client.store(cid);
            self.until(1);
        }
    }

    fn round(&mut self, depth: u16) {
        (0..depth).for_each(|cid| self.client.retrieve(cid));
        self.until(depth.into());
    }
}

#[inline(never)]
fn counted_tick<T: Transport<Buffer = Buffer>>(reactor: &mut Reactor<T>, now: Now) {
    reactor.tick(now);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiny_runs_end() {
        for (_, work, _) in WORKS {
            Work { rounds: 2, ..work }.run().unwrap();
        }
    }
}
