//! A running machine: its commands, its processes, its PCI devices, and the ends it can come to.

use super::agent::{Agent, Ended, Output};
use super::clock::wait_until;
use super::drive::{self, Backing};
use super::lines::Lines;
use super::nbd::Nbd;
use super::place::Place;
use super::qemu;
use super::qmp::Qmp;
use anyhow::{Context as _, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;
use std::cell::RefCell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::rc::Rc;
use std::time::Duration;

/// How long a boot may take.
const BOOT: Duration = Duration::from_secs(180);
/// How long a short command may take.
const COMMAND: Duration = Duration::from_secs(120);
/// How long a controller may take to come or go.
const HOTPLUG: Duration = Duration::from_secs(180);

/// See the module. What the guest is asked while it hangs ends in an error.
#[derive(Debug)]
pub struct Machine<'p> {
    place: &'p Place,
    qemu: Child,
    caches: Vec<Nbd>,
    agent: RefCell<Agent>,
    qmp: RefCell<Qmp>,
    port: u16,
    /// The machines of one test at a time.
    lock: Rc<Flock<File>>,
}

impl<'p> Machine<'p> {
    pub(super) fn boot(place: &'p Place) -> anyhow::Result<Self> {
        let lock = File::create(lock_file()).context("the lock of the machine")?;
        let lock = Flock::lock(lock, FlockArg::LockExclusive);
        let lock = lock.map_err(|(_, error)| error).context("waiting for the other machine")?;
        Self::under(Rc::new(lock), place)
    }

    /// Boots another machine while this one runs.
    ///
    /// # Errors
    /// It does not come up.
    pub fn boot_beside<'q>(&self, place: &'q Place) -> anyhow::Result<Machine<'q>> {
        Machine::under(Rc::clone(&self.lock), place)
    }

    fn under(lock: Rc<Flock<File>>, place: &'p Place) -> anyhow::Result<Self> {
        let (port, mut caches, mut media) = (qemu::free_ports()?, Vec::new(), Vec::new());
        for (number, drive) in place.drives.iter().enumerate() {
            let mut path = place.media(number);
            if drive.backing == Backing::Volatile {
                let cache = Nbd::start(place.folder(), number, &path)?;
                path = cache.socket().to_owned();
                caches.push(cache);
            }
            media.push(path);
        }
        let mut qemu = qemu::start(place, &media, port)?;
        let (agent, qmp) = match connect(place, &mut qemu) {
            Ok((agent, qmp)) => (RefCell::new(agent), RefCell::new(qmp)),
            Err(error) => {
                end(&mut qemu);
                let console = place.last_words();
                let said = std::fs::read_to_string(place.path("qemu.log")).unwrap_or_default();
                return Err(error.context(format!("the machine does not boot: {said}\n{console}")));
            }
        };
        Ok(Self { place, qemu, caches, agent, qmp, port, lock })
    }

    /// What it is made of.
    #[must_use]
    pub fn place(&self) -> &'p Place {
        self.place
    }

    /// The first of four ports in a row that are the same in the guest and on this host.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs a shell script in the guest, to its end or for `timeout`.
    ///
    /// # Errors
    /// The guest is gone or hangs. A script that fails is no error.
    pub fn run(&self, script: &str, timeout: Duration) -> anyhow::Result<Output> {
        self.agent.borrow_mut().run(script, timeout)
    }

    /// Runs a script that has to succeed; its standard output.
    ///
    /// # Errors
    /// It fails, or does not end within two minutes.
    pub fn sh(&self, script: &str) -> anyhow::Result<String> {
        let Output { status, stdout, stderr } = self.run(script, COMMAND)?;
        ensure!(status == 0, "{script:?} ended with {status}: {stdout}{stderr}");
        Ok(stdout)
    }

    /// Starts a script in the background; its output goes to `NAME.log` in the shared folder.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, name: &str, script: &str) -> anyhow::Result<Process<'_, 'p>> {
        let file = format!("{name}.log");
        let log = self.place.share().join(&file);
        let log_from = std::fs::metadata(&log).map_or(0, |log| log.len());
        let pid = self.agent.borrow_mut().spawn(script, &format!("/vm/{file}"))?;
        Ok(Process { machine: self, pid, log, log_from })
    }

    /// Runs a command of QEMU's own.
    ///
    /// # Errors
    /// It refuses.
    pub fn qmp(&self, command: &str, arguments: &Value) -> anyhow::Result<Value> {
        self.qmp.borrow_mut().execute(command, arguments)
    }

    /// Waits for an event of QEMU's.
    ///
    /// # Errors
    /// It does not come.
    pub fn qmp_event(&self, name: &str, patience: Duration) -> anyhow::Result<Value> {
        self.qmp.borrow_mut().event(name, patience)
    }

    /// The guest's PCI address of drive `number`.
    ///
    /// # Errors
    /// There is no controller there.
    pub fn pci_address(&self, number: usize) -> anyhow::Result<String> {
        let port = drive::root_port_address(number);
        // The port's own services lie beside what is behind it.
        let address = "^0000:[0-9a-f][0-9a-f]:00[.]0$";
        let list = format!("ls /sys/bus/pci/devices/{port} | grep '{address}' || true");
        let found = self.sh(&list)?;
        let found = found.lines().next().with_context(|| format!("no drive behind {port}"))?;
        Ok(found.to_owned())
    }

    /// The guest's block device of drive `number`, while the kernel's driver has it.
    ///
    /// # Errors
    /// It has not.
    pub fn block_device(&self, number: usize) -> anyhow::Result<String> {
        let pci = self.pci_address(number)?;
        let look = format!("ls -d /sys/bus/pci/devices/{pci}/nvme/nvme*/nvme*n1 2>/dev/null");
        let found = wait_until("the block device", HOTPLUG, || {
            let output = self.run(&look, COMMAND)?;
            Ok(output.stdout.lines().next().map(str::to_owned))
        })?;
        let name = found.rsplit('/').next().unwrap_or_default();
        Ok(format!("/dev/{name}"))
    }

    /// The driver that has the device at `pci`, if one has.
    ///
    /// # Errors
    /// The guest does not say.
    pub fn driver(&self, pci: &str) -> anyhow::Result<Option<String>> {
        let link = format!("readlink /sys/bus/pci/devices/{pci}/driver || true");
        let found = self.sh(&link)?;
        Ok(found.trim().rsplit('/').next().filter(|name| !name.is_empty()).map(str::to_owned))
    }

    /// Gives the device at `pci` to another driver: `vfio-pci`, or `nvme` for the kernel's own.
    ///
    /// # Errors
    /// That driver does not take it.
    pub fn bind(&self, pci: &str, driver: &str) -> anyhow::Result<()> {
        self.sh(&format!(
            "cd /sys/bus/pci/devices/{pci} && echo {driver} > driver_override && \
             if [ -e driver ]; then echo {pci} > driver/unbind; fi && \
             echo {pci} > /sys/bus/pci/drivers_probe"
        ))?;
        let now = self.driver(pci)?;
        ensure!(now.as_deref() == Some(driver), "{pci} is bound to {now:?}, not to {driver}");
        Ok(())
    }

    /// Gives drive `number` to `vfio-pci`; its PCI address.
    ///
    /// # Errors
    /// It does not take it.
    pub fn bind_vfio(&self, number: usize) -> anyhow::Result<String> {
        let pci = self.pci_address(number)?;
        self.bind(&pci, "vfio-pci")?;
        Ok(pci)
    }

    /// Begins to pull drive `number`: the guest is asked to let go.
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn pull(&self, number: usize) -> anyhow::Result<()> {
        let arguments = serde_json::json!({ "id": drive::device_id(number) });
        self.qmp("device_del", &arguments).map(drop)
    }

    /// Waits until drive `number` is gone.
    ///
    /// # Errors
    /// The guest does not let go.
    pub fn wait_pulled(&self, number: usize) -> anyhow::Result<()> {
        loop {
            let data = self.qmp_event("DEVICE_DELETED", HOTPLUG).context("pulling a drive")?;
            if data["device"] == drive::device_id(number) {
                return Ok(());
            }
        }
    }

    /// Puts drive `number` back where it was, with what is on it; returns when the guest has it.
    ///
    /// # Errors
    /// The guest does not see it.
    pub fn push_back(&self, number: usize) -> anyhow::Result<()> {
        self.qmp("device_add", &self.place.drives[number].device(number))?;
        wait_until("the drive", HOTPLUG, || Ok(self.pci_address(number).ok())).map(drop)
    }

    /// Cuts the power: SIGKILL for QEMU and for all write caches.
    ///
    /// # Errors
    /// They cannot be killed.
    pub fn power_cut(mut self) -> anyhow::Result<()> {
        // The caches first: what QEMU still says to them is lost like all that they hold.
        for cache in &mut self.caches {
            cache.kill()?;
        }
        self.qemu.kill().context("killing QEMU")?;
        self.qemu.wait().context("waiting for QEMU")?;
        Ok(())
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        end(&mut self.qemu);
    }
}

/// A process in the guest. It is not killed when dropped: the guest ends with its test.
#[derive(Debug)]
pub struct Process<'m, 'p> {
    machine: &'m Machine<'p>,
    pid: u32,
    log: PathBuf,
    log_from: u64,
}

impl Process<'_, '_> {
    /// Its number in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal (`KILL`, `TERM`) to it.
    ///
    /// # Errors
    /// There is no such process any more.
    pub fn signal(&self, signal: &str) -> anyhow::Result<()> {
        self.machine.sh(&format!("kill -{signal} {}", self.pid)).map(drop)
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// The guest is gone.
    pub fn ended(&self) -> anyhow::Result<Option<Ended>> {
        self.machine.agent.borrow_mut().ended(self.pid, Duration::ZERO)
    }

    /// Waits for its end; its status.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn wait(&self, patience: Duration) -> anyhow::Result<i32> {
        match self.machine.agent.borrow_mut().ended(self.pid, patience)? {
            Some(Ended { status }) => Ok(status),
            None => bail!("process {} runs on; it said:\n{}", self.pid, self.log()),
        }
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// It has ended before.
    pub fn kill(&self) -> anyhow::Result<()> {
        self.signal("KILL")?;
        let status = self.wait(COMMAND)?;
        ensure!(status == 137, "the process ended with {status}, not by SIGKILL:\n{}", self.log());
        Ok(())
    }

    /// What it has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let from = (self.log_from as usize).min(bytes.len());
        String::from_utf8_lossy(&bytes[from..]).into_owned()
    }
}

/// Held while a test's machines run: one for each user of this host, whichever checkout the tests are of.
fn lock_file() -> PathBuf {
    Path::new("/tmp").join(format!("forebay-vm-{}.lock", nix::unistd::getuid()))
}

fn connect(place: &Place, qemu: &mut Child) -> anyhow::Result<(Agent, Qmp)> {
    let mut socket = |name: &str| {
        let path: &Path = &place.path(name);
        wait_until(name, BOOT, || {
            if let Some(status) = qemu.try_wait()? {
                bail!("QEMU ended with {status}");
            }
            Ok(Lines::connect(path).ok())
        })
    };
    // The agent's first: the guest must find somebody at the other end.
    let (agent, qmp) = (socket("agent.sock")?, socket("qmp.sock")?);
    Ok((Agent::greet(agent, BOOT)?, Qmp::greet(qmp)?))
}

fn end(qemu: &mut Child) {
    if qemu.kill().is_ok() {
        qemu.wait().map(drop).unwrap_or_default();
    }
}
