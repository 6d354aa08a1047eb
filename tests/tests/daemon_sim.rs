//! The whole daemon in one thread: N reactors over a simulated network and simulated devices, under
//! seeds. A failure prints its seed; the same seed fails the same way.

#![expect(clippy::unwrap_used, reason = "a test: what fails, fails here")]

use bytes::Bytes;
use forebay_fabric::Status;
use forebay_fabric::client::{ClientConfig, Done, NamespaceId, Pipeline, Request};
use forebay_fabric::stream::sim::{SimNet, SimProfile};
use forebay_nvme::sim::{Faults, SimConfig as DeviceConfig, SimDevice};
use forebayd::reactor::Phase;
use forebayd::reactor::mail::Notice;
use forebayd::reactor::sim::{SimConfig, SimConnector, SimDaemon, address};
use forebayd::store::geometry::FormatOptions;
use forebayd::store::{Class, Namespace};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

const NAMESPACE: NamespaceId = NamespaceId(16);
const KEYS: u64 = 60;

/// One simulated machine: devices that outlive the daemon on them, and the network around it.
struct World {
    config: SimConfig,
    connector: SimConnector,
}

impl World {
    fn new(seed: u64, reactors: u16, profile: SimProfile) -> Self {
        Self::build(seed, reactors, profile, |_| {})
    }

    fn build(
        seed: u64,
        reactors: u16,
        profile: SimProfile,
        change: impl FnOnce(&mut SimConfig),
    ) -> Self {
        let device = |n| SimDevice::new(DeviceConfig { seed: seed + n, ..DeviceConfig::default() });
        let options = FormatOptions {
            shards: Some(8),
            segment_bytes: Some(1 << 20),
            journal_bytes: Some(1 << 20),
            index_bytes: Some(256 << 10),
        };
        let namespaces = vec![Namespace {
            name: "default".to_owned(),
            class: Class::Durable,
            quota_bytes: None,
            ttl_s: None,
        }];
        let mut config = SimConfig {
            seed,
            reactors,
            devices: vec![device(1), device(2)],
            format: true,
            options,
            namespaces,
            memory_bytes: 32 << 20,
            // In every other run.
            tier_bytes: (seed % 2) as usize * (4 << 20),
            index_bytes: 1 << 20,
            slots: 64,
        };
        change(&mut config);
        let connector =
            SimConnector { daemon: Rc::new(RefCell::new(None)), net: SimNet::new(seed, profile) };
        let mut world = Self { config, connector };
        world.start();
        world.config.format = false;
        world
    }

    fn start(&mut self) {
        let daemon = SimDaemon::start(&self.config, &self.connector.net).unwrap();
        self.connector.daemon.replace(Some(daemon));
    }

    /// Power off in the middle of everything, and on again.
    fn crash(&mut self, seed: u64) {
        self.connector.daemon.replace(None);
        self.config.devices.iter().for_each(|device| device.crash(seed));
        self.start();
    }

    fn client(&self, seed: u64) -> Pipeline<SimConnector> {
        let config = ClientConfig { seed, ..ClientConfig::new(vec![address(0)]) };
        Pipeline::connect_with(config, self.connector.clone()).unwrap()
    }
}

/// What each key may hold: exactly one value, or one of several after an end in doubt.
#[derive(Debug, Default)]
struct Model {
    keys: BTreeMap<u64, Vec<Option<Vec<u8>>>>,
    /// Flushes fail: writes may end so, and in doubt.
    drives_fail: bool,
}

impl Model {
    fn holds(&mut self, key: u64) -> &mut Vec<Option<Vec<u8>>> {
        self.keys.entry(key).or_insert_with(|| vec![None])
    }
}

/// Operations under way, one for each key at most.
type Flying = BTreeMap<u64, Operation>;

#[derive(Clone, Debug)]
enum Operation {
    Store(Vec<u8>),
    Retrieve,
    Delete,
    Exist,
}

fn value(rng: &mut fastrand::Rng) -> Vec<u8> {
    let length = match rng.u32(..10) {
        0 => 0,
        1..=5 => rng.usize(1..6_000),
        6..=8 => rng.usize(6_000..40_000),
        _ => rng.usize(65_000..400_000),
    };
    let mut value = vec![0; length];
    rng.fill(&mut value);
    value
}

fn operation(rng: &mut fastrand::Rng) -> Operation {
    match rng.u32(..10) {
        0..=3 => Operation::Store(value(rng)),
        4..=6 => Operation::Retrieve,
        7 => Operation::Exist,
        _ => Operation::Delete,
    }
}

fn request<'a>(key: &'a [u8], operation: &Operation) -> Request<'a> {
    match operation {
        Operation::Store(value) => Request::store(NAMESPACE, key, Bytes::from(value.clone())),
        Operation::Retrieve => Request::retrieve(NAMESPACE, key, 0, u32::MAX),
        Operation::Delete => Request::delete(NAMESPACE, key),
        Operation::Exist => Request::exist(NAMESPACE, key),
    }
}

/// Compares the end of an operation with the model, and notes what it did.
fn check(model: &mut Model, key: u64, operation: Operation, done: &Done, seed: u64) {
    let told = format!("seed {seed}, key {key}, {operation:?}: {}", done.status);
    let failed = model.drives_fail && done.status == Status::Device;
    let in_doubt = failed || matches!(done.status, Status::Timeout | Status::Disconnected);
    let holds = model.holds(key);
    match operation {
        Operation::Store(value) if done.status == Status::Ok => *holds = vec![Some(value)],
        Operation::Store(value) => {
            assert!(in_doubt, "{told}");
            holds.push(Some(value));
        }
        Operation::Delete if done.status == Status::Ok => *holds = vec![None],
        Operation::Delete => {
            assert!(in_doubt, "{told}");
            holds.push(None);
        }
        Operation::Retrieve => {
            let got = match done.status {
                Status::Ok => Some(done.data.to_vec()),
                Status::NotFound => None,
                _ => return assert!(in_doubt, "{told}"),
            };
            assert!(holds.contains(&got), "{told}: not a value that it may hold");
            *holds = vec![got];
        }
        Operation::Exist => {
            let got = match done.status {
                Status::Ok => Some(done.result),
                Status::NotFound => None,
                _ => return assert!(in_doubt, "{told}"),
            };
            let lengths = |held: &Option<Vec<u8>>| held.as_ref().map(|held| held.len() as u64);
            assert!(holds.iter().map(lengths).any(|length| length == got), "{told}: {got:?}");
        }
    }
}

/// `count` random operations with many in flight, each key's one behind the other.
fn churn(client: &mut Pipeline<SimConnector>, model: &mut Model, seed: u64, count: usize) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut flying, mut done, mut left) = (Flying::new(), Vec::new(), count);
    while left > 0 || !flying.is_empty() {
        let key = rng.u64(..KEYS);
        if left > 0 && !flying.contains_key(&key) && flying.len() < 32 {
            let operation = operation(&mut rng);
            let name = format!("key-{key}");
            if client.submit(request(name.as_bytes(), &operation).with_tag(key)).is_ok() {
                flying.insert(key, operation);
                left -= 1;
                continue;
            }
        }
        client.poll(&mut done, 1_000).unwrap();
        for ended in done.drain(..) {
            let operation = flying.remove(&ended.tag).expect("each request ends once");
            check(model, ended.tag, operation, &ended, seed);
            client.recycle(ended);
        }
    }
}

/// Every key holds what the model says.
fn audit(client: &mut Pipeline<SimConnector>, model: &mut Model, seed: u64) {
    for key in 0..KEYS {
        let name = format!("key-{key}");
        let done = client.call(Request::retrieve(NAMESPACE, name.as_bytes(), 0, u32::MAX)).unwrap();
        assert!(
            matches!(done.status, Status::Ok | Status::NotFound),
            "seed {seed}: {}",
            done.status
        );
        check(model, key, Operation::Retrieve, &done, seed);
    }
}

#[test]
fn values_are_what_was_stored_whatever_the_order_of_ticks() {
    for seed in 0..12 {
        let world = World::new(seed, 1 + (seed % 4) as u16, SimProfile::choppy());
        let (mut client, mut model) = (world.client(seed), Model::default());
        churn(&mut client, &mut model, seed, 400);
        audit(&mut client, &mut model, seed);
    }
}

#[test]
fn connections_that_break_anywhere_lose_and_repeat_nothing() {
    for seed in 0..8 {
        let world = World::new(100 + seed, 3, SimProfile::choppy());
        let (mut client, mut model) = (world.client(seed), Model::default());
        let cutting = SimProfile { cut_per_million: 3_000, ..SimProfile::choppy() };
        world.connector.net.set_profile(cutting);
        churn(&mut client, &mut model, seed, 400);
        world.connector.net.set_profile(SimProfile::kind());
        audit(&mut client, &mut model, seed);
        assert!(client.counters().connection_errors > 0, "seed {seed}: nothing broke");
    }
}

/// Of 1000 flushes, so many fail.
fn power_cuts(seed: u64, flush_fail_per_mille: u32) {
    let mut world = World::new(200 + seed, 2, SimProfile::kind());
    let mut model = Model { drives_fail: flush_fail_per_mille > 0, ..Model::default() };
    let failing = Faults { flush_fail_per_mille, ..Faults::default() };
    for round in 0..4 {
        // The connection dies with the daemon: what was in flight ends in doubt.
        let mut client = world.client(seed * 10 + round);
        world.config.devices.iter().for_each(|device| device.set_faults(failing));
        churn(&mut client, &mut model, seed * 10 + round, 120);
        let flying = leave_in_flight(&mut client, &mut model, seed * 10 + round);
        drop(client);
        world.config.devices.iter().for_each(|device| device.set_faults(Faults::default()));
        world.crash(seed * 10 + round);
        for (key, operation) in flying {
            match operation {
                Operation::Store(value) => model.holds(key).push(Some(value)),
                Operation::Delete => model.holds(key).push(None),
                Operation::Retrieve | Operation::Exist => {}
            }
        }
        audit(&mut world.client(seed * 10 + round + 5), &mut model, seed);
    }
}

#[test]
fn acknowledged_values_survive_power_cuts() {
    (0..8).for_each(|seed| power_cuts(seed, 0));
}

/// A flush that fails for one reactor takes what another one has written.
#[test]
fn they_survive_those_of_drives_whose_flushes_fail() {
    (0..40).for_each(|seed| power_cuts(seed, 30));
}

/// Starts some operations and lets the daemon work on them for a while.
fn leave_in_flight(client: &mut Pipeline<SimConnector>, model: &mut Model, seed: u64) -> Flying {
    let mut rng = fastrand::Rng::with_seed(!seed);
    let (mut flying, mut done) = (Flying::new(), Vec::new());
    for key in 0..16 {
        let (operation, name) = (operation(&mut rng), format!("key-{key}"));
        let submitted = client.submit(request(name.as_bytes(), &operation).with_tag(key));
        assert!(submitted.is_ok(), "the window has room");
        flying.insert(key, operation);
    }
    for _ in 0..rng.u32(..20) {
        client.poll(&mut done, 20).unwrap();
    }
    for ended in done {
        let operation = flying.remove(&ended.tag).expect("each request ends once");
        check(model, ended.tag, operation, &ended, seed);
    }
    flying
}

#[test]
fn the_same_seed_runs_the_same_way() {
    let run = |seed| {
        let world = World::new(seed, 3, SimProfile::choppy());
        let (mut client, mut model) = (world.client(seed), Model::default());
        churn(&mut client, &mut model, seed, 200);
        let daemon = world.connector.daemon.borrow();
        let reactors = daemon.as_ref().unwrap().reactors();
        let reports: Vec<_> = reactors.iter().map(|reactor| reactor.context().report()).collect();
        (world.connector.net.now_us(), reports)
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7).0, run(8).0);
}

#[test]
fn a_drain_answers_what_is_in_flight_and_refuses_the_rest() {
    for seed in 0..6 {
        let mut world = World::new(300 + seed, 2, SimProfile::choppy());
        let (mut client, mut model) = (world.client(seed), Model::default());
        churn(&mut client, &mut model, seed, 100);
        let flying = leave_in_flight(&mut client, &mut model, seed);
        world.connector.daemon.borrow().as_ref().unwrap().tell(&Notice::Drain);
        finish_in_flight(&mut client, &mut model, flying, seed);
        let mut daemon = world.connector.daemon.take().unwrap();
        for _ in 0..100_000 {
            daemon.step();
        }
        assert!(daemon.reactors().iter().all(|reactor| reactor.phase() == Phase::Drained));
        daemon.close();
        drop(client);
        world.start();
        audit(&mut world.client(seed + 50), &mut model, seed);
    }
}

/// What had reached the daemon before the drain is answered; the rest is turned away unharmed.
fn finish_in_flight(
    client: &mut Pipeline<SimConnector>,
    model: &mut Model,
    mut flying: Flying,
    seed: u64,
) {
    let mut done = Vec::new();
    while !flying.is_empty() {
        client.poll(&mut done, 1_000).unwrap();
        for ended in done.drain(..) {
            let operation = flying.remove(&ended.tag).expect("each request ends once");
            if ended.status != Status::ShuttingDown {
                check(model, ended.tag, operation, &ended, seed);
            }
        }
    }
}

/// No command is in service, and all memory is back that was free before.
fn at_rest(world: &World) -> Vec<(usize, usize)> {
    let mut daemon = world.connector.daemon.borrow_mut();
    let daemon = daemon.as_mut().unwrap();
    for _ in 0..100_000 {
        daemon.step();
    }
    let reactors = daemon.reactors().iter();
    reactors.map(|one| (one.context().slots.in_use(), one.core().memory.free_bytes())).collect()
}

#[test]
fn commands_that_are_given_up_on_leave_nothing_behind() {
    for seed in 0..6 {
        let mut world = World::new(600 + seed, 2, SimProfile::choppy());
        let before = at_rest(&world);
        // Deadlines so short that many pass in the network or on the device.
        let mut client = world.client(seed);
        let (mut done, mut ended) = (Vec::new(), BTreeMap::new());
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut left, mut count) = (600, 0);
        while left > 0 || count < 600 {
            let (operation, name) = (operation(&mut rng), format!("key-{}", rng.u64(..KEYS)));
            let request = request(name.as_bytes(), &operation);
            let timeout_us = rng.u32(1_000..60_000);
            if left > 0 && client.submit(request.with_timeout_us(timeout_us)).is_ok() {
                left -= 1;
            }
            client.poll(&mut done, 100).unwrap();
            for end in done.drain(..) {
                *ended.entry(end.status).or_insert(0) += 1;
                count += 1;
            }
        }
        assert!(ended[&Status::Timeout] > 30 && ended[&Status::Ok] > 30, "seed {seed}: {ended:?}");
        drop(client);
        assert_eq!(at_rest(&world), before, "seed {seed}: {ended:?}");
        world.crash(seed);
    }
}

#[test]
fn few_slots_and_little_memory_make_clients_wait_and_fail_nothing() {
    for seed in 0..4 {
        let mut world = World::build(700 + seed, 2, SimProfile::kind(), |config| {
            (config.slots, config.memory_bytes) = (5, 12 << 20);
        });
        let before = at_rest(&world);
        let (mut client, mut model) = (world.client(seed), Model::default());
        churn(&mut client, &mut model, seed, 400);
        audit(&mut client, &mut model, seed);
        assert!(client.counters().retries > 0, "seed {seed}: it was never busy");
        drop(client);
        assert_eq!(at_rest(&world), before);
        world.crash(seed);
    }
}

#[test]
fn a_command_at_the_wrong_reactor_names_the_right_one() {
    let world = World::new(400, 3, SimProfile::kind());
    let client = world.client(1);
    let daemon = world.connector.daemon.borrow();
    for key in 0..100 {
        let name = format!("key-{key}");
        let owner = client.reactor_of(NAMESPACE, name.as_bytes());
        for reactor in daemon.as_ref().unwrap().reactors() {
            let cx = reactor.context();
            let owns = cx.store.owns(NAMESPACE.0, name.as_bytes());
            let expected = if cx.mailbox.me() == owner { Ok(()) } else { Err(owner) };
            assert_eq!(owns, expected, "{name} at reactor {}", cx.mailbox.me());
        }
    }
}

#[test]
fn a_namespace_keeps_its_number_over_restarts_and_new_ones_get_their_own() {
    let mut world = World::new(500, 2, SimProfile::kind());
    let table = |world: &World| {
        let daemon = world.connector.daemon.borrow();
        let reactor = &daemon.as_ref().unwrap().reactors()[0];
        let entries = reactor.context().namespaces.entries().to_vec();
        let row = |entry: forebayd::catalog::Entry| (entry.namespace.name, entry.number);
        entries.into_iter().map(row).collect::<Vec<_>>()
    };
    assert_eq!(table(&world), [("default".to_owned(), 16)]);
    let mut before = world.config.namespaces[0].clone();
    before.name = "before".to_owned();
    world.config.namespaces = vec![before];
    world.crash(1);
    assert_eq!(table(&world), [("before".to_owned(), 17), ("default".to_owned(), 16)]);
}
