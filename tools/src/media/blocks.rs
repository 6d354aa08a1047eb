//! A device behind a block queue, read like a file: for looking at what it holds, and for wiping it.

use forebay_nvme::{BLOCK_BYTES, BlockQueue, Completion, Operation, Pool, Request};
use std::io::{self, Read, Seek, SeekFrom};

/// Bytes of one read.
const STEP_BYTES: usize = 128 << 10;

/// The whole of a device. Nothing else is in flight on the queue meanwhile.
pub(crate) struct Blocks<'a> {
    queue: &'a mut dyn BlockQueue,
    pool: &'a Pool,
    at: u64,
}

impl<'a> Blocks<'a> {
    pub(crate) fn new(queue: &'a mut dyn BlockQueue, pool: &'a Pool) -> Self {
        Self { queue, pool, at: 0 }
    }

    fn length(&self) -> u64 {
        self.queue.geometry().blocks * BLOCK_BYTES as u64
    }

    /// Writes zeros over `blocks` blocks from `block` on. Not every device can do it by itself.
    pub(crate) fn wipe(&mut self, block: u64, blocks: u64) -> io::Result<()> {
        let step = (STEP_BYTES / BLOCK_BYTES) as u64;
        for done in (0..blocks).step_by(step as usize) {
            let mut buffer = self.pool.alloc(STEP_BYTES).ok_or(io::ErrorKind::OutOfMemory)?;
            buffer.fill(0);
            let (block, blocks) = (block + done, step.min(blocks - done) as u32);
            self.run(Operation::Write { block, blocks, buffer, fua: false })?;
        }
        Ok(())
    }

    /// Makes it durable.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.run(Operation::Flush).map(drop)
    }

    /// Runs one operation to its end.
    fn run(&mut self, operation: Operation) -> io::Result<Completion> {
        let sent = self.queue.submit(Request { tag: 0, operation });
        sent.map_err(|_| io::ErrorKind::WouldBlock)?;
        let mut done = Vec::with_capacity(1);
        // A simulated device's clock; a drive goes by its own.
        let mut now_us = 0;
        while self.queue.poll(now_us, &mut done) == 0 {
            now_us += 1000;
            std::thread::yield_now();
        }
        let completion = done.swap_remove(0);
        match completion.result {
            Ok(_) => Ok(completion),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

impl Read for Blocks<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let (block, skip) = (self.at / BLOCK_BYTES as u64, self.at as usize % BLOCK_BYTES);
        let left = self.length().saturating_sub(self.at) as usize;
        let wanted = into.len().min(left).min(STEP_BYTES - skip);
        if wanted == 0 {
            return Ok(0);
        }
        let blocks = (skip + wanted).div_ceil(BLOCK_BYTES) as u32;
        let buffer = self.pool.alloc(STEP_BYTES).ok_or(io::ErrorKind::OutOfMemory)?;
        let completion = self.run(Operation::Read { block, blocks, buffer })?;
        let buffer = completion.buffer.ok_or(io::ErrorKind::Other)?;
        into[..wanted].copy_from_slice(&buffer[skip..skip + wanted]);
        self.at += wanted as u64;
        Ok(wanted)
    }
}

impl Seek for Blocks<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(offset) => self.length().checked_add_signed(offset),
            SeekFrom::Current(offset) => self.at.checked_add_signed(offset),
        };
        self.at = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_nvme::Arena;
    use forebay_nvme::sim::{SimConfig, SimDevice};

    #[test]
    fn a_device_reads_like_the_file_of_its_bytes() {
        let device = SimDevice::new(SimConfig { blocks: 300, ..SimConfig::default() });
        for block in 0..300 {
            device.edit(block, |data| data.fill(block as u8));
        }
        let pool = Arena::on_demand(4 << 20).unwrap().pool();
        let mut queue = device.queue();
        let mut blocks = Blocks::new(&mut queue, &pool);
        let mut all = Vec::new();
        blocks.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), 300 * BLOCK_BYTES);
        assert!(
            all.chunks(BLOCK_BYTES).zip(0..).all(|(data, n)| data.iter().all(|b| *b == n as u8))
        );
        blocks.seek(SeekFrom::Start(5000)).unwrap();
        let mut some = [9; 10_000];
        blocks.read_exact(&mut some).unwrap();
        assert_eq!(some[..], all[5000..15_000]);
        assert_eq!(blocks.seek(SeekFrom::End(-1)).unwrap(), 300 * BLOCK_BYTES as u64 - 1);
        assert_eq!(blocks.read(&mut some).unwrap(), 1);
        assert_eq!(blocks.read(&mut some).unwrap(), 0);
    }
}
