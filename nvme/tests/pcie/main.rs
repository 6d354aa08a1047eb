//! The NVMe driver on emulated controllers: honest ones of many kinds, and hostile ones.

mod bring_up;
mod conformance;
mod corners;
mod hostile;
mod recovery;
mod rig;
