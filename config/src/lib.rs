//! Forebay's one TOML file: its types, its validation, its messages.
//!
//! Guarantees: a [`Config`] that came out of [`Config::parse`] can be started on the [`Machine`]
//! it was parsed for, as far as the text alone can tell (whether a device is there, is blank, or is
//! in use is found out when it is opened). Everything that is wrong is told at once, each as
//! `file:line: what is wrong; what to write instead`, and then there is no `Config` at all.
//!
//! The annotated files in `config/examples/` are the reference for every key.

#![forbid(unsafe_code)]

mod check;
mod problem;
mod read;
mod sections;
mod suggest;
pub mod units;

pub use problem::Problem;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Arena bytes that each core needs whatever its devices: 320 KiB of journal and packing buffers for
/// each of up to 64 shards, and the largest values on their way through.
pub const ARENA_CORE_BYTES: u64 = 32 << 20;
/// Arena bytes that each core needs for each command its queue on a device can hold.
pub const ARENA_COMMAND_BYTES: u64 = 64 << 10;
/// The smallest device, in bytes: one segment. The format asks for more and says so itself.
pub const DEVICE_BYTES_MIN: u64 = 64 << 20;
/// The longest path of a `[[listen]]` over shared memory, in bytes: a Unix socket's has 108, and the
/// reactor's number stands behind it.
pub const SHM_PATH_BYTES_MAX: usize = 100;
/// The mode of sockets for shared memory, unless the file says otherwise: this user only.
pub const SHM_MODE: u32 = 0o600;
/// The longest name of a namespace, in bytes.
pub const NAMESPACE_NAME_BYTES_MAX: usize = 48;
/// Names that a namespace cannot have, because the system's own namespaces carry them.
pub const RESERVED_NAMES: [&str; 2] = ["system", "checkpoints"];

/// What the file says, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[daemon]`.
    pub daemon: Daemon,
    /// `[[device]]`, at least one, in the order of the file.
    pub devices: Vec<Device>,
    /// `[[listen]]`, at least one.
    pub listeners: Vec<Listen>,
    /// `[[namespace]]`.
    pub namespaces: Vec<Namespace>,
    /// `[log]`.
    pub log: Log,
}

/// `[daemon]`: reactors and memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// One reactor is pinned to each; reactor i runs on `cores[i]`.
    pub cores: Vec<usize>,
    /// DMA memory of all reactors together, in bytes.
    pub arena_bytes: u64,
    /// Memory beside the arena that keeps values which are read often, of all reactors together, in bytes. 0:
    /// every retrieve goes to the device.
    pub dram_tier_bytes: u64,
    /// DRAM of the key index of all shards together, in bytes (32 a key): the hard cap.
    pub index_bytes: u64,
    /// A reactor sleeps after this long without work, in microseconds.
    pub idle_after_us: u32,
    /// The Unix socket that `forebay status` talks to.
    pub admin_socket: PathBuf,
    /// How long SIGTERM waits for commands in flight, in milliseconds.
    pub drain_timeout_ms: u32,
    /// Commands in flight on each reactor's queue on each device.
    pub queue_depth: u32,
    /// A connection that is silent for this long is closed, in milliseconds.
    pub keep_alive_ms: u32,
}

/// How a device is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// io_uring with `O_DIRECT` on a file or a block device.
    Uring,
    /// Memory that forgets everything at exit: for trying things out.
    Sim,
    /// The product's own NVMe driver, on a PCI function that is bound to vfio-pci.
    Vfio,
}

/// One `[[device]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Who drives it.
    pub driver: Driver,
    /// The file or block device; the PCI address (`0000:03:00.0`) for [`Driver::Vfio`]; empty for
    /// [`Driver::Sim`].
    pub path: PathBuf,
    /// Size in bytes of a file that does not exist yet, or of the simulated device.
    pub size_bytes: Option<u64>,
    /// Format it at start when it is blank. A device that holds anything is never formatted.
    pub format_if_blank: bool,
    /// For [`Driver::Vfio`].
    pub nvme: Nvme,
}

/// How an NVMe controller is driven ([`Driver::Vfio`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nvme {
    /// The namespace to use; the first active one without it.
    pub namespace: Option<u32>,
    /// A command that takes longer is aborted, in milliseconds.
    pub timeout_ms: u32,
    /// Use shadow doorbells where the controller offers them.
    pub shadow_doorbells: bool,
}

impl Default for Nvme {
    fn default() -> Self {
        Self { namespace: None, timeout_ms: 5000, shadow_doorbells: true }
    }
}

/// One `[[listen]]`: each reactor has a socket of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `transport = "tcp"`.
    Tcp {
        /// Where reactor 0 listens; reactor i listens on the port + i.
        address: SocketAddr,
        /// Clients try listeners of one transport in this order, the lowest first.
        preference: u16,
    },
    /// `transport = "rdma"`: RoCE v2 or InfiniBand.
    Rdma {
        /// As for TCP. The ports are RDMA's own: a TCP listener may have the same.
        address: SocketAddr,
        /// As for TCP.
        preference: u16,
        /// Receives that the connections of one reactor share on one device, 16 KiB each. Each connection takes at
        /// least 4 of them, and up to two for each command in flight as long as there are enough.
        receives: u16,
    },
    /// `transport = "shm"`: shared memory, for clients on this host.
    Shm {
        /// Reactor i has the Unix socket at this path with `.i` behind it.
        path: PathBuf,
        /// The mode of the sockets: who may connect.
        mode: u32,
    },
}

/// Where reactor `reactor` listens, if reactor 0 does at `address`. Port 0 (asked for by code only,
/// never by a file) stays 0.
#[must_use]
pub fn address_of(mut address: SocketAddr, reactor: u16) -> SocketAddr {
    if address.port() != 0 {
        address.set_port(address.port().saturating_add(reactor));
    }
    address
}

/// What a namespace promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// May evict and may acknowledge early.
    Cache,
    /// Never loses what it has acknowledged.
    Durable,
}

impl Class {
    /// The class's word in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Durable => "durable",
        }
    }
}

/// One `[[namespace]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// What clients call it.
    pub name: String,
    /// What it promises.
    pub class: Class,
    /// The most bytes its values may take, if there is a limit.
    pub quota_bytes: Option<u64>,
    /// Values expire this many seconds after they were stored, if at all.
    pub ttl_s: Option<u32>,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Only what failed.
    Error,
    /// And what looks wrong.
    Warn,
    /// And what an operator wants to know.
    Info,
    /// And what a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The level's word in the file, which is also `log`'s.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// How much.
    pub level: LogLevel,
    /// In which form.
    pub format: LogFormat,
}

/// What the text cannot say about the machine it is for; passed in, so that tests are the same
/// everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Cores are numbered from 0 to `cpus` - 1.
    pub cpus: usize,
}

impl Machine {
    /// The machine this runs on.
    #[must_use]
    pub fn this() -> Self {
        let present = std::fs::read_to_string("/sys/devices/system/cpu/present").ok();
        let last = present.as_deref().and_then(|list| {
            list.trim().rsplit([',', '-']).next().and_then(|number| number.parse::<usize>().ok())
        });
        let cpus = last.map_or_else(
            || std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            |last| last + 1,
        );
        Self { cpus }
    }
}

impl Config {
    /// Reads `text`, which `file` names in messages.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the file.
    pub fn parse(file: &str, text: &str, machine: &Machine) -> Result<Self, Vec<Problem>> {
        sections::parse(file, text, machine)
    }

    /// Reads the file at `path` for the machine this runs on.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the file; or that it cannot be read.
    pub fn load(path: &Path) -> Result<Self, Vec<Problem>> {
        let file = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&file, &text, &Machine::this()),
            Err(error) => Err(vec![Problem::of_file(
                &file,
                format!("cannot be read ({error})"),
                "give the path of a TOML file, such as config/examples/dev.toml",
            )]),
        }
    }

    /// What `forebayd --dev DIR` runs: one core, one 4 GiB file in `dir`, TCP on loopback.
    #[must_use]
    pub fn embedded(dir: &Path) -> Self {
        let namespace = |name: &str, class| Namespace {
            name: name.to_owned(),
            class,
            quota_bytes: None,
            ttl_s: None,
        };
        Self {
            daemon: Daemon {
                cores: vec![0],
                arena_bytes: 128 << 20,
                admin_socket: dir.join("admin.sock"),
                ..Daemon::default()
            },
            devices: vec![Device {
                driver: Driver::Uring,
                path: dir.join("forebay.img"),
                size_bytes: Some(4 << 30),
                format_if_blank: true,
                nvme: Nvme::default(),
            }],
            listeners: vec![Listen::Tcp {
                address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7400),
                preference: 0,
            }],
            namespaces: vec![
                namespace("default", Class::Durable),
                namespace("cache", Class::Cache),
            ],
            log: Log::default(),
        }
    }

    /// The smallest arena that this configuration's queues can work in, in bytes: every core needs
    /// [`ARENA_CORE_BYTES`], and [`ARENA_COMMAND_BYTES`] for each command on each device.
    #[must_use]
    pub fn arena_bytes_min(&self) -> u64 {
        let commands = self.devices.len() as u64 * u64::from(self.daemon.queue_depth);
        self.daemon.cores.len() as u64 * (ARENA_CORE_BYTES + commands * ARENA_COMMAND_BYTES)
    }
}

impl Default for Daemon {
    fn default() -> Self {
        Self {
            cores: vec![0],
            arena_bytes: 256 << 20,
            dram_tier_bytes: 0,
            index_bytes: 256 << 20,
            idle_after_us: 200,
            admin_socket: PathBuf::from("/run/forebay/admin.sock"),
            drain_timeout_ms: 10_000,
            queue_depth: 128,
            keep_alive_ms: 10_000,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: LogLevel::Info, format: LogFormat::Text }
    }
}
