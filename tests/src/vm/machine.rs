//! A running machine: its commands, its processes, its PCI devices, and the ends it can come to.

use super::agent::{Agent, Ended, Output};
use super::clock::wait_until;
use super::drive::{self, Backing};
use super::lines::Lines;
use super::nbd::Nbd;
use super::place::{Place, bound_to_this_thread};
use super::qmp::Qmp;
use anyhow::{Context as _, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;
use std::cell::RefCell;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// Cores of a machine: a daemon with two reactors has both.
const CORES: u32 = 2;
/// Its memory, in MiB.
const MEMORY_MIB: u32 = 2048;
/// How long a boot may take.
const BOOT: Duration = Duration::from_secs(180);
/// How long a short command may take.
const COMMAND: Duration = Duration::from_secs(120);
/// How long a controller may take to come or go.
const HOTPLUG: Duration = Duration::from_secs(180);
/// Ports in a row that lead into the guest.
const PORTS: u16 = 4;

/// See the module. What the guest is asked while it hangs ends in an error.
#[derive(Debug)]
pub struct Machine<'p> {
    place: &'p Place,
    qemu: Child,
    caches: Vec<Nbd>,
    agent: RefCell<Agent>,
    qmp: RefCell<Qmp>,
    port: u16,
    /// One machine at a time.
    _lock: Flock<File>,
}

impl<'p> Machine<'p> {
    pub(super) fn boot(place: &'p Place) -> anyhow::Result<Self> {
        let lock = File::create(lock_file()).context("the lock of the machine")?;
        let lock = Flock::lock(lock, FlockArg::LockExclusive);
        let lock = lock.map_err(|(_, error)| error).context("waiting for the other machine")?;
        let (port, mut caches, mut media) = (free_ports()?, Vec::new(), Vec::new());
        for (number, drive) in place.drives.iter().enumerate() {
            let mut path = place.media(number);
            if drive.backing == Backing::Volatile {
                let cache = Nbd::start(place.folder(), number, &path)?;
                path = cache.socket().to_owned();
                caches.push(cache);
            }
            media.push(path);
        }
        let mut qemu = start_qemu(place, &media, port)?;
        let (agent, qmp) = match connect(place, &mut qemu) {
            Ok((agent, qmp)) => (RefCell::new(agent), RefCell::new(qmp)),
            Err(error) => {
                end(&mut qemu);
                let console = place.last_words();
                let said = std::fs::read_to_string(place.path("qemu.log")).unwrap_or_default();
                return Err(error.context(format!("the machine does not boot: {said}\n{console}")));
            }
        };
        Ok(Self { place, qemu, caches, agent, qmp, port, _lock: lock })
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

/// Held while a machine runs: one for each user of this host, whichever checkout the tests are of.
fn lock_file() -> PathBuf {
    Path::new("/tmp").join(format!("forebay-vm-{}.lock", nix::unistd::getuid()))
}

fn start_qemu(place: &Place, media: &[PathBuf], port: u16) -> anyhow::Result<Child> {
    let log = File::create(place.path("qemu.log"))?;
    let mut command = bound_to_this_thread("qemu-system-x86_64");
    command.current_dir(place.folder()).args(arguments(place, media, port));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command
        .spawn()
        .context("cannot start qemu-system-x86_64: run `make test-vm`, which installs it")
}

fn arguments(place: &Place, media: &[PathBuf], port: u16) -> Vec<String> {
    let (kernel, initramfs) = (place.prepared.kernel(), place.prepared.initramfs());
    let agent = place.prepared.agent().display();
    let mut all: Vec<String> = Vec::new();
    let mut add = |option: &str, value: String| all.extend([option.to_owned(), value]);
    add("-M", "q35,kernel-irqchip=split".to_owned());
    add("-accel", "tcg,thread=multi".to_owned());
    add("-cpu", "max".to_owned());
    add("-smp", CORES.to_string());
    add("-m", format!("{MEMORY_MIB}M"));
    add("-display", "none".to_owned());
    add("-kernel", kernel.display().to_string());
    add("-initrd", initramfs.display().to_string());
    let iommu = if place.iommu { "intel_iommu=on iommu=pt" } else { "intel_iommu=off" };
    // On a busy host the kernel would find that its timer does not work, and give up.
    let console = "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check";
    let modules = place.prepared.modules();
    let ours = format!("forebay.agent={agent} forebay.modules={}", modules.display());
    add("-append", format!("{console} {iommu} {ours}"));
    if place.iommu {
        let iommu = "intel-iommu,intremap=on,caching-mode=on,aw-bits=48";
        add("-device", iommu.to_owned());
    }
    add("-chardev", "file,id=console,path=console.log,append=on".to_owned());
    add("-serial", "chardev:console".to_owned());
    for (name, path, how) in [("host", "/", ",readonly=on,multidevs=remap"), ("share", "share", "")]
    {
        add("-fsdev", format!("local,id={name},path={path},security_model=none{how}"));
        add("-device", format!("virtio-9p-pci,fsdev={name},mount_tag={name},ioeventfd=off"));
    }
    // Each queue's eventfd would be looked at whenever QEMU's main loop wakes, which a drive's doorbell has
    // it do: those of a serial device of the usual size take more than half of the drive's speed.
    add("-device", "virtio-serial-pci,max_ports=2,ioeventfd=off".to_owned());
    add("-chardev", "socket,id=agent,path=agent.sock,server=on,wait=off".to_owned());
    add("-device", "virtserialport,chardev=agent,name=agent".to_owned());
    add("-qmp", "unix:qmp.sock,server=on,wait=off".to_owned());
    let forwards =
        (port..port + PORTS).map(|port| format!(",hostfwd=tcp:127.0.0.1:{port}-:{port}"));
    add("-netdev", format!("user,id=net{}", forwards.collect::<String>()));
    add("-device", "virtio-net-pci,netdev=net,romfile=,ioeventfd=off".to_owned());
    for (number, (drive, media)) in place.drives.iter().zip(media).enumerate() {
        add("-device", drive::root_port(number));
        for node in drive.nodes(number, media) {
            add("-blockdev", node.to_string());
        }
        add("-device", drive.device(number).to_string());
    }
    all.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
    all
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

/// The first of [`PORTS`] ports in a row that nobody listens on.
fn free_ports() -> anyhow::Result<u16> {
    for _ in 0..100 {
        let first = TcpListener::bind("127.0.0.1:0").context("no port of 127.0.0.1 is free")?;
        let port = first.local_addr()?.port();
        let Some(last) = port.checked_add(PORTS - 1) else { continue };
        if (port + 1..=last).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return Ok(port);
        }
    }
    bail!("no {PORTS} ports in a row are free")
}
