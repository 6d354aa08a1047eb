//! Restarts: in good order, and by SIGKILL in the middle of writes.

use crate::daemon::{Daemon, Place, namespace, value};
use forebay_fabric::Status;
use forebay_fabric::client::{ClientConfig, Done, Pipeline, Request};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;

/// Keys of the writer; each is overwritten many times.
const KEYS: u64 = 300;

fn length(seed: u64) -> usize {
    let mut rng = fastrand::Rng::with_seed(seed);
    match rng.u32(..8) {
        0..=4 => rng.usize(..8_000),
        5..=6 => rng.usize(..70_000),
        _ => rng.usize(..500_000),
    }
}

/// For each key the seeds of the values that it may hold; the last one is certain to be there unless
/// a later one was in flight.
#[derive(Default)]
struct Written {
    acknowledged: BTreeMap<u64, u64>,
    in_flight: BTreeMap<u64, u64>,
}

/// Overwrites keys with many commands in flight until `enough` are acknowledged.
fn write(daemon: &Daemon, written: &mut Written, first_seed: u64, enough: usize) {
    let config = ClientConfig { timeout_us: 60_000_000, ..ClientConfig::new(vec![daemon.address]) };
    let mut client = Pipeline::connect(config).unwrap();
    let (mut done, mut seed, mut acknowledged) = (Vec::new(), first_seed, 0);
    while acknowledged < enough {
        let (key, name) = (seed % KEYS, format!("key {}", seed % KEYS));
        let bytes = value(seed, length(seed)).into();
        let request =
            Request::store(forebay_fabric::client::NamespaceId(16), name.as_bytes(), bytes);
        if !written.in_flight.contains_key(&key) && client.submit(request.with_tag(key)).is_ok() {
            written.in_flight.insert(key, seed);
            seed += 1;
        }
        client.poll(&mut done, 100).unwrap();
        for Done { tag, status, .. } in done.drain(..) {
            assert_eq!(status, Status::Ok);
            let seed = written.in_flight.remove(&tag).expect("each request ends once");
            written.acknowledged.insert(tag, seed);
            acknowledged += 1;
        }
    }
    // The client is dropped with commands in flight, and the daemon dies under them.
}

fn audit(daemon: &Daemon, written: &mut Written) {
    let mut client = daemon.client();
    let namespace = namespace(&mut client);
    for key in 0..KEYS {
        let got = client.retrieve(namespace, format!("key {key}").as_bytes()).unwrap();
        let may_hold = [written.acknowledged.get(&key), written.in_flight.get(&key)];
        let held = may_hold
            .into_iter()
            .flatten()
            .find(|seed| got.as_ref().is_some_and(|got| *got == value(**seed, length(**seed))));
        match held.copied() {
            Some(seed) => {
                written.acknowledged.insert(key, seed);
            }
            None => assert!(
                got.is_none() && !written.acknowledged.contains_key(&key),
                "key {key}: neither what was acknowledged nor what was in flight"
            ),
        }
    }
    written.in_flight.clear();
}

#[test]
fn every_acknowledged_value_survives_sigkill() {
    let place = Place::new(2);
    let mut written = Written::default();
    for round in 0..4u64 {
        let daemon = place.start();
        audit(&daemon, &mut written);
        write(&daemon, &mut written, round * 10_000, 200 + 150 * round as usize);
        daemon.kill();
    }
    audit(&place.start(), &mut written);
}

#[test]
fn a_restart_in_good_order_serves_the_same_values() {
    let place = Place::new(2);
    let mut written = Written::default();
    let daemon = place.start();
    write(&daemon, &mut written, 0, 500);
    daemon.signal(Signal::SIGTERM);
    let (ended, log) = daemon.wait();
    assert!(ended.success(), "{ended}: {log:#?}");
    audit(&place.start(), &mut written);
}

#[test]
fn a_pool_is_served_by_another_number_of_cores_without_moving_data() {
    let mut place = Place::new(1);
    let mut written = Written::default();
    let daemon = place.start();
    write(&daemon, &mut written, 0, 300);
    daemon.kill();
    place.reactors = 2;
    let daemon = place.start();
    audit(&daemon, &mut written);
    write(&daemon, &mut written, 5_000, 300);
    daemon.kill();
    place.reactors = 1;
    audit(&place.start(), &mut written);
}
