//! Helpers that the tests across crates share.

pub mod card;
pub mod drum;
pub mod engine;
pub mod house;
pub mod kv;
pub mod measure;
pub mod pcie;
pub mod rig;
pub mod serving;
pub mod vm;
