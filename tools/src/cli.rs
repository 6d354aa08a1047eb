//! The command line.

use crate::{ckpt, demo, devices, exit, format, inspect, kv, perf, status};
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use std::io::Write;

/// Forebay holds an inference cluster's context and a training cluster's state in front of its
/// GPUs; this is its command.
#[derive(Parser)]
#[command(name = "forebay", version, after_help = exit::help())]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command understands.
#[derive(clap::Args)]
pub(crate) struct Globals {
    /// How results are printed
    #[arg(short, long, value_enum, default_value = "text", global = true)]
    pub(crate) output: Output,
    /// The server: address and port of any of its reactors, with rdma: before them for RDMA, or auto: for
    /// RDMA where it works and else TCP; or shm:PATH on the same host; or several with commas between them
    #[arg(long, env = "FOREBAY_SERVER", default_value = "127.0.0.1:7400", global = true)]
    pub(crate) server: String,
    /// How long one operation may take, in seconds
    #[arg(long, default_value = "10", value_name = "SECONDS", global = true)]
    pub(crate) timeout: u32,
}

/// The form of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Store, retrieve, delete and list keys
    Kv(kv::Args),
    /// Save, load, list and remove checkpoints
    Ckpt(ckpt::Args),
    /// Measure throughput and latency
    Perf(Box<perf::Args>),
    /// Make a pool of devices
    Format(format::Args),
    /// List the NVMe drives, take them from the kernel or give them back, look at their health
    Devices(devices::Args),
    /// Show what is on media, without a daemon
    Inspect(inspect::Args),
    /// Run the whole path once, with a crash in the middle, and verify every byte
    Demo(demo::Args),
    /// Show what a server is doing
    Status(status::Args),
    /// Print the completion script of a shell
    Completions {
        /// Which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// Writes the completion script of `shell` to stdout.
pub(crate) fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "forebay", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_shell_has_a_completion_script_that_knows_the_commands() {
        for shell in clap_complete::Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "forebay", &mut script);
            assert!(String::from_utf8(script).unwrap().contains("ckpt"), "{shell}");
        }
    }

    #[test]
    fn globals_are_understood_behind_the_command_too() {
        let cli = Cli::try_parse_from(["forebay", "kv", "ls", "-o", "json", "--timeout", "3"]);
        let globals = cli.unwrap().globals;
        assert_eq!(globals.output, Output::Json);
        assert_eq!(globals.timeout, 3);
    }
}
