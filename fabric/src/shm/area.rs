//! The client's side: the connection, and the area in which the server puts and finds bulk data.
//!
//! Guarantees: no two pieces that are lent overlap; a piece is lent until it is taken back, which
//! [`crate::client`] does only after the server's answer: before it the server may still write there.
//! An area that is full lends nothing, and the data travels on the rings instead.

use super::end::End;
use super::layout::AREA;
use super::mapping::PAGE_BYTES;
use super::port::Port;
use super::{AREA_BYTES, MEMORY_KEY, Refusal, open, socket};
use crate::client::{Lent, Memory, Stream};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;

/// Reads in a row that found nothing, after which the socket is asked whether the server is alive.
const LOOK_READS: u32 = 1024;

/// A client's connection over shared memory.
#[derive(Debug)]
pub struct ShmStream {
    end: End,
    pages: Pages,
    empty_reads: u32,
}

impl ShmStream {
    /// Connects to the socket at `path` (a reactor's own: see [`super::socket_path`]).
    ///
    /// # Errors
    /// Nobody listens there, or there is no memory.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Self::connect_with(path, AREA_BYTES)
    }

    /// [`ShmStream::connect`] with an area of `area_bytes`, rounded up to pages.
    ///
    /// # Errors
    /// Nobody listens there, or there is no memory.
    pub fn connect_with(path: &Path, area_bytes: usize) -> io::Result<Self> {
        let area_bytes = area_bytes.next_multiple_of(PAGE_BYTES);
        let socket = socket::dial(path)?;
        let mapping = open::offer(&socket, area_bytes)?;
        let end = End::of_client(Port::of_client(mapping, socket));
        Ok(Self { end, pages: Pages::new(area_bytes / PAGE_BYTES), empty_reads: 0 })
    }

    /// Turns readable when the server rings, or is gone.
    #[must_use]
    pub fn wait_fd(&self) -> BorrowedFd<'_> {
        self.end.port.socket()
    }

    /// From now on the server rings. `false`: there is something to do already.
    #[must_use]
    pub fn may_sleep(&self) -> bool {
        self.end.port.may_sleep()
    }

    /// The sleep is over. `true`: there is something to read.
    #[must_use]
    pub fn woke(&self) -> bool {
        self.end.port.woke();
        self.end.port.hear();
        self.end.port.has_input()
    }

    /// An end that is a refusal says so.
    fn look_closer(&self, result: io::Result<usize>) -> io::Result<usize> {
        match (result, self.end.port.refused()) {
            (Ok(0) | Err(_), Some(reason)) => Err(match Refusal::from_wire(reason) {
                Some(refusal) => {
                    io::Error::other(format!("the server refuses this client: {refusal}"))
                }
                None => io::Error::other("the server refuses this client"),
            }),
            (result, _) => result,
        }
    }

    fn look_at_socket(&mut self) {
        self.empty_reads += 1;
        if self.empty_reads >= LOOK_READS {
            self.empty_reads = 0;
            self.end.port.hear();
        }
    }
}

impl Read for ShmStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.read_vectored(&mut [IoSliceMut::new(into)])
    }

    fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self.end.read_vectored(slices) {
            Ok(count) if count > 0 => {
                self.empty_reads = 0;
                Ok(count)
            }
            other => {
                self.look_at_socket();
                self.look_closer(other)
            }
        }
    }
}

impl Write for ShmStream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.end.write(from)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let written = self.end.write_vectored(slices);
        self.look_closer(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for ShmStream {
    fn memory(&mut self) -> Option<&mut dyn Memory> {
        Some(self)
    }
}

impl Memory for ShmStream {
    fn lend(&mut self, bytes: usize) -> Option<Lent> {
        let count = bytes.div_ceil(PAGE_BYTES);
        let page = self.pages.take(count)?;
        Some(Lent { address: (page * PAGE_BYTES) as u64, key: MEMORY_KEY, bytes: bytes as u32 })
    }

    fn put(&mut self, lent: Lent, offset: usize, from: &[u8]) {
        assert!(offset + from.len() <= lent.bytes as usize, "more than was lent");
        self.end.port.map.stream_in(AREA + lent.address as usize + offset, from);
    }

    fn get(&self, lent: Lent, offset: usize, into: &mut [u8]) {
        assert!(offset + into.len() <= lent.bytes as usize, "more than was lent");
        self.end.port.map.copy_out(AREA + lent.address as usize + offset, into);
    }

    fn prefetch(&self, lent: Lent, offset: usize, count: usize) {
        assert!(offset + count <= lent.bytes as usize, "more than was lent");
        self.end.port.map.prefetch(AREA + lent.address as usize + offset, count);
    }

    fn take_back(&mut self, lent: Lent) {
        let count = (lent.bytes as usize).div_ceil(PAGE_BYTES);
        self.pages.give(lent.address as usize / PAGE_BYTES, count);
    }
}

/// Pages that are lent in turn before the first one's turn is again: 2 MiB. The server writes into a
/// page twice as fast if the client's own cache has forgotten it meanwhile; more would leave the cache
/// that both share.
const TURN_PAGES: usize = 512;

/// Which pages of the area are lent: a bit each. The first that fit behind those which were lent last
/// are taken, and from the beginning again after [`TURN_PAGES`], so that a client which keeps few in
/// flight uses few pages.
#[derive(Debug)]
struct Pages {
    lent: Box<[u64]>,
    count: usize,
    /// Where the next search begins.
    next: usize,
}

impl Pages {
    fn new(count: usize) -> Self {
        Self { lent: vec![0; count.div_ceil(64)].into_boxed_slice(), count, next: 0 }
    }

    fn is_lent(&self, page: usize) -> bool {
        self.lent[page / 64] >> (page % 64) & 1 != 0
    }

    /// `count` free pages in a row.
    fn take(&mut self, count: usize) -> Option<usize> {
        let from = std::mem::take(&mut self.next);
        let start = self.find(from, count).or_else(|| self.find(0, count))?;
        self.set(start, count, true);
        self.next = if start + count < TURN_PAGES { start + count } else { 0 };
        Some(start)
    }

    /// The first `count` free pages in a row, from `start` on.
    fn find(&self, mut start: usize, count: usize) -> Option<usize> {
        let mut page = start;
        while page < self.count {
            if page.is_multiple_of(64) && self.lent[page / 64] == u64::MAX {
                page += 64;
                start = page;
            } else if page.is_multiple_of(64) && self.lent[page / 64] == 0 {
                page += 64;
            } else {
                page += 1;
                if self.is_lent(page - 1) {
                    start = page;
                }
            }
            if page.min(self.count) >= start + count {
                return Some(start);
            }
        }
        None
    }

    fn give(&mut self, start: usize, count: usize) {
        debug_assert!((start..start + count).all(|page| self.is_lent(page)), "given back twice");
        self.set(start, count, false);
    }

    fn set(&mut self, start: usize, count: usize, lent: bool) {
        let (mut page, end) = (start, start + count);
        while page < end {
            let run = (64 - page % 64).min(end - page);
            let mask = (u64::MAX >> (64 - run)) << (page % 64);
            let word = &mut self.lent[page / 64];
            *word = if lent { *word | mask } else { *word & !mask };
            page += run;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_are_lent_never_overlap_and_all_come_back() {
        for seed in 0..50 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (count, mut next) = (rng.usize(1..1000), 0);
            let mut pages = Pages::new(count);
            let (mut model, mut held) = (vec![false; count], Vec::new());
            for _ in 0..1000 {
                if rng.bool() {
                    let wanted =
                        if rng.u8(..5) == 0 { rng.usize(1..=count) } else { rng.usize(1..8) };
                    let fits = |start: &usize| !model[*start..*start + wanted].contains(&true);
                    let places = (count + 1).saturating_sub(wanted);
                    let expected = (next..places).chain(0..places).find(fits);
                    assert_eq!(pages.take(wanted), expected, "seed {seed}: {wanted} of {count}");
                    next = expected.map_or(0, |start| start + wanted);
                    next = if next < TURN_PAGES { next } else { 0 };
                    if let Some(start) = expected {
                        model[start..start + wanted].fill(true);
                        held.push((start, wanted));
                    }
                } else if !held.is_empty() {
                    let (start, wanted) = held.swap_remove(rng.usize(..held.len()));
                    pages.give(start, wanted);
                    model[start..start + wanted].fill(false);
                }
            }
            held.into_iter().for_each(|(start, wanted)| pages.give(start, wanted));
            assert_eq!(pages.take(count), Some(0), "seed {seed}");
        }
    }
}
