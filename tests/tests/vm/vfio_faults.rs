//! Drives that fail in part: bad blocks, failed writes, slowness.

use crate::vfio::{assert_sound, bound, two_drives};
use forebay_fabric::Status;
use forebay_fabric::client::{NamespaceId, Request};
use forebay_tests::vm::{Daemon, Drive, Fault, FaultEvent, Ledger, Place, wait_until};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

/// Where a key's value is: the number of the drive, and the byte.
fn locate(place: &Place, key: u64) -> (usize, u64) {
    let media = [0, 1].map(|number| place.media(number));
    let mut command = Command::new(place.binary("forebay"));
    command.args(["-o", "json", "inspect", "key", &Ledger::name(key)]).args(&media);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let device = found["device"].as_str().unwrap();
    let number = media.iter().position(|media| media.to_str() == Some(device)).unwrap();
    (number, found["offset_bytes"].as_u64().unwrap())
}

#[test]
fn an_unreadable_block_costs_its_own_value_and_no_other() {
    let Some(place) = two_drives(Drive::file) else { return };
    let guest = place.boot().unwrap();
    let daemon = Daemon::start(&guest, &bound(&guest)).unwrap();
    let mut ledger = Ledger::new(80, 64 << 10, 3);
    ledger.fill(&mut daemon.pipeline().unwrap()).unwrap();
    // A value that has blocks of its own.
    let large = |key: &u64| ledger.certain(*key).is_some_and(|value| value.len() > 16 << 10);
    let victim = (0..80).find(large).unwrap();
    let (drive, offset) = locate(&place, victim);
    guest.damage(drive, &[Fault::every(FaultEvent::Read).at(offset + 8192)]).unwrap();

    let mut client = daemon.client().unwrap();
    for _ in 0..2 {
        let audit = ledger.audit(&mut client).unwrap();
        assert_eq!(audit.failed, BTreeMap::from([(victim, Status::Device)]));
        assert_eq!((audit.lost, audit.sound.len()), (vec![], 79));
    }
    // It can be stored again: in other blocks.
    let name = Ledger::name(victim);
    let again = ledger.certain(victim).unwrap();
    client.store(NamespaceId(16), name.as_bytes(), again).unwrap();
    assert_sound(&ledger.audit(&mut client).unwrap(), 80);
    guest.mend(drive).unwrap();
    assert_sound(&ledger.audit(&mut client).unwrap(), 80);
    daemon.stop().unwrap();
}

#[test]
fn a_drive_that_fails_writes_loses_nothing_that_was_acknowledged() {
    let Some(place) = two_drives(Drive::file) else { return };
    let guest = place.boot().unwrap();
    let options = bound(&guest);
    let daemon = Daemon::start(&guest, &options).unwrap();
    let mut ledger = Ledger::new(80, 64 << 10, 4);
    let mut pipeline = daemon.pipeline().unwrap();
    ledger.fill(&mut pipeline).unwrap();

    // One write that fails is tried again, and nobody hears of it.
    guest.damage(0, &[Fault::every(FaultEvent::Write).once()]).unwrap();
    ledger.fill(&mut pipeline).unwrap();
    guest.mend(0).unwrap();

    // All that fail are told, and the other drive goes on.
    guest.damage(0, &[Fault::every(FaultEvent::Write)]).unwrap();
    let written = ledger
        .write(&mut pipeline, 16, |so_far| Ok(so_far.acknowledged < 40 || so_far.failed < 20));
    written.unwrap();
    ledger.drain(&mut pipeline).unwrap();
    let mut client = daemon.client().unwrap();
    assert_sound(&ledger.audit(&mut client).unwrap(), 80);
    guest.mend(0).unwrap();
    assert_sound(&ledger.audit(&mut client).unwrap(), 80);
    daemon.kill().unwrap();

    let daemon = Daemon::start(&guest, &options).unwrap();
    assert_sound(&ledger.audit(&mut daemon.client().unwrap()).unwrap(), 80);
    ledger.fill(&mut daemon.pipeline().unwrap()).unwrap();
    daemon.stop().unwrap();
}

#[test]
fn a_drive_that_is_too_slow_is_aborted_and_serves_again() {
    let Some(place) = two_drives(Drive::file) else { return };
    let guest = place.boot().unwrap();
    let daemon = Daemon::start(&guest, &bound(&guest).timeout_ms(3000)).unwrap();
    let mut ledger = Ledger::new(80, 64 << 10, 5);
    ledger.fill(&mut daemon.pipeline().unwrap()).unwrap();
    // Two blocks: at 600 bytes a second, 14 seconds. The emulated controller cannot abort anything, and
    // a reset waits for what is under way, and the whole machine with it: it must end by itself.
    let suits = |key: &u64| {
        let length = ledger.certain(*key).map_or(0, |value| value.len());
        (4097..8192).contains(&length)
    };
    // Which drive has it depends on the pool's random key.
    let key = (0..80).find(suits).unwrap();
    let (name, (drive, _)) = (Ledger::name(key), locate(&place, key));
    let aborts = || daemon.process().log().matches("is late; aborting it").count();
    let before = aborts();
    let mut slow = daemon.pipeline().unwrap();
    guest.slow_down(drive, 600).unwrap();
    // The first one passes at full speed, and what follows pays for it.
    for tag in [1, 2] {
        let retrieve = Request::retrieve(NamespaceId(16), name.as_bytes(), 0, u32::MAX);
        slow.submit(retrieve.with_tag(tag)).unwrap();
    }
    let mut done = Vec::new();
    wait_until("the abort", Duration::from_secs(60), || {
        slow.poll(&mut done, 10_000)?;
        Ok((aborts() > before).then_some(()))
    })
    .unwrap();
    guest.speed_up(drive).unwrap();
    wait_until("the end of the retrieves", Duration::from_secs(60), || {
        slow.poll(&mut done, 10_000)?;
        Ok((done.len() == 2).then_some(()))
    })
    .unwrap();
    let ended = |status| done.iter().filter(|done| done.status == status).count();
    assert_eq!(ended(Status::Ok) + ended(Status::Device), 2, "{done:?}");
    guest.mend(drive).unwrap();
    assert_sound(&ledger.audit(&mut daemon.client().unwrap()).unwrap(), 80);
    ledger.fill(&mut daemon.pipeline().unwrap()).unwrap();
    assert_sound(&ledger.audit(&mut daemon.client().unwrap()).unwrap(), 80);
    daemon.stop().unwrap();
}
