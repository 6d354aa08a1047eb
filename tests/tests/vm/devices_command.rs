//! `forebay devices` as a person types it: what it shows, what it refuses, and what it mends.

use crate::{DRIVE_BYTES, place};
use forebay_tests::vm::{Drive, Machine, Output, wait_until};
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

/// `forebay devices …` in a guest.
struct Devices<'m, 'p> {
    guest: &'m Machine<'p>,
    forebay: String,
}

impl<'m, 'p> Devices<'m, 'p> {
    fn new(guest: &'m Machine<'p>) -> Self {
        Self { guest, forebay: guest.place().binary("forebay").display().to_string() }
    }

    fn run(&self, line: &str) -> Output {
        self.guest.run(&format!("{} devices {line}", self.forebay), 3 * MINUTE).unwrap()
    }

    /// It succeeds; what it said.
    fn text(&self, line: &str) -> String {
        let output = self.run(line);
        assert_eq!(output.status, 0, "{line}: {}", output.stderr);
        println!("$ forebay devices {line}\n{}", output.stdout);
        output.stdout
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.text(&format!("{line} -o json"))).unwrap()
    }

    /// It is refused with status 4 and these words.
    fn refused(&self, line: &str, words: &[&str]) {
        let output = self.run(line);
        println!("$ forebay devices {line}\n{}", output.stderr);
        assert_eq!(output.status, 4, "{line}: {}", output.stderr);
        words.iter().for_each(|word| assert!(output.stderr.contains(word), "{}", output.stderr));
    }

    fn override_of(&self, pci: &str) -> String {
        let path = format!("cat /sys/bus/pci/devices/{pci}/driver_override");
        self.guest.sh(&path).unwrap().trim().to_owned()
    }
}

#[test]
fn a_drive_is_listed_bound_and_given_back() {
    let Some(place) = place() else { return };
    let place = place.drive(Drive::file(DRIVE_BYTES).lba_bytes(4096)).unwrap();
    let guest = place.boot().unwrap();
    let devices = Devices::new(&guest);
    let (pci, block) = (guest.pci_address(0).unwrap(), guest.block_device(0).unwrap());
    let name = block.trim_start_matches("/dev/");

    let list = devices.json("list");
    let drive = &list[0];
    assert_eq!((&drive["pci"], &drive["driver"]), (&pci.clone().into(), &"nvme".into()));
    assert_eq!((&drive["serial"], &drive["bytes"]), (&"forebay0".into(), &DRIVE_BYTES.into()));
    assert_eq!((&drive["lba"][0], &drive["disks"][0]), (&"4096".into(), &name.into()));
    assert_eq!((&drive["holder"], &drive["critical_warning"]), (&Value::Null, &0.into()));
    assert!(drive["iommu_group"].is_u64() && drive["temperature_c"].is_i64(), "{drive}");

    devices.text("list");
    devices.text(&format!("smart {pci}"));
    let said = devices.json(&format!("identify {pci}"));
    assert_eq!(said["controller"]["sn"], "forebay0");
    assert_eq!(said["namespaces"][0]["nsze"], DRIVE_BYTES / 4096);
    devices.text(&format!("identify {pci}"));

    let shown = devices.text(&format!("bind {pci}"));
    assert!(shown.contains(&format!("echo {pci} > /sys/bus/pci/drivers/nvme/unbind")), "{shown}");
    assert_eq!(guest.driver(&pci).unwrap().as_deref(), Some("nvme"), "that was a dry run");
    devices.text(&format!("bind {pci} --yes"));
    assert_eq!(guest.driver(&pci).unwrap().as_deref(), Some("vfio-pci"));
    assert!(devices.text(&format!("bind {pci} --yes")).contains("already"));

    let shown = devices.json("list");
    assert_eq!((&shown[0]["serial"], &shown[0]["driver"]), (&Value::Null, &"vfio-pci".into()));
    assert!(devices.text("list").contains("not asked"), "asking would reset it");
    let driven = &devices.json("list --ask")[0];
    assert_eq!((&driven["serial"], &driven["driver"]), (&"forebay0".into(), &"vfio-pci".into()));
    assert_eq!(driven["lba"][0], "4096", "nobody holds it, so that it can be asked");
    devices.text("list --ask");
    devices.text(&format!("unbind {pci}"));
    let group = format!("exec sleep 600 <>/dev/vfio/{}", driven["iommu_group"]);
    let holder = guest.spawn("holder", &group).unwrap();
    wait_until("the holder", MINUTE, || {
        Ok((!devices.json("list")[0]["holder"].is_null()).then_some(()))
    })
    .unwrap();
    devices.refused(&format!("unbind {pci} --yes"), &["driven by sleep"]);
    // Nobody whose descriptors are hidden is overlooked either.
    let hidden = format!("mount -t tmpfs none /proc && {} devices", devices.forebay);
    let hidden = format!("unshare -m sh -c '{hidden} unbind {pci} --yes'");
    let hidden = guest.run(&hidden, MINUTE).unwrap();
    assert_eq!(hidden.status, 4, "{}", hidden.stderr);
    assert!(hidden.stderr.contains("a process that is not seen here"), "{}", hidden.stderr);
    holder.kill().unwrap();
    devices.text(&format!("unbind {pci} --yes"));
    assert_eq!(guest.driver(&pci).unwrap().as_deref(), Some("nvme"));
    assert_eq!(devices.override_of(&pci), "(null)");
    assert_eq!(devices.json("list")[0]["state"], "live");
    let disks = &devices.json("list")[0]["disks"];
    assert_eq!(disks.as_array().unwrap().len(), 1, "unbind waits for them");

    // What an interruption leaves behind is mended by unbind, and finished by bind where the kernel's
    // driver still has the drive.
    let shown = devices.json(&format!("bind {pci}"));
    let steps = shown["drives"][0]["steps"].as_array().unwrap().clone();
    for (verb, driver) in [("unbind", "nvme"), ("bind", "vfio-pci")] {
        for done in 1..steps.len() {
            devices.text(&format!("unbind {pci} --yes"));
            for step in &steps[..done] {
                guest.sh(step.as_str().unwrap()).unwrap();
            }
            if verb == "bind" && guest.driver(&pci).unwrap().is_none() {
                devices.refused(&format!("bind {pci} --yes"), &["has no driver"]);
                devices.text(&format!("unbind {pci} --yes"));
            }
            devices.text(&format!("{verb} {pci} --yes"));
            assert_eq!(guest.driver(&pci).unwrap().as_deref(), Some(driver), "{verb} after {done}");
        }
    }
    devices.text(&format!("unbind {pci} --yes"));
    assert_eq!(devices.override_of(&pci), "(null)");
}

#[test]
fn a_drive_that_is_used_or_holds_something_is_not_taken() {
    let Some(place) = place() else { return };
    let place = place.drive(Drive::file(DRIVE_BYTES)).unwrap();
    // A partition table with one partition of Linux, from sector 2048 on (the MBR's first entry).
    let media = std::fs::File::options().write(true).open(place.media(0)).unwrap();
    let mut entry = [0; 16];
    entry[4] = 0x83;
    entry[8..12].copy_from_slice(&2048_u32.to_le_bytes());
    entry[12..16].copy_from_slice(&((128 << 20) / 512_u32).to_le_bytes());
    media.write_all_at(&entry, 446).unwrap();
    media.write_all_at(&[0x55, 0xaa], 510).unwrap();
    let guest = place.boot().unwrap();
    let devices = Devices::new(&guest);
    let (pci, block) = (guest.pci_address(0).unwrap(), guest.block_device(0).unwrap());

    devices.refused(&format!("bind {pci}"), &["holds 1 partition", "--confirm SERIAL"]);
    devices.refused(&format!("bind {pci} --yes"), &["holds 1 partition"]);
    assert_eq!(devices.run(&format!("bind {pci} --yes --confirm forebay9")).status, 2);

    let confirmed = format!("bind {pci} --yes --confirm forebay0");
    let format = format!("format {pci} --block-size 4096 --confirm forebay0");
    guest.sh(&format!("mkswap {block}p1 && swapon {block}p1")).unwrap();
    devices.refused(&confirmed, &["swap area in use"]);
    devices.refused(&format, &["swap area in use"]);
    assert!(devices.text("list").contains("swap area in use"));
    guest.sh(&format!("swapoff {block}p1")).unwrap();

    let reader = guest.spawn("reader", &format!("exec sleep 600 < {block}p1")).unwrap();
    wait_until("the reader", MINUTE, || {
        Ok((!devices.json("list")[0]["holder"].is_null()).then_some(()))
    })
    .unwrap();
    devices.refused(&confirmed, &["is open in sleep"]);
    devices.refused(&format, &["is open in sleep"]);
    reader.kill().unwrap();
    assert_eq!(guest.driver(&pci).unwrap().as_deref(), Some("nvme"), "nothing has happened so far");

    devices.text(&format!("bind {pci} --confirm forebay0"));
    devices.text(&confirmed);
    assert_eq!(guest.driver(&pci).unwrap().as_deref(), Some("vfio-pci"));
    devices.text(&format!("unbind {pci} --yes"));
    let kept = guest.block_device(0).unwrap();
    wait_until("the partition", MINUTE, || {
        Ok((guest.run(&format!("test -b {kept}p1"), MINUTE)?.status == 0).then_some(()))
    })
    .unwrap();

    // The whole drive gets another LBA format, with its serial number typed.
    let block = kept;
    let lba = || guest.sh(&format!("blockdev --getss {block}")).unwrap().trim().to_owned();
    assert_eq!(lba(), "512");
    let shown = devices.text(&format!("format {pci} --block-size 4096"));
    assert!(shown.contains("from LBA format 512 to 4096"), "{shown}");
    let wrong = devices.run(&format!("format {pci} --block-size 4096 --confirm forebay1"));
    assert_eq!((wrong.status, lba()), (2, "512".to_owned()), "{}", wrong.stderr);
    devices.text(&format!("format {pci} --block-size 4096 --confirm forebay0"));
    assert_eq!(lba(), "4096");
    assert_eq!(devices.json("list")[0]["lba"][0], "4096");
    assert!(devices.text(&format!("format {pci} --block-size 4096")).contains("already"));
    let partitions =
        format!("ls -d /sys/class/block/{}p* || true", block.trim_start_matches("/dev/"));
    assert_eq!(guest.sh(&partitions).unwrap(), "", "the kernel has forgotten them");
    // And back, by our own driver.
    devices.text(&format!("bind {pci} --yes"));
    let shown = devices.text(&format!("format {pci} --lba-format 0"));
    assert!(shown.contains("what it holds was not looked at"), "{shown}");
    devices.text(&format!("format {pci} --lba-format 0 --confirm forebay0"));
    devices.text(&format!("unbind {pci} --yes"));
    guest.block_device(0).unwrap();
    assert_eq!(lba(), "512");
}

#[test]
fn without_an_iommu_no_drive_is_taken() {
    let Some(place) = place() else { return };
    let place = place.without_iommu().drive(Drive::file(DRIVE_BYTES)).unwrap();
    let guest = place.boot().unwrap();
    let devices = Devices::new(&guest);
    let pci = guest.pci_address(0).unwrap();
    guest.block_device(0).unwrap();
    devices.refused(&format!("bind {pci} --yes"), &["no IOMMU", "intel_iommu=on"]);
    assert_eq!(guest.driver(&pci).unwrap().as_deref(), Some("nvme"));
}
