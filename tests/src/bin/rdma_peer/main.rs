//! `rdma-peer`: the clients of the tests over RDMA, in a guest, where the network is that they speak over.
//!
//! Each prints what it does as lines of JSON, and the last one says how it ended: the test reads them, and
//! judges. The good ones go by the client's own interface; the bad ones speak the protocol by hand, over real
//! verbs, and say what the server did about it.

mod flood;
mod kill;
mod lies;
mod line;
mod storm;
mod watch;
mod write;

use clap::{Parser, Subcommand};

/// A client over RDMA, good or bad, for tests.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Stores without end and keeps book; then looks whether everything is there that was acknowledged
    Write(write::Write),
    /// Keeps 64 operations in flight until it is killed
    Flood(flood::Flood),
    /// Starts one that floods, and kills it; again and again
    Kill(kill::Kill),
    /// Names memory that it does not have, in every way there is
    Lie(lies::Lie),
    /// Asks for connections that cannot be, by what it says to the connection manager
    Garbage(storm::Garbage),
    /// Connects and leaves again, often and in every way
    Storm(storm::Storm),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Write(write) => write.run(),
        Task::Flood(flood) => flood.run(),
        Task::Kill(kill) => kill.run(),
        Task::Lie(lie) => lie.run(),
        Task::Garbage(garbage) => garbage.run(),
        Task::Storm(storm) => storm.run(),
    }
}
