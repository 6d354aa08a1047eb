//! A pool: the devices that belong together, how they are formatted and how they are opened.
//!
//! Runs before there is a reactor: requests are submitted and polled until they end.

use super::barrier::Barrier;
use super::format::superblock::COPIES;
use super::format::{Copies, FormatError, Superblock};
use super::geometry::{FormatOptions, Layout, ShardRegion, TooSmall};
use forebay_nvme::{BLOCK_BYTES, BlockError, BlockQueue, DmaBuf, Operation, Request};
use std::sync::Arc;

/// What all reactors know of an open pool.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Open>);

#[derive(Debug)]
struct Open {
    superblock: Superblock,
    /// One for each device.
    barriers: Box<[Barrier]>,
}

/// Why a pool does not open. Each says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The device holds no superblock of ours.
    #[error("device {device} holds no pool; run `forebay format`")]
    NotFormatted {
        /// The device's place in the configuration.
        device: usize,
    },
    /// Fewer than two of the four superblocks agree.
    #[error(
        "device {device}: fewer than two of its four superblocks are good ({error}); look with `forebay inspect superblock`"
    )]
    NoQuorum {
        /// The device's place in the configuration.
        device: usize,
        /// The most telling error.
        error: FormatError,
    },
    /// The device is of another pool than the first one.
    #[error("device {device} belongs to another pool than device 0; correct the [[device]] list")]
    OtherPool {
        /// The device's place in the configuration.
        device: usize,
    },
    /// The devices are not those of the pool, or not in its order.
    #[error(
        "device {device} is number {found} of a pool of {count}; list all {count} devices, in their order"
    )]
    Order {
        /// The device's place in the configuration.
        device: usize,
        /// Its number in the pool.
        found: u32,
        /// How many the pool has.
        count: u32,
    },
    /// The device has become smaller than it was when it was formatted.
    #[error(
        "device {device} has {blocks} blocks, but was formatted with {formatted}; it has been truncated"
    )]
    Shrunk {
        /// The device's place in the configuration.
        device: usize,
        /// Blocks now.
        blocks: u64,
        /// Blocks then.
        formatted: u64,
    },
    /// More reactors than shards.
    #[error("the pool has {shards} shards, too few for {reactors} cores; use fewer [daemon] cores")]
    TooManyReactors {
        /// Shards of the pool.
        shards: u32,
        /// Cores configured.
        reactors: u32,
    },
    /// The pool does not fit.
    #[error(transparent)]
    TooSmall(#[from] TooSmall),
    /// The device failed.
    #[error("device {device}: {what}: {error}")]
    Device {
        /// The device's place in the configuration.
        device: usize,
        /// What was being done.
        what: &'static str,
        /// How it failed.
        error: BlockError,
    },
    /// No arena memory.
    #[error("no arena memory to read the superblocks; raise `arena` in [daemon]")]
    Memory,
}

impl Pool {
    /// The pool's UUID: also the key of the routing hash.
    #[must_use]
    pub fn uuid(&self) -> &[u8; 16] {
        &self.0.superblock.pool
    }

    /// The first 8 bytes of the UUID, which every structure on media carries.
    #[must_use]
    pub fn tag(&self) -> u64 {
        self.0.superblock.tag()
    }

    /// The generation of the superblocks in this run.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.0.superblock.generation
    }

    /// The secret key of the identity hash.
    pub(super) fn hash_key(&self) -> &[u8; 16] {
        &self.0.superblock.hash_key
    }

    /// Virtual shards.
    #[must_use]
    pub fn shards(&self) -> u32 {
        self.0.superblock.shards
    }

    /// Devices.
    #[must_use]
    pub fn devices(&self) -> u32 {
        self.0.superblock.device_count
    }

    /// The layout of every device.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.0.superblock.layout
    }

    /// Where a shard is.
    #[must_use]
    pub fn region(&self, shard: u32) -> ShardRegion {
        self.0.superblock.layout.shard(shard, self.0.superblock.device_count)
    }

    /// A pool as it was found, for `inspect`: nothing is written.
    #[must_use]
    pub fn inspect(superblock: &Superblock) -> Self {
        Self::new(superblock.clone())
    }

    /// The superblock that speaks for the pool.
    #[must_use]
    pub fn superblock(&self) -> &Superblock {
        &self.0.superblock
    }

    fn new(superblock: Superblock) -> Self {
        let Superblock { device_count, shards, .. } = superblock;
        let barriers = (0..device_count).map(|_| Barrier::new(shards)).collect();
        Self(Arc::new(Open { superblock, barriers }))
    }

    /// Where flushes of a device meet.
    pub(super) fn barrier(&self, device: usize) -> &Barrier {
        &self.0.barriers[device]
    }
}

impl Superblock {
    /// The first 8 bytes of the pool's UUID.
    #[must_use]
    pub fn tag(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.pool[..8]);
        u64::from_le_bytes(first)
    }
}

/// What has to be random in a new pool; passed in, so that a simulation replays.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The pool's UUID.
    pub pool: [u8; 16],
    /// One UUID for each device.
    pub devices: Vec<[u8; 16]>,
    /// The secret key of the identity hash.
    pub hash_key: [u8; 16],
    /// Seconds since 1970.
    pub created_s: u64,
}

/// Makes a pool of `queues`, one for each device. Whatever was there is gone.
///
/// # Errors
/// [`OpenError::TooSmall`], [`OpenError::Device`].
pub fn format(
    queues: &mut [Box<dyn BlockQueue>],
    memory: &forebay_nvme::Pool,
    identity: &Identity,
    options: FormatOptions,
) -> Result<Superblock, OpenError> {
    let blocks = queues.iter().map(|queue| queue.geometry().blocks).min().unwrap_or(0);
    let count = queues.len() as u32;
    let (layout, shards) = Layout::plan(blocks, count, options)?;
    let mut first = None;
    for (device, queue) in queues.iter_mut().enumerate() {
        let superblock = Superblock {
            generation: 1,
            pool: identity.pool,
            device: identity.devices[device],
            device_index: device as u32,
            device_count: count,
            shards,
            device_blocks: queue.geometry().blocks,
            layout,
            hash_key: identity.hash_key,
            created_s: identity.created_s,
        };
        let mut sync = Sync { device, queue: queue.as_mut(), memory };
        // The pool's UUID is new, so nothing that lies in the journals and the index areas counts.
        sync.write_superblocks(&superblock)?;
        first.get_or_insert(superblock);
    }
    first.ok_or(OpenError::Memory)
}

/// The four superblocks of a device.
///
/// # Errors
/// [`OpenError::Memory`]; a copy that cannot be read is an error in [`Copies`] only.
pub fn read_copies(
    device: usize,
    queue: &mut dyn BlockQueue,
    memory: &forebay_nvme::Pool,
) -> Result<Copies, OpenError> {
    Sync { device, queue, memory }.read_copies()
}

/// Opens the pool on `queues`: checks that the devices are its own, raises the generation, and writes it
/// to all superblocks, which also mends a copy that was torn.
///
/// # Errors
/// [`OpenError`].
pub fn open(
    queues: &mut [Box<dyn BlockQueue>],
    memory: &forebay_nvme::Pool,
    reactors: u32,
) -> Result<Pool, OpenError> {
    let mut found = Vec::with_capacity(queues.len());
    for (device, queue) in queues.iter_mut().enumerate() {
        let blocks = queue.geometry().blocks;
        let copies = Sync { device, queue: queue.as_mut(), memory }.read_copies()?;
        let superblock = copies.quorum().map_err(|error| match error {
            FormatError::Magic => OpenError::NotFormatted { device },
            error => OpenError::NoQuorum { device, error },
        })?;
        check(device, blocks, superblock, found.first(), is_in_order(&found, superblock))?;
        found.push(superblock.clone());
    }
    let count = found.len() as u32;
    let first = found.first().ok_or(OpenError::Memory)?;
    if first.device_count != count {
        return Err(OpenError::Order { device: 0, found: 0, count: first.device_count });
    }
    let shards = first.shards;
    if reactors > shards {
        return Err(OpenError::TooManyReactors { shards, reactors });
    }
    let generation = found.iter().map(|one| one.generation).max().unwrap_or(0) + 1;
    for (device, (queue, superblock)) in queues.iter_mut().zip(&mut found).enumerate() {
        superblock.generation = generation;
        Sync { device, queue: queue.as_mut(), memory }.write_superblocks(superblock)?;
    }
    Ok(Pool::new(found.swap_remove(0)))
}

fn is_in_order(found: &[Superblock], superblock: &Superblock) -> bool {
    superblock.device_index as usize == found.len()
}

fn check(
    device: usize,
    blocks: u64,
    superblock: &Superblock,
    first: Option<&Superblock>,
    in_order: bool,
) -> Result<(), OpenError> {
    let Superblock { device_index: found, device_count: count, device_blocks: formatted, .. } =
        *superblock;
    if first.is_some_and(|first| first.pool != superblock.pool) {
        return Err(OpenError::OtherPool { device });
    }
    if !in_order {
        return Err(OpenError::Order { device, found, count });
    }
    if blocks < formatted {
        return Err(OpenError::Shrunk { device, blocks, formatted });
    }
    Ok(())
}

/// One device, one request at a time.
struct Sync<'a> {
    device: usize,
    queue: &'a mut dyn BlockQueue,
    memory: &'a forebay_nvme::Pool,
}

impl Sync<'_> {
    fn read_copies(&mut self) -> Result<Copies, OpenError> {
        let blocks = self.queue.geometry().blocks;
        let mut copies = Vec::with_capacity(COPIES);
        if blocks < 4 * (1 << 20) / BLOCK_BYTES as u64 {
            return Ok(Copies::new(vec![Err(FormatError::Magic)]));
        }
        for copy in 0..COPIES {
            copies.push(self.read_copy(copy, blocks)?);
        }
        // A device that has grown holds the last copies where its end was.
        let was = copies.iter().flatten().map(|one| one.device_blocks).min().unwrap_or(blocks);
        if was < blocks {
            for (copy, place) in copies.iter_mut().enumerate().skip(COPIES / 2) {
                *place = self.read_copy(copy, was)?;
            }
        }
        Ok(Copies::new(copies))
    }

    fn read_copy(
        &mut self,
        copy: usize,
        device_blocks: u64,
    ) -> Result<Result<Superblock, FormatError>, OpenError> {
        let block = Superblock::block_of_copy(copy, device_blocks);
        let buffer = self.memory.alloc(BLOCK_BYTES).ok_or(OpenError::Memory)?;
        let (result, buffer) = self.run(Operation::Read { block, blocks: 1, buffer });
        Ok(match (result, buffer) {
            (Ok(()), Some(buffer)) => Superblock::parse(&buffer),
            _ => Err(FormatError::Field("unreadable block")),
        })
    }

    fn write_superblocks(&mut self, superblock: &Superblock) -> Result<(), OpenError> {
        let device = self.device;
        for copy in 0..COPIES {
            let block = Superblock::block_of_copy(copy, superblock.device_blocks);
            let mut buffer = self.memory.alloc(BLOCK_BYTES).ok_or(OpenError::Memory)?;
            superblock.encode(&mut buffer);
            let (result, _) = self.run(Operation::Write { block, blocks: 1, buffer, fua: true });
            let what = "writing a superblock";
            result.map_err(|error| OpenError::Device { device, what, error })?;
        }
        Ok(())
    }

    fn run(&mut self, operation: Operation) -> (Result<(), BlockError>, Option<DmaBuf>) {
        let mut completions = Vec::with_capacity(1);
        if self.queue.submit(Request { tag: 0, operation }).is_err() {
            return (Err(BlockError::Gone), None);
        }
        let mut now_us = 0;
        while self.queue.poll(now_us, &mut completions) == 0 {
            // The clock of a simulated device; a real one goes by its own.
            now_us += 1000;
            std::hint::spin_loop();
        }
        let completion = completions.swap_remove(0);
        (completion.result, completion.buffer)
    }
}
