//! 4 KiB random reads through `UringQueue` for a few seconds, to set beside
//! `fio --ioengine=io_uring --fixedbufs --registerfiles --iodepth=32 --iodepth_batch_submit=16
//! --iodepth_batch_complete_max=16 --direct=1 --bs=4k --rw=randread --norandommap`.
//!
//! `uring_iops FILE [SECONDS [DEPTH [BATCH]]]`; the file is created with 1 GiB if it is not there.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use forebay_nvme::uring::UringDevice;
use forebay_nvme::{Arena, BLOCK_BYTES, BlockQueue, DmaBuf, Operation, Pool, Request};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path: PathBuf = arguments.next().ok_or("usage: uring_iops FILE [SECONDS …]")?.into();
    let mut number = |default: u32| arguments.next().map_or(Ok(default), |text| text.parse());
    let (seconds, depth, batch) = (number(3)?, number(32)?, number(16)? as usize);
    let new = !path.exists();
    let device = UringDevice::open(&path, Some(1 << 30))?;
    let pool = Arena::new(16 << 20)?.pool();
    let mut queue = device.queue(&pool, depth)?;
    if new {
        fill(&mut queue, &pool)?;
    }
    let (reads, took) = run(&mut queue, &pool, batch, Duration::from_secs(u64::from(seconds)))?;
    println!("{:.0} IOPS ({reads} reads in {took:?})", reads as f64 / took.as_secs_f64());
    Ok(())
}

/// Writes every block once: a file system reads reserved space without touching memory.
fn fill(queue: &mut impl BlockQueue, pool: &Pool) -> Result<(), Box<dyn Error>> {
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

fn run(
    queue: &mut impl BlockQueue,
    pool: &Pool,
    batch: usize,
    duration: Duration,
) -> Result<(u64, Duration), Box<dyn Error>> {
    let geometry = queue.geometry();
    let mut free: Vec<DmaBuf> =
        (0..geometry.depth).filter_map(|_| pool.alloc(BLOCK_BYTES)).collect();
    let mut done = Vec::with_capacity(batch);
    let mut rng = fastrand::Rng::with_seed(1);
    let mut reads = 0;
    let begin = Instant::now();
    while reads % 4096 >= batch as u64 || begin.elapsed() < duration {
        // As fio does: submit once there are `batch` to submit, reap at most `batch`.
        while free.len() >= batch {
            for buffer in free.drain(free.len() - batch..) {
                let operation =
                    Operation::Read { block: rng.u64(..geometry.blocks), blocks: 1, buffer };
                queue.submit(Request { tag: 0, operation }).map_err(|_| "the queue is full")?;
            }
        }
        reads += queue.poll(0, &mut done) as u64;
        for completion in done.drain(..) {
            completion.result?;
            free.extend(completion.buffer);
        }
    }
    Ok((reads, begin.elapsed()))
}
