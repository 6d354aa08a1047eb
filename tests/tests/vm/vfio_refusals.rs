//! What cannot be, and the one line that says what to do about it.

use crate::vfio::{bound, options, two_drives};
use crate::{DRIVE_BYTES, place};
use forebay_tests::vm::{Daemon, Drive, Machine};
use serde_json::json;

/// The line of a daemon on one drive, which has to refuse.
fn refusal(guest: &Machine<'_>, address: &str) -> String {
    let options = options("refused", &[address.to_owned()]);
    Daemon::refused(guest, &options).unwrap()
}

#[track_caller]
fn assert_says(said: &str, words: &[&str]) {
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
}

#[test]
fn addresses_that_name_no_free_drive_are_refused_with_what_to_do() {
    let Some(place) = two_drives(Drive::file) else { return };
    let guest = place.boot().unwrap();
    let pci = guest.pci_address(0).unwrap();
    assert_says(&refusal(&guest, "0000:7f:00.0"), &["0000:7f:00.0", "no PCI device"]);
    let network = guest.sh("basename $(readlink -f /sys/class/net/eth0/device/..)").unwrap();
    assert_says(&refusal(&guest, network.trim()), &[network.trim(), "not an NVMe drive"]);
    assert_says(&refusal(&guest, &pci), &[&pci, "nvme", "forebay devices bind"]);
    guest.sh(&format!("echo {pci} > /sys/bus/pci/devices/{pci}/driver/unbind")).unwrap();
    assert_says(&refusal(&guest, &pci), &[&pci, "no driver", "forebay devices bind"]);
}

#[test]
fn a_drive_has_one_daemon_at_a_time() {
    let Some(place) = two_drives(Drive::file) else { return };
    let guest = place.boot().unwrap();
    let first = Daemon::start(&guest, &bound(&guest)).unwrap();
    let pci = guest.pci_address(0).unwrap();
    assert_says(&refusal(&guest, &pci), &[&pci, "in use by another process"]);
    first.client().unwrap().namespaces().unwrap();
    first.stop().unwrap();
}

#[test]
fn what_the_system_does_not_allow_is_named() {
    let Some(place) = two_drives(Drive::file) else { return };
    let guest = place.boot().unwrap();
    let addresses = [0, 1].map(|number| guest.bind_vfio(number).unwrap());
    // Without its privilege even root has limits.
    let unprivileged = |name| {
        let drop = "setpriv --bounding-set=-ipc_lock,-dac_override,-dac_read_search";
        options(name, &addresses).run_by(drop)
    };
    let small = unprivileged("memlock").behind("ulimit -l 1024");
    let said = Daemon::refused(&guest, &small).unwrap();
    assert_says(&said, &["locked memory is limited to 1024 KiB", "LimitMEMLOCK"]);

    guest.sh("chown nobody /dev/vfio/[0-9]* && chmod 600 /dev/vfio/[0-9]*").unwrap();
    let said = Daemon::refused(&guest, &unprivileged("permission")).unwrap();
    assert_says(&said, &["no permission", "/dev/vfio/", "chown"]);
    guest.sh("chown root /dev/vfio/[0-9]*").unwrap();
    Daemon::start(&guest, &unprivileged("allowed")).unwrap().stop().unwrap();
}

#[test]
fn a_drive_whose_group_has_another_user_is_refused() {
    let Some(place) = place() else { return };
    let first = Drive::file(DRIVE_BYTES).option("multifunction", json!(true));
    let second =
        Drive::file(DRIVE_BYTES).option("bus", json!("port0")).option("addr", json!("00.1"));
    let place = place.drive(first).unwrap().drive(second).unwrap();
    let guest = place.boot().unwrap();
    let pci = guest.bind_vfio(0).unwrap();
    let other = pci.replace(".0", ".1");
    assert_eq!(guest.driver(&other).unwrap().as_deref(), Some("nvme"));
    assert_says(&refusal(&guest, &pci), &[&pci, "shares IOMMU group", &other]);
    guest.bind(&other, "vfio-pci").unwrap();
    let options = options("both", &[pci, other]);
    Daemon::start(&guest, &options).unwrap().stop().unwrap();
}

#[test]
fn a_drive_without_an_iommu_is_refused() {
    let Some(place) = place() else { return };
    let place = place.drive(Drive::file(DRIVE_BYTES)).unwrap().without_iommu();
    let guest = place.boot().unwrap();
    let pci = guest.pci_address(0).unwrap();
    assert_eq!(guest.sh("ls /sys/kernel/iommu_groups").unwrap(), "");
    let no_iommu = [&pci, "no IOMMU", "intel_iommu=on"];
    assert_says(&refusal(&guest, &pci), &no_iommu);
    // Debian's kernel has no way around it.
    assert!(guest.bind(&pci, "vfio-pci").is_err());
    assert_says(&refusal(&guest, &pci), &no_iommu);
}
