//! The RDMA transport over simulated verbs.

mod conformance;
mod faults;
mod house;
mod operations;
