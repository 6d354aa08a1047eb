//! NVMe drives that this process drives itself (`driver = "vfio"`).
//!
//! Guarantees: one IOMMU context and one keeper for all of them, so that the arena is mapped once; when this is
//! dropped, behind the last queue, every controller is shut down in order.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;
use forebay_config::Nvme;
use forebay_nvme::pci::{AddressError, PciAddress};
use forebay_nvme::pcie::{self, AdminError, AdminReply, Keeper, KeeperError, Queue};
use forebay_nvme::spec::log::SmartLog;
use forebay_nvme::vfio::{self, VfioDevice, VfioIommu, VfioRegisters};
use forebay_nvme::{BlockQueue, Completion, Geometry, Pool, Request};
use serde_json::{Value, json};

use crate::reactor::Clock;

/// What an ordinary reset takes, at most, in microseconds.
const RESET_US: u64 = 3_000_000;

/// A drive behind VFIO.
pub type Drive = pcie::Drive<VfioRegisters>;

/// Why a drive cannot be driven. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum NvmeError {
    /// It is no PCI address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// VFIO does not give it.
    #[error(transparent)]
    Open(#[from] vfio::OpenError),
    /// The controller does not come up.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// It gives no queue.
    #[error("{drive}: {source}")]
    Queue {
        /// Its PCI address.
        drive: String,
        /// What it said.
        source: AdminError,
    },
}

/// The process's drives.
#[derive(Debug)]
pub struct Drives {
    iommu: Arc<VfioIommu>,
    keeper: Keeper<VfioDevice>,
}

impl Drives {
    /// None yet.
    ///
    /// # Errors
    /// The system gives no thread or descriptor.
    pub fn start(clock: Clock) -> Result<Self, NvmeError> {
        let keeper = Keeper::start(move || clock.now().us)?;
        Ok(Self { iommu: VfioIommu::new(), keeper })
    }

    /// Opens the drive at a PCI address, and brings it up.
    ///
    /// # Errors
    /// [`NvmeError`].
    pub fn open(&self, address: &str, options: &Nvme) -> Result<Drive, NvmeError> {
        let address: PciAddress = address.parse()?;
        let device = VfioDevice::open(&self.iommu, address)?;
        Ok(self.keeper.adopt(device, driver_options(options))?)
    }
}

fn driver_options(from: &Nvme) -> pcie::Options {
    let Nvme { namespace, timeout_ms, shadow_doorbells } = *from;
    let (timeout_us, defaults) = (u64::from(timeout_ms) * 1000, pcie::Options::default());
    pcie::Options {
        command_timeout_us: timeout_us,
        // A command gets its time on the first try, on a second one, and behind a reset, which takes its own.
        request_timeout_us: 4 * timeout_us + defaults.abort_timeout_us + RESET_US,
        namespace,
        shadow_doorbells,
        ..defaults
    }
}

/// A queue on `drive` for the calling thread, ready for requests.
///
/// # Errors
/// [`NvmeError::Queue`].
pub fn queue(drive: &Drive, memory: &Pool, depth: u32) -> Result<Queue<VfioRegisters>, NvmeError> {
    let refused = |source| NvmeError::Queue { drive: drive.name().to_owned(), source };
    drive.open_queue(memory, depth).map_err(refused)
}

/// The drives' states and health, as the admin socket tells it. All are asked at once; the health of those is
/// missing that do not answer within `timeout`.
#[must_use]
pub fn report(drives: &[Drive], timeout: Duration) -> Value {
    let asked: Vec<_> = drives.iter().map(|drive| (drive, drive.ask_smart())).collect();
    let over = crossbeam_channel::after(timeout);
    let health = |answer: Receiver<Result<AdminReply, AdminError>>| {
        let answer = crossbeam_channel::select! {
            recv(answer) -> answer => answer.ok()?.ok()?,
            // The others are looked at all the same: they may have answered.
            recv(over) -> _ => answer.try_recv().ok()?.ok()?,
        };
        pcie::smart_of(&answer)
    };
    asked.into_iter().map(|(drive, answer)| about(drive, health(answer))).collect()
}

fn about(drive: &Drive, health: Option<SmartLog>) -> Value {
    let facts = drive.facts();
    json!({
        "pci": drive.name(),
        "state": format!("{:?}", drive.state()).to_lowercase(),
        "model": facts.model,
        "serial": facts.serial,
        "firmware": facts.firmware,
        "namespace": facts.namespace,
        "blocks": facts.blocks,
        "lba_bytes": facts.lba_bytes,
        "volatile_write_cache": facts.volatile_write_cache,
        "atomic_write_bytes": facts.atomic_write_bytes,
        "queues": facts.queues,
        "critical_warning": health.map(|health| health.critical_warning),
        "temperature_c": health.and_then(|health| health.celsius()),
        "percentage_used": health.map(|health| health.percentage_used),
        "available_spare": health.map(|health| health.available_spare),
        "media_errors": health.map(|health| health.media_errors.get() as u64),
    })
}

/// A queue that goes by the clock on the wall, for whoever has no reactor: opening a pool lets a simulated
/// device's time run as fast as it likes, and a real one's timeouts must not.
pub struct OnClock<Q> {
    queue: Q,
    clock: Clock,
}

impl<Q: BlockQueue> OnClock<Q> {
    /// `queue`, on `clock`.
    pub fn new(queue: Q, clock: Clock) -> Self {
        Self { queue, clock }
    }
}

impl<Q> fmt::Debug for OnClock<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnClock").finish_non_exhaustive()
    }
}

impl<Q: BlockQueue> BlockQueue for OnClock<Q> {
    fn geometry(&self) -> Geometry {
        self.queue.geometry()
    }

    fn submit(&mut self, request: Request) -> Result<(), Request> {
        self.queue.submit(request)
    }

    fn poll(&mut self, _now_us: u64, completions: &mut Vec<Completion>) -> usize {
        self.queue.poll(self.clock.now().us, completions)
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.queue.wait_fd()
    }
}
