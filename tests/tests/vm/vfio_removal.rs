//! A drive that is pulled while it is written, and put back.

use crate::vfio::{assert_sound, bound, options, two_drives};
use forebay_fabric::Status;
use forebay_tests::vm::{Daemon, Drive, Ledger};

#[test]
fn a_pulled_drive_ends_its_own_keys_and_its_return_brings_them_back() {
    let Some(place) = two_drives(Drive::file) else { return };
    let guest = place.boot().unwrap();
    let daemon = Daemon::start(&guest, &bound(&guest)).unwrap();
    let mut ledger = Ledger::new(120, 64 << 10, 6);
    let mut pipeline = daemon.pipeline().unwrap();
    ledger.fill(&mut pipeline).unwrap();

    // In the middle of writes. All end, those of the other drive well.
    let mut pulled = false;
    let written = ledger.write(&mut pipeline, 32, |so_far| {
        if !pulled && so_far.acknowledged > 100 {
            guest.pull(1)?;
            pulled = true;
        }
        Ok(so_far.failed < 30)
    });
    let before = written.unwrap();
    guest.wait_pulled(1).unwrap();
    let after = ledger.write(&mut pipeline, 16, |so_far| Ok(so_far.acknowledged < 60)).unwrap();
    assert!(before.acknowledged > 100 && after.failed > 0, "{before:?}, {after:?}");
    ledger.drain(&mut pipeline).unwrap();
    assert_eq!(daemon.process().ended().unwrap(), None);

    // Keys of the pulled drive say so; those of the other one are all there.
    let audit = ledger.clone().audit(&mut daemon.client().unwrap()).unwrap();
    assert!(audit.lost.is_empty(), "{audit:?}");
    assert!(audit.sound.len() > 20 && audit.failed.len() > 20, "{audit:?}");
    assert!(audit.failed.values().all(|status| *status == Status::Device), "{audit:?}");

    // The same drive in the same slot.
    guest.push_back(1).unwrap();
    let again = [guest.pci_address(0).unwrap(), guest.bind_vfio(1).unwrap()];
    daemon.stop().unwrap();
    let daemon = Daemon::start(&guest, &options("daemon", &again)).unwrap();
    assert_sound(&ledger.audit(&mut daemon.client().unwrap()).unwrap(), 120);
    ledger.fill(&mut daemon.pipeline().unwrap()).unwrap();
    daemon.stop().unwrap();
}
