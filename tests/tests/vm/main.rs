//! The appliance on real NVMe controllers behind a real IOMMU, in a virtual machine.
//!
//! `make test-vm` prepares it and runs these one after the other; without that they say that they
//! are skipped. Each boots a machine of its own, in some seven seconds.

#![expect(clippy::unwrap_used, reason = "a test: what fails, fails here")]

mod devices;
mod devices_command;
mod figures;
mod guest;
mod kernel_driver;
mod rdma;
mod rdma_clients;
mod rdma_daemon;
mod rdma_network;
mod rdma_power;
mod vfio;
mod vfio_faults;
mod vfio_recovery;
mod vfio_refusals;
mod vfio_removal;

use forebay_tests::vm::{Place, Prepared};
use std::path::Path;

/// Bytes of a drive: enough for a pool, and for what these tests write.
const DRIVE_BYTES: u64 = 512 << 20;

/// What `make test-vm` has prepared, or nothing where the test is skipped.
fn prepared() -> Option<Prepared> {
    Prepared::find(Path::new(env!("CARGO_BIN_EXE_vm-guest"))).unwrap()
}

/// A machine without drives, named like the test that calls this; `None` if it is to be skipped.
fn place() -> Option<Place> {
    let name = std::thread::current().name().unwrap_or("test").replace("::", "-");
    prepared().map(|prepared| Place::new(&prepared, &name).unwrap())
}
