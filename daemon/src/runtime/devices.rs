//! From the configuration's devices to an open pool.
//!
//! Guarantees: nothing is written unless all devices are open, locked and of one pool; a device is
//! formatted only if the configuration says so *and* it is blank, and then only all of them together.
//! "Blank": no superblock of ours, and nothing but zeros in the first and the last 4 MiB, where file
//! systems, partition tables and volume managers leave their signatures.

use forebay_config::{Config, Driver};
use forebay_nvme::sim::{SimConfig, SimDevice, Snapshot};
use forebay_nvme::uring::{self, UringDevice};
use forebay_nvme::{
    Arena, ArenaError, BLOCK_BYTES, BlockError, BlockQueue, Operation, Pool, Request,
};
use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use super::nvme::{self, Drive, Drives, NvmeError, OnClock};
use crate::reactor::Clock;
use crate::store::format::FormatError;
use crate::store::geometry::FormatOptions;
use crate::store::pool::{self, Identity};

/// Memory for reading superblocks before there is an arena, in bytes.
const MEMORY_BYTES: usize = 8 << 20;
/// Queue depth before there are reactors.
const DEPTH: u32 = 8;
/// How much of each end of a device has to be zero for it to be blank, in bytes.
const EDGE_BYTES: u64 = 4 << 20;
/// Bytes of one read while looking.
const LOOK_BYTES: usize = 1 << 20;

/// Why there is no pool to serve. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The device does not open, or gives no queue.
    #[error(transparent)]
    Open(#[from] uring::OpenError),
    /// Its content is not what it should be.
    #[error("{path}: {error}")]
    Pool {
        /// The device the error is about; the first one where it is about all.
        path: PathBuf,
        /// What is wrong.
        error: pool::OpenError,
    },
    /// It is not formatted, and must not be.
    #[error("{path} holds no pool; run `forebay format`, or write format_if_blank = true")]
    NotFormatted {
        /// The device.
        path: PathBuf,
    },
    /// It should be formatted, but something is on it.
    #[error(
        "{path} holds no pool but is not blank either, so it is not formatted at start; if nothing on it is needed, run `forebay format`"
    )]
    NotBlank {
        /// The device.
        path: PathBuf,
    },
    /// Some devices have a pool and some are blank.
    #[error(
        "{path} is blank, but other devices hold a pool: list exactly the devices of that pool, in their order"
    )]
    Mixed {
        /// The blank device.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("{path}: cannot be read: {error}; replace the device")]
    Read {
        /// The device.
        path: PathBuf,
        /// What it said.
        error: BlockError,
    },
    /// An NVMe drive of our own.
    #[error(transparent)]
    Nvme(#[from] NvmeError),
    /// No memory to begin with.
    #[error(transparent)]
    Memory(#[from] ArenaError),
    /// A simulated device lives in one thread.
    #[error("a device with driver = \"sim\" serves one core only: write cores = [0] in [daemon]")]
    SimCores,
    /// The system gives no random bytes.
    #[error("cannot read /dev/urandom: {0}; mount /dev")]
    Entropy(#[from] std::io::Error),
}

/// Why a device gives no queue.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The kernel gives no ring.
    #[error(transparent)]
    Uring(#[from] uring::OpenError),
    /// The controller, or the way to it.
    #[error(transparent)]
    Nvme(#[from] NvmeError),
}

impl From<QueueError> for DeviceError {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::Uring(error) => Self::Open(error),
            QueueError::Nvme(error) => Self::Nvme(error),
        }
    }
}

/// One device, as it goes to each reactor's thread.
#[derive(Clone)]
pub enum Media {
    /// A file or block device.
    Uring(UringDevice),
    /// A drive of our own.
    Nvme(Drive),
    /// A simulated device's content, and its size in blocks.
    Sim(Snapshot, u64),
}

impl fmt::Debug for Media {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uring(_) => "Uring",
            Self::Nvme(_) => "Nvme",
            Self::Sim(..) => "Sim",
        })
    }
}

impl Media {
    /// A queue for the calling thread, with `memory` registered.
    ///
    /// # Errors
    /// [`QueueError`].
    pub fn queue(&self, memory: &Pool, depth: u32) -> Result<Box<dyn BlockQueue>, QueueError> {
        Ok(match self {
            Self::Uring(device) => Box::new(device.queue(memory, depth)?),
            Self::Nvme(drive) => Box::new(nvme::queue(drive, memory, depth)?),
            Self::Sim(snapshot, blocks) => {
                let config = sim_config(*blocks, depth);
                Box::new(SimDevice::from_snapshot(config, snapshot).queue())
            }
        })
    }
}

impl Media {
    /// The drive, if it is one of our own.
    #[must_use]
    pub fn drive(&self) -> Option<&Drive> {
        match self {
            Self::Nvme(drive) => Some(drive),
            Self::Uring(_) | Self::Sim(..) => None,
        }
    }
}

fn sim_config(blocks: u64, depth: u32) -> SimConfig {
    SimConfig { blocks, depth, ..SimConfig::default() }
}

/// The devices of the configuration, open, and the pool on them.
#[derive(Debug)]
pub struct Devices {
    /// In the order of the pool.
    pub media: Vec<Media>,
    /// Keeps the NVMe drives among them; to be dropped behind their last queue.
    pub drives: Option<Arc<Drives>>,
    /// What all reactors know of it.
    pub pool: crate::store::Pool,
}

/// A device while the pool is being opened.
struct Opened {
    path: PathBuf,
    format_if_blank: bool,
    handle: Handle,
}

enum Handle {
    Uring(UringDevice),
    Nvme(Drive, Clock),
    Sim(SimDevice, u64),
}

impl Devices {
    /// Opens and locks the devices of `config`, formats them if that is right, and opens their pool.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn open(config: &Config, clock: Clock) -> Result<Self, DeviceError> {
        let memory = Arena::on_demand(MEMORY_BYTES)?.pool();
        let mut opener = Opener { config, clock, drives: None };
        let opened = config.devices.iter().map(|device| opener.open(device));
        let opened = opened.collect::<Result<Vec<_>, _>>()?;
        let mut queues = opened
            .iter()
            .map(|device| device.handle.queue(&memory))
            .collect::<Result<Vec<_>, QueueError>>()?;
        if needs_format(&opened, &mut queues, &memory)? {
            let identity = identity(opened.len(), clock.now().unix_s)?;
            let formatted = pool::format(&mut queues, &memory, &identity, FormatOptions::default());
            formatted.map_err(|error| of_device(&opened, error))?;
            log::info!("formatted {} blank device(s) as a new pool", opened.len());
        }
        let reactors = config.daemon.cores.len() as u32;
        let pool = pool::open(&mut queues, &memory, reactors);
        let pool = pool.map_err(|error| of_device(&opened, error))?;
        drop(queues);
        let media = opened.into_iter().map(|device| device.handle.into_media()).collect();
        Ok(Self { media, drives: opener.drives, pool })
    }
}

/// Opens one device after the other.
struct Opener<'a> {
    config: &'a Config,
    clock: Clock,
    drives: Option<Arc<Drives>>,
}

impl Opener<'_> {
    fn open(&mut self, device: &forebay_config::Device) -> Result<Opened, DeviceError> {
        let forebay_config::Device { driver, path, size_bytes, format_if_blank, nvme } =
            device.clone();
        let handle = match driver {
            Driver::Uring => Handle::Uring(UringDevice::open(&path, size_bytes)?),
            Driver::Vfio => {
                let drive = self.drives()?.open(&path.to_string_lossy(), &nvme)?;
                Handle::Nvme(drive, self.clock)
            }
            Driver::Sim if self.config.daemon.cores.len() > 1 => return Err(DeviceError::SimCores),
            Driver::Sim => {
                let blocks = size_bytes.unwrap_or(0) / BLOCK_BYTES as u64;
                Handle::Sim(SimDevice::new(sim_config(blocks, DEPTH)), blocks)
            }
        };
        let path = if driver == Driver::Sim { PathBuf::from("the simulated device") } else { path };
        Ok(Opened { path, format_if_blank, handle })
    }

    fn drives(&mut self) -> Result<Arc<Drives>, NvmeError> {
        if let Some(drives) = &self.drives {
            return Ok(Arc::clone(drives));
        }
        let drives = Arc::new(Drives::start(self.clock)?);
        Ok(Arc::clone(self.drives.insert(drives)))
    }
}

impl Handle {
    fn queue(&self, memory: &Pool) -> Result<Box<dyn BlockQueue>, QueueError> {
        Ok(match self {
            Self::Uring(device) => Box::new(device.queue(memory, DEPTH)?),
            Self::Nvme(drive, clock) => {
                Box::new(OnClock::new(nvme::queue(drive, memory, DEPTH)?, *clock))
            }
            Self::Sim(device, _) => Box::new(device.queue()),
        })
    }

    fn into_media(self) -> Media {
        match self {
            Self::Uring(device) => Media::Uring(device),
            Self::Nvme(drive, _) => Media::Nvme(drive),
            Self::Sim(device, blocks) => Media::Sim(device.snapshot(), blocks),
        }
    }
}

/// Puts the device's path before an error that names it by number.
fn of_device(opened: &[Opened], error: pool::OpenError) -> DeviceError {
    use pool::OpenError::{Device, NoQuorum, NotFormatted, Order, OtherPool, Shrunk};
    let device = match &error {
        NotFormatted { device }
        | NoQuorum { device, .. }
        | OtherPool { device }
        | Order { device, .. }
        | Shrunk { device, .. }
        | Device { device, .. } => *device,
        _ => 0,
    };
    let path = opened.get(device).map(|device| device.path.clone()).unwrap_or_default();
    DeviceError::Pool { path, error }
}

/// Are all devices blank, and is it right to format them?
fn needs_format(
    opened: &[Opened],
    queues: &mut [Box<dyn BlockQueue>],
    memory: &Pool,
) -> Result<bool, DeviceError> {
    let mut empty = Vec::new();
    for (number, (device, queue)) in opened.iter().zip(queues.iter_mut()).enumerate() {
        let copies = pool::read_copies(number, queue.as_mut(), memory);
        let copies = copies.map_err(|error| of_device(opened, error))?;
        if copies.quorum().err() == Some(FormatError::Magic) {
            empty.push((device, queue));
        }
    }
    let Some((first, _)) = empty.first() else { return Ok(false) };
    if empty.len() < opened.len() {
        return Err(DeviceError::Mixed { path: first.path.clone() });
    }
    for (device, queue) in empty {
        let path = || device.path.clone();
        if !device.format_if_blank {
            return Err(DeviceError::NotFormatted { path: path() });
        }
        let blank = is_blank(queue.as_mut(), memory);
        if !blank.map_err(|error| DeviceError::Read { path: path(), error })? {
            return Err(DeviceError::NotBlank { path: path() });
        }
    }
    Ok(true)
}

fn is_blank(queue: &mut dyn BlockQueue, memory: &Pool) -> Result<bool, BlockError> {
    const STEP: u64 = (LOOK_BYTES / BLOCK_BYTES) as u64;
    const EDGE: u64 = EDGE_BYTES / BLOCK_BYTES as u64;
    let blocks = queue.geometry().blocks;
    let looked_at = (0..EDGE.min(blocks)).chain(blocks.saturating_sub(EDGE)..blocks);
    for block in looked_at.step_by(STEP as usize) {
        if !is_zero(queue, memory, block, STEP.min(blocks - block) as u32)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Are these blocks all zero? Waits for the read: there is no reactor yet.
fn is_zero(
    queue: &mut dyn BlockQueue,
    memory: &Pool,
    block: u64,
    blocks: u32,
) -> Result<bool, BlockError> {
    let buffer = memory.alloc(LOOK_BYTES).ok_or(BlockError::Invalid)?;
    let request = Request { tag: 0, operation: Operation::Read { block, blocks, buffer } };
    queue.submit(request).map_err(|_| BlockError::Gone)?;
    let (mut completions, mut now_us) = (Vec::with_capacity(1), 0);
    while queue.poll(now_us, &mut completions) == 0 {
        // The clock of a simulated device; a real one goes by its own (`OnClock`).
        now_us += 1000;
        std::thread::yield_now();
    }
    let completion = completions.swap_remove(0);
    completion.result?;
    let buffer = completion.buffer.ok_or(BlockError::Read)?;
    Ok(buffer.as_ref()[..blocks as usize * BLOCK_BYTES].iter().all(|byte| *byte == 0))
}

fn identity(devices: usize, created_s: u64) -> Result<Identity, DeviceError> {
    let uuid = || *uuid::Uuid::new_v4().as_bytes();
    let mut hash_key = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut hash_key)?;
    let devices = (0..devices).map(|_| uuid()).collect();
    Ok(Identity { pool: uuid(), devices, hash_key, created_s })
}
