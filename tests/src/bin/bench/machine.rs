//! The machine: two cores, a clock, a place in memory, and processes that end with their owner.

use anyhow::{Context as _, bail, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::statvfs;
use nix::unistd::{Pid, SysconfVar, sysconf};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The folder in memory.
const MEMORY: &str = "/dev/shm";
/// Memory that stays free, for processes, in MiB.
const SPARE_MIB: u64 = 2048;
/// How long a process may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where things run.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The core of whoever serves.
    pub(crate) server_core: usize,
    /// The core of whoever asks.
    pub(crate) client_core: usize,
}

impl Machine {
    /// Finds two cores.
    pub(crate) fn look() -> anyhow::Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("the allowed cores")?;
        let is_allowed = |core: &usize| allowed.is_set(*core).unwrap_or(false);
        let mut cores = (0..CpuSet::count()).filter(is_allowed);
        let (Some(server_core), Some(client_core)) = (cores.next(), cores.next()) else {
            bail!("two cores are needed: one serves, one asks");
        };
        Ok(Self { server_core, client_core })
    }
}

/// Runs `work` with this thread on `core`. Processes that it starts stay there.
pub(crate) fn on_core<T>(
    core: usize,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let this = Pid::from_raw(0);
    let before = sched_getaffinity(this)?;
    let mut one = CpuSet::new();
    one.set(core)?;
    sched_setaffinity(this, &one).with_context(|| format!("moving to core {core}"))?;
    let result = work();
    sched_setaffinity(this, &before)?;
    result
}

/// The time.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Waits.
#[expect(clippy::disallowed_methods, reason = "no reactor here: this thread has nothing else")]
pub(crate) fn sleep(duration: Duration) {
    std::thread::sleep(duration);
}

/// A folder in memory with room for `mib`, removed with everything in it when it is dropped.
pub(crate) fn folder_in_memory(mib: u64) -> anyhow::Result<tempfile::TempDir> {
    let began = now();
    loop {
        let free_mib = free_mib()?;
        if free_mib >= mib {
            return folder_in(Path::new(MEMORY));
        }
        // The kernel takes its time to free what the part before has left.
        ensure!(began.elapsed() < PATIENCE, "{free_mib} MiB are free in {MEMORY}, not {mib}");
        sleep(Duration::from_millis(100));
    }
}

/// What may be put into memory: the file system's room, and what the machine can spare.
fn free_mib() -> anyhow::Result<u64> {
    let shm = statvfs(MEMORY).context(MEMORY)?;
    let room_mib = (shm.blocks_available() * shm.fragment_size()) >> 20;
    let memory = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let available_kib = kib_of(&memory, "MemAvailable:").context("no MemAvailable")?;
    Ok(room_mib.min((available_kib >> 10).saturating_sub(SPARE_MIB)))
}

/// A line of proc(5) like `VmRSS:   1234 kB`.
fn kib_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// A folder under `parent`, removed with everything in it when it is dropped.
pub(crate) fn folder_in(parent: &Path) -> anyhow::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("forebay-bench-");
    builder.tempdir_in(parent).with_context(|| format!("a folder in {}", parent.display()))
}

/// A port of the loopback that nobody listens on.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no port of 127.0.0.1 is free")?;
    Ok(listener.local_addr()?)
}

/// Runs a program on `core` to its end; its standard output.
pub(crate) fn output(core: usize, command: &mut Command) -> anyhow::Result<String> {
    let name = name(command);
    let Output { status, stdout, stderr } = on_core(core, || {
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {name}"))
    })?;
    let text = String::from_utf8_lossy(&stdout).into_owned();
    if !status.success() {
        bail!("{name} ended with {status}: {} {text}", String::from_utf8_lossy(&stderr).trim());
    }
    Ok(text)
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// A process in the background; killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Starts it on `core`. What it says is not heard.
    pub(crate) fn start(core: usize, command: &mut Command) -> anyhow::Result<Self> {
        let name = name(command);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let spawn = || command.spawn().with_context(|| format!("cannot start {name}"));
        Ok(Self { child: on_core(core, spawn)?, name })
    }

    /// Asks `ready` again and again until it succeeds.
    pub(crate) fn wait_until<T>(
        &mut self,
        mut ready: impl FnMut() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let started = now();
        loop {
            let error = match ready() {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended by itself with {status}", self.name);
            }
            if started.elapsed() > PATIENCE {
                return Err(error.context(format!("{} does not answer", self.name)));
            }
            sleep(Duration::from_millis(1));
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().with_context(|| format!("cannot kill {}", self.name))?;
        self.child.wait().with_context(|| format!("cannot wait for {}", self.name))?;
        Ok(())
    }

    /// SIGTERM, and waits until it has ended well.
    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM)?;
        let started = now();
        while started.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "{} ended with {status}", self.name);
                return Ok(());
            }
            sleep(Duration::from_millis(1));
        }
        bail!("{} does not end after SIGTERM", self.name)
    }

    /// Resident bytes (`VmRSS` in proc(5)).
    pub(crate) fn resident_bytes(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        kib_of(&status, "VmRSS:").map(|kib| kib << 10).context("no VmRSS in /proc")
    }

    /// Seconds of processor time used so far (`utime` and `stime` in proc(5)).
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let ticks = cpu_ticks_of(&stat).context("no utime in /proc")?;
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no CLK_TCK")?;
        Ok(ticks as f64 / per_second as f64)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; there is nobody left to tell of anything else.
        if self.child.kill().is_ok() {
            self.child.wait().map(drop).unwrap_or_default();
        }
    }
}

/// Fields 14 and 15; the second field is a name in parentheses that may hold anything.
fn cpu_ticks_of(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read_by_its_manual() {
        let status = "Name:\tforebayd\nVmPeak:\t  9999 kB\nVmRSS:\t    1234 kB\nRssAnon:\t 1 kB\n";
        assert_eq!(kib_of(status, "VmRSS:"), Some(1234));
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 100 0 0 0 17 25 0 0 20 0 1 0 100 0";
        assert_eq!(cpu_ticks_of(stat), Some(42));
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let machine_core = {
            let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
            (0..CpuSet::count()).find(|core| allowed.is_set(*core).unwrap_or(false)).unwrap()
        };
        let mut process = Process::start(machine_core, Command::new("sleep").arg("60")).unwrap();
        assert!(process.resident_bytes().unwrap() > 0);
        assert!(process.cpu_seconds().unwrap() < 1.0);
        process.kill().unwrap();
        let pid = Pid::from_raw(process.child.id() as i32);
        drop(process);
        assert_eq!(kill(pid, None), Err(nix::errno::Errno::ESRCH));
    }
}
