//! What can be said of a drive before it is touched: sysfs tells what is in the way.
//!
//! Guarantees: reads only. What it says may be over a moment later; the kernel then refuses, and that is an error
//! as well.

use crate::pci::{CLASS_NVME, Function, PciAddress, Sysfs, shares_vfio_group};

use super::OpenError;

/// The one driver that gives devices to user space here.
const DRIVER: &str = "vfio-pci";

/// The IOMMU group of the NVMe drive at `address`, which is bound and not in anybody's way.
pub(super) fn check(sysfs: &Sysfs, address: PciAddress) -> Result<(Function, u32), OpenError> {
    let function = sysfs.function(address).ok_or(OpenError::NotFound { address })?;
    let class = function.class().unwrap_or(0);
    if class != CLASS_NVME {
        return Err(OpenError::NotNvme { address, class, what: class_name(class) });
    }
    if function.is_noiommu() {
        return Err(OpenError::NoIommuMode { address });
    }
    // Comes before the driver: without an IOMMU nothing can be bound to vfio-pci.
    let group = function.iommu_group().ok_or(OpenError::NoIommu { address })?;
    match function.driver() {
        Some(driver) if driver == DRIVER => {}
        Some(driver) => return Err(OpenError::OtherDriver { address, driver }),
        None => return Err(OpenError::Unbound { address }),
    }
    Ok((function, group))
}

/// The devices for which the kernel says that the group of `function` is not free.
pub(super) fn shared(sysfs: &Sysfs, function: &Function, group: u32) -> OpenError {
    let in_use = |member: &PciAddress| {
        let driver = sysfs.function(*member)?.driver()?;
        (!shares_vfio_group(&driver)).then(|| format!("{member} (driver `{driver}`)"))
    };
    let others: Vec<String> = function.group_members().iter().filter_map(in_use).collect();
    let others = if others.is_empty() { "devices in use".into() } else { others.join(", ") };
    OpenError::GroupShared { address: function.address(), group, others }
}

/// What a class code says, in a person's words (PCI Code and ID Assignment, section 1).
fn class_name(class: u32) -> &'static str {
    match (class >> 16, class >> 8 & 0xFF, class & 0xFF) {
        (1, 8, 3) => "an NVMe administrative controller",
        (1, 8, _) => "a memory controller before NVMe",
        (1, 6, _) => "a SATA controller",
        (1, 7, _) => "a SAS controller",
        (1, 4, _) => "a RAID controller",
        (1, ..) => "another storage controller",
        (2, ..) => "a network controller",
        (3, ..) => "a display controller",
        (4, ..) => "a multimedia device",
        (5, ..) => "a memory controller",
        (6, ..) => "a bridge",
        (8, ..) => "a part of the system",
        (0xC, 3, _) => "a USB controller",
        (0xC, ..) => "a serial bus controller",
        (0x12, ..) => "an accelerator",
        _ => "a device of another kind",
    }
}

#[cfg(test)]
mod tests {
    use crate::pci::tests::FakeSysfs;

    use super::*;

    const DRIVE: &str = "0000:03:00.0";

    fn refusal(fake: &FakeSysfs) -> String {
        check(&fake.sysfs(), DRIVE.parse().unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn a_bound_drive_behind_an_iommu_is_accepted() {
        let fake = FakeSysfs::new();
        fake.add(DRIVE, "0x010802", Some("vfio-pci"), Some(7));
        let (function, group) = check(&fake.sysfs(), DRIVE.parse().unwrap()).unwrap();
        assert_eq!((function.address().to_string().as_str(), group), (DRIVE, 7));
    }

    #[test]
    fn each_refusal_says_what_is_there_and_what_to_do() {
        for (class, driver, group, says) in [
            (
                "0x020000",
                Some("e1000e"),
                Some(1),
                "not an NVMe drive, but a network controller (class 0x020000)",
            ),
            ("0x010803", None, Some(1), "an NVMe administrative controller"),
            ("0x010601", Some("vfio-pci"), Some(1), "a SATA controller"),
            ("rubbish", None, None, "a device of another kind (class 0x000000)"),
            (
                "0x010802",
                Some("nvme"),
                Some(1),
                "driver `nvme`; run `forebay devices bind 0000:03:00.0`",
            ),
            (
                "0x010802",
                None,
                Some(1),
                "no driver is bound to it; run `forebay devices bind 0000:03:00.0`",
            ),
            ("0x010802", Some("nvme"), None, "boot Linux with `intel_iommu=on`"),
            ("0x010802", None, None, "boot Linux with `intel_iommu=on`"),
            ("0x010802", Some("vfio-pci"), None, "boot Linux with `intel_iommu=on`"),
        ] {
            let fake = FakeSysfs::new();
            fake.add(DRIVE, class, driver, group);
            let text = refusal(&fake);
            assert!(text.starts_with("0000:03:00.0: ") && text.contains(says), "{text}");
            assert!(!text.contains('\n'), "{text}");
        }
        assert!(refusal(&FakeSysfs::new()).contains("no PCI device there; `forebay devices list`"));
    }

    #[test]
    fn a_pretended_iommu_is_refused() {
        let fake = FakeSysfs::new();
        fake.add(DRIVE, "0x010802", Some("vfio-pci"), Some(0));
        let name = fake.folder.path().join("kernel/iommu_groups/0/name");
        std::fs::write(name, "vfio-noiommu\n").unwrap();
        assert!(refusal(&fake).contains("could write to all memory"));
    }

    #[test]
    fn a_shared_group_names_those_that_are_in_use() {
        let fake = FakeSysfs::new();
        fake.add(DRIVE, "0x010802", Some("vfio-pci"), Some(4));
        fake.add("0000:03:00.1", "0x020000", Some("e1000e"), Some(4));
        fake.add("0000:02:00.0", "0x060400", Some("pcieport"), Some(4));
        fake.add("0000:04:00.0", "0x010802", Some("nvme"), Some(4));
        fake.add("0000:05:00.0", "0x010802", None, Some(4));
        let (function, group) = check(&fake.sysfs(), DRIVE.parse().unwrap()).unwrap();
        let text = shared(&fake.sysfs(), &function, group).to_string();
        let others = "group 4 with 0000:03:00.1 (driver `e1000e`), 0000:04:00.0 (driver `nvme`);";
        assert!(text.contains(others), "{text}");
    }
}
