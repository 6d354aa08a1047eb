//! The machine itself: what every other test here stands on.

use crate::{DRIVE_BYTES, place};
use forebay_tests::vm::{Drive, Fault, FaultEvent};
use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::time::Duration;

#[test]
fn a_script_ends_with_its_status_its_output_and_by_its_deadline() {
    let Some(place) = place() else { return };
    let guest = place.boot().unwrap();
    let second = Duration::from_secs(1);
    let said = guest.run("echo out; echo error >&2; exit 7", 10 * second).unwrap();
    assert_eq!((said.status, &*said.stdout, &*said.stderr), (7, "out\n", "error\n"));
    assert_eq!(guest.run("kill -9 $$", 10 * second).unwrap().status, 137);
    assert_eq!(guest.run("sleep 60 & sleep 60", second).unwrap().status, 124);
    assert!(guest.sh("false").is_err());

    let process =
        guest.spawn("background", "echo begun; read never < /dev/zero; sleep 60").unwrap();
    assert_eq!(process.ended().unwrap(), None);
    process.kill().unwrap();
    let quick = guest.spawn("quick", "echo done; exit 3").unwrap();
    assert_eq!(quick.wait(10 * second).unwrap(), 3);
    assert_eq!(quick.log(), "done\n");

    guest.sh("echo from the guest > /vm/file; touch /of-the-guest").unwrap();
    let file = place.share().join("file");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "from the guest\n");
    assert!(!std::path::Path::new("/of-the-guest").exists(), "the host's files are read-only");
}

#[test]
fn two_controllers_are_bound_to_vfio_each_in_a_group_of_its_own() {
    let Some(place) = place() else { return };
    let drive = || Drive::file(DRIVE_BYTES).lba_bytes(4096);
    let place = place.drive(drive()).unwrap().drive(Drive::file(DRIVE_BYTES)).unwrap();
    let guest = place.boot().unwrap();
    let block = |number| guest.block_device(number).unwrap();
    let lba = |device: &str| guest.sh(&format!("blockdev --getss {device}")).unwrap();
    assert_eq!([block(0), block(1)].map(|device| lba(&device)), ["4096\n", "512\n"]);

    let mut groups = BTreeSet::new();
    for number in [0, 1] {
        let pci = guest.bind_vfio(number).unwrap();
        let group = guest.sh(&format!("readlink /sys/bus/pci/devices/{pci}/iommu_group")).unwrap();
        let group = group.trim().rsplit('/').next().unwrap().to_owned();
        let others = guest.sh(&format!("ls /sys/kernel/iommu_groups/{group}/devices")).unwrap();
        assert_eq!(others.trim(), pci, "it is alone in its group");
        guest.sh(&format!("test -c /dev/vfio/{group}")).unwrap();
        groups.insert(group);
    }
    assert_eq!(groups.len(), 2);
    assert_eq!(guest.sh("ls /sys/class/nvme").unwrap(), "");
    let pci = guest.pci_address(0).unwrap();
    guest.bind(&pci, "nvme").unwrap();
    guest.block_device(0).unwrap();
}

#[test]
fn a_drive_that_is_pulled_comes_back_with_what_was_on_it() {
    let Some(place) = place() else { return };
    let drive = || Drive::file(DRIVE_BYTES);
    let place = place.drive(drive()).unwrap().drive(drive()).unwrap();
    let guest = place.boot().unwrap();
    let device = guest.block_device(1).unwrap();
    let write = "dd of=DEVICE bs=4k oflag=direct conv=fsync status=none";
    guest
        .sh(&format!(
            "echo kept | {}",
            write.replace("DEVICE", &device).replace("oflag=direct", "")
        ))
        .unwrap();
    for _ in 0..2 {
        guest.pull(1).unwrap();
        guest.wait_pulled(1).unwrap();
        assert!(guest.pci_address(1).is_err());
        guest.push_back(1).unwrap();
        let device = guest.block_device(1).unwrap();
        assert_eq!(guest.sh(&format!("head -c 5 {device}")).unwrap(), "kept\n");
    }
    guest.block_device(0).unwrap();
}

#[test]
fn a_broken_drive_fails_where_it_is_told_to_and_nowhere_else() {
    let Some(place) = place() else { return };
    let place = place.drive(Drive::file(DRIVE_BYTES)).unwrap();
    let guest = place.boot().unwrap();
    let device = guest.block_device(0).unwrap();
    let dd = |what: &str| {
        let script = format!("dd {what} bs=4k count=1 status=none 2>&1");
        guest.run(&script, Duration::from_secs(60)).unwrap()
    };
    let read = |block: u64| dd(&format!("if={device} of=/dev/null iflag=direct skip={block}"));
    let write = |block: u64| dd(&format!("if=/dev/zero of={device} oflag=direct seek={block}"));
    // What the kernel makes of a media error (ENODATA).
    let error = "No data available";

    guest.damage(0, &[Fault::every(FaultEvent::Read).at(100 * 4096)]).unwrap();
    assert!(read(100).stdout.contains(error));
    assert_eq!([99, 101].map(|block| read(block).status), [0, 0]);
    assert_eq!(write(100).status, 0);
    guest.mend(0).unwrap();
    assert_eq!(read(100).status, 0);

    guest.damage(0, &[Fault::every(FaultEvent::Write)]).unwrap();
    assert!(write(7).stdout.contains(error));
    assert_eq!(read(7).status, 0);
    guest.mend(0).unwrap();
    assert_eq!(write(7).status, 0);
}

#[test]
fn a_slow_drive_is_slow_until_it_is_not() {
    let Some(place) = place() else { return };
    let place = place.drive(Drive::file(DRIVE_BYTES)).unwrap();
    let guest = place.boot().unwrap();
    let device = guest.block_device(0).unwrap();
    let read = format!("dd if={device} of=/dev/null bs=4k count=8 iflag=direct status=none");
    guest.slow_down(0, 1024).unwrap();
    let reader = guest.spawn("reader", &read).unwrap();
    // 32 KiB at a KiB/s.
    assert!(reader.wait(Duration::from_secs(5)).is_err(), "it waits");
    guest.speed_up(0).unwrap();
    assert_eq!(reader.wait(Duration::from_secs(20)).unwrap(), 0);
    guest.mend(0).unwrap();
    guest.sh(&read).unwrap();
}

#[test]
fn a_power_cut_takes_what_a_volatile_cache_held_and_no_more() {
    let Some(place) = place() else { return };
    let place = place.drive(Drive::volatile(DRIVE_BYTES)).unwrap();
    let guest = place.boot().unwrap();
    let device = guest.block_device(0).unwrap();
    let write = |text: &str, block: u64, how: &str| {
        let to = format!("dd of={device} bs=4k seek={block} conv=sync {how} status=none");
        guest.sh(&format!("echo {text} | {to}")).unwrap();
    };
    assert_eq!(guest.sh("cat /sys/block/nvme0n1/queue/write_cache").unwrap(), "write back\n");
    write("flushed", 0, "oflag=direct conv=sync,fsync");
    write("written-through", 1000, "oflag=direct,dsync");
    write("volatile", 2000, "oflag=direct");
    let there =
        guest.sh(&format!("dd if={device} bs=4k skip=2000 count=1 status=none | head -c 8"));
    assert_eq!(there.unwrap(), "volatile", "the cache answers");
    guest.power_cut().unwrap();

    let media = std::fs::File::open(place.media(0)).unwrap();
    let at = |block: u64| {
        let mut bytes = [0; 16];
        media.read_exact_at(&mut bytes, block * 4096).unwrap();
        String::from_utf8_lossy(&bytes).trim_end_matches(['\0', '\n']).to_owned()
    };
    assert_eq!([at(0), at(1000), at(2000)], ["flushed", "written-through", ""]);

    let guest = place.boot().unwrap();
    let device = guest.block_device(0).unwrap();
    assert_eq!(guest.sh(&format!("head -c 7 {device}")).unwrap(), "flushed");
}
