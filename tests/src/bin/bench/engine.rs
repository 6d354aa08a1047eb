//! The engine alone: 4 KiB retrieves from media, on one core and without a network, beside fio on the
//! same core and the same memory file system.

use crate::Effort;
use crate::machine::{Machine, folder_in_memory, now, on_core};
use crate::peers::fio;
use anyhow::{Context as _, ensure};
use forebay_fabric::pdu::crc32c;
use forebay_nvme::uring::UringDevice;
use forebay_nvme::{Arena, BLOCK_BYTES, BlockQueue};
use forebay_tests::measure::{Fio, Metrics, Rate};
use forebayd::executor::Tasks;
use forebayd::reactor::{Clock, Core, Now, Parts};
use forebayd::store::geometry::FormatOptions;
use forebayd::store::namespace::FIRST_USER;
use forebayd::store::pool::{self, Identity};
use forebayd::store::{Class, Namespace, Store, StoreRequest, Usage};
use std::cell::Cell;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

/// Of fio's rate.
const GOAL: f64 = 0.7;
/// Retrieves in flight.
const CLIENTS: usize = 32;
/// As much as fio reads from: 512 MiB.
const KEYS: u64 = 131_072;
const DEVICE_MIB: u64 = 1536;
const FIO_MIB: u64 = 512;
const ARENA_BYTES: usize = 64 << 20;
const INDEX_BYTES: usize = 16 << 20;
const QUEUE_DEPTH: u32 = 128;
const NAMESPACE: u32 = FIRST_USER;
/// The executor's set that the clients live in; the engine has 0 and 1.
const CLIENT_SET: u8 = 2;

pub(crate) fn measure(
    machine: &Machine,
    effort: Effort,
    metrics: &mut Metrics,
) -> anyhow::Result<()> {
    let folder = folder_in_memory(DEVICE_MIB + FIO_MIB)?;
    let (file, core) = (folder.path().join("fio"), machine.client_core);
    let job = Fio {
        file: &file,
        rw: "randread",
        block_bytes: BLOCK_BYTES,
        depth: CLIENTS,
        batch: CLIENTS / 2,
        size_mib: Some(FIO_MIB),
    };
    let mut engine = on_core(core, || Engine::start(&folder.path().join("device"), KEYS))?;
    let mut ours = Rate::new("engine_retrieve_4k_per_s", "1/s");
    let mut theirs = Rate::new("fio_4k_randread_per_s", "1/s");
    for _ in 0..effort.rounds {
        theirs.push(fio(core, job, effort.seconds)?);
        let seconds = Duration::from_secs(effort.seconds.into());
        ours.push(on_core(core, || engine.retrieves_per_s(seconds))?);
    }
    metrics.ratio("engine_retrieve_4k_vs_fio", &ours, &theirs, GOAL);
    Ok(())
}

type Client = Pin<Box<dyn Future<Output = ()>>>;

/// A reactor's engine, and clients that live in the same thread.
struct Engine {
    core: Core,
    clients: Tasks<Client>,
    clock: Clock,
    load: Rc<Load>,
}

/// What all clients share.
struct Load {
    keys: u64,
    done: Cell<u64>,
    failed: Cell<u64>,
    over: Cell<bool>,
}

impl Engine {
    /// Formats a file and stores `keys` values of 4 KiB in it.
    fn start(path: &Path, keys: u64) -> anyhow::Result<Self> {
        let device = UringDevice::open(path, Some(DEVICE_MIB << 20))?;
        let memory = Arena::new(ARENA_BYTES)?.pool();
        let mut queues = vec![Box::new(device.queue(&memory, QUEUE_DEPTH)?) as Box<dyn BlockQueue>];
        let identity =
            Identity { pool: [1; 16], devices: vec![[2; 16]], hash_key: [3; 16], created_s: 1 };
        pool::format(&mut queues, &memory, &identity, FormatOptions::default())?;
        let pool = pool::open(&mut queues, &memory, 1)?;
        let usage = Usage::default();
        let (reactor, reactors, index_bytes) = (0, 1, INDEX_BYTES);
        let tier = None;
        let parts = Parts { reactor, reactors, queues, memory, tier, pool, usage, index_bytes };
        let clock = Clock::start();
        let core = Core::recover(parts, &mut || clock.now())?;
        let (name, class) = ("bench".to_owned(), Class::Durable);
        let namespace = Namespace { name, class, quota_bytes: None, ttl_s: None };
        core.store.context().namespaces.set(NAMESPACE, namespace);
        let clients = Tasks::new(&core.ready, CLIENT_SET, CLIENTS);
        let (done, failed, over) = (Cell::new(0), Cell::new(0), Cell::new(false));
        let load = Rc::new(Load { keys, done, failed, over });
        let mut engine = Self { core, clients, clock, load };
        engine.fill()?;
        Ok(engine)
    }

    fn fill(&mut self) -> anyhow::Result<()> {
        for number in 0..CLIENTS as u64 {
            let (store, load) = (self.core.store.clone(), self.load.clone());
            self.spawn(Box::pin(async move {
                for key in (number..load.keys).step_by(CLIENTS) {
                    load.count(store_one(&store, key).await.is_ok());
                }
            }));
        }
        while !self.clients.is_empty() {
            self.turn();
        }
        ensure!(self.load.failed.get() == 0, "{} stores failed", self.load.failed.get());
        Ok(())
    }

    /// Retrieves random keys for a time.
    fn retrieves_per_s(&mut self, time: Duration) -> anyhow::Result<f64> {
        self.load.over.set(false);
        for number in 0..CLIENTS as u64 {
            let (store, load) = (self.core.store.clone(), self.load.clone());
            self.spawn(Box::pin(retrieve(store, load, number)));
        }
        let (began, before) = (now(), self.load.done.get());
        let began_us = self.clock.now().us;
        while u128::from(self.turn().us - began_us) < time.as_micros() {}
        let (took, done) = (began.elapsed(), self.load.done.get() - before);
        self.load.over.set(true);
        while !self.clients.is_empty() {
            self.turn();
        }
        let failed = self.load.failed.get();
        ensure!(failed == 0 && done > 0, "{failed} retrieves failed, {done} did not");
        Ok(done as f64 / took.as_secs_f64())
    }

    fn spawn(&mut self, client: Client) {
        assert!(self.clients.spawn(client), "there is a slot for each client");
    }

    fn turn(&mut self) -> Now {
        let now = self.clock.now();
        let Self { core, clients, .. } = self;
        let busy = core.turn(now, &mut |task| {
            clients.run(task);
        });
        if !busy {
            std::thread::yield_now();
        }
        now
    }
}

impl Load {
    fn count(&self, good: bool) {
        let counter = if good { &self.done } else { &self.failed };
        counter.set(counter.get() + 1);
    }
}

/// Retrieves until it is over.
async fn retrieve(store: Store, load: Rc<Load>, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    while !load.over.get() {
        let key = key_bytes(rng.u64(..load.keys));
        let fragment = match store.start_retrieve(NAMESPACE, &key, 0, u32::MAX) {
            Ok(pending) => pending.finish().await,
            Err(status) => Err(status),
        };
        load.count(fragment.is_ok_and(|fragment| fragment.range.len() == BLOCK_BYTES));
    }
}

async fn store_one(store: &Store, number: u64) -> anyhow::Result<()> {
    let key = key_bytes(number);
    let mut value = store.context().buffer(BLOCK_BYTES).await;
    value.fill(number as u8);
    let crc = crc32c(&value);
    let (namespace, key, length, token) = (NAMESPACE, &key[..], BLOCK_BYTES as u32, 0);
    let request = StoreRequest { namespace, key, value, length, crc, token };
    let pending = store.start_store(request).ok().context("the store is refused")?;
    pending.finish().await.ok().context("the store fails")
}

/// `key:` and twelve digits, as `forebay perf` and redis-benchmark write them.
fn key_bytes(mut number: u64) -> [u8; 16] {
    let mut key = *b"key:000000000000";
    for digit in key[4..].iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tiny_run_retrieves_what_it_stored() {
        let folder = tempfile::tempdir().unwrap();
        let mut engine = Engine::start(&folder.path().join("device"), 500).unwrap();
        assert_eq!(engine.core.store.keys(), 500);
        assert!(engine.retrieves_per_s(Duration::from_millis(20)).unwrap() > 0.0);
    }
}
