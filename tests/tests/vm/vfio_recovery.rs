//! Ends of the daemon, and of the whole machine, while it drives its drives itself.

use crate::vfio::{assert_sound, bound, two_drives};
use forebay_tests::vm::{Daemon, Drive, Ledger, sleep};
use std::time::Duration;

#[test]
fn every_acknowledged_value_survives_the_daemon_on_drives_of_its_own() {
    let Some(place) = two_drives(Drive::file) else { return };
    let guest = place.boot().unwrap();
    let options = bound(&guest);
    let mut ledger = Ledger::new(120, 256 << 10, 1);
    let daemon = Daemon::start(&guest, &options).unwrap();
    let log = daemon.process().log();
    assert!(log.contains("formatted 2 blank device(s) as a new pool"), "{log}");
    ledger.fill(&mut daemon.pipeline().unwrap()).unwrap();
    daemon.kill().unwrap();

    for _ in 0..2 {
        let daemon = Daemon::start(&guest, &options).unwrap();
        assert_sound(&ledger.audit(&mut daemon.client().unwrap()).unwrap(), 120);
        let mut client = daemon.pipeline().unwrap();
        let written = ledger.write(&mut client, 32, |so_far| Ok(so_far.acknowledged < 200));
        assert_eq!(written.unwrap().failed, 0);
        daemon.kill().unwrap();
    }
    let daemon = Daemon::start(&guest, &options).unwrap();
    assert_sound(&ledger.audit(&mut daemon.client().unwrap()).unwrap(), 120);
    daemon.stop().unwrap();
    // In good order too, and then the kernel has the drives back as they were.
    let daemon = Daemon::start(&guest, &options).unwrap();
    assert_sound(&ledger.audit(&mut daemon.client().unwrap()).unwrap(), 120);
    daemon.stop().unwrap();
    for number in [0, 1] {
        let pci = guest.pci_address(number).unwrap();
        guest.bind(&pci, "nvme").unwrap();
        guest.block_device(number).unwrap();
    }
}

#[test]
fn every_acknowledged_value_survives_power_cuts_behind_volatile_caches() {
    let Some(place) = two_drives(Drive::volatile) else { return };
    let mut ledger = Ledger::new(120, 128 << 10, 2);
    let mut rng = fastrand::Rng::with_seed(2);
    for cut in 0..5 {
        let guest = place.boot().unwrap();
        let daemon = Daemon::start(&guest, &bound(&guest)).unwrap();
        let audit = ledger.audit(&mut daemon.client().unwrap()).unwrap();
        assert_eq!((audit.lost, audit.failed.len()), (vec![], 0), "after cut {cut}");
        let mut client = daemon.pipeline().unwrap();
        let (enough, wait) = (rng.u64(30..300), Duration::from_micros(rng.u64(0..50_000)));
        let written = ledger.write(&mut client, 32, |so_far| Ok(so_far.acknowledged < enough));
        assert_eq!(written.unwrap().failed, 0, "before cut {cut}");
        // Commands are on their way: what they do in this time is acknowledged to nobody.
        sleep(wait);
        guest.power_cut().unwrap();
    }
    let guest = place.boot().unwrap();
    let daemon = Daemon::start(&guest, &bound(&guest)).unwrap();
    let audit = ledger.audit(&mut daemon.client().unwrap()).unwrap();
    assert_eq!((audit.lost, audit.failed.len()), (vec![], 0));
    assert!(audit.sound.len() > 100);
}

#[test]
fn the_very_last_store_that_was_acknowledged_survives_a_power_cut() {
    let Some(place) = two_drives(Drive::volatile) else { return };
    let mut ledger = Ledger::new(8, 64 << 10, 3);
    for cut in 0..3 {
        let guest = place.boot().unwrap();
        let daemon = Daemon::start(&guest, &bound(&guest)).unwrap();
        assert_sound(&ledger.audit(&mut daemon.client().unwrap()).unwrap(), cut);
        // One, and nothing comes behind it whose flush would bring it to media, too.
        let mut client = daemon.pipeline().unwrap();
        let written = ledger.write(&mut client, 1, |so_far| Ok(so_far.acknowledged < 1)).unwrap();
        assert_eq!((written.acknowledged, client.in_flight()), (1, 0));
        guest.power_cut().unwrap();
    }
    let guest = place.boot().unwrap();
    let daemon = Daemon::start(&guest, &bound(&guest)).unwrap();
    assert_sound(&ledger.audit(&mut daemon.client().unwrap()).unwrap(), 3);
}
