//! The RDMA transport over simulated verbs.

#[path = "../common/regions.rs"]
mod common;
mod conformance;
mod faults;
mod house;
mod operations;
mod regions;
