//! 4 KiB random reads or writes through a block queue for some seconds, to set beside
//! `fio --ioengine=io_uring --fixedbufs --registerfiles --iodepth=32 --iodepth_batch_submit=16
//! --iodepth_batch_complete_max=16 --direct=1 --bs=4k --rw=randread --norandommap`.
//!
//! `queue_iops TARGET [read|write [SECONDS [DEPTH [BATCH [noshadow]]]]]`: TARGET is a file or block device (through io_uring;
//! a file that is not there is created with 1 GiB), or the PCI address of an NVMe drive that is bound to
//! vfio-pci (through the driver of this crate; `noshadow`: without shadow doorbells). Writes destroy what is
//! there.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use forebay_nvme::pci::PciAddress;
use forebay_nvme::pcie::{Keeper, Options};
use forebay_nvme::uring::UringDevice;
use forebay_nvme::vfio::{VfioDevice, VfioIommu};
use forebay_nvme::{Arena, BLOCK_BYTES, BlockQueue, DmaBuf, Operation, Pool, Request};

type Failure = Box<dyn Error>;

/// What to measure.
#[derive(Clone, Copy)]
struct Load {
    write: bool,
    duration: Duration,
    depth: u32,
    batch: usize,
    shadow_doorbells: bool,
}

fn main() -> Result<(), Failure> {
    env_logger::init();
    let mut arguments = std::env::args().skip(1);
    let target = arguments.next().ok_or("usage: queue_iops TARGET [read|write …]")?;
    let write = match arguments.next().as_deref() {
        None | Some("read") => false,
        Some("write") => true,
        Some(other) => return Err(format!("{other}: write read or write").into()),
    };
    let mut number = |default: u32| arguments.next().map_or(Ok(default), |text| text.parse());
    let duration = Duration::from_secs(number(3)?.into());
    let (depth, batch) = (number(32)?, number(16)? as usize);
    let shadow_doorbells = arguments.next().as_deref() != Some("noshadow");
    let load = Load { write, duration, depth, batch, shadow_doorbells };
    let pool = Arena::new(64 << 20)?.pool();
    match target.parse::<PciAddress>() {
        Ok(address) => on_drive(address, &pool, load),
        Err(_) => on_file(Path::new(&target), &pool, load),
    }
}

fn on_drive(address: PciAddress, pool: &Pool, load: Load) -> Result<(), Failure> {
    let start = Instant::now();
    let clock = move || start.elapsed().as_micros() as u64;
    let keeper = Keeper::start(clock)?;
    let options = Options { shadow_doorbells: load.shadow_doorbells, ..Options::default() };
    let drive = keeper.adopt(VfioDevice::open(&VfioIommu::new(), address)?, options)?;
    let mut queue = drive.open_queue(pool, load.depth)?;
    run(&mut queue, pool, load, &clock)
}

fn on_file(path: &Path, pool: &Pool, load: Load) -> Result<(), Failure> {
    let new = !path.exists();
    let device = UringDevice::open(path, Some(1 << 30))?;
    let mut queue = device.queue(pool, load.depth)?;
    if new {
        fill(&mut queue, pool)?;
    }
    run(&mut queue, pool, load, &|| 0)
}

/// Writes every block once: a file system reads reserved space without touching memory.
fn fill(queue: &mut impl BlockQueue, pool: &Pool) -> Result<(), Failure> {
    let blocks = queue.geometry().max_transfer_blocks;
    let mut buffer = pool.alloc(blocks as usize * BLOCK_BYTES).ok_or("pool too small")?;
    buffer.fill(0x5A);
    let mut done = Vec::with_capacity(1);
    let mut block = 0;
    while block + u64::from(blocks) <= queue.geometry().blocks {
        let operation = Operation::Write { block, blocks, buffer, fua: false };
        queue.submit(Request { tag: 0, operation }).map_err(|_| "the queue is full")?;
        while queue.poll(0, &mut done) == 0 {}
        let completion = done.pop().ok_or("polled one")?;
        completion.result?;
        buffer = completion.buffer.ok_or("a write gives its buffer back")?;
        block += u64::from(blocks);
    }
    Ok(())
}

/// Reads and writes at random for a while, and prints how many a second. `clock`: what the queue is told.
fn run(
    queue: &mut impl BlockQueue,
    pool: &Pool,
    load: Load,
    clock: &dyn Fn() -> u64,
) -> Result<(), Failure> {
    let blocks = queue.geometry().blocks;
    let mut free: Vec<DmaBuf> = (0..load.depth).filter_map(|_| pool.alloc(BLOCK_BYTES)).collect();
    let batch = load.batch.min(load.depth as usize);
    let mut done = Vec::with_capacity(batch);
    let mut rng = fastrand::Rng::with_seed(1);
    // For whoever looks at the system calls: between this line and the next one there is nothing but I/O.
    println!("measuring");
    let (mut count, mut polls, begin) = (0_u64, 0_u32, Instant::now());
    let mut now_us = clock();
    loop {
        // As fio does: submit once there are `batch` to submit, reap at most `batch`.
        while free.len() >= batch {
            for buffer in free.drain(free.len() - batch..) {
                let block = rng.u64(..blocks);
                let operation = match load.write {
                    true => Operation::Write { block, blocks: 1, buffer, fua: false },
                    false => Operation::Read { block, blocks: 1, buffer },
                };
                queue.submit(Request { tag: 0, operation }).map_err(|_| "the queue is full")?;
            }
        }
        count += queue.poll(now_us, &mut done) as u64;
        for completion in done.drain(..) {
            completion.result?;
            free.extend(completion.buffer);
        }
        polls = polls.wrapping_add(1);
        // Rarely: a clock can be a device of its own, as in a virtual machine.
        if polls.is_multiple_of(1 << 14) {
            now_us = clock();
            if begin.elapsed() >= load.duration {
                break;
            }
        }
    }
    let took = begin.elapsed();
    println!("{:.0} IOPS ({count} in {took:?})", count as f64 / took.as_secs_f64());
    // What is still under way ends before the queue does.
    while queue.in_flight() > 0 {
        queue.poll(clock(), &mut done);
        done.clear();
    }
    Ok(())
}
