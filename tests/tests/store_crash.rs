//! Thousands of power cuts: after each, every acknowledged write is there, no byte is wrong, and no
//! deleted key is back.
//!
//! A run formats a small pool, has clients store, overwrite, delete and read over simulated devices, and
//! cuts the power at a random moment; then it recovers, compares, and goes on from what it found. Every
//! run follows from its seed, which a failure prints; `FOREBAY_SEED=n` runs that one alone, and
//! `FOREBAY_CRASHES=n` sets how many power cuts there are.

use forebay_fabric::Status;
use forebay_nvme::sim::{Faults, SimConfig, SimDevice};
use forebay_nvme::{Arena, Pool as Memory};
use forebay_tests::engine::{Engine, StartError, format, memory};
use forebay_tests::kv;
use forebayd::store::geometry::FormatOptions;
use forebayd::store::{Class, Namespace, Store};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

const CLIENTS: u64 = 8;
/// Of each client.
const KEYS: usize = 4;
const CRASHES_PER_RUN: u64 = 4;
const NAMESPACE: u32 = 16;
/// Of a DRAM tier, which half of the runs have.
const TIER_BYTES: usize = 4 << 20;

/// A value is its key and a number; what it contains follows from both.
type Version = u64;

/// What may be found under a key.
#[derive(Clone, Debug, Default)]
struct Expected {
    /// The newest acknowledged state; `None`: no such key.
    acknowledged: Option<Version>,
    /// What an operation under way would make of it.
    pending: Option<Option<Version>>,
    /// What operations would have made of it whose device failed: one may have happened all the same, as a
    /// restart will find.
    doubtful: Vec<Option<Version>>,
}

type Model = Rc<RefCell<BTreeMap<Vec<u8>, Expected>>>;

fn value(key: &[u8], version: Version, sizes: u32) -> Vec<u8> {
    let seed =
        key.iter().fold(version, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    let mut rng = fastrand::Rng::with_seed(seed);
    let length = match rng.u8(..8) {
        0 => 0,
        1..=3 => rng.usize(1..600),
        4 => rng.usize(3500..4400),
        5 | 6 => rng.usize(4096..20_000),
        _ => rng.usize(4096..sizes as usize),
    };
    let mut bytes = vec![0; length];
    rng.fill(&mut bytes);
    bytes
}

/// Long keys make journal batches of several pages, which a power cut can tear between pages.
fn key(client: u64, number: u64, width: usize) -> Vec<u8> {
    format!("client{client}/key{number:0width$}").into_bytes()
}

async fn client(store: Store, model: Model, number: u64, width: usize, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let sizes = store.value_bytes_max();
    // Those of shards that take nothing any more.
    let mut refused = BTreeSet::new();
    while refused.len() < KEYS {
        let key = key(number, rng.u64(..KEYS as u64), width);
        if refused.contains(&key) {
            continue;
        }
        let expected = model.borrow().get(&key).cloned().unwrap_or_default();
        match rng.u8(..10) {
            0..6 => {
                let version = rng.u64(1..);
                pend(&model, &key, Some(version));
                let bytes = value(&key, version, sizes);
                let stored = kv::store(&store, NAMESPACE, &key, &bytes, rng.u64(1..)).await;
                assert!(
                    matches!(stored, Ok(()) | Err(Status::NoSpace | Status::Device)),
                    "store: {stored:?}"
                );
                settle(&model, &key, stored);
                refused.extend((stored == Err(Status::Device)).then_some(key));
            }
            6..8 => {
                pend(&model, &key, None);
                let deleted = kv::delete(&store, NAMESPACE, &key, rng.u64(1..)).await;
                let failed = deleted == Err(Status::Device);
                assert!(failed || deleted == Ok(expected.acknowledged.is_some()), "{deleted:?}");
                settle(&model, &key, deleted.map(drop));
                refused.extend(failed.then_some(key));
            }
            _ => {
                let found = kv::retrieve(&store, NAMESPACE, &key).await;
                let wanted = expected
                    .acknowledged
                    .map(|version| value(&key, version, sizes))
                    .ok_or(Status::NotFound);
                assert!(found == wanted, "a read under way gave other bytes than were stored");
            }
        }
    }
}

fn pend(model: &Model, key: &[u8], state: Option<Version>) {
    model.borrow_mut().entry(key.to_vec()).or_default().pending = Some(state);
}

fn settle(model: &Model, key: &[u8], outcome: Result<(), Status>) {
    let mut model = model.borrow_mut();
    let expected = model.get_mut(key).expect("it was pending");
    let pending = expected.pending.take().expect("it was pending");
    match outcome {
        Ok(()) => *expected = Expected { acknowledged: pending, ..Expected::default() },
        Err(Status::Device) => expected.doubtful.push(pending),
        Err(_) => {}
    }
}

/// Compares every key, and takes over what was found where both were possible.
fn verify(engine: &mut Engine, model: &Model) {
    let store = engine.store().clone();
    let sizes = store.value_bytes_max();
    let keys: Vec<Vec<u8>> = model.borrow().keys().cloned().collect();
    let mut alive = BTreeSet::new();
    for key in keys {
        let (store, key2) = (store.clone(), key.clone());
        let found = engine.block_on(async move { kv::retrieve(&store, NAMESPACE, &key2).await });
        let mut model = model.borrow_mut();
        let expected = model.get_mut(&key).expect("a key of the model");
        let mut possible = vec![expected.acknowledged];
        possible.extend(expected.pending.take());
        possible.append(&mut expected.doubtful);
        let state = possible.iter().find(|state| {
            let bytes = state.map(|version| value(&key, version, sizes)).ok_or(Status::NotFound);
            bytes == found
        });
        let name = String::from_utf8_lossy(&key);
        let found = found.map(|bytes| bytes.len());
        expected.acknowledged =
            *state.unwrap_or_else(|| panic!("{name}: {possible:?} expected, found {found:?}"));
        if expected.acknowledged.is_some() {
            alive.insert(key.clone());
        }
    }
    let listed = engine.block_on(async move { kv::list(&store, NAMESPACE, b"", 4096).await });
    assert_eq!(listed, Ok(alive), "the listing");
}

fn start(
    devices: &[SimDevice],
    memory: &Memory,
    tier: Option<&Memory>,
) -> Result<Engine, StartError> {
    let engine = match tier {
        Some(tier) => Engine::start_with_tier(devices, memory, tier)?,
        None => Engine::start(devices, memory)?,
    };
    let namespace = Namespace {
        name: "test".to_owned(),
        class: Class::Durable,
        quota_bytes: None,
        ttl_s: None,
    };
    engine.store().context().namespaces.set(NAMESPACE, namespace);
    Ok(engine)
}

/// Of 1000 flushes, so many fail.
fn one_run(seed: u64, memory: &Memory, tier: &Memory, flush_fail_per_mille: u32) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let tier = rng.bool().then_some(tier);
    let segment_blocks = if rng.bool() { 16 } else { 40 };
    let count = rng.usize(1..3);
    let devices: Vec<SimDevice> = (0..count)
        .map(|_| {
            SimDevice::new(SimConfig {
                blocks: 1024 + 2 * (64 + 2 * 8 + 12 * segment_blocks),
                volatile_write_cache: rng.u8(..4) > 0,
                seed: rng.u64(..),
                faults: Faults {
                    atomic_bytes: if rng.bool() { 512 } else { 4096 },
                    flush_fail_per_mille,
                    ..Faults::default()
                },
                ..SimConfig::default()
            })
        })
        .collect();
    let options = FormatOptions {
        shards: Some(2 * count as u32),
        segment_bytes: Some(segment_blocks * 4096),
        journal_bytes: Some(64 * 4096),
        index_bytes: Some(8 * 4096),
    };
    format(&devices, memory, rng.u64(..), options).expect("the pool fits");
    let model = Model::default();
    let width = if rng.bool() { 1 } else { 1000 };
    for _ in 0..CRASHES_PER_RUN {
        let mut engine = start(&devices, memory, tier).expect("the pool opens and recovers");
        verify(&mut engine, &model);
        for number in 0..CLIENTS {
            let task = client(engine.store().clone(), model.clone(), number, width, rng.u64(..));
            engine.spawn(task);
        }
        for _ in 0..rng.u32(1..1500) {
            if !engine.step() {
                assert!(flush_fail_per_mille > 0, "the engine hangs");
                break;
            }
        }
        devices.iter().for_each(|device| device.crash(rng.u64(..)));
    }
    let mut engine = start(&devices, memory, tier).expect("the pool opens and recovers");
    verify(&mut engine, &model);
    if let Some(tier) = tier {
        drop(engine);
        assert_eq!(tier.free_bytes(), tier.total_bytes(), "who is gone holds no memory");
    }
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn runs(crashes: u64, flush_fail_per_mille: u32) {
    let (memory, tier) = (memory(), Arena::on_demand(TIER_BYTES).expect("4 MiB").pool());
    if let Some(seed) = from_environment("FOREBAY_SEED") {
        return one_run(seed, &memory, &tier, flush_fail_per_mille);
    }
    let crashes = from_environment("FOREBAY_CRASHES").unwrap_or(crashes);
    for seed in 0..crashes.div_ceil(CRASHES_PER_RUN) {
        let run = || one_run(seed, &memory, &tier, flush_fail_per_mille);
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            eprintln!("failed with seed {seed}: replay with FOREBAY_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn no_acknowledged_write_is_lost_in_ten_thousand_power_cuts() {
    runs(10_000, 0);
}

/// What one shard's failed flush has lost may be what another shard has written.
#[test]
fn nor_in_two_thousand_of_drives_whose_flushes_fail() {
    runs(2_000, 20);
}
