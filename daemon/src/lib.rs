//! The daemon: reactors, the store, and the service that joins them to the fabric.
#![forbid(unsafe_code)]

pub mod executor;
