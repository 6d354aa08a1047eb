//! What the tests of the daemon on its own drives share: two of them, bound, and a pool on both.

use crate::{DRIVE_BYTES, place};
use forebay_tests::vm::{Audit, DaemonOptions, DeviceLine, Drive, Machine, Place};
use std::collections::BTreeMap;

/// The drives of a pool: one with blocks of 4 KiB, one with blocks of 512 bytes.
pub(crate) fn two_drives(one: fn(u64) -> Drive) -> Option<Place> {
    place().map(|place| with_two_drives(place, one))
}

/// The same for a place that is there already.
pub(crate) fn with_two_drives(place: Place, one: fn(u64) -> Drive) -> Place {
    let place = place.drive(one(DRIVE_BYTES).lba_bytes(4096)).unwrap();
    place.drive(one(DRIVE_BYTES)).unwrap()
}

/// Binds both drives, and says how a daemon is to use them.
pub(crate) fn bound(guest: &Machine<'_>) -> DaemonOptions {
    let addresses = [0, 1].map(|number| guest.bind_vfio(number).unwrap());
    options("daemon", &addresses)
}

/// A daemon on the drives at `addresses`, with two reactors.
pub(crate) fn options(name: &str, addresses: &[String]) -> DaemonOptions {
    DaemonOptions::new(name, addresses.iter().cloned().map(DeviceLine::Vfio)).reactors(2)
}

/// Every key holds what it should.
#[track_caller]
pub(crate) fn assert_sound(audit: &Audit, keys: usize) {
    let Audit { sound, lost, failed } = audit;
    assert_eq!((lost, failed), (&vec![], &BTreeMap::new()));
    assert_eq!(sound.len(), keys);
}
