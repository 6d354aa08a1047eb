//! The store: one reactor's shards of a pool.
//!
//! Guarantees: what `finish` of a store or delete has returned `Ok` for is on media and survives
//! any crash; a retrieve returns exactly the bytes that were stored, or an error; a deleted key does not
//! come back; memory and time are bounded. What breaks it: two reactors that own one shard, or a device
//! that says "durable" and lies beyond what a checksum can see.
//!
//! A store goes down through [`mod@write`], [`packer`] and [`commit`]; a retrieve through [`read`], unless its value
//! is in the DRAM [`tier`]. [`upkeep`]
//! keeps the shard able to do so: index checkpoints, cleaning, expiry. [`recovery`] makes a shard from
//! what is on media; [`pool`] formats and opens.

mod barrier;
pub mod checksum;
mod cleaner;
mod commit;
pub mod format;
pub mod geometry;
pub mod index;
mod index_checkpoint;
mod index_stream;
pub mod journal;
pub mod key_log;
mod list;
pub mod namespace;
mod packer;
pub mod pool;
mod read;
mod recovery;
mod shard;
pub mod space;
pub mod tier;
mod tokens;
mod upkeep;
mod write;

pub use list::Listed;
pub use namespace::{Class, Namespace, Namespaces, Usage};
pub use pool::{OpenError, Pool};
pub use read::{Looked, PendingRetrieve, Retrieve, Wanted};
pub use recovery::RecoveryError;
pub use shard::Shard;
pub use write::{PendingDelete, PendingStore};

use crate::counters::Count;
use crate::disk::Disk;
use crate::executor::{Ready, Waiters};
use forebay_fabric::Status;
use forebay_fabric::pdu::{KEY_BYTES, VALUE_BYTES_MAX};
use forebay_fabric::route::{shard_of, wide_hash};
use forebay_nvme::{BLOCK_BYTES, Buffer, DmaBuf};
use index::KeyHash;
use space::SegmentClass;
use std::cell::Cell;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin as Pinned;
use std::rc::Rc;
use tier::Tier;

/// A task of the store that runs for as long as the reactor does.
pub type Background = Pinned<Box<dyn Future<Output = ()>>>;

/// What the shards of one reactor share.
#[derive(Debug)]
pub struct Context {
    /// The reactor's ready queue.
    pub ready: Ready,
    /// The reactor's block queues.
    pub disk: Disk,
    /// The reactor's slice of the arena.
    pub pool: forebay_nvme::Pool,
    /// The namespaces.
    pub namespaces: Namespaces,
    /// Bytes used by them.
    pub usage: Usage,
    /// Seconds since 1970, set once per tick.
    pub now_s: Cell<u32>,
    /// Tasks that wait for arena memory; woken once per tick.
    pub memory: Waiters,
    /// Bytes of values that were copied to be packed.
    pub bytes_packed: Count,
    /// Values in memory.
    pub tier: Tier,
}

impl Context {
    /// What is shared, with an empty table of users' namespaces.
    #[must_use]
    pub fn new(
        ready: &Ready,
        disk: &Disk,
        pool: &forebay_nvme::Pool,
        tier: Tier,
        usage: &Usage,
    ) -> Rc<Self> {
        Rc::new(Self {
            tier,
            ready: ready.clone(),
            disk: disk.clone(),
            pool: pool.clone(),
            namespaces: Namespaces::default(),
            usage: usage.clone(),
            now_s: Cell::new(0),
            memory: Waiters::new(WAITERS),
            bytes_packed: Count::default(),
        })
    }

    /// Waits for a buffer of at least `bytes` bytes. Who waits here holds no other memory.
    pub async fn buffer(&self, bytes: usize) -> DmaBuf {
        self.memory.until(&self.ready, || self.pool.alloc(bytes)).await
    }

    /// Waits for two buffers, and takes both or none.
    pub async fn buffers(&self, bytes: [usize; 2]) -> [DmaBuf; 2] {
        let both = || Some([self.pool.alloc(bytes[0])?, self.pool.alloc(bytes[1])?]);
        self.memory.until(&self.ready, both).await
    }
}

/// A store, as the service hands it in.
#[derive(Debug)]
pub struct StoreRequest<'a> {
    /// The namespace's number.
    pub namespace: u32,
    /// The key.
    pub key: &'a [u8],
    /// The value's memory, at least `length` rounded up to whole blocks; its tail is overwritten.
    pub value: DmaBuf,
    /// Bytes in the value.
    pub length: u32,
    /// CRC32C of the value.
    pub crc: u32,
    /// The idempotency token; 0: none.
    pub token: u64,
}

/// Verified bytes of a value.
#[derive(Debug)]
pub struct Fragment {
    /// The memory they are in: the very buffer that the device filled.
    pub buffer: Buffer,
    /// Where in it.
    pub range: Range<usize>,
    /// CRC32C of them.
    pub crc: u32,
    /// The length of the whole value.
    pub value_length: u32,
}

/// One reactor's part of a pool. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    context: Rc<Context>,
    pool: Pool,
    /// By shard number; those of other reactors are `None`.
    shards: Vec<Option<Rc<Shard>>>,
    reactors: u32,
    next_sweep_s: Cell<u32>,
}

/// Tasks that can wait in one place before its list has to grow.
const WAITERS: usize = 1024;

/// How often expired entries are looked for, in seconds.
const SWEEP_INTERVAL_S: u32 = 30;

impl Store {
    /// Recovers the shards that reactor `reactor` of `reactors` owns. Runs on the reactor's own
    /// executor; `index_bytes` of DRAM are shared by the shards.
    ///
    /// # Errors
    /// [`RecoveryError`]: a shard whose acknowledged state cannot be established does not start.
    pub async fn recover(
        context: &Rc<Context>,
        pool: &Pool,
        reactor: u32,
        reactors: u32,
        index_bytes: usize,
    ) -> Result<Self, RecoveryError> {
        let owned = (0..pool.shards()).filter(|shard| shard % reactors == reactor).count().max(1);
        let mut shards = Vec::with_capacity(pool.shards() as usize);
        for shard in 0..pool.shards() {
            shards.push(match shard % reactors == reactor {
                true => Some(recovery::recover(context, pool, shard, index_bytes / owned).await?),
                false => None,
            });
        }
        let (context, pool) = (context.clone(), pool.clone());
        let next_sweep_s = Cell::new(0);
        Ok(Self(Rc::new(Inner { context, pool, shards, reactors, next_sweep_s })))
    }

    /// The tasks that have to run for stores to be acknowledged and space to come back.
    #[must_use]
    pub fn background(&self) -> Vec<Background> {
        let mut tasks: Vec<Background> = Vec::new();
        for shard in self.shards() {
            tasks.push(Box::pin(commit::run(shard.clone())));
            for class in SegmentClass::ALL {
                tasks.push(Box::pin(packer::run(shard.clone(), class)));
            }
            tasks.push(Box::pin(upkeep::run_checkpoints(shard.clone())));
            tasks.push(Box::pin(upkeep::run_cleaning(shard.clone())));
            for _ in 0..cleaner::WORKERS {
                tasks.push(Box::pin(cleaner::work(shard.clone())));
            }
        }
        tasks
    }

    /// Once per tick of the reactor, when the context has the time: those who wait for memory look again.
    /// `true` if somebody waits, so that the reactor does not sleep.
    pub fn tick(&self) -> bool {
        let context = self.context();
        let now_s = context.now_s.get();
        let waiting = !context.memory.is_empty();
        context.memory.wake_all(&context.ready);
        if now_s >= self.0.next_sweep_s.get() {
            self.0.next_sweep_s.set(now_s + SWEEP_INTERVAL_S);
            if context.namespaces.any_ttl() {
                self.sweep();
            }
        }
        waiting
    }

    /// Has expired entries looked for.
    fn sweep(&self) {
        for shard in self.shards() {
            shard.sweep_wanted.set(true);
            shard.upkeep.wake_all(&self.context().ready);
        }
    }

    /// Writes index checkpoints of all shards, so that the next start is quick.
    pub async fn checkpoint_all(&self) {
        for shard in self.shards() {
            upkeep::checkpoint_now(shard).await;
        }
    }

    /// Which reactor owns this key, if it is not this one.
    ///
    /// # Errors
    /// The number of the reactor that does.
    pub fn owns(&self, namespace: u32, key: &[u8]) -> Result<(), u16> {
        let shard = self.shard_number(namespace, key);
        match self.0.shards[shard as usize] {
            Some(_) => Ok(()),
            None => Err((shard % self.0.reactors) as u16),
        }
    }

    /// The largest value that this pool takes: the protocol's limit, or less where segments are small.
    #[must_use]
    pub fn value_bytes_max(&self) -> u32 {
        let segment = self.0.pool.layout().segment_bytes() - BLOCK_BYTES as u64;
        segment.min(VALUE_BYTES_MAX as u64) as u32
    }

    /// The shards of this reactor.
    pub fn shards(&self) -> impl Iterator<Item = &Rc<Shard>> {
        self.0.shards.iter().flatten()
    }

    /// Keys in this reactor's shards.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.shards().map(|shard| shard.index.borrow().len()).sum()
    }

    /// Bytes of this reactor's index tables.
    #[must_use]
    pub fn index_bytes(&self) -> usize {
        self.shards().map(|shard| shard.index.borrow().bytes()).sum()
    }

    /// Bytes alive in this reactor's shards, and the most there can be.
    #[must_use]
    pub fn space_bytes(&self) -> (u64, u64) {
        self.shards().fold((0, 0), |(live, limit), shard| {
            let space = shard.space.borrow();
            let unit = format::UNIT_BYTES;
            (live + space.live_units() * unit, limit + space.limit_units() * unit)
        })
    }

    /// A shard of this reactor has stopped taking writes.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.shards().any(|shard| shard.failed.get())
    }

    /// What the shards share.
    #[must_use]
    pub fn context(&self) -> &Rc<Context> {
        &self.0.context
    }

    fn shard_number(&self, namespace: u32, key: &[u8]) -> u32 {
        match namespace {
            namespace::CATALOG => 0,
            _ => shard_of(self.0.pool.uuid(), namespace, key, self.0.pool.shards()),
        }
    }

    /// The shard of a key.
    fn shard(&self, namespace: u32, key: &[u8]) -> Result<&Rc<Shard>, Status> {
        let shard = &self.0.shards[self.shard_number(namespace, key) as usize];
        shard.as_ref().ok_or(Status::WrongReactor)
    }

    /// A key's identity.
    fn hash(&self, namespace: u32, key: &[u8]) -> Result<KeyHash, Status> {
        let possible = KEY_BYTES.contains(&key.len());
        let hash = || key_hash(self.0.pool.hash_key(), namespace, key);
        possible.then(hash).ok_or(Status::KeyLength)
    }

    /// The shard of a key, and the key's identity.
    fn locate(&self, namespace: u32, key: &[u8]) -> Result<(Rc<Shard>, KeyHash), Status> {
        let hash = self.hash(namespace, key)?;
        Ok((self.shard(namespace, key)?.clone(), hash))
    }

    fn rules(&self, namespace: u32) -> Result<(Class, Option<u64>, Option<u32>), Status> {
        self.context().namespaces.rules(namespace).ok_or(Status::NoNamespace)
    }
}

/// A key's identity: SipHash-1-3-128 (Aumasson and Bernstein, 2012), keyed with the pool's secret,
/// over the namespace's number and the key.
#[must_use]
pub fn key_hash(hash_key: &[u8; 16], namespace: u32, key: &[u8]) -> KeyHash {
    KeyHash::new(wide_hash(hash_key, namespace, key))
}
