//! The `forebay` command: keys, checkpoints, measurements, formatting, drives, inspection, the
//! demo.
//!
//! Results go to stdout (text, or JSON with `-o json`), everything else to stderr; the exit code
//! says how it ended (see [`exit::Code`]).

#![forbid(unsafe_code)]

mod admin_socket;
mod ckpt;
mod cli;
mod clock;
mod context;
mod demo;
mod devices;
mod exit;
mod format;
mod inspect;
mod kv;
mod media;
mod output;
mod perf;
mod progress;
mod status;

use clap::Parser;
use cli::{Cli, Command};
use context::Context;
use std::process::ExitCode;

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let Cli { globals, command } = Cli::parse();
    let context = Context::new(globals);
    let code = match run(command, &context) {
        Ok(()) => exit::Code::Ok,
        Err(error) if context::is_closed_pipe(&error) => exit::Code::Ok,
        Err(error) => {
            let code = exit::Code::of(&error);
            context.complain(&error, code);
            code
        }
    };
    ExitCode::from(code as u8)
}

fn run(command: Command, context: &Context) -> anyhow::Result<()> {
    match command {
        Command::Kv(args) => kv::run(args, context),
        Command::Ckpt(args) => ckpt::run(args, context),
        Command::Perf(args) => perf::run(*args, context),
        Command::Format(args) => format::run(args, context),
        Command::Devices(args) => devices::run(args, context),
        Command::Inspect(args) => inspect::run(args, context),
        Command::Demo(args) => demo::run(args, context),
        Command::Status(args) => status::run(args, context),
        Command::Completions { shell } => cli::completions(shell),
    }
}
