//! `forebayd` in the guest.

use super::clock::wait_until;
use super::machine::{Machine, Process};
use anyhow::{Context as _, bail, ensure};
use forebay_fabric::client::{Client, ClientConfig, Pipeline};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// The first port by RDMA: one for each reactor.
pub const RDMA_PORT: u16 = 7500;
/// Which of the daemon's listeners that is: the one by TCP is the first.
const RDMA_LISTENER: usize = 1;
/// How long a start or an end may take; a recovery in the guest is slow.
const PATIENCE: Duration = Duration::from_secs(120);
/// The deadline of an operation: longer than a driver's timeout, abort and reset together.
const OPERATION_US: u32 = 60_000_000;

/// One `[[device]]` of its configuration.
#[derive(Clone, Debug)]
pub enum DeviceLine {
    /// A block device of the guest's kernel.
    Uring(String),
    /// A PCI address: the daemon drives the controller itself.
    Vfio(String),
}

impl DeviceLine {
    fn to_toml(&self, timeout_ms: Option<u32>) -> String {
        let (which, more) = match self {
            Self::Uring(path) => (format!("driver = \"uring\"\npath = \"{path}\""), None),
            Self::Vfio(pci) => (format!("driver = \"vfio\"\npci = \"{pci}\""), timeout_ms),
        };
        let more = more.map(|ms| format!("timeout_ms = {ms}\n")).unwrap_or_default();
        format!("[[device]]\n{which}\nformat_if_blank = true\n{more}")
    }
}

/// How a daemon is configured.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    name: String,
    devices: Vec<DeviceLine>,
    reactors: u16,
    timeout_ms: Option<u32>,
    rdma: Option<Ipv4Addr>,
    setup: String,
    wrapper: String,
}

impl DaemonOptions {
    /// A daemon with one reactor. Its name is that of its files.
    #[must_use]
    pub fn new(name: &str, devices: impl IntoIterator<Item = DeviceLine>) -> Self {
        let (name, devices) = (name.to_owned(), devices.into_iter().collect());
        let (setup, wrapper) = (String::new(), String::new());
        Self { name, devices, reactors: 1, timeout_ms: None, rdma: None, setup, wrapper }
    }

    /// With so many reactors, each on a core of its own.
    #[must_use]
    pub fn reactors(mut self, reactors: u16) -> Self {
        self.reactors = reactors;
        self
    }

    /// With so much time for a command of a drive that it drives itself.
    #[must_use]
    pub fn timeout_ms(mut self, timeout_ms: u32) -> Self {
        self.timeout_ms = Some(timeout_ms);
        self
    }

    /// Listening by RDMA, too, at [`RDMA_PORT`] of this address and the ports behind it.
    #[must_use]
    pub fn rdma(mut self, address: Ipv4Addr) -> Self {
        self.rdma = Some(address);
        self
    }

    /// With a shell command before it, like `ulimit -l 64`.
    #[must_use]
    pub fn behind(mut self, command: &str) -> Self {
        self.setup = format!("{command} &&");
        self
    }

    /// Run by another command, like `setpriv --bounding-set=-ipc_lock`.
    #[must_use]
    pub fn run_by(mut self, command: &str) -> Self {
        command.clone_into(&mut self.wrapper);
        self
    }

    fn to_toml(&self, port: u16) -> String {
        let cores: Vec<_> = (0..self.reactors).collect();
        let devices: String =
            self.devices.iter().map(|device| device.to_toml(self.timeout_ms)).collect();
        let listen = |address| {
            format!("[[listen]]\ntransport = \"rdma\"\naddress = \"{address}:{RDMA_PORT}\"\n")
        };
        let rdma = self.rdma.map(listen).unwrap_or_default();
        format!(
            "[daemon]\ncores = {cores:?}\narena = \"128MiB\"\nindex = \"16MiB\"\n\
             admin_socket = \"/run/{}.sock\"\n{devices}\
             [[listen]]\ntransport = \"tcp\"\naddress = \"0.0.0.0:{port}\"\n{rdma}\
             [[namespace]]\nname = \"default\"\nclass = \"durable\"\n\
             [log]\nlevel = \"debug\"\n",
            self.name
        )
    }
}

/// A daemon that serves.
#[derive(Debug)]
pub struct Daemon<'m, 'p> {
    process: Process<'m, 'p>,
    address: SocketAddr,
}

impl<'m, 'p> Daemon<'m, 'p> {
    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// It does not: with what it said.
    pub fn start(machine: &'m Machine<'p>, options: &DaemonOptions) -> anyhow::Result<Self> {
        let process = spawn(machine, options)?;
        wait_until("the daemon", PATIENCE, || {
            if let Some(ended) = process.ended()? {
                bail!("it ended with {}:\n{}", ended.status, process.log());
            }
            Ok(process.log().contains("ready: ").then_some(()))
        })
        .with_context(|| format!("it said:\n{}", process.log()))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, machine.port()));
        Ok(Self { process, address })
    }

    /// Starts one that has to refuse; the one line that says why.
    ///
    /// # Errors
    /// It serves, or says nothing, or more than one thing.
    pub fn refused(machine: &Machine<'_>, options: &DaemonOptions) -> anyhow::Result<String> {
        let process = spawn(machine, options)?;
        let status = process.wait(PATIENCE)?;
        let log = process.log();
        ensure!(status == 1, "it ended with {status}:\n{log}");
        let mut said = log.lines().filter_map(|line| line.strip_prefix("forebayd: "));
        match (said.next(), said.next()) {
            (Some(said), None) => Ok(said.to_owned()),
            _ => bail!("not one line that says why:\n{log}"),
        }
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> &Process<'m, 'p> {
        &self.process
    }

    fn client_config(&self) -> ClientConfig {
        ClientConfig {
            timeout_us: OPERATION_US,
            keep_alive_ms: 60_000,
            connect_timeout_ms: 60_000,
            ..ClientConfig::new(vec![self.address])
        }
    }

    /// A client on this host.
    ///
    /// # Errors
    /// It does not answer.
    pub fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(self.client_config())?)
    }

    /// What each reactor says of itself.
    ///
    /// # Errors
    /// It does not answer.
    pub fn reports(&self) -> anyhow::Result<Vec<Value>> {
        let mut client = self.client()?;
        let reactors = 0..client.pipeline().reactors();
        reactors.map(|reactor| Ok(serde_json::from_str(&client.stats(reactor)?)?)).collect()
    }

    /// Over all reactors, a count of what has come by RDMA, like `connections_open`.
    ///
    /// # Errors
    /// It does not answer, or counts no such thing.
    pub fn rdma_count(&self, what: &str) -> anyhow::Result<u64> {
        let of = |report: &Value| report["listeners"][RDMA_LISTENER][what].as_u64();
        let counts: Option<Vec<u64>> = self.reports()?.iter().map(of).collect();
        Ok(counts.with_context(|| format!("no count of {what}"))?.iter().sum())
    }

    /// Bytes of the arena that nothing uses, of all reactors.
    ///
    /// # Errors
    /// It does not answer.
    pub fn arena_free_bytes(&self) -> anyhow::Result<u64> {
        let of = |report: &Value| report["memory_free_bytes"].as_u64();
        let free: Option<Vec<u64>> = self.reports()?.iter().map(of).collect();
        Ok(free.context("no memory_free_bytes")?.iter().sum())
    }

    /// A client with many commands in flight.
    ///
    /// # Errors
    /// It does not answer.
    pub fn pipeline(&self) -> anyhow::Result<Pipeline> {
        Ok(Pipeline::connect(self.client_config())?)
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// It has ended before.
    pub fn kill(self) -> anyhow::Result<()> {
        self.process.kill()
    }

    /// SIGTERM; it has to end well.
    ///
    /// # Errors
    /// It does not.
    pub fn stop(self) -> anyhow::Result<()> {
        self.process.signal("TERM")?;
        let status = self.process.wait(PATIENCE)?;
        ensure!(status == 0, "it ended with {status}:\n{}", self.process.log());
        Ok(())
    }
}

fn spawn<'m, 'p>(
    machine: &'m Machine<'p>,
    options: &DaemonOptions,
) -> anyhow::Result<Process<'m, 'p>> {
    let DaemonOptions { name, setup, wrapper, .. } = options;
    let config = options.to_toml(machine.port());
    std::fs::write(machine.place().share().join(format!("{name}.toml")), config)?;
    let program = machine.place().binary("forebayd");
    // Whatever it is run by becomes the daemon itself.
    let program = program.display();
    let script = format!("{setup} exec {wrapper} {program} --config /vm/{name}.toml");
    machine.spawn(name, &script)
}
