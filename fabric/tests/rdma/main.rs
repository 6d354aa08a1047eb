//! The RDMA transport over simulated verbs.

mod conformance;
