//! A virtual machine with real NVMe controllers behind a real IOMMU, for tests that need them.
//!
//! What it guarantees:
//!
//! * the guest sees the host's files, so it runs the very binaries that were built; nothing that it
//!   writes reaches the host, but for the folder `/vm`, which it shares with its test;
//! * every wait has an end: a guest that hangs fails its test, with the console's last words;
//! * the machines of one test run at a time on this host, whatever the test runner does; they die with the
//!   thread that booted them, and their folders go with them. A test that fails leaves its logs in the folder
//!   `failed` of the prepared one.
//!
//! What breaks it: a guest that is measured by the clock. It runs in software emulation, ten to fifty
//! times slower than the host: only ratios within one boot mean anything.
//!
//! [`Place`] says what the machine is made of and holds what outlives it; [`Machine`] is the running
//! one; [`Daemon`] is `forebayd` in it, asked from outside, through a forwarded port: what it
//! acknowledges is known even when the machine's power is cut.

mod agent;
mod cable;
mod clock;
mod daemon;
mod drive;
mod faults;
mod ledger;
mod lines;
mod machine;
mod nbd;
mod place;
mod prepared;
mod qemu;
mod qmp;
mod rdma;
pub mod wire;

pub use agent::{Ended, Output};
pub use clock::{now, sleep, wait_until};
pub use daemon::{Daemon, DaemonOptions, DeviceLine, RDMA_PORT};
pub use drive::{Backing, Drive};
pub use faults::{Fault, FaultEvent};
pub use ledger::{Audit, Ledger, Written};
pub use machine::{Machine, Process};
pub use nbd::Nbd;
pub use place::Place;
pub use prepared::Prepared;
pub use qmp::{Qmp, QmpError};
pub use rdma::RdmaObjects;
