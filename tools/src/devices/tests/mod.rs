//! The subcommands, against a kernel and a controller of our own.

mod binding;
mod commands;

use super::fake::FakeMachine;
use clap::{ArgMatches, Args, FromArgMatches};

/// The arguments of a subcommand as they are typed; or what is said of them.
fn arguments<A: Args + FromArgMatches>(line: &str) -> Result<A, clap::Error> {
    let command = A::augment_args(clap::Command::new("command")).no_binary_name(true);
    let matches: ArgMatches = command.try_get_matches_from(line.split_whitespace())?;
    A::from_arg_matches(&matches)
}
