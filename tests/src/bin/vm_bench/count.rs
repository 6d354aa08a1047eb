//! What the driver costs, counted: instructions and system calls of `submit` and `poll`.
//!
//! Guarantees: all that happens inside of the two functions counts, from the first instruction to the
//! last, with the write of the doorbell, and nothing else: not the emulated controller, not whoever
//! makes the requests. Bring-up and warm-up fall out: N operations are taken from 2 N.

use crate::Effort;
use anyhow::Context as _;
use clap::Args;
use forebay_nvme::emulated::{EmulatedConfig, EmulatedRegisters, Times};
use forebay_nvme::pcie::{Options, Queue};
use forebay_nvme::{BLOCK_BYTES, BlockQueue, Completion, DmaBuf, Operation, Request};
use forebay_tests::measure::{Callgrind, Counts, Goal, Metrics};
use forebay_tests::pcie::EmulatedQueue;
use std::path::Path;

/// Instructions of a read of 4 KiB.
const GOAL: f64 = 400.0;

/// Operations on an emulated controller, all alike.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Work {
    /// Writes, not reads
    #[arg(long)]
    write: bool,
    /// Blocks of 4 KiB in each
    #[arg(long)]
    blocks: u32,
    /// How many at a time
    #[arg(long)]
    depth: u32,
    /// How many in all
    #[arg(long)]
    operations: u32,
}

const READ: Work = Work { write: false, blocks: 1, depth: 1, operations: 0 };

/// What is counted; a goal where there is one. One at a time has none: there each operation has a poll to itself that
/// rings the doorbell, and one that finds it done; how many more find nothing is up to the drive.
const WORKS: [(&str, Work, Goal); 6] = [
    ("read_4k_qd1", READ, Goal::None),
    ("read_4k_qd32", Work { depth: 32, ..READ }, Goal::AtMost(GOAL)),
    ("write_4k_qd1", Work { write: true, ..READ }, Goal::None),
    ("write_4k_qd32", Work { write: true, depth: 32, ..READ }, Goal::None),
    ("read_128k_qd1", Work { blocks: 32, ..READ }, Goal::None),
    ("read_128k_qd32", Work { blocks: 32, depth: 32, ..READ }, Goal::None),
];

pub(crate) fn measure(effort: Effort, metrics: &mut Metrics) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("a folder for what valgrind writes")?;
    let mut system_calls = 0.0_f64;
    for (name, work, goal) in WORKS {
        let count = |operations: u32| {
            counts(Work { operations, ..work }, &folder.path().join("callgrind.out"))
        };
        let (once, twice) = (count(effort.operations)?, count(2 * effort.operations)?);
        let each = |of: fn(&Counts) -> u64| {
            (of(&twice) as f64 - of(&once) as f64) / f64::from(effort.operations)
        };
        let name = format!("instructions_{name}");
        metrics.goal(&name, each(|counts| counts.instructions), "", goal);
        system_calls = system_calls.max(each(|counts| counts.system_calls));
    }
    metrics.goal("syscalls_per_io_emulated", system_calls, "", Goal::AtMost(0.0));
    Ok(())
}

/// Has valgrind run this program, and look at the two functions.
fn counts(work: Work, file: &Path) -> anyhow::Result<Counts> {
    let Work { write, blocks, depth, operations } = work;
    let mut arguments = vec!["work".to_owned()];
    arguments.extend(write.then(|| "--write".to_owned()));
    let numbers = [("--blocks", blocks), ("--depth", depth), ("--operations", operations)];
    arguments.extend(numbers.iter().flat_map(|(name, n)| [(*name).to_owned(), n.to_string()]));
    Callgrind { functions: &["counted_submit", "counted_poll"], arguments, file }.run()
}

impl Work {
    /// Does it.
    pub(crate) fn run(self) {
        let Self { write, blocks, depth, operations } = self;
        let config = EmulatedConfig { times: Times::none(), ..EmulatedConfig::default() };
        let mut rig = EmulatedQueue::open(config, Options::default(), depth);
        let now_us = rig.now_us();
        let bytes = blocks as usize * BLOCK_BYTES;
        let mut free: Vec<DmaBuf> =
            (0..depth).map(|_| rig.pool.alloc(bytes).expect("room")).collect();
        let mut done = Vec::with_capacity(depth as usize);
        let places = rig.queue.geometry().blocks - u64::from(blocks);
        let (mut ended, mut rng) = (0, fastrand::Rng::with_seed(1));
        while ended < operations {
            for buffer in free.drain(..) {
                let block = rng.u64(..places);
                let operation = match write {
                    true => Operation::Write { block, blocks, buffer, fua: false },
                    false => Operation::Read { block, blocks, buffer },
                };
                counted_submit(&mut rig.queue, Request { tag: 0, operation });
            }
            // One poll rings the doorbell, the next one finds all that is done.
            counted_poll(&mut rig.queue, now_us, &mut done);
            rig.device.step(now_us);
            ended += counted_poll(&mut rig.queue, now_us, &mut done) as u32;
            for Completion { result, buffer, .. } in done.drain(..) {
                result.expect("an honest controller");
                free.extend(buffer);
            }
        }
    }
}

#[inline(never)]
fn counted_submit(queue: &mut Queue<EmulatedRegisters>, request: Request) {
    queue.submit(request).expect("the queue has room");
}

#[inline(never)]
fn counted_poll(
    queue: &mut Queue<EmulatedRegisters>,
    now_us: u64,
    done: &mut Vec<Completion>,
) -> usize {
    queue.poll(now_us, done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tiny_run_ends() {
        for (_, work, _) in WORKS {
            Work { operations: 64, ..work }.run();
        }
    }
}
