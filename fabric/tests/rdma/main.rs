//! The RDMA transport over simulated verbs.

#[cfg(test)]
#[path = "../common/regions.rs"]
mod common;
mod conformance;
mod faults;
mod fragments;
mod house;
mod operations;
mod raw;
#[cfg(test)]
mod regions;
