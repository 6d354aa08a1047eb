//! The NVMe driver's steady state allocates nothing: counted inside of `submit` and `poll`, over an emulated
//! controller.
//!
//! The count is exact, so one allocation in ten thousand operations fails. What the emulated controller
//! allocates does not count.

use forebay_nvme::emulated::{EmulatedConfig, Times};
use forebay_nvme::pcie::Options;
use forebay_nvme::{BLOCK_BYTES, BlockQueue, Completion, DmaBuf, Operation, Request};
use forebay_tests::pcie::EmulatedQueue;

const DEPTH: usize = 32;

/// What is done over and over.
#[derive(Clone, Copy, Debug)]
enum Work {
    Read(u32),
    Write(u32),
    WriteThrough(u32),
    Flush,
}

impl Work {
    fn blocks(self) -> u32 {
        match self {
            Self::Read(blocks) | Self::Write(blocks) | Self::WriteThrough(blocks) => blocks,
            Self::Flush => 1,
        }
    }

    fn operation(self, block: u64, buffer: DmaBuf) -> Operation {
        match self {
            Self::Read(blocks) => Operation::Read { block, blocks, buffer },
            Self::Write(blocks) => Operation::Write { block, blocks, buffer, fua: false },
            Self::WriteThrough(blocks) => Operation::Write { block, blocks, buffer, fua: true },
            Self::Flush => Operation::Flush,
        }
    }
}

/// A queue, what waits to be submitted, and how often `submit` and `poll` have allocated.
struct Counted {
    rig: EmulatedQueue,
    free: Vec<DmaBuf>,
    done: Vec<Completion>,
    allocations: u64,
}

impl Counted {
    fn new(blocks: u32) -> Self {
        let config = EmulatedConfig { times: Times::none(), ..EmulatedConfig::default() };
        let rig = EmulatedQueue::open(config, Options::default(), DEPTH as u32);
        let bytes = blocks as usize * BLOCK_BYTES;
        let free = (0..DEPTH).map(|_| rig.pool.alloc(bytes).expect("room")).collect();
        Self { rig, free, done: Vec::with_capacity(DEPTH), allocations: 0 }
    }

    /// Does it once for each buffer.
    fn round(&mut self, work: Work) -> usize {
        let buffers = std::mem::take(&mut self.free);
        for (at, buffer) in buffers.into_iter().enumerate() {
            let block = at as u64 * u64::from(work.blocks());
            let request = Request { tag: at as u64, operation: work.operation(block, buffer) };
            let queue = &mut self.rig.queue;
            let info = allocation_counter::measure(|| queue.submit(request).expect("room"));
            self.allocations += info.count_total;
        }
        let mut ended = 0;
        while ended < DEPTH {
            ended += self.poll();
            self.rig.device.step(self.rig.now_us());
        }
        let done = self.done.drain(..);
        self.free.extend(done.map(|completion| {
            completion.result.expect("an honest controller");
            completion.buffer.or_else(|| self.rig.pool.alloc(BLOCK_BYTES)).expect("room")
        }));
        ended
    }

    fn poll(&mut self) -> usize {
        let (now_us, mut ended) = (self.rig.now_us(), 0);
        let queue = &mut self.rig.queue;
        let info = allocation_counter::measure(|| ended = queue.poll(now_us, &mut self.done));
        self.allocations += info.count_total;
        ended
    }
}

/// Allocations in `count` operations after a warm-up.
fn allocations(work: Work, count: usize) -> u64 {
    let mut counted = Counted::new(work.blocks());
    counted.round(work);
    counted.allocations = 0;
    let mut ended = 0;
    while ended < count {
        ended += counted.round(work);
    }
    counted.allocations
}

#[test]
fn reads_and_writes_allocate_nothing_in_steady_state() {
    for work in [Work::Read(1), Work::Write(1)] {
        assert_eq!(allocations(work, 10_000), 0, "{work:?}");
    }
}

#[test]
fn transfers_that_are_split_into_many_commands_allocate_nothing() {
    // Eight commands of 128 KiB each: more than the submission queue holds at once.
    for work in [Work::Read(256), Work::Write(256)] {
        assert_eq!(allocations(work, 500), 0, "{work:?}");
    }
}

#[test]
fn flushes_and_writes_with_fua_allocate_nothing() {
    for work in [Work::Flush, Work::WriteThrough(1)] {
        assert_eq!(allocations(work, 5_000), 0, "{work:?}");
    }
}
