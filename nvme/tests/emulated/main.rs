//! The emulated controller itself, driven by hand: before the driver is tested on it, it has to be trusted.

mod admin;
mod bring_up;
mod faults;
mod host;
mod io;
mod power;
