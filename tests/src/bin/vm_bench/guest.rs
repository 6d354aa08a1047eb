//! The driver on a controller of a virtual machine, beside the kernel's driver and fio's io_uring.
//!
//! Two drives of one boot that are the same but for their driver: neither is bound anew between two
//! measurements, so nothing but time lies between them. Nothing is behind the drives (`null-co`): what is
//! compared is the way to them.

use crate::Effort;
use anyhow::{Context as _, bail};
use forebay_tests::measure::{Fio, Goal, Metrics, Rate, target};
use forebay_tests::vm::{Drive, Machine, Place, Prepared};
use std::path::Path;

/// Depths, and how many times fio's rate is hoped for.
const DEPTHS: [(usize, f64); 3] = [(1, 10.0), (32, 5.0), (128, 6.5)];
/// Commands submitted, and reaped at most, at a time.
const BATCH: usize = 16;
const BLOCK_BYTES: usize = 4096;
const DRIVE_BYTES: u64 = 16 << 30;
/// The guest's core that everything runs on that is measured; interrupts of a queue come to the core that made it.
const CORE: u32 = 1;

/// One thing to compare.
struct Case {
    direction: &'static str,
    depth: usize,
    goal: f64,
    ours: Rate,
    theirs: Rate,
}

impl Case {
    fn new(direction: &'static str, depth: usize, goal: f64) -> Self {
        let rate =
            |whose: &str| Rate::new(&format!("{whose}_{direction}_4k_qd{depth}_per_s"), "1/s");
        Self { direction, depth, goal, ours: rate("vm"), theirs: rate("vm_fio") }
    }
}

pub(crate) fn measure(effort: Effort, metrics: &mut Metrics) -> anyhow::Result<()> {
    let agent = target()?.join(program_folder()?).join("vm-guest");
    let Some(prepared) = Prepared::find(&agent)? else { bail!("run `make bench-vm`") };
    let drive = || Drive::null(DRIVE_BYTES).lba_bytes(BLOCK_BYTES as u32);
    let place = Place::new(&prepared, "bench")?.drive(drive())?.drive(drive())?;
    let machine = place.boot()?;
    let guest = Guest {
        kernel: machine.block_device(0)?,
        own: machine.bind_vfio(1)?,
        machine: &machine,
        program: place.binary("examples/queue_iops").display().to_string(),
        seconds: effort.seconds,
    };
    let both = ["read", "write"].into_iter();
    let mut cases: Vec<Case> = both
        .flat_map(|direction| DEPTHS.map(|(depth, goal)| Case::new(direction, depth, goal)))
        .collect();
    for _ in 0..effort.rounds {
        for Case { direction, depth, ours, theirs, .. } in &mut cases {
            theirs.push(guest.fio(direction, *depth)?);
            ours.push(guest.queue_iops(direction, *depth)?.per_s);
        }
    }
    for Case { direction, depth, goal, ours, theirs } in &cases {
        let name = format!("vm_{direction}_4k_qd{depth}_vs_fio");
        metrics.ratio(&name, ours, theirs, *goal);
    }
    let per_io = guest.system_calls_per_io()?;
    metrics.goal("syscalls_per_io_vm", per_io, "", Goal::AtMost(0.0));
    Ok(())
}

/// `release`, or `debug`.
pub(crate) fn program_folder() -> anyhow::Result<std::ffi::OsString> {
    let program = std::env::current_exe().context("this program's own path")?;
    let folder = program.parent().and_then(Path::file_name);
    Ok(folder.context("a folder around this program")?.to_owned())
}

/// A machine with a drive on the kernel's driver, and one for ours.
struct Guest<'a> {
    machine: &'a Machine<'a>,
    /// Block device of the one.
    kernel: String,
    /// PCI address of the other.
    own: String,
    program: String,
    seconds: u32,
}

impl Guest<'_> {
    /// Operations per second on the kernel's driver.
    fn fio(&self, direction: &str, depth: usize) -> anyhow::Result<f64> {
        let job = Fio {
            file: Path::new(&self.kernel),
            rw: &format!("rand{direction}"),
            block_bytes: BLOCK_BYTES,
            depth,
            batch: BATCH.min(depth),
            size_mib: None,
        };
        let arguments = job.arguments(self.seconds).join(" ");
        job.iops(&self.machine.sh(&format!("taskset -c {CORE} fio {arguments}"))?)
    }

    /// The same on ours.
    fn queue_iops(&self, direction: &str, depth: usize) -> anyhow::Result<Ran> {
        self.under("", direction, depth)
    }

    fn under(&self, wrapper: &str, direction: &str, depth: usize) -> anyhow::Result<Ran> {
        let Self { own, program, seconds, .. } = self;
        let work = format!("{program} {own} {direction} {seconds} {depth} {BATCH}");
        let said = self.machine.sh(&format!("taskset -c {CORE} {wrapper} {work}"))?;
        Ran::parse(&said).with_context(|| format!("queue_iops said {said:?}"))
    }

    /// System calls of the thread that submits and polls, while it does nothing else.
    fn system_calls_per_io(&self) -> anyhow::Result<f64> {
        const LOG: &str = "strace.log";
        // Without -f: that thread is the first one; the keeper of the controllers is not followed.
        let strace = format!("strace -o /vm/{LOG}");
        let ran = self.under(&strace, "read", 32)?;
        let log = std::fs::read_to_string(self.machine.place().share().join(LOG))?;
        let calls = calls_while_measuring(&log)
            .with_context(|| format!("strace saw no measurement:\n{log}"))?;
        Ok(calls as f64 / ran.count as f64)
    }
}

/// What `queue_iops` measured.
#[derive(Debug, PartialEq)]
struct Ran {
    per_s: f64,
    count: u64,
}

impl Ran {
    /// Its last line: `1234 IOPS (3702 in 3.0s)`.
    fn parse(text: &str) -> Option<Self> {
        let (per_s, rest) = text.lines().last()?.split_once(" IOPS (")?;
        let (count, _) = rest.split_once(' ')?;
        Some(Self { per_s: per_s.parse().ok()?, count: count.parse().ok()? })
    }
}

/// System calls between the line that `queue_iops` prints before it measures and the one with its result. The
/// clock is not the driver's but the benchmark's, which looks at it once in 16 384 polls; and it is a call only
/// where the clock is a device, as in this machine.
fn calls_while_measuring(log: &str) -> Option<usize> {
    let says = |line: &&str| line.starts_with("write(1, ");
    let mut lines = log.lines().skip_while(|line| !line.starts_with("write(1, \"measuring"));
    lines.next()?;
    let behind: Vec<&str> = lines.collect();
    let end = behind.iter().position(says)?;
    // What does not begin with a name tells of a signal or an exit.
    let is_call = |line: &&&str| {
        let named = line.starts_with(|first: char| first.is_ascii_alphabetic());
        named && !line.starts_with("clock_gettime(")
    };
    Some(behind[..end].iter().filter(is_call).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_queue_iops_prints_is_read() {
        let text = "measuring\n221391 IOPS (664192 in 3.000069s)\n";
        assert_eq!(Ran::parse(text), Some(Ran { per_s: 221_391.0, count: 664_192 }));
        assert_eq!(Ran::parse("measuring\n"), None);
    }

    #[test]
    fn calls_count_from_one_line_to_the_next() {
        let log = "openat(3)\nwrite(1, \"measuring\\n\", 10) = 10\nclock_gettime(1)\nfutex(1)\n--- SIGALRM ---\n\
                   write(1, \"7 IOPS (7 in 1s)\\n\", 17) = 17\nmunmap(1)\n+++ exited with 0 +++\n";
        assert_eq!(calls_while_measuring(log), Some(1));
        assert_eq!(
            calls_while_measuring(&log.replace("IOPS", "x").replace("write(1, \"7", "x")),
            None
        );
        assert_eq!(calls_while_measuring("openat(3)\n"), None);
    }
}
