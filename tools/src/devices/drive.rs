//! One NVMe controller as the system's files describe it: no command is sent to it.
//!
//! Guarantees: only reads; what is not there is `None`. Which of it is known depends on who has the
//! drive: the kernel's own driver tells model, serial number and disks, vfio-pci tells nothing.

use crate::exit::{Code, Failure};
use crate::media::{DeviceId, System, attribute, name_of, names, usage};
use forebay_nvme::pci::{CLASS_NVME, Function, PciAddress, Sysfs, shares_vfio_group};
use std::fs;
use std::path::PathBuf;

/// The kernel's own driver.
pub(super) const KERNEL: &str = "nvme";
/// The driver that hands a function to a process.
pub(super) const VFIO: &str = "vfio-pci";

/// An NVMe controller.
#[derive(Clone, Debug)]
pub(super) struct Drive {
    pub(super) address: PciAddress,
    pub(super) driver: Option<String>,
    /// The one driver that may take it, if that was said.
    pub(super) driver_override: Option<String>,
    pub(super) group: Option<u32>,
    /// Its group has no IOMMU behind it.
    pub(super) pretended_group: bool,
    /// The other functions of its group, each with its driver.
    pub(super) neighbours: Vec<(PciAddress, Option<String>)>,
    pub(super) numa_node: Option<u32>,
    /// Where the kernel's driver has it.
    pub(super) controller: Option<Controller>,
    /// Its block devices, where the kernel's driver has it.
    pub(super) disks: Vec<Disk>,
    /// Its character device under `/dev/vfio/devices`, in newer kernels.
    vfio_devices: Vec<String>,
}

/// A controller of the kernel's driver.
#[derive(Clone, Debug)]
pub(super) struct Controller {
    /// `nvme0`.
    pub(super) name: String,
    pub(super) model: Option<String>,
    pub(super) serial: Option<String>,
    pub(super) firmware: Option<String>,
    /// `live`, or what keeps it from that.
    pub(super) state: Option<String>,
}

/// A namespace as a block device.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    /// `nvme0n1`.
    pub(super) name: String,
    /// Its folder in sysfs.
    pub(super) folder: PathBuf,
    /// The namespace's number, which need not be that of its name.
    pub(super) nsid: Option<u32>,
    /// 0 if the kernel cannot read it, or does not say.
    pub(super) bytes: u64,
    pub(super) lba_bytes: Option<u32>,
}

/// A file through which a process uses a drive.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// What it is called here.
    pub(super) path: PathBuf,
    /// What it is.
    pub(super) device: Option<DeviceId>,
}

impl Drive {
    /// All NVMe controllers, in the order of their addresses.
    pub(super) fn all(system: &System) -> anyhow::Result<Vec<Self>> {
        let sysfs = Sysfs::new(system.sys(""));
        let functions = sysfs.nvme_functions()?;
        let found = functions.into_iter().filter_map(|address| sysfs.function(address));
        Ok(found.map(|function| Self::describe(system, &sysfs, &function)).collect())
    }

    /// The controller at `address`.
    pub(super) fn at(system: &System, address: PciAddress) -> anyhow::Result<Self> {
        let sysfs = Sysfs::new(system.sys(""));
        let wrong = |what: String| Failure::new(Code::NotFound, format!("{address} {what}"));
        let Some(function) = sysfs.function(address) else {
            let what = "is not there: `forebay devices list` shows the NVMe drives";
            return Err(wrong(what.to_owned()).into());
        };
        match function.class() {
            Some(CLASS_NVME) => Ok(Self::describe(system, &sysfs, &function)),
            class => {
                let class = class.map_or("unknown".to_owned(), |class| format!("{class:#08x}"));
                let hint = "`forebay devices list` shows the NVMe drives";
                Err(wrong(format!("is no NVMe controller (class {class}): {hint}")).into())
            }
        }
    }

    fn describe(system: &System, sysfs: &Sysfs, function: &Function) -> Self {
        let address = function.address();
        let driver_of = |address| sysfs.function(address).and_then(|other| other.driver());
        let others = function.group_members().into_iter().filter(|other| *other != address);
        let controller = controller(function);
        let disks = controller.as_ref().map(|named| disks(system, function, &named.name));
        Self {
            address,
            driver: function.driver(),
            driver_override: override_of(function),
            group: function.iommu_group(),
            pretended_group: function.is_noiommu(),
            neighbours: others.map(|other| (other, driver_of(other))).collect(),
            numa_node: function.numa_node(),
            controller,
            disks: disks.unwrap_or_default(),
            vfio_devices: names(function.path().join("vfio-dev")),
        }
    }

    pub(super) fn serial(&self) -> Option<&str> {
        self.controller.as_ref()?.serial.as_deref()
    }

    pub(super) fn has_driver(&self, name: &str) -> bool {
        self.driver.as_deref() == Some(name)
    }

    /// The functions that keep VFIO from giving the group to anybody.
    pub(super) fn obstacles(&self) -> impl Iterator<Item = (PciAddress, &str)> {
        let held = self.neighbours.iter();
        held.filter_map(|(address, driver)| Some((*address, driver.as_deref()?)))
            .filter(|(_, driver)| !shares_vfio_group(driver))
    }

    /// The file that VFIO gives to one process at a time, where vfio-pci has the drive.
    pub(super) fn vfio_group(&self, system: &System) -> Option<PathBuf> {
        let group = self.group.filter(|_| self.has_driver(VFIO))?;
        Some(system.dev(format!("vfio/{group}")))
    }

    /// The files through which a process uses the drive: its block and namespace devices, or VFIO's.
    pub(super) fn nodes(&self, system: &System) -> Vec<Node> {
        let mut nodes: Vec<Node> =
            self.disks.iter().flat_map(|disk| disk_nodes(system, disk)).collect();
        if self.has_driver(VFIO) {
            let group = self.group.iter().map(|group| ("class/vfio", "vfio", group.to_string()));
            let devices = self.vfio_devices.iter();
            let devices = devices.map(|name| ("class/vfio-dev", "vfio/devices", name.clone()));
            nodes.extend(group.chain(devices).map(|(class, folder, name)| {
                let device = DeviceId::of_character(&system.sys(class).join(&name));
                Node { path: system.dev(folder).join(name), device }
            }));
        }
        nodes
    }
}

/// A disk's own file, its namespace's, and those of its partitions.
fn disk_nodes(system: &System, disk: &Disk) -> Vec<Node> {
    let block = |folder: PathBuf| Node {
        path: system.dev(name_of(&folder)),
        device: DeviceId::of_block(&folder),
    };
    let generic = disk.name.replacen("nvme", "ng", 1);
    let class = system.sys("class/nvme-generic").join(&generic);
    let generic = Node { path: system.dev(generic), device: DeviceId::of_character(&class) };
    let whole = Node { path: system.dev(&disk.name), ..block(disk.folder.clone()) };
    let partitions = usage::partitions(&disk.folder).into_iter().map(block);
    [whole, generic].into_iter().chain(partitions).collect()
}

/// The kernel writes `(null)` for none.
fn override_of(function: &Function) -> Option<String> {
    attribute(function.path().join("driver_override")).filter(|name| name != "(null)")
}

fn controller(function: &Function) -> Option<Controller> {
    let folder = function.path().join("nvme");
    let name = names(&folder).into_iter().find(|name| number_after(name, "nvme").is_some())?;
    let read = |what| attribute(folder.join(&name).join(what)).map(|text| printable(&text));
    Some(Controller {
        model: read("model"),
        serial: read("serial"),
        firmware: read("firmware_rev"),
        state: read("state"),
        name,
    })
}

/// A drive's words without what would move a terminal's cursor: the kernel passes them on as they are.
fn printable(text: &str) -> String {
    let shown = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    text.chars().map(shown).collect()
}

/// The disks of a controller: `nvme0n1`, or `nvme2c0n1`, which is its path to `nvme2n1`.
fn disks(system: &System, function: &Function, controller: &str) -> Vec<Disk> {
    let found = names(function.path().join("nvme").join(controller));
    let mut disks: Vec<String> = found.iter().filter_map(|name| disk_name(name)).collect();
    disks.dedup();
    let disk = |name: String| {
        let link = system.sys("class/block").join(&name);
        let folder = fs::canonicalize(&link).unwrap_or(link);
        let read = |what| attribute(folder.join(what)).and_then(|text| text.parse::<u64>().ok());
        let small = |what| read(what).and_then(|value| u32::try_from(value).ok());
        // Sysfs counts in sectors of 512 bytes whatever the drive does.
        let bytes = read("size").unwrap_or(0).saturating_mul(512);
        let (nsid, lba_bytes) = (small("nsid"), small("queue/logical_block_size"));
        Disk { name, folder, nsid, bytes, lba_bytes }
    };
    disks.into_iter().map(disk).collect()
}

fn disk_name(entry: &str) -> Option<String> {
    let rest = entry.strip_prefix("nvme")?;
    let (before, namespace) = rest.split_once('n')?;
    let head = before.split_once('c').map_or(before, |(head, _)| head);
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (number(head) && number(namespace)).then(|| format!("nvme{head}n{namespace}"))
}

fn number_after(name: &str, prefix: &str) -> Option<u32> {
    name.strip_prefix(prefix)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_a_shared_namespace_is_its_disk_and_other_entries_are_none() {
        for (entry, disk) in [
            ("nvme0n1", Some("nvme0n1")),
            ("nvme12c3n45", Some("nvme12n45")),
            ("ng0n1", None),
            ("nvme0", None),
            ("hwmon3", None),
            ("nvmen", None),
            ("nvme0n1p1", None),
        ] {
            assert_eq!(disk_name(entry).as_deref(), disk, "{entry}");
        }
    }
}
