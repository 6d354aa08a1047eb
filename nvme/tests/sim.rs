//! What the simulated device promises: a power cut takes only what it may, and takes all of that
//! in some run; every fault does what it says; runs replay.

use std::collections::BTreeSet;

use forebay_nvme::sim::{Faults, Latency, Rule, SimConfig, SimDevice, SimQueue};
use forebay_nvme::{
    Arena, BLOCK_BYTES, BlockError, BlockQueue, Completion, Operation, Pool, Request,
};

const SECTOR_BYTES: usize = 512;

/// A device, one queue on it, a clock and a pool.
struct Rig {
    device: SimDevice,
    queue: SimQueue,
    pool: Pool,
    now_us: u64,
    done: Vec<Completion>,
}

impl Rig {
    fn new(config: SimConfig) -> Self {
        Self::on(SimDevice::new(config), arena_pool())
    }

    fn on(device: SimDevice, pool: Pool) -> Self {
        let queue = device.queue();
        Self { device, queue, pool, now_us: 0, done: Vec::with_capacity(256) }
    }

    fn start(&mut self, tag: u64, operation: Operation) {
        self.queue.submit(Request { tag, operation }).expect("within depth");
    }

    fn write(&self, block: u64, blocks: u32, fill: u8, fua: bool) -> Operation {
        let mut buffer = self.pool.alloc(blocks as usize * BLOCK_BYTES).expect("room");
        buffer.fill(fill);
        Operation::Write { block, blocks, buffer, fua }
    }

    fn read(&self, block: u64, blocks: u32) -> Operation {
        let buffer = self.pool.alloc(blocks as usize * BLOCK_BYTES).expect("room");
        Operation::Read { block, blocks, buffer }
    }

    /// Polls at the next event, and returns what completed.
    fn step(&mut self) -> Vec<Completion> {
        self.now_us = self.device.next_event_us().unwrap_or(self.now_us).max(self.now_us);
        self.queue.poll(self.now_us, &mut self.done);
        self.done.drain(..).collect()
    }

    fn run(&mut self, operation: Operation) -> Completion {
        self.start(0, operation);
        loop {
            if let Some(completion) = self.step().pop() {
                return completion;
            }
        }
    }

    fn ok(&mut self, operation: Operation) {
        assert_eq!(self.run(operation).result, Ok(()));
    }

    /// Cuts the power and comes back with a fresh queue.
    fn crash(&mut self, seed: u64) {
        self.device.crash(seed);
        self.queue = self.device.queue();
    }

    fn first_bytes(&self, blocks: u64) -> Vec<u8> {
        (0..blocks).map(|block| self.device.peek(block)[0]).collect()
    }
}

fn arena_pool() -> Pool {
    Arena::on_demand(4 << 20).expect("address space").pool()
}

fn no_cache() -> SimConfig {
    SimConfig { volatile_write_cache: false, ..SimConfig::default() }
}

/// What a sector may hold after a power cut: what was last durable, or anything written since.
#[derive(Clone, Default)]
struct Allowed {
    durable: u8,
    since: Vec<(u64, u8)>,
}

impl Allowed {
    /// The write `tag` is durable: nothing that came before it may come back.
    fn settle(&mut self, tag: u64) {
        if let Some(at) = self.since.iter().position(|write| write.0 == tag) {
            self.durable = self.since[at].1;
            self.since.drain(..=at);
        }
    }
}

/// Writes and flushes at random, cuts the power at a random step, and holds every sector of the
/// media to the model. Blocks with a write in flight are left alone by others, as a store does.
fn crash_run(seed: u64, pool: &Pool) {
    const BLOCKS: usize = 24;
    let mut rng = fastrand::Rng::with_seed(seed);
    let config = SimConfig {
        blocks: BLOCKS as u64,
        volatile_write_cache: rng.u32(..4) > 0,
        faults: Faults { reordering: rng.bool(), ..Faults::default() },
        seed,
        ..SimConfig::default()
    };
    let cached = config.volatile_write_cache;
    let mut rig = Rig::on(SimDevice::new(config), pool.clone());
    let mut model = vec![Allowed::default(); BLOCKS];
    let mut busy: Vec<(u64, std::ops::Range<usize>, bool)> = Vec::new();
    let mut completed: Vec<(u64, std::ops::Range<usize>)> = Vec::new();
    let mut flushing: Option<(u64, usize)> = None;
    for tag in 1..=rng.u64(5..60) {
        let blocks = rng.usize(1..=6);
        let first = rng.usize(..=BLOCKS - blocks);
        let range = first..first + blocks;
        if rng.u32(..8) == 0 && flushing.is_none() {
            flushing = Some((tag, completed.len()));
            rig.start(tag, Operation::Flush);
        } else if busy.iter().all(|(_, other, _)| other.end <= first || range.end <= other.start) {
            let fua = rng.u32(..4) == 0;
            rig.start(tag, rig.write(first as u64, blocks as u32, tag as u8, fua));
            for block in range.clone() {
                model[block].since.push((tag, tag as u8));
            }
            busy.push((tag, range, fua));
        }
        for done in if rng.bool() { rig.step() } else { Vec::new() } {
            assert_eq!(done.result, Ok(()), "seed {seed}");
            if let Some((_, saved)) = flushing.take_if(|flush| flush.0 == done.tag) {
                for (tag, range) in completed.drain(..saved) {
                    range.for_each(|block| model[block].settle(tag));
                }
            } else {
                let at = busy.iter().position(|write| write.0 == done.tag).expect("started");
                let (tag, range, fua) = busy.swap_remove(at);
                if fua || !cached {
                    range.for_each(|block| model[block].settle(tag));
                } else {
                    completed.push((tag, range));
                }
            }
        }
    }
    rig.crash(seed ^ 0x5EED);
    for (block, allowed) in model.iter().enumerate() {
        for (at, sector) in rig.device.peek(block as u64).chunks(SECTOR_BYTES).enumerate() {
            let found = sector[0];
            assert!(sector.iter().all(|byte| *byte == found), "seed {seed}: torn inside a sector");
            assert!(
                found == allowed.durable || allowed.since.iter().any(|write| write.1 == found),
                "seed {seed}: block {block} sector {at} holds {found}, durable was {}",
                allowed.durable
            );
        }
    }
}

#[test]
fn a_power_cut_takes_nothing_that_was_durable() {
    let pool = Arena::on_demand(8 << 20).unwrap().pool();
    for seed in 0..20_000 {
        crash_run(seed, &pool);
    }
    assert_eq!(pool.free_bytes(), pool.total_bytes());
}

#[test]
fn a_cached_write_may_survive_vanish_or_tear() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..200 {
        let mut rig = Rig::new(SimConfig::default());
        rig.ok(rig.write(0, 2, 1, false));
        rig.crash(seed);
        let sectors = (0..2).flat_map(|block| rig.device.peek(block));
        let written = sectors.filter(|byte| *byte == 1).count() / SECTOR_BYTES;
        outcomes.insert(written);
    }
    assert!(outcomes.contains(&0) && outcomes.contains(&16), "{outcomes:?}");
    assert!(outcomes.len() > 6, "torn writes are missing: {outcomes:?}");
}

#[test]
fn an_atomic_block_never_tears() {
    for seed in 0..200 {
        let faults = Faults { atomic_bytes: BLOCK_BYTES, ..Faults::default() };
        let mut rig = Rig::new(SimConfig { faults, ..no_cache() });
        rig.start(0, rig.write(0, 4, 1, false));
        rig.queue.poll(0, &mut rig.done);
        rig.crash(seed);
        for block in 0..4 {
            let data = rig.device.peek(block);
            assert!(data.iter().all(|byte| *byte == data[0]), "seed {seed}: block {block} is torn");
        }
    }
}

#[test]
fn only_a_reordering_cache_keeps_a_later_write_and_loses_an_earlier_one() {
    let later_without_earlier = |reordering: bool| {
        (0..300).any(|seed| {
            let faults = Faults { reordering, ..Faults::default() };
            let mut rig = Rig::new(SimConfig { faults, ..SimConfig::default() });
            rig.ok(rig.write(0, 1, 1, false));
            rig.ok(rig.write(1, 1, 2, false));
            rig.crash(seed);
            rig.device.peek(0) == [0; BLOCK_BYTES] && rig.device.peek(1) == [2; BLOCK_BYTES]
        })
    };
    assert!(later_without_earlier(true));
    assert!(!later_without_earlier(false));
}

#[test]
fn a_flush_does_not_bring_back_what_a_fua_write_replaced() {
    let mut rig = Rig::new(SimConfig::default());
    rig.ok(rig.write(0, 1, 1, false));
    rig.ok(rig.write(0, 1, 2, true));
    rig.ok(Operation::Flush);
    for seed in 0..50 {
        rig.crash(seed);
        assert_eq!(rig.device.peek(0), [2; BLOCK_BYTES]);
    }
}

#[test]
fn a_failed_flush_may_lose_writes_that_the_next_flush_calls_safe() {
    let lost = (0..100).filter(|seed| {
        let mut rig = Rig::new(SimConfig { seed: *seed, ..SimConfig::default() });
        rig.ok(rig.write(0, 1, 1, false));
        rig.device.add_rule(Rule::FailNextFlush);
        assert_eq!(rig.run(Operation::Flush).result, Err(BlockError::Flush));
        rig.ok(Operation::Flush);
        assert_eq!(rig.device.peek(0)[0], 1, "still visible until the power goes");
        rig.crash(*seed);
        rig.device.peek(0)[0] == 0
    });
    assert!((20..80).contains(&lost.count()));
}

#[test]
fn a_discard_in_flight_at_the_power_cut_may_have_happened() {
    let mut found = BTreeSet::new();
    for seed in 0..50 {
        let mut rig = Rig::new(no_cache());
        rig.ok(rig.write(0, 1, 1, false));
        rig.start(0, Operation::Discard { block: 0, blocks: 1 });
        rig.queue.poll(rig.now_us, &mut rig.done);
        rig.crash(seed);
        found.insert(rig.device.peek(0)[0]);
    }
    assert_eq!(found, BTreeSet::from([0, 1]));
}

#[test]
fn after_a_power_cut_old_queues_are_gone_and_give_their_buffers_back() {
    let mut rig = Rig::new(SimConfig::default());
    for tag in 0..4 {
        rig.start(tag, rig.write(tag, 1, 1, true));
    }
    rig.queue.poll(0, &mut rig.done);
    rig.start(4, rig.read(0, 1));
    rig.device.crash(1);
    rig.start(5, Operation::Flush);
    let ended = rig.step();
    assert_eq!(ended.len(), 6);
    assert!(ended.iter().all(|completion| completion.result == Err(BlockError::Gone)));
    assert_eq!(ended.iter().filter(|completion| completion.buffer.is_some()).count(), 5);
    drop(ended);
    assert_eq!(rig.pool.free_bytes(), rig.pool.total_bytes());
    rig.queue = rig.device.queue();
    rig.ok(rig.write(0, 1, 9, true));
}

#[test]
fn rules_hit_their_block_and_no_other() {
    let mut rig = Rig::new(no_cache());
    rig.device.add_rule(Rule::FailRead { block: 5 });
    rig.device.add_rule(Rule::FailWrite { block: 6 });
    assert_eq!(rig.run(rig.read(4, 2)).result, Err(BlockError::Read));
    assert_eq!(rig.run(rig.write(6, 1, 1, false)).result, Err(BlockError::Write));
    rig.ok(rig.read(6, 2));
    rig.ok(rig.write(5, 1, 1, false));
    rig.device.clear_rules();
    rig.ok(rig.read(5, 1));
}

#[test]
fn lost_and_misdirected_writes_report_success() {
    let mut rig = Rig::new(no_cache());
    rig.device.add_rule(Rule::LoseNextWrite { block: 0 });
    rig.device.add_rule(Rule::MisdirectNextWrite { block: 1, to: 3 });
    rig.ok(rig.write(0, 1, 1, true));
    rig.ok(rig.write(1, 1, 2, true));
    assert_eq!(rig.first_bytes(4), [0, 0, 0, 2]);
    rig.ok(rig.write(0, 2, 7, true));
    assert_eq!(rig.first_bytes(4), [7, 7, 0, 2]);
}

#[test]
fn a_flipped_bit_stays_flipped_in_cache_and_on_media() {
    for fua in [true, false] {
        let mut rig = Rig::new(SimConfig::default());
        rig.ok(rig.write(0, 1, 0, fua));
        rig.device.flip_bit(0, 8 * 100 + 3);
        rig.ok(Operation::Flush);
        rig.crash(0);
        let mut expected = [0; BLOCK_BYTES];
        expected[100] = 1 << 3;
        assert_eq!(rig.device.peek(0), expected);
    }
}

#[test]
fn every_rate_is_about_what_was_asked_for() {
    let count = |faults: Faults, result: Result<(), BlockError>, kind: u32| {
        let mut rig =
            Rig::new(SimConfig { faults, latency: Latency::none(), ..SimConfig::default() });
        let hit = (0..2000).filter(|_| {
            let operation = match kind {
                0 => rig.read(0, 1),
                1 => rig.write(0, 1, 1, false),
                _ => Operation::Flush,
            };
            rig.run(operation).result == result
        });
        hit.count()
    };
    let honest = Faults::default();
    for (faults, error, kind) in [
        (Faults { read_fail_per_mille: 100, ..honest }, BlockError::Read, 0),
        (Faults { write_fail_per_mille: 100, ..honest }, BlockError::Write, 1),
        (Faults { flush_fail_per_mille: 100, ..honest }, BlockError::Flush, 2),
    ] {
        assert!((120..300).contains(&count(faults, Err(error), kind)), "{faults:?}");
        assert_eq!(count(honest, Err(error), kind), 0);
    }
}

#[test]
fn silent_faults_corrupt_at_the_rate_asked_for() {
    let corrupted = |faults: Faults| {
        let mut rig = Rig::new(SimConfig { faults, latency: Latency::none(), ..no_cache() });
        for block in 0..1000 {
            rig.ok(rig.write(block, 1, 1, false));
        }
        let wrong = (0..1000).filter(|block| {
            rig.run(rig.read(*block, 1)).buffer.unwrap()[..BLOCK_BYTES] != [1; BLOCK_BYTES]
        });
        wrong.count()
    };
    let honest = Faults::default();
    assert_eq!(corrupted(honest), 0);
    for faults in [
        Faults { lost_write_per_mille: 100, ..honest },
        Faults { misdirected_write_per_mille: 100, ..honest },
        Faults { bit_rot_per_mille: 100, ..honest },
    ] {
        assert!((60..150).contains(&corrupted(faults)), "{faults:?}");
    }
}

#[test]
fn a_delayed_block_is_late_by_that_much() {
    let mut rig = Rig::new(no_cache());
    rig.device.add_rule(Rule::Delay { block: 2, delay_us: 1_000_000 });
    rig.start(0, rig.read(2, 1));
    assert!(rig.step().is_empty());
    let due_us = rig.device.next_event_us().unwrap();
    assert!((1_000_000..1_001_000).contains(&due_us), "{due_us}");
    assert_eq!(rig.step().len(), 1);
}

#[test]
fn queues_share_the_media_and_keep_their_completions_apart() {
    let mut rig = Rig::new(no_cache());
    rig.ok(rig.write(0, 1, 4, false));
    let mut other = rig.device.queue();
    let read = Request { tag: 77, operation: rig.read(0, 1) };
    other.submit(read).expect("within depth");
    other.poll(rig.now_us, &mut rig.done);
    assert!(rig.step().is_empty(), "the first queue sees nothing of it");
    let mut done = Vec::with_capacity(1);
    assert_eq!(other.poll(rig.now_us, &mut done), 1);
    assert_eq!((done[0].tag, done[0].buffer.as_ref().unwrap()[0]), (77, 4));
}

#[test]
fn a_snapshot_is_a_device_of_its_own() {
    let mut rig = Rig::new(SimConfig::default());
    rig.ok(rig.write(0, 1, 1, true));
    let snapshot = rig.device.snapshot();
    rig.ok(rig.write(0, 1, 2, true));
    let copy = SimDevice::from_snapshot(SimConfig::default(), &snapshot);
    assert_eq!((copy.peek(0)[0], rig.device.peek(0)[0]), (1, 2));
    copy.flip_bit(0, 0);
    let again = SimDevice::from_snapshot(SimConfig::default(), &snapshot);
    assert_eq!((copy.peek(0)[0], again.peek(0)[0]), (0, 1));
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = |seed: u64| {
        let faults =
            Faults { write_fail_per_mille: 200, lost_write_per_mille: 100, ..Faults::default() };
        let mut rig = Rig::new(SimConfig { seed, faults, ..SimConfig::default() });
        let mut trace = Vec::new();
        for tag in 0..100 {
            rig.start(tag, rig.write(tag % 10, 2, tag as u8, tag % 7 == 0));
            trace.extend(rig.step().iter().map(|done| (rig.now_us, done.tag, done.result)));
        }
        rig.crash(seed);
        (trace, rig.first_bytes(12))
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}
