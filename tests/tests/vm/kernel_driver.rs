//! The daemon on drives that the guest's kernel drives: `driver = "uring"` on `/dev/nvme0n1`.

use crate::{DRIVE_BYTES, place};
use forebay_tests::vm::{Daemon, DaemonOptions, DeviceLine, Drive, Ledger};
use std::time::Duration;

#[test]
fn every_acknowledged_value_survives_the_daemon_on_a_kernel_drive() {
    let Some(place) = place() else { return };
    let place = place.drive(Drive::file(DRIVE_BYTES).lba_bytes(4096)).unwrap();
    let guest = place.boot().unwrap();
    let device = guest.block_device(0).unwrap();
    let forebay = place.binary("forebay").display().to_string();
    guest.sh(&format!("{forebay} format {device}")).unwrap();
    let options = DaemonOptions::new("daemon", [DeviceLine::Uring(device)]).reactors(2);

    let mut ledger = Ledger::new(100, 64 << 10, 1);
    for round in 0..2 {
        let daemon = Daemon::start(&guest, &options).unwrap();
        let audit = ledger.audit(&mut daemon.client().unwrap()).unwrap();
        assert_eq!((audit.lost, audit.failed.len()), (vec![], 0));
        let mut client = daemon.pipeline().unwrap();
        let written =
            ledger.write(&mut client, 16, |so_far| Ok(so_far.acknowledged < 150)).unwrap();
        assert_eq!(written.failed, 0, "round {round}");
        daemon.kill().unwrap();
    }
    let daemon = Daemon::start(&guest, &options).unwrap();
    let audit = ledger.audit(&mut daemon.client().unwrap()).unwrap();
    assert_eq!((audit.lost, audit.failed.len()), (vec![], 0));
    assert_eq!(audit.sound.len(), 100);

    let server = format!("{forebay} --server 127.0.0.1:{}", guest.port());
    guest.sh(&format!("{server} kv put hello world")).unwrap();
    let got = guest.run(&format!("{server} kv get hello"), Duration::from_secs(60)).unwrap();
    assert_eq!((got.status, &*got.stdout), (0, "world"));
    let second = DaemonOptions::new("second", [DeviceLine::Uring("/dev/nvme0n1".to_owned())]);
    let said = Daemon::refused(&guest, &second).unwrap();
    assert!(said.contains("in use by"), "{said}");
    daemon.stop().unwrap();
}
