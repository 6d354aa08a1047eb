//! One direction's bytes: a ring with one producer and one consumer in different processes.
//!
//! Each side keeps its own index in private memory and only publishes it; the peer's index is read
//! once and then checked, and what comes out of the check is the only thing that is used. Indices
//! count bytes from the beginning and do not wrap (2⁶⁴ bytes are centuries).

use super::layout::RING_BYTES;
use super::mapping::Mapping;
use std::io;
use std::sync::atomic::Ordering;

/// The peer's index is one that it cannot have. An [`io::ErrorKind::InvalidData`] that allocates
/// nothing.
fn broken() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// The pieces of `count` bytes from `index` on: where in the ring, and how many up to its end.
fn first_piece(index: u64, count: usize) -> (usize, usize) {
    let at = index as usize % RING_BYTES;
    (at, count.min(RING_BYTES - at))
}

/// The side that writes.
#[derive(Debug)]
pub(super) struct Producer {
    /// Where the ring's bytes, its tail and its head are in the mapping.
    bytes: usize,
    tail_at: usize,
    head_at: usize,
    /// Written so far, published or not.
    tail: u64,
    /// The consumer's index, when it was last looked at.
    head: u64,
}

impl Producer {
    pub(super) fn new(bytes: usize, tail_at: usize, head_at: usize) -> Self {
        Self { bytes, tail_at, head_at, tail: 0, head: 0 }
    }

    fn room(&self) -> usize {
        RING_BYTES - (self.tail - self.head) as usize
    }

    /// Writes as much of `from` as there is room for; it is seen when it is published.
    pub(super) fn put(&mut self, map: &Mapping, from: &[u8]) -> io::Result<usize> {
        if self.room() < from.len() {
            self.look(map)?;
        }
        let count = from.len().min(self.room());
        let (at, first) = first_piece(self.tail, count);
        map.copy_in(self.bytes + at, &from[..first]);
        map.copy_in(self.bytes, &from[first..count]);
        self.tail += count as u64;
        Ok(count)
    }

    fn look(&mut self, map: &Mapping) -> io::Result<()> {
        let head = map.word(self.head_at).load(Ordering::Acquire);
        // A consumer only moves forward, and never past what was published.
        if head < self.head || head > self.tail {
            return Err(broken());
        }
        self.head = head;
        Ok(())
    }

    /// Shows the consumer what was written, here and by [`Mapping::stream_in`].
    pub(super) fn publish(&self, map: &Mapping) {
        map.fence();
        map.word(self.tail_at).store(self.tail, Ordering::Release);
    }
}

/// The side that reads.
#[derive(Debug)]
pub(super) struct Consumer {
    bytes: usize,
    tail_at: usize,
    head_at: usize,
    head: u64,
    /// The producer's index, when it was last looked at.
    tail: u64,
}

impl Consumer {
    pub(super) fn new(bytes: usize, tail_at: usize, head_at: usize) -> Self {
        Self { bytes, tail_at, head_at, head: 0, tail: 0 }
    }

    /// Looks once at how far the producer is.
    pub(super) fn look(&mut self, map: &Mapping) -> io::Result<()> {
        let tail = map.word(self.tail_at).load(Ordering::Acquire);
        if tail < self.tail || tail - self.head > RING_BYTES as u64 {
            return Err(broken());
        }
        self.tail = tail;
        Ok(())
    }

    /// Copies out as much of what was seen as `into` holds; the room is the producer's when it is
    /// published.
    pub(super) fn take(&mut self, map: &Mapping, into: &mut [u8]) -> usize {
        let count = into.len().min((self.tail - self.head) as usize);
        let (at, first) = first_piece(self.head, count);
        map.copy_out(self.bytes + at, &mut into[..first]);
        map.copy_out(self.bytes, &mut into[first..count]);
        self.head += count as u64;
        count
    }

    pub(super) fn publish(&self, map: &Mapping) {
        map.word(self.head_at).store(self.head, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::{AREA, CLIENT, SERVER, TO_SERVER};
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::collections::VecDeque;
    use std::os::fd::AsFd;

    fn map() -> Mapping {
        let memfd = memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&memfd, AREA as i64).unwrap();
        Mapping::new(memfd.as_fd(), AREA).unwrap()
    }

    fn ends() -> (Producer, Consumer) {
        let (tail, head) = (CLIENT.tail, SERVER.head);
        (Producer::new(TO_SERVER, tail, head), Consumer::new(TO_SERVER, tail, head))
    }

    #[test]
    fn bytes_come_out_as_they_went_in_whatever_the_pieces() {
        for seed in 0..20 {
            let (map, mut rng) = (map(), fastrand::Rng::with_seed(seed));
            let (mut producer, mut consumer) = ends();
            let mut expected: VecDeque<u8> = VecDeque::new();
            for _ in 0..400 {
                let most = if rng.u8(..10) == 0 { 2 * RING_BYTES } else { 3000 };
                let mut bytes = vec![0; rng.usize(..most)];
                if rng.bool() {
                    rng.fill(&mut bytes);
                    let count = producer.put(&map, &bytes).unwrap();
                    assert_eq!(count, bytes.len().min(RING_BYTES - expected.len()), "seed {seed}");
                    producer.publish(&map);
                    expected.extend(&bytes[..count]);
                } else {
                    consumer.look(&map).unwrap();
                    let count = consumer.take(&map, &mut bytes);
                    assert_eq!(count, bytes.len().min(expected.len()), "seed {seed}");
                    consumer.publish(&map);
                    assert!(
                        expected.drain(..count).eq(bytes[..count].iter().copied()),
                        "seed {seed}"
                    );
                }
            }
        }
    }

    #[test]
    fn an_index_that_cannot_be_is_an_error_on_both_sides() {
        let lies = [1, RING_BYTES as u64 + 11, u64::MAX, u64::MAX - 9, 1 << 63];
        for lie in lies {
            let (map, (mut producer, mut consumer)) = (map(), ends());
            producer.put(&map, &[1; 10]).unwrap();
            producer.publish(&map);
            consumer.look(&map).unwrap();
            assert_eq!(consumer.take(&map, &mut [0; 10]), 10);
            consumer.publish(&map);
            map.word(CLIENT.tail).store(lie, Ordering::Relaxed);
            assert_eq!(
                consumer.look(&map).unwrap_err().kind(),
                io::ErrorKind::InvalidData,
                "{lie}"
            );
            producer.put(&map, &vec![1; RING_BYTES - 10]).unwrap();
            producer.look(&map).unwrap();
            let lie = if lie == 1 { 9 } else { lie.max(RING_BYTES as u64 + 1) };
            map.word(SERVER.head).store(lie, Ordering::Relaxed);
            assert_eq!(
                producer.look(&map).unwrap_err().kind(),
                io::ErrorKind::InvalidData,
                "{lie}"
            );
        }
    }
}
