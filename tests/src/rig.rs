//! A store on one simulated device, for tests of limits, damage and recovery: one shard, so that it
//! is known where everything lies, and a bound on every wait, so that a livelock fails.

use crate::engine::{self, Engine, StartError};
use crate::kv;
use forebay_fabric::Status;
use forebay_nvme::sim::{SimConfig, SimDevice};
use forebay_nvme::{BLOCK_BYTES, Pool as Memory};
use forebayd::store::format::Superblock;
use forebayd::store::geometry::{FormatOptions, ShardRegion};
use forebayd::store::{Class, Namespace, Store, pool};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::Future;
use std::rc::Rc;

/// The durable namespace that every rig has.
pub const NAMESPACE: u32 = 16;

/// Steps of the engine after which a wait counts as a livelock.
const STEPS_MAX: u64 = 20_000_000;

/// How the one shard is laid out, and how the device behaves.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Blocks in a segment.
    pub segment_blocks: u64,
    /// Segments.
    pub segments: u64,
    /// Blocks in the journal ring.
    pub journal_blocks: u64,
    /// Blocks in each index checkpoint area.
    pub index_blocks: u64,
    /// DRAM for the index, in bytes.
    pub index_bytes: usize,
    /// The device; its size follows from the rest.
    pub device: SimConfig,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            segment_blocks: 64,
            segments: 24,
            journal_blocks: 64,
            index_blocks: 64,
            index_bytes: 1 << 20,
            device: SimConfig::default(),
        }
    }
}

/// A namespace as tests need it.
#[must_use]
pub fn namespace(quota_bytes: Option<u64>, ttl_s: Option<u32>) -> Namespace {
    Namespace { name: "test".to_owned(), class: Class::Durable, quota_bytes, ttl_s }
}

/// `length` bytes that follow from `seed`.
#[must_use]
pub fn value(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// See the module.
#[derive(Debug)]
pub struct Rig {
    /// The device.
    pub device: SimDevice,
    /// Where the one shard lies.
    pub region: ShardRegion,
    /// The superblock as it was formatted.
    pub superblock: Superblock,
    /// Blocks on the device.
    pub blocks: u64,
    memory: Memory,
    index_bytes: usize,
    namespaces: Vec<(u32, Namespace)>,
    engine: Option<Engine>,
    now_s: u32,
}

impl Rig {
    /// Formats and starts a store of `shape`.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn new(shape: &Shape) -> Self {
        Self::with_memory(shape, engine::memory())
    }

    /// The same with memory of its own.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn with_memory(shape: &Shape, memory: Memory) -> Self {
        let Shape { segment_blocks, segments, journal_blocks, index_blocks, index_bytes, .. } =
            *shape;
        let blocks = 1024 + journal_blocks + 2 * index_blocks + segment_blocks * segments;
        let device = SimDevice::new(SimConfig { blocks, ..shape.device.clone() });
        let bytes = |blocks: u64| Some(blocks * BLOCK_BYTES as u64);
        let options = FormatOptions {
            shards: Some(1),
            segment_bytes: bytes(segment_blocks),
            journal_bytes: bytes(journal_blocks),
            index_bytes: bytes(index_blocks),
        };
        engine::format(std::slice::from_ref(&device), &memory, 1, options).expect("the pool fits");
        let copies = pool::read_copies(0, &mut device.queue(), &memory).expect("a superblock");
        let superblock = copies.quorum().expect("four good copies").clone();
        let mut rig = Self {
            device,
            region: superblock.layout.shard(0, 1),
            superblock,
            blocks,
            memory,
            index_bytes,
            namespaces: vec![(NAMESPACE, namespace(None, None))],
            engine: None,
            now_s: 1_000,
        };
        rig.start().expect("a fresh pool starts");
        rig
    }

    /// Adds a namespace, for this run and the next ones.
    pub fn add_namespace(&mut self, number: u32, namespace: Namespace) {
        self.store().context().namespaces.set(number, namespace.clone());
        self.namespaces.push((number, namespace));
    }

    /// The store.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn store(&self) -> Store {
        self.engine.as_ref().expect("the engine runs").store().clone()
    }

    /// The memory of the store.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Starts the store on what the device holds.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(&mut self) -> Result<(), StartError> {
        self.stop();
        let devices = std::slice::from_ref(&self.device);
        let mut engine = Engine::start_with(devices, &self.memory, self.index_bytes)?;
        for (number, namespace) in &self.namespaces {
            engine.store().context().namespaces.set(*number, namespace.clone());
        }
        engine.now_s = self.now_s;
        engine.step();
        self.engine = Some(engine);
        Ok(())
    }

    /// Ends the process: what was in flight is carried out, nothing else.
    pub fn stop(&mut self) {
        self.engine = None;
    }

    /// Ends the process and starts it again.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart(&mut self) {
        self.start().expect("the store starts again");
    }

    /// Cuts the power and starts again.
    ///
    /// # Panics
    /// If it does not start.
    pub fn crash(&mut self, seed: u64) {
        self.device.crash(seed);
        self.restart();
    }

    /// Lets the clock of the store stand at `now_s`.
    pub fn set_time(&mut self, now_s: u32) {
        self.now_s = now_s;
        if let Some(engine) = &mut self.engine {
            engine.now_s = now_s;
        }
    }

    /// Gives the index this many bytes from the next start on.
    pub fn set_index_bytes(&mut self, index_bytes: usize) {
        self.index_bytes = index_bytes;
    }

    /// Runs `task` to its end.
    ///
    /// # Panics
    /// If it does not end.
    pub fn run<T: 'static>(&mut self, task: impl Future<Output = T> + 'static) -> T {
        self.run_all([task], 1).swap_remove(0)
    }

    /// Runs `tasks`, at most `at_a_time` at a time; their results are in the tasks' order.
    ///
    /// # Panics
    /// If they do not end.
    pub fn run_all<T: 'static, F: Future<Output = T> + 'static>(
        &mut self,
        tasks: impl IntoIterator<Item = F>,
        at_a_time: usize,
    ) -> Vec<T> {
        let engine = self.engine.as_mut().expect("the engine runs");
        let results = Rc::new(RefCell::new(Vec::new()));
        let mut tasks = tasks.into_iter();
        let mut steps = 0;
        loop {
            while engine.clients() < at_a_time
                && let Some(task) = tasks.next()
            {
                let results = results.clone();
                let place = results.borrow().len();
                results.borrow_mut().push(None);
                engine.spawn(async move {
                    let result = task.await;
                    results.borrow_mut()[place] = Some(result);
                });
            }
            if engine.clients() == 0 {
                let ended = std::mem::take(&mut *results.borrow_mut());
                return ended.into_iter().map(|one| one.expect("it ended")).collect();
            }
            steps += 1;
            assert!(engine.step() || engine.clients() == 0, "the engine hangs");
            assert!(steps < STEPS_MAX, "the engine is busy without an end");
        }
    }

    /// Lets the engine run for a while: background work goes on.
    ///
    /// # Panics
    /// When it does not run.
    pub fn idle(&mut self, steps: u64) {
        let engine = self.engine.as_mut().expect("the engine runs");
        for _ in 0..steps {
            engine.step();
        }
    }

    /// Stores.
    ///
    /// # Errors
    /// The operation's status.
    pub fn put(&mut self, number: u32, key: &[u8], value: &[u8], token: u64) -> Result<(), Status> {
        let (store, key, value) = (self.store(), key.to_vec(), value.to_vec());
        self.run(async move { kv::store(&store, number, &key, &value, token).await })
    }

    /// Retrieves.
    ///
    /// # Errors
    /// The operation's status.
    pub fn get(&mut self, number: u32, key: &[u8]) -> Result<Vec<u8>, Status> {
        let (store, key) = (self.store(), key.to_vec());
        self.run(async move { kv::retrieve(&store, number, &key).await })
    }

    /// Retrieves a range.
    ///
    /// # Errors
    /// The operation's status.
    pub fn get_range(&mut self, key: &[u8], offset: u64, length: u32) -> Result<Vec<u8>, Status> {
        let (store, key) = (self.store(), key.to_vec());
        self.run(async move { kv::retrieve_range(&store, NAMESPACE, &key, offset, length).await })
    }

    /// Deletes.
    ///
    /// # Errors
    /// The operation's status.
    pub fn delete(&mut self, number: u32, key: &[u8], token: u64) -> Result<bool, Status> {
        let (store, key) = (self.store(), key.to_vec());
        self.run(async move { kv::delete(&store, number, &key, token).await })
    }

    /// All keys.
    ///
    /// # Errors
    /// The operation's status.
    pub fn list(&mut self, number: u32) -> Result<BTreeSet<Vec<u8>>, Status> {
        let store = self.store();
        self.run(async move { kv::list(&store, number, b"", 8192).await })
    }

    /// Writes an index checkpoint.
    pub fn checkpoint(&mut self) {
        let store = self.store();
        self.run(async move { store.checkpoint_all().await });
    }

    /// The first block of the segments in which `value`, of at least 16 bytes, begins.
    #[must_use]
    pub fn block_of(&self, value: &[u8]) -> Option<u64> {
        self.blocks_of(value).first().copied()
    }

    /// All of them: the cleaner leaves copies behind.
    #[must_use]
    pub fn blocks_of(&self, value: &[u8]) -> Vec<u64> {
        let start = &value[..value.len().min(BLOCK_BYTES)];
        let units = |block: &[u8; BLOCK_BYTES]| {
            (0..BLOCK_BYTES).step_by(64).any(|unit| block[unit..].starts_with(start))
        };
        let blocks = self.region.segments_block..self.blocks - 512;
        blocks.filter(|block| units(&self.device.peek(*block))).collect()
    }
}
