//! `forebay ckpt`: save, load, list and remove checkpoints.
//!
//! One rank writes one safetensors file: its header travels as it is, as the manifest's attachment,
//! and its tensors as chunks, so that what is loaded is the same file, byte for byte. A save that
//! was interrupted is taken up by saving again.

mod catalog;
mod list;
mod load;
mod safetensors;
mod save;
#[cfg(test)]
mod tests;
mod transfer;
mod utc;

use crate::context::Context;
use crate::exit::{Code, Failure};
use clap::Subcommand;
use std::path::Path;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Save a safetensors file as a checkpoint; after an interruption, only what is missing
    Save(save::Args),
    /// Write a checkpoint back to a file, verified, all of it or nothing
    Load(load::Args),
    /// List the checkpoints whose names begin with PREFIX
    Ls {
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Remove checkpoints
    Rm {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// How many chunks are in flight at a time.
#[derive(clap::Args)]
struct Depth {
    /// Chunks in flight
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    depth: u32,
}

pub(crate) fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    match args.command {
        Command::Save(args) => save::run(&args, context),
        Command::Load(args) => load::run(&args, context),
        Command::Ls { prefix } => list::ls(&prefix, context),
        Command::Rm { names } => list::rm(&names, context),
    }
}

/// Checks a checkpoint's name before anything is done with it.
fn check_name(name: &str) -> anyhow::Result<()> {
    let checked = forebay_fabric::checkpoint::check_name(name.as_bytes());
    checked.map(drop).map_err(|_| {
        let what = format!("{name:?} is no checkpoint's name: write run/step or tenant/run/step");
        Failure::new(Code::Usage, what).into()
    })
}

/// A path for people.
fn shown(path: &Path) -> String {
    path.display().to_string()
}
