//! Why a drive could not be opened: each error is one line that says what to do.

use std::io;

use crate::hardware::MapError;
use crate::pci::PciAddress;

/// Why a drive could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No function has this address.
    #[error(
        "{address}: no PCI device there; `forebay devices list` shows the drives of this machine"
    )]
    NotFound {
        /// The address.
        address: PciAddress,
    },
    /// It is something else.
    #[error(
        "{address}: not an NVMe drive, but {what} (class {class:#08x}); `forebay devices list` shows \
         the drives of this machine"
    )]
    NotNvme {
        /// The address.
        address: PciAddress,
        /// Its class code.
        class: u32,
        /// What that is.
        what: &'static str,
    },
    /// No driver is bound to it.
    #[error("{address}: no driver is bound to it; run `forebay devices bind {address}`")]
    Unbound {
        /// The address.
        address: PciAddress,
    },
    /// Another driver than vfio-pci is bound to it.
    #[error(
        "{address}: held by the kernel driver `{driver}`; run `forebay devices bind {address}` to take it"
    )]
    OtherDriver {
        /// The address.
        address: PciAddress,
        /// That driver.
        driver: String,
    },
    /// There is no IOMMU in front of it.
    #[error(
        "{address}: no IOMMU keeps it to its own memory; turn on VT-d or AMD-Vi in the firmware, and boot \
         Linux with `intel_iommu=on` (Intel) or without `amd_iommu=off` (AMD)"
    )]
    NoIommu {
        /// The address.
        address: PciAddress,
    },
    /// VFIO pretends that there is an IOMMU.
    #[error(
        "{address}: bound without an IOMMU (`enable_unsafe_noiommu_mode`), so that it could write to all \
         memory, which is refused; turn on VT-d or AMD-Vi in the firmware and boot Linux with `intel_iommu=on` (Intel)"
    )]
    NoIommuMode {
        /// The address.
        address: PciAddress,
    },
    /// Other devices that the IOMMU cannot tell from it are in use by the kernel.
    #[error(
        "{address}: shares IOMMU group {group} with {others}; bind those to vfio-pci too or unbind them, or \
         move the drive to another slot"
    )]
    GroupShared {
        /// The address.
        address: PciAddress,
        /// The group.
        group: u32,
        /// The others, each with its driver.
        others: String,
    },
    /// Another process has it.
    #[error(
        "{address}: in use by another process (`fuser -v /dev/vfio/{group}` names it); stop it"
    )]
    Busy {
        /// The address.
        address: PciAddress,
        /// The group.
        group: u32,
    },
    /// This process has it.
    #[error("{address}: open in this process already; give each drive once")]
    AlreadyOpen {
        /// The address.
        address: PciAddress,
    },
    /// Not allowed.
    #[error(
        "{address}: no permission for {path}; run as its owner, or `chown` it to the daemon's user"
    )]
    Permission {
        /// The address.
        address: PciAddress,
        /// The file.
        path: String,
    },
    /// VFIO's files are not there.
    #[error("{address}: there is no {path}; load VFIO with `modprobe vfio-pci`")]
    NoVfio {
        /// The address.
        address: PciAddress,
        /// The file.
        path: String,
    },
    /// VFIO is there, and the way to IOMMUs that is used here is not.
    #[error(
        "{address}: this kernel's VFIO has no type 1 IOMMU, version 2; load it with `modprobe vfio_iommu_type1`"
    )]
    NoType1 {
        /// The address.
        address: PciAddress,
    },
    /// The device could forge interrupts.
    #[error(
        "{address}: the platform does not remap interrupts, so that a drive could forge them; turn it on in \
         the firmware, or accept that with `vfio_iommu_type1.allow_unsafe_interrupts=1`"
    )]
    UnsafeInterrupts {
        /// The address.
        address: PciAddress,
    },
    /// The memory that is in use already cannot be given to this device.
    #[error("{address}: {source}")]
    Map {
        /// The address.
        address: PciAddress,
        /// Why.
        source: MapError,
    },
    /// Its registers are not what an NVMe drive has.
    #[error("{address}: {problem}; the drive or its slot is faulty: reseat or replace it")]
    Registers {
        /// The address.
        address: PciAddress,
        /// What is wrong.
        problem: String,
    },
    /// Anything else.
    #[error("{address}: cannot {what}: {source}; `dmesg` may say more")]
    Io {
        /// The address.
        address: PciAddress,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl OpenError {
    /// For `map_err`: what was tried.
    pub(super) fn io<E: Into<io::Error>>(
        address: PciAddress,
        what: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { address, what, source: source.into() }
    }
}
