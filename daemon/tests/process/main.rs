//! The daemon as its users meet it: a process, real TCP, files, signals.

#![expect(clippy::unwrap_used, reason = "a test: what fails, fails here")]

mod crash;
mod daemon;
mod drain;
mod hostile;
mod kv;
mod start;
