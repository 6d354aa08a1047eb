//! Save and load against a whole daemon: several reactors, a simulated network and devices, under
//! seeds, with the power cut anywhere in between.

use super::catalog::Catalog;
use super::load::{Plan, fetch};
use super::save::{Source, save};
use crate::progress::Progress;
use forebay_fabric::client::{Address, ClientConfig, Connector, Pipeline, Slot};
use forebay_fabric::stream::sim::{SimNet, SimProfile, SimStream};
use forebay_nvme::sim::{SimConfig as DeviceConfig, SimDevice};
use forebayd::reactor::sim::{SimConfig, SimConnector, SimDaemon, address};
use forebayd::store::geometry::FormatOptions;
use serde_json::{Map, json};
use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;
use std::rc::Rc;
use tempfile::NamedTempFile;

const NAME: &str = "run/1";
const DEPTH: u32 = 4;

/// A connector whose daemon loses its power after so many waits.
#[derive(Clone)]
struct Mains {
    inner: SimConnector,
    waits_left: Rc<Cell<u64>>,
}

impl Connector for Mains {
    type Stream = SimStream;

    fn connect(&mut self, address: &Address) -> io::Result<SimStream> {
        self.inner.connect(address)
    }

    fn wait(&mut self, slots: &[Slot<SimStream>], timeout_us: u64) -> io::Result<()> {
        self.waits_left.set(self.waits_left.get().saturating_sub(1));
        if self.waits_left.get() == 0 {
            self.inner.daemon.replace(None);
        }
        self.inner.wait(slots, timeout_us)
    }

    fn now_us(&mut self) -> u64 {
        self.inner.now_us()
    }
}

/// One machine: devices that outlive the daemon on them, and the network around it.
struct World {
    config: SimConfig,
    mains: Mains,
}

impl World {
    fn new(seed: u64, reactors: u16) -> Self {
        let device = |n| {
            let blocks = (160 << 20) / 4096;
            SimDevice::new(DeviceConfig { seed: seed + n, blocks, ..DeviceConfig::default() })
        };
        let options = FormatOptions {
            shards: Some(4),
            segment_bytes: Some(8 << 20),
            journal_bytes: Some(1 << 20),
            index_bytes: Some(256 << 10),
        };
        let config = SimConfig {
            seed,
            reactors,
            devices: vec![device(1), device(2)],
            format: true,
            options,
            namespaces: vec![],
            memory_bytes: 64 << 20,
            tier_bytes: 0,
            index_bytes: 1 << 20,
            slots: 64,
        };
        let net = SimNet::new(seed, SimProfile::kind());
        let inner = SimConnector { daemon: Rc::new(RefCell::new(None)), net };
        let mut world = Self { config, mains: Mains { inner, waits_left: Rc::default() } };
        world.start(u64::MAX);
        world.config.format = false;
        world
    }

    /// Power on, for `waits`.
    fn start(&self, waits: u64) {
        let daemon = SimDaemon::start(&self.config, &self.mains.inner.net).unwrap();
        self.mains.inner.daemon.replace(Some(daemon));
        self.mains.waits_left.set(waits);
    }

    fn crash(&self, seed: u64) {
        self.mains.inner.daemon.replace(None);
        self.config.devices.iter().for_each(|device| device.crash(seed));
    }

    fn connect(&self, seed: u64) -> anyhow::Result<Catalog<Mains>> {
        let timeout_us = 200_000;
        let config = ClientConfig { seed, timeout_us, ..ClientConfig::new(vec![address(0)]) };
        Ok(Catalog { pipeline: Pipeline::connect_with(config, self.mains.clone())? })
    }

    fn catalog(&self, seed: u64) -> Catalog<Mains> {
        self.connect(seed).unwrap()
    }

    /// Saves `file`; how many chunks travelled.
    fn save(&self, seed: u64, file: &Path) -> anyhow::Result<u64> {
        let source = Source::open(file).unwrap();
        let progress = Progress::of_bytes(0, "test");
        let catalog = &mut self.connect(seed)?;
        let (_, timing) = save(catalog, &source, NAME, None, DEPTH, &progress)?;
        Ok(timing.chunks)
    }

    /// The bytes that load writes.
    fn load(&self, seed: u64) -> Vec<u8> {
        let mut catalog = self.catalog(seed);
        let plan = Plan::of(catalog.manifest(NAME).unwrap()).unwrap();
        let file = NamedTempFile::new().unwrap();
        let progress = Progress::of_bytes(0, "test");
        fetch(&mut catalog, &plan, file.as_file(), DEPTH, &progress).unwrap();
        std::fs::read(file.path()).unwrap()
    }
}

/// A file of five tensors, of about 17 MiB, in 6 chunks.
fn model(seed: u64) -> NamedTempFile {
    let (mut header, mut end) = (Map::new(), 0_u64);
    let mut add = |name: &str, dtype: &str, shape: &[u64], bytes: u64| {
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes]});
        header.insert(name.to_owned(), entry);
        end += bytes;
    };
    add("scalar", "F32", &[], 4);
    add("large", "BF16", &[2500, 2501], 2500 * 2501 * 2);
    add("none", "F64", &[0, 9], 0);
    add("bias", "U8", &[13], 13);
    add("exact", "F32", &[1024, 1024], 4 << 20);
    let json = serde_json::to_vec(&header).unwrap();
    let mut data = vec![0; end as usize];
    fastrand::Rng::with_seed(seed).fill(&mut data);
    let file = NamedTempFile::new().unwrap();
    let bytes = [&(json.len() as u64).to_le_bytes()[..], &json, &data].concat();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

#[test]
fn what_was_saved_loads_byte_for_byte_also_after_a_power_cut() {
    for (seed, reactors) in [(1, 1), (2, 3)] {
        let (world, file) = (World::new(seed, reactors), model(seed));
        assert_eq!(world.save(seed, file.path()).unwrap(), 6);
        let saved = std::fs::read(file.path()).unwrap();
        assert!(world.load(seed) == saved, "seed {seed}");
        world.crash(seed);
        world.start(u64::MAX);
        assert!(world.load(seed) == saved, "seed {seed}, after a power cut");
        let mut catalog = world.catalog(seed);
        let listed = catalog.list("run/").unwrap();
        assert_eq!(listed.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), [NAME]);
        assert_eq!(listed[0].entry.chunks.get(), 6);
        let again = world.save(seed, file.path()).unwrap_err();
        assert!(again.to_string().contains("immutable"), "{again:#}");
    }
}

/// A world whose power was cut in the middle of saving `file`, and is back; `part` of 1000 of the
/// way. `None`: the checkpoint was committed before the cut.
fn cut_save(seed: u64, file: &Path, part: u64) -> Option<World> {
    let whole = World::new(seed, 2);
    whole.save(seed, file).unwrap();
    let waits = u64::MAX - whole.mains.waits_left.get();
    let world = World::new(seed, 2);
    world.mains.waits_left.set((waits * part / 1000).max(1));
    let cut = world.save(seed, file).is_err();
    world.crash(seed);
    world.start(u64::MAX);
    (cut && world.catalog(seed).manifest(NAME).is_err()).then_some(world)
}

#[test]
fn a_save_cut_anywhere_is_taken_up_and_sends_less() {
    let (mut cuts, mut sent) = (0, 0);
    for seed in 0..20 {
        let file = model(seed);
        let Some(world) = cut_save(100 + seed, file.path(), 50 * seed) else { continue };
        cuts += 1;
        sent += world.save(seed + 1, file.path()).unwrap();
        assert!(world.load(seed) == std::fs::read(file.path()).unwrap(), "seed {seed}");
    }
    assert!(cuts > 10, "only {cuts} saves were cut");
    assert!(sent < 6 * cuts, "{cuts} saves were taken up, and sent {sent} chunks all the same");
}

#[test]
fn another_file_is_never_mixed_with_what_an_interrupted_save_left() {
    let mut cuts = 0;
    for seed in 0..8 {
        let (first, second) = (model(1), model(2));
        let Some(world) = cut_save(200 + seed, first.path(), 600 + 50 * seed) else { continue };
        cuts += 1;
        assert_eq!(world.save(seed + 1, second.path()).unwrap(), 6, "seed {seed}");
        assert!(world.load(seed) == std::fs::read(second.path()).unwrap(), "seed {seed}");
    }
    assert!(cuts > 4, "only {cuts} saves were cut");
}

#[test]
fn removed_checkpoints_give_their_space_back() {
    let (world, file) = (World::new(300, 2), model(3));
    // 320 MiB of devices, and 17 MiB each time.
    for round in 0..24 {
        world.save(round, file.path()).unwrap_or_else(|error| panic!("round {round}: {error:#}"));
        assert!(world.catalog(round).delete(NAME).unwrap());
        assert!(!world.catalog(round).delete(NAME).unwrap());
    }
}
