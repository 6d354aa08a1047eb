//! A simulated device: deterministic, seeded, and as hostile as it is told to be.
//!
//! Guarantees:
//!
//! * the same seed and the same calls give the same run, to the byte and the microsecond;
//! * with default [`Faults`] it is an honest NVMe drive: it keeps every promise of
//!   [`crate::queue`], and uses every freedom that the promises leave (completion in any order,
//!   cached writes lost, torn or reordered at a power cut);
//! * what is durable (flushed, written with FUA, or written with no volatile cache) outlives every
//!   [`SimDevice::crash`].
//!
//! What breaks it: sharing a device between threads (it is `Rc`; only a [`Snapshot`] travels).
//!
//! Unlike a real queue this one allocates per request: it is a device, not only a way to one.
//!
//! ```
//! use forebay_nvme::sim::{SimConfig, SimDevice};
//! use forebay_nvme::{Arena, BlockQueue, Operation, Request};
//!
//! let pool = Arena::on_demand(4 << 20)?.pool();
//! let device = SimDevice::new(SimConfig { seed: 7, ..SimConfig::default() });
//! let mut queue = device.queue();
//! let buffer = pool.alloc(4096).expect("an empty pool has room");
//! let write = Operation::Write { block: 3, blocks: 1, buffer, fua: true };
//! assert!(queue.submit(Request { tag: 1, operation: write }).is_ok());
//! let mut completions = Vec::with_capacity(8);
//! queue.poll(0, &mut completions);
//! let due_us = device.next_event_us().expect("the write is under way");
//! assert_eq!(queue.poll(due_us, &mut completions), 1);
//! # Ok::<(), forebay_nvme::ArenaError>(())
//! ```

mod device;
pub(crate) mod faults;
pub(crate) mod media;

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use crate::{BLOCK_BYTES, BlockQueue, Completion, Geometry, Request};
use device::{Device, QueueId};
pub use faults::{Faults, Rule};
use media::Media;

/// What to simulate.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Size in blocks of [`BLOCK_BYTES`]. Only blocks that are written take memory.
    pub blocks: u64,
    /// Requests in flight on one queue.
    pub depth: u32,
    /// Largest transfer in blocks.
    pub max_transfer_blocks: u32,
    /// Completed writes are cached until they are flushed.
    pub volatile_write_cache: bool,
    /// Discard is supported.
    pub discard: bool,
    /// How long requests take.
    pub latency: Latency,
    /// What goes wrong.
    pub faults: Faults,
    /// Where all chance comes from.
    pub seed: u64,
}

impl Default for SimConfig {
    /// 256 MiB, depth 128, with a volatile cache; honest.
    fn default() -> Self {
        Self {
            blocks: 65_536,
            depth: 128,
            max_transfer_blocks: 1024,
            volatile_write_cache: true,
            discard: true,
            latency: Latency::default(),
            faults: Faults::default(),
            seed: 0,
        }
    }
}

/// How long requests take, in microseconds: evenly spread over each range, which is not empty.
#[derive(Clone, Debug)]
pub struct Latency {
    /// Reads.
    pub read_us: Range<u64>,
    /// Writes.
    pub write_us: Range<u64>,
    /// Flushes.
    pub flush_us: Range<u64>,
    /// Discards.
    pub discard_us: Range<u64>,
}

impl Default for Latency {
    /// A data-centre TLC drive.
    fn default() -> Self {
        Self { read_us: 60..120, write_us: 12..40, flush_us: 200..1200, discard_us: 20..200 }
    }
}

impl Latency {
    /// Everything completes in the poll that shows it to the device.
    #[must_use]
    pub fn none() -> Self {
        Self { read_us: 0..1, write_us: 0..1, flush_us: 0..1, discard_us: 0..1 }
    }
}

/// What the device has been asked to do so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimCounters {
    /// Reads carried out.
    pub reads: u64,
    /// Writes carried out.
    pub writes: u64,
    /// Flushes carried out.
    pub flushes: u64,
    /// Discards carried out.
    pub discards: u64,
    /// Blocks asked for by the reads.
    pub blocks_read: u64,
    /// Blocks carried by the writes.
    pub blocks_written: u64,
}

/// A device's media at one moment, with its volatile cache. Cheap to clone, and may go to another
/// thread.
#[derive(Clone, Debug)]
pub struct Snapshot(Media);

/// A handle on a simulated device. Clones are the same device.
#[derive(Clone, Debug)]
pub struct SimDevice {
    device: Rc<RefCell<Device>>,
}

impl SimDevice {
    /// A blank device.
    #[must_use]
    pub fn new(config: SimConfig) -> Self {
        Self { device: Rc::new(RefCell::new(Device::new(config, Media::default()))) }
    }

    /// A device of its own that begins with what `snapshot` saw.
    #[must_use]
    pub fn from_snapshot(config: SimConfig, snapshot: &Snapshot) -> Self {
        Self { device: Rc::new(RefCell::new(Device::new(config, snapshot.0.clone()))) }
    }

    /// What is on the media and in the cache now. Requests in flight are not in it.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.device.borrow().media.clone())
    }

    /// A queue on the device; each reactor has its own.
    #[must_use]
    pub fn queue(&self) -> SimQueue {
        let id = self.device.borrow_mut().add_queue();
        SimQueue { device: Rc::clone(&self.device), id }
    }

    /// When something completes next, so that a simulation can jump its clock there. `None`:
    /// nothing will happen before another submission.
    #[must_use]
    pub fn next_event_us(&self) -> Option<u64> {
        self.device.borrow().next_event_us()
    }

    /// Cuts the power, and gives it back at once. Writes in flight or in the volatile cache are
    /// kept, dropped or torn as `seed` says; queues made before are gone.
    pub fn crash(&self, seed: u64) {
        self.device.borrow_mut().crash(seed);
    }

    /// Changes how likely faults are from now on.
    pub fn set_faults(&self, faults: Faults) {
        media::check_atomic_bytes(faults.atomic_bytes);
        self.device.borrow_mut().state.faults = faults;
    }

    /// Adds a fault at a chosen place.
    pub fn add_rule(&self, rule: Rule) {
        self.device.borrow_mut().state.rules.push(rule);
    }

    /// Takes all rules away.
    pub fn clear_rules(&self) {
        self.device.borrow_mut().state.rules.clear();
    }

    /// Turns one bit of a block over, on the media and in the cache.
    ///
    /// # Panics
    /// When the block has no such bit.
    pub fn flip_bit(&self, block: u64, bit: usize) {
        self.edit(block, |data| data[bit / 8] ^= 1 << (bit % 8));
    }

    /// Changes a block behind everybody's back, on the media and in the cache.
    ///
    /// # Panics
    /// When the device has no such block.
    pub fn edit(&self, block: u64, change: impl FnMut(&mut [u8; BLOCK_BYTES])) {
        let mut device = self.device.borrow_mut();
        assert!(block < device.geometry.blocks, "block {block} is past the end");
        device.media.edit(block, change);
    }

    /// What a read of the block would see, without the read.
    #[must_use]
    pub fn peek(&self, block: u64) -> [u8; BLOCK_BYTES] {
        self.device.borrow().media.peek(block)
    }

    /// What has been asked of the device so far.
    #[must_use]
    pub fn counters(&self) -> SimCounters {
        self.device.borrow().counters
    }
}

/// One reactor's queue on a [`SimDevice`].
#[derive(Debug)]
pub struct SimQueue {
    device: Rc<RefCell<Device>>,
    id: QueueId,
}

impl BlockQueue for SimQueue {
    fn geometry(&self) -> Geometry {
        self.device.borrow().geometry
    }

    fn submit(&mut self, request: Request) -> Result<(), Request> {
        self.device.borrow_mut().submit(self.id, request)
    }

    fn poll(&mut self, now_us: u64, completions: &mut Vec<Completion>) -> usize {
        self.device.borrow_mut().poll(self.id, now_us, completions)
    }

    fn in_flight(&self) -> usize {
        self.device.borrow().in_flight(self.id)
    }
}

impl Drop for SimQueue {
    /// What the device has seen is carried out, as if the host had waited for it.
    fn drop(&mut self) {
        self.device.borrow_mut().remove_queue(self.id);
    }
}
