//! An arena as a device sees it.
//!
//! Guarantees: [`Mapping::translate`] never gives an address outside the arena; the arena stays mapped, and its
//! memory where it is, for as long as a clone of the mapping lives.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock, Weak};

use super::Dma;
use crate::arena::{Arena, ArenaError, BUFFER_BYTES_MAX, BUFFER_BYTES_MIN as PAGE_BYTES, Span};

/// Why memory could not be given to a device. The message says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}; {advice}")]
pub struct MapError {
    /// What was tried, with its size.
    pub what: String,
    /// What the kernel said.
    pub source: io::Error,
    /// What to do.
    pub advice: String,
}

impl From<ArenaError> for MapError {
    fn from(error: ArenaError) -> Self {
        Self {
            what: "cannot make a page table for a device".to_owned(),
            source: io::Error::other(error),
            advice: "make the arena smaller, or free memory".to_owned(),
        }
    }
}

/// A window of I/O virtual addresses (IOVA) over an arena: the device's view of it.
#[derive(Clone)]
pub struct Mapping(Arc<Inner>);

/// A mapping that is known, and not kept.
#[derive(Clone, Debug)]
pub struct WeakMapping(Weak<Inner>);

struct Inner {
    span: Span,
    iova: u64,
    /// See [`Mapping::page_table`].
    page_table: OnceLock<Mapping>,
    /// Unmaps when it is dropped.
    _guard: Arc<dyn Send + Sync>,
}

impl Mapping {
    /// `span` is at `iova` until the last clone of `guard` is dropped.
    #[must_use]
    pub fn new(span: Span, iova: u64, guard: Arc<dyn Send + Sync>) -> Self {
        Self(Arc::new(Inner { span, iova, page_table: OnceLock::new(), _guard: guard }))
    }

    /// The arena behind it.
    #[must_use]
    pub fn span(&self) -> &Span {
        &self.0.span
    }

    /// Where the arena begins for the device.
    #[must_use]
    pub fn iova(&self) -> u64 {
        self.0.iova
    }

    /// This mapping, without keeping it.
    #[must_use]
    pub fn downgrade(&self) -> WeakMapping {
        WeakMapping(Arc::downgrade(&self.0))
    }

    /// The device's address of `bytes` bytes at `address`; `None` if they are not all in the arena.
    #[must_use]
    #[inline]
    pub fn translate(&self, address: usize, bytes: usize) -> Option<u64> {
        let offset = address.wrapping_sub(self.0.span.address());
        let length = self.0.span.bytes();
        (offset < length && bytes <= length - offset).then(|| self.0.iova + offset as u64)
    }

    /// Where the device finds the arena's page table: the IOVA of page n of the arena in its entry n (64 bits,
    /// little-endian). Any run of entries inside one page of the table is a PRP list, so that no command ever
    /// has to write one. Made at the first call, in memory of its own: 2 MiB for each GiB of arena.
    ///
    /// # Errors
    /// [`MapError`]: no memory, or it cannot be mapped.
    pub fn page_table(&self, dma: &dyn Dma) -> Result<u64, MapError> {
        if let Some(table) = self.0.page_table.get() {
            return Ok(table.iova());
        }
        let table = dma.map(&self.write_page_table()?)?;
        Ok(self.0.page_table.get_or_init(|| table).iova())
    }

    fn write_page_table(&self) -> Result<Span, ArenaError> {
        let pages = (self.0.span.bytes() / PAGE_BYTES) as u64;
        let pool = Arena::on_demand(pages as usize * size_of::<u64>())?.pool();
        let span = pool.span();
        let mut held = Vec::new();
        while let Some(mut buffer) = pool.alloc(BUFFER_BYTES_MAX) {
            let first = ((buffer.as_ptr().addr() - span.address()) / size_of::<u64>()) as u64;
            for (entry, page) in buffer.chunks_exact_mut(size_of::<u64>()).zip(first..pages) {
                let iova = self.0.iova + page * PAGE_BYTES as u64;
                entry.copy_from_slice(&iova.to_le_bytes());
            }
            held.push(buffer);
        }
        Ok(span)
    }
}

impl WeakMapping {
    /// The mapping, if somebody keeps it.
    #[must_use]
    pub fn upgrade(&self) -> Option<Mapping> {
        self.0.upgrade().map(Mapping)
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mapping({} MiB at IOVA {:#x})", self.0.span.bytes() >> 20, self.0.iova)
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping").field("iova", &self.iova).finish_non_exhaustive()
    }
}
