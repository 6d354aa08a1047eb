//! The client: against a healthy server, a failing one, and one that means harm.

#[cfg(test)]
mod allocations;
#[cfg(test)]
#[path = "../common/regions.rs"]
mod common;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod operations;
#[cfg(test)]
mod regions;
#[cfg(test)]
mod shm;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tcp;
