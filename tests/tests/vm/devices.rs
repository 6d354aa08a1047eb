//! `forebay devices` on real controllers: who has them, how they are, and who gets them.

use crate::vfio::{bound, two_drives};
use forebay_tests::vm::{Daemon, Drive, Machine, wait_until};
use serde_json::Value;
use std::time::Duration;

/// Runs `forebay devices`; how it ended, its JSON, and what it said beside it.
fn devices(guest: &Machine<'_>, arguments: &str) -> (i32, Value, String) {
    let forebay = guest.place().binary("forebay");
    let command = format!("{} -o json devices {arguments}", forebay.display());
    let ran = guest.run(&command, Duration::from_secs(120)).unwrap();
    (ran.status, serde_json::from_str(&ran.stdout).unwrap_or(Value::Null), ran.stderr)
}

/// What `list` says of drive `number`.
fn listed(guest: &Machine<'_>, number: usize) -> Value {
    let pci = guest.pci_address(number).unwrap();
    let (status, drives, said) = devices(guest, "list --admin /run/daemon.sock");
    assert_eq!(status, 0, "{said}");
    let drives = drives.as_array().unwrap();
    drives.iter().find(|drive| drive["pci"] == pci.as_str()).unwrap().clone()
}

#[test]
fn a_health_warning_is_seen_whoever_drives_the_drive() {
    let Some(place) = two_drives(Drive::file) else { return };
    let guest = place.boot().unwrap();
    let pci = guest.pci_address(0).unwrap();
    let smart = || {
        let (status, json, said) =
            devices(&guest, &format!("smart {pci} --admin /run/daemon.sock"));
        assert_eq!(status, 0, "{said}");
        json
    };
    let quiet = listed(&guest, 0);
    assert_eq!((&quiet["critical_warning"], &quiet["serial"]), (&0.into(), &"forebay0".into()));
    assert_eq!((&quiet["driver"], &quiet["lba"][0]), (&"nvme".into(), &"4096".into()));
    guest.warn(0, 4).unwrap();
    assert_eq!(listed(&guest, 0)["critical_warning"], 4);
    assert_eq!((&smart()["critical_warning"], &smart()["from"]), (&4.into(), &"drive".into()));
    assert_eq!(listed(&guest, 1)["critical_warning"], 0);
    guest.warn(0, 0).unwrap();

    let daemon = Daemon::start(&guest, &bound(&guest)).unwrap();
    let driven = listed(&guest, 0);
    assert_eq!((&driven["critical_warning"], &driven["driver"]), (&0.into(), &"vfio-pci".into()));
    assert_eq!((&driven["serial"], &driven["state"]), (&"forebay0".into(), &"ready".into()));
    assert_ne!(driven["holder"], Value::Null);
    guest.warn(0, 8).unwrap();
    // The drive tells of it by itself.
    wait_until("the event", Duration::from_secs(60), || {
        Ok(daemon.process().log().contains("health: ").then_some(()))
    })
    .unwrap();
    assert_eq!(listed(&guest, 0)["critical_warning"], 8);
    assert_eq!((&smart()["critical_warning"], &smart()["from"]), (&8.into(), &"daemon".into()));
    daemon.stop().unwrap();
}
