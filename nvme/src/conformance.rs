//! The suite that every [`BlockQueue`] passes, whatever is behind it.
//!
//! Guarantees checked: those of [`crate::queue`], one function each, named as a claim. A failed
//! claim panics with what was expected and the seed.
//!
//! What it asks of the device: that it is honest (no fault is injected), holds at least
//! [`BLOCKS_MIN`] blocks whose content may be destroyed, and that the pool has at least
//! [`POOL_BYTES_MIN`].

use std::collections::BTreeMap;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{
    BLOCK_BYTES, BlockError, BlockQueue, Completion, DmaBuf, Geometry, Operation, Pool, Request,
};

/// The smallest device that the suite runs on, in blocks.
pub const BLOCKS_MIN: u64 = 4096;
/// The smallest pool that the suite runs with, in bytes.
pub const POOL_BYTES_MIN: usize = 16 << 20;

/// A queue under test, and the pool that its buffers come from.
pub struct Harness {
    /// Fresh: nothing in flight.
    pub queue: Box<dyn BlockQueue>,
    /// Full: nothing taken.
    pub pool: Pool,
}

/// Holds the queues that `make` makes to every guarantee of the seam.
///
/// # Panics
/// At the first guarantee that does not hold.
pub fn run(make: &mut dyn FnMut() -> Harness, seed: u64) {
    for claim in [
        every_request_ends_once_with_its_tag_and_its_buffer,
        a_completed_write_is_seen_by_every_later_read,
        a_read_fills_only_what_was_asked_for,
        the_largest_transfer_arrives_whole,
        an_impossible_request_is_invalid_and_touches_nothing,
        a_full_queue_gives_the_request_back,
        poll_never_grows_the_vector,
        an_idle_queue_stays_idle,
        flushes_and_fua_writes_complete_among_other_requests,
        a_discard_harms_no_other_block,
        written_zeroes_are_read_and_harm_no_other_block,
        a_compare_tells_whether_the_device_holds_the_same,
        a_verify_of_what_can_be_read_succeeds,
        random_operations_agree_with_a_model,
        dropping_a_queue_gives_every_buffer_back,
    ] {
        let Harness { queue, pool } = make();
        let geometry = queue.geometry();
        assert!(geometry.blocks >= BLOCKS_MIN, "the suite needs {BLOCKS_MIN} blocks");
        assert!(pool.total_bytes() >= POOL_BYTES_MIN, "the suite needs {POOL_BYTES_MIN} bytes");
        let done = Vec::with_capacity(geometry.depth as usize);
        claim(Rig { queue, pool: pool.clone(), geometry, now_us: 0, done }, seed);
        assert_eq!(pool.free_bytes(), pool.total_bytes(), "a buffer did not come back");
    }
}

/// A queue with a clock, and what has completed.
struct Rig {
    queue: Box<dyn BlockQueue>,
    pool: Pool,
    geometry: Geometry,
    now_us: u64,
    done: Vec<Completion>,
}

impl Rig {
    fn buffer(&self, blocks: u32, fill: u8) -> DmaBuf {
        let mut buffer = self.pool.alloc(blocks as usize * BLOCK_BYTES).expect("the pool has room");
        buffer.fill(fill);
        buffer
    }

    fn read(&self, block: u64, blocks: u32) -> Operation {
        Operation::Read { block, blocks, buffer: self.buffer(blocks, 0xEE) }
    }

    fn write(&self, block: u64, blocks: u32, fill: u8) -> Operation {
        Operation::Write { block, blocks, buffer: self.buffer(blocks, fill), fua: false }
    }

    fn start(&mut self, tag: u64, operation: Operation) {
        let taken = self.queue.submit(Request { tag, operation });
        assert!(taken.is_ok(), "request {tag} refused with {} in flight", self.queue.in_flight());
    }

    /// Waits until one request more has completed, and returns one.
    fn next(&mut self) -> Completion {
        for _ in 0..1_000_000 {
            if let Some(completion) = self.done.pop() {
                return completion;
            }
            self.now_us += 10;
            if self.queue.poll(self.now_us, &mut self.done) == 0 {
                self.sleep();
            }
        }
        panic!("{} requests never completed", self.queue.in_flight());
    }

    /// Sleeps on the queue's descriptor, as an idle reactor does. A queue without one lives in
    /// simulated time.
    fn sleep(&self) {
        let Some(fd) = self.queue.wait_fd() else { return };
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        let woken = poll(&mut fds, PollTimeout::from(10_000_u16));
        assert_ne!(woken, Ok(0), "the descriptor never turned readable");
    }

    fn run(&mut self, operation: Operation) -> Completion {
        self.start(u64::MAX, operation);
        let completion = self.next();
        assert_eq!(completion.tag, u64::MAX);
        completion
    }

    fn ok(&mut self, operation: Operation) -> Option<DmaBuf> {
        let completion = self.run(operation);
        assert_eq!(completion.result, Ok(()));
        completion.buffer
    }

    /// Asserts that the blocks hold nothing but `fill`.
    fn expect_fill(&mut self, block: u64, blocks: u32, fill: u8) {
        let buffer = self.ok(self.read(block, blocks)).expect("a read has a buffer");
        let data = &buffer[..blocks as usize * BLOCK_BYTES];
        let wrong = data.iter().position(|byte| *byte != fill);
        assert_eq!(wrong, None, "blocks {block}+{blocks} hold something else than {fill:#x}");
    }
}

fn every_request_ends_once_with_its_tag_and_its_buffer(mut rig: Rig, _seed: u64) {
    let mut expected = BTreeMap::new();
    for tag in 0..u64::from(rig.geometry.depth) {
        let operation = match tag % 4 {
            0 => rig.read(tag, 1),
            1 => rig.write(tag, 1, 1),
            2 => Operation::Flush,
            _ => rig.write(rig.geometry.blocks, 1, 1),
        };
        let address = match &operation {
            Operation::Read { buffer, .. } | Operation::Write { buffer, .. } => {
                Some(buffer.as_ptr())
            }
            _ => None,
        };
        expected.insert(tag, address);
        rig.start(tag, operation);
        assert_eq!(rig.queue.in_flight(), expected.len());
    }
    while !expected.is_empty() {
        let completion = rig.next();
        let address = expected.remove(&completion.tag);
        let found = completion.buffer.as_ref().map(|buffer| buffer.as_ptr());
        assert_eq!(address, Some(found), "tag {}: ended twice, or a wrong buffer", completion.tag);
        assert_eq!(completion.result.is_err(), completion.tag % 4 == 3);
    }
    assert_eq!(rig.queue.in_flight(), 0);
}

fn a_completed_write_is_seen_by_every_later_read(mut rig: Rig, _seed: u64) {
    for (fill, blocks) in [1, 2, 3, 7, 16, 32].into_iter().enumerate() {
        let fill = fill as u8 + 1;
        rig.ok(rig.write(5, blocks, fill));
        rig.expect_fill(5, blocks, fill);
        rig.ok(rig.write(5, 1, fill + 100));
        rig.expect_fill(5, 1, fill + 100);
    }
    let last = rig.geometry.blocks - 1;
    rig.ok(rig.write(last, 1, 77));
    rig.expect_fill(last, 1, 77);
}

fn a_read_fills_only_what_was_asked_for(mut rig: Rig, _seed: u64) {
    rig.ok(rig.write(0, 4, 1));
    let buffer = rig.buffer(4, 0xEE);
    let buffer = rig.ok(Operation::Read { block: 0, blocks: 2, buffer }).expect("its buffer");
    assert!(buffer[..2 * BLOCK_BYTES].iter().all(|byte| *byte == 1));
    assert!(buffer[2 * BLOCK_BYTES..].iter().all(|byte| *byte == 0xEE), "read past its length");
}

fn the_largest_transfer_arrives_whole(mut rig: Rig, _seed: u64) {
    let blocks = rig.geometry.max_transfer_blocks;
    let mut buffer = rig.buffer(blocks, 0);
    for (at, block) in buffer.chunks_mut(BLOCK_BYTES).enumerate() {
        block[..8].copy_from_slice(&(at as u64).to_le_bytes());
    }
    rig.ok(Operation::Write { block: 9, blocks, buffer, fua: false });
    let buffer = rig.ok(rig.read(9, blocks)).expect("its buffer");
    for (at, block) in buffer.chunks(BLOCK_BYTES).take(blocks as usize).enumerate() {
        assert_eq!(block[..8], (at as u64).to_le_bytes(), "block {at}");
    }
}

fn an_impossible_request_is_invalid_and_touches_nothing(mut rig: Rig, _seed: u64) {
    let (end, most) = (rig.geometry.blocks, rig.geometry.max_transfer_blocks);
    rig.ok(rig.write(end - 2, 2, 9));
    let cases = [(end - 1, 2), (end, 1), (u64::MAX, 1), (u64::MAX - 1, 2), (0, 0), (0, most + 1)];
    for (block, blocks) in cases {
        for write in [false, true] {
            let buffer = rig.buffer(2, 1);
            let operation = match write {
                true => Operation::Write { block, blocks, buffer, fua: true },
                false => Operation::Read { block, blocks, buffer },
            };
            let completion = rig.run(operation);
            let got = (completion.result, completion.buffer.is_some());
            assert_eq!(got, (Err(BlockError::Invalid), true), "{block}+{blocks}, write: {write}");
        }
    }
    let small = rig.buffer(1, 1);
    let past_buffer = Operation::Write { block: 0, blocks: 2, buffer: small, fua: false };
    assert_eq!(rig.run(past_buffer).result, Err(BlockError::Invalid));
    if rig.geometry.discard {
        for (block, blocks) in [(end - 1, 2), (0, 0), (u64::MAX, 2)] {
            let result = rig.run(Operation::Discard { block, blocks }).result;
            assert_eq!(result, Err(BlockError::Invalid), "discard {block}+{blocks}");
        }
    }
    rig.expect_fill(end - 2, 2, 9);
}

fn a_full_queue_gives_the_request_back(mut rig: Rig, _seed: u64) {
    let depth = u64::from(rig.geometry.depth);
    for tag in 0..depth {
        rig.start(tag, rig.read(tag, 1));
    }
    let operation = rig.write(0, 1, 3);
    let back = rig.queue.submit(Request { tag: 4242, operation }).expect_err("the queue is full");
    assert_eq!(back.tag, 4242);
    assert!(matches!(back.operation, Operation::Write { buffer, .. } if buffer[0] == 3));
    drop(rig.next());
    // Everything that had completed by then has left the queue; there is room again.
    rig.start(4242, Operation::Flush);
    let mut left = depth;
    while left > 0 {
        drop(rig.next());
        left -= 1;
    }
}

fn poll_never_grows_the_vector(mut rig: Rig, _seed: u64) {
    let count = 8.min(rig.geometry.depth) as usize;
    for tag in 0..count as u64 {
        let operation = if tag % 2 == 0 { rig.read(tag, 1) } else { rig.read(u64::MAX, 1) };
        rig.start(tag, operation);
    }
    let mut nothing = Vec::new();
    rig.now_us += 1_000_000;
    assert_eq!(rig.queue.poll(rig.now_us, &mut nothing), 0);
    assert_eq!((nothing.capacity(), rig.queue.in_flight()), (0, count));
    rig.done = Vec::with_capacity(3);
    let capacity = rig.done.capacity();
    for left in (0..count).rev() {
        drop(rig.next());
        assert_eq!(rig.done.capacity(), capacity);
        assert_eq!(rig.queue.in_flight() + rig.done.len(), left);
    }
}

fn an_idle_queue_stays_idle(mut rig: Rig, _seed: u64) {
    for now_us in 0..100 {
        assert_eq!(rig.queue.poll(now_us, &mut rig.done), 0);
    }
    assert_eq!((rig.queue.in_flight(), rig.queue.geometry()), (0, rig.geometry));
}

fn flushes_and_fua_writes_complete_among_other_requests(mut rig: Rig, _seed: u64) {
    let count = 8.min(u64::from(rig.geometry.depth));
    for tag in 0..count {
        let buffer = rig.buffer(1, tag as u8);
        let operation = match tag % 2 {
            0 => Operation::Write { block: tag, blocks: 1, buffer, fua: true },
            _ => Operation::Flush,
        };
        rig.start(tag, operation);
    }
    for _ in 0..count {
        assert_eq!(rig.next().result, Ok(()));
    }
    for tag in (0..count).step_by(2) {
        rig.expect_fill(tag, 1, tag as u8);
    }
}

fn a_discard_harms_no_other_block(mut rig: Rig, _seed: u64) {
    rig.ok(rig.write(10, 32, 5));
    let result = rig.run(Operation::Discard { block: 16, blocks: 8 }).result;
    let expected = if rig.geometry.discard { Ok(()) } else { Err(BlockError::Unsupported) };
    assert_eq!(result, expected);
    rig.expect_fill(10, 6, 5);
    rig.expect_fill(24, 18, 5);
    rig.ok(rig.write(16, 8, 6));
    rig.expect_fill(16, 8, 6);
}

/// What a device without the command says.
fn supported(is: bool) -> Result<(), BlockError> {
    if is { Ok(()) } else { Err(BlockError::Unsupported) }
}

fn written_zeroes_are_read_and_harm_no_other_block(mut rig: Rig, _seed: u64) {
    rig.ok(rig.write(10, 32, 5));
    let result = rig.run(Operation::WriteZeroes { block: 16, blocks: 8 }).result;
    assert_eq!(result, supported(rig.geometry.write_zeroes));
    rig.expect_fill(10, 6, 5);
    rig.expect_fill(16, 8, if rig.geometry.write_zeroes { 0 } else { 5 });
    rig.expect_fill(24, 18, 5);
    if rig.geometry.write_zeroes {
        // More than any one command carries.
        let blocks = BLOCKS_MIN;
        assert_eq!(rig.run(Operation::WriteZeroes { block: 0, blocks }).result, Ok(()));
        rig.expect_fill(10, 32, 0);
        let past = Operation::WriteZeroes { block: 1, blocks: rig.geometry.blocks };
        assert_eq!(rig.run(past).result, Err(BlockError::Invalid));
    }
}

fn a_compare_tells_whether_the_device_holds_the_same(mut rig: Rig, _seed: u64) {
    rig.ok(rig.write(7, 4, 5));
    for (fill, same) in [(5, true), (6, false)] {
        let operation = Operation::Compare { block: 7, blocks: 4, buffer: rig.buffer(4, fill) };
        let completion = rig.run(operation);
        let expected = match (rig.geometry.compare, same) {
            (false, _) => Err(BlockError::Unsupported),
            (true, true) => Ok(()),
            (true, false) => Err(BlockError::Mismatch),
        };
        assert_eq!((completion.result, completion.buffer.is_some()), (expected, true));
    }
    rig.expect_fill(7, 4, 5);
}

fn a_verify_of_what_can_be_read_succeeds(mut rig: Rig, _seed: u64) {
    rig.ok(rig.write(7, 4, 5));
    for blocks in [1, 4, BLOCKS_MIN - 7] {
        let result = rig.run(Operation::Verify { block: 7, blocks }).result;
        assert_eq!(result, supported(rig.geometry.verify));
    }
    rig.expect_fill(7, 4, 5);
}

/// Keeps the queue as full as it gets with reads and writes that do not overlap one another.
fn random_operations_agree_with_a_model(mut rig: Rig, seed: u64) {
    const AREA_BLOCKS: u64 = 512;
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut model = vec![0_u8; AREA_BLOCKS as usize];
    rig.ok(rig.write(0, AREA_BLOCKS as u32, 0));
    let mut under_way: BTreeMap<u64, (u64, u32, Option<u8>)> = BTreeMap::new();
    for tag in 0..4000_u64 {
        let blocks = 1 << rng.u32(..6);
        let block = rng.u64(..=AREA_BLOCKS - u64::from(blocks));
        let clear = |(other, count, _): &(u64, u32, Option<u8>)| {
            other + u64::from(*count) <= block || block + u64::from(blocks) <= *other
        };
        if under_way.values().all(clear) {
            let fill = rng.bool().then(|| rng.u8(..));
            let operation = match fill {
                Some(fill) => rig.write(block, blocks, fill),
                None => rig.read(block, blocks),
            };
            under_way.insert(tag, (block, blocks, fill));
            rig.start(tag, operation);
        }
        let full = under_way.len() == rig.geometry.depth as usize;
        if full || (!under_way.is_empty() && rng.u32(..3) == 0) {
            check(rig.next(), &mut under_way, &mut model, seed);
        }
    }
    while !under_way.is_empty() {
        check(rig.next(), &mut under_way, &mut model, seed);
    }
}

/// Holds a completion against the model, or takes its write into it.
fn check(
    completion: Completion,
    under_way: &mut BTreeMap<u64, (u64, u32, Option<u8>)>,
    model: &mut [u8],
    seed: u64,
) {
    let Completion { tag, result, buffer } = completion;
    let (block, blocks, fill) = under_way.remove(&tag).expect("a tag that was submitted");
    assert_eq!(result, Ok(()), "seed {seed}: tag {tag}");
    let area = &mut model[block as usize..][..blocks as usize];
    if let Some(fill) = fill {
        area.fill(fill);
        return;
    }
    let buffer = buffer.expect("a read has a buffer");
    for (at, data) in buffer.chunks(BLOCK_BYTES).take(blocks as usize).enumerate() {
        let wrong = data.iter().find(|byte| **byte != area[at]);
        assert_eq!(
            wrong,
            None,
            "seed {seed}: block {} should hold {}",
            block + at as u64,
            area[at]
        );
    }
}

fn dropping_a_queue_gives_every_buffer_back(mut rig: Rig, _seed: u64) {
    let count = u64::from(rig.geometry.depth);
    for tag in 0..count {
        let blocks = 4;
        let operation = match tag % 3 {
            0 => rig.read(tag * 4, blocks),
            1 => rig.write(tag * 4, blocks, 1),
            _ => rig.read(u64::MAX, blocks),
        };
        rig.start(tag, operation);
        // One half is with the device, the other is not, and some have completed unseen.
        if tag == count / 2 {
            let mut first = Vec::with_capacity(1);
            rig.queue.poll(rig.now_us, &mut first);
        }
    }
    let Rig { queue, pool, done, .. } = rig;
    drop((queue, done));
    assert_eq!(pool.free_bytes(), pool.total_bytes(), "a buffer was lost with the queue");
}
