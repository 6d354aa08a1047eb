//! `forebay inspect`: what is on media, read without a daemon and without writing a byte.
//!
//! On a pool that a daemon has open the answer is a moment's; nothing is locked.

mod image;
mod key;
mod segment;
mod superblock;

use crate::context::Context;
use clap::Subcommand;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The four superblocks of each device
    Superblock(superblock::Args),
    /// The segments of each shard, or the keys in one segment
    Segment(segment::Args),
    /// Where one key's value is, and whether it is sound
    Key(key::Args),
}

pub(crate) fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    match args.command {
        Command::Superblock(args) => superblock::run(&args, context),
        Command::Segment(args) => segment::run(&args, context),
        Command::Key(args) => key::run(&args, context),
    }
}
