//! The daemon: reactors, the store, and the service that joins them to the fabric.
//!
//! A request's way: [`reactor`] polls the fabric's server, [`service`] puts the command into a slot and
//! starts its task on the [`executor`], the task works on the [`store`], which works on the [`disk`];
//! the reply goes out at the end of the same or a later tick. [`runtime`] makes a process of it.
#![forbid(unsafe_code)]

pub mod admin;
pub mod catalog;
pub mod checkpoint;
pub mod counters;
pub mod disk;
pub mod executor;
pub mod mailbox;
pub mod reactor;
pub mod runtime;
pub mod service;
pub mod signals;
pub mod store;
