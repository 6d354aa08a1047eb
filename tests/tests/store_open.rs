//! Opening a pool: the four superblocks of each device and their quorum, and every way in which the
//! devices may not be those of the pool.

use forebay_nvme::sim::{Latency, SimConfig, SimDevice};
use forebay_nvme::{BlockQueue, Pool as Memory};
use forebay_tests::engine::{format, memory};
use forebayd::store::format::superblock::COPIES;
use forebayd::store::format::{FormatError, Superblock};
use forebayd::store::geometry::FormatOptions;
use forebayd::store::{OpenError, Pool, pool};

const BLOCKS: u64 = 4096;

fn device(blocks: u64) -> SimDevice {
    SimDevice::new(SimConfig { blocks, latency: Latency::none(), ..SimConfig::default() })
}

/// A device of `blocks` blocks with the content of another.
fn resized(from: &SimDevice, blocks: u64) -> SimDevice {
    let config = SimConfig { blocks, latency: Latency::none(), ..SimConfig::default() };
    SimDevice::from_snapshot(config, &from.snapshot())
}

fn options(shards: u32) -> FormatOptions {
    FormatOptions {
        shards: Some(shards),
        segment_bytes: Some(16 * 4096),
        journal_bytes: Some(64 * 4096),
        index_bytes: Some(4 * 4096),
    }
}

fn formatted(count: usize, seed: u64, memory: &Memory) -> Vec<SimDevice> {
    let devices: Vec<SimDevice> = (0..count).map(|_| device(BLOCKS)).collect();
    format(&devices, memory, seed, options(4)).expect("it fits");
    devices
}

fn open(devices: &[SimDevice], memory: &Memory, reactors: u32) -> Result<Pool, OpenError> {
    let mut queues: Vec<Box<dyn BlockQueue>> =
        devices.iter().map(|device| Box::new(device.queue()) as Box<dyn BlockQueue>).collect();
    pool::open(&mut queues, memory, reactors)
}

fn copies(device: &SimDevice, memory: &Memory) -> Vec<Result<Superblock, FormatError>> {
    let copies = pool::read_copies(0, &mut device.queue(), memory).expect("memory");
    copies.each().to_vec()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copy {
    Old,
    New,
    Torn,
    Foreign,
    Blank,
}

const KINDS: [Copy; 5] = [Copy::Old, Copy::New, Copy::Torn, Copy::Foreign, Copy::Blank];

/// What is to be opened: the newest that two copies agree on.
fn verdict(kinds: [Copy; COPIES], of: impl Fn(Copy) -> Option<Superblock>) -> Option<Superblock> {
    let count = |kind| kinds.iter().filter(|other| **other == kind).count();
    let agreed = KINDS.into_iter().filter(|kind| count(*kind) >= 2).filter_map(of);
    agreed.max_by_key(|one| one.generation)
}

#[test]
fn every_set_of_four_copies_opens_as_its_quorum_says_and_is_mended() {
    let memory = memory();
    let mut old = copies(&formatted(1, 1, &memory)[0], &memory)[0].clone().expect("good");
    old.generation = 10;
    let new = Superblock { generation: 11, ..old.clone() };
    let mut foreign = copies(&formatted(1, 2, &memory)[0], &memory)[0].clone().expect("good");
    foreign.generation = 20;
    let of = |kind| match kind {
        Copy::Old => Some(old.clone()),
        Copy::New => Some(new.clone()),
        Copy::Foreign => Some(foreign.clone()),
        Copy::Torn | Copy::Blank => None,
    };
    let count = KINDS.len().pow(COPIES as u32);
    for number in 0..count {
        let kinds: [Copy; COPIES] =
            std::array::from_fn(|copy| KINDS[number / KINDS.len().pow(copy as u32) % KINDS.len()]);
        let device = device(BLOCKS);
        for (copy, kind) in kinds.into_iter().enumerate() {
            device.edit(Superblock::block_of_copy(copy, BLOCKS), |block| match kind {
                Copy::Torn => {
                    new.encode(block);
                    block[512..1024].fill(0xee);
                }
                Copy::Blank => block.fill(0),
                _ => of(kind).expect("a good one").encode(block),
            });
        }
        let opened = open(std::slice::from_ref(&device), &memory, 1);
        match verdict(kinds, of) {
            Some(wanted) => {
                let wanted = Superblock { generation: wanted.generation + 1, ..wanted };
                assert_eq!(*opened.expect("it opens").superblock(), wanted, "{kinds:?}");
                let mended = copies(&device, &memory);
                assert!(mended.iter().all(|copy| copy.as_ref() == Ok(&wanted)), "{kinds:?}");
            }
            None => {
                let is_ours = kinds.iter().any(|kind| *kind != Copy::Blank);
                let error = FormatError::Checksum;
                let wanted = match is_ours {
                    true => OpenError::NoQuorum { device: 0, error },
                    false => OpenError::NotFormatted { device: 0 },
                };
                assert_eq!(opened.map(drop), Err(wanted), "{kinds:?}");
            }
        }
    }
}

#[test]
fn each_open_raises_the_generation_on_every_device() {
    let memory = memory();
    let devices = formatted(3, 1, &memory);
    for generation in 2..5 {
        assert_eq!(open(&devices, &memory, 1).expect("it opens").epoch(), generation);
        for device in &devices {
            let copies = copies(device, &memory);
            let is_it = |copy: &Result<Superblock, _>| {
                copy.as_ref().is_ok_and(|one| one.generation == generation)
            };
            assert!(copies.iter().all(is_it));
        }
    }
}

#[test]
fn a_power_cut_during_open_leaves_a_pool_that_opens() {
    let memory = memory();
    for torn in 0..COPIES {
        let devices = formatted(2, 1, &memory);
        let before = open(&devices, &memory, 1).expect("it opens").epoch();
        // The first copies of the first device are of the new generation, one is torn, the rest is old.
        let block = |copy| Superblock::block_of_copy(copy, BLOCKS);
        let mut new = copies(&devices[0], &memory)[0].clone().expect("good");
        new.generation += 1;
        for copy in 0..torn {
            devices[0].edit(block(copy), |block| new.encode(block));
        }
        devices[0].edit(block(torn), |block| block[100] ^= 1);
        let after = open(&devices, &memory, 1).expect("it opens").epoch();
        assert!(after > before, "{torn}: {after}");
        let mended = copies(&devices[0], &memory);
        assert!(mended.iter().all(|copy| copy.as_ref().is_ok_and(|one| one.generation == after)));
    }
}

#[test]
fn devices_that_are_not_the_pools_are_named() {
    let memory = memory();
    let (ours, theirs) = (formatted(3, 1, &memory), formatted(3, 2, &memory));
    let error = |devices: &[&SimDevice]| {
        let devices: Vec<SimDevice> = devices.iter().map(|device| (*device).clone()).collect();
        open(&devices, &memory, 1).map(drop).expect_err("not the pool's")
    };
    let [a, b, c] = [&ours[0], &ours[1], &ours[2]];
    let count = 3;
    assert_eq!(error(&[a, c, b]), OpenError::Order { device: 1, found: 2, count });
    assert_eq!(error(&[b, a, c]), OpenError::Order { device: 0, found: 1, count });
    assert_eq!(error(&[a, b]), OpenError::Order { device: 0, found: 0, count });
    assert_eq!(error(&[a, a, c]), OpenError::Order { device: 1, found: 0, count });
    assert_eq!(error(&[a, b, c, c]), OpenError::Order { device: 3, found: 2, count });
    assert_eq!(error(&[a, &theirs[1], c]), OpenError::OtherPool { device: 1 });
    assert_eq!(error(&[a, b, &device(BLOCKS)]), OpenError::NotFormatted { device: 2 });
    assert_eq!(error(&[&device(16)]), OpenError::NotFormatted { device: 0 });
    // Nothing of this has changed anything.
    assert_eq!(open(&ours, &memory, 1).expect("the pool itself opens").epoch(), 2);
}

#[test]
fn a_device_that_has_shrunk_is_refused_and_one_that_has_grown_keeps_four_copies() {
    let memory = memory();
    let devices = formatted(1, 1, &memory);
    let shrunk = resized(&devices[0], BLOCKS - 1);
    let (device, formatted) = (0, BLOCKS);
    let wanted = OpenError::Shrunk { device, blocks: BLOCKS - 1, formatted };
    assert_eq!(open(&[shrunk], &memory, 1).map(drop), Err(wanted));
    let grown = resized(&devices[0], 2 * BLOCKS);
    assert!(copies(&grown, &memory).iter().all(Result::is_ok));
    // Two copies are lost: those behind the old end are found, and all four are there again.
    for lost in [0, 1] {
        let grown = resized(&devices[0], 2 * BLOCKS);
        grown.edit(Superblock::block_of_copy(lost, BLOCKS), |block| block.fill(0));
        grown.edit(Superblock::block_of_copy(2, BLOCKS), |block| block.fill(0));
        assert_eq!(open(std::slice::from_ref(&grown), &memory, 1).expect("it opens").epoch(), 2);
        assert!(copies(&grown, &memory).iter().all(Result::is_ok));
    }
}

#[test]
fn a_pool_has_a_shard_for_every_reactor_and_room_for_every_shard() {
    let memory = memory();
    let devices = formatted(1, 1, &memory);
    assert!(open(&devices, &memory, 4).is_ok());
    let wanted = OpenError::TooManyReactors { shards: 4, reactors: 5 };
    assert_eq!(open(&devices, &memory, 5).map(drop), Err(wanted));
    let small = device(1400);
    let error = format(std::slice::from_ref(&small), &memory, 1, options(4)).expect_err("small");
    let OpenError::TooSmall(error) = error else { panic!("{error}") };
    assert_eq!(error.device_bytes, 1400 * 4096);
    assert!(copies(&small, &memory).iter().all(|copy| *copy == Err(FormatError::Magic)));
    let enough = device(error.needed_bytes / 4096);
    format(std::slice::from_ref(&enough), &memory, 1, options(4)).expect("what it said is enough");
    assert!(open(&[enough], &memory, 4).is_ok());
}

#[test]
fn a_superblock_that_cannot_be_read_counts_as_a_bad_copy() {
    let memory = memory();
    let devices = formatted(1, 1, &memory);
    for copy in 0..2 {
        let block = Superblock::block_of_copy(copy, BLOCKS);
        devices[0].add_rule(forebay_nvme::sim::Rule::FailRead { block });
        assert!(open(&devices, &memory, 1).is_ok(), "{copy}");
    }
    let block = Superblock::block_of_copy(2, BLOCKS);
    devices[0].add_rule(forebay_nvme::sim::Rule::FailRead { block });
    let error = FormatError::Checksum;
    assert_eq!(open(&devices, &memory, 1).map(drop), Err(OpenError::NoQuorum { device: 0, error }));
}
