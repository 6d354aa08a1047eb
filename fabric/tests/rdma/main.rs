//! The RDMA transport over simulated verbs.

#[cfg(test)]
#[path = "../common/regions.rs"]
mod common;
mod conformance;
mod faults;
mod house;
mod operations;
#[cfg(test)]
mod regions;
