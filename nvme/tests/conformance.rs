//! Every implementation of the block queue, under the one suite.

use std::path::Path;

use forebay_nvme::conformance::{BLOCKS_MIN, Harness, POOL_BYTES_MIN, run};
use forebay_nvme::sim::{Latency, SimConfig, SimDevice};
use forebay_nvme::uring::UringDevice;
use forebay_nvme::{Arena, BLOCK_BYTES};

const SEED: u64 = 0xF0E;

fn sim(config: SimConfig) {
    run(
        &mut || {
            let pool = Arena::on_demand(POOL_BYTES_MIN).expect("address space").pool();
            Harness { queue: Box::new(SimDevice::new(config.clone()).queue()), pool }
        },
        SEED ^ config.seed,
    );
}

/// A file in `folder`.
fn uring(folder: &Path, depth: u32) {
    let folder = tempfile::tempdir_in(folder).expect("a folder");
    let bytes = 2 * BLOCKS_MIN * BLOCK_BYTES as u64;
    let device = UringDevice::open(&folder.path().join("device"), Some(bytes));
    uring_on(&device.expect("a file that can be created"), depth);
}

fn uring_on(device: &UringDevice, depth: u32) {
    run(
        &mut || {
            let pool = Arena::on_demand(POOL_BYTES_MIN).expect("address space").pool();
            let queue = device.queue(&pool, depth).expect("a ring");
            Harness { queue: Box::new(queue), pool }
        },
        SEED,
    );
}

#[test]
fn sim_conforms_with_a_volatile_cache() {
    for seed in 0..20 {
        sim(SimConfig { seed, ..SimConfig::default() });
    }
}

#[test]
fn sim_conforms_without_a_volatile_cache_or_discard() {
    sim(SimConfig { volatile_write_cache: false, discard: false, ..SimConfig::default() });
}

#[test]
fn sim_conforms_when_it_takes_no_time() {
    sim(SimConfig { latency: Latency::none(), depth: 1, ..SimConfig::default() });
}

#[test]
fn uring_conforms_on_tmpfs() {
    for depth in [1, 32, 200] {
        uring(Path::new("/dev/shm"), depth);
    }
}

#[test]
fn uring_conforms_on_a_disk() {
    uring(Path::new(env!("CARGO_TARGET_TMPDIR")), 32);
}

#[test]
#[ignore = "destroys what is on the block device that FOREBAY_TEST_BLOCK_DEVICE names"]
fn uring_conforms_on_a_block_device() {
    let path = std::env::var_os("FOREBAY_TEST_BLOCK_DEVICE").expect("a device to destroy");
    let device = UringDevice::open(Path::new(&path), None).expect("a free block device");
    uring_on(&device, 64);
}
