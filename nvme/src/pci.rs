//! PCI functions as sysfs shows them: addresses, and what the system knows of a function.
//!
//! Guarantees: only reads; what is not there, or not readable as what it should be, is `None`, never a guess;
//! lists come in the order of their addresses. What breaks it: nothing. A function that is unplugged while it
//! is looked at turns into `None`s.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Class code of an NVMe I/O controller: mass storage, non-volatile memory, NVM Express (PCI Code and ID
/// Assignment, section 1.2).
pub const CLASS_NVME: u32 = 0x01_0802;

/// Where a function is: `domain:bus:device.function`, all hexadecimal, as `lspci -D` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// 16 bits on most machines; controllers that make domains of their own (Intel VMD) begin at 0x10000.
    domain: u32,
    bus: u8,
    /// 0 … 31.
    device: u8,
    /// 0 … 7.
    function: u8,
}

/// The text is not a PCI address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a PCI address; write it as 0000:03:00.0 (`lspci -D -d ::0108` lists the NVMe drives)"
)]
pub struct AddressError {
    text: String,
}

impl FromStr for PciAddress {
    type Err = AddressError;

    /// Reads `0000:03:00.0`, or `03:00.0` for domain 0.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        parse(text).ok_or_else(|| AddressError { text: text.into() })
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.split_once(':').unwrap_or(("0000", rest));
    let address = PciAddress {
        domain: hex(domain, 4..=8)?,
        bus: hex(bus, 2..=2)?.try_into().ok()?,
        device: hex(device, 2..=2)?.try_into().ok()?,
        function: hex(function, 1..=1)?.try_into().ok()?,
    };
    (address.device < 32 && address.function < 8).then_some(address)
}

/// `text` in as many hexadecimal digits as `digits` allows. (`from_str_radix` alone would take a sign.)
fn hex(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<u32> {
    let plain = digits.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(text, 16).ok())?
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

/// Whether a function with this driver may stay in an IOMMU group that a process drives: VFIO's own drivers
/// (vfio-pci and those made of it for one kind of device), and those that do no DMA (the kernel's VFIO
/// documentation, "Groups, Devices, and IOMMUs").
#[must_use]
pub fn shares_vfio_group(driver: &str) -> bool {
    driver.ends_with("vfio-pci") || matches!(driver, "pci-stub" | "pcieport")
}

/// The system's view of its PCI functions.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
}

impl Sysfs {
    /// As if `root` were `/sys`.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// This machine's.
    #[must_use]
    pub fn system() -> Self {
        Self::new("/sys".into())
    }

    /// The folder it looks into.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All NVMe I/O controllers, in order.
    ///
    /// # Errors
    /// The list of functions cannot be read. (A machine without PCI has an empty list.)
    pub fn nvme_functions(&self) -> io::Result<Vec<PciAddress>> {
        let mut found = addresses_in(&self.devices())?;
        found.retain(|address| {
            self.function(*address).and_then(|function| function.class()) == Some(CLASS_NVME)
        });
        Ok(found)
    }

    /// The function at `address`, if there is one.
    #[must_use]
    pub fn function(&self, address: PciAddress) -> Option<Function> {
        let path = self.devices().join(address.to_string());
        path.is_dir().then_some(Function { address, path })
    }

    fn devices(&self) -> PathBuf {
        self.root.join("bus/pci/devices")
    }
}

/// One PCI function.
#[derive(Clone, Debug)]
pub struct Function {
    address: PciAddress,
    path: PathBuf,
}

impl Function {
    /// Where it is.
    #[must_use]
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// Its folder in sysfs.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Class code: base class, subclass, programming interface, a byte each.
    #[must_use]
    pub fn class(&self) -> Option<u32> {
        self.hex_attribute("class")
    }

    /// Vendor ID.
    #[must_use]
    pub fn vendor(&self) -> Option<u32> {
        self.hex_attribute("vendor")
    }

    /// Device ID.
    #[must_use]
    pub fn device_id(&self) -> Option<u32> {
        self.hex_attribute("device")
    }

    /// The kernel driver that holds it.
    #[must_use]
    pub fn driver(&self) -> Option<String> {
        self.link_name("driver")
    }

    /// The number of its IOMMU group; `None` without an IOMMU.
    #[must_use]
    pub fn iommu_group(&self) -> Option<u32> {
        self.link_name("iommu_group")?.parse().ok()
    }

    /// Whether the group is a pretended one, without an IOMMU behind it (vfio's no-IOMMU mode).
    #[must_use]
    pub fn is_noiommu(&self) -> bool {
        self.attribute("iommu_group/name").as_deref() == Some("vfio-noiommu")
    }

    /// Every function of its IOMMU group, itself among them, in order.
    #[must_use]
    pub fn group_members(&self) -> Vec<PciAddress> {
        addresses_in(&self.path.join("iommu_group/devices")).unwrap_or_default()
    }

    /// The NUMA node that it is nearest to, where the system knows.
    #[must_use]
    pub fn numa_node(&self) -> Option<u32> {
        // -1 says that it is not known.
        self.attribute("numa_node")?.parse().ok()
    }

    fn attribute(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.path.join(name)).ok()?;
        Some(text.trim().into())
    }

    fn hex_attribute(&self, name: &str) -> Option<u32> {
        hex(self.attribute(name)?.strip_prefix("0x")?, 1..=8)
    }

    fn link_name(&self, name: &str) -> Option<String> {
        let target = fs::read_link(self.path.join(name)).ok()?;
        Some(target.file_name()?.to_str()?.into())
    }
}

/// The entries of `folder` that are PCI addresses, in order; none if it is not there.
fn addresses_in(folder: &Path) -> io::Result<Vec<PciAddress>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        found.extend(entry?.file_name().to_str().and_then(parse));
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    fn address(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_read_with_and_without_its_domain() {
        for (text, canonical) in [
            ("0000:03:00.0", "0000:03:00.0"),
            ("03:00.0", "0000:03:00.0"),
            ("AB:1f.7", "0000:ab:1f.7"),
            ("10000:e1:00.0", "10000:e1:00.0"),
            ("ffffffff:ff:1f.7", "ffffffff:ff:1f.7"),
        ] {
            assert_eq!(address(text).to_string(), canonical);
            assert_eq!(address(canonical), address(text));
        }
        assert!(address("02:1f.7") < address("03:00.0"));
        assert!(address("03:00.0") < address("0001:00:00.0"));
    }

    #[test]
    fn what_is_no_address_is_refused_with_an_example() {
        for text in [
            "",
            ":",
            ".",
            "nvme0",
            "03:00",
            "3:00.0",
            "03:20.0",
            "03:00.8",
            "03:00.0 ",
            " 03:00.0",
            "0000:003:00.0",
            "000:03:00.0",
            "123456789:03:00.0",
            "+3:00.0",
            "0000:03:+0.0",
            "03:00.00",
            "00:00:03:00.0",
            "03:00.é",
            "/dev/nvme0n1",
        ] {
            let error = text.parse::<PciAddress>().unwrap_err().to_string();
            assert!(error.contains("write it as 0000:03:00.0"), "{text}: {error}");
        }
    }

    /// A `/sys` of our own.
    pub(crate) struct FakeSysfs {
        pub(crate) folder: TempDir,
    }

    impl FakeSysfs {
        pub(crate) fn new() -> Self {
            Self { folder: tempfile::tempdir().unwrap() }
        }

        pub(crate) fn sysfs(&self) -> Sysfs {
            Sysfs::new(self.folder.path().into())
        }

        pub(crate) fn add(
            &self,
            name: &str,
            class: &str,
            driver: Option<&str>,
            group: Option<u32>,
        ) {
            let path = self.folder.path().join("bus/pci/devices").join(name);
            fs::create_dir_all(&path).unwrap();
            for (attribute, value) in [
                ("class", class),
                ("vendor", "0x1b36\n"),
                ("device", "0x0010\n"),
                ("numa_node", "-1\n"),
            ] {
                fs::write(path.join(attribute), value).unwrap();
            }
            if let Some(driver) = driver {
                symlink(format!("../../../../bus/pci/drivers/{driver}"), path.join("driver"))
                    .unwrap();
            }
            if let Some(group) = group {
                let folder = self.folder.path().join(format!("kernel/iommu_groups/{group}"));
                fs::create_dir_all(folder.join("devices").join(name)).unwrap();
                symlink(folder, path.join("iommu_group")).unwrap();
            }
        }
    }

    #[test]
    fn a_function_is_described_by_what_sysfs_has() {
        let fake = FakeSysfs::new();
        fake.add("0000:03:00.0", "0x010802\n", Some("vfio-pci"), Some(7));
        fake.add("0000:03:00.1", "0x020000\n", Some("e1000e"), Some(7));
        let function = fake.sysfs().function(address("03:00.0")).unwrap();
        assert_eq!(function.class(), Some(CLASS_NVME));
        assert_eq!((function.vendor(), function.device_id()), (Some(0x1b36), Some(0x10)));
        assert_eq!(function.driver().as_deref(), Some("vfio-pci"));
        assert_eq!(function.iommu_group(), Some(7));
        assert_eq!(function.group_members(), [address("03:00.0"), address("03:00.1")]);
        assert_eq!(function.numa_node(), None, "-1 is no node");
        fs::write(function.path().join("numa_node"), "1\n").unwrap();
        assert_eq!(function.numa_node(), Some(1));
        assert!(!function.is_noiommu());
        fs::write(function.path().join("iommu_group/name"), "vfio-noiommu\n").unwrap();
        assert!(function.is_noiommu());
    }

    #[test]
    fn what_is_missing_or_garbled_is_none() {
        let fake = FakeSysfs::new();
        fake.add("0000:04:00.0", "banana", None, None);
        let function = fake.sysfs().function(address("04:00.0")).unwrap();
        assert_eq!((function.class(), function.driver()), (None, None));
        assert_eq!((function.iommu_group(), function.group_members()), (None, vec![]));
        assert!(fake.sysfs().function(address("05:00.0")).is_none());
    }

    #[test]
    fn only_nvme_controllers_are_listed_and_in_order() {
        let fake = FakeSysfs::new();
        assert_eq!(fake.sysfs().nvme_functions().unwrap(), [], "a machine without PCI");
        fake.add("10000:01:00.0", "0x010802", None, None);
        fake.add("0000:81:00.0", "0x010802", Some("nvme"), None);
        fake.add("0000:02:00.0", "0x010601", Some("ahci"), None);
        let found = fake.sysfs().nvme_functions().unwrap();
        assert_eq!(found, [address("81:00.0"), address("10000:01:00.0")]);
    }
}
