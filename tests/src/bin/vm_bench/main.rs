//! `vm-bench`: how fast the driver of a drive of our own is, beside the kernel's; and RDMA, beside perftest.
//!
//! Guarantees: a ratio compares two things that ran one after the other in the same boot of the same
//! virtual machine, on the same core, in interleaved rounds; its value is the median of the rounds'
//! ratios. What is counted (instructions, system calls) is exact, and the same on every machine with the
//! same compiler. What breaks it: another load on the host, for what is measured by the clock. The guest
//! runs in software emulation, where interrupts and system calls cost more than on hardware: the ratios
//! stand beside those of other drivers that were measured there, and are no claim about hardware.
//!
//! Prints a table, writes `bench/vm.json` into the target folder, and ends with 1 if a goal was missed.

mod count;
mod guest;
mod rdma;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use forebay_tests::measure::{Metrics, publish};
use std::process::ExitCode;

/// Measures the NVMe driver beside the kernel's and fio.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only the parts of these names: count, guest, rdma
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// One short round, and no goal counts: shows that it works, not how fast
    #[arg(long)]
    quick: bool,
    #[command(subcommand)]
    task: Option<Task>,
}

/// What this program starts itself for.
#[derive(Debug, Subcommand)]
enum Task {
    /// Does so many operations on an emulated controller, for valgrind to watch
    #[command(hide = true)]
    Work(count::Work),
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Effort {
    /// Rounds; the median of them counts.
    rounds: usize,
    /// Seconds of one measurement.
    seconds: u32,
    /// Operations that are counted.
    operations: u32,
}

impl Effort {
    const FULL: Self = Self { rounds: 3, seconds: 3, operations: 1024 };
    const QUICK: Self = Self { rounds: 1, seconds: 1, operations: 256 };
}

type Part = fn(Effort, &mut Metrics) -> anyhow::Result<()>;

const PARTS: [(&str, Part); 3] =
    [("count", count::measure), ("guest", guest::measure), ("rdma", rdma::measure)];

fn main() -> ExitCode {
    let Arguments { only, quick, task } = Arguments::parse();
    if let Some(Task::Work(work)) = task {
        work.run();
        return ExitCode::SUCCESS;
    }
    match run(&only, quick) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// `false`: a goal was missed that counts.
fn run(only: &[String], quick: bool) -> anyhow::Result<bool> {
    let is_part = |only: &String| PARTS.iter().any(|(name, _)| only == name);
    if !only.iter().all(is_part) {
        bail!("--only takes count, guest or rdma");
    }
    let chosen = |name: &str| only.is_empty() || only.iter().any(|only| only == name);
    let effort = if quick { Effort::QUICK } else { Effort::FULL };
    let mut metrics = Metrics::default();
    for (name, part) in PARTS.iter().filter(|(name, _)| chosen(name)) {
        eprintln!("bench: {name}");
        part(effort, &mut metrics).with_context(|| format!("part {name}"))?;
    }
    // Only a whole run is `vm.json`, and one that a test has made is nobody's figures.
    let name = match (quick, only.is_empty()) {
        (true, _) => "vm-quick",
        (false, true) => "vm",
        (false, false) => "vm-part",
    };
    publish(&metrics, name)?;
    Ok(quick || metrics.all_ok())
}
