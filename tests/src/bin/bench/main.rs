//! `foundation-bench`: how fast and how big Forebay is, beside what the machine can do.
//!
//! Guarantees: a ratio compares two things that ran one after the other on the same cores of the same
//! machine, in interleaved rounds; its value is the median of the rounds' ratios. What is counted is exact. Everything runs on
//! `/dev/shm`, on loopback, for a bounded time; every process that was started is killed by its id, and
//! every file removed. What breaks it: another load on the machine.
//!
//! Prints a table, writes `bench/foundation.json` into the target folder, and ends with 1 if a goal was
//! missed.

mod count;
mod disk;
mod engine;
mod large;
mod machine;
mod memory;
mod peers;
mod server;
mod shared;
mod small;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use forebay_tests::measure::{Metrics, publish};
use machine::Machine;
use std::process::ExitCode;

/// Measures Forebay beside fio, iperf3 and Redis.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only the part of this name: count, engine, large, small, shm, memory or disk
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// One short round and fewer keys: shows that it works, not how fast
    #[arg(long)]
    quick: bool,
    #[command(subcommand)]
    task: Option<Task>,
}

/// What this program starts itself for.
#[derive(Debug, Subcommand)]
enum Task {
    /// Has a reactor serve retrieves, for valgrind to watch
    #[command(hide = true)]
    Work(count::Work),
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Rounds; the median of them counts.
    rounds: usize,
    /// Seconds of one measurement.
    seconds: u32,
    /// Keys of 4 KiB in the part about memory and restarts.
    keys: u64,
}

impl Effort {
    const FULL: Self = Self { rounds: 3, seconds: 3, keys: 1_000_000 };
    const QUICK: Self = Self { rounds: 1, seconds: 1, keys: 100_000 };
}

type Part = fn(&Machine, Effort, &mut Metrics) -> anyhow::Result<()>;

/// In this order: each part starts and ends its own processes.
const PARTS: [(&str, Part); 7] = [
    ("count", count::measure),
    ("engine", engine::measure),
    ("large", large::measure),
    ("small", small::measure),
    ("shm", shared::measure),
    ("memory", memory::measure),
    ("disk", disk::measure),
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.task {
        Some(Task::Work(work)) => work.run().map(|()| true),
        None => run(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// `false`: a goal was missed.
fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let Arguments { only, quick, .. } = arguments;
    let chosen = |name: &str| only.as_deref().is_none_or(|only| only == name);
    if !PARTS.iter().any(|(name, _)| chosen(name)) {
        bail!("--only takes count, engine, large, small, shm, memory or disk");
    }
    let effort = if *quick { Effort::QUICK } else { Effort::FULL };
    let machine = Machine::look()?;
    let mut metrics = Metrics::default();
    for (name, part) in PARTS.iter().filter(|(name, _)| chosen(name)) {
        eprintln!("bench: {name}");
        part(&machine, effort, &mut metrics).with_context(|| format!("part {name}"))?;
    }
    // Only a whole run is `foundation.json`.
    let name = match (quick, only.is_none()) {
        (true, _) => "foundation-quick",
        (false, true) => "foundation",
        (false, false) => "foundation-part",
    };
    publish(&metrics, name)?;
    Ok(metrics.all_ok())
}
