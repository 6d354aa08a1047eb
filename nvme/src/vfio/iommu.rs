//! One address space for all drives of the process: which groups are in it, and what is mapped.
//!
//! Guarantees:
//!
//! * a span is mapped once, at one address, for all drives and threads, for as long as a [`Mapping`] of it lives;
//! * that address stays when the last drive leaves and another comes, though the kernel forgets all
//!   maps in between: they are made again before the newcomer is handed out;
//! * memory whose map could not be taken back is never given back to the system either;
//! * a drive is open once.
//!
//! What breaks it: nothing in safe code. A second [`VfioIommu`] in a process works, but maps (and charges against
//! the limit of locked memory) every arena once more.
//!
//! One lock covers it all. It is held while the kernel pins memory, which takes a second for every few GiB.

#![expect(
    clippy::disallowed_types,
    reason = "control path: drives come and arenas are mapped at start, or when a drive is replaced"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use crate::arena::Span;
use crate::hardware::{Dma, MapError, Mapping, WeakMapping};
use crate::pci::{Function, PciAddress, Sysfs};

use super::container::{self, Container};
use super::iova::Ranges;
use super::{OpenError, kernel, limits, preflight};

/// The address space that the drives of this process share. One a process; see the module.
#[derive(Debug)]
pub struct VfioIommu {
    shared: Arc<Shared>,
}

impl VfioIommu {
    /// An empty one; nothing is asked of the system before the first drive is opened.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self { shared: Arc::default() })
    }

    /// The ranges of addresses that all open drives can use, to be shown; `none` while no drive is open.
    #[must_use]
    pub fn ranges(&self) -> String {
        self.shared.lock().ranges.to_string()
    }

    /// Opens the device of `function` in its group.
    pub(super) fn open(
        &self,
        sysfs: &Sysfs,
        function: &Function,
        group: u32,
    ) -> Result<(File, Lease), OpenError> {
        let address = function.address();
        let lease = self.shared.lease(sysfs, function, group)?;
        let state = self.shared.lock();
        let file = &state.groups.get(&group).ok_or(OpenError::Busy { address, group })?.file;
        let device = kernel::device(file, &address.to_string());
        // The lease takes the lock when it is dropped.
        drop(state);
        Ok((device.map_err(OpenError::io(address, "open it"))?, lease))
    }
}

impl Dma for VfioIommu {
    fn map(&self, span: &Span) -> Result<Mapping, MapError> {
        let mut state = self.shared.lock();
        if let Some(mapping) = state.live_map(span) {
            return Ok(mapping);
        }
        let iova = state.map_new(span)?;
        let guard = Arc::new(MapGuard { shared: Arc::clone(&self.shared), iova });
        let mapping = Mapping::new(span.clone(), iova, guard);
        let entry = Entry { span: span.clone(), mapping: mapping.downgrade() };
        state.maps.insert(iova, entry);
        Ok(mapping)
    }
}

#[derive(Default)]
struct Shared(Mutex<State>);

/// If there is a container, all of `maps` are mapped in it, and all of `groups` are in it; if there is none, there
/// are no groups.
#[derive(Default)]
struct State {
    container: Option<Container>,
    ranges: Ranges,
    groups: BTreeMap<u32, Group>,
    /// By their IOVA.
    maps: BTreeMap<u64, Entry>,
    /// Places that the container keeps mapped against our will, and their bytes.
    lost: Vec<(u64, u64)>,
}

struct Group {
    file: File,
    /// Which of its devices are open.
    devices: BTreeSet<PciAddress>,
}

/// A map that exists, or has to exist again once there is a drive. It keeps the memory, so that no address in a
/// container is that of memory which is gone.
struct Entry {
    span: Span,
    mapping: WeakMapping,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in here is a broken assertion; the state is changed last in each step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the device of `function` is open, with its group in the container.
    fn lease(
        self: &Arc<Self>,
        sysfs: &Sysfs,
        function: &Function,
        group: u32,
    ) -> Result<Lease, OpenError> {
        let address = function.address();
        let mut state = self.lock();
        if !state.groups.contains_key(&group) {
            let file = open_group(sysfs, function, group)?;
            state.attach(&file, address)?;
            state.groups.insert(group, Group { file, devices: BTreeSet::new() });
        }
        let fresh = state.groups.get_mut(&group).is_some_and(|group| group.devices.insert(address));
        if !fresh {
            return Err(OpenError::AlreadyOpen { address });
        }
        Ok(Lease { shared: Arc::clone(self), group, address })
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared(..)")
    }
}

/// The group as a file: free, and ours.
fn open_group(sysfs: &Sysfs, function: &Function, group: u32) -> Result<File, OpenError> {
    let address = function.address();
    let file =
        container::open(&format!("/dev/vfio/{group}"), address).map_err(|error| match error {
            OpenError::Io { source, .. } if source.raw_os_error() == Some(libc::EBUSY) => {
                OpenError::Busy { address, group }
            }
            error => error,
        })?;
    if kernel::is_viable(&file).map_err(OpenError::io(address, "look at its IOMMU group"))? {
        return Ok(file);
    }
    Err(preflight::shared(sysfs, function, group))
}

impl State {
    /// Puts a group into the container, the first one into a new one, with all maps.
    fn attach(&mut self, group: &File, address: PciAddress) -> Result<(), OpenError> {
        let ranges_of = |container: &Container| {
            container.ranges().map_err(OpenError::io(address, "ask what its IOMMU can map"))
        };
        if let Some(container) = &self.container {
            container.add(group, address)?;
            self.ranges = ranges_of(container)?;
            self.lost.iter().for_each(|(iova, bytes)| self.ranges.exclude(*iova, *bytes));
            // The kernel has refused the group if it cannot translate what is mapped.
            return Ok(());
        }
        let container = Container::around(group, address)?;
        let ranges = ranges_of(&container)?;
        for (iova, entry) in &self.maps {
            let mapped = map_at(&container, &ranges, &entry.span, *iova);
            mapped.map_err(|source| OpenError::Map { address, source })?;
        }
        (self.container, self.ranges) = (Some(container), ranges);
        self.lost.clear();
        Ok(())
    }

    fn live_map(&self, span: &Span) -> Option<Mapping> {
        let same = self.maps.values().filter(|entry| entry.span.is(span));
        // One that cannot be upgraded has lost its last clone, and waits for the lock to be unmapped.
        same.filter_map(|entry| entry.mapping.upgrade()).next()
    }

    /// Maps `span` at a free place.
    fn map_new(&self, span: &Span) -> Result<u64, MapError> {
        let what = || format!("cannot map an arena of {} MiB for the drives", span.bytes() >> 20);
        let container = self.container.as_ref().ok_or_else(|| MapError {
            what: what(),
            source: Errno::ENODEV.into(),
            advice: "no drive is open: open one first".into(),
        })?;
        let taken: Vec<(u64, u64)> =
            self.maps.iter().map(|(iova, entry)| (*iova, entry.span.bytes() as u64)).collect();
        let iova = self.ranges.choose(span.bytes() as u64, &taken).ok_or_else(|| MapError {
            what: what(),
            source: Errno::ENOSPC.into(),
            advice: format!(
                "the IOMMU has no such place free in {}: make the arena smaller",
                self.ranges
            ),
        })?;
        map_at(container, &self.ranges, span, iova)?;
        Ok(iova)
    }

    /// Takes the map at `iova` back.
    fn unmap(&mut self, iova: u64) -> Option<Entry> {
        let entry = self.maps.remove(&iova)?;
        let bytes = entry.span.bytes() as u64;
        let Some(container) = &self.container else { return Some(entry) };
        let Err(error) = container.unmap(iova, bytes) else { return Some(entry) };
        log::error!("cannot unmap the arena at IOVA {iova:#x}: {error}; its memory is kept");
        // A device may still reach it: neither the memory nor the address is used for anything else.
        self.ranges.exclude(iova, bytes);
        self.lost.push((iova, bytes));
        std::mem::forget(entry);
        None
    }
}

fn map_at(container: &Container, ranges: &Ranges, span: &Span, iova: u64) -> Result<(), MapError> {
    let bytes = span.bytes();
    if !ranges.contain(iova, bytes as u64) {
        return Err(MapError {
            what: format!("cannot map an arena of {} MiB at {iova:#x} again", bytes >> 20),
            source: Errno::ERANGE.into(),
            advice: format!("this drive's IOMMU maps {ranges}: restart the daemon with it"),
        });
    }
    container.map(span, iova).map_err(|error| limits::refused(bytes, error))?;
    log::debug!("arena of {} MiB mapped at IOVA {iova:#x}", bytes >> 20);
    Ok(())
}

/// Unmaps when it is dropped: what a [`Mapping`] holds.
struct MapGuard {
    shared: Arc<Shared>,
    iova: u64,
}

impl Drop for MapGuard {
    fn drop(&mut self) {
        let entry = self.shared.lock().unmap(self.iova);
        // The arena may end here: outside of the lock.
        drop(entry);
    }
}

/// A device that is open, as its group counts it. Dropped after everything else of the device.
#[derive(Debug)]
pub(super) struct Lease {
    shared: Arc<Shared>,
    group: u32,
    address: PciAddress,
}

#[cfg(test)]
impl Lease {
    /// For a file that is no device.
    pub(super) fn of_nothing() -> Self {
        let address = "03:00.0".parse().unwrap();
        Self { shared: Arc::default(), group: 0, address }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let Some(group) = state.groups.get_mut(&self.group) else { return };
        group.devices.remove(&self.address);
        if group.devices.is_empty() {
            state.groups.remove(&self.group);
        }
        if state.groups.is_empty() {
            // The kernel has dropped the IOMMU, with all maps: `attach` makes them again.
            state.container = None;
            state.ranges = Ranges::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Arena;

    use super::*;

    #[test]
    fn without_a_drive_nothing_can_be_mapped() {
        let iommu = VfioIommu::new();
        assert_eq!(iommu.ranges(), "none");
        let pool = Arena::on_demand(8 << 20).unwrap().pool();
        let error = iommu.map(&pool.span()).unwrap_err().to_string();
        assert!(error.contains("arena of 8 MiB") && error.contains("open one first"), "{error}");
    }

    #[test]
    fn a_map_outlives_the_container_and_ends_with_its_guard() {
        let iommu = VfioIommu::new();
        let pool = Arena::on_demand(4 << 20).unwrap().pool();
        let guard = Arc::new(MapGuard { shared: Arc::clone(&iommu.shared), iova: 0x40_0000 });
        let first = Mapping::new(pool.span(), guard.iova, guard);
        let entry = Entry { span: pool.span(), mapping: first.downgrade() };
        iommu.shared.lock().maps.insert(0x40_0000, entry);
        let mapping = iommu.map(&pool.span()).unwrap();
        assert_eq!(mapping.iova(), 0x40_0000, "the same span has its map already");
        drop(first);
        assert_eq!(iommu.map(&pool.span()).unwrap().iova(), 0x40_0000);
        drop(mapping);
        assert!(iommu.shared.lock().maps.is_empty());
        assert!(iommu.map(&pool.span()).is_err());
    }
}
