//! 10 000 hostile drives: whatever a controller does, the driver does not panic, hang, lose a buffer, break the
//! protocol, or let the device reach where it must not; and what it says was done is done.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use forebay_nvme::emulated::{EmulatedConfig, EmulatedController, Violation};
use forebay_nvme::pcie::State;
use forebay_nvme::{
    BLOCK_BYTES, BlockError, BlockQueue, Completion, DmaBuf, Operation, Pool, Request,
};

use crate::rig::{Drive, Held, options, pool};

/// Blocks that are used.
const BLOCKS: u64 = 96;
/// Requests for each drive.
const REQUESTS: u64 = 160;
const SECTOR_BYTES: usize = 512;
/// No request takes longer: its own time, and a controller that takes all that it gives itself to get quiet,
/// and the same again after a reset of its function.
const REQUEST_US_MAX: u64 = 70_000_000;

/// In the place of a completion's number: no flush makes it durable.
const NEVER: u64 = u64::MAX;

/// Failures after which no more seeds are tried.
const FAILED_MAX: usize = 10;

/// What a block may hold: 0 is zeroes, other numbers are those of writes.
#[derive(Clone, Debug)]
struct Allowed {
    /// What a read may find.
    now: BTreeSet<u64>,
    /// What a power cut may bring back.
    durable: BTreeSet<u64>,
}

/// A request under way.
struct Flying {
    first: u64,
    blocks: u64,
    kind: Kind,
    since_us: u64,
    buffer: Option<usize>,
    /// A flush has failed meanwhile.
    doubtful: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Read,
    Write {
        stamp: u64,
        fua: bool,
    },
    Zeroes,
    Discard,
    /// With what it expects.
    Compare,
    Verify,
    /// Writes that had completed when it was submitted.
    Flush {
        generation: u64,
    },
}

/// A drive, a queue on it, and what is known of its blocks.
struct Run<'a> {
    drive: Drive,
    queues: Vec<Held>,
    pool: &'a Pool,
    rng: fastrand::Rng,
    /// What the drive says of itself is true.
    truthful: bool,
    blocks: Vec<Allowed>,
    /// When each block's last write completed: the number of that completion.
    completed: Vec<u64>,
    generation: u64,
    flying: BTreeMap<u64, Flying>,
    slowest_us: u64,
    succeeded: u64,
    done: Vec<Completion>,
}

fn stamp(buffer: &mut DmaBuf, blocks: u64, stamp: u64) {
    for sector in buffer[..blocks as usize * BLOCK_BYTES].chunks_mut(SECTOR_BYTES) {
        sector[..8].copy_from_slice(&stamp.to_le_bytes());
        sector[SECTOR_BYTES - 8..].copy_from_slice(&stamp.to_le_bytes());
    }
}

/// The numbers that the sectors of a block hold.
fn stamps(block: &[u8]) -> impl Iterator<Item = u64> + '_ {
    block.chunks(SECTOR_BYTES).map(|sector| {
        let word = |at: usize| u64::from_le_bytes(sector[at..at + 8].try_into().expect("8 bytes"));
        assert_eq!(word(0), word(SECTOR_BYTES - 8), "a sector is torn");
        word(0)
    })
}

impl Run<'_> {
    /// Submits something on blocks that nothing else is under way on.
    fn submit(&mut self, tag: u64) {
        let blocks = self.rng.u64(1..=12);
        let first = self.rng.u64(..=BLOCKS - blocks);
        let busy =
            |flying: &Flying| flying.first < first + blocks && first < flying.first + flying.blocks;
        if self.flying.values().any(busy) {
            return;
        }
        let geometry = self.queues[0].geometry();
        let kind = match self.rng.u32(..20) {
            0..=6 => Kind::Read,
            7..=13 => Kind::Write { stamp: tag, fua: self.rng.bool() },
            14 | 15 if !self.is_flushing() => Kind::Flush { generation: self.generation },
            16 if geometry.discard => Kind::Discard,
            17 if geometry.write_zeroes => Kind::Zeroes,
            18 if geometry.compare && self.is_certain(first, blocks) => Kind::Compare,
            19 if geometry.verify => Kind::Verify,
            _ => return,
        };
        let Some(operation) = self.operation(kind, first, blocks) else { return };
        let buffer = match &operation {
            Operation::Read { buffer, .. }
            | Operation::Write { buffer, .. }
            | Operation::Compare { buffer, .. } => Some(buffer.as_ptr().addr()),
            _ => None,
        };
        let queue = self.rng.usize(..self.queues.len());
        if self.queues[queue].submit(Request { tag, operation }).is_err() {
            return;
        }
        let flushes = matches!(kind, Kind::Flush { .. });
        let (first, blocks) = if flushes { (BLOCKS, 0) } else { (first, blocks) };
        let since_us = self.drive.now_us;
        let flying = Flying { first, blocks, kind, since_us, buffer, doubtful: false };
        self.flying.insert(tag, flying);
        if let Kind::Write { stamp, .. } = kind {
            self.maybe(first, blocks, stamp);
        }
        if matches!(kind, Kind::Zeroes | Kind::Discard) {
            self.maybe(first, blocks, 0);
        }
    }

    fn operation(&mut self, kind: Kind, first: u64, blocks: u64) -> Option<Operation> {
        let (block, count) = (first, blocks as u32);
        let buffer = || self.pool.alloc(blocks as usize * BLOCK_BYTES);
        Some(match kind {
            Kind::Read => Operation::Read { block, blocks: count, buffer: buffer()? },
            Kind::Write { stamp: mark, fua } => {
                let mut buffer = buffer()?;
                buffer.fill(0);
                stamp(&mut buffer, blocks, mark);
                Operation::Write { block, blocks: count, buffer, fua }
            }
            Kind::Compare => {
                let mut buffer = buffer()?;
                buffer.fill(0);
                for (at, data) in buffer.chunks_mut(BLOCK_BYTES).take(count as usize).enumerate() {
                    let held = self.blocks[first as usize + at].now.first().copied();
                    for sector in data.chunks_mut(SECTOR_BYTES) {
                        let bytes = held.unwrap_or_default().to_le_bytes();
                        sector[..8].copy_from_slice(&bytes);
                        sector[SECTOR_BYTES - 8..].copy_from_slice(&bytes);
                    }
                }
                Operation::Compare { block, blocks: count, buffer }
            }
            Kind::Flush { .. } => Operation::Flush,
            Kind::Discard => Operation::Discard { block, blocks },
            Kind::Zeroes => Operation::WriteZeroes { block, blocks },
            Kind::Verify => Operation::Verify { block, blocks },
        })
    }

    fn is_certain(&self, first: u64, blocks: u64) -> bool {
        self.area(first, blocks).iter().all(|block| block.now.len() == 1)
    }

    fn area(&self, first: u64, blocks: u64) -> &[Allowed] {
        &self.blocks[first as usize..(first + blocks) as usize]
    }

    /// The blocks may hold this, too.
    fn maybe(&mut self, first: u64, blocks: u64, stamp: u64) {
        for block in &mut self.blocks[first as usize..(first + blocks) as usize] {
            block.now.insert(stamp);
            block.durable.insert(stamp);
        }
    }

    /// The blocks hold this and nothing else, and after a power cut too if it is `durable`.
    fn certainly(&mut self, flying: &Flying, stamp: u64, durable: bool) {
        let Flying { first, blocks, doubtful, .. } = *flying;
        self.generation += 1;
        for at in first as usize..(first + blocks) as usize {
            self.blocks[at].now = BTreeSet::from([stamp]);
            self.completed[at] = if doubtful { NEVER } else { self.generation };
            if durable {
                self.blocks[at].durable = BTreeSet::from([stamp]);
            }
        }
    }

    fn finish(&mut self, completion: Completion) {
        let Completion { tag, result, buffer } = completion;
        let flying = self.flying.remove(&tag).expect("a request that was submitted, once");
        assert_eq!(buffer.as_ref().map(|buffer| buffer.as_ptr().addr()), flying.buffer);
        if let Some(buffer) = &buffer {
            let held = self.drive.emulated.holds(buffer.as_ptr().addr(), buffer.len());
            assert!(!held, "{:?}: back too early", flying.kind);
        }
        let took_us = self.drive.now_us - flying.since_us;
        assert!(took_us <= REQUEST_US_MAX, "{:?} took {took_us} µs", flying.kind);
        self.slowest_us = self.slowest_us.max(took_us);
        let Flying { first, blocks, kind, .. } = flying;
        let cached = self.queues[0].geometry().volatile_write_cache;
        let impossible = matches!(result, Err(BlockError::Invalid | BlockError::Mismatch));
        assert!(!(impossible && self.truthful), "{kind:?} of {first}+{blocks}: {result:?}");
        if result.is_err() {
            if matches!(kind, Kind::Flush { .. }) {
                self.doubt();
            }
            return;
        }
        self.succeeded += 1;
        match kind {
            Kind::Read => self.check(first, blocks, &buffer.expect("a read has a buffer")),
            Kind::Write { stamp, fua } => self.certainly(&flying, stamp, fua || !cached),
            Kind::Zeroes => self.certainly(&flying, 0, !cached),
            Kind::Flush { generation } => self.settle(generation),
            Kind::Discard | Kind::Compare | Kind::Verify => {}
        }
    }

    /// One flush at a time: one that succeeds says nothing of what another has lost.
    fn is_flushing(&self) -> bool {
        self.flying.values().any(|flying| matches!(flying.kind, Kind::Flush { .. }))
    }

    /// A flush has failed: what was cached by then may be lost, whatever a later flush says.
    fn doubt(&mut self) {
        self.completed.fill(NEVER);
        self.flying.values_mut().for_each(|flying| flying.doubtful = true);
    }

    /// A flush has made durable what had completed before it was submitted.
    fn settle(&mut self, generation: u64) {
        for at in 0..BLOCKS as usize {
            let unchanged = self.completed[at] <= generation && self.blocks[at].now.len() == 1;
            if unchanged {
                self.blocks[at].durable = self.blocks[at].now.clone();
            }
        }
    }

    fn check(&self, first: u64, blocks: u64, buffer: &DmaBuf) {
        for (allowed, data) in self.area(first, blocks).iter().zip(buffer.chunks(BLOCK_BYTES)) {
            for stamp in stamps(data) {
                assert!(allowed.now.contains(&stamp), "{stamp} where {allowed:?} may be");
            }
        }
    }

    /// What is on the media, or would be after a power cut, is what was promised.
    fn check_media(&self, nsid: u32) {
        let power_lost = self.drive.emulated.smart().power_cycles.get() > 1;
        for (block, allowed) in (0..).zip(&self.blocks) {
            let allowed = if power_lost { &allowed.durable } else { &allowed.now };
            for stamp in stamps(&self.drive.emulated.peek(nsid, block)) {
                assert!(
                    allowed.contains(&stamp),
                    "block {block}: {stamp} where {allowed:?} may be, power lost: {power_lost}"
                );
            }
        }
    }

    fn step(&mut self) {
        for queue in &mut self.queues {
            queue.poll(self.drive.now_us, &mut self.done);
        }
        for completion in std::mem::take(&mut self.done) {
            self.drive.hurry();
            self.finish(completion);
        }
        self.done = Vec::with_capacity(32);
        self.drive.step();
    }

    fn work(&mut self) {
        for tag in 1..=REQUESTS {
            // Mostly as fast as it goes, now and then after a while.
            let end_us =
                self.drive.now_us + if self.rng.u32(..8) == 0 { self.rng.u64(..40_000) } else { 0 };
            for _ in 0..self.rng.u32(..4) {
                self.step();
            }
            while self.drive.now_us < end_us {
                self.step();
            }
            self.submit(tag);
            self.drive.hurry();
        }
        while !self.flying.is_empty() {
            self.step();
            let late = |flying: &Flying| self.drive.now_us - flying.since_us > REQUEST_US_MAX;
            assert!(!self.flying.values().any(late), "a request hangs: {:?}", self.queues);
        }
    }
}

/// What the drive says of itself is true.
fn tells_the_truth(config: &EmulatedConfig, seed: u64) -> bool {
    let says = |config: &EmulatedConfig| {
        let EmulatedConfig { registers, identity, namespaces, queues, .. } = config;
        format!("{registers:?} {identity:?} {namespaces:?} {queues}")
    };
    config.admin_chances.garbage == 0 && says(config) == says(&EmulatedConfig::personality(seed))
}

/// What came of the drives.
#[derive(Debug, Default)]
struct Tally {
    refused: u32,
    worked: u32,
    given_up: u32,
    succeeded: u64,
    resets: u64,
    slowest_us: u64,
}

fn drive(seed: u64, pool: &Pool, admin_pool: &Pool, tally: &mut Tally) {
    let config = EmulatedConfig::hostile(seed);
    let truthful = tells_the_truth(&config, seed);
    let nsid = config.namespaces.first().map(|namespace| namespace.nsid);
    let emulated = EmulatedController::new(config);
    let mut drive = Drive::new(emulated.clone(), options(), admin_pool);
    if drive.bring_up() {
        let handle = drive.controller.drive().expect("it is up");
        let mut rng = fastrand::Rng::with_seed(seed);
        let queues: Vec<Held> = (0..rng.u32(1..4))
            .map(|_| Held::new(handle.queue(pool, rng.u32(1..24)).expect("room")))
            .collect();
        let big = queues[0].geometry().blocks >= BLOCKS;
        let mut run = Run {
            drive,
            queues,
            pool,
            rng,
            truthful,
            blocks: vec![
                Allowed { now: BTreeSet::from([0]), durable: BTreeSet::from([0]) };
                BLOCKS as usize
            ],
            completed: vec![0; BLOCKS as usize],
            generation: 0,
            flying: BTreeMap::new(),
            slowest_us: 0,
            succeeded: 0,
            done: Vec::with_capacity(32),
        };
        if big {
            run.work();
        }
        if let Some(nsid) = nsid.filter(|_| big && truthful) {
            run.check_media(nsid);
        }
        let Run { drive: used, queues, slowest_us, succeeded, .. } = run;
        drive = used;
        for queue in queues {
            queue.close(&mut drive);
        }
        let (start, bytes) = pool.region();
        assert!(!emulated.holds(start.addr(), bytes), "memory of a queue is back too early");
        tally.worked += 1;
        tally.given_up += u32::from(drive.state() == State::Gone);
        tally.succeeded += succeeded;
        tally.slowest_us = tally.slowest_us.max(slowest_us);
    } else {
        tally.refused += 1;
    }
    tally.resets += u64::from(drive.controller.resets());
    assert_eq!(pool.free_bytes(), pool.total_bytes(), "a buffer is lost");
    drive.controller.close();
    drive.until(|drive| drive.state() == State::Gone);
    drop(drive);
    assert_eq!(admin_pool.free_bytes(), admin_pool.total_bytes(), "a page is lost");
    let counters = emulated.counters();
    assert_eq!(counters.iommu_faults, counters.stray_dma, "{:x?}", emulated.iommu_faults());
    let mut violations = emulated.violations();
    // Who believes a liar is refused, and who hears an event asks for whatever log page it names.
    violations.retain(|violation| match violation {
        Violation::Refused { queue, .. } => truthful && *queue != 0,
        _ => true,
    });
    assert_eq!(violations, [], "{counters:?}");
}

/// Every fourth of the 10 000 seeds from `first` on.
fn schedules(first: u64) {
    let (mut buffers, mut pages) = (pool(8 << 20), pool(4 << 20));
    let (mut tally, mut failed) = (Tally::default(), Vec::new());
    for seed in (first..10_000).step_by(4) {
        let result = catch_unwind(AssertUnwindSafe(|| drive(seed, &buffers, &pages, &mut tally)));
        if result.is_err() {
            println!("seed {seed}: {:?}", EmulatedConfig::hostile(seed));
            failed.push(seed);
            // What the failed one has kept is lost.
            (buffers, pages) = (pool(8 << 20), pool(4 << 20));
        }
        assert!(failed.len() < FAILED_MAX, "seeds {failed:?} and maybe more");
    }
    println!("{tally:?}");
    assert!(failed.is_empty(), "seeds {failed:?}");
    assert!(tally.worked > 1500 && tally.succeeded > 50_000, "the drives are too bad: {tally:?}");
    assert!(tally.refused > 50 && tally.given_up > 50 && tally.resets > 300, "too good: {tally:?}");
}

#[test]
fn ten_thousand_hostile_drives_do_no_harm_first_quarter() {
    schedules(0);
}

#[test]
fn ten_thousand_hostile_drives_do_no_harm_second_quarter() {
    schedules(1);
}

#[test]
fn ten_thousand_hostile_drives_do_no_harm_third_quarter() {
    schedules(2);
}

#[test]
fn ten_thousand_hostile_drives_do_no_harm_fourth_quarter() {
    schedules(3);
}

/// One drive, for whoever looks into a failure: `FOREBAY_TEST_SEED=7 cargo test … -- --ignored one_hostile`.
#[test]
#[ignore = "drives the one hostile drive that FOREBAY_TEST_SEED names"]
fn one_hostile_drive_does_no_harm() {
    let seed = std::env::var("FOREBAY_TEST_SEED").expect("a seed").parse().expect("a number");
    println!("{:#?}", EmulatedConfig::hostile(seed));
    drive(seed, &pool(8 << 20), &pool(4 << 20), &mut Tally::default());
}
