//! The RDMA transport over simulated verbs.

mod conformance;
mod faults;
mod fragments;
mod house;
mod operations;
mod raw;
