//! The server's sessions over a simulated network, against scripted peers of every kind.

mod clock;
mod commands;
mod cuts;
mod handshake;
mod hostile;
mod world;
