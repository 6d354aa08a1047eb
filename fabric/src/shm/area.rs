//! The client's side: the connection, and the area in which the server puts and finds bulk data.
//!
//! Guarantees: no two pieces that are lent overlap; a piece is lent until it is taken back, which
//! [`crate::client`] does only after the server's answer: before it the server may still write there. Or it
//! becomes a [`View`] then, and is free when that is dropped.
//! An area that is full lends nothing, and the data travels on the rings instead.

use super::end::End;
use super::layout::AREA;
use super::mapping::PAGE_BYTES;
use super::pages::Pages;
use super::port::Port;
use super::view::View;
use super::{AREA_BYTES, MEMORY_KEY, Refusal, open, socket};
use crate::client::{Lent, Memory, Stream};
use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

/// Reads in a row that found nothing, after which the socket is asked whether the server is alive.
const LOOK_READS: u32 = 1024;

/// A client's connection over shared memory.
#[derive(Debug)]
pub struct ShmStream {
    end: End,
    area: Rc<Area>,
    empty_reads: u32,
}

/// What is lent of the area, and mapped until nobody reads there any more.
#[derive(Debug)]
pub(super) struct Area {
    pub(super) port: Arc<Port>,
    pages: RefCell<Pages>,
    /// Pages of views.
    viewed: Cell<usize>,
}

impl Area {
    fn new(port: Arc<Port>, bytes: usize) -> Rc<Self> {
        let pages = RefCell::new(Pages::new(bytes / PAGE_BYTES));
        Rc::new(Self { port, pages, viewed: Cell::new(0) })
    }

    /// Where `page` is, in bytes from the area's beginning.
    pub(super) fn offset(page: usize) -> usize {
        page * PAGE_BYTES
    }

    /// The pages of a view are free again.
    pub(super) fn end_view(&self, page: usize, count: usize) {
        let pages = count.div_ceil(PAGE_BYTES);
        self.viewed.set(self.viewed.get() - pages);
        self.pages.borrow_mut().give(page, pages);
    }
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
        let area = Area::new(end.port.clone(), area_bytes);
        Ok(Self { end, area, empty_reads: 0 })
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
        let page = self.area.pages.borrow_mut().take(count)?;
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
        self.area.pages.borrow_mut().give(lent.address as usize / PAGE_BYTES, count);
    }

    fn view(&mut self, lent: Lent, count: usize) -> Option<View> {
        assert!(count <= lent.bytes as usize, "more than was lent");
        let (page, kept) = (lent.address as usize / PAGE_BYTES, count.div_ceil(PAGE_BYTES));
        let viewed = self.area.viewed.get() + kept;
        let mut pages = self.area.pages.borrow_mut();
        if viewed > pages.count() / 2 {
            return None;
        }
        let rest = (lent.bytes as usize).div_ceil(PAGE_BYTES) - kept;
        pages.give(page + kept, rest);
        self.area.viewed.set(viewed);
        Some(View::new(self.area.clone(), page, count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::Shm;

    /// A client with an area of so many pages, and whom it has connected to.
    fn connected(pages: usize) -> (Shm, ShmStream, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let shm = Shm::bind(&folder.path().join("shm"), 0, 0o600).unwrap();
        let stream = ShmStream::connect_with(shm.path(), pages * PAGE_BYTES).unwrap();
        (shm, stream, folder)
    }

    #[test]
    fn a_view_has_its_pages_until_it_is_dropped_and_the_rest_of_the_piece_is_free_at_once() {
        let (_shm, mut stream, _folder) = connected(8);
        let lent = stream.lend(4 * PAGE_BYTES).unwrap();
        stream.put(lent, 0, b"an answer that is shorter");
        let view = stream.view(lent, 9).unwrap();
        let rest = stream.lend(7 * PAGE_BYTES).unwrap();
        assert!((&*view, stream.lend(1)) == (&b"an answer"[..], None));
        stream.take_back(rest);
        drop(view);
        assert!(stream.lend(8 * PAGE_BYTES).is_some());
    }

    #[test]
    fn views_have_half_of_the_area_at_most_and_keep_it_mapped_when_the_connection_is_gone() {
        let (_shm, mut stream, _folder) = connected(8);
        let mut view = |pages: usize| {
            let lent = stream.lend(pages * PAGE_BYTES).unwrap();
            stream.put(lent, 0, b"kept");
            let view = stream.view(lent, pages * PAGE_BYTES);
            if view.is_none() {
                stream.take_back(lent);
            }
            view
        };
        let first = view(3).unwrap();
        assert!(view(2).is_none() && view(1).is_some());
        assert!(view(1).is_some(), "the one before is free again");
        drop(stream);
        assert_eq!(first[..4], *b"kept");
    }
}
