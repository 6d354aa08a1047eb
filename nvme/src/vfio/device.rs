//! One drive, open.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_PCI_BAR0_REGION_INDEX,
    VFIO_PCI_CONFIG_REGION_INDEX,
};

use crate::hardware::{Hardware, HardwareEvent};
use crate::pci::{PciAddress, Sysfs};

use super::config::Config;
use super::events::Events;
use super::iommu::Lease;
use super::region::Region;
use super::{OpenError, VfioIommu, VfioRegisters, kernel, preflight};

/// How often, and how far apart, a drive is asked for that another process still holds.
const CLAIM_TRIES: u32 = 200;
const CLAIM_PAUSE: Duration = Duration::from_millis(10);

/// Where the doorbells begin (NVMe over PCIe Transport 1.0, section 3.1.2), and one page of them: the least.
const REGISTER_BYTES_MIN: u64 = 0x1000 + 0x1000;

/// The device's file, and its place in the container. The last clone gives the device back.
#[derive(Debug)]
pub(super) struct Handle {
    /// Closed before the lease ends, and with it perhaps the container.
    file: File,
    _lease: Lease,
}

impl Handle {
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    #[cfg(test)]
    pub(super) fn of_file(file: File) -> Self {
        Self { file, _lease: Lease::of_nothing() }
    }
}

/// An NVMe drive that this process drives. See the module [`super`].
#[derive(Debug)]
pub struct VfioDevice {
    name: String,
    iommu: Arc<VfioIommu>,
    /// Dropped before the rest: `drop` has stopped the device by then.
    registers: Arc<VfioRegisters>,
    config: Config,
    events: Events,
    device: Arc<Handle>,
    resettable: bool,
}

impl VfioDevice {
    /// Opens the drive at `address`: reset by the kernel, without access to memory, without interrupts.
    ///
    /// Waits up to two seconds for a process that holds the drive: the kernel needs that long to take a killed daemon
    /// apart, and a start right behind that should not fail.
    ///
    /// # Errors
    /// [`OpenError`]: what is in the way, and what to do.
    pub fn open(iommu: &Arc<VfioIommu>, address: PciAddress) -> Result<Self, OpenError> {
        for _ in 0..CLAIM_TRIES {
            match Self::try_open(iommu, address) {
                Err(OpenError::Busy { .. }) => {}
                opened => return opened,
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "control path: the drive is not there yet"
            )]
            std::thread::sleep(CLAIM_PAUSE);
        }
        Self::try_open(iommu, address)
    }

    fn try_open(iommu: &Arc<VfioIommu>, address: PciAddress) -> Result<Self, OpenError> {
        let sysfs = Sysfs::system();
        let (function, group) = preflight::check(&sysfs, address)?;
        let (file, lease) = iommu.open(&sysfs, &function, group)?;
        let device = Arc::new(Handle { file, _lease: lease });
        let info =
            kernel::device_info(device.file()).map_err(OpenError::io(address, "ask what it is"))?;
        if info.flags & VFIO_DEVICE_FLAGS_PCI == 0 {
            return Err(faulty(address, "VFIO does not present it as a PCI device"));
        }
        let config = config(&device, address)?;
        config.prepare().map_err(OpenError::io(address, "set its command register"))?;
        let registers = registers(&device, address)?;
        let events = Events::new(device.file())
            .map_err(OpenError::io(address, "have its removal and errors reported"))?;
        let resettable = info.flags & VFIO_DEVICE_FLAGS_RESET != 0;
        let (name, iommu) = (address.to_string(), Arc::clone(iommu));
        Ok(Self { name, iommu, registers: Arc::new(registers), config, events, device, resettable })
    }
}

fn config(device: &Arc<Handle>, address: PciAddress) -> Result<Config, OpenError> {
    let region = region(device, VFIO_PCI_CONFIG_REGION_INDEX, address)?;
    if !region.accessible || region.bytes < 256 {
        return Err(faulty(address, "its configuration space cannot be read and written"));
    }
    Ok(Config::new(device, region.offset))
}

/// Maps BAR 0, as far as it can be mapped.
fn registers(device: &Arc<Handle>, address: PciAddress) -> Result<VfioRegisters, OpenError> {
    let region = region(device, VFIO_PCI_BAR0_REGION_INDEX, address)?;
    if !region.accessible || region.mappable_bytes < REGISTER_BYTES_MIN {
        let (bytes, mappable) = (region.bytes, region.mappable_bytes);
        let problem = format!(
            "its registers (BAR 0) have {bytes:#x} bytes, of which {mappable:#x} can be mapped, and \
             {REGISTER_BYTES_MIN:#x} are the least"
        );
        return Err(faulty(address, &problem));
    }
    usize::try_from(region.mappable_bytes)
        .map_err(io::Error::other)
        .and_then(|bytes| VfioRegisters::map(device, region.offset, bytes))
        .map_err(OpenError::io(address, "map its registers"))
}

fn region(device: &Handle, index: u32, address: PciAddress) -> Result<Region, OpenError> {
    kernel::region_info(device.file(), index)
        .and_then(|info| Region::parse(&info).map_err(io::Error::other))
        .map_err(OpenError::io(address, "ask where its registers are"))
}

fn faulty(address: PciAddress, problem: &str) -> OpenError {
    OpenError::Registers { address, problem: problem.into() }
}

impl Hardware for VfioDevice {
    type Registers = VfioRegisters;
    type Dma = VfioIommu;

    fn name(&self) -> &str {
        &self.name
    }

    fn registers(&self) -> Arc<VfioRegisters> {
        Arc::clone(&self.registers)
    }

    fn dma(&self) -> Arc<VfioIommu> {
        Arc::clone(&self.iommu)
    }

    fn set_bus_master(&mut self, on: bool) -> io::Result<()> {
        self.config.set_bus_master(on)
    }

    /// Afterwards the controller is disabled; whether it may access memory is as it was before.
    fn reset(&mut self) -> io::Result<()> {
        if !self.resettable {
            return Err(io::Error::new(io::ErrorKind::Unsupported, NO_RESET));
        }
        kernel::reset(self.device.file()).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOTTY | libc::EINVAL) => {
                io::Error::new(io::ErrorKind::Unsupported, NO_RESET)
            }
            Some(libc::EAGAIN) => io::Error::new(io::ErrorKind::WouldBlock, RESET_TAKEN),
            _ => error,
        })?;
        self.config.prepare_again()
    }

    fn next_event(&mut self) -> Option<HardwareEvent> {
        self.events.next()
    }

    fn wait_fds(&self, visit: &mut dyn FnMut(BorrowedFd<'_>)) {
        self.events.fds().for_each(visit);
    }
}

const NO_RESET: &str = "the platform has no way to reset the drive alone; power-cycle it, or put it \
                        into a slot of its own";
const RESET_TAKEN: &str = "the system is removing or resetting the drive; let go of it";

impl Drop for VfioDevice {
    fn drop(&mut self) {
        // Registers may live on in other threads: the device does not touch memory any more, whatever they write.
        if let Err(error) = self.config.set_bus_master(false) {
            log::debug!("{}: bus master not cleared, the drive is gone: {error}", self.name);
        }
    }
}
