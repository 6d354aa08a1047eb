//! What the benchmarks share: figures with their goals, and fio, which most of them stand beside.

mod callgrind;
mod fio;
mod metric;

use anyhow::Context as _;
use std::path::PathBuf;

pub use callgrind::{Callgrind, Counts};
pub use fio::Fio;
pub use metric::{Goal, Metrics, Rate, median};

/// Prints the table, and writes `bench/NAME.json` into the target folder.
///
/// # Errors
/// It cannot be written.
pub fn publish(metrics: &Metrics, name: &str) -> anyhow::Result<()> {
    print!("{}", metrics.table());
    let folder = target()?.join("bench");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let path = folder.join(format!("{name}.json"));
    std::fs::write(&path, metrics.json()).with_context(|| path.display().to_string())?;
    println!("written to {}", path.display());
    Ok(())
}

/// The target folder that this program was built into.
///
/// # Errors
/// This program lies somewhere else.
pub fn target() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("this program's own path")?;
    Ok(program.ancestors().nth(2).context("a target folder around this program")?.to_owned())
}
