//! A machine for tests: a tree of files, and a kernel that answers writes to it as Linux does.
//!
//! Fault model: the process dies before any chosen write (`die_before`); a write does nothing (the
//! driver's probe fails: `broken`); a disk is claimed by somebody (`claimed`); effects come some
//! pauses after the write (`slow`), and disks some pauses after their controller (`scan`).

use super::admin::AdminPath;
use super::drive::Drive;
use super::fake_controller::{FakeController, Says};
use super::machine::Machine;
use crate::media::System;
use nix::errno::Errno;
use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tempfile::TempDir;

/// The drive that most tests are about.
pub(super) const DRIVE: &str = "0000:03:00.0";

pub(super) struct FakeMachine {
    folder: TempDir,
    system: System,
    /// Every change, as the shell would write it, without the root.
    pub(super) log: Vec<String>,
    pub(super) die_before: Option<usize>,
    /// This driver takes no drive.
    pub(super) broken: Option<&'static str>,
    pub(super) claimed: Vec<&'static str>,
    /// After how many pauses a probe has its effect.
    pub(super) slow: usize,
    /// How many pauses a live controller has no disk.
    pub(super) scan: usize,
    pub(super) pauses: usize,
    pub(super) claims: Cell<usize>,
    /// How many partition tables were looked at again.
    pub(super) rereads: Cell<usize>,
    /// What the drives say while the kernel's driver has them.
    pub(super) says: Rc<RefCell<Says>>,
    probing: Option<String>,
    scanning: Option<(usize, String)>,
}

impl FakeMachine {
    /// A drive with one blank disk, with the kernel's driver, in IOMMU group 7; vfio-pci is loaded.
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let system = System::at(folder.path());
        let mut machine = Self {
            folder,
            system,
            log: Vec::new(),
            die_before: None,
            broken: None,
            claimed: Vec::new(),
            slow: 0,
            scan: 0,
            pauses: 0,
            claims: Cell::new(0),
            rereads: Cell::new(0),
            says: Rc::new(RefCell::new(Says::new())),
            probing: None,
            scanning: None,
        };
        for driver in ["nvme", "vfio-pci", "pcieport", "e1000e"] {
            fs::create_dir_all(machine.path(&format!("sys/bus/pci/drivers/{driver}"))).unwrap();
        }
        machine.function(DRIVE, "0x010802", Some(7));
        machine.attach(DRIVE, "nvme");
        machine
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub(super) fn put(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A function without a driver.
    pub(super) fn function(&self, address: &str, class: &str, group: Option<u32>) {
        let folder = format!("sys/bus/pci/devices/{address}");
        self.put(&format!("{folder}/class"), class);
        self.put(&format!("{folder}/numa_node"), "1\n");
        self.put(&format!("{folder}/driver_override"), "(null)\n");
        if let Some(group) = group {
            let members = self.path(&format!("sys/kernel/iommu_groups/{group}/devices/{address}"));
            fs::create_dir_all(members).unwrap();
            let link = self.path(&format!("{folder}/iommu_group"));
            symlink(self.path(&format!("sys/kernel/iommu_groups/{group}")), link).unwrap();
        }
    }

    /// A driver takes a function, as after its probe.
    pub(super) fn attach(&mut self, address: &str, driver: &str) {
        let link = self.path(&format!("sys/bus/pci/devices/{address}/driver"));
        symlink(self.path(&format!("sys/bus/pci/drivers/{driver}")), link).unwrap();
        if driver == "nvme" {
            self.bring_up(address);
            match self.scan {
                0 => self.add_disk(address, 1),
                scan => self.scanning = Some((self.pauses + scan, address.to_owned())),
            }
        }
    }

    /// What the kernel's driver shows of a drive: the address's bus number names it.
    fn bring_up(&self, address: &str) {
        let number = number(address);
        let controller = format!("sys/bus/pci/devices/{address}/nvme/nvme{number}");
        for (name, text) in [
            ("model", "FAKE NVMe\n".to_owned()),
            ("serial", format!("S{number}\n")),
            ("firmware_rev", "1.0\n".to_owned()),
            ("state", "live\n".to_owned()),
        ] {
            self.put(&format!("{controller}/{name}"), text);
        }
    }

    /// Namespace `nsid` of the drive, as a disk.
    pub(super) fn add_disk(&self, address: &str, nsid: u32) {
        let number = number(address);
        let controller = format!("sys/bus/pci/devices/{address}/nvme/nvme{number}");
        let disk = format!("nvme{number}n{nsid}");
        fs::create_dir_all(self.path(&format!("{controller}/{disk}"))).unwrap();
        let class = self.path(&format!("sys/class/block/{disk}"));
        self.put(&format!("sys/block/{disk}/dev"), format!("259:{number}\n"));
        self.put(&format!("sys/block/{disk}/nsid"), format!("{nsid}\n"));
        self.put(&format!("sys/block/{disk}/size"), "8192\n");
        self.put(&format!("sys/block/{disk}/queue/logical_block_size"), "4096\n");
        fs::create_dir_all(class.parent().unwrap()).unwrap();
        if !class.exists() {
            symlink(self.path(&format!("sys/block/{disk}")), class).unwrap();
        }
        let node = self.path(&format!("dev/{disk}"));
        fs::create_dir_all(node.parent().unwrap()).unwrap();
        if !node.exists() {
            File::create(&node).unwrap().set_len(4 << 20).unwrap();
        }
    }

    /// A process has `device` open.
    pub(super) fn process(&self, pid: u32, command: &str, device: &str) {
        self.put(&format!("proc/{pid}/comm"), format!("{command}\n"));
        let folder = self.path(&format!("proc/{pid}/fd"));
        fs::create_dir_all(&folder).unwrap();
        symlink(self.path(device), folder.join("3")).unwrap();
    }

    pub(super) fn driver(&self, address: &str) -> Option<String> {
        let link = self.path(&format!("sys/bus/pci/devices/{address}/driver"));
        Some(fs::read_link(link).ok()?.file_name()?.to_str()?.to_owned())
    }

    pub(super) fn driver_override(&self, address: &str) -> String {
        let path = self.path(&format!("sys/bus/pci/devices/{address}/driver_override"));
        fs::read_to_string(path).unwrap().trim().to_owned()
    }

    fn die_if_due(&self) -> io::Result<()> {
        match self.die_before {
            Some(number) if number == self.log.len() => Err(io::Error::other("killed")),
            _ => Ok(()),
        }
    }

    /// drivers_probe: the driver that was named takes it, or else the kernel's own.
    fn probe(&mut self, address: &str) {
        let named = self.driver_override(address);
        let driver = if named == "(null)" { "nvme" } else { &named };
        let driver = driver.to_owned();
        if self.driver(address).is_none() && self.broken != Some(&driver) {
            self.attach(address, &driver);
        }
    }
}

/// The number of a drive's controller and disks: its bus's.
fn number(address: &str) -> u32 {
    u32::from_str_radix(&address[5..7], 16).unwrap()
}

impl Machine for FakeMachine {
    fn system(&self) -> &System {
        &self.system
    }

    fn write(&mut self, path: &Path, value: &str) -> io::Result<()> {
        self.die_if_due()?;
        let shown = path.strip_prefix(self.folder.path()).unwrap().display().to_string();
        self.log.push(format!("{} > /{shown}", value.trim()));
        let value = value.trim();
        if shown.ends_with("/driver_override") {
            return fs::write(path, if value.is_empty() { "(null)\n" } else { value });
        }
        if shown == "sys/bus/pci/drivers_probe" {
            match self.slow {
                0 => self.probe(value),
                _ => self.probing = Some(value.to_owned()),
            }
            return Ok(());
        }
        let driver = shown.strip_prefix("sys/bus/pci/drivers/").unwrap();
        let driver = driver.strip_suffix("/unbind").unwrap();
        if self.driver(value).as_deref() != Some(driver) {
            return Err(Errno::ENODEV.into());
        }
        fs::remove_file(self.path(&format!("sys/bus/pci/devices/{value}/driver")))?;
        if driver == "nvme" {
            fs::remove_dir_all(self.path(&format!("sys/bus/pci/devices/{value}/nvme")))?;
        }
        Ok(())
    }

    fn load(&mut self, module: &str) -> anyhow::Result<()> {
        self.die_if_due()?;
        self.log.push(format!("modprobe {module}"));
        fs::create_dir_all(self.path(&format!("sys/bus/pci/drivers/{module}")))?;
        Ok(())
    }

    fn claim(&self, device: &Path) -> io::Result<File> {
        if self.claimed.iter().any(|name| device.ends_with(name)) {
            return Err(Errno::EBUSY.into());
        }
        self.claims.set(self.claims.get() + 1);
        File::open(device)
    }

    fn is_taken(&self, device: &Path) -> bool {
        self.claimed.iter().any(|name| device.ends_with(name))
    }

    fn reread(&self, _disk: &File) -> io::Result<()> {
        self.rereads.set(self.rereads.get() + 1);
        Ok(())
    }

    fn admin(&self, drive: &Drive) -> anyhow::Result<Box<dyn AdminPath>> {
        match drive.driver.as_deref() {
            Some("nvme") => Ok(Box::new(FakeController(Rc::clone(&self.says)))),
            // Never the real one: a drive of this machine may have the same address.
            driver => anyhow::bail!("no way to a drive with {driver:?}"),
        }
    }

    fn pause(&mut self) {
        self.pauses += 1;
        if let Some((_, address)) = self.scanning.take_if(|(at, _)| *at <= self.pauses) {
            self.add_disk(&address, 1);
        }
        if self.pauses == self.slow
            && let Some(address) = self.probing.take()
        {
            self.probe(&address);
        }
    }
}
