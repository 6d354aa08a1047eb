//! The emulated IOMMU: which arenas the device can reach, and where.
//!
//! Guarantees: an access outside of what is mapped at that moment is blocked and remembered; an IOVA is never
//! the address of the memory, never used twice, and never at the start of more than a page, so that a driver
//! that takes one for the other, or that counts on an alignment nobody promised, fails its tests.

use std::io;
use std::sync::{Arc, PoisonError};

use crate::arena::Span;
use crate::hardware::{Dma, MapError, Mapping, WeakMapping};

const PAGE_BYTES: u64 = 4096;
/// Pages that stay free between two mappings.
const GAP_PAGES: u64 = 64;
/// Faults that are remembered; the others are counted.
const REMEMBERED: usize = 64;

/// An access that the IOMMU blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IommuFault {
    /// Where.
    pub iova: u64,
    /// How many bytes.
    pub bytes: usize,
    /// A write by the device.
    pub write: bool,
}

/// An emulated controller's way to memory.
#[derive(Debug)]
pub struct EmulatedDma {
    table: Arc<Table>,
}

#[expect(clippy::disallowed_types, reason = "any thread may map; it is done once for an arena")]
type Lock<T> = std::sync::Mutex<T>;

#[derive(Debug)]
struct Table(Lock<Windows>);

#[derive(Debug)]
struct Windows {
    next_iova: u64,
    end_iova: u64,
    windows: Vec<Window>,
    faults: u64,
    remembered: Vec<IommuFault>,
}

#[derive(Debug)]
struct Window {
    iova: u64,
    span: Span,
    /// There as soon as somebody keeps it.
    mapping: Option<WeakMapping>,
}

/// What keeps a window open.
#[derive(Debug)]
struct Guard {
    table: Arc<Table>,
    iova: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.table.with(|windows| windows.windows.retain(|window| window.iova != self.iova));
    }
}

impl Table {
    fn with<T>(&self, work: impl FnOnce(&mut Windows) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl EmulatedDma {
    /// IOVAs from `first_page` on, below 2^`iova_bits`.
    pub(super) fn new(first_page: u64, iova_bits: u32) -> Self {
        let windows = Windows {
            next_iova: first_page * PAGE_BYTES,
            end_iova: 1_u64.checked_shl(iova_bits).unwrap_or(u64::MAX),
            windows: Vec::new(),
            faults: 0,
            remembered: Vec::new(),
        };
        Self { table: Arc::new(Table(Lock::new(windows))) }
    }

    /// The device reads memory. `false`: blocked.
    pub(super) fn read(&self, iova: u64, into: &mut [u8]) -> bool {
        self.table.with(|windows| {
            let bytes = into.len();
            let found = windows.find(iova, bytes);
            let done = found.is_some_and(|(span, offset)| span.device_read(offset, into));
            done || windows.fault(IommuFault { iova, bytes, write: false })
        })
    }

    /// The device writes memory. `false`: blocked.
    pub(super) fn write(&self, iova: u64, from: &[u8]) -> bool {
        self.table.with(|windows| {
            let bytes = from.len();
            let found = windows.find(iova, bytes);
            let done = found.is_some_and(|(span, offset)| span.device_write(offset, from));
            done || windows.fault(IommuFault { iova, bytes, write: true })
        })
    }

    /// Whether the device can reach all of this.
    pub(super) fn reaches(&self, iova: u64, bytes: usize) -> bool {
        self.table.with(|windows| windows.find(iova, bytes).is_some())
    }

    /// Where in our memory that is.
    pub(super) fn address_of(&self, iova: u64) -> Option<usize> {
        self.table.with(|windows| {
            let (span, offset) = windows.find(iova, 1)?;
            Some(span.address() + offset)
        })
    }

    /// An address that is not mapped and never will be.
    pub(super) fn nowhere(&self) -> u64 {
        self.table.with(|windows| windows.end_iova) & !(PAGE_BYTES - 1)
    }

    /// How many accesses were blocked, and the first of them.
    pub(super) fn faults(&self) -> (u64, Vec<IommuFault>) {
        self.table.with(|windows| (windows.faults, windows.remembered.clone()))
    }

    /// How many arenas are mapped.
    #[must_use]
    pub fn mappings(&self) -> usize {
        self.table.with(|windows| windows.windows.len())
    }
}

impl Windows {
    fn find(&self, iova: u64, bytes: usize) -> Option<(&Span, usize)> {
        self.windows.iter().find_map(|window| {
            let offset = usize::try_from(iova.checked_sub(window.iova)?).ok()?;
            let inside = offset < window.span.bytes() && bytes <= window.span.bytes() - offset;
            inside.then_some((&window.span, offset))
        })
    }

    fn fault(&mut self, fault: IommuFault) -> bool {
        self.faults += 1;
        if self.remembered.len() < REMEMBERED {
            self.remembered.push(fault);
        }
        false
    }

    /// A new place for `bytes` bytes; not the address at which they are.
    fn place(&mut self, span: &Span) -> Option<u64> {
        let pages = span.bytes() as u64 / PAGE_BYTES + GAP_PAGES;
        let mut iova = self.next_iova;
        if iova == span.address() as u64 {
            iova += PAGE_BYTES;
        }
        let end = iova.checked_add(pages * PAGE_BYTES)?;
        if end > self.end_iova {
            return None;
        }
        self.next_iova = end;
        Some(iova)
    }
}

impl Dma for EmulatedDma {
    fn map(&self, span: &Span) -> Result<Mapping, MapError> {
        // What was upgraded lives longer than the lock: the last one to go would take it again.
        let known: Vec<Mapping> = self.table.with(|windows| {
            windows.windows.iter().filter_map(|window| window.mapping.as_ref()?.upgrade()).collect()
        });
        if let Some(mapping) = known.into_iter().find(|mapping| mapping.span().is(span)) {
            return Ok(mapping);
        }
        let iova = self.table.with(|windows| {
            let iova = windows.place(span)?;
            windows.windows.push(Window { iova, span: span.clone(), mapping: None });
            Some(iova)
        });
        let iova = iova.ok_or_else(|| MapError {
            what: format!("cannot map {} MiB for the device", span.bytes() >> 20),
            source: io::ErrorKind::StorageFull.into(),
            advice: "all I/O virtual addresses are used: make the arena smaller".to_owned(),
        })?;
        let guard = Guard { table: Arc::clone(&self.table), iova };
        let mapping = Mapping::new(span.clone(), iova, Arc::new(guard));
        self.table.with(|windows| {
            let window = windows.windows.iter_mut().find(|window| window.iova == iova);
            window.into_iter().for_each(|window| window.mapping = Some(mapping.downgrade()));
        });
        Ok(mapping)
    }
}

#[cfg(test)]
mod tests {
    use crate::Arena;

    use super::*;

    fn span() -> Span {
        Arena::on_demand(4 << 20).unwrap().pool().span()
    }

    #[test]
    fn a_mapping_lasts_as_long_as_its_last_clone() {
        let (dma, span) = (EmulatedDma::new(0x101, 39), span());
        let mapping = dma.map(&span).unwrap();
        let again = dma.map(&span).unwrap();
        assert_eq!((mapping.iova(), dma.mappings()), (again.iova(), 1));
        assert_ne!(mapping.iova(), span.address() as u64);
        assert!(dma.write(mapping.iova() + 4088, &[5; 8]));
        drop(mapping);
        assert!(dma.read(again.iova() + 4088, &mut [0; 8]));
        let iova = again.iova();
        drop(again);
        assert!(!dma.read(iova, &mut [0; 8]));
        assert_eq!(dma.faults(), (1, vec![IommuFault { iova, bytes: 8, write: false }]));
        assert_ne!(dma.map(&span).unwrap().iova(), iova, "an IOVA is used once");
    }

    #[test]
    fn an_access_across_the_end_is_blocked() {
        let (dma, span) = (EmulatedDma::new(0x101, 39), span());
        let mapping = dma.map(&span).unwrap();
        let end = mapping.iova() + span.bytes() as u64;
        assert!(dma.reaches(end - 8, 8) && !dma.reaches(end - 8, 16));
        assert!(!dma.write(end - 8, &[0; 16]) && !dma.write(mapping.iova() - 8, &[0; 8]));
        assert!(!dma.write(dma.nowhere(), &[0; 8]));
    }

    #[test]
    fn a_narrow_iommu_runs_out_of_addresses() {
        let dma = EmulatedDma::new(1, 23);
        let first = dma.map(&span()).unwrap();
        assert!(first.iova() + (4 << 20) <= 1 << 23);
        assert!(dma.map(&span()).unwrap_err().to_string().contains("make the arena smaller"));
    }
}
